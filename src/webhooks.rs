//! A chain of named warp filters, from a request to its response.
//!
//! Each filter proves one thing and hands it on, or rejects the request with a `RejectedRequest`. The permit comes after the
//! body: a sender of heads alone holds none. A request keeps the configuration it began with to its end.
//!
//! If the sender hangs up, warp drops the chain where it is. But a large body is worked on to its end once it is offloaded, and
//! every body once its claim has begun.

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
    answer::{close_when_shutting_down, refuse, reply},
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
    /// The routes, found by their paths.
    pub table: Arc<RouteTable>,
    /// Verifies signatures, by route.
    pub verifiers: Arc<Verifiers>,
    /// Claims and publishes batches.
    pub delivery: Arc<Delivery>,
    /// Keeps rejected items and bodies.
    pub dead_letters: DeadLetters,
    /// Keeps bodies with a wrong signature; `None` if no route does.
    pub quarantine: Option<Quarantine>,
    /// Memory budget, permits and deadlines of requests.
    pub limits: Limits,
    /// Whether the process serves or shuts down.
    pub phase: watch::Receiver<Phase>,
    /// Counters of routes and refusals.
    pub metrics: Metrics,
    /// Makes spans, if `tracing.otlp_endpoint` is set.
    pub tracer: Tracer,
}

impl fmt::Debug for Webhooks {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.debug_struct("Webhooks").finish_non_exhaustive()
    }
}

/// The future of a filter that never waits.
type Immediate<T> = Ready<Result<T, Rejection>>;
/// The future of a filter that waits. Boxed: a chain of warp filters moves its future at each step, so it has to be small.
type Deferred<T> = BoxFuture<'static, Result<T, Rejection>>;
/// The future of a filter that rarely waits.
type MaybeDeferred<T> = Either<Immediate<T>, Deferred<T>>;

fn immediate<T>(outcome: Result<T, Rejection>) -> MaybeDeferred<T> {
    Either::Left(ready(outcome))
}

/// The filters of all webhooks. `in_force` is called when a request's head is here; the request keeps what it returns.
#[must_use]
pub fn webhooks(
    in_force: impl Fn() -> Arc<Webhooks> + Clone + Send + Sync + 'static,
) -> impl Filter<Extract = (Response,), Error = Infallible> + Clone {
    let (refusing, closing) = (in_force.clone(), in_force.clone());
    warp::path::full()
        .and(warp::method())
        .and(warp::header::headers_cloned())
        .and_then(move |path: FullPath, method: Method, headers: HeaderMap| route(&in_force(), &path, &method, headers))
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
        .map(move |response: Response| close_when_shutting_down(&closing(), response))
}
