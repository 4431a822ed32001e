//! What the operator's commands work with: the same backends as `serve`, opened for one command.

use std::sync::Arc;

use tokio::sync::watch;

use super::{nats_monitoring, parts, story::StoryTeller};
use crate::{
    dead_letters::{DeadLetterStore, ReplayNote, ReviewedLetter},
    delivery::{Delivery, PendingStore, Publisher, StoreError, WithoutAck},
    finding::Finding,
    life::{Keeper, LifeStore},
    metrics::Metrics,
    pending::{
        access::Access,
        inspect::{Demands, Stakes},
        quarantine::RedisQuarantine,
        redis::Redis,
    },
    publisher::{
        self,
        consumers::{Consumers, ConsumersError},
        history::{History, HistoryError},
        live::LiveEvents,
        servers::ConnectFailure,
    },
    quarantine::QuarantineStore,
    readiness::Contact,
    recovery::{Bringer, Releaser},
    relay::Outbox,
    settings::{ClaimsIn, Settings},
    traces::Tracer,
};

/// The store of pending ids, for one command.
pub struct OperatorStore {
    /// What NATS has not acknowledged.
    pub outbox: Arc<dyn Outbox>,
    /// Rejected items and bodies.
    pub dead_letters: Arc<dyn DeadLetterStore>,
    /// Claims.
    pub pending: Arc<dyn PendingStore>,
    /// What is known of pending ids.
    pub life: Arc<dyn LifeStore>,
    /// Whether it can be worked with.
    pub contact: watch::Receiver<Contact>,
    redis: Arc<Redis>,
    access: Access,
}

impl OperatorStore {
    /// What tells the stories of ids.
    #[must_use]
    pub fn story_teller(&self, settings: &Settings) -> StoryTeller {
        let servers = parts::servers(settings);
        StoryTeller { servers, life: Arc::clone(&self.redis) as _, dead_letters: Arc::clone(&self.dead_letters) }
    }
}

/// Claims are in the memory of the process that serves.
#[derive(Debug, thiserror::Error)]
#[error("redis.url is \"memory:\": claims are in the memory of the serving process, where no command can see them")]
pub struct InMemory;

impl OperatorStore {
    /// Starts to connect.
    ///
    /// # Errors
    /// If the claims are in no store that another process could see.
    pub fn open(settings: &Settings) -> Result<Self, InMemory> {
        let ClaimsIn::Redis(address) = &settings.claims_in else { return Err(InMemory) };
        let (metrics, _) = Metrics::new(&settings.routes, &[]);
        let options = parts::claim_options(settings);
        let access = parts::access(address);
        let redis = Arc::new(Redis::open(&access, &settings.instance, options, &settings.routes, metrics.redis()));
        let contact = redis.contact();
        Ok(Self {
            outbox: Arc::clone(&redis) as _,
            dead_letters: Arc::clone(&redis) as _,
            pending: Arc::clone(&redis) as _,
            life: Arc::clone(&redis) as _,
            contact,
            redis,
            access,
        })
    }

    /// Dead letters that are older than one with a name, newest first.
    ///
    /// # Errors
    /// If Redis does not say.
    pub async fn review_letters(&self, before: Option<&str>, count: usize) -> Result<Vec<ReviewedLetter>, StoreError> {
        self.redis.review(before, count).await
    }

    /// The dead letter with a name.
    ///
    /// # Errors
    /// If Redis does not say.
    pub async fn review_letter(&self, entry: &str) -> Result<Option<ReviewedLetter>, StoreError> {
        self.redis.review_one(entry).await
    }

    /// Notes what became of the replay of a dead letter.
    ///
    /// # Errors
    /// If Redis does not take it.
    pub async fn note_replay(&self, entry: &str, note: &ReplayNote) -> Result<(), StoreError> {
        self.redis.note_replay(entry, note).await
    }

    /// Drops dead letters by their names; how many there were.
    ///
    /// # Errors
    /// If Redis does not take it.
    pub async fn drop_letters(&self, entries: &[String]) -> Result<usize, StoreError> {
        self.redis.drop_letters(entries).await
    }

