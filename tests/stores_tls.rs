//! TLS and logins, against servers that require them. A good configuration carries a webhook to its event; a bad one names
//! the setting to correct in the log, in /readyz and in `doctor`.

use std::{path::Path, time::Duration};

use async_nats::ConnectOptions;
use nkeys::KeyPair;
use tempfile::TempDir;

use crate::support::{
    Authority, Gate, Holds, Identity, NatsServer, Operator, PENDING, RedisServer, World, batch, eventually, run,
};

const HOUR: Duration = Duration::from_secs(3600);

/// Settings in one layer with where the servers are, but for what they say themselves.
fn over(world: &World, settings: &str) -> String {
    let said = |line: &&str| line.split_once('=').is_some_and(|(key, _)| !settings.contains(&format!("{key}=")));
    let servers = world.settings();
    let lines: Vec<_> = servers.lines().filter(said).chain(settings.lines()).collect();
    lines.join("\n") + "\n"
}

/// A webhook becomes an event, and the second one a duplicate.
async fn works(world: &World, settings: &str) {
    let gate = world.gate(settings).await;
    let before = world.nats.events().await.len();
    let id = uuid::Uuid::new_v4().to_string();
    assert_eq!(gate.post(batch([&id])).await.counts(), (1, 1), "{settings}");
    assert_eq!(gate.post(batch([&id])).await.counts(), (0, 1), "{settings}");
    assert_eq!(world.nats.events().await.len(), before + 1, "{settings}");
    let doctor = run(&over(world, settings), &["doctor"]).printed;
    assert!(!doctor.contains("FAIL"), "{settings}: {doctor}");
}

/// A store refuses, and all of these words are said wherever somebody looks.
async fn refused(world: &World, store: &str, settings: &str, words: &[&str]) {
    let mut gate = world.gate_unready(settings).await;
    let says = |text: &str| words.iter().all(|word| text.contains(word));
    eventually(&format!("{store} is refused with {words:?}: {settings}"), async || {
        let now = gate.probe("/readyz").await.json();
        let problem = now[store]["problem"].as_str().unwrap_or_default();
        (now[store]["state"] == "refused" && says(problem)).then_some(())
    })
    .await;
    assert_eq!(gate.probe("/readyz").await.status, 503);
    let doctor = run(&over(world, settings), &["doctor"]);
    assert_eq!(doctor.code, Some(1));
    let line = doctor.printed.lines().find(|line| line.starts_with(&format!("FAIL  {store}: ")));
    assert!(line.is_some_and(says), "{words:?} in {line:?}: {settings}");
    let log = gate.log().await;
    let line = log.iter().find(|line| line.contains("store refuses to work with hookgate") && says(line));
    let line = line.unwrap_or_else(|| panic!("{words:?} in the log:\n{}", log.join("\n")));
    assert!(line.contains("ERROR"), "{line}");
    let changes = log.iter().filter(|line| line.contains("\"store\":") && line.contains(store)).count();
    assert!(changes <= 4, "said {changes} times:\n{}", log.join("\n"));
}

fn ca(section: &str, authority: &Authority) -> String {
    format!("{section}.ca_file = \"{}\"\n", authority.ca().display())
}

fn client(section: &str, Identity { cert, key }: &Identity) -> String {
    let (cert, key) = (cert.display(), key.display());
    format!("{section}.client_cert_file = \"{cert}\"\n{section}.client_key_file = \"{key}\"\n")
}

fn write(folder: &TempDir, name: &str, text: &str) -> String {
    let path = folder.path().join(name);
    std::fs::write(&path, format!("{text}\n")).expect("the folder is ours");
    path.display().to_string()
}

// Redis.

async fn redis_with(ours: &Authority, shows: &Identity, wants_certificate: bool) -> World {
    let ca = ours.ca();
    let redis = RedisServer::with_tls(&ca, shows, wants_certificate);
    let (redis, nats) = tokio::join!(redis, NatsServer::start());
    World { redis, nats }
}

fn url(redis: &RedisServer) -> String {
    format!("redis.url = \"{}\"\n", redis.tls_url())
}

