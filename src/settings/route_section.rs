//! `[[routes]]` as it is written.

use std::path::PathBuf;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

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
    /// What a request has to show; one of these is enough. Empty: nothing.
    #[serde(default)]
    pub auth: Vec<Auth>,
}

impl RouteSection {
    /// The name of its route.
    pub(super) fn name(&self) -> String {
        format!("{}/{}/{}", self.flow, self.entity, self.action)
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

/// `routes.while_pending`
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize, Serialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum WhilePending {
    /// Nothing: it is a duplicate.
    Skip,
    /// Not in this version.
    Coalesce,
}
