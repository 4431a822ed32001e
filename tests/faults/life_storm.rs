//! Everything is killed at random while ids go from claim to release: three replicas, four processes of two consumers, written in
//! Rust, Python and Node.js (`examples/`), Redis with its append-only file, and a NATS that starts again with its store. Ids come
//! once, or again and again as updates. In the end nothing is pending, nothing is left in outbox and journal, each accepted webhook
//! has an event of its own, and each consumer has processed each event.
//!
//! `--ids 100000` is the whole of it: `make faults ONLY="life_storm --ids 100000"` takes about ten minutes, and is
//! faster where temporary files need no disk (`TMPDIR=/dev/shm`). `--seed N` repeats the schedule; timing still differs.
//!
//! More events than accepted webhooks are those that docs/consumers.md names. Each event's token says why it was made:
//!
//! - a request that was answered 503, or not at all, is sent again, and each of them is a change of its own;
//! - Redis was away and the event was published without a claim (attempt 9), or the claim was made again (attempts 1 to 6);
//! - an acknowledgement got lost with the NATS server that was to report it: the sweep publishes once more (attempt 7).

use std::{
    collections::{BTreeMap, BTreeSet},
    hash::{BuildHasher, Hasher, RandomState},
    mem,
    sync::OnceLock,
    time::{Duration, Instant},
};

use serde_json::json;

use super::{
    consumers::{Application, Language},
    crm::{Crm, Dice, Load, Reuse},
    redis::tell,
    rig::{Bounds, Report, Rig, demand},
    storm,
};
use crate::{
    Scenario, scenario,
    support::{World, within},
};

/// The scenarios of this file.
pub(crate) fn scenarios() -> Vec<Scenario> {
    vec![scenario!(life_storm_in_three_languages, long, consumers)]
}

/// Ids, unless `--ids` says otherwise.
const IDS: usize = 4000;
/// Ids that come again and again.
const AGAIN: usize = 200;
const REPLICAS: u64 = 3;
/// Pending ids at which the CRM waits for the consumers.
const BACKLOG: usize = 3000;
/// Longest time between two kills.
const LASTS: Duration = Duration::from_millis(2500);
/// How long it may take until nothing is pending any more: what a killed replica had read of the answers is read again after a
/// minute, and a sweep needs two looks after that.
const CALM: Duration = Duration::from_secs(150);
/// Answers that one killed NATS server may lose: what the consumers have in hand.
const LOST_WITH_NATS: usize = 4 * 10;

static WANTED: OnceLock<usize> = OnceLock::new();

/// How many ids there shall be.
pub(crate) fn ids(ids: usize) {
    WANTED.get_or_init(|| ids);
}

/// How much longer a scenario may take because of that.
pub(crate) fn longer() -> Duration {
    WANTED.get().map_or(Duration::ZERO, |ids| Duration::from_millis(20) * u32::try_from(*ids).unwrap_or(u32::MAX))
}

const SETTINGS: &str = "log.filter = \"info,hookgate::entity=warn,hookgate::delivery=warn\"\n[[routes]]\nflow = \"vmh\"\nentity = \"beteiligte\"\naction = \"create\"\nwhile_pending = \"publish\"\nrelease = \"ack\"\nconsumers = [\"sync\", \"mailer\"]\n";

struct Storm {
    rig: Rig,
    applications: [Application; 2],
    dice: Dice,
    kills: BTreeMap<&'static str, u64>,
}

/// Makes a kill of Redis take nothing that it has answered.
async fn durable(world: &World) {
    tell(&world.redis, &["CONFIG", "SET", "appendfsync", "always"]).await;
}

async fn life_storm_in_three_languages() -> Report {
    let (ids, began) = (WANTED.get().copied().unwrap_or(IDS), Instant::now());
    let seed = storm::given_seed().unwrap_or_else(|| RandomState::new().build_hasher().finish());
    eprintln!("life_storm_in_three_languages: {ids} ids, seed {seed}");
    let mut storm = Storm::gather(seed).await;
    // So that a short one meets some kills, too.
    let pause = Duration::from_millis(if ids > 5 * IDS { 150 } else { 500 });
    let load = Load { workers: 8, attempts: 100_000, repeat_every: 20, pause, ..Load::default() };
    let reuse = Reuse { ids: AGAIN, of_a_batch: 2, seed };
    let crm = Crm::reusing(storm.rig.addresses(), load, Some(reuse));
    while crm.accepted() < ids {
        storm.last(&crm).await;
        storm.kill(&crm).await;
    }
    storm.rig.faults_end();
    storm.verdict(crm, load, seed, began).await
}

impl Storm {
    async fn gather(seed: u64) -> Self {
        let world = World::start().await;
        durable(&world).await;
        let urls = [world.nats.url()];
        let mut rig = Rig::with(world, 0, SETTINGS).await;
        rig.is_released();
        for _ in 0..REPLICAS {
            rig.add_replica().await;
        }
        let mut applications = [
            Application::new("sync", &urls, &[Language::Rust, Language::Python]),
            Application::new("mailer", &urls, &[Language::Rust, Language::Node]),
        ];
        for application in &mut applications {
            application.make(&rig.world.nats, &json!({})).await;
            application.start_all();
        }
        Self { rig, applications, dice: Dice(seed), kills: BTreeMap::new() }
    }

