//! Every row of the contract's table of status codes, and that what is refused is not claimed.

use std::collections::BTreeSet;

use crate::support::{Answer, Connection, PATH, PENDING, World, batch, eventually, field, post, post_and_stay};

/// What a sender does next depends on the code alone, so the code has to be right.
async fn assert_nothing_happened(world: &World) {
    assert_eq!(world.redis.pending(PENDING).await, BTreeSet::new());
    assert_eq!(world.nats.events().await, []);
}

#[tokio::test]
async fn a_body_that_can_never_be_processed_is_400_and_claims_nothing() {
    let world = World::start().await;
    let gate = world.gate("").await;
    let cases: [(&[u8], &str); 18] = [
        (b"", "body_empty"),
        (b" \r\n\t", "body_empty"),
        (b"null", "neither_array_nor_object"),
        (b"true", "neither_array_nor_object"),
        (b"1", "neither_array_nor_object"),
        (b"\"[]\"", "neither_array_nor_object"),
        (b"id=a", "not_json"),
        (b"<id>a</id>", "not_json"),
        (b"[{\"id\":\"a\"}", "not_json"),
        (b"[{\"id\":\"a\"},", "not_json"),
        (b"[{\"id\":\"a\"},]", "not_json"),
        (b"[{\"id\":\"a\"},{\"id\":", "not_json"),
        (b"[{\"id\":\"a\"}]]", "not_json"),
        (b"[{\"id\":\"a\"}] x", "not_json"),
        (b"{\"id\":\"a\"}{\"id\":\"b\"}", "not_json"),
        (b"[{\"id\":\"a\"}]\n[{\"id\":\"b\"}]", "not_json"),
        (b"\xef\xbb\xbf[{\"id\":\"a\"}]", "not_json"),
        (b"[{\"id\":\"a\"},\xff]", "not_json"),
    ];
    for (body, error) in cases {
        let answer = gate.post(body).await;
        assert_eq!(answer.error(), (400, error.into()), "{}", String::from_utf8_lossy(body));
    }
    let mut broken = format!("POST {PATH} HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n").into_bytes();
    broken.extend(b"no number\r\n[{\"id\":\"a\"}]\r\n0\r\n\r\n");
    assert_eq!(gate.exchange(&broken).await.status, 400, "a chunk without a size");
    assert_nothing_happened(&world).await;
}

#[tokio::test]
async fn a_head_of_more_lines_than_allowed_is_431() {
    let world = World::start().await;
    // hyper counts where there may be more than it has room for by itself.
    for limit in [8, 64, 100, 120] {
        let gate = world.gate(&format!("server.max_headers = {limit}")).await;
        let of = |lines: usize| {
            let more = "X: y\r\n".repeat(lines - 3);
            format!("POST {PATH} HTTP/1.1\r\nHost: x\r\nConnection: close\r\nContent-Length: 2\r\n{more}\r\n[]")
        };
        assert_eq!(gate.exchange(of(limit).as_bytes()).await.status, 200, "{limit} of {limit}");
        let answer = gate.exchange(of(limit + 1).as_bytes()).await;
        assert_eq!(answer.status, 431, "one more than {limit}");
        if limit == 64 {
            assert_eq!(answer.error(), (431, "too_many_headers".into()));
            assert!(answer.text().contains("65 lines, which is more than 64; send fewer"), "{}", answer.text());
        }
    }
}

#[tokio::test]
async fn any_path_but_the_exact_one_is_404() {
    let world = World::start().await;
    let gate = world.gate("").await;
    let paths = [
        "/",
        "/vmh/webhook/beteiligte",
        "/vmh/webhook/beteiligte/create/",
        "/vmh/webhook/beteiligte/create/x",
        "/vmh/webhook/beteiligte/Create",
        "//vmh/webhook/beteiligte/create",
        "/vmh//webhook/beteiligte/create",
        "/vmh/webhook/../webhook/beteiligte/create",
        "/vmh/webhook/%2e%2e/webhook/beteiligte/create",
        "/vmh/webhook/beteiligte/%63reate",
        "/vmh/webhook/beteiligte/create%00",
        "/vmh/webhook/beteiligte/create%ff",
        "/vmh%2fwebhook/beteiligte/create",
    ];
    for path in paths {
        assert_eq!(gate.post_to(path, batch(["a"])).await.error(), (404, "unknown_path".into()), "{path}");
    }
    assert_nothing_happened(&world).await;

    assert_eq!(gate.post_to(&format!("{PATH}?attempt=2"), batch(["a"])).await.counts(), (1, 1), "a query is no path");
}

