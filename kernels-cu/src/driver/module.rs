//! Cubins and their kernels.

use std::{collections::HashMap, ffi::CString, ptr};

use cudarc::driver::sys::{self, CUfunction, CUfunction_attribute, CUmodule, CUresult};

use super::{
    context::Context,
    error::{DriverError, Result, check},
};
use crate::launch::Launch;

/// Shared memory that a kernel gets without being asked for.
const DEFAULT_SHARED_BYTES: u32 = 48 * 1024;

/// Loaded cubins and the kernels that were asked of them.
#[derive(Debug)]
pub struct Kernels {
    context: Context,
    modules: Vec<CUmodule>,
    functions: HashMap<&'static str, Kernel>,
}

// SAFETY: handles of the driver's, usable from any thread that has the context current.
unsafe impl Send for Kernels {}

/// A kernel, and the dynamic shared memory it is allowed.
#[derive(Debug, Clone, Copy)]
pub(super) struct Kernel {
    pub function: CUfunction,
    shared_bytes: u32,
}

impl Kernels {
    /// Loads `cubins`, each of the device's target.
    ///
    /// # Errors
    /// [`DriverError::Call`] for an image the device does not take, [`DriverError::NoMemory`], [`DriverError::Lost`].
    pub fn load<'a>(context: &Context, cubins: impl IntoIterator<Item = &'a [u8]>) -> Result<Self> {
        context.make_current()?;
        let mut kernels = Self { context: context.clone(), modules: Vec::new(), functions: HashMap::new() };
        for cubin in cubins {
            let mut module = ptr::null_mut();
            // SAFETY: the driver reads an ELF image, whose header tells its size, and refuses what is none. Ours come whole and checked.
            let result = unsafe { sys::cuModuleLoadData(&raw mut module, cubin.as_ptr().cast()) };
            context.note(check("cuModuleLoadData", result))?;
            kernels.modules.push(module);
        }
        Ok(kernels)
    }

    /// Looks the kernel of `launch` up and allows it its shared memory. The driver may load code for that, which a capture does not permit.
    ///
    /// # Errors
    /// [`DriverError::NoKernel`] when no image has it; [`DriverError::Call`] for more shared memory than the device has.
    pub fn prepare(&mut self, launch: &Launch) -> Result<()> {
        self.get(launch.kernel(), launch.geometry().shared_bytes).map(drop)
    }

    /// The kernel `name`, allowed `shared_bytes` of dynamic shared memory. Looked up once, before any capture.
    ///
    /// # Errors
    /// [`DriverError::NoKernel`] when no image has it; [`DriverError::Call`] for more shared memory than the device has.
    pub(super) fn get(&mut self, name: &'static str, shared_bytes: u32) -> Result<Kernel> {
        let found = match self.functions.get(name) {
            Some(found) => *found,
            None => Kernel { function: self.find(name)?, shared_bytes: DEFAULT_SHARED_BYTES },
        };
        let allowed = if shared_bytes > found.shared_bytes {
            let attribute = CUfunction_attribute::CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES;
            let bytes = i32::try_from(shared_bytes).unwrap_or(i32::MAX);
            // SAFETY: a function of a loaded module.
            check("cuFuncSetAttribute", unsafe {
                sys::cuFuncSetAttribute(found.function, attribute, bytes)
            })?;
            Kernel { shared_bytes, ..found }
        } else {
            found
        };
        self.functions.insert(name, allowed);
        Ok(allowed)
    }

    fn find(&self, name: &str) -> Result<CUfunction> {
        let no_kernel = || DriverError::NoKernel { kernel: name.into() };
        let c_name = CString::new(name).map_err(|_| no_kernel())?;
        for &module in &self.modules {
            let mut function = ptr::null_mut();
            // SAFETY: a loaded module and a string with its zero.
            match unsafe { sys::cuModuleGetFunction(&raw mut function, module, c_name.as_ptr()) } {
                CUresult::CUDA_ERROR_NOT_FOUND => {}
                result => {
                    self.context.note(check("cuModuleGetFunction", result))?;
                    return Ok(function);
                }
            }
        }
        Err(no_kernel())
    }
}

impl Drop for Kernels {
    fn drop(&mut self) {
        if self.context.is_current_for_drop() {
            for &module in &self.modules {
                // SAFETY: loaded here, unloaded once; streams that ran its kernels have been waited for.
                unsafe { sys::cuModuleUnload(module) };
            }
        }
    }
}
