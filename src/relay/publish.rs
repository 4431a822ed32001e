//! A page of due entries on its way: to NATS, and out of the outbox.

use std::sync::Arc;

use super::{Relay, tracked::Due};
use crate::{
    batch::EntityId,
    event::{Event, Events},
    failpoint,
    metrics::RelayMetrics,
    pipeline::{ClaimError, Settlement},
    publisher::{Ack, PublishError},
    route::Route,
    traces::Sent,
};

/// What became of a page.
pub(super) struct Attempt {
    /// Acknowledged now.
    pub(super) published: Vec<(u64, Ack)>,
    /// Not acknowledged, and what NATS said.
    pub(super) failed: Vec<(u64, PublishError)>,
    /// Nobody could say where they go.
    pub(super) untried: Vec<u64>,
    /// Whether anything was sent.
    pub(super) tried: bool,
    /// What had to leave the outbox: acknowledged now or before.
    pub(super) settlements: Vec<u64>,
    /// Whether it did.
    pub(super) settled: Result<(), ClaimError>,
}

impl Relay {
    /// Publishes the due entries of a page, awaits their acknowledgements, and settles them with those that were
    /// acknowledged before.
    pub(super) async fn attempt(
        &self,
        route: &Route,
        due: Vec<Due>,
        acknowledged: Vec<(u64, Settlement)>,
        metrics: &RelayMetrics,
    ) -> Attempt {
        let (mut published, mut failed) = (Vec::new(), Vec::new());
        let before = acknowledged.len();
        let (mut names, mut settlements): (Vec<_>, Vec<_>) = acknowledged.into_iter().unzip();
        let untried = due.iter().map(|due| due.name).collect();
        let by_address = match self.by_address(route, due).await {
            Ok(by_address) => by_address,
            Err(error) => {
                return Attempt {
                    published,
                    failed,
                    untried,
                    tried: false,
                    settlements: Vec::new(),
                    settled: Err(error),
                };
            }
        };
        for (address, due) in by_address {
            let outcomes = self.publish(address.as_deref().unwrap_or(route), &due).await;
            for (Due { name, id, token }, outcome) in due.into_iter().zip(outcomes) {
                match outcome {
                    Ok(ack) => {
                        published.push((name, ack));
                        names.push(name);
                        settlements.push(Settlement::acknowledged(id, token, ack));
                    }
                    Err(error) => failed.push((name, error)),
                }
            }
        }
        let tried =
            !published.is_empty() || failed.iter().any(|(_, error)| !matches!(error, PublishError::Unavailable(_)));
        metrics.published(settlements[before..].iter().map(Settlement::id));
        let settled = if settlements.is_empty() {
            Ok(())
        } else {
            self.outbox.settle_now(route, &settlements).await.map(|_count| ())
        };
        Attempt { published, failed, untried: Vec::new(), tried, settlements: names, settled }
    }

    /// Due entries, by the address that each was claimed for; none where only the route itself is known.
    async fn by_address(
        &self,
        route: &Route,
        due: Vec<Due>,
    ) -> Result<Vec<(Option<Arc<Route>>, Vec<Due>)>, ClaimError> {
        let mut groups: Vec<(Option<Arc<Route>>, Vec<Due>)> = Vec::new();
        if due.is_empty() {
            return Ok(groups);
        }
        let addresses = self.outbox.addresses(route).await?;
        for entry in due {
            let address = addresses.of(entry.token);
            match groups.iter_mut().find(|(known, _)| known.as_ref() == address) {
                Some((_, entries)) => entries.push(entry),
                None => groups.push((address.cloned(), vec![entry])),
            }
        }
        Ok(groups)
    }

    /// The one place where due entries become publish calls; an outcome for each, in their order.
    async fn publish(&self, route: &Route, due: &[Due]) -> Vec<Result<Ack, PublishError>> {
        let mut events = Events::of(route);
        let events: Vec<Event> =
            due.iter().filter_map(|Due { id, token, .. }| Some(events.event(EntityId::parse(id)?, *token))).collect();
        failpoint::hit("relay_before_publish");
        let began = self.tracer.begin();
        let outcomes = self.publisher.publish(route, events, self.ack_timeout).await;
        failpoint::hit("relay_after_publish");
        let tried = outcomes.iter().any(|outcome| !matches!(outcome, Err(PublishError::Unavailable(_))));
        if began.is_some() && tried {
            let tokens = due.iter().map(|due| due.token).collect();
            let problem = outcomes.iter().find_map(|outcome| outcome.as_ref().err()).map(ToString::to_string);
            self.tracer.sent(began, Sent { request: None, route, tokens, attempts: 1, problem });
        }
        outcomes
    }
}
