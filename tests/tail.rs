//! `hookgate tail` shows events as they come, like `nats sub` does.

use serde_json::Value;

use crate::support::{Tail, World, batch};

#[tokio::test]
async fn prints_events_for_people() {
    let world = World::start().await;
    let gate = world.gate("").await;
    let tail = Tail::start(&world.settings(), &["--count", "2"]).await;
    assert!(tail.remarks().contains("Subscribing on vmh.beteiligte.create"), "{}", tail.remarks());
    gate.post(batch(["a", "b"])).await;

    let (status, printed) = tail.end().await;
    assert_eq!(status.code(), Some(0));
    let events = world.nats.events().await;
    let expected: Vec<_> = events
        .iter()
        .zip(1..)
        .map(|(event, number)| {
            let header = |name: &str| format!("{name}: {}\n", event.headers[name]);
            let headers = header("Hookgate-Route") + &header("Nats-Msg-Id") + &header("traceparent");
            format!("[#{number}] Received on \"vmh.beteiligte.create\"\n{headers}\n{}\n", event.payload)
        })
        .collect();
    assert_eq!(printed.trim_end(), expected.join("\n").trim_end());
}

#[tokio::test]
async fn prints_events_for_programs() {
    let world = World::start().await;
    let gate = world.gate("").await;
    let tail = Tail::start(&world.settings(), &["--count", "2", "--output", "json"]).await;
    gate.post(batch(["a", "b"])).await;

    let (status, printed) = tail.end().await;
    assert_eq!(status.code(), Some(0));
    let events = world.nats.events().await;
    assert_eq!(printed.lines().count(), events.len());
    for (line, event) in printed.lines().zip(&events) {
        let line: Value = serde_json::from_str(line).expect("each line is an object");
        let members: Vec<_> = line.as_object().expect("each line is an object").keys().collect();
        assert_eq!(members, ["headers", "payload", "subject"]);
        assert_eq!(line["subject"], event.subject);
        assert_eq!(line["headers"], serde_json::json!(event.headers));
        assert_eq!(line["payload"], serde_json::from_str::<Value>(&event.payload).expect("it is JSON"));
    }
}

#[tokio::test]
async fn shows_each_watcher_what_comes_from_now_on() {
    let world = World::start().await;
    let gate = world.gate("").await;
    gate.post(batch(["before"])).await;
    let arguments = ["--count", "1", "--output", "json"];
    let all = [&["vmh.>"], &arguments[..]].concat();
    let tails = [Tail::start(&world.settings(), &all).await, Tail::start(&world.settings(), &arguments).await];
    gate.post(batch(["after"])).await;
    for tail in tails {
        let (status, printed) = tail.end().await;
        assert_eq!(status.code(), Some(0));
        assert!(printed.contains("after") && !printed.contains("before"), "{printed}");
    }
}

#[tokio::test]
async fn takes_a_subject_and_ends_by_ctrl_c() {
    let world = World::start().await;
    let gate = world.gate("").await;
    let tail = Tail::start(&world.settings(), &["elsewhere.*"]).await;
    let said = tail.remarks();
    for words in ["no route publishes to elsewhere.*", "Subscribing on elsewhere.*"] {
        assert!(said.contains(words), "{said}");
    }
    gate.post(batch(["not for this tail"])).await;

    let (status, printed) = tail.interrupt().await;
    assert_eq!((status.code(), printed.as_str()), (Some(0), ""));
}
