//! The servers of a NATS system: addresses, options of a connection, and what a failed one says.

use std::{
    collections::{BTreeSet, HashMap},
    time::Duration,
};

use async_nats::{Client, ConnectOptions, Event, ServerError};
use tokio::sync::watch;

use super::{
    diagnosis::{self, is_denial},
    login,
};
use crate::{nats_login::Login, readiness::Contact, tls::TlsFiles};

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
    tls: Option<TlsFiles>,
}

impl Servers {
    /// Servers at these addresses (`nats://host:port`, without credentials). `tls`: nothing but TLS will do, with these
    /// files. (A server may ask for it anyway.)
    #[must_use]
    pub const fn new(addresses: Vec<String>, login: Login, tls: Option<TlsFiles>) -> Self {
        Self { addresses, login, tls }
    }

    /// The servers, for messages.
    #[must_use]
    pub fn names(&self) -> String {
        self.addresses.join(",")
    }

    /// The options of every connection hookgate makes.
    pub(super) fn options(&self, name: &str) -> ConnectOptions {
        let options = login::options(&self.login)
            .name(name)
            .require_tls(self.tls.is_some())
            .custom_inbox_prefix(INBOX_PREFIX)
            .connection_timeout(CONNECT_TIMEOUT)
            .ping_interval(PING_INTERVAL)
            .max_reconnects(None)
            .reconnect_delay_callback(|attempt| {
                let steps = u32::try_from(attempt).unwrap_or(u32::MAX).min(10);
                (Duration::from_millis(50) * steps).min(RECONNECT_PAUSE)
            });
        let TlsFiles { ca, client } = self.tls.clone().unwrap_or_default();
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
