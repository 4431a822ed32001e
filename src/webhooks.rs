//! The way of a webhook: a chain of named warp filters from a request to its answer.
//!
//! Each filter proves one thing and hands it on, or rejects the request with a `RejectedRequest`. The permit
//! comes after the body: a sender of heads alone holds none. A request keeps the configuration it began with to its end. If the sender hangs up, warp drops the chain where it is; from
//! the moment that a large body is offloaded, and for every body from its claim on, the work goes on by itself.

mod answer;
mod body;
mod buffer;
mod decode;
mod deliver;
mod offload;
mod permit;
mod precheck;
mod request;
#[cfg(test)]
mod tests;
mod verify;

use std::{
    convert::Infallible,
    fmt,
    future::{Ready, ready},
    sync::Arc,
};

use futures_util::future::{BoxFuture, Either};
use tokio::sync::watch;
use warp::{
    Filter, Rejection,
    http::{HeaderMap, Method},
    path::FullPath,
    reply::Response,
};

use self::{
    answer::{close_when_leaving, refuse, reply},
    body::body,
    decode::decode,
    deliver::deliver,
    permit::permit,
    precheck::precheck,
    request::route,
    verify::verify,
};
use crate::{
    admission::Limits, dead_letters::DeadLetters, delivery::Delivery, metrics::Metrics, quarantine::Quarantine,
    route::RouteTable, shutdown::Phase, signature::Verifiers, traces::Tracer,
};

/// What the filters of all webhooks work with, under one configuration.
pub struct Webhooks {
    /// Paths.
    pub table: Arc<RouteTable>,
    /// Who may send what.
    pub verifiers: Arc<Verifiers>,
    /// Where batches go.
    pub delivery: Arc<Delivery>,
    /// Where rejected items and bodies go.
    pub dead_letters: DeadLetters,
    /// Where bodies go whose signature was wrong, if a route keeps them.
    pub quarantine: Option<Quarantine>,
    /// What requests may take.
    pub limits: Limits,
    /// How far the process is.
    pub phase: watch::Receiver<Phase>,
    /// What is counted.
    pub metrics: Metrics,
    /// Where spans go.
    pub tracer: Tracer,
}

impl fmt::Debug for Webhooks {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.debug_struct("Webhooks").finish_non_exhaustive()
    }
}

/// A filter that never waits.
type Now<T> = Ready<Result<T, Rejection>>;
/// A filter that waits. Boxed: a chain of warp filters moves its future at each step, so that future has to be small.
type Later<T> = BoxFuture<'static, Result<T, Rejection>>;
/// A filter that rarely waits.
type NowOrLater<T> = Either<Now<T>, Later<T>>;

fn now<T>(outcome: Result<T, Rejection>) -> NowOrLater<T> {
    Either::Left(ready(outcome))
}

/// The filters of all webhooks. Each request works with what is in force `now`, when its head is here.
#[must_use]
pub fn webhooks(
    now: impl Fn() -> Arc<Webhooks> + Clone + Send + Sync + 'static,
) -> impl Filter<Extract = (Response,), Error = Infallible> + Clone {
    let (refusing, leaving) = (now.clone(), now.clone());
    warp::path::full()
        .and(warp::method())
        .and(warp::header::headers_cloned())
        .and_then(move |path: FullPath, method: Method, headers: HeaderMap| route(&now(), &path, &method, headers))
        .and_then(precheck)
        .and(warp::body::stream())
        .and_then(body)
        .and_then(permit)
        .and_then(verify)
        .and_then(decode)
        .and_then(deliver)
        .map(reply)
        .recover(move |rejection: Rejection| ready(Ok::<_, Infallible>(refuse(&refusing(), &rejection))))
        .unify()
        .map(move |response: Response| close_when_leaving(&leaving(), response))
}
