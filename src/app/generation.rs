//! A generation: everything that serves one configuration, and knows its routes, secrets and limits. A request keeps
//! the generation it began with.
//!
//! Connections to the stores, the outboxes' relay and the listeners stay. The tasks of a generation end before those of the next
//! one begin. They may be stopped at any moment, except the one that carries out reports of consumers: it finishes its batch.

use std::{sync::Arc, time::Duration};

use futures_util::FutureExt;
use tokio::sync::watch;
use tokio_util::{sync::CancellationToken, task::TaskTracker};
use tracing::warn;

use super::{
    parts,
    stores::{Broker, Store, StoreHandles},
    story::{Story, StoryTeller},
};
use crate::{
    admin::{
        Activity, AdminState, ConfigurationStatus, Health, OnUnavailable, PendingIds,
        pending_ids::{NotReleased, ReleaseId},
        specifications::Specifications,
        store_gauges::StoreGauges,
    },
    dead_letters::{DeadLetterLimits, DeadLetters},
    delivery::{Delivery, Policy, Publisher, StoreError, WithoutAck, WithoutClaim},
    event::Token,
    life::{Answers, Keeper, ReleaseReport, Releases, Sweep},
    listener::ConnectionLimits,
    metrics::{Exposition, Metrics, ReleasedBy},
    publisher::{
        acks::{Acks, AcksSettings},
        consumer_watch::ConsumerWatch,
    },
    quarantine::{Quarantine, QuarantineStore},
    relay::Relay,
    route::{Release, RouteTable},
    secrets::{self, SecretFiles},
    settings::{ClaimsIn, DeliveryMode, Settings},
    shutdown::Phase,
    traces::Tracer,
    webhooks::Webhooks,
};

/// How long a batch of consumers' reports may take to be carried out once the configuration has changed.
const CARRY_OUT_WITHIN: Duration = Duration::from_secs(10);

/// What lives as long as the process, whatever is configured.
pub(super) struct LongLived {
    pub(super) handles: StoreHandles,
    pub(super) broker: Broker,
    pub(super) publisher: Arc<dyn Publisher>,
    pub(super) relay: Arc<Relay>,
    pub(super) exposition: Arc<Exposition>,
    pub(super) store_gauges: StoreGauges,
    pub(super) activity: Activity,
    pub(super) configuration: watch::Receiver<ConfigurationStatus>,
    pub(super) ready: watch::Receiver<bool>,
    pub(super) phase: watch::Receiver<Phase>,
    pub(super) tracer: Tracer,
    /// Names this process among the replicas.
    pub(super) holder: String,
    /// Where webhooks come in.
    pub(super) port: u16,
    pub(super) background: TaskTracker,
    pub(super) dead_letter_tasks: TaskTracker,
}

/// Why a configuration can't take the place of another one.
#[derive(Debug, thiserror::Error)]
pub(super) enum NotTaken {
    #[error("NATS takes no events of a new route: {0}")]
    Broker(String),
    #[error("Redis refuses what a new route needs: {0}")]
    Store(#[from] StoreError),
    #[error("set up the NATS client: {0}")]
    Client(async_nats::Error),
}

/// What serves one configuration.
pub(super) struct Generation {
    pub(super) settings: Settings,
    pub(super) webhooks: Arc<Webhooks>,
    pub(super) admin: Arc<AdminState>,
    /// The store in memory has none.
    pub(super) releases: Option<Releases>,
    pub(super) connections: ConnectionLimits,
    pub(super) acks: Option<Arc<Acks>>,
    routes: Arc<RouteTable>,
    store: Store,
    keeper: Option<Keeper>,
    quarantine: Option<Arc<dyn QuarantineStore>>,
    metrics: Metrics,
    /// Ends the tasks.
    stop: CancellationToken,
    /// Ends also those that finish their work first.
    give_up: CancellationToken,
    tasks: TaskTracker,
}

impl LongLived {
    /// Builds the first generation.
    ///
    /// # Errors
    /// If a client can't be set up.
    pub(super) async fn first(
        &self,
        settings: Settings,
        store: Store,
        metrics: Metrics,
    ) -> Result<Generation, async_nats::Error> {
        let acks = self.acks(&settings, None).await?;
        Ok(self.build(settings, store, metrics, acks, None))
    }

