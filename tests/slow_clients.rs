//! Clients that do too little: each is left in its time, and nobody else waits for them.

use std::time::{Duration, Instant};

use crate::support::{Connection, PATH, World, batch, eventually, in_time, post_and_stay};

/// A connection that has one request behind it may be silent for longer than one that has none.
#[tokio::test]
async fn an_idle_connection_is_kept_for_as_long_as_it_is_allowed_to() {
    let world = World::start().await;
    let gate = world.gate("server.first_request_timeout = \"200ms\"\nserver.header_read_timeout = \"2s\"").await;
    let silent_from = Instant::now();
    let mut silent = Connection::open(gate.address()).await.expect("hookgate listens");
    let mut used = Connection::open(gate.address()).await.expect("hookgate listens");
    used.send(&post_and_stay(PATH, b"[]")).await.expect("hookgate reads");
    assert_eq!(used.answer().await.expect("hookgate answers").counts(), (0, 0));
    let used_from = Instant::now();

    assert_eq!(silent.closed().await.expect("it is closed in order"), b"");
    assert!(silent_from.elapsed() >= Duration::from_millis(190), "not before its time");
    used.send(&post_and_stay(PATH, b"[]")).await.expect("it is still open");
    assert_eq!(used.answer().await.expect("hookgate answers").counts(), (0, 0));
    assert_eq!(used.closed().await.expect("it is closed in order"), b"");
    assert!(used_from.elapsed() >= Duration::from_secs(2), "not before its time");
}

/// Asks on and on and never reads: its answers fill every buffer on the way, and then it has ten seconds.
#[tokio::test]
async fn whoever_takes_no_answer_loses_its_connection() {
    let world = World::start().await;
    let gate = world.gate("server.max_connections = 2").await;
    let mut greedy = Connection::open(gate.address()).await.expect("hookgate listens");
    let requests = post_and_stay("/elsewhere", b"").repeat(1000);
    in_time("the connection is cut", async { while greedy.send(&requests).await.is_ok() {} }).await;
    assert_eq!(gate.post(batch(["a"])).await.counts(), (1, 1));
}

/// Requests that are begun and never finished hold no place that an honest one needs.
#[tokio::test]
async fn slow_bodies_take_no_place_for_longer_than_their_time() {
    let world = World::start().await;
    let gate = world.gate("server.max_in_flight = 4\nserver.body_read_timeout = \"500ms\"").await;
    let head = format!("POST {PATH} HTTP/1.1\r\nHost: x\r\nContent-Length: 100\r\n\r\n[");
    let mut slow = Vec::new();
    for _ in 0..4 {
        let mut connection = Connection::open(gate.address()).await.expect("hookgate listens");
        connection.send(head.as_bytes()).await.expect("hookgate reads");
        slow.push(connection);
    }
    eventually("all places are taken", async || {
        gate.probe("/metrics").await.text().contains("hookgate_http_requests_in_flight 4\n").then_some(())
    })
    .await;
    assert_eq!(gate.deliver(batch(["a"])).await.counts(), (1, 1));
    for mut connection in slow {
        assert_eq!(connection.answer().await.expect("hookgate answers").error(), (408, "body_timeout".into()));
    }
}
