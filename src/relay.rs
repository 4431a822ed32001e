//! Publishes what stayed in the outbox: claims whose request ended before NATS acknowledged their event.
//!
//! Runs in every replica and works through the ports only. It needs no clock but its own: an entry is due
//! once this replica has seen it for a while, so that a request in progress is left alone. Whatever it
//! does twice, or at the same time as another replica or the sender's retry, repeats the same token, which
//! JetStream drops; so it may die at any instant. A lease keeps replicas from doing the same work at once,
//! and nothing rests on it.

mod tracked;

use std::{sync::Arc, time::Duration};

use futures_util::future::BoxFuture;
use hashbrown::HashMap;
use tokio::{sync::watch, time::Instant};
use tokio_util::task::TaskTracker;
use tracing::{debug, info, warn};

use self::tracked::{Due, Tracked};
use crate::{
    batch::EntityId,
    event::{Event, Events},
    failpoint,
    metrics::{Metrics, RelayMetrics},
    pipeline::{Addresses, ClaimError, Publisher, Settlement},
    publisher::PublishError,
    route::{Route, RouteTable},
    shutdown::Phase,
    supervision::keep_on,
    traces::{Sent, Tracer},
};

/// Entries of one look into the outbox, published together.
pub const PAGE: usize = 500;
/// Shortest time between the beginnings of two walks through an outbox.
const WALK_EVERY: Duration = Duration::from_secs(1);
/// Between two pages on which nothing was due, so that a long outbox does not keep the store busy.
const PAGE_PAUSE: Duration = Duration::from_millis(10);
/// How long a lease lasts without being renewed.
const LEASE: Duration = Duration::from_secs(10);
/// What is left of a lease that is given up.
const GIVEN_UP: Duration = Duration::from_millis(1);
/// How long a replica leaves an outbox to others of which it could publish nothing.
const YIELD: Duration = Duration::from_secs(5);
/// Between two looks for routes that were removed from the configuration.
const REMOVED_EVERY: Duration = Duration::from_secs(60);

/// An entry of an outbox as it was found: it may have been damaged by others.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Entry {
    /// The claimed id.
    pub id: String,
    /// The token of the claim.
    pub token: String,
}

/// A part of an outbox.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Page {
    /// About [`PAGE`] entries; the same one may be on two pages.
    pub entries: Vec<Entry>,
    /// Where the next page begins; 0 if this was the last.
    pub next: u64,
}

/// The outboxes of the pending store.
pub trait Outbox: Send + Sync {
    /// A page of a route's outbox; the first one at 0.
    fn page<'a>(&'a self, route: &'a Route, cursor: u64) -> BoxFuture<'a, Result<Page, ClaimError>>;

    /// Number of entries.
    fn count<'a>(&'a self, route: &'a Route) -> BoxFuture<'a, Result<usize, ClaimError>>;

    /// Takes or renews the lease of a route's outbox; whether `holder` has it now.
    fn lease<'a>(
        &'a self,
        route: &'a Route,
        holder: &'a str,
        duration: Duration,
    ) -> BoxFuture<'a, Result<bool, ClaimError>>;

    /// Removes acknowledged entries, each only if it still holds that very token; how many went.
    fn settle_now<'a>(
        &'a self,
        route: &'a Route,
        settlements: &'a [Settlement],
    ) -> BoxFuture<'a, Result<usize, ClaimError>>;

    /// Where the entries of a route's outbox go that were claimed for another address.
    fn addresses<'a>(&'a self, route: &'a Route) -> BoxFuture<'a, Result<Addresses, ClaimError>>;

    /// Every route that ever claimed in this store, also those of older configurations.
    fn recorded_routes(&self) -> BoxFuture<'_, Result<Vec<Route>, ClaimError>>;
}

/// What became of the due entries of a walk.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Walked {
    /// Acknowledged, and out of the outbox.
    pub published: usize,
    /// Not acknowledged; they stay.
    pub failed: usize,
    /// What NATS said of the last of these.
    pub reason: Option<PublishError>,
    /// Entries that can't be published, because they were not written by hookgate.
    pub poison: usize,
}

/// The relay of a process.
pub struct Relay {
    outbox: Arc<dyn Outbox>,
    publisher: Arc<dyn Publisher>,
    after: Duration,
    ack_timeout: Duration,
    metrics: Metrics,
    tracer: Tracer,
    holder: String,
}

/// Why a walk ended before the end of the outbox.
#[derive(Debug, thiserror::Error)]
pub enum RelayError {
    /// The outbox can't be read.
    #[error(transparent)]
    Outbox(#[from] ClaimError),
    /// NATS takes nothing now.
    #[error(transparent)]
    Publish(#[from] PublishError),
    /// Another replica is at work.
    #[error("another replica relays this outbox")]
    Leased,
}

/// What to do while another replica has the lease.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum WithoutLease {
    /// Leave the work to it.
    Yield,
    /// Do the same work beside it.
    GoOn,
}

impl Relay {
    /// A relay that takes an entry over after `after`. `ack_timeout` bounds one attempt to publish.
    #[must_use]
    pub fn new(
        outbox: Arc<dyn Outbox>,
        publisher: Arc<dyn Publisher>,
        after: Duration,
        ack_timeout: Duration,
        metrics: Metrics,
        tracer: Tracer,
    ) -> Arc<Self> {
        let holder = uuid::Uuid::now_v7().simple().to_string();
        Arc::new(Self { outbox, publisher, after, ack_timeout, metrics, tracer, holder })
    }

