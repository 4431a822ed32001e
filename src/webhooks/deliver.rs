//! From a batch to its receipt.

use std::{sync::Arc, time::Duration};

use futures_util::FutureExt;
use tokio::time::timeout_at;
use warp::Rejection;

use super::{
    Deferred,
    offload::is_large,
    request::{Request, SenderVerified},
};
use crate::{batch::Batch, delivery::Receipt, reply::Refusal, supervision::DetachOnDrop};

/// What delivery leaves of the deadline for the answer itself.
const ANSWER_RESERVE: Duration = Duration::from_millis(200);

/// Claims and publishes. Proves: every valid id of the batch is done. Keeps rejected items as dead letters.
pub(super) fn deliver((verified, batch): (SenderVerified, Batch)) -> Deferred<(Arc<Request>, Receipt)> {
    let large = is_large(verified.body.bytes());
    let work = run(verified, batch);
    // The sender of a large body may have hung up already. All of what it sent is worked on to its end.
    if large { DetachOnDrop::new(work).boxed() } else { work.boxed() }
}

async fn run(verified: SenderVerified, batch: Batch) -> Result<(Arc<Request>, Receipt), Rejection> {
    let SenderVerified { request, allowance, permit, seed, body, offload: _ } = verified;
    request.metrics.came();
    let rejected = batch.rejected().clone();
    // The body is kept only for the items that become dead letters. What it took of the budget stays taken, for the
    // events, which are not weighed.
    let body = (rejected.count() > 0).then_some(body);
    let deadline = allowance.deadline();
    let (delivery, route) = (Arc::clone(&request.webhooks.delivery), Arc::clone(&request.route));
    let held = (allowance, permit);
    // Nothing may stop it between claim and publish, and as long as it works it holds its permit and its memory.
    let work = DetachOnDrop::new(async move {
        let outcome = delivery.deliver(route, batch, seed, deadline - ANSWER_RESERVE).await;
        drop(held);
        outcome
    });
    let receipt = match timeout_at(deadline - ANSWER_RESERVE / 4, work).await {
        Ok(outcome) => outcome.map_err(|failure| request.reject(failure))?,
        Err(_elapsed) => return Err(request.reject(Refusal::Deadline(request.webhooks.limits.request_deadline()))),
    };
    if let Some(body) = body {
        request.metrics.dead_items(&rejected);
        let items = rejected.places().iter().map(|(reason, place)| (reason.code(), body.bytes().slice(place.clone())));
        request.webhooks.dead_letters.keep(&request.route, items);
    }
    Ok((request, receipt))
}
