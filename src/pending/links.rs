//! The connections of a store: one, or in a cluster one for each hash tag.

use std::{
    collections::{HashMap, HashSet},
    sync::{Arc, Mutex, MutexGuard, PoisonError, Weak},
    time::{Duration, Instant},
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

/// Interval of checking cluster links, and of repeating "down" in the log where that is due.
const CHECK_EVERY: Duration = Duration::from_secs(1);
/// How long an unused connection for a removed route is kept.
const REMOVED_IDLE: Duration = Duration::from_secs(5);

/// The links of a store. In a cluster each hash tag has one, else there is one for all keys.
pub(super) struct Links {
    access: Access,
    timeout: Duration,
    tasks: TaskTracker,
    /// The link for all keys; `None` in a cluster, and before [`Self::connect_single`].
    single: Option<Arc<Link>>,
    by_tag: Mutex<HashMap<String, Arc<Link>>>,
    of_removed: Mutex<HashMap<String, OfRemoved>>,
    report: Reporter,
}

/// The connection to what a removed route left. What is wrong with it says nothing of the store.
struct OfRemoved {
    link: Arc<Link>,
    /// When it was asked for last.
    asked: Instant,
}

impl Links {
    /// Opens no connection yet.
    pub(super) fn new(access: Access, timeout: Duration, tasks: TaskTracker) -> Self {
        let report = Reporter::new("redis");
        Self { access, timeout, tasks, single: None, by_tag: Mutex::default(), of_removed: Mutex::default(), report }
    }

    pub(super) const fn access(&self) -> &Access {
        &self.access
    }

    /// Whether each tag has a connection of its own.
    pub(super) const fn is_cluster(&self) -> bool {
        matches!(self.access.found(), Found::In(_))
    }

    /// Opens the connection for all keys, outside of a cluster.
    pub(super) fn connect_single(&mut self, check: ConnectionCheck) {
        self.single = Some(self.spawn(check, self.report.clone()));
    }

    /// Opens a dedicated connection, for a user that must not share one.
    pub(super) fn connect_dedicated(&self, check: ConnectionCheck) -> Arc<Link> {
        let report = if self.is_cluster() { Reporter::of_a_part("redis") } else { Reporter::new("redis") };
        self.spawn(check, report)
    }

    /// Opens the connection for all keys with this key's hash tag, in a cluster.
    pub(super) fn connect(&self, key: &str, check: ConnectionCheck) -> Arc<Link> {
        let link = self.spawn(check, Reporter::of_a_part("redis"));
        self.by_tag().insert(tag(key).to_owned(), Arc::clone(&link));
        self.of_removed().remove(tag(key));
        link
    }

    /// Closes the connections for all other keys than these, once nobody uses them.
    pub(super) fn keep<'k>(&self, keys: impl IntoIterator<Item = &'k str>) {
        let tags: HashSet<&str> = keys.into_iter().map(tag).collect();
        self.by_tag().retain(|open, _| tags.contains(open.as_str()));
    }

    /// Returns the connection for a key. Opens one for a removed route when it is needed.
    pub(super) fn of(&self, key: &str) -> Arc<Link> {
        if let Some(link) = &self.single {
            return Arc::clone(link);
        }
        let open = self.opened(key);
        open.unwrap_or_else(|| {
            let mut of_removed = self.of_removed();
            let opened = of_removed.entry(tag(key).to_owned()).or_insert_with(|| {
                let link = self.spawn(find(key), Reporter::of_a_part("redis"));
                OfRemoved { link, asked: Instant::now() }
            });
            opened.asked = Instant::now();
            Arc::clone(&opened.link)
        })
    }

    /// Whether a key is one of a removed route.
    pub(super) fn is_of_removed(&self, key: &str) -> bool {
        self.of_removed().contains_key(tag(key))
    }

    fn spawn(&self, check: ConnectionCheck, report: Reporter) -> Arc<Link> {
        let (link, keep) = Link::new(self.access.clone(), self.timeout, check, report);
        self.tasks.spawn(keep);
        Arc::new(link)
    }

    fn by_tag(&self) -> MutexGuard<'_, HashMap<String, Arc<Link>>> {
        self.by_tag.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn of_removed(&self) -> MutexGuard<'_, HashMap<String, OfRemoved>> {
        self.of_removed.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// How the store is, in a cluster as the worst of the connections for routes and dead letters.
    pub(super) fn contact(&self) -> watch::Receiver<Contact> {
        self.report.subscribe()
    }

    /// Returns the connection that was opened for a key's hash tag, if one was.
    pub(super) fn opened(&self, key: &str) -> Option<Arc<Link>> {
        self.by_tag().get(tag(key)).cloned()
    }

    /// Gives a key's hash tag back the connection that it had before, or none.
    pub(super) fn put_back(&self, key: &str, link: Option<Arc<Link>>) {
        match link {
            Some(link) => self.by_tag().insert(tag(key).to_owned(), link),
            None => self.by_tag().remove(tag(key)),
        };
    }

    /// Starts the task that watches the connections of a cluster.
    pub(super) fn watch(self: &Arc<Self>) {
        if !self.is_cluster() {
            return;
        }
        let links = Arc::downgrade(self);
        self.tasks.spawn(async move { supervise!("the contact to the cluster", follow(&links)) });
    }
}

/// Reports the worst of a cluster's connections. Stops when [`Links`] is dropped.
async fn follow(links: &Weak<Links>) {
    let mut was_known = false;
    while let Some(links) = links.upgrade() {
        links.of_removed().retain(|_, of_removed| of_removed.asked.elapsed() < REMOVED_IDLE);
        let mut parts: Vec<_> = links.by_tag().values().map(|link| link.contact()).collect();
        let now = parts.iter_mut().map(|part| part.borrow_and_update().clone());
        // A connection that a reload brings says nothing of the cluster before it was tried.
        let worst = now.filter(|contact| !(was_known && *contact == Contact::not_yet())).max_by_key(badness);
        let worst = worst.unwrap_or(Contact::Up);
        was_known |= worst != Contact::not_yet();
        links.report.set(worst);
        drop(links);
        // After a while even without a change: others may have been opened, and "down" may have to be repeated.
        let changes = select_all(parts.iter_mut().map(|part| part.changed().boxed()));
        let _look_again = tokio::time::timeout(CHECK_EVERY, changes).await;
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

/// Finds the node of a key, and asks for nothing else. hookgate has the right to SCARD; WRONGTYPE also proves that the node has
/// the key.
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
