//! Whether it is worth waiting for the broker. Pure: knows time, and nothing of brokers.
//!
//! A leader election or a restart of the broker costs time, not a refusal: each request tries until its deadline.
//! The breaker of a route opens once a whole request reached its deadline and nothing was acknowledged on the route
//! since the request began. Then ids are still claimed, so that the relay brings the event even if the sender gives
//! up. But only one request in 250 ms tries, as a probe; the others wait 500 ms for its outcome and are refused. The
//! first acknowledgement closes the breaker, also for those who wait.
//!
//! Shown by `make faults ONLY=both_frozen_1000_requests`: of a second thousand, 950 are answered within 3 s.

use std::{
    sync::{Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use tokio::{
    sync::watch,
    time::{Instant, timeout_at},
};

/// Between the beginnings of two probes. They may overlap: one may hang in what is gone since.
const PROBE_EVERY: Duration = Duration::from_millis(250);
/// How long a request that is no probe waits for the outcome of one.
const PATIENCE: Duration = Duration::from_millis(500);

/// The breaker of a route.
#[derive(Debug)]
pub struct Breaker {
    open: watch::Sender<bool>,
    times: Mutex<Times>,
}

#[derive(Debug)]
struct Times {
    last_ack: Option<Instant>,
    last_probe: Option<Instant>,
}

/// Nothing has been acknowledged for a whole request, and nothing was in the time that a request waits.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct BreakerOpen;

impl Default for Breaker {
    /// A closed one.
    fn default() -> Self {
        Self { open: watch::Sender::new(false), times: Mutex::new(Times { last_ack: None, last_probe: None }) }
    }
}

impl Breaker {
    /// Whether a request may try: at once as long as the breaker is closed, or as a probe.
    ///
    /// # Errors
    /// [`BreakerOpen`], after half a second, and not beyond `deadline`.
    pub async fn pass(&self, deadline: Instant) -> Result<(), BreakerOpen> {
        if !*self.open.borrow() || self.may_probe() {
            return Ok(());
        }
        // Boxed: the rare wait would enlarge every request's future.
        Box::pin(self.closed(deadline)).await
    }

    async fn closed(&self, deadline: Instant) -> Result<(), BreakerOpen> {
        let mut open = self.open.subscribe();
        let until = deadline.min(Instant::now() + PATIENCE);
        let closed = open.wait_for(|open| !open);
        // The sender lives as long as this does.
        timeout_at(until, closed).await.map(|_closed| ()).map_err(|_elapsed| BreakerOpen)
    }

    /// Something was acknowledged; whether that closed the breaker.
    pub fn acknowledged(&self) -> bool {
        self.times().last_ack = Some(Instant::now());
        *self.open.borrow() && self.open.send_if_modified(std::mem::take)
    }

    /// A request that began then reached its deadline without an acknowledgement. Whether that opened the
    /// breaker: it does unless another one had an acknowledgement since.
    pub fn ran_out(&self, began: Instant) -> bool {
        if self.times().last_ack.is_some_and(|last| last >= began) {
            return false;
        }
        self.open.send_if_modified(|open| !std::mem::replace(open, true))
    }

    fn may_probe(&self) -> bool {
        let now = Instant::now();
        let mut times = self.times();
        let due = times.last_probe.is_none_or(|last| now.duration_since(last) >= PROBE_EVERY);
        if due {
            times.last_probe = Some(now);
        }
        due
    }

    /// No code that holds the lock can panic.
    fn times(&self) -> MutexGuard<'_, Times> {
        self.times.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use tokio::time::advance;

    use super::*;

    fn soon() -> Instant {
        Instant::now() + Duration::from_secs(8)
    }

    /// Milliseconds that passing takes, and the outcome.
    async fn pass(breaker: &Breaker, deadline: Instant) -> (u128, Result<(), BreakerOpen>) {
        let began = Instant::now();
        let outcome = breaker.pass(deadline).await;
        (began.elapsed().as_millis(), outcome)
    }

    #[tokio::test(start_paused = true)]
    async fn one_acknowledgement_since_it_began_keeps_it_closed() {
        let breaker = Breaker::default();
        let began = Instant::now();
        advance(Duration::from_secs(8)).await;
        assert!(!breaker.acknowledged(), "it was closed");
        assert!(!breaker.ran_out(began));
        assert_eq!(pass(&breaker, soon()).await, (0, Ok(())));
    }

    #[tokio::test(start_paused = true)]
    async fn a_whole_request_without_one_opens_it_and_the_rest_is_refused_soon() {
        let breaker = Breaker::default();
        assert!(!breaker.acknowledged());
        advance(Duration::from_millis(1)).await;
        let began = Instant::now();
        advance(Duration::from_secs(8)).await;
        assert!(breaker.ran_out(began));
        assert!(!breaker.ran_out(began), "it is open already");

        assert_eq!(pass(&breaker, soon()).await, (0, Ok(())), "the first is a probe");
        assert_eq!(pass(&breaker, soon()).await, (500, Err(BreakerOpen)));
        assert_eq!(pass(&breaker, soon()).await, (0, Ok(())), "another probe is due by then");
        assert_eq!(pass(&breaker, Instant::now() + Duration::from_millis(100)).await, (100, Err(BreakerOpen)));
    }

    #[tokio::test(start_paused = true)]
    async fn the_outcome_of_a_probe_lets_through_whoever_waits() {
        let breaker = Breaker::default();
        assert!(breaker.ran_out(Instant::now()));
        assert_eq!(pass(&breaker, soon()).await, (0, Ok(())));
        let probe = async {
            tokio::time::sleep(Duration::from_millis(20)).await;
            assert!(breaker.acknowledged());
        };
        let (waited, ()) = tokio::join!(pass(&breaker, soon()), probe);
        assert_eq!(waited, (20, Ok(())));
        assert_eq!(pass(&breaker, soon()).await, (0, Ok(())));
    }
}
