//! A Redis Cluster: three primaries, and a Redis replica for each.

use std::{process::Command, time::Duration};

use redis::FromRedisValue;

use super::{eventually, redis::RedisServer, within};

/// How long a node may be silent before the others take it for dead.
const NODE_TIMEOUT: Duration = Duration::from_secs(2);
const SLOTS: u16 = 16_384;

/// Its nodes; the replica of each of the first three is three places behind it.
pub(crate) struct RedisCluster {
    pub(crate) nodes: Vec<RedisServer>,
}

/// A node that is cut off, seen from its side.
pub(crate) struct Cut {
    inside: redis::aio::MultiplexedConnection,
    /// How many files it could open before.
    before: String,
}

impl RedisCluster {
    /// All slots have a primary, and each primary a replica that follows.
    pub(crate) async fn start() -> Self {
        let mut nodes = Vec::new();
        for _ in 0..6 {
            nodes.push(RedisServer::cluster_node(NODE_TIMEOUT).await);
        }
        let cluster = Self { nodes };
        for (place, node) in cluster.nodes.iter().enumerate() {
            say::<()>(node, &["CLUSTER", "SET-CONFIG-EPOCH", &(place + 1).to_string()]).await;
            let (port, bus) = (cluster.nodes[0].port().to_string(), cluster.nodes[0].bus_port().to_string());
            if place > 0 {
                say::<()>(node, &["CLUSTER", "MEET", "127.0.0.1", &port, &bus]).await;
            }
        }
        for (place, node) in (0_u16..).zip(&cluster.nodes[..3]) {
            let (first, last) = (SLOTS / 3 * place, if place == 2 { SLOTS - 1 } else { SLOTS / 3 * (place + 1) - 1 });
            say::<()>(node, &["CLUSTER", "ADDSLOTSRANGE", &first.to_string(), &last.to_string()]).await;
        }
        for (place, node) in cluster.nodes[3..].iter().enumerate() {
            let primary: String = say(&cluster.nodes[place], &["CLUSTER", "MYID"]).await;
            eventually("a node knows its primary", async || {
                try_say::<()>(node, &["CLUSTER", "REPLICATE", &primary]).await
            })
            .await;
        }
        eventually("the cluster works", async || {
            for node in &cluster.nodes {
                let info: String = say(node, &["CLUSTER", "INFO"]).await;
                let links: String = say(node, &["INFO", "replication"]).await;
                let follows = links.contains("role:master") && links.contains("connected_slaves:1")
                    || links.contains("master_link_status:up");
                let known: String = say(node, &["CLUSTER", "NODES"]).await;
                let follows = follows && known.lines().filter(|line| line.contains("slave")).count() == 3;
                if !info.contains("cluster_state:ok") || !info.contains("cluster_known_nodes:6") || !follows {
                    return None;
                }
            }
            Some(())
        })
        .await;
        cluster
    }

    /// Some of its nodes.
    pub(crate) fn url(&self) -> String {
        let nodes: Vec<_> = self.nodes.iter().take(2).map(|node| format!("127.0.0.1:{}", node.port())).collect();
        format!("redis+cluster://{}", nodes.join(","))
    }

    /// The place of the primary that has a key, as it knows itself.
    pub(crate) async fn owner(&self, key: &str) -> usize {
        eventually("a node has the key", async || {
            for (place, node) in self.nodes.iter().enumerate() {
                let role =
                    tokio::time::timeout(Duration::from_secs(1), try_say::<String>(node, &["INFO", "replication"]));
                // A replica answers for another one.
                if role.await.ok().flatten().is_some_and(|role| role.contains("role:master"))
                    && try_say::<usize>(node, &["EXISTS", key]).await.is_some()
                {
                    return Some(place);
                }
            }
            None
        })
        .await
    }

    pub(crate) async fn is_primary(&self, place: usize) -> bool {
        let role = try_say::<String>(&self.nodes[place], &["INFO", "replication"]);
        let role = tokio::time::timeout(Duration::from_secs(1), role).await.ok().flatten();
        role.is_some_and(|role| role.contains("role:master"))
    }

    /// Whether a Redis replica of this node has all that it has.
    pub(crate) async fn follows(&self, place: usize) -> bool {
        let links = try_say::<String>(&self.nodes[place], &["INFO", "replication"]).await;
        links.is_some_and(|links| links.contains("state=online"))
    }

