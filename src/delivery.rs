//! From a batch to its receipt: claim → publish → ack → settle. The one place that decides what a response rests on.
//!
//! Declares its ports ([`PendingStore`], [`Publisher`]) and their errors, and knows neither HTTP nor Redis nor NATS.
//!
//! A claim is never taken back. What NATS did not acknowledge stays *in flight* in the outbox. The sender gets
//! 503, and its retry publishes the event again under the token of the claim; so does the relay.

mod ack;
mod attempt;
mod claiming;
mod ports;
mod publishing;
mod settlement;

use std::{panic::AssertUnwindSafe, sync::Arc, time::Duration};

use futures_util::{FutureExt, future::try_join_all};
use hashbrown::HashMap;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use tokio::time::Instant;
use tracing::{error, info, warn};

pub(crate) use self::attempt::{Attempted, Deliverable, attempt};
pub use self::{
    ack::{Ack, PublishError},
    ports::{Addresses, Claimed, PendingStore, Proposal, Publisher, RouteContents, State, StoreContents, StoreError},
    settlement::Settlement,
};
use self::{claiming::Claims, publishing::Published};
use crate::{
    batch::Batch,
    breaker::Breaker,
    event::TokenSeed,
    metrics::Metrics,
    route::{Route, RouteTable, WhilePending},
    traces::{Sent, Tracer},
};

/// Most ids of one request that are claimed, published and acknowledged together. A batch of `EspoCRM` has 50; a
/// larger one goes through in steps of this size, between which others have their turn (`bench/NOTES.md`).
const IDS_PER_STEP: usize = 250;

/// What to do with a batch that can't be claimed (`redis.on_unavailable`).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize, Serialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum WithoutClaim {
    /// Publish every id without deduplication, with a warning.
    Publish,
    /// Refuse the batch; the sender comes back.
    Reject,
}

/// What to do with a batch that is claimed but not acknowledged at the deadline (`nats.on_unavailable`).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize, Serialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum WithoutAck {
    /// Refuse it; the sender comes back, and the relay publishes it too.
    Reject,
    /// Accept it: it rests on the pending store alone until the relay has published it.
    Accept,
}

/// What a claim has to survive where an answer rests on it alone (`redis.durability`).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize, Serialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum Durability {
    /// Nothing: the primary has it in memory.
    None,
    /// The loss of the primary: a replica has it (`WAIT`).
    Replica,
    /// A crash of the machine: it is in the append-only file, on disk (`WAITAOF`, Redis 7.2).
    Aof,
}

/// What delivery does when a store fails.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Policy {
    /// When a batch can't be claimed, for instance because Redis is down (`redis.on_unavailable`).
    pub without_claim: WithoutClaim,
    /// When NATS has not acknowledged a claimed batch at the deadline (`nats.on_unavailable`).
    pub without_ack: WithoutAck,
    /// Longest time of one attempt to publish (`nats.ack_timeout`).
    pub ack_timeout: Duration,
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
    Unclaimed(StoreError),
    /// The outbox is full, so NATS has been failing for long.
    #[error(
        "the outbox of route {route:?} is full (outbox.max_entries): {unclaimed} ids were not claimed; bring NATS back"
    )]
    OutboxFull {
        /// Name of the route.
        route: String,
        /// Ids that were not claimed.
        unclaimed: usize,
    },
    /// Ids still in flight for the route's previous subject. Their events were published there now; the sender's retry
    /// claims them for the present subject.
    #[error(
        "{ids} ids of route {route:?} were still in flight for the subject that the route had before; their events were published there, and the sender's retry claims them for this one"
    )]
    AnotherAddress {
        /// Name of the route.
        route: String,
        /// How many.
        ids: usize,
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
    /// The work panicked: a bug.
    #[error("internal error in the delivery; see the log")]
    Panicked,
}

/// A batch on its way.
struct Job {
    route: Arc<Route>,
    batch: Arc<Batch>,
    seed: TokenSeed,
    deadline: Instant,
    while_pending: WhilePending,
}

/// Delivers the batches of a process.
pub struct Delivery {
    pending: Arc<dyn PendingStore>,
    publisher: Arc<dyn Publisher>,
    policy: Policy,
    /// One a route, by its name: its stream may be full while another one's is not.
    breakers: HashMap<String, Arc<Breaker>>,
    metrics: Metrics,
    tracer: Tracer,
}

impl Delivery {
    /// Makes a `Delivery` over the two ports, for these routes.
    #[must_use]
    pub fn new(
        pending: Arc<dyn PendingStore>,
        publisher: Arc<dyn Publisher>,
        policy: Policy,
        table: &RouteTable,
        metrics: Metrics,
        tracer: Tracer,
    ) -> Self {
        let breakers = table.routes().iter().map(|route| (route.name().to_owned(), Arc::default())).collect();
        Self { pending, publisher, policy, breakers, metrics, tracer }
    }

    /// Takes over the breakers of a previous `Delivery`, for routes that both have.
    #[must_use]
    pub fn with_breakers_of(mut self, before: &Self) -> Self {
        for (name, breaker) in &mut self.breakers {
            if let Some(known) = before.breakers.get(name) {
                *breaker = Arc::clone(known);
            }
        }
        self
    }

