//! claim → publish → settle: the one place that decides what a batch's answer rests on.
//!
//! Owns the two ports ([`PendingStore`], [`Publisher`]) and knows neither HTTP nor Redis nor NATS.
//!
//! The work runs in a task of its own, so that a sender who hangs up can't stop it half-way. A claim is
//! never taken back: what NATS did not acknowledge stays *in flight* in the outbox, the answer is an error
//! that makes the sender come back, and the retry publishes the event again under the same token.

use std::{ops::Range, sync::Arc, time::Duration};

use futures_util::future::BoxFuture;
use tokio::{sync::watch, time::Instant};
use tokio_util::task::TaskTracker;
use tracing::{error, info, warn};

use crate::{
    batch::{Batch, EntityId},
    event::{Event, Token, TokenSeed},
    failpoint,
    publisher::{Ack, PublishError},
    readiness::Contact,
    route::Route,
};

/// Ids of one request that are claimed, published and acknowledged together. A batch of EspoCRM has 50; a
/// larger one goes through in steps of this size, so that no single script call holds up the store.
pub const STEP: usize = 1000;

/// Pause between two attempts to publish what was not acknowledged.
const PUBLISH_PAUSE: Duration = Duration::from_millis(250);

/// Some ids of a batch, to be claimed under the tokens `seed.token(index)`.
#[derive(Debug, Clone)]
pub struct Proposal {
    /// The batch.
    pub batch: Arc<Batch>,
    /// Places of the ids in the batch.
    pub range: Range<usize>,
    /// Where the tokens come from; the same for every try of this proposal.
    pub seed: TokenSeed,
}

impl Proposal {
    /// The ids with the tokens proposed for them.
    #[must_use]
    pub fn ids(&self) -> impl ExactSizeIterator<Item = (EntityId<'_>, Token)> {
        self.range.clone().map(|index| (self.batch.id(index), self.seed.token(index)))
    }
}

/// What the pending store knows of an id, after the claim.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum State {
    /// It was not pending: claimed now, under the proposed token.
    New,
    /// Claimed before under this token, and its event not yet acknowledged as far as the store knows.
    InFlight(Token),
    /// Claimed before, and its event acknowledged.
    Done,
    /// It was not pending, and the outbox is full: not claimed.
    OutboxFull,
}

/// The answer to a claim.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Claimed {
    /// A state for each id, in their order.
    pub states: Vec<State>,
    /// Whether the claims are as safe in the store as `redis.durability` asks for.
    pub durable: bool,
}

/// Why a claim, or another question to the pending store, gave no answer.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ClaimError {
    /// The store is known to be down; nothing was sent to it.
    #[error("the pending store is down: {0}")]
    Down(String),
    /// The store did not answer. What was asked may have been carried out.
    #[error("the pending store did not answer: {0}")]
    Unknown(String),
    /// The store answered with an error.
    #[error("the pending store refused: {0}")]
    Refused(String),
}

/// Where ids are claimed. An id is in one of three states for everybody at once: *new* (absent), *in
/// flight* (present, with a token in the outbox), *done* (present, without).
pub trait PendingStore: Send + Sync {
    /// Claims ids atomically, each at most once among all replicas, and answers for each in their order.
    fn claim(&self, route: &Arc<Route>, proposal: Proposal) -> BoxFuture<'_, Result<Claimed, ClaimError>>;

    /// Empties the outbox of acknowledged claims, each only if it still holds that very token. Happens in
    /// the background and may fail: an entry that stays is published again under its token by whoever meets
    /// it, which JetStream drops as a duplicate.
    fn settle(&self, route: &Arc<Route>, settlements: Vec<Settlement>);

    /// Whether the store can be reached.
    fn contact(&self) -> watch::Receiver<Contact>;

    /// Ends the background work after what is queued has been settled, or after `limit`.
    fn close(&self, limit: Duration) -> BoxFuture<'_, ()>;
}

/// Where events go.
pub trait Publisher: Send + Sync {
    /// Publishes events together and awaits their acknowledgements together, for at most `limit`. Answers
    /// for each event in their order.
    fn publish<'a>(
        &'a self,
        route: &'a Route,
        events: &'a [Event],
        limit: Duration,
    ) -> BoxFuture<'a, Vec<Result<Ack, PublishError>>>;

    /// Whether the broker can be reached and takes events.
    fn contact(&self) -> watch::Receiver<Contact>;
}

/// What to do with a batch that can't be claimed (`redis.on_unavailable`).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum WithoutClaim {
    /// Publish every id without deduplication, with a warning.
    Publish,
    /// Refuse the batch; the sender comes back.
    Reject,
}

