//! Heads and framing: what is not HTTP, ambiguous, too slow, or over a limit.

use super::case::{Case, Expect, Sent, because, open, request};
use crate::support::{PATH, batch, post_and_stay};

use Expect::{Closed, Each, Status, Taken, TakenThenClosed};

/// More than one read, and over every limit of a head.
const LARGE: usize = 70_000;

pub(super) fn cases() -> Vec<Case> {
    [slow(), over_a_limit(), chunks(), two_ends(), malformed(), not_http(), routing(), ordinary(), several()].concat()
}

fn slow() -> Vec<Case> {
    let posted = "POST PATH HTTP/1.1\nHost: x\n";
    let mut cases = because(
        "without a whole head there is no request to answer; the connection ends when its time is up",
        [
            ("a connection that says nothing", Sent::Bytes(Vec::new()), Closed(&[])),
            ("half a head", text("POST PATH HT"), Closed(&[])),
            ("a head that drips", dripped("POST PATH HTTP/1.1\n", "X: y\r\n"), Closed(&[408])),
        ],
    );
    cases.extend(because(
        "a body that is late may come in time when the sender tries again",
        [
            ("a body that does not come", text(&format!("{posted}Content-Length: 9\n\n")), Status(&[408])),
            ("a body that drips", dripped(&format!("{posted}Content-Length: 999\n\n"), " "), Status(&[408])),
        ],
    ));
    cases.extend(because(
        "a sender that ends in the middle of its body has not sent a request",
        [(
            "half a body, and then the end",
            Sent::ThenEnd(bytes(&format!("{posted}Content-Length: 99\n\n[{{\"id\":"))),
            Closed(&[400, 408]),
        )],
    ));
    cases
}

fn over_a_limit() -> Vec<Case> {
    let mut cases = because(
        "the length alone says that the body is too large; nothing of it is read",
        [("a length over the limit", text("POST PATH HTTP/1.1\nHost: x\nContent-Length: 2097153\n\n"), Status(&[413]))],
    );
    cases.extend(because(
        "a head has limits, so that nobody fills memory before a request is understood",
        [
            ("a header of 70 kB", request(PATH, &format!("X: {}\r\n", "x".repeat(LARGE)), "[]"), Status(&[431])),
            ("66 headers", request(PATH, &"X: y\r\n".repeat(64), "[]"), Status(&[431])),
            ("120 headers", request(PATH, &"X: y\r\n".repeat(120), "[]"), Status(&[431])),
            ("a path of 70 kB", to(&format!("/{}", "x".repeat(LARGE))), Status(&[431, 414])),
            ("a method of 70 kB", text(&format!("{} / HTTP/1.1\nHost: x\n\n", "X".repeat(LARGE))), Status(&[400, 431])),
            ("nothing but line ends", "\r\n".repeat(20_000).into(), Closed(&[400, 431])),
        ],
    ));
    cases
}

fn chunks() -> Vec<Case> {
    let mut cases = because(
        "chunks are HTTP/1.1",
        [
            ("a body in chunks", chunked("", "10\n[{\"id\": \"ab\"}]  \n0\n\n"), Taken(1, 0)),
            ("4,500 chunks of a byte", one_byte_each(4_500), Status(&[200])),
        ],
    );
    cases.extend(because(
        "each chunk costs memory beside its bytes, so the budget counts chunks too",
        [("5,000 chunks of a byte", one_byte_each(5_000), Status(&[503]))],
    ));
    cases.extend(because(
        "the end of the body can't be found",
        [
            ("a chunk without a size", chunked("", "size\n[]\n0\n\n"), Status(&[400])),
            ("a chunk of 2^68 bytes", chunked("", "FFFFFFFFFFFFFFFFF\n[]\n0\n\n"), Status(&[400])),
            ("a chunk of 2^64 - 1 bytes", chunked("", "FFFFFFFFFFFFFFFF\n[]"), Status(&[400, 408, 413])),
        ],
    ));
    cases.extend(because(
        "what chunks carry beside the body has limits",
        [
            ("a chunk extension of 70 kB", chunked("", &format!("2;{}\n[]\n0\n\n", "x".repeat(LARGE))), Status(&[400])),
            ("trailers of 70 kB", chunked("", &format!("2\n[]\n0\nX: {}\n\n", "x".repeat(LARGE))), Status(&[400])),
        ],
    ));
    cases.extend(because(
        "4,000 blanks are no JSON, in however many chunks",
        [("4,000 chunks of a blank", chunked("", &format!("{}0\n\n", "1\n \n".repeat(4_000))), Status(&[400]))],
    ));
    cases
}

