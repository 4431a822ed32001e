//! `hookgate dead-letters`: items and bodies that could not be processed.

mod replay;

use std::{collections::HashMap, process::ExitCode};

use anyhow::{Context, anyhow};
use clap::Subcommand;
use hookgate::{
    app::operator::OperatorStore,
    dead_letters::{KeptLetter, ReviewedLetter},
    recovery::{GAVE_UP, mentions},
    settings::Settings,
};
use serde::Serialize;

use super::{Output, confirm, print, store, table::Table};

/// Letters that are read at once.
const PAGE: usize = 100;

#[derive(Debug, Subcommand)]
#[command(after_help = "Examples:
  hookgate dead-letters list
  hookgate dead-letters show 1764374400000-0
  hookgate dead-letters replay --reason gave_up")]
pub(crate) enum DeadLettersCommand {
    /// The newest ones, newest first: name, time, route, reason, size, and what became of a replay. No contents.
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
    /// Take their ids through claim and publish again.
    Replay(replay::ReplayArguments),
    /// Drop them: all, or those that all filters take. On a terminal it asks first.
    #[command(after_help = "Examples:
  hookgate dead-letters purge --yes                            all of them
  hookgate dead-letters purge --id 6601aa0b1c2d3e4f5 --yes     of a client who wants to be forgotten
  hookgate dead-letters purge --reason not_json --yes")]
    Purge {
        #[command(flatten)]
        filter: Filter,
        /// Don't ask.
        #[arg(long)]
        yes: bool,
    },
}

/// Which letters are meant.
#[derive(Debug, Default, clap::Args)]
pub(crate) struct Filter {
    /// These, by their names from the list.
    #[arg(value_name = "NAME")]
    names: Vec<String>,
    /// Those with this reason.
    #[arg(long)]
    reason: Option<String>,
    /// Those of this route.
    #[arg(long)]
    route: Option<String>,
    /// Those that mention this id.
    #[arg(long)]
    id: Option<String>,
}

impl Filter {
    const fn is_empty(&self) -> bool {
        self.names.is_empty() && self.reason.is_none() && self.route.is_none() && self.id.is_none()
    }

    fn takes(&self, KeptLetter { entry, letter }: &KeptLetter) -> bool {
        (self.names.is_empty() || self.names.contains(entry))
            && self.reason.as_ref().is_none_or(|reason| *reason == letter.reason)
            && self.route.as_ref().is_none_or(|route| *route == letter.route)
            && self.id.as_ref().is_none_or(|id| mentions(&letter.raw, id))
    }

    /// The letters that it takes, newest first.
    async fn find(&self, store: &OperatorStore) -> anyhow::Result<Vec<ReviewedLetter>> {
        if !self.names.is_empty() {
            let mut found = Vec::new();
            for name in &self.names {
                found.push(one(store, name).await?);
            }
            found.retain(|letter| self.takes(&letter.kept));
            return Ok(found);
        }
        let mut found: Vec<ReviewedLetter> = Vec::new();
        let mut before: Option<String> = None;
        loop {
            let page = store.review_letters(before.as_deref(), PAGE).await.context("read the dead letters")?;
            let Some(last) = page.last() else { return Ok(found) };
            before = Some(last.kept.entry.clone());
            found.extend(page.into_iter().filter(|letter| self.takes(&letter.kept)));
        }
    }
}

/// How many events each consumer of each stream gave up, as far as their letters are kept.
pub(super) async fn given_up(store: &OperatorStore) -> anyhow::Result<HashMap<(String, String), u64>> {
    let filter = Filter { reason: Some(GAVE_UP.to_owned()), ..Filter::default() };
    let mut counts = HashMap::new();
    for found in filter.find(store).await? {
        let Ok(raw) = serde_json::from_slice::<serde_json::Value>(&found.kept.letter.raw) else { continue };
        let text = |member: &str| raw[member].as_str().unwrap_or_default().to_owned();
        *counts.entry((text("stream"), text("consumer"))).or_default() += 1;
    }
    Ok(counts)
}

async fn one(store: &OperatorStore, name: &str) -> anyhow::Result<ReviewedLetter> {
    let missing = || anyhow!("no dead letter is named {name:?}; `hookgate dead-letters list` has the names");
    if !is_name(name) {
        return Err(missing());
    }
    store.review_letter(name).await.context("read the dead letters")?.ok_or_else(missing)
}

