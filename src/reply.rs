//! Answers to senders: every way in which a request is refused, the one match from outcome to status code, and the
//! bodies of answers.
//!
//! What a sender does with a status code decides whether a batch is lost. Webhooks and listener both answer with
//! this module; it knows neither of them.

use std::{borrow::Cow, time::Duration};

use schemars::JsonSchema;
use serde::Serialize;
use warp::{
    http::{HeaderValue, StatusCode, header},
    reply::Response,
};

use crate::{
    admission::AdmissionError,
    batch::BatchError,
    delivery::{Failure, Receipt},
    event::TokenSeed,
    route::Route,
    signature,
};

/// Seconds after which a sender that asks may come back.
const RETRY_AFTER: HeaderValue = HeaderValue::from_static("10");
/// All that an outsider learns of a transient failure. The log has the reason, under the trace id of the answer.
const TEMPORARILY_UNAVAILABLE: &str = "temporarily unavailable, retry later";

const TOO_MANY_CONNECTIONS: &str = "too_many_connections";
const TOO_MANY_REQUESTS: &str = "too_many_requests";
const TOO_MANY_BYTES: &str = "too_many_bytes";
const OUTBOX_FULL: &str = "outbox_full";
const SHUTTING_DOWN: &str = "shutting_down";

/// Codes of requests that are shed ([`Refusal::shed`]).
pub const SHED: [&str; 5] = [TOO_MANY_CONNECTIONS, TOO_MANY_REQUESTS, TOO_MANY_BYTES, OUTBOX_FULL, SHUTTING_DOWN];

/// Each status code and machine-readable name of a [`Refusal`], by status code. hyper itself also answers 414, to a
/// path over 64 KiB where `server.max_header_bytes` allows so long a head.
pub const REFUSALS: [(StatusCode, &str); 24] = {
    let [empty, neither, not_json] = BatchError::CODES;
    [
        (StatusCode::BAD_REQUEST, empty),
        (StatusCode::BAD_REQUEST, neither),
        (StatusCode::BAD_REQUEST, not_json),
        (StatusCode::BAD_REQUEST, "body_unreadable"),
        (StatusCode::BAD_REQUEST, "length_unclear"),
        (StatusCode::BAD_REQUEST, "host_unclear"),
        (StatusCode::UNAUTHORIZED, "signature_missing"),
        (StatusCode::UNAUTHORIZED, "signature_wrong"),
        (StatusCode::NOT_FOUND, "unknown_path"),
        (StatusCode::METHOD_NOT_ALLOWED, "method_not_allowed"),
        (StatusCode::REQUEST_TIMEOUT, "body_timeout"),
        (StatusCode::PAYLOAD_TOO_LARGE, "body_too_large"),
        (StatusCode::REQUEST_HEADER_FIELDS_TOO_LARGE, "too_many_headers"),
        (StatusCode::SERVICE_UNAVAILABLE, TOO_MANY_CONNECTIONS),
        (StatusCode::SERVICE_UNAVAILABLE, TOO_MANY_REQUESTS),
        (StatusCode::SERVICE_UNAVAILABLE, TOO_MANY_BYTES),
        (StatusCode::SERVICE_UNAVAILABLE, "too_many_pieces"),
        (StatusCode::SERVICE_UNAVAILABLE, "no_memory"),
        (StatusCode::SERVICE_UNAVAILABLE, SHUTTING_DOWN),
        (StatusCode::SERVICE_UNAVAILABLE, "pending_store_unavailable"),
        (StatusCode::SERVICE_UNAVAILABLE, OUTBOX_FULL),
        (StatusCode::SERVICE_UNAVAILABLE, "not_published"),
        (StatusCode::SERVICE_UNAVAILABLE, "deadline"),
        (StatusCode::SERVICE_UNAVAILABLE, "internal_error"),
    ]
};

