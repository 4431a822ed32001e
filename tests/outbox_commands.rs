//! `hookgate outbox` lists what NATS has not acknowledged, and publishes it.

use std::collections::{BTreeMap, BTreeSet};

use redis::AsyncTypedCommands;

use crate::support::{Event, OUTBOX, PENDING, SUBJECT, World, batch, eventually, run};

const ROUTE: &str = "vmh/beteiligte/create";

/// Servers whose outbox holds two claims, with NATS down.
async fn left_behind() -> World {
    let mut world = World::start().await;
    let gate = world.gate("server.request_deadline = \"1s\"").await;
    world.nats.kill();
    assert_eq!(gate.post(batch(["a", "b"])).await.error(), (503, "not_published".into()));
    world
}

#[tokio::test]
async fn counts_lists_and_publishes() {
    let mut world = left_behind().await;
    let settings = world.settings();
    assert_eq!(run(&settings, &["outbox", "count"]).good(), format!("ROUTE                  ENTRIES\n{ROUTE}  2\n"));
    let counted = run(&settings, &["outbox", "count", "--output", "json"]).rows();
    let expected = serde_json::json!({"route": ROUTE, "pending_key": "vmh:beteiligte:create_pending", "entries": 2});
    assert_eq!(counted, [expected]);

    let listed = run(&settings, &["outbox", "list", "--output", "json"]).rows();
    let text = |row: &serde_json::Value, name: &str| row[name].as_str().expect("it is text").to_owned();
    let tokens: BTreeMap<_, _> = listed.iter().map(|row| (text(row, "entity_id"), text(row, "token"))).collect();
    assert_eq!(tokens, world.redis.outbox(OUTBOX).await);
    for row in &listed {
        assert_eq!(row["route"], ROUTE);
        let claimed = humantime::parse_rfc3339(&text(row, "claimed")).expect("RFC 3339");
        assert!(claimed.elapsed().expect("it is in the past").as_secs() < 60, "{row}");
    }
    let lines = run(&settings, &["outbox", "list"]).good();
    assert!(lines.starts_with("ROUTE                  ID  TOKEN "), "{lines}");
    for row in &listed {
        let cells =
            [ROUTE.to_owned(), text(row, "entity_id"), text(row, "token"), text(row, "claimed"), SUBJECT.to_owned()];
        assert!(lines.lines().any(|line| line.split_whitespace().eq(&cells)), "{row} in {lines}");
    }

    let down = run(&settings, &["outbox", "relay"]).bad();
    assert!(down.contains("NATS") && down.contains(&world.nats.url()), "{down}");
    world.nats.start_again().await;
    let relayed = run(&settings, &["outbox", "relay"]).good();
    assert_eq!(relayed, format!("{ROUTE}: 2 published, 0 not acknowledged, 0 not written by hookgate\n"));
    let events = world.nats.events().await;
    let published: BTreeMap<_, _> = events.iter().map(|event| (event.entity_id(), event.token().to_owned())).collect();
    assert_eq!(published, tokens, "under the tokens of their claims");
    assert_eq!(run(&settings, &["outbox", "count"]).good(), format!("ROUTE                  ENTRIES\n{ROUTE}  0\n"));
    let empty = run(&settings, &["outbox", "list"]).good();
    assert_eq!(empty, "the outbox is empty: NATS has acknowledged everything\n");
    let nothing = run(&settings, &["outbox", "relay", "--output", "json"]).rows();
    assert_eq!(nothing, [serde_json::json!({"route": ROUTE, "published": 0, "failed": 0, "poison": 0})]);
}

/// A stream that is full, with a replica that tries it too.
#[tokio::test]
async fn what_nats_refuses_is_said_beside_a_running_replica() {
    let mut world = left_behind().await;
    world.nats.start_again().await;
    let mut stream = world.nats.stream("HOOKGATE").await.expect("hookgate made it");
    stream.max_messages = 1;
    let jetstream = world.nats.jetstream().await;
    jetstream.update_stream(&stream).await.expect("the tests may");
    jetstream.publish("vmh.other", "x".into()).await.expect("the tests may").await.expect("there is room for one");
    let gate = world.gate("server.request_deadline = \"1s\"\noutbox.relay_after = \"1500ms\"").await;
    let said = gate.wait_log("NATS refuses events of the outbox").await;
    assert!(said.contains("maximum messages exceeded") && said.contains("\"failed\":2"), "{said}");

    // A replica holds the lease now; the command publishes all the same.
    let ran = run(&world.settings(), &["outbox", "relay"]);
    let (said, complaint) = (&ran.printed, &ran.remarks);
    assert_eq!(ran.code, Some(1), "{said}{complaint}");
    let refused = format!("{ROUTE}: 0 published, 2 not acknowledged (NATS: ");
    assert!(said.starts_with(&refused) && said.contains("maximum messages exceeded"), "{said}{complaint}");
    assert!(complaint.contains("2 entries are still in the outbox"), "{complaint}");
    let rows = run(&world.settings(), &["outbox", "relay", "--output", "json"]).printed;
    let row: serde_json::Value = serde_json::from_str(rows.trim()).expect("one object");
    assert_eq!(row["failed"], 2, "{row}");
    assert!(row["reason"].as_str().is_some_and(|reason| reason.contains("maximum messages exceeded")), "{row}");

    stream.max_messages = -1;
    jetstream.update_stream(&stream).await.expect("the tests may");
    Box::pin(eventually("the replica brings both", async || world.redis.outbox(OUTBOX).await.is_empty().then_some(())))
        .await;
    assert_eq!(world.nats.events().await.len(), 3);
}

