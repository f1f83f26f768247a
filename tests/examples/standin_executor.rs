//! The interpreter of exported models as a library with one function, for programs that a test starts: the stand-in of `libnvinfer` finds it by
//! `STANDIN_EXECUTOR=target/debug/examples/libstandin_executor.so`. `STANDIN_EXECUTOR_FAIL=3` beside it has the third run fail.

#![expect(unsafe_code, reason = "called from C")]

use std::{
    env,
    ffi::{c_char, c_void},
    ptr,
    sync::{
        LazyLock,
        atomic::{AtomicUsize, Ordering},
    },
};

use takt_tests::onnx_run::executor::{Executor, StandinModel, StandinTensor};

static EXECUTOR: LazyLock<Executor> = LazyLock::new(Executor::default);
/// Runs so far, and which of them fails; 0: none.
static NUM_RUNS: AtomicUsize = AtomicUsize::new(0);
static FAILING: LazyLock<usize> = LazyLock::new(|| {
    let number = env::var("STANDIN_EXECUTOR_FAIL").unwrap_or_default();
    number.parse().unwrap_or(0)
});

/// `standin_execute`, without a `user`.
///
/// # Safety
/// As `executor.h` says.
// SAFETY: no other library of a test has a function of this name.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn standin_executor(
    _user: *mut c_void,
    model: *const StandinModel,
    tensors: *const StandinTensor,
    num_tensors: i32,
    error: *mut c_char,
    error_len: i32,
) -> i32 {
    if NUM_RUNS.fetch_add(1, Ordering::Relaxed) + 1 == *FAILING {
        let said = c"this run was to fail".to_bytes_with_nul();
        if usize::try_from(error_len).is_ok_and(|room| room >= said.len()) {
            // SAFETY: there is room for `error_len` characters.
            unsafe { error.cast::<u8>().copy_from_nonoverlapping(said.as_ptr(), said.len()) };
        }
        return 1;
    }
    let executor = ptr::from_ref(&*EXECUTOR).cast_mut().cast();
    // SAFETY: the caller's promise; the executor lives as long as the library.
    unsafe { Executor::FUNCTION(executor, model, tensors, num_tensors, error, error_len) }
}
