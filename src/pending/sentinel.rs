//! Which server is the primary, as sentinels say.
//!
//! All of them are asked at once, and the answer of the newest failover counts once a majority has answered: a sentinel that was cut
//! off still names the old primary. Where no majority answers, what the others say is taken. It may be wrong: a hookgate that is cut
//! off together with a minority of the sentinels does not hear of a failover that the majority made.

use std::{
    collections::HashMap,
    time::{Duration, Instant},
};

use futures_util::{StreamExt, stream::FuturesUnordered};
use redis::{AsyncConnectionConfig, ErrorKind, RedisError, aio::MultiplexedConnection};
use tokio::sync::Mutex;

use super::{
    access::{Access, AccessError, Node},
    diagnosis::{unknown_host, words},
};
use crate::{readiness::Contact, tls};

/// How long the others may take once a majority has answered.
const LATECOMERS: Duration = Duration::from_millis(50);

/// The sentinels of a primary.
#[derive(Debug)]
pub(super) struct Sentinels {
    login: Access,
    nodes: Vec<Node>,
    service: String,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    connections: HashMap<Node, MultiplexedConnection>,
    /// What came of the last round, and when.
    answer: Option<(Instant, Result<Node, Contact>)>,
}

impl std::fmt::Debug for State {
    fn fmt(&self, out: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        out.debug_tuple("State").field(&self.answer).finish()
    }
}

/// What a sentinel says: the primary, and the number of the failover that made it one.
type Said = (u64, Node);

impl Sentinels {
    pub(super) fn new(login: Access, nodes: Vec<Node>, service: String) -> Self {
        Self { login, nodes, service, state: Mutex::default() }
    }

    pub(super) fn service(&self) -> &str {
        &self.service
    }

    pub(super) fn nodes(&self) -> &[Node] {
        &self.nodes
    }

    /// Returns the primary. An answer up to `age` old is reused, and so is a failure: else connections would wait for silent
    /// sentinels one after the other.
    pub(super) async fn primary(&self, timeout: Duration, age: Duration) -> Result<Node, Contact> {
        let mut state = self.state.lock().await;
        if let Some((at, answer)) = &state.answer
            && at.elapsed() < age
        {
            return answer.clone();
        }
        let answer = self.ask_all(&mut state.connections, timeout).await;
        state.answer = Some((Instant::now(), answer.clone()));
        answer
    }

    /// Asks all at once.
    async fn ask_all(
        &self,
        connections: &mut HashMap<Node, MultiplexedConnection>,
        timeout: Duration,
    ) -> Result<Node, Contact> {
        let mut asking: FuturesUnordered<_> = self
            .nodes
            .iter()
            .map(|sentinel| {
                let open = connections.get(sentinel).cloned();
                async move {
                    let answer = tokio::time::timeout(timeout, self.ask(sentinel, open, timeout)).await;
                    (sentinel, answer.unwrap_or_else(|_elapsed| Err(self.silent(sentinel, timeout))))
                }
            })
            .collect();
        let majority = self.nodes.len() / 2 + 1;
        let (mut said, mut unknown, mut problem) = (Vec::<Said>::new(), false, None::<Contact>);
        let mut answers = Vec::new();
        loop {
            let next = if said.len() >= majority {
                tokio::time::timeout(LATECOMERS, asking.next()).await.unwrap_or(None)
            } else {
                asking.next().await
            };
            let Some((sentinel, answer)) = next else { break };
            match answer {
                Ok((connection, answer)) => {
                    answers.push((sentinel, Some(connection)));
                    unknown |= answer.is_none();
                    said.extend(answer);
                }
                Err(contact) => {
                    answers.push((sentinel, None));
                    if !matches!(problem, Some(Contact::Refused(_))) {
                        problem = Some(contact);
                    }
                }
            }
        }
        drop(asking);
        // One that is silent gets a new connection: questions would pile up on the old one.
        *connections = answers.into_iter().filter_map(|(sentinel, open)| Some((sentinel.clone(), open?))).collect();
        // Two that name one server in two ways don't take turns.
        if let Some((_, node)) = said.into_iter().max() {
            return Ok(node);
        }
        if unknown {
            let service = &self.service;
            return Err(Contact::Refused(format!(
                "no sentinel of redis.url knows a primary named {service:?}; check the service in redis.url, and sentinel monitor"
            )));
        }
        Err(problem.unwrap_or_else(|| Contact::Unreachable("redis.url names no sentinel".to_owned())))
    }

