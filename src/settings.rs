//! The configuration: layers in, validated types out. The only reader of the environment.
//!
//! Each layer (a file, an environment variable) is first read on its own, strictly, so that an unknown key
//! or a wrong type is reported with the layer it stands in; then the `config` crate puts the layers over
//! each other, later ones winning key by key (a list is replaced whole); then the result is checked for
//! sense, and each complaint names the layer that had the last word.

mod checks;
mod error;
mod layers;
mod nats_servers;
mod reading;
mod redaction;
mod redis_servers;
mod reloading;
mod route_section;
pub mod sections;
mod span;
mod store_checks;
mod store_sections;
mod table;
mod variables;
mod wording;

use std::{net::SocketAddr, num::NonZero, path::PathBuf, sync::Arc, time::Duration};

use tracing_subscriber::EnvFilter;

pub(crate) use self::reloading::StoreLogins;
use self::{
    checks::{Check, Surroundings, in_toml},
    sections::Configuration,
};
pub use self::{
    error::{SettingsError, SettingsErrors},
    layers::Layers,
    reloading::{Contents, Sources},
    sections::{DeliveryMode, EspoCrm, Quarantine, Stream},
    variables::{Environment, environment},
};
use crate::{
    admission::Limits,
    dead_letters::{self, DeadLetterLimits},
    delivery::{Durability, Policy, WithoutAck},
    listener::{ConnectionLimits, LingerLimits},
    nats_login::Login,
    readiness::replicas::Replicas,
    route::{Route, RouteTable, WhilePending},
    secrets::{Secret, SecretFiles},
    signature::Verifiers,
    telemetry,
    tls::TlsFiles,
    traces::Collector,
};

/// Bytes of a refused body that are read at least, however small `server.max_body_bytes` is: reading them costs little, and a
/// connection that is closed with unread bytes loses its answer.
const LINGER_BYTES: usize = 4 << 20;

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
#[expect(clippy::large_enum_variant, reason = "there is one of it")]
pub enum ClaimsIn {
    /// In the memory of this process (`memory:`).
    Memory,
    /// In Redis.
    Redis(RedisAddress),
}

/// A Redis, and how to log in.
#[derive(Debug, Clone)]
pub struct RedisAddress {
    /// Its servers.
    pub servers: RedisServers,
    /// Its number.
    pub database: i64,
    /// ACL user.
    pub username: Option<String>,
    /// Password.
    pub password: Option<Secret>,
    /// With TLS, and these files.
    pub tls: Option<TlsFiles>,
}

/// Name or address, and port.
pub type HostPort = (String, u16);

/// How the servers of a Redis are found.
#[derive(Debug, Clone)]
pub enum RedisServers {
    /// There is one.
    One(HostPort),
    /// Sentinels know which one is the primary.
    Sentinel(RedisSentinels),
    /// Some nodes of a Redis Cluster, which know all others.
    Cluster(Vec<HostPort>),
}

impl RedisServers {
    fn sentinel_password(&self) -> Option<Secret> {
        match self {
            Self::Sentinel(sentinels) => sentinels.password.clone(),
            Self::One(_) | Self::Cluster(_) => None,
        }
    }
}

/// The sentinels of a primary, and how to log in to them.
#[derive(Debug, Clone)]
pub struct RedisSentinels {
    /// Where they listen.
    pub addresses: Vec<HostPort>,
    /// What they call the primary.
    pub service: String,
    /// ACL user.
    pub username: Option<String>,
    /// Password.
    pub password: Option<Secret>,
}

/// The servers of a NATS system, and how to log in.
#[derive(Debug, Clone)]
pub struct NatsServers {
    /// `nats://host:port`, without credentials.
    pub addresses: Vec<String>,
    /// The one way to log in.
    pub login: Login,
    /// With TLS, and these files. (A server may ask for TLS where this is `None`.)
    pub tls: Option<TlsFiles>,
}