    /// Starts a task per route, and one that looks for outboxes of routes that are configured no more.
    pub fn start(self: &Arc<Self>, routes: &RouteTable, phase: &watch::Receiver<Phase>, tasks: &TaskTracker) {
        for route in routes.routes() {
            tasks.spawn(Arc::clone(self).keep_serving(Arc::clone(route), phase.clone()));
        }
        let (this, phase, all) = (Arc::clone(self), phase.clone(), tasks.clone());
        let mut known: Vec<String> = routes.routes().iter().map(|route| route.pending_key().to_owned()).collect();
        tasks.spawn(async move {
            keep_on!("the relay of removed routes", this.adopt(&mut known, &phase, &all));
        });
    }

    async fn keep_serving(self: Arc<Self>, route: Arc<Route>, phase: watch::Receiver<Phase>) {
        let metrics = self.metrics.relay(&route);
        let mut tracked = Tracked::new(self.after);
        let name = format!("the relay of route {route}");
        keep_on!(&name, self.serve(&route, &mut tracked, &metrics, phase.clone()));
    }

    /// Walks through one outbox again and again.
    async fn serve(
        &self,
        route: &Arc<Route>,
        tracked: &mut Tracked,
        metrics: &RelayMetrics,
        mut phase: watch::Receiver<Phase>,
    ) {
        let work = async {
            loop {
                let began = Instant::now();
                let walked = self.walk(route, tracked, metrics, WithoutLease::Yield).await;
                metrics.oldest(tracked.oldest(matches!(walked, Err(RelayError::Leased))));
                match walked {
                    Ok(Walked { published: 0, failed: 0, .. }) => {}
                    Ok(Walked { failed, reason: Some(PublishError::NoStream(subject)), .. }) => {
                        let entries = self.outbox.count(route).await.unwrap_or(failed);
                        warn!(route = %route, pending_key = route.pending_key(), %subject, failed, entries,
                            "no stream covers the subject that entries of the outbox were claimed for; they stay until one does, and are published then: add the subject to a stream (nats stream edit), or make a stream for it (nats stream add)");
                    }
                    Ok(Walked { published, failed, reason: Some(reason), .. }) => {
                        warn!(route = %route, published, failed, %reason, "NATS refuses events of the outbox; they stay, and the relay tries again");
                    }
                    Ok(Walked { published, failed, .. }) => {
                        info!(route = %route, published, failed, "relay published what stayed in the outbox");
                    }
                    Err(error) => debug!(route = %route, %error, "relay could not go on"),
                }
                tokio::time::sleep_until(began + WALK_EVERY).await;
            }
        };
        tokio::select! {
            () = work => {}
            _leaving = phase.wait_for(|phase| *phase >= Phase::Refusing) => {}
        }
    }

    /// Drains the outboxes of routes that were removed or renamed, to the subjects they had.
    async fn adopt(self: &Arc<Self>, known: &mut Vec<String>, phase: &watch::Receiver<Phase>, tasks: &TaskTracker) {
        let work = async {
            loop {
                match self.outbox.recorded_routes().await {
                    Ok(recorded) => {
                        for route in recorded {
                            if known.iter().any(|key| key == route.pending_key()) {
                                continue;
                            }
                            let entries = self.outbox.count(&route).await.unwrap_or_default();
                            if entries == 0 {
                                continue;
                            }
                            warn!(route = %route, pending_key = route.pending_key(), subject = route.subject(), entries,
                                "this route is configured no more, but its outbox holds entries; the relay publishes each to the subject it was claimed for, and says so when NATS does not take it");
                            known.push(route.pending_key().to_owned());
                            tasks.spawn(Arc::clone(self).keep_serving(Arc::new(route), phase.clone()));
                        }
                        tokio::time::sleep(REMOVED_EVERY).await;
                    }
                    Err(error) => {
                        debug!(%error, "could not look for removed routes");
                        tokio::time::sleep(WALK_EVERY).await;
                    }
                }
            }
        };
        let mut leaving = phase.clone();
        tokio::select! {
            () = work => {}
            _leaving = leaving.wait_for(|phase| *phase >= Phase::Refusing) => {}
        }
    }

