//! What requests may take: memory from one budget, permits, and time.
//!
//! A request takes memory while its body arrives, and a permit once all of the body is here. So a sender of heads alone
//! holds no permit. Knows nothing of routes, batches and answers.
//!
//! The budget (`server.max_buffered_bytes`) counts bytes as they arrive, and heads above 8 KiB. Until its signature is
//! verified a body may use seven eighths of the budget, a body above 64 KiB three quarters. The rest is reserved for small
//! bodies and for authenticated requests. A small body that exceeds it waits for half a second. While one waits, bodies
//! that have been coming for more than 250 ms are refused, as many as it takes.
//!
//! Shown by `make faults ONLY=memory_of_1000_large_bodies` and `tests/slow_clients.rs`; `tests/edge/run` measures memory and
//! CPU of crafted bodies.

use std::{
    sync::{
        Arc,
        atomic::{AtomicU32, AtomicUsize, Ordering},
    },
    time::Duration,
};

use tokio::{
    sync::{Notify, OwnedSemaphorePermit, Semaphore, TryAcquireError},
    time::{Instant, timeout_at},
};
use tokio_util::task::{TaskTracker, task_tracker::TaskTrackerToken};

/// Share of the budget that large bodies leave to small ones until their signature was good: a quarter. A few senders of
/// large bodies, who need no secret for that, would otherwise take the whole budget.
const FOR_SMALL: usize = 4;
/// Share of the budget reserved for authenticated requests: an eighth.
const FOR_VERIFIED: usize = 8;
/// Share of the budget that bodies may wait for at the same time: an eighth.
const FOR_WAITING: usize = 8;
/// How long a request waits for a permit, or for memory, before it is refused. Senders have few attempts.
const PATIENCE: Duration = Duration::from_millis(500);

/// Why a request was not admitted. Always transient.
#[derive(Debug, thiserror::Error)]
pub enum AdmissionError {
    /// All permits are taken.
    #[error("more than {limit} requests at once (server.max_in_flight)")]
    NoPermit {
        /// Permits there are.
        limit: u32,
    },
    /// The budget of memory is spent.
    #[error("more than {limit} bytes of bodies at once (server.max_buffered_bytes)")]
    NoBudget {
        /// Bytes of the budget.
        limit: usize,
    },
    /// The system has no memory.
    #[error("no memory for the body: {0}")]
    NoMemory(std::io::Error),
    /// The process is shutting down.
    #[error("this instance is shutting down")]
    Draining,
}

/// What all requests together may take.
#[derive(Debug, Clone)]
pub struct Limits {
    max_body_bytes: usize,
    body_read_timeout: Duration,
    request_deadline: Duration,
    permits: Arc<Semaphore>,
    /// Requests that have begun, with a permit or without.
    begun: TaskTracker,
    /// One permit for each large body that may be offloaded to another thread.
    offload: Arc<Semaphore>,
    budget: Arc<Budget>,
}

impl Limits {
    /// Limits with nothing taken yet. `max_buffered_bytes` is for all bodies that are being read or processed;
    /// `offloaded` is how many large ones are verified and decoded at once, each on a thread of its own.
    #[must_use]
    pub fn new(
        max_body_bytes: usize,
        max_buffered_bytes: usize,
        max_in_flight: u32,
        body_read_timeout: Duration,
        request_deadline: Duration,
        offloaded: usize,
    ) -> Self {
        Self {
            max_body_bytes,
            body_read_timeout,
            request_deadline,
            permits: Arc::new(Semaphore::new(max_in_flight as usize)),
            begun: TaskTracker::new(),
            offload: Arc::new(Semaphore::new(offloaded)),
            budget: Arc::new(Budget {
                max_in_flight: AtomicU32::new(max_in_flight),
                excess: AtomicUsize::new(0),
                limit: AtomicUsize::new(max_buffered_bytes),
                taken: AtomicUsize::new(0),
                waiting: AtomicUsize::new(0),
                room: Notify::new(),
                requests: AtomicUsize::new(0),
            }),
        }
    }

