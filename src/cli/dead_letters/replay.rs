//! `hookgate dead-letters replay`: their ids go through claim and publish once more.

use std::{
    process::ExitCode,
    sync::Arc,
    time::{Duration, SystemTime},
};

use anyhow::{Context, bail};
use hookgate::{
    app::{self, operator::OperatorStore},
    dead_letters::{ReplayNote, ReviewedLetter},
    recovery::{Bringer, GAVE_UP, Sought, Verdict, Wanted, ids_of},
    route::Route,
    settings::{DeliveryMode, Settings},
};
use serde::Serialize;
use tokio_util::task::TaskTracker;

use super::{
    super::{Output, print, progress::Progress, reconcile::read_stream, store, table::counted, tell},
    Filter,
};

#[derive(Debug, clap::Args)]
#[command(
    after_help = "What a consumer gave up on (reason gave_up) gets an event, also if its id is pending; every other id if it got none since.
What can never be an event (no usable id, not JSON) is skipped. What
became of a replay stands in the list; a letter that was replayed well is replayed again only by its name.

Exit code: 0 if all went well, 1 if an id got no event.

Examples:
  hookgate dead-letters replay 1764325356123-0
  hookgate dead-letters replay --reason gave_up
  hookgate dead-letters replay --all"
)]
pub(crate) struct ReplayArguments {
    #[command(flatten)]
    filter: Filter,
    /// All of them.
    #[arg(long)]
    all: bool,
    /// Most ids a second.
    #[arg(long, default_value_t = 100, value_parser = clap::value_parser!(u32).range(1..=100_000), value_name = "N")]
    rate: u32,
}

/// What became of the letters.
#[derive(Debug, Default, Serialize)]
struct Replayed {
    letters: usize,
    /// Ids with a new event.
    published: usize,
    /// Ids that have had their event since.
    delivered: usize,
    /// Letters with an id that got none.
    failed: usize,
    /// Letters that can never be events.
    skipped: usize,
    /// Letters that were replayed before.
    before: usize,
}

pub(super) async fn run(
    arguments: &ReplayArguments,
    store: &OperatorStore,
    settings: &Settings,
    output: Output,
) -> anyhow::Result<ExitCode> {
    let ReplayArguments { filter, all, rate } = arguments;
    if filter.is_empty() != *all {
        tell("hookgate: say which letters: names, --reason, --route or --id; or --all for all of them");
        return Ok(ExitCode::from(2));
    }
    let mut found = filter.find(store).await?;
    // The oldest first, as they came.
    found.reverse();
    let tasks = TaskTracker::new();
    let publisher = app::open_publisher(settings, &tasks).await?;
    store::up("NATS", publisher.contact()).await?;
    let mut bringer = store.bringer(settings, publisher, *rate);
    let progress = Progress::new();
    let sought = look_for_events(&found, settings, &progress).await?;
    let bar = progress.count("dead letters", found.len());
    let mut replayed = Replayed::default();
    for ReviewedLetter { kept, note } in &found {
        bar.inc(1);
        if note.as_ref().is_some_and(|note| note.good) && filter.names.is_empty() {
            replayed.before += 1;
            continue;
        }
        let routes = settings.routes.routes();
        let Some(route) = routes.iter().find(|route| route.name() == kept.letter.route) else {
            progress.say(&format!("hookgate: {}: its route {:?} is not configured", kept.entry, kept.letter.route));
            replayed.skipped += 1;
            continue;
        };
        let ids = ids_of(&kept.letter.raw);
        if ids.is_empty() {
            replayed.skipped += 1;
            continue;
        }
        replayed.letters += 1;
        let all_ids = ids.len();
        let given_up = kept.letter.reason == GAVE_UP;
        let wanted = ids.into_iter().filter_map(|id| {
            let verdict = sought.verdict(route, &id);
            want(id, given_up, verdict)
        });
        let wanted: Vec<Wanted> = wanted.collect();
        let delivered = all_ids - wanted.len();
        replayed.delivered += delivered;
        let note = match bring(&mut bringer, route, &wanted).await {
            Ok(()) => {
                replayed.published += wanted.len();
                noted(true, format!("{} published, {delivered} delivered before", counted(wanted.len(), "id", "ids")))
            }
            Err(failure) => {
                replayed.failed += 1;
                progress.say(&format!("hookgate: {}: {failure}", kept.entry));
                noted(false, format!("{} without an event: {failure}", counted(wanted.len(), "id", "ids")))
            }
        };
        // It makes no second letter of it.
        store.note_replay(&kept.entry, &note).await.with_context(|| format!("note the replay of {}", kept.entry))?;
    }
    progress.end();
    store.pending.close(settings.request_deadline).await;
    let Replayed { letters, published, delivered, failed, skipped, before } = &replayed;
    print(&match output {
        Output::Json => serde_json::to_string(&replayed).context("print")?,
        Output::Text => format!(
            "{letters} replayed: {published} ids published, {delivered} delivered before, {failed} letters failed; {skipped} skipped (no usable id or no route), {before} replayed before"
        ),
    });
    if *failed > 0 {
        bail!("{} not replayed; `hookgate dead-letters list` says why", counted(*failed, "letter was", "letters were"));
    }
    Ok(ExitCode::SUCCESS)
}

/// An event that a consumer gave up on is published whatever the stream holds; any other id if it has none since.
fn want(id: String, given_up: bool, verdict: Verdict) -> Option<Wanted> {
    match verdict {
        _ if given_up => Some(Wanted { id, in_stream: false, always: true }),
        Verdict::Delivered => None,
        Verdict::Earlier => Some(Wanted { id, in_stream: true, always: false }),
        Verdict::Missing | Verdict::Unknown => Some(Wanted { id, in_stream: false, always: false }),
    }
}

/// Looks for events that were stored after letters came, but for those that are published anyway.
async fn look_for_events(
    letters: &[ReviewedLetter],
    settings: &Settings,
    progress: &Progress,
) -> anyhow::Result<Sought> {
    let mut sought = Sought::new(MAX_CLOCK_SKEW);
    for ReviewedLetter { kept, .. } in letters.iter().filter(|letter| letter.kept.letter.reason != GAVE_UP) {
        let routes = settings.routes.routes();
        let Some(route) = routes.iter().find(|route| route.name() == kept.letter.route) else { continue };
        let came = humantime::parse_rfc3339(&kept.letter.time).ok();
        for id in ids_of(&kept.letter.raw) {
            sought.add(route, &id, came);
        }
    }
    if settings.delivery == DeliveryMode::Jetstream && !sought.is_empty() {
        read_stream(settings, &mut sought, progress).await?;
    }
    Ok(sought)
}

/// As of `reconcile`.
const MAX_CLOCK_SKEW: Duration = Duration::from_secs(300);

async fn bring(bringer: &mut Bringer, route: &Arc<Route>, wanted: &[Wanted]) -> Result<(), hookgate::recovery::Failed> {
    for part in wanted.chunks(bringer.together()) {
        bringer.bring(route, part).await?;
    }
    Ok(())
}

fn noted(good: bool, outcome: String) -> ReplayNote {
    ReplayNote { time: humantime::format_rfc3339_seconds(SystemTime::now()).to_string(), good, outcome }
}
