//! An item without a usable id is rejected; its neighbours are processed. Nothing a sender writes gets into a subject.

use std::{collections::BTreeSet, fmt::Write};

use crate::support::{Event, OUTBOX, PENDING, SUBJECT, World};

/// Items without a usable id.
const REJECTED: [(&str, &str); 22] = [
    ("a number", "1"),
    ("a string", "\"a\""),
    ("null", "null"),
    ("true", "true"),
    ("a list", "[]"),
    ("a list with a record", r#"[{"id":"inner"}]"#),
    ("no member", "{}"),
    ("no id", r#"{"Id":"a","ID":"b"}"#),
    ("an id further down", r#"{"record":{"id":"inner"}}"#),
    ("id null", r#"{"id":null}"#),
    ("id true", r#"{"id":true}"#),
    ("id a fraction", r#"{"id":1.5}"#),
    ("id with an exponent", r#"{"id":1e3}"#),
    ("id an object", r#"{"id":{"id":"inner"}}"#),
    ("id a list", r#"{"id":["inner"]}"#),
    ("id empty", r#"{"id":""}"#),
    ("id with NUL", r#"{"id":"a\u0000b"}"#),
    ("id with a line break", r#"{"id":"a\r\nb"}"#),
    ("id with half a surrogate pair", r#"{"id":"a\ud800b"}"#),
    ("two ids", r#"{"id":"a","id":"b"}"#),
    ("two ids that are the same", r#"{"id":"a","name":"b","id":"a"}"#),
    ("two ids, one with an escape", r#"{"id":"a","\u0069d":"b"}"#),
];

/// Items whose id looks dangerous and is harmless, and the id that has to arrive.
const ACCEPTED: [(&str, &str); 17] = [
    (r#"{"id":"*"}"#, "*"),
    (r#"{"id":">"}"#, ">"),
    (r#"{"id":"a.b.c"}"#, "a.b.c"),
    (r#"{"id":"a b"}"#, "a b"),
    (r#"{"id":"Müller"}"#, "Müller"),
    (r#"{"id":"\u00e9"}"#, "é"),
    (r#"{"id":"😀"}"#, "😀"),
    (r#"{"id":"\ud83d\ude00!"}"#, "😀!"),
    (r#"{"id":"a\"b\\c\/d"}"#, "a\"b\\c/d"),
    (r#"{"id":"{vmh}:outbox"}"#, "{vmh}:outbox"),
    (r#"{"id":"$JS.API"}"#, "$JS.API"),
    (r#"{"id":0}"#, "0"),
    (r#"{"id":-7}"#, "-7"),
    (r#"{"id":123456789012345678901234567890}"#, "123456789012345678901234567890"),
    (r#"{"\u0069d":"escaped key"}"#, "escaped key"),
    (r#"{"x":1e999,"y":-0.0e-5,"z":1234567890123456789012345678901234567890,"id":"huge numbers"}"#, "huge numbers"),
    (r#"{"name":"\ud800","\udfff":1,"id":"surrogates elsewhere"}"#, "surrogates elsewhere"),
];

#[tokio::test]
async fn each_bad_item_is_left_out_and_its_neighbours_go_on() {
    let world = World::start().await;
    let gate = world.gate("").await;
    for (index, (what, item)) in REJECTED.iter().enumerate() {
        let body = format!(r#"[{{"id":"before-{index}"}},{item},{{"id":"after-{index}"}}]"#);
        let answer = gate.post(body).await;
        assert_eq!((answer.counts(), answer.rejected()), ((2, 2), 1), "{what}: {}", answer.text());
        let members = r#""new_ids_count":2,"total_ids_in_batch":2,"rejected_items_count":1}"#;
        assert!(answer.text().ends_with(members), "{what}: {}", answer.text());
    }
    let expected: BTreeSet<_> =
        (0..REJECTED.len()).flat_map(|index| [format!("before-{index}"), format!("after-{index}")]).collect();
    assert_eq!(world.redis.pending(PENDING).await, expected);
    assert_eq!(world.nats.events().await.iter().map(Event::entity_id).collect::<BTreeSet<_>>(), expected);

    let all: Vec<_> = REJECTED.iter().map(|(_, item)| *item).collect();
    let answer = gate.post(format!("[{}]", all.join(","))).await;
    assert_eq!((answer.counts(), answer.rejected()), ((0, 0), 22), "nothing but bad items is still 200");
}

#[tokio::test]
async fn odd_ids_arrive_as_they_are_and_leave_the_subject_alone() {
    let world = World::start().await;
    let gate = world.gate("").await;
    let items: Vec<_> = ACCEPTED.iter().map(|(item, _)| *item).collect();
    let answer = gate.post(format!("[{}]", items.join(","))).await;
    assert_eq!((answer.counts(), answer.rejected()), ((17, 17), 0), "{}", answer.text());

    let events = world.nats.events().await;
    let ids: Vec<_> = events.iter().map(Event::entity_id).collect();
    let expected: Vec<_> = ACCEPTED.iter().map(|(_, id)| *id).collect();
    assert_eq!(ids, expected);
    assert!(events.iter().all(|event| event.subject == SUBJECT));
    assert_eq!(world.redis.pending(PENDING).await, expected.iter().map(|id| (*id).to_owned()).collect());
    world.redis.settled(OUTBOX).await;
}

#[tokio::test]
async fn an_id_has_at_most_255_bytes() {
    let world = World::start().await;
    let gate = world.gate("").await;
    let (longest, too_long, too_long_in_bytes) = ("x".repeat(255), "x".repeat(256), "é".repeat(128));
    let answer =
        gate.post(format!(r#"[{{"id":"{longest}"}},{{"id":"{too_long}"}},{{"id":"{too_long_in_bytes}"}}]"#)).await;
    assert_eq!((answer.counts(), answer.rejected()), ((1, 1), 2));
    assert_eq!(world.redis.pending(PENDING).await, BTreeSet::from([longest]));
}

#[tokio::test]
async fn bytes_that_are_no_text_make_no_wrong_id() {
    let world = World::start().await;
    let gate = world.gate("").await;
    let answer = gate.post(b"[{\"id\":\"a\xffb\"},{\"id\":\"\xc3\"},{\"name\":\"\xff\",\"id\":\"good\"}]").await;
    assert_eq!((answer.counts(), answer.rejected()), ((1, 1), 2));
    assert_eq!(world.redis.pending(PENDING).await, BTreeSet::from(["good".into()]));
}

#[tokio::test]
async fn a_hundred_thousand_levels_do_no_harm() {
    let world = World::start().await;
    let gate = world.gate("").await;
    let lists = format!("{}{}", "[".repeat(100_000), "]".repeat(100_000));
    let objects = format!("{}1{}", r#"{"id":"#.repeat(100_000), "}".repeat(100_000));

    let beside = gate.post(format!(r#"[{{"deep":{lists},"id":"a","deeper":{objects}}}]"#)).await;
    assert_eq!((beside.counts(), beside.rejected()), ((1, 1), 0));
    let as_items = gate.post(format!(r#"[{lists},{objects},{{"id":{lists}}},{{"id":"b"}}]"#)).await;
    assert_eq!((as_items.counts(), as_items.rejected()), ((1, 1), 3));
    for document in [lists, objects] {
        let answer = gate.post(document).await;
        assert_eq!((answer.counts(), answer.rejected()), ((0, 0), 1), "as the document itself");
    }
    let unclosed = gate.post("[".repeat(100_000)).await;
    assert_eq!(unclosed.error(), (400, "not_json".into()));
}

#[tokio::test]
async fn a_flood_of_tiny_items_takes_little_memory() {
    let world = World::start().await;
    let gate = world.gate("").await;
    gate.post("[]").await;
    let before = gate.resident_bytes();

    let mut flood = String::from("[");
    while flood.len() < 4 << 20 {
        flood.write_str(r#"{"":0},"#).expect("a String takes everything");
    }
    flood.write_str(r#"{"id":"last"}]"#).expect("a String takes everything");
    assert_eq!(gate.post(flood).await.counts(), (1, 1));

    let grown = gate.resident_bytes().saturating_sub(before);
    assert!(grown < 40 << 20, "a body of 4 MiB took {} MiB", grown >> 20);
}
