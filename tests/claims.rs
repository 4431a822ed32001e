//! The scripts decide for many ids at once as they would for one id after the other.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
    time::Duration,
};

use futures_util::future::join_all;
use hookgate::{
    batch::{Batch, EntityId},
    delivery::{PendingStore, Proposal, State},
    event::{Attempt, Token, TokenSeed},
    pending::redis::{Durability, Options, Redis},
    readiness::Contact,
};
use proptest::{collection::vec, prelude::*, test_runner::TestRunner};
use redis::AsyncTypedCommands;

use crate::{
    stores::{open, routes},
    support::{OUTBOX, PENDING, RedisServer, World, batch, eventually, in_time},
};

/// What nobody of hookgate has written.
const FOREIGN: &str = "deadbeef-1";

/// Something that happens to the ids of a route.
#[derive(Debug, Clone)]
enum Step {
    /// Requests that claim at the same moment.
    Claim(Vec<BTreeSet<String>>),
    /// Their events are acknowledged.
    Settle(BTreeSet<String>),
    /// Consumers are through with them.
    Release(BTreeSet<String>),
    /// Somebody writes into the outbox.
    Damage(BTreeSet<String>),
}

fn id(number: usize) -> String {
    format!("id-{number}")
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    // Enough for several commands of one call; few enough to meet again.
    let ids = |most| proptest::collection::btree_set((0..120_usize).prop_map(id), 1..most);
    let step = prop_oneof![
        4 => vec(ids(90), 1..4).prop_map(Step::Claim),
        1 => ids(90).prop_map(Step::Settle),
        1 => ids(90).prop_map(Step::Release),
        1 => ids(20).prop_map(Step::Damage),
    ];
    vec(step, 1..12)
}

/// What has to be in Redis.
struct Expected {
    limit: usize,
    pending: BTreeSet<String>,
    outbox: BTreeMap<String, String>,
}

impl Expected {
    /// One id after the other.
    fn claim(&mut self, proposal: &Proposal) -> Vec<State> {
        let decide = |(id, token): (EntityId<'_>, Token)| {
            let id = format!("{id}");
            let found = self.outbox.get(&id).map(String::as_str);
            match (self.pending.contains(&id), found) {
                (true, None) => return State::Done,
                (true, Some(found)) if found != FOREIGN => {
                    return State::InFlight(found.parse().expect("hookgate wrote it"));
                }
                (false, _) if self.outbox.len() >= self.limit => return State::OutboxFull,
                _ => {}
            }
            self.outbox.insert(id.clone(), token.text());
            self.pending.insert(id);
            State::New(token)
        };
        proposal.ids().zip(proposal.tokens(Attempt::FIRST)).map(decide).collect()
    }
}

async fn connect(redis: &RedisServer, outbox_limit: usize) -> Redis {
    let store = open(
        redis,
        Options {
            timeout: Duration::from_secs(5),
            outbox_limit,
            durability: Durability::None,
            wait_replicas: 1,
            rests_on_claims: false,
        },
    );
    in_time("Redis is up", store.contact().wait_for(|now| *now == Contact::Up)).await.expect("its owner lives");
    store
}

fn proposal(ids: &BTreeSet<String>) -> Proposal {
    let batch = Arc::new(Batch::parse(batch(ids).as_bytes()).expect("the body is valid"));
    Proposal::new(&routes().routes()[0], Arc::clone(&batch), 0..batch.len(), TokenSeed::now())
}

