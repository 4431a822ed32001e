//! Scans pending ids. Republishes what is too old, what was marked and is free, and what lacks an acknowledgement that can no
//! longer come. Drops journal entries that were left behind.
//!
//! NATS sends samples of acknowledgements at most once, so a missing one proves nothing. Before such an id is
//! republished, its event must have nothing outstanding at the consumer; the id was seen so twice, 5 s apart; all
//! reports that NATS had by then are carried out; and its journal entry is unchanged. A consumer's ack floor is never
//! taken for an acknowledgement: it also passes what was terminated, purged or expired.

use std::{
    sync::Arc,
    time::{Duration, SystemTime},
};

use futures_util::future::join_all;
use hashbrown::{HashMap, HashSet};
use tokio::{
    sync::watch,
    time::{Instant, MissedTickBehavior},
};
use tracing::{debug, info, warn};

use super::{
    AtSequence, Consumers, JournalEntry, Keeper, Known, Leftover, Listing, Progress, Reclaim, ReclaimWhy, ScanResult,
    findings::{Findings, MAX_SUSPECTS, Memory},
    verdict::rests_on_clocks,
};
use crate::{
    dead_letters::{DeadLetter, DeadLetterLimits, GivenUp, GivenUpLetters},
    delivery::StoreError,
    metrics::{Metrics, RepairedWhy},
    route::{Release, Route, RouteTable},
    shutdown::Phase,
    supervision::supervise,
};

/// Interval of scanning marks, and of checking whether a scan of a journal is due.
const TICK: Duration = Duration::from_secs(2);
/// Interval of scanning marks of routes that are no longer configured.
const REMOVED_EVERY: Duration = Duration::from_secs(60);
/// Shortest pause between two scans of a journal.
const SCAN_EVERY: Duration = Duration::from_secs(10);
/// How long a replica keeps the others from scanning the same journal.
const LEASE: Duration = Duration::from_secs(30);
/// How often a scan renews its lease, and says how far it is.
const RENEW_EVERY: Duration = Duration::from_secs(5);
/// Ids of one page.
const PAGE: usize = 1000;
/// Pause between two pages: a scan of a million entries takes about a minute.
const PAGE_PAUSE: Duration = Duration::from_millis(50);
/// Pause before the next scan, for each page read: limits scans to 1 % of a Redis core (bench/NOTES.md).
const REST_OF_A_PAGE: Duration = Duration::from_millis(240);
/// How far apart an id has to be seen twice without its acknowledgement: samples arrive late.
const SEEN_FOR: Duration = Duration::from_secs(5);
/// Ids that one call claims again.
const TOGETHER: usize = 100;
/// Pause between two such calls: a thousand ids a second.
const TOGETHER_PAUSE: Duration = Duration::from_millis(100);
/// How long to wait for reports to be carried out; after that the next scan decides.
const PATIENCE: Duration = Duration::from_secs(60);

/// Reason of the letter about an id that nobody releases.
const NOT_RELEASED: &str = "not_released";

/// Scans pending ids and marks.
pub struct Sweep {
    keeper: Keeper,
    /// `None` where no route names consumers.
    consumers: Option<Arc<dyn Consumers>>,
    letters: Arc<dyn GivenUpLetters>,
    limits: DeadLetterLimits,
    metrics: Metrics,
    holder: String,
}

impl Sweep {
    /// Puts the parts together. `holder` names this replica among the others.
    #[must_use]
    pub fn new(
        keeper: Keeper,
        consumers: Option<Arc<dyn Consumers>>,
        letters: Arc<dyn GivenUpLetters>,
        limits: DeadLetterLimits,
        metrics: Metrics,
        holder: String,
    ) -> Self {
        Self { keeper, consumers, letters, limits, metrics, holder }
    }

    /// Runs until shutdown.
    pub async fn run(&self, table: &RouteTable, mut phase: watch::Receiver<Phase>) {
        let leaving = async { phase.wait_for(|phase| *phase >= Phase::Refusing).await.is_ok() };
        tokio::select! {
            _ = leaving => {}
            () = async { supervise!("the scan of pending ids", self.scan_journals(table)) } => {}
            () = async { supervise!("the scan of marks", self.scan_marks(table)) } => {}
        }
    }

