//! What becomes of an id after its claim: further webhooks while it is pending, and its release.

use std::{
    collections::BTreeMap,
    time::{Duration, SystemTime},
};

use async_nats::Message;
use futures_util::StreamExt;
use redis::{AsyncTypedCommands, aio::MultiplexedConnection};
use serde_json::json;
use tokio::io::AsyncWriteExt;

use crate::support::{Gate, OUTBOX, PENDING, World, batch, eventually, in_time, run, within};

const UPDATES: &str = "vmh:beteiligte:update_pending";
const UPDATES_OUTBOX: &str = "{vmh:beteiligte:update_pending}:outbox";
const JOURNAL: &str = "{vmh:beteiligte:update_pending}:journal";
const SCAN: &str = "{vmh:beteiligte:update_pending}:scan";
const MARKS: &str = "{vmh:beteiligte:update_pending}:marks";
const PATH: &str = "/vmh/webhook/beteiligte/update";

/// Has the relay publish what is a few seconds old.
const SOON: &str = "server.request_deadline = \"2s\"\nserver.body_read_timeout = \"1s\"\nnats.ack_timeout = \"1s\"\noutbox.relay_after = \"3s\"";

/// As a mark of a moment ago has it.
fn now_millis() -> String {
    let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).expect("it is later");
    now.as_millis().to_string()
}

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
    // From before the journal was turned off: it says nothing of the present claim.
    let old = "0197e2c5a0007abc8def0123456789ab-0";
    let mut link = world.redis.connection().await;
    link.hset(JOURNAL, "a", format!("{old};;1;;")).await.expect("Redis answers");
    let release = async |more| service(&world, of_update(&more)).await.expect("it is no error")["released"].clone();
    assert_eq!(release(json!({ "entity_id": "a", "token": old })).await, json!([]));
    assert_eq!(world.redis.pending(UPDATES).await.len(), 1);
    assert_eq!(release(json!({ "entity_id": "a" })).await, json!(["a"]));
    assert_eq!(world.journal().await, BTreeMap::new());
}

/// What the service answers to a request, and the code of its error, if it is one.
async fn service(world: &World, request: serde_json::Value) -> Result<serde_json::Value, u16> {
    let client = world.nats.client().await;
    let request = request.to_string();
    let answer = eventually("the service answers", async || {
        client.request("hookgate.release", request.clone().into()).await.ok()
    })
    .await;
    if let Some(code) = answer.headers.as_ref().and_then(|headers| headers.get("Nats-Service-Error-Code")) {
        return Err(code.as_str().parse().expect("it is a number"));
    }
    Ok(serde_json::from_slice(&answer.payload).expect("it is JSON"))
}

fn of_update(more: &serde_json::Value) -> serde_json::Value {
    let mut request = json!({ "flow": "vmh", "entity": "beteiligte", "action": "update" });
    request.as_object_mut().expect("it is an object").extend(more.as_object().expect("it is an object").clone());
    request
}

#[tokio::test]
async fn the_service_releases_ids() {
    let world = World::start().await;
    let gate = world.gate(&update("")).await;
    assert_eq!(gate.post_to(PATH, batch(["a", "b", "c"])).await.counts(), (3, 3));
    world.redis.settled(UPDATES_OUTBOX).await;
    let answer = service(&world, of_update(&json!({ "entity_ids": ["a", "x", "a"], "entity_id": "b" }))).await;
    assert_eq!(answer, Ok(json!({ "released": ["a", "b"], "not_pending": ["x"], "republished": [] })));
    assert_eq!(world.redis.pending(UPDATES).await, ["c".to_owned()].into());
    assert_eq!(world.journal().await.into_keys().collect::<Vec<_>>(), ["c"]);
    let again = service(&world, of_update(&json!({ "entity_id": "a" }))).await;
    assert_eq!(
        again,
        Ok(json!({ "released": [], "not_pending": ["a"], "republished": [] })),
        "repeating it is harmless"
    );
    for (request, code) in [
        (of_update(&json!({ "entity_ids": vec!["a"; 1001] })), 413),
        (of_update(&json!({})), 400),
        (of_update(&json!({ "entity_id": "a", "token": "x" })), 400),
        (json!({ "flow": "vmh", "entity": "beteiligte", "action": "delete", "entity_id": "a" }), 404),
        (json!([]), 400),
    ] {
        assert_eq!(service(&world, request).await, Err(code));
    }
}

#[tokio::test]
async fn a_release_with_a_token_is_of_that_claim_alone() {
    let world = World::start().await;
    let gate = world.gate(&update("")).await;
    change(&gate, "a").await;
    change(&gate, "a").await;
    world.redis.settled(UPDATES_OUTBOX).await;
    let [old, new] = &world.tokens("a").await[..] else { panic!("there are two events") };
    let release = async |token: &str| service(&world, of_update(&json!({ "entity_id": "a", "token": token }))).await;
    assert_eq!(release(old).await, Ok(json!({ "released": [], "not_pending": ["a"], "republished": [] })));
    assert_eq!(release(new).await, Ok(json!({ "released": ["a"], "not_pending": [], "republished": [] })));
    assert_eq!(release(new).await, Ok(json!({ "released": [], "not_pending": ["a"], "republished": [] })));
}

#[tokio::test]
async fn a_marked_id_is_published_at_its_release() {
    let world = World::start().await;
    let gate = world.gate(&coalesce()).await;
    change(&gate, "a").await;
    world.redis.settled(UPDATES_OUTBOX).await;
    // As a webhook whose mark was confirmed leaves it.
    let mut link = world.redis.connection().await;
    link.hset(MARKS, "a", "1").await.expect("Redis answers");
    let answer = service(&world, of_update(&json!({ "entity_id": "a" }))).await;
    assert_eq!(answer, Ok(json!({ "released": [], "not_pending": [], "republished": ["a"] })));
    let tokens = world.tokens("a").await;
    assert_eq!(tokens.len(), 2);
    assert_eq!(world.redis.pending(UPDATES).await.len(), 1, "it waits for the release of that event");
    assert_eq!(link.hlen(MARKS).await.expect("Redis answers"), 0);
    world.redis.settled(UPDATES_OUTBOX).await;
    let answer = service(&world, of_update(&json!({ "entity_id": "a", "token": tokens[1] }))).await;
    assert_eq!(answer, Ok(json!({ "released": ["a"], "not_pending": [], "republished": [] })));
}

