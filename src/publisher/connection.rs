//! The connection to NATS: options, credentials, and what the client's events mean.
//!
//! Facts behind the options: `publish` of the client is Ok into a queue while the server is dead, a frozen
//! server shows as connected until pings stay unanswered, and a wrong password loops silently; only the
//! events tell.

use std::{
    sync::{Arc, OnceLock},
    time::Duration,
};

use async_nats::{Client, ClientError, ConnectOptions, Event, ServerError};
use tokio::{sync::watch, time::Instant};
use tokio_util::task::TaskTracker;
use tracing::{error, info, warn};
use url::Url;

use crate::readiness::Contact;

/// Prefix of the inboxes, below the usual `_INBOX`, so that both a general and a narrow permission fit.
pub const INBOX_PREFIX: &str = "_INBOX.hookgate";

/// How long a connection may take, the greeting included.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(2);
/// Longest pause between two attempts to connect.
const RECONNECT_PAUSE: Duration = Duration::from_millis(500);
/// A frozen server is noticed after two of these without an answer.
const PING_INTERVAL: Duration = Duration::from_secs(2);

/// How to log in.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub enum Login {
    /// Not at all.
    #[default]
    None,
    /// With a name and a password.
    User {
        /// The name.
        name: String,
        /// The password.
        password: String,
    },
    /// With a token.
    Token(String),
}

/// The servers of one NATS system.
#[derive(Debug, Clone)]
pub struct Servers {
    addresses: Vec<String>,
    login: Login,
}

/// Why a list of servers can't be used.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ServersError {
    /// Not an address.
    #[error(
        "{address:?} is not the address of a NATS server ({problem}); write nats://host:4222, several separated by commas"
    )]
    Address {
        /// The address without its credentials.
        address: String,
        /// What is wrong.
        problem: String,
    },
    /// Credentials in the address and in keys of their own, or different ones in two addresses.
    #[error("there is more than one way to log in: {0}; keep one")]
    TwoLogins(&'static str),
}

impl Servers {
    /// Reads a comma-separated list. Credentials in an address (`nats://user:password@host`, or
    /// `nats://token@host`) are taken out of it: the client library would ignore them.
    ///
    /// # Errors
    /// An address that is none, or two ways to log in.
    pub fn parse(list: &str, login: Login) -> Result<Self, ServersError> {
        let mut servers = Self { addresses: Vec::new(), login };
        let mut from_address: Option<Login> = None;
        for address in list.split(',').map(str::trim) {
            let with_scheme = if address.contains("://") { address.to_owned() } else { format!("nats://{address}") };
            let wrong = |problem: &str| ServersError::Address {
                address: crate::settings::without_credentials(address),
                problem: problem.to_owned(),
            };
            let mut url = Url::parse(&with_scheme).map_err(|error| wrong(&error.to_string()))?;
            if url.scheme() != "nats" {
                return Err(wrong("this version of hookgate speaks nats:// only"));
            }
            if url.host_str().is_none_or(str::is_empty) {
                return Err(wrong("it names no host"));
            }
            if !matches!(url.path(), "" | "/") || url.query().is_some() || url.fragment().is_some() {
                return Err(wrong("it has something behind the port"));
            }
            let found = login_of(&url);
            if found != Login::None {
                if servers.login != Login::None {
                    return Err(ServersError::TwoLogins("one in nats.url, one in keys of its own"));
                }
                if from_address.as_ref().is_some_and(|before| *before != found) {
                    return Err(ServersError::TwoLogins("two addresses of nats.url have different credentials"));
                }
                from_address = Some(found);
            }
            url.set_username("").and_then(|()| url.set_password(None)).map_err(|()| wrong("it names no host"))?;
            servers.addresses.push(url.to_string());
        }
        if let Some(login) = from_address {
            servers.login = login;
        }
        Ok(servers)
    }

    /// The servers, for messages.
    #[must_use]
    pub fn names(&self) -> String {
        self.addresses.join(",")
    }

