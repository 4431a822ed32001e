//! A claim may reach Redis long after hookgate gave up on its answer. It must not take an id whose event a consumer has
//! already processed: nobody would release that id again.

use std::time::Duration;

use redis::AsyncTypedCommands;

use super::{
    redis::{Policy, port},
    rig::{Report, Rig},
    wire::{Mode, Wire},
};
use crate::{
    Scenario, scenario,
    support::{Event, Gate, OUTBOX, PENDING, World, batch, eventually, within},
};

/// The scenarios of this file.
pub(crate) fn scenarios() -> Vec<Scenario> {
    vec![
        scenario!(claim_arrives_after_release_publish, quick),
        scenario!(claim_is_tried_again_after_release_reject, quick),
        scenario!(claim_is_tried_again_after_a_lost_answer, quick),
        scenario!(life_settled_after_another_claim, quick),
    ]
}

const ID: &str = "late";
/// A relay that takes over soon.
const SETTINGS: &str = "server.request_deadline = \"3s\"\nserver.body_read_timeout = \"2s\"\nnats.ack_timeout = \"1s\"\noutbox.relay_after = \"4s\"\n";
/// Time for the second try to be held up.
const PATIENT: &str = "redis.timeout = \"2s\"\n";

/// One second without packets between hookgate and Redis. The wire holds the claim; the event goes out without it.
async fn claim_arrives_after_release_publish() -> Report {
    let (rig, wire) = on_a_wire(Policy::Publish).await;
    let mut consumer = Consumer::default();
    wire.set(Mode::Stall);
    let answer = rig.gates[0].post(batch([ID])).await;
    assert_eq!(answer.counts(), (1, 1), "published without a claim");
    consumer.processes_an_event(&rig).await;
    wire.set(Mode::Pass);
    eventually("the claim arrives", async || rig.world.redis.pending(PENDING).await.contains(ID).then_some(())).await;
    verdict(&rig, consumer, ID, 2).await
}

/// The claim is carried out and its answer lost. Until the second try arrives, the event is published by another
/// replica and processed.
async fn claim_is_tried_again_after_release_reject() -> Report {
    let (mut rig, wire) = on_a_wire(Policy::Reject).await;
    let direct = Gate::start(&rig.world.settings(), &format!("{SETTINGS}{PATIENT}{}", Policy::Reject.settings())).await;
    direct.wait_ready().await;
    rig.gates.push(direct);
    let mut consumer = Consumer::default();
    for id in (0..).map(|number| format!("{ID}-{number}")) {
        wire.set(Mode::SwallowAnswers);
        let meanwhile = async {
            let claimed = claimed_without_answer(&rig, &wire, &id).await;
            if claimed.is_some() {
                assert_eq!(rig.gates[1].post(batch([&id])).await.counts(), (0, 1), "it is in flight");
                rig.world.redis.settled(OUTBOX).await;
                consumer.processes_an_event(&rig).await;
            }
            wire.set(Mode::Pass);
            claimed
        };
        let (answer, claimed) = tokio::join!(rig.gates[0].post(batch([&id])), meanwhile);
        rig.gates[0].wait_store("redis", "up").await;
        if claimed.is_some() {
            assert_eq!(answer.counts(), (1, 1), "claimed by the second try");
            return verdict(&rig, consumer, &id, 2).await;
        }
    }
    unreachable!("there is always another id")
}

/// The same with nobody in between: the second try finds the claim of the first one, counts it as new, and publishes
/// it once, under the token that Redis holds.
async fn claim_is_tried_again_after_a_lost_answer() -> Report {
    let (rig, wire) = on_a_wire(Policy::Reject).await;
    for id in (0..).map(|number| format!("{ID}-{number}")) {
        wire.set(Mode::SwallowAnswers);
        let meanwhile = async {
            let claimed = claimed_without_answer(&rig, &wire, &id).await;
            wire.set(Mode::Pass);
            claimed
        };
        let (answer, claimed) = tokio::join!(rig.gates[0].post(batch([&id])), meanwhile);
        rig.gates[0].wait_store("redis", "up").await;
        if let Some(token) = claimed {
            assert_eq!(answer.counts(), (1, 1), "claimed by the first try");
            let mine = |event: &Event| event.entity_id() == id;
            let event = eventually("it is stored", async || rig.oracle.events().into_iter().find(mine)).await;
            assert_eq!(event.token(), token);
            return verdict(&rig, Consumer::default(), &id, 1).await;
        }
    }
    unreachable!("there is always another id")
}

