//! Claims in Redis, shared by any number of replicas.
//!
//! Requests that wait at the same moment share one script call: a task per route takes what is queued,
//! never waiting for more, and asks for all of it in one round trip. A second task settles in the
//! background. What a claim costs does not depend on how many ids are pending.

use std::{
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
    time::Duration,
};

use futures_util::{
    FutureExt,
    future::{BoxFuture, join_all},
};
use hashbrown::HashMap;
use redis::{Cmd, RedisError, Value, aio::MultiplexedConnection};
use tokio::{
    sync::{mpsc, oneshot, watch},
    time::{Instant, error::Elapsed, timeout_at},
};
use tokio_util::{sync::CancellationToken, task::TaskTracker};
use tracing::{debug, warn};

use super::{
    CALL,
    access::Access,
    address::{self, Claiming},
    check::{Records, check, check_in_cluster, check_records},
    connection::Connection,
    diagnosis::{is_elsewhere, meaning, takes_no_writes, wants_another_connection},
    link::{ConnectionCheck, Current, Link},
    links::{Links, find},
    names::Names,
    script::{self, CLAIM},
    settler::Settler,
};
pub use crate::delivery::Durability;
use crate::{
    delivery::{Addresses, Claimed, PendingStore, Proposal, Settlement, State, StoreError},
    failpoint,
    metrics::{Operation, RedisTimes},
    readiness::Contact,
    route::{Route, RouteTable},
    supervision::supervise,
};

/// Requests of a route that may wait for the claim before theirs.
const CLAIM_QUEUE: usize = 1024;
/// Answered requests of a route whose settling may wait.
const SETTLE_QUEUE: usize = 8192;

/// How claims are made.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Options {
    /// Limit of a claim, connecting again included.
    pub timeout: Duration,
    /// Most ids of a route in flight at once.
    pub outbox_limit: usize,
    /// What a claim or a mark has to survive where an answer rests on it alone.
    pub durability: Durability,
    /// Redis replicas that have to have it, under [`Durability::Replica`].
    pub wait_replicas: usize,
    /// Whether an answer may rest on a claim; else on marks only.
    pub rests_on_claims: bool,
}

/// The pending SETs and outboxes of all routes, in Redis. Those for other routes ([`Redis::serve`]) share its connection.
pub struct Redis {
    pub(super) links: Arc<Links>,
    pub(super) names: Arc<Names>,
    pub(super) options: Options,
    times: RedisTimes,
    queues: HashMap<String, Arc<Queues>>,
    /// What a new connection has to be able to do.
    checks: Arc<Checks>,
    tasks: TaskTracker,
    settlers: TaskTracker,
    /// Acknowledged ids that are to be settled.
    unsettled: Arc<AtomicUsize>,
    closing: CancellationToken,
}

/// The routes that claim now.
pub(super) type Checked = Mutex<Vec<Arc<Claiming>>>;

pub(super) struct Queues {
    pub(super) claiming: Arc<Claiming>,
    claims: mpsc::Sender<ClaimJob>,
    settlements: mpsc::Sender<Vec<Settlement>>,
}

/// A proposal, and who waits for the answer.
struct ClaimJob {
    proposal: Proposal,
    answer: oneshot::Sender<Result<Claimed, StoreError>>,
}

/// What new connections have to be able to do.
struct Checks {
    names: Arc<Names>,
    checked: Arc<Checked>,
    records: Arc<Records>,
}

impl Checks {
    /// Starts to connect: for everything, or in a cluster for each route, for the records of all routes, and for dead letters.
    fn connect(&self, mut links: Links, claiming: &[Arc<Claiming>], options: Options) -> Links {
        if !links.is_cluster() {
            links.connect_single(self.of_all(options));
            return links;
        }
        let Self { names, checked, records } = self;
        records.are_at(&links.connect(&names.routes, check_records(checked, names, records)));
        for claiming in claiming {
            links.connect(claiming.route.pending_key(), self.of(claiming, true, options));
        }
        for drawer in names.drawers() {
            links.connect(&drawer.letters, find(&drawer.letters));
        }
        links
    }

    /// Of a connection for the claims of a route.
    fn of(&self, claiming: &Arc<Claiming>, in_cluster: bool, options: Options) -> ConnectionCheck {
        if in_cluster { check_in_cluster(claiming, &self.names, options, &self.records) } else { self.of_all(options) }
    }

