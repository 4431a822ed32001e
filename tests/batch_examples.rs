//! One body for each thing a sender can get wrong, and what the reader makes of it. What hookgate answers is in
//! `bad_input/bodies.rs` and `bad_items.rs`.

use std::fmt::Write;

use hookgate::batch::{Batch, BatchError, EntityId, MAX_ID_BYTES, MAX_REJECTED_PLACES, Reason};

/// Ids and reasons of a body that is read.
fn read(body: impl AsRef<[u8]>) -> (Vec<String>, Vec<(Reason, usize)>) {
    let body = body.as_ref();
    let batch = Batch::parse(body).unwrap_or_else(|error| panic!("{}: {error}", String::from_utf8_lossy(body)));
    (batch.ids().map(|id| id.as_str().to_owned()).collect(), batch.rejected().by_reason().collect())
}

fn refused(body: impl AsRef<[u8]>) -> BatchError {
    let body = body.as_ref();
    Batch::parse(body).err().unwrap_or_else(|| panic!("{} is read", String::from_utf8_lossy(body)))
}

fn not_json(body: impl AsRef<[u8]>) -> bool {
    matches!(refused(body), BatchError::NotJson { .. })
}

fn ids<const N: usize>(ids: [&str; N]) -> Vec<String> {
    ids.map(str::to_owned).to_vec()
}

#[test]
fn nothing_is_no_batch() {
    for body in ["", " ", "\n\t\r "] {
        assert_eq!(refused(body), BatchError::Empty, "{body:?}");
    }
}

#[test]
fn an_empty_list_is_an_empty_batch() {
    for body in ["[]", " [ ] ", "\n[\n]\n"] {
        assert_eq!(read(body), (vec![], vec![]), "{body:?}");
    }
}