/// Every way in which a request is refused. As text: the full reason, for the log.
#[derive(Debug, thiserror::Error)]
pub enum Refusal {
    /// `Content-Length` and `Transfer-Encoding` in one head, or two of the first.
    #[error(
        "the request says more than once, or at needless length, how long it is (Content-Length, Transfer-Encoding); send one of them, once"
    )]
    LengthUnclear,
    /// No `Host`, or more than one.
    #[error("an HTTP/1.1 request has exactly one Host header; send one")]
    HostUnclear,
    /// A name and a port, as a proxy is asked for.
    #[error("the request names no path; this is no proxy")]
    NoPath,
    /// More lines than a head may have.
    #[error("the head has {lines} lines, which is more than {limit}; send fewer headers")]
    TooManyHeaders {
        /// Of this head.
        lines: usize,
        /// Most of one.
        limit: usize,
    },
    /// More connections than the listener takes.
    #[error("more than {limit} connections at once ({setting})")]
    TooManyConnections {
        /// Most at once.
        limit: usize,
        /// What sets the limit.
        setting: &'static str,
    },
    /// No route has this path.
    #[error("no webhook is served at {path:?}; check it for case, slashes and encoding")]
    UnknownPath {
        /// Its first characters.
        path: String,
    },
    /// Any method but POST.
    #[error("webhooks come as POST, not as {0}")]
    NotPost(&'static str),
    /// More bytes than a body may have.
    #[error("the body has more than {limit} bytes (server.max_body_bytes)")]
    BodyTooLarge {
        /// Most of one.
        limit: usize,
    },
    /// The body took too long.
    #[error("the body did not arrive in time; send it again")]
    BodyTimeout,
    /// The body broke off, or is no HTTP.
    #[error("the body could not be read: {0}")]
    BodyUnreadable(String),
    /// The body came in tiny pieces.
    #[error(
        "{bytes} bytes of the body came in {pieces} pieces, which costs too much; the sender has to send larger chunks, or its length (Content-Length)"
    )]
    TooManyPieces {
        /// Pieces so far.
        pieces: usize,
        /// Bytes so far.
        bytes: usize,
    },
    /// No signature was good.
    #[error("{failure}")]
    Unauthenticated {
        /// Why.
        failure: signature::SignatureFailure,
        /// A scheme that the route asks for.
        scheme: &'static str,
    },
    /// The body can never be processed.
    #[error(transparent)]
    Malformed(#[from] BatchError),
    /// There is no permit or no memory.
    #[error(transparent)]
    NotAdmitted(#[from] AdmissionError),
    /// Not every event is acknowledged.
    #[error("the batch is not done: {0}")]
    NotDone(#[from] Failure),
    /// The time is over.
    #[error("the deadline of {0:?} is over (server.request_deadline)")]
    Deadline(Duration),
    /// A bug.
    #[error("internal error: {0}")]
    Internal(String),
}

impl Refusal {
    /// Status code and machine-readable name. `EspoCRM` takes 2xx and 3xx as delivered, comes back up to three times after
    /// 401, 403, 404, 405, 408, 500 and 503, and gives the batch up for good after everything else.
    #[must_use]
    pub const fn status(&self) -> (StatusCode, &'static str) {
        match self {
            // Gives up: the request would be ambiguous each time.
            Self::LengthUnclear => (StatusCode::BAD_REQUEST, "length_unclear"),
            Self::HostUnclear => (StatusCode::BAD_REQUEST, "host_unclear"),
            Self::TooManyHeaders { .. } => (StatusCode::REQUEST_HEADER_FIELDS_TOO_LARGE, "too_many_headers"),
            // Comes back, and by then the configuration may be right.
            Self::NoPath | Self::UnknownPath { .. } => (StatusCode::NOT_FOUND, "unknown_path"),
            Self::NotPost(_) => (StatusCode::METHOD_NOT_ALLOWED, "method_not_allowed"),
            // Comes back: the network was slow.
            Self::BodyTimeout => (StatusCode::REQUEST_TIMEOUT, "body_timeout"),
            // Comes back, and by then the secrets may be the same on both sides.
            Self::Unauthenticated { failure: signature::SignatureFailure::Missing, .. } => {
                (StatusCode::UNAUTHORIZED, "signature_missing")
            }
            Self::Unauthenticated { .. } => (StatusCode::UNAUTHORIZED, "signature_wrong"),
            // Gives up: the same bytes would never do.
            Self::BodyTooLarge { .. } => (StatusCode::PAYLOAD_TOO_LARGE, "body_too_large"),
            Self::BodyUnreadable(_) => (StatusCode::BAD_REQUEST, "body_unreadable"),
            Self::Malformed(error) => (StatusCode::BAD_REQUEST, error.code()),
            // Comes back: the batch may be a good one, and its sender may write it in larger pieces by then.
            Self::TooManyPieces { .. } => (StatusCode::SERVICE_UNAVAILABLE, "too_many_pieces"),
            // Comes back: nothing is wrong with the batch.
            Self::TooManyConnections { .. } => (StatusCode::SERVICE_UNAVAILABLE, TOO_MANY_CONNECTIONS),
            Self::NotAdmitted(AdmissionError::NoPermit { .. }) => (StatusCode::SERVICE_UNAVAILABLE, TOO_MANY_REQUESTS),
            Self::NotAdmitted(AdmissionError::NoBudget { .. }) => (StatusCode::SERVICE_UNAVAILABLE, TOO_MANY_BYTES),
            Self::NotAdmitted(AdmissionError::NoMemory(_)) => (StatusCode::SERVICE_UNAVAILABLE, "no_memory"),
            Self::NotAdmitted(AdmissionError::Draining) => (StatusCode::SERVICE_UNAVAILABLE, SHUTTING_DOWN),
            Self::NotDone(Failure::Unclaimed(_)) => (StatusCode::SERVICE_UNAVAILABLE, "pending_store_unavailable"),
            Self::NotDone(Failure::OutboxFull { .. }) => (StatusCode::SERVICE_UNAVAILABLE, OUTBOX_FULL),
            Self::NotDone(Failure::Unpublished { .. } | Failure::AnotherAddress { .. }) => {
                (StatusCode::SERVICE_UNAVAILABLE, "not_published")
            }
            Self::Deadline(_) => (StatusCode::SERVICE_UNAVAILABLE, "deadline"),
            Self::NotDone(Failure::Panicked) | Self::Internal(_) => (StatusCode::SERVICE_UNAVAILABLE, "internal_error"),
        }
    }

    /// The code under which the request counts as shed, if it was refused to protect the process: one of [`SHED`].
    #[must_use]
    pub const fn shed(&self) -> Option<&'static str> {
        match self {
            Self::TooManyConnections { .. } => Some(TOO_MANY_CONNECTIONS),
            Self::NotAdmitted(AdmissionError::NoPermit { .. }) => Some(TOO_MANY_REQUESTS),
            Self::NotAdmitted(AdmissionError::NoBudget { .. } | AdmissionError::NoMemory(_)) => Some(TOO_MANY_BYTES),
            Self::NotAdmitted(AdmissionError::Draining) => Some(SHUTTING_DOWN),
            Self::NotDone(Failure::OutboxFull { .. }) => Some(OUTBOX_FULL),
            _ => None,
        }
    }

    /// For the log, what is wrong with a signature. The sender learns only whether there was one.
    #[must_use]
    pub const fn reason(&self) -> Option<&'static str> {
        match self {
            Self::Unauthenticated { failure, .. } => Some(failure.code()),
            _ => None,
        }
    }

    /// What the sender reads. Nothing of the inside: of a 503 only that it is one, of a wrong signature not what is wrong
    /// with it.
    fn message(&self) -> Cow<'static, str> {
        match self {
            Self::Unauthenticated { failure: signature::SignatureFailure::Missing, .. } => {
                "the request carries no signature of a kind that this webhook asks for".into()
            }
            Self::Unauthenticated { .. } => {
                "the signature was not accepted; check the secret and the webhook's id on both sides".into()
            }
            _ if self.status().0 == StatusCode::SERVICE_UNAVAILABLE => TEMPORARILY_UNAVAILABLE.into(),
            _ => self.to_string().into(),
        }
    }

    /// The answer. `trace_id` is the one under which the reason is logged; a 503 carries it.
    #[must_use]
    pub fn response(&self, trace_id: TokenSeed) -> Response {
        let (code, error) = self.status();
        let unavailable = code == StatusCode::SERVICE_UNAVAILABLE;
        let trace_id = unavailable.then(|| trace_id.to_string());
        let mut response = json(code, &Refused { status: "error", error, message: &self.message(), trace_id });
        let headers = response.headers_mut();
        if unavailable {
            headers.insert(header::RETRY_AFTER, RETRY_AFTER);
        }
        if let Self::Unauthenticated { scheme, .. } = self {
            headers.insert(header::WWW_AUTHENTICATE, HeaderValue::from_static(scheme));
        }
        if let Self::NotPost(_) = self {
            headers.insert(header::ALLOW, HeaderValue::from_static("POST"));
        }
        response
    }
}

