//! `hookgate outbox`: claims that NATS has not acknowledged.

use std::{process::ExitCode, sync::Arc, time::Duration};

use anyhow::{Context, bail};
use clap::Subcommand;
use hookgate::{
    app,
    event::Token,
    metrics::Metrics,
    relay::{Outbox, Relay, RelayError, Walked},
    route::Route,
    settings::Settings,
    traces::Tracer,
};
use serde::Serialize;
use tokio_util::task::TaskTracker;

use super::{
    Output, print,
    progress::Progress,
    store,
    table::{Table, counted},
};

/// Between two looks at how much is left.
const LOOK_EVERY: Duration = Duration::from_millis(500);

#[derive(Debug, Subcommand)]
#[command(after_help = "Examples:
  hookgate outbox count
  hookgate outbox list --output json
  hookgate outbox relay                        before a downgrade, until it is empty")]
pub(crate) enum OutboxCommand {
    /// Number of entries of each route, also of routes that are configured no more.
    Count,
    /// The entries: route, id, token, time of the claim, subject.
    List,
    /// Publish all entries now, whatever their age.
    Relay,
}

pub(super) fn run(command: &OutboxCommand, settings: &Settings, output: Output) -> anyhow::Result<ExitCode> {
    store::block_on(async {
        let outbox = store::open(settings).await?.outbox;
        let mut routes = outbox.recorded_routes().await.context("read the routes")?;
        for route in &mut routes {
            // The record is of the route that claimed under the key first.
            let configured = settings.routes.routes().iter().find(|now| now.pending_key() == route.pending_key());
            if let Some(configured) = configured {
                *route = Route::clone(configured);
            }
        }
        // In the order of the configuration; those that are configured no more come last.
        let place = |route: &Route| {
            let known = settings.routes.routes().iter().position(|known| known.pending_key() == route.pending_key());
            known.unwrap_or(usize::MAX)
        };
        routes.sort_by(|first, second| place(first).cmp(&place(second)).then_with(|| first.name().cmp(second.name())));
        match command {
            OutboxCommand::Count => count(&*outbox, &routes, output).await,
            OutboxCommand::List => list(&*outbox, &routes, output).await,
            OutboxCommand::Relay => relay(outbox, &routes, settings, output).await,
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
    let mut rows = Vec::new();
    for route in routes {
        let entries = outbox.count(route).await.with_context(|| format!("count {}", route.outbox_key()))?;
        rows.push(Count { route: route.name(), pending_key: route.pending_key(), entries });
    }
    match output {
        Output::Json => {
            for row in &rows {
                print(&serde_json::to_string(row).context("print")?);
            }
        }
        Output::Text => {
            let mut table = Table::new(["ROUTE", "ENTRIES"]);
            table.rows(&rows.iter().map(|row| [row.route.to_owned(), row.entries.to_string()]).collect::<Vec<_>>());
            table.end("no route has an outbox yet");
        }
    }
    Ok(ExitCode::SUCCESS)
}

#[derive(Serialize)]
struct EntryRow<'a> {
    route: &'a str,
    entity_id: &'a str,
    token: &'a str,
    claimed: Option<String>,
    /// Where its event goes.
    subject: &'a str,
}

async fn list(outbox: &dyn Outbox, routes: &[Route], output: Output) -> anyhow::Result<ExitCode> {
    let mut table = Table::new(["ROUTE", "ID", "TOKEN", "CLAIMED", "SUBJECT"]);
    for route in routes {
        let addresses = outbox.addresses(route).await.with_context(|| format!("read {}", route.addresses_key()))?;
        let mut cursor = 0;
        loop {
            let page = outbox.page(route, cursor).await.with_context(|| format!("read {}", route.outbox_key()))?;
            let rows = page.entries.iter().map(|entry| {
                let token = entry.token.parse::<Token>().ok();
                let subject = token.and_then(|token| addresses.of(token)).map_or(route, |address| &**address).subject();
                let claimed = token.map(|token| humantime::format_rfc3339_millis(token.time()).to_string());
                EntryRow { route: route.name(), entity_id: &entry.id, token: &entry.token, claimed, subject }
            });
            let read = match output {
                Output::Json => {
                    let lines = rows.map(|row| serde_json::to_string(&row)).collect::<Result<Vec<_>, _>>();
                    lines.context("print")?.iter().all(|line| print(line))
                }
                Output::Text => table.rows(&rows.map(EntryRow::cells).collect::<Vec<_>>()),
            };
            cursor = page.next;
            if !read {
                return Ok(ExitCode::SUCCESS);
            }
            if cursor == 0 {
                break;
            }
        }
    }
    if output == Output::Text {
        table.end("the outbox is empty: NATS has acknowledged everything");
    }
    Ok(ExitCode::SUCCESS)
}

impl EntryRow<'_> {
    fn cells(self) -> [String; 5] {
        [
            self.route.to_owned(),
            self.entity_id.escape_debug().to_string(),
            self.token.escape_debug().to_string(),
            self.claimed.unwrap_or_else(|| "not written by hookgate".to_owned()),
            self.subject.to_owned(),
        ]
    }
}

async fn relay(
    outbox: Arc<dyn Outbox>,
    routes: &[Route],
    settings: &Settings,
    output: Output,
) -> anyhow::Result<ExitCode> {
    let tasks = TaskTracker::new();
    let publisher = app::open_publisher(settings, &tasks).await?;
    store::up("NATS", publisher.contact()).await?;
    let (metrics, _) = Metrics::new(&settings.routes, &[]);
    let repeats = app::repeats(settings.delivery);
    let (after, ack_timeout) = (settings.relay_after, settings.policy.ack_timeout);
    let relay = Relay::new(Arc::clone(&outbox), publisher, after, repeats, ack_timeout, metrics, Tracer::default());
    let (mut failed, mut unsettled) = (0, 0);
    for route in routes {
        let walked = watched(&*outbox, route, relay.relay_now(&Arc::new(route.clone()))).await?;
        failed += walked.failed + walked.poison;
        unsettled += walked.unsettled;
        print(&match output {
            Output::Json => serde_json::to_string(&Relayed::new(route, &walked)).context("print")?,
            Output::Text => {
                let Walked { published, failed, poison, reason, unsettled, refusal } = &walked;
                let said = reason.as_ref().map_or_else(String::new, |reason| format!(" (NATS: {reason})"));
                let left = refusal.as_ref().map_or_else(String::new, |refusal| {
                    format!(", {unsettled} published and still in the outbox (Redis: {refusal})")
                });
                format!(
                    "{route}: {published} published, {failed} not acknowledged{said}, {poison} not written by hookgate{left}"
                )
            }
        });
    }
    if failed > 0 {
        let (entries, are) = (counted(failed, "entry", "entries"), if failed == 1 { "is" } else { "are" });
        bail!("{entries} {are} still in the outbox; `hookgate outbox list` shows what is there");
    }
    if unsettled > 0 {
        bail!(
            "NATS has {unsettled} events whose entries Redis can't delete now; they leave the outbox once it can, published once more"
        );
    }
    Ok(ExitCode::SUCCESS)
}

/// Shows how much of an outbox is left until its relay ends.
async fn watched(
    outbox: &dyn Outbox,
    route: &Route,
    relay: impl Future<Output = Result<Walked, RelayError>>,
) -> anyhow::Result<Walked> {
    let total = outbox.count(route).await.unwrap_or(0);
    let progress = Progress::new();
    let bar = progress.count(&format!("outbox of {route}"), total);
    let watch = async {
        loop {
            tokio::time::sleep(LOOK_EVERY).await;
            if let Ok(left) = outbox.count(route).await {
                bar.set_position(total.saturating_sub(left) as u64);
            }
        }
    };
    let walked = tokio::select! {
        walked = relay => walked,
        () = watch => unreachable!("it watches for ever"),
    };
    progress.end();
    walked.with_context(|| format!("relay the outbox of {route}"))
}

#[derive(Serialize)]
struct Relayed<'a> {
    route: &'a str,
    published: usize,
    failed: usize,
    poison: usize,
    #[serde(skip_serializing_if = "Option::is_none")]
    reason: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    unsettled: Option<usize>,
    #[serde(skip_serializing_if = "Option::is_none")]
    refusal: Option<String>,
}

impl<'a> Relayed<'a> {
    fn new(route: &'a Route, walked: &Walked) -> Self {
        let Walked { published, failed, poison, reason, unsettled, refusal } = walked;
        let reason = reason.as_ref().map(ToString::to_string);
        let unsettled = Some(*unsettled).filter(|unsettled| *unsettled > 0);
        Self {
            route: route.name(),
            published: *published,
            failed: *failed,
            poison: *poison,
            reason,
            unsettled,
            refusal: refusal.clone(),
        }
    }
}
