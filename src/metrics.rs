//! Counts what happens, and shows it as OpenMetrics. Owns the registry and every name in it. Other modules
//! call a handle's methods and know nothing of series and labels.
//!
//! Cheap where it is hot: the series of every route are made before it is served, so that a request costs one look
//! into a map and some atomic additions, once a batch and never once an item. What the stores hold is read
//! from them in the background (`admin::store_gauges`), so that no scrape waits for them. Ids, names and
//! addresses are never labels.

mod live;
mod process;
pub mod recent_events;
mod registry;
mod route;
mod since;
mod timing;

use std::sync::{Arc, Mutex, PoisonError};

use hashbrown::{HashMap, HashSet};
use prometheus_client::metrics::{counter::Counter, gauge::Gauge};

pub use self::{
    live::Live,
    registry::Exposition,
    route::{
        Answers, ClaimCounts, ConsumerGauges, Items, PublishedCounter, QuarantineResult, RelayMetrics, ReleasedBy,
        RepairedWhy, RouteGauges, RouteMetrics, Via,
    },
    timing::{Operation, PublishTimes, RedisTimes},
};
use self::{recent_events::RecentEvents, registry::Families, route::Adopted};
use crate::route::{Route, RouteTable};

/// The route of everything that is no route's.
const ELSEWHERE: &str = "_other";

/// The version of this program.
pub const VERSION: &str = env!("CARGO_PKG_VERSION");

/// The revision of the source, if the build set it (`HOOKGATE_REVISION`).
pub const REVISION: &str = match option_env!("HOOKGATE_REVISION") {
    Some(revision) => revision,
    None => "unknown",
};

/// Where the rooms find their handles: those of the process, and those of the routes of one table.
#[derive(Debug, Clone)]
pub struct Metrics {
    process: Arc<Handles>,
    /// By pending key.
    routes: Arc<HashMap<String, Arc<RouteMetrics>>>,
}

