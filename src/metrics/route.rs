//! What is counted of one route.

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use prometheus_client::metrics::{counter::Counter, gauge::Gauge, histogram::Histogram};

use super::{
    recent_events::{Outcome, RecentEvents},
    registry::{Age, Families},
    since::Since,
};
use crate::{
    batch::{BatchError, Reason, Rejected},
    route::Route,
    signature::SignatureFailure,
};

/// Every status code that hookgate answers with, hyper's own included.
const CODES: [u16; 10] = [200, 400, 401, 404, 405, 408, 413, 414, 431, 503];
/// Any other: there is none, but a label's values are bounded whatever happens.
const UNFORESEEN: &str = "unforeseen";

/// What became of an item.
const RESULTS: [&str; 6] = ["new", "in_flight", "duplicate", "coalesced", "undeduplicated", "rejected"];
const NEW: usize = 0;
const IN_FLIGHT: usize = 1;
const DUPLICATE: usize = 2;
const COALESCED: usize = 3;
const UNDEDUPLICATED: usize = 4;
const REJECTED: usize = 5;

/// On which way an event reached NATS.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Via {
    /// With the request that claimed its id, or a repeat of it.
    Direct,
    /// By the relay, or republished by hookgate itself (released marks, redeliveries).
    Relay,
    /// Without a claim, while Redis was down.
    Undeduplicated,
}

impl Via {
    const ALL: [Self; 3] = [Self::Direct, Self::Relay, Self::Undeduplicated];

    const fn code(self) -> &'static str {
        match self {
            Self::Direct => "direct",
            Self::Relay => "relay",
            Self::Undeduplicated => "undeduplicated",
        }
    }

    const fn outcome(self) -> Outcome {
        match self {
            Self::Direct => Outcome::Published,
            Self::Relay => Outcome::Relayed,
            Self::Undeduplicated => Outcome::Undeduplicated,
        }
    }
}

/// Answers by their code, and how long they took.
#[derive(Debug)]
pub struct Answers {
    by_code: [Counter; CODES.len() + 1],
    seconds: Histogram,
}

impl Answers {
    pub(super) fn new(families: &Families, route: &str) -> Self {
        let counter =
            |code: String| families.requests.get_or_create_owned(&[("route", route.to_owned()), ("code", code)]);
        let by_code = std::array::from_fn(|index| {
            counter(CODES.get(index).map_or_else(|| UNFORESEEN.to_owned(), ToString::to_string))
        });
        Self { by_code, seconds: families.request_seconds.get_or_create_owned(&[("route", route.to_owned())]) }
    }

    /// A request was answered.
    pub fn answered(&self, code: u16, took: Duration) {
        let index = CODES.iter().position(|known| *known == code).unwrap_or(CODES.len());
        self.by_code[index].inc();
        self.seconds.observe(took.as_secs_f64());
    }

    /// A request was answered without a look at anything but its head.
    pub fn answered_at_once(&self, code: u16) {
        self.answered(code, Duration::ZERO);
    }

    /// Codes that were answered, with their numbers.
    pub fn by_code(&self) -> impl Iterator<Item = (u16, u64)> + '_ {
        CODES.iter().zip(&self.by_code).map(|(code, count)| (*code, count.get())).filter(|(_, count)| *count > 0)
    }
}

/// What became of the items of a route so far.
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Serialize, schemars::JsonSchema)]
pub struct Items {
    /// Claimed.
    pub new: u64,
    /// Found claimed and not acknowledged; published again.
    pub in_flight: u64,
    /// Found pending.
    pub duplicate: u64,
    /// Found pending, and to be published again at their release.
    pub coalesced: u64,
    /// Not claimed, because Redis was down.
    pub undeduplicated: u64,
    /// Without a usable id.
    pub rejected: u64,
}

/// What a claim found, in numbers of ids.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct ClaimCounts {
    /// Claimed now.
    pub new: usize,
    /// Claimed before, and not acknowledged yet.
    pub in_flight: usize,
    /// Claimed before, and acknowledged.
    pub duplicate: usize,
    /// Claimed before, and marked.
    pub coalesced: usize,
}

/// Counts events of a route that NATS has acknowledged, on one way.
#[derive(Debug)]
pub struct PublishedCounter {
    route: Arc<str>,
    counter: Counter,
    /// Without a claim an item counts once its event is acknowledged: until then the request may be answered 503.
    items: Option<Counter>,
    outcome: Outcome,
    recent: Arc<RecentEvents>,
}

