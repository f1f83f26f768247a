//! Memory read, and nothing else: what decoding is held against.

use super::{DeviceAddress, Geometry, Launch, LaunchError, aligned, multiple_of, non_zero, to_u32};

const THREADS: u32 = 256;
/// Blocks a multiprocessor runs at once.
const BLOCKS_PER_SM: usize = 4;

/// Reads `num_bytes` once; every block writes the exclusive or of what it read.
#[derive(Debug, Clone, Copy)]
pub struct ReadMemory {
    /// What is read, 16-byte aligned.
    pub from: DeviceAddress,
    /// U32 `[num_blocks]`.
    pub out: DeviceAddress,
    /// A multiple of 16.
    pub num_bytes: usize,
    /// Of the device, or of the part in use.
    pub num_multiprocessors: usize,
}

impl ReadMemory {
    /// Blocks, and values written.
    #[must_use]
    pub fn num_blocks(&self) -> usize {
        self.num_multiprocessors.max(1).saturating_mul(BLOCKS_PER_SM)
    }

    /// The launch.
    ///
    /// # Errors
    /// Bytes that are none or not whole pieces; a buffer that is missing or misaligned.
    pub fn launch(&self) -> Result<Launch, LaunchError> {
        let num_bytes = multiple_of("bytes", non_zero("bytes", self.num_bytes)?, 16)?;
        let arguments = vec![
            aligned("what is read", self.from, 16)?.into(),
            aligned("sums", self.out, 4)?.into(),
            u64::try_from(num_bytes / 16).unwrap_or(u64::MAX).into(),
        ];
        let blocks = to_u32("blocks", self.num_blocks())?;
        Launch::new("read_memory", Geometry::linear(blocks, THREADS), arguments)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn whole_pieces_are_read_by_as_many_blocks_as_run_at_once() {
        let address = DeviceAddress(256);
        let read = ReadMemory { from: address, out: address, num_bytes: 48, num_multiprocessors: 16 };
        assert_eq!(read.launch().unwrap().geometry().grid, [64, 1, 1]);
        assert_eq!(
            ReadMemory { num_bytes: 20, ..read }.launch(),
            Err(LaunchError::NotMultiple { what: "bytes", found: 20, multiple: 16 })
        );
        assert!(ReadMemory { num_bytes: 0, ..read }.launch().is_err());
        assert!(ReadMemory { from: DeviceAddress(8), ..read }.launch().is_err());
    }
}
