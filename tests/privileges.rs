//! The permissions in `k8s/privileges` are enough for hookgate's whole job, and each of them is needed.

mod consumer;
mod files;
mod job;
mod reconcile;
mod release;

use redis::AsyncTypedCommands;

use self::{
    files::{Access, Acl, Permissions},
    job::{Step, first_failure},
};
use crate::support::{Event, OUTBOX, PATH, PENDING, SUBJECT, Tail, World, batch, eventually, run};

#[tokio::test]
async fn the_whole_job_needs_no_more() {
    let (mut world, access) = Access::start(&Acl::hookgate(), &Permissions::hookgate()).await;
    job::leave_older_stream(&world).await;
    let second = "[[routes]]\nflow = \"vmh\"\nentity = \"beteiligte\"\naction = \"create\"\n[[routes]]\nflow = \"vmh\"\nentity = \"akte\"\naction = \"create\"\n";
    let mut gate = world.gate(&format!("{}{second}", access.settings("1500ms"))).await;
    job::claims(&world, &gate).await.expect("webhooks become events once");
    job::dead_letters(&world, &gate).await.expect("what can't be processed is kept");
    job::store_gauges(&gate, 2).await.expect("what Redis holds is counted");

    // NATS goes away; what stays behind is the relay's, also what a removed route left.
    world.nats.kill();
    assert_eq!(gate.post(batch(["c"])).await.error(), (503, "not_published".into()));
    assert_eq!(gate.post_to("/vmh/webhook/akte/create", batch(["d"])).await.status, 503);
    gate.kill();
    let gate = world.gate_unready(&access.settings("1500ms")).await;
    world.nats.start_again().await;
    gate.wait_ready().await;
    Box::pin(eventually("the relay has brought both", async || {
        let ids: Vec<_> = world.nats.events().await.iter().map(Event::entity_id).collect();
        (ids == ["a", "b", "c", "d"] || ids == ["a", "b", "d", "c"]).then_some(())
    }))
    .await;
    world.redis.settled(OUTBOX).await;
    assert_eq!(gate.post(batch(["c"])).await.counts(), (0, 1));

    // Redis goes away and comes back.
    world.redis.written().await;
    world.redis.kill();
    gate.wait_store("redis", "unreachable").await;
    assert_eq!(gate.post(batch(["e"])).await.counts(), (1, 1), "published without a claim");
    world.redis.start_again().await;
    gate.wait_store("redis", "up").await;
    assert_eq!(gate.post(batch(["a", "e"])).await.counts(), (1, 2));
    assert_eq!(gate.post(batch(["a", "e"])).await.counts(), (0, 2));
    world.redis.settled(OUTBOX).await;
    let denied = gate.probe("/readyz").await.json();
    assert_eq!((&denied["redis"]["state"], &denied["nats"]["state"]), (&"up".into(), &"up".into()));
}

/// Redis' command or key pattern, and where its lack shows.
const REDIS: [(&str, Step); 25] = [
    ("~vmh:*", Step::Ready),
    ("~{vmh:*}:*", Step::Ready),
    ("~hookgate:*", Step::Ready),
    ("~{hookgate:*}:*", Step::DeadLetters),
    ("+select", Step::Ready),
    ("+ping", Step::Stay),
    ("+eval", Step::Ready),
    ("+evalsha", Step::Ready),
    ("+smismember", Step::Ready),
    ("+sadd", Step::Ready),
    ("+scard", Step::StoreGauges),
    ("+hmget", Step::Ready),
    ("+hset", Step::Ready),
    ("+hdel", Step::Ready),
    ("+hlen", Step::Ready),
    ("+hscan", Step::Ready),
    ("+hgetall", Step::Ready),
    ("+get", Step::Ready),
    ("+set", Step::Ready),
    ("+del", Step::Ready),
    ("+incrby", Step::DeadLetters),
    ("+xadd", Step::DeadLetters),
    ("+xlen", Step::DeadLetters),
    ("+xrange", Step::DeadLetters),
    ("+xdel", Step::DeadLetters),
];

#[tokio::test]
async fn with_one_permission_of_redis_less_something_fails() {
    let whole = Acl::hookgate();
    let mut every = whole.grants();
    every.retain(|word| !release::NEEDS_OF_REDIS.iter().any(|(other, _)| other == word));
    assert_eq!(every, REDIS.map(|(word, _)| word), "this table and that of releases have every word of the file");
    for chunk in REDIS.chunks(4) {
        let tried = chunk.iter().map(async |(word, expected)| {
            let (world, access) = Access::start(&whole.without(word), &Permissions::hookgate()).await;
            (word, expected, first_failure(&world, &access).await)
        });
        for (word, expected, found) in futures_util::future::join_all(tried).await {
            let (step, said) = found.unwrap_or_else(|| panic!("nothing fails without {word}"));
            assert_eq!(step, *expected, "without {word}: {said}");
            if let Some(command) = word.strip_prefix('+').filter(|_| step == Step::Ready) {
                let named = said.to_lowercase().contains(command) && said.contains("k8s/privileges/redis.acl");
                assert!(named, "without {word}: {said}");
            }
        }
    }
}

