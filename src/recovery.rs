//! Brings back what a sender gave up on: which ids have no event, and their way through claim and publish.
//!
//! Knows neither where the ids come from (the CRM's API, files, dead letters) nor how a stream is read. An id counts as
//! delivered by one rule ([`Sought`]); where the stream can't tell, it is published: one event too many, never one too few.

mod bring;
mod letters;
mod release;
mod sought;

pub use self::{
    bring::{Bringer, Brought, Failed, Wanted},
    letters::{GAVE_UP, ids_of, mentions},
    release::{ReleaseError, ReleasePass, Releaser},
    sought::{Known, Sought, Verdict},
};
