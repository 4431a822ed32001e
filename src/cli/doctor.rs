//! `hookgate doctor`: are the stores such that nothing is lost.

use std::process::ExitCode;

use anyhow::Context;
use hookgate::{
    finding::{Finding, Level},
    pending::inspect::Stakes,
    pipeline::{ClaimError, WithoutAck},
    publisher,
    relay::Outbox,
    route::Route,
    settings::{PendingBackend, Settings},
};

use super::{Output, UNSIGNED, print, store};

pub(super) fn run(settings: &Settings, output: Output) -> anyhow::Result<ExitCode> {
    let mut findings = vec![Finding::ok("configuration", format!("{} routes", settings.routes.routes().len()))];
    findings.extend(settings.warnings.iter().map(|warning| Finding::warning("configuration", warning.as_str())));
    for route in settings.open_routes() {
        let text = format!("{UNSIGNED}; give it one (routes.auth), or let nobody but the CRM reach it");
        findings.push(Finding::warning(format!("route {route}"), text));
    }
    store::block_on(async {
        let (mut redis, nats) = tokio::join!(redis(settings), nats(settings));
        findings.append(&mut redis);
        findings.extend(nats);
        Ok(())
    })?;
    for finding in &findings {
        print(&match output {
            Output::Json => serde_json::to_string(finding).context("print")?,
            Output::Text => {
                let mark = match finding.level {
                    Level::Ok => "ok  ",
                    Level::Warning => "WARN",
                    Level::Failure => "FAIL",
                };
                format!("{mark}  {}: {}", finding.what, finding.text)
            }
        });
    }
    let failed = findings.iter().any(|finding| finding.level == Level::Failure);
    Ok(if failed { ExitCode::FAILURE } else { ExitCode::SUCCESS })
}

async fn redis(settings: &Settings) -> Vec<Finding> {
    if matches!(settings.pending, PendingBackend::Memory) {
        let text =
            "redis.url is \"memory:\": claims are forgotten at exit and not shared between replicas; for trials only";
        return vec![Finding::failure("redis", text)];
    }
    let redis = match store::open(settings).await {
        Ok(redis) => redis,
        Err(error) => return vec![Finding::failure("redis", format!("{error:#}"))],
    };
    let stakes = match settings.policy.without_ack {
        WithoutAck::Reject => Stakes::Duplicates,
        WithoutAck::Accept => Stakes::Events,
    };
    let mut findings = vec![Finding::ok("redis", "connected; the claim script may run on the keys of every route")];
    findings.extend(redis.inspect(stakes, settings.claims.durability).await);
    match redis.recorded_routes().await {
        Ok(routes) => {
            for route in routes {
                let entries = redis.count(&route).await;
                let configured =
                    settings.routes.routes().iter().any(|present| present.pending_key() == route.pending_key());
                findings.push(outbox(&route, configured, entries));
            }
        }
        Err(error) => findings.push(Finding::failure("outboxes", format!("can't list the routes: {error}"))),
    }
    findings
}

fn outbox(route: &Route, configured: bool, entries: Result<usize, ClaimError>) -> Finding {
    let what = format!("outbox {route}");
    match (entries, configured) {
        (Err(error), _) => Finding::failure(what, format!("can't count {}: {error}", route.outbox_key())),
        (Ok(0), _) => Finding::ok(what, "empty"),
        (Ok(entries), true) => Finding::ok(what, format!("{entries} entries: in flight, or left to the relay")),
        (Ok(entries), false) => Finding::warning(
            what,
            format!(
                "{entries} entries of a route that is configured no more; the relay publishes them to {}",
                route.subject()
            ),
        ),
    }
}

async fn nats(settings: &Settings) -> Vec<Finding> {
    publisher::inspect::inspect(&settings.nats, &settings.delivery, &settings.routes).await
}
