//! Reloads again and again while senders post: no request is dropped, no event is lost, nothing is left behind.

use std::{
    cell::Cell,
    collections::{BTreeSet, HashMap},
    fs,
    path::PathBuf,
    sync::atomic::{AtomicBool, AtomicUsize, Ordering},
    time::{Duration, Instant},
};

use futures_util::future::join_all;

use super::{
    KEPT, Mounted, NEW_PATH, RELOADED, WEBHOOK, after, before, create, has_failed, route, series, serves, signed,
    signed_on,
};
use crate::support::{
    Connection, Event, Gate, NatsServer, PATH, RedisCluster, World, batch, eventually, post_and_stay,
};

const SENDERS: usize = 6;
const RELOADS: usize = 12;
const QUIET: &str = "log.filter = \"info,hookgate::entity=warn\"\n";

/// Senders that post batches until they are told to stop, each on one connection.
struct Load {
    stop: AtomicBool,
    /// Batches that each sender has got through.
    sent: [AtomicUsize; SENDERS],
}

impl Load {
    fn new() -> Self {
        Self { stop: AtomicBool::new(false), sent: std::array::from_fn(|_| AtomicUsize::new(0)) }
    }

    /// Posts what `request` makes of a body; the ids that were accepted. Whatever is not accepted fails the test.
    async fn run(&self, gate: &Gate, request: impl Fn(&str) -> Vec<u8>) -> BTreeSet<String> {
        let senders = (0..SENDERS).map(|number| self.sender(gate, number, &request));
        join_all(senders).await.into_iter().flatten().collect()
    }

    async fn sender(&self, gate: &Gate, number: usize, request: &impl Fn(&str) -> Vec<u8>) -> Vec<String> {
        let mut connection = Connection::open(gate.address()).await.expect("hookgate listens");
        let mut ids = Vec::new();
        for round in 0.. {
            if self.stop.load(Ordering::Relaxed) {
                break;
            }
            let of_round: Vec<_> = (0..5).map(|item| format!("s{number}-{round}-{item}")).collect();
            connection.send(&request(&batch(&of_round))).await.expect("the connection stays");
            let answer = connection.answer().await.expect("each request is answered");
            assert_eq!(answer.status, 200, "{}", answer.text());
            self.sent[number].fetch_add(1, Ordering::Relaxed);
            ids.extend(of_round);
        }
        ids
    }

    /// Waits until each sender has got through two batches more: one of them began after this.
    async fn goes_on(&self) {
        let counts = || self.sent.each_ref().map(|sent| sent.load(Ordering::Relaxed));
        let before = counts();
        eventually("each sender has gone on", async || {
            counts().iter().zip(before).all(|(now, before)| *now >= before + 2).then_some(())
        })
        .await;
    }

    fn stop(&self) {
        self.stop.store(true, Ordering::Relaxed);
    }
}

/// Each id of the senders has exactly one event.
async fn assert_published(world: &World, accepted: &BTreeSet<String>) {
    let events = world.nats.events().await;
    let published: Vec<_> = events.iter().map(Event::entity_id).filter(|id| id.starts_with('s')).collect();
    assert_eq!(published.iter().collect::<BTreeSet<_>>().len(), published.len(), "each id once");
    assert_eq!(&published.into_iter().collect::<BTreeSet<_>>(), accepted, "no event is lost");
}

/// Tasks and open files. Both grow with whatever is left behind: a task, a connection to a store.
async fn held(gate: &Gate) -> (f64, f64) {
    let of = async |name| series(gate, name).await.expect("it is there");
    (of("hookgate_tasks").await, of("process_open_fds").await)
}

#[tokio::test]
async fn reloads_under_load_drop_nothing_and_leave_nothing_behind() {
    let world = World::start().await;
    let ack = "consumers = [\"sync\"]\nrelease = \"ack\"";
    let smaller = "server.max_in_flight = 64\nserver.max_body_bytes = 100000\n";
    let variants = [
        QUIET.to_owned() + &before(),
        format!("{QUIET}{smaller}{}", after()),
        format!("{QUIET}{}{}", create(), route("vertrag", "update", &format!("{ack}\nquarantine = true"))),
        format!("{QUIET}{smaller}{}", route("beteiligte", "create", "label = \"X\"")),
    ];
    let gate = world.gate(&variants[0]).await;
    let load = Load::new();
    let reloads = async {
        let mut first = None;
        for number in 1..=RELOADS {
            gate.configure(&variants[number % variants.len()]);
            gate.signal("HUP");
            eventually("it is reloaded", async || (gate.log_count(RELOADED) >= number).then_some(())).await;
            load.goes_on().await;
            // The same configuration holds the same.
            if number == variants.len() {
                first = Some(held(&gate).await);
            }
        }
        let last = held(&gate).await;
        load.stop();
        (first.expect("there were enough"), last)
    };
    let senders = load.run(&gate, |body| post_and_stay(PATH, body.as_bytes()));
    let (accepted, (first, last)) = tokio::join!(senders, reloads);
    assert_published(&world, &accepted).await;
    // What is being opened or closed at that moment is not left behind.
    eventually("tasks and files are as many as after the first round", async || {
        let now = held(&gate).await;
        (now.0 <= first.0.min(last.0) && now.1 <= first.1.min(last.1)).then_some(())
    })
    .await;

    gate.configure(&variants[1]);
    serves(&gate, &["vmh/beteiligte/create", "vmh/vertrag/update"]).await;
    assert_eq!(gate.post_to(NEW_PATH, batch(["n"])).await.counts(), (1, 1));
}

