//! The configuration: layers in, validated types out. The only reader of the environment.
//!
//! Each layer (a file, an environment variable) is first read on its own, strictly, so that an unknown key
//! or a wrong type is reported with the layer it stands in; then the `config` crate puts the layers over
//! each other, later ones winning key by key (a list is replaced whole); then the result is checked for
//! sense, and each complaint names the layer that had the last word.

mod error;
mod layers;
pub mod sections;
mod span;
mod table;

use std::{
    net::SocketAddr,
    path::{Path, PathBuf},
    time::Duration,
};

use redis::IntoConnectionInfo;
use serde::Serialize;
use tracing_subscriber::EnvFilter;

use self::sections::{Configuration, RouteSection, WhilePending};
pub use self::{
    error::SettingsError,
    layers::{Environment, Layers, environment},
};
use crate::{
    dead_letters::DeadLetterLimits,
    http::Limits,
    listener::ConnectionLimits,
    pending::redis as store,
    pipeline::Policy,
    publisher::{
        StreamSettings,
        connection::{Login, Servers},
    },
    route::{Route, RouteSpec, RouteTable},
    telemetry,
};

/// The file that is read when no other is named, if it exists.
pub const DEFAULT_FILE: &str = "config/default.toml";

/// Shortest deadline that leaves time to claim, publish and answer.
const MIN_REQUEST_DEADLINE: Duration = Duration::from_secs(1);

/// Where claims are kept.
#[derive(Debug, Clone)]
pub enum PendingBackend {
    /// In this process (`memory:`).
    Memory,
    /// In Redis.
    Redis(redis::Client),
}

/// How events are delivered.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Delivery {
    /// Into a stream, acknowledged.
    JetStream(StreamSettings),
    /// To whoever is subscribed.
    Core,
}

/// A configuration that was checked.
#[derive(Debug)]
pub struct Settings {
    /// Address of the webhooks.
    pub listen: SocketAddr,
    /// Address of the probes.
    pub admin_listen: SocketAddr,
    /// Threads of the runtime; 0: as many as there are cores.
    pub worker_threads: usize,
    /// Limits of connections.
    pub connections: ConnectionLimits,
    /// Limits of requests.
    pub limits: Limits,
    /// Longest time from a request to its answer.
    pub request_deadline: Duration,
    /// How long everything is still served after a signal.
    pub drain_delay: Duration,
    /// Where claims are kept.
    pub pending: PendingBackend,
    /// How claims are made.
    pub claims: store::Options,
    /// What the pipeline does when a store fails.
    pub policy: Policy,
    /// The NATS servers and how to log in.
    pub nats: Servers,
    /// How events are delivered.
    pub delivery: Delivery,
    /// Age at which the relay takes an entry of the outbox over.
    pub relay_after: Duration,
    /// Limits of rejected items and bodies.
    pub dead_letters: DeadLetterLimits,
    /// How the log looks.
    pub log_format: telemetry::Format,
    /// What is logged.
    pub log_filter: EnvFilter,
    /// The webhooks.
    pub routes: RouteTable,
}

/// Reads and merges the layers: built-in defaults, files (or [`DEFAULT_FILE`] if none is named and it
/// exists), environment.
///
/// # Errors
/// What is wrong in which layer.
pub fn load(files: &[PathBuf], environment: Environment) -> Result<(Configuration, Layers), SettingsError> {
    let default = Path::new(DEFAULT_FILE);
    let mut layers = Layers::default();
    if files.is_empty() && default.exists() {
        layers.add_file(default)?;
    }
    for file in files {
        layers.add_file(file)?;
    }
    layers.add_environment(environment)?;
    Ok((layers.merge()?, layers))
}

