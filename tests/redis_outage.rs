//! While Redis is down or hangs, every answer is in time; when it is back, nothing has to be restarted.

use std::{collections::BTreeSet, time::Duration};

use crate::support::{Answer, Event, Gate, OUTBOX, PENDING, World, batch, eventually};

/// What `request_deadline` allows in the tests that set it.
const DEADLINE: Duration = Duration::from_secs(2);

fn ids(events: &[Event]) -> Vec<String> {
    events.iter().map(Event::entity_id).collect()
}

fn assert_in_time(answer: &Answer) {
    assert!(answer.took < DEADLINE, "the answer took {:?}", answer.took);
}

/// Ids are deduplicated again: of two webhooks for a new id, the second finds it pending.
async fn wait_deduplicating(gate: &Gate) {
    gate.wait_store("redis", "up").await;
    let mut probe = 0;
    eventually("ids are deduplicated again", async || {
        probe += 1;
        let body = batch([format!("probe-{probe}")]);
        gate.post(&body).await.counts();
        (gate.post(&body).await.counts() == (0, 1)).then_some(())
    })
    .await;
}

#[tokio::test]
async fn published_without_deduplication_while_redis_is_gone() {
    let mut world = World::start().await;
    let gate = world.gate("server.request_deadline = \"2s\"").await;
    assert_eq!(gate.post(batch(["before"])).await.counts(), (1, 1));
    world.redis.written().await;
    world.redis.kill();

    for _ in 0..2 {
        let answer = gate.post(batch(["a", "b"])).await;
        assert_eq!(answer.counts(), (2, 2), "all of them count as new");
        assert_in_time(&answer);
    }
    let warning = gate.wait_log("published without deduplication").await;
    assert!(warning.contains("WARN") && warning.contains("vmh/beteiligte/create"), "{warning}");
    assert_eq!(ids(&world.nats.events().await), ["before", "a", "b", "a", "b"]);

    world.redis.start_again().await;
    wait_deduplicating(&gate).await;
    assert_eq!(gate.post(batch(["before"])).await.counts(), (0, 1), "what was claimed before is still claimed");
    assert_eq!(gate.post(batch(["a"])).await.counts(), (1, 1), "what was not claimed is not");
}

#[tokio::test]
async fn published_without_deduplication_while_redis_hangs() {
    let world = World::start().await;
    let gate = world.gate("server.request_deadline = \"2s\"").await;
    world.redis.freeze();

    for id in ["a", "b"] {
        let answer = gate.post(batch([id])).await;
        assert_eq!(answer.counts(), (1, 1));
        assert_in_time(&answer);
    }
    gate.wait_log("published without deduplication").await;
    assert_eq!(ids(&world.nats.events().await), ["a", "b"]);

    world.redis.thaw();
    wait_deduplicating(&gate).await;
    // Redis read the claim of `a` when it woke up, long after the event, which had a token of its own: the claim has an
    // event, too.
    assert_eq!(gate.post(batch(["a"])).await.counts().1, 1);
    world.redis.settled(OUTBOX).await;
    assert_eq!(gate.post(batch(["a"])).await.counts(), (0, 1));
    let events = ids(&world.nats.events().await);
    assert!(matches!(events.iter().filter(|id| *id == "a").count(), 1 | 2), "{events:?}");
}

#[tokio::test]
async fn refused_while_redis_is_gone_if_so_configured() {
    let mut world = World::start().await;
    let gate = world.gate("server.request_deadline = \"2s\"\nredis.on_unavailable = \"reject\"").await;
    world.redis.kill();

    let answer = gate.post(batch(["a"])).await;
    assert_eq!(answer.error(), (503, "pending_store_unavailable".into()));
    assert_in_time(&answer);
    assert_eq!(world.nats.events().await, []);

    world.redis.start_again().await;
    assert_eq!(gate.deliver(batch(["a"])).await.counts(), (1, 1));
    assert_eq!(gate.post(batch(["a"])).await.counts(), (0, 1));
    assert_eq!(ids(&world.nats.events().await), ["a"]);
}

