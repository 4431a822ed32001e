//! `hookgate pending`: ids that are claimed and not released.

mod list;
mod release;
mod republish;

use std::{
    process::ExitCode,
    sync::Arc,
    time::{Duration, SystemTime},
};

use anyhow::Context;
use clap::Subcommand;
use hookgate::{
    life::{LifeCounts, LifeStore, ScanResult},
    route::Route,
    settings::Settings,
};
use serde::Serialize;

use super::{Output, print, store, table::Table};

#[derive(Debug, Subcommand)]
#[command(after_help = "Examples:
  hookgate pending count
  hookgate pending list --older-than 1h --sort age
  hookgate pending release vmh/beteiligte/update 65f0c1")]
pub(crate) enum PendingCommand {
    /// Number of pending ids of each route, how many are in flight or marked, and the age of the oldest.
    Count,
    /// The pending ids: age, state, sequence, how often they were published again.
    List(list::ListArguments),
    /// Release ids whose events have been processed. On a terminal it asks first.
    Release(release::ReleaseArguments),
    /// Publish pending ids once more, under new tokens. On a terminal it asks first.
    Republish(republish::RepublishArguments),
}

pub(super) fn run(command: &PendingCommand, settings: &Settings, output: Output) -> anyhow::Result<ExitCode> {
    store::block_on(async {
        match command {
            PendingCommand::Count => count(&*store::open(settings).await?.life, settings, output).await,
            PendingCommand::List(arguments) => {
                list::run(arguments, &*store::open(settings).await?.life, settings, output).await
            }
            PendingCommand::Release(arguments) => release::run(arguments, settings, output).await,
            PendingCommand::Republish(arguments) => republish::run(arguments, settings, output).await,
        }
    })
}

/// The route of a name.
fn named(name: &str, settings: &Settings) -> anyhow::Result<Arc<Route>> {
    let route = settings.routes.routes().iter().find(|route| route.name() == name);
    route.cloned().with_context(|| format!("no route is named {name:?}; `hookgate routes` lists them"))
}

#[derive(Serialize)]
struct Count<'a> {
    route: &'a str,
    pending_key: &'a str,
    pending: usize,
    in_flight: usize,
    marked: usize,
    /// Of the first claim, as the last scan of the journal saw it.
    oldest_age_seconds: Option<u64>,
    /// When that look ended.
    scan_ended: Option<String>,
    /// How much of the journal the present look has seen, if one goes on: from 0 to 1.
    scanned: Option<f64>,
}

async fn count(life: &dyn LifeStore, settings: &Settings, output: Output) -> anyhow::Result<ExitCode> {
    let mut table = Table::new(["ROUTE", "PENDING", "IN FLIGHT", "MARKED", "OLDEST", "LAST SCAN"]);
    let mut rows = Vec::new();
    for route in settings.routes.routes() {
        let counts = life.life_counts(route).await.with_context(|| format!("count the pending ids of {route}"))?;
        let scan = life.scan_result(route).await.with_context(|| format!("read what the scan of {route} found"))?;
        let (LifeCounts { pending, in_flight, marked, .. }, scan) = (counts, scan.unwrap_or_default());
        match output {
            Output::Json => {
                let row = Count {
                    route: route.name(),
                    pending_key: route.pending_key(),
                    pending,
                    in_flight,
                    marked,
                    oldest_age_seconds: scan.oldest.map(|oldest| since(oldest).as_secs()),
                    scan_ended: scan.ended.map(rfc3339),
                    scanned: scan.seen.map(|seen| share(seen, counts.journaled)),
                };
                if !print(&serde_json::to_string(&row).context("print")?) {
                    return Ok(ExitCode::SUCCESS);
                }
            }
            Output::Text => rows.push([
                route.name().to_owned(),
                pending.to_string(),
                in_flight.to_string(),
                marked.to_string(),
                scan.oldest.map_or_else(|| "-".to_owned(), |oldest| age(since(oldest))),
                how_far(route, scan, counts.journaled),
            ]),
        }
    }
    if output == Output::Text {
        table.rows(&rows);
        table.end("no route is configured");
    }
    Ok(ExitCode::SUCCESS)
}

fn how_far(route: &Route, scan: ScanResult, journaled: usize) -> String {
    if !route.life().journal {
        return "no journal".to_owned();
    }
    let ended = scan.ended.map_or_else(|| "never".to_owned(), |ended| format!("{} ago", age(since(ended))));
    match scan.seen {
        None => ended,
        Some(seen) => format!("{ended}; {:.0} % of the next", share(seen, journaled) * 100.0),
    }
}

#[expect(clippy::cast_precision_loss, reason = "a share for people")]
fn share(seen: usize, of: usize) -> f64 {
    let share = seen as f64 / of.max(1) as f64;
    (share.min(1.0) * 1000.0).round() / 1000.0
}

fn since(time: SystemTime) -> Duration {
    SystemTime::now().duration_since(time).unwrap_or_default()
}

fn rfc3339(time: SystemTime) -> String {
    humantime::format_rfc3339_millis(time).to_string()
}

/// An age in its two largest units.
fn age(age: Duration) -> String {
    let seconds = age.as_secs();
    match seconds {
        0..60 => format!("{seconds}s"),
        60..3600 => format!("{}m {}s", seconds / 60, seconds % 60),
        3600..86_400 => format!("{}h {}m", seconds / 3600, seconds / 60 % 60),
        _ => format!("{}d {}h", seconds / 86_400, seconds / 3600 % 24),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_age_has_two_units() {
        let said = [0, 59, 60, 3599, 3600, 86_399, 86_400, 90_000].map(|seconds| age(Duration::from_secs(seconds)));
        assert_eq!(said, ["0s", "59s", "1m 0s", "59m 59s", "1h 0m", "23h 59m", "1d 0h", "1d 1h"]);
    }

    #[test]
    fn no_share_is_more_than_all() {
        let said = [(0, 0), (1, 3), (5, 4)].map(|(seen, of)| share(seen, of).to_string());
        assert_eq!(said, ["0", "0.333", "1"]);
    }
}