/// An update route whose ids are released by acknowledgements.
fn on_ack(consumers: &str, more: &str) -> String {
    update(&format!("release = \"ack\"\nconsumers = [{consumers}]\n{more}"))
}

impl World {
    /// A durable consumer that samples all acknowledgements.
    async fn consumer(&self, name: &str, more: serde_json::Value) {
        let mut config = json!({
            "durable_name": name, "ack_policy": "explicit", "ack_wait": 30_000_000_000_u64, "max_deliver": -1,
            "sample_freq": "100%", "deliver_policy": "all", "replay_policy": "instant",
        });
        config.as_object_mut().expect("an object").extend(more.as_object().expect("an object").clone());
        let request = json!({ "stream_name": "HOOKGATE", "config": config });
        let answer = self.nats.api(&format!("CONSUMER.DURABLE.CREATE.HOOKGATE.{name}"), &request).await;
        assert!(answer.get("error").is_none(), "{answer}");
    }

    /// The next message of a consumer.
    async fn next(&self, consumer: &str) -> Message {
        self.next_of("HOOKGATE", consumer).await
    }

    async fn next_of(&self, stream: &str, consumer: &str) -> Message {
        let client = self.nats.client().await;
        let inbox = client.new_inbox();
        let mut answers = client.subscribe(inbox.clone()).await.expect("NATS answers");
        let request = json!({ "batch": 1, "expires": 20_000_000_000_u64 }).to_string();
        let subject = format!("$JS.API.CONSUMER.MSG.NEXT.{stream}.{consumer}");
        client.publish_with_reply(subject, inbox, request.into()).await.expect("NATS takes it");
        in_time("an event comes", answers.next()).await.expect("NATS answers")
    }

    /// Answers an event, and waits until the server has it.
    async fn answer(&self, message: &Message, answer: &str) {
        let client = self.nats.client().await;
        let reply = message.reply.clone().expect("it wants an answer");
        client.request(reply, answer.to_owned().into()).await.expect("the server confirms");
    }

    async fn nothing_is_pending(&self) {
        eventually("nothing is pending", async || {
            (self.redis.pending(UPDATES).await.is_empty() && self.journal().await.is_empty()).then_some(())
        })
        .await;
    }
}

#[tokio::test]
async fn an_id_is_free_once_its_consumer_has_acknowledged() {
    let world = World::start().await;
    let gate = world.gate_unready(&on_ack("\"sync\"", "")).await;
    eventually("there is a stream", async || world.nats.stream("HOOKGATE").await).await;
    world.consumer("sync", json!({})).await;
    gate.wait_ready().await;
    assert_eq!(change(&gate, "a").await, (1, 1));
    let event = world.next("sync").await;
    assert_eq!(world.redis.pending(UPDATES).await.len(), 1);
    // The original's update case: a second webhook while the first is processed.
    assert_eq!(change(&gate, "a").await, (1, 1));
    world.answer(&event, "+ACK").await;
    let second = world.next("sync").await;
    world.all_is_carried_out().await;
    assert_eq!(world.redis.pending(UPDATES).await.len(), 1, "the answer was for the first event");
    world.answer(&second, "+ACK").await;
    world.nothing_is_pending().await;
    assert_eq!(world.tokens("a").await.len(), 2);
}

#[tokio::test]
async fn each_consumer_has_to_acknowledge() {
    let world = World::start().await;
    let gate = world.gate_unready(&on_ack("\"one\", \"two\"", "")).await;
    eventually("there is a stream", async || world.nats.stream("HOOKGATE").await).await;
    world.consumer("one", json!({})).await;
    world.consumer("two", json!({})).await;
    gate.wait_ready().await;
    change(&gate, "a").await;
    let (one, two) = (world.next("one").await, world.next("two").await);
    world.answer(&one, "+ACK").await;
    eventually("the journal says who has answered", async || {
        world.journal().await.get("a").filter(|entry| entry.ends_with(";one:a")).map(|_| ())
    })
    .await;
    assert_eq!(world.redis.pending(UPDATES).await.len(), 1);
    world.answer(&two, "+ACK").await;
    world.nothing_is_pending().await;
}

#[tokio::test]
async fn what_a_consumer_gives_up_is_a_dead_letter() {
    let world = World::start().await;
    let settings = on_ack("\"sync\"", "");
    let gate = world.gate_unready(&settings).await;
    eventually("there is a stream", async || world.nats.stream("HOOKGATE").await).await;
    world.consumer("sync", json!({})).await;
    gate.wait_ready().await;
    change(&gate, "a").await;
    let event = world.next("sync").await;
    world.answer(&event, "+TERM").await;
    world.nothing_is_pending().await;
    let list = run(&(world.settings() + &settings), &["dead-letters", "list", "--output", "json"]).rows();
    assert_eq!((list.len(), &list[0]["reason"]), (1, &json!("gave_up")));
    let entry = list[0]["entry"].as_str().expect("it has a name");
    let shown = run(&(world.settings() + &settings), &["dead-letters", "show", entry]).good();
    assert!(shown.contains("\"entity_id\":\"a\""), "{shown}");
    let metrics = gate.probe("/metrics").await;
    let series = "hookgate_given_up_total{route=\"vmh/beteiligte/update\",consumer=\"sync\"} 1";
    assert!(metrics.text().contains(series), "{}", metrics.text());
    let status = gate.probe("/v1/status").await.json();
    assert_eq!(status["routes"][0]["given_up"], 1, "{status}");
    let consumers = run(&(world.settings() + &settings), &["consumers", "list", "--output", "json"]).rows();
    assert_eq!(consumers[0]["given_up"], 1, "{consumers:?}");
}

#[tokio::test]
async fn what_was_given_up_is_kept_where_it_shall_be() {
    let world = World::start().await;
    let gate = world.gate_unready(&on_ack("\"sync\"", "on_give_up = \"keep\"")).await;
    eventually("there is a stream", async || world.nats.stream("HOOKGATE").await).await;
    world.consumer("sync", json!({})).await;
    gate.wait_ready().await;
    change(&gate, "a").await;
    let event = world.next("sync").await;
    world.answer(&event, "+TERM").await;
    eventually("the journal says so", async || {
        world.journal().await.get("a").filter(|entry| entry.ends_with(";sync:g")).map(|_| ())
    })
    .await;
    assert_eq!(world.redis.pending(UPDATES).await.len(), 1);
    change(&gate, "a").await;
    let event = world.next("sync").await;
    world.answer(&event, "+ACK").await;
    world.nothing_is_pending().await;
}

