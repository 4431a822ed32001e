//! The process: puts the parts together, serves, and takes leave without losing anything.

pub mod operator;
mod parts;

use std::{net::SocketAddr, sync::Arc, time::Duration};

use hyper_util::service::TowerToHyperService;
use tokio::sync::watch;
use tokio_util::task::TaskTracker;
use tracing::{error, info, warn};

use crate::{
    admin::{self, Health, Known, specifications::Specifications},
    admission::Limits,
    dead_letters::{DeadLetters, Graveyard},
    files,
    listener::{self, BindError, ConnectionLimits, LingerLimits},
    metrics::{
        ConnectionMetrics, Live, Metrics,
        census::{Census, Holdings},
    },
    pending::{memory::Memory, redis::Redis},
    pipeline::{PendingStore, Pipeline, Publisher},
    publisher::{core::Core, jetstream::JetStream},
    readiness::first_contact,
    relay::{Outbox, Relay, Repeats},
    reply, secrets,
    settings::{ClaimsIn, Delivery, Settings},
    shutdown::{Phase, Shutdown, Signals},
    traces::Tracer,
    webhooks::{self, Webhooks},
};

/// How long acknowledged ids may take to leave the outbox at the end.
const SETTLE_WITHIN: Duration = Duration::from_secs(2);
/// How long connections may take to write what they owe at the end.
const CLOSE_WITHIN: Duration = Duration::from_secs(2);
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
    outbox: Arc<dyn Outbox>,
    graveyard: Arc<dyn Graveyard>,
    holdings: Arc<dyn Holdings>,
}

impl Stores {
    fn open(settings: &Settings, metrics: &Metrics) -> Self {
        let options = parts::claim_options(settings);
        match &settings.claims_in {
            ClaimsIn::Redis(address) => {
                Self::in_one(Redis::open(&parts::access(address), options, &settings.routes, metrics.redis()))
            }
            ClaimsIn::Memory => {
                warn!(
                    "redis.url is \"memory:\": claims are forgotten at exit and not shared with other processes; for trials only"
                );
                Self::in_one(Memory::new(options.outbox_limit))
            }
        }
    }

    fn in_one(store: impl PendingStore + Outbox + Graveyard + Holdings + 'static) -> Self {
        Self::shared(Arc::new(store))
    }

