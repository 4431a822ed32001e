//! What a server says of the others in a group that agrees by majority: those with a copy of a stream, or of the metadata.

use std::time::Duration;

use serde_json::Value;

/// After this long without a word from a peer, servers no longer take it for up to date (`lostQuorumInterval`). One that was
/// killed is `offline` only minutes later.
const SILENT: Duration = Duration::from_secs(10);
/// A healthy peer is some operations behind under load.
const BEHIND: u64 = 1_000;
/// Most peers that are named.
const NAMED: usize = 8;
/// Longest name that is shown.
const NAME_CHARS: usize = 64;

/// The other servers of a group.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Peers {
    /// Number of the other servers.
    pub others: usize,
    /// How many of them are unreachable.
    pub away: usize,
    problems: Vec<String>,
}

impl Peers {
    /// Of `replicas` as a server lists them: each with `name`, `offline`, `current`, `active` (in nanoseconds) and `lag`.
    /// What is missing, or is something else, is taken for healthy.
    pub fn of(replicas: Option<&Value>) -> Self {
        let listed = replicas.and_then(Value::as_array).map_or(&[][..], Vec::as_slice);
        let mut peers = Self { others: listed.len(), ..Self::default() };
        for peer in listed {
            let Some((problem, is_away)) = problem(peer) else { continue };
            peers.away += usize::from(is_away);
            peers.problems.push(problem);
        }
        peers
    }

    /// Servers needed for a majority, counting the one that was asked.
    #[must_use]
    pub const fn majority(&self) -> usize {
        self.all() / 2 + 1
    }

    /// Servers that are reachable, counting the one that was asked.
    #[must_use]
    pub const fn there(&self) -> usize {
        self.all() - self.away
    }

    /// Servers in the group, counting the one that was asked.
    #[must_use]
    pub const fn all(&self) -> usize {
        self.others + 1
    }

    /// Those that are not well: `"n2" is offline`. `None` if all are.
    #[must_use]
    pub fn problems(&self) -> Option<String> {
        let named = self.problems.iter().take(NAMED).map(String::as_str).collect::<Vec<_>>().join(", ");
        match self.problems.len() {
            0 => None,
            count if count > NAMED => Some(format!("{named} and {} more", count - NAMED)),
            _ => Some(named),
        }
    }
}

/// What is wrong with a peer, and whether it can't be reached.
fn problem(peer: &Value) -> Option<(String, bool)> {
    let flag = |key: &str| peer.get(key).and_then(Value::as_bool);
    let number = |key: &str| peer.get(key).and_then(Value::as_u64);
    let name = printable(peer.get("name").and_then(Value::as_str).unwrap_or("?"));
    let active = number("active");
    let silent = Duration::from_nanos(active.unwrap_or_default());
    let seconds = silent.as_secs();
    if flag("offline") == Some(true) {
        let seen = if seconds > 0 { format!(" (last heard {seconds} s ago)") } else { String::new() };
        return Some((format!("{name} is offline{seen}"), true));
    }
    if flag("current") != Some(false) {
        return None;
    }
    // A leader that was elected after a peer died never hears of it. A healthy peer shows this for a heartbeat, of a second.
    if active == Some(0) {
        return Some((format!("{name} has said nothing since the last election"), true));
    }
    if silent >= SILENT {
        return Some((format!("{name} has said nothing for {seconds} s"), true));
    }
    let lag = number("lag").unwrap_or_default();
    (lag >= BEHIND).then(|| (format!("{name} is {lag} operations behind"), false))
}

/// A name that a server gave, fit for a terminal.
#[must_use]
pub fn printable(name: &str) -> String {
    let short: String = name.chars().take(NAME_CHARS).collect();
    format!("{short:?}")
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn a_peer_that_is_away_or_far_behind_is_named() {
        const SECOND: u64 = 1_000_000_000;
        for (peer, away, expected) in [
            // As 2.9.10 and 2.15.1 list one that is well.
            (json!({ "name": "n2", "current": true, "active": 340_000_000, "peer": "bkCGheKT" }), 0, None),
            (
                json!({ "name": "n2", "current": false, "offline": true, "active": 12 * SECOND, "lag": 9 }),
                1,
                Some("\"n2\" is offline (last heard 12 s ago)"),
            ),
            (json!({ "name": "n2", "current": false, "offline": true }), 1, Some("\"n2\" is offline")),
            (
                json!({ "name": "n2", "current": false, "active": 11 * SECOND }),
                1,
                Some("\"n2\" has said nothing for 11 s"),
            ),
            // As 2.15.1 lists one that was killed while it led.
            (
                json!({ "name": "n2", "current": false, "active": 0, "lag": 3, "peer": "4gzTXO11" }),
                1,
                Some("\"n2\" has said nothing since the last election"),
            ),
            (
                json!({ "name": "n2", "current": false, "active": SECOND, "lag": 1000 }),
                0,
                Some("\"n2\" is 1000 operations behind"),
            ),
            // Under load, for a moment.
            (json!({ "name": "n2", "current": false, "active": SECOND, "lag": 999 }), 0, None),
            (json!({ "name": "n2", "current": true, "lag": 5000 }), 0, None),
        ] {
            let list = json!([peer]);
            let peers = Peers::of(Some(&list));
            assert_eq!((peers.others, peers.away, peers.problems().as_deref()), (1, away, expected), "{list}");
        }
    }

    #[test]
    fn odd_and_endless_lists_are_borne() {
        for odd in [json!(null), json!("x"), json!({}), json!([]), json!(-1)] {
            assert_eq!(Peers::of(Some(&odd)), Peers::default(), "{odd}");
        }
        let odd = json!([null, 7, [], {}, { "name": 7, "offline": "yes", "current": 0, "active": -1, "lag": 1e300 }]);
        assert_eq!((Peers::of(Some(&odd)).others, Peers::of(Some(&odd)).problems()), (5, None));
        assert_eq!(Peers::of(None), Peers::default());

        let long = format!("\u{1b}[31m{}", "ä".repeat(1_000_000));
        let many = json!(vec![json!({ "name": long, "offline": true, "active": u64::MAX }); 100]);
        let peers = Peers::of(Some(&many));
        let text = peers.problems().expect("they are offline");
        assert!(text.ends_with(" and 92 more") && text.len() < 3_000 && !text.contains('\u{1b}'), "{text}");
        assert_eq!((peers.all(), peers.there(), peers.majority()), (101, 1, 51));
    }
}
