//! Zeroed memory that starts on a cache line.
#![expect(unsafe_code, reason = "viewing cache lines as plain numbers")]

use std::{marker::PhantomData, mem, slice};

/// One cache line of x86 and of the Arm cores we run on; also the widest vector.
pub(crate) const LINE_BYTES: usize = 64;

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
///
/// The allocator is asked for zeroed bytes, not for lines that are then zeroed: what comes fresh from the system is zero already.
#[derive(Debug)]
pub(crate) struct AlignedVec<T> {
    /// A line more than the values take, less a byte.
    bytes: Vec<u8>,
    /// Of the values in `bytes`.
    start: usize,
    len: usize,
    values: PhantomData<T>,
}

impl<T: Plain> AlignedVec<T> {
    /// `len` zeros; sizes come from validated shapes, so the product of `len` and `size_of::<T>()` fits memory or the
    /// allocation fails as any allocation does.
    pub(crate) fn zeroed(len: usize) -> Self {
        if len == 0 {
            // A step leaves empty values behind where it takes a buffer away for a moment, and must not allocate.
            return Self { bytes: Vec::new(), start: 0, len, values: PhantomData };
        }
        let num_bytes =
            len.checked_mul(mem::size_of::<T>()).and_then(|bytes| bytes.checked_add(LINE_BYTES - 1));
        // Too much is refused by the allocator, as any amount it has not.
        let bytes = vec![0; num_bytes.unwrap_or(usize::MAX)];
        let start = bytes.as_ptr().addr().next_multiple_of(LINE_BYTES) - bytes.as_ptr().addr();
        Self { bytes, start, len, values: PhantomData }
    }

    pub(crate) fn as_slice(&self) -> &[T] {
        if self.len == 0 {
            return &[];
        }
        // SAFETY: from `start` on, at a multiple of 64, `bytes` (never reallocated) holds `len` values of `T`; `T` is `Plain`, so any bytes are
        // values, and its alignment divides 64.
        unsafe { slice::from_raw_parts(self.bytes.as_ptr().add(self.start).cast(), self.len) }
    }

    pub(crate) fn as_mut_slice(&mut self) -> &mut [T] {
        if self.len == 0 {
            return &mut [];
        }
        // SAFETY: as in `as_slice`; the borrow is unique.
        unsafe { slice::from_raw_parts_mut(self.bytes.as_mut_ptr().add(self.start).cast(), self.len) }
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
        assert!(AlignedVec::<f32>::zeroed(0).as_slice().is_empty());
        for len in [1, 15, 16, 17, 1000] {
            let mut values = AlignedVec::<f32>::zeroed(len);
            assert!(values.as_slice().iter().all(|&v| v == 0.0));
            assert_eq!(values.as_slice().len(), len);
            assert_eq!(values.as_mut_slice().as_ptr().addr() % LINE_BYTES, 0);
            values.as_mut_slice().fill(1.0);
            let copy = values.clone();
            assert_eq!(copy.as_slice(), values.as_slice());
            assert_eq!(copy.as_slice().as_ptr().addr() % LINE_BYTES, 0);
        }
    }
}
