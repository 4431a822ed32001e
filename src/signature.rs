//! Whether the sender of a request knows the secret: raw bytes and headers in, [`Verified`] out.
//! No JSON and no I/O; the secrets come from `secrets`, which reads them again when their files change.
//!
//! Compares in constant time, over the raw bytes, before anything is parsed. Each failing request costs the same number
//! of MACs over its body, whatever is wrong with it (`EqualMacs`), so that time tells nothing. A request without a readable
//! signature costs none: its sender knows that already.

mod bearer;
mod espocrm;
mod github;
mod standard_webhooks;

use std::time::SystemTime;

use bytes::Bytes;
use hashbrown::HashMap;
use hmac::{Hmac, Mac};
use http::{HeaderMap, HeaderName};
use sha2::Sha256;

use crate::route::Route;
pub use crate::secrets::{Secret, Secrets};

/// How a sender shows that it knows a secret.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Scheme {
    /// `Signature` or `X-Signature` of `EspoCRM`, for the webhook with this id.
    EspoCrm {
        /// The webhook's id, as `EspoCRM` shows it.
        id: String,
    },
    /// `webhook-id`, `webhook-timestamp`, `webhook-signature`: <https://www.standardwebhooks.com>.
    StandardWebhooks,
    /// `X-Hub-Signature-256` of GitHub.
    GitHub,
    /// `Authorization: Bearer`, the secret itself.
    Bearer,
}

impl Scheme {
    /// Its name in the configuration.
    #[must_use]
    pub const fn name(&self) -> &'static str {
        match self {
            Self::EspoCrm { .. } => "espocrm",
            Self::StandardWebhooks => "standard-webhooks",
            Self::GitHub => "github",
            Self::Bearer => "bearer",
        }
    }

    /// Whether a secret can be one of this scheme.
    ///
    /// # Errors
    /// What is wrong with it, without showing it.
    pub fn check(&self, secret: &Secret) -> Result<(), &'static str> {
        match self {
            Self::StandardWebhooks => standard_webhooks::key(secret)
                .map(|_key| ())
                .ok_or("is no secret of standard-webhooks: write whsec_ and base64, as the sender shows it"),
            Self::EspoCrm { .. } | Self::GitHub | Self::Bearer => Ok(()),
        }
    }

    /// The headers that a sender with this secret puts beside a body. `message` names the request, where the scheme wants a name.
    #[must_use]
    pub fn sign(&self, secret: &Secret, body: &[u8], message: &str, now: SystemTime) -> Vec<(HeaderName, Vec<u8>)> {
        match self {
            Self::EspoCrm { id } => vec![espocrm::sign(id, secret, body)],
            Self::StandardWebhooks => standard_webhooks::sign(secret, body, message, seconds(now)),
            Self::GitHub => vec![github::sign(secret, body)],
            Self::Bearer => vec![bearer::sign(secret)],
        }
    }

    /// What the request says in this scheme; `None` if it says nothing.
    fn read(&self, headers: &HeaderMap) -> Option<Result<Evidence, SignatureFailure>> {
        match self {
            Self::EspoCrm { id } => espocrm::read(headers, id),
            Self::StandardWebhooks => standard_webhooks::read(headers),
            Self::GitHub => github::read(headers),
            Self::Bearer => bearer::read(headers),
        }
    }
}

/// Whom a request says that it is from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ClaimedSender<'a> {
    /// The webhook with this id, which an entry of the route has.
    Webhook(&'a str),
    /// Somebody without a webhook id, on a route that knows none either, or whose scheme has none.
    Anybody,
    /// Nobody that the route knows.
    Stranger,
}

/// What a request presents under a scheme.
struct Evidence {
    /// What was signed before the body.
    prefix: Vec<u8>,
    /// Any of these is enough.
    macs: Vec<[u8; 32]>,
    /// When it was signed, in seconds since 1970, where the scheme says so.
    signed_at: Option<i64>,
    /// How many webhook ids it names, where the scheme has them.
    ids: usize,
    /// None of them is that of the entry.
    foreign: bool,
}