/// A proxy in front could take the rest of such a request for another one.
fn two_ends() -> Vec<Case> {
    let posted = "POST PATH HTTP/1.1\nHost: x\n";
    let one_chunk = "10\n[{\"id\": \"ab\"}]  \n0\n\n";
    let mut cases = because(
        "a proxy and hookgate could see the end of the body in two places (request smuggling)",
        [
            ("a length before chunks", chunked("Content-Length: 2\n", one_chunk), Status(&[400])),
            (
                "a length after chunks",
                text(&format!("{posted}Transfer-Encoding: chunked\nContent-Length: 2\n\n2\n[]\n0\n\n")),
                Status(&[400]),
            ),
            (
                "a length beside chunks, in the second request of a connection",
                Sent::Bytes([post_and_stay(PATH, b"[]"), in_chunks("Content-Length: 2\n", "2\n[]\n0\n\n")].concat()),
                Each(&[(200, 0), (400, 0)]),
            ),
            ("two lengths", text(&format!("{posted}Content-Length: 2\nContent-Length: 3\n\n[] ")), Status(&[400])),
            (
                "the same length twice",
                text(&format!("{posted}Content-Length: 2\nContent-Length: 2\n\n[]")),
                Status(&[400]),
            ),
            ("an unknown coding", text(&format!("{posted}Transfer-Encoding: xchunked\n\n[]")), Status(&[400])),
            (
                "a coding before chunks",
                text(&format!("{posted}Transfer-Encoding: gzip, chunked\n\n2\n[]\n0\n\n")),
                Status(&[200, 400]),
            ),
            (
                "chunks in chunks",
                text(&format!("{posted}Transfer-Encoding: chunked, Chunked\n\n0\n\n")),
                Status(&[400]),
            ),
            (
                "chunks in chunks, in two lines",
                text(&format!("{posted}Transfer-Encoding: chunked\nTransfer-Encoding: chunked\n\n0\n\n")),
                Status(&[400]),
            ),
            ("chunks in HTTP/1.0", text("POST PATH HTTP/1.0\nTransfer-Encoding: chunked\n\n0\n\n"), Status(&[400])),
        ],
    );
    cases.extend(because(
        "behind chunks a second request is not read: the connection ends, whatever is in it",
        [
            (
                "two lengths, behind a request in chunks",
                Sent::Bytes(
                    [
                        in_chunks("", "2\n[]\n0\n\n"),
                        bytes(&format!("{posted}Content-Length: 2\nContent-Length: 2\n\n[]")),
                    ]
                    .concat(),
                ),
                TakenThenClosed,
            ),
            (
                "length and chunks, behind a request in chunks",
                Sent::Bytes([in_chunks("", "2\n[]\n0\n\n"), in_chunks("Content-Length: 2\n", "2\n[]\n0\n\n")].concat()),
                TakenThenClosed,
            ),
        ],
    ));
    cases
}

