//! The first half of a step: ids are claimed, and it is decided which of them need an event now, and for which address.

use std::sync::Arc;

use super::{Addresses, Claimed, Deliverable, Delivery, Failure, Proposal, State, StoreError, WithoutClaim};
use crate::{
    batch::EntityId,
    event::{Attempt, Token},
    failpoint,
    metrics::{ClaimCounts, Via},
    route::{Route, WhilePending},
    traces::ClaimSpan,
};

/// An id whose event has to be acknowledged before the batch may be.
#[derive(Debug, Clone, Copy)]
pub(super) struct Claim<'a> {
    pub(super) id: EntityId<'a>,
    pub(super) token: Token,
}

impl Deliverable for Claim<'_> {
    fn id(&self) -> EntityId<'_> {
        self.id
    }

    fn token(&self) -> Token {
        self.token
    }
}

/// The claims of a step.
pub(super) struct Claims<'a> {
    /// Those whose event goes to the address of the route.
    pub(super) own: Vec<Claim<'a>>,
    /// Those that were claimed for another address of the pending key.
    pub(super) elsewhere: Vec<(Arc<Route>, Vec<Claim<'a>>)>,
    pub(super) via: Via,
    /// Number of ids that are new.
    pub(super) new: usize,
    /// Number of ids that were not claimed because the outbox was full.
    pub(super) full: usize,
    /// Whether the claims are as safe in the store as `redis.durability` asks for.
    pub(super) durable: bool,
    /// Indices (in the batch) of ids that are marked, but whose marks are not as durable as `redis.durability` asks.
    pub(super) marks_not_durable: Vec<usize>,
    /// Number of ids that can't be claimed before their event to another address is acknowledged.
    pub(super) waits_for_another: usize,
    /// Why there are no claims at all.
    pub(super) undeduplicated: Option<StoreError>,
}

impl<'a> Claims<'a> {
    /// Adds the claims of ids whose marks were not durable.
    pub(super) fn add(&mut self, others: Vec<Claims<'a>>) {
        for other in others {
            self.own.extend(other.own);
            self.elsewhere.extend(other.elsewhere);
            self.new += other.new;
            self.full += other.full;
            self.durable &= other.durable;
            self.waits_for_another += other.waits_for_another;
            if other.undeduplicated.is_some() {
                // Nothing of the step is settled then, and the relay repeats what was claimed: rather one event too many.
                self.via = other.via;
                self.undeduplicated = other.undeduplicated;
            }
        }
    }

    /// The tokens for the route's address.
    pub(super) fn tokens(&self) -> Vec<Token> {
        self.own.iter().map(|claim| claim.token).collect()
    }
}

impl Delivery {
    /// Claims ids. Where the store can't, `redis.on_unavailable` decides.
    pub(super) async fn claim<'a>(&self, route: &Arc<Route>, proposal: &'a Proposal) -> Result<Claims<'a>, Failure> {
        let began = self.tracer.begin();
        let claimed = self.pending.claim(route, proposal.clone()).await.map(|claimed| proposal.recognize(claimed));
        failpoint::hit("after_claim");
        if began.is_some() {
            self.tracer.claimed(began, span(route, proposal, &claimed));
        }
        let (claimed, undeduplicated) = match claimed {
            Ok(claimed) => (claimed, None),
            Err(error) if self.policy.without_claim == WithoutClaim::Publish => {
                let states = proposal.tokens(Attempt::UNCLAIMED).map(State::New).collect();
                (Claimed { states, elsewhere: Addresses::default(), durable: false }, Some(error))
            }
            Err(error) => return Err(Failure::Unclaimed(error)),
        };
        let ids = proposal.ids().zip(&claimed.states);
        let duplicates = ids.filter(|(_, state)| **state == State::Done).map(|(id, _)| id.as_str());
        self.metrics.of(route).claimed(count(&claimed, undeduplicated.is_some()), duplicates);
        Ok(sort(route, proposal, claimed, undeduplicated))
    }
}

fn count(claimed: &Claimed, undeduplicated: bool) -> ClaimCounts {
    let mut counts = ClaimCounts::default();
    for state in &claimed.states {
        match state {
            State::New(_) if undeduplicated => {}
            State::New(_) => counts.new += 1,
            State::InFlight(_) => counts.in_flight += 1,
            State::Done => counts.duplicate += 1,
            State::Marked if claimed.durable => counts.coalesced += 1,
            // Not claimed, or claimed by another call.
            State::Marked | State::OutboxFull => {}
        }
    }
    counts
}

/// Decides which ids need an event now, and for which address.
fn sort<'a>(
    route: &Arc<Route>,
    proposal: &'a Proposal,
    claimed: Claimed,
    undeduplicated: Option<StoreError>,
) -> Claims<'a> {
    let Claimed { states, elsewhere, durable } = claimed;
    let via = if undeduplicated.is_some() { Via::Undeduplicated } else { Via::Direct };
    let mut claims = Claims {
        own: Vec::new(),
        elsewhere: Vec::new(),
        via,
        new: 0,
        full: 0,
        durable,
        marks_not_durable: Vec::new(),
        waits_for_another: 0,
        undeduplicated,
    };
    for ((id, state), index) in proposal.ids().zip(states).zip(proposal.range.clone()) {
        match state {
            State::New(token) => {
                claims.new += 1;
                claims.own.push(Claim { id, token });
            }
            State::InFlight(token) => {
                let claim = Claim { id, token };
                // Under `publish` an id is in flight only for an address that is not the route's.
                claims.waits_for_another += usize::from(proposal.while_pending == WhilePending::Publish);
                match elsewhere.of(token).filter(|address| !address.is_same_address(route)) {
                    None => claims.own.push(claim),
                    Some(address) => match claims.elsewhere.iter_mut().find(|(other, _)| other == address) {
                        Some((_, others)) => others.push(claim),
                        None => claims.elsewhere.push((Arc::clone(address), vec![claim])),
                    },
                }
            }
            State::Marked if durable => {}
            State::Marked => claims.marks_not_durable.push(index),
            State::Done => {}
            State::OutboxFull => claims.full += 1,
        }
    }
    claims
}

fn span<'a>(route: &'a Route, proposal: &Proposal, claimed: &Result<Claimed, StoreError>) -> ClaimSpan<'a> {
    let counts = claimed.as_ref().map_or_else(|_| ClaimCounts::default(), |claimed| count(claimed, false));
    ClaimSpan {
        seed: proposal.seed,
        start: proposal.range.start,
        route,
        ids: proposal.range.len(),
        new: counts.new,
        in_flight: counts.in_flight,
        problem: claimed.as_ref().err().map(ToString::to_string),
    }
}