/// A configuration that was checked.
#[derive(Debug)]
pub struct Settings {
    /// Names what two installations on one NATS account or Redis database must not share.
    pub instance: String,
    /// Address of the webhooks.
    pub listen: SocketAddr,
    /// Address of the probes.
    pub admin_listen: SocketAddr,
    /// File that holds the token for `/v1/pending`.
    pub admin_token_file: Option<PathBuf>,
    /// The other replicas, if they can be asked how a store is.
    pub replicas: Option<Replicas>,
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
    pub claims_in: ClaimsIn,
    /// Limit of a claim, connecting again included.
    pub redis_timeout: Duration,
    /// What a claim has to survive where an answer rests on it alone.
    pub durability: Durability,
    /// Redis replicas that have to have such a claim.
    pub wait_replicas: usize,
    /// Most ids of a route in flight at once.
    pub outbox_limit: usize,
    /// What delivery does when a store fails.
    pub policy: Policy,
    /// Where NATS is.
    pub nats: NatsServers,
    /// How events are delivered.
    pub delivery: DeliveryMode,
    /// What is created where no stream covers a subject.
    pub stream: Stream,
    /// Address of the server's monitoring port.
    pub nats_monitoring: Option<String>,
    /// Name of the stream for what consumers answer, where no other covers that.
    pub acks_stream: String,
    /// Age at which the relay takes an entry of the outbox over.
    pub relay_after: Duration,
    /// Limits of rejected items and bodies.
    pub dead_letters: DeadLetterLimits,
    /// Limits of the bodies whose signature was wrong.
    pub quarantine: Quarantine,
    /// The CRM's API.
    pub espocrm: EspoCrm,
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
    /// What is odd, but stops nothing.
    pub warnings: Vec<String>,
}

/// Whether the secrets of `auth` are read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum AuthSecrets {
    /// They are, and it is an error if they can't be.
    Read,
    /// They are left alone: these settings authenticate no request on a route with `auth`.
    Leave,
}

/// The JSON Schema of a configuration file.
#[must_use]
pub fn schema() -> schemars::Schema {
    schemars::schema_for!(Configuration)
}

