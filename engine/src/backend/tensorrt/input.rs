//! What a section is about, as a plan takes it: written to pinned memory by the host, copied to the device before the execution.
//!
//! | field | shape | what |
//! |---|---|---|
//! | `input_ids`, `position_ids` | `[batch, sequence]` | padding: one token that is known to leave numbers; positions behind the lane's rows |
//! | `write_indices` | `[batch]` | where rows are updated in place: the row of the first token |
//! | `logits_rows` | `[batch, logits]` | of a slice its last token, of pieces and trees all tokens, padding included |
//! | `kv_positions` | `[batch, kv]` | where attention has windows: the position in each row |
//! | `places` | I32 `[batch, 2]` | where new rows are appended: the row of the first, and how many count |
//! | `attention_mask` | bytes `[batch, sequence, kv]` | 1 where a token sees a row: what is committed, its ancestors, itself; padding sees itself |
//!
//! Fields begin at multiples of 256 bytes, which TensorRT asks of addresses.

use takt_kernels_cu::launch::kv_append::PLACE_WORDS;

use super::batch::{Part, Section, SectionShape, Work, part, start};
use crate::{
    TokenId,
    kv::{LaneBook, LaneId},
    step::{Segment, StepPlan},
};

/// What TensorRT asks of addresses.
pub(super) const ALIGNMENT: usize = 256;

/// Which fields a plan has, and how wide they are.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct InputFacts {
    /// Bytes of an integer: 4 or 8.
    pub integer_bytes: usize,
    /// Attention has windows.
    pub has_kv_positions: bool,
    /// New rows are appended, rather than written in their places.
    pub appends: bool,
}

/// Byte offsets of the fields of one shape; 0 for those that the plan does not have.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct InputLayout {
    shape: SectionShape,
    facts: InputFacts,
    pub input_ids: usize,
    pub position_ids: usize,
    pub write_indices: usize,
    pub logits_rows: usize,
    pub kv_positions: usize,
    pub places: usize,
    pub mask: usize,
    pub num_bytes: usize,
}

impl InputLayout {
    pub(super) fn new(shape: SectionShape, facts: InputFacts) -> Self {
        let SectionShape { num_lanes, sequence, kv, num_logits, .. } = shape;
        let mut end = 0;
        let mut field = |num_bytes: usize| {
            let start = end;
            end = (start + num_bytes).next_multiple_of(ALIGNMENT);
            start
        };
        let mut integers = |is_there: bool, count: usize| {
            if is_there { field(count * facts.integer_bytes) } else { 0 }
        };
        let input_ids = integers(true, num_lanes * sequence);
        let position_ids = integers(true, num_lanes * sequence);
        let write_indices = integers(!facts.appends, num_lanes);
        let logits_rows = integers(true, num_lanes * num_logits);
        let kv_positions = integers(facts.has_kv_positions, num_lanes * kv);
        let places = if facts.appends { field(num_lanes * PLACE_WORDS * size_of::<i32>()) } else { 0 };
        let mask = field(num_lanes * sequence * kv);
        Self {
            shape,
            facts,
            input_ids,
            position_ids,
            write_indices,
            logits_rows,
            kv_positions,
            places,
            mask,
            num_bytes: end,
        }
    }

    /// Writes what `section`, whose shape this is of, is about. `bytes` are as many as [`Self::num_bytes`]; all of the fields are written.
    pub(super) fn write(
        &self,
        section: &Section,
        (plan, book): (&StepPlan, &LaneBook),
        with: Constants,
        bytes: &mut [u8],
    ) {
        let mut fields = Fields { bytes, layout: self, with };
        for b in 0..self.shape.num_lanes {
            let lane = LaneId(self.shape.first_lane + b);
            let entry = Entry {
                b,
                start: start(plan, book, section.work, lane),
                part: part(plan, section.work, lane),
            };
            fields.put_lane(&entry, plan, section.work);
        }
    }
}

/// What is the same in all sections of a plan.
#[derive(Debug, Clone, Copy)]
pub(super) struct Constants {
    /// Rows of a lane.
    pub lane_rows: usize,
    /// The token that pads.
    pub padding: TokenId,
}

/// One lane of a section.
struct Entry {
    b: usize,
    start: usize,
    part: Option<Part>,
}

struct Fields<'a> {
    bytes: &'a mut [u8],
    layout: &'a InputLayout,
    with: Constants,
}

