//! Events get into an existing stream, which hookgate leaves as it is, or into one that it makes.

use std::{
    collections::BTreeSet,
    path::PathBuf,
    time::{Duration, Instant},
};

use async_nats::jetstream::stream::{Config, DiscardPolicy, StorageType};
use futures_util::{FutureExt, StreamExt};
use serde_json::{Value, json};

use crate::support::{Event, NatsServer, OUTBOX, RedisServer, World, batch, binary, eventually};

/// Where a server lies that is started by its name.
fn executable(variable: &str, name: &str) -> PathBuf {
    let named = PathBuf::from(binary(variable, name));
    if named.components().count() > 1 {
        return named;
    }
    #[expect(clippy::disallowed_methods, reason = "where to find the server; no setting of hookgate")]
    let path = std::env::var_os("PATH").expect("there is a PATH");
    let found = std::env::split_paths(&path).map(|folder| folder.join(&named)).find(|file| file.exists());
    found.unwrap_or_else(|| panic!("{name} is on the PATH"))
}

/// The settings of a stream as the server has them, byte for byte.
async fn raw_config(nats: &NatsServer, name: &str) -> String {
    let info: Value = nats.jetstream().await.request(format!("STREAM.INFO.{name}"), &()).await.expect("it is there");
    info["config"].to_string()
}

async fn create(nats: &NatsServer, config: Config) {
    nats.jetstream().await.create_stream(config).await.expect("NATS makes the stream");
}

fn named(name: &str, subjects: &[&str]) -> Config {
    let subjects = subjects.iter().map(|subject| (*subject).to_owned()).collect();
    Config { name: name.to_owned(), subjects, ..Config::default() }
}

#[tokio::test]
async fn without_one_a_stream_for_the_flow_is_made() {
    let world = World::start().await;
    let gate = world.gate("").await;
    let config = world.nats.stream("HOOKGATE").await.expect("it was made");
    assert_eq!(config.subjects, ["vmh.>"]);
    assert_eq!(config.description.as_deref(), Some("managed by hookgate"));
    assert_eq!((config.storage, config.discard, config.num_replicas), (StorageType::File, DiscardPolicy::New, 1));
    assert_eq!(config.duplicate_window, Duration::from_secs(15 * 60));
    assert_eq!(config.max_age, Duration::from_secs(7 * 24 * 3600));
    assert_eq!((config.max_messages, config.max_bytes), (-1, -1), "no limit but age");
    drop(gate);

    let before = raw_config(&world.nats, "HOOKGATE").await;
    let gate = world.gate("").await;
    assert_eq!(gate.post(batch(["a"])).await.counts(), (1, 1));
    assert_eq!(raw_config(&world.nats, "HOOKGATE").await, before, "the next start changes nothing");
}

#[tokio::test]
async fn the_settings_of_a_new_stream_can_be_chosen() {
    let world = World::start().await;
    let stream = "nats.stream = { name = \"WEBHOOKS\", max_age = \"1d\", duplicate_window = \"1h\" }";
    let gate = world.gate(stream).await;
    let config = world.nats.stream("WEBHOOKS").await.expect("it was made");
    assert_eq!((config.max_age.as_secs(), config.duplicate_window.as_secs()), (24 * 3600, 3600));
    assert_eq!(gate.post(batch(["a"])).await.counts(), (1, 1));
    assert_eq!(world.nats.events_of("WEBHOOKS").await.len(), 1);
}

