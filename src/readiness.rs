//! Whether the process may get traffic. A latch: once ready, only draining ends it, because a pod without a ready
//! sibling answers nobody, and a refused connection loses a batch that a 503 would have saved.
//!
//! With both stores down at the start, the process starts, answers 503, and becomes ready when they appear or after
//! 60 s without any answer. Wrong credentials, missing permissions or a server without JetStream keep it unready, so
//! that a bad rollout stops. So does an unreachable store that another replica reaches: then the address here is wrong, and
//! a pod that works must not be replaced by this one.

pub mod replicas;

use std::{
    net::SocketAddr,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use tokio::{sync::watch, time::Instant};
use tracing::{error, info, warn};

/// How long a store has to be unreachable before the process becomes ready without it: then its 503s, which
/// make the sender come back, are better than no answer.
pub const READY_WITHOUT_STORE: Duration = Duration::from_secs(60);
/// How often the other replicas are asked after that.
const ASK_AGAIN: Duration = Duration::from_secs(5);

/// What is known of a store.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Contact {
    /// It answers and does what it is asked to.
    Up,
    /// It answers and takes no writes now (full, or unable to save or to replicate), which passes. What is in it can be
    /// read, so the process is of use.
    NoWrites(String),
    /// Nothing answers there, or not in time.
    Unreachable(String),
    /// It answers, but won't do what is needed: credentials, permissions, a missing feature. Waiting does
    /// not help, so this never makes a process ready.
    Refused(String),
}

/// What is known of a store at first.
const NOT_YET: &str = "not connected yet";

impl Contact {
    /// Nothing is known of the store yet.
    #[must_use]
    pub fn not_yet() -> Self {
        Self::Unreachable(NOT_YET.to_owned())
    }

    /// Machine-readable name.
    #[must_use]
    pub const fn code(&self) -> &'static str {
        match self {
            Self::Up => "up",
            Self::NoWrites(_) => "no_writes",
            Self::Unreachable(_) => "unreachable",
            Self::Refused(_) => "refused",
        }
    }

    /// What is wrong, if something is.
    #[must_use]
    pub fn problem(&self) -> Option<&str> {
        match self {
            Self::Up => None,
            Self::NoWrites(reason) | Self::Unreachable(reason) | Self::Refused(reason) => Some(reason),
        }
    }

    /// Whether it answers, and to hookgate: it is up, or will be without anybody's help from here.
    #[must_use]
    pub const fn answers(&self) -> bool {
        matches!(self, Self::Up | Self::NoWrites(_))
    }
}

/// How often a store that is not up is said to be so still.
const REMIND_EVERY: Duration = Duration::from_secs(60);

/// Where the owner of a store's connection says how it is; the only place that logs it: once when it begins, once a
/// minute while it lasts, and once when it is over.
#[derive(Debug, Clone)]
pub struct Reporter {
    store: &'static str,
    contact: watch::Sender<Contact>,
    logged: Arc<Mutex<Logged>>,
    quiet: bool,
}

/// What was logged of a store that is not up.
#[derive(Debug, Default)]
struct Logged {
    down_since: Option<Instant>,
    /// State and reason, and when they were logged. Two that come in turns are each logged once a minute.
    lines: Vec<(&'static str, String, Instant)>,
}

impl Logged {
    /// Whether a line is due, and since when the store has been down.
    fn is_due(&mut self, contact: &Contact) -> (bool, Option<Instant>) {
        let Some(reason) = contact.problem() else {
            self.lines.clear();
            return (true, self.down_since.take());
        };
        let now = Instant::now();
        let since = *self.down_since.get_or_insert(now);
        self.lines.retain(|(.., at)| now - *at < REMIND_EVERY);
        let state = contact.code();
        if self.lines.iter().any(|(before, text, _)| *before == state && text == reason) {
            return (false, Some(since));
        }
        self.lines.push((state, reason.to_owned(), now));
        (true, Some(since))
    }
}

impl Reporter {
    /// Nothing is known yet of the store with this name.
    #[must_use]
    pub fn new(store: &'static str) -> Self {
        let contact = watch::Sender::new(Contact::not_yet());
        Self { store, contact, logged: Arc::default(), quiet: false }
    }

    /// The same of a part of it: the owner of the whole does the logging.
    #[must_use]
    pub fn of_a_part(store: &'static str) -> Self {
        Self { quiet: true, ..Self::new(store) }
    }

