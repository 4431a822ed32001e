//! After SIGTERM new requests are answered, and nothing in flight is lost.

use std::{
    io::ErrorKind,
    sync::atomic::{AtomicBool, AtomicUsize, Ordering},
};

use futures_util::future::join_all;

use crate::support::{
    Answer, Connection, Event, Gate, OUTBOX, PATH, PENDING, World, batch, eventually, in_time, post_and_stay,
    try_exchange,
};

const LEAVING: &str = "still serving";
const REFUSING: &str = "finishing what is in flight";

/// Sends one batch after the other, each on a connection of its own, until the port is closed.
async fn send_until_gone(gate: &Gate, sender: usize, signalled: &AtomicBool, taken: &AtomicUsize) -> Vec<String> {
    let mut delivered = Vec::new();
    for number in 0.. {
        let id = format!("{sender}-{number}");
        let after_signal = signalled.load(Ordering::SeqCst);
        let answer = match try_exchange(gate.address(), &post_and_stay(PATH, batch([&id]).as_bytes())).await {
            Ok(answer) => answer,
            Err(error) => {
                assert_ne!(error.kind(), ErrorKind::TimedOut, "everybody is answered");
                let again = try_exchange(gate.address(), &post_and_stay(PATH, b"[]")).await;
                assert!(again.is_err(), "{error}, and yet somebody listens: {again:?}");
                return delivered;
            }
        };
        assert!(matches!(answer.status, 200 | 503), "{}: {}", answer.status, answer.text());
        if after_signal {
            assert_eq!(answer.header("connection"), Some("close"), "senders are moved to other replicas");
        }
        if answer.status == 200 {
            delivered.push(id);
            taken.fetch_add(1, Ordering::SeqCst);
        }
    }
    delivered
}

#[tokio::test]
async fn under_load_every_answer_is_200_or_503() {
    let world = World::start().await;
    let mut gate = world.gate("server.drain_delay = \"500ms\"").await;
    let (signalled, taken) = (AtomicBool::new(false), AtomicUsize::new(0));
    let senders = join_all((0..8).map(|sender| send_until_gone(&gate, sender, &signalled, &taken)));
    let signal = async {
        eventually("the senders are at work", async || (taken.load(Ordering::SeqCst) > 50).then_some(())).await;
        gate.signal("TERM");
        gate.wait_log(LEAVING).await;
        signalled.store(true, Ordering::SeqCst);
        let before = taken.load(Ordering::SeqCst);
        eventually("it still serves", async || (taken.load(Ordering::SeqCst) > before).then_some(())).await;
    };
    let (delivered, ()) = in_time("the senders end", async { tokio::join!(senders, signal) }).await;

    assert_eq!(gate.end().await.code(), Some(0));
    let events: Vec<_> = world.nats.events().await.iter().map(Event::entity_id).collect();
    for id in delivered.concat() {
        assert!(events.contains(&id), "{id} was answered 200 and is not in the stream");
    }
    world.redis.settled(OUTBOX).await;
}

#[tokio::test]
async fn what_is_in_flight_is_finished_and_what_comes_is_told_to_come_back() {
    let world = World::start().await;
    let mut gate = world.gate("server.drain_delay = \"0s\"").await;
    world.nats.freeze();
    let mut in_flight = gate.busy_with(&post_and_stay(PATH, batch(["a"]).as_bytes())).await;

    gate.signal("TERM");
    gate.wait_log(REFUSING).await;
    let late = gate.exchange(&post_and_stay(PATH, batch(["b"]).as_bytes())).await;
    assert_eq!(late.error(), (503, "shutting_down".into()));
    assert_eq!(late.header("connection"), Some("close"));
    assert_eq!(gate.probe("/livez").await.status, 200);
    assert_eq!(gate.probe("/readyz").await.status, 503);

    world.nats.thaw();
    let answer = in_flight.answer().await.expect("it is answered");
    assert_eq!(answer.counts(), (1, 1));
    assert_eq!(answer.header("connection"), Some("close"));
    assert_eq!(gate.end().await.code(), Some(0));
    assert!(world.redis.outbox(OUTBOX).await.is_empty(), "what was acknowledged is settled before the end");
    assert_eq!(world.redis.pending(PENDING).await.into_iter().collect::<Vec<_>>(), ["a"]);
}

