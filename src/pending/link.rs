//! One connection to Redis. A caller waits for it only while it is made for the first time or is just being replaced,
//! inside `redis.timeout`; where Redis is known to be down, the caller is told so at once.
//!
//! A task makes the connection, asks it once a second whether it lives, and replaces it when somebody reports
//! trouble. After the first time-out all callers fail fast, until a fresh connection has run the claim script. The
//! client library's own manager was not enough: it can keep a connection that no longer works (after a demotion, a
//! changed password, a silent network), and makes callers wait.

use std::{
    fmt::Display,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    time::Duration,
};

use futures_util::future::BoxFuture;
use redis::{AsyncConnectionConfig, ErrorKind, RedisError, ServerErrorKind, aio::MultiplexedConnection};
use tokio::sync::{Notify, watch};

use super::access::{Access, AccessError};
use crate::{
    readiness::{Contact, Reporter},
    supervision::supervise,
    tls,
};

/// How often an idle connection is asked whether it lives.
const PROBE_EVERY: Duration = Duration::from_secs(1);
/// Pause between two attempts to connect.
const RECONNECT_PAUSE: Duration = Duration::from_millis(200);

/// A connection, and which one it is.
#[derive(Clone)]
pub(super) struct Current {
    pub(super) connection: MultiplexedConnection,
    epoch: u64,
}

/// Gives out the present connection.
pub(super) struct Link {
    current: watch::Receiver<Option<Current>>,
    /// Whether the first attempt to connect has ended; until then nothing is known of Redis.
    tried: Arc<AtomicBool>,
    trouble: Arc<ReportedTrouble>,
    report: Reporter,
}

/// Which connection does not work.
#[derive(Default)]
struct ReportedTrouble {
    epoch: AtomicU64,
    news: Notify,
}

/// Proves on a new connection that what hookgate needs is allowed. Answers why Redis takes no writes now, if it does not.
pub(super) type ConnectionCheck =
    Arc<dyn Fn(MultiplexedConnection) -> BoxFuture<'static, Result<Option<String>, RedisError>> + Send + Sync>;

impl Link {
    /// The link, and the task that keeps it, to be spawned by the owner.
    pub(super) fn new(
        access: Access,
        timeout: Duration,
        check: ConnectionCheck,
    ) -> (Self, impl Future<Output = ()> + Send) {
        let (sender, current) = watch::channel(None);
        let trouble = Arc::<ReportedTrouble>::default();
        let tried = Arc::<AtomicBool>::default();
        let report = Reporter::new("redis");
        let keeper = Keeper {
            access,
            timeout,
            check,
            current: sender,
            tried: Arc::clone(&tried),
            trouble: Arc::clone(&trouble),
            report: report.clone(),
        };
        let keep = async move {
            let mut epoch = 0;
            supervise!("the connection to Redis", keeper.run(&mut epoch));
        };
        (Self { current, tried, trouble, report }, keep)
    }

    /// The connection, if there is one.
    pub(super) fn current(&self) -> Option<Current> {
        self.current.borrow().clone()
    }

    /// The connection, or the one that is about to take its place; none at once if Redis is known to be down.
    /// At the start it is waited for: an ingress that knows no readiness sends requests as soon as somebody
    /// listens, and they would be published without a claim.
    pub(super) async fn current_or_next(&self) -> Option<Current> {
        let (mut current, mut contact) = (self.current.clone(), self.report.subscribe());
        loop {
            if let Some(current) = &*current.borrow_and_update() {
                return Some(current.clone());
            }
            let down = *contact.borrow_and_update() != Contact::Up;
            if down && self.tried.load(Ordering::SeqCst) {
                return None;
            }
            let changed = tokio::select! {
                changed = current.changed() => changed,
                changed = contact.changed() => changed,
            };
            changed.ok()?;
        }
    }

    /// Waits for a connection.
    pub(super) async fn connected(&self) -> Option<Current> {
        self.current.clone().wait_for(Option::is_some).await.ok().and_then(|current| current.clone())
    }

    /// Waits for another connection than this one.
    pub(super) async fn connected_after(&self, failed: &Current) -> Option<Current> {
        let another = |current: &Option<Current>| current.as_ref().is_some_and(|current| current.epoch > failed.epoch);
        self.current.clone().wait_for(another).await.ok().and_then(|current| current.clone())
    }

    /// Why there is none.
    pub(super) fn problem(&self) -> String {
        self.report.subscribe().borrow().problem().unwrap_or("the connection is being replaced").to_owned()
    }

    pub(super) fn contact(&self) -> watch::Receiver<Contact> {
        self.report.subscribe()
    }

