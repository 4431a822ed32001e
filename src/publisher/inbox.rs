//! Answers to many messages over one subscription: a place per batch and message below one inbox.

use std::{
    collections::HashMap,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
};

use async_nats::{Client, Message, SubscribeError, Subscriber};
use futures_util::StreamExt;
use tokio::{sync::oneshot, time::Instant};
use tokio_util::task::TaskTracker;

/// The subscription, and who waits for what.
pub(super) struct Inbox {
    prefix: String,
    next: AtomicU64,
    waiting: Arc<Mutex<Waiting>>,
}

type Waiting = HashMap<u64, Batch>;

/// The answers to a batch so far.
struct Batch {
    answers: Vec<Option<Message>>,
    missing: usize,
    complete: Option<oneshot::Sender<()>>,
}

impl Inbox {
    /// Subscribes; the task that reads the answers ends with the client.
    pub(super) async fn open(client: &Client, tasks: &TaskTracker) -> Result<Self, SubscribeError> {
        let prefix = client.new_inbox();
        let answers = client.subscribe(format!("{prefix}.>")).await?;
        let waiting = Arc::default();
        tasks.spawn(collect(answers, prefix.len() + 1, Arc::clone(&waiting)));
        Ok(Self { prefix, next: AtomicU64::new(0), waiting })
    }

    /// Makes room for the answers to a batch.
    pub(super) fn expect(&self, messages: usize) -> Expected<'_> {
        let number = self.next.fetch_add(1, Ordering::Relaxed);
        let (complete, all_here) = oneshot::channel();
        let batch = Batch { answers: vec![None; messages], missing: messages, complete: Some(complete) };
        lock(&self.waiting).insert(number, batch);
        Expected { inbox: self, prefix: format!("{}.{number}.", self.prefix), number, all_here }
    }
}

/// The room for the answers to a batch, given up when this is dropped.
pub(super) struct Expected<'a> {
    inbox: &'a Inbox,
    /// Of the subjects of the answers.
    prefix: String,
    number: u64,
    all_here: oneshot::Receiver<()>,
}

impl Expected<'_> {
    /// The subject that the answer to a message has to go to.
    pub(super) fn reply_subject(&self, index: usize) -> String {
        let mut digits = itoa::Buffer::new();
        let digits = digits.format(index);
        let mut subject = String::with_capacity(self.prefix.len() + digits.len());
        subject.push_str(&self.prefix);
        subject.push_str(digits);
        subject
    }

    /// Waits until all answers are here, the time is over, or `lost` says that none will come any more;
    /// then gives what is here.
    pub(super) async fn answers(mut self, until: Instant, lost: impl Future<Output = ()>) -> Vec<Option<Message>> {
        tokio::select! {
            _complete = &mut self.all_here => {}
            () = tokio::time::sleep_until(until) => {}
            () = lost => {}
        }
        lock(&self.inbox.waiting).remove(&self.number).map(|batch| batch.answers).unwrap_or_default()
    }
}

impl Drop for Expected<'_> {
    fn drop(&mut self) {
        lock(&self.inbox.waiting).remove(&self.number);
    }
}

/// Sorts what comes in. Late answers, to batches that nobody waits for any more, are dropped.
async fn collect(mut answers: Subscriber, prefix: usize, waiting: Arc<Mutex<Waiting>>) {
    while let Some(answer) = answers.next().await {
        let place = answer.subject.get(prefix..).and_then(|tail| tail.split_once('.'));
        let Some((Ok(number), Ok(index))) = place.map(|(number, index)| (number.parse(), index.parse::<usize>()))
        else {
            continue;
        };
        if let Some(batch) = lock(&waiting).get_mut(&number)
            && let Some(slot @ None) = batch.answers.get_mut(index)
        {
            *slot = Some(answer);
            batch.missing -= 1;
            if batch.missing == 0
                && let Some(complete) = batch.complete.take()
            {
                // Nobody waits any more if this fails.
                let _unheard = complete.send(());
            }
        }
    }
}

/// No code that holds the lock can panic half-way through a change.
fn lock(waiting: &Mutex<Waiting>) -> MutexGuard<'_, Waiting> {
    waiting.lock().unwrap_or_else(PoisonError::into_inner)
}