impl PublishedCounter {
    fn new(families: &Families, route: &Arc<str>, via: Via, recent: &Arc<RecentEvents>) -> Self {
        let labels = [("route", route.to_string()), ("via", via.code().to_owned())];
        Self {
            route: Arc::clone(route),
            counter: families.published.get_or_create_owned(&labels),
            items: (via == Via::Undeduplicated).then(|| {
                let labels = [("route", route.to_string()), ("result", RESULTS[UNDEDUPLICATED].to_owned())];
                families.items.get_or_create_owned(&labels)
            }),
            outcome: via.outcome(),
            recent: Arc::clone(recent),
        }
    }

    /// NATS has acknowledged events.
    pub fn published<'a>(&self, ids: impl ExactSizeIterator<Item = &'a str>) {
        self.counter.inc_by(ids.len() as u64);
        if let Some(items) = &self.items {
            items.inc_by(ids.len() as u64);
        }
        self.recent.add(&self.route, self.outcome, ids.len(), ids);
    }
}

/// Who said that an id has been processed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ReleasedBy {
    /// Its consumers, by their acknowledgements.
    Ack,
    /// A request to the NATS service.
    Service,
    /// A request to the admin address.
    Admin,
}

impl ReleasedBy {
    const ALL: [Self; 3] = [Self::Ack, Self::Service, Self::Admin];

    /// As it is said in metrics and log.
    #[must_use]
    pub const fn code(self) -> &'static str {
        match self {
            Self::Ack => "ack",
            Self::Service => "service",
            Self::Admin => "admin",
        }
    }
}

/// Why hookgate republished an id.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum RepairedWhy {
    /// A webhook had marked it.
    Marked,
    /// A consumer has nothing of its event left, and never answered.
    Unanswered,
    /// It was pending for longer than `redeliver_after`.
    Old,
    /// An operator said so, by a command, which keeps no counts.
    Operator,
}

impl RepairedWhy {
    const ALL: [Self; 3] = [Self::Marked, Self::Unanswered, Self::Old];

    /// As it is said in metrics and log.
    #[must_use]
    pub const fn code(self) -> &'static str {
        match self {
            Self::Marked => "marked",
            Self::Unanswered => "unanswered",
            Self::Old => "old",
            Self::Operator => "operator",
        }
    }
}

/// How far a consumer is that a route names.
#[derive(Debug)]
pub struct ConsumerGauges {
    /// Its name.
    pub name: String,
    /// NATS has said so, and there is one.
    seen: AtomicBool,
    pending: Gauge,
    ack_pending: Gauge,
}

impl ConsumerGauges {
    fn set(&self, numbers: Option<(u64, u64)>) {
        let (pending, ack_pending) = numbers.unwrap_or_default();
        self.seen.store(numbers.is_some(), Ordering::Relaxed);
        self.pending.set(i64::try_from(pending).unwrap_or(i64::MAX));
        self.ack_pending.set(i64::try_from(ack_pending).unwrap_or(i64::MAX));
    }

    /// What waits for it, and what it has not acknowledged, as NATS said last; `None` as long as no such consumer was seen.
    #[must_use]
    pub fn numbers(&self) -> Option<(i64, i64)> {
        self.seen.load(Ordering::Relaxed).then(|| (self.pending.get(), self.ack_pending.get()))
    }
}

/// The counters of a route.
#[derive(Debug)]
pub struct RouteMetrics {
    /// The route.
    pub route: Arc<Route>,
    /// Its answers.
    pub answers: Answers,
    pub(super) name: Arc<str>,
    pub(super) oldest: Age,
    last_webhook: Since,
    items: [Counter; RESULTS.len()],
    published: [PublishedCounter; Via::ALL.len()],
    dead_letters: Vec<(&'static str, Counter)>,
    signature_failures: [Counter; SignatureFailure::ALL.len()],
    pending: Gauge,
    pending_age: Age,
    released: [Counter; ReleasedBy::ALL.len()],
    repaired: [Counter; RepairedWhy::ALL.len()],
    given_up: Vec<(String, Counter)>,
    consumers: Vec<ConsumerGauges>,
    outbox: Gauge,
    quarantine: [Counter; QuarantineResult::ALL.len()],
    recent: Arc<RecentEvents>,
}

/// Whose series they are.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(super) enum SeriesOf {
    /// Of the route with this name.
    Route(String),
    /// Of a route's consumer, by their names.
    Consumer(String, String),
}

