//! The configuration is read again: on SIGHUP and when its files change. No request is dropped for it.

mod load;

use std::{
    cell::Cell,
    ffi::OsStr,
    fs,
    os::unix::fs::symlink,
    path::{Path, PathBuf},
    time::SystemTime,
};

use futures_util::StreamExt;
use hookgate::signature::{Scheme, Secret};
use serde_json::{Value, json};

use crate::support::{
    Answer, Gate, NatsServer, PATH, RedisServer, SUBJECT, World, batch, eventually, field, run, try_exchange,
};

const NEW_PATH: &str = "/vmh/webhook/vertrag/update";
const REMOVED_PATH: &str = "/vmh/webhook/akte/delete";
const WEBHOOK: &str = "65f0c1d2e3a4b5c6d";
/// What the log says of each reload.
const RELOADED: &str = "configuration was read again";
/// What it says of one that failed.
const KEPT: &str = "what is in force stays";
/// What it says of keys that a running process can't change.
const RESTART: &str = "a restart is needed";

/// A route, and what else it says.
fn route(entity: &str, action: &str, more: &str) -> String {
    format!("[[routes]]\nflow = \"vmh\"\nentity = \"{entity}\"\naction = \"{action}\"\n{more}\n")
}

fn create() -> String {
    route("beteiligte", "create", "")
}

fn before() -> String {
    create() + &route("akte", "delete", "")
}

fn after() -> String {
    create() + &route("vertrag", "update", "")
}

async fn status(gate: &Gate) -> Value {
    gate.probe("/v1/status").await.json()
}

/// Waits until the routes are those of these names.
async fn serves(gate: &Gate, names: &[&str]) {
    eventually(&format!("the routes are {names:?}"), async || {
        let status = status(gate).await;
        let routes = status["routes"].as_array().expect("there are some");
        let now: Vec<_> = routes.iter().filter_map(|route| route["name"].as_str()).collect();
        (now == names).then_some(())
    })
    .await;
}

/// The value of a series without labels.
async fn series(gate: &Gate, name: &str) -> Option<f64> {
    let metrics = gate.probe("/metrics").await;
    metrics.text().lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(' ')?.parse().ok())
}

async fn has_failed(gate: &Gate, failed: bool) {
    let expected = f64::from(u8::from(failed));
    eventually(&format!("the last reload failed: {failed}"), async || {
        let found = series(gate, "hookgate_config_reload_failed").await?;
        ((found - expected).abs() < f64::EPSILON).then_some(())
    })
    .await;
}

