//! Reads a body: the outermost level by itself, each item by `serde_json`, and of each item only its id.

use std::{
    borrow::Cow,
    fmt,
    hash::{BuildHasher, RandomState},
};

use hashbrown::HashTable;
use serde::de::{Deserialize, Deserializer, IgnoredAny, MapAccess, Visitor};
use serde_json::value::RawValue;

use super::{Batch, BatchError, Reason, check_id, slice};

/// Reads a body of less than 4 GiB.
pub(super) fn read(body: &[u8]) -> Result<Batch, BatchError> {
    let text = mask_invalid_utf8(body);
    Reader { text: &text, at: 0, seen: HashTable::new(), hasher: RandomState::new(), batch: Batch::default() }.read()
}

/// Replaces each byte that is not UTF-8 by DEL. Inside a string DEL is legal JSON and makes an id (but no
/// other member) unacceptable; outside, and behind a backslash, it is a syntax error as the byte was. So
/// the damage stays in the item it is in, and can't turn into another id.
fn mask_invalid_utf8(body: &[u8]) -> Cow<'_, str> {
    if let Ok(text) = std::str::from_utf8(body) {
        return Cow::Borrowed(text);
    }
    let mut text = String::with_capacity(body.len());
    for chunk in body.utf8_chunks() {
        text.push_str(chunk.valid());
        text.extend(std::iter::repeat_n('\u{7f}', chunk.invalid().len()));
    }
    Cow::Owned(text)
}

/// Walks over the outermost level itself, so that one bad item can't end the reading of the others, and
/// leaves each item to `serde_json`.
struct Reader<'a> {
    text: &'a str,
    at: usize,
    seen: HashTable<u32>,
    hasher: RandomState,
    batch: Batch,
}

impl<'a> Reader<'a> {
    fn read(mut self) -> Result<Batch, BatchError> {
        match self.peek() {
            None => return Err(BatchError::Empty),
            Some(b'{') => self.item()?,
            Some(b'[') => self.array()?,
            Some(_) => {
                self.value::<IgnoredAny>()?;
                self.end()?;
                return Err(BatchError::NeitherArrayNorObject);
            }
        }
        self.end()?;
        Ok(self.batch)
    }

    fn array(&mut self) -> Result<(), BatchError> {
        self.at += 1;
        if self.peek() == Some(b']') {
            self.at += 1;
            return Ok(());
        }
        loop {
            self.item()?;
            let next = self.peek();
            self.at += 1;
            match next {
                Some(b',') => {}
                Some(b']') => return Ok(()),
                Some(_) => return Err(not_json("expected ',' or ']' after an item", self.at - 1)),
                None => return Err(not_json("the array does not end", self.at - 1)),
            }
        }
    }

    fn item(&mut self) -> Result<(), BatchError> {
        let first = self.peek();
        let start = self.at;
        let id = if first == Some(b'{') {
            self.value::<Record<'a>>()?.id()
        } else {
            self.value::<IgnoredAny>()?;
            Err(Reason::NotAnObject)
        };
        match id {
            Ok(id) => self.add(&id),
            Err(reason) => self.batch.rejected.add(reason, start..self.at),
        }
        Ok(())
    }

