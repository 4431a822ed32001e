//! Only a sender with the secret gets an event in: the examples of each scheme's documents, bad signatures against the
//! real binary, rotation through the files of a secret mount, and what an operator is told.

use std::{
    fs,
    path::Path,
    sync::Arc,
    time::{Duration, SystemTime},
};

use base64::{Engine, engine::general_purpose::STANDARD};
use hmac::{Hmac, Mac};
use hookgate::signature::{Scheme, Secret, SignatureFailure, Verifier};
use sha2::Sha256;
use tempfile::TempDir;
use tokio::sync::watch;
use warp::http::{HeaderMap, HeaderName, HeaderValue};

use crate::support::{Answer, Gate, PATH, PENDING, World, batch, eventually, field, run, try_exchange};

/// What a real `EspoCRM` sent.
const ID: &str = "65f0c1d2e3a4b5c6d";
const SECRET: &str = "0123456789abcdef0123456789abcdef";
const BODY: &str = r#"[{"id":"6601aa0b1c2d3e4f5"}]"#;
const SIGNATURE: &str =
    "NjVmMGMxZDJlM2E0YjVjNmQ6MWNiOTUwN2ViN2Y2NmRkMDAyM2ViMjM5MWE4NTk5OTdlYmUzNDZkODcwYzFlMGI4ODljNDlhZjVhNDBmYzNmMw==";
const X_SIGNATURE: &str = "NjVmMGMxZDJlM2E0YjVjNmQ6HLlQfrf2bdACPrI5GoWZl+vjRthwweC4icSa9aQPw/M=";

fn headers(pairs: &[(&str, &str)]) -> HeaderMap {
    let pairs = pairs.iter().map(|(name, value)| {
        let name = HeaderName::from_bytes(name.as_bytes()).expect("it is a name");
        (name, HeaderValue::from_str(value).expect("it is a value"))
    });
    let mut headers = HeaderMap::new();
    for (name, value) in pairs {
        headers.append(name, value);
    }
    headers
}

/// What a verifier with one entry says.
fn verify(
    scheme: Scheme,
    secrets: &[&str],
    at: u64,
    pairs: &[(&str, &str)],
    body: &str,
) -> Result<(), SignatureFailure> {
    let secrets: Arc<[Secret]> = secrets.iter().map(|secret| Secret::from(*secret)).collect();
    let (_owner, secrets) = watch::channel(secrets);
    let now = SystemTime::UNIX_EPOCH + Duration::from_secs(at);
    let verifier = Verifier::new(vec![(scheme, secrets)]);
    verifier.verify(&headers(pairs), body.to_owned().into(), now).map(|verified| assert_eq!(verified.bytes(), body))
}

#[test]
fn espocrm_signs_each_body_under_the_id_of_its_webhook() {
    let says = |pairs: &[(&str, &str)]| verify(Scheme::EspoCrm { id: ID.to_owned() }, &[SECRET], 0, pairs, BODY);
    assert_eq!(says(&[("Signature", SIGNATURE)]), Ok(()));
    assert_eq!(says(&[("X-Signature", X_SIGNATURE)]), Ok(()));
    assert_eq!(says(&[]), Err(SignatureFailure::Missing));
    assert_eq!(says(&[("Signature", X_SIGNATURE)]), Err(SignatureFailure::Malformed), "the other header's form");
    assert_eq!(says(&[("X-Signature", SIGNATURE)]), Err(SignatureFailure::Malformed));
    let other = verify(Scheme::EspoCrm { id: "other".to_owned() }, &[SECRET], 0, &[("Signature", SIGNATURE)], BODY);
    assert_eq!(other, Err(SignatureFailure::UnknownId));
    let changed = BODY.replace('6', "7");
    let wrong = verify(Scheme::EspoCrm { id: ID.to_owned() }, &[SECRET], 0, &[("Signature", SIGNATURE)], &changed);
    assert_eq!(wrong, Err(SignatureFailure::Wrong));
}

