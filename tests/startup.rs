//! The process starts without Redis or NATS, names what is missing, and becomes ready when it is there.

use std::sync::{
    Arc,
    atomic::{AtomicUsize, Ordering},
};

use tokio::{io::AsyncWriteExt, net::TcpListener, task::JoinSet};

use crate::support::{Gate, NatsServer, RedisServer, World, batch, eventually};

async fn assert_waiting(gate: &Gate) {
    assert_eq!(gate.probe("/livez").await.status, 200);
    let readyz = gate.probe("/readyz").await;
    assert_eq!(readyz.status, 503);
    assert_eq!(readyz.json()["ready"], false);
}

#[tokio::test]
async fn it_starts_without_redis_and_says_so() {
    let mut world = World::start().await;
    world.redis.kill();
    let gate = world.gate_unready("").await;
    gate.wait_store("nats", "up").await;
    gate.wait_store("redis", "unreachable").await;
    let line = gate.wait_log("nothing listens on 127.0.0.1:").await;
    assert!(line.contains("is Redis running there? (redis.url)"), "{line}");
    assert_waiting(&gate).await;

    world.redis.start_again().await;
    gate.wait_ready().await;
    assert_eq!(gate.post(batch(["a"])).await.counts(), (1, 1));
    assert_eq!(gate.post(batch(["a"])).await.counts(), (0, 1));
}

#[tokio::test]
async fn it_starts_without_nats_and_says_so() {
    let mut world = World::start().await;
    world.nats.kill();
    let gate = world.gate_unready("server.request_deadline = \"1s\"").await;
    gate.wait_store("redis", "up").await;
    gate.wait_store("nats", "unreachable").await;
    let line = gate.wait_log("nothing listens on nats://127.0.0.1:").await;
    assert!(line.contains("is NATS running there? (nats.url)"), "{line}");
    assert_waiting(&gate).await;
    assert_eq!(gate.post(batch(["a"])).await.error(), (503, "not_published".into()));

    world.nats.start_again().await;
    gate.wait_ready().await;
    assert_eq!(gate.post(batch(["a"])).await.counts(), (0, 1), "claimed when NATS was down");
    assert_eq!(world.nats.events().await.len(), 1);
}

#[tokio::test]
async fn it_starts_without_redis_and_nats_and_names_both() {
    let mut world = World::start().await;
    world.redis.kill();
    world.nats.kill();
    let gate = world.gate_unready("server.request_deadline = \"1s\"").await;
    assert_waiting(&gate).await;
    assert_eq!(gate.post(batch(["a"])).await.error(), (503, "not_published".into()));

    world.nats.start_again().await;
    gate.wait_store("nats", "up").await;
    assert_waiting(&gate).await;
    world.redis.start_again().await;
    gate.wait_ready().await;
    assert_eq!(gate.post(batch(["a"])).await.counts(), (1, 1));
}

#[tokio::test]
async fn it_starts_while_redis_and_nats_hang() {
    let world = World::start().await;
    world.redis.freeze();
    world.nats.freeze();
    let gate = world.gate_unready("server.request_deadline = \"2s\"").await;
    let answer = gate.post(batch(["a"])).await;
    assert_eq!(answer.error(), (503, "not_published".into()));
    assert!(answer.took.as_secs() < 2, "the answer took {:?}", answer.took);
    assert_waiting(&gate).await;

    world.redis.thaw();
    world.nats.thaw();
    gate.wait_ready().await;
    gate.deliver(batch(["a"])).await;
}

#[tokio::test]
async fn once_ready_it_stays_ready_without_its_stores() {
    let mut world = World::start().await;
    let gate = world.gate("").await;
    world.redis.kill();
    world.nats.kill();
    gate.wait_store("redis", "unreachable").await;
    gate.wait_store("nats", "unreachable").await;
    assert_eq!(gate.probe("/readyz").await.status, 200);
    assert_eq!(gate.probe("/livez").await.status, 200);
}

/// A file with a secret, as a mounted one has it: with a line break at its end.
fn secret(text: &str) -> tempfile::NamedTempFile {
    let file = tempfile::NamedTempFile::new().expect("a temporary file can be made");
    std::fs::write(&file, format!("{text}\n")).expect("it is ours");
    file
}

