//! A NATS operator that admits users by JWT (nats-server, `operator` mode).

use std::time::{Duration, SystemTime};

use base64::{Engine, engine::general_purpose::URL_SAFE_NO_PAD};
use nkeys::KeyPair;
use serde_json::{Value, json};

/// An operator with one account for everybody, and the system account that the server asks for.
pub(crate) struct Operator {
    root: KeyPair,
    account: KeyPair,
    system: KeyPair,
}

impl Operator {
    pub(crate) fn new() -> Self {
        Self { root: KeyPair::new_operator(), account: KeyPair::new_account(), system: KeyPair::new_account() }
    }

    /// What the server has to know, as lines of its configuration.
    pub(crate) fn config(&self) -> String {
        let operator = jwt(&self.root, &self.root, "operator", &json!({}), None);
        let limits = json!({ "limits": {
            "subs": -1, "data": -1, "payload": -1, "imports": -1, "exports": -1, "wildcards": true, "conn": -1,
            "leaf": -1, "mem_storage": -1, "disk_storage": -1, "streams": -1, "consumer": -1,
        }});
        // JetStream is not for the system's account.
        let account = jwt(&self.root, &self.account, "account", &limits, None);
        let few = json!({ "limits": {
            "subs": -1, "data": -1, "payload": -1, "imports": -1, "exports": -1, "wildcards": true, "conn": -1, "leaf": -1,
        }});
        let system = jwt(&self.root, &self.system, "account", &few, None);
        let (a, s) = (self.account.public_key(), self.system.public_key());
        format!(
            "operator: {operator}\nsystem_account: {s}\nresolver: MEMORY\nresolver_preload: {{ {a}: {account}, {s}: {system} }}\n"
        )
    }

    /// The text of a credentials file whose JWT holds for so long, or ended so long ago.
    pub(crate) fn credentials(&self, holds: Result<Duration, Duration>) -> String {
        let user = KeyPair::new_user();
        let end = match holds {
            Ok(more) => SystemTime::now() + more,
            Err(since) => SystemTime::now() - since,
        };
        let end = end.duration_since(SystemTime::UNIX_EPOCH).expect("it is later than 1970").as_secs();
        let rights = json!({ "pub": {}, "sub": {}, "subs": -1, "data": -1, "payload": -1 });
        let jwt = jwt(&self.account, &user, "user", &rights, Some(end));
        let seed = user.seed().expect("it is a whole pair");
        format!(
            "-----BEGIN NATS USER JWT-----\n{jwt}\n------END NATS USER JWT------\n\n-----BEGIN USER NKEY SEED-----\n{seed}\n------END USER NKEY SEED------\n"
        )
    }
}

fn jwt(issuer: &KeyPair, subject: &KeyPair, kind: &str, nats: &Value, end: Option<u64>) -> String {
    let mut nats = nats.clone();
    nats["type"] = kind.into();
    nats["version"] = 2.into();
    let mut claims = json!({
        "jti": subject.public_key(), "iat": 1_700_000_000, "iss": issuer.public_key(),
        "sub": subject.public_key(), "name": kind, "nats": nats,
    });
    if let Some(end) = end {
        claims["exp"] = end.into();
    }
    let part = |value: &Value| URL_SAFE_NO_PAD.encode(value.to_string());
    let text = format!("{}.{}", part(&json!({ "typ": "JWT", "alg": "ed25519-nkey" })), part(&claims));
    let signature = issuer.sign(text.as_bytes()).expect("it is a whole pair");
    format!("{text}.{}", URL_SAFE_NO_PAD.encode(signature))
}