    /// Of a connection for all routes that claim at that time.
    fn of_all(&self, options: Options) -> ConnectionCheck {
        let (names, checked) = (Arc::clone(&self.names), Arc::clone(&self.checked));
        Arc::new(move |connection| {
            let (names, checked) = (Arc::clone(&names), Arc::clone(&checked));
            let routes = move || checked.lock().unwrap_or_else(PoisonError::into_inner).clone();
            async move {
                loop {
                    let now = routes();
                    let refusal = check(now.clone(), Arc::clone(&names), options)(connection.clone()).await?;
                    // Other routes may have come meanwhile.
                    if now.iter().map(Arc::as_ptr).eq(routes().iter().map(Arc::as_ptr)) {
                        return Ok(refusal);
                    }
                }
            }
            .boxed()
        })
    }

    fn checked(&self) -> MutexGuard<'_, Vec<Arc<Claiming>>> {
        self.checked.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Redis {
    /// Starts to connect, and the tasks of each route. `instance` names the installation.
    #[must_use]
    pub fn open(access: &Access, instance: &str, options: Options, routes: &RouteTable, times: RedisTimes) -> Self {
        let names = Arc::new(Names::of(instance));
        let (tasks, settlers) = (TaskTracker::new(), TaskTracker::new());
        let claiming: Vec<_> = routes.routes().iter().map(|route| Arc::new(Claiming::new(route))).collect();
        let checked = Arc::new(Checked::new(claiming.clone()));
        let links = Links::new(access.clone(), options.timeout, tasks.clone());
        let checks = Arc::new(Checks { names: Arc::clone(&names), checked, records: Arc::default() });
        let links = Arc::new(checks.connect(links, &claiming, options));
        links.watch();
        let nobody = Self {
            links,
            names,
            options,
            times,
            queues: HashMap::new(),
            checks,
            tasks,
            settlers,
            unsettled: Arc::default(),
            closing: CancellationToken::new(),
        };
        let queues = claiming.iter().map(|claiming| nobody.start(claiming)).collect();
        Self { queues, ..nobody }
    }

    /// The same without any route: what is asked of it needs no claims.
    #[must_use]
    pub fn without_routes(&self) -> Self {
        Self {
            links: Arc::clone(&self.links),
            names: Arc::clone(&self.names),
            options: self.options,
            times: self.times.clone(),
            queues: HashMap::new(),
            checks: Arc::clone(&self.checks),
            tasks: self.tasks.clone(),
            settlers: self.settlers.clone(),
            unsettled: Arc::clone(&self.unsettled),
            closing: self.closing.clone(),
        }
    }

    /// The same for the routes of another configuration. What is unchanged shares its queues; those of the rest end with the
    /// last user of `self`. New routes are checked now, if Redis answers, and on each new connection.
    ///
    /// # Errors
    /// What Redis refuses of a new route. Then `self` goes on as before.
    pub async fn serve(&self, routes: &RouteTable, options: Options) -> Result<Self, StoreError> {
        let (mut all, mut new) = (Vec::new(), Vec::new());
        for route in routes.routes() {
            let before = self.queues.get(route.pending_key()).map(|queues| &queues.claiming);
            let unchanged = before.filter(|before| before.route == *route).cloned();
            all.push(unchanged.unwrap_or_else(|| {
                let claiming = Arc::new(Claiming::new(route));
                new.push(Arc::clone(&claiming));
                claiming
            }));
        }
        // Before the present connection is asked: another one may take its place meanwhile.
        let before = std::mem::replace(&mut *self.checks.checked(), all.clone());
        if let Err(refusal) = self.check(new, options).await {
            *self.checks.checked() = before;
            return Err(refusal);
        }
        let letters = self.names.drawers().map(|drawer| drawer.letters.as_str());
        let routes = all.iter().map(|claiming| claiming.route.pending_key());
        self.links.keep(routes.chain([self.names.routes.as_str()]).chain(letters));
        let next = Self { options, ..self.without_routes() };
        let queues = all.iter().map(|claiming| {
            let unchanged = self.queues.get(claiming.route.pending_key());
            let unchanged =
                unchanged.filter(|queues| options == self.options && Arc::ptr_eq(&queues.claiming, claiming));
            let shared = unchanged.map(|queues| (claiming.route.pending_key().to_owned(), Arc::clone(queues)));
            shared.unwrap_or_else(|| next.start(claiming))
        });
        Ok(Self { queues: queues.collect(), ..next })
    }

    /// Asks for what new routes need. A Redis that is down is asked when it comes back.
    async fn check(&self, new: Vec<Arc<Claiming>>, options: Options) -> Result<(), StoreError> {
        if self.links.is_cluster() {
            return self.check_in_cluster(new, options).await;
        }
        if new.is_empty() {
            return Ok(());
        }
        let link = self.links.of(&self.names.routes);
        let next = tokio::time::timeout(options.timeout, link.current_or_next()).await;
        let Some(current) = next.unwrap_or(None) else { return Ok(()) };
        let checked = check(new, Arc::clone(&self.names), options)(current.connection.clone());
        match tokio::time::timeout(options.timeout * 2, checked).await {
            Ok(Ok(None)) => Ok(()),
            Ok(Ok(Some(refusal))) => Err(StoreError::NoWrites(refusal)),
            Ok(Err(error)) if !error.is_io_error() && !error.is_timeout() => Err(failure(&link, &error)),
            // The next connection is asked for all of them.
            Ok(Err(_)) | Err(_) => {
                link.report_trouble(&current);
                Ok(())
            }
        }
    }

    /// In a cluster: opens and checks a connection for each new route. If one is refused, the connections are as they were.
    async fn check_in_cluster(&self, new: Vec<Arc<Claiming>>, options: Options) -> Result<(), StoreError> {
        let connect = |claiming: &Arc<Claiming>| {
            let key = claiming.route.pending_key().to_owned();
            let before = self.links.opened(&key);
            let link = self.links.connect(&key, self.checks.of(claiming, true, options));
            (key, before, link)
        };
        let opened: Vec<_> = new.iter().map(connect).collect();
        // All at the same time: one after the other, many routes would keep a reload waiting for minutes where the cluster hangs.
        let wait = |link: &Arc<Link>| {
            let link = Arc::clone(link);
            async move { tokio::time::timeout(options.timeout * 2, link.current_or_next()).await }
        };
        let _some_down = join_all(opened.iter().map(|(.., link)| wait(link))).await;
        let refusal = opened.iter().find_map(|(.., link)| match link.contact().borrow().clone() {
            Contact::Up | Contact::Unreachable(_) => None,
            Contact::NoWrites(refusal) => Some(StoreError::NoWrites(refusal)),
            Contact::Refused(refusal) => Some(StoreError::Refused(refusal)),
        });
        let Some(refusal) = refusal else { return Ok(()) };
        // In reverse order: two keys may share a connection.
        for (key, before, _) in opened.into_iter().rev() {
            self.links.put_back(&key, before);
        }
        Err(refusal)
    }

    /// Starts the tasks of a route, which end with its queues.
    fn start(&self, claiming: &Arc<Claiming>) -> (String, Arc<Queues>) {
        let Self { links, options, times, checks, tasks, settlers, unsettled, closing, .. } = self;
        let route = &claiming.route;
        let (claims, mut claim_jobs) = mpsc::channel(CLAIM_QUEUE);
        let (settlements, mut settle_jobs) = mpsc::channel(SETTLE_QUEUE);
        let link = links.of(route.pending_key());
        // WAIT speaks of what its own connection wrote, and blocks it: such claims have one for themselves.
        let own = match options.durability {
            Durability::None => Arc::clone(&link),
            Durability::Replica | Durability::Aof => {
                links.connect_dedicated(checks.of(claiming, links.is_cluster(), *options))
            }
        };
        let claimer = Claimer {
            link: own,
            claiming: Arc::clone(claiming),
            options: *options,
            times: times.clone(),
            warned: AtomicBool::new(false),
        };
        let claims_of = format!("the claims of route {route}");
        tasks.spawn(async move { supervise!(&claims_of, claimer.run(&mut claim_jobs)) });
        let settler = Settler {
            link,
            route: Arc::clone(route),
            timeout: options.timeout,
            times: times.clone(),
            unsettled: Arc::clone(unsettled),
        };
        let closing = closing.clone();
        let settling_of = format!("the settling of route {route}");
        settlers.spawn(async move { supervise!(&settling_of, settler.run(&mut settle_jobs, &closing)) });
        (route.pending_key().to_owned(), Arc::new(Queues { claiming: Arc::clone(claiming), claims, settlements }))
    }

    /// One exchange with Redis, off the path of a claim. All keys in it belong to this one.
    pub(super) async fn ask<T>(
        &self,
        key: &str,
        operation: Operation,
        exchange: impl AsyncFnOnce(&mut Connection) -> Result<T, RedisError> + Clone,
    ) -> Result<T, StoreError> {
        let link = self.links.of(key);
        let exchanged = self.exchange(&link, operation, exchange).await;
        let (current, answer) = exchanged.map_err(|error| match (link.contact().borrow().clone(), error) {
            // In a cluster only this error says so of a removed route's connection: the store's contact leaves it out.
            (Contact::Refused(problem), StoreError::Down(_)) if self.links.is_of_removed(key) => {
                StoreError::Refused(problem)
            }
            (_, error) => error,
        })?;
        match answer {
            Ok(Ok(answer)) => Ok(answer),
            Ok(Err(error)) => {
                if wants_another_connection(&error) {
                    link.report_trouble(&current);
                }
                Err(failure(&link, &error))
            }
            Err(_elapsed) => {
                link.report_trouble(&current);
                Err(self.no_answer())
            }
        }
    }

    /// The same for who only looks: whatever comes of it, the connection stays.
    pub(super) async fn look<T>(
        &self,
        key: &str,
        operation: Operation,
        exchange: impl AsyncFnOnce(&mut Connection) -> Result<T, RedisError> + Clone,
    ) -> Result<T, StoreError> {
        let (_current, answer) = self.exchange(&self.links.of(key), operation, exchange).await?;
        match answer {
            Ok(Ok(answer)) => Ok(answer),
            Ok(Err(error)) => Err(meaning(&error)),
            Err(_elapsed) => Err(self.no_answer()),
        }
    }

    /// An exchange on the present connection, timed and within the time-out; what it means is the caller's. Once more on the next
    /// connection if another node of the cluster has the key now: this one carried nothing out.
    async fn exchange<T>(
        &self,
        link: &Link,
        operation: Operation,
        exchange: impl AsyncFnOnce(&mut Connection) -> Result<T, RedisError> + Clone,
    ) -> Result<(Current, Result<Result<T, RedisError>, Elapsed>), StoreError> {
        // In a cluster some connections are made when they are needed.
        let timeout = self.options.timeout;
        let current = if self.links.is_cluster() {
            tokio::time::timeout(timeout, link.current_or_next()).await.unwrap_or(None)
        } else {
            link.current()
        };
        let mut current = current.ok_or_else(|| StoreError::Down(link.problem()))?;
        let until = Instant::now() + timeout;
        let answer = timeout_at(until, exchange.clone()(&mut current.connection));
        let answer = self.times.time(operation, answer).await;
        if matches!(&answer, Ok(Err(error)) if is_elsewhere(error)) {
            link.report_trouble(&current);
            if let Ok(Some(mut next)) = timeout_at(until, link.connected_after(&current)).await {
                let answer = timeout_at(until, exchange(&mut next.connection));
                let answer = self.times.time(operation, answer).await;
                return Ok((next, answer));
            }
        }
        Ok((current, answer))
    }

    fn no_answer(&self) -> StoreError {
        StoreError::Unknown(format!("no answer within {:?}", self.options.timeout))
    }

    /// The queues of a route of the table this is for.
    pub(super) fn queues(&self, route: &Route) -> Result<&Queues, StoreError> {
        self.queues
            .get(route.pending_key())
            .map(|queues| &**queues)
            .ok_or_else(|| StoreError::Refused(format!("route {:?} is not served", route.name())))
    }
}

impl PendingStore for Redis {
    fn claim(&self, route: &Arc<Route>, proposal: Proposal) -> BoxFuture<'_, Result<Claimed, StoreError>> {
        let queues = self.queues(route);
        let ended = || StoreError::Down("hookgate is shutting down".to_owned());
        async move {
            let (answer, states) = oneshot::channel();
            queues?.claims.send(ClaimJob { proposal, answer }).await.map_err(|_| ended())?;
            states.await.unwrap_or_else(|_| {
                Err(StoreError::Unknown(
                    "the call was given up by a bug of hookgate, or at its end; see the log".to_owned(),
                ))
            })
        }
        .boxed()
    }

