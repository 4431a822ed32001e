//! The ids of a body.

use std::sync::Arc;

use futures_util::{FutureExt, future::Either};
use warp::Rejection;

use super::{
    MaybeDeferred,
    deliver::deliver,
    immediate,
    offload::{self, Stopped, is_large},
    request::SenderVerified,
};
use crate::{
    admission::Allowance,
    batch::{Batch, BatchError},
    failpoint,
    reply::Refusal,
    signature::Verified,
};

/// Reads the ids. Proves: the body is a batch. Keeps one that can never be processed as a dead letter.
pub(super) fn decode(verified: SenderVerified) -> MaybeDeferred<(SenderVerified, Batch)> {
    if is_large(verified.body.bytes()) {
        return Either::Right(offloaded(verified).boxed());
    }
    let request = Arc::clone(&verified.request);
    immediate(read(verified).map_err(|refusal| request.reject(refusal)))
}

fn read(mut verified: SenderVerified) -> Result<(SenderVerified, Batch), Refusal> {
    let SenderVerified { request, allowance, body, .. } = &mut verified;
    match read_ids(body, allowance)? {
        Ok(batch) => {
            verified.offload = None;
            Ok((verified, batch))
        }
        Err(error) => {
            request.metrics.dead_body(error.code());
            request.webhooks.dead_letters.keep(&request.route, [(error.code(), body.bytes().clone())]);
            Err(error.into())
        }
    }
}

/// Memory for the batch comes from the budget. What only the reading takes goes back.
fn read_ids(body: &Verified, allowance: &mut Allowance) -> Result<Result<Batch, BatchError>, Refusal> {
    failpoint::panic_with("decode", body.bytes());
    let mut taken = 0;
    let batch = Batch::parse_within(body.bytes(), |bytes| {
        taken += bytes;
        allowance.reserve(bytes)
    })?;
    let kept = batch.as_ref().map_or(0, Batch::allocated_bytes);
    allowance.release(taken.saturating_sub(kept));
    Ok(batch)
}

async fn offloaded(verified: SenderVerified) -> Result<(SenderVerified, Batch), Rejection> {
    let request = Arc::clone(&verified.request);
    let until = verified.allowance.reading_deadline();
    let work = {
        let request = Arc::clone(&request);
        async move { offload::run(&request, until, move || read(verified)).await }
    };
    offload::outlive_sender(work, go_on).await.map_err(|stopped| stopped.reject(&request))
}

/// The rest of the way of a body whose sender has hung up.
async fn go_on(decoded: Result<(SenderVerified, Batch), Stopped>) {
    if let Ok(decoded) = decoded {
        let _nobody_waits = deliver(decoded).await;
    }
}