    /// One walk through an outbox with the ages in `tracked`; publishes what is due, page by page, each
    /// page's acknowledgements awaited before the next page is read.
    async fn walk(
        &self,
        route: &Route,
        tracked: &mut Tracked,
        metrics: &RelayMetrics,
        without_lease: WithoutLease,
    ) -> Result<Walked, RelayError> {
        let mut walked = Walked::default();
        let mut cursor = 0;
        tracked.begin_walk();
        loop {
            let page = self.outbox.page(route, cursor).await?;
            let due = tracked.due(route, page.entries, &mut walked);
            if due.is_empty() {
                tokio::time::sleep(PAGE_PAUSE).await;
            } else {
                self.publish(route, due, tracked, metrics, without_lease, &mut walked).await?;
            }
            cursor = page.next;
            if cursor == 0 {
                tracked.end_walk();
                return Ok(walked);
            }
        }
    }

    /// Publishes the whole outbox of a route now, whatever the age of its entries and whoever has the lease: a stream
    /// drops what comes twice. Without one (`core`) an event that a replica publishes at that moment goes out twice.
    ///
    /// # Errors
    /// If the outbox can't be read or NATS takes nothing.
    pub async fn relay_now(&self, route: &Arc<Route>) -> Result<Walked, RelayError> {
        self.walk(route, &mut Tracked::new(Duration::ZERO), &self.metrics.relay(route), WithoutLease::GoOn).await
    }

    /// Each entry goes to the address it was claimed for.
    async fn publish(
        &self,
        route: &Route,
        due: Vec<Due>,
        tracked: &mut Tracked,
        metrics: &RelayMetrics,
        without_lease: WithoutLease,
        walked: &mut Walked,
    ) -> Result<(), RelayError> {
        let addresses = self.outbox.addresses(route).await?;
        let mut groups = HashMap::<usize, Vec<Due>>::new();
        for entry in due {
            let number = addresses.of(entry.token).map_or(usize::MAX, |_address| entry.token.address());
            groups.entry(number).or_default().push(entry);
        }
        for due in groups.into_values() {
            let address = due.first().and_then(|entry| addresses.of(entry.token)).map_or(route, |address| &**address);
            self.publish_to(address, route, due, tracked, metrics, without_lease, walked).await?;
        }
        Ok(())
    }

    #[expect(clippy::too_many_arguments, reason = "what a page is published with")]
    async fn publish_to(
        &self,
        address: &Route,
        route: &Route,
        due: Vec<Due>,
        tracked: &mut Tracked,
        metrics: &RelayMetrics,
        without_lease: WithoutLease,
        walked: &mut Walked,
    ) -> Result<(), RelayError> {
        let yields = without_lease == WithoutLease::Yield;
        let leased = !(yields && tracked.yields()) && self.outbox.lease(route, &self.holder, LEASE).await?;
        if !leased && yields {
            return Err(RelayError::Leased);
        }
        let mut events = Events::of(address);
        let events: Vec<Event> =
            due.iter().filter_map(|Due { id, token, .. }| Some(events.event(EntityId::parse(id)?, *token))).collect();
        // Now, not when they have failed: should this page not come to its end, the next walk gets past it.
        for Due { name, .. } in &due {
            tracked.back_off(*name);
        }
        failpoint::hit("relay_before_publish");
        let began = self.tracer.begin();
        let outcomes = self.publisher.publish(address, events, self.ack_timeout).await;
        failpoint::hit("relay_after_publish");
        let tried = outcomes.iter().any(|outcome| !matches!(outcome, Err(PublishError::Unavailable(_))));
        if began.is_some() && tried {
            let tokens = due.iter().map(|due| due.token).collect();
            let problem = outcomes.iter().find_map(|outcome| outcome.as_ref().err()).map(ToString::to_string);
            self.tracer.sent(began, Sent { request: None, route, tokens, attempts: 1, problem });
        }
        let mut settlements = Vec::new();
        let mut trouble = None;
        for (Due { name, id, token }, outcome) in due.into_iter().zip(outcomes) {
            match outcome {
                Ok(ack) => settlements.push(Settlement::acknowledged(id, token, ack)),
                Err(error) => {
                    walked.failed += 1;
                    if matches!(error, PublishError::Unavailable(_)) {
                        tracked.was_not_tried(name);
                    }
                    // That there is no stream is said of this address alone.
                    if matches!(error, PublishError::Refused(_) | PublishError::NoStream(_)) {
                        walked.reason = Some(error);
                    } else {
                        trouble = Some(error);
                    }
                }
            }
        }
        if leased && settlements.is_empty() {
            // Perhaps it is only this replica that can't. If it could not even try, it costs nothing to ask again soon.
            if tried {
                tracked.yield_for(YIELD);
            }
            self.outbox.lease(route, &self.holder, GIVEN_UP).await?;
        }
        walked.published += settlements.len();
        if !settlements.is_empty() {
            metrics.published(settlements.iter().map(Settlement::id));
            self.outbox.settle_now(route, &settlements).await?;
        }
        // Not this or that event: everything. The others would only wait in the same way.
        trouble.map_or(Ok(()), |trouble| Err(trouble.into()))
    }
}
