//! Rows 46 to 63: bodies, and what is no id.

use super::case::{Expect, Row, open, request, row};
use crate::support::{PATH, batch};

use Expect::{Status, Taken};

/// Stands in records, and in nothing that hookgate writes.
pub(super) const NAME: &str = "Rosalinde";

fn taken(number: u32, what: &'static str, body: impl AsRef<[u8]>, total: u64, rejected: u64) -> Row {
    row(number, what, open(body), Taken(total, rejected))
}

fn refused(number: u32, what: &'static str, body: impl AsRef<[u8]>) -> Row {
    row(number, what, open(body), Status(&[400]))
}

/// Rows 46 to 63.
pub(super) fn rows() -> Vec<Row> {
    let deep = format!("{}{}", "[".repeat(100_000), "]".repeat(100_000));
    let longest = "x".repeat(255);
    let flood = format!("[{}0]", r#"{"":0},"#.repeat((1 << 20) / 7));
    let flooded = (1 << 20) / 7 + 1;
    let mut rows = vec![
        refused(46, "nothing", ""),
        refused(46, "blanks", " \r\n\t"),
        taken(47, "an empty list", "[]", 0, 0),
        taken(48, "an object", r#"{"id":"r48"}"#, 1, 0),
        taken(50, "items that are none", "[1,null,[],{}]", 0, 4),
        taken(52, "a number as id", r#"[{"id":5200},{"id":-52}]"#, 2, 0),
        taken(
            53,
            "NUL, line ends, 256 bytes",
            format!(r#"[{{"id":"a\u0000"}},{{"id":"a\r\n"}},{{"id":"{longest}x"}}]"#),
            0,
            3,
        ),
        taken(
            53,
            "odd and good",
            r#"[{"id":"*"},{"id":">"},{"id":"a b"},{"id":"é"},{"id":"😀"},{"id":"$JS.API.>"},{"id":"a.b"}]"#,
            7,
            0,
        ),
        taken(53, "255 bytes", format!(r#"{{"id":"{longest}"}}"#), 1, 0),
        taken(54, "two ids in one object", r#"[{"id":"r54","id":"r54"}]"#, 0, 1),
        taken(55, "100,000 levels beside an id", format!(r#"[{{"x":{deep},"id":"r55"}}]"#), 1, 0),
        taken(55, "100,000 levels as the document", &deep, 0, 1),
        refused(55, "100,000 levels without an end", "[{\"id\":".repeat(100_000)),
        taken(56, "numbers beyond all bounds", format!(r#"{{"x":1e999,"y":{},"id":"r56"}}"#, "9".repeat(40)), 1, 0),
        taken(57, "half a surrogate pair", r#"[{"id":"\ud800"},{"id":"\udc00\ud800"}]"#, 0, 2),
        taken(57, "bytes that are no text", b"[{\"id\":\"r57\xff\"}]", 0, 1),
        refused(57, "a byte order mark", "\u{feff}[{\"id\":\"r57\"}]"),
        taken(58, "a flood of one-key objects", flood, 0, flooded),
        taken(59, "10,000 items", batch((0..10_000).map(|index| format!("r59-{index}"))), 10_000, 0),
        taken(60, "the same id twice", batch(["r60", "r60"]), 1, 0),
        taken(60, "10,000 times the same id", batch(std::iter::repeat_n("r60", 10_000)), 1, 0),
        taken(
            61,
            "a name that looks like a line of the log",
            format!(r#"[{{"id":"r61","name":"{NAME}\n{{\"level\":\"ERROR\",\"message\":\"forged\"}}\n"}}]"#),
            1,
            0,
        ),
        row(62, "a bad traceparent", request(PATH, "traceparent: 00-zz-\u{1F600}-01\r\n", batch(["r62"])), Taken(1, 0)),
        refused(63, "it breaks off", r#"[{"id":"r63"},{"id":"#),
        refused(63, "something behind it", r#"[{"id":"r63"}] and more"#),
        refused(63, "two documents", r#"[{"id":"r63"}][{"id":"r63"}]"#),
    ];
    rows.extend(["null", "1", "\"x\"", "true", "-0.0e0"].map(|body| refused(49, "a document that is no batch", body)));
    rows.extend(
        ["null", "true", "1.5", "\"\"", "{\"id\":\"inner\"}", "[\"inner\"]", "1e3"]
            .map(|id| taken(51, "an id that is none", format!("[{{\"id\":{id}}}]"), 0, 1)),
    );
    rows
}

/// What was found besides.
pub(super) fn found() -> Vec<Row> {
    let utf16: Vec<u8> = batch(["r90"]).encode_utf16().flat_map(u16::to_le_bytes).collect();
    let backslashes = format!(r#"[{{"x":"{}","id":"r93"}}]"#, r"\\".repeat(500_000));
    vec![
        refused(90, "UTF-16", utf16),
        refused(91, "2 MB of blanks", " ".repeat(2_000_000)),
        refused(91, "2 MB of opened lists", "[".repeat(2_000_000)),
        refused(92, "a comma too many", "[{\"id\":\"r92\"},]"),
        refused(92, "no comma", "[{\"id\":\"r92\"}{\"id\":\"r92\"}]"),
        refused(92, "a comment", "[{\"id\":\"r92\"}/* a */]"),
        refused(92, "other quotes", "[{'id':'r92'}]"),
        refused(92, "NaN", "[{\"id\":\"r92\",\"x\":NaN}]"),
        refused(92, "a number with a leading zero", "[{\"id\":0092}]"),
        refused(92, "a raw line end in an id", "[{\"id\":\"r\n92\"}]"),
        refused(92, "NUL behind it", b"[{\"id\":\"r92\"}]\0"),
        refused(92, "a byte that is no text, between two items", b"[{\"id\":\"r92\"},\xff{\"id\":\"r92\"}]"),
        taken(93, "a megabyte of backslashes", backslashes, 1, 0),
        taken(94, "100,000 members before the id", format!("{{{}\"id\":\"r94\"}}", "\"a\":0,".repeat(100_000)), 1, 0),
        taken(94, "100,000 ids in one object", format!("{{{}\"id\":\"r94\"}}", "\"id\":0,".repeat(100_000)), 0, 1),
        taken(95, "a key with escapes", r#"{"\u0069\u0064":"r95"}"#, 1, 0),
        taken(96, "direction marks and blanks without width", "{\"id\":\"r96\u{202e}\u{200b}\u{2066}\"}", 1, 0),
        taken(96, "a control character of the second range", "{\"id\":\"r96\u{85}\"}", 0, 1),
        taken(97, "an integer of 255 digits", format!("{{\"id\":{}}}", "7".repeat(255)), 1, 0),
        taken(97, "an integer of 256 digits", format!("{{\"id\":{}}}", "7".repeat(256)), 0, 1),
        taken(98, "-0", "{\"id\":-0}", 1, 0),
        taken(99, "a number and the same as text", r#"[{"id":99099},{"id":"99099"}]"#, 1, 0),
        taken(
            100,
            "what Redis and Lua might take for more",
            r#"[{"id":"r100\\r\\n*1"},{"id":"\"]..redis.call('FLUSHALL')--"},{"id":"$-1"}]"#,
            3,
            0,
        ),
        taken(101, "a megabyte as an id", format!("[{{\"id\":\"{}\"}}]", "é".repeat(500_000)), 0, 1),
        taken(102, "a byte that is no text in another member", b"[{\"id\":\"r102\",\"name\":\"\xff\xfe\"}]", 1, 0),
        taken(103, "an overlong form of a", b"[{\"id\":\"r103\xc1\xa1\"}]", 0, 1),
    ]
}
