//! Redis Cluster: the primary of the route's slot dies, freezes or is replaced, and the slot moves, with NATS up and with NATS
//! down.

use std::mem;

use super::{
    crm::{Crm, PATIENT},
    failover::{self, Loss, Scene as _, measured},
    redis::refusals,
    rig::{Bounds, Report, Rig, demand},
};
use crate::{
    Scenario, scenario,
    support::{NatsServer, PENDING, RedisCluster, RedisServer, World, eventually},
};

/// The scenarios of this file.
pub(crate) fn scenarios() -> Vec<Scenario> {
    vec![
        scenario!(redis_cluster_primary_killed),
        scenario!(redis_cluster_primary_killed_without_nats),
        scenario!(redis_cluster_primary_frozen),
        scenario!(redis_cluster_primary_frozen_without_nats),
        scenario!(redis_cluster_failover_on_request),
        scenario!(redis_cluster_failover_on_request_without_nats),
        scenario!(redis_cluster_slot_moved),
        scenario!(redis_cluster_slot_moved_without_nats),
        scenario!(redis_cluster_slot_moved_by_default),
        scenario!(redis_cluster_partition_durable),
        scenario!(redis_cluster_partition_loses),
    ]
}

const DURABLE: &str =
    "nats.on_unavailable = \"accept\"\nredis.durability = \"replica\"\nredis.on_unavailable = \"reject\"\n";

/// What the primary has.
const WEAK: &str = "nats.on_unavailable = \"accept\"\nredis.on_unavailable = \"reject\"\n";

/// What happens to the primary.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Fault {
    Killed,
    Frozen,
    Asked,
    /// Its slot moves to another primary.
    Moved,
}

struct Scene {
    rig: Rig,
    cluster: RedisCluster,
    /// Whether a failover has made it forget claims that no replica had. A slot that moves forgets nothing.
    forgets: bool,
}

impl Scene {
    async fn start(settings: &str) -> Self {
        let (redis, nats, cluster) = tokio::join!(RedisServer::start(), NatsServer::start(), RedisCluster::start());
        let settings = format!("redis.url = \"{}\"\n{settings}", cluster.url());
        Self { rig: Rig::with(World { redis, nats }, 2, &settings).await, cluster, forgets: false }
    }

    /// The keys move one by one; while some are here and some there, no node takes a claim.
    async fn move_slot(&self, from: usize, crm: &Crm) {
        let slot = self.cluster.slot(PENDING).await;
        let mut to = from;
        for place in 0..self.cluster.nodes.len() {
            if place != from && self.cluster.is_primary(place).await {
                to = place;
            }
        }
        self.cluster.begin_to_move(slot, from, to).await;
        self.cluster.move_one_key(slot, from, to).await;
        let before = self.unclaimed(crm).await;
        eventually("webhooks are not claimed", async || {
            (self.unclaimed(crm).await >= before + 4 * PATIENT.workers).then_some(())
        })
        .await;
        while self.cluster.move_keys(slot, from, to).await > 0 {}
        self.cluster.end_move(slot, to).await;
    }

    /// Batches that were refused and ids that were published without a claim.
    async fn unclaimed(&self, crm: &Crm) -> usize {
        usize::try_from(crm.answered(503)).expect("few") + self.rig.undeduplicated().await
    }

    /// With at most so many messages beyond one an id.
    async fn verdict_with(mut self, crm: Crm, duplicates: usize) -> Report {
        let owner = self.cluster.owner(PENDING).await;
        mem::swap(&mut self.rig.world.redis, &mut self.cluster.nodes[owner]);
        self.rig.verdict(crm, Bounds { duplicates, ..Bounds::default() }).await
    }
}

impl failover::Scene for Scene {
    type Fault = Fault;

    fn rig(&mut self) -> &mut Rig {
        &mut self.rig
    }

    async fn strike(&mut self, fault: Fault, crm: &Crm) {
        let owner = self.cluster.owner(PENDING).await;
        if fault == Fault::Moved {
            self.move_slot(owner, crm).await;
            return;
        }
        self.forgets = true;
        let replica = (owner + 3) % 6;
        match fault {
            Fault::Killed => self.cluster.nodes[owner].kill(),
            Fault::Frozen => self.cluster.nodes[owner].freeze(),
            Fault::Asked => self.cluster.promote(replica).await,
            Fault::Moved => {}
        }
        eventually("the replica is the primary", async || self.cluster.is_primary(replica).await.then_some(())).await;
        match fault {
            Fault::Killed => self.cluster.nodes[owner].start_again().await,
            Fault::Frozen => self.cluster.nodes[owner].thaw(),
            Fault::Asked | Fault::Moved => {}
        }
        eventually("the old primary follows", async || self.cluster.follows(replica).await.then_some(())).await;
    }