#[tokio::test]
async fn sighup_adds_a_route_and_removes_one() {
    let world = World::start().await;
    let token = world.redis.folder().join("admin-token");
    fs::write(&token, "operator").expect("the folder is ours");
    let admin = format!("admin.token_file = {:?}\n", token.display().to_string());
    let mut gate = world.gate(&format!("{admin}{}", before())).await;
    gate.deliver(batch(["a"])).await;
    assert_eq!(gate.post_to(REMOVED_PATH, batch(["b"])).await.counts(), (1, 1));
    assert_eq!(gate.post_to(NEW_PATH, batch(["c"])).await.status, 404);
    has_failed(&gate, false).await;

    gate.configure(&format!("{admin}{}", after()));
    gate.signal("HUP");
    serves(&gate, &["vmh/beteiligte/create", "vmh/vertrag/update"]).await;
    assert_eq!(gate.post_to(NEW_PATH, batch(["c"])).await.counts(), (1, 1));
    assert_eq!(gate.post_to(REMOVED_PATH, batch(["b"])).await.status, 404);
    assert_eq!(gate.post(batch(["a", "d"])).await.counts(), (1, 2), "what was claimed before is still pending");
    let subjects: Vec<_> = world.nats.events().await.into_iter().map(|event| event.subject).collect();
    assert_eq!(subjects, [SUBJECT, "vmh.akte.delete", "vmh.vertrag.update", SUBJECT]);

    for (path, added, removed) in [
        ("/openapi.json", NEW_PATH, REMOVED_PATH),
        ("/asyncapi.json", "vmh.vertrag.update", "vmh.akte.delete"),
        ("/metrics", "{route=\"vmh/vertrag/update\",result=\"coalesced\"} 0\n", "vmh/akte/delete"),
    ] {
        let shown = gate.probe(path).await;
        assert!(shown.text().contains(added) && !shown.text().contains(removed), "{path}: {}", shown.text());
    }
    // The service and the admin address know the new route, and the command does anyway.
    let payload = json!({ "flow": "vmh", "entity": "vertrag", "action": "update", "entity_id": "c" });
    let release = async || {
        let payload = serde_json::to_vec(&payload).expect("it is JSON").into();
        let answer = world.nats.client().await.request("hookgate.release", payload).await.ok()?;
        serde_json::from_slice::<Value>(&answer.payload).ok()
    };
    let ask = async |method: &str| {
        let head = format!("{method} /v1/pending/vmh/vertrag/update/c HTTP/1.1\r\nHost: x\r\nConnection: close\r\n");
        let request = format!("{head}Authorization: Bearer operator\r\n\r\n");
        try_exchange(gate.probes(), request.as_bytes()).await.expect("there is an answer")
    };
    eventually("the story of the new route's id is told", async || {
        let story = ask("GET").await.json();
        (story["sequence"].is_u64() && story["pending"] == true).then_some(())
    })
    .await;
    let settings = format!("{}{}", world.settings(), after());
    assert!(run(&settings, &["why", "c"]).good().starts_with("vmh/vertrag/update c\n"));
    let released = eventually("the service answers", release).await;
    assert_eq!(released, json!({ "released": ["c"], "not_pending": [], "republished": [] }));
    assert_eq!(ask("DELETE").await.json()["not_pending"], json!(["c"]));
    has_failed(&gate, false).await;
    gate.signal("HUP");
    eventually("nothing has changed", async || gate.log_line("nothing in it has changed")).await;
    let log = gate.log().await;
    let reloaded = log.iter().find(|line| line.contains(RELOADED)).expect("the log says so");
    assert_eq!(field(reloaded, "added").as_deref(), Some("vmh/vertrag/update"), "{reloaded}");
    assert_eq!(field(reloaded, "removed").as_deref(), Some("vmh/akte/delete"), "{reloaded}");
}

#[tokio::test]
async fn a_changed_file_is_read_without_a_signal() {
    let world = World::start().await;
    let gate = world.gate(&before()).await;
    gate.configure(&after());
    serves(&gate, &["vmh/beteiligte/create", "vmh/vertrag/update"]).await;
    assert_eq!(gate.post_to(NEW_PATH, batch(["c"])).await.counts(), (1, 1));
}

/// As the kubelet has a `ConfigMap`: the file is a link into `..data`, which is itself a link that is swapped.
struct Mounted {
    file: PathBuf,
    versions: Cell<usize>,
}

impl Mounted {
    /// In the place of a file, with a text.
    fn over(file: PathBuf, text: &str) -> Self {
        let this = Self { file, versions: Cell::new(0) };
        this.swap(text);
        let (folder, name) = this.names();
        symlink(Path::new("..data").join(name), folder.join("link")).expect("the folder is ours");
        fs::rename(folder.join("link"), &this.file).expect("the folder is ours");
        this
    }

    /// The next version; the one before is removed, as the kubelet does.
    fn swap(&self, text: &str) {
        let (folder, name) = self.names();
        let version = self.versions.get();
        self.versions.set(version + 1);
        let next = format!("..2026_{version}");
        fs::create_dir(folder.join(&next)).expect("the folder is ours");
        fs::write(folder.join(&next).join(name), text).expect("the folder is ours");
        symlink(&next, folder.join("..data_tmp")).expect("the folder is ours");
        fs::rename(folder.join("..data_tmp"), folder.join("..data")).expect("the folder is ours");
        if let Some(before) = version.checked_sub(1) {
            fs::remove_dir_all(folder.join(format!("..2026_{before}"))).expect("the folder is ours");
        }
    }

