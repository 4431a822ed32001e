//! The way out of quarantine: what proves good goes the ordinary way, and is removed once its events are acknowledged.

use std::{
    pin::Pin,
    sync::Arc,
    time::{Duration, SystemTime},
};

use bytes::Bytes;
use futures_util::future::select_all;
use tokio::{
    sync::watch,
    time::{Instant, sleep},
};
use tracing::{debug, info, warn};

use crate::{
    batch::Batch,
    dead_letters::{DeadLetter, DeadLetterLimits, DeadLetterStore},
    delivery::{Delivery, StoreError},
    event::TokenSeed,
    failpoint,
    metrics::{Metrics, QuarantineResult},
    quarantine::{Held, QuarantineStore},
    route::{Route, RouteTable},
    secrets::Secrets,
    shutdown::Phase,
    signature::Verifiers,
};

/// Bodies that are looked at with one question.
const PAGE: usize = 100;
/// How long a replica that says nothing more keeps the others from looking.
const LEASE: Duration = Duration::from_secs(15);
/// Between two looks at what came meanwhile.
const EVERY: Duration = Duration::from_secs(10);
/// Before the next attempt where a store failed, or another replica is at it.
const PAUSE: Duration = Duration::from_secs(2);

/// Takes bodies out of quarantine.
pub struct Releaser {
    /// Where they are.
    pub store: Arc<dyn QuarantineStore>,
    /// The way they go; answers only for acknowledged events.
    pub delivery: Arc<Delivery>,
    /// Where rejected items go.
    pub dead_letters: Arc<dyn DeadLetterStore>,
    /// Limits of these.
    pub letter_limits: DeadLetterLimits,
    /// The routes in force.
    pub routes: RouteTable,
    /// What they ask of senders.
    pub verifiers: Arc<Verifiers>,
    /// What is counted.
    pub metrics: Metrics,
    /// Time for one body.
    pub patience: Duration,
}

/// What a look came to.
#[derive(Debug, Default, Clone, PartialEq, Eq)]
pub struct ReleasePass {
    /// Bodies that were looked at.
    pub seen: usize,
    /// Those whose events are acknowledged, and that are gone.
    pub released: usize,
    /// Those that are still not good.
    pub not_good: usize,
    /// The name of the last that needs no second look with the same secrets.
    pub done_to: Option<String>,
}

/// Why a look ended before its end. What was not looked at stays.
#[derive(Debug, thiserror::Error)]
pub enum ReleaseError {
    /// The quarantine.
    #[error("read the quarantine: {0}")]
    Store(#[from] StoreError),
    /// Another replica.
    #[error("another replica is looking through the quarantine; try again in a minute")]
    Taken,
    /// The events of a body are not acknowledged.
    #[error("deliver body {entry} of route {route}: {failure}")]
    Undelivered {
        /// Its name.
        entry: String,
        /// The route.
        route: String,
        /// Why.
        failure: crate::delivery::Failure,
    },
}

impl Releaser {
    /// Looks at each body behind one with a name. Only one replica at a time does.
    ///
    /// # Errors
    /// [`ReleaseError`]; what was released until then is in `pass`.
    pub async fn look(&self, holder: &str, pass: &mut ReleasePass) -> Result<(), ReleaseError> {
        let outcome = self.look_at_all(holder, pass).await;
        if !matches!(outcome, Err(ReleaseError::Taken)) {
            // For the next one: at once.
            let _expires_anyway = self.store.lease(holder, Duration::from_millis(1)).await;
        }
        outcome
    }

    async fn look_at_all(&self, holder: &str, pass: &mut ReleasePass) -> Result<(), ReleaseError> {
        loop {
            let page = self.store.page(pass.done_to.as_deref(), PAGE).await?;
            if page.is_empty() {
                return Ok(());
            }
            for held in page {
                if !self.store.lease(holder, LEASE).await? {
                    return Err(ReleaseError::Taken);
                }
                pass.seen += 1;
                if self.release(&held).await? {
                    pass.released += 1;
                } else {
                    pass.not_good += 1;
                }
                pass.done_to = Some(held.entry);
            }
        }
    }