/// What to do with a batch that is claimed but not acknowledged at the deadline (`nats.on_unavailable`).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum WithoutAck {
    /// Refuse it; the sender comes back, and the relay publishes it too.
    Reject,
    /// Accept it: it rests on the pending store alone until the relay has published it.
    Accept,
}

/// What the pipeline does when a store fails.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Policy {
    /// The pending store.
    pub without_claim: WithoutClaim,
    /// The broker.
    pub without_ack: WithoutAck,
    /// Longest time of one attempt to publish.
    pub ack_timeout: Duration,
}

/// An id whose event has to be acknowledged before the batch may be.
#[derive(Debug, Clone, Copy)]
struct Claim<'a> {
    id: EntityId<'a>,
    token: Token,
}

impl Claim<'_> {
    /// Only an acknowledgement makes a settlement.
    fn settled_by(&self, ack: Ack) -> Settlement {
        Settlement::acknowledged(self.id.as_str().to_owned(), self.token, ack)
    }
}

/// An acknowledged claim, whose entry in the outbox can go.
#[derive(Debug, Clone, PartialEq, Eq)]
#[must_use = "an acknowledged claim that isn't settled is published again"]
pub struct Settlement {
    id: String,
    token: Token,
}

impl Settlement {
    /// Only an acknowledgement makes a settlement.
    pub(crate) fn acknowledged(id: String, token: Token, _ack: Ack) -> Self {
        Self { id, token }
    }

    /// The claimed id.
    #[must_use]
    pub fn id(&self) -> &str {
        &self.id
    }

    /// The token that was acknowledged.
    #[must_use]
    pub const fn token(&self) -> Token {
        self.token
    }
}

/// Every valid id of the batch is done: acknowledged by NATS now or before.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[must_use]
pub struct Receipt {
    /// Distinct valid ids of the batch.
    pub total: usize,
    /// Those claimed by this request, or published without a claim while the store was down.
    pub new: usize,
    /// Items without a usable id.
    pub rejected: usize,
}

/// Why a batch is not done. Always transient: the sender has to come back.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Failure {
    /// The claim failed and `redis.on_unavailable` is `reject`.
    #[error("{0}; nothing was published, because redis.on_unavailable is \"reject\"")]
    Unclaimed(ClaimError),
    /// The outbox is full, so NATS has been failing for long.
    #[error(
        "the outbox of route {route:?} is full (outbox.max_entries): {unclaimed} ids were not claimed; bring NATS back"
    )]
    OutboxFull {
        /// Name of the route.
        route: String,
        /// Ids that found no room.
        unclaimed: usize,
    },
    /// Events without an acknowledgement at the deadline. Their claims stay in flight.
    #[error("{unconfirmed} of {total} events were not acknowledged in time: {last}")]
    Unpublished {
        /// Events without an acknowledgement.
        unconfirmed: usize,
        /// Events that needed one.
        total: usize,
        /// What the last attempt said.
        last: PublishError,
    },
    /// The task that did the work panicked: a bug.
    #[error("internal error in the pipeline; see the log")]
    Panicked,
}

/// The pipeline of a process.
pub struct Pipeline {
    pending: Arc<dyn PendingStore>,
    publisher: Arc<dyn Publisher>,
    policy: Policy,
    tasks: TaskTracker,
}

impl Pipeline {
    /// Puts the two ports together.
    #[must_use]
    pub fn new(pending: Arc<dyn PendingStore>, publisher: Arc<dyn Publisher>, policy: Policy) -> Self {
        Self { pending, publisher, policy, tasks: TaskTracker::new() }
    }

