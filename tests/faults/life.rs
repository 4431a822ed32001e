//! The life of a pending id as a state machine: random histories of webhooks, answers of two consumers, releases, and faults, on
//! real servers and two replicas. Judged:
//!
//! - after the last accepted webhook for an id there is an event that was published after it (`publish`, `coalesce`);
//! - nothing is released that some consumer has neither acknowledged nor given up;
//! - when all consumers are done, nothing is pending.
//!
//! Each history has a seed; `--seed N` repeats those of one world. Timing still differs.
//!
//! Each rule was taken out once, to see what fails without it (`life::` is tests/life.rs):
//!
//! - a new claim clears the answers: `life_publish_ack`
//! - an answer is for the claim of its token: `life_publish_ack`
//! - the token, not the sequence, names the event: `life::an_answer_is_for_one_event_also_when_the_stream_is_made_again`
//! - the whole entry is compared, and the sweep waits for what was told: `life_answers_that_a_frozen_replica_holds`
//! - a token that was never proposed for what has no claim: `claim_arrives_after_release_publish`
//! - a release without a token leaves the outbox entry: `life::a_release_without_a_token_leaves_what_is_still_to_be_published`
//! - marks of freed ids are looked for: `life::a_mark_is_honoured_after_a_plain_srem`; and grow old:
//!   `life::a_mark_that_has_waited_for_long_is_honoured_whatever_became_of_the_event_before`
//! - a mark that is not confirmed is published: `life::a_mark_that_nobody_confirms_is_published`
//! - as many events as `max_redeliveries` allows: `life::a_consumer_that_never_samples_gets_as_many_events_as_allowed`
//! - a settlement is of its own token: `life_settled_after_another_claim`
//! - marks are published before a version serves that knows none: `life_upgrade_from_0_1_0_and_back`
//! - first roll out, then `release = "ack"`: `life_0_1_0_beside_release_on_ack` shows what the other order does
//! - a mark becomes one event: `life::a_marked_id_is_published_at_its_release`; each consumer has to answer:
//!   `life::each_consumer_has_to_acknowledge`

use std::{
    cell::{Cell, RefCell},
    collections::{BTreeMap, BTreeSet},
    hash::{BuildHasher, Hasher, RandomState},
    time::{Duration, Instant, SystemTime},
};

use async_nats::{Client, Message};
use base64::Engine;
use futures_util::{StreamExt, future::join_all};
use redis::{AsyncTypedCommands, aio::MultiplexedConnection};
use serde_json::json;

use super::{crm::Dice, rig::Report, storm};
use crate::{
    Scenario, scenario,
    support::{Gate, RedisServer, World, batch, eventually, in_time, within},
};

/// The scenarios of this file.
pub(crate) fn scenarios() -> Vec<Scenario> {
    vec![
        scenario!(life_publish_ack),
        scenario!(life_coalesce_ack),
        scenario!(life_skip_ack),
        scenario!(life_publish_explicit),
        scenario!(life_coalesce_explicit),
        scenario!(life_publish_ack_failover),
        scenario!(life_answers_that_a_frozen_replica_holds),
    ]
}

/// Histories of a world; six worlds have 240.
const HISTORIES: u64 = 40;
/// Steps of a history: 14,400 in all.
const STEPS: usize = 60;
/// Ids of a history.
const IDS: u64 = 3;
/// Between two faults of a world.
const FAULT_EVERY: Duration = Duration::from_millis(700);
/// How long it may take until nothing is pending any more. A sweep needs two looks, and may be needed once for each fault.
const CALM: Duration = Duration::from_secs(120);

const ROUTE: &str = "vmh/beteiligte/update";
const PATH: &str = "/vmh/webhook/beteiligte/update";
const SUBJECT: &str = "vmh.beteiligte.update";
const PENDING: &str = "vmh:beteiligte:update_pending";
const CONSUMERS: [&str; 2] = ["one", "two"];

/// What a world is like.
#[derive(Debug, Clone, Copy)]
struct Plan {
    mode: &'static str,
    on_ack: bool,
    /// Somebody else releases ids, too.
    releases: bool,
    /// Redis forgets its last writes now and then.
    failovers: bool,
}

