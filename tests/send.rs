//! `hookgate send`: a test webhook that hookgate takes for the sender's own, in each scheme.

use std::sync::{
    Arc, Mutex,
    atomic::{AtomicUsize, Ordering},
};

use tempfile::TempDir;
use warp::http::{HeaderValue, Response, StatusCode};

use crate::support::{Authority, Gate, Holds, HttpServer, Ran, World, run};

const ROUTE: &str = "vmh/beteiligte/create";

fn secret(folder: &TempDir, name: &str, secret: &str) -> String {
    let path = folder.path().join(name);
    std::fs::write(&path, secret).expect("the folder is ours");
    path.display().to_string()
}

fn route(auth: &str) -> String {
    format!("[[routes]]\nflow = \"vmh\"\nentity = \"beteiligte\"\naction = \"create\"\nauth = [{auth}]\n")
}

async fn send(gate: &Gate, settings: &str, more: &[&str]) -> Ran {
    let url = format!("http://{}", gate.address());
    let arguments = [&["send", ROUTE, "--url", &url], more].concat();
    let (settings, arguments) = (settings.to_owned(), arguments.into_iter().map(str::to_owned).collect::<Vec<_>>());
    let ran =
        tokio::task::spawn_blocking(move || run(&settings, &arguments.iter().map(String::as_str).collect::<Vec<_>>()));
    ran.await.expect("it does not panic")
}

#[tokio::test]
async fn a_test_webhook_is_signed_in_each_scheme() {
    let world = World::start().await;
    let folder = tempfile::tempdir().expect("a temporary folder can be made");
    let plain = secret(&folder, "plain", "0123456789abcdef0123456789abcdef");
    let whsec = secret(&folder, "whsec", "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw");
    for (number, auth) in [
        format!("{{ scheme = \"espocrm\", id = \"65f0c1d2e3a4b5c6d\", secret_files = [\"{plain}\"] }}"),
        format!("{{ scheme = \"standard-webhooks\", secret_files = [\"{whsec}\"] }}"),
        format!("{{ scheme = \"github\", secret_files = [\"{plain}\"] }}"),
        format!("{{ scheme = \"bearer\", secret_files = [\"{plain}\"] }}"),
        String::new(),
    ]
    .iter()
    .enumerate()
    {
        let settings = route(auth);
        let gate = world.gate(&settings).await;
        let (first, second) = (format!("test-{number}-1"), format!("test-{number}-2"));
        let ran = send(&gate, &settings, &["--id", &first, "--id", &second, "--output", "json"]).await;
        let row = &ran.rows()[0];
        assert_eq!((&row["status"], &row["answer"]["new_ids_count"]), (&200.into(), &2.into()), "{auth}: {row}");
    }
    assert_eq!(world.nats.events().await.len(), 10, "each is a real event");
}

