//! Logs in to NATS.

use std::path::Path;

use async_nats::{Auth, AuthError, ConnectOptions};

use crate::{
    nats_login::{Credentials, Login, key_pair},
    supervision::survived,
};

/// Options of a connection that logs in so.
pub(super) fn options(login: &Login) -> ConnectOptions {
    match login {
        Login::None => ConnectOptions::new(),
        Login::User { name, password } => ConnectOptions::with_user_and_password(name.clone(), password.clone()),
        Login::Token(token) => ConnectOptions::with_token(token.clone()),
        Login::Nkey(seed) => ConnectOptions::with_nkey(seed.clone()),
        Login::Credentials(path) => {
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
pub(super) fn advice(login: &Login) -> String {
    match login {
        Login::None => {
            "the server wants a login: set nats.credentials_file, nats.nkey_seed_file, nats.user with nats.password_file, or nats.token_file".to_owned()
        }
        Login::User { .. } => "check nats.user and nats.password_file, or the credentials in nats.url".to_owned(),
        Login::Token(_) => "check nats.token_file, or the token in nats.url".to_owned(),
        Login::Nkey(seed) => {
            let key = key_pair(seed).map_or_else(|_| "?".to_owned(), |pair| pair.public_key());
            format!("check nats.nkey_seed_file; its public key, which the server has to know, is {key}")
        }
        Login::Credentials(path) => {
            let state = match Credentials::read(path) {
                Ok(credentials) => credentials.state(),
                Err(error) => error.to_string(),
            };
            format!("check nats.credentials_file: {state}")
        }
    }
}

/// Logs in to a server that sent a nonce.
fn sign(path: &Path, nonce: &[u8]) -> Result<Auth, AuthError> {
    let credentials = Credentials::read(path).map_err(AuthError::new)?;
    let mut auth = Auth::new();
    auth.signature = Some(credentials.pair.sign(nonce).map_err(AuthError::new)?);
    auth.jwt = Some(credentials.jwt);
    Ok(auth)
}
