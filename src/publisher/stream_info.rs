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

/// The narrowest pattern that covers all of these; `None` where that is all subjects.
pub(super) fn common_pattern<'a>(patterns: impl IntoIterator<Item = &'a str>) -> Option<String> {
    let split = |pattern: &'a str| pattern.split('.').collect::<Vec<_>>();
    let common = patterns.into_iter().map(split).reduce(|one, other| {
        let same_length = one.len() == other.len();
        let mut common = Vec::new();
        for (a, b) in one.iter().zip(&other) {
            if *a == ">" || *b == ">" {
                common.push(">");
                return common;
            }
            common.push(if a == b { a } else { "*" });
        }
        if !same_length {
            // The shorter one has to fit too, and '>' needs a word.
            *common.last_mut().expect("a subject has a word") = ">";
        }
        common
    })?;
    Some(common.join(".")).filter(|pattern| pattern != ">")
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
    fn the_common_pattern_covers_all_and_little_else() {
        let cases: [(&[&str], Option<&str>); 8] = [
            (&["vmh.a.create"], Some("vmh.a.create")),
            (&["vmh.a.create", "vmh.a.update", "vmh.a.delete"], Some("vmh.a.*")),
            (&["vmh.a.create", "vmh.b.update"], Some("vmh.*.*")),
            (&["vmh.a.create", "vmh.a"], Some("vmh.>")),
            (&["vmh.a.create", "vmh.>"], Some("vmh.>")),
            (&["vmh.a", "crm.b"], Some("*.*")),
            (&["vmh", "crm.b"], None),
            (&[], None),
        ];
        for (subjects, expected) in cases {
            let common = common_pattern(subjects.iter().copied());
            assert_eq!(common.as_deref(), expected, "{subjects:?}");
            let pattern = common.unwrap_or_else(|| ">".to_owned());
            for subject in subjects.iter().filter(|subject| !subject.contains('>')) {
                assert!(matches(&pattern, subject), "{pattern} {subject}");
            }
        }
    }

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
