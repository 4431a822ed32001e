//! What becomes of pending ids when something changes around them: Redis is emptied, settings and versions are rolled over three
//! replicas, a consumer is away for a day or for longer than its events are kept.

use std::{
    collections::BTreeSet,
    mem,
    time::{Duration, SystemTime},
};

use async_nats::{Client, Message};
use futures_util::StreamExt;
use serde_json::json;

use super::{
    addresses::version_0_1_0,
    clock::{Clock, HOUR},
    consumers::{Application, Language, make},
    crm::{Crm, Load, Reuse, Sent},
    judge::{Span, Webhook},
    life::replica_of,
    redis::tell,
    rig::{Bounds, Report, Rig, SETTINGS, demand},
};
use crate::{
    Scenario, scenario,
    support::{Gate, OUTBOX, PENDING, World, batch, eventually, in_time, run, within},
};

/// The scenarios of this file.
pub(crate) fn scenarios() -> Vec<Scenario> {
    vec![
        scenario!(life_redis_wiped_publish, consumers),
        scenario!(life_redis_wiped_coalesce, consumers),
        scenario!(life_settings_rolled_under_load, consumers),
        scenario!(life_upgrade_from_0_1_0_and_back, consumers, older),
        scenario!(life_0_1_0_beside_release_on_ack, older),
        scenario!(life_consumer_away_for_a_day, consumers),
        scenario!(life_consumer_away_for_longer_than_max_age, consumers),
        scenario!(life_answers_that_expired_unread, consumers),
    ]
}

/// How long it may take until nothing is pending any more: what a replica that left had read of the answers is read again after a
/// minute, and a sweep needs two looks after that.
const CALM: Duration = Duration::from_secs(150);
/// More messages for an id than one are another scenario's matter.
const ANY_NUMBER: usize = usize::MAX;

/// The route of the tests, as 0.1.0 knows it.
const OLD: &str = "[[routes]]\nflow = \"vmh\"\nentity = \"beteiligte\"\naction = \"create\"\n";
/// The route of the tests, released by acknowledgements.
fn on_ack(mode: &str, consumers: &str, keys: &str) -> String {
    let durability = if mode == "coalesce" { "redis.durability = \"replica\"\n" } else { "" };
    format!(
        "{durability}[[routes]]\nflow = \"vmh\"\nentity = \"beteiligte\"\naction = \"create\"\nwhile_pending = \"{mode}\"\nrelease = \"ack\"\nconsumers = [{consumers}]\n{keys}"
    )
}

/// Sends a batch to a replica, which has to take it; how many ids were new, and the webhook for the judge.
async fn accepted(gate: &Gate, ids: &[String]) -> (u64, Webhook) {
    let from = SystemTime::now();
    let answer = gate.post(batch(ids)).await;
    assert_eq!(answer.status, 200, "{}", answer.text());
    (answer.counts().0, Webhook { ids: ids.to_vec(), time: Span { from, to: SystemTime::now() } })
}

/// The same in parts, by all replicas in turn.
async fn all_accepted(rig: &Rig, ids: &[String], webhooks: &mut Vec<Webhook>) -> usize {
    let mut new = 0;
    for (place, part) in ids.chunks(50).enumerate() {
        let (claimed, webhook) = accepted(&rig.gates[place % rig.gates.len()], part).await;
        new += usize::try_from(claimed).expect("few");
        webhooks.push(webhook);
    }
    new
}

/// What a consumer gets next.
async fn deliveries(client: &Client, consumer: &str, count: usize) -> Vec<Message> {
    let inbox = client.new_inbox();
    let mut answers = client.subscribe(inbox.clone()).await.expect("NATS answers");
    let request = json!({ "batch": count, "expires": 20_000_000_000_u64 }).to_string();
    let subject = format!("$JS.API.CONSUMER.MSG.NEXT.HOOKGATE.{consumer}");
    client.publish_with_reply(subject, inbox, request.into()).await.expect("NATS takes it");
    let mut messages = Vec::new();
    while messages.len() < count {
        messages.push(in_time("an event comes", answers.next()).await.expect("NATS answers"));
    }
    messages
}

