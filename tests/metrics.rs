//! `/metrics` has every series from the start, and counts known loads exactly.

mod limits;
mod samples;
mod stores;

use self::samples::Samples;
use crate::support::{Connection, Gate, OUTBOX, PATH, PENDING, World, batch, eventually, post_and_stay};

const ROUTE: &str = "vmh/beteiligte/create";
const OTHER: &str = "_other";

/// The route of the other tests, and another one.
const TWO_ROUTES: &str = r#"
[[routes]]
flow = "vmh"
entity = "beteiligte"
action = "create"
[[routes]]
flow = "vmh"
entity = "akte"
action = "delete"
"#;

async fn samples(gate: &Gate) -> Samples {
    let answer = gate.probe("/metrics").await;
    assert_eq!(answer.status, 200);
    assert_eq!(
        answer.header("content-type"),
        Some("application/openmetrics-text; version=1.0.0; charset=utf-8"),
        "whoever scrapes chooses the parser by it"
    );
    Samples::parse(answer.text())
}

/// Waits until a series has a value: what the stores hold is read in the background.
async fn wait_for(gate: &Gate, name: &str, labels: &[(&str, &str)], value: f64) {
    eventually(&format!("{name}{labels:?} is {value}"), async || {
        same(samples(gate).await.get(name, labels), value).then_some(())
    })
    .await;
}

/// Counts and flags are small whole numbers.
fn same(one: f64, other: f64) -> bool {
    (one - other).abs() < f64::EPSILON
}

fn assert_is(samples: &Samples, name: &str, labels: &[(&str, &str)], value: f64) {
    let found = samples.get(name, labels);
    assert!(same(found, value), "{name}{labels:?} is {found}, not {value}");
}

/// What became of the items of a route, in the order of the contract.
fn assert_items(samples: &Samples, counts: [f64; 6]) {
    let results = ["new", "in_flight", "duplicate", "coalesced", "undeduplicated", "rejected"];
    for (result, count) in results.into_iter().zip(counts) {
        assert_is(samples, "hookgate_items_total", &[("route", ROUTE), ("result", result)], count);
    }
}

/// Events of a route by the way they took: direct, relay, undeduplicated.
fn assert_published(samples: &Samples, counts: [f64; 3]) {
    for (via, count) in ["direct", "relay", "undeduplicated"].into_iter().zip(counts) {
        assert_is(samples, "hookgate_events_published_total", &[("route", ROUTE), ("via", via)], count);
    }
}

#[tokio::test]
async fn every_series_of_every_route_is_there_from_the_start() {
    let world = World::start().await;
    let gate = world.gate(TWO_ROUTES).await;
    let samples = samples(&gate).await;
    for route in [ROUTE, "vmh/akte/delete"] {
        let zero = |name: &str, label: &str, values: &[&str]| {
            for value in values {
                assert_is(&samples, name, &[("route", route), (label, value)], 0.0);
            }
            assert_eq!(samples.labelled(name, "route", route), values.len(), "{name} has no other {label}");
        };
        zero(
            "hookgate_http_requests_total",
            "code",
            &["200", "400", "401", "404", "405", "408", "413", "414", "431", "503", "unforeseen"],
        );
        zero(
            "hookgate_items_total",
            "result",
            &["new", "in_flight", "duplicate", "coalesced", "undeduplicated", "rejected"],
        );
        zero("hookgate_events_published_total", "via", &["direct", "relay", "undeduplicated"]);
        zero(
            "hookgate_signature_failures_total",
            "reason",
            &["missing", "malformed", "unknown_id", "expired", "wrong"],
        );
        zero(
            "hookgate_dead_letters_total",
            "reason",
            &[
                "not_an_object",
                "no_id",
                "duplicate_id_member",
                "id_neither_string_nor_integer",
                "id_empty",
                "id_too_long",
                "id_control_character",
                "id_lone_surrogate",
                "body_empty",
                "neither_array_nor_object",
                "not_json",
            ],
        );
        for name in [
            "hookgate_http_request_duration_seconds_count",
            "hookgate_http_request_duration_seconds_sum",
            "hookgate_pending_ids",
            "hookgate_outbox_entries",
            "hookgate_outbox_oldest_age_seconds",
        ] {
            assert_is(&samples, name, &[("route", route)], 0.0);
        }
    }
    for route in [ROUTE, "vmh/akte/delete"] {
        let age = samples.get("hookgate_last_webhook_age_seconds", &[("route", route)]);
        assert!((0.0..60.0).contains(&age), "since the start: {age}");
    }
    assert_eq!(samples.labelled("hookgate_http_requests_total", "route", OTHER), 11);
    for reason in ["too_many_connections", "too_many_requests", "too_many_bytes", "outbox_full", "shutting_down"] {
        assert_is(&samples, "hookgate_shed_total", &[("reason", reason)], 0.0);
    }
    for operation in ["claim", "wait", "settle", "relay", "dead_letters", "count", "operator"] {
        samples.get("hookgate_redis_operation_duration_seconds_count", &[("operation", operation)]);
    }
    for (name, value) in [
        ("hookgate_http_requests_in_flight", 0.0),
        ("hookgate_connections", 0.0),
        ("hookgate_nats_publish_duration_seconds_count", 0.0),
        ("hookgate_redis_up", 1.0),
        ("hookgate_nats_up", 1.0),
    ] {
        assert_is(&samples, name, &[], value);
    }
    let version = env!("CARGO_PKG_VERSION");
    let revision = option_env!("HOOKGATE_REVISION").unwrap_or("unknown");
    assert_is(&samples, "hookgate_build_info", &[("version", version), ("revision", revision)], 1.0);
}

