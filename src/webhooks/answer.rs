//! The end of the chain: an outcome is counted, logged and sent as a response.

use std::sync::Arc;

use tracing::{info, warn};
use warp::{Rejection, reply::Response};

use super::{
    Webhooks,
    request::{RejectedRequest, Request},
};
use crate::{
    delivery::Receipt,
    event::TokenSeed,
    reply::{self, Refusal},
    shutdown::Phase,
};

/// The response to a batch that is done.
pub(super) fn reply((request, receipt): (Arc<Request>, Receipt)) -> Response {
    let response = reply::received(&request.route, receipt);
    request.answered(response.status(), None);
    response
}

/// The response to every other request. The reason is logged here, under the trace id of the response.
pub(super) fn refuse(webhooks: &Webhooks, rejection: &Rejection) -> Response {
    let unforeseen;
    let RejectedRequest { refusal, request, unread } = if let Some(rejected) = rejection.find::<RejectedRequest>() {
        rejected
    } else {
        unforeseen =
            RejectedRequest { refusal: Refusal::Internal(format!("{rejection:?}")), request: None, unread: true };
        &unforeseen
    };
    let (code, error) = refusal.status();
    let trace_id = request.as_ref().map_or_else(TokenSeed::now, |request| request.seed());
    match request {
        Some(request) => request.answered(code, Some(error)),
        None => webhooks.metrics.elsewhere().answered_at_once(code.as_u16()),
    }
    if let Some(code) = refusal.shed() {
        webhooks.metrics.shed(code);
    }
    log(refusal, request.as_deref(), trace_id);
    let response = refusal.response(trace_id);
    // hyper discards the unread rest of a body and closes the connection. A client that would use it again has to know,
    // above all an ingress, which would make a final 502 of the connection that is gone.
    if *unread { reply::last(response) } else { response }
}

fn log(refusal: &Refusal, request: Option<&Request>, trace_id: TokenSeed) {
    let (code, error) = refusal.status();
    let (status, route) = (code.as_u16(), request.map(|request| request.route.name()));
    // Anybody can ask for anything; only what happens to a webhook is worth a warning.
    let webhook = route.is_some() && !matches!(refusal, Refusal::NotPost(_));
    if webhook || code.is_server_error() {
        let reason = refusal.reason();
        warn!(status, code = error, reason, route, %trace_id, "request refused: {refusal}");
    } else {
        info!(status, code = error, "request refused: {refusal}");
    }
}

/// Ends the connection while the process is shutting down, so that its sender moves to another replica.
pub(super) fn close_when_shutting_down(webhooks: &Webhooks, response: Response) -> Response {
    if *webhooks.phase.borrow() == Phase::Serving { response } else { reply::last(response) }
}
