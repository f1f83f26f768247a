//! Which functions the driver has.
//!
//! cudarc looks a function up when it is first called, and panics where the driver is too old to have it. So [`NEEDED`], what is called of any
//! driver, is asked for by [`probe`](super::device::probe) before anything is called, and the few that only newer drivers have are asked for
//! where they are called.

use cudarc::driver::sys::{self, CUcontext, CUdevice, CUresult};

/// What every driver is asked for. All of it is in CUDA 12.0.
pub(super) const NEEDED: &[&str] = &[
    "cuCtxDestroy_v2",
    "cuCtxGetCurrent",
    "cuCtxGetStreamPriorityRange",
    "cuCtxSetCurrent",
    "cuDeviceGet",
    "cuDeviceGetAttribute",
    "cuDeviceGetCount",
    "cuDeviceGetName",
    "cuDevicePrimaryCtxRelease_v2",
    "cuDevicePrimaryCtxReset_v2",
    "cuDevicePrimaryCtxRetain",
    "cuDeviceTotalMem_v2",
    "cuDriverGetVersion",
    "cuEventCreate",
    "cuEventDestroy_v2",
    "cuEventQuery",
    "cuEventRecord",
    "cuFuncSetAttribute",
    "cuGetErrorName",
    "cuGetErrorString",
    "cuGraphDestroy",
    "cuGraphExecDestroy",
    "cuGraphInstantiateWithFlags",
    "cuGraphLaunch",
    "cuGraphUpload",
    "cuInit",
    "cuLaunchKernel",
    "cuMemAlloc_v2",
    "cuMemFreeHost",
    "cuMemFree_v2",
    "cuMemGetInfo_v2",
    "cuMemHostAlloc",
    "cuMemHostGetDevicePointer_v2",
    "cuMemHostRegister_v2",
    "cuMemHostUnregister",
    "cuMemcpyDtoDAsync_v2",
    "cuMemcpyDtoHAsync_v2",
    "cuMemcpyHtoDAsync_v2",
    "cuMemsetD8Async",
    "cuModuleGetFunction",
    "cuModuleLoadData",
    "cuModuleUnload",
    "cuStreamBeginCapture_v2",
    "cuStreamCreateWithPriority",
    "cuStreamDestroy_v2",
    "cuStreamEndCapture",
    "cuStreamGetPriority",
    "cuStreamSynchronize",
];

/// What green contexts take: all but the last is in CUDA 12.4, the last in 12.5.
pub(super) const GREEN: &[&str] = &[
    "cuCtxFromGreenCtx",
    "cuDevResourceGenerateDesc",
    "cuDevSmResourceSplitByCount",
    "cuDeviceGetDevResource",
    "cuGreenCtxCreate",
    "cuGreenCtxDestroy",
    "cuGreenCtxStreamCreate",
];

/// CUDA 12.5's way to make a context; older drivers have `cuCtxCreate_v2`, which does the same.
pub(super) const CTX_CREATE: &str = "cuCtxCreate_v4";

/// `cuCtxCreate_v2`, which cudarc does not bind for CUDA 13.
type CtxCreateV2 = unsafe extern "C" fn(*mut CUcontext, u32, CUdevice) -> CUresult;

/// Whether the driver's library, which is there, has the function `name`.
pub(super) fn has(name: &str) -> bool {
    // SAFETY: the address is only compared with none. The library was found before, so this does not panic.
    unsafe { sys::culib().get::<*const ()>(name.as_bytes()) }.is_ok()
}

/// Those of `names` that the driver lacks.
pub(super) fn missing(names: &'static [&'static str]) -> Vec<&'static str> {
    names.iter().copied().filter(|name| !has(name)).collect()
}

/// The older way to make a context, which every driver has so far.
pub(super) fn ctx_create_v2() -> Option<CtxCreateV2> {
    // SAFETY: the signature is that of cuda.h since CUDA 3.2; the library stays open.
    unsafe { sys::culib().get::<CtxCreateV2>(b"cuCtxCreate_v2") }.ok().map(|function| *function)
}

#[cfg(test)]
mod tests {
    use std::{collections::BTreeSet, fs, path::Path};

    use super::*;

    /// Names after `sys::` in the layer's sources that are functions.
    fn called() -> BTreeSet<String> {
        let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("src/driver");
        let files = fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path());
        let sources = files.map(|path| fs::read_to_string(path).unwrap());
        let names = sources.flat_map(|text| {
            let code = text.split("#[cfg(test)]").next().unwrap_or_default();
            code.split("sys::cu").skip(1).map(str::to_owned).collect::<Vec<_>>()
        });
        let names = names.map(|rest| {
            let name: String =
                rest.chars().take_while(|char| char.is_ascii_alphanumeric() || *char == '_').collect();
            format!("cu{name}")
        });
        names.filter(|name| name != "culib").collect()
    }

    #[test]
    fn every_function_that_is_called_is_asked_for_first() {
        let asked = NEEDED.iter().chain(GREEN).chain([&CTX_CREATE]);
        let asked: BTreeSet<String> = asked.map(|&name| name.to_owned()).collect();
        assert_eq!(called(), asked);
    }
}
