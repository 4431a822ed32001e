//! A page of due entries on its way: to NATS, and out of the outbox.

use std::sync::Arc;

use super::{Relay, tracked::Due};
use crate::{
    batch::EntityId,
    delivery::{Ack, Attempted, Deliverable, PublishError, Settlement, StoreError, attempt},
    event::Token,
    failpoint,
    metrics::RelayMetrics,
    route::Route,
    traces::Sent,
};

impl Deliverable for Due {
    fn id(&self) -> EntityId<'_> {
        EntityId::parse(&self.id).expect("it was checked when the entry was found")
    }

    fn token(&self) -> Token {
        self.token
    }
}

/// What became of a page.
pub(super) struct PageOutcome {
    /// Acknowledged now.
    pub(super) published: Vec<(u64, Ack)>,
    /// Not acknowledged, and what NATS said.
    pub(super) failed: Vec<(u64, PublishError)>,
    /// Nobody could say where they go.
    pub(super) untried: Vec<u64>,
    /// Whether anything was sent.
    pub(super) was_sent: bool,
    /// What had to leave the outbox: acknowledged now or before.
    pub(super) settlements: Vec<u64>,
    /// Whether it did.
    pub(super) settled: Result<(), StoreError>,
}

impl Relay {
    /// Publishes the due entries of a page, each to the address it was claimed for, and settles them together with those
    /// that were acknowledged before.
    pub(super) async fn publish_page(
        &self,
        route: &Route,
        due: Vec<Due>,
        acknowledged: Vec<(u64, Settlement)>,
        metrics: &RelayMetrics,
    ) -> PageOutcome {
        let mut outcome = PageOutcome {
            published: Vec::new(),
            failed: Vec::new(),
            untried: due.iter().map(|due| due.name).collect(),
            was_sent: false,
            settlements: Vec::new(),
            settled: Ok(()),
        };
        let by_address = match self.by_address(route, due).await {
            Ok(by_address) => by_address,
            Err(error) => {
                outcome.settled = Err(error);
                return outcome;
            }
        };
        outcome.untried.clear();
        let (mut names, mut settlements): (Vec<_>, Vec<_>) = acknowledged.into_iter().unzip();
        for (address, due) in by_address {
            let attempted = self.attempt(address.as_deref().unwrap_or(route), due, metrics).await;
            outcome.was_sent |= attempted.was_sent();
            names.extend(attempted.acknowledged.iter().map(|(due, _)| due.name));
            settlements.extend(attempted.settlements());
            outcome.published.extend(attempted.acknowledged.into_iter().map(|(due, ack)| (due.name, ack)));
            outcome.failed.extend(attempted.failed.into_iter().map(|(due, error)| (due.name, error)));
        }
        if !settlements.is_empty() {
            outcome.settled = self.outbox.settle_now(route, &settlements).await.map(|_count| ());
        }
        outcome.settlements = names;
        outcome
    }

    /// Due entries, by the address that each was claimed for; none where only the route itself is known.
    async fn by_address(
        &self,
        route: &Route,
        due: Vec<Due>,
    ) -> Result<Vec<(Option<Arc<Route>>, Vec<Due>)>, StoreError> {
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

    /// The one place where due entries become publish calls.
    async fn attempt(&self, address: &Route, due: Vec<Due>, metrics: &RelayMetrics) -> Attempted<Due> {
        failpoint::hit("relay_before_publish");
        let began = self.tracer.begin();
        let tokens = if began.is_some() { due.iter().map(|due| due.token).collect() } else { Vec::new() };
        let attempted = attempt(&*self.publisher, address, due, self.ack_timeout, &metrics.published).await;
        failpoint::hit("relay_after_publish");
        if began.is_some() && attempted.was_sent() {
            let problem = attempted.failed.first().map(|(_, error)| error.to_string());
            self.tracer.sent(began, Sent { request: None, route: address, tokens, attempts: 1, problem });
        }
        attempted
    }
}
