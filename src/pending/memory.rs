//! Claims in the memory of one process (`redis.url = "memory:"`): for a trial without Redis. Forgets at exit.

use std::{
    collections::{HashMap, HashSet, VecDeque},
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use futures_util::{FutureExt, future::BoxFuture};
use tokio::sync::watch;

use crate::{
    dead_letters::{DeadLetter, DeadLetterLimits, DeadLetterStore, KeptLetter},
    delivery::{Addresses, Claimed, PendingStore, Proposal, Settlement, State, StoreError},
    delivery::{RouteContents, StoreContents},
    event::Token,
    readiness::Contact,
    relay::{Entry, Outbox, PAGE, Page},
    route::{Route, WhilePending},
};

/// The pending SETs and outboxes of all routes.
#[derive(Debug)]
pub struct Memory {
    claims: Mutex<HashMap<String, RouteClaims>>,
    letters: Mutex<VecDeque<DeadLetter>>,
    outbox_limit: usize,
    contact: watch::Sender<Contact>,
}

#[derive(Debug, Default)]
struct RouteClaims {
    pending: HashSet<String>,
    outbox: HashMap<String, Token>,
}

impl Memory {
    /// Nothing pending; at most `outbox_limit` ids of a route in flight.
    #[must_use]
    pub fn new(outbox_limit: usize) -> Self {
        Self {
            claims: Mutex::default(),
            letters: Mutex::default(),
            outbox_limit,
            contact: watch::Sender::new(Contact::Up),
        }
    }

    /// Takes an id out of the pending SET, as a consumer does when it is through; whether it was there.
    pub fn release(&self, route: &Route, id: &str) -> bool {
        self.with(route, |claims| claims.pending.remove(id))
    }

    fn remove(&self, route: &Route, settlements: &[Settlement]) -> usize {
        self.with(route, |RouteClaims { outbox, .. }| {
            let before = outbox.len();
            for settlement in settlements {
                if outbox.get(settlement.id()) == Some(&settlement.token()) {
                    outbox.remove(settlement.id());
                }
            }
            before - outbox.len()
        })
    }

    /// No code that holds the lock can panic half-way through a change.
    fn with<T>(&self, route: &Route, work: impl FnOnce(&mut RouteClaims) -> T) -> T {
        let mut all = self.claims.lock().unwrap_or_else(PoisonError::into_inner);
        work(all.entry(route.pending_key().to_owned()).or_default())
    }
}

impl PendingStore for Memory {
    fn claim(&self, route: &Arc<Route>, proposal: Proposal) -> BoxFuture<'_, Result<Claimed, StoreError>> {
        let again = proposal.while_pending == WhilePending::Publish;
        let states = self.with(route, |RouteClaims { pending, outbox }| {
            proposal
                .ids()
                .zip(proposal.tokens(proposal.attempt))
                .map(|(id, token)| {
                    let id = id.as_str();
                    if pending.contains(id) && !again {
                        outbox.get(id).map_or(State::Done, |token| State::InFlight(*token))
                    } else if outbox.len() >= self.outbox_limit && !outbox.contains_key(id) {
                        State::OutboxFull
                    } else {
                        outbox.insert(id.to_owned(), token);
                        pending.insert(id.to_owned());
                        State::New(token)
                    }
                })
                .collect()
        });
        std::future::ready(Ok(Claimed { states, elsewhere: Addresses::default(), durable: true })).boxed()
    }

    fn settle(&self, route: &Arc<Route>, settlements: Vec<Settlement>) {
        self.remove(route, &settlements);
    }

    fn contact(&self) -> watch::Receiver<Contact> {
        self.contact.subscribe()
    }

    fn close(&self, _limit: Duration) -> BoxFuture<'_, ()> {
        std::future::ready(()).boxed()
    }
}