    /// Says how the store is now, and logs it if that is news, or has not been said for a minute.
    pub fn set(&self, now: Contact) {
        self.contact.send_if_modified(|before| {
            let news = *before != now;
            if news || self.is_down_in_the_log() {
                self.log(&now);
            }
            *before = now;
            news
        });
    }

    /// Says again that the store is not up, if that has not been said for a minute.
    pub fn remind(&self) {
        let now = self.contact.borrow();
        if self.is_down_in_the_log() {
            self.log(&now);
        }
    }

    fn is_down_in_the_log(&self) -> bool {
        self.logged().down_since.is_some()
    }

    fn log(&self, now: &Contact) {
        if self.quiet {
            return;
        }
        let store = self.store;
        let (due, since) = self.logged().is_due(now);
        if !due {
            return;
        }
        let down_seconds = since.map(|since| since.elapsed().as_secs()).filter(|seconds| *seconds > 0);
        match now {
            Contact::Up => info!(store, down_seconds, "store is up"),
            Contact::NoWrites(reason) => warn!(store, %reason, down_seconds, "store takes no writes now"),
            Contact::Unreachable(reason) => warn!(store, %reason, down_seconds, "store is unreachable"),
            Contact::Refused(reason) => error!(store, %reason, down_seconds, "store refuses to work with hookgate"),
        }
    }

    fn logged(&self) -> MutexGuard<'_, Logged> {
        self.logged.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// How the store is.
    #[must_use]
    pub fn subscribe(&self) -> watch::Receiver<Contact> {
        self.contact.subscribe()
    }
}

/// How a process became ready, as far as one store goes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[must_use]
pub enum FirstContact {
    /// The store answered.
    Met,
    /// It has been unreachable for [`READY_WITHOUT_STORE`], for all that is known also to everybody else.
    Without,
}

/// Waits for first contact with a store: until it answered once (what it can't take now is no reason to wait), or has been
/// unreachable for [`READY_WITHOUT_STORE`] without a break, and no other replica reaches it: `reached_by` says which one
/// does. Ends early, without contact, if the store's owner is gone.
pub async fn first_contact<F: Future<Output = Option<SocketAddr>>>(
    store_name: &'static str,
    mut store: watch::Receiver<Contact>,
    reached_by: impl Fn() -> F,
) -> FirstContact {
    let mut unreachable_since = None;
    let mut others: Option<Others> = None;
    loop {
        let patience = match &*store.borrow_and_update() {
            Contact::Up | Contact::NoWrites(_) => return FirstContact::Met,
            Contact::Unreachable(_) => {
                let since = *unreachable_since.get_or_insert_with(Instant::now);
                let again = others.as_ref().map(|others| others.asked + ASK_AGAIN);
                Some((since + READY_WITHOUT_STORE).max(again.unwrap_or(since)))
            }
            Contact::Refused(_) => {
                unreachable_since = None;
                None
            }
        };
        let changed = store.changed();
        let still_there = match patience {
            None => changed.await.is_ok(),
            Some(end) => match tokio::time::timeout_at(end, changed).await {
                Ok(changed) => changed.is_ok(),
                Err(_elapsed) => {
                    let reached_by = reached_by().await;
                    match (store.has_changed(), reached_by) {
                        (Ok(false), None) => return FirstContact::Without,
                        (Ok(_), Some(replica)) => {
                            others.get_or_insert_with(Others::default).reach(store_name, replica);
                            true
                        }
                        (still_there, _) => still_there.is_ok(),
                    }
                }
            },
        };
        if !still_there {
            return FirstContact::Without;
        }
    }
}

/// What was heard of other replicas while a store could not be reached.
#[derive(Debug)]
struct Others {
    asked: Instant,
    logged: Option<Instant>,
}

impl Default for Others {
    fn default() -> Self {
        Self { asked: Instant::now(), logged: None }
    }
}

impl Others {
    /// One of them reaches the store. Said once a minute.
    fn reach(&mut self, store: &'static str, replica: SocketAddr) {
        self.asked = Instant::now();
        if self.logged.is_none_or(|at| at.elapsed() >= REMIND_EVERY) {
            self.logged = Some(self.asked);
            error!(
                store,
                %replica,
                "not ready: another replica reaches this store, so the address here is wrong ({store}.url), or the network keeps this replica from it"
            );
        }
    }
}

#[cfg(test)]
mod tests {
    use tokio::time::timeout;

