//! The user of an application that consumes: its permissions are enough for both forms of `examples/`, each is needed, and
//! it can forge neither events nor acknowledgements.

use std::time::Duration;

use async_nats::{
    ConnectOptions, Event, ServerError,
    jetstream::{
        self,
        consumer::{AckPolicy, PullConsumer, pull},
    },
};
use futures_util::StreamExt;
use serde_json::json;
use tokio::sync::mpsc;

use super::files::{Access, Acl, Permissions};
use crate::support::{Gate, SUBJECT, World, batch, eventually};

const DURABLE: &str = "case-sync";
/// Longer than what is allowed takes.
const PATIENCE: Duration = Duration::from_secs(2);

/// A client of the application, and what the server denies it.
async fn application(world: &World) -> (async_nats::Client, mpsc::UnboundedReceiver<String>) {
    let (denied, denials) = mpsc::unbounded_channel();
    let options = ConnectOptions::with_user_and_password(DURABLE.to_owned(), "right".to_owned())
        .custom_inbox_prefix(format!("_INBOX.{DURABLE}"))
        .request_timeout(Some(PATIENCE))
        .event_callback(move |event| {
            if let Event::ServerError(ServerError::Other(text)) = event {
                let _ended = denied.send(text);
            }
            std::future::ready(())
        });
    (options.connect(world.nats.url()).await.expect("it may connect"), denials)
}

/// What the examples do: look at the consumer, fetch, acknowledge with confirmation, release.
async fn consume(world: &World) -> Result<(), String> {
    let (client, _denials) = application(world).await;
    let mut stream = jetstream::new(client.clone());
    stream.set_timeout(PATIENCE);
    let consumer: PullConsumer =
        stream.get_consumer_from_stream(DURABLE, "HOOKGATE").await.map_err(|error| error.to_string())?;
    let mut events =
        consumer.batch().max_messages(1).expires(PATIENCE).messages().await.map_err(|error| error.to_string())?;
    let event = tokio::time::timeout(PATIENCE, events.next()).await.ok().flatten().ok_or("no event")?;
    let event = event.map_err(|error| error.to_string())?;
    let request = json!({"flow": "vmh", "entity": "beteiligte", "action": "create", "entity_id": "a"}).to_string();
    let answer = client.request("hookgate.release", request.into()).await.map_err(|error| error.to_string())?;
    if !answer.payload.starts_with(br#"{"released":["a"]"#) {
        return Err(format!("released: {:?}", answer.payload));
    }
    event.double_ack().await.map_err(|error| error.to_string())
}

/// Servers with the permissions, an event, and the durable consumer, which an administrator made.
async fn system(permissions: &Permissions) -> (World, Access, Gate) {
    let (world, access) = Access::start(&Acl::hookgate(), permissions).await;
    let gate = world.gate(&access.everything()).await;
    assert_eq!(gate.post(batch(["a"])).await.counts(), (1, 1));
    let durable = pull::Config {
        durable_name: Some(DURABLE.to_owned()),
        filter_subject: SUBJECT.to_owned(),
        ack_policy: AckPolicy::Explicit,
        ..pull::Config::default()
    };
    let stream = world.nats.jetstream().await.get_stream("HOOKGATE").await.expect("hookgate made it");
    stream.create_consumer(durable).await.expect("the tests may");
    gate.wait_log("service is offered").await;
    (world, access, gate)
}

#[tokio::test]
async fn a_consumer_needs_no_more_and_no_less() {
    let permissions = Permissions::consumer();
    let (world, _access, _gate) = system(&permissions).await;
    consume(&world).await.expect("a consumer has what it needs");
    let subjects = permissions.grants();
    for (place, subject) in subjects.iter().enumerate() {
        let (world, _access, _gate) = system(&permissions.without(place)).await;
        assert!(consume(&world).await.is_err(), "nothing fails without {subject}");
    }
}

#[tokio::test]
async fn a_consumer_can_forge_nothing() {
    let (world, _access, _gate) = system(&Permissions::consumer()).await;
    let (client, mut denials) = application(&world).await;
    for subject in [
        "$JS.EVENT.METRIC.CONSUMER.ACK.HOOKGATE.case-sync",
        "$JS.EVENT.ADVISORY.CONSUMER.MSG_TERMINATED.HOOKGATE.case-sync",
        "$JS.EVENT.ADVISORY.CONSUMER.MAX_DELIVERIES.HOOKGATE.case-sync",
        "$JS.ACK.HOOKGATE.another.1.1.1.1.0",
        "$JS.API.CONSUMER.MSG.NEXT.HOOKGATE.another",
        "$JS.API.CONSUMER.DELETE.HOOKGATE.case-sync",
        "$JS.API.STREAM.PURGE.HOOKGATE",
        SUBJECT,
    ] {
        client.publish(subject, "{}".into()).await.expect("the client sends it");
        client.flush().await.expect("the server answers");
        eventually("the server denies it", async || denials.try_recv().ok().filter(|text| text.contains(subject)))
            .await;
    }
    assert_eq!(world.nats.events().await.len(), 1);
}