    /// Scans marks in a loop of its own, because the scan of a journal can take minutes.
    async fn scan_marks(&self, table: &RouteTable) {
        let mut tick = tokio::time::interval(TICK);
        tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut removed: Option<Instant> = None;
        loop {
            tick.tick().await;
            let mut routes = table.routes().to_vec();
            if removed.is_none_or(|scanned| scanned.elapsed() >= REMOVED_EVERY)
                && let Ok(recorded) = self.keeper.store().recorded().await
            {
                let key = |route: &Arc<Route>| route.pending_key().to_owned();
                let configured: HashSet<_> = table.routes().iter().map(key).collect();
                routes.extend(recorded.into_iter().filter(|route| !configured.contains(route.pending_key())));
                removed = Some(Instant::now());
            }
            let scans = routes.iter().map(|route| async move {
                let is_configured = table.routes().iter().any(|configured| configured == route);
                if let Err(error) = self.scan_marks_of(route, is_configured).await {
                    debug!(%route, %error, "marks can't be scanned now");
                }
            });
            join_all(scans).await;
        }
    }

    async fn scan_journals(&self, table: &RouteTable) {
        let journaled: Vec<_> = table.routes().iter().filter(|route| route.life().journal).collect();
        let mut memories: HashMap<&str, Memory> = HashMap::new();
        let mut tick = tokio::time::interval(TICK);
        tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            tick.tick().await;
            for route in &journaled {
                let memory = memories.entry(route.name()).or_default();
                if let Err(error) = self.sweep(route, memory).await {
                    debug!(%route, %error, "pending ids can't be scanned now");
                }
            }
        }
    }

    /// Scans the journal of a route, if that is due here, and acts on what it finds.
    async fn sweep(&self, route: &Arc<Route>, memory: &mut Memory) -> Result<(), StoreError> {
        let store = self.keeper.store();
        let before = store.scan_result(route).await?;
        if let Some(result) = before {
            let age = |first| SystemTime::now().duration_since(first).unwrap_or_default();
            self.metrics.of(route).set_pending_age(result.oldest.map_or(Duration::ZERO, age));
        }
        if memory.next_scan.is_some_and(|at| Instant::now() < at)
            || !store.life_lease(route, "journal-scan", &self.holder, LEASE).await?
        {
            return Ok(());
        }
        let Some(found) = self.scan_journal(route, memory, before.unwrap_or_default()).await? else { return Ok(()) };
        let rest = SCAN_EVERY.max(REST_OF_A_PAGE * found.pages);
        memory.next_scan = Some(Instant::now() + rest);
        if rest > LEASE {
            // Other replicas must not begin earlier.
            store.life_lease(route, "journal-scan", &self.holder, rest + LEASE).await?;
        }
        let Findings { oldest, pending, leftovers, .. } = found;
        let ended = Some(SystemTime::now());
        store.keep_scan_result(route, &ScanResult { oldest, pending, ended, seen: None }).await?;
        if leftovers > 0 {
            info!(%route, leftovers, "journal entries of ids that were released by SREM are dropped");
        }
        self.report(route, memory, &found.exhausted).await?;
        if !found.complete.is_empty() {
            self.keeper.answer(route, &found.complete).await?;
        }
        let old: Vec<_> = found.old.iter().map(Known::redelivery).collect();
        self.reclaim(route, old, RepairedWhy::Old).await?;
        self.unanswered(route, memory, found.unanswered, found.progress.as_ref()).await
    }

    /// Keeps a dead letter of each id that was republished as often as allowed, once for each claim.
    async fn report(
        &self,
        route: &Arc<Route>,
        memory: &mut Memory,
        exhausted: &[(String, JournalEntry)],
    ) -> Result<(), StoreError> {
        let before = std::mem::take(&mut memory.reported);
        let is_new = |(id, entry): &&(String, JournalEntry)| before.get(id) != Some(&entry.token);
        let new: Vec<_> = exhausted.iter().filter(is_new).collect();
        for part in new.chunks(TOGETHER) {
            let letters: Vec<_> = part.iter().map(|(id, entry)| letter(route, id, entry)).collect();
            self.letters.keep_given_up(&letters, self.limits).await?;
            tokio::time::sleep(TOGETHER_PAUSE).await;
        }
        if !new.is_empty() {
            warn!(%route, ids = exhausted.len(), new = new.len(), max_redeliveries = route.life().max_redeliveries, "pending ids were published again as often as allowed, and are left alone now: nobody releases them; `hookgate dead-letters list` shows them as not_released");
        }
        memory.reported = exhausted.iter().map(|(id, entry)| (id.clone(), entry.token)).collect();
        Ok(())
    }

    /// Republishes marked ids that are free, or have waited for `coalesce_max_wait`, whatever the configuration says
    /// now. Those of a route that is no longer configured are only claimed: the relay publishes what is in its outbox.
    async fn scan_marks_of(&self, route: &Arc<Route>, is_configured: bool) -> Result<(), StoreError> {
        let until = SystemTime::now().checked_sub(route.life().coalesce_max_wait);
        let until = until.unwrap_or(SystemTime::UNIX_EPOCH).duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
        let until = u64::try_from(until.as_millis()).unwrap_or(0);
        let mut cursor = 0;
        loop {
            let page = self.keeper.store().known_page(route, Listing::Marks, cursor, PAGE).await?;
            let due = page.ids.into_iter().filter(|known| {
                let is_old = known.marked.is_some_and(|marked| marked <= until);
                !known.pending || (is_old && known.in_flight.is_none())
            });
            let due: Vec<_> = due.map(|known| Reclaim { id: known.id, why: ReclaimWhy::Marked { until } }).collect();
            if is_configured {
                self.reclaim(route, due, RepairedWhy::Marked).await?;
            } else if !due.is_empty() {
                self.keeper.store().reclaim(route, &due).await?;
                info!(%route, ids = due.len(), "marked ids of a route that is configured no more are claimed; the relay publishes them");
            }
            cursor = page.next;
            if cursor == 0 {
                return Ok(());
            }
            tokio::time::sleep(PAGE_PAUSE).await;
        }
    }

    async fn reclaim(&self, route: &Arc<Route>, ids: Vec<Reclaim>, why: RepairedWhy) -> Result<(), StoreError> {
        for part in ids.chunks(TOGETHER) {
            self.keeper.reclaim(route, part, why).await?;
            tokio::time::sleep(TOGETHER_PAUSE).await;
        }
        Ok(())
    }

    /// Scans a journal, at a bounded rate. `None` if another replica took the lease meanwhile.
    async fn scan_journal(
        &self,
        route: &Arc<Route>,
        memory: &Memory,
        before: ScanResult,
    ) -> Result<Option<Findings>, StoreError> {
        let life = route.life();
        let on_ack = life.release == Release::Ack;
        let asks = on_ack || (life.redeliver_after.is_some() && !life.consumers.is_empty());
        let progress = match &self.consumers {
            Some(consumers) if asks => match consumers.progress(route).await {
                Ok(progress) => Some(progress),
                Err(error) => {
                    debug!(%route, %error, "nothing is known of the consumers now");
                    None
                }
            },
            _ => None,
        };
        let store = self.keeper.store();
        let mut found = Findings::default();
        let (mut cursor, mut seen, mut renewed) = (0, 0, Instant::now());
        loop {
            let page = store.journal_page(route, cursor, PAGE).await?;
            seen += page.entries.len();
            found.pages += 1;
            let (pending, free): (Vec<_>, Vec<_>) = page.entries.into_iter().partition(|entry| entry.pending);
            // `forget` keeps the entries of ids in flight.
            let leftovers = free.into_iter().map(|entry| Leftover { id: entry.id, seen: entry.entry });
            let leftovers: Vec<_> = leftovers.collect();
            if !leftovers.is_empty() {
                found.leftovers += store.forget(route, &leftovers).await?;
            }
            let suspicious = pending.into_iter().filter_map(|journaled| {
                let is_suspicious = found.note(route, &journaled, progress.as_ref(), memory);
                is_suspicious.then_some(journaled.id)
            });
            let suspicious: Vec<_> = suspicious.collect();
            if !suspicious.is_empty() {
                for known in store.known(route, &suspicious).await? {
                    found.judge(route, known, progress.as_ref(), memory);
                }
            }
            cursor = page.next;
            if cursor == 0 {
                break;
            }
            if renewed.elapsed() >= RENEW_EVERY {
                // If the lease is lost, another replica scans from the beginning.
                if !store.life_lease(route, "journal-scan", &self.holder, LEASE).await? {
                    return Ok(None);
                }
                store.keep_scan_result(route, &ScanResult { seen: Some(seen), ..before }).await?;
                renewed = Instant::now();
            }
            tokio::time::sleep(PAGE_PAUSE).await;
        }
        // What is in flight has no entry yet.
        let counts = store.life_counts(route).await?;
        if on_ack && progress.is_some() && counts.pending > counts.in_flight + found.pending {
            self.without_entries(route, &mut found, memory).await?;
        }
        found.progress = progress;
        Ok(Some(found))
    }

    /// Finds ids without a journal entry: they were pending before there was a journal, or an older version claimed them.
    async fn without_entries(
        &self,
        route: &Arc<Route>,
        found: &mut Findings,
        memory: &Memory,
    ) -> Result<(), StoreError> {
        let mut cursor = 0;
        loop {
            let page = self.keeper.store().known_page(route, Listing::Pending, cursor, PAGE).await?;
            let bare = page.ids.into_iter().filter(|known| known.pending && known.journal.is_none());
            for known in bare.filter(|known| known.in_flight.is_none()) {
                found.suspect(known, memory);
            }
            cursor = page.next;
            if cursor == 0 {
                return Ok(());
            }
            tokio::time::sleep(PAGE_PAUSE).await;
        }
    }

    /// Republishes ids that lack an acknowledgement which can no longer come.
    async fn unanswered(
        &self,
        route: &Arc<Route>,
        memory: &mut Memory,
        unanswered: Vec<Known>,
        progress: Option<&Progress>,
    ) -> Result<(), StoreError> {
        let now = Instant::now();
        let mut due = Vec::new();
        let mut suspects = HashMap::new();
        for known in unanswered {
            let before = memory.suspects.remove(&known.id).filter(|(entry, _)| *entry == known.journal);
            let since = before.map_or(now, |(_, since)| since);
            if now - since >= SEEN_FOR {
                due.push(known.clone());
            }
            if suspects.len() < MAX_SUSPECTS {
                suspects.insert(known.id, (known.journal, since));
            }
        }
        memory.suspects = suspects;
        if due.is_empty() {
            return Ok(());
        }
        let due = self.not_in_the_stream(route, due, progress).await;
        if due.is_empty() {
            return Ok(());
        }
        if self.all_is_carried_out().await {
            self.reclaim(route, due, RepairedWhy::Unanswered).await?;
        } else {
            debug!(%route, ids = due.len(), "what consumers answered is not all carried out; the next scan decides");
        }
        Ok(())
    }

    /// Leaves out ids whose event is in the stream after all: that it is gone may rest on two clocks alone.
    async fn not_in_the_stream(&self, route: &Route, due: Vec<Known>, progress: Option<&Progress>) -> Vec<Reclaim> {
        let mut lost = Vec::new();
        for part in due.chunks(TOGETHER) {
            let there = join_all(part.iter().map(|known| self.is_in_the_stream(route, known, progress))).await;
            let gone = part.iter().zip(there).filter(|(_, there)| !there);
            lost.extend(gone.map(|(known, _)| known.redelivery()));
        }
        lost
    }

    /// Whether an event is in the stream, looked up only if nothing but clocks says that it is gone.
    async fn is_in_the_stream(&self, route: &Route, known: &Known, progress: Option<&Progress>) -> bool {
        let entry = known.journal.as_deref().and_then(JournalEntry::parse);
        let (Some(entry), Some(progress), Some(consumers)) = (entry, progress, &self.consumers) else { return false };
        let Some(sequence) = rests_on_clocks(&entry, &route.life().consumers, progress) else { return false };
        match consumers.at(&progress.stream, sequence).await {
            Ok(AtSequence::Event { token, .. }) => token == entry.token,
            Ok(AtSequence::Foreign | AtSequence::Gone) => false,
            // Unknown: the next scan decides.
            Err(_) => true,
        }
    }

    /// Waits until all reports that NATS has by now are carried out. Returns whether they are.
    async fn all_is_carried_out(&self) -> bool {
        let Some(consumers) = &self.consumers else { return false };
        let Ok(until) = consumers.reported_until().await else { return false };
        let began = Instant::now();
        while began.elapsed() < PATIENCE {
            match consumers.is_carried_out(&until).await {
                Ok(true) => return true,
                Ok(false) => tokio::time::sleep(Duration::from_millis(500)).await,
                Err(_) => return false,
            }
        }
        false
    }
}

fn letter(route: &Route, id: &str, entry: &JournalEntry) -> GivenUp {
    let raw = serde_json::json!({
        "entity_id": id,
        "token": entry.token.to_string(),
        "first_claimed": humantime::format_rfc3339_millis(entry.first_claimed).to_string(),
        "sequence": entry.sequence,
        "redelivered": entry.redelivered,
    });
    GivenUp {
        event: entry.token.to_string(),
        letter: DeadLetter {
            route: route.name().to_owned(),
            reason: NOT_RELEASED.to_owned(),
            time: humantime::format_rfc3339_millis(SystemTime::now()).to_string(),
            raw: raw.to_string().into(),
        },
    }
}
