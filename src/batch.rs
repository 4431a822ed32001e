//! Turns the bytes of a body into the ids of a batch. Knows no HTTP and does no I/O.
//!
//! One pass, and nothing is kept of a record but its id: other members are skipped without recursion and without
//! allocation, at any depth. A bad item is counted and left out; only a body that is not JSON, or neither an array nor an
//! object, is refused as a whole.

mod reader;
mod scan;

use std::{convert::Infallible, fmt, ops::Range};

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
    /// All of them.
    pub const ALL: [Self; 8] = [
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
        if self.keeps_more() {
            self.places.push((reason, place));
        }
    }

    fn keeps_more(&self) -> bool {
        self.places.len() < MAX_REJECTED_PLACES
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

impl BatchError {
    /// Codes of all of them.
    pub const CODES: [&str; 3] = ["body_empty", "neither_array_nor_object", "not_json"];

    /// Machine-readable name, for answers, dead letters and metrics.
    #[must_use]
    pub const fn code(&self) -> &'static str {
        let [empty, neither, not_json] = Self::CODES;
        match self {
            Self::Empty => empty,
            Self::NeitherArrayNorObject => neither,
            Self::NotJson { .. } => not_json,
        }
    }
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
        let Ok(batch) = Self::parse_within(body, |_bytes| Ok::<_, Infallible>(()));
        batch
    }

    /// The same within a budget: asks `reserve` for all memory that grows with the body. Before taking it, but for the
    /// table of ids, whose size is known once it is there. When this returns, only [`Batch::allocated_bytes`] of it are
    /// still in use.
    ///
    /// # Errors
    /// What `reserve` says. Nothing of the body may be claimed then.
    ///
    /// # Panics
    /// If the body has 4 GiB or more; the limit on bodies lies far below.
    pub fn parse_within<E>(
        body: &[u8],
        reserve: impl FnMut(usize) -> Result<(), E>,
    ) -> Result<Result<Self, BatchError>, E> {
        assert!(u32::try_from(body.len()).is_ok(), "a body is limited to less than 4 GiB");
        reader::read(body, reserve)
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

/// What every id keeps to.
fn check_id(id: &str) -> Result<(), Reason> {
    match id.len() {
        0 => Err(Reason::Empty),
        length if length > MAX_ID_BYTES => Err(Reason::TooLong),
        _ if id.chars().any(char::is_control) => Err(Reason::ControlCharacter),
        _ => Ok(()),
    }
}