#[tokio::test]
async fn a_wrong_password_of_redis_keeps_it_unready_and_names_the_setting() {
    let (redis, nats) = tokio::join!(RedisServer::with_password("right"), NatsServer::start());
    let world = World { redis, nats };
    let password = secret("incorrect");
    let settings = format!("redis.password_file = {:?}", password.path());
    let mut gate = world.gate_unready(&settings).await;
    let problem = gate.wait_store("redis", "refused").await;
    assert!(problem.contains("redis.password_file"), "{problem}");
    let line = gate.wait_log("redis.password_file").await;
    assert!(line.contains("ERROR"), "{line}");
    assert_waiting(&gate).await;
    assert!(!gate.log().await.concat().contains("incorrect"), "the password is in the log");

    let password = secret("right");
    let gate = world.gate(&format!("redis.password_file = {:?}", password.path())).await;
    assert_eq!(gate.post(batch(["a"])).await.counts(), (1, 1));
}

#[tokio::test]
async fn no_password_where_redis_wants_one_is_named_too() {
    let (redis, nats) = tokio::join!(RedisServer::with_password("right"), NatsServer::start());
    let world = World { redis, nats };
    let gate = world.gate_unready("").await;
    let problem = gate.wait_store("redis", "refused").await;
    assert!(problem.contains("requires a password: set redis.password_file"), "{problem}");
    assert_waiting(&gate).await;
}

/// As Redis does it, which listens to nobody then: the client library mostly sees its own write fail.
#[tokio::test]
async fn a_redis_in_protected_mode_is_named_once() {
    let nats = NatsServer::start().await;
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port is free");
    let address = listener.local_addr().expect("it has an address");
    let turned_away = Arc::new(AtomicUsize::new(0));
    let count = Arc::clone(&turned_away);
    let mut ends_with_the_test = JoinSet::new();
    ends_with_the_test.spawn(async move {
        while let Ok((mut stream, _)) = listener.accept().await {
            let _gone = stream
                .write_all(b"-DENIED Redis is running in protected mode because protected mode is enabled\r\n")
                .await;
            count.fetch_add(1, Ordering::Relaxed);
        }
    });
    let settings = format!("nats.url = \"{}\"\nredis.url = \"redis://{address}\"", nats.url());
    let mut gate = Gate::start(&settings, "").await;
    let problem = gate.wait_store("redis", "refused").await;
    assert!(problem.contains("is in protected mode") && problem.contains("protected-mode no"), "{problem}");
    eventually("many connections are turned away", async || (turned_away.load(Ordering::Relaxed) > 20).then_some(()))
        .await;
    let log = gate.log().await;
    let said: Vec<_> = log.iter().filter(|line| line.contains("\"redis\"") && line.contains("reason")).collect();
    assert_eq!(said.len(), 1, "{said:?}");
}

/// Debian's Redis does not know WAITAOF; without an append-only file no Redis carries it out.
#[tokio::test]
async fn a_redis_that_confirms_no_disk_keeps_it_unready_and_says_what_is_needed() {
    let world = World::start().await;
    let set = redis::cmd("CONFIG").arg("SET").arg("appendonly").arg("no").to_owned();
    set.exec_async(&mut world.redis.connection().await).await.expect("the operator may do that");
    let settings = "redis.durability = \"aof\"\nredis.on_unavailable = \"reject\"\nnats.on_unavailable = \"accept\"";
    let gate = world.gate_unready(settings).await;
    let problem = gate.wait_store("redis", "refused").await;
    assert!(["redis.durability", "7.2", "appendonly"].iter().all(|part| problem.contains(part)), "{problem}");
    assert_waiting(&gate).await;
    assert_eq!(gate.post(batch(["a"])).await.error(), (503, "pending_store_unavailable".into()));
}

