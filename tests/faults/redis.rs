//! Redis dies, hangs, forgets, or refuses. Nothing accepted depends on it, unless the settings say so.
//!
//! While Redis is unavailable, `redis.on_unavailable = "reject"` makes no duplicates. The default, `publish`, makes at most
//! one for each message published without a claim; hookgate's log counts these exactly.

use std::time::SystemTime;

use redis::Cmd;

use super::{
    crm::{Crm, Load},
    rig::{Bounds, Report, Rig, published},
    wire::{Mode, Wire},
};
use crate::{
    Scenario, scenario,
    support::{RedisServer, World, batch, eventually},
};

/// The scenarios of this file.
pub(crate) fn scenarios() -> Vec<Scenario> {
    vec![
        scenario!(redis_killed_and_restarted_with_aof_reject, quick),
        scenario!(redis_killed_and_restarted_with_aof_publish, quick),
        scenario!(redis_frozen_reject, quick),
        scenario!(redis_frozen_publish, quick),
        scenario!(redis_wiped),
        scenario!(redis_made_a_replica_reject),
        scenario!(redis_made_a_replica_publish),
        scenario!(redis_password_changed_reject),
        scenario!(redis_password_changed_publish),
        scenario!(redis_out_of_memory_reject),
        scenario!(redis_out_of_memory_publish),
        scenario!(redis_loading),
        scenario!(redis_cut_between_script_and_reply_reject),
        scenario!(redis_cut_between_script_and_reply_publish),
        scenario!(redis_stalled_wire_reject),
        scenario!(redis_stalled_wire_publish),
    ]
}

/// What hookgate does without a claim.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Policy {
    Reject,
    Publish,
}

impl Policy {
    /// As TOML.
    pub(super) const fn settings(self) -> &'static str {
        match self {
            Self::Reject => "redis.on_unavailable = \"reject\"\n",
            Self::Publish => "redis.on_unavailable = \"publish\"\n",
        }
    }

    /// Waits until the load has met what a Redis in trouble makes of it.
    pub(super) async fn shows(self, rig: &Rig, crm: &Crm) {
        match self {
            Self::Reject => refusals(crm, 20).await,
            Self::Publish => {
                for gate in &rig.gates {
                    gate.wait_log("published without deduplication").await;
                }
                rig.progress(crm, 200).await;
            }
        }
    }

    /// Ends the load and counts.
    pub(super) async fn verdict(self, mut rig: Rig, crm: Crm) -> Report {
        if self == Self::Reject {
            return rig.verdict(crm, Bounds::default()).await;
        }
        let sent = crm.finish().await;
        let duplicates = unclaimed(&mut rig).await;
        let mut report = rig.judge(sent, Bounds { duplicates, ..Bounds::default() }).await;
        if duplicates == 0 {
            report.violations.push("nothing was published without a claim: the scenario shows nothing".to_owned());
        }
        report
    }
}

/// Messages that the replicas' logs say went out without a claim. It ends them, and starts one that relays
/// what they left.
pub(super) async fn unclaimed(rig: &mut Rig) -> usize {
    let mut messages = 0;
    for gate in &mut rig.gates {
        messages +=
            gate.log().await.iter().map(|line| published(line, "published without deduplication")).sum::<usize>();
    }
    rig.gates.clear();
    rig.add_replica().await;
    messages
}

/// Waits for so many more answers with 503.
pub(super) async fn refusals(crm: &Crm, count: u64) {
    let goal = crm.answered(503) + count;
    eventually("batches are refused", async || (crm.answered(503) >= goal).then_some(())).await;
}

/// Sends a command on a connection of its own.
pub(super) async fn tell(redis: &RedisServer, words: &[&str]) {
    let _answer: redis::Value = say(redis, words).await;
}

async fn say<T: redis::FromRedisValue>(redis: &RedisServer, words: &[&str]) -> T {
    let answer = command(words).query_async(&mut redis.connection().await).await;
    answer.unwrap_or_else(|error| panic!("{words:?}: {error}"))
}

fn command(words: &[&str]) -> Cmd {
    let mut command = Cmd::new();
    for word in words {
        command.arg(word);
    }
    command
}

pub(super) fn port(redis: &RedisServer) -> u16 {
    let url = redis.url();
    url.rsplit(':').next().and_then(|port| port.parse().ok()).expect("the address ends with a port")
}

