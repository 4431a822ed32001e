//! Random faults of stores, wires and replicas, several at once, while senders repeat themselves and consumers release
//! ids.
//!
//! In most storms ids come again and consumers release them. So a stuck id shows, and a webhook without its event.
//! `--minutes N` makes storms longer.
//!
//! Each schedule has a seed, which is printed; `--seed N` repeats the schedule. Timing still differs.

use std::{
    hash::{BuildHasher, Hasher, RandomState},
    mem,
    sync::OnceLock,
    time::{Duration, Instant, SystemTime},
};

use super::{
    crm::{Crm, Dice, Load, Reuse},
    redis::{port, tell},
    rig::{Bounds, Report, Rig},
    wire::{Mode, Wire},
};
use crate::{
    Scenario, scenario,
    support::{Gate, World, within},
};

/// The scenarios of this file.
pub(crate) fn scenarios() -> Vec<Scenario> {
    vec![
        scenario!(storm_reject, long),
        scenario!(storm_publish, long),
        scenario!(storm_accept, long),
        scenario!(released_before_the_second_try),
        scenario!(released_before_a_late_claim),
        scenario!(storm_without_consumers_reject),
        scenario!(storm_without_consumers_accept),
    ]
}

/// Changes of the weather, unless it is told how long to go on.
const CHANGES: usize = 40;
/// Ids that come again; few, so that each of them meets many faults.
const AGAIN: usize = 300;
const REPLICAS: u64 = 3;
/// Longest time of one of them.
const LASTS: Duration = Duration::from_millis(1500);
/// Changes after which a replica that is frozen is thawed: senders wait for ten seconds.
const FROZEN: usize = 2;
/// More messages for an id than one are another scenario's matter.
const ANY_NUMBER: usize = usize::MAX;

static SEED: OnceLock<u64> = OnceLock::new();
static MINUTES: OnceLock<u64> = OnceLock::new();

/// Rolls the same schedules again.
pub(crate) fn seed(seed: u64) {
    SEED.get_or_init(|| seed);
}

/// The seed that was given, if one was.
pub(crate) fn given_seed() -> Option<u64> {
    SEED.get().copied()
}

/// Has storms with consumers go on for so long.
pub(crate) fn minutes(minutes: u64) {
    MINUTES.get_or_init(|| minutes);
}

/// How long they go on, if that was said.
pub(crate) fn length() -> Option<Duration> {
    MINUTES.get().map(|minutes| Duration::from_secs(60 * minutes))
}

impl Dice {
    fn mode(&mut self) -> Mode {
        match self.roll(0..6) {
            0 => Mode::Stall,
            1 => Mode::Cut,
            2 => Mode::SwallowAnswers,
            3 => Mode::SwallowRequests,
            4 => Mode::Delay(Duration::from_millis(self.roll(1..300))),
            _ => Mode::Pass,
        }
    }
}

/// How a server or a replica is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Health {
    Up,
    Frozen,
    Dead,
}

impl Health {
    /// What becomes of it: worse if it is well, and well if not.
    fn turned(self, worse: Self) -> Self {
        if self == Self::Up { worse } else { Self::Up }
    }
}

/// What the weather is like.
struct Storm {
    rig: Rig,
    plan: Plan,
    dice: Dice,
    /// One for each replica.
    redis_wires: Vec<Wire>,
    nats_wire: Wire,
    redis: Health,
    nats: Health,
    /// One of the replicas, at most, since when, and how many changes ago.
    frozen: Option<(usize, Instant, usize)>,
    longest_freeze: Duration,
    kills: u64,
}

/// What a storm is about.
#[derive(Debug, Clone, Copy)]
struct Plan {
    settings: &'static str,
    /// Ids come again and are released.
    consumed: bool,
    /// Redis may lose everything: what is accepted is in the stream.
    wipes: bool,
    duplicates: usize,
}

const REJECT: &str = "redis.on_unavailable = \"reject\"\n";
const PUBLISH: &str = "redis.on_unavailable = \"publish\"\n";
const ACCEPT: &str = "redis.on_unavailable = \"reject\"\nnats.on_unavailable = \"accept\"\n";

