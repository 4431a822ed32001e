//! The operator's address: is the process alive, may it get traffic, what does it do. Never behind the ingress.
//!
//! No request waits for a store: everything here is in memory already, but for what is asked of one id.

mod activity;
mod page;
pub mod pending_ids;
pub mod specifications;
mod status;
pub mod store_gauges;

use std::{convert::Infallible, sync::Arc, time::Instant};

use schemars::JsonSchema;
use serde::Serialize;
use tokio::sync::watch;
use warp::{
    Filter, Reply,
    http::{HeaderMap, HeaderValue, Method, StatusCode, header},
    path::FullPath,
    reply::Response,
};

pub use self::{activity::Activity, pending_ids::PendingIds};
use self::{specifications::Specifications, store_gauges::StoreGauges};
use crate::{
    admission::Limits,
    delivery::Publisher,
    metrics::{Exposition, Metrics},
    readiness::Contact,
    shutdown::Phase,
};

const NOTHING_HERE: &str =
    "nothing here; try /, /livez, /readyz, /metrics, /v1/status, /openapi.json or /asyncapi.json\n";

/// What the probes look at.
#[derive(Debug, Clone)]
pub struct Health {
    /// Whether the process may get traffic.
    pub ready: watch::Receiver<bool>,
    /// The store of pending ids.
    pub redis: watch::Receiver<Contact>,
    /// The broker.
    pub nats: watch::Receiver<Contact>,
    /// The reading of consumers' reports; `None` if no route is released by acknowledgements.
    pub acks: Option<watch::Receiver<Contact>>,
}

/// What this replica does with a batch while a store is down: the values of the settings.
#[derive(Debug, Clone, Copy, Serialize, schemars::JsonSchema)]
pub struct OnUnavailable {
    /// `redis.on_unavailable`
    pub redis: &'static str,
    /// `nats.on_unavailable`
    pub nats: &'static str,
}

/// How the last reading of the configuration went.
#[derive(Debug, Clone, Serialize, schemars::JsonSchema)]
pub struct ConfigurationStatus {
    /// Since when what is in force is in force, RFC 3339.
    pub in_force_since: String,
    /// Why what the files say now is not; empty if it is.
    pub problems: Vec<String>,
    /// Keys whose values in the files are not in force, since only a restart changes them.
    pub needs_restart: Vec<String>,
}

impl ConfigurationStatus {
    /// What was read just now is in force, but for these keys.
    #[must_use]
    pub fn read_now(needs_restart: Vec<String>) -> Self {
        let now = humantime::format_rfc3339_millis(std::time::SystemTime::now()).to_string();
        Self { in_force_since: now, problems: Vec::new(), needs_restart }
    }
}

/// What the admin address shows, under one configuration.
pub struct AdminState {
    /// What the probes look at.
    pub health: Health,
    /// What `/metrics` shows.
    pub exposition: Arc<Exposition>,
    /// Counters of routes and refusals.
    pub metrics: Metrics,
    /// What the store holds.
    pub store_gauges: StoreGauges,
    /// What came in the last minute and hour.
    pub activity: Activity,
    /// What a replica does while a store is down.
    pub on_unavailable: OnUnavailable,
    /// The broker.
    pub publisher: Arc<dyn Publisher>,
    /// Memory budget, permits and deadlines of requests, and how much is in use.
    pub limits: Limits,
    /// `server.max_connections`
    pub max_connections: usize,
    /// Whether the process serves or shuts down.
    pub phase: watch::Receiver<Phase>,
    /// `/openapi.json` and `/asyncapi.json` of this configuration.
    pub specifications: Specifications,
    /// `/v1/pending`: looks up and releases single ids.
    pub pending_ids: PendingIds,
    /// How the last reading of the configuration went.
    pub configuration: watch::Receiver<ConfigurationStatus>,
}

