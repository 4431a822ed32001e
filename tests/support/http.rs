//! An HTTP/1.1 client that sends whatever bytes a test wants it to, and never reuses a connection.

use std::{
    io::{Error, ErrorKind, Result},
    net::SocketAddr,
    time::{Duration, Instant, SystemTime},
};

use hookgate::signature::{Scheme, Secret};
use serde_json::Value;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
};

use super::PATH;

/// `EspoCRM` gives up after 10 s; an answer later than this has failed.
const DEADLINE: Duration = Duration::from_secs(12);

/// What came back.
#[derive(Debug, Clone)]
pub(crate) struct Answer {
    pub(crate) status: u16,
    pub(crate) headers: Vec<(String, String)>,
    pub(crate) body: Vec<u8>,
    /// From asking to the end of the answer.
    pub(crate) took: Duration,
}

impl Answer {
    /// A header, by its name in any case.
    pub(crate) fn header(&self, name: &str) -> Option<&str> {
        self.headers.iter().find(|(known, _)| known.eq_ignore_ascii_case(name)).map(|(_, value)| value.as_str())
    }

    pub(crate) fn text(&self) -> &str {
        std::str::from_utf8(&self.body).expect("the body is text")
    }

    pub(crate) fn json(&self) -> Value {
        serde_json::from_slice(&self.body).unwrap_or_else(|error| panic!("{error} in {:?}", self.text()))
    }

    /// Of a batch that was taken: ids that are new, and ids in all.
    pub(crate) fn counts(&self) -> (u64, u64) {
        assert_eq!(self.status, 200, "{}", self.text());
        let body = self.json();
        let count = |name: &str| body[name].as_u64().unwrap_or_else(|| panic!("no {name} in {body}"));
        (count("new_ids_count"), count("total_ids_in_batch"))
    }

    /// Of a batch that was taken: items that were left out.
    pub(crate) fn rejected(&self) -> u64 {
        assert_eq!(self.status, 200, "{}", self.text());
        self.json().get("rejected_items_count").map_or(0, |count| count.as_u64().expect("it is a number"))
    }

    /// Of a refusal: which one, after a look at the shape that all of them have.
    pub(crate) fn error(&self) -> (u16, String) {
        let body = self.json();
        let members: Vec<_> = body.as_object().expect("a refusal is an object").keys().map(String::as_str).collect();
        assert_eq!(body["status"], "error");
        if self.status == 503 {
            assert_eq!(members, ["error", "message", "status", "trace_id"], "members of {body}");
            assert_eq!(body["message"], "temporarily unavailable, retry later", "and nothing of the inside");
            let trace_id = body["trace_id"].as_str().expect("the log can be searched for it");
            assert!(trace_id.len() == 32 && trace_id.bytes().all(|digit| digit.is_ascii_hexdigit()), "{body}");
        } else {
            assert_eq!(members, ["error", "message", "status"], "members of {body}");
            assert!(body["message"].as_str().is_some_and(|message| message.len() > 10), "{body} says what to do");
        }
        assert_eq!(self.header("content-type"), Some("application/json"));
        let retry_after = self.header("retry-after").and_then(|seconds| seconds.parse::<u32>().ok());
        assert_eq!(retry_after.is_some(), self.status == 503, "whoever shall come back is told when: {self:?}");
        (self.status, body["error"].as_str().expect("a refusal has a name").to_owned())
    }
}

/// A POST as a sender writes it, on a connection of its own.
pub(crate) fn post(path: &str, body: &[u8]) -> Vec<u8> {
    post_on(path, body, "close")
}

/// A POST on a connection that the client would like to keep.
pub(crate) fn post_and_stay(path: &str, body: &[u8]) -> Vec<u8> {
    post_on(path, body, "keep-alive")
}

fn post_on(path: &str, body: &[u8], connection: &str) -> Vec<u8> {
    let length = body.len();
    let head = format!(
        "POST {path} HTTP/1.1\r\nHost: hookgate.test\r\nContent-Type: application/json\r\nContent-Length: {length}\r\nConnection: {connection}\r\n\r\n"
    );
    [head.as_bytes(), body].concat()
}

