//! From a batch to its receipt.

use std::{sync::Arc, time::Duration};

use futures_util::FutureExt;
use tokio::time::timeout_at;
use warp::Rejection;

use super::{
    Later,
    offload::is_large,
    request::{Request, SenderVerified},
};
use crate::{
    batch::Batch,
    pipeline::{Receipt, Unstoppable},
    reply::Refusal,
};

/// What the pipeline leaves of the deadline for the answer itself.
const ANSWER_RESERVE: Duration = Duration::from_millis(200);

/// Claims and publishes. Proves: every valid id of the batch is done. Keeps rejected items as dead letters.
pub(super) fn deliver((verified, batch): (SenderVerified, Batch)) -> Later<(Arc<Request>, Receipt)> {
    let large = is_large(verified.body.bytes());
    let work = run(verified, batch);
    // The sender of a large body may have hung up already. All of what it sent is worked on to its end.
    if large { Unstoppable::new(work).boxed() } else { work.boxed() }
}

async fn run(verified: SenderVerified, batch: Batch) -> Result<(Arc<Request>, Receipt), Rejection> {
    let SenderVerified { request, allowance, permit, seed, body, offload: _ } = verified;
    let rejected = batch.rejected().clone();
    // The body is kept only for the items that become dead letters. What it took of the budget stays taken, for the
    // events, which are not weighed.
    let body = (rejected.count() > 0).then_some(body);
    let deadline = allowance.deadline();
    let pipeline = &request.webhooks.pipeline;
    let held = (allowance, permit);
    let work = pipeline.run(Arc::clone(&request.route), batch, seed, deadline - ANSWER_RESERVE, held);
    let receipt = match timeout_at(deadline - ANSWER_RESERVE / 4, work).await {
        Ok(outcome) => outcome.map_err(|failure| request.reject(failure))?,
        Err(_elapsed) => return Err(request.reject(Refusal::Deadline(request.webhooks.limits.request_deadline()))),
    };
    if let Some(body) = body {
        request.metrics.buried_items(&rejected);
        let items = rejected.places().iter().map(|(reason, place)| (reason.code(), body.bytes().slice(place.clone())));
        request.webhooks.dead_letters.bury(&request.route, items);
    }
    Ok((request, receipt))
}