#[tokio::test]
async fn any_method_but_post_is_405_and_says_so() {
    let world = World::start().await;
    let mut gate = world.gate("").await;
    for method in ["GET", "PUT", "PATCH", "DELETE", "OPTIONS", "TRACE", "BREW"] {
        let request = format!("{method} {PATH} HTTP/1.1\r\nHost: x\r\nContent-Length: 0\r\nConnection: close\r\n\r\n");
        let answer = gate.exchange(request.as_bytes()).await;
        assert_eq!(answer.error(), (405, "method_not_allowed".into()), "{method}");
        assert_eq!(answer.header("allow"), Some("POST"), "{method}");
    }
    let head = format!("HEAD {PATH} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n");
    let answer = gate.exchange(head.as_bytes()).await;
    assert_eq!((answer.status, answer.header("allow")), (405, Some("POST")));
    assert_eq!(answer.body, b"");
    let elsewhere = gate.exchange(b"GET /elsewhere HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n").await;
    assert_eq!(elsewhere.error(), (404, "unknown_path".into()));

    let made_up = "ROSALINDE".repeat(100);
    let request = format!("{made_up} {PATH} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n");
    let answer = gate.exchange(request.as_bytes()).await;
    assert_eq!(answer.error(), (405, "method_not_allowed".into()));
    assert!(!answer.text().contains("ROSALINDE"), "what a sender makes up is not repeated: {}", answer.text());
    assert!(!gate.log().await.concat().contains("ROSALINDE"), "nor written down");
}

#[tokio::test]
async fn a_body_that_does_not_arrive_is_408() {
    let world = World::start().await;
    let gate = world.gate("server.body_read_timeout = \"300ms\"").await;
    for part in ["", "[{\"id\":\"a\"}"] {
        let request = format!("POST {PATH} HTTP/1.1\r\nHost: x\r\nContent-Length: 99\r\n\r\n{part}");
        let answer = gate.exchange(request.as_bytes()).await;
        assert_eq!(answer.error(), (408, "body_timeout".into()), "{part:?}");
    }
    let chunked = format!("POST {PATH} HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n5\r\n[{{\"id\r\n");
    assert_eq!(gate.exchange(chunked.as_bytes()).await.error(), (408, "body_timeout".into()));
    assert_nothing_happened(&world).await;
}

#[tokio::test]
async fn a_body_over_the_limit_is_413() {
    let world = World::start().await;
    let gate = world.gate("server.max_body_bytes = 1000").await;

    let announced = format!("POST {PATH} HTTP/1.1\r\nHost: x\r\nContent-Length: 1001\r\n\r\n");
    let answer = gate.exchange(announced.as_bytes()).await;
    assert_eq!(answer.error(), (413, "body_too_large".into()), "before anything of the body is sent");

    let chunk = format!("{:x}\r\n{}\r\n", 501, " ".repeat(501));
    let chunked =
        format!("POST {PATH} HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n{chunk}{chunk}0\r\n\r\n");
    assert_eq!(gate.exchange(chunked.as_bytes()).await.error(), (413, "body_too_large".into()));
    assert_nothing_happened(&world).await;

    let exact = format!("{:1000}", batch(["a"]));
    assert_eq!(gate.post(exact).await.counts(), (1, 1), "the limit itself is allowed");
    let chunked = format!("POST {PATH} HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n");
    let body = batch(["b"]);
    let chunked = format!("{chunked}{:x}\r\n{body}\r\n0\r\n\r\n", body.len());
    assert_eq!(gate.exchange(chunked.as_bytes()).await.counts(), (1, 1), "a length is not needed");
}

/// Many clients write all of a request before they read.
#[tokio::test]
async fn an_answer_that_comes_early_reaches_a_sender_that_is_still_sending() {
    let world = World::start().await;
    let gate = world.gate("server.max_body_bytes = 1000").await;
    let body = " ".repeat(3 << 20);
    assert_eq!(gate.post(&body).await.error(), (413, "body_too_large".into()));
    assert_eq!(gate.post_to("/elsewhere", &body).await.error(), (404, "unknown_path".into()));

    // A sender that never stops is disconnected.
    let mut endless = Connection::open(gate.address()).await.expect("hookgate listens");
    let head = format!("POST {PATH} HTTP/1.1\r\nHost: x\r\nContent-Length: {}\r\n\r\n", u64::MAX >> 1);
    endless.send(head.as_bytes()).await.expect("hookgate reads");
    eventually("the connection is closed", async || endless.send(&[b' '; 1000]).await.is_err().then_some(())).await;
}

