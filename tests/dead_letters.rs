//! What can never be processed becomes a dead letter, within limits. A 503 never does: its sender tries again.

use serde_json::Value;

use crate::support::{PATH, World, batch, eventually, run};

const ROUTE: &str = "vmh/beteiligte/create";

/// What the stream in Redis holds, oldest first, as pairs of field and bytes.
async fn stream(world: &World) -> Vec<Vec<(String, Vec<u8>)>> {
    type Entry = (String, Vec<(String, Vec<u8>)>);
    let mut connection = world.redis.connection().await;
    let mut call = redis::cmd("XRANGE");
    call.arg("hookgate:dead_letters").arg("-").arg("+");
    let entries: Vec<Entry> = call.query_async(&mut connection).await.expect("it is a stream");
    entries.into_iter().map(|(_, fields)| fields).collect()
}

/// The contents, oldest first.
async fn contents(world: &World) -> Vec<String> {
    let raw = |fields: Vec<(String, Vec<u8>)>| fields.into_iter().find(|(name, _)| name == "raw").expect("bytes").1;
    stream(world).await.into_iter().map(|fields| String::from_utf8_lossy(&raw(fields)).into_owned()).collect()
}

/// Waits until these contents, and no others, are there.
async fn wait_contents(world: &World, expected: &[&str]) {
    eventually(&format!("{expected:?} are kept"), async || (contents(world).await == expected).then_some(())).await;
}

