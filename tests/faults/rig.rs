//! Servers, replicas, load and oracle of a scenario, and the verdict at its end.

use std::{
    collections::BTreeSet,
    net::SocketAddr,
    process::ExitStatus,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::{Duration, SystemTime},
};

use redis::AsyncTypedCommands;
use tokio::task::JoinSet;

use super::{
    crm::{Crm, Load, PATIENT, Sent},
    judge::{History, IN_TIME, Span, Violation, Webhook, WhilePending},
    oracle::Oracle,
};
use crate::support::{Gate, OUTBOX, PENDING, World, eventually, within};

/// Shortened so that a scenario takes seconds: the answers have to come within a second beyond the deadline.
pub(super) const SETTINGS: &str = "server.request_deadline = \"3s\"\nserver.body_read_timeout = \"2s\"\nnats.ack_timeout = \"1s\"\noutbox.relay_after = \"4s\"\n";
/// Unless a scenario has another one.
const LOG: &str = "log.filter = \"info,hookgate::entity=warn\"\n";
/// Beyond the deadline of the settings above.
const LONGEST_ANSWER: Duration = Duration::from_secs(4);

/// What a scenario works with.
pub(crate) struct Rig {
    pub(crate) world: World,
    pub(crate) gates: Vec<Gate>,
    pub(crate) oracle: Oracle,
    history: Arc<Mutex<History>>,
    /// When the last fault ended, if it did before the load.
    faults_ended: Option<SystemTime>,
    consumers: JoinSet<()>,
    /// Others release ids, by acknowledgements: in the end nothing may be pending.
    released: bool,
    settings: String,
}

/// What a scenario may cost.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Bounds {
    /// Messages beyond one an id. Mostly 0.
    pub(crate) duplicates: usize,
    /// Answers with status 0, for connections that a kill of the proxy cut. Mostly 0.
    pub(crate) cut: u64,
    /// Longest time to an answer.
    pub(crate) longest: Duration,
}

impl Default for Bounds {
    fn default() -> Self {
        Self { duplicates: 0, cut: 0, longest: LONGEST_ANSWER }
    }
}

/// A row of the table.
#[derive(Debug, Default)]
pub(crate) struct Report {
    pub(crate) accepted: usize,
    pub(crate) lost: usize,
    pub(crate) stuck: usize,
    pub(crate) duplicates: usize,
    pub(crate) statuses: String,
    pub(crate) longest: Duration,
    /// What the scenario's bounds do not allow.
    pub(crate) violations: Vec<String>,
}

/// Adds what a scenario demands beyond the invariants of all.
pub(crate) fn demand(report: &mut Report, holds: bool, otherwise: impl Into<String>) {
    if !holds {
        report.violations.push(otherwise.into());
    }
}

pub(crate) fn demand_good_end(report: &mut Report, ends: &[ExitStatus]) {
    for end in ends {
        demand(report, end.success(), format!("a replica ended with {end}"));
    }
}

impl Rig {
    /// Servers and ready replicas; `settings` is TOML over the suite's.
    pub(crate) async fn start(replicas: usize, settings: &str) -> Self {
        Self::with(World::start().await, replicas, settings).await
    }

    /// The same with servers that were set up before.
    pub(crate) async fn with(world: World, replicas: usize, settings: &str) -> Self {
        Self::reading(vec![world.nats.url()], world, replicas, settings).await
    }

    /// The same with an oracle that reads from any of several servers.
    pub(crate) async fn reading(urls: Vec<String>, world: World, replicas: usize, settings: &str) -> Self {
        let history = Arc::<Mutex<History>>::default();
        let oracle = Oracle::start(urls, Arc::clone(&history));
        let log = if settings.contains("log.filter") { "" } else { LOG };
        let settings = format!("{SETTINGS}{log}{settings}");
        let (gates, consumers) = (Vec::new(), JoinSet::new());
        let (faults_ended, released) = (None, false);
        let mut rig = Self { world, gates, oracle, history, faults_ended, consumers, released, settings };
        for _ in 0..replicas {
            rig.add_replica().await;
        }
        rig
    }