impl Settings {
    /// Checks a merged configuration; `layers` tell where a bad value came from.
    ///
    /// # Errors
    /// The first value that makes no sense.
    pub fn check(configuration: &Configuration, layers: &Layers) -> Result<Self, SettingsError> {
        let Configuration { server, admin, redis, nats, outbox, dead_letters, log, routes } = configuration;
        let check = Check { layers };
        check.range("server.max_body_bytes", server.max_body_bytes, 1, 1 << 30)?;
        check.range("server.max_buffered_bytes", server.max_buffered_bytes, 1, 1 << 40)?;
        check.at_least(
            ("server.max_buffered_bytes", server.max_buffered_bytes),
            ("server.max_body_bytes", server.max_body_bytes),
        )?;
        check.range("server.max_in_flight", server.max_in_flight as usize, 1, 1_000_000)?;
        check.range("server.max_connections", server.max_connections, 1, 1_000_000)?;
        check.range("server.max_header_bytes", server.max_header_bytes, 512, 1 << 20)?;
        check.range("server.max_headers", server.max_headers, 8, 1000)?;
        check.range("server.worker_threads", server.worker_threads, 0, 512)?;
        check.range("outbox.max_entries", outbox.max_entries, 1, 1 << 40)?;
        check.range("dead_letters.max_entries", dead_letters.max_entries, 0, 10_000_000)?;
        check.range("dead_letters.max_item_bytes", dead_letters.max_item_bytes, 1, 16 << 20)?;
        check.range("dead_letters.max_bytes", dead_letters.max_bytes, 1, 1 << 40)?;
        check.at_least(
            ("dead_letters.max_bytes", dead_letters.max_bytes),
            ("dead_letters.max_item_bytes", dead_letters.max_item_bytes),
        )?;
        for (key, value) in [
            ("dead_letters.max_age", dead_letters.max_age),
            ("server.first_request_timeout", server.first_request_timeout),
            ("server.header_read_timeout", server.header_read_timeout),
            ("server.body_read_timeout", server.body_read_timeout),
            ("redis.timeout", redis.timeout),
            ("nats.ack_timeout", nats.ack_timeout),
            ("nats.stream.duplicate_window", nats.stream.duplicate_window),
        ] {
            check.positive(key, value.0)?;
        }
        if server.request_deadline.0 < MIN_REQUEST_DEADLINE {
            let problem = format!("is too short to claim, publish and answer; at least {MIN_REQUEST_DEADLINE:?}");
            return Err(check.value("server.request_deadline", server.request_deadline, problem));
        }
        if outbox.relay_after.0 <= server.request_deadline.0 {
            let problem = format!(
                "is not above server.request_deadline ({}: {}): the relay would publish what a request is still working on",
                layers.origin("server.request_deadline"),
                server.request_deadline
            );
            return Err(check.value("outbox.relay_after", outbox.relay_after, problem));
        }
        if redis.durability != sections::Durability::None && nats.on_unavailable == sections::WithoutNats::Reject {
            let problem = "changes nothing unless nats.on_unavailable is \"accept\", the one mode in which an answer rests on Redis";
            return Err(check.value("redis.durability", in_toml(&redis.durability), problem.to_owned()));
        }
        let log_filter = telemetry::parse_filter(&log.filter).map_err(|error| {
            check.value(
                "log.filter",
                format!("{:?}", log.filter),
                format!("{error}; write levels and modules such as \"info,hookgate::entity=warn\""),
            )
        })?;
        Ok(Self {
            listen: server.listen,
            admin_listen: admin.listen,
            worker_threads: server.worker_threads,
            connections: ConnectionLimits {
                max_connections: server.max_connections,
                first_request_timeout: server.first_request_timeout.0,
                header_read_timeout: server.header_read_timeout.0,
                max_header_bytes: server.max_header_bytes,
                max_headers: server.max_headers,
            },
            limits: Limits::new(
                server.max_body_bytes,
                server.max_buffered_bytes,
                server.max_in_flight,
                server.body_read_timeout.0,
                server.request_deadline.0,
            ),
            request_deadline: server.request_deadline.0,
            drain_delay: server.drain_delay.0,
            pending: check.pending(redis)?,
            claims: store::Options {
                timeout: redis.timeout.0,
                outbox_limit: outbox.max_entries,
                durability: redis.durability.into(),
            },
            policy: Policy {
                without_claim: redis.on_unavailable.into(),
                without_ack: nats.on_unavailable.into(),
                ack_timeout: nats.ack_timeout.0,
            },
            nats: check.servers(nats)?,
            delivery: check.delivery(nats)?,
            relay_after: outbox.relay_after.0,
            dead_letters: DeadLetterLimits {
                max_entries: dead_letters.max_entries,
                max_item_bytes: dead_letters.max_item_bytes,
                max_bytes: dead_letters.max_bytes,
                max_age: dead_letters.max_age.0,
            },
            log_format: log.format,
            log_filter,
            routes: check.routes(routes)?,
        })
    }
}