fn malformed() -> Vec<Case> {
    let sized = |length: &str| text(&format!("POST PATH HTTP/1.1\nHost: x\nContent-Length: {length}\n\n[]"));
    let mut cases = because(
        "a length is decimal digits, and fits",
        [
            ("a length with a plus", sized("+2"), Status(&[400])),
            ("a negative length", sized("-2"), Status(&[400])),
            ("a length in hex", sized("0x2"), Status(&[400])),
            ("an empty length", sized(""), Status(&[400])),
            ("a length of 2^64 - 1", sized("18446744073709551615"), Status(&[400, 413, 431])),
            ("a length of 2^64", sized("18446744073709551616"), Status(&[400, 413, 431])),
        ],
    );
    cases.extend(because(
        "RFC 9112 forbids it, and parsers disagree about what it means",
        [
            ("a folded header", with("X: a\n b"), Status(&[400])),
            ("a blank before the colon", text("POST PATH HTTP/1.1\nHost: x\nContent-Length : 2\n\n[]"), Status(&[400])),
            ("NUL in a header", with("X: a\0b"), Status(&[400])),
            ("a carriage return in a header", with("X: a\rb"), Status(&[400])),
            ("a header without a name", with(": y"), Status(&[400])),
            ("no host", text("POST PATH HTTP/1.1\nContent-Length: 2\n\n[]"), Status(&[400])),
            ("two hosts", with("Host: y"), Status(&[400])),
            ("HTTP/1.2", text("POST PATH HTTP/1.2\nHost: x\n\n"), Status(&[400])),
        ],
    ));
    cases.extend(because(
        "either reading is safe: no route depends on the host or on the kind of line end",
        [
            ("an empty host", text("POST PATH HTTP/1.1\nHost:\nContent-Length: 2\n\n[]"), Status(&[200, 400])),
            (
                "a host that is not UTF-8",
                Sent::Bytes(b"POST / HTTP/1.1\r\nHost: \xff\xfe\r\n\r\n".to_vec()),
                Status(&[400, 404]),
            ),
            (
                "line feeds alone",
                format!("POST {PATH} HTTP/1.1\nHost: x\nContent-Length: 2\n\n[]").into(),
                Status(&[200, 400]),
            ),
        ],
    ));
    cases
}

