//! An allocator that counts, for tests of what must not allocate.
#![expect(unsafe_code, reason = "a global allocator is unsafe to implement")]

use std::{
    alloc::{GlobalAlloc, Layout, System},
    sync::atomic::{AtomicUsize, Ordering},
};

static NUM_ALLOCATIONS: AtomicUsize = AtomicUsize::new(0);

/// The system's allocator, counting every allocation of every thread. A test binary that uses it holds one test only.
#[derive(Debug)]
pub struct CountingAllocator;

/// Allocations of this process so far.
#[must_use]
pub fn num_allocations() -> usize {
    NUM_ALLOCATIONS.load(Ordering::SeqCst)
}

// SAFETY: every call goes to the system's allocator unchanged.
unsafe impl GlobalAlloc for CountingAllocator {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        NUM_ALLOCATIONS.fetch_add(1, Ordering::SeqCst);
        // SAFETY: the caller's promises are passed on.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, ptr: *mut u8, layout: Layout) {
        // SAFETY: the caller's promises are passed on.
        unsafe { System.dealloc(ptr, layout) }
    }
}
