//! One walk through an outbox: reads pages, publishes what is due on several of them at once, and settles what NATS has.

use std::pin::pin;

use futures_util::{FutureExt, StreamExt, future::BoxFuture, stream::FuturesUnordered};

use super::{
    PAGE_PAUSE, Relay, RelayError,
    publish::PageOutcome,
    tracked::{Found, Tracked},
};
use crate::{
    delivery::{PublishError, StoreError},
    metrics::RelayMetrics,
    route::Route,
};

/// Pages that are published at the same time: so many events may wait in the client of NATS before one of a request.
const PAGES_AT_ONCE: usize = 3;

/// What to do while another replica has the lease.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum WithoutLease {
    /// Leave the work to it.
    Yield,
    /// Do the same work beside it.
    GoOn,
}

/// What became of the due entries of a walk.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Walked {
    /// Acknowledged by NATS on this walk.
    pub published: usize,
    /// Not acknowledged; they stay.
    pub failed: usize,
    /// What NATS said of the last of these.
    pub reason: Option<PublishError>,
    /// Acknowledged, on this walk or before, and still in the outbox because the store takes no deletes now.
    pub unsettled: usize,
    /// What the store said of these.
    pub refusal: Option<String>,
    /// Entries that can't be published, because they were not written by hookgate.
    pub poison: usize,
}

/// A walk, and why it stopped before the end of the outbox.
#[derive(Debug, Default)]
pub(super) struct WalkEnded {
    pub(super) walked: Walked,
    pub(super) stopped: Option<RelayError>,
}

/// Pages on their way to NATS and out of the outbox.
type OnTheirWay<'a> = FuturesUnordered<BoxFuture<'a, PageOutcome>>;

/// A walk that is going on.
pub(super) struct Walk<'a> {
    relay: &'a Relay,
    route: &'a Route,
    tracked: &'a mut Tracked,
    metrics: &'a RelayMetrics,
    without_lease: WithoutLease,
    /// The store takes no lease now.
    leaseless: bool,
    ended: WalkEnded,
}

impl<'a> Walk<'a> {
    pub(super) fn new(
        relay: &'a Relay,
        route: &'a Route,
        tracked: &'a mut Tracked,
        metrics: &'a RelayMetrics,
        without_lease: WithoutLease,
    ) -> Self {
        Self { relay, route, tracked, metrics, without_lease, leaseless: false, ended: WalkEnded::default() }
    }

    /// Walks to the end of the outbox, or until there is no use in going on. What is on its way then is still awaited:
    /// a missed acknowledgement means publishing the entry again.
    pub(super) async fn run(mut self) -> WalkEnded {
        let (relay, route) = (self.relay, self.route);
        let mut pages = OnTheirWay::new();
        let mut next = Some(0);
        self.tracked.begin_walk();
        while let Some(cursor) = next
            && self.ended.stopped.is_none()
        {
            match self.meanwhile(&mut pages, relay.outbox.page(route, cursor)).await {
                Ok(page) => {
                    next = (page.next != 0).then_some(page.next);
                    let found = self.tracked.sort(route, page.entries, &mut self.ended.walked.poison);
                    self.begin(found, &mut pages).await;
                }
                Err(error) => self.stop(error.into()),
            }
            while pages.len() >= PAGES_AT_ONCE
                && let Some(outcome) = pages.next().await
            {
                self.conclude(outcome).await;
            }
        }
        while let Some(outcome) = pages.next().await {
            self.conclude(outcome).await;
        }
        if self.ended.stopped.is_none() {
            self.tracked.end_walk();
        }
        self.ended
    }

    /// Awaits something while the pages on their way go on.
    async fn meanwhile<T>(&mut self, pages: &mut OnTheirWay<'a>, awaited: impl Future<Output = T>) -> T {
        let mut awaited = pin!(awaited);
        loop {
            tokio::select! {
                outcome = &mut awaited => return outcome,
                Some(outcome) = pages.next() => self.conclude(outcome).await,
            }
        }
    }

