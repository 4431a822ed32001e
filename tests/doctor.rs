//! `hookgate doctor` names each setting that can cost events, and fails if one does.

use serde_json::{Value, json};

use crate::{
    startup::{ACCOUNTS, in_crm, outsider},
    support::{Gate, NatsCluster, NatsServer, PENDING, Port, RedisServer, World, batch, eventually, monitored, run},
};

/// The levels of what was looked at, by name.
fn examine(settings: &str) -> (Option<i32>, Vec<(String, String, String)>) {
    let ran = run(settings, &["doctor", "--output", "json"]);
    let findings = ran.printed.lines().map(|line| {
        let finding: Value = serde_json::from_str(line).expect("each line is an object");
        let text = |name: &str| finding[name].as_str().expect("it is text").to_owned();
        (text("level"), text("what"), text("text"))
    });
    (ran.code, findings.collect())
}

/// The one finding of a level, and what the command ended with.
fn only(settings: &str, level: &str) -> (Option<i32>, String, String) {
    let (code, findings) = examine(settings);
    // That of every route: this version checks no signatures.
    let found = |(l, what, _): &&(String, String, String)| l == level && !what.starts_with("route ");
    let found: Vec<_> = findings.iter().filter(found).collect();
    let [(_, what, text)] = found[..] else { panic!("one {level} in {findings:?}") };
    (code, what.clone(), text.clone())
}

async fn set(world: &World, key: &str, value: &str) {
    let mut connection = world.redis.connection().await;
    redis::cmd("CONFIG").arg("SET").arg(key).arg(value).exec_async(&mut connection).await.expect("Redis takes it");
}

#[tokio::test]
async fn a_good_system_passes() {
    let world = World::start().await;
    set(&world, "appendfsync", "always").await;
    for attempt in ["before hookgate ran", "after it"] {
        let (code, findings) = examine(&world.settings());
        assert_eq!(code, Some(0), "{attempt}: {findings:?}");
        for (level, what, text) in findings {
            let expected = if what.starts_with("route ") { "warning" } else { "ok" };
            assert_eq!(level, expected, "{attempt}: {what}: {text}");
        }
        world.gate("").await;
    }
    let printed = run(&world.settings(), &["doctor"]).good();
    let (lines, summary) = printed.trim_end().split_once("\n\n").expect("a summary comes last");
    assert!(lines.lines().all(|line| line.starts_with("ok    ") || line.starts_with("WARN  route ")), "{printed}");
    let ok = lines.lines().filter(|line| line.starts_with("ok")).count();
    assert_eq!(summary, format!("{ok} ok, 1 warning, 0 failures"));
    let strict = run(&world.settings(), &["doctor", "--strict"]);
    assert_eq!(strict.code, Some(1), "a route without auth is a warning\n{}", strict.printed);
    let open = "WARN  route vmh/beteiligte/create: ";
    let open = printed.lines().find(|line| line.starts_with(open)).expect("it is open, and doctor says so");
    assert!(open.contains("anybody"), "{open}");
}

#[tokio::test]
async fn a_stream_that_is_full_fails() {
    let world = World::start().await;
    world.gate("").await;
    let mut stream = world.nats.stream("HOOKGATE").await.expect("hookgate made it");
    (stream.max_messages, stream.max_bytes) = (2, 1 << 20);
    let jetstream = world.nats.jetstream().await;
    jetstream.update_stream(&stream).await.expect("the tests may");
    for _ in 0..2 {
        assert_eq!(examine(&world.settings()).0, Some(0), "there is room");
        jetstream.publish("vmh.other", "x".into()).await.expect("the tests may").await.expect("there is room");
    }
    let (code, what, text) = only(&world.settings(), "failure");
    assert_eq!((code, what.as_str()), (Some(1), "nats stream HOOKGATE"));
    assert!(text.contains("2 of 2 messages (max_msgs)") && text.contains("raise it, or purge"), "{text}");
}

/// Whether a server knows each setting: older ones leave out what they don't.
fn knows(config: &Value, settings: &Value) -> bool {
    settings.as_object().expect("settings are an object").keys().all(|key| !config[key].is_null())
}

