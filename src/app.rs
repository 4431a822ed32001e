//! The process: puts the parts together, serves, and drains without losing anything.

pub mod crm;
mod drain;
mod generation;
mod nats_monitoring;
pub mod operator;
mod parts;
mod reload;
mod stores;
pub mod story;

use std::{net::SocketAddr, sync::Arc, time::Duration};

use bytes::Bytes;
use hyper_util::service::TowerToHyperService;
use tokio::{net::TcpListener, sync::watch};
use tokio_util::{sync::CancellationToken, task::TaskTracker};
use tracing::{info, warn};

pub use self::reload::InForce;
use self::{
    drain::Drain,
    generation::{Generation, LongLived},
    reload::Reloader,
    stores::{Broker, Store},
};
use crate::{
    admin::{self, Activity, ConfigurationStatus, store_gauges::StoreGauges},
    admission::Limits,
    delivery::{PendingStore, Publisher},
    event::TokenSeed,
    files,
    listener::{self, BindError, ConnectionLimits, LingerLimits},
    metrics::{ConnectionMetrics, Live, Metrics},
    publisher::{
        service::{self, ServiceError},
        timed::Timed,
    },
    readiness::{Contact, FirstContact, READY_WITHOUT_STORE, first_contact, replicas, replicas::Replicas},
    relay::{Relay, Repeats},
    reply,
    route::Route,
    settings::{DeliveryMode, Settings},
    shutdown::{Hangups, Phase, Shutdown, Signals},
    traces::Tracer,
    webhooks,
};

