//! While NATS is down or hangs, an id stays claimed; its event gets into the stream once.

use std::{collections::BTreeSet, time::Duration};

use async_nats::jetstream::stream::Config;

use crate::support::{Connection, Event, Gate, OUTBOX, PATH, PENDING, World, batch, post};

const SETTINGS: &str = "server.request_deadline = \"2s\"\nnats.ack_timeout = \"500ms\"";
/// `EspoCRM` gives up after 10 s. What a busy machine adds to the deadline stays below that.
const PATIENCE: Duration = Duration::from_secs(8);

/// A batch meets a NATS that does not acknowledge: 503 in time, claimed and in the outbox. The token.
async fn left_in_flight(world: &World, gate: &Gate, id: &str) -> String {
    let answer = gate.post(batch([id])).await;
    // The attempts to publish end with the deadline of the request: on a busy machine either is first.
    let (status, code) = answer.error();
    assert!(status == 503 && ["not_published", "deadline"].contains(&code.as_str()), "{status} {code}");
    assert!(answer.took < PATIENCE, "the answer took {:?}", answer.took);
    assert!(world.redis.pending(PENDING).await.contains(id));
    world.redis.outbox(OUTBOX).await.remove(id).expect("an id in flight is in the outbox")
}

/// The sender's retry brings the event into the stream, once, under the token of the claim.
async fn retry_succeeds(world: &World, gate: &Gate, id: &str, token: &str) {
    assert_eq!(gate.deliver(batch([id])).await.counts(), (0, 1), "it was claimed before");
    let events = world.nats.events().await;
    let tokens: Vec<_> = events.iter().filter(|event| event.entity_id() == id).map(Event::token).collect();
    assert_eq!(tokens, [token]);
    world.redis.settled(OUTBOX).await;
    assert_eq!(gate.post(batch([id])).await.counts(), (0, 1), "it stays claimed until it is processed");
    assert!(world.redis.pending(PENDING).await.contains(id));
}

#[tokio::test]
async fn killed_and_started_again() {
    let mut world = World::start().await;
    let gate = world.gate(SETTINGS).await;
    assert_eq!(gate.post(batch(["before"])).await.counts(), (1, 1));
    world.nats.kill();

    let token = left_in_flight(&world, &gate, "a").await;
    assert_eq!(left_in_flight(&world, &gate, "a").await, token, "a retry does not claim again");

    world.nats.start_again().await;
    retry_succeeds(&world, &gate, "a", &token).await;
    assert_eq!(gate.post(batch(["before", "a", "b"])).await.counts(), (1, 3));
}

#[tokio::test]
async fn frozen_and_thawed() {
    let world = World::start().await;
    let gate = world.gate(SETTINGS).await;
    world.nats.freeze();

    let token = left_in_flight(&world, &gate, "a").await;
    // By now the client has noticed that the server does not answer its pings.
    gate.wait_store("nats", "unreachable").await;
    assert_eq!(left_in_flight(&world, &gate, "a").await, token);

    world.nats.thaw();
    retry_succeeds(&world, &gate, "a", &token).await;
}

#[tokio::test]
async fn the_retry_through_another_replica_publishes_under_the_same_token() {
    let mut world = World::start().await;
    let (first, second) = tokio::join!(world.gate(SETTINGS), world.gate(SETTINGS));
    world.nats.kill();
    let token = left_in_flight(&world, &first, "a").await;
    drop(first);

    world.nats.start_again().await;
    retry_succeeds(&world, &second, "a", &token).await;
}

#[tokio::test]
async fn a_restart_inside_the_deadline_is_waited_for() {
    let mut world = World::start().await;
    let gate = world.gate("").await;
    world.nats.kill();
    let mut waiting = Connection::open(gate.address()).await.expect("hookgate listens");
    waiting.send(&post(PATH, batch(["a", "b"]).as_bytes())).await.expect("hookgate reads");
    gate.wait_log("2 neue IDs").await;

    world.nats.start_again().await;
    let answer = waiting.answer().await.expect("it is answered");
    assert_eq!(answer.counts(), (2, 2), "this very request is answered 200");
    assert_eq!(world.nats.events().await.iter().map(Event::entity_id).collect::<Vec<_>>(), ["a", "b"]);
    world.redis.settled(OUTBOX).await;
}

#[tokio::test]
async fn one_id_without_acknowledgement_is_503_for_the_whole_batch() {
    let mut world = World::start().await;
    let gate = world.gate(SETTINGS).await;
    assert_eq!(gate.post(batch(["done"])).await.counts(), (1, 1));
    world.redis.settled(OUTBOX).await;
    world.nats.kill();

    assert_eq!(gate.post(batch(["done"])).await.counts(), (0, 1), "what is done needs no NATS");
    assert_eq!(gate.post(batch(["done", "new"])).await.error(), (503, "not_published".into()));

    world.nats.start_again().await;
    assert_eq!(gate.deliver(batch(["done", "new"])).await.counts(), (0, 2));
    assert_eq!(world.redis.pending(PENDING).await, BTreeSet::from(["done".into(), "new".into()]));
    let ids: Vec<_> = world.nats.events().await.iter().map(Event::entity_id).collect();
    assert_eq!(ids, ["done", "new"]);
}

/// As when something between the two drops packets silently: the connection is well, and all that is
/// published stays without an answer.
#[tokio::test]
async fn where_nothing_is_answered_for_long_a_new_connection_is_tried() {
    let world = World::start().await;
    let gate = world.gate(SETTINGS).await;
    assert_eq!(gate.post(batch(["before"])).await.counts(), (1, 1));
    let context = world.nats.jetstream().await;
    let config = world.nats.stream("HOOKGATE").await.expect("hookgate made it");
    let silent = Config { no_ack: true, ..config.clone() };
    context.update_stream(silent).await.expect("the operator may do that");
    let token = left_in_flight(&world, &gate, "a").await;
    gate.wait_log("NATS has answered nothing for 10s").await;

    context.update_stream(config).await.expect("the operator may do that");
    retry_succeeds(&world, &gate, "a", &token).await;
}