async fn life_publish_ack() -> Report {
    world(Plan { mode: "publish", on_ack: true, releases: false, failovers: false }).await
}

async fn life_coalesce_ack() -> Report {
    world(Plan { mode: "coalesce", on_ack: true, releases: false, failovers: false }).await
}

async fn life_skip_ack() -> Report {
    world(Plan { mode: "skip", on_ack: true, releases: false, failovers: false }).await
}

async fn life_publish_explicit() -> Report {
    world(Plan { mode: "publish", on_ack: false, releases: true, failovers: false }).await
}

async fn life_coalesce_explicit() -> Report {
    world(Plan { mode: "coalesce", on_ack: false, releases: true, failovers: false }).await
}

async fn life_publish_ack_failover() -> Report {
    world(Plan { mode: "publish", on_ack: true, releases: false, failovers: true }).await
}

/// An event as a subscriber saw it.
#[derive(Debug, Clone)]
struct Seen {
    token: String,
    at: SystemTime,
}

/// What is known of an id, by the one who does everything to it.
#[derive(Debug, Default)]
struct Truth {
    /// When the last accepted webhook was sent.
    last_accepted: Option<SystemTime>,
    /// Tokens that a consumer has answered, or is about to.
    answered: [BTreeSet<String>; 2],
}

struct Machine {
    plan: Plan,
    world: World,
    _replica: Option<RedisServer>,
    gates: RefCell<Vec<Option<Gate>>>,
    client: Client,
    /// Every event, by id, in the order of their coming.
    seen: RefCell<BTreeMap<String, Vec<Seen>>>,
    truth: RefCell<BTreeMap<String, Truth>>,
    /// Deliveries that the consumers hold, by id.
    held: [RefCell<BTreeMap<String, Vec<Message>>>; 2],
    /// Samples that were sent, to be sent again.
    draining: Cell<bool>,
    accepted: Cell<usize>,
    longest: Cell<Duration>,
    steps: Cell<usize>,
    violations: RefCell<Vec<String>>,
    /// Redis lost writes, or the stream its events, at this time.
    disturbed: Cell<SystemTime>,
}

fn token(message: &Message) -> Option<String> {
    Some(message.headers.as_ref()?.get("Nats-Msg-Id")?.as_str().to_owned())
}

fn id(message: &Message) -> Option<String> {
    let payload: serde_json::Value = serde_json::from_slice(&message.payload).ok()?;
    Some(payload["entity_id"].as_str()?.to_owned())
}

fn settings(plan: Plan) -> String {
    let release = if plan.on_ack { "release = \"ack\"\n" } else { "" };
    let durability = if plan.mode == "coalesce" { "redis.durability = \"replica\"\n" } else { "" };
    format!(
        "{durability}log.filter = \"info,hookgate::entity=warn,hookgate::delivery=warn\"\noutbox.relay_after = \"2s\"\nserver.request_deadline = \"1500ms\"\nserver.body_read_timeout = \"1s\"\nnats.ack_timeout = \"500ms\"\n[[routes]]\nflow = \"vmh\"\nentity = \"beteiligte\"\naction = \"update\"\nwhile_pending = \"{}\"\nconsumers = [\"one\", \"two\"]\nmax_redeliveries = 50\n{release}",
        plan.mode
    )
}

