//! One attempt to deliver claims: publish, await the acknowledgements, count them, and make the settlements. Requests and
//! the relay share it; each settles in its own way.

use std::time::Duration;

use super::{Ack, PublishError, Publisher, Settlement};
use crate::{
    batch::EntityId,
    event::{Event, Events, Token},
    metrics::PublishedCounter,
    route::Route,
};

/// A claim that an attempt can deliver.
pub(crate) trait Deliverable {
    /// The claimed id.
    fn id(&self) -> EntityId<'_>;

    /// The token of the claim.
    fn token(&self) -> Token;
}

/// What became of the claims of an attempt, in their order.
#[must_use = "an acknowledged claim that isn't settled is published again"]
pub(crate) struct Attempted<C> {
    /// Acknowledged by the broker.
    pub(crate) acknowledged: Vec<(C, Ack)>,
    /// Not acknowledged, and why.
    pub(crate) failed: Vec<(C, PublishError)>,
}

/// Makes an attempt: publishes the events of all claims to an address, and awaits their acknowledgements for at most
/// `limit`.
pub(crate) async fn attempt<C: Deliverable>(
    publisher: &dyn Publisher,
    address: &Route,
    claims: Vec<C>,
    limit: Duration,
    counter: &PublishedCounter,
) -> Attempted<C> {
    let mut events = Events::of(address);
    let events: Vec<Event> = claims.iter().map(|claim| events.event(claim.id(), claim.token())).collect();
    let mut outcomes = publisher.publish(address, events, limit).await.into_iter();
    let mut attempted = Attempted { acknowledged: Vec::with_capacity(claims.len()), failed: Vec::new() };
    for claim in claims {
        // Whatever a publisher does not speak of is not acknowledged.
        match outcomes.next().unwrap_or(Err(PublishError::NoAck(limit))) {
            Ok(ack) => attempted.acknowledged.push((claim, ack)),
            Err(error) => attempted.failed.push((claim, error)),
        }
    }
    if !attempted.acknowledged.is_empty() {
        counter.published(attempted.acknowledged.iter().map(|(claim, _)| claim.id().as_str()));
    }
    attempted
}

impl<C: Deliverable> Attempted<C> {
    /// Whether anything was sent.
    pub(crate) fn was_sent(&self) -> bool {
        let unsent = |error: &PublishError| matches!(error, PublishError::Unavailable(_));
        !self.acknowledged.is_empty() || self.failed.iter().any(|(_, error)| !unsent(error))
    }

    /// What the broker said of the last claim that it did not acknowledge.
    pub(crate) fn problem(&self) -> Option<&PublishError> {
        self.failed.last().map(|(_, error)| error)
    }

    /// The settlements of what was acknowledged.
    pub(crate) fn settlements(&self) -> impl Iterator<Item = Settlement> + '_ {
        self.acknowledged
            .iter()
            .map(|(claim, ack)| Settlement::acknowledged(claim.id().as_str().to_owned(), claim.token(), *ack))
    }
}
