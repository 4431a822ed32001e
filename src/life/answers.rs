//! Carries out what consumers reported (acknowledged, or gave up), for routes that are released by acknowledgements.
//!
//! A report counts for the event whose token the message at its sequence carries, and for nothing else: in a stream that was
//! made again or restored, the sequence alone names another event. NATS redelivers a report until Redis has carried it out.

use std::{
    sync::Arc,
    time::{Duration, SystemTime},
};

use futures_util::{StreamExt, stream};
use hashbrown::HashMap;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;
use tracing::{debug, warn};

use super::{AckReport, Answer, AtSequence, ConsumerAnswer, Consumers, ConsumersError, JournalEntry, Keeper, Listing};
use crate::{
    dead_letters::{DeadLetter, DeadLetterLimits, GivenUp, GivenUpLetters},
    delivery::StoreError,
    event::Token,
    failpoint,
    route::{Release, Route, RouteTable},
    shutdown::Phase,
    supervision::supervise,
};

/// Messages that are read at the same time.
const AT_ONCE: usize = 64;
/// Most difference between the clocks of two NATS servers: one says when the event was stored, the other when it was
/// acknowledged.
const CLOCKS: Duration = Duration::from_secs(5);
/// Most difference between the clocks of a hookgate and of NATS.
const OUR_CLOCK: Duration = Duration::from_secs(300);
/// Lookups for an event whose claim is not settled yet.
const SETTLING: usize = 10;
/// Pause between two such lookups.
const SETTLING_PAUSE: Duration = Duration::from_millis(300);
/// Ids that one call of a lookup reads.
const PAGE: usize = 1000;
/// Pause between two attempts to carry reports out.
const PAUSE: Duration = Duration::from_secs(1);

