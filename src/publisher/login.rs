//! Ways to log in to NATS.

use std::{
    fmt,
    path::{Path, PathBuf},
    time::{Duration, SystemTime},
};

use async_nats::{Auth, AuthError, ConnectOptions};
use base64::{Engine, engine::general_purpose::URL_SAFE_NO_PAD};
use nkeys::{KeyPair, KeyPairType};
use serde::Deserialize;

use crate::supervision::survived;

/// How to log in. What is secret about it is in no `Debug` output.
#[derive(Clone, PartialEq, Eq, Default)]
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
    /// With the seed of a user's key pair.
    Nkey(String),
    /// With a file that holds a user's JWT and seed, read again for each connection: the JWT ends one day.
    Credentials(PathBuf),
}

impl fmt::Debug for Login {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::None => f.write_str("None"),
            Self::User { name, password: _ } => f.debug_struct("User").field("name", name).finish_non_exhaustive(),
            Self::Token(_) => f.write_str("Token(..)"),
            Self::Nkey(_) => f.write_str("Nkey(..)"),
            Self::Credentials(path) => f.debug_tuple("Credentials").field(path).finish(),
        }
    }
}

/// Why something can't be logged in with. Holds nothing of it.
#[derive(Debug, thiserror::Error)]
pub enum LoginError {
    /// Can't be read.
    #[error("read secret file: {0}")]
    Read(#[from] std::io::Error),
    /// Not the seed of a user.
    #[error("it holds no seed of a NATS user (58 characters that begin with SU), as nk -gen user makes one")]
    Seed,
    /// Not a file of credentials.
    #[error("it holds no credentials of a NATS user: a JWT and a seed, each in its lines of BEGIN and END")]
    Credentials,
}

impl Login {
    /// With the text of a seed file.
    ///
    /// # Errors
    /// If it holds none of a user.
    pub fn nkey(text: &str) -> Result<Self, LoginError> {
        let seed = text.trim();
        user(seed).map(|_| Self::Nkey(seed.to_owned()))
    }

    /// With a credentials file.
    ///
    /// # Errors
    /// If it can't be read, or is something else.
    pub fn credentials(path: &Path) -> Result<Self, LoginError> {
        read_credentials(path)?;
        Ok(Self::Credentials(path.to_owned()))
    }

    /// Options of a connection that logs in so.
    pub(super) fn options(&self) -> ConnectOptions {
        match self {
            Self::None => ConnectOptions::new(),
            Self::User { name, password } => ConnectOptions::with_user_and_password(name.clone(), password.clone()),
            Self::Token(token) => ConnectOptions::with_token(token.clone()),
            Self::Nkey(seed) => ConnectOptions::with_nkey(seed.clone()),
            Self::Credentials(path) => {
                let path = path.clone();
                ConnectOptions::with_auth_callback(move |nonce| {
                    // It is called by the client's own task, which would end.
                    let mut signed = Err(AuthError::new("the login panicked, which is a bug of hookgate"));
                    survived("the login to NATS", || signed = sign(&path, &nonce));
                    async move { signed }
                })
            }
        }
    }

    /// What to look at where a server does not let this in.
    pub(super) fn advice(&self) -> String {
        match self {
            Self::None => {
                "the server wants a login: set nats.credentials_file, nats.nkey_seed_file, nats.user with nats.password_file, or nats.token_file".to_owned()
            }
            Self::User { .. } => "check nats.user and nats.password_file, or the credentials in nats.url".to_owned(),
            Self::Token(_) => "check nats.token_file, or the token in nats.url".to_owned(),
            Self::Nkey(seed) => {
                let key = user(seed).map_or_else(|_| "?".to_owned(), |pair| pair.public_key());
                format!("check nats.nkey_seed_file; its public key, which the server has to know, is {key}")
            }
            Self::Credentials(path) => {
                let state = match read_credentials(path) {
                    Ok(credentials) => credentials.state(),
                    Err(error) => error.to_string(),
                };
                format!("check nats.credentials_file: {state}")
            }
        }
    }
}

/// The key pair of a user's seed.
fn user(seed: &str) -> Result<KeyPair, LoginError> {
    let pair = KeyPair::from_seed(seed).map_err(|_error| LoginError::Seed)?;
    if pair.key_pair_type() == KeyPairType::User { Ok(pair) } else { Err(LoginError::Seed) }
}

/// What a credentials file holds.
struct Credentials {
    jwt: String,
    pair: KeyPair,
}

/// What interests us of a user's JWT.
#[derive(Deserialize)]
struct JwtClaims {
    iss: String,
    exp: Option<u64>,
}

fn read_credentials(path: &Path) -> Result<Credentials, LoginError> {
    let text = std::fs::read_to_string(path)?;
    let mut parts = between_lines(&text);
    let (jwt, seed) = parts.next().zip(parts.next()).ok_or(LoginError::Credentials)?;
    let pair = user(seed).map_err(|_error| LoginError::Credentials)?;
    let credentials = Credentials { jwt: jwt.to_owned(), pair };
    credentials.claims().map(|_| ()).ok_or(LoginError::Credentials)?;
    Ok(credentials)
}

/// What stands in the line after each that begins a part.
fn between_lines(text: &str) -> impl Iterator<Item = &str> {
    let mut lines = text.lines().map(str::trim);
    std::iter::from_fn(move || {
        lines.find(|line| line.starts_with("---") && line.contains("BEGIN"))?;
        lines.next()
    })
}

impl Credentials {
    fn claims(&self) -> Option<JwtClaims> {
        let payload = URL_SAFE_NO_PAD.decode(self.jwt.split('.').nth(1)?).ok()?;
        serde_json::from_slice(&payload).ok()
    }

    /// In words, for who wonders why a server does not take them.
    fn state(&self) -> String {
        let Some(JwtClaims { iss, exp }) = self.claims() else { return LoginError::Credentials.to_string() };
        let end = exp.map(|seconds| SystemTime::UNIX_EPOCH + Duration::from_secs(seconds));
        match end {
            Some(end) if end < SystemTime::now() => {
                format!("its JWT expired on {}; put a new one there", humantime::format_rfc3339_seconds(end))
            }
            _ => format!("its JWT was issued by {iss}, whose account this server may not know, or was revoked"),
        }
    }
}

/// Logs in to a server that sent a nonce.
fn sign(path: &Path, nonce: &[u8]) -> Result<Auth, AuthError> {
    let credentials = read_credentials(path).map_err(AuthError::new)?;
    let mut auth = Auth::new();
    auth.signature = Some(credentials.pair.sign(nonce).map_err(AuthError::new)?);
    auth.jwt = Some(credentials.jwt);
    Ok(auth)
}
