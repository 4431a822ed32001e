//! Bodies: what is no batch, what is no id, and what is odd and good. The reader's own decisions are in
//! `batch_examples.rs`; here the whole hookgate answers.

use super::case::{Case, Expect, Sent, because, open, request};
use crate::support::{PATH, batch};

use Expect::{Status, Taken};

/// Stands in records, and in nothing that hookgate writes.
pub(super) const NAME: &str = "Rosalinde";

pub(super) fn cases() -> Vec<Case> {
    [no_batch(), batches(), no_record(), no_id(), odd_ids(), text(), depth_and_size(), repeated(), hostile()].concat()
}

/// The body as it stands, and the answer: 200, so many ids, so many rejected items.
fn taken(name: &'static str, body: impl AsRef<[u8]>, total: u64, rejected: u64) -> (&'static str, Sent, Expect) {
    (name, Sent::Bytes(open(body)), Taken(total, rejected))
}

fn refused(name: &'static str, body: impl AsRef<[u8]>) -> (&'static str, Sent, Expect) {
    (name, Sent::Bytes(open(body)), Status(&[400]))
}

fn no_batch() -> Vec<Case> {
    let utf16: Vec<u8> = batch(["wide"]).encode_utf16().flat_map(u16::to_le_bytes).collect();
    let mut cases = because(
        "without a document nobody knows what was meant",
        [
            refused("an empty body", ""),
            refused("a body of blanks", " \r\n\t"),
            refused("2 MB of blanks", " ".repeat(2_000_000)),
        ],
    );
    cases.extend(because(
        "a batch is an array or one object",
        [
            refused("null as the document", "null"),
            refused("a number as the document", "1"),
            refused("a string as the document", "\"x\""),
            refused("true as the document", "true"),
            refused("-0.0e0 as the document", "-0.0e0"),
        ],
    ));
    cases.extend(because(
        "the end is missing, so items may be missing: nothing of it is processed",
        [
            refused("a body that breaks off", r#"[{"id":"first"},{"id":"#),
            refused("100,000 levels without an end", "[{\"id\":".repeat(100_000)),
            refused("2 MB of opened arrays", "[".repeat(2_000_000)),
        ],
    ));
    cases.extend(because(
        "a body is one document; what follows it may be the rest of another one",
        [
            refused("words after the document", r#"[{"id":"first"}] and more"#),
            refused("two documents", r#"[{"id":"first"}][{"id":"first"}]"#),
            refused("NUL after the document", b"[{\"id\":\"first\"}]\0"),
        ],
    ));
    cases.extend(because(
        "it is not JSON (RFC 8259), and guessing could make a wrong id",
        [
            refused("a trailing comma", "[{\"id\":\"first\"},]"),
            refused("a missing comma", "[{\"id\":\"first\"}{\"id\":\"first\"}]"),
            refused("a comment", "[{\"id\":\"first\"}/* a */]"),
            refused("single quotes", "[{'id':'first'}]"),
            refused("NaN", "[{\"id\":\"first\",\"x\":NaN}]"),
            refused("a number with a leading zero", "[{\"id\":0092}]"),
            refused("a raw line end in an id", "[{\"id\":\"fir\nst\"}]"),
            refused("a byte that is not UTF-8 between two items", b"[{\"id\":\"first\"},\xff{\"id\":\"first\"}]"),
            refused("UTF-16", utf16),
            refused("a byte order mark", "\u{feff}[{\"id\":\"first\"}]"),
        ],
    ));
    cases
}

fn batches() -> Vec<Case> {
    because(
        "it is a batch as the CRM sends it",
        [
            taken("an empty array", "[]", 0, 0),
            taken("one object", r#"{"id":"lone"}"#, 1, 0),
            taken("10,000 items", batch((0..10_000).map(|index| format!("many-{index}"))), 10_000, 0),
        ],
    )
}

fn no_record() -> Vec<Case> {
    let flood = format!("[{}0]", r#"{"":0},"#.repeat((1 << 20) / 7));
    let flooded = (1 << 20) / 7 + 1;
    because(
        "an item without an id is rejected alone; its neighbours go on, and sending it again would not help",
        [
            taken("items that are no records", "[1,null,[],{}]", 0, 4),
            taken("a flood of one-key objects", flood, 0, flooded),
        ],
    )
}

fn no_id() -> Vec<Case> {
    let longest = "x".repeat(255);
    let mut cases = because(
        "an id is a string or an integer",
        [
            taken("id null", "[{\"id\":null}]", 0, 1),
            taken("id true", "[{\"id\":true}]", 0, 1),
            taken("id a fraction", "[{\"id\":1.5}]", 0, 1),
            taken("id an empty string", "[{\"id\":\"\"}]", 0, 1),
            taken("id an object", "[{\"id\":{\"id\":\"inner\"}}]", 0, 1),
            taken("id an array", "[{\"id\":[\"inner\"]}]", 0, 1),
            taken("id with an exponent", "[{\"id\":1e3}]", 0, 1),
        ],
    );
    cases.extend(because(
        "an id has at most 255 bytes and no control character",
        [
            taken(
                "ids with NUL, with line ends, of 256 bytes",
                format!(r#"[{{"id":"a\u0000"}},{{"id":"a\r\n"}},{{"id":"{longest}x"}}]"#),
                0,
                3,
            ),
            taken("an id of 255 bytes", format!(r#"{{"id":"{longest}"}}"#), 1, 0),
            taken("an integer of 255 digits", format!("{{\"id\":{}}}", "7".repeat(255)), 1, 0),
            taken("an integer of 256 digits", format!("{{\"id\":{}}}", "7".repeat(256)), 0, 1),
            taken("an id of a megabyte", format!("[{{\"id\":\"{}\"}}]", "é".repeat(500_000)), 0, 1),
            taken("a control character beyond ASCII", "{\"id\":\"marked\u{85}\"}", 0, 1),
        ],
    ));
    cases
}

fn odd_ids() -> Vec<Case> {
    because(
        "any other text is an id; it is never part of a subject",
        [
            taken(
                "odd and good ids",
                r#"[{"id":"*"},{"id":">"},{"id":"a b"},{"id":"é"},{"id":"😀"},{"id":"$JS.API.>"},{"id":"a.b"}]"#,
                7,
                0,
            ),
            taken("direction marks and zero-width blanks", "{\"id\":\"marked\u{202e}\u{200b}\u{2066}\"}", 1, 0),
            taken("integers as ids", r#"[{"id":5200},{"id":-52}]"#, 2, 0),
            taken("-0 as an id", "{\"id\":-0}", 1, 0),
            taken("a key with escapes", r#"{"\u0069\u0064":"escaped"}"#, 1, 0),
        ],
    )
}

fn text() -> Vec<Case> {
    because(
        "an id that is not Unicode is rejected; replacing bytes could make it another record's id",
        [
            taken("half a surrogate pair", r#"[{"id":"\ud800"},{"id":"\udc00\ud800"}]"#, 0, 2),
            taken("an id that is not UTF-8", b"[{\"id\":\"first\xff\"}]", 0, 1),
            taken("an overlong form of a", b"[{\"id\":\"over\xc1\xa1\"}]", 0, 1),
            taken("bytes that are not UTF-8 in another member", b"[{\"id\":\"kept\",\"name\":\"\xff\xfe\"}]", 1, 0),
        ],
    )
}

fn depth_and_size() -> Vec<Case> {
    let deep = format!("{}{}", "[".repeat(100_000), "]".repeat(100_000));
    let backslashes = format!(r#"[{{"x":"{}","id":"slashes"}}]"#, r"\\".repeat(500_000));
    because(
        "other members are skipped without recursion, whatever they hold",
        [
            taken("100,000 levels beside an id", format!(r#"[{{"x":{deep},"id":"beside"}}]"#), 1, 0),
            taken("100,000 levels as the document", &deep, 0, 1),
            taken("numbers beyond all bounds", format!(r#"{{"x":1e999,"y":{},"id":"numbers"}}"#, "9".repeat(40)), 1, 0),
            taken("a megabyte of backslashes", backslashes, 1, 0),
            taken("100,000 members before the id", format!("{{{}\"id\":\"late\"}}", "\"a\":0,".repeat(100_000)), 1, 0),
        ],
    )
}

fn repeated() -> Vec<Case> {
    let mut cases = because(
        "two ids in one object leave open which record is meant",
        [
            taken("two ids in one object", r#"[{"id":"double","id":"double"}]"#, 0, 1),
            taken("100,000 ids in one object", format!("{{{}\"id\":\"late\"}}", "\"id\":0,".repeat(100_000)), 0, 1),
        ],
    );
    cases.extend(because(
        "the same id counts once",
        [
            taken("the same id twice", batch(["same", "same"]), 1, 0),
            taken("the same id 10,000 times", batch(std::iter::repeat_n("same", 10_000)), 1, 0),
            taken("an integer and the same as text", r#"[{"id":99099},{"id":"99099"}]"#, 1, 0),
        ],
    ));
    cases
}

fn hostile() -> Vec<Case> {
    let mut cases = because(
        "what a sender writes is data to the log, to Redis and to Lua",
        [
            taken(
                "a name that looks like a line of the log",
                format!(r#"[{{"id":"logged","name":"{NAME}\n{{\"level\":\"ERROR\",\"message\":\"forged\"}}\n"}}]"#),
                1,
                0,
            ),
            taken(
                "ids that look like commands for Redis and Lua",
                r#"[{"id":"command\\r\\n*1"},{"id":"\"]..redis.call('FLUSHALL')--"},{"id":"$-1"}]"#,
                3,
                0,
            ),
        ],
    );
    cases.extend(because(
        "a trace is no condition of a delivery",
        [("a bad traceparent", request(PATH, "traceparent: 00-zz-\u{1F600}-01\r\n", batch(["traced"])), Taken(1, 0))],
    ));
    cases
}
