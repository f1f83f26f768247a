//! Zeroed memory that starts on a cache line.
#![expect(unsafe_code, reason = "viewing cache lines as plain numbers")]

use std::{marker::PhantomData, mem, slice};

use memmap2::{MmapMut, MmapOptions};

/// One cache line of x86 and of the Arm cores we run on; also the widest vector.
pub(crate) const LINE_BYTES: usize = 64;

/// From here on memory comes from the system by itself, all its pages at once and zeroed by it: a fault a page and zeros written twice were a
/// fifth of a large model's packing (2026-11-22).
const MAPPED_BYTES: usize = 1 << 20;

#[derive(Debug, Clone, Copy)]
#[repr(C, align(64))]
struct Line([u8; LINE_BYTES]);

/// A plain number, or several: any bit pattern is a value, no padding, aligned to at most a line.
///
/// # Safety
/// Implement only for such types.
pub(crate) unsafe trait Plain: Copy {}
// SAFETY: plain numbers.
unsafe impl Plain for u8 {}
// SAFETY: plain numbers.
unsafe impl Plain for f32 {}

/// `len` zeroed values of `T`, starting at a multiple of 64 bytes.
#[derive(Debug)]
pub(crate) struct AlignedVec<T> {
    memory: Memory,
    len: usize,
    values: PhantomData<T>,
}

#[derive(Debug)]
enum Memory {
    Lines(Vec<Line>),
    /// Starts at a page.
    Mapped(MmapMut),
}

impl<T: Plain> AlignedVec<T> {
    /// `len` zeros; sizes come from validated shapes, so the product of `len` and `size_of::<T>()` fits memory or the
    /// allocation fails as any allocation does.
    pub(crate) fn zeroed(len: usize) -> Self {
        let num_bytes = len * mem::size_of::<T>();
        let mapped =
            (num_bytes >= MAPPED_BYTES).then(|| MmapOptions::new().len(num_bytes).populate().map_anon());
        let memory = match mapped {
            Some(Ok(map)) => Memory::Mapped(map),
            // Where the system gives no mapping, the allocator has the last word.
            _ => Memory::Lines(vec![Line([0; LINE_BYTES]); num_bytes.div_ceil(LINE_BYTES)]),
        };
        Self { memory, len, values: PhantomData }
    }

    pub(crate) fn as_slice(&self) -> &[T] {
        let start = match &self.memory {
            Memory::Lines(lines) => lines.as_ptr().cast(),
            Memory::Mapped(map) => map.as_ptr().cast(),
        };
        // SAFETY: the memory holds at least `len` values of `T`; `T` is `Plain`, so any bytes are values, and its alignment divides 64, at a
        // multiple of which lines and pages start.
        unsafe { slice::from_raw_parts(start, self.len) }
    }

    pub(crate) fn as_mut_slice(&mut self) -> &mut [T] {
        let start = match &mut self.memory {
            Memory::Lines(lines) => lines.as_mut_ptr().cast(),
            Memory::Mapped(map) => map.as_mut_ptr().cast(),
        };
        // SAFETY: as in `as_slice`; the borrow is unique.
        unsafe { slice::from_raw_parts_mut(start, self.len) }
    }
}

impl<T: Plain> Clone for AlignedVec<T> {
    fn clone(&self) -> Self {
        let mut copy = Self::zeroed(self.len);
        copy.as_mut_slice().copy_from_slice(self.as_slice());
        copy
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn memory_is_zeroed_aligned_and_exactly_as_long_as_asked() {
        for len in [0, 1, 15, 16, 17, 1000, MAPPED_BYTES / 4 - 1, MAPPED_BYTES / 4, MAPPED_BYTES + 1] {
            let mut values = AlignedVec::<f32>::zeroed(len);
            assert!(values.as_slice().iter().all(|&v| v == 0.0));
            assert_eq!(values.as_slice().len(), len);
            assert_eq!(values.as_mut_slice().as_ptr().addr() % LINE_BYTES, 0);
            values.as_mut_slice().iter_mut().for_each(|value| *value = 2.0);
            assert_eq!(values.clone().as_slice(), values.as_slice());
        }
    }
}
