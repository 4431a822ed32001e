//! What an error of Redis means to an operator: how Redis is, what is wrong, and what to do. Only here are the words of
//! Redis and its client library read.

use std::{fmt::Display, time::Duration};

use redis::{ErrorKind, RedisError, ServerErrorKind};

use super::access::{Access, Found, Node};
use crate::{delivery::StoreError, readiness::Contact, tls};

/// All rights that hookgate needs.
const RIGHTS: &str = "k8s/privileges/redis.acl has all that hookgate needs";

/// Commands that only some settings need, each with what to do where it is denied. Redis names it in quotation marks.
const RIGHTS_OF_SETTINGS: [(&str, &str); 4] = [
    ("'wait'", "grant +wait, which redis.durability = \"replica\" needs"),
    ("'waitaof'", "grant +waitaof, which redis.durability = \"aof\" needs"),
    ("'cluster|slots'", "grant +cluster|slots, which a Redis Cluster needs"),
    ("'asking'", "grant +asking, which a Redis Cluster needs while a slot moves"),
];

/// Where and as whom Redis is asked. Holds no password.
#[derive(Debug, Clone)]
pub(super) struct Asked {
    address: String,
    tls: bool,
    /// What stands behind `redis` in the scheme of `redis.url`.
    kind: &'static str,
    username: Option<String>,
    database: i64,
    /// What finds another primary than the one that was asked.
    finder: &'static str,
}

impl Asked {
    pub(super) fn new(access: &Access) -> Self {
        let info = access.info();
        let settings = info.redis_settings();
        let username = settings.username().map(str::to_owned);
        let (kind, finder) = match access.found() {
            Found::Here => ("", "point redis.url at the primary"),
            Found::By(_) => ("+sentinel", "the sentinels are asked again"),
            Found::In(_) => ("+cluster", "the other nodes are asked"),
        };
        Self { address: info.addr().to_string(), tls: access.is_tls(), kind, username, database: settings.db(), finder }
    }

    /// The same of another server.
    pub(super) fn at(&self, node: &Node) -> Self {
        Self { address: node.to_string(), ..self.clone() }
    }