    /// Asks one, over an open connection if there is one; nothing if it does not know the service.
    async fn ask(
        &self,
        sentinel: &Node,
        open: Option<MultiplexedConnection>,
        timeout: Duration,
    ) -> Result<(MultiplexedConnection, Option<Said>), Contact> {
        if let Some(connection) = open
            && let Ok(answer) = self.ask_over(sentinel, connection).await
        {
            return Ok(answer);
        }
        let client = self.login.at(sentinel).client().map_err(|error| match error {
            AccessError::File(error) => Contact::Refused(format!("redis.{error}")),
            AccessError::Client(error) => self.diagnose(sentinel, &error, timeout),
        })?;
        let config =
            AsyncConnectionConfig::new().set_connection_timeout(Some(timeout)).set_response_timeout(Some(timeout));
        let connection = client.get_multiplexed_async_connection_with_config(&config).await;
        let connection = connection.map_err(|error| self.diagnose(sentinel, &error, timeout))?;
        self.ask_over(sentinel, connection).await.map_err(|error| self.diagnose(sentinel, &error, timeout))
    }

    async fn ask_over(
        &self,
        sentinel: &Node,
        mut connection: MultiplexedConnection,
    ) -> Result<(MultiplexedConnection, Option<Said>), RedisError> {
        let mut address = redis::cmd("SENTINEL");
        address.arg("GET-MASTER-ADDR-BY-NAME").arg(&self.service);
        let address: Option<(String, u16)> = address.query_async(&mut connection).await?;
        let Some((host, port)) = address else { return Ok((connection, None)) };
        let mut master = redis::cmd("SENTINEL");
        master.arg("MASTER").arg(&self.service);
        let fields: HashMap<String, String> = master.query_async(&mut connection).await?;
        let epoch = fields.get("config-epoch").and_then(|epoch| epoch.parse().ok()).unwrap_or(0);
        let host = if host.is_empty() { sentinel.host.clone() } else { host };
        Ok((connection, Some((epoch, Node { host, port }))))
    }

    /// The primary's Redis replicas, as the first sentinel that answers knows them, with what it says of each.
    pub(super) async fn replicas(&self, timeout: Duration) -> Option<Vec<HashMap<String, String>>> {
        for sentinel in &self.nodes {
            let ask = async {
                let client = self.login.at(sentinel).client().ok()?;
                let mut connection = client.get_multiplexed_async_connection().await.ok()?;
                redis::cmd("SENTINEL").arg("REPLICAS").arg(&self.service).query_async(&mut connection).await.ok()
            };
            if let Ok(Some(replicas)) = tokio::time::timeout(timeout, ask).await {
                return Some(replicas);
            }
        }
        None
    }

    /// What the error of a sentinel means.
    fn diagnose(&self, sentinel: &Node, error: &RedisError, limit: Duration) -> Contact {
        let said = words(error);
        if let Some(advice) = tls::advice("redis", &said) {
            return Contact::Refused(format!("sentinel {sentinel}: {said}; {advice}"));
        }
        if error.is_connection_refusal() {
            return Contact::Unreachable(format!(
                "nothing listens on {sentinel}; is a sentinel running there? (redis.url)"
            ));
        }
        if let Some(why) = unknown_host(&said) {
            return Contact::Unreachable(format!(
                "no address is known of the host in {sentinel} ({why}); check redis.url and the DNS"
            ));
        }
        if error.is_timeout() {
            return self.silent(sentinel, limit);
        }
        if error.is_connection_dropped() && !self.login.is_tls() {
            return Contact::Unreachable(format!(
                "sentinel {sentinel} closes connections without an answer; does it want TLS (rediss+sentinel:// in redis.url)?"
            ));
        }
        if error.code() == Some("NOAUTH") || said.contains("Authentication required") {
            return Contact::Refused(format!(
                "sentinel {sentinel} requires a password: set redis.sentinel_password_file (and redis.sentinel_username for an ACL user)"
            ));
        }
        if error.kind() == ErrorKind::AuthenticationFailed || error.code() == Some("WRONGPASS") {
            return Contact::Refused(format!(
                "sentinel {sentinel} does not take this login: check redis.sentinel_username and redis.sentinel_password_file; a sentinel that has no password wants none"
            ));
        }
        if error.code() == Some("NOPERM") || said.contains("no permissions to") {
            return Contact::Refused(format!(
                "sentinel {sentinel} denies a permission ({said}): grant +sentinel|get-master-addr-by-name and +sentinel|master"
            ));
        }
        if said.contains("unknown command") {
            return Contact::Refused(format!(
                "what answers on {sentinel} is a Redis and no sentinel; check the ports in redis.url (sentinels mostly listen on 26379)"
            ));
        }
        Contact::Unreachable(format!("sentinel {sentinel}: {said}"))
    }

    /// No answer in time.
    fn silent(&self, sentinel: &Node, limit: Duration) -> Contact {
        let question = if self.login.is_tls() {
            "does it speak TLS there, as redis.url says?"
        } else {
            "does a sentinel listen there, and does it respond?"
        };
        Contact::Unreachable(format!("no answer from sentinel {sentinel} within {limit:?}; {question}"))
    }
}

