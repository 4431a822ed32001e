//! How many files the process may have open. Each connection is one.

use tracing::warn;

/// Files for everything but the connections of senders: stores, secrets, the operator's address.
const BESIDE: u64 = 512;

/// Raises the limit for so many connections, as far as the system allows; how many of them there may be. Without room
/// nothing could be accepted any more, not even to be told 503, and a lost store could not be reached again.
#[must_use]
pub fn for_connections(wanted: usize) -> usize {
    let needed = u64::try_from(wanted).unwrap_or(u64::MAX).saturating_add(BESIDE);
    let limit = match rlimit::increase_nofile_limit(needed) {
        Ok(limit) if limit >= needed => return wanted,
        Ok(limit) => limit,
        Err(error) => {
            warn!(%error, needed, "cannot raise the limit of open files (ulimit -n)");
            return wanted;
        }
    };
    let fit = usize::try_from(limit.saturating_sub(BESIDE).max(limit / 2)).unwrap_or(wanted);
    warn!(
        limit,
        needed,
        "the system allows fewer open files (ulimit -Hn) than server.max_connections = {wanted} needs; it is {fit} now"
    );
    fit
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_more_connections_than_files() {
        let (_, most) = rlimit::Resource::NOFILE.get().expect("the system says it");
        let fit = u64::try_from(for_connections(usize::MAX / 2)).expect("it fits");
        // Where there is no limit, there is none.
        assert!(fit <= most, "{fit} of {most}");
        assert_eq!(for_connections(16), 16);
    }
}