    /// What an error says of Redis, on a new connection or an old one.
    pub(super) fn diagnose(&self, error: &RedisError) -> Contact {
        let (address, said) = (&self.address, words(error));
        let refused = Contact::Refused;
        if let Some(advice) = tls::advice("redis", &said) {
            return refused(format!("{address}: {said}; {advice}"));
        }
        if error.is_connection_refusal() {
            return Contact::Unreachable(format!("nothing listens on {address}; is Redis running there? (redis.url)"));
        }
        if let Some(why) = unknown_host(&said) {
            return Contact::Unreachable(format!(
                "no address is known of the host in {address} ({why}); check redis.url and the DNS"
            ));
        }
        if error.kind() == ErrorKind::Parse {
            return Contact::Unreachable(format!(
                "what answers on {address} is not Redis; check the port in redis.url"
            ));
        }
        // The client library leaves no code where choosing the database fails.
        let detail = error.detail().unwrap_or_default();
        if error.code() == Some("DENIED") {
            return self.in_protected_mode();
        }
        if detail.contains("max number of clients") {
            return self.has_no_room();
        }
        if error.code() == Some("NOAUTH") || detail.starts_with("Authentication required") {
            return refused(format!(
                "Redis at {address} requires a password: set redis.password_file (and redis.username for an ACL user)"
            ));
        }
        if error.kind() == ErrorKind::AuthenticationFailed || error.code() == Some("WRONGPASS") {
            return refused(match &self.username {
                Some(user) => format!(
                    "Redis at {address} does not let user {user:?} in with this password: check redis.username and redis.password_file, or the login in redis.url"
                ),
                None => format!(
                    "Redis at {address} does not take this password: check redis.password_file, or the one in redis.url; a Redis that has none wants none, and an ACL user needs redis.username"
                ),
            });
        }
        if error.kind() == ErrorKind::Server(ServerErrorKind::NoPerm)
            || error.code() == Some("NOPERM")
            || said.contains("no permissions to")
        {
            let user = self.username.as_deref().unwrap_or("default");
            let of_a_setting = RIGHTS_OF_SETTINGS.iter().find(|(command, _)| said.contains(command));
            let remedy = of_a_setting.map_or_else(|| format!("grant it; {RIGHTS}"), |(_, remedy)| (*remedy).to_owned());
            return refused(format!("Redis at {address} denies user {user:?} a permission ({said}): {remedy}"));
        }
        if detail.contains("SELECT is not allowed in cluster mode") {
            return self.is_in_a_cluster(None);
        }
        if detail.contains("DB index is out of range") {
            let database = self.database;
            return refused(format!(
                "Redis at {address} has no database {database}: choose a lower one at the end of redis.url, or raise its setting databases"
            ));
        }
        // Inside a script; a command that was renamed away looks the same.
        if said.contains("Unknown Redis command") {
            return refused(format!(
                "{address}: {said}; hookgate needs Redis 6.2 or newer, with every command under its own name"
            ));
        }
        if said.contains("cluster support disabled") {
            let scheme = if self.tls { "rediss" } else { "redis" };
            return refused(format!(
                "{address} is no node of a Redis Cluster ({said}); write {scheme}:// in redis.url"
            ));
        }
        match error.code() {
            Some("READONLY") => {
                Contact::Unreachable(format!("{address} is a replica, which takes no writes; {} ({said})", self.finder))
            }
            // A slot is moving, and some keys of the call are here and some there.
            Some("TRYAGAIN") => no_writes(said),
            Some("CLUSTERDOWN") => Contact::Unreachable(format!(
                "{address}: {said}; the cluster has no primary for some slots, or this node is cut off from most others"
            )),
            Some("LOADING") => Contact::Unreachable(format!("{address} still loads its data ({said})")),
            Some("MASTERDOWN") => Contact::Unreachable(format!("{address} is a replica without its primary ({said})")),
            Some("ERR" | "WRONGTYPE") => refused(format!("{address}: {said}")),
            _ if error.kind() == ErrorKind::InvalidClientConfig => refused(format!("{address}: {said}")),
            _ => Contact::Unreachable(format!("{address}: {said}")),
        }
    }

    /// It was asked as the only server, and is not; another node has the key, if that is known.
    pub(super) fn is_in_a_cluster(&self, owner: Option<&Node>) -> Contact {
        let (address, scheme) = (&self.address, if self.tls { "rediss+cluster" } else { "redis+cluster" });
        let key = owner.map_or_else(String::new, |owner| format!(", and the key is on {owner}"));
        Contact::Refused(format!("{address} is a node of a Redis Cluster{key}; write {scheme}:// in redis.url"))
    }

    /// Redis closed a new connection and said nothing, as far as is known.
    pub(super) fn hung_up(&self) -> Contact {
        let Self { address, kind, .. } = self;
        Contact::Unreachable(format!(
            "{address} closes connections without an answer; does it want TLS (rediss{kind}:// in redis.url)?"
        ))
    }

    /// No answer in time. A Redis without TLS takes the greeting of TLS for the beginning of a command, and waits for the
    /// rest.
    pub(super) fn silent(&self, limit: Duration) -> Contact {
        let question = if self.tls {
            "does it speak TLS there, as redis.url says?"
        } else {
            "is it Redis that listens there, and does it work?"
        };
        Contact::Unreachable(format!("no answer from {} within {limit:?}; {question}", self.address))
    }

    /// What Redis says to a connection that it closes at once, if these are such words.
    pub(super) fn turned_away(&self, said: &str) -> Option<Contact> {
        if said.starts_with("-DENIED") {
            return Some(self.in_protected_mode());
        }
        said.contains("max number of clients").then(|| self.has_no_room())
    }

    fn in_protected_mode(&self) -> Contact {
        Contact::Refused(format!(
            "Redis at {} is in protected mode and refuses connections from other hosts: set a password there and redis.password_file here, or protected-mode no",
            self.address
        ))
    }

