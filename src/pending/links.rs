//! The connections of a store: one, or in a cluster one for each hash tag.

use std::{
    collections::HashMap,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use futures_util::{FutureExt, future::select_all};
use tokio::sync::watch;
use tokio_util::task::TaskTracker;

use super::{
    access::{Access, Found},
    cluster::tag,
    link::{ConnectionCheck, Link},
};
use crate::{
    readiness::{Contact, Reporter},
    supervision::supervise,
};

/// How often a cluster that is down is said to be so, if that is due.
const REMIND: Duration = Duration::from_secs(5);

/// The links of a store, by the keys that are asked for.
pub(super) struct Links {
    access: Access,
    timeout: Duration,
    tasks: TaskTracker,
    /// Of everything, where there is one server.
    one: Option<Arc<Link>>,
    by_tag: Mutex<HashMap<String, Arc<Link>>>,
    report: Reporter,
    /// How often it was said whom to follow.
    watched: Arc<AtomicU64>,
}

impl Links {
    /// In a cluster there are none yet.
    pub(super) fn new(access: Access, timeout: Duration, tasks: TaskTracker) -> Self {
        let report = Reporter::new("redis");
        Self { access, timeout, tasks, one: None, by_tag: Mutex::default(), report, watched: Arc::default() }
    }

    pub(super) const fn access(&self) -> &Access {
        &self.access
    }

    /// Whether each tag has a connection of its own.
    pub(super) const fn is_cluster(&self) -> bool {
        matches!(self.access.found(), Found::In(_))
    }

    /// The only connection.
    pub(super) fn connect_all(&mut self, check: ConnectionCheck) -> Arc<Link> {
        let link = self.spawn(check, self.report.clone());
        self.one = Some(Arc::clone(&link));
        link
    }

    /// One more, for who must not share.
    pub(super) fn connect_apart(&self, check: ConnectionCheck) -> Arc<Link> {
        let report = if self.is_cluster() { Reporter::of_a_part("redis") } else { Reporter::new("redis") };
        self.spawn(check, report)
    }

    /// The connection for all keys with this key's tag.
    pub(super) fn connect(&self, key: &str, check: ConnectionCheck) -> Arc<Link> {
        let link = self.spawn(check, Reporter::of_a_part("redis"));
        self.by_tag().insert(tag(key).to_owned(), Arc::clone(&link));
        link
    }

    /// The connection for a key. Nobody opened one for what a route left behind that is not configured.
    pub(super) fn of(&self, key: &str) -> Arc<Link> {
        if let Some(link) = &self.one {
            return Arc::clone(link);
        }
        let open = self.by_tag().get(tag(key)).cloned();
        open.unwrap_or_else(|| self.connect(key, find(key)))
    }

    fn spawn(&self, check: ConnectionCheck, report: Reporter) -> Arc<Link> {
        let (link, keep) = Link::new(self.access.clone(), self.timeout, check, report);
        self.tasks.spawn(keep);
        Arc::new(link)
    }

    fn by_tag(&self) -> std::sync::MutexGuard<'_, HashMap<String, Arc<Link>>> {
        self.by_tag.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// How the store is, in a cluster as the worst of the connections that were opened so far.
    pub(super) fn contact(&self) -> watch::Receiver<Contact> {
        self.report.subscribe()
    }

    /// Follows the connections that were opened so far, in a cluster.
    pub(super) fn watch(&self) {
        if !self.is_cluster() {
            return;
        }
        let mine = self.watched.fetch_add(1, Ordering::SeqCst) + 1;
        let watched = Arc::clone(&self.watched);
        let parts: Vec<_> = self.by_tag().values().map(|link| link.contact()).collect();
        let report = self.report.clone();
        self.tasks.spawn(async move {
            let mut parts = parts;
            supervise!(
                "the contact to the cluster",
                follow(&mut parts, &report, || watched.load(Ordering::SeqCst) == mine)
            );
        });
    }
}

/// Ends when others are followed.
async fn follow(parts: &mut [watch::Receiver<Contact>], report: &Reporter, still: impl Fn() -> bool) {
    if parts.is_empty() {
        return;
    }
    while still() {
        let worst = parts.iter_mut().map(|part| part.borrow_and_update().clone()).max_by_key(badness);
        report.set(worst.unwrap_or(Contact::Up));
        let changes = select_all(parts.iter_mut().map(|part| part.changed().boxed()));
        if let Ok((Err(_gone), ..)) = tokio::time::timeout(REMIND, changes).await {
            return;
        }
    }
}

const fn badness(contact: &Contact) -> u8 {
    match contact {
        Contact::Up => 0,
        Contact::NoWrites(_) => 1,
        Contact::Unreachable(_) => 2,
        Contact::Refused(_) => 3,
    }
}

/// Finds the node of a key, and demands nothing of it. SCARD is a right that hookgate has; of another kind than a SET the key is
/// there all the same.
pub(super) fn find(key: &str) -> ConnectionCheck {
    let key = key.to_owned();
    Arc::new(move |mut connection| {
        let mut ask = redis::cmd("SCARD");
        ask.arg(&key);
        async move {
            match ask.query_async::<usize>(&mut connection).await {
                Err(error) if error.code() != Some("WRONGTYPE") => Err(error),
                _ => Ok(None),
            }
        }
        .boxed()
    })
}
