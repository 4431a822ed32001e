//! What hookgate needs of NATS beyond its job, for `release = "ack"` and for releases over NATS.

use std::time::Duration;

use async_nats::jetstream::{
    consumer::{AckPolicy, PullConsumer, pull},
    stream::Config,
};
use futures_util::StreamExt;
use serde_json::json;

use super::files::{Access, Acl, Permissions};
use crate::support::{Event, PENDING, SUBJECT, World, batch, eventually, within};

/// Beyond everything that goes well.
const SOON: Duration = Duration::from_secs(6);
/// The same for what asks the API of JetStream several times, each in vain.
const LATER: Duration = Duration::from_secs(15);
/// A scan, a sweep and a good deal more.
const SWEPT: Duration = Duration::from_secs(30);

const ROUTE: &str = "[[routes]]\nflow = \"vmh\"\nentity = \"beteiligte\"\naction = \"create\"\nrelease = \"ack\"\nconsumers = [\"case-sync\"]\n";

/// Where the lack of a permission shows.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Lack {
    /// It does not become ready.
    Ready,
    /// An acknowledged event's id stays pending.
    Release,
    /// Nobody answers a request to release an id.
    Service,
    /// `nats micro ls` does not show it.
    Found,
    /// An id whose event is gone is not published once more.
    Sweep,
}

pub(super) const NEEDS: [(&str, Lack); 10] = [
    ("$JS.API.STREAM.INFO.hookgate_acks", Lack::Ready),
    ("$JS.API.STREAM.CREATE.hookgate_acks", Lack::Ready),
    ("$JS.API.STREAM.UPDATE.hookgate_acks", Lack::Ready),
    ("$JS.API.CONSUMER.CREATE.hookgate_acks.hookgate", Lack::Ready),
    ("$JS.API.CONSUMER.MSG.NEXT.hookgate_acks.hookgate", Lack::Release),
    ("$JS.API.CONSUMER.INFO.hookgate_acks.hookgate", Lack::Sweep),
    ("$JS.API.STREAM.MSG.GET.HOOKGATE", Lack::Release),
    ("$JS.API.CONSUMER.INFO.HOOKGATE.*", Lack::Sweep),
    ("hookgate.release", Lack::Service),
    ("$SRV.>", Lack::Found),
];

async fn comes(limit: Duration, mut probe: impl AsyncFnMut() -> bool) -> bool {
    within(limit, async || probe().await.then_some(())).await.is_some()
}

/// A stream of acknowledgements that hookgate made when its events were in another stream.
async fn leave_older_acks(world: &World) {
    let older = Config {
        name: "hookgate_acks".to_owned(),
        description: Some("managed by hookgate".to_owned()),
        subjects: vec!["$JS.EVENT.METRIC.CONSUMER.ACK.OLDER.*".to_owned()],
        ..Config::default()
    };
    world.nats.jetstream().await.create_stream(older).await.expect("the tests may");
}

async fn first_lack(world: &World, access: &Access) -> Option<Lack> {
    let gate = world.gate_unready(&format!("{}{ROUTE}", access.of_nats())).await;
    let jetstream = world.nats.jetstream().await;
    let durable = pull::Config {
        durable_name: Some("case-sync".to_owned()),
        filter_subject: SUBJECT.to_owned(),
        ack_policy: AckPolicy::Explicit,
        sample_frequency: 100,
        ..pull::Config::default()
    };
    let consumer: PullConsumer = eventually("hookgate makes its stream", async || {
        jetstream.create_consumer_on_stream(durable.clone(), "HOOKGATE").await.ok()
    })
    .await;
    if !comes(LATER, async || gate.probe("/readyz").await.status == 200).await {
        return Some(Lack::Ready);
    }
    assert_eq!(gate.post(batch(["a"])).await.counts(), (1, 1));
    let mut events = consumer.batch().max_messages(1).expires(SOON).messages().await.expect("the tests may");
    let event = events.next().await.expect("it is in the stream").expect("the tests may");
    event.double_ack().await.expect("the tests may");
    if !comes(SOON, async || world.redis.pending(PENDING).await.is_empty()).await {
        return Some(Lack::Release);
    }
    assert_eq!(gate.post(batch(["b"])).await.counts(), (1, 1));
    let client = world.nats.client().await;
    let request = json!({"flow": "vmh", "entity": "beteiligte", "action": "create", "entity_id": "b"}).to_string();
    let release = async || {
        let answer = tokio::time::timeout(SOON, client.request("hookgate.release", request.clone().into())).await;
        answer.is_ok_and(|answer| answer.is_ok_and(|answer| answer.payload.starts_with(br#"{"released":"#)))
    };
    if !comes(SOON, release).await {
        return Some(Lack::Service);
    }
    let ping = async || {
        let answer = tokio::time::timeout(SOON, client.request("$SRV.PING.hookgate", "".into())).await;
        answer.is_ok_and(|answer| answer.is_ok())
    };
    if !comes(SOON, ping).await {
        return Some(Lack::Found);
    }
    assert_eq!(gate.post(batch(["c"])).await.counts(), (1, 1));
    world.nats.api("STREAM.PURGE.HOOKGATE", &json!({})).await;
    let again = async || world.nats.events().await.iter().map(Event::entity_id).any(|id| id == "c");
    (!comes(SWEPT, again).await).then_some(Lack::Sweep)
}

#[tokio::test]
async fn releases_need_these_and_no_more() {
    let whole = Permissions::hookgate();
    let (world, access) = Access::start(&Acl::hookgate(), &whole).await;
    leave_older_acks(&world).await;
    assert_eq!(first_lack(&world, &access).await, None);
    for chunk in NEEDS.chunks(4) {
        let tried = chunk.iter().map(async |(subject, expected)| {
            let (world, access) = Access::start(&Acl::hookgate(), &whole.without_subject(subject)).await;
            if subject.contains("UPDATE") {
                leave_older_acks(&world).await;
            }
            (subject, *expected, first_lack(&world, &access).await)
        });
        for (subject, expected, found) in futures_util::future::join_all(tried).await {
            assert_eq!(found, Some(expected), "without {subject}");
        }
    }
}
