//! Which ids are sought, and what the stream says of them. Pure.

use std::{
    sync::Arc,
    time::{Duration, SystemTime},
};

use hashbrown::HashMap;

use crate::route::Route;

/// What can be said of an id.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Verdict {
    /// An event of its route was stored after the change, whatever the clocks are apart.
    Delivered,
    /// The stream holds an event of it, but not one that was certainly stored after the change.
    Earlier,
    /// The stream holds none, and would hold it.
    Missing,
    /// The stream holds none, and would not have to: it does not reach back so far, or drops what is acknowledged.
    Unknown,
}

/// Since when a stream holds everything.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Known {
    /// Since ever.
    Always,
    /// Since a time.
    Since(SystemTime),
    /// It drops what is acknowledged.
    Never,
}

/// The ids that are sought, by route.
///
/// An id is delivered if an event of the same route was stored later than its change and `max_clock_skew` after. Of several
/// changes of an id the latest counts.
#[derive(Debug)]
pub struct Sought {
    max_clock_skew: Duration,
    routes: Vec<SoughtOfRoute>,
}

#[derive(Debug)]
struct SoughtOfRoute {
    route: Arc<Route>,
    known: Known,
    ids: HashMap<String, SoughtId>,
}

#[derive(Debug, Clone, Copy)]
struct SoughtId {
    /// Of the latest change; `None`: unknown, so that no event is certainly later.
    changed: Option<SystemTime>,
    /// When its newest event was stored.
    stored: Option<SystemTime>,
}

impl Sought {
    /// Nothing yet.
    #[must_use]
    pub const fn new(max_clock_skew: Duration) -> Self {
        Self { max_clock_skew, routes: Vec::new() }
    }

    /// Adds an id that changed at a time.
    pub fn add(&mut self, route: &Arc<Route>, id: &str, changed: Option<SystemTime>) {
        let place = self.routes.iter().position(|sought| sought.route.name() == route.name());
        let place = place.unwrap_or_else(|| {
            self.routes.push(SoughtOfRoute { route: Arc::clone(route), known: Known::Never, ids: HashMap::new() });
            self.routes.len() - 1
        });
        let ids = &mut self.routes[place].ids;
        match ids.get_mut(id) {
            // Without a time it is later than any.
            Some(known) => known.changed = known.changed.zip(changed).map(|(known, changed)| known.max(changed)),
            None => {
                ids.insert(id.to_owned(), SoughtId { changed, stored: None });
            }
        }
    }

    /// How many ids are sought.
    #[must_use]
    pub fn len(&self) -> usize {
        self.routes.iter().map(|sought| sought.ids.len()).sum()
    }

    /// Whether nothing is sought.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.routes.is_empty()
    }

    /// The routes that have ids.
    pub fn routes(&self) -> impl Iterator<Item = &Arc<Route>> {
        self.routes.iter().map(|sought| &sought.route)
    }

    /// The ids of a route.
    pub fn ids<'a>(&'a self, route: &Route) -> impl Iterator<Item = &'a str> + use<'a> {
        self.of(route).into_iter().flat_map(|sought| sought.ids.keys().map(String::as_str))
    }

    /// From when on the stream has to be read: events before can't be those of any change. `None`: from its beginning.
    #[must_use]
    pub fn earliest(&self) -> Option<SystemTime> {
        let changes = self.routes.iter().flat_map(|sought| sought.ids.values().map(|id| id.changed));
        changes.min().flatten().map(|earliest| before(earliest, self.max_clock_skew))
    }

    /// When the latest change was made that is sought, if all have a time.
    #[must_use]
    pub fn latest(&self) -> Option<SystemTime> {
        self.routes.iter().flat_map(|sought| sought.ids.values().filter_map(|id| id.changed)).max()
    }

    /// Says since when the stream of a route holds everything. Of several the one that knows most counts.
    pub fn know(&mut self, subject: &str, known: Known) {
        for sought in self.routes.iter_mut().filter(|sought| sought.route.subject() == subject) {
            sought.known = match (sought.known, known) {
                (Known::Always, _) | (_, Known::Always) => Known::Always,
                (Known::Since(one), Known::Since(other)) => Known::Since(one.min(other)),
                (Known::Since(one), Known::Never) | (Known::Never, Known::Since(one)) => Known::Since(one),
                (Known::Never, Known::Never) => Known::Never,
            };
        }
    }

    /// Notes an event of the stream. `route` is the name in its header, if it has one.
    pub fn saw(&mut self, subject: &str, route: Option<&str>, id: &str, stored: SystemTime) {
        let same = |sought: &&mut SoughtOfRoute| match route {
            Some(name) => sought.route.name() == name,
            None => sought.route.subject() == subject,
        };
        for sought in self.routes.iter_mut().filter(same) {
            if let Some(id) = sought.ids.get_mut(id) {
                id.stored = id.stored.max(Some(stored));
            }
        }
    }

    /// What can be said of an id that is sought.
    #[must_use]
    pub fn verdict(&self, route: &Route, id: &str) -> Verdict {
        let Some((sought, id)) = self.of(route).and_then(|sought| Some((sought, sought.ids.get(id)?))) else {
            return Verdict::Unknown;
        };
        match (id.changed, id.stored, sought.known) {
            (Some(changed), Some(stored), _) if stored > changed + self.max_clock_skew => Verdict::Delivered,
            (_, Some(_), _) => Verdict::Earlier,
            (_, None, Known::Always) => Verdict::Missing,
            (Some(changed), None, Known::Since(since)) if before(changed, self.max_clock_skew) >= since => {
                Verdict::Missing
            }
            (_, None, _) => Verdict::Unknown,
        }
    }

    fn of(&self, route: &Route) -> Option<&SoughtOfRoute> {
        self.routes.iter().find(|sought| sought.route.name() == route.name())
    }
}

