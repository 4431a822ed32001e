//! The webhooks' side: warp filters from a request to a batch, and the answer to the sender.
//!
//! Everything a sender is told is decided in `status`, one match over every way a request can end,
//! because what a sender does with a status code decides whether a batch is lost.

mod answer;
mod body;
mod limits;
mod reading;
mod refusal;
mod request;

use std::{convert::Infallible, sync::Arc, time::Duration};

use bytes::{Buf, Bytes};
use futures_util::Stream;
use tokio::{
    sync::watch,
    time::{Instant, timeout_at},
};
use tracing::{info, warn};
use warp::{
    Filter, Rejection,
    http::{HeaderMap, HeaderValue, Method, StatusCode, header},
    path::FullPath,
    reply::Response,
};

pub use self::{
    answer::{BadHead, internal_error, last, refuse_head, too_many_connections},
    limits::{InUse, Limits},
};
use self::{
    answer::{answer, refused},
    limits::{Admitted, Arriving},
    reading::{Entrance, Understood, is_large, read_body, weigh_head},
    refusal::{Refusal, shed, status},
    request::{Arrived, Framing, Rejected, name_of},
};
use crate::{
    batch::{Batch, Rejected as RejectedItems},
    dead_letters::DeadLetters,
    event::TokenSeed,
    metrics::Metrics,
    pipeline::{Pipeline, Receipt, Unstoppable},
    route::{Route, RouteTable},
    shutdown::Phase,
    signature::Verifiers,
    traces::Tracer,
};

/// What the pipeline leaves of the deadline for the answer itself.
const ANSWER_RESERVE: Duration = Duration::from_millis(200);
/// Bytes of an unknown path that are shown.
const MAX_SHOWN_PATH: usize = 200;

/// What the filters of all webhooks work with.
pub struct Webhooks {
    /// Paths.
    pub table: Arc<RouteTable>,
    /// Who may send what.
    pub verifiers: Arc<Verifiers>,
    /// Where batches go.
    pub pipeline: Arc<Pipeline>,
    /// Where rejected items and bodies go.
    pub dead_letters: DeadLetters,
    /// What requests may take.
    pub limits: Limits,
    /// Whether the process takes leave.
    pub phase: watch::Receiver<Phase>,
    /// What is counted.
    pub metrics: Metrics,
    /// What is shown.
    pub tracer: Tracer,
}

/// The filters of all webhooks: route, admission, body, signature, batch, pipeline, answer.
#[must_use]
pub fn webhooks(work: Webhooks) -> impl Filter<Extract = (Response,), Error = Infallible> + Clone {
    let work = Arc::new(work);
    let (closing, refusals) = (work.phase.clone(), Arc::clone(&work));
    let head = warp::path::full().and(warp::method()).and(warp::header::headers_cloned());
    // One filter for all the rest: what goes from one to the next is moved, and moved again.
    head.and(warp::body::stream())
        .and_then(move |path: FullPath, method: Method, headers: HeaderMap, body| {
            let work = Arc::clone(&work);
            // Boxed, or each filter around it would move the room for all of it, several times a request.
            Box::pin(async move {
                let mut request = find_route(&work, &path, &method, &headers)?;
                match serve(&work, &mut request, headers, body).await {
                    Ok(receipt) => {
                        let answer = answer(&request.route, receipt);
                        request.answered(answer.status(), None, &work.tracer);
                        Ok(answer)
                    }
                    Err(refusal) => Err(request.reject(refusal)),
                }
            })
        })
        .recover(move |rejection: Rejection| {
            std::future::ready(Ok::<_, Infallible>(refuse(&rejection, &refusals.metrics, &refusals.tracer)))
        })
        .unify()
        .map(move |response: Response| if *closing.borrow() == Phase::Serving { response } else { last(response) })
}

/// The route of a path, for POST.
fn find_route(work: &Webhooks, path: &FullPath, method: &Method, headers: &HeaderMap) -> Result<Arrived, Rejection> {
    let framing = Framing::of(headers);
    let Some(route) = work.table.find(path.as_str()) else {
        let refusal = Refusal::UnknownPath { path: path.as_str().chars().take(MAX_SHOWN_PATH).collect() };
        return Err(warp::reject::custom(Rejected { refusal, request: None, unread: framing.has_body() }));
    };
    let began = work.tracer.begin();
    // One that can't be read is like none at all.
    let traceparent = began.and_then(|_| headers.get("traceparent")?.to_str().ok()?.parse().ok());
    let arrived = Arrived {
        route: Arc::clone(route),
        metrics: Arc::clone(work.metrics.of(route)),
        method: name_of(method),
        at: Instant::now(),
        began,
        traceparent,
        framing,
        seed: None,
        body_bytes: None,
    };
    if method == Method::POST {
        return Ok(arrived);
    }
    let refusal = Refusal::NotPost(arrived.method);
    Err(arrived.reject(refusal))
}

