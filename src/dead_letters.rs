//! What could not be processed and never will be: rejected items, and bodies that are no batch. Kept for a
//! person to look at, within limits, so that nobody can fill the store through them.
//!
//! Written in the background once the answer is final (200, 400 or 413), never for a 503: those come back.

use std::{
    fmt,
    str::FromStr,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicUsize, Ordering},
    },
    time::{Duration, Instant, SystemTime},
};

use bytes::Bytes;
use futures_util::future::BoxFuture;
use hashbrown::HashMap;
use serde::Serialize;
use tokio::sync::{mpsc, watch};
use tokio_util::task::TaskTracker;
use tracing::warn;

use crate::{delivery::StoreError, route::Route, shutdown::Phase, supervision::supervise};

/// Letters written with one call.
const TOGETHER: usize = 100;
/// Bytes of letters after which a call takes no more: claims wait for it, on the same connection and in Redis.
const BYTES_TOGETHER: usize = 256 * 1024;
/// Most that may be kept of one letter (`dead_letters.max_item_bytes`).
pub const MAX_ITEM_BYTES: usize = MAX_QUEUED_BYTES;
/// Letters that may wait to be written.
const MAX_QUEUED: usize = 20_000;
/// Bytes of letters that may wait to be written.
const MAX_QUEUED_BYTES: usize = 8 << 20;
/// Between two letters about bodies that were too large.
const TOO_LARGE_EVERY: Duration = Duration::from_secs(600);
/// How often the age limit is enforced where nothing new comes.
const TRIM_EVERY: Duration = Duration::from_secs(600);

/// Limits of what is kept (`[dead_letters]`).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct DeadLetterLimits {
    /// Letters; 0 keeps none.
    pub max_entries: usize,
    /// Of one letter; the rest is cut off.
    pub max_item_bytes: usize,
    /// Of all letters.
    pub max_bytes: usize,
    /// Older ones are dropped.
    pub max_age: Duration,
}

/// A rejected item or body.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DeadLetter {
    /// Name of the route it came to.
    pub route: String,
    /// Machine-readable reason.
    pub reason: String,
    /// When, in RFC 3339.
    pub time: String,
    /// Its bytes, as far as the limit allows.
    pub raw: Bytes,
}

/// A letter that was written, and its name.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct KeptLetter {
    /// Name of the entry.
    pub entry: String,
    /// The letter.
    pub letter: DeadLetter,
}

/// A letter as an operator sees it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ReviewedLetter {
    /// The letter and its name.
    pub kept: KeptLetter,
    /// What became of its last replay.
    pub note: Option<ReplayNote>,
}

/// What became of a replay.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ReplayNote {
    /// When, in RFC 3339.
    pub time: String,
    /// Whether all of its ids got their events.
    pub good: bool,
    /// In words, without ids.
    pub outcome: String,
}

impl fmt::Display for ReplayNote {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(out, "{} {} {}", self.time, if self.good { "ok" } else { "failed" }, self.outcome)
    }
}

impl FromStr for ReplayNote {
    type Err = NotANote;

    fn from_str(text: &str) -> Result<Self, NotANote> {
        let mut parts = text.splitn(3, ' ');
        match (parts.next(), parts.next(), parts.next()) {
            (Some(time), Some(verdict @ ("ok" | "failed")), Some(outcome)) => {
                Ok(Self { time: time.to_owned(), good: verdict == "ok", outcome: outcome.to_owned() })
            }
            _ => Err(NotANote),
        }
    }
}

/// Another program wrote it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("it is no note of a replay")]
pub struct NotANote;

/// Where dead letters are kept.
pub trait DeadLetterStore: Send + Sync {
    /// Adds letters, and drops the oldest beyond the limits.
    fn keep<'a>(&'a self, letters: &'a [DeadLetter], limits: DeadLetterLimits)
    -> BoxFuture<'a, Result<(), StoreError>>;

    /// The newest letters, newest first; or the one with this name.
    fn letters<'a>(
        &'a self,
        count: usize,
        entry: Option<&'a str>,
    ) -> BoxFuture<'a, Result<Vec<KeptLetter>, StoreError>>;

    /// Drops all letters; how many there were.
    fn purge(&self) -> BoxFuture<'_, Result<usize, StoreError>>;
}

/// A letter about an event that a consumer gave up.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct GivenUp {
    /// Names stream, sequence and consumer: there is one letter of it, however often it is reported.
    pub event: String,
    /// The letter.
    pub letter: DeadLetter,
}

/// Where letters about given-up events are kept. They have limits of their own: a flood of bad items can't push them out.
pub trait GivenUpLetters: Send + Sync {
    /// Keeps letters, and drops the oldest beyond the limits of number and age. Which of them are new.
    fn keep_given_up<'a>(
        &'a self,
        letters: &'a [GivenUp],
        limits: DeadLetterLimits,
    ) -> BoxFuture<'a, Result<Vec<bool>, StoreError>>;
}

/// Takes letters without ever making a request wait.
#[derive(Clone)]
pub struct DeadLetters {
    queue: mpsc::Sender<DeadLetter>,
    queued_bytes: Arc<AtomicUsize>,
    limits: DeadLetterLimits,
    /// When a body that was too large was noted last, by route and webhook id.
    noted: Arc<Mutex<HashMap<(String, String), Instant>>>,
}

/// What is known of a body that was too large, as the content of its letter. Nothing in it came from its sender but a number.
#[derive(Serialize)]
struct TooLarge<'a> {
    /// Its bytes, if the head said so.
    #[serde(skip_serializing_if = "Option::is_none")]
    bytes: Option<u64>,
    /// Most bytes of a body.
    limit: usize,
    /// The webhook that its signature named.
    #[serde(skip_serializing_if = "Option::is_none")]
    webhook_id: Option<&'a str>,
}

