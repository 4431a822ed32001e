//! What came to each webhook lately. Read from the counters once a second, so that it costs a request nothing and is the
//! same for every reader.

use std::{
    collections::{HashMap, VecDeque},
    ops::Sub,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use tokio::{
    sync::watch,
    time::{Instant, MissedTickBehavior},
};

use super::store_gauges::StoreGauges;
use crate::{
    metrics::{Metrics, RouteMetrics},
    shutdown::Phase,
    supervision::supervise,
};

const MINUTE: Duration = Duration::from_secs(60);
const HOUR: Duration = Duration::from_secs(3600);
/// Answers 503 within this are said to happen now.
const NOW: Duration = Duration::from_secs(10);
/// What Redis holds is known only if it was read within this.
const FRESH: Duration = Duration::from_secs(10);

/// Answers after which EspoCRM gives a batch up at once.
const GIVEN_UP: [u16; 4] = [400, 413, 414, 431];

/// What was counted of a webhook until some moment.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
struct Counts {
    items: u64,
    refused: u64,
    given_up: u64,
    rejected: u64,
    signature_failures: u64,
}

impl Counts {
    fn of(route: &RouteMetrics) -> Self {
        let items = route.items();
        let answers = |those: fn(u16) -> bool| -> u64 {
            route.answers.by_code().filter(|(code, _)| those(*code)).map(|(_, count)| count).sum()
        };
        Self {
            items: items.new
                + items.in_flight
                + items.duplicate
                + items.coalesced
                + items.undeduplicated
                + items.rejected,
            refused: answers(|code| code >= 500),
            given_up: answers(|code| GIVEN_UP.contains(&code)),
            rejected: items.rejected,
            signature_failures: route.signature_failures(),
        }
    }
}

impl Sub for Counts {
    type Output = Self;

    fn sub(self, before: Self) -> Self {
        Self {
            items: self.items.saturating_sub(before.items),
            refused: self.refused.saturating_sub(before.refused),
            given_up: self.given_up.saturating_sub(before.given_up),
            rejected: self.rejected.saturating_sub(before.rejected),
            signature_failures: self.signature_failures.saturating_sub(before.signature_failures),
        }
    }
}

/// Samples of the last minute or hour, the oldest first.
#[derive(Debug)]
struct Samples(VecDeque<(Instant, Counts)>);

impl Samples {
    fn new(at: Instant) -> Self {
        Self(VecDeque::from([(at, Counts::default())]))
    }

    /// Adds one, and drops those that are not needed to look back so far.
    fn add(&mut self, at: Instant, counts: Counts, back: Duration) {
        self.0.push_back((at, counts));
        while self.0.get(1).is_some_and(|(sampled, _)| at - *sampled >= back) {
            self.0.pop_front();
        }
    }

    /// What was counted until so long ago, or until the first sample.
    fn before(&self, now: Instant, back: Duration) -> Counts {
        let old = self.0.iter().rev().find(|(at, _)| now - *at >= back).or_else(|| self.0.front());
        old.map_or_else(Counts::default, |(_, counts)| *counts)
    }
}

/// What is remembered of a webhook.
#[derive(Debug)]
struct Past {
    seconds: Samples,
    minutes: Samples,
    next_minute: Instant,
    pending: i64,
    /// Since when ids have been pending and none was seen to be released.
    unreleased_since: Option<Instant>,
}

impl Past {
    fn new(at: Instant) -> Self {
        let (seconds, minutes) = (Samples::new(at), Samples::new(at));
        Self { seconds, minutes, next_minute: at + MINUTE, pending: 0, unreleased_since: None }
    }

    fn sample(&mut self, now: Instant, counts: Counts, pending: Option<i64>) {
        self.seconds.add(now, counts, MINUTE);
        if now >= self.next_minute {
            self.minutes.add(now, counts, HOUR);
            self.next_minute = now + MINUTE;
        }
        self.unreleased_since = match pending {
            None | Some(0) => None,
            Some(pending) if pending < self.pending => Some(now),
            Some(_) => self.unreleased_since.or(Some(now)),
        };
        self.pending = pending.unwrap_or(0);
    }

    fn lately(&self, now: Instant, counts: Counts) -> Lately {
        let mut by_second = [0; 60];
        let steps = self.seconds.0.iter().zip(self.seconds.0.iter().skip(1));
        let mut add = |at: Instant, items: u64| {
            let age = usize::try_from((now - at).as_secs()).unwrap_or(usize::MAX);
            if let Some(place) = 59_usize.checked_sub(age) {
                by_second[place] += items;
            }
        };
        for ((_, before), (at, after)) in steps {
            add(*at, (*after - *before).items);
        }
        if let Some((_, last)) = self.seconds.0.back() {
            add(now, (counts - *last).items);
        }
        let hour = counts - self.minutes.before(now, HOUR);
        Lately {
            items_last_minute: by_second.iter().sum(),
            items_by_second: by_second.to_vec(),
            last_hour: LastHour {
                given_up_requests: hour.given_up,
                rejected_items: hour.rejected,
                signature_failures: hour.signature_failures,
            },
            refused_last_ten_seconds: (counts - self.seconds.before(now, NOW)).refused,
            unreleased_for_seconds: self.unreleased_since.map_or(0, |since| (now - since).as_secs()),
        }
    }
}

/// What came to a webhook lately; docs/status.md says what the members mean.
#[derive(Debug, serde::Serialize, schemars::JsonSchema)]
pub(super) struct Lately {
    items_last_minute: u64,
    items_by_second: Vec<u64>,
    last_hour: LastHour,
    refused_last_ten_seconds: u64,
    unreleased_for_seconds: u64,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Serialize, schemars::JsonSchema)]