/// As in Kubernetes: the `ConfigMap` is swapped, with a mistake and without; the secret of the senders is rotated; the log is
/// turned up.
#[tokio::test]
async fn what_an_operator_changes_under_load_drops_no_request() {
    let world = World::start().await;
    let [one, two] = ["one", "two"].map(|name| world.redis.folder().join(name));
    fs::write(&one, "first").expect("the folder is ours");
    let settings = |more: &str, files: &[&PathBuf]| {
        let auth = format!("auth = [{{ scheme = \"espocrm\", id = \"{WEBHOOK}\", secret_files = {files:?} }}]");
        format!("{more}{}", route("beteiligte", "create", &auth))
    };
    let start = settings(QUIET, &[&one]);
    let gate = world.gate(&start).await;
    let mounted = Mounted::over(gate.file(), &start);
    let secret = Cell::new("first");
    let is_good = async |secret: &str| gate.exchange(&signed(secret, &batch(["probe"]))).await.status == 200;
    let load = Load::new();
    let changes = async {
        load.goes_on().await;
        // A mistake, which senders must not notice, however long it is there.
        mounted.swap(&format!("server.max_in_flight = 0\n{}", settings(QUIET, &[])));
        gate.wait_log(KEPT).await;
        has_failed(&gate, true).await;
        load.goes_on().await;

        // The new secret beside the old one, then the senders, then it alone.
        fs::write(&two, "second").expect("the folder is ours");
        mounted.swap(&settings(QUIET, &[&one, &two]));
        eventually("the new secret is good", async || is_good("second").await.then_some(())).await;
        has_failed(&gate, false).await;
        load.goes_on().await;
        secret.set("second");
        load.goes_on().await;
        mounted.swap(&settings(QUIET, &[&two]));
        eventually("the old secret is no longer good", async || (!is_good("first").await).then_some(())).await;
        load.goes_on().await;

        // The same in the files alone, of which the configuration has both.
        fs::write(&one, "third").expect("the folder is ours");
        mounted.swap(&settings(QUIET, &[&one, &two]));
        eventually("the third secret is good", async || is_good("third").await.then_some(())).await;
        secret.set("third");
        load.goes_on().await;
        fs::remove_file(&two).expect("the folder is ours");
        eventually("the second one is revoked", async || (!is_good("second").await).then_some(())).await;
        load.goes_on().await;

        assert_eq!(gate.log_count("Create Entity ID gefunden"), 0, "the log is quiet");
        mounted.swap(&settings("log.filter = \"info\"\n", &[&one, &two]));
        gate.wait_log("Create Entity ID gefunden").await;
        load.goes_on().await;
        load.stop();
    };
    let senders = load.run(&gate, |body| signed_on(secret.get(), body, "keep-alive"));
    let (accepted, ()) = tokio::join!(senders, changes);
    assert_published(&world, &accepted).await;
    assert_eq!(gate.log_count(RELOADED), 4, "each good configuration was read once");
}

/// Adds a route and removes it, three times: tasks and files are as many as before.
async fn comes_and_goes(gate: &Gate, head: &str, more: &str) {
    let first = held(gate).await;
    for number in 1..=3 {
        for (routes, reloads) in [(create() + more, 2 * number - 1), (create(), 2 * number)] {
            gate.configure(&format!("{head}{routes}"));
            gate.signal("HUP");
            eventually("it is reloaded", async || (gate.log_count(RELOADED) >= reloads).then_some(())).await;
        }
    }
    eventually("tasks and files are as many as at the start", async || {
        let now = held(gate).await;
        (now.0 <= first.0 && now.1 <= first.1).then_some(())
    })
    .await;
}

/// Where a claim waits for replicas of Redis, each route has a connection of its own. So has the quarantine.
#[tokio::test]
async fn the_connections_of_a_removed_route_end() {
    let world = World::start().await;
    let durable = "redis.durability = \"replica\"\nnats.on_unavailable = \"accept\"\n";
    let gate = world.gate(&format!("{durable}{}", create())).await;
    comes_and_goes(&gate, durable, &route("vertrag", "update", "quarantine = true")).await;
}

