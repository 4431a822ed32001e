//! A stream is read once, to the end that it had, whatever happens meanwhile; `hookgate tail` shows what is in it.

use std::time::{Duration, SystemTime};

use async_nats::HeaderMap;
use bytes::Bytes;
use hookgate::{
    event::{Attempt, TokenSeed},
    nats_login::Login,
    publisher::{
        history::{AtSequence, History, HistoryError, Merged, Pass, Start, Stored},
        servers::Servers,
    },
};
use serde_json::{Value, json};

use crate::support::{NatsServer, SUBJECT, World, batch, eventually, in_time, run};

const STREAM: &str = "EVENTS";

async fn history(nats: &NatsServer) -> History {
    history_as(nats, Login::None).await
}

async fn history_as(nats: &NatsServer, login: Login) -> History {
    let servers = Servers::new(vec![nats.url()], login, None);
    History::connect(&servers).await.expect("NATS takes connections")
}

fn subjects(subjects: &[&str]) -> Vec<String> {
    subjects.iter().map(|subject| (*subject).to_owned()).collect()
}

/// A stream of these subjects.
async fn stream(nats: &NatsServer, settings: Value) {
    nats.create_raw(STREAM, &settings).await;
}

/// Publishes events of hookgate with these ids, in their order.
async fn fill(nats: &NatsServer, subject: &str, ids: impl IntoIterator<Item = String>) {
    let (jetstream, seed) = (nats.jetstream().await, TokenSeed::now());
    let mut acks = Vec::new();
    for (place, id) in ids.into_iter().enumerate() {
        let mut headers = HeaderMap::new();
        headers.insert("Nats-Msg-Id", seed.token(Attempt::FIRST, place).text());
        headers.insert("Hookgate-Route", "vmh/beteiligte/create");
        let payload = json!({ "entity_id": id, "action": "create" }).to_string();
        let ack = jetstream.publish_with_headers(subject.to_owned(), headers, payload.into()).await;
        acks.push(ack.expect("NATS takes messages"));
        if acks.len() == 500 {
            settle(&mut acks).await;
        }
    }
    settle(&mut acks).await;
}

async fn settle(acks: &mut Vec<async_nats::jetstream::context::PublishAckFuture>) {
    for ack in acks.drain(..) {
        ack.await.expect("the stream stores it");
    }
}

fn ids(range: std::ops::Range<usize>) -> impl Iterator<Item = String> {
    range.map(|number| format!("id-{number}"))
}

/// Asks the API for something that needs no more words.
async fn done(nats: &NatsServer, request: impl AsRef<str>) {
    let answer = nats.api(request.as_ref(), &json!({})).await;
    assert_eq!(answer["success"], true, "{answer}");
}

async fn rest(pass: &mut Pass<'_>) -> Vec<Stored> {
    let mut events = Vec::new();
    while let Some(event) = in_time("the pass goes on", pass.next()).await.expect("the stream can be read") {
        events.push(event);
    }
    events
}

async fn all(mut merged: Merged<'_>) -> Vec<Stored> {
    let mut events = Vec::new();
    while let Some(event) = in_time("the pass goes on", merged.next()).await.expect("the stream can be read") {
        events.push(event);
    }
    events
}

fn ids_of(events: &[Stored]) -> Vec<String> {
    events.iter().map(|event| event.id.clone()).collect()
}

