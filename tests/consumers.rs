//! Durable consumers: what is wrong with one whose acknowledgements are to release ids, and one that is right.

use async_nats::jetstream::consumer::pull;
use futures_util::StreamExt;
use serde_json::{Value, json};

use crate::support::{NatsServer, SUBJECT, World, batch, eventually, run};

/// Routes with a consumer, as TOML.
fn route(action: &str, life: &str) -> String {
    format!("[[routes]]\nflow = \"vmh\"\nentity = \"beteiligte\"\naction = \"{action}\"\n{life}\n")
}

const ON_ACK: &str = "consumers = [\"case-sync\"]\nrelease = \"ack\"";

async fn consumer(nats: &NatsServer, stream: &str, config: Value) {
    let name = config["durable_name"].as_str().expect("it has a name");
    let request = json!({ "stream_name": stream, "config": config });
    let made = nats.api(&format!("CONSUMER.DURABLE.CREATE.{stream}.{name}"), &request).await;
    assert!(made["error"].is_null(), "{made}");
}

/// Whether the server knows more than one filter of a consumer.
async fn several_filters(nats: &NatsServer) -> bool {
    !nats.client().await.server_info().version.starts_with("2.9.")
}

/// What `doctor` says of a consumer: level and text.
fn judged(settings: &str, name: &str) -> Vec<(String, String)> {
    let ran = run(settings, &["doctor", "--output", "json"]);
    let rows = ran.printed.lines().map(|line| serde_json::from_str::<Value>(line).expect("each line is an object"));
    let what = format!("nats consumer {name}");
    let text = |row: &Value, member: &str| row[member].as_str().expect("it is text").to_owned();
    rows.filter(|row| row["what"] == what.as_str()).map(|row| (text(&row, "level"), text(&row, "text"))).collect()
}

#[tokio::test]
async fn a_consumer_is_added_that_can_release_ids_and_is_left_alone_after_that() {
    let world = World::start().await;
    let settings = format!("{}{}{}", world.settings(), route("create", ON_ACK), route("update", ON_ACK));
    world.nats.create_raw("EVENTS", &json!({ "subjects": ["vmh.>"] })).await;
    assert!(judged(&settings, "case-sync")[0].1.contains("hookgate consumers add case-sync"));

    let added = run(&settings, &["consumers", "add", "case-sync", "--output", "json"]);
    let several = several_filters(&world.nats).await;
    assert_eq!(added.remarks.contains("gives a consumer one filter"), !several, "{}", added.remarks);
    let row = &added.rows()[0];
    let filters = if several { json!([SUBJECT, "vmh.beteiligte.update"]) } else { json!(["vmh.beteiligte.*"]) };
    assert_eq!(*row, json!({ "consumer": "case-sync", "stream": "EVENTS", "filters": filters, "created": true }));
    let config = world.nats.api("CONSUMER.INFO.EVENTS.case-sync", &json!({})).await["config"].clone();
    assert_eq!(
        (&config["ack_policy"], &config["sample_freq"], &config["max_deliver"], &config["deliver_policy"]),
        (&json!("explicit"), &json!("100%"), &json!(-1), &json!("all"))
    );
    assert_eq!(judged(&settings, "case-sync"), [("ok".to_owned(), "0 waiting, 0 unacknowledged".to_owned())]);

    let again = run(&settings, &["consumers", "add", "case-sync"]).good();
    assert!(again.contains("is there already, and right"), "{again}");
    let after = world.nats.api("CONSUMER.INFO.EVENTS.case-sync", &json!({})).await["config"].clone();
    assert_eq!(after, config);
    let unnamed = run(&settings, &["consumers", "add", "other", "--route", "vmh/beteiligte/create"]);
    assert!(unnamed.remarks.contains("consumers = [\"other\"]"), "{}", unnamed.remarks);
    assert!(unnamed.good().contains("it takes vmh.beteiligte.create"));

    for (arguments, problem) in [
        (&["add", "nobody"][..], "no route names \"nobody\""),
        (&["add", "x", "--route", "vmh/a/b"], "no route is named \"vmh/a/b\""),
        (&["add", "case-sync", "--filter", "crm.>"], "does not cover subject \"vmh.beteiligte.create\""),
    ] {
        let said = run(&settings, &[&["consumers"], arguments].concat()).bad();
        assert!(said.contains(problem), "{said}");
    }
    assert_eq!(run(&settings, &["consumers", "add", "a.b"]).code, Some(2));
}

