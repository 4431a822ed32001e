//! `hookgate reconcile`: ids that the CRM gave up on, or never sent, get their events.

mod report;
mod sources;
mod times;

use std::{process::ExitCode, sync::Arc, time::SystemTime};

use anyhow::{Context, bail};
use hashbrown::HashSet;
use hookgate::{
    app::{self, operator},
    espocrm::EspoCrm,
    publisher::history::{Bounds, HistoryError, Start},
    recovery::{Bringer, Known, Sought, Verdict, Wanted},
    route::Route,
    settings::{DeliveryMode, Settings},
};
use tokio_util::task::TaskTracker;

use self::{
    report::{Plan, Tally},
    sources::{Found, Source},
    times::Moment,
};
use super::{Output, confirm, progress::Progress, store, table::counted, tell};

#[derive(Debug, clap::Args)]
#[command(
    group = clap::ArgGroup::new("source").required(true),
    after_help = "An id counts as delivered if an event of its route was stored after the change, and --max-clock-skew after it. All others
go the way of a webhook: they are claimed and published. Where the stream can't tell, the summary says unknown and the
id is published. It is safe to interrupt this and to run it again.

Exit code: 0 if every id has its event, 1 if one is still missing.

Examples:
  hookgate reconcile --failed --dry-run                 what the CRM gave up on, and what would be done
  hookgate reconcile --failed --clear                   publish it, and take it out of the CRM's queue
  hookgate reconcile --since 2026-11-28T08:00Z          also what a silent import made
  hookgate reconcile --since 2h --route vmh/beteiligte/create
  hookgate reconcile --file records.jsonl               one object a line: {\"route\": \"…\", \"id\": \"…\", \"time\": \"…\"}"
)]
#[expect(clippy::struct_excessive_bools, reason = "each is a flag")]
pub(crate) struct ReconcileArguments {
    /// The failed items of the CRM's webhook queue. Needs an administrator in `[espocrm]`.
    #[arg(long, group = "source")]
    failed: bool,
    /// Records created, modified or deleted since then: a time, or how long ago.
    #[arg(long, group = "source", value_name = "TIME")]
    since: Option<Moment>,
    /// Until then: a time, or how long ago [default: now].
    #[arg(long, conflicts_with_all = ["failed", "file"], value_name = "TIME")]
    until: Option<Moment>,
    /// Records of a file, one JSON object a line; `-` is standard input.
    #[arg(long, group = "source", value_name = "FILE")]
    file: Option<std::path::PathBuf>,
    /// Only these routes; with --file, the route of lines that name none.
    #[arg(long, value_name = "ROUTE")]
    route: Vec<String>,
    /// Say what would be done, and do nothing.
    #[arg(long)]
    dry_run: bool,
    /// Take items out of the CRM's queue once their events are acknowledged, or were found.
    #[arg(long, conflicts_with_all = ["since", "file"])]
    clear: bool,
    /// Most ids a second.
    #[arg(long, default_value_t = 100, value_parser = clap::value_parser!(u32).range(1..=100_000), value_name = "N")]
    rate: u32,
    /// How far the clocks of CRM and NATS may be apart.
    #[arg(long, default_value = "5m", value_name = "TIME")]
    max_clock_skew: humantime::Duration,
    /// Don't ask.
    #[arg(long)]
    yes: bool,
}

pub(super) fn run(arguments: &ReconcileArguments, settings: &Settings, output: Output) -> anyhow::Result<ExitCode> {
    for name in &arguments.route {
        if !settings.routes.routes().iter().any(|route| route.name() == name) {
            tell(&format!("hookgate: no route is named {name:?}; `hookgate routes` lists them"));
            return Ok(ExitCode::from(2));
        }
    }
    store::block_on(reconcile(arguments, settings, output))
}

