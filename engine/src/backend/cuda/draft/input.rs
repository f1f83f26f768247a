//! What reading along and drafting are about, as the kernels read it: pinned fields of 32-bit words, copied as a graph's first node.

use takt_kernels_cu::{
    driver::{DriverError, context::Context, memory::MappedBuffer, stream::Stream},
    launch::DeviceAddress,
};

use super::shape::{LevelShape, ReadShape};
use crate::{
    Result,
    backend::cuda::input::{NONE, index},
    draft::{MAX_DRAFT_ROWS, MAX_PLAN_ROWS},
};

/// Bytes of a [`takt_kernels_cu::launch::attention::Segment`].
const SEGMENT_WORDS: usize = 4;

/// Pinned words, and where the device has its copy.
#[derive(Debug)]
struct Words {
    pinned: MappedBuffer,
    device: DeviceAddress,
}

impl Words {
    fn put(&mut self, at: usize, value: i32) {
        let at = at * size_of::<i32>();
        self.pinned.bytes_mut()[at..at + size_of::<i32>()].copy_from_slice(&value.to_ne_bytes());
    }

    fn address(&self, at: usize) -> Result<DeviceAddress> {
        Ok(self.device.offset(at * size_of::<i32>())?)
    }

    fn send(&self, stream: &Stream, num_words: usize) -> Result<(), DriverError> {
        stream.send(&self.pinned, num_words * size_of::<i32>(), self.device)
    }
}

/// A row to read along.
#[derive(Debug, Clone, Copy)]
pub(super) struct ReadRow {
    /// Its features.
    pub source: usize,
    /// The token after it.
    pub next_token: u32,
    pub lane: usize,
    /// Its position, and its row in the lane.
    pub position: usize,
    /// Where its fused features go, from which a draft may begin.
    pub tip: Option<usize>,
}

/// Fields of rows to read, each `[num_rows]`: so that few rows are few bytes, they lie behind each other by the shape.
#[derive(Debug)]
pub(super) struct ReadInput {
    words: Words,
    num_rows: usize,
}

/// Where the kernels find the fields.
#[derive(Debug, Clone, Copy)]
pub(super) struct ReadAddresses {
    pub sources: DeviceAddress,
    pub next_tokens: DeviceAddress,
    pub lanes: DeviceAddress,
    pub positions: DeviceAddress,
    pub tips: DeviceAddress,
}

const NUM_READ_FIELDS: usize = 5;

impl ReadInput {
    pub fn num_bytes(max_rows: usize) -> usize {
        NUM_READ_FIELDS * max_rows * size_of::<i32>()
    }

    /// `device` has room for [`Self::num_bytes`].
    pub fn new(context: &Context, max_rows: usize, device: DeviceAddress) -> Result<Self> {
        let pinned = MappedBuffer::new(context, Self::num_bytes(max_rows), "what a draft head reads")?;
        Ok(Self { words: Words { pinned, device }, num_rows: 0 })
    }

    pub fn addresses(&self, shape: ReadShape) -> Result<ReadAddresses> {
        let field = |idx: usize| self.words.address(idx * shape.num_rows);
        Ok(ReadAddresses {
            sources: field(0)?,
            next_tokens: field(1)?,
            lanes: field(2)?,
            positions: field(3)?,
            tips: field(4)?,
        })
    }

    pub fn send(&self, stream: &Stream, shape: ReadShape) -> Result<(), DriverError> {
        self.words.send(stream, NUM_READ_FIELDS * shape.num_rows)
    }

    /// Everything of the shape is padding.
    pub fn clear(&mut self, shape: ReadShape) {
        self.num_rows = 0;
        (0..NUM_READ_FIELDS * shape.num_rows).for_each(|at| self.words.put(at, NONE));
        // A padded row's place in the position table is read.
        (0..shape.num_rows).for_each(|row| self.words.put(3 * shape.num_rows + row, 0));
    }

    /// One row more.
    pub fn push(&mut self, shape: ReadShape, row: ReadRow) {
        let token = i32::try_from(row.next_token).unwrap_or(NONE);
        let tip = row.tip.map_or(NONE, index);
        let fields = [index(row.source), token, index(row.lane), index(row.position), tip];
        for (field, value) in fields.into_iter().enumerate() {
            self.words.put(field * shape.num_rows + self.num_rows, value);
        }
        self.num_rows += 1;
    }
}

