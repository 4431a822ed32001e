//! What happened last, for a person who looks: ids and what became of them, a bounded number.
//!
//! One lock a batch, held for the copying of a few ids into the memory of those they displace.

use std::{
    collections::VecDeque,
    sync::{Arc, Mutex, PoisonError},
    time::SystemTime,
};

/// Ids that are kept.
pub const KEPT: usize = 50;

/// What became of an id.
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Serialize, schemars::JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Outcome {
    /// Its event was acknowledged.
    Published,
    /// Its event was acknowledged after the relay took it over.
    Relayed,
    /// Its event was acknowledged, and it is not claimed: Redis was down.
    Undeduplicated,
    /// It was pending.
    Duplicate,
    /// Its event was not acknowledged in time; it waits for the sender's retry and the relay.
    Unconfirmed,
}

/// An id, and what became of it.
#[derive(Debug, Clone)]
pub struct RecentEvent {
    /// When.
    pub at: SystemTime,
    /// Name of its route.
    pub route: Arc<str>,
    /// The id.
    pub id: String,
    /// What became of it.
    pub outcome: Outcome,
}

/// The last [`KEPT`] of them.
#[derive(Debug, Default)]
pub struct RecentEvents(Mutex<VecDeque<RecentEvent>>);

impl RecentEvents {
    /// Adds the last of `count` ids.
    pub(super) fn add<'a>(&self, route: &Arc<str>, outcome: Outcome, count: usize, ids: impl Iterator<Item = &'a str>) {
        let at = SystemTime::now();
        let mut kept = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        for id in ids.skip(count.saturating_sub(KEPT)) {
            if kept.len() == KEPT {
                kept.pop_front();
            }
            kept.push_back(RecentEvent { at, route: Arc::clone(route), id: id.to_owned(), outcome });
        }
    }

    /// The newest first.
    #[must_use]
    pub fn newest(&self) -> Vec<RecentEvent> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).iter().rev().cloned().collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_last_are_kept_in_their_order() {
        let recent = RecentEvents::default();
        let route = Arc::from("f/e/a");
        let ids: Vec<String> = (0..3 * KEPT).map(|number| number.to_string()).collect();
        recent.add(&route, Outcome::Published, 2, ids[..2].iter().map(String::as_str));
        assert_eq!(recent.newest().iter().map(|event| event.id.as_str()).collect::<Vec<_>>(), ["1", "0"]);
        recent.add(&route, Outcome::Duplicate, ids.len(), ids.iter().map(String::as_str));
        let newest = recent.newest();
        assert_eq!(newest.len(), KEPT);
        assert_eq!(newest[0].id, "149");
        assert_eq!(newest[KEPT - 1].id, "100");
        assert!(newest.iter().all(|event| event.outcome == Outcome::Duplicate));
    }
}
