//! The process: puts the parts together, serves, and drains without losing anything.

pub mod crm;
mod drain;
mod nats_monitoring;
pub mod operator;
mod parts;
pub mod story;

use std::{net::SocketAddr, sync::Arc, time::Duration};

use bytes::Bytes;
use futures_util::FutureExt;
use hyper_util::service::TowerToHyperService;
use tokio::{net::TcpListener, sync::watch};
use tokio_util::{sync::CancellationToken, task::TaskTracker};
use tracing::{info, warn};

use self::{drain::Drain, story::StoryTeller};
use crate::{
    admin::{
        self, Activity, Health, Known, OnUnavailable, PendingIds,
        pending_ids::{NotReleased, ReleaseId},
        specifications::Specifications,
        store_gauges::StoreGauges,
    },
    admission::Limits,
    dead_letters::{DeadLetterStore, DeadLetters, GivenUpLetters},
    delivery::{Delivery, PendingStore, Policy, Publisher, StoreContents, WithoutAck, WithoutClaim},
    event::{Token, TokenSeed},
    files,
    life::{Answers, Consumers, Keeper, LifeStore, Releases, Sweep},
    listener::{self, BindError, ConnectionLimits, LingerLimits},
    metrics::{ConnectionMetrics, Exposition, Live, Metrics, ReleasedBy},
    pending::{memory::Memory, redis::Redis},
    publisher::{
        acks::{Acks, AcksSettings},
        consumer_watch::ConsumerWatch,
        core::Core,
        jetstream::JetStream,
        service::{self, ServiceError},
        timed::Timed,
    },
    quarantine::{Quarantine, QuarantineStore},
    readiness::{Contact, FirstContact, READY_WITHOUT_STORE, first_contact, replicas, replicas::Replicas},
    relay::{Outbox, Relay, Repeats},
    reply,
    route::Release,
    secrets,
    settings::{ClaimsIn, DeliveryMode, Settings},
    shutdown::{Phase, Shutdown, Signals},
    traces::Tracer,
    webhooks::{self, Webhooks},
};

/// Limits of the operator's address: a probe is one small request.
const ADMIN_CONNECTIONS: ConnectionLimits = ConnectionLimits {
    max_connections: 256,
    max_connections_setting: "the fixed limit of admin.listen",
    first_request_timeout: Duration::from_secs(10),
    // A probe comes over a connection of its own, and who keeps one shall not keep it from the next.
    header_read_timeout: Duration::from_secs(5),
    max_header_bytes: 16 * 1024,
    max_headers: 64,
    write_timeout: ConnectionLimits::WRITE_TIMEOUT,
    linger: LingerLimits { max_bytes: 64 * 1024, timeout: Duration::from_secs(1) },
};

/// Why the process can't serve.
#[derive(Debug, thiserror::Error)]
pub enum AppError {
    /// An address can't be bound.
    #[error(transparent)]
    Bind(#[from] BindError),
    /// Signals can't be received.
    #[error("receive signals: {0}")]
    Signals(std::io::Error),
    /// The NATS client can't be set up (a server that is down is no reason).
    #[error("set up the NATS client: {0}")]
    Nats(async_nats::Error),
    /// The client of the collector of spans can't be set up (one that is down is no reason).
    #[error("set up the export of spans (tracing.otlp_endpoint): {0}")]
    Collector(opentelemetry_otlp::ExporterBuildError),
}

/// How the process ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[must_use]
pub enum Ended {
    /// After everything in flight was brought to its end.
    Drained,
    /// By a second signal, or with requests still in flight after their deadline.
    CutShort,
}

/// The store of pending ids, as each of its users sees it.
struct Stores {
    pending: Arc<dyn PendingStore>,
    /// The store in memory has none.
    life: Option<LifeStores>,
    outbox: Arc<dyn Outbox>,
    dead_letters: Arc<dyn DeadLetterStore>,
    /// If a route keeps bodies whose signature was wrong.
    quarantine: Option<Arc<dyn QuarantineStore>>,
    contents: Arc<dyn StoreContents>,
}

/// What is known of pending ids, and who keeps what was given up.
struct LifeStores {
    life: Arc<dyn LifeStore>,
    letters: Arc<dyn GivenUpLetters>,
}

impl Stores {
    fn open(settings: &Settings, metrics: &Metrics) -> Self {
        let options = parts::claim_options(settings);
        match &settings.claims_in {
            ClaimsIn::Redis(address) => {
                let access = parts::access(address);
                let redis =
                    Arc::new(Redis::open(&access, &settings.instance, options, &settings.routes, metrics.redis()));
                let quarantine = parts::quarantine(settings, &access);
                let life = LifeStores { life: Arc::clone(&redis) as _, letters: Arc::clone(&redis) as _ };
                Self { life: Some(life), quarantine, ..Self::shared(redis) }
            }
            ClaimsIn::Memory => {
                warn!(
                    "redis.url is \"memory:\": claims are forgotten at exit and not shared with other processes; for trials only"
                );
                Self::shared(Arc::new(Memory::new(options.outbox_limit)))
            }
        }
    }

