//! Device memory, and pinned host memory that the device reads and writes.

use std::{ops::Range, ptr, slice};

use cudarc::driver::sys::{self, CUresult};

use super::{
    context::Context,
    error::{DriverError, Result, check},
};
use crate::launch::DeviceAddress;

/// The host's pinned memory is mapped into the device's address space.
const HOST_ALLOC_DEVICE_MAP: u32 = 2;

/// A run of device memory; its contents are undefined until written. Aligned to 256 bytes at least.
#[derive(Debug)]
pub struct DeviceBuffer {
    context: Context,
    address: u64,
    num_bytes: usize,
}

impl DeviceBuffer {
    /// Allocates `num_bytes` (0 takes nothing) for `what`, a noun for people.
    ///
    /// # Errors
    /// [`DriverError::OutOfMemory`] with what was asked and what is free; [`DriverError::Lost`].
    pub fn new(context: &Context, num_bytes: usize, what: &'static str) -> Result<Self> {
        let mut buffer = Self { context: context.clone(), address: 0, num_bytes };
        if num_bytes == 0 {
            return Ok(buffer);
        }
        context.make_current()?;
        // SAFETY: writes one address.
        match unsafe { sys::cuMemAlloc_v2(&raw mut buffer.address, num_bytes) } {
            CUresult::CUDA_ERROR_OUT_OF_MEMORY => {
                buffer.num_bytes = 0;
                Err(out_of_memory(context, num_bytes, what))
            }
            result => {
                context.note(check("cuMemAlloc", result))?;
                Ok(buffer)
            }
        }
    }

    /// Where it begins.
    #[must_use]
    pub fn address(&self) -> DeviceAddress {
        DeviceAddress(self.address)
    }

    /// Its size.
    #[must_use]
    pub fn num_bytes(&self) -> usize {
        self.num_bytes
    }
}

impl Drop for DeviceBuffer {
    fn drop(&mut self) {
        if self.address != 0 && self.context.is_current_for_drop() {
            // SAFETY: allocated here, freed once; whoever launches with its address waits before it goes.
            unsafe { sys::cuMemFree_v2(self.address) };
        }
    }
}

/// Pinned host memory, zeroed, that the device sees under an address of its own. For the few bytes of a step that travel.
#[derive(Debug)]
pub struct MappedBuffer {
    context: Context,
    host: *mut u8,
    address: u64,
    num_bytes: usize,
}

// SAFETY: plain memory owned by the value.
unsafe impl Send for MappedBuffer {}

impl MappedBuffer {
    /// Allocates `num_bytes` (at least one) for `what`.
    ///
    /// # Errors
    /// As [`DeviceBuffer::new`].
    pub fn new(context: &Context, num_bytes: usize, what: &'static str) -> Result<Self> {
        context.make_current()?;
        let (num_bytes, mut host) = (num_bytes.max(1), ptr::null_mut());
        // SAFETY: writes one pointer.
        match unsafe { sys::cuMemHostAlloc(&raw mut host, num_bytes, HOST_ALLOC_DEVICE_MAP) } {
            CUresult::CUDA_ERROR_OUT_OF_MEMORY => return Err(out_of_memory(context, num_bytes, what)),
            result => context.note(check("cuMemHostAlloc", result))?,
        }
        let mut buffer = Self { context: context.clone(), host: host.cast(), address: 0, num_bytes };
        // SAFETY: as many bytes were just allocated.
        unsafe { ptr::write_bytes(buffer.host, 0, num_bytes) };
        // SAFETY: writes one address; the memory was allocated as mapped.
        check("cuMemHostGetDevicePointer", unsafe {
            sys::cuMemHostGetDevicePointer_v2(&raw mut buffer.address, host, 0)
        })?;
        Ok(buffer)
    }

    /// Where the device finds it.
    #[must_use]
    pub fn address(&self) -> DeviceAddress {
        DeviceAddress(self.address)
    }

    /// Its size.
    #[must_use]
    pub fn num_bytes(&self) -> usize {
        self.num_bytes
    }

    /// As the host sees it. What the device writes is seen after the event that follows it was waited for, and nobody holds these bytes meanwhile
    /// ([what the compiler does not check](super)).
    #[must_use]
    pub fn bytes(&self) -> &[u8] {
        // SAFETY: allocated with that size and initialized. The device writes only between a launch and the wait for its event, and the owner
        // looks only after the wait.
        unsafe { slice::from_raw_parts(self.host, self.num_bytes) }
    }

    /// Where the device's copies go.
    pub(super) fn host(&self) -> *mut u8 {
        self.host
    }

    /// [`Self::bytes`] as F32 values; what is left of a last one is not among them.
    #[must_use]
    pub fn floats(&self) -> &[f32] {
        // SAFETY: as in `bytes`; pinned memory begins on a page, and any bits are an F32 value.
        unsafe { slice::from_raw_parts(self.host.cast(), self.num_bytes / size_of::<f32>()) }
    }

    /// [`Self::bytes`] as 32-bit words; what is left of a last one is not among them.
    #[must_use]
    pub fn words(&self) -> &[u32] {
        // SAFETY: as in `floats`; any bits are a U32 value.
        unsafe { slice::from_raw_parts(self.host.cast(), self.num_bytes / size_of::<u32>()) }
    }

    /// [`Self::words`] with a sign.
    #[must_use]
    pub fn integers(&self) -> &[i32] {
        // SAFETY: as in `floats`; any bits are an I32 value.
        unsafe { slice::from_raw_parts(self.host.cast(), self.num_bytes / size_of::<i32>()) }
    }

    /// As the host sees it, to write. The device must not be reading: the caller has waited for the step before.
    pub fn bytes_mut(&mut self) -> &mut [u8] {
        self.part_mut(0..self.num_bytes)
    }

    /// Bytes `part` alone, to write, while the device may read the others; what is not there is left out.
    pub fn part_mut(&mut self, part: Range<usize>) -> &mut [u8] {
        let end = part.end.min(self.num_bytes);
        let start = part.start.min(end);
        // SAFETY: as in `bytes`, within the allocation; the borrow is unique.
        unsafe { slice::from_raw_parts_mut(self.host.add(start), end - start) }
    }
}

impl Drop for MappedBuffer {
    fn drop(&mut self) {
        // A lost context takes its mapping with it, and freeing the memory before that could leave the device writing to it.
        if self.context.is_current_for_drop() {
            // SAFETY: allocated here, freed once.
            unsafe { sys::cuMemFreeHost(self.host.cast()) };
        }
    }
}

fn out_of_memory(context: &Context, asked_bytes: usize, what: &'static str) -> DriverError {
    let (free_bytes, total_bytes) = context.memory_bytes().unwrap_or_default();
    DriverError::OutOfMemory { what, asked_bytes, free_bytes, total_bytes }
}