fn before(time: SystemTime, by: Duration) -> SystemTime {
    time.checked_sub(by).unwrap_or(SystemTime::UNIX_EPOCH)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::route::RouteSpec;

    fn route(action: &str) -> Arc<Route> {
        let spec = RouteSpec { flow: "vmh", entity: "beteiligte", action, ..RouteSpec::default() };
        Arc::new(Route::new(&spec).expect("it is a route"))
    }

    fn at(seconds: u64) -> SystemTime {
        SystemTime::UNIX_EPOCH + Duration::from_secs(1_000_000 + seconds)
    }

    #[test]
    fn only_a_later_event_of_the_same_route_delivers() {
        let (create, update) = (route("create"), route("update"));
        let mut sought = Sought::new(Duration::from_secs(300));
        for (route, id, changed) in
            [(&update, "after", 1000), (&update, "before", 1000), (&update, "close", 1000), (&create, "after", 1000)]
        {
            sought.add(route, id, Some(at(changed)));
        }
        sought.know("vmh.beteiligte.update", Known::Always);
        sought.know("vmh.beteiligte.create", Known::Always);
        for (id, stored) in [("after", 1301), ("before", 900), ("close", 1300), ("nobody", 2000)] {
            sought.saw("vmh.beteiligte.update", Some("vmh/beteiligte/update"), id, at(stored));
        }
        assert_eq!(sought.verdict(&update, "after"), Verdict::Delivered);
        assert_eq!(sought.verdict(&update, "before"), Verdict::Earlier);
        assert_eq!(sought.verdict(&update, "close"), Verdict::Earlier);
        assert_eq!(sought.verdict(&create, "after"), Verdict::Missing);
    }

    #[test]
    fn of_several_changes_the_latest_counts() {
        let update = route("update");
        let mut sought = Sought::new(Duration::ZERO);
        sought.add(&update, "a", Some(at(10)));
        sought.add(&update, "a", Some(at(30)));
        sought.add(&update, "a", Some(at(20)));
        sought.saw("vmh.beteiligte.update", None, "a", at(25));
        assert_eq!(sought.verdict(&update, "a"), Verdict::Earlier);
        sought.saw("vmh.beteiligte.update", None, "a", at(31));
        assert_eq!(sought.verdict(&update, "a"), Verdict::Delivered);
        assert_eq!((sought.len(), sought.earliest()), (1, Some(at(30))));
        sought.add(&update, "a", None);
        assert_eq!(sought.verdict(&update, "a"), Verdict::Earlier, "without a time it may be the last");
        assert_eq!(sought.earliest(), None);
    }

    #[test]
    fn a_stream_that_does_not_reach_back_so_far_knows_nothing() {
        let update = route("update");
        let mut sought = Sought::new(Duration::from_secs(10));
        sought.add(&update, "old", Some(at(100)));
        sought.add(&update, "new", Some(at(200)));
        assert_eq!(sought.verdict(&update, "new"), Verdict::Unknown, "nothing was read");
        sought.know("vmh.beteiligte.update", Known::Since(at(150)));
        assert_eq!(sought.verdict(&update, "old"), Verdict::Unknown);
        assert_eq!(sought.verdict(&update, "new"), Verdict::Missing);
    }
}
