//! The work of a perception frame: convolutions and matrix products on a stream ahead of all others, in the context that the CUDA runtime
//! would give a perception library.

use std::{
    sync::atomic::{AtomicBool, Ordering},
    thread,
    time::{Duration, Instant},
};

use takt_engine::{EngineError, backend::cuda::GpuOptions};
use takt_kernels_cu::{
    driver::{context::Context, memory::DeviceBuffer, module::Kernels, stream::Stream},
    launch::{
        Launch,
        perception::{CHANNELS, INNER, OUTPUTS, PIXELS, Perception},
    },
};

use crate::bench::gpu::{device, measures};

/// Blocks of a convolution for each multiprocessor: as many as it runs at once.
const BLOCKS_PER_SM: usize = 4;
/// Pixels of such a block.
const BLOCK_PIXELS: usize = 128;
/// Most links of a frame.
pub const MAX_LINKS: u32 = 10_000;
/// Frames before those that count, in every run.
const NUM_WARM: usize = 3;
/// How often a frame's length is corrected.
const NUM_CORRECTIONS: usize = 4;

/// A frame's work, ready to be done again and again. Fields are given back in their order.
#[derive(Debug)]
pub struct Chain {
    stream: Stream,
    kernels: Kernels,
    link: [Launch; 2],
    num_links: u32,
    _buffers: Vec<DeviceBuffer>,
}

/// Frames at a fixed rate.
#[derive(Debug, Clone, Default)]
pub struct Frames {
    /// From the launch until the host knows that it is done.
    pub times: Vec<Duration>,
    /// Beats at which the frame before was not done.
    pub num_missed: usize,
}

impl Chain {
    /// A chain of one link, on the device that the CUDA backend would open.
    ///
    /// # Errors
    /// [`EngineError::Unsupported`] without a device, a driver or kernels for it, [`EngineError::Capacity`] without memory,
    /// [`EngineError::Backend`] when the device fails.
    pub fn open(gpu: &GpuOptions) -> Result<Self, EngineError> {
        let device = device()?;
        let context = Context::primary(&device)?;
        let mut kernels = measures(&context, gpu)?;
        let stream = Stream::ahead_of_others(&context)?;
        let (height, width) = image_size(usize::try_from(device.num_sms).unwrap_or(1));
        let num_pixels = height * width;
        let buffer = |num_bytes: usize| DeviceBuffer::new(&context, num_bytes, "the perception stand-in");
        let buffers = vec![
            buffer(num_pixels * CHANNELS * 4)?,
            buffer(9 * CHANNELS * CHANNELS * 4)?,
            buffer(num_pixels * CHANNELS * 2)?,
            buffer(OUTPUTS * INNER * 2)?,
            buffer(num_pixels * CHANNELS / INNER * OUTPUTS * 2)?,
        ];
        // Numbers of usual size: what is multiplied takes no other path than in a real network.
        let ones = |num_values: usize, value: f32| -> Vec<u8> { value.to_le_bytes().repeat(num_values) };
        stream.upload(&ones(num_pixels * CHANNELS, 0.5), &buffers[0], 0)?;
        stream.upload(&ones(9 * CHANNELS * CHANNELS, 0.01), &buffers[1], 0)?;
        stream.upload(&[0x80, 0x3c].repeat(OUTPUTS * INNER), &buffers[3], 0)?; // BF16 2^-6
        let [image, weights, features, matrix, out] =
            [0, 1, 2, 3, 4].map(|idx: usize| buffers[idx].address());
        let link = Perception { image, weights, features, matrix, out, height, width }.launches()?;
        link.iter().try_for_each(|launch| kernels.prepare(launch))?;
        Ok(Self { stream, kernels, link, num_links: 1, _buffers: buffers })
    }

    /// Links of a frame: a convolution and a product each.
    #[must_use]
    pub fn num_links(&self) -> u32 {
        self.num_links
    }

    /// A frame of as many links as another chain's.
    #[must_use]
    pub fn with_links(self, num_links: u32) -> Self {
        Self { num_links: num_links.clamp(1, MAX_LINKS), ..self }
    }

    /// As many links as take about `wished`, with nobody else at work; says what a frame takes then.
    ///
    /// # Errors
    /// [`EngineError::Backend`] when the device fails.
    pub fn calibrate(&mut self, wished: Duration) -> Result<Duration, EngineError> {
        self.frame()?;
        let mut took = self.frame()?;
        for _ in 0..NUM_CORRECTIONS {
            let factor = wished.as_secs_f64() / took.as_secs_f64().max(1e-7);
            let links = (f64::from(self.num_links) * factor).round();
            self.num_links = (links.clamp(1.0, f64::from(MAX_LINKS))) as u32; // within the clamp
            self.frame()?;
            took = self.frame()?;
        }
        Ok(took)
    }

    /// One frame, from its launch until the host knows that it is done.
    ///
    /// # Errors
    /// [`EngineError::Backend`] when the device fails.
    pub fn frame(&mut self) -> Result<Duration, EngineError> {
        let started = Instant::now();
        self.stream.context().make_current()?;
        for _ in 0..self.num_links {
            self.link.iter().try_for_each(|launch| self.stream.launch(&mut self.kernels, launch))?;
        }
        self.stream.synchronize()?;
        Ok(started.elapsed())
    }

    /// A frame on every beat of `hz`, for `length`, after a few that do not count. Ends early when `cancelled`.
    ///
    /// # Errors
    /// [`EngineError::Backend`] when the device fails.
    pub fn run(&mut self, hz: u32, length: Duration, cancelled: &AtomicBool) -> Result<Frames, EngineError> {
        let period = Duration::from_secs(1) / hz.max(1);
        let mut frames = Frames::default();
        for _ in 0..NUM_WARM {
            thread::sleep(period.saturating_sub(self.frame()?));
        }
        let started = Instant::now();
        let mut beat = started;
        // No sum of the two: a length may be longer than a clock goes.
        while beat.saturating_duration_since(started) < length && !cancelled.load(Ordering::Relaxed) {
            thread::sleep(beat.saturating_duration_since(Instant::now()));
            frames.times.push(self.frame()?);
            beat += period;
            // A beat that has passed already is missed: a camera's next picture takes its place.
            while beat + period / 2 < Instant::now() {
                beat += period;
                frames.num_missed += 1;
            }
        }
        Ok(frames)
    }
}

/// Height and width of an image whose convolution fills the device once.
fn image_size(num_sms: usize) -> (usize, usize) {
    let num_pixels = (num_sms.max(1) * BLOCKS_PER_SM * BLOCK_PIXELS).next_multiple_of(PIXELS);
    // 64 pixels a row, so 16 rows a unit of pixels.
    (num_pixels / 64, 64)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_image_fills_the_device_and_is_whole_blocks() {
        for num_sms in [1, 8, 16, 20, 132, 1000] {
            let (height, width) = image_size(num_sms);
            assert!(height.is_multiple_of(8) && width.is_multiple_of(16));
            assert!((height * width).is_multiple_of(PIXELS));
            let num_blocks = height * width / BLOCK_PIXELS;
            assert!((num_sms * BLOCKS_PER_SM..num_sms * BLOCKS_PER_SM + 8).contains(&num_blocks));
        }
    }
}