async fn world(plan: Plan) -> Report {
    let seed = storm::given_seed().unwrap_or_else(|| RandomState::new().build_hasher().finish());
    eprintln!("life ({plan:?}): seed {seed}");
    let world = World::start().await;
    let replica = if plan.mode == "coalesce" { Some(replica_of(&world).await) } else { None };
    let gates = vec![Some(world.gate_unready(&settings(plan)).await), Some(world.gate_unready(&settings(plan)).await)];
    eventually("there is a stream", async || world.nats.stream("HOOKGATE").await).await;
    let client = world.nats.client().await;
    make_consumers(&client).await;
    for gate in gates.iter().flatten() {
        gate.wait_ready().await;
    }
    let machine = Machine {
        plan,
        _replica: replica,
        gates: RefCell::new(gates),
        client,
        world,
        seen: RefCell::default(),
        truth: RefCell::default(),
        held: Default::default(),
        draining: Cell::new(false),
        accepted: Cell::new(0),
        longest: Cell::default(),
        steps: Cell::default(),
        violations: RefCell::default(),
        disturbed: Cell::new(SystemTime::UNIX_EPOCH),
    };
    let work = async {
        let faults = machine.faults(Dice(seed));
        let histories = join_all((0..HISTORIES).map(|number| machine.history(number, Dice(seed ^ (number + 1)))));
        tokio::select! {
            _ = histories => {}
            () = faults => {}
        }
        machine.end().await
    };
    let stuck = tokio::select! {
        stuck = work => stuck,
        () = machine.watch() => unreachable!("it watches to the end"),
        () = machine.consume(0) => unreachable!("it consumes to the end"),
        () = machine.consume(1) => unreachable!("it consumes to the end"),
    };
    let lost = machine.judge();
    Report {
        accepted: machine.accepted.get(),
        lost,
        stuck,
        duplicates: 0,
        statuses: format!("{} steps, seed {seed}", machine.steps.get()),
        longest: machine.longest.get(),
        violations: machine.violations.take(),
    }
}

async fn make_consumers(client: &Client) {
    for name in CONSUMERS {
        let config = json!({ "stream_name": "HOOKGATE", "config": {
            "durable_name": name, "ack_policy": "explicit", "ack_wait": 5_000_000_000_u64, "max_deliver": -1,
            "sample_freq": "100%", "deliver_policy": "all", "replay_policy": "instant", "filter_subject": SUBJECT,
        }});
        eventually("the consumer is made", async || {
            let subject = format!("$JS.API.CONSUMER.DURABLE.CREATE.HOOKGATE.{name}");
            let answer = client.request(subject, config.to_string().into()).await.ok()?;
            (!String::from_utf8_lossy(&answer.payload).contains("\"error\"")).then_some(())
        })
        .await;
    }
}

/// A Redis that follows the world's, so that a mark can be confirmed.
pub(super) async fn replica_of(world: &World) -> RedisServer {
    let replica = RedisServer::start().await;
    let mut link = replica.connection().await;
    let port = world.redis.url().rsplit(':').next().and_then(|rest| rest.split('/').next()).expect("a port").to_owned();
    let _ok: String =
        redis::cmd("REPLICAOF").arg("127.0.0.1").arg(port).query_async(&mut link).await.expect("it follows");
    let mut link = world.redis.connection().await;
    eventually("the replica follows", async || {
        let info: String = redis::cmd("INFO").arg("replication").query_async(&mut link).await.ok()?;
        info.contains("state=online").then_some(())
    })
    .await;
    replica
}

/// What a frozen replica has read is not carried out, and the other one's sweep waits for it: nothing is published again without a
/// need, also not what has changed while it waited.
async fn life_answers_that_a_frozen_replica_holds() -> Report {
    const IDS: usize = 60;
    let plan = Plan { mode: "publish", on_ack: true, releases: false, failovers: false };
    let (world, mut report) = (World::start().await, Report::default());
    let frozen = world.gate_unready(&settings(plan)).await;
    eventually("there is a stream", async || world.nats.stream("HOOKGATE").await).await;
    let client = world.nats.client().await;
    make_consumers(&client).await;
    frozen.wait_ready().await;
    let gate = world.gate(&settings(plan)).await;
    frozen.signal("STOP");
    let mut link = world.redis.connection().await;
    // Else the frozen one would look through the journal.
    let lease = format!("{{{PENDING}}}:journal-scan");
    let ids: Vec<_> = (0..IDS).map(|number| format!("f{number}")).collect();
    report.accepted = IDS + 1;
    assert_eq!(gate.post_to(PATH, batch(&ids)).await.counts(), (IDS as u64, IDS as u64));
    for consumer in CONSUMERS {
        for _ in 0..IDS {
            let message = next(&client, consumer).await;
            client.request(message.reply.expect("it wants an answer"), "+ACK".into()).await.expect("NATS confirms");
        }
    }
    link.del(lease).await.expect("Redis answers");
    let held = eventually("the other one has carried out what it got", async || {
        let info = world.nats.api("CONSUMER.INFO.hookgate_acks.hookgate", &json!({})).await;
        let held = info["num_ack_pending"].as_u64()?;
        let pending: BTreeSet<String> = link.smembers(PENDING).await.ok()?.into_iter().collect();
        (info["num_pending"] == 0 && held > 0 && pending.len() < IDS).then_some(pending)
    })
    .await;
    let more = async |than: usize, limit: u64| {
        within(Duration::from_secs(limit), async || (world.nats.events().await.len() > than).then_some(())).await
    };
    if more(IDS, 35).await.is_some() {
        report.violations.push("published again, although an answer was only not carried out yet".to_owned());
    }
    let changed = held.first().expect("some are held");
    assert_eq!(gate.post_to(PATH, batch([changed])).await.status, 200);
    let freed = within(Duration::from_secs(90), async || {
        (link.smembers(PENDING).await.ok()?.into_iter().collect::<Vec<_>>() == [changed.clone()]).then_some(())
    });
    report.stuck = usize::from(freed.await.is_none());
    // Two more looks.
    if more(IDS + 1, 25).await.is_some() {
        report.violations.push("published again, although it had changed since the sweep looked at it".to_owned());
    }
    for consumer in CONSUMERS {
        let message = next(&client, consumer).await;
        client.request(message.reply.expect("it wants an answer"), "+ACK".into()).await.expect("NATS confirms");
    }
    let free = async || link.smembers(PENDING).await.ok()?.is_empty().then_some(());
    report.stuck += usize::from(within(Duration::from_secs(10), free).await.is_none());
    report
}

