//! A request that has begun to claim is finished, also when its sender hangs up.

use std::collections::{BTreeMap, BTreeSet};

use crate::support::{Connection, Event, Gate, OUTBOX, PATH, PENDING, World, batch, eventually, post};

/// Sends a batch of one and hangs up without waiting for the answer.
async fn send_and_hang_up(gate: &Gate, id: &str) {
    let mut connection = Connection::open(gate.address()).await.expect("hookgate listens");
    connection.send(&post(PATH, batch([id]).as_bytes())).await.expect("hookgate reads");
}

/// Sends a batch, hangs up while NATS does not answer, and waits until hookgate has noticed that.
async fn hang_up_once_claimed(world: &World, gate: &Gate, ids: &[String]) {
    let mut connection = Connection::open(gate.address()).await.expect("hookgate listens");
    connection.send(&post(PATH, batch(ids).as_bytes())).await.expect("hookgate reads");
    let all: BTreeSet<String> = ids.iter().cloned().collect();
    eventually("the ids are claimed", async || (world.redis.pending(PENDING).await == all).then_some(())).await;
    drop(connection);
    // There is one connection, see below: this one gets through once the other is gone.
    assert_eq!(gate.deliver("[]").await.counts(), (0, 0));
}

/// Shows when hookgate has dropped a connection: until then nobody else is let in.
const ONE_CONNECTION: &str = "server.max_connections = 1\n";

async fn published(world: &World) -> BTreeMap<String, String> {
    let events = world.nats.events().await;
    let tokens: BTreeMap<_, _> = events.iter().map(|event| (event.entity_id(), event.token().to_owned())).collect();
    assert_eq!(tokens.len(), events.len(), "no id has two events");
    tokens
}

fn ids(count: usize) -> Vec<String> {
    (0..count).map(|number| format!("id-{number}")).collect()
}

#[tokio::test]
async fn right_after_sending() {
    let world = World::start().await;
    let gate = world.gate("").await;
    let ids = ids(100);
    for id in &ids {
        send_and_hang_up(&gate, id).await;
    }
    // A request whose connection was gone before it was read may be nothing at all. What is claimed counts.
    eventually("every claimed id is published and settled", async || {
        let claimed = world.redis.pending(PENDING).await;
        let done = !claimed.is_empty() && world.redis.outbox(OUTBOX).await.is_empty();
        let published = if done { Box::pin(published(&world)).await } else { BTreeMap::new() };
        (done && published.into_keys().eq(claimed)).then_some(())
    })
    .await;

    gate.deliver(batch(&ids)).await;
    assert_eq!(published(&world).await.len(), ids.len(), "the retry of all publishes what is missing");
}

/// Nothing of it is done, and the place that it would have had is the next one's.
#[tokio::test]
async fn while_it_waits_for_a_place() {
    let world = World::start().await;
    let gate = world.gate("server.max_in_flight = 1").await;
    world.nats.freeze();
    let mut first = gate.busy_with(&post(PATH, batch(["a"]).as_bytes())).await;
    let open = async |count: usize| {
        let line = format!("hookgate_connections {count}\n");
        eventually(&line, async || gate.probe("/metrics").await.text().contains(&line).then_some(())).await;
    };
    let waiting = gate.send(&post(PATH, batch(["b"]).as_bytes())).await;
    open(2).await;
    drop(waiting);
    open(1).await;
    let metrics = gate.probe("/metrics").await;
    let not_refused = "hookgate_shed_total{reason=\"too_many_requests\"} 0";
    assert!(metrics.text().contains(not_refused), "it hung up, and did not wait to be refused: {}", metrics.text());
    world.nats.thaw();
    assert_eq!(first.answer().await.expect("it is answered").counts(), (1, 1));
    assert_eq!(gate.post(batch(["c"])).await.counts(), (1, 1));
    assert_eq!(world.redis.pending(PENDING).await.into_iter().collect::<Vec<_>>(), ["a", "c"]);
    assert_eq!(gate.post(batch(["b"])).await.counts(), (1, 1));
}

/// A large body is read by a thread of its own, and its sender can be gone before that has come to its end.
#[tokio::test]
async fn while_a_large_body_is_read() {
    let world = World::start().await;
    let gate = world.gate("").await;
    let body = format!(r#"[{{"id":"a","x":[{}1]}}]"#, "1,".repeat(6_000_000));
    let mut connection = Connection::open(gate.address()).await.expect("hookgate listens");
    connection.send(&post(PATH, body.as_bytes())).await.expect("hookgate reads");
    eventually("all of it has arrived", async || {
        let used = gate.probe("/v1/status").await.json()["limits"]["buffered_bytes"]["used"].as_u64()?;
        (used >= body.len() as u64).then_some(())
    })
    .await;
    drop(connection);
    eventually("its id is claimed, and its event published", async || {
        let claimed = world.redis.pending(PENDING).await;
        let published = Box::pin(published(&world)).await;
        (!claimed.is_empty() && published.into_keys().eq(claimed)).then_some(())
    })
    .await;
}

#[tokio::test]
async fn while_nats_hangs_for_a_moment() {
    let world = World::start().await;
    let gate = world.gate(ONE_CONNECTION).await;
    let ids = ids(20);
    world.nats.freeze();
    hang_up_once_claimed(&world, &gate, &ids).await;
    let tokens = world.redis.outbox(OUTBOX).await;
    assert_eq!(tokens.len(), ids.len(), "nothing was acknowledged");

    world.nats.thaw();
    world.redis.settled(OUTBOX).await;
    assert_eq!(published(&world).await, tokens, "the work went on without the sender");
}

#[tokio::test]
async fn while_nats_is_down_the_retry_publishes_under_the_same_token() {
    let mut world = World::start().await;
    let gate = world.gate(&format!("{ONE_CONNECTION}server.request_deadline = \"1s\"")).await;
    world.nats.kill();
    let ids = ids(20);
    hang_up_once_claimed(&world, &gate, &ids).await;
    let tokens = world.redis.outbox(OUTBOX).await;
    assert_eq!(tokens.len(), ids.len(), "every claim is in the outbox");
    // Takes until its deadline, and so longer than the work that was begun before.
    eventually("a retry has its turn and fails", async || {
        (gate.post(batch(&ids)).await.error() == (503, "not_published".into())).then_some(())
    })
    .await;

    world.nats.start_again().await;
    assert_eq!(gate.deliver(batch(&ids)).await.counts(), (0, 20));
    assert_eq!(published(&world).await, tokens);
    world.redis.settled(OUTBOX).await;
}

#[tokio::test]
async fn in_the_middle_of_the_body_claims_nothing() {
    let world = World::start().await;
    let gate = world.gate("server.max_in_flight = 1").await;
    let body = batch(ids(10));
    let request = post(PATH, body.as_bytes());
    let mut connection = Connection::open(gate.address()).await.expect("hookgate listens");
    connection.send(&request[..request.len() - 1]).await.expect("hookgate reads");
    drop(connection);

    // The only place is free again once the broken request is gone.
    gate.deliver(batch(["whole"])).await;
    assert_eq!(world.redis.pending(PENDING).await, BTreeSet::from(["whole".into()]));
    assert_eq!(world.nats.events().await.iter().map(Event::entity_id).collect::<Vec<_>>(), ["whole"]);
}