    fn has_no_room(&self) -> Contact {
        Contact::Unreachable(format!(
            "Redis at {} has as many connections as it takes: raise its maxclients, or find who holds them",
            self.address
        ))
    }
}

/// Why the name of a host has no address, if that is what an error says.
pub(super) fn unknown_host(said: &str) -> Option<&str> {
    said.contains("lookup address information").then(|| said.rsplit(": ").next().unwrap_or_default())
}

/// The error in the words of Redis, as `redis-cli` shows them.
pub(super) fn words(error: &RedisError) -> String {
    match (error.code(), error.detail()) {
        (Some(code), Some(detail)) => format!("{code} {}", detail.trim_end()),
        _ => error.to_string().trim_end().to_owned(),
    }
}

/// Whether Redis refused because it takes no writes now, which passes: no memory left under `maxmemory` (it still
/// deletes), a failed snapshot, or too few replicas (it does not); or half of a slot has moved to another node. READONLY is none of these: another connection may
/// find the primary. Inside a script, Redis 6.2 has the words further behind. ADDRESSES is what `claim.lua` and
/// `register.lua` say where the route has no number to claim under.
pub(super) fn takes_no_writes(error: &RedisError) -> bool {
    matches!(error.code(), Some("OOM" | "MISCONF" | "NOREPLICAS" | "ADDRESSES" | "TRYAGAIN"))
        || error.detail().is_some_and(|detail| {
            ["OOM command not allowed", "MISCONF Redis", "NOREPLICAS Not"].iter().any(|words| detail.contains(words))
        })
}

/// What an error means to its caller. A broken connection says nothing about whether the call was carried out.
pub(super) fn meaning(error: &RedisError) -> StoreError {
    if error.is_io_error() {
        StoreError::Unknown(error.to_string())
    } else if takes_no_writes(error) {
        StoreError::NoWrites(words(error))
    } else {
        StoreError::Refused(words(error))
    }
}

/// How Redis is while it refuses writes, with its words.
pub(super) fn no_writes(refusal: impl Display) -> Contact {
    let refusal = refusal.to_string();
    let why = if refusal.contains("TRYAGAIN") {
        "a slot is moving to another node of the cluster, and claims of its routes are refused until that is over"
    } else {
        "Redis is there and refuses claims until that is over"
    };
    Contact::NoWrites(format!("{refusal}; {why}; the outbox is published meanwhile"))
}

/// Whether another connection may do better: this one is broken, or what is behind it is not, or no longer,
/// a Redis that takes writes from us.
pub(super) fn wants_another_connection(error: &RedisError) -> bool {
    error.is_io_error()
        || error.is_unrecoverable_error()
        || is_elsewhere(error)
        || matches!(error.code(), Some("READONLY" | "LOADING" | "MASTERDOWN" | "NOAUTH" | "WRONGPASS" | "NOPERM"))
}

/// Whether a cluster carried nothing out, and another node may.
pub(super) fn is_elsewhere(error: &RedisError) -> bool {
    matches!(error.code(), Some("MOVED" | "ASK" | "CLUSTERDOWN"))
}

#[cfg(test)]
mod tests {
    use std::io;

    use redis::{Client, Value};

    use super::*;
    use crate::tls::TlsFiles;

    fn asked(url: &str) -> Asked {
        let client = Client::open(url).expect("it is an address");
        let info = client.get_connection_info().clone();
        let tls = url.starts_with("rediss:");
        Asked::new(&if tls { Access::tls(info, TlsFiles::default()) } else { Access::plain(info) })
    }

    /// As the library makes it of an answer.
    fn answer(line: &str) -> RedisError {
        redis::parse_redis_value(format!("-{line}\r\n").as_bytes())
            .and_then(Value::extract_error)
            .expect_err("it is an error")
    }

    fn io_error(kind: io::ErrorKind, text: &str) -> RedisError {
        io::Error::new(kind, text.to_owned()).into()
    }

