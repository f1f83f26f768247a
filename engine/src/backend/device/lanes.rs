//! Keys and values in device memory: lanes of fixed capacity, and snapshots of their prefixes.

use std::{collections::BTreeMap, time::Duration};

use takt_kernels_cu::{
    driver::{
        context::Context,
        memory::{DeviceBuffer, MappedBuffer},
        module::Kernels,
        stream::Stream,
    },
    launch::{
        DeviceAddress, KvCache, KvFormat,
        kv_compact::{Compaction, Direction, KvPlanes, MOVE_HEADER, SnapshotCopy},
    },
};

use super::captures;
use crate::{
    Result,
    kv::{KvKind, LaneBook, LaneId, SnapshotId, no_snapshot},
    spec::DecoderSpec,
};

/// All lanes: per layer keys `[num_lanes, G, rows, d]`, values, and F32 scales where the format has them.
#[derive(Debug)]
pub(in crate::backend) struct DeviceLanes {
    pub book: LaneBook,
    layout: LaneLayout,
    buffer: DeviceBuffer,
    /// What [`KvPlanes::addresses`] points at.
    planes: DeviceBuffer,
    /// The rows that a path keeps, [`MOVE_BYTES`] a lane.
    moves: MappedBuffer,
    snapshots: BTreeMap<SnapshotId, Snapshot>,
    next_snapshot: u64,
    /// What is not done by then is taken for hung.
    limit: Duration,
}

#[derive(Debug)]
struct Snapshot {
    len: usize,
    rows: DeviceBuffer,
    /// Where scales begin in `rows`; `None` without.
    scales: Option<usize>,
}

/// How large lanes are.
#[derive(Debug, Clone, Copy)]
pub(in crate::backend) struct LaneSizes {
    pub format: KvFormat,
    /// F32 scales lie beside the rows; whoever reads rows that are scaled without has the scales.
    pub has_scales: bool,
    pub num_lanes: usize,
    /// Tokens one lane holds.
    pub capacity: usize,
    /// Rows of a lane; those beyond its capacity are for whoever pads.
    pub rows: usize,
}

impl LaneSizes {
    /// Of lanes with a row for each token.
    pub(in crate::backend) fn new(kv: KvKind, num_lanes: usize, capacity: usize) -> Self {
        let format = match kv {
            KvKind::Bf16 => KvFormat::Bf16,
            KvKind::Fp8 => KvFormat::Fp8,
            KvKind::Int8 => KvFormat::Int8,
        };
        Self { format, has_scales: format.has_scales(), num_lanes, capacity, rows: capacity }
    }
}

/// Where everything lies in one allocation.
#[derive(Debug, Clone, Copy)]
pub(in crate::backend) struct LaneLayout {
    sizes: LaneSizes,
    num_layers: usize,
    num_kv_heads: usize,
    head_dim: usize,
}

impl LaneLayout {
    pub(in crate::backend) fn new(spec: &DecoderSpec, sizes: LaneSizes) -> Self {
        Self { sizes, num_layers: spec.num_layers, num_kv_heads: spec.num_kv_heads, head_dim: spec.head_dim }
    }

    /// Bytes of a row without its scale.
    pub(in crate::backend) fn row_bytes(&self) -> usize {
        self.head_dim * self.sizes.format.element_bytes()
    }

    /// Rows of one layer's keys.
    fn layer_rows(&self) -> usize {
        self.sizes.num_lanes * self.num_kv_heads * self.sizes.rows
    }

    /// Of one layer's keys, or values, without scales; each begins aligned.
    fn plane_bytes(&self) -> usize {
        (self.layer_rows() * self.row_bytes()).next_multiple_of(ALIGNMENT)
    }

    fn scale_bytes(&self) -> usize {
        if self.sizes.has_scales {
            (self.layer_rows() * size_of::<f32>()).next_multiple_of(ALIGNMENT)
        } else {
            0
        }
    }

    /// Of all lanes.
    pub(in crate::backend) fn num_bytes(&self) -> usize {
        self.num_layers * 2 * (self.plane_bytes() + self.scale_bytes())
    }

    /// Of the addresses of all planes.
    pub(in crate::backend) fn table_bytes(&self) -> usize {
        self.num_layers * 4 * size_of::<u64>()
    }

