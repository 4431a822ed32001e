//! `hookgate pending republish`.

use std::{
    process::ExitCode,
    sync::Arc,
    time::{Duration, SystemTime},
};

use anyhow::{Context, bail};
use hashbrown::{HashMap, HashSet};
use hookgate::{
    app::{self, operator},
    batch::EntityId,
    event::Token,
    life::{JournalEntry, Keeper, Known, LifeStore, Listing, Reclaimed},
    metrics::RepairedWhy,
    publisher::history::Start,
    route::Route,
    settings::{DeliveryMode, Settings},
};
use serde::Serialize;
use tokio_util::task::TaskTracker;

use super::{
    super::{Output, confirm, print, progress::Progress, store, tell},
    named, rfc3339, since,
};

/// Ids that are read at once.
const PAGE: usize = 1000;
/// Ids that are claimed with one call.
const TOGETHER: usize = 100;
/// How often ids are looked at before the command gives up.
const TRIES: u32 = 3;
/// Ids that are looked for in one pass over a stream, and what they may take of memory.
const SOUGHT: usize = 500_000;
const SOUGHT_BYTES: usize = 64 << 20;

#[derive(Debug, clap::Args)]
#[command(
    after_help = "Each id is claimed under a new token, only if nothing has changed since it was looked at, and its event has the header
Hookgate-Redelivery. What is in flight is left to the relay (`hookgate outbox relay`).

--not-in-stream is for ids that were pending before hookgate came, and whose events nobody ever published. It reads the
stream once for half a million ids.

Exit code: 0 if all went well, 1 if NATS did not acknowledge an event; the relay publishes it.

Examples:
  hookgate pending republish vmh/beteiligte/update 65f0c1
  hookgate pending republish vmh/beteiligte/update --older-than 2d --yes
  hookgate pending republish vmh/beteiligte/create --not-in-stream --dry-run"
)]
pub(crate) struct RepublishArguments {
    /// The route, by its name [default with --older-than and --not-in-stream: all of them].
    #[arg(value_name = "FLOW/ENTITY/ACTION", required_unless_present_any = ["older_than", "not_in_stream"])]
    route: Option<String>,
    /// The entities' ids.
    #[arg(value_name = "ID", required_unless_present_any = ["older_than", "not_in_stream"], conflicts_with_all = ["older_than", "not_in_stream"])]
    ids: Vec<String>,
    /// All whose first claim is so long ago.
    #[arg(long, value_name = "TIME", value_parser = humantime::parse_duration)]
    older_than: Option<Duration>,
    /// All whose claim has neither an outbox entry nor an event in the stream.
    #[arg(long, conflicts_with = "older_than")]
    not_in_stream: bool,
    /// Most ids a second.
    #[arg(long, default_value_t = 1000, value_parser = clap::value_parser!(u32).range(1..=100_000), value_name = "N")]
    rate: u32,
    /// Only say which.
    #[arg(long)]
    dry_run: bool,
    /// Don't ask.
    #[arg(long)]
    yes: bool,
}

/// What became of an id.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
enum Outcome {
    Published,
    Unacknowledged,
    Changed,
    WouldPublish,
    InFlight,
    NotPending,
    ForeignJournal,
}

impl Outcome {
    const fn words(self) -> &'static str {
        match self {
            Self::Published => "published",
            Self::Unacknowledged => "claimed, and NATS has not acknowledged its event; the relay publishes it",
            Self::Changed => "left alone: it has changed meanwhile",
            Self::WouldPublish => "would be published",
            Self::InFlight => "left alone: in flight; `hookgate outbox relay` publishes it",
            Self::NotPending => "not pending",
            Self::ForeignJournal => "left alone: its id or its journal entry is not hookgate's",
        }
    }
}

#[derive(Serialize)]
struct Row<'a> {
    route: &'a str,
    entity_id: &'a str,
    outcome: Outcome,
}

