//! Every way in which a request does not end well, and what its sender is told.

use std::time::Duration;

use warp::http::StatusCode;

use crate::{batch::BatchError, metrics::Shed, pipeline::Failure, signature};

/// Every way in which a request does not end well.
#[derive(Debug, thiserror::Error)]
pub(super) enum Refusal {
    #[error("no webhook is served at {path:?}; check it for case, slashes and encoding")]
    UnknownPath { path: String },
    #[error("webhooks come as POST, not as {0}")]
    NotPost(&'static str),
    #[error("the body has more than {limit} bytes (server.max_body_bytes)")]
    BodyTooLarge { limit: usize },
    #[error("the body did not arrive in time; send it again")]
    BodyTimeout,
    #[error("the body could not be read: {0}")]
    BodyUnreadable(String),
    #[error("{}", match .failure {
        signature::Failure::Missing => "the request carries no signature of a kind that this webhook asks for",
        _ => "the signature was not accepted; check the secret and the webhook's id on both sides",
    })]
    Unauthenticated {
        failure: signature::Failure,
        /// What the route asks for.
        scheme: &'static str,
    },
    #[error(
        "{bytes} bytes of the body came in {pieces} pieces, which costs too much; send larger chunks, or its length (Content-Length)"
    )]
    TooManyPieces { pieces: usize, bytes: usize },
    #[error(transparent)]
    Malformed(BatchError),
    #[error("more than {limit} requests at once (server.max_in_flight); send it again later")]
    TooManyRequests { limit: u32 },
    #[error("more than {limit} bytes of bodies at once (server.max_buffered_bytes); send it again later")]
    TooManyBytes { limit: usize },
    #[error("no memory for the body: {0}; send it again later")]
    NoMemory(std::io::Error),
    #[error("this instance is shutting down; send it again")]
    Draining,
    #[error("not done, send it again later: {0}")]
    NotDone(Failure),
    #[error("the deadline of {0:?} is over (server.request_deadline); send it again later")]
    Deadline(Duration),
    #[error("internal error: {0}; send it again later")]
    Internal(String),
}

/// What the sender is told. `EspoCRM` takes 2xx and 3xx as delivered, comes back up to three times after
/// 401, 403, 404, 405, 408, 500 and 503, and gives the batch up for good after everything else.
pub(super) const fn status(refusal: &Refusal) -> (StatusCode, &'static str) {
    match refusal {
        // Comes back, and by then the configuration may be right.
        Refusal::UnknownPath { .. } => (StatusCode::NOT_FOUND, "unknown_path"),
        Refusal::NotPost(_) => (StatusCode::METHOD_NOT_ALLOWED, "method_not_allowed"),
        // Comes back: the network was slow.
        Refusal::BodyTimeout => (StatusCode::REQUEST_TIMEOUT, "body_timeout"),
        // Comes back, and by then the secrets may be the same on both sides.
        Refusal::Unauthenticated { failure: signature::Failure::Missing, .. } => {
            (StatusCode::UNAUTHORIZED, "signature_missing")
        }
        Refusal::Unauthenticated { .. } => (StatusCode::UNAUTHORIZED, "signature_wrong"),
        // Gives up: the same bytes would never do.
        Refusal::BodyTooLarge { .. } => (StatusCode::PAYLOAD_TOO_LARGE, "body_too_large"),
        Refusal::BodyUnreadable(_) => (StatusCode::BAD_REQUEST, "body_unreadable"),
        Refusal::Malformed(BatchError::Empty) => (StatusCode::BAD_REQUEST, "body_empty"),
        Refusal::Malformed(BatchError::NeitherArrayNorObject) => (StatusCode::BAD_REQUEST, "neither_array_nor_object"),
        Refusal::Malformed(BatchError::NotJson { .. }) => (StatusCode::BAD_REQUEST, "not_json"),
        // Comes back: nothing is wrong with the batch.
        Refusal::TooManyRequests { .. } => (StatusCode::SERVICE_UNAVAILABLE, "too_many_requests"),
        // The batch may be a good one, and its sender may be told to write it in another way.
        Refusal::TooManyPieces { .. } => (StatusCode::SERVICE_UNAVAILABLE, "too_many_pieces"),
        Refusal::TooManyBytes { .. } => (StatusCode::SERVICE_UNAVAILABLE, "too_many_bytes"),
        Refusal::NoMemory(_) => (StatusCode::SERVICE_UNAVAILABLE, "no_memory"),
        Refusal::Draining => (StatusCode::SERVICE_UNAVAILABLE, "shutting_down"),
        Refusal::NotDone(Failure::Unclaimed(_)) => (StatusCode::SERVICE_UNAVAILABLE, "pending_store_unavailable"),
        Refusal::NotDone(Failure::OutboxFull { .. }) => (StatusCode::SERVICE_UNAVAILABLE, "outbox_full"),
        Refusal::NotDone(Failure::Unpublished { .. }) => (StatusCode::SERVICE_UNAVAILABLE, "not_published"),
        Refusal::Deadline(_) => (StatusCode::SERVICE_UNAVAILABLE, "deadline"),
        Refusal::NotDone(Failure::Panicked) | Refusal::Internal(_) => {
            (StatusCode::SERVICE_UNAVAILABLE, "internal_error")
        }
    }
}

/// Whether the request was sent away to protect the process, and what from.
pub(super) const fn shed(refusal: &Refusal) -> Option<Shed> {
    match refusal {
        Refusal::TooManyRequests { .. } => Some(Shed::Requests),
        Refusal::TooManyBytes { .. } | Refusal::NoMemory(_) => Some(Shed::Bytes),
        Refusal::NotDone(Failure::OutboxFull { .. }) => Some(Shed::Outbox),
        Refusal::Draining => Some(Shed::Draining),
        _ => None,
    }
}
