//! Which of the emulated driver's functions came with which version of CUDA, so that it can play an older one.

use takt_kernels_cu::CudaVersion;

/// What the emulated driver is.
pub const OWN: CudaVersion = CudaVersion::new(13, 0);

/// Functions of the emulated driver that older ones lack, by the version that brought them.
const BROUGHT_BY: &[(CudaVersion, &[&str])] = &[
    (CudaVersion::new(11, 8), &["cuLaunchKernelEx"]),
    (CudaVersion::new(12, 1), &["cuCtxSetFlags"]),
    (
        CudaVersion::new(12, 4),
        &[
            "cuCtxFromGreenCtx",
            "cuDevResourceGenerateDesc",
            "cuDevSmResourceSplitByCount",
            "cuDeviceGetDevResource",
            "cuGreenCtxCreate",
            "cuGreenCtxDestroy",
            "cuGreenCtxGetDevResource",
            "cuStreamGetGreenCtx",
        ],
    ),
    (CudaVersion::new(12, 5), &["cuCtxCreate_v4", "cuGreenCtxStreamCreate"]),
    (CudaVersion::new(12, 8), &["cuEventElapsedTime_v2"]),
];

/// Functions that a driver of `version` does not have.
pub fn later_than(version: CudaVersion) -> impl Iterator<Item = &'static str> {
    let later = BROUGHT_BY.iter().filter(move |(brought, _)| *brought > version);
    later.flat_map(|(_, names)| names.iter().copied())
}
