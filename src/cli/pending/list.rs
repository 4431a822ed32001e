//! `hookgate pending list`.

use std::{
    collections::BTreeMap,
    process::ExitCode,
    str::FromStr,
    sync::Arc,
    time::{Duration, SystemTime},
};

use anyhow::{Context, bail};
use hookgate::{
    life::{Answer, JournalEntry, Known, LifeStore, Listing},
    route::{OnGiveUp, Release, Route},
    settings::Settings,
};
use serde::Serialize;

use super::{
    super::{Output, print, table::Table, tell},
    age, named, rfc3339,
};

/// Ids that are read at once.
const PAGE: usize = 1000;
/// Most ids that are sorted; they are held in memory.
const MAX_SORTED: usize = 100_000;
/// Ids that are sorted if nobody says how many.
const SORTED: usize = 1000;

#[derive(Debug, clap::Args)]
#[command(
    after_help = "An id without a journal entry has no age: --older-than leaves it out, and --sort age puts it last.

Examples:
  hookgate pending list --older-than 1h
  hookgate pending list --sort age --count 20         the oldest ones
  hookgate pending list --route vmh/beteiligte/update --count 1000"
)]
pub(crate) struct ListArguments {
    /// Only this route, by its name.
    #[arg(long, value_name = "FLOW/ENTITY/ACTION")]
    route: Option<String>,
    /// Only ids whose first claim is so long ago.
    #[arg(long, value_name = "TIME", value_parser = humantime::parse_duration)]
    older_than: Option<Duration>,
    /// The oldest first.
    #[arg(long, value_enum, conflicts_with = "cursor")]
    sort: Option<Sort>,
    /// About so many; where the next ones begin is said on standard error. Sorted: exactly so many [default: 1000].
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..))]
    count: Option<u32>,
    /// Where to begin, as the list before said.
    #[arg(long, value_name = "CURSOR")]
    cursor: Option<Cursor>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
enum Sort {
    /// By the age of the first claim.
    Age,
}

/// A place in a listing: a route, and Redis' cursor there.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Cursor {
    route: String,
    at: u64,
}

impl FromStr for Cursor {
    type Err = &'static str;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let parts = text.rsplit_once(':').and_then(|(route, at)| Some((route.to_owned(), at.parse().ok()?)));
        let (route, at) = parts.ok_or("FLOW/ENTITY/ACTION:NUMBER, as a list before said")?;
        Ok(Self { route, at })
    }
}

/// What an id waits for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
enum State {
    /// Its event is not acknowledged by NATS.
    InFlight,
    /// It waits for its release, or for consumers.
    Waiting,
    /// All consumers have answered, and one gave up.
    Kept,
    /// All consumers have answered; it is released soon.
    Answered,
    /// Nothing is known of it.
    NoJournal,
    /// Its journal entry was written by somebody else.
    ForeignJournal,
}

#[derive(Debug, Serialize)]
struct Row {
    route: String,
    entity_id: String,
    token: Option<String>,
    first_claimed: Option<String>,
    age_seconds: Option<u64>,
    state: State,
    /// Consumers that have not answered.
    waiting_for: Vec<String>,
    /// Consumers that gave up.
    gave_up: Vec<String>,
    /// When a webhook marked it.
    marked: Option<String>,
    sequence: Option<u64>,
    redelivered: u32,
    #[serde(skip)]
    first: Option<SystemTime>,
}

impl Row {
    fn new(route: &Route, known: Known) -> Self {
        let entry = known.journal.as_deref().map(JournalEntry::parse);
        let life = route.life();
        let (mut waiting_for, mut gave_up) = (Vec::new(), Vec::new());
        if let (Some(Some(entry)), Release::Ack) = (&entry, life.release) {
            for consumer in &life.consumers {
                match entry.answer_of(consumer) {
                    None => waiting_for.push(consumer.clone()),
                    Some(Answer::GaveUp) => gave_up.push(consumer.clone()),
                    Some(Answer::Acknowledged) => {}
                }
            }
        }
        let state = match &entry {
            _ if known.in_flight.is_some() => State::InFlight,
            None => State::NoJournal,
            Some(None) => State::ForeignJournal,
            Some(Some(_)) if life.release == Release::Explicit || !waiting_for.is_empty() => State::Waiting,
            Some(Some(_)) if life.on_give_up == OnGiveUp::Keep && !gave_up.is_empty() => State::Kept,
            Some(Some(_)) => State::Answered,
        };
        let entry = entry.flatten();
        // What is in flight says by its token when it was claimed.
        let token = entry.as_ref().map(|entry| entry.token.to_string()).or(known.in_flight);
        let first = entry.as_ref().map(|entry| entry.first_claimed);
        Self {
            route: route.name().to_owned(),
            entity_id: known.id,
            token,
            first_claimed: first.map(rfc3339),
            age_seconds: first.map(|first| super::since(first).as_secs()),
            state,
            waiting_for,
            gave_up,
            marked: known.marked.map(|millis| rfc3339(SystemTime::UNIX_EPOCH + Duration::from_millis(millis))),
            sequence: entry.as_ref().and_then(|entry| entry.sequence),
            redelivered: entry.as_ref().map_or(0, |entry| entry.redelivered),
            first,
        }
    }

