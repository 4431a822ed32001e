//! One connection to Redis. A caller waits for it only while it is made for the first time or is just being replaced,
//! inside `redis.timeout`; where Redis is known to be down, the call fails at once.
//!
//! A task makes the connection, asks it once a second whether it lives, and replaces it when a caller reports
//! a failure. After the first time-out all callers fail fast, until a fresh connection has run the claim script. The
//! client library's own manager was not enough: it can keep a connection that no longer works (after a demotion, a
//! changed password, a silent network), and makes callers wait.
//!
//! Where sentinels or a cluster know the server, each connection looks for it again.

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    time::Duration,
};

use futures_util::future::BoxFuture;
use redis::{AsyncConnectionConfig, ErrorKind, RedisError, ServerErrorKind};
use tokio::{
    io::AsyncReadExt,
    net::TcpStream,
    sync::{Mutex, Notify, watch},
};

use super::{
    access::{Access, AccessError, Found, Node},
    cluster::Nodes,
    connection::{Connection, Moving},
    diagnosis::{Asked, is_elsewhere, no_writes, takes_no_writes, words},
};
use crate::{
    readiness::{Contact, Reporter},
    supervision::supervise,
};

/// Interval of checking that an idle connection still works.
const PROBE_EVERY: Duration = Duration::from_secs(1);
/// Pause between two attempts to connect.
const RECONNECT_PAUSE: Duration = Duration::from_millis(200);
/// How old the answer of a sentinel may be for a new connection; several connect at once.
const FRESH: Duration = Duration::from_millis(100);
/// Nodes tried for each candidate: itself, then those that MOVED names.
const MAX_NODES_PER_CANDIDATE: usize = 4;

/// A connection, and which one it is.
#[derive(Clone)]
pub(super) struct Current {
    pub(super) connection: Connection,
    epoch: u64,
}

/// The present connection, for its users.
pub(super) struct Link {
    current: watch::Receiver<Option<Current>>,
    /// Whether the first attempt to connect has ended; until then nothing is known of Redis.
    tried: Arc<AtomicBool>,
    trouble: Arc<ReportedTrouble>,
    report: Reporter,
}

/// The newest connection that a caller reported as not working.
#[derive(Default)]
struct ReportedTrouble {
    epoch: AtomicU64,
    news: Notify,
}

/// Checks on a new connection that Redis allows what hookgate needs; an error if it does not. Returns why Redis takes
/// no writes now, `None` if it takes them.
pub(super) type ConnectionCheck =
    Arc<dyn Fn(Connection) -> BoxFuture<'static, Result<Option<String>, RedisError>> + Send + Sync>;

impl Link {
    /// Returns the link, and the task that makes its connections, to be spawned by the owner. In a cluster `check` has
    /// to ask for a key: the key decides which node the connection is to.
    pub(super) fn new(
        access: Access,
        timeout: Duration,
        check: ConnectionCheck,
        report: Reporter,
    ) -> (Self, impl Future<Output = ()> + Send) {
        let (sender, current) = watch::channel(None);
        let trouble = Arc::<ReportedTrouble>::default();
        let tried = Arc::<AtomicBool>::default();
        let task = ConnectionTask {
            asked: Asked::new(&access),
            last: Mutex::default(),
            access,
            timeout,
            check,
            current: sender,
            tried: Arc::clone(&tried),
            trouble: Arc::clone(&trouble),
            report: report.clone(),
        };
        let run = async move {
            let mut epoch = 0;
            supervise!("the connection to Redis", task.run(&mut epoch));
        };
        (Self { current, tried, trouble, report }, run)
    }

    /// The connection, if there is one.
    pub(super) fn current(&self) -> Option<Current> {
        self.current.borrow().clone()
    }

    /// Returns the connection, or waits for the one that is about to replace it. `None`, at once, if Redis is known to be down.
    /// At the start it waits for the first attempt: an ingress that ignores readiness sends requests as soon as somebody
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

