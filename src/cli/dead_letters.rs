//! `hookgate dead-letters`: items and bodies that could not be processed.

use std::process::ExitCode;

use anyhow::{Context, bail};
use clap::Subcommand;
use hookgate::{
    dead_letters::{Buried, Graveyard},
    settings::Settings,
};
use serde::Serialize;

use super::{Output, print, store};

#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// The newest ones, newest first: name, time, route, reason, size. No contents.
    List {
        /// How many at most.
        #[arg(long, default_value_t = 100, value_name = "N")]
        count: usize,
    },
    /// One of them with its content, as it was received.
    Show {
        /// Its name, from the list.
        entry: String,
    },
    /// Drop all of them.
    Purge,
}

#[derive(Serialize)]
struct Row<'a> {
    entry: &'a str,
    time: &'a str,
    route: &'a str,
    reason: &'a str,
    bytes: usize,
    #[serde(skip_serializing_if = "Option::is_none")]
    raw: Option<String>,
}

impl<'a> Row<'a> {
    fn new(Buried { entry, letter }: &'a Buried, with_content: bool) -> Self {
        Self {
            entry,
            time: &letter.time,
            route: &letter.route,
            reason: &letter.reason,
            bytes: letter.raw.len(),
            raw: with_content.then(|| String::from_utf8_lossy(&letter.raw).into_owned()),
        }
    }
}

pub(super) fn run(command: &Command, settings: &Settings, output: Output) -> anyhow::Result<ExitCode> {
    store::block_on(async {
        let graveyard = store::open(settings).await?;
        match command {
            Command::List { count } => {
                for buried in graveyard.letters(*count, None).await.context("read the dead letters")? {
                    let row = Row::new(&buried, false);
                    let line = match output {
                        Output::Json => serde_json::to_string(&row).context("print")?,
                        Output::Text => {
                            format!("{}  {}  {}  {}  {} bytes", row.entry, row.time, row.route, row.reason, row.bytes)
                        }
                    };
                    if !print(&line) {
                        break;
                    }
                }
            }
            Command::Show { entry } => {
                let found = graveyard.letters(1, Some(entry)).await.context("read the dead letters")?;
                let Some(buried) = found.first() else { bail!("there is no dead letter {entry:?}; see the list") };
                let row = Row::new(buried, true);
                print(&match output {
                    Output::Json => serde_json::to_string(&row).context("print")?,
                    // What somebody sent must not steer the terminal.
                    Output::Text => row.raw.unwrap_or_default().chars().map(printable).collect(),
                });
            }
            Command::Purge => {
                let count = graveyard.purge().await.context("drop the dead letters")?;
                print(&match output {
                    Output::Json => serde_json::json!({ "dropped": count }).to_string(),
                    Output::Text => format!("{count} dropped"),
                });
            }
        }
        Ok(ExitCode::SUCCESS)
    })
}

fn printable(c: char) -> char {
    if c.is_control() && !matches!(c, '\n' | '\t') { char::REPLACEMENT_CHARACTER } else { c }
}