    fn shared(store: Arc<impl PendingStore + Outbox + DeadLetterStore + StoreContents + 'static>) -> Self {
        Self {
            pending: Arc::clone(&store) as _,
            life: None,
            outbox: Arc::clone(&store) as _,
            dead_letters: Arc::clone(&store) as _,
            quarantine: None,
            contents: store,
        }
    }
}

/// Serves until a signal comes, then drains.
///
/// # Errors
/// If serving can't begin. Losing a store is no error.
pub async fn run(mut settings: Settings) -> Result<Ended, AppError> {
    settings.connections.max_connections = files::for_connections(settings.connections.max_connections, files_beside);
    let mut signals = Signals::new().map_err(AppError::Signals)?;
    let (senders, senders_address) = listener::bind("server.listen", settings.listen).await?;
    let (probes, probes_address) = listener::bind("admin.listen", settings.admin_listen).await?;
    announce(&settings, senders_address, probes_address);
    let drain_delay = settings.drain_delay;
    let (shutdown, drain) = serve(settings, (senders, senders_address), probes).await?;
    let signal = signals.next().await;
    info!(signal, ?drain_delay, "shutting down: still serving, so that senders can move to other replicas");
    tokio::select! {
        ended = drain.run(&shutdown) => {
            info!("bye");
            Ok(ended)
        }
        signal = signals.next() => {
            warn!(signal, "second signal: leaving at once");
            Ok(Ended::CutShort)
        }
    }
}

/// Puts the parts together and starts them.
async fn serve(
    settings: Settings,
    (senders, address): (TcpListener, SocketAddr),
    probes: TcpListener,
) -> Result<(Shutdown, Drain), AppError> {
    let (shutdown, background) = (Shutdown::default(), TaskTracker::new());
    let (connections, dead_letter_tasks, exporting) = (TaskTracker::new(), TaskTracker::new(), TaskTracker::new());
    let tracer = open_tracer(&settings, &shutdown, &exporting)?;
    let (metrics, exposition) = Metrics::new(&settings.routes, &reply::SHED);
    let stores = Stores::open(&settings, &metrics);
    let publisher = open_publisher(&settings, &background).await?;
    let publisher: Arc<dyn Publisher> = Arc::new(Timed::new(publisher, metrics.publishing()));
    let ready = Arc::new(watch::Sender::new(false));
    Relay::new(
        Arc::clone(&stores.outbox),
        Arc::clone(&publisher),
        settings.relay_after,
        repeats(settings.delivery),
        settings.policy.ack_timeout,
        metrics.clone(),
        tracer.clone(),
    )
    .start(&settings.routes, &shutdown.watch(), &background);
    let (acks, release) = look_after_life(&settings, &stores, &publisher, &metrics, &shutdown, &background).await?;
    let (routes, verifiers) = (Arc::new(settings.routes.clone()), Arc::new(settings.verifiers.clone()));
    let specifications = Specifications::new::<story::Story>(&routes, &verifiers, address.port());
    let known =
        admin(&settings, specifications, &stores, &publisher, &metrics, exposition, &ready, &shutdown, &background);
    let health = Health { acks: acks.clone(), ..known.health };
    let known = Known { health, pending_ids: PendingIds { release, ..known.pending_ids }, ..known };
    background.spawn(listener::serve(
        probes,
        TowerToHyperService::new(warp::service(admin::answers(known))),
        ADMIN_CONNECTIONS,
        shutdown.watch(),
        connections.clone(),
        ConnectionMetrics::default(),
    ));
    let quarantine = start_quarantine(&settings, &stores, &publisher, &metrics, &shutdown, &background);
    let pending = stores.pending;
    let delivery = Delivery::new(
        Arc::clone(&pending),
        Arc::clone(&publisher),
        settings.policy,
        &settings.routes,
        metrics.clone(),
        tracer.clone(),
    );
    let filters = webhooks::webhooks(Webhooks {
        table: routes,
        verifiers,
        delivery: Arc::new(delivery),
        dead_letters: DeadLetters::start(
            stores.dead_letters,
            settings.dead_letters,
            shutdown.watch(),
            &dead_letter_tasks,
        ),
        quarantine,
        limits: settings.limits.clone(),
        phase: shutdown.watch(),
        metrics: metrics.clone(),
        tracer,
    });
    background.spawn(listener::serve(
        senders,
        TowerToHyperService::new(warp::service(filters)),
        settings.connections,
        shutdown.watch(),
        connections.clone(),
        metrics.connections(),
    ));
    background.spawn(secrets::follow(settings.secret_files, shutdown.watch()));
    background.spawn(become_ready(
        pending.contact(),
        publisher.contact(),
        acks,
        settings.replicas,
        Arc::clone(&ready),
        shutdown.watch(),
    ));
    let drain = Drain {
        delay: settings.drain_delay,
        busy_for: settings.request_deadline,
        limits: settings.limits,
        ready,
        pending,
        dead_letter_tasks,
        exporting,
        connections,
    };
    Ok((shutdown, drain))
}

/// Offers the release of ids, and starts what looks after pending ones. Whether acknowledgements can be read, where they release
/// ids; and what releases ids at the admin address.
async fn look_after_life(
    settings: &Settings,
    stores: &Stores,
    publisher: &Arc<dyn Publisher>,
    metrics: &Metrics,
    shutdown: &Shutdown,
    background: &TaskTracker,
) -> Result<(Option<watch::Receiver<Contact>>, Option<ReleaseId>), AppError> {
    let Some(LifeStores { life, letters }) = &stores.life else { return Ok((None, None)) };
    let keeper = Keeper::new(
        Arc::clone(life),
        Arc::clone(&stores.pending),
        Arc::clone(publisher),
        settings.policy.ack_timeout,
        metrics.clone(),
    );
    let releases = Releases::new(keeper.clone(), Arc::new(settings.routes.clone()));
    let at_admin = release_at_admin(releases.clone());
    offer_releases(settings, releases, shutdown, background);
    let acks = follow_life(settings, keeper, Arc::clone(letters), metrics, shutdown, background).await?;
    Ok((acks, Some(at_admin)))
}

/// Starts what looks after pending ids. Where acknowledgements release them: whether these can be read.
async fn follow_life(
    settings: &Settings,
    keeper: Keeper,
    letters: Arc<dyn GivenUpLetters>,
    metrics: &Metrics,
    shutdown: &Shutdown,
    background: &TaskTracker,
) -> Result<Option<watch::Receiver<Contact>>, AppError> {
    let lives = || settings.routes.routes().iter().map(|route| route.life());
    let on_ack = lives().any(|life| life.release == Release::Ack);
    let mut consumers: Option<Arc<dyn Consumers>> = None;
    let mut contact = None;
    if settings.delivery == DeliveryMode::Jetstream && lives().any(|life| !life.consumers.is_empty()) {
        if let Some(watch) = ConsumerWatch::new(parts::servers(settings), &settings.routes, metrics) {
            watch.start(background);
        }
        let names = AcksSettings { instance: settings.instance.clone(), stream: settings.acks_stream.clone() };
        let acks = Acks::open(&parts::servers(settings), names, &settings.routes).await;
        let acks = Arc::new(acks.map_err(|error| AppError::Nats(error.into()))?);
        if on_ack {
            contact = Some(acks.contact());
            let (told, letters) = (Arc::clone(&acks) as _, Arc::clone(&letters));
            let answers = Answers::new(keeper.clone(), told, letters, settings.dead_letters, &settings.routes);
            let phase = shutdown.watch();
            background.spawn(async move { answers.run(phase).await });
        }
        consumers = Some(acks);
    }
    let holder = TokenSeed::now().to_string();
    let sweep = Sweep::new(keeper, consumers, letters, settings.dead_letters, metrics.clone(), holder);
    let (table, phase) = (settings.routes.clone(), shutdown.watch());
    background.spawn(async move { sweep.run(&table, phase).await });
    Ok(contact)
}

/// What keeps bodies whose signature was wrong, if a route wants that, and the task that releases those that prove good.
fn start_quarantine(
    settings: &Settings,
    stores: &Stores,
    publisher: &Arc<dyn Publisher>,
    metrics: &Metrics,
    shutdown: &Shutdown,
    background: &TaskTracker,
) -> Option<Quarantine> {
    let store = stores.quarantine.as_ref()?;
    let releaser =
        parts::releaser(settings, Arc::clone(store), &stores.pending, &stores.dead_letters, publisher, metrics);
    background.spawn(releaser.run(shutdown.watch()));
    let keeping = settings.routes.routes().iter().filter(|route| route.quarantine());
    let webhooks = keeping.map(|route| settings.verifiers.webhook_ids(route).count()).sum();
    Some(Quarantine::new(Arc::clone(store), parts::quarantine_limits(settings), webhooks, metrics.clone()))
}

/// Answers requests to release ids over NATS until the process leaves.
fn offer_releases(settings: &Settings, releases: Releases, shutdown: &Shutdown, background: &TaskTracker) {
    let (stop, mut phase) = (CancellationToken::new(), shutdown.watch());
    let answer = move |request: Bytes| {
        let releases = releases.clone();
        async move {
            releases
                .answer(&request)
                .await
                .map_err(|error| ServiceError { code: error.code(), text: error.to_string() })
        }
    };
    let service = service::serve(
        parts::servers(settings),
        settings.instance.clone(),
        "release",
        "Releases pending ids: their events have been processed",
        stop.clone(),
        answer,
    );
    background.spawn(service);
    background.spawn(async move {
        let _left = phase.wait_for(|phase| *phase >= Phase::Refusing).await;
        stop.cancel();
    });
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

/// What the admin address shows, and the tasks that keep it up to date.
#[expect(clippy::too_many_arguments, reason = "it looks at every part of the process")]
fn admin(
    settings: &Settings,
    specifications: Specifications,
    stores: &Stores,
    publisher: &Arc<dyn Publisher>,
    metrics: &Metrics,
    mut exposition: Exposition,
    ready: &watch::Sender<bool>,
    shutdown: &Shutdown,
    background: &TaskTracker,
) -> Known {
    let (pending, contents) = (&stores.pending, Arc::clone(&stores.contents));
    let store_gauges = StoreGauges::default();
    background.spawn(store_gauges.clone().run(contents, metrics.clone(), pending.contact(), shutdown.watch()));
    exposition.watch(live(&**pending, &**publisher, settings.limits.clone()));
    Known {
        health: Health { ready: ready.subscribe(), redis: pending.contact(), nats: publisher.contact(), acks: None },
        exposition,
        metrics: metrics.clone(),
        activity: Activity::start(metrics, &store_gauges, shutdown.watch(), background),
        store_gauges,
        on_unavailable: on_unavailable(settings.policy),
        publisher: Arc::clone(publisher),
        limits: settings.limits.clone(),
        max_connections: settings.connections.max_connections,
        phase: shutdown.watch(),
        specifications,
        pending_ids: PendingIds {
            token_file: settings.admin_token_file.clone(),
            routes: Arc::new(settings.routes.clone()),
            why: stores.life.as_ref().map(|life| {
                let teller = StoryTeller {
                    servers: parts::servers(settings),
                    life: Arc::clone(&life.life),
                    dead_letters: Arc::clone(&stores.dead_letters),
                };
                teller.why()
            }),
            release: None,
        },
    }
}

/// What `/metrics` reads at the moment of looking.
fn live(pending: &dyn PendingStore, publisher: &dyn Publisher, limits: Limits) -> Live {
    let requests_in_flight = Box::new(move || limits.requests_in_flight());
    Live { redis: pending.contact(), nats: publisher.contact(), requests_in_flight }
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

/// Says what is served, and how.
fn announce(settings: &Settings, webhooks: SocketAddr, probes: SocketAddr) {
    for route in settings.routes.routes() {
        let auth: Vec<_> = settings.verifiers.of(route).schemes().collect();
        info!(route = %route, path = route.path(), subject = route.subject(), pending_key = route.pending_key(), auth = if auth.is_empty() { "none".to_owned() } else { auth.join(",") }, "route");
        if auth.is_empty() {
            warn!(route = %route, "this route takes webhooks from anybody who reaches it: it has no auth");
        }
    }
    if settings.delivery == DeliveryMode::Core {
        warn!("nats.delivery is \"core\": an event reaches whoever is subscribed at that moment, and nobody else");
    }
    info!(address = %webhooks, "listening for webhooks");
    info!(address = %probes, "listening for probes");
}

/// Files of those connections that are no sender's: of both listeners, and those over their limits.
const fn files_beside(max_connections: usize) -> usize {
    let admin = ADMIN_CONNECTIONS.max_connections;
    listener::refusing_beside(max_connections) + admin + listener::refusing_beside(admin)
}

/// To the collector, if one is configured.
fn open_tracer(settings: &Settings, shutdown: &Shutdown, tasks: &TaskTracker) -> Result<Tracer, AppError> {
    let collector = settings.collector.as_ref();
    let tracer = collector.map(|collector| collector.start(shutdown.watch(), tasks)).transpose();
    Ok(tracer.map_err(AppError::Collector)?.unwrap_or_default())
}

/// The publisher that the configuration asks for; `tasks` owns what it does in the background.
///
/// # Errors
/// If the client can't be set up at all.
pub async fn open_publisher(settings: &Settings, tasks: &TaskTracker) -> Result<Arc<dyn Publisher>, AppError> {
    let (servers, routes) = (&parts::servers(settings), &settings.routes);
    Ok(match parts::stream(settings) {
        Some(stream) => Arc::new(JetStream::open(servers, stream, routes, tasks).await.map_err(AppError::Nats)?),
        None => Arc::new(Core::open(servers, routes, tasks).await.map_err(AppError::Nats)?),
    })
}

/// What a broker does with an event that comes twice.
#[must_use]
pub const fn repeats(delivery: DeliveryMode) -> Repeats {
    match delivery {
        DeliveryMode::Jetstream => Repeats::Dropped,
        DeliveryMode::Core => Repeats::Delivered,
    }
}

/// Turns ready once both stores have been met, or are unreachable to every replica, unless the process is leaving by then.
async fn become_ready(
    pending: watch::Receiver<Contact>,
    publisher: watch::Receiver<Contact>,
    acks: Option<watch::Receiver<Contact>>,
    replicas: Option<Replicas>,
    ready: Arc<watch::Sender<bool>>,
    phase: watch::Receiver<Phase>,
) {
    let replicas = replicas.as_ref();
    let stores = tokio::join!(
        first_contact("redis", pending, || replicas::that_reach("redis", replicas)),
        first_contact("nats", publisher, || replicas::that_reach("nats", replicas))
    );
    if let Some(acks) = acks {
        // A stream that is missing, or a right: the next replica would not have it either.
        let _either = first_contact("acks", acks, || std::future::ready(None)).await;
    }
    if *phase.borrow() != Phase::Serving {
        return;
    }
    ready.send_replace(true);
    let without = match stores {
        (FirstContact::Met, FirstContact::Met) => return info!("ready"),
        (FirstContact::Without, FirstContact::Met) => "redis",
        (FirstContact::Met, FirstContact::Without) => "nats",
        (FirstContact::Without, FirstContact::Without) => "redis,nats",
    };
    warn!(without, "ready, without a store that has been unreachable for {READY_WITHOUT_STORE:?}");
}