async fn acknowledge(client: &Client, messages: Vec<Message>) {
    for message in messages {
        client.request(message.reply.expect("it wants an answer"), "+ACK".into()).await.expect("NATS confirms");
    }
}

/// Everything that consumers answered until now has been carried out.
async fn answers_are_carried_out(world: &World) {
    eventually("what was answered is carried out", async || {
        let info = world.nats.api("CONSUMER.INFO.hookgate_acks.hookgate", &json!({})).await;
        (info["num_pending"] == 0 && info["num_ack_pending"] == 0).then_some(())
    })
    .await;
}

/// Events that hookgate published without a webhook.
fn redelivered(rig: &Rig) -> usize {
    rig.oracle.events().iter().filter(|event| event.headers.contains_key("Hookgate-Redelivery")).count()
}

async fn life_redis_wiped_publish() -> Report {
    wiped("publish").await
}

/// A mark is as durable as Redis is: one that is lost costs its change, and nothing else.
async fn life_redis_wiped_coalesce() -> Report {
    wiped("coalesce").await
}

/// Redis forgets everything while ids are pending and changed. Their events are in the stream; what was acknowledged before is no
/// answer for a claim after that.
async fn wiped(mode: &'static str) -> Report {
    const IDS: usize = 300;
    let world = World::start().await;
    let _replica = if mode == "coalesce" { Some(replica_of(&world).await) } else { None };
    let urls = [world.nats.url()];
    let mut rig = Rig::with(world, 2, &on_ack(mode, "\"one\"", "")).await;
    rig.is_released();
    let client = rig.world.nats.client().await;
    // Nothing comes twice because this test is slow.
    make(&client, "one", &json!({ "ack_wait": 120_000_000_000_u64 })).await;
    let mut one = Application::new("one", &urls, &[Language::Rust]);
    let ids: Vec<_> = (0..IDS).map(|number| format!("w{number}")).collect();
    let (mut webhooks, mut report) = (Vec::new(), Report::default());
    let new = all_accepted(&rig, &ids, &mut webhooks).await;
    demand(&mut report, new == IDS, format!("{new} of {IDS} ids were new"));
    rig.world.redis.settled(OUTBOX).await;
    let before = deliveries(&client, "one", IDS).await;
    let changed = &ids[..120];
    let new = all_accepted(&rig, changed, &mut webhooks).await;
    let expected = if mode == "coalesce" { 0 } else { changed.len() };
    demand(&mut report, new == expected, format!("{new} changes have a claim of their own, not {expected}"));

    tell(&rig.world.redis, &["FLUSHALL"]).await;
    let again = &ids[60..180];
    let new = all_accepted(&rig, again, &mut webhooks).await;
    demand(&mut report, new == again.len(), format!("{new} of {} forgotten ids were new again", again.len()));
    rig.world.redis.settled(OUTBOX).await;
    acknowledge(&client, before).await;
    answers_are_carried_out(&rig.world).await;
    let pending = rig.world.redis.pending(PENDING).await;
    demand(
        &mut report,
        pending == again.iter().cloned().collect(),
        format!("{} ids are pending, and {} were claimed since", pending.len(), again.len()),
    );
    one.start_all();
    rig.demand_quiet(&mut report, CALM).await;
    rig.read_to_the_end().await;

    report.accepted = webhooks.iter().map(|webhook| webhook.ids.len()).sum();
    let lost: BTreeSet<_> =
        rig.swallowed(webhooks, SystemTime::now()).into_iter().map(|violation| violation.id).collect();
    // Marked when Redis lost the marks, and not sent again.
    let excused: BTreeSet<_> = if mode == "coalesce" { ids[..60].iter().cloned().collect() } else { BTreeSet::new() };
    let not_excused: Vec<_> = lost.difference(&excused).take(5).collect();
    report.lost = lost.difference(&excused).count();
    demand(&mut report, not_excused.is_empty(), format!("changes without an event: {not_excused:?}"));
    let events = rig.oracle.messages();
    let expected = IDS + if mode == "coalesce" { 0 } else { changed.len() } + again.len();
    demand(&mut report, events == expected, format!("{events} events, {expected} are due"));
    let unasked = redelivered(&rig);
    demand(&mut report, unasked == 0, format!("{unasked} events that nobody asked for"));
    // Nothing is silent: each further change is published.
    let mut webhooks = Vec::new();
    let new = all_accepted(&rig, &ids, &mut webhooks).await;
    demand(&mut report, new == IDS, format!("{new} of {IDS} ids are published after all that"));
    rig.demand_quiet(&mut report, CALM).await;
    report.statuses = format!("{} marks were lost with Redis", lost.len());
    report
}

