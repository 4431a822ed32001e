//! The signature, over the bytes of the body as they came.

use std::{sync::Arc, time::SystemTime};

use futures_util::{FutureExt, future::Either};
use warp::Rejection;

use super::{
    MaybeDeferred,
    decode::decode,
    deliver::deliver,
    immediate,
    offload::{self, Stopped, is_large},
    precheck::unauthenticated,
    request::{BodyReceived, Request, RequestAdmitted, SenderVerified},
};
use crate::{
    admission::{Allowance, Permit},
    quarantine::{Captured, Quarantine},
    reply::Refusal,
};

/// Verifies the signature. Proves: the sender knows a secret of the route, or the route asks for none.
pub(super) fn verify(admitted: RequestAdmitted) -> MaybeDeferred<SenderVerified> {
    if is_large(&admitted.received.body) {
        return Either::Right(offloaded(admitted).boxed());
    }
    let request = Arc::clone(&admitted.received.request);
    match check(admitted) {
        Ok(verified) => immediate(Ok(verified)),
        Err(unverified) if unverified.captured.is_none() => immediate(Err(request.reject(unverified.refusal))),
        // Boxed: the rare branch would enlarge every request's future.
        Err(unverified) => Either::Right(async move { Err(request.reject(unverified.keep(&request).await)) }.boxed()),
    }
}

/// Not let in.
struct Unverified {
    refusal: Refusal,
    /// What of it is kept, and what it holds until then.
    captured: Option<Box<(Captured, Allowance, Permit)>>,
}

impl Unverified {
    /// Keeps what is to be kept. The answer waits for that: this may have been the last attempt.
    async fn keep(self, request: &Request) -> Refusal {
        if let (Some(quarantine), Some(captured)) = (&request.webhooks.quarantine, self.captured) {
            let (captured, allowance, permit) = *captured;
            quarantine.keep(&request.route, captured, (allowance, permit)).await;
        }
        self.refusal
    }
}

fn check(admitted: RequestAdmitted) -> Result<SenderVerified, Unverified> {
    let RequestAdmitted { received: BodyReceived { request, allowance, body }, permit, seed } = admitted;
    let verifier = request.webhooks.verifiers.of(&request.route);
    match verifier.verify(&request.headers, body.clone(), SystemTime::now()) {
        Ok(body) => Ok(SenderVerified { request, allowance, permit, seed, body, offload: None }),
        Err(failure) => {
            let refusal = unauthenticated(&request, failure);
            let quarantine = request.webhooks.quarantine.as_ref();
            let captured = quarantine
                .and_then(|_| Quarantine::capture(&request.route, verifier, &request.headers, &body, failure));
            Err(Unverified { refusal, captured: captured.map(|captured| Box::new((captured, allowance, permit))) })
        }
    }
}

async fn offloaded(admitted: RequestAdmitted) -> Result<SenderVerified, Rejection> {
    let request = Arc::clone(&admitted.received.request);
    let until = admitted.received.allowance.reading_deadline();
    let work = {
        let request = Arc::clone(&request);
        async move {
            let permit = offload::permit(&request, until).await?;
            // Failing is an outcome, too: it may have to be kept.
            match offload::run(&request, until, move || Ok((check(admitted), permit))).await? {
                (Ok(verified), permit) => Ok(SenderVerified { offload: Some(permit), ..verified }),
                (Err(unverified), permit) => {
                    drop(permit);
                    Err(Stopped::from(unverified.keep(&request).await))
                }
            }
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