/// A value as it is written in a file.
fn in_toml(value: &impl Serialize) -> String {
    toml::Value::try_from(value).map_or_else(|_| "?".to_owned(), |value| value.to_string())
}

/// Names the layer a bad value came from.
struct Check<'a> {
    layers: &'a Layers,
}

impl Check<'_> {
    fn value(&self, key: &'static str, value: impl std::fmt::Display, problem: String) -> SettingsError {
        SettingsError::Value { source_name: self.layers.origin(key), key, value: value.to_string(), problem }
    }

    fn range(&self, key: &'static str, value: usize, low: usize, high: usize) -> Result<(), SettingsError> {
        if (low..=high).contains(&value) {
            return Ok(());
        }
        Err(self.value(key, value, format!("is not between {low} and {high}")))
    }

    /// That one limit leaves room for another.
    fn at_least(
        &self,
        (key, value): (&'static str, usize),
        (low_key, low): (&str, usize),
    ) -> Result<(), SettingsError> {
        if value >= low {
            return Ok(());
        }
        let problem =
            format!("is below {low_key} ({}: {low}); raise the one or lower the other", self.layers.origin(low_key));
        Err(self.value(key, value, problem))
    }

    fn positive(&self, key: &'static str, value: Duration) -> Result<(), SettingsError> {
        if value.is_zero() {
            return Err(self.value(key, "\"0s\"", "has to be longer than nothing".to_owned()));
        }
        Ok(())
    }

    fn secret(&self, key: &'static str, path: &Path) -> Result<String, SettingsError> {
        let wrong = |problem| SettingsError::Secret {
            source_name: self.layers.origin(key),
            key,
            path: path.to_owned(),
            problem,
        };
        let text = std::fs::read_to_string(path).map_err(wrong)?;
        match text.trim_end_matches(['\r', '\n']) {
            "" => Err(wrong(std::io::Error::other("it is empty"))),
            secret => Ok(secret.to_owned()),
        }
    }

    fn pending(&self, redis: &sections::Redis) -> Result<PendingBackend, SettingsError> {
        const KEY: &str = "redis.url";
        let shown = format!("{:?}", without_credentials(&redis.url));
        if redis.url == "memory:" {
            return Ok(PendingBackend::Memory);
        }
        if !redis.url.starts_with("redis://") {
            let problem = "this version of hookgate knows redis://host:port/db and memory:".to_owned();
            return Err(self.value(KEY, shown, problem));
        }
        let wrong = |error: &dyn std::fmt::Display| {
            let problem = format!("is not the address of a Redis server ({error}); write redis://host:6379/1");
            self.value(KEY, &shown, problem)
        };
        let url = url::Url::parse(&redis.url).map_err(|error| wrong(&error))?;
        let info = redis.url.as_str().into_connection_info().map_err(|error| wrong(&error))?;
        let mut login = info.redis_settings().clone();
        if matches!(url.path(), "" | "/") {
            // Consumers of the replaced system look there.
            login = login.set_db(1);
        }
        if redis.username.is_some() && redis.password_file.is_none() {
            let problem = "needs redis.password_file beside it".to_owned();
            return Err(self.value("redis.username", in_toml(&redis.username), problem));
        }
        if let Some(path) = &redis.password_file {
            if url.password().is_some() {
                let problem = "the url holds a password too; keep one".to_owned();
                return Err(self.value("redis.password_file", format!("{path:?}"), problem));
            }
            login = login.set_password(self.secret("redis.password_file", path)?);
        }
        if let Some(username) = &redis.username {
            login = login.set_username(username);
        }
        redis::Client::open(info.set_redis_settings(login)).map(PendingBackend::Redis).map_err(|error| wrong(&error))
    }

    fn servers(&self, nats: &sections::Nats) -> Result<Servers, SettingsError> {
        let login = match (&nats.user, &nats.password_file, &nats.token_file) {
            (None, None, None) => Login::None,
            (Some(user), Some(path), None) => {
                Login::User { name: user.clone(), password: self.secret("nats.password_file", path)? }
            }
            (None, None, Some(path)) => Login::Token(self.secret("nats.token_file", path)?),
            (Some(user), None, _) => {
                return Err(self.value(
                    "nats.user",
                    format!("{user:?}"),
                    "needs nats.password_file beside it".to_owned(),
                ));
            }
            (None, Some(path), _) => {
                return Err(self.value(
                    "nats.password_file",
                    format!("{path:?}"),
                    "needs nats.user beside it".to_owned(),
                ));
            }
            (Some(_), Some(_), Some(path)) => {
                let problem = "nats.user logs in too; keep one".to_owned();
                return Err(self.value("nats.token_file", format!("{path:?}"), problem));
            }
        };
        Servers::parse(&nats.url, login).map_err(|error| {
            let shown: Vec<_> = nats.url.split(',').map(without_credentials).collect();
            self.value("nats.url", format!("{:?}", shown.join(",")), error.to_string())
        })
    }

    fn delivery(&self, nats: &sections::Nats) -> Result<Delivery, SettingsError> {
        let stream = &nats.stream;
        let good = |c: char| c.is_ascii_graphic() && !matches!(c, '.' | '*' | '>' | '/' | '\\');
        if stream.name.is_empty() || !stream.name.chars().all(good) {
            let problem = "is no name of a stream: visible ASCII without '.', '*', '>', '/' and '\\'".to_owned();
            return Err(self.value("nats.stream.name", format!("{:?}", stream.name), problem));
        }
        self.range("nats.stream.replicas", stream.replicas, 1, 5)?;
        if !stream.max_age.0.is_zero() && stream.max_age.0 < stream.duplicate_window.0 {
            let problem = "is shorter than nats.stream.duplicate_window, which NATS refuses".to_owned();
            return Err(self.value("nats.stream.max_age", stream.max_age, problem));
        }
        Ok(match nats.delivery {
            sections::Delivery::Core => Delivery::Core,
            sections::Delivery::Jetstream => Delivery::JetStream(StreamSettings {
                name: stream.name.clone(),
                create: stream.create,
                replicas: stream.replicas,
                max_age: stream.max_age.0,
                duplicate_window: stream.duplicate_window.0,
            }),
        })
    }

    fn routes(&self, routes: &[RouteSection]) -> Result<RouteTable, SettingsError> {
        let wrong = |problem: String| SettingsError::Layer { source_name: self.layers.origin("routes"), problem };
        let mut table = Vec::new();
        for section in routes {
            let RouteSection { flow, entity, action, path, subject, pending_key, label, while_pending } = section;
            let name = format!("{flow}/{entity}/{action}");
            let updates = matches!(action.as_str(), "update" | "fieldUpdate");
            match while_pending {
                Some(WhilePending::Skip) => {}
                None if !updates => {}
                None => {
                    return Err(wrong(format!(
                        "route {name:?}: an {action} route needs while_pending = \"skip\": this version drops an {action} of an id that is still pending, so its consumers have to release an id before they read the record"
                    )));
                }
                Some(WhilePending::Coalesce) => {
                    return Err(wrong(format!(
                        "route {name:?}: while_pending = \"coalesce\" is not in this version of hookgate; set \"skip\", and let consumers release an id before they read the record"
                    )));
                }
            }
            let spec = RouteSpec {
                flow,
                entity,
                action,
                path: path.as_deref(),
                subject: subject.as_deref(),
                pending_key: pending_key.as_deref(),
                label: label.as_deref(),
            };
            table.push(Route::new(&spec).map_err(|error| wrong(error.to_string()))?);
        }
        RouteTable::new(table).map_err(|error| wrong(error.to_string()))
    }
}

/// An address without user and password, for messages.
#[must_use]
pub fn without_credentials(address: &str) -> String {
    let (scheme, rest) = address.find("://").map_or(("", address), |at| address.split_at(at + 3));
    if let Some((_, host)) = rest.rsplit_once('@') {
        return format!("{scheme}***@{host}");
    }
    let authority = rest.split('/').next().unwrap_or_default();
    match authority.rsplit_once(':') {
        // Not a port, but perhaps a password with a comma or a slash in it.
        Some((host, port)) if !port.ends_with(']') && !port.bytes().all(|byte| byte.is_ascii_digit()) => {
            format!("{scheme}{host}:***")
        }
        _ => address.to_owned(),
    }
}