    /// The options of every connection hookgate makes.
    fn options(&self, name: &str) -> ConnectOptions {
        let options = ConnectOptions::new()
            .name(name)
            .custom_inbox_prefix(INBOX_PREFIX)
            .connection_timeout(CONNECT_TIMEOUT)
            .ping_interval(PING_INTERVAL)
            .max_reconnects(None)
            .reconnect_delay_callback(|attempt| {
                let steps = u32::try_from(attempt).unwrap_or(u32::MAX).min(10);
                (Duration::from_millis(50) * steps).min(RECONNECT_PAUSE)
            });
        match &self.login {
            Login::None => options,
            Login::User { name, password } => options.user_and_password(name.clone(), password.clone()),
            Login::Token(token) => options.token(token.clone()),
        }
    }

    /// Connects for a command of the operator: once, with an error if that fails.
    ///
    /// # Errors
    /// What the client library says.
    pub async fn connect_once(&self) -> Result<Client, async_nats::ConnectError> {
        self.options("hookgate tail").connect(self.addresses.as_slice()).await
    }
}

fn login_of(url: &Url) -> Login {
    let decode = |text: &str| percent_decode(text);
    match (url.username(), url.password()) {
        ("", None) => Login::None,
        (token, None) => Login::Token(decode(token)),
        (name, Some(password)) => Login::User { name: decode(name), password: decode(password) },
    }
}

/// Percent-decodes a part of an address; `url` keeps it encoded.
fn percent_decode(text: &str) -> String {
    url::form_urlencoded::parse(format!("x={}", text.replace('+', "%2B")).as_bytes())
        .next()
        .map_or_else(|| text.to_owned(), |(_, value)| value.into_owned())
}

/// What the client's events add up to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Status {
    /// Counts connections: a number that changed means that what was sent before may be gone.
    pub(super) epoch: u64,
    /// Whether there is a connection, and if not, why.
    pub(super) contact: Contact,
    /// What the server denied on this connection, in its words.
    pub(super) denied: Option<String>,
    /// That it lets us hear no answers on this connection, in its words: what is sent now can be stored, and is
    /// acknowledged to nobody.
    pub(super) deaf: Option<String>,
    /// The denial that was last written to the log, which is repeated on each new connection.
    logged: Option<String>,
}

impl Status {
    /// What the server denies.
    pub(super) fn denial(&self) -> Option<&str> {
        self.deaf.as_deref().or(self.denied.as_deref())
    }
}

/// A connection that is made again whenever it breaks, for as long as the process lives.
#[derive(Debug, Clone)]
pub(super) struct Connection {
    pub(super) client: Client,
    pub(super) status: watch::Receiver<Status>,
    change: Arc<watch::Sender<Status>>,
    /// On which connection, and since when, nothing has been answered, although something was sent.
    pub(super) unheard: Arc<watch::Sender<Option<(u64, Instant)>>>,
}

impl Connection {
    /// Version of the server that is, or was last, at the other end.
    pub(super) fn server_version(&self) -> Option<String> {
        Some(self.client.server_info().version).filter(|version| !version.is_empty())
    }

    /// Starts to connect and returns at once; `tasks` owns what sees to it that answers are heard.
    pub(super) async fn open(servers: &Servers, tasks: &TaskTracker) -> Result<Self, async_nats::ConnectError> {
        let status = Arc::new(watch::Sender::new(Status {
            epoch: 0,
            contact: Contact::Unreachable("not connected yet".to_owned()),
            denied: None,
            deaf: None,
            logged: None,
        }));
        let (receiver, change) = (status.subscribe(), Arc::clone(&status));
        let client = Arc::new(OnceLock::<Client>::new());
        let for_events = Arc::clone(&client);
        let names = servers.names();
        let options = servers.options("hookgate").retry_on_initial_connect().event_callback(move |event| {
            apply(&status, &names, &event);
            let lame_duck = if event == Event::LameDuckMode { for_events.get().cloned() } else { None };
            async move {
                if let Some(client) = lame_duck {
                    info!("NATS server is about to stop; moving to another one");
                    if let Err(error) = client.force_reconnect().await {
                        error!(%error, "could not leave the NATS server that is about to stop");
                    }
                }
            }
        });
        let connected = options.connect(servers.addresses.as_slice()).await?;
        client.get_or_init(|| connected.clone());
        let this = Self { client: connected, status: receiver, change, unheard: Arc::default() };
        tasks.spawn(this.clone().listen_again());
        Ok(this)
    }

