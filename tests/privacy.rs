//! Nothing of a record but its id leaves hookgate, at any log level. Marked data goes through every path; then all output
//! is searched for it. Only dead letters hold what was sent.

use crate::support::{Collector, Gate, PATH, World, eventually, post};

/// Stands in every value and every key that is personal.
const MARK: &str = "Rosalinde";
/// The same in base64 and in hex, where it begins at a whole group.
const FORMS: [&str; 4] = [MARK, "Um9zYWxpbmRl", "526f73616c696e6465", "ROSALINDE"];

const SETTINGS: &str = r#"
log.filter = "trace,hyper=trace,warp=trace,async_nats=trace,redis=trace,opentelemetry=trace"
server.max_body_bytes = 40000
server.request_deadline = "1500ms"
server.body_read_timeout = "500ms"
nats.ack_timeout = "500ms"
routes = [
  { flow = "vmh", entity = "beteiligte", action = "create" },
  { flow = "vmh", entity = "signed", action = "create", auth = [ { scheme = "bearer", secret_files = ["SECRET"] } ] },
]
"#;

/// A record as the CRM sends it, marked in values, in keys, and deep inside.
fn record(id: &str) -> String {
    format!(
        r#"{{"id":{id},"name":"{MARK} Müller","emailAddress":"{MARK}@example.com","{MARK}":1,
        "addressStreet":"{MARK}weg 1\/2","contacts":[{{"{MARK}":{{"phone":"{MARK}"}}}}],"note":"{MARK}\n{MARK}"}}"#
    )
}

fn body(id: &str) -> String {
    format!("[{}]", record(id))
}

/// A request with the mark in every place that hookgate must not repeat.
fn marked(path: &str, body: &str) -> Vec<u8> {
    let request = String::from_utf8(post(path, body.as_bytes())).expect("it is text");
    let lines = format!("\r\nUser-Agent: {MARK}\r\nCookie: name={MARK}\r\ntraceparent: {MARK}\r\nX-{MARK}: {MARK}\r\n");
    request.replacen("\r\n", &lines, 1).into_bytes()
}

/// Bodies, and the status of each while Redis and NATS are up.
fn requests() -> Vec<(&'static str, String, u16)> {
    vec![
        ("a record", body("\"a\""), 200),
        ("the same again", body("\"a\""), 200),
        ("a single object", record("\"b\""), 200),
        ("rejected: no usable id", format!("[{},\"{MARK}\",[\"{MARK}\"]]", record("null")), 200),
        ("rejected: an id that is an object", body(&format!("{{\"x\":\"{MARK}\"}}")), 200),
        ("rejected: an id that is too long", body(&format!("\"{}\"", MARK.repeat(30))), 200),
        ("rejected: an id with a line end", body(&format!("\"{MARK}\\n\"")), 200),
        ("no JSON", format!("[{},{MARK}]", record("\"c\"")), 400),
        ("cut off", format!("[{},{{\"name\":\"{MARK}", record("\"c\"")), 400),
        ("a string", format!("\"{MARK}\""), 400),
        ("a form", format!("name={MARK}"), 400),
        ("too large", format!("[{}]", vec![record("\"c\""); 200].join(",")), 413),
    ]
}

/// All that an operator or a subscriber can see.
async fn seen(world: &World, gate: &Gate, collector: &Collector) -> Vec<(String, String)> {
    let mut seen = Vec::new();
    for page in ["/metrics", "/v1/status", "/readyz", "/"] {
        seen.push((page.to_owned(), gate.probe(page).await.text().to_owned()));
    }
    seen.extend(collector.spans().into_iter().map(|span| ("a span".to_owned(), format!("{span:?}"))));
    for event in world.nats.events().await {
        seen.push(("an event".to_owned(), format!("{} {:?} {}", event.subject, event.headers, event.payload)));
    }
    seen
}

fn search(what: &str, text: &str) {
    for form in FORMS {
        let at = text.find(form);
        assert!(
            at.is_none(),
            "{what} holds {form}: …{}",
            text[at.unwrap_or_default()..].chars().take(80).collect::<String>()
        );
    }
}

fn settings(folder: &tempfile::TempDir, collector: &Collector) -> String {
    let secret = folder.path().join("secret");
    std::fs::write(&secret, "a secret that is long enough").expect("the folder is ours");
    SETTINGS.replace("SECRET", &secret.display().to_string()) + &collector.settings()
}