#[tokio::test]
async fn the_list_shows_how_far_each_consumer_is_and_which_is_missing() {
    let world = World::start().await;
    let life = "consumers = [\"case-sync\", \"missing\"]";
    let settings = format!("{}{}{}", world.settings(), route("create", life), route("delete", ""));
    let gate = world.gate(&format!("{}{}", route("create", life), route("delete", ""))).await;
    consumer(&world.nats, "HOOKGATE", json!({ "durable_name": "case-sync", "ack_policy": "explicit" })).await;
    consumer(&world.nats, "HOOKGATE", json!({ "durable_name": "other", "ack_policy": "none" })).await;
    gate.post(batch(["a", "b", "c"])).await;
    let stream = world.nats.jetstream().await.get_stream("HOOKGATE").await.expect("it is there");
    let reader = stream.get_consumer::<pull::Config>("case-sync").await.expect("it is there");
    let mut messages = reader.fetch().max_messages(1).messages().await.expect("it can be read");
    let _first = messages.next().await.expect("there is one").expect("it comes");

    let rows = run(&settings, &["consumers", "list", "--output", "json"]).rows();
    let row = |name: &str| rows.iter().find(|row| row["consumer"] == name).expect("it is listed").clone();
    let members = ["exists", "waiting", "unacknowledged", "redelivered", "delivered_sequence", "acknowledged_up_to"];
    let numbers = |row: Value| members.map(|member| row[member].clone());
    assert_eq!(numbers(row("case-sync")), [json!(true), json!(2), json!(1), json!(0), json!(1), json!(0)]);
    assert_eq!(row("case-sync")["routes"], json!(["vmh/beteiligte/create"]));
    assert_eq!((&row("other")["routes"], &row("other")["problems"]), (&json!([]), &json!([])));
    assert_eq!((&row("missing")["exists"], &row("missing")["waiting"]), (&json!(false), &Value::Null));

    let ran = run(&settings, &["consumers", "list"]);
    assert!(ran.remarks.contains("consumer missing: it is not there"), "{}", ran.remarks);
    let printed = ran.good();
    assert!(printed.lines().next().is_some_and(|head| head.starts_with("CONSUMER ")), "{printed}");
    let cells = |name: &str| {
        printed
            .lines()
            .find(|line| line.starts_with(name))
            .expect("it is listed")
            .split_whitespace()
            .collect::<Vec<_>>()
    };
    assert_eq!(cells("case-sync"), ["case-sync", "HOOKGATE", "vmh/beteiligte/create", "2", "1", "0", "0"]);
    assert_eq!(cells("missing")[3..], ["?", "?", "?", "0"]);
}

#[tokio::test]
async fn doctor_and_check_say_what_keeps_a_consumer_from_releasing_ids() {
    let world = World::start().await;
    world.nats.create_raw("EVENTS", &json!({ "subjects": ["vmh.>"] })).await;
    let settings = format!("{}{}", world.settings(), route("create", ON_ACK));
    let right =
        json!({ "durable_name": "case-sync", "ack_policy": "explicit", "sample_freq": "100", "max_deliver": -1 });
    let cases: [(Value, &str, &str); 6] = [
        (json!({}), "ok", "0 waiting"),
        (json!({ "filter_subject": "vmh.other.*" }), "failure", "gets no event of vmh/beteiligte/create"),
        (json!({ "ack_policy": "all" }), "failure", "ack_policy is all"),
        (json!({ "sample_freq": "99%" }), "failure", "sample_freq is 99 %"),
        (json!({ "sample_freq": "" }), "failure", "sample_freq is 0 %"),
        (json!({ "max_deliver": 5 }), "warning", "max_deliver is 5"),
    ];
    for (change, level, words) in cases {
        let mut config = right.clone();
        config.as_object_mut().expect("it is one").extend(change.as_object().expect("it is one").clone());
        consumer(&world.nats, "EVENTS", config).await;
        let found = judged(&settings, "case-sync");
        assert!(found.len() == 1 && found[0].0 == level && found[0].1.contains(words), "{change}: {found:?}");
        let checked = run(&settings, &["check"]);
        assert_eq!(checked.code, Some(i32::from(level == "failure")), "{change}: {}", checked.remarks);
        assert_eq!(checked.remarks.contains(words), level != "ok", "{change}: {}", checked.remarks);
        let answer = world.nats.api("CONSUMER.DELETE.EVENTS.case-sync", &json!({})).await;
        assert_eq!(answer["success"], true, "{answer}");
    }
    let checked = run(&settings, &["check"]).bad();
    assert!(checked.contains("has none of this name") && checked.contains("NATS is not set up for it"), "{checked}");

    // Without release = "ack" it only has to be there.
    let explicit = format!("{}{}", world.settings(), route("create", "consumers = [\"case-sync\"]"));
    assert_eq!(judged(&explicit, "case-sync")[0].0, "warning");
    consumer(&world.nats, "EVENTS", json!({ "durable_name": "case-sync", "ack_policy": "explicit" })).await;
    assert_eq!(judged(&explicit, "case-sync")[0].0, "ok");
}