    /// Builds the generation after `before`. Nothing serves it yet; requests in flight share limits and queues.
    ///
    /// # Errors
    /// If a store that answers does not let a new route work.
    pub(super) async fn next(&self, mut settings: Settings, before: &Generation) -> Result<Generation, NotTaken> {
        // As many as the system allowed at the start.
        settings.connections.max_connections = before.settings.connections.max_connections;
        self.broker.provide(&settings.routes, &before.routes).await.map_err(NotTaken::Broker)?;
        let acks = self.acks(&settings, Some(before)).await.map_err(NotTaken::Client)?;
        let store = before.store.serve(&settings).await?;
        let metrics = before.metrics.of_table(&settings.routes);
        Ok(self.build(settings, store, metrics, acks, Some(before)))
    }

    /// What reads the reports of consumers; `None` if no route names a consumer. One connection serves all generations.
    async fn acks(
        &self,
        settings: &Settings,
        before: Option<&Generation>,
    ) -> Result<Option<Arc<Acks>>, async_nats::Error> {
        let named = settings.routes.routes().iter().any(|route| !route.life().consumers.is_empty());
        let redis = matches!(settings.claims_in, ClaimsIn::Redis(_));
        if !named || !redis || settings.delivery != DeliveryMode::Jetstream {
            return Ok(None);
        }
        if let Some(acks) = before.and_then(|before| before.acks.as_ref()) {
            return Ok(Some(Arc::clone(acks)));
        }
        let ours = AcksSettings { instance: settings.instance.clone(), stream: settings.acks_stream.clone() };
        Ok(Some(Arc::new(Acks::open(&parts::servers(settings), ours, &settings.routes).await?)))
    }

    fn build(
        &self,
        settings: Settings,
        store: Store,
        metrics: Metrics,
        acks: Option<Arc<Acks>>,
        before: Option<&Generation>,
    ) -> Generation {
        let (routes, verifiers) = (Arc::new(settings.routes.clone()), Arc::new(settings.verifiers.clone()));
        let limits = before
            .map_or_else(|| settings.limits.clone(), |before| before.webhooks.limits.changed_to(&settings.limits));
        let keeper = store.life().map(|life| {
            let (pending, publisher) = (store.pending(), Arc::clone(&self.publisher));
            Keeper::new(life, pending, publisher, settings.policy.ack_timeout, metrics.clone())
        });
        let releases = keeper.clone().map(|keeper| Releases::new(keeper, Arc::clone(&routes)));
        let quarantine = quarantine_store(&settings, before);
        let (pending, publisher) = (store.pending(), Arc::clone(&self.publisher));
        let delivery =
            Delivery::new(pending, publisher, settings.policy, &routes, metrics.clone(), self.tracer.clone());
        let delivery = match before {
            Some(before) => delivery.with_breakers_of(&before.webhooks.delivery),
            None => delivery,
        };
        let webhooks = Webhooks {
            table: Arc::clone(&routes),
            verifiers: Arc::clone(&verifiers),
            delivery: Arc::new(delivery),
            dead_letters: self.dead_letters(settings.dead_letters, before),
            quarantine: quarantine.as_ref().map(|store| keeping(&settings, store, &metrics)),
            limits: limits.clone(),
            phase: self.phase.clone(),
            metrics: metrics.clone(),
            tracer: self.tracer.clone(),
        };
        let on_ack = routes.routes().iter().any(|route| route.life().release == Release::Ack);
        let (pending, publisher) = (&self.handles.pending, &self.publisher);
        let admin = AdminState {
            health: Health {
                ready: self.ready.clone(),
                redis: pending.contact(),
                nats: publisher.contact(),
                acks: acks.as_ref().filter(|_| on_ack).map(|acks| acks.contact()),
            },
            exposition: Arc::clone(&self.exposition),
            metrics: metrics.clone(),
            activity: self.activity.clone(),
            store_gauges: self.store_gauges.clone(),
            on_unavailable: on_unavailable(settings.policy),
            publisher: Arc::clone(publisher),
            limits,
            max_connections: settings.connections.max_connections,
            phase: self.phase.clone(),
            specifications: Specifications::new::<Story, ReleaseReport>(&routes, &verifiers, self.port),
            pending_ids: self.pending_ids(&settings, &routes, &store, releases.clone()),
            configuration: self.configuration.clone(),
        };
        Generation {
            connections: settings.connections.clone(),
            webhooks: Arc::new(webhooks),
            admin: Arc::new(admin),
            settings,
            releases,
            acks,
            routes,
            store,
            keeper,
            quarantine,
            metrics,
            stop: CancellationToken::new(),
            give_up: CancellationToken::new(),
            tasks: TaskTracker::new(),
        }
    }

