//! An entry of the outbox goes to the address it was claimed for, whatever the configuration says now: across a change
//! of subject, swapped pending keys, a removed route, and beside replicas of 0.1.0.

use std::{
    collections::BTreeMap,
    path::{Path, PathBuf},
    process::Command,
    sync::OnceLock,
};

use super::{
    crm::Load,
    rig::{Bounds, Report, Rig},
};
use crate::{
    Scenario, scenario,
    support::{Event, Gate, OUTBOX, PATH, SUBJECT, World, batch, binary},
};

/// The scenarios of this file.
pub(crate) fn scenarios() -> Vec<Scenario> {
    vec![
        scenario!(subject_changed_over_a_full_outbox, quick),
        scenario!(pending_keys_swapped_over_a_full_outbox, quick),
        scenario!(removed_route_without_a_stream, quick),
        scenario!(removed_route_is_drained),
        scenario!(upgrade_from_0_1_0_with_another_subject, older),
        scenario!(rollback_to_0_1_0_and_upgrade_again, older),
    ]
}

/// The revision of 0.1.0.
const REVISION: &str = "a63de6c";
const SETTINGS: &str = "server.request_deadline = \"1s\"\nserver.body_read_timeout = \"1s\"\nnats.ack_timeout = \"500ms\"\nredis.timeout = \"300ms\"\noutbox.relay_after = \"2s\"\n";

/// The route of the tests with another subject.
fn to(subject: &str) -> String {
    format!("[[routes]]\nflow = \"vmh\"\nentity = \"beteiligte\"\naction = \"create\"\nsubject = \"{subject}\"\n")
}

async fn ready(world: &World, settings: &str) -> Gate {
    world.gate(&format!("{SETTINGS}{settings}")).await
}

/// Claims that NATS does not acknowledge, made by a replica that is gone then.
async fn leave_behind(world: &mut World, mut gate: Gate, path: &str, ids: &[&str]) {
    world.nats.kill();
    assert_eq!(gate.post_to(path, batch(ids)).await.status, 503, "nothing is acknowledged");
    gate.kill();
    gate.end().await;
}

/// The subjects of the events of each id, once the outboxes are empty.
async fn subjects(world: &World, outboxes: &[&str]) -> BTreeMap<String, Vec<String>> {
    for outbox in outboxes {
        world.redis.settled(outbox).await;
    }
    let mut subjects = BTreeMap::<_, Vec<String>>::new();
    for event in world.nats.events().await {
        subjects.entry(event.entity_id()).or_default().push(event.subject.clone());
    }
    subjects
}

fn report(found: &BTreeMap<String, Vec<String>>, expected: &[(&str, &str)]) -> Report {
    let mut report = Report { accepted: expected.len(), ..Report::default() };
    for (id, subject) in expected {
        let there = found.get(*id).map(Vec::as_slice).unwrap_or_default();
        if there != [*subject] {
            report.violations.push(format!("{id} was claimed for {subject} and went to {there:?}"));
        }
    }
    report
}

/// The relay, and a request for the id, take an entry to the subject it was claimed for.
async fn subject_changed_over_a_full_outbox() -> Report {
    let mut world = World::start().await;
    let gate = ready(&world, &to("vmh.old")).await;
    leave_behind(&mut world, gate, PATH, &["a", "b"]).await;
    world.nats.start_again().await;
    let gate = ready(&world, &to("vmh.new")).await;
    assert_eq!(gate.deliver(batch(["a", "c"])).await.counts(), (1, 2), "a is in flight");
    let found = subjects(&world, &[OUTBOX]).await;
    report(&found, &[("a", "vmh.old"), ("b", "vmh.old"), ("c", "vmh.new")])
}

fn swappable(create: &str, delete: &str) -> String {
    let route = |action: &str, key: &str| {
        format!("[[routes]]\nflow = \"vmh\"\nentity = \"akte\"\naction = \"{action}\"\npending_key = \"vmh:{key}\"\n")
    };
    format!("{}{}", route("create", create), route("delete", delete))
}

/// Creates never go out as deletes.
async fn pending_keys_swapped_over_a_full_outbox() -> Report {
    let mut world = World::start().await;
    let gate = ready(&world, &swappable("one", "two")).await;
    leave_behind(&mut world, gate, "/vmh/webhook/akte/create", &["created"]).await;
    world.nats.start_again().await;
    let gate = ready(&world, &swappable("two", "one")).await;
    let path = "/vmh/webhook/akte/delete";
    assert_eq!(gate.post_to(path, batch(["deleted"])).await.counts(), (1, 1));
    let found = subjects(&world, &["{vmh:one}:outbox", "{vmh:two}:outbox"]).await;
    let mut report = report(&found, &[("created", "vmh.akte.create"), ("deleted", "vmh.akte.delete")]);
    for event in world.nats.events().await {
        let action = event.entity_id().trim_end_matches('d').to_owned();
        if !event.payload.contains(&format!("\"action\":\"{action}\"")) {
            report.violations.push(format!("{} says {}", event.entity_id(), event.payload));
        }
    }
    report
}

