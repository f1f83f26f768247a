//! Is there a driver, which devices, and what they are.

use std::sync::OnceLock;

use cudarc::driver::sys::{self, CUdevice, CUdevice_attribute as Attribute, CUresult};

use super::{
    entry,
    error::{DriverError, Result, check, words},
    host_memory::HostReach,
};
use crate::{CudaVersion, Target};

/// The least CUDA version of a driver: the first that takes cubins of the oldest compiler the kernels are compiled with.
pub const MIN_DRIVER_VERSION: CudaVersion = CudaVersion::new(12, 0);

/// A device that can be used, and what it is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Device {
    pub(super) handle: CUdevice,
    /// As the vendor calls it: `NVIDIA Thor`.
    pub name: String,
    /// Compute capability, major and minor: `(8, 7)` is Orin.
    pub compute_capability: (u32, u32),
    /// Streaming multiprocessors.
    pub num_sms: u32,
    /// Whether it shares its memory with the processor, as on Jetson.
    pub is_integrated: bool,
    /// How it reads memory of the processor's in place.
    pub host_reach: HostReach,
    /// Bytes of its memory.
    pub memory_bytes: u64,
    /// Bytes of its second-level cache.
    pub l2_bytes: u64,
    /// CUDA version of the driver.
    pub driver_version: CudaVersion,
}

impl Device {
    /// What its kernels are compiled for; `None` when there are no kernels for it.
    #[must_use]
    pub fn target(&self) -> Option<Target> {
        Target::of_compute_capability(self.compute_capability.0, self.compute_capability.1)
    }

    /// Never two processes' view of one device: the name with the compute capability, for keys of measured costs.
    #[must_use]
    pub fn key(&self) -> String {
        let (major, minor) = self.compute_capability;
        format!("{} sm_{major}{minor} {} SMs", self.name, self.num_sms)
    }
}

/// All devices of this machine, in the driver's order. Loads `libcuda` on the first call; creates no context.
///
/// # Errors
/// [`DriverError::NoDriver`], [`DriverError::NoDevice`], [`DriverError::TooOld`] or [`DriverError::Incomplete`]; never a panic.
pub fn probe() -> Result<Vec<Device>> {
    if !is_library_there() {
        return Err(DriverError::NoDriver);
    }
    let version = version()?;
    // SAFETY: no arguments but flags, which must be 0.
    match unsafe { sys::cuInit(0) } {
        CUresult::CUDA_SUCCESS => {}
        refused => return Err(DriverError::NoDevice(words(refused))),
    }
    let mut num_devices = 0;
    // SAFETY: writes one number.
    check("cuDeviceGetCount", unsafe { sys::cuDeviceGetCount(&raw mut num_devices) })?;
    if num_devices == 0 {
        return Err(DriverError::NoDevice("none is visible".into()));
    }
    (0..num_devices).map(|ordinal| facts(ordinal, version)).collect()
}

/// The driver's version, once it is known to be one that can be called. It may be asked for before the driver is initialized.
fn version() -> Result<CudaVersion> {
    let missing = entry::missing(entry::NEEDED);
    let incomplete = |missing| DriverError::Incomplete { missing };
    let needed_first = ["cuDriverGetVersion", "cuGetErrorName", "cuGetErrorString"];
    if needed_first.iter().any(|name| missing.contains(name)) {
        return Err(incomplete(missing));
    }
    let mut number = 0;
    // SAFETY: writes one number.
    check("cuDriverGetVersion", unsafe { sys::cuDriverGetVersion(&raw mut number) })?;
    let found = CudaVersion::of_driver(number);
    if found < MIN_DRIVER_VERSION {
        return Err(DriverError::TooOld { found, expected: MIN_DRIVER_VERSION });
    }
    if missing.is_empty() { Ok(found) } else { Err(incomplete(missing)) }
}

/// Whether `libcuda` can be opened; cudarc panics without.
fn is_library_there() -> bool {
    static IS_THERE: OnceLock<bool> = OnceLock::new();
    // SAFETY: opening the driver's library runs its initializers, which every CUDA program does.
    *IS_THERE.get_or_init(|| unsafe { sys::is_culib_present() })
}

fn facts(ordinal: i32, driver_version: CudaVersion) -> Result<Device> {
    let mut handle: CUdevice = 0;
    // SAFETY: writes one handle; `ordinal` is below the count.
    check("cuDeviceGet", unsafe { sys::cuDeviceGet(&raw mut handle, ordinal) })?;
    let mut name = [0_u8; 128];
    // SAFETY: writes at most as many bytes as are told, with a zero at the end.
    check("cuDeviceGetName", unsafe { sys::cuDeviceGetName(name.as_mut_ptr().cast(), 127, handle) })?;
    let name_len = name.iter().position(|&byte| byte == 0).unwrap_or(name.len());
    let mut memory_bytes = 0;
    // SAFETY: writes one number.
    check("cuDeviceTotalMem", unsafe { sys::cuDeviceTotalMem_v2(&raw mut memory_bytes, handle) })?;
    let attribute = |attribute| {
        let mut value = 0;
        // SAFETY: writes one number.
        check("cuDeviceGetAttribute", unsafe {
            sys::cuDeviceGetAttribute(&raw mut value, attribute, handle)
        })?;
        Ok::<_, DriverError>(value.unsigned_abs())
    };
    let has = |which| Ok::<_, DriverError>(attribute(which)? != 0);
    let host_reach = if has(Attribute::CU_DEVICE_ATTRIBUTE_PAGEABLE_MEMORY_ACCESS)?
        && has(Attribute::CU_DEVICE_ATTRIBUTE_PAGEABLE_MEMORY_ACCESS_USES_HOST_PAGE_TABLES)?
    {
        HostReach::PageTables
    } else if has(Attribute::CU_DEVICE_ATTRIBUTE_HOST_REGISTER_SUPPORTED)?
        && has(Attribute::CU_DEVICE_ATTRIBUTE_READ_ONLY_HOST_REGISTER_SUPPORTED)?
    {
        HostReach::Registered
    } else {
        HostReach::Nothing
    };
    Ok(Device {
        handle,
        host_reach,
        name: String::from_utf8_lossy(&name[..name_len]).into_owned(),
        compute_capability: (
            attribute(Attribute::CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR)?,
            attribute(Attribute::CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MINOR)?,
        ),
        num_sms: attribute(Attribute::CU_DEVICE_ATTRIBUTE_MULTIPROCESSOR_COUNT)?,
        is_integrated: attribute(Attribute::CU_DEVICE_ATTRIBUTE_INTEGRATED)? != 0,
        memory_bytes: memory_bytes as u64,
        l2_bytes: attribute(Attribute::CU_DEVICE_ATTRIBUTE_L2_CACHE_SIZE)?.into(),
        driver_version,
    })
}
