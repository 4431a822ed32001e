//! What is read at the moment of looking: from memory, never from a store.

use std::fmt;

use prometheus_client::{
    collector::Collector,
    encoding::{DescriptorEncoder, EncodeMetric},
    metrics::gauge::ConstGauge,
};
use tokio::sync::watch;

use crate::readiness::Contact;

/// The state of the process's surroundings.
pub struct Live {
    /// The pending store.
    pub redis: watch::Receiver<Contact>,
    /// The broker.
    pub nats: watch::Receiver<Contact>,
    /// How many requests are in flight.
    pub requests_in_flight: Box<dyn Fn() -> usize + Send + Sync>,
}

impl fmt::Debug for Live {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.debug_struct("Live").finish_non_exhaustive()
    }
}

impl Collector for Live {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> fmt::Result {
        let up = |contact: &watch::Receiver<Contact>| i64::from(*contact.borrow() == Contact::Up);
        let tasks = tokio::runtime::Handle::try_current().map_or(0, |runtime| runtime.metrics().num_alive_tasks());
        let tasks = i64::try_from(tasks).unwrap_or(i64::MAX);
        let in_flight = i64::try_from((self.requests_in_flight)()).unwrap_or(i64::MAX);
        for (name, help, value) in [
            ("hookgate_redis_up", "Whether Redis answers and does what it is asked.", up(&self.redis)),
            ("hookgate_nats_up", "Whether NATS answers and takes events.", up(&self.nats)),
            ("hookgate_http_requests_in_flight", "Webhooks being read or processed.", in_flight),
            ("hookgate_tasks", "Tasks of the runtime: some of each route, one of each connection.", tasks),
        ] {
            let gauge = ConstGauge::new(value);
            gauge.encode(encoder.encode_descriptor(name, help, None, gauge.metric_type())?)?;
        }
        Ok(())
    }
}
