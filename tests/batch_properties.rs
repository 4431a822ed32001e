//! A body is read as the contract says, whatever is in it: `serde_json` is the judge (`batch_properties/oracle.rs`).
//!
//! A failure prints the smallest body that shows it. Put that body into `batch_examples.rs`; nothing else is written.

mod generate;
mod oracle;

use hookgate::batch::{Batch, BatchError};
use proptest::{collection::vec, prelude::*, sample::Index};

use self::{
    generate::{batch, blanks, document, spelled_text},
    oracle::{DAMAGE, Outcome, expected, judge_text, observed, without_shades},
};

/// Bytes that are no text: half characters, too long ones, half a surrogate pair in bytes.
const NO_TEXT: &[&[u8]] = &[b"\xff", b"\xc3", b"\xed\xa0\x80", b"\xf0\x9f\x98", b"\xc0\xaf", b"\x80\x80\x80"];

fn configuration() -> ProptestConfig {
    ProptestConfig { failure_persistence: None, ..ProptestConfig::default() }
}

/// One change to a body.
#[derive(Debug, Clone)]
enum Change {
    Replace(u8),
    Insert(u8),
    Remove,
}

fn change() -> impl Strategy<Value = Change> {
    // Half of them with what means something in JSON: from random bytes, JSON comes out too seldom.
    let byte = || prop_oneof![any::<u8>(), proptest::sample::select(&b"[]{},:\"\\ 0-e\xc3\xff"[..])];
    prop_oneof![byte().prop_map(Change::Replace), byte().prop_map(Change::Insert), Just(Change::Remove)]
}

/// Hookgate and the judge agree on a body that may hold bytes that are no text.
fn agree(body: &[u8]) -> Result<(), TestCaseError> {
    let shown = || String::from_utf8_lossy(body).into_owned();
    if std::str::from_utf8(body).is_ok() {
        prop_assert_eq!(observed(body), expected(body), "{}", shown());
    } else {
        prop_assert_eq!(without_shades(observed(body)), without_shades(expected(body)), "{}", shown());
    }
    Ok(())
}

proptest! {
    #![proptest_config(configuration())]

    #[test]
    fn every_document_is_read_as_the_judge_reads_it(body in document()) {
        prop_assert_ne!(expected(body.as_bytes()), Outcome::NotJson, "the generator makes JSON: {}", body);
        prop_assert_eq!(observed(body.as_bytes()), expected(body.as_bytes()), "{}", body);
    }

    #[test]
    fn every_spelling_of_an_id_is_read_as_its_characters((literal, meant) in spelled_text()) {
        let read = Batch::parse(format!(r#"[{{"id":{literal}}}]"#).as_bytes()).expect("it is JSON");
        let id = read.ids().next().map(|id| id.as_str().to_owned());
        let reason = read.rejected().by_reason().next().map(|(reason, _)| reason);
        prop_assume!(!meant.contains(DAMAGE));
        prop_assert_eq!(id.ok_or_else(|| reason.expect("an id that is not taken has a reason")), judge_text(&meant));
    }

    #[test]
    fn one_changed_byte_never_makes_a_wrong_id(body in document(), changes in vec((any::<Index>(), change()), 1..3)) {
        let mut body = body.into_bytes();
        for (place, change) in changes {
            let at = place.index(body.len() + 1);
            match change {
                Change::Replace(byte) if at < body.len() => body[at] = byte,
                Change::Remove if at < body.len() => drop(body.remove(at)),
                Change::Replace(byte) | Change::Insert(byte) => body.insert(at, byte),
                Change::Remove => {}
            }
        }
        agree(&body)?;
    }

    #[test]
    fn any_bytes_are_judged_alike(body in vec(any::<u8>(), 0..64)) {
        agree(&body)?;
    }

    #[test]
    fn bytes_that_mean_something_are_judged_alike(
        pieces in vec(proptest::sample::select(&["[", "]", "{", "}", ",", ":", "\"", "\"id\"", "1", "-", "\\", " "][..]), 0..24),
    ) {
        agree(pieces.concat().as_bytes())?;
    }

    #[test]
    fn a_document_cut_short_is_refused_as_a_whole(body in batch()) {
        for length in 1..body.len() {
            let cut = &body.as_bytes()[..length];
            prop_assert_eq!(observed(cut), Outcome::NotJson, "{}", String::from_utf8_lossy(cut));
        }
    }

    #[test]
    fn a_document_with_something_behind_it_is_refused_as_a_whole(
        (first, second) in (batch(), document()),
        gap in blanks(),
        garbage in "[^ \t\r\n]",
    ) {
        for body in [format!("{first}{gap}{garbage}"), format!("{first}{gap}{second}x"), format!("{first}{gap}[{second}]")] {
            prop_assert_eq!(observed(body.as_bytes()), Outcome::NotJson, "{}", body);
        }
        let refused = Batch::parse(format!("{first}{gap}{garbage}").as_bytes());
        let at_the_garbage = matches!(refused, Err(BatchError::NotJson { at, .. }) if at == first.len() + gap.len());
        prop_assert!(at_the_garbage, "{:?}", refused);
    }

    #[test]
    fn bytes_that_are_no_text_damage_only_the_item_they_are_in(
        ids in vec("[a-z]{1,8}", 3..6),
        hit in any::<Index>(),
        bad in proptest::sample::select(NO_TEXT),
        in_id in any::<bool>(),
        cut in any::<Index>(),
    ) {
        let hit = hit.index(ids.len());
        let mut body = Vec::from(*b"[");
        for (index, id) in ids.iter().enumerate() {
            let (mut id, mut name) = (id.clone().into_bytes(), Vec::from(*b"Musterfrau"));
            if index == hit {
                let text = if in_id { &mut id } else { &mut name };
                let at = cut.index(text.len() + 1);
                text.splice(at..at, bad.iter().copied());
            }
            let comma: &[u8] = if index == 0 { b"" } else { b"," };
            body.extend([comma, b"{\"name\":\"", &name, b"\",\"id\":\"", &id, b"\"}"].concat());
        }
        body.push(b']');

        let mut good: Vec<String> = Vec::new();
        for (index, id) in ids.into_iter().enumerate() {
            if !(in_id && index == hit || good.contains(&id)) {
                good.push(id);
            }
        }
        let Outcome::Read { ids, rejected } = observed(&body) else { panic!("it is JSON but for bytes inside strings") };
        prop_assert_eq!((ids, rejected.values().sum::<usize>()), (good, usize::from(in_id)));
        agree(&body)?;
    }
}