    /// Delivers a batch. The tokens come from `seed`, whose time is that of the events. A caller who may go away wraps this
    /// in a `DetachOnDrop`: nothing may stop it between claim and publish.
    ///
    /// # Errors
    /// [`Failure`], at the latest at `deadline`: the batch is not done, and the sender has to come back.
    pub async fn deliver(
        &self,
        route: Arc<Route>,
        batch: Batch,
        seed: TokenSeed,
        deadline: Instant,
    ) -> Result<Receipt, Failure> {
        let while_pending = route.life().while_pending;
        self.deliver_job(Job { route, batch: Arc::new(batch), seed, deadline, while_pending }).await
    }

    /// Delivers a batch, but gives each id a claim and an event of its own, whether it is pending or not.
    ///
    /// # Errors
    /// As [`Self::deliver`].
    pub async fn deliver_anew(
        &self,
        route: Arc<Route>,
        batch: Batch,
        seed: TokenSeed,
        deadline: Instant,
    ) -> Result<Receipt, Failure> {
        let while_pending = WhilePending::Publish;
        self.deliver_job(Job { route, batch: Arc::new(batch), seed, deadline, while_pending }).await
    }

    async fn deliver_job(&self, job: Job) -> Result<Receipt, Failure> {
        let outcome = AssertUnwindSafe(self.all_steps(&job)).catch_unwind().await;
        outcome.unwrap_or_else(|_panic| {
            // Not its message, which may hold what was being worked on.
            error!("the delivery of a batch panicked");
            Err(Failure::Panicked)
        })
    }

    async fn all_steps(&self, job: &Job) -> Result<Receipt, Failure> {
        let Job { route, batch, seed, .. } = job;
        info!(route = %route, trace_id = %seed, "{} empfangen", route.label());
        let rejected = batch.rejected().count();
        if rejected > 0 {
            self.metrics.of(route).rejected(rejected);
            warn!(route = %route, trace_id = %seed, rejected, reasons = %batch.rejected(), "items without a usable id were left out");
        }
        let mut receipt = Receipt { total: batch.len(), new: 0, rejected };
        for start in (0..batch.len()).step_by(IDS_PER_STEP) {
            let range = start..batch.len().min(start + IDS_PER_STEP);
            let proposal = Proposal::new(route, Arc::clone(batch), range, *seed);
            let proposal = Proposal { while_pending: job.while_pending, ..proposal };
            receipt.new += self.step(job, &proposal).await?;
        }
        if batch.is_empty() {
            log_new(route, *seed, 0);
        }
        Ok(receipt)
    }

    /// Claims ids whose marks are not durable as `redis.durability` asks: then the response rests on an event of their own.
    async fn claim_despite_marks<'a>(
        &self,
        route: &Arc<Route>,
        proposals: &'a [Proposal],
    ) -> Result<Vec<Claims<'a>>, Failure> {
        warn!(route = %route, ids = proposals.len(), "marks were not confirmed as redis.durability asks; these ids are published instead");
        try_join_all(proposals.iter().map(|proposal| self.claim(route, proposal))).await
    }

    /// Delivers some ids; returns how many of them are new.
    async fn step(&self, job: &Job, proposal: &Proposal) -> Result<usize, Failure> {
        let Job { route, seed, .. } = job;
        if tracing::enabled!(target: "hookgate::entity", tracing::Level::INFO) {
            for id in proposal.ids() {
                info!(target: "hookgate::entity", route = %route, entity_id = %id, trace_id = %seed,
                    "{} Entity ID gefunden: {id}", route.action_title());
            }
        }
        let mut claims = self.claim(route, proposal).await?;
        let not_durable: Vec<_> = claims.marks_not_durable.iter().map(|index| proposal.without_mark(*index)).collect();
        if !not_durable.is_empty() {
            // Boxed: hardly ever needed, it would enlarge every request's future.
            claims.add(Box::pin(self.claim_despite_marks(route, &not_durable)).await?);
        }
        log_new(route, *seed, claims.new);
        let began = self.tracer.begin();
        let waits_for_another = claims.waits_for_another;
        let (total, tokens) = (claims.own.len(), if began.is_some() { claims.tokens() } else { Vec::new() });
        let mut published = self.publish(job, route, claims.own, claims.via).await;
        for (address, claims_of_address) in claims.elsewhere {
            // Boxed: hardly ever needed, it would enlarge every request's future.
            published = published.and(Box::pin(self.publish(job, &address, claims_of_address, claims.via)).await);
        }
        let Published { outcome, attempts } = published;
        if !tokens.is_empty() {
            let problem = outcome.as_ref().err().map(ToString::to_string);
            let request = Some((*seed, proposal.range.start));
            self.tracer.sent(began, Sent { request, route, tokens, attempts, problem });
        }
        match outcome {
            Err(failure) if claims.durable && self.policy.without_ack == WithoutAck::Accept => {
                warn!(route = %route, trace_id = %seed, %failure, "accepted on the outbox alone; the relay publishes it");
            }
            outcome => outcome?,
        }
        if let Some(reason) = claims.undeduplicated {
            warn!(route = %route, trace_id = %seed, published = total, %reason, "published without deduplication");
        }
        if claims.full > 0 {
            return Err(Failure::OutboxFull { route: route.name().to_owned(), unclaimed: claims.full });
        }
        if waits_for_another > 0 {
            return Err(Failure::AnotherAddress { route: route.name().to_owned(), ids: waits_for_another });
        }
        Ok(claims.new)
    }
}

fn log_new(route: &Route, seed: TokenSeed, new: usize) {
    info!(route = %route, trace_id = %seed, new, "{new} neue IDs zur {}-Sync-Queue hinzugefügt", route.action_title());
}