impl Families {
    /// Ends series. Who still counts for them, counts for nobody.
    pub(super) fn remove<'a>(&self, series: impl Iterator<Item = &'a SeriesOf>) {
        for series in series {
            match series {
                SeriesOf::Route(name) => self.remove_route(name),
                SeriesOf::Consumer(name, consumer) => {
                    let labels = [("route", name.clone()), ("consumer", consumer.clone())];
                    self.given_up.remove(&labels);
                    self.consumer_pending.remove(&labels);
                    self.consumer_ack_pending.remove(&labels);
                }
            }
        }
    }

    /// All that [`RouteMetrics::new`] makes, but for the consumers.
    fn remove_route(&self, name: &str) {
        let one = [("route", name.to_owned())];
        let with = |label, value: &str| [("route", name.to_owned()), (label, value.to_owned())];
        for code in CODES.iter().map(ToString::to_string).chain([UNFORESEEN.to_owned()]) {
            self.requests.remove(&with("code", &code));
        }
        self.request_seconds.remove(&one);
        self.last_webhook.remove(&one);
        self.outbox_age.remove(&one);
        for result in RESULTS {
            self.items.remove(&with("result", result));
        }
        for via in Via::ALL {
            self.published.remove(&with("via", via.code()));
        }
        for reason in dead_letter_reasons() {
            self.dead_letters.remove(&with("reason", reason));
        }
        for failure in SignatureFailure::ALL {
            self.signature_failures.remove(&with("reason", failure.code()));
        }
        for result in QuarantineResult::ALL {
            self.quarantine.remove(&with("result", result.code()));
        }
        self.pending.remove(&one);
        self.pending_age.remove(&one);
        for by in ReleasedBy::ALL {
            self.released.remove(&with("by", by.code()));
        }
        for why in RepairedWhy::ALL {
            self.repaired.remove(&with("why", why.code()));
        }
        self.outbox.remove(&one);
    }
}

/// Why there are dead letters.
fn dead_letter_reasons() -> impl Iterator<Item = &'static str> {
    Reason::ALL.into_iter().map(Reason::code).chain(BatchError::CODES)
}

/// What became of a body whose signature was wrong.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum QuarantineResult {
    /// It was put into quarantine.
    Kept,
    /// It was there already.
    Known,
    /// Its share was full.
    Full,
    /// It could not be kept.
    Failed,
    /// It proved good, and its events were acknowledged.
    Released,
}

impl QuarantineResult {
    /// All of them.
    pub const ALL: [Self; 5] = [Self::Kept, Self::Known, Self::Full, Self::Failed, Self::Released];

    const fn code(self) -> &'static str {
        match self {
            Self::Kept => "kept",
            Self::Known => "known",
            Self::Full => "full",
            Self::Failed => "failed",
            Self::Released => "released",
        }
    }
}

impl RouteMetrics {
    pub(super) fn new(families: &Families, route: Arc<Route>, recent: Arc<RecentEvents>) -> Self {
        let name = route.name();
        let route_name = Arc::from(name);
        let one = || [("route", name.to_owned())];
        let with = |label, value: &str| [("route", name.to_owned()), (label, value.to_owned())];
        Self {
            answers: Answers::new(families, name),
            oldest: families.outbox_age.get_or_create_owned(&one()),
            last_webhook: families.last_webhook.get_or_create_owned(&one()),
            items: RESULTS.map(|result| families.items.get_or_create_owned(&with("result", result))),
            published: Via::ALL.map(|via| PublishedCounter::new(families, &route_name, via, &recent)),
            dead_letters: dead_letter_reasons()
                .map(|reason| (reason, families.dead_letters.get_or_create_owned(&with("reason", reason))))
                .collect(),
            signature_failures: SignatureFailure::ALL
                .map(|failure| families.signature_failures.get_or_create_owned(&with("reason", failure.code()))),
            quarantine: QuarantineResult::ALL
                .map(|result| families.quarantine.get_or_create_owned(&with("result", result.code()))),
            pending: families.pending.get_or_create_owned(&one()),
            pending_age: families.pending_age.get_or_create_owned(&one()),
            released: ReleasedBy::ALL.map(|by| families.released.get_or_create_owned(&with("by", by.code()))),
            repaired: RepairedWhy::ALL.map(|why| families.repaired.get_or_create_owned(&with("why", why.code()))),
            given_up: route
                .life()
                .consumers
                .iter()
                .map(|consumer| (consumer.clone(), families.given_up.get_or_create_owned(&with("consumer", consumer))))
                .collect(),
            consumers: route
                .life()
                .consumers
                .iter()
                .map(|consumer| ConsumerGauges {
                    name: consumer.clone(),
                    seen: AtomicBool::new(false),
                    pending: families.consumer_pending.get_or_create_owned(&with("consumer", consumer)),
                    ack_pending: families.consumer_ack_pending.get_or_create_owned(&with("consumer", consumer)),
                })
                .collect(),
            outbox: families.outbox.get_or_create_owned(&one()),
            name: route_name,
            route,
            recent,
        }
    }