    fn pending_ids(
        &self,
        settings: &Settings,
        routes: &Arc<RouteTable>,
        store: &Store,
        releases: Option<Releases>,
    ) -> PendingIds {
        let (servers, dead_letters) = (parts::servers(settings), Arc::clone(&self.handles.dead_letters));
        PendingIds {
            token_file: settings.admin_token_file.clone(),
            routes: Arc::clone(routes),
            why: store.life().map(|life| StoryTeller { servers, life, dead_letters }.why()),
            release: releases.map(release_at_admin),
        }
    }

    /// Letters of requests. With other limits another task writes them; the one before ends when its letters are written.
    fn dead_letters(&self, limits: DeadLetterLimits, before: Option<&Generation>) -> DeadLetters {
        if let Some(before) = before.filter(|before| before.settings.dead_letters == limits) {
            return before.webhooks.dead_letters.clone();
        }
        let store = Arc::clone(&self.handles.dead_letters);
        DeadLetters::start(store, limits, self.phase.clone(), &self.dead_letter_tasks)
    }

    /// Puts a generation to work, once requests come to it. What the one before did in the background has ended by then.
    pub(super) async fn start(&self, now: &Generation, secret_files: Vec<SecretFiles>, before: Option<&Generation>) {
        let Generation { settings, routes, metrics, .. } = now;
        if let Some(before) = before {
            before.retire().await;
        }
        self.broker.serve(routes);
        self.relay.serve(routes, metrics, &self.phase, &self.background);
        if let Some(acks) = &now.acks {
            acks.serve(routes);
        }
        if let Some(before) = before {
            metrics.forget_others_of(&before.metrics);
        }
        now.spawn(secrets::follow(secret_files, self.phase.clone()));
        let contents = Arc::clone(&self.handles.contents);
        let contact = self.handles.pending.contact();
        now.spawn(self.store_gauges.clone().run(contents, metrics.clone(), contact, self.phase.clone()));
        now.spawn(self.activity.clone().run(metrics.clone(), self.store_gauges.clone(), self.phase.clone()));
        self.look_after_life(now);
        if let Some(store) = &now.quarantine {
            let (pending, dead_letters) = (now.store.pending(), &self.handles.dead_letters);
            let publisher = &self.publisher;
            let releaser = parts::releaser(settings, Arc::clone(store), &pending, dead_letters, publisher, metrics);
            let (holder, phase) = (self.holder.clone(), self.phase.clone());
            now.spawn(async move { releaser.run(&holder, phase).await });
        }
    }