    /// Redis refused a write that it will take later. The connection is good; the task that keeps it looks for the end.
    pub(super) fn report_no_writes(&self, error: &RedisError) {
        if *self.report.subscribe().borrow() == Contact::Up {
            self.report.set(no_writes(error));
        }
    }

    /// This connection failed somebody: replace it.
    pub(super) fn report_trouble(&self, failed: &Current) {
        self.trouble.epoch.fetch_max(failed.epoch, Ordering::SeqCst);
        self.trouble.news.notify_one();
    }
}

struct Keeper {
    access: Access,
    timeout: Duration,
    check: ConnectionCheck,
    current: watch::Sender<Option<Current>>,
    tried: Arc<AtomicBool>,
    trouble: Arc<ReportedTrouble>,
    report: Reporter,
}

impl Keeper {
    /// `epoch` counts connections.
    async fn run(&self, epoch: &mut u64) {
        // After a panic the last one may still be there, with nobody who looks after it; or there is none, and nobody
        // has said so.
        if self.current.send_replace(None).is_none() && *epoch > 0 {
            self.tried.store(true, Ordering::SeqCst);
            self.report
                .set(Contact::Unreachable("connecting panicked, which is a bug of hookgate; see the log".to_owned()));
        }
        while !self.current.is_closed() {
            *epoch += 1;
            let epoch = *epoch;
            let contact = match self.connect().await {
                Ok((connection, refusal)) => {
                    self.current.send_replace(Some(Current { connection: connection.clone(), epoch }));
                    self.report.set(refusal.map_or(Contact::Up, no_writes));
                    let ended = self.watch(connection, epoch).await;
                    self.current.send_replace(None);
                    ended
                }
                Err(contact) => Some(contact),
            };
            // A connection that only failed somebody is replaced at once; Redis may be well.
            if let Some(contact) = contact {
                // Before the news, which wakes who waits for either.
                self.tried.store(true, Ordering::SeqCst);
                self.report.set(contact);
                tokio::time::sleep(RECONNECT_PAUSE).await;
            }
        }
    }

    /// A connection that may do everything, and why Redis takes no writes now, if that is so.
    async fn connect(&self) -> Result<(MultiplexedConnection, Option<String>), Contact> {
        let config = AsyncConnectionConfig::new()
            .set_connection_timeout(Some(self.timeout))
            .set_response_timeout(Some(self.timeout));
        let client = self.access.client().map_err(|error| match error {
            AccessError::File(error) => Contact::Refused(format!("redis.{error}")),
            AccessError::Client(error) => self.contact_after(&error),
        })?;
        let attempt = async {
            let connection = client.get_multiplexed_async_connection_with_config(&config).await?;
            let refusal = (self.check)(connection.clone()).await?;
            Ok::<_, RedisError>((connection, refusal))
        };
        // Connecting, logging in and the check each have the time-out; together they get twice of it.
        match tokio::time::timeout(self.timeout * 2, attempt).await {
            Ok(Ok(proven)) => Ok(proven),
            Ok(Err(error)) if error.is_timeout() => Err(self.silent(self.timeout)),
            // As a port does where TLS is spoken; or Redis is just leaving.
            Ok(Err(error)) if error.is_connection_dropped() && !self.access.is_tls() => {
                Err(self.unreachable(&format!("{error}; does it want TLS (rediss:// in redis.url)?")))
            }
            Ok(Err(error)) => Err(self.contact_after(&error)),
            Err(_elapsed) => Err(self.silent(self.timeout * 2)),
        }
    }

    /// Watches a connection until it fails or somebody reports it; then says how Redis is, if that is known.
    async fn watch(&self, connection: MultiplexedConnection, epoch: u64) -> Option<Contact> {
        loop {
            tokio::select! {
                () = self.trouble.news.notified() => {
                    if self.trouble.epoch.load(Ordering::SeqCst) >= epoch {
                        return None;
                    }
                }
                alive = self.probe(connection.clone()) => {
                    if let Err(contact) = alive {
                        return contact;
                    }
                }
            }
        }
    }

    /// After a while, asks a connection whether it lives. If it was cut, only the next one can tell how
    /// Redis is.
    async fn probe(&self, mut connection: MultiplexedConnection) -> Result<(), Option<Contact>> {
        tokio::time::sleep(PROBE_EVERY).await;
        if matches!(&*self.report.subscribe().borrow(), Contact::NoWrites(_)) {
            return self.look_for_writes(connection).await;
        }
        let ping = redis::cmd("PING");
        match tokio::time::timeout(self.timeout, ping.query_async::<String>(&mut connection)).await {
            Ok(Ok(_pong)) => Ok(()),
            // A Redis that can't save refuses even that.
            Ok(Err(error)) if takes_no_writes(&error) => {
                self.report.set(no_writes(error));
                Ok(())
            }
            Ok(Err(error)) if error.is_io_error() && !error.is_timeout() => Err(None),
            Ok(Err(error)) => Err(Some(self.contact_after(&error))),
            Err(_elapsed) => Err(Some(self.unreachable(&format!("no answer within {:?}", self.timeout)))),
        }
    }

