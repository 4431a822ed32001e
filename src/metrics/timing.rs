//! How long the stores take.

use std::time::{Duration, Instant};

use prometheus_client::metrics::histogram::Histogram;

use super::registry::Families;

/// What Redis is asked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Operation {
    /// To claim ids; one call may serve many requests.
    Claim,
    /// To confirm that claims are durable (`WAIT`, `WAITAOF`).
    Wait,
    /// To settle acknowledged claims.
    Settle,
    /// What the relay needs: pages, leases, records of routes.
    Relay,
    /// To keep dead letters.
    DeadLetters,
    /// Releases, answers of consumers, and looks at pending ids.
    Life,
    /// How much it holds.
    Count,
    /// What an operator's command needs.
    Operator,
}

impl Operation {
    const ALL: [Self; 8] = [
        Self::Claim,
        Self::Wait,
        Self::Settle,
        Self::Relay,
        Self::DeadLetters,
        Self::Life,
        Self::Count,
        Self::Operator,
    ];

    const fn code(self) -> &'static str {
        match self {
            Self::Claim => "claim",
            Self::Wait => "wait",
            Self::Settle => "settle",
            Self::Relay => "relay",
            Self::DeadLetters => "dead_letters",
            Self::Life => "life",
            Self::Count => "count",
            Self::Operator => "operator",
        }
    }
}

/// How long exchanges with Redis take, those that fail included.
#[derive(Debug, Clone)]
pub struct RedisTimes([Histogram; Operation::ALL.len()]);

impl RedisTimes {
    pub(super) fn new(families: &Families) -> Self {
        let seconds = &families.redis_seconds;
        Self(Operation::ALL.map(|operation| seconds.get_or_create_owned(&[("operation", operation.code().to_owned())])))
    }

    /// Waits for an exchange and notes how long it took.
    pub async fn time<T>(&self, operation: Operation, exchange: impl Future<Output = T>) -> T {
        let began = Instant::now();
        let outcome = exchange.await;
        self.0[operation as usize].observe(began.elapsed().as_secs_f64());
        outcome
    }
}

/// How long attempts to publish take, those that fail included.
#[derive(Debug, Clone)]
pub struct PublishTimes(Histogram);

impl PublishTimes {
    pub(super) const fn new(seconds: Histogram) -> Self {
        Self(seconds)
    }

    /// An attempt took so long.
    pub fn observe(&self, took: Duration) {
        self.0.observe(took.as_secs_f64());
    }
}