    /// Waits for a newer connection than this one.
    pub(super) async fn connected_after(&self, failed: &Current) -> Option<Current> {
        let another = |current: &Option<Current>| current.as_ref().is_some_and(|current| current.epoch > failed.epoch);
        self.current.clone().wait_for(another).await.ok().and_then(|current| current.clone())
    }

    /// Why there is no connection.
    pub(super) fn problem(&self) -> String {
        self.report.subscribe().borrow().problem().unwrap_or("the connection is being replaced").to_owned()
    }

    pub(super) fn contact(&self) -> watch::Receiver<Contact> {
        self.report.subscribe()
    }

    /// Reports that Redis refused a write which it will take later. The connection is good; its task asks again until
    /// writes pass.
    pub(super) fn report_no_writes(&self, error: &RedisError) {
        if *self.report.subscribe().borrow() == Contact::Up {
            self.report.set(no_writes(words(error)));
        }
    }

    /// Reports that a call on this connection failed: its task replaces it.
    pub(super) fn report_trouble(&self, failed: &Current) {
        self.trouble.epoch.fetch_max(failed.epoch, Ordering::SeqCst);
        self.trouble.news.notify_one();
    }
}

/// Makes, watches and replaces the connection of a [`Link`].
struct ConnectionTask {
    access: Access,
    asked: Asked,
    timeout: Duration,
    check: ConnectionCheck,
    current: watch::Sender<Option<Current>>,
    tried: Arc<AtomicBool>,
    trouble: Arc<ReportedTrouble>,
    report: Reporter,
    /// The node of a cluster that was connected last, and is asked last after it failed.
    last: Mutex<Option<Node>>,
}

/// Why an attempt to connect failed.
enum ConnectFailure {
    /// The node of the cluster that has the key, and the key's slot.
    Moved(Node, u16),
    /// The server can't be used, as this says.
    Contact(Contact),
}

/// A connection whose check passed, its server, and why that server takes no writes now (`None`: it takes them).
type Proven = (Connection, Node, Option<String>);

