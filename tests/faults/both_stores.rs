//! Redis and NATS fail together, and come back in either order.

use std::time::{Duration, Instant};

use futures_util::future::join_all;
use hookgate::event::Token;

use super::{
    crm::{Load, PATIENT},
    redis::{Policy, refusals, unclaimed},
    rig::{Bounds, Report, Rig},
};
use crate::{
    Scenario, scenario,
    support::{Event, PATH, batch, eventually, post, try_exchange},
};

/// The scenarios of this file.
pub(crate) fn scenarios() -> Vec<Scenario> {
    vec![scenario!(both_killed), scenario!(both_killed_publish), scenario!(both_frozen_1000_requests, alone)]
}

/// Each of the two comes back first in one round.
async fn both_killed() -> Report {
    let mut rig = Rig::start(2, Policy::Reject.settings()).await;
    let crm = rig.load(Load::default());
    for redis_first in [true, false] {
        rig.progress(&crm, 300).await;
        rig.world.redis.kill();
        rig.world.nats.kill();
        refusals(&crm, 20).await;
        if redis_first {
            rig.world.redis.start_again().await;
            refusals(&crm, 8).await;
            rig.world.nats.start_again().await;
        } else {
            rig.world.nats.start_again().await;
            refusals(&crm, 8).await;
            rig.world.redis.start_again().await;
        }
    }
    rig.progress(&crm, 300).await;
    rig.verdict(crm, Bounds::default()).await
}

/// Both stores die, in each order, and come back in each order, while hookgate publishes what it can't claim.
async fn both_killed_publish() -> Report {
    let mut rig = Rig::start(2, Policy::Publish.settings()).await;
    let load = PATIENT;
    let crm = rig.load(load);
    let orders = [(true, true), (true, false), (false, true), (false, false)];
    for (redis_dies_first, redis_returns_first) in orders {
        rig.progress(&crm, 300).await;
        if redis_dies_first {
            rig.world.redis.kill();
            rig.progress(&crm, 100).await;
            rig.world.nats.kill();
        } else {
            rig.world.nats.kill();
            refusals(&crm, 4).await;
            rig.world.redis.kill();
        }
        refusals(&crm, u64::try_from(load.workers).expect("few")).await;
        if redis_returns_first {
            rig.world.redis.start_again().await;
            refusals(&crm, 4).await;
            rig.world.nats.start_again().await;
        } else {
            rig.world.nats.start_again().await;
            rig.progress(&crm, 100).await;
            rig.world.redis.start_again().await;
        }
    }
    rig.progress(&crm, 300).await;
    let sent = crm.finish().await;
    let unclaimed = unclaimed(&mut rig).await;
    // An event without a claim that NATS stored and could not acknowledge any more has another token when its
    // sender comes back: at most what was on its way when NATS died.
    let duplicates = unclaimed + orders.len() * load.workers * load.batch;
    let mut report = rig.judge(sent, Bounds { duplicates, ..Bounds::default() }).await;
    if unclaimed == 0 {
        report.violations.push("nothing was published without a claim: the scenario shows nothing".to_owned());
    }
    report
}

/// With default settings, 1,000 senders at once each get their answer in time and in bounded memory. After the thaw work
/// resumes within a second.
async fn both_frozen_1000_requests() -> Report {
    let longest = Duration::from_secs(9);
    let mut rig = Rig::start(0, "").await;
    let settings = "outbox.relay_after = \"10s\"\nlog.filter = \"info,hookgate::entity=warn\"\n";
    let gate = rig.world.gate(settings).await;
    rig.gates.push(gate);
    let load = Load::default();
    let crm = rig.load(load);
    rig.progress(&crm, 300).await;
    let before = rig.gates[0].resident_bytes();
    rig.world.redis.freeze();
    rig.world.nats.freeze();
    let address = rig.gates[0].address();
    let thousand = async |name: &str| {
        let requests = (0..1000).map(|request| async move {
            let ids = (0..10).map(|id| format!("{name}-{request}-{id}"));
            let answer = try_exchange(address, &post(PATH, batch(ids).as_bytes())).await;
            answer.map_or((0, longest), |answer| (answer.status, answer.took))
        });
        join_all(requests).await
    };
    let mut answers = thousand("frozen").await;
    // By now it is known, and only probes wait until their deadline.
    let mut soon = thousand("still-frozen").await;
    soon.sort_by_key(|(_, took)| *took);
    let (_, nearly_all) = soon[949];
    answers.extend(soon);
    let grown = rig.gates[0].resident_bytes().saturating_sub(before);
    let accepted = crm.accepted();
    let thawed = Instant::now();
    rig.world.redis.thaw();
    rig.world.nats.thaw();
    eventually("something is accepted again", async || (crm.accepted() > accepted).then_some(())).await;
    let recovered = thawed.elapsed();
    rig.progress(&crm, 300).await;
    let sent = crm.finish().await;
    // What was sent before NATS was known to be down is stored when it wakes up, and without a claim each attempt has a
    // token of its own. Those of the load are the attempts that were refused, and those that were still going on.
    let refused = usize::try_from(*sent.statuses.get(&503).unwrap_or(&0)).expect("few");
    let attempts = (refused + load.workers) * load.batch;
    let mut report = rig.judge(sent, Bounds { duplicates: usize::MAX, longest, ..Bounds::default() }).await;
    // A claim that Redis carries out when it wakes up has its event, too: one an id.
    let unclaimed: Vec<_> = rig.oracle.events().into_iter().filter(is_unclaimed).collect();
    let of_load = unclaimed.iter().filter(|event| event.entity_id().starts_with('w')).count();
    let slowest = answers.iter().map(|(_, took)| *took).max().unwrap_or_default();
    report.longest = report.longest.max(slowest);
    let twice = report.duplicates;
    let mut claim = |holds: bool, violation: String| {
        if !holds {
            report.violations.push(violation);
        }
    };
    let others: Vec<_> = answers.iter().filter(|(status, _)| *status != 503).collect();
    let unclaimed = unclaimed.len();
    claim(twice <= unclaimed, format!("{twice} duplicates of {unclaimed} events without a claim"));
    claim(of_load <= attempts, format!("{of_load} events without a claim of {attempts} attempts"));
    claim(others.is_empty(), format!("{} of 2,000 were not answered 503: {:?}", others.len(), others.first()));
    claim(nearly_all < Duration::from_secs(3), format!("950 of the second 1,000 took {nearly_all:?}"));
    claim(slowest < longest, format!("one of 2,000 was answered after {slowest:?}"));
    claim(grown < 64 << 20, format!("memory grew by {} MiB", grown >> 20));
    claim(recovered < Duration::from_secs(1), format!("the first good answer came {recovered:?} after the thaw"));
    report
}

/// Whether an event went out without a claim: it says so in its token, as if it were the ninth try.
fn is_unclaimed(event: &Event) -> bool {
    let token: Token = event.token().parse().expect("hookgate wrote it");
    token.index() / 10_000_000 == 9
}
