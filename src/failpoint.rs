//! Named points at which the fault suite ends the process, as `kill -9` would at that very instant, or has it panic.
//!
//! Without the cargo feature `failpoints`, which no release has, all of this is nothing.

/// Ends the process here if the environment variable `HOOKGATE_FAILPOINT` names this point, or
/// `point:number` this hit of it; `panic@point:number` only panics.
///
/// # Panics
/// If the variable says `panic@` and names this point.
#[cfg(feature = "failpoints")]
pub fn hit(point: &str) {
    use std::sync::{
        LazyLock,
        atomic::{AtomicU64, Ordering},
    };
    static ARMED: LazyLock<Option<(String, u64, bool)>> = LazyLock::new(|| {
        #[expect(clippy::disallowed_methods, reason = "no setting: it must not exist in a release")]
        let wish = std::env::var("HOOKGATE_FAILPOINT").ok()?;
        let (panics, wish) = wish.strip_prefix("panic@").map_or((false, &*wish), |wish| (true, wish));
        let (point, number) = wish.split_once(':').unwrap_or((wish, "1"));
        Some((point.to_owned(), number.parse().unwrap_or(1), panics))
    });
    static HITS: AtomicU64 = AtomicU64::new(0);
    if let Some((armed, number, panics)) = &*ARMED
        && armed == point
        && HITS.fetch_add(1, Ordering::SeqCst) + 1 == *number
    {
        assert!(!*panics, "a bug");
        // Abort: no destructor runs, nothing is flushed, open connections end as the kernel ends them.
        std::process::abort();
    }
}

/// Nothing.
#[cfg(not(feature = "failpoints"))]
#[inline]
pub fn hit(_point: &str) {}

/// Panics here if the environment variable `HOOKGATE_FAILPOINT` is `panic@` and this point, with data in the message,
/// as the standard library does when text is cut at a wrong place.
///
/// # Panics
/// That is what it is for.
#[cfg(feature = "failpoints")]
pub fn panic_with(point: &str, data: &[u8]) {
    #[expect(clippy::disallowed_methods, reason = "no setting: it must not exist in a release")]
    let wish = std::env::var("HOOKGATE_FAILPOINT").unwrap_or_default();
    assert!(wish.strip_prefix("panic@") != Some(point), "a bug at {}", String::from_utf8_lossy(data));
}

/// Nothing.
#[cfg(not(feature = "failpoints"))]
#[inline]
pub fn panic_with(_point: &str, _data: &[u8]) {}
