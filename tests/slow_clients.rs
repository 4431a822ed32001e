//! A client that sends or reads too slowly is disconnected in time, and delays no other.

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
async fn slow_bodies_take_no_place() {
    let world = World::start().await;
    let gate = world.gate("server.max_in_flight = 1\nserver.body_read_timeout = \"2s\"").await;
    let head = format!("POST {PATH} HTTP/1.1\r\nHost: x\r\nExpect: 100-continue\r\nContent-Length: 100\r\n\r\n");
    let mut slow = Vec::new();
    for _ in 0..20 {
        let mut connection = Connection::open(gate.address()).await.expect("hookgate listens");
        connection.send(head.as_bytes()).await.expect("hookgate reads");
        assert_eq!(connection.answer().await.expect("it is asked for its body").status, 100);
        connection.send(b"[").await.expect("hookgate reads");
        slow.push(connection);
    }
    assert_eq!(gate.post(batch(["a"])).await.counts(), (1, 1), "at the first attempt");
    for mut connection in slow {
        assert_eq!(connection.answer().await.expect("hookgate answers").error(), (408, "body_timeout".into()));
    }
}

/// Large bodies that never end leave room for small ones. Sending them needs no secret.
#[tokio::test]
async fn large_bodies_that_do_not_come_take_a_part_of_the_memory() {
    const LARGE: usize = 1 << 20;
    let world = World::start().await;
    let limits = format!("server.max_body_bytes = {LARGE}\nserver.max_buffered_bytes = {}\n", 4 * LARGE);
    let gate = world.gate(&limits).await;
    let head = format!("POST {PATH} HTTP/1.1\r\nHost: x\r\nContent-Length: {LARGE}\r\n\r\n");
    let begun = [head.as_bytes(), &b" ".repeat(LARGE - 1)].concat();
    let mut slow = Vec::new();
    for _ in 0..3 {
        let mut connection = Connection::open(gate.address()).await.expect("hookgate listens");
        connection.send(&begun).await.expect("hookgate reads");
        slow.push(connection);
    }
    eventually("they are here but for a byte", async || {
        let status = gate.probe("/v1/status").await.json();
        (status["limits"]["buffered_bytes"]["used"] == 3 * LARGE).then_some(())
    })
    .await;
    let more = post_and_stay(PATH, &b" ".repeat(LARGE));
    assert_eq!(gate.exchange(&more).await.error(), (503, "too_many_bytes".into()));
    for id in ["a", "b", "c"] {
        assert_eq!(gate.post(format!("{:50000}", batch([id]))).await.counts(), (1, 1), "at the first attempt");
    }
    for mut connection in slow {
        connection.send(b" ").await.expect("hookgate reads");
        assert_eq!(connection.answer().await.expect("hookgate answers").error(), (400, "body_empty".into()));
    }
}

/// Small bodies that never end fill the budget: the slow ones are dropped as soon as others wait.
#[tokio::test]
async fn slow_bodies_that_hold_all_memory_make_room() {
    const EACH: usize = 60_000;
    let world = World::start().await;
    let limit = 1 << 20;
    let gate = world.gate(&format!("server.max_body_bytes = {EACH}\nserver.max_buffered_bytes = {limit}\n")).await;
    let head = format!("POST {PATH} HTTP/1.1\r\nHost: x\r\nContent-Length: {EACH}\r\n\r\n");
    let begun = [head.as_bytes(), &b" ".repeat(EACH - 1)].concat();
    let mut slow = Vec::new();
    // Requests that are not authenticated yet share seven eighths of the budget.
    for _ in 0..limit / 8 * 7 / EACH {
        let mut connection = Connection::open(gate.address()).await.expect("hookgate listens");
        connection.send(&begun).await.expect("hookgate reads");
        slow.push(connection);
    }
    eventually("they are here but for a byte", async || {
        let status = gate.probe("/v1/status").await.json();
        (status["limits"]["buffered_bytes"]["used"] == slow.len() * EACH).then_some(())
    })
    .await;
    for id in ["a", "b", "c"] {
        assert_eq!(gate.post(format!("{:50000}", batch([id]))).await.counts(), (1, 1), "at the first attempt");
    }
    let mut finished = 0;
    for mut connection in slow {
        // Slow bodies that delayed no other request were kept.
        let _gone = connection.send(b" ").await;
        match connection.answer().await.expect("hookgate answers").error() {
            (400, error) if error == "body_empty" => finished += 1,
            other => assert_eq!(other, (503, "too_many_bytes".into())),
        }
    }
    assert!(finished > 0, "nobody was left");
}
