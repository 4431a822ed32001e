//! Where events go: JetStream or core NATS. Makes acknowledgements from what a broker answers. Knows no Redis.
//!
//! The client's `publish` says Ok into a queue, so nothing counts but an acknowledgement. All publishes of a step go
//! out together, with replies below one inbox, and are awaited together for `nats.ack_timeout`. What is missing then
//! is published again, until the deadline. A connection that breaks ends the wait early.
//!
//! If NATS withdraws the permission to read answers, nothing more is sent: it would be stored, and its
//! acknowledgement lost. A new connection is tried every 5 s, since a withdrawn subscription does not come back with
//! the permission. The same happens after 10 s without any answer on a connection that looks well.

mod ack_watchdog;
pub mod acks;
mod address;
mod api;
mod connection;
pub mod consumer_watch;
pub mod consumers;
pub mod core;
mod diagnosis;
pub mod history;
mod inbox;
pub mod inspect;
pub mod jetstream;
mod judgement;
pub mod live;
mod login;
pub mod peers;
pub mod servers;
pub mod service;
mod stream;
mod stream_info;
mod stream_watch;
pub mod timed;
mod version;

pub use judgement::is_known;
pub use stream::StreamSettings;

/// Marks the streams that hookgate made, the only ones that it adds subjects to.
const MANAGED: &str = "managed by hookgate";