#[tokio::test]
async fn a_pass_yields_the_events_of_its_subjects_up_to_the_end_that_the_stream_had() {
    let nats = NatsServer::start().await;
    stream(&nats, json!({ "subjects": ["vmh.>", "other.>"] })).await;
    fill(&nats, "vmh.a.create", ids(0..3)).await;
    fill(&nats, "other.a.create", ids(3..6)).await;
    let client = nats.jetstream().await;
    client.publish("vmh.a.create", "not hookgate's".into()).await.expect("sent").await.expect("stored");
    fill(&nats, "vmh.b.create", ids(6..8)).await;

    fill(&nats, "other.b.create", ids(0..1)).await;

    let history = history(&nats).await;
    let wanted = subjects(&["vmh.a.create", "vmh.b.create"]);
    let mut pass = history.pass(STREAM, &wanted, Start::First).await.expect("it begins");
    fill(&nats, "vmh.b.create", ids(8..10)).await;
    let events = rest(&mut pass).await;
    assert_eq!(ids_of(&events), ["id-0", "id-1", "id-2", "id-6", "id-7"]);
    assert_eq!(events.iter().map(|event| event.sequence).collect::<Vec<_>>(), [1, 2, 3, 8, 9]);
    assert_eq!(events[4].subject(), "vmh.b.create");
    assert_eq!((events[0].route(), events[0].redelivery), (Some("vmh/beteiligte/create"), None));
    assert!(events.iter().all(|event| event.time.elapsed().expect("in the past") < Duration::from_secs(60)));
    assert_eq!((pass.skipped(), pass.bounds().first_sequence, pass.bounds().last_sequence), (1, 1, 10));
    assert!(!pass.bounds().drops_acknowledged && pass.bounds().first_time.is_some());

    match history.message(STREAM, 8).await.expect("NATS says") {
        AtSequence::Event(event) => assert_eq!((event.id.as_str(), event.token), ("id-6", events[3].token)),
        other => panic!("{other:?}"),
    }
    assert!(matches!(history.message(STREAM, 7).await.expect("NATS says"), AtSequence::Foreign));
    assert!(matches!(history.message(STREAM, 99).await.expect("NATS says"), AtSequence::Gone));
    eventually("it leaves no consumer behind", async || {
        let consumers = nats.api(&format!("CONSUMER.NAMES.{STREAM}"), &Value::Null).await;
        (consumers["total"] == 0).then_some(())
    })
    .await;
}

#[tokio::test]
async fn a_pass_begins_where_it_is_told_to() {
    let nats = NatsServer::start().await;
    stream(&nats, json!({ "subjects": ["vmh.>"] })).await;
    fill(&nats, SUBJECT, ids(0..40)).await;
    fill(&nats, "vmh.other", ids(0..300)).await;
    let middle = SystemTime::now();
    fill(&nats, SUBJECT, ids(40..50)).await;
    let (history, wanted) = (history(&nats).await, subjects(&[SUBJECT]));
    let read = async |start| ids_of(&all(history.events(&wanted, start).await.expect("it begins")).await);
    let expected = |range| ids(range).collect::<Vec<_>>();
    assert_eq!(read(Start::First).await, expected(0..50));
    assert_eq!(read(Start::Sequence(0)).await, expected(0..50));
    assert_eq!(read(Start::Sequence(38)).await, expected(37..50));
    assert_eq!(read(Start::Time(middle)).await, expected(40..50));
    assert_eq!(read(Start::Time(SystemTime::now())).await, expected(0..0));
    assert_eq!(read(Start::Last(12)).await, expected(38..50), "behind a gap");
    assert_eq!(read(Start::Last(1)).await, expected(49..50));
    assert_eq!(read(Start::Last(0)).await, expected(0..0));
    assert_eq!(read(Start::Last(1000)).await, expected(0..50));
    assert_eq!(read(Start::Sequence(1000)).await, expected(0..0));
}