    /// Of pinned memory.
    pub(in crate::backend) fn pinned_bytes(&self) -> usize {
        self.sizes.num_lanes * MOVE_BYTES
    }

    /// Offsets of a layer's keys, values, key scales and value scales.
    fn layer(&self, layer_idx: usize) -> [usize; 4] {
        let (plane, scale) = (self.plane_bytes(), self.scale_bytes());
        let start = layer_idx * 2 * (plane + scale);
        [start, start + plane, start + 2 * plane, start + 2 * plane + scale]
    }
}

const ALIGNMENT: usize = 256;

/// Most tokens from a tree's root to a leaf whose rows are moved together, the root aside, which stays.
pub(in crate::backend) const MAX_TREE_DEPTH: usize = 64;

/// Bytes that say which rows of a lane move; each lane's begin aligned.
const MOVE_BYTES: usize = ((MOVE_HEADER + MAX_TREE_DEPTH) * size_of::<i32>()).next_multiple_of(ALIGNMENT);

impl DeviceLanes {
    /// Empty lanes.
    pub(in crate::backend) fn new(
        context: &Context,
        stream: &Stream,
        layout: LaneLayout,
        limit: Duration,
    ) -> Result<Self> {
        let buffer = DeviceBuffer::new(context, layout.num_bytes(), "the KV cache")?;
        let planes = DeviceBuffer::new(context, layout.table_bytes(), "addresses of the KV cache")?;
        let mut addresses = Vec::new();
        for layer_idx in 0..layout.num_layers {
            for (idx, offset) in layout.layer(layer_idx).into_iter().enumerate() {
                let address = if idx < 2 || layout.sizes.has_scales {
                    buffer.address().offset(offset)?
                } else {
                    DeviceAddress::NULL
                };
                addresses.extend(address.0.to_le_bytes());
            }
        }
        stream.upload(&addresses, &planes, 0)?;
        Ok(Self {
            book: LaneBook::new(layout.sizes.num_lanes, layout.sizes.capacity),
            layout,
            buffer,
            planes,
            moves: MappedBuffer::new(context, layout.pinned_bytes(), "rows to keep")?,
            snapshots: BTreeMap::new(),
            next_snapshot: 0,
            limit,
        })
    }

    pub(in crate::backend) fn num_bytes(&self) -> u64 {
        self.buffer.num_bytes() as u64
    }

    /// One layer's cache, as kernels know it.
    pub(in crate::backend) fn cache(&self, layer_idx: usize) -> Result<KvCache> {
        let layout = &self.layout;
        let [keys, values, key_scales, value_scales] = layout.layer(layer_idx);
        let scale = |offset| {
            if layout.sizes.has_scales {
                self.buffer.address().offset(offset)
            } else {
                Ok(DeviceAddress::NULL)
            }
        };
        Ok(KvCache {
            format: layout.sizes.format,
            keys: self.buffer.address().offset(keys)?,
            values: self.buffer.address().offset(values)?,
            key_scales: scale(key_scales)?,
            value_scales: scale(value_scales)?,
            num_kv_heads: layout.num_kv_heads,
            capacity: layout.sizes.rows,
            head_dim: layout.head_dim,
        })
    }

    /// Fills all lanes with zeros, in the stream's order: for whoever multiplies rows that no token has written by nothing.
    pub(in crate::backend) fn clear(&self, stream: &Stream) -> Result<()> {
        Ok(stream.zero(&self.buffer)?)
    }

    /// As kernels that go through all layers know it.
    pub(in crate::backend) fn kv_planes(&self) -> KvPlanes {
        KvPlanes {
            addresses: self.planes.address(),
            num_layers: self.layout.num_layers,
            num_kv_heads: self.layout.num_kv_heads,
            capacity: self.layout.sizes.rows,
            row_bytes: self.layout.row_bytes(),
        }
    }

