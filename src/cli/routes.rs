//! `hookgate routes`: which path leads where, in the order of the configuration.

use std::process::ExitCode;

use anyhow::Context;
use hookgate::settings::Settings;
use serde::Serialize;

use super::{Output, print, table::Table};

#[derive(Serialize)]
struct RouteRow<'a> {
    route: &'a str,
    path: &'a str,
    subject: &'a str,
    pending_key: &'a str,
    /// Schemes, one of which a request has to satisfy; none: anybody is let in.
    auth: Vec<&'static str>,
    label: &'a str,
}

pub(super) fn run(settings: &Settings, output: Output) -> anyhow::Result<ExitCode> {
    let rows = settings.routes.routes().iter().map(|route| RouteRow {
        route: route.name(),
        path: route.path(),
        subject: route.subject(),
        pending_key: route.pending_key(),
        auth: settings.verifiers.of(route).schemes().collect(),
        label: route.label(),
    });
    match output {
        Output::Json => {
            for row in rows {
                print(&serde_json::to_string(&row).context("print the routes")?);
            }
        }
        Output::Text => {
            let mut table = Table::new(["ROUTE", "PATH", "SUBJECT", "PENDING KEY", "AUTH"]);
            let cells = |row: RouteRow<'_>| {
                let auth = if row.auth.is_empty() { "none".to_owned() } else { row.auth.join(", ") };
                [row.route, row.path, row.subject, row.pending_key, &auth].map(str::to_owned)
            };
            table.rows(&rows.map(cells).collect::<Vec<_>>());
            table.end("no routes");
        }
    }
    Ok(ExitCode::SUCCESS)
}
