//! The configuration is read again and again, while NATS fails and replicas come and go.

use super::{
    crm::Load,
    redis::refusals,
    rig::{Bounds, Report, Rig, demand, demand_good_end},
};
use crate::{Scenario, scenario, support::eventually};

/// The scenarios of this file.
pub(crate) fn scenarios() -> Vec<Scenario> {
    vec![scenario!(reloads_while_nats_fails)]
}

const ROUTE: &str = "[[routes]]\nflow = \"vmh\"\nentity = \"beteiligte\"\naction = \"create\"\n";

/// Each reload changes limits, and adds or removes a route; the route of the load changes its consumers, and with them its tasks.
async fn reloads_while_nats_fails() -> Report {
    let mut rig = Rig::start(2, ROUTE).await;
    let settings = rig.settings().to_owned();
    let variant = |number: usize| {
        let own = if number.is_multiple_of(2) { "" } else { "label = \"Other\"\nredeliver_after = \"1h\"\n" };
        let in_flight = 100 + number;
        let other = "[[routes]]\nflow = \"vmh\"\nentity = \"akte\"\naction = \"delete\"\n";
        let other = if number.is_multiple_of(3) { other } else { "" };
        format!("server.max_in_flight = {in_flight}\n{settings}{own}{other}")
    };
    let crm = rig.load(Load::default());
    rig.progress(&crm, 200).await;
    let mut ends = Vec::new();
    for number in 0..12 {
        match number % 6 {
            1 => rig.world.nats.freeze(),
            2 => rig.world.nats.thaw(),
            3 => rig.world.nats.kill(),
            4 => rig.world.nats.start_again().await,
            5 => {
                // As a Service does: who leaves gets no new connections.
                crm.aim(rig.addresses().split_off(1));
                ends.push(rig.gates[0].terminate().await);
                rig.replace(0).await;
                crm.aim(rig.addresses());
            }
            _ => {}
        }
        for gate in &rig.gates {
            gate.configure(&variant(number));
            gate.signal("HUP");
        }
        for gate in &rig.gates {
            eventually("the limit is in force", async || {
                let status = gate.probe("/v1/status").await.json();
                (status["limits"]["requests_in_flight"]["limit"] == 100 + number).then_some(())
            })
            .await;
        }
        if matches!(number % 6, 1 | 3) {
            // Longer than a request tries: each sender has been refused.
            refusals(&crm, u64::try_from(Load::default().workers).expect("few")).await;
        } else {
            rig.progress(&crm, 100).await;
        }
    }
    rig.faults_end();
    rig.progress(&crm, 200).await;
    let mut report = rig.verdict(crm, Bounds::default()).await;
    demand_good_end(&mut report, &ends);
    for gate in &rig.gates {
        let problems = gate.probe("/v1/status").await.json()["configuration"]["problems"].clone();
        demand(
            &mut report,
            problems == serde_json::json!([]),
            format!("the configuration is not in force: {problems}"),
        );
    }
    report
}
