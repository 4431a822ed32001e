//! `reconcile`: what the CRM gave up on, or never sent, gets its events; what was delivered gets none.

use std::time::{Duration, SystemTime};

use serde_json::{Value, json};
use tempfile::TempDir;

use crate::support::{EspoCrm, NAME, OUTBOX, PENDING, Ran, World, batch, run};

const CREATE: &str = "CBeteiligte.create";
const UPDATE: &str = "CBeteiligte.update";
const ROUTES: &str = r#"
[[routes]]
flow = "vmh"
entity = "beteiligte"
action = "create"
espocrm_event = "CBeteiligte.create"

[[routes]]
flow = "vmh"
entity = "beteiligte"
action = "update"
while_pending = "skip"
espocrm_event = "CBeteiligte.update"
"#;

/// A CRM and a hookgate's stores.
struct Scene {
    world: World,
    crm: EspoCrm,
    folder: TempDir,
}

impl Scene {
    async fn start() -> Self {
        let (world, crm) = tokio::join!(World::start(), EspoCrm::start());
        Self { world, crm, folder: tempfile::tempdir().expect("a temporary folder can be made") }
    }

    async fn run_as(&self, login: &str, arguments: &[&str]) -> Ran {
        let settings = format!("{}{login}{ROUTES}", self.world.settings());
        let arguments: Vec<_> = ["reconcile"].iter().chain(arguments).map(|argument| (*argument).to_owned()).collect();
        let ran = tokio::task::spawn_blocking(move || {
            run(&settings, &arguments.iter().map(String::as_str).collect::<Vec<_>>())
        });
        let ran = ran.await.expect("it does not panic");
        assert!(!ran.printed.contains(NAME) && !ran.remarks.contains(NAME), "{}{}", ran.printed, ran.remarks);
        ran
    }

    /// As an administrator.
    async fn reconcile(&self, arguments: &[&str]) -> Ran {
        self.run_as(&self.crm.as_admin(self.folder.path()), arguments).await
    }

    async fn events_of(&self, subject: &str, id: &str) -> usize {
        let events = self.world.nats.events().await;
        events.iter().filter(|event| event.subject == subject && event.entity_id() == id).count()
    }
}

fn ago(seconds: u64) -> SystemTime {
    SystemTime::now() - Duration::from_secs(seconds)
}

#[tokio::test]
async fn failed_items_get_their_events_and_those_that_have_one_get_none() {
    let scene = Scene::start().await;
    let gate = scene.world.gate(ROUTES).await;
    // An hour ago the CRM gave these up; since then the relay brought one of each.
    for event in [CREATE, UPDATE] {
        for id in ["delivered", "lost", "pending"] {
            scene.crm.state().add_failed(event, id, ago(3600));
        }
    }
    for action in ["create", "update"] {
        gate.post_to(&format!("/vmh/webhook/beteiligte/{action}"), batch(["delivered"])).await;
    }
    // Pending without an event in the stream: Redis kept what the stream lost.
    let mut connection = scene.world.redis.connection().await;
    for key in [PENDING, "vmh:beteiligte:update_pending"] {
        redis::cmd("SADD").arg(key).arg("pending").exec_async(&mut connection).await.expect("Redis takes it");
    }

    let plan = scene.reconcile(&["--failed", "--dry-run", "--output", "json"]).await.rows();
    let verdict = |id: &str| -> Vec<&Value> {
        plan.iter().filter(|row| row["entity_id"] == id).map(|row| &row["verdict"]).collect()
    };
    assert_eq!(verdict("delivered"), ["delivered", "delivered"]);
    assert_eq!(verdict("lost"), ["missing", "missing"]);
    assert_eq!(verdict("pending"), ["missing", "missing"]);
    assert_eq!(scene.world.nats.events().await.len(), 2, "a dry run publishes nothing");
    assert_eq!(scene.crm.state().failed().len(), 6);

    let done = scene.reconcile(&["--failed", "--clear", "--output", "json"]).await.rows();
    for (row, route) in done.iter().zip(["vmh/beteiligte/create", "vmh/beteiligte/update"]) {
        let expected = json!({
            "route": route, "sought": 3, "delivered": 1, "published": 2, "unknown": 0, "failed": 0, "cleared": 3,
        });
        assert_eq!(*row, expected);
    }
    assert!(scene.crm.state().failed().is_empty());
    for subject in ["vmh.beteiligte.create", "vmh.beteiligte.update"] {
        for id in ["delivered", "lost", "pending"] {
            assert_eq!(scene.events_of(subject, id).await, 1, "{subject} {id}");
        }
    }
    scene.world.redis.settled(OUTBOX).await;
    let again = scene.reconcile(&["--failed"]).await.good();
    assert_eq!(again, "nothing was found to bring back\n");
}