    /// What names its series, and those of its consumers.
    pub(super) fn series(&self) -> impl Iterator<Item = SeriesOf> + '_ {
        let of_consumer = |gauges: &ConsumerGauges| SeriesOf::Consumer(self.name.to_string(), gauges.name.clone());
        std::iter::once(SeriesOf::Route(self.name.to_string())).chain(self.consumers.iter().map(of_consumer))
    }

    /// A batch came from a sender that may send it.
    pub fn came(&self) {
        self.last_webhook.now();
    }

    /// A request was not let in.
    pub fn unauthenticated(&self, failure: SignatureFailure) {
        self.signature_failures[failure as usize].inc();
    }

    /// Ids were asked for in the store, and this is what it said; `duplicates` are those that were done.
    pub fn claimed<'a>(&self, counts: ClaimCounts, duplicates: impl Iterator<Item = &'a str>) {
        let mut by_result = [0; RESULTS.len()];
        by_result[NEW] = counts.new;
        by_result[IN_FLIGHT] = counts.in_flight;
        by_result[DUPLICATE] = counts.duplicate;
        by_result[COALESCED] = counts.coalesced;
        self.add(by_result);
        if counts.duplicate > 0 {
            self.recent.add(&self.name, Outcome::Duplicate, counts.duplicate, duplicates);
        }
    }

    /// Items of a request had no usable id.
    pub fn rejected(&self, count: usize) {
        let mut counts = [0; RESULTS.len()];
        counts[REJECTED] = count;
        self.add(counts);
    }

    fn add(&self, counts: [usize; RESULTS.len()]) {
        for (counter, count) in self.items.iter().zip(counts) {
            if count > 0 {
                counter.inc_by(count as u64);
            }
        }
    }

    /// Counts events that NATS has acknowledged.
    #[must_use]
    pub fn published_via(&self, via: Via) -> &PublishedCounter {
        &self.published[via as usize]
    }

    /// NATS has not acknowledged events before the deadline of their request.
    pub fn unconfirmed<'a>(&self, ids: impl ExactSizeIterator<Item = &'a str>) {
        self.recent.add(&self.name, Outcome::Unconfirmed, ids.len(), ids);
    }

    /// A body can never be processed; `reason` is also the answer's `error`.
    pub fn dead_body(&self, reason: &'static str) {
        self.dead_letter(reason, 1);
    }

    /// Items of a batch that is done can never be processed.
    pub fn dead_items(&self, rejected: &Rejected) {
        for (reason, count) in rejected.by_reason() {
            self.dead_letter(reason.code(), count as u64);
        }
    }

    /// A body whose signature was wrong met the quarantine.
    pub fn quarantined(&self, result: QuarantineResult) {
        self.quarantine[result as usize].inc();
    }

    fn dead_letter(&self, reason: &'static str, count: u64) {
        let known = self.dead_letters.iter().find(|(known, _)| *known == reason);
        debug_assert!(known.is_some(), "{reason} is no reason of a dead letter");
        if let Some((_, counter)) = known {
            counter.inc_by(count);
        }
    }

    /// What became of its items so far.
    #[must_use]
    pub fn items(&self) -> Items {
        let [new, in_flight, duplicate, coalesced, undeduplicated, rejected] =
            std::array::from_fn(|at| self.items[at].get());
        Items { new, in_flight, duplicate, coalesced, undeduplicated, rejected }
    }

    /// Events acknowledged so far, by their way.
    pub fn published_by_way(&self) -> impl Iterator<Item = (&'static str, u64)> + '_ {
        Via::ALL.iter().zip(&self.published).map(|(via, published)| (via.code(), published.counter.get()))
    }

    /// Items and bodies that could not be processed so far.
    #[must_use]
    pub fn dead_letters(&self) -> u64 {
        self.dead_letters.iter().map(|(_, count)| count.get()).sum()
    }

    /// Requests that were not let in so far.
    #[must_use]
    pub fn signature_failures(&self) -> u64 {
        self.signature_failures.iter().map(Counter::get).sum()
    }

    /// Ids were released.
    pub fn released(&self, by: ReleasedBy, count: usize) {
        self.released[by as usize].inc_by(count as u64);
    }

    /// Counts ids that hookgate republished.
    pub fn repaired(&self, why: RepairedWhy, count: usize) {
        if let Some(counter) = self.repaired.get(why as usize) {
            counter.inc_by(count as u64);
        }
    }

    /// A consumer gave an event up. Of one that is not configured there is no series.
    pub fn given_up(&self, consumer: &str) {
        if let Some((_, counter)) = self.given_up.iter().find(|(name, _)| name == consumer) {
            counter.inc();
        }
    }

    /// Events that consumers gave up so far.
    #[must_use]
    pub fn all_given_up(&self) -> u64 {
        self.given_up.iter().map(|(_, counter)| counter.get()).sum()
    }

    /// How far a consumer is: what waits for it, and what it has not acknowledged; `None` if there is no such consumer.
    pub fn set_consumer(&self, consumer: &str, numbers: Option<(u64, u64)>) {
        if let Some(gauges) = self.consumers.iter().find(|gauges| gauges.name == consumer) {
            gauges.set(numbers);
        }
    }

    /// The consumers, as NATS said last.
    #[must_use]
    pub fn consumers(&self) -> &[ConsumerGauges] {
        &self.consumers
    }

    /// The id that is pending for longest was first claimed so long ago.
    pub fn set_pending_age(&self, age: std::time::Duration) {
        self.pending_age.set(age.as_secs_f64());
    }

    /// Age of the id that is pending for longest, in seconds, as the last scan of the journal found it.
    #[must_use]
    pub fn pending_age(&self) -> f64 {
        self.pending_age.get()
    }

    /// Pending ids, as the store said last.
    #[must_use]
    pub fn pending(&self) -> i64 {
        self.pending.get()
    }

    /// Entries of the outbox, as the store said last, and the age of the oldest in seconds.
    #[must_use]
    pub fn outbox(&self) -> (i64, f64) {
        (self.outbox.get(), self.oldest.get())
    }
}