    /// Until more ids were accepted, or for a while; and until the consumers are not too far behind.
    async fn last(&mut self, crm: &Crm) {
        let goal = crm.accepted() + usize::try_from(self.dice.roll(1..200)).expect("few");
        let _either = within(LASTS, async || (crm.accepted() >= goal).then_some(())).await;
        let few = async || (self.rig.left().await?[0] < BACKLOG).then_some(());
        if within(Duration::from_millis(50), few).await.is_none() {
            crm.pause(true);
            let _either = within(Duration::from_secs(30), few).await;
            crm.pause(false);
        }
    }

    /// Kills something, and starts it again.
    async fn kill(&mut self, crm: &Crm) {
        let away = Duration::from_millis(self.dice.roll(1..1500));
        let pause = async || {
            let _never = within(away, async || None::<()>).await;
        };
        let what = match self.dice.roll(0..9) {
            0 | 1 => {
                let place = usize::try_from(self.dice.roll(0..REPLICAS)).expect("small");
                self.rig.gates[place].kill();
                pause().await;
                self.rig.replace(place).await;
                crm.aim(self.rig.addresses());
                "replicas"
            }
            2 | 3 => {
                self.rig.world.redis.kill();
                pause().await;
                self.rig.world.redis.start_again().await;
                durable(&self.rig.world).await;
                "Redis"
            }
            4 | 5 => {
                self.rig.world.nats.kill();
                pause().await;
                self.rig.world.nats.start_again().await;
                "NATS"
            }
            _ => {
                let application = &mut self.applications[usize::from(self.dice.roll(0..2) == 0)];
                let place = usize::try_from(self.dice.roll(0..2)).expect("small");
                application.kill(place);
                pause().await;
                application.start(place);
                "consumers"
            }
        };
        *self.kills.entry(what).or_default() += 1;
    }

    async fn verdict(self, crm: Crm, load: Load, seed: u64, began: Instant) -> Report {
        let Self { rig, applications, kills, .. } = self;
        let faults_ended = std::time::SystemTime::now();
        let mut sent = crm.finish().await;
        let mut quiet = Report::default();
        rig.demand_quiet(&mut quiet, CALM).await;
        rig.read_to_the_end().await;
        let offered = usize::try_from(sent.offered).expect("few");
        let webhooks = mem::take(&mut sent.webhooks);
        let changes: usize = webhooks.iter().map(|webhook| webhook.ids.len()).sum();
        let swallowed = rig.swallowed(webhooks, faults_ended);
        let count = |what| usize::try_from(kills.get(what).copied().unwrap_or(0)).expect("few");
        let cut = u64::try_from((count("replicas") + 1) * load.workers).expect("few");
        // Redis and NATS may both be away, one after the other, while a request waits.
        let bounds = Bounds { duplicates: usize::MAX, cut, ..Bounds::default() };
        let mut report = rig.judge(sent, bounds).await;
        report.violations.append(&mut quiet.violations);
        report.lost += swallowed.len();
        let some: Vec<_> = swallowed.iter().take(5).map(ToString::to_string).collect();
        demand(&mut report, swallowed.is_empty(), format!("{} changes have no event: {some:?}", swallowed.len()));

        let events = rig.oracle.events();
        let mut made = [0_usize; 10];
        for event in &events {
            let index: usize = event.token().rsplit('-').next().and_then(|index| index.parse().ok()).expect("a token");
            made[index / 10_000_000 % 10] += 1;
        }
        let (claimed, again, sweep, unclaimed) = (made[0], made[1..7].iter().sum::<usize>(), made[7], made[9]);
        demand(&mut report, made[8] == 0, format!("{} events of marks, and nothing is marked", made[8]));
        demand(
            &mut report,
            claimed <= offered,
            format!("{claimed} first claims of {offered} ids in requests: something was claimed twice"),
        );
        let explained = count("NATS") * LOST_WITH_NATS;
        demand(
            &mut report,
            sweep <= explained,
            format!("the sweep published {sweep} once more; NATS lost {explained} answers at most"),
        );
        let tokens: BTreeSet<_> = events.iter().map(|event| event.token().to_owned()).collect();
        for (application, name) in applications.iter().zip(["sync", "mailer"]) {
            let missing = tokens.difference(&application.processed()).count();
            demand(&mut report, missing == 0, format!("{missing} events were never processed by {name}"));
        }
        report.duplicates = events.len().saturating_sub(changes);
        report.statuses = format!(
            "{}; {changes} changes, {offered} offered, {} events ({claimed} claimed, {again} claimed again, {unclaimed} without Redis, {sweep} by the sweep); kills {kills:?}; {:.0?}; seed {seed}",
            report.statuses,
            events.len(),
            began.elapsed(),
        );
        report
    }
}
