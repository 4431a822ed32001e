//! How long the entries of an outbox have been there, and which of them are due. Knows neither store nor broker.

use std::{
    hash::{BuildHasher, RandomState},
    time::Duration,
};

use hashbrown::HashMap;
use tokio::time::Instant;
use tracing::error;

use super::{Entry, WALK_EVERY, Walked};
use crate::{batch::EntityId, event::Token, route::Route};

/// Entries of a route whose age is known; more are looked at once these are gone.
const MAX_TRACKED: usize = 100_000;
/// Longest time between two attempts for an entry that NATS refuses.
const MAX_BACKOFF: Duration = Duration::from_secs(60);

/// An entry that is to be published now.
pub(super) struct Due {
    pub(super) name: u64,
    pub(super) id: String,
    pub(super) token: Token,
}

/// What this replica knows of the entries of an outbox.
pub(super) struct Tracked {
    after: Duration,
    walk: u32,
    /// By [`Tracked::name`].
    seen: HashMap<u64, Seen>,
    hasher: RandomState,
    /// Until when others shall have their turn.
    yields: Option<Instant>,
}

impl Tracked {
    pub(super) fn new(after: Duration) -> Self {
        Self { after, walk: 0, seen: HashMap::new(), hasher: RandomState::new(), yields: None }
    }

    /// Leaves the outbox to others for a while.
    pub(super) fn yield_for(&mut self, time: Duration) {
        self.yields = Some(Instant::now() + time);
    }

    /// Whether it is left to others now.
    pub(super) fn yields(&self) -> bool {
        self.yields.is_some_and(|until| Instant::now() < until)
    }

    /// Begins a walk through the outbox.
    pub(super) const fn begin_walk(&mut self) {
        self.walk += 1;
    }

    /// Stands for an entry: an id that was released and claimed anew is another one. Two that share a name, which
    /// nobody can bring about without the keys of the hash, would take turns.
    fn name(&self, id: &str, token: &str) -> u64 {
        self.hasher.hash_one((id, token))
    }

    /// The entries of a page that have been there for long enough.
    pub(super) fn due(&mut self, route: &Route, entries: Vec<Entry>, walked: &mut Walked) -> Vec<Due> {
        let now = Instant::now();
        let mut due = Vec::new();
        for Entry { id, token } in entries {
            let name = self.name(&id, &token);
            if !self.seen.contains_key(&name) && self.seen.len() >= MAX_TRACKED {
                continue;
            }
            let fresh = || Seen { since: now, due: now + self.after, walk: 0, refused: 0, poison: false };
            let seen = self.seen.entry(name).or_insert_with(fresh);
            let again = seen.walk == self.walk;
            seen.walk = self.walk;
            match token.parse::<Token>().ok().filter(|_| EntityId::parse(&id).is_some()) {
                Some(token) if seen.due <= now && !again => due.push(Due { name, id, token }),
                Some(_) => {}
                None => {
                    walked.poison += 1;
                    if !seen.poison {
                        seen.poison = true;
                        error!(route = %route, outbox = route.outbox_key(), entity_id = ?id,
                            "an entry of the outbox was not written by hookgate and can't be published; if its id is a good one, the next webhook for it takes it over");
                    }
                }
            }
        }
        due
    }

    pub(super) fn back_off(&mut self, name: u64) {
        if let Some(seen) = self.seen.get_mut(&name) {
            seen.back_off();
        }
    }

    pub(super) fn was_not_tried(&mut self, name: u64) {
        if let Some(seen) = self.seen.get_mut(&name) {
            seen.refused = seen.refused.saturating_sub(1);
            seen.due = Instant::now();
        }
    }

    /// How long the oldest entry has been seen. While another replica is at work, only what was found on this
    /// walk is known to be there still.
    pub(super) fn oldest(&self, found_now: bool) -> Option<Duration> {
        let there = self.seen.values().filter(|seen| !found_now || seen.walk == self.walk);
        there.map(|seen| seen.since.elapsed()).max()
    }

    /// Forgets what is in the outbox no more.
    pub(super) fn end_walk(&mut self) {
        let walk = self.walk;
        self.seen.retain(|_, seen| seen.walk == walk);
    }
}

/// What this replica knows of an entry. There are as many as entries, so it is small.
struct Seen {
    since: Instant,
    due: Instant,
    walk: u32,
    /// Attempts that brought no acknowledgement.
    refused: u8,
    poison: bool,
}

impl Seen {
    /// Waits longer with every attempt.
    fn back_off(&mut self) {
        let pause = WALK_EVERY.saturating_mul(1_u32.checked_shl(self.refused.into()).unwrap_or(u32::MAX));
        self.due = Instant::now() + pause.min(MAX_BACKOFF);
        self.refused = self.refused.saturating_add(1);
    }
}
