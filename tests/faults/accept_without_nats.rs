//! What lies in Redis until NATS has it: full outboxes, removed routes, and answers that rest on Redis alone.

use std::mem;

use super::{
    crm::{Crm, Load},
    disk::Disk,
    redis::{Policy, follow, refusals, tell, unclaimed},
    rig::{Bounds, Report, Rig},
};
use crate::{
    Scenario, scenario,
    support::{Event, NatsServer, OUTBOX, RedisServer, SUBJECT, World, batch, eventually},
};

/// The scenarios of this file.
pub(crate) fn scenarios() -> Vec<Scenario> {
    vec![
        scenario!(both_killed_publish),
        scenario!(outbox_full),
        scenario!(removed_route_is_drained),
        scenario!(accept_without_nats),
        scenario!(accept_with_replica_durability),
        scenario!(accept_with_aof_durability),
    ]
}

/// A load that meets answers that take until the deadline.
const PATIENT: Load = Load {
    workers: 16,
    batch: 10,
    bytes: 0,
    pause: std::time::Duration::from_millis(10),
    retry_after: std::time::Duration::from_millis(300),
    attempts: 100,
    repeat_every: 5,
};

/// Both stores die, in each order, and come back in each order, while hookgate publishes what it can't claim.
async fn both_killed_publish() -> Report {
    let mut rig = Rig::start(2, Policy::Publish.settings()).await;
    let load = PATIENT;
    let crm = rig.load(load);
    let orders = [(true, true), (true, false), (false, true), (false, false)];
    for (redis_dies_first, redis_returns_first) in orders {
        rig.progress(&crm, 300).await;
        if redis_dies_first {
            rig.world.redis.kill();
            rig.progress(&crm, 100).await;
            rig.world.nats.kill();
        } else {
            rig.world.nats.kill();
            refusals(&crm, 4).await;
            rig.world.redis.kill();
        }
        refusals(&crm, u64::try_from(load.workers).expect("few")).await;
        if redis_returns_first {
            rig.world.redis.start_again().await;
            refusals(&crm, 4).await;
            rig.world.nats.start_again().await;
        } else {
            rig.world.nats.start_again().await;
            rig.progress(&crm, 100).await;
            rig.world.redis.start_again().await;
        }
    }
    rig.progress(&crm, 300).await;
    let sent = crm.finish().await;
    let unclaimed = unclaimed(&mut rig).await;
    // An event without a claim that NATS stored and could not acknowledge any more has another token when its
    // sender comes back: at most what was on its way when NATS died.
    let duplicates = unclaimed + orders.len() * load.workers * load.batch;
    let mut report = rig.judge(sent, Bounds { duplicates, ..Bounds::default() }).await;
    if unclaimed == 0 {
        report.violations.push("nothing was published without a claim: the scenario shows nothing".to_owned());
    }
    report
}

/// While NATS hangs, the outbox takes what it may hold and not one entry more, whoever asks.
async fn outbox_full() -> Report {
    let most = 50;
    let rig = Rig::start(2, &format!("outbox.max_entries = {most}\n")).await;
    let crm = rig.load(PATIENT);
    rig.progress(&crm, 300).await;
    rig.world.nats.freeze();
    for gate in &rig.gates {
        gate.wait_store("nats", "unreachable").await;
    }
    let goal = crm.answered(503) + 100;
    let mut fullest = 0;
    eventually("batches are refused", async || {
        fullest = fullest.max(rig.world.redis.outbox(OUTBOX).await.len());
        (crm.answered(503) >= goal).then_some(())
    })
    .await;
    rig.world.nats.thaw();
    rig.progress(&crm, 300).await;
    let mut report = rig.verdict(crm, Bounds::default()).await;
    if fullest != most {
        report.violations.push(format!("{fullest} entries were in an outbox of {most}"));
    }
    report
}

/// What a route left in its outbox before it was taken out of the configuration goes where it would have
/// gone then.
async fn removed_route_is_drained() -> Report {
    let mut rig = Rig::start(0, "").await;
    let kept = "[[routes]]\nflow = \"vmh\"\nentity = \"beteiligte\"\naction = \"create\"\n";
    let removed = "[[routes]]\nflow = \"old\"\nentity = \"kontakt\"\naction = \"create\"\nsubject = \"vmh.kontakt.made\"\npending_key = \"old:contacts\"\n";
    rig.gates.push(rig.world.gate(&format!("{}{kept}{removed}", rig.settings())).await);
    let crm = rig.load(Load::default());
    rig.progress(&crm, 300).await;
    let mut left: Vec<_> = (0..50).map(|id| format!("left-{id}")).collect();
    rig.world.nats.freeze();
    let answer = rig.gates[0].post_to("/old/webhook/kontakt/create", batch(&left)).await;
    assert_eq!(answer.status, 503, "{}", answer.text());
    rig.gates[0].kill();
    let outbox = "{old:contacts}:outbox";
    assert_eq!(rig.world.redis.outbox(outbox).await.len(), left.len());
    // What the frozen server has already been sent, it stores now; the relay's repeats carry the same tokens.
    rig.world.nats.thaw();
    rig.replace(0).await;
    crm.aim(rig.addresses());
    rig.progress(&crm, 300).await;
    rig.world.redis.settled(outbox).await;
    let cut = u64::try_from(Load::default().workers).expect("few");
    let mut report = rig.verdict(crm, Bounds { cut, ..Bounds::default() }).await;
    let mut arrived: Vec<_> = rig.world.nats.events().await;
    arrived.retain(|event| event.subject != SUBJECT);
    let mut ids: Vec<_> = arrived.iter().map(Event::entity_id).collect();
    ids.sort();
    left.sort();
    if ids != left || arrived.iter().any(|event| event.subject != "vmh.kontakt.made") {
        report.violations.push(format!("the subject of the removed route holds {ids:?}"));
    }
    report
}

/// With `accept`, what a dead NATS does not take is answered 200, and is in the stream later.
async fn accept_without_nats() -> Report {
    let mut rig = Rig::start(2, "nats.on_unavailable = \"accept\"\n").await;
    let crm = rig.load(PATIENT);
    for _ in 0..2 {
        rig.progress(&crm, 300).await;
        rig.world.nats.kill();
        on_the_outbox_alone(&rig, &crm, 320).await;
        rig.world.nats.start_again().await;
    }
    rig.progress(&crm, 300).await;
    rig.verdict(crm, Bounds::default()).await
}

/// Waits until so many ids more were accepted, beyond those whose answers were on their way.
async fn on_the_outbox_alone(rig: &Rig, crm: &Crm, ids: usize) {
    for gate in &rig.gates {
        gate.wait_store("nats", "unreachable").await;
    }
    rig.progress(crm, PATIENT.workers * PATIENT.batch + ids).await;
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
    on_the_outbox_alone(&rig, &crm, 320).await;
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
        on_the_outbox_alone(&rig, &crm, 160).await;
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
