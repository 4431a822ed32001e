//! Versions of nats-server, and what some of them do to streams.

use super::stream_info::StreamInfo;

/// A version: `2.10.3`, perhaps with something behind it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Version([u32; 3]);

impl Version {
    pub(super) const fn new(major: u32, minor: u32, patch: u32) -> Self {
        Self([major, minor, patch])
    }

    /// What can't be read is 0.
    pub(super) fn parse(text: &str) -> Self {
        let mut parts = text.split(['.', '-', '+']).map(|part| part.parse().unwrap_or_default());
        Self(std::array::from_fn(|_| parts.next().unwrap_or_default()))
    }

    const fn is_within(self, from: Self, before: Self) -> bool {
        let [one, from, before] = [self.number(), from.number(), before.number()];
        from <= one && one < before
    }

    const fn number(self) -> u64 {
        let Self([major, minor, patch]) = self;
        ((major as u64) << 40) + ((minor as u64) << 20) + patch as u64
    }
}

/// What a server of this version can do to a stream that has copies.
pub(super) fn traps(text: &str, info: &StreamInfo) -> Vec<String> {
    let version = Version::parse(text);
    let mut found = Vec::new();
    if info.number("config.num_replicas") < 2 {
        return found;
    }
    // nats-server issues 6415 and 8106.
    if version < Version::new(2, 11, 0) {
        found.push(format!(
            "version {text}: when the stream's leader changes, a message can get lost and each repeat of it is refused until the duplicate window is over, so its sender gets 503 for as long; and a leader that stood still and comes back can lose events that were acknowledged; update to 2.12.9, 2.14.1 or newer"
        ));
    } else if version < Version::new(2, 12, 9) || version.is_within(Version::new(2, 13, 0), Version::new(2, 14, 1)) {
        found.push(format!(
            "version {text}: in a rare race with a change of the stream's leader, repeats of a message are refused until the duplicate window is over; update to 2.12.9, 2.14.1 or newer"
        ));
    }
    // nats-server issue 7817.
    let loses = version.is_within(Version::new(2, 12, 3), Version::new(2, 12, 5));
    if loses && info.text("config.retention") == "workqueue" {
        found.push(format!(
            "version {text}: a WorkQueue stream with copies loses messages that run out of deliveries; update, and set max_deliver of its consumers to -1"
        ));
    }
    found
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn a_trap_is_one_of_certain_versions_in_a_cluster() {
        let stream = |replicas: u32, retention: &str| {
            StreamInfo::of(json!({ "config": { "num_replicas": replicas, "retention": retention } }))
        };
        for (version, limits, workqueue) in [
            ("2.9.10", 1, 1),
            ("2.10.29", 1, 1),
            ("2.11.0", 1, 1),
            ("2.12.2", 1, 1),
            ("2.12.3", 1, 2),
            ("2.12.4-RC.1", 1, 2),
            ("2.12.5", 1, 1),
            ("2.12.9", 0, 0),
            ("2.12.10", 0, 0),
            ("2.14.0", 1, 1),
            ("2.14.1", 0, 0),
            ("2.15.1", 0, 0),
            ("3.0.0", 0, 0),
        ] {
            assert_eq!(traps(version, &stream(1, "workqueue")), Vec::<String>::new(), "{version}, one server");
            assert_eq!(traps(version, &stream(3, "limits")).len(), limits, "{version}");
            assert_eq!(traps(version, &stream(3, "workqueue")).len(), workqueue, "{version}");
        }
    }
}
