//! One connection: a request at a time, and the reading of its answer.

use std::{
    io::{self, Read, Write},
    net::SocketAddr,
    ops::Range,
    time::Instant,
};

use mio::{Interest, Registry, Token, net::TcpStream};

use crate::request::Request;

/// What an answer says.
pub(crate) struct Answer {
    pub(crate) status: u16,
    /// `new_ids_count`, where there is one.
    pub(crate) claimed: u64,
    /// Whether nothing more goes over this connection.
    pub(crate) last: bool,
}

/// A connection and what is on its way over it.
pub(crate) struct Connection {
    stream: TcpStream,
    pub(crate) request: Request,
    /// Bytes of the request that are sent, while one is on its way.
    written: Option<usize>,
    received: Vec<u8>,
    /// When the request was begun.
    pub(crate) sent_at: Instant,
    /// Counts of the new ids in the request.
    pub(crate) fresh: Range<u64>,
    /// Counts of the ids that were accepted last.
    pub(crate) accepted: Range<u64>,
}

impl Connection {
    /// Begins to connect.
    pub(crate) fn open(address: SocketAddr, batch: usize, token: usize, registry: &Registry) -> io::Result<Self> {
        Ok(Self {
            stream: connect(address, token, registry)?,
            request: Request::new(address, batch),
            written: None,
            received: Vec::with_capacity(4096),
            sent_at: Instant::now(),
            fresh: 0..0,
            accepted: 0..0,
        })
    }

    /// A new connection in place of one that has ended.
    pub(crate) fn reopen(&mut self, address: SocketAddr, token: usize, registry: &Registry) -> io::Result<()> {
        self.stream = connect(address, token, registry)?;
        self.written = None;
        self.received.clear();
        Ok(())
    }

    /// Whether a request is on its way.
    pub(crate) const fn busy(&self) -> bool {
        self.written.is_some()
    }

    /// Sends the request as it stands, or as much of it as the socket takes.
    pub(crate) fn send(&mut self, now: Instant) {
        self.sent_at = now;
        self.written = Some(0);
        self.write();
    }

    /// Goes on sending. If the server takes no more, an event comes too, and reading shows whether it said why.
    pub(crate) fn write(&mut self) {
        let Some(mut written) = self.written else { return };
        let bytes = self.request.bytes();
        while written < bytes.len() {
            match self.stream.write(&bytes[written..]) {
                Ok(length) => written += length,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                // Not connected yet, full, or closed: an event will come.
                Err(_) => break,
            }
        }
        self.written = Some(written);
    }

    /// Reads what is there; the answer, if all of it is. `ends`: whether the server's end of the stream has arrived.
    pub(crate) fn read(&mut self, buffer: &mut [u8], ends: bool) -> io::Result<Option<Answer>> {
        let mut ended = false;
        loop {
            match self.stream.read(buffer) {
                Ok(0) => {
                    ended = true;
                    break;
                }
                Ok(length) => {
                    self.received.extend_from_slice(&buffer[..length]);
                    // A read that does not fill the buffer has emptied the socket.
                    if length < buffer.len() && !ends {
                        break;
                    }
                }
                Err(error) if matches!(error.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::NotConnected) => break,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
        let Some(mut answer) = parse(&self.received)? else {
            return if ended { Err(io::ErrorKind::UnexpectedEof.into()) } else { Ok(None) };
        };
        let unsent = self.written.take().is_none_or(|written| written < self.request.bytes().len());
        answer.last |= unsent || ended;
        self.received.clear();
        Ok(Some(answer))
    }
}

fn connect(address: SocketAddr, token: usize, registry: &Registry) -> io::Result<TcpStream> {
    let mut stream = TcpStream::connect(address)?;
    stream.set_nodelay(true)?;
    registry.register(&mut stream, Token(token), Interest::READABLE | Interest::WRITABLE)?;
    Ok(stream)
}

/// The one answer in the bytes, if it is whole.
fn parse(bytes: &[u8]) -> io::Result<Option<Answer>> {
    let bad = |what: &str| io::Error::new(io::ErrorKind::InvalidData, format!("the answer {what}"));
    let Some(end) = bytes.windows(4).position(|window| window == b"\r\n\r\n") else { return Ok(None) };
    let head = std::str::from_utf8(&bytes[..end]).map_err(|_| bad("has a head that is not text"))?;
    let status = head.get(9..12).and_then(|code| code.parse().ok()).ok_or_else(|| bad("has no status"))?;
    let (mut length, mut last) = (None, false);
    for line in head.lines().skip(1) {
        let Some((name, value)) = line.split_once(':') else { continue };
        if name.eq_ignore_ascii_case("content-length") {
            length = value.trim().parse::<usize>().ok();
        } else if name.eq_ignore_ascii_case("connection") {
            last = value.trim().eq_ignore_ascii_case("close");
        }
    }
    let body = &bytes[end + 4..];
    let length = length.ok_or_else(|| bad("has no Content-Length"))?;
    if body.len() > length {
        return Err(bad("is longer than it says"));
    }
    Ok((body.len() == length).then(|| Answer { status, claimed: claimed(body), last }))
}

/// The number after `"new_ids_count":`.
fn claimed(body: &[u8]) -> u64 {
    const NAME: &[u8] = b"\"new_ids_count\":";
    let place = body.windows(NAME.len()).position(|window| window == NAME);
    let digits = place.map_or(&[][..], |place| body[place + NAME.len()..].trim_ascii_start());
    digits.iter().take_while(|digit| digit.is_ascii_digit()).fold(0, |n, digit| n * 10 + u64::from(digit - b'0'))
}

#[cfg(test)]
mod tests {
    use super::*;

    const WHOLE: &[u8] =
        b"HTTP/1.1 200 OK\r\ncontent-length: 40\r\n\r\n{\"new_ids_count\": 12,\"total_ids\":12,\"x\":1}";

    #[test]
    fn an_answer_is_read_when_it_is_whole() {
        let whole = &WHOLE[..WHOLE.len() - 2];
        assert!(parse(&whole[..whole.len() - 1]).expect("fine so far").is_none());
        let answer = parse(whole).expect("fine").expect("whole");
        assert_eq!((answer.status, answer.claimed, answer.last), (200, 12, false));
        assert!(parse(WHOLE).is_err(), "more than it says");
        assert!(parse(b"HTTP/1.1 200 OK\r\n\r\n").is_err(), "no length");
    }
}
