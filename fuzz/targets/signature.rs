//! Any headers over any body: nobody gets in whose MAC is not over these very bytes.
//!
//! The input is header lines, an empty line, and the body.
#![no_main]

use std::{
    sync::{Arc, LazyLock},
    time::{Duration, SystemTime},
};

use bytes::Bytes;
use hookgate::signature::{Scheme, Secret, Verifier};
use libfuzzer_sys::fuzz_target;
use tokio::sync::watch;
use warp::http::{HeaderMap, HeaderName, HeaderValue};

/// When the requests among the seeds were signed.
const NOW: Duration = Duration::from_secs(1_614_265_330);
const TOKEN: &str = "0123456789abcdef";

struct Gate {
    verifier: Verifier,
    _owner: watch::Sender<Arc<[Secret]>>,
}

static GATES: LazyLock<Vec<Gate>> = LazyLock::new(|| {
    let gates: [(Scheme, &str); 4] = [
        (Scheme::EspoCrm { id: "65f0c1d2e3a4b5c6d".to_owned() }, "0123456789abcdef0123456789abcdef"),
        (Scheme::StandardWebhooks, "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw"),
        (Scheme::GitHub, "It's a Secret to Everybody"),
        (Scheme::Bearer, TOKEN),
    ];
    let gate = |(scheme, secret)| {
        let secrets: Arc<[Secret]> = [Secret::from(secret), Secret::from("another")].into();
        let (owner, secrets) = watch::channel(secrets);
        Gate { verifier: Verifier::new(vec![(scheme, secrets)]), _owner: owner }
    };
    gates.into_iter().map(gate).collect()
});

fuzz_target!(|input: &[u8]| {
    let end = input.windows(2).position(|two| two == b"\n\n").unwrap_or(input.len());
    let body = Bytes::copy_from_slice(input.get(end + 2..).unwrap_or_default());
    let mut headers = HeaderMap::new();
    for line in input[..end].split(|byte| *byte == b'\n').take(64) {
        let Some(colon) = line.iter().position(|byte| *byte == b':') else { continue };
        let (name, value) =
            (HeaderName::from_bytes(&line[..colon]), HeaderValue::from_bytes(line[colon + 1..].trim_ascii()));
        if let (Ok(name), Ok(value)) = (name, value) {
            headers.append(name, value);
        }
    }
    let now = SystemTime::UNIX_EPOCH + NOW;
    for (index, Gate { verifier, .. }) in GATES.iter().enumerate() {
        let Ok(verified) = verifier.verify(&headers, body.clone(), now) else { continue };
        assert_eq!(verified.bytes(), &body);
        if index == 3 {
            let value = headers["authorization"].as_bytes();
            assert!(value.ends_with(TOKEN.as_bytes()) || value.ends_with(b"another"));
            continue;
        }
        let mut other = body.to_vec();
        other.push(b' ');
        assert!(verifier.verify(&headers, other.into(), now).is_err(), "over other bytes");
        if let Some(first) = body.first() {
            let mut other = body.to_vec();
            other[0] = first ^ 1;
            assert!(verifier.verify(&headers, other.into(), now).is_err(), "over other bytes");
        }
    }
});
