//! The signature, over the bytes of the body as they came.

use std::{sync::Arc, time::SystemTime};

use futures_util::{FutureExt, future::Either};
use warp::Rejection;

use super::{
    NowOrLater,
    decode::decode,
    deliver::deliver,
    now,
    offload::{self, Stopped, is_large},
    precheck::unauthenticated,
    request::{BodyReceived, RequestAdmitted, SenderVerified},
};
use crate::reply::Refusal;

/// Verifies the signature. Proves: the sender knows a secret of the route, or the route asks for none.
pub(super) fn verify(admitted: RequestAdmitted) -> NowOrLater<SenderVerified> {
    if is_large(&admitted.received.body) {
        return Either::Right(offloaded(admitted).boxed());
    }
    let request = Arc::clone(&admitted.received.request);
    now(check(admitted).map_err(|refusal| request.reject(refusal)))
}

fn check(admitted: RequestAdmitted) -> Result<SenderVerified, Refusal> {
    let RequestAdmitted { received: BodyReceived { request, allowance, body }, permit, seed } = admitted;
    let verifier = request.webhooks.verifiers.of(&request.route);
    let body = verifier
        .verify(&request.headers, body, SystemTime::now())
        .map_err(|failure| unauthenticated(&request, failure))?;
    Ok(SenderVerified { request, allowance, permit, seed, body, offload: None })
}

async fn offloaded(admitted: RequestAdmitted) -> Result<SenderVerified, Rejection> {
    let request = Arc::clone(&admitted.received.request);
    let until = admitted.received.allowance.reading_deadline();
    let work = {
        let request = Arc::clone(&request);
        async move {
            let permit = offload::permit(&request, until).await?;
            let step = move || check(admitted).map(|verified| SenderVerified { offload: Some(permit), ..verified });
            offload::run(&request, until, step).await
        }
    };
    offload::outlive_sender(work, go_on).await.map_err(|stopped| stopped.reject(&request))
}

/// The rest of the way of a body whose sender has hung up.
async fn go_on(verified: Result<SenderVerified, Stopped>) {
    if let Ok(verified) = verified
        && let Ok(decoded) = decode(verified).await
    {
        let _nobody_waits = deliver(decoded).await;
    }
}
