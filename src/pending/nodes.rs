//! What each server of a Sentinel set-up or a cluster can cost, for `hookgate doctor`.

use std::time::Duration;

use redis::{AsyncConnectionConfig, RedisError};

use super::{
    access::{Access, Found, Node},
    cluster::{Slots, slots},
    connection::Connection,
    diagnosis::{Asked, words},
    inspect::{Demands, cant_look, judge, judge_replica},
    redis::Redis,
    sentinel::Sentinels,
};
use crate::{delivery::Durability, finding::Finding, metrics::Operation};

/// Fewer can't tell a dead primary from a cut network.
const SENTINELS: usize = 3;
const ALL_SLOTS: usize = 16_384;

impl Redis {
    /// What is found on each server; nothing where there is one.
    pub(super) async fn inspect_nodes(&self, demands: Demands) -> Option<Vec<Finding>> {
        let access = self.links.access();
        match access.found() {
            Found::Here => None,
            Found::By(sentinels) => Some(by_sentinels(access, sentinels, self.options.timeout, demands).await),
            Found::In(_) => Some(self.in_cluster(access, demands).await),
        }
    }

    async fn in_cluster(&self, access: &Access, demands: Demands) -> Vec<Finding> {
        // Where no host is told it is the one that was asked, which the connection has forgotten.
        let named = access.node().unwrap_or_else(|| Node { host: String::new(), port: 0 });
        let ranges = self.look(&self.names.routes, Operation::Operator, async |link| slots(link, &named).await).await;
        let ranges = match ranges {
            Ok(ranges) => ranges,
            Err(error) => {
                return vec![Finding::failure("redis cluster", format!("does not say who is in it: {error}"))];
            }
        };
        let mut findings = vec![coverage(&ranges)];
        let mut shards: Vec<Vec<Node>> = ranges.into_iter().map(|slots| slots.nodes).collect();
        shards.sort();
        shards.dedup();
        for shard in shards {
            let Some((primary, listed)) = shard.split_first() else { continue };
            let (found, connected) = inspect(access, primary, false, self.options.timeout, demands).await;
            findings.extend(found);
            // Nodes leave a replica out that has received nothing yet.
            let unlisted = connected.into_iter().filter(|replica| !listed.contains(replica));
            let replicas: Vec<Node> = listed.iter().cloned().chain(unlisted).collect();
            for replica in &replicas {
                findings.extend(inspect(access, replica, true, self.options.timeout, demands).await.0);
            }
            if replicas.is_empty() {
                let text = "has no replica: if it fails, nothing can be claimed under its slots until it is back; add one (redis-cli --cluster add-node with --cluster-slave)";
                findings.push(Finding::warning(format!("redis cluster ({primary})"), text));
            }
        }
        findings
    }
}

fn coverage(ranges: &[Slots]) -> Finding {
    let covered: usize = ranges.iter().map(|slots| usize::from(slots.last - slots.first) + 1).sum();
    if covered == ALL_SLOTS {
        return Finding::ok("redis cluster", "all slots have a primary");
    }
    let text = format!(
        "only {covered} of {ALL_SLOTS} slots have a primary; with cluster-require-full-coverage nothing can be claimed at all, else not on every route; start the primaries that are gone, or give their slots to others with redis-cli --cluster fix"
    );
    Finding::failure("redis cluster", text)
}

async fn by_sentinels(access: &Access, sentinels: &Sentinels, timeout: Duration, demands: Demands) -> Vec<Finding> {
    let primary = match sentinels.primary(timeout, Duration::ZERO).await {
        Ok(primary) => primary,
        Err(contact) => return vec![Finding::failure("redis sentinels", contact.problem().unwrap_or_default())],
    };
    let (count, service) = (sentinels.nodes().len(), sentinels.service());
    let text = format!("the primary of {service:?} is {primary}");
    let mut findings = vec![if count < SENTINELS {
        let few = format!("{text}; redis.url names {count} sentinels, and {SENTINELS} are the least that survive one");
        Finding::warning("redis sentinels", few)
    } else {
        Finding::ok("redis sentinels", text)
    }];
    findings.extend(inspect(access, &primary, false, timeout, demands).await.0);
    let Some(replicas) = sentinels.replicas(timeout).await else {
        let text = "the sentinels do not say which replicas there are; allow +sentinel|replicas to see them";
        findings.push(Finding::warning("redis replicas", text));
        return findings;
    };
    for replica in replicas {
        let get = |name: &str| replica.get(name).map_or("", String::as_str);
        let Some(node) = Node::told(&format!("{}:{}", get("ip"), get("port")), &primary.host) else { continue };
        if get("slave-priority") == "0" {
            findings.push(never_promoted(&node, demands.durability));
        }
        findings.extend(inspect(access, &node, true, timeout, demands).await.0);
    }
    findings
}

