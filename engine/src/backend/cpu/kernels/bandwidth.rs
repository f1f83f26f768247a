//! The yardstick of every matrix-vector product: how fast this machine reads memory it does nothing with.

use super::super::{
    aligned::AlignedVec,
    pool::ThreadPool,
    simd::{LANES, Simd},
    vectors::{Kernel, Vectors},
};
use std::sync::atomic::{AtomicU32, Ordering};

/// Numbers one task reads, 256 KiB: small enough that threads end together, large enough to stream.
const TASK_LEN: usize = 1 << 16;

/// A buffer to read through. The caller takes the time: bytes read over seconds is the bandwidth that kernels compete with.
#[derive(Debug)]
pub struct ReadProbe {
    values: AlignedVec<f32>,
}

impl ReadProbe {
    /// A buffer of `num_bytes`, rounded up; larger than the last-level cache to measure memory. Written once, so that every page
    /// exists.
    #[must_use]
    pub fn new(num_bytes: usize) -> Self {
        let mut values = AlignedVec::zeroed(num_bytes.div_ceil(size_of::<f32>()));
        values.as_mut_slice().fill(1.0);
        Self { values }
    }

    /// Bytes of one [`ReadProbe::read`].
    #[must_use]
    pub fn num_bytes(&self) -> usize {
        size_of_val(self.values.as_slice())
    }

    /// Reads every byte once on all threads; the checksum only keeps the compiler from leaving the reading out.
    #[must_use]
    pub fn read(&self, pool: &ThreadPool) -> u32 {
        let (values, vectors) = (self.values.as_slice(), Vectors::detect());
        let checksum = AtomicU32::new(0);
        pool.run(values.len().div_ceil(TASK_LEN), &|task_idx| {
            let first = task_idx * TASK_LEN;
            let mut sum = 0;
            vectors.run(Fold { values: &values[first..values.len().min(first + TASK_LEN)], sum: &mut sum });
            checksum.fetch_xor(sum, Ordering::Relaxed);
        });
        checksum.into_inner()
    }
}

/// `sum = ⊕ values`: four loads in flight, as wide as the machine has them. With 16-byte ones two cores took 20 ms for what they
/// can read in 14 (Ice Lake, 336 MB, 2026-11-22).
struct Fold<'a> {
    values: &'a [f32],
    sum: &'a mut u32,
}

impl Kernel for Fold<'_> {
    #[inline(always)]
    fn run<S: Simd>(self) {
        let mut sums = [S::zero(); 4];
        let (chunks, rest) = self.values.as_chunks::<LANES>();
        let (quads, chunks) = chunks.as_chunks::<4>();
        for quad in quads {
            for (sum, chunk) in sums.iter_mut().zip(quad) {
                *sum = S::xor(*sum, S::load(chunk));
            }
        }
        for chunk in chunks {
            sums[0] = S::xor(sums[0], S::load(chunk));
        }
        for lanes in sums.map(S::to_array).iter().map(<[f32; LANES]>::as_slice).chain([rest]) {
            *self.sum = lanes.iter().fold(*self.sum, |all, value| all ^ value.to_bits());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_value_of_the_buffer_counts() {
        let pool = ThreadPool::new(2).unwrap();
        let len = 3 * TASK_LEN / 2 + 21;
        let mut probe = ReadProbe::new(4 * len);
        let before = probe.read(&pool);
        for at in [0, 15, 17, TASK_LEN - 1, TASK_LEN, len - 22, len - 17, len - 1] {
            let flip = |value: f32| f32::from_bits(value.to_bits() ^ 1);
            probe.values.as_mut_slice()[at] = flip(probe.values.as_slice()[at]);
            assert_ne!(probe.read(&pool), before, "value {at}");
            probe.values.as_mut_slice()[at] = flip(probe.values.as_slice()[at]);
        }
    }
}
