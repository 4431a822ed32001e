//! Redis by sentinels: the primary dies, freezes, is replaced or cut off, with NATS up and with NATS down.
//!
//! With NATS down an answer rests on the outbox alone, so here a failover could lose what was accepted.

use std::time::{Duration, Instant};

use super::{
    crm::{Crm, PATIENT},
    failover::{self, Loss, Scene as _, measured},
    redis::{refusals, tell},
    rig::{Bounds, Report, Rig},
    wire::{Mode, Wire},
};
use crate::{
    Scenario, scenario,
    support::{RedisServer, Sentinels, World, within},
};

/// The scenarios of this file.
pub(crate) fn scenarios() -> Vec<Scenario> {
    vec![
        scenario!(sentinel_primary_killed),
        scenario!(sentinel_primary_killed_without_nats),
        scenario!(sentinel_primary_frozen),
        scenario!(sentinel_primary_frozen_without_nats),
        scenario!(sentinel_failover_on_request),
        scenario!(sentinel_failover_on_request_without_nats),
        scenario!(sentinel_partition_durable),
        scenario!(sentinel_partition_fenced),
        scenario!(sentinel_partition_loses),
        scenario!(sentinel_loses_what_no_replica_has),
        scenario!(sentinel_loses_what_only_one_replica_has),
    ]
}

/// What it takes to lose nothing: each server that may be promoted has what was accepted.
const DURABLE: &str = "nats.on_unavailable = \"accept\"\nredis.durability = \"replica\"\nredis.wait_replicas = 2\nredis.on_unavailable = \"reject\"\n";
/// What one of them has.
const ONE: &str =
    "nats.on_unavailable = \"accept\"\nredis.durability = \"replica\"\nredis.on_unavailable = \"reject\"\n";
/// How long sentinels may take to make everybody a replica of the new primary.
const FOLLOW: Duration = Duration::from_secs(90);
/// How long a primary may be without a word of its replicas and take writes.
const MAX_LAG: Duration = Duration::from_secs(1);
/// What the primary has.
const WEAK: &str = "nats.on_unavailable = \"accept\"\nredis.on_unavailable = \"reject\"\n";

/// Two replicas of hookgate at a Redis with sentinels.
struct Scene {
    rig: Rig,
    sentinels: Sentinels,
}

/// What happens to the primary.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Fault {
    Killed,
    Frozen,
    Asked,
}

impl Scene {
    async fn start(settings: &str) -> Self {
        let world = World::start().await;
        let sentinels = Sentinels::around(&world.redis).await;
        let settings = format!("redis.url = \"{}\"\n{settings}", sentinels.url());
        Self { rig: Rig::with(world, 2, &settings).await, sentinels }
    }

    /// Another server becomes the primary, and the old one its replica.
    async fn fail_over(&mut self, fault: Fault) {
        let redis = &mut self.rig.world.redis;
        let before = redis.port();
        match fault {
            Fault::Killed => redis.kill(),
            Fault::Frozen => redis.freeze(),
            Fault::Asked => self.sentinels.fail_over().await,
        }
        let now = self.sentinels.failed_over_from(before).await;
        self.sentinels.swap(redis, now);
        let old = self.sentinels.replicas.iter_mut().find(|server| server.port() == before);
        let old = old.expect("it was swapped");
        match fault {
            Fault::Killed => old.start_again().await,
            Fault::Frozen => old.thaw(),
            Fault::Asked => {}
        }
        self.all_follow().await;
    }

    /// On a busy machine sentinels may fail over once more: then to that one.
    async fn all_follow(&mut self) {
        let follow = within(FOLLOW, async || {
            let now = self.sentinels.primary().await.filter(|now| *now != self.rig.world.redis.port());
            if let Some(now) = now {
                self.sentinels.swap(&mut self.rig.world.redis, now);
            }
            let mut connection = self.rig.world.redis.connection().await;
            let info = redis::cmd("INFO").arg("replication").query_async::<String>(&mut connection).await.ok()?;
            (info.contains("connected_slaves:2") && info.matches("state=online").count() == 2).then_some(())
        });
        follow.await.expect("two replicas follow the new primary");
    }
}

impl failover::Scene for Scene {
    type Fault = Fault;

    fn rig(&mut self) -> &mut Rig {
        &mut self.rig
    }

    async fn strike(&mut self, fault: Fault, _crm: &Crm) {
        self.fail_over(fault).await;
    }