/// The next message of a consumer.
async fn next(client: &Client, consumer: &str) -> Message {
    let inbox = client.new_inbox();
    let mut answers = client.subscribe(inbox.clone()).await.expect("NATS answers");
    let request = json!({ "batch": 1, "expires": 20_000_000_000_u64 }).to_string();
    let subject = format!("$JS.API.CONSUMER.MSG.NEXT.HOOKGATE.{consumer}");
    client.publish_with_reply(subject, inbox, request.into()).await.expect("NATS takes it");
    in_time("an event comes", answers.next()).await.expect("NATS answers")
}

impl Machine {
    fn violation(&self, text: String) {
        let mut all = self.violations.borrow_mut();
        if all.len() < 20 {
            all.push(text);
        }
    }

    /// A connection of our own, which a failover may have ended a moment ago.
    async fn link(&self) -> MultiplexedConnection {
        let client = self.world.redis.client();
        eventually("Redis takes connections", async || client.get_multiplexed_async_connection().await.ok()).await
    }

    async fn make_consumers(&self) {
        make_consumers(&self.client).await;
    }

    /// A replica that is ready; it may die at one of the points where something was carried out and not said yet.
    async fn replica(&self, dice: &mut Dice) -> Gate {
        let points = if self.plan.on_ack {
            ["after_answer", "after_answers", "after_reclaim"]
        } else {
            ["after_release", "after_release", "after_reclaim"]
        };
        let point = points[usize::try_from(dice.roll(0..3)).expect("small")];
        let armed = [("HOOKGATE_FAILPOINT", format!("{point}:{}", dice.roll(5..20)))];
        let mut gate = Gate::start_with(&self.world.settings(), &settings(self.plan), &armed).await;
        let request = b"GET /readyz HTTP/1.1\r\nHost: hookgate.test\r\nConnection: close\r\n\r\n";
        eventually("the replica is ready, or dead", async || {
            let answer = crate::support::try_exchange(gate.probes(), request).await;
            (gate.ended().is_some() || answer.is_ok_and(|answer| answer.status == 200)).then_some(())
        })
        .await;
        gate
    }

    /// Sees every event that is published.
    async fn watch(&self) {
        let mut events = self.client.subscribe(SUBJECT).await.expect("NATS answers");
        while let Some(message) = events.next().await {
            if let (Some(id), Some(token)) = (id(&message), token(&message)) {
                let seen = Seen { token, at: SystemTime::now() };
                self.seen.borrow_mut().entry(id).or_default().push(seen);
            }
        }
        std::future::pending::<()>().await;
    }

