//! Brings back what a sender gave up on: which ids have no event, and their way through claim and publish.
//!
//! Knows neither where the ids come from (the CRM's API, files, dead letters) nor how a stream is read. An id counts as
//! delivered by one rule ([`Sought`]); where the stream can't tell, it is published: one event too many, never one too few.

mod bring;
mod letters;
mod sought;

use futures_util::future::BoxFuture;

pub use self::{
    bring::{Bringer, Brought, Failed, Wanted},
    letters::{GAVE_UP, ids_of, mentions},
    sought::{Known, Sought, Verdict},
};
use crate::{delivery::StoreError, route::Route};

/// What the pending store knows of an id, without a claim.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum PendingState {
    /// It is not pending.
    Absent,
    /// It is pending, and its event is not acknowledged yet.
    InFlight,
    /// It is pending, and its event was acknowledged.
    Done,
}

/// A look at ids that claims nothing.
pub trait PendingStates: Send + Sync {
    /// The state of each id, in their order.
    fn states<'a>(
        &'a self,
        route: &'a Route,
        ids: &'a [String],
    ) -> BoxFuture<'a, Result<Vec<PendingState>, StoreError>>;
}
