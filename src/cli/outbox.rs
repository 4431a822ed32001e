//! `hookgate outbox`: claims that NATS has not acknowledged.

use std::{
    process::ExitCode,
    sync::Arc,
    time::{Duration, SystemTime},
};

use anyhow::{Context, bail};
use clap::Subcommand;
use hashbrown::HashSet;
use hookgate::{
    app::{self, operator::OperatorStore},
    delivery::StoreError,
    event::Token,
    life::{LifeStore, Listing, Reclaim, ReclaimWhy},
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
/// Marked ids that are read at once.
const PAGE: usize = 1000;

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
    /// Publish all entries now, whatever their age, and ids that a webhook marked (`while_pending = "coalesce"`).
    Relay,
}

pub(super) fn run(command: &OutboxCommand, settings: &Settings, output: Output) -> anyhow::Result<ExitCode> {
    store::block_on(async {
        let opened = store::open(settings).await?;
        let outbox = Arc::clone(&opened.outbox);
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
            OutboxCommand::Relay => relay(&opened, &routes, settings, output).await,
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
    opened: &OperatorStore,
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
    let outbox = &*opened.outbox;
    let relay =
        Relay::new(Arc::clone(&opened.outbox), publisher, after, repeats, ack_timeout, metrics, Tracer::default());
    let (mut failed, mut unsettled, mut marks_left) = (0, 0, 0);
    for route in routes {
        let route = &Arc::new(route.clone());
        let mut walked = watched(outbox, route, relay.relay_now(route)).await?;
        let marked = claim_marked(&*opened.life, route).await;
        let marked = marked.with_context(|| format!("claim the marked ids of {route}"))?;
        marks_left += marked.left.len();
        if marked.claimed > 0 {
            let before = walked.published;
            walked = watched(outbox, route, relay.relay_now(route)).await?;
            walked.published += before;
        }
        failed += walked.failed + walked.poison;
        unsettled += walked.unsettled;
        print(&match output {
            Output::Json => serde_json::to_string(&Relayed::new(route, &walked, marked.claimed)).context("print")?,
            Output::Text => {
                let Walked { published, failed, poison, reason, unsettled, refusal } = &walked;
                let said = reason.as_ref().map_or_else(String::new, |reason| format!(" (NATS: {reason})"));
                let left = refusal.as_ref().map_or_else(String::new, |refusal| {
                    format!(", {unsettled} published and still in the outbox (Redis: {refusal})")
                });
                let marked = match marked.claimed {
                    0 => String::new(),
                    claimed => format!("; {} claimed once more", counted(claimed, "marked id was", "marked ids were")),
                };
                format!(
                    "{route}: {published} published, {failed} not acknowledged{said}, {poison} not written by hookgate{left}{marked}"
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
    if marks_left > 0 {
        bail!(
            "{} left: their events are not acknowledged yet; repeat this, `hookgate pending count` shows what is marked",
            counted(marks_left, "marked id is", "marked ids are")
        );
    }
    opened.pending.close(settings.request_deadline).await;
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

/// What became of marked ids.
#[derive(Debug, Default)]
struct Marked {
    claimed: usize,
    left: HashSet<String>,
}

/// Claims ids that a webhook marked, as if their marks had waited for `coalesce_max_wait`. Their events are in the outbox then.
async fn claim_marked(life: &dyn LifeStore, route: &Arc<Route>) -> Result<Marked, StoreError> {
    let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    let until = u64::try_from(now.as_millis()).unwrap_or(u64::MAX);
    let (mut marked, mut cursor) = (Marked::default(), 0);
    loop {
        let page = life.known_page(route, Listing::Marks, cursor, PAGE).await?;
        // Some come twice: an id that was claimed is marked no more.
        let due = page.ids.into_iter().filter(|known| !marked.left.contains(&known.id));
        let due: Vec<_> = due.map(|known| Reclaim { id: known.id, why: ReclaimWhy::Marked { until } }).collect();
        for (Reclaim { id, .. }, token) in due.iter().zip(life.reclaim(route, &due).await?) {
            if token.is_some() {
                marked.claimed += 1;
            } else {
                marked.left.insert(id.clone());
            }
        }
        cursor = page.next;
        if cursor == 0 {
            return Ok(marked);
        }
    }
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
    /// Marked ids that were claimed once more.
    #[serde(skip_serializing_if = "Option::is_none")]
    marked: Option<usize>,
}

impl<'a> Relayed<'a> {
    fn new(route: &'a Route, walked: &Walked, marked: usize) -> Self {
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
            marked: Some(marked).filter(|marked| *marked > 0),
        }
    }
}