    fn settle(&self, route: &Arc<Route>, settlements: Vec<Settlement>) {
        let (count, Ok(queues)) = (settlements.len(), self.queues(route)) else { return };
        self.unsettled.fetch_add(count, Ordering::Relaxed);
        if queues.settlements.try_send(settlements).is_err() {
            self.unsettled.fetch_sub(count, Ordering::Relaxed);
            warn!(route = %route, count, "too many acknowledged ids wait to be settled; these stay in the outbox");
        }
    }

    fn contact(&self) -> watch::Receiver<Contact> {
        self.links.contact()
    }

    fn close(&self, limit: Duration) -> BoxFuture<'_, ()> {
        self.closing.cancel();
        self.settlers.close();
        async move {
            // The tasks, not their queues: these close at once, with what is still to be settled in them.
            if tokio::time::timeout(limit, self.settlers.wait()).await.is_err() {
                let count = self.unsettled.load(Ordering::Relaxed);
                warn!(count, ?limit, "acknowledged ids were left in the outbox: Redis did not take them in time; the relay of another replica, or of the next start, settles them");
            }
            self.tasks.close();
        }
        .boxed()
    }
}

/// What an error from Redis means. Also reports on the link that Redis takes no writes.
fn failure(link: &Link, error: &RedisError) -> StoreError {
    if takes_no_writes(error) {
        link.report_no_writes(error);
    }
    meaning(error)
}

