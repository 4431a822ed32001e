//! Reloads again and again while senders post: no request is dropped, no event is lost, nothing is left behind.

use std::{
    collections::{BTreeSet, HashMap},
    sync::atomic::{AtomicBool, AtomicUsize, Ordering},
    time::{Duration, Instant},
};

use futures_util::future::join_all;

use super::{NEW_PATH, RELOADED, after, before, create, route, series, serves};
use crate::support::{Connection, Gate, NatsServer, RedisCluster, World, batch, eventually, post_and_stay};

const SENDERS: usize = 6;
const RELOADS: usize = 12;
const QUIET: &str = "log.filter = \"info,hookgate::entity=warn\"\n";

/// Posts batches on one connection until it is told to stop; the ids that were accepted.
async fn sender(gate: &Gate, number: usize, path: &str, stop: &AtomicBool, sent: &AtomicUsize) -> Vec<String> {
    let mut connection = Connection::open(gate.address()).await.expect("hookgate listens");
    let mut ids = Vec::new();
    for round in 0.. {
        if stop.load(Ordering::Relaxed) {
            break;
        }
        let of_round: Vec<_> = (0..5).map(|item| format!("s{number}-{round}-{item}")).collect();
        let request = post_and_stay(path, batch(&of_round).as_bytes());
        connection.send(&request).await.expect("the connection stays");
        let answer = connection.answer().await.expect("each request is answered");
        assert_eq!(answer.status, 200, "{}", answer.text());
        sent.fetch_add(1, Ordering::Relaxed);
        ids.extend(of_round);
    }
    ids
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
    let (stop, sent) = (AtomicBool::new(false), AtomicUsize::new(0));
    let senders = join_all((0..SENDERS).map(|number| sender(&gate, number, crate::support::PATH, &stop, &sent)));
    let reloads = async {
        let mut first = None;
        for number in 1..=RELOADS {
            let before = sent.load(Ordering::Relaxed);
            gate.configure(&variants[number % variants.len()]);
            gate.signal("HUP");
            eventually("it is reloaded, and senders have gone on", async || {
                let done = gate.log_count(RELOADED) >= number && sent.load(Ordering::Relaxed) > before + SENDERS;
                done.then_some(())
            })
            .await;
            // The same configuration holds the same.
            if number == variants.len() {
                first = Some(held(&gate).await);
            }
        }
        let last = held(&gate).await;
        stop.store(true, Ordering::Relaxed);
        (first.expect("there were enough"), last)
    };
    let (accepted, (first, last)) = tokio::join!(senders, reloads);
    let (mut accepted, mut expected) = (accepted.concat(), BTreeSet::new());
    expected.extend(accepted.drain(..));
    let events = world.nats.events().await;
    let published: BTreeSet<_> = events.iter().map(crate::support::Event::entity_id).collect();
    assert_eq!(published.len(), events.len(), "each id once");
    assert_eq!(published, expected, "no event is lost");
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

/// Where a claim waits for replicas of Redis, each route has a connection of its own. So has the quarantine.
#[tokio::test]
async fn the_connections_of_a_removed_route_end() {
    let world = World::start().await;
    let durable = "redis.durability = \"replica\"\nnats.on_unavailable = \"accept\"\n";
    let gate = world.gate(&format!("{durable}{}", create())).await;
    let first = held(&gate).await;
    for number in 1..=3 {
        let more = create() + &route("vertrag", "update", "quarantine = true");
        for (routes, reloads) in [(more, 2 * number - 1), (create(), 2 * number)] {
            gate.configure(&format!("{durable}{routes}"));
            gate.signal("HUP");
            eventually("it is reloaded", async || (gate.log_count(RELOADED) >= reloads).then_some(())).await;
        }
    }
    eventually("tasks and files are as many as at the start", async || {
        let now = held(&gate).await;
        (now.0 <= first.0 && now.1 <= first.1).then_some(())
    })
    .await;
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
    let first = held(&gate).await;
    for number in 1..=3 {
        let more = create() + &route("vertrag", "update", "");
        for (routes, reloads) in [(more, 2 * number - 1), (create(), 2 * number)] {
            gate.configure(&format!("{durable}{routes}"));
            gate.signal("HUP");
            eventually("it is reloaded", async || (gate.log_count(RELOADED) >= reloads).then_some(())).await;
        }
    }
    eventually("tasks and files are as many as at the start", async || {
        let now = held(&gate).await;
        (now.0 <= first.0 && now.1 <= first.1).then_some(())
    })
    .await;

    // The relay looks for what the route left, which is denied now.
    grant(&cluster, &[KEPT]).await;
    for node in &cluster.nodes {
        let mut connection = node.connection().await;
        let kill = redis::cmd("CLIENT").arg(&["KILL", "USER", "hookgate"]).exec_async(&mut connection).await;
        kill.expect("the tests may");
    }
    gate.configure(&format!("{durable}server.max_in_flight = 64\n{}", create()));
    gate.signal("HUP");
    eventually("it is denied", async || (denials(&cluster).await >= 3).then_some(())).await;
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
