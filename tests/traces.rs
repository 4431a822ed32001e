//! Each span and its parent, as a collector gets them by OTLP over HTTP.

use std::collections::BTreeMap;

use crate::support::{Collector, PATH, Span, World, batch, post};

const INTERNAL: i32 = 1;
const SERVER: i32 = 2;
const CLIENT: i32 = 3;
const PRODUCER: i32 = 4;

const SETTINGS: &str = "server.request_deadline = \"2s\"\nnats.ack_timeout = \"500ms\"\n";

/// The spans by their names; in the order of their beginnings, for those that share one.
fn by_name(mut spans: Vec<Span>) -> BTreeMap<String, Vec<Span>> {
    spans.sort_by_key(|span| span.time);
    let mut found = BTreeMap::<_, Vec<_>>::new();
    for span in spans {
        found.entry(span.name.clone()).or_default().push(span);
    }
    found
}

fn about(span: &Span, names: &[&str]) -> Vec<String> {
    names.iter().map(|name| span.attributes.get(*name).cloned().unwrap_or_default()).collect()
}

/// A POST of one batch with a header of the caller's.
fn traced(body: &str, traceparent: &str) -> Vec<u8> {
    let request = String::from_utf8(post(PATH, body.as_bytes())).expect("it is text");
    request.replacen("\r\n", &format!("\r\ntraceparent: {traceparent}\r\n"), 1).into_bytes()
}

#[tokio::test]
async fn spans_of_a_request_its_claim_and_its_events_hang_together() {
    let (world, collector) = tokio::join!(World::start(), Collector::start());
    let gate = world.gate(&format!("{SETTINGS}{}", collector.settings())).await;
    let outside = ("0af7651916cd43dd8448eb211c80319c".to_owned(), "b7ad6b7169203331".to_owned());
    let body = batch(["a", "b"]);
    let answer = gate.exchange(&traced(&body, &format!("00-{}-{}-01", outside.0, outside.1))).await;
    assert_eq!(answer.counts(), (2, 2));

    let spans = collector.wait(5).await;
    let events = world.nats.events().await;
    for span in &spans {
        assert_eq!(span.resource["service.name"], "hookgate");
        assert_eq!(span.resource["service.version"], env!("CARGO_PKG_VERSION"));
        assert!(span.time.0 <= span.time.1, "{span:?}");
        assert_eq!(span.trace, spans[0].trace, "all in one trace");
        assert_eq!(span.error, None);
    }
    let spans = by_name(spans);
    let names: Vec<_> = spans.iter().map(|(name, spans)| (name.as_str(), spans.len())).collect();
    let expected = [
        ("POST /vmh/webhook/beteiligte/create", 1),
        ("claim", 1),
        ("create vmh.beteiligte.create", 2),
        ("send vmh.beteiligte.create", 1),
    ];
    assert_eq!(names, expected);
    let [received, claim] = ["POST /vmh/webhook/beteiligte/create", "claim"].map(|name| &spans[name][0]);
    let [created, sent] = ["create vmh.beteiligte.create", "send vmh.beteiligte.create"].map(|name| &spans[name]);

    assert_eq!((received.kind, received.parent.as_str()), (SERVER, ""), "what came in is no parent");
    assert_eq!(received.links, [outside], "but linked");
    let length = body.len().to_string();
    let http =
        ["http.request.method", "http.route", "http.response.status_code", "http.request.body.size", "error.type"];
    assert_eq!(about(received, &http), ["POST", PATH, "200", &length, ""]);

    assert_eq!((claim.kind, &claim.parent), (INTERNAL, &received.id));
    assert_eq!(about(claim, &["hookgate.ids", "hookgate.ids.new", "hookgate.ids.in_flight"]), ["2", "2", "0"]);

    let sent = &sent[0];
    assert_eq!((sent.kind, &sent.parent), (CLIENT, &received.id));
    let messaging = [
        "messaging.system",
        "messaging.destination.name",
        "messaging.operation.type",
        "messaging.batch.message_count",
        "hookgate.attempts",
        "hookgate.via",
    ];
    assert_eq!(about(sent, &messaging), ["nats", "vmh.beteiligte.create", "send", "2", "1", "request"]);

    // The trace goes on at a subscriber, below the span in which its message was made.
    let carried: Vec<_> = events.iter().map(|event| event.headers["traceparent"].clone()).collect();
    let mut made: Vec<_> = created.iter().map(|span| format!("00-{}-{}-01", span.trace, span.id)).collect();
    made.sort_by_key(|made| carried.iter().position(|carried| carried == made));
    assert_eq!(made, carried);
    let linked: Vec<_> = sent.links.iter().map(|(trace, id)| format!("00-{trace}-{id}-01")).collect();
    assert_eq!(linked, carried);
    for span in created {
        assert_eq!((span.kind, &span.parent), (PRODUCER, &received.id));
        let token =
            events.iter().find(|event| event.headers["traceparent"].contains(&span.id)).expect("it is there").token();
        assert_eq!(about(span, &["messaging.operation.type", "messaging.message.id"]), ["create", token]);
    }
}

