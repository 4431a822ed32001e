//! A case of the table, and how it is tried.
//!
//! The table is in `framing.rs`, `signatures.rs` and `bodies.rs`: for each case its name, what is sent, what has to come
//! back, and why.

use std::{fs, time::Duration};

use base64::{Engine, engine::general_purpose::STANDARD};
use hmac::{Hmac, Mac};
use sha2::Sha256;
use tempfile::TempDir;

use crate::support::{Connection, Gate, PATH, SUBJECT, World, batch, eventually, in_time};

/// A route that asks for a signature of `EspoCRM`, with two secrets; and one with another.
pub(super) const SIGNED: &str = "/vmh/webhook/signed/create";
pub(super) const ID: &str = "65f0c1d2e3a4b5c6d";
pub(super) const CURRENT: &str = "0123456789abcdef0123456789abcdef";
pub(super) const PREVIOUS: &str = "the one before";
pub(super) const OTHERS: &str = "of another route";

/// Between two bytes of a sender that drips.
const DRIP: Duration = Duration::from_millis(40);

#[derive(Clone)]
pub(super) struct Case {
    /// No other case has it.
    pub(super) name: &'static str,
    pub(super) sent: Sent,
    pub(super) expect: Expect,
    /// Why hookgate answers so.
    pub(super) why: &'static str,
}

/// Cases with the same reason.
pub(super) fn because<const N: usize>(why: &'static str, cases: [(&'static str, Sent, Expect); N]) -> Vec<Case> {
    cases.map(|(name, sent, expect)| Case { name, sent, expect, why }).to_vec()
}

/// What goes over the wire.
#[derive(Clone)]
pub(super) enum Sent {
    /// All of it, and then the sender waits.
    Bytes(Vec<u8>),
    /// All of it, and then the sender says that nothing more comes.
    ThenEnd(Vec<u8>),
    /// The first part at once, the second byte by byte.
    Dripped(Vec<u8>, Vec<u8>),
    /// Twice, on two connections; the second one is judged.
    Twice(Vec<u8>),
    /// As soon as the previous secret is no longer one.
    AfterRotation(Vec<u8>),
}

impl From<String> for Sent {
    fn from(bytes: String) -> Self {
        Self::Bytes(bytes.into_bytes())
    }
}

