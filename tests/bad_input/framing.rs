//! Heads and bodies that are no HTTP, or not quite, or too slow, or too much.

use super::case::{Expect, Row, Sent, open, request, row};
use crate::support::{PATH, batch, post_and_stay};

use Expect::{Closed, Each, Status, Taken, TakenThenClosed};

/// More than one read, and over every limit of a head.
const LARGE: usize = 70_000;

fn text(head: &str) -> Vec<u8> {
    head.replace("PATH", PATH).replace('\n', "\r\n").into_bytes()
}

fn to(path: &str) -> Vec<u8> {
    request(path, "", "[]")
}

fn chunked(lines: &str, body: &str) -> Vec<u8> {
    text(&format!("POST PATH HTTP/1.1\nHost: x\n{lines}Transfer-Encoding: chunked\n\n{body}"))
}

fn dripped(number: u32, what: &'static str, start: &str, slow: &str, expect: Expect) -> Row {
    Row { number, what, sent: Sent::Dripped(text(start), slow.repeat(40).into_bytes()), expect }
}

/// Rows 1 to 32.
pub(super) fn rows() -> Vec<Row> {
    let posted = "POST PATH HTTP/1.1\nHost: x\n";
    let one_chunk = "10\n[{\"id\": \"r7\"}]  \n0\n\n";
    let mut rows = vec![
        row(1, "a connection that says nothing", "", Closed(&[])),
        row(2, "half a head", text("POST PATH HT"), Closed(&[])),
        dripped(3, "a head that drips", "POST PATH HTTP/1.1\n", "X: y\r\n", Closed(&[408])),
        row(4, "a body that does not come", text(&format!("{posted}Content-Length: 9\n\n")), Status(&[408])),
        dripped(5, "a body that drips", &format!("{posted}Content-Length: 999\n\n"), " ", Status(&[408])),
        row(6, "a length over the limit", text(&format!("{posted}Content-Length: 2097153\n\n")), Status(&[413])),
        row(7, "chunks", chunked("", one_chunk), Taken(1, 0)),
        row(8, "a chunk without a size", chunked("", "size\n[]\n0\n\n"), Status(&[400])),
        row(9, "a length before chunks", chunked("Content-Length: 2\n", one_chunk), Status(&[400])),
        row(
            9,
            "a length behind chunks",
            text(&format!("{posted}Transfer-Encoding: chunked\nContent-Length: 2\n\n2\n[]\n0\n\n")),
            Status(&[400]),
        ),
        row(
            9,
            "a length beside chunks, in the second request of a connection",
            [post_and_stay(PATH, b"[]"), chunked("Content-Length: 2\n", "2\n[]\n0\n\n")].concat(),
            Each(&[(200, 0), (400, 0)]),
        ),
        row(10, "two lengths", text(&format!("{posted}Content-Length: 2\nContent-Length: 3\n\n[] ")), Status(&[400])),
        row(
            10,
            "the same length twice",
            text(&format!("{posted}Content-Length: 2\nContent-Length: 2\n\n[]")),
            Status(&[400]),
        ),
        row(11, "a length with a sign", text(&format!("{posted}Content-Length: +2\n\n[]")), Status(&[400])),
        row(12, "an unknown coding", text(&format!("{posted}Transfer-Encoding: xchunked\n\n[]")), Status(&[400])),
        row(13, "a folded line", text(&format!("{posted}X: a\n b\nContent-Length: 2\n\n[]")), Status(&[400])),
        row(14, "a blank before the colon", text(&format!("{posted}Content-Length : 2\n\n[]")), Status(&[400])),
        row(15, "NUL in a header", text(&format!("{posted}X: a\0b\nContent-Length: 2\n\n[]")), Status(&[400])),
        row(16, "a header of 70 kB", request(PATH, &format!("X: {}\r\n", "x".repeat(LARGE)), "[]"), Status(&[431])),
        row(17, "120 headers", request(PATH, &"X: y\r\n".repeat(120), "[]"), Status(&[431])),
        row(18, "a path of 70 kB", to(&format!("/{}", "x".repeat(LARGE))), Status(&[431, 414])),
        row(19, "no host", text("POST PATH HTTP/1.1\nContent-Length: 2\n\n[]"), Status(&[400])),
        row(20, "HTTP/1.0", text("POST PATH HTTP/1.0\nContent-Length: 2\n\n[]"), TakenThenClosed),
        row(21, "HTTP/0.9", text("GET /\n"), Status(&[400])),
        row(22, "TLS", b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03".repeat(20), Closed(&[400])),
        row(
            23,
            "line feeds alone",
            format!("POST {PATH} HTTP/1.1\nHost: x\nContent-Length: 2\n\n[]"),
            Status(&[200, 400]),
        ),
        row(24, "CONNECT", text("CONNECT hookgate.test:443 HTTP/1.1\nHost: x\n\n"), Status(&[404, 405])),
        row(29, "a whole address", to(&format!("http://hookgate.test{PATH}")), Taken(0, 0)),
        row(
            30,
            "Expect: 100-continue",
            request(PATH, "Expect: 100-continue\r\n", batch(["r30"])),
            Each(&[(100, 0), (200, 1)]),
        ),
        row(31, "the preface of HTTP/2", text("PRI * HTTP/2.0\n\nSM\n\n"), Closed(&[400])),
        row(
            32,
            "three requests at once",
            [["a"].as_slice(), &["a", "b"], &["a", "b", "c"]]
                .map(|ids| post_and_stay(PATH, batch(ids.iter().map(|id| format!("r32-{id}"))).as_bytes()))
                .concat(),
            Each(&[(200, 1), (200, 2), (200, 3)]),
        ),
    ];
    for method in ["GET", "TRACE", "PUT"] {
        let bytes = text(&format!("{method} PATH HTTP/1.1\nHost: x\nContent-Length: 2\n\n[]"));
        rows.push(row(25, "another method", bytes, Status(&[405])));
    }
    rows.push(row(26, "an unknown path", to("/unknown"), Status(&[404])));
    for odd in ["%00", "%ff", "%2e%2e", "%63reate"] {
        rows.push(row(27, "an encoded path", to(&format!("/vmh/webhook/beteiligte/{odd}")), Status(&[404])));
    }
    for path in ["/vmh/../vmh/webhook/beteiligte/create", "//vmh/webhook/beteiligte/create", &format!("{PATH}/")] {
        rows.push(row(28, "a path that leads there by a detour", to(path), Status(&[404])));
    }
    rows
}

/// What was found besides.
pub(super) fn found() -> Vec<Row> {
    let posted = "POST PATH HTTP/1.1\nHost: x\n";
    let with = |line: &str| text(&format!("{posted}{line}\nContent-Length: 2\n\n[]"));
    let sized = |length: &str| text(&format!("{posted}Content-Length: {length}\n\n[]"));
    let closing = "Connection: close\r\n";
    vec![
        row(
            64,
            "half a head behind a good request",
            [post_and_stay(PATH, b"[]"), text("POST PATH HT")].concat(),
            TakenThenClosed,
        ),
        row(65, "two hosts", with("Host: y"), Status(&[400])),
        row(66, "a chunk of 2^68 bytes", chunked("", "FFFFFFFFFFFFFFFFF\n[]\n0\n\n"), Status(&[400])),
        row(66, "a chunk of 2^64 - 1 bytes", chunked("", "FFFFFFFFFFFFFFFF\n[]"), Status(&[400, 408, 413])),
        row(
            67,
            "a chunk extension of 70 kB",
            chunked("", &format!("2;{}\n[]\n0\n\n", "x".repeat(LARGE))),
            Status(&[400]),
        ),
        row(68, "trailers of 70 kB", chunked("", &format!("2\n[]\n0\nX: {}\n\n", "x".repeat(LARGE))), Status(&[400])),
        row(69, "4,000 chunks of one byte", chunked("", &format!("{}0\n\n", "1\n \n".repeat(4_000))), Status(&[400])),
        row(
            70,
            "a method of 70 kB",
            text(&format!("{} / HTTP/1.1\nHost: x\n\n", "X".repeat(LARGE))),
            Status(&[400, 431]),
        ),
        row(71, "a header without a name", with(": y"), Status(&[400])),
        row(72, "a carriage return in a header", with("X: a\rb"), Status(&[400])),
        row(73, "chunks in HTTP/1.0", text("POST PATH HTTP/1.0\nTransfer-Encoding: chunked\n\n0\n\n"), Status(&[400])),
        row(74, "HTTP/1.2", text("POST PATH HTTP/1.2\nHost: x\n\n"), Status(&[400])),
        row(75, "a length of 2^64", sized("18446744073709551616"), Status(&[400, 413, 431])),
        row(75, "a length of 2^64 - 1", sized("18446744073709551615"), Status(&[400, 413, 431])),
        row(75, "a negative length", sized("-2"), Status(&[400])),
        row(75, "a length in hex", sized("0x2"), Status(&[400])),
        row(75, "no length after all", sized(""), Status(&[400])),
        row(76, "an upgrade to HTTP/2", with("Connection: upgrade\nUpgrade: h2c"), Taken(0, 0)),
        row(76, "an upgrade to WebSocket", with("Connection: upgrade\nUpgrade: websocket"), Taken(0, 0)),
        row(77, "blank lines first", [b"\r\n\r\n".to_vec(), open("[]")].concat(), Taken(0, 0)),
        row(
            78,
            "more than the length says",
            [open("[]"), b"GARBAGE\r\n\r\n".to_vec()].concat(),
            Each(&[(200, 0), (400, 0)]),
        ),
        row(79, "OPTIONS *", text("OPTIONS * HTTP/1.1\nHost: x\n\n"), Status(&[404, 405])),
        row(80, "an empty host", text("POST PATH HTTP/1.1\nHost:\nContent-Length: 2\n\n[]"), Status(&[200, 400])),
        row(
            81,
            "a host that is no text",
            [b"POST / HTTP/1.1\r\nHost: \xff\xfe\r\n\r\n".as_slice()].concat(),
            Status(&[400, 404]),
        ),
        Row {
            number: 82,
            what: "half a body, and then the end",
            sent: Sent::ThenEnd(text(&format!("{posted}Content-Length: 99\n\n[{{\"id\":"))),
            expect: Closed(&[400, 408]),
        },
        row(
            83,
            "a coding before chunks",
            text(&format!("{posted}Transfer-Encoding: gzip, chunked\n\n2\n[]\n0\n\n")),
            Status(&[200, 400]),
        ),
        row(84, "nothing but line ends", "\r\n".repeat(20_000), Closed(&[400, 431])),
        row(85, "closing as it is asked to", request(PATH, closing, "[]"), TakenThenClosed),
        // Without bodies: behind an unread one the connection ends, and the answer says so.
        row(
            86,
            "100 requests at once that nobody serves",
            "GET /x HTTP/1.1\r\nHost: x\r\n\r\n".repeat(100),
            Each(&[(404, 0); 100]),
        ),
        row(88, "5,000 chunks of a byte", in_bytes(5_000), Status(&[503])),
        row(88, "4,500 chunks of a byte", in_bytes(4_500), Status(&[200])),
        row(87, "66 headers", request(PATH, &"X: y\r\n".repeat(64), "[]"), Status(&[431])),
    ]
}

/// Of requests whose ends two parties could see in two places.
pub(super) fn in_chunks() -> Vec<Row> {
    let posted = "POST PATH HTTP/1.1\nHost: x\n";
    vec![
        row(
            101,
            "chunks in chunks",
            text(&format!("{posted}Transfer-Encoding: chunked, Chunked\n\n0\n\n")),
            Status(&[400]),
        ),
        row(
            101,
            "chunks in chunks, in two lines",
            text(&format!("{posted}Transfer-Encoding: chunked\nTransfer-Encoding: chunked\n\n0\n\n")),
            Status(&[400]),
        ),
        row(
            102,
            "two lengths behind chunks",
            [chunked("", "2\n[]\n0\n\n"), text(&format!("{posted}Content-Length: 2\nContent-Length: 2\n\n[]"))]
                .concat(),
            TakenThenClosed,
        ),
        row(
            102,
            "length and chunks behind chunks",
            [chunked("", "2\n[]\n0\n\n"), chunked("Content-Length: 2\n", "2\n[]\n0\n\n")].concat(),
            TakenThenClosed,
        ),
    ]
}

/// A batch of nobody and blanks, so many bytes, each in a chunk of its own.
fn in_bytes(count: usize) -> Vec<u8> {
    let body = format!("[{}]", " ".repeat(count - 2));
    let chunks = body.chars().fold(String::new(), |text, byte| text + "1\r\n" + byte.encode_utf8(&mut [0; 4]) + "\r\n");
    format!("POST {PATH} HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n{chunks}0\r\n\r\n").into_bytes()
}