/// Makes a stream of these settings alone, has `doctor` look at it, and deletes it again; nothing where the server is
/// too old for one of them.
async fn judged(world: &World, settings: &Value) -> Option<(Option<i32>, Vec<(String, String, String)>)> {
    let mut config = json!({ "subjects": ["vmh.>"] });
    config.as_object_mut().expect("it is one").extend(settings.as_object().expect("it is one").clone());
    // A name of its own: the folder of a stream outlives it for a moment.
    let name = format!("CRM{}", world.nats.jetstream().await.client().new_inbox().replace('.', ""));
    let made = world.nats.create_raw(&name, &config).await;
    let found = knows(&made, settings).then(|| examine(&world.settings()));
    world.nats.jetstream().await.delete_stream(&name).await.expect("it is there");
    found
}

/// What was found of the stream at a level.
fn of_stream(findings: &[(String, String, String)], wanted: &str) -> Vec<String> {
    let of_stream = findings.iter().filter(|(level, what, _)| level == wanted && what.starts_with("nats stream"));
    of_stream.map(|(_, _, text)| text.clone()).collect()
}

/// While no machine fails and nobody changes anything.
#[tokio::test]
async fn a_stream_setting_that_drops_refuses_or_hides_events_fails() {
    let world = World::start().await;
    let cases = [
        ("persist_mode", json!({ "persist_mode": "async" })),
        (
            "subject_transform",
            json!({ "subject_transform": { "src": "vmh.*.create", "dest": "other.{{wildcard(1)}}" } }),
        ),
        ("max_msg_size", json!({ "max_msg_size": 500 })),
        ("max_msgs_per_subject", json!({ "max_msgs_per_subject": 1 })),
        ("max_msgs_per_subject", json!({ "max_msgs_per_subject": 1, "discard": "new" })),
        (
            "discard_new_per_subject",
            json!({ "max_msgs_per_subject": 1, "discard": "new", "discard_new_per_subject": true }),
        ),
        ("max_msgs", json!({ "max_msgs": 1000 })),
        ("max_bytes", json!({ "max_bytes": 1_000_000 })),
        ("retention", json!({ "retention": "interest" })),
        ("no_ack", json!({ "no_ack": true })),
        ("storage", json!({ "storage": "memory" })),
        ("allow_msg_counter", json!({ "allow_msg_counter": true })),
    ];
    for (name, settings) in cases {
        let Some((code, findings)) = judged(&world, &settings).await else { continue };
        let failures = of_stream(&findings, "failure");
        assert!(matches!(failures.as_slice(), [one] if one.contains(name)), "{settings}: {findings:?}");
        assert_eq!(code, Some(1), "{settings}");
    }
    world.nats.create_raw("CRM", &json!({ "subjects": ["vmh.>"] })).await;
    world.nats.update_raw("CRM", &json!({ "sealed": true })).await;
    let (code, findings) = examine(&world.settings());
    let failures = of_stream(&findings, "failure");
    assert!(code == Some(1) && failures.iter().any(|text| text.contains("sealed")), "{findings:?}");
}

#[tokio::test]
async fn a_stream_setting_that_can_cost_something_one_day_warns() {
    let world = World::start().await;
    let cases = [
        ("retention", json!({ "retention": "workqueue" })),
        ("duplicate_window", json!({ "duplicate_window": 1_000_000_000 })),
        ("max_age", json!({ "max_age": 60_000_000_000_u64, "duplicate_window": 1_000_000_000 })),
        ("max_msgs", json!({ "discard": "new", "max_msgs": 1000 })),
        ("allow_rollup_hdrs", json!({ "allow_rollup_hdrs": true })),
        ("consumer_limits", json!({ "consumer_limits": { "inactive_threshold": 60_000_000_000_u64 } })),
    ];
    for (name, settings) in cases {
        let Some((code, findings)) = judged(&world, &settings).await else { continue };
        let warnings = of_stream(&findings, "warning");
        assert!(warnings.iter().any(|text| text.contains(name)), "{settings}: {findings:?}");
        assert_eq!(code, Some(0), "{settings}: {findings:?}");
    }
    world.nats.create_raw("CRM", &json!({ "subjects": ["vmh.>"], "retention": "interest" })).await;
    let consumer = json!({ "stream_name": "CRM", "config": { "durable_name": "sync", "ack_policy": "explicit" } });
    world.nats.api("CONSUMER.DURABLE.CREATE.CRM.sync", &consumer).await;
    let (code, findings) = examine(&world.settings());
    let warnings = of_stream(&findings, "warning");
    assert!(code == Some(0) && warnings.iter().any(|text| text.contains("retention")), "{findings:?}");
}