#[tokio::test]
async fn one_consumer_serves_many_routes() {
    let world = World::start().await;
    world.nats.create_raw("EVENTS", &json!({ "subjects": ["vmh.>"] })).await;
    let routes: String = (0..40).map(|number| route(&format!("a{number}"), ON_ACK)).collect();
    let settings = format!("{}{routes}", world.settings());
    run(&settings, &["consumers", "add", "case-sync", "--filter", "vmh.beteiligte.*"]).good();
    assert_eq!(judged(&settings, "case-sync").len(), 1);
    assert_eq!(run(&settings, &["check"]).code, Some(0));
    let row = &run(&settings, &["consumers", "list", "--output", "json"]).rows()[0];
    assert_eq!(row["routes"].as_array().map(Vec::len), Some(40));
    let elsewhere = format!(
        "{settings}{}",
        "[[routes]]\nflow = \"vmh\"\nentity = \"akte\"\naction = \"create\"\nconsumers = [\"case-sync\"]\nrelease = \"ack\"\n"
    );
    let found = judged(&elsewhere, "case-sync");
    assert!(found[0].1.contains("gets no event of vmh/akte/create;"), "{found:?}");
}

#[tokio::test]
async fn check_fails_if_a_stream_takes_the_requests_to_release_ids() {
    let world = World::start().await;
    world.nats.create_raw("ALL", &json!({ "subjects": ["hookgate.>", "vmh.>"] })).await;
    let checked = run(&world.settings(), &["check"]).bad();
    assert!(checked.contains("nats subject hookgate.release: stream ALL covers it"), "{checked}");
    let ran = run(&world.settings(), &["doctor"]);
    assert!(ran.code == Some(1) && ran.printed.contains("FAIL  nats subject hookgate.release"), "{}", ran.printed);
    let other = format!("instance = \"gate\"\n{}", world.settings());
    assert_eq!(run(&other, &["check"]).code, Some(0));
    // Where NATS is out of reach, the configuration is valid all the same.
    let away = "nats.url = \"nats://127.0.0.1:1\"\n";
    let checked = run(&format!("{away}{}", route("create", ON_ACK)), &["check"]);
    assert!(
        checked.code == Some(0) && checked.remarks.contains("the consumers were not looked at"),
        "{}",
        checked.remarks
    );
    assert!(!run(away, &["check"]).remarks.contains("not looked at"));
}

#[tokio::test]
async fn metrics_and_status_say_how_far_the_consumers_of_a_route_are() {
    let world = World::start().await;
    let gate = world.gate(&route("create", "consumers = [\"case-sync\", \"missing\"]")).await;
    let gauge = async |name: &str, consumer: &str| {
        let line = format!("{name}{{route=\"vmh/beteiligte/create\",consumer=\"{consumer}\"}} ");
        let text = String::from_utf8(gate.probe("/metrics").await.body).expect("it is text");
        let value = text.lines().find_map(|text| text.strip_prefix(&line));
        value.unwrap_or_else(|| panic!("{line} is in {text}")).to_owned()
    };
    assert_eq!(gauge("hookgate_consumer_pending", "case-sync").await, "0", "each series is there from the start");
    assert_eq!(gauge("hookgate_consumer_ack_pending", "missing").await, "0");
    gate.wait_log("a consumer that routes name is not seen").await;

    consumer(&world.nats, "HOOKGATE", json!({ "durable_name": "case-sync", "ack_policy": "explicit" })).await;
    gate.post(batch(["a", "b", "c"])).await;
    let stream = world.nats.jetstream().await.get_stream("HOOKGATE").await.expect("it is there");
    let reader = stream.get_consumer::<pull::Config>("case-sync").await.expect("it is there");
    let mut messages = reader.fetch().max_messages(1).messages().await.expect("it can be read");
    let _first = messages.next().await.expect("there is one").expect("it comes");
    let counted = async || {
        let numbers = (
            gauge("hookgate_consumer_pending", "case-sync").await,
            gauge("hookgate_consumer_ack_pending", "case-sync").await,
        );
        (numbers == ("2".to_owned(), "1".to_owned())).then_some(())
    };
    Box::pin(eventually("the gauges say it", counted)).await;
    let status = gate.probe("/v1/status").await.json();
    let expected = json!([
        { "name": "case-sync", "waiting": 2, "unacknowledged": 1 },
        { "name": "missing", "waiting": null, "unacknowledged": null },
    ]);
    assert_eq!(status["routes"][0]["consumers"], expected);
}
