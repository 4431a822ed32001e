//! `dead-letters replay` and the filters of `purge`.

use serde_json::{Value, json};

use crate::support::{OUTBOX, PENDING, World, batch, run};

const ROUTE: &str = "vmh/beteiligte/create";

/// Puts a letter where hookgate keeps them. Answers its name.
async fn keep(world: &World, route: &str, reason: &str, raw: &str) -> String {
    let mut connection = world.redis.connection().await;
    let mut call = redis::cmd("XADD");
    call.arg("hookgate:dead_letters").arg("*").arg("route").arg(route).arg("reason").arg(reason);
    call.arg("time").arg("2026-01-01T08:00:00.000Z").arg("raw").arg(raw);
    let name: String = call.query_async(&mut connection).await.expect("Redis takes it");
    let mut bytes = redis::cmd("INCRBY");
    bytes.arg("{hookgate:dead_letters}:bytes").arg(raw.len());
    bytes.exec_async(&mut connection).await.expect("Redis takes it");
    name
}

async fn hookgate(world: &World, arguments: &[&str]) -> crate::support::Ran {
    let settings = world.settings();
    let arguments: Vec<_> = arguments.iter().map(|argument| (*argument).to_owned()).collect();
    let ran =
        tokio::task::spawn_blocking(move || run(&settings, &arguments.iter().map(String::as_str).collect::<Vec<_>>()));
    ran.await.expect("it does not panic")
}

async fn events_of(world: &World, id: &str) -> usize {
    world.nats.events().await.iter().filter(|event| event.entity_id() == id).count()
}

#[tokio::test]
async fn a_letter_that_a_consumer_gave_up_on_is_always_published() {
    let world = World::start().await;
    let gate = world.gate("").await;
    gate.post(batch(["pending", "released"])).await;
    world.redis.settled(OUTBOX).await;
    world.redis.release(PENDING, "released").await;
    for id in ["pending", "released"] {
        keep(&world, ROUTE, "gave_up", &format!("{{\"entity_id\":\"{id}\",\"consumer\":\"case-sync\"}}")).await;
    }
    // It came long before the event.
    keep(&world, ROUTE, "other", "{\"id\":\"pending\"}").await;
    keep(&world, ROUTE, "not_json", "no JSON").await;
    keep(&world, ROUTE, "no_id", "{\"name\":\"x\"}").await;
    keep(&world, "vmh/unknown/create", "gave_up", "{\"entity_id\":\"x\"}").await;

    let unsaid = hookgate(&world, &["dead-letters", "replay"]).await;
    assert_eq!(unsaid.code, Some(2), "{}", unsaid.remarks);
    let done = hookgate(&world, &["dead-letters", "replay", "--all", "--output", "json"]).await.rows();
    assert_eq!(done[0], json!({"letters":3,"published":2,"delivered":1,"failed":0,"skipped":3,"before":0}));
    for id in ["pending", "released"] {
        assert_eq!(events_of(&world, id).await, 2, "{id}");
    }

    let rows = hookgate(&world, &["dead-letters", "list", "--output", "json"]).await.rows();
    let told = |reason: &str| -> Vec<String> {
        let rows = rows.iter().filter(|row| row["reason"] == reason);
        rows.filter_map(|row| row["replay"].as_str().map(str::to_owned)).collect()
    };
    assert_eq!(told("gave_up").len(), 2, "{rows:?}");
    assert!(told("gave_up").iter().all(|note| note.ends_with(" ok 1 id published, 0 delivered before")), "{rows:?}");
    assert!(told("not_json").is_empty());

    let again = hookgate(&world, &["dead-letters", "replay", "--reason", "gave_up", "--output", "json"]).await.rows();
    assert_eq!((&again[0]["published"], &again[0]["before"]), (&Value::from(0), &Value::from(2)));
    let name = rows
        .iter()
        .find(|row| row["reason"] == "gave_up" && row["replay"].is_string())
        .and_then(|row| row["entry"].as_str())
        .expect("a name");
    assert!(
        hookgate(&world, &["dead-letters", "replay", name])
            .await
            .good()
            .starts_with("1 replayed: 1 ids published, 0 delivered")
    );
}

#[tokio::test]
async fn a_letter_that_fails_again_stays_with_a_note() {
    let world = World::start().await;
    let gate = world.gate("server.request_deadline = \"1s\"").await;
    gate.post(batch(["other"])).await;
    keep(&world, ROUTE, "gave_up", "{\"entity_id\":\"a\"}").await;
    drop(gate);
    world.nats.update_raw("HOOKGATE", &json!({ "max_msgs": 1, "discard": "new" })).await;
    let settings = format!("{}server.request_deadline = \"1s\"\n", world.settings());
    let arguments = ["dead-letters", "replay", "--all", "--output", "json"];
    let full = tokio::task::spawn_blocking(move || run(&settings, &arguments)).await.expect("it does not panic");
    assert!(full.bad().contains("1 letter was not replayed"), "the stream is full");

    let stays = hookgate(&world, &["dead-letters", "list", "--output", "json"]).await.rows();
    assert_eq!(stays.len(), 1, "no second one");
    let note = stays[0]["replay"].as_str().expect("it has a note");
    assert!(note.contains(" failed 1 id without an event: publish 1 ids of route vmh/beteiligte/create: "), "{note}");
    world.nats.update_raw("HOOKGATE", &json!({ "max_msgs": -1, "discard": "old" })).await;
    assert_eq!(hookgate(&world, &arguments).await.rows()[0]["published"], 1);
    assert_eq!(events_of(&world, "a").await, 1);
    assert_eq!(hookgate(&world, &["dead-letters", "list", "--output", "json"]).await.rows().len(), 1, "no second one");
}

#[tokio::test]
async fn purge_drops_what_its_filters_take() {
    let world = World::start().await;
    let gate = world.gate("").await;
    for (reason, raw) in [
        ("no_id", "{\"name\":\"x\"}"),
        ("not_json", "[{\"id\":\"forget-me\""),
        ("gave_up", "{\"entity_id\":\"forget-me\"}"),
    ] {
        keep(&world, ROUTE, reason, raw).await;
    }
    let kept = keep(&world, ROUTE, "not_json", "[{\"id\":\"forget-me-not\"").await;
    let refused = hookgate(&world, &["dead-letters", "purge", "--id", "forget-me"]).await;
    assert_eq!(refused.code, Some(2));
    assert!(refused.remarks.contains("--yes"), "{}", refused.remarks);
    let dropped = hookgate(&world, &["dead-letters", "purge", "--id", "forget-me", "--yes"]).await.good();
    assert_eq!(dropped, "2 dropped\n");
    let rows = hookgate(&world, &["dead-letters", "list", "--output", "json"]).await.rows();
    let reasons: Vec<_> = rows.iter().map(|row| row["reason"].as_str().expect("it is text")).collect();
    assert_eq!(reasons, ["not_json", "no_id"]);
    let dropped =
        hookgate(&world, &["dead-letters", "purge", "--reason", "not_json", "--route", ROUTE, &kept, "--yes"]).await;
    assert_eq!(dropped.good(), "1 dropped\n");
    // The limit of bytes still counts right: the counter is what is left.
    let mut connection = world.redis.connection().await;
    let bytes: usize = redis::cmd("GET")
        .arg("{hookgate:dead_letters}:bytes")
        .query_async(&mut connection)
        .await
        .expect("it is a number");
    assert_eq!(bytes, "{\"name\":\"x\"}".len());
    drop(gate);
}
