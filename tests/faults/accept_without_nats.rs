//! `nats.on_unavailable = "accept"`: without NATS, what is answered 200 rests on the outbox alone, and is as durable as
//! `redis.durability` says.

use std::mem;

use super::{
    crm::PATIENT,
    disk::Disk,
    redis::{follow, refusals, tell},
    rig::{Bounds, Report, Rig},
};
use crate::{
    Scenario, scenario,
    support::{NatsServer, RedisServer, World, eventually},
};

/// The scenarios of this file.
pub(crate) fn scenarios() -> Vec<Scenario> {
    vec![
        scenario!(accept_without_nats),
        scenario!(accept_with_replica_durability),
        scenario!(accept_with_aof_durability),
    ]
}

/// With `accept`, what a dead NATS does not take is answered 200, and is in the stream later.
async fn accept_without_nats() -> Report {
    let mut rig = Rig::start(2, "nats.on_unavailable = \"accept\"\n").await;
    let crm = rig.load(PATIENT);
    for _ in 0..2 {
        rig.progress(&crm, 300).await;
        rig.world.nats.kill();
        rig.on_the_outbox_alone(&crm, 320).await;
        rig.world.nats.start_again().await;
    }
    rig.progress(&crm, 300).await;
    rig.verdict(crm, Bounds::default()).await
}

/// What a replica has confirmed survives the primary, with NATS down the whole time; what no replica
/// confirms is not accepted.
async fn accept_with_replica_durability() -> Report {
    let world = World::start().await;
    let mut replica = RedisServer::start().await;
    follow(&replica, &world.redis).await;
    let settings =
        "nats.on_unavailable = \"accept\"\nredis.durability = \"replica\"\nredis.on_unavailable = \"reject\"\n";
    let mut rig = Rig::with(world, 2, settings).await;
    let crm = rig.load(PATIENT);
    rig.progress(&crm, 300).await;
    rig.world.nats.kill();
    rig.on_the_outbox_alone(&crm, 320).await;
    rig.world.redis.kill();
    refusals(&crm, 20).await;
    tell(&replica, &["REPLICAOF", "NO", "ONE"]).await;
    mem::swap(&mut rig.world.redis, &mut replica);
    for place in 0..2 {
        // Not ready before NATS is there, and answering all the same.
        let next = rig.world.gate_unready(rig.settings()).await;
        drop(mem::replace(&mut rig.gates[place], next));
        rig.gates[place].wait_store("redis", "up").await;
    }
    crm.aim(rig.addresses());
    // Nobody follows the new primary.
    refusals(&crm, 20).await;
    let before = crm.accepted();
    refusals(&crm, 50).await;
    let unconfirmed = crm.accepted() - before;
    rig.world.nats.start_again().await;
    rig.progress(&crm, 300).await;
    let cut = 2 * u64::try_from(PATIENT.workers).expect("few");
    let mut report = rig.verdict(crm, Bounds { cut, ..Bounds::default() }).await;
    if unconfirmed > 0 {
        report.violations.push(format!("{unconfirmed} ids were accepted without a replica"));
    }
    report
}

/// What the disk of Redis has confirmed survives the end of its machine, with NATS down the whole time; the rest
/// is not accepted.
async fn accept_with_aof_durability() -> Report {
    let ((redis, disk), nats) = tokio::join!(Disk::redis(), NatsServer::start());
    // Under `appendfsync everysec`, as these servers have it, a claim waits up to two seconds for its sync.
    let settings = "nats.on_unavailable = \"accept\"\nredis.durability = \"aof\"\nredis.on_unavailable = \"reject\"\nredis.timeout = \"2500ms\"\n";
    let mut rig = Rig::with(World { redis, nats }, 2, settings).await;
    let crm = rig.load(PATIENT);
    let mut torn = Vec::new();
    for _ in 0..2 {
        rig.progress(&crm, 300).await;
        rig.world.nats.kill();
        rig.on_the_outbox_alone(&crm, 160).await;
        disk.hang(true);
        // Without a sync for longer than an answer may take: what is answered 200 now would be lost.
        let answers = || crm.answered(200) + crm.answered(503);
        let goal = answers() + 3 * u64::try_from(PATIENT.workers).expect("few");
        eventually("batches are answered", async || (answers() >= goal).then_some(())).await;
        torn.push(disk.lose_power(&mut rig.world.redis));
        disk.hang(false);
        refusals(&crm, 20).await;
        rig.world.redis.start_again().await;
        rig.world.nats.start_again().await;
    }
    rig.progress(&crm, 300).await;
    let mut report = rig.verdict(crm, Bounds::default()).await;
    if torn.contains(&0) {
        report.violations.push(format!("bytes lost with the machine: {torn:?}; without any it shows nothing"));
    }
    report
}
