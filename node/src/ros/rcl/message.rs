//! Bytes to C structures and back: services of rcl know messages only as those.

use std::ffi::c_void;
use std::ptr::NonNull;

use r2r_rcl::{
    rcl_serialized_message_t, rcutils_get_default_allocator, rcutils_get_zero_initialized_uint8_array,
    rcutils_uint8_array_fini, rcutils_uint8_array_init, rmw_deserialize, rmw_serialize,
};

use super::handle::{Handle, check};
use super::type_support::MessageType;
use crate::ros::RosError;

/// Byte order and options.
const HEADER_LEN: usize = 4;

/// A message as its C structure; freed when dropped.
pub(super) struct CMessage {
    ty: MessageType,
    data: NonNull<c_void>,
}

impl CMessage {
    /// A message of default values.
    pub fn new(ty: MessageType) -> Result<Self, RosError> {
        // SAFETY: rosidl's own function, without arguments.
        let data = NonNull::new(unsafe { (ty.create)() });
        let data = data.ok_or_else(|| RosError::Transport {
            what: "making a message".to_owned(),
            reason: "out of memory".to_owned(),
        })?;
        Ok(Self { ty, data })
    }

    /// Reads `bytes`, a CDR message with its 4-byte header.
    pub fn from_cdr(ty: MessageType, bytes: &[u8]) -> Result<Self, RosError> {
        // What comes after the header middlewares check; that there is one, rmw_cyclonedds 2.2 does not.
        if bytes.len() < HEADER_LEN {
            return Err(RosError::Transport {
                what: "reading a message".to_owned(),
                reason: format!("{} bytes are less than its header", bytes.len()),
            });
        }
        let message = Self::new(ty)?;
        // SAFETY: the middleware reads the bytes and writes a whole message of `ty` into one of `ty`.
        let read = unsafe { rmw_deserialize(&raw const *borrowed(bytes), ty.support, message.ptr()) };
        check(read, "reading a message")?;
        Ok(message)
    }

    /// The message in CDR with its 4-byte header, written to `buffer`.
    pub fn to_cdr<'a>(&self, buffer: &'a mut Buffer) -> Result<&'a [u8], RosError> {
        // SAFETY: the structure is a whole message of its type; the buffer grows as the middleware needs it.
        let written = unsafe { rmw_serialize(self.ptr(), self.ty.support, buffer.0.ptr()) };
        check(written, "writing a message")?;
        Ok(buffer.bytes())
    }

    /// For rcl's calls; valid as long as `self`.
    pub fn ptr(&self) -> *mut c_void {
        self.data.as_ptr()
    }
}

impl Drop for CMessage {
    fn drop(&mut self) {
        // SAFETY: made by `create` of the same type.
        unsafe { (self.ty.destroy)(self.ptr()) };
    }
}

/// Bytes that the middleware writes and grows.
pub(super) struct Buffer(Handle<rcl_serialized_message_t>);

impl Buffer {
    pub fn new() -> Result<Self, RosError> {
        // SAFETY: both take nothing and return a value.
        let (zero, allocator) =
            unsafe { (rcutils_get_zero_initialized_uint8_array(), rcutils_get_default_allocator()) };
        let buffer = Self(Handle::new(zero));
        // SAFETY: zero, as rcutils asks.
        let made = unsafe { rcutils_uint8_array_init(buffer.0.ptr(), 0, &raw const allocator) };
        check(made, "making a buffer")?;
        Ok(buffer)
    }

    /// What was written last.
    pub fn bytes(&self) -> &[u8] {
        // SAFETY: nobody writes to it meanwhile: that takes `&mut self`.
        let array = unsafe { &*self.0.ptr() };
        if array.buffer.is_null() {
            return &[];
        }
        // SAFETY: rcutils holds `buffer_length` bytes at `buffer`, written by the middleware.
        unsafe { std::slice::from_raw_parts(array.buffer, array.buffer_length) }
    }

    /// For rcl's calls that write; valid as long as `self`.
    pub fn ptr(&mut self) -> *mut rcl_serialized_message_t {
        self.0.ptr()
    }
}

impl Drop for Buffer {
    fn drop(&mut self) {
        // SAFETY: initialized, and not used after.
        unsafe { rcutils_uint8_array_fini(self.0.ptr()) };
    }
}

/// `bytes` as calls take them that only read them.
pub(super) struct Borrowed<'a> {
    array: rcl_serialized_message_t,
    _bytes: std::marker::PhantomData<&'a [u8]>,
}

/// See [`Borrowed`].
pub(super) fn borrowed(bytes: &[u8]) -> Borrowed<'_> {
    // SAFETY: takes nothing and returns a value.
    let allocator = unsafe { rcutils_get_default_allocator() };
    let array = rcl_serialized_message_t {
        buffer: bytes.as_ptr().cast_mut(),
        buffer_length: bytes.len(),
        buffer_capacity: bytes.len(),
        allocator,
    };
    Borrowed { array, _bytes: std::marker::PhantomData }
}

impl std::ops::Deref for Borrowed<'_> {
    type Target = rcl_serialized_message_t;

    fn deref(&self) -> &Self::Target {
        &self.array
    }
}