#[tokio::test]
async fn a_stream_setting_that_costs_no_event_passes() {
    let world = World::start().await;
    set(&world, "appendfsync", "always").await;
    let cases = [
        json!({ "compression": "s2" }),
        json!({ "republish": { "src": "vmh.>", "dest": "copy.>" } }),
        json!({ "allow_direct": true, "deny_delete": true, "deny_purge": true }),
        json!({ "max_consumers": 10, "metadata": { "team": "crm" } }),
        json!({ "allow_msg_ttl": true, "allow_atomic": true, "allow_batched": true }),
        json!({ "subject_transform": { "src": "vmh.orders.*", "dest": "orders.{{wildcard(1)}}" } }),
    ];
    for settings in cases {
        let Some((code, findings)) = judged(&world, &settings).await else { continue };
        assert_eq!(code, Some(0), "{settings}");
        assert_eq!(of_stream(&findings, "ok").len(), 1, "{settings}: {findings:?}");
    }
}

#[tokio::test]
async fn fewer_copies_of_hookgates_own_stream_than_configured_warn() {
    let world = World::start().await;
    set(&world, "appendfsync", "always").await;
    world.gate("").await;
    let (code, what, text) = only(&format!("{}nats.stream.replicas = 3\n", world.settings()), "warning");
    assert_eq!((code, what.as_str()), (Some(0), "nats stream HOOKGATE"));
    assert!(text.contains("nats.stream.replicas") && text.contains("has 1"), "{text}");
}

#[tokio::test]
async fn an_account_without_jetstream_fails() {
    let (redis, nats) = tokio::join!(RedisServer::start(), NatsServer::guarded(ACCOUNTS, in_crm));
    let settings = format!("redis.url = \"{}\"\nnats.url = \"{}\"\n", redis.url(), outsider(&nats));
    let (code, what, text) = only(&settings, "failure");
    assert_eq!((code, what.as_str()), (Some(1), "nats JetStream"));
    assert!(text.contains("account"), "{text}");
}

#[tokio::test]
async fn an_eviction_policy_that_throws_claims_away_fails() {
    let world = World::start().await;
    set(&world, "maxmemory-policy", "allkeys-lru").await;
    let (code, what, text) = only(&world.settings(), "failure");
    assert_eq!((code, what.as_str()), (Some(1), "redis maxmemory-policy"));
    assert!(text.contains("allkeys-lru") && text.contains("set noeviction"), "{text}");
    let printed = run(&world.settings(), &["doctor"]).printed;
    assert!(printed.contains("\nFAIL  redis maxmemory-policy: allkeys-lru"), "{printed}");
}

#[tokio::test]
async fn without_an_append_only_file_it_warns_and_where_answers_rest_on_redis_it_fails() {
    let world = World::start().await;
    set(&world, "appendonly", "no").await;
    let (code, what, text) = only(&world.settings(), "warning");
    assert_eq!((code, what.as_str()), (Some(0), "redis persistence"));
    assert!(text.contains("SREM") && text.contains("answered 200 without an event"), "{text}");
    assert!(text.contains("set appendonly yes"), "{text}");

    let (code, what, text) = only(&format!("{}nats.on_unavailable = \"accept\"\n", world.settings()), "failure");
    assert_eq!((code, what.as_str()), (Some(1), "redis persistence"));
    assert!(text.contains("LOST") && text.contains("set appendonly yes"), "{text}");
}

#[tokio::test]
async fn a_sync_that_can_forget_a_release_warns() {
    let world = World::start().await;
    let (code, what, text) = only(&world.settings(), "warning");
    assert_eq!((code, what.as_str()), (Some(0), "redis persistence"));
    assert!(text.contains("everysec") && text.contains("SREM"), "{text}");
    assert!(text.contains("answered 200 without an event"), "{text}");
}

#[tokio::test]
async fn a_redis_that_is_too_old_is_told_apart_from_one_that_is_down() {
    let world = World { redis: RedisServer::without("SMISMEMBER").await, nats: NatsServer::start().await };
    let (code, what, text) = only(&world.settings(), "failure");
    assert_eq!((code, what.as_str()), (Some(1), "redis"));
    assert!(text.contains("hookgate needs Redis 6.2 or newer"), "{text}");
    // The same to whoever looks at a running one.
    let gate = world.gate_unready("").await;
    assert!(gate.wait_store("redis", "refused").await.contains("Redis 6.2 or newer"));
}

