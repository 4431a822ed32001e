//! One JSON object a line: time, level, the fields of the event, and where it comes from.
//!
//! Written straight into the line. What comes with the subscriber collects the fields in a map first and takes the
//! date apart for every line, which made two lines the dearest part of a request (`bench/NOTES.md`).

use std::{
    fmt::{self, Write as _},
    time::SystemTime,
};

use tracing::{
    Event, Subscriber,
    field::{Field, Visit},
};
use tracing_subscriber::{
    fmt::{FmtContext, FormatEvent, FormatFields, format::Writer},
    registry::LookupSpan,
};

use crate::rfc3339;

/// Bytes of an ordinary line.
const ROOM: usize = 384;

/// The format of a line.
pub(super) struct Json;

impl<S, N> FormatEvent<S, N> for Json
where
    S: Subscriber + for<'a> LookupSpan<'a>,
    N: for<'a> FormatFields<'a> + 'static,
{
    fn format_event(&self, _: &FmtContext<'_, S, N>, mut out: Writer<'_>, event: &Event<'_>) -> fmt::Result {
        let mut line = String::with_capacity(ROOM);
        write_line(&mut line, event)?;
        out.write_str(&line)
    }
}

fn write_line(line: &mut String, event: &Event<'_>) -> fmt::Result {
    let metadata = event.metadata();
    line.push_str("{\"timestamp\":\"");
    rfc3339::push_micros(line, SystemTime::now());
    line.push_str("\",\"level\":\"");
    line.push_str(metadata.level().as_str());
    line.push('"');
    let mut fields = Fields { line, written: Ok(()) };
    event.record(&mut fields);
    let Fields { line, written } = fields;
    written?;
    line.push_str(",\"target\":");
    write_text(line, metadata.target())?;
    line.push_str("}\n");
    Ok(())
}

/// Writes the fields of an event behind what stands there.
struct Fields<'a> {
    line: &'a mut String,
    written: fmt::Result,
}

impl Fields<'_> {
    fn field(&mut self, field: &Field, value: impl FnOnce(&mut String) -> fmt::Result) {
        if self.written.is_ok() {
            self.written = write_field(self.line, field.name(), value);
        }
    }
}

impl Visit for Fields<'_> {
    fn record_f64(&mut self, field: &Field, value: f64) {
        // JSON knows no infinity.
        self.field(field, |line| line.write_str(&serde_json::to_string(&value).map_err(|_error| fmt::Error)?));
    }

    fn record_i64(&mut self, field: &Field, value: i64) {
        self.field(field, |line| line.write_str(itoa::Buffer::new().format(value)));
    }

    fn record_u64(&mut self, field: &Field, value: u64) {
        self.field(field, |line| line.write_str(itoa::Buffer::new().format(value)));
    }

    fn record_bool(&mut self, field: &Field, value: bool) {
        self.field(field, |line| line.write_str(if value { "true" } else { "false" }));
    }

    fn record_str(&mut self, field: &Field, value: &str) {
        self.field(field, |line| write_text(line, value));
    }

    fn record_debug(&mut self, field: &Field, value: &dyn fmt::Debug) {
        self.field(field, |line| {
            line.push('"');
            write!(Escaped(line), "{value:?}")?;
            line.push('"');
            Ok(())
        });
    }
}

fn write_field(line: &mut String, name: &str, value: impl FnOnce(&mut String) -> fmt::Result) -> fmt::Result {
    line.push(',');
    // As the macros have it: `r#type` is named so because the language has that word too.
    write_text(line, name.strip_prefix("r#").unwrap_or(name))?;
    line.push(':');
    value(line)
}

fn write_text(line: &mut String, text: &str) -> fmt::Result {
    line.push('"');
    Escaped(line).write_str(text)?;
    line.push('"');
    Ok(())
}

/// The inside of a JSON string.
struct Escaped<'a>(&'a mut String);

impl fmt::Write for Escaped<'_> {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        if is_plain(text) {
            self.0.push_str(text);
            return Ok(());
        }
        let quoted = serde_json::to_string(text).map_err(|_error| fmt::Error)?;
        self.0.push_str(&quoted[1..quoted.len() - 1]);
        Ok(())
    }
}

/// Whether JSON has the text as it stands. Eight bytes at once, for most texts are short.
fn is_plain(text: &str) -> bool {
    const ONES: u64 = u64::MAX / 255;
    // Each is not zero if there is such a byte among the eight.
    let less = |eight: u64, than: u8| eight.wrapping_sub(ONES * u64::from(than)) & !eight & (ONES << 7);
    let equal = |eight: u64, to: u8| less(eight ^ (ONES * u64::from(to)), 1);
    let (eights, rest) = text.as_bytes().as_chunks();
    let special = |eight: u64| less(eight, b' ') | equal(eight, b'"') | equal(eight, b'\\');
    eights.iter().all(|eight| special(u64::from_ne_bytes(*eight)) == 0)
        && !rest.iter().any(|byte| matches!(byte, 0..b' ' | b'"' | b'\\'))
}

#[cfg(test)]
mod tests {
    use std::{
        io,
        sync::{Arc, Mutex},
    };

    use serde_json::{Value, json};
    use tracing::info;

    use super::*;

    #[test]
    fn every_byte_that_json_escapes_is_seen_wherever_it_stands() {
        for code in 0..=0x7f_u8 {
            let escaped = serde_json::to_string(&char::from(code)).expect("text serializes").len() != 3;
            for place in 0..20 {
                let mut text: Vec<char> = "üz~".repeat(7).chars().collect();
                text.insert(place, char::from(code));
                assert_eq!(is_plain(&String::from_iter(text)), !escaped, "{code} at {place}");
            }
        }
    }

    /// A line about all kinds of values.
    fn line_with(value: &str, number: f64) -> String {
        let lines = Arc::<Mutex<Vec<u8>>>::default();
        let out = Arc::clone(&lines);
        let writer = move || Shared(Arc::clone(&out));
        let log = tracing_subscriber::fmt().event_format(Json).with_writer(writer).finish();
        tracing::subscriber::with_default(log, || {
            info!(shown = %value, r#type = value, debug = ?value, number, less = -7, more = u64::MAX, sure = true, "{value}");
        });
        String::from_utf8(lines.lock().expect("nobody panics").clone()).expect("JSON is UTF-8")
    }

    struct Shared(Arc<Mutex<Vec<u8>>>);

    impl io::Write for Shared {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            self.0.lock().expect("nobody panics").extend_from_slice(bytes);
            Ok(bytes.len())
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    #[test]
    fn whatever_a_field_holds_the_line_is_one_and_stays_json() {
        for value in ["", "plain", "a \"quoted\" \\ one", "line\nbreak\u{1b}[31m", "ü\u{2028}\u{202e}"] {
            let line = line_with(value, 0.5);
            assert!(line.ends_with("}\n") && !line.trim_end().contains(['\n', '\u{1b}']), "{line}");
            let mut read: Value = serde_json::from_str(&line).expect(&line);
            let time = read["timestamp"].take();
            assert!(time.as_str().is_some_and(|time| humantime::parse_rfc3339(time).is_ok()), "{line}");
            let debug = format!("{value:?}");
            let expected = json!({
                "timestamp": null, "level": "INFO", "message": value, "shown": value, "type": value, "debug": debug,
                "number": 0.5, "less": -7, "more": u64::MAX, "sure": true, "target": module_path!(),
            });
            assert_eq!(read, expected, "{line}");
        }
        assert!(line_with("", f64::NAN).contains(",\"number\":null,"));
    }
}
