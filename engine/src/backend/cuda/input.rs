//! What a step is about, as the kernels read it: written to pinned memory by the host, copied to the device as the graph's first node.

use takt_kernels_cu::{
    driver::{DriverError, context::Context, memory::MappedBuffer, stream::Stream},
    launch::{DeviceAddress, attention::Segment as DeviceSegment},
};

use super::{
    draft::FeatureRows,
    shape::{ShapeLimits, StepShape},
};
use crate::{
    EngineError, Result,
    backend::plan_check::num_logits_rows,
    kv::LaneBook,
    step::{Segment, StepPlan},
};

pub(super) use super::lanes::MAX_TREE_DEPTH;
/// An index that is none: padding.
pub(super) const NONE: i32 = -1;

/// Byte offsets of the fields; the same on both sides. Trees come last, so that steps without any copy less.
#[derive(Debug, Clone, Copy)]
pub(super) struct InputLayout {
    limits: ShapeLimits,
    segments: usize,
    token_ids: usize,
    lanes: usize,
    positions: usize,
    rows: usize,
    logits_rows: usize,
    committed_lens: usize,
    feature_rows: usize,
    tree_rows: usize,
    num_bytes: usize,
}

impl InputLayout {
    pub(super) fn new(limits: ShapeLimits) -> Self {
        let mut end = 0;
        let mut field = |num_words: usize| {
            let start = end;
            // 16 bytes are what the segments are aligned to.
            end += (num_words * size_of::<i32>()).next_multiple_of(16);
            start
        };
        let segments = field(limits.num_lanes * size_of::<DeviceSegment>() / size_of::<i32>());
        let [token_ids, lanes, positions, rows] = std::array::from_fn(|_| field(limits.max_tokens));
        let (logits_rows, committed_lens) = (field(limits.max_logits), field(limits.num_lanes));
        let feature_rows = field(limits.max_tokens);
        let tree_rows = field(limits.max_tokens * MAX_TREE_DEPTH);
        Self {
            limits,
            segments,
            token_ids,
            lanes,
            positions,
            rows,
            logits_rows,
            committed_lens,
            feature_rows,
            tree_rows,
            num_bytes: end,
        }
    }

    /// Of all fields.
    pub(super) fn num_bytes(&self) -> usize {
        self.num_bytes
    }

    /// What a step of `shape` copies.
    fn used_bytes(&self, shape: StepShape) -> usize {
        if shape.has_tree {
            self.tree_rows + shape.num_tokens * MAX_TREE_DEPTH * size_of::<i32>()
        } else {
            self.tree_rows
        }
    }
}

/// Where the kernels find the fields.
#[derive(Debug, Clone, Copy)]
pub(super) struct InputAddresses {
    pub segments: DeviceAddress,
    pub token_ids: DeviceAddress,
    pub lanes: DeviceAddress,
    pub positions: DeviceAddress,
    pub rows: DeviceAddress,
    pub logits_rows: DeviceAddress,
    pub committed_lens: DeviceAddress,
    /// Where a draft head finds each token's features.
    pub feature_rows: DeviceAddress,
    pub tree_rows: DeviceAddress,
}

/// The host's side.
#[derive(Debug)]
pub(super) struct StepInput {
    layout: InputLayout,
    pinned: MappedBuffer,
    device: DeviceAddress,
}

impl StepInput {
    /// `device` has room for [`InputLayout::num_bytes`].
    pub(super) fn new(context: &Context, layout: InputLayout, device: DeviceAddress) -> Result<Self> {
        Ok(Self { layout, pinned: MappedBuffer::new(context, layout.num_bytes(), "a step's input")?, device })
    }

    pub(super) fn addresses(&self) -> Result<InputAddresses> {
        let at = |offset| self.device.offset(offset);
        Ok(InputAddresses {
            segments: at(self.layout.segments)?,
            token_ids: at(self.layout.token_ids)?,
            lanes: at(self.layout.lanes)?,
            positions: at(self.layout.positions)?,
            rows: at(self.layout.rows)?,
            logits_rows: at(self.layout.logits_rows)?,
            committed_lens: at(self.layout.committed_lens)?,
            feature_rows: at(self.layout.feature_rows)?,
            tree_rows: at(self.layout.tree_rows)?,
        })
    }

    /// Copies what a step of `shape` reads to the device, in the stream's order.
    pub(super) fn send(&self, stream: &Stream, shape: StepShape) -> Result<(), DriverError> {
        stream.send(&self.pinned, self.layout.used_bytes(shape), self.device)
    }