    /// One more replica, ready; its place.
    pub(crate) async fn add_replica(&mut self) -> usize {
        self.gates.push(self.world.gate(&self.settings).await);
        self.gates.len() - 1
    }

    /// Starts a replica in the place of another one, whose process is dropped. It listens at another port.
    pub(crate) async fn replace(&mut self, place: usize) {
        self.gates[place] = self.world.gate(&self.settings).await;
    }

    /// The settings of the replicas, for more of them.
    pub(crate) fn settings(&self) -> &str {
        &self.settings
    }

    /// Where the replicas listen.
    pub(crate) fn addresses(&self) -> Vec<SocketAddr> {
        self.gates.iter().map(Gate::address).collect()
    }

    /// Load on all replicas.
    pub(crate) fn load(&self, load: Load) -> Crm {
        Crm::start(self.addresses(), load)
    }

    /// A consumer that releases each id as soon as its event is in the stream, from now to the end. Its own way to Redis
    /// has no wire.
    pub(crate) fn consume(&mut self) {
        let (mut events, redis) = (self.oracle.subscribe(), self.world.redis.client());
        let history = Arc::clone(&self.history);
        self.consumers.spawn(async move {
            let mut ids = Vec::new();
            while events.recv_many(&mut ids, 500).await > 0 {
                // Redis may be gone or frozen: what it did not confirm is tried again.
                loop {
                    let began = SystemTime::now();
                    let release = async {
                        let mut connection = redis.get_multiplexed_async_connection().await.ok()?;
                        redis::cmd("SREM").arg(PENDING).arg(&ids).exec_async(&mut connection).await.ok()
                    };
                    let answer = tokio::time::timeout(Duration::from_secs(1), release).await;
                    let confirmed = matches!(answer, Ok(Some(()))).then(SystemTime::now);
                    for id in &ids {
                        lock(&history).release(id, began, confirmed);
                    }
                    tokio::time::sleep(Duration::from_millis(20)).await;
                    if confirmed.is_some() {
                        break;
                    }
                }
                ids.clear();
            }
        });
    }

    /// That consumer releases nothing any more.
    pub(crate) fn stop_consuming(&mut self) {
        self.consumers = JoinSet::new();
    }

    /// Others release ids: in the end nothing may be pending.
    pub(crate) const fn is_released(&mut self) {
        self.released = true;
    }

    /// What is left of ids: how many are pending, and are in the outbox, the journal and among the marks. Nothing without Redis.
    pub(crate) async fn left(&self) -> Option<[usize; 4]> {
        let mut link = self.world.redis.client().get_multiplexed_async_connection().await.ok()?;
        let mut left = [link.scard(PENDING).await.ok()?, 0, 0, 0];
        for (place, name) in ["outbox", "journal", "marks"].into_iter().enumerate() {
            left[place + 1] = link.hlen(format!("{{{PENDING}}}:{name}")).await.ok()?;
        }
        Some(left)
    }

    /// Waits until all ids are free and nothing is known of any; demands it.
    pub(crate) async fn demand_quiet(&self, report: &mut Report, limit: Duration) {
        let mut left = None;
        let quiet = within(limit, async || {
            left = self.left().await;
            (left == Some([0; 4])).then_some(())
        });
        if quiet.await.is_none() {
            let mut link = self.world.redis.connection().await;
            let entries = link.hgetall(format!("{{{PENDING}}}:journal")).await.unwrap_or_default();
            let some: Vec<_> = entries.iter().take(5).collect();
            report.violations.push(format!(
                "{left:?} ids are pending, in the outbox, in the journal, marked after {limit:?}; journal: {some:?}"
            ));
        }
    }

    /// Those of these webhooks that have no event of their own. Everything that is in the stream has to be read by now.
    pub(crate) fn swallowed(&self, webhooks: Vec<Webhook>, faults_ended: SystemTime) -> Vec<Violation> {
        let mut history = lock(&self.history).clone();
        for webhook in webhooks {
            history.webhook(webhook);
        }
        history.violations(WhilePending::Publish, faults_ended)
    }

