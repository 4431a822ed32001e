//! Redis Cluster: three primaries, three Redis replicas, and routes on several of them.

use std::{
    cell::{Cell, RefCell},
    collections::BTreeMap,
    time::Duration,
};

use crate::support::{
    Answer, Authority, Event, Gate, Holds, NatsServer, OUTBOX, PATH, PENDING, RedisCluster, RedisServer, SUBJECT,
    batch, eventually, run,
};

/// Pending keys in slots of all three primaries.
const ROUTES: &str = "[[routes]]\nflow = \"vmh\"\nentity = \"beteiligte\"\naction = \"create\"\n\
    [[routes]]\nflow = \"vmh\"\nentity = \"beteiligte\"\naction = \"update\"\n\
    [[routes]]\nflow = \"vmh\"\nentity = \"beteiligte\"\naction = \"delete\"\n\
    [[routes]]\nflow = \"vmh\"\nentity = \"aktenzeichen\"\naction = \"create\"\n";
const ADDRESSES: &str = "{vmh:beteiligte:create_pending}:addresses";
const PATHS: [&str; 4] =
    [PATH, "/vmh/webhook/beteiligte/update", "/vmh/webhook/beteiligte/delete", "/vmh/webhook/aktenzeichen/create"];

/// Every command that looks into Redis does its work.
pub(crate) async fn commands_work(settings: &str) {
    let route = "vmh/beteiligte/create";
    let check = run(settings, &["check"]);
    check.good();
    eventually("the claim is settled", async || {
        let story = run(settings, &["why", "a", "--route", route, "--output", "json"]).rows().remove(0);
        (story["in_flight"] == false).then_some(())
    })
    .await;
    run(settings, &["outbox", "list"]).good();
    run(settings, &["pending", "count"]).good();
    let listed = run(settings, &["pending", "list", "--output", "json"]).good();
    assert!(listed.contains("\"a\""), "{listed}");
    let letters = eventually("the bad item is kept", async || {
        let letters = run(settings, &["dead-letters", "list", "--output", "json"]).rows();
        (!letters.is_empty()).then_some(letters)
    })
    .await;
    assert_eq!(letters.len(), 1, "{letters:?}");
    run(settings, &["quarantine", "list"]).good();
    run(settings, &["pending", "release", route, "a", "--yes"]).good();
    let listed = run(settings, &["pending", "list", "--output", "json"]).rows();
    assert!(!listed.iter().any(|row| row["entity_id"] == "a" && row["route"] == route), "{listed:?}");
}

#[tokio::test]
async fn routes_work_wherever_their_keys_are_and_a_failover_is_followed() {
    let (mut cluster, nats) = tokio::join!(RedisCluster::start(), NatsServer::start());
    let settings = format!("redis.url = \"{}\"\nnats.url = \"{}\"\n{ROUTES}", cluster.url(), nats.url());
    let gate = Gate::start(&settings, "").await;
    gate.wait_ready().await;
    let mut owners = std::collections::BTreeSet::new();
    for key in [
        "vmh:beteiligte:create_pending",
        "vmh:beteiligte:update_pending",
        "vmh:beteiligte:delete_pending",
        "vmh:aktenzeichen:create_pending",
    ] {
        owners.insert(cluster.owner(key).await);
    }
    assert!(owners.len() > 1, "routes are on several nodes: {owners:?}");
    for path in PATHS {
        assert_eq!(gate.post_to(path, batch(["a", "b"])).await.counts(), (2, 2), "{path}");
    }
    for path in [PATHS[0], PATHS[2]] {
        assert_eq!(gate.post_to(path, batch(["a"])).await.counts(), (0, 1), "{path}: it is pending");
    }
    assert_eq!(gate.post("[{\"id\":\"x\"},{\"x\":1}]").await.counts(), (1, 1));
    commands_work(&settings).await;

    let printed = run(&settings, &["doctor"]).printed;
    for node in &cluster.nodes {
        assert!(printed.contains(&format!("redis persistence (127.0.0.1:{})", node.port())), "{printed}");
    }
    assert!(printed.contains("redis cluster: all slots have a primary"), "{printed}");

    let owner = cluster.owner(PENDING).await;
    cluster.nodes[owner].kill();
    eventually("ids are claimed by the replica that was promoted", async || {
        let _either = gate.post(batch(["c"])).await;
        cluster.nodes[(owner + 3) % 6].client().get_multiplexed_async_connection().await.ok()?;
        cluster.nodes[(owner + 3) % 6].pending_here(PENDING).await?.contains("c").then_some(())
    })
    .await;
    gate.wait_store("redis", "up").await;
    assert_eq!(gate.post(batch(["b"])).await.counts(), (0, 1), "b is pending there, too");
    cluster.nodes[owner].start_again().await;
    let ids: Vec<String> = nats.events().await.iter().map(Event::entity_id).collect();
    assert!(ids.contains(&"c".to_owned()), "{ids:?}");
}