/// Why a request is not authenticated. The answer says only whether there was a signature.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, thiserror::Error)]
pub enum SignatureFailure {
    /// No header of any scheme of the route.
    #[error("the request carries no signature")]
    Missing,
    /// A header that can't be read, or is there twice.
    #[error("the signature can't be read")]
    Malformed,
    /// For a webhook id that the route does not know.
    #[error("the signature is for a webhook id that this route does not know")]
    UnknownId,
    /// Signed too long ago, or in the future.
    #[error("the signature is older or younger than 5 minutes")]
    Expired,
    /// Signed with another secret, or over other bytes.
    #[error("the signature does not match")]
    Wrong,
}

impl SignatureFailure {
    /// All of them.
    pub const ALL: [Self; 5] = [Self::Missing, Self::Malformed, Self::UnknownId, Self::Expired, Self::Wrong];

    /// Machine-readable name, for log and metrics.
    #[must_use]
    pub const fn code(self) -> &'static str {
        match self {
            Self::Missing => "missing",
            Self::Malformed => "malformed",
            Self::UnknownId => "unknown_id",
            Self::Expired => "expired",
            Self::Wrong => "wrong",
        }
    }
}

/// A body that may be processed. Made by a [`Verifier`], and nowhere else in hookgate.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Verified(Bytes);

impl Verified {
    /// The bytes as they came.
    #[must_use]
    pub const fn bytes(&self) -> &Bytes {
        &self.0
    }
}

/// What a route asks of its senders: one of its entries has to be satisfied. Without any it asks for nothing.
#[derive(Debug, Clone, Default)]
pub struct Verifier {
    entries: Vec<(Scheme, Secrets)>,
}

impl Verifier {
    /// A verifier with these entries.
    #[must_use]
    pub const fn new(entries: Vec<(Scheme, Secrets)>) -> Self {
        Self { entries }
    }

    /// What a test webhook is signed with: the first secret of the first entry, or of the entry with this webhook id.
    #[must_use]
    pub fn signer(&self, webhook_id: Option<&str>) -> Option<(&Scheme, Secret)> {
        let wanted = |scheme: &Scheme| match (scheme, webhook_id) {
            (_, None) => true,
            (Scheme::EspoCrm { id }, Some(webhook_id)) => id == webhook_id,
            (Scheme::StandardWebhooks | Scheme::GitHub | Scheme::Bearer, Some(_)) => false,
        };
        let entry = self.entries.iter().find(|(scheme, secrets)| wanted(scheme) && !secrets.borrow().is_empty());
        entry.map(|(scheme, secrets)| (scheme, secrets.borrow()[0].clone()))
    }

    /// Whether anybody is let in.
    #[must_use]
    pub const fn is_open(&self) -> bool {
        self.entries.is_empty()
    }

    /// Names of the schemes, each once.
    pub fn schemes(&self) -> impl Iterator<Item = &'static str> + '_ {
        let first = |index: &usize| {
            let name = self.entries[*index].0.name();
            self.entries[..*index].iter().all(|(scheme, _)| scheme.name() != name)
        };
        (0..self.entries.len()).filter(first).map(|index| self.entries[index].0.name())
    }

    /// Whether the headers hold anything that a body could be let in for.
    ///
    /// # Errors
    /// If they don't: there is nothing, or nothing that can be read.
    pub fn precheck(&self, headers: &HeaderMap) -> Result<(), SignatureFailure> {
        let mut failure = SignatureFailure::Missing;
        for (scheme, _) in &self.entries {
            match scheme.read(headers) {
                Some(Ok(_)) => return Ok(()),
                Some(Err(malformed)) => failure = malformed,
                None => {}
            }
        }
        if self.is_open() { Ok(()) } else { Err(failure) }
    }