#[tokio::test]
async fn a_stream_that_is_there_is_used_as_it_is() {
    let world = World::start().await;
    let own = Config {
        description: Some("somebody's own".to_owned()),
        storage: StorageType::Memory,
        duplicate_window: Duration::from_secs(30),
        max_messages: 100_000,
        ..named("CRM", &["crm.>", "vmh.beteiligte.*"])
    };
    create(&world.nats, own).await;
    let before = raw_config(&world.nats, "CRM").await;

    let gate = world.gate("").await;
    assert_eq!(gate.post(batch(["a"])).await.counts(), (1, 1));
    assert_eq!(world.nats.events_of("CRM").await.iter().map(Event::entity_id).collect::<Vec<_>>(), ["a"]);
    assert_eq!(raw_config(&world.nats, "CRM").await, before);
    assert!(world.nats.stream("HOOKGATE").await.is_none(), "no second stream was made");
    for (danger, level) in [("storage is memory", "ERROR"), ("max_msgs", "ERROR"), ("duplicate_window", "WARN")] {
        let line = gate.wait_log(danger).await;
        assert!(line.contains(level) && line.contains("CRM"), "{line}");
    }
}

#[tokio::test]
async fn where_the_flow_overlaps_another_stream_the_exact_subjects_are_taken() {
    let world = World::start().await;
    create(&world.nats, named("OTHER", &["vmh.orders.>"])).await;
    let before = raw_config(&world.nats, "OTHER").await;

    let gate = world.gate("").await;
    let config = world.nats.stream("HOOKGATE").await.expect("it was made");
    assert_eq!(config.subjects, ["vmh.beteiligte.create"]);
    assert_eq!(gate.post(batch(["a"])).await.counts(), (1, 1));
    assert_eq!(raw_config(&world.nats, "OTHER").await, before);
}

#[tokio::test]
async fn a_flow_that_is_added_later_is_added_to_the_stream() {
    let route = |flow: &str| format!("[[routes]]\nflow = \"{flow}\"\nentity = \"account\"\naction = \"create\"\n");
    let world = World::start().await;
    let gate = world.gate(&route("vmh")).await;
    assert_eq!(gate.post_to("/vmh/webhook/account/create", batch(["a"])).await.counts(), (1, 1));
    drop(gate);

    let gate = world.gate(&(route("vmh") + &route("crm"))).await;
    assert_eq!(gate.post_to("/crm/webhook/account/create", batch(["b"])).await.counts(), (1, 1));
    let config = world.nats.stream("HOOKGATE").await.expect("it is there");
    assert_eq!(config.subjects, ["vmh.>", "crm.>"]);
    assert_eq!(config.duplicate_window, Duration::from_secs(15 * 60), "nothing else changed");
    let subjects: Vec<_> = world.nats.events().await.into_iter().map(|event| event.subject).collect();
    assert_eq!(subjects, ["vmh.account.create", "crm.account.create"], "what was in it still is");
}

#[tokio::test]
async fn somebody_elses_stream_of_the_same_name_is_not_touched() {
    let world = World::start().await;
    create(&world.nats, named("HOOKGATE", &["something.else"])).await;
    let before = raw_config(&world.nats, "HOOKGATE").await;

    let gate = world.gate_unready("").await;
    let problem = gate.wait_store("nats", "refused").await;
    assert!(problem.contains("nats.stream.name"), "{problem} says what to do");
    assert_eq!(gate.probe("/readyz").await.status, 503);
    assert_eq!(raw_config(&world.nats, "HOOKGATE").await, before);
}

#[tokio::test]
async fn a_stream_that_may_not_be_made_is_waited_for() {
    let world = World::start().await;
    let gate = world.gate_unready("nats.stream = { create = false }").await;
    let problem = gate.wait_store("nats", "refused").await;
    assert!(problem.contains("nats.stream.create"), "{problem} says what to do");
    assert_eq!(gate.probe("/readyz").await.status, 503);

    create(&world.nats, named("CRM", &["vmh.>"])).await;
    gate.wait_ready().await;
    assert_eq!(gate.post(batch(["a"])).await.counts(), (1, 1));
}