/// <https://github.com/standard-webhooks/standard-webhooks/blob/main/spec/standard-webhooks.md>
#[test]
fn a_standard_webhooks_signature_is_good_for_five_minutes() {
    const SECRET: &str = "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw";
    const MAC: &str = "v1,g0hM9SsE+OTPJTGt/tmIKtSyZlE3uFJELVlNIOLJ1OE=";
    const BODY: &str = r#"{"test": 2432232314}"#;
    const SIGNED_AT: u64 = 1_614_265_330;
    let says = |id: &str, timestamp: &str, mac: &str, now: u64| {
        let pairs = [("webhook-id", id), ("webhook-timestamp", timestamp), ("webhook-signature", mac)];
        verify(Scheme::StandardWebhooks, &[SECRET], now, &pairs, BODY)
    };
    let (id, time) = ("msg_p5jXN8AQM9LWM0D4loKWxJek", "1614265330");
    assert_eq!(says(id, time, MAC, SIGNED_AT), Ok(()));
    for apart in [SIGNED_AT - 300, SIGNED_AT + 300] {
        assert_eq!(says(id, time, MAC, apart), Ok(()), "five minutes");
    }
    for apart in [SIGNED_AT - 301, SIGNED_AT + 301, 0] {
        assert_eq!(says(id, time, MAC, apart), Err(SignatureFailure::Expired));
    }
    let several = format!("v1a,abc v1,{} {MAC} v2,xyz", STANDARD.encode([0; 32]));
    assert_eq!(says(id, time, &several, SIGNED_AT), Ok(()), "any of several, of the versions that are known");
    assert_eq!(says("msg_other", time, MAC, SIGNED_AT), Err(SignatureFailure::Wrong));
    assert_eq!(says(id, "1614265331", MAC, SIGNED_AT), Err(SignatureFailure::Wrong));
    for (timestamp, mac) in [("now", MAC), ("-1", MAC), ("", MAC), (time, "v1"), (time, &MAC[..30]), (time, "")] {
        assert_eq!(says(id, timestamp, mac, SIGNED_AT), Err(SignatureFailure::Malformed), "{timestamp:?} {mac:?}");
    }
    let unsigned = verify(Scheme::StandardWebhooks, &[SECRET], 0, &[("webhook-id", id)], BODY);
    assert_eq!(unsigned, Err(SignatureFailure::Missing));
    let no_id = verify(Scheme::StandardWebhooks, &[SECRET], 0, &[("webhook-signature", MAC)], BODY);
    assert_eq!(no_id, Err(SignatureFailure::Malformed));
    let bare = SECRET.strip_prefix("whsec_").expect("it has one");
    let pairs = [("webhook-id", id), ("webhook-timestamp", time), ("webhook-signature", MAC)];
    assert_eq!(verify(Scheme::StandardWebhooks, &["whsec_AAAA", bare], SIGNED_AT, &pairs, BODY), Ok(()));
}

/// <https://docs.github.com/en/webhooks/using-webhooks/validating-webhook-deliveries#testing-the-webhook-payload-validation>
#[test]
fn github_signs_each_body() {
    const MAC: &str = "757107ea0eb2509fc211221cce984b8a37570b6d7586c22c46f4379c8b043e17";
    let says = |value: &str| {
        let pairs = [("X-Hub-Signature-256", value)];
        verify(Scheme::GitHub, &["It's a Secret to Everybody"], 0, &pairs, "Hello, World!")
    };
    assert_eq!(says(&format!("sha256={MAC}")), Ok(()));
    assert_eq!(says(&format!("sha256={}", MAC.replace('7', "8"))), Err(SignatureFailure::Wrong));
    for bad in
        [MAC.to_owned(), format!("sha256={}", &MAC[1..]), format!("sha1={MAC}"), format!("sha256=+{}", &MAC[1..])]
    {
        assert_eq!(says(&bad), Err(SignatureFailure::Malformed), "{bad}");
    }
}