    fn shared(store: Arc<impl PendingStore + Outbox + Graveyard + Holdings + 'static>) -> Self {
        Self {
            pending: Arc::clone(&store) as _,
            outbox: Arc::clone(&store) as _,
            graveyard: Arc::clone(&store) as _,
            holdings: store,
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

    let background = TaskTracker::new();
    let shutdown = Shutdown::default();
    let (connections, burying, exporting) = (TaskTracker::new(), TaskTracker::new(), TaskTracker::new());
    let tracer = open_tracer(&settings, &shutdown, &exporting)?;
    let (metrics, mut exposition) = Metrics::new(&settings.routes, &reply::SHED);
    let Stores { pending, outbox, graveyard, holdings } = Stores::open(&settings, &metrics);
    let publisher = open_publisher(&settings, &background).await?;
    let publisher: Arc<dyn Publisher> = Arc::new(metrics.time_publishing(publisher));
    let pipeline = Arc::new(Pipeline::new(
        Arc::clone(&pending),
        Arc::clone(&publisher),
        settings.policy,
        &settings.routes,
        metrics.clone(),
        tracer.clone(),
    ));
    let ready = Arc::new(watch::Sender::new(false));
    Relay::new(
        outbox,
        Arc::clone(&publisher),
        settings.relay_after,
        repeats(&settings.delivery),
        settings.policy.ack_timeout,
        metrics.clone(),
        tracer.clone(),
    )
    .start(&settings.routes, &shutdown.watch(), &background);
    background.spawn(secrets::follow(settings.secret_files, shutdown.watch()));
    let census = Census::default();
    background.spawn(census.clone().run(holdings, metrics.clone(), pending.contact(), shutdown.watch()));
    exposition.watch(live(&*pending, &*publisher, settings.limits.clone()));
    let (routes, verifiers) = (Arc::new(settings.routes), Arc::new(settings.verifiers));
    let known = Known {
        health: Health { ready: ready.subscribe(), redis: pending.contact(), nats: publisher.contact() },
        exposition,
        metrics: metrics.clone(),
        census,
        publisher: Arc::clone(&publisher),
        limits: settings.limits.clone(),
        max_connections: settings.connections.max_connections,
        phase: shutdown.watch(),
        specifications: Specifications::new(&routes, &verifiers, senders_address.port()),
    };
    let dead_letters = DeadLetters::start(graveyard, settings.dead_letters, shutdown.watch(), &burying);
    let filters = webhooks::webhooks(Webhooks {
        table: routes,
        verifiers,
        pipeline,
        dead_letters,
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
    background.spawn(listener::serve(
        probes,
        TowerToHyperService::new(warp::service(admin::answers(known))),
        ADMIN_CONNECTIONS,
        shutdown.watch(),
        connections.clone(),
        ConnectionMetrics::default(),
    ));
    background.spawn(become_ready(pending.contact(), publisher.contact(), Arc::clone(&ready), shutdown.watch()));

    let signal = signals.next().await;
    info!(signal, drain_delay = ?settings.drain_delay, "shutting down: still serving, so that senders can move to other replicas");
    let drain = Drain {
        delay: settings.drain_delay,
        busy_for: settings.request_deadline + SETTLE_WITHIN,
        limits: settings.limits,
        ready,
        pending,
        burying,
        exporting,
        connections,
    };
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

/// What `/metrics` reads at the moment of looking.
fn live(pending: &dyn PendingStore, publisher: &dyn Publisher, limits: Limits) -> Live {
    let requests_in_flight = Box::new(move || limits.requests_in_flight());
    Live { redis: pending.contact(), nats: publisher.contact(), requests_in_flight }
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
    if settings.delivery == Delivery::Core {
        warn!("nats.delivery is \"core\": an event reaches whoever is subscribed at that moment, and nobody else");
    }
    info!(address = %webhooks, "listening for webhooks");
    info!(address = %probes, "listening for probes");
}

/// What has to come to its end, in this order.
struct Drain {
    delay: Duration,
    busy_for: Duration,
    limits: Limits,
    ready: Arc<watch::Sender<bool>>,
    pending: Arc<dyn PendingStore>,
    burying: TaskTracker,
    exporting: TaskTracker,
    connections: TaskTracker,
}

impl Drain {
    async fn run(self, shutdown: &Shutdown) -> Ended {
        self.ready.send_replace(false);
        shutdown.enter(Phase::Leaving);
        tokio::time::sleep(self.delay).await;
        info!("shutting down: finishing what is in flight");
        shutdown.enter(Phase::Refusing);
        let idle = self.limits.idle(self.busy_for).await;
        if !idle {
            error!("requests are in flight beyond their deadline; leaving without them");
        }
        self.pending.close(SETTLE_WITHIN).await;
        shutdown.enter(Phase::Flushing);
        tokio::join!(
            ended(&self.burying, SETTLE_WITHIN, "dead letters were lost: the store did not take them in time"),
            ended(&self.exporting, SETTLE_WITHIN, "spans were lost: the collector did not take them in time"),
        );
        // Last of all: whoever is refused a connection may never come back.
        shutdown.enter(Phase::Closing);
        ended(&self.connections, CLOSE_WITHIN, "some connections did not end in time").await;
        if idle { Ended::Drained } else { Ended::CutShort }
    }
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

/// Waits for tasks to end, and says so if they don't in time.
async fn ended(tasks: &TaskTracker, within: Duration, otherwise: &str) {
    tasks.close();
    if tokio::time::timeout(within, tasks.wait()).await.is_err() {
        warn!("{otherwise}");
    }
}

/// The publisher that the configuration asks for; `tasks` owns what it does in the background.
///
/// # Errors
/// If the client can't be set up at all.
pub async fn open_publisher(settings: &Settings, tasks: &TaskTracker) -> Result<Arc<dyn Publisher>, AppError> {
    let (servers, routes) = (&settings.nats, &settings.routes);
    Ok(match parts::stream(settings) {
        Some(stream) => Arc::new(JetStream::open(servers, stream, routes, tasks).await.map_err(AppError::Nats)?),
        None => Arc::new(Core::open(servers, routes, tasks).await.map_err(AppError::Nats)?),
    })
}

/// What a broker does with an event that comes twice.
#[must_use]
pub const fn repeats(delivery: &Delivery) -> Repeats {
    match delivery {
        Delivery::Jetstream => Repeats::Dropped,
        Delivery::Core => Repeats::Delivered,
    }
}

/// Turns ready once both stores have been met, unless the process is leaving by then.
async fn become_ready(
    pending: watch::Receiver<crate::readiness::Contact>,
    publisher: watch::Receiver<crate::readiness::Contact>,
    ready: Arc<watch::Sender<bool>>,
    phase: watch::Receiver<Phase>,
) {
    tokio::join!(first_contact(pending), first_contact(publisher));
    if *phase.borrow() == Phase::Serving {
        ready.send_replace(true);
        info!("ready");
    }
}