/// A slow load of ids that come again.
fn crm(rig: &Rig) -> Crm {
    let load = Load { workers: 4, pause: Duration::from_millis(250), attempts: 1000, ..Load::default() };
    Crm::reusing(rig.addresses(), load, Some(Reuse { ids: 60, of_a_batch: 4, seed: 3 }))
}

impl Rig {
    /// Replaces each replica in turn by one that `start` starts, as a rollout does.
    async fn roll(&mut self, crm: &Crm, start: impl AsyncFn(&World) -> Gate) {
        for place in 0..self.gates.len() {
            let next = start(&self.world).await;
            let mut last = mem::replace(&mut self.gates[place], next);
            crm.aim(self.addresses());
            last.terminate().await;
            self.progress(crm, 30).await;
        }
    }

    /// Ends the load, waits until nothing is pending, and judges: webhooks of these times have an event of their own each.
    pub(super) async fn judge_changes(&self, crm: Crm, of_their_own: &[Span]) -> Report {
        let mut sent: Sent = crm.finish().await;
        let mut found = Report::default();
        self.demand_quiet(&mut found, CALM).await;
        let read = self.read_to_the_end().await;
        demand(&mut found, read, "the stream can't be read");
        let (own, others) = mem::take(&mut sent.webhooks).into_iter().partition(|webhook: &Webhook| {
            of_their_own.iter().any(|span| span.from < webhook.time.from && webhook.time.to < span.to)
        });
        sent.webhooks = others;
        let judged = own.len();
        // Marks are honoured when the event before is done with, whenever that is.
        let swallowed = self.swallowed(own, SystemTime::now());
        let mut report = self.judge(sent, Bounds { duplicates: ANY_NUMBER, ..Bounds::default() }).await;
        report.lost += swallowed.len();
        let some: Vec<_> = swallowed.iter().take(5).map(ToString::to_string).collect();
        demand(&mut report, swallowed.is_empty(), format!("{} changes have no event: {some:?}", swallowed.len()));
        demand(&mut report, judged > 0, "no change was judged");
        report.violations.append(&mut found.violations);
        report.statuses = format!("{}, {judged} changes judged, {} by the sweep", report.statuses, redelivered(self));
        report
    }
}

/// `while_pending` and `consumers` change, replica by replica, while ids come again and are acknowledged.
async fn life_settings_rolled_under_load() -> Report {
    let world = World::start().await;
    let _replica = replica_of(&world).await;
    let urls = [world.nats.url()];
    let mut rig = Rig::with(world, 3, &on_ack("skip", "\"one\"", "")).await;
    rig.is_released();
    let mut one = Application::new("one", &urls, &[Language::Rust]);
    let mut two = Application::new("two", &urls, &[Language::Rust]);
    for application in [&mut one, &mut two] {
        application.make(&rig.world.nats, &json!({})).await;
        application.start_all();
    }
    let crm = crm(&rig);
    rig.progress(&crm, 100).await;
    let mut own = Vec::new();
    let mut from = None;
    for (mode, consumers) in [
        ("publish", "\"one\""),
        ("coalesce", "\"one\""),
        ("coalesce", "\"one\", \"two\""),
        ("publish", "\"one\", \"two\""),
        ("publish", "\"two\""),
        ("skip", "\"two\""),
    ] {
        if mode == "skip"
            && let Some(from) = from.take()
        {
            own.push(Span { from, to: SystemTime::now() });
        }
        let settings =
            format!("{}{}", rig.settings().split("[[routes]]").next().unwrap_or(""), on_ack(mode, consumers, ""));
        rig.roll(&crm, async |world| world.gate(&settings).await).await;
        if mode != "skip" {
            from = from.or_else(|| Some(SystemTime::now()));
        }
    }
    rig.faults_end();
    rig.judge_changes(crm, &own).await
}

