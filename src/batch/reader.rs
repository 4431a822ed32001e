//! Reads a body: the outermost level by itself, each item by a quick look or by `serde_json`, and of each item only its id.
//!
//! Whatever grows with the body asks for its memory first. The table of ids asks right after it grew: only then is its size
//! known.

use std::{
    borrow::Cow,
    fmt,
    hash::{BuildHasher, RandomState},
};

use hashbrown::HashTable;
use serde::de::{Deserialize, Deserializer, IgnoredAny, MapAccess, Visitor};
use serde_json::value::RawValue;

use super::{
    Batch, BatchError, MAX_ID_BYTES, MAX_REJECTED_PLACES, Reason, check_id,
    scan::{self, Scanned},
    slice,
};

/// Most bytes of a text in JSON for each of its own: `\u0069`. A longer one is not worth the memory to read it.
const SPELLED: usize = 6;
/// Room that the first one of a list takes.
const MIN_ROOM: usize = 16;
/// Room of the first table: for the ids of a body as `EspoCRM` sends it, at most 50.
const MIN_TABLE: usize = 56;

/// Reads a body of less than 4 GiB.
pub(super) fn read<E>(
    body: &[u8],
    mut reserve: impl FnMut(usize) -> Result<(), E>,
) -> Result<Result<Batch, BatchError>, E> {
    let valid = std::str::from_utf8(body);
    if valid.is_err() {
        reserve(body.len())?;
    }
    let text = valid.map_or_else(|_error| mask_invalid_utf8(body), Cow::Borrowed);
    let reader = Reader {
        text: &text,
        at: 0,
        seen: HashTable::new(),
        hasher: RandomState::new(),
        batch: Batch::default(),
        reserve,
    };
    match reader.read() {
        Ok(batch) => Ok(Ok(batch)),
        Err(Stop::Batch(error)) => Ok(Err(error)),
        Err(Stop::Budget(error)) => Err(error),
    }
}

/// Why reading ends early.
enum Stop<E> {
    Batch(BatchError),
    Budget(E),
}

impl<E> From<BatchError> for Stop<E> {
    fn from(error: BatchError) -> Self {
        Self::Batch(error)
    }
}

/// Replaces each byte that is not UTF-8 by DEL. Inside a string DEL is legal JSON and makes an id (but no
/// other member) unacceptable; outside, and behind a backslash, it is a syntax error as the byte was. So
/// the damage stays in the item it is in, and can't turn into another id.
fn mask_invalid_utf8(body: &[u8]) -> Cow<'_, str> {
    let mut text = String::with_capacity(body.len());
    for chunk in body.utf8_chunks() {
        text.push_str(chunk.valid());
        text.extend(std::iter::repeat_n('\u{7f}', chunk.invalid().len()));
    }
    Cow::Owned(text)
}

/// Walks over the outermost level itself, so that one bad item can't end the reading of the others, and
/// leaves each item to `serde_json`.
struct Reader<'a, R> {
    text: &'a str,
    at: usize,
    seen: HashTable<u32>,
    hasher: RandomState,
    batch: Batch,
    reserve: R,
}

impl<'a, E, R: FnMut(usize) -> Result<(), E>> Reader<'a, R> {
    fn read(mut self) -> Result<Batch, Stop<E>> {
        match self.peek() {
            None => return Err(BatchError::Empty.into()),
            Some(b'{') => self.item()?,
            Some(b'[') => self.array()?,
            Some(_) => {
                self.value::<IgnoredAny>()?;
                self.end()?;
                return Err(BatchError::NeitherArrayNorObject.into());
            }
        }
        self.end()?;
        Ok(self.batch)
    }

