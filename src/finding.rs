//! Findings of `hookgate doctor`.

use serde::Serialize;

/// How much a finding matters.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Level {
    /// As it should be.
    Ok,
    /// Works today, and may fail or lose something later.
    Warning,
    /// Does not work, or would lose accepted webhooks.
    Failure,
}

/// The result of one check.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Finding {
    /// How much it matters.
    pub level: Level,
    /// What was checked, for example `redis maxmemory-policy`.
    pub what: String,
    /// What was found, what may follow from it, and what to do.
    pub text: String,
}

impl Finding {
    /// A finding of level [`Level::Ok`].
    pub fn ok(what: impl Into<String>, text: impl Into<String>) -> Self {
        Self { level: Level::Ok, what: what.into(), text: text.into() }
    }

    /// A finding of level [`Level::Warning`].
    pub fn warning(what: impl Into<String>, text: impl Into<String>) -> Self {
        Self { level: Level::Warning, what: what.into(), text: text.into() }
    }

    /// A finding of level [`Level::Failure`].
    pub fn failure(what: impl Into<String>, text: impl Into<String>) -> Self {
        Self { level: Level::Failure, what: what.into(), text: text.into() }
    }
}