#[tokio::test]
async fn an_update_is_not_delivered_by_an_event_before_it() {
    let scene = Scene::start().await;
    let gate = scene.world.gate(ROUTES).await;
    for action in ["create", "update"] {
        gate.post_to(&format!("/vmh/webhook/beteiligte/{action}"), batch(["a"])).await;
    }
    // It failed after those events, or so shortly before that the clocks can't tell.
    for event in [CREATE, UPDATE] {
        scene.crm.state().add_failed(event, "a", ago(1));
    }
    let done = scene.reconcile(&["--failed", "--output", "json"]).await.rows();
    assert_eq!(
        (&done[0]["delivered"], &done[0]["published"]),
        (&json!(1), &json!(0)),
        "a pending create is that create"
    );
    assert_eq!((&done[1]["delivered"], &done[1]["published"]), (&json!(0), &json!(1)));
    assert_eq!(scene.events_of("vmh.beteiligte.create", "a").await, 1);
    assert_eq!(scene.events_of("vmh.beteiligte.update", "a").await, 2, "also where it is pending");
    assert_eq!(scene.crm.state().failed().len(), 2, "without --clear they stay");
}

#[tokio::test]
async fn records_of_a_silent_import_are_found_by_their_time() {
    let scene = Scene::start().await;
    let gate = scene.world.gate(ROUTES).await;
    for (id, created, modified) in [("old", 90_000, 90_000), ("imported", 7200, 7200), ("changed", 90_000, 7200)] {
        scene.crm.state().add_record("CBeteiligte", id, ago(created), ago(modified));
    }
    for number in 0..250 {
        scene.crm.state().add_record("CBeteiligte", &format!("bulk-{number}"), ago(3600), ago(3600));
    }
    gate.post(batch(["bulk-7"])).await;
    let login = scene.crm.as_api_user(scene.folder.path());
    let done = scene.run_as(&login, &["--since", "3h", "--output", "json", "--rate", "1000"]).await.rows();
    assert_eq!(
        (&done[0]["sought"], &done[0]["delivered"], &done[0]["published"]),
        (&json!(251), &json!(1), &json!(250))
    );
    assert_eq!(
        (&done[1]["sought"], &done[1]["published"]),
        (&json!(1), &json!(1)),
        "one was modified after its creation"
    );
    assert_eq!(scene.world.nats.events().await.len(), 252);
    let again = scene.run_as(&login, &["--since", "3h", "--until", "30m", "--output", "json"]).await.rows();
    assert_eq!((&again[0]["published"], &again[1]["published"]), (&json!(0), &json!(0)));
}

#[tokio::test]
async fn what_the_stream_no_longer_holds_is_unknown_and_published() {
    let scene = Scene::start().await;
    let gate = scene.world.gate(ROUTES).await;
    scene.crm.state().add_record("CBeteiligte", "a", ago(7200), ago(7200));
    gate.post(batch(["a", "kept"])).await;
    scene.world.redis.settled(OUTBOX).await;
    scene.world.redis.release(PENDING, "a").await;
    scene.world.nats.api("STREAM.PURGE.HOOKGATE", &json!({ "keep": 1 })).await;
    let login = scene.crm.as_api_user(scene.folder.path());
    let asked = scene.run_as(&login, &["--since", "3h"]).await;
    assert_eq!(asked.code, Some(2), "{}", asked.remarks);
    assert!(asked.remarks.contains("the stream's first message is of"), "{}", asked.remarks);
    let done = scene.run_as(&login, &["--since", "3h", "--yes", "--output", "json"]).await.rows();
    assert_eq!((&done[0]["published"], &done[0]["unknown"]), (&json!(1), &json!(1)));
    assert_eq!(scene.events_of("vmh.beteiligte.create", "a").await, 1);
}