#[tokio::test]
async fn a_wrong_password_of_nats_keeps_it_unready_and_names_the_setting() {
    let (redis, nats) = tokio::join!(RedisServer::start(), NatsServer::with_user("gate", "right"));
    let world = World { redis, nats };
    let password = secret("mistaken");
    let login = format!("nats.user = \"gate\"\nnats.password_file = {:?}", password.path());
    let mut gate = world.gate_unready(&format!("server.request_deadline = \"2s\"\n{login}")).await;
    let problem = gate.wait_store("nats", "refused").await;
    assert!(problem.contains("nats.password_file"), "{problem}");
    let line = gate.wait_log("nats.password_file").await;
    assert!(line.contains("ERROR"), "{line}");
    assert_waiting(&gate).await;
    // A request waits while it tries again and again.
    assert_eq!(gate.post(batch(["waits"])).await.status, 503);
    let log = gate.log().await;
    assert!(!log.concat().contains("mistaken"), "the password is in the log");
    let said: Vec<_> = log.iter().filter(|line| line.contains("ERROR")).collect();
    assert_eq!(said.len(), 1, "{said:?}");

    let password = secret("right");
    let gate = world.gate(&format!("nats.user = \"gate\"\nnats.password_file = {:?}", password.path())).await;
    assert_eq!(gate.post(batch(["a"])).await.counts(), (1, 1));
}

#[tokio::test]
async fn credentials_in_the_address_of_nats_are_used() {
    let (redis, nats) = tokio::join!(RedisServer::start(), NatsServer::with_user("gate", "ri%ght"));
    let world = World { redis, nats };
    let url = world.nats.url().replace("nats://", "nats://gate:ri%25ght@");
    let mut gate = world.gate(&format!("nats.url = \"{url}\"")).await;
    assert_eq!(gate.post(batch(["a"])).await.counts(), (1, 1));
    assert!(!gate.log().await.concat().contains("ri%"), "the password is in the log");
}

/// A hookgate with a user of NATS who may do so much.
async fn permitted(may: &str) -> (World, Gate) {
    let users =
        format!("{{ user: operator, password: op }}, {{ user: gate, password: right, permissions: {{ {may} }} }}");
    let config = format!("authorization {{ users = [{users}] }}\nno_auth_user: operator\n");
    let (redis, nats) = tokio::join!(RedisServer::start(), NatsServer::configured(&config));
    let world = World { redis, nats };
    let gate = world.gate_unready(&as_gate(&world)).await;
    (world, gate)
}

/// The settings of that user.
fn as_gate(world: &World) -> String {
    let url = world.nats.url().replace("nats://", "nats://gate:right@");
    format!("nats.url = \"{url}\"\nserver.request_deadline = \"2s\"\n")
}

#[tokio::test]
async fn a_missing_permission_for_the_stream_keeps_it_unready_and_is_named() {
    let may = r#"publish = ["vmh.>", "_INBOX.hookgate.>"], subscribe = "_INBOX.hookgate.>""#;
    let (_world, gate) = permitted(may).await;
    let problem = gate.wait_store("nats", "refused").await;
    assert!(problem.contains("Permissions Violation") && problem.contains("$JS.API"), "{problem}");
    assert_waiting(&gate).await;
}