#[tokio::test]
async fn a_slot_that_moves_is_followed() {
    let (cluster, nats) = tokio::join!(RedisCluster::start(), NatsServer::start());
    let settings = format!("redis.url = \"{}\"\nnats.url = \"{}\"\n", cluster.url(), nats.url());
    let gate = Gate::start(&settings, "redis.on_unavailable = \"reject\"\n").await;
    gate.wait_ready().await;
    assert_eq!(gate.post(batch(["a"])).await.counts(), (1, 1));
    let (slot, from) = (cluster.slot(PENDING).await, cluster.owner(PENDING).await);
    let to = (from + 1) % 3;
    cluster.begin_to_move(slot, from, to).await;
    while cluster.move_keys(slot, from, to).await > 0 {}
    // Some keys of a claim are not there while the slot moves, and then no node takes it.
    let answer = gate.post(batch(["b"])).await;
    assert!([200, 503].contains(&answer.status), "{}", answer.text());
    cluster.end_move(slot, to).await;
    assert_eq!(gate.deliver(batch(["a", "c"])).await.counts(), (1, 2), "a is pending there, too");
    let ids = cluster.nodes[to].pending(PENDING).await;
    assert!(ids.contains("a") && ids.contains("c"), "{ids:?}");
}

/// What came of webhooks.
#[derive(Default)]
struct Sent {
    accepted: Vec<String>,
    answers: Vec<Answer>,
}

/// A route, while the slot of its keys moved under webhooks.
struct Moved {
    gate: Gate,
    cluster: RedisCluster,
    /// The node that has its keys now.
    to: usize,
    sent: Sent,
    /// How often each id was published.
    events: BTreeMap<String, usize>,
}

/// All webhooks name one new id, and one that is pending all the time.
const KNOWN: &str = "known";

