//! The brokers' side of the pipeline: what an acknowledgement is, and why one is missing. Knows no Redis.
//!
//! The client's `publish` says Ok into a queue, so nothing counts but an acknowledgement. All publishes of a step go
//! out together, with replies below one inbox, and are awaited together for `nats.ack_timeout`. What is missing then
//! is published again, until the deadline. A connection that breaks ends the wait early.
//!
//! If NATS withdraws the permission to read answers, nothing more is sent: it would be stored and acknowledged to
//! nobody. A new connection is tried every 5 s, since a withdrawn subscription does not come back with the
//! permission. The same happens after 10 s without any answer on a connection that looks well.

mod address;
mod api;
mod connection;
pub mod core;
mod diagnosis;
mod hearing;
mod inbox;
pub mod inspect;
pub mod jetstream;
mod judgement;
pub mod live;
pub mod login;
pub mod servers;
mod stream;
mod stream_info;
mod stream_watch;

use std::time::Duration;

pub use judgement::is_known;
pub use stream::StreamSettings;

/// Marks the streams that hookgate made, the only ones that it adds subjects to.
const MANAGED: &str = "managed by hookgate";

/// Proof that a broker has taken an event. Made from a broker's answer, in this module's adapters, and
/// nowhere else.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[must_use = "an acknowledgement settles a claim"]
pub struct Ack(());

impl Ack {
    /// From a stream's acknowledgement. A sequence of 0 proves nothing: some servers acknowledge a
    /// duplicate so before the original is committed.
    const fn stored(sequence: u64) -> Option<Self> {
        if sequence > 0 { Some(Self(())) } else { None }
    }

    /// From a message that went round behind the event on the same connection.
    const fn passed() -> Self {
        Self(())
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