    /// Whom the headers say the request is from, as far as that can be known without its body: nobody verified it.
    #[must_use]
    pub fn claimed(&self, headers: &HeaderMap) -> ClaimedSender<'_> {
        if self.is_open() {
            return ClaimedSender::Anybody;
        }
        let mut claimed = ClaimedSender::Stranger;
        for (scheme, _) in &self.entries {
            match (scheme, scheme.read(headers)) {
                (Scheme::EspoCrm { id }, Some(Ok(evidence))) if !evidence.foreign => return ClaimedSender::Webhook(id),
                (Scheme::EspoCrm { .. }, _) | (_, None | Some(Err(_))) => {}
                (_, Some(Ok(_))) => claimed = ClaimedSender::Anybody,
            }
        }
        claimed
    }

    /// Whether a request carries a signature that names a webhook id, on a route that knows some.
    #[must_use]
    pub fn is_signed_for_a_webhook(&self, headers: &HeaderMap) -> bool {
        let signed = |scheme: &Scheme| {
            matches!(scheme, Scheme::EspoCrm { .. }) && scheme.read(headers).is_some_and(|read| read.is_ok())
        };
        self.entries.iter().any(|(scheme, _)| signed(scheme))
    }

    /// Lets a body in that came at a time before and was kept: only for an entry with its webhook id. A route without
    /// `auth` lets in none.
    ///
    /// # Errors
    /// If it is still not good.
    pub fn verify_kept(
        &self,
        headers: &HeaderMap,
        body: Bytes,
        came: SystemTime,
    ) -> Result<Verified, SignatureFailure> {
        let is_of_a_webhook = |(scheme, _): &&(Scheme, Secrets)| matches!(scheme, Scheme::EspoCrm { .. });
        let entries: Vec<_> = self.entries.iter().filter(is_of_a_webhook).cloned().collect();
        if entries.is_empty() {
            return Err(SignatureFailure::UnknownId);
        }
        Self { entries }.verify(headers, body, came)
    }

    /// Lets a body in, or says why not.
    ///
    /// # Errors
    /// The failure that says most about what was tried.
    pub fn verify(&self, headers: &HeaderMap, body: Bytes, now: SystemTime) -> Result<Verified, SignatureFailure> {
        if self.is_open() {
            return Ok(Verified(body));
        }
        let mut failure = SignatureFailure::Missing;
        let most = self.entries.iter().map(|(_, secrets)| secrets.borrow().len()).max().unwrap_or_default();
        let mut macs = EqualMacs { body: &body, most, named: None, tried: 0 };
        for (scheme, secrets) in &self.entries {
            let outcome = match scheme.read(headers) {
                None => continue,
                Some(Err(malformed)) => malformed,
                Some(Ok(evidence)) => match macs.check(scheme, evidence, &secrets.borrow(), now) {
                    Ok(()) => return Ok(Verified(body)),
                    Err(failure) => failure,
                },
            };
            failure = failure.max(outcome);
        }
        macs.spend_the_rest();
        Err(failure)
    }
}

/// Computes MACs so that each failing request costs the same number of them over its body, whatever is wrong with it: for
/// each webhook id that it names, as many as the entry with the most secrets has. So time does not tell which ids are known,
/// nor how many secrets there are.
struct EqualMacs<'a> {
    body: &'a [u8],
    /// Secrets of the entry that has most.
    most: usize,
    /// What the request presented under a scheme that has webhook ids.
    named: Option<(&'a Scheme, Evidence)>,
    /// How many of the ids that it names were those of an entry, and cost their MACs.
    tried: usize,
}

impl<'a> EqualMacs<'a> {
    fn check(
        &mut self,
        scheme: &'a Scheme,
        evidence: Evidence,
        secrets: &[Secret],
        now: SystemTime,
    ) -> Result<(), SignatureFailure> {
        let outcome = if evidence.foreign {
            Err(SignatureFailure::UnknownId)
        } else if !evidence.matches(scheme, secrets, self.body, self.most) {
            self.tried += evidence.ids.min(1);
            Err(SignatureFailure::Wrong)
        } else if !evidence.fresh(now) {
            Err(SignatureFailure::Expired)
        } else {
            Ok(())
        };
        if evidence.ids > 0 {
            self.named = Some((scheme, evidence));
        }
        outcome
    }

    /// For the ids that no entry knows.
    fn spend_the_rest(self) {
        let Some((scheme, evidence)) = self.named else { return };
        for _ in self.tried..evidence.ids {
            let _in_vain = evidence.matches(scheme, &[], self.body, self.most);
        }
    }
}

/// The headers of signatures that name a webhook id.
pub const SIGNED_FOR_A_WEBHOOK: [HeaderName; 2] = espocrm::HEADERS;

/// The verifiers of all routes.
#[derive(Debug, Clone, Default)]
pub struct Verifiers(HashMap<String, Verifier>);

impl Verifiers {
    /// Verifiers by the names of their routes.
    pub fn new(by_route: impl IntoIterator<Item = (String, Verifier)>) -> Self {
        Self(by_route.into_iter().collect())
    }

