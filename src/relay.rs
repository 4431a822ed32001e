//! Publishes what stayed in the outbox: claims whose request ended before NATS acknowledged their event.
//!
//! Runs in every replica and works through the ports only. It needs no clock but its own: an entry is due once this
//! replica has seen it for `outbox.relay_after`, so that a request in progress is left alone. Whatever it does twice,
//! or at the same time as another replica or the sender's retry, repeats the same token, which JetStream drops; so it
//! may die at any instant.
//!
//! It publishes page by page and awaits each page's acknowledgements. It goes past entries that it can't publish, and
//! tries a refused one ever more rarely. An entry is put off before it is published, so that a page that panics each
//! time does not hold up the ones behind it.
//!
//! A lease keeps replicas from doing the same work at once; nothing rests on it. A replica that could publish nothing
//! of a page gives the lease up and leaves the outbox to others for 5 s.

mod publish;
mod tracked;
mod walk;

use std::{
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use futures_util::{
    FutureExt,
    future::{BoxFuture, join_all},
};
use hashbrown::HashMap;
use tokio::{
    sync::{Notify, watch},
    task::JoinHandle,
    time::Instant,
};
use tokio_util::{sync::CancellationToken, task::TaskTracker};
use tracing::{debug, info, warn};

pub use self::{tracked::Repeats, walk::Walked};
use self::{
    tracked::{MAX_TRACKED, Tracked},
    walk::{Walk, WalkEnded, WithoutLease},
};
use crate::{
    delivery::{Addresses, PublishError, Publisher, Settlement, StoreError},
    metrics::{Metrics, RelayMetrics},
    route::{Route, RouteTable},
    shutdown::Phase,
    supervision::supervise,
    traces::Tracer,
};

/// Entries of one look into the outbox, published together.
pub const PAGE: usize = 500;
/// Shortest time between the beginnings of two walks through an outbox.
const WALK_EVERY: Duration = Duration::from_secs(1);
/// Between two pages on which nothing was to be done, so that a long outbox does not keep the store busy.
const PAGE_PAUSE: Duration = Duration::from_millis(10);
/// How long a lease lasts without being renewed.
const LEASE: Duration = Duration::from_secs(10);
/// Duration to which a lease is set so that it ends: releases it.
const RELEASE_LEASE: Duration = Duration::from_millis(1);
/// How long a replica leaves an outbox to others after it could publish nothing of it.
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
    fn page<'a>(&'a self, route: &'a Route, cursor: u64) -> BoxFuture<'a, Result<Page, StoreError>>;

    /// Number of entries.
    fn count<'a>(&'a self, route: &'a Route) -> BoxFuture<'a, Result<usize, StoreError>>;

    /// Takes or renews the lease of a route's outbox; whether `holder` has it now.
    fn lease<'a>(
        &'a self,
        route: &'a Route,
        holder: &'a str,
        duration: Duration,
    ) -> BoxFuture<'a, Result<bool, StoreError>>;

    /// Removes acknowledged entries, each only if it still holds that very token; how many went.
    fn settle_now<'a>(
        &'a self,
        route: &'a Route,
        settlements: &'a [Settlement],
    ) -> BoxFuture<'a, Result<usize, StoreError>>;

    /// Where the entries of a route's outbox go that were claimed for another address.
    fn addresses<'a>(&'a self, route: &'a Route) -> BoxFuture<'a, Result<Addresses, StoreError>>;

    /// Every route that ever claimed in this store, also those of older configurations.
    fn recorded_routes(&self) -> BoxFuture<'_, Result<Vec<Route>, StoreError>>;
}

/// The relay of a process.
pub struct Relay {
    outbox: Arc<dyn Outbox>,
    publisher: Arc<dyn Publisher>,
    after: Duration,
    repeats: Repeats,
    ack_timeout: Duration,
    tracer: Tracer,
    holder: String,
    walkers: Mutex<Walkers>,
    /// The routes have changed.
    changed: Notify,
}

