//! The configuration: layers in, validated types out. The only reader of the environment.
//!
//! Each layer (a file, an environment variable) is first read on its own, strictly, so that an unknown key
//! or a wrong type is reported with the layer it stands in; then the `config` crate puts the layers over
//! each other, later ones winning key by key (a list is replaced whole); then the result is checked for
//! sense, and each complaint names the layer that had the last word.

mod checks;
mod error;
mod layers;
mod redaction;
mod route_section;
pub mod sections;
mod span;
mod store_checks;
mod store_sections;
mod table;

use std::{
    net::SocketAddr,
    num::NonZero,
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use tracing_subscriber::EnvFilter;

use self::{
    checks::{Check, in_toml},
    sections::Configuration,
};
pub use self::{
    error::SettingsError,
    layers::{Environment, Layers, environment},
    redaction::without_credentials,
};
use crate::{
    admission::Limits,
    dead_letters::{self, DeadLetterLimits},
    listener::{ConnectionLimits, LingerLimits},
    pending::{access::Access, redis as store},
    pipeline::Policy,
    publisher::{StreamSettings, servers::Servers},
    route::{Route, RouteTable},
    secrets::SecretFiles,
    signature::Verifiers,
    telemetry,
    traces::Collector,
};

/// The file that is read when no other is named, if it exists.
pub const DEFAULT_FILE: &str = "config/default.toml";

/// Shortest deadline that leaves time to claim, publish and answer.
const MIN_REQUEST_DEADLINE: Duration = Duration::from_secs(1);
/// What has to be left of it when a claim got no answer.
const TIME_TO_PUBLISH: Duration = Duration::from_millis(500);
/// How often a body's size its reading may take (SECURITY.md; `tests/edge/run` measures it).
const BUFFERED_TIMES: usize = 4;

/// Where claims are kept.
#[derive(Debug, Clone)]
pub enum PendingBackend {
    /// In this process (`memory:`).
    Memory,
    /// In Redis.
    Redis(Box<Access>),
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
    /// Threads that requests are served by.
    pub worker_threads: NonZero<usize>,
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
    /// Where spans go, if anywhere.
    pub collector: Option<Collector>,
    /// How the log looks.
    pub log_format: telemetry::Format,
    /// What is logged.
    pub log_filter: EnvFilter,
    /// The webhooks.
    pub routes: RouteTable,
    /// What each of them asks of its senders.
    pub verifiers: Verifiers,
    /// The files behind these.
    pub secret_files: Vec<SecretFiles>,
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
        let Configuration { server, admin, redis, nats, outbox, dead_letters, tracing, log, routes } = configuration;
        let check = Check { layers };
        sizes(&check, configuration)?;
        times(&check, configuration)?;
        if redis.durability != sections::Durability::None && nats.on_unavailable == sections::WithoutNats::Reject {
            let problem = "changes nothing unless nats.on_unavailable is \"accept\", the one mode in which an answer rests on Redis";
            return Err(check.value("redis.durability", in_toml(&redis.durability), problem.to_owned()));
        }
        let (verifiers, secret_files) = check.verifiers(routes)?;
        // 0: as many as there are cores.
        let worker_threads = NonZero::new(server.worker_threads)
            .or_else(|| std::thread::available_parallelism().ok())
            .unwrap_or(NonZero::<usize>::MIN);
        Ok(Self {
            listen: server.listen,
            admin_listen: admin.listen,
            worker_threads,
            connections: connections(server),
            limits: Limits::new(
                server.max_body_bytes,
                server.max_buffered_bytes,
                server.max_in_flight,
                server.body_read_timeout.0,
                server.request_deadline.0,
                // One is left for everything else.
                (worker_threads.get() - 1).max(1),
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
            collector: check.collector(tracing)?,
            log_format: log.format,
            log_filter: check.log_filter(log)?,
            routes: check.routes(routes)?,
            verifiers,
            secret_files,
        })
    }

    /// The routes that ask nothing of their senders.
    pub fn open_routes(&self) -> impl Iterator<Item = &Arc<Route>> {
        let open = |route: &&Arc<Route>| self.verifiers.of(route).is_open();
        self.routes.routes().iter().filter(open)
    }
}

/// Numbers and bytes.
fn sizes(check: &Check<'_>, configuration: &Configuration) -> Result<(), SettingsError> {
    let Configuration { server, outbox, dead_letters, .. } = configuration;
    let layers = check.layers;
    check.range("server.max_body_bytes", server.max_body_bytes, 1, 1 << 30)?;
    check.range("server.max_buffered_bytes", server.max_buffered_bytes, 1, 1 << 40)?;
    check.at_least(
        ("server.max_buffered_bytes", server.max_buffered_bytes),
        ("server.max_body_bytes", server.max_body_bytes),
    )?;
    if server.max_buffered_bytes / BUFFERED_TIMES < server.max_body_bytes {
        let problem = format!(
            "is below {BUFFERED_TIMES} times server.max_body_bytes ({}: {}), which is what reading one body may take: it would be told to come back for ever; raise the one or lower the other",
            layers.origin("server.max_body_bytes"),
            server.max_body_bytes
        );
        return Err(check.value("server.max_buffered_bytes", server.max_buffered_bytes, problem));
    }
    check.range("server.max_in_flight", server.max_in_flight as usize, 1, 1_000_000)?;
    check.range("server.max_connections", server.max_connections, 1, 1_000_000)?;
    check.range("server.max_header_bytes", server.max_header_bytes, 512, 1 << 20)?;
    check.range("server.max_headers", server.max_headers, 8, 1000)?;
    check.range("server.worker_threads", server.worker_threads, 0, 512)?;
    check.range("outbox.max_entries", outbox.max_entries, 1, 1 << 40)?;
    check.range("dead_letters.max_entries", dead_letters.max_entries, 0, 10_000_000)?;
    check.range("dead_letters.max_item_bytes", dead_letters.max_item_bytes, 1, dead_letters::MAX_ITEM_BYTES)?;
    check.range("dead_letters.max_bytes", dead_letters.max_bytes, 1, 1 << 40)?;
    check.at_least(
        ("dead_letters.max_bytes", dead_letters.max_bytes),
        ("dead_letters.max_item_bytes", dead_letters.max_item_bytes),
    )?;
    Ok(())
}

/// Times, each alone and beside the others.
fn times(check: &Check<'_>, configuration: &Configuration) -> Result<(), SettingsError> {
    let Configuration { server, redis, nats, outbox, dead_letters, .. } = configuration;
    let layers = check.layers;
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
    if redis.timeout.0 + TIME_TO_PUBLISH > server.request_deadline.0 {
        let problem = format!(
            "leaves less than {TIME_TO_PUBLISH:?} of server.request_deadline ({}: {}) to publish after a claim that gets no answer; lower the one or raise the other",
            layers.origin("server.request_deadline"),
            server.request_deadline
        );
        return Err(check.value("redis.timeout", redis.timeout, problem));
    }
    if outbox.relay_after.0 <= server.request_deadline.0 {
        let problem = format!(
            "is not above server.request_deadline ({}: {}): the relay would publish what a request is still working on",
            layers.origin("server.request_deadline"),
            server.request_deadline
        );
        return Err(check.value("outbox.relay_after", outbox.relay_after, problem));
    }
    Ok(())
}

/// Limits of the connections of senders.
const fn connections(server: &sections::Server) -> ConnectionLimits {
    ConnectionLimits {
        max_connections: server.max_connections,
        max_connections_setting: "server.max_connections",
        first_request_timeout: server.first_request_timeout.0,
        header_read_timeout: server.header_read_timeout.0,
        max_header_bytes: server.max_header_bytes,
        max_headers: server.max_headers,
        write_timeout: ConnectionLimits::WRITE_TIMEOUT,
        linger: LingerLimits { max_bytes: server.max_body_bytes, timeout: server.body_read_timeout.0 },
    }
}
