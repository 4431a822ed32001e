//! Publishes an event an id, with the headers that hookgate gives it, and counts the acknowledgements.

use std::{
    error::Error,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use async_nats::{
    Client, ConnectOptions, HeaderMap, Subscriber,
    header::NATS_MESSAGE_ID,
    jetstream::{
        self,
        stream::{Config, DiscardPolicy},
    },
};
use futures_util::StreamExt;
use hashbrown::HashMap;
use serde::Deserialize;
use tokio::sync::mpsc::UnboundedSender;
use tokio_util::task::TaskTracker;

use super::{Batch, Job};

const SUBJECT: &str = "vmh.beteiligte.create";
/// Messages that may wait for the connection, and acknowledgements for who counts them.
const ROOM: usize = 65_536;

/// A request of which so many events are not acknowledged yet.
struct Open {
    job: Job,
    new: usize,
    missing: usize,
}

type Waiting = Mutex<HashMap<u64, Open>>;

/// The connection to NATS, and who waits for what.
pub(crate) struct Events {
    client: Client,
    prefix: String,
    number: u64,
    waiting: Arc<Waiting>,
}

/// What a stream answers.
#[derive(Deserialize)]
struct PubAck {
    #[serde(default)]
    seq: u64,
}

impl Events {
    /// Connects, and makes the stream as hookgate does.
    pub(crate) async fn open(
        nats: &str,
        acknowledged: UnboundedSender<Batch>,
        tasks: &TaskTracker,
    ) -> Result<Self, Box<dyn Error>> {
        let options = ConnectOptions::new().skip_subject_validation(true);
        let client = options.client_capacity(ROOM).subscription_capacity(ROOM).connect(nats).await?;
        let stream = Config {
            name: "HOOKGATE".to_owned(),
            subjects: vec!["vmh.>".to_owned()],
            discard: DiscardPolicy::New,
            max_age: Duration::from_secs(7 * 24 * 3600),
            duplicate_window: Duration::from_secs(15 * 60),
            ..Config::default()
        };
        jetstream::new(client.clone()).get_or_create_stream(stream).await?;
        let prefix = client.new_inbox();
        let answers = client.subscribe(format!("{prefix}.>")).await?;
        let waiting = Arc::<Waiting>::default();
        tasks.spawn(count(answers, prefix.len() + 1, Arc::clone(&waiting), acknowledged));
        Ok(Self { client, prefix, number: 0, waiting })
    }

    /// Publishes those ids of a request that are new.
    pub(crate) async fn publish(&mut self, job: Job, states: &[u8]) {
        let own = job.batch.ids.iter().zip(states).enumerate();
        let own: Vec<_> = own.filter(|(_, (_, state))| **state == b'n').map(|(index, (id, _))| (index, id)).collect();
        let new = own.len();
        if new == 0 {
            // Nobody waits any more if this fails.
            let _unheard = job.done.send(0);
            return;
        }
        self.number += 1;
        let mut messages = Vec::with_capacity(new);
        for (index, id) in own {
            let mut headers = HeaderMap::new();
            headers.insert(NATS_MESSAGE_ID, job.batch.token(index));
            headers.insert("traceparent", format!("00-{}-0123456789abcdef-01", job.batch.seed));
            headers.insert("Hookgate-Route", "vmh/beteiligte/create");
            let payload = format!(
                r#"{{"entity_id":"{id}","action":"create","source":"webhook","timestamp":"2026-02-07T10:00:00.123Z"}}"#
            );
            messages.push((format!("{}.{}.{index}", self.prefix, self.number), headers, payload));
        }
        lock(&self.waiting).insert(self.number, Open { job, new, missing: new });
        for (reply, headers, payload) in messages {
            let sent = self.client.publish_with_reply_and_headers(SUBJECT, reply, headers, payload.into()).await;
            if let Err(error) = sent {
                eprintln!("bare: publish: {error}");
            }
        }
    }
}

/// Answers a request, and hands it on, when its last event is acknowledged.
async fn count(mut answers: Subscriber, start: usize, waiting: Arc<Waiting>, acknowledged: UnboundedSender<Batch>) {
    while let Some(answer) = answers.next().await {
        let number = answer.subject.get(start..).and_then(|place| place.split_once('.')?.0.parse::<u64>().ok());
        let stored = serde_json::from_slice::<PubAck>(&answer.payload).is_ok_and(|ack| ack.seq > 0);
        let (Some(number), true) = (number, stored) else {
            eprintln!("bare: not stored: {:?}", answer.payload);
            continue;
        };
        let mut all = lock(&waiting);
        let Some(open) = all.get_mut(&number) else { continue };
        open.missing -= 1;
        if open.missing == 0
            && let Some(Open { job: Job { batch, done }, new, .. }) = all.remove(&number)
        {
            drop(all);
            // Nobody waits any more if one of these fails.
            let _unheard = done.send(new);
            let _unsettled = acknowledged.send(batch);
        }
    }
}

fn lock(waiting: &Waiting) -> MutexGuard<'_, HashMap<u64, Open>> {
    waiting.lock().unwrap_or_else(PoisonError::into_inner)
}
