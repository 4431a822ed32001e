//! docs/migration.md, command by command: an application step that claims and emits by itself is killed between the two, replaced
//! by hookgate, and put back. No id is lost on the way, and none has two events.

use std::{
    collections::{BTreeMap, BTreeSet},
    io::{BufRead, BufReader, Write},
    process::{ChildStdin, ChildStdout, Stdio},
    time::{Duration, SystemTime},
};

use redis::AsyncTypedCommands;
use serde_json::Value;
use tempfile::TempDir;

use super::rig::{Report, demand};
use crate::{
    Scenario, scenario,
    support::{EspoCrm, Gate, OUTBOX, PENDING, Process, Ran, World, batch, eventually, run},
};

pub(crate) fn scenarios() -> Vec<Scenario> {
    vec![scenario!(a_step_is_replaced_and_put_back)]
}

const GUIDE: &str = include_str!("../../docs/migration.md");
const ROUTE: &str = "vmh/beteiligte/create";
const TABLE: &str = "[[routes]]\nflow = \"vmh\"\nentity = \"beteiligte\"\naction = \"create\"\nespocrm_event = \"CBeteiligte.create\"\n";
const SETTINGS: &str = "server.request_deadline = \"2s\"\nnats.ack_timeout = \"500ms\"\noutbox.relay_after = \"3s\"\n";
/// The queue of the application, where its step emits to.
const TOPIC: &str = "motia:vmh.beteiligte.create";
/// The id of the guide's test webhook.
const TRIED: &str = "migration-test";

/// Where the step dies.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Dies {
    Never,
    BeforeEmit,
    AfterOneEmit,
}

/// The step, as a process: a line is a webhook, and gets a line as its answer. `SMEMBERS`, `SADD`, then emit, one after the other.
pub(crate) async fn step(redis: &str) {
    let client = redis::Client::open(format!("{redis}/1")).expect("it is an address");
    let mut redis = client.get_multiplexed_async_connection().await.expect("Redis is there");
    for line in std::io::stdin().lines() {
        let line = line.expect("lines come");
        let (dies, body) = line.split_once(' ').expect("a word, and the body");
        let items: Vec<Value> = serde_json::from_str(body).expect("the body is a list");
        let ids: BTreeSet<String> = items.iter().filter_map(|item| item["id"].as_str().map(str::to_owned)).collect();
        let existing: BTreeSet<String> = redis.smembers(PENDING).await.expect("Redis answers").into_iter().collect();
        let new: Vec<&String> = ids.difference(&existing).collect();
        if !new.is_empty() {
            redis.sadd(PENDING, &new).await.expect("Redis answers");
        }
        for (number, id) in new.iter().enumerate() {
            if dies == "BeforeEmit" || dies == "AfterOneEmit" && number == 1 {
                println!("killed here");
                // Nothing is lost between the line and the kill.
                std::future::pending::<()>().await;
            }
            redis.lpush(TOPIC, id.as_str()).await.expect("Redis answers");
        }
        println!(
            "{{\"status\":\"received\",\"action\":\"create\",\"new_ids_count\":{},\"total_ids_in_batch\":{}}}",
            new.len(),
            ids.len()
        );
    }
}

struct Step {
    process: Process,
    input: Option<ChildStdin>,
    output: BufReader<ChildStdout>,
}

impl Step {
    fn start(world: &World) -> Self {
        let program = std::env::current_exe().expect("it runs");
        let url = world.redis.url();
        let mut process = Process::start(program.as_ref(), |command| {
            command.args(["--step", &url]).stdin(Stdio::piped()).stdout(Stdio::piped());
        });
        let input = process.child().stdin.take();
        let output = BufReader::new(process.child().stdout.take().expect("it is piped"));
        Self { process, input, output }
    }

    /// Sends a webhook; the answer, or the place where it is killed.
    fn post(&mut self, ids: &[&str], dies: Dies) -> String {
        let mut input = self.input.as_ref().expect("it takes webhooks");
        writeln!(input, "{dies:?} {}", batch(ids)).expect("it reads");
        let mut line = String::new();
        self.output.read_line(&mut line).expect("it answers");
        if dies != Dies::Never {
            assert_eq!(line, "killed here\n");
            self.process.kill();
        }
        line
    }

    /// How many ids were new.
    fn claims(&mut self, ids: &[&str]) -> u64 {
        let answer: Value = serde_json::from_str(&self.post(ids, Dies::Never)).expect("it is JSON");
        answer["new_ids_count"].as_u64().expect("it is a number")
    }

    /// It answers what it has, and ends.
    async fn finish(mut self) {
        drop(self.input.take());
        assert!(self.process.end().await.success());
    }
}

struct Scene {
    world: World,
    crm: EspoCrm,
    folder: TempDir,
    report: Report,
    /// What each consumer processed, by id.
    processed: BTreeMap<String, usize>,
}