/// Waits until a server has all that another one has.
pub(super) async fn follow(replica: &RedisServer, primary: &RedisServer) {
    tell(replica, &["REPLICAOF", "127.0.0.1", &port(primary).to_string()]).await;
    eventually("the replica follows", async || {
        say::<String>(replica, &["INFO", "replication"]).await.contains("master_link_status:up").then_some(())
    })
    .await;
}

async fn redis_killed_and_restarted_with_aof_reject() -> Report {
    killed_and_restarted(Policy::Reject).await
}

async fn redis_killed_and_restarted_with_aof_publish() -> Report {
    killed_and_restarted(Policy::Publish).await
}

/// A killed Redis comes back with every claim that it has answered.
async fn killed_and_restarted(policy: Policy) -> Report {
    let mut rig = Rig::start(2, policy.settings()).await;
    let crm = rig.load(Load::default());
    for _ in 0..3 {
        rig.progress(&crm, 300).await;
        rig.world.redis.kill();
        policy.shows(&rig, &crm).await;
        rig.world.redis.start_again().await;
    }
    rig.progress(&crm, 300).await;
    policy.verdict(rig, crm).await
}

async fn redis_frozen_reject() -> Report {
    frozen(Policy::Reject).await
}

async fn redis_frozen_publish() -> Report {
    frozen(Policy::Publish).await
}

/// A frozen Redis that wakes up executes commands whose callers gave up long ago.
async fn frozen(policy: Policy) -> Report {
    let rig = Rig::start(2, policy.settings()).await;
    let crm = rig.load(Load::default());
    for _ in 0..2 {
        rig.progress(&crm, 300).await;
        rig.world.redis.freeze();
        for gate in &rig.gates {
            gate.wait_store("redis", "unreachable").await;
        }
        policy.shows(&rig, &crm).await;
        rig.world.redis.thaw();
    }
    rig.progress(&crm, 300).await;
    policy.verdict(rig, crm).await
}

/// A Redis that comes back empty has forgotten who was announced: each id that is sent again is announced
/// once more, and no more than once.
async fn redis_wiped() -> Report {
    let mut rig = Rig::start(2, Policy::Reject.settings()).await;
    let load = Load::default();
    let crm = rig.load(load);
    let known: Vec<_> = (0..100).map(|id| format!("known-{id}")).collect();
    rig.gates[0].deliver(batch(&known)).await;
    rig.progress(&crm, 300).await;
    let data: Vec<String> = say(&rig.world.redis, &["CONFIG", "GET", "dir"]).await;
    let began = SystemTime::now();
    rig.world.redis.kill();
    Policy::Reject.shows(&rig, &crm).await;
    std::fs::remove_dir_all(format!("{}/appendonlydir", data[1])).expect("Redis keeps its data there");
    rig.world.redis.start_again().await;
    rig.wiped_since(began);
    for gate in &rig.gates {
        gate.deliver(batch(&known)).await;
    }
    rig.progress(&crm, 300).await;
    // Beside these only what was on its way when Redis died.
    let duplicates = known.len() + load.workers * load.batch;
    let mut report = rig.verdict(crm, Bounds { duplicates, ..Bounds::default() }).await;
    if report.duplicates < known.len() {
        report.violations.push("Redis was not empty: the scenario shows nothing".to_owned());
    }
    report
}

async fn redis_made_a_replica_reject() -> Report {
    made_a_replica(Policy::Reject).await
}

async fn redis_made_a_replica_publish() -> Report {
    made_a_replica(Policy::Publish).await
}

/// An orderly failover, twice, with hookgate left at the server that was demoted.
async fn made_a_replica(policy: Policy) -> Report {
    let world = World::start().await;
    let other = RedisServer::start().await;
    follow(&other, &world.redis).await;
    let rig = Rig::with(world, 2, policy.settings()).await;
    let crm = rig.load(Load::default());
    rig.progress(&crm, 300).await;
    fail_over(&rig.world.redis, &other).await;
    policy.shows(&rig, &crm).await;
    fail_over(&other, &rig.world.redis).await;
    rig.progress(&crm, 300).await;
    policy.verdict(rig, crm).await
}

