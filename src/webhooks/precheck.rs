//! What a head alone can fail at, before anything of the body is read.

use std::{future::ready, sync::Arc};

use warp::http::HeaderMap;

use super::{Now, request::Request};
use crate::{
    admission::{AdmissionError, Allowance},
    reply::Refusal,
    shutdown::Phase,
    signature::SignatureFailure,
};

/// Memory up to which a head is nothing beside its connection. That of `EspoCRM`'s is 4 KiB.
const SMALL_HEAD: usize = 8 * 1024;
/// Memory of a head, as a multiple of its bytes: what hyper read, what it made of it, and the copy for the signature.
const HEAD_TIMES: usize = 3;
/// Memory of each line of a head besides: its places in the tables of both.
const HEAD_LINE: usize = 320;

/// Looks at the head. Proves: the process takes requests, the head carries a signature that could be good, and the memory
/// of a long head is taken from the budget.
pub(super) fn precheck(request: Arc<Request>) -> Now<(Arc<Request>, Allowance)> {
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
    if weight > SMALL_HEAD {
        allowance.reserve_for_anybody(weight)?;
    }
    Ok(allowance)
}

/// Memory that a head takes for as long as its request lasts.
fn memory_of(headers: &HeaderMap) -> usize {
    let bytes: usize = headers.iter().map(|(name, value)| name.as_str().len() + value.len()).sum();
    HEAD_TIMES * bytes + HEAD_LINE * headers.len()
}

/// Counts a request that is not authenticated.
pub(super) fn unauthenticated(request: &Request, failure: SignatureFailure) -> Refusal {
    request.metrics.unauthenticated(failure);
    let scheme = request.webhooks.verifiers.of(&request.route).schemes().next().unwrap_or("none");
    Refusal::Unauthenticated { failure, scheme }
}
