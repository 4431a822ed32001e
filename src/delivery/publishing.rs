//! The second half of a step: claims are published until their events are acknowledged, or until the deadline.

use std::time::Duration;

use tokio::time::Instant;
use tracing::{info, warn};

use super::{Delivery, Failure, Job, PublishError, attempt, claiming::Claim};
use crate::{
    breaker::{Breaker, BreakerOpen},
    failpoint,
    metrics::Via,
    readiness::Contact,
    route::Route,
};

/// A request with less publishing time than this says nothing about the broker.
const FAIR_TRY: Duration = Duration::from_millis(500);
/// Pause between two attempts to publish what was not acknowledged.
const PUBLISH_PAUSE: Duration = Duration::from_millis(250);

/// What came of publishing, and after how many attempts.
pub(super) struct Published {
    pub(super) outcome: Result<(), Failure>,
    pub(super) attempts: usize,
}

impl Published {
    /// Both have to be done.
    pub(super) fn and(self, other: Self) -> Self {
        Self { outcome: self.outcome.and(other.outcome), attempts: self.attempts + other.attempts }
    }
}

impl Delivery {
    /// Publishes to an address until all claims are acknowledged, or until the deadline; settles each as it is.
    pub(super) async fn publish(&self, job: &Job, address: &Route, claims: Vec<Claim<'_>>, via: Via) -> Published {
        if claims.is_empty() {
            return Published { outcome: Ok(()), attempts: 0 };
        }
        // The breaker says nothing of another address.
        let breaker = address.is_same_address(&job.route).then(|| &*self.breakers[job.route.name()]);
        let (total, began) = (claims.len(), Instant::now());
        let (open, reason, attempts) = match may_begin(breaker, began, job.deadline).await {
            Err(reason) => (claims, reason, 0),
            Ok(()) => match self.until_acknowledged(job, address, breaker, claims, via).await {
                (attempts, Ok(())) => return Published { outcome: Ok(()), attempts },
                (attempts, Err((open, last))) => {
                    if job.deadline - began >= FAIR_TRY && breaker.is_some_and(|breaker| breaker.ran_out(began)) {
                        warn!(route = %job.route, reason = %last, "nothing was acknowledged for a whole request: until something is, requests are refused soon, but for one probe at a time");
                    }
                    (open, last, attempts)
                }
            },
        };
        self.metrics.of(&job.route).unconfirmed(open.iter().map(|claim| claim.id.as_str()));
        let failure = Failure::Unpublished { unconfirmed: open.len(), total, last: reason };
        Published { outcome: Err(failure), attempts }
    }

    /// Makes attempts. Returns their number, and at the deadline the claims that are left, with what the broker said last.
    async fn until_acknowledged<'a>(
        &self,
        job: &Job,
        address: &Route,
        breaker: Option<&Breaker>,
        mut open: Vec<Claim<'a>>,
        via: Via,
    ) -> (usize, Result<(), (Vec<Claim<'a>>, PublishError)>) {
        let mut attempts = 0;
        loop {
            attempts += 1;
            let limit = self.policy.ack_timeout.min(job.deadline.saturating_duration_since(Instant::now()));
            let counter = self.metrics.of(&job.route).published_via(via);
            let attempted = attempt(&*self.publisher, address, open, limit, counter).await;
            failpoint::hit("after_ack");
            for (claim, _) in &attempted.acknowledged {
                info!(target: "hookgate::entity", route = %address, entity_id = %claim.id, trace_id = %claim.token.trace_id(),
                    "{}-Event emittiert für ID: {}", address.action_title(), claim.id);
            }
            if !attempted.acknowledged.is_empty() && breaker.is_some_and(Breaker::acknowledged) {
                info!(route = %job.route, "events are acknowledged again");
            }
            // What went out without a claim has nothing to settle.
            if !attempted.acknowledged.is_empty() && via != Via::Undeduplicated {
                self.pending.settle(&job.route, attempted.settlements().collect());
            }
            let Some(last) = attempted.problem().cloned() else { return (attempts, Ok(())) };
            open = attempted.failed.into_iter().map(|(claim, _)| claim).collect();
            if Instant::now() + PUBLISH_PAUSE >= job.deadline {
                return (attempts, Err((open, last)));
            }
            // Boxed: the rare branch would enlarge every request's future.
            Box::pin(self.before_another_attempt(&last)).await;
        }
    }

    /// Waits for a while, but no longer than until a broker that was away is back.
    async fn before_another_attempt(&self, last: &PublishError) {
        let mut contact = self.publisher.contact();
        let back = async {
            // A broker that is there and says no, or nothing, is given the time.
            let away = matches!(last, PublishError::Unavailable(_)) && *contact.borrow_and_update() != Contact::Up;
            if !away || contact.wait_for(|contact| *contact == Contact::Up).await.is_err() {
                std::future::pending::<()>().await;
            }
        };
        tokio::select! {
            () = tokio::time::sleep(PUBLISH_PAUSE) => {}
            () = back => {}
        }
    }
}

/// Whether there is time, and the breaker lets it through.
async fn may_begin(breaker: Option<&Breaker>, now: Instant, deadline: Instant) -> Result<(), PublishError> {
    if now >= deadline {
        return Err(PublishError::NoTime);
    }
    match breaker {
        Some(breaker) => breaker.pass(deadline).await.map_err(|BreakerOpen| PublishError::NotTried),
        None => Ok(()),
    }
}