    fn names(&self) -> (&Path, &OsStr) {
        (self.file.parent().expect("it is in one"), self.file.file_name().expect("it has a name"))
    }
}

#[tokio::test]
async fn a_swapped_link_of_a_config_map_is_followed() {
    let world = World::start().await;
    let gate = world.gate(&before()).await;
    let mounted = Mounted::over(gate.file(), &before());
    mounted.swap(&after());
    serves(&gate, &["vmh/beteiligte/create", "vmh/vertrag/update"]).await;
    has_failed(&gate, false).await;
}

fn signed(secret: &str, body: &str) -> Vec<u8> {
    signed_on(secret, body, "close")
}

/// A signed request on a connection that stays, or closes.
fn signed_on(secret: &str, body: &str, connection: &str) -> Vec<u8> {
    let scheme = Scheme::EspoCrm { id: WEBHOOK.to_owned() };
    let headers = scheme.sign(&Secret::from(secret), body.as_bytes(), "", SystemTime::now());
    let signature = String::from_utf8(headers[0].1.clone()).expect("it is base64");
    let head = format!("POST {PATH} HTTP/1.1\r\nHost: x\r\nSignature: {signature}\r\nConnection: {connection}\r\n");
    format!("{head}Content-Length: {}\r\n\r\n{body}", body.len()).into_bytes()
}

/// Another file of secrets, and another webhook id, are changes of the configuration. What came before is verified again.
#[tokio::test]
async fn other_secrets_hold_and_release_the_quarantine() {
    let world = World::start().await;
    let folder = world.redis.folder();
    let auth = |id: &str, secret: &str| {
        let file = folder.join(secret).display().to_string();
        fs::write(&file, secret).expect("the folder is ours");
        let auth = format!("auth = [{{ scheme = \"espocrm\", id = \"{id}\", secret_files = [{file:?}] }}]");
        route("beteiligte", "create", &format!("quarantine = true\n{auth}"))
    };
    let gate = world.gate(&auth("65f0ffffffffffff1", "old")).await;
    let send = async |secret, id: &str| gate.exchange(&signed(secret, &batch([id]))).await;
    assert_eq!(send("new", "a").await.status, 401);
    gate.configure(&auth(WEBHOOK, "new"));
    gate.signal("HUP");
    eventually("the new secret is good", async || (send("new", "b").await.status == 200).then_some(())).await;
    assert_eq!(send("old", "c").await.status, 401);
    eventually("the quarantine lets go of what is good now", async || {
        world.nats.events().await.iter().any(|event| event.entity_id() == "a").then_some(())
    })
    .await;
}

/// A route may begin to keep such bodies, and end it.
#[tokio::test]
async fn a_route_may_begin_to_keep_bodies_whose_signature_was_wrong() {
    let world = World::start().await;
    let file = world.redis.folder().join("secret");
    fs::write(&file, "wrong").expect("the folder is ours");
    let auth = format!(
        "auth = [{{ scheme = \"espocrm\", id = \"{WEBHOOK}\", secret_files = [{:?}] }}]",
        file.display().to_string()
    );
    let gate = world.gate(&route("beteiligte", "create", &auth)).await;
    gate.configure(&route("beteiligte", "create", &format!("quarantine = true\n{auth}")));
    gate.wait_log(RELOADED).await;
    assert_eq!(gate.exchange(&signed("good", &batch(["a"]))).await.status, 401);
    fs::write(&file, "good").expect("the folder is ours");
    eventually("it is published", async || (world.nats.events().await.len() == 1).then_some(())).await;
}

