//! What came of the requests.

use std::{
    collections::BTreeMap,
    fmt::Write as _,
    time::{Duration, Instant},
};

use crate::connection::Answer;

/// Counts and latencies of a run.
#[derive(Default)]
pub(crate) struct Tally {
    pub(crate) requests: u64,
    /// Requests whose connection ended without an answer.
    pub(crate) broken: u64,
    /// Connections that could not be made again.
    pub(crate) dead: u64,
    /// Requests that fell due and were not sent (open loop).
    pub(crate) unsent: u64,
    /// Requests that were never answered.
    pub(crate) unanswered: u64,
    /// Distinct ids that were sent, and those in requests that were answered 200.
    pub(crate) fresh_sent: u64,
    fresh_accepted: u64,
    /// Ids that the answers say were new.
    claimed: u64,
    /// 200s that count for throughput.
    counted: u64,
    /// Latencies in µs of each status.
    latencies: BTreeMap<u16, Vec<u32>>,
}

/// The part of a run that counts for throughput.
pub(crate) struct Window {
    pub(crate) from: Instant,
    pub(crate) to: Instant,
}

impl Tally {
    /// Takes an answer in; whether the ids of its request are accepted.
    pub(crate) fn answered(
        &mut self,
        answer: &Answer,
        fresh: u64,
        sent_at: Instant,
        now: Instant,
        window: &Window,
    ) -> bool {
        let took = u32::try_from(now.duration_since(sent_at).as_micros()).unwrap_or(u32::MAX);
        self.latencies.entry(answer.status).or_default().push(took);
        let accepted = answer.status == 200;
        if accepted {
            self.fresh_accepted += fresh;
            self.claimed += answer.claimed;
            self.counted += u64::from(window.from <= now && now <= window.to);
        }
        accepted
    }

    /// One line of JSON.
    pub(crate) fn summary(mut self, counted_over: Duration, took: Duration, cpu: Duration) -> String {
        let mut statuses = String::new();
        for (status, latencies) in &mut self.latencies {
            latencies.sort_unstable();
            let at = |quantile: f64| {
                #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, clippy::cast_precision_loss)]
                let rank = (latencies.len() as f64 * quantile).ceil() as usize;
                latencies[rank.clamp(1, latencies.len()) - 1]
            };
            let comma = if statuses.is_empty() { "" } else { "," };
            write!(
                statuses,
                "{comma}\"{status}\":{{\"count\":{},\"p50_us\":{},\"p90_us\":{},\"p99_us\":{},\"max_us\":{}}}",
                latencies.len(),
                at(0.5),
                at(0.9),
                at(0.99),
                at(1.0)
            )
            .expect("a String takes everything");
        }
        let Self { requests, broken, dead, unsent, unanswered, fresh_sent, fresh_accepted, claimed, counted, .. } =
            self;
        let (counted_over, took, cpu) = (counted_over.as_secs_f64(), took.as_secs_f64(), cpu.as_secs_f64());
        format!(
            "{{\"requests\":{requests},\"broken\":{broken},\"dead\":{dead},\"unsent\":{unsent},\
             \"unanswered\":{unanswered},\"fresh_sent\":{fresh_sent},\"fresh_accepted\":{fresh_accepted},\
             \"claimed\":{claimed},\"counted\":{counted},\"counted_over_s\":{counted_over},\"took_s\":{took},\
             \"cpu_s\":{cpu},\"statuses\":{{{statuses}}}}}"
        )
    }
}