    fn cells(&self) -> [String; 6] {
        let mut state = match self.state {
            State::InFlight => "in flight".to_owned(),
            State::Waiting if self.waiting_for.is_empty() => "waiting for its release".to_owned(),
            State::Waiting => format!("waiting for {}", self.waiting_for.join(", ")),
            State::Kept => format!("kept: {} gave up", self.gave_up.join(", ")),
            State::Answered => "answered".to_owned(),
            State::NoJournal => "no journal".to_owned(),
            State::ForeignJournal => "journal not written by hookgate".to_owned(),
        };
        if self.marked.is_some() {
            state.push_str(", marked");
        }
        [
            self.route.clone(),
            self.entity_id.escape_debug().to_string(),
            self.age_seconds.map_or_else(|| "?".to_owned(), |seconds| age(Duration::from_secs(seconds))),
            state,
            self.sequence.map_or_else(|| "-".to_owned(), |sequence| sequence.to_string()),
            self.redelivered.to_string(),
        ]
    }
}

/// Where rows go.
struct Sink {
    output: Output,
    table: Table<6>,
}

impl Sink {
    /// Returns false once standard output is closed.
    fn rows(&mut self, rows: &[Row]) -> anyhow::Result<bool> {
        Ok(match self.output {
            Output::Json => {
                let lines = rows.iter().map(serde_json::to_string).collect::<Result<Vec<_>, _>>();
                lines.context("print")?.iter().all(|line| print(line))
            }
            Output::Text => self.table.rows(&rows.iter().map(Row::cells).collect::<Vec<_>>()),
        })
    }
}

pub(super) async fn run(
    arguments: &ListArguments,
    life: &dyn LifeStore,
    settings: &Settings,
    output: Output,
) -> anyhow::Result<ExitCode> {
    let routes = match &arguments.route {
        Some(name) => vec![named(name, settings)?],
        None => settings.routes.routes().to_vec(),
    };
    let mut sink = Sink { output, table: Table::new(["ROUTE", "ID", "AGE", "STATE", "SEQUENCE", "REDELIVERED"]) };
    let whole = match arguments.sort {
        Some(Sort::Age) => oldest(arguments, life, &routes, &mut sink).await?,
        None => paged(arguments, life, &routes, &mut sink).await?,
    };
    if whole && output == Output::Text {
        sink.table.end("no such id is pending");
    }
    Ok(ExitCode::SUCCESS)
}

/// One page of ids, and where the next one begins.
async fn page(
    arguments: &ListArguments,
    life: &dyn LifeStore,
    route: &Route,
    cursor: u64,
) -> anyhow::Result<(Vec<Row>, u64)> {
    let count = arguments.count.map_or(PAGE, |count| PAGE.min(count as usize));
    let count = if arguments.sort.is_some() { PAGE } else { count };
    let page = life.known_page(route, Listing::Pending, cursor, count).await;
    let page = page.with_context(|| format!("read the pending ids of {route}"))?;
    let rows = page.ids.into_iter().filter(|known| known.pending).map(|known| Row::new(route, known));
    let old_enough = |row: &Row| {
        arguments.older_than.is_none_or(|least| row.first.is_some_and(|first| super::since(first) >= least))
    };
    Ok((rows.filter(old_enough).collect(), page.next))
}

/// In the order of Redis, page by page. Whether that was all.
async fn paged(
    arguments: &ListArguments,
    life: &dyn LifeStore,
    routes: &[Arc<Route>],
    sink: &mut Sink,
) -> anyhow::Result<bool> {
    let (mut first, mut cursor) = (0, 0);
    if let Some(begin) = &arguments.cursor {
        let Some(place) = routes.iter().position(|route| route.name() == begin.route) else {
            bail!("the cursor is of route {:?}, which is not listed", begin.route);
        };
        (first, cursor) = (place, begin.at);
    }
    let mut printed = 0;
    for (place, route) in routes.iter().enumerate().skip(first) {
        loop {
            let (rows, next) = page(arguments, life, route, cursor).await?;
            printed += rows.len();
            if !sink.rows(&rows)? {
                return Ok(false);
            }
            cursor = next;
            let after = if next == 0 { routes.get(place + 1) } else { Some(route) };
            if let (Some(after), true) = (after, arguments.count.is_some_and(|count| printed >= count as usize)) {
                tell(&format!("hookgate: more of them: --cursor {}:{next}", after.name()));
                return Ok(false);
            }
            if next == 0 {
                break;
            }
        }
    }
    Ok(true)
}

/// The oldest ones, in the order of their age. Whether that was all.
async fn oldest(
    arguments: &ListArguments,
    life: &dyn LifeStore,
    routes: &[Arc<Route>],
    sink: &mut Sink,
) -> anyhow::Result<bool> {
    let most = arguments.count.map_or(SORTED, |count| count as usize);
    if most > MAX_SORTED {
        bail!("--sort age holds its ids in memory: at most --count {MAX_SORTED}");
    }
    let mut found = BTreeMap::new();
    let mut left_out = false;
    for (place, route) in routes.iter().enumerate() {
        let mut cursor = 0;
        loop {
            let (rows, next) = page(arguments, life, route, cursor).await?;
            for row in rows {
                let order = (row.first.is_none(), row.first.unwrap_or(SystemTime::UNIX_EPOCH));
                found.insert((order, place, row.entity_id.clone()), row);
                if found.len() > most {
                    found.pop_last();
                    left_out = true;
                }
            }
            cursor = next;
            if next == 0 {
                break;
            }
        }
    }
    let rows: Vec<_> = found.into_values().collect();
    let read = sink.rows(&rows)?;
    if read && left_out {
        tell(&format!("hookgate: the {most} oldest; --count shows more"));
    }
    Ok(read)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_cursor_is_a_route_and_a_number() {
        let cursor = "vmh/beteiligte/create:17".parse();
        assert_eq!(cursor, Ok(Cursor { route: "vmh/beteiligte/create".to_owned(), at: 17 }));
        for foreign in ["", "17", "a:", "a:b", "a:-1"] {
            assert!(foreign.parse::<Cursor>().is_err(), "{foreign}");
        }
    }
}
