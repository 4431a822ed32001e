//! `/v1/status`: what this process knows of itself, its stores and its webhooks, as of now.

use std::{
    collections::BTreeMap,
    time::{Instant, SystemTime},
};

use schemars::JsonSchema;
use serde::Serialize;

use super::{Activity, AdminState, ConfigurationStatus, OnUnavailable, Store, activity::Lately};
use crate::{
    metrics::{ConsumerGauges, Items, REVISION, RouteMetrics, VERSION, recent_events::Outcome},
    readiness::Contact,
    shutdown::Phase,
};

/// The answer; docs/status.md says what its members mean.
#[derive(Serialize, JsonSchema)]
pub(super) struct Status {
    version: &'static str,
    revision: &'static str,
    time: String,
    uptime_seconds: u64,
    phase: &'static str,
    ready: bool,
    redis: ServerStatus,
    nats: ServerStatus,
    on_unavailable: OnUnavailable,
    configuration: ConfigurationStatus,
    limits: LimitsStatus,
    routes: Vec<OneRoute>,
    orphaned_outboxes: Vec<Orphan>,
    store_read_seconds_ago: Option<f64>,
    events: Vec<EventLine>,
}

/// A store, and the version of its server.
#[derive(Serialize, JsonSchema)]
struct ServerStatus {
    state: &'static str,
    #[serde(skip_serializing_if = "Option::is_none")]
    problem: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    version: Option<String>,
}

impl ServerStatus {
    fn new(contact: &Contact, version: Option<String>) -> Self {
        let Store { state, problem } = Store::new(contact);
        Self { state, problem: problem.map(str::to_owned), version }
    }
}

/// What is taken of a limit.
#[derive(Serialize, JsonSchema)]
struct Share<T> {
    used: T,
    limit: usize,
}

#[derive(Serialize, JsonSchema)]
struct LimitsStatus {
    requests_in_flight: Share<usize>,
    buffered_bytes: Share<usize>,
    connections: Share<i64>,
}

#[derive(Serialize, JsonSchema)]
struct OutboxStatus {
    entries: i64,
    oldest_age_seconds: f64,
}

impl OutboxStatus {
    fn new((entries, age): (i64, f64)) -> Self {
        Self { entries, oldest_age_seconds: rounded(age) }
    }
}

/// One webhook since the start of the process.
#[derive(Serialize, JsonSchema)]
struct OneRoute {
    name: String,
    label: String,
    path: String,
    subject: String,
    pending_key: String,
    requests: BTreeMap<u16, u64>,
    items: Items,
    #[serde(flatten)]
    lately: Lately,
    published: BTreeMap<&'static str, u64>,
    dead_letters: u64,
    signature_failures: u64,
    pending_ids: i64,
    pending_oldest_age_seconds: f64,
    given_up: u64,
    outbox: OutboxStatus,
    consumers: Vec<ConsumerStatus>,
}

/// A consumer that the route names, as NATS said last; without numbers if no such consumer was seen.
#[derive(Serialize, JsonSchema)]
struct ConsumerStatus {
    name: String,
    waiting: Option<i64>,
    unacknowledged: Option<i64>,
}

impl ConsumerStatus {
    fn new(gauges: &ConsumerGauges) -> Self {
        let (waiting, unacknowledged) = gauges.numbers().unzip();
        Self { name: gauges.name.clone(), waiting, unacknowledged }
    }
}

impl OneRoute {
    fn new(metrics: &RouteMetrics, activity: &Activity) -> Self {
        let route = &metrics.route;
        Self {
            name: route.name().to_owned(),
            label: route.label().to_owned(),
            path: route.path().to_owned(),
            subject: route.subject().to_owned(),
            pending_key: route.pending_key().to_owned(),
            requests: metrics.answers.by_code().collect(),
            items: metrics.items(),
            lately: activity.of(metrics),
            published: metrics.published_by_way().collect(),
            dead_letters: metrics.dead_letters(),
            signature_failures: metrics.signature_failures(),
            pending_ids: metrics.pending(),
            pending_oldest_age_seconds: rounded(metrics.pending_age()),
            given_up: metrics.all_given_up(),
            outbox: OutboxStatus::new(metrics.outbox()),
            consumers: metrics.consumers().iter().map(ConsumerStatus::new).collect(),
        }
    }
}

/// What is left of a route that is configured no more.
#[derive(Serialize, JsonSchema)]
struct Orphan {
    name: String,
    subject: String,
    pending_key: String,
    outbox: OutboxStatus,
}

#[derive(Serialize, JsonSchema)]
struct EventLine {
    time: String,
    route: String,
    entity_id: String,
    outcome: Outcome,
}

/// Milliseconds are enough.
fn rounded(seconds: f64) -> f64 {
    (seconds * 1000.0).round() / 1000.0
}

fn rfc3339(time: SystemTime) -> String {
    humantime::format_rfc3339_millis(time).to_string()
}

pub(super) fn status(state: &AdminState, started: Instant) -> Status {
    let AdminState { health, metrics, store_gauges, activity, publisher, limits, max_connections, phase, .. } = state;
    let (reading, in_use) = (store_gauges.reading(), limits.in_use());
    let mut routes: Vec<_> = metrics.routes().map(|route| OneRoute::new(route, activity)).collect();
    routes.sort_by(|one, other| one.name.cmp(&other.name));
    let orphans = metrics.adopted().into_iter().map(|adopted| Orphan {
        name: adopted.route.name().to_owned(),
        subject: adopted.route.subject().to_owned(),
        pending_key: adopted.route.pending_key().to_owned(),
        outbox: OutboxStatus::new(adopted.outbox()),
    });
    let events = metrics.recent_events().newest().into_iter().map(|event| EventLine {
        time: rfc3339(event.at),
        route: event.route.as_ref().to_owned(),
        entity_id: event.id,
        outcome: event.outcome,
    });
    Status {
        version: VERSION,
        revision: REVISION,
        time: rfc3339(SystemTime::now()),
        uptime_seconds: started.elapsed().as_secs(),
        phase: match *phase.borrow() {
            Phase::Serving => "serving",
            Phase::Leaving => "leaving",
            Phase::Refusing => "refusing",
            Phase::Flushing => "flushing",
            Phase::Closing => "closing",
        },
        ready: *health.ready.borrow(),
        redis: ServerStatus::new(&health.redis.borrow(), reading.server_version),
        nats: ServerStatus::new(&health.nats.borrow(), publisher.server_version()),
        on_unavailable: state.on_unavailable,
        configuration: state.configuration.borrow().clone(),
        limits: LimitsStatus {
            requests_in_flight: Share { used: in_use.requests, limit: in_use.max_requests },
            buffered_bytes: Share { used: in_use.bytes, limit: in_use.max_bytes },
            connections: Share { used: metrics.open_connections(), limit: *max_connections },
        },
        routes,
        orphaned_outboxes: orphans.collect(),
        store_read_seconds_ago: reading.at.map(|at| rounded(at.elapsed().as_secs_f64())),
        events: events.collect(),
    }
}
