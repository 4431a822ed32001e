//! Bodies whose signature was wrong, kept until they prove good. After a mistake in a secret they are what the sender gave up on.
//!
//! Only bodies that are signed for a webhook id are kept, since only these can prove good later. Each configured webhook id has
//! a share of the limits that nobody else can fill; all others share one. A full share keeps what it has and refuses what
//! comes. The answer to the sender is the same in each case, and waits until the body is kept: it may have been the last
//! attempt.

use std::{
    sync::Arc,
    time::{Duration, SystemTime},
};

use base64::{Engine, engine::general_purpose::URL_SAFE_NO_PAD};
use bytes::Bytes;
use futures_util::future::BoxFuture;
use http::{HeaderMap, HeaderName, HeaderValue};
use sha2::{Digest, Sha256};
use tokio::{sync::Semaphore, time::timeout};
use tracing::{debug, warn};

use crate::{
    delivery::StoreError,
    metrics::{Metrics, QuarantineResult},
    route::Route,
    signature::{ClaimedSender, SIGNED_FOR_A_WEBHOOK, SignatureFailure, Verifier},
    supervision::DetachOnDrop,
};

/// Longest time that an answer waits until its body is kept.
const PATIENCE: Duration = Duration::from_secs(2);
/// Bodies of configured webhooks that are being kept at once.
const WEBHOOKS_AT_ONCE: usize = 8;
/// The same of everybody else.
const STRANGERS_AT_ONCE: usize = 2;
/// Between two warnings that a share is full.
const WARN_EVERY: Duration = Duration::from_secs(60);

/// Limits of all that is kept (`[quarantine]`).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct QuarantineLimits {
    /// Bodies.
    pub max_entries: usize,
    /// Their bytes.
    pub max_bytes: usize,
    /// Older ones are dropped.
    pub max_age: Duration,
}

impl QuarantineLimits {
    /// What one of these webhook ids may take; as much is left for everybody else together.
    #[must_use]
    pub fn share(self, webhooks: usize) -> Self {
        let shares = webhooks + 1;
        Self {
            max_entries: (self.max_entries / shares).max(1),
            max_bytes: self.max_bytes / shares,
            max_age: self.max_age,
        }
    }
}

/// Whose share a body takes.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum Share {
    /// Of a webhook id of a route, which both are configured.
    Webhook {
        /// The route's name.
        route: String,
        /// The id.
        id: String,
    },
    /// Of all webhook ids that no route knows.
    Strangers,
}

impl Share {
    /// As it is written into the store.
    #[must_use]
    pub fn text(&self) -> String {
        match self {
            Self::Webhook { route, id } => format!("{route} {id}"),
            Self::Strangers => String::new(),
        }
    }
}

/// A body whose signature was wrong.
#[derive(Debug, Clone)]
pub struct Captured {
    /// The route it came to.
    pub route: String,
    /// Whose share it takes.
    pub share: Share,
    /// When it came.
    pub time: SystemTime,
    /// The headers that sign it.
    pub headers: HeaderMap,
    /// All of it.
    pub body: Bytes,
}

impl Captured {
    /// The hash by which the same request is known again: a body under another signature is another request.
    #[must_use]
    pub fn hash(&self) -> String {
        let mut hash = Sha256::new();
        for part in [self.route.as_bytes(), headers_text(&self.headers).as_bytes(), &self.body] {
            hash.update(part.len().to_be_bytes());
            hash.update(part);
        }
        URL_SAFE_NO_PAD.encode(hash.finalize())
    }
}

/// A body that is kept, without its content.
#[derive(Debug, Clone)]
pub struct Held {
    /// Its name.
    pub entry: String,
    /// The route it came to.
    pub route: String,
    /// Whose share it takes, as it is written.
    pub share: String,
    /// When it came.
    pub time: SystemTime,
    /// The headers that sign it.
    pub headers: HeaderMap,
    /// Its bytes.
    pub bytes: usize,
}

/// What became of a body.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Keeping {
    /// It is kept now.
    Kept,
    /// It was kept before.
    Known,
    /// Its share is full.
    Full,
}

/// Where the bodies are kept.
pub trait QuarantineStore: Send + Sync {
    /// Keeps a body, if its share has room for it. Drops those that are too old.
    fn keep<'a>(
        &'a self,
        captured: &'a Captured,
        share: QuarantineLimits,
    ) -> BoxFuture<'a, Result<Keeping, StoreError>>;

    /// Some of those that are kept, oldest first, behind one with a name.
    fn page<'a>(&'a self, behind: Option<&'a str>, count: usize) -> BoxFuture<'a, Result<Vec<Held>, StoreError>>;

    /// The content of one, if it is still there.
    fn body<'a>(&'a self, entry: &'a str) -> BoxFuture<'a, Result<Option<Bytes>, StoreError>>;

    /// Drops some by their names; how many there were.
    fn remove<'a>(&'a self, entries: &'a [String]) -> BoxFuture<'a, Result<usize, StoreError>>;

    /// How many there are.
    fn count(&self) -> BoxFuture<'_, Result<usize, StoreError>>;

    /// Takes or renews the lease of who looks through them.
    fn lease<'a>(&'a self, holder: &'a str, duration: Duration) -> BoxFuture<'a, Result<bool, StoreError>>;
}

/// Keeps bodies on behalf of requests.
#[derive(Clone)]
pub struct Quarantine(Arc<Inner>);

struct Inner {
    store: Arc<dyn QuarantineStore>,
    share: QuarantineLimits,
    metrics: Metrics,
    webhooks: Semaphore,
    strangers: Semaphore,
    warned: std::sync::Mutex<Option<std::time::Instant>>,
}

