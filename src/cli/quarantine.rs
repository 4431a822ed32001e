//! `hookgate quarantine`: bodies whose signature was wrong.

use std::process::ExitCode;

use anyhow::{Context, bail};
use clap::Subcommand;
use hookgate::{
    app,
    quarantine::{Held, QuarantineStore},
    recovery::{ReleasePass, mentions},
    settings::Settings,
};
use serde::Serialize;
use tokio_util::task::TaskTracker;

use super::{Output, confirm, print, store, table::Table};

/// Bodies that are listed at once.
const PAGE: usize = 100;

#[derive(Debug, Subcommand)]
#[command(after_help = "Examples:
  hookgate quarantine list
  hookgate quarantine release                  once the secret is mended
  hookgate quarantine purge --id 65f0c1        for a client who wants to be forgotten")]
pub(crate) enum QuarantineCommand {
    /// What is kept, oldest first: name, time, route, webhook id, size. No contents.
    List,
    /// Verify all of them again, publish what proves good, and drop it.
    Release,
    /// Drop them: all, or those that all filters take. On a terminal it asks first.
    Purge {
        /// These, by their names from the list.
        #[arg(value_name = "NAME")]
        names: Vec<String>,
        /// Those of this route.
        #[arg(long)]
        route: Option<String>,
        /// Those that mention this id of a record.
        #[arg(long)]
        id: Option<String>,
        /// Don't ask.
        #[arg(long)]
        yes: bool,
    },
}

#[derive(Serialize)]
struct HeldRow<'a> {
    entry: &'a str,
    time: String,
    route: &'a str,
    /// None: one that no route knows.
    webhook_id: Option<&'a str>,
    bytes: usize,
}

impl<'a> HeldRow<'a> {
    fn new(held: &'a Held) -> Self {
        Self {
            entry: &held.entry,
            time: humantime::format_rfc3339_millis(held.time).to_string(),
            route: &held.route,
            webhook_id: held.share.split_once(' ').map(|(_, id)| id),
            bytes: held.bytes,
        }
    }
}

pub(super) fn run(command: &QuarantineCommand, settings: &Settings, output: Output) -> anyhow::Result<ExitCode> {
    if let QuarantineCommand::Purge { yes: false, .. } = command
        && !confirm("drop bodies from the quarantine?")?
    {
        return Ok(ExitCode::from(2));
    }
    store::block_on(async {
        let opened = store::open(settings).await?;
        let quarantine = opened.quarantine(settings);
        match command {
            QuarantineCommand::List => list(&*quarantine, output).await?,
            QuarantineCommand::Release => {
                let tasks = TaskTracker::new();
                let publisher = app::open_publisher(settings, &tasks).await?;
                store::up("NATS", publisher.contact()).await?;
                let releaser = opened.releaser(settings, quarantine, &publisher);
                let mut pass = ReleasePass::default();
                let outcome = releaser.look(&uuid::Uuid::new_v4().to_string(), &mut pass).await;
                opened.pending.close(settings.request_deadline).await;
                let ReleasePass { seen, released, not_good, .. } = pass;
                print(&match output {
                    Output::Json => {
                        serde_json::json!({ "seen": seen, "released": released, "not_good": not_good }).to_string()
                    }
                    Output::Text => format!("{seen} seen: {released} released, {not_good} still not good"),
                });
                if let Err(error) = outcome {
                    bail!("{error}; what was released until then is done, the rest stays");
                }
            }
            QuarantineCommand::Purge { names, route, id, yes: _ } => {
                let dropped = purge(&*quarantine, names, route.as_deref(), id.as_deref()).await?;
                print(&match output {
                    Output::Json => serde_json::json!({ "dropped": dropped }).to_string(),
                    Output::Text => format!("{dropped} dropped"),
                });
            }
        }
        Ok(ExitCode::SUCCESS)
    })
}

async fn list(quarantine: &dyn QuarantineStore, output: Output) -> anyhow::Result<()> {
    let mut table = Table::new(["NAME", "TIME", "ROUTE", "WEBHOOK", "BYTES"]);
    let mut behind: Option<String> = None;
    loop {
        let page = quarantine.page(behind.as_deref(), PAGE).await.context("read the quarantine")?;
        let Some(last) = page.last() else { break };
        behind = Some(last.entry.clone());
        let rows = page.iter().map(HeldRow::new);
        let read = match output {
            Output::Json => {
                let lines = rows.map(|row| serde_json::to_string(&row)).collect::<Result<Vec<_>, _>>();
                lines.context("print")?.iter().all(|line| print(line))
            }
            Output::Text => table.rows(&rows.map(HeldRow::cells).collect::<Vec<_>>()),
        };
        if !read {
            return Ok(());
        }
    }
    if output == Output::Text {
        table.end("the quarantine is empty");
    }
    Ok(())
}

impl HeldRow<'_> {
    fn cells(self) -> [String; 5] {
        let webhook = self.webhook_id.map_or_else(|| "unknown".to_owned(), |id| id.escape_debug().to_string());
        [self.entry.to_owned(), self.time, self.route.to_owned(), webhook, self.bytes.to_string()]
    }
}

async fn purge(
    quarantine: &dyn QuarantineStore,
    names: &[String],
    route: Option<&str>,
    id: Option<&str>,
) -> anyhow::Result<usize> {
    let (mut dropped, mut behind) = (0, None::<String>);
    loop {
        let page = quarantine.page(behind.as_deref(), PAGE).await.context("read the quarantine")?;
        let Some(last) = page.last() else { return Ok(dropped) };
        behind = Some(last.entry.clone());
        let mut chosen = Vec::new();
        for held in page {
            let chosen_by_name = names.is_empty() || names.contains(&held.entry);
            if !chosen_by_name || route.is_some_and(|route| route != held.route) {
                continue;
            }
            if let Some(id) = id {
                let body = quarantine.body(&held.entry).await.context("read a body")?;
                if !body.is_some_and(|body| mentions(&body, id)) {
                    continue;
                }
            }
            chosen.push(held.entry);
        }
        if !chosen.is_empty() {
            dropped += quarantine.remove(&chosen).await.context("drop bodies")?;
        }
    }
}