impl Scene {
    /// The old consumers: they take what the step emitted, work on it, and release it.
    async fn old_consumers(&mut self) -> usize {
        let mut redis = self.world.redis.connection().await;
        let mut count = 0;
        while let Some(id) =
            redis::cmd("RPOP").arg(TOPIC).query_async::<Option<String>>(&mut redis).await.expect("Redis answers")
        {
            redis.srem(PENDING, &id).await.expect("Redis answers");
            *self.processed.entry(id).or_default() += 1;
            count += 1;
        }
        count
    }

    /// The new consumers: they do the same with events of the stream that they have not seen.
    async fn new_consumers(&mut self, seen: &mut usize) {
        let events = self.world.nats.events().await;
        for event in events.iter().skip(*seen) {
            let id = event.entity_id();
            self.world.redis.release(PENDING, &id).await;
            *self.processed.entry(id).or_default() += 1;
        }
        *seen = events.len();
    }

    /// Runs a line of the guide; `more` is what a person would type or confirm.
    async fn follow(&mut self, gate: &Gate, line: &str, more: &[&str]) -> Ran {
        let login = self.crm.as_api_user(self.folder.path());
        let listen = format!("server.listen = \"{}\"\n", gate.address());
        let settings = format!("{SETTINGS}{}{listen}{login}{TABLE}", self.world.settings());
        let words = line.split(" # ").next().expect("a line").split_whitespace().skip(1).chain(more.iter().copied());
        let words: Vec<String> = words.map(str::to_owned).collect();
        let ran =
            tokio::task::spawn_blocking(move || run(&settings, &words.iter().map(String::as_str).collect::<Vec<_>>()));
        let ran = ran.await.expect("it does not panic");
        demand(&mut self.report, ran.code == Some(0), format!("{line}: {:?} {}{}", ran.code, ran.printed, ran.remarks));
        ran
    }
}

/// The commands of the guide, in its order: lines of its blocks, and what it names in a sentence as `hookgate …`.
fn commands() -> Vec<&'static str> {
    let guide = &GUIDE[GUIDE.find("## Before you switch").expect("the guide has the steps")..];
    let mut commands = Vec::new();
    let mut block = false;
    for line in guide.lines().map(str::trim) {
        if line.starts_with("```") {
            block = !block;
        } else if block {
            commands.push(line);
        } else {
            let quoted = line.split('`').skip(1).step_by(2);
            commands.extend(quoted.filter(|words| words.starts_with("hookgate ")));
        }
    }
    commands
}

const COMMANDS: [&str; 11] = [
    "hookgate doctor",
    "hookgate send vmh/beteiligte/create --id migration-test",
    "hookgate pending count",
    "hookgate pending republish --not-in-stream --dry-run",
    "hookgate pending republish --not-in-stream",
    "hookgate reconcile --since 2026-11-28T08:00Z --max-clock-skew 10s --dry-run",
    "hookgate reconcile --since 2026-11-28T08:30Z --max-clock-skew 10s",
    "hookgate reconcile --failed --dry-run",
    "hookgate outbox relay      # until it says 0",
    "hookgate outbox count",
    "hookgate tail --since 1h",
];

fn utc(time: SystemTime) -> String {
    humantime::format_rfc3339_seconds(time).to_string()
}