/// An event is acknowledged, and its settlement reaches Redis when the id has been claimed again: that claim stays in flight, and the
/// relay publishes it.
async fn life_settled_after_another_claim() -> Report {
    let route =
        "[[routes]]\nflow = \"vmh\"\nentity = \"beteiligte\"\naction = \"create\"\nwhile_pending = \"publish\"\n";
    let world = World::start().await;
    let (redis_wire, nats_wire) = (Wire::to(port(&world.redis)).await, Wire::to(world.nats.port()).await);
    let (redis, nats) = (redis_wire.port(), nats_wire.port());
    let mut rig = Rig::with(world, 0, "").await;
    for wire in
        [format!("redis.url = \"redis://127.0.0.1:{redis}\"\n"), format!("nats.url = \"nats://127.0.0.1:{nats}\"\n")]
    {
        let gate = rig.world.gate(&format!("{wire}{SETTINGS}{route}")).await;
        rig.gates.push(gate);
    }
    let mut other = rig.gates.pop().expect("there are two");
    rig.world.nats.freeze();
    let token = async || rig.world.redis.outbox(OUTBOX).await.remove(ID);
    let meanwhile = async {
        let first = eventually("it is claimed", token).await;
        redis_wire.set(Mode::Stall);
        rig.world.nats.thaw();
        first
    };
    let (answer, first) = tokio::join!(rig.gates[0].post(batch([ID])), meanwhile);
    assert_eq!(answer.counts(), (1, 1), "acknowledged, and not settled");
    nats_wire.set(Mode::Cut);
    let refused = other.post(batch([ID])).await.status;
    other.kill();
    let second = token().await;
    redis_wire.set(Mode::Pass);
    let comes = async || {
        let events = rig.oracle.events();
        events.iter().any(|event| Some(event.token()) == second.as_deref()).then_some(())
    };
    let came = within(Duration::from_secs(30), comes).await;
    let mut report = Report { accepted: 1, statuses: refused.to_string(), ..Report::default() };
    if second.is_none() || second.as_ref() == Some(&first) || refused != 503 {
        report.violations.push(format!("no second claim is in flight: {first}, {second:?}"));
    }
    if came.is_none() {
        report.lost = 1;
        report.violations.push("the second claim was settled as the first one, and its event never came".to_owned());
    }
    rig.world.redis.settled(OUTBOX).await;
    report
}

/// The token of a claim whose answer is swallowed, with the wire stalled from then on. `None` if the answer that was
/// swallowed belonged to something else, such as a look of the relay, and the claim has not arrived.
async fn claimed_without_answer(rig: &Rig, wire: &Wire, id: &str) -> Option<String> {
    let token = within(Duration::from_millis(500), async || rig.world.redis.outbox(OUTBOX).await.remove(id)).await;
    wire.set(Mode::Stall);
    token
}

/// A replica that reaches Redis through a wire.
async fn on_a_wire(policy: Policy) -> (Rig, Wire) {
    let world = World::start().await;
    let wire = Wire::to(port(&world.redis)).await;
    let url = format!("redis.url = \"redis://127.0.0.1:{}\"\n", wire.port());
    let mut rig = Rig::with(world, 0, "").await;
    let patient = if policy == Policy::Reject { PATIENT } else { "" };
    let gate = rig.world.gate(&format!("{url}{SETTINGS}{patient}{}", policy.settings())).await;
    rig.gates.push(gate);
    (rig, wire)
}

/// Takes each event and releases its id, once an event.
#[derive(Default)]
struct Consumer {
    processed: usize,
}

impl Consumer {
    async fn processes_what_is_there(&mut self, rig: &Rig) {
        let events = rig.oracle.events();
        for event in &events[self.processed..] {
            let mut redis = rig.world.redis.connection().await;
            redis.srem(PENDING, event.entity_id()).await.expect("the key is a SET");
        }
        self.processed = events.len();
    }

    async fn processes_an_event(&mut self, rig: &Rig) {
        let before = self.processed;
        eventually("there is an event", async || (rig.oracle.events().len() > before).then_some(())).await;
        self.processes_what_is_there(rig).await;
    }
}

/// Once every resulting event is processed (one event, and at most one too many), a new webhook for
/// the id gets an event.
async fn verdict(rig: &Rig, mut consumer: Consumer, id: &str, at_most: usize) -> Report {
    rig.world.redis.settled(OUTBOX).await;
    let stream = rig.world.nats.jetstream().await;
    let last =
        async || stream.get_stream("HOOKGATE").await.expect("hookgate made it").cached_info().state.last_sequence;
    rig.oracle.catch_up(last().await).await;
    consumer.processes_what_is_there(rig).await;
    let count = || rig.oracle.events().iter().filter(|event| event.entity_id() == id).count();
    let before = count();
    let stuck = rig.world.redis.pending(PENDING).await.len();
    let answer = rig.gates[0].post(batch([id])).await;
    rig.oracle.catch_up(last().await).await;
    let events = count();
    let mut report = Report { accepted: 2, stuck, statuses: answer.status.to_string(), ..Report::default() };
    report.duplicates = before.saturating_sub(1);
    let mut claim = |holds: bool, violation: String| {
        if !holds {
            report.violations.push(violation);
        }
    };
    claim(before <= at_most, format!("{before} events for one webhook, at most {at_most} are allowed"));
    claim(stuck == 0, "the id is pending, and each of its events has been processed".to_owned());
    claim(answer.status == 200, format!("the next webhook was answered {}", answer.status));
    claim(events > before, "the next webhook was accepted and got no event".to_owned());
    report
}