/// Gives hookgate's user of each node the keys of these pending keys, and its own.
async fn grant(cluster: &RedisCluster, pending_keys: &[&str]) {
    let mut words = vec!["SETUSER".to_owned(), "hookgate".to_owned()];
    words.extend(["reset", "on", ">right", "&*", "+@all", "~hookgate:*", "~{hookgate:*}:*"].map(str::to_owned));
    words.extend(pending_keys.iter().flat_map(|key| [format!("~{key}"), format!("~{{{key}}}:*")]));
    for node in &cluster.nodes {
        let mut connection = node.connection().await;
        redis::cmd("ACL").arg(&words).exec_async(&mut connection).await.expect("the tests may");
    }
}

/// How often a node denied a key to somebody.
async fn denials(cluster: &RedisCluster) -> usize {
    let mut all = 0;
    for node in &cluster.nodes {
        let mut connection = node.connection().await;
        let log = redis::cmd("ACL").arg("LOG").query_async::<Vec<HashMap<String, String>>>(&mut connection).await;
        let log = log.expect("the tests may");
        all += log.iter().filter_map(|entry| entry["count"].parse::<usize>().ok()).sum::<usize>();
    }
    all
}

/// In a cluster each route has a connection of its own. What becomes of a removed route's keys is no trouble of the others.
#[tokio::test]
async fn the_connections_of_a_removed_route_end_in_a_cluster() {
    const KEPT: &str = "vmh:beteiligte:create_pending";
    const REMOVED: &str = "vmh:vertrag:update_pending";
    let (cluster, nats) = tokio::join!(RedisCluster::start(), NatsServer::start());
    grant(&cluster, &[KEPT, REMOVED]).await;
    let url = cluster.url().replace("://", "://hookgate:right@");
    let servers = format!("redis.url = \"{url}\"\nnats.url = \"{}\"\n", nats.url());
    let durable = "redis.durability = \"replica\"\nnats.on_unavailable = \"accept\"\n";
    let gate = Gate::start(&servers, &format!("{durable}{}", create())).await;
    gate.wait_ready().await;
    assert_eq!(gate.post(batch(["a"])).await.counts(), (1, 1));
    comes_and_goes(&gate, durable, &route("vertrag", "update", "")).await;

    // The relay looks for what the route left, which is denied now.
    grant(&cluster, &[KEPT]).await;
    for node in &cluster.nodes {
        let mut connection = node.connection().await;
        let kill = redis::cmd("CLIENT").arg(&["KILL", "USER", "hookgate"]).exec_async(&mut connection).await;
        kill.expect("the tests may");
    }
    gate.configure(&format!("{durable}server.max_in_flight = 64\n{}", create()));
    gate.signal("HUP");
    // Each attempt asks six nodes, and what comes of it is looked at once a second.
    eventually("it is denied several times", async || (denials(&cluster).await >= 60).then_some(())).await;
    gate.wait_log("the outbox of a removed route can't be read").await;
    gate.deliver(batch(["b"])).await;
    gate.wait_store("redis", "up").await;
    assert_eq!(gate.log_count("store refuses to work with hookgate"), 0);
}

/// Routes that bring nothing else.
fn many(count: usize) -> String {
    (0..count).map(|number| route(&format!("e{number}"), "create", "")).collect()
}

/// A cluster that hangs keeps a reload waiting as long for many new routes as for one.
#[tokio::test]
async fn new_routes_wait_together_for_a_cluster_that_hangs() {
    let (cluster, nats) = tokio::join!(RedisCluster::start(), NatsServer::start());
    let servers = format!("redis.url = \"{}\"\nnats.url = \"{}\"\n", cluster.url(), nats.url());
    let slow = "redis.timeout = \"2s\"\n";
    let gate = Gate::start(&servers, &format!("{slow}{}", create())).await;
    gate.wait_ready().await;
    for node in &cluster.nodes {
        node.freeze();
    }
    gate.configure(&format!("{slow}{}{}", create(), many(6)));
    gate.signal("HUP");
    let began = Instant::now();
    gate.wait_log(RELOADED).await;
    assert!(began.elapsed() < Duration::from_secs(12), "{:?}; each may take 4 s", began.elapsed());
    for node in &cluster.nodes {
        node.thaw();
    }
    gate.wait_store("redis", "up").await;
}

/// That the connection of a new route is just being made says nothing of the cluster.
#[tokio::test]
async fn a_cluster_is_up_while_new_routes_connect() {
    let (cluster, nats) = tokio::join!(RedisCluster::start(), NatsServer::start());
    let servers = format!("redis.url = \"{}\"\nnats.url = \"{}\"\n", cluster.url(), nats.url());
    let gate = Gate::start(&servers, &create()).await;
    gate.wait_ready().await;
    let before = gate.log_count("store is unreachable");
    gate.configure(&format!("{}{}", create(), many(300)));
    gate.signal("HUP");
    gate.wait_log(RELOADED).await;
    eventually("the last one claims", async || {
        (gate.post_to("/vmh/webhook/e299/create", batch(["a"])).await.status == 200).then_some(())
    })
    .await;
    assert_eq!(gate.log_count("store is unreachable"), before, "nothing was wrong");
}
