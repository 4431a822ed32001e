//! How long something has not happened, computed at the moment of looking.

use std::{
    fmt,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Instant,
};

use prometheus_client::{
    encoding::{EncodeMetric, MetricEncoder},
    metrics::{MetricType, TypedMetric},
};

/// The time since something happened last; before the first time, since this was made.
#[derive(Debug, Clone)]
pub(super) struct Since {
    made: Instant,
    /// Milliseconds from `made` to the last time.
    last: Arc<AtomicU64>,
}

impl Default for Since {
    fn default() -> Self {
        Self { made: Instant::now(), last: Arc::default() }
    }
}

impl Since {
    /// It happens now.
    pub(super) fn now(&self) {
        self.last.fetch_max(self.age_of_this(), Ordering::Relaxed);
    }

    fn age_of_this(&self) -> u64 {
        u64::try_from(self.made.elapsed().as_millis()).unwrap_or(u64::MAX)
    }
}

impl TypedMetric for Since {
    const TYPE: MetricType = MetricType::Gauge;
}

impl EncodeMetric for Since {
    fn encode(&self, mut encoder: MetricEncoder<'_>) -> fmt::Result {
        let millis = self.age_of_this().saturating_sub(self.last.load(Ordering::Relaxed));
        encoder.encode_gauge(&std::time::Duration::from_millis(millis).as_secs_f64())
    }

    fn metric_type(&self) -> MetricType {
        Self::TYPE
    }
}
