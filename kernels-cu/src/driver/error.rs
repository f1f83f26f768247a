//! What the driver answers, sorted by what a caller can do about it.

use std::ffi::CStr;

use cudarc::driver::sys::{self, CUresult};
use thiserror::Error;

use crate::CudaVersion;

/// Result of the driver layer.
pub type Result<T, E = DriverError> = std::result::Result<T, E>;

/// Why the driver did not do what it was asked.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum DriverError {
    /// The machine has no `libcuda`.
    #[error("no NVIDIA driver: libcuda.so.1 was not found; install the driver, or use the cpu backend")]
    NoDriver,
    /// There is a driver, but no device it can use.
    #[error("the NVIDIA driver finds no device ({0}); use the cpu backend")]
    NoDevice(String),
    /// The driver is older than the kernels' oldest compiler.
    #[error(
        "the NVIDIA driver supports CUDA {found}, expected {expected} or later: update the driver, or use the cpu backend"
    )]
    TooOld {
        /// The driver's.
        found: CudaVersion,
        /// The least we run on.
        expected: CudaVersion,
    },
    /// The driver's library lacks functions that its version should have.
    #[error(
        "libcuda.so.1 lacks {}: it is no driver's library, or a damaged one; install the driver anew, or use the cpu backend",
        missing.join(", ")
    )]
    Incomplete {
        /// What it lacks.
        missing: Vec<&'static str>,
    },
    /// An allocation failed.
    #[error("no device memory for {asked_bytes} bytes ({what}): {free_bytes} of {total_bytes} are free")]
    OutOfMemory {
        /// What it was for.
        what: &'static str,
        /// Bytes asked.
        asked_bytes: usize,
        /// Bytes free when it failed; 0 when the driver does not say.
        free_bytes: usize,
        /// Bytes the device has; 0 when the driver does not say.
        total_bytes: usize,
    },
    /// The driver found no memory for what it makes itself: a context, a module, a stream.
    #[error("no device memory for what {call} makes: free some, or use a smaller engine")]
    NoMemory {
        /// Name of the function.
        call: &'static str,
    },
    /// The context is of no use any more: a kernel faulted, hung or the device is gone. Everything in it has to be given up.
    #[error("the device failed in {call}: {reason}; the engine has to be opened anew")]
    Lost {
        /// The call that told of it, which need not be the one that caused it.
        call: &'static str,
        /// The driver's words.
        reason: String,
    },
    /// Work was not done in time.
    #[error("the device did not finish within {waited_ms} ms; the engine has to be opened anew")]
    TimedOut {
        /// How long was waited.
        waited_ms: u128,
    },
    /// A module has no such kernel.
    #[error(
        "the kernel {kernel:?} is not in the image it was looked for in: kernels and program are of different versions"
    )]
    NoKernel {
        /// Its name.
        kernel: String,
    },
    /// Any other refusal.
    #[error("{call} failed: {reason}")]
    Call {
        /// Name of the function.
        call: &'static str,
        /// The driver's words.
        reason: String,
    },
}

impl DriverError {
    /// Whether the context, and all that lives in it, has to be given up.
    #[must_use]
    pub fn is_lost(&self) -> bool {
        matches!(self, Self::Lost { .. } | Self::TimedOut { .. })
    }
}

/// `Ok` for success, else the error that `result` of `call` means.
pub(super) fn check(call: &'static str, result: CUresult) -> Result<()> {
    match result {
        CUresult::CUDA_SUCCESS => Ok(()),
        CUresult::CUDA_ERROR_OUT_OF_MEMORY => Err(DriverError::NoMemory { call }),
        _ if is_sticky(result) => Err(DriverError::Lost { call, reason: words(result) }),
        _ => Err(DriverError::Call { call, reason: words(result) }),
    }
}

/// Whether every later call in the context fails with the same.
fn is_sticky(result: CUresult) -> bool {
    matches!(
        result,
        CUresult::CUDA_ERROR_ECC_UNCORRECTABLE
            | CUresult::CUDA_ERROR_NVLINK_UNCORRECTABLE
            | CUresult::CUDA_ERROR_CONTAINED
            | CUresult::CUDA_ERROR_ILLEGAL_ADDRESS
            | CUresult::CUDA_ERROR_LAUNCH_TIMEOUT
            | CUresult::CUDA_ERROR_CONTEXT_IS_DESTROYED
            | CUresult::CUDA_ERROR_ASSERT
            | CUresult::CUDA_ERROR_HARDWARE_STACK_ERROR
            | CUresult::CUDA_ERROR_ILLEGAL_INSTRUCTION
            | CUresult::CUDA_ERROR_MISALIGNED_ADDRESS
            | CUresult::CUDA_ERROR_INVALID_ADDRESS_SPACE
            | CUresult::CUDA_ERROR_INVALID_PC
            | CUresult::CUDA_ERROR_LAUNCH_FAILED
            | CUresult::CUDA_ERROR_TENSOR_MEMORY_LEAK
            | CUresult::CUDA_ERROR_EXTERNAL_DEVICE
            | CUresult::CUDA_ERROR_UNKNOWN
    )
}

/// Name and description: `CUDA_ERROR_LAUNCH_FAILED (unspecified launch failure)`.
pub(super) fn words(result: CUresult) -> String {
    let (mut name, mut text) = (std::ptr::null(), std::ptr::null());
    // SAFETY: both write a pointer to a string that lives as long as the library, or null.
    unsafe {
        sys::cuGetErrorName(result, &raw mut name);
        sys::cuGetErrorString(result, &raw mut text);
    }
    let owned = |text: *const std::ffi::c_char| {
        // SAFETY: not null, so a string of the library's.
        (!text.is_null()).then(|| unsafe { CStr::from_ptr(text) }.to_string_lossy().into_owned())
    };
    match (owned(name), owned(text)) {
        (Some(name), Some(text)) => format!("{name} ({text})"),
        (Some(one), None) | (None, Some(one)) => one,
        (None, None) => format!("{result:?}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// NVIDIA's words for these: any further CUDA work will return the same error; to continue, the process must be relaunched.
    #[test]
    fn what_every_later_call_answers_too_is_a_lost_context_and_nothing_else_is() {
        for sticky in [
            CUresult::CUDA_ERROR_ILLEGAL_ADDRESS,
            CUresult::CUDA_ERROR_LAUNCH_FAILED,
            CUresult::CUDA_ERROR_CONTAINED,
            CUresult::CUDA_ERROR_TENSOR_MEMORY_LEAK,
        ] {
            assert!(is_sticky(sticky), "{sticky:?}");
        }
        for passing in [
            CUresult::CUDA_ERROR_OUT_OF_MEMORY,
            CUresult::CUDA_ERROR_NOT_READY,
            CUresult::CUDA_ERROR_NOT_SUPPORTED,
        ] {
            assert!(!is_sticky(passing), "{passing:?}");
        }
    }
}