    #[test]
    fn a_broken_connection_is_no_refusal() {
        for (error, expected) in [
            (io_error(io::ErrorKind::BrokenPipe, "broken pipe"), "the pending store did not answer: broken pipe"),
            (answer("NOPERM no"), "the pending store refused: NOPERM no"),
            (answer("OOM command not allowed"), "the pending store takes no writes now: OOM command not allowed"),
        ] {
            assert_eq!(meaning(&error).to_string(), expected);
        }
    }

    const SELECT: ErrorKind = ErrorKind::Server(ServerErrorKind::ResponseError);

    fn select(detail: &str) -> RedisError {
        (SELECT, "Redis server refused to switch database", detail.to_owned()).into()
    }

    #[test]
    fn each_error_says_what_is_wrong_and_what_to_do() {
        let plain = "redis://redis.test:6399/7";
        let user = "redis://bob:secret@redis.test:6399/7";
        let login = || RedisError::from((ErrorKind::AuthenticationFailed, "Password authentication failed"));
        let cases = [
            (
                plain,
                io_error(io::ErrorKind::ConnectionRefused, "Connection refused (os error 111)"),
                "unreachable",
                "nothing listens on redis.test:6399; is Redis running there? (redis.url)",
            ),
            (
                plain,
                io_error(io::ErrorKind::Other, "failed to lookup address information: Name or service not known"),
                "unreachable",
                "no address is known of the host in redis.test:6399 (Name or service not known); check redis.url and the DNS",
            ),
            (
                plain,
                select("Authentication required."),
                "refused",
                "Redis at redis.test:6399 requires a password: set redis.password_file (and redis.username for an ACL user)",
            ),
            (
                plain,
                answer("NOAUTH Authentication required."),
                "refused",
                "Redis at redis.test:6399 requires a password: set redis.password_file (and redis.username for an ACL user)",
            ),
            (
                plain,
                login(),
                "refused",
                "Redis at redis.test:6399 does not take this password: check redis.password_file, or the one in redis.url; a Redis that has none wants none, and an ACL user needs redis.username",
            ),
            (
                user,
                login(),
                "refused",
                "Redis at redis.test:6399 does not let user \"bob\" in with this password: check redis.username and redis.password_file, or the login in redis.url",
            ),
            (
                user,
                answer("NOPERM this user has no permissions to run the 'sadd' command"),
                "refused",
                "Redis at redis.test:6399 denies user \"bob\" a permission (NOPERM this user has no permissions to run the 'sadd' command): grant it; k8s/privileges/redis.acl has all that hookgate needs",
            ),
            (
                plain,
                select("DB index is out of range"),
                "refused",
                "Redis at redis.test:6399 has no database 7: choose a lower one at the end of redis.url, or raise its setting databases",
            ),
            (
                plain,
                answer("DENIED Redis is running in protected mode because ..."),
                "refused",
                "Redis at redis.test:6399 is in protected mode and refuses connections from other hosts: set a password there and redis.password_file here, or protected-mode no",
            ),
            (
                plain,
                answer("ERR max number of clients reached"),
                "unreachable",
                "Redis at redis.test:6399 has as many connections as it takes: raise its maxclients, or find who holds them",
            ),
            (
                plain,
                answer("READONLY You can't write against a read only replica."),
                "unreachable",
                "redis.test:6399 is a replica, which takes no writes; point redis.url at the primary (READONLY You can't write against a read only replica.)",
            ),
            (
                plain,
                answer("LOADING Redis is loading the dataset in memory"),
                "unreachable",
                "redis.test:6399 still loads its data (LOADING Redis is loading the dataset in memory)",
            ),
            (
                plain,
                answer("ERR Unknown Redis command called from script"),
                "refused",
                "redis.test:6399: ERR Unknown Redis command called from script; hookgate needs Redis 6.2 or newer, with every command under its own name",
            ),
            (
                plain,
                redis::parse_redis_value(b"INFO {}\r\n").expect_err("it is no Redis"),
                "unreachable",
                "what answers on redis.test:6399 is not Redis; check the port in redis.url",
            ),
            (
                "rediss://redis.test:6399/7",
                io_error(io::ErrorKind::InvalidData, "invalid peer certificate: UnknownIssuer"),
                "refused",
                "redis.test:6399: invalid peer certificate: UnknownIssuer; the server's certificate is of an authority that redis.ca_file does not name; check redis.ca_file",
            ),
        ];
        for (url, error, state, expected) in cases {
            let contact = asked(url).diagnose(&error);
            assert_eq!((contact.code(), contact.problem()), (state, Some(expected)), "{error:?}");
        }
    }