/// The order that docs/operations.md names, under load, there and back.
async fn life_upgrade_from_0_1_0_and_back() -> Report {
    let world = World::start().await;
    let _replica = replica_of(&world).await;
    let urls = [world.nats.url()];
    let mut rig = Rig::with(world, 0, "").await;
    let settings = |route: &str| format!("{}{route}", rig.settings());
    let (old, ack, publish) =
        (settings(OLD), settings(&on_ack("coalesce", "\"sync\"", "")), settings(&on_ack("publish", "\"sync\"", "")));
    for _ in 0..3 {
        let gate = version_0_1_0(&rig.world, &old).await;
        rig.gates.push(gate);
    }
    rig.consume();
    let crm = crm(&rig);
    rig.progress(&crm, 200).await;

    // From now on nobody releases: what is pending meets the journal, and then the acknowledgements.
    rig.stop_consuming();
    // First the new version everywhere, then the new release.
    rig.roll(&crm, async |world| world.gate(&old).await).await;
    let mut sync = Application::new("sync", &urls, &[Language::Rust]);
    command(&rig.world, &ack, &["consumers", "add", "sync"]).await;
    rig.roll(&crm, async |world| world.gate(&ack).await).await;
    sync.start_all();
    rig.is_released();
    let from = SystemTime::now();
    rig.progress(&crm, 300).await;

    // The way back: no new marks, then somebody releases ids as before, and ids that wait for an acknowledgement get it.
    sync.kill_all();
    rig.progress(&crm, 100).await;
    let mut span = Span { from, to: SystemTime::now() };
    rig.roll(&crm, async |world| world.gate(&publish).await).await;
    span.to = SystemTime::now();
    let left = rig.left().await.expect("Redis answers");
    let mut report = Report::default();
    demand(&mut report, left[3] > 0, "no id is marked: the scenario shows nothing");
    command(&rig.world, &publish, &["outbox", "relay"]).await;
    let left = rig.left().await.expect("Redis answers");
    demand(&mut report, left[3] == 0, format!("{} marks are left for a version that knows none", left[3]));
    rig.consume();
    sync.start_all();
    // As `hookgate pending count` shows: what was pending until now is free, also what 0.1.0 had claimed.
    let mut before = rig.world.redis.pending(PENDING).await;
    let free = within(CALM, async || {
        let pending = rig.world.redis.pending(PENDING).await;
        before.retain(|id| pending.contains(id));
        before.is_empty().then_some(())
    });
    let free = free.await.is_some();
    demand(&mut report, free, format!("{} ids that were pending are not free", before.len()));
    rig.roll(&crm, async |world| world.gate(&old).await).await;
    rig.roll(&crm, async |world| version_0_1_0(world, &old).await).await;
    rig.progress(&crm, 200).await;
    // Once more, for what 0.1.0 leaves in the journal is dropped then.
    rig.roll(&crm, async |world| world.gate(&old).await).await;
    rig.faults_end();
    let mut judged = rig.judge_changes(crm, &[span]).await;
    judged.violations.append(&mut report.violations);
    judged
}

