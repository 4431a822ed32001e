//! Checks of the head alone, before anything of the body is read.

use std::{future::ready, sync::Arc};

use warp::http::HeaderMap;

use super::{Immediate, request::Request};
use crate::{
    admission::{AdmissionError, Allowance},
    reply::Refusal,
    shutdown::Phase,
    signature::SignatureFailure,
};

/// Heads up to this size (bytes in memory) are not charged to the budget. `EspoCRM`'s take 4 KiB.
const UNCHARGED_HEAD_BYTES: usize = 8 * 1024;
/// Bytes of memory for each byte of a head: what hyper read, what it made of it, and the copy for the signature.
const MEMORY_PER_BYTE: usize = 3;
/// Bytes of memory for each header besides: its entries in the two header maps.
const MEMORY_PER_HEADER: usize = 320;

/// Looks at the head. Proves: the process takes requests, the head carries a signature that could be good, and the memory
/// of a long head is taken from the budget.
pub(super) fn precheck(request: Arc<Request>) -> Immediate<(Arc<Request>, Allowance)> {
    ready(check(&request).map_err(|refusal| request.reject(refusal)).map(|allowance| (request, allowance)))
}

fn check(request: &Request) -> Result<Allowance, Refusal> {
    if *request.webhooks.phase.borrow() >= Phase::Refusing {
        return Err(AdmissionError::Draining.into());
    }
    let verifier = request.webhooks.verifiers.of(&request.route);
    verifier.precheck(&request.headers).map_err(|failure| unauthenticated(request, failure))?;
    let mut allowance = request.webhooks.limits.begin(request.at);
    let weight = memory_of(&request.headers);
    if weight > UNCHARGED_HEAD_BYTES {
        allowance.reserve_for_anybody(weight)?;
    }
    Ok(allowance)
}

/// Bytes of memory that a head takes for as long as its request lasts.
fn memory_of(headers: &HeaderMap) -> usize {
    let bytes: usize = headers.iter().map(|(name, value)| name.as_str().len() + value.len()).sum();
    MEMORY_PER_BYTE * bytes + MEMORY_PER_HEADER * headers.len()
}

/// Counts a request that is not authenticated.
pub(super) fn unauthenticated(request: &Request, failure: SignatureFailure) -> Refusal {
    request.metrics.unauthenticated(failure);
    let scheme = request.webhooks.verifiers.of(&request.route).schemes().next().unwrap_or("none");
    Refusal::Unauthenticated { failure, scheme }
}
