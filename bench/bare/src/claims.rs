//! Claims and settles with hookgate's own scripts, many requests in one call.

use redis::{Cmd, RedisError, Value, aio::MultiplexedConnection, cmd};
use tokio::sync::mpsc::UnboundedReceiver;

use super::{Batch, Job, events::Events};

const PENDING: &str = "vmh:beteiligte:create_pending";
const OUTBOX: &str = "{vmh:beteiligte:create_pending}:outbox";
const ADDRESSES: &str = "{vmh:beteiligte:create_pending}:addresses";
/// Most entries of the outbox.
const LIMIT: usize = 1_000_000;
/// Ids of one call, as in hookgate.
const STEP: usize = 1000;

/// A script that Redis knows, by its hash.
pub(crate) struct Loaded(String);

impl Loaded {
    pub(crate) async fn claim(redis: &mut MultiplexedConnection) -> Result<Self, RedisError> {
        Self::of(include_str!("../../../src/pending/claim.lua"), redis).await
    }

    pub(crate) async fn settle(redis: &mut MultiplexedConnection) -> Result<Self, RedisError> {
        Self::of(include_str!("../../../src/pending/settle.lua"), redis).await
    }

    async fn of(script: &str, redis: &mut MultiplexedConnection) -> Result<Self, RedisError> {
        Ok(Self(cmd("SCRIPT").arg("LOAD").arg(script).query_async(redis).await?))
    }

    fn call(&self) -> Cmd {
        let mut call = cmd("EVALSHA");
        call.arg(&self.0);
        call
    }
}

/// Claims what is queued, as often as something is, and has it published.
pub(crate) async fn claim(
    script: Loaded,
    mut jobs: UnboundedReceiver<Job>,
    mut redis: MultiplexedConnection,
    mut events: Events,
) {
    while let Some(jobs) = drain(&mut jobs, |job| &job.batch).await {
        let mut call = script.call();
        // One address, and no journal; a pending id is a duplicate.
        call.arg(3)
            .arg(PENDING)
            .arg(OUTBOX)
            .arg(ADDRESSES)
            .arg(LIMIT)
            .arg(0)
            .arg(0)
            .arg("bare")
            .arg(0)
            .arg("")
            .arg(jobs.len());
        for Job { batch, .. } in &jobs {
            call.arg(&batch.seed).arg(0).arg(batch.ids.len()).arg("s");
        }
        for Job { batch, .. } in &jobs {
            call.arg(&batch.ids);
        }
        // Whoever waits is told by the end of its channel.
        let Ok(answer) = call.query_async::<Vec<Value>>(&mut redis).await else { continue };
        let Some(Value::BulkString(states)) = answer.first() else { continue };
        let mut states = states.as_slice();
        for job in jobs {
            let Some((own, rest)) = states.split_at_checked(job.batch.ids.len()) else { break };
            states = rest;
            events.publish(job, own).await;
        }
    }
}

/// Settles what is acknowledged.
pub(crate) async fn settle(
    script: Loaded,
    mut acknowledged: UnboundedReceiver<Batch>,
    mut redis: MultiplexedConnection,
) {
    while let Some(batches) = drain(&mut acknowledged, |batch| batch).await {
        let mut call = script.call();
        call.arg(1).arg(OUTBOX);
        for batch in &batches {
            call.arg(&batch.ids);
        }
        for batch in &batches {
            for index in 0..batch.ids.len() {
                call.arg(batch.token(index));
            }
        }
        // What stays in the outbox shows in the rig, which waits until it is empty.
        let _settled = call.query_async::<usize>(&mut redis).await;
    }
}

/// What is queued, but for less than a step more than one.
async fn drain<T>(queue: &mut UnboundedReceiver<T>, batch: impl Fn(&T) -> &Batch) -> Option<Vec<T>> {
    let first = queue.recv().await?;
    let mut ids = batch(&first).ids.len();
    let mut drained = vec![first];
    while ids < STEP
        && let Ok(next) = queue.try_recv()
    {
        ids += batch(&next).ids.len();
        drained.push(next);
    }
    Some(drained)
}
