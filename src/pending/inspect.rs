//! What the settings of a Redis can cost, for `hookgate doctor`.
//!
//! A Redis that forgets its last writes forgets claims and releases. `redis.durability` makes claims wait until they are
//! safe. It can't do that for the SREM of a consumer, which never passes through hookgate.

use std::collections::HashMap;

use super::redis::{Durability, Redis};
use crate::{finding::Finding, metrics::Operation};

/// What an answer rests on decides what a lost claim costs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Stakes {
    /// The stream has every accepted event: a lost claim costs a duplicate at most.
    Duplicates,
    /// Accepted events may be in the outbox alone (`nats.on_unavailable = "accept"`).
    Events,
}

impl Stakes {
    const fn of_lost_claims(self) -> &'static str {
        match self {
            Self::Duplicates => "an id claimed then gets a duplicate with its next webhook",
            Self::Events => {
                "an event that was accepted while NATS was down, and lies in the outbox alone, is LOST, because nats.on_unavailable is \"accept\""
            }
        }
    }
}

/// What a forgotten release costs, whatever `redis.durability` says.
const COST_OF_LOST_RELEASES: &str = "an id that a consumer released then (SREM) is pending again, and its next webhooks are answered 200 without an event until somebody releases it";

/// What is demanded of a server.
#[derive(Debug, Clone, Copy)]
pub struct Demands {
    /// What an answer rests on.
    pub stakes: Stakes,
    /// What a claim has to survive.
    pub durability: Durability,
    /// Redis replicas that have to have it.
    pub wait_replicas: usize,
}

impl Redis {
    /// Looks at version, role, eviction and persistence. Needs INFO, and CONFIG GET for one of the answers.
    pub async fn inspect(&self, demands: Demands) -> Vec<Finding> {
        if let Some(findings) = self.inspect_nodes(demands).await {
            return findings;
        }
        let info: String = match self
            .look(&self.names.routes, Operation::Operator, async |link| redis::cmd("INFO").query_async(link).await)
            .await
        {
            Ok(info) => info,
            Err(error) => return vec![cant_look(&error)],
        };
        let appendfsync: Option<String> = self
            .look(&self.names.routes, Operation::Operator, async |link| {
                redis::cmd("CONFIG").arg("GET").arg("appendfsync").query_async::<Vec<String>>(link).await
            })
            .await
            .ok()
            .and_then(|pair| pair.into_iter().nth(1));
        judge(&info, appendfsync.as_deref(), demands)
    }
}

/// INFO can't be had.
pub(super) fn cant_look(problem: &impl std::fmt::Display) -> Finding {
    let text = format!("can't look at the settings ({problem}); allow +info to the user of this command");
    Finding::warning("redis INFO", text)
}

/// Judges what a Redis replica answers to INFO: after a failover it is the primary.
pub(super) fn judge_replica(info: &str, appendfsync: Option<&str>, demands: Demands) -> Vec<Finding> {
    let mut findings = judge(info, appendfsync, demands);
    findings.retain(|finding| {
        matches!(finding.what.as_str(), "redis version" | "redis maxmemory-policy" | "redis persistence")
    });
    let in_sync = info.lines().any(|line| line.trim_end() == "master_link_status:up");
    findings.push(if in_sync {
        Finding::ok("redis role", "replica, in touch with its primary")
    } else {
        Finding::warning("redis role", "replica, and out of touch with its primary: it has none of the last claims")
    });
    findings
}