impl Fields<'_> {
    /// An integer of the plan's width. Values are far below 2^31.
    fn put(&mut self, field: usize, idx: usize, value: usize) {
        let width = self.layout.facts.integer_bytes;
        let at = field + idx * width;
        // Little-endian, as all of CUDA: the lower half of a wide one is a narrow one.
        let value = (value as u64).to_le_bytes();
        self.bytes[at..at + width].copy_from_slice(&value[..width]);
    }

    fn put_lane(&mut self, entry: &Entry, plan: &StepPlan, work: Work) {
        let InputLayout { shape, facts, .. } = *self.layout;
        let &Entry { b, start, part } = entry;
        let len = part.map_or(0, |part| part.len);
        for j in 0..shape.sequence {
            let token = part.filter(|_| j < len).map_or(self.with.padding, |part| {
                let segment = &plan.segments[part.segment];
                plan.tokens[segment.tokens.start + part.first + j]
            });
            self.put(self.layout.input_ids, b * shape.sequence + j, token as usize);
            let position = position(plan, entry, j);
            self.put(self.layout.position_ids, b * shape.sequence + j, position);
            self.put_mask(plan, entry, j);
        }
        for row in 0..shape.num_logits {
            let is_tail = matches!(work, Work::Slice { .. }) && shape.num_logits == 1;
            let token = if is_tail { shape.sequence - 1 } else { row };
            self.put(self.layout.logits_rows, b * shape.num_logits + row, token);
        }
        if facts.appends {
            let words = [start, len].map(|word| i32::try_from(word).unwrap_or(-1).to_le_bytes());
            let at = self.layout.places + b * PLACE_WORDS * size_of::<i32>();
            self.bytes[at..at + size_of_val(&words)].copy_from_slice(words.as_flattened());
        } else {
            self.put(self.layout.write_indices, b, start);
        }
        if facts.has_kv_positions {
            self.put_kv_positions(plan, entry);
        }
    }

    /// Where the mask has the section's own token `j`.
    fn column(&self, start: usize, j: usize) -> usize {
        if self.layout.facts.appends { self.with.lane_rows + j } else { start + j }
    }

    fn put_mask(&mut self, plan: &StepPlan, entry: &Entry, j: usize) {
        let SectionShape { sequence, kv, .. } = self.layout.shape;
        let at = self.layout.mask + (entry.b * sequence + j) * kv;
        self.bytes[at..at + kv].fill(0);
        let own = self.column(entry.start, j);
        self.bytes[at + own] = 1;
        let Some(part) = entry.part.filter(|part| j < part.len) else { return };
        self.bytes[at..at + entry.start].fill(1);
        let first = self.column(entry.start, 0);
        match tree(plan, part) {
            None => self.bytes[at + first..=at + own].fill(1),
            Some(parents) => ancestors(parents, j).for_each(|node| self.bytes[at + first + node] = 1),
        }
    }

    /// Rows before the section's are at their own positions: whatever else was there is not seen.
    fn put_kv_positions(&mut self, plan: &StepPlan, entry: &Entry) {
        let SectionShape { sequence, kv, .. } = self.layout.shape;
        let field = self.layout.kv_positions;
        (0..kv).for_each(|row| self.put(field, entry.b * kv + row, row));
        for j in 0..sequence {
            let column = self.column(entry.start, j);
            self.put(field, entry.b * kv + column, position(plan, entry, j));
        }
    }
}

/// The position of token `j` of a lane: of a tree's node its parent's and one, of everything else its row.
fn position(plan: &StepPlan, entry: &Entry, j: usize) -> usize {
    let parents = entry.part.filter(|part| j < part.len).and_then(|part| tree(plan, part));
    entry.start + parents.map_or(j, |parents| ancestors(parents, j).count())
}

/// The parents of a part that is a tree.
fn tree(plan: &StepPlan, part: Part) -> Option<&[usize]> {
    let segment: &Segment = &plan.segments[part.segment];
    segment.is_tree.then(|| &plan.parents[segment.tokens.clone()])
}

/// The nodes above `node`, nearest first, down to the root, which is its own parent.
fn ancestors(parents: &[usize], node: usize) -> impl Iterator<Item = usize> {
    let above = move |&node: &usize| (node > 0).then(|| parents[node]);
    std::iter::successors(above(&node), above)
}

#[cfg(test)]
mod tests;
