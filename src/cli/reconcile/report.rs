//! What people see: the plan of a dry run, and the summary.

use std::collections::BTreeMap;

use anyhow::Context;
use hookgate::{
    recovery::{Brought, Verdict},
    route::Route,
};
use serde::Serialize;

use super::super::{Output, print as print_line, table::Table};

/// What became of the ids of a route.
#[derive(Debug, Serialize)]
pub(super) struct Tally {
    route: String,
    /// Ids in all.
    sought: usize,
    /// They had their event.
    pub(super) delivered: usize,
    /// They got one now (or would).
    published: usize,
    /// Of those: the stream could not tell.
    unknown: usize,
    /// They got none.
    pub(super) failed: usize,
    /// Items that were taken out of the CRM's queue.
    pub(super) cleared: usize,
}

impl Tally {
    pub(super) fn new(route: &Route, sought: usize) -> Self {
        Self { route: route.name().to_owned(), sought, delivered: 0, published: 0, unknown: 0, failed: 0, cleared: 0 }
    }

    pub(super) fn plan(&mut self, verdict: Verdict) {
        match verdict {
            Verdict::Delivered => self.delivered += 1,
            Verdict::Earlier | Verdict::Missing => self.published += 1,
            Verdict::Unknown => {
                self.published += 1;
                self.unknown += 1;
            }
        }
    }

    pub(super) fn brought(&mut self, brought: Brought, verdict: Verdict) {
        match brought {
            Brought::Pending => self.delivered += 1,
            Brought::Published => self.plan(if verdict == Verdict::Delivered { Verdict::Missing } else { verdict }),
        }
    }
}

/// What a dry run would do.
pub(super) struct Plan {
    output: Output,
    table: Table<3>,
    /// Printed together, so that their columns are aligned.
    rows: Vec<[String; 3]>,
}

/// Rows that are printed together.
const TOGETHER: usize = 500;

#[derive(Serialize)]
struct Planned<'a> {
    route: &'a str,
    entity_id: &'a str,
    verdict: &'static str,
}

impl Plan {
    pub(super) fn new(output: Output) -> Self {
        Self { output, table: Table::new(["ROUTE", "ID", "VERDICT"]), rows: Vec::new() }
    }

    /// Returns false once standard output is closed.
    pub(super) fn add(&mut self, route: &Route, id: &str, verdict: Verdict) -> anyhow::Result<bool> {
        let (verdict, said) = match verdict {
            Verdict::Delivered => ("delivered", "delivered"),
            Verdict::Earlier => ("earlier", "would publish: its last event is not certainly later"),
            Verdict::Missing => ("missing", "would publish: no event"),
            Verdict::Unknown => ("unknown", "would publish: the stream can't tell"),
        };
        match self.output {
            Output::Json => {
                let planned = Planned { route: route.name(), entity_id: id, verdict };
                return Ok(print_line(&serde_json::to_string(&planned).context("print")?));
            }
            Output::Text if verdict != "delivered" => {
                self.rows.push([route.name().to_owned(), id.escape_debug().to_string(), said.to_owned()]);
            }
            Output::Text => {}
        }
        Ok(self.rows.len() < TOGETHER || self.flush())
    }

    fn flush(&mut self) -> bool {
        self.table.rows(&std::mem::take(&mut self.rows))
    }

    pub(super) fn end(mut self) {
        if self.output == Output::Text && self.flush() {
            self.table.end("nothing would be published");
            print_line("");
        }
    }
}

/// The summary.
pub(super) fn print(
    tallies: &[Tally],
    skipped: &BTreeMap<&'static str, usize>,
    dry_run: bool,
    output: Output,
) -> anyhow::Result<()> {
    for (what, count) in skipped {
        super::super::tell(&format!("hookgate: skipped: {count} {what}"));
    }
    match output {
        Output::Json => {
            for tally in tallies {
                print_line(&serde_json::to_string(tally).context("print")?);
            }
        }
        Output::Text => {
            let published = if dry_run { "TO PUBLISH" } else { "PUBLISHED" };
            let mut table =
                Table::new(["ROUTE", "SOUGHT", "DELIVERED", published, "OF THESE UNKNOWN", "FAILED", "CLEARED"]);
            let cells = |tally: &Tally| {
                let Tally { route, sought, delivered, published, unknown, failed, cleared } = tally;
                let numbers = [sought, delivered, published, unknown, failed, cleared].map(usize::to_string);
                let [sought, delivered, published, unknown, failed, cleared] = numbers;
                [route.clone(), sought, delivered, published, unknown, failed, cleared]
            };
            table.rows(&tallies.iter().map(cells).collect::<Vec<_>>());
            table.end("nothing was found to bring back");
        }
    }
    Ok(())
}
