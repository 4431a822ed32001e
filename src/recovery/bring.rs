//! The way of sought ids through claim and publish, a few at a time.

use std::{sync::Arc, time::Duration};

use tokio::time::Instant;

use crate::{
    batch::Batch,
    delivery::{Delivery, Failure, StoreError},
    event::TokenSeed,
    life::{Known, LifeStore},
    route::{Route, WhilePending},
};

/// Ids that go together.
const TOGETHER: usize = 50;
/// How often some ids are tried before the rest is left for another time.
const TRIES: u32 = 3;

/// An id that needs an event.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Wanted {
    /// The id.
    pub id: String,
    /// Whether the stream holds an event of it. For a create that is pending, this is the event.
    pub in_stream: bool,
    /// Publish it, even if it is a create that is pending and whose event is in the stream.
    pub always: bool,
}

/// What became of an id.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Brought {
    /// NATS acknowledged its event.
    Published,
    /// It is a create, it is pending, and the stream holds its event.
    Pending,
}

/// Why ids were not brought.
#[derive(Debug, thiserror::Error)]
pub enum Failed {
    /// Redis does not say what is pending.
    #[error("look at pending ids of route {route}: {error}")]
    Look {
        /// The route.
        route: String,
        /// What is wrong.
        error: StoreError,
    },
    /// They are not acknowledged.
    #[error("publish {count} ids of route {route}: {failure}")]
    Unpublished {
        /// The route.
        route: String,
        /// How many.
        count: usize,
        /// What is wrong.
        failure: Failure,
    },
}

/// Brings ids, at a bounded rate.
pub struct Bringer {
    delivery: Arc<Delivery>,
    life: Arc<dyn LifeStore>,
    /// Time of one try.
    patience: Duration,
    /// Ids a second.
    rate: u32,
    /// When the next ids may go.
    next: Instant,
}

impl Bringer {
    /// `rate` is in ids a second.
    #[must_use]
    pub fn new(delivery: Arc<Delivery>, life: Arc<dyn LifeStore>, patience: Duration, rate: u32) -> Self {
        Self { delivery, life, patience, rate: rate.max(1), next: Instant::now() }
    }

    /// How many ids go together at this rate.
    #[must_use]
    pub fn together(&self) -> usize {
        TOGETHER.min(self.rate as usize)
    }

    /// Brings some ids of a route, and says what became of each. Should it end in between: an id that was claimed has its
    /// event or stays in the outbox, from which the relay publishes it.
    ///
    /// # Errors
    /// If some of them got no event: bringing all of them again does no harm.
    pub async fn bring(&mut self, route: &Arc<Route>, wanted: &[Wanted]) -> Result<Vec<Brought>, Failed> {
        tokio::time::sleep_until(self.next).await;
        let spent = u32::try_from(wanted.len()).unwrap_or(u32::MAX);
        self.next = Instant::now() + Duration::from_secs(1) * spent / self.rate;
        let known = self.look(route, wanted).await?;
        // A mark is no event.
        let marks = route.life().while_pending == WhilePending::Coalesce;
        let (mut as_webhook, mut anew, mut outcomes) = (Vec::new(), Vec::new(), Vec::new());
        for (wanted, known) in wanted.iter().zip(&known) {
            let settled = known.pending && known.in_flight.is_none();
            // A create of an id happens once.
            if settled && wanted.in_stream && !wanted.always && route.action() == "create" {
                outcomes.push(Brought::Pending);
                continue;
            }
            let ids = if settled || marks { &mut anew } else { &mut as_webhook };
            ids.push(wanted.id.as_str());
            outcomes.push(Brought::Published);
        }
        self.publish(route, &as_webhook, false).await?;
        self.publish(route, &anew, true).await?;
        Ok(outcomes)
    }

    async fn look(&self, route: &Route, wanted: &[Wanted]) -> Result<Vec<Known>, Failed> {
        let ids: Vec<String> = wanted.iter().map(|wanted| wanted.id.clone()).collect();
        let known = self.life.known(route, &ids).await;
        known.map_err(|error| Failed::Look { route: route.name().to_owned(), error })
    }

    /// Until NATS acknowledged all of them, a few times.
    async fn publish(&self, route: &Arc<Route>, ids: &[&str], anew: bool) -> Result<(), Failed> {
        if ids.is_empty() {
            return Ok(());
        }
        let records: Vec<_> = ids.iter().map(|id| serde_json::json!({ "id": id })).collect();
        let body = serde_json::to_vec(&records).expect("text always serializes");
        let mut last = None;
        for _ in 0..TRIES {
            let batch = Batch::parse(body.as_slice()).expect("an array of objects is a batch");
            let deadline = Instant::now() + self.patience;
            let (route, seed) = (Arc::clone(route), TokenSeed::now());
            let delivered = if anew {
                self.delivery.deliver_anew(route, batch, seed, deadline).await
            } else {
                self.delivery.deliver(route, batch, seed, deadline).await
            };
            match delivered {
                Ok(_receipt) => return Ok(()),
                Err(failure) => last = Some(failure),
            }
        }
        let failure = last.expect("it was tried");
        Err(Failed::Unpublished { route: route.name().to_owned(), count: ids.len(), failure })
    }
}
