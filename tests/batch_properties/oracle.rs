//! The contract's rules for a body, computed with `serde_json` and independently of the reader.
//!
//! The document is judged as a whole and then taken apart into lists of raw members; ids and keys are decoded
//! as bytes, where half of a surrogate pair shows as bytes that are no UTF-8; ids are compared one by one.
//! `serde_json::Value` alone would not do: it refuses what the contract takes (more than 128 levels, 1e999 and
//! halves of surrogate pairs in other members) and forgets duplicate keys.

use std::{collections::BTreeMap, fmt};

use hookgate::batch::{Batch, BatchError, EntityId, Reason};
use serde::de::{Deserialize, Deserializer, Error, IgnoredAny, MapAccess, Visitor};
use serde_json::value::RawValue;

/// How a body ends.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Outcome {
    Empty,
    NotJson,
    NeitherArrayNorObject,
    Read { ids: Vec<String>, rejected: BTreeMap<Reason, usize> },
}

/// A letter for private use, which stands for bytes that are no text.
pub(crate) const DAMAGE: char = '\u{e000}';

/// What the contract says. Each stretch of bytes that is no text counts as one letter that no id may hold.
pub(crate) fn expected(body: &[u8]) -> Outcome {
    let text: String = body
        .utf8_chunks()
        .flat_map(|chunk| [chunk.valid(), if chunk.invalid().is_empty() { "" } else { "\u{e000}" }])
        .collect();
    if text.trim_matches([' ', '\t', '\r', '\n']).is_empty() {
        return Outcome::Empty;
    }
    // Of bytes, `serde_json` looks only at those outside of strings while it skips a value.
    let json = serde_json::from_slice::<IgnoredAny>(body).is_ok();
    assert_eq!(json, serde_json::from_str::<IgnoredAny>(&text).is_ok(), "the letter changes nothing: {text}");
    if !json {
        return Outcome::NotJson;
    }
    let items: Vec<&RawValue> = match text.trim_start().as_bytes()[0] {
        b'[' => serde_json::from_str(&text).expect("it is JSON, and begins as a list"),
        b'{' => vec![serde_json::from_str(&text).expect("it is JSON")],
        _ => return Outcome::NeitherArrayNorObject,
    };
    let (mut ids, mut rejected) = (Vec::new(), BTreeMap::new());
    for item in items {
        match judge(item.get()) {
            Ok(id) if ids.contains(&id) => {}
            Ok(id) => ids.push(id),
            Err(reason) => *rejected.entry(reason).or_default() += 1,
        }
    }
    Outcome::Read { ids, rejected }
}

/// What hookgate says, after a look at what has to hold of each answer.
pub(crate) fn observed(body: &[u8]) -> Outcome {
    let batch = match Batch::parse(body) {
        Ok(batch) => batch,
        Err(BatchError::Empty) => return Outcome::Empty,
        Err(BatchError::NeitherArrayNorObject) => return Outcome::NeitherArrayNorObject,
        Err(BatchError::NotJson { at, problem }) => {
            assert!(at <= body.len(), "byte {at} of {}: {problem}", body.len());
            return Outcome::NotJson;
        }
    };
    assert_eq!((batch.ids().len(), batch.ids().next().is_none()), (batch.len(), batch.is_empty()));
    for (index, id) in batch.ids().enumerate() {
        assert_eq!((batch.id(index), EntityId::parse(id.as_str())), (id, Some(id)));
    }
    let rejected: BTreeMap<_, _> = batch.rejected().by_reason().collect();
    assert_eq!(batch.rejected().count(), rejected.values().sum::<usize>());
    for (_, place) in batch.rejected().places() {
        let item = &body[place.clone()];
        assert_eq!(item, item.trim_ascii(), "the place of a rejected item has no blanks around it");
        assert!(serde_json::from_slice::<IgnoredAny>(item).is_ok(), "the place of a rejected item is one value");
    }
    Outcome::Read { ids: batch.ids().map(|id| id.as_str().to_owned()).collect(), rejected }
}

/// The same with one name for everything that is wrong with the text of an id: in a damaged id several things
/// are; the contract does not say which one is named.
pub(crate) fn without_shades(outcome: Outcome) -> Outcome {
    let Outcome::Read { ids, rejected: exact } = outcome else { return outcome };
    let mut rejected = BTreeMap::new();
    for (reason, count) in exact {
        let shade = matches!(reason, Reason::TooLong | Reason::LoneSurrogate);
        *rejected.entry(if shade { Reason::ControlCharacter } else { reason }).or_default() += count;
    }
    Outcome::Read { ids, rejected }
}

/// The rules of an id that is text.
pub(crate) fn judge_text(id: &str) -> Result<String, Reason> {
    let control = |c: char| c < ' ' || ('\u{7f}'..='\u{9f}').contains(&c) || c == DAMAGE;
    match id.len() {
        0 => Err(Reason::Empty),
        1..=255 if id.contains(control) => Err(Reason::ControlCharacter),
        1..=255 => Ok(id.to_owned()),
        _ => Err(Reason::TooLong),
    }
}

fn judge(item: &str) -> Result<String, Reason> {
    if !item.starts_with('{') {
        return Err(Reason::NotAnObject);
    }
    let Members(members) = serde_json::from_str(item).expect("it is JSON, and an object");
    let mut ids = members.iter().filter(|(key, _)| key.0 == b"id");
    let Some((_, id)) = ids.next() else { return Err(Reason::NoId) };
    if ids.next().is_some() {
        return Err(Reason::DuplicateId);
    }
    if id.get().starts_with('"') && id.get().len() > 2 + 6 * 255 {
        // Whatever its escapes say: none is longer than six bytes for one.
        return Err(Reason::TooLong);
    }
    match serde_json::from_str::<Bytes>(id.get()) {
        Ok(Bytes(bytes)) => judge_text(std::str::from_utf8(&bytes).map_err(|_| Reason::LoneSurrogate)?),
        Err(_) if id.get().trim_start_matches('-').chars().all(|c| c.is_ascii_digit()) => judge_text(id.get()),
        Err(_) => Err(Reason::WrongType),
    }
}

/// A string as bytes, halves of surrogate pairs included.
struct Bytes(Vec<u8>);

impl<'de> Deserialize<'de> for Bytes {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Decoded;
        impl Visitor<'_> for Decoded {
            type Value = Bytes;
            fn expecting(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
                out.write_str("a string")
            }
            fn visit_bytes<E: Error>(self, bytes: &[u8]) -> Result<Bytes, E> {
                Ok(Bytes(bytes.to_owned()))
            }
        }
        deserializer.deserialize_bytes(Decoded)
    }
}

/// Every member of an object, also those of the same name.
struct Members(Vec<(Bytes, Box<RawValue>)>);

impl<'de> Deserialize<'de> for Members {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Listed;
        impl<'de> Visitor<'de> for Listed {
            type Value = Members;
            fn expecting(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
                out.write_str("an object")
            }
            fn visit_map<A: MapAccess<'de>>(self, mut members: A) -> Result<Members, A::Error> {
                let mut list = Vec::new();
                while let Some(member) = members.next_entry()? {
                    list.push(member);
                }
                Ok(Members(list))
            }
        }
        deserializer.deserialize_map(Listed)
    }
}
