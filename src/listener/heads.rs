//! Looks at the heads of a connection as their bytes arrive, for ambiguous lengths that hyper repairs silently.
//!
//! hyper reads a head with both `Content-Length` and `Transfer-Encoding` as chunked, and drops the length. Of two equal
//! lengths it drops one. A proxy in front may have counted by the length; then the two disagree where the next request
//! begins. So such a request is refused. This module only finds it: hyper decides what a head is. It does not follow a
//! chunked body to its end: such a request is the last one of its connection.

use std::sync::{
    Arc,
    atomic::{AtomicU64, Ordering},
};

/// No request of the connection.
const NONE: u64 = u64::MAX;
/// Bytes of a line that are kept: enough for the longest name that matters, with a length.
const LINE: usize = 64;

/// Which request of a connection has an ambiguous length. Shared with what answers requests.
#[derive(Debug, Clone)]
pub(super) struct Ambiguous(Arc<AtomicU64>);

impl Ambiguous {
    /// Whether it is this request, counted from 0.
    pub(super) fn is(&self, request: u64) -> bool {
        self.0.load(Ordering::Relaxed) == request
    }
}

/// Where the next byte of the connection belongs.
#[derive(Debug)]
enum Place {
    /// To the head of a request.
    Head(Head),
    /// To a body, of which so many bytes are missing.
    Body(u64),
    /// Unknown: after a head that is ambiguous or announces chunks.
    Unknown,
}

#[derive(Debug)]
struct Head {
    line: [u8; LINE],
    kept: usize,
    lines: usize,
    /// A line with a length is longer than what is kept of it.
    cut: bool,
    length: Option<u64>,
    chunked: bool,
    /// It has more than one length.
    ambiguous: bool,
}

/// Follows the requests of one connection.
#[derive(Debug)]
pub(super) struct Heads {
    place: Place,
    request: u64,
    ambiguous: Ambiguous,
}

impl Heads {
    pub(super) fn new() -> Self {
        Self { place: Place::Head(Head::new()), request: 0, ambiguous: Ambiguous(Arc::new(AtomicU64::new(NONE))) }
    }

    pub(super) fn ambiguous(&self) -> Ambiguous {
        self.ambiguous.clone()
    }

    /// Whether exactly so many requests were read: all of them, and nothing of the next.
    pub(super) fn is_behind(&self, requests: u64) -> bool {
        let between = matches!(&self.place, Place::Head(head) if head.lines == 0 && head.kept == 0);
        between && self.request == requests
    }

    /// Follows bytes that were read.
    pub(super) fn follow(&mut self, mut bytes: &[u8]) {
        while !bytes.is_empty() {
            match &mut self.place {
                Place::Unknown => return,
                Place::Body(left) => {
                    let skipped = usize::try_from(*left).unwrap_or(usize::MAX).min(bytes.len());
                    bytes = &bytes[skipped..];
                    *left -= skipped as u64;
                    if *left == 0 {
                        self.place = Place::Head(Head::new());
                    }
                }
                Place::Head(head) => {
                    let end = memchr::memchr(b'\n', bytes);
                    head.keep(&bytes[..end.unwrap_or(bytes.len())]);
                    bytes = end.map_or(&[][..], |end| &bytes[end + 1..]);
                    if end.is_some() && head.end_line() {
                        self.end_head();
                    }
                }
            }
        }
    }

    fn end_head(&mut self) {
        let Place::Head(head) = std::mem::replace(&mut self.place, Place::Unknown) else { return };
        // A length that is cut off can't be followed.
        if head.ambiguous || head.cut || head.chunked && head.length.is_some() {
            self.ambiguous.0.store(self.request, Ordering::Relaxed);
            return;
        }
        if head.chunked {
            return;
        }
        self.request += 1;
        self.place = match head.length {
            None | Some(0) => Place::Head(Head::new()),
            Some(length) => Place::Body(length),
        };
    }
}

impl Head {
    const fn new() -> Self {
        Self { line: [0; LINE], kept: 0, lines: 0, cut: false, length: None, chunked: false, ambiguous: false }
    }

