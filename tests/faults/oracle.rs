//! Reads the stream throughout a scenario, across restarts, cuts and deletions: an event counts if it was ever there.

use std::{
    collections::{BTreeSet, HashMap, HashSet},
    hash::{BuildHasher, BuildHasherDefault, DefaultHasher},
    sync::{Arc, Mutex, PoisonError},
    time::{Duration, SystemTime},
};

use async_nats::jetstream::{
    consumer::{AckPolicy, DeliverPolicy, pull},
    stream::Stream,
};
use futures_util::StreamExt;
use tokio::{sync::mpsc, task::JoinSet};

use super::judge::History;
use crate::support::{Event, within};

/// What hookgate creates.
const STREAM: &str = "HOOKGATE";
/// How long the reader waits for a server that may be down or frozen.
const PATIENCE: Duration = Duration::from_secs(2);

/// Within this time a stream remembers a token, whatever a scenario sets up.
const REMEMBERS: Duration = Duration::from_secs(300);

/// The messages of a stream, in every life it had.
#[derive(Default)]
struct Read {
    /// None while a scenario lasts so long that they would fill the memory.
    events: Option<Vec<Event>>,
    messages: usize,
    /// Hashes of the ids.
    ids: HashSet<u64>,
    /// Hashes of the tokens, and when each was stored first.
    tokens: HashMap<u64, SystemTime>,
    repeated_tokens: usize,
    consumers: Vec<mpsc::UnboundedSender<String>>,
    incarnation: Option<String>,
    last_sequence: u64,
}

impl Read {
    fn take(&mut self, event: Event, stored: SystemTime, history: &Mutex<History>) {
        let hasher = BuildHasherDefault::<DefaultHasher>::default();
        let id = event.entity_id();
        lock(history).event(&id, stored);
        self.messages += 1;
        self.ids.insert(hasher.hash_one(&id));
        let first = *self.tokens.entry(hasher.hash_one(event.token())).or_insert(stored);
        if first != stored && stored.duration_since(first).is_ok_and(|later| later < REMEMBERS) {
            self.repeated_tokens += 1;
        }
        self.consumers.retain(|consumer| consumer.send(id.clone()).is_ok());
        if let Some(events) = &mut self.events {
            events.push(event);
        }
    }
}

/// A reader, until it is dropped.
pub(crate) struct Oracle {
    read: Arc<Mutex<Read>>,
    _task: JoinSet<()>,
}

impl Oracle {
    /// Starts to read from any of several servers; the addresses may hold credentials of a user that may read
    /// everything.
    pub(crate) fn start(urls: Vec<String>, history: Arc<Mutex<History>>) -> Self {
        let read = Arc::new(Mutex::new(Read { events: Some(Vec::new()), ..Read::default() }));
        let mut task = JoinSet::new();
        task.spawn(follow(urls, Arc::clone(&read), history));
        Self { read, _task: task }
    }

    /// Waits until everything that is in the stream now has been read; whether it has been.
    pub(crate) async fn catch_up(&self, last_sequence: u64) -> bool {
        let caught_up = async || (lock(&self.read).last_sequence >= last_sequence).then_some(());
        within(Duration::from_secs(30), caught_up).await.is_some()
    }

    /// Keeps no messages from now on, only what is judged of them: memory stays bounded.
    pub(crate) fn keep_no_events(&self) {
        lock(&self.read).events = None;
    }

    /// Whether messages and their ids can be looked at.
    pub(crate) fn keeps_events(&self) -> bool {
        lock(&self.read).events.is_some()
    }

    /// The messages seen so far.
    ///
    /// # Panics
    /// If they are not kept.
    pub(crate) fn events(&self) -> Vec<Event> {
        lock(&self.read).events.clone().expect("this scenario keeps events")
    }

    /// The ids seen so far; none if they are not kept.
    pub(crate) fn ids(&self) -> BTreeSet<String> {
        lock(&self.read).events.iter().flatten().map(Event::entity_id).collect()
    }

    /// The ids of the messages from now on, as they come.
    pub(crate) fn subscribe(&self) -> mpsc::UnboundedReceiver<String> {
        let (sender, receiver) = mpsc::unbounded_channel();
        lock(&self.read).consumers.push(sender);
        receiver
    }

    /// How many messages there were.
    pub(crate) fn messages(&self) -> usize {
        lock(&self.read).messages
    }

    /// Messages beyond the first, by id; and by token, which nothing but a passed duplicate window, or a
    /// stream without memory, excuses.
    pub(crate) fn copies(&self) -> (usize, usize) {
        let read = lock(&self.read);
        (read.messages - read.ids.len(), read.repeated_tokens)
    }
}

fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

async fn follow(urls: Vec<String>, read: Arc<Mutex<Read>>, history: Arc<Mutex<History>>) {
    loop {
        // After any failure a new connection continues after the last message.
        let _trouble = tokio::time::timeout(Duration::from_secs(600), session(&urls, &read, &history)).await;
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

async fn session(urls: &[String], read: &Mutex<Read>, history: &Mutex<History>) -> Result<(), async_nats::Error> {
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
            // A kill can lose messages that were never acknowledged.
            read.last_sequence = read.last_sequence.min(stream.cached_info().state.last_sequence);
            read.last_sequence + 1
        };
        if stream.cached_info().state.last_sequence >= next {
            fetch(&stream, next, read, history).await?;
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

async fn fetch(
    stream: &Stream,
    next: u64,
    read: &Mutex<Read>,
    history: &Mutex<History>,
) -> Result<(), async_nats::Error> {
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
        let info = message.info()?;
        let (sequence, stored) = (info.stream_sequence, SystemTime::from(info.published));
        let mut read = lock(read);
        if sequence > read.last_sequence {
            read.last_sequence = sequence;
            read.take(Event::from(message.message), stored, history);
        }
    }
    Ok(())
}