    /// The verifier of a route.
    ///
    /// # Panics
    /// If the route is of another configuration: a mistake of the program, which must not let anybody in.
    #[must_use]
    pub fn of(&self, route: &Route) -> &Verifier {
        self.0.get(route.name()).expect("every route of the configuration has a verifier")
    }

    /// The webhook ids of a route.
    pub fn webhook_ids(&self, route: &Route) -> impl Iterator<Item = &str> {
        self.of(route).entries.iter().filter_map(|(scheme, _)| match scheme {
            Scheme::EspoCrm { id } => Some(id.as_str()),
            Scheme::StandardWebhooks | Scheme::GitHub | Scheme::Bearer => None,
        })
    }

    /// The secrets of all routes, to see when they change.
    #[must_use]
    pub fn secrets(&self) -> Vec<Secrets> {
        self.0.values().flat_map(|verifier| verifier.entries.iter().map(|(_, secrets)| secrets.clone())).collect()
    }
}

impl Evidence {
    /// How far a signature's time may be from now, in seconds.
    const TOLERANCE: i64 = 300;

    fn fresh(&self, now: SystemTime) -> bool {
        let Some(signed_at) = self.signed_at else { return true };
        i64::try_from(seconds(now)).is_ok_and(|now| now.abs_diff(signed_at) <= Self::TOLERANCE.unsigned_abs())
    }

    /// Whether one of the secrets made one of the MACs; if none did, at the price of `most` MACs over the body.
    fn matches(&self, scheme: &Scheme, secrets: &[Secret], body: &[u8], most: usize) -> bool {
        let dummy = Secret::from("");
        for index in 0..most.max(secrets.len()) {
            let secret = secrets.get(index).unwrap_or(&dummy);
            let mac = match scheme {
                Scheme::Bearer => bearer::mac(secret),
                Scheme::StandardWebhooks => {
                    hmac(&standard_webhooks::key(secret).unwrap_or_default(), &[&self.prefix, body])
                }
                Scheme::EspoCrm { .. } | Scheme::GitHub => hmac(secret.bytes(), &[&self.prefix, body]),
            };
            // `verify` compares in constant time.
            let mut equal = false;
            for presented in &self.macs {
                equal |= mac.clone().verify_slice(presented).is_ok();
            }
            if equal && index < secrets.len() {
                return true;
            }
        }
        false
    }
}

/// Seconds since 1970.
fn seconds(now: SystemTime) -> u64 {
    now.duration_since(SystemTime::UNIX_EPOCH).map_or(0, |since| since.as_secs())
}

/// 64 hex digits of a finished MAC.
fn hex(mac: Hmac<Sha256>) -> String {
    use std::fmt::Write;
    mac.finalize().into_bytes().iter().fold(String::with_capacity(64), |mut text, byte| {
        write!(text, "{byte:02x}").expect("a String takes everything");
        text
    })
}

/// HMAC-SHA256 over parts, not yet finished.
fn hmac(key: &[u8], parts: &[&[u8]]) -> Hmac<Sha256> {
    let mut mac = Hmac::<Sha256>::new_from_slice(key).expect("HMAC takes keys of any length");
    for part in parts {
        mac.update(part);
    }
    mac
}

/// The only value of a header.
fn single<'a>(headers: &'a HeaderMap, name: &HeaderName) -> Option<Result<&'a [u8], SignatureFailure>> {
    let mut values = headers.get_all(name).iter();
    let first = values.next()?;
    // Two signatures: a proxy in between may check the other one.
    Some(if values.next().is_some() { Err(SignatureFailure::Malformed) } else { Ok(first.as_bytes()) })
}

/// 64 hex digits.
fn unhex(digits: &[u8]) -> Option<[u8; 32]> {
    let digits = std::str::from_utf8(digits).ok().filter(|text| text.len() == 64 && text.is_ascii())?;
    let mut bytes = [0; 32];
    for (index, byte) in bytes.iter_mut().enumerate() {
        let pair = &digits[2 * index..2 * index + 2];
        // `from_str_radix` alone would take a sign.
        if !pair.bytes().all(|digit| digit.is_ascii_hexdigit()) {
            return None;
        }
        *byte = u8::from_str_radix(pair, 16).ok()?;
    }
    Some(bytes)
}