#[tokio::test]
async fn a_nats_without_jetstream_fails() {
    let (redis, nats) = tokio::join!(RedisServer::start(), NatsServer::without_jetstream());
    let world = World { redis, nats };
    let (code, what, text) = only(&world.settings(), "failure");
    assert_eq!((code, what.as_str()), (Some(1), "nats JetStream"));
    assert!(text.contains("-js"), "{text}");
}

#[tokio::test]
async fn without_servers_both_are_named() {
    let mut world = World::start().await;
    world.redis.kill();
    world.nats.kill();
    let (code, findings) = examine(&world.settings());
    assert_eq!(code, Some(1));
    let failures: Vec<_> = findings.iter().filter(|(level, ..)| level == "failure").collect();
    let [(_, redis, of_redis), (_, nats, of_nats)] = failures[..] else { panic!("two failures in {findings:?}") };
    assert_eq!((redis.as_str(), nats.as_str()), ("redis", "nats"));
    let url = world.redis.url();
    let address = url.trim_start_matches("redis://").split('/').next().expect("it has one");
    assert!(of_redis.contains(&format!("nothing listens on {address}")), "{of_redis}");
    assert!(of_nats.contains(&world.nats.url()), "{of_nats}");
}

#[tokio::test]
async fn what_the_monitoring_port_says_of_syncing_is_judged() {
    let port = Port::reserve();
    let monitored = |sync: &str| format!("http: \"127.0.0.1:{}\"\n{sync}", port.number);
    let mut world = World::start().await;
    world.nats = NatsServer::configured(&monitored("")).await;
    let of_sync = |settings: &str| found(settings, &["nats sync_interval", "nats monitoring"]);
    assert_eq!(of_sync(&world.settings()), [], "nobody asked for it");
    let settings = format!("{}nats.monitoring_url = \"http://127.0.0.1:{}\"\n", world.settings(), port.number);
    let found = of_sync(&settings);
    assert!(found.len() == 1 && found[0].0 == "warning" && found[0].1.contains("sync_interval: always"), "{found:?}");

    let wrong = format!("{}nats.monitoring_url = \"http://127.0.0.1:1\"\n", world.settings());
    let found = of_sync(&wrong);
    assert!(found[0].0 == "warning" && found[0].1.contains("nats.monitoring_url"), "{found:?}");
}

/// Level and text of the findings about these things.
fn found(settings: &str, about: &[&str]) -> Vec<(String, String)> {
    let (_, findings) = examine(settings);
    let found = findings.into_iter().filter(|(_, what, _)| about.contains(&what.as_str()));
    found.map(|(level, _, text)| (level, text)).collect()
}

#[tokio::test]
async fn a_store_that_fills_up_is_named_before_it_refuses_events() {
    let port = Port::reserve();
    let mut world = World::start().await;
    world.nats = NatsServer::storing(&format!("http: \"127.0.0.1:{}\"", port.number), "max_file_store: 1000000").await;
    let url = format!("http://127.0.0.1:{}", port.number);
    let settings = format!("{}nats.monitoring_url = \"{url}\"\n", world.settings());
    let of_store = || found(&settings, &["nats store"]);
    let [(level, text)] = &of_store()[..] else { panic!("one finding: {:?}", of_store()) };
    assert!(level == "ok" && text.starts_with(&url) && text.contains(" of 1000000 bytes used"), "{level}: {text}");

    world.nats.create_raw("OTHERS", &json!({ "subjects": ["others"] })).await;
    let jetstream = world.nats.jetstream().await;
    let store = async || {
        let ack = jetstream.publish("others", vec![b'x'; 20_000].into()).await.expect("it is sent");
        ack.await.is_ok()
    };
    let mut seen = Vec::new();
    let mut refused = false;
    // Until the server takes no more: doctor has to have said so before.
    for _ in 0..60 {
        refused = !store().await;
        let [(level, text)] = &of_store()[..] else { panic!("one finding: {:?}", of_store()) };
        assert!(level == "ok" || text.contains("raise max_file_store"), "{text}");
        if seen.last() != Some(level) {
            seen.push(level.clone());
        }
        if refused {
            break;
        }
    }
    assert!(refused, "a store of 1 MB takes no 60 messages of 20 kB");
    assert_eq!(seen, ["ok", "warning", "failure"]);
    assert_eq!(run(&settings, &["doctor"]).code, Some(1));
}

