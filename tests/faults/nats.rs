//! NATS dies, hangs, comes back, or refuses: what it did not acknowledge stays claimed and gets there.

use crate::Scenario;

/// The scenarios of this file.
pub(crate) fn scenarios() -> Vec<Scenario> {
    Vec::new()
}
