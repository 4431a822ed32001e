//! What requests may take: places, memory and time. Knows nothing of routes, batches and answers.

use std::{
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use tokio::{
    sync::{Notify, OwnedSemaphorePermit, Semaphore, TryAcquireError},
    time::{Instant, timeout_at},
};
use tokio_util::task::{TaskTracker, task_tracker::TaskTrackerToken};

use super::Refusal;

/// The part of the memory for bodies that large ones leave to small ones until they have shown a good signature: a few
/// senders of large bodies, who need no secret for that, would refuse everybody else.
const FOR_SMALL: usize = 4;
/// The part that all others of whom nobody knows who they are leave to those whose signature was good.
const FOR_VERIFIED: usize = 8;
/// The part that those may need who wait for it.
const FOR_WAITING: usize = 8;
/// How long a request waits for a place, or for memory, before it is refused. A sender that is refused has only so many
/// attempts.
const PATIENCE: Duration = Duration::from_millis(500);

/// What all requests together may take.
#[derive(Debug, Clone)]
pub struct Limits {
    pub(super) max_body_bytes: usize,
    pub(super) body_read_timeout: Duration,
    pub(super) request_deadline: Duration,
    max_in_flight: u32,
    in_flight: Arc<Semaphore>,
    /// Requests of which something is here, with a place or without.
    begun: TaskTracker,
    /// Places for large bodies that are read aside.
    pub(super) readers: Arc<Semaphore>,
    buffer: Arc<Buffer>,
}

impl Limits {
    /// Limits with nothing taken yet. `max_buffered_bytes` is for all bodies being read or processed; `readers`
    /// is how many large ones are read at once, each by a thread of its own.
    #[must_use]
    pub fn new(
        max_body_bytes: usize,
        max_buffered_bytes: usize,
        max_in_flight: u32,
        body_read_timeout: Duration,
        request_deadline: Duration,
        readers: usize,
    ) -> Self {
        Self {
            max_body_bytes,
            body_read_timeout,
            request_deadline,
            max_in_flight,
            in_flight: Arc::new(Semaphore::new(max_in_flight as usize)),
            begun: TaskTracker::new(),
            readers: Arc::new(Semaphore::new(readers)),
            buffer: Arc::new(Buffer {
                limit: max_buffered_bytes,
                taken: AtomicUsize::new(0),
                waiting: AtomicUsize::new(0),
                room: Notify::new(),
                requests: AtomicUsize::new(0),
            }),
        }
    }

    /// What is taken now.
    #[must_use]
    pub fn in_use(&self) -> InUse {
        InUse {
            // Not the places that are left: who waits for idleness takes them.
            requests: self.buffer.requests.load(Ordering::Relaxed),
            max_requests: self.max_in_flight as usize,
            bytes: self.buffer.taken.load(Ordering::Relaxed),
            max_bytes: self.buffer.limit,
        }
    }

    /// Waits until no request is in flight, nor on its way to a place, for at most `limit`; whether none is. From then
    /// on none gets a place, not even one that has waited for it.
    pub async fn idle(&self, limit: Duration) -> bool {
        self.begun.close();
        let all = async {
            self.begun.wait().await;
            // What a sender has left goes on with its place.
            self.in_flight.acquire_many(self.max_in_flight).await
        };
        let all = tokio::time::timeout(limit, all).await;
        // All places are held until there are none any more.
        self.in_flight.close();
        matches!(all, Ok(Ok(_)))
    }

    /// What a request that arrived at `at` may take while its body comes: memory, and no place yet. Who never sends what
    /// is announced would take those of all others.
    pub(super) fn arrived(&self, at: Instant) -> Arriving {
        Arriving {
            deadline: at + self.request_deadline,
            reading_deadline: at + self.request_deadline - self.request_deadline / 4,
            held: Held { buffer: Arc::clone(&self.buffer), bytes: 0 },
            _begun: self.begun.token(),
        }
    }

    /// A place for a request whose body is here, if one is free.
    pub(super) fn admit(&self) -> Result<Place, Refusal> {
        let place = Arc::clone(&self.in_flight).try_acquire_owned().map_err(|none| match none {
            TryAcquireError::NoPermits => self.full(),
            TryAcquireError::Closed => Refusal::Draining,
        })?;
        Ok(self.place(place))
    }

    /// A place for a request that found none, should one become free soon. Whoever is sent away at once comes back at
    /// once: thousands of them would take the time of those who have places.
    pub(super) async fn admit_soon(&self) -> Result<Place, Refusal> {
        match timeout_at(Instant::now() + PATIENCE, Arc::clone(&self.in_flight).acquire_owned()).await {
            Ok(Ok(place)) => Ok(self.place(place)),
            Ok(Err(_closed)) => Err(Refusal::Draining),
            Err(_elapsed) => Err(self.full()),
        }
    }

    /// Whether small bodies wait for memory and there is none, so that those who are slow with theirs have to go.
    pub(super) fn is_short(&self) -> bool {
        let waiting = self.buffer.waiting.load(Ordering::Relaxed);
        waiting > 0 && self.buffer.taken.load(Ordering::Relaxed) + waiting > self.buffer.for_anybody()
    }

    pub(super) fn no_room(&self) -> Refusal {
        Refusal::TooManyBytes { limit: self.buffer.limit }
    }

    fn place(&self, permit: OwnedSemaphorePermit) -> Place {
        self.buffer.requests.fetch_add(1, Ordering::Relaxed);
        Place { buffer: Arc::clone(&self.buffer), _permit: permit }
    }

    const fn full(&self) -> Refusal {
        Refusal::TooManyRequests { limit: self.max_in_flight }
    }
}

/// What requests take, and the most that they may take.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct InUse {
    /// Requests in flight.
    pub requests: usize,
    /// `server.max_in_flight`
    pub max_requests: usize,
    /// Bytes of bodies.
    pub bytes: usize,
    /// `server.max_buffered_bytes`
    pub max_bytes: usize,
}