#[tokio::test]
async fn a_missing_stream_is_looked_for_at_most_every_5_s() {
    let world = World::start().await;
    let mut looks = world.nats.client().await.subscribe("$JS.API.STREAM.NAMES").await.expect("NATS takes it");
    let gate = world.gate_unready("nats.stream = { create = false }\nserver.request_deadline = \"2s\"").await;
    gate.wait_store("nats", "refused").await;
    while looks.next().now_or_never().is_some() {}
    looks.next().await.expect("it is looked for");
    for posts in [0, 1] {
        let looked = Instant::now();
        for _ in 0..posts {
            // That this one finds none does not have it looked for any sooner.
            assert_eq!(gate.post(batch(["a"])).await.status, 503);
        }
        looks.next().await.expect("it is looked for");
        let pause = looked.elapsed();
        assert!(pause > Duration::from_millis(4500), "{pause:?} with {posts} posts");
    }
}

#[tokio::test]
async fn a_stream_that_was_deleted_is_made_again() {
    let world = World::start().await;
    let gate = world.gate("server.request_deadline = \"2s\"").await;
    assert_eq!(gate.post(batch(["a"])).await.counts(), (1, 1));
    world.nats.jetstream().await.delete_stream("HOOKGATE").await.expect("NATS deletes it");

    assert_eq!(gate.deliver(batch(["b"])).await.counts().1, 1);
    let config = world.nats.stream("HOOKGATE").await.expect("it was made again");
    assert_eq!(config.subjects, ["vmh.>"]);
    assert_eq!(world.nats.events().await.iter().map(Event::entity_id).collect::<Vec<_>>(), ["b"]);
}