#[tokio::test]
async fn redis_over_tls() {
    let (ours, others) = (Authority::new(), Authority::new());
    let world = redis_with(&ours, &ours.sign("server", "127.0.0.1", Holds::Now), false).await;
    let url = url(&world.redis);
    works(&world, &format!("{url}{}", ca("redis", &ours))).await;
    refused(&world, "redis", &format!("{url}{}", ca("redis", &others)), &["UnknownIssuer", "redis.ca_file"]).await;
    // A plain port takes a greeting for the beginning of a command and waits for the rest; one with TLS hangs up.
    let plain = over(&world, &ca("redis", &ours)).replace("redis://", "rediss://");
    for (settings, question) in [
        (plain, "does it speak TLS there, as redis.url says?"),
        (url.replace("rediss:", "redis:"), "does it want TLS (rediss:// in redis.url)?"),
    ] {
        let gate = world.gate_unready(&settings).await;
        eventually(question, async || gate.wait_store("redis", "unreachable").await.contains(question).then_some(()))
            .await;
    }
}

#[tokio::test]
async fn a_certificate_of_redis_that_does_not_hold() {
    let ours = Authority::new();
    for (name, holds, words) in [
        ("127.0.0.1", Holds::NoMore, ["certificate has expired", "redis.url"]),
        ("redis.example.com", Holds::Now, ["certificate is for another host", "redis.url"]),
    ] {
        let world = redis_with(&ours, &ours.sign("server", name, holds), false).await;
        refused(&world, "redis", &format!("{}{}", url(&world.redis), ca("redis", &ours)), &words).await;
    }
}

#[tokio::test]
async fn redis_that_wants_a_certificate() {
    let (ours, others) = (Authority::new(), Authority::new());
    let world = redis_with(&ours, &ours.sign("server", "127.0.0.1", Holds::Now), true).await;
    let settings = format!("{}{}", url(&world.redis), ca("redis", &ours));
    let named = ["redis.client_cert_file", "redis.client_key_file"];
    works(&world, &format!("{settings}{}", client("redis", &ours.sign("good", "hookgate", Holds::Now)))).await;
    refused(&world, "redis", &settings, &named).await;
    let foreign = client("redis", &others.sign("foreign", "hookgate", Holds::Now));
    refused(&world, "redis", &format!("{settings}{foreign}"), &named).await;
    let expired = client("redis", &ours.sign("expired", "hookgate", Holds::NoMore));
    refused(&world, "redis", &format!("{settings}{expired}"), &named).await;
}

#[tokio::test]
async fn a_renewed_certificate_is_read_without_a_restart() {
    let ours = Authority::new();
    let world = redis_with(&ours, &ours.sign("server", "127.0.0.1", Holds::Now), true).await;
    let settings = client("redis", &ours.sign("ours", "hookgate", Holds::NoMore));
    let gate = world.gate_unready(&format!("{}{}{settings}", url(&world.redis), ca("redis", &ours))).await;
    gate.wait_store("redis", "refused").await;
    ours.sign("ours", "hookgate", Holds::Now);
    gate.wait_ready().await;
    assert_eq!(gate.post(batch(["a"])).await.counts(), (1, 1));
}

#[tokio::test]
async fn a_user_of_redis_with_a_password() {
    let files = tempfile::tempdir().expect("a temporary folder can be made");
    let acl = write(&files, "acl", "user default on nopass ~* &* +@all\nuser gate on >right ~* &* +@all");
    let (redis, nats) = tokio::join!(RedisServer::with_users(Path::new(&acl)), NatsServer::start());
    let world = World { redis, nats };
    let login = |user: &str, file: &str| format!("redis.username = \"{user}\"\nredis.password_file = \"{file}\"\n");
    let (right, wrong) = (write(&files, "right", "right"), write(&files, "wrong", "wrong"));
    works(&world, &login("gate", &right)).await;
    for settings in [login("gate", &wrong), login("nobody", &right)] {
        refused(&world, "redis", &settings, &["redis.username", "redis.password_file"]).await;
    }
    let in_url =
        |login: &str| format!("redis.url = \"{}\"\n", world.redis.url().replace("://", &format!("://{login}@")));
    works(&world, &in_url("gate:right")).await;
    refused(&world, "redis", &in_url("gate:wrong"), &["the login in redis.url"]).await;
}

// NATS.

