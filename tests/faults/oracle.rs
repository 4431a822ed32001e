//! Reads the stream throughout a scenario, over restarts, cuts and deletions of the stream, so that
//! what was in it at any time counts.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use async_nats::jetstream::{
    consumer::{AckPolicy, DeliverPolicy, pull},
    stream::Stream,
};
use futures_util::StreamExt;
use tokio::task::JoinSet;

use crate::support::{Event, eventually};

/// What hookgate creates.
const STREAM: &str = "HOOKGATE";
/// How long the reader waits for a server that may be down or frozen.
const PATIENCE: Duration = Duration::from_secs(2);

/// The messages of a stream, in every life it had.
#[derive(Default)]
struct Read {
    events: Vec<Event>,
    incarnation: Option<String>,
    last_sequence: u64,
}

/// A reader, until it is dropped.
pub(crate) struct Oracle {
    read: Arc<Mutex<Read>>,
    _task: JoinSet<()>,
}

impl Oracle {
    /// Starts to read from any of several servers; the addresses may hold credentials of a user that may read
    /// everything.
    pub(crate) fn start(urls: Vec<String>) -> Self {
        let read = Arc::<Mutex<Read>>::default();
        let mut task = JoinSet::new();
        task.spawn(follow(urls, Arc::clone(&read)));
        Self { read, _task: task }
    }

    /// Waits until everything that is in the stream now has been read.
    pub(crate) async fn catch_up(&self, last_sequence: u64) {
        eventually("the oracle has read the stream", async || {
            (lock(&self.read).last_sequence >= last_sequence).then_some(())
        })
        .await;
    }

    /// The messages seen so far.
    pub(crate) fn events(&self) -> Vec<Event> {
        lock(&self.read).events.clone()
    }

    /// The ids seen so far.
    pub(crate) fn ids(&self) -> BTreeSet<String> {
        lock(&self.read).events.iter().map(Event::entity_id).collect()
    }

    /// The ids of the messages beyond the first so many, in their order, whenever it is asked.
    pub(crate) fn ids_as_they_come(&self) -> impl Fn(usize) -> Vec<String> + Send + use<> {
        let read = Arc::clone(&self.read);
        move |known| lock(&read).events[known..].iter().map(Event::entity_id).collect()
    }

    /// Messages beyond the first, by id; and by token, which nothing but a passed duplicate window, or a
    /// stream without memory, excuses.
    pub(crate) fn copies(&self) -> (usize, usize) {
        let read = lock(&self.read);
        let beyond = |names: Vec<String>| {
            let mut count = BTreeMap::<_, usize>::new();
            for name in names {
                *count.entry(name).or_default() += 1;
            }
            count.values().map(|count| count - 1).sum()
        };
        let ids = beyond(read.events.iter().map(Event::entity_id).collect());
        let tokens = beyond(read.events.iter().map(|event| event.token().to_owned()).collect());
        (ids, tokens)
    }
}

fn lock(read: &Mutex<Read>) -> std::sync::MutexGuard<'_, Read> {
    read.lock().unwrap_or_else(PoisonError::into_inner)
}

async fn follow(urls: Vec<String>, read: Arc<Mutex<Read>>) {
    loop {
        // Whatever goes wrong, a new connection goes on behind the last message.
        let _trouble = tokio::time::timeout(Duration::from_secs(600), session(&urls, &read)).await;
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

async fn session(urls: &[String], read: &Mutex<Read>) -> Result<(), async_nats::Error> {
    let options = async_nats::ConnectOptions::new().connection_timeout(PATIENCE).request_timeout(Some(PATIENCE));
    let client = options.connect(urls).await?;
    let mut context = async_nats::jetstream::new(client);
    context.set_timeout(PATIENCE);
    loop {
        let stream = context.get_stream(STREAM).await?;
        let created = stream.cached_info().created.to_string();
        let next = {
            let mut read = lock(read);
            if read.incarnation.as_ref() != Some(&created) {
                read.incarnation = Some(created);
                read.last_sequence = 0;
            }
            read.last_sequence + 1
        };
        if stream.cached_info().state.last_sequence >= next {
            fetch(&stream, next, read).await?;
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

async fn fetch(stream: &Stream, next: u64, read: &Mutex<Read>) -> Result<(), async_nats::Error> {
    let reader = pull::Config {
        ack_policy: AckPolicy::None,
        deliver_policy: DeliverPolicy::ByStartSequence { start_sequence: next },
        memory_storage: true,
        num_replicas: 1,
        inactive_threshold: Duration::from_secs(5),
        ..pull::Config::default()
    };
    let reader = stream.create_consumer(reader).await?;
    let mut messages = reader.fetch().max_messages(5000).messages().await?;
    while let Some(message) = tokio::time::timeout(PATIENCE, messages.next()).await? {
        let message = message?;
        let sequence = message.info()?.stream_sequence;
        let mut read = lock(read);
        if sequence > read.last_sequence {
            read.last_sequence = sequence;
            read.events.push(Event::from(message.message));
        }
    }
    Ok(())
}