    /// Gets what a consumer gets, and holds it until a history answers it.
    async fn consume(&self, which: usize) {
        let subject = format!("$JS.API.CONSUMER.MSG.NEXT.HOOKGATE.{}", CONSUMERS[which]);
        loop {
            let inbox = self.client.new_inbox();
            let mut answers = self.client.subscribe(inbox.clone()).await.expect("NATS answers");
            let request = json!({ "batch": 100, "expires": 500_000_000_u64 }).to_string();
            let _sent = self.client.publish_with_reply(subject.clone(), inbox, request.into()).await;
            let until = Instant::now() + Duration::from_millis(700);
            while let Ok(Some(message)) =
                tokio::time::timeout(until.saturating_duration_since(Instant::now()), answers.next()).await
            {
                let Some(id) = id(&message) else { break };
                if self.draining.get() {
                    self.reply(which, &id, &message, "+ACK").await;
                } else {
                    self.held[which].borrow_mut().entry(id).or_default().push(message);
                }
            }
        }
    }

    async fn reply(&self, which: usize, id: &str, message: &Message, answer: &str) {
        let Some(token) = token(message) else { return };
        // Before it is sent: from now on it may be released.
        self.truth.borrow_mut().entry(id.to_owned()).or_default().answered[which].insert(token);
        if let Some(reply) = message.reply.clone() {
            let _confirmed =
                tokio::time::timeout(Duration::from_secs(1), self.client.request(reply, answer.to_owned().into()))
                    .await;
        }
    }

    async fn history(&self, number: u64, mut dice: Dice) {
        for _ in 0..STEPS {
            let id = format!("h{number}-{}", dice.roll(0..IDS));
            self.step(&id, &mut dice).await;
            self.nothing_was_released_too_early(&id).await;
            self.steps.set(self.steps.get() + 1);
        }
    }

    async fn step(&self, id: &str, dice: &mut Dice) {
        match dice.roll(0..12) {
            0..=3 => self.webhook(id, dice).await,
            4..=8 => {
                let which = usize::try_from(dice.roll(0..2)).expect("small");
                let message = self.held[which].borrow_mut().get_mut(id).filter(|held| !held.is_empty()).map(|held| {
                    let last = held.len() - 1;
                    held.swap_remove(last.min(usize::try_from(dice.roll(0..3)).expect("small")))
                });
                if let Some(message) = message {
                    let answer = if dice.roll(0..8) == 0 { "+TERM" } else { "+ACK" };
                    self.reply(which, id, &message, answer).await;
                }
            }
            9 => self.repeat_a_sample(dice).await,
            10 if self.plan.releases => self.release(id, dice).await,
            _ => {
                let _never = within(Duration::from_millis(dice.roll(1..1500)), async || None::<()>).await;
            }
        }
    }

    async fn webhook(&self, id: &str, dice: &mut Dice) {
        let which = usize::try_from(dice.roll(0..2)).expect("small");
        // A gate that is killed meanwhile answers nothing, and another one may have taken its place by then.
        let Some(address) = self.gates.borrow()[which].as_ref().map(Gate::address) else { return };
        let sent = SystemTime::now();
        let began = Instant::now();
        let request = crate::support::post(PATH, batch([id]).as_bytes());
        let answer =
            tokio::time::timeout(Duration::from_secs(10), crate::support::try_exchange(address, &request)).await;
        if let Ok(Ok(answer)) = answer {
            self.longest.set(self.longest.get().max(began.elapsed()));
            if answer.status == 200 {
                self.accepted.set(self.accepted.get() + 1);
                self.truth.borrow_mut().entry(id.to_owned()).or_default().last_accepted = Some(sent);
            } else if answer.status != 503 {
                self.violation(format!("{id}: {}", answer.status));
            }
        }
    }

    /// An answer that comes again, late: about an event that the consumer has acknowledged before.
    async fn repeat_a_sample(&self, dice: &mut Dice) {
        let request = json!({ "seq": dice.roll(1..200) }).to_string();
        let Ok(answer) = self.client.request("$JS.API.STREAM.MSG.GET.hookgate_acks", request.into()).await else {
            return;
        };
        let Ok(answer) = serde_json::from_slice::<serde_json::Value>(&answer.payload) else { return };
        let (Some(subject), Some(data)) = (answer["message"]["subject"].as_str(), answer["message"]["data"].as_str())
        else {
            return;
        };
        let Ok(data) = base64::engine::general_purpose::STANDARD.decode(data) else { return };
        // After the stream was made again its number names another event, which that consumer may not have seen.
        if self.disturbed.get() == SystemTime::UNIX_EPOCH {
            let _sent = self.client.publish(subject.to_owned(), data.into()).await;
        }
    }

