//! A request that came to the path of a webhook: what is counted and shown of it.

use std::sync::Arc;

use tokio::time::Instant;
use warp::{
    Rejection,
    http::{HeaderMap, Method, StatusCode, header},
};

use super::refusal::Refusal;
use crate::{
    event::TokenSeed,
    metrics::RouteMetrics,
    route::Route,
    traces::{Began, Received, Traceparent, Tracer},
};

/// A request that came to the path of a webhook.
#[derive(Debug, Clone)]
pub(super) struct Arrived {
    pub(super) route: Arc<Route>,
    pub(super) metrics: Arc<RouteMetrics>,
    /// As spans name it.
    pub(super) method: &'static str,
    pub(super) at: Instant,
    pub(super) began: Option<Began>,
    pub(super) traceparent: Option<Traceparent>,
    pub(super) framing: Framing,
    /// Of its tokens, once there are some.
    pub(super) seed: Option<TokenSeed>,
    /// Once all of the body is here.
    pub(super) body_bytes: Option<usize>,
}

/// The name of a method, where it is one that is known: what a sender makes up is shown nowhere.
pub(super) fn name_of(method: &Method) -> &'static str {
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

/// What a head says of its body.
#[derive(Debug, Clone, Copy)]
pub(super) struct Framing {
    /// Bytes, where it says so.
    pub(super) length: Option<u64>,
    /// Whether it comes in chunks.
    pub(super) chunked: bool,
}

impl Framing {
    /// What hyper has checked; what can't be read all the same may announce anything.
    pub(super) fn of(head: &HeaderMap) -> Self {
        let length = head.get(header::CONTENT_LENGTH).map(|length| length.to_str().ok()?.parse().ok());
        match length {
            Some(None) => Self { length: None, chunked: true },
            None | Some(Some(_)) => {
                Self { length: length.flatten(), chunked: head.contains_key(header::TRANSFER_ENCODING) }
            }
        }
    }

    pub(super) fn has_body(self) -> bool {
        self.chunked || self.length.is_some_and(|length| length > 0)
    }
}

/// A refusal, and the request if it had a route.
#[derive(Debug)]
pub(super) struct Rejected {
    pub(super) refusal: Refusal,
    pub(super) request: Option<Arrived>,
    /// Whether some of its body has not been read.
    pub(super) unread: bool,
}

impl warp::reject::Reject for Rejected {}

impl Arrived {
    /// The answer is known: it is counted and shown.
    pub(super) fn answered(&self, status: StatusCode, error: Option<&'static str>, tracer: &Tracer) {
        let status = status.as_u16();
        self.metrics.answers.answered(status, self.at.elapsed());
        if self.began.is_some() {
            let received = Received {
                seed: self.seed.unwrap_or_else(TokenSeed::now),
                route: &self.route,
                method: self.method,
                status,
                error,
                body_bytes: self.body_bytes,
                traceparent: self.traceparent,
            };
            tracer.received(self.began, &received);
        }
    }

    pub(super) fn reject(self, refusal: Refusal) -> Rejection {
        let unread = self.framing.has_body() && self.body_bytes.is_none();
        warp::reject::custom(Rejected { refusal, request: Some(self), unread })
    }
}
