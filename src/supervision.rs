//! Tasks that outlive a panic of theirs: it costs what was being worked on, and nothing after that.
//!
//! A replica without its claims, its acknowledgements or its relay would look alive and do nothing.

use std::{panic::AssertUnwindSafe, time::Duration};

use futures_util::FutureExt;
use tracing::error;

/// Before it goes on, so that one that panics each time keeps nobody else from working.
const PAUSE: Duration = Duration::from_millis(100);

/// Works until there is nothing more to do, over panics: each begins the work anew.
///
/// `$work` is evaluated each time. A macro, because a closure can't lend what it owns to a future that has to be `Send`.
macro_rules! keep_on {
    ($task:expr, $work:expr) => {
        while !$crate::supervision::came_to_its_end($task, $work).await {}
    };
}
pub(crate) use keep_on;

/// Whether the work ended by itself; if not, by a panic, after a pause.
pub(crate) async fn came_to_its_end(task: &str, work: impl Future<Output = ()>) -> bool {
    // What is left behind is behind locks that nobody holds while it is half-way, or made anew.
    let ended = AssertUnwindSafe(work).catch_unwind().await;
    if ended.is_err() {
        // What it said is in the log already.
        error!(
            task,
            "a task in the background panicked, which is a bug of hookgate; what it was doing is given up, and it goes on"
        );
        tokio::time::sleep(PAUSE).await;
    }
    ended.is_ok()
}
