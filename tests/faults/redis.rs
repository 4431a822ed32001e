//! Redis dies, hangs, forgets, or refuses: nothing accepted rests on it, unless the settings say so.

use crate::Scenario;

/// The scenarios of this file.
pub(crate) fn scenarios() -> Vec<Scenario> {
    Vec::new()
}
