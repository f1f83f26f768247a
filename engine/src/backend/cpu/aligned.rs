//! Zeroed memory that starts on a cache line.
#![expect(unsafe_code, reason = "viewing cache lines as plain numbers")]

use std::{marker::PhantomData, mem, slice};

/// One cache line of x86 and of the Arm cores we run on; also the widest vector.
pub(crate) const LINE_BYTES: usize = 64;

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
#[derive(Debug, Clone)]
pub(crate) struct AlignedVec<T> {
    lines: Vec<Line>,
    len: usize,
    values: PhantomData<T>,
}

impl<T: Plain> AlignedVec<T> {
    /// `len` zeros; sizes come from validated shapes, so the product of `len` and `size_of::<T>()` fits memory or the
    /// allocation fails as any allocation does.
    pub(crate) fn zeroed(len: usize) -> Self {
        let num_lines = (len * mem::size_of::<T>()).div_ceil(LINE_BYTES);
        Self { lines: vec![Line([0; LINE_BYTES]); num_lines], len, values: PhantomData }
    }

    pub(crate) fn as_slice(&self) -> &[T] {
        // SAFETY: `lines` holds at least `len` values of `T`; `T` is `Plain`, so any bytes are values, and its alignment divides 64.
        unsafe { slice::from_raw_parts(self.lines.as_ptr().cast(), self.len) }
    }

    pub(crate) fn as_mut_slice(&mut self) -> &mut [T] {
        // SAFETY: as in `as_slice`; the borrow is unique.
        unsafe { slice::from_raw_parts_mut(self.lines.as_mut_ptr().cast(), self.len) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn memory_is_zeroed_aligned_and_exactly_as_long_as_asked() {
        for len in [0, 1, 15, 16, 17, 1000] {
            let mut values = AlignedVec::<f32>::zeroed(len);
            assert!(values.as_slice().iter().all(|&v| v == 0.0));
            assert_eq!(values.as_slice().len(), len);
            assert_eq!(values.as_mut_slice().as_ptr().addr() % LINE_BYTES, 0);
        }
    }
}
