//! An rcl object at an address that does not change, and what rcl's calls return.

use std::cell::UnsafeCell;
use std::ffi::{CStr, CString, c_char};

use r2r_rcl::{RCL_RET_OK, rcl_ret_t, rcutils_get_error_string, rcutils_reset_error};

use crate::ros::RosError;

/// An rcl object. rcl keeps pointers to it, so it never moves.
pub(super) struct Handle<T>(Box<UnsafeCell<T>>);

// SAFETY: no object of rcl is bound to the thread that made it.
unsafe impl<T> Send for Handle<T> {}
// SAFETY: `ptr` alone does nothing, and every call that takes it says why it may run beside others on the same object.
unsafe impl<T> Sync for Handle<T> {}

impl<T> Handle<T> {
    /// Holds what rcl is to initialize.
    pub fn new(zero: T) -> Self {
        Self(Box::new(UnsafeCell::new(zero)))
    }

    /// For rcl's calls; valid as long as `self`.
    pub fn ptr(&self) -> *mut T {
        self.0.get()
    }
}

/// Whether a call of rcl or rmw returned `code`, one of its constants.
pub(super) fn is(ret: rcl_ret_t, code: u32) -> bool {
    u32::try_from(ret) == Ok(code)
}

/// The error of a call that did not return `RCL_RET_OK`; `what` was being done.
///
/// # Errors
/// [`RosError::Transport`] with rcl's own words.
pub(super) fn check(ret: rcl_ret_t, what: &str) -> Result<(), RosError> {
    let said = take_error();
    if is(ret, RCL_RET_OK) {
        return Ok(());
    }
    let reason = if said.is_empty() { format!("rcl returned {ret}") } else { said };
    Err(RosError::Transport { what: what.to_owned(), reason })
}

/// What rcl said last on this thread. It warns of every error that nobody read, also of those that it passed over itself.
pub(super) fn take_error() -> String {
    // SAFETY: both calls only touch rcutils' error of this thread.
    let text = unsafe {
        let text = rcutils_get_error_string();
        rcutils_reset_error();
        text
    };
    // SAFETY: rcutils ends the string within the array.
    let text = unsafe { CStr::from_ptr(text.str_.as_ptr()) }.to_string_lossy();
    // Without an error the string says so.
    if text == "error not set" { String::new() } else { text.into_owned() }
}

/// A name for rcl.
///
/// # Errors
/// [`RosError::Name`] if it holds a NUL.
pub(super) fn c_name(what: &'static str, name: &str) -> Result<CString, RosError> {
    CString::new(name).map_err(|_| RosError::Name {
        what,
        name: name.to_owned(),
        rule: "must not hold a NUL character",
    })
}

/// A string of rcl's, copied; empty for a null pointer.
///
/// # Safety
/// `text` is null or points to a string that ends with a NUL.
pub(super) unsafe fn copy_string(text: *const c_char) -> String {
    if text.is_null() {
        return String::new();
    }
    // SAFETY: the caller's promise.
    unsafe { CStr::from_ptr(text) }.to_string_lossy().into_owned()
}
