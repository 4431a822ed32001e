//! `nats.delivery = "core"`, for servers without `JetStream`: an event reaches those who are subscribed.

use futures_util::StreamExt;

use crate::support::{Event, NatsServer, OUTBOX, PENDING, RedisServer, SUBJECT, World, batch, eventually, in_time};

const SETTINGS: &str = "nats.delivery = \"core\"\nserver.request_deadline = \"2s\"";

async fn world() -> World {
    let (redis, nats) = tokio::join!(RedisServer::start(), NatsServer::without_jetstream());
    World { redis, nats }
}

#[tokio::test]
async fn a_subscriber_gets_each_new_id_once() {
    let world = world().await;
    let gate = world.gate(SETTINGS).await;
    let client = world.nats.client().await;
    let mut subscriber = client.subscribe("vmh.>").await.expect("NATS takes subscriptions");
    // A message that comes round shows that NATS has read the subscription before it.
    client.publish("vmh.begin", "\"begin\"".into()).await.expect("NATS takes messages");
    let first = in_time("the beginning comes", subscriber.next()).await.expect("the subscription stays");
    assert_eq!(first.subject.as_str(), "vmh.begin");

    assert_eq!(gate.post(batch(["a", "b"])).await.counts(), (2, 2));
    // Until then a repeat publishes again, which without a stream nobody recognizes.
    world.redis.settled(OUTBOX).await;
    assert_eq!(gate.post(batch(["b", "c"])).await.counts(), (1, 2));

    let mut events = Vec::new();
    for _ in 0..3 {
        let message = in_time("an event comes", subscriber.next()).await.expect("the subscription stays");
        events.push(Event::from(message));
    }
    assert_eq!(events.iter().map(Event::entity_id).collect::<Vec<_>>(), ["a", "b", "c"]);
    assert!(events.iter().all(|event| event.subject == SUBJECT));
    let names: Vec<_> = events[0].headers.keys().map(String::as_str).collect();
    assert_eq!(names, ["Hookgate-Route", "Nats-Msg-Id", "traceparent"]);
    world.redis.settled(OUTBOX).await;

    client.publish("vmh.end", "\"end\"".into()).await.expect("NATS takes messages");
    let last = in_time("the end comes", subscriber.next()).await.expect("the subscription stays");
    assert_eq!(last.subject.as_str(), "vmh.end", "no event came twice");
}

#[tokio::test]
async fn nobody_subscribed_is_no_failure() {
    let world = world().await;
    let gate = world.gate(SETTINGS).await;
    assert_eq!(gate.post(batch(["a"])).await.counts(), (1, 1));
    assert_eq!(gate.post(batch(["a"])).await.counts(), (0, 1));
}

#[tokio::test]
async fn without_nats_the_sender_comes_back() {
    let mut world = world().await;
    let gate = world.gate(SETTINGS).await;
    world.nats.kill();
    assert_eq!(gate.post(batch(["a"])).await.error(), (503, "not_published".into()));
    assert!(world.redis.pending(PENDING).await.contains("a"));

    world.nats.start_again().await;
    assert_eq!(gate.deliver(batch(["a"])).await.counts(), (0, 1));
    world.redis.settled(OUTBOX).await;
}

#[tokio::test]
async fn a_frozen_nats_is_not_taken_for_one_that_took_the_event() {
    let world = world().await;
    let gate = world.gate(SETTINGS).await;
    world.nats.freeze();
    let answer = gate.post(batch(["a"])).await;
    assert_eq!(answer.error(), (503, "not_published".into()));
    assert!(world.redis.outbox(OUTBOX).await.contains_key("a"));

    world.nats.thaw();
    assert_eq!(gate.deliver(batch(["a"])).await.counts(), (0, 1));
    world.redis.settled(OUTBOX).await;
}

