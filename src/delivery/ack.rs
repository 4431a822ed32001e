//! What an acknowledgement is, and why one is missing.

use std::time::Duration;

/// Proof that a broker has taken an event. Made from a broker's answer, in the adapters of `publisher`, and nowhere else
/// (`tests/architecture.rs`).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[must_use = "an acknowledgement settles a claim"]
pub struct Ack(u64);

impl Ack {
    /// From a stream's acknowledgement. A sequence of 0 proves nothing: some servers acknowledge a duplicate so before
    /// the original is committed.
    pub(crate) const fn stored(sequence: u64) -> Option<Self> {
        if sequence > 0 { Some(Self(sequence)) } else { None }
    }

    /// From a message that came back behind the event on the same connection.
    pub(crate) const fn passed() -> Self {
        Self(0)
    }

    /// The sequence of the event in its stream, if it is in one.
    pub(crate) const fn sequence(self) -> Option<u64> {
        if self.0 > 0 { Some(self.0) } else { None }
    }
}

/// Why an event has no acknowledgement. All of these are worth another attempt.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum PublishError {
    /// Nothing has been acknowledged for so long that this one was not even tried.
    #[error("NATS has acknowledged nothing for long; not tried, another request is probing it")]
    NotTried,
    /// The deadline had come before there was an attempt: the claim, or the body, took all of the time.
    #[error("no time was left to publish (server.request_deadline); NATS was not asked")]
    NoTime,
    /// There is no connection, or the server can't take events; nothing was sent.
    #[error("NATS is not available: {0}")]
    Unavailable(String),
    /// No acknowledgement in time. The event may be in the stream.
    #[error("no acknowledgement from NATS within {0:?}")]
    NoAck(Duration),
    /// No stream listens on the subject, or it is electing a leader.
    #[error("no stream took subject {0:?} (none covers it, or it is electing a leader)")]
    NoStream(String),
    /// The server refused the event.
    #[error("NATS refused the event: {0}")]
    Refused(String),
}