#[tokio::test]
async fn items_and_bodies_are_kept_with_route_reason_time_and_bytes() {
    let world = World::start().await;
    let gate = world.gate("dead_letters.max_item_bytes = 20").await;
    let answer = gate.post(r#"[{"id":"a"},7,{"name":"longer than the limit"}]"#).await;
    assert_eq!((answer.counts(), answer.rejected()), ((1, 1), 2));
    wait_contents(&world, &["7", r#"{"name":"longer than"#]).await;
    assert_eq!(gate.post(b"no \xff JSON").await.error(), (400, "not_json".into()));
    wait_contents(&world, &["7", r#"{"name":"longer than"#, "no \u{fffd} JSON"]).await;

    let letters = stream(&world).await;
    for (fields, reason) in letters.iter().zip(["not_an_object", "no_id", "not_json"]) {
        let names: Vec<_> = fields.iter().map(|(name, _)| name.as_str()).collect();
        assert_eq!(names, ["route", "reason", "time", "raw"]);
        assert_eq!(fields[0].1, ROUTE.as_bytes());
        assert_eq!(fields[1].1, reason.as_bytes());
        let time = std::str::from_utf8(&fields[2].1).expect("a time is text");
        let age = humantime::parse_rfc3339(time).expect("RFC 3339").elapsed().expect("it is in the past");
        assert!(age.as_secs() < 60, "{time}");
    }
    assert_eq!(letters[2][3].1, b"no \xff JSON", "as it came");
}

#[tokio::test]
async fn what_comes_back_is_kept_only_once_it_is_answered_for_good() {
    let mut world = World::start().await;
    let mut gate = world.gate("server.request_deadline = \"1s\"").await;
    world.nats.kill();
    let body = r#"[{"id":"a"},"bad"]"#;
    assert_eq!(gate.post(body).await.error(), (503, "not_published".into()));
    world.nats.start_again().await;
    gate.deliver(body).await;
    // Drained, so that everything there is has been written.
    assert_eq!(gate.terminate().await.code(), Some(0));
    assert_eq!(contents(&world).await, ["\"bad\""]);
}

#[tokio::test]
async fn what_was_rejected_just_before_the_end_is_kept() {
    let world = World::start().await;
    let mut gate = world.gate("server.drain_delay = \"0s\"").await;
    gate.post(format!("[{}0]", "1,".repeat(999))).await;
    assert_eq!(gate.terminate().await.code(), Some(0));
    assert_eq!(contents(&world).await.len(), 1000);
}

#[tokio::test]
async fn the_oldest_go_beyond_the_limits() {
    let world = World::start().await;
    let gate = world.gate("dead_letters.max_entries = 3").await;
    gate.post("[1,2,3,4,5]").await;
    wait_contents(&world, &["3", "4", "5"]).await;
    drop(gate);

    let gate = world.gate("dead_letters.max_item_bytes = 4\ndead_letters.max_bytes = 9").await;
    gate.post("[111111,222222]").await;
    wait_contents(&world, &["5", "1111", "2222"]).await;
    gate.post("[3333]").await;
    wait_contents(&world, &["2222", "3333"]).await;
    drop(gate);

    let gate = world.gate("dead_letters.max_age = \"1ms\"").await;
    gate.post("[7]").await;
    wait_contents(&world, &["7"]).await;
    drop(gate);

    let mut gate = world.gate("dead_letters.max_entries = 0").await;
    assert_eq!(gate.post("[8]").await.rejected(), 1);
    assert_eq!(gate.terminate().await.code(), Some(0));
    assert_eq!(contents(&world).await, ["7"], "0 keeps none, and leaves what is there");
}

#[tokio::test]
async fn a_stream_that_was_deleted_by_hand_costs_the_next_ones_nothing() {
    let world = World::start().await;
    let gate = world.gate("dead_letters.max_bytes = 20\ndead_letters.max_item_bytes = 10").await;
    assert_eq!(gate.post("[[1,2,3,4,5],[6,7,8,9]]").await.rejected(), 2);
    wait_contents(&world, &["[1,2,3,4,5", "[6,7,8,9]"]).await;
    let mut connection = world.redis.connection().await;
    redis::cmd("DEL").arg("hookgate:dead_letters").exec_async(&mut connection).await.expect("Redis answers");
    assert_eq!(gate.post("[[1,2]]").await.rejected(), 1);
    wait_contents(&world, &["[1,2]"]).await;
}

#[tokio::test]
async fn a_redis_that_is_down_costs_a_warning_with_their_number() {
    let mut world = World::start().await;
    let mut gate = world.gate("").await;
    world.redis.kill();
    gate.wait_store("redis", "unreachable").await;
    let answer = gate.post(r#"[{"id":"a"},1,2,3]"#).await;
    assert_eq!((answer.counts(), answer.rejected()), ((1, 1), 3));
    // They are written as they come: one warning may speak of some of them and the next of the others.
    let log = gate.log().await;
    let records = log.iter().map(|line| serde_json::from_str::<Value>(line).expect("the log is JSON"));
    let warnings =
        records.filter(|line| line["message"] == "dead letters could not be kept" && line["level"] == "WARN");
    assert_eq!(warnings.filter_map(|line| line["lost"].as_u64()).sum::<u64>(), 3, "{log:?}");
}

#[tokio::test]
async fn an_operator_lists_shows_and_drops_them() {
    let world = World::start().await;
    let settings = world.settings();
    let gate = world.gate("").await;
    assert_eq!(run(&settings, &["dead-letters", "list"]).good(), "no dead letters\n");

    gate.post(batch(["fine"])).await;
    gate.post("[\"first\"]").await;
    gate.post(b"\x1b[31mred").await;
    wait_contents(&world, &["\"first\"", "\u{1b}[31mred"]).await;

    let rows = run(&settings, &["dead-letters", "list", "--output", "json"]).rows();
    let members: Vec<_> = rows[0].as_object().expect("a row is an object").keys().map(String::as_str).collect();
    assert_eq!(members, ["bytes", "entry", "reason", "route", "time"], "no contents");
    let text = |row: &Value, name: &str| row[name].as_str().expect("it is text").to_owned();
    let reasons: Vec<_> = rows.iter().map(|row| text(row, "reason")).collect();
    assert_eq!(reasons, ["not_json", "not_an_object"], "newest first");
    assert_eq!(rows[1]["bytes"], 7);
    let newest = run(&settings, &["dead-letters", "list", "--count", "1"]).good();
    let entry = text(&rows[0], "entry");
    let lines: Vec<Vec<_>> = newest.lines().map(|line| line.split_whitespace().collect()).collect();
    let time = text(&rows[0], "time");
    assert_eq!(
        lines,
        [["NAME", "TIME", "ROUTE", "REASON", "BYTES", "REPLAY"].as_slice(), &[&entry, &time, ROUTE, "not_json", "8"]]
    );

    assert_eq!(run(&settings, &["dead-letters", "show", &entry]).good(), "\u{fffd}[31mred\n", "nothing for a terminal");
    let shown = run(&settings, &["dead-letters", "show", &entry, "--output", "json"]).rows();
    assert_eq!((text(&shown[0], "raw"), text(&shown[0], "route")), ("\u{1b}[31mred".into(), ROUTE.into()));
    for name in ["1-1", "nope"] {
        let missing = run(&settings, &["dead-letters", "show", name]).bad();
        let said = format!("hookgate: no dead letter is named {name:?}; `hookgate dead-letters list` has the names\n");
        assert_eq!(missing, said);
    }

    assert_eq!(run(&settings, &["dead-letters", "purge", "--yes"]).good(), "2 dropped\n");
    assert_eq!(run(&settings, &["dead-letters", "list"]).good(), "no dead letters\n");
    gate.post("[\"after\"]").await;
    wait_contents(&world, &["\"after\""]).await;
}

#[tokio::test]
async fn a_body_that_is_too_large_leaves_its_size_and_the_webhook_it_named() {
    const ID: &str = "65f0c1d2e3a4b5c6d";
    let world = World::start().await;
    let folder = tempfile::tempdir().expect("a temporary folder can be made");
    let secret = folder.path().join("secret");
    std::fs::write(&secret, "0123456789abcdef").expect("the folder is ours");
    let secret = secret.display();
    let settings = format!(
        "server.max_body_bytes = 100\n[[routes]]\nflow = \"vmh\"\nentity = \"beteiligte\"\naction = \"create\"\n\
        auth = [{{ scheme = \"espocrm\", id = \"{ID}\", secret_files = [\"{secret}\"] }}]\n"
    );
    let mut gate = world.gate(&settings).await;
    let send = async |id: &str| {
        let signature =
            base64::Engine::encode(&base64::engine::general_purpose::STANDARD, format!("{id}:{}", "0".repeat(64)));
        let body = format!("[{{\"id\":\"a\",\"name\":\"{}\"}}]", "ROSALINDE".repeat(20));
        let head = format!("POST {PATH} HTTP/1.1\r\nHost: x\r\nSignature: {signature}\r\nConnection: close\r\n");
        gate.exchange(format!("{head}Content-Length: {}\r\n\r\n{body}", body.len()).as_bytes()).await.error()
    };
    for id in ["of a stranger", ID, ID] {
        assert_eq!(send(id).await, (413, "body_too_large".into()), "{id}");
    }
    assert_eq!(gate.terminate().await.code(), Some(0));
    let letters = contents(&world).await;
    assert_eq!(letters, [format!("{{\"bytes\":202,\"limit\":100,\"webhook_id\":\"{ID}\"}}")], "one in ten minutes");
}