pub(super) async fn run(
    arguments: &RepublishArguments,
    settings: &Settings,
    output: Output,
) -> anyhow::Result<ExitCode> {
    let RepublishArguments { route, ids, older_than, not_in_stream, dry_run, yes, .. } = arguments;
    let routes = match route {
        Some(name) => vec![named(name, settings)?],
        None => settings.routes.routes().to_vec(),
    };
    if *not_in_stream && settings.delivery == DeliveryMode::Core {
        bail!("nats.delivery is \"core\": there is no stream to look into");
    }
    let of = route.as_ref().map_or_else(|| "all routes".to_owned(), Clone::clone);
    if !yes && !dry_run && !confirm(&format!("publish pending ids of {of} once more?"))? {
        return Ok(ExitCode::from(2));
    }
    let opened = store::open(settings).await?;
    let tasks = TaskTracker::new();
    let keeper = if *dry_run {
        None
    } else {
        let publisher = app::open_publisher(settings, &tasks).await?;
        store::up("NATS", publisher.contact()).await?;
        Some(opened.keeper(settings, publisher))
    };
    let pause = Duration::from_secs(1) * u32::try_from(TOGETHER).unwrap_or(u32::MAX) / arguments.rate;
    let (life, began) = (&*opened.life, SystemTime::now());
    let mut done = Done::default();
    let mut outcome = Ok(());
    for route in routes {
        let keeper = keeper.clone();
        let mut work = Work { route, life, keeper, pause, output, progress: Progress::new(), done: &mut done };
        outcome = if *not_in_stream {
            work.not_in_stream(settings).await
        } else if let Some(least) = older_than {
            work.older_than(*least, began).await
        } else {
            work.named(ids).await
        };
        if outcome.is_err() {
            break;
        }
    }
    opened.pending.close(settings.request_deadline).await;
    let Done { published, unacknowledged, left, would } = done;
    tell(&if *dry_run {
        format!("hookgate: {would} would be published, {left} left alone")
    } else {
        format!("hookgate: {published} published, {unacknowledged} not acknowledged, {left} left alone")
    });
    outcome?;
    Ok(if unacknowledged > 0 { ExitCode::FAILURE } else { ExitCode::SUCCESS })
}

#[derive(Default)]
struct Done {
    published: usize,
    unacknowledged: usize,
    left: usize,
    would: usize,
}

/// Standard output is closed: nobody wants to know more.
#[derive(Debug, thiserror::Error)]
#[error("standard output is closed")]
struct Closed;

struct Work<'a> {
    route: Arc<Route>,
    life: &'a dyn LifeStore,
    /// None on a dry run.
    keeper: Option<Keeper>,
    pause: Duration,
    output: Output,
    progress: Progress,
    done: &'a mut Done,
}

