//! A Redis that answers and refuses writes: full (OOM), unable to save (MISCONF), or without its replicas (NOREPLICAS).
//! What is in its outbox has to reach NATS all the same.

use std::time::{Duration, SystemTime};

use super::{
    crm::Sent,
    redis::tell,
    rig::{Bounds, Report, Rig},
};
use crate::{
    Scenario, scenario,
    support::{Gate, OUTBOX, PENDING, RedisServer, batch, eventually, run},
};

/// The scenarios of this file.
pub(crate) fn scenarios() -> Vec<Scenario> {
    vec![
        scenario!(full_redis_is_drained),
        scenario!(full_redis_is_drained_by_the_command),
        scenario!(no_replicas_publishes_once),
        scenario!(failed_save_publishes_once),
        scenario!(large_outbox_is_drained, alone),
    ]
}

/// Ids of a batch here.
const BATCH: usize = 500;
const ACCEPT: &str = "nats.on_unavailable = \"accept\"\n";

/// Sends batches until one is refused, at most so many; what was accepted comes to `sent`.
async fn fill(gate: &Gate, batches: usize, sent: &mut Sent) {
    for _ in 0..batches {
        let first = sent.accepted.len();
        let ids: Vec<_> = (first..first + BATCH).map(|id| format!("left-{id}")).collect();
        let answer = gate.post(batch(&ids)).await;
        *sent.statuses.entry(answer.status).or_default() += 1;
        sent.longest = sent.longest.max(answer.took);
        if answer.status != 200 {
            return;
        }
        sent.claimed += answer.counts().0;
        sent.accepted.extend(ids);
    }
}

/// Two replicas that accept on the outbox alone, and NATS is gone.
async fn without_nats(settings: &str) -> Rig {
    let mut rig = Rig::start(2, &format!("{ACCEPT}{settings}")).await;
    rig.world.nats.kill();
    for gate in &rig.gates {
        gate.wait_store("nats", "unreachable").await;
    }
    rig
}

/// How much memory Redis has in use.
async fn used_memory(redis: &RedisServer) -> u64 {
    let info: String =
        redis::cmd("INFO").arg("memory").query_async(&mut redis.connection().await).await.expect("it says");
    let line = info.lines().find_map(|line| line.strip_prefix("used_memory:"));
    line.and_then(|bytes| bytes.parse().ok()).expect("it is a number")
}

/// Accepts until Redis is at its limit; what others keep in it then takes all that the outbox gives back.
async fn fill_to_the_limit(rig: &Rig, sent: &mut Sent) {
    let limit = used_memory(&rig.world.redis).await + (256 << 10);
    tell(&rig.world.redis, &["CONFIG", "SET", "maxmemory", &limit.to_string()]).await;
    fill(&rig.gates[0], 20, sent).await;
    tell(&rig.world.redis, &["CONFIG", "SET", "maxmemory", "1"]).await;
}

/// All of the outbox arrives while Redis stays full, and a replica that starts then is ready and helps.
async fn full_redis_is_drained() -> Report {
    let mut rig = without_nats("").await;
    let mut sent = Sent::default();
    fill_to_the_limit(&rig, &mut sent).await;
    let refused = sent.statuses.contains_key(&503);
    rig.gates.remove(0);
    rig.world.nats.start_again().await;
    rig.world.redis.settled(OUTBOX).await;

    // Once more, with nobody left who knew Redis before it was full.
    tell(&rig.world.redis, &["CONFIG", "SET", "maxmemory", "0"]).await;
    rig.gates[0].wait_store("redis", "up").await;
    rig.world.nats.kill();
    rig.gates[0].wait_store("nats", "unreachable").await;
    fill(&rig.gates[0], 2, &mut sent).await;
    tell(&rig.world.redis, &["CONFIG", "SET", "maxmemory", "1"]).await;
    rig.gates.clear();
    rig.world.nats.start_again().await;
    rig.add_replica().await;
    let problem = rig.gates[0].wait_store("redis", "no_writes").await;
    rig.world.redis.settled(OUTBOX).await;
    tell(&rig.world.redis, &["CONFIG", "SET", "maxmemory", "0"]).await;
    rig.gates[0].wait_store("redis", "up").await;
    let mut report = rig.judge(sent, Bounds::default()).await;
    let mut claim = |holds: bool, violation: String| {
        if !holds {
            report.violations.push(violation);
        }
    };
    claim(refused, "Redis was never full: the scenario shows nothing".to_owned());
    claim(problem.contains("OOM"), format!("what is wrong with Redis is not said: {problem}"));
    report
}

/// The operator's command does the same with no replica there.
async fn full_redis_is_drained_by_the_command() -> Report {
    let mut rig = without_nats("").await;
    let mut sent = Sent::default();
    fill_to_the_limit(&rig, &mut sent).await;
    rig.gates.clear();
    rig.world.nats.start_again().await;
    let ran = run(&rig.world.settings(), &["outbox", "relay"]);
    let mut report = rig.judge(sent, Bounds::default()).await;
    if ran.code != Some(0) || !ran.remarks.contains("OOM") {
        report.violations.push(format!("outbox relay: {:?}: {}{}", ran.code, ran.printed, ran.remarks));
    }
    report
}