/// An id that was released is claimed anew by a sender who comes back.
async fn storm_reject() -> Report {
    storm(Plan { settings: REJECT, consumed: true, wipes: true, duplicates: ANY_NUMBER }).await
}

/// What goes out without a claim has a token of its own each time.
async fn storm_publish() -> Report {
    storm(Plan { settings: PUBLISH, consumed: true, wipes: true, duplicates: ANY_NUMBER }).await
}

async fn storm_accept() -> Report {
    storm(Plan { settings: ACCEPT, consumed: true, wipes: false, duplicates: ANY_NUMBER }).await
}

/// Each id is announced once.
async fn storm_without_consumers_reject() -> Report {
    storm(Plan { settings: REJECT, consumed: false, wipes: false, duplicates: 0 }).await
}

async fn storm_without_consumers_accept() -> Report {
    storm(Plan { settings: ACCEPT, consumed: false, wipes: false, duplicates: 0 }).await
}

/// One replica's claim is carried out and its answer lost; another one publishes the id, and a consumer releases it, before
/// the first one tries again.
async fn released_before_the_second_try() -> Report {
    let plan = Plan { settings: REJECT, consumed: true, wipes: false, duplicates: ANY_NUMBER };
    let mut storm = Storm::gather(plan, 1).await;
    let crm = storm.few_ids(20);
    for _ in 0..30 {
        storm.rig.progress(&crm, 20).await;
        storm.redis_wires[0].set(Mode::SwallowAnswers);
        // Longer than a consumer needs, shorter than a claim waits.
        pause(Duration::from_millis(250)).await;
        storm.redis_wires[0].set(Mode::Pass);
        pause(Duration::from_millis(250)).await;
        storm.rig.digest(&crm);
    }
    storm.judged(crm).await
}

/// No packet reaches Redis for longer than a claim waits: its ids are published without it, and a consumer releases them
/// before the network delivers the claim.
async fn released_before_a_late_claim() -> Report {
    let plan = Plan { settings: PUBLISH, consumed: true, wipes: false, duplicates: ANY_NUMBER };
    let mut storm = Storm::gather(plan, 1).await;
    let crm = storm.few_ids(AGAIN);
    storm.rig.progress(&crm, 100).await;
    for wire in &storm.redis_wires {
        wire.set(Mode::Stall);
    }
    // Longer than a claim waits, and than a consumer needs after that.
    pause(Duration::from_millis(1500)).await;
    for wire in &storm.redis_wires {
        wire.set(Mode::Pass);
    }
    storm.judged(crm).await
}

/// How long a fault lasts: what the scenario does, not a wait for something to happen.
async fn pause(time: Duration) {
    let _never = within(time, async || None::<()>).await;
}

async fn storm(plan: Plan) -> Report {
    let seed = *SEED.get().unwrap_or(&RandomState::new().build_hasher().finish());
    // At once: a storm that does not come to its end has no row.
    eprintln!("storm ({}, consumers: {}): seed {seed}", plan.settings.trim_end().replace('\n', ", "), plan.consumed);
    let mut storm = Storm::gather(plan, seed).await;
    let load = Load { workers: 8, attempts: 100_000, ..Load::default() };
    let reuse = plan.consumed.then_some(Reuse { ids: AGAIN, of_a_batch: 5, seed });
    let crm = Crm::reusing(storm.rig.addresses(), load, reuse);
    let until = length().filter(|_| plan.consumed).map(|length| Instant::now() + length);
    if plan.consumed {
        storm.rig.oracle.keep_no_events();
        storm.rig.consume();
    }
    for change in 0.. {
        if until.map_or(change >= CHANGES, |until| Instant::now() >= until) {
            break;
        }
        storm.change(&crm).await;
        storm.last(&crm).await;
        if plan.consumed {
            storm.rig.digest(&crm);
        }
    }
    storm.calm(&crm).await;
    storm.rig.faults_end();
    storm.rig.progress(&crm, 300).await;
    let cut = storm.kills * u64::try_from(load.workers).expect("few");
    // A replica that is frozen answers late by as long, and a request may meet the end of one freeze and the next.
    let longest = Bounds::default().longest + 2 * storm.longest_freeze;
    let bounds = Bounds { duplicates: plan.duplicates, cut, longest };
    let mut report = storm.rig.verdict(crm, bounds).await;
    report.statuses = format!("{}, seed {seed}", report.statuses);
    report
}