/// Moves the slot of a route key by key. Each webhook is sent until it is taken.
async fn move_under_webhooks(policy: &str) -> Moved {
    let (cluster, nats) = tokio::join!(RedisCluster::start(), NatsServer::start());
    // A machine that is busy with other tests may take long for an answer.
    let servers = format!("redis.url = \"{}\"\nredis.timeout = \"2s\"\nnats.url = \"{}\"\n", cluster.url(), nats.url());
    let settings = format!("{servers}{policy}{ROUTES}");
    let gate = Gate::start(&settings, "").await;
    gate.wait_ready().await;
    assert_eq!(gate.post(batch([KNOWN])).await.counts(), (1, 1));
    let (slot, from) = (cluster.slot(PENDING).await, cluster.owner(PENDING).await);
    let to = (from + 1) % 3;

    let (sent, moved) = (RefCell::new(Sent::default()), Cell::new(false));
    let sending = async {
        for number in 0.. {
            let id = format!("id-{number}");
            loop {
                let answer = gate.post(batch([id.as_str(), KNOWN])).await;
                let taken = answer.status == 200;
                sent.borrow_mut().answers.push(answer);
                if taken {
                    break;
                }
            }
            sent.borrow_mut().accepted.push(id);
            if moved.get() {
                return;
            }
        }
    };
    let answers = async |count: usize| {
        let goal = sent.borrow().answers.len() + count;
        eventually("webhooks are answered", async || (sent.borrow().answers.len() >= goal).then_some(())).await;
    };
    let moving = async {
        answers(3).await;
        cluster.begin_to_move(slot, from, to).await;
        answers(2).await;
        cluster.move_these(&[PENDING], from, to).await;
        answers(2).await;
        commands_look(&settings).await;
        for new in [1, 0] {
            assert_eq!(gate.post_to(PATHS[3], batch(["other"])).await.counts(), (new, 1), "other routes are claimed");
        }
        cluster.move_these(&[ADDRESSES], from, to).await;
        answers(2).await;
        while cluster.move_keys(slot, from, to).await > 0 {}
        answers(2).await;
        commands_look(&settings).await;
        cluster.end_move(slot, to).await;
        gate.wait_store("redis", "up").await;
        answers(2).await;
        moved.set(true);
    };
    tokio::join!(sending, moving);

    assert_eq!(gate.post(batch([KNOWN])).await.counts(), (0, 1), "it is pending there, too");
    assert_eq!(gate.post(batch(["new"])).await.counts(), (1, 1));
    cluster.nodes[to].settled(OUTBOX).await;
    let mut events = BTreeMap::new();
    for event in nats.events().await.into_iter().filter(|event| event.subject == SUBJECT) {
        *events.entry(event.entity_id()).or_default() += 1;
    }
    let sent = sent.into_inner();
    for id in &sent.accepted {
        assert!(events.contains_key(id), "{id} was accepted: {events:?}");
    }
    for answer in &sent.answers {
        assert!([200, 503].contains(&answer.status) && answer.took < Duration::from_secs(5), "{answer:?}");
    }
    assert_eq!(gate.log_count("store is unreachable"), 0, "nothing else was wrong");
    Moved { gate, cluster, to, sent, events }
}

/// Commands that only look find the keys of a route on two nodes. They are no part of the time that webhooks take.
async fn commands_look(settings: &str) {
    let settings = settings.to_owned();
    let looking = tokio::task::spawn_blocking(move || {
        let listed = run(&settings, &["pending", "list", "--output", "json"]).good();
        assert!(listed.contains(KNOWN), "{listed}");
        run(&settings, &["pending", "count"]).good();
        run(&settings, &["outbox", "list"]).good();
        let story = run(&settings, &["why", KNOWN, "--route", "vmh/beteiligte/create", "--output", "json"]);
        let story = story.rows().remove(0);
        assert_eq!(story["pending"], true, "{story}");
    });
    looking.await.expect("they find it");
}

#[tokio::test]
async fn while_a_slot_moves_webhooks_are_refused_and_come_again() {
    let Moved { gate, cluster, to, sent, events } = move_under_webhooks("redis.on_unavailable = \"reject\"\n").await;
    assert!(sent.answers.iter().any(|answer| answer.status == 503), "none was refused");
    for answer in sent.answers.iter().filter(|answer| answer.status == 503) {
        answer.error();
    }
    assert!(events.values().all(|times| *times == 1), "each id has one event: {events:?}");
    let pending = cluster.nodes[to].pending(PENDING).await;
    assert!(events.keys().all(|id| pending.contains(id)), "{pending:?}");
    let line = gate.wait_log("store takes no writes now").await;
    assert!(line.contains("a slot is moving to another node") && line.contains("TRYAGAIN"), "{line}");
}

#[tokio::test]
async fn while_a_slot_moves_events_go_out_without_a_claim_by_default() {
    let Moved { gate, cluster, to, sent, events } = move_under_webhooks("").await;
    assert!(sent.answers.iter().all(|answer| answer.status == 200), "all are taken");
    let status = gate.probe("/v1/status").await.json();
    let routes = status["routes"].as_array().expect("there are routes");
    let route = routes.iter().find(|route| route["name"] == "vmh/beteiligte/create").expect("it is served");
    let items = &route["items"];
    let count = |result: &str| items[result].as_u64().and_then(|count| usize::try_from(count).ok()).expect("a count");
    // A webhook that was not claimed published both of its ids, and nothing else was published twice.
    let (new, undeduplicated) = (count("new"), count("undeduplicated"));
    assert!(undeduplicated >= 2 && undeduplicated.is_multiple_of(2), "{items}");
    assert_eq!(events.values().sum::<usize>(), new + undeduplicated, "{items} {events:?}");
    assert_eq!(events[KNOWN], 1 + undeduplicated / 2, "{items} {events:?}");
    assert!(events.iter().all(|(id, times)| id == KNOWN || *times == 1), "{events:?}");
    assert_eq!(cluster.nodes[to].pending(PENDING).await.len(), new, "what was not claimed is not pending");
    gate.wait_log("published without deduplication").await;
}