    /// Waits until everything that is in the stream now has been read; whether it has been.
    pub(crate) async fn read_to_the_end(&self) -> bool {
        match self.world.nats.jetstream().await.get_stream("HOOKGATE").await {
            Ok(mut stream) => {
                let last = stream.info().await.map_or(0, |info| info.state.last_sequence);
                self.oracle.catch_up(last).await
            }
            Err(_) => true,
        }
    }

    /// From then until now Redis lost everything.
    pub(crate) fn wiped_since(&self, from: SystemTime) {
        lock(&self.history).wipe(Span { from, to: SystemTime::now() });
    }

    /// The last fault has ended.
    pub(crate) fn faults_end(&mut self) {
        self.faults_ended = Some(SystemTime::now());
    }

    /// Judges what can be judged of a long load, and forgets it.
    pub(crate) fn digest(&self, crm: &Crm) {
        let mut history = lock(&self.history);
        for webhook in crm.take() {
            history.webhook(webhook);
        }
        history.forget(WhilePending::Skip, self.faults_ended, SystemTime::now());
    }

    /// Waits until so many more ids were accepted.
    pub(crate) async fn progress(&self, crm: &Crm, ids: usize) {
        let goal = crm.accepted() + ids;
        eventually(&format!("{ids} more ids are accepted"), async || (crm.accepted() >= goal).then_some(())).await;
    }

    /// Waits until NATS is known to be away and so many ids more were accepted, beyond those whose answers were on their way.
    pub(crate) async fn on_the_outbox_alone(&self, crm: &Crm, ids: usize) {
        for gate in &self.gates {
            gate.wait_store("nats", "unreachable").await;
        }
        self.progress(crm, PATIENT.workers * PATIENT.batch + ids).await;
    }

    /// Ids that were published without a claim so far.
    pub(crate) async fn undeduplicated(&self) -> usize {
        let mut all = 0;
        for gate in &self.gates {
            let status = gate.probe("/v1/status").await.json();
            let routes = status["routes"].as_array().expect("there are routes").iter();
            all += routes.filter_map(|route| route["items"]["undeduplicated"].as_u64()).sum::<u64>();
        }
        usize::try_from(all).expect("few")
    }

    /// Ends the load, waits for the relay, and compares what was accepted with what is in the stream.
    pub(crate) async fn verdict(&self, crm: Crm, bounds: Bounds) -> Report {
        let sent = crm.finish().await;
        self.judge(sent, bounds).await
    }

