//! Large bodies are verified and decoded on threads that serve no connection, of which there are few.

use std::{any::Any, panic, sync::Arc};

use bytes::Bytes;
use tokio::{
    sync::{OwnedSemaphorePermit, oneshot},
    time::{Instant, timeout_at},
};
use tokio_util::task::AbortOnDropHandle;
use warp::Rejection;

use super::request::Request;
use crate::{admission::AdmissionError, reply::Refusal, supervision::DetachOnDrop};

/// Longest body, in bytes, that is verified and decoded by the thread on which it arrived. A longer one is worth waking another
/// thread, and would hold up all other requests of this one. `EspoCRM` sends 50 records at most, about 30 KB.
const MAX_AT_ONCE: usize = 64 * 1024;

/// Whether a body is offloaded, so that its sender can hang up meanwhile.
pub(super) const fn is_large(body: &Bytes) -> bool {
    body.len() > MAX_AT_ONCE
}

/// Why offloaded work has no outcome.
pub(super) enum Stopped {
    Refused(Refusal),
    Panicked(Box<dyn Any + Send>),
}

impl From<Refusal> for Stopped {
    fn from(refusal: Refusal) -> Self {
        Self::Refused(refusal)
    }
}

impl Stopped {
    /// Rejects the request, as if the work had run on its own thread: a panic goes on here.
    pub(super) fn reject(self, request: &Arc<Request>) -> Rejection {
        match self {
            Self::Refused(refusal) => request.reject(refusal),
            Self::Panicked(panic) => panic::resume_unwind(panic),
        }
    }
}

/// Waits until a thread is free.
pub(super) async fn permit(request: &Request, until: Instant) -> Result<OwnedSemaphorePermit, Stopped> {
    let limits = &request.webhooks.limits;
    let permit = limits.offload_permit(until).await;
    permit.ok_or_else(|| Refusal::Deadline(limits.request_deadline()).into())
}

/// Runs blocking work on another thread. After `until` it is no longer awaited; what it holds is free once it ends.
pub(super) async fn run<T: Send + 'static>(
    request: &Request,
    until: Instant,
    work: impl FnOnce() -> Result<T, Refusal> + Send + 'static,
) -> Result<T, Stopped> {
    let running = AbortOnDropHandle::new(tokio::task::spawn_blocking(work));
    match timeout_at(until, running).await {
        Ok(Ok(outcome)) => outcome.map_err(Stopped::Refused),
        Ok(Err(ended)) if ended.is_panic() => Err(Stopped::Panicked(ended.into_panic())),
        // Cancelled: the runtime is shutting down.
        Ok(Err(_cancelled)) => Err(Refusal::from(AdmissionError::Draining).into()),
        Err(_elapsed) => Err(Refusal::Deadline(request.webhooks.limits.request_deadline()).into()),
    }
}

/// Returns the outcome of `work`. If the sender hangs up before, a task brings it to its end and hands it to `rest`, which
/// goes the rest of the way: what came in completely is worked on to its end.
pub(super) async fn outlive_sender<T, R>(
    work: impl Future<Output = T> + Send + 'static,
    rest: impl FnOnce(T) -> R + Send + 'static,
) -> T
where
    T: Send + 'static,
    R: Future<Output = ()> + Send,
{
    let (hand_over, handed_over) = oneshot::channel();
    let work = async move {
        if let Err(outcome) = hand_over.send(work.await) {
            rest(outcome).await;
        }
    };
    DetachOnDrop::new(work).await;
    handed_over.await.expect("the work has ended, and hands over its outcome")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_sender_that_waits_gets_the_outcome() {
        let outcome = outlive_sender(async { 1 }, async |_| panic!("the sender is still there")).await;
        assert_eq!(outcome, 1);
    }

    #[tokio::test]
    async fn the_rest_of_the_way_is_gone_without_a_sender() {
        let (go, told) = oneshot::channel::<u8>();
        let (done, ended) = oneshot::channel();
        let work = async move { told.await.expect("the test says go") };
        let mut waiting = Box::pin(outlive_sender(work, |outcome| async move {
            done.send(outcome).expect("the test listens");
        }));
        assert!(futures_util::poll!(&mut waiting).is_pending());
        drop(waiting);
        go.send(7).expect("the work goes on");
        assert_eq!(ended.await, Ok(7));
    }
}