/// How often Redis was asked for a page of an outbox.
async fn pages(redis: &RedisServer) -> u64 {
    let info: String =
        redis::cmd("INFO").arg("commandstats").query_async(&mut redis.connection().await).await.expect("it says");
    let calls = info.lines().find_map(|line| line.strip_prefix("cmdstat_hscan:calls=")?.split(',').next());
    calls.map_or(0, |calls| calls.parse().expect("it is a number"))
}

/// Nothing can be deleted for a while. The stream forgets at once what it has: each repeat would be a message.
async fn publishes_once(
    begin: impl AsyncFnOnce(&RedisServer),
    end: impl AsyncFnOnce(&RedisServer),
    word: &str,
) -> Report {
    let mut rig = without_nats("nats.stream.duplicate_window = \"100ms\"\n").await;
    // Who publishes is one process; what another one would repeat is bounded by how many there are.
    rig.gates.remove(1);
    let mut sent = Sent::default();
    fill(&rig.gates[0], 2, &mut sent).await;
    begin(&rig.world.redis).await;
    rig.world.nats.start_again().await;
    eventually("all of the outbox is in the stream", async || {
        (rig.oracle.ids().len() == sent.accepted.len()).then_some(())
    })
    .await;
    let walked = pages(&rig.world.redis).await;
    eventually("the relay walks on", async || (pages(&rig.world.redis).await >= walked + 10).then_some(())).await;
    let left = rig.world.redis.outbox(OUTBOX).await.len();
    let once = rig.oracle.events().len();
    let said = run(&rig.world.settings(), &["outbox", "count"]);
    end(&rig.world.redis).await;
    rig.world.redis.settled(OUTBOX).await;
    let expected = sent.accepted.clone();
    let mut report = rig.judge(sent, Bounds::default()).await;
    let log = rig.gates[0].log().await;
    let mut claim = |holds: bool, violation: String| {
        if !holds {
            report.violations.push(violation);
        }
    };
    claim(
        left == expected.len(),
        format!("{left} entries were left of {}: the scenario shows nothing", expected.len()),
    );
    claim(once == expected.len(), format!("{once} messages for {} entries", expected.len()));
    claim(said.code == Some(0), format!("outbox count: {}", said.remarks));
    let warnings = log.iter().filter(|line| line.contains("\"WARN\"") && line.contains("can't be deleted")).count();
    claim(warnings == 1, format!("{warnings} warnings that entries can't be deleted"));
    claim(log.iter().any(|line| line.contains(word)), format!("the log does not say {word}"));
    claim(
        log.iter().any(|line| line.contains("\"INFO\"") && line.contains("the relay goes on")),
        "its end is not said".to_owned(),
    );
    report
}

async fn no_replicas_publishes_once() -> Report {
    publishes_once(
        async |redis| tell(redis, &["CONFIG", "SET", "min-replicas-to-write", "1"]).await,
        async |redis| tell(redis, &["CONFIG", "SET", "min-replicas-to-write", "0"]).await,
        "NOREPLICAS",
    )
    .await
}

/// A folder lies where the snapshot should.
async fn failed_save_publishes_once() -> Report {
    let fail = async |redis: &RedisServer| {
        std::fs::create_dir_all(redis.folder().join("dump.rdb/in-the-way")).expect("the folder is ours");
        tell(redis, &["CONFIG", "SET", "save", "3600 1"]).await;
        tell(redis, &["BGSAVE"]).await;
        eventually("the snapshot has failed", async || {
            let info: String = redis::cmd("INFO")
                .arg("persistence")
                .query_async(&mut redis.connection().await)
                .await
                .expect("it says");
            info.contains("rdb_last_bgsave_status:err").then_some(())
        })
        .await;
    };
    publishes_once(fail, async |redis| tell(redis, &["CONFIG", "SET", "save", ""]).await, "MISCONF").await
}

/// Entries of an outbox that was left behind, and how many of them share the seed of a batch.
const LEFT: usize = 100_000;
const OF_A_BATCH: usize = 50;

/// Three replicas find what others left two hours ago. None of them waits until it has seen an entry for an hour, and
/// nothing goes out twice.
async fn large_outbox_is_drained() -> Report {
    let mut rig = Rig::start(0, "").await;
    let made = SystemTime::now() - Duration::from_secs(2 * 3600);
    let millis = made.duration_since(SystemTime::UNIX_EPOCH).expect("it is after 1970").as_millis();
    let mut connection = rig.world.redis.connection().await;
    let mut sent = Sent::default();
    for batch in 0..LEFT / OF_A_BATCH {
        let (mut outbox, mut pending) = (redis::cmd("HSET"), redis::cmd("SADD"));
        outbox.arg(OUTBOX);
        pending.arg(PENDING);
        for index in 0..OF_A_BATCH {
            let id = format!("left-{}", batch * OF_A_BATCH + index);
            outbox.arg(&id).arg(format!("{millis:012x}70008{batch:015x}-{index}"));
            pending.arg(&id);
            sent.accepted.insert(id);
        }
        redis::pipe().add_command(outbox).add_command(pending).exec_async(&mut connection).await.expect("Redis writes");
    }
    for _ in 0..3 {
        rig.gates.push(rig.world.gate("outbox.relay_after = \"1h\"\n").await);
    }
    eventually("half of the outbox is published", async || {
        let left: usize = redis::cmd("HLEN").arg(OUTBOX).query_async(&mut connection).await.expect("it is a HASH");
        (left < LEFT / 2).then_some(())
    })
    .await;
    rig.judge(sent, Bounds::default()).await
}
