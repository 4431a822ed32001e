//! Turns the bytes of a body into the ids of a batch. Knows no HTTP and does no I/O.
//!
//! One pass, and nothing is kept of a record but its id: other members are skipped by `serde_json` without
//! recursion and without allocation, at any depth. A bad item is counted and left out; only a body that
//! is not JSON, or neither an array nor an object, is refused as a whole.

use std::{
    borrow::Cow,
    fmt,
    hash::{BuildHasher, RandomState},
    ops::Range,
};

use hashbrown::HashTable;
use serde::de::{Deserialize, Deserializer, IgnoredAny, MapAccess, Visitor};
use serde_json::value::RawValue;

/// Most bytes of an id.
pub const MAX_ID_BYTES: usize = 255;

/// The id of an entity: 1 to [`MAX_ID_BYTES`] bytes without control characters.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct EntityId<'a>(&'a str);

impl<'a> EntityId<'a> {
    /// Takes text that was an id before, such as the name of an entry in the outbox.
    #[must_use]
    pub fn parse(text: &'a str) -> Option<Self> {
        check_id(text).is_ok().then_some(Self(text))
    }

    /// The id as it stands in the pending SET.
    #[must_use]
    pub const fn as_str(self) -> &'a str {
        self.0
    }
}

/// For people and logs: characters that a terminal would act on (direction marks, odd separators) are
/// escaped, everything else stands as it is.
impl fmt::Display for EntityId<'_> {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        use fmt::Write;
        for c in self.0.chars() {
            match c {
                '"' | '\'' | '\\' => out.write_char(c)?,
                _ => write!(out, "{}", c.escape_debug())?,
            }
        }
        Ok(())
    }
}

/// Why an item of a batch has no usable id.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Reason {
    /// The item is a number, a string, a list, `null`, …
    NotAnObject,
    /// The object has no member `id`.
    NoId,
    /// The object has more than one member `id`.
    DuplicateId,
    /// The id is neither a string nor an integer.
    WrongType,
    /// The id is the empty string.
    Empty,
    /// The id has more than [`MAX_ID_BYTES`] bytes.
    TooLong,
    /// The id holds a control character, or bytes that are not UTF-8.
    ControlCharacter,
    /// The id holds half of a surrogate pair.
    LoneSurrogate,
}

impl Reason {
    const ALL: [Self; 8] = [
        Self::NotAnObject,
        Self::NoId,
        Self::DuplicateId,
        Self::WrongType,
        Self::Empty,
        Self::TooLong,
        Self::ControlCharacter,
        Self::LoneSurrogate,
    ];

    /// Machine-readable name, for logs and metrics.
    #[must_use]
    pub const fn code(self) -> &'static str {
        match self {
            Self::NotAnObject => "not_an_object",
            Self::NoId => "no_id",
            Self::DuplicateId => "duplicate_id_member",
            Self::WrongType => "id_neither_string_nor_integer",
            Self::Empty => "id_empty",
            Self::TooLong => "id_too_long",
            Self::ControlCharacter => "id_control_character",
            Self::LoneSurrogate => "id_lone_surrogate",
        }
    }
}

/// Rejected items whose place in the body is kept.
pub const MAX_REJECTED_PLACES: usize = 10_000;

/// How many items of a batch were rejected, and why; and where the first of them stand in the body. A tally,
/// so that a flood of bad items takes no memory.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Rejected {
    tally: [usize; Reason::ALL.len()],
    places: Vec<(Reason, Range<usize>)>,
}

impl Rejected {
    fn add(&mut self, reason: Reason, place: Range<usize>) {
        self.tally[reason as usize] += 1;
        if self.places.len() < MAX_REJECTED_PLACES {
            self.places.push((reason, place));
        }
    }

    /// Items rejected in all.
    #[must_use]
    pub fn count(&self) -> usize {
        self.tally.iter().sum()
    }

