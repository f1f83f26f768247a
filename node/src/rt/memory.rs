//! Page faults happen before the first request, not in it.
//!
//! What is touched when: `mlockall` makes resident what is mapped and what will be, the stacks of all threads included; the worker's stack is
//! touched without it too; weights, KV rows and the arena of a section are touched by the costs being measured when the engine is opened
//! (rows of long contexts, which that does not reach, only by `lock_memory`); the heap keeps what it has once got.

use std::{fs, hint::black_box, path::Path};

use nix::sys::{
    mman::{MlockAllFlags, mlockall},
    resource::{RLIM_INFINITY, Resource, getrlimit},
};

use super::capabilities;

/// Part of a thread's stack that is touched; threads have 2 MiB.
const STACK_BYTES: usize = 512 << 10;
/// Heap that the worker finds resident: a request's tokens, masks and texts are well below a MiB.
const HEAP_BYTES: usize = 8 << 20;

/// How much memory this process may lock.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LockLimit {
    /// All it ever gets.
    None,
    /// So many bytes.
    Bytes(u64),
}

impl LockLimit {
    /// As the kernel says; nothing where it does not.
    #[must_use]
    pub fn of_this_process() -> Self {
        let read = |name: &str| fs::read_to_string(Path::new("/proc/self").join(name));
        let holds_capability = read("status").is_ok_and(|status| capabilities::holds(&status, capabilities::IPC_LOCK))
                // No such file: a kernel without user namespaces.
                && read("uid_map").map_or(true, |map| capabilities::is_of_the_machine(&map));
        let soft = getrlimit(Resource::RLIMIT_MEMLOCK).map_or(0, |(soft, _)| soft);
        Self::of(soft, holds_capability)
    }

    fn of(soft_limit: u64, holds_capability: bool) -> Self {
        if holds_capability || soft_limit == RLIM_INFINITY { Self::None } else { Self::Bytes(soft_limit) }
    }

    /// Why locking all memory must not even be tried. Below a limit it may succeed, because little is mapped yet: mlockall(2) then lets later
    /// allocations fail, and the process dies of the first.
    ///
    /// # Errors
    /// The limit, with its effect.
    fn check(self) -> Result<(), String> {
        match self {
            Self::None => Ok(()),
            Self::Bytes(bytes) => Err(format!(
                "the memlock limit is {} KiB, and what is needed beyond it would not be got at all",
                bytes / 1024
            )),
        }
    }
}

/// Keeps all memory of this process resident, now and from now on.
///
/// # Errors
/// A limit, or what the kernel says.
pub fn lock_all() -> Result<(), String> {
    LockLimit::of_this_process().check()?;
    mlockall(MlockAllFlags::MCL_CURRENT | MlockAllFlags::MCL_FUTURE).map_err(|errno| errno.to_string())
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

    #[test]
    fn memory_is_locked_without_a_limit_or_with_the_capability_and_never_below_a_limit() {
        for (soft_limit, holds_capability, expected) in [
            (RLIM_INFINITY, false, LockLimit::None),
            (8 << 20, true, LockLimit::None),
            (0, false, LockLimit::Bytes(0)),
            (8 << 20, false, LockLimit::Bytes(8 << 20)),
            // More than what is mapped at first, less than an engine; or more than any engine: the kernel counts reserved addresses.
            (8 << 30, false, LockLimit::Bytes(8 << 30)),
        ] {
            assert_eq!(LockLimit::of(soft_limit, holds_capability), expected);
        }
        assert_eq!(LockLimit::None.check(), Ok(()));
        let reason = LockLimit::Bytes(8 << 20).check().unwrap_err();
        assert!(reason.contains("the memlock limit is 8192 KiB"), "{reason}");
    }

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