#[test]
fn one_object_is_a_batch_of_one() {
    assert_eq!(read(r#"{"name":"Test","id":"entity-123"}"#), (ids(["entity-123"]), vec![]));
    assert_eq!(read(" {} "), (vec![], vec![(Reason::NoId, 1)]));
}

#[test]
fn other_values_are_no_batch() {
    for body in ["null", "true", "1", "-1.5e3", "\"x\"", " \"id\" ", "1e999", r#""\ud800""#] {
        assert_eq!(refused(body), BatchError::NeitherArrayNorObject, "{body}");
    }
    for body in ["nul", "tru e", "01", "+1", ".5", "1.", "NaN", "Infinity", "'x'", "\"x", "\"a\nb\"", "x"] {
        assert!(not_json(body), "{body}");
    }
}

#[test]
fn items_that_are_no_records_leave_the_others_alone() {
    let rejected = vec![(Reason::NotAnObject, 3), (Reason::NoId, 1)];
    assert_eq!(read("[1,null,[],{}]"), (vec![], rejected.clone()));
    assert_eq!(read(r#"[1,{"id":"a"},null,[{"id":"inner"}],{},{"id":"b"}]"#), (ids(["a", "b"]), rejected));
}

#[test]
fn an_id_is_text_or_an_integer() {
    let kinds =
        ["null", "true", "false", "1.5", "-0.0", "1e3", "1E3", "1e999", "[]", r#"["a"]"#, "{}", r#"{"id":"a"}"#];
    for id in kinds {
        assert_eq!(read(format!(r#"[{{"id":{id}}}]"#)), (vec![], vec![(Reason::WrongType, 1)]), "{id}");
    }
    assert_eq!(read(r#"[{"id":""}]"#), (vec![], vec![(Reason::Empty, 1)]));
    assert_eq!(read(r#"[{"Id":"a","ID":"b"," id":"c","data":{"id":"d"}}]"#), (vec![], vec![(Reason::NoId, 1)]));
}

#[test]
fn an_integer_is_taken_as_it_is_written() {
    let digits = "1234567890123456789012345678901234567890";
    let body = format!(r#"[{{"id":7}},{{"id":-7}},{{"id":0}},{{"id":-0}},{{"id":{digits}}},{{"id":"7"}}]"#);
    // The text "7" and the number 7 are the same id; -0 stays as it is, and is another one than 0.
    assert_eq!(read(body), (ids(["7", "-7", "0", "-0", digits]), vec![]));
    let (longest, too_long) = ("9".repeat(MAX_ID_BYTES), "9".repeat(MAX_ID_BYTES + 1));
    let body = format!(r#"[{{"id":{longest}}},{{"id":{too_long}}}]"#);
    assert_eq!(read(body), (vec![longest], vec![(Reason::TooLong, 1)]));
    for id in ["00", "-", "- 1", "0x1", "1_000", "--1"] {
        assert!(not_json(format!(r#"[{{"id":{id}}}]"#)), "{id}");
    }
}

#[test]
fn an_id_is_short_and_has_no_control_characters() {
    for id in
        [r"a\u0000", r"\u0000", r"a\r\nb", r"\t", r"a\u001f", r"\u007f", "\u{7f}", r"\u0080", "a\u{85}b", "\u{9f}"]
    {
        let body = format!(r#"[{{"id":"{id}"}}]"#);
        assert_eq!(read(body), (vec![], vec![(Reason::ControlCharacter, 1)]), "{}", id.escape_debug());
    }
    for id in ["*", ">", "a b", " ", "é", "😀", "a.b", "$x", "\u{a0}", "\u{202e}", "\u{feff}", "\u{fffd}", "\u{e000}"]
    {
        let body = format!(r#"[{{"id":"{id}"}}]"#);
        assert_eq!(read(body), (ids([id]), vec![]), "{}", id.escape_debug());
    }
    for (unit, longest) in [("x", 255), ("é", 127), ("€", 85), ("😀", 63)] {
        let good = unit.repeat(longest);
        let body = format!(r#"[{{"id":"{good}"}},{{"id":"{good}{unit}"}}]"#);
        assert_eq!(read(body), (vec![good], vec![(Reason::TooLong, 1)]), "{unit}");
    }
}

#[test]
fn two_ids_are_none() {
    for item in [
        r#"{"id":"a","id":"b"}"#,
        r#"{"id":"a","name":"b","id":"a"}"#,
        r#"{"id":"a","\u0069d":"b"}"#,
        r#"{"i\u0064":"a","\u0069\u0064":"b"}"#,
        r#"{"id":null,"id":"b"}"#,
        r#"{"id":1.5,"id":{},"id":"c"}"#,
    ] {
        let body = format!(r#"[{{"id":"before"}},{item},{{"id":"after"}}]"#);
        assert_eq!(read(body), (ids(["before", "after"]), vec![(Reason::DuplicateId, 1)]), "{item}");
    }
    assert_eq!(read(r#"[{"\u0069d":"a","x":{"id":"b","id":"c"},"Id":"d"}]"#), (ids(["a"]), vec![]));
}

/// Deeper than any stack, and than the 128 levels at which `serde_json::Value` gives up.
#[test]
fn no_depth_is_too_deep() {
    let lists = format!("{}{}", "[".repeat(100_000), "]".repeat(100_000));
    let objects = format!("{}1{}", r#"{"id":"#.repeat(100_000), "}".repeat(100_000));
    for deep in [&lists, &objects] {
        let beside = format!(r#"[{{"before":{deep},"id":"a","after":{deep}}},{{"id":"b"}}]"#);
        assert_eq!(read(beside), (ids(["a", "b"]), vec![]), "in another member");
        let as_id = format!(r#"[{{"id":{deep}}},{{"id":"b"}}]"#);
        assert_eq!(read(as_id), (ids(["b"]), vec![(Reason::WrongType, 1)]), "as the id");
    }
    assert_eq!(read(format!(r#"[{lists},{{"id":"b"}}]"#)), (ids(["b"]), vec![(Reason::NotAnObject, 1)]));
    assert_eq!(read(&lists), (vec![], vec![(Reason::NotAnObject, 1)]), "as the document");
    assert_eq!(read(&objects), (vec![], vec![(Reason::WrongType, 1)]), "as the document");
    for open in ["[", "{", r#"{"id":"#, r#"[{"x":"#] {
        assert!(not_json(open.repeat(100_000)), "{open}");
    }
    assert!(not_json(format!("{}{}", "[".repeat(100_000), "}".repeat(100_000))));
}

/// `serde_json::Value` refuses 1e999.
#[test]
fn numbers_elsewhere_may_have_any_size() {
    let body = r#"[{"x":1e999,"y":[-1E+999,1234567890123456789012345678901234567890],"id":"a","z":0.1e-99999}]"#;
    assert_eq!(read(body), (ids(["a"]), vec![]));
}

/// `serde_json::Value` refuses half of a surrogate pair wherever it stands.
#[test]
fn half_a_surrogate_pair_makes_no_id_and_harms_no_other_member() {
    for id in [r"\ud800", r"\udfff", r"a\ud83db", r"\ude00\ud83d", r"\ud83d\n", r"\ud83d\ud83d\ude00", r"\uD83Dx"] {
        let body = format!(r#"[{{"id":"{id}"}},{{"id":"b"}}]"#);
        assert_eq!(read(body), (ids(["b"]), vec![(Reason::LoneSurrogate, 1)]), "{id}");
        let body = format!(r#"[{{"name":"{id}","{id}":"c","id{id}":"d","id":"a"}}]"#);
        assert_eq!(read(body), (ids(["a"]), vec![]), "{id} in other members and keys");
        let body = format!(r#"["{id}",{{"id":"b"}}]"#);
        assert_eq!(read(body), (ids(["b"]), vec![(Reason::NotAnObject, 1)]), "{id} as an item");
    }
    assert_eq!(read(r#"[{"id":"\ud83d\ude00"},{"id":"😀"},{"id":"\uD83D\uDE00"}]"#), (ids(["😀"]), vec![]));
    for escape in [r"\u12", r"\u123g", r"\x", r"\", r"\U0041", r"\ud83d\u"] {
        assert!(not_json(format!(r#"[{{"id":"{escape}"}}]"#)), "{escape}");
    }
}

/// Six bytes for each of its own is the longest spelling.
#[test]
fn an_id_is_read_in_its_longest_spelling() {
    let spelled = |length: usize| format!(r#"[{{"\u0069\u0064":"{}"}}]"#, r"\u0061".repeat(length));
    assert_eq!(read(spelled(255)), (ids(["a".repeat(255).as_str()]), vec![]));
    assert_eq!(read(spelled(256)), (ids([]), vec![(Reason::TooLong, 1)]));
    let half = format!(r#"[{{"id":"\ud800{}"}}]"#, r"\u0061".repeat(255));
    assert_eq!(read(&half), (ids([]), vec![(Reason::TooLong, 1)]), "it is not read to its end");
}

#[test]
fn bytes_that_are_no_text_make_no_id_and_harm_no_other_member() {
    for bad in [&b"\xff"[..], b"\x80", b"\xc3", b"\xc0\xaf", b"\xed\xa0\x80", b"\xf0\x9f\x98", b"\xf8\x88\x80\x80\x80"]
    {
        let with = |before: &[u8], after: &[u8]| [before, bad, after].concat();
        let shown = bad.escape_ascii();
        let expected = (ids(["b"]), vec![(Reason::ControlCharacter, 1)]);
        assert_eq!(read(with(b"[{\"id\":\"a", b"c\"},{\"id\":\"b\"}]")), expected, "{shown} in an id");
        let expected = (ids(["a"]), vec![]);
        assert_eq!(read(with(b"[{\"name\":\"", b"\",\"id\":\"a\"}]")), expected, "{shown} in a member");
        assert_eq!(read(with(b"[{\"id", b"\":\"b\",\"id\":\"a\"}]")), expected, "{shown} in a key");
        let expected = (ids(["b"]), vec![(Reason::NotAnObject, 1)]);
        assert_eq!(read(with(b"[\"", b"\",{\"id\":\"b\"}]")), expected, "{shown} in an item");
        for (before, after) in [("", "[]"), ("[", "]"), ("[]", ""), (r#"[{"id":1"#, "}]"), (r#"[{"id":"\"#, r#""}]"#)] {
            assert!(not_json(with(before.as_bytes(), after.as_bytes())), "{before} {shown} {after}");
        }
    }
    let body = b"[{\"id\":\"a\"},{\"id\":\"\xff\"} x]";
    assert!(
        matches!(refused(body), BatchError::NotJson { at: 23, .. }),
        "places are those of the body: {:?}",
        refused(body)
    );
}

#[test]
fn a_byte_order_mark_is_no_json() {
    assert!(not_json("\u{feff}[]"));
    assert!(not_json("[]\u{feff}"));
    assert!(not_json("[\u{feff}{}]"));
}

#[test]
fn only_the_first_places_of_a_flood_are_kept() {
    let number = MAX_REJECTED_PLACES + 5;
    let batch = Batch::parse(format!("[{}1]", "1,".repeat(number)).as_bytes()).expect("it is JSON");
    assert_eq!((batch.rejected().count(), batch.rejected().places().len()), (number + 1, MAX_REJECTED_PLACES));
    assert_eq!(batch.rejected().places()[1], (Reason::NotAnObject, 3..4));
}

#[test]
fn ten_thousand_items_are_read_in_their_order() {
    let numbers = 0..10_000;
    let body = numbers.clone().fold(String::new(), |mut text, number| {
        write!(text, "{}{{\"id\":\"entity-{number}\"}}", if number == 0 { '[' } else { ',' }).expect("a String grows");
        text
    });
    let expected = numbers.map(|number| format!("entity-{number}")).collect();
    assert_eq!(read(body + "]"), (expected, vec![]));
}

#[test]
fn the_same_id_counts_once() {
    let body = r#"[{"id":"b"},{"id":"a"},{"id":"b"},{"\u0069d":"\u0062"},{"id":"B"},{"id":"a "}]"#;
    assert_eq!(read(body), (ids(["b", "a", "B", "a "]), vec![]));
}

#[test]
fn what_is_not_one_document_is_refused_as_a_whole() {
    let good = r#"[{"id":"a"}]"#;
    for tail in ["x", ",", "]", "}", "[]", "{}", "1", "\"\"", "//", "\0", "\u{a0}", "\u{c}", "\u{b}"] {
        assert!(not_json(format!("{good}{tail}")), "{}", tail.escape_debug());
        assert!(not_json(format!("{good}\n {tail}")), "{}", tail.escape_debug());
    }
    for body in
        [r#"[{"id":"a"},]"#, r#"[,{"id":"a"}]"#, r#"[{"id":"a"} {"id":"b"}]"#, r#"[{"id":"a",}]"#, r#"[{"id" "a"}]"#]
    {
        assert!(not_json(body), "{body}");
    }
    // In the name of a member too, which nobody reads any further.
    for control in ["\0", "\n", "\u{1f}"] {
        assert!(not_json(format!("[{{\"na{control}me\":1,\"id\":\"a\"}}]")), "{}", control.escape_debug());
    }
    for body in
        [r#"[{"id":"a"}"#, r#"[{id:"a"}]"#, r"[{'id':'a'}]", r#"{"id":"a"}{"id":"b"}"#, "[}", "{]", "[1:2]", "]"]
    {
        assert!(not_json(body), "{body}");
    }
}

#[test]
fn a_refusal_names_the_place() {
    let message = |body: &str| refused(body).to_string();
    assert_eq!(
        message("[{\"id\":\"a\"},\n {\"id\" 1}]"),
        "the body is not JSON: expected `:` at byte 20; nothing of it was processed"
    );
    assert_eq!(
        message(r#"[{"id":"a"}"#),
        "the body is not JSON: the array does not end at byte 11; nothing of it was processed"
    );
    assert!(message("").contains("send a JSON array"), "{}", message(""));
    assert!(message("1").contains("send an array"), "{}", message("1"));
}

#[test]
fn places_are_those_of_the_rejected_items() {
    let body = "[ 1 , {\"id\":\"a\"},\n{ \"id\" : 1.5 } ,\"\u{fc}\"\t, {\"id\":\"\"}]";
    let batch = Batch::parse(body.as_bytes()).expect("it is JSON");
    let items: Vec<_> = batch.rejected().places().iter().map(|(_, place)| &body[place.clone()]).collect();
    assert_eq!(items, ["1", "{ \"id\" : 1.5 }", "\"\u{fc}\"", "{\"id\":\"\"}"]);
    let text = batch.rejected().to_string();
    assert_eq!(text, "not_an_object=2 id_neither_string_nor_integer=1 id_empty=1");
}

#[test]
fn an_id_is_shown_without_what_a_terminal_would_act_on() {
    let shown = |id: &str| EntityId::parse(id).map(|id| id.to_string());
    for plain in ["entity-123", "Müller-Straße", "é€😀", "a b", "\"quoted\"", "it's", "back\\slash", "{}%$*>"] {
        assert_eq!(shown(plain).as_deref(), Some(plain));
    }
    assert_eq!(shown("a\u{202e}b\u{2066}c").as_deref(), Some("a\\u{202e}b\\u{2066}c"), "direction marks");
    assert_eq!(shown("a\u{2028}b\u{feff}c").as_deref(), Some("a\\u{2028}b\\u{feff}c"), "line separator, zero width");
    for none in ["", "a\nb", "\u{7f}", "a\u{9b}31m"] {
        assert_eq!(shown(none), None, "{none:?} is no id");
    }
    assert_eq!((shown(&"x".repeat(255)).is_some(), shown(&"x".repeat(256)).is_some()), (true, false));
}
