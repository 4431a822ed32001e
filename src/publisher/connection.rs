//! The connection to NATS, and what the client's events mean.
//!
//! Facts behind the options: `publish` of the client is Ok into a queue while the server is dead, a frozen server
//! shows as connected until pings stay unanswered, and a wrong password loops silently; only the events tell. The
//! client says why it could not connect only where it asks which server to try next. Of a server's permissions it
//! says nothing but what they deny.

use std::sync::{Arc, Mutex, OnceLock, PoisonError};

use async_nats::{Client, ClientError, Event, ServerError};
use hashbrown::HashMap;
use tokio::{sync::watch, time::Instant};
use tokio_util::task::TaskTracker;
use tracing::{error, info, warn};

use super::{
    diagnosis::{self, denied, is_denial},
    servers::{INBOX_PREFIX, News, Servers},
};
use crate::{
    delivery::PublishError,
    readiness::Contact,
    supervision::{supervise, survived},
};

/// What the client's events add up to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct ConnectionStatus {
    /// Counts connections: a number that changed means that what was sent before may be gone.
    pub(super) epoch: u64,
    /// Whether there is a connection, and if not, why.
    pub(super) contact: Contact,
    /// What the server denied on this connection, in its words.
    pub(super) denied: Option<String>,
    /// That it denies us its answers on this connection, in its words: what is sent now can be stored, but its
    /// acknowledgement never arrives.
    pub(super) inbox_denied: Option<String>,
    /// The denial that was last written to the log, which is repeated on each new connection.
    logged: Option<String>,
}

impl ConnectionStatus {
    /// What the server denies.
    pub(super) fn denial(&self) -> Option<&str> {
        self.inbox_denied.as_deref().or(self.denied.as_deref())
    }

    /// The last connection on which nothing can be answered any more.
    pub(super) fn last_ended(&self) -> u64 {
        if self.problem().is_none() { self.epoch.saturating_sub(1) } else { self.epoch }
    }

    /// Why what is sent now can't be answered.
    fn problem(&self) -> Option<&str> {
        self.contact.problem().or(self.inbox_denied.as_deref())
    }
}

/// A connection that is made again whenever it breaks, for as long as the process lives.
#[derive(Debug, Clone)]
pub(super) struct Connection {
    pub(super) client: Client,
    pub(super) status: watch::Receiver<ConnectionStatus>,
    change: Arc<watch::Sender<ConnectionStatus>>,
    /// On which connection, and since when, nothing has been answered, although something was sent.
    pub(super) unanswered: Arc<watch::Sender<Option<(u64, Instant)>>>,
    denials: Arc<Denials>,
}

/// How often the server denied what concerns each subject. Of many denials a [`ConnectionStatus`] tells the last one.
#[derive(Debug, Default)]
struct Denials(Mutex<HashMap<String, u64>>);

/// The client keeps 128 events and drops more that come at once. After half as many, one may be missing.
const MAY_BE_DROPPED: u64 = 64;

/// The denials up to some moment.
#[derive(Debug, Clone, Copy)]
pub(super) struct DenialCount {
    of_subject: u64,
    all: u64,
}

impl DenialCount {
    /// Whether the subject may have been denied between that moment and now.
    pub(super) const fn may_have_grown(self, now: Self) -> bool {
        self.of_subject != now.of_subject || now.all - self.all >= MAY_BE_DROPPED
    }
}

impl Denials {
    fn count(&self, text: &str) {
        if let Some(subject) = text.split('"').nth(1) {
            // Each answer has a subject of its own.
            let subject = if subject.starts_with(INBOX_PREFIX) { INBOX_PREFIX } else { subject };
            *self.0.lock().unwrap_or_else(PoisonError::into_inner).entry_ref(subject).or_default() += 1;
        }
    }

    fn of(&self, subject: &str) -> DenialCount {
        let counts = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        DenialCount { of_subject: counts.get(subject).copied().unwrap_or_default(), all: counts.values().sum() }
    }
}

impl Connection {
    /// Version of the server that is, or was last, at the other end.
    pub(super) fn server_version(&self) -> Option<String> {
        Some(self.client.server_info().version).filter(|version| !version.is_empty())
    }