/// A sample is sent at most once. Here none is ever sent.
#[tokio::test]
async fn an_answer_that_was_lost_costs_one_more_event() {
    let world = World::start().await;
    let gate = world.gate_unready(&on_ack("\"sync\"", "max_redeliveries = 2")).await;
    eventually("there is a stream", async || world.nats.stream("HOOKGATE").await).await;
    world.consumer("sync", json!({ "sample_freq": "0%" })).await;
    gate.wait_ready().await;
    change(&gate, "a").await;
    let event = world.next("sync").await;
    world.answer(&event, "+ACK").await;
    let again = within(Duration::from_secs(60), async || {
        let events = world.nats.events().await;
        (events.len() == 2).then(|| events[1].headers.get("Hookgate-Redelivery").map(ToString::to_string))
    })
    .await;
    assert_eq!(again, Some(Some("1".to_owned())), "it is published once more, and says so");
    // Now the consumer samples.
    world.consumer("sync", json!({})).await;
    let event = world.next("sync").await;
    world.answer(&event, "+ACK").await;
    world.nothing_is_pending().await;
    assert_eq!(world.tokens("a").await.len(), 2);
}

#[tokio::test]
async fn what_srem_leaves_in_the_journal_is_dropped() {
    let world = World::start().await;
    let gate = world.gate(&update("")).await;
    change(&gate, "a").await;
    world.redis.settled(UPDATES_OUTBOX).await;
    world.redis.release(UPDATES, "a").await;
    let gone = within(Duration::from_secs(40), async || world.journal().await.is_empty().then_some(())).await;
    assert_eq!(gone, Some(()));
}

#[tokio::test]
async fn a_mark_is_honoured_after_a_plain_srem() {
    let world = World::start().await;
    let gate = world.gate(&update("")).await;
    change(&gate, "a").await;
    world.redis.settled(UPDATES_OUTBOX).await;
    let mut link = world.redis.connection().await;
    link.hset(MARKS, "a", now_millis()).await.expect("Redis answers");
    world.redis.release(UPDATES, "a").await;
    eventually("it is published once more", async || (world.tokens("a").await.len() == 2).then_some(())).await;
    assert_eq!(link.hlen(MARKS).await.expect("Redis answers"), 0);
}

/// An entry of the outbox goes to the subject that it was claimed for, also when a mark asks for another event.
#[tokio::test]
async fn a_release_of_a_marked_id_leaves_the_event_of_another_address() {
    let world = World::start().await;
    let gate = world.gate(&coalesce()).await;
    change(&gate, "a").await;
    world.redis.settled(UPDATES_OUTBOX).await;
    let other = "0197e2c5a0007abc8def0123456789ab-500000000";
    let address =
        json!({ "flow": "vmh", "entity": "beteiligte", "action": "update", "subject": "vmh.old" }).to_string();
    let mut link = world.redis.connection().await;
    link.hset("{vmh:beteiligte:update_pending}:addresses", "5", address).await.expect("Redis answers");
    link.hset(UPDATES_OUTBOX, "a", other).await.expect("Redis answers");
    link.hset(MARKS, "a", "1").await.expect("Redis answers");
    let answer = service(&world, of_update(&json!({ "entity_id": "a" }))).await;
    assert_eq!(answer, Ok(json!({ "released": ["a"], "not_pending": [], "republished": [] })));
    let outbox = async |link: &mut MultiplexedConnection| link.hget(UPDATES_OUTBOX, "a").await.expect("Redis answers");
    assert_eq!(outbox(&mut link).await.as_deref(), Some(other));
    assert_eq!(world.tokens("a").await.len(), 1);
    // As the relay leaves it.
    link.hdel(UPDATES_OUTBOX, "a").await.expect("Redis answers");
    eventually("it is published once more", async || (world.tokens("a").await.len() == 2).then_some(())).await;
    assert_eq!(link.hlen(MARKS).await.expect("Redis answers"), 0);
}

/// What others wrote in the place of a journal entry is no answer of a consumer.
#[tokio::test]
async fn an_entry_that_nobody_can_read_is_published_once_more() {
    let world = World::start().await;
    let gate = world.gate_with("sync", "").await;
    let mut link = world.redis.connection().await;
    for (id, entry) in [("a", &b"\xff\xfe"[..]), ("b", b"nonsense")] {
        change(&gate, id).await;
        world.redis.settled(UPDATES_OUTBOX).await;
        link.hset(JOURNAL, id, entry).await.expect("Redis answers");
        let event = world.next("sync").await;
        world.answer(&event, "+ACK").await;
    }
    let again = async || (world.tokens("a").await.len() == 2 && world.tokens("b").await.len() == 2).then_some(());
    assert_eq!(within(Duration::from_secs(60), again).await, Some(()));
    for _ in 0..2 {
        let event = world.next("sync").await;
        world.answer(&event, "+ACK").await;
    }
    world.nothing_is_pending().await;
}

/// The route is gone from the configuration before the mark is honoured.
#[tokio::test]
async fn a_mark_outlives_its_route() {
    let world = World::start().await;
    let mut gate = world.gate(&coalesce()).await;
    change(&gate, "a").await;
    world.redis.settled(UPDATES_OUTBOX).await;
    gate.kill();
    gate.end().await;
    let mut link = world.redis.connection().await;
    link.hset(MARKS, "a", now_millis()).await.expect("Redis answers");
    world.redis.release(UPDATES, "a").await;
    let _gate = world.gate(SOON).await;
    // Removed routes are looked for once a minute.
    let again = within(Duration::from_secs(150), async || (world.tokens("a").await.len() == 2).then_some(())).await;
    assert_eq!(again, Some(()));
    assert_eq!(link.hlen(MARKS).await.expect("Redis answers"), 0);
}

impl World {
    /// A gate with one consumer, whose acknowledgements release ids.
    async fn gate_with(&self, consumer: &str, more: &str) -> Gate {
        let gate = self.gate_unready(&on_ack(&format!("{consumer:?}"), more)).await;
        eventually("there is a stream", async || self.nats.stream("HOOKGATE").await).await;
        self.consumer(consumer, json!({})).await;
        gate.wait_ready().await;
        gate
    }