    /// The limits of another configuration for what is taken now and later. Both sides share permits and memory: requests that
    /// hold more than is allowed now keep it to their end.
    #[must_use]
    pub fn changed_to(&self, next: &Self) -> Self {
        let (limit, permits) = (next.budget.limit(), next.budget.max_in_flight());
        let Budget { max_in_flight, excess, limit: bytes, .. } = &*self.budget;
        let before = max_in_flight.swap(permits, Ordering::SeqCst);
        let more = permits.saturating_sub(before) as usize;
        // What is still to be taken back need not be any more.
        let spared =
            excess.fetch_update(Ordering::SeqCst, Ordering::SeqCst, |excess| Some(excess.saturating_sub(more)));
        self.permits.add_permits(more - spared.unwrap_or_default().min(more));
        let fewer = before.saturating_sub(permits) as usize;
        excess.fetch_add(fewer - self.permits.forget_permits(fewer), Ordering::SeqCst);
        bytes.store(limit, Ordering::SeqCst);
        self.budget.wake_one();
        Self {
            max_body_bytes: next.max_body_bytes,
            body_read_timeout: next.body_read_timeout,
            request_deadline: next.request_deadline,
            ..self.clone()
        }
    }

    /// Most bytes of one body.
    #[must_use]
    pub const fn max_body_bytes(&self) -> usize {
        self.max_body_bytes
    }

    /// Longest time in which a body may arrive.
    #[must_use]
    pub const fn body_read_timeout(&self) -> Duration {
        self.body_read_timeout
    }

    /// Longest time from the head of a request to its answer.
    #[must_use]
    pub const fn request_deadline(&self) -> Duration {
        self.request_deadline
    }

    /// What is taken now.
    #[must_use]
    pub fn in_use(&self) -> InUse {
        InUse {
            requests: self.requests_in_flight(),
            max_requests: self.budget.max_in_flight() as usize,
            bytes: self.budget.taken.load(Ordering::Relaxed),
            max_bytes: self.budget.limit(),
        }
    }

    /// Requests that hold a permit. Counted apart from the permits: [`Limits::idle`] takes those.
    #[must_use]
    pub fn requests_in_flight(&self) -> usize {
        self.budget.requests.load(Ordering::Relaxed)
    }

    /// Waits for at most `limit` until no request is in flight, nor on its way to a permit. Returns whether none is. From
    /// then on no request gets a permit, not even one that has waited for it.
    pub async fn idle(&self, limit: Duration) -> bool {
        self.begun.close();
        let all = async {
            self.begun.wait().await;
            // A request whose sender hung up goes on with its permit.
            self.permits.acquire_many(self.budget.max_in_flight()).await
        };
        let all = tokio::time::timeout(limit, all).await;
        // Closed while all permits are held, so that no request takes one in between.
        self.permits.close();
        matches!(all, Ok(Ok(_)))
    }

    /// The allowance of a request that arrived at `at`: time and memory, and no permit yet. A sender that never sends the
    /// body it announced would take the permits of all others.
    #[must_use]
    pub fn begin(&self, at: Instant) -> Allowance {
        Allowance {
            deadline: at + self.request_deadline,
            reading_deadline: at + self.request_deadline - self.request_deadline / 4,
            budget: Arc::clone(&self.budget),
            bytes: 0,
            _begun: self.begun.token(),
        }
    }

    /// A permit for a request whose body is here.
    ///
    /// # Errors
    /// If none is free, or the process is shutting down.
    pub fn permit(&self) -> Result<Permit, AdmissionError> {
        let permit = Arc::clone(&self.permits).try_acquire_owned().map_err(|none| match none {
            TryAcquireError::NoPermits => self.no_permit(),
            TryAcquireError::Closed => AdmissionError::Draining,
        })?;
        Ok(self.count(permit))
    }

    /// The same for a request that found none: waits for up to half a second. A sender that is refused at once comes back
    /// at once, and thousands of them would take the time of those with permits.
    ///
    /// # Errors
    /// If none becomes free, or the process is shutting down.
    pub async fn permit_soon(&self) -> Result<Permit, AdmissionError> {
        match timeout_at(Instant::now() + PATIENCE, Arc::clone(&self.permits).acquire_owned()).await {
            Ok(Ok(permit)) => Ok(self.count(permit)),
            Ok(Err(_closed)) => Err(AdmissionError::Draining),
            Err(_elapsed) => Err(self.no_permit()),
        }
    }

    /// A permit to offload a large body to another thread. `None` if none is free before `until`.
    pub async fn offload_permit(&self, until: Instant) -> Option<OwnedSemaphorePermit> {
        timeout_at(until, Arc::clone(&self.offload).acquire_owned()).await.ok()?.ok()
    }

    /// Whether small bodies wait for memory and there is none, so that slow bodies have to go.
    #[must_use]
    pub fn is_short(&self) -> bool {
        let waiting = self.budget.waiting.load(Ordering::Relaxed);
        waiting > 0 && self.budget.taken.load(Ordering::Relaxed) + waiting > self.budget.for_anybody()
    }

