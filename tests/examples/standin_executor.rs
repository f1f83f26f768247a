//! The interpreter of exported models as a library with one function, for programs that a test starts: the stand-in of `libnvinfer` finds it by
//! `STANDIN_EXECUTOR=target/debug/examples/libstandin_executor.so`.

#![expect(unsafe_code, reason = "called from C")]

use std::{
    ffi::{c_char, c_void},
    ptr,
    sync::LazyLock,
};

use takt_tests::onnx_run::executor::{Executor, StandinModel, StandinTensor};

static EXECUTOR: LazyLock<Executor> = LazyLock::new(Executor::default);

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
    let executor = ptr::from_ref(&*EXECUTOR).cast_mut().cast();
    // SAFETY: the caller's promise; the executor lives as long as the library.
    unsafe { Executor::FUNCTION(executor, model, tensors, num_tensors, error, error_len) }
}