/// `redis.durability` asks for what the file does not have.
#[tokio::test]
async fn durability_needs_one_right_more() {
    let (world, access) = Access::start(&Acl::hookgate(), &Permissions::hookgate()).await;
    let durable = "redis.durability = \"replica\"\nnats.on_unavailable = \"accept\"\n";
    let gate = world.gate_unready(&format!("{}{durable}", access.settings("1h"))).await;
    let problem = gate.wait_store("redis", "refused").await;
    assert!(
        problem.contains("'wait'") && problem.contains("grant +wait") && problem.contains("redis.durability"),
        "{problem}"
    );
    assert_eq!(gate.probe("/readyz").await.status, 503);
    let mut connection = world.redis.connection().await;
    let grant = redis::cmd("ACL").arg(&["SETUSER", "hookgate", "+wait"]).exec_async(&mut connection).await;
    grant.expect("the tests may");
    gate.wait_ready().await;
    assert_eq!(gate.post(batch(["a"])).await.counts(), (1, 1));
}

#[tokio::test]
async fn with_one_permission_of_nats_less_something_fails() {
    let whole = Permissions::hookgate();
    let cases = [
        ("vmh.>", Step::Claim),
        ("$JS.API.STREAM.NAMES", Step::Ready),
        ("$JS.API.STREAM.INFO.HOOKGATE", Step::Ready),
        ("$JS.API.STREAM.CREATE.HOOKGATE", Step::Ready),
        ("$JS.API.STREAM.UPDATE.HOOKGATE", Step::Ready),
        ("_INBOX.hookgate.>", Step::Ready),
    ];
    let every: Vec<_> = whole
        .grants()
        .into_iter()
        .filter(|subject| !release::NEEDS.iter().any(|(other, _)| other == subject))
        .collect();
    assert_eq!(
        every,
        cases.map(|(subject, _)| subject),
        "this table and that of releases have every subject of the file"
    );
    for (subject, expected) in cases {
        let (world, access) = Access::start(&Acl::hookgate(), &whole.without_subject(subject)).await;
        if subject.contains("UPDATE") {
            job::leave_older_stream(&world).await;
        }
        let (step, said) =
            first_failure(&world, &access).await.unwrap_or_else(|| panic!("nothing fails without {subject}"));
        assert_eq!(step, expected, "without {subject}: {said}");
        assert!(said.contains(subject.trim_end_matches(".>")), "without {subject}: {said}");
    }
}

#[test]
fn the_page_on_permissions_has_the_same_lists() {
    let page = include_str!("../docs/permissions.md");
    let start = page.find("hookgate's user of Redis:").expect("the lists are there");
    let section = page[start..].split("What is denied").next().expect("they end");
    let block = section.split("```").nth(1).expect("there is a block");
    let listed: Vec<_> = block.split_whitespace().filter(|word| *word != "-@all").collect();
    assert_eq!(listed, Acl::hookgate().grants());
    let quoted: Vec<_> = section.rsplit("```").next().expect("text follows").split('`').skip(1).step_by(2).collect();
    let subject = |word: &&&str| word.contains(".>") || word.starts_with("$JS") || **word == "hookgate.release";
    let listed: Vec<_> = quoted.iter().filter(subject).copied().collect();
    assert_eq!(listed, Permissions::hookgate().grants());
}