    /// Takes a batch through claim, publish and settle, in a task that goes on when the caller is dropped.
    /// `held` is dropped at its end: what the request occupies (its place, its memory).
    ///
    /// # Errors
    /// [`Failure`], at the latest at `deadline`: the batch is not done, and the sender has to come back.
    pub async fn run<H: Send + 'static>(
        self: &Arc<Self>,
        route: Arc<Route>,
        batch: Batch,
        deadline: Instant,
        held: H,
    ) -> Result<Receipt, Failure> {
        let this = Arc::clone(self);
        let task = self.tasks.spawn(async move {
            let outcome = this.process(&route, Arc::new(batch), deadline).await;
            drop(held);
            outcome
        });
        task.await.unwrap_or_else(|panic| {
            error!(error = %panic, "pipeline task failed");
            Err(Failure::Panicked)
        })
    }

    async fn process(&self, route: &Arc<Route>, batch: Arc<Batch>, deadline: Instant) -> Result<Receipt, Failure> {
        let seed = TokenSeed::now();
        info!(route = %route, trace_id = %seed, "{} empfangen", route.label());
        let rejected = batch.rejected().count();
        if rejected > 0 {
            warn!(route = %route, trace_id = %seed, rejected, reasons = %batch.rejected(), "items without a usable id were left out");
        }
        let mut receipt = Receipt { total: batch.len(), new: 0, rejected };
        for start in (0..batch.len()).step_by(STEP) {
            let range = start..batch.len().min(start + STEP);
            let proposal = Proposal { batch: Arc::clone(&batch), range, seed };
            receipt.new += self.step(route, proposal, deadline).await?;
        }
        if batch.is_empty() {
            log_new(route, seed, 0);
        }
        Ok(receipt)
    }

    /// Takes some ids through; returns how many of them are new.
    async fn step(&self, route: &Arc<Route>, proposal: Proposal, deadline: Instant) -> Result<usize, Failure> {
        let seed = proposal.seed;
        if tracing::enabled!(target: "hookgate::entity", tracing::Level::INFO) {
            for (id, _) in proposal.ids() {
                info!(target: "hookgate::entity", route = %route, entity_id = %id, trace_id = %seed,
                    "{} Entity ID gefunden: {id}", route.action_title());
            }
        }
        let claimed = self.pending.claim(route, proposal.clone()).await;
        failpoint::hit("after_claim");
        let (Claimed { states, durable }, undeduplicated) = match claimed {
            Ok(claimed) => (claimed, None),
            Err(error) if self.policy.without_claim == WithoutClaim::Publish => {
                (Claimed { states: vec![State::New; proposal.range.len()], durable: false }, Some(error))
            }
            Err(error) => return Err(Failure::Unclaimed(error)),
        };
        let mut new = 0;
        let mut full = 0;
        let mut claims = Vec::new();
        for ((id, proposed), state) in proposal.ids().zip(states) {
            let token = match state {
                State::New => proposed,
                State::InFlight(token) => token,
                State::Done => continue,
                State::OutboxFull => {
                    full += 1;
                    continue;
                }
            };
            // A claim that was answered on its second try finds its own token in flight: it is new.
            new += usize::from(token == proposed);
            claims.push(Claim { id, token });
        }
        log_new(route, seed, new);
        match self.publish(route, &claims, deadline).await {
            Ok(()) => {}
            Err(failure @ Failure::Unpublished { .. }) if durable && self.policy.without_ack == WithoutAck::Accept => {
                warn!(route = %route, trace_id = %seed, %failure, "accepted on the outbox alone; the relay publishes it");
            }
            Err(failure) => return Err(failure),
        }
        if let Some(reason) = undeduplicated {
            warn!(route = %route, trace_id = %seed, published = claims.len(), %reason, "published without deduplication");
        }
        if full > 0 {
            return Err(Failure::OutboxFull { route: route.name().to_owned(), unclaimed: full });
        }
        Ok(new)
    }

    /// Publishes until every event is acknowledged, or until the deadline; settles each as it is.
    async fn publish(&self, route: &Arc<Route>, claims: &[Claim<'_>], deadline: Instant) -> Result<(), Failure> {
        let mut open: Vec<(&Claim<'_>, Event)> =
            claims.iter().map(|claim| (claim, Event::new(route, claim.id, claim.token))).collect();
        while !open.is_empty() {
            let (claims_now, events): (Vec<&Claim<'_>>, Vec<Event>) = open.into_iter().unzip();
            let limit = self.policy.ack_timeout.min(deadline.saturating_duration_since(Instant::now()));
            let outcomes = self.publisher.publish(route, &events, limit).await;
            failpoint::hit("after_ack");
            let mut settled = Vec::new();
            let mut last = None;
            open = Vec::new();
            for ((claim, event), outcome) in claims_now.into_iter().zip(events).zip(outcomes) {
                match outcome {
                    Ok(ack) => {
                        info!(target: "hookgate::entity", route = %route, entity_id = %claim.id, trace_id = %claim.token.trace_id(),
                            "{}-Event emittiert für ID: {}", route.action_title(), claim.id);
                        settled.push(claim.settled_by(ack));
                    }
                    Err(error) => {
                        last = Some(error);
                        open.push((claim, event));
                    }
                }
            }
            if !settled.is_empty() {
                self.pending.settle(route, settled);
            }
            if let Some(last) = last {
                if Instant::now() + PUBLISH_PAUSE >= deadline {
                    return Err(Failure::Unpublished { unconfirmed: open.len(), total: claims.len(), last });
                }
                tokio::time::sleep(PUBLISH_PAUSE).await;
            }
        }
        Ok(())
    }
}

fn log_new(route: &Route, seed: TokenSeed, new: usize) {
    info!(route = %route, trace_id = %seed, new, "{new} neue IDs zur {}-Sync-Queue hinzugefügt", route.action_title());
}