/// The body of a 200: the batch is done. The members come in this order.
#[derive(Serialize, JsonSchema)]
pub struct Received<'a> {
    #[schemars(extend("const" = "received"))]
    status: &'static str,
    /// The action of the route.
    action: &'a str,
    /// Ids that this request claimed.
    new_ids_count: usize,
    /// Distinct valid ids of the body.
    total_ids_in_batch: usize,
    /// Items without a valid id. Left out if there is none.
    #[serde(skip_serializing_if = "is_zero")]
    rejected_items_count: usize,
}

#[expect(clippy::trivially_copy_pass_by_ref, reason = "serde asks for this signature")]
const fn is_zero(number: &usize) -> bool {
    *number == 0
}

/// The body of every other answer.
#[derive(Serialize, JsonSchema)]
pub struct Refused<'a> {
    #[schemars(extend("const" = "error"))]
    status: &'static str,
    /// Machine-readable name of what is wrong.
    error: &'a str,
    /// What is wrong, and what to do.
    message: &'a str,
    /// Of a 503: the log has the reason under it.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(with = "String", regex(pattern = "^[0-9a-f]{32}$"))]
    trace_id: Option<String>,
}

/// The answer to a batch that is done.
#[must_use]
pub fn received(route: &Route, receipt: Receipt) -> Response {
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

/// The last answer of its connection.
#[must_use]
pub fn last(mut response: Response) -> Response {
    response.headers_mut().insert(header::CONNECTION, HeaderValue::from_static("close"));
    response
}

fn json(code: StatusCode, body: &impl Serialize) -> Response {
    let body = serde_json::to_vec(body).expect("strings and numbers always serialize");
    // Not warp's own reply of bytes, which sets another type first.
    let mut response = Response::new(body.into());
    *response.status_mut() = code;
    response.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static("application/json"));
    response
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;
    use crate::delivery::{PublishError, StoreError};

    #[test]
    fn a_503_tells_nothing_of_the_inside() {
        let inside = "redis://10.0.0.7:6379";
        let refusals = [
            Refusal::TooManyConnections { limit: 1, setting: inside },
            Refusal::TooManyPieces { pieces: 1, bytes: 1 },
            Refusal::NotAdmitted(AdmissionError::NoPermit { limit: 1 }),
            Refusal::NotAdmitted(AdmissionError::NoMemory(std::io::Error::other(inside))),
            Refusal::NotDone(Failure::OutboxFull { route: inside.to_owned(), unclaimed: 1 }),
            Refusal::NotDone(Failure::Unpublished {
                unconfirmed: 1,
                total: 1,
                last: PublishError::Unavailable(inside.to_owned()),
            }),
            Refusal::Deadline(Duration::from_secs(8)),
            Refusal::Internal(inside.to_owned()),
        ];
        for refusal in refusals {
            assert_eq!(refusal.status().0, StatusCode::SERVICE_UNAVAILABLE, "{refusal}");
            assert_eq!(refusal.message(), TEMPORARILY_UNAVAILABLE, "{refusal}");
            let headers = refusal.response(TokenSeed::now()).headers().clone();
            assert_eq!(headers.get(header::RETRY_AFTER), Some(&RETRY_AFTER), "{refusal}");
        }
    }

    /// One of each, in a chain: the next after another. A new variant does not compile until it is an arm here.
    fn after(refusal: &Refusal) -> Option<Refusal> {
        let unauthenticated = |failure| Some(Refusal::Unauthenticated { failure, scheme: "github" });
        let unclaimed = || StoreError::Down(String::new());
        Some(match refusal {
            Refusal::LengthUnclear => Refusal::HostUnclear,
            Refusal::HostUnclear => Refusal::NoPath,
            Refusal::NoPath => Refusal::TooManyHeaders { lines: 2, limit: 1 },
            Refusal::TooManyHeaders { .. } => Refusal::TooManyConnections { limit: 1, setting: "" },
            Refusal::TooManyConnections { .. } => Refusal::UnknownPath { path: String::new() },
            Refusal::UnknownPath { .. } => Refusal::NotPost("GET"),
            Refusal::NotPost(_) => Refusal::BodyTooLarge { limit: 1 },
            Refusal::BodyTooLarge { .. } => Refusal::BodyTimeout,
            Refusal::BodyTimeout => Refusal::BodyUnreadable(String::new()),
            Refusal::BodyUnreadable(_) => Refusal::TooManyPieces { pieces: 1, bytes: 1 },
            Refusal::TooManyPieces { .. } => return unauthenticated(signature::SignatureFailure::Missing),
            Refusal::Unauthenticated { failure: signature::SignatureFailure::Missing, .. } => {
                return unauthenticated(signature::SignatureFailure::Wrong);
            }
            Refusal::Unauthenticated { .. } => BatchError::Empty.into(),
            Refusal::Malformed(BatchError::Empty) => BatchError::NeitherArrayNorObject.into(),
            Refusal::Malformed(BatchError::NeitherArrayNorObject) => {
                BatchError::NotJson { problem: String::new(), at: 0 }.into()
            }
            Refusal::Malformed(BatchError::NotJson { .. }) => AdmissionError::NoPermit { limit: 1 }.into(),
            Refusal::NotAdmitted(AdmissionError::NoPermit { .. }) => AdmissionError::NoBudget { limit: 1 }.into(),
            Refusal::NotAdmitted(AdmissionError::NoBudget { .. }) => {
                AdmissionError::NoMemory(std::io::Error::other("none")).into()
            }
            Refusal::NotAdmitted(AdmissionError::NoMemory(_)) => AdmissionError::Draining.into(),
            Refusal::NotAdmitted(AdmissionError::Draining) => Failure::Unclaimed(unclaimed()).into(),
            Refusal::NotDone(Failure::Unclaimed(_)) => {
                Failure::OutboxFull { route: String::new(), unclaimed: 1 }.into()
            }
            Refusal::NotDone(Failure::OutboxFull { .. }) => {
                let last = PublishError::Unavailable(String::new());
                Failure::Unpublished { unconfirmed: 1, total: 1, last }.into()
            }
            Refusal::NotDone(Failure::Unpublished { .. }) => {
                Failure::AnotherAddress { route: String::new(), ids: 1 }.into()
            }
            Refusal::NotDone(Failure::AnotherAddress { .. }) => Failure::Panicked.into(),
            Refusal::NotDone(Failure::Panicked) => Refusal::Deadline(Duration::ZERO),
            Refusal::Deadline(_) => Refusal::Internal(String::new()),
            Refusal::Internal(_) => return None,
        })
    }

    #[test]
    fn every_refusal_is_listed_and_nothing_else() {
        let refusals = std::iter::successors(Some(Refusal::LengthUnclear), after);
        let found: BTreeSet<_> = refusals.map(|refusal| refusal.status()).collect();
        assert_eq!(found, BTreeSet::from(REFUSALS));
        assert!(REFUSALS.is_sorted_by_key(|(status, _)| *status), "by status code");
    }

    #[test]
    fn a_401_says_what_is_wrong_in_the_log_alone() {
        for failure in signature::SignatureFailure::ALL {
            let refusal = Refusal::Unauthenticated { failure, scheme: "espocrm" };
            assert_eq!(refusal.to_string(), failure.to_string());
            assert_eq!(refusal.status().0, StatusCode::UNAUTHORIZED);
            let missing = refusal.message().contains("no signature");
            assert_eq!(missing, failure == signature::SignatureFailure::Missing, "{failure}");
            assert_eq!(refusal.response(TokenSeed::now()).headers()[header::WWW_AUTHENTICATE], "espocrm");
        }
    }

    #[test]
    fn a_request_is_shed_under_a_known_code() {
        let memory = || std::io::Error::other("none");
        for error in [
            AdmissionError::NoPermit { limit: 1 },
            AdmissionError::NoBudget { limit: 1 },
            AdmissionError::NoMemory(memory()),
            AdmissionError::Draining,
        ] {
            let code = Refusal::NotAdmitted(error).shed().expect("it is shed");
            assert!(SHED.contains(&code), "{code}");
        }
        assert_eq!(Refusal::BodyTimeout.shed(), None);
    }
}