/// The log says which subject has no stream and how many entries wait; a stream of any name brings them out.
async fn removed_route_without_a_stream() -> Report {
    let mut world = World::start().await;
    let gate = ready(&world, &to("vmh.old")).await;
    leave_behind(&mut world, gate, PATH, &["a", "b"]).await;
    world.nats.start_again().await;
    let jetstream = world.nats.jetstream().await;
    jetstream.delete_stream("HOOKGATE").await.expect("hookgate made it");
    // Of another flow, so that its stream does not cover that subject.
    let other = "[[routes]]\nflow = \"other\"\nentity = \"akte\"\naction = \"create\"\npending_key = \"vmh:akte\"\n";
    let gate = ready(&world, other).await;
    let line = gate.wait_log("no stream covers the subject").await;
    let said = line.contains("\"vmh.old\"") && line.contains("\"entries\":2");
    let stream = async_nats::jetstream::stream::Config {
        name: "ARCHIVE".to_owned(),
        subjects: vec!["vmh.old".to_owned()],
        ..Default::default()
    };
    jetstream.create_stream(stream).await.expect("the tests may");
    world.redis.settled(OUTBOX).await;
    let mut archive = jetstream.get_stream("ARCHIVE").await.expect("it is there");
    let count = archive.info().await.expect("it says how it is").state.messages;
    let mut report = Report { accepted: 2, ..Report::default() };
    if !said {
        report.violations.push(format!("the log does not say which subject and how many: {line}"));
    }
    if count != 2 {
        report.violations.push(format!("{count} of 2 events are in the stream"));
    }
    report
}

/// What 0.1.0 left goes where it said, also while both versions serve; new claims go to the new subject.
async fn upgrade_from_0_1_0_with_another_subject() -> Report {
    let mut world = World::start().await;
    let gate = older(&world, &to("vmh.old")).await;
    leave_behind(&mut world, gate, PATH, &["a", "b"]).await;
    world.nats.start_again().await;
    let new = ready(&world, &to("vmh.new")).await;
    let found = subjects(&world, &[OUTBOX]).await;
    let old = older(&world, &to("vmh.old")).await;
    assert_eq!(new.post(batch(["c"])).await.counts(), (1, 1));
    assert_eq!(old.post(batch(["d", "c"])).await.counts(), (1, 2));
    assert_eq!(new.post(batch(["d"])).await.counts(), (0, 1));
    let all = subjects(&world, &[OUTBOX]).await;
    assert_eq!(found.get("a"), all.get("a"), "nothing comes twice");
    report(&all, &[("a", "vmh.old"), ("b", "vmh.old"), ("c", "vmh.new"), ("d", "vmh.old")])
}

/// 0.1.0 publishes what a new replica left: it takes no entry for damaged. What it leaves itself goes to its subject
/// after the next upgrade.
async fn rollback_to_0_1_0_and_upgrade_again() -> Report {
    let mut world = World::start().await;
    let mut old = older(&world, &to("vmh.old")).await;
    assert_eq!(old.post(batch(["first"])).await.counts(), (1, 1));
    old.terminate().await;
    let gate = ready(&world, &to("vmh.new")).await;
    leave_behind(&mut world, gate, PATH, &["a"]).await;
    world.nats.start_again().await;
    let old = older(&world, &to("vmh.old")).await;
    let brought = subjects(&world, &[OUTBOX]).await;
    leave_behind(&mut world, old, PATH, &["b"]).await;
    world.nats.start_again().await;
    let _new = ready(&world, &to("vmh.new")).await;
    let found = subjects(&world, &[OUTBOX]).await;
    let mut report = report(&found, &[("first", "vmh.old"), ("b", "vmh.old")]);
    // 0.1.0 knows no subject but its own.
    if brought.get("a").map(Vec::len) != Some(1) {
        report.violations.push(format!("0.1.0 did not bring what was left to it: {brought:?}"));
    }
    report
}

async fn older(world: &World, settings: &str) -> Gate {
    version_0_1_0(world, &format!("{SETTINGS}{settings}")).await
}

/// A replica of 0.1.0 that is ready.
pub(super) async fn version_0_1_0(world: &World, settings: &str) -> Gate {
    let gate = Gate::start_program(older_binary(), &world.settings(), settings).await;
    gate.wait_ready().await;
    gate
}

/// The program that `HOOKGATE_0_1_0` names, or the one that is built of the history once, below `target`.
pub(crate) fn older_binary() -> &'static Path {
    static BINARY: OnceLock<PathBuf> = OnceLock::new();
    BINARY.get_or_init(|| {
        let named = PathBuf::from(binary("HOOKGATE_0_1_0", ""));
        if !named.as_os_str().is_empty() {
            return named;
        }
        let root = Path::new(env!("CARGO_MANIFEST_DIR"));
        let folder = root.join("target/hookgate-0.1.0");
        let built_here = folder.join("target/debug/hookgate");
        if !built_here.exists() {
            std::fs::create_dir_all(&folder).expect("target is ours");
            let script = format!("set -e; git archive {REVISION} | tar -x -C '{}'", folder.display());
            let unpacked = Command::new("bash").args(["-o", "pipefail", "-c", &script]).current_dir(root).status();
            assert!(
                unpacked.expect("there is a bash").success(),
                "the history has no {REVISION} (0.1.0): fetch it (git fetch --unshallow), or name a program of 0.1.0 in HOOKGATE_0_1_0"
            );
            let built = Command::new(env!("CARGO"))
                .args(["build", "--locked"])
                .current_dir(&folder)
                .env("CARGO_TARGET_DIR", folder.join("target"))
                .status();
            assert!(built.expect("there is a cargo").success(), "0.1.0 can't be built in {}", folder.display());
        }
        built_here
    })
}

/// Entries of a route that was removed from the configuration go to the subject that it had.
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
