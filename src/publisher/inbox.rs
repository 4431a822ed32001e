//! Answers to many messages over one subscription: a place per batch and message below one inbox.
//!
//! An answer is read as it comes, and what it says is kept in place of it: a message holds the buffer that it came in.

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
pub(super) struct Inbox<T> {
    prefix: String,
    next: AtomicU64,
    waiting: Arc<Mutex<Waiting<T>>>,
}

type Waiting<T> = HashMap<u64, Batch<T>>;

/// The answers to a batch so far.
struct Batch<T> {
    answers: Vec<Option<T>>,
    missing: usize,
    complete: Option<oneshot::Sender<()>>,
}

impl<T: Send + 'static> Inbox<T> {
    /// Subscribes; the task that takes the answers, each as `read` reads it, ends with the client.
    pub(super) async fn open(
        client: &Client,
        tasks: &TaskTracker,
        read: fn(&Message) -> T,
    ) -> Result<Self, SubscribeError> {
        let prefix = client.new_inbox();
        let answers = client.subscribe(format!("{prefix}.>")).await?;
        let waiting: Arc<Mutex<Waiting<T>>> = Arc::default();
        tasks.spawn(collect(answers, read, prefix.len() + 1, Arc::clone(&waiting)));
        Ok(Self { prefix, next: AtomicU64::new(0), waiting })
    }

    /// Makes room for the answers to a batch.
    pub(super) fn expect(&self, messages: usize) -> Expected<'_, T> {
        let number = self.next.fetch_add(1, Ordering::Relaxed);
        let (complete, all_here) = oneshot::channel();
        let answers = (0..messages).map(|_| None).collect();
        let batch = Batch { answers, missing: messages, complete: Some(complete) };
        lock(&self.waiting).insert(number, batch);
        Expected { inbox: self, prefix: format!("{}.{number}.", self.prefix), number, all_here }
    }
}

/// The room for the answers to a batch, given up when this is dropped.
pub(super) struct Expected<'a, T> {
    inbox: &'a Inbox<T>,
    /// Of the subjects of the answers.
    prefix: String,
    number: u64,
    all_here: oneshot::Receiver<()>,
}

impl<T> Expected<'_, T> {
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
    pub(super) async fn answers(mut self, until: Instant, lost: impl Future<Output = ()>) -> Vec<Option<T>> {
        tokio::select! {
            _complete = &mut self.all_here => {}
            () = tokio::time::sleep_until(until) => {}
            () = lost => {}
        }
        lock(&self.inbox.waiting).remove(&self.number).map(|batch| batch.answers).unwrap_or_default()
    }
}

impl<T> Drop for Expected<'_, T> {
    fn drop(&mut self) {
        lock(&self.inbox.waiting).remove(&self.number);
    }
}

/// Sorts what comes in. Late answers, to batches that nobody waits for any more, are dropped.
async fn collect<T>(mut answers: Subscriber, read: fn(&Message) -> T, prefix: usize, waiting: Arc<Mutex<Waiting<T>>>) {
    while let Some(answer) = answers.next().await {
        let place = answer.subject.get(prefix..).and_then(|tail| tail.split_once('.'));
        let Some((Ok(number), Ok(index))) = place.map(|(number, index)| (number.parse(), index.parse::<usize>()))
        else {
            continue;
        };
        if let Some(batch) = lock(&waiting).get_mut(&number)
            && let Some(slot @ None) = batch.answers.get_mut(index)
        {
            *slot = Some(read(&answer));
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
fn lock<T>(waiting: &Mutex<Waiting<T>>) -> MutexGuard<'_, Waiting<T>> {
    waiting.lock().unwrap_or_else(PoisonError::into_inner)
}
