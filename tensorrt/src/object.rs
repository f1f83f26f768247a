//! Objects of TensorRT's that we own.
#![expect(unsafe_code, reason = "objects of TensorRT's are destroyed through the shim")]

use std::ptr::NonNull;

use crate::{
    Result, TensorRtError,
    api::{Api, RecorderObject},
    journal,
};

/// An object and how it is destroyed.
#[derive(Debug)]
pub(crate) struct Owned<T> {
    object: NonNull<T>,
    destroy: unsafe extern "C" fn(*mut T),
}

// SAFETY: TensorRT's objects belong to no thread; that one is used by one thread at a time is up to their owners, which have them behind `&mut`
// or a lock.
unsafe impl<T> Send for Owned<T> {}

impl<T> Owned<T> {
    /// Takes over what a factory gave; `None` for null, which is how they fail.
    ///
    /// # Safety
    /// `object` is alive, nobody else destroys it, and `destroy` is the function for its type.
    pub unsafe fn new(object: *mut T, destroy: unsafe extern "C" fn(*mut T)) -> Option<Self> {
        Some(Self { object: NonNull::new(object)?, destroy })
    }

    /// For a call.
    pub fn get(&self) -> *mut T {
        self.object.as_ptr()
    }
}

impl<T> Drop for Owned<T> {
    fn drop(&mut self) {
        // SAFETY: alive, and destroyed here alone.
        unsafe { (self.destroy)(self.object.as_ptr()) }
    }
}

/// An error recorder, and whose errors it is told.
#[derive(Debug)]
pub(crate) struct Recorder {
    object: Owned<RecorderObject>,
    owner: u64,
}

// SAFETY: what can be done through a shared reference is to give it to TensorRT, and to watch what it was told; it locks for itself.
unsafe impl Sync for Recorder {}

impl Recorder {
    pub fn new(api: &'static Api) -> Result<Self> {
        let owner = journal::new_owner();
        // SAFETY: the callback takes any owner's number, and lives as long as the program.
        let object =
            unsafe { Owned::new((api.recorder_create)(journal::report, owner), api.recorder_release) };
        let reason = || "for an error recorder".to_owned();
        let object =
            object.ok_or_else(|| TensorRtError::OutOfMemory { call: "beginning", reason: reason() })?;
        Ok(Self { object, owner })
    }

    /// For a call.
    pub fn get(&self) -> *mut RecorderObject {
        self.object.get()
    }

    /// Watches what it is told from here on.
    pub fn watch(&self) -> journal::Watch {
        journal::Watch::begin(self.owner)
    }
}
