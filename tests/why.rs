//! `hookgate why` and `/v1/pending/…` tell one id's story, and say what is no longer known.

use async_nats::jetstream::consumer::pull;
use futures_util::StreamExt;
use redis::AsyncTypedCommands;
use serde_json::{Value, json};

use crate::support::{PENDING, World, batch, eventually, run};

const ROUTES: &str = "[[routes]]\nflow = \"vmh\"\nentity = \"beteiligte\"\naction = \"create\"\nconsumers = [\"case-sync\", \"audit\"]\n[[routes]]\nflow = \"vmh\"\nentity = \"beteiligte\"\naction = \"update\"\n";

async fn consumer(world: &World, name: &str) {
    let config = json!({ "durable_name": name, "ack_policy": "explicit", "filter_subject": "vmh.beteiligte.create" });
    let request = json!({ "stream_name": "HOOKGATE", "config": config });
    let made = world.nats.api(&format!("CONSUMER.DURABLE.CREATE.HOOKGATE.{name}"), &request).await;
    assert!(made["error"].is_null(), "{made}");
}

/// Takes messages, and acknowledges all but the last ones.
async fn take(world: &World, name: &str, count: usize, acknowledged: usize) {
    let stream = world.nats.jetstream().await.get_stream("HOOKGATE").await.expect("it is there");
    let reader = stream.get_consumer::<pull::Config>(name).await.expect("it is there");
    let mut messages = reader.fetch().max_messages(count).messages().await.expect("it can be read");
    for number in 0..count {
        let message = messages.next().await.expect("there is one").expect("it comes");
        if number < acknowledged {
            message.double_ack().await.expect("NATS confirms it");
        }
    }
}

fn settings(world: &World) -> String {
    format!("{}{ROUTES}", world.settings())
}

/// Waits until the claim is settled, and gives the story on a route.
async fn settled(world: &World, id: &str, route: &str) -> Value {
    eventually("the event is settled", async || {
        let ran = run(&settings(world), &["why", id, "--route", route, "--output", "json"]);
        let story = ran.rows().remove(0);
        (story["sequence"].is_u64() && story["in_flight"] == false).then_some(story)
    })
    .await
}

#[tokio::test]
async fn tells_what_redis_the_stream_and_the_consumers_know() {
    let world = World::start().await;
    let gate = world.gate(ROUTES).await;
    consumer(&world, "case-sync").await;
    gate.post(batch(["first", "second", "third"])).await;
    take(&world, "case-sync", 2, 1).await;

    let story = settled(&world, "second", "vmh/beteiligte/create").await;
    let events = world.nats.events().await;
    assert_eq!((&story["pending"], &story["sequence"], &story["redelivered"]), (&json!(true), &json!(2), &json!(0)));
    assert_eq!(story["token"], events[1].token());
    let event = &story["events"][0];
    assert_eq!(
        (&event["stream"], &event["sequence"], &event["token"]),
        (&json!("HOOKGATE"), &json!(2), &json!(events[1].token()))
    );
    assert_eq!(story["events"].as_array().map(Vec::len), Some(1));
    let state = |story: &Value, place: usize| story["consumers"][place]["state"].clone();
    assert_eq!((state(&story, 0), state(&story, 1)), (json!("delivered"), json!("missing")));
    assert_eq!(state(&settled(&world, "first", "vmh/beteiligte/create").await, 0), "nothing_left");
    assert_eq!(state(&settled(&world, "third", "vmh/beteiligte/create").await, 0), "waiting");

    let text = run(&settings(&world), &["why", "third"]).good();
    assert!(text.starts_with("vmh/beteiligte/create third\n  pending       since 20"), "{text}");
    for words in [
        "acknowledged by NATS as sequence 3",
        "#3 in HOOKGATE, stored 20",
        "case-sync has not got #3 yet",
        "audit is not there",
    ] {
        assert!(text.contains(words), "{words}: {text}");
    }
    assert!(!text.contains("vmh/beteiligte/update"), "nothing is known there: {text}");
}

#[tokio::test]
async fn tells_a_life_that_is_over_as_far_as_it_is_kept() {
    let world = World::start().await;
    let gate = world.gate(ROUTES).await;
    gate.post(batch(["a"])).await;
    world.redis.settled("{vmh:beteiligte:create_pending}:outbox").await;
    world.redis.release(PENDING, "a").await;
    gate.post(batch(["a"])).await;
    world.redis.settled("{vmh:beteiligte:create_pending}:outbox").await;
    world.redis.release(PENDING, "a").await;
    gate.post_to("/vmh/webhook/beteiligte/update", batch(["a"])).await;

    let text = run(&settings(&world), &["why", "a"]).good();
    let create = text.split("vmh/beteiligte/update a").next().expect("there is a first part");
    assert!(create.contains("no; if it was released, by what is no longer known"), "{text}");
    assert!(create.contains("#1 in HOOKGATE") && create.contains("#2 in HOOKGATE") && !create.contains("#3"), "{text}");
    assert!(text.contains("#3 in HOOKGATE"), "{text}");

    let unknown = run(&settings(&world), &["why", "never"]);
    assert_eq!(unknown.code, Some(1));
    assert!(unknown.printed.contains("nothing is known of never any more"), "{}", unknown.printed);
    let failed = run(&settings(&world), &["why", "a", "--route", "vmh/x/y"]).bad();
    assert!(failed.contains("no route is named \"vmh/x/y\""), "{failed}");
}