    /// Waits until what a primary has now has reached its Redis replica.
    pub(crate) async fn replicated(&self, place: usize) {
        let told = |info: &str, field: &str| -> Option<u64> {
            info.lines().find_map(|line| line.strip_prefix(field)?.trim().parse().ok())
        };
        let info: String = say(&self.nodes[place], &["INFO", "replication"]).await;
        let goal = told(&info, "master_repl_offset:").expect("it says so");
        let replica = &self.nodes[(place + 3) % 6];
        eventually("the replica has all of it", async || {
            let info = try_say::<String>(replica, &["INFO", "replication"]).await?;
            (told(&info, "slave_repl_offset:")? >= goal).then_some(())
        })
        .await;
    }

    /// Has a replica take over in an orderly way. Redis gives that up when the others don't vote in time.
    pub(crate) async fn promote(&self, place: usize) {
        for _ in 0..5 {
            eventually("the replica begins to take over", async || {
                try_say::<()>(&self.nodes[place], &["CLUSTER", "FAILOVER"]).await
            })
            .await;
            let promoted = async || self.is_primary(place).await.then_some(());
            if within(Duration::from_secs(6), promoted).await.is_some() {
                return;
            }
        }
        panic!("the replica did not take over");
    }

    /// Cuts a node off from the others, but not from who is connected to it: it can open no sockets any more, and its links go.
    pub(crate) async fn cut_off(&self, place: usize) -> Cut {
        let node = &self.nodes[place];
        let mut inside = node.connection().await;
        let mut links = Vec::new();
        for other in (0..self.nodes.len()).filter(|other| *other != place) {
            links.push(self.id(other).await);
        }
        let before = node.limit_sockets("3");
        for id in links {
            let kill = redis::cmd("DEBUG").arg(&["CLUSTERLINK", "KILL", "ALL", &id]).exec_async(&mut inside).await;
            kill.expect("the tests may");
        }
        let kill = redis::cmd("CLIENT").arg(&["KILL", "TYPE", "replica"]).exec_async(&mut inside).await;
        kill.expect("the tests may");
        Cut { inside, before }
    }

    /// From now on no node takes another one for dead, and each lists all: replicas that have received something.
    pub(crate) async fn keep_the_silent(&self) {
        for node in &self.nodes {
            say::<()>(node, &["CONFIG", "SET", "cluster-node-timeout", "600000"]).await;
        }
        eventually("each node lists all", async || {
            for node in &self.nodes {
                for key in 0..9 {
                    try_say::<()>(node, &["SET", &key.to_string(), "x"]).await;
                }
                let listed: Vec<Vec<redis::Value>> = say(node, &["CLUSTER", "SLOTS"]).await;
                if listed.iter().any(|range| range.len() < 4) {
                    return None;
                }
            }
            Some(())
        })
        .await;
    }

    /// What the node that is cut off says of the cluster.
    pub(crate) async fn works(&self, cut: &mut Cut) -> bool {
        let info = redis::cmd("CLUSTER").arg("INFO").query_async::<String>(&mut cut.inside).await;
        info.expect("it answers").contains("cluster_state:ok")
    }

    /// Its cut ends.
    pub(crate) fn heal(&self, place: usize, cut: &Cut) {
        self.nodes[place].limit_sockets(&cut.before);
    }

    /// The slot of a key.
    pub(crate) async fn slot(&self, key: &str) -> u16 {
        say(&self.nodes[0], &["CLUSTER", "KEYSLOT", key]).await
    }

    /// Begins to move a slot from one primary to another.
    pub(crate) async fn begin_to_move(&self, slot: u16, from: usize, to: usize) {
        let [source, target] = [self.id(from).await, self.id(to).await];
        let slot = slot.to_string();
        say::<()>(&self.nodes[to], &["CLUSTER", "SETSLOT", &slot, "IMPORTING", &source]).await;
        say::<()>(&self.nodes[from], &["CLUSTER", "SETSLOT", &slot, "MIGRATING", &target]).await;
    }

    /// Moves a few keys of a slot; how many there were.
    pub(crate) async fn move_keys(&self, slot: u16, from: usize, to: usize) -> usize {
        self.migrate(slot, from, to, "10").await
    }