impl Work<'_> {
    async fn named(&mut self, ids: &[String]) -> anyhow::Result<()> {
        let mut seen = HashSet::new();
        let ids: Vec<String> = ids.iter().filter(|id| seen.insert(id.as_str())).cloned().collect();
        for part in ids.chunks(TOGETHER) {
            let known = self.look(part).await?;
            self.publish(known, true).await?;
        }
        Ok(())
    }

    /// What was claimed since then is not old: it is what this command has published.
    async fn older_than(&mut self, least: Duration, began: SystemTime) -> anyhow::Result<()> {
        let mut cursor = 0;
        loop {
            let page = self.life.journal_page(&self.route, cursor, PAGE).await;
            let page = page.with_context(|| format!("read the journal of {}", self.route))?;
            let old = page.entries.into_iter().filter(|journaled| {
                let entry = JournalEntry::parse(&journaled.entry);
                let is_old = |entry: JournalEntry| since(entry.first_claimed) >= least && entry.token.time() < began;
                journaled.pending && entry.is_some_and(is_old)
            });
            let old: Vec<_> = old.map(|journaled| journaled.id).collect();
            for part in old.chunks(TOGETHER) {
                let known = self.look(part).await?;
                self.publish(known, false).await?;
            }
            cursor = page.next;
            if cursor == 0 {
                return Ok(());
            }
        }
    }

    async fn not_in_stream(&mut self, settings: &Settings) -> anyhow::Result<()> {
        let mut cursor = 0;
        loop {
            let mut sought = Sought::default();
            let bar = self.progress.count(&format!("pending ids of {}", self.route), 0);
            while !sought.is_full() {
                let page = self.life.known_page(&self.route, Listing::Pending, cursor, PAGE).await;
                let page = page.with_context(|| format!("read the pending ids of {}", self.route))?;
                bar.inc(page.ids.len() as u64);
                page.ids.into_iter().for_each(|known| sought.add(known));
                cursor = page.next;
                if cursor == 0 {
                    break;
                }
            }
            bar.finish_and_clear();
            let count = sought.ids.len();
            if count > 0 {
                self.read_stream(settings, &mut sought).await?;
                let missing = sought.ids.len();
                let route = &self.route;
                tell(&format!(
                    "hookgate: {route}: {missing} of {count} pending ids are neither in flight nor in the stream"
                ));
            }
            let mut ids = sought.ids.into_iter();
            loop {
                let part: HashMap<_, _> = ids.by_ref().take(TOGETHER).collect();
                if part.is_empty() {
                    break;
                }
                let names: Vec<_> = part.keys().map(ToString::to_string).collect();
                let mut known = self.look(&names).await?;
                // A claim that came meanwhile has an event of its own.
                known.retain(|known| claim_of(known).is_some_and(|claim| part.get(known.id.as_str()) == Some(&claim)));
                self.publish(known, false).await?;
            }
            if cursor == 0 {
                return Ok(());
            }
        }
    }

    /// Drops from the sought ids those whose events the streams hold.
    async fn read_stream(&self, settings: &Settings, sought: &mut Sought) -> anyhow::Result<()> {
        let history = operator::history(settings).await.context("connect to NATS")?;
        let streams = history.streams(&[self.route.subject().to_owned()]).await?;
        for (stream, subjects) in streams {
            let mut pass = history.pass(&stream, &subjects, Start::First).await?;
            let bounds = pass.bounds();
            if bounds.drops_acknowledged {
                bail!(
                    "stream {stream} drops what is acknowledged, so that an event that is not there may have been processed: republish by --older-than"
                );
            }
            if let (Some(first), true) = (bounds.first_time, bounds.first_sequence > 1) {
                tell(&format!(
                    "hookgate: stream {stream} begins at {}: what was published before counts as not in the stream",
                    rfc3339(first)
                ));
            }
            let bar = self.progress.count(&format!("stream {stream}"), 0);
            while let Some(event) = pass.next().await.with_context(|| format!("read stream {stream}"))? {
                bar.inc(1);
                if event.route().is_none_or(|route| route == self.route.name()) {
                    sought.saw(&event.id, event.token);
                }
            }
            bar.finish_and_clear();
        }
        Ok(())
    }

    /// A store that is slow for a moment is no reason to begin again.
    async fn look(&self, ids: &[String]) -> anyhow::Result<Vec<Known>> {
        let mut known = self.life.known(&self.route, ids).await;
        for _ in 1..TRIES {
            if known.is_ok() {
                break;
            }
            tokio::time::sleep(Duration::from_secs(1)).await;
            known = self.life.known(&self.route, ids).await;
        }
        known.with_context(|| format!("look at pending ids of {}", self.route))
    }

    /// Claims ids once more and publishes them; `all` speaks of those, too, that it leaves alone.
    async fn publish(&mut self, known: Vec<Known>, all: bool) -> anyhow::Result<()> {
        let mut reclaims = Vec::new();
        for known in &known {
            let good = EntityId::parse(&known.id).is_some();
            let outcome = match Some(known.redelivery()).filter(|_| good) {
                _ if !known.pending => Outcome::NotPending,
                _ if known.in_flight.is_some() => Outcome::InFlight,
                None => Outcome::ForeignJournal,
                Some(_) if self.keeper.is_none() => Outcome::WouldPublish,
                Some(reclaim) => {
                    reclaims.push(reclaim);
                    continue;
                }
            };
            match outcome {
                Outcome::WouldPublish => self.done.would += 1,
                _ => self.done.left += 1,
            }
            if all || outcome == Outcome::WouldPublish {
                self.say(&known.id, outcome)?;
            }
        }
        let Some(keeper) = self.keeper.as_ref().filter(|_| !reclaims.is_empty()) else { return Ok(()) };
        let outcomes = keeper.reclaim(&self.route, &reclaims, RepairedWhy::Operator).await;
        let outcomes = outcomes.with_context(|| format!("claim pending ids of {} once more", self.route))?;
        for (reclaim, outcome) in reclaims.iter().zip(outcomes) {
            let outcome = match outcome {
                Reclaimed::Published => Outcome::Published,
                Reclaimed::Unacknowledged => Outcome::Unacknowledged,
                Reclaimed::Changed => Outcome::Changed,
            };
            match outcome {
                Outcome::Published => self.done.published += 1,
                Outcome::Unacknowledged => self.done.unacknowledged += 1,
                _ => self.done.left += 1,
            }
            self.say(&reclaim.id, outcome)?;
        }
        tokio::time::sleep(self.pause).await;
        Ok(())
    }

    fn say(&self, id: &str, outcome: Outcome) -> anyhow::Result<()> {
        let row = Row { route: self.route.name(), entity_id: id, outcome };
        let printed = print(&match self.output {
            Output::Json => serde_json::to_string(&row).context("print")?,
            Output::Text => format!("{}: {}", id.escape_debug(), outcome.words()),
        });
        if printed { Ok(()) } else { Err(Closed.into()) }
    }
}

