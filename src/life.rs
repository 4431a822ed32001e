//! The life of a pending id, from its claim to its release.
//!
//! Whoever has processed an event releases its id (`service`), or its consumers acknowledge the event and hookgate
//! releases the id (`answers`). An acknowledgement may get lost. Then `sweep` looks at the consumers, and republishes
//! the id if in doubt: one event too many, never one too few. `sweep` also republishes ids that a webhook marked.
//!
//! Declares the ports [`LifeStore`] and [`Consumers`], and knows neither Redis nor NATS nor HTTP.

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
    consumers::{AckReport, AtSequence, Consumers, ConsumersError, Progress, ReportBatch, ReportedUntil},
    journal::{Answer, JournalEntry},
    keeper::{Keeper, Reclaimed, ReleaseReport},
    service::{ReleaseError, Releases},
    sweep::Sweep,
};
use crate::{delivery::StoreError, event::Token, route::Route};

/// A request to release an id, because somebody has processed it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ReleaseRequest {
    /// The entity id.
    pub id: String,
    /// The claim to release; `None`: whichever is the present one.
    pub token: Option<Token>,
}

/// What became of a release.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Released {
    /// The id is free.
    Released,
    /// It was not pending, or not under that token.
    NotPending,
    /// A webhook had marked it: it is claimed again under this token, and that event has to be published.
    Republished(Token),
}

/// What a consumer did with an event: it acknowledged it, or gave it up.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ConsumerAnswer {
    /// The entity id.
    pub id: String,
    /// The token of the event's claim.
    pub token: Token,
    /// Name of the consumer.
    pub consumer: String,
    /// What it did.
    pub answer: Answer,
}

/// What a [`ConsumerAnswer`] led to. *All* are the consumers that the route names.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Answered {
    /// All have answered: the id is free.
    Released,
    /// All have answered, and a webhook had marked the id: it is claimed again under this token, and that event has to
    /// be published.
    Republished(Token),
    /// Other consumers have to answer.
    Waits,
    /// All have answered, one of them gave up, and `on_give_up` is `keep`: the id stays pending.
    Kept,
    /// The answer is not about the present claim.
    Stale,
}

/// A new claim of a known id, made by hookgate itself. It counts only if the id has not changed since it was read.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Reclaim {
    /// The entity id.
    pub id: String,
    /// Why, and what was read.
    pub why: ReclaimWhy,
}

/// Why an id is claimed again.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ReclaimWhy {
    /// It is pending with this journal entry, or none, and its event is settled.
    Redelivery {
        /// The journal entry as it was read; `None` if it had none.
        seen: Option<Vec<u8>>,
        /// Number of this redelivery of the id, from 1.
        number: u32,
    },
    /// A webhook marked it. It is free; or its event is settled, and the mark is old.
    Marked {
        /// A mark is old if it was set at this time or before, in milliseconds since 1970.
        until: u64,
    },
}

/// A journal entry of an id that is not pending, to be dropped.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Leftover {
    /// The entity id.
    pub id: String,
    /// The entry as it was read. It is dropped only if it is still the same.
    pub seen: Vec<u8>,
}

/// What the store knows of an id.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Known {
    /// The entity id.
    pub id: String,
    /// Whether it is pending.
    pub pending: bool,
    /// The token in the outbox, as it is written: the event is not acknowledged. `None` if the outbox has no entry.
    pub in_flight: Option<String>,
    /// Its journal entry, as it is written ([`JournalEntry::parse`] reads it); others may have written anything.
    pub journal: Option<Vec<u8>>,
    /// When a webhook marked it, in milliseconds since 1970.
    pub marked: Option<u64>,
}

impl Known {
    /// Returns its next redelivery: the first one, if its journal entry was not written by hookgate.
    #[must_use]
    pub fn redelivery(&self) -> Reclaim {
        let entry = self.journal.as_deref().and_then(JournalEntry::parse);
        let redelivered = entry.map_or(0, |entry| entry.redelivered);
        let why = ReclaimWhy::Redelivery { seen: self.journal.clone(), number: redelivered.saturating_add(1) };
        Reclaim { id: self.id.clone(), why }
    }
}

/// A page of ids, and where the next page begins.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct KnownPage {
    /// The same id may be on two pages.
    pub ids: Vec<Known>,
    /// Redis' cursor of the next page; 0: this was the last.
    pub next: u64,
}

/// Which ids a listing has.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Listing {
    /// Pending ids.
    Pending,
    /// Marked ids.
    Marks,
}

/// An id with a journal entry.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Journaled {
    /// The entity id.
    pub id: String,
    /// Its entry, as it is written ([`JournalEntry::parse`] reads it).
    pub entry: Vec<u8>,
    /// Whether it is pending.
    pub pending: bool,
}

