//! Rows of the cache moved: accepted paths to the end of their lanes, prefixes to snapshots and back.

use super::{
    DeviceAddress, Geometry, Launch, LaunchError, aligned, at_most, multiple_of, non_zero, to_i32, to_u32,
};

const THREADS: u32 = 128;
/// Words of a move before its source rows: lane, number of rows, first destination.
pub const MOVE_HEADER: usize = 3;

/// Keys and values of all layers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct KvPlanes {
    /// `[num_layers, 4]` U64: addresses of keys, values, key scales and value scales; 0 for no scales.
    pub addresses: DeviceAddress,
    /// Layers.
    pub num_layers: usize,
    /// Heads of a layer.
    pub num_kv_heads: usize,
    /// Rows of a lane.
    pub capacity: usize,
    /// Bytes of a row without its scale: a multiple of 16.
    pub row_bytes: usize,
}

impl KvPlanes {
    pub(super) fn grid(&self, blocks: usize) -> Result<Geometry, LaunchError> {
        non_zero("layers", self.num_layers)?;
        non_zero("key/value heads", self.num_kv_heads)?;
        non_zero("rows of a lane", self.capacity)?;
        multiple_of("bytes of a row", non_zero("bytes of a row", self.row_bytes)?, 16)?;
        aligned("addresses of layers", self.addresses, 8)?;
        let heads = to_u32("heads of all layers", self.num_layers.saturating_mul(self.num_kv_heads))?;
        Ok(Geometry { grid: [to_u32("blocks", blocks)?, heads, 2], block: [THREADS, 1, 1], shared_bytes: 0 })
    }
}

/// Rows moved to the committed end of their lanes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Compaction {
    /// The cache.
    pub planes: KvPlanes,
    /// `[num_moves, MOVE_HEADER + max_path]` I32: lane (-1 for none), number of rows, first destination, source rows. Sources ascend, and
    /// source i is not before destination i.
    pub moves: DeviceAddress,
    /// Lanes moved at most.
    pub num_moves: usize,
    /// Most rows of a move.
    pub max_path: usize,
}

impl Compaction {
    /// The launch.
    ///
    /// # Errors
    /// A size of 0 or too large, rows of no whole 16 bytes, an address that is missing or not aligned.
    pub fn launch(&self) -> Result<Launch, LaunchError> {
        let geometry = self.planes.grid(non_zero("moves", self.num_moves)?)?;
        let arguments = vec![
            self.planes.addresses.into(),
            aligned("moves", self.moves, 4)?.into(),
            to_i32("rows of a move", non_zero("rows of a move", self.max_path)?)?.into(),
            to_i32("key/value heads", self.planes.num_kv_heads)?.into(),
            to_i32("rows of a lane", self.planes.capacity)?.into(),
            to_i32("bytes of a row", self.planes.row_bytes)?.into(),
        ];
        Launch::new("kv_compact", geometry, arguments)
    }
}

/// Which way a prefix is copied.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Direction {
    /// From the lane.
    Save,
    /// To the lane.
    Restore,
}

/// Rows `[0, len)` of a lane, copied to a snapshot or back.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SnapshotCopy {
    /// The cache.
    pub planes: KvPlanes,
    /// `[2, num_layers · num_kv_heads, len, row_bytes]`: keys, then values.
    pub rows: DeviceAddress,
    /// `[2, num_layers · num_kv_heads, len]` F32; null where the format has none.
    pub scales: DeviceAddress,
    /// The lane.
    pub lane: usize,
    /// Rows of a head, as many as the snapshot holds.
    pub len: usize,
    /// Which way.
    pub direction: Direction,
}

impl SnapshotCopy {
    /// The launch.
    ///
    /// # Errors
    /// A size of 0 or too large, rows of no whole 16 bytes, an address that is missing or not aligned.
    pub fn launch(&self) -> Result<Launch, LaunchError> {
        /// 16-byte words that a thread copies at least.
        const WORDS_PER_THREAD: usize = 8;
        let planes = &self.planes;
        at_most("rows of a snapshot", non_zero("rows of a snapshot", self.len)?, planes.capacity)?;
        let words = self.len.saturating_mul(planes.row_bytes / 16);
        let blocks = words.div_ceil(128 * WORDS_PER_THREAD);
        let geometry = planes.grid(blocks.max(1))?;
        aligned("rows of the snapshot", self.rows, 16)?;
        if self.scales != DeviceAddress::NULL {
            aligned("scales of the snapshot", self.scales, 4)?;
        }
        let arguments = vec![
            planes.addresses.into(),
            self.rows.into(),
            self.scales.into(),
            to_i32("lane", self.lane)?.into(),
            to_i32("rows of a snapshot", self.len)?.into(),
            i32::from(self.direction == Direction::Restore).into(),
            to_i32("key/value heads", planes.num_kv_heads)?.into(),
            to_i32("rows of a lane", planes.capacity)?.into(),
            to_i32("bytes of a row", planes.row_bytes)?.into(),
        ];
        Launch::new("kv_snapshot", geometry, arguments)
    }
}
