//! Every store of pending ids keeps one contract, shown through delivery on a real broker.

use std::{collections::BTreeSet, sync::Arc, time::Duration};

use hookgate::{
    batch::Batch,
    delivery::{Delivery, Failure, PendingStore, Policy, Publisher, Receipt, WithoutAck, WithoutClaim},
    event::{Events, TokenSeed},
    metrics::Metrics,
    nats_login::Login,
    pending::{
        access::Access,
        memory::Memory,
        redis::{Durability, Options, Redis},
    },
    publisher::{StreamSettings, jetstream::JetStream, servers::Servers},
    readiness::Contact,
    route::{Route, RouteSpec, RouteTable},
    traces::Tracer,
};
use tokio::time::Instant;
use tokio_util::task::TaskTracker;

use crate::support::{Event, NatsServer, PENDING, RedisServer, batch, eventually, in_time};

/// Ids in flight that the stores are opened for.
const OUTBOX_LIMIT: usize = 3;
pub(crate) const OPTIONS: Options = Options {
    timeout: Duration::from_millis(500),
    outbox_limit: OUTBOX_LIMIT,
    durability: Durability::None,
    wait_replicas: 1,
    rests_on_claims: false,
};

pub(crate) fn routes() -> RouteTable {
    let spec = RouteSpec { flow: "vmh", entity: "beteiligte", action: "create", ..RouteSpec::default() };
    RouteTable::new(vec![Route::new(&spec).expect("the route is valid")]).expect("one route clashes with none")
}

/// The store of these routes in Redis, which may not be connected yet.
pub(crate) fn open(redis: &RedisServer, options: Options) -> Redis {
    let access = Access::plain(redis.client().get_connection_info().clone());
    Redis::open(&access, "hookgate", options, &routes(), Metrics::new(&routes(), &[]).0.redis())
}

/// What goes with the store under test.
struct Bench {
    nats: NatsServer,
    route: Arc<Route>,
    delivery: Arc<Delivery>,
    broker: Arc<JetStream>,
    _tasks: TaskTracker,
}

impl Bench {
    async fn around(store: Arc<dyn PendingStore>) -> Self {
        let nats = NatsServer::start().await;
        let servers = Servers::new(vec![nats.url()], Login::None, None);
        let stream = StreamSettings {
            name: "HOOKGATE".to_owned(),
            create: true,
            replicas: 1,
            max_age: Duration::from_secs(3600),
            duplicate_window: Duration::from_secs(900),
        };
        let (routes, tasks) = (routes(), TaskTracker::new());
        let broker = JetStream::open(&servers, stream, &routes, &tasks).await.expect("a client can be made");
        let broker = Arc::new(broker);
        for mut contact in [store.contact(), broker.contact()] {
            in_time("both are up", contact.wait_for(|now| *now == Contact::Up)).await.expect("their owners live");
        }
        let publisher = Arc::clone(&broker) as Arc<dyn Publisher>;
        let policy = Policy {
            without_claim: WithoutClaim::Reject,
            without_ack: WithoutAck::Reject,
            ack_timeout: Duration::from_millis(500),
        };
        let delivery =
            Delivery::new(store, publisher, policy, &routes, Metrics::new(&routes, &[]).0, Tracer::default());
        let route = Arc::clone(&routes.routes()[0]);
        Self { nats, route, delivery: Arc::new(delivery), broker, _tasks: tasks }
    }

    /// Delivers ids.
    async fn run(&self, ids: &[&str]) -> Result<Receipt, Failure> {
        let batch = Batch::parse(batch(ids).as_bytes()).expect("the body is valid");
        let deadline = Instant::now() + Duration::from_secs(2);
        self.delivery.deliver(Arc::clone(&self.route), batch, TokenSeed::now(), deadline).await
    }

    /// Takes ids through while both are up; how many of them were new.
    async fn claims(&self, ids: &[&str]) -> usize {
        self.run(ids).await.expect("both are up").new
    }

    /// The events of an id, by their tokens.
    async fn tokens(&self, id: &str) -> Vec<String> {
        let events = self.nats.events().await;
        events.iter().filter(|event| event.entity_id() == id).map(|event| event.token().to_owned()).collect()
    }
}

