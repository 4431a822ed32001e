//! The port to consumers: what they reported about events, as NATS passes it on, and how far they are.

use std::time::SystemTime;

use futures_util::future::BoxFuture;

use super::{Answer, JournalEntry};
use crate::{event::Token, route::Route};

/// What NATS reports of a consumer: it acknowledged an event, or gave it up.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AckReport {
    /// The stream of the event.
    pub stream: String,
    /// Name of the consumer.
    pub consumer: String,
    /// The sequence of the event in its stream.
    pub sequence: u64,
    /// What it did with the event.
    pub answer: Answer,
    /// How often the event was delivered to it.
    pub deliveries: u64,
    /// When the server reported it; `None` if the report has no readable time.
    pub time: Option<SystemTime>,
}

/// A batch of reports. NATS redelivers it until [`Consumers::carried_out`] is called.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct ReportBatch {
    /// In the order of the server.
    pub reports: Vec<AckReport>,
    /// Identifies the batch to [`Consumers::carried_out`] and [`Consumers::put_off`], in this process.
    pub number: u64,
}

/// What lies at a sequence of a stream.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum AtSequence {
    /// An event of hookgate.
    Event {
        /// Name of its route.
        route: String,
        /// The entity id.
        id: String,
        /// The token of the claim.
        token: Token,
        /// When the stream stored it.
        stored: SystemTime,
    },
    /// A message of somebody else.
    Foreign,
    /// Nothing any more.
    Gone,
}

/// How far the consumers of a route are.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Progress {
    /// Name of the stream that holds the route's events.
    pub stream: String,
    /// Whether the stream drops acknowledged messages (retention `workqueue` or `interest`).
    pub drops_answered: bool,
    /// When the stream was made.
    pub created: SystemTime,
    /// Sequence of its first message.
    pub first: u64,
    /// Sequence of its last message.
    pub last: u64,
    /// Each configured consumer that exists, with the sequence up to which nothing of its events is outstanding: they were
    /// acknowledged or given up, or are gone.
    pub floors: Vec<(String, u64)>,
}

impl Progress {
    /// Whether the event of an entry, at this sequence, is no longer in the stream.
    pub(super) fn is_gone(&self, entry: &JournalEntry, sequence: u64) -> bool {
        sequence < self.first || sequence > self.last || entry.token.time() < self.created
    }
}

/// All reports up to some moment: each stream that holds reports, with the sequence of its last one.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct ReportedUntil(pub Vec<(String, u64)>);

/// NATS could not be queried. As text: the operation and NATS' reason.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct ConsumersError(pub String);

/// Reports of consumers, and how far consumers are.
pub trait Consumers: Send + Sync {
    /// Waits for the next batch of reports.
    fn reports(&self) -> BoxFuture<'_, ReportBatch>;

    /// Says that a batch has been carried out: NATS need not redeliver it. If that gets lost, it is redelivered.
    fn carried_out(&self, number: u64) -> BoxFuture<'_, ()>;

    /// Says that a batch can't be carried out now: NATS redelivers it after some seconds.
    fn put_off(&self, number: u64) -> BoxFuture<'_, ()>;

    /// Returns what lies at a sequence of a stream.
    fn at<'a>(&'a self, stream: &'a str, sequence: u64) -> BoxFuture<'a, Result<AtSequence, ConsumersError>>;

    /// Returns how far the consumers of a route are.
    fn progress<'a>(&'a self, route: &'a Route) -> BoxFuture<'a, Result<Progress, ConsumersError>>;

    /// Returns how far reports go by now.
    fn reported_until(&self) -> BoxFuture<'_, Result<ReportedUntil, ConsumersError>>;

    /// Returns whether all reports until then have been carried out, by whatever replica.
    fn is_carried_out<'a>(&'a self, until: &'a ReportedUntil) -> BoxFuture<'a, Result<bool, ConsumersError>>;
}
