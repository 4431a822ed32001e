//! `hookgate pending` counts, lists, releases and publishes pending ids.

use std::{
    collections::BTreeSet,
    time::{Duration, SystemTime},
};

use redis::AsyncTypedCommands;
use serde_json::{Value, json};

use crate::support::{Event, OUTBOX, PENDING, World, batch, eventually, run, within};

const ROUTE: &str = "vmh/beteiligte/create";
const JOURNAL: &str = "{vmh:beteiligte:create_pending}:journal";
const MARKS: &str = "{vmh:beteiligte:create_pending}:marks";

fn outcomes(rows: &[Value]) -> BTreeSet<(&str, &str)> {
    let word = |row: &'_ Value, name: &str| -> String { row[name].as_str().expect("it is text").to_owned() };
    for row in rows {
        assert_eq!(word(row, "route"), ROUTE);
    }
    rows.iter().map(|row| (row["entity_id"].as_str().unwrap_or(""), row["outcome"].as_str().unwrap_or(""))).collect()
}

fn ids(rows: &[Value]) -> Vec<&str> {
    rows.iter().map(|row| row["entity_id"].as_str().expect("it is text")).collect()
}

/// An older mark would be honoured by the replica itself.
fn now_millis() -> u64 {
    let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).expect("it is later than that");
    u64::try_from(now.as_millis()).expect("it is not that late")
}

async fn published(world: &World) -> Vec<String> {
    world.nats.events().await.iter().map(Event::entity_id).map(|id| id.to_string()).collect()
}

#[tokio::test]
async fn counts_and_lists_what_is_pending() {
    let mut world = World::start().await;
    let gate = world.gate("server.request_deadline = \"1s\"").await;
    assert_eq!(gate.post(batch(["done"])).await.counts(), (1, 1));
    world.redis.settled(OUTBOX).await;
    let mut link = world.redis.connection().await;
    // As the original leaves an id, and a webhook a mark.
    link.sadd(PENDING, "bare").await.expect("Redis answers");
    link.hset(MARKS, "bare", now_millis()).await.expect("Redis answers");
    world.nats.kill();
    assert_eq!(gate.post(batch(["flies"])).await.status, 503);
    let settings = world.settings();

    let scanned = within(Duration::from_secs(60), async || {
        let counted = run(&settings, &["pending", "count", "--output", "json"]).rows();
        (counted[0]["oldest_age_seconds"].is_u64() && counted[0]["scan_ended"].is_string()).then_some(counted)
    });
    let counted = scanned.await.expect("a scan found the oldest");
    let row = &counted[0];
    assert_eq!((counted.len(), &row["route"], &row["scanned"]), (1, &json!(ROUTE), &Value::Null));
    assert_eq!((&row["pending"], &row["in_flight"]), (&json!(3), &json!(1)));
    let text = run(&settings, &["pending", "count"]).good();
    assert!(text.starts_with("ROUTE                  PENDING  IN FLIGHT  MARKED  OLDEST  LAST SCAN\n"), "{text}");
    assert!(text.contains(" ago"), "{text}");

    let listed = run(&settings, &["pending", "list", "--output", "json", "--sort", "age"]).rows();
    assert_eq!(ids(&listed), ["done", "flies", "bare"], "what has no age comes last");
    assert_eq!((&listed[0]["state"], &listed[0]["sequence"]), (&json!("waiting"), &json!(1)));
    assert_eq!((&listed[1]["state"], &listed[1]["sequence"]), (&json!("in_flight"), &Value::Null));
    assert_eq!((&listed[2]["state"], &listed[2]["age_seconds"]), (&json!("no_journal"), &Value::Null));
    assert!(listed[2]["marked"].is_string() && listed[0]["marked"].is_null(), "{listed:?}");
    let text = run(&settings, &["pending", "list"]).good();
    for (id, state) in [("done", "waiting for its release"), ("flies", "in flight"), ("bare", "no journal, marked")] {
        let line = text.lines().find(|line| line.split_whitespace().nth(1) == Some(id));
        assert!(line.is_some_and(|line| line.contains(state)), "{id} {state} in {text}");
    }
    let none = run(&settings, &["pending", "list", "--older-than", "1h"]).good();
    assert_eq!(none, "no such id is pending\n");
    let young = run(&settings, &["pending", "list", "--older-than", "0s", "--output", "json"]).rows();
    assert_eq!(ids(&young).into_iter().collect::<BTreeSet<_>>(), ["done", "flies"].into(), "bare has no age");
    let unknown = run(&settings, &["pending", "list", "--route", "vmh/akte/create"]).bad();
    assert!(unknown.contains("hookgate routes"), "{unknown}");
}

