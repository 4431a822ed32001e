//! The connections of a store: one, or in a cluster one for each hash tag.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, PoisonError, Weak},
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

/// Interval of checking cluster links, and of repeating "down" in the log where that is due.
const CHECK_EVERY: Duration = Duration::from_secs(1);

/// The links of a store. In a cluster each hash tag has one, else there is one for all keys.
pub(super) struct Links {
    access: Access,
    timeout: Duration,
    tasks: TaskTracker,
    /// The link for all keys; `None` in a cluster, and before [`Self::connect_single`].
    single: Option<Arc<Link>>,
    by_tag: Mutex<HashMap<String, Arc<Link>>>,
    report: Reporter,
}

impl Links {
    /// Opens no connection yet.
    pub(super) fn new(access: Access, timeout: Duration, tasks: TaskTracker) -> Self {
        let report = Reporter::new("redis");
        Self { access, timeout, tasks, single: None, by_tag: Mutex::default(), report }
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
        link
    }

    /// Returns the connection for a key. Opens one for a removed route, for which nobody opened one.
    pub(super) fn of(&self, key: &str) -> Arc<Link> {
        if let Some(link) = &self.single {
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

    /// How the store is. In a cluster: the worst of the connections that were opened so far.
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
    while let Some(links) = links.upgrade() {
        let mut parts: Vec<_> = links.by_tag().values().map(|link| link.contact()).collect();
        let worst = parts.iter_mut().map(|part| part.borrow_and_update().clone()).max_by_key(badness);
        links.report.set(worst.unwrap_or(Contact::Up));
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