#[tokio::test]
async fn a_foreign_entry_is_named_and_holds_up_nobody() {
    let mut world = left_behind().await;
    world.nats.start_again().await;
    let settings = world.settings();
    world.redis.connection().await.hset(OUTBOX, "x", "y").await.expect("the outbox is a HASH");
    let lines = run(&settings, &["outbox", "list"]).good();
    let foreign = lines.lines().find(|line| line.contains("  not written by hookgate")).expect("it is listed");
    assert_eq!(foreign.split_whitespace().take(3).collect::<Vec<_>>(), [ROUTE, "x", "y"]);
    let complaint = run(&settings, &["outbox", "relay"]).bad();
    assert!(complaint.contains("1 entry is still in the outbox"), "{complaint}");
    let events: Vec<_> = world.nats.events().await.iter().map(Event::entity_id).collect();
    assert_eq!(events.len(), 2, "{events:?}");
    assert_eq!(world.redis.outbox(OUTBOX).await, BTreeMap::from([("x".into(), "y".into())]));
}

/// A foreign entry in an outbox is named in the log, blocks no other entry, and a webhook takes its id over.
#[tokio::test]
async fn entries_of_every_foreign_kind_hold_up_nobody() {
    let mut world = left_behind().await;
    world.nats.start_again().await;
    let mut redis = world.redis.connection().await;
    let foreign: [(&[u8], &[u8]); 5] = [
        (b"short", b"deadbeef-1"),
        (b"capitals", b"0197D21FDBFF7000A000000000000000-0"),
        (b"version-4", b"0197d21fdbff4000a000000000000000-0"),
        (b"late", b"ffffffffffff7000a000000000000000-0"),
        (b"no-text", b"\xff\xfe"),
    ];
    for (id, token) in foreign {
        redis.hset(OUTBOX, id, token).await.expect("the outbox is a HASH");
        redis.sadd(PENDING, id).await.expect("pending is a SET");
    }
    redis.hset(OUTBOX, b"\xff\xfe", "0197d21fdbff7000a000000000000000-0").await.expect("the outbox is a HASH");
    let complaint = run(&world.settings(), &["outbox", "relay"]).bad();
    assert!(complaint.contains("6 entries are still in the outbox"), "{complaint}");
    assert_eq!(world.nats.events().await.len(), 2, "those of hookgate");

    let gate = world.gate("redis.on_unavailable = \"reject\"").await;
    let ids = ["short", "capitals", "version-4", "late", "no-text", "fresh"];
    assert_eq!(gate.deliver(batch(ids)).await.counts(), (6, 6));
    let events: BTreeSet<_> = world.nats.events().await.iter().map(Event::entity_id).collect();
    assert!(ids.iter().all(|id| events.contains(*id)), "{events:?}");
    redis.hdel(OUTBOX, b"\xff\xfe").await.expect("the outbox is a HASH");
    eventually("all that was taken over is settled", async || {
        world.redis.outbox(OUTBOX).await.is_empty().then_some(())
    })
    .await;
}

#[tokio::test]
async fn a_route_that_is_configured_no_more_is_served_too() {
    let mut world = left_behind().await;
    let other = format!("{}[[routes]]\nflow = \"vmh\"\nentity = \"contacts\"\naction = \"create\"\n", world.settings());
    let counted = run(&other, &["outbox", "count"]).good();
    let lines: Vec<Vec<_>> = counted.lines().map(|line| line.split_whitespace().collect()).collect();
    for row in [["vmh/beteiligte/create", "2"], ["vmh/contacts/create", "0"]] {
        assert!(lines.contains(&row.to_vec()), "{counted}");
    }
    world.nats.start_again().await;
    let relayed = run(&other, &["outbox", "relay"]).good();
    assert!(relayed.contains(&format!("{ROUTE}: 2 published")), "{relayed}");
    assert_eq!(world.nats.events().await.len(), 2);
}

#[tokio::test]
async fn without_redis_it_says_so() {
    let mut world = World::start().await;
    world.redis.kill();
    let complaint = run(&world.settings(), &["outbox", "count"]).bad();
    assert!(complaint.contains("Redis") && complaint.contains("127.0.0.1"), "{complaint}");
    let memory = run("redis.url = \"memory:\"", &["outbox", "count"]).bad();
    assert!(memory.contains("memory:"), "{memory}");
}

/// A version that knows no marks would swallow them.
#[tokio::test]
async fn relay_publishes_marked_ids() {
    let world = World::start().await;
    let gate = world.gate("").await;
    gate.deliver(batch(["a", "b"])).await;
    world.redis.settled(OUTBOX).await;
    let mut link = world.redis.connection().await;
    // As a webhook whose mark was confirmed leaves it.
    let marks = "{vmh:beteiligte:create_pending}:marks";
    link.hset(marks, "a", "1").await.expect("Redis answers");
    let relayed = run(&world.settings(), &["outbox", "relay"]).good();
    let expected = "1 published, 0 not acknowledged, 0 not written by hookgate; 1 marked id was claimed once more";
    assert_eq!(relayed, format!("{ROUTE}: {expected}\n"));
    assert_eq!(link.hlen(marks).await.expect("Redis answers"), 0);
    let ids: Vec<_> = world.nats.events().await.iter().map(Event::entity_id).collect();
    assert_eq!(ids, ["a", "b", "a"]);
    assert_eq!(world.redis.pending(PENDING).await.len(), 2, "it waits for the release of that event");
    world.redis.settled(OUTBOX).await;
}
