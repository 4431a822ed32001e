//! What the sender gave up on comes back: each id has its event at the end, and none that was there comes twice. The commands
//! that bring it back are killed at named points and at random, and repeated.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::SocketAddr,
    path::Path,
    time::{Duration, SystemTime},
};

use super::{
    crm::{Dice, Load},
    rig::{Report, demand},
};
use crate::{
    Scenario, scenario,
    support::{EspoCrm, Gate, OUTBOX, World, batch, eventually, run, signed, start, try_exchange},
};

pub(crate) fn scenarios() -> Vec<Scenario> {
    vec![
        scenario!(failed_items_come_back),
        scenario!(a_silent_import_is_found),
        scenario!(a_wrong_secret_loses_nothing),
    ]
}

const EVENT: &str = "CBeteiligte.create";
const ROUTE: &str = "[[routes]]\nflow = \"vmh\"\nentity = \"beteiligte\"\naction = \"create\"\nespocrm_event = \"CBeteiligte.create\"\n";
/// Shortened, as in all scenarios.
const SETTINGS: &str = "server.request_deadline = \"2s\"\nnats.ack_timeout = \"500ms\"\noutbox.relay_after = \"3s\"\nlog.filter = \"info,hookgate::entity=warn\"\n";
/// Each ends one run of a command. Beyond them it is killed at random.
const POINTS: [&str; 5] = ["in_claim:2", "after_claim:1", "after_publish:2", "after_ack:1", "in_settle:1"];

/// How many events each id has.
async fn copies(world: &World) -> BTreeMap<String, usize> {
    world.nats.events().await.iter().fold(BTreeMap::new(), |mut copies, event| {
        *copies.entry(event.entity_id()).or_default() += 1;
        copies
    })
}

/// Runs `reconcile` to its end, after it was killed at each point and some times at random.
async fn reconcile(report: &mut Report, settings: &str, source: &[&str]) {
    let arguments = [&["reconcile", "--max-clock-skew", "1s", "--rate", "2000"], source].concat();
    for point in POINTS {
        let mut killed = start(settings, &arguments, &[("HOOKGATE_FAILPOINT", point)]);
        killed.process.end().await;
    }
    let mut dice = Dice(7);
    for _ in 0..8 {
        let mut killed = start(settings, &arguments, &[]);
        tokio::time::sleep(Duration::from_millis(dice.roll(5..400))).await;
        if killed.process.ended().is_none() {
            killed.process.kill();
        }
    }
    let settings = settings.to_owned();
    let arguments: Vec<String> = arguments.iter().map(|argument| (*argument).to_owned()).collect();
    let ran =
        tokio::task::spawn_blocking(move || run(&settings, &arguments.iter().map(String::as_str).collect::<Vec<_>>()));
    let ran = ran.await.expect("the command ends");
    demand(report, ran.code == Some(0), format!("reconcile ended with {:?}: {}{}", ran.code, ran.printed, ran.remarks));
}

/// Demands an event for each id, one for each that had none before, and not one more for each that had.
async fn judge(report: &mut Report, world: &World, ids: &BTreeSet<String>, before: &BTreeMap<String, usize>) {
    let after = copies(world).await;
    let missing: Vec<_> = ids.iter().filter(|id| !after.contains_key(*id)).collect();
    let again: Vec<_> = before.iter().filter(|(id, count)| after.get(*id) != Some(count)).collect();
    let twice: Vec<_> = after.iter().filter(|(id, count)| **count > 1 && !before.contains_key(*id)).collect();
    report.accepted = ids.len();
    report.lost = missing.len();
    report.duplicates = again.len() + twice.len();
    demand(report, missing.is_empty(), format!("{} without an event: {:?}", missing.len(), missing.first()));
    demand(report, again.is_empty(), format!("{} were there and came again: {:?}", again.len(), again.first()));
    demand(report, twice.is_empty(), format!("{} came twice: {:?}", twice.len(), twice.first()));
}

/// Redis and NATS are down for longer than the sender tries.
async fn failed_items_come_back() -> Report {
    let mut report = Report::default();
    let (mut world, crm) = tokio::join!(World::start(), EspoCrm::start());
    let folder = tempfile::tempdir().expect("a temporary folder can be made");
    let settings = format!("{SETTINGS}{ROUTE}");
    let gates = [world.gate(&settings).await, world.gate(&settings).await, world.gate(&settings).await];
    let began = SystemTime::now();
    let load = Load { attempts: 4, retry_after: Duration::from_millis(200), ..Load::default() };
    let sender = super::crm::Crm::start(gates.iter().map(Gate::address).collect(), load);
    eventually("the load runs", async || (sender.accepted() > 100).then_some(())).await;
    world.redis.kill();
    world.nats.kill();
    eventually("much is refused", async || (sender.answered(503) > 60).then_some(())).await;
    let sent = sender.finish().await;
    demand(&mut report, !sent.given_up.is_empty(), "nothing was given up: the scenario shows nothing");
    world.redis.start_again().await;
    world.nats.start_again().await;
    // The relay brings what was claimed: those are not to come again.
    eventually("the relay is done", async || world.redis.outbox(OUTBOX).await.is_empty().then_some(())).await;
    for id in &sent.given_up {
        crm.state().add_failed(EVENT, id, began);
    }
    let before = copies(&world).await;
    let settings = format!("{}{}{settings}", world.settings(), crm_settings(&crm.as_admin(folder.path())));
    reconcile(&mut report, &settings, &["--failed", "--clear"]).await;
    let ids: BTreeSet<_> = sent.accepted.union(&sent.given_up).cloned().collect();
    judge(&mut report, &world, &ids, &before).await;
    let left = crm.state().failed();
    demand(&mut report, left.is_empty(), format!("{} items are left in the queue of the CRM", left.len()));
    report.statuses = format!("{:?}, {} given up", sent.statuses, sent.given_up.len());
    report.longest = sent.longest;
    report
}