/// A Redis replica with `replica-priority 0`.
fn never_promoted(node: &Node, durability: Durability) -> Finding {
    let what = format!("redis replica ({node})");
    if durability == Durability::Replica {
        let text = "replica-priority 0: it is never promoted, and yet WAIT counts it; set replica-priority 100 there, or redis.wait_replicas to the number of all Redis replicas";
        return Finding::warning(what, text);
    }
    Finding::ok(what, "replica-priority 0: it is never promoted")
}

/// The Redis replicas that are connected to a primary, as its INFO has them.
fn connected(info: &str, primary: &Node) -> Vec<Node> {
    let field = |line: &str, name: &str| {
        let fields = line.split_once(':')?.1.trim_end().split(',');
        fields
            .filter_map(|field| field.split_once('='))
            .find(|(key, _)| *key == name)
            .map(|(_, value)| value.to_owned())
    };
    let of_a_replica = |line: &&str| line.strip_prefix("slave").is_some_and(|rest| rest.starts_with(char::is_numeric));
    let node = |line: &str| Node::told(&format!("{}:{}", field(line, "ip")?, field(line, "port")?), &primary.host);
    info.lines().filter(of_a_replica).filter_map(node).collect()
}

/// What one server says of itself, and the replicas that are connected to it.
async fn inspect(
    access: &Access,
    node: &Node,
    replica: bool,
    timeout: Duration,
    demands: Demands,
) -> (Vec<Finding>, Vec<Node>) {
    let mut replicas = Vec::new();
    let asked = Asked::new(access).at(node);
    let answer = tokio::time::timeout(timeout * 2, look(access, node, timeout)).await;
    let findings = match answer {
        Ok(Ok((info, appendfsync, fences))) => {
            let appendfsync = appendfsync.as_deref();
            replicas = connected(&info, node);
            if replica {
                judge_replica(&info, appendfsync, demands)
            } else {
                let mut findings = judge(&info, appendfsync, demands);
                if matches!(access.found(), Found::By(_)) {
                    findings.push(partition(fences));
                }
                findings
            }
        }
        Ok(Err(Unseen::Denied(error))) => vec![cant_look(&words(&error))],
        Ok(Err(Unseen::Unreachable(error))) => {
            vec![Finding::warning("redis", asked.diagnose(&error).problem().unwrap_or_default())]
        }
        Ok(Err(Unseen::File(problem))) => vec![Finding::failure("redis", problem)],
        Err(_elapsed) => vec![Finding::warning("redis", asked.silent(timeout * 2).problem().unwrap_or_default())],
    };
    let named = |finding: Finding| Finding { what: format!("{} ({node})", finding.what), ..finding };
    (findings.into_iter().map(named).collect(), replicas)
}

/// Why a server can't be looked at.
enum Unseen {
    Denied(RedisError),
    Unreachable(RedisError),
    File(String),
}

/// INFO, appendfsync, and whether it refuses writes without its replicas, where that can be seen.
type Seen = (String, Option<String>, Option<bool>);

async fn look(access: &Access, node: &Node, timeout: Duration) -> Result<Seen, Unseen> {
    let config = AsyncConnectionConfig::new().set_connection_timeout(Some(timeout)).set_response_timeout(Some(timeout));
    let client = access.at(node).client().map_err(|error| Unseen::File(error.to_string()))?;
    let connection = client.get_multiplexed_async_connection_with_config(&config).await;
    let mut connection = Connection::new(connection.map_err(Unseen::Unreachable)?, None);
    let info = redis::cmd("INFO").query_async(&mut connection).await.map_err(Unseen::Denied)?;
    let mut config = async |name: &str| {
        let pair = redis::cmd("CONFIG").arg("GET").arg(name).query_async::<Vec<String>>(&mut connection).await;
        pair.ok().and_then(|pair| pair.into_iter().nth(1))
    };
    let appendfsync = config("appendfsync").await;
    let fences = config("min-replicas-to-write").await.map(|count| count != "0");
    Ok((info, appendfsync, fences))
}

/// What a cut network can do to a primary that sentinels watch.
fn partition(fences: Option<bool>) -> Finding {
    const WHAT: &str = "redis min-replicas-to-write";
    match fences {
        Some(true) => Finding::ok(WHAT, "a primary that is cut off from its replicas takes no writes"),
        Some(false) => Finding::warning(
            WHAT,
            "0: a primary that is cut off from the sentinels goes on taking claims beside the new one, and forgets them when it comes back; set it to 1, and min-replicas-max-lag to less than down-after-milliseconds",
        ),
        None => Finding::warning(WHAT, "unknown: allow +config|get to the user of this command to see it"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_cluster_lacks_comes_with_what_to_do() {
        let lacks = coverage(&[Slots { first: 0, last: 9_999, nodes: Vec::new() }]).text;
        assert!(lacks.contains("only 10000 of 16384 slots") && lacks.contains("redis-cli --cluster fix"), "{lacks}");
        let node = Node { host: "redis.test".to_owned(), port: 6379 };
        let never = never_promoted(&node, Durability::Replica).text;
        assert!(never.contains("set replica-priority 100") && never.contains("redis.wait_replicas"), "{never}");
    }
}
