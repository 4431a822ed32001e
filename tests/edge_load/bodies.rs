//! Bodies of one size: ordinary ones, and ones crafted to cost more.

use std::fmt::Write;

/// What is done with ids of a body.
pub(crate) struct Crafted {
    pub(crate) what: &'static str,
    pub(crate) body: Vec<u8>,
}

/// Letters that ids are made of.
const LETTERS: &[u8; 64] = b"abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789-_";

/// Records as the CRM sends them, about 600 bytes each.
pub(crate) fn ordinary(size: usize) -> Vec<u8> {
    let filler = "Lorem ipsum dolor sit amet, consetetur sadipscing elitr, sed diam nonumy eirmod tempor. ".repeat(4);
    items(size, |index, text| {
        write!(
            text,
            r#"{{"id":"{index:017x}","name":"M\u00fcller, Anna","deleted":false,"createdAt":"2026-02-07 10:00:00","emailAddress":"anna@example.com","phoneNumber":null,"addressStreet":"Weg 1\/2","roles":["a","b"],"amount":12.5,"note":"{filler}"}}"#
        )
    })
}

/// Records as the interface documents them, and the replaced system did: an id, a name, and every second time a date.
pub(crate) fn documented(size: usize) -> Vec<u8> {
    items(size, |index, text| match index % 2 {
        0 => write!(text, r#"{{"id":"{index:017x}","name":"Max Mustermann","createdAt":"2026-02-07T10:00:00Z"}}"#),
        _ => write!(text, r#"{{"id":"{index:017x}","name":"Maria Schmidt"}}"#),
    })
}

/// Records as the CRM sends them for a deletion.
pub(crate) fn deletions(size: usize) -> Vec<u8> {
    items(size, |index, text| write!(text, r#"{{"id":"{index:017x}"}}"#))
}

/// Everything that looks as if it could cost more than it brings. `round` makes ids of their own.
pub(crate) fn crafted(size: usize) -> Vec<Crafted> {
    let crafted = |what, body| Crafted { what, body };
    let wrap = |start: &str, unit: &str, end: &str| {
        let count = (size - start.len() - end.len()) / unit.len();
        format!("{start}{}{end}", unit.repeat(count)).into_bytes()
    };
    let deep = |open: &str, close: &str| {
        let count = size / (open.len() + close.len()) - 8;
        format!(r#"[{{"id":"d","x":{}0{}}}]"#, open.repeat(count), close.repeat(count)).into_bytes()
    };
    let mut masked = short_ids(size - 12);
    let end = masked.len() - 1;
    masked.splice(end.., *b",{\"\xff\":0}]");
    vec![
        crafted("one-key objects", wrap("[", r#"{"":0},"#, "{}]")),
        crafted("empty objects", wrap("[", "{},", "{}]")),
        crafted("numbers as items", wrap("[", "0,", "0]")),
        crafted("ids that are too long", wrap("[", &format!(r#"{{"id":"{}"}},"#, "x".repeat(256)), "{}]")),
        crafted("the same id again and again", wrap("[", r#"{"id":"a"},"#, r#"{"id":"a"}]"#)),
        crafted("ids of three bytes, each another", short_ids(size)),
        crafted("the same, and one byte that is no text", masked),
        crafted(
            "nothing but bytes that are no text",
            wrap(r#"[{"id":"a","x":""#, "\u{1}", r#""}]"#)
                .into_iter()
                .map(|byte| if byte == 1 { 0xff } else { byte })
                .collect(),
        ),
        crafted("lists in lists", deep("[", "]")),
        crafted("objects in objects", deep(r#"{"a":"#, "}")),
        crafted("one long string", wrap(r#"[{"id":"s","x":""#, "x", r#""}]"#)),
        crafted("escapes", wrap(r#"[{"id":"e","x":""#, r"\u00e9", r#""}]"#)),
        crafted("an id of escapes", wrap(r#"[{"id":""#, r"\u00e9", r#""}]"#)),
        crafted("a key of escapes", wrap(r#"[{"id":"k",""#, r"\u0069", r#"":0}]"#)),
        crafted("keys of escapes", wrap(r#"[{"id":"k","#, r#""\u0069":0,"#, r#""x":0}]"#)),
        crafted("blanks", wrap(r#"[{"id":"b"}"#, " ", "]")),
        crafted("line ends, and no JSON", wrap("[", "\n", "x")),
        crafted("one long number", wrap(r#"[{"id":"n","x":"#, "7", "}]")),
        crafted("lists that never end", wrap("", "[", "")),
    ]
}

/// The most ids that there can be in so many bytes, more or less.
fn short_ids(size: usize) -> Vec<u8> {
    items(size, |index, text| {
        let letter = |place: u32| char::from(LETTERS[index / 64_usize.pow(place) % 64]);
        // Beyond 64³ they take a fourth.
        let more = if index >= 1 << 18 { letter(3).to_string() } else { String::new() };
        write!(text, r#"{{"id":"{}{}{}{more}"}}"#, letter(0), letter(1), letter(2))
    })
}

fn items(size: usize, mut item: impl FnMut(usize, &mut String) -> std::fmt::Result) -> Vec<u8> {
    let mut text = String::from("[");
    let mut index = 0;
    let mut end = 1;
    while text.len() < size {
        end = text.len();
        if index > 0 {
            text.push(',');
        }
        item(index, &mut text).expect("a String takes everything");
        index += 1;
    }
    text.truncate(end);
    text.push(']');
    text.into_bytes()
}