async fn a_step_is_replaced_and_put_back() -> Report {
    let (world, crm) = tokio::join!(World::start(), EspoCrm::start());
    let folder = tempfile::tempdir().expect("a temporary folder can be made");
    let mut scene = Scene { world, crm, folder, report: Report::default(), processed: BTreeMap::new() };
    demand(&mut scene.report, commands() == COMMANDS, format!("the guide has other commands: {:?}", commands()));
    let hour = Duration::from_secs(3600);
    let created = |scene: &Scene, ids: &[&str], at: SystemTime| {
        for id in ids {
            scene.crm.state().add_record("CBeteiligte", id, at, at);
        }
    };
    let before = SystemTime::now() - hour;

    // The step, as it is and as it dies. The CRM sends again what got no answer, and the step takes it for a duplicate.
    let mut step = Step::start(&scene.world);
    assert_eq!(step.claims(&["done-1", "done-2", "queued-1"]), 3);
    scene.old_consumers().await;
    step.post(&["stuck-1", "stuck-2", "stuck-3"], Dies::BeforeEmit);
    let mut step = Step::start(&scene.world);
    step.post(&["part-1", "part-2", "part-3"], Dies::AfterOneEmit);
    let mut step = Step::start(&scene.world);
    let swallowed = step.claims(&["stuck-1", "stuck-2", "stuck-3", "part-1", "part-2", "part-3"]);
    demand(&mut scene.report, swallowed == 0, "the step emits what it claimed before: this shows nothing");
    let of_step = ["done-1", "done-2", "queued-1", "stuck-1", "stuck-2", "stuck-3", "part-1", "part-2", "part-3"];
    created(&scene, &of_step, before);

    // Before you switch.
    let gate = scene.world.gate(&format!("{SETTINGS}{TABLE}")).await;
    let doctor = scene.follow(&gate, COMMANDS[0], &[]).await;
    demand(&mut scene.report, doctor.printed.contains("0 failures"), doctor.printed);
    scene.follow(&gate, COMMANDS[1], &[]).await;
    let mut seen = 0;
    scene.new_consumers(&mut seen).await;
    demand(&mut scene.report, scene.processed.remove(TRIED) == Some(1), "the test webhook has no event");
    // Both take webhooks: what one holds is a duplicate for the other.
    let noted = SystemTime::now() - Duration::from_secs(120);
    assert_eq!(gate.post(batch(["both-1", "both-2"])).await.counts(), (2, 2));
    assert_eq!(step.claims(&["both-1", "both-3"]), 1);
    assert_eq!(gate.post(batch(["both-3"])).await.counts(), (0, 1));
    let both = ["both-1", "both-2", "both-3"];
    created(&scene, &both, noted + Duration::from_secs(1));

    // Switch. The CRM sends again to hookgate what the step left without an answer.
    let switched = noted + Duration::from_secs(60);
    assert_eq!(gate.post(batch(["new-1", "new-2"])).await.counts(), (2, 2));
    assert_eq!(gate.post(batch(["stuck-1", "part-2"])).await.counts(), (0, 2));
    created(&scene, &["new-1", "new-2", "silent-1"], switched + Duration::from_secs(1));
    step.finish().await;
    scene.old_consumers().await;
    scene.new_consumers(&mut seen).await;
    scene.world.redis.settled(OUTBOX).await;
    let counted = scene.follow(&gate, COMMANDS[2], &[]).await;
    demand(&mut scene.report, counted.printed.contains(ROUTE), counted.printed);
    let dry = scene.follow(&gate, COMMANDS[3], &["--output", "json"]).await;
    let left: BTreeSet<_> =
        dry.rows().iter().map(|row| row["entity_id"].as_str().unwrap_or_default().to_owned()).collect();
    let expected: BTreeSet<_> = ["stuck-1", "stuck-2", "stuck-3", "part-2", "part-3"].map(str::to_owned).into();
    demand(&mut scene.report, left == expected, format!("to be published: {left:?}"));
    // A person is asked.
    scene.follow(&gate, COMMANDS[4], &["--yes"]).await;
    scene.new_consumers(&mut seen).await;

    // Check against the CRM. Only the silent import is missing.
    let line = COMMANDS[5].replace("2026-11-28T08:00Z", &utc(noted));
    let plan = scene.follow(&gate, &line, &["--yes", "--output", "json"]).await.rows();
    let missing: Vec<_> =
        plan.iter().filter(|row| !row["verdict"].is_null() && row["verdict"] != "delivered").collect();
    let listed: BTreeSet<_> = missing.iter().map(|row| row["entity_id"].as_str().unwrap_or_default()).collect();
    demand(
        &mut scene.report,
        listed == BTreeSet::from(["both-3", "silent-1"]),
        format!("without an event in hookgate's stream: {missing:?}"),
    );
    let line = COMMANDS[6].replace("2026-11-28T08:30Z", &utc(switched));
    scene.follow(&gate, &line, &["--yes"]).await;
    scene.new_consumers(&mut seen).await;

    // Go back. NATS is away, so something waits in the outbox.
    scene.world.nats.kill();
    assert_eq!(gate.post(batch(["last-1"])).await.status, 503);
    scene.world.nats.start_again().await;
    scene.follow(&gate, COMMANDS[8], &[]).await;
    let count = scene.follow(&gate, COMMANDS[9], &["--output", "json"]).await.rows();
    demand(&mut scene.report, count.iter().all(|row| row["entries"] == 0), format!("the outbox holds {count:?}"));
    drop(gate);
    let mut step = Step::start(&scene.world);
    // The CRM got no 200, and comes back.
    assert_eq!(step.claims(&["last-1", "back-1"]), 1);
    step.finish().await;
    let gate = scene.world.gate_unready(SETTINGS).await;
    scene.follow(&gate, COMMANDS[10], &["--count", "1"]).await;
    scene.new_consumers(&mut seen).await;
    scene.old_consumers().await;

    let ids = of_step.iter().chain(&both).chain(&["new-1", "new-2", "silent-1", "last-1", "back-1"]);
    let ids: BTreeSet<String> = ids.map(|id| (*id).to_owned()).collect();
    let lost: Vec<_> = ids.iter().filter(|id| !scene.processed.contains_key(*id)).cloned().collect();
    let twice: Vec<_> = scene.processed.iter().filter(|(_, count)| **count > 1).map(|(id, _)| id.clone()).collect();
    scene.report.accepted = ids.len();
    scene.report.lost = lost.len();
    scene.report.duplicates = twice.len();
    demand(&mut scene.report, lost.is_empty(), format!("never processed: {lost:?}"));
    demand(&mut scene.report, twice.is_empty(), format!("processed twice: {twice:?}"));
    let pending = scene.world.redis.pending(PENDING).await;
    demand(&mut scene.report, pending.is_empty(), format!("still pending: {pending:?}"));
    eventually("nothing waits in the outbox", async || scene.world.redis.outbox(OUTBOX).await.is_empty().then_some(()))
        .await;
    scene.report
}
