//! Claims in the memory of one process (`redis.url = "memory:"`): for a trial without Redis. Forgets at exit.

use std::{
    collections::{HashMap, HashSet},
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use futures_util::{FutureExt, future::BoxFuture};
use tokio::sync::watch;

use crate::{
    event::Token,
    pipeline::{ClaimError, PendingStore, Proposal, Settlement, State},
    readiness::Contact,
    route::Route,
};

/// The pending SETs and outboxes of all routes.
#[derive(Debug)]
pub struct Memory {
    claims: Mutex<HashMap<String, Claims>>,
    outbox_limit: usize,
    contact: watch::Sender<Contact>,
}

#[derive(Debug, Default)]
struct Claims {
    pending: HashSet<String>,
    outbox: HashMap<String, Token>,
}

impl Memory {
    /// Nothing pending; at most `outbox_limit` ids of a route in flight.
    #[must_use]
    pub fn new(outbox_limit: usize) -> Self {
        Self { claims: Mutex::default(), outbox_limit, contact: watch::Sender::new(Contact::Up) }
    }

    /// Takes an id out of the pending SET, as a consumer does when it is through; whether it was there.
    pub fn release(&self, route: &Route, id: &str) -> bool {
        self.with(route, |claims| claims.pending.remove(id))
    }

    /// No code that holds the lock can panic half-way through a change.
    fn with<T>(&self, route: &Route, work: impl FnOnce(&mut Claims) -> T) -> T {
        let mut all = self.claims.lock().unwrap_or_else(PoisonError::into_inner);
        work(all.entry(route.pending_key().to_owned()).or_default())
    }
}

impl PendingStore for Memory {
    fn claim(&self, route: &Arc<Route>, proposal: Proposal) -> BoxFuture<'_, Result<Vec<State>, ClaimError>> {
        let states = self.with(route, |Claims { pending, outbox }| {
            proposal
                .ids()
                .map(|(id, token)| {
                    let id = id.as_str();
                    if pending.contains(id) {
                        outbox.get(id).map_or(State::Done, |token| State::InFlight(*token))
                    } else if outbox.len() >= self.outbox_limit {
                        State::OutboxFull
                    } else {
                        outbox.insert(id.to_owned(), token);
                        pending.insert(id.to_owned());
                        State::New
                    }
                })
                .collect()
        });
        std::future::ready(Ok(states)).boxed()
    }

    fn settle(&self, route: &Arc<Route>, settlements: Vec<Settlement>) {
        self.with(route, |Claims { outbox, .. }| {
            for settlement in settlements {
                if outbox.get(settlement.id()) == Some(&settlement.token()) {
                    outbox.remove(settlement.id());
                }
            }
        });
    }

    fn contact(&self) -> watch::Receiver<Contact> {
        self.contact.subscribe()
    }

    fn close(&self, _limit: Duration) -> BoxFuture<'_, ()> {
        std::future::ready(()).boxed()
    }
}
