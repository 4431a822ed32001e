//! Claims in Redis, shared by any number of replicas.
//!
//! Requests that wait at the same moment share one script call: a task per route takes what is queued,
//! never waiting for more, and asks for all of it in one round trip. A second task settles in the
//! background. What a claim costs does not depend on how many ids are pending.

use std::{
    collections::HashMap,
    sync::{Arc, LazyLock},
    time::Duration,
};

use futures_util::{FutureExt, future::BoxFuture};
use redis::{Cmd, ErrorKind, RedisError, Script, ServerErrorKind, Value, aio::MultiplexedConnection};
use tokio::{
    sync::{mpsc, oneshot, watch},
    time::{Instant, timeout_at},
};
use tokio_util::{sync::CancellationToken, task::TaskTracker};
use tracing::{debug, warn};

use super::link::{Check, Current, Link};
use crate::{
    event::Token,
    pipeline::{ClaimError, PendingStore, Proposal, STEP, Settlement, State},
    readiness::Contact,
    route::{Route, RouteTable},
};

/// Requests of a route that may wait for the claim before theirs.
const CLAIM_QUEUE: usize = 1024;
/// Answered requests of a route whose settling may wait.
const SETTLE_QUEUE: usize = 8192;

static CLAIM: LazyLock<Lua> = LazyLock::new(|| Lua::new(include_str!("claim.lua")));
static SETTLE: LazyLock<Lua> = LazyLock::new(|| Lua::new(include_str!("settle.lua")));

/// A script, called by its hash and sent whole only to a Redis that does not know it yet.
struct Lua {
    code: &'static str,
    hash: String,
}

impl Lua {
    fn new(code: &'static str) -> Self {
        Self { code, hash: Script::new(code).get_hash().to_owned() }
    }

    async fn call<T: redis::FromRedisValue>(
        &self,
        connection: &mut MultiplexedConnection,
        arguments: impl Fn(&mut Cmd),
    ) -> Result<T, RedisError> {
        let mut by_hash = redis::cmd("EVALSHA");
        by_hash.arg(&self.hash);
        arguments(&mut by_hash);
        match by_hash.query_async(connection).await {
            Err(error) if error.kind() == ErrorKind::Server(ServerErrorKind::NoScript) => {
                let mut whole = redis::cmd("EVAL");
                whole.arg(self.code);
                arguments(&mut whole);
                whole.query_async(connection).await
            }
            answer => answer,
        }
    }
}

/// The pending SETs and outboxes of all routes, in Redis.
pub struct Redis {
    link: Arc<Link>,
    queues: HashMap<String, Queues>,
    tasks: TaskTracker,
    closing: CancellationToken,
}

struct Queues {
    claims: mpsc::Sender<Job>,
    settlements: mpsc::Sender<Vec<Settlement>>,
}

/// A proposal, and who waits for the answer.
struct Job {
    proposal: Proposal,
    answer: oneshot::Sender<Result<Vec<State>, ClaimError>>,
}

impl Redis {
    /// Starts to connect, and the tasks of each route. `timeout` bounds a claim, connecting again included;
    /// `outbox_limit` the ids of a route that are in flight at once.
    #[must_use]
    pub fn open(client: redis::Client, timeout: Duration, outbox_limit: usize, routes: &RouteTable) -> Self {
        let tasks = TaskTracker::new();
        let (link, keep) = Link::new(client, timeout, check(routes, outbox_limit));
        tasks.spawn(keep);
        let link = Arc::new(link);
        let closing = CancellationToken::new();
        let start = |route: &Arc<Route>| {
            let (claims, claim_jobs) = mpsc::channel(CLAIM_QUEUE);
            let (settlements, settle_jobs) = mpsc::channel(SETTLE_QUEUE);
            let claimer = Claimer { link: Arc::clone(&link), route: Arc::clone(route), timeout, outbox_limit };
            tasks.spawn(claimer.run(claim_jobs));
            let settler = Settler { link: Arc::clone(&link), route: Arc::clone(route), timeout };
            tasks.spawn(settler.run(settle_jobs, closing.clone()));
            (route.pending_key().to_owned(), Queues { claims, settlements })
        };
        let queues = routes.routes().iter().map(start).collect();
        Self { link, queues, tasks, closing }
    }