    /// Commits a path of the tree noted last, moving its rows together. Nobody waits for it: whatever comes after it in the stream finds the rows
    /// moved, and the lane's place in pinned memory, which says where to, is not written again before a step with another tree was waited for.
    ///
    /// # Errors
    /// [`crate::EngineError::Input`] for what is no path; [`crate::EngineError::Backend`] when the device fails.
    pub(in crate::backend) fn keep(
        &mut self,
        stream: &Stream,
        kernels: &mut Kernels,
        lane: LaneId,
        path: &[usize],
    ) -> Result<()> {
        self.book.check_path(lane, path)?;
        let committed_len = self.book.committed_len(lane);
        // Nodes in their places already need no move: a chain keeps all of its rows.
        let moved = path.iter().enumerate().filter(|(depth, node)| depth != *node);
        if let Some((first, _)) = moved.clone().next() {
            let header = [lane.0, path.len() - first, committed_len + first];
            let sources = path[first..].iter().map(|node| committed_len + node);
            let first_byte = lane.0 * MOVE_BYTES;
            // Of this lane alone: the device may be reading the others'.
            let moves = self.moves.part_mut(first_byte..first_byte + MOVE_BYTES);
            let words = moves.chunks_exact_mut(size_of::<i32>());
            for (to, value) in words.zip(header.into_iter().chain(sources)) {
                to.copy_from_slice(&i32::try_from(value).unwrap_or(-1).to_ne_bytes());
            }
            let compaction = Compaction {
                planes: self.kv_planes(),
                moves: self.moves.address().offset(first_byte)?,
                num_moves: 1,
                max_path: MAX_TREE_DEPTH,
            };
            stream.context().make_current()?;
            stream.launch(kernels, &compaction.launch()?)?;
        }
        self.book.commit(lane, path.len());
        Ok(())
    }

    /// Copies `[0, len)` of `lane` into a new snapshot.
    ///
    /// # Errors
    /// [`crate::EngineError::Input`] when the lane does not exist or has fewer tokens; [`crate::EngineError::Capacity`] without memory.
    pub(in crate::backend) fn save_snapshot(
        &mut self,
        stream: &Stream,
        kernels: &mut Kernels,
        lane: LaneId,
        len: usize,
    ) -> Result<SnapshotId> {
        self.book.check_committed(lane, len)?;
        let num_rows = 2 * self.layout.num_layers * self.layout.num_kv_heads * len;
        let row_bytes = (num_rows * self.layout.row_bytes()).next_multiple_of(ALIGNMENT);
        let scale_bytes = if self.layout.sizes.has_scales { num_rows * size_of::<f32>() } else { 0 };
        let rows = DeviceBuffer::new(stream.context(), row_bytes + scale_bytes, "a prefix snapshot")?;
        let scales = self.layout.sizes.has_scales.then_some(row_bytes);
        let snapshot = Snapshot { len, rows, scales };
        self.copy(stream, kernels, lane, &snapshot, Direction::Save)?;
        let id = SnapshotId(self.next_snapshot);
        self.next_snapshot += 1;
        self.snapshots.insert(id, snapshot);
        Ok(id)
    }

    /// Replaces the contents of `lane` by the snapshot.
    ///
    /// # Errors
    /// [`crate::EngineError::Input`] when either does not exist.
    pub(in crate::backend) fn restore_snapshot(
        &mut self,
        stream: &Stream,
        kernels: &mut Kernels,
        lane: LaneId,
        id: SnapshotId,
    ) -> Result<()> {
        self.book.check_committed(lane, 0)?;
        let snapshot = self.snapshots.get(&id).ok_or_else(|| no_snapshot(id))?;
        self.copy(stream, kernels, lane, snapshot, Direction::Restore)?;
        self.book.set(lane, snapshot.len);
        Ok(())
    }

    /// Frees a snapshot; unknown ones are ignored.
    pub(in crate::backend) fn drop_snapshot(&mut self, id: SnapshotId) {
        self.snapshots.remove(&id);
    }

    fn copy(
        &self,
        stream: &Stream,
        kernels: &mut Kernels,
        lane: LaneId,
        snapshot: &Snapshot,
        direction: Direction,
    ) -> Result<()> {
        if snapshot.len == 0 {
            return Ok(());
        }
        let scales = snapshot.scales.map(|start| snapshot.rows.address().offset(start)).transpose()?;
        let copy = SnapshotCopy {
            planes: self.kv_planes(),
            rows: snapshot.rows.address(),
            scales: scales.unwrap_or(DeviceAddress::NULL),
            lane: lane.0,
            len: snapshot.len,
            direction,
        };
        stream.context().make_current()?;
        stream.launch(kernels, &copy.launch()?)?;
        // A snapshot may be dropped right after it was restored.
        captures::wait(stream, Duration::ZERO, self.limit)?;
        Ok(())
    }
}