/// Claims for one route.
struct Claimer {
    link: Arc<Link>,
    claiming: Arc<Claiming>,
    options: Options,
    times: RedisTimes,
    warned: AtomicBool,
}

impl Claimer {
    async fn run(&self, jobs: &mut mpsc::Receiver<ClaimJob>) {
        while let Some(first) = jobs.recv().await {
            let mut ids = first.proposal.range.len();
            let mut batch = vec![first];
            while ids < CALL
                && let Ok(job) = jobs.try_recv()
            {
                ids += job.proposal.range.len();
                batch.push(job);
            }
            self.answer(batch).await;
        }
    }

    async fn answer(&self, jobs: Vec<ClaimJob>) {
        failpoint::hit("in_claim");
        let proposals: Vec<_> = jobs.iter().map(|job| &job.proposal).collect();
        let (mut states, elsewhere, durable) = match self.claim(&proposals).await {
            Ok(Claimed { states, elsewhere, durable }) => (Ok(states.into_iter()), elsewhere, durable),
            Err(error) => (Err(error), Addresses::default(), false),
        };
        for ClaimJob { proposal, answer } in jobs {
            let part = match &mut states {
                Ok(states) => Ok(Claimed {
                    states: states.by_ref().take(proposal.range.len()).collect(),
                    elsewhere: elsewhere.clone(),
                    durable,
                }),
                Err(error) => Err(error.clone()),
            };
            if answer.send(part).is_err() {
                // The claims stay in flight, as after any other request that ends before its time.
                debug!(route = %self.claiming.route, "nobody waits for this claim any more");
            }
        }
    }

