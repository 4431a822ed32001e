//! Releases ids, records consumers' acknowledgements, republishes ids.

use std::{sync::Arc, time::Duration};

use hashbrown::HashSet;
use tracing::{debug, info, warn};

use super::{Answered, ConsumerAnswer, LifeStore, Reclaim, ReleaseRequest, Released};
use crate::{
    batch::EntityId,
    delivery::{self, Deliverable, PendingStore, Publisher, StoreError},
    event::Token,
    failpoint,
    metrics::{Metrics, ReleasedBy, RepairedWhy, Via},
    route::Route,
};

/// What became of the ids of a release: each list in the order of the request. What can't be an id comes last in `not_pending`.
#[derive(Debug, Clone, Default, PartialEq, Eq, serde::Serialize, schemars::JsonSchema)]
pub struct ReleaseReport {
    /// Ids that are free now.
    pub released: Vec<String>,
    /// Ids that were not pending, or not under the token that was named.
    pub not_pending: Vec<String>,
    /// Ids that are claimed again, because a webhook had marked them: one more event comes.
    pub republished: Vec<String>,
}

/// What became of an id that was to be claimed again.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Reclaimed {
    /// Claimed, and NATS acknowledged its event.
    Published,
    /// Claimed, and NATS has not acknowledged its event: the relay publishes it.
    Unacknowledged,
    /// Left alone: the id has changed since it was read.
    Changed,
}

/// Releases, records acknowledgements, republishes.
#[derive(Clone)]
pub struct Keeper {
    store: Arc<dyn LifeStore>,
    pending: Arc<dyn PendingStore>,
    publisher: Arc<dyn Publisher>,
    ack_timeout: Duration,
    metrics: Metrics,
}

/// A claim of hookgate's own.
struct OwnClaim {
    id: String,
    token: Token,
}

impl OwnClaim {
    /// `None` for an invalid id: hookgate can't have claimed it, and can't publish it. The relay logs it.
    fn new(id: &str, token: Token) -> Option<Self> {
        EntityId::parse(id).map(|_| Self { id: id.to_owned(), token })
    }
}

impl Deliverable for OwnClaim {
    fn id(&self) -> EntityId<'_> {
        EntityId::parse(&self.id).expect("it was checked when it was claimed")
    }

    fn token(&self) -> Token {
        self.token
    }
}

impl Keeper {
    /// Puts the parts together.
    #[must_use]
    pub fn new(
        store: Arc<dyn LifeStore>,
        pending: Arc<dyn PendingStore>,
        publisher: Arc<dyn Publisher>,
        ack_timeout: Duration,
        metrics: Metrics,
    ) -> Self {
        Self { store, pending, publisher, ack_timeout, metrics }
    }

    /// The store of pending ids.
    #[must_use]
    pub fn store(&self) -> &dyn LifeStore {
        &*self.store
    }

    /// Releases ids. Those that a webhook had marked are republished before this returns, or soon after it by the relay.
    ///
    /// # Errors
    /// If the store can't be asked, or gave no answer: then they may have been released. Repeating it is harmless.
    pub async fn release(
        &self,
        route: &Arc<Route>,
        requests: &[ReleaseRequest],
        by: ReleasedBy,
    ) -> Result<ReleaseReport, StoreError> {
        let outcomes = self.store.release(route, requests).await?;
        failpoint::hit("after_release");
        let (mut report, mut claims) = (ReleaseReport::default(), Vec::new());
        for (ReleaseRequest { id, .. }, outcome) in requests.iter().zip(outcomes) {
            match outcome {
                Released::Released => report.released.push(id.clone()),
                Released::NotPending => report.not_pending.push(id.clone()),
                Released::Republished(token) => {
                    report.republished.push(id.clone());
                    claims.extend(OwnClaim::new(id, token));
                }
            }
        }
        let metrics = self.metrics.of(route);
        metrics.released(by, report.released.len() + report.republished.len());
        metrics.repaired(RepairedWhy::Marked, claims.len());
        debug!(%route, by = by.code(), released = report.released.len(), not_pending = report.not_pending.len(), republished = claims.len(), "released");
        self.publish(route, claims).await;
        Ok(report)
    }

    /// Records answers of consumers, and releases ids that all consumers have answered. Returns what each answer led
    /// to, in their order.
    ///
    /// # Errors
    /// If the store can't be asked, or gave no answer: then they may have been recorded. Repeating it is harmless.
    pub async fn answer(&self, route: &Arc<Route>, answers: &[ConsumerAnswer]) -> Result<Vec<Answered>, StoreError> {
        let outcomes = self.store.answer(route, answers).await?;
        failpoint::hit("after_answer");
        let (mut released, mut claims) = (0, Vec::new());
        for (ConsumerAnswer { id, .. }, outcome) in answers.iter().zip(&outcomes) {
            match *outcome {
                Answered::Released => released += 1,
                Answered::Republished(token) => claims.extend(OwnClaim::new(id, token)),
                Answered::Waits | Answered::Kept | Answered::Stale => {}
            }
        }
        let metrics = self.metrics.of(route);
        metrics.released(ReleasedBy::Ack, released + claims.len());
        metrics.repaired(RepairedWhy::Marked, claims.len());
        debug!(%route, released, republished = claims.len(), answers = answers.len(), "consumers answered");
        self.publish(route, claims).await;
        Ok(outcomes)
    }

    /// Republishes ids: claims each again, unless it has changed since it was read, and publishes it. Returns what
    /// became of each, in their order.
    ///
    /// # Errors
    /// If the store can't be asked, or gave no answer: what it claimed, the relay publishes.
    pub async fn reclaim(
        &self,
        route: &Arc<Route>,
        reclaims: &[Reclaim],
        why: RepairedWhy,
    ) -> Result<Vec<Reclaimed>, StoreError> {
        let tokens = self.store.reclaim(route, reclaims).await?;
        failpoint::hit("after_reclaim");
        let claims = reclaims.iter().zip(&tokens).filter_map(|(reclaim, token)| OwnClaim::new(&reclaim.id, (*token)?));
        let claims: Vec<_> = claims.collect();
        let count = claims.len();
        if count > 0 {
            self.metrics.of(route).repaired(why, count);
            info!(%route, why = why.code(), count, "pending ids are republished");
        }
        let acknowledged = self.publish(route, claims).await;
        let outcomes = tokens.into_iter().map(|token| match token {
            None => Reclaimed::Changed,
            Some(token) if acknowledged.contains(&token) => Reclaimed::Published,
            Some(_) => Reclaimed::Unacknowledged,
        });
        Ok(outcomes.collect())
    }

    /// Counts an event that a consumer gave up.
    pub(super) fn gave_up(&self, route: &Route, consumer: &str) {
        self.metrics.of(route).given_up(consumer);
    }

    /// Publishes claims that are in the outbox. Returns the tokens of those that NATS acknowledged; the relay publishes
    /// the rest.
    async fn publish(&self, route: &Arc<Route>, claims: Vec<OwnClaim>) -> HashSet<Token> {
        if claims.is_empty() {
            return HashSet::new();
        }
        let counter = self.metrics.of(route).published_via(Via::Relay);
        let attempted = delivery::attempt(&*self.publisher, route, claims, self.ack_timeout, counter).await;
        if !attempted.acknowledged.is_empty() {
            self.pending.settle(route, attempted.settlements().collect());
        }
        if let Some(problem) = attempted.problem() {
            warn!(%route, count = attempted.failed.len(), %problem, "ids were claimed again, and their events are not acknowledged yet; the relay publishes them");
        }
        attempted.acknowledged.iter().map(|(claim, _)| claim.token).collect()
    }
}
