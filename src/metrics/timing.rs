//! How long the stores take.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use futures_util::{FutureExt, future::BoxFuture};
use prometheus_client::metrics::histogram::Histogram;
use tokio::sync::watch;

use super::registry::Families;
use crate::{
    event::Event,
    pipeline::Publisher,
    publisher::{Ack, PublishError},
    readiness::Contact,
    route::Route,
};

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
    /// How much it holds.
    Count,
    /// What an operator's command needs.
    Operator,
}

impl Operation {
    const ALL: [Self; 7] =
        [Self::Claim, Self::Wait, Self::Settle, Self::Relay, Self::DeadLetters, Self::Count, Self::Operator];

    const fn code(self) -> &'static str {
        match self {
            Self::Claim => "claim",
            Self::Wait => "wait",
            Self::Settle => "settle",
            Self::Relay => "relay",
            Self::DeadLetters => "dead_letters",
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

/// A publisher, and how long it takes.
pub struct TimedPublisher {
    publisher: Arc<dyn Publisher>,
    seconds: Histogram,
}

impl TimedPublisher {
    pub(super) const fn new(publisher: Arc<dyn Publisher>, seconds: Histogram) -> Self {
        Self { publisher, seconds }
    }
}

impl Publisher for TimedPublisher {
    fn publish<'a>(
        &'a self,
        route: &'a Route,
        events: Vec<Event>,
        limit: Duration,
    ) -> BoxFuture<'a, Vec<Result<Ack, PublishError>>> {
        let began = Instant::now();
        async move {
            let outcomes = self.publisher.publish(route, events, limit).await;
            // What was never sent took no time.
            if outcomes.iter().any(|outcome| !matches!(outcome, Err(PublishError::Unavailable(_)))) {
                self.seconds.observe(began.elapsed().as_secs_f64());
            }
            outcomes
        }
        .boxed()
    }

    fn contact(&self) -> watch::Receiver<Contact> {
        self.publisher.contact()
    }

    fn server_version(&self) -> Option<String> {
        self.publisher.server_version()
    }
}