/// What a person does, with what is left behind and a letter to look at.
async fn operate(world: &World, access: &Access) -> Result<(), String> {
    let settings = format!("{}{}", world.settings(), access.settings("1h"));
    let mut connection = world.redis.connection().await;
    let token = "0197e2c5a0007abc8def0123456789ab-0";
    connection.sadd(PENDING, "left").await.expect("the tests may");
    connection.hset(OUTBOX, "left", token).await.expect("the tests may");
    redis::cmd("XADD")
        .arg("hookgate:dead_letters")
        .arg(&[
            "*",
            "route",
            "vmh/beteiligte/create",
            "reason",
            "no_id",
            "time",
            "2026-01-01T00:00:00.000Z",
            "raw",
            "7",
        ])
        .exec_async(&mut connection)
        .await
        .expect("the tests may");
    let files = tempfile::tempdir().expect("a temporary folder can be made");
    let records = files.path().join("records.jsonl").display().to_string();
    let record = r#"{"route":"vmh/beteiligte/create","id":"by-file","time":"2026-01-01T00:00:00Z"}"#;
    std::fs::write(&records, record).expect("the folder is ours");
    for arguments in [
        &["doctor"][..],
        &["outbox", "count"],
        &["outbox", "list"],
        &["outbox", "relay"],
        &["tail", "--last", "1"],
        &["why", "first"],
        &["consumers", "add", "case-sync", "--route", "vmh/beteiligte/create"],
        &["consumers", "list"],
        &["pending", "count"],
        &["pending", "list"],
        &["pending", "republish", "vmh/beteiligte/create", "--not-in-stream", "--yes"],
        &["pending", "release", "vmh/beteiligte/create", "nobody", "--yes"],
        &["dead-letters", "list"],
        &["dead-letters", "replay", "--all"],
        &["dead-letters", "purge", "--id", "7", "--yes"],
        &["dead-letters", "purge", "--yes"],
        &["quarantine", "list"],
        &["quarantine", "release"],
        &["quarantine", "purge", "--yes"],
        &["reconcile", "--file", "/dev/null"],
        &["reconcile", "--file", &records],
    ] {
        let ran = run(&settings, arguments);
        // Both hold for every test: routes without auth, and a Redis that syncs every second.
        let of_tests = ["WARN  route ", "WARN  redis persistence: append-only file, appendfsync everysec"];
        let lines = ran.printed.lines().filter(|line| !of_tests.iter().any(|known| line.starts_with(known)));
        let complaint: Vec<_> = lines.filter(|line| line.starts_with("WARN") || line.starts_with("FAIL")).collect();
        if ran.code != Some(0) || !complaint.is_empty() {
            return Err(format!("{arguments:?}: {complaint:?} {}{}", ran.printed, ran.remarks));
        }
    }
    if !world.nats.events().await.iter().any(|event| event.entity_id() == "left") {
        return Err("outbox relay: not in the stream".to_owned());
    }
    runbooks(access, world).await.map_err(|error| format!("a command of the runbooks: {error}"))?;
    // Ends by itself where it may not listen, else with the one event.
    let tail = Tail::start_any(&settings, &["--count", "1"]).await;
    let client = world.nats.jetstream().await;
    if tail.listens() {
        client.publish(SUBJECT, "{}".into()).await.expect("the tests may").await.expect("the stream takes it");
    }
    let remarks = tail.remarks();
    let (status, _printed) = tail.end().await;
    if status.success() { Ok(()) } else { Err(format!("tail: {remarks}")) }
}

/// The commands of docs/operations.md and docs/alerts.md, by the same user.
async fn runbooks(access: &Access, world: &World) -> Result<(), redis::RedisError> {
    let mut person = access.connection(&world.redis).await?;
    assert_eq!(person.scard(PENDING).await?, person.smembers(PENDING).await?.len());
    person.srem(PENDING, "left").await?;
    person.hdel(OUTBOX, "left").await?;
    person.del("vmh:beteiligte:update_pending").await?;
    Ok(())
}

/// What may be asked of hookgate's own user: all but INFO, for want of which the rest is not given up.
#[tokio::test]
async fn doctor_looks_on_where_it_may_not_see_the_settings() {
    let (world, access) = Access::start(&Acl::hookgate(), &Permissions::hookgate()).await;
    let gate = world.gate(&access.settings("1h")).await;
    assert_eq!(gate.post(batch(["a"])).await.counts(), (1, 1));
    let ran = run(&format!("{}{}", world.settings(), access.settings("1h")), &["doctor"]);
    let said = format!("{}{}", ran.printed, ran.remarks);
    assert_eq!(ran.code, Some(0), "{said}");
    assert!(said.contains("WARN  redis INFO: ") && said.contains("allow +info"), "{said}");
    assert!(said.contains("ok    outbox vmh/beteiligte/create: "), "{said}");
}

/// hookgate itself has been there before anybody else.
async fn system(acl: &Acl, permissions: &Permissions) -> (World, Access) {
    let (world, access) = Access::start(acl, permissions).await;
    let open = world.gate(&access.everything()).await;
    assert_eq!(open.post_to(PATH, batch(["first"])).await.counts(), (1, 1));
    world.redis.settled(OUTBOX).await;
    drop(open);
    // A Redis that has started again knows no script.
    let mut connection = world.redis.connection().await;
    redis::cmd("SCRIPT").arg("FLUSH").exec_async(&mut connection).await.expect("the tests may");
    (world, access)
}

#[tokio::test]
async fn an_operator_needs_no_more_and_no_less() {
    let (acl, permissions) = (Acl::operator(), Permissions::operator());
    let (world, access) = system(&acl, &permissions).await;
    operate(&world, &access).await.expect("every command works");
    for chunk in acl.grants().chunks(4) {
        let tried = chunk.iter().map(async |word| {
            let (world, access) = system(&acl.without(word), &permissions).await;
            (word, operate(&world, &access).await)
        });
        for (word, outcome) in futures_util::future::join_all(tried).await {
            // Asked of a connection that is a second old: by the relay of a long outbox.
            assert!(*word == "+ping" || outcome.is_err(), "nothing fails without {word}");
        }
    }
    let subjects = permissions.grants();
    for (place, subject) in subjects.iter().enumerate() {
        let (world, access) = system(&acl, &permissions.without(place)).await;
        let outcome = operate(&world, &access).await;
        assert!(outcome.is_err(), "nothing fails without {subject}, the one in place {place}");
    }
}