    /// One script call. If the connection breaks, once more over the next one, with other tokens: the first call may
    /// be carried out at any time, also after its ids were claimed, published and released under another claim.
    async fn claim(&self, proposals: &[&Proposal]) -> Result<Claimed, StoreError> {
        let Options { timeout, outbox_limit, durability, rests_on_claims, .. } = self.options;
        let touch = durability != Durability::None;
        let until = Instant::now() + timeout;
        let next = timeout_at(until, self.link.current_or_next()).await.unwrap_or(None);
        let mut current = next.ok_or_else(|| StoreError::Down(self.link.problem()))?;
        let mut again = false;
        loop {
            // One number for the call and for what is read of its answer.
            let Some(number) = self.claiming.number() else {
                return Err(self.claiming.without_number());
            };
            let numbered = |proposal: &Proposal| {
                let attempt = if again { proposal.attempt.next() } else { proposal.attempt };
                attempt.at_address(number)
            };
            let arguments =
                |call: &mut Cmd| script::claim(call, &self.claiming, outbox_limit, touch, proposals, numbered, number);
            let answer = timeout_at(until, CLAIM.call::<Vec<Value>>(&mut current.connection, arguments));
            let answer = self.times.time(Operation::Claim, answer).await;
            let error = match answer {
                Ok(Ok(answers)) => {
                    let states = script::read_states(&answers, proposals, numbered)?;
                    // Before another command is carried out elsewhere.
                    let mut wrote = (durability != Durability::None).then(|| current.connection.used().clone());
                    let elsewhere = self.elsewhere(&mut current, until, &states, number).await?;
                    let durable = if let Some(wrote) = &mut wrote
                        && (rests_on_claims || states.contains(&State::Marked))
                    {
                        self.durable(&current, wrote).await
                    } else {
                        true
                    };
                    return Ok(Claimed { states, elsewhere, durable });
                }
                Ok(Err(error)) => error,
                Err(_elapsed) => {
                    self.link.report_trouble(&current);
                    return Err(StoreError::Unknown(format!("no answer within {timeout:?}")));
                }
            };
            if wants_another_connection(&error) {
                self.link.report_trouble(&current);
            }
            if again || error.is_timeout() || !(error.is_io_error() || is_elsewhere(&error)) {
                return Err(failure(&self.link, &error));
            }
            again = true;
            current = match timeout_at(until, self.link.connected_after(&current)).await {
                Ok(Some(next)) => next,
                Ok(None) | Err(_) => return Err(failure(&self.link, &error)),
            };
        }
    }