struct LastHour {
    given_up_requests: u64,
    rejected_items: u64,
    signature_failures: u64,
}

/// What came to each webhook, by the names of the routes.
#[derive(Debug, Clone, Default)]
pub struct Activity(Arc<Mutex<HashMap<String, Past>>>);

impl Activity {
    /// Reads the counters of these routes once a second. What is known of routes that are not among them is forgotten.
    pub async fn run(self, metrics: Metrics, store_gauges: StoreGauges, phase: watch::Receiver<Phase>) {
        supervise!("the reading of the last minute", self.sample(&metrics, &store_gauges, phase.clone()));
    }

    async fn sample(&self, metrics: &Metrics, store_gauges: &StoreGauges, mut phase: watch::Receiver<Phase>) {
        self.lock().retain(|name, _| metrics.routes().any(|route| route.route.name() == name));
        let work = async {
            let mut seconds = tokio::time::interval(Duration::from_secs(1));
            seconds.set_missed_tick_behavior(MissedTickBehavior::Delay);
            loop {
                let now = seconds.tick().await;
                let fresh = store_gauges.reading().at.is_some_and(|at| at.elapsed() < FRESH);
                let mut all = self.lock();
                for route in metrics.routes() {
                    let past = all.entry(route.route.name().to_owned()).or_insert_with(|| Past::new(now));
                    past.sample(now, Counts::of(route), fresh.then(|| route.pending()));
                }
            }
        };
        tokio::select! {
            () = work => {}
            _closing = phase.wait_for(|phase| *phase == Phase::Closing) => {}
        }
    }

    /// What came to a webhook of the table.
    pub(super) fn of(&self, route: &RouteMetrics) -> Lately {
        let now = Instant::now();
        let mut all = self.lock();
        let past = all.entry(route.route.name().to_owned()).or_insert_with(|| Past::new(now));
        past.lately(now, Counts::of(route))
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<String, Past>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn items(items: u64) -> Counts {
        Counts { items, ..Counts::default() }
    }

    #[test]
    fn a_minute_has_sixty_seconds_whoever_looks() {
        let start = Instant::now();
        let at = |seconds: u64| start + Duration::from_secs(seconds);
        let mut past = Past::new(start);
        assert_eq!(past.lately(at(0), items(5)).items_last_minute, 5, "what came before the first sample");
        for second in 1..=200 {
            past.sample(at(second), items(second * 2), Some(0));
        }
        let lately = past.lately(at(200), items(400));
        assert_eq!((lately.items_last_minute, lately.items_by_second.len()), (120, 60));
        assert!(lately.items_by_second.iter().all(|count| *count == 2), "{lately:?}");
        assert_eq!(past.lately(at(200), items(407)).items_last_minute, 127, "what came since the last sample");
        assert!(past.seconds.0.len() <= 62);
        for second in 201..=300 {
            past.sample(at(second), items(400), Some(0));
        }
        assert_eq!(past.lately(at(300), items(400)).items_last_minute, 0);
    }

    #[test]
    fn an_hour_forgets() {
        let start = Instant::now();
        let mut past = Past::new(start);
        let counts = Counts { given_up: 3, rejected: 2, signature_failures: 1, refused: 4, items: 0 };
        let second = |number: u64| start + Duration::from_secs(number);
        past.sample(second(1), counts, None);
        let lately = past.lately(second(1), counts);
        let expected = LastHour { given_up_requests: 3, rejected_items: 2, signature_failures: 1 };
        assert_eq!((lately.last_hour, lately.refused_last_ten_seconds), (expected, 4));
        for number in 2..=3800 {
            past.sample(second(number), counts, None);
        }
        let lately = past.lately(second(3800), counts);
        let nothing = LastHour { given_up_requests: 0, rejected_items: 0, signature_failures: 0 };
        assert_eq!((lately.last_hour, lately.refused_last_ten_seconds), (nothing, 0));
        assert!(past.minutes.0.len() <= 62);
    }

    #[test]
    fn ids_are_unreleased_until_fewer_are_pending() {
        let start = Instant::now();
        let mut past = Past::new(start);
        let seen = |past: &mut Past, second: u64, pending: Option<i64>| {
            let now = start + Duration::from_secs(second);
            past.sample(now, Counts::default(), pending);
            past.lately(now, Counts::default()).unreleased_for_seconds
        };
        for (second, pending, expected) in [
            (1, Some(0), 0),
            (2, Some(3), 0),
            (10, Some(3), 8),
            (20, Some(9), 18),
            (21, Some(8), 0),
            (30, Some(8), 9),
            // Redis is down: unknown.
            (40, None, 0),
            (50, Some(8), 0),
            (60, Some(0), 0),
        ] {
            assert_eq!(seen(&mut past, second, pending), expected, "second {second}");
        }
    }
}
