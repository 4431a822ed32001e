//! The backends: the store of pending ids and the broker. They live as long as the process, and serve the routes of one
//! configuration after the other.

use std::sync::Arc;

use hashbrown::HashSet;
use tokio_util::task::TaskTracker;
use tracing::warn;

use super::parts;
use crate::{
    dead_letters::{DeadLetterStore, GivenUpLetters},
    delivery::{PendingStore, Publisher, StoreContents, StoreError},
    life::LifeStore,
    metrics::Metrics,
    pending::{memory::Memory, redis::Redis},
    publisher::{core::Core, jetstream::JetStream},
    relay::Outbox,
    route::{Route, RouteTable},
    settings::{ClaimsIn, Settings},
};

/// The store of pending ids.
pub(super) enum Store {
    /// Redis, for the routes of one configuration.
    Redis(Arc<Redis>),
    Memory(Arc<Memory>),
}

/// The store's ports, for users that make no claims.
pub(super) struct StoreHandles {
    pub(super) pending: Arc<dyn PendingStore>,
    pub(super) outbox: Arc<dyn Outbox>,
    pub(super) dead_letters: Arc<dyn DeadLetterStore>,
    /// `None` for the store in memory.
    pub(super) given_up: Option<Arc<dyn GivenUpLetters>>,
    pub(super) contents: Arc<dyn StoreContents>,
}

impl Store {
    /// Starts to connect.
    pub(super) fn open(settings: &Settings, metrics: &Metrics) -> Self {
        let options = parts::claim_options(settings);
        match &settings.claims_in {
            ClaimsIn::Redis(address) => {
                let access = parts::access(address);
                let redis = Redis::open(&access, &settings.instance, options, &settings.routes, metrics.redis());
                Self::Redis(Arc::new(redis))
            }
            ClaimsIn::Memory => {
                warn!(
                    "redis.url is \"memory:\": claims are forgotten at exit and not shared with other processes; for trials only"
                );
                Self::Memory(Arc::new(Memory::new(options.outbox_limit)))
            }
        }
    }

    /// The same store for the routes of another configuration.
    ///
    /// # Errors
    /// What it refuses of a new route; then nothing has changed.
    pub(super) async fn serve(&self, settings: &Settings) -> Result<Self, StoreError> {
        Ok(match self {
            Self::Redis(redis) => {
                Self::Redis(Arc::new(redis.serve(&settings.routes, parts::claim_options(settings)).await?))
            }
            Self::Memory(memory) => Self::Memory(Arc::clone(memory)),
        })
    }

    /// The store's ports, for users that make no claims. They keep no queue of a route alive.
    pub(super) fn handles(&self) -> StoreHandles {
        match self {
            Self::Redis(redis) => {
                let redis = Arc::new(redis.without_routes());
                StoreHandles { given_up: Some(Arc::clone(&redis) as _), ..Self::handles_of(redis) }
            }
            Self::Memory(memory) => Self::handles_of(Arc::clone(memory)),
        }
    }

    fn handles_of(store: Arc<impl PendingStore + Outbox + DeadLetterStore + StoreContents + 'static>) -> StoreHandles {
        StoreHandles {
            pending: Arc::clone(&store) as _,
            outbox: Arc::clone(&store) as _,
            dead_letters: Arc::clone(&store) as _,
            given_up: None,
            contents: store,
        }
    }

    /// The port for claims.
    pub(super) fn pending(&self) -> Arc<dyn PendingStore> {
        match self {
            Self::Redis(redis) => Arc::clone(redis) as _,
            Self::Memory(memory) => Arc::clone(memory) as _,
        }
    }

    /// The port for pending ids; `None` for the store in memory.
    pub(super) fn life(&self) -> Option<Arc<dyn LifeStore>> {
        match self {
            Self::Redis(redis) => Some(Arc::clone(redis) as _),
            Self::Memory(_) => None,
        }
    }
}

/// The broker.
pub(super) enum Broker {
    JetStream(Arc<JetStream>),
    Core(Arc<Core>),
}

impl Broker {
    /// Starts to connect; `tasks` owns what it does in the background.
    ///
    /// # Errors
    /// If the client can't be set up at all.
    pub(super) async fn open(settings: &Settings, tasks: &TaskTracker) -> Result<Self, async_nats::Error> {
        let (servers, routes) = (&parts::servers(settings), &settings.routes);
        Ok(match parts::stream(settings) {
            Some(stream) => Self::JetStream(Arc::new(JetStream::open(servers, stream, routes, tasks).await?)),
            None => Self::Core(Arc::new(Core::open(servers, routes, tasks).await?)),
        })
    }

    pub(super) fn publisher(&self) -> Arc<dyn Publisher> {
        match self {
            Self::JetStream(broker) => Arc::clone(broker) as _,
            Self::Core(broker) => Arc::clone(broker) as _,
        }
    }

    /// Sees to it that events of routes with other subjects than `before` can be stored, as far as NATS answers.
    ///
    /// # Errors
    /// What is in the way.
    pub(super) async fn provide(&self, routes: &RouteTable, before: &RouteTable) -> Result<(), String> {
        let Self::JetStream(broker) = self else { return Ok(()) };
        let known: HashSet<_> = before.routes().iter().map(|route| route.subject()).collect();
        let new = routes.routes().iter().filter(|route| !known.contains(route.subject()));
        match RouteTable::new(new.map(|route| Route::clone(route)).collect()) {
            Ok(new) => broker.provide(&new).await,
            // There are none.
            Err(_empty) => Ok(()),
        }
    }

    /// Publishes for these routes from now on.
    pub(super) fn serve(&self, routes: &Arc<RouteTable>) {
        match self {
            Self::JetStream(broker) => broker.serve(routes),
            Self::Core(broker) => broker.serve(routes),
        }
    }
}