#[tokio::test]
async fn several_streams_are_read_in_the_order_of_time() {
    let nats = NatsServer::start().await;
    nats.create_raw("A", &json!({ "subjects": ["vmh.a"] })).await;
    nats.create_raw("B", &json!({ "subjects": ["vmh.b"] })).await;
    for (subject, range) in [("vmh.a", 0..2), ("vmh.b", 2..4), ("vmh.a", 4..5), ("vmh.b", 5..7)] {
        fill(&nats, subject, ids(range)).await;
    }
    let (history, wanted) = (history(&nats).await, subjects(&["vmh.*"]));
    let events = all(history.events(&wanted, Start::First).await.expect("it begins")).await;
    assert_eq!(ids_of(&events), ids(0..7).collect::<Vec<_>>());
    assert_eq!((&*events[1].stream, &*events[2].stream), ("A", "B"));
    let events = all(history.events(&wanted, Start::Last(4)).await.expect("it begins")).await;
    assert_eq!(ids_of(&events), ids(3..7).collect::<Vec<_>>());
    let nothing = history.events(&subjects(&["crm.a"]), Start::First).await;
    assert!(matches!(nothing, Err(HistoryError::NoStream(subject)) if subject == "crm.a"));
}

#[tokio::test]
async fn a_pass_goes_on_after_a_restart_of_the_server_and_over_what_was_deleted_meanwhile() {
    let mut nats = NatsServer::start().await;
    stream(&nats, json!({ "subjects": ["vmh.>"] })).await;
    fill(&nats, SUBJECT, ids(0..5000)).await;
    let (history, wanted) = (history(&nats).await, subjects(&[SUBJECT]));
    let mut pass = history.pass(STREAM, &wanted, Start::First).await.expect("it begins");
    let mut seen = Vec::new();
    for round in 0..3 {
        for _ in 0..700 {
            let event = in_time("the pass goes on", pass.next()).await.expect("it can be read").expect("there is more");
            seen.push(event.id);
        }
        match round {
            0 => {
                nats.kill();
                nats.start_again().await;
            }
            1 => {
                let consumers = nats.api(&format!("CONSUMER.NAMES.{STREAM}"), &Value::Null).await;
                for name in consumers["consumers"].as_array().expect("a list") {
                    let name = name.as_str().expect("a name");
                    done(&nats, format!("CONSUMER.DELETE.{STREAM}.{name}")).await;
                }
            }
            _ => {}
        }
    }
    // A batch of a thousand is under way; what is deleted behind it, and the end, are not to come.
    let purge = nats.api(&format!("STREAM.PURGE.{STREAM}"), &json!({ "seq": 4001 })).await;
    assert_eq!(purge["success"], true, "{purge}");
    let delete = nats.api(&format!("STREAM.MSG.DELETE.{STREAM}"), &json!({ "seq": 5000 })).await;
    assert_eq!(delete["success"], true, "{delete}");
    seen.extend(ids_of(&rest(&mut pass).await));
    let from = seen.iter().position(|id| id == "id-4000").expect("what was not purged came");
    assert_eq!(seen[from..], ids(4000..4999).collect::<Vec<_>>());
    assert_eq!(seen[..from], ids(0..from).collect::<Vec<_>>());
}

#[tokio::test]
async fn a_pass_reads_many_batches_with_one_consumer() {
    let nats = NatsServer::start().await;
    stream(&nats, json!({ "subjects": ["vmh.>"] })).await;
    fill(&nats, SUBJECT, ids(0..3500)).await;
    let (history, wanted) = (history(&nats).await, subjects(&[SUBJECT]));
    let mut pass = history.pass(STREAM, &wanted, Start::First).await.expect("it begins");
    for _ in 0..3200 {
        assert!(in_time("the pass goes on", pass.next()).await.expect("it can be read").is_some());
    }
    let consumers = nats.api(&format!("CONSUMER.LIST.{STREAM}"), &json!({})).await["consumers"].clone();
    assert_eq!(consumers.as_array().map(Vec::len), Some(1), "{consumers}");
    assert_eq!(consumers[0]["delivered"]["consumer_seq"], 3500);
    assert_eq!(rest(&mut pass).await.len(), 300);
}