/// Who walks through which outbox.
struct Walkers {
    /// Of the routes that are served.
    metrics: Metrics,
    by_key: HashMap<String, Walker>,
}

/// Walks through one outbox.
struct Walker {
    route: Arc<Route>,
    /// Whether the route is configured; else its outbox is drained.
    configured: bool,
    stop: CancellationToken,
    task: JoinHandle<()>,
}

/// Why a walk ended before the end of the outbox.
#[derive(Debug, thiserror::Error)]
pub enum RelayError {
    /// The outbox can't be read.
    #[error(transparent)]
    Outbox(#[from] StoreError),
    /// NATS takes nothing now.
    #[error(transparent)]
    Publish(#[from] PublishError),
    /// Another replica is at work.
    #[error("another replica relays this outbox")]
    Leased,
}

impl Relay {
    /// A relay that takes an entry over after `after`. `repeats` says what a broker does with an event that comes twice;
    /// `ack_timeout` bounds one attempt to publish.
    #[must_use]
    pub fn new(
        outbox: Arc<dyn Outbox>,
        publisher: Arc<dyn Publisher>,
        after: Duration,
        repeats: Repeats,
        ack_timeout: Duration,
        metrics: Metrics,
        tracer: Tracer,
    ) -> Arc<Self> {
        let holder = uuid::Uuid::now_v7().simple().to_string();
        let walkers = Mutex::new(Walkers { metrics, by_key: HashMap::new() });
        let changed = Notify::new();
        Arc::new(Self { outbox, publisher, after, repeats, ack_timeout, tracer, holder, walkers, changed })
    }

    /// Starts the task that looks for outboxes of routes that are configured no more.
    pub fn start(self: &Arc<Self>, phase: &watch::Receiver<Phase>, tasks: &TaskTracker) {
        let (this, phase, all) = (Arc::clone(self), phase.clone(), tasks.clone());
        tasks.spawn(async move {
            supervise!("the relay of removed routes", this.adopt(&phase, &all));
        });
    }

    /// Relays the outboxes of these routes from now on: a task for each. That of a route that has not changed goes on.
    pub fn serve(
        self: &Arc<Self>,
        routes: &RouteTable,
        metrics: &Metrics,
        phase: &watch::Receiver<Phase>,
        tasks: &TaskTracker,
    ) {
        let mut walkers = self.walkers();
        walkers.metrics = metrics.clone();
        let before = std::mem::take(&mut walkers.by_key);
        let mut ended: HashMap<String, JoinHandle<()>> = HashMap::new();
        for (key, walker) in before {
            let configured = routes.routes().iter().find(|route| route.pending_key() == key);
            if configured == walker.configured.then_some(&walker.route) {
                walkers.by_key.insert(key, walker);
                continue;
            }
            walker.stop.cancel();
            if !walker.configured {
                metrics.end_adoption(&key);
            }
            ended.insert(key, walker.task);
        }
        for route in routes.routes() {
            if !walkers.by_key.contains_key(route.pending_key()) {
                let before = ended.remove(route.pending_key());
                let walker = self.walk(route, metrics.relay(route), before, true, phase, tasks);
                walkers.by_key.insert(route.pending_key().to_owned(), walker);
            }
        }
        drop(walkers);
        self.changed.notify_one();
    }

    fn walkers(&self) -> MutexGuard<'_, Walkers> {
        self.walkers.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Starts to walk through an outbox, once who did so `before` has ended.
    fn walk(
        self: &Arc<Self>,
        route: &Arc<Route>,
        metrics: RelayMetrics,
        before: Option<JoinHandle<()>>,
        configured: bool,
        phase: &watch::Receiver<Phase>,
        tasks: &TaskTracker,
    ) -> Walker {
        let stop = CancellationToken::new();
        let serving = Arc::clone(self).keep_serving(Arc::clone(route), metrics, phase.clone());
        let task = stop.clone().run_until_cancelled_owned(async move {
            if let Some(before) = before {
                let _ended_or_panicked = before.await;
            }
            serving.await;
        });
        Walker { route: Arc::clone(route), configured, stop, task: tasks.spawn(task.map(drop)) }
    }

    async fn keep_serving(self: Arc<Self>, route: Arc<Route>, metrics: RelayMetrics, phase: watch::Receiver<Phase>) {
        let mut tracked = Tracked::new(self.after, self.repeats, MAX_TRACKED);
        let name = format!("the relay of route {route}");
        supervise!(&name, self.walk_again(&route, &mut tracked, &metrics, phase.clone()));
    }

    /// Walks through one outbox again and again.
    async fn walk_again(
        &self,
        route: &Arc<Route>,
        tracked: &mut Tracked,
        metrics: &RelayMetrics,
        mut phase: watch::Receiver<Phase>,
    ) {
        let work = async {
            let mut trouble = None;
            loop {
                let began = Instant::now();
                let ended = Walk::new(self, route, tracked, metrics, WithoutLease::Yield).run().await;
                metrics.oldest(tracked.oldest(matches!(ended.stopped, Some(RelayError::Leased))));
                tell(route, &ended, &mut trouble);
                if let Some(PublishError::NoStream(subject)) = &ended.walked.reason {
                    let entries = self.outbox.count(route).await.unwrap_or(ended.walked.failed);
                    warn!(route = %route, pending_key = route.pending_key(), %subject, failed = ended.walked.failed, entries,
                        "no stream covers the subject that entries of the outbox were claimed for; they stay until one does, and are published then: add the subject to a stream (nats stream edit), or make a stream for it (nats stream add)");
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
    async fn adopt(self: &Arc<Self>, phase: &watch::Receiver<Phase>, tasks: &TaskTracker) {
        let work = async {
            let mut refused = HashMap::new();
            loop {
                let pause = self.adopt_all(&mut refused, phase, tasks).await;
                let _changed = tokio::time::timeout(pause, self.changed.notified()).await;
            }
        };
        let mut leaving = phase.clone();
        tokio::select! {
            () = work => {}
            _leaving = leaving.wait_for(|phase| *phase >= Phase::Refusing) => {}
        }
    }

    /// Looks into the outboxes of all recorded routes at the same time. Returns how long to wait before the next look.
    /// `refused` are those that could not be read before, and why: each is said once.
    async fn adopt_all(
        self: &Arc<Self>,
        refused: &mut HashMap<String, String>,
        phase: &watch::Receiver<Phase>,
        tasks: &TaskTracker,
    ) -> Duration {
        let recorded = match self.outbox.recorded_routes().await {
            Ok(recorded) => recorded,
            Err(error) => {
                debug!(%error, "could not look for removed routes");
                return WALK_EVERY;
            }
        };
        let adopt = async |route: Route| {
            let (name, pending_key) = (route.name().to_owned(), route.pending_key().to_owned());
            (name, pending_key, self.adopt_one(route, phase, tasks).await)
        };
        let mut pause = REMOVED_EVERY;
        for (route, pending_key, adopted) in join_all(recorded.into_iter().map(adopt)).await {
            match adopted {
                Ok(()) => drop(refused.remove(&pending_key)),
                Err(StoreError::Refused(why)) => {
                    if refused.get(&pending_key) != Some(&why) {
                        warn!(route, pending_key, %why,
                            "the outbox of a removed route can't be read, so events that wait there stay unpublished; let hookgate's user have its keys again");
                        refused.insert(pending_key, why);
                    }
                }
                // In a cluster the connection may only be on its way, and it is kept for no more than seconds after the look.
                Err(error) => {
                    debug!(route, %error, "could not look into the outbox of a removed route");
                    pause = WALK_EVERY;
                }
            }
        }
        pause
    }

    /// Drains the outbox of a route, if it is configured no more and holds something.
    async fn adopt_one(
        self: &Arc<Self>,
        route: Route,
        phase: &watch::Receiver<Phase>,
        tasks: &TaskTracker,
    ) -> Result<(), StoreError> {
        let is_known = |walkers: &Walkers| walkers.by_key.contains_key(route.pending_key());
        if is_known(&self.walkers()) {
            return Ok(());
        }
        let entries = self.outbox.count(&route).await?;
        let mut walkers = self.walkers();
        // It may have come back meanwhile.
        if entries == 0 || is_known(&walkers) {
            return Ok(());
        }
        warn!(route = %route, pending_key = route.pending_key(), subject = route.subject(), entries,
            "this route is configured no more, but its outbox holds entries; the relay publishes each to the subject it was claimed for, and says so when NATS does not take it");
        let route = Arc::new(route);
        let walker = self.walk(&route, walkers.metrics.relay(&route), None, false, phase, tasks);
        walkers.by_key.insert(route.pending_key().to_owned(), walker);
        Ok(())
    }

    /// Publishes the whole outbox of a route now, whatever the age of its entries, and without the lease: a stream
    /// drops duplicates. Without one (`core`) an event that a replica publishes at that moment goes out twice.
    ///
    /// # Errors
    /// If the outbox can't be read or NATS takes nothing.
    pub async fn relay_now(&self, route: &Arc<Route>) -> Result<Walked, RelayError> {
        let mut tracked = Tracked::new(Duration::ZERO, self.repeats, usize::MAX);
        let metrics = self.walkers().metrics.relay(route);
        let WalkEnded { walked, stopped } =
            Walk::new(self, route, &mut tracked, &metrics, WithoutLease::GoOn).run().await;
        stopped.map_or(Ok(walked), Err)
    }

    async fn take_lease(&self, route: &Route) -> Result<bool, StoreError> {
        self.outbox.lease(route, &self.holder, LEASE).await
    }

    async fn give_up_lease(&self, route: &Route) -> Result<bool, StoreError> {
        self.outbox.lease(route, &self.holder, RELEASE_LEASE).await
    }
}

/// Says what came of a walk; what keeps the relay from its work once when it begins and once when it ends.
fn tell(route: &Route, WalkEnded { walked, stopped }: &WalkEnded, trouble: &mut Option<RelayTrouble>) {
    match walked {
        // A missing stream is logged elsewhere, with the number of entries.
        Walked { published: 0, failed: 0, .. } | Walked { reason: Some(PublishError::NoStream(_)), .. } => {}
        Walked { published, failed, reason: Some(reason), .. } => {
            warn!(route = %route, published, failed, %reason, "NATS refuses events of the outbox; they stay, and the relay tries again");
        }
        Walked { published: 0, .. } => {}
        Walked { published, failed, .. } => {
            info!(route = %route, published, failed, "relay published what stayed in the outbox");
        }
    }
    let now = match (stopped, &walked.refusal) {
        (Some(RelayError::Leased), None) => {
            debug!(route = %route, "another replica relays this outbox");
            return;
        }
        // Said already by who keeps the connection to Redis.
        (Some(RelayError::Outbox(StoreError::Down(_))), _) => return,
        (Some(RelayError::Outbox(_) | RelayError::Publish(_)), _) => Some(RelayTrouble::Stopped),
        (_, Some(_)) => Some(RelayTrouble::Unsettled),
        (None, None) => None,
    };
    if std::mem::replace(trouble, now) == now {
        return;
    }
    match (now, stopped, &walked.refusal) {
        (Some(RelayTrouble::Stopped), Some(error), _) => {
            warn!(route = %route, %error, "the relay can't go on: what is in the outbox stays there, and it is tried again every second");
        }
        (_, _, Some(refusal)) => {
            warn!(route = %route, entries = walked.unsettled, %refusal, "NATS has events whose entries of the outbox can't be deleted now; this replica does not publish them again, and deletes them once Redis lets it");
        }
        _ => info!(route = %route, "the relay goes on"),
    }
}

/// What keeps the relay from its work.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum RelayTrouble {
    /// The outbox can't be read, or NATS takes nothing.
    Stopped,
    /// Nothing can be deleted from the outbox.
    Unsettled,
}