    /// Publishes a sample that no server sent.
    async fn forge(&self, subject: &str, sample: &str) {
        let client = self.nats.client().await;
        let subject = format!("$JS.EVENT.METRIC.CONSUMER.ACK.HOOKGATE.{subject}");
        client.publish(subject, sample.to_owned().into()).await.expect("NATS takes it");
        client.flush().await.expect("NATS takes it");
    }

    /// Everything that was told until now has been carried out.
    async fn all_is_carried_out(&self) {
        eventually("what was told is carried out", async || {
            let info = self.nats.api("CONSUMER.INFO.hookgate_acks.hookgate", &json!({})).await;
            (info["num_pending"] == 0 && info["num_ack_pending"] == 0).then_some(())
        })
        .await;
    }
}

/// A stream that was deleted since, another one that nobody may read, and what is no sample at all.
#[tokio::test]
async fn a_sample_that_says_nothing_holds_up_no_other() {
    let world = World::start().await;
    let gate = world.gate_with("sync", "").await;
    change(&gate, "a").await;
    for sample in [
        json!({ "stream": "GONE", "consumer": "sync", "stream_seq": 1, "deliveries": 1 }),
        json!({ "stream": "HOOKGATE", "consumer": "sync", "stream_seq": 0, "deliveries": 1 }),
        json!({ "stream": "HOOKGATE", "consumer": "sync", "stream_seq": u64::MAX, "deliveries": 1 }),
        json!({ "stream": "HOOKGATE", "consumer": "", "stream_seq": 1, "deliveries": 1 }),
        json!({ "stream": "", "consumer": "sync", "stream_seq": 1 }),
        json!({ "stream": "a b.>", "consumer": "sync", "stream_seq": 1 }),
        json!({ "stream": "HOOKGATE", "consumer": "sync", "stream_seq": -1 }),
        json!("a\r\nb"),
    ] {
        world.forge("x", &sample.to_string()).await;
    }
    world.forge("x", "").await;
    world.all_is_carried_out().await;
    assert_eq!(world.redis.pending(UPDATES).await.len(), 1, "the consumer has answered nothing");
    let event = world.next("sync").await;
    world.answer(&event, "+ACK").await;
    world.nothing_is_pending().await;
}

/// Anybody who may publish to the stream can put a message there whose headers are none.
#[tokio::test]
async fn an_answer_about_a_message_that_can_not_be_read_holds_up_no_other() {
    let world = World::start().await;
    let gate = world.gate_with("sync", "").await;
    world.consumer("sync", json!({ "filter_subject": "vmh.beteiligte.update" })).await;
    let mut raw = tokio::net::TcpStream::connect(("127.0.0.1", world.nats.port())).await.expect("NATS listens");
    let message = b"HPUB vmh.other.update 24 26\r\nNATS/1.0\r\nno header\xff\r\n\r\nxx\r\n";
    raw.write_all(b"CONNECT {\"verbose\":false,\"headers\":true}\r\n").await.expect("NATS reads");
    raw.write_all(message).await.expect("NATS reads");
    eventually("it is stored", async || {
        let info = world.nats.api("STREAM.INFO.HOOKGATE", &json!({})).await;
        (info["state"]["last_seq"] == 1).then_some(())
    })
    .await;
    let sample = json!({ "stream": "HOOKGATE", "consumer": "all", "stream_seq": 1, "deliveries": 1 });
    world.forge("all", &sample.to_string()).await;
    change(&gate, "a").await;
    let event = world.next("sync").await;
    world.answer(&event, "+ACK").await;
    world.nothing_is_pending().await;
}

/// The server takes names that hookgate's journal separates consumers by.
#[tokio::test]
async fn a_consumer_with_an_odd_name_answers_for_nobody_else() {
    const ODD: [&str; 5] = ["sync:a", "x,sync", "x:a,sync", ":", "sync;"];
    let world = World::start().await;
    let gate = world.gate_with("sync", "").await;
    for name in ODD {
        world.consumer(name, json!({})).await;
    }
    change(&gate, "a").await;
    // What the journal says is read when the next one answers.
    for name in ODD {
        let event = world.next(name).await;
        world.answer(&event, "+ACK").await;
        world.all_is_carried_out().await;
        assert_eq!(world.redis.pending(UPDATES).await.len(), 1, "{name} is not sync");
    }
    let event = world.next("sync").await;
    world.answer(&event, "+ACK").await;
    world.nothing_is_pending().await;
}

/// A stream with copies of the events, and a consumer of the same name there: what it acknowledges says nothing.
#[tokio::test]
async fn a_consumer_of_a_copy_answers_for_nobody_else() {
    let world = World::start().await;
    world.nats.create_raw("ARCHIVE", &json!({ "subjects": ["$JS.EVENT.>"], "storage": "memory" })).await;
    let gate = world.gate_with("sync", "").await;
    let mirror = json!({ "name": "COPY", "mirror": { "name": "HOOKGATE" }, "storage": "memory" });
    let made = world.nats.api("STREAM.CREATE.COPY", &mirror).await;
    assert!(made.get("error").is_none(), "{made}");
    let consumer = json!({ "stream_name": "COPY", "config": {
        "durable_name": "sync", "ack_policy": "explicit", "sample_freq": "100%", "deliver_policy": "all",
    }});
    let made = world.nats.api("CONSUMER.DURABLE.CREATE.COPY.sync", &consumer).await;
    assert!(made.get("error").is_none(), "{made}");
    change(&gate, "a").await;
    let copy = world.next_of("COPY", "sync").await;
    world.answer(&copy, "+ACK").await;
    eventually("that is carried out", async || {
        let info = world.nats.api("CONSUMER.INFO.ARCHIVE.hookgate", &json!({})).await;
        (info["num_pending"] == 0
            && info["num_ack_pending"] == 0
            && info["delivered"]["consumer_seq"].as_u64() > Some(0))
        .then_some(())
    })
    .await;
    assert_eq!(world.redis.pending(UPDATES).await.len(), 1, "the consumer of the events has answered nothing");
    let event = world.next("sync").await;
    world.answer(&event, "+ACK").await;
    world.nothing_is_pending().await;
}

