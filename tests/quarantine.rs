//! Bodies whose signature was wrong are kept, and published once their secret is mended.

use std::{fs, path::PathBuf, time::SystemTime};

use hookgate::signature::{Scheme, Secret};
use serde_json::{Value, json};
use tempfile::TempDir;

use crate::support::{Gate, PATH, Ran, World, batch, eventually, run, try_exchange};

const ID: &str = "65f0c1d2e3a4b5c6d";
const GOOD: &str = "0123456789abcdef0123456789abcdef";

/// A route that keeps such bodies, and the file of its secret.
struct Scene {
    world: World,
    _folder: TempDir,
    secret: PathBuf,
}

impl Scene {
    async fn start(secret: &str) -> Self {
        let folder = tempfile::tempdir().expect("a temporary folder can be made");
        let file = folder.path().join("secret");
        fs::write(&file, secret).expect("the folder is ours");
        Self { world: World::start().await, _folder: folder, secret: file }
    }

    fn settings_of(&self, id: &str) -> String {
        let secret = self.secret.display();
        format!(
            "[[routes]]\nflow = \"vmh\"\nentity = \"beteiligte\"\naction = \"create\"\nquarantine = true\n\
            auth = [{{ scheme = \"espocrm\", id = \"{id}\", secret_files = [\"{secret}\"] }}]\n"
        )
    }

    fn settings(&self) -> String {
        self.settings_of(ID)
    }

    fn mend(&self) {
        fs::write(&self.secret, GOOD).expect("the folder is ours");
    }

    async fn command(&self, settings: &str, arguments: &[&str]) -> Ran {
        let settings = format!("{}{settings}", self.world.settings());
        let arguments: Vec<_> = arguments.iter().map(|argument| (*argument).to_owned()).collect();
        let ran = tokio::task::spawn_blocking(move || {
            run(&settings, &arguments.iter().map(String::as_str).collect::<Vec<_>>())
        });
        ran.await.expect("it does not panic")
    }

    async fn listed(&self) -> Vec<Value> {
        self.command(&self.settings(), &["quarantine", "list", "--output", "json"]).await.rows()
    }

    async fn published(&self) -> Vec<String> {
        let mut ids: Vec<_> = self.world.nats.events().await.iter().map(crate::support::Event::entity_id).collect();
        ids.sort_unstable();
        ids
    }
}

fn request(id: &str, secret: &str, body: &str) -> Vec<u8> {
    let scheme = Scheme::EspoCrm { id: id.to_owned() };
    let headers = scheme.sign(&Secret::from(secret), body.as_bytes(), "", SystemTime::now());
    let signature = String::from_utf8(headers[0].1.clone()).expect("it is base64");
    let head = format!("POST {PATH} HTTP/1.1\r\nHost: x\r\nSignature: {signature}\r\nConnection: close\r\n");
    format!("{head}Content-Length: {}\r\n\r\n{body}", body.len()).into_bytes()
}

async fn refused(gate: &Gate, request: &[u8]) {
    assert_eq!(gate.exchange(request).await.error(), (401, "signature_wrong".into()), "the answer stays 401");
}

#[tokio::test]
async fn a_mended_secret_brings_back_what_came_before_it() {
    let scene = Scene::start("another secret").await;
    let mut gate = scene.world.gate(&scene.settings()).await;
    for body in [batch(["a", "b"]), batch(["b", "c"]), batch(["a", "b"])] {
        refused(&gate, &request(ID, GOOD, &body)).await;
    }
    refused(&gate, &request("65f0ffffffffffff1", GOOD, &batch(["stranger"]))).await;
    let listed = scene.listed().await;
    assert_eq!(listed.len(), 3, "each once: {listed:?}");
    assert_eq!(listed.iter().filter(|row| row["webhook_id"] == ID).count(), 2);
    assert!(scene.published().await.is_empty());
    let metrics = gate.probe("/metrics").await.text().to_owned();
    for (result, count) in [("kept", 3), ("known", 1), ("full", 0)] {
        let series =
            format!("hookgate_quarantine_total{{route=\"vmh/beteiligte/create\",result=\"{result}\"}} {count}\n");
        assert!(metrics.contains(&series), "{series} in {metrics}");
    }

    scene.mend();
    eventually("what proved good is published", async || (scene.published().await == ["a", "b", "c"]).then_some(()))
        .await;
    eventually("and gone", async || (scene.listed().await.len() == 1).then_some(())).await;
    let log = gate.log().await.concat();
    assert!(log.contains("a body proved good and left the quarantine"), "{log}");
    assert!(!log.contains("\"name\":\"Test\""), "no body in the log");
}

