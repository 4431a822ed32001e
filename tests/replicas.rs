//! Any number of replicas, asked for the same ids at the same time, claim each id once.

use std::collections::BTreeSet;

use futures_util::{StreamExt, stream};

use crate::support::{Event, NatsServer, OUTBOX, PENDING, RedisServer, World, batch, in_time};

const BATCHES: usize = 300;
const IDS: usize = 50;
/// Deliveries of each batch; each replica gets two of them.
const FOLD: usize = 6;
/// Requests at the same time.
const RACING: usize = 48;

#[tokio::test]
async fn three_replicas_race_for_the_same_ids() {
    let world = World::start().await;
    let gates = tokio::join!(world.gate(QUIET), world.gate(QUIET), world.gate(QUIET));
    let gates = [&gates.0, &gates.1, &gates.2];
    let bodies: Vec<_> =
        (0..BATCHES).map(|batch_number| batch((0..IDS).map(|id| format!("{batch_number}-{id}")))).collect();

    // The deliveries of one batch follow each other, so that they are on the way together.
    let deliveries = (0..BATCHES * FOLD).map(|number| gates[number % gates.len()].post(&bodies[number / FOLD]));
    let answers: Vec<_> = stream::iter(deliveries).buffer_unordered(RACING).collect().await;

    let counts = answers.iter().map(crate::support::Answer::counts);
    let new: u64 = counts.inspect(|(_, total)| assert_eq!(*total, 50)).map(|(new, _)| new).sum();
    assert_eq!(new, 15_000, "each id was new for one request only");
    let events = world.nats.events().await;
    assert_eq!(events.len(), BATCHES * IDS);
    let ids: BTreeSet<_> = events.iter().map(Event::entity_id).collect();
    assert_eq!(ids.len(), BATCHES * IDS, "one message an id");
    assert_eq!(ids, world.redis.pending(PENDING).await);
    world.redis.settled(OUTBOX).await;
}

/// 180,000 lines about single ids would tell nothing.
const QUIET: &str = r#"log.filter = "info,hookgate::entity=warn""#;

/// It renews its lease with every entry that is due again, and could keep all others from the outbox for good.
#[tokio::test]
async fn a_replica_that_may_not_publish_leaves_the_outbox_to_others() {
    const POSTS: usize = 150;
    let users = r#"
no_auth_user: "good"
authorization { users: [
  { user: "good", password: "x" },
  { user: "sick", password: "x", permissions: { publish: { deny: "vmh.>" } } },
] }
"#;
    let (redis, nats) = tokio::join!(RedisServer::start(), NatsServer::configured(users));
    let world = World { redis, nats };
    let settings = format!(
        "{QUIET}\nserver.request_deadline = \"1s\"\nnats.ack_timeout = \"500ms\"\noutbox.relay_after = \"2s\"\n"
    );
    let _good = world.gate(&settings).await;
    let url = world.nats.url().replace("://", "://sick:x@");
    let sick = world.gate(&format!("{settings}nats.url = \"{url}\"\n")).await;
    // Entries that come due one after the other, so that there is always one.
    let posts = (0..POSTS).map(|number| {
        let sick = &sick;
        async move { assert_eq!(sick.post(batch([format!("id-{number}")])).await.status, 503) }
    });
    in_time("the sick replica claims", stream::iter(posts).buffer_unordered(10).count()).await;
    world.redis.settled(OUTBOX).await;
    assert_eq!(world.nats.events().await.len(), POSTS);
}