#[tokio::test]
async fn dead_letters_are_kept_where_their_slot_went() {
    const LETTERS: &str = "hookgate:dead_letters";
    let (cluster, nats) = tokio::join!(RedisCluster::start(), NatsServer::start());
    let settings = format!("redis.url = \"{}\"\nnats.url = \"{}\"\n", cluster.url(), nats.url());
    let gate = Gate::start(&settings, "").await;
    gate.wait_ready().await;
    let kept = async |count: usize| {
        eventually(&format!("{count} bad items are kept"), async || {
            let letters = run(&settings, &["dead-letters", "list", "--output", "json"]).rows();
            (letters.len() == count).then_some(())
        })
        .await;
    };
    let bad = "[{\"x\":1}]";
    gate.post(bad).await.counts();
    kept(1).await;
    let (slot, from) = (cluster.slot(LETTERS).await, cluster.owner(LETTERS).await);
    let to = (from + 1) % 3;
    cluster.move_slot(slot, from, to).await;
    gate.post(bad).await.counts();
    kept(2).await;
    cluster.promote(to + 3).await;
    gate.post(bad).await.counts();
    kept(3).await;
}

#[tokio::test]
async fn a_cluster_may_speak_tls() {
    let ours = Authority::new();
    let shows = ours.sign("server", "127.0.0.1", Holds::Now);
    let ca = ours.ca();
    let (redis, nats) = tokio::join!(RedisServer::cluster_with_tls(&ca, &shows), NatsServer::start());
    let url = redis.tls_url().replace("rediss:", "rediss+cluster:");
    let settings =
        format!("redis.url = \"{url}\"\nnats.url = \"{}\"\nredis.ca_file = \"{}\"\n", nats.url(), ca.display());
    let gate = Gate::start(&settings, "").await;
    gate.wait_ready().await;
    assert_eq!(gate.post(batch(["a"])).await.counts(), (1, 1));
    assert!(redis.pending(PENDING).await.contains("a"));
}

/// The lines of k8s/privileges, and what docs/permissions.md adds for a cluster.
#[tokio::test]
async fn the_rights_that_a_cluster_needs() {
    let (cluster, nats) = tokio::join!(RedisCluster::start(), NatsServer::start());
    let lines = include_str!("../k8s/privileges/redis.acl");
    let grant = async |user: &str, more: &str| {
        let line = lines.lines().find(|line| line.starts_with(&format!("user {user} "))).expect("it has the user");
        let line = format!("{} {more}", line.replace("resetpass", ">right"));
        for node in &cluster.nodes {
            let mut connection = node.connection().await;
            let words: Vec<&str> = line.split_whitespace().skip(1).collect();
            let set = redis::cmd("ACL").arg("SETUSER").arg(&words).exec_async(&mut connection).await;
            set.expect("the tests may");
        }
    };
    let settings = |user: &str| {
        let url = cluster.url().replace("://", &format!("://{user}:right@"));
        format!("redis.url = \"{url}\"\nnats.url = \"{}\"\n", nats.url())
    };
    grant("hookgate", "").await;
    let gate = Gate::start(&settings("hookgate"), "").await;
    let problem = gate.wait_store("redis", "refused").await;
    assert!(problem.contains("cluster|slots"), "{problem}");
    drop(gate);
    grant("hookgate", "+cluster|slots").await;
    let gate = Gate::start(&settings("hookgate"), "").await;
    gate.wait_ready().await;
    assert_eq!(gate.post(batch(["a"])).await.counts(), (1, 1));

    // A key that has moved before its slot is only found by ASKING.
    grant("hookgate-operator", "+cluster|slots").await;
    let (slot, from) = (cluster.slot(PENDING).await, cluster.owner(PENDING).await);
    cluster.begin_to_move(slot, from, (from + 1) % 3).await;
    while cluster.move_keys(slot, from, (from + 1) % 3).await > 0 {}
    let count = || run(&settings("hookgate-operator"), &["outbox", "count"]);
    let ran = count();
    assert!(ran.code == Some(1) && ran.remarks.contains("asking"), "{}{}", ran.printed, ran.remarks);
    grant("hookgate-operator", "+cluster|slots +asking").await;
    let ran = count();
    assert!(ran.remarks.contains("takes no writes now"), "{}", ran.remarks);
    ran.good();
}

