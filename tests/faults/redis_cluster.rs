//! Redis Cluster: the primary of the route's slot dies, freezes or is replaced, and the slot moves, with NATS up and with NATS
//! down.

use std::{collections::BTreeSet, mem, time::SystemTime};

use super::{
    crm::{Crm, PATIENT},
    failover::{self, Loss, Scene as _, measured},
    judge::Span,
    redis::{refusals, tell},
    rig::{Bounds, Report, Rig, demand},
};
use crate::{
    Scenario, scenario,
    support::{NatsServer, OUTBOX, PENDING, RedisCluster, RedisServer, World, eventually, run},
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
        scenario!(redis_cluster_source_killed_amid_a_move),
        scenario!(redis_cluster_source_killed_amid_a_move_loses),
        scenario!(redis_cluster_source_killed_amid_a_move_of_its_outbox),
        scenario!(redis_cluster_target_killed_amid_a_move),
        scenario!(redis_cluster_target_forgets_a_moved_outbox),
        scenario!(redis_cluster_target_forgets_all_that_moved_loses),
        scenario!(redis_cluster_partition_durable),
        scenario!(redis_cluster_partition_loses),
    ]
}

const DURABLE: &str =
    "nats.on_unavailable = \"accept\"\nredis.durability = \"replica\"\nredis.on_unavailable = \"reject\"\n";

/// What the primary has.
const WEAK: &str = "nats.on_unavailable = \"accept\"\nredis.on_unavailable = \"reject\"\n";

/// Most ids whose claims failovers forget.
const FORGOTTEN: usize = 4 * PATIENT.workers * PATIENT.batch;

/// What happens to the primary.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Fault {
    Killed,
    Frozen,
    Asked,
    /// Its slot moves to another primary.
    Moved,
}