#[tokio::test]
async fn duplicates_and_refusals_have_spans_and_other_requests_none() {
    let (world, collector) = tokio::join!(World::start(), Collector::start());
    let mut gate = world.gate(&format!("{SETTINGS}{}", collector.settings())).await;
    assert_eq!(gate.post(batch(["a"])).await.counts(), (1, 1));
    world.redis.settled(crate::support::OUTBOX).await;
    let before = collector.wait(4).await;

    // A header that can't be read starts a new trace, as none would.
    for bad in ["", "00-xyz", "\u{e4}", &"0".repeat(300)] {
        assert_eq!(gate.exchange(&traced(&batch(["a"]), bad)).await.counts(), (0, 1), "{bad:?}");
    }
    assert_eq!(gate.post("[{").await.status, 400);
    assert_eq!(gate.post_to("/elsewhere?name=Mustermann", "[]").await.status, 404);
    assert!(gate.terminate().await.success());

    let all = collector.spans();
    let spans = by_name(all[before.len()..].to_vec());
    let names: Vec<_> = spans.iter().map(|(name, spans)| (name.as_str(), spans.len())).collect();
    assert_eq!(
        names,
        [("POST /vmh/webhook/beteiligte/create", 5), ("claim", 4)],
        "nothing is sent, nobody else is shown"
    );
    let requests = &spans["POST /vmh/webhook/beteiligte/create"];
    assert!(requests.iter().all(|span| span.links.is_empty() && span.parent.is_empty()));
    let claim = &spans["claim"][0];
    assert_eq!(about(claim, &["hookgate.ids", "hookgate.ids.new", "hookgate.ids.in_flight"]), ["1", "0", "0"]);
    let refused = &requests[4];
    assert_eq!(about(refused, &["http.response.status_code", "error.type"]), ["400", "not_json"]);
    assert_eq!(refused.error, None, "the sender's mistake");
}

#[tokio::test]
async fn an_event_of_the_relay_hangs_under_the_request_that_claimed_it() {
    let (mut world, collector) = tokio::join!(World::start(), Collector::start());
    let gate = world.gate(&format!("{SETTINGS}outbox.relay_after = \"3s\"\n{}", collector.settings())).await;
    world.nats.kill();
    for _ in 0..2 {
        assert_eq!(gate.post(batch(["a"])).await.error(), (503, "not_published".into()));
    }
    let failed = by_name(collector.wait(7).await);
    let (requests, sent) = (&failed["POST /vmh/webhook/beteiligte/create"], &failed["send vmh.beteiligte.create"]);
    let created = &failed["create vmh.beteiligte.create"];
    assert_eq!((requests.len(), sent.len(), created.len()), (2, 2, 1), "the second one makes no new event");
    let origin = (created[0].trace.clone(), created[0].id.clone());
    assert_eq!(created[0].trace, requests[0].trace);
    assert_ne!(requests[0].trace, requests[1].trace);
    for (request, sent) in requests.iter().zip(sent) {
        assert_eq!(about(request, &["http.response.status_code", "error.type"]), ["503", "not_published"]);
        assert!(request.error.is_some() && sent.error.is_some());
        assert_eq!((&sent.trace, &sent.parent), (&request.trace, &request.id));
        assert_eq!(sent.links, std::slice::from_ref(&origin), "linked to where the event was made");
    }
    assert!(sent[0].attributes["hookgate.attempts"].parse::<u32>().expect("a number") > 1);
    let claims = &failed["claim"];
    assert_eq!(about(&claims[1], &["hookgate.ids.new", "hookgate.ids.in_flight"]), ["0", "1"]);

    world.nats.start_again().await;
    let relayed = crate::support::eventually("the relay has sent it", async || {
        let relays = |span: &Span| span.attributes.get("hookgate.via").is_some_and(|via| via == "relay");
        collector.spans().into_iter().find(|span| relays(span) && span.error.is_none())
    })
    .await;
    assert_eq!(
        (relayed.name.as_str(), relayed.kind, relayed.parent.as_str()),
        ("send vmh.beteiligte.create", CLIENT, "")
    );
    assert_eq!(relayed.links, std::slice::from_ref(&origin));
    assert!(requests.iter().all(|request| request.trace != relayed.trace), "a trace of its own");
    let events = world.nats.events().await;
    assert_eq!(events.len(), 1);
    assert_eq!(events[0].headers["traceparent"], format!("00-{}-{}-01", origin.0, origin.1));
}

#[tokio::test]
async fn a_collector_that_is_down_costs_a_warning() {
    let world = World::start().await;
    let gone = Collector::start().await.settings();
    let mut gate = world.gate(&format!("{SETTINGS}{gone}")).await;
    for id in ["a", "b", "c"] {
        assert_eq!(gate.post(batch([id])).await.counts(), (1, 1));
        gate.wait_log("spans are lost").await;
    }
    assert!(gate.terminate().await.success());
    let warnings = gate.log().await.into_iter().filter(|line| line.contains("spans are lost")).count();
    assert_eq!(warnings, 1, "said once");
}
