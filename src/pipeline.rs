//! claim → publish → settle: the one place that decides what a batch's answer rests on.
//!
//! Owns the two ports ([`PendingStore`], [`Publisher`]) and knows neither HTTP nor Redis nor NATS.
//!
//! A sender who hangs up can't stop the work half-way: it goes on in a task of its own. A claim is
//! never taken back: what NATS did not acknowledge stays *in flight* in the outbox, the answer is an error
//! that makes the sender come back, and the retry publishes the event again under the token of the claim.

mod ports;
mod settlement;
mod unstoppable;

use std::{ops::Range, panic::AssertUnwindSafe, sync::Arc, time::Duration};

use futures_util::FutureExt;
use hashbrown::HashMap;
use tokio::time::Instant;
use tracing::{error, info, warn};

use crate::{
    batch::Batch,
    breaker::{Breaker, Open},
    event::{Attempt, Event, Events, TokenSeed},
    failpoint,
    metrics::{Metrics, Via},
    publisher::PublishError,
    readiness::Contact,
    route::{Route, RouteTable},
    traces::{Claimed as ClaimedSpan, Sent, Tracer},
};

use self::settlement::Claim;
pub(crate) use self::unstoppable::Unstoppable;
pub use self::{
    ports::{Addresses, ClaimError, Claimed, PendingStore, Proposal, Publisher, State},
    settlement::Settlement,
};

/// Ids of one request that are claimed, published and acknowledged together. A batch of `EspoCRM` has 50; a
/// larger one goes through in steps of this size, between which others have their turn (`bench/NOTES.md`).
const STEP: usize = 250;

/// Least time for attempts to publish, of which a request has to have had as much to say anything of the broker.
const FAIR_TRY: Duration = Duration::from_millis(500);

/// Pause between two attempts to publish what was not acknowledged.
const PUBLISH_PAUSE: Duration = Duration::from_millis(250);

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
    /// The work panicked: a bug.
    #[error("internal error in the pipeline; see the log")]
    Panicked,
}

/// A batch on its way.
struct Job {
    route: Arc<Route>,
    batch: Arc<Batch>,
    seed: TokenSeed,
    deadline: Instant,
}

/// The pipeline of a process.
pub struct Pipeline {
    pending: Arc<dyn PendingStore>,
    publisher: Arc<dyn Publisher>,
    policy: Policy,
    /// One a route, by its name: its stream may be full while another one's is not.
    breakers: HashMap<String, Breaker>,
    metrics: Metrics,
    tracer: Tracer,
}

impl Pipeline {
    /// Puts the two ports together, for these routes.
    #[must_use]
    pub fn new(
        pending: Arc<dyn PendingStore>,
        publisher: Arc<dyn Publisher>,
        policy: Policy,
        table: &RouteTable,
        metrics: Metrics,
        tracer: Tracer,
    ) -> Self {
        let breakers = table.routes().iter().map(|route| (route.name().to_owned(), Breaker::default())).collect();
        Self { pending, publisher, policy, breakers, metrics, tracer }
    }

