//! Any bytes on a connection: hyper, the listener's own rules, warp's filters, signatures, batches and delivery, on
//! the store in memory and a broker that is down. Time is the runtime's and passes at once, so that limits are met.
//!
//! The first byte says in what steps the rest arrives.
#![no_main]

use std::{cell::RefCell, sync::Arc, task::Poll, time::Duration};

use futures_util::{FutureExt, future::BoxFuture};
use hookgate::{
    admission::Limits,
    dead_letters::{DeadLetterLimits, DeadLetters},
    event::Event,
    listener::{self, HungUp},
    metrics::{ConnectionMetrics, Metrics},
    pending::memory::Memory,
    delivery::{Ack, PublishError, Delivery, Policy, Publisher, WithoutAck, WithoutClaim},
    readiness::Contact,
    reply,
    route::Route,
    settings::{AuthSecrets, Layers, Settings},
    shutdown::Shutdown,
    traces::Tracer,
    webhooks::{self, Webhooks},
};
use hyper_util::service::TowerToHyperService;
use libfuzzer_sys::{Corpus, fuzz_target};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt, DuplexStream},
    runtime::Runtime,
    sync::watch,
};
use tokio_util::task::TaskTracker;
use warp::{Filter, filters::BoxedFilter, reply::Response};

/// An open route, and one that asks for a signature.
const SETTINGS: &str = r#"
redis.url = "memory:"
server.max_body_bytes = 2000
server.max_buffered_bytes = 8000
server.max_header_bytes = 1024
server.max_headers = 16
dead_letters.max_entries = 10
dead_letters.max_bytes = 4000
dead_letters.max_item_bytes = 1000
outbox.max_entries = 1000
[[routes]]
flow = "a"
entity = "b"
action = "create"
[[routes]]
flow = "a"
entity = "c"
action = "create"
auth = [ { scheme = "github", secret_files = ["SECRET"] } ]
"#;
/// After so many inputs everything is made anew: what is pending grows.
const INPUTS: usize = 2000;

/// A broker that is down. Nothing but a broker makes an `Ack`, so what is accepted rests on the outbox.
struct Down(watch::Sender<Contact>);

impl Publisher for Down {
    fn publish<'a>(
        &'a self,
        _route: &'a Route,
        events: Vec<Event>,
        _limit: Duration,
    ) -> BoxFuture<'a, Vec<Result<Ack, PublishError>>> {
        let outcomes = events.iter().map(|_| Err(PublishError::Unavailable("down".to_owned()))).collect();
        std::future::ready(outcomes).boxed()
    }

    fn contact(&self) -> watch::Receiver<Contact> {
        self.0.subscribe()
    }

    fn server_version(&self) -> Option<String> {
        None
    }
}

struct World {
    runtime: Runtime,
    filters: BoxedFilter<(Response,)>,
    limits: listener::ConnectionLimits,
    in_use: Limits,
    shutdown: Shutdown,
    metrics: ConnectionMetrics,
    inputs: usize,
}

impl World {
    fn new() -> Self {
        let runtime =
            tokio::runtime::Builder::new_current_thread().enable_time().start_paused(true).build().expect("it starts");
        let secret = std::env::temp_dir().join(format!("hookgate-fuzz-{}", std::process::id()));
        std::fs::write(&secret, "It's a Secret to Everybody").expect("it can be written");
        let mut layers = Layers::default();
        layers.add_text("settings", &SETTINGS.replace("SECRET", &secret.display().to_string()));
        let configuration = layers.merge();
        let settings = Settings::check(&configuration, layers, AuthSecrets::Read).expect("they make sense");
        std::fs::remove_file(secret).expect("it is there");
        let guard = runtime.enter();
        let shutdown = Shutdown::default();
        let (metrics, _exposition) = Metrics::new(&settings.routes, &reply::SHED);
        let policy = Policy {
            without_claim: WithoutClaim::Publish,
            without_ack: WithoutAck::Accept,
            ack_timeout: Duration::from_secs(2),
        };
        let memory = Arc::new(Memory::new(1000));
        let publisher = Arc::new(Down(watch::Sender::new(Contact::Up)));
        let delivery = Delivery::new(
            Arc::clone(&memory) as _,
            publisher,
            policy,
            &settings.routes,
            metrics.clone(),
            Tracer::default(),
        );
        let letters = DeadLetterLimits {
            max_entries: 10,
            max_item_bytes: 1000,
            max_bytes: 4000,
            max_age: Duration::from_secs(60),
        };
        let in_use = settings.limits.clone();
        let webhooks = Arc::new(Webhooks {
            table: Arc::new(settings.routes),
            verifiers: Arc::new(settings.verifiers),
            delivery: Arc::new(delivery),
            dead_letters: DeadLetters::start(memory, letters, shutdown.watch(), &TaskTracker::new()),
            quarantine: None,
            limits: settings.limits,
            phase: shutdown.watch(),
            metrics: metrics.clone(),
            tracer: Tracer::default(),
        });
        let webhooks = webhooks::webhooks(move || Arc::clone(&webhooks));
        drop(guard);
        let (filters, connections) = (webhooks.boxed(), metrics.connections());
        Self { runtime, filters, limits: settings.connections, in_use, shutdown, metrics: connections, inputs: 0 }
    }

