//! A request with a route, and what is proven of it on its way.

use std::{
    fmt,
    future::ready,
    sync::{Arc, OnceLock},
};

use bytes::Bytes;
use tokio::{sync::OwnedSemaphorePermit, time::Instant};
use warp::{
    Rejection,
    http::{HeaderMap, Method, StatusCode, header},
    path::FullPath,
};

use super::{Immediate, Webhooks};
use crate::{
    admission::{Allowance, Permit},
    event::TokenSeed,
    metrics::RouteMetrics,
    reply::Refusal,
    route::Route,
    signature::Verified,
    traces::{Began, ReceivedSpan, Traceparent},
};

/// Characters of an unknown path that are shown.
const MAX_SHOWN_PATH: usize = 200;

/// A request to the path of a route, and what is counted and shown of it.
pub(super) struct Request {
    pub(super) webhooks: Arc<Webhooks>,
    pub(super) route: Arc<Route>,
    pub(super) metrics: Arc<RouteMetrics>,
    pub(super) headers: HeaderMap,
    pub(super) framing: Framing,
    pub(super) at: Instant,
    method: &'static str,
    began: Option<Began>,
    traceparent: Option<Traceparent>,
    seed: OnceLock<TokenSeed>,
    body_bytes: OnceLock<usize>,
}

/// All of the body is here, in memory from the budget.
#[derive(Debug)]
pub(super) struct BodyReceived {
    pub(super) request: Arc<Request>,
    pub(super) allowance: Allowance,
    pub(super) body: Bytes,
}

/// The request holds a permit, and has the seed of its tokens.
#[derive(Debug)]
pub(super) struct RequestAdmitted {
    pub(super) received: BodyReceived,
    pub(super) permit: Permit,
    pub(super) seed: TokenSeed,
}

/// The sender knows a secret of the route, or the route asks for none.
#[derive(Debug)]
pub(super) struct SenderVerified {
    pub(super) request: Arc<Request>,
    pub(super) allowance: Allowance,
    pub(super) permit: Permit,
    pub(super) seed: TokenSeed,
    pub(super) body: Verified,
    /// Held by a large body until it is decoded.
    pub(super) offload: Option<OwnedSemaphorePermit>,
}

/// Finds the route. Proves: the path is that of a route, and the method is POST.
pub(super) fn route(
    webhooks: &Arc<Webhooks>,
    path: &FullPath,
    method: &Method,
    headers: HeaderMap,
) -> Immediate<Arc<Request>> {
    let framing = Framing::of(&headers);
    let Some(route) = webhooks.table.find(path.as_str()) else {
        let refusal = Refusal::UnknownPath { path: path.as_str().chars().take(MAX_SHOWN_PATH).collect() };
        let rejected = RejectedRequest { refusal, request: None, unread: framing.has_body() };
        return ready(Err(warp::reject::custom(rejected)));
    };
    let began = webhooks.tracer.begin();
    // A traceparent that can't be read counts as none.
    let traceparent = began.and_then(|_| headers.get("traceparent")?.to_str().ok()?.parse().ok());
    let request = Arc::new(Request {
        route: Arc::clone(route),
        metrics: Arc::clone(webhooks.metrics.of(route)),
        headers,
        framing,
        at: Instant::now(),
        method: name_of(method),
        began,
        traceparent,
        seed: OnceLock::new(),
        body_bytes: OnceLock::new(),
        webhooks: Arc::clone(webhooks),
    });
    if method == Method::POST {
        return ready(Ok(request));
    }
    let refusal = Refusal::NotPost(request.method);
    ready(Err(request.reject(refusal)))
}

/// The name of a known method. What a sender makes up is shown nowhere.
fn name_of(method: &Method) -> &'static str {
    match method.as_str() {
        "POST" => "POST",
        "GET" => "GET",
        "HEAD" => "HEAD",
        "PUT" => "PUT",
        "PATCH" => "PATCH",
        "DELETE" => "DELETE",
        "OPTIONS" => "OPTIONS",
        _ => "_OTHER",
    }
}

impl fmt::Debug for Request {
    /// Without the headers, which may hold a secret.
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.debug_struct("Request").field("route", &self.route.name()).finish_non_exhaustive()
    }
}

impl Request {
    /// The seed of its tokens, which is its trace id. Made when it is first asked for.
    pub(super) fn seed(&self) -> TokenSeed {
        *self.seed.get_or_init(TokenSeed::now)
    }

    /// All of the body was read.
    pub(super) fn body_read(&self, bytes: usize) {
        // Each body is read once.
        let _first = self.body_bytes.set(bytes);
    }

    /// Counts the answer and ends the span.
    pub(super) fn answered(&self, status: StatusCode, error: Option<&'static str>) {
        let status = status.as_u16();
        self.metrics.answers.answered(status, self.at.elapsed());
        if self.began.is_some() {
            let received = ReceivedSpan {
                seed: self.seed(),
                route: &self.route,
                method: self.method,
                status,
                error,
                body_bytes: self.body_bytes.get().copied(),
                traceparent: self.traceparent,
            };
            self.webhooks.tracer.received(self.began, &received);
        }
    }

    /// Ends the way of the request here.
    pub(super) fn reject(self: &Arc<Self>, refusal: impl Into<Refusal>) -> Rejection {
        let unread = self.framing.has_body() && self.body_bytes.get().is_none();
        warp::reject::custom(RejectedRequest { refusal: refusal.into(), request: Some(Arc::clone(self)), unread })
    }
}

/// What a head says of its body.
#[derive(Debug, Clone, Copy)]
pub(super) struct Framing {
    /// Bytes, where the head says so.
    pub(super) length: Option<u64>,
    /// Whether the body comes in chunks.
    chunked: bool,
}

impl Framing {
    /// hyper has checked the head. A length that can't be read all the same may announce anything.
    fn of(head: &HeaderMap) -> Self {
        let length = head.get(header::CONTENT_LENGTH).map(|length| length.to_str().ok()?.parse().ok());
        match length {
            Some(None) => Self { length: None, chunked: true },
            None | Some(Some(_)) => {
                Self { length: length.flatten(), chunked: head.contains_key(header::TRANSFER_ENCODING) }
            }
        }
    }

    fn has_body(self) -> bool {
        self.chunked || self.length.is_some_and(|length| length > 0)
    }
}

/// A refusal, and the request if it had a route.
#[derive(Debug)]
pub(super) struct RejectedRequest {
    pub(super) refusal: Refusal,
    pub(super) request: Option<Arc<Request>>,
    /// Whether some of its body has not been read.
    pub(super) unread: bool,
}

impl warp::reject::Reject for RejectedRequest {}