#[tokio::test]
async fn tells_what_was_given_up_and_what_could_not_be_seen() {
    let mut world = World::start().await;
    let gate = world.gate(ROUTES).await;
    gate.post(batch(["a"])).await;
    let mut connection = world.redis.connection().await;
    let raw =
        json!({ "entity_id": "a", "consumer": "case-sync", "deliveries": 3, "stream": "HOOKGATE", "sequence": 1 })
            .to_string();
    let fields = [
        "*",
        "route",
        "vmh/beteiligte/create",
        "reason",
        "gave_up",
        "time",
        "2026-01-01T00:00:00.000Z",
        "raw",
        raw.as_str(),
    ];
    redis::cmd("XADD")
        .arg("hookgate:dead_letters")
        .arg(&fields)
        .exec_async(&mut connection)
        .await
        .expect("the tests may");
    let text = run(&settings(&world), &["why", "a"]).good();
    assert!(text.contains(": gave_up by case-sync #1 after 3 deliveries"), "{text}");

    // An id that was pending before there was a journal.
    connection.sadd(PENDING, "old").await.expect("the tests may");
    let text = run(&settings(&world), &["why", "old"]).good();
    assert!(text.contains("since when is not known: there is no journal entry"), "{text}");

    world.nats.kill();
    let blind = run(&settings(&world), &["why", "a"]);
    assert_eq!(blind.code, Some(1));
    assert!(blind.printed.contains("not seen      the streams: nothing listens on"), "{}", blind.printed);
}

#[tokio::test]
async fn the_admin_address_tells_it_to_who_shows_the_token() {
    let world = World::start().await;
    let folder = tempfile::tempdir().expect("a temporary folder can be made");
    let file = folder.path().join("token");
    std::fs::write(&file, "s3cret\n").expect("it is ours");
    let path = "/v1/pending/vmh/beteiligte/create/a%2Fb%20%25";
    let closed = world.gate(ROUTES).await;
    assert_eq!(closed.operate("GET", path, "s3cret").await.status, 404, "without a token file");
    closed.post(batch(["a/b %"])).await;

    let gate = world.gate(&format!("admin.token_file = \"{}\"\n{ROUTES}", file.display())).await;
    let answer = gate.operate("GET", path, "s3cret").await;
    assert_eq!(answer.status, 200);
    let (told, printed) = (
        answer.json(),
        run(&settings(&world), &["why", "a/b %", "--route", "vmh/beteiligte/create", "--output", "json"])
            .rows()
            .remove(0),
    );
    assert_eq!(
        (&told["entity_id"], &told["pending"], &told["events"][0]["sequence"]),
        (&json!("a/b %"), &json!(true), &json!(1))
    );
    let members = |story: &Value| story.as_object().expect("it is one").keys().cloned().collect::<Vec<_>>();
    assert_eq!(members(&told), members(&printed));

    for (token, status) in [("", 401), ("wrong", 401), ("s3cret2", 401)] {
        let answer = gate.operate("GET", path, token).await;
        assert_eq!((answer.status, answer.header("www-authenticate")), (status, Some("Bearer")), "{token:?}");
    }
    for (path, status) in [
        ("/v1/pending/vmh/beteiligte/delete/a", 404),
        ("/v1/pending/vmh/beteiligte/create/", 400),
        ("/v1/pending/vmh/beteiligte/create/a/b", 400),
        ("/v1/pending/vmh/beteiligte/create/%zz", 400),
        ("/v1/pending/vmh/beteiligte/create/%00", 400),
        ("/v1/pending/vmh/beteiligte", 400),
    ] {
        assert_eq!(gate.operate("GET", path, "s3cret").await.status, status, "{path}");
    }
    assert_eq!(gate.operate("PUT", path, "s3cret").await.status, 405);
    // A new token counts at once.
    std::fs::write(&file, "other\n").expect("it is ours");
    assert_eq!(gate.operate("GET", path, "s3cret").await.status, 401);
    assert_eq!(gate.operate("GET", path, "other").await.status, 200);
    std::fs::remove_file(&file).expect("it is ours");
    assert_eq!(gate.operate("GET", path, "other").await.status, 503);
}