impl Outbox for Memory {
    /// What is settled between two pages moves others past the cursor; the next walk meets them.
    fn page<'a>(&'a self, route: &'a Route, cursor: u64) -> BoxFuture<'a, Result<Page, StoreError>> {
        let start = usize::try_from(cursor).unwrap_or(usize::MAX);
        let page = self.with(route, |RouteClaims { outbox, .. }| {
            let rest = outbox.iter().skip(start).take(PAGE);
            let entries = rest.map(|(id, token)| Entry { id: id.clone(), token: token.to_string() }).collect();
            Page { entries, next: if start + PAGE < outbox.len() { cursor + PAGE as u64 } else { 0 } }
        });
        std::future::ready(Ok(page)).boxed()
    }

    fn count<'a>(&'a self, route: &'a Route) -> BoxFuture<'a, Result<usize, StoreError>> {
        let count = self.with(route, |claims| claims.outbox.len());
        std::future::ready(Ok(count)).boxed()
    }

    fn lease<'a>(
        &'a self,
        _route: &'a Route,
        _holder: &'a str,
        _duration: Duration,
    ) -> BoxFuture<'a, Result<bool, StoreError>> {
        std::future::ready(Ok(true)).boxed()
    }

    fn settle_now<'a>(
        &'a self,
        route: &'a Route,
        settlements: &'a [Settlement],
    ) -> BoxFuture<'a, Result<usize, StoreError>> {
        std::future::ready(Ok(self.remove(route, settlements))).boxed()
    }

    /// Its routes don't change.
    fn addresses<'a>(&'a self, _route: &'a Route) -> BoxFuture<'a, Result<Addresses, StoreError>> {
        std::future::ready(Ok(Addresses::default())).boxed()
    }

    fn recorded_routes(&self) -> BoxFuture<'_, Result<Vec<Route>, StoreError>> {
        std::future::ready(Ok(Vec::new())).boxed()
    }
}

impl StoreContents for Memory {
    fn contents<'a>(&'a self, routes: &'a [Arc<Route>]) -> BoxFuture<'a, Result<Vec<RouteContents>, StoreError>> {
        let count =
            |claims: &mut RouteClaims| RouteContents { pending: claims.pending.len(), outbox: claims.outbox.len() };
        std::future::ready(Ok(routes.iter().map(|route| self.with(route, count)).collect())).boxed()
    }

    fn server_version(&self) -> BoxFuture<'_, Option<String>> {
        std::future::ready(None).boxed()
    }
}

/// Kept in number and bytes; they end with the process, long before any age.
impl DeadLetterStore for Memory {
    fn keep<'a>(
        &'a self,
        letters: &'a [DeadLetter],
        limits: DeadLetterLimits,
    ) -> BoxFuture<'a, Result<(), StoreError>> {
        let mut kept = self.letters.lock().unwrap_or_else(PoisonError::into_inner);
        kept.extend(letters.iter().cloned());
        let mut bytes: usize = kept.iter().map(|letter| letter.raw.len()).sum();
        while kept.len() > limits.max_entries || bytes > limits.max_bytes {
            bytes -= kept.pop_front().map_or(bytes, |oldest| oldest.raw.len());
        }
        std::future::ready(Ok(())).boxed()
    }

    fn letters<'a>(
        &'a self,
        count: usize,
        entry: Option<&'a str>,
    ) -> BoxFuture<'a, Result<Vec<KeptLetter>, StoreError>> {
        let kept = self.letters.lock().unwrap_or_else(PoisonError::into_inner);
        let newest = kept
            .iter()
            .enumerate()
            .rev()
            .map(|(index, letter)| KeptLetter { entry: index.to_string(), letter: letter.clone() });
        let found = newest.filter(|kept| entry.is_none_or(|entry| kept.entry == entry)).take(count).collect();
        std::future::ready(Ok(found)).boxed()
    }

    fn purge(&self) -> BoxFuture<'_, Result<usize, StoreError>> {
        let count = std::mem::take(&mut *self.letters.lock().unwrap_or_else(PoisonError::into_inner)).len();
        std::future::ready(Ok(count)).boxed()
    }
}