/// What is counted whatever the routes are.
#[derive(Debug)]
struct Handles {
    families: Families,
    elsewhere: Answers,
    shed: Vec<(&'static str, Counter)>,
    connections: Gauge,
    adopted: Mutex<Vec<Arc<Adopted>>>,
    recent: Arc<RecentEvents>,
}

impl Metrics {
    /// Makes every series of every route, at 0, and what shows them. `shed` are the codes under which requests are shed.
    #[must_use]
    pub fn new(routes: &RouteTable, shed: &[&'static str]) -> (Self, Exposition) {
        let (families, exposition) = Families::register();
        let handles = Handles {
            elsewhere: Answers::new(&families, ELSEWHERE),
            shed: shed
                .iter()
                .map(|code| (*code, families.shed.get_or_create_owned(&[("reason", (*code).to_owned())])))
                .collect(),
            connections: families.connections.clone(),
            adopted: Mutex::default(),
            recent: Arc::default(),
            families,
        };
        (Self { process: Arc::new(handles), routes: Arc::default() }.of_table(routes), exposition)
    }

    /// The same for the routes of another table, with their series, at 0 where they are new.
    #[must_use]
    pub fn of_table(&self, routes: &RouteTable) -> Self {
        let known = routes.routes().iter().map(|route| {
            let metrics =
                RouteMetrics::new(&self.process.families, Arc::clone(route), Arc::clone(&self.process.recent));
            (route.pending_key().to_owned(), Arc::new(metrics))
        });
        Self { process: Arc::clone(&self.process), routes: Arc::new(known.collect()) }
    }

    /// Ends the series of routes and consumers of an older table that this one has not, as a restart would.
    pub fn forget_others_of(&self, before: &Self) {
        let series = |metrics: &Self| -> HashSet<_> { metrics.routes().flat_map(|route| route.series()).collect() };
        self.process.families.remove(series(before).difference(&series(self)));
    }

    /// Whether the configuration could not be read again, so that an older one is in force.
    pub fn reload_failed(&self, failed: bool) {
        self.process.families.reload_failed.set(i64::from(failed));
    }

    /// The counters of a route of the table.
    ///
    /// # Panics
    /// If the route is in another table: a mistake of the program.
    #[must_use]
    pub fn of(&self, route: &Route) -> &Arc<RouteMetrics> {
        self.routes.get(route.pending_key()).expect("routes are those of the table that the metrics were made for")
    }

    /// The counters of all routes of the table.
    pub fn routes(&self) -> impl Iterator<Item = &Arc<RouteMetrics>> {
        self.routes.values()
    }

    /// The answers to what is no route's.
    #[must_use]
    pub fn elsewhere(&self) -> &Answers {
        &self.process.elsewhere
    }

    /// A request was refused to protect the process, under one of the codes that the metrics were made with.
    pub fn shed(&self, code: &'static str) {
        self.process.shed(code);
    }

    /// The handle of a listener whose connections are counted.
    #[must_use]
    pub fn connections(&self) -> ConnectionMetrics {
        ConnectionMetrics { open: self.process.connections.clone(), refusals: Some(Arc::clone(&self.process)) }
    }

    /// Connections that are open now.
    #[must_use]
    pub fn open_connections(&self) -> i64 {
        self.process.connections.get()
    }

    /// How many bodies are in quarantine.
    pub fn quarantine_holds(&self, entries: usize) {
        self.process.families.quarantine_entries.set(i64::try_from(entries).unwrap_or(i64::MAX));
    }

    /// How long Redis takes.
    #[must_use]
    pub fn redis(&self) -> RedisTimes {
        RedisTimes::new(&self.process.families)
    }

    /// The relay's handle for a route, be it of the table or of an older one.
    #[must_use]
    pub fn relay(&self, route: &Arc<Route>) -> RelayMetrics {
        let Handles { families, recent, .. } = &*self.process;
        if let Some(known) = self.routes.get(route.pending_key()) {
            return RelayMetrics::new(families, &known.name, known.oldest.clone(), recent);
        }
        let adopted = Arc::new(Adopted::new(families, Arc::clone(route)));
        let relay = RelayMetrics::new(families, &adopted.name, adopted.oldest.clone(), recent);
        self.process.adopted.lock().unwrap_or_else(PoisonError::into_inner).push(adopted);
        relay
    }

    /// The outbox of a route is not drained for its removal any more: the route is back.
    pub fn end_adoption(&self, pending_key: &str) {
        let mut adopted = self.process.adopted.lock().unwrap_or_else(PoisonError::into_inner);
        adopted.retain(|adopted| {
            let other = adopted.route.pending_key() != pending_key;
            if !other {
                adopted.end(&self.process.families);
            }
            other
        });
    }

    /// The outboxes that are still drained although their routes have left the configuration.
    #[must_use]
    pub fn adopted(&self) -> Vec<Arc<Adopted>> {
        self.process.adopted.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// What happened last.
    #[must_use]
    pub fn recent_events(&self) -> &RecentEvents {
        &self.process.recent
    }

    /// Everything whose outbox and pending ids are counted in the store.
    #[must_use]
    pub fn gauges(&self) -> Vec<RouteGauges> {
        let known = self.routes.values().map(|route| RouteGauges::Known(Arc::clone(route)));
        known.chain(self.adopted().into_iter().map(RouteGauges::Adopted)).collect()
    }

    /// How long attempts to publish take.
    #[must_use]
    pub fn publishing(&self) -> PublishTimes {
        PublishTimes::new(self.process.families.publish_seconds.clone())
    }
}

impl Handles {
    fn shed(&self, code: &'static str) {
        let known = self.shed.iter().find(|(known, _)| *known == code);
        debug_assert!(known.is_some(), "{code} is no code of a request that is shed");
        if let Some((_, counter)) = known {
            counter.inc();
        }
    }
}

/// What a listener counts; the default is registered nowhere.
#[derive(Debug, Clone, Default)]
pub struct ConnectionMetrics {
    open: Gauge,
    refusals: Option<Arc<Handles>>,
}

impl ConnectionMetrics {
    /// A connection is open until this is dropped.
    #[must_use]
    pub fn opened(&self) -> OpenConnection {
        self.open.inc();
        OpenConnection(self.open.clone())
    }

    /// The listener answered a request by itself, with this status code. `shed` is the code under which the request was
    /// shed, if it was.
    pub fn answered(&self, status: u16, shed: Option<&'static str>) {
        let Some(process) = &self.refusals else { return };
        process.elsewhere.answered_at_once(status);
        if let Some(code) = shed {
            process.shed(code);
        }
    }
}

/// An open connection.
#[derive(Debug)]
pub struct OpenConnection(Gauge);

impl Drop for OpenConnection {
    fn drop(&mut self) {
        self.0.dec();
    }
}
