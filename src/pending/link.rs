//! One connection to Redis. A caller waits for it only while it is made for the first time or is just being replaced,
//! inside `redis.timeout`; where Redis is known to be down, the call fails at once.
//!
//! A task makes the connection, asks it once a second whether it lives, and replaces it when a caller reports
//! a failure. After the first time-out all callers fail fast, until a fresh connection has run the claim script. The
//! client library's own manager was not enough: it can keep a connection that no longer works (after a demotion, a
//! changed password, a silent network), and makes callers wait.

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    time::Duration,
};

use futures_util::future::BoxFuture;
use redis::{AsyncConnectionConfig, ConnectionAddr, RedisError, aio::MultiplexedConnection};
use tokio::{
    io::AsyncReadExt,
    net::TcpStream,
    sync::{Notify, watch},
};

use super::{
    access::{Access, AccessError},
    diagnosis::{Asked, no_writes, takes_no_writes, words},
};
use crate::{
    readiness::{Contact, Reporter},
    supervision::supervise,
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
            asked: Asked::new(access.info(), access.is_tls()),
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
            self.report.set(no_writes(words(error)));
        }
    }

    /// A call on this connection failed: replace it.
    pub(super) fn report_trouble(&self, failed: &Current) {
        self.trouble.epoch.fetch_max(failed.epoch, Ordering::SeqCst);
        self.trouble.news.notify_one();
    }
}

struct Keeper {
    access: Access,
    asked: Asked,
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
        // After a panic the last connection may still be there without its keeper; or there is none, and that was not
        // reported.
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
            // A connection on which only a call failed is replaced at once; Redis may be well.
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
            AccessError::Client(error) => self.asked.diagnose(&error),
        })?;
        let attempt = async {
            let connection = client.get_multiplexed_async_connection_with_config(&config).await?;
            let refusal = (self.check)(connection.clone()).await?;
            Ok::<_, RedisError>((connection, refusal))
        };
        // Connecting, logging in and the check each have the time-out; together they get twice of it.
        match tokio::time::timeout(self.timeout * 2, attempt).await {
            Ok(Ok(proven)) => Ok(proven),
            Ok(Err(error)) if error.is_timeout() => Err(self.asked.silent(self.timeout)),
            // As a port does where TLS is spoken; or Redis is just leaving.
            Ok(Err(error))
                if error.is_connection_dropped() && !error.is_connection_refusal() && !self.access.is_tls() =>
            {
                Err(self.hung_up().await)
            }
            Ok(Err(error)) => Err(self.asked.diagnose(&error)),
            Err(_elapsed) => Err(self.asked.silent(self.timeout * 2)),
        }
    }

    /// Watches a connection until it fails or a caller reports it; then says how Redis is, if that is known.
    async fn watch(&self, connection: MultiplexedConnection, epoch: u64) -> Option<Contact> {
        loop {
            tokio::select! {
                // Nobody uses it any more.
                () = self.current.closed() => return None,
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
                self.report.set(no_writes(words(&error)));
                Ok(())
            }
            Ok(Err(error)) if error.is_io_error() && !error.is_timeout() => Err(None),
            Ok(Err(error)) => Err(Some(self.asked.diagnose(&error))),
            Err(_elapsed) => Err(Some(self.asked.silent(self.timeout))),
        }
    }

    /// Asks a Redis that took no writes again for everything that a new connection has to be able to do.
    async fn look_for_writes(&self, connection: MultiplexedConnection) -> Result<(), Option<Contact>> {
        match tokio::time::timeout(self.timeout, (self.check)(connection)).await {
            Ok(Ok(Some(_still))) => {
                self.report.remind();
                Ok(())
            }
            Ok(Ok(None)) => {
                self.report.set(Contact::Up);
                Ok(())
            }
            Ok(Err(error)) if error.is_io_error() && !error.is_timeout() => Err(None),
            Ok(Err(error)) => Err(Some(self.asked.diagnose(&error))),
            Err(_elapsed) => Err(Some(self.asked.silent(self.timeout))),
        }
    }

    /// Redis hung up. Where it says why before that, the client library loses the words, since its own write fails.
    async fn hung_up(&self) -> Contact {
        let turned_away = self.words_of_farewell().await.and_then(|said| self.asked.turned_away(&said));
        turned_away.unwrap_or_else(|| self.asked.hung_up())
    }

    /// What is said to a connection that asks for nothing.
    async fn words_of_farewell(&self) -> Option<String> {
        let ConnectionAddr::Tcp(host, port) = self.access.info().addr() else { return None };
        let listen = async {
            let mut stream = TcpStream::connect((host.as_str(), *port)).await.ok()?;
            let mut said = [0; 256];
            let length = stream.read(&mut said).await.ok()?;
            Some(String::from_utf8_lossy(&said[..length]).into_owned())
        };
        tokio::time::timeout(self.timeout / 2, listen).await.ok().flatten()
    }
}