    /// The same for a load that was ended before.
    pub(crate) async fn judge(&self, mut sent: Sent, bounds: Bounds) -> Report {
        let ended = SystemTime::now();
        let faults_ended = self.faults_ended.unwrap_or(ended);
        for webhook in sent.webhooks.drain(..) {
            lock(&self.history).webhook(webhook);
        }
        let consumed = self.released || !self.consumers.is_empty();
        // What is left in flight is the relay's, and what is pending the consumers'.
        let limit = IN_TIME + ended.duration_since(faults_ended).unwrap_or_default();
        let calm = async || {
            let left = !self.world.redis.outbox(OUTBOX).await.is_empty()
                || (consumed && !self.world.redis.pending(PENDING).await.is_empty());
            let mut history = lock(&self.history);
            history.forget(WhilePending::Skip, Some(faults_ended), SystemTime::now());
            (!left && history.violations(WhilePending::Skip, faults_ended).is_empty()).then_some(())
        };
        let _either = within(limit, calm).await;
        let read = self.read_to_the_end().await;
        let stream = self.oracle.ids();
        let pending = self.world.redis.pending(PENDING).await;
        let outbox = self.world.redis.outbox(OUTBOX).await;
        let missing: BTreeSet<_> = sent.accepted.difference(&stream).collect();
        // Where ids come again, an event of that name shows nothing: the history does.
        let missing = if self.oracle.keeps_events() { missing } else { BTreeSet::new() };
        let history = lock(&self.history);
        let violations = history.violations(WhilePending::Skip, faults_ended);
        let without: BTreeSet<_> = violations.iter().map(|violation| &violation.id).collect();
        // Nobody releases an id that is pending now and in no outbox: its consumer is done, or it never had an event.
        let stuck: BTreeSet<_> = pending.iter().filter(|id| consumed || !stream.contains(*id)).collect();
        let (by_id, by_token) = self.oracle.copies();
        let statuses: Vec<_> = sent.statuses.iter().map(|(status, count)| format!("{status}: {count}")).collect();
        let mut report = Report {
            accepted: sent.taken + sent.accepted.len(),
            lost: missing.iter().copied().chain(without.iter().copied()).collect::<BTreeSet<_>>().len()
                + sent.given_up.len(),
            stuck: stuck.len(),
            duplicates: by_id,
            statuses: statuses.join(", "),
            longest: sent.longest,
            violations: Vec::new(),
        };
        let mut claim = |holds: bool, violation: String| {
            if !holds {
                report.violations.push(violation);
            }
        };
        claim(
            sent.taken > 0 || !sent.accepted.is_empty(),
            "nothing was accepted: the scenario shows nothing".to_owned(),
        );
        claim(missing.is_empty(), format!("accepted, but not in the stream: {:?}", first(&missing)));
        claim(sent.given_up.is_empty(), format!("given up by the sender: {:?}", first(&sent.given_up)));
        let some =
            violations.iter().take(5).fold(String::new(), |text, violation| text + &format!("\n        {violation}"));
        let count = violations.len();
        claim(count == 0, format!("{count} accepted webhooks, of {} ids, without their event:{some}", without.len()));
        let some = stuck.iter().take(5).map(|id| {
            let token = outbox
                .get(*id)
                .map_or_else(|| "not in the outbox".to_owned(), |token| format!("in the outbox as {token}"));
            format!("\n        {}, {token}", history.story(id))
        });
        let what = if consumed { "nobody releases them" } else { "not in the stream" };
        claim(stuck.is_empty(), format!("{} ids are pending, but {what}:{}", stuck.len(), some.collect::<String>()));
        drop(history);
        claim(outbox.is_empty(), format!("{} entries stayed in the outbox: {:?}", outbox.len(), outbox.iter().next()));
        claim(read, "the oracle could not read the stream to its end".to_owned());
        claim(by_token == 0, format!("{by_token} messages repeat a token"));
        // Each of those claims has a token of its own, and with it a message: that of an id which was there before it, and
        // was released, is none of it.
        let messages = self.oracle.messages();
        let claimed = usize::try_from(sent.claimed).expect("few");
        claim(claimed <= messages, format!("{claimed} claims were answered as new, {messages} messages are there"));
        claim(by_id <= bounds.duplicates, format!("{by_id} duplicates, allowed are {}", bounds.duplicates));
        for (status, count) in &sent.statuses {
            let allowed = matches!(status, 200 | 503) || (*status == 0 && *count <= bounds.cut);
            claim(allowed, format!("status {status}: {count} times"));
        }
        claim(sent.longest < bounds.longest, format!("an answer took {:?}", sent.longest));
        report
    }
}

/// Number of published events in a log line, if the line has this text.
pub(super) fn published(line: &str, text: &str) -> usize {
    if !line.contains(text) {
        return 0;
    }
    let line: serde_json::Value = serde_json::from_str(line).expect("the log is JSON");
    let published = line["published"].as_u64().unwrap_or_else(|| panic!("no number in {line}"));
    usize::try_from(published).expect("it is small")
}

fn lock(history: &Mutex<History>) -> MutexGuard<'_, History> {
    history.lock().unwrap_or_else(PoisonError::into_inner)
}

fn first<T: Clone>(set: &BTreeSet<T>) -> Vec<T> {
    set.iter().take(5).cloned().collect()
}
