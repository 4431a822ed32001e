//! One JSON object a line: time, level, the fields of the event, and where it comes from.
//!
//! Written straight into the line. What comes with the subscriber collects the fields in a map first and takes the
//! date apart for every line, which made two lines the dearest part of a request (`bench/NOTES.md`).

use std::{
    cell::Cell,
    fmt,
    io::{self, Write as _},
    time::{Duration, SystemTime},
};

use serde::Serialize;
use tracing::{
    Event, Subscriber,
    field::{Field, Visit},
};
use tracing_subscriber::{
    fmt::{FmtContext, FormatEvent, FormatFields, format::Writer},
    registry::LookupSpan,
};

/// A date and a time of day to the second, as RFC 3339 has them.
type Second = [u8; 19];

thread_local! {
    /// The second of the last line of this thread.
    static SECOND: Cell<(u64, Second)> = const { Cell::new((u64::MAX, [b'0'; 19])) };
}

/// Bytes of an ordinary line.
const ROOM: usize = 384;

/// The format of a line.
pub(super) struct Json;

impl<S, N> FormatEvent<S, N> for Json
where
    S: Subscriber + for<'a> LookupSpan<'a>,
    N: for<'a> FormatFields<'a> + 'static,
{
    fn format_event(&self, _: &FmtContext<'_, S, N>, mut line: Writer<'_>, event: &Event<'_>) -> fmt::Result {
        let mut bytes = Vec::with_capacity(ROOM);
        write_line(&mut bytes, event).map_err(|_error| fmt::Error)?;
        line.write_str(std::str::from_utf8(&bytes).map_err(|_error| fmt::Error)?)
    }
}

fn write_line(line: &mut Vec<u8>, event: &Event<'_>) -> io::Result<()> {
    let metadata = event.metadata();
    line.write_all(b"{\"timestamp\":\"")?;
    write_time(line, SystemTime::now())?;
    line.write_all(b"\",\"level\":\"")?;
    line.write_all(metadata.level().as_str().as_bytes())?;
    line.write_all(b"\"")?;
    let mut fields = Fields { line, written: Ok(()) };
    event.record(&mut fields);
    let Fields { line, written } = fields;
    written?;
    line.write_all(b",\"target\":")?;
    serde_json::to_writer(&mut *line, metadata.target())?;
    line.write_all(b"}\n")
}

/// RFC 3339, UTC, with microseconds.
fn write_time(line: &mut Vec<u8>, time: SystemTime) -> io::Result<()> {
    let since = time.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    let (mut second, mut text) = SECOND.get();
    if second != since.as_secs() {
        second = since.as_secs();
        let whole = humantime::format_rfc3339_seconds(SystemTime::UNIX_EPOCH + Duration::from_secs(second)).to_string();
        text.copy_from_slice(&whole.as_bytes()[..size_of::<Second>()]);
        SECOND.set((second, text));
    }
    line.write_all(&text)?;
    write!(line, ".{:06}Z", since.subsec_micros())
}

/// Writes the fields of an event behind what stands there.
struct Fields<'a> {
    line: &'a mut Vec<u8>,
    written: io::Result<()>,
}

impl Fields<'_> {
    fn field(&mut self, field: &Field, value: &(impl Serialize + ?Sized)) {
        if self.written.is_ok() {
            self.written = write_field(self.line, field.name(), value);
        }
    }
}

impl Visit for Fields<'_> {
    fn record_f64(&mut self, field: &Field, value: f64) {
        self.field(field, &value);
    }

    fn record_i64(&mut self, field: &Field, value: i64) {
        self.field(field, &value);
    }

    fn record_u64(&mut self, field: &Field, value: u64) {
        self.field(field, &value);
    }

    fn record_bool(&mut self, field: &Field, value: bool) {
        self.field(field, &value);
    }

    fn record_str(&mut self, field: &Field, value: &str) {
        self.field(field, value);
    }

    fn record_debug(&mut self, field: &Field, value: &dyn fmt::Debug) {
        self.field(field, &format_args!("{value:?}"));
    }
}

fn write_field(line: &mut Vec<u8>, name: &str, value: &(impl Serialize + ?Sized)) -> io::Result<()> {
    line.push(b',');
    // As the macros have it: `r#type` is named so because the language has that word too.
    serde_json::to_writer(&mut *line, name.strip_prefix("r#").unwrap_or(name))?;
    line.push(b':');
    Ok(serde_json::to_writer(line, value)?)
}

#[cfg(test)]
mod tests {
    use serde_json::Value;

    use super::*;

    fn written(write: impl FnOnce(&mut Vec<u8>) -> io::Result<()>) -> String {
        let mut line = Vec::new();
        write(&mut line).expect("a vector takes everything");
        String::from_utf8(line).expect("JSON is UTF-8")
    }

    #[test]
    fn a_second_is_written_the_same_from_memory() {
        let at = |micros| SystemTime::UNIX_EPOCH + Duration::from_micros(micros);
        let write = |time| written(|line| write_time(line, time));
        assert_eq!(write(at(0)), "1970-01-01T00:00:00.000000Z");
        assert_eq!(write(at(1_764_000_000_000_042)), "2025-11-24T16:00:00.000042Z");
        assert_eq!(write(at(1_764_000_000_999_999)), "2025-11-24T16:00:00.999999Z");
        assert_eq!(write(at(1_764_000_001_000_000)), "2025-11-24T16:00:01.000000Z");
    }

    #[test]
    fn whatever_a_field_holds_the_line_stays_json() {
        for value in ["", "plain", "a \"quoted\" \\ one", "line\nbreak\u{1b}[31m", "ü\u{2028}\u{202e}"] {
            let line = written(|line| {
                line.write_all(b"{\"a\":1")?;
                write_field(line, "shown", &format_args!("{value}"))?;
                write_field(line, "r#type", value)?;
                line.write_all(b"}")
            });
            let read: Value = serde_json::from_str(&line).expect(&line);
            assert_eq!((read["shown"].as_str(), read["type"].as_str()), (Some(value), Some(value)), "{line}");
            assert!(!line.contains(['\n', '\u{1b}']), "{line}");
        }
    }
}