    /// What a denial would name in these words has just been allowed: the server takes a permission away and
    /// gives it back without a word, and without ending the connection.
    pub(super) fn granted(&self, named: &str) {
        if self.status.borrow().denied.is_none() {
            return;
        }
        self.change.send_if_modified(|now| {
            let before = now.denied.take_if(|text| text.contains(named));
            before.is_some_and(|reason| {
                info!(%reason, "NATS has granted the permission");
                true
            })
        });
    }

    /// Resolves when nothing can be answered on the present connection any more.
    pub(super) async fn lost(&self, epoch: u64) {
        let mut status = self.status.clone();
        // An error means that the client is gone, and the connection with it.
        let _gone = status.wait_for(|now| now.epoch != epoch || now.contact != Contact::Up || now.deaf.is_some()).await;
    }
}

/// Takes an event into account.
fn apply(status: &watch::Sender<Status>, servers: &str, event: &Event) {
    match event {
        Event::Connected => status.send_modify(|now| {
            let logged = now.logged.take();
            *now = Status { epoch: now.epoch + 1, contact: Contact::Up, denied: None, deaf: None, logged };
        }),
        Event::Disconnected | Event::Closed => status.send_modify(|now| {
            if now.contact == Contact::Up {
                now.contact = match &now.deaf {
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
                    Some(_) if now.deaf.is_some() => return false,
                    Some(text) => (&mut now.deaf, text),
                    None => (&mut now.denied, text.as_str()),
                };
                // Comes for every message that is denied.
                let news = place.as_deref() != Some(text);
                *place = Some(text.to_owned());
                if news && now.logged.as_deref() != Some(text) {
                    error!(reason = %text, "NATS denied a permission; see the README on what hookgate needs");
                    now.logged = Some(text.to_owned());
                }
                news
            });
        }
        Event::ServerError(error) => warn!(%error, "NATS server reports an error"),
        Event::ClientError(ClientError::Other(text)) => {
            let reason = format!("connect to {servers}: {text}");
            let contact = if is_refusal(text) {
                Contact::Refused(format!(
                    "{reason}; check nats.user, nats.password_file, nats.token_file or the credentials in nats.url"
                ))
            } else {
                Contact::Unreachable(reason)
            };
            status.send_modify(|now| now.contact = contact);
        }
        Event::ClientError(error) => warn!(%error, "NATS client reports an error"),
        Event::SlowConsumer(_) => warn!("acknowledgements from NATS were dropped: more than the client can hold"),
        Event::LameDuckMode | Event::Draining => {}
    }
}

/// How it is with servers that deny something.
pub(super) fn denied(servers: &str, denial: &str) -> Contact {
    Contact::Refused(format!("{servers}: {denial}; grant it, see the README"))
}

fn is_denial(text: &str) -> bool {
    text.to_ascii_lowercase().starts_with("permissions violation")
}

/// The denial of a subscription to our inbox, without what the server adds to it on some occasions.
fn of_inbox(text: &str) -> Option<&str> {
    let (what, rest) = text.split_once('"')?;
    let subject = rest.split('"').next().filter(|subject| subject.starts_with(INBOX_PREFIX))?;
    what.to_ascii_lowercase().contains("subscription").then(|| &text[..what.len() + subject.len() + 2])
}

fn is_refusal(text: &str) -> bool {
    let text = text.to_ascii_lowercase();
    text.contains("authorization") || text.contains("authentication")
}
