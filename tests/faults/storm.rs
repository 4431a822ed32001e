//! Everything at once and in any order: stores, wires and replicas fail by the roll of dice, over each other, while
//! senders repeat themselves and consumers release ids.
//!
//! A schedule has a seed, which stands in the row; `--seed N` rolls it again. What the machine makes of it differs.

use std::{
    hash::{BuildHasher, Hasher, RandomState},
    mem,
    ops::Range,
    sync::OnceLock,
    time::{Duration, Instant},
};

use tokio::task::JoinSet;

use super::{
    crm::{Crm, Load},
    redis::{Policy, port, tell},
    rig::{Bounds, Report, Rig},
    wire::{Mode, Wire},
};
use crate::{
    Scenario, scenario,
    support::{PENDING, World, within},
};

/// The scenarios of this file.
pub(crate) fn scenarios() -> Vec<Scenario> {
    vec![scenario!(storm_reject), scenario!(storm_publish), scenario!(storm_accept), scenario!(storm_with_consumers)]
}

/// Changes of the weather.
const CHANGES: usize = 40;
/// Longest time of one of them.
const LASTS: Duration = Duration::from_millis(1500);
/// Changes after which a replica that is frozen is thawed: senders wait for ten seconds.
const FROZEN: usize = 2;
/// More messages for an id than one are another scenario's matter.
const ANY_NUMBER: usize = usize::MAX;

static SEED: OnceLock<u64> = OnceLock::new();

/// Rolls the same schedules again.
pub(crate) fn seed(seed: u64) {
    SEED.get_or_init(|| seed);
}

/// splitmix64, so that a schedule is a function of its seed.
struct Dice(u64);

impl Dice {
    fn roll(&mut self, range: Range<u64>) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mixed = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        range.start + (mixed ^ (mixed >> 31)) % (range.end - range.start)
    }

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
    dice: Dice,
    redis_wire: Wire,
    nats_wire: Wire,
    redis: Health,
    nats: Health,
    /// One of the replicas, at most, since when, and how many changes ago.
    frozen: Option<(usize, Instant, usize)>,
    longest_freeze: Duration,
    kills: u64,
}

async fn storm_reject() -> Report {
    storm(Policy::Reject.settings(), 0, false).await
}

/// What goes out without a claim has a token of its own each time.
async fn storm_publish() -> Report {
    storm(Policy::Publish.settings(), ANY_NUMBER, false).await
}

async fn storm_accept() -> Report {
    storm(&format!("{}nats.on_unavailable = \"accept\"\n", Policy::Reject.settings()), 0, false).await
}

/// An id that was released is claimed anew by a sender who comes back.
async fn storm_with_consumers() -> Report {
    storm(Policy::Reject.settings(), ANY_NUMBER, true).await
}

async fn storm(settings: &str, duplicates: usize, consumed: bool) -> Report {
    let seed = *SEED.get().unwrap_or(&RandomState::new().build_hasher().finish());
    // At once: a storm that does not come to its end has no row.
    eprintln!("storm ({}, consumers: {consumed}): seed {seed}", settings.trim_end().replace('\n', ", "));
    let mut storm = Storm::gather(settings, seed).await;
    let load = Load { workers: 8, attempts: 1000, ..Load::default() };
    let crm = storm.rig.load(load);
    let consumers = consumed.then(|| consume(&storm.rig));
    for _ in 0..CHANGES {
        storm.change(&crm).await;
        storm.last(&crm).await;
    }
    storm.calm(&crm).await;
    storm.rig.progress(&crm, 300).await;
    let cut = storm.kills * u64::try_from(load.workers).expect("few");
    // A replica that is frozen answers late by as long, and a request may meet the end of one freeze and the next.
    let bounds = Bounds { duplicates, cut, longest: Bounds::default().longest + 2 * storm.longest_freeze };
    let mut report = storm.rig.verdict(crm, bounds).await;
    drop(consumers);
    report.statuses = format!("{}, seed {seed}", report.statuses);
    report
}

impl Storm {
    /// Fine weather: three replicas behind wires to servers.
    async fn gather(settings: &str, seed: u64) -> Self {
        let world = World::start().await;
        durable(&world).await;
        let redis_wire = Wire::to(port(&world.redis)).await;
        let nats_wire = Wire::to(world.nats.port()).await;
        let wires = format!(
            "redis.url = \"redis://127.0.0.1:{}\"\nnats.url = \"nats://127.0.0.1:{}\"\n",
            redis_wire.port(),
            nats_wire.port()
        );
        let rig = Rig::with(world, 3, &format!("{wires}{settings}")).await;
        let (redis, nats) = (Health::Up, Health::Up);
        Self {
            rig,
            dice: Dice(seed),
            redis_wire,
            nats_wire,
            redis,
            nats,
            frozen: None,
            longest_freeze: Duration::ZERO,
            kills: 0,
        }
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
            0 | 1 => self.redis_wire.set(self.dice.mode()),
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
            8 if self.redis == Health::Up => tell(&self.rig.world.redis, &["SCRIPT", "FLUSH"]).await,
            _ => self.calm(crm).await,
        }
    }

    /// One of the replicas.
    fn place(&mut self) -> usize {
        usize::try_from(self.dice.roll(0..3)).expect("a small number")
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
        let next = self.rig.world.gate_unready(self.rig.settings()).await;
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
        self.redis_wire.set(Mode::Pass);
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

/// Makes a kill of Redis take nothing that it has answered.
async fn durable(world: &World) {
    tell(&world.redis, &["CONFIG", "SET", "appendfsync", "always"]).await;
}

/// Releases each id as soon as its event is in the stream, until it is dropped.
fn consume(rig: &Rig) -> JoinSet<()> {
    let (events, redis) = (rig.oracle.ids_as_they_come(), rig.world.redis.client());
    let mut task = JoinSet::new();
    task.spawn(async move {
        let mut done = 0;
        loop {
            let news = events(done);
            let release = async {
                let mut connection = redis.get_multiplexed_async_connection().await.ok()?;
                for id in &news {
                    redis::cmd("SREM").arg(PENDING).arg(id).query_async::<()>(&mut connection).await.ok()?;
                    done += 1;
                }
                Some(())
            };
            // Redis may be gone or frozen; the next round goes on where this one ended.
            let _released = tokio::time::timeout(Duration::from_secs(1), release).await;
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    });
    task
}
