//! `hookgate dead-letters`: items and bodies that could not be processed.

use std::process::ExitCode;

use anyhow::{Context, anyhow};
use clap::Subcommand;
use hookgate::{dead_letters::KeptLetter, settings::Settings};
use serde::Serialize;

use super::{Output, print, store, table::Table, tell};

#[derive(Debug, Subcommand)]
pub(crate) enum DeadLettersCommand {
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
    /// Drop all of them. On a terminal it asks first.
    Purge {
        /// Don't ask.
        #[arg(long)]
        yes: bool,
    },
}

#[derive(Serialize)]
struct LetterRow<'a> {
    entry: &'a str,
    time: &'a str,
    route: &'a str,
    reason: &'a str,
    bytes: usize,
    #[serde(skip_serializing_if = "Option::is_none")]
    raw: Option<String>,
}

impl<'a> LetterRow<'a> {
    fn new(KeptLetter { entry, letter }: &'a KeptLetter, with_content: bool) -> Self {
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

pub(super) fn run(command: &DeadLettersCommand, settings: &Settings, output: Output) -> anyhow::Result<ExitCode> {
    if let DeadLettersCommand::Purge { yes: false } = command
        && !confirm("drop all dead letters?")?
    {
        return Ok(ExitCode::from(2));
    }
    store::block_on(async {
        let letters = store::open(settings).await?.dead_letters;
        match command {
            DeadLettersCommand::List { count } => {
                let found = letters.letters(*count, None).await.context("read the dead letters")?;
                list(found.iter().map(|letter| LetterRow::new(letter, false)), output)?;
            }
            DeadLettersCommand::Show { entry } => {
                let missing =
                    || anyhow!("no dead letter is named {entry:?}; `hookgate dead-letters list` has the names");
                if !is_name(entry) {
                    return Err(missing());
                }
                let found = letters.letters(1, Some(entry)).await.context("read the dead letters")?;
                let row = LetterRow::new(found.first().ok_or_else(missing)?, true);
                print(&match output {
                    Output::Json => serde_json::to_string(&row).context("print")?,
                    // What somebody sent must not steer the terminal.
                    Output::Text => row.raw.unwrap_or_default().chars().map(printable).collect(),
                });
            }
            DeadLettersCommand::Purge { yes: _ } => {
                let count = letters.purge().await.context("drop the dead letters")?;
                print(&match output {
                    Output::Json => serde_json::json!({ "dropped": count }).to_string(),
                    Output::Text => format!("{count} dropped"),
                });
            }
        }
        Ok(ExitCode::SUCCESS)
    })
}

fn list<'a>(rows: impl Iterator<Item = LetterRow<'a>>, output: Output) -> anyhow::Result<()> {
    match output {
        Output::Json => {
            for row in rows {
                if !print(&serde_json::to_string(&row).context("print")?) {
                    break;
                }
            }
        }
        Output::Text => {
            let mut table = Table::new(["NAME", "TIME", "ROUTE", "REASON", "BYTES"]);
            let cells = |row: LetterRow<'_>| {
                [row.entry, row.time, row.route, row.reason, &row.bytes.to_string()].map(str::to_owned)
            };
            table.rows(&rows.map(cells).collect::<Vec<_>>());
            table.end("no dead letters");
        }
    }
    Ok(())
}

/// The store names them so, and would not say which name it can't read.
fn is_name(entry: &str) -> bool {
    let number = |part: &str| !part.is_empty() && part.bytes().all(|byte| byte.is_ascii_digit());
    entry.split_once('-').is_some_and(|(time, counter)| number(time) && number(counter))
}

/// Asks on a terminal; elsewhere only `--yes` will do.
fn confirm(question: &str) -> anyhow::Result<bool> {
    use std::io::IsTerminal;
    if !std::io::stdin().is_terminal() || !std::io::stderr().is_terminal() {
        tell(&format!("hookgate: {question} There is nobody to ask; say --yes"));
        return Ok(false);
    }
    eprint!("{question} [y/N] ");
    let mut answer = String::new();
    std::io::stdin().read_line(&mut answer).context("read the answer")?;
    Ok(matches!(answer.trim(), "y" | "Y" | "yes"))
}

fn printable(c: char) -> char {
    if c.is_control() && !matches!(c, '\n' | '\t') { char::REPLACEMENT_CHARACTER } else { c }
}