    /// The addresses of those in flight that were claimed for another one. Asked each time: it is rare, and a cache
    /// would have to know when they change.
    async fn elsewhere(
        &self,
        current: &mut Current,
        until: Instant,
        states: &[State],
        own: usize,
    ) -> Result<Addresses, StoreError> {
        if !states.iter().any(|state| matches!(state, State::InFlight(token) if token.address() != own)) {
            return Ok(Addresses::default());
        }
        let read = timeout_at(until, address::read(&mut current.connection, &self.claiming.route)).await;
        let problem = match read {
            Ok(Ok(addresses)) => return Ok(addresses),
            Ok(Err(error)) => error.to_string(),
            Err(_elapsed) => format!("no answer within {:?}", self.options.timeout),
        };
        self.link.report_trouble(current);
        Err(StoreError::Unknown(format!("it did not say where entries of the outbox go: {problem}")))
    }

    /// Whether what this connection wrote has reached where `redis.durability` wants it.
    async fn durable(&self, current: &Current, wrote: &mut MultiplexedConnection) -> bool {
        // The rest of the time belongs to the answer of the script; this gets half as much again.
        let limit = self.options.timeout / 2;
        let millis = u64::try_from(limit.as_millis()).unwrap_or(u64::MAX).max(1);
        let wanted = self.options.wait_replicas;
        let call = match self.options.durability {
            Durability::None => return true,
            Durability::Replica => redis::cmd("WAIT").arg(wanted).arg(millis).clone(),
            Durability::Aof => redis::cmd("WAITAOF").arg(1).arg(0).arg(millis).clone(),
        };
        let answer = tokio::time::timeout(self.options.timeout, call.query_async::<Value>(wrote));
        let answer = self.times.time(Operation::Wait, answer).await;
        let problem = match answer {
            Ok(Ok(Value::Int(copies))) if usize::try_from(copies).is_ok_and(|copies| copies >= wanted) => None,
            Ok(Ok(Value::Int(copies))) => {
                Some(format!("{copies} of {wanted} Redis replicas confirmed within {limit:?}"))
            }
            Ok(Ok(Value::Array(copies))) if matches!(copies.first(), Some(Value::Int(1))) => None,
            Ok(Ok(_)) => Some(format!("not confirmed within {limit:?}")),
            Ok(Err(error)) => Some(error.to_string()),
            Err(_elapsed) => {
                self.link.report_trouble(current);
                Some(format!("no answer within {:?}", self.options.timeout))
            }
        };
        // Said once when it begins and once when it ends, not for every claim.
        if self.warned.swap(problem.is_some(), Ordering::Relaxed) != problem.is_some() {
            if let Some(problem) = &problem {
                warn!(route = %self.claiming.route, %problem,
                    "claims are not as durable as redis.durability asks; without NATS they are answered 503");
            } else {
                warn!(route = %self.claiming.route, "claims are durable again");
            }
        }
        problem.is_none()
    }
}
