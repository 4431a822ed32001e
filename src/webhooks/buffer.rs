//! Gathers a body's bytes in one contiguous buffer, and takes its memory from the budget as it grows.
//!
//! A small body is on the heap. A large one has a memory mapping of its own: untouched pages take no memory, growing
//! copies nothing, and dropping it returns everything to the system. On the heap, a thousand growing bodies fragmented
//! the memory and took twice the limit.

use bytes::Bytes;
use memmap2::{MmapMut, MmapOptions};

use crate::admission::{AdmissionError, Allowance};

/// Bytes up to which a body is on the heap; a larger one gets a mapping. `EspoCRM` sends 50 records at most, about 30 KB.
const MAX_ON_HEAP: usize = 64 * 1024;
/// Bytes of a mapping that are taken from the budget at once. A multiple of every page size in use.
const RESERVED_AT_ONCE: usize = 64 * 1024;

/// A body that is still being received.
pub(super) struct Buffer {
    bytes: Storage,
    /// Most bytes of the body.
    most: usize,
}

enum Storage {
    Heap(Vec<u8>),
    Pages(Pages),
}

/// Bytes in a mapping. Those beyond `length` were never touched.
struct Pages {
    map: MmapMut,
    length: usize,
    /// Bytes taken from the budget.
    reserved: usize,
}

impl AsRef<[u8]> for Pages {
    fn as_ref(&self) -> &[u8] {
        &self.map[..self.length]
    }
}

impl Buffer {
    /// An empty body of at most `most` bytes. Takes no memory yet: a sender can announce any length.
    pub(super) const fn new(most: usize) -> Self {
        Self { bytes: Storage::Heap(Vec::new()), most }
    }

    /// Bytes received so far.
    pub(super) const fn len(&self) -> usize {
        match &self.bytes {
            Storage::Heap(bytes) => bytes.len(),
            Storage::Pages(pages) => pages.length,
        }
    }

    /// Most bytes the body can take on the heap, if it stays there with `more` bytes.
    pub(super) fn small_with(&self, more: usize) -> Option<usize> {
        (self.len() + more <= MAX_ON_HEAP).then(|| self.most.min(MAX_ON_HEAP))
    }

    /// Adds bytes, and takes their memory from the budget. The caller has checked the body's size. On an error the body
    /// is unchanged.
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
    /// Address space for `most` bytes; takes no memory yet.
    fn new(most: usize) -> std::io::Result<Self> {
        let map = MmapOptions::new().len(most).no_reserve_swap().map_anon()?;
        // With huge pages the first byte of a body could take 2 MiB.
        #[cfg(target_os = "linux")]
        map.advise(memmap2::Advice::NoHugePage).or_else(|error| match error.kind() {
            // This kernel has no huge pages.
            std::io::ErrorKind::InvalidInput => Ok(()),
            _ => Err(error),
        })?;
        Ok(Self { map, length: 0, reserved: 0 })
    }

    fn extend(&mut self, allowance: &mut Allowance, part: &[u8]) -> Result<(), AdmissionError> {
        let end = self.length + part.len();
        if end > self.reserved {
            let target = end.next_multiple_of(RESERVED_AT_ONCE).min(self.map.len());
            allowance.reserve_for_large(target - self.reserved)?;
            self.reserved = target;
        }
        self.map[self.length..end].copy_from_slice(part);
        self.length = end;
        Ok(())
    }
}