#[tokio::test]
async fn a_server_that_lets_it_hear_no_answers_for_a_while_is_asked_again() {
    let users = |denied: &str| {
        let gate = format!(
            "user: gate, password: right, permissions: {{ subscribe: {{ allow: \">\", deny: \"{denied}\" }} }}"
        );
        format!(
            "authorization {{ users = [ {{ user: operator, password: op }}, {{ {gate} }} ] }}\nno_auth_user: operator\n"
        )
    };
    let (granted, withdrawn) = (users("nothing"), users("_INBOX.hookgate.>"));
    let (redis, nats) = tokio::join!(RedisServer::start(), NatsServer::configured(&granted));
    let world = World { redis, nats };
    let url = world.nats.url().replace("nats://", "nats://gate:right@");
    let gate = world.gate(&format!("nats.url = \"{url}\"\n{SETTINGS}")).await;
    assert_eq!(gate.post(batch(["a"])).await.counts(), (1, 1));

    world.nats.configure(&withdrawn);
    let problem = gate.wait_store("nats", "refused").await;
    assert!(problem.contains("_INBOX.hookgate"), "{problem}");
    assert_eq!(gate.post(batch(["b"])).await.error(), (503, "not_published".into()));
    world.nats.configure(&granted);
    assert_eq!(gate.deliver(batch(["b"])).await.counts(), (0, 1));
    gate.wait_store("nats", "up").await;
}

/// A server gives a permission back without a word. What it takes from then on is not refused on the strength of an old
/// denial: it would be published again with each try, and never settled.
#[tokio::test]
async fn a_permission_that_is_given_back_counts_from_then_on() {
    let users = |denied: &str| {
        let gate =
            format!("user: gate, password: right, permissions: {{ publish: {{ allow: \">\", deny: \"{denied}\" }} }}");
        format!(
            "authorization {{ users = [ {{ user: operator, password: op }}, {{ {gate} }} ] }}\nno_auth_user: operator\n"
        )
    };
    let (granted, withdrawn) = (users("nothing"), users(SUBJECT));
    let (redis, nats) = tokio::join!(RedisServer::start(), NatsServer::configured(&granted));
    let world = World { redis, nats };
    let url = world.nats.url().replace("nats://", "nats://gate:right@");
    let gate = world.gate(&format!("nats.url = \"{url}\"\n{SETTINGS}")).await;
    assert_eq!(gate.post(batch(["a"])).await.counts(), (1, 1));

    world.nats.configure(&withdrawn);
    // NATS reads its settings some moments later: an id that went out before that would be a duplicate from then on.
    let mut ids = 0..;
    let refused = eventually("it is refused", async || {
        let id = format!("b-{}", ids.next()?);
        (gate.post(batch([id.as_str()])).await.status == 503).then_some(id)
    })
    .await;
    gate.wait_store("nats", "refused").await;
    world.nats.configure(&granted);
    gate.deliver(batch([refused.as_str()])).await;
    gate.wait_store("nats", "up").await;
    world.redis.settled(OUTBOX).await;
}

/// Of several denials at the same time each counts for its own subject.
#[tokio::test]
async fn what_is_denied_on_two_routes_at_once_is_accepted_on_neither() {
    let users = "authorization { users = [ { user: operator, password: op },
        { user: gate, password: right, permissions: { publish: { allow: \">\", deny: \"vmh.>\" } } } ] }
        no_auth_user: operator\n";
    let (redis, nats) = tokio::join!(RedisServer::start(), NatsServer::configured(users));
    let world = World { redis, nats };
    let url = world.nats.url().replace("nats://", "nats://gate:right@");
    let entities = ["a", "b", "c"];
    let routes =
        entities.map(|entity| format!("[[routes]]\nflow = \"vmh\"\nentity = \"{entity}\"\naction = \"create\"\n"));
    let gate = world.gate(&format!("nats.url = \"{url}\"\n{SETTINGS}\n{}", routes.concat())).await;
    let one = |place: usize| {
        let (gate, entity) = (&gate, entities[place % entities.len()]);
        async move {
            let path = format!("/vmh/webhook/{entity}/create");
            gate.post_to(&path, batch((0..50).map(|id| format!("id-{place}-{id}")))).await.status
        }
    };
    let answers = futures_util::future::join_all((0..60).map(one)).await;
    assert!(answers.iter().all(|status| *status == 503), "{answers:?}");
}