    /// Where the first [`MAX_REJECTED_PLACES`] of them stand in the body, in bytes.
    #[must_use]
    pub fn places(&self) -> &[(Reason, Range<usize>)] {
        &self.places
    }

    /// The reasons that occurred, with their numbers.
    pub fn by_reason(&self) -> impl Iterator<Item = (Reason, usize)> + '_ {
        Reason::ALL.into_iter().zip(self.tally).filter(|(_, count)| *count > 0)
    }
}

impl fmt::Display for Rejected {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (index, (reason, count)) in self.by_reason().enumerate() {
            write!(out, "{}{}={count}", if index == 0 { "" } else { " " }, reason.code())?;
        }
        Ok(())
    }
}

/// Why a body as a whole can never be processed.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum BatchError {
    /// No bytes, or nothing but blanks.
    #[error("the body is empty; send a JSON array of objects with an \"id\"")]
    Empty,
    /// The document is a string, a number, `true`, `null`, …
    #[error("the body is neither a JSON array nor an object; send an array of objects with an \"id\"")]
    NeitherArrayNorObject,
    /// The bytes are not one JSON document.
    #[error("the body is not JSON: {problem} at byte {at}; nothing of it was processed")]
    NotJson {
        /// What the parser expected.
        problem: String,
        /// Offset of the item in which, or of the byte at which, reading stopped.
        at: usize,
    },
}

/// The distinct ids of a body, in the order in which they first appear.
///
/// They lie in one buffer: a body of the smallest possible items costs a small multiple of its own size.
#[derive(Debug, Clone, Default)]
pub struct Batch {
    text: String,
    ends: Vec<u32>,
    rejected: Rejected,
}

impl Batch {
    /// Reads a body: an array of objects with an `id`, or one such object.
    ///
    /// # Errors
    /// [`BatchError`] if the body can never be processed. Nothing of it may be claimed then.
    ///
    /// # Panics
    /// If the body has 4 GiB or more; the limit on bodies lies far below.
    pub fn parse(body: &[u8]) -> Result<Self, BatchError> {
        assert!(u32::try_from(body.len()).is_ok(), "a body is limited to less than 4 GiB");
        let text = mask_invalid_utf8(body);
        Reader { text: &text, at: 0, seen: HashTable::new(), hasher: RandomState::new(), batch: Self::default() }.read()
    }

    /// Number of distinct valid ids.
    #[must_use]
    pub fn len(&self) -> usize {
        self.ends.len()
    }

    /// Whether there is no valid id.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.ends.is_empty()
    }

    /// The id at a place.
    ///
    /// # Panics
    /// If `index` is not below [`Batch::len`].
    #[must_use]
    pub fn id(&self, index: usize) -> EntityId<'_> {
        EntityId(slice(&self.text, &self.ends, index))
    }

    /// The ids in the order in which they first appear.
    #[must_use]
    pub fn ids(&self) -> impl ExactSizeIterator<Item = EntityId<'_>> {
        (0..self.len()).map(|index| self.id(index))
    }

    /// Memory that the batch keeps.
    #[must_use]
    pub fn allocated_bytes(&self) -> usize {
        self.text.capacity()
            + self.ends.capacity() * size_of::<u32>()
            + self.rejected.places.capacity() * size_of::<(Reason, Range<usize>)>()
    }

    /// The items that were left out.
    #[must_use]
    pub const fn rejected(&self) -> &Rejected {
        &self.rejected
    }
}

/// The text between two ends.
fn slice<'a>(text: &'a str, ends: &[u32], index: usize) -> &'a str {
    let start = index.checked_sub(1).map_or(0, |before| ends[before]);
    &text[start as usize..ends[index] as usize]
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

/// What every id keeps to.
fn check_id(id: &str) -> Result<(), Reason> {
    match id.len() {
        0 => Err(Reason::Empty),
        length if length > MAX_ID_BYTES => Err(Reason::TooLong),
        _ if id.chars().any(char::is_control) => Err(Reason::ControlCharacter),
        _ => Ok(()),
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