    async fn release(&self, id: &str, dice: &mut Dice) {
        let newest = self.seen.borrow().get(id).and_then(|seen| seen.last().cloned());
        let mut request = json!({ "flow": "vmh", "entity": "beteiligte", "action": "update", "entity_id": id });
        match dice.roll(0..3) {
            0 => {
                let mut link = self.link().await;
                let _released = link.srem(PENDING, id).await;
                return;
            }
            1 => {}
            _ => {
                let Some(newest) = newest else { return };
                request["token"] = json!(newest.token);
            }
        }
        let _answer = self.client.request("hookgate.release", request.to_string().into()).await;
    }

    /// An id that is not pending has been answered by both consumers, as far as its newest claim is known.
    async fn nothing_was_released_too_early(&self, id: &str) {
        if self.plan.releases {
            return;
        }
        let now = SystemTime::now();
        let mut link = self.link().await;
        let Ok(false) = link.sismember(PENDING, id).await else { return };
        // What Redis forgot was not released.
        let since = self.disturbed.get();
        let newest = self.seen.borrow().get(id).and_then(|seen| {
            let before = seen.iter().filter(|seen| seen.at < now && seen.at > since);
            before.max_by(|one, other| one.token[..12].cmp(&other.token[..12])).cloned()
        });
        let Some(newest) = newest else { return };
        let truth = self.truth.borrow();
        let Some(truth) = truth.get(id) else {
            return self.violation(format!("{id}: released, and nobody has answered anything"));
        };
        for (consumer, answered) in CONSUMERS.iter().zip(&truth.answered) {
            // An answer for it, or for a later event of it.
            if !answered.iter().any(|token| token[..12] >= newest.token[..12]) {
                self.violation(format!("{id}: released, and {consumer} has not answered {}", newest.token));
            }
        }
    }

    /// One fault after the other.
    async fn faults(&self, mut dice: Dice) {
        loop {
            let _never = within(FAULT_EVERY, async || None::<()>).await;
            match dice.roll(0..6) {
                0 | 1 => {
                    let which = usize::try_from(dice.roll(0..2)).expect("small");
                    self.kill_a_replica(which, &mut dice).await;
                }
                // Answers that are lost.
                2 => {
                    let _purged = self.client.request("$JS.API.STREAM.PURGE.hookgate_acks", "".into()).await;
                }
                3 => {
                    let _deleted = self.client.request("$JS.API.STREAM.DELETE.hookgate_acks", "".into()).await;
                }
                4 if self.plan.failovers => self.forget_the_last_writes(&mut dice).await,
                4 => {
                    let _purged = self.client.request("$JS.API.STREAM.PURGE.HOOKGATE", "".into()).await;
                }
                _ => self.make_the_stream_again().await,
            }
        }
    }

    async fn kill_a_replica(&self, which: usize, dice: &mut Dice) {
        let Some(mut gate) = self.gates.borrow_mut()[which].take() else { return };
        gate.kill();
        gate.end().await;
        let gate = self.replica(dice).await;
        self.gates.borrow_mut()[which] = Some(gate);
    }

    async fn make_the_stream_again(&self) {
        self.disturbed.set(SystemTime::now());
        let _deleted = self.client.request("$JS.API.STREAM.DELETE.HOOKGATE", "".into()).await;
        for held in &self.held {
            held.borrow_mut().clear();
        }
        // The replicas notice within some seconds, unless both have just died at their points.
        while within(Duration::from_secs(10), async || self.world.nats.stream("HOOKGATE").await).await.is_none() {
            self.revive().await;
        }
        self.make_consumers().await;
    }