#[tokio::test]
async fn a_route_that_a_reload_brings_has_a_connection() {
    let (cluster, nats) = tokio::join!(RedisCluster::start(), NatsServer::start());
    let servers = format!("redis.url = \"{}\"\nnats.url = \"{}\"\n", cluster.url(), nats.url());
    let gate = Gate::start(&servers, "redis.on_unavailable = \"reject\"\n").await;
    gate.wait_ready().await;
    assert_eq!(gate.post(batch(["a"])).await.counts(), (1, 1));
    gate.configure(&format!("redis.on_unavailable = \"reject\"\n{ROUTES}"));
    gate.signal("HUP");
    eventually("the new routes claim", async || {
        let answer = gate.post_to(PATHS[3], batch(["a"])).await;
        (answer.status == 200).then_some(())
    })
    .await;
    assert_eq!(gate.post(batch(["a"])).await.counts(), (0, 1), "the old one goes on");
    for path in [PATHS[1], PATHS[2]] {
        assert_eq!(gate.post_to(path, batch(["b"])).await.counts(), (1, 1), "{path}");
    }
}

/// A node may answer the others and not hookgate: that one is asked first, by each new connection.
#[tokio::test]
async fn what_a_removed_route_left_is_published_while_a_node_is_silent() {
    let (cluster, nats) = tokio::join!(RedisCluster::start(), NatsServer::start());
    let lowest = (0..cluster.nodes.len()).min_by_key(|place| cluster.nodes[*place].port()).expect("there are six");
    if cluster.is_primary(lowest).await {
        cluster.promote((lowest + 3) % 6).await;
    }
    cluster.keep_the_silent().await;
    let servers = format!("redis.url = \"{}\"\nnats.url = \"{}\"\n", cluster.url(), nats.url());
    let short = "server.request_deadline = \"1s\"\nserver.body_read_timeout = \"1s\"\noutbox.relay_after = \"2s\"\n";
    let gate = Gate::start(&servers, &format!("{short}{ROUTES}")).await;
    gate.wait_ready().await;
    assert_eq!(gate.post(batch(["a"])).await.counts(), (1, 1));
    nats.freeze();
    assert_eq!(gate.post_to(PATHS[3], batch(["left"])).await.status, 503);
    cluster.nodes[lowest].freeze();
    let (kept, _removed) = ROUTES.rsplit_once("[[routes]]").expect("there are four");
    gate.configure(&format!("{short}{kept}"));
    gate.signal("HUP");
    gate.wait_log("this route is configured no more, but its outbox holds entries").await;
    nats.thaw();
    eventually("it is published", async || {
        let events = nats.events().await;
        events.iter().any(|event| event.subject == "vmh.aktenzeichen.create").then_some(())
    })
    .await;
    cluster.nodes[lowest].thaw();
}

/// Its address was written as that of one server.
#[tokio::test]
async fn a_node_of_a_cluster_is_no_server_of_its_own() {
    let cluster = RedisCluster::start().await;
    let node = &cluster.nodes[(cluster.owner(PENDING).await + 1) % 3];
    for database in ["", "/0", "/1"] {
        let settings =
            format!("redis.url = \"redis://127.0.0.1:{}{database}\"\nnats.url = \"nats://127.0.0.1:1\"\n", node.port());
        let problem = run(&settings, &["outbox", "list"]).bad();
        let said =
            problem.contains("is a node of a Redis Cluster") && problem.contains("write redis+cluster:// in redis.url");
        assert!(said, "{database:?}: {problem}");
    }
}
