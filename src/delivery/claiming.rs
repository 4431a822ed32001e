//! The first half of a step: ids are claimed, and it is decided which of them need an event now, and for which address.

use std::sync::Arc;

use tracing::info;

use super::{Addresses, Claimed, Deliverable, Delivery, Failure, Proposal, State, StoreError, WithoutClaim};
use crate::{
    batch::EntityId,
    event::{Attempt, Token},
    failpoint,
    metrics::{ClaimCounts, Via},
    route::Route,
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
    /// Ids that are new.
    pub(super) new: usize,
    /// Ids that were not claimed because the outbox was full.
    pub(super) full: usize,
    /// Whether the claims are as safe in the store as `redis.durability` asks for.
    pub(super) durable: bool,
    /// Why there are no claims at all.
    pub(super) undeduplicated: Option<StoreError>,
}

impl Claims<'_> {
    /// The tokens for the route's address.
    pub(super) fn tokens(&self) -> Vec<Token> {
        self.own.iter().map(|claim| claim.token).collect()
    }
}

impl Delivery {
    /// Claims ids. Where the store can't, `redis.on_unavailable` decides.
    pub(super) async fn claim<'a>(&self, route: &Arc<Route>, proposal: &'a Proposal) -> Result<Claims<'a>, Failure> {
        if tracing::enabled!(target: "hookgate::entity", tracing::Level::INFO) {
            for id in proposal.ids() {
                info!(target: "hookgate::entity", route = %route, entity_id = %id, trace_id = %proposal.seed,
                    "{} Entity ID gefunden: {id}", route.action_title());
            }
        }
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
        self.metrics.of(route).claimed(count(&claimed.states, undeduplicated.is_some()), duplicates);
        Ok(sort(route, proposal, claimed, undeduplicated))
    }
}

fn count(states: &[State], undeduplicated: bool) -> ClaimCounts {
    let mut counts = ClaimCounts::default();
    for state in states {
        match state {
            State::New(_) if undeduplicated => {}
            State::New(_) => counts.new += 1,
            State::InFlight(_) => counts.in_flight += 1,
            State::Done => counts.duplicate += 1,
            State::OutboxFull => {}
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
    let mut claims = Claims { own: Vec::new(), elsewhere: Vec::new(), via, new: 0, full: 0, durable, undeduplicated };
    for (id, state) in proposal.ids().zip(states) {
        match state {
            State::New(token) => {
                claims.new += 1;
                claims.own.push(Claim { id, token });
            }
            State::InFlight(token) => {
                let claim = Claim { id, token };
                match elsewhere.of(token).filter(|address| !address.is_same_address(route)) {
                    None => claims.own.push(claim),
                    Some(address) => match claims.elsewhere.iter_mut().find(|(other, _)| other == address) {
                        Some((_, others)) => others.push(claim),
                        None => claims.elsewhere.push((Arc::clone(address), vec![claim])),
                    },
                }
            }
            State::Done => {}
            State::OutboxFull => claims.full += 1,
        }
    }
    claims
}

fn span<'a>(route: &'a Route, proposal: &Proposal, claimed: &Result<Claimed, StoreError>) -> ClaimSpan<'a> {
    let counts = count(claimed.as_ref().map_or(&[][..], |claimed| &claimed.states), false);
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
