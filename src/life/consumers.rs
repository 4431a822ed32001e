//! What consumers tell their server about events, and what is known of consumers: the port, and its words.

use std::time::SystemTime;

use futures_util::future::BoxFuture;

use super::{Answer, JournalEntry};
use crate::{event::Token, route::Route};

/// What a consumer told the server about an event.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Told {
    /// The stream of the event.
    pub stream: String,
    /// The consumer.
    pub consumer: String,
    /// The sequence of the event in its stream.
    pub sequence: u64,
    /// What it said.
    pub answer: Answer,
    /// How often the event was delivered to it.
    pub deliveries: u64,
    /// When the server said so, if it did.
    pub time: Option<SystemTime>,
}

/// What was told, read together. It is told again until it was carried out.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Telling {
    /// In the order of the server.
    pub told: Vec<Told>,
    /// Names this reading.
    pub ticket: u64,
}

/// What lies at a sequence of a stream.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum AtSequence {
    /// An event of hookgate.
    Event {
        /// Name of its route.
        route: String,
        /// The id.
        id: String,
        /// Its token.
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
    /// The stream.
    pub stream: String,
    /// Whether it drops what was answered.
    pub drops_answered: bool,
    /// When the stream was made.
    pub created: SystemTime,
    /// Sequence of its first message.
    pub first: u64,
    /// Sequence of its last message.
    pub last: u64,
    /// Each configured consumer that exists, and the sequence up to which it has nothing left: all was answered, given up or is gone.
    pub floors: Vec<(String, u64)>,
}

impl Progress {
    /// Whether the event of an entry, at this sequence, is not in the stream any more.
    pub(super) fn is_gone(&self, entry: &JournalEntry, sequence: u64) -> bool {
        sequence < self.first || sequence > self.last || entry.token.time() < self.created
    }
}

/// How much was told up to some moment.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct ToldUntil(pub Vec<(String, u64)>);

/// NATS did not say.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct ConsumersError(pub String);

/// What is known of consumers.
pub trait Consumers: Send + Sync {
    /// Waits for what consumers tell next.
    fn told(&self) -> BoxFuture<'_, Telling>;

    /// What was told has been carried out, and need not be told again.
    fn carried_out(&self, ticket: u64) -> BoxFuture<'_, ()>;

    /// What was told can't be carried out now, and is to be told again soon.
    fn put_off(&self, ticket: u64) -> BoxFuture<'_, ()>;

    /// What lies at a sequence of a stream.
    fn at<'a>(&'a self, stream: &'a str, sequence: u64) -> BoxFuture<'a, Result<AtSequence, ConsumersError>>;

    /// How far the consumers of a route are.
    fn progress<'a>(&'a self, route: &'a Route) -> BoxFuture<'a, Result<Progress, ConsumersError>>;

    /// How much has been told by now.
    fn told_until(&self) -> BoxFuture<'_, Result<ToldUntil, ConsumersError>>;

    /// Whether all that was told until then has been carried out, by whatever replica.
    fn is_carried_out<'a>(&'a self, until: &'a ToldUntil) -> BoxFuture<'a, Result<bool, ConsumersError>>;
}