    /// Asks a Redis that took no writes again for everything that a new connection has to be able to do.
    async fn look_for_writes(&self, connection: MultiplexedConnection) -> Result<(), Option<Contact>> {
        match tokio::time::timeout(self.timeout, (self.check)(connection)).await {
            Ok(Ok(Some(_still))) => Ok(()),
            Ok(Ok(None)) => {
                self.report.set(Contact::Up);
                Ok(())
            }
            Ok(Err(error)) if error.is_io_error() && !error.is_timeout() => Err(None),
            Ok(Err(error)) => Err(Some(self.contact_after(&error))),
            Err(_elapsed) => Err(Some(self.unreachable(&format!("no answer within {:?}", self.timeout)))),
        }
    }

    fn unreachable(&self, problem: &dyn Display) -> Contact {
        Contact::Unreachable(format!("{}: {problem}", self.access.info().addr()))
    }

    /// A Redis without TLS takes a greeting for the beginning of a command, and waits for the rest.
    fn silent(&self, limit: Duration) -> Contact {
        let question = if self.access.is_tls() { "; does it speak TLS there, as redis.url says?" } else { "" };
        self.unreachable(&format!("no answer within {limit:?}{question}"))
    }

    fn contact_after(&self, error: &RedisError) -> Contact {
        let contact = self.unreachable(error);
        let problem = contact.problem().unwrap_or_default();
        if let Some(advice) = tls::advice("redis", problem) {
            return Contact::Refused(format!("{problem}; {advice}"));
        }
        // What Redis says of it inside a script; a command that was renamed away looks the same.
        if problem.contains("Unknown Redis command") {
            return Contact::Refused(format!(
                "{problem}; hookgate needs Redis 6.2 or newer, with every command under its own name"
            ));
        }
        let refused = || Contact::Refused(problem.to_owned());
        let login_refused = || {
            Contact::Refused(format!(
                "{problem}; check redis.username and redis.password_file, or the login in redis.url, and what this user may do (k8s/privileges/redis.acl)"
            ))
        };
        // What the client library leaves of NOAUTH when it chooses the database.
        let wants_login = error.detail().is_some_and(|detail| detail.starts_with("Authentication required"));
        // And of NOPERM there.
        let may_not = problem.contains("no permissions to run");
        match error.kind() {
            ErrorKind::AuthenticationFailed | ErrorKind::Server(ServerErrorKind::NoPerm) => login_refused(),
            ErrorKind::InvalidClientConfig => refused(),
            _ if wants_login || may_not || matches!(error.code(), Some("NOAUTH" | "WRONGPASS" | "NOPERM")) => {
                login_refused()
            }
            _ if matches!(error.code(), Some("ERR" | "WRONGTYPE")) => refused(),
            _ => contact,
        }
    }
}

/// Whether Redis refused because it takes no writes now, which passes: no memory left under `maxmemory` (it still
/// deletes), a failed snapshot, or too few replicas (it does not). READONLY is none of these: another connection may
/// find the primary. Inside a script, Redis 6.2 has the words further behind. ADDRESSES is what `claim.lua` and
/// `register.lua` say where the route has no number to claim under.
pub(super) fn takes_no_writes(error: &RedisError) -> bool {
    matches!(error.code(), Some("OOM" | "MISCONF" | "NOREPLICAS" | "ADDRESSES"))
        || error.detail().is_some_and(|detail| {
            ["OOM command not allowed", "MISCONF Redis", "NOREPLICAS Not"].iter().any(|words| detail.contains(words))
        })
}

fn no_writes(refusal: impl Display) -> Contact {
    Contact::NoWrites(format!(
        "{refusal}; Redis is there and refuses claims until that is over; the outbox is published meanwhile"
    ))
}

/// Whether another connection may do better: this one is broken, or what is behind it is not, or no longer,
/// a Redis that takes writes from us.
pub(super) fn wants_another_connection(error: &RedisError) -> bool {
    error.is_io_error()
        || error.is_unrecoverable_error()
        || matches!(error.code(), Some("READONLY" | "LOADING" | "MASTERDOWN" | "NOAUTH" | "WRONGPASS" | "NOPERM"))
}
