//! A publisher that notes how long its attempts take.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use futures_util::{FutureExt, future::BoxFuture};
use tokio::sync::watch;

use crate::{
    delivery::{Ack, PublishError, Publisher},
    event::Event,
    metrics::PublishTimes,
    readiness::Contact,
    route::Route,
};

/// A publisher, and how long it takes.
pub struct Timed {
    publisher: Arc<dyn Publisher>,
    times: PublishTimes,
}

impl Timed {
    /// Times every attempt of a publisher.
    #[must_use]
    pub const fn new(publisher: Arc<dyn Publisher>, times: PublishTimes) -> Self {
        Self { publisher, times }
    }
}

impl Publisher for Timed {
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
                self.times.observe(began.elapsed());
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
