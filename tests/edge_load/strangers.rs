//! A bad signature costs the same CPU for a webhook id that the route knows and for one that it does not.

use base64::{Engine, engine::general_purpose::STANDARD};

use crate::{
    Measured, measured,
    support::{Gate, PATH, World},
};

/// Of a body, which is most of the cost.
const SIZE: usize = 4 << 20;
/// Requests of each kind, taken in turn.
const ROUNDS: usize = 30;
/// How much the cost of two kinds may differ.
const ALIKE: f64 = 1.2;

const KNOWN: &str = "65f0c1d2e3a4b5c6d";
const OTHER: &str = "65f0c1d2e3a4b5c6e";
const UNKNOWN: [&str; 2] = ["65f0c1d2e3a4b5c6f", "65f0c1d2e3a4b5c70"];

pub(crate) async fn check() -> u32 {
    let world = World::start().await;
    let files = tempfile::tempdir().expect("a temporary folder can be made");
    let file = |name: &str| {
        let path = files.path().join(name);
        std::fs::write(&path, name).expect("the folder is ours");
        path.display().to_string()
    };
    let (a, b, c) = (file("a"), file("b"), file("c"));
    let settings = format!(
        r#"
log.filter = "error,hookgate::app=info"
[[routes]]
flow = "vmh"
entity = "beteiligte"
action = "create"
auth = [
  {{ scheme = "espocrm", id = "{KNOWN}", secret_files = ["{a}", "{b}"] }},
  {{ scheme = "espocrm", id = "{OTHER}", secret_files = ["{c}"] }},
  {{ scheme = "github", secret_files = ["{a}"] }},
  {{ scheme = "bearer", secret_files = ["{b}"] }},
]
"#
    );
    let gate = world.gate(&settings).await;
    let new = |id: &str| format!("Signature: {}\r\n", STANDARD.encode(format!("{id}:{}", "0".repeat(64))));
    let old = |id: &str| format!("X-Signature: {}\r\n", STANDARD.encode(format!("{id}:{}", "x".repeat(32))));
    let bearer = "Authorization: Bearer wrong\r\n";
    let github = format!("X-Hub-Signature-256: sha256={}\r\n", "0".repeat(64));
    let mut failed = 0;
    for (what, known, unknown) in [
        ("alone", new(KNOWN), new(UNKNOWN[0])),
        ("the older header", old(OTHER), old(UNKNOWN[0])),
        ("beside a bearer token", new(KNOWN) + bearer, new(UNKNOWN[0]) + bearer),
        ("beside GitHub's header", old(KNOWN) + &github, old(UNKNOWN[0]) + &github),
        ("both headers, one of them", new(KNOWN) + &old(OTHER), new(KNOWN) + &old(UNKNOWN[0])),
        ("both headers", new(OTHER) + &old(KNOWN), new(UNKNOWN[0]) + &old(UNKNOWN[1])),
    ] {
        let check = async || {
            let ratio = ratio(&gate, [&unknown, &known]).await;
            let text = format!("CPU {ratio:.2}x of a known webhook id for an unknown one: {what}");
            Measured { good: (1.0 / ALIKE..ALIKE).contains(&ratio), text }
        };
        failed += measured(check).await;
    }
    failed
}

/// CPU of the first kind over that of the second.
async fn ratio(gate: &Gate, kinds: [&str; 2]) -> f64 {
    let body = " ".repeat(SIZE);
    let requests = kinds.map(|lines| {
        format!("POST {PATH} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n{lines}Content-Length: {SIZE}\r\n\r\n{body}")
    });
    let mut spent = [0.0; 2];
    for _ in 0..ROUNDS {
        for (request, spent) in requests.iter().zip(&mut spent) {
            let before = gate.cpu();
            assert_eq!(gate.exchange(request.as_bytes()).await.status, 401);
            *spent += gate.cpu().saturating_sub(before).as_secs_f64();
        }
    }
    spent[0] / spent[1]
}
