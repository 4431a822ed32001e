//! `[[routes]]` as it is written.

use std::path::PathBuf;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::span::Span;
use crate::route::{Life, OnGiveUp, Release, WhilePending};

/// `[[routes]]`: one webhook.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize, Serialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct RouteSection {
    /// First word of path, subject and key.
    pub flow: String,
    /// Kind of record.
    pub entity: String,
    /// What happened to it.
    pub action: String,
    /// Instead of `/{flow}/webhook/{entity}/{action}`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub path: Option<String>,
    /// Instead of `{flow}.{entity}.{action}`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub subject: Option<String>,
    /// Instead of `{flow}:{entity}:{action}_pending`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub pending_key: Option<String>,
    /// Instead of `{FLOW} Webhook {Entity} {Action}`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub label: Option<String>,
    /// What a webhook for a pending id does.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub while_pending: Option<WhilePending>,
    /// Durable consumers of the stream whose work this route's events are.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub consumers: Vec<String>,
    /// What releases an id.
    #[serde(default)]
    pub release: Release,
    /// What becomes of an id that a consumer gave up.
    #[serde(default)]
    pub on_give_up: OnGiveUp,
    /// Whether what is known of each pending id is kept.
    #[serde(default = "yes")]
    pub journal: bool,
    /// Age at which a pending id is published again; never without it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub redeliver_after: Option<Span>,
    /// How often an id is published again without a webhook in between.
    #[serde(default = "max_redeliveries")]
    pub max_redeliveries: u32,
    /// Longest time that a mark of `coalesce` waits.
    #[serde(default = "coalesce_max_wait")]
    pub coalesce_max_wait: Span,
    /// The event of EspoCRM's webhook, such as `CBeteiligte.update`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub espocrm_event: Option<String>,
    /// Whether bodies whose signature was wrong are kept.
    #[serde(default)]
    pub quarantine: bool,
    /// What a request has to show; one of these is enough. Empty: nothing.
    #[serde(default)]
    pub auth: Vec<Auth>,
}

impl RouteSection {
    /// The name of its route.
    pub(super) fn name(&self) -> String {
        format!("{}/{}/{}", self.flow, self.entity, self.action)
    }

    /// What happens to its ids once they are claimed.
    pub(super) fn life(&self) -> Life {
        Life {
            while_pending: self.while_pending.unwrap_or_else(|| WhilePending::of_action(&self.action)),
            journal: self.journal,
            release: self.release,
            consumers: self.consumers.clone(),
            on_give_up: self.on_give_up,
            redeliver_after: self.redeliver_after.map(|span| span.0),
            max_redeliveries: self.max_redeliveries,
            coalesce_max_wait: self.coalesce_max_wait.0,
        }
    }
}

/// `routes.auth`
#[derive(Debug, Clone, PartialEq, Eq, Deserialize, Serialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Auth {
    /// How the sender shows that it knows a secret.
    pub scheme: SchemeName,
    /// Of the webhook, for `espocrm`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub id: Option<String>,
    /// Files that hold one secret each; any of them is good.
    pub secret_files: Vec<PathBuf>,
}

/// `routes.auth.scheme`
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize, Serialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum SchemeName {
    /// `Signature`, `X-Signature`.
    #[serde(rename = "espocrm")]
    EspoCrm,
    /// `webhook-signature`.
    StandardWebhooks,
    /// `X-Hub-Signature-256`.
    #[serde(rename = "github")]
    GitHub,
    /// `Authorization: Bearer`.
    Bearer,
}

const fn yes() -> bool {
    true
}

/// The default of `max_redeliveries`.
pub(super) const MAX_REDELIVERIES: u32 = 10;

const fn max_redeliveries() -> u32 {
    MAX_REDELIVERIES
}

/// The default of `coalesce_max_wait`.
pub(super) const COALESCE_MAX_WAIT: Span = Span::secs(600);

const fn coalesce_max_wait() -> Span {
    COALESCE_MAX_WAIT
}