/// The other order: 0.1.0 writes no journal, so that an answer for the claim before may release what it claimed. That is early, and
/// nothing worse: its event is delivered, and each change after it is published.
async fn life_0_1_0_beside_release_on_ack() -> Report {
    let mut rig = Rig::start(1, &on_ack("publish", "\"one\"", "")).await;
    rig.is_released();
    let old = version_0_1_0(&rig.world, &format!("{SETTINGS}{OLD}")).await;
    let client = rig.world.nats.client().await;
    make(&client, "one", &json!({ "ack_wait": 120_000_000_000_u64 })).await;
    let (mut report, ids) = (Report::default(), ["a".to_owned()]);
    let mut events = Vec::new();
    for gate in [&rig.gates[0], &old] {
        let (new, _) = accepted(gate, &ids).await;
        demand(&mut report, new == 1, "it was released, and is not claimed anew");
        rig.world.redis.settled(OUTBOX).await;
        events.append(&mut deliveries(&client, "one", 1).await);
        if events.len() == 1 {
            rig.world.redis.release(PENDING, "a").await;
        }
    }
    let second = events.pop().expect("there are two");
    acknowledge(&client, events).await;
    answers_are_carried_out(&rig.world).await;
    let early = rig.world.redis.pending(PENDING).await.is_empty();
    let (new, _) = accepted(&rig.gates[0], &ids).await;
    demand(&mut report, new == 1, "a change is not published");
    acknowledge(&client, vec![second]).await;
    acknowledge(&client, deliveries(&client, "one", 1).await).await;
    rig.demand_quiet(&mut report, CALM).await;
    rig.read_to_the_end().await;
    let messages = rig.oracle.messages();
    demand(&mut report, messages == 3, format!("{messages} events of 3 changes"));
    report.accepted = 3;
    let release = if early { "released by the answer for the claim before" } else { "not released early" };
    release.clone_into(&mut report.statuses);
    report
}

/// Runs a command of the operator, which has to end well.
async fn command(world: &World, settings: &str, arguments: &'static [&'static str]) -> String {
    let settings = format!("{}{settings}", world.settings());
    tokio::task::spawn_blocking(move || run(&settings, arguments)).await.expect("it ends").good()
}

/// A day passes on hookgate's clock, and comes back, while a consumer is away; the other machines' clocks go on as they were.
async fn life_consumer_away_for_a_day() -> Report {
    const IDS: usize = 200;
    let world = World::start().await;
    let urls = [world.nats.url()];
    let clock = Clock::new();
    let mut rig = Rig::with(world, 0, &on_ack("publish", "\"one\", \"two\"", "")).await;
    rig.is_released();
    for _ in 0..2 {
        let gate = rig.world.gate_in(rig.settings(), &clock.environment()).await;
        rig.gates.push(gate);
    }
    let mut here = Application::new("one", &urls, &[Language::Rust]);
    let mut away = Application::new("two", &urls, &[Language::Rust]);
    for application in [&here, &away] {
        application.make(&rig.world.nats, &json!({})).await;
    }
    here.start_all();
    let (mut webhooks, mut report) = (Vec::new(), Report::default());
    for (round, offset) in [0, 25 * HOUR, -HOUR, 0].into_iter().enumerate() {
        clock.set(offset);
        let ids: Vec<_> = (0..IDS).map(|number| format!("d{round}-{number}")).collect();
        all_accepted(&rig, &ids, &mut webhooks).await;
        // Those of the day before change, too.
        let ids: Vec<_> = (0..IDS / 4).map(|number| format!("d0-{number}")).collect();
        all_accepted(&rig, &ids, &mut webhooks).await;
        let pending = rig.world.redis.pending(PENDING).await.len();
        demand(
            &mut report,
            pending == (round + 1) * IDS,
            format!("{pending} ids are pending, and nobody has answered"),
        );
        // Time for two looks of the sweep.
        let _never = within(Duration::from_secs(25), async || None::<()>).await;
    }
    let early = redelivered(&rig);
    demand(
        &mut report,
        early == 0,
        format!("{early} events were published once more, though their consumer still has them"),
    );
    away.start_all();
    rig.demand_quiet(&mut report, CALM).await;
    rig.read_to_the_end().await;
    report.accepted = webhooks.iter().map(|webhook| webhook.ids.len()).sum();
    report.lost = rig.swallowed(webhooks, SystemTime::now()).len();
    let lost = report.lost;
    demand(&mut report, lost == 0, format!("{lost} changes have no event"));
    report.duplicates = redelivered(&rig);
    report
}

/// Sends ids and waits until they are in the stream, all of them pending.
async fn pending(rig: &Rig, ids: &[String], webhooks: &mut Vec<Webhook>) {
    all_accepted(rig, ids, webhooks).await;
    rig.world.redis.settled(OUTBOX).await;
}

