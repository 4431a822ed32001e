//! `hookgate outbox`: claims that NATS has not acknowledged.

use std::{process::ExitCode, sync::Arc};

use anyhow::{Context, bail};
use clap::Subcommand;
use hookgate::{
    app,
    event::Token,
    metrics::Metrics,
    relay::{Outbox, Relay, Walked},
    route::Route,
    settings::Settings,
    traces::Tracer,
};
use serde::Serialize;
use tokio_util::task::TaskTracker;

use super::{Output, print, store};

#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// Number of entries of each route, also of routes that are configured no more.
    Count,
    /// The entries: route, id, token, time of the claim, subject.
    List,
    /// Publish all entries now, whatever their age.
    Relay,
}

pub(super) fn run(command: &Command, settings: &Settings, output: Output) -> anyhow::Result<ExitCode> {
    store::block_on(async {
        let redis = store::open(settings).await?;
        let outbox: Arc<dyn Outbox> = redis;
        let mut routes = outbox.recorded_routes().await.context("read the routes")?;
        for route in &mut routes {
            // The record is of whoever claimed under the key first.
            let configured = settings.routes.routes().iter().find(|now| now.pending_key() == route.pending_key());
            if let Some(configured) = configured {
                *route = Route::clone(configured);
            }
        }
        match command {
            Command::Count => count(&*outbox, &routes, output).await,
            Command::List => list(&*outbox, &routes, output).await,
            Command::Relay => relay(outbox, &routes, settings, output).await,
        }
    })
}

#[derive(Serialize)]
struct Count<'a> {
    route: &'a str,
    pending_key: &'a str,
    entries: usize,
}

async fn count(outbox: &dyn Outbox, routes: &[Route], output: Output) -> anyhow::Result<ExitCode> {
    for route in routes {
        let entries = outbox.count(route).await.with_context(|| format!("count {}", route.outbox_key()))?;
        let row = Count { route: route.name(), pending_key: route.pending_key(), entries };
        print(&match output {
            Output::Json => serde_json::to_string(&row).context("print")?,
            Output::Text => format!("{entries:>9}  {route}"),
        });
    }
    Ok(ExitCode::SUCCESS)
}

#[derive(Serialize)]
struct Row<'a> {
    route: &'a str,
    entity_id: &'a str,
    token: &'a str,
    claimed: Option<String>,
    /// Where its event goes.
    subject: &'a str,
}

async fn list(outbox: &dyn Outbox, routes: &[Route], output: Output) -> anyhow::Result<ExitCode> {
    for route in routes {
        let addresses = outbox.addresses(route).await.with_context(|| format!("read {}", route.addresses_key()))?;
        let mut cursor = 0;
        loop {
            let page = outbox.page(route, cursor).await.with_context(|| format!("read {}", route.outbox_key()))?;
            for entry in &page.entries {
                let token = entry.token.parse::<Token>().ok();
                let subject = token.and_then(|token| addresses.of(token)).map_or(route, |address| &**address).subject();
                let claimed = token.map(|token| humantime::format_rfc3339_millis(token.time()).to_string());
                let row = Row { route: route.name(), entity_id: &entry.id, token: &entry.token, claimed, subject };
                let line = match output {
                    Output::Json => serde_json::to_string(&row).context("print")?,
                    Output::Text => format!(
                        "{route}  {}  {}  {}  {subject}",
                        row.entity_id.escape_debug(),
                        row.token.escape_debug(),
                        row.claimed.as_deref().unwrap_or("not written by hookgate")
                    ),
                };
                if !print(&line) {
                    return Ok(ExitCode::SUCCESS);
                }
            }
            cursor = page.next;
            if cursor == 0 {
                break;
            }
        }
    }
    Ok(ExitCode::SUCCESS)
}

async fn relay(
    outbox: Arc<dyn Outbox>,
    routes: &[Route],
    settings: &Settings,
    output: Output,
) -> anyhow::Result<ExitCode> {
    let tasks = TaskTracker::new();
    let publisher = app::open_publisher(&settings.nats, &settings.delivery, &settings.routes, &tasks).await?;
    store::up("NATS", publisher.contact()).await?;
    let (metrics, _) = Metrics::new(&settings.routes);
    let relay =
        Relay::new(outbox, publisher, settings.relay_after, settings.policy.ack_timeout, metrics, Tracer::default());
    let mut failed = 0;
    for route in routes {
        let walked =
            relay.relay_now(&Arc::new(route.clone())).await.with_context(|| format!("relay the outbox of {route}"))?;
        failed += walked.failed + walked.poison;
        print(&match output {
            Output::Json => serde_json::to_string(&Relayed::new(route, &walked)).context("print")?,
            Output::Text => {
                let Walked { published, failed, poison, reason } = &walked;
                let said = reason.as_ref().map_or_else(String::new, |reason| format!(" (NATS: {reason})"));
                format!(
                    "{route}: {published} published, {failed} not acknowledged{said}, {poison} not written by hookgate"
                )
            }
        });
    }
    if failed > 0 {
        bail!("{failed} entries are still in the outbox; `hookgate outbox list` shows them");
    }
    Ok(ExitCode::SUCCESS)
}

#[derive(Serialize)]
struct Relayed<'a> {
    route: &'a str,
    published: usize,
    failed: usize,
    poison: usize,
    #[serde(skip_serializing_if = "Option::is_none")]
    reason: Option<String>,
}

impl<'a> Relayed<'a> {
    fn new(route: &'a Route, walked: &Walked) -> Self {
        let Walked { published, failed, poison, reason } = walked;
        let reason = reason.as_ref().map(ToString::to_string);
        Self { route: route.name(), published: *published, failed: *failed, poison: *poison, reason }
    }
}