/// Who leads the cluster may change at any time on a slow machine, so each look asks first.
#[tokio::test]
async fn a_server_of_a_cluster_that_is_away_is_named() {
    const ABOUT: [&str; 2] = ["nats cluster", "nats stream HOOKGATE"];
    let (redis, cluster) = tokio::join!(RedisServer::start(), NatsCluster::start("", ""));
    let NatsCluster { mut servers, monitors, routes: _routes } = cluster;
    let names = servers.each_ref().map(NatsServer::name);
    // As one that runs says.
    let leader = async |asked: usize| {
        let said = monitored(&monitors[asked], "jsz").await.json();
        let leader = said["meta_cluster"]["leader"].as_str()?;
        names.iter().position(|name| name == leader)
    };
    let urls = servers.each_ref().map(NatsServer::url).join(",");
    let settings = |place: usize| {
        format!(
            "redis.url = \"{}\"\nnats = {{ url = \"{urls}\", stream.replicas = 3, monitoring_url = \"http://127.0.0.1:{}\" }}\n",
            redis.url(),
            monitors[place].number
        )
    };
    let address = |place: usize| format!("http://127.0.0.1:{}: ", monitors[place].number);
    // It makes the stream.
    let gate = Gate::start("", &settings(0)).await;
    gate.wait_ready().await;
    gate.deliver(batch(["a"])).await;

    let leads = eventually("doctor says that all are there", async || {
        let leader = leader(0).await?;
        let found = found(&settings(leader), &ABOUT);
        let all = |(level, text): &(String, String)| {
            level == "ok" && text.starts_with(&address(leader)) && text.ends_with("all are there")
        };
        // Old servers have warnings of their own.
        let away = found.iter().any(|(level, text)| level == "failure" || text.contains("copy on"));
        (found.iter().any(all) && !away).then_some(leader)
    })
    .await;

    let (other, third) = ((leads + 1) % 3, (leads + 2) % 3);
    servers[other].kill();
    // A server that was killed counts as offline to the others minutes later. Its silence shows.
    let leads = eventually("doctor names the one that is away", async || {
        let leader = leader(third).await.filter(|leader| *leader != other)?;
        let found = found(&settings(leader), &ABOUT);
        let says = |before: &str| {
            let start = format!("{before}{:?} ", names[other]);
            let gone = |text: &str| text.starts_with("is offline") || text.starts_with("has said nothing ");
            found.iter().any(|(level, text)| level == "warning" && text.strip_prefix(&start).is_some_and(gone))
        };
        (says(&address(leader)) && says("copy on ")).then_some(leader)
    })
    .await;
    // Two of three are a majority.
    gate.deliver(batch(["b"])).await;
    gate.wait_log("2 of 3 copies are there").await;

    // One that does not lead says who does.
    let follower = 3 - other - leads;
    eventually("a follower says who leads", async || {
        let found = found(&settings(follower), &["nats cluster"]);
        let [(level, text)] = &found[..] else { return None };
        (level == "ok" && text.contains("it alone says which of them are away")).then_some(())
    })
    .await;
}

/// As 0.1.0 claims them.
#[tokio::test]
async fn pending_ids_without_a_journal_entry_are_counted() {
    let world = World::start().await;
    let route = |more: &str| {
        format!("{}[[routes]]\nflow = \"vmh\"\nentity = \"beteiligte\"\naction = \"create\"\n{more}", world.settings())
    };
    let found = |settings: &str| {
        let (_, findings) = examine(settings);
        findings.into_iter().find(|(_, what, _)| what == "journal vmh/beteiligte/create")
    };
    assert_eq!(found(&route("")), None);
    let mut link = world.redis.connection().await;
    redis::cmd("SADD").arg(PENDING).arg(&["a", "b"]).exec_async(&mut link).await.expect("Redis takes it");
    let (level, _, text) = found(&route("")).expect("it is said");
    assert!(level == "ok" && text.contains("2 pending ids have no entry") && text.contains("before you set"), "{text}");
    let (level, _, text) = found(&route("release = \"ack\"\nconsumers = [\"sync\"]\n")).expect("it is said");
    assert!(level == "warning" && text.contains("republished"), "{text}");
}