/// <https://www.rfc-editor.org/rfc/rfc6750#section-2.1>
#[test]
fn a_bearer_token_is_compared_as_a_whole() {
    let says = |value: &str| verify(Scheme::Bearer, &["old", "mF_9.B5f-4.1JqM"], 0, &[("Authorization", value)], "[]");
    assert_eq!(says("Bearer mF_9.B5f-4.1JqM"), Ok(()));
    assert_eq!(says("bearer old"), Ok(()));
    assert_eq!(says("Bearer mF_9.B5f-4.1Jq"), Err(SignatureFailure::Wrong));
    for bad in ["Bearer ", "Bearer", "Basic bUZfOTo=", ""] {
        assert_eq!(says(bad), Err(SignatureFailure::Malformed), "{bad:?}");
    }
}

fn mac(secret: &str, body: &str) -> Vec<u8> {
    let mut mac = Hmac::<Sha256>::new_from_slice(secret.as_bytes()).expect("any length will do");
    mac.update(body.as_bytes());
    mac.finalize().into_bytes().to_vec()
}

/// The `Signature` of a webhook id.
fn sign(id: &str, secret: &str, body: &str) -> String {
    let hex = mac(secret, body).iter().fold(String::new(), |text, byte| format!("{text}{byte:02x}"));
    STANDARD.encode(format!("{id}:{hex}"))
}

async fn send(gate: &Gate, path: &str, pairs: &[(&str, &str)], body: &str) -> Answer {
    let lines = pairs.iter().fold(String::new(), |lines, (name, value)| format!("{lines}{name}: {value}\r\n"));
    let length = body.len();
    let request = format!(
        "POST {path} HTTP/1.1\r\nHost: x\r\n{lines}Content-Length: {length}\r\nConnection: close\r\n\r\n{body}"
    );
    try_exchange(gate.address(), request.as_bytes()).await.expect("there is an answer")
}

type Headers<'a> = Vec<(&'a str, &'a str)>;

/// Two routes, and the folder of their secrets as Kubernetes mounts it: links to a folder that is swapped.
struct Mount {
    folder: TempDir,
    generation: u32,
}

impl Mount {
    fn new() -> Self {
        let mut mount = Self { folder: tempfile::tempdir().expect("a folder can be made"), generation: 0 };
        mount.swap(&[("current", SECRET), ("other", "other-secret")]);
        for name in ["current", "previous", "other"] {
            std::os::unix::fs::symlink(Path::new("..data").join(name), mount.path(name)).expect("the folder is ours");
        }
        mount
    }

    fn path(&self, name: &str) -> std::path::PathBuf {
        self.folder.path().join(name)
    }

    /// Puts other files in the place of all, at once.
    fn swap(&mut self, files: &[(&str, &str)]) {
        self.generation += 1;
        let next = format!("..{}", self.generation);
        fs::create_dir(self.path(&next)).expect("the folder is ours");
        for (name, secret) in files {
            fs::write(self.path(&next).join(name), format!("{secret}\n")).expect("the folder is ours");
        }
        std::os::unix::fs::symlink(&next, self.path("..new")).expect("the folder is ours");
        fs::rename(self.path("..new"), self.path("..data")).expect("the folder is ours");
    }

    fn settings(&self, first: &str) -> String {
        let folder = self.folder.path().display();
        format!(
            "[[routes]]\nflow = \"vmh\"\nentity = \"beteiligte\"\naction = \"create\"\nauth = [{first}]\n\
             [[routes]]\nflow = \"vmh\"\nentity = \"akte\"\naction = \"create\"\nauth = [{{ scheme = \"espocrm\", id = \"akte-hook\", secret_files = [\"{folder}/other\"] }}]\n\
             [[routes]]\nflow = \"vmh\"\nentity = \"open\"\naction = \"create\"\n"
        )
    }

    fn entry(&self, files: &[&str]) -> String {
        let files: Vec<_> = files.iter().map(|name| format!("\"{}\"", self.path(name).display())).collect();
        format!("{{ scheme = \"espocrm\", id = \"{ID}\", secret_files = [{}] }}", files.join(", "))
    }
}