#[tokio::test]
async fn too_many_requests_at_once_are_503() {
    let world = World::start().await;
    let gate = world.gate("server.max_in_flight = 1").await;
    world.nats.freeze();
    let mut busy = gate.busy_with(&post(PATH, batch(["a"]).as_bytes())).await;

    assert_eq!(gate.post(batch(["b"])).await.error(), (503, "too_many_requests".into()));

    world.nats.thaw();
    assert_eq!(busy.answer().await.expect("it is answered").counts(), (1, 1));
    assert_eq!(gate.deliver(batch(["b"])).await.counts(), (1, 1), "its place is free again");
}

/// EspoCRM has few attempts, and thousands that are refused at once come back at once.
#[tokio::test]
async fn requests_that_find_no_place_wait_for_one() {
    let world = World::start().await;
    let gate = world.gate("server.max_in_flight = 1").await;
    world.nats.freeze();
    let mut senders = vec![gate.busy_with(&post(PATH, batch(["a"]).as_bytes())).await];
    for id in ["b", "c", "d"] {
        senders.push(gate.send(&post(PATH, batch([id]).as_bytes())).await);
    }
    // They are here while the only place is taken, and have half a second.
    world.nats.thaw();
    for sender in &mut senders {
        assert_eq!(sender.answer().await.expect("it is answered").counts(), (1, 1));
    }
}

/// Otherwise a client that keeps connections, such as an ingress, sends its next webhook where nobody reads.
#[tokio::test]
async fn an_answer_before_the_end_of_the_body_says_that_the_connection_ends() {
    let world = World::start().await;
    let gate = world.gate("server.max_in_flight = 1\nserver.max_body_bytes = 300000").await;
    let answer_to = async |path: &str, body: &str| {
        let mut connection = Connection::open(gate.address()).await.expect("hookgate listens");
        connection.send(&post_and_stay(path, body.as_bytes())).await.expect("hookgate reads");
        connection.answer().await.expect("it is answered")
    };
    let padded = |text: &str, blanks: usize| format!("{text}{}", " ".repeat(blanks));
    let large = padded(&batch(["b"]), 200_000);
    let early = [("/elsewhere", large.clone(), 404), (PATH, padded(&large, 200_000), 413)];
    for (path, body, status) in early {
        let answer = answer_to(path, &body).await;
        assert_eq!((answer.status, answer.header("connection")), (status, Some("close")));
    }
    let read = answer_to(PATH, &padded("[{", 200_000)).await;
    assert_eq!((read.status, read.header("connection")), (400, None), "the body was read: the connection stays");

    world.nats.freeze();
    let mut busy = gate.busy_with(&post(PATH, batch(["a"]).as_bytes())).await;
    let shed = |answer: Answer| (answer.error(), answer.header("connection").map(str::to_owned));
    // A place is asked for once all of a body is here; thousands that come back need no new connection.
    let refused = ((503, "too_many_requests".into()), None);
    assert_eq!(shed(answer_to(PATH, &large).await), refused);
    let chunked = format!("POST {PATH} HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n");
    // Behind chunks the connection ends anyway.
    assert_eq!(shed(gate.exchange(chunked.as_bytes()).await), (refused.0.clone(), Some("close".to_owned())));
    let mut staying = Connection::open(gate.address()).await.expect("hookgate listens");
    for id in ["b", "c"] {
        staying.send(&post_and_stay(PATH, batch([id]).as_bytes())).await.expect("hookgate reads");
        let answer = staying.answer().await.expect("it is answered");
        assert_eq!(shed(answer), ((503, "too_many_requests".into()), None));
    }
    world.nats.thaw();
    assert_eq!(busy.answer().await.expect("it is answered").counts(), (1, 1));
    staying.send(&post_and_stay(PATH, batch(["b"]).as_bytes())).await.expect("hookgate reads");
    assert_eq!(staying.answer().await.expect("it is answered").counts(), (1, 1), "nothing is left of what was refused");
}

/// Whoever only looks at the answer once all is sent, as most clients do, would else see a connection that is reset, which
/// is final for `EspoCRM` 10.
#[tokio::test]
async fn a_sender_of_the_largest_body_is_still_there_for_its_503() {
    let world = World::start().await;
    let gate = world.gate("server.max_in_flight = 1").await;
    world.nats.freeze();
    let mut busy = gate.busy_with(&post(PATH, batch(["a"]).as_bytes())).await;
    let mut largest = batch(["b"]).into_bytes();
    largest.resize(16 << 20, b' ');
    for _ in 0..8 {
        assert_eq!(gate.post(&largest).await.error(), (503, "too_many_requests".into()));
    }
    world.nats.thaw();
    assert_eq!(busy.answer().await.expect("it is answered").counts(), (1, 1));
}