#[tokio::test]
async fn a_pass_over_a_stream_that_is_purged_or_made_again_ends_and_says_so() {
    let nats = NatsServer::start().await;
    let settings = json!({ "subjects": ["vmh.>"] });
    stream(&nats, settings.clone()).await;
    fill(&nats, SUBJECT, ids(0..3000)).await;
    let (history, wanted) = (history(&nats).await, subjects(&[SUBJECT]));
    let mut pass = history.pass(STREAM, &wanted, Start::First).await.expect("it begins");
    assert!(pass.next().await.expect("it can be read").is_some());
    done(&nats, format!("STREAM.PURGE.{STREAM}")).await;
    let events = rest(&mut pass).await;
    assert!(events.len() < 1000, "{} of the first batch came", events.len());

    fill(&nats, SUBJECT, ids(0..3000)).await;
    let mut pass = history.pass(STREAM, &wanted, Start::First).await.expect("it begins");
    assert!(pass.next().await.expect("it can be read").is_some());
    done(&nats, format!("STREAM.DELETE.{STREAM}")).await;
    stream(&nats, settings).await;
    fill(&nats, SUBJECT, ids(0..10)).await;
    let error = loop {
        match in_time("the pass ends", pass.next()).await {
            Ok(Some(_)) => {}
            Ok(None) => panic!("it ended as if it had seen all"),
            Err(error) => break error,
        }
    };
    assert!(matches!(&error, HistoryError::Replaced(stream) if stream == STREAM), "{error}");
}

#[tokio::test]
async fn a_stream_that_drops_what_is_acknowledged_is_read_without_a_consumer() {
    let nats = NatsServer::start().await;
    for retention in ["workqueue", "interest"] {
        nats.create_raw("Q", &json!({ "subjects": ["vmh.>"], "retention": retention })).await;
        let consumer = json!({ "stream_name": "Q", "config": { "durable_name": "c", "ack_policy": "explicit" } });
        nats.api("CONSUMER.DURABLE.CREATE.Q.c", &consumer).await;
        fill(&nats, "vmh.other", ids(0..2)).await;
        fill(&nats, SUBJECT, ids(2..20)).await;
        let history = history(&nats).await;
        let mut pass = history.pass("Q", &subjects(&[SUBJECT]), Start::First).await.expect("it begins");
        assert!(pass.bounds().drops_acknowledged);
        assert_eq!(ids_of(&rest(&mut pass).await), ids(2..20).collect::<Vec<_>>(), "{retention}");
        let mut pass = history.pass("Q", &subjects(&[SUBJECT]), Start::Last(3)).await.expect("it begins");
        assert_eq!(ids_of(&rest(&mut pass).await), ids(17..20).collect::<Vec<_>>(), "{retention}");
        let state = nats.api("STREAM.INFO.Q", &Value::Null).await["state"].clone();
        assert_eq!((&state["messages"], &state["consumer_count"]), (&json!(20), &json!(1)), "{retention}");
        done(&nats, "STREAM.DELETE.Q").await;
    }
}

#[tokio::test]
async fn a_message_larger_than_a_batch_does_not_stop_a_pass() {
    let nats = NatsServer::configured("max_payload: 8MB\n").await;
    stream(&nats, json!({ "subjects": ["vmh.>"] })).await;
    fill(&nats, SUBJECT, ids(0..2)).await;
    let client = nats.jetstream().await;
    for _ in 0..2 {
        let large = Bytes::from(vec![b'x'; 5 * 1024 * 1024]);
        client.publish(SUBJECT, large).await.expect("sent").await.expect("stored");
    }
    fill(&nats, SUBJECT, ids(2..4)).await;
    let history = history(&nats).await;
    let mut pass = history.pass(STREAM, &subjects(&[SUBJECT]), Start::First).await.expect("it begins");
    assert_eq!(ids_of(&rest(&mut pass).await), ids(0..4).collect::<Vec<_>>());
    assert_eq!(pass.skipped(), 2);
}

