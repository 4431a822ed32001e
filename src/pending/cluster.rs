//! Which nodes of a Redis Cluster there are, and which keys belong together.
//!
//! hookgate keeps no map of the slots. All keys of a call carry one hash tag, and each tag has a connection of its own to the node that
//! has its slot: any node that is asked for a key of another one names that one (MOVED), and then the connection is made anew. So
//! WAIT speaks of the writes of the claims, which a client that shares connections between nodes and reconnects them could not say.

use std::{
    collections::HashSet,
    sync::{Mutex, PoisonError},
};

use redis::{RedisError, Value};

use super::{access::Node, connection::Connection};

/// The nodes that are known.
#[derive(Debug)]
pub(super) struct Nodes {
    named: Vec<Node>,
    learned: Mutex<Vec<Node>>,
    /// Nodes to which the last attempt to connect failed.
    failed: Mutex<HashSet<Node>>,
}

/// A range of slots: first, last, and its nodes, the primary first.
pub(super) struct Slots {
    pub(super) first: u16,
    pub(super) last: u16,
    pub(super) nodes: Vec<Node>,
}

impl Nodes {
    pub(super) fn new(named: Vec<Node>) -> Self {
        Self { named, learned: Mutex::default(), failed: Mutex::default() }
    }

    /// Nodes to ask, each once. Those that failed last come last, so that a silent one does not use up the short life of a
    /// connection for a removed route.
    pub(super) fn all(&self) -> Vec<Node> {
        let mut all = self.learned.lock().unwrap_or_else(PoisonError::into_inner).clone();
        for node in &self.named {
            if !all.contains(node) {
                all.push(node.clone());
            }
        }
        let failed = self.failed.lock().unwrap_or_else(PoisonError::into_inner);
        all.sort_by_key(|node| failed.contains(node));
        all
    }

    /// Remembers whether a node could be used.
    pub(super) fn record(&self, node: &Node, failed: bool) {
        let mut all = self.failed.lock().unwrap_or_else(PoisonError::into_inner);
        if failed {
            all.insert(node.clone());
        } else {
            all.remove(node);
        }
    }

    /// Remembers all nodes that this one knows: those of `redis.url` may be replaced one day.
    pub(super) async fn learn(&self, connection: &mut Connection, asked: &Node) -> Result<(), RedisError> {
        let mut nodes: Vec<Node> = slots(connection, asked).await?.into_iter().flat_map(|slots| slots.nodes).collect();
        nodes.sort();
        nodes.dedup();
        let still_there = |node: &Node| nodes.contains(node) || self.named.contains(node);
        self.failed.lock().unwrap_or_else(PoisonError::into_inner).retain(still_there);
        *self.learned.lock().unwrap_or_else(PoisonError::into_inner) = nodes;
        Ok(())
    }
}

/// Who has which slots, as this node knows it.
pub(super) async fn slots(connection: &mut Connection, asked: &Node) -> Result<Vec<Slots>, RedisError> {
    let ranges: Vec<Vec<Value>> = redis::cmd("CLUSTER").arg("SLOTS").query_async(connection).await?;
    let read = |range: Vec<Value>| {
        let mut parts = range.into_iter();
        let first = redis::from_redis_value(parts.next()?).ok()?;
        let last = redis::from_redis_value(parts.next()?).ok()?;
        let node = |value: Value| {
            let Value::Array(parts) = value else { return None };
            let mut parts = parts.into_iter();
            let host: Option<String> = redis::from_redis_value(parts.next()?).ok()?;
            let port: u16 = redis::from_redis_value(parts.next()?).ok()?;
            Node::told(&format!("{}:{port}", host.unwrap_or_default()), &asked.host)
        };
        Some(Slots { first, last, nodes: parts.filter_map(node).collect() })
    };
    Ok(ranges.into_iter().filter_map(read).collect())
}

/// What decides a key's slot: what stands in the first braces, or all of it.
pub(super) fn tag(key: &str) -> &str {
    let in_braces = key.split_once('{').and_then(|(_, rest)| rest.split_once('}')).map(|(tag, _)| tag);
    in_braces.filter(|tag| !tag.is_empty()).unwrap_or(key)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_with_one_tag_belong_together() {
        for (key, expected) in [
            ("vmh:beteiligte:create_pending", "vmh:beteiligte:create_pending"),
            ("{vmh:beteiligte:create_pending}:outbox", "vmh:beteiligte:create_pending"),
            ("{hookgate:dead_letters}:bytes", "hookgate:dead_letters"),
            ("a{}b", "a{}b"),
            ("a{b", "a{b"),
            ("{a}{b}", "a"),
        ] {
            assert_eq!(tag(key), expected, "{key}");
        }
    }

    #[test]
    fn nodes_that_failed_are_asked_last() {
        let node = |port| Node { host: "redis.test".to_owned(), port };
        let nodes = Nodes::new(vec![node(1), node(2), node(3)]);
        nodes.record(&node(1), true);
        assert_eq!(nodes.all(), [node(2), node(3), node(1)]);
        nodes.record(&node(2), true);
        nodes.record(&node(1), false);
        assert_eq!(nodes.all(), [node(1), node(3), node(2)]);
    }

    #[test]
    fn a_node_is_read_as_servers_write_it() {
        let node = |host: &str, port| Some(Node { host: host.to_owned(), port });
        assert_eq!(Node::told("10.0.0.1:7000", "asked"), node("10.0.0.1", 7000));
        assert_eq!(Node::told("::1:7000", "asked"), node("::1", 7000));
        assert_eq!(Node::told(":7000", "asked"), node("asked", 7000));
        assert_eq!(Node::told("?:7000", "asked"), node("asked", 7000));
        assert_eq!(Node::told("nonsense", "asked"), None);
    }
}
