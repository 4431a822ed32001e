//! Where ids are claimed: in Redis, or in memory for trials. Knows neither NATS nor HTTP.
//!
//! Both keep the same promise, and one contract test runs on both: an id is *new* for one caller only,
//! *in flight* under the token of that claim until it is settled, and *done* until a consumer releases it.

pub mod access;
mod address;
mod check;
mod cluster;
mod connection;
mod contents;
mod dead_letters;
mod diagnosis;
pub mod inspect;
mod life;
mod link;
mod links;
pub mod memory;
mod names;
mod nodes;
mod outbox;
pub mod quarantine;
pub mod redis;
mod script;
mod sentinel;
mod settler;

/// Ids of one call to Redis beyond which no more requests join it, so that none holds up the store.
const CALL: usize = 1000;