    pub(crate) async fn move_one_key(&self, slot: u16, from: usize, to: usize) {
        self.migrate(slot, from, to, "1").await;
    }

    async fn migrate(&self, slot: u16, from: usize, to: usize, most: &str) -> usize {
        let keys: Vec<String> = say(&self.nodes[from], &["CLUSTER", "GETKEYSINSLOT", &slot.to_string(), most]).await;
        if keys.is_empty() {
            return 0;
        }
        self.move_these(&keys, from, to).await;
        keys.len()
    }

    /// Moves these keys of a slot.
    pub(crate) async fn move_these(&self, keys: &[impl AsRef<str>], from: usize, to: usize) {
        let port = self.nodes[to].port().to_string();
        let mut words = vec!["MIGRATE", "127.0.0.1", &port, "", "0", "5000", "KEYS"];
        words.extend(keys.iter().map(AsRef::as_ref));
        say::<redis::Value>(&self.nodes[from], &words).await;
    }

    /// Moves a slot at once.
    pub(crate) async fn move_slot(&self, slot: u16, from: usize, to: usize) {
        self.begin_to_move(slot, from, to).await;
        while self.move_keys(slot, from, to).await > 0 {}
        self.end_move(slot, to).await;
    }

    /// Tells all that a slot has moved.
    pub(crate) async fn end_move(&self, slot: u16, to: usize) {
        let target = self.id(to).await;
        let mut places: Vec<usize> = (0..self.nodes.len()).collect();
        // The new owner first: from then on both know.
        places.swap(0, to);
        for place in places {
            let node = &self.nodes[place];
            let done = say::<String>(node, &["INFO", "replication"]).await.contains("role:slave");
            if !done {
                say::<()>(node, &["CLUSTER", "SETSLOT", &slot.to_string(), "NODE", &target]).await;
            }
        }
    }

    /// Ends a move that is half done, as operators do: keys are overwritten only if nothing else ends it. Whether they were.
    pub(crate) async fn fix(&self) -> bool {
        if self.manage(&["fix"]).await.is_ok() {
            return false;
        }
        if let Err(printed) = self.manage(&["fix", "--cluster-replace"]).await {
            panic!("redis-cli does not end the move: {printed}");
        }
        true
    }

    /// `redis-cli --cluster`; what it prints, if it finds that something is wrong.
    async fn manage(&self, words: &[&str]) -> Result<(), String> {
        let node = format!("127.0.0.1:{}", self.nodes[0].port());
        let mut command = Command::new("redis-cli");
        command.arg("--cluster").arg(words[0]).arg(node).args(&words[1..]).arg("--cluster-yes");
        let ran = tokio::task::spawn_blocking(move || command.output()).await.expect("it ends");
        let ran = ran.unwrap_or_else(|error| panic!("redis-cli can't be run (Debian: redis-tools): {error}"));
        let printed = String::from_utf8_lossy(&ran.stdout).into_owned();
        if ran.status.success() { Ok(()) } else { Err(printed) }
    }

    /// Waits until all nodes know of each other that they are well.
    pub(crate) async fn agrees(&self) {
        eventually("all nodes are well, and know it", async || {
            for node in &self.nodes {
                let known = try_say::<String>(node, &["CLUSTER", "NODES"]).await?;
                let well = known.lines().all(|line| !line.contains("fail") && line.contains(" connected"));
                if !well || known.lines().filter(|line| line.contains("slave")).count() != 3 {
                    return None;
                }
            }
            Some(())
        })
        .await;
    }

    async fn id(&self, place: usize) -> String {
        say(&self.nodes[place], &["CLUSTER", "MYID"]).await
    }
}

/// To a node that is there.
async fn say<T: FromRedisValue>(node: &RedisServer, words: &[&str]) -> T {
    let answer = redis::Cmd::new().arg(words).query_async(&mut node.connection().await).await;
    answer.unwrap_or_else(|error| panic!("{words:?}: {error}"))
}

/// To a node that may be away, or refuse it.
async fn try_say<T: FromRedisValue>(node: &RedisServer, words: &[&str]) -> Option<T> {
    let mut connection = node.client().get_multiplexed_async_connection().await.ok()?;
    redis::Cmd::new().arg(words).query_async(&mut connection).await.ok()
}