/// The only permit stays taken: a request that waits for it is refused, and claims nothing.
#[tokio::test]
async fn who_waits_for_a_place_is_told_to_come_back() {
    let world = World::start().await;
    let mut gate = world.gate("server.drain_delay = \"0s\"\nserver.max_in_flight = 1").await;
    world.nats.freeze();
    let mut in_flight = gate.busy_with(&post_and_stay(PATH, batch(["a"]).as_bytes())).await;
    let mut waiting = gate.send(&post_and_stay(PATH, batch(["b"]).as_bytes())).await;
    // A later request has been answered, so this one has been read.
    assert_eq!(gate.exchange(&post_and_stay("/elsewhere", b"[]")).await.status, 404);

    gate.signal("TERM");
    gate.wait_log(REFUSING).await;
    let answer = waiting.answer().await.expect("it is answered");
    assert_eq!(answer.error(), (503, "too_many_requests".into()), "its patience ran out before the place was free");
    world.nats.thaw();
    assert_eq!(in_flight.answer().await.expect("it is answered").counts(), (1, 1));
    assert_eq!(gate.end().await.code(), Some(0));
    assert_eq!(world.redis.pending(PENDING).await.into_iter().collect::<Vec<_>>(), ["a"]);
    assert_eq!(world.nats.events().await.len(), 1);
}

#[tokio::test]
async fn a_slow_body_is_waited_for() {
    let world = World::start().await;
    let mut gate = world.gate("server.drain_delay = \"0s\"").await;
    let body = batch(["a"]);
    let head =
        format!("POST {PATH} HTTP/1.1\r\nHost: x\r\nExpect: 100-continue\r\nContent-Length: {}\r\n\r\n", body.len());
    let mut slow = Connection::open(gate.address()).await.expect("hookgate listens");
    slow.send(head.as_bytes()).await.expect("hookgate reads");
    assert_eq!(slow.answer().await.expect("it is asked for its body").status, 100);
    slow.send(&body.as_bytes()[..5]).await.expect("hookgate reads");

    gate.signal("TERM");
    gate.wait_log(REFUSING).await;
    slow.send(&body.as_bytes()[5..]).await.expect("hookgate reads");
    let answer = slow.answer().await.expect("it is answered");
    assert_eq!(answer.counts(), (1, 1));
    assert_eq!(answer.header("connection"), Some("close"));
    assert_eq!(gate.end().await.code(), Some(0));
    assert_eq!(world.nats.events().await.len(), 1);
}

#[tokio::test]
async fn a_connection_that_is_kept_open_does_not_hold_up_the_end() {
    let world = World::start().await;
    let mut gate = world.gate("").await;
    let mut kept = Connection::open(gate.address()).await.expect("hookgate listens");
    kept.send(&post_and_stay(PATH, b"[]")).await.expect("hookgate reads");
    assert_eq!(kept.answer().await.as_ref().map(Answer::counts).expect("it is answered"), (0, 0));
    let mut silent = Connection::open(gate.address()).await.expect("hookgate listens");

    assert_eq!(gate.terminate().await.code(), Some(0));
    assert_eq!(kept.closed().await.expect("it is closed in an orderly way"), b"");
    assert_eq!(silent.closed().await.expect("it is closed in an orderly way"), b"");
    assert!(gate.log().await.iter().any(|line| line.contains("bye")));
}

#[tokio::test]
async fn with_its_stores_down_it_ends_too() {
    let mut world = World::start().await;
    let mut gate = world.gate("server.request_deadline = \"1s\"").await;
    world.redis.kill();
    world.nats.kill();
    assert_eq!(gate.post(batch(["a"])).await.status, 503);
    assert_eq!(gate.terminate().await.code(), Some(0));
}

#[tokio::test]
async fn before_it_was_ever_ready_it_ends_too() {
    let mut world = World::start().await;
    world.redis.kill();
    let mut gate = world.gate_unready("").await;
    assert_eq!(gate.terminate().await.code(), Some(0));
}

#[tokio::test]
async fn a_second_signal_ends_it_at_once() {
    let world = World::start().await;
    let mut gate = world.gate("server.drain_delay = \"1h\"").await;
    gate.signal("TERM");
    gate.wait_log(LEAVING).await;
    assert_eq!(gate.post(batch(["a"])).await.counts(), (1, 1));
    let status = gate.terminate().await;
    assert_eq!(status.code(), Some(1), "whoever started it can see that it was cut short");
}

#[tokio::test]
async fn interrupt_is_as_good_as_terminate() {
    let world = World::start().await;
    let mut gate = world.gate("").await;
    gate.signal("INT");
    assert_eq!(gate.end().await.code(), Some(0));
}

/// A refused connection is final for some senders; a collector that hangs takes its two seconds before that.
#[tokio::test]
async fn the_listener_goes_last() {
    let world = World::start().await;
    let hanging = std::net::TcpListener::bind("127.0.0.1:0").expect("a port is free");
    let collector = hanging.local_addr().expect("it has an address");
    let mut gate =
        world.gate(&format!("server.drain_delay = \"0s\"\ntracing.otlp_endpoint = \"http://{collector}\"\n")).await;
    assert_eq!(gate.post(batch(["a"])).await.counts(), (1, 1));
    gate.signal("TERM");
    gate.wait_log(REFUSING).await;
    for _ in 0..50 {
        assert_eq!(gate.post(batch(["b"])).await.error(), (503, "shutting_down".into()));
    }
    assert_eq!(gate.end().await.code(), Some(0));
}