/// An operator gives the events a stream of another name.
#[tokio::test]
async fn answers_are_found_when_the_events_move_to_another_stream() {
    let world = World::start().await;
    let gate = world.gate_with("sync", "").await;
    change(&gate, "a").await;
    let event = world.next("sync").await;
    world.answer(&event, "+ACK").await;
    world.nothing_is_pending().await;
    world.nats.api("STREAM.DELETE.HOOKGATE", &json!({})).await;
    world.nats.create_raw("OTHER", &json!({ "subjects": ["vmh.>"] })).await;
    let consumer = json!({ "stream_name": "OTHER", "config": {
        "durable_name": "sync", "ack_policy": "explicit", "sample_freq": "100%", "deliver_policy": "all",
    }});
    let made = world.nats.api("CONSUMER.DURABLE.CREATE.OTHER.sync", &consumer).await;
    assert!(made.get("error").is_none(), "{made}");
    let covered = within(Duration::from_secs(60), async || {
        let subjects = world.nats.stream("hookgate_acks").await?.subjects;
        subjects.iter().any(|subject| subject.contains(".OTHER.")).then_some(())
    })
    .await;
    assert_eq!(covered, Some(()), "what is told there is kept");
    eventually("it is taken", async || (gate.post_to(PATH, batch(["b"])).await.status == 200).then_some(())).await;
    let event = world.next_of("OTHER", "sync").await;
    world.answer(&event, "+ACK").await;
    world.nothing_is_pending().await;
}

#[tokio::test]
async fn a_mark_is_honoured_whatever_the_configuration_says_later() {
    let world = World::start().await;
    let gate = world.gate(&update("journal = false\nwhile_pending = \"skip\"")).await;
    change(&gate, "a").await;
    world.redis.settled(UPDATES_OUTBOX).await;
    // A webhook marked it when the route said `coalesce`.
    let mut link = world.redis.connection().await;
    link.hset(MARKS, "a", now_millis()).await.expect("Redis answers");
    world.redis.release(UPDATES, "a").await;
    eventually("it is published once more", async || (world.tokens("a").await.len() == 2).then_some(())).await;
    assert_eq!(link.hlen(MARKS).await.expect("Redis answers"), 0);
}

/// Nobody can tell then whether its event was answered: one event more, and no more than that.
#[tokio::test]
async fn an_entry_that_says_nothing_costs_one_more_event() {
    let world = World::start().await;
    let gate = world.gate_with("sync", "max_redeliveries = 2").await;
    let entries = |token: &str| {
        [
            "x".to_owned(),
            String::new(),
            "-1;-1;-1;-1;-1".to_owned(),
            format!("{token};99999999999999999999999;1;;"),
            format!("{token};;1;;sync:x"),
            format!("{token};;x;;"),
        ]
    };
    let ids = ["a", "b", "c", "d", "e", "f"];
    assert_eq!(gate.post_to(PATH, batch(ids)).await.counts(), (6, 6));
    world.redis.settled(UPDATES_OUTBOX).await;
    let mut link = world.redis.connection().await;
    for (place, id) in ids.into_iter().enumerate() {
        let token = world.tokens(id).await.remove(0);
        link.hset(JOURNAL, id, &entries(&token)[place]).await.expect("Redis answers");
    }
    let again = within(Duration::from_secs(60), async || {
        for id in ids {
            (world.tokens(id).await.len() == 2).then_some(())?;
        }
        Some(())
    })
    .await;
    assert_eq!(again, Some(()), "{:?}", world.journal().await);
    for _ in 0..12 {
        let event = world.next("sync").await;
        world.answer(&event, "+ACK").await;
    }
    world.nothing_is_pending().await;
    assert_eq!(world.nats.events().await.len(), 12);
}

/// As one that waited while the stream was made again, and whose number names another event now.
#[tokio::test]
async fn an_answer_that_is_older_than_the_event_says_nothing() {
    let world = World::start().await;
    let gate = world.gate_with("sync", "").await;
    change(&gate, "a").await;
    let sample = json!({
        "stream": "HOOKGATE", "consumer": "sync", "stream_seq": 1, "timestamp": "2026-01-01T00:00:00.123456789Z",
    });
    world.forge("sync", &sample.to_string()).await;
    world.all_is_carried_out().await;
    assert_eq!(world.redis.pending(UPDATES).await.len(), 1);
    let event = world.next("sync").await;
    world.answer(&event, "+ACK").await;
    world.nothing_is_pending().await;
}

/// It would be given event after event.
#[tokio::test]
async fn a_consumer_that_never_samples_gets_as_many_events_as_allowed() {
    let world = World::start().await;
    let gate = world.gate_unready(&on_ack("\"sync\"", "max_redeliveries = 1")).await;
    eventually("there is a stream", async || world.nats.stream("HOOKGATE").await).await;
    world.consumer("sync", json!({ "sample_freq": "0%" })).await;
    gate.wait_ready().await;
    change(&gate, "a").await;
    for count in 1..=2 {
        let comes = async || (world.tokens("a").await.len() == count).then_some(());
        assert_eq!(within(Duration::from_secs(60), comes).await, Some(()));
        let event = world.next("sync").await;
        world.answer(&event, "+ACK").await;
    }
    let said = "published again as often as allowed";
    let said = within(Duration::from_secs(60), async || gate.log_line(said)).await;
    assert!(said.is_some(), "{:?}", world.tokens("a").await);
    assert_eq!(world.tokens("a").await.len(), 2);
}

/// 5,000 ids at once, of which one consumer terminates all.
#[tokio::test]
async fn thousands_of_answers_are_carried_out() {
    const IDS: usize = 5000;
    let world = World::start().await;
    let gate = world.gate_unready(&on_ack("\"one\", \"two\"", "")).await;
    eventually("there is a stream", async || world.nats.stream("HOOKGATE").await).await;
    world.consumer("one", json!({})).await;
    world.consumer("two", json!({})).await;
    gate.wait_ready().await;
    let odd = ["%", "a b", "\"", "\\", "ä€😀", ";", ",", ":a", "a;b,c:a", "{}", "*", "0", " ", "'", "[[", "]]", "%1"];
    let ids = (0..IDS - odd.len()).map(|number| number.to_string() + "-x").chain(odd.map(ToOwned::to_owned));
    let ids: Vec<_> = ids.collect();
    let body = serde_json::to_string(&ids.iter().map(|id| json!({ "id": id })).collect::<Vec<_>>()).expect("JSON");
    assert_eq!(gate.post_to(PATH, &body).await.counts(), (IDS as u64, IDS as u64));
    let client = world.nats.client().await;
    for (consumer, answer) in [("one", "+TERM"), ("two", "+ACK")] {
        let inbox = client.new_inbox();
        let mut answers = client.subscribe(inbox.clone()).await.expect("NATS answers");
        let subject = format!("$JS.API.CONSUMER.MSG.NEXT.HOOKGATE.{consumer}");
        let mut left = IDS;
        while left > 0 {
            let batch = left.min(500);
            let request = json!({ "batch": batch, "expires": 20_000_000_000_u64 }).to_string();
            client.publish_with_reply(subject.clone(), inbox.clone(), request.into()).await.expect("NATS takes it");
            for _ in 0..batch {
                let message = in_time("an event comes", answers.next()).await.expect("NATS answers");
                let reply = message.reply.expect("it wants an answer");
                client.publish(reply, answer.into()).await.expect("NATS takes it");
            }
            left -= batch;
        }
        client.flush().await.expect("NATS takes it");
    }
    world.nothing_is_pending().await;
    assert_eq!(world.nats.events().await.len(), IDS);
}

