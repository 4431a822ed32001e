//! One JSON object a line: time, level, the fields of the event, and where it comes from.
//!
//! Each field is written straight into the line. The subscriber's own JSON collects the fields in a map first, which made
//! two lines the dearest part of a request (`bench/NOTES.md`).

use std::{
    fmt::{self, Write as _},
    time::SystemTime,
};

use tracing::{
    Event, Level, Subscriber,
    field::{Field, Visit},
};
use tracing_subscriber::{Layer, layer::Context};

use super::lines::Lines;
use crate::rfc3339;

/// Capacity of a new line: most fit without growing.
const LINE: usize = 512;

/// Writes every event as a line.
pub(super) struct Json(pub(super) Lines);

impl<S: Subscriber> Layer<S> for Json {
    fn on_event(&self, event: &Event<'_>, _: Context<'_, S>) {
        let mut line = String::with_capacity(LINE);
        write_line(&mut line, event);
        self.0.take(line.as_bytes(), *event.metadata().level() == Level::ERROR);
    }
}

fn write_line(line: &mut String, event: &Event<'_>) {
    let metadata = event.metadata();
    line.push_str("{\"timestamp\":\"");
    rfc3339::push_micros(line, SystemTime::now());
    line.push_str("\",\"level\":\"");
    line.push_str(metadata.level().as_str());
    line.push('"');
    event.record(&mut JsonFields { line });
    line.push_str(",\"target\":\"");
    // A path of modules.
    line.push_str(metadata.target());
    line.push_str("\"}\n");
}

/// Appends the fields of an event to the line.
struct JsonFields<'a> {
    line: &'a mut String,
}

impl JsonFields<'_> {
    /// Appends the name of a field. Returns the line, for its value.
    fn field(&mut self, field: &Field) -> &mut String {
        let line = &mut *self.line;
        line.push_str(",\"");
        // An identifier of the source: nothing to escape. The macros write one that is a keyword as `r#type`.
        line.push_str(field.name().strip_prefix("r#").unwrap_or(field.name()));
        line.push_str("\":");
        line
    }
}

impl Visit for JsonFields<'_> {
    fn record_f64(&mut self, field: &Field, value: f64) {
        // Infinities and NaN become null.
        let value = serde_json::to_string(&value).unwrap_or_default();
        self.field(field).push_str(&value);
    }

    fn record_i64(&mut self, field: &Field, value: i64) {
        self.field(field).push_str(itoa::Buffer::new().format(value));
    }

    fn record_u64(&mut self, field: &Field, value: u64) {
        self.field(field).push_str(itoa::Buffer::new().format(value));
    }

    fn record_bool(&mut self, field: &Field, value: bool) {
        self.field(field).push_str(if value { "true" } else { "false" });
    }

    fn record_str(&mut self, field: &Field, value: &str) {
        write_text(self.field(field), value);
    }

    fn record_debug(&mut self, field: &Field, value: &dyn fmt::Debug) {
        write_quoted(self.field(field), |line| {
            // Only the value itself can fail. Then it is cut there.
            let _cut = write!(line, "{value:?}");
        });
    }
}

fn write_text(line: &mut String, text: &str) {
    write_quoted(line, |line| line.push_str(text));
}

/// A JSON string. Nearly all texts can stay as they were written.
fn write_quoted(line: &mut String, write: impl FnOnce(&mut String)) {
    line.push('"');
    let start = line.len();
    write(line);
    if is_plain(&line[start..]) {
        line.push('"');
    } else {
        let quoted = serde_json::to_string(&line[start..]).expect("a string always serializes");
        line.truncate(start);
        line.push_str(&quoted[1..]);
    }
}

/// Whether the text needs no escapes in JSON. `fold` looks at every byte, so it becomes vector instructions; `any` does not.
fn is_plain(text: &str) -> bool {
    !text.bytes().fold(false, |escaped, byte| escaped | matches!(byte, 0..b' ' | b'"' | b'\\'))
}

#[cfg(test)]
mod tests {
    use std::{
        io,
        sync::{Arc, Mutex},
    };

    use serde_json::{Value, json};
    use tracing::info;
    use tracing_subscriber::layer::SubscriberExt;

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

    /// What is in the log after that.
    fn logged(say: impl FnOnce()) -> String {
        let out = Arc::<Mutex<Vec<u8>>>::default();
        let lines = Lines::to(SharedLine(Arc::clone(&out)));
        tracing::subscriber::with_default(tracing_subscriber::registry().with(Json(lines.clone())), say);
        lines.flush();
        String::from_utf8(out.lock().expect("nobody panics").clone()).expect("JSON is UTF-8")
    }

    /// A line about all kinds of values.
    fn line_with(value: &str, number: f64) -> String {
        logged(|| {
            info!(shown = %value, r#type = value, debug = ?value, number, less = -7, more = u64::MAX, sure = true, "{value}");
        })
    }

    struct SharedLine(Arc<Mutex<Vec<u8>>>);

    impl io::Write for SharedLine {
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

    /// Shows itself only in part.
    struct Halting;

    impl fmt::Display for Halting {
        fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
            out.write_str("so \"far")?;
            Err(fmt::Error)
        }
    }

    #[test]
    fn a_value_that_fails_spoils_no_line() {
        let log = logged(|| info!(value = %Halting, after = 1, "said"));
        let read: Value = serde_json::from_str(&log).expect(&log);
        assert_eq!([&read["message"], &read["value"], &read["after"]], [&json!("said"), &json!("so \"far"), &json!(1)]);
    }
}