    async fn verdict(self, crm: Crm) -> Report {
        let duplicates = if self.forgets { 4 * PATIENT.workers * PATIENT.batch } else { 0 };
        self.verdict_with(crm, duplicates).await
    }
}

async fn redis_cluster_primary_killed() -> Report {
    failover::with_nats(Scene::start(DURABLE).await, Fault::Killed).await
}

async fn redis_cluster_primary_killed_without_nats() -> Report {
    failover::without_nats(Scene::start(DURABLE).await, Fault::Killed).await
}

async fn redis_cluster_primary_frozen() -> Report {
    failover::with_nats(Scene::start(DURABLE).await, Fault::Frozen).await
}

async fn redis_cluster_primary_frozen_without_nats() -> Report {
    failover::without_nats(Scene::start(DURABLE).await, Fault::Frozen).await
}

async fn redis_cluster_failover_on_request() -> Report {
    failover::with_nats(Scene::start(DURABLE).await, Fault::Asked).await
}

async fn redis_cluster_failover_on_request_without_nats() -> Report {
    failover::without_nats(Scene::start(DURABLE).await, Fault::Asked).await
}

async fn redis_cluster_slot_moved() -> Report {
    failover::with_nats(Scene::start(DURABLE).await, Fault::Moved).await
}

async fn redis_cluster_slot_moved_without_nats() -> Report {
    failover::without_nats(Scene::start(DURABLE).await, Fault::Moved).await
}

/// With no settings, what comes while the slot moves goes out without a claim, and nothing else is published twice.
async fn redis_cluster_slot_moved_by_default() -> Report {
    let mut scene = Scene::start("").await;
    let crm = scene.rig.load(PATIENT);
    for _ in 0..2 {
        scene.rig.progress(&crm, 300).await;
        scene.strike(Fault::Moved, &crm).await;
        for gate in &scene.rig.gates {
            gate.wait_store("redis", "up").await;
        }
    }
    scene.rig.progress(&crm, 300).await;
    let unclaimed = scene.rig.undeduplicated().await;
    let mut report = scene.verdict_with(crm, unclaimed).await;
    demand(&mut report, unclaimed > 0, "all was claimed: the scenario shows nothing");
    report.statuses = format!("{unclaimed} ids without a claim; {}", report.statuses);
    report
}

/// The primary of the slot is cut off from the other nodes and its replica, and hookgate is connected to it all the time.
async fn partition(settings: &str) -> Report {
    let mut scene = Scene { forgets: true, ..Scene::start(settings).await };
    let crm = scene.rig.load(PATIENT);
    scene.rig.progress(&crm, 300).await;
    scene.rig.world.nats.kill();
    scene.rig.on_the_outbox_alone(&crm, 320).await;
    let owner = scene.cluster.owner(PENDING).await;
    let replica = (owner + 3) % 6;
    let mut cut = scene.cluster.cut_off(owner).await;
    eventually("the replica is a primary, too", async || scene.cluster.is_primary(replica).await.then_some(())).await;
    eventually("the old primary stops", async || (!scene.cluster.works(&mut cut).await).then_some(())).await;
    if settings == DURABLE {
        // The new primary has no replica either before the cut ends.
        refusals(&crm, 40).await;
    } else {
        scene.rig.on_the_outbox_alone(&crm, 100).await;
    }
    scene.cluster.heal(owner, &cut);
    eventually("the old primary follows", async || scene.cluster.follows(replica).await.then_some(())).await;
    scene.rig.world.nats.start_again().await;
    scene.rig.progress(&crm, 300).await;
    scene.verdict(crm).await
}

/// What the old primary takes has to be confirmed by its replica, which does not hear of it.
async fn redis_cluster_partition_durable() -> Report {
    partition(DURABLE).await
}

/// The old primary goes on taking claims until it misses the majority, and forgets them when the cut ends.
async fn redis_cluster_partition_loses() -> Report {
    measured(partition(WEAK).await, Loss::AtLeast(1))
}