#[tokio::test]
async fn each_bad_signature_is_401() {
    let (world, mount) = (World::start().await, Mount::new());
    let mut gate = world.gate(&mount.settings(&mount.entry(&["current"]))).await;
    let good = sign(ID, SECRET, BODY);
    assert_eq!(good, SIGNATURE, "the example is signed as the sender signs");
    let decoded = STANDARD.decode(&good).expect("it is base64");
    let truncated = STANDARD.encode(&decoded[..decoded.len() - 2]);
    let no_colon = STANDARD.encode(String::from_utf8(decoded).expect("it is text").replace(':', ""));
    let (unknown, foreign) = (sign("nobody", SECRET, BODY), sign(ID, "other-secret", BODY));
    let other_route = sign("akte-hook", "other-secret", BODY);
    let cases: [(&str, &str, Headers); 12] = [
        ("none", "signature_missing", vec![]),
        ("another scheme", "signature_missing", vec![("X-Hub-Signature-256", &good)]),
        ("not base64", "signature_wrong", vec![("Signature", "%%%")]),
        ("empty", "signature_wrong", vec![("Signature", "")]),
        ("no colon", "signature_wrong", vec![("Signature", &no_colon)]),
        ("unknown id", "signature_wrong", vec![("Signature", &unknown)]),
        ("another secret", "signature_wrong", vec![("Signature", &foreign)]),
        ("another route's", "signature_wrong", vec![("Signature", &other_route)]),
        ("truncated", "signature_wrong", vec![("Signature", &truncated)]),
        ("twice, one good", "signature_wrong", vec![("Signature", &good), ("Signature", &foreign)]),
        ("twice, both good", "signature_wrong", vec![("Signature", &good), ("Signature", &good)]),
        ("both bad", "signature_wrong", vec![("Signature", &foreign), ("X-Signature", "eA==")]),
    ];
    for (case, error, pairs) in &cases {
        let answer = send(&gate, PATH, pairs, BODY).await;
        assert_eq!(answer.error(), (401, (*error).to_owned()), "{case}");
        assert_eq!(answer.header("www-authenticate"), Some("espocrm"), "{case}");
    }
    for at in 0..BODY.len() {
        let mut body = BODY.as_bytes().to_vec();
        body[at] ^= 1;
        let body = String::from_utf8(body).expect("it is ASCII");
        assert_eq!(send(&gate, PATH, &[("Signature", &good)], &body).await.status, 401, "byte {at} changed");
    }
    assert_eq!(send(&gate, PATH, &[], "no JSON").await.status, 401, "what is not signed is not even read");
    assert!(world.redis.pending(PENDING).await.is_empty());
    assert_eq!(world.nats.events().await, []);
    assert_eq!(run(&world.settings(), &["dead-letters", "list"]).good(), "no dead letters\n", "nor kept");

    let fine = [
        vec![("Signature", good.as_str())],
        vec![("Signature", &good), ("X-Signature", "bad")],
        vec![("Signature", "bad"), ("X-Signature", X_SIGNATURE)],
        vec![("X-Signature", X_SIGNATURE)],
        vec![("Signature", &good), ("Content-Encoding", "gzip"), ("Content-Type", "text/odd")],
    ];
    for (index, pairs) in fine.iter().enumerate() {
        let new = u64::from(index == 0);
        assert_eq!(send(&gate, PATH, pairs, BODY).await.counts(), (new, 1), "{pairs:?}; a replay brings nothing new");
    }
    assert_eq!(send(&gate, "/vmh/webhook/open/create", &[], &batch(["a"])).await.counts(), (1, 1), "asks for nothing");

    let metrics = gate.probe("/metrics").await;
    let counted = |reason: &str| {
        let name = format!("hookgate_signature_failures_total{{route=\"vmh/beteiligte/create\",reason=\"{reason}\"}} ");
        metrics
            .text()
            .lines()
            .find_map(|line| line.strip_prefix(&name))
            .map(|count| count.parse::<usize>().expect("a number"))
    };
    let counts = ["missing", "malformed", "unknown_id", "expired", "wrong"].map(counted);
    assert_eq!(counts, [Some(3), Some(6), Some(2), Some(0), Some(2 + BODY.len())]);
    let log = gate.log().await;
    let logged = |reason: &str| {
        let refused = log.iter().filter(|line| line.contains("request refused"));
        Some(refused.filter(|line| field(line, "reason").as_deref() == Some(reason)).count())
    };
    assert_eq!(["missing", "malformed", "unknown_id", "expired", "wrong"].map(logged), counts, "the log says which");
    let log = log.join("\n");
    for secret in [SECRET, "other-secret", &good, X_SIGNATURE, "6601aa0b1c2d3e4f5\",\"name"] {
        assert!(!log.contains(secret), "{secret} is in the log");
    }
}

