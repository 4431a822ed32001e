//! What a look at a store found: for `hookgate doctor`.

use serde::Serialize;

/// How much a finding matters.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Level {
    /// As it should be.
    Ok,
    /// Works, and can cost something one day.
    Warning,
    /// Does not work, or loses what it accepted.
    Failure,
}

/// One thing that was looked at.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Finding {
    /// How much it matters.
    pub level: Level,
    /// What was looked at, for example `redis maxmemory-policy`.
    pub what: String,
    /// What was found, what it can cost, and what to do.
    pub text: String,
}

impl Finding {
    /// As it should be.
    pub fn ok(what: impl Into<String>, text: impl Into<String>) -> Self {
        Self { level: Level::Ok, what: what.into(), text: text.into() }
    }

    /// Works, and can cost something one day.
    pub fn warning(what: impl Into<String>, text: impl Into<String>) -> Self {
        Self { level: Level::Warning, what: what.into(), text: text.into() }
    }

    /// Does not work, or loses what it accepted.
    pub fn failure(what: impl Into<String>, text: impl Into<String>) -> Self {
        Self { level: Level::Failure, what: what.into(), text: text.into() }
    }
}