impl Quarantine {
    /// `webhooks` is the number of configured webhook ids, on all routes that keep such bodies.
    #[must_use]
    pub fn new(store: Arc<dyn QuarantineStore>, limits: QuarantineLimits, webhooks: usize, metrics: Metrics) -> Self {
        Self(Arc::new(Inner {
            store,
            share: limits.share(webhooks),
            metrics,
            webhooks: Semaphore::new(WEBHOOKS_AT_ONCE),
            strangers: Semaphore::new(STRANGERS_AT_ONCE),
            warned: std::sync::Mutex::default(),
        }))
    }

    /// What of a request is to be kept; nothing of most.
    #[must_use]
    pub fn capture(
        route: &Route,
        verifier: &Verifier,
        headers: &HeaderMap,
        body: &Bytes,
        failure: SignatureFailure,
    ) -> Option<Captured> {
        let kind = matches!(failure, SignatureFailure::Wrong | SignatureFailure::UnknownId);
        if !kind || !route.quarantine() || body.is_empty() || !verifier.is_signed_for_a_webhook(headers) {
            return None;
        }
        let share = match verifier.claimed(headers) {
            ClaimedSender::Webhook(id) => Share::Webhook { route: route.name().to_owned(), id: id.to_owned() },
            ClaimedSender::Anybody | ClaimedSender::Stranger => Share::Strangers,
        };
        let of_signature = |(name, value): (&HeaderName, &HeaderValue)| {
            SIGNED_FOR_A_WEBHOOK.contains(name).then(|| (name.clone(), value.clone()))
        };
        Some(Captured {
            route: route.name().to_owned(),
            share,
            time: SystemTime::now(),
            headers: headers.iter().filter_map(of_signature).collect(),
            body: body.clone(),
        })
    }

    /// Keeps it, also if the request is dropped meanwhile. `held` is dropped when that is done.
    pub async fn keep(&self, route: &Route, captured: Captured, held: impl Send + 'static) {
        let (inner, route) = (Arc::clone(&self.0), route.clone());
        let work = async move {
            let result = timeout(PATIENCE, inner.keep(&captured)).await;
            let result =
                result.unwrap_or_else(|_elapsed| Err(StoreError::Unknown(format!("not kept within {PATIENCE:?}"))));
            inner.report(&route, &captured, result);
            drop(held);
        };
        DetachOnDrop::new(work).await;
    }
}

impl Inner {
    async fn keep(&self, captured: &Captured) -> Result<Option<Keeping>, StoreError> {
        let _permit = match captured.share {
            Share::Webhook { .. } => self.webhooks.acquire().await.ok(),
            Share::Strangers => match self.strangers.try_acquire() {
                Ok(permit) => Some(permit),
                Err(_busy) => return Ok(None),
            },
        };
        self.store.keep(captured, self.share).await.map(Some)
    }

    fn report(&self, route: &Route, captured: &Captured, result: Result<Option<Keeping>, StoreError>) {
        let bytes = captured.body.len();
        let counted = match result {
            Ok(Some(Keeping::Kept)) => {
                debug!(%route, bytes, "a body whose signature was wrong is in quarantine");
                QuarantineResult::Kept
            }
            Ok(Some(Keeping::Known)) => QuarantineResult::Known,
            Ok(Some(Keeping::Full) | None) => {
                if captured.share != Share::Strangers && self.may_warn() {
                    warn!(%route, bytes, "the quarantine has no room left for this webhook: mend its secret, or raise [quarantine]; what comes now is lost if its sender gives up");
                }
                QuarantineResult::Full
            }
            Err(error) => {
                if self.may_warn() {
                    warn!(%route, bytes, %error, "a body whose signature was wrong could not be kept");
                }
                QuarantineResult::Failed
            }
        };
        self.metrics.of(route).quarantined(counted);
    }

    fn may_warn(&self) -> bool {
        let mut warned = self.warned.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        let now = std::time::Instant::now();
        let due = warned.is_none_or(|last| now.duration_since(last) >= WARN_EVERY);
        if due {
            *warned = Some(now);
        }
        due
    }
}

/// Headers as they are written into the store: a line for each.
#[must_use]
pub fn headers_text(headers: &HeaderMap) -> String {
    let lines = headers.iter().filter_map(|(name, value)| Some(format!("{name}: {}\n", value.to_str().ok()?)));
    lines.collect()
}

/// Reads them back.
#[must_use]
pub fn parse_headers(text: &str) -> HeaderMap {
    let lines = text.lines().filter_map(|line| line.split_once(": "));
    let parsed = lines.filter_map(|(name, value)| {
        Some((HeaderName::from_bytes(name.as_bytes()).ok()?, HeaderValue::from_str(value).ok()?))
    });
    let mut headers = HeaderMap::new();
    for (name, value) in parsed {
        headers.append(name, value);
    }
    headers
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn shares_fit_into_the_limits() {
        let limits = QuarantineLimits { max_entries: 1000, max_bytes: 64 << 20, max_age: Duration::from_secs(1) };
        let share = limits.share(3);
        assert_eq!((share.max_entries, share.max_bytes), (250, 16 << 20));
        assert_eq!(limits.share(0).max_entries, 1000);
    }

    #[test]
    fn headers_are_read_as_they_are_written() {
        let mut headers = HeaderMap::new();
        headers.insert("signature", HeaderValue::from_static("a: b="));
        headers.insert("x-signature", HeaderValue::from_static("c"));
        assert_eq!(parse_headers(&headers_text(&headers)), headers);
    }
}