impl Storm {
    /// Fine weather: three replicas behind wires to servers.
    async fn gather(plan: Plan, seed: u64) -> Self {
        let world = World::start().await;
        durable(&world).await;
        let mut redis_wires = Vec::new();
        for _ in 0..REPLICAS {
            redis_wires.push(Wire::to(port(&world.redis)).await);
        }
        let nats_wire = Wire::to(world.nats.port()).await;
        let wire = format!("nats.url = \"nats://127.0.0.1:{}\"\n", nats_wire.port());
        // Neither the stream nor the logs may fill the machine.
        let small = "nats.stream.max_age = \"5m\"\nnats.stream.duplicate_window = \"5m\"\nlog.filter = \"info,hookgate::entity=warn,hookgate::delivery=warn\"\n";
        let mut rig = Rig::with(world, 0, &format!("{wire}{small}{}", plan.settings)).await;
        for redis_wire in &redis_wires {
            let gate = replica(&rig, redis_wire).await;
            gate.wait_ready().await;
            rig.gates.push(gate);
        }
        let (redis, nats) = (Health::Up, Health::Up);
        Self {
            rig,
            plan,
            dice: Dice(seed),
            redis_wires,
            nats_wire,
            redis,
            nats,
            frozen: None,
            longest_freeze: Duration::ZERO,
            kills: 0,
        }
    }

    /// A load of ids of which most come again, with consumers.
    fn few_ids(&mut self, ids: usize) -> Crm {
        self.rig.oracle.keep_no_events();
        self.rig.consume();
        let load = Load { workers: 8, attempts: 1000, ..Load::default() };
        Crm::reusing(self.rig.addresses(), load, Some(Reuse { ids, of_a_batch: 8, seed: 1 }))
    }

    /// Goes on for a while without faults, and judges.
    async fn judged(mut self, crm: Crm) -> Report {
        self.rig.faults_end();
        self.rig.progress(&crm, 500).await;
        self.rig.verdict(crm, Bounds { duplicates: ANY_NUMBER, ..Bounds::default() }).await
    }

    /// One thing gets worse or better.
    async fn change(&mut self, crm: &Crm) {
        let mut thawed = false;
        if let Some((_, _, changes)) = &mut self.frozen {
            *changes += 1;
            if *changes > FROZEN {
                self.thaw();
                thawed = true;
            }
        }
        match self.dice.roll(0..10) {
            0 | 1 => {
                let (place, mode) = (self.place(), self.dice.mode());
                // That of one replica, or all of them.
                let all = self.dice.roll(0..2) == 0;
                for wire in self.redis_wires.iter().enumerate().filter(|(other, _)| all || *other == place) {
                    wire.1.set(mode);
                }
            }
            2 | 3 => self.nats_wire.set(self.dice.mode()),
            4 => {
                let worse = self.worse();
                self.turn_redis(worse).await;
            }
            5 => {
                let worse = self.worse();
                self.turn_nats(worse).await;
            }
            6 => self.replace_a_replica(crm).await,
            7 => {
                let place = self.place();
                // A request that has waited for the end of one freeze must not meet the next at once: with both it
                // would take longer than any sender waits.
                if !thawed {
                    self.freeze(place);
                }
            }
            8 if self.redis == Health::Up && self.plan.wipes && self.dice.roll(0..3) == 0 => self.wipe().await,
            8 if self.redis == Health::Up => tell(&self.rig.world.redis, &["SCRIPT", "FLUSH"]).await,
            _ => self.calm(crm).await,
        }
    }

