//! GitHub: `X-Hub-Signature-256: sha256=` and the MAC of the body in hex digits, see
//! <https://docs.github.com/en/webhooks/using-webhooks/validating-webhook-deliveries>.

use http::{HeaderMap, HeaderName};

use super::{Evidence, Secret, SignatureFailure, hex, hmac, single, unhex};

const SIGNATURE: HeaderName = HeaderName::from_static("x-hub-signature-256");

pub(super) fn read(headers: &HeaderMap) -> Option<Result<Evidence, SignatureFailure>> {
    let header = single(headers, &SIGNATURE)?;
    let mac =
        header.and_then(|header| header.strip_prefix(b"sha256=").and_then(unhex).ok_or(SignatureFailure::Malformed));
    Some(mac.map(|mac| Evidence { prefix: Vec::new(), macs: vec![mac], signed_at: None, ids: 0, foreign: false }))
}

pub(super) fn sign(secret: &Secret, body: &[u8]) -> (HeaderName, Vec<u8>) {
    (SIGNATURE, format!("sha256={}", hex(hmac(secret.bytes(), &[body]))).into_bytes())
}
