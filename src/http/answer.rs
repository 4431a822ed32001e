//! What is written back: the bodies of answers, and those that a listener gives before any filter is asked.

use serde::Serialize;
use tracing::info;
use warp::{
    http::{HeaderValue, StatusCode, header},
    reply::Response,
};

use super::refusal::{Refusal, status};
use crate::{pipeline::Receipt, route::Route};

/// Seconds after which a sender that asks may come back.
const RETRY_AFTER: HeaderValue = HeaderValue::from_static("10");

/// The answer to a batch that is done; the members in their order.
#[derive(Serialize)]
struct Received<'a> {
    status: &'static str,
    action: &'a str,
    new_ids_count: usize,
    total_ids_in_batch: usize,
    #[serde(skip_serializing_if = "is_zero")]
    rejected_items_count: usize,
}

#[expect(clippy::trivially_copy_pass_by_ref, reason = "serde asks for this signature")]
const fn is_zero(number: &usize) -> bool {
    *number == 0
}

/// The answer to every other request.
#[derive(Serialize)]
struct Refused<'a> {
    status: &'static str,
    error: &'a str,
    message: &'a str,
}

/// A refusal. Whoever gets 503 is told when to come back.
pub(super) fn refused(code: StatusCode, error: &str, message: &str) -> Response {
    let mut response = json(code, &Refused { status: "error", error, message });
    if code == StatusCode::SERVICE_UNAVAILABLE {
        response.headers_mut().insert(header::RETRY_AFTER, RETRY_AFTER);
    }
    response
}

/// The last answer of its connection.
#[must_use]
pub fn last(mut response: Response) -> Response {
    response.headers_mut().insert(header::CONNECTION, HeaderValue::from_static("close"));
    response
}

pub(super) fn answer(route: &Route, receipt: Receipt) -> Response {
    json(
        StatusCode::OK,
        &Received {
            status: "received",
            action: route.action(),
            new_ids_count: receipt.new,
            total_ids_in_batch: receipt.total,
            rejected_items_count: receipt.rejected,
        },
    )
}

/// The answer of a listener that has no room for the connection.
#[must_use]
pub fn too_many_connections(limit: usize) -> Response {
    let message = format!("more than {limit} connections at once (server.max_connections); send it again later");
    last(refused(StatusCode::SERVICE_UNAVAILABLE, "too_many_connections", &message))
}

/// The answer to a request that met a bug. A closed connection would be final for some senders.
#[must_use]
pub fn internal_error() -> Response {
    let refusal = Refusal::Internal("see the log".to_owned());
    let (code, error) = status(&refusal);
    refused(code, error, &refusal.to_string())
}

/// What is wrong with a head that hyper serves: two readers may understand it in two ways, the filters can't read it, or
/// it is over a limit.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum BadHead {
    /// `Content-Length` and `Transfer-Encoding` in one head, or two of the first.
    #[error(
        "the request says more than once, or at needless length, how long it is (Content-Length, Transfer-Encoding); send one of them, once"
    )]
    Length,
    /// No `Host`, or more than one.
    #[error("an HTTP/1.1 request has exactly one Host header; send one")]
    Host,
    /// A name and a port, as a proxy is asked for.
    #[error("the request names no path; this is no proxy")]
    NoPath,
    /// More lines than a head may have.
    #[error("the head has {lines} lines, which is more than {limit} (server.max_headers); send fewer headers")]
    TooManyHeaders {
        /// Of this head.
        lines: usize,
        /// Most of one.
        limit: usize,
    },
}

/// The answer of a listener to such a request, which is the last one of its connection.
#[must_use]
pub fn refuse_head(problem: BadHead) -> Response {
    let (code, error) = match problem {
        BadHead::Length => (StatusCode::BAD_REQUEST, "length_unclear"),
        BadHead::Host => (StatusCode::BAD_REQUEST, "host_unclear"),
        BadHead::NoPath => (StatusCode::NOT_FOUND, "unknown_path"),
        BadHead::TooManyHeaders { .. } => (StatusCode::REQUEST_HEADER_FIELDS_TOO_LARGE, "too_many_headers"),
    };
    let message = problem.to_string();
    info!(status = code.as_u16(), code = error, "request refused: {message}");
    last(refused(code, error, &message))
}

fn json(code: StatusCode, body: &impl Serialize) -> Response {
    let body = serde_json::to_vec(body).expect("strings and numbers always serialize");
    // Not warp's own reply of bytes, which gives them another type first.
    let mut response = Response::new(body.into());
    *response.status_mut() = code;
    response.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static("application/json"));
    response
}