    /// Redis forgets everything.
    async fn wipe(&self) {
        let began = SystemTime::now();
        tell(&self.rig.world.redis, &["FLUSHALL"]).await;
        self.rig.wiped_since(began);
    }

    /// One of the replicas.
    fn place(&mut self) -> usize {
        usize::try_from(self.dice.roll(0..REPLICAS)).expect("a small number")
    }

    fn worse(&mut self) -> Health {
        if self.dice.roll(0..2) == 0 { Health::Frozen } else { Health::Dead }
    }

    /// Does that to a Redis that is up, and brings back one that is not.
    async fn turn_redis(&mut self, worse: Health) {
        let redis = &mut self.rig.world.redis;
        let next = self.redis.turned(worse);
        match (mem::replace(&mut self.redis, next), next) {
            (Health::Up, Health::Frozen) => redis.freeze(),
            (Health::Up, _) => redis.kill(),
            (Health::Frozen, _) => redis.thaw(),
            (Health::Dead, _) => {
                redis.start_again().await;
                durable(&self.rig.world).await;
            }
        }
    }

    /// The same with NATS.
    async fn turn_nats(&mut self, worse: Health) {
        let nats = &mut self.rig.world.nats;
        let next = self.nats.turned(worse);
        match (mem::replace(&mut self.nats, next), next) {
            (Health::Up, Health::Frozen) => nats.freeze(),
            (Health::Up, _) => nats.kill(),
            (Health::Frozen, _) => nats.thaw(),
            (Health::Dead, _) => nats.start_again().await,
        }
    }

    /// One is killed, or takes leave, and a new one listens, whatever it finds of the stores.
    async fn replace_a_replica(&mut self, crm: &Crm) {
        let place = self.place();
        // It takes a while.
        self.thaw();
        let next = replica(&self.rig, &self.redis_wires[place]).await;
        let mut last = mem::replace(&mut self.rig.gates[place], next);
        if self.dice.roll(0..2) == 0 {
            self.kills += 1;
            last.kill();
        } else {
            crm.aim(self.rig.addresses());
            last.terminate().await;
        }
        crm.aim(self.rig.addresses());
    }

    /// Freezes a replica, if none is.
    fn freeze(&mut self, place: usize) {
        if self.frozen.is_none() {
            self.rig.gates[place].signal("STOP");
            self.frozen = Some((place, Instant::now(), 0));
        }
    }

    fn thaw(&mut self) {
        if let Some((place, since, _)) = self.frozen.take() {
            self.rig.gates[place].signal("CONT");
            self.longest_freeze = self.longest_freeze.max(since.elapsed());
        }
    }

    /// Until so many senders were answered, or for a while.
    async fn last(&mut self, crm: &Crm) {
        let answers = || crm.answered(200) + crm.answered(503);
        let goal = answers() + self.dice.roll(1..60);
        let _either = within(LASTS, async || (answers() >= goal).then_some(())).await;
    }

    /// All is well again.
    async fn calm(&mut self, crm: &Crm) {
        for wire in &self.redis_wires {
            wire.set(Mode::Pass);
        }
        self.nats_wire.set(Mode::Pass);
        if self.redis != Health::Up {
            self.turn_redis(Health::Dead).await;
        }
        if self.nats != Health::Up {
            self.turn_nats(Health::Dead).await;
        }
        self.thaw();
        self.rig.progress(crm, 20).await;
    }
}

/// A replica that listens, on a wire of its own to Redis.
async fn replica(rig: &Rig, redis_wire: &Wire) -> Gate {
    let url = format!("redis://127.0.0.1:{}", redis_wire.port());
    Gate::start_with(&rig.world.settings(), rig.settings(), &[("HOOKGATE__REDIS__URL", url)]).await
}

/// Makes a kill of Redis take nothing that it has answered.
async fn durable(world: &World) {
    tell(&world.redis, &["CONFIG", "SET", "appendfsync", "always"]).await;
}