#[tokio::test]
async fn a_bad_file_changes_nothing_and_is_named_until_it_is_mended() {
    let world = World::start().await;
    let gate = world.gate(&before()).await;
    gate.configure(&format!("server.max_in_flight = 0\nserver.colour = \"red\"\n{}", after()));
    gate.signal("HUP");
    has_failed(&gate, true).await;
    let line = gate.wait_log(KEPT).await;
    for words in ["server.max_in_flight = 0", "colour", "layer-2.toml"] {
        assert!(line.contains(words), "{words:?} not in: {line}");
    }
    let status = status(&gate).await;
    let problems = status["configuration"]["problems"].to_string();
    assert!(problems.contains("max_in_flight") && problems.contains("colour"), "{status}");
    assert_eq!(gate.post_to(REMOVED_PATH, batch(["b"])).await.status, 200);
    assert_eq!(gate.post_to(NEW_PATH, batch(["c"])).await.status, 404);

    fs::remove_file(gate.file()).expect("the folder is ours");
    eventually("the missing file is named", async || {
        let problems = self::status(&gate).await["configuration"]["problems"].to_string();
        problems.contains("No such file").then_some(())
    })
    .await;
    assert_eq!(gate.post(batch(["a"])).await.status, 200);

    gate.configure(&after());
    has_failed(&gate, false).await;
    serves(&gate, &["vmh/beteiligte/create", "vmh/vertrag/update"]).await;
    assert_eq!(self::status(&gate).await["configuration"]["problems"], json!([]));
}

/// A secret that is mounted a moment after the configuration that names it.
#[tokio::test]
async fn what_is_missing_beside_the_file_is_tried_again() {
    let world = World::start().await;
    let secret = world.redis.folder().join("late-secret");
    let gate = world.gate(&before()).await;
    let auth = format!("auth = [{{ scheme = \"bearer\", secret_files = [{:?}] }}]", secret.display().to_string());
    gate.configure(&format!("{}{}", create(), route("vertrag", "update", &auth)));
    has_failed(&gate, true).await;
    fs::write(&secret, "s3cret").expect("the folder is ours");
    serves(&gate, &["vmh/beteiligte/create", "vmh/vertrag/update"]).await;
    has_failed(&gate, false).await;
    assert_eq!(gate.post_to(NEW_PATH, batch(["c"])).await.status, 401);
}

#[tokio::test]
async fn addresses_and_stores_need_a_restart_and_say_so() {
    let world = World::start().await;
    let gate = world.gate(&before()).await;
    gate.configure(&format!(
        "redis.url = \"redis://u:geheim@127.0.0.1:1\"\nserver.listen = \"127.0.0.1:9\"\nnats.ack_timeout = \"1s\"\n{}",
        after()
    ));
    gate.signal("HUP");
    let line = gate.wait_log(RESTART).await;
    for key in ["redis.url", "server.listen", "nats.ack_timeout"] {
        assert!(line.contains(key), "{key} not in: {line}");
    }
    assert!(!line.contains("geheim"), "{line}");
    // The rest holds.
    serves(&gate, &["vmh/beteiligte/create", "vmh/vertrag/update"]).await;
    assert_eq!(gate.post_to(NEW_PATH, batch(["c"])).await.counts(), (1, 1));
    let configuration = status(&gate).await["configuration"].clone();
    assert_eq!(configuration["needs_restart"], json!(["nats.ack_timeout", "redis.url", "server.listen"]));
    has_failed(&gate, false).await;
    gate.configure(&after());
    eventually("nothing needs a restart any more", async || {
        (status(&gate).await["configuration"]["needs_restart"] == json!([])).then_some(())
    })
    .await;
}

/// Redis keeps connections whose password was changed. The file is looked at like those of the configuration.
#[tokio::test]
async fn another_password_of_a_store_needs_a_restart_and_says_so() {
    let (redis, nats) = tokio::join!(RedisServer::with_password("geheim"), NatsServer::start());
    let file = redis.folder().join("password");
    fs::write(&file, "geheim\n").expect("the folder is ours");
    let settings = format!(
        "redis.url = \"{}\"\nredis.password_file = {:?}\nnats.url = \"{}\"\n",
        redis.url(),
        file.display().to_string(),
        nats.url()
    );
    let gate = Gate::start("", &settings).await;
    gate.wait_ready().await;
    fs::write(&file, "another\n").expect("the folder is ours");
    let line = gate.wait_log(RESTART).await;
    assert!(line.contains("redis.password_file") && !line.contains("another\""), "{line}");
    assert_eq!(status(&gate).await["configuration"]["needs_restart"], json!(["redis.password_file"]));
    assert_eq!(gate.post(batch(["a"])).await.counts(), (1, 1), "the connection stays");
    fs::write(&file, "geheim\n").expect("the folder is ours");
    eventually("it is the one in force again", async || {
        (status(&gate).await["configuration"]["needs_restart"] == json!([])).then_some(())
    })
    .await;
}

