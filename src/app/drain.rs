//! Shuts down without losing anything, in this order.
//!
//! After SIGTERM everything is served for `server.drain_delay` more; each response closes its connection. Then new requests get
//! 503, while those in flight are finished. Then acknowledged claims are settled, dead letters and spans are written, and
//! the listener closes last: a refused connection is final for some senders. A second signal ends the process at once.
//! What it was working on is in flight, and the relay of another replica takes it.

use std::{sync::Arc, time::Duration};

use tokio::sync::watch;
use tokio_util::task::TaskTracker;
use tracing::{error, info, warn};

use super::{Ended, generation::Generation};
use crate::{
    delivery::PendingStore,
    shutdown::{Phase, Shutdown},
};

/// How long settling acknowledged ids may take at the end.
const SETTLE_WITHIN: Duration = Duration::from_secs(2);
/// How long connections may take to write their responses at the end.
const CLOSE_WITHIN: Duration = Duration::from_secs(2);

/// What has to be finished.
pub(super) struct Drain {
    /// What is in force.
    pub(super) now: watch::Receiver<Arc<Generation>>,
    pub(super) ready: Arc<watch::Sender<bool>>,
    pub(super) pending: Arc<dyn PendingStore>,
    pub(super) dead_letter_tasks: TaskTracker,
    pub(super) exporting: TaskTracker,
    pub(super) connections: TaskTracker,
}

impl Drain {
    pub(super) async fn run(self, shutdown: &Shutdown) -> Ended {
        self.ready.send_replace(false);
        shutdown.enter(Phase::Leaving);
        let now = Arc::clone(&self.now.borrow());
        tokio::time::sleep(now.settings.drain_delay).await;
        info!("shutting down: finishing what is in flight");
        shutdown.enter(Phase::Refusing);
        let idle = now.webhooks.limits.idle(now.settings.request_deadline + SETTLE_WITHIN).await;
        if !idle {
            error!("requests are in flight beyond their deadline; exiting without them");
        }
        self.pending.close(SETTLE_WITHIN).await;
        shutdown.enter(Phase::Flushing);
        tokio::join!(
            ended(
                &self.dead_letter_tasks,
                SETTLE_WITHIN,
                "dead letters were lost: the store did not take them in time"
            ),
            ended(&self.exporting, SETTLE_WITHIN, "spans were lost: the collector did not take them in time"),
        );
        // Last of all: a sender whose connection is refused may never come back.
        shutdown.enter(Phase::Closing);
        ended(&self.connections, CLOSE_WITHIN, "some connections did not end in time").await;
        if idle { Ended::Drained } else { Ended::CutShort }
    }
}

/// Waits for tasks to end, and says so if they don't in time.
async fn ended(tasks: &TaskTracker, within: Duration, otherwise: &str) {
    tasks.close();
    if tokio::time::timeout(within, tasks.wait()).await.is_err() {
        warn!("{otherwise}");
    }
}