/// A row to draft after.
#[derive(Debug, Clone, Copy)]
pub(super) struct LevelRow {
    pub token: u32,
    pub lane: usize,
    pub position: usize,
    /// Of the lane.
    pub row: usize,
    /// What it goes on from, and where what it says is kept to be fed back.
    pub from: usize,
    pub to: usize,
}

/// A level's fields. Lists of rows come last and only as many as there are rows.
#[derive(Debug)]
pub(super) struct LevelInput {
    words: Words,
    num_lanes: usize,
}

/// Where the kernels find the fields.
#[derive(Debug, Clone, Copy)]
pub(super) struct LevelAddresses {
    pub segments: DeviceAddress,
    pub tokens: DeviceAddress,
    pub lanes: DeviceAddress,
    pub positions: DeviceAddress,
    pub rows: DeviceAddress,
    pub from: DeviceAddress,
    pub to: DeviceAddress,
    /// By lane: rows before its root.
    pub committed_lens: DeviceAddress,
    /// `[num_rows, MAX_DRAFT_ROWS]`.
    pub tree_rows: DeviceAddress,
}

const ROWS_START: usize = MAX_PLAN_ROWS * SEGMENT_WORDS;
const LANES_START: usize = ROWS_START + 6 * MAX_PLAN_ROWS;

impl LevelInput {
    pub fn num_bytes(num_lanes: usize) -> usize {
        (LANES_START + num_lanes + MAX_PLAN_ROWS * MAX_DRAFT_ROWS) * size_of::<i32>()
    }

    /// `device` has room for [`Self::num_bytes`].
    pub fn new(context: &Context, num_lanes: usize, device: DeviceAddress) -> Result<Self> {
        let pinned = MappedBuffer::new(context, Self::num_bytes(num_lanes), "a level to draft")?;
        Ok(Self { words: Words { pinned, device }, num_lanes })
    }

    pub fn addresses(&self) -> Result<LevelAddresses> {
        let field = |idx: usize| self.words.address(ROWS_START + idx * MAX_PLAN_ROWS);
        Ok(LevelAddresses {
            segments: self.words.address(0)?,
            tokens: field(0)?,
            lanes: field(1)?,
            positions: field(2)?,
            rows: field(3)?,
            from: field(4)?,
            to: field(5)?,
            committed_lens: self.words.address(LANES_START)?,
            tree_rows: self.words.address(LANES_START + self.num_lanes)?,
        })
    }

    pub fn send(&self, stream: &Stream, shape: LevelShape) -> Result<(), DriverError> {
        let num_lists = shape.num_rows * MAX_DRAFT_ROWS;
        self.words.send(stream, LANES_START + self.num_lanes + num_lists)
    }

    /// Everything of the shape is padding.
    pub fn clear(&mut self, shape: LevelShape) {
        for segment in 0..shape.num_segments {
            self.put_segment(segment, NONE, 0..0);
        }
        for row in 0..shape.num_rows {
            for (field, value) in [NONE, NONE, 0, 0, NONE, NONE].into_iter().enumerate() {
                self.words.put(ROWS_START + field * MAX_PLAN_ROWS + row, value);
            }
        }
    }

    /// The rows of `lane` before its root's.
    pub fn put_lane(&mut self, lane: usize, num_before: usize) {
        self.words.put(LANES_START + lane, index(num_before));
    }

    /// A run of rows of one lane.
    pub fn put_run(&mut self, segment: usize, lane: usize, rows: std::ops::Range<usize>) {
        self.put_segment(segment, index(lane), rows);
    }

    fn put_segment(&mut self, segment: usize, lane: i32, rows: std::ops::Range<usize>) {
        let words = [lane, index(rows.start), index(rows.len()), i32::from(lane != NONE)];
        for (word, value) in words.into_iter().enumerate() {
            self.words.put(segment * SEGMENT_WORDS + word, value);
        }
    }

    /// Row `place` of the level, and the lane's rows that it sees from its root on, its own included.
    pub fn put_row(&mut self, place: usize, row: LevelRow, path: impl Iterator<Item = usize>) {
        let token = i32::try_from(row.token).unwrap_or(NONE);
        let (from, to) = (index(row.from), index(row.to));
        let fields = [token, index(row.lane), index(row.position), index(row.row), from, to];
        for (field, value) in fields.into_iter().enumerate() {
            self.words.put(ROWS_START + field * MAX_PLAN_ROWS + place, value);
        }
        let list = LANES_START + self.num_lanes + place * MAX_DRAFT_ROWS;
        for (depth, row) in path.enumerate() {
            self.words.put(list + depth, index(row));
        }
    }
}
