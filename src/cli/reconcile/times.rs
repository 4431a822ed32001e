//! Times on the command line.

use std::{
    str::FromStr,
    time::{Duration, SystemTime},
};

/// A time, or how long ago.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Moment {
    At(SystemTime),
    Ago(Duration),
}

/// The text is no time.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
#[error("write a time in UTC such as 2026-11-28T08:00Z, or how long ago, such as 2h")]
pub(crate) struct NoMoment;

impl Moment {
    /// The time that is meant.
    pub(super) fn before(self, now: SystemTime) -> SystemTime {
        match self {
            Self::At(time) => time,
            Self::Ago(ago) => now.checked_sub(ago).unwrap_or(SystemTime::UNIX_EPOCH),
        }
    }
}

impl FromStr for Moment {
    type Err = NoMoment;

    fn from_str(text: &str) -> Result<Self, NoMoment> {
        if let Ok(ago) = humantime::parse_duration(text) {
            return Ok(Self::Ago(ago));
        }
        time(text).map(Self::At).ok_or(NoMoment)
    }
}

/// A time in UTC: RFC 3339, also without seconds, or as the CRM writes it.
pub(super) fn time(text: &str) -> Option<SystemTime> {
    let text = text.trim();
    let (date, time) = text.split_once(['T', ' '])?;
    let digits = time.strip_suffix('Z');
    // Without a zone only the CRM's own form is taken: anything else may be meant as local time.
    let digits = digits.or_else(|| text.contains(' ').then_some(time))?;
    let seconds = if digits.bytes().filter(|byte| *byte == b':').count() == 1 { ":00" } else { "" };
    humantime::parse_rfc3339(&format!("{date}T{digits}{seconds}Z")).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_are_read_in_the_forms_that_people_write() {
        let eight = humantime::parse_rfc3339("2026-11-28T08:00:00Z").expect("it is a time");
        for text in ["2026-11-28T08:00Z", "2026-11-28T08:00:00Z", "2026-11-28 08:00:00", "2026-11-28T08:00:00.000Z"] {
            assert_eq!(text.parse(), Ok(Moment::At(eight)), "{text}");
        }
        assert_eq!("2h".parse(), Ok(Moment::Ago(Duration::from_secs(7200))));
        for text in ["", "yesterday", "2026-11-28", "2026-11-28T08:00:00", "2026-11-28T08:00:00+01:00"] {
            assert_eq!(text.parse::<Moment>(), Err(NoMoment), "{text}");
        }
    }
}