    #[test]
    fn errors_of_a_cluster_say_what_it_lacks() {
        for (scheme, instead) in [("redis", "redis+cluster"), ("rediss", "rediss+cluster")] {
            let asked = asked(&format!("{scheme}://redis.test:6399/7"));
            let contact = asked.diagnose(&select("SELECT is not allowed in cluster mode"));
            let expected = format!("redis.test:6399 is a node of a Redis Cluster; write {instead}:// in redis.url");
            assert_eq!((contact.code(), contact.problem()), ("refused", Some(expected.as_str())));
        }
        let asked = asked("redis://redis.test:6399");
        for (line, state, expected) in [
            (
                "ERR This instance has cluster support disabled",
                "refused",
                "redis.test:6399 is no node of a Redis Cluster (ERR This instance has cluster support disabled); write redis:// in redis.url",
            ),
            (
                "CLUSTERDOWN The cluster is down",
                "unreachable",
                "redis.test:6399: CLUSTERDOWN The cluster is down; the cluster has no primary for some slots, or this node is cut off from most others",
            ),
        ] {
            let contact = asked.diagnose(&answer(line));
            assert_eq!((contact.code(), contact.problem()), (state, Some(expected)));
        }
    }

    #[test]
    fn the_scheme_that_is_advised_fits_how_redis_is_found() {
        let info = |url: &str| Client::open(url).expect("it is an address").get_connection_info().clone();
        let plain = Access::plain(info("redis://redis.test:6399"));
        let login = info("redis://sentinel.test:26379");
        for (access, scheme) in [
            (plain.clone(), "rediss://"),
            (plain.clone().by_sentinels(&[], "main", login), "rediss+sentinel://"),
            (plain.in_cluster(&[]), "rediss+cluster://"),
        ] {
            let contact = Asked::new(&access).hung_up();
            let expected = format!(
                "redis.test:6399 closes connections without an answer; does it want TLS ({scheme} in redis.url)?"
            );
            assert_eq!(contact.problem(), Some(expected.as_str()));
        }
        let tls = Access::tls(info("rediss://redis.test:6399"), TlsFiles::default()).in_cluster(&[]);
        let contact = Asked::new(&tls).diagnose(&answer("ERR This instance has cluster support disabled"));
        assert!(
            contact.problem().is_some_and(|problem| problem.ends_with("write rediss:// in redis.url")),
            "{contact:?}"
        );
    }

    #[test]
    fn who_is_turned_away_is_told_why() {
        let asked = asked("redis://redis.test:6399");
        let state = |said: &str| asked.turned_away(said).map(|contact| contact.code());
        assert_eq!(state("-DENIED Redis is running in protected mode because"), Some("refused"));
        assert_eq!(state("-ERR max number of clients reached\r\n"), Some("unreachable"));
        assert_eq!(state(""), None);
    }

    #[test]
    fn a_redis_that_takes_no_writes_is_known_by_its_words() {
        for line in [
            "OOM command not allowed when used memory > 'maxmemory'.",
            "MISCONF Redis is configured to save RDB snapshots, but it's currently unable to persist to disk.",
            "NOREPLICAS Not enough good replicas to write.",
            "ERR Error running script (call to f_1): @user_script:1: OOM command not allowed when used memory > 'maxmemory'.",
        ] {
            assert!(takes_no_writes(&answer(line)), "{line}");
        }
        assert!(!takes_no_writes(&answer("READONLY You can't write against a read only replica.")));
    }
}