    /// Takes a batch through claim, publish and settle, and goes on with it when the caller is dropped. The tokens
    /// come from `seed`, whose time is that of the events.
    /// `held` is dropped at its end: what the request occupies (its place, its memory).
    ///
    /// # Errors
    /// [`Failure`], at the latest at `deadline`: the batch is not done, and the sender has to come back.
    pub async fn run<H: Send + 'static>(
        self: &Arc<Self>,
        route: Arc<Route>,
        batch: Batch,
        seed: TokenSeed,
        deadline: Instant,
        held: H,
    ) -> Result<Receipt, Failure> {
        let this = Arc::clone(self);
        let job = Job { route, batch: Arc::new(batch), seed, deadline };
        let work = async move {
            let outcome = this.process(&job).await;
            drop(held);
            outcome
        };
        let work = AssertUnwindSafe(work).catch_unwind().map(|outcome| {
            outcome.unwrap_or_else(|_panic| {
                // Not its message, which may hold what was being worked on.
                error!("the pipeline panicked");
                Err(Failure::Panicked)
            })
        });
        Unstoppable::new(work).await
    }

    async fn process(&self, job: &Job) -> Result<Receipt, Failure> {
        let Job { route, batch, seed, .. } = job;
        info!(route = %route, trace_id = %seed, "{} empfangen", route.label());
        let rejected = batch.rejected().count();
        if rejected > 0 {
            self.metrics.of(route).rejected(rejected);
            warn!(route = %route, trace_id = %seed, rejected, reasons = %batch.rejected(), "items without a usable id were left out");
        }
        let mut receipt = Receipt { total: batch.len(), new: 0, rejected };
        for start in (0..batch.len()).step_by(STEP) {
            receipt.new += self.step(job, start..batch.len().min(start + STEP)).await?;
        }
        if batch.is_empty() {
            log_new(route, *seed, 0);
        }
        Ok(receipt)
    }

    /// Takes some ids through; returns how many of them are new.
    async fn step(&self, job: &Job, range: Range<usize>) -> Result<usize, Failure> {
        let Job { route, seed, deadline, .. } = job;
        let (seed, deadline) = (*seed, *deadline);
        let proposal = Proposal { batch: Arc::clone(&job.batch), range, seed };
        if tracing::enabled!(target: "hookgate::entity", tracing::Level::INFO) {
            for id in proposal.ids() {
                info!(target: "hookgate::entity", route = %route, entity_id = %id, trace_id = %seed,
                    "{} Entity ID gefunden: {id}", route.action_title());
            }
        }
        let began = self.tracer.begin();
        let claimed = self.pending.claim(route, proposal.clone()).await.map(|claimed| proposal.recognize(claimed));
        failpoint::hit("after_claim");
        if began.is_some() {
            self.tracer.claimed(began, claimed_span(route, &proposal, &claimed));
        }
        let (Claimed { states, elsewhere, durable }, undeduplicated) = match claimed {
            Ok(claimed) => (claimed, None),
            Err(error) if self.policy.without_claim == WithoutClaim::Publish => {
                let states = proposal.tokens(Attempt::UNCLAIMED).map(State::New).collect();
                (Claimed { states, elsewhere: Addresses::default(), durable: false }, Some(error))
            }
            Err(error) => return Err(Failure::Unclaimed(error)),
        };
        let via = if undeduplicated.is_some() { Via::Undeduplicated } else { Via::Direct };
        self.metrics.of(route).claimed(proposal.ids().zip(states.iter().copied()), via);
        let mut new = 0;
        let mut full = 0;
        let mut claims = Vec::new();
        let mut others: Vec<(Arc<Route>, Vec<Claim<'_>>)> = Vec::new();
        for (id, state) in proposal.ids().zip(states) {
            let token = match state {
                State::New(token) => {
                    new += 1;
                    token
                }
                State::InFlight(token) => {
                    if let Some(address) = elsewhere.of(token).filter(|address| !address.is_same_address(route)) {
                        let known = others.iter_mut().find(|(other, _)| other == address);
                        match known {
                            Some((_, claims)) => claims.push(Claim { id, token }),
                            None => others.push((Arc::clone(address), vec![Claim { id, token }])),
                        }
                        continue;
                    }
                    token
                }
                State::Done => continue,
                State::OutboxFull => {
                    full += 1;
                    continue;
                }
            };
            claims.push(Claim { id, token });
        }
        log_new(route, seed, new);
        let began = self.tracer.begin();
        let mut attempts = 0;
        let total = claims.len();
        let tokens: Vec<_> =
            if began.is_some() { claims.iter().map(|claim| claim.token).collect() } else { Vec::new() };
        let mut published = self.publish(route, route, claims, via, deadline, &mut attempts).await;
        for (address, claims) in others {
            // Boxed: hardly ever needed, it would enlarge every request's future.
            let others = Box::pin(self.publish(route, &address, claims, via, deadline, &mut attempts)).await;
            published = published.and(others);
        }
        if !tokens.is_empty() {
            let problem = published.as_ref().err().map(ToString::to_string);
            let request = Some((seed, proposal.range.start));
            self.tracer.sent(began, Sent { request, route, tokens, attempts, problem });
        }
        match published {
            Ok(()) => {}
            Err(failure @ Failure::Unpublished { .. }) if durable && self.policy.without_ack == WithoutAck::Accept => {
                warn!(route = %route, trace_id = %seed, %failure, "accepted on the outbox alone; the relay publishes it");
            }
            Err(failure) => return Err(failure),
        }
        if let Some(reason) = undeduplicated {
            warn!(route = %route, trace_id = %seed, published = total, %reason, "published without deduplication");
        }
        if full > 0 {
            return Err(Failure::OutboxFull { route: route.name().to_owned(), unclaimed: full });
        }
        Ok(new)
    }

    /// Publishes until the events of all claims are acknowledged, or until the deadline; settles each as it is.
    /// `open` are those that are left. They go to `address`: mostly that of the route under whose key they are claimed.
    async fn publish(
        &self,
        route: &Arc<Route>,
        address: &Route,
        mut open: Vec<Claim<'_>>,
        via: Via,
        until: Instant,
        attempts: &mut usize,
    ) -> Result<(), Failure> {
        if open.is_empty() {
            return Ok(());
        }
        let mut made = Events::of(address);
        let total = open.len();
        let unpublished = |unconfirmed, last| Failure::Unpublished { unconfirmed, total, last };
        // Of another address it says nothing.
        let breaker = address.is_same_address(route).then(|| &self.breakers[route.name()]);
        let began = Instant::now();
        let unconfirmed = |open: &[Claim<'_>]| {
            self.metrics.of(route).unconfirmed(open.iter().map(|claim| claim.id.as_str()));
        };
        if began >= until {
            unconfirmed(&open);
            return Err(unpublished(open.len(), PublishError::NoTime));
        }
        if let Some(breaker) = breaker
            && breaker.pass(until).await == Err(Open)
        {
            unconfirmed(&open);
            return Err(unpublished(open.len(), PublishError::NotTried));
        }
        loop {
            *attempts += 1;
            let limit = self.policy.ack_timeout.min(until.saturating_duration_since(Instant::now()));
            let events: Vec<Event> = open.iter().map(|claim| made.event(claim.id, claim.token)).collect();
            let mut outcomes = self.publisher.publish(address, events, limit).await.into_iter();
            failpoint::hit("after_ack");
            let mut settled = Vec::with_capacity(open.len());
            let mut last = None;
            let mut again = Vec::new();
            for claim in open {
                // Whatever a publisher does not speak of is not acknowledged.
                match outcomes.next().unwrap_or(Err(PublishError::NoAck(limit))) {
                    Ok(ack) => {
                        info!(target: "hookgate::entity", route = %address, entity_id = %claim.id, trace_id = %claim.token.trace_id(),
                            "{}-Event emittiert für ID: {}", address.action_title(), claim.id);
                        settled.push(claim.settled_by(ack));
                    }
                    Err(error) => {
                        last = Some(error);
                        again.push(claim);
                    }
                }
            }
            if !settled.is_empty() {
                if breaker.is_some_and(Breaker::acknowledged) {
                    info!(route = %route, "events are acknowledged again");
                }
                self.metrics.of(route).published(via, settled.iter().map(Settlement::id));
                // What went out without a claim has nothing to settle.
                if via != Via::Undeduplicated {
                    self.pending.settle(route, settled);
                }
            }
            let Some(last) = last else { return Ok(()) };
            open = again;
            if Instant::now() + PUBLISH_PAUSE >= until {
                if until - began >= FAIR_TRY && breaker.is_some_and(|breaker| breaker.ran_out(began)) {
                    warn!(route = %route, reason = %last, "nothing was acknowledged for a whole request: until something is, requests are refused soon, but for one probe at a time");
                }
                unconfirmed(&open);
                return Err(unpublished(open.len(), last));
            }
            // Boxed for the sake of all that need no other.
            Box::pin(self.before_another_attempt(&last)).await;
        }
    }

    /// Waits for a while, but no longer than until a broker that was away is back.
    async fn before_another_attempt(&self, last: &PublishError) {
        let mut contact = self.publisher.contact();
        let back = async {
            // A broker that is there and says no, or nothing, is given the time.
            let away = matches!(last, PublishError::Unavailable(_)) && *contact.borrow_and_update() != Contact::Up;
            if !away || contact.wait_for(|contact| *contact == Contact::Up).await.is_err() {
                std::future::pending::<()>().await;
            }
        };
        tokio::select! {
            () = tokio::time::sleep(PUBLISH_PAUSE) => {}
            () = back => {}
        }
    }
}

fn claimed_span<'a>(route: &'a Route, proposal: &Proposal, claimed: &Result<Claimed, ClaimError>) -> ClaimedSpan<'a> {
    let states = claimed.as_ref().map_or(&[][..], |claimed| &claimed.states);
    let count = |those: fn(&State) -> bool| states.iter().filter(|state| those(state)).count();
    ClaimedSpan {
        seed: proposal.seed,
        start: proposal.range.start,
        route,
        ids: proposal.range.len(),
        new: count(|state| matches!(state, State::New(_))),
        in_flight: count(|state| matches!(state, State::InFlight(_))),
        problem: claimed.as_ref().err().map(ToString::to_string),
    }
}

fn log_new(route: &Route, seed: TokenSeed, new: usize) {
    info!(
        route = %route,
        trace_id = %seed,
        new,
        "{new} neue IDs zur {}-Sync-Queue hinzugefügt",
        route.action_title()
    );
}