    /// Writes a checked `plan` of `shape`; the step before must be done.
    ///
    /// # Errors
    /// [`EngineError::Capacity`] for a tree deeper than [`MAX_TREE_DEPTH`]; nothing was computed then.
    pub(super) fn write(&mut self, plan: &StepPlan, shape: StepShape, book: &LaneBook) -> Result<()> {
        let layout = self.layout;
        let bytes = self.pinned.bytes_mut();
        let mut fields = Fields { bytes, layout };
        fields.clear(shape);
        for lane in 0..layout.limits.num_lanes {
            let len = book.committed_len(crate::kv::LaneId(lane));
            fields.put(layout.committed_lens, lane, index(len));
        }
        let mut num_logits = 0;
        for (idx, segment) in plan.segments.iter().enumerate() {
            fields.put_segment(idx, segment);
            fields.put_tokens(plan, segment, book.committed_len(segment.lane))?;
            for token in segment.tokens.end - num_logits_rows(segment)..segment.tokens.end {
                fields.put(layout.logits_rows, num_logits, index(token));
                num_logits += 1;
            }
        }
        Ok(())
    }
}

impl FeatureRows for StepInput {
    /// After [`Self::write`], which wants none.
    fn put_feature_row(&mut self, token: usize, row: usize) {
        let layout = self.layout;
        Fields { bytes: self.pinned.bytes_mut(), layout }.put(layout.feature_rows, token, index(row));
    }
}

/// The pinned bytes as fields of 32-bit words.
struct Fields<'a> {
    bytes: &'a mut [u8],
    layout: InputLayout,
}

impl Fields<'_> {
    fn put(&mut self, field: usize, idx: usize, value: i32) {
        let at = field + idx * size_of::<i32>();
        self.bytes[at..at + size_of::<i32>()].copy_from_slice(&value.to_ne_bytes());
    }

    fn word(&self, field: usize, idx: usize) -> i32 {
        let at = field + idx * size_of::<i32>();
        self.bytes[at..].first_chunk().map_or(NONE, |raw| i32::from_ne_bytes(*raw))
    }

    /// Everything of the shape is padding.
    fn clear(&mut self, shape: StepShape) {
        for token in 0..shape.num_tokens {
            self.put(self.layout.token_ids, token, NONE);
            self.put(self.layout.lanes, token, NONE);
            self.put(self.layout.positions, token, 0);
            self.put(self.layout.rows, token, 0);
            self.put(self.layout.feature_rows, token, NONE);
        }
        (0..shape.num_logits).for_each(|row| self.put(self.layout.logits_rows, row, NONE));
        for segment in 0..shape.num_segments {
            [NONE, 0, 0, 0].iter().enumerate().for_each(|(word, &value)| {
                self.put(self.layout.segments, 4 * segment + word, value);
            });
        }
    }

    fn put_segment(&mut self, idx: usize, segment: &Segment) {
        let words = [
            index(segment.lane.0),
            index(segment.tokens.start),
            index(segment.tokens.len()),
            i32::from(segment.is_tree),
        ];
        for (word, value) in words.into_iter().enumerate() {
            self.put(self.layout.segments, 4 * idx + word, value);
        }
    }

    fn put_tokens(&mut self, plan: &StepPlan, segment: &Segment, committed_len: usize) -> Result<()> {
        for (node, token) in segment.tokens.clone().enumerate() {
            let id = i32::try_from(plan.tokens[token]).unwrap_or(NONE);
            self.put(self.layout.token_ids, token, id);
            self.put(self.layout.lanes, token, index(segment.lane.0));
            self.put(self.layout.rows, token, index(committed_len + node));
            let depth =
                if segment.is_tree { self.put_path(plan, segment, node, committed_len)? } else { node };
            self.put(self.layout.positions, token, index(committed_len + depth));
        }
        Ok(())
    }

    /// The rows from the root to `node`: its parent's and its own. Returns its depth, 0 for the root.
    fn put_path(
        &mut self,
        plan: &StepPlan,
        segment: &Segment,
        node: usize,
        committed_len: usize,
    ) -> Result<usize> {
        let token = segment.tokens.start + node;
        let mut depth = 0;
        if node > 0 {
            let parent = segment.tokens.start + plan.parents[token];
            let parent_position = self.word(self.layout.positions, parent);
            depth = usize::try_from(parent_position).unwrap_or(0) + 1 - committed_len;
            if depth >= MAX_TREE_DEPTH {
                let fact = format!("a tree of more than {MAX_TREE_DEPTH} tokens from root to leaf");
                return Err(EngineError::Capacity(fact));
            }
            for above in 0..depth {
                let row = self.word(self.layout.tree_rows, parent * MAX_TREE_DEPTH + above);
                self.put(self.layout.tree_rows, token * MAX_TREE_DEPTH + above, row);
            }
        }
        self.put(self.layout.tree_rows, token * MAX_TREE_DEPTH + depth, index(committed_len + node));
        Ok(depth)
    }
}

/// Counts of a checked plan are far below 2^31.
pub(super) fn index(value: usize) -> i32 {
    i32::try_from(value).unwrap_or(NONE)
}