/// Takes a request through; what is known of it along the way is noted in it.
async fn serve(
    work: &Arc<Webhooks>,
    request: &mut Arrived,
    headers: HeaderMap,
    body: impl Stream<Item = Result<impl Buf, warp::Error>>,
) -> Result<Receipt, Refusal> {
    if *work.phase.borrow() >= Phase::Refusing {
        return Err(Refusal::Draining);
    }
    let Arrived { route, metrics, framing, seed, body_bytes, .. } = request;
    let verifiers = Arc::clone(&work.verifiers);
    let entrance = Entrance { verifiers, route: Arc::clone(route), metrics: Arc::clone(metrics), headers };
    entrance.announced()?;
    let mut arriving = work.limits.arrived(request.at);
    weigh_head(&entrance.headers, &mut arriving.held)?;
    let body = read_body(&work.limits, &mut arriving, framing.length, body).await?;
    *body_bytes = Some(body.len());
    let place = match work.limits.admit() {
        // Boxed for the sake of all others.
        Err(Refusal::TooManyRequests { .. }) => Box::pin(work.limits.admit_soon()).await?,
        place => place?,
    };
    let admitted = Admitted { arriving, place };
    let seed = *seed.insert(TokenSeed::now());
    let aside = is_large(&body);
    let done = take_in(Arc::clone(work), entrance, body, admitted, seed, aside);
    // While it is read aside its sender may hang up; a body that is all here is worked on to its end.
    if aside { Unstoppable::new(done).await } else { done.await }
}

/// What is done with a body that is all here.
async fn take_in(
    work: Arc<Webhooks>,
    entrance: Entrance,
    body: Bytes,
    admitted: Admitted,
    seed: TokenSeed,
    aside: bool,
) -> Result<Receipt, Refusal> {
    let Webhooks { pipeline, dead_letters, limits, .. } = &*work;
    let (route, metrics) = (Arc::clone(&entrance.route), Arc::clone(&entrance.metrics));
    let understood = if aside {
        // Boxed for the sake of all others.
        Box::pin(entrance.aside(body, admitted, limits)).await
    } else {
        entrance.at_once(body, admitted)
    };
    let Understood { admitted, body, batch } = understood?;
    let batch = batch.map_err(Refusal::Malformed).inspect_err(|refusal| {
        metrics.buried_body(status(refusal).1);
        dead_letters.bury(&route, [(status(refusal).1, body.bytes().clone())]);
    })?;
    let rejected = batch.rejected().clone();
    // While the batch is on its way, the body is kept only for the items that will be buried. What it took of the
    // budget stays taken: for the events, which are not weighed.
    let body = (rejected.count() > 0).then_some(body);
    let receipt = process(pipeline, Arc::clone(&route), batch, seed, admitted, limits.request_deadline).await?;
    if let Some(body) = body {
        metrics.buried_items(&rejected);
        bury(dead_letters, &route, &rejected, body.bytes());
    }
    Ok(receipt)
}

/// Keeps the rejected items of a batch that is done.
fn bury(dead_letters: &DeadLetters, route: &Route, rejected: &RejectedItems, body: &Bytes) {
    let items = rejected.places().iter().map(|(reason, place)| (reason.code(), body.slice(place.clone())));
    dead_letters.bury(route, items);
}

async fn process(
    pipeline: &Arc<Pipeline>,
    route: Arc<Route>,
    batch: Batch,
    seed: TokenSeed,
    Admitted { arriving: Arriving { deadline, held, .. }, place }: Admitted,
    allowed: Duration,
) -> Result<Receipt, Refusal> {
    let work = pipeline.run(route, batch, seed, deadline - ANSWER_RESERVE, (held, place));
    match timeout_at(deadline - ANSWER_RESERVE / 4, work).await {
        Ok(outcome) => outcome.map_err(Refusal::NotDone),
        Err(_elapsed) => Err(Refusal::Deadline(allowed)),
    }
}

fn refuse(rejection: &Rejection, metrics: &Metrics, tracer: &Tracer) -> Response {
    let unforeseen;
    let Rejected { refusal, request, unread } = if let Some(rejected) = rejection.find::<Rejected>() {
        rejected
    } else {
        unforeseen = Rejected { refusal: Refusal::Internal(format!("{rejection:?}")), request: None, unread: true };
        &unforeseen
    };
    let (code, error) = status(refusal);
    let message = refusal.to_string();
    let (status, route) = (code.as_u16(), request.as_ref().map(|request| request.route.name()));
    match request {
        Some(request) => request.answered(code, Some(error), tracer),
        None => metrics.elsewhere().answered_at_once(status),
    }
    if let Some(reason) = shed(refusal) {
        metrics.shed(reason);
    }
    // Anybody can ask for anything; only what happens to a webhook is worth a warning.
    let webhook = route.is_some() && !matches!(refusal, Refusal::NotPost(_));
    if webhook || code.is_server_error() {
        warn!(status, code = error, route, "request refused: {message}");
    } else {
        info!(status, code = error, "request refused: {message}");
    }
    let mut response = refused(code, error, &message);
    // What is unread of a body is thrown away and the connection ends: a client that would use it again has to
    // know, above all an ingress, which would make a final 502 of the connection that is gone.
    if *unread {
        response = last(response);
    }
    match code {
        StatusCode::UNAUTHORIZED => {
            if let Refusal::Unauthenticated { scheme, .. } = refusal {
                response.headers_mut().insert(header::WWW_AUTHENTICATE, HeaderValue::from_static(scheme));
            }
        }
        StatusCode::METHOD_NOT_ALLOWED => {
            response.headers_mut().insert(header::ALLOW, HeaderValue::from_static("POST"));
        }
        _ => {}
    }
    response
}
