//! A part of the GPU's multiprocessors to time kernels on.
//!
//! TensorRT's headers say from 11.4 on that a plan timed outside of a green context may fail in one, and that green contexts take a TensorRT and a
//! driver of CUDA 13. Which CUDA it was built with a TensorRT does not tell; 10.16 is the first that JetPack has on all boards, with CUDA 13.

use takt_engine::backend::cuda::GpuShare;
use takt_kernels_cu::{
    CudaVersion,
    driver::{context::Context, device::Device, stream::Stream},
};
use takt_tensorrt::{TensorRtError, Version};

use crate::{BuildError, Result as BuildResult};

/// The first TensorRT, as (major, minor).
const FIRST_TENSORRT: (u32, u32) = (10, 16);
/// The first driver.
const FIRST_DRIVER: CudaVersion = CudaVersion::new(13, 0);

/// A green context and a stream of it.
#[derive(Debug)]
pub(super) struct Green {
    stream: Stream,
}

impl Green {
    /// On `percent` of the multiprocessors, as the runtime takes them.
    ///
    /// # Errors
    /// [`BuildError::Unsupported`] where there can be none, or TensorRT cannot use it; [`BuildError::TensorRt`] when the driver fails.
    pub fn open(device: &Device, tensorrt: Version, percent: u8) -> BuildResult<Self> {
        let refuse = |fact: String| {
            Err(BuildError::Unsupported(format!(
                "plans timed on {percent} % of the multiprocessors: {fact}; leave out --plan-sm-share, and run plans with `[gpu] share = \"priority\"`"
            )))
        };
        if let Err(fact) = check(tensorrt, device.driver_version) {
            return refuse(fact);
        }
        let (context, fallback) = Context::open(device, GpuShare::GreenContext { percent }.on(device))
            .map_err(TensorRtError::Driver)?;
        if let Some(fallback) = fallback {
            return refuse(format!("there is no green context: {}", fallback.reason));
        }
        let stream = Stream::new(&context).map_err(TensorRtError::Driver)?;
        Ok(Self { stream })
    }

    /// Of a low priority, as those that plans run in.
    pub fn stream(&self) -> &Stream {
        &self.stream
    }

    /// What the device could split off.
    pub fn num_sms(&self) -> u32 {
        self.stream.context().num_sms()
    }
}

/// Whether TensorRT can use green contexts at all.
fn check(tensorrt: Version, driver: CudaVersion) -> Result<(), String> {
    if (tensorrt.major, tensorrt.minor) < FIRST_TENSORRT {
        return Err(format!("green contexts take TensorRT 10.16 or later, this is {tensorrt}"));
    }
    if driver < FIRST_DRIVER {
        return Err(format!(
            "TensorRT takes a driver of CUDA {FIRST_DRIVER} for green contexts, this one is of {driver}"
        ));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn green_contexts_take_cuda_13_on_both_sides() {
        let checked = |major, minor, driver| check(Version { major, minor, patch: 0 }, driver);
        let (older, newer) = (CudaVersion::new(12, 9), CudaVersion::new(13, 1));
        assert_eq!(checked(10, 16, FIRST_DRIVER), Ok(()));
        assert_eq!(checked(11, 0, newer), Ok(()));
        assert!(checked(10, 15, newer).unwrap_err().contains("this is 10.15.0"));
        assert!(checked(11, 4, older).unwrap_err().contains("this one is of 12.9"));
    }
}
