//! Signatures, on a route that asks for one of `EspoCRM`'s.

use base64::{Engine, engine::general_purpose::STANDARD};

use super::case::{
    CURRENT, Case, Expect, ID, OTHERS, PREVIOUS, SIGNED, Sent, because, request, request_bytes, signature, x_signature,
};

use Expect::{New, Status, Taken};

const BODY: &str = r#"[{"id":"6601aa0b1c2d3e4f5"}]"#;

/// `[]`, compressed.
const GZIP: &[u8] = b"\x1f\x8b\x08\x00\x00\x00\x00\x00\x00\x03\x8b\x8e\x05\x00\x29\x4c\x1c\x29\x02\x00\x00\x00";

/// In this order: the first good signature claims the id, and all others find it claimed.
pub(super) fn cases() -> Vec<Case> {
    [bad(), good(), rotated(), compressed()].concat()
}

fn bad() -> Vec<Case> {
    let good = signature(ID, CURRENT, BODY.as_bytes());
    let decoded = String::from_utf8(STANDARD.decode(&good).expect("it is base64")).expect("it is text");
    let mut cases = because(
        "the route asks for a signature, and this is none",
        [
            ("no signature", with(""), Status(&[401])),
            ("a signature that is not base64", signed("not base64!"), Status(&[401])),
            ("a signature without a colon", signed(&STANDARD.encode("no colon")), Status(&[401])),
            ("a MAC that is cut off", signed(&STANDARD.encode(&decoded[..decoded.len() - 2])), Status(&[401])),
        ],
    );
    cases.extend(because(
        "it is not signed by who may write to this route",
        [
            ("an unknown webhook id", signed(&signature("unknown", CURRENT, BODY.as_bytes())), Status(&[401])),
            ("another route's secret", signed(&signature(ID, OTHERS, BODY.as_bytes())), Status(&[401])),
            ("another route's id and secret", signed(&signature("other-id", OTHERS, BODY.as_bytes())), Status(&[401])),
        ],
    ));
    cases.extend(because(
        "the body is not what was signed",
        [(
            "one byte of the body is another",
            request(SIGNED, &format!("Signature: {good}\r\n"), BODY.replace('6', "7")),
            Status(&[401]),
        )],
    ));
    cases.extend(because(
        "two signatures leave open which one counts",
        [("two signatures", with(&format!("Signature: {good}\r\nSignature: {good}\r\n")), Status(&[401]))],
    ));
    cases
}

fn good() -> Vec<Case> {
    let good = signature(ID, CURRENT, BODY.as_bytes());
    let old = x_signature(ID, CURRENT, BODY.as_bytes());
    because(
        "EspoCRM sends Signature since version 9, and X-Signature before and beside it; the new one counts",
        [
            (
                "a good Signature and a bad X-Signature",
                with(&format!("Signature: {good}\r\nX-Signature: bad\r\n")),
                New(1, 1),
            ),
            ("X-Signature alone", with(&format!("X-Signature: {old}\r\n")), New(0, 1)),
        ],
    )
}

fn rotated() -> Vec<Case> {
    let previous = signature(ID, PREVIOUS, BODY.as_bytes());
    let good = signature(ID, CURRENT, BODY.as_bytes());
    let mut cases = because(
        "a secret is good as long as its file has it",
        [
            ("the previous secret while both are good", signed(&previous), New(0, 1)),
            ("the previous secret after the change", Sent::AfterRotation(signed_bytes(&previous)), Status(&[401])),
        ],
    );
    cases.extend(because(
        "a repeated request is a retry: it is answered 200, and its ids are not new",
        [("the same request again", Sent::Twice(signed_bytes(&good)), New(0, 1))],
    ));
    cases
}

fn compressed() -> Vec<Case> {
    let empty = signature(ID, CURRENT, b"[]");
    let zipped = signature(ID, CURRENT, GZIP);
    let mut cases = because(
        "headers do not say what a body is: its bytes are signed and read as they come",
        [
            (
                "an odd content type",
                request(SIGNED, &format!("Signature: {empty}\r\nContent-Type: text/x-odd; charset=utf-16\r\n"), "[]"),
                Taken(0, 0),
            ),
            (
                "a body that is said to be compressed, and is not",
                request(SIGNED, &format!("Signature: {empty}\r\nContent-Encoding: gzip\r\n"), "[]"),
                Taken(0, 0),
            ),
        ],
    );
    cases.extend(because(
        "nothing is decompressed: a small body can't become a large one",
        [
            (
                "a compressed body",
                request(SIGNED, &format!("Signature: {zipped}\r\nContent-Encoding: gzip\r\n"), GZIP),
                Status(&[400]),
            ),
            (
                "a compressed body, signed before it was compressed",
                request(SIGNED, &format!("Signature: {empty}\r\nContent-Encoding: gzip\r\n"), GZIP),
                Status(&[401]),
            ),
        ],
    ));
    cases
}

/// The body with other headers.
fn with(lines: &str) -> Sent {
    request(SIGNED, lines, BODY)
}

fn signed(value: &str) -> Sent {
    Sent::Bytes(signed_bytes(value))
}

fn signed_bytes(value: &str) -> Vec<u8> {
    request_bytes(SIGNED, &format!("Signature: {value}\r\n"), BODY)
}