/// The stream deletes events that a consumer has not seen. Their ids are published again, until it is back.
async fn life_consumer_away_for_longer_than_max_age() -> Report {
    const IDS: usize = 200;
    let world = World::start().await;
    let urls = [world.nats.url()];
    let short = "nats.stream.max_age = \"20s\"\nnats.stream.duplicate_window = \"20s\"\n";
    let settings = format!("{short}{}", on_ack("publish", "\"one\"", "max_redeliveries = 20\n"));
    let mut rig = Rig::with(world, 2, &settings).await;
    rig.is_released();
    let mut one = Application::new("one", &urls, &[Language::Rust, Language::Rust]);
    one.make(&rig.world.nats, &json!({})).await;
    let (mut webhooks, mut report) = (Vec::new(), Report::default());
    let ids: Vec<_> = (0..IDS).map(|number| format!("a{number}")).collect();
    pending(&rig, &ids, &mut webhooks).await;
    let again = within(CALM, async || (redelivered(&rig) >= IDS).then_some(())).await;
    demand(&mut report, again.is_some(), format!("{} of {IDS} ids were published again", redelivered(&rig)));
    one.start_all();
    rig.demand_quiet(&mut report, CALM).await;
    report.accepted = IDS;
    let seen: BTreeSet<_> = {
        let processed = one.processed();
        let events = rig.oracle.events();
        events.iter().filter(|event| processed.contains(event.token())).map(crate::support::Event::entity_id).collect()
    };
    report.lost = IDS - seen.len();
    let lost = report.lost;
    demand(&mut report, lost == 0, format!("{lost} ids were never processed"));
    report.duplicates = redelivered(&rig);
    report
}

/// Consumers acknowledge while no hookgate is there, for longer than the acks stream keeps what they answered.
async fn life_answers_that_expired_unread() -> Report {
    const IDS: usize = 200;
    let world = World::start().await;
    let urls = [world.nats.url()];
    let mut rig = Rig::with(world, 2, &on_ack("publish", "\"one\"", "")).await;
    rig.is_released();
    let mut one = Application::new("one", &urls, &[Language::Rust]);
    one.make(&rig.world.nats, &json!({})).await;
    let (mut webhooks, mut report) = (Vec::new(), Report::default());
    let ids: Vec<_> = (0..IDS).map(|number| format!("e{number}")).collect();
    pending(&rig, &ids, &mut webhooks).await;
    // In place of 24 hours.
    let day = json!({ "max_age": 2_000_000_000_u64, "duplicate_window": 2_000_000_000_u64 });
    rig.world.nats.update_raw("hookgate_acks", &day).await;
    for gate in &mut rig.gates {
        gate.terminate().await;
    }
    one.start_all();
    eventually("all is acknowledged", async || {
        let info = rig.world.nats.api("CONSUMER.INFO.HOOKGATE.one", &json!({})).await;
        (info["num_pending"] == 0 && info["num_ack_pending"] == 0).then_some(())
    })
    .await;
    one.kill_all();
    eventually("what was answered is gone", async || {
        let info = rig.world.nats.api("STREAM.INFO.hookgate_acks", &json!({})).await;
        (info["state"]["messages"] == 0).then_some(())
    })
    .await;
    rig.world.nats.update_raw("hookgate_acks", &json!({ "max_age": 60_000_000_000_u64 })).await;
    for place in 0..2 {
        rig.replace(place).await;
    }
    let still = rig.world.redis.pending(PENDING).await.len();
    demand(&mut report, still == IDS, format!("{still} of {IDS} ids are pending, and no answer is known"));
    let again = within(CALM, async || (redelivered(&rig) >= IDS).then_some(())).await;
    demand(&mut report, again.is_some(), format!("{} of {IDS} ids were published again", redelivered(&rig)));
    one.start_all();
    rig.demand_quiet(&mut report, CALM).await;
    report.accepted = IDS;
    report.duplicates = redelivered(&rig);
    let more = report.duplicates;
    demand(&mut report, more == IDS, format!("{more} events more, and {IDS} answers were lost"));
    report
}