#[tokio::test]
async fn an_answer_that_is_not_200_is_a_failure_and_says_what_hookgate_says() {
    let world = World::start().await;
    let folder = tempfile::tempdir().expect("a temporary folder can be made");
    let (good, bad) = (secret(&folder, "good", "good"), secret(&folder, "bad", "bad"));
    let auth = |id: &str, file: &str| format!("{{ scheme = \"espocrm\", id = \"{id}\", secret_files = [\"{file}\"] }}");
    let gate = world.gate(&route(&auth("one", &good))).await;

    let refused = send(&gate, &route(&auth("one", &bad)), &["--id", "a"]).await;
    assert_eq!(refused.code, Some(1), "{}", refused.remarks);
    assert!(refused.printed.starts_with("401 in "), "{}", refused.printed);
    assert!(!refused.printed.contains("bad"), "no secret is shown: {}", refused.printed);

    let both = route(&format!("{}, {}", auth("two", &bad), auth("one", &good)));
    let chosen = send(&gate, &both, &["--id", "a", "--webhook-id", "one"]).await;
    assert!(chosen.good().contains(r#""new_ids_count":1"#));

    let unknown = send(&gate, &both, &["--id", "a", "--webhook-id", "three"]).await.bad();
    assert!(unknown.contains("no entry of auth for webhook id \"three\""), "{unknown}");
}

#[tokio::test]
async fn what_does_not_answer_is_named() {
    let closed = std::net::TcpListener::bind("127.0.0.1:0").expect("there is a port").local_addr().expect("it has one");
    let url = format!("http://{closed}/?token=hidden");
    let refused = tokio::task::spawn_blocking(move || run("", &["send", ROUTE, "--id", "a", "--url", &url]));
    let refused = refused.await.expect("it does not panic").bad();
    assert!(refused.contains(&format!("ask http://{closed}/vmh/webhook/beteiligte/create: ")), "{refused}");
    assert!(refused.contains("refused"), "{refused}");
    assert!(!refused.contains("hidden"), "{refused}");

    let unknown = tokio::task::spawn_blocking(|| run("", &["send", "a/b/c", "--id", "a"])).await.expect("likewise");
    assert_eq!(unknown.code, Some(2));
    assert!(unknown.remarks.contains("hookgate routes"), "{}", unknown.remarks);
}

#[tokio::test]
async fn what_is_not_ready_yet_is_asked_again() {
    let answers = AtomicUsize::new(0);
    let server = HttpServer::start(None, move |_request| {
        let mut answer = Response::new("{}".into());
        if answers.fetch_add(1, Ordering::Relaxed) == 0 {
            *answer.status_mut() = StatusCode::SERVICE_UNAVAILABLE;
        }
        answer
    })
    .await;
    let url = server.url();
    let ran =
        tokio::task::spawn_blocking(move || run("", &["send", ROUTE, "--id", "a", "--url", &url, "--try-for", "30"]));
    let ran = ran.await.expect("it does not panic");
    assert!(ran.remarks.contains("it answers 503; sent again"), "{}", ran.remarks);
    assert!(ran.good().starts_with("200 in "));

    let closed = std::net::TcpListener::bind("127.0.0.1:0").expect("there is a port").local_addr().expect("it has one");
    let url = format!("http://{closed}");
    let refused =
        tokio::task::spawn_blocking(move || run("", &["send", ROUTE, "--id", "a", "--url", &url, "--try-for", "1"]));
    let refused = refused.await.expect("it does not panic").bad();
    assert_eq!(refused.matches("refused").count(), 2, "{refused}");
}

/// A signature holds for five minutes only.
#[tokio::test]
async fn what_is_sent_again_is_signed_again() {
    let folder = tempfile::tempdir().expect("a temporary folder can be made");
    let whsec = secret(&folder, "whsec", "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw");
    let settings = route(&format!("{{ scheme = \"standard-webhooks\", secret_files = [\"{whsec}\"] }}"));
    let signed = Arc::<Mutex<Vec<(HeaderValue, HeaderValue)>>>::default();
    let kept = Arc::clone(&signed);
    let server = HttpServer::start(None, move |request| {
        let header = |name: &str| request.headers()[name].clone();
        let mut kept = kept.lock().expect("nobody panics");
        kept.push((header("webhook-timestamp"), header("webhook-id")));
        let mut answer = Response::new("{}".into());
        if kept.len() == 1 {
            *answer.status_mut() = StatusCode::SERVICE_UNAVAILABLE;
        }
        answer
    })
    .await;
    let url = server.url();
    let ran = tokio::task::spawn_blocking(move || {
        run(&settings, &["send", ROUTE, "--id", "a", "--url", &url, "--try-for", "30"])
    });
    assert!(ran.await.expect("it does not panic").good().starts_with("200 in "));
    let signed = signed.lock().expect("nobody panics");
    let [first, again] = &signed[..] else { panic!("sent twice: {signed:?}") };
    assert_ne!(first.0, again.0, "the time of the signature is that of the request");
    assert_eq!(first.1, again.1, "it is the same message");
}

#[tokio::test]
async fn an_authority_that_is_not_trusted_is_told_apart() {
    let authority = Authority::new();
    let identity = authority.sign("server", "localhost", Holds::Now);
    let server = HttpServer::start(Some(&identity), |_request| Response::new("{}".into())).await;
    let url = server.url();
    let ca = authority.ca().display().to_string();
    let ask = async |more: Vec<String>| {
        let url = url.clone();
        let ran = tokio::task::spawn_blocking(move || {
            let more = more.iter().map(String::as_str);
            run("", &["send", ROUTE, "--id", "a", "--url", &url].into_iter().chain(more).collect::<Vec<_>>())
        });
        ran.await.expect("it does not panic")
    };
    let refused = ask(vec![]).await.bad();
    assert!(refused.contains("UnknownIssuer") && refused.contains("--ca-file"), "{refused}");
    assert!(ask(vec!["--ca-file".to_owned(), ca]).await.good().starts_with("200 in "));
}
