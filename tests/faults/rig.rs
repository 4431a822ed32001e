//! Servers, replicas, load and oracle of a scenario, and the verdict at its end.

use std::{collections::BTreeSet, net::SocketAddr, time::Duration};

use super::{
    crm::{Crm, Load, Sent},
    oracle::Oracle,
};
use crate::support::{Gate, OUTBOX, PENDING, World, eventually};

/// Shortened so that a scenario takes seconds: the answers have to come within a second beyond the deadline.
const SETTINGS: &str = "server.request_deadline = \"3s\"\nserver.body_read_timeout = \"2s\"\nnats.ack_timeout = \"1s\"\noutbox.relay_after = \"4s\"\nlog.filter = \"info,hookgate::entity=warn\"\n";
/// Beyond the deadline of the settings above.
const LONGEST_ANSWER: Duration = Duration::from_secs(4);

/// What a scenario works with.
pub(crate) struct Rig {
    pub(crate) world: World,
    pub(crate) gates: Vec<Gate>,
    pub(crate) oracle: Oracle,
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
        let oracle = Oracle::start(urls);
        let mut rig = Self { world, gates: Vec::new(), oracle, settings: format!("{SETTINGS}{settings}") };
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

    /// Waits until so many more ids were accepted.
    pub(crate) async fn progress(&self, crm: &Crm, ids: usize) {
        let goal = crm.accepted() + ids;
        eventually(&format!("{ids} more ids are accepted"), async || (crm.accepted() >= goal).then_some(())).await;
    }

    /// Ends the load, waits for the relay, and compares what was accepted with what is in the stream.
    pub(crate) async fn verdict(&self, crm: Crm, bounds: Bounds) -> Report {
        let sent = crm.finish().await;
        self.judge(sent, bounds).await
    }

    /// The same for a load that was ended before.
    pub(crate) async fn judge(&self, sent: Sent, bounds: Bounds) -> Report {
        // What is left in flight is the relay's.
        let relayed = async {
            eventually("the outbox is empty", async || self.world.redis.outbox(OUTBOX).await.is_empty().then_some(()))
                .await;
        };
        relayed.await;
        if let Ok(mut stream) = self.world.nats.jetstream().await.get_stream("HOOKGATE").await {
            let last = stream.info().await.map_or(0, |info| info.state.last_sequence);
            self.oracle.catch_up(last).await;
        }
        let stream = self.oracle.ids();
        let pending = self.world.redis.pending(PENDING).await;
        let missing: BTreeSet<_> = sent.accepted.difference(&stream).collect();
        let stuck: BTreeSet<_> = pending.difference(&stream).collect();
        let (by_id, by_token) = self.oracle.copies();
        let statuses: Vec<_> = sent.statuses.iter().map(|(status, count)| format!("{status}: {count}")).collect();
        let mut report = Report {
            accepted: sent.accepted.len(),
            lost: missing.len() + sent.given_up.len(),
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
        claim(!sent.accepted.is_empty(), "nothing was accepted: the scenario shows nothing".to_owned());
        claim(missing.is_empty(), format!("accepted, but not in the stream: {:?}", first(&missing)));
        claim(sent.given_up.is_empty(), format!("given up by the sender: {:?}", first(&sent.given_up)));
        claim(stuck.is_empty(), format!("pending, but not in the stream: {:?}", first(&stuck)));
        claim(by_token == 0, format!("{by_token} messages repeat a token"));
        // Each of those claims has a token of its own, and with it a message: that of an id which was there before it, and
        // was released, is none of it.
        let messages = self.oracle.events().len();
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

/// How many events a line of the log says were published, if it is the line with this text.
pub(super) fn published(line: &str, text: &str) -> usize {
    if !line.contains(text) {
        return 0;
    }
    let line: serde_json::Value = serde_json::from_str(line).expect("the log is JSON");
    let published = line["published"].as_u64().unwrap_or_else(|| panic!("no number in {line}"));
    usize::try_from(published).expect("it is small")
}

fn first<T: Clone>(set: &BTreeSet<T>) -> Vec<T> {
    set.iter().take(5).cloned().collect()
}
