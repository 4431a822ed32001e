//! Answers to many messages over one subscription: a place per batch and message below one inbox.
//!
//! An answer is read as it comes, and what it says is kept in place of it: a message holds the buffer that it came in.

use std::sync::{
    Arc, Mutex, MutexGuard, PoisonError,
    atomic::{AtomicU64, Ordering},
};

use async_nats::{Message, SubscribeError, Subscriber};
use futures_util::StreamExt;
use hashbrown::HashMap;
use tokio::sync::{oneshot, watch};
use tokio_util::task::TaskTracker;

use super::connection::{Connection, ConnectionStatus};
use crate::{failpoint, supervision::supervise};

/// The subscription, and who waits for what.
pub(super) struct Inbox<T> {
    prefix: String,
    next: AtomicU64,
    waiting: Arc<Mutex<AwaitedBatches<T>>>,
}

struct AwaitedBatches<T> {
    batches: HashMap<u64, AwaitedBatch<T>>,
    /// The last connection on which nothing is answered any more.
    over: u64,
}

/// The answers to a batch so far.
struct AwaitedBatch<T> {
    /// Over which connection it is sent.
    epoch: u64,
    answers: Vec<Option<T>>,
    missing: usize,
    complete: Option<oneshot::Sender<()>>,
}

impl<T> AwaitedBatch<T> {
    fn one_less(&mut self) {
        self.missing -= 1;
        if self.missing == 0
            && let Some(complete) = self.complete.take()
        {
            // Nobody waits any more if this fails.
            let _unheard = complete.send(());
        }
    }
}

impl<T: Send + 'static> Inbox<T> {
    /// Subscribes; the task that takes the answers, each as `read` reads it, ends with the client.
    pub(super) async fn open(
        connection: &Connection,
        tasks: &TaskTracker,
        read: fn(&Message) -> T,
    ) -> Result<Self, SubscribeError> {
        let prefix = connection.client.new_inbox();
        let mut answers = connection.client.subscribe(format!("{prefix}.>")).await?;
        let waiting = Arc::new(Mutex::new(AwaitedBatches { batches: HashMap::new(), over: 0 }));
        let (start, those) = (prefix.len() + 1, Arc::clone(&waiting));
        tasks.spawn(async move { supervise!("the answers of NATS", collect(&mut answers, read, start, &those)) });
        let (mut status, those) = (connection.status.clone(), Arc::clone(&waiting));
        tasks.spawn(async move { supervise!("the end of NATS' connections", give_up(&mut status, &those)) });
        Ok(Self { prefix, next: AtomicU64::new(0), waiting })
    }

    /// Registers a batch, sent over this connection, whose answers are expected.
    pub(super) fn expect(&self, messages: usize, epoch: u64) -> Expected<'_, T> {
        let number = self.next.fetch_add(1, Ordering::Relaxed);
        let (complete, all_here) = oneshot::channel();
        let answers = (0..messages).map(|_| None).collect();
        let mut waiting = lock(&self.waiting);
        // Without it, nobody waits.
        let complete = (epoch > waiting.over).then_some(complete);
        waiting.batches.insert(number, AwaitedBatch { epoch, answers, missing: messages, complete });
        Expected { inbox: self, number, all_here }
    }
}

/// The registration of a batch that expects answers; dropping it ends that.
pub(super) struct Expected<'a, T> {
    inbox: &'a Inbox<T>,
    number: u64,
    all_here: oneshot::Receiver<()>,
}

impl<T> Expected<'_, T> {
    /// The subject that the answer to a message has to go to.
    pub(super) fn reply_subject(&self, index: usize) -> String {
        let (mut number, mut place) = (itoa::Buffer::new(), itoa::Buffer::new());
        let (number, place) = (number.format(self.number), place.format(index));
        let prefix = self.inbox.prefix.as_str();
        let mut subject = String::with_capacity(prefix.len() + number.len() + place.len() + 2);
        for part in [prefix, ".", number, ".", place] {
            subject.push_str(part);
        }
        subject
    }

    /// One of the messages is not sent, and not answered.
    pub(super) fn is_not_sent(&self) {
        if let Some(batch) = lock(&self.inbox.waiting).batches.get_mut(&self.number) {
            batch.one_less();
        }
    }

    /// Waits until all answers are here, or none will come any more.
    pub(super) async fn complete(&mut self) {
        let _complete_or_over = (&mut self.all_here).await;
    }

    /// The answers that are here.
    pub(super) fn answers(self) -> Vec<Option<T>> {
        lock(&self.inbox.waiting).batches.remove(&self.number).map(|batch| batch.answers).unwrap_or_default()
    }
}

impl<T> Drop for Expected<'_, T> {
    fn drop(&mut self) {
        lock(&self.inbox.waiting).batches.remove(&self.number);
    }
}

/// Sorts what comes in. Late answers, to batches that are no longer awaited, are dropped.
async fn collect<T>(
    answers: &mut Subscriber,
    read: fn(&Message) -> T,
    prefix: usize,
    waiting: &Mutex<AwaitedBatches<T>>,
) {
    while let Some(answer) = answers.next().await {
        failpoint::hit("in_answer");
        let place = answer.subject.get(prefix..).and_then(|tail| tail.split_once('.'));
        let Some((Ok(number), Ok(index))) =
            place.map(|(number, index)| (number.parse::<u64>(), index.parse::<usize>()))
        else {
            continue;
        };
        if let Some(batch) = lock(waiting).batches.get_mut(&number)
            && let Some(slot @ None) = batch.answers.get_mut(index)
        {
            *slot = Some(read(&answer));
            batch.one_less();
        }
    }
}

/// Ends the wait for answers on a connection that is over.
async fn give_up<T>(status: &mut watch::Receiver<ConnectionStatus>, waiting: &Mutex<AwaitedBatches<T>>) {
    loop {
        let over = status.borrow_and_update().last_ended();
        {
            let mut waiting = lock(waiting);
            waiting.over = over;
            for batch in waiting.batches.values_mut().filter(|batch| batch.epoch <= over) {
                batch.complete = None;
            }
        }
        if status.changed().await.is_err() {
            return;
        }
    }
}

/// No code that holds the lock can panic half-way through a change.
fn lock<T>(waiting: &Mutex<AwaitedBatches<T>>) -> MutexGuard<'_, AwaitedBatches<T>> {
    waiting.lock().unwrap_or_else(PoisonError::into_inner)
}
