//! How many files the process may have open. Each connection is one.

use tracing::warn;

/// Files for everything but connections: stores, secrets, dead ends.
const OTHERS: usize = 128;

/// Raises the limit of the system for so many connections of senders, as far as it allows; how many there may be.
/// `beside` is how many files so many connections need beside their own. Without free files no connection could be
/// accepted, not even for a 503, and a lost store could not be reached again.
#[must_use]
pub fn for_connections(wanted: usize, beside: impl Fn(usize) -> usize) -> usize {
    let needed = |connections: usize| connections.saturating_add(beside(connections)).saturating_add(OTHERS);
    let asked = u64::try_from(needed(wanted)).unwrap_or(u64::MAX);
    let limit = match rlimit::increase_nofile_limit(asked) {
        Ok(limit) if limit >= asked => return wanted,
        Ok(limit) => usize::try_from(limit).unwrap_or(usize::MAX),
        Err(error) => {
            warn!(%error, needed = asked, "cannot raise the limit of open files (ulimit -n)");
            return wanted;
        }
    };
    // With too few for anything a few connections are better than none.
    let fit = largest(limit, |connections| needed(connections) <= limit).max(limit / 8).min(wanted);
    warn!(
        limit,
        needed = asked,
        "the system allows fewer open files (ulimit -Hn) than server.max_connections = {wanted} needs; it is {fit} now"
    );
    fit
}

/// The largest number up to `most` that fits, where every smaller one does too.
fn largest(most: usize, fits: impl Fn(usize) -> bool) -> usize {
    let (mut fitting, mut beyond) = (0, most.saturating_add(1));
    while beyond - fitting > 1 {
        let middle = fitting + (beyond - fitting) / 2;
        if fits(middle) { fitting = middle } else { beyond = middle }
    }
    fitting
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_more_connections_than_files() {
        let (_, most) = rlimit::Resource::NOFILE.get().expect("the system says it");
        let fit = for_connections(usize::MAX / 2, |connections| connections / 8);
        // Where there is no limit, there is none.
        assert!(u64::try_from(fit).expect("it fits") <= most, "{fit} of {most}");
        assert_eq!(for_connections(16, |_| 16), 16);
    }

    #[test]
    fn the_largest_that_fits() {
        for most in [0, 1, 7, 100] {
            for limit in 0..=most {
                assert_eq!(largest(most, |number| number <= limit), limit);
            }
        }
    }
}