async fn reconcile(arguments: &ReconcileArguments, settings: &Settings, output: Output) -> anyhow::Result<ExitCode> {
    let progress = Progress::new();
    let skew = *arguments.max_clock_skew;
    let now = SystemTime::now();
    let source = match arguments {
        ReconcileArguments { failed: true, .. } => Source::Failed,
        ReconcileArguments { since: Some(since), until, .. } => {
            Source::Changed { since: since.before(now), until: until.as_ref().map(|until| until.before(now)) }
        }
        ReconcileArguments { file: Some(path), .. } => Source::File(path.clone()),
        _ => bail!("say --failed, --since or --file"),
    };
    let crm = match source {
        Source::File(_) => None,
        Source::Failed | Source::Changed { .. } => Some(app::crm::open(&settings.espocrm)?),
    };
    let mut sought = Sought::new(skew);
    let Found { items, skipped } =
        source.read(crm.as_ref(), settings, &arguments.route, &mut sought, &progress).await?;
    if let Some(crm) = &crm {
        compare_clocks(crm, arguments)?;
    }
    if settings.delivery == DeliveryMode::Jetstream && !sought.is_empty() {
        let bounds = read_stream(settings, &mut sought, &progress).await?;
        if let Source::Changed { since, .. } = source
            && !ask_about_bounds(since, bounds.first_time, arguments)?
        {
            return Ok(ExitCode::from(2));
        }
    }
    let mut tallies = Vec::new();
    if arguments.dry_run {
        let mut plan = Plan::new(output);
        for route in sought.routes() {
            let mut tally = Tally::new(route, sought.ids(route).count());
            let pending = pending_creates(settings, route, &sought).await?;
            for id in sought.ids(route) {
                let verdict = match sought.verdict(route, id) {
                    Verdict::Earlier if pending.contains(id) => Verdict::Delivered,
                    verdict => verdict,
                };
                tally.plan(verdict);
                if !plan.add(route, id, verdict)? {
                    return Ok(ExitCode::SUCCESS);
                }
            }
            tallies.push(tally);
        }
        plan.end();
    } else {
        let store = store::open(settings).await?;
        let tasks = TaskTracker::new();
        let publisher = app::open_publisher(settings, &tasks).await?;
        store::up("NATS", publisher.contact()).await?;
        let mut bringer = store.bringer(settings, publisher, arguments.rate);
        let clearing = crm.as_ref().filter(|_| arguments.clear);
        for route in sought.routes() {
            let mut work = Work { route, sought: &sought, items: &items, clearing, progress: &progress };
            let tally = work.run(&mut bringer, Tally::new(route, sought.ids(route).count())).await?;
            tallies.push(tally);
        }
        store.pending.close(settings.request_deadline).await;
    }
    progress.end();
    report::print(&tallies, &skipped, arguments.dry_run, output)?;
    let failed: usize = tallies.iter().map(|tally| tally.failed).sum();
    if failed > 0 {
        bail!(
            "{} without an event; mend what is named above and run this again, which does no harm to the others",
            counted(failed, "id is", "ids are")
        );
    }
    Ok(ExitCode::SUCCESS)
}

/// Creates whose event is in the stream and that are pending: they have their event.
async fn pending_creates(settings: &Settings, route: &Arc<Route>, sought: &Sought) -> anyhow::Result<HashSet<String>> {
    let earlier = sought.ids(route).filter(|id| sought.verdict(route, id) == Verdict::Earlier);
    let earlier: Vec<String> = earlier.map(str::to_owned).collect();
    let mut pending = HashSet::new();
    if route.action() != "create" || earlier.is_empty() {
        return Ok(pending);
    }
    let store = store::open(settings).await?;
    for part in earlier.chunks(LOOKED_UP_TOGETHER) {
        let known = store.life.known(route, part).await.with_context(|| format!("look at pending ids of {route}"))?;
        let settled = known.into_iter().filter(|known| known.pending && known.in_flight.is_none());
        pending.extend(settled.map(|known| known.id));
    }
    Ok(pending)
}

/// Ids of one look at Redis.
const LOOKED_UP_TOGETHER: usize = 500;

/// Brings the ids of one route.
struct Work<'a> {
    route: &'a Arc<Route>,
    sought: &'a Sought,
    items: &'a sources::Items,
    clearing: Option<&'a EspoCrm>,
    progress: &'a Progress,
}

impl Work<'_> {
    async fn run(&mut self, bringer: &mut Bringer, mut tally: Tally) -> anyhow::Result<Tally> {
        let bar = self.progress.count(self.route.name(), self.sought.ids(self.route).count());
        let mut next = Vec::with_capacity(bringer.together());
        let mut delivered = Vec::new();
        for id in self.sought.ids(self.route) {
            let verdict = self.sought.verdict(self.route, id);
            if verdict == Verdict::Delivered {
                tally.delivered += 1;
                delivered.push(id.to_owned());
                bar.inc(1);
                continue;
            }
            next.push((Wanted { id: id.to_owned(), in_stream: verdict == Verdict::Earlier, always: false }, verdict));
            if next.len() == bringer.together() {
                self.bring(bringer, &mut next, &mut tally).await?;
                bar.inc(bringer.together() as u64);
            }
        }
        self.bring(bringer, &mut next, &mut tally).await?;
        self.clear(&delivered, &mut tally).await?;
        bar.finish_and_clear();
        Ok(tally)
    }

    async fn bring(
        &self,
        bringer: &mut Bringer,
        next: &mut Vec<(Wanted, Verdict)>,
        tally: &mut Tally,
    ) -> anyhow::Result<()> {
        if next.is_empty() {
            return Ok(());
        }
        let (wanted, verdicts): (Vec<_>, Vec<_>) = next.drain(..).unzip();
        match bringer.bring(self.route, &wanted).await {
            Ok(brought) => {
                for (brought, verdict) in brought.into_iter().zip(verdicts) {
                    tally.brought(brought, verdict);
                }
                let ids: Vec<_> = wanted.into_iter().map(|wanted| wanted.id).collect();
                self.clear(&ids, tally).await
            }
            Err(failure) => {
                self.progress.say(&format!("hookgate: {failure}"));
                tally.failed += wanted.len();
                if tally.failed >= GIVE_UP_AFTER {
                    bail!(
                        "{} got no event so far, so nothing more was tried; run this again",
                        counted(tally.failed, "id", "ids")
                    );
                }
                Ok(())
            }
        }
    }

    /// Takes the items of ids out of the CRM's queue.
    async fn clear(&self, ids: &[String], tally: &mut Tally) -> anyhow::Result<()> {
        let Some(crm) = self.clearing else { return Ok(()) };
        let items = self.items.of(self.route, ids);
        for part in items.chunks(hookgate::espocrm::PAGE) {
            crm.remove_items(part)
                .await
                .context("the events are published, but their items are still in the CRM's queue; run this again")?;
            tally.cleared += part.len();
        }
        Ok(())
    }
}

