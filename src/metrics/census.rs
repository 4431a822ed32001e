//! Reads in the background what the stores hold, so that whoever looks never waits for a store.

use std::{
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use futures_util::future::BoxFuture;
use tokio::{sync::watch, time::Instant};
use tracing::{debug, warn};

use super::Metrics;
use crate::{pipeline::ClaimError, readiness::Contact, route::Route, shutdown::Phase, supervision::keep_on};

/// Between two looks.
const EVERY: Duration = Duration::from_secs(2);

/// What the store holds of a route.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Held {
    /// Pending ids.
    pub pending: usize,
    /// Entries of the outbox.
    pub outbox: usize,
}

/// What can be asked of the pending store without changing anything. A refusal is only an answer: nobody's
/// claim may suffer because somebody counts.
pub trait Holdings: Send + Sync {
    /// What it holds of each of these routes, in their order, at a cost that does not grow with what it holds.
    fn held<'a>(&'a self, routes: &'a [Arc<Route>]) -> BoxFuture<'a, Result<Vec<Held>, ClaimError>>;

    /// Version of the server, if there is one and it says so.
    fn server_version(&self) -> BoxFuture<'_, Option<String>>;
}

/// What was read last, beside the gauges.
#[derive(Debug, Clone, Default)]
pub struct Census(Arc<Mutex<Reading>>);

/// One look.
#[derive(Debug, Clone, Default)]
pub struct Reading {
    /// When the store last said what it holds.
    pub at: Option<Instant>,
    /// Version of its server.
    pub server_version: Option<String>,
}

impl Census {
    /// What was read last.
    #[must_use]
    pub fn reading(&self) -> Reading {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Looks again and again, and at once whenever the store comes back. While it is down, the gauges keep
    /// what it said last.
    pub async fn run(
        self,
        store: Arc<dyn Holdings>,
        metrics: Metrics,
        contact: watch::Receiver<Contact>,
        phase: watch::Receiver<Phase>,
    ) {
        keep_on!("the counting of what Redis holds", self.count(&*store, &metrics, contact.clone(), phase.clone()));
    }

    async fn count(
        &self,
        store: &dyn Holdings,
        metrics: &Metrics,
        mut contact: watch::Receiver<Contact>,
        mut phase: watch::Receiver<Phase>,
    ) {
        let work = async {
            let mut warned = false;
            loop {
                if contact.wait_for(Contact::answers).await.is_err() {
                    return;
                }
                match self.look(store, metrics).await {
                    Ok(()) => warned = false,
                    Err(ClaimError::Refused(problem)) => {
                        if !warned {
                            warn!(%problem, "Redis does not say what it holds, so metrics and status page can't; allow +scard and +hlen");
                        }
                        warned = true;
                    }
                    Err(error) => debug!(%error, "could not read what the store holds"),
                }
                tokio::time::sleep(EVERY).await;
            }
        };
        tokio::select! {
            () = work => {}
            _closing = phase.wait_for(|phase| *phase == Phase::Closing) => {}
        }
    }

    async fn look(&self, store: &dyn Holdings, metrics: &Metrics) -> Result<(), ClaimError> {
        let holders = metrics.holders();
        let routes: Vec<Arc<Route>> = holders.iter().map(|holder| Arc::clone(holder.route())).collect();
        let all = store.held(&routes).await?;
        for (holder, Held { pending, outbox }) in holders.iter().zip(all) {
            holder.set(pending, outbox);
        }
        let server_version = store.server_version().await;
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = Reading { at: Some(Instant::now()), server_version };
        Ok(())
    }
}
