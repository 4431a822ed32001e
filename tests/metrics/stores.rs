//! Metrics while Redis and NATS fail, hang and come back.

use std::time::Duration;

use super::{OTHER, ROUTE, TWO_ROUTES, assert_is, assert_items, assert_published, samples, wait_for};
use crate::support::{OUTBOX, World, batch, eventually};

const SHORT: &str = "server.request_deadline = \"1s\"\n";

#[tokio::test]
async fn events_that_the_relay_publishes_are_counted() {
    let mut world = World::start().await;
    let gate = world.gate("server.request_deadline = \"1s\"\noutbox.relay_after = \"1500ms\"").await;
    world.nats.kill();
    wait_for(&gate, "hookgate_nats_up", &[], 0.0).await;
    assert_eq!(gate.post(batch(["a", "b"])).await.error(), (503, "not_published".into()));
    assert_eq!(gate.post(batch(["a", "c"])).await.error(), (503, "not_published".into()));

    let now = samples(&gate).await;
    assert_items(&now, [3.0, 1.0, 0.0, 0.0, 0.0, 0.0]);
    assert_published(&now, [0.0, 0.0, 0.0]);
    assert_is(&now, "hookgate_http_requests_total", &[("route", ROUTE), ("code", "503")], 2.0);
    assert_is(&now, "hookgate_redis_up", &[], 1.0);
    assert_is(&now, "hookgate_nats_publish_duration_seconds_count", &[], 0.0);
    wait_for(&gate, "hookgate_outbox_entries", &[("route", ROUTE)], 3.0).await;
    wait_for(&gate, "hookgate_pending_ids", &[("route", ROUTE)], 3.0).await;
    eventually("the outbox grows old", async || {
        let age = samples(&gate).await.get("hookgate_outbox_oldest_age_seconds", &[("route", ROUTE)]);
        assert!(age < 60.0, "{age} s are longer than this test");
        (age > 2.0).then_some(())
    })
    .await;

    world.nats.start_again().await;
    wait_for(&gate, "hookgate_nats_up", &[], 1.0).await;
    world.redis.settled(OUTBOX).await;
    wait_for(&gate, "hookgate_outbox_entries", &[("route", ROUTE)], 0.0).await;
    wait_for(&gate, "hookgate_outbox_oldest_age_seconds", &[("route", ROUTE)], 0.0).await;
    assert_published(&samples(&gate).await, [0.0, 3.0, 0.0]);
    assert_eq!(gate.post(batch(["a"])).await.counts(), (0, 1));
    assert_items(&samples(&gate).await, [3.0, 1.0, 1.0, 0.0, 0.0, 0.0]);
}

#[tokio::test]
async fn events_published_without_a_claim_are_counted() {
    let mut world = World::start().await;
    let gate = world.gate(SHORT).await;
    assert_eq!(gate.post(batch(["a"])).await.counts(), (1, 1));
    wait_for(&gate, "hookgate_pending_ids", &[("route", ROUTE)], 1.0).await;
    world.redis.written().await;
    world.redis.kill();
    wait_for(&gate, "hookgate_redis_up", &[], 0.0).await;
    assert_eq!(gate.post(batch(["a", "b"])).await.counts(), (2, 2));
    let now = samples(&gate).await;
    assert_items(&now, [1.0, 0.0, 0.0, 0.0, 2.0, 0.0]);
    assert_published(&now, [1.0, 0.0, 2.0]);
    assert_is(&now, "hookgate_pending_ids", &[("route", ROUTE)], 1.0);
    world.redis.start_again().await;
    wait_for(&gate, "hookgate_redis_up", &[], 1.0).await;
}

#[tokio::test]
async fn nothing_at_the_admin_address_waits_for_stores_that_hang() {
    let world = World::start().await;
    let gate = world.gate(SHORT).await;
    world.nats.freeze();
    world.redis.freeze();
    wait_for(&gate, "hookgate_redis_up", &[], 0.0).await;
    wait_for(&gate, "hookgate_nats_up", &[], 0.0).await;
    for path in ["/metrics", "/v1/status", "/readyz", "/livez", "/"] {
        // What waits for a store takes as long each time; a busy machine does not.
        eventually(&format!("{path} answers sooner than any time-out of a store"), async || {
            let answer = gate.probe(path).await;
            assert_eq!(answer.status, 200, "{path}");
            (answer.took < Duration::from_millis(400)).then_some(())
        })
        .await;
    }
}

