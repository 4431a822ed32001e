//! Times as they are written in the configuration.

use std::{borrow::Cow, fmt, str::FromStr, time::Duration};

use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde::{Deserialize, Deserializer, Serialize, de::Visitor};

/// A time, written as `500ms`, `8s`, `15m`, `7d`: whole milliseconds, at most [`Span::MAX`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(into = "String")]
pub struct Span(pub Duration);

impl Span {
    /// A hundred years. Clocks and servers can still add it to the present.
    pub const MAX: Duration = Duration::from_secs(36_500 * 86_400);

    pub(super) const fn millis(millis: u64) -> Self {
        Self(Duration::from_millis(millis))
    }

    pub(super) const fn secs(secs: u64) -> Self {
        Self(Duration::from_secs(secs))
    }
}

/// A text that is no time.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{text:?} is not a time ({problem}); write 500ms, 8s, 15m or 7d")]
pub struct NotATime {
    text: String,
    problem: String,
}

impl FromStr for Span {
    type Err = NotATime;

    fn from_str(text: &str) -> Result<Self, NotATime> {
        let wrong = |problem: &str| NotATime { text: text.to_owned(), problem: problem.to_owned() };
        let span = humantime::parse_duration(text).map_err(|error| wrong(&error.to_string()))?;
        if span > Self::MAX {
            return Err(wrong("more than 36500d"));
        }
        if !span.subsec_nanos().is_multiple_of(1_000_000) {
            return Err(wrong("finer than a millisecond"));
        }
        Ok(Self(span))
    }
}

impl JsonSchema for Span {
    fn schema_name() -> Cow<'static, str> {
        "Time".into()
    }

    fn json_schema(_generator: &mut SchemaGenerator) -> Schema {
        json_schema!({ "type": "string", "description": "A time with its unit: 500ms, 8s, 15m or 7d" })
    }
}

impl<'de> Deserialize<'de> for Span {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Text;

        impl Visitor<'_> for Text {
            type Value = Span;

            fn expecting(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
                out.write_str("a time in quotes with its unit: \"500ms\", \"8s\", \"15m\" or \"7d\"")
            }

            fn visit_str<E: serde::de::Error>(self, text: &str) -> Result<Span, E> {
                text.parse().map_err(E::custom)
            }
        }

        deserializer.deserialize_str(Text)
    }
}

/// In the largest unit that leaves no rest.
impl From<Span> for String {
    fn from(Span(span): Span) -> Self {
        let millis = span.as_millis();
        let units = [("d", 86_400_000), ("h", 3_600_000), ("m", 60_000), ("s", 1_000)];
        match units.into_iter().find(|(_, unit)| millis > 0 && millis.is_multiple_of(*unit)) {
            Some((name, unit)) => format!("{}{name}", millis / unit),
            None if millis == 0 => "0s".to_owned(),
            None => format!("{millis}ms"),
        }
    }
}

impl fmt::Display for Span {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(out, "{:?}", String::from(*self))
    }
}