/// So many ids without an event in a row are an outage.
const GIVE_UP_AFTER: usize = 200;

fn compare_clocks(crm: &EspoCrm, arguments: &ReconcileArguments) -> anyhow::Result<()> {
    let Some(clock) = crm.clock() else {
        tell("hookgate: warning: the CRM's answers have no Date, so its clock can't be compared with this one");
        return Ok(());
    };
    if clock.apart > *arguments.max_clock_skew {
        let apart = humantime::format_duration(std::time::Duration::from_secs(clock.apart.as_secs()));
        let direction = if clock.ahead { "ahead of" } else { "behind" };
        bail!(
            "the CRM's clock is {apart} {direction} this one, more than --max-clock-skew ({}): an event could be taken for one of a later change; mend the clocks, or raise --max-clock-skew",
            arguments.max_clock_skew
        );
    }
    Ok(())
}

/// One pass over what the streams hold of the routes.
pub(super) async fn read_stream(
    settings: &Settings,
    sought: &mut Sought,
    progress: &Progress,
) -> anyhow::Result<StreamBounds> {
    let history = operator::history(settings).await.context("connect to NATS")?;
    let mut subjects: Vec<String> = sought.routes().map(|route| route.subject().to_owned()).collect();
    subjects.sort_unstable();
    subjects.dedup();
    let start = sought.earliest().map_or(Start::First, Start::Time);
    let streams = match history.streams(&subjects).await {
        Ok(streams) => streams,
        Err(HistoryError::NoStream(subject)) => {
            progress.say(&format!("hookgate: no stream covers {subject} yet, so nothing is stored of it"));
            return Ok(StreamBounds::default());
        }
        Err(error) => return Err(error).context("find the streams of the routes"),
    };
    let mut bounds = StreamBounds::default();
    for (stream, subjects) in streams {
        let mut pass = history.pass(&stream, &subjects, start).await.context("read the stream")?;
        let of_stream = pass.bounds();
        bounds.add(of_stream);
        for subject in &subjects {
            sought.know(subject, known(of_stream));
        }
        let bar = progress.count(&format!("stream {stream}"), 0);
        bar.set_length(of_stream.last_sequence.saturating_sub(pass.behind()));
        let begin = pass.behind();
        while let Some(event) = pass.next().await.with_context(|| format!("read stream {stream}"))? {
            sought.saw(event.subject(), event.route(), &event.id, event.time);
            bar.set_position(event.sequence.saturating_sub(begin));
        }
        bar.finish_and_clear();
    }
    Ok(bounds)
}

/// Since when the streams reach back.
#[derive(Default)]
pub(super) struct StreamBounds {
    first_time: Option<SystemTime>,
}

impl StreamBounds {
    fn add(&mut self, bounds: Bounds) {
        if bounds.first_sequence > 1 {
            self.first_time = self.first_time.max(bounds.first_time);
        }
    }
}

/// A stream whose first message is still there has lost none at its beginning.
fn known(bounds: Bounds) -> Known {
    match bounds.first_time {
        _ if bounds.drops_acknowledged => Known::Never,
        _ if bounds.first_sequence <= 1 => Known::Always,
        Some(first) => Known::Since(first),
        None => Known::Never,
    }
}

/// Whether to go on, although the stream does not reach back so far.
fn ask_about_bounds(
    since: SystemTime,
    first: Option<SystemTime>,
    arguments: &ReconcileArguments,
) -> anyhow::Result<bool> {
    let Some(first) = first.filter(|first| *first > since) else { return Ok(true) };
    let (since, first) = (humantime::format_rfc3339_seconds(since), humantime::format_rfc3339_seconds(first));
    let said = format!(
        "the stream's first message is of {first}, and --since is {since}: what changed in between counts as unknown, and is published although it may have been delivered."
    );
    if arguments.yes || arguments.dry_run {
        tell(&format!("hookgate: {said}"));
        return Ok(true);
    }
    confirm(&format!("{said} Go on?"))
}