    /// Starts what looks after pending ids.
    fn look_after_life(&self, now: &Generation) {
        let Generation { settings, routes, metrics, acks, .. } = now;
        let (Some(keeper), Some(letters)) = (&now.keeper, &self.handles.given_up) else { return };
        if let Some(acks) = acks {
            if let Some(watch) = ConsumerWatch::new(parts::servers(settings), routes, metrics) {
                now.spawn(watch.keep_looking());
            }
            if routes.routes().iter().any(|route| route.life().release == Release::Ack) {
                let (consumers, letters) = (Arc::clone(acks) as _, Arc::clone(letters));
                let answers = Answers::new(keeper.clone(), consumers, letters, settings.dead_letters, routes);
                let (phase, stop) = (self.phase.clone(), now.stop.clone());
                let answering = async move { answers.run(phase, stop).await };
                now.tasks.spawn(now.give_up.clone().run_until_cancelled_owned(answering));
            }
        }
        let (keeper, letters, holder) = (keeper.clone(), Arc::clone(letters), self.holder.clone());
        let consumers = acks.as_ref().map(|acks| Arc::clone(acks) as _);
        let sweep = Sweep::new(keeper, consumers, letters, settings.dead_letters, metrics.clone(), holder);
        let (table, phase) = (Arc::clone(routes), self.phase.clone());
        now.spawn(async move { sweep.run(&table, phase).await });
    }
}

impl Generation {
    /// Until this generation is retired.
    fn spawn(&self, task: impl Future<Output = ()> + Send + 'static) {
        self.tasks.spawn(self.stop.clone().run_until_cancelled_owned(task));
    }

    /// Ends its tasks, and waits for their end.
    async fn retire(&self) {
        self.stop.cancel();
        self.tasks.close();
        if tokio::time::timeout(CARRY_OUT_WITHIN, self.tasks.wait()).await.is_err() {
            warn!("what consumers answered could not be carried out in time; NATS redelivers it within a minute");
            self.give_up.cancel();
            self.tasks.wait().await;
        }
    }
}

/// Where bodies are kept whose signature was wrong, if a route keeps them.
fn quarantine_store(settings: &Settings, before: Option<&Generation>) -> Option<Arc<dyn QuarantineStore>> {
    let ClaimsIn::Redis(address) = &settings.claims_in else { return None };
    let wanted = settings.routes.routes().iter().any(|route| route.quarantine());
    let known = before.and_then(|before| before.quarantine.clone());
    wanted.then(|| known.unwrap_or_else(|| parts::quarantine(settings, &parts::access(address))))
}

/// What keeps them.
fn keeping(settings: &Settings, store: &Arc<dyn QuarantineStore>, metrics: &Metrics) -> Quarantine {
    let keeping = settings.routes.routes().iter().filter(|route| route.quarantine());
    let webhooks = keeping.map(|route| settings.verifiers.webhook_ids(route).count()).sum();
    Quarantine::new(Arc::clone(store), parts::quarantine_limits(settings), webhooks, metrics.clone())
}

/// Releases single ids on the admin address.
fn release_at_admin(releases: Releases) -> ReleaseId {
    Arc::new(move |route, id, token| {
        let releases = releases.clone();
        async move {
            let token = token.map(|token| token.parse::<Token>()).transpose();
            let token = token.map_err(|error| NotReleased::BadToken(error.to_string()))?;
            let report = releases.release(&route, vec![id], token, ReleasedBy::Admin).await;
            let report = report.map_err(|error| NotReleased::Store(error.to_string()))?;
            Ok(serde_json::to_value(report).expect("text always serializes"))
        }
        .boxed()
    })
}

/// What this process does while a store is down, in the words of its settings.
const fn on_unavailable(policy: Policy) -> OnUnavailable {
    OnUnavailable {
        redis: match policy.without_claim {
            WithoutClaim::Publish => "publish",
            WithoutClaim::Reject => "reject",
        },
        nats: match policy.without_ack {
            WithoutAck::Reject => "reject",
            WithoutAck::Accept => "accept",
        },
    }
}