/// The outbox of a route that has left the configuration.
#[derive(Debug)]
pub struct Adopted {
    /// The route as it was recorded.
    pub route: Arc<Route>,
    pub(super) name: Arc<str>,
    pub(super) oldest: Age,
    outbox: Gauge,
}

impl Adopted {
    pub(super) fn new(families: &Families, route: Arc<Route>) -> Self {
        let labels = Self::labels(&route);
        Self {
            name: Arc::from(route.name()),
            oldest: families.orphaned_age.get_or_create_owned(&labels),
            outbox: families.orphaned.get_or_create_owned(&labels),
            route,
        }
    }

    fn labels(route: &Route) -> [(&'static str, String); 2] {
        [("route", route.name().to_owned()), ("pending_key", route.pending_key().to_owned())]
    }

    /// Ends its series.
    pub(super) fn end(&self, families: &Families) {
        families.orphaned_age.remove(&Self::labels(&self.route));
        families.orphaned.remove(&Self::labels(&self.route));
    }

    /// Its entries, as the store said last, and the age of the oldest in seconds.
    #[must_use]
    pub fn outbox(&self) -> (i64, f64) {
        (self.outbox.get(), self.oldest.get())
    }
}

/// The gauges of what the store holds of a route.
#[derive(Debug)]
pub enum RouteGauges {
    /// Of a route of the table.
    Known(Arc<RouteMetrics>),
    /// Of a route that has left the configuration.
    Adopted(Arc<Adopted>),
}

impl RouteGauges {
    /// The route.
    #[must_use]
    pub fn route(&self) -> &Arc<Route> {
        match self {
            Self::Known(known) => &known.route,
            Self::Adopted(adopted) => &adopted.route,
        }
    }

    /// Sets the numbers of pending ids and of entries of the outbox.
    pub fn set(&self, pending: usize, outbox: usize) {
        let number = |count: usize| i64::try_from(count).unwrap_or(i64::MAX);
        match self {
            Self::Known(known) => {
                known.pending.set(number(pending));
                known.outbox.set(number(outbox));
            }
            Self::Adopted(adopted) => {
                adopted.outbox.set(number(outbox));
            }
        }
    }
}

/// What the relay counts of an outbox.
#[derive(Debug)]
pub struct RelayMetrics {
    /// Counts events that NATS has acknowledged.
    pub published: PublishedCounter,
    oldest: Age,
}

impl RelayMetrics {
    pub(super) fn new(families: &Families, name: &Arc<str>, oldest: Age, recent: &Arc<RecentEvents>) -> Self {
        Self { published: PublishedCounter::new(families, name, Via::Relay, recent), oldest }
    }

    /// How long the oldest entry has been seen; nothing if there is none.
    pub fn oldest(&self, age: Option<Duration>) {
        self.oldest.set(age.map_or(0.0, |age| age.as_secs_f64()));
    }
}
