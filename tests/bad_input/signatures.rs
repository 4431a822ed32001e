//! Rows 33 to 45: signatures.

use base64::{Engine, engine::general_purpose::STANDARD};

use super::case::{CURRENT, Expect, ID, OTHERS, PREVIOUS, Row, SIGNED, Sent, request, row, signature, x_signature};

use Expect::{New, Status, Taken};

const BODY: &str = r#"[{"id":"6601aa0b1c2d3e4f5"}]"#;

/// `[]`, compressed.
const GZIP: &[u8] = b"\x1f\x8b\x08\x00\x00\x00\x00\x00\x00\x03\x8b\x8e\x05\x00\x29\x4c\x1c\x29\x02\x00\x00\x00";

fn with(lines: &str) -> Vec<u8> {
    request(SIGNED, lines, BODY)
}

fn signed(value: &str) -> Vec<u8> {
    with(&format!("Signature: {value}\r\n"))
}

pub(super) fn rows() -> Vec<Row> {
    let good = signature(ID, CURRENT, BODY.as_bytes());
    let old = x_signature(ID, CURRENT, BODY.as_bytes());
    let previous = signature(ID, PREVIOUS, BODY.as_bytes());
    let decoded = String::from_utf8(STANDARD.decode(&good).expect("it is base64")).expect("it is text");
    let truncated = STANDARD.encode(&decoded[..decoded.len() - 2]);
    let empty = signature(ID, CURRENT, b"[]");
    let zipped = signature(ID, CURRENT, GZIP);
    vec![
        row(33, "no signature", with(""), Status(&[401])),
        row(34, "not base64", signed("not base64!"), Status(&[401])),
        row(35, "no colon", signed(&STANDARD.encode("no colon")), Status(&[401])),
        row(36, "an unknown webhook id", signed(&signature("unknown", CURRENT, BODY.as_bytes())), Status(&[401])),
        row(37, "another route's secret", signed(&signature(ID, OTHERS, BODY.as_bytes())), Status(&[401])),
        row(
            37,
            "another route's id and secret",
            signed(&signature("other-id", OTHERS, BODY.as_bytes())),
            Status(&[401]),
        ),
        row(38, "a MAC that is cut off", signed(&truncated), Status(&[401])),
        row(
            39,
            "one byte of the body is another",
            request(SIGNED, &format!("Signature: {good}\r\n"), BODY.replace('6', "7")),
            Status(&[401]),
        ),
        row(40, "two signatures", with(&format!("Signature: {good}\r\nSignature: {good}\r\n")), Status(&[401])),
        row(
            41,
            "a good Signature and a bad X-Signature",
            with(&format!("Signature: {good}\r\nX-Signature: bad\r\n")),
            New(1, 1),
        ),
        row(42, "X-Signature alone", with(&format!("X-Signature: {old}\r\n")), New(0, 1)),
        row(43, "the old secret while both are good", signed(&previous), New(0, 1)),
        Row {
            number: 43,
            what: "the old secret after the change",
            sent: Sent::AfterRotation(signed(&previous)),
            expect: Status(&[401]),
        },
        Row { number: 44, what: "the same request again", sent: Sent::Twice(signed(&good)), expect: New(0, 1) },
        row(
            45,
            "an odd type",
            request(SIGNED, &format!("Signature: {empty}\r\nContent-Type: text/x-odd; charset=utf-16\r\n"), "[]"),
            Taken(0, 0),
        ),
        row(
            45,
            "said to be compressed, and is not",
            request(SIGNED, &format!("Signature: {empty}\r\nContent-Encoding: gzip\r\n"), "[]"),
            Taken(0, 0),
        ),
        row(
            45,
            "compressed",
            request(SIGNED, &format!("Signature: {zipped}\r\nContent-Encoding: gzip\r\n"), GZIP),
            Status(&[400]),
        ),
        row(
            45,
            "compressed, and the signature over what was compressed",
            request(SIGNED, &format!("Signature: {empty}\r\nContent-Encoding: gzip\r\n"), GZIP),
            Status(&[401]),
        ),
    ]
}
