//! hookgate dies at random times and at each named point of a delivery.

use super::{
    crm::{Crm, Load},
    redis::Policy,
    rig::{Bounds, Report, Rig, published},
};
use crate::{Scenario, scenario, support::eventually};

/// The scenarios of this file.
pub(crate) fn scenarios() -> Vec<Scenario> {
    vec![
        scenario!(undisturbed, quick),
        scenario!(killed_a_few_times, quick),
        scenario!(killed_100_times),
        scenario!(killed_after_claim),
        scenario!(killed_after_publish),
        scenario!(killed_after_ack),
        scenario!(killed_in_settle),
        scenario!(killed_in_relay_before_publish),
        scenario!(killed_in_relay_after_publish),
        scenario!(panic_in_request_after_claim),
        scenario!(panic_in_request_after_ack),
        scenario!(panic_in_claim),
        scenario!(panic_in_answer_of_nats),
        scenario!(panic_in_settle),
        scenario!(panic_in_accept),
        scenario!(panic_in_relay),
    ]
}

async fn undisturbed() -> Report {
    let rig = Rig::start(2, "").await;
    let crm = rig.load(Load::default());
    rig.progress(&crm, 2000).await;
    rig.verdict(crm, Bounds::default()).await
}

async fn killed_a_few_times() -> Report {
    kill_again_and_again(10).await
}

async fn killed_100_times() -> Report {
    kill_again_and_again(100).await
}

/// Each kill cuts at most the requests that the replica was working on.
async fn kill_again_and_again(kills: u64) -> Report {
    let mut rig = Rig::start(2, "").await;
    let load = Load::default();
    let crm = rig.load(load);
    for kill in 0..kills {
        // The load goes on at its own pace, so that each kill meets it elsewhere.
        rig.progress(&crm, 20 + usize::try_from(kill * 7 % 50).expect("small")).await;
        let place = usize::try_from(kill % 2).expect("0 or 1");
        rig.gates[place].kill();
        rig.replace(place).await;
        crm.aim(rig.addresses());
    }
    let cut = kills * u64::try_from(load.workers).expect("few");
    rig.verdict(crm, Bounds { cut, ..Bounds::default() }).await
}

async fn killed_after_claim() -> Report {
    die_at("after_claim").await
}

async fn killed_after_publish() -> Report {
    die_at("after_publish").await
}

async fn killed_after_ack() -> Report {
    die_at("after_ack").await
}

async fn killed_in_settle() -> Report {
    die_at("in_settle").await
}

/// One replica dies at a point of its delivery, again and again; the other one lives.
async fn die_at(point: &str) -> Report {
    let deaths = 10;
    let rig = Rig::start(1, "").await;
    let load = Load::default();
    let crm = rig.load(load);
    for death in 0..deaths {
        let mut armed = rig.world.gate_armed(rig.settings(), &format!("{point}:{}", 1 + death * 3)).await;
        crm.aim(vec![rig.gates[0].address(), armed.address()]);
        eventually("the replica dies at its point", async || armed.ended()).await;
        crm.aim(rig.addresses());
        rig.progress(&crm, 50).await;
    }
    let cut = deaths * u64::try_from(load.workers).expect("few");
    rig.verdict(crm, Bounds { cut, ..Bounds::default() }).await
}

async fn killed_in_relay_before_publish() -> Report {
    die_in_relay("relay_before_publish").await
}

async fn killed_in_relay_after_publish() -> Report {
    die_in_relay("relay_after_publish").await
}

/// What a dead replica left in the outbox kills the next one in its relay; the one after it drains it.
async fn die_in_relay(point: &str) -> Report {
    let mut rig = Rig::start(1, "").await;
    let crm = rig.load(Load::default());
    rig.progress(&crm, 50).await;
    let rounds = 3;
    for _ in 0..rounds {
        rig.gates.clear();
        die_after_a_claim(&rig, &crm).await;
        let mut second = rig.world.gate_armed(rig.settings(), point).await;
        // Nobody sends: only the relay can find what the first one left.
        eventually("the second one dies in its relay", async || second.ended()).await;
        rig.add_replica().await;
        crm.aim(rig.addresses());
        rig.progress(&crm, 50).await;
    }
    let cut = 2 * rounds * u64::try_from(Load::default().workers).expect("few");
    rig.verdict(crm, Bounds { cut, ..Bounds::default() }).await
}

/// A replica gets the load to itself and dies of it, with what it claimed in the outbox.
async fn die_after_a_claim(rig: &Rig, crm: &Crm) {
    let mut armed = rig.world.gate_armed(rig.settings(), "after_claim").await;
    crm.aim(vec![armed.address()]);
    eventually("the replica dies after a claim", async || armed.ended()).await;
}

async fn panic_in_request_after_claim() -> Report {
    panic_at("after_claim:20").await
}

async fn panic_in_request_after_ack() -> Report {
    panic_at("after_ack:20").await
}

async fn panic_in_claim() -> Report {
    panic_at("in_claim:20").await
}

async fn panic_in_answer_of_nats() -> Report {
    panic_at("in_answer:20").await
}

async fn panic_in_settle() -> Report {
    panic_at("in_settle:20").await
}

async fn panic_in_accept() -> Report {
    // The probes are accepted too until it is ready, one in 10 ms.
    // Beyond all probes while it becomes ready.
    panic_at("in_accept:1000").await
}

/// A panic costs the requests in progress, also in a task that all requests need, and nothing after that.
async fn panic_at(point: &str) -> Report {
    // What is not claimed because of it would be published with another token each time.
    let mut rig = Rig::start(0, Policy::Reject.settings()).await;
    add_panicking(&mut rig, point).await;
    let load = Load::default();
    let crm = rig.load(load);
    rig.gates[0].wait_log("panicked at ").await;
    rig.progress(&crm, 1000).await;
    let at_once = load.workers * load.batch;
    let cut = u64::try_from(load.workers).expect("few");
    let mut report = rig.verdict(crm, Bounds { cut, ..Bounds::default() }).await;
    let ended = rig.gates[0].terminate().await;
    if !ended.success() {
        report.violations.push(format!("it ended with {ended}"));
    }
    let relayed: usize = rig.gates[0].log().await.iter().map(|line| published(line, RELAYED)).sum();
    if relayed > at_once {
        report.violations.push(format!("{relayed} events were left to the relay, of {at_once} on their way at once"));
    }
    report
}

/// What the relay says of a walk on which it published something.
const RELAYED: &str = "relay published what stayed in the outbox";

/// Adds a replica that panics at a point.
async fn add_panicking(rig: &mut Rig, point: &str) {
    let mut gate = rig.world.gate_armed(rig.settings(), &format!("panic@{point}")).await;
    gate.may_panic();
    rig.gates.push(gate);
}

/// The relay panics over a dead replica's entries, restarts, and publishes them all the same.
async fn panic_in_relay() -> Report {
    let mut rig = Rig::start(0, "").await;
    let crm = rig.load(Load::default());
    die_after_a_claim(&rig, &crm).await;
    add_panicking(&mut rig, "relay_before_publish").await;
    // Nobody sends: only the relay can find what the first one left.
    rig.gates[0].wait_log("a task in the background panicked").await;
    rig.gates[0].wait_log(RELAYED).await;
    crm.aim(rig.addresses());
    rig.progress(&crm, 50).await;
    let cut = u64::try_from(Load::default().workers).expect("few");
    rig.verdict(crm, Bounds { cut, ..Bounds::default() }).await
}