    /// The quarantine.
    #[must_use]
    pub fn quarantine(&self, settings: &Settings) -> Arc<dyn QuarantineStore> {
        Arc::new(RedisQuarantine::open(&self.access, &settings.instance))
    }

    /// What releases bodies from quarantine.
    #[must_use]
    pub fn releaser(
        &self,
        settings: &Settings,
        store: Arc<dyn QuarantineStore>,
        publisher: &Arc<dyn Publisher>,
    ) -> Releaser {
        let (metrics, _) = Metrics::new(&settings.routes, &[]);
        parts::releaser(settings, store, &self.pending, &self.dead_letters, publisher, &metrics)
    }

    /// What brings ids through claim and publish, as a webhook goes, but never without a claim and never without an
    /// acknowledgement. `rate` is in ids a second.
    pub fn bringer(&self, settings: &Settings, publisher: Arc<dyn Publisher>, rate: u32) -> Bringer {
        let (metrics, _) = Metrics::new(&settings.routes, &[]);
        let policy = parts::strict(settings);
        let pending = Arc::clone(&self.pending);
        let delivery = Delivery::new(pending, publisher, policy, &settings.routes, metrics, Tracer::default());
        Bringer::new(Arc::new(delivery), Arc::clone(&self.life), settings.request_deadline, rate)
    }

    /// What releases ids and claims them again, as `serve` does.
    #[must_use]
    pub fn keeper(&self, settings: &Settings, publisher: Arc<dyn Publisher>) -> Keeper {
        let (metrics, _) = Metrics::new(&settings.routes, &[]);
        let (life, pending) = (Arc::clone(&self.life), Arc::clone(&self.pending));
        Keeper::new(life, pending, publisher, settings.policy.ack_timeout, metrics)
    }

    /// Looks for settings that can cost events.
    pub async fn inspect(&self, settings: &Settings) -> Vec<Finding> {
        let stakes = match settings.policy.without_ack {
            WithoutAck::Reject => Stakes::Duplicates,
            WithoutAck::Accept => Stakes::Events,
        };
        let (durability, wait_replicas) = (settings.durability, settings.wait_replicas);
        self.redis.inspect(Demands { stakes, durability, wait_replicas }).await
    }
}

/// Looks at NATS: server, stream, consumers and settings that can cost events.
pub async fn inspect_broker(settings: &Settings) -> Vec<Finding> {
    let (servers, stream) = (parts::servers(settings), parts::stream(settings));
    let mut findings =
        publisher::inspect::inspect(&servers, stream.as_ref(), &settings.routes, &settings.instance).await;
    if let Some(address) = settings.nats_monitoring.as_ref().filter(|_| stream.is_some()) {
        let files = settings.nats.tls.clone().unwrap_or_default();
        findings.extend(nats_monitoring::inspect(address, &files).await);
    }
    findings
}

/// Looks for what the configuration demands of NATS; nothing where events are live only.
///
/// # Errors
/// If NATS can't be reached.
pub async fn broker_requirements(settings: &Settings) -> Result<Vec<Finding>, ConnectFailure> {
    if parts::stream(settings).is_none() {
        return Ok(Vec::new());
    }
    publisher::inspect::requirements(&parts::servers(settings), &settings.routes, &settings.instance).await
}

/// Connects to look at the consumers of the streams, or to add one.
///
/// # Errors
/// If NATS can't be reached.
pub async fn consumers(settings: &Settings) -> Result<Consumers, ConsumersError> {
    Consumers::connect(&parts::servers(settings)).await
}

/// Subscribes to live events.
///
/// # Errors
/// If NATS can't be reached, or denies it.
pub async fn live_events(settings: &Settings, subjects: &[String]) -> Result<LiveEvents, publisher::live::LiveError> {
    LiveEvents::subscribe(&parts::servers(settings), subjects).await
}

/// Connects to read what the streams hold.
///
/// # Errors
/// If NATS can't be reached.
pub async fn history(settings: &Settings) -> Result<History, HistoryError> {
    History::connect(&parts::servers(settings)).await
}
