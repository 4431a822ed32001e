//! `hookgate routes`: which path leads where.

use std::process::ExitCode;

use anyhow::Context;
use hookgate::{route::Route, settings::Settings};
use serde::Serialize;

use super::{Output, print};

#[derive(Serialize)]
struct Row<'a> {
    route: &'a str,
    path: &'a str,
    subject: &'a str,
    pending_key: &'a str,
    label: &'a str,
}

impl<'a> From<&'a Route> for Row<'a> {
    fn from(route: &'a Route) -> Self {
        Self {
            route: route.name(),
            path: route.path(),
            subject: route.subject(),
            pending_key: route.pending_key(),
            label: route.label(),
        }
    }
}

pub(super) fn run(settings: &Settings, output: Output) -> anyhow::Result<ExitCode> {
    let rows: Vec<Row<'_>> = settings.routes.routes().iter().map(|route| Row::from(&**route)).collect();
    match output {
        Output::Json => {
            print(&serde_json::to_string_pretty(&rows).context("print the routes")?);
        }
        Output::Text => {
            for Row { route, path, subject, pending_key, label } in rows {
                print(&format!(
                    "{route}\n  POST {path}\n  -> subject {subject}\n     pending {pending_key}\n     label   {label}"
                ));
            }
        }
    }
    Ok(ExitCode::SUCCESS)
}