#[tokio::test]
async fn what_is_denied_is_named() {
    let text = r#"authorization { users = [
        { user: all, password: all }
        { user: few, password: few, permissions: {
            publish: { allow: ["$JS.API.STREAM.NAMES", "$JS.API.STREAM.INFO.EVENTS"] }, subscribe: { allow: ["_INBOX.hookgate.>"] } } }
    ] }"#;
    let all = || async_nats::ConnectOptions::with_user_and_password("all".into(), "all".into());
    let nats = NatsServer::guarded(text, all).await;
    stream(&nats, json!({ "subjects": ["vmh.>"] })).await;
    fill(&nats, SUBJECT, ids(0..2)).await;
    let history = history_as(&nats, Login::User { name: "few".into(), password: "few".into() }).await;
    let mut pass = history.pass(STREAM, &subjects(&[SUBJECT]), Start::First).await.expect("it begins");
    let error = in_time("the pass ends", pass.next()).await.expect_err("it may not be read").to_string();
    assert!(error.contains("$JS.API.CONSUMER.CREATE.EVENTS") && error.contains("docs/permissions.md"), "{error}");
}

#[tokio::test]
async fn tail_prints_what_the_stream_holds_and_ends() {
    let world = World::start().await;
    let gate = world.gate("").await;
    gate.post(batch(["a", "b", "c"])).await;
    let settings = world.settings();
    let client = world.nats.jetstream().await;
    client.publish(SUBJECT, "{}".into()).await.expect("sent").await.expect("stored");
    client.publish("vmh.other", "{}".into()).await.expect("sent").await.expect("stored");

    let rows = run(&settings, &["tail", "--since", "1h", "--output", "json"]).rows();
    let entities: Vec<_> = rows.iter().map(|row| row["payload"]["entity_id"].clone()).collect();
    assert_eq!(entities, ["a", "b", "c"]);
    assert_eq!(
        (&rows[1]["stream"], &rows[1]["sequence"], &rows[1]["subject"]),
        (&json!("HOOKGATE"), &json!(2), &json!(SUBJECT))
    );
    assert!(rows[1]["time"].as_str().is_some_and(|time| time.ends_with('Z')));
    let events = world.nats.events().await;
    assert_eq!(rows[1]["headers"], json!(events[1].headers));

    let last = run(&settings, &["tail", "--last", "2"]);
    assert!(last.remarks.contains("left out 1 message that hookgate did not publish"), "{}", last.remarks);
    let printed = last.good();
    let header = |name: &str| format!("{name}: {}\n", events[2].headers[name]);
    let headers = header("Hookgate-Route") + &header("Nats-Msg-Id") + &header("traceparent");
    assert!(printed.starts_with("[#2] Stored 20") && printed.contains("[#3] Stored 20"), "{printed}");
    assert!(
        printed.ends_with(&format!("in HOOKGATE on \"{SUBJECT}\"\n{headers}\n{}\n\n", events[2].payload)),
        "{printed}"
    );

    let id = run(&settings, &["tail", "--id", "b", "--output", "json"]).rows();
    assert_eq!(id.iter().map(|row| row["sequence"].clone()).collect::<Vec<_>>(), [2]);
    assert_eq!(run(&settings, &["tail", "--id", "b", "--last", "5", "--output", "json"]).rows().len(), 1);
    assert_eq!(run(&settings, &["tail", "--since", "1h", "--count", "1", "--output", "json"]).rows().len(), 1);
    let nothing = run(&settings, &["tail", "--id", "x"]);
    assert!(nothing.remarks.contains("no such event in the stream"), "{}", nothing.remarks);
    assert_eq!(nothing.good(), "");
    let failed = run(&settings, &["tail", "elsewhere.x", "--last", "1"]).bad();
    assert!(failed.contains("no stream covers subject \"elsewhere.x\""), "{failed}");
    assert_eq!(run(&settings, &["tail", "--last", "1", "--since", "1h"]).code, Some(2));
}
