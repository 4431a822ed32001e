//! Times as text, RFC 3339 in UTC. Many are of the same second, whose text is made once.

use std::{
    cell::Cell,
    time::{Duration, SystemTime},
};

/// A date and a time of day to the second.
type Second = [u8; 19];

thread_local! {
    /// The second that this thread wrote last.
    static SECOND: Cell<(u64, Second)> = const { Cell::new((u64::MAX, [b'0'; 19])) };
}

/// With milliseconds: 24 characters. Times before 1970 count as its beginning.
pub(crate) fn push_millis(text: &mut String, time: SystemTime) {
    let since = push_second(text, time);
    push_fraction(text, since.subsec_millis(), 100);
}

/// With microseconds: 27 characters.
pub(crate) fn push_micros(text: &mut String, time: SystemTime) {
    let since = push_second(text, time);
    push_fraction(text, since.subsec_micros(), 100_000);
}

fn push_second(text: &mut String, time: SystemTime) -> Duration {
    let since = time.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    let (mut second, mut shown) = SECOND.get();
    if second != since.as_secs() {
        second = since.as_secs();
        let whole = humantime::format_rfc3339_seconds(SystemTime::UNIX_EPOCH + Duration::from_secs(second)).to_string();
        shown.copy_from_slice(&whole.as_bytes()[..size_of::<Second>()]);
        SECOND.set((second, shown));
    }
    text.push_str(std::str::from_utf8(&shown).expect("digits and their signs are ASCII"));
    since
}

fn push_fraction(text: &mut String, mut fraction: u32, mut unit: u32) {
    text.push('.');
    while unit > 0 {
        text.push(char::from_digit(fraction / unit, 10).unwrap_or('9'));
        fraction %= unit;
        unit /= 10;
    }
    text.push('Z');
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_second_is_written_the_same_from_memory() {
        for micros in [0, 1_764_000_000_000_042, 1_764_000_000_999_999, 1_764_000_001_000_000, 253_402_300_799_999_999]
        {
            let time = SystemTime::UNIX_EPOCH + Duration::from_micros(micros);
            for _ in 0..2 {
                let (mut millis_text, mut micros_text) = (String::new(), String::new());
                push_millis(&mut millis_text, time);
                push_micros(&mut micros_text, time);
                assert_eq!(millis_text, humantime::format_rfc3339_millis(time).to_string());
                assert_eq!(micros_text, humantime::format_rfc3339_micros(time).to_string());
            }
        }
    }
}
