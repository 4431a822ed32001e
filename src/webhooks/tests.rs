//! Each filter by itself: what it lets through, what it rejects, and what a request holds behind it.

use std::{sync::Arc, time::Duration};

use futures_util::{FutureExt, future::BoxFuture};
use tokio::sync::watch;
use tokio_util::task::TaskTracker;
use warp::test::RequestBuilder;

use super::{request::RejectedRequest, *};
use crate::{
    dead_letters::DeadLetterLimits,
    delivery::{Ack, Policy, PublishError, Publisher, WithoutAck, WithoutClaim},
    event::Event,
    pending::memory::Memory,
    readiness::Contact,
    reply::{Refusal, SHED},
    route::{Route, RouteSpec},
    shutdown::Shutdown,
    signature::{Scheme, Secret, Verifier},
    traces::Tracer,
};

const OPEN: &str = "/vmh/webhook/beteiligte/create";
const SIGNED: &str = "/vmh/webhook/akte/create";
const MAX_BODY: usize = 100_000;
const BUDGET: usize = 400_000;

/// Nobody acknowledges anything.
struct Silent;

impl Publisher for Silent {
    fn publish<'a>(
        &'a self,
        _route: &'a Route,
        events: Vec<Event>,
        limit: Duration,
    ) -> BoxFuture<'a, Vec<Result<Ack, PublishError>>> {
        async move { events.iter().map(|_| Err(PublishError::NoAck(limit))).collect() }.boxed()
    }

    fn contact(&self) -> watch::Receiver<Contact> {
        watch::Sender::new(Contact::Up).subscribe()
    }

    fn server_version(&self) -> Option<String> {
        None
    }
}

struct Fixture {
    webhooks: Arc<Webhooks>,
    shutdown: Shutdown,
    _secrets: watch::Sender<Arc<[Secret]>>,
}

impl Fixture {
    fn new() -> Self {
        let route = |entity| {
            Route::new(&RouteSpec { flow: "vmh", entity, action: "create", ..RouteSpec::default() })
                .expect("it is valid")
        };
        let routes = vec![route("beteiligte"), route("akte")];
        let secrets = watch::Sender::new(Arc::from([Secret::from("secret")]));
        let verifiers = Verifiers::new([
            (routes[0].name().to_owned(), Verifier::default()),
            (routes[1].name().to_owned(), Verifier::new(vec![(Scheme::Bearer, secrets.subscribe())])),
        ]);
        let table = RouteTable::new(routes).expect("they do not clash");
        let metrics = Metrics::new(&table, &SHED).0;
        let memory = Arc::new(Memory::new(1000));
        let policy = Policy {
            without_claim: WithoutClaim::Reject,
            without_ack: WithoutAck::Accept,
            ack_timeout: Duration::from_millis(100),
        };
        let delivery = Delivery::new(
            Arc::clone(&memory) as _,
            Arc::new(Silent),
            policy,
            &table,
            metrics.clone(),
            Tracer::default(),
        );
        let shutdown = Shutdown::default();
        let letters = DeadLetterLimits {
            max_entries: 10,
            max_item_bytes: 100,
            max_bytes: 1000,
            max_age: Duration::from_secs(60),
        };
        let time = Duration::from_secs(1);
        let webhooks = Arc::new(Webhooks {
            table: Arc::new(table),
            verifiers: Arc::new(verifiers),
            delivery: Arc::new(delivery),
            dead_letters: DeadLetters::start(memory, letters, shutdown.watch(), &TaskTracker::new()),
            limits: Limits::new(MAX_BODY, BUDGET, 1, time, time, 1),
            phase: shutdown.watch(),
            metrics,
            quarantine: None,
            tracer: Tracer::default(),
        });
        Self { webhooks, shutdown, _secrets: secrets }
    }

    /// Permits and bytes that requests hold.
    fn taken(&self) -> (usize, usize) {
        let in_use = self.webhooks.limits.in_use();
        (in_use.requests, in_use.bytes)
    }
}

/// The chain up to a filter; `stage!(fixture, body, permit)` ends with the permit.
macro_rules! stage {
    ($fixture:expr) => {{
        let webhooks = Arc::clone(&$fixture.webhooks);
        let head = warp::path::full().and(warp::method()).and(warp::header::headers_cloned());
        head.and_then(move |path: FullPath, method: Method, headers: HeaderMap| route(&webhooks, &path, &method, headers))
    }};
    ($fixture:expr, precheck) => { stage!($fixture).and_then(precheck) };
    ($fixture:expr, $($step:ident),+) => {
        stage!($fixture, precheck).and(warp::body::stream())$(.and_then($step))+
    };
}