    /// Puts on its way what is to be done on a page.
    async fn begin(&mut self, found: Found, pages: &mut OnTheirWay<'a>) {
        // A page before this one may have failed while it was read.
        if self.ended.stopped.is_some() {
            return;
        }
        let Found { mut due, acknowledged } = found;
        if !due.is_empty() {
            match self.lease().await {
                Ok(true) => {}
                Ok(false) => {
                    self.stop(RelayError::Leased);
                    due.clear();
                }
                Err(error) => {
                    self.stop(error.into());
                    due.clear();
                }
            }
        }
        // One refusal tells for all of a walk; the next one asks again.
        let settles = self.ended.walked.refusal.is_none();
        if !settles {
            self.ended.walked.unsettled += acknowledged.len();
        }
        let acknowledged = if settles { acknowledged } else { Vec::new() };
        if due.is_empty() && acknowledged.is_empty() {
            if pages.is_empty() {
                tokio::time::sleep(PAGE_PAUSE).await;
            }
            return;
        }
        // Now, not when they have failed: should this page not come to its end, the next walk gets past it.
        for entry in &due {
            self.tracked.back_off(entry.name);
        }
        pages.push(self.relay.publish_page(self.route, due, acknowledged, self.metrics).boxed());
    }

    /// Whether this replica may publish: it has the lease, or there can be none now.
    async fn lease(&mut self) -> Result<bool, StoreError> {
        if self.without_lease == WithoutLease::GoOn || self.tracked.has_lease() {
            return Ok(true);
        }
        if self.tracked.yields() {
            return Ok(false);
        }
        match self.relay.take_lease(self.route).await {
            Ok(leased) => {
                if leased {
                    self.tracked.leased();
                }
                Ok(leased)
            }
            // Another replica may do the same work at the same time; both begin at a moment of their own.
            Err(StoreError::NoWrites(_)) => {
                if !self.leaseless {
                    tokio::time::sleep(self.tracked.some_time()).await;
                }
                self.leaseless = true;
                self.tracked.leased();
                Ok(true)
            }
            Err(error) => Err(error),
        }
    }

    /// Takes note of what became of a page.
    async fn conclude(&mut self, outcome: PageOutcome) {
        let PageOutcome { published, failed, untried, was_sent, settlements, settled } = outcome;
        let mut trouble = None;
        let only_failed = published.is_empty() && !failed.is_empty();
        for (name, error) in failed {
            self.ended.walked.failed += 1;
            if matches!(error, PublishError::Unavailable(_)) {
                self.tracked.was_not_tried(name);
            }
            // Said of this event, or of this address, alone.
            if matches!(error, PublishError::Refused(_) | PublishError::NoStream(_)) {
                self.ended.walked.reason = Some(error);
            } else {
                trouble = Some(error);
            }
        }
        for name in untried {
            self.tracked.was_not_tried(name);
        }
        self.ended.walked.published += published.len();
        for (name, ack) in published {
            self.tracked.acknowledged(name, ack);
        }
        match settled {
            Ok(()) => self.tracked.settled(&settlements),
            Err(StoreError::NoWrites(refusal)) => {
                self.ended.walked.unsettled += settlements.len();
                self.ended.walked.refusal = Some(refusal);
            }
            Err(error) => self.stop(error.into()),
        }
        // Not this or that event: everything. The others would only wait in the same way.
        if let Some(trouble) = trouble {
            self.stop(trouble.into());
        }
        if only_failed && self.without_lease == WithoutLease::Yield {
            self.give_up_lease(was_sent).await;
        }
    }

    /// Perhaps it is only this replica that can't publish.
    async fn give_up_lease(&mut self, was_sent: bool) {
        // If it could not even try, it costs nothing to ask again soon.
        self.tracked.give_up_lease(was_sent);
        match self.relay.give_up_lease(self.route).await {
            Ok(_) | Err(StoreError::NoWrites(_)) => {}
            Err(error) => self.stop(error.into()),
        }
    }

    /// The first reason counts.
    fn stop(&mut self, reason: RelayError) {
        self.ended.stopped.get_or_insert(reason);
    }
}
