//! Reads what the stores hold in the background, so that no reader of the admin address waits for a store.

use std::{
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use tokio::{sync::watch, time::Instant};
use tracing::{debug, warn};

use crate::{
    delivery::{RouteContents, StoreContents, StoreError},
    metrics::Metrics,
    readiness::Contact,
    route::Route,
    shutdown::Phase,
    supervision::supervise,
};

/// Between two looks.
const EVERY: Duration = Duration::from_secs(2);

/// What was read last, beside the gauges.
#[derive(Debug, Clone, Default)]
pub struct StoreGauges(Arc<Mutex<Reading>>);

/// One look.
#[derive(Debug, Clone, Default)]
pub struct Reading {
    /// When the store last said what it holds.
    pub at: Option<Instant>,
    /// Version of its server.
    pub server_version: Option<String>,
}

impl StoreGauges {
    /// What was read last.
    #[must_use]
    pub fn reading(&self) -> Reading {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Looks again and again, and at once whenever the store comes back. While it is down, the gauges keep
    /// what it said last.
    pub async fn run(
        self,
        store: Arc<dyn StoreContents>,
        metrics: Metrics,
        contact: watch::Receiver<Contact>,
        phase: watch::Receiver<Phase>,
    ) {
        supervise!("the counting of what Redis holds", self.count(&*store, &metrics, contact.clone(), phase.clone()));
    }

    async fn count(
        &self,
        store: &dyn StoreContents,
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
                    Err(StoreError::Refused(problem)) => {
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

    async fn look(&self, store: &dyn StoreContents, metrics: &Metrics) -> Result<(), StoreError> {
        let gauges = metrics.gauges();
        let routes: Vec<Arc<Route>> = gauges.iter().map(|gauge| Arc::clone(gauge.route())).collect();
        let all = store.contents(&routes).await?;
        for (gauge, RouteContents { pending, outbox }) in gauges.iter().zip(all) {
            gauge.set(pending, outbox);
        }
        let server_version = store.server_version().await;
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = Reading { at: Some(Instant::now()), server_version };
        Ok(())
    }
}
