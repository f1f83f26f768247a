//! New rows of the cache put behind the rows of their lanes.

use super::{
    DeviceAddress, Launch, LaunchError, aligned, at_most, kv_compact::KvPlanes, multiple_of, non_zero, to_i32,
};

/// 32-bit words of an entry of [`Append::places`]: the lane's row that the first new row goes to, and how many of its new rows count.
pub const PLACE_WORDS: usize = 2;

/// New rows that a TensorRT plan hands out, put into the lanes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Append {
    /// The cache; without scales.
    pub planes: KvPlanes,
    /// Of each layer keys, then values: `[batch, G, num_tokens, row_bytes]` at multiples of [`Self::tensor_bytes`].
    pub rows: DeviceAddress,
    /// I32 `[batch, PLACE_WORDS]`, read on the device.
    pub places: DeviceAddress,
    /// From tensor to tensor of `rows`, a multiple of 16.
    pub tensor_bytes: usize,
    /// The lane of the first entry; the others follow.
    pub first_lane: usize,
    /// Lanes.
    pub batch: usize,
    /// New rows of each, padding included.
    pub num_tokens: usize,
}

impl Append {
    /// The launch.
    ///
    /// # Errors
    /// A size of 0 or too large, rows of no whole 16 bytes or more than lie between two tensors, an address that is missing or not aligned.
    pub fn launch(&self) -> Result<Launch, LaunchError> {
        let planes = &self.planes;
        let geometry = planes.grid(non_zero("lanes", self.batch)?)?;
        at_most("new rows", non_zero("new rows", self.num_tokens)?, planes.capacity)?;
        let lens = [planes.num_kv_heads, self.num_tokens, planes.row_bytes];
        let needed = lens.into_iter().try_fold(self.batch, usize::checked_mul).unwrap_or(usize::MAX);
        at_most("bytes of new rows", needed, multiple_of("bytes of a tensor", self.tensor_bytes, 16)?)?;
        let arguments = [
            planes.addresses.into(),
            aligned("new rows", self.rows, 16)?.into(),
            aligned("places", self.places, 4)?.into(),
            u64::try_from(self.tensor_bytes).unwrap_or(u64::MAX).into(),
            to_i32("lane", self.first_lane)?.into(),
            to_i32("new rows", self.num_tokens)?.into(),
            to_i32("key/value heads", planes.num_kv_heads)?.into(),
            to_i32("rows of a lane", planes.capacity)?.into(),
            to_i32("bytes of a row", planes.row_bytes)?.into(),
        ];
        Launch::new("kv_append", geometry, arguments)
    }
}
