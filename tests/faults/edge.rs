//! The sender's side: rolling restarts, slow and vanishing senders, too much of everything.

use crate::Scenario;

/// The scenarios of this file.
pub(crate) fn scenarios() -> Vec<Scenario> {
    Vec::new()
}
