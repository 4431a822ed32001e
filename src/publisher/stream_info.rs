//! What `STREAM.INFO` says of a stream, in raw JSON.

use serde_json::{Map, Value};

/// The answer to `STREAM.INFO`. A path names a field: `config.max_msgs`.
#[derive(Debug, Clone)]
pub(super) struct StreamInfo(Value);

impl StreamInfo {
    pub(super) const fn of(answer: Value) -> Self {
        Self(answer)
    }

    /// The settings, with each field that the server knows.
    pub(super) fn config(&self) -> Map<String, Value> {
        self.field("config").and_then(Value::as_object).cloned().unwrap_or_default()
    }

    pub(super) fn field(&self, path: &str) -> Option<&Value> {
        path.split('.').try_fold(&self.0, |value, key| value.get(key))
    }

    /// A text; empty without it.
    pub(super) fn text(&self, path: &str) -> &str {
        self.field(path).and_then(Value::as_str).unwrap_or_default()
    }

    /// A number; 0 without it.
    pub(super) fn number(&self, path: &str) -> i64 {
        self.field(path).and_then(Value::as_i64).unwrap_or_default()
    }

    /// A limit, if there is one: -1 and 0 say that there is none.
    pub(super) fn limit(&self, path: &str) -> Option<u64> {
        u64::try_from(self.number(path)).ok().filter(|limit| *limit > 0)
    }

    pub(super) fn flag(&self, path: &str) -> bool {
        self.field(path).and_then(Value::as_bool).unwrap_or_default()
    }

    pub(super) fn subjects(&self) -> Vec<String> {
        let subjects = self.field("config.subjects").and_then(Value::as_array);
        subjects.into_iter().flatten().filter_map(Value::as_str).map(str::to_owned).collect()
    }

    /// Whether it stores what is published to a subject.
    pub(super) fn covers(&self, subject: &str) -> bool {
        self.subjects().iter().any(|pattern| matches(pattern, subject))
    }
}

/// Whether a subject without wildcards fits a pattern.
pub(super) fn matches(pattern: &str, subject: &str) -> bool {
    let mut words = subject.split('.');
    for expected in pattern.split('.') {
        match (expected, words.next()) {
            (">", Some(_)) => return true,
            (expected, Some(word)) if expected == "*" || expected == word => {}
            _ => return false,
        }
    }
    words.next().is_none()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_pattern_matches_as_the_server_matches() {
        for pattern in [">", "vmh.>", "vmh.*.create", "vmh.contact.*", "*.*.*", "vmh.contact.create"] {
            assert!(matches(pattern, "vmh.contact.create"), "{pattern}");
        }
        for pattern in ["", "vmh", "*", "vmh.*", "vmh.contact.create.>", "vmh.contact.create.*", "crm.>", "vm.*.create"]
        {
            assert!(!matches(pattern, "vmh.contact.create"), "{pattern}");
        }
    }
}
