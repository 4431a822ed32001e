//! The ports of delivery, and what goes through them. Their adapters are in `pending` and `publisher`.

use std::{ops::Range, sync::Arc, time::Duration};

use futures_util::future::BoxFuture;
use hashbrown::HashMap;
use tokio::sync::watch;

use super::{Ack, PublishError, Settlement};
use crate::{
    batch::{Batch, EntityId},
    event::{Attempt, Event, Token, TokenSeed},
    readiness::Contact,
    route::{Route, WhilePending},
};

/// Some ids of a batch, to be claimed under the tokens `seed.token(attempt, index)`.
#[derive(Debug, Clone)]
pub struct Proposal {
    /// The batch.
    pub batch: Arc<Batch>,
    /// Indices of the ids in the batch.
    pub range: Range<usize>,
    /// Where the tokens come from; each try makes its own.
    pub seed: TokenSeed,
    /// The first try of this proposal.
    pub attempt: Attempt,
    /// What it does to ids that are pending.
    pub while_pending: WhilePending,
}

impl Proposal {
    /// A first proposal for a route, as the route handles pending ids.
    #[must_use]
    pub fn new(route: &Route, batch: Arc<Batch>, range: Range<usize>, seed: TokenSeed) -> Self {
        Self { batch, range, seed, attempt: Attempt::FIRST, while_pending: route.life().while_pending }
    }

    /// Returns a proposal for the id at an index of the batch that claims it even if it is pending, and sets no mark.
    #[must_use]
    pub(super) fn without_mark(&self, index: usize) -> Self {
        Self {
            batch: Arc::clone(&self.batch),
            range: index..index + 1,
            seed: self.seed,
            attempt: Attempt::MARK_NOT_DURABLE,
            while_pending: WhilePending::Publish,
        }
    }

    /// The ids.
    #[must_use]
    pub fn ids(&self) -> impl ExactSizeIterator<Item = EntityId<'_>> + Clone {
        self.range.clone().map(|index| self.batch.id(index))
    }

    /// The tokens that a try proposes for them.
    #[must_use]
    pub fn tokens(&self, attempt: Attempt) -> impl ExactSizeIterator<Item = Token> + Clone + use<> {
        let seed = self.seed;
        self.range.clone().map(move |index| seed.token(attempt, index))
    }

    /// Returns what the store answered, with ids as new that an earlier try of this proposal claimed: the store says of
    /// them that they are in flight.
    pub(super) fn recognize(&self, mut claimed: Claimed) -> Claimed {
        for (state, own) in claimed.states.iter_mut().zip(self.tokens(self.attempt)) {
            if let State::InFlight(token) = *state
                && token.is_of_same_request(own)
            {
                *state = State::New(token);
            }
        }
        claimed
    }
}

/// What the pending store knows of an id, after the claim.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum State {
    /// It was not pending: claimed now, under this token.
    New(Token),
    /// Claimed before under this token, and its event not yet acknowledged as far as the store knows.
    InFlight(Token),
    /// Claimed before, and its event acknowledged.
    Done,
    /// Claimed before, and marked now: it is republished when it is released, or after `coalesce_max_wait`.
    Marked,
    /// It was not pending, and the outbox is full: not claimed.
    OutboxFull,
}

/// Where the entries of an outbox go, by the number of the address in their tokens (0 to 9). Several addresses share a
/// pending key when its route had another subject before, or has one in other replicas.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Addresses(HashMap<usize, Arc<Route>>);

impl Addresses {
    /// Returns the address that a token was claimed for, if it is known.
    #[must_use]
    pub fn of(&self, token: Token) -> Option<&Arc<Route>> {
        self.0.get(&token.address())
    }
}

impl FromIterator<(usize, Arc<Route>)> for Addresses {
    fn from_iter<T: IntoIterator<Item = (usize, Arc<Route>)>>(addresses: T) -> Self {
        Self(addresses.into_iter().collect())
    }
}

/// The answer to a claim.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Claimed {
    /// A state for each id, in their order.
    pub states: Vec<State>,
    /// Where those in flight go that were claimed for another address than the route's.
    pub elsewhere: Addresses,
    /// Whether the claims are as safe in the store as `redis.durability` asks for.
    pub durable: bool,
}

/// Why a claim, or another question to the pending store, gave no answer.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum StoreError {
    /// The store is known to be down; nothing was sent to it.
    #[error("the pending store is down: {0}")]
    Down(String),
    /// The store did not answer. What was asked may have been carried out.
    #[error("the pending store did not answer: {0}")]
    Unknown(String),
    /// The store takes no writes now, which passes: it is full, can't save or replicate, or a slot is moving.
    #[error("the pending store takes no writes now: {0}")]
    NoWrites(String),
    /// The store answered with an error.
    #[error("the pending store refused: {0}")]
    Refused(String),
}

/// Where ids are claimed. An id is in one of three states for everybody at once: *new* (absent), *in
/// flight* (present, with a token in the outbox), *done* (present, without).
pub trait PendingStore: Send + Sync {
    /// Claims ids atomically, each at most once among all replicas. Returns a state for each, in their order. A token is
    /// proposed in one call only: a second try takes those of the next [`Attempt`].
    ///
    /// Fails with a [`StoreError`]; after [`StoreError::Unknown`] the ids may be claimed.
    fn claim(&self, route: &Arc<Route>, proposal: Proposal) -> BoxFuture<'_, Result<Claimed, StoreError>>;

    /// Empties the outbox of acknowledged claims, each only if it still holds that very token. Happens in
    /// the background and may fail: an entry that stays is published again under its token by the relay or
    /// a retry, and JetStream drops the duplicate.
    fn settle(&self, route: &Arc<Route>, settlements: Vec<Settlement>);

    /// Whether the store can be reached.
    fn contact(&self) -> watch::Receiver<Contact>;

    /// Ends the background work after what is queued has been settled, or after `limit`.
    fn close(&self, limit: Duration) -> BoxFuture<'_, ()>;
}

/// Where events go.
pub trait Publisher: Send + Sync {
    /// Publishes events together and awaits their acknowledgements together, for at most `limit`. Returns an
    /// outcome for each event, in their order. Events without an outcome (a shorter `Vec`) count as not acknowledged.
    fn publish<'a>(
        &'a self,
        route: &'a Route,
        events: Vec<Event>,
        limit: Duration,
    ) -> BoxFuture<'a, Vec<Result<Ack, PublishError>>>;

    /// Whether the broker can be reached and takes events.
    fn contact(&self) -> watch::Receiver<Contact>;

    /// Version of the server, if one is known.
    fn server_version(&self) -> Option<String>;
}

/// What the store holds of a route.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct RouteContents {
    /// Pending ids.
    pub pending: usize,
    /// Entries of the outbox.
    pub outbox: usize,
}

/// What can be asked of the pending store without changing anything. A refusal is only an answer: reading
/// must not affect claims.
pub trait StoreContents: Send + Sync {
    /// Returns what the store holds of each of these routes, in their order, at a cost that does not grow with what it holds.
    fn contents<'a>(&'a self, routes: &'a [Arc<Route>]) -> BoxFuture<'a, Result<Vec<RouteContents>, StoreError>>;

    /// Version of the server, if there is one and it says so.
    fn server_version(&self) -> BoxFuture<'_, Option<String>>;
}