/// Limits of the admin address: a probe is one small request.
const ADMIN_CONNECTIONS: ConnectionLimits = ConnectionLimits {
    max_connections: 256,
    max_connections_setting: "the fixed limit of admin.listen",
    first_request_timeout: Duration::from_secs(10),
    // Each probe comes over a connection of its own; a client that holds one open must not block the next.
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

/// Serves until a signal comes, then drains.
///
/// # Errors
/// If serving can't begin. Losing a store is no error.
pub async fn run(mut settings: Settings, in_force: InForce) -> Result<Ended, AppError> {
    settings.connections.max_connections = files::for_connections(settings.connections.max_connections, files_beside);
    let mut signals = Signals::new().map_err(AppError::Signals)?;
    let hangups = Hangups::new().map_err(AppError::Signals)?;
    let (senders, senders_address) = listener::bind("server.listen", settings.listen).await?;
    let (probes, probes_address) = listener::bind("admin.listen", settings.admin_listen).await?;
    announce(&settings, senders_address, probes_address);
    let serving = serve(settings, in_force, hangups, (senders, senders_address), probes);
    let (shutdown, drain) = Box::pin(serving).await?;
    let signal = signals.next().await;
    let drain_delay = drain.now.borrow().settings.drain_delay;
    info!(signal, ?drain_delay, "shutting down: still serving, so that senders can move to other replicas");
    tokio::select! {
        ended = drain.run(&shutdown) => {
            info!("bye");
            Ok(ended)
        }
        signal = signals.next() => {
            warn!(signal, "second signal: exiting now");
            Ok(Ended::CutShort)
        }
    }
}

/// Puts the parts together and starts them.
async fn serve(
    mut settings: Settings,
    in_force: InForce,
    hangups: Hangups,
    (senders, address): (TcpListener, SocketAddr),
    probes: TcpListener,
) -> Result<(Shutdown, Drain), AppError> {
    let (shutdown, background) = (Shutdown::default(), TaskTracker::new());
    let (connections, dead_letter_tasks, exporting) = (TaskTracker::new(), TaskTracker::new(), TaskTracker::new());
    let tracer = open_tracer(&settings, &shutdown, &exporting)?;
    let (metrics, mut exposition) = Metrics::new(&settings.routes, &reply::SHED);
    let store = Store::open(&settings, &metrics);
    let handles = store.handles();
    let broker = Broker::open(&settings, &background).await.map_err(AppError::Nats)?;
    let publisher: Arc<dyn Publisher> = Arc::new(Timed::new(broker.publisher(), metrics.publishing()));
    let ready = Arc::new(watch::Sender::new(false));
    let status = watch::Sender::new(ConfigurationStatus::read_now(Vec::new()));
    let relay = Relay::new(
        Arc::clone(&handles.outbox),
        Arc::clone(&publisher),
        settings.relay_after,
        repeats(settings.delivery),
        settings.policy.ack_timeout,
        metrics.clone(),
        tracer.clone(),
    );
    relay.start(&shutdown.watch(), &background);
    exposition.watch(live(&*handles.pending, &*publisher, settings.limits.clone()));
    let (pending, secret_files) = (Arc::clone(&handles.pending), std::mem::take(&mut settings.secret_files));
    let replicas = settings.replicas.clone();
    let long_lived = LongLived {
        handles,
        broker,
        publisher: Arc::clone(&publisher),
        relay,
        exposition: Arc::new(exposition),
        store_gauges: StoreGauges::default(),
        activity: Activity::default(),
        configuration: status.subscribe(),
        ready: ready.subscribe(),
        phase: shutdown.watch(),
        tracer,
        holder: TokenSeed::now().to_string(),
        port: address.port(),
        background: background.clone(),
        dead_letter_tasks: dead_letter_tasks.clone(),
    };
    let first = long_lived.first(settings, store, metrics.clone()).await.map_err(AppError::Nats)?;
    long_lived.start(&first, secret_files, None).await;
    let acks = first.admin.health.acks.clone();
    let changes = watch::Sender::new(Arc::new(first));
    let now = changes.subscribe();
    if now.borrow().releases.is_some() {
        offer_releases(&now, &shutdown, &background);
    }
    let admin = now.clone();
    background.spawn(listener::serve(
        probes,
        TowerToHyperService::new(warp::service(admin::answers(move || Arc::clone(&admin.borrow().admin)))),
        || ADMIN_CONNECTIONS,
        shutdown.watch(),
        connections.clone(),
        ConnectionMetrics::default(),
    ));
    // Shared: a filter is cloned for each request.
    let (webhooks, limits) = (Arc::new(now.clone()), now.clone());
    background.spawn(listener::serve(
        senders,
        TowerToHyperService::new(warp::service(webhooks::webhooks(move || Arc::clone(&webhooks.borrow().webhooks)))),
        move || limits.borrow().connections.clone(),
        shutdown.watch(),
        connections.clone(),
        metrics.connections(),
    ));
    background.spawn(become_ready(
        pending.contact(),
        publisher.contact(),
        acks,
        replicas,
        Arc::clone(&ready),
        shutdown.watch(),
    ));
    background.spawn(Reloader::new(long_lived, changes, status, metrics, in_force).run(hangups, shutdown.watch()));
    Ok((shutdown, Drain { now, ready, pending, dead_letter_tasks, exporting, connections }))
}

/// Answers requests to release ids over NATS, until shutdown.
fn offer_releases(now: &watch::Receiver<Arc<Generation>>, shutdown: &Shutdown, background: &TaskTracker) {
    let (stop, mut phase) = (CancellationToken::new(), shutdown.watch());
    let (servers, instance) = {
        let now = now.borrow();
        (parts::servers(&now.settings), now.settings.instance.clone())
    };
    let now = now.clone();
    let answer = move |request: Bytes| {
        let releases = now.borrow().releases.clone();
        async move {
            let releases = releases.expect("a store that knows of pending ids stays one");
            releases
                .answer(&request)
                .await
                .map_err(|error| ServiceError { code: error.code(), text: error.to_string() })
        }
    };
    let description = "Releases pending ids: their events have been processed";
    background.spawn(service::serve(servers, instance, "release", description, stop.clone(), answer));
    background.spawn(async move {
        let _left = phase.wait_for(|phase| *phase >= Phase::Refusing).await;
        stop.cancel();
    });
}

/// What `/metrics` reads anew for each request.
fn live(pending: &dyn PendingStore, publisher: &dyn Publisher, limits: Limits) -> Live {
    let requests_in_flight = Box::new(move || limits.requests_in_flight());
    Live { redis: pending.contact(), nats: publisher.contact(), requests_in_flight }
}

/// Logs what is served, and how.
fn announce(settings: &Settings, webhooks: SocketAddr, probes: SocketAddr) {
    for route in settings.routes.routes() {
        announce_route(settings, route);
    }
    if settings.delivery == DeliveryMode::Core {
        warn!("nats.delivery is \"core\": an event reaches whoever is subscribed at that moment, and nobody else");
    }
    info!(address = %webhooks, "listening for webhooks");
    info!(address = %probes, "listening for probes");
}

fn announce_route(settings: &Settings, route: &Route) {
    let auth: Vec<_> = settings.verifiers.of(route).schemes().collect();
    info!(route = %route, path = route.path(), subject = route.subject(), pending_key = route.pending_key(), auth = if auth.is_empty() { "none".to_owned() } else { auth.join(",") }, "route");
    if auth.is_empty() {
        warn!(route = %route, "this route takes webhooks from anybody who reaches it: it has no auth");
    }
}

/// File descriptors for connections that are not senders': the admin address's, and those over the limits of both listeners.
const fn files_beside(max_connections: usize) -> usize {
    let admin = ADMIN_CONNECTIONS.max_connections;
    listener::refusing_beside(max_connections) + admin + listener::refusing_beside(admin)
}

/// The tracer: exports spans to the collector, if one is configured.
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
    Ok(Broker::open(settings, tasks).await.map_err(AppError::Nats)?.publisher())
}

/// What a broker does with an event that comes twice.
#[must_use]
pub const fn repeats(delivery: DeliveryMode) -> Repeats {
    match delivery {
        DeliveryMode::Jetstream => Repeats::Dropped,
        DeliveryMode::Core => Repeats::Delivered,
    }
}

/// Becomes ready once both stores have been reached, or no replica reaches them, unless the process is shutting down by then.
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
        // Stays unready while a stream or a right is missing: a replacement pod would lack it too.
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
