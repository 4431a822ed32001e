//! What the operator's commands work with: the same backends as `serve`, opened for one command.

use std::sync::Arc;

use tokio::sync::watch;

use super::{Stores, parts};
use crate::{
    dead_letters::DeadLetterStore,
    delivery::{PendingStore, WithoutAck},
    finding::Finding,
    metrics::Metrics,
    pending::{inspect::Stakes, redis::Redis},
    publisher::{
        self,
        consumers::{Consumers, ConsumersError},
        history::{History, HistoryError},
        live::LiveEvents,
        servers::ConnectFailure,
    },
    readiness::Contact,
    relay::Outbox,
    settings::{ClaimsIn, Settings},
};

/// The store of pending ids, for one command.
pub struct OperatorStore {
    /// What NATS has not acknowledged.
    pub outbox: Arc<dyn Outbox>,
    /// Rejected items and bodies.
    pub dead_letters: Arc<dyn DeadLetterStore>,
    /// Whether it can be worked with.
    pub contact: watch::Receiver<Contact>,
    redis: Arc<Redis>,
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
        let redis = Arc::new(Redis::open(&parts::access(address), options, &settings.routes, metrics.redis()));
        let contact = redis.contact();
        let Stores { outbox, dead_letters, .. } = Stores::shared(Arc::clone(&redis));
        Ok(Self { outbox, dead_letters, contact, redis })
    }

    /// Looks for settings that can cost events.
    pub async fn inspect(&self, settings: &Settings) -> Vec<Finding> {
        let stakes = match settings.policy.without_ack {
            WithoutAck::Reject => Stakes::Duplicates,
            WithoutAck::Accept => Stakes::Events,
        };
        self.redis.inspect(stakes, settings.durability).await
    }
}

/// Looks at NATS: server, stream, consumers and settings that can cost events.
pub async fn inspect_broker(settings: &Settings) -> Vec<Finding> {
    let (servers, stream) = (parts::servers(settings), parts::stream(settings));
    publisher::inspect::inspect(&servers, stream.as_ref(), &settings.routes, &settings.instance).await
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