    use super::*;

    fn unreachable() -> Contact {
        Contact::Unreachable("connection refused".to_owned())
    }

    /// A replica that is alone.
    async fn first_contact(store: watch::Receiver<Contact>) -> FirstContact {
        super::first_contact("redis", store, async || None).await
    }

    #[tokio::test(start_paused = true)]
    async fn a_minute_without_an_answer_makes_ready() {
        let store = watch::Sender::new(unreachable());
        let just_before = READY_WITHOUT_STORE.saturating_sub(Duration::from_millis(1));
        assert!(timeout(just_before, first_contact(store.subscribe())).await.is_err());
        assert_eq!(timeout(READY_WITHOUT_STORE, first_contact(store.subscribe())).await, Ok(FirstContact::Without));
    }

    #[tokio::test(start_paused = true)]
    async fn a_store_that_another_replica_reaches_makes_ready_only_once_it_is_gone_there_too() {
        let store = watch::Sender::new(unreachable());
        let elsewhere = watch::Sender::new(Some(SocketAddr::from(([10, 0, 0, 1], 9090))));
        let waiting = super::first_contact("redis", store.subscribe(), || std::future::ready(*elsewhere.borrow()));
        tokio::pin!(waiting);
        assert!(timeout(Duration::from_secs(86_400), &mut waiting).await.is_err());
        // Reasons that alternate ask nobody more often.
        store.send_replace(Contact::Unreachable("no route to host".to_owned()));
        assert!(timeout(ASK_AGAIN, &mut waiting).await.is_err());
        elsewhere.send_replace(None);
        assert_eq!(timeout(2 * ASK_AGAIN, &mut waiting).await, Ok(FirstContact::Without));

        elsewhere.send_replace(Some(SocketAddr::from(([10, 0, 0, 1], 9090))));
        let waiting = super::first_contact("redis", store.subscribe(), || std::future::ready(*elsewhere.borrow()));
        tokio::pin!(waiting);
        assert!(timeout(2 * READY_WITHOUT_STORE, &mut waiting).await.is_err());
        store.send_replace(Contact::Up);
        assert_eq!(timeout(Duration::from_secs(1), &mut waiting).await, Ok(FirstContact::Met));
    }

    #[tokio::test(start_paused = true)]
    async fn a_refusal_never_makes_ready_and_starts_the_minute_anew() {
        let store = watch::Sender::new(Contact::Refused("wrong password".to_owned()));
        assert!(timeout(Duration::from_secs(86_400), first_contact(store.subscribe())).await.is_err());

        store.send_replace(unreachable());
        let waiting = first_contact(store.subscribe());
        tokio::pin!(waiting);
        assert!(timeout(Duration::from_secs(50), &mut waiting).await.is_err());
        store.send_replace(Contact::Refused("wrong password".to_owned()));
        assert!(timeout(Duration::from_secs(1), &mut waiting).await.is_err());
        store.send_replace(unreachable());
        assert!(timeout(Duration::from_secs(50), &mut waiting).await.is_err());
        assert!(timeout(Duration::from_secs(11), &mut waiting).await.is_ok());
    }

    #[tokio::test(start_paused = true)]
    async fn a_store_that_is_down_is_logged_once_a_minute_and_reasons_that_alternate_too() {
        let mut logged = Logged::default();
        let (reset, broken) =
            (Contact::Unreachable("reset by peer".to_owned()), Contact::Unreachable("broken pipe".to_owned()));
        let began = Instant::now();
        let mut lines = 0;
        while began.elapsed() < Duration::from_secs(600) {
            for contact in [&reset, &broken] {
                lines += usize::from(logged.is_due(contact).0);
                tokio::time::advance(Duration::from_millis(200)).await;
            }
        }
        assert_eq!(lines, 2 * 10);
        assert_eq!(logged.is_due(&Contact::Up), (true, Some(began)));
        assert!(logged.is_due(&reset).0, "the next time is news again");
    }

    #[tokio::test(start_paused = true)]
    async fn contact_makes_ready_at_once() {
        let store = watch::Sender::new(Contact::Up);
        assert_eq!(timeout(Duration::ZERO, first_contact(store.subscribe())).await, Ok(FirstContact::Met));
    }
}