/// A page of a journal, and where the next page begins.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct JournalPage {
    /// The same entry may be on two pages.
    pub entries: Vec<Journaled>,
    /// Redis' cursor of the next page; 0: this was the last.
    pub next: u64,
}

/// How many ids the store holds of a route.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct LifeCounts {
    /// Pending ids.
    pub pending: usize,
    /// Entries of the outbox.
    pub in_flight: usize,
    /// Entries of the journal.
    pub journaled: usize,
    /// Marked ids.
    pub marked: usize,
}

/// What the last scan of a journal found, and how far the present one is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct ScanResult {
    /// When the id that has been pending for longest was first claimed; `None` if none is pending.
    pub oldest: Option<SystemTime>,
    /// Pending ids with an entry.
    pub pending: usize,
    /// When that scan ended; `None` if none has.
    pub ended: Option<SystemTime>,
    /// Entries that the present scan has read; `None` between two scans.
    pub seen: Option<usize>,
}

/// What the pending store knows of ids beyond their claims.
///
/// Each function fails with a [`StoreError`] if the store can't be asked or does not answer. What was asked may have been done
/// then; repeating it is harmless.
pub trait LifeStore: Send + Sync {
    /// Releases ids, each at most once among all replicas. Returns an outcome for each, in their order.
    fn release<'a>(
        &'a self,
        route: &'a Arc<Route>,
        requests: &'a [ReleaseRequest],
    ) -> BoxFuture<'a, Result<Vec<Released>, StoreError>>;

    /// Records answers of consumers, and releases ids that all consumers have answered. Returns an outcome for each, in
    /// their order. Repeating that changes nothing.
    fn answer<'a>(
        &'a self,
        route: &'a Arc<Route>,
        answers: &'a [ConsumerAnswer],
    ) -> BoxFuture<'a, Result<Vec<Answered>, StoreError>>;

    /// Claims ids again. Returns the token of each new claim, in their order; `None` where the id has changed since it
    /// was read.
    fn reclaim<'a>(
        &'a self,
        route: &'a Arc<Route>,
        reclaims: &'a [Reclaim],
    ) -> BoxFuture<'a, Result<Vec<Option<Token>>, StoreError>>;

    /// Drops journal entries of ids that are neither pending nor in flight, where the entry has not changed. Returns
    /// how many it dropped.
    fn forget<'a>(
        &'a self,
        route: &'a Arc<Route>,
        leftovers: &'a [Leftover],
    ) -> BoxFuture<'a, Result<usize, StoreError>>;

    /// Returns a page of about `count` ids. `cursor` is 0 for the first page, then [`KnownPage::next`].
    fn known_page<'a>(
        &'a self,
        route: &'a Route,
        listing: Listing,
        cursor: u64,
        count: usize,
    ) -> BoxFuture<'a, Result<KnownPage, StoreError>>;

    /// Returns a page of about `count` journal entries. `cursor` is 0 for the first page, then [`JournalPage::next`].
    /// The cheapest way to all entries.
    fn journal_page<'a>(
        &'a self,
        route: &'a Route,
        cursor: u64,
        count: usize,
    ) -> BoxFuture<'a, Result<JournalPage, StoreError>>;

    /// Returns what is known of these ids, in their order.
    fn known<'a>(&'a self, route: &'a Route, ids: &'a [String]) -> BoxFuture<'a, Result<Vec<Known>, StoreError>>;

    /// Takes or renews a lease of the route, for work of this name. Returns whether `holder` has it now; no other
    /// holder gets it for `duration`.
    fn life_lease<'a>(
        &'a self,
        route: &'a Route,
        work: &'a str,
        holder: &'a str,
        duration: Duration,
    ) -> BoxFuture<'a, Result<bool, StoreError>>;

    /// Returns how many ids the store holds of a route.
    fn life_counts<'a>(&'a self, route: &'a Route) -> BoxFuture<'a, Result<LifeCounts, StoreError>>;

    /// Returns what the last scan of the journal found, by whatever replica, and how far the present one is. `None` if
    /// none was kept.
    fn scan_result<'a>(&'a self, route: &'a Route) -> BoxFuture<'a, Result<Option<ScanResult>, StoreError>>;

    /// Returns all routes that ever claimed, also those that are no longer configured.
    fn recorded(&self) -> BoxFuture<'_, Result<Vec<Arc<Route>>, StoreError>>;

    /// Keeps what a scan found, for [`Self::scan_result`] of all replicas.
    fn keep_scan_result<'a>(
        &'a self,
        route: &'a Route,
        result: &'a ScanResult,
    ) -> BoxFuture<'a, Result<(), StoreError>>;
}
