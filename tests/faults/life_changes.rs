//! What happens to pending ids when something changes around them.
use crate::Scenario;

/// The scenarios of this file.
pub(crate) fn scenarios() -> Vec<Scenario> {
    vec![]
}