    /// Requests with a place, and bytes.
    fn taken(&self) -> (usize, usize) {
        let in_use = self.in_use.in_use();
        (in_use.requests, in_use.bytes)
    }

    fn answers(&self, steps: usize, input: &[u8]) -> Vec<u8> {
        self.runtime.block_on(async {
            let (mut client, server) = tokio::io::duplex(512);
            let service = TowerToHyperService::new(warp::service(self.filters.clone()));
            // Nobody hangs up before the last answer.
            let hung_up: HungUp<DuplexStream> = |_server, _context| Poll::Pending;
            let serving =
                listener::connection(server, hung_up, service, &self.limits, self.shutdown.watch(), &self.metrics);
            let mut answers = Vec::new();
            let asking = async {
                let (mut from, mut to) = tokio::io::split(&mut client);
                let sending = async {
                    for part in input.chunks(steps) {
                        // Whoever is answered and left has no more to say.
                        if to.write_all(part).await.is_err() {
                            break;
                        }
                        tokio::task::yield_now().await;
                    }
                    let _closed = to.shutdown().await;
                };
                let reading = async { from.read_to_end(&mut answers).await.ok() };
                tokio::join!(sending, reading)
            };
            let both = async { tokio::join!(serving, asking) };
            tokio::time::timeout(Duration::from_secs(600), both).await.expect("a connection comes to its end");
            // What was begun goes on after a sender that hangs up. (Not `Limits::idle`, behind which nothing is let in.)
            let ended = async {
                while self.taken() != (0, 0) {
                    tokio::time::sleep(Duration::from_millis(10)).await;
                }
            };
            let ended = tokio::time::timeout(Duration::from_secs(60), ended).await;
            assert!(ended.is_ok(), "everything that was taken is given back: {:?}", self.taken());
            answers
        })
    }
}

thread_local! {
    static WORLD: RefCell<Option<World>> = const { RefCell::new(None) };
}

fuzz_target!(|input: &[u8]| -> Corpus {
    let [steps, input @ ..] = input else { return Corpus::Reject };
    WORLD.with_borrow_mut(|world| {
        let current = world.get_or_insert_with(World::new);
        let answers = current.answers(usize::from(*steps) + 1, input);
        check(&answers);
        current.inputs += 1;
        if current.inputs == INPUTS {
            *world = None;
        }
    });
    Corpus::Keep
});

/// Only codes of the contract, or of hyper for what is no HTTP.
fn check(answers: &[u8]) {
    let mut rest = answers;
    while let Some(at) = rest.windows(9).position(|nine| nine == b"HTTP/1.1 " || nine == b"HTTP/1.0 ") {
        rest = &rest[at + 9..];
        let code = rest.get(..3).and_then(|code| std::str::from_utf8(code).ok());
        // A message speaks of HTTP/1.1, too.
        let Some(code) = code.and_then(|code| code.parse::<u16>().ok()) else { continue };
        assert!(matches!(code, 100 | 200 | 400 | 401 | 404 | 405 | 408 | 413 | 414 | 431 | 503), "{code}");
        // 503 for its outbox that is full, but never because of a bug.
        assert!(!rest.windows(14).any(|part| part == b"internal_error"), "{}", String::from_utf8_lossy(answers));
    }
}
