//! Page faults happen before the first request, not in it.
//!
//! What is touched when: `mlockall` makes resident what is mapped and what will be, the stacks of all threads included; the worker's stack is
//! touched without it too; weights, KV rows and the arena of a section are touched by the costs being measured when the engine is opened
//! (rows of long contexts, which that does not reach, only by `lock_memory`); the heap keeps what it has once got.

use std::hint::black_box;

use nix::{
    errno::Errno,
    sys::mman::{MlockAllFlags, mlockall},
};

/// Part of a thread's stack that is touched; threads have 2 MiB.
const STACK_BYTES: usize = 512 << 10;
/// Heap that the worker finds resident: a request's tokens, masks and texts are well below a MiB.
const HEAP_BYTES: usize = 8 << 20;

/// Keeps all memory of this process resident, now and from now on.
///
/// # Errors
/// What the kernel says: `EPERM` or `ENOMEM` without the right to, or beyond the limit.
pub fn lock_all() -> Result<(), Errno> {
    mlockall(MlockAllFlags::MCL_CURRENT | MlockAllFlags::MCL_FUTURE)
}

/// Touches the pages of the calling thread's stack that it will use.
#[inline(never)]
pub fn touch_stack() {
    let mut pages = [0_u8; STACK_BYTES];
    black_box(&mut pages);
}

/// Gives back what opening an engine left on the heap, then makes the heap keep what it gets, with some of it resident in the calling
/// thread's arena: requests cause no page faults then. For processes whose memory is locked.
pub fn settle_heap() {
    keep_heap();
    let mut pages = vec![1_u8; HEAP_BYTES];
    black_box(&mut pages);
}

#[cfg(target_env = "gnu")]
fn keep_heap() {
    use nix::libc;
    /// Larger blocks are mapped for themselves and given back: glibc's own bound of what a thread's arena can hold.
    const LARGEST_KEPT: libc::c_int = 32 << 20;
    // SAFETY: both take numbers, may be called at any time and are thread-safe; -1 is "never trim".
    unsafe {
        libc::malloc_trim(0);
        libc::mallopt(libc::M_MMAP_THRESHOLD, LARGEST_KEPT);
        libc::mallopt(libc::M_TRIM_THRESHOLD, -1);
    }
}

/// Other allocators cannot be told.
#[cfg(not(target_env = "gnu"))]
fn keep_heap() {}

#[cfg(test)]
mod tests {
    use super::*;

    #[cfg(all(target_env = "gnu", target_os = "linux"))]
    #[test]
    fn a_settled_heap_serves_requests_without_page_faults() {
        use nix::sys::resource::{UsageWho, getrusage};
        let faults = || getrusage(UsageWho::RUSAGE_THREAD).unwrap().minor_page_faults();
        std::thread::spawn(move || {
            touch_stack();
            settle_heap();
            // Blocks of a request: some small, one that malloc would otherwise map and give back each time.
            let work = || {
                let blocks: Vec<Vec<u8>> = (1..64).map(|i| vec![1_u8; i * 256]).collect();
                black_box((blocks, vec![1_u8; 1 << 20]));
            };
            work();
            let before = faults();
            (0..100).for_each(|_| work());
            assert!(faults() - before < 10, "{} page faults", faults() - before);
        })
        .join()
        .unwrap();
    }
}
