//! The runbooks about what the CRM gave up on, followed as they are written: their commands and settings, against real servers and
//! a strict stand-in for the CRM.

use std::{
    fs,
    time::{Duration, SystemTime},
};

use serde_json::json;
use tempfile::TempDir;

use crate::support::{ADMIN, API_KEY, EspoCrm, Event, Gate, NAME, OUTBOX, Ran, World, batch, eventually, run, signed};

const ESPOCRM: &str = include_str!("../docs/espocrm.md");
const OPERATIONS: &str = include_str!("../docs/operations.md");
const ALERTS: &str = include_str!("../docs/alerts.md");
const EVENT: &str = "CBeteiligte.create";
/// Of the page's examples.
const WEBHOOK: &str = "65f0c1d2e3a4b5c6d";
const SECRET: &str = "0123456789abcdef0123456789abcdef";

/// A part of a page, from its heading to the next of any level.
fn part(page: &'static str, heading: &str) -> &'static str {
    let start = page.find(&format!("{heading}\n")).unwrap_or_else(|| panic!("the page has {heading}")) + heading.len();
    let rest = &page[start..];
    // A comment in a block begins with one #.
    &rest[..rest.find("\n##").unwrap_or(rest.len())]
}

/// Blocks of a language in it.
fn blocks(part: &'static str, language: &str) -> Vec<&'static str> {
    let open = format!("```{language}\n");
    part.split(&open).skip(1).map(|rest| rest.split("```").next().expect("a block ends")).collect()
}

/// The commands of hookgate in it, in their order: of its blocks, and those in a sentence. Without comments.
fn commands(part: &'static str) -> Vec<String> {
    let mut found = Vec::new();
    for (number, piece) in part.split("```").enumerate() {
        if number % 2 == 1 {
            let lines = piece.lines().filter(|line| line.starts_with("hookgate "));
            found.extend(lines.map(|line| line.split(" #").next().expect("a line").trim().to_owned()));
        } else {
            let quoted = piece.split('`').skip(1).step_by(2).map(|words| words.split_whitespace().collect::<Vec<_>>());
            found.extend(quoted.map(|words| words.join(" ")).filter(|words| words.starts_with("hookgate ")));
        }
    }
    found
}

struct Scene {
    world: World,
    crm: EspoCrm,
    folder: TempDir,
    /// As the page has them, with this place's addresses and files.
    settings: String,
}

impl Scene {
    /// `settings` are blocks of a page.
    async fn start(settings: &[&str]) -> Self {
        let (world, crm) = tokio::join!(World::start(), EspoCrm::start());
        let folder = tempfile::tempdir().expect("a temporary folder can be made");
        for (name, text) in [("espo-password", ADMIN.1), ("espo-api-key", API_KEY), ("create", "another secret")] {
            fs::write(folder.path().join(name), text).expect("the folder is ours");
        }
        let settings = settings
            .concat()
            .replace("https://crm.example.com", &crm.url())
            .replace("/run/secrets/espo/", &format!("{}/", folder.path().display()))
            .replace("/run/secrets/", &format!("{}/", folder.path().display()));
        Self { world, crm, folder, settings }
    }

    async fn gate(&self) -> Gate {
        self.world.gate(&self.settings).await
    }

    /// Runs a command as it is written, and `more` that a person would confirm.
    async fn follow(&self, line: &str, more: &[&str]) -> Ran {
        let settings = format!("{}{}", self.world.settings(), self.settings);
        let words: Vec<String> =
            line.split_whitespace().skip(1).chain(more.iter().copied()).map(str::to_owned).collect();
        let ran =
            tokio::task::spawn_blocking(move || run(&settings, &words.iter().map(String::as_str).collect::<Vec<_>>()));
        let ran = ran.await.expect("it does not panic");
        assert!(!ran.printed.contains(NAME) && !ran.remarks.contains(NAME), "{line}: {}{}", ran.printed, ran.remarks);
        ran
    }

    async fn published(&self) -> Vec<String> {
        let mut ids: Vec<_> = self.world.nats.events().await.iter().map(Event::entity_id).collect();
        ids.sort_unstable();
        ids
    }
}

fn ago(hours: u64) -> SystemTime {
    SystemTime::now() - Duration::from_secs(hours * 3600)
}

fn utc(time: SystemTime) -> String {
    humantime::format_rfc3339_seconds(time).to_string()
}

#[tokio::test]
async fn the_crm_shows_failed_items() {
    let heading = "## If the CRM shows failed items";
    let part = part(ESPOCRM, heading);
    let scene = Scene::start(&blocks(part, "toml")).await;
    assert_eq!(
        commands(part),
        [
            "hookgate reconcile --failed --dry-run",
            "hookgate reconcile --failed --clear",
            "hookgate reconcile --file records.jsonl"
        ]
    );
    let gate = scene.world.gate(&format!("server.max_body_bytes = 200\n{}", scene.settings)).await;
    gate.post(batch(["delivered"])).await;
    // Too large: final for the CRM.
    let large = batch((0..20).map(|number| format!("large-{number}")));
    assert_eq!(gate.post(&large).await.status, 413);
    for id in ["delivered", "outage", "large-0", "large-1"] {
        scene.crm.state().add_failed(EVENT, id, ago(1));
    }
    // operations.md leads here.
    let runbook = self::part(OPERATIONS, "### The CRM shows failed items");
    let steps = commands(runbook);
    assert_eq!(
        steps,
        [
            "hookgate dead-letters list",
            "hookgate reconcile --failed --dry-run",
            "hookgate reconcile --failed --clear",
            "hookgate dead-letters replay --reason gave_up",
        ]
    );
    eventually("the letter is there", async || {
        let letters = scene.follow(&steps[0], &[]).await.good();
        letters.contains("body_too_large").then_some(())
    })
    .await;
    let letter = scene.follow(&steps[0], &["--output", "json"]).await.rows().remove(0);
    let name = letter["entry"].as_str().expect("it has a name").to_owned();
    let shown = scene.follow(&format!("hookgate dead-letters show {name}"), &[]).await.good();
    assert!(
        shown.contains(&large.len().to_string()) && !shown.contains("large-0"),
        "its size, and not its body: {shown}"
    );
    let plan = scene.follow(&steps[1], &[]).await.good();
    assert!(plan.contains("large-0") && plan.contains("outage"), "{plan}");
    scene.follow(&steps[2], &[]).await.good();
    assert_eq!(scene.published().await, ["delivered", "large-0", "large-1", "outage"]);
    assert!(scene.crm.state().failed().is_empty());
    scene.follow(&steps[3], &[]).await.good();
    assert_eq!(scene.published().await.len(), 4, "nothing was given up");

    let file = scene.folder.path().join("records.jsonl");
    fs::write(&file, blocks(part, "json")[0]).expect("the folder is ours");
    let line = commands(part)[2].replace("records.jsonl", &file.display().to_string());
    scene.follow(&line, &[]).await.good();
    assert!(scene.published().await.contains(&"6601aa0b1c2d3e4f5".to_owned()));
}

#[tokio::test]
async fn a_long_outage_or_a_silent_import() {
    let scene = Scene::start(&blocks(part(ESPOCRM, "## If the CRM shows failed items"), "toml")).await;
    let part = part(ESPOCRM, "## After a long outage, or a silent import");
    let lines = commands(part);
    assert_eq!(
        lines,
        [
            "hookgate reconcile --since 2026-11-28T08:00Z --dry-run",
            "hookgate reconcile --since 2026-11-28T08:00Z --until 2026-11-28T12:00Z",
            "hookgate reconcile --since 3h --route vmh/beteiligte/create",
            "hookgate doctor --espocrm",
        ]
    );
    let gate = scene.gate().await;
    assert_eq!(gate.post(batch(["dropped", "before"])).await.status, 200);
    // The stream does not reach back.
    scene.world.nats.api("STREAM.PURGE.HOOKGATE", &json!({ "keep": 1 })).await;
    let kept = scene.published().await.remove(0);
    for (id, hours) in [(kept.as_str(), 30), ("imported", 5), ("later", 2)] {
        scene.crm.state().add_record("CBeteiligte", id, ago(hours), ago(hours));
    }
    let since = utc(ago(6));
    let line = lines[0].replace("2026-11-28T08:00Z", &since);
    let plan = scene.follow(&line, &[]).await;
    assert!(
        plan.remarks.contains("the stream's first message is of"),
        "{:?} {} {}",
        plan.code,
        plan.printed,
        plan.remarks
    );
    let plan = plan.good();
    assert!(plan.contains("imported") && plan.contains("later") && !plan.contains(&kept), "{plan}");
    let line = lines[1].replace("2026-11-28T08:00Z", &since).replace("2026-11-28T12:00Z", &utc(ago(4)));
    let asked = scene.follow(&line, &[]).await;
    assert_eq!(asked.code, Some(2), "it asks, and nobody is there: {}", asked.remarks);
    scene.follow(&line, &["--yes"]).await.good();
    assert_eq!(scene.published().await, [kept.as_str(), "imported"]);
    scene.follow(&lines[2], &["--yes"]).await.good();
    assert_eq!(scene.published().await, [kept.as_str(), "imported", "later"]);
}

#[tokio::test]
async fn a_wrong_secret() {
    let part = part(ESPOCRM, "## A wrong secret");
    let scene = Scene::start(&[
        blocks(self::part(ESPOCRM, "## If the CRM shows failed items"), "toml")[0]
            .split("[[routes]]")
            .next()
            .expect("a table"),
        &blocks(part, "toml")[0].replacen('\n', "\nespocrm_event = \"CBeteiligte.create\"\n", 1),
    ])
    .await;
    let lines = commands(part);
    assert_eq!(
        lines,
        [
            "hookgate quarantine list",
            "hookgate quarantine list",
            "hookgate reconcile --failed --clear",
            "hookgate quarantine purge --id ID",
            "hookgate dead-letters purge --id ID",
        ]
    );
    let gate = scene.gate().await;
    for ids in [["a", "b"], ["c", "forget-me"]] {
        assert_eq!(gate.exchange(&signed(WEBHOOK, SECRET, &batch(ids))).await.status, 401);
    }
    assert_eq!(gate.exchange(&signed("a stranger", SECRET, &batch(["x"]))).await.status, 401);
    for id in ["a", "b", "c"] {
        scene.crm.state().add_failed(EVENT, id, ago(1));
    }
    eventually("all is kept", async || {
        let listed = scene.follow(&lines[0], &[]).await.good();
        (listed.matches(WEBHOOK).count() == 2 && listed.contains("unknown")).then_some(())
    })
    .await;
    scene.follow(&lines[3].replace("ID", "forget-me"), &["--yes"]).await.good();
    scene.follow(&lines[4].replace("ID", "forget-me"), &["--yes"]).await.good();
    fs::write(scene.folder.path().join("create"), SECRET).expect("the folder is ours");
    eventually("what proves good is published", async || (scene.published().await == ["a", "b"]).then_some(())).await;
    scene.world.redis.settled(OUTBOX).await;
    let listed = scene.follow(&lines[1], &[]).await.good();
    assert!(!listed.contains(WEBHOOK), "{listed}");
    // c was in the body of the one who is forgotten: the CRM still has it.
    scene.follow(&lines[2], &[]).await.good();
    assert_eq!(scene.published().await, ["a", "b", "c"]);
    assert!(scene.crm.state().failed().is_empty());
    // The alert's own.
    let alert = self::part(ALERTS, "## HookgateQuarantine");
    let steps = commands(alert);
    assert_eq!(
        steps,
        ["hookgate quarantine list", "hookgate quarantine release", "hookgate quarantine purge NAME --yes"]
    );
    scene.follow(&steps[1], &[]).await.good();
    let left = scene.follow(&steps[0], &["--output", "json"]).await.rows();
    let name = left[0]["entry"].as_str().expect("it has a name");
    scene.follow(&steps[2].replace("NAME", name), &[]).await.good();
    assert_eq!(scene.follow(&steps[0], &[]).await.good(), "the quarantine is empty\n");
}
