//! `/v1/status` and the page that shows it: what an operator sees without any other tool.

use serde_json::{Value, json};

use crate::support::{Answer, Gate, OUTBOX, World, batch, eventually, try_exchange};

async fn status(gate: &Gate) -> Value {
    let answer = gate.probe("/v1/status").await;
    assert_eq!((answer.status, answer.header("content-type")), (200, Some("application/json")));
    assert_eq!(answer.header("cache-control"), Some("no-store"));
    answer.json()
}

/// The last events as route, id and outcome, the newest first.
fn events(status: &Value) -> Vec<(String, String)> {
    let events = status["events"].as_array().expect("events are a list");
    let word = |event: &Value, name: &str| event[name].as_str().expect("it is text").to_owned();
    let read = |event: &Value| {
        assert_eq!(event["route"], "vmh/beteiligte/create");
        let age = humantime::parse_rfc3339(&word(event, "time")).expect("RFC 3339").elapsed();
        assert!(age.is_ok_and(|age| age.as_secs() < 60), "{event} happened in this test");
        (word(event, "entity_id"), word(event, "outcome"))
    };
    events.iter().map(read).collect()
}

fn pair(id: &str, outcome: &str) -> (String, String) {
    (id.to_owned(), outcome.to_owned())
}

#[tokio::test]
async fn says_what_was_done_and_what_is_held() {
    let world = World::start().await;
    let gate = world.gate("server.max_in_flight = 7\nserver.max_connections = 9").await;
    assert_eq!(gate.post(r#"[{"id":"a"},{"id":"<b>\"ü"},{"x":1}]"#).await.counts(), (2, 2));
    world.redis.settled(OUTBOX).await;
    assert_eq!(gate.post(batch(["a"])).await.counts(), (0, 1));
    assert_eq!(gate.post("no").await.status, 400);
    let status = eventually("the store was read", async || {
        let status = status(&gate).await;
        (status["routes"][0]["pending_ids"] == 2).then_some(status)
    })
    .await;

    assert_eq!(status["version"], env!("CARGO_PKG_VERSION"));
    assert_eq!((&status["phase"], &status["ready"]), (&"serving".into(), &true.into()));
    assert!(status["uptime_seconds"].as_u64().is_some_and(|seconds| seconds < 60), "{status}");
    assert!(status["store_read_seconds_ago"].as_f64().is_some_and(|seconds| seconds < 60.0), "{status}");
    for store in ["redis", "nats"] {
        assert_eq!(status[store]["state"], "up");
        let version = status[store]["version"].as_str().expect("real servers say their version");
        assert!(version.starts_with(|digit: char| digit.is_ascii_digit()) && version.contains('.'), "{version}");
    }
    assert_eq!(status["limits"]["requests_in_flight"], json!({"used": 0, "limit": 7}));
    assert_eq!(status["limits"]["buffered_bytes"], json!({"used": 0, "limit": 134_217_728}));
    assert_eq!(status["limits"]["connections"]["limit"], 9);

    let route = &status["routes"][0];
    let mut route = route.clone();
    let by_second = route["items_by_second"].take();
    let by_second = by_second.as_array().expect("a number for each second");
    assert_eq!(by_second.len(), 60);
    assert_eq!(by_second.iter().filter_map(Value::as_u64).sum::<u64>(), 4, "{by_second:?}");
    let unreleased = route["unreleased_for_seconds"].take();
    assert!(unreleased.as_u64().is_some_and(|seconds| seconds < 60), "{unreleased}");
    let oldest = route["pending_oldest_age_seconds"].take();
    assert!(oldest.as_f64().is_some_and(|seconds| seconds < 60.0), "{oldest}");
    let expected = json!({
        "name": "vmh/beteiligte/create",
        "label": "VMH Webhook Beteiligte Create",
        "path": "/vmh/webhook/beteiligte/create",
        "subject": "vmh.beteiligte.create",
        "pending_key": "vmh:beteiligte:create_pending",
        "requests": {"200": 2, "400": 1},
        "items": {"new": 2, "in_flight": 0, "duplicate": 1, "coalesced": 0, "undeduplicated": 0, "rejected": 1},
        "items_last_minute": 4,
        "items_by_second": null,
        "last_hour": {"given_up_requests": 1, "rejected_items": 1, "signature_failures": 0},
        "refused_last_ten_seconds": 0,
        "unreleased_for_seconds": null,
        "published": {"direct": 2, "relay": 0, "undeduplicated": 0},
        "dead_letters": 2,
        "signature_failures": 0,
        "pending_ids": 2,
        "pending_oldest_age_seconds": null,
        "given_up": 0,
        "outbox": {"entries": 0, "oldest_age_seconds": 0.0},
        "consumers": [],
    });
    assert_eq!(route, expected);
    assert_eq!(status["orphaned_outboxes"], json!([]));
    let expected = [pair("a", "duplicate"), pair("<b>\"ü", "published"), pair("a", "published")];
    assert_eq!(events(&status), expected);
}

#[tokio::test]
async fn says_what_is_wrong() {
    let mut world = World::start().await;
    let gate = world.gate("server.request_deadline = \"1s\"").await;
    world.nats.kill();
    gate.wait_store("nats", "unreachable").await;
    assert_eq!(gate.post(batch(["a"])).await.status, 503);
    world.redis.kill();
    gate.wait_store("redis", "unreachable").await;
    let status = status(&gate).await;
    for store in ["redis", "nats"] {
        assert_eq!(status[store]["state"], "unreachable");
        assert!(status[store]["problem"].as_str().is_some_and(|problem| problem.contains("127.0.0.1")), "{status}");
    }
    assert_eq!(status["ready"], true, "an instance that answers 503 is better than none");
    assert_eq!(status["on_unavailable"], json!({"redis": "publish", "nats": "reject"}));
    // Published without deduplication is what was acknowledged, and this is not.
    assert_eq!(gate.post(batch(["lost", "gone"])).await.status, 503);
    let status = self::status(&gate).await;
    assert_eq!(status["routes"][0]["items"]["undeduplicated"], 0, "{status}");
    assert!(status["routes"][0]["refused_last_ten_seconds"].as_u64() > Some(0), "{status}");
    assert_eq!(events(&status), [pair("gone", "unconfirmed"), pair("lost", "unconfirmed"), pair("a", "unconfirmed")]);

    world.nats.start_again().await;
    gate.wait_store("nats", "up").await;
    gate.deliver(batch(["b"])).await;
    let status = self::status(&gate).await;
    assert_eq!(events(&status)[0], pair("b", "undeduplicated"));
    assert_eq!(status["routes"][0]["items"]["undeduplicated"], 1);
}

#[tokio::test]
async fn says_what_this_instance_does_while_a_store_is_down() {
    let world = World::start().await;
    let gate = world.gate("redis.on_unavailable = \"reject\"\nnats.on_unavailable = \"accept\"").await;
    assert_eq!(status(&gate).await["on_unavailable"], json!({"redis": "reject", "nats": "accept"}));
}

#[tokio::test]
async fn keeps_the_last_fifty_events() {
    let world = World::start().await;
    let gate = world.gate("").await;
    let ids: Vec<String> = (0..120).map(|number| format!("id-{number}")).collect();
    assert_eq!(gate.post(batch(&ids)).await.counts(), (120, 120));
    let newest: Vec<_> = events(&status(&gate).await).into_iter().map(|(id, _)| id).collect();
    let expected: Vec<_> = ids[70..].iter().rev().cloned().collect();
    assert_eq!(newest, expected);
    world.redis.settled(OUTBOX).await;
    assert_eq!(gate.post(batch(&ids[..1])).await.counts(), (0, 1));
    let newest = events(&status(&gate).await);
    assert_eq!(newest[0], pair("id-0", "duplicate"));
    assert_eq!(newest.len(), 50);
}

#[tokio::test]
async fn says_that_it_leaves() {
    let world = World::start().await;
    let mut gate = world.gate("server.drain_delay = \"2s\"").await;
    gate.signal("TERM");
    gate.wait_log("still serving").await;
    let leaving = eventually("it leaves", async || {
        let status = status(&gate).await;
        (status["phase"] != "serving").then_some(status)
    })
    .await;
    assert_eq!((&leaving["phase"], &leaving["ready"]), (&"leaving".into(), &false.into()));
    assert_eq!(gate.end().await.code(), Some(0));
}

async fn ask(gate: &Gate, method: &str, path: &str) -> Answer {
    let request = format!("{method} {path} HTTP/1.1\r\nHost: x\r\nContent-Length: 0\r\nConnection: close\r\n\r\n");
    try_exchange(gate.probes(), request.as_bytes()).await.expect("there is an answer")
}

#[tokio::test]
async fn can_only_be_read() {
    let world = World::start().await;
    let gate = world.gate("").await;
    for path in ["/", "/livez", "/readyz", "/metrics", "/v1/status"] {
        for method in ["POST", "PUT", "DELETE", "PATCH", "OPTIONS", "TRACE"] {
            let answer = ask(&gate, method, path).await;
            assert_eq!((answer.status, answer.header("allow")), (405, Some("GET, HEAD")), "{method} {path}");
        }
        let (get, head) = (ask(&gate, "GET", path).await, ask(&gate, "HEAD", path).await);
        assert_eq!((get.status, head.status), (200, 200), "{path}");
        assert_eq!(get.header("content-type"), head.header("content-type"), "{path}");
        assert!(!get.body.is_empty() && head.body.is_empty(), "{path}");
    }
    for path in ["/v1", "/v1/status/", "/index.html", "//", "/metrics/x"] {
        assert_eq!(ask(&gate, "GET", path).await.status, 404, "{path}");
    }
}

#[tokio::test]
async fn the_page_allows_itself_and_nothing_else() {
    let world = World::start().await;
    let gate = world.gate("").await;
    let mut nonces = Vec::new();
    for _ in 0..2 {
        let page = gate.probe("/").await;
        assert_eq!((page.status, page.header("content-type")), (200, Some("text/html; charset=utf-8")));
        let policy = page.header("content-security-policy").expect("a page has a policy");
        assert!(policy.starts_with("default-src 'none'; "), "{policy}");
        assert!(!policy.contains("unsafe") && !policy.contains('*') && !policy.contains("http"), "{policy}");
        for part in ["connect-src 'self'", "base-uri 'none'", "form-action 'none'", "frame-ancestors 'none'"] {
            assert!(policy.contains(part), "{part} in {policy}");
        }
        assert_eq!(page.header("x-content-type-options"), Some("nosniff"));
        let nonce = policy.split("script-src 'nonce-").nth(1).and_then(|rest| rest.split('\'').next());
        let nonce = nonce.expect("the script has a nonce");
        assert_eq!(page.text().matches(&format!("nonce=\"{nonce}\"")).count(), 2, "style and script");
        assert!(!page.text().contains("{{"), "nothing is left to fill in");
        for outside in ["http://", "https://", "src=", "@import", "url("] {
            assert!(!page.text().contains(outside), "{outside} in the page");
        }
        nonces.push(nonce.to_owned());
    }
    assert_ne!(nonces[0], nonces[1], "nobody can guess it");
}