#[derive(Serialize)]
struct LetterRow<'a> {
    entry: &'a str,
    time: &'a str,
    route: &'a str,
    reason: &'a str,
    bytes: usize,
    /// What became of its last replay.
    #[serde(skip_serializing_if = "Option::is_none")]
    replay: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    raw: Option<String>,
}

impl<'a> LetterRow<'a> {
    fn new(
        ReviewedLetter { kept: KeptLetter { entry, letter }, note }: &'a ReviewedLetter,
        with_content: bool,
    ) -> Self {
        Self {
            entry,
            time: &letter.time,
            route: &letter.route,
            reason: &letter.reason,
            bytes: letter.raw.len(),
            replay: note.as_ref().map(ToString::to_string),
            raw: with_content.then(|| String::from_utf8_lossy(&letter.raw).into_owned()),
        }
    }
}

pub(super) fn run(command: &DeadLettersCommand, settings: &Settings, output: Output) -> anyhow::Result<ExitCode> {
    if let DeadLettersCommand::Purge { yes: false, filter } = command {
        let question =
            if filter.is_empty() { "drop all dead letters?" } else { "drop the dead letters that the filters take?" };
        if !confirm(question)? {
            return Ok(ExitCode::from(2));
        }
    }
    store::block_on(async {
        let store = store::open(settings).await?;
        match command {
            DeadLettersCommand::List { count } => list(&store, *count, output).await?,
            DeadLettersCommand::Show { entry } => {
                let found = one(&store, entry).await?;
                let row = LetterRow::new(&found, true);
                print(&match output {
                    Output::Json => serde_json::to_string(&row).context("print")?,
                    // What somebody sent must not steer the terminal.
                    Output::Text => row.raw.unwrap_or_default().chars().map(printable).collect(),
                });
            }
            DeadLettersCommand::Replay(arguments) => return replay::run(arguments, &store, settings, output).await,
            DeadLettersCommand::Purge { filter, yes: _ } => {
                let count = purge(&store, filter).await?;
                print(&match output {
                    Output::Json => serde_json::json!({ "dropped": count }).to_string(),
                    Output::Text => format!("{count} dropped"),
                });
            }
        }
        Ok(ExitCode::SUCCESS)
    })
}

async fn purge(store: &OperatorStore, filter: &Filter) -> anyhow::Result<usize> {
    if filter.is_empty() {
        return store.dead_letters.purge().await.context("drop the dead letters");
    }
    let found = filter.find(store).await?;
    let names: Vec<_> = found.into_iter().map(|letter| letter.kept.entry).collect();
    let mut dropped = 0;
    for part in names.chunks(PAGE) {
        dropped += store.drop_letters(part).await.context("drop dead letters")?;
    }
    Ok(dropped)
}

async fn list(store: &OperatorStore, count: usize, output: Output) -> anyhow::Result<()> {
    let mut table = Table::new(["NAME", "TIME", "ROUTE", "REASON", "BYTES", "REPLAY"]);
    let (mut left, mut before) = (count, None::<String>);
    while left > 0 {
        let page = store.review_letters(before.as_deref(), left.min(PAGE)).await.context("read the dead letters")?;
        let Some(last) = page.last() else { break };
        before = Some(last.kept.entry.clone());
        left -= page.len();
        let rows = page.iter().map(|letter| LetterRow::new(letter, false));
        let read = match output {
            Output::Json => {
                let lines = rows.map(|row| serde_json::to_string(&row)).collect::<Result<Vec<_>, _>>();
                lines.context("print")?.iter().all(|line| print(line))
            }
            Output::Text => table.rows(&rows.map(LetterRow::cells).collect::<Vec<_>>()),
        };
        if !read {
            return Ok(());
        }
    }
    if output == Output::Text {
        table.end("no dead letters");
    }
    Ok(())
}

impl LetterRow<'_> {
    fn cells(self) -> [String; 6] {
        let replay = self.replay.unwrap_or_default();
        [self.entry, self.time, self.route, self.reason, &self.bytes.to_string(), &replay].map(str::to_owned)
    }
}

/// The store names them so, and would not say which name it can't read.
fn is_name(entry: &str) -> bool {
    let entry = entry.strip_prefix('g').unwrap_or(entry);
    let number = |part: &str| !part.is_empty() && part.bytes().all(|byte| byte.is_ascii_digit());
    entry.split_once('-').is_some_and(|(time, counter)| number(time) && number(counter))
}

fn printable(c: char) -> char {
    if c.is_control() && !matches!(c, '\n' | '\t') { char::REPLACEMENT_CHARACTER } else { c }
}