/// A server whose `tls` block has this beside the certificate, and who else has to say what.
async fn nats_with(ours: &Authority, shows: &Identity, tls: &str, more: &str) -> World {
    let text = format!(
        "tls {{ cert_file: \"{}\", key_file: \"{}\", ca_file: \"{}\", {tls} }}\n{more}\n",
        shows.cert.display(),
        shows.key.display(),
        ours.ca().display()
    );
    let (ca, mine) = (ours.ca(), ours.sign("observer", "observer", Holds::Now));
    let entrance = move || {
        let options = ConnectOptions::new().add_root_certificates(ca.clone());
        options.add_client_certificate(mine.cert.clone(), mine.key.clone())
    };
    let (redis, nats) = tokio::join!(RedisServer::start(), NatsServer::guarded(&text, entrance));
    World { redis, nats }
}

#[tokio::test]
async fn nats_over_tls() {
    let (ours, others) = (Authority::new(), Authority::new());
    let world = nats_with(&ours, &ours.sign("server", "127.0.0.1", Holds::Now), "", "").await;
    let tls = format!("nats.url = \"{}\"\n", world.nats.url().replace("nats:", "tls:"));
    for url in ["", &tls] {
        works(&world, &format!("{url}{}", ca("nats", &ours))).await;
        refused(&world, "nats", &format!("{url}{}", ca("nats", &others)), &["UnknownIssuer", "nats.ca_file"]).await;
    }
    // Its certificate is of no authority that this system may know.
    refused(&world, "nats", "", &["nats.ca_file"]).await;
}

#[tokio::test]
async fn a_certificate_of_nats_that_does_not_hold() {
    let ours = Authority::new();
    for (name, holds, words) in [
        ("127.0.0.1", Holds::NoMore, ["certificate has expired", "nats.url"]),
        ("nats.example.com", Holds::Now, ["certificate is for another host", "nats.url"]),
    ] {
        let world = nats_with(&ours, &ours.sign("server", name, holds), "", "").await;
        refused(&world, "nats", &ca("nats", &ours), &words).await;
    }
}

#[tokio::test]
async fn nats_without_the_tls_that_is_asked_for() {
    let ours = Authority::new();
    let world = World::start().await;
    refused(&world, "nats", &ca("nats", &ours), &["speaks no TLS", "nats.url"]).await;
}

#[tokio::test]
async fn nats_that_wants_a_certificate() {
    let (ours, others) = (Authority::new(), Authority::new());
    let world = nats_with(&ours, &ours.sign("server", "127.0.0.1", Holds::Now), "verify: true", "").await;
    let settings = ca("nats", &ours);
    let named = ["nats.client_cert_file", "nats.client_key_file"];
    works(&world, &format!("{settings}{}", client("nats", &ours.sign("good", "hookgate", Holds::Now)))).await;
    refused(&world, "nats", &settings, &named).await;
    let foreign = client("nats", &others.sign("foreign", "hookgate", Holds::Now));
    refused(&world, "nats", &format!("{settings}{foreign}"), &named).await;
    let expired = client("nats", &ours.sign("expired", "hookgate", Holds::NoMore));
    refused(&world, "nats", &format!("{settings}{expired}"), &named).await;
}

/// Authorities that are configured are the only ones trusted, also without a system store (an image from scratch). Without
/// any, those of the system are.
#[tokio::test]
async fn whom_both_connections_trust() {
    let (ours, others) = (Authority::new(), Authority::new());
    let shows = ours.sign("server", "127.0.0.1", Holds::Now);
    let (redis, nats) = tokio::join!(redis_with(&ours, &shows, false), nats_with(&ours, &shows, "", ""));
    let world = World { redis: redis.redis, nats: nats.nats };
    let urls = format!("{}nats.url = \"{}\"\n", url(&world.redis), world.nats.url().replace("nats:", "tls:"));
    let named = |authority: &Authority| format!("{urls}{}{}", ca("redis", authority), ca("nats", authority));
    let system = ours.ca().display().to_string();
    for (id, settings, environment) in [
        ("a", named(&ours), ("SSL_CERT_DIR", "/there/is/no/such/folder")),
        ("b", named(&ours), ("SSL_CERT_FILE", "/there/is/no/such/file")),
        ("c", urls.clone(), ("SSL_CERT_FILE", &system)),
    ] {
        let gate = world.gate_in(&settings, &[environment]).await;
        assert_eq!(gate.post(batch([id])).await.counts(), (1, 1), "{environment:?}");
        assert!(world.redis.pending(PENDING).await.contains(id), "{environment:?}: it was claimed");
    }
    let settings = over(&world, &named(&others));
    let gate = Gate::start_with(&settings, "", &[("SSL_CERT_FILE", &system)]).await;
    for store in ["redis", "nats"] {
        assert!(gate.wait_store(store, "refused").await.contains("UnknownIssuer"));
    }
}

