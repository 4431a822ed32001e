//! The life of a pending id, from its claim to the moment somebody has processed it.
//!
//! Whoever has processed an event releases its id (`release`), or its consumers acknowledge it and hookgate releases the id
//! (`answers`). Where the answers may have been lost, a look at the consumers decides, and in doubt the event is published once
//! more (`sweep`): one event too many, never one too few. What a webhook marked is published after that (`marks`).
//!
//! Declares the port [`LifeStore`], and knows neither Redis nor NATS nor HTTP.

mod answers;
mod consumers;
mod findings;
mod journal;
mod keeper;
mod service;
mod sweep;
mod verdict;

use std::{
    sync::Arc,
    time::{Duration, SystemTime},
};

use futures_util::future::BoxFuture;

pub use self::{
    answers::Answers,
    consumers::{AtSequence, Consumers, ConsumersError, Progress, Telling, Told, ToldUntil},
    journal::{Answer, JournalEntry},
    keeper::{Keeper, Reclaimed, ReleaseReport},
    service::{ReleaseError, Releases},
    sweep::Sweep,
};
use crate::{delivery::StoreError, event::Token, route::Route};

/// An id that somebody has processed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ReleaseRequest {
    /// The id.
    pub id: String,
    /// The claim that was processed; without it the present one.
    pub token: Option<Token>,
}

/// What became of a release.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Released {
    /// The id is free.
    Released,
    /// It was not pending, or not under that token.
    NotPending,
    /// A webhook had marked it: it is claimed once more under this token, and its event is due.
    Republished(Token),
}

/// What a consumer said of an event.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ConsumerAnswer {
    /// The id.
    pub id: String,
    /// The event.
    pub token: Token,
    /// The consumer.
    pub consumer: String,
    /// What it said.
    pub answer: Answer,
}

/// What an answer led to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Answered {
    /// All have answered: the id is free.
    Released,
    /// All have answered, and a webhook had marked the id: it is claimed once more, and its event is due.
    Republished(Token),
    /// Others have to answer.
    Waits,
    /// All have answered, and one of them gave up: the id is kept.
    Kept,
    /// It is not about the present claim.
    Stale,
}

/// A claim of hookgate's own, if nothing has changed since somebody looked.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Reclaim {
    /// The id.
    pub id: String,
    /// Why, and what was seen.
    pub why: ReclaimWhy,
}

/// Why an id is claimed again.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ReclaimWhy {
    /// It is pending with this journal entry, or none, and its event is settled. The redelivery has a number.
    Redelivery {
        /// The journal entry, as it was read.
        seen: Option<Vec<u8>>,
        /// The number of the redelivery.
        number: u32,
    },
    /// A webhook marked it, and it is free, or its event is settled and it was marked at this time or before (in milliseconds).
    Marked {
        /// Marks that are as old may be honoured.
        until: u64,
    },
}

/// A journal entry of an id that is not pending, to be dropped.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Leftover {
    /// The id.
    pub id: String,
    /// The entry as it was read.
    pub seen: Vec<u8>,
}

/// What the store knows of an id.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Known {
    /// The id.
    pub id: String,
    /// Whether it is pending.
    pub pending: bool,
    /// The token in the outbox: its event is not acknowledged.
    pub in_flight: Option<String>,
    /// Its journal entry, as it is written; others may have written anything.
    pub journal: Option<Vec<u8>>,
    /// When a webhook marked it, in milliseconds since 1970.
    pub marked: Option<u64>,
}

impl Known {
    /// Its next redelivery: the first one, if its journal entry was not written by hookgate.
    #[must_use]
    pub fn redelivery(&self) -> Reclaim {
        let entry = self.journal.as_deref().and_then(JournalEntry::parse);
        let redelivered = entry.map_or(0, |entry| entry.redelivered);
        let why = ReclaimWhy::Redelivery { seen: self.journal.clone(), number: redelivered.saturating_add(1) };
        Reclaim { id: self.id.clone(), why }
    }
}

/// Some ids, and where the next ones begin.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct KnownPage {
    /// They may come twice.
    pub ids: Vec<Known>,
    /// 0: these were the last.
    pub next: u64,
}

