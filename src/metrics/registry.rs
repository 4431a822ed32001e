//! The names of all series, in one place. Dashboards and alerts depend on them.

use prometheus_client::{
    encoding::text::encode,
    metrics::{
        counter::Counter,
        family::{Family, MetricConstructor},
        gauge::Gauge,
        histogram::Histogram,
        info::Info,
    },
    registry::{Registry, Unit},
};

use super::{Live, REVISION, VERSION, process::Process, since::Since};

/// Labels are few and known: name and value.
pub(super) type Labels<const N: usize> = [(&'static str, String); N];
/// Ages, in seconds.
pub(super) type Age = Gauge<f64, std::sync::atomic::AtomicU64>;

/// Of an answer, in seconds: from a cache-warm duplicate to the request deadline.
const ANSWER: [f64; 13] = [0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.0, 4.0, 8.0];
/// Of an exchange with Redis, in seconds.
const REDIS: [f64; 11] = [0.0001, 0.000_25, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.1, 0.25, 0.5];
/// Of an attempt to publish, in seconds.
const PUBLISH: [f64; 11] = [0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.5, 1.0, 2.0];

/// Makes histograms with their buckets.
#[derive(Debug, Clone, Copy)]
pub(super) struct Buckets(&'static [f64]);

impl MetricConstructor<Histogram> for Buckets {
    fn new_metric(&self) -> Histogram {
        Histogram::new(self.0.iter().copied())
    }
}

/// Everything that is counted where it happens.
#[derive(Debug)]
pub(super) struct Families {
    pub(super) requests: Family<Labels<2>, Counter>,
    pub(super) request_seconds: Family<Labels<1>, Histogram, Buckets>,
    pub(super) connections: Gauge,
    pub(super) shed: Family<Labels<1>, Counter>,
    pub(super) last_webhook: Family<Labels<1>, Since>,
    pub(super) items: Family<Labels<2>, Counter>,
    pub(super) published: Family<Labels<2>, Counter>,
    pub(super) signature_failures: Family<Labels<2>, Counter>,
    pub(super) dead_letters: Family<Labels<2>, Counter>,
    pub(super) quarantine: Family<Labels<2>, Counter>,
    pub(super) quarantine_entries: Gauge,
    pub(super) redis_seconds: Family<Labels<1>, Histogram, Buckets>,
    pub(super) publish_seconds: Histogram,
    pub(super) pending: Family<Labels<1>, Gauge>,
    pub(super) pending_age: Family<Labels<1>, Age>,
    pub(super) released: Family<Labels<2>, Counter>,
    pub(super) repaired: Family<Labels<2>, Counter>,
    pub(super) given_up: Family<Labels<2>, Counter>,
    pub(super) consumer_pending: Family<Labels<2>, Gauge>,
    pub(super) consumer_ack_pending: Family<Labels<2>, Gauge>,
    pub(super) outbox: Family<Labels<1>, Gauge>,
    pub(super) outbox_age: Family<Labels<1>, Age>,
    pub(super) orphaned: Family<Labels<2>, Gauge>,
    pub(super) orphaned_age: Family<Labels<2>, Age>,
    pub(super) reload_failed: Gauge,
}

impl Families {
    /// What becomes of pending ids.
    fn register_life(&self, registry: &mut Registry) {
        registry.register_with_unit(
            "hookgate_pending_oldest_age",
            "Since the id that is pending for longest was first claimed, as the last scan of the journal found it; the same on every replica",
            Unit::Seconds,
            self.pending_age.clone(),
        );
        registry.register("hookgate_released", "Ids that were released, by who said so", self.released.clone());
        registry.register("hookgate_repaired", "Pending ids that were republished, by why", self.repaired.clone());
        registry.register(
            "hookgate_given_up",
            "Events that a consumer terminated or ran out of deliveries for",
            self.given_up.clone(),
        );
    }

    fn register_quarantine(&self, registry: &mut Registry) {
        registry.register(
            "hookgate_quarantine",
            "Bodies whose signature was wrong, on routes that keep them, by what became of them",
            self.quarantine.clone(),
        );
        registry.register(
            "hookgate_quarantine_entries",
            "Bodies in quarantine; the same on every replica",
            self.quarantine_entries.clone(),
        );
    }

    fn register_consumers(&self, registry: &mut Registry) {
        registry.register(
            "hookgate_consumer_pending",
            "Messages that wait for a consumer; the same on every replica, and for every route that the consumer serves",
            self.consumer_pending.clone(),
        );
        registry.register(
            "hookgate_consumer_ack_pending",
            "Messages that a consumer got and has not acknowledged; the same on every replica, and for every such route",
            self.consumer_ack_pending.clone(),
        );
    }

    fn register_outboxes(&self, registry: &mut Registry) {
        registry.register(
            "hookgate_outbox_entries",
            "Claims whose event NATS has not acknowledged yet; the same on every replica",
            self.outbox.clone(),
        );
        registry.register_with_unit(
            "hookgate_outbox_oldest_age",
            "How long this replica has seen the oldest entry of the outbox",
            Unit::Seconds,
            self.outbox_age.clone(),
        );
        registry.register(
            "hookgate_orphaned_outbox_entries",
            "Entries in the outbox of a route that has left the configuration; drained to the subject it had",
            self.orphaned.clone(),
        );
        registry.register_with_unit(
            "hookgate_orphaned_outbox_oldest_age",
            "How long this replica has seen the oldest entry of such an outbox",
            Unit::Seconds,
            self.orphaned_age.clone(),
        );
    }

    pub(super) fn register() -> (Self, Exposition) {
        let this = Self {
            requests: Family::default(),
            request_seconds: Family::new_with_constructor(Buckets(&ANSWER)),
            connections: Gauge::default(),
            shed: Family::default(),
            last_webhook: Family::default(),
            items: Family::default(),
            published: Family::default(),
            signature_failures: Family::default(),
            dead_letters: Family::default(),
            quarantine: Family::default(),
            quarantine_entries: Gauge::default(),
            redis_seconds: Family::new_with_constructor(Buckets(&REDIS)),
            publish_seconds: Buckets(&PUBLISH).new_metric(),
            pending: Family::default(),
            pending_age: Family::default(),
            released: Family::default(),
            repaired: Family::default(),
            given_up: Family::default(),
            consumer_pending: Family::default(),
            consumer_ack_pending: Family::default(),
            outbox: Family::default(),
            outbox_age: Family::default(),
            orphaned: Family::default(),
            orphaned_age: Family::default(),
            reload_failed: Gauge::default(),
        };
        let mut registry = Registry::default();
        let build = Info::new([("version", VERSION), ("revision", REVISION)]);
        registry.register("hookgate_build", "What is running", build);
        registry.register("hookgate_http_requests", "Requests by the answer they got", this.requests.clone());
        registry.register_with_unit(
            "hookgate_http_request_duration",
            "From a request's head to its answer",
            Unit::Seconds,
            this.request_seconds.clone(),
        );
        registry.register("hookgate_connections", "Open connections of senders", this.connections.clone());
        registry.register("hookgate_shed", "Requests sent away with 503 to protect the process", this.shed.clone());
        registry.register_with_unit(
            "hookgate_last_webhook_age",
            "Since this replica last got a webhook from a sender that may send it, or since its start",
            Unit::Seconds,
            this.last_webhook.clone(),
        );
        registry.register("hookgate_items", "Items of webhooks by what became of them", this.items.clone());
        registry.register("hookgate_events_published", "Events that NATS acknowledged", this.published.clone());
        registry.register(
            "hookgate_signature_failures",
            "Requests whose signature is missing or wrong",
            this.signature_failures.clone(),
        );
        registry.register(
            "hookgate_dead_letters",
            "Items and bodies that can never be processed",
            this.dead_letters.clone(),
        );
        this.register_quarantine(&mut registry);
        registry.register_with_unit(
            "hookgate_redis_operation_duration",
            "One exchange with Redis",
            Unit::Seconds,
            this.redis_seconds.clone(),
        );
        registry.register_with_unit(
            "hookgate_nats_publish_duration",
            "One attempt to publish the events of a batch, from sending to the last acknowledgement",
            Unit::Seconds,
            this.publish_seconds.clone(),
        );
        registry.register(
            "hookgate_pending_ids",
            "Ids that were claimed and not released yet; the same on every replica",
            this.pending.clone(),
        );
        this.register_life(&mut registry);
        this.register_consumers(&mut registry);
        this.register_outboxes(&mut registry);
        registry.register(
            "hookgate_config_reload_failed",
            "Whether the configuration could not be read again, so that an older one is in force",
            this.reload_failed.clone(),
        );
        (this, Exposition { registry })
    }
}

/// What `/metrics` shows.
#[derive(Debug)]
pub struct Exposition {
    registry: Registry,
}

impl Exposition {
    /// The media type of [`Exposition::text`]: a scraper chooses its parser by it.
    pub const CONTENT_TYPE: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";

    /// Shows also what is known only at the moment of looking: of the process, its stores and its limits.
    pub fn watch(&mut self, live: Live) {
        self.registry.register_collector(Box::new(live));
        self.registry.register_collector(Box::new(Process));
    }

    /// All series, as OpenMetrics.
    ///
    /// # Panics
    /// Never: text can always be written to a `String`.
    #[must_use]
    pub fn text(&self) -> String {
        let mut text = String::with_capacity(32 << 10);
        encode(&mut text, &self.registry).expect("a String takes everything");
        text
    }
}