/// The contract. `release` is what a consumer does after it has processed an id.
async fn keeps_the_contract(store: Arc<dyn PendingStore>, release: impl AsyncFn(&Route, &str)) {
    let mut bench = Bench::around(store).await;

    // New once, then done.
    assert_eq!(bench.claims(&["a", "b", "a"]).await, 2);
    assert_eq!(bench.claims(&["b", "a"]).await, 0);
    assert_eq!((bench.tokens("a").await.len(), bench.tokens("b").await.len()), (1, 1));

    // Released: new again, under another token.
    release(&bench.route, "a").await;
    assert_eq!(bench.claims(&["a", "b"]).await, 1);
    let tokens = bench.tokens("a").await;
    assert_eq!(BTreeSet::from_iter(&tokens).len(), 2, "{tokens:?}");

    // In flight while it is not acknowledged: claimed, not done, and published later under its first token.
    bench.nats.kill();
    for _ in 0..2 {
        let failure = bench.run(&["b", "c"]).await.expect_err("nothing is acknowledged");
        assert!(matches!(failure, Failure::Unpublished { unconfirmed: 1, .. }), "{failure}");
    }
    bench.nats.start_again().await;
    let contact = &mut bench.broker.contact();
    in_time("NATS is back", contact.wait_for(|now| *now == Contact::Up)).await.expect("its owner lives");
    assert_eq!(bench.claims(&["b", "c"]).await, 0, "it was new when it was claimed");
    assert_eq!(bench.tokens("c").await.len(), 1);

    // Racing for the same ids: each is new for one only.
    let all = tokio::join!(bench.run(&["d", "e"]), bench.run(&["e", "d"]), bench.run(&["d", "e"]));
    let new = [all.0, all.1, all.2].map(|receipt| receipt.expect("both are up").new);
    assert_eq!(new.iter().sum::<usize>(), 2, "{new:?}");
    assert_eq!((bench.tokens("d").await.len(), bench.tokens("e").await.len()), (1, 1));

    // More ids at once than the outbox holds: what fits is published, the rest is not claimed, and has its
    // turn when there is room again.
    let many = ["f", "g", "h", "i", "j"];
    eventually("the outbox holds its limit", async || {
        let failure = bench.run(&many).await.err();
        assert!(matches!(failure, Some(Failure::OutboxFull { .. }) | None), "{failure:?}");
        failure.is_none().then_some(())
    })
    .await;
    for id in many {
        assert_eq!(bench.tokens(id).await.len(), 1, "{id}");
    }
}

#[tokio::test]
async fn redis_keeps_the_contract() {
    let redis = RedisServer::start().await;
    let store = open(&redis, OPTIONS);
    keeps_the_contract(Arc::new(store), async |_route, id| redis.release(PENDING, id).await).await;
    assert_eq!(redis.pending(PENDING).await.len(), 10);
}

#[tokio::test]
async fn memory_keeps_the_contract() {
    let store = Arc::new(Memory::new(OUTBOX_LIMIT));
    let release = async |route: &Route, id: &str| assert!(store.release(route, id), "{id} was pending");
    keeps_the_contract(Arc::clone(&store) as Arc<dyn PendingStore>, release).await;
}

/// An event of the stream is a function of route, id and token: what a retry sends is the same, byte by byte.
#[tokio::test]
async fn whoever_publishes_a_claim_publishes_the_same_event() {
    let redis = RedisServer::start().await;
    let store = open(&redis, OPTIONS);
    let bench = Bench::around(Arc::new(store)).await;
    assert_eq!(bench.claims(&["a"]).await, 1);
    let event: &Event = &bench.nats.events().await[0];
    let token = event.token().parse().expect("a token can be read back");
    let ids = Batch::parse(batch(["a"]).as_bytes()).expect("the body is valid");
    let again = Events::of(&bench.route).event(ids.id(0), token);
    assert_eq!(String::from_utf8_lossy(&again.payload), event.payload);
    assert_eq!(again.token.traceparent(), event.headers["traceparent"]);
}
