//! Host memory of somebody else's, a mapped file for instance, that the device reads in place.

use std::{fmt, ptr::NonNull, sync::Arc};

use cudarc::driver::sys;

use super::{
    context::Context,
    error::{DriverError, Result, check},
};
use crate::launch::DeviceAddress;

/// Mapped into the device's address space, and only read by it: what the processor itself may only read is registered no other way.
const REGISTER: u32 = sys::CU_MEMHOSTREGISTER_DEVICEMAP | sys::CU_MEMHOSTREGISTER_READ_ONLY;

/// How a device reads memory that it did not allocate, and that the processor may only read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum HostReach {
    /// Any memory of the process, through the process's own page tables, as on Thor. Nothing is locked.
    PageTables,
    /// What was registered before, which locks it in memory.
    Registered,
    /// None.
    Nothing,
}

/// Whoever has bytes that are to be read in place. They stay where they are, unchanged, as long as it is held: a value in an [`Arc`] does not
/// move, and nobody has it to themselves while somebody holds another.
pub type SharedBytes = Arc<dyn AsRef<[u8]> + Send + Sync>;

/// Host memory that the device reads in place; held, and registered where that is needed, until this is dropped.
///
/// The device only reads it, so that host and device may look at it at the same time. In a lost context, where a kernel may still read, the
/// bytes are held until the context goes.
pub struct HostMemory {
    context: Context,
    /// What `holder` showed when it was asked, which was once: an owner may show other bytes the next time, and those the device does not know.
    bytes: NonNull<[u8]>,
    holder: SharedBytes,
    address: u64,
    is_registered: bool,
}

// SAFETY: bytes that nobody writes, of an owner that may be held by any thread.
unsafe impl Send for HostMemory {}
// SAFETY: as above.
unsafe impl Sync for HostMemory {}

impl HostMemory {
    /// Lets the device of `context` read the bytes that `holder` shows now, which are not none. Whoever launches with its addresses waits before
    /// this goes.
    ///
    /// # Errors
    /// [`DriverError::Call`] where the device cannot, or the driver refuses; [`DriverError::Lost`].
    pub fn new(context: &Context, holder: SharedBytes) -> Result<Self> {
        let bytes = NonNull::from((*holder).as_ref());
        let (host, num_bytes) = (bytes.cast::<u8>(), bytes.len());
        if num_bytes == 0 {
            return Err(DriverError::Call { call: "cuMemHostRegister", reason: "no bytes".into() });
        }
        match context.device().host_reach {
            HostReach::Nothing => {
                let reason = "the device reads no memory that the processor may only read".into();
                Err(DriverError::Call { call: "cuMemHostRegister", reason })
            }
            HostReach::PageTables => {
                let address = host.addr().get() as u64;
                Ok(Self { context: context.clone(), bytes, holder, address, is_registered: false })
            }
            HostReach::Registered => {
                context.make_current()?;
                let host = host.as_ptr().cast();
                // SAFETY: the bytes are there as long as `self` holds them, which unregisters them first; the device only reads them.
                let result = unsafe { sys::cuMemHostRegister_v2(host, num_bytes, REGISTER) };
                context.note(check("cuMemHostRegister", result))?;
                let mut memory =
                    Self { context: context.clone(), bytes, holder, address: 0, is_registered: true };
                // SAFETY: writes one address; the memory was just registered as mapped.
                check("cuMemHostGetDevicePointer", unsafe {
                    sys::cuMemHostGetDevicePointer_v2(&raw mut memory.address, host, 0)
                })?;
                Ok(memory)
            }
        }
    }

    /// The bytes, as the host sees them.
    #[must_use]
    pub fn bytes(&self) -> &[u8] {
        // SAFETY: shown by `holder`, which is held and stays where it is: no one can take them back or write to them as long as it is shared.
        unsafe { self.bytes.as_ref() }
    }

    /// Where the device finds `part`, a slice of [`Self::bytes`]; `None` for any other.
    #[must_use]
    pub fn address_of(&self, part: &[u8]) -> Option<DeviceAddress> {
        let offset = offset_in(self.bytes(), part)?;
        Some(DeviceAddress(self.address.checked_add(offset as u64)?))
    }

    /// Whether it was registered, and so is locked in memory.
    #[must_use]
    pub fn is_registered(&self) -> bool {
        self.is_registered
    }
}

/// Where `part` begins in `whole`, if it is a slice of it.
#[must_use]
pub fn offset_in(whole: &[u8], part: &[u8]) -> Option<usize> {
    let offset = part.as_ptr().addr().checked_sub(whole.as_ptr().addr())?;
    (offset.checked_add(part.len())? <= whole.len()).then_some(offset)
}

impl fmt::Debug for HostMemory {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter
            .debug_struct("HostMemory")
            .field("num_bytes", &self.bytes().len())
            .field("address", &self.address)
            .field("is_registered", &self.is_registered)
            .finish_non_exhaustive()
    }
}

impl Drop for HostMemory {
    fn drop(&mut self) {
        if self.context.is_lost() {
            // Its mapping goes with it, and until then a kernel that hangs may read.
            self.context.hold(Arc::clone(&self.holder));
        } else if self.is_registered && self.context.is_current_for_drop() {
            // SAFETY: registered here, unregistered once; streams that read it have been waited for.
            unsafe { sys::cuMemHostUnregister(self.bytes.cast::<u8>().as_ptr().cast()) };
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_slice_is_found_in_its_whole_and_nothing_else_is() {
        let (whole, other) = ([0_u8; 100], [0_u8; 100]);
        assert_eq!(offset_in(&whole, &whole), Some(0));
        assert_eq!(offset_in(&whole, &whole[7..19]), Some(7));
        assert_eq!(offset_in(&whole, &whole[100..]), Some(100));
        assert_eq!(offset_in(&whole[10..50], &whole[9..12]), None);
        assert_eq!(offset_in(&whole[10..50], &whole[49..51]), None);
        assert_eq!(offset_in(&whole, &other[1..2]), None);
    }
}