/// The new file is good by itself, but not beside what a restart would change.
#[tokio::test]
async fn what_fits_only_after_a_restart_waits_for_it() {
    let world = World::start().await;
    let gate = world.gate(&format!("nats.delivery = \"core\"\n{}", before())).await;
    let on_ack = route("vertrag", "update", "consumers = [\"x\"]\nrelease = \"ack\"");
    gate.configure(&format!("nats.delivery = \"jetstream\"\n{}{on_ack}", create()));
    has_failed(&gate, true).await;
    let line = gate.wait_log(KEPT).await;
    assert!(line.contains("nats.delivery") && line.contains("restart"), "{line}");
    assert_eq!(gate.post_to(REMOVED_PATH, batch(["b"])).await.status, 200);
}

#[tokio::test]
async fn limits_and_log_filter_change() {
    let world = World::start().await;
    let gate = world.gate("").await;
    let large = format!("{:2000}", batch(["a"]));
    assert_eq!(gate.post(&large).await.status, 200);
    assert!(gate.log_line("\"settled\"").is_none());
    let small = "server.max_body_bytes = 1000\nserver.max_buffered_bytes = 4000\nserver.max_in_flight = 1\n\
        server.max_headers = 8\nlog.filter = \"debug\"";
    gate.configure(small);
    gate.signal("HUP");
    gate.wait_log(RELOADED).await;
    assert_eq!(gate.post(&large).await.status, 413);
    let limits = status(&gate).await["limits"].clone();
    assert_eq!((&limits["requests_in_flight"]["limit"], &limits["buffered_bytes"]["limit"]), (&json!(1), &json!(4000)));
    gate.post(batch(["b"])).await;
    gate.wait_log("\"settled\"").await;
    world.nats.freeze();
    let mut busy = gate.busy_with(&crate::support::post(PATH, batch(["c"]).as_bytes())).await;
    assert_eq!(gate.post(batch(["d"])).await.error(), (503, "too_many_requests".into()));
    // Raised while one is worked on, which is not disturbed.
    gate.configure("log.filter = \"warn\"");
    gate.signal("HUP");
    eventually("there is more room", async || {
        (status(&gate).await["limits"]["requests_in_flight"]["limit"] == 1024).then_some(())
    })
    .await;
    let mut other = gate.send(&crate::support::post(PATH, batch(["d"]).as_bytes())).await;
    world.nats.thaw();
    for sender in [&mut busy, &mut other] {
        assert_eq!(sender.answer().await.expect("it is answered").status, 200);
    }
    let lines = gate.log_count("empfangen");
    assert_eq!(gate.post(&large).await.status, 200);
    assert_eq!(gate.log_count("empfangen"), lines, "INFO is not logged any more");
}

/// What NATS would refuse of a new route, the others go on without.
#[tokio::test]
async fn a_route_without_a_stream_is_not_taken_until_there_is_one() {
    let world = World::start().await;
    world.nats.create_raw("EVENTS", &json!({ "subjects": ["vmh.beteiligte.>", "vmh.akte.>"] })).await;
    let own = "nats.stream.create = false\n";
    let gate = world.gate(&format!("{own}{}", before())).await;
    gate.configure(&format!("{own}{}", after()));
    has_failed(&gate, true).await;
    let line = gate.wait_log(KEPT).await;
    assert!(line.contains("vmh.vertrag.update"), "{line}");
    assert_eq!(gate.post_to(REMOVED_PATH, batch(["b"])).await.status, 200);
    world.nats.update_raw("EVENTS", &json!({ "subjects": ["vmh.>"] })).await;
    has_failed(&gate, false).await;
    assert_eq!(gate.post_to(NEW_PATH, batch(["c"])).await.status, 200);
}