    fn array(&mut self) -> Result<(), Stop<E>> {
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
                Some(_) => return Err(not_json("expected ',' or ']' after an item", self.at - 1).into()),
                None => return Err(not_json("the array does not end", self.at - 1).into()),
            }
        }
    }

    fn item(&mut self) -> Result<(), Stop<E>> {
        let first = self.peek();
        let start = self.at;
        let id = if first == Some(b'{') {
            self.record()?.id()
        } else {
            self.value::<IgnoredAny>()?;
            Err(Reason::NotAnObject)
        };
        match id {
            Ok(id) => self.add(&id),
            Err(reason) => {
                let rejected = &mut self.batch.rejected;
                if rejected.keeps_more() {
                    make_room(&mut self.reserve, &mut rejected.places, MAX_REJECTED_PLACES)?;
                }
                rejected.add(reason, start..self.at);
                Ok(())
            }
        }
    }

    /// Reads an object: by a quick look, or where that is not enough, by `serde_json`.
    fn record(&mut self) -> Result<Record<'a>, BatchError> {
        let Some(Scanned { id, id_members, end }) = scan::record(self.text, self.at) else { return self.value() };
        self.at = end;
        Ok(Record { id: id.map(|id| &self.text[id]), id_members })
    }

    /// Reads one value, or says why there is none.
    fn value<T: Deserialize<'a>>(&mut self) -> Result<T, BatchError> {
        match self.next() {
            Some(Ok(value)) => Ok(value),
            Some(Err(error)) => Err(self.explain(&error)),
            None => Err(not_json("a value is missing", self.at)),
        }
    }

    /// Reads one value and moves behind it; stays where there is none.
    fn next<T: Deserialize<'a>>(&mut self) -> Option<serde_json::Result<T>> {
        let mut values = serde_json::Deserializer::from_str(&self.text[self.at..]).into_iter();
        let value = values.next();
        if let Some(Ok(_)) = &value {
            self.at += values.byte_offset();
        }
        value
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
    fn add(&mut self, id: &str) -> Result<(), Stop<E>> {
        // Most bodies have one id, which needs no table.
        if self.batch.is_empty() {
            return self.append(id);
        }
        if self.seen.is_empty() {
            self.grow_seen()?;
        }
        let hash = self.hasher.hash_one(id);
        let Batch { text, ends, .. } = &self.batch;
        if self.seen.find(hash, |&index| slice(text, ends, index as usize) == id).is_some() {
            return Ok(());
        }
        let index = u32::try_from(ends.len()).expect("a body has fewer ids than bytes, and less than 4 GiB");
        if self.seen.len() == self.seen.capacity() {
            self.grow_seen()?;
        }
        self.seen.insert_unique(hash, index, |_index| unreachable!("there is room"));
        self.append(id)
    }

    fn append(&mut self, id: &str) -> Result<(), Stop<E>> {
        let Batch { text, ends, .. } = &mut self.batch;
        if text.capacity() - text.len() < id.len() {
            // All ids together are shorter than the body.
            let room = (text.len() + id.len()).max((2 * text.capacity()).min(self.text.len()));
            (self.reserve)(room - text.capacity()).map_err(Stop::Budget)?;
            text.reserve_exact(room - text.len());
        }
        make_room(&mut self.reserve, ends, usize::MAX)?;
        text.push_str(id);
        ends.push(u32::try_from(text.len()).expect("ids take fewer bytes than the body, and less than 4 GiB"));
        Ok(())
    }

    /// Makes the table twice as large. The old one goes first: everything that it holds is in the batch.
    fn grow_seen(&mut self) -> Result<(), Stop<E>> {
        let (before, room) = (self.seen.allocation_size(), (2 * self.seen.capacity()).max(MIN_TABLE));
        self.seen = HashTable::new();
        self.seen = HashTable::with_capacity(room);
        // Only the table itself knows its size. A refused one is dropped at once.
        (self.reserve)(self.seen.allocation_size() - before).map_err(Stop::Budget)?;
        let Self { seen, hasher, batch: Batch { text, ends, .. }, .. } = self;
        let hash_at = |index: u32| hasher.hash_one(slice(text, ends, index as usize));
        for index in (0..).take(ends.len()) {
            seen.insert_unique(hash_at(index), index, |&index| hash_at(index));
        }
        Ok(())
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

/// Room for one more, at most for `most` in all.
fn make_room<T, E>(
    reserve: &mut impl FnMut(usize) -> Result<(), E>,
    list: &mut Vec<T>,
    most: usize,
) -> Result<(), Stop<E>> {
    if list.len() == list.capacity() {
        let more = list.capacity().max(MIN_ROOM).min(most - list.len());
        reserve(more * size_of::<T>()).map_err(Stop::Budget)?;
        list.reserve_exact(more);
    }
    Ok(())
}

fn not_json(problem: &str, at: usize) -> BatchError {
    BatchError::NotJson { problem: problem.to_owned(), at }
}

/// What is kept of an object while it is read: its `id` as it stands there, and how many there are.
#[derive(Default)]
struct Record<'a> {
    id: Option<&'a str>,
    id_members: usize,
}

impl<'a> Record<'a> {
    fn id(&self) -> Result<Cow<'a, str>, Reason> {
        match (self.id, self.id_members) {
            (Some(id), 1) => read_id(id),
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
        while let Some(name) = members.next_key::<RawName>()? {
            if name.is_id() {
                record.id = Some(members.next_value::<&RawValue>()?.get());
                record.id_members += 1;
            } else {
                members.next_value::<IgnoredAny>()?;
            }
        }
        Ok(record)
    }
}

/// A name as it stands in the body, in quotes and perhaps with escapes.
#[derive(serde::Deserialize)]
#[serde(transparent)]
struct RawName<'a>(#[serde(borrow)] &'a RawValue);

impl RawName<'_> {
    fn is_id(&self) -> bool {
        let raw = self.0.get();
        raw == "\"id\""
            || (raw.len() <= "\"\"".len() + SPELLED * "id".len()
                && raw.contains('\\')
                && serde_json::from_str::<Cow<'_, str>>(raw).is_ok_and(|name| name == "id"))
    }
}

/// Takes an id from the JSON text of its value.
fn read_id(raw: &str) -> Result<Cow<'_, str>, Reason> {
    let id = match raw.as_bytes() {
        [b'"', inner @ .., b'"'] if !inner.contains(&b'\\') => Cow::Borrowed(&raw[1..raw.len() - 1]),
        [b'"', inner @ .., b'"'] if inner.len() > SPELLED * MAX_ID_BYTES => return Err(Reason::TooLong),
        // The escapes were checked when the value was read; what can still be wrong is a surrogate.
        [b'"', ..] => Cow::Owned(serde_json::from_str(raw).map_err(|_| Reason::LoneSurrogate)?),
        [b'-' | b'0'..=b'9', rest @ ..] if rest.iter().all(u8::is_ascii_digit) => Cow::Borrowed(raw),
        _ => return Err(Reason::WrongType),
    };
    check_id(&id)?;
    Ok(id)
}
