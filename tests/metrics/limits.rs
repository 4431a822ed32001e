//! Refused requests, and heads that can't be read, are counted.

use super::{OTHER, ROUTE, assert_is, samples, wait_for};
use crate::support::{Connection, Gate, PATH, World, batch, eventually, post, post_and_stay};

async fn assert_shed(gate: &Gate, reason: &str, refused: f64) {
    let samples = samples(gate).await;
    for known in ["too_many_connections", "too_many_requests", "too_many_bytes", "outbox_full", "shutting_down"] {
        let expected = if known == reason { refused } else { 0.0 };
        assert_is(&samples, "hookgate_shed_total", &[("reason", known)], expected);
    }
}

#[tokio::test]
async fn too_many_requests_are_counted() {
    let world = World::start().await;
    let gate = world.gate("server.max_in_flight = 1").await;
    world.nats.freeze();
    let mut busy = gate.busy_with(&post(PATH, batch(["a"]).as_bytes())).await;
    for _ in 0..2 {
        assert_eq!(gate.post(batch(["b"])).await.error(), (503, "too_many_requests".into()));
    }
    assert_shed(&gate, "too_many_requests", 2.0).await;
    assert_is(&samples(&gate).await, "hookgate_http_requests_total", &[("route", ROUTE), ("code", "503")], 2.0);
    world.nats.thaw();
    assert_eq!(busy.answer().await.expect("it is answered").status, 200);
}

#[tokio::test]
async fn too_many_bytes_are_counted() {
    let world = World::start().await;
    let gate = world.gate("server.max_body_bytes = 1000\nserver.max_buffered_bytes = 4000").await;
    world.nats.freeze();
    let mut busy = Vec::new();
    for id in ["a", "b", "c"] {
        busy.push(gate.busy_with(&post(PATH, format!("{:1000}", batch([id])).as_bytes())).await);
    }
    assert_eq!(gate.post(format!("{:1000}", batch(["d"]))).await.error(), (503, "too_many_bytes".into()));
    assert_shed(&gate, "too_many_bytes", 1.0).await;
    world.nats.thaw();
    for sender in &mut busy {
        assert_eq!(sender.answer().await.expect("it is answered").status, 200);
    }
}

#[tokio::test]
async fn too_many_connections_are_counted() {
    let world = World::start().await;
    let gate = world.gate("server.max_connections = 1").await;
    let mut first = Connection::open(gate.address()).await.expect("hookgate listens");
    first.send(&post_and_stay(PATH, b"[]")).await.expect("hookgate reads");
    assert_eq!(first.answer().await.expect("it is answered").status, 200);
    assert_eq!(gate.post("[]").await.error(), (503, "too_many_connections".into()));
    assert_shed(&gate, "too_many_connections", 1.0).await;
    let samples = samples(&gate).await;
    assert_is(&samples, "hookgate_http_requests_total", &[("route", OTHER), ("code", "503")], 1.0);
    assert_is(&samples, "hookgate_connections", &[], 1.0);
}

#[tokio::test]
async fn batches_that_find_the_outbox_full_are_counted() {
    let world = World::start().await;
    let gate = world.gate("server.request_deadline = \"1s\"\noutbox.max_entries = 1").await;
    world.nats.freeze();
    assert_eq!(gate.post(batch(["a"])).await.error(), (503, "not_published".into()));
    assert_eq!(gate.post(batch(["b"])).await.error(), (503, "outbox_full".into()));
    assert_shed(&gate, "outbox_full", 1.0).await;
    let new = [("route", ROUTE), ("result", "new")];
    assert_is(&samples(&gate).await, "hookgate_items_total", &new, 1.0);
}

#[tokio::test]
async fn requests_refused_while_draining_are_counted() {
    let world = World::start().await;
    let gate = world.gate("server.drain_delay = \"0s\"").await;
    world.nats.freeze();
    let mut busy = gate.busy_with(&post(PATH, batch(["a"]).as_bytes())).await;
    gate.signal("TERM");
    eventually("it refuses", async || {
        let status = gate.probe("/v1/status").await.json();
        (status["phase"] == "refusing").then_some(())
    })
    .await;
    assert_eq!(gate.post(batch(["b"])).await.error(), (503, "shutting_down".into()));
    assert_shed(&gate, "shutting_down", 1.0).await;
    assert_is(&samples(&gate).await, "hookgate_http_requests_in_flight", &[], 1.0);
    world.nats.thaw();
    assert_eq!(busy.answer().await.expect("it is answered").status, 200);
}

/// hyper answers these by itself; a batch behind such a head is lost all the same, so they are counted.
#[tokio::test]
async fn heads_that_cannot_be_read_are_counted_and_logged() {
    let world = World::start().await;
    let gate = world.gate("").await;
    let long = format!("POST {PATH} HTTP/1.1\r\nHost: x\r\nX: {}\r\n\r\n", "x".repeat(70_000));
    assert_eq!(gate.exchange(long.as_bytes()).await.status, 431);
    let folded = format!("POST {PATH} HTTP/1.1\r\nHost : x\r\n\r\n");
    assert_eq!(gate.exchange(folded.as_bytes()).await.status, 400);
    wait_for(&gate, "hookgate_http_requests_total", &[("route", OTHER), ("code", "431")], 1.0).await;
    let said = gate.wait_log("its head can't be read").await;
    assert!(said.contains("\"status\":431") && !said.contains("xxx"), "{said}");
    wait_for(&gate, "hookgate_http_requests_total", &[("route", OTHER), ("code", "400")], 1.0).await;
    let silent = Connection::open(gate.address()).await.expect("hookgate listens");
    wait_for(&gate, "hookgate_connections", &[], 1.0).await;
    drop(silent);
    wait_for(&gate, "hookgate_connections", &[], 0.0).await;
    let codes = samples(&gate).await;
    assert_is(&codes, "hookgate_http_requests_total", &[("route", OTHER), ("code", "400")], 1.0);
}