#[tokio::test]
async fn a_changed_secret_file_is_read_without_a_restart() {
    let (world, mut mount) = (World::start().await, Mount::new());
    mount.swap(&[("current", "first"), ("previous", "zeroth"), ("other", "other-secret")]);
    let mut gate = world.gate(&mount.settings(&mount.entry(&["current", "previous"]))).await;
    let status = async |gate: &Gate, secret: &str| {
        let body = batch(["a"]);
        send(gate, PATH, &[("Signature", &sign(ID, secret, &body))], &body).await.status
    };
    assert_eq!([status(&gate, "zeroth").await, status(&gate, "first").await], [200, 200], "both hold");
    assert_eq!(status(&gate, "second").await, 401);

    mount.swap(&[("current", "second"), ("previous", "first"), ("other", "other-secret")]);
    eventually("the new secret holds", async || (status(&gate, "second").await == 200).then_some(())).await;
    assert_eq!(status(&gate, "first").await, 200, "during the rotation");
    assert_eq!(status(&gate, "zeroth").await, 401, "after it");

    // A mount that is half-way, or a file of the wrong kind, takes nothing away.
    fs::remove_file(mount.path("..data")).expect("the folder is ours");
    gate.wait_log("the one read before still holds").await;
    assert_eq!([status(&gate, "second").await, status(&gate, "first").await], [200, 200]);
    mount.swap(&[("current", "third"), ("previous", "second"), ("other", "other-secret")]);
    eventually("the newest secret holds", async || (status(&gate, "third").await == 200).then_some(())).await;
    let log = gate.log().await;
    let changes = log.iter().filter(|line| line.contains("secrets have changed")).count();
    assert_eq!(changes, 2, "each change is said once");
}

/// The end of a rotation: the old secret is taken out of the mount, or emptied. The last one stays whatever happens.
#[tokio::test]
async fn a_secret_that_is_taken_away_is_good_no_more() {
    let (world, mut mount) = (World::start().await, Mount::new());
    mount.swap(&[("current", "second"), ("previous", "first"), ("other", "other-secret")]);
    let gate = world.gate(&mount.settings(&mount.entry(&["current", "previous"]))).await;
    let status = async |secret: &str| {
        let body = batch(["a"]);
        send(&gate, PATH, &[("Signature", &sign(ID, secret, &body))], &body).await.status
    };
    assert_eq!([status("second").await, status("first").await], [200, 200]);
    mount.swap(&[("current", "second"), ("other", "other-secret")]);
    gate.wait_log("the one read before still holds").await;
    eventually("the old secret is withdrawn", async || (status("first").await == 401).then_some(())).await;
    let said = gate.wait_log("a secret was revoked").await;
    assert!(said.contains("previous") && said.contains("its file is missing or empty"), "{said}");
    assert_eq!(status("second").await, 200);

    mount.swap(&[("current", "second"), ("previous", "first"), ("other", "other-secret")]);
    eventually("it is back", async || (status("first").await == 200).then_some(())).await;
    mount.swap(&[("current", ""), ("previous", "first"), ("other", "other-secret")]);
    eventually("the emptied one is withdrawn", async || (status("second").await == 401).then_some(())).await;
    assert_eq!(status("first").await, 200);
}