/// What Redis would refuse of a new route, it would refuse to each of its webhooks.
#[tokio::test]
async fn a_route_whose_keys_redis_denies_is_not_taken_until_it_grants_them() {
    let acl = |keys: &str| format!("user hookgate on >geheim ~vmh:* ~{{vmh:*}}:* ~hookgate:* {keys} &* +@all");
    let redis = RedisServer::with_users_of(&format!("{}\n", acl(""))).await;
    let nats = NatsServer::start().await;
    let settings = |routes: &str| {
        let login = redis.url().replace("redis://", "redis://hookgate:geheim@");
        format!("redis.url = \"{login}\"\nnats.url = \"{}\"\n{routes}", nats.url())
    };
    let gate = Gate::start("", &settings(&create())).await;
    gate.wait_ready().await;
    let elsewhere = route("vertrag", "update", "pending_key = \"elsewhere\"");
    gate.configure(&settings(&format!("{}{elsewhere}", create())));
    has_failed(&gate, true).await;
    let line = gate.wait_log(KEPT).await;
    assert!(line.contains("Redis refuses what a new route needs"), "{line}");
    assert!(line.contains("NOPERM route vmh/vertrag/update (keys elsewhere, {elsewhere}:*): "), "{line}");
    let starting = Gate::start("", &settings(&format!("{}{elsewhere}", create()))).await;
    let problem = starting.wait_store("redis", "refused").await;
    assert!(problem.contains("NOPERM route vmh/vertrag/update (keys elsewhere, {elsewhere}:*): "), "{problem}");
    assert_eq!(gate.post(batch(["a"])).await.counts(), (1, 1));
    let mut admin = redis.connection().await;
    let words = acl("~elsewhere ~{elsewhere}:*");
    let mut grant = ::redis::cmd("ACL");
    grant.arg("SETUSER").arg(words.split(' ').skip(1).collect::<Vec<_>>());
    grant.query_async::<()>(&mut admin).await.expect("Redis grants it");
    has_failed(&gate, false).await;
    assert_eq!(gate.post_to(NEW_PATH, batch(["c"])).await.counts(), (1, 1));
    assert_eq!(redis.pending("elsewhere").await.len(), 1);
}

/// The outbox of a removed route is drained, and that of a route that comes back is its own again.
#[tokio::test]
async fn what_a_removed_route_left_in_the_outbox_is_published() {
    let world = World::start().await;
    let short = "server.request_deadline = \"1s\"\nserver.body_read_timeout = \"1s\"\noutbox.relay_after = \"2s\"\n";
    let gate = world.gate(&format!("{short}{}", before())).await;
    world.nats.freeze();
    assert_eq!(gate.post_to(REMOVED_PATH, batch(["left"])).await.status, 503);
    gate.configure(&format!("{short}{}", create()));
    gate.signal("HUP");
    serves(&gate, &["vmh/beteiligte/create"]).await;
    eventually("the orphan is named", async || {
        (status(&gate).await["orphaned_outboxes"][0]["name"] == "vmh/akte/delete").then_some(())
    })
    .await;
    world.nats.thaw();
    let published = async || {
        let events = world.nats.events().await;
        events.iter().filter(|event| event.subject == "vmh.akte.delete").count()
    };
    eventually("it is published", async || (published().await == 1).then_some(())).await;
    gate.configure(&format!("{short}{}", before()));
    gate.signal("HUP");
    serves(&gate, &["vmh/akte/delete", "vmh/beteiligte/create"]).await;
    assert_eq!(status(&gate).await["orphaned_outboxes"], json!([]));
    assert!(!gate.probe("/metrics").await.text().contains("hookgate_orphaned_outbox_entries{"));
    assert_eq!(gate.post_to(REMOVED_PATH, batch(["left", "more"])).await.counts(), (1, 2));
    assert_eq!(published().await, 2);
}