/// Judges the answer to INFO.
pub(super) fn judge(info: &str, appendfsync: Option<&str>, demands: Demands) -> Vec<Finding> {
    let Demands { stakes, durability, wait_replicas } = demands;
    let fields: HashMap<&str, &str> = info.lines().filter_map(|line| line.trim_end().split_once(':')).collect();
    let get = |name: &str| fields.get(name).copied().unwrap_or("");
    let cost = format!("{}; {COST_OF_LOST_RELEASES}", stakes.of_lost_claims());
    let worse = |what: &str, text: String| match stakes {
        Stakes::Duplicates => Finding::warning(what, text),
        Stakes::Events => Finding::failure(what, text),
    };
    let mut findings = vec![Finding::ok("redis version", get("redis_version"))];

    findings.push(match get("role") {
        "master" => Finding::ok("redis role", "master"),
        role => {
            Finding::failure("redis role", format!("is {role:?}: it takes no writes; point redis.url at the primary"))
        }
    });

    findings.push(match (get("maxmemory_policy"), get("maxmemory")) {
        ("noeviction", _) => Finding::ok("redis maxmemory-policy", "noeviction"),
        // Pending SET and outbox have no time to live.
        (policy, _) if policy.starts_with("volatile") => Finding::ok(
            "redis maxmemory-policy",
            format!("{policy}: evicts only keys with a time to live, which claims have not; noeviction says so more plainly"),
        ),
        (policy, limit) => Finding::failure(
            "redis maxmemory-policy",
            format!(
                "{policy} (maxmemory {limit}): at the limit Redis throws away whole pending SETs and outboxes: every pending id at once is forgotten, its event published again when its webhook comes again; with an outbox alone gone, ids look done whose events are in no stream; set noeviction"
            ),
        ),
    });

    findings.push(match (get("aof_enabled"), appendfsync) {
        ("1", Some("always")) => Finding::ok("redis persistence", "append-only file, appendfsync always"),
        ("1", Some("no")) => worse(
            "redis persistence",
            format!("appendfsync no: a crash of the machine loses what the kernel had not written, often 30 s: {cost}; set everysec or always"),
        ),
        ("1", Some(other)) => {
            let text = format!("append-only file, appendfsync {other}: a crash of the machine loses up to about 1 s: {cost}");
            if durability == Durability::Aof {
                // Claims wait for the disk.
                Finding::warning(
                    "redis persistence",
                    format!("append-only file, appendfsync {other}: a crash of the machine loses up to about 1 s of what redis.durability does not cover: {COST_OF_LOST_RELEASES}; set appendfsync always"),
                )
            } else if stakes == Stakes::Duplicates {
                Finding::warning("redis persistence", format!("{text}; set appendfsync always"))
            } else {
                worse("redis persistence", format!("{text}; set appendfsync always, or redis.durability = \"aof\", which does not cover SREM"))
            }
        }
        ("1", None) => Finding::warning(
            "redis persistence",
            "append-only file, appendfsync unknown: allow +config|get to the user of this command to see it",
        ),
        _ => worse(
            "redis persistence",
            format!("no append-only file: a restart loses all claims since the last snapshot, or all of them: {cost}; set appendonly yes"),
        ),
    });

    let replicas = get("connected_slaves");
    let count = replicas.parse::<usize>().unwrap_or(0);
    findings.push(match (replicas, durability) {
        (_, Durability::Replica) if count > 0 && count < wait_replicas => Finding::failure(
            "redis replicas",
            format!("{count} connected, and redis.wait_replicas is {wait_replicas}: without NATS every request gets 503; connect more, or lower it"),
        ),
        (_, Durability::Replica) if count > wait_replicas => Finding::warning(
            "redis replicas",
            format!("{count}, and a claim counts once {wait_replicas} of them has it: another one may be promoted, and {}; set redis.wait_replicas = {count}", stakes.of_lost_claims()),
        ),
        ("" | "0", Durability::Replica) => Finding::failure(
            "redis replicas",
            "none connected, and redis.durability is \"replica\": without NATS every request gets 503; connect one",
        ),
        ("" | "0", _) => Finding::ok("redis replicas", "none: there is nothing to fail over to"),
        (count, Durability::Replica) => {
            let text = format!("{count}; a claim counts once one of them has it, and a release does not wait for one, so a failover can lose the last releases: {COST_OF_LOST_RELEASES}");
            Finding::warning("redis replicas", text)
        }
        (count, _) => {
            let text = format!("{count}; replication is asynchronous, so a failover loses the last claims and releases: {cost}");
            match stakes {
                Stakes::Duplicates => Finding::warning("redis replicas", text),
                Stakes::Events => {
                    Finding::failure("redis replicas", format!("{text}; set redis.durability = \"replica\""))
                }
            }
        }
    });
    findings
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::finding::Level;

    const GOOD: &str = "# Server\r\nredis_version:7.0.15\r\nmaxmemory:0\r\nmaxmemory_policy:noeviction\r\naof_enabled:1\r\nrole:master\r\nconnected_slaves:0\r\n";

    fn level(info: &str, fsync: Option<&str>, stakes: Stakes, durability: Durability, what: &str) -> Level {
        let findings = judge(info, fsync, Demands { stakes, durability, wait_replicas: 1 });
        findings.into_iter().find(|finding| finding.what == what).expect("each thing is judged").level
    }

    #[test]
    fn a_good_redis_is_good() {
        for finding in judge(
            GOOD,
            Some("always"),
            Demands { stakes: Stakes::Duplicates, durability: Durability::None, wait_replicas: 1 },
        ) {
            assert_eq!(finding.level, Level::Ok, "{finding:?}");
        }
    }

    #[test]
    fn what_can_forget_a_release_says_so_also_where_claims_are_durable() {
        use Durability::{Aof, None as Asis, Replica};
        let info = GOOD.replace("slaves:0", "slaves:1");
        let no_file = info.replace("aof_enabled:1", "aof_enabled:0");
        for (info, fsync, durability, what) in [
            (&info, "everysec", Asis, "redis persistence"),
            (&info, "everysec", Aof, "redis persistence"),
            (&info, "no", Aof, "redis persistence"),
            (&no_file, "always", Asis, "redis persistence"),
            (&info, "always", Asis, "redis replicas"),
            (&info, "always", Replica, "redis replicas"),
        ] {
            for stakes in [Stakes::Duplicates, Stakes::Events] {
                let findings = judge(info, Some(fsync), Demands { stakes, durability, wait_replicas: 1 });
                let found = findings.iter().find(|finding| finding.what == what).expect("each thing is judged");
                assert!(found.text.contains("answered 200 without an event"), "{durability:?}: {found:?}");
                assert_ne!(found.level, Level::Ok, "{durability:?}: {found:?}");
            }
        }
    }

    #[test]
    fn each_dangerous_setting_is_found() {
        use Durability::{Aof, None as Asis, Replica};
        use Stakes::{Duplicates, Events};
        let cases = [
            ("role:master", "role:slave", "everysec", Duplicates, Asis, "redis role", Level::Failure),
            ("noeviction", "allkeys-lru", "everysec", Duplicates, Asis, "redis maxmemory-policy", Level::Failure),
            ("noeviction", "volatile-ttl", "everysec", Duplicates, Asis, "redis maxmemory-policy", Level::Ok),
            ("aof_enabled:1", "aof_enabled:0", "everysec", Duplicates, Asis, "redis persistence", Level::Warning),
            ("aof_enabled:1", "aof_enabled:0", "everysec", Events, Asis, "redis persistence", Level::Failure),
            ("", "", "no", Duplicates, Asis, "redis persistence", Level::Warning),
            ("", "", "everysec", Events, Asis, "redis persistence", Level::Failure),
            ("", "", "everysec", Duplicates, Asis, "redis persistence", Level::Warning),
            ("", "", "everysec", Events, Aof, "redis persistence", Level::Warning),
            ("", "", "always", Events, Asis, "redis persistence", Level::Ok),
            ("slaves:0", "slaves:1", "everysec", Duplicates, Asis, "redis replicas", Level::Warning),
            ("slaves:0", "slaves:1", "everysec", Events, Asis, "redis replicas", Level::Failure),
            ("slaves:0", "slaves:1", "everysec", Events, Replica, "redis replicas", Level::Warning),
            ("", "", "everysec", Events, Replica, "redis replicas", Level::Failure),
            ("slaves:0", "slaves:2", "everysec", Duplicates, Replica, "redis replicas", Level::Warning),
        ];
        for (from, to, fsync, stakes, durability, what, expected) in cases {
            let info = GOOD.replace(from, to);
            assert_eq!(
                level(&info, Some(fsync), stakes, durability, what),
                expected,
                "{to:?} {fsync} {stakes:?} {durability:?}"
            );
        }
    }
}