#[derive(Clone, Copy)]
pub(super) enum Expect {
    /// An answer with one of these codes.
    Status(&'static [u16]),
    /// 200: ids in all, and items that were rejected.
    Taken(u64, u64),
    /// The same, and how many ids are new.
    New(u64, u64),
    /// These, one after the other; the ids in all where it is 200.
    Each(&'static [(u16, u64)]),
    /// The connection ends without an answer, or with one of these.
    Closed(&'static [u16]),
    /// 200, and then the connection ends.
    TakenThenClosed,
}

/// A request with these lines beside the usual ones.
pub(super) fn request(path: &str, lines: &str, body: impl AsRef<[u8]>) -> Sent {
    Sent::Bytes(request_bytes(path, lines, body))
}

pub(super) fn request_bytes(path: &str, lines: &str, body: impl AsRef<[u8]>) -> Vec<u8> {
    let body = body.as_ref();
    let length = body.len();
    let head = format!("POST {path} HTTP/1.1\r\nHost: hookgate.test\r\n{lines}Content-Length: {length}\r\n\r\n");
    [head.as_bytes(), body].concat()
}

/// `EspoCRM`'s header since version 9.
pub(super) fn signature(id: &str, secret: &str, body: &[u8]) -> String {
    let digits = mac(secret, body).iter().fold(String::new(), |text, byte| format!("{text}{byte:02x}"));
    STANDARD.encode(format!("{id}:{digits}"))
}

/// And the one before.
pub(super) fn x_signature(id: &str, secret: &str, body: &[u8]) -> String {
    STANDARD.encode([format!("{id}:").as_bytes(), &mac(secret, body)].concat())
}

fn mac(secret: &str, body: &[u8]) -> Vec<u8> {
    let mac = Hmac::<Sha256>::new_from_slice(secret.as_bytes()).expect("HMAC takes keys of any length");
    mac.chain_update(body).finalize().into_bytes().to_vec()
}

/// A hookgate whose limits are soon reached.
pub(super) struct Site {
    pub(super) gate: Gate,
    secrets: TempDir,
}

impl Site {
    pub(super) async fn start(world: &World) -> Self {
        let secrets = tempfile::tempdir().expect("a temporary folder can be made");
        let file = |name: &str, text: &str| {
            let path = secrets.path().join(name);
            fs::write(&path, text).expect("the folder is ours");
            path.display().to_string()
        };
        let (current, previous, others) =
            (file("current", CURRENT), file("previous", PREVIOUS), file("others", OTHERS));
        let settings = format!(
            r#"
server.first_request_timeout = "700ms"
server.header_read_timeout = "700ms"
server.body_read_timeout = "700ms"
server.max_body_bytes = 2097152
routes = [
  {{ flow = "vmh", entity = "beteiligte", action = "create" }},
  {{ flow = "vmh", entity = "signed", action = "create", auth = [
      {{ scheme = "espocrm", id = "{ID}", secret_files = ["{current}", "{previous}"] }} ] }},
  {{ flow = "vmh", entity = "others", action = "create", auth = [
      {{ scheme = "espocrm", id = "other-id", secret_files = ["{others}"] }} ] }},
]
"#
        );
        Self { gate: world.gate(&settings).await, secrets }
    }

    pub(super) async fn connect(&self) -> Connection {
        Connection::open(self.gate.address()).await.expect("hookgate listens")
    }

    /// Where the events of its routes go.
    #[expect(clippy::unused_self, reason = "it is about this site")]
    pub(super) fn subjects(&self) -> [&str; 3] {
        [SUBJECT, "vmh.signed.create", "vmh.others.create"]
    }

    pub(super) async fn honest(&self, id: &str) {
        assert_eq!(self.gate.post(batch([id])).await.counts(), (1, 1), "{id}: an honest request is served");
    }

    /// Does what a case needs before.
    pub(super) async fn prepare(&self, case: &Case) {
        match &case.sent {
            Sent::Twice(bytes) => {
                let mut first = self.connect().await;
                first.send(bytes).await.expect("hookgate reads");
                first.answer().await.expect("hookgate answers");
            }
            Sent::AfterRotation(bytes) => {
                fs::write(self.secrets.path().join("previous"), "a third one").expect("the folder is ours");
                eventually("the change is seen", async || {
                    (self.gate.exchange(bytes).await.status == 401).then_some(())
                })
                .await;
            }
            Sent::Bytes(_) | Sent::ThenEnd(_) | Sent::Dripped(..) => {}
        }
    }

    /// Sends and judges; whether the case may claim ids of the open route.
    pub(super) async fn ask(&self, case: &Case) -> bool {
        let Case { name, why, .. } = case;
        let what = format!("{name} ({why})");
        let mut connection = self.connect().await;
        // Whoever is answered early may find the connection closed in the middle of a write.
        match &case.sent {
            Sent::Bytes(bytes) | Sent::Twice(bytes) | Sent::AfterRotation(bytes) => {
                let _refused = connection.send(bytes).await;
            }
            Sent::ThenEnd(bytes) => {
                let _refused = connection.send(bytes).await;
                connection.end().await.expect("it is open");
            }
            Sent::Dripped(start, slow) => {
                connection.send(start).await.expect("hookgate reads");
                drip(&mut connection, slow, &what).await;
            }
        }
        let mut answer = async || {
            let answer = connection.answer().await;
            answer.unwrap_or_else(|error| panic!("{what}: no answer: {error}"))
        };
        match case.expect {
            Expect::Status(codes) => {
                let answer = answer().await;
                assert!(codes.contains(&answer.status), "{what}: {} {}", answer.status, answer.text());
                answer.status == 200
            }
            Expect::Taken(total, rejected) => {
                let answer = answer().await;
                assert_eq!(answer.status, 200, "{what}: {}", answer.text());
                assert_eq!((answer.counts().1, answer.rejected()), (total, rejected), "{what}");
                true
            }
            Expect::New(new, total) => {
                let answer = answer().await;
                assert_eq!(answer.status, 200, "{what}: {}", answer.text());
                assert_eq!(answer.counts(), (new, total), "{what}");
                true
            }
            Expect::Each(each) => {
                for (status, total) in each {
                    let answer = answer().await;
                    assert_eq!(answer.status, *status, "{what}: {}", answer.text());
                    if *status == 200 {
                        assert_eq!(answer.counts().1, *total, "{what}");
                    }
                }
                each.iter().any(|(status, total)| *status == 200 && *total > 0)
            }
            Expect::Closed(codes) => {
                let rest = in_time(&what, connection.closed()).await.unwrap_or_default();
                let code =
                    std::str::from_utf8(rest.get(9..12).unwrap_or_default()).ok().and_then(|code| code.parse().ok());
                assert!(rest.is_empty() || code.is_some_and(|code: u16| codes.contains(&code)), "{what}: {code:?}");
                false
            }
            Expect::TakenThenClosed => {
                let answer = answer().await;
                assert_eq!(answer.status, 200, "{what}: {}", answer.text());
                assert_eq!(connection.closed().await.unwrap_or_default(), b"", "{what}");
                true
            }
        }
    }
}

/// Sends byte by byte until the other side has enough. The pace is the sender's own, not a wait for something.
async fn drip(connection: &mut Connection, bytes: &[u8], what: &str) {
    let mut pace = tokio::time::interval(DRIP);
    for byte in bytes {
        pace.tick().await;
        if connection.send(std::slice::from_ref(byte)).await.is_err() || connection.has_answer().await {
            return;
        }
    }
    panic!("{what}: all of it was read, however slowly it came");
}

/// Of the open route.
pub(super) fn open(body: impl AsRef<[u8]>) -> Vec<u8> {
    request_bytes(PATH, "", body)
}