    /// As after the failover to a replica that lags: the keys are as they were a moment ago, and all connections end.
    async fn forget_the_last_writes(&self, dice: &mut Dice) {
        let copy = "for _, name in ipairs({'', 'outbox', 'journal', 'marks'}) do local key = name == '' and KEYS[1] or '{' .. KEYS[1] .. '}:' .. name redis.call('DEL', 'copy:' .. name) redis.call('COPY', key, 'copy:' .. name) end return 1";
        let back = "for _, name in ipairs({'', 'outbox', 'journal', 'marks'}) do local key = name == '' and KEYS[1] or '{' .. KEYS[1] .. '}:' .. name redis.call('DEL', key) redis.call('COPY', 'copy:' .. name, key) end return 1";
        let mut link = self.link().await;
        let _copied: Result<i64, _> = redis::cmd("EVAL").arg(copy).arg(1).arg(PENDING).query_async(&mut link).await;
        let _never = within(Duration::from_millis(dice.roll(1..150)), async || None::<()>).await;
        self.disturbed.set(SystemTime::now() + Duration::from_secs(1));
        let _back: Result<i64, _> = redis::cmd("EVAL").arg(back).arg(1).arg(PENDING).query_async(&mut link).await;
        let _cut: Result<i64, _> =
            redis::cmd("CLIENT").arg("KILL").arg("TYPE").arg("normal").query_async(&mut link).await;
    }

    /// In place of each replica that died, one that does not die.
    async fn revive(&self) {
        for which in 0..2 {
            let lives = self.gates.borrow_mut()[which].as_mut().is_some_and(|gate| gate.ended().is_none());
            if !lives {
                let gate = self.world.gate_unready(&settings(self.plan)).await;
                gate.wait_ready().await;
                self.gates.borrow_mut()[which] = Some(gate);
            }
        }
    }

    /// The consumers answer everything, and somebody releases where that has to be said. Ids that stay pending.
    async fn end(&self) -> usize {
        self.revive().await;
        if self.world.nats.stream("HOOKGATE").await.is_none() {
            eventually("there is a stream", async || self.world.nats.stream("HOOKGATE").await).await;
        }
        self.make_consumers().await;
        self.draining.set(true);
        for (which, held) in self.held.iter().enumerate() {
            let all: Vec<_> = held
                .take()
                .into_iter()
                .flat_map(|(id, held)| held.into_iter().map(move |one| (id.clone(), one)))
                .collect();
            for (id, message) in all {
                self.reply(which, &id, &message, "+ACK").await;
            }
        }
        let mut left = Vec::new();
        let keys = ["outbox", "journal", "marks"].map(|name| format!("{{{PENDING}}}:{name}"));
        let calm = within(CALM, async || {
            let mut link = self.link().await;
            let pending: Vec<String> = link.smembers(PENDING).await.ok()?.into_iter().collect();
            if !self.plan.on_ack && !pending.is_empty() {
                let request =
                    json!({ "flow": "vmh", "entity": "beteiligte", "action": "update", "entity_ids": pending });
                let _released = self.client.request("hookgate.release", request.to_string().into()).await;
            }
            let mut rest = 0;
            for key in &keys {
                rest += link.hlen(key).await.ok()?;
            }
            left = pending;
            (left.is_empty() && rest == 0).then_some(())
        })
        .await;
        if calm.is_none() {
            let mut link = self.link().await;
            let journal = link.hgetall(&keys[1]).await.unwrap_or_default();
            for id in left.iter().take(5) {
                self.violation(format!("{id} stays pending: {:?}", journal.get(id)));
            }
            if left.is_empty() {
                self.violation(format!("outbox, journal or marks are not empty: {journal:?}"));
            }
        }
        left.len()
    }

    /// Accepted webhooks without an event after them.
    fn judge(&self) -> usize {
        let (seen, truth) = (self.seen.borrow(), self.truth.borrow());
        let mut lost = 0;
        for (id, truth) in &*truth {
            let Some(sent) = truth.last_accepted else { continue };
            let since = if self.plan.mode == "skip" { SystemTime::UNIX_EPOCH } else { sent };
            if !seen.get(id).is_some_and(|seen| seen.iter().any(|seen| seen.at >= since)) {
                lost += 1;
                self.violation(format!("{id}: no event of {ROUTE} after its last accepted webhook"));
            }
        }
        lost
    }
}