/// Consumers that are named or no longer named: ids that have all answers now are free.
#[tokio::test]
async fn ids_are_free_when_the_consumer_that_is_waited_for_is_named_no_more() {
    // A replica that was killed keeps its lease, and what it had just read, for a while.
    const PATIENCE: Duration = Duration::from_secs(150);
    let world = World::start().await;
    let mut gate = world.gate_unready(&on_ack("\"one\", \"two\"", "")).await;
    eventually("there is a stream", async || world.nats.stream("HOOKGATE").await).await;
    world.consumer("one", json!({})).await;
    world.consumer("two", json!({})).await;
    gate.wait_ready().await;
    change(&gate, "a").await;
    let one = world.next("one").await;
    world.answer(&one, "+ACK").await;
    world.all_is_carried_out().await;
    // What a killed gate had not settled is the relay's, which rests in these tests.
    world.redis.settled(UPDATES_OUTBOX).await;
    gate.kill();
    gate.end().await;
    let mut gate = world.gate(&on_ack("\"one\"", "")).await;
    let free = within(PATIENCE, async || world.redis.pending(UPDATES).await.is_empty().then_some(())).await;
    assert_eq!(free, Some(()));
    change(&gate, "b").await;
    world.redis.settled(UPDATES_OUTBOX).await;
    gate.kill();
    gate.end().await;
    let gate = world.gate_unready(&on_ack("\"one\", \"three\"", "")).await;
    let one = world.next("one").await;
    world.answer(&one, "+ACK").await;
    // It begins at the end of the stream, and never gets the event.
    world.consumer("three", json!({ "deliver_policy": "new" })).await;
    gate.wait_ready().await;
    let again = within(PATIENCE, async || (world.tokens("b").await.len() == 2).then_some(())).await;
    assert_eq!(again, Some(()));
    for name in ["one", "three"] {
        let event = world.next(name).await;
        world.answer(&event, "+ACK").await;
    }
    world.nothing_is_pending().await;
    assert_eq!(world.nats.events().await.len(), 3);
}

/// Both read all answers, and each carries them out.
#[tokio::test]
async fn two_installations_may_share_servers() {
    let world = World::start().await;
    let one = world.gate_with("sync", "").await;
    let two = world.gate(&format!("instance = \"second\"\n{}", on_ack("\"sync\"", ""))).await;
    for (gate, id) in [(&one, "a"), (&two, "b"), (&one, "c"), (&two, "c")] {
        assert_eq!(change(gate, id).await, (1, 1));
    }
    for _ in 0..4 {
        let event = world.next("sync").await;
        world.answer(&event, "+ACK").await;
    }
    world.nothing_is_pending().await;
    assert_eq!(world.nats.events().await.len(), 4);
    // Each has dead letters and records of its own.
    assert_eq!(two.post_to(PATH, "[{}]").await.status, 200);
    let letters = async |instance: &str| {
        let mut link = world.redis.connection().await;
        let records: usize = link.hlen(format!("{instance}:routes")).await.expect("Redis answers");
        let count = redis::cmd("XLEN").arg(format!("{instance}:dead_letters")).to_owned();
        let letters: usize = count.query_async(&mut link).await.expect("Redis answers");
        (records, letters)
    };
    assert_eq!((letters("hookgate").await, letters("second").await), ((1, 0), (1, 1)));
}

/// What others wrote keeps the answers of one route from being carried out.
#[tokio::test]
async fn a_route_whose_answers_can_not_be_carried_out_holds_up_no_other() {
    let world = World::start().await;
    let create = "[[routes]]\nflow = \"vmh\"\nentity = \"beteiligte\"\naction = \"create\"\nrelease = \"ack\"\nconsumers = [\"sync\"]\n";
    let gate = world.gate_with("sync", &format!("\n{create}")).await;
    assert_eq!(gate.post(batch(["x"])).await.counts(), (1, 1));
    world.redis.settled(OUTBOX).await;
    let mut link = world.redis.connection().await;
    let journal = "{vmh:beteiligte:create_pending}:journal";
    link.set(journal, "nonsense").await.expect("Redis answers");
    let event = world.next("sync").await;
    world.answer(&event, "+ACK").await;
    change(&gate, "a").await;
    let event = world.next("sync").await;
    world.answer(&event, "+ACK").await;
    world.nothing_is_pending().await;
    link.del(journal).await.expect("Redis answers");
    // Nobody knows its claim any more: it is published again.
    let again = within(Duration::from_secs(60), async || (world.tokens("x").await.len() == 2).then_some(())).await;
    assert_eq!(again, Some(()));
    let event = world.next("sync").await;
    world.answer(&event, "+ACK").await;
    eventually("it is free", async || world.redis.pending(PENDING).await.is_empty().then_some(())).await;
}

/// Only the token says which claim somebody has processed.
#[tokio::test]
async fn a_release_without_a_token_leaves_what_is_still_to_be_published() {
    let world = World::start().await;
    let gate = world.gate(&format!("{SOON}\n{}", update(""))).await;
    change(&gate, "a").await;
    world.redis.settled(UPDATES_OUTBOX).await;
    // Claimed once more, and the replica died before it published.
    let token = world.tokens("a").await.remove(0);
    let claimed = format!("{}0123{}", &token[..28], &token[32..]);
    let mut link = world.redis.connection().await;
    link.hset(UPDATES_OUTBOX, "a", &claimed).await.expect("Redis answers");
    let answer = service(&world, of_update(&json!({ "entity_id": "a" }))).await;
    assert_eq!(answer, Ok(json!({ "released": ["a"], "not_pending": [], "republished": [] })));
    eventually("its event comes", async || world.tokens("a").await.contains(&claimed).then_some(())).await;
}