#[tokio::test]
async fn a_long_list_goes_on_where_it_ended() {
    let world = World::start().await;
    let mut link = world.redis.connection().await;
    let all: BTreeSet<String> = (0..5000).map(|number| format!("id-{number}")).collect();
    link.sadd(PENDING, all.iter().collect::<Vec<_>>()).await.expect("Redis answers");
    let settings = world.settings();
    let (mut seen, mut cursor, mut pages) = (BTreeSet::new(), None::<String>, 0);
    loop {
        let mut arguments = vec!["pending", "list", "--output", "json", "--count", "700"];
        if let Some(cursor) = &cursor {
            arguments.extend(["--cursor", cursor]);
        }
        let ran = run(&settings, &arguments);
        let next = ran.remarks.split("--cursor ").nth(1).map(|rest| rest.trim().to_owned());
        let rows = ran.rows();
        assert!(rows.len() < 1500, "{} at once", rows.len());
        seen.extend(ids(&rows).into_iter().map(str::to_owned));
        pages += 1;
        cursor = next;
        if cursor.is_none() {
            break;
        }
    }
    assert_eq!(seen, all);
    assert!(pages >= 4, "{pages} pages");
    let sorted = run(&settings, &["pending", "list", "--output", "json", "--sort", "age", "--count", "3"]);
    assert!(sorted.remarks.contains("--count shows more"), "{}", sorted.remarks);
    assert_eq!(sorted.rows().len(), 3);
}

#[tokio::test]
async fn releases_ids() {
    let world = World::start().await;
    let gate = world.gate("").await;
    assert_eq!(gate.post(batch(["a", "b", "c", "d"])).await.counts(), (4, 4));
    world.redis.settled(OUTBOX).await;
    let mut link = world.redis.connection().await;
    link.hset(MARKS, "b", now_millis()).await.expect("Redis answers");
    let settings = world.settings();

    let asked = run(&settings, &["pending", "release", ROUTE, "a"]);
    assert_eq!((asked.code, asked.printed.as_str()), (Some(2), ""), "nobody is there to be asked");
    assert_eq!(world.redis.pending(PENDING).await.len(), 4);

    let released = run(&settings, &["pending", "release", ROUTE, "a", "b", "x", "--yes", "--output", "json"]).rows();
    assert_eq!(outcomes(&released), [("a", "released"), ("b", "republished"), ("x", "not_pending")].into());
    assert_eq!(world.redis.pending(PENDING).await, ["b", "c", "d"].map(str::to_owned).into());
    assert_eq!(published(&world).await.iter().filter(|id| *id == "b").count(), 2, "a webhook had marked it");
    assert_eq!(link.hlen(JOURNAL).await.expect("Redis answers"), 3);

    let events = world.nats.events().await;
    let token = |id: &str| events.iter().find(|event| event.entity_id() == id).expect("it is there").token().to_owned();
    let text = run(&settings, &["pending", "release", ROUTE, "c", "--token", &token("d"), "--yes"]).good();
    assert_eq!(text, "c: not pending\n", "not under that token");
    let text = run(&settings, &["pending", "release", ROUTE, "c", "--token", &token("c"), "--yes"]).good();
    assert_eq!(text, "c: released\n");
}