#[tokio::test]
async fn too_many_bytes_at_once_are_503() {
    let world = World::start().await;
    let gate = world.gate("server.max_body_bytes = 1000\nserver.max_buffered_bytes = 4000").await;
    world.nats.freeze();
    let mut busy = Vec::new();
    for id in ["a", "b", "c"] {
        busy.push(gate.busy_with(&post(PATH, format!("{:1000}", batch([id])).as_bytes())).await);
    }

    let last = format!("{:1000}", batch(["d"]));
    assert_eq!(gate.post(&last).await.error(), (503, "too_many_bytes".into()));

    world.nats.thaw();
    for sender in &mut busy {
        assert_eq!(sender.answer().await.expect("it is answered").counts(), (1, 1));
    }
    assert_eq!(gate.deliver(&last).await.counts(), (1, 1), "its memory is free again");
}

#[tokio::test]
async fn a_connection_too_many_is_told_503() {
    let world = World::start().await;
    let mut gate = world.gate("server.max_connections = 1").await;
    let mut first = Connection::open(gate.address()).await.expect("hookgate listens");
    first.send(&post_and_stay(PATH, b"[]")).await.expect("hookgate reads");
    assert_eq!(first.answer().await.expect("it is answered").counts(), (0, 0));

    let second = gate.post("[]").await;
    assert_eq!(second.error(), (503, "too_many_connections".into()));
    assert_eq!(second.header("connection"), Some("close"));
    let said = gate.wait_log("too_many_connections").await;
    assert!(said.contains("server.max_connections are answered 503"), "{said}");
    assert_eq!(field(&said, "trace_id").as_deref(), second.json()["trace_id"].as_str(), "{said}");
    assert_eq!(gate.post("[]").await.status, 503);

    drop(first);
    assert_eq!(gate.deliver("[]").await.counts(), (0, 0));
    let log = gate.log().await;
    assert_eq!(log.iter().filter(|line| line.contains("too_many_connections")).count(), 1, "not for each: {log:?}");
}

#[tokio::test]
async fn stores_that_are_down_are_503() {
    let mut world = World::start().await;
    let gate = world.gate("server.request_deadline = \"2s\"\nredis.on_unavailable = \"reject\"").await;
    world.nats.kill();
    assert_eq!(gate.post(batch(["a"])).await.error(), (503, "not_published".into()));
    world.redis.kill();
    assert_eq!(gate.post(batch(["b"])).await.error(), (503, "pending_store_unavailable".into()));
}

/// An outsider learns from a 503 nothing of the inside ([`Answer::error`] looks at the message); an operator finds the
/// reason in the log, once, under the trace id of the answer.
#[tokio::test]
async fn the_reason_of_a_503_is_in_the_log_under_its_trace_id() {
    let mut world = World::start().await;
    let mut gate = world.gate("server.request_deadline = \"2s\"\nredis.on_unavailable = \"reject\"").await;
    world.redis.kill();
    let answer = gate.post(batch(["a"])).await;
    assert_eq!(answer.error(), (503, "pending_store_unavailable".into()));
    let trace_id = answer.json()["trace_id"].as_str().expect("a 503 has one").to_owned();

    let log = gate.log().await;
    let of_trace = log.iter().filter(|line| field(line, "trace_id").is_some_and(|id| id == trace_id));
    let reasons: Vec<_> = of_trace.filter(|line| line.contains("request refused")).collect();
    let [reason] = reasons[..] else { panic!("it is said once: {reasons:?}") };
    assert!(reason.contains("WARN") && reason.contains("redis.on_unavailable"), "{reason}");
}

#[tokio::test]
async fn a_full_outbox_is_503_and_claims_nothing_more() {
    let world = World::start().await;
    let gate = world.gate("server.request_deadline = \"1s\"\noutbox.max_entries = 2").await;
    world.nats.freeze();
    assert_eq!(gate.post(batch(["a", "b"])).await.error(), (503, "not_published".into()));
    assert_eq!(gate.post(batch(["c"])).await.error(), (503, "outbox_full".into()));
    assert_eq!(world.redis.pending(PENDING).await, BTreeSet::from(["a".into(), "b".into()]));

    world.nats.thaw();
    assert_eq!(gate.deliver(batch(["a", "b"])).await.counts(), (0, 2));
    assert_eq!(gate.deliver(batch(["c"])).await.counts(), (1, 1));
}