/// Any subscriber can answer, also where nothing is stored.
#[tokio::test]
async fn an_answer_that_is_no_streams_is_no_acknowledgement() {
    let world = World::start().await;
    let client = world.nats.client().await;
    let mut messages = client.subscribe("vmh.>").await.expect("NATS takes it");
    let gate = world.gate_unready("nats.stream = { create = false }\nserver.request_deadline = \"2s\"").await;
    gate.wait_store("nats", "refused").await;
    let answers = async {
        while let Some(message) = messages.next().await {
            let reply = message.reply.expect("an acknowledgement is asked for");
            client.publish(reply, r#"{"status":"ok","seq":7}"#.into()).await.expect("NATS takes it");
        }
    };
    tokio::select! {
        () = answers => panic!("the subscription ended"),
        answer = gate.post(batch(["a"])) => assert_eq!(answer.error(), (503, "not_published".into())),
    }
    assert_eq!(world.redis.outbox(OUTBOX).await.len(), 1, "it is still to be published");
}

/// With a subscriber the server does not say that no stream listens.
#[tokio::test]
async fn a_stream_that_is_missing_is_made_again_though_somebody_listens() {
    let world = World::start().await;
    let _messages = world.nats.client().await.subscribe("vmh.>").await.expect("NATS takes it");
    let gate = world.gate("server.request_deadline = \"2s\"").await;
    assert_eq!(gate.post(batch(["a"])).await.counts(), (1, 1));
    world.nats.jetstream().await.delete_stream("HOOKGATE").await.expect("NATS deletes it");
    assert_eq!(gate.deliver(batch(["b"])).await.counts().1, 1);
    assert_eq!(world.nats.events().await.len(), 1, "the second one is in the new stream");
}

/// What a client refuses to send holds up nothing else.
#[tokio::test]
async fn an_event_that_is_too_large_for_the_server_fails_alone() {
    let (redis, nats) = tokio::join!(RedisServer::start(), NatsServer::configured("max_payload: 500\n"));
    let world = World { redis, nats };
    let gate = world.gate("server.request_deadline = \"2s\"").await;
    let long = "x".repeat(255);
    let answer = gate.post(batch(["a", &long, "b"])).await;
    assert_eq!(answer.error(), (503, "not_published".into()));
    assert_eq!(world.nats.events().await.iter().map(Event::entity_id).collect::<Vec<_>>(), ["a", "b"]);
    eventually("the others are settled", async || {
        let left = world.redis.outbox(OUTBOX).await;
        (left.keys().collect::<Vec<_>>() == [&long]).then_some(())
    })
    .await;
}

/// Each setting that an operator added, known to hookgate's client or not.
#[tokio::test]
async fn a_subject_that_is_added_leaves_all_other_settings_as_they_are() {
    let route = |flow: &str| format!("[[routes]]\nflow = \"{flow}\"\nentity = \"account\"\naction = \"create\"\n");
    let world = World::start().await;
    world.gate(&route("vmh")).await;
    // Older servers ignore what they don't know.
    let added = json!({
        "allow_msg_ttl": true,
        "allow_atomic": true,
        "allow_batched": true,
        "allow_rollup_hdrs": true,
        "subject_delete_marker_ttl": 60_000_000_000_u64,
        "metadata": { "team": "crm" },
        "max_msgs": 100_000,
    });
    let mut before = world.nats.update_raw("HOOKGATE", &added).await;

    let gate = world.gate(&(route("vmh") + &route("crm"))).await;
    assert_eq!(gate.post_to("/crm/webhook/account/create", batch(["a"])).await.counts(), (1, 1));
    let after = world.nats.api("STREAM.INFO.HOOKGATE", &Value::Null).await["config"].clone();
    before["subjects"] = json!(["vmh.>", "crm.>"]);
    assert_eq!(after, before);
}

/// Also in a stream that is changed while hookgate runs.
#[tokio::test]
async fn what_is_wrong_with_a_stream_is_said_once_and_once_when_it_is_over() {
    let world = World::start().await;
    let mut gate = world.gate("").await;
    world.nats.update_raw("HOOKGATE", &json!({ "max_msgs_per_subject": 1 })).await;
    let line = gate.wait_log("max_msgs_per_subject").await;
    assert!(line.contains("ERROR") && line.contains("HOOKGATE"), "{line}");
    // That this one is seen takes another look.
    world.nats.update_raw("HOOKGATE", &json!({ "duplicate_window": 1_000_000_000 })).await;
    let line = gate.wait_log("duplicate_window").await;
    assert!(line.contains("WARN"), "{line}");
    let good = json!({ "max_msgs_per_subject": -1, "duplicate_window": 900_000_000_000_u64 });
    world.nats.update_raw("HOOKGATE", &good).await;
    gate.wait_log("is in order again").await;
    let log = gate.log().await;
    for setting in ["max_msgs_per_subject", "duplicate_window"] {
        let said: Vec<_> = log.iter().filter(|line| line.contains(setting)).collect();
        assert_eq!(said.len(), 2, "{said:?}");
        assert!(said[1].contains("is in order again"), "{said:?}");
    }
}

/// The fields of what a server says of a stream, by their paths; the items of a list have one.
fn fields_of(value: &Value, path: &str, fields: &mut BTreeSet<String>) {
    match value {
        Value::Object(object) if !object.is_empty() => {
            for (name, value) in object {
                let path = if path.is_empty() { name.clone() } else { format!("{path}.{name}") };
                fields_of(value, &path, fields);
            }
        }
        Value::Array(items) if items.iter().any(Value::is_object) => {
            for item in items {
                fields_of(item, path, fields);
            }
        }
        _ => {
            fields.insert(path.to_owned());
        }
    }
}

/// A newer server may have settings that this list does not know.
#[tokio::test]
async fn each_field_of_a_stream_is_judged_or_listed_as_harmless() {
    let world = World::start().await;
    world.nats.create_raw("SOURCE", &json!({ "subjects": ["source.>"] })).await;
    // Settings that do not go together are in different streams.
    let streams = [
        json!({ "subjects": ["a.>"], "description": "a", "metadata": { "team": "crm" }, "compression": "s2",
            "first_seq": 5, "subject_transform": { "src": "a.>", "dest": "x.>" }, "discard": "new",
            "max_msgs_per_subject": 7, "discard_new_per_subject": true, "max_msg_size": 4096, "no_ack": true,
            "consumer_limits": { "inactive_threshold": 60_000_000_000_u64, "max_ack_pending": 100 } }),
        json!({ "subjects": ["b.>"], "allow_rollup_hdrs": true, "allow_msg_ttl": true,
            "subject_delete_marker_ttl": 60_000_000_000_u64 }),
        json!({ "subjects": ["c.>"], "allow_msg_schedules": true, "allow_msg_ttl": true, "allow_atomic": true,
            "allow_batched": true }),
        json!({ "subjects": ["d.>"], "allow_msg_counter": true }),
        json!({ "subjects": ["h.>"], "republish": { "src": "h.>", "dest": "copy.>", "headers_only": true } }),
        json!({ "subjects": ["e.>"], "persist_mode": "async", "max_msgs": 5, "max_bytes": 1000, "max_age": 900_000_000_000_u64 }),
        json!({ "subjects": ["f.>"], "sources": [{ "name": "SOURCE", "filter_subject": "source.a.>", "opt_start_seq": 1 }] }),
        json!({ "mirror": { "name": "SOURCE", "opt_start_seq": 1 }, "duplicate_window": 0 }),
        json!({ "subjects": ["g.>"], "retention": "workqueue", "allow_direct": true, "deny_delete": true,
            "deny_purge": true, "max_consumers": 3 }),
    ];
    let mut fields = BTreeSet::new();
    for (number, settings) in streams.iter().enumerate() {
        let name = format!("STREAM{number}");
        world.nats.create_raw(&name, settings).await;
        let client = world.nats.client().await;
        for subject in ["a.x", "b.x", "c.x", "g.x"] {
            client.publish(subject, "x".into()).await.expect("NATS takes it");
        }
        client.flush().await.expect("NATS takes it");
        let request = json!({ "subjects_filter": ">", "deleted_details": true });
        let info = world.nats.api(&format!("STREAM.INFO.{name}"), &request).await;
        fields_of(&info, "", &mut fields);
    }
    assert!(fields.len() > 30 && fields.contains("config.max_msgs_per_subject"), "{fields:?}");
    let unknown: Vec<_> = fields.iter().filter(|field| !hookgate::publisher::is_known(field)).collect();
    assert!(
        unknown.is_empty(),
        "add a rule for {unknown:?} to src/publisher/judgement.rs, or list it as harmless there"
    );
    assert!(!hookgate::publisher::is_known("config.allow_tomorrow"), "a field that is unknown is found");
}

/// Most new settings are switches, which a stream that does not use them may leave out: the server itself has them all.
#[tokio::test]
async fn each_switch_that_the_server_has_is_judged_or_listed_as_harmless() {
    // Of accounts, not of streams.
    const OTHERS: &[&str] = &["allow_trace"];
    let server = std::fs::read(executable("HOOKGATE_NATS_SERVER", "nats-server")).expect("it can be read");
    let tag = b"json:\"allow_";
    let starts = server.windows(tag.len()).enumerate().filter(|(_, bytes)| bytes == tag).map(|(start, _)| start);
    let switches: BTreeSet<String> = starts
        .map(|start| {
            let name = server[start + "json:\"".len()..].iter();
            name.take_while(|byte| byte.is_ascii_lowercase() || **byte == b'_').map(|byte| char::from(*byte)).collect()
        })
        .collect();
    assert!(switches.contains("allow_rollup_hdrs"), "{switches:?}");
    let unknown: Vec<_> = switches
        .iter()
        .filter(|switch| !OTHERS.contains(&switch.as_str()))
        .filter(|switch| !hookgate::publisher::is_known(&format!("config.{switch}")))
        .collect();
    assert!(
        unknown.is_empty(),
        "add a rule for {unknown:?} to src/publisher/judgement.rs, or list it as harmless there"
    );
}
