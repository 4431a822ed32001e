//! How long the entries of an outbox have been there, which of them are due, and which NATS has already. Knows neither
//! store nor broker.

use std::{
    hash::{BuildHasher, RandomState},
    time::{Duration, SystemTime},
};

use hashbrown::HashMap;
use tokio::time::Instant;
use tracing::error;

use super::{Entry, LEASE, WALK_EVERY, YIELD};
use crate::{
    batch::EntityId,
    delivery::{Ack, Settlement},
    event::Token,
    route::Route,
};

/// Entries of a route of which something is known, in 7 MB; more are looked at once these are gone.
pub(super) const MAX_TRACKED: usize = (1 << 18) / 8 * 7;
/// Longest time between two attempts for an entry that NATS refuses.
const MAX_BACKOFF: Duration = Duration::from_secs(60);
/// An entry that is older than its age by this is due at once: so far apart are no two clocks that are set at all, and
/// where they are, an event goes out early, which a stream drops as a repeat.
const CLOCKS_APART: Duration = Duration::from_secs(60);
/// Longest wait before work that others may do at the same moment.
const JITTER_MS: u64 = 1000;

/// An entry that is to be published now.
pub(super) struct Due {
    pub(super) name: u64,
    pub(super) id: String,
    pub(super) token: Token,
}

/// What is to be done on a page.
#[derive(Default)]
pub(super) struct Found {
    /// To be published.
    pub(super) due: Vec<Due>,
    /// Published before, and only to be settled.
    pub(super) acknowledged: Vec<(u64, Settlement)>,
}

/// What comes of an event that is published twice.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Repeats {
    /// A stream drops it.
    Dropped,
    /// It is delivered twice (`nats.delivery = "core"`).
    Delivered,
}

/// What this replica knows of the entries of an outbox.
pub(super) struct Tracked {
    after: Duration,
    repeats: Repeats,
    limit: usize,
    began: Instant,
    walk: u32,
    /// By [`Tracked::name`].
    seen: HashMap<u64, Seen>,
    hasher: RandomState,
    /// When the lease was taken or renewed.
    lease: Option<Instant>,
    /// Until when others shall have their turn.
    yields: Option<Instant>,
}

impl Tracked {
    /// Nothing is known yet, and of no more than `limit` entries anything will be.
    pub(super) fn new(after: Duration, repeats: Repeats, limit: usize) -> Self {
        Self {
            after,
            repeats,
            limit,
            began: Instant::now(),
            walk: 0,
            seen: HashMap::new(),
            hasher: RandomState::new(),
            lease: None,
            yields: None,
        }
    }

    /// The lease was taken or renewed now.
    pub(super) fn leased(&mut self) {
        self.lease = Some(Instant::now());
    }

    /// Whether the lease needs no renewal yet.
    pub(super) fn has_lease(&self) -> bool {
        self.lease.is_some_and(|taken| taken.elapsed() < LEASE / 3)
    }

    /// The lease is given up; whether the outbox is left to others for a while.
    pub(super) fn give_up_lease(&mut self, yields: bool) {
        self.lease = None;
        if yields {
            self.yields = Some(Instant::now() + YIELD);
        }
    }

    /// Whether it is left to others now.
    pub(super) fn yields(&self) -> bool {
        self.yields.is_some_and(|until| Instant::now() < until)
    }

    /// Up to a second, another one in each process and on each walk.
    pub(super) fn some_time(&self) -> Duration {
        Duration::from_millis(self.hasher.hash_one(self.walk) % JITTER_MS)
    }

    /// Begins a walk through the outbox.
    pub(super) const fn begin_walk(&mut self) {
        self.walk += 1;
    }

    /// Stands for an entry: an id that was released and claimed anew is another one. Colliding entries
    /// alternate; the keyed hash keeps an attacker from forcing that.
    fn name(&self, id: &str, token: &str) -> u64 {
        self.hasher.hash_one((id, token))
    }