#[tokio::test]
async fn a_missing_permission_for_acknowledgements_keeps_it_unready_and_is_named() {
    let (_world, gate) = permitted(r#"publish = ">", subscribe = "elsewhere.>""#).await;
    let problem = gate.wait_store("nats", "refused").await;
    assert!(problem.contains("Permissions Violation") && problem.contains("_INBOX.hookgate"), "{problem}");
    assert_waiting(&gate).await;
}

#[tokio::test]
async fn a_missing_permission_for_the_subject_is_named_when_it_shows() {
    let may = r#"publish = ["$JS.API.>", "_INBOX.hookgate.>"], subscribe = "_INBOX.hookgate.>""#;
    let (_world, gate) = permitted(may).await;
    gate.wait_store("nats", "up").await;
    assert_eq!(gate.post(batch(["a"])).await.error(), (503, "not_published".into()));
    let line = gate.wait_log("Permissions Violation").await;
    assert!(line.contains("vmh.beteiligte.create") && line.contains("ERROR"), "{line}");
}

#[tokio::test]
async fn the_permissions_it_needs_are_enough() {
    let api = r#""$JS.API.STREAM.NAMES", "$JS.API.STREAM.INFO.*", "$JS.API.STREAM.CREATE.HOOKGATE""#;
    let may = format!(r#"publish = ["vmh.beteiligte.create", {api}], subscribe = "_INBOX.hookgate.>""#);
    let (world, gate) = permitted(&may).await;
    gate.wait_ready().await;
    assert_eq!(gate.post(batch(["a"])).await.counts(), (1, 1));
    assert_eq!(world.nats.events().await.len(), 1);
}

/// The first start makes the stream, the second one knows another flow.
#[tokio::test]
async fn its_own_stream_gains_subjects_only_with_the_permission_to_update_it() {
    let route = |flow: &str| format!("[[routes]]\nflow = \"{flow}\"\nentity = \"account\"\naction = \"create\"\n");
    let create = r#""$JS.API.STREAM.NAMES", "$JS.API.STREAM.INFO.*", "$JS.API.STREAM.CREATE.HOOKGATE""#;
    for update in [r#", "$JS.API.STREAM.UPDATE.HOOKGATE""#, ""] {
        let may =
            format!(r#"publish = ["vmh.>", "crm.account.create", {create}{update}], subscribe = "_INBOX.hookgate.>""#);
        let (world, gate) = permitted(&may).await;
        gate.wait_ready().await;
        drop(gate);
        let gate = world.gate_unready(&format!("{}{}{}", as_gate(&world), route("vmh"), route("crm"))).await;
        if update.is_empty() {
            let problem = gate.wait_store("nats", "refused").await;
            assert!(problem.contains("$JS.API.STREAM.UPDATE.HOOKGATE"), "{problem}");
            assert_waiting(&gate).await;
        } else {
            gate.wait_ready().await;
            assert_eq!(gate.post_to("/crm/webhook/account/create", batch(["a"])).await.counts(), (1, 1));
        }
    }
}

#[tokio::test]
async fn a_nats_without_jetstream_is_explained_and_waited_for() {
    let (redis, nats) = tokio::join!(RedisServer::start(), NatsServer::without_jetstream());
    let mut world = World { redis, nats };
    let gate = world.gate_unready("server.request_deadline = \"1s\"").await;
    let problem = gate.wait_store("nats", "refused").await;
    assert!(problem.contains("-js") && problem.contains("core"), "{problem} names both ways out");
    let line = gate.wait_log("-js").await;
    assert!(line.contains("ERROR"), "{line}");
    assert_waiting(&gate).await;
    assert_eq!(gate.post(batch(["a"])).await.error(), (503, "not_published".into()));

    world.nats.kill();
    world.nats.start_again_with_jetstream().await;
    gate.wait_ready().await;
    assert_eq!(gate.post(batch(["a"])).await.counts(), (0, 1));
    assert_eq!(world.nats.events().await.len(), 1);
}

/// Two accounts, of which one has `JetStream`.
pub(crate) const ACCOUNTS: &str = r#"accounts {
  CRM { jetstream: enabled, users: [ { user: "crm", password: "crm" } ] }
  OUTSIDE { users: [ { user: "outsider", password: "outsider" } ] }
}
"#;

/// A login to the account that has it.
pub(crate) fn in_crm() -> async_nats::ConnectOptions {
    async_nats::ConnectOptions::with_user_and_password("crm".to_owned(), "crm".to_owned())
}

/// The address of the server with a login to the account that has none.
pub(crate) fn outsider(nats: &NatsServer) -> String {
    format!("nats://outsider:outsider@127.0.0.1:{}", nats.port())
}

/// The server has `JetStream`, and refuses it to the account: waiting does not help.
#[tokio::test]
async fn an_account_without_jetstream_keeps_it_unready() {
    let (redis, nats) = tokio::join!(RedisServer::start(), NatsServer::guarded(ACCOUNTS, in_crm));
    let url = format!("nats.url = \"{}\"", outsider(&nats));
    let world = World { redis, nats };
    let gate = world.gate_unready(&url).await;
    let problem = gate.wait_store("nats", "refused").await;
    assert!(problem.contains("account"), "{problem} says what is missing");
    assert_waiting(&gate).await;
}