#[tokio::test]
async fn refused_while_redis_hangs_if_so_configured() {
    let world = World::start().await;
    let gate = world.gate("server.request_deadline = \"2s\"\nredis.on_unavailable = \"reject\"").await;
    world.redis.freeze();

    let answer = gate.post(batch(["a"])).await;
    assert_eq!(answer.error(), (503, "pending_store_unavailable".into()));
    assert_in_time(&answer);
    assert_eq!(world.nats.events().await, []);

    world.redis.thaw();
    gate.deliver(batch(["a"])).await;
    assert_eq!(gate.post(batch(["a"])).await.counts(), (0, 1));
    assert_eq!(ids(&world.nats.events().await), ["a"], "once, whether or not the first claim was carried out");
    world.redis.settled(OUTBOX).await;
}

#[tokio::test]
async fn a_connection_that_was_cut_while_idle_costs_no_deduplication() {
    let world = World::start().await;
    let mut gate = world.gate("").await;
    assert_eq!(gate.post(batch(["a"])).await.counts(), (1, 1));
    world.redis.settled(OUTBOX).await;

    for round in 1..=5 {
        let mut redis = world.redis.connection().await;
        let cut = redis::cmd("CLIENT").arg("KILL").arg("TYPE").arg("normal").query_async::<usize>(&mut redis).await;
        assert!(cut.is_ok_and(|connections| connections >= 1), "hookgate was connected");
        let answer = gate.post(batch([String::from("a"), format!("b{round}")])).await;
        assert_eq!(answer.counts(), (1, 2), "round {round}");
    }

    assert_eq!(ids(&world.nats.events().await), ["a", "b1", "b2", "b3", "b4", "b5"]);
    let warned = gate.log().await.iter().any(|line| line.contains("without deduplication"));
    assert!(!warned, "no batch was published without a claim");
}

#[tokio::test]
async fn a_script_cache_that_was_emptied_is_filled_again() {
    let world = World::start().await;
    let gate = world.gate("redis.on_unavailable = \"reject\"").await;
    let mut redis = world.redis.connection().await;
    redis::cmd("SCRIPT").arg("FLUSH").exec_async(&mut redis).await.expect("Redis empties its cache");

    assert_eq!(gate.post(batch(["a"])).await.counts(), (1, 1));
    assert_eq!(world.redis.pending(PENDING).await, BTreeSet::from(["a".into()]));
    world.redis.settled(OUTBOX).await;
}

#[tokio::test]
async fn with_both_stores_down_the_sender_comes_back() {
    let mut world = World::start().await;
    let gate = world.gate("server.request_deadline = \"2s\"").await;
    world.redis.kill();
    world.nats.kill();

    let answer = gate.post(batch(["a"])).await;
    assert_eq!(answer.error(), (503, "not_published".into()));
    assert!(answer.took < DEADLINE, "the answer took {:?}", answer.took);
    assert_eq!(gate.probe("/livez").await.status, 200);
    assert_eq!(gate.probe("/readyz").await.status, 200, "an instance that answers 503 is better than none");

    tokio::join!(world.redis.start_again(), world.nats.start_again());
    wait_deduplicating(&gate).await;
    assert_eq!(gate.deliver(batch(["a"])).await.counts(), (1, 1));
    assert_eq!(ids(&world.nats.events().await).iter().filter(|id| *id == "a").count(), 1);
}

/// A key of the wrong type disables its own route and no other.
#[tokio::test]
async fn a_key_of_another_kind_is_about_one_route() {
    let world = World::start().await;
    let mut connection = world.redis.connection().await;
    redis::cmd("SET")
        .arg("vmh:other:create_pending")
        .arg("x")
        .exec_async(&mut connection)
        .await
        .expect("Redis takes it");
    let route = |entity: &str| format!("[[routes]]\nflow = \"vmh\"\nentity = \"{entity}\"\naction = \"create\"\n");
    let settings = format!("redis.on_unavailable = \"reject\"\n{}{}", route("beteiligte"), route("other"));
    let gate = world.gate(&settings).await;
    gate.wait_log("a key of this route is something else").await;
    assert_eq!(gate.post(batch(["a"])).await.counts(), (1, 1));
    assert_eq!(gate.post(batch(["a"])).await.counts(), (0, 1));
    let refused = gate.post_to("/vmh/webhook/other/create", batch(["a"])).await;
    assert_eq!(refused.error(), (503, "pending_store_unavailable".into()));
}
