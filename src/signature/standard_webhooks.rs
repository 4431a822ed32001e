//! Standard Webhooks: `webhook-signature` holds one or more `v1,` and base64 of the MAC over id, timestamp and
//! body, joined by dots; see <https://github.com/standard-webhooks/standard-webhooks>.

use base64::{Engine, engine::general_purpose::STANDARD};
use hmac::Mac;
use http::{HeaderMap, HeaderName};

use super::{Evidence, Secret, SignatureFailure, hmac, single};

const ID: HeaderName = HeaderName::from_static("webhook-id");
const TIMESTAMP: HeaderName = HeaderName::from_static("webhook-timestamp");
const SIGNATURE: HeaderName = HeaderName::from_static("webhook-signature");

/// Most signatures of one request that are looked at; a sender that changes its secret sends two.
const MAX_SIGNATURES: usize = 8;

/// The key behind a secret, which is shown as `whsec_` and base64.
pub(super) fn key(secret: &Secret) -> Option<Vec<u8>> {
    let encoded = secret.bytes().strip_prefix(b"whsec_").unwrap_or_else(|| secret.bytes());
    STANDARD.decode(encoded).ok().filter(|key| !key.is_empty())
}

pub(super) fn read(headers: &HeaderMap) -> Option<Result<Evidence, SignatureFailure>> {
    let signatures = single(headers, &SIGNATURE)?;
    Some(signatures.and_then(|signatures| evidence(headers, signatures).unwrap_or(Err(SignatureFailure::Malformed))))
}

fn evidence(headers: &HeaderMap, signatures: &[u8]) -> Option<Result<Evidence, SignatureFailure>> {
    let (Ok(id), Ok(timestamp)) = (single(headers, &ID)?, single(headers, &TIMESTAMP)?) else { return None };
    let digits = std::str::from_utf8(timestamp).ok().filter(|text| text.bytes().all(|byte| byte.is_ascii_digit()))?;
    let signed_at = digits.parse().ok()?;
    let macs: Vec<[u8; 32]> = signatures
        .split(|byte| *byte == b' ')
        .filter_map(|signature| STANDARD.decode(signature.strip_prefix(b"v1,")?).ok()?.try_into().ok())
        .take(MAX_SIGNATURES)
        .collect();
    if macs.is_empty() {
        return None;
    }
    let prefix = [id, b".", timestamp, b"."].concat();
    Some(Ok(Evidence { prefix, macs, signed_at: Some(signed_at), ids: 0, foreign: false }))
}

pub(super) fn sign(secret: &Secret, body: &[u8], message: &str, seconds: u64) -> Vec<(HeaderName, Vec<u8>)> {
    let prefix = format!("{message}.{seconds}.");
    let mac = hmac(&key(secret).unwrap_or_default(), &[prefix.as_bytes(), body]).finalize().into_bytes();
    vec![
        (ID, message.as_bytes().to_vec()),
        (TIMESTAMP, seconds.to_string().into_bytes()),
        (SIGNATURE, format!("v1,{}", STANDARD.encode(mac)).into_bytes()),
    ]
}