    async fn verdict(self, crm: Crm) -> Report {
        // The claims that no replica had when the primary failed are forgotten: an id whose webhook is repeated then has two
        // events.
        let duplicates = 4 * PATIENT.workers * PATIENT.batch;
        self.rig.verdict(crm, Bounds { duplicates, ..Bounds::default() }).await
    }
}

async fn sentinel_primary_killed() -> Report {
    failover::with_nats(Scene::start(DURABLE).await, Fault::Killed).await
}

async fn sentinel_primary_killed_without_nats() -> Report {
    failover::without_nats(Scene::start(DURABLE).await, Fault::Killed).await
}

async fn sentinel_primary_frozen() -> Report {
    failover::with_nats(Scene::start(DURABLE).await, Fault::Frozen).await
}

async fn sentinel_primary_frozen_without_nats() -> Report {
    failover::without_nats(Scene::start(DURABLE).await, Fault::Frozen).await
}

async fn sentinel_failover_on_request() -> Report {
    failover::with_nats(Scene::start(DURABLE).await, Fault::Asked).await
}

async fn sentinel_failover_on_request_without_nats() -> Report {
    failover::without_nats(Scene::start(DURABLE).await, Fault::Asked).await
}

/// hookgate and the primary are on one side of a cut, and replicas and sentinels on the other, so that there are two primaries.
struct Partition {
    scene: Scene,
    wires: Vec<Wire>,
}

impl Partition {
    async fn start(settings: &str) -> Self {
        let world = World::start().await;
        tell(&world.redis, &["ACL", "SETUSER", "hookgate", "on", "nopass", "~*", "&*", "+@all"]).await;
        let sentinels = Sentinels::around(&world.redis).await;
        for replica in &sentinels.replicas {
            tell(replica, &["ACL", "SETUSER", "hookgate", "on", "nopass", "~*", "&*", "+@all"]).await;
        }
        let mut wires = Vec::new();
        for port in sentinels.ports() {
            wires.push(Wire::to(port).await);
        }
        let hosts: Vec<_> = wires.iter().map(|wire| format!("127.0.0.1:{}", wire.port())).collect();
        let settings = format!("redis.url = \"redis+sentinel://hookgate:x@{}/main\"\n{settings}", hosts.join(","));
        Self { scene: Scene { rig: Rig::with(world, 2, &settings).await, sentinels }, wires }
    }

    /// The old primary lets nobody in but hookgate, which hears nothing of the sentinels.
    async fn cut(&self) -> u16 {
        for wire in &self.wires {
            wire.set(Mode::Stall);
        }
        let primary = &self.scene.rig.world.redis;
        let mut inside = self.inside(primary).await;
        let cut = [vec!["ACL", "SETUSER", "default", "off"], vec!["CLIENT", "KILL", "USER", "default"]];
        for words in cut {
            let mut command = redis::Cmd::new();
            command.arg(words);
            command.query_async::<redis::Value>(&mut inside).await.expect("this user may");
        }
        self.scene.sentinels.failed_over_from(primary.port()).await
    }

    /// The cut ends: the old primary becomes a replica of the new one.
    async fn heal(&mut self, now: u16) {
        let mut inside = self.inside(&self.scene.rig.world.redis).await;
        let on = redis::cmd("ACL").arg(&["SETUSER", "default", "on"]).query_async::<()>(&mut inside).await;
        on.expect("this user may");
        self.scene.sentinels.swap(&mut self.scene.rig.world.redis, now);
        for wire in &self.wires {
            wire.set(Mode::Pass);
        }
        self.scene.all_follow().await;
    }

    async fn inside(&self, primary: &RedisServer) -> redis::aio::MultiplexedConnection {
        let url = format!("redis://hookgate:x@127.0.0.1:{}/1", primary.port());
        let client = redis::Client::open(url).expect("the address is well-formed");
        client.get_multiplexed_async_connection().await.expect("this user may log in")
    }
}

/// What was accepted on the side of the old primary has to be confirmed by replicas, and there are none.
async fn sentinel_partition_durable() -> Report {
    let mut partition = Partition::start(DURABLE).await;
    let crm = partition.scene.rig.load(PATIENT);
    partition.scene.rig.progress(&crm, 300).await;
    partition.scene.rig.world.nats.kill();
    partition.scene.rig.on_the_outbox_alone(&crm, 320).await;
    let now = partition.cut().await;
    refusals(&crm, 40).await;
    partition.heal(now).await;
    partition.scene.rig.world.nats.start_again().await;
    partition.scene.rig.progress(&crm, 300).await;
    partition.scene.verdict(crm).await
}