/// Which node dies while the slot moves.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Dies {
    Source,
    Target,
    /// Before its Redis replica has what has moved.
    TargetWithAll,
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
        let (slot, to) = (self.cluster.slot(PENDING).await, self.another_primary(from).await);
        self.cluster.begin_to_move(slot, from, to).await;
        self.cluster.move_one_key(slot, from, to).await;
        self.claims_nothing(crm).await;
        while self.cluster.move_keys(slot, from, to).await > 0 {}
        self.cluster.end_move(slot, to).await;
    }

    async fn another_primary(&self, than: usize) -> usize {
        for place in 0..self.cluster.nodes.len() {
            if place != than && self.cluster.is_primary(place).await {
                return place;
            }
        }
        panic!("there are three primaries");
    }

    /// A node of the move dies when these keys have moved. The operator has `redis-cli` end the move once it is back. From its
    /// death to that end, and whether keys had to be overwritten.
    async fn fail_over_amid_move(&mut self, dies: Dies, moved: &[&str], crm: &Crm) -> (Span, bool) {
        let source = self.cluster.owner(PENDING).await;
        let (slot, target) = (self.cluster.slot(PENDING).await, self.another_primary(source).await);
        let dead = if dies == Dies::Source { source } else { target };
        let replica = (dead + 3) % 6;
        self.forgets = true;
        self.cluster.begin_to_move(slot, source, target).await;
        if dies == Dies::TargetWithAll {
            self.cluster.nodes[replica].freeze();
            // What is on the way to a frozen one is read later.
            tell(&self.cluster.nodes[target], &["CLIENT", "KILL", "TYPE", "replica"]).await;
        }
        self.cluster.move_these(moved, source, target).await;
        if dies != Dies::TargetWithAll {
            self.cluster.replicated(dead).await;
        }
        let from = SystemTime::now();
        self.cluster.nodes[dead].kill();
        self.cluster.nodes[replica].thaw();
        eventually("the replica is the primary", async || self.cluster.is_primary(replica).await.then_some(())).await;
        self.cluster.nodes[dead].start_again().await;
        eventually("the old primary follows", async || self.cluster.follows(replica).await.then_some(())).await;
        self.cluster.agrees().await;
        if dies == Dies::Source {
            // It does not know of the move, and takes what has moved for missing.
            self.rig.progress(crm, PATIENT.workers * PATIENT.batch + 100).await;
        } else {
            self.claims_nothing(crm).await;
        }
        let overwritten = self.cluster.fix().await;
        (Span { from, to: SystemTime::now() }, overwritten)
    }

    /// The operator has ids published that are pending without an event.
    async fn republish(&self) {
        let (nats, redis) = (self.rig.world.nats.url(), self.cluster.url());
        let settings = format!("redis.url = \"{redis}\"\nnats.url = \"{nats}\"\n");
        let republish =
            move || run(&settings, &["pending", "republish", "vmh/beteiligte/create", "--not-in-stream", "--yes"]);
        tokio::task::spawn_blocking(republish).await.expect("it ends").good();
    }

    /// Waits until webhooks came that were not claimed.
    async fn claims_nothing(&self, crm: &Crm) {
        let before = self.unclaimed(crm).await;
        eventually("webhooks are not claimed", async || {
            (self.unclaimed(crm).await >= before + 4 * PATIENT.workers).then_some(())
        })
        .await;
    }

    /// Batches that were refused and ids that were published without a claim.
    async fn unclaimed(&self, crm: &Crm) -> usize {
        usize::try_from(crm.answered(503)).expect("few") + self.rig.undeduplicated().await
    }

    /// With at most so many messages beyond one an id.
    async fn verdict_with(mut self, crm: Crm, duplicates: usize) -> Report {
        self.look_at_the_owner().await;
        self.rig.verdict(crm, Bounds { duplicates, ..Bounds::default() }).await
    }

    async fn look_at_the_owner(&mut self) {
        let owner = self.cluster.owner(PENDING).await;
        mem::swap(&mut self.rig.world.redis, &mut self.cluster.nodes[owner]);
    }

    /// With at least so many lost of those that were accepted in this time, and none of the others.
    async fn loses(mut self, crm: Crm, least: usize, time: Span) -> Report {
        self.look_at_the_owner().await;
        let sent = crm.finish().await;
        // Answered before, they were in the stream or on the moved keys; sent later, they met a whole slot.
        let (mut within, mut others) = (BTreeSet::new(), BTreeSet::new());
        for webhook in &sent.webhooks {
            let within_it = webhook.time.to > time.from && webhook.time.from < time.to;
            let ids = if within_it { &mut within } else { &mut others };
            ids.extend(webhook.ids.iter().cloned());
        }
        let report = self.rig.judge(sent, Bounds { duplicates: FORGOTTEN, ..Bounds::default() }).await;
        let stream = self.rig.oracle.ids();
        let (most, lost) = (within.len(), report.lost);
        let others: Vec<_> = others.difference(&stream).take(5).collect();
        let mut report = measured(report, Loss::AtLeast(least));
        demand(&mut report, lost <= most, format!("{lost} lost, and at most {most} are allowed"));
        demand(&mut report, others.is_empty(), format!("lost, though accepted before or after: {others:?}"));
        report.statuses = format!("at most {most} allowed; {}", report.statuses);
        report
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
        let duplicates = if self.forgets { FORGOTTEN } else { 0 };
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

/// What is accepted is in the stream. Claims are forgotten: the keys that moved come back over those of the new primary.
async fn redis_cluster_source_killed_amid_a_move() -> Report {
    let mut scene = Scene::start(DURABLE).await;
    let crm = scene.rig.load(PATIENT);
    for moved in [&[PENDING][..], &[OUTBOX, PENDING]] {
        scene.rig.progress(&crm, 300).await;
        let (_time, overwritten) = scene.fail_over_amid_move(Dies::Source, moved, &crm).await;
        assert!(overwritten, "both nodes have pending ids");
    }
    scene.rig.progress(&crm, 300).await;
    scene.verdict(crm).await
}

async fn redis_cluster_target_killed_amid_a_move() -> Report {
    let mut scene = Scene::start(DURABLE).await;
    let crm = scene.rig.load(PATIENT);
    for moved in [OUTBOX, PENDING] {
        scene.rig.progress(&crm, 300).await;
        scene.fail_over_amid_move(Dies::Target, &[moved], &crm).await;
    }
    scene.rig.progress(&crm, 300).await;
    scene.verdict(crm).await
}

/// What the new primary accepts on its own ids and outbox: the moved ones come back over them.
async fn redis_cluster_source_killed_amid_a_move_loses() -> Report {
    let (scene, crm, _down, time) = without_nats(Dies::Source, &[OUTBOX, PENDING]).await;
    scene.loses(crm, 100, time).await
}

/// The moved outbox comes back over the new one. Its ids are pending, and the operator has them published.
async fn redis_cluster_source_killed_amid_a_move_of_its_outbox() -> Report {
    let (scene, crm, ..) = without_nats(Dies::Source, &[OUTBOX]).await;
    scene.verdict(crm).await
}

/// The moved outbox is lost. The ids that were in it are pending, and the operator has them published.
async fn redis_cluster_target_forgets_a_moved_outbox() -> Report {
    let (scene, crm, ..) = without_nats(Dies::TargetWithAll, &[OUTBOX]).await;
    scene.verdict(crm).await
}

/// The moved outbox is lost with its ids, and so is what was accepted on their word alone: MIGRATE waits for no replica.
async fn redis_cluster_target_forgets_all_that_moved_loses() -> Report {
    let (scene, crm, down, time) = without_nats(Dies::TargetWithAll, &[OUTBOX, PENDING]).await;
    scene.loses(crm, 320, Span { from: down, to: time.to }).await
}

/// A node dies amid a move while what is accepted rests on the outbox alone. When NATS was killed, and from the node's death to
/// the end of the move.
async fn without_nats(dies: Dies, moved: &[&str]) -> (Scene, Crm, SystemTime, Span) {
    let mut scene = Scene::start(DURABLE).await;
    let crm = scene.rig.load(PATIENT);
    scene.rig.progress(&crm, 300).await;
    let down = SystemTime::now();
    scene.rig.world.nats.kill();
    scene.rig.on_the_outbox_alone(&crm, 320).await;
    let (time, _overwritten) = scene.fail_over_amid_move(dies, moved, &crm).await;
    scene.rig.on_the_outbox_alone(&crm, 100).await;
    scene.rig.world.nats.start_again().await;
    scene.rig.progress(&crm, 300).await;
    scene.republish().await;
    scene.rig.progress(&crm, 300).await;
    (scene, crm, down, time)
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