/// Tables come behind plain keys.
fn crm_settings(table: &str) -> String {
    let lines = table.lines().skip(1).map(|line| format!("espocrm.{line}\n"));
    lines.collect()
}

/// Records without a webhook, among others that had theirs.
async fn a_silent_import_is_found() -> Report {
    let mut report = Report::default();
    let (world, crm) = tokio::join!(World::start(), EspoCrm::start());
    let folder = tempfile::tempdir().expect("a temporary folder can be made");
    let settings = format!("{SETTINGS}{ROUTE}");
    let gate = world.gate(&settings).await;
    let hour = Duration::from_secs(3600);
    let at = SystemTime::now() - hour;
    let ids: BTreeSet<String> = (0..900).map(|number| format!("r-{number}")).collect();
    for id in &ids {
        crm.state().add_record("CBeteiligte", id, at, at);
    }
    let sent: Vec<_> = ids.iter().step_by(3).collect();
    for part in sent.chunks(50) {
        let answer = gate.post(batch(part)).await;
        demand(&mut report, answer.status == 200, format!("a webhook was answered {}", answer.status));
    }
    world.redis.settled(OUTBOX).await;
    let before = copies(&world).await;
    let settings = format!("{}{}{settings}", world.settings(), crm_settings(&crm.as_api_user(folder.path())));
    reconcile(&mut report, &settings, &["--since", "2h"]).await;
    judge(&mut report, &world, &ids, &before).await;
    report
}

const WEBHOOK: &str = "65f0c1d2e3a4b5c6d";
const SECRET: &str = "0123456789abcdef0123456789abcdef";

/// Three replicas have a wrong secret until long after the last attempt, and are killed meanwhile and while they release.
async fn a_wrong_secret_loses_nothing() -> Report {
    let mut report = Report::default();
    let world = World::start().await;
    let folder = tempfile::tempdir().expect("a temporary folder can be made");
    let file = folder.path().join("secret");
    std::fs::write(&file, "another secret").expect("the folder is ours");
    let settings = signed_route(&file);
    let mut gates = Vec::new();
    for _ in 0..3 {
        gates.push(world.gate(&settings).await);
    }
    // Four attempts for each batch, and a replica dies between two of them.
    let batches: Vec<Vec<String>> =
        (0..30).map(|batch| (0..10).map(|item| format!("b{batch}-{item}")).collect()).collect();
    let mut statuses = BTreeMap::<u16, usize>::new();
    for attempt in 0..4 {
        if attempt > 0 {
            gates[attempt - 1] = world.gate(&settings).await;
        }
        for (number, ids) in batches.iter().enumerate() {
            // A stranger, who knows no id, sends more than there is room for.
            let stranger = signed(&format!("stranger-{attempt}-{number}"), SECRET, &batch(ids));
            let _whatever = try_exchange(gates[number % 3].address(), &stranger).await;
            let status = send(&gates, number, &signed(WEBHOOK, SECRET, &batch(ids))).await;
            *statuses.entry(status).or_default() += 1;
        }
    }
    demand(&mut report, statuses.keys().all(|status| *status == 401), format!("statuses {statuses:?}"));
    demand(&mut report, world.nats.events().await.is_empty(), "something was let in");
    let before = copies(&world).await;
    std::fs::write(&file, SECRET).expect("the folder is ours");
    // One dies between its acknowledgements and the removal, one at a claim; the third notices the new secret by itself.
    for (place, point) in [(0, "after_release_from_quarantine:3"), (1, "after_claim:2")] {
        let mut armed = world.gate_armed(&settings, point).await;
        gates.remove(place);
        eventually("it dies, or others have done it all", async || {
            (armed.ended().is_some() || copies(&world).await.len() == 300).then_some(())
        })
        .await;
        gates.insert(place, world.gate(&settings).await);
    }
    let ids: BTreeSet<String> = batches.into_iter().flatten().collect();
    eventually("all of it is published", async || (copies(&world).await.len() >= ids.len()).then_some(())).await;
    eventually("and settled", async || world.redis.outbox(OUTBOX).await.is_empty().then_some(())).await;
    judge(&mut report, &world, &ids, &before).await;
    report.statuses = format!("{statuses:?}");
    report
}

fn signed_route(secret: &Path) -> String {
    let secret = secret.display();
    format!(
        "{SETTINGS}quarantine.max_entries = 100\n[[routes]]\nflow = \"vmh\"\nentity = \"beteiligte\"\naction = \"create\"\nquarantine = true\n\
        auth = [{{ scheme = \"espocrm\", id = \"{WEBHOOK}\", secret_files = [\"{secret}\"] }}]\n"
    )
}

/// To the next replica that takes connections, as an ingress does.
async fn send(gates: &[Gate], first: usize, request: &[u8]) -> u16 {
    let addresses: Vec<SocketAddr> = gates.iter().map(Gate::address).collect();
    for turn in 0..addresses.len() {
        if let Ok(answer) = try_exchange(addresses[(first + turn) % addresses.len()], request).await {
            return answer.status;
        }
    }
    0
}