#[tokio::test]
async fn a_file_is_read_line_by_line() {
    let scene = Scene::start().await;
    let gate = scene.world.gate(ROUTES).await;
    gate.post(batch(["there"])).await;
    let lines = [
        json!({ "route": "vmh/beteiligte/create", "id": "there", "time": "2026-01-01T08:00:00Z" }).to_string(),
        json!({ "route": "vmh/beteiligte/create", "id": 7 }).to_string(),
        json!({ "route": "vmh/beteiligte/update", "targetId": "b", "createdAt": "2026-01-01 08:00:00" }).to_string(),
        json!({ "id": "no route" }).to_string(),
        json!({ "route": "vmh/beteiligte/create", "name": NAME }).to_string(),
        format!("no JSON {NAME}"),
    ];
    let path = scene.folder.path().join("records.jsonl");
    std::fs::write(&path, lines.join("\n")).expect("the folder is ours");
    let path = path.display().to_string();
    let ran = scene.reconcile(&["--file", &path, "--output", "json"]).await;
    for skipped in ["1 lines of no route", "1 lines that are no JSON object", "1 lines without a usable id"] {
        assert!(ran.remarks.contains(skipped), "{skipped}: {}", ran.remarks);
    }
    let done = ran.rows();
    assert_eq!((&done[0]["sought"], &done[0]["delivered"], &done[0]["published"]), (&json!(2), &json!(1), &json!(1)));
    assert_eq!(done[1]["published"], 1);
    assert_eq!(scene.events_of("vmh.beteiligte.create", "7").await, 1);
    assert_eq!(scene.events_of("vmh.beteiligte.update", "b").await, 1);
}

#[tokio::test]
async fn what_is_in_the_way_is_said_and_nothing_is_done() {
    let scene = Scene::start().await;
    scene.crm.state().add_failed(CREATE, "a", ago(3600));
    let said = scene.run_as("", &["--failed"]).await.bad();
    assert!(said.contains("espocrm.url is not set"), "{said}");
    let said = scene.run_as(&scene.crm.as_api_user(scene.folder.path()), &["--failed"]).await.bad();
    assert!(said.contains("needs an administrator"), "{said}");
    scene.crm.state().clock_ahead = Duration::from_secs(900);
    let said = scene.reconcile(&["--failed"]).await.bad();
    assert!(said.contains("ahead of this one, more than --max-clock-skew (5m)"), "{said}");
    scene.crm.state().clock_ahead = Duration::ZERO;
    for usage in [&["--failed", "--since", "1h"][..], &[], &["--since", "soon"], &["--since", "1h", "--clear"]] {
        assert_eq!(scene.reconcile(usage).await.code, Some(2), "{usage:?}");
    }
    let unknown = scene.reconcile(&["--failed", "--route", "a/b/c"]).await;
    assert_eq!(unknown.code, Some(2));
    assert!(scene.world.nats.events().await.is_empty());
}

#[tokio::test]
async fn without_a_full_acknowledgement_it_fails_and_clears_nothing() {
    let scene = Scene::start().await;
    let gate = scene.world.gate(ROUTES).await;
    gate.post(batch(["first"])).await;
    drop(gate);
    scene.world.nats.update_raw("HOOKGATE", &json!({ "max_msgs": 1, "discard": "new" })).await;
    scene.crm.state().add_failed(CREATE, "a", ago(3600));
    let settings = format!("{}[server]\nrequest_deadline = \"1s\"\n", scene.crm.as_admin(scene.folder.path()));
    let said = scene.run_as(&settings, &["--failed", "--clear"]).await.bad();
    assert!(
        said.contains("publish 1 ids of route vmh/beteiligte/create") && said.contains("1 id is without an event"),
        "{said}"
    );
    assert_eq!(scene.crm.state().failed(), ["a"]);
    scene.world.nats.update_raw("HOOKGATE", &json!({ "max_msgs": -1, "discard": "old" })).await;
    scene.run_as(&settings, &["--failed", "--clear"]).await.good();
    assert_eq!(scene.events_of("vmh.beteiligte.create", "a").await, 1);
    assert!(scene.crm.state().failed().is_empty());
}