/// What a request was rejected for.
fn refusal<T>(outcome: Result<T, Rejection>) -> (u16, &'static str) {
    let Err(rejection) = outcome else { panic!("it was let through") };
    let (code, error) = rejection.find::<RejectedRequest>().expect("filters reject in one way").refusal.status();
    (code.as_u16(), error)
}

fn post(path: &str) -> RequestBuilder {
    warp::test::request().method("POST").path(path)
}

/// A text that blanks make so many bytes long.
fn padded(text: &str, bytes: usize) -> String {
    text.to_owned() + &" ".repeat(bytes - text.len())
}

/// A body of so many bytes with one id.
fn batch(bytes: usize) -> String {
    padded(r#"[{"id":"a"}]"#, bytes)
}

#[tokio::test]
async fn route_lets_a_post_to_a_known_path_through() {
    let fixture = Fixture::new();
    let stage = stage!(fixture);
    let request = post(OPEN).filter(&stage).await.expect("it is let through");
    assert_eq!(request.route.path(), OPEN);
    assert_eq!(refusal(post("/elsewhere").filter(&stage).await), (404, "unknown_path"));
    assert_eq!(refusal(warp::test::request().path(OPEN).filter(&stage).await), (405, "method_not_allowed"));
}

#[tokio::test]
async fn route_knows_whether_a_body_is_left_unread() {
    let fixture = Fixture::new();
    let stage = stage!(fixture);
    let unread = async |request: RequestBuilder| {
        let rejection = request.filter(&stage).await.expect_err("the path is unknown");
        rejection.find::<RejectedRequest>().expect("filters reject in one way").unread
    };
    assert!(unread(post("/elsewhere").body("[]")).await);
    assert!(!unread(post("/elsewhere")).await);
}

#[tokio::test]
async fn precheck_asks_for_a_signature_that_could_be_good() {
    let fixture = Fixture::new();
    let stage = stage!(fixture, precheck);
    assert_eq!(refusal(post(SIGNED).filter(&stage).await), (401, "signature_missing"));
    let malformed = post(SIGNED).header("authorization", "Basic x");
    assert_eq!(refusal(malformed.filter(&stage).await), (401, "signature_wrong"));
    post(SIGNED).header("authorization", "Bearer wrong").filter(&stage).await.expect("it could be good");
    post(OPEN).filter(&stage).await.expect("the route asks for none");
}

#[tokio::test]
async fn precheck_weighs_a_long_head_and_holds_no_permit() {
    let fixture = Fixture::new();
    let stage = stage!(fixture, precheck);
    let short = post(OPEN).filter(&stage).await.expect("it is let through");
    assert_eq!(fixture.taken(), (0, 0));
    let long = post(OPEN).header("x-long", "x".repeat(5000)).filter(&stage).await.expect("it is let through");
    let (permits, bytes) = fixture.taken();
    assert!(permits == 0 && bytes > 15_000, "{bytes}");
    drop((short, long));
    assert_eq!(fixture.taken(), (0, 0));
    let too_long = post(OPEN).header("x-long", "x".repeat(BUDGET / 3)).filter(&stage).await;
    assert_eq!(refusal(too_long), (503, "too_many_bytes"));
}

#[tokio::test]
async fn precheck_refuses_everything_while_draining() {
    let fixture = Fixture::new();
    let stage = stage!(fixture, precheck);
    fixture.shutdown.enter(Phase::Refusing);
    assert_eq!(refusal(post(OPEN).filter(&stage).await), (503, "shutting_down"));
}

#[tokio::test]
async fn body_is_read_into_the_budget_without_a_permit() {
    let fixture = Fixture::new();
    let stage = stage!(fixture, body);
    for bytes in [100, 64 * 1024, 64 * 1024 + 1, MAX_BODY] {
        let received = post(OPEN).body(batch(bytes)).filter(&stage).await.expect("it is let through");
        assert_eq!(received.body.len(), bytes);
        let (permits, taken) = fixture.taken();
        assert!(permits == 0 && taken >= bytes, "{taken} of {bytes}");
        drop(received);
        assert_eq!(fixture.taken(), (0, 0));
    }
    assert_eq!(refusal(post(OPEN).body(batch(MAX_BODY + 1)).filter(&stage).await), (413, "body_too_large"));
}

#[tokio::test]
async fn permit_is_one_of_those_there_are() {
    let fixture = Fixture::new();
    let stage = stage!(fixture, body, permit);
    let admitted = post(OPEN).body("[]").filter(&stage).await.expect("a permit is free");
    assert_eq!(fixture.taken().0, 1);
    assert_eq!(refusal(post(OPEN).body("[]").filter(&stage).await), (503, "too_many_requests"), "after some patience");
    let waiting = post(OPEN).body("[]").filter(&stage);
    let freed = async { drop(admitted) };
    let (admitted, ()) = tokio::join!(waiting, freed);
    admitted.expect("it waited for the permit");
}

#[tokio::test]
async fn verify_lets_in_who_knows_the_secret() {
    let fixture = Fixture::new();
    let stage = stage!(fixture, body, permit, verify);
    for bytes in [100, 70_000] {
        let signed = |token: &str| post(SIGNED).header("authorization", format!("Bearer {token}")).body(batch(bytes));
        assert_eq!(refusal(signed("wrong").filter(&stage).await), (401, "signature_wrong"));
        let verified = signed("secret").filter(&stage).await.expect("it is let in");
        assert_eq!(verified.offload.is_some(), bytes > 64 * 1024, "a large body keeps its thread until it is decoded");
        drop(verified);
        assert_eq!(fixture.taken(), (0, 0));
    }
}

#[tokio::test]
async fn decode_reads_the_ids_or_keeps_the_body_as_a_dead_letter() {
    let fixture = Fixture::new();
    let stage = stage!(fixture, body, permit, verify, decode);
    for bytes in [100, 70_000] {
        let (verified, batch) = post(OPEN).body(batch(bytes)).filter(&stage).await.expect("it is a batch");
        assert_eq!((batch.len(), verified.offload.is_none()), (1, true));
    }
    let letters = || fixture.webhooks.metrics.routes().map(|route| route.dead_letters()).sum::<u64>();
    assert_eq!(refusal(post(OPEN).body("no JSON").filter(&stage).await), (400, "not_json"));
    assert_eq!(refusal(post(OPEN).body(padded("no JSON", 70_000)).filter(&stage).await), (400, "not_json"));
    assert_eq!(letters(), 2);
}

#[tokio::test]
async fn deliver_gives_a_receipt_and_keeps_rejected_items() {
    let fixture = Fixture::new();
    let stage = stage!(fixture, body, permit, verify, decode, deliver);
    for body in [r#"[1,{"id":"a"}]"#.to_owned(), padded(r#"[1,{"id":"b"}]"#, 70_000)] {
        let (request, receipt) = post(OPEN).body(body).filter(&stage).await.expect("the outbox has it");
        assert_eq!((receipt.new, receipt.total, receipt.rejected), (1, 1, 1));
        assert_eq!(request.metrics.items().rejected, request.metrics.dead_letters());
    }
    assert_eq!(fixture.taken(), (0, 0));
}

#[tokio::test]
async fn the_chain_answers_every_request() {
    let fixture = Fixture::new();
    let Fixture { webhooks, shutdown, .. } = fixture;
    let webhooks = Arc::into_inner(webhooks).expect("nobody else has it");
    let webhooks = Arc::new(webhooks);
    let chain = super::webhooks(move || Arc::clone(&webhooks));
    let answer = post(OPEN).body("[]").reply(&chain).await;
    assert_eq!(answer.status(), 200);
    assert_eq!(answer.body(), r#"{"status":"received","action":"create","new_ids_count":0,"total_ids_in_batch":0}"#);
    assert!(!answer.headers().contains_key("connection"));
    let answer = warp::test::request().path(OPEN).reply(&chain).await;
    assert_eq!((answer.status().as_u16(), &answer.headers()["allow"]), (405, &"POST".parse().expect("a value")));
    let answer = post(SIGNED).body("[]").reply(&chain).await;
    assert_eq!(
        (answer.status().as_u16(), &answer.headers()["www-authenticate"]),
        (401, &"bearer".parse().expect("a value"))
    );
    assert_eq!(answer.headers()["connection"], "close", "its body was not read");
    shutdown.enter(Phase::Leaving);
    let answer = post(OPEN).body("[]").reply(&chain).await;
    assert_eq!((answer.status().as_u16(), &answer.headers()["connection"]), (200, &"close".parse().expect("a value")));
}

#[tokio::test]
async fn a_rejected_request_shows_no_header() {
    let fixture = Fixture::new();
    let head = post(SIGNED).header("authorization", "Bearer secret");
    let rejection = head.filter(&stage!(fixture)).now_or_never().expect("it never waits").expect("it is known");
    let shown = format!("{:?}", rejection.reject(Refusal::BodyTimeout));
    assert!(shown.contains("akte") && !shown.contains("secret"), "{shown}");
}