#[tokio::test]
async fn a_restart_brings_it_back_also_where_the_id_was_wrong() {
    let scene = Scene::start(GOOD).await;
    let wrong_id = scene.settings_of("65f0ffffffffffff1");
    let gate = scene.world.gate(&wrong_id).await;
    refused(&gate, &request(ID, GOOD, &batch(["a"]))).await;
    // Larger than what is worked on at once.
    let many: Vec<_> = (0..4000).map(|number| format!("many-{number}")).collect();
    refused(&gate, &request(ID, GOOD, &batch(&many))).await;
    drop(gate);
    let gate = scene.world.gate(&scene.settings()).await;
    eventually("all are published", async || (scene.published().await.len() == 4001).then_some(())).await;
    eventually("and gone", async || scene.listed().await.is_empty().then_some(())).await;
    drop(gate);
}

#[tokio::test]
async fn what_is_not_signed_for_a_webhook_is_not_kept() {
    let scene = Scene::start("another secret").await;
    let gate = scene.world.gate(&scene.settings()).await;
    let body = batch(["a"]);
    let missing = gate.post(&body).await;
    assert_eq!(missing.error(), (401, "signature_missing".into()));
    let malformed =
        String::from_utf8(request(ID, GOOD, &body)).expect("it is text").replace("Signature: ", "Signature: !");
    assert_eq!(gate.exchange(malformed.as_bytes()).await.status, 401);
    assert!(scene.listed().await.is_empty());
    drop(gate);

    let without = scene.settings().replace("quarantine = true\n", "");
    let gate = scene.world.gate(&without).await;
    refused(&gate, &request(ID, GOOD, &body)).await;
    assert!(scene.listed().await.is_empty(), "only where the route says so");
    drop(gate);

    let gate = scene.world.gate(&scene.settings()).await;
    refused(&gate, &request(ID, GOOD, &body)).await;
    drop(gate);
    let open = scene.settings().split("auth").next().expect("there is a first part").to_owned();
    let released = scene.command(&open, &["quarantine", "release", "--output", "json"]).await.rows();
    assert_eq!(released[0], json!({ "seen": 1, "released": 0, "not_good": 1 }), "never on a route without auth");
}

#[tokio::test]
async fn strangers_fill_no_share_but_their_own() {
    let scene = Scene::start("another secret").await;
    let settings = format!("quarantine.max_entries = 6\nquarantine.max_bytes = 2000\n{}", scene.settings());
    let gate = scene.world.gate(&settings).await;
    for number in 0..10 {
        let stranger = request(&format!("stranger-{number}"), GOOD, &batch([format!("s-{number}")]));
        refused(&gate, &stranger).await;
    }
    assert_eq!(scene.listed().await.len(), 3, "half of six");
    for number in 0..5 {
        refused(&gate, &request(ID, GOOD, &batch([format!("own-{number}")]))).await;
    }
    refused(&gate, &request(ID, GOOD, &batch((0..50).map(|number| format!("large-{number}"))))).await;
    let own: Vec<_> = scene.listed().await.into_iter().filter(|row| row["webhook_id"] == ID).collect();
    assert_eq!(own.len(), 3, "the old ones stay");
    scene.mend();
    eventually("these are published", async || (scene.published().await == ["own-0", "own-1", "own-2"]).then_some(()))
        .await;
    // Its place is free again.
    eventually("the secret holds", async || {
        let answer = try_exchange(gate.address(), &request(ID, GOOD, &batch(["now"]))).await.expect("it answers");
        (answer.status == 200).then_some(())
    })
    .await;
}

#[tokio::test]
async fn an_operator_releases_and_drops() {
    let scene = Scene::start("another secret").await;
    let gate = scene.world.gate(&scene.settings()).await;
    for id in ["a", "forget-me", "c"] {
        refused(&gate, &request(ID, GOOD, &batch([id]))).await;
    }
    drop(gate);
    let unsaid = scene.command(&scene.settings(), &["quarantine", "purge"]).await;
    assert_eq!(unsaid.code, Some(2));
    let dropped = scene.command(&scene.settings(), &["quarantine", "purge", "--id", "forget-me", "--yes"]).await;
    assert_eq!(dropped.good(), "1 dropped\n");
    let release = ["quarantine", "release"];
    assert_eq!(scene.command(&scene.settings(), &release).await.good(), "2 seen: 0 released, 2 still not good\n");
    scene.mend();
    assert_eq!(scene.command(&scene.settings(), &release).await.good(), "2 seen: 2 released, 0 still not good\n");
    assert_eq!(scene.published().await, ["a", "c"]);
    let empty = scene.command(&scene.settings(), &["quarantine", "list"]).await;
    assert_eq!(empty.good(), "the quarantine is empty\n");
    let none = scene.command(&scene.settings(), &["quarantine", "purge", "--yes"]).await;
    assert_eq!(none.good(), "0 dropped\n");
}
