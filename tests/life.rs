//! What becomes of an id after its claim: further webhooks while it is pending, and its release.

use std::collections::BTreeMap;

use redis::AsyncTypedCommands;

use crate::support::{Gate, OUTBOX, World, batch, eventually};

const UPDATES: &str = "vmh:beteiligte:update_pending";
const UPDATES_OUTBOX: &str = "{vmh:beteiligte:update_pending}:outbox";
const JOURNAL: &str = "{vmh:beteiligte:update_pending}:journal";
const MARKS: &str = "{vmh:beteiligte:update_pending}:marks";
const PATH: &str = "/vmh/webhook/beteiligte/update";

/// An update route, and what else it says.
fn update(more: &str) -> String {
    format!("[[routes]]\nflow = \"vmh\"\nentity = \"beteiligte\"\naction = \"update\"\n{more}\n")
}

/// A durable Redis, as `coalesce` wants it.
fn coalesce() -> String {
    format!("redis.durability = \"replica\"\n{}", update("while_pending = \"coalesce\""))
}

impl World {
    async fn journal(&self) -> BTreeMap<String, String> {
        let mut link = self.redis.connection().await;
        link.hgetall(JOURNAL).await.expect("Redis answers").into_iter().collect()
    }

    async fn tokens(&self, id: &str) -> Vec<String> {
        let events = self.nats.events().await;
        events.iter().filter(|event| event.entity_id() == id).map(|event| event.token().to_owned()).collect()
    }
}

async fn change(gate: &Gate, id: &str) -> (u64, u64) {
    gate.post_to(PATH, batch([id])).await.counts()
}

#[tokio::test]
async fn an_update_of_a_pending_id_is_published_too() {
    let world = World::start().await;
    let gate = world.gate(&update("")).await;
    assert_eq!(change(&gate, "a").await, (1, 1));
    assert_eq!(change(&gate, "a").await, (1, 1), "a change of its own");
    assert_eq!(world.tokens("a").await.len(), 2);
    world.redis.settled(UPDATES_OUTBOX).await;
    let newest = world.tokens("a").await.pop().expect("it is there");
    let entry = eventually("the newest event is in the journal", async || {
        world.journal().await.remove("a").filter(|entry| entry.ends_with(";2;;"))
    })
    .await;
    assert!(entry.starts_with(&newest), "{entry}");
    let first = entry.split(';').nth(1).expect("it has parts");
    assert!(!first.is_empty(), "it is as old as its first claim: {entry}");
}

#[tokio::test]
async fn a_second_create_is_a_duplicate() {
    let world = World::start().await;
    let gate = world.gate("").await;
    gate.deliver(batch(["a"])).await;
    assert_eq!(gate.post(batch(["a"])).await.counts(), (0, 1));
    world.redis.settled(OUTBOX).await;
    assert_eq!(world.tokens("a").await.len(), 1);
}

#[tokio::test]
async fn a_mark_that_nobody_confirms_is_published() {
    let world = World::start().await;
    // Redis has no replica, so that WAIT confirms nothing.
    let gate = world.gate(&coalesce()).await;
    assert_eq!(change(&gate, "a").await, (1, 1));
    assert_eq!(change(&gate, "a").await, (1, 1), "as under publish");
    assert_eq!(world.tokens("a").await.len(), 2);
    let mut link = world.redis.connection().await;
    assert_eq!(link.hlen(MARKS).await.expect("Redis answers"), 1, "the mark stays, and costs one more event");
}

#[tokio::test]
async fn a_route_without_a_journal_keeps_none() {
    let world = World::start().await;
    let gate = world.gate(&update("journal = false")).await;
    assert_eq!(change(&gate, "a").await, (1, 1));
    assert_eq!(change(&gate, "a").await, (1, 1));
    world.redis.settled(UPDATES_OUTBOX).await;
    assert_eq!(world.journal().await, BTreeMap::new());
    assert_eq!(world.redis.pending(UPDATES).await.len(), 1);
}
