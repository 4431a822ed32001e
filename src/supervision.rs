//! Restarts tasks that panicked. A panic costs what was being worked on, and nothing after that.
//!
//! A replica without its claims, its acknowledgements or its relay would look alive and do nothing. The task starts
//! again after 100 ms, and an error in the log names it. A claim that was given up that way counts as one that Redis
//! did not answer. A panic inside the NATS client would end that client, and only a restart helps.
//!
//! Shown by `make faults ONLY=panic_in`.

mod detach_on_drop;

use std::{
    panic::{AssertUnwindSafe, catch_unwind},
    time::Duration,
};

use futures_util::FutureExt;
use tracing::error;

pub(crate) use self::detach_on_drop::DetachOnDrop;

/// Pause before the restart, so that a task that panics each time does not starve the others.
const PAUSE: Duration = Duration::from_millis(100);

/// Runs `$work` to its end. A panic begins it anew.
///
/// `$work` is evaluated each time. A macro, because a closure can't lend what it owns to a future that has to be `Send`.
macro_rules! supervise {
    ($task:expr, $work:expr) => {
        while !$crate::supervision::ran_to_its_end($task, $work).await {}
    };
}
pub(crate) use supervise;

/// Whether the work ended by itself; if not, by a panic, after a pause.
pub(crate) async fn ran_to_its_end(task: &str, work: impl Future<Output = ()>) -> bool {
    // A task that begins anew puts in order itself what it may have left half-way.
    let ended = AssertUnwindSafe(work).catch_unwind().await.is_ok();
    if !ended {
        report(task);
        tokio::time::sleep(PAUSE).await;
    }
    ended
}

/// The same for a moment's work on a task or thread that is not to end with it.
pub(crate) fn survived(task: &str, work: impl FnOnce()) {
    if catch_unwind(AssertUnwindSafe(work)).is_err() {
        report(task);
    }
}

/// What the panic said is in the log already.
fn report(task: &str) {
    error!(
        task,
        "a task in the background panicked, which is a bug of hookgate; what it was doing is given up, and it goes on"
    );
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_panic_costs_what_was_being_worked_on_and_nothing_after_that() {
        let (mut jobs, mut done) = (vec![1, 2, 3, 4, 5].into_iter(), Vec::new());
        let work = async |jobs: &mut std::vec::IntoIter<i32>, done: &mut Vec<i32>| {
            for job in jobs {
                tokio::task::yield_now().await;
                assert!(job % 2 == 1, "a bug");
                done.push(job);
            }
        };
        supervise!("a test", work(&mut jobs, &mut done));
        assert_eq!(done, [1, 3, 5]);
        survived("a test", || panic!("a bug"));
    }
}
