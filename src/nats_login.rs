//! How to log in to NATS: the ways, and the files they come in. Data and parsing only: no connection.

use std::{
    fmt,
    path::{Path, PathBuf},
    time::{Duration, SystemTime},
};

use base64::{Engine, engine::general_purpose::URL_SAFE_NO_PAD};
use nkeys::{KeyPair, KeyPairType};
use serde::Deserialize;

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
        key_pair(seed).map(|_| Self::Nkey(seed.to_owned()))
    }

    /// With a credentials file.
    ///
    /// # Errors
    /// If it can't be read, or is something else.
    pub fn credentials(path: &Path) -> Result<Self, LoginError> {
        Credentials::read(path)?;
        Ok(Self::Credentials(path.to_owned()))
    }
}

/// The key pair of a user's seed.
pub(crate) fn key_pair(seed: &str) -> Result<KeyPair, LoginError> {
    let pair = KeyPair::from_seed(seed).map_err(|_error| LoginError::Seed)?;
    if pair.key_pair_type() == KeyPairType::User { Ok(pair) } else { Err(LoginError::Seed) }
}

/// What a credentials file holds.
pub(crate) struct Credentials {
    pub(crate) jwt: String,
    pub(crate) pair: KeyPair,
}

/// What interests us of a user's JWT.
#[derive(Deserialize)]
struct JwtClaims {
    iss: String,
    exp: Option<u64>,
}

impl Credentials {
    /// Reads the file.
    pub(crate) fn read(path: &Path) -> Result<Self, LoginError> {
        let text = std::fs::read_to_string(path)?;
        let mut parts = between_lines(&text);
        let (jwt, seed) = parts.next().zip(parts.next()).ok_or(LoginError::Credentials)?;
        let pair = key_pair(seed).map_err(|_error| LoginError::Credentials)?;
        let credentials = Self { jwt: jwt.to_owned(), pair };
        credentials.claims().map(|_| ()).ok_or(LoginError::Credentials)?;
        Ok(credentials)
    }

    fn claims(&self) -> Option<JwtClaims> {
        let payload = URL_SAFE_NO_PAD.decode(self.jwt.split('.').nth(1)?).ok()?;
        serde_json::from_slice(&payload).ok()
    }

    /// In words, for who wonders why a server does not take them.
    pub(crate) fn state(&self) -> String {
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

/// What stands in the line after each that begins a part.
fn between_lines(text: &str) -> impl Iterator<Item = &str> {
    let mut lines = text.lines().map(str::trim);
    std::iter::from_fn(move || {
        lines.find(|line| line.starts_with("---") && line.contains("BEGIN"))?;
        lines.next()
    })
}
