//! Waiting for a condition, never for time.

use std::time::Duration;

/// Deadline of every wait. Only a failing test waits that long.
const PATIENCE: Duration = Duration::from_secs(90);

/// Asks again and again until there is an answer.
pub(crate) async fn eventually<T>(what: &str, probe: impl AsyncFnMut() -> Option<T>) -> T {
    within(PATIENCE, probe).await.unwrap_or_else(|| panic!("not within {PATIENCE:?}: {what}"))
}

/// The same for what need not happen: `None` at the deadline.
pub(crate) async fn within<T>(limit: Duration, mut probe: impl AsyncFnMut() -> Option<T>) -> Option<T> {
    let asking = async {
        loop {
            if let Some(answer) = probe().await {
                return answer;
            }
            // Between two looks. Other pauses in tests are the pace of a sender or the length of a fault.
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    };
    tokio::time::timeout(limit, asking).await.ok()
}

/// Waits for a future, with the deadline.
pub(crate) async fn in_time<T>(what: &str, future: impl Future<Output = T>) -> T {
    tokio::time::timeout(PATIENCE, future).await.unwrap_or_else(|_elapsed| panic!("not within {PATIENCE:?}: {what}"))
}