/// Whatever happened before, the ids that several requests claim in one call get the answers, and leave behind, what
/// they would one by one: also in the middle of a full outbox, and where an id is in more than one request.
#[test]
fn many_at_once_are_decided_as_one_after_the_other() {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime can be made");
    let redis = runtime.block_on(RedisServer::start());
    let narrow = (runtime.block_on(connect(&redis, 100)), 100);
    let wide = (runtime.block_on(connect(&redis, 1000)), 1000);
    let configuration = ProptestConfig { failure_persistence: None, ..ProptestConfig::with_cases(128) };
    let agree = |(is_narrow, steps): (bool, Vec<Step>)| {
        let (store, limit) = if is_narrow { &narrow } else { &wide };
        runtime.block_on(async {
            let route = Arc::clone(&routes().routes()[0]);
            let mut connection = redis.connection().await;
            ::redis::cmd("FLUSHDB").query_async::<()>(&mut connection).await.expect("Redis forgets");
            let mut expected = Expected { limit: *limit, pending: BTreeSet::new(), outbox: BTreeMap::new() };
            for step in steps {
                match step {
                    Step::Claim(requests) => {
                        let proposals: Vec<_> = requests.iter().map(proposal).collect();
                        let claims = proposals.iter().map(|proposal| store.claim(&route, proposal.clone()));
                        for (claimed, proposal) in join_all(claims).await.into_iter().zip(&proposals) {
                            let states = claimed.expect("Redis is up").states;
                            prop_assert_eq!(states, expected.claim(proposal));
                        }
                    }
                    Step::Settle(ids) => {
                        for id in ids {
                            expected.outbox.remove(&id);
                            connection.hdel(OUTBOX, id).await.expect("the outbox is a HASH");
                        }
                    }
                    Step::Release(ids) => {
                        for id in ids {
                            // What is left in the outbox of a released id counts twice while its new claim is
                            // decided: no matter, but not so here.
                            if !is_narrow || !expected.outbox.contains_key(&id) {
                                expected.pending.remove(&id);
                                connection.srem(PENDING, id).await.expect("pending is a SET");
                            }
                        }
                    }
                    Step::Damage(ids) => {
                        for id in ids {
                            if let Some(token) = expected.outbox.get_mut(&id) {
                                FOREIGN.clone_into(token);
                                connection.hset(OUTBOX, id, FOREIGN).await.expect("the outbox is a HASH");
                            }
                        }
                    }
                }
                prop_assert_eq!(&redis.outbox(OUTBOX).await, &expected.outbox);
                prop_assert_eq!(&redis.pending(PENDING).await, &expected.pending);
            }
            Ok(())
        })
    };
    TestRunner::new(configuration).run(&(any::<bool>(), steps()), agree).unwrap_or_else(|error| panic!("{error}"));
}

/// Scripts don't roll back. One that may not write the outbox, or not the SET, ends in its middle: no id may then be
/// pending without a token: no relay would ever publish it.
#[tokio::test]
async fn a_claim_that_ends_half_way_leaves_nothing_without_its_token() {
    let redis = RedisServer::start().await;
    let store = connect(&redis, 1000).await;
    let route = Arc::clone(&routes().routes()[0]);
    let may = async |command: &str| {
        let mut acl = ::redis::cmd("ACL");
        acl.arg("SETUSER").arg("default").arg(command);
        acl.query_async::<()>(&mut redis.connection().await).await.expect("the permission changes");
    };
    let ids = (0..100).map(id).collect();
    for command in ["hset", "sadd"] {
        may(&format!("-{command}")).await;
        store.claim(&route, proposal(&ids)).await.expect_err("it is not allowed");
        may(&format!("+{command}")).await;
        assert_eq!(redis.pending(PENDING).await, BTreeSet::new(), "without {command}");
    }
    eventually("all are claimed", async || {
        let states = store.claim(&route, proposal(&ids)).await.ok()?.states;
        assert_eq!(states.len(), 100);
        assert!(states.iter().all(|state| matches!(state, State::New(_))), "{states:?}");
        Some(())
    })
    .await;
    assert_eq!(redis.outbox(OUTBOX).await.into_keys().collect::<BTreeSet<_>>(), redis.pending(PENDING).await);
}

/// An acknowledgement takes away what it is for, and nothing that has come into its place meanwhile.
#[tokio::test]
async fn settling_leaves_what_holds_another_token() {
    let world = World::start().await;
    let gate = world.gate("").await;
    world.nats.freeze();
    let ids: Vec<String> = (0..100).map(id).collect();
    let changed = async {
        eventually("all are claimed", async || (world.redis.outbox(OUTBOX).await.len() == ids.len()).then_some(()))
            .await;
        let mut redis = world.redis.connection().await;
        let mut changed = BTreeMap::new();
        for id in ids.iter().step_by(3) {
            redis.hset(OUTBOX, id, FOREIGN).await.expect("the outbox is a HASH");
            changed.insert(id.clone(), FOREIGN.to_owned());
        }
        world.nats.thaw();
        changed
    };
    let (answer, changed) = tokio::join!(gate.post(batch(&ids)), changed);
    assert_eq!(answer.counts(), (100, 100));
    eventually("all others are settled", async || (world.redis.outbox(OUTBOX).await == changed).then_some(())).await;
}
