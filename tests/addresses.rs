//! Which number a route claims under: an address keeps its own, ten are all there are, and whatever Redis or 0.1.0 makes
//! of them, no claim is ever made under a number that another address has.

use std::{collections::BTreeMap, sync::Arc};

use hookgate::{
    batch::Batch,
    delivery::{PendingStore, Proposal, State, StoreError},
    event::{Token, TokenSeed},
    metrics::Metrics,
    pending::{
        access::Access,
        redis::{Options, Redis},
    },
    readiness::Contact,
    relay::Outbox,
    route::{Route, RouteSpec, RouteTable},
};
use redis::{AsyncTypedCommands, aio::MultiplexedConnection};

use crate::{
    stores::OPTIONS,
    support::{OUTBOX, RedisServer, batch, eventually, in_time},
};

/// HASH number → address.
const ADDRESSES: &str = "{vmh:beteiligte:create_pending}:addresses";
/// HASH pending key → address, where 0.1.0 records the one that it claims for.
const ROUTES: &str = "hookgate:routes";
const MANY: Options = Options { outbox_limit: 100, ..OPTIONS };

fn spec(action: &'static str) -> RouteSpec<'static> {
    RouteSpec { flow: "vmh", entity: "beteiligte", action, ..RouteSpec::default() }
}

/// A store whose route has this subject, beside another route.
struct Store {
    redis: Redis,
    table: RouteTable,
}

impl Store {
    /// It may not be connected yet.
    fn open(redis: &RedisServer, subject: &str) -> Self {
        let routes = [RouteSpec { subject: Some(subject), ..spec("create") }, spec("delete")];
        let routes = routes.map(|spec| Route::new(&spec).expect("the route is valid"));
        let table = RouteTable::new(routes.into()).expect("they differ");
        let access = Access::plain(redis.client().get_connection_info().clone());
        let times = Metrics::new(&table, &[]).0.redis();
        Self { redis: Redis::open(&access, "hookgate", MANY, &table, times), table }
    }

    async fn connect(redis: &RedisServer, subject: &str) -> Self {
        let store = Self::open(redis, subject);
        store.is("Redis is up", |now| *now == Contact::Up).await;
        store
    }

    async fn is(&self, what: &str, holds: impl FnMut(&Contact) -> bool) {
        in_time(what, self.redis.contact().wait_for(holds)).await.expect("its owner lives");
    }

    async fn claim_on(&self, route: usize, id: &str) -> Result<State, StoreError> {
        let batch = Arc::new(Batch::parse(batch([id]).as_bytes()).expect("the body is valid"));
        let route = &self.table.routes()[route];
        let claimed = self.redis.claim(route, Proposal::new(route, batch, 0..1, TokenSeed::now())).await?;
        Ok(claimed.states[0])
    }

    async fn claim(&self, id: &str) -> Result<State, StoreError> {
        self.claim_on(0, id).await
    }

    /// Claims a new id; the number in its token.
    async fn number(&self, id: &str) -> usize {
        address(self.claim(id).await.expect("it has a number"))
    }

    /// The same while it may have to find a number first.
    async fn next_number(&self, id: &str) -> usize {
        eventually("it finds a number", async || self.claim(id).await.ok().map(address)).await
    }
}

fn address(state: State) -> usize {
    let State::New(token) = state else { panic!("{state:?} is not new") };
    token.address()
}

/// The subjects of the numbers.
async fn subjects(redis: &RedisServer) -> BTreeMap<String, String> {
    let addresses = redis.connection().await.hgetall(ADDRESSES).await.expect("it is a HASH");
    let subject = |address: &str| {
        let address: serde_json::Value = serde_json::from_str(address).expect("it is JSON");
        address["subject"].as_str().expect("it has a subject").to_owned()
    };
    addresses.into_iter().map(|(number, address)| (number, subject(&address))).collect()
}

/// How many connections Redis has taken.
async fn connections_of(connection: &mut MultiplexedConnection) -> String {
    let info: String = ::redis::cmd("INFO").arg("stats").query_async(connection).await.expect("Redis says how it is");
    info.lines().find(|line| line.starts_with("total_connections_received")).expect("it counts them").to_owned()
}

/// What 0.1.0 does when it connects.
async fn recorded_by_0_1_0(redis: &RedisServer, subject: &str) {
    let record = format!(
        r#"{{"flow":"vmh","entity":"beteiligte","action":"create","path":"/vmh/webhook/beteiligte/create","subject":"{subject}"}}"#
    );
    let mut connection = redis.connection().await;
    connection.hset(ROUTES, "vmh:beteiligte:create_pending", record).await.expect("it is a HASH");
}

/// An eleventh address waits until an entry has left the outbox: meanwhile nothing is claimed for it, other routes are
/// served, and the outbox can be read. Whoever had the number it gets then finds another one for itself.
#[tokio::test]
async fn the_number_of_an_address_that_no_entry_needs_is_used_again() {
    let redis = RedisServer::start().await;
    let mut stores = Vec::new();
    for number in 0..10 {
        let store = Store::connect(&redis, &format!("vmh.s{number}")).await;
        assert_eq!(store.number(&format!("id-{number}")).await, number);
        stores.push(store);
    }

    let eleventh = Store::open(&redis, "vmh.s10");
    eleventh.is("it has no number", |now| matches!(now, Contact::NoWrites(why) if why.contains("ten addresses"))).await;
    let mut connection = redis.connection().await;
    let connections = connections_of(&mut connection).await;
    let refused = eleventh.claim("id-10").await.expect_err("it has no number");
    assert!(matches!(refused, StoreError::NoWrites(_)), "{refused}");
    assert_eq!(address(eleventh.claim_on(1, "id").await.expect("another route is served")), 0);
    let outbox: &dyn Outbox = &eleventh.redis;
    assert_eq!(outbox.count(&eleventh.table.routes()[0]).await, Ok(10));

    connection.hdel(OUTBOX, "id-3").await.expect("it is a HASH");
    eleventh.is("it has a number", |now| *now == Contact::Up).await;
    assert_eq!(eleventh.number("id-10").await, 3);
    assert_eq!(connections_of(&mut connection).await, connections, "the relay keeps its connection");

    let refused = stores[3].claim("id-11").await.expect_err("its number is another one's");
    assert!(matches!(refused, StoreError::NoWrites(_)), "{refused}");
    connection.hdel(OUTBOX, "id-5").await.expect("it is a HASH");
    assert_eq!(stores[3].next_number("id-11").await, 5);
    let subjects = subjects(&redis).await;
    assert_eq!((&*subjects["3"], &*subjects["5"]), ("vmh.s10", "vmh.s3"));
    let tokens = redis.outbox(OUTBOX).await;
    let numbers = tokens.values().map(|token| token.parse::<Token>().expect("hookgate wrote it").address());
    let mut numbers: Vec<_> = numbers.collect();
    numbers.sort_unstable();
    assert_eq!(numbers, (0..10).collect::<Vec<_>>());
}

/// Once ten addresses have had a number, replicas of two more take theirs from those that are not in use, and do not go
/// on taking them from each other.
#[tokio::test]
async fn two_addresses_beyond_ten_do_not_take_their_number_from_each_other_for_good() {
    let redis = RedisServer::start().await;
    for number in 0..10 {
        Store::connect(&redis, &format!("vmh.s{number}")).await;
    }
    let (one, other) = (Store::connect(&redis, "vmh.one").await, Store::connect(&redis, "vmh.other").await);
    let mut connection = redis.connection().await;
    let mut turn = 0;
    eventually("both claim at the first try", async || {
        let mut at_once = 0;
        for _ in 0..4 {
            for store in [&one, &other] {
                turn += 1;
                let id = format!("id-{turn}");
                match store.claim(&id).await {
                    Ok(_claimed) => at_once += 1,
                    Err(_refused) => store.is("it has a number", |now| *now == Contact::Up).await,
                }
                // As if it was published.
                connection.del(OUTBOX).await.expect("it is a HASH");
            }
        }
        (at_once == 8).then_some(())
    })
    .await;
}

/// Entries of 0.1.0 have number 0, so that is the address which it recorded last. Who had it before claims no more under
/// it.
#[tokio::test]
async fn number_0_is_the_address_that_0_1_0_recorded() {
    let redis = RedisServer::start().await;
    recorded_by_0_1_0(&redis, "vmh.old").await;
    let store = Store::connect(&redis, "vmh.new").await;
    assert_eq!(store.number("a").await, 1);
    let zero = Store::connect(&redis, "vmh.old").await;
    assert_eq!(zero.number("b").await, 0);

    recorded_by_0_1_0(&redis, "vmh.older").await;
    let third = Store::connect(&redis, "vmh.older").await;
    assert_eq!(third.number("c").await, 0);
    let refused = zero.claim("d").await.expect_err("number 0 is another one's");
    assert!(matches!(refused, StoreError::NoWrites(_)), "{refused}");
    assert_eq!(zero.next_number("d").await, 2);
    assert_eq!(store.number("e").await, 1, "nothing has changed for it");
    let subjects: Vec<_> = subjects(&redis).await.into_values().collect();
    assert_eq!(subjects, ["vmh.older", "vmh.new", "vmh.old"]);
}

/// A claim leaves its address behind, where a relay finds it.
#[tokio::test]
async fn a_claim_in_an_emptied_redis_says_where_it_goes() {
    let redis = RedisServer::start().await;
    recorded_by_0_1_0(&redis, "vmh.old").await;
    let store = Store::connect(&redis, "vmh.new").await;
    assert_eq!(store.number("a").await, 1);
    ::redis::cmd("FLUSHALL").exec_async(&mut redis.connection().await).await.expect("Redis forgets");
    assert_eq!(store.number("a").await, 1);
    assert_eq!(subjects(&redis).await, BTreeMap::from([("1".to_owned(), "vmh.new".to_owned())]));
    let outbox: &dyn Outbox = &store.redis;
    let addresses = outbox.addresses(&store.table.routes()[0]).await.expect("Redis is up");
    let token = redis.outbox(OUTBOX).await["a"].parse().expect("hookgate wrote it");
    assert_eq!(addresses.of(token).map(|route| route.subject().to_owned()), Some("vmh.new".to_owned()));
}