#[tokio::test]
async fn a_mark_that_has_waited_for_long_is_honoured_whatever_became_of_the_event_before() {
    let world = World::start().await;
    let gate = world.gate(&update("coalesce_max_wait = \"1s\"")).await;
    change(&gate, "a").await;
    world.redis.settled(UPDATES_OUTBOX).await;
    let mut link = world.redis.connection().await;
    link.hset(MARKS, "a", "1").await.expect("Redis answers");
    eventually("it is published once more", async || (world.tokens("a").await.len() == 2).then_some(())).await;
    assert_eq!(link.hlen(MARKS).await.expect("Redis answers"), 0);
}

/// The number of a message names another event then.
#[tokio::test]
async fn an_answer_is_for_one_event_also_when_the_stream_is_made_again() {
    let world = World::start().await;
    let gate = world.gate_with("sync", "").await;
    change(&gate, "a").await;
    world.redis.settled(UPDATES_OUTBOX).await;
    world.nats.api("STREAM.DELETE.HOOKGATE", &json!({})).await;
    world.nats.create_raw("HOOKGATE", &json!({ "subjects": ["vmh.>"] })).await;
    world.consumer("sync", json!({})).await;
    eventually("it is taken", async || (gate.post_to(PATH, batch(["b"])).await.status == 200).then_some(())).await;
    world.redis.settled(UPDATES_OUTBOX).await;
    let event = world.next("sync").await;
    world.answer(&event, "+ACK").await;
    eventually("it is free", async || (!world.redis.pending(UPDATES).await.contains("b")).then_some(())).await;
    assert_eq!(world.redis.pending(UPDATES).await, ["a".to_owned()].into(), "nobody has answered that");
    let again = within(Duration::from_secs(60), async || (!world.tokens("a").await.is_empty()).then_some(())).await;
    assert_eq!(again, Some(()), "it is published again, since the stream lost it");
    let event = world.next("sync").await;
    world.answer(&event, "+ACK").await;
    world.nothing_is_pending().await;
}

/// What consumers answer is not kept for a while, and the number of events stays bounded; when it is kept again, the ids are free.
#[tokio::test]
async fn a_full_acks_stream_costs_as_many_events_as_allowed() {
    let world = World::start().await;
    let acks =
        json!({ "subjects": ["$JS.EVENT.METRIC.>", "$JS.EVENT.ADVISORY.CONSUMER.>"], "max_msgs": 1, "discard": "new" });
    world.nats.create_raw("FULL", &acks).await;
    let gate = world.gate_with("sync", "max_redeliveries = 1").await;
    world.forge("x", "full").await;
    assert_eq!(gate.post_to(PATH, batch(["a", "b", "c"])).await.counts(), (3, 3));
    for _ in 0..3 {
        let event = world.next("sync").await;
        world.answer(&event, "+ACK").await;
    }
    let again = within(Duration::from_secs(60), async || (world.nats.events().await.len() == 6).then_some(())).await;
    assert_eq!(again, Some(()));
    world.nats.update_raw("FULL", &json!({ "max_msgs": 1000 })).await;
    for _ in 0..3 {
        let event = world.next("sync").await;
        world.answer(&event, "+ACK").await;
    }
    world.nothing_is_pending().await;
    assert_eq!(world.nats.events().await.len(), 6);
}

/// Sequences are given once more, to other events, and the consumers are as far as they were then.
#[tokio::test]
async fn a_stream_that_is_restored_from_a_backup_releases_nothing_that_was_not_answered() {
    let world = World::start().await;
    let gate = world.gate_with("sync", "").await;
    change(&gate, "a").await;
    let backup = world.backup().await;
    for id in ["b", "c"] {
        change(&gate, id).await;
    }
    world.redis.settled(UPDATES_OUTBOX).await;
    // Else it would make the stream again.
    gate.signal("STOP");
    world.nats.api("STREAM.DELETE.HOOKGATE", &json!({})).await;
    world.restore(backup).await;
    gate.signal("CONT");
    // At the sequence that the event of `b` had.
    eventually("it is taken", async || (gate.post_to(PATH, batch(["d"])).await.status == 200).then_some(())).await;
    world.redis.settled(UPDATES_OUTBOX).await;
    for id in ["a", "d"] {
        let event = world.next("sync").await;
        world.answer(&event, "+ACK").await;
        eventually("it is free", async || (!world.redis.pending(UPDATES).await.contains(id)).then_some(())).await;
    }
    assert_eq!(world.redis.pending(UPDATES).await, ["b".to_owned(), "c".to_owned()].into());
    let again = within(Duration::from_secs(60), async || (world.nats.events().await.len() == 4).then_some(())).await;
    assert_eq!(again, Some(()), "what the stream lost is published again");
    for _ in 0..2 {
        let event = world.next("sync").await;
        world.answer(&event, "+ACK").await;
    }
    world.nothing_is_pending().await;
}

/// What the server says of a stream, and its data.
type Backup = (serde_json::Value, Vec<Message>);

impl World {
    async fn backup(&self) -> Backup {
        let client = self.nats.client().await;
        let inbox = client.new_inbox();
        let mut data = client.subscribe(inbox.clone()).await.expect("NATS answers");
        let what = self.nats.api("STREAM.SNAPSHOT.HOOKGATE", &json!({ "deliver_subject": inbox })).await;
        let mut parts = Vec::new();
        loop {
            let part = in_time("a part of the backup comes", data.next()).await.expect("NATS answers");
            if part.payload.is_empty() {
                return (what, parts);
            }
            if let Some(reply) = part.reply.clone() {
                client.publish(reply, "".into()).await.expect("NATS takes it");
            }
            parts.push(part);
        }
    }

    async fn restore(&self, (what, parts): Backup) {
        let client = self.nats.client().await;
        let request = json!({ "config": what["config"], "state": what["state"] });
        let begun = self.nats.api("STREAM.RESTORE.HOOKGATE", &request).await;
        let to = begun["deliver_subject"].as_str().unwrap_or_else(|| panic!("{begun}")).to_owned();
        for part in parts {
            client.request(to.clone(), part.payload).await.expect("NATS takes it");
        }
        let done = client.request(to, "".into()).await.expect("NATS takes it");
        assert!(!String::from_utf8_lossy(&done.payload).contains("\"error\""), "{:?}", done.payload);
    }
}

