//! `Authorization: Bearer` and the secret itself (RFC 6750). For senders that can't sign: anyone who reads
//! one request can send others.

use hmac::{Hmac, Mac};
use http::{HeaderMap, HeaderName};
use sha2::Sha256;

use super::{Evidence, Secret, SignatureFailure, hmac, single};

const AUTHORIZATION: HeaderName = HeaderName::from_static("authorization");
/// A MAC under a fixed key makes token and secret the same length, so that comparing them takes the same time.
const KEY: &[u8] = b"hookgate bearer";

pub(super) fn mac(secret: &Secret) -> Hmac<Sha256> {
    hmac(KEY, &[secret.bytes()])
}

pub(super) fn read(headers: &HeaderMap) -> Option<Result<Evidence, SignatureFailure>> {
    let header = match single(headers, &AUTHORIZATION)? {
        Ok(header) => header,
        Err(failure) => return Some(Err(failure)),
    };
    let token = header.split_at_checked(7).filter(|(scheme, _)| scheme.eq_ignore_ascii_case(b"bearer "));
    Some(token.map(|(_, token)| token.trim_ascii()).filter(|token| !token.is_empty()).map_or(
        Err(SignatureFailure::Malformed),
        |token| {
            let mac = hmac(KEY, &[token]).finalize().into_bytes().into();
            Ok(Evidence { prefix: Vec::new(), macs: vec![mac], signed_at: None, ids: 0, foreign: false })
        },
    ))
}

pub(super) fn sign(secret: &Secret) -> (HeaderName, Vec<u8>) {
    (AUTHORIZATION, [b"Bearer ", secret.bytes()].concat())
}
