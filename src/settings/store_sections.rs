//! `[redis]` and `[nats]` as they are written.

use std::path::PathBuf;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::{span::Span, table::table};
use crate::delivery::{Durability, WithoutAck, WithoutClaim};

/// `[redis]`: where ids are claimed.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize, Serialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct RedisSection {
    /// `redis://host:port/db`, `redis+sentinel://host:port,host:port/service/db`, `redis+cluster://host:port,host:port`; with
    /// `rediss` instead of `redis` for TLS; or `memory:`.
    pub url: String,
    /// Of a claim.
    pub timeout: Span,
    /// What happens to a batch meanwhile.
    pub on_unavailable: WithoutClaim,
    /// What a claim has to survive where an answer rests on it alone.
    pub durability: Durability,
    /// Redis replicas that have to have a claim before `durability = "replica"` counts it: all that may be promoted.
    pub wait_replicas: usize,
    /// ACL user.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub username: Option<String>,
    /// File that holds the password.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub password_file: Option<PathBuf>,
    /// ACL user of the sentinels.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub sentinel_username: Option<String>,
    /// File that holds the password of the sentinels.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub sentinel_password_file: Option<PathBuf>,
    /// Authorities to trust; without it those of the system.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub ca_file: Option<PathBuf>,
    /// Certificate to show.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub client_cert_file: Option<PathBuf>,
    /// Its key.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub client_key_file: Option<PathBuf>,
}

impl Default for RedisSection {
    fn default() -> Self {
        Self {
            url: "redis://127.0.0.1:6379/1".to_owned(),
            timeout: Span::millis(500),
            on_unavailable: WithoutClaim::Publish,
            durability: Durability::None,
            wait_replicas: 1,
            username: None,
            password_file: None,
            sentinel_username: None,
            sentinel_password_file: None,
            ca_file: None,
            client_cert_file: None,
            client_key_file: None,
        }
    }
}

/// `[nats]`: where events go.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize, Serialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct NatsSection {
    /// `nats://host:port`, `tls://` to demand TLS; several separated by commas.
    pub url: String,
    /// Stored or live.
    pub delivery: DeliveryMode,
    /// Of one attempt.
    pub ack_timeout: Span,
    /// What happens to a batch that is not acknowledged at the deadline.
    pub on_unavailable: WithoutAck,
    /// Name to log in with.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub user: Option<String>,
    /// File that holds its password.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub password_file: Option<PathBuf>,
    /// File that holds a token.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub token_file: Option<PathBuf>,
    /// File that holds the seed of a user's key pair.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub nkey_seed_file: Option<PathBuf>,
    /// File that holds a user's JWT and seed.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub credentials_file: Option<PathBuf>,
    /// Authorities to trust; without it those of the system.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub ca_file: Option<PathBuf>,
    /// Certificate to show.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub client_cert_file: Option<PathBuf>,
    /// Its key.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub client_key_file: Option<PathBuf>,
    /// Address of the server's monitoring port, for `doctor`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub monitoring_url: Option<String>,
    /// Name of the stream that is created for what consumers answer, where no other covers that; else named by `instance`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub acks_stream: Option<String>,
    /// What to create where no stream covers a subject.
    #[serde(deserialize_with = "table")]
    pub stream: Stream,
}

impl Default for NatsSection {
    fn default() -> Self {
        Self {
            url: "nats://127.0.0.1:4222".to_owned(),
            delivery: DeliveryMode::Jetstream,
            ack_timeout: Span::secs(2),
            on_unavailable: WithoutAck::Reject,
            user: None,
            password_file: None,
            token_file: None,
            nkey_seed_file: None,
            credentials_file: None,
            ca_file: None,
            client_cert_file: None,
            client_key_file: None,
            monitoring_url: None,
            acks_stream: None,
            stream: Stream::default(),
        }
    }
}

/// `nats.delivery`
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize, Serialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum DeliveryMode {
    /// Stored in a stream and acknowledged.
    Jetstream,
    /// To current subscribers; nothing is stored.
    Core,
}

/// `nats.stream`
#[derive(Debug, Clone, PartialEq, Eq, Deserialize, Serialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Stream {
    /// Its name.
    pub name: String,
    /// Whether to create it.
    pub create: bool,
    /// Copies in a cluster.
    pub replicas: usize,
    /// How long messages are kept; `0s`: for ever.
    pub max_age: Span,
    /// How long a repeated message is recognized.
    pub duplicate_window: Span,
}

impl Default for Stream {
    fn default() -> Self {
        Self {
            name: "HOOKGATE".to_owned(),
            create: true,
            replicas: 1,
            max_age: Span::secs(7 * 86_400),
            duplicate_window: Span::secs(15 * 60),
        }
    }
}