#[tokio::test]
async fn the_outbox_of_a_removed_route_is_counted() {
    let mut world = World::start().await;
    let mut both = world.gate(&format!("{SHORT}{TWO_ROUTES}")).await;
    world.nats.kill();
    let answer = both.post_to("/vmh/webhook/akte/delete", batch(["x", "y"])).await;
    assert_eq!(answer.error(), (503, "not_published".into()));
    both.kill();

    let gate = world.gate_unready("outbox.relay_after = \"9s\"").await;
    let labels = [("route", "vmh/akte/delete"), ("pending_key", "vmh:akte:delete_pending")];
    let entries = eventually("the orphan is named", async || {
        let entries = samples(&gate).await.find("hookgate_orphaned_outbox_entries", &labels)?;
        (entries > 0.0).then_some(entries)
    });
    assert!(super::same(entries.await, 2.0));
    let status = gate.probe("/v1/status").await.json();
    let orphan = &status["orphaned_outboxes"][0];
    assert_eq!((&orphan["name"], &orphan["subject"]), (&"vmh/akte/delete".into(), &"vmh.akte.delete".into()));
    assert_eq!(orphan["outbox"]["entries"], 2, "{status}");
    assert_eq!(samples(&gate).await.find("hookgate_outbox_entries", &[("route", "vmh/akte/delete")]), None);

    world.nats.start_again().await;
    wait_for(&gate, "hookgate_orphaned_outbox_entries", &labels, 0.0).await;
    wait_for(&gate, "hookgate_orphaned_outbox_oldest_age_seconds", &labels, 0.0).await;
    let relayed = [("route", "vmh/akte/delete"), ("via", "relay")];
    assert_is(&samples(&gate).await, "hookgate_events_published_total", &relayed, 2.0);
    assert_is(&samples(&gate).await, "hookgate_events_published_total", &[("route", ROUTE), ("via", "relay")], 0.0);
}

#[tokio::test]
async fn a_redis_that_refuses_to_count_costs_the_gauges_and_nothing_else() {
    let world = World::start().await;
    let mut redis = world.redis.connection().await;
    let denied = redis::cmd("ACL").arg("SETUSER").arg("default").arg("-scard").exec_async(&mut redis).await;
    denied.expect("Redis has users");
    let mut gate = world.gate("redis.on_unavailable = \"reject\"").await;
    gate.wait_log("does not say what it holds").await;
    assert_eq!(gate.post(batch(["a", "b"])).await.counts(), (2, 2));
    let allowed = redis::cmd("ACL").arg("SETUSER").arg("default").arg("+scard").exec_async(&mut redis).await;
    allowed.expect("Redis has users");
    wait_for(&gate, "hookgate_pending_ids", &[("route", ROUTE)], 2.0).await;

    let log = gate.log().await;
    let told = log.iter().filter(|line| line.contains("does not say what it holds")).count();
    assert_eq!(told, 1, "once, and not for every look");
    assert!(!log.iter().any(|line| line.contains("store is unreachable") || line.contains("store refuses")), "{log:?}");
}

#[tokio::test]
async fn a_trial_in_memory_is_counted_too() {
    let world = World::start().await;
    let gate = world.gate("redis.url = \"memory:\"").await;
    assert_eq!(gate.post(batch(["a", "b"])).await.counts(), (2, 2));
    wait_for(&gate, "hookgate_pending_ids", &[("route", ROUTE)], 2.0).await;
    wait_for(&gate, "hookgate_outbox_entries", &[("route", ROUTE)], 0.0).await;
    assert_is(&samples(&gate).await, "hookgate_http_requests_total", &[("route", OTHER), ("code", "503")], 0.0);
}