/// A route whose subject changes: what is in flight goes where it was claimed for, what comes now to the new one.
#[tokio::test]
async fn a_changed_subject_holds_for_what_comes_after_it() {
    let world = World::start().await;
    let gate = world.gate(&create()).await;
    gate.deliver(batch(["a"])).await;
    gate.configure(&route("beteiligte", "create", "subject = \"other.subject\""));
    gate.signal("HUP");
    gate.wait_log(RELOADED).await;
    gate.deliver(batch(["b"])).await;
    let subjects: Vec<_> = world.nats.events().await.into_iter().map(|event| event.subject).collect();
    assert_eq!(subjects, [SUBJECT, "other.subject"]);
}

/// A route may be switched to release by acknowledgement, and its consumers are followed then.
#[tokio::test]
async fn acknowledgements_release_the_ids_of_a_route_that_was_added() {
    let world = World::start().await;
    world.nats.create_raw("HOOKGATE", &json!({ "subjects": ["vmh.>"] })).await;
    let config = json!({ "durable_name": "sync", "ack_policy": "explicit", "sample_freq": "100%" });
    let made = world
        .nats
        .api("CONSUMER.DURABLE.CREATE.HOOKGATE.sync", &json!({ "stream_name": "HOOKGATE", "config": config }))
        .await;
    assert!(made["error"].is_null(), "{made}");
    let gate = world.gate(&create()).await;
    let on_ack = |action: &str| route("vertrag", action, "consumers = [\"sync\"]\nrelease = \"ack\"");
    let pending = async |action: &str| world.redis.pending(&format!("vmh:vertrag:{action}_pending")).await;
    let mut routes = create();
    for (action, id) in [("update", "a"), ("delete", "b")] {
        routes += &on_ack(action);
        gate.configure(&routes);
        gate.signal("HUP");
        let path = format!("/vmh/webhook/vertrag/{action}");
        eventually("the route is served", async || (gate.post_to(&path, "[]").await.status == 200).then_some(())).await;
        eventually("acknowledgements are read", async || {
            (gate.probe("/readyz").await.json()["acks"]["state"] == "up").then_some(())
        })
        .await;
        assert_eq!(gate.post_to(&path, batch([id])).await.counts(), (1, 1));
        assert!(!pending(action).await.is_empty());
        acknowledge(&world, "sync").await;
        eventually("the id is released", async || pending(action).await.is_empty().then_some(())).await;
        let series = format!("hookgate_released_total{{route=\"vmh/vertrag/{action}\",by=\"ack\"}} 1\n");
        eventually("it is counted", async || gate.probe("/metrics").await.text().contains(&series).then_some(())).await;
    }
}

/// Takes what is there, and acknowledges it.
async fn acknowledge(world: &World, consumer: &str) {
    let stream = world.nats.jetstream().await.get_stream("HOOKGATE").await.expect("it is there");
    let reader =
        stream.get_consumer::<async_nats::jetstream::consumer::pull::Config>(consumer).await.expect("it is there");
    let mut messages = reader.fetch().max_messages(10).messages().await.expect("it can be read");
    while let Some(message) = messages.next().await {
        message.expect("it comes").double_ack().await.expect("NATS confirms it");
    }
}

/// While Redis and NATS are away the configuration is read all the same; both are asked when they come back.
#[tokio::test]
async fn a_reload_without_stores_counts_once_they_come_back() {
    let mut world = World::start().await;
    let gate = world.gate(&before()).await;
    world.nats.kill();
    world.redis.kill();
    gate.wait_store("redis", "unreachable").await;
    gate.wait_store("nats", "unreachable").await;
    let renamed = route("vertrag", "update", "subject = \"elsewhere.vertrag.update\"");
    gate.configure(&format!("{}{renamed}", create()));
    gate.signal("HUP");
    serves(&gate, &["vmh/beteiligte/create", "vmh/vertrag/update"]).await;
    tokio::join!(world.nats.start_again(), world.redis.start_again());
    gate.wait_store("redis", "up").await;
    eventually("the new route is served", async || {
        let answer: Answer = gate.post_to(NEW_PATH, batch(["c"])).await;
        (answer.status == 200).then_some(())
    })
    .await;
    let pending = world.redis.pending("vmh:vertrag:update_pending").await;
    assert_eq!(pending.into_iter().collect::<Vec<_>>(), ["c"]);
}
