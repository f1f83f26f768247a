//! The lanes and snapshots of one backend, in host memory.

use std::collections::BTreeMap;

use super::{HeadRows, KvKind, LaneBook, LaneId, SnapshotId, check_kv_budget, no_snapshot, row};
use crate::{EngineError, Result, spec::DecoderSpec};

/// KV lanes of fixed capacity, allocated once, and the snapshots taken from them.
///
/// A lane's keys lie `[num_layers, num_kv_heads, lane_capacity, head_dim]`, so that attention of one head streams one
/// contiguous run; values and scales alike. Rows at `committed_len` and beyond are tentative: whatever is there does not count.
#[derive(Debug)]
pub struct KvLanes {
    layout: Layout,
    book: LaneBook,
    /// Of every lane.
    rows: Vec<Rows>,
    snapshots: BTreeMap<SnapshotId, Snapshot>,
    next_snapshot: u64,
    num_bytes: u64,
}

#[derive(Debug, Clone, Copy)]
struct Layout {
    kind: KvKind,
    num_planes: usize,
    num_kv_heads: usize,
    head_dim: usize,
}

impl Layout {
    fn row_bytes(&self) -> usize {
        self.head_dim * self.kind.element_bytes()
    }

    /// Index of the run of rows of one layer and key/value head.
    fn plane(&self, layer_idx: usize, kv_head: usize) -> usize {
        layer_idx * self.num_kv_heads + kv_head
    }
}

#[derive(Debug)]
struct Snapshot {
    len: usize,
    rows: Rows,
}

/// Keys and values of all planes, `rows_per_plane` rows each.
#[derive(Debug)]
struct Rows {
    rows_per_plane: usize,
    keys: Vec<u8>,
    values: Vec<u8>,
    key_scales: Vec<f32>,
    value_scales: Vec<f32>,
}

impl Rows {
    fn new(layout: &Layout, rows_per_plane: usize) -> Result<Self> {
        let num_rows = layout.num_planes.checked_mul(rows_per_plane);
        let num_bytes = num_rows.and_then(|rows| rows.checked_mul(layout.row_bytes()));
        let (Some(num_rows), Some(num_bytes)) = (num_rows, num_bytes) else {
            return Err(EngineError::Capacity(format!(
                "a KV region of {rows_per_plane} tokens exceeds the address space"
            )));
        };
        Ok(Self {
            rows_per_plane,
            keys: zeroed(num_bytes)?,
            values: zeroed(num_bytes)?,
            key_scales: zeroed(num_rows)?,
            value_scales: zeroed(num_rows)?,
        })
    }

    /// Copies rows `[0, len)` of every plane from `source`, byte for byte.
    fn copy_prefix(&mut self, layout: &Layout, source: &Self, len: usize) {
        let width = layout.row_bytes();
        for plane in 0..layout.num_planes {
            let (to, from) = (plane * self.rows_per_plane, plane * source.rows_per_plane);
            let (to_bytes, from_bytes) = (to * width..(to + len) * width, from * width..(from + len) * width);
            self.keys[to_bytes.clone()].copy_from_slice(&source.keys[from_bytes.clone()]);
            self.values[to_bytes].copy_from_slice(&source.values[from_bytes]);
            self.key_scales[to..to + len].copy_from_slice(&source.key_scales[from..from + len]);
            self.value_scales[to..to + len].copy_from_slice(&source.value_scales[from..from + len]);
        }
    }
}

/// A vector of `len` zeros whose pages are touched now, so that no step faults them in.
fn zeroed<T: Copy + Default>(len: usize) -> Result<Vec<T>> {
    let mut vec = Vec::new();
    vec.try_reserve_exact(len).map_err(|_| {
        EngineError::Capacity(format!(
            "no memory for {} bytes of KV cache",
            len.saturating_mul(size_of::<T>())
        ))
    })?;
    vec.resize(len, T::default());
    Ok(vec)
}

impl KvLanes {
    /// Allocates `num_lanes` empty lanes of `lane_capacity` tokens.
    ///
    /// # Errors
    /// [`EngineError::Capacity`] when they take more than `budget_bytes` or more than the system gives.
    pub fn new(
        spec: &DecoderSpec,
        kind: KvKind,
        num_lanes: usize,
        lane_capacity: usize,
        budget_bytes: Option<u64>,
    ) -> Result<Self> {
        let num_bytes =
            check_kv_budget(spec, kind, num_lanes, lane_capacity, budget_bytes.unwrap_or(u64::MAX))?;
        let layout = Layout {
            kind,
            num_planes: spec.num_layers * spec.num_kv_heads,
            num_kv_heads: spec.num_kv_heads,
            head_dim: spec.head_dim,
        };
        let rows = (0..num_lanes).map(|_| Rows::new(&layout, lane_capacity)).collect::<Result<_>>()?;
        let book = LaneBook::new(num_lanes, lane_capacity);
        Ok(Self { layout, book, rows, snapshots: BTreeMap::new(), next_snapshot: 0, num_bytes })
    }

