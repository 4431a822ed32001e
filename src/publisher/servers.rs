//! The servers of a NATS system: addresses, options of a connection, and what a failed one says.

use std::{
    collections::{BTreeSet, HashMap},
    time::Duration,
};

use async_nats::{Client, ConnectOptions, Event, ServerError};
use tokio::sync::watch;
use url::Url;

use super::{
    diagnosis::{self, is_denial},
    login::Login,
};
use crate::{readiness::Contact, redaction::without_credentials, tls::TlsFiles};

/// Prefix of the inboxes, below the usual `_INBOX`, so that both a general and a narrow permission fit.
pub const INBOX_PREFIX: &str = "_INBOX.hookgate";

/// How long a connection may take, the greeting included.
pub(super) const CONNECT_TIMEOUT: Duration = Duration::from_secs(2);
/// Longest pause between two attempts to connect.
const RECONNECT_PAUSE: Duration = Duration::from_millis(500);
/// A frozen server is noticed after two of these without an answer.
const PING_INTERVAL: Duration = Duration::from_secs(2);

/// The servers of one NATS system.
#[derive(Debug, Clone)]
pub struct Servers {
    pub(super) addresses: Vec<String>,
    login: Login,
    tls: TlsFiles,
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
    pub fn parse(list: &str, login: Login, tls: TlsFiles) -> Result<Self, ServersError> {
        let mut servers = Self { addresses: Vec::new(), login, tls };
        let mut from_address: Option<Login> = None;
        for address in list.split(',').map(str::trim) {
            let with_scheme = if address.contains("://") { address.to_owned() } else { format!("nats://{address}") };
            let wrong = |problem: &str| ServersError::Address {
                address: without_credentials(address),
                problem: problem.to_owned(),
            };
            let mut url = Url::parse(&with_scheme).map_err(|error| wrong(&error.to_string()))?;
            if !matches!(url.scheme(), "nats" | "tls") {
                return Err(wrong("hookgate speaks nats:// and tls:// only"));
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

    /// Whether nothing but TLS will do: an address or a file of TLS says so. (A server may also ask for it.)
    #[must_use]
    pub fn wants_tls(&self) -> bool {
        !self.tls.is_empty() || self.addresses.iter().any(|address| address.starts_with("tls://"))
    }

    /// The options of every connection hookgate makes.
    pub(super) fn options(&self, name: &str) -> ConnectOptions {
        let options = self
            .login
            .options()
            .name(name)
            .require_tls(self.wants_tls())
            .custom_inbox_prefix(INBOX_PREFIX)
            .connection_timeout(CONNECT_TIMEOUT)
            .ping_interval(PING_INTERVAL)
            .max_reconnects(None)
            .reconnect_delay_callback(|attempt| {
                let steps = u32::try_from(attempt).unwrap_or(u32::MAX).min(10);
                (Duration::from_millis(50) * steps).min(RECONNECT_PAUSE)
            });
        let TlsFiles { ca, client } = self.tls.clone();
        let options = ca.into_iter().fold(options, ConnectOptions::add_root_certificates);
        client.into_iter().fold(options, |options, (cert, key)| options.add_client_certificate(cert, key))
    }

    /// Connects for a command of the operator: once, with an error if that fails. The other part of the answer is
    /// what the server denied since, in its words.
    ///
    /// # Errors
    /// What the client library says, and what to look at.
    pub async fn connect_once(&self) -> Result<(Client, watch::Receiver<Option<String>>), ConnectFailure> {
        let (denial, denied) = watch::channel(None);
        let options = self.options("hookgate command").event_callback(move |event| {
            if let Event::ServerError(ServerError::Other(text)) = event
                && is_denial(&text)
            {
                denial.send_replace(Some(text));
            }
            std::future::ready(())
        });
        let failed = |error: async_nats::ConnectError| {
            ConnectFailure(diagnosis::diagnose(&self.names(), &error.to_string(), &self.login))
        };
        options.connect(self.addresses.as_slice()).await.map(|client| (client, denied)).map_err(failed)
    }

    /// What the last attempts say of all servers: those that refuse have more to say than those that are away.
    pub(super) fn judge_all(&self, failed: &[async_nats::Server]) -> Option<Contact> {
        let each = failed.iter().filter_map(|server| {
            Some(diagnosis::diagnose(server.addr.as_url_str(), server.last_error.as_deref()?, &self.login))
        });
        let (refusing, away): (Vec<_>, Vec<_>) = each.partition(|contact| matches!(contact, Contact::Refused(_)));
        let words = |contacts: &[Contact]| {
            let words: BTreeSet<_> = contacts.iter().filter_map(Contact::problem).collect();
            words.into_iter().collect::<Vec<_>>().join("; ")
        };
        match (refusing.is_empty(), away.is_empty()) {
            (false, _) => Some(Contact::Refused(words(&refusing))),
            (true, false) => Some(Contact::Unreachable(words(&away))),
            (true, true) => None,
        }
    }
}

/// An operator's command can't connect.
#[derive(Debug, thiserror::Error)]
#[error("{}", .0.problem().unwrap_or_default())]
pub struct ConnectFailure(Contact);

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

/// Which attempts to connect have failed since the last look.
#[derive(Default)]
pub(super) struct News(HashMap<String, usize>);

impl News {
    pub(super) fn among(&mut self, mut servers: Vec<async_nats::Server>) -> Vec<async_nats::Server> {
        let failed = |server: &mut async_nats::Server| {
            let before = self.0.insert(server.addr.as_url_str().to_owned(), server.failed_attempts);
            server.failed_attempts > before.unwrap_or(0)
        };
        servers.extract_if(.., failed).collect()
    }
}