/// The claim whose event is looked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Claim {
    /// The newest, by the journal.
    Newest(Token),
    /// It was pending before there was a journal.
    Unknown,
}

/// Ids that are looked for in a stream.
#[derive(Default)]
struct Sought {
    ids: HashMap<Box<str>, Claim>,
    bytes: usize,
}

impl Sought {
    fn is_full(&self) -> bool {
        self.ids.len() >= SOUGHT || self.bytes >= SOUGHT_BYTES
    }

    fn add(&mut self, known: Known) {
        if let Some(claim) = claim_of(&known) {
            self.bytes += known.id.len();
            self.ids.insert(known.id.into(), claim);
        }
    }

    /// An event counts for its claim; without a journal nobody knows which claim that is.
    fn saw(&mut self, id: &str, token: Token) {
        if self.ids.get(id).is_some_and(|claim| [Claim::Unknown, Claim::Newest(token)].contains(claim)) {
            self.ids.remove(id);
        }
    }
}

/// The claim of a pending id whose event is settled; nothing if it is none.
fn claim_of(known: &Known) -> Option<Claim> {
    if !known.pending || known.in_flight.is_some() {
        return None;
    }
    match &known.journal {
        None => Some(Claim::Unknown),
        // What others wrote there says nothing of its claim.
        Some(entry) => Some(JournalEntry::parse(entry).map_or(Claim::Unknown, |entry| Claim::Newest(entry.token))),
    }
}

#[cfg(test)]
mod tests {
    use hookgate::event::{Attempt, TokenSeed};

    use super::*;

    #[test]
    fn an_event_counts_for_its_claim() {
        let known = |id: &str, journal: Option<&str>| Known {
            id: id.to_owned(),
            pending: true,
            in_flight: None,
            journal: journal.map(|entry| entry.as_bytes().to_vec()),
            marked: None,
        };
        let (claim, before) = (TokenSeed::now().token(Attempt::FIRST, 0), TokenSeed::now().token(Attempt::FIRST, 0));
        let mut sought = Sought::default();
        sought.add(known("bare", None));
        sought.add(known("journaled", Some(&format!("{claim};;7;;"))));
        sought.add(known("foreign", Some("x")));
        sought.add(Known { in_flight: Some(claim.to_string()), ..known("in flight", None) });
        sought.add(Known { pending: false, ..known("free", None) });
        assert_eq!(sought.ids.len(), 3);
        sought.saw("foreign", before);
        sought.saw("journaled", before);
        sought.saw("other", claim);
        assert_eq!(sought.ids.len(), 2, "an event of an older claim is not the event of this one");
        sought.saw("journaled", claim);
        sought.saw("bare", before);
        assert!(sought.ids.is_empty());
    }
}
