//! The yardstick of every matrix-vector product: how fast this machine reads memory it does nothing with.

use super::super::{aligned::AlignedVec, pool::ThreadPool};
use std::sync::atomic::{AtomicU32, Ordering};

/// Bytes one task reads: small enough that threads end together, large enough to stream.
const TASK_BYTES: usize = 1 << 18;

/// A buffer to read through. The caller takes the time: bytes read over seconds is the bandwidth that kernels compete with.
#[derive(Debug)]
pub struct ReadProbe {
    bytes: AlignedVec<u8>,
}

impl ReadProbe {
    /// A buffer of `num_bytes`; larger than the last-level cache to measure memory. Written once, so that every page exists.
    #[must_use]
    pub fn new(num_bytes: usize) -> Self {
        let mut bytes = AlignedVec::zeroed(num_bytes);
        bytes.as_mut_slice().fill(0x5a);
        Self { bytes }
    }

    /// Bytes of one [`ReadProbe::read`].
    #[must_use]
    pub fn num_bytes(&self) -> usize {
        self.bytes.as_slice().len()
    }

    /// Reads every byte once on all threads; the checksum only keeps the compiler from leaving the reading out.
    #[must_use]
    pub fn read(&self, pool: &ThreadPool) -> u32 {
        let bytes = self.bytes.as_slice();
        let checksum = AtomicU32::new(0);
        pool.run(bytes.len().div_ceil(TASK_BYTES), &|task_idx| {
            let first = task_idx * TASK_BYTES;
            let part = &bytes[first..bytes.len().min(first + TASK_BYTES)];
            checksum.fetch_xor(fold(part), Ordering::Relaxed);
        });
        checksum.into_inner()
    }
}

/// 64 running XORs of 32 bits: several independent vector loads in flight on any instruction set.
fn fold(bytes: &[u8]) -> u32 {
    let mut sums = [0u32; 64];
    for chunk in bytes.as_chunks::<256>().0 {
        for (sum, raw) in sums.iter_mut().zip(chunk.as_chunks::<4>().0) {
            *sum ^= u32::from_le_bytes(*raw);
        }
    }
    sums.iter().fold(0, |all, sum| all ^ sum)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_byte_of_the_buffer_counts() {
        let pool = ThreadPool::new(2).unwrap();
        let mut probe = ReadProbe::new(3 * TASK_BYTES / 2);
        let before = probe.read(&pool);
        for at in [0, TASK_BYTES - 1, TASK_BYTES, 3 * TASK_BYTES / 2 - 1] {
            probe.bytes.as_mut_slice()[at] ^= 1;
            assert_ne!(probe.read(&pool), before, "byte {at}");
            probe.bytes.as_mut_slice()[at] ^= 1;
        }
    }
}
