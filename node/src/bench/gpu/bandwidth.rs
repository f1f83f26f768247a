//! How fast the device reads and copies its memory, with nobody else at work.

use std::time::{Duration, Instant};

use takt_engine::{EngineError, backend::cuda::GpuOptions};
use takt_kernels_cu::{
    driver::{
        context::{Context, Share},
        memory::DeviceBuffer,
        stream::Stream,
    },
    launch::bandwidth::ReadMemory,
};

use super::{device, measures};

/// Bytes read: so many times the second-level cache, which then holds next to nothing of them.
const TIMES_L2: u64 = 8;
/// And at least so many, where a quarter of the memory is more.
const LEAST_BYTES: u64 = 512 << 20;
/// Measurements; the best counts, since whatever else happens can only slow one down.
const NUM_ROUNDS: usize = 5;
/// A measurement goes over its buffer until it has lasted so long: the clock and the wait add microseconds.
const LEAST_TIME: Duration = Duration::from_millis(20);
/// Most passes of one measurement.
const MAX_PASSES: u32 = 1 << 12;

/// What the memory gives.
#[derive(Debug, Clone, Copy)]
pub struct DeviceBandwidth {
    /// Bytes a second that a kernel reads with 16-byte loads (`cu/bandwidth.cu`).
    pub read: f64,
    /// Bytes a second that the driver's copy within the device moves, read and written counted.
    pub copy: f64,
    /// Bytes of the buffer that is read, and of each of the two that are copied.
    pub num_bytes: usize,
    /// Of the second-level cache.
    pub l2_bytes: u64,
}

/// Measures the device that the CUDA backend would open. Its memory is given back.
///
/// # Errors
/// [`EngineError::Unsupported`] without a device, a driver or kernels for it; [`EngineError::Capacity`] without memory for two buffers;
/// [`EngineError::Backend`] when the device fails.
pub fn measure(gpu: &GpuOptions) -> Result<DeviceBandwidth, EngineError> {
    let device = device()?;
    let (context, _) = Context::open(&device, Share::None)?;
    let mut kernels = measures(&context, gpu)?;
    let stream = Stream::new(&context)?;
    let num_bytes = buffer_bytes(device.l2_bytes, context.memory_bytes()?.0 as u64);
    let from = DeviceBuffer::new(&context, num_bytes, "what is read")?;
    let to = DeviceBuffer::new(&context, num_bytes, "what is written")?;
    stream.zero(&from)?;
    let num_multiprocessors = usize::try_from(context.num_sms()).unwrap_or(1);
    let read = ReadMemory { from: from.address(), out: to.address(), num_bytes, num_multiprocessors };
    let launch = read.launch()?;
    let read = best(&stream, |stream| Ok(stream.launch(&mut kernels, &launch)?))?;
    let copy = best(&stream, |stream| Ok(stream.copy(from.address(), to.address(), num_bytes)?))?;
    let rate = |seconds: f64, moved: usize| moved as f64 / seconds.max(1e-9);
    Ok(DeviceBandwidth {
        read: rate(read, num_bytes),
        copy: rate(copy, 2 * num_bytes),
        num_bytes,
        l2_bytes: device.l2_bytes,
    })
}

/// Eight times the cache or half a gibibyte, but at most an eighth of what is free, whole pieces; 64 KiB at least.
fn buffer_bytes(l2_bytes: u64, free_bytes: u64) -> usize {
    let wished = l2_bytes.saturating_mul(TIMES_L2).max(LEAST_BYTES);
    let bytes = wished.min(free_bytes / 8).max(1 << 16) / 4096 * 4096;
    usize::try_from(bytes).unwrap_or(1 << 16)
}

/// Seconds of one pass, the best of several measurements.
fn best(
    stream: &Stream,
    mut pass: impl FnMut(&Stream) -> Result<(), EngineError>,
) -> Result<f64, EngineError> {
    let mut time = |num_passes: u32| -> Result<Duration, EngineError> {
        let started = Instant::now();
        (0..num_passes).try_for_each(|_| pass(stream))?;
        stream.synchronize()?;
        Ok(started.elapsed())
    };
    time(1)?; // pages and code arrive
    let once = time(1)?.max(Duration::from_micros(1));
    let wished = (LEAST_TIME.as_secs_f64() / once.as_secs_f64()).ceil();
    let num_passes = (wished as u32).clamp(1, MAX_PASSES);
    let mut best = f64::INFINITY;
    for _ in 0..NUM_ROUNDS {
        best = best.min(time(num_passes)?.as_secs_f64() / f64::from(num_passes));
    }
    Ok(best)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_buffer_is_far_larger_than_the_cache_and_fits_beside_others() {
        assert_eq!(buffer_bytes(50 << 20, 100 << 30), 512 << 20, "H200");
        assert_eq!(buffer_bytes(128 << 20, 100 << 30), 1 << 30);
        assert_eq!(buffer_bytes(4 << 20, 1 << 30), 128 << 20, "still 32 times Orin's cache");
        assert_eq!(buffer_bytes(4 << 20, 0), 1 << 16);
    }
}