    /// Starts to connect and returns at once; `tasks` owns what sees to it that answers are heard.
    pub(super) async fn open(servers: &Servers, tasks: &TaskTracker) -> Result<Self, async_nats::ConnectError> {
        let status = Arc::new(watch::Sender::new(ConnectionStatus {
            epoch: 0,
            contact: Contact::Unreachable("not connected yet".to_owned()),
            denied: None,
            inbox_denied: None,
            logged: None,
        }));
        let (receiver, change) = (status.subscribe(), Arc::clone(&status));
        let client = Arc::new(OnceLock::<Client>::new());
        let for_events = Arc::clone(&client);
        let names = servers.names();
        let (judge, failures) = (servers.clone(), Arc::clone(&status));
        let news = Mutex::new(News::default());
        // The subjects are those of the route table, which has checked them, and of our own inbox.
        let options = servers.options("hookgate").retry_on_initial_connect().skip_subject_validation(true);
        // Asked before each attempt which server to try, and told what came of the ones before: nowhere else does
        // the client say why it could not connect. The choice stays its own.
        let options = options.reconnect_to_server_callback(move |servers, _info| {
            survived("the look at NATS servers that failed", || {
                let failed = news.lock().unwrap_or_else(PoisonError::into_inner).among(servers);
                if let Some(contact) = judge.judge_all(&failed) {
                    failures.send_modify(|now| now.contact = contact);
                }
            });
            std::future::ready(None)
        });
        let denials = Arc::<Denials>::default();
        let counted = Arc::clone(&denials);
        let options = options.event_callback(move |event| {
            survived("the reading of NATS' events", || {
                if let Event::ServerError(ServerError::Other(text)) = &event
                    && is_denial(text)
                {
                    counted.count(text);
                }
                apply(&status, &names, &event);
            });
            let lame_duck = if event == Event::LameDuckMode { for_events.get().cloned() } else { None };
            async move {
                if let Some(client) = lame_duck {
                    let server = client.server_info();
                    let (server, host, port) = (server.server_name, server.host, server.port);
                    info!(server, host, port, "NATS server is about to stop; moving to another one");
                    if let Err(error) = client.force_reconnect().await {
                        error!(server, host, port, %error, "could not leave the NATS server that is about to stop");
                    }
                }
            }
        });
        let connected = options.connect(servers.addresses.as_slice()).await?;
        client.get_or_init(|| connected.clone());
        let this = Self { client: connected, status: receiver, change, unanswered: Arc::default(), denials };
        let ear = this.clone();
        tasks.spawn(async move { supervise!("the watch over NATS' answers", ear.ack_watchdog()) });
        Ok(this)
    }

    /// The connection by its number, if what is sent over it now can be answered.
    ///
    /// # Errors
    /// [`PublishError::Unavailable`] with the reason.
    pub(super) fn usable(&self) -> Result<u64, PublishError> {
        let status = self.status.borrow();
        match status.problem() {
            None => Ok(status.epoch),
            Some(problem) => Err(PublishError::Unavailable(problem.to_owned())),
        }
    }

    /// How often the server has denied what was sent to a subject. It says so each time.
    pub(super) fn denials_of(&self, subject: &str) -> DenialCount {
        self.denials.of(subject)
    }

    /// What `this` denial would be of has just been allowed: the server takes a permission away and gives it back
    /// without a word, and without ending the connection.
    pub(super) fn permission_granted(&self, this: impl Fn(&str) -> bool) {
        if self.status.borrow().denied.is_none() {
            return;
        }
        self.change.send_if_modified(|now| {
            let before = now.denied.take_if(|denial| this(denial));
            before.is_some_and(|reason| {
                info!(%reason, "NATS has granted the permission");
                true
            })
        });
    }
}

/// Takes an event into account.
fn apply(status: &watch::Sender<ConnectionStatus>, servers: &str, event: &Event) {
    match event {
        Event::Connected => status.send_modify(|now| {
            let logged = now.logged.take();
            *now = ConnectionStatus {
                epoch: now.epoch + 1,
                contact: Contact::Up,
                denied: None,
                inbox_denied: None,
                logged,
            };
        }),
        Event::Disconnected | Event::Closed => status.send_modify(|now| {
            if now.contact == Contact::Up {
                now.contact = match &now.inbox_denied {
                    // Most likely left by ourselves, to find out whether that is over.
                    Some(denial) => denied(servers, denial),
                    None => Contact::Unreachable(format!("{servers}: connection lost")),
                };
            }
        }),
        Event::ServerError(ServerError::Other(text)) if is_denial(text) => {
            status.send_if_modified(|now| {
                let (place, text) = match of_inbox(text) {
                    // One of two subscriptions is enough to say so.
                    Some(_) if now.inbox_denied.is_some() => return false,
                    Some(text) => (&mut now.inbox_denied, text),
                    None => (&mut now.denied, text.as_str()),
                };
                // Comes for every message that is denied.
                let news = place.as_deref() != Some(text);
                *place = Some(text.to_owned());
                if news && now.logged.as_deref() != Some(text) {
                    error!(reason = %text, "NATS denied a permission: grant it; docs/permissions.md has all that hookgate needs");
                    now.logged = Some(text.to_owned());
                }
                news
            });
        }
        Event::ServerError(error) => warn!(%error, "NATS server reports an error"),
        Event::ClientError(ClientError::Other(text)) if text == "DNS error" => {
            status.send_modify(|now| now.contact = diagnosis::unknown_host(servers));
        }
        Event::SlowConsumer(_) => warn!("acknowledgements from NATS were dropped: more than the client can hold"),
        // Here only the kind of failure is known; the connector logs it in full before the next attempt.
        Event::ClientError(ClientError::Other(_)) | Event::LameDuckMode | Event::Draining => {}
        Event::ClientError(error) => warn!(%error, "NATS client reports an error"),
    }
}

/// The denial of a subscription to our inbox, without what the server adds to it on some occasions.
fn of_inbox(text: &str) -> Option<&str> {
    let (what, rest) = text.split_once('"')?;
    let subject = rest.split('"').next().filter(|subject| subject.starts_with(INBOX_PREFIX))?;
    what.to_ascii_lowercase().contains("subscription").then(|| &text[..what.len() + subject.len() + 2])
}
