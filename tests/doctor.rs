//! `hookgate doctor` names each setting that can cost events, and fails if one does.

use serde_json::Value;

use crate::support::{NatsServer, RedisServer, World, run};

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
    assert!(text.contains("no event is lost") && text.contains("set appendonly yes"), "{text}");

    let (code, what, text) = only(&format!("{}nats.on_unavailable = \"accept\"\n", world.settings()), "failure");
    assert_eq!((code, what.as_str()), (Some(1), "redis persistence"));
    assert!(text.contains("LOST") && text.contains("set appendonly yes"), "{text}");
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
    assert!(world.redis.url().ends_with(of_redis.split(": ").nth(1).expect("an address")), "{of_redis}");
    assert!(of_nats.contains(&world.nats.url()), "{of_nats}");
}