#[tokio::test]
async fn publishes_ids_once_more() {
    let mut world = World::start().await;
    let gate = world.gate("server.request_deadline = \"1s\"").await;
    assert_eq!(gate.post(batch(["a", "b"])).await.counts(), (2, 2));
    world.redis.settled(OUTBOX).await;
    let settings = world.settings();
    let dry = run(&settings, &["pending", "republish", ROUTE, "a", "--dry-run"]).good();
    assert_eq!(dry, "a: would be published\n");
    assert_eq!(run(&settings, &["pending", "republish", ROUTE, "a"]).code, Some(2), "nobody is there to be asked");
    assert_eq!(published(&world).await.len(), 2);

    let done = run(&settings, &["pending", "republish", ROUTE, "a", "x", "--yes", "--output", "json"]).rows();
    assert_eq!(outcomes(&done), [("a", "published"), ("x", "not_pending")].into());
    let events = world.nats.events().await;
    assert_eq!((events.len(), events[2].entity_id().to_string()), (3, "a".to_owned()));
    assert_eq!(events[2].headers.get("Hookgate-Redelivery").map(ToString::to_string), Some("1".to_owned()));
    eventually("the journal has the new claim and the old age", async || {
        let listed = run(&settings, &["pending", "list", "--output", "json", "--sort", "age"]).rows();
        let row = listed.iter().find(|row| row["entity_id"] == "a").expect("it is pending").clone();
        (row["sequence"] == 3 && row["redelivered"] == 1 && row["token"] == events[2].token()).then_some(())
    })
    .await;

    let none = run(&settings, &["pending", "republish", ROUTE, "--older-than", "1h", "--yes"]);
    assert!(none.remarks.contains("0 published"), "{}", none.remarks);
    let both = run(&settings, &["pending", "republish", ROUTE, "--older-than", "0s", "--yes", "--output", "json"]);
    assert_eq!(outcomes(&both.rows()), [("a", "published"), ("b", "published")].into(), "each once");
    assert_eq!(published(&world).await.len(), 5);

    world.nats.kill();
    let down = run(&settings, &["pending", "republish", ROUTE, "a", "--yes"]).bad();
    assert!(down.contains("NATS"), "{down}");
}

/// The original SADDs an id before it emits the event.
#[tokio::test]
async fn publishes_what_was_claimed_and_never_emitted() {
    let world = World::start().await;
    let gate = world.gate("").await;
    let delivered: Vec<String> = (0..300).map(|number| format!("delivered-{number}")).collect();
    assert_eq!(gate.post(batch(&delivered)).await.counts(), (300, 300));
    world.redis.settled(OUTBOX).await;
    let mut link = world.redis.connection().await;
    let lost: BTreeSet<String> = (0..3000).map(|number| format!("lost-{number}")).collect();
    link.sadd(PENDING, lost.iter().collect::<Vec<_>>()).await.expect("Redis answers");
    // Pending before there was a journal, with its event in the stream.
    link.hdel(JOURNAL, "delivered-0").await.expect("Redis answers");
    let settings = world.settings();

    let dry = run(&settings, &["pending", "republish", ROUTE, "--not-in-stream", "--dry-run", "--output", "json"]);
    assert!(
        dry.remarks.contains("3000 of 3300 pending ids are neither in flight nor in the stream"),
        "{}",
        dry.remarks
    );
    let dry = dry.rows();
    assert_eq!(ids(&dry).into_iter().map(str::to_owned).collect::<BTreeSet<_>>(), lost);
    assert_eq!(published(&world).await.len(), 300, "a dry run publishes nothing");

    let arguments = ["pending", "republish", ROUTE, "--not-in-stream", "--yes", "--rate", "100000"];
    let done = run(&settings, &arguments);
    assert!(done.remarks.contains("3000 published, 0 not acknowledged, 0 left alone"), "{}", done.remarks);
    done.good();
    let events = published(&world).await;
    assert_eq!(events.len(), 3300);
    assert_eq!(events[300..].iter().cloned().collect::<BTreeSet<_>>(), lost);
    world.redis.settled(OUTBOX).await;
    let again = run(&settings, &arguments);
    assert!(again.remarks.contains("0 of 3300 pending ids"), "{}", again.remarks);
    assert_eq!(again.good(), "");
}

#[tokio::test]
async fn what_a_stream_drops_is_not_taken_for_lost() {
    let world = World::start().await;
    world.nats.create_raw("HOOKGATE", &json!({ "subjects": ["vmh.>"], "retention": "workqueue" })).await;
    let gate = world.gate("nats.stream.create = false").await;
    assert_eq!(gate.post(batch(["a"])).await.counts(), (1, 1));
    world.redis.settled(OUTBOX).await;
    let settings = world.settings() + "nats.stream.create = false\n";
    let refused = run(&settings, &["pending", "republish", ROUTE, "--not-in-stream", "--yes"]).bad();
    assert!(refused.contains("drops what is acknowledged"), "{refused}");
}