    /// What is to be done on a page; counts what can't be published.
    pub(super) fn sort(&mut self, route: &Route, entries: Vec<Entry>, poison: &mut usize) -> Found {
        let (now, wall_clock) = (self.ticks(Instant::now()), SystemTime::now());
        let mut found = Found::default();
        for Entry { id, token } in entries {
            let name = self.name(&id, &token);
            if !self.seen.contains_key(&name) && self.seen.len() >= self.limit {
                continue;
            }
            let parsed = token.parse::<Token>().ok().filter(|_| EntityId::parse(&id).is_some());
            let due = if parsed.is_some_and(|token| self.is_old(token, wall_clock)) {
                now
            } else {
                now.saturating_add(ticks(self.after))
            };
            let fresh = Seen { since: now, due, walk: 0, attempts: 0, state: Entered::Waiting };
            let seen = self.seen.entry(name).or_insert(fresh);
            let again = seen.walk == self.walk;
            seen.walk = self.walk;
            match (parsed, &seen.state) {
                (Some(_), _) if again => {}
                (Some(token), Entered::Acknowledged(ack)) => {
                    found.acknowledged.push((name, Settlement::acknowledged(id, token, *ack)));
                }
                (Some(token), _) if seen.due <= now => found.due.push(Due { name, id, token }),
                (Some(_), _) => {}
                (None, state) => {
                    *poison += 1;
                    if !matches!(state, Entered::Poison) {
                        seen.state = Entered::Poison;
                        error!(route = %route, outbox = route.outbox_key(), entity_id = ?id,
                            "an entry of the outbox was not written by hookgate and can't be published; if its id is a good one, the next webhook for it takes it over");
                    }
                }
            }
        }
        found
    }

    /// Whether an entry is old by the clock of the replica that claimed it.
    fn is_old(&self, token: Token, now: SystemTime) -> bool {
        let age = now.duration_since(token.time()).unwrap_or_default();
        self.repeats == Repeats::Dropped && age >= self.after + CLOCKS_APART
    }

    /// An attempt begins: the next one comes later.
    pub(super) fn back_off(&mut self, name: u64) {
        let now = self.ticks(Instant::now());
        if let Some(seen) = self.seen.get_mut(&name) {
            seen.back_off(now);
        }
    }

    /// The attempt was none.
    pub(super) fn was_not_tried(&mut self, name: u64) {
        let now = self.ticks(Instant::now());
        if let Some(seen) = self.seen.get_mut(&name) {
            seen.attempts = seen.attempts.saturating_sub(1);
            seen.due = now;
        }
    }

    /// NATS has an event: this process publishes it no more.
    pub(super) fn acknowledged(&mut self, name: u64, ack: Ack) {
        if let Some(seen) = self.seen.get_mut(&name) {
            seen.state = Entered::Acknowledged(ack);
        }
    }

    /// Entries have left the outbox. Redis may name one on two pages of a walk, so where a repeat would be delivered they
    /// are forgotten later.
    pub(super) fn settled(&mut self, names: &[u64]) {
        if self.repeats == Repeats::Dropped {
            for name in names {
                self.seen.remove(name);
            }
        }
    }

    /// How long the oldest entry has been seen. While another replica is at work, only what was found on this
    /// walk is known to be there still.
    pub(super) fn oldest(&self, found_now: bool) -> Option<Duration> {
        let there = self.seen.values().filter(|seen| !found_now || seen.walk == self.walk);
        let there =
            there.filter(|seen| self.repeats == Repeats::Dropped || !matches!(seen.state, Entered::Acknowledged(_)));
        let since = there.map(|seen| seen.since).min()?;
        Some(TICK * self.ticks(Instant::now()).saturating_sub(since))
    }

    /// Forgets what is in the outbox no more.
    pub(super) fn end_walk(&mut self) {
        let walk = self.walk;
        self.seen.retain(|_, seen| seen.walk == walk);
    }

    /// A moment as an entry remembers it.
    fn ticks(&self, at: Instant) -> u32 {
        ticks(at.duration_since(self.began))
    }
}

/// Unit of what is remembered: `u32` of it are 497 days, after which everything is due.
const TICK: Duration = Duration::from_millis(10);

fn ticks(time: Duration) -> u32 {
    u32::try_from(time.as_millis() / TICK.as_millis()).unwrap_or(u32::MAX)
}

/// What this replica knows of an entry, in 16 bytes: there may be as many as entries.
struct Seen {
    since: u32,
    due: u32,
    walk: u32,
    /// Attempts that brought no acknowledgement.
    attempts: u8,
    state: Entered,
}

enum Entered {
    /// To be published once it is due.
    Waiting,
    /// NATS has it; it could not be settled yet.
    Acknowledged(Ack),
    /// Not written by hookgate.
    Poison,
}

impl Seen {
    /// Waits longer with every attempt.
    fn back_off(&mut self, now: u32) {
        let pause = WALK_EVERY.saturating_mul(1_u32.checked_shl(self.attempts.into()).unwrap_or(u32::MAX));
        self.due = now.saturating_add(ticks(pause.min(MAX_BACKOFF)));
        self.attempts = self.attempts.saturating_add(1);
    }
}