#[tokio::test]
async fn a_known_load_is_counted_exactly() {
    let world = World::start().await;
    let gate = world.gate("server.max_body_bytes = 4000").await;
    assert_eq!(gate.post(batch(["a", "b", "c"])).await.counts(), (3, 3));
    world.redis.settled(OUTBOX).await;
    assert_eq!(gate.post(batch(["a", "b", "d"])).await.counts(), (1, 3));
    assert_eq!(gate.post(r#"[{"id":"e"},{"id":""},{"id":""},{"x":1},7]"#).await.rejected(), 4);
    for body in ["", "null", "[", "{]"] {
        assert_eq!(gate.post(body).await.status, 400, "{body}");
    }
    assert_eq!(gate.post(" ".repeat(4001)).await.status, 413);
    for path in ["/", "/secret-4711", "/secret-4712"] {
        assert_eq!(gate.post_to(path, "[]").await.status, 404);
    }
    let get = format!("GET {PATH} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n");
    assert_eq!(gate.exchange(get.as_bytes()).await.status, 405);

    let samples = samples(&gate).await;
    assert_items(&samples, [5.0, 0.0, 2.0, 0.0, 0.0, 4.0]);
    assert_published(&samples, [5.0, 0.0, 0.0]);
    for (route, code, count) in [
        (ROUTE, "200", 3.0),
        (ROUTE, "400", 4.0),
        (ROUTE, "405", 1.0),
        (ROUTE, "413", 1.0),
        (OTHER, "404", 3.0),
        (OTHER, "200", 0.0),
    ] {
        assert_is(&samples, "hookgate_http_requests_total", &[("route", route), ("code", code)], count);
    }
    let durations = "hookgate_http_request_duration_seconds";
    for (route, count) in [(ROUTE, 9.0), (OTHER, 3.0)] {
        assert_is(&samples, &format!("{durations}_count"), &[("route", route)], count);
        assert_is(&samples, &format!("{durations}_bucket"), &[("route", route), ("le", "+Inf")], count);
    }
    let took = samples.get(&format!("{durations}_sum"), &[("route", ROUTE)]);
    assert!((0.0001..60.0).contains(&took), "nine requests took {took} s");
    for (reason, count) in [
        ("id_empty", 2.0),
        ("no_id", 1.0),
        ("not_an_object", 1.0),
        ("body_empty", 1.0),
        ("neither_array_nor_object", 1.0),
        ("not_json", 2.0),
        ("id_too_long", 0.0),
    ] {
        assert_is(&samples, "hookgate_dead_letters_total", &[("route", ROUTE), ("reason", reason)], count);
    }
    assert_is(&samples, "hookgate_nats_publish_duration_seconds_count", &[], 3.0);
    let claims = samples.get("hookgate_redis_operation_duration_seconds_count", &[("operation", "claim")]);
    assert!(same(claims, 3.0), "one call a batch, {claims} in all");

    wait_for(&gate, "hookgate_pending_ids", &[("route", ROUTE)], 5.0).await;
    world.redis.release(PENDING, "a").await;
    wait_for(&gate, "hookgate_pending_ids", &[("route", ROUTE)], 4.0).await;
    wait_for(&gate, "hookgate_outbox_entries", &[("route", ROUTE)], 0.0).await;
}

#[tokio::test]
async fn nothing_that_a_sender_wrote_is_in_it() {
    let world = World::start().await;
    let gate = world.gate("").await;
    // Letters only: digits stand by chance in how long something took.
    assert_eq!(gate.post(r#"[{"id":"id-wrote-a\"} 1\n","name":"Erika"}]"#).await.rejected(), 1);
    assert_eq!(gate.post(batch(["id-wrote-b"])).await.counts(), (1, 1));
    assert_eq!(gate.post_to("/path-wrote-c?x=wrote-d", "[]").await.status, 404);
    let head =
        "POST / HTTP/1.1\r\nHost: host-wrote-e\r\nX-Wrote-f: wrote-g\r\nContent-Length: 0\r\nConnection: close\r\n\r\n";
    assert_eq!(gate.exchange(head.as_bytes()).await.status, 404);
    let text = gate.probe("/metrics").await.text().to_lowercase();
    assert!(!text.contains("wrote-") && !text.contains("erika"), "{text}");
    assert!(!text.contains("127.0.0.1"), "addresses are no labels either: {text}");
}

#[tokio::test]
async fn connections_and_requests_are_counted_while_they_last() {
    let world = World::start().await;
    let gate = world.gate("").await;
    world.nats.freeze();
    let mut busy = Vec::new();
    for id in ["a", "b"] {
        let mut connection = Connection::open(gate.address()).await.expect("hookgate listens");
        connection.send(&post_and_stay(PATH, batch([id]).as_bytes())).await.expect("hookgate reads");
        busy.push(connection);
    }
    let idle = Connection::open(gate.address()).await.expect("hookgate listens");
    wait_for(&gate, "hookgate_connections", &[], 3.0).await;
    wait_for(&gate, "hookgate_http_requests_in_flight", &[], 2.0).await;

    world.nats.thaw();
    for connection in &mut busy {
        assert_eq!(connection.answer().await.expect("it is answered").counts(), (1, 1));
    }
    wait_for(&gate, "hookgate_http_requests_in_flight", &[], 0.0).await;
    assert_is(&samples(&gate).await, "hookgate_connections", &[], 3.0);
    drop((busy, idle));
    wait_for(&gate, "hookgate_connections", &[], 0.0).await;
}

#[tokio::test]
async fn the_process_is_in_it() {
    let world = World::start().await;
    let gate = world.gate("").await;
    let samples = samples(&gate).await;
    let memory = samples.get("process_resident_memory_bytes", &[]);
    let kernel = gate.resident_bytes();
    #[expect(clippy::cast_precision_loss, reason = "a process has less than 2^53 bytes")]
    let kernel = kernel as f64;
    assert!((0.5..2.0).contains(&(memory / kernel)), "{memory} bytes, and the kernel says {kernel}");
    let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).expect("it is after 1970");
    let age = now.as_secs_f64() - samples.get("process_start_time_seconds", &[]);
    assert!((-2.0..60.0).contains(&age), "it started {age} s ago");
    assert!((0.0..60.0).contains(&samples.get("process_cpu_seconds_total", &[])));
    let files = samples.get("process_open_fds", &[]);
    assert!(files >= 5.0 && files < samples.get("process_max_fds", &[]), "{files} open files");
    assert!(samples.get("process_virtual_memory_bytes", &[]) >= memory);
}

/// A stranger, or somebody who sends no batch, does not hide that the CRM is silent.
#[tokio::test]
async fn the_age_of_the_last_webhook_is_that_of_a_batch_that_was_let_in() {
    let world = World::start().await;
    let folder = tempfile::tempdir().expect("a temporary folder can be made");
    let secret = folder.path().join("secret");
    std::fs::write(&secret, "0123456789abcdef").expect("the folder is ours");
    let auth = format!(
        "[[routes]]\nflow = \"vmh\"\nentity = \"beteiligte\"\naction = \"create\"\nauth = [{{ scheme = \"bearer\", secret_files = [\"{}\"] }}]\n[[routes]]\nflow = \"vmh\"\nentity = \"akte\"\naction = \"create\"\n",
        secret.display()
    );
    let gate = world.gate(&auth).await;
    let age = async |route: &str| samples(&gate).await.get("hookgate_last_webhook_age_seconds", &[("route", route)]);
    eventually("both are a second old", async || (age("vmh/akte/create").await > 1.0).then_some(())).await;
    assert_eq!(gate.post(batch(["a"])).await.status, 401);
    assert_eq!(gate.post_to("/vmh/webhook/akte/create", "no json").await.status, 400);
    assert!(age(ROUTE).await > 1.0 && age("vmh/akte/create").await > 1.0, "neither was a webhook");
    assert_eq!(gate.post_to("/vmh/webhook/akte/create", batch(["a"])).await.status, 200);
    assert!(age("vmh/akte/create").await < age(ROUTE).await, "only that one");
}
