//! Bodies: what the CRM sends, and everything else that is JSON, in every spelling.

use proptest::{
    collection::vec,
    prelude::{BoxedStrategy, Just, Strategy, any, prop_oneof},
    sample::select,
};

/// Blanks, mostly none.
pub(crate) fn blanks() -> impl Strategy<Value = String> {
    prop_oneof![6 => Just(String::new()), 1 => "[ \t\r\n]{1,3}"]
}

/// A document: mostly a list of records, sometimes one record, sometimes anything.
pub(crate) fn document() -> impl Strategy<Value = String> {
    let body = prop_oneof![12 => list(item(), 0..8), 3 => record(), 1 => value()];
    (blanks(), body, blanks()).prop_map(|(before, body, after)| format!("{before}{body}{after}"))
}

/// A document that can be processed and has no blanks around it.
pub(crate) fn batch() -> impl Strategy<Value = String> {
    prop_oneof![4 => list(item(), 0..5), 1 => record()]
}

/// A string with a spelling of each of its characters chosen at random, and what it says.
pub(crate) fn spelled_text() -> impl Strategy<Value = (String, String)> {
    let character = prop_oneof![
        6 => any::<char>(),
        2 => select(vec!['a', 'ä', '😀', '/', '"', '\\', '\u{202e}', '\u{fffd}']),
        1 => select(vec!['\0', '\n', '\u{1f}', '\u{7f}', '\u{85}', '\u{9f}', '\u{a0}', '\u{feff}']),
    ];
    let short = vec((character.clone(), 0..3u8), 0..12);
    let long = vec((character, 0..3u8), 60..140);
    prop_oneof![6 => short, 1 => long].prop_map(|characters| {
        let literal: String = characters.iter().map(|&(c, spelling)| spell(c, spelling)).collect();
        (format!("\"{literal}\""), characters.iter().map(|(c, _)| c).collect())
    })
}

fn spell(c: char, spelling: u8) -> String {
    match (c, spelling) {
        ('"' | '\\' | '/', 0) => format!("\\{c}"),
        ('\n', 0) => "\\n".to_owned(),
        ('"' | '\\' | '\0'..='\u{1f}', _) | (_, 2) => {
            c.encode_utf16(&mut [0; 2]).iter().fold(String::new(), |text, unit| format!("{text}\\u{unit:04x}"))
        }
        _ => c.to_string(),
    }
}

/// A record with an id, or with none, or with two; the ids of other records may be inside.
fn record() -> impl Strategy<Value = String> {
    let ids = prop_oneof![1 => Just(0..1usize), 12 => Just(1..2), 1 => Just(2..3)];
    let ids = ids.prop_flat_map(|number| vec(member(id_key(), id()), number));
    let others = || vec(member(key(), value()), 0..3);
    (others(), ids, others(), blanks()).prop_map(|(before, ids, after, blanks)| {
        let members: Vec<_> = before.into_iter().chain(ids).chain(after).collect();
        format!("{{{blanks}{}}}", members.join(","))
    })
}

fn item() -> impl Strategy<Value = String> {
    prop_oneof![8 => record(), 1 => value()]
}

/// Any value, with a few levels.
fn value() -> BoxedStrategy<String> {
    let leaf = prop_oneof![
        2 => select(vec!["null", "true", "false"]).prop_map(str::to_owned),
        3 => number(),
        4 => text(),
    ];
    leaf.prop_recursive(4, 24, 4, |inner| {
        let object = vec(member(prop_oneof![3 => key(), 1 => id_key()], inner.clone()), 0..4);
        prop_oneof![
            list(inner, 0..4),
            (blanks(), object).prop_map(|(blanks, members)| format!("{{{blanks}{}}}", members.join(",")))
        ]
    })
    .boxed()
}

/// Numbers, those included that fit into nothing.
fn number() -> impl Strategy<Value = String> {
    prop_oneof![
        any::<i64>().prop_map(|number| number.to_string()),
        select(vec!["0", "-0", "-0.0", "1.5", "1e3", "1E+3", "-2e-7", "1e999", "-1e999", "0.1e-999"])
            .prop_map(str::to_owned),
        "-?[1-9][0-9]{39}",
        "[1-9][0-9]{253,256}",
    ]
}

/// A string, escapes and halves of surrogate pairs included.
fn text() -> impl Strategy<Value = String> {
    let escapes = [
        r"\n",
        r"\/",
        r"\\",
        r#"\""#,
        r"\t",
        r"\u0041",
        r"\u00e9",
        r"\u0000",
        r"\u0085",
        r"\ud83d\ude00",
        r"\uD83D\uDE00",
    ];
    let halves = [r"\ud83d", r"\ude00", r"\ude00\ud83d", r"\ud83d\u0041", r"\ud83d\n", r"\ud83d\ud83d\ude00"];
    let piece = prop_oneof![
        12 => "[a-zA-Z0-9 äöüß€😀\u{7f}-\u{9f}]".prop_map(String::from),
        3 => select(escapes.to_vec()).prop_map(str::to_owned),
        1 => select(halves.to_vec()).prop_map(str::to_owned),
    ];
    vec(piece, 0..6).prop_map(|pieces| format!("\"{}\"", pieces.concat()))
}

fn id() -> impl Strategy<Value = String> {
    prop_oneof![
        6 => "\"[0-9a-f]{17}\"",
        4 => "\"[ab]\"",
        3 => text(),
        2 => number(),
        2 => value(),
        1 => (253..258usize).prop_map(|length| format!("\"{}\"", "x".repeat(length))),
        1 => (126..129usize).prop_map(|length| format!("\"{}\"", "é".repeat(length))),
        1 => (126..129usize).prop_map(|length| format!("\"{}\"", r"\u00e9".repeat(length))),
    ]
}

fn id_key() -> impl Strategy<Value = String> {
    let spellings = [r#""\u0069d""#, r#""i\u0064""#, r#""\u0069\u0064""#];
    prop_oneof![4 => Just("\"id\"".to_owned()), 1 => select(spellings.to_vec()).prop_map(str::to_owned)]
}

/// A key that is no `id`, though some look so.
fn key() -> impl Strategy<Value = String> {
    let others = [
        r#""name""#,
        r#""Id""#,
        r#""ID""#,
        r#""id ""#,
        r#"" id""#,
        r#""""#,
        r#""\u0131d""#,
        r#""id\ud800""#,
        r#""id\u0000""#,
    ];
    prop_oneof![3 => select(others.to_vec()).prop_map(str::to_owned), 1 => text().prop_filter("no id", |key| key != "\"id\"")]
}

fn member(
    key: impl Strategy<Value = String> + 'static,
    value: impl Strategy<Value = String> + 'static,
) -> impl Strategy<Value = String> + Clone {
    let member = (blanks(), key, blanks(), blanks(), value, blanks());
    member.prop_map(|(a, key, b, c, value, d)| format!("{a}{key}{b}:{c}{value}{d}")).boxed()
}

fn list(items: impl Strategy<Value = String>, number: std::ops::Range<usize>) -> impl Strategy<Value = String> {
    let padded = (blanks(), items, blanks()).prop_map(|(before, item, after)| format!("{before}{item}{after}"));
    (vec(padded, number), blanks()).prop_map(|(items, blanks)| {
        if items.is_empty() { format!("[{blanks}]") } else { format!("[{}]", items.join(",")) }
    })
}