/// One server with a user of each kind; the tests themselves are let in as the operator.
#[tokio::test]
async fn users_of_nats() {
    let files = tempfile::tempdir().expect("a temporary folder can be made");
    let (pair, stranger) = (KeyPair::new_user(), KeyPair::new_user());
    let users = format!(
        "authorization {{ users = [{{ user: operator, password: op }}, {{ user: gate, password: right }}, {{ nkey: {} }}] }}\nno_auth_user: operator\n",
        pair.public_key()
    );
    let (redis, nats) = tokio::join!(RedisServer::start(), NatsServer::configured(&users));
    let world = World { redis, nats };
    let file = |name: &str, text: &str| write(&files, name, text);
    let seed = |pair: &KeyPair| pair.seed().expect("it is a whole pair");
    let user = |file: String| format!("nats.user = \"gate\"\nnats.password_file = \"{file}\"\n");
    works(&world, &user(file("right", "right"))).await;
    works(&world, &format!("nats.nkey_seed_file = \"{}\"\n", file("seed", &seed(&pair)))).await;
    refused(&world, "nats", &user(file("wrong", "wrong")), &["nats.user", "nats.password_file"]).await;
    let settings = format!("nats.nkey_seed_file = \"{}\"\n", file("stranger", &seed(&stranger)));
    let mut gate = world.gate_unready(&settings).await;
    gate.wait_store("nats", "refused").await;
    assert!(!gate.log().await.concat().contains(&seed(&stranger)), "the seed is in the log");
    refused(&world, "nats", &settings, &["nats.nkey_seed_file", &stranger.public_key()]).await;
}

#[tokio::test]
async fn a_token_of_nats() {
    let files = tempfile::tempdir().expect("a temporary folder can be made");
    let entrance = || ConnectOptions::with_token("token".to_owned());
    let nats = NatsServer::guarded("authorization { token: token }\n", entrance);
    let (redis, nats) = tokio::join!(RedisServer::start(), nats);
    let world = World { redis, nats };
    works(&world, &format!("nats.token_file = \"{}\"\n", write(&files, "right", "token"))).await;
    let settings = format!("nats.token_file = \"{}\"\n", write(&files, "wrong", "wrong"));
    refused(&world, "nats", &settings, &["nats.token_file"]).await;
    refused(&world, "nats", "", &["the server wants a login", "nats.credentials_file"]).await;
}

#[tokio::test]
async fn credentials_of_nats() {
    let files = tempfile::tempdir().expect("a temporary folder can be made");
    let (ours, others) = (Operator::new(), Operator::new());
    let mine = ours.credentials(Ok(HOUR));
    let entrance = move || ConnectOptions::with_credentials(&mine).expect("the credentials are good");
    let config = ours.config();
    let (redis, nats) = tokio::join!(RedisServer::start(), NatsServer::guarded(&config, entrance));
    let world = World { redis, nats };
    let file = |name: &str, text: &str| format!("nats.credentials_file = \"{}\"\n", write(&files, name, text));
    works(&world, &file("good", &ours.credentials(Ok(HOUR)))).await;
    let foreign = file("foreign", &others.credentials(Ok(HOUR)));
    refused(&world, "nats", &foreign, &["nats.credentials_file", "was issued by A"]).await;
    let expired = file("expired", &ours.credentials(Err(HOUR)));
    refused(&world, "nats", &expired, &["nats.credentials_file", "its JWT expired on 20"]).await;

    // A new one in its place is read without a restart.
    let gate: Gate = world.gate_unready(&expired).await;
    gate.wait_store("nats", "refused").await;
    file("expired", &ours.credentials(Ok(HOUR)));
    gate.wait_ready().await;
    assert_eq!(gate.post(batch(["a"])).await.counts(), (1, 1));
}