    /// The queues of a route of the table this was opened with.
    fn queues(&self, route: &Route) -> Result<&Queues, ClaimError> {
        self.queues
            .get(route.pending_key())
            .ok_or_else(|| ClaimError::Refused(format!("route {:?} was not known at start", route.name())))
    }
}

/// What a new connection has to be able to do: the claim of no ids at all, on each route's keys. It also
/// leaves the script in Redis.
fn check(routes: &RouteTable, outbox_limit: usize) -> Check {
    let routes = routes.routes().to_vec();
    Arc::new(move |mut connection| {
        let routes = routes.clone();
        async move {
            for route in &routes {
                let _no_states: Vec<Value> =
                    CLAIM.call(&mut connection, |call| claim_arguments(call, route, outbox_limit, &[])).await?;
            }
            Ok(())
        }
        .boxed()
    })
}

fn claim_arguments(call: &mut Cmd, route: &Route, outbox_limit: usize, proposals: &[&Proposal]) {
    call.arg(2).arg(route.pending_key()).arg(route.outbox_key()).arg(outbox_limit);
    for proposal in proposals {
        call.arg(proposal.seed.to_string()).arg(proposal.range.start).arg(proposal.range.len());
        for (id, _) in proposal.ids() {
            call.arg(id.as_str());
        }
    }
}

impl PendingStore for Redis {
    fn claim(&self, route: &Arc<Route>, proposal: Proposal) -> BoxFuture<'_, Result<Vec<State>, ClaimError>> {
        let queues = self.queues(route);
        let ended = || ClaimError::Down("hookgate is shutting down".to_owned());
        async move {
            let (answer, states) = oneshot::channel();
            queues?.claims.send(Job { proposal, answer }).await.map_err(|_| ended())?;
            states.await.unwrap_or_else(|_| Err(ended()))
        }
        .boxed()
    }

    fn settle(&self, route: &Arc<Route>, settlements: Vec<Settlement>) {
        let count = settlements.len();
        if self.queues(route).is_ok_and(|queues| queues.settlements.try_send(settlements).is_err()) {
            warn!(route = %route, count, "too many acknowledged ids wait to be settled; these stay in the outbox");
        }
    }

    fn contact(&self) -> watch::Receiver<Contact> {
        self.link.contact()
    }

    fn close(&self, limit: Duration) -> BoxFuture<'_, ()> {
        self.closing.cancel();
        async move {
            let settled = async {
                for queues in self.queues.values() {
                    queues.settlements.closed().await;
                }
            };
            if tokio::time::timeout(limit, settled).await.is_err() {
                warn!("acknowledged ids were left in the outbox: Redis did not take them in time");
            }
            self.tasks.close();
        }
        .boxed()
    }
}

/// Claims for one route.
struct Claimer {
    link: Arc<Link>,
    route: Arc<Route>,
    timeout: Duration,
    outbox_limit: usize,
}

impl Claimer {
    async fn run(self, mut jobs: mpsc::Receiver<Job>) {
        while let Some(first) = jobs.recv().await {
            let mut ids = first.proposal.range.len();
            let mut batch = vec![first];
            while ids < STEP
                && let Ok(job) = jobs.try_recv()
            {
                ids += job.proposal.range.len();
                batch.push(job);
            }
            self.answer(batch).await;
        }
    }

    async fn answer(&self, jobs: Vec<Job>) {
        let proposals: Vec<_> = jobs.iter().map(|job| &job.proposal).collect();
        let outcome = self.claim(&proposals).await;
        let mut states = outcome.map(Vec::into_iter);
        for Job { proposal, answer } in jobs {
            let part = match &mut states {
                Ok(states) => Ok(states.by_ref().take(proposal.range.len()).collect()),
                Err(error) => Err(error.clone()),
            };
            if answer.send(part).is_err() {
                // The claims stay in flight, as after any other request that ends before its time.
                debug!(route = %self.route, "nobody waits for this claim any more");
            }
        }
    }