/// Where a listing of ids goes along.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Listing {
    /// The pending ids.
    Pending,
    /// The marks.
    Marks,
}

/// An id with a journal entry.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Journaled {
    /// The id.
    pub id: String,
    /// Its entry, as it is written.
    pub entry: Vec<u8>,
    /// Whether it is pending.
    pub pending: bool,
}

/// Some entries of a journal, and where the next ones begin.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct JournalPage {
    /// They may come twice.
    pub entries: Vec<Journaled>,
    /// 0: these were the last.
    pub next: u64,
}

/// How many ids there are of a route.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct LifeCounts {
    /// Pending.
    pub pending: usize,
    /// In the outbox.
    pub in_flight: usize,
    /// With a journal entry.
    pub journaled: usize,
    /// Marked.
    pub marked: usize,
}

/// What the last look through a journal found, and how far the present one is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct ScanResult {
    /// When the id that is pending for longest was first claimed.
    pub oldest: Option<SystemTime>,
    /// Pending ids with an entry.
    pub pending: usize,
    /// When that look ended; `None` if none has.
    pub ended: Option<SystemTime>,
    /// Entries that the present look has seen; `None` between two of them.
    pub seen: Option<usize>,
}

/// What the pending store knows of ids beyond their claims.
pub trait LifeStore: Send + Sync {
    /// Releases ids, each at most once among all replicas. Answers for each in their order.
    fn release<'a>(
        &'a self,
        route: &'a Arc<Route>,
        requests: &'a [ReleaseRequest],
    ) -> BoxFuture<'a, Result<Vec<Released>, StoreError>>;

    /// Takes answers of consumers into account. Repeating that changes nothing.
    fn answer<'a>(
        &'a self,
        route: &'a Arc<Route>,
        answers: &'a [ConsumerAnswer],
    ) -> BoxFuture<'a, Result<Vec<Answered>, StoreError>>;

    /// Claims ids again. The token of each new claim; nothing where something has changed.
    fn reclaim<'a>(
        &'a self,
        route: &'a Arc<Route>,
        reclaims: &'a [Reclaim],
    ) -> BoxFuture<'a, Result<Vec<Option<Token>>, StoreError>>;

    /// Drops journal entries of ids that are not pending; how many.
    fn forget<'a>(
        &'a self,
        route: &'a Arc<Route>,
        leftovers: &'a [Leftover],
    ) -> BoxFuture<'a, Result<usize, StoreError>>;

    /// Some ids; the first ones at 0.
    fn known_page<'a>(
        &'a self,
        route: &'a Route,
        listing: Listing,
        cursor: u64,
        count: usize,
    ) -> BoxFuture<'a, Result<KnownPage, StoreError>>;

    /// Some entries of the journal; the first ones at 0. The cheapest way to all of them.
    fn journal_page<'a>(
        &'a self,
        route: &'a Route,
        cursor: u64,
        count: usize,
    ) -> BoxFuture<'a, Result<JournalPage, StoreError>>;

    /// What is known of these ids, in their order.
    fn known<'a>(&'a self, route: &'a Route, ids: &'a [String]) -> BoxFuture<'a, Result<Vec<Known>, StoreError>>;

    /// Takes or renews a lease of the route for work of this name.
    fn life_lease<'a>(
        &'a self,
        route: &'a Route,
        work: &'a str,
        holder: &'a str,
        duration: Duration,
    ) -> BoxFuture<'a, Result<bool, StoreError>>;

    /// How much there is of a route.
    fn life_counts<'a>(&'a self, route: &'a Route) -> BoxFuture<'a, Result<LifeCounts, StoreError>>;

    /// What the last look through the journal found, by whatever replica, and how far the present one is; nothing if there was none.
    fn scan_result<'a>(&'a self, route: &'a Route) -> BoxFuture<'a, Result<Option<ScanResult>, StoreError>>;

    /// All routes that ever claimed, also those that are configured no more.
    fn recorded(&self) -> BoxFuture<'_, Result<Vec<Arc<Route>>, StoreError>>;

    /// Tells the other replicas what a look found.
    fn keep_scan_result<'a>(
        &'a self,
        route: &'a Route,
        result: &'a ScanResult,
    ) -> BoxFuture<'a, Result<(), StoreError>>;
}
