//! New replicas beside old ones: those that reach no store because their address is wrong must not take over, and those
//! that start in a real outage must.

use std::time::Duration;

use super::rig::{Report, demand};
use crate::{
    Scenario, scenario,
    support::{Gate, World, batch, within},
};

/// The scenarios of this file.
pub(crate) fn scenarios() -> Vec<Scenario> {
    vec![scenario!(mistyped_addresses_beside_a_replica_that_works)]
}

/// 60 s of unreachability, and some for a busy machine.
const READY_WITHOUT_STORE: Duration = Duration::from_secs(80);
/// Addresses where nothing listens.
const WRONG_REDIS: &str = "redis.url = \"redis://127.0.0.1:9/1\"\n";
const WRONG_NATS: &str = "nats.url = \"nats://127.0.0.1:9\"\n";
const NO_SUCH_REDIS: &str = "redis.url = \"redis://redis-mistyped.invalid:6379/1\"\n";

async fn is_ready(gate: &Gate) -> bool {
    gate.probe("/readyz").await.status == 200
}

/// Waits until each replica is ready, or the time is over; how many are.
async fn ready_within(limit: Duration, gates: &[Gate]) -> usize {
    let count = async || {
        let mut ready = 0;
        for gate in gates {
            ready += usize::from(is_ready(gate).await);
        }
        ready
    };
    let all = within(limit, async || (count().await == gates.len()).then_some(())).await;
    if all.is_some() { gates.len() } else { count().await }
}

async fn mistyped_addresses_beside_a_replica_that_works() -> Report {
    let mut world = World::start().await;
    let works = world.gate("").await;
    let beside = format!("admin.replicas = \"{}\"\n", works.probes());
    let mut wrong = Vec::new();
    for (without, mistake) in [
        ("redis", WRONG_REDIS.to_owned()),
        ("redis", NO_SUCH_REDIS.to_owned()),
        ("nats", WRONG_NATS.to_owned()),
        ("redis,nats", format!("{WRONG_REDIS}{WRONG_NATS}")),
    ] {
        wrong.push((without, world.gate_unready(&format!("{mistake}{beside}")).await));
    }
    let mut report = Report::default();
    for (without, gate) in &wrong {
        let said = within(READY_WITHOUT_STORE, async || {
            let line = gate.log_line("another replica reaches this store");
            (line.is_some() || is_ready(gate).await).then_some(line)
        });
        let said = said.await.flatten().is_some();
        demand(
            &mut report,
            said && !is_ready(gate).await,
            format!("without {without}: ready beside a replica that works"),
        );
    }
    report.accepted = usize::from(works.post(batch(["a"])).await.status == 200);
    let accepted = report.accepted == 1;
    demand(&mut report, accepted, "the old replica takes no webhook");

    world.redis.kill();
    world.nats.kill();
    // The same address as the replica that works: it starts in the outage.
    let restarted = world.gate_unready(&beside).await;
    let (expected, gates): (Vec<_>, Vec<_>) = wrong.into_iter().chain([("redis,nats", restarted)]).unzip();
    let ready = ready_within(READY_WITHOUT_STORE, &gates).await;
    demand(&mut report, ready == gates.len(), format!("{ready} of {} get ready in a real outage", gates.len()));
    for (without, gate) in expected.into_iter().zip(&gates) {
        let line = gate.wait_log("\"ready").await;
        let named = line.contains(&format!("\"without\":\"{without}\""));
        demand(&mut report, named, format!("the log does not name {without}: {line}"));
    }
    report
}
