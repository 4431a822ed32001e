//! A permit for a request whose body is here.

use futures_util::{FutureExt, future::Either};
use warp::Rejection;

use super::{
    MaybeDeferred, immediate,
    request::{BodyReceived, RequestAdmitted},
};
use crate::admission::{AdmissionError, Permit};

/// Waits for a permit if it has to. Proves: the request is one of at most `server.max_in_flight`.
pub(super) fn permit(received: BodyReceived) -> MaybeDeferred<RequestAdmitted> {
    match received.request.webhooks.limits.permit() {
        Err(AdmissionError::NoPermit { .. }) => Either::Right(wait(received).boxed()),
        permit => immediate(admitted(received, permit)),
    }
}

async fn wait(received: BodyReceived) -> Result<RequestAdmitted, Rejection> {
    let permit = received.request.webhooks.limits.permit_soon().await;
    admitted(received, permit)
}

fn admitted(received: BodyReceived, permit: Result<Permit, AdmissionError>) -> Result<RequestAdmitted, Rejection> {
    let permit = permit.map_err(|error| received.request.reject(error))?;
    let seed = received.request.seed();
    Ok(RequestAdmitted { received, permit, seed })
}