/// Sends everything; each answer is searched at once. `stores` is what is down.
async fn send_all(gate: &Gate, stores: &str) {
    for (what, body, status) in requests() {
        let answer = gate.exchange(&marked(PATH, &body)).await;
        if stores.is_empty() {
            assert_eq!(answer.status, status, "{what}: {}", answer.text());
        }
        search(&format!("the answer to {what}{stores}"), &format!("{:?} {}", answer.headers, answer.text()));
    }
    let unsigned = gate.exchange(&marked("/vmh/webhook/signed/create", &body("\"a\""))).await;
    assert_eq!(unsigned.status, 401);
    search("401", unsigned.text());
    let head = format!("POST {PATH} HTTP/1.1\r\nHost: x\r\nContent-Length: 9999\r\n\r\n");
    let late = gate.exchange(format!("{head}{}", body("\"late\"")).as_bytes()).await;
    assert_eq!(late.status, 408);
    search("408", late.text());
}

#[tokio::test]
async fn no_record_shows_anywhere_but_in_the_dead_letters() {
    let folder = tempfile::tempdir().expect("a temporary folder can be made");
    let (mut world, collector) = tokio::join!(World::start(), Collector::start());
    let mut gate = world.gate(&settings(&folder, &collector)).await;
    send_all(&gate, "").await;

    let raw = eventually("the dead letters are kept", async || {
        let mut connection = world.redis.connection().await;
        let mut call = redis::cmd("XRANGE");
        call.arg("hookgate:dead_letters").arg("-").arg("+");
        let letters: Vec<(String, Vec<Vec<u8>>)> = call.query_async(&mut connection).await.expect("it is a stream");
        (letters.len() >= 10).then(|| letters.into_iter().flat_map(|(_, fields)| fields).collect::<Vec<_>>().concat())
    })
    .await;
    assert!(String::from_utf8_lossy(&raw).contains(MARK), "the one place that holds what was sent");
    let mut connection = world.redis.connection().await;
    let keys: Vec<String> = redis::cmd("KEYS").arg("*").query_async(&mut connection).await.expect("Redis lists them");
    for key in keys.iter().filter(|key| *key != "hookgate:dead_letters") {
        let dump: Vec<u8> = redis::cmd("DUMP").arg(key).query_async(&mut connection).await.unwrap_or_default();
        search(&format!("the key {key}"), &format!("{key} {}", String::from_utf8_lossy(&dump)));
    }

    for (what, text) in seen(&world, &gate, &collector).await {
        search(&what, &text);
    }
    world.redis.kill();
    send_all(&gate, " without Redis").await;
    world.nats.kill();
    send_all(&gate, " without both").await;
    world.redis.start_again().await;
    gate.wait_store("redis", "up").await;
    send_all(&gate, " without NATS").await;
    world.nats.start_again().await;
    gate.wait_store("nats", "up").await;
    gate.deliver(body("\"a\"")).await;
    for (what, text) in seen(&world, &gate, &collector).await {
        search(&what, &text);
    }
    let log = gate.log().await;
    assert!(
        log.iter().any(|line| line.contains("\"level\":\"TRACE\"") || line.contains("\"level\":\"DEBUG\"")),
        "all levels"
    );
    for line in log {
        search("the log", &line);
    }
    for span in collector.spans() {
        search("a span", &format!("{span:?}"));
    }
}

/// Needs the feature `failpoints`: `tests/edge/run` has it.
#[cfg(feature = "failpoints")]
#[tokio::test]
async fn a_panic_over_a_record_is_503_and_shows_nothing_of_it() {
    let folder = tempfile::tempdir().expect("a temporary folder can be made");
    let (world, collector) = tokio::join!(World::start(), Collector::start());
    let settings = settings(&folder, &collector).replace("max_body_bytes = 40000", "max_body_bytes = 400000");
    let mut gate = world.gate_armed(&settings, "panic@decode").await;
    gate.may_panic();
    // Read where it arrives, and by a thread of its own.
    for record in [body("\"a\""), body("\"a\"") + &" ".repeat(100_000)] {
        let answer = gate.exchange(&marked(PATH, &record)).await;
        assert_eq!(answer.error(), (503, "internal_error".into()));
        search("the answer", answer.text());
        assert!(gate.ended().is_none(), "the process goes on");
    }
    for (what, text) in seen(&world, &gate, &collector).await {
        search(&what, &text);
    }
    let log = gate.log().await;
    let panics = log.iter().filter(|line| line.contains("failpoint.rs")).count();
    assert_eq!(panics, 2, "each is said, and where");
    for line in log {
        search("the log", &line);
        serde_json::from_str::<serde_json::Value>(&line).expect("one line like any other");
    }
}