    fn line(&self) -> &[u8] {
        &self.line[..self.kept]
    }

    fn keep(&mut self, part: &[u8]) {
        let room = LINE - self.kept;
        let kept = &part[..part.len().min(room)];
        self.line[self.kept..][..kept.len()].copy_from_slice(kept);
        self.kept += kept.len();
        self.cut |= part.len() > room && self.value_of(b"content-length").is_some();
    }

    /// Whether this line was the last one of the head.
    fn end_line(&mut self) -> bool {
        let blank = matches!(self.line(), b"" | b"\r");
        if blank && self.lines > 0 {
            return true;
        }
        if !blank {
            if self.lines > 0 {
                if let Some(value) = self.value_of(b"content-length") {
                    let digits = std::str::from_utf8(value.trim_ascii()).ok();
                    // hyper refuses what is not a number.
                    let length = digits.and_then(|digits| digits.parse().ok()).unwrap_or(u64::MAX);
                    self.ambiguous |= self.length.replace(length).is_some();
                } else if self.value_of(b"transfer-encoding").is_some() {
                    self.chunked = true;
                }
            }
            self.lines += 1;
        }
        self.kept = 0;
        false
    }

    fn value_of(&self, name: &[u8]) -> Option<&[u8]> {
        let (start, rest) = self.line().split_at_checked(name.len())?;
        start.eq_ignore_ascii_case(name).then(|| rest.strip_prefix(b":"))?
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_is_behind_a_request_once_all_of_it_is_here_and_nothing_else() {
        let one = b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 2\r\n\r\n[]";
        let mut heads = Heads::new();
        for (at, byte) in [*one, *one].as_flattened().iter().enumerate() {
            assert_eq!((heads.is_behind(1), heads.is_behind(2)), (at == one.len(), false), "at byte {at}");
            heads.follow(&[*byte]);
        }
        assert_eq!((heads.is_behind(1), heads.is_behind(2)), (false, true));
    }

    fn ambiguous(text: &str, step: usize) -> Option<u64> {
        let mut heads = Heads::new();
        for part in text.as_bytes().chunks(step) {
            heads.follow(part);
        }
        let found = heads.ambiguous.0.load(Ordering::Relaxed);
        (found != NONE).then_some(found)
    }

    #[test]
    fn only_heads_count_and_only_both_names_in_one_head() {
        let length = "Content-Length: 9\r\n";
        let chunked = "transfer-encoding:chunked\r\n";
        let head = |lines: &str| format!("POST / HTTP/1.1\r\nHost: x\r\n{lines}\r\n");
        let decoy = head(&format!("{length}{chunked}"));
        let in_body = format!("{}{decoy}", head(&format!("Content-Length: {}\r\n", decoy.len())));
        let long = format!("X: {}\r\n", "transfer-encoding: chunked ".repeat(9));
        let cases = [
            (head(length), None),
            (head(chunked), None),
            (head(&format!("{length}{chunked}")), Some(0)),
            (head(&format!("{chunked}{length}")), Some(0)),
            (head(&format!("CONTENT-LENGTH:{}\r\n{chunked}", "0".repeat(200))), Some(0)),
            (format!("\r\n\r\n{}", head(&format!("{length}{chunked}"))), Some(0)),
            (format!("{}123456789{decoy}", head(length)), Some(1)),
            (format!("{}{}{decoy}", head(""), head("Content-Length: 0\r\n")), Some(2)),
            (in_body.clone(), None),
            (format!("{in_body}{decoy}"), Some(1)),
            (format!("{}{decoy}", head(chunked)), None),
            (head(&format!("{length}{length}")), Some(0)),
            (head(&format!("{length}{long}")), None),
            (format!("{}[\n\n]{decoy}", head(&format!("Content-Length: {}4\r\n", "0".repeat(60)))), Some(0)),
            (format!("Content-Length: 1\r\n{chunked}\r\n"), None),
        ];
        for (text, expected) in cases {
            for step in [1, 2, 7, text.len()] {
                assert_eq!(ambiguous(&text, step), expected, "in steps of {step}: {text}");
            }
        }
    }
}
