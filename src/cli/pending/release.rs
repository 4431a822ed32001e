//! `hookgate pending release`.

use std::{process::ExitCode, sync::Arc};

use anyhow::{Context, bail};
use hookgate::{app, event::Token, life::Releases, metrics::ReleasedBy, settings::Settings};
use serde::Serialize;
use tokio_util::task::TaskTracker;

use super::{
    super::{Output, confirm, print, store, table::counted, tell},
    named,
};

/// Ids of one call.
const TOGETHER: usize = 500;

#[derive(Debug, clap::Args)]
#[command(
    after_help = "An id that a webhook had marked is claimed anew and republished. What is not pending is said, and is no failure.

Examples:
  hookgate pending release vmh/beteiligte/update 65f0c1 65f0c2
  hookgate pending release vmh/beteiligte/update 65f0c1 --token 0197e2c5a0007abc8def0123456789ab-0 --yes"
)]
pub(crate) struct ReleaseArguments {
    /// The route, by its name.
    #[arg(value_name = "FLOW/ENTITY/ACTION")]
    route: String,
    /// The entities' ids.
    #[arg(value_name = "ID", required = true)]
    ids: Vec<String>,
    /// Only if this is the newest claim of the id: the `Nats-Msg-Id` of its event.
    #[arg(long, value_name = "TOKEN")]
    token: Option<Token>,
    /// Don't ask.
    #[arg(long)]
    yes: bool,
}

#[derive(Serialize)]
struct Row<'a> {
    route: &'a str,
    entity_id: &'a str,
    outcome: &'static str,
}

pub(super) async fn run(arguments: &ReleaseArguments, settings: &Settings, output: Output) -> anyhow::Result<ExitCode> {
    let ReleaseArguments { route, ids, token, yes } = arguments;
    let route = named(route, settings)?;
    if token.is_some() && ids.len() > 1 {
        bail!("--token is of one claim: name one id with it");
    }
    let question = format!("release {} of {route}? Then they count as processed.", counted(ids.len(), "id", "ids"));
    if !yes && !confirm(&question)? {
        return Ok(ExitCode::from(2));
    }
    let opened = store::open(settings).await?;
    let tasks = TaskTracker::new();
    let publisher = app::open_publisher(settings, &tasks).await?;
    if let Err(error) = store::up("NATS", publisher.contact()).await {
        tell(&format!("hookgate: {error:#}; the event of a marked id is left to the relay"));
    }
    let service = Releases::new(opened.keeper(settings, publisher), Arc::new(settings.routes.clone()));
    for part in ids.chunks(TOGETHER) {
        let released = service.release(&route, part.to_vec(), *token, ReleasedBy::Admin).await;
        let report = released.with_context(|| format!("release ids of {route}"))?;
        for (ids, outcome, words) in [
            (&report.released, "released", "released"),
            (&report.not_pending, "not_pending", "not pending"),
            (&report.republished, "republished", "marked: claimed anew and republished"),
        ] {
            for id in ids {
                let row = Row { route: route.name(), entity_id: id, outcome };
                print(&match output {
                    Output::Json => serde_json::to_string(&row).context("print")?,
                    Output::Text => format!("{}: {words}", id.escape_debug()),
                });
            }
        }
    }
    opened.pending.close(settings.request_deadline).await;
    Ok(ExitCode::SUCCESS)
}