/// `/livez`: the event loop turns. `/readyz`: 200 or 503, with what is known of the stores. `/metrics`:
/// OpenMetrics. `/v1/status`: the same for programs and people, in JSON. `/`: a page that shows it. `/openapi.json`,
/// `/asyncapi.json`: what is served and published. `/v1/pending/…`: one id and its release, with a token.
#[must_use]
pub fn answers(
    now: impl Fn() -> Arc<AdminState> + Clone + Send + Sync + 'static,
) -> impl Filter<Extract = (Response,), Error = Infallible> + Clone {
    let started = Instant::now();
    let query = warp::query::raw().or(warp::any().map(String::new)).unify();
    let request = warp::path::full().and(warp::method()).and(query).and(warp::header::headers_cloned());
    request.then(move |path: FullPath, method: Method, query: String, headers: HeaderMap| {
        let state = now();
        async move {
            if path.as_str().starts_with(pending_ids::PREFIX) {
                return state.pending_ids.answer(&method, path.as_str(), &query, &headers).await;
            }
            in_memory(&state, started, path.as_str(), &method)
        }
    })
}

/// What needs no store.
fn in_memory(state: &AdminState, started: Instant, path: &str, method: &Method) -> Response {
    let look: fn(&AdminState, Instant) -> Response = match path {
        "/" => |_, _| page::page(),
        "/livez" => |_, _| "ok\n".into_response(),
        "/readyz" => |state, _| readyz(&state.health),
        "/metrics" => |state, _| metrics(&state.exposition),
        "/v1/status" => |state, started| json(StatusCode::OK, &status::status(state, started)),
        "/openapi.json" => |state, _| json(StatusCode::OK, &state.specifications.openapi()),
        "/asyncapi.json" => |state, _| json(StatusCode::OK, &state.specifications.asyncapi()),
        _ => return text(StatusCode::NOT_FOUND, NOTHING_HERE),
    };
    if *method == Method::GET || *method == Method::HEAD {
        return look(state, started);
    }
    let mut response = text(StatusCode::METHOD_NOT_ALLOWED, "this can only be read: GET or HEAD\n");
    response.headers_mut().insert(header::ALLOW, HeaderValue::from_static("GET, HEAD"));
    response
}

/// A store, in JSON.
#[derive(Serialize, JsonSchema)]
struct Store<'a> {
    state: &'static str,
    #[serde(skip_serializing_if = "Option::is_none")]
    problem: Option<&'a str>,
}

impl<'a> Store<'a> {
    fn new(contact: &'a Contact) -> Self {
        Self { state: contact.code(), problem: contact.problem() }
    }
}

#[derive(Serialize, JsonSchema)]
struct Readiness<'a> {
    ready: bool,
    redis: Store<'a>,
    nats: Store<'a>,
    /// What consumers answer, where that releases ids.
    #[serde(skip_serializing_if = "Option::is_none")]
    acks: Option<Store<'a>>,
}

fn readyz(health: &Health) -> Response {
    let (redis, nats) = (health.redis.borrow(), health.nats.borrow());
    let ready = *health.ready.borrow();
    let code = if ready { StatusCode::OK } else { StatusCode::SERVICE_UNAVAILABLE };
    let acks = health.acks.as_ref().map(|acks| acks.borrow());
    let acks = acks.as_deref().map(Store::new);
    json(code, &Readiness { ready, redis: Store::new(&redis), nats: Store::new(&nats), acks })
}

fn metrics(exposition: &Exposition) -> Response {
    let mut response = exposition.text().into_response();
    response.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static(Exposition::CONTENT_TYPE));
    response
}

fn text(code: StatusCode, text: &'static str) -> Response {
    let mut response = text.into_response();
    *response.status_mut() = code;
    response
}

fn json(code: StatusCode, body: &impl Serialize) -> Response {
    let body = serde_json::to_vec(body).expect("strings and numbers always serialize");
    let mut response = body.into_response();
    *response.status_mut() = code;
    let headers = response.headers_mut();
    headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("application/json"));
    headers.insert(header::CACHE_CONTROL, HeaderValue::from_static("no-store"));
    response
}
