//! One buffer whose parts several tasks write at the same time.
#![expect(
    unsafe_code,
    reason = "tasks of one job write different parts of one buffer, which a shared closure cannot express"
)]

use std::{marker::PhantomData, slice};

/// A mutable buffer shared by the tasks of one job, each of which writes parts that no other task touches.
#[derive(Debug)]
pub(crate) struct Disjoint<'a, T> {
    start: *mut T,
    len: usize,
    buffer: PhantomData<&'a mut [T]>,
}

// SAFETY: it stands for a unique borrow of `[T]`; `part` hands out pieces that its callers keep disjoint.
unsafe impl<T: Send> Sync for Disjoint<'_, T> {}

impl<'a, T> Disjoint<'a, T> {
    pub(crate) fn new(buffer: &'a mut [T]) -> Self {
        Self { start: buffer.as_mut_ptr(), len: buffer.len(), buffer: PhantomData }
    }

    /// `[first, first + len)`.
    ///
    /// # Safety
    /// No two parts that live at the same time may overlap.
    ///
    /// # Panics
    /// When the part is not inside the buffer.
    #[expect(clippy::mut_from_ref, reason = "the safety contract keeps the parts apart")]
    pub(crate) unsafe fn part(&self, first: usize, len: usize) -> &mut [T] {
        assert!(first <= self.len && len <= self.len - first, "part [{first}, +{len}) of {}", self.len);
        // SAFETY: inside the buffer by the check above, and not aliased by the caller's promise.
        unsafe { slice::from_raw_parts_mut(self.start.add(first), len) }
    }
}