/// A primary without its replicas takes no claims at all: min-replicas-to-write. What it took until it knew is lost: no more
/// than comes in `min-replicas-max-lag`.
async fn sentinel_partition_fenced() -> Report {
    let mut partition = Partition::start(WEAK).await;
    let scene = &mut partition.scene;
    for server in scene.sentinels.replicas.iter().chain([&scene.rig.world.redis]) {
        tell(server, &["CONFIG", "SET", "min-replicas-to-write", "1"]).await;
        tell(server, &["CONFIG", "SET", "min-replicas-max-lag", &MAX_LAG.as_secs().to_string()]).await;
    }
    let crm = scene.rig.load(PATIENT);
    scene.rig.progress(&crm, 300).await;
    scene.rig.world.nats.kill();
    scene.rig.on_the_outbox_alone(&crm, 320).await;
    let (began, before) = (Instant::now(), crm.accepted());
    scene.rig.progress(&crm, 320).await;
    let rate = Rate { accepted: crm.accepted() - before, time: began.elapsed() };
    let now = partition.cut().await;
    for gate in &partition.scene.rig.gates {
        gate.wait_store("redis", "no_writes").await;
    }
    partition.heal(now).await;
    partition.scene.rig.world.nats.start_again().await;
    partition.scene.rig.progress(&crm, 300).await;
    measured(partition.scene.verdict(crm).await, Loss::AtMost(rate.within(MAX_LAG)))
}

/// What was accepted in a time.
struct Rate {
    accepted: usize,
    time: Duration,
}

impl Rate {
    /// How many are accepted in another time.
    fn within(&self, time: Duration) -> usize {
        let (time, accepted) = (time.as_millis(), u128::try_from(self.accepted).expect("few"));
        usize::try_from((accepted * time).div_ceil(self.time.as_millis().max(1))).expect("few")
    }
}

/// The old primary goes on taking claims, and forgets them when the cut ends.
async fn sentinel_partition_loses() -> Report {
    let mut partition = Partition::start(WEAK).await;
    let crm = partition.scene.rig.load(PATIENT);
    partition.scene.rig.progress(&crm, 300).await;
    partition.scene.rig.world.nats.kill();
    partition.scene.rig.on_the_outbox_alone(&crm, 320).await;
    let now = partition.cut().await;
    partition.scene.rig.progress(&crm, PATIENT.workers * PATIENT.batch + 320).await;
    partition.heal(now).await;
    partition.scene.rig.world.nats.start_again().await;
    partition.scene.rig.progress(&crm, 300).await;
    measured(partition.scene.verdict(crm).await, Loss::AtLeast(320))
}

/// What is accepted while no replica hears of it is lost with the primary.
async fn sentinel_loses_what_no_replica_has() -> Report {
    loses(WEAK, 2).await
}

/// WAIT 1 is content with one replica, and the other one is promoted.
async fn sentinel_loses_what_only_one_replica_has() -> Report {
    loses(ONE, 1).await
}

/// So many replicas are frozen. The primary dies with those that are not, and then the frozen ones go on.
async fn loses(settings: &str, frozen: usize) -> Report {
    let mut scene = Scene::start(settings).await;
    let crm = scene.rig.load(PATIENT);
    scene.rig.progress(&crm, 300).await;
    scene.rig.world.nats.kill();
    scene.rig.on_the_outbox_alone(&crm, 320).await;
    for replica in &scene.sentinels.replicas[..frozen] {
        replica.freeze();
    }
    // What is on the way to a frozen one is read later.
    tell(&scene.rig.world.redis, &["CLIENT", "KILL", "TYPE", "replica"]).await;
    scene.rig.progress(&crm, PATIENT.workers * PATIENT.batch + 320).await;
    let before = scene.rig.world.redis.port();
    scene.rig.world.redis.kill();
    for replica in &mut scene.sentinels.replicas[frozen..] {
        replica.kill();
    }
    for replica in &scene.sentinels.replicas[..frozen] {
        replica.thaw();
    }
    let now = scene.sentinels.failed_over_from(before).await;
    scene.sentinels.swap(&mut scene.rig.world.redis, now);
    for replica in &mut scene.sentinels.replicas {
        if replica.port() == before || frozen == 1 {
            replica.start_again().await;
        }
    }
    scene.all_follow().await;
    scene.rig.world.nats.start_again().await;
    scene.rig.progress(&crm, 300).await;
    measured(scene.verdict(crm).await, Loss::AtLeast(320))
}