    /// Bytes of all lanes, without snapshots.
    #[must_use]
    pub fn num_bytes(&self) -> u64 {
        self.num_bytes
    }

    /// Tokens one lane holds.
    #[must_use]
    pub fn lane_capacity(&self) -> usize {
        self.book.lane_capacity()
    }

    /// Number of lanes.
    #[must_use]
    pub fn num_lanes(&self) -> usize {
        self.book.num_lanes()
    }

    /// How many tokens of each lane count.
    pub(crate) fn book(&self) -> &LaneBook {
        &self.book
    }

    /// Tokens of `lane` that count; 0 for a lane that does not exist.
    #[must_use]
    pub fn committed_len(&self, lane: LaneId) -> usize {
        self.book.committed_len(lane)
    }

    /// Stores key and value `[head_dim]` of one head as row `position`.
    #[inline(always)]
    pub(crate) fn store(&mut self, at: RowAddress, key: &[f32], value: &[f32]) {
        let plane = self.layout.plane(at.layer_idx, at.kv_head);
        let rows = &mut self.rows[at.lane.0];
        let row_idx = plane * rows.rows_per_plane + at.position;
        let width = self.layout.row_bytes();
        let bytes = row_idx * width..(row_idx + 1) * width;
        rows.key_scales[row_idx] = row::store(self.layout.kind, key, &mut rows.keys[bytes.clone()]);
        rows.value_scales[row_idx] = row::store(self.layout.kind, value, &mut rows.values[bytes]);
    }

    /// All rows of one layer and key/value head of `lane`.
    pub(crate) fn head_rows(&self, lane: LaneId, layer_idx: usize, kv_head: usize) -> HeadRows<'_> {
        let rows = &self.rows[lane.0];
        let first = self.layout.plane(layer_idx, kv_head) * rows.rows_per_plane;
        let (scales, width) = (first..first + rows.rows_per_plane, self.layout.row_bytes());
        let bytes = first * width..(first + rows.rows_per_plane) * width;
        HeadRows {
            kind: self.layout.kind,
            keys: &rows.keys[bytes.clone()],
            values: &rows.values[bytes],
            key_scales: &rows.key_scales[scales.clone()],
            value_scales: &rows.value_scales[scales],
        }
    }

    /// Makes the `num_tokens` tentative rows after the committed length count. Infallible: the plan was checked before.
    pub(crate) fn commit(&mut self, lane: LaneId, num_tokens: usize) {
        self.book.commit(lane, num_tokens);
    }

    /// Forgets the tokens of `lane` in `[len, committed_len)`.
    ///
    /// # Errors
    /// [`EngineError::Input`] when the lane does not exist or has fewer tokens.
    pub fn truncate(&mut self, lane: LaneId, len: usize) -> Result<()> {
        self.book.truncate(lane, len)
    }

    /// Notes that the rows behind the committed ones are a tree.
    pub(crate) fn note_tree(&mut self, lane: LaneId, parents: &[usize]) {
        self.book.note_tree(lane, parents);
    }

    /// Commits a path of the tree noted last, moving its rows together.
    ///
    /// # Errors
    /// [`EngineError::Input`] when the lane has no tree, or `path` is no path from its root.
    pub fn keep(&mut self, lane: LaneId, path: &[usize]) -> Result<()> {
        self.book.check_path(lane, path)?;
        let (layout, committed_len) = (self.layout, self.book.committed_len(lane));
        let rows = &mut self.rows[lane.0];
        let width = layout.row_bytes();
        for (depth, &node) in path.iter().enumerate().filter(|(depth, node)| depth != *node) {
            for plane in 0..layout.num_planes {
                let first = plane * rows.rows_per_plane + committed_len;
                let (from, to) = (first + node, first + depth);
                rows.keys.copy_within(from * width..(from + 1) * width, to * width);
                rows.values.copy_within(from * width..(from + 1) * width, to * width);
                rows.key_scales[to] = rows.key_scales[from];
                rows.value_scales[to] = rows.value_scales[from];
            }
        }
        self.book.commit(lane, path.len());
        Ok(())
    }

    /// Copies `[0, len)` of `lane` into a new snapshot.
    ///
    /// # Errors
    /// [`EngineError::Input`] when the lane does not exist or has fewer tokens; [`EngineError::Capacity`] without memory.
    pub fn save_snapshot(&mut self, lane: LaneId, len: usize) -> Result<SnapshotId> {
        self.book.check_committed(lane, len)?;
        let mut rows = Rows::new(&self.layout, len)?;
        rows.copy_prefix(&self.layout, &self.rows[lane.0], len);
        let id = SnapshotId(self.next_snapshot);
        self.next_snapshot += 1;
        self.snapshots.insert(id, Snapshot { len, rows });
        Ok(id)
    }

    /// Replaces the contents of `lane` by the snapshot.
    ///
    /// # Errors
    /// [`EngineError::Input`] when either does not exist.
    pub fn restore_snapshot(&mut self, lane: LaneId, snapshot: SnapshotId) -> Result<()> {
        self.book.check_committed(lane, 0)?;
        let stored = self.snapshots.get(&snapshot).ok_or_else(|| no_snapshot(snapshot))?;
        self.rows[lane.0].copy_prefix(&self.layout, &stored.rows, stored.len);
        self.book.set(lane, stored.len);
        Ok(())
    }

    /// Frees a snapshot; unknown ones are ignored.
    pub fn drop_snapshot(&mut self, snapshot: SnapshotId) {
        self.snapshots.remove(&snapshot);
    }
}