/// After a rotation `previous` is deleted, and the pod starts again. The next rotation brings it back.
#[tokio::test]
async fn a_restart_without_the_previous_secret_starts_and_takes_the_next_one_in() {
    let (world, mut mount) = (World::start().await, Mount::new());
    mount.swap(&[("current", "second"), ("other", "other-secret")]);
    let gate = world.gate(&mount.settings(&mount.entry(&["current", "previous"]))).await;
    let said = gate.wait_log("is not accepted until the file holds one").await;
    assert!(said.contains("WARN") && said.contains("previous"), "{said}");
    let status = async |secret: &str| {
        let body = batch(["a"]);
        send(&gate, PATH, &[("Signature", &sign(ID, secret, &body))], &body).await.status
    };
    assert_eq!([status("second").await, status("first").await], [200, 401]);
    mount.swap(&[("current", "third"), ("previous", "second"), ("other", "other-secret")]);
    eventually("the new secret holds", async || (status("third").await == 200).then_some(())).await;
    eventually("beside the previous one", async || (status("second").await == 200).then_some(())).await;
}

#[tokio::test]
async fn the_operator_is_told_of_open_routes_and_of_mistakes_in_auth() {
    let (world, mount) = (World::start().await, Mount::new());
    let servers = world.settings();
    let with = |first: &str| format!("{servers}{}", mount.settings(first));
    let checked = run(&with(&mount.entry(&["current"])), &["check"]);
    assert_eq!(checked.code, Some(0), "{}", checked.remarks);
    assert!(checked.remarks.contains("route vmh/open/create takes webhooks from anybody"), "{}", checked.remarks);
    assert!(!checked.remarks.contains("beteiligte"), "{}", checked.remarks);
    assert!(!checked.printed.contains(SECRET) && checked.printed.contains(ID), "{}", checked.printed);
    let mut gate = world.gate(&mount.settings(&mount.entry(&["current"]))).await;
    let log = gate.log().await;
    let said: Vec<_> = log.iter().filter(|line| line.contains("takes webhooks from anybody")).collect();
    assert!(matches!(said[..], [line] if line.contains("WARN") && line.contains("vmh/open/create")), "{said:?}");

    let empty = mount.path("empty");
    fs::write(&empty, "\n").expect("the folder is ours");
    let mistakes = [
        (r#"{ scheme = "espocrm", secret_files = ["/x"] }"#.to_owned(), "needs the id of the webhook"),
        (r#"{ scheme = "espocrm", id = "a:b", secret_files = ["/x"] }"#.to_owned(), "has a colon in it"),
        (r#"{ scheme = "github", id = "a", secret_files = ["/x"] }"#.to_owned(), "leave it out"),
        (r#"{ scheme = "hmac", secret_files = ["/x"] }"#.to_owned(), "unknown variant `hmac`"),
        (r#"{ scheme = "bearer", secret_files = [] }"#.to_owned(), "nobody would be let in"),
        (r#"{ scheme = "bearer", secret_files = ["/nowhere/at-all"] }"#.to_owned(), "/nowhere/at-all"),
        (format!("{{ scheme = \"bearer\", secret_files = [{empty:?}] }}"), "it is empty"),
        (
            format!("{{ scheme = \"standard-webhooks\", secret_files = [{:?}] }}", mount.path("other")),
            "write whsec_ and base64",
        ),
        (format!("{0}, {0}", mount.entry(&["current"])), "is there twice"),
        (r#"{ scheme = "bearer", secret_file = "/x" }"#.to_owned(), "unknown field `secret_file`"),
    ];
    for (entry, complaint) in mistakes {
        let refused = run(&with(&entry), &["check"]);
        assert_eq!(refused.code, Some(2), "{entry}");
        assert!(
            refused.remarks.contains(complaint) && !refused.remarks.contains("other-secret"),
            "{entry}: {}",
            refused.remarks
        );
    }
}
