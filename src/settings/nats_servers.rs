//! `nats.url`: a list of addresses, perhaps with a login in them.

use url::Url;

use crate::{nats_login::Login, redaction::without_credentials};

/// Why a list of servers can't be used.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(super) enum ServersError {
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

/// What the addresses say.
#[derive(Debug)]
pub(super) struct NatsUrl {
    /// The addresses, without credentials.
    pub addresses: Vec<String>,
    /// The one login: theirs, or that of other keys.
    pub login: Login,
    /// Whether one demands TLS.
    pub tls: bool,
}

impl NatsUrl {
    /// Reads a comma-separated list. Credentials in an address (`nats://user:password@host`, or
    /// `nats://token@host`) are taken out of it: the client library would ignore them. `login`: what other keys say.
    ///
    /// # Errors
    /// An address that is none, or two ways to log in.
    pub(super) fn parse(list: &str, login: Login) -> Result<Self, ServersError> {
        let mut read = Self { addresses: Vec::new(), login: Login::None, tls: false };
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
                if login != Login::None {
                    return Err(ServersError::TwoLogins("one in nats.url, one in keys of its own"));
                }
                if read.login != Login::None && read.login != found {
                    return Err(ServersError::TwoLogins("two addresses of nats.url have different credentials"));
                }
                read.login = found;
            }
            url.set_username("").and_then(|()| url.set_password(None)).map_err(|()| wrong("it names no host"))?;
            read.tls |= url.scheme() == "tls";
            read.addresses.push(url.to_string());
        }
        if read.login == Login::None {
            read.login = login;
        }
        Ok(read)
    }
}

fn login_of(url: &Url) -> Login {
    match (url.username(), url.password()) {
        ("", None) => Login::None,
        (token, None) => Login::Token(percent_decode(token)),
        (name, Some(password)) => Login::User { name: percent_decode(name), password: percent_decode(password) },
    }
}

/// A part of an address; `url` keeps it encoded.
pub(super) fn percent_decode(text: &str) -> String {
    let text = format!("x={}", text.replace('+', "%2B"));
    let decoded = url::form_urlencoded::parse(text.as_bytes()).next();
    decoded.map_or_else(String::new, |(_, value)| value.into_owned())
}