#[tokio::test]
async fn an_id_that_nobody_releases_becomes_a_dead_letter() {
    let world = World::start().await;
    let settings = update("redeliver_after = \"1s\"\nmax_redeliveries = 1");
    let gate = world.gate(&settings).await;
    change(&gate, "a").await;
    let letters = within(Duration::from_secs(60), async || {
        let list = run(&(world.settings() + &settings), &["dead-letters", "list", "--output", "json"]).rows();
        (!list.is_empty()).then_some(list)
    });
    let letters = letters.await.expect("it is reported");
    assert_eq!((letters.len(), &letters[0]["reason"]), (1, &json!("not_released")));
    let entry = letters[0]["entry"].as_str().expect("it has a name");
    let shown = run(&(world.settings() + &settings), &["dead-letters", "show", entry]).good();
    let newest = world.tokens("a").await.pop().expect("it was published");
    assert!(shown.contains("\"entity_id\":\"a\"") && shown.contains(&newest), "{shown}");
    assert_eq!(world.tokens("a").await.len(), 2, "once, and once more");
    assert_eq!(world.redis.pending(UPDATES).await.len(), 1, "it stays pending");
    // Another replica looks, and says nothing new.
    drop(gate);
    let mut link = world.redis.connection().await;
    link.del("{vmh:beteiligte:update_pending}:journal-scan").await.expect("Redis answers");
    let mut link = world.redis.connection().await;
    let mut before = link.get(SCAN).await.expect("Redis answers");
    let _gate = world.gate(&settings).await;
    for _ in 0..2 {
        let looked = within(Duration::from_secs(60), async || {
            let now = link.clone().get(SCAN).await.expect("Redis answers");
            (now != before).then_some(now)
        });
        before = looked.await.expect("it looks through the journal");
    }
    let list = run(&(world.settings() + &settings), &["dead-letters", "list", "--output", "json"]).rows();
    assert_eq!(list.len(), 1, "a claim has one letter");
}

#[tokio::test]
async fn the_admin_address_releases_ids() {
    let world = World::start().await;
    let folder = tempfile::tempdir().expect("a temporary folder can be made");
    let file = folder.path().join("token");
    std::fs::write(&file, "s3cret\n").expect("it is ours");
    let closed = world.gate(&update("")).await;
    assert_eq!(closed.post_to(PATH, batch(["a/b %", "c", "d"])).await.counts(), (3, 3));
    world.redis.settled(UPDATES_OUTBOX).await;
    let path = "/v1/pending/vmh/beteiligte/update/a%2Fb%20%25";
    assert_eq!(closed.operate("DELETE", path, "s3cret").await.status, 404, "without admin.token_file");

    let gate = world.gate(&format!("admin.token_file = \"{}\"\n{}", file.display(), update(""))).await;
    for token in ["", "wrong"] {
        assert_eq!(gate.operate("DELETE", path, token).await.status, 401, "{token:?}");
    }
    for (path, status) in [
        ("/v1/pending/vmh/beteiligte/delete/c", 404),
        ("/v1/pending/vmh/beteiligte/update/", 400),
        ("/v1/pending/vmh/beteiligte/update/c?token=x", 400),
        ("/v1/pending/vmh/beteiligte/update/c?tokn=0197e2c5a0007abc8def0123456789ab-0", 400),
        ("/v1/pending/vmh/beteiligte/update/c?token=0197e2c5a0007abc8def0123456789ab-0&x=1", 400),
    ] {
        assert_eq!(gate.operate("DELETE", path, "s3cret").await.status, status, "{path}");
    }
    assert_eq!(world.redis.pending(UPDATES).await.len(), 3, "nothing was released by any of these");

    let answer = gate.operate("DELETE", path, "s3cret").await;
    assert_eq!(answer.json(), json!({ "released": ["a/b %"], "not_pending": [], "republished": [] }));
    let again = gate.operate("DELETE", path, "s3cret").await;
    assert_eq!((again.status, &again.json()["not_pending"]), (200, &json!(["a/b %"])), "repeating it is harmless");

    let (one, other) = (world.tokens("c").await.remove(0), world.tokens("d").await.remove(0));
    let of = async |token: &str| {
        gate.operate("DELETE", &format!("/v1/pending/vmh/beteiligte/update/c?token={token}"), "s3cret").await.json()
    };
    assert_eq!(of(&other).await["not_pending"], json!(["c"]), "not under that token");
    assert_eq!(of(&one).await["released"], json!(["c"]));

    let mut link = world.redis.connection().await;
    // An older mark would be honoured by the replica itself.
    let now = std::time::SystemTime::now().duration_since(std::time::SystemTime::UNIX_EPOCH).expect("it is later");
    link.hset(MARKS, "d", now.as_millis().to_string()).await.expect("Redis answers");
    let answer = gate.operate("DELETE", "/v1/pending/vmh/beteiligte/update/d", "s3cret").await;
    assert_eq!(answer.json()["republished"], json!(["d"]), "a webhook had marked it");
    assert_eq!(world.tokens("d").await.len(), 2);
    let metrics = gate.probe("/metrics").await;
    let series = "hookgate_released_total{route=\"vmh/beteiligte/update\",by=\"admin\"} 3";
    assert!(metrics.text().contains(series), "{}", metrics.text());
}

/// Such a stream drops what was answered, and with it the token of the event.
#[tokio::test]
async fn ids_are_free_also_where_the_stream_drops_what_was_answered() {
    for retention in ["workqueue", "interest"] {
        let world = World::start().await;
        world.nats.create_raw("HOOKGATE", &json!({ "subjects": ["vmh.>"], "retention": retention })).await;
        let gate = world.gate_with("sync", "").await;
        let ids: Vec<_> = (0..20).map(|number| number.to_string()).collect();
        assert_eq!(gate.post_to(PATH, batch(&ids)).await.counts(), (20, 20));
        for place in 0..20 {
            let event = world.next("sync").await;
            world.answer(&event, if place % 5 == 0 { "+TERM" } else { "+ACK" }).await;
        }
        world.nothing_is_pending().await;
        let info = world.nats.api("STREAM.INFO.HOOKGATE", &json!({})).await;
        assert_eq!(info["state"]["last_seq"], 20, "nothing was published again");
    }
}