    /// The error of a body for which there is no memory.
    #[must_use]
    pub fn no_budget(&self) -> AdmissionError {
        AdmissionError::NoBudget { limit: self.budget.limit() }
    }

    fn count(&self, permit: OwnedSemaphorePermit) -> Permit {
        self.budget.requests.fetch_add(1, Ordering::Relaxed);
        Permit { budget: Arc::clone(&self.budget), permit: Some(permit) }
    }

    fn no_permit(&self) -> AdmissionError {
        AdmissionError::NoPermit { limit: self.budget.max_in_flight() }
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

/// The memory of all bodies, and how many requests in flight share it. Shared by all configurations of the process.
#[derive(Debug)]
struct Budget {
    max_in_flight: AtomicU32,
    /// Permits that are held beyond a limit that was lowered.
    excess: AtomicUsize,
    limit: AtomicUsize,
    taken: AtomicUsize,
    /// Bytes of small bodies that wait for memory.
    waiting: AtomicUsize,
    /// Wakes one of them.
    room: Notify,
    requests: AtomicUsize,
}

impl Budget {
    fn limit(&self) -> usize {
        self.limit.load(Ordering::Relaxed)
    }

    fn max_in_flight(&self) -> u32 {
        self.max_in_flight.load(Ordering::Relaxed)
    }

    /// The share of requests that are not authenticated.
    fn for_anybody(&self) -> usize {
        self.limit() - self.limit() / FOR_VERIFIED
    }

    /// Whether a permit that comes back is one too many.
    fn is_excess(&self) -> bool {
        self.excess.load(Ordering::Relaxed) > 0
            && self.excess.fetch_update(Ordering::SeqCst, Ordering::SeqCst, |excess| excess.checked_sub(1)).is_ok()
    }

    fn give_back(&self, bytes: usize) {
        // Ordered with `MemoryWait`, which could miss this memory otherwise.
        self.taken.fetch_sub(bytes, Ordering::SeqCst);
        self.wake_one();
    }

    fn wake_one(&self) {
        if self.waiting.load(Ordering::SeqCst) > 0 {
            self.room.notify_one();
        }
    }
}

/// A permit to be worked on, one of `server.max_in_flight`, until it is dropped.
#[derive(Debug)]
pub struct Permit {
    budget: Arc<Budget>,
    permit: Option<OwnedSemaphorePermit>,
}

impl Drop for Permit {
    fn drop(&mut self) {
        self.budget.requests.fetch_sub(1, Ordering::Relaxed);
        if let Some(permit) = self.permit.take()
            && self.budget.is_excess()
        {
            permit.forget();
        }
    }
}

/// The time of one request, and the memory that it holds until it is dropped.
#[derive(Debug)]
pub struct Allowance {
    deadline: Instant,
    reading_deadline: Instant,
    budget: Arc<Budget>,
    bytes: usize,
    _begun: TaskTrackerToken,
}

impl Allowance {
    /// When the answer is due.
    #[must_use]
    pub const fn deadline(&self) -> Instant {
        self.deadline
    }

    /// When the body has to be here and decoded. The last quarter is for publishing: an attempt without time would look
    /// like a broker that is gone.
    #[must_use]
    pub const fn reading_deadline(&self) -> Instant {
        self.reading_deadline
    }

    /// Takes memory for an authenticated request.
    ///
    /// # Errors
    /// If the budget is spent.
    pub fn reserve(&mut self, bytes: usize) -> Result<(), AdmissionError> {
        self.reserve_within(bytes, self.budget.limit())
    }

    /// Takes memory for a body, or a long head, before the signature was verified.
    ///
    /// # Errors
    /// If the budget is spent, but for the share of authenticated requests.
    pub fn reserve_for_anybody(&mut self, bytes: usize) -> Result<(), AdmissionError> {
        self.reserve_within(bytes, self.budget.for_anybody())
    }

    /// The same for a large body.
    ///
    /// # Errors
    /// If the budget is spent, but for the share of small bodies.
    pub fn reserve_for_large(&mut self, bytes: usize) -> Result<(), AdmissionError> {
        self.reserve_within(bytes, self.budget.limit() - self.budget.limit() / FOR_SMALL)
    }

    fn reserve_within(&mut self, bytes: usize, most: usize) -> Result<(), AdmissionError> {
        self.budget
            .taken
            .fetch_update(Ordering::SeqCst, Ordering::Relaxed, |taken| Some(taken + bytes).filter(|sum| *sum <= most))
            .map_err(|_taken| AdmissionError::NoBudget { limit: self.budget.limit() })?;
        self.bytes += bytes;
        Ok(())
    }

    /// Gives memory back before the end of the request.
    pub fn release(&mut self, bytes: usize) {
        self.bytes -= bytes;
        self.budget.give_back(bytes);
    }

    /// Waits, from now on, for the memory of a small body that will take `bytes`. `None` if too many wait already: bodies
    /// that hold a part of what they need would wait for each other.
    #[must_use]
    pub fn wait_for(&self, bytes: usize) -> Option<MemoryWait> {
        let most = self.budget.limit() / FOR_WAITING;
        self.budget
            .waiting
            .fetch_update(Ordering::SeqCst, Ordering::Relaxed, |sum| Some(sum + bytes).filter(|sum| *sum <= most))
            .ok()?;
        Some(MemoryWait { budget: Arc::clone(&self.budget), bytes, until: Instant::now() + PATIENCE })
    }
}

impl Drop for Allowance {
    fn drop(&mut self) {
        self.budget.give_back(self.bytes);
    }
}

/// A small body that waits for memory. As long as it exists, slow bodies may be refused ([`Limits::is_short`]).
#[derive(Debug)]
pub struct MemoryWait {
    budget: Arc<Budget>,
    bytes: usize,
    until: Instant,
}

impl MemoryWait {
    /// Waits until memory may be free. Returns false once the wait is over.
    pub async fn room(&self) -> bool {
        timeout_at(self.until, self.budget.room.notified()).await.is_ok()
    }
}

impl Drop for MemoryWait {
    fn drop(&mut self) {
        self.budget.waiting.fetch_sub(self.bytes, Ordering::SeqCst);
        // There may be memory for the next one too.
        self.budget.wake_one();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn limits(max_buffered_bytes: usize, max_in_flight: u32) -> Limits {
        let second = Duration::from_secs(1);
        Limits::new(1000, max_buffered_bytes, max_in_flight, second, second, 1)
    }

    #[tokio::test]
    async fn an_allowance_returns_its_memory_and_a_permit_itself() {
        let limits = limits(1000, 1);
        let (mut allowance, permit) = (limits.begin(Instant::now()), limits.permit().expect("one is free"));
        allowance.reserve(400).expect("there is room");
        allowance.release(100);
        assert_eq!((limits.in_use().bytes, limits.in_use().requests), (300, 1));
        assert!(matches!(limits.permit(), Err(AdmissionError::NoPermit { limit: 1 })));
        drop((allowance, permit));
        assert_eq!((limits.in_use().bytes, limits.in_use().requests), (0, 0));
    }

    #[tokio::test]
    async fn limits_change_under_requests_that_hold_what_they_have() {
        let before = limits(1000, 3);
        let mut held: Vec<_> = (0..3).map(|_| before.permit().expect("one is free")).collect();
        let fewer = before.changed_to(&limits(500, 1));
        assert_eq!((fewer.in_use().max_requests, fewer.in_use().max_bytes), (1, 500));
        for _ in 0..2 {
            held.pop();
            assert!(matches!(fewer.permit(), Err(AdmissionError::NoPermit { limit: 1 })), "one is held");
        }
        held.pop();
        held.push(fewer.permit().expect("the last one came back"));
        assert!(before.permit().is_err(), "both share them");
        // Raised while some are still to be taken back.
        let more = fewer.changed_to(&limits(1000, 3));
        held.extend((0..2).map(|_| more.permit().expect("there are three")));
        let one = more.changed_to(&limits(1000, 1));
        let two = one.changed_to(&limits(1000, 2));
        held.pop();
        assert!(two.permit().is_err(), "two are held");
        held.pop();
        held.push(two.permit().expect("one is free"));
        held.clear();
        assert!(two.idle(Duration::from_secs(5)).await, "all came back");
    }

    #[tokio::test]
    async fn each_kind_of_request_leaves_room_for_better_ones() {
        let limits = limits(800, 1);
        let mut allowance = limits.begin(Instant::now());
        assert!(allowance.reserve_for_large(601).is_err());
        allowance.reserve_for_large(600).expect("three quarters are for large bodies");
        assert!(allowance.reserve_for_anybody(101).is_err());
        allowance.reserve_for_anybody(100).expect("seven eighths are for anybody");
        allowance.reserve(100).expect("all of it is for authenticated requests");
        assert!(matches!(allowance.reserve(1), Err(AdmissionError::NoBudget { limit: 800 })));
    }

    #[tokio::test]
    async fn nobody_gets_a_permit_once_the_process_is_idle() {
        let limits = limits(1000, 2);
        assert!(limits.idle(Duration::from_secs(10)).await);
        assert!(matches!(limits.permit(), Err(AdmissionError::Draining)));
    }
}