    /// Whether it proved good, and is gone.
    async fn release(&self, held: &Held) -> Result<bool, ReleaseError> {
        let Some(route) = self.routes.routes().iter().find(|route| route.name() == held.route) else {
            return Ok(false);
        };
        let Some(body) = self.store.body(&held.entry).await? else { return Ok(false) };
        let proof = self.verifiers.of(route).verify_kept(&held.headers, body, held.time);
        let Ok(good) = proof else { return Ok(false) };
        let body = good.bytes();
        match Batch::parse(&body[..]) {
            Ok(batch) => {
                let rejected = batch.rejected().clone();
                let deadline = Instant::now() + self.patience;
                let delivered = self.delivery.deliver(Arc::clone(route), batch, TokenSeed::now(), deadline).await;
                let receipt = delivered.map_err(|failure| ReleaseError::Undelivered {
                    entry: held.entry.clone(),
                    route: route.name().to_owned(),
                    failure,
                })?;
                info!(%route, bytes = body.len(), ids = receipt.total, new = receipt.new,
                    "a body proved good and left the quarantine: its signature fits a secret that holds now");
                let items = rejected.places().iter().map(|(reason, place)| (reason.code(), body.slice(place.clone())));
                self.bury(route, items).await?;
            }
            Err(error) => self.bury(route, [(error.code(), body.clone())]).await?,
        }
        failpoint::hit("after_release_from_quarantine");
        self.store.remove(std::slice::from_ref(&held.entry)).await?;
        self.metrics.of(route).quarantined(QuarantineResult::Released);
        Ok(true)
    }

    async fn bury(
        &self,
        route: &Route,
        items: impl IntoIterator<Item = (&'static str, Bytes)>,
    ) -> Result<(), StoreError> {
        if self.letter_limits.max_entries == 0 {
            return Ok(());
        }
        let time = humantime::format_rfc3339_millis(SystemTime::now()).to_string();
        let letter = |(reason, raw): (&str, Bytes)| DeadLetter {
            route: route.name().to_owned(),
            reason: reason.to_owned(),
            time: time.clone(),
            raw: raw.slice(..raw.len().min(self.letter_limits.max_item_bytes)),
        };
        let letters: Vec<_> = items.into_iter().map(letter).collect();
        if letters.is_empty() { Ok(()) } else { self.dead_letters.keep(&letters, self.letter_limits).await }
    }

    /// Looks at the start, when secrets change, and at what comes meanwhile, until shutdown. `holder` names it among
    /// the replicas.
    pub async fn run(self, holder: &str, mut phase: watch::Receiver<Phase>) {
        let mut secrets = self.verifiers.secrets();
        let mut pass = ReleasePass::default();
        loop {
            let next = match self.once(holder, &mut pass).await {
                Ok(()) => EVERY,
                Err(ReleaseError::Taken) => PAUSE,
                Err(ReleaseError::Store(error)) => {
                    debug!(%error, "the quarantine can't be read now");
                    PAUSE
                }
                Err(error) => {
                    warn!(%error, "a body that proved good stays in quarantine until its events are acknowledged");
                    PAUSE
                }
            };
            tokio::select! {
                () = sleep(next) => {}
                () = changed(&mut secrets) => pass = ReleasePass::default(),
                _leaving = phase.wait_for(|phase| *phase >= Phase::Refusing) => return,
            }
        }
    }

    async fn once(&self, holder: &str, pass: &mut ReleasePass) -> Result<(), ReleaseError> {
        self.metrics.quarantine_holds(self.store.count().await?);
        let behind = self.store.page(pass.done_to.as_deref(), 1).await?;
        if behind.is_empty() {
            return Ok(());
        }
        self.look(holder, pass).await?;
        self.metrics.quarantine_holds(self.store.count().await?);
        Ok(())
    }
}

/// Waits until one of the secrets changes; for ever if none can.
async fn changed(secrets: &mut [Secrets]) {
    let waits: Vec<_> = secrets.iter_mut().map(change_of).collect();
    if waits.is_empty() {
        std::future::pending::<()>().await;
    }
    select_all(waits).await;
}

fn change_of(secret: &mut Secrets) -> Pin<Box<dyn Future<Output = ()> + Send + '_>> {
    Box::pin(async move {
        if secret.changed().await.is_err() {
            std::future::pending::<()>().await;
        }
    })
}