    /// One script call. If the connection breaks, once more over the next one: the tokens are the same, so
    /// that it does no harm if the first call was carried out.
    async fn claim(&self, proposals: &[&Proposal]) -> Result<Vec<State>, ClaimError> {
        let until = Instant::now() + self.timeout;
        let mut current = self.link.current().ok_or_else(|| ClaimError::Down(self.link.problem()))?;
        let mut tries = 0;
        loop {
            tries += 1;
            let arguments = |call: &mut Cmd| claim_arguments(call, &self.route, self.outbox_limit, proposals);
            let answer = timeout_at(until, CLAIM.call::<Vec<Value>>(&mut current.connection, arguments)).await;
            let error = match answer {
                Ok(Ok(answers)) => return read_states(&answers, proposals),
                Ok(Err(error)) => error,
                Err(_elapsed) => {
                    self.link.report_trouble(&current);
                    return Err(ClaimError::Unknown(format!("no answer within {:?}", self.timeout)));
                }
            };
            if means_trouble(&error) {
                self.link.report_trouble(&current);
            }
            if !error.is_io_error() {
                return Err(ClaimError::Refused(error.to_string()));
            }
            if tries == 2 || error.is_timeout() {
                return Err(ClaimError::Unknown(error.to_string()));
            }
            current = match timeout_at(until, self.link.connected_after(&current)).await {
                Ok(Some(next)) => next,
                Ok(None) | Err(_) => return Err(ClaimError::Unknown(error.to_string())),
            };
        }
    }
}

/// Whether another connection may do better: this one is broken, or what is behind it is not, or no longer,
/// a Redis that takes writes from us.
fn means_trouble(error: &RedisError) -> bool {
    error.is_io_error()
        || error.is_unrecoverable_error()
        || matches!(error.code(), Some("READONLY" | "LOADING" | "MASTERDOWN" | "NOAUTH" | "WRONGPASS" | "NOPERM"))
}

fn read_states(answers: &[Value], proposals: &[&Proposal]) -> Result<Vec<State>, ClaimError> {
    let states: Option<Vec<State>> = answers.iter().map(read_state).collect();
    let expected = proposals.iter().map(|proposal| proposal.range.len()).sum::<usize>();
    states.filter(|states| states.len() == expected).ok_or_else(|| {
        ClaimError::Refused(format!(
            "the claim script gave {} answers that can't be read for {expected} ids",
            answers.len()
        ))
    })
}

fn read_state(answer: &Value) -> Option<State> {
    match answer {
        Value::Int(1) => Some(State::New),
        Value::Int(0) => Some(State::Done),
        Value::Int(-1) => Some(State::OutboxFull),
        Value::BulkString(token) => std::str::from_utf8(token).ok()?.parse::<Token>().ok().map(State::InFlight),
        _ => None,
    }
}

/// Settles for one route.
struct Settler {
    link: Arc<Link>,
    route: Arc<Route>,
    timeout: Duration,
}

impl Settler {
    async fn run(self, mut jobs: mpsc::Receiver<Vec<Settlement>>, closing: CancellationToken) {
        loop {
            let first = tokio::select! {
                first = jobs.recv() => first,
                () = closing.cancelled(), if !jobs.is_closed() => {
                    jobs.close();
                    continue;
                }
            };
            let Some(mut settlements) = first else { return };
            while settlements.len() < STEP
                && let Ok(more) = jobs.try_recv()
            {
                settlements.extend(more);
            }
            self.settle(&settlements).await;
        }
    }

    /// Tries until Redis has taken it: meanwhile the queue fills up, and then newer ones are left out.
    async fn settle(&self, settlements: &[Settlement]) {
        while let Some(mut current) = self.link.connected().await {
            let arguments = |call: &mut Cmd| {
                call.arg(1).arg(self.route.outbox_key());
                for settlement in settlements {
                    call.arg(settlement.id()).arg(settlement.token().to_string());
                }
            };
            match tokio::time::timeout(self.timeout, SETTLE.call::<usize>(&mut current.connection, arguments)).await {
                Ok(Ok(settled)) => {
                    debug!(route = %self.route, settled, "settled");
                    return;
                }
                Ok(Err(error)) if !means_trouble(&error) => {
                    warn!(route = %self.route, count = settlements.len(), %error, "Redis refused to settle; these ids stay in the outbox");
                    return;
                }
                Ok(Err(_)) | Err(_) => self.wait_for_another(&current).await,
            }
        }
    }

    async fn wait_for_another(&self, failed: &Current) {
        self.link.report_trouble(failed);
        // Without another connection there will be nobody to settle with.
        let _next = self.link.connected_after(failed).await;
    }
}