/// The memory of all bodies, and how many requests share it.
#[derive(Debug)]
struct Buffer {
    limit: usize,
    taken: AtomicUsize,
    /// Bytes of small bodies that find no room.
    waiting: AtomicUsize,
    /// For one of them there may be some.
    room: Notify,
    requests: AtomicUsize,
}

impl Buffer {
    /// What is there for those of whom nobody knows who they are.
    const fn for_anybody(&self) -> usize {
        self.limit - self.limit / FOR_VERIFIED
    }

    fn give_back(&self, bytes: usize) {
        // In one order with what `Waiting` does, or it could miss this room.
        self.taken.fetch_sub(bytes, Ordering::SeqCst);
        self.pass_on();
    }

    fn pass_on(&self) {
        if self.waiting.load(Ordering::SeqCst) > 0 {
            self.room.notify_one();
        }
    }
}

/// A request whose body comes, and until when all of it has time.
pub(super) struct Arriving {
    pub(super) deadline: Instant,
    /// Until when its body has to be here and understood. A quarter of the time is left for what comes next: an
    /// attempt to publish that has none would only look like a broker that is gone.
    pub(super) reading_deadline: Instant,
    pub(super) held: Held,
    _begun: TaskTrackerToken,
}

/// A request that is worked on.
pub(super) struct Admitted {
    pub(super) arriving: Arriving,
    pub(super) place: Place,
}

/// A place among the requests in flight, until it is dropped.
pub(super) struct Place {
    buffer: Arc<Buffer>,
    _permit: OwnedSemaphorePermit,
}

impl Drop for Place {
    fn drop(&mut self) {
        self.buffer.requests.fetch_sub(1, Ordering::Relaxed);
    }
}

/// The memory that a request occupies until it is dropped.
pub(super) struct Held {
    buffer: Arc<Buffer>,
    bytes: usize,
}

impl Held {
    /// Takes memory from the budget of all bodies, for somebody who may come in.
    pub(super) fn reserve(&mut self, bytes: usize) -> Result<(), Refusal> {
        self.reserve_within(bytes, self.buffer.limit)
    }

    /// The same for a body, or a long head, of which nobody knows yet who sends it.
    pub(super) fn reserve_for_anybody(&mut self, bytes: usize) -> Result<(), Refusal> {
        self.reserve_within(bytes, self.buffer.for_anybody())
    }

    /// The same for a large body.
    pub(super) fn reserve_for_large(&mut self, bytes: usize) -> Result<(), Refusal> {
        self.reserve_within(bytes, self.buffer.limit - self.buffer.limit / FOR_SMALL)
    }

    fn reserve_within(&mut self, bytes: usize, most: usize) -> Result<(), Refusal> {
        let Buffer { limit, taken, .. } = &*self.buffer;
        taken
            .fetch_update(Ordering::SeqCst, Ordering::Relaxed, |taken| Some(taken + bytes).filter(|sum| *sum <= most))
            .map_err(|_taken| Refusal::TooManyBytes { limit: *limit })?;
        self.bytes += bytes;
        Ok(())
    }

    /// Gives back what was freed before the request is over.
    pub(super) fn release(&mut self, bytes: usize) {
        self.bytes -= bytes;
        self.buffer.give_back(bytes);
    }

    /// A wait for room, that begins now, for a body that will take `bytes`. None if so many wait that those who hold a
    /// part of what they need would wait for each other.
    pub(super) fn wait(&self, bytes: usize) -> Option<Waiting> {
        let Buffer { limit, waiting, .. } = &*self.buffer;
        let most = limit / FOR_WAITING;
        waiting
            .fetch_update(Ordering::SeqCst, Ordering::Relaxed, |sum| Some(sum + bytes).filter(|sum| *sum <= most))
            .ok()?;
        Some(Waiting { buffer: Arc::clone(&self.buffer), bytes, until: Instant::now() + PATIENCE })
    }
}

impl Drop for Held {
    fn drop(&mut self) {
        self.buffer.give_back(self.bytes);
    }
}

/// A small body that waits for memory. Makes those go who hold some and are slow ([`Limits::is_short`]).
pub(super) struct Waiting {
    buffer: Arc<Buffer>,
    bytes: usize,
    until: Instant,
}

impl Waiting {
    /// Returns once there may be room, or not any more: whether trying again makes sense.
    pub(super) async fn room(&self) -> bool {
        timeout_at(self.until, self.buffer.room.notified()).await.is_ok()
    }
}

impl Drop for Waiting {
    fn drop(&mut self) {
        self.buffer.waiting.fetch_sub(self.bytes, Ordering::SeqCst);
        // There may be room for the next one too.
        self.buffer.pass_on();
    }
}
