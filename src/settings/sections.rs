//! The tables of the configuration as they are written, with their defaults.

use std::{net::SocketAddr, path::PathBuf};

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

pub use super::{
    route_section::{Auth, RouteSection, SchemeName},
    span::Span,
    store_sections::{DeliveryMode, NatsSection, RedisSection, Stream},
};
use super::{
    route_section::{COALESCE_MAX_WAIT, MAX_REDELIVERIES},
    table::table,
};
use crate::{
    route::{OnGiveUp, Release},
    telemetry,
};

/// All tables.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize, Serialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Configuration {
    /// Names what two installations on one NATS account or Redis database must not share.
    pub instance: String,
    /// `[server]`
    #[serde(deserialize_with = "table")]
    pub server: ServerSection,
    /// `[admin]`
    #[serde(deserialize_with = "table")]
    pub admin: AdminSection,
    /// `[redis]`
    #[serde(deserialize_with = "table")]
    pub redis: RedisSection,
    /// `[nats]`
    #[serde(deserialize_with = "table")]
    pub nats: NatsSection,
    /// `[outbox]`
    #[serde(deserialize_with = "table")]
    pub outbox: OutboxSection,
    /// `[dead_letters]`
    #[serde(deserialize_with = "table")]
    pub dead_letters: DeadLettersSection,
    /// `[quarantine]`
    #[serde(deserialize_with = "table")]
    pub quarantine: Quarantine,
    /// `[espocrm]`
    #[serde(deserialize_with = "table")]
    pub espocrm: EspoCrm,
    /// `[tracing]`
    #[serde(deserialize_with = "table")]
    pub tracing: TracingSection,
    /// `[log]`
    #[serde(deserialize_with = "table")]
    pub log: LogSection,
    /// `[[routes]]`
    pub routes: Vec<RouteSection>,
}

impl Default for Configuration {
    fn default() -> Self {
        Self {
            instance: "hookgate".to_owned(),
            server: ServerSection::default(),
            admin: AdminSection::default(),
            redis: RedisSection::default(),
            nats: NatsSection::default(),
            outbox: OutboxSection::default(),
            dead_letters: DeadLettersSection::default(),
            quarantine: Quarantine::default(),
            espocrm: EspoCrm::default(),
            tracing: TracingSection::default(),
            log: LogSection::default(),
            routes: vec![RouteSection {
                flow: "vmh".to_owned(),
                entity: "beteiligte".to_owned(),
                action: "create".to_owned(),
                path: None,
                subject: None,
                pending_key: None,
                label: None,
                while_pending: None,
                consumers: Vec::new(),
                release: Release::Explicit,
                on_give_up: OnGiveUp::Release,
                journal: true,
                redeliver_after: None,
                max_redeliveries: MAX_REDELIVERIES,
                coalesce_max_wait: COALESCE_MAX_WAIT,
                espocrm_event: None,
                quarantine: false,
                auth: Vec::new(),
            }],
        }
    }
}

/// `[server]`: the webhooks' side.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize, Serialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct ServerSection {
    /// Address.
    pub listen: SocketAddr,
    /// Largest body.
    pub max_body_bytes: usize,
    /// All bodies being read or processed together.
    pub max_buffered_bytes: usize,
    /// Requests at once.
    pub max_in_flight: u32,
    /// Connections at once.
    pub max_connections: usize,
    /// A new connection's first head.
    pub first_request_timeout: Span,
    /// Later heads.
    pub header_read_timeout: Span,
    /// Lines of a head together.
    pub max_header_bytes: usize,
    /// Lines of a head.
    pub max_headers: usize,
    /// A body.
    pub body_read_timeout: Span,
    /// From the head to the answer.
    pub request_deadline: Span,
    /// After a signal, before refusing.
    pub drain_delay: Span,
    /// Threads; 0: one per core.
    pub worker_threads: usize,
}

impl Default for ServerSection {
    fn default() -> Self {
        Self {
            listen: SocketAddr::from(([0, 0, 0, 0], 3000)),
            max_body_bytes: 16 << 20,
            max_buffered_bytes: 128 << 20,
            max_in_flight: 1024,
            max_connections: 8192,
            first_request_timeout: Span::secs(10),
            header_read_timeout: Span::secs(75),
            max_header_bytes: 16 << 10,
            max_headers: 64,
            body_read_timeout: Span::secs(5),
            request_deadline: Span::secs(8),
            drain_delay: Span::secs(5),
            worker_threads: 0,
        }
    }
}

/// `[admin]`: the operator's side.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize, Serialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct AdminSection {
    /// Address.
    pub listen: SocketAddr,
    /// File that holds the token for `/v1/pending`, which answers 404 without it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub token_file: Option<PathBuf>,
    /// Name and port of the admin addresses of all replicas, which are asked before a replica gets ready without a store.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub replicas: Option<String>,
}

impl Default for AdminSection {
    fn default() -> Self {
        Self { listen: SocketAddr::from(([0, 0, 0, 0], 9090)), token_file: None, replicas: None }
    }
}

/// `[outbox]`: claims that NATS has not acknowledged.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize, Serialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct OutboxSection {
    /// Most entries of a route; beyond: 503.
    pub max_entries: usize,
    /// Age at which the relay takes an entry over.
    pub relay_after: Span,
}

impl Default for OutboxSection {
    fn default() -> Self {
        Self { max_entries: 1_000_000, relay_after: Span::secs(10) }
    }
}

/// `[dead_letters]`: rejected items and bodies.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize, Serialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct DeadLettersSection {
    /// Most of them; 0 keeps none.
    pub max_entries: usize,
    /// Of one; the rest is cut off.
    pub max_item_bytes: usize,
    /// Of all; the oldest go first.
    pub max_bytes: usize,
    /// Older ones go.
    pub max_age: Span,
}

impl Default for DeadLettersSection {
    fn default() -> Self {
        Self { max_entries: 10_000, max_item_bytes: 65_536, max_bytes: 16 << 20, max_age: Span::secs(30 * 86_400) }
    }
}

/// `[quarantine]`: bodies whose signature was wrong.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize, Serialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Quarantine {
    /// Most of them.
    pub max_entries: usize,
    /// Of all.
    pub max_bytes: usize,
    /// Older ones go.
    pub max_age: Span,
}

impl Default for Quarantine {
    fn default() -> Self {
        Self { max_entries: 1000, max_bytes: 64 << 20, max_age: Span::secs(7 * 86_400) }
    }
}

/// `[espocrm]`: the CRM's API, for `reconcile` and `doctor --espocrm`.
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize, Serialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct EspoCrm {
    /// Where it is, for example `https://crm.example.com`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub url: Option<String>,
    /// File that holds an API key.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub api_key_file: Option<PathBuf>,
    /// Name to log in with.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub user: Option<String>,
    /// File that holds its password.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub password_file: Option<PathBuf>,
    /// Authorities to trust; without it those of the system.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub ca_file: Option<PathBuf>,
}

/// `[tracing]`: spans.
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize, Serialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct TracingSection {
    /// Where they go, as OTLP over HTTP; nowhere without it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub otlp_endpoint: Option<String>,
}

/// `[log]`
#[derive(Debug, Clone, PartialEq, Eq, Deserialize, Serialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct LogSection {
    /// Text or JSON.
    pub format: telemetry::Format,
    /// Directives of what is logged.
    pub filter: String,
}

impl Default for LogSection {
    fn default() -> Self {
        Self { format: telemetry::Format::Auto, filter: "info".to_owned() }
    }
}