impl ConnectionTask {
    /// `epoch` counts connections.
    async fn run(&self, epoch: &mut u64) {
        // After a panic the last connection may still be there without its task; or there is none, and that was not
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
                Ok((connection, node, refusal)) => {
                    self.current.send_replace(Some(Current { connection: connection.clone(), epoch }));
                    self.report.set(refusal.map_or(Contact::Up, no_writes));
                    let ended = self.watch(connection, &node, epoch).await;
                    self.current.send_replace(None);
                    ended
                }
                Err(contact) => Some(contact),
            };
            // A connection on which only a call failed is replaced at once; Redis may be well.
            if let Some(contact) = contact {
                // Before the report, which wakes those who wait for either.
                self.tried.store(true, Ordering::SeqCst);
                self.report.set(contact);
                tokio::time::sleep(RECONNECT_PAUSE).await;
            }
        }
    }

    /// A connection to the server that takes the writes.
    async fn connect(&self) -> Result<Proven, Contact> {
        let node = match self.access.found() {
            Found::Here => self.access.node().unwrap_or_else(|| Node { host: String::new(), port: 0 }),
            Found::By(sentinels) => sentinels.primary(self.timeout, FRESH).await?,
            Found::In(nodes) => return self.connect_in_cluster(nodes).await,
        };
        self.connect_to(&node).await.map_err(|failure| match failure {
            ConnectFailure::Contact(contact) => contact,
            ConnectFailure::Moved(to, _slot) => self.asked.at(&node).is_in_a_cluster(Some(&to)),
        })
    }

    /// A connection to the node that has the key which is asked for.
    async fn connect_in_cluster(&self, nodes: &Nodes) -> Result<Proven, Contact> {
        let mut last = self.last.lock().await;
        let mut candidates = nodes.all();
        candidates.sort_by_key(|node| last.as_ref() == Some(node));
        let (mut asked, mut problem, mut moved) = (Vec::<Node>::new(), None, None);
        for candidate in candidates {
            let mut next = Some(candidate);
            for _ in 0..MAX_NODES_PER_CANDIDATE {
                // One that did not answer is not waited for twice.
                let Some(node) = next.take().filter(|node| !asked.contains(node)) else { break };
                asked.push(node.clone());
                let connected = self.connect_to(&node).await;
                nodes.record(&node, matches!(connected, Err(ConnectFailure::Contact(_))));
                match connected {
                    Ok((mut connection, node, refusal)) => {
                        let learned = tokio::time::timeout(self.timeout, nodes.learn(&mut connection, &node)).await;
                        match learned {
                            Ok(Ok(())) => {}
                            Ok(Err(error)) => return Err(self.asked.at(&node).diagnose(&error)),
                            Err(_elapsed) => return Err(self.asked.at(&node).silent(self.timeout)),
                        }
                        *last = Some(node.clone());
                        return Ok((connection, node, refusal));
                    }
                    Err(ConnectFailure::Moved(to, slot)) => {
                        // It may have been asked by way of another node, before it had the key.
                        next = Some(to);
                        moved = Some(slot);
                    }
                    Err(ConnectFailure::Contact(contact)) => {
                        let already_refused = matches!(problem, Some(Contact::Refused(_)));
                        if !already_refused {
                            problem = Some(contact);
                        }
                    }
                }
            }
        }
        *last = None;
        Err(problem.unwrap_or_else(|| Contact::Unreachable(without_owner(moved, &asked))))
    }

    /// A connection to one server.
    async fn connect_to(&self, node: &Node) -> Result<Proven, ConnectFailure> {
        let config = AsyncConnectionConfig::new()
            .set_connection_timeout(Some(self.timeout))
            .set_response_timeout(Some(self.timeout));
        let (access, asked) = match self.access.found() {
            Found::Here => (self.access.clone(), self.asked.clone()),
            Found::By(_) | Found::In(_) => (self.access.at(node), self.asked.at(node)),
        };
        let client = access.client().map_err(|error| {
            ConnectFailure::Contact(match error {
                AccessError::File(error) => Contact::Refused(format!("redis.{error}")),
                AccessError::Client(error) => asked.diagnose(&error),
            })
        })?;
        let moving = matches!(self.access.found(), Found::In(_)).then(|| {
            let (access, timeout) = (self.access.clone(), self.timeout);
            Arc::new(Moving { access, asked: node.clone(), timeout, open: Mutex::default() })
        });
        let attempt = async {
            let connection = client.get_multiplexed_async_connection_with_config(&config).await?;
            let connection = Connection::new(connection, moving);
            let refusal = (self.check)(connection.clone()).await?;
            Ok::<_, RedisError>((connection, node.clone(), refusal))
        };
        // Connecting, logging in and the check each have the time-out; together they get twice of it.
        let contact = match tokio::time::timeout(self.timeout * 2, attempt).await {
            Ok(Ok(proven)) => return Ok(proven),
            Ok(Err(error)) if error.is_timeout() => asked.silent(self.timeout),
            // A TLS port hangs up like this; so does a Redis that shuts down.
            Ok(Err(error)) if error.is_connection_dropped() && !error.is_connection_refusal() && !access.is_tls() => {
                self.hung_up(&asked, node).await
            }
            Ok(Err(error)) if error.kind() == ErrorKind::Server(ServerErrorKind::Moved) => {
                let to = error.redirect_node().and_then(|(to, slot)| Some((Node::told(to, &node.host)?, slot)));
                let moved = to.map(|(to, slot)| ConnectFailure::Moved(to, slot));
                return Err(moved.unwrap_or_else(|| ConnectFailure::Contact(asked.diagnose(&error))));
            }
            Ok(Err(error)) => asked.diagnose(&error),
            Err(_elapsed) => asked.silent(self.timeout * 2),
        };
        Err(ConnectFailure::Contact(contact))
    }

    /// Watches a connection until it fails or a caller reports it. Returns how Redis is then, if that is known.
    async fn watch(&self, connection: Connection, node: &Node, epoch: u64) -> Option<Contact> {
        let asked = match self.access.found() {
            Found::Here => self.asked.clone(),
            Found::By(_) | Found::In(_) => self.asked.at(node),
        };
        loop {
            tokio::select! {
                // Nobody uses it any more.
                () = self.current.closed() => return None,
                () = self.trouble.news.notified() => {
                    if self.trouble.epoch.load(Ordering::SeqCst) >= epoch {
                        return None;
                    }
                }
                alive = self.probe(connection.clone(), node, &asked) => {
                    if let Err(contact) = alive {
                        return contact;
                    }
                }
            }
        }
    }

    /// After a while, asks a connection whether it lives. If it was cut, only the next one can tell how
    /// Redis is.
    async fn probe(&self, mut connection: Connection, node: &Node, asked: &Asked) -> Result<(), Option<Contact>> {
        tokio::time::sleep(PROBE_EVERY).await;
        if let Found::By(sentinels) = self.access.found()
            // Sentinels that say nothing are no reason to leave a primary that answers.
            && let Ok(primary) = sentinels.primary(self.timeout, PROBE_EVERY / 2).await
            && primary != *node
        {
            return Err(None);
        }
        if matches!(&*self.report.subscribe().borrow(), Contact::NoWrites(_)) {
            return self.look_for_writes(connection, asked).await;
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
            Ok(Err(error)) => Err(Some(asked.diagnose(&error))),
            Err(_elapsed) => Err(Some(asked.silent(self.timeout))),
        }
    }

    /// Asks a Redis that took no writes again for everything that a new connection has to be able to do.
    async fn look_for_writes(&self, connection: Connection, asked: &Asked) -> Result<(), Option<Contact>> {
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
            // The slot that moved has arrived.
            Ok(Err(error)) if is_elsewhere(&error) => Err(None),
            Ok(Err(error)) => Err(Some(asked.diagnose(&error))),
            Err(_elapsed) => Err(Some(asked.silent(self.timeout))),
        }
    }

    /// Finds out why Redis hung up. It may say so first, but the client library loses that text: its own write fails.
    async fn hung_up(&self, asked: &Asked, node: &Node) -> Contact {
        let turned_away = self.read_closing_error(node).await.and_then(|said| asked.turned_away(&said));
        turned_away.unwrap_or_else(|| asked.hung_up())
    }

    /// Returns what Redis writes to a connection that sends nothing, before it closes it.
    async fn read_closing_error(&self, Node { host, port }: &Node) -> Option<String> {
        let listen = async {
            let mut stream = TcpStream::connect((host.as_str(), *port)).await.ok()?;
            let mut said = [0; 256];
            let length = stream.read(&mut said).await.ok()?;
            Some(String::from_utf8_lossy(&said[..length]).into_owned())
        };
        tokio::time::timeout(self.timeout / 2, listen).await.ok().flatten()
    }
}

/// Each node that was asked for a slot names another one, and none has it.
fn without_owner(slot: Option<u16>, asked: &[Node]) -> String {
    let slot = slot.map_or_else(|| "the key".to_owned(), |slot| format!("slot {slot}"));
    let asked: Vec<_> = asked.iter().map(ToString::to_string).collect();
    let asked = asked.join(", ");
    format!(
        "the nodes of the cluster do not agree on who has {slot}: each of {asked} names another one; if it lasts, run redis-cli --cluster check"
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nodes_that_do_not_agree_are_named() {
        let nodes = [6379, 6380].map(|port| Node { host: "redis.test".to_owned(), port });
        assert_eq!(
            without_owner(Some(12_182), &nodes),
            "the nodes of the cluster do not agree on who has slot 12182: each of redis.test:6379, redis.test:6380 names another one; if it lasts, run redis-cli --cluster check"
        );
    }
}
