//! Settles acknowledged claims in the background, off the sender's path, many in one call.

use std::{
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;
use tracing::{debug, info, warn};

use super::{
    CALL,
    diagnosis::{takes_no_writes, wants_another_connection, words},
    link::{Current, Link},
    script::{self, SETTLE},
};
use crate::{
    delivery::Settlement,
    failpoint,
    metrics::{Operation, RedisTimes},
    route::Route,
};

/// Between two attempts while Redis takes no writes.
const NO_WRITES_PAUSE: Duration = Duration::from_secs(1);

/// Settles for one route.
pub(super) struct Settler {
    pub(super) link: Arc<Link>,
    pub(super) route: Arc<Route>,
    pub(super) timeout: Duration,
    pub(super) times: RedisTimes,
    /// Counts what is to be settled.
    pub(super) unsettled: Arc<AtomicUsize>,
}

impl Settler {
    pub(super) async fn run(&self, jobs: &mut mpsc::Receiver<Vec<Settlement>>, closing: &CancellationToken) {
        loop {
            let first = tokio::select! {
                first = jobs.recv() => first,
                () = closing.cancelled(), if !jobs.is_closed() => {
                    jobs.close();
                    continue;
                }
            };
            let Some(mut settlements) = first else { return };
            while settlements.len() < CALL
                && let Ok(more) = jobs.try_recv()
            {
                settlements.extend(more);
            }
            failpoint::hit("in_settle");
            self.settle(&settlements).await;
            self.unsettled.fetch_sub(settlements.len(), Ordering::Relaxed);
        }
    }

    /// Tries until Redis has taken it: meanwhile the queue fills up, and then newer ones are left to the
    /// relay.
    async fn settle(&self, settlements: &[Settlement]) {
        let mut waits = false;
        while let Some(mut current) = self.link.connected().await {
            let call =
                SETTLE.call::<usize>(&mut current.connection, |call| script::settle(call, &self.route, settlements));
            match self.times.time(Operation::Settle, tokio::time::timeout(self.timeout, call)).await {
                Ok(Ok(settled)) => {
                    if waits {
                        info!(route = %self.route, "acknowledged ids can be settled again");
                    }
                    debug!(route = %self.route, settled, "settled");
                    return;
                }
                Ok(Err(error)) if takes_no_writes(&error) => {
                    self.link.report_no_writes(&error);
                    if !waits {
                        warn!(route = %self.route, count = settlements.len(), error = words(&error), "acknowledged ids can't be settled now; it is tried again until Redis takes it");
                    }
                    waits = true;
                    tokio::time::sleep(NO_WRITES_PAUSE).await;
                }
                Ok(Err(error)) if !wants_another_connection(&error) => {
                    warn!(route = %self.route, count = settlements.len(), %error, "Redis refused to settle; these ids stay in the outbox");
                    return;
                }
                Ok(Err(_)) | Err(_) => self.wait_for_another(&current).await,
            }
        }
    }

    async fn wait_for_another(&self, failed: &Current) {
        self.link.report_trouble(failed);
        // Without another connection there will be nobody to settle with.
        let _next = self.link.connected_after(failed).await;
    }
}
