//! The operator's address: is the process alive, may it get traffic. Never behind the ingress.

use std::convert::Infallible;

use serde::Serialize;
use tokio::sync::watch;
use warp::{
    Filter, Reply,
    http::{HeaderValue, StatusCode, header},
    reply::Response,
};

use crate::readiness::Contact;

/// What the probes look at.
#[derive(Debug, Clone)]
pub struct Health {
    /// Whether the process may get traffic.
    pub ready: watch::Receiver<bool>,
    /// The store of pending ids.
    pub redis: watch::Receiver<Contact>,
    /// The broker.
    pub nats: watch::Receiver<Contact>,
}

/// `/livez`: the event loop turns. `/readyz`: 200 or 503, with what is known of the stores.
#[must_use]
pub fn probes(health: Health) -> impl Filter<Extract = (Response,), Error = Infallible> + Clone {
    let livez = warp::path!("livez").and(warp::get()).map(|| "ok\n".into_response());
    let readyz = warp::path!("readyz").and(warp::get()).map(move || readyz(&health));
    let nothing = warp::any().map(|| {
        let mut response = "nothing here; try /livez or /readyz\n".into_response();
        *response.status_mut() = StatusCode::NOT_FOUND;
        response
    });
    livez.or(readyz).unify().or(nothing).unify()
}

#[derive(Serialize)]
struct Readiness<'a> {
    ready: bool,
    redis: Store<'a>,
    nats: Store<'a>,
}

#[derive(Serialize)]
struct Store<'a> {
    state: &'static str,
    #[serde(skip_serializing_if = "Option::is_none")]
    problem: Option<&'a str>,
}

fn readyz(health: &Health) -> Response {
    let (redis, nats) = (health.redis.borrow(), health.nats.borrow());
    let store = |contact: &'_ Contact| contact.code();
    let readiness = Readiness {
        ready: *health.ready.borrow(),
        redis: Store { state: store(&redis), problem: redis.problem() },
        nats: Store { state: store(&nats), problem: nats.problem() },
    };
    let body = serde_json::to_vec(&readiness).expect("strings always serialize");
    let mut response = body.into_response();
    *response.status_mut() = if readiness.ready { StatusCode::OK } else { StatusCode::SERVICE_UNAVAILABLE };
    response.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static("application/json"));
    response
}
