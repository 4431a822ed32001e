//! The job of the step that hookgate replaces: the whole example of its document, and what follows from it.

use std::collections::{BTreeMap, BTreeSet};

use crate::support::{Event, OUTBOX, PENDING, SUBJECT, World, batch};

const EXAMPLE: &str = r#"[
  {
    "id": "entity-123",
    "name": "Max Mustermann",
    "createdAt": "2026-02-07T10:00:00Z"
  },
  {
    "id": "entity-456",
    "name": "Maria Schmidt"
  }
]"#;

#[tokio::test]
async fn the_example_of_the_replaced_step() {
    let world = World::start().await;
    let gate = world.gate("").await;

    let first = gate.post(EXAMPLE).await;
    assert_eq!(first.status, 200);
    assert_eq!(first.header("content-type"), Some("application/json"));
    assert_eq!(first.text(), r#"{"status":"received","action":"create","new_ids_count":2,"total_ids_in_batch":2}"#);
    let again = gate.post(EXAMPLE).await;
    assert_eq!(again.status, 200);
    assert_eq!(again.text(), r#"{"status":"received","action":"create","new_ids_count":0,"total_ids_in_batch":2}"#);

    assert_eq!(world.redis.pending(PENDING).await, BTreeSet::from(["entity-123".into(), "entity-456".into()]));
    world.redis.settled(OUTBOX).await;
    let mut redis = world.redis.connection().await;
    let lifetime: i64 = redis::cmd("TTL").arg(PENDING).query_async(&mut redis).await.expect("Redis knows TTL");
    assert_eq!(lifetime, -1, "pending until processed");

    let events = world.nats.events().await;
    let ids: Vec<_> = events.iter().map(Event::entity_id).collect();
    assert_eq!(ids, ["entity-123", "entity-456"]);
    for (index, event) in events.iter().enumerate() {
        assert_eq!(event.subject, SUBJECT);
        assert_payload(event, &ids[index]);
        assert_headers(event, index);
    }
    assert_ne!(events[0].headers["traceparent"], events[1].headers["traceparent"], "each event is a span of its own");
}

/// Members, their order, and the shape of the time: RFC 3339, UTC, milliseconds.
fn assert_payload(event: &Event, id: &str) {
    let before = format!(r#"{{"entity_id":"{id}","action":"create","source":"webhook","timestamp":""#);
    let time = event.payload.strip_prefix(&before).and_then(|rest| rest.strip_suffix("\"}"));
    let time = time.unwrap_or_else(|| panic!("{} has other members", event.payload));
    let shape: String = time.chars().map(|c| if c.is_ascii_digit() { '0' } else { c }).collect();
    assert_eq!(shape, "0000-00-00T00:00:00.000Z");
    let age = humantime::parse_rfc3339(time).expect("it is a time").elapsed().expect("it has passed");
    assert!(age.as_secs() < 60, "the time is that of the claim, not {age:?} ago");
}

fn assert_headers(event: &Event, index: usize) {
    let names: Vec<_> = event.headers.keys().map(String::as_str).collect();
    assert_eq!(names, ["Hookgate-Route", "Nats-Msg-Id", "traceparent"]);
    assert_eq!(event.headers["Hookgate-Route"], "vmh/beteiligte/create");
    let (trace, place) = event.token().split_once('-').expect("a token is a trace id and a place");
    assert!(is_hex(trace, 32), "{trace}");
    assert_eq!(place, index.to_string());
    let parent: Vec<_> = event.headers["traceparent"].split('-').collect();
    assert_eq!([parent[0], parent[1], parent[3]], ["00", trace, "01"]);
    assert!(is_hex(parent[2], 16), "{}", parent[2]);
}

fn is_hex(text: &str, length: usize) -> bool {
    text.len() == length && text.bytes().all(|byte| byte.is_ascii_digit() || (b'a'..=b'f').contains(&byte))
}

#[tokio::test]
async fn a_released_id_is_new_again_under_another_token() {
    let world = World::start().await;
    let gate = world.gate("").await;

    assert_eq!(gate.post(batch(["a", "b"])).await.counts(), (2, 2));
    world.redis.release(PENDING, "a").await;
    assert_eq!(gate.post(batch(["a", "b"])).await.counts(), (1, 2));

    let events = world.nats.events().await;
    let ids: Vec<_> = events.iter().map(Event::entity_id).collect();
    assert_eq!(ids, ["a", "b", "a"]);
    assert_ne!(events[0].token(), events[2].token());
}

#[tokio::test]
async fn an_empty_batch_a_single_object_and_an_id_that_is_a_number() {
    let world = World::start().await;
    let gate = world.gate("").await;

    assert_eq!(gate.post("[]").await.counts(), (0, 0));
    assert_eq!(gate.post(r#"{"id":"alone","name":"Test"}"#).await.counts(), (1, 1));
    assert_eq!(gate.post(r#"[{"id":42},{"id":"42"}]"#).await.counts(), (1, 1));

    let ids: Vec<_> = world.nats.events().await.iter().map(Event::entity_id).collect();
    assert_eq!(ids, ["alone", "42"]);
}

#[tokio::test]
async fn duplicates_inside_a_batch_and_across_batches_count_once() {
    let world = World::start().await;
    let gate = world.gate("").await;

    assert_eq!(gate.post(batch(["a", "b", "a", "a"])).await.counts(), (2, 2));
    // A sender's retry comes merged with newer items.
    assert_eq!(gate.post(batch(["b", "c", "a", "c"])).await.counts(), (1, 3));

    let ids: Vec<_> = world.nats.events().await.iter().map(Event::entity_id).collect();
    assert_eq!(ids, ["a", "b", "c"]);
}

#[tokio::test]
async fn routes_come_from_the_configuration_alone() {
    let world = World::start().await;
    let gate = world
        .gate(
            r#"
            [[routes]]
            flow = "vmh"
            entity = "beteiligte"
            action = "update"
            while_pending = "skip"

            [[routes]]
            flow = "crm"
            entity = "account"
            action = "delete"
            path = "/hooks/gone"
            subject = "crm.gone"
            pending_key = "gone"
            "#,
        )
        .await;

    let update = gate.post_to("/vmh/webhook/beteiligte/update", batch(["same-id"])).await;
    assert_eq!(update.text(), r#"{"status":"received","action":"update","new_ids_count":1,"total_ids_in_batch":1}"#);
    let delete = gate.post_to("/hooks/gone", batch(["same-id"])).await;
    assert_eq!(delete.text(), r#"{"status":"received","action":"delete","new_ids_count":1,"total_ids_in_batch":1}"#);
    assert_eq!(gate.post(batch(["same-id"])).await.error(), (404, "unknown_path".into()), "the list is replaced whole");

    for key in ["vmh:beteiligte:update_pending", "gone"] {
        assert_eq!(world.redis.pending(key).await, BTreeSet::from(["same-id".into()]), "{key}");
    }
    let events = world.nats.events().await;
    let routes: BTreeMap<_, _> =
        events.iter().map(|event| (&*event.subject, &*event.headers["Hookgate-Route"])).collect();
    let expected = [("crm.gone", "crm/account/delete"), ("vmh.beteiligte.update", "vmh/beteiligte/update")];
    assert_eq!(routes, BTreeMap::from(expected));
}

#[tokio::test]
async fn a_trial_needs_no_redis() {
    let world = World::start().await;
    let mut gate = world.gate("redis.url = \"memory:\"").await;
    assert_eq!(gate.post(batch(["a", "b"])).await.counts(), (2, 2));
    assert_eq!(gate.post(batch(["b", "c"])).await.counts(), (1, 2));

    let ids: BTreeSet<_> = world.nats.events().await.iter().map(Event::entity_id).collect();
    assert_eq!(ids, BTreeSet::from(["a".into(), "b".into(), "c".into()]));
    assert_eq!(world.redis.pending(PENDING).await, BTreeSet::new());
    let warned = gate.log().await.iter().any(|line| line.contains("WARN") && line.contains("memory:"));
    assert!(warned, "everybody who starts it so is told what it forgets");
}

#[tokio::test]
async fn a_batch_above_the_internal_step() {
    let world = World::start().await;
    let gate = world.gate("").await;
    let ids: Vec<_> = (0..2500).map(|number| format!("id-{number}")).collect();

    assert_eq!(gate.post(batch(&ids)).await.counts(), (2500, 2500));
    assert_eq!(gate.post(batch(&ids)).await.counts(), (0, 2500));

    let events = world.nats.events().await;
    let published: Vec<_> = events.iter().map(Event::entity_id).collect();
    assert_eq!(published, ids, "in the order of the batch");
    let tokens: BTreeSet<_> = events.iter().map(Event::token).collect();
    assert_eq!(tokens.len(), 2500);
    world.redis.settled(OUTBOX).await;
}