/// Sends bytes on a new connection and reads one answer.
pub(crate) async fn try_exchange(address: SocketAddr, request: &[u8]) -> Result<Answer> {
    let mut connection = Connection::open(address).await?;
    connection.send(request).await?;
    connection.answer().await
}

/// A connection that stays open until it is dropped.
pub(crate) struct Connection {
    stream: TcpStream,
    unread: Vec<u8>,
    asked: Instant,
}

impl Connection {
    pub(crate) async fn open(address: SocketAddr) -> Result<Self> {
        let stream = in_time(TcpStream::connect(address)).await?;
        Ok(Self { stream, unread: Vec::new(), asked: Instant::now() })
    }

    pub(crate) async fn send(&mut self, bytes: &[u8]) -> Result<()> {
        in_time(self.stream.write_all(bytes)).await
    }

    /// Reads the next answer.
    pub(crate) async fn answer(&mut self) -> Result<Answer> {
        in_time(self.read_answer()).await
    }

    /// Waits until the other side has closed; whatever still comes is given back.
    pub(crate) async fn closed(&mut self) -> Result<Vec<u8>> {
        in_time(async {
            while self.read_more().await? {}
            Ok(())
        })
        .await?;
        Ok(std::mem::take(&mut self.unread))
    }

    /// Ends the sending side.
    pub(crate) async fn end(&mut self) -> Result<()> {
        self.stream.shutdown().await
    }

    /// Whether something came back by now, or the other side has closed.
    pub(crate) async fn has_answer(&mut self) -> bool {
        let at_once = tokio::time::timeout(Duration::ZERO, self.stream.readable()).await;
        at_once.is_ok()
    }

    async fn read_answer(&mut self) -> Result<Answer> {
        let end = loop {
            if let Some(end) = self.unread.windows(4).position(|four| four == b"\r\n\r\n") {
                break end;
            }
            if !self.read_more().await? {
                return Err(Error::new(ErrorKind::UnexpectedEof, "closed before an answer"));
            }
        };
        let rest = self.unread.split_off(end + 4);
        let head = String::from_utf8(std::mem::replace(&mut self.unread, rest)).map_err(Error::other)?;
        let mut lines = head.lines();
        let status = lines.next().and_then(|line| line.split(' ').nth(1)).and_then(|code| code.parse().ok());
        let status = status.ok_or_else(|| Error::other(format!("no status in {head:?}")))?;
        let headers = lines.filter_map(|line| line.split_once(": "));
        let headers: Vec<_> = headers.map(|(name, value)| (name.to_owned(), value.to_owned())).collect();
        let mut answer = Answer { status, headers, body: Vec::new(), took: Duration::ZERO };
        let length = answer.header("content-length").and_then(|length| length.parse().ok()).unwrap_or(0);
        // The answer to HEAD has a length and no body.
        while self.unread.len() < length && self.read_more().await? {}
        let rest = self.unread.split_off(self.unread.len().min(length));
        answer.body = std::mem::replace(&mut self.unread, rest);
        answer.took = self.asked.elapsed();
        Ok(answer)
    }

    async fn read_more(&mut self) -> Result<bool> {
        Ok(self.stream.read_buf(&mut self.unread).await? > 0)
    }
}

async fn in_time<T>(work: impl Future<Output = Result<T>>) -> Result<T> {
    let late = |_elapsed| Error::new(ErrorKind::TimedOut, format!("nothing within {DEADLINE:?}"));
    tokio::time::timeout(DEADLINE, work).await.map_err(late)?
}

/// A webhook as EspoCRM signs it with this secret, on a connection that ends with the answer.
pub(crate) fn signed(id: &str, secret: &str, body: &str) -> Vec<u8> {
    let scheme = Scheme::EspoCrm { id: id.to_owned() };
    let headers = scheme.sign(&Secret::from(secret), body.as_bytes(), "", SystemTime::now());
    let signature = String::from_utf8(headers[0].1.clone()).expect("it is base64");
    let head = format!("POST {PATH} HTTP/1.1\r\nHost: x\r\nSignature: {signature}\r\nConnection: close\r\n");
    format!("{head}Content-Length: {}\r\n\r\n{body}", body.len()).into_bytes()
}