/// Where one head's key and value of one token go.
#[derive(Debug, Clone, Copy)]
pub(crate) struct RowAddress {
    /// The lane.
    pub lane: LaneId,
    /// The layer.
    pub layer_idx: usize,
    /// Key/value head.
    pub kv_head: usize,
    /// Position in the lane, `0..lane_capacity`.
    pub position: usize,
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::shapes;

    fn spec() -> DecoderSpec {
        DecoderSpec {
            num_layers: 3,
            num_kv_heads: 2,
            head_dim: 8,
            ..shapes::decoder_spec("qwen3-0.6b").unwrap()
        }
    }

    fn fill(lanes: &mut KvLanes, lane: LaneId, num_tokens: usize, seed: f32) {
        for position in 0..num_tokens {
            for (layer_idx, kv_head) in (0..3).flat_map(|layer| [(layer, 0), (layer, 1)]) {
                let key: Vec<f32> =
                    (0..8).map(|i| seed + (position * 8 + i) as f32 * 0.1 + layer_idx as f32).collect();
                let value: Vec<f32> = key.iter().map(|k| -k * 0.5 + kv_head as f32).collect();
                lanes.store(RowAddress { lane, layer_idx, kv_head, position }, &key, &value);
            }
        }
        lanes.commit(lane, num_tokens);
    }

    type Plane = (Vec<u8>, Vec<u8>, Vec<f32>, Vec<f32>);

    fn prefix(lanes: &KvLanes, lane: LaneId, len: usize) -> Vec<Plane> {
        let width = lanes.layout.row_bytes();
        (0..3)
            .flat_map(|layer| [(layer, 0), (layer, 1)])
            .map(|(layer_idx, kv_head)| {
                let rows = lanes.head_rows(lane, layer_idx, kv_head);
                let (keys, values) = (rows.keys[..len * width].to_vec(), rows.values[..len * width].to_vec());
                (keys, values, rows.key_scales[..len].to_vec(), rows.value_scales[..len].to_vec())
            })
            .collect()
    }

    #[test]
    fn a_restored_snapshot_is_byte_exact_and_survives_its_lane() {
        for kind in KvKind::ALL {
            let mut lanes = KvLanes::new(&spec(), kind, 2, 16, None).unwrap();
            fill(&mut lanes, LaneId(0), 10, 1.0);
            let before = prefix(&lanes, LaneId(0), 7);
            let snapshot = lanes.save_snapshot(LaneId(0), 7).unwrap();
            lanes.truncate(LaneId(0), 0).unwrap();
            fill(&mut lanes, LaneId(0), 12, -3.0);
            fill(&mut lanes, LaneId(1), 5, 9.0);
            lanes.restore_snapshot(LaneId(1), snapshot).unwrap();
            assert_eq!(lanes.committed_len(LaneId(1)), 7);
            assert_eq!(prefix(&lanes, LaneId(1), 7), before);
            lanes.drop_snapshot(snapshot);
            assert!(lanes.restore_snapshot(LaneId(1), snapshot).is_err());
        }
    }

    #[test]
    fn asking_for_more_than_is_committed_is_refused_and_changes_nothing() {
        let mut lanes = KvLanes::new(&spec(), KvKind::Int8, 1, 16, None).unwrap();
        fill(&mut lanes, LaneId(0), 4, 0.0);
        assert_eq!(
            lanes.truncate(LaneId(0), 5).unwrap_err().to_string(),
            "lane 0 holds 4 tokens, 5 were asked for"
        );
        assert!(lanes.save_snapshot(LaneId(0), 5).is_err());
        assert!(lanes.truncate(LaneId(1), 0).is_err());
        assert_eq!(lanes.committed_len(LaneId(0)), 4);
    }

    #[test]
    fn the_lanes_take_the_bytes_the_arithmetic_says() {
        for kind in KvKind::ALL {
            let lanes = KvLanes::new(&spec(), kind, 2, 16, None).unwrap();
            let held: usize = lanes
                .rows
                .iter()
                .map(|rows| {
                    rows.keys.len()
                        + rows.values.len()
                        + 4 * (rows.key_scales.len() + rows.value_scales.len())
                })
                .sum();
            assert_eq!(held as u64, lanes.num_bytes());
        }
    }
}