    /// Reads one value and moves behind it.
    fn value<T: Deserialize<'a>>(&mut self) -> Result<T, BatchError> {
        let mut values = serde_json::Deserializer::from_str(&self.text[self.at..]).into_iter::<T>();
        match values.next() {
            Some(Ok(value)) => {
                self.at += values.byte_offset();
                Ok(value)
            }
            Some(Err(error)) => Err(self.explain(&error)),
            None => Err(not_json("a value is missing", self.at)),
        }
    }

    fn end(&mut self) -> Result<(), BatchError> {
        match self.peek() {
            None => Ok(()),
            Some(_) => Err(not_json("expected the end of the body", self.at)),
        }
    }

    /// The next byte that is not a blank, unread.
    fn peek(&mut self) -> Option<u8> {
        let rest = &self.text.as_bytes()[self.at..];
        let blanks = rest.iter().take_while(|byte| matches!(byte, b' ' | b'\t' | b'\r' | b'\n')).count();
        self.at += blanks;
        rest.get(blanks).copied()
    }

    /// Keeps an id unless the batch holds it already.
    fn add(&mut self, id: &str) {
        let Self { seen, hasher, batch: Batch { text, ends, .. }, .. } = self;
        let hash_at = |index: u32| hasher.hash_one(slice(text, ends, index as usize));
        let hash = hasher.hash_one(id);
        if seen.find(hash, |&index| slice(text, ends, index as usize) == id).is_some() {
            return;
        }
        let index = u32::try_from(ends.len()).expect("a body has fewer ids than bytes, and less than 4 GiB");
        seen.insert_unique(hash, index, |&index| hash_at(index));
        text.push_str(id);
        ends.push(u32::try_from(text.len()).expect("ids take fewer bytes than the body, and less than 4 GiB"));
    }

    /// What `serde_json` says is wrong, with the byte of the body instead of line and column.
    fn explain(&self, error: &serde_json::Error) -> BatchError {
        if error.is_eof() {
            return not_json("it ends in the middle of a value", self.text.len());
        }
        let text = error.to_string();
        let problem = text.split(" at line ").next().unwrap_or_default();
        let rest = &self.text[self.at..];
        let line: usize = rest.split_inclusive('\n').take(error.line().saturating_sub(1)).map(str::len).sum();
        not_json(problem, self.at + line + error.column().saturating_sub(1))
    }
}

fn not_json(problem: &str, at: usize) -> BatchError {
    BatchError::NotJson { problem: problem.to_owned(), at }
}

/// What is kept of an object while it is read: where its `id` stands, and how many there are.
#[derive(Default)]
struct Record<'a> {
    id: Option<&'a RawValue>,
    id_members: usize,
}

impl<'a> Record<'a> {
    fn id(&self) -> Result<Cow<'a, str>, Reason> {
        match (self.id, self.id_members) {
            (Some(id), 1) => read_id(id.get()),
            (None, _) => Err(Reason::NoId),
            (Some(_), _) => Err(Reason::DuplicateId),
        }
    }
}

impl<'de> Deserialize<'de> for Record<'de> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_map(RecordVisitor)
    }
}

struct RecordVisitor;

impl<'de> Visitor<'de> for RecordVisitor {
    type Value = Record<'de>;

    fn expecting(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.write_str("an object")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut members: A) -> Result<Self::Value, A::Error> {
        let mut record = Record::default();
        // Raw keys: a key that is no valid text (a lone surrogate) is somebody else's, not an error.
        while let Some(key) = members.next_key::<&RawValue>()? {
            if is_id(key.get()) {
                record.id = Some(members.next_value()?);
                record.id_members += 1;
            } else {
                members.next_value::<IgnoredAny>()?;
            }
        }
        Ok(record)
    }
}

/// Whether a key, in quotes and perhaps with escapes, is `id`.
fn is_id(raw: &str) -> bool {
    raw == "\"id\"" || (raw.contains('\\') && serde_json::from_str::<Cow<'_, str>>(raw).is_ok_and(|key| key == "id"))
}

/// Takes an id from the JSON text of its value.
fn read_id(raw: &str) -> Result<Cow<'_, str>, Reason> {
    let id = match raw.as_bytes() {
        [b'"', inner @ .., b'"'] if !inner.contains(&b'\\') => Cow::Borrowed(&raw[1..raw.len() - 1]),
        // The escapes were checked when the value was read; what can still be wrong is a surrogate.
        [b'"', ..] => Cow::Owned(serde_json::from_str(raw).map_err(|_| Reason::LoneSurrogate)?),
        [b'-' | b'0'..=b'9', rest @ ..] if rest.iter().all(u8::is_ascii_digit) => Cow::Borrowed(raw),
        _ => return Err(Reason::WrongType),
    };
    check_id(&id)?;
    Ok(id)
}
