//! `EspoCRM`: from version 9 `Signature`, base64 of id, colon and the MAC in hex digits; before, and beside it
//! until version 11, `X-Signature`, base64 of id, colon and the MAC itself (read in its source and tried).

use base64::{Engine, engine::general_purpose::STANDARD};
use http::{HeaderMap, HeaderName};

use super::{Evidence, Secret, SignatureFailure, hex, hmac, single, unhex};

const SIGNATURE: HeaderName = HeaderName::from_static("signature");
const X_SIGNATURE: HeaderName = HeaderName::from_static("x-signature");

pub(super) const HEADERS: [HeaderName; 2] = [SIGNATURE, X_SIGNATURE];

/// Longest header that is looked at: an id is a few bytes.
const MAX_BYTES: usize = 1024;

pub(super) fn read(headers: &HeaderMap, id: &str) -> Option<Result<Evidence, SignatureFailure>> {
    let (new, old) = (single(headers, &SIGNATURE), single(headers, &X_SIGNATURE));
    if new.is_none() && old.is_none() {
        return None;
    }
    let new = new.and_then(Result::ok).and_then(decode).and_then(|(id, mac)| Some((id, unhex(&mac)?)));
    let old = old.and_then(Result::ok).and_then(decode).and_then(|(id, mac)| Some((id, mac.try_into().ok()?)));
    // Either is enough: an intermediary may spoil the one it knows.
    let claimed: Vec<(Vec<u8>, [u8; 32])> = new.into_iter().chain(old).collect();
    if claimed.is_empty() {
        return Some(Err(SignatureFailure::Malformed));
    }
    let own = |(claimed, _): &&(Vec<u8>, [u8; 32])| claimed == id.as_bytes();
    let foreign = !claimed.iter().any(|claim| own(&claim));
    let macs = claimed.iter().filter(|claim| foreign || own(claim)).map(|(_, mac)| *mac).collect();
    let ids = if claimed[0].0 == claimed[claimed.len() - 1].0 { 1 } else { 2 };
    Some(Ok(Evidence { prefix: Vec::new(), macs, signed_at: None, ids, foreign }))
}

pub(super) fn sign(id: &str, secret: &Secret, body: &[u8]) -> (HeaderName, Vec<u8>) {
    let mac = hex(hmac(secret.bytes(), &[body]));
    (SIGNATURE, STANDARD.encode(format!("{id}:{mac}")).into_bytes())
}

/// The id, and what comes behind the first colon.
fn decode(header: &[u8]) -> Option<(Vec<u8>, Vec<u8>)> {
    let text = STANDARD.decode(header.get(..header.len().min(MAX_BYTES))?).ok()?;
    let colon = text.iter().position(|byte| *byte == b':')?;
    Some((text[..colon].to_vec(), text[colon + 1..].to_vec()))
}
