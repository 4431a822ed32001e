//! What the operator's commands work with: the same backends as `serve`, opened for one command.

use std::{io, path::PathBuf, sync::Arc};

use tokio::sync::watch;
use url::Url;

use super::{Stores, parts, story::StoryTeller};
use crate::{
    dead_letters::{DeadLetterStore, ReplayNote, ReviewedLetter},
    delivery::{Delivery, PendingStore, Policy, Publisher, StoreError, WithoutAck, WithoutClaim},
    espocrm::{self, EspoCrm, Login},
    finding::Finding,
    life::LifeStore,
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
    recovery::Bringer,
    redaction::without_credentials,
    relay::Outbox,
    secrets,
    settings::{self, ClaimsIn, Settings},
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
        let redis = Arc::new(Redis::open(&parts::access(address), options, &settings.routes, metrics.redis()));
        let contact = redis.contact();
        let Stores { pending, outbox, dead_letters, .. } = Stores::shared(Arc::clone(&redis));
        let life = Arc::clone(&redis) as _;
        Ok(Self { outbox, dead_letters, pending, life, contact, redis })
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

    /// What brings ids through claim and publish, as a webhook goes, but never without a claim and never without an
    /// acknowledgement. `rate` is in ids a second.
    pub fn bringer(&self, settings: &Settings, publisher: Arc<dyn Publisher>, rate: u32) -> Bringer {
        let (metrics, _) = Metrics::new(&settings.routes, &[]);
        let policy = Policy {
            without_claim: WithoutClaim::Reject,
            without_ack: WithoutAck::Reject,
            ack_timeout: settings.policy.ack_timeout,
        };
        let pending = Arc::clone(&self.pending);
        let delivery = Delivery::new(pending, publisher, policy, &settings.routes, metrics, Tracer::default());
        Bringer::new(Arc::new(delivery), Arc::clone(&self.life), settings.request_deadline, rate)
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

/// Why the CRM of the settings can't be asked.
#[derive(Debug, thiserror::Error)]
pub enum CrmSettingsError {
    /// It is not configured.
    #[error(
        "{0} is not set; [espocrm] says where the CRM is and as whom to ask it: url, and api_key_file or user and password_file"
    )]
    Missing(&'static str),
    /// Two ways to log in.
    #[error("espocrm.api_key_file and espocrm.user are both set; leave one of them out")]
    TwoLogins,
    /// The address is none.
    #[error("espocrm.url {0:?} is no http or https address; write https://crm.example.com")]
    Url(String),
    /// A file can't be read.
    #[error("{key} = {path:?}: read file: {error}")]
    File {
        /// The key.
        key: &'static str,
        /// The file.
        path: PathBuf,
        /// Why.
        error: io::Error,
    },
    /// The client can't be made.
    #[error(transparent)]
    Setup(#[from] espocrm::SetupError),
}

/// The CRM of the settings.
///
/// # Errors
/// If it is not configured, or its files can't be read.
pub fn crm(settings: &settings::EspoCrm) -> Result<EspoCrm, CrmSettingsError> {
    let settings::EspoCrm { url, api_key_file, user, password_file, ca_file } = settings;
    let secret = |key, path: &PathBuf| match secrets::text(path) {
        Ok(text) => Ok(secrets::Secret::from(text.as_str())),
        Err(error) => Err(CrmSettingsError::File { key, path: path.clone(), error }),
    };
    let url = url.as_ref().ok_or(CrmSettingsError::Missing("espocrm.url"))?;
    let parsed = Url::parse(url).ok().filter(|url| matches!(url.scheme(), "http" | "https") && url.has_host());
    let parsed = parsed.filter(|url| url.username().is_empty() && url.password().is_none() && url.query().is_none());
    let url = parsed.ok_or_else(|| CrmSettingsError::Url(without_credentials(url)))?;
    let login = match (api_key_file, user, password_file) {
        (Some(_), Some(_), _) | (Some(_), _, Some(_)) => return Err(CrmSettingsError::TwoLogins),
        (Some(path), None, None) => Login::ApiKey(secret("espocrm.api_key_file", path)?),
        (None, Some(name), Some(path)) => {
            Login::User { name: name.clone(), password: secret("espocrm.password_file", path)? }
        }
        (None, Some(_), None) => return Err(CrmSettingsError::Missing("espocrm.password_file")),
        (None, None, Some(_)) => return Err(CrmSettingsError::Missing("espocrm.user")),
        (None, None, None) => return Err(CrmSettingsError::Missing("espocrm.api_key_file or espocrm.user")),
    };
    Ok(EspoCrm::new(&espocrm::Access { url, login, ca: ca_file.clone() })?)
}

/// Connects to read what the streams hold.
///
/// # Errors
/// If NATS can't be reached.
pub async fn history(settings: &Settings) -> Result<History, HistoryError> {
    History::connect(&parts::servers(settings)).await
}