/// Makes a replica the primary and the primary its replica, without losing a write.
async fn fail_over(primary: &RedisServer, replica: &RedisServer) {
    let target = port(replica).to_string();
    eventually("Redis agrees to fail over", async || {
        // Refused while the replica is still getting to know its primary.
        let words = ["FAILOVER", "TO", "127.0.0.1", &target, "TIMEOUT", "5000"];
        command(&words).query_async::<()>(&mut primary.connection().await).await.ok()
    })
    .await;
    eventually("the primary is a replica", async || {
        say::<String>(primary, &["INFO", "replication"]).await.contains("master_link_status:up").then_some(())
    })
    .await;
}

async fn redis_password_changed_reject() -> Report {
    password_changed(Policy::Reject).await
}

async fn redis_password_changed_publish() -> Report {
    password_changed(Policy::Publish).await
}

async fn password_changed(policy: Policy) -> Report {
    let rig = Rig::start(2, policy.settings()).await;
    let crm = rig.load(Load::default());
    rig.progress(&crm, 300).await;
    // Logged in before, and so able to change it back.
    let mut operator = rig.world.redis.connection().await;
    for (password, hang_up) in [("other", true), ("", false)] {
        let set = command(&["CONFIG", "SET", "requirepass", password]);
        set.query_async::<()>(&mut operator).await.expect("the operator may do that");
        if hang_up {
            let kill = command(&["CLIENT", "KILL", "TYPE", "normal"]);
            kill.query_async::<i64>(&mut operator).await.expect("the operator may do that");
            policy.shows(&rig, &crm).await;
        }
    }
    rig.progress(&crm, 300).await;
    policy.verdict(rig, crm).await
}

async fn redis_out_of_memory_reject() -> Report {
    out_of_memory(Policy::Reject).await
}

async fn redis_out_of_memory_publish() -> Report {
    out_of_memory(Policy::Publish).await
}

async fn out_of_memory(policy: Policy) -> Report {
    let rig = Rig::start(2, policy.settings()).await;
    let crm = rig.load(Load::default());
    for _ in 0..2 {
        rig.progress(&crm, 300).await;
        tell(&rig.world.redis, &["CONFIG", "SET", "maxmemory", "1"]).await;
        policy.shows(&rig, &crm).await;
        tell(&rig.world.redis, &["CONFIG", "SET", "maxmemory", "0"]).await;
    }
    rig.progress(&crm, 300).await;
    policy.verdict(rig, crm).await
}

/// A Redis that takes seconds to load its data answers every command with an error.
async fn redis_loading() -> Report {
    let mut rig = Rig::start(2, Policy::Reject.settings()).await;
    let crm = rig.load(Load::default());
    rig.progress(&crm, 300).await;
    for part in 0..100 {
        let fill = "for n = 1, 10000 do redis.call('SET', 'large:' .. ARGV[1] .. ':' .. n, n) end";
        tell(&rig.world.redis, &["EVAL", fill, "0", &part.to_string()]).await;
    }
    rig.world.redis.kill();
    let Rig { world, gates, .. } = &mut rig;
    let told = async {
        eventually("hookgate is told that Redis is loading", async || {
            gates[0].wait_store("redis", "unreachable").await.to_lowercase().contains("loading").then_some(())
        })
        .await;
    };
    tokio::join!(world.redis.start_again(), told);
    rig.progress(&crm, 300).await;
    Policy::Reject.verdict(rig, crm).await
}

async fn redis_cut_between_script_and_reply_reject() -> Report {
    on_a_wire(Policy::Reject, Mode::SwallowAnswers).await
}

async fn redis_cut_between_script_and_reply_publish() -> Report {
    on_a_wire(Policy::Publish, Mode::SwallowAnswers).await
}

async fn redis_stalled_wire_reject() -> Report {
    on_a_wire(Policy::Reject, Mode::Stall).await
}

async fn redis_stalled_wire_publish() -> Report {
    on_a_wire(Policy::Publish, Mode::Stall).await
}

/// The wire to Redis misbehaves a few times.
async fn on_a_wire(policy: Policy, mode: Mode) -> Report {
    let world = World::start().await;
    let wire = Wire::to(port(&world.redis)).await;
    let settings = format!("redis.url = \"redis://127.0.0.1:{}\"\n{}", wire.port(), policy.settings());
    let rig = Rig::with(world, 2, &settings).await;
    let crm = rig.load(Load::default());
    for _ in 0..3 {
        rig.progress(&crm, 300).await;
        wire.set(mode);
        policy.shows(&rig, &crm).await;
        wire.set(Mode::Pass);
    }
    rig.progress(&crm, 300).await;
    policy.verdict(rig, crm).await
}
