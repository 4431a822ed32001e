//! What happens to an id between its claim and the moment somebody has processed it, as a route is configured.

use std::time::Duration;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// What a webhook for a pending id does (`routes.while_pending`).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Deserialize, Serialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum WhilePending {
    /// Nothing: it is a duplicate.
    #[default]
    Skip,
    /// It gets a claim and an event of its own.
    Publish,
    /// It marks the id, which is republished when the event before is done with.
    Coalesce,
}

impl WhilePending {
    /// The default of an action: a second create or delete says nothing new.
    #[must_use]
    pub fn of_action(action: &str) -> Self {
        if matches!(action, "create" | "delete") { Self::Skip } else { Self::Publish }
    }

    /// As it is configured.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Skip => "skip",
            Self::Publish => "publish",
            Self::Coalesce => "coalesce",
        }
    }
}

/// What releases an id (`routes.release`).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Deserialize, Serialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum Release {
    /// Whoever processed it says so.
    #[default]
    Explicit,
    /// The acknowledgements of its consumers.
    Ack,
}

/// What becomes of an id that a consumer gave up (`routes.on_give_up`).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Deserialize, Serialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum OnGiveUp {
    /// Giving up counts as an answer.
    #[default]
    Release,
    /// It stays pending until a new claim or an explicit release.
    Keep,
}

impl OnGiveUp {
    /// As it is configured.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Release => "release",
            Self::Keep => "keep",
        }
    }
}

/// The life of a route's ids.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Life {
    /// What a webhook for a pending id does.
    pub while_pending: WhilePending,
    /// Whether hookgate keeps what is known of each pending id.
    pub journal: bool,
    /// What releases an id.
    pub release: Release,
    /// Durable consumers whose work the events are.
    pub consumers: Vec<String>,
    /// What becomes of an id that one of them gave up.
    pub on_give_up: OnGiveUp,
    /// Age at which a pending id is published again, if at all.
    pub redeliver_after: Option<Duration>,
    /// How often, without a webhook in between.
    pub max_redeliveries: u32,
    /// Longest time of a mark.
    pub coalesce_max_wait: Duration,
}

impl Default for Life {
    fn default() -> Self {
        Self {
            while_pending: WhilePending::Skip,
            journal: true,
            release: Release::Explicit,
            consumers: Vec::new(),
            on_give_up: OnGiveUp::Release,
            redeliver_after: None,
            max_redeliveries: 10,
            coalesce_max_wait: Duration::from_secs(600),
        }
    }
}
