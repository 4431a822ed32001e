//! hookgate's job in steps, and the first one that fails.

use std::time::Duration;

use async_nats::jetstream::stream::Config;

use super::files::Access;
use crate::support::{Gate, OUTBOX, PENDING, World, batch, within};

/// Beyond everything that goes well; a step that fails takes so long.
const SOON: Duration = Duration::from_secs(4);
/// The same for what asks the API of JetStream several times, each in vain.
const LATER: Duration = Duration::from_secs(15);
/// Longer than a connection is left alone.
const AFTER_A_PROBE: Duration = Duration::from_millis(2500);

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Step {
    /// It becomes ready.
    Ready,
    /// Webhooks become events once, and their claims are settled.
    Claim,
    /// It stays in contact with the stores.
    Stay,
    /// What can't be processed is kept, the newest of it.
    DeadLetters,
    /// What Redis holds is counted.
    StoreGauges,
}

/// A step, and what is said of it.
pub(super) type Failure = (Step, String);

/// Whether something comes about, while it can.
async fn comes(limit: Duration, mut probe: impl AsyncFnMut() -> bool) -> bool {
    within(limit, async || probe().await.then_some(())).await.is_some()
}

/// What /readyz says of a store that refuses.
async fn refusal(gate: &Gate) -> Option<String> {
    let now = gate.probe("/readyz").await.json();
    let problem = |store: &str| now[store]["problem"].as_str().map(str::to_owned);
    ["redis", "nats"].into_iter().find(|store| now[*store]["state"] == "refused").and_then(problem)
}

pub(super) async fn first_failure(world: &World, access: &Access) -> Option<Failure> {
    let gate = world.gate_unready(&access.settings("1h")).await;
    if !comes(LATER, async || gate.probe("/readyz").await.status == 200 || refusal(&gate).await.is_some()).await {
        return Some((Step::Ready, gate.probe("/readyz").await.text().to_owned()));
    }
    if let Some(problem) = refusal(&gate).await {
        assert_eq!(gate.probe("/readyz").await.status, 503);
        return Some((Step::Ready, problem));
    }
    if let Err(failure) = claims(world, &gate).await {
        return Some(failure);
    }
    let mut problem = None;
    comes(AFTER_A_PROBE, async || {
        problem = refusal(&gate).await;
        problem.is_some()
    })
    .await;
    if let Some(problem) = problem {
        return Some((Step::Stay, problem));
    }
    let later = async {
        dead_letters(world, &gate).await?;
        store_gauges(&gate, 2).await
    };
    later.await.err()
}

pub(super) async fn claims(world: &World, gate: &Gate) -> Result<(), Failure> {
    let fails = |said: String| (Step::Claim, said);
    let answer = gate.post(batch(["a", "b"])).await;
    if answer.status != 200 {
        return Err(fails(gate.wait_log("denied a permission").await));
    }
    assert_eq!(answer.counts(), (2, 2));
    assert_eq!(gate.post(batch(["a", "b"])).await.counts(), (0, 2), "duplicates");
    assert_eq!(world.nats.events().await.len(), 2);
    assert_eq!(world.redis.pending(PENDING).await.len(), 2);
    if comes(SOON, async || world.redis.outbox(OUTBOX).await.is_empty()).await {
        Ok(())
    } else {
        Err(fails("claims are not settled".to_owned()))
    }
}

pub(super) async fn dead_letters(world: &World, gate: &Gate) -> Result<(), Failure> {
    for item in ["7", "8"] {
        assert_eq!(gate.post(format!("[{item}]")).await.status, 200);
        let kept = comes(SOON, async || {
            let letters = redis::cmd("XRANGE").arg("hookgate:dead_letters").arg("-").arg("+").to_owned();
            let mut connection = world.redis.connection().await;
            let found: Vec<(String, Vec<String>)> = letters.query_async(&mut connection).await.expect("a stream");
            matches!(&found[..], [(_, fields)] if fields.last().is_some_and(|raw| raw == item))
        })
        .await;
        if !kept {
            return Err((Step::DeadLetters, format!("{item} is not the one that is kept")));
        }
    }
    Ok(())
}

pub(super) async fn store_gauges(gate: &Gate, pending: usize) -> Result<(), Failure> {
    let series = format!("hookgate_pending_ids{{route=\"vmh/beteiligte/create\"}} {pending}\n");
    if comes(SOON, async || gate.probe("/metrics").await.text().contains(&series)).await {
        Ok(())
    } else {
        Err((Step::StoreGauges, gate.wait_log("allow +scard and +hlen").await))
    }
}

/// A stream that hookgate made when its routes had other subjects.
pub(super) async fn leave_older_stream(world: &World) {
    let stream = Config {
        name: "HOOKGATE".to_owned(),
        description: Some("managed by hookgate".to_owned()),
        subjects: vec!["vmh.older".to_owned()],
        duplicate_window: Duration::from_secs(900),
        ..Config::default()
    };
    world.nats.jetstream().await.create_stream(stream).await.expect("the tests may");
}