impl Settings {
    /// Checks a merged configuration; `layers` tell where a bad value came from.
    ///
    /// # Errors
    /// All that is wrong with it.
    pub fn check(configuration: &Configuration, layers: Layers, secrets: AuthSecrets) -> Result<Self, SettingsErrors> {
        let Configuration {
            instance,
            server,
            admin,
            redis,
            nats,
            outbox,
            dead_letters,
            quarantine,
            espocrm,
            tracing,
            log,
            routes,
        } = configuration;
        let mut check = Check::new(layers);
        check.instance(instance);
        sizes(&mut check, configuration);
        times(&mut check, configuration);
        let comparable = check.are_read(&["redis.durability", "nats.on_unavailable"]);
        let rests_on_nats = nats.on_unavailable == WithoutAck::Reject;
        let marks = routes.iter().any(|route| route.while_pending == Some(WhilePending::Coalesce));
        if comparable && redis.durability != Durability::None && rests_on_nats && !marks {
            let problem = "changes nothing unless nats.on_unavailable is \"accept\" or a route has while_pending = \"coalesce\", the modes in which an answer rests on Redis";
            check.refuse(check.value("redis.durability", in_toml(&redis.durability), problem.to_owned()));
        }
        check.wait_replicas(redis);
        let (verifiers, secret_files) = check.verifiers(routes, secrets);
        let claims_in = check.claims_in(redis);
        let servers = check.servers(nats);
        check.stream(&nats.stream);
        if let Some(name) = &nats.acks_stream {
            check.stream_name("nats.acks_stream", name);
        }
        let collector = check.note(check.collector(tracing));
        let log_filter = check.note(check.log_filter(log));
        let table = check.routes(
            routes,
            Surroundings {
                instance,
                delivery: nats.delivery,
                durability: redis.durability,
                in_memory: matches!(claims_in, Some(ClaimsIn::Memory)),
            },
        );
        let replicas = check.note(check.replicas(admin));
        let parts = (claims_in, servers, collector, log_filter, replicas, table);
        let (Some(claims_in), Some(servers), Some(collector), Some(log_filter), Some(replicas), Some(table)) = parts
        else {
            return Err(check.into_errors());
        };
        let warnings = check.end()?;
        // 0: as many as there are cores.
        let worker_threads = NonZero::new(server.worker_threads)
            .or_else(|| std::thread::available_parallelism().ok())
            .unwrap_or(NonZero::<usize>::MIN);
        Ok(Self {
            instance: instance.clone(),
            listen: server.listen,
            admin_listen: admin.listen,
            admin_token_file: admin.token_file.clone(),
            replicas,
            worker_threads,
            connections: connections(server),
            limits: limits(server, worker_threads),
            request_deadline: server.request_deadline.0,
            drain_delay: server.drain_delay.0,
            claims_in,
            redis_timeout: redis.timeout.0,
            durability: redis.durability,
            wait_replicas: redis.wait_replicas,
            outbox_limit: outbox.max_entries,
            policy: Policy {
                without_claim: redis.on_unavailable,
                without_ack: nats.on_unavailable,
                ack_timeout: nats.ack_timeout.0,
            },
            nats: servers,
            delivery: nats.delivery,
            stream: nats.stream.clone(),
            nats_monitoring: nats.monitoring_url.clone(),
            acks_stream: nats.acks_stream.clone().unwrap_or_else(|| format!("{instance}_acks")),
            relay_after: outbox.relay_after.0,
            dead_letters: DeadLetterLimits {
                max_entries: dead_letters.max_entries,
                max_item_bytes: dead_letters.max_item_bytes,
                max_bytes: dead_letters.max_bytes,
                max_age: dead_letters.max_age.0,
            },
            quarantine: quarantine.clone(),
            espocrm: espocrm.clone(),
            collector,
            log_format: log.format,
            log_filter,
            routes: table,
            verifiers,
            secret_files,
            warnings,
        })
    }

    /// The routes on which an answer may rest on a mark in Redis alone.
    pub fn marking_routes(&self) -> impl Iterator<Item = &Arc<Route>> {
        let marks = |route: &&Arc<Route>| route.life().while_pending == WhilePending::Coalesce;
        self.routes.routes().iter().filter(marks)
    }

    /// The routes that ask nothing of their senders.
    pub fn open_routes(&self) -> impl Iterator<Item = &Arc<Route>> {
        let open = |route: &&Arc<Route>| self.verifiers.of(route).is_open();
        self.routes.routes().iter().filter(open)
    }
}

/// Limits of requests.
fn limits(server: &sections::ServerSection, worker_threads: NonZero<usize>) -> Limits {
    Limits::new(
        server.max_body_bytes,
        server.max_buffered_bytes,
        server.max_in_flight,
        server.body_read_timeout.0,
        server.request_deadline.0,
        // One is left for everything else.
        (worker_threads.get() - 1).max(1),
    )
}