/// Why reports were not carried out.
#[derive(Debug, thiserror::Error)]
enum AnswersError {
    #[error(transparent)]
    Store(#[from] StoreError),
    #[error("read the event that was answered: {0}")]
    Consumers(#[from] ConsumersError),
}

/// Reads reports and carries them out.
pub struct Answers {
    keeper: Keeper,
    consumers: Arc<dyn Consumers>,
    letters: Arc<dyn GivenUpLetters>,
    limits: DeadLetterLimits,
    routes: HashMap<String, Arc<Route>>,
}

impl Answers {
    /// For the routes of a table that are released by acknowledgements.
    #[must_use]
    pub fn new(
        keeper: Keeper,
        consumers: Arc<dyn Consumers>,
        letters: Arc<dyn GivenUpLetters>,
        limits: DeadLetterLimits,
        table: &RouteTable,
    ) -> Self {
        let on_ack = table.routes().iter().filter(|route| route.life().release == Release::Ack);
        let routes = on_ack.map(|route| (route.name().to_owned(), Arc::clone(route))).collect();
        Self { keeper, consumers, letters, limits, routes }
    }

    /// Runs until shutdown or `stop`. After `stop` it finishes what it has read: NATS would redeliver that only after a minute.
    pub async fn run(&self, mut phase: watch::Receiver<Phase>, stop: CancellationToken) {
        let leaving = async { phase.wait_for(|phase| *phase >= Phase::Refusing).await.is_ok() };
        tokio::select! {
            _ = leaving => {}
            () = async { supervise!("carrying out what consumers answered", self.read(&stop)) } => {}
        }
    }

    async fn read(&self, stop: &CancellationToken) {
        let mut said = false;
        while let Some(batch) = stop.run_until_cancelled(self.consumers.reports()).await {
            if let Err(error) = self.carry_out(&batch.reports).await {
                if !said {
                    warn!(%error, answers = batch.reports.len(), "what consumers answered can't be carried out now; it is tried again");
                }
                said = true;
                // The next batch may succeed: it may be about another route.
                self.consumers.put_off(batch.number).await;
                tokio::time::sleep(PAUSE).await;
                continue;
            }
            said = false;
            failpoint::hit("after_answers");
            self.consumers.carried_out(batch.number).await;
        }
    }

    async fn carry_out(&self, reports: &[AckReport]) -> Result<(), AnswersError> {
        let reads: Vec<_> = reports.iter().map(|report| self.consumers.at(&report.stream, report.sequence)).collect();
        let mut found = stream::iter(reads).buffered(AT_ONCE);
        let mut answers: HashMap<&str, Vec<ConsumerAnswer>> = HashMap::new();
        let (mut given_up, mut gone) = (Vec::new(), Vec::new());
        for report in reports {
            let Some(at) = found.next().await else { break };
            let at = at?;
            // No configured consumer is named so, and the journal separates names thereby.
            if report.consumer.contains([',', ':', ';']) {
                continue;
            }
            let AtSequence::Event { route, id, token, stored } = at else {
                if at == AtSequence::Gone {
                    gone.push(report);
                }
                debug!(stream = report.stream, sequence = report.sequence, "an answer about nothing that is there");
                continue;
            };
            if report.time.is_some_and(|time| time + CLOCKS < stored) {
                // The stream was made again or restored, and the number was given to another event since.
                debug!(stream = report.stream, sequence = report.sequence, "an answer that is older than the event");
                continue;
            }
            let Some((name, route)) = self.routes.get_key_value(route.as_str()) else { continue };
            if report.answer == Answer::GaveUp {
                given_up.push((Arc::clone(route), id.clone(), report));
            }
            answers.entry(name).or_default().push(ConsumerAnswer {
                id,
                token,
                consumer: report.consumer.clone(),
                answer: report.answer,
            });
        }
        for (name, id, token, report) in self.of_gone(&gone).await? {
            if report.answer == Answer::GaveUp {
                given_up.push((Arc::clone(&self.routes[name]), id.clone(), report));
            }
            let (consumer, answer) = (report.consumer.clone(), report.answer);
            answers.entry(name).or_default().push(ConsumerAnswer { id, token, consumer, answer });
        }
        self.keep(&given_up).await?;
        let mut outcome = Ok(());
        for (name, answers) in answers {
            // One route that can't be worked on does not hold up the others.
            let answered = self.keeper.answer(&self.routes[name], &answers).await;
            outcome = outcome.and(answered.map(drop).map_err(AnswersError::from));
        }
        outcome
    }

    /// Finds the events of reports whose message is gone. A stream that drops what was acknowledged no longer says
    /// whose event it was. The journal does, once that event is settled.
    async fn of_gone<'a>(
        &'a self,
        gone: &[&'a AckReport],
    ) -> Result<Vec<(&'a str, String, Token, &'a AckReport)>, AnswersError> {
        let mut found = Vec::new();
        if gone.is_empty() {
            return Ok(found);
        }
        for (name, route) in &self.routes {
            let Ok(progress) = self.consumers.progress(route).await else { continue };
            let mut sought: HashMap<u64, Vec<&AckReport>> = HashMap::new();
            // One that is older than the stream is about another event.
            let of_stream = |report: &&&AckReport| {
                progress.drops_answered
                    && report.stream == progress.stream
                    && report.time.is_some_and(|time| time >= progress.created)
            };
            for report in gone.iter().filter(of_stream) {
                sought.entry(report.sequence).or_default().push(report);
            }
            for _ in 0..SETTLING {
                if sought.is_empty() || !self.look_for(name, route, &mut sought, &mut found).await? {
                    break;
                }
                tokio::time::sleep(SETTLING_PAUSE).await;
            }
        }
        Ok(found)
    }

    /// Looks for sequences in a journal. Returns whether some claims are not settled yet.
    async fn look_for<'a>(
        &self,
        name: &'a str,
        route: &Route,
        sought: &mut HashMap<u64, Vec<&'a AckReport>>,
        found: &mut Vec<(&'a str, String, Token, &'a AckReport)>,
    ) -> Result<bool, StoreError> {
        let (mut cursor, mut in_flight) = (0, false);
        loop {
            let page = self.keeper.store().known_page(route, Listing::Pending, cursor, PAGE).await?;
            for known in page.ids {
                in_flight |= known.in_flight.is_some();
                let Some(entry) = known.journal.as_deref().and_then(JournalEntry::parse) else { continue };
                let reports = entry.sequence.filter(|_| known.in_flight.is_none()).and_then(|it| sought.remove(&it));
                let reports = reports.into_iter().flatten();
                // Reported after the event was stored.
                let later =
                    reports.filter(|report| report.time.is_some_and(|time| time + OUR_CLOCK >= entry.token.time()));
                found.extend(later.map(|report| (name, known.id.clone(), entry.token, report)));
            }
            cursor = page.next;
            if cursor == 0 {
                return Ok(in_flight);
            }
        }
    }

    /// Keeps a dead letter of each event that was given up, before anything else: if the rest fails, somebody sees it.
    async fn keep(&self, given_up: &[(Arc<Route>, String, &AckReport)]) -> Result<(), StoreError> {
        if given_up.is_empty() {
            return Ok(());
        }
        let letters: Vec<_> = given_up.iter().map(|(route, id, report)| letter(route, id, report)).collect();
        let news = self.letters.keep_given_up(&letters, self.limits).await?;
        for ((route, id, report), _) in given_up.iter().zip(news).filter(|(_, new)| *new) {
            self.keeper.gave_up(route, &report.consumer);
            warn!(%route, entity_id = %id, consumer = report.consumer, deliveries = report.deliveries, stream = report.stream, sequence = report.sequence, on_give_up = route.life().on_give_up.name(),
                "a consumer gave an event up; `hookgate dead-letters list` shows it as gave_up");
        }
        Ok(())
    }
}

fn letter(route: &Route, id: &str, report: &AckReport) -> GivenUp {
    let AckReport { stream, consumer, sequence, deliveries, .. } = report;
    let raw = serde_json::json!({
        "entity_id": id, "consumer": consumer, "deliveries": deliveries, "stream": stream, "sequence": sequence,
    });
    GivenUp {
        event: format!("{stream}/{sequence}/{consumer}"),
        letter: DeadLetter {
            route: route.name().to_owned(),
            reason: "gave_up".to_owned(),
            time: humantime::format_rfc3339_millis(SystemTime::now()).to_string(),
            raw: raw.to_string().into(),
        },
    }
}