#[cfg(test)]
mod tests {
    use std::io;

    use futures_util::future::join_all;
    use redis::IntoConnectionInfo;
    use tokio::net::TcpListener;

    use super::*;

    /// One at a port, which nobody logs in to.
    fn sentinel(port: u16) -> Sentinels {
        let login = "redis://127.0.0.1:1".into_connection_info().expect("it is an address");
        let nodes = vec![Node { host: "127.0.0.1".to_owned(), port }];
        Sentinels::new(Access::plain(login), nodes, "main".to_owned())
    }

    #[tokio::test]
    async fn who_waits_for_sentinels_that_are_silent_takes_the_failure_of_the_others() {
        let silent = TcpListener::bind("127.0.0.1:0").await.expect("there is a free port");
        let sentinels = sentinel(silent.local_addr().expect("it is bound").port());
        let mut open = Vec::new();
        for (age, expected) in [(Duration::from_secs(60), 1), (Duration::from_secs(60), 1), (Duration::ZERO, 2)] {
            let times = if age == Duration::ZERO { 1 } else { 5 };
            let asking = join_all((0..times).map(|_| sentinels.primary(Duration::from_millis(100), age)));
            let answers = tokio::select! {
                answers = asking => answers,
                () = async { loop { open.push(silent.accept().await) } } => unreachable!("it never ends"),
            };
            assert!(answers.iter().all(|answer| matches!(answer, Err(Contact::Unreachable(_)))), "{answers:?}");
            assert_eq!(open.len(), expected, "connections");
        }
    }

    #[test]
    fn each_error_of_a_sentinel_says_what_is_wrong_and_what_to_do() {
        let answer = |line: &str| {
            let read =
                redis::parse_redis_value(format!("-{line}\r\n").as_bytes()).and_then(redis::Value::extract_error);
            read.expect_err("it is an error")
        };
        let failed = |kind, text: &str| RedisError::from(io::Error::new(kind, text.to_owned()));
        let cases = [
            (
                failed(io::ErrorKind::ConnectionRefused, "Connection refused (os error 111)"),
                "unreachable",
                "nothing listens on 127.0.0.1:26379; is a sentinel running there? (redis.url)",
            ),
            (
                failed(io::ErrorKind::Other, "failed to lookup address information: Name or service not known"),
                "unreachable",
                "no address is known of the host in 127.0.0.1:26379 (Name or service not known); check redis.url and the DNS",
            ),
            (
                failed(io::ErrorKind::TimedOut, "timed out"),
                "unreachable",
                "no answer from sentinel 127.0.0.1:26379 within 500ms; does a sentinel listen there, and does it respond?",
            ),
            (
                failed(io::ErrorKind::ConnectionReset, "Connection reset by peer (os error 104)"),
                "unreachable",
                "sentinel 127.0.0.1:26379 closes connections without an answer; does it want TLS (rediss+sentinel:// in redis.url)?",
            ),
            (
                failed(io::ErrorKind::InvalidData, "received corrupt message of type InvalidContentType"),
                "refused",
                "sentinel 127.0.0.1:26379: received corrupt message of type InvalidContentType; what answers there speaks no TLS; check scheme and port of redis.url",
            ),
            (
                answer("NOAUTH Authentication required."),
                "refused",
                "sentinel 127.0.0.1:26379 requires a password: set redis.sentinel_password_file (and redis.sentinel_username for an ACL user)",
            ),
            (
                answer("WRONGPASS invalid username-password pair or user is disabled."),
                "refused",
                "sentinel 127.0.0.1:26379 does not take this login: check redis.sentinel_username and redis.sentinel_password_file; a sentinel that has no password wants none",
            ),
            (
                answer("NOPERM User weak has no permissions to run the 'sentinel|master' command"),
                "refused",
                "sentinel 127.0.0.1:26379 denies a permission (NOPERM User weak has no permissions to run the 'sentinel|master' command): grant +sentinel|get-master-addr-by-name and +sentinel|master",
            ),
            (
                answer("ERR unknown command 'SENTINEL', with args beginning with: 'GET-MASTER-ADDR-BY-NAME' 'main' "),
                "refused",
                "what answers on 127.0.0.1:26379 is a Redis and no sentinel; check the ports in redis.url (sentinels mostly listen on 26379)",
            ),
        ];
        let sentinels = sentinel(26379);
        for (error, state, expected) in cases {
            let contact = sentinels.diagnose(&sentinels.nodes[0], &error, Duration::from_millis(500));
            assert_eq!((contact.code(), contact.problem()), (state, Some(expected)), "{error:?}");
        }
    }
}