/// Numbers and bytes.
fn sizes(check: &mut Check, configuration: &Configuration) {
    let Configuration { server, outbox, dead_letters, quarantine, .. } = configuration;
    for (key, value, low, high) in [
        ("quarantine.max_entries", quarantine.max_entries, 1, 10_000_000),
        ("quarantine.max_bytes", quarantine.max_bytes, 1, 1 << 40),
        ("server.max_body_bytes", server.max_body_bytes, 1, 1 << 30),
        ("server.max_buffered_bytes", server.max_buffered_bytes, 1, 1 << 40),
        ("server.max_in_flight", server.max_in_flight as usize, 1, 1_000_000),
        ("server.max_connections", server.max_connections, 1, 1_000_000),
        ("server.max_header_bytes", server.max_header_bytes, 512, 1 << 20),
        ("server.max_headers", server.max_headers, 8, 1000),
        ("server.worker_threads", server.worker_threads, 0, 512),
        ("outbox.max_entries", outbox.max_entries, 1, 1 << 40),
        ("dead_letters.max_entries", dead_letters.max_entries, 0, 10_000_000),
        ("dead_letters.max_item_bytes", dead_letters.max_item_bytes, 1, dead_letters::MAX_ITEM_BYTES),
        ("dead_letters.max_bytes", dead_letters.max_bytes, 1, 1 << 40),
    ] {
        check.note(check.range(key, value, low, high));
    }
    let (buffered, body) = ("server.max_buffered_bytes", "server.max_body_bytes");
    let room = check.note(check.at_least((buffered, server.max_buffered_bytes), (body, server.max_body_bytes)));
    let too_few = server.max_buffered_bytes / BUFFERED_TIMES < server.max_body_bytes;
    if room.is_some() && too_few && check.are_read(&[buffered, body]) {
        let problem = format!(
            "is below {BUFFERED_TIMES} times {body} ({}: {}), which is what reading one body may take: such a body would never be read; raise the one or lower the other",
            check.origin(body),
            server.max_body_bytes
        );
        check.refuse(check.value(buffered, server.max_buffered_bytes, problem));
    }
    check.note(check.at_least(
        ("dead_letters.max_bytes", dead_letters.max_bytes),
        ("dead_letters.max_item_bytes", dead_letters.max_item_bytes),
    ));
}

/// Times, each alone and beside the others.
fn times(check: &mut Check, configuration: &Configuration) {
    const DEADLINE: &str = "server.request_deadline";
    let Configuration { server, redis, nats, outbox, dead_letters, quarantine, .. } = configuration;
    for (key, value) in [
        ("dead_letters.max_age", dead_letters.max_age),
        ("quarantine.max_age", quarantine.max_age),
        ("server.first_request_timeout", server.first_request_timeout),
        ("server.header_read_timeout", server.header_read_timeout),
        ("server.body_read_timeout", server.body_read_timeout),
        ("redis.timeout", redis.timeout),
        ("nats.ack_timeout", nats.ack_timeout),
        ("nats.stream.duplicate_window", nats.stream.duplicate_window),
    ] {
        check.note(check.positive(key, value.0));
    }
    let deadline = server.request_deadline;
    if deadline.0 < MIN_REQUEST_DEADLINE {
        let problem = format!("is too short to claim, publish and answer; at least {MIN_REQUEST_DEADLINE:?}");
        check.refuse(check.value(DEADLINE, deadline, problem));
        // The others are measured by it.
        return;
    }
    if redis.timeout.0 + TIME_TO_PUBLISH > deadline.0 && check.are_read(&["redis.timeout", DEADLINE]) {
        let problem = format!(
            "leaves less than {TIME_TO_PUBLISH:?} of {DEADLINE} ({}: {deadline}) to publish after a claim that gets no answer; lower the one or raise the other",
            check.origin(DEADLINE),
        );
        check.refuse(check.value("redis.timeout", redis.timeout, problem));
    }
    if outbox.relay_after.0 <= deadline.0 && check.are_read(&["outbox.relay_after", DEADLINE]) {
        let problem = format!(
            "is not above {DEADLINE} ({}: {deadline}): the relay would publish what a request is still working on",
            check.origin(DEADLINE),
        );
        check.refuse(check.value("outbox.relay_after", outbox.relay_after, problem));
    }
}

/// Limits of the connections of senders.
fn connections(server: &sections::ServerSection) -> ConnectionLimits {
    ConnectionLimits {
        max_connections: server.max_connections,
        max_connections_setting: "server.max_connections",
        first_request_timeout: server.first_request_timeout.0,
        header_read_timeout: server.header_read_timeout.0,
        max_header_bytes: server.max_header_bytes,
        max_headers: server.max_headers,
        write_timeout: ConnectionLimits::WRITE_TIMEOUT,
        linger: LingerLimits {
            max_bytes: server.max_body_bytes.max(LINGER_BYTES),
            timeout: server.body_read_timeout.0,
        },
    }
}
