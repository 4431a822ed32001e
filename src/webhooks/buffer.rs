//! The bytes of a body in one piece, in no more memory than they take.
//!
//! A small body lies on the heap. A large one gets pages of its own from the system: pages without bytes take no memory,
//! growing copies nothing, and all of it goes back at once. On the heap a thousand growing bodies left holes that
//! no body fits into, which took twice the limit.

use bytes::Bytes;
use memmap2::{MmapMut, MmapOptions};

use crate::admission::{AdmissionError, Allowance};

/// Bodies up to here lie on the heap. `EspoCRM` sends 50 records at most, about 30 KB.
const MAX_ON_HEAP: usize = 64 * 1024;
/// How much of a mapping is taken from the budget at once. A multiple of every page size in use.
const STEP: usize = 64 * 1024;

/// A body of which more may come.
pub(super) struct Buffer {
    bytes: Storage,
    /// Most bytes it may get.
    most: usize,
}

enum Storage {
    Heap(Vec<u8>),
    Pages(Pages),
}

/// Bytes in pages of their own; those beyond `length` were never touched.
struct Pages {
    map: MmapMut,
    length: usize,
    reserved: usize,
}

impl AsRef<[u8]> for Pages {
    fn as_ref(&self) -> &[u8] {
        &self.map[..self.length]
    }
}

impl Buffer {
    /// An empty body, which gets at most `most` bytes. What is only announced takes no memory.
    pub(super) const fn new(most: usize) -> Self {
        Self { bytes: Storage::Heap(Vec::new()), most }
    }

    /// Bytes that are here.
    pub(super) const fn len(&self) -> usize {
        match &self.bytes {
            Storage::Heap(bytes) => bytes.len(),
            Storage::Pages(pages) => pages.length,
        }
    }

    /// If it is still small with so many bytes more: most bytes that it takes.
    pub(super) fn small_with(&self, more: usize) -> Option<usize> {
        (self.len() + more <= MAX_ON_HEAP).then(|| self.most.min(MAX_ON_HEAP))
    }

    /// Adds bytes, and takes their memory from the budget. The caller has checked their number. An error leaves the body
    /// as it was.
    pub(super) fn extend(&mut self, allowance: &mut Allowance, part: &[u8]) -> Result<(), AdmissionError> {
        let needed = self.len() + part.len();
        if needed > MAX_ON_HEAP
            && let Storage::Heap(start) = &self.bytes
        {
            let mut pages = Pages::new(self.most.max(needed)).map_err(AdmissionError::NoMemory)?;
            pages.extend(allowance, start)?;
            allowance.release(start.capacity());
            self.bytes = Storage::Pages(pages);
        }
        match &mut self.bytes {
            Storage::Heap(bytes) => {
                let room = bytes.capacity();
                if needed > room {
                    let target = needed.max((2 * room).min(self.most));
                    allowance.reserve_for_anybody(target - room)?;
                    bytes.reserve_exact(target - bytes.len());
                }
                bytes.extend_from_slice(part);
                Ok(())
            }
            Storage::Pages(pages) => pages.extend(allowance, part),
        }
    }
}

impl From<Buffer> for Bytes {
    fn from(body: Buffer) -> Self {
        match body.bytes {
            Storage::Heap(bytes) => bytes.into(),
            Storage::Pages(pages) => Self::from_owner(pages),
        }
    }
}

impl Pages {
    /// Room for `most` bytes, none of it touched.
    fn new(most: usize) -> std::io::Result<Self> {
        let map = MmapOptions::new().len(most).no_reserve_swap().map_anon()?;
        // Else the first byte of a body could take a page of 2 MiB.
        #[cfg(target_os = "linux")]
        map.advise(memmap2::Advice::NoHugePage).or_else(|error| match error.kind() {
            // A kernel without huge pages does not know the word.
            std::io::ErrorKind::InvalidInput => Ok(()),
            _ => Err(error),
        })?;
        Ok(Self { map, length: 0, reserved: 0 })
    }

    fn extend(&mut self, allowance: &mut Allowance, part: &[u8]) -> Result<(), AdmissionError> {
        let end = self.length + part.len();
        if end > self.reserved {
            let target = end.next_multiple_of(STEP).min(self.map.len());
            allowance.reserve_for_large(target - self.reserved)?;
            self.reserved = target;
        }
        self.map[self.length..end].copy_from_slice(part);
        self.length = end;
        Ok(())
    }
}