fn not_http() -> Vec<Case> {
    because(
        "it is another protocol",
        [
            ("HTTP/0.9", text("GET /\n"), Status(&[400])),
            ("TLS", Sent::Bytes(b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03".repeat(20)), Closed(&[400])),
            ("the preface of HTTP/2", text("PRI * HTTP/2.0\n\nSM\n\n"), Closed(&[400])),
        ],
    )
}

fn routing() -> Vec<Case> {
    let method = |method: &str| text(&format!("{method} PATH HTTP/1.1\nHost: x\nContent-Length: 2\n\n[]"));
    let ending = |ending: &str| to(&format!("/vmh/webhook/beteiligte/{ending}"));
    let mut cases = because(
        "a route takes POST",
        [
            ("GET", method("GET"), Status(&[405])),
            ("TRACE", method("TRACE"), Status(&[405])),
            ("PUT", method("PUT"), Status(&[405])),
        ],
    );
    cases.extend(because(
        "no route has this target",
        [
            ("CONNECT", text("CONNECT hookgate.test:443 HTTP/1.1\nHost: x\n\n"), Status(&[404, 405])),
            ("OPTIONS *", text("OPTIONS * HTTP/1.1\nHost: x\n\n"), Status(&[404, 405])),
            ("an unknown path", to("/unknown"), Status(&[404])),
        ],
    ));
    cases.extend(because(
        "a route has one spelling: another one could get past the rules of a proxy",
        [
            ("a path with %00", ending("%00"), Status(&[404])),
            ("a path with %ff", ending("%ff"), Status(&[404])),
            ("a path with encoded dots", ending("%2e%2e"), Status(&[404])),
            ("a path with an encoded letter", ending("%63reate"), Status(&[404])),
            ("a path with dots", to("/vmh/../vmh/webhook/beteiligte/create"), Status(&[404])),
            ("a path with two slashes first", to("//vmh/webhook/beteiligte/create"), Status(&[404])),
            ("a path with a slash last", to(&format!("{PATH}/")), Status(&[404])),
        ],
    ));
    cases.extend(because(
        "RFC 9112 allows a whole address as the target",
        [("a whole address", to(&format!("http://hookgate.test{PATH}")), Taken(0, 0))],
    ));
    cases
}

fn ordinary() -> Vec<Case> {
    let mut cases = because(
        "odd, allowed, and harmless",
        [
            ("HTTP/1.0", text("POST PATH HTTP/1.0\nContent-Length: 2\n\n[]"), TakenThenClosed),
            ("blank lines first", Sent::Bytes([b"\r\n\r\n".to_vec(), open("[]")].concat()), Taken(0, 0)),
            ("closing as it is asked to", request(PATH, "Connection: close\r\n", "[]"), TakenThenClosed),
        ],
    );
    cases.extend(because(
        "a client that waits for 100 gets it, and then its answer",
        [(
            "Expect: 100-continue",
            request(PATH, "Expect: 100-continue\r\n", batch(["asked-for"])),
            Each(&[(100, 0), (200, 1)]),
        )],
    ));
    cases.extend(because(
        "an upgrade is an offer; a server may go on with HTTP/1.1",
        [
            ("an upgrade to HTTP/2", with("Connection: upgrade\nUpgrade: h2c"), Taken(0, 0)),
            ("an upgrade to WebSocket", with("Connection: upgrade\nUpgrade: websocket"), Taken(0, 0)),
        ],
    ));
    cases
}

fn several() -> Vec<Case> {
    let mut cases = because(
        "requests on one connection are answered in their order",
        [
            (
                "three requests at once",
                Sent::Bytes(
                    [["a"].as_slice(), &["a", "b"], &["a", "b", "c"]]
                        .map(|ids| post_and_stay(PATH, batch(ids.iter().map(|id| format!("in-order-{id}"))).as_bytes()))
                        .concat(),
                ),
                Each(&[(200, 1), (200, 2), (200, 3)]),
            ),
            // Without bodies: behind an unread one the connection ends, and the answer says so.
            (
                "100 requests at once that no route takes",
                "GET /x HTTP/1.1\r\nHost: x\r\n\r\n".repeat(100).into(),
                Each(&[(404, 0); 100]),
            ),
        ],
    );
    cases.extend(because(
        "what follows a good request does not spoil it",
        [
            (
                "half a head behind a good request",
                Sent::Bytes([post_and_stay(PATH, b"[]"), bytes("POST PATH HT")].concat()),
                TakenThenClosed,
            ),
            (
                "more than the length says",
                Sent::Bytes([open("[]"), b"GARBAGE\r\n\r\n".to_vec()].concat()),
                Each(&[(200, 0), (400, 0)]),
            ),
        ],
    ));
    cases
}

/// `\n` for a line end, `PATH` for the open route's.
fn bytes(head: &str) -> Vec<u8> {
    head.replace("PATH", PATH).replace('\n', "\r\n").into_bytes()
}

fn text(head: &str) -> Sent {
    Sent::Bytes(bytes(head))
}

/// An empty batch with another header before its length.
fn with(line: &str) -> Sent {
    text(&format!("POST PATH HTTP/1.1\nHost: x\n{line}\nContent-Length: 2\n\n[]"))
}

fn to(path: &str) -> Sent {
    request(path, "", "[]")
}

fn in_chunks(lines: &str, body: &str) -> Vec<u8> {
    bytes(&format!("POST PATH HTTP/1.1\nHost: x\n{lines}Transfer-Encoding: chunked\n\n{body}"))
}

fn chunked(lines: &str, body: &str) -> Sent {
    Sent::Bytes(in_chunks(lines, body))
}

fn dripped(start: &str, slow: &str) -> Sent {
    Sent::Dripped(bytes(start), slow.repeat(40).into_bytes())
}

/// An empty batch of so many bytes, each in a chunk of its own.
fn one_byte_each(count: usize) -> Sent {
    let body = format!("[{}]", " ".repeat(count - 2));
    let chunks = body.chars().fold(String::new(), |text, byte| text + "1\r\n" + byte.encode_utf8(&mut [0; 4]) + "\r\n");
    format!("POST {PATH} HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n{chunks}0\r\n\r\n").into()
}