/// Reason of the letter about a body that was too large.
pub const TOO_LARGE: &str = "body_too_large";

impl DeadLetters {
    /// Starts the task that writes the letters.
    #[must_use]
    pub fn start(
        dead_letter_store: Arc<dyn DeadLetterStore>,
        limits: DeadLetterLimits,
        phase: watch::Receiver<Phase>,
        tasks: &TaskTracker,
    ) -> Self {
        let (queue, mut letters) = mpsc::channel(MAX_QUEUED);
        let queued_bytes = Arc::<AtomicUsize>::default();
        let writer = LetterWriter { dead_letter_store, limits, queued_bytes: Arc::clone(&queued_bytes) };
        if limits.max_entries > 0 {
            let write =
                async move { supervise!("the writing of dead letters", writer.run(&mut letters, phase.clone())) };
            tasks.spawn(write);
        }
        Self { queue, queued_bytes, limits, noted: Arc::default() }
    }

    /// Notes a body that was too large, by what is known without it. Its sender was not verified and could write many of
    /// these: there is one letter in ten minutes for each route and webhook.
    pub fn note_too_large(&self, route: &Route, webhook_id: Option<&str>, bytes: Option<u64>, limit: usize) {
        let key = (route.name().to_owned(), webhook_id.unwrap_or_default().to_owned());
        let now = Instant::now();
        {
            let mut noted = self.noted.lock().unwrap_or_else(PoisonError::into_inner);
            if noted.get(&key).is_some_and(|last| now.duration_since(*last) < TOO_LARGE_EVERY) {
                return;
            }
            noted.insert(key, now);
        }
        let content = serde_json::to_vec(&TooLarge { bytes, limit, webhook_id }).unwrap_or_default();
        self.keep(route, [(TOO_LARGE, content.into())]);
    }

    /// Takes items of a request, as reason and bytes. What does not fit into the queue is counted in a
    /// warning and dropped.
    pub fn keep(&self, route: &Route, items: impl IntoIterator<Item = (&'static str, Bytes)>) {
        if self.limits.max_entries == 0 {
            return;
        }
        let time = humantime::format_rfc3339_millis(SystemTime::now()).to_string();
        let mut lost = 0;
        for (reason, raw) in items {
            // A copy: the letter must not keep the whole body in memory.
            let raw = Bytes::copy_from_slice(&raw[..raw.len().min(self.limits.max_item_bytes)]);
            let size = raw.len();
            let letter =
                DeadLetter { route: route.name().to_owned(), reason: reason.to_owned(), time: time.clone(), raw };
            let before = self.queued_bytes.fetch_add(size, Ordering::AcqRel);
            if before + size > MAX_QUEUED_BYTES || self.queue.try_send(letter).is_err() {
                self.queued_bytes.fetch_sub(size, Ordering::AcqRel);
                lost += 1;
            }
        }
        if lost > 0 {
            warn!(route = %route, lost, "dead letters could not be kept: too many at once");
        }
    }
}

struct LetterWriter {
    dead_letter_store: Arc<dyn DeadLetterStore>,
    limits: DeadLetterLimits,
    queued_bytes: Arc<AtomicUsize>,
}

impl LetterWriter {
    async fn run(&self, letters: &mut mpsc::Receiver<DeadLetter>, mut phase: watch::Receiver<Phase>) {
        let mut batch = Vec::with_capacity(TOGETHER);
        loop {
            let received = tokio::select! {
                received = letters.recv_many(&mut batch, TOGETHER) => received,
                () = tokio::time::sleep(TRIM_EVERY) => 0,
                _leaving = phase.wait_for(|phase| *phase >= Phase::Flushing), if !letters.is_closed() => {
                    letters.close();
                    continue;
                }
            };
            if received == 0 && letters.is_closed() {
                return;
            }
            self.queued_bytes.fetch_sub(batch.iter().map(|letter| letter.raw.len()).sum(), Ordering::AcqRel);
            let mut rest = batch.as_slice();
            loop {
                let (now, later) = rest.split_at(first_call(rest));
                self.write(now).await;
                rest = later;
                if rest.is_empty() {
                    break;
                }
            }
            batch.clear();
        }
    }

    /// With one call, which drops what is too old even where there is nothing to write.
    async fn write(&self, letters: &[DeadLetter]) {
        let Err(error) = self.dead_letter_store.keep(letters, self.limits).await else { return };
        match error {
            _ if letters.is_empty() => {}
            StoreError::Unknown(_) => warn!(letters = letters.len(), %error, "dead letters may not have been kept"),
            _ => warn!(lost = letters.len(), %error, "dead letters could not be kept"),
        }
    }
}

/// How many letters go with the next call.
fn first_call(letters: &[DeadLetter]) -> usize {
    let mut bytes = 0;
    let fit = letters.iter().take_while(|letter| {
        let fits = bytes < BYTES_TOGETHER;
        bytes += letter.raw.len();
        fits
    });
    fit.count()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_call_takes_much_more_than_its_bytes() {
        let letters = |sizes: &[usize]| -> Vec<DeadLetter> {
            let letter = |size: &usize| DeadLetter {
                route: "r".to_owned(),
                reason: "x".to_owned(),
                time: String::new(),
                raw: vec![0; *size].into(),
            };
            sizes.iter().map(letter).collect()
        };
        assert_eq!(first_call(&[]), 0);
        assert_eq!(first_call(&letters(&[10; 100])), 100);
        assert_eq!(first_call(&letters(&[65_536; 100])), 4);
        assert_eq!(first_call(&letters(&[MAX_ITEM_BYTES, 1])), 1, "however large it is");
    }
}
