//! Waiting that goes on when the process was stopped and continued.
//!
//! Ctrl-Z and `fg`, a debugger, a paused container, a machine that sleeps: each thread that waits in `epoll_wait` then gets EINTR,
//! though no signal is handled (signal(7), "Interruption of system calls and library functions by stop signals"). mio hands it
//! on, and the two threads of RustDDS 0.15.1 take it for the end of their sockets: they leave, and the participant neither hears
//! nor says anything any more. Neither can be told otherwise. So EINTR is kept from them: the program has an `epoll_wait` of its own,
//! which the linker prefers to the C library's.
//!
//! Nothing in this process wants to be interrupted: SIGINT and SIGTERM are blocked and waited for by a thread of their own
//! (`cli::interrupt`).
//!
//! Only with glibc. musl keeps all of epoll in one object, which cannot be linked beside this; what is left there is to notice the
//! end ([`super::threads`]).

#![expect(unsafe_code, reason = "a C function is replaced, by the linker")]

use std::ffi::c_int;
use std::ptr;
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::libc::{epoll_event, epoll_pwait};

/// Has this file linked: of a library the linker takes only what somebody names before the C library has it.
pub(super) fn take_over() {
    let replacement: unsafe extern "C" fn(c_int, *mut epoll_event, c_int, c_int) -> c_int = epoll_wait;
    std::hint::black_box(replacement);
}

/// As epoll_wait(2), but for EINTR: waits for the rest of the time instead.
///
/// # Safety
/// `events` has room for `max_events`.
// SAFETY: signature and meaning are those of the function it replaces, for all that is linked into the program.
#[unsafe(no_mangle)]
unsafe extern "C" fn epoll_wait(
    epoll: c_int,
    events: *mut epoll_event,
    max_events: c_int,
    timeout_ms: c_int,
) -> c_int {
    // A negative one is for ever.
    let timeout = u64::try_from(timeout_ms).ok().map(Duration::from_millis);
    let end = timeout.and_then(|timeout| Instant::now().checked_add(timeout));
    let mut left_ms = timeout_ms;
    loop {
        // SAFETY: as the caller promises. Without a signal mask it is what the C library's `epoll_wait` does.
        let num_events = unsafe { epoll_pwait(epoll, events, max_events, left_ms, ptr::null()) };
        if num_events >= 0 || Errno::last() != Errno::EINTR {
            return num_events;
        }
        if let Some(end) = end {
            left_ms = whole_ms(end.saturating_duration_since(Instant::now()));
        }
    }
}

/// Rounded up: nobody is woken before the time.
fn whole_ms(left: Duration) -> c_int {
    c_int::try_from(left.as_nanos().div_ceil(1_000_000)).unwrap_or(c_int::MAX)
}
