//! Mistakes in the words of the configuration instead of those of Rust, without secrets.

use crate::redaction::hide_credentials;

/// Longest value that a message repeats.
const MAX_SHOWN: usize = 80;

/// What serde calls by the names of Rust.
const IN_WORDS: [(&str, &str); 6] = [
    ("expected usize", "expected a whole number that is not negative"),
    ("expected u32", "expected a whole number that is not negative"),
    ("expected struct RouteSection", "expected a table"),
    ("expected a sequence", "expected a list"),
    ("expected a boolean", "expected true or false"),
    ("invalid socket address syntax", "not an address; write an IP address and a port, such as 0.0.0.0:3000"),
];

/// Says what is wrong with which key, and with its value unless that may be a secret or is a whole table.
pub(super) fn problem(message: &str, key: Option<&str>, value: Option<&str>) -> String {
    // What a key that does not exist was meant to hold is anybody's guess: perhaps a password.
    let of_the_key = ["unknown field", "missing field", "duplicate key"].iter().any(|start| message.starts_with(start));
    let value = value.filter(|text| !of_the_key && text.len() <= MAX_SHOWN && !text.is_empty() && !text.contains('\n'));
    let message = IN_WORDS.iter().fold(message.to_owned(), |text, (rust, words)| text.replace(rust, words));
    let text = match (key.filter(|key| !key.is_empty()), value) {
        (Some(key), Some(value)) => format!("{key} = {value}: {message}"),
        (Some(key), None) => format!("{key}: {message}"),
        (None, _) => message,
    };
    hide_credentials(&text)
}
