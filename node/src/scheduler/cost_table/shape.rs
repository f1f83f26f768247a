//! Which sections cost the same: the buckets of the cost table.

use serde::{Deserialize, Serialize};

/// What a section computes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum SectionKind {
    /// A slice of one prompt; its size is the slice's tokens.
    Prefill,
    /// One token of each of several lanes; its size is the number of lanes.
    Decode,
    /// Draft trees over one or several lanes; its size is the number of nodes, roots included.
    Verify,
    /// One level of a draft head; its size is the number of rows.
    Draft,
}

impl SectionKind {
    /// All kinds, in the order of the table.
    pub const ALL: [Self; 4] = [Self::Prefill, Self::Decode, Self::Verify, Self::Draft];

    /// Whether it is part of a round of speculation, which no promise rests on.
    #[must_use]
    pub fn is_round(self) -> bool {
        matches!(self, Self::Verify | Self::Draft)
    }

    /// The name in files and tables.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Prefill => "prefill",
            Self::Decode => "decode",
            Self::Verify => "verify",
            Self::Draft => "draft",
        }
    }
}

/// A section as the cost table sees it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct SectionShape {
    /// What it computes.
    pub kind: SectionKind,
    /// Slice tokens, lanes, nodes or rows; at least 1.
    pub size: usize,
    /// Most tokens that a lane of the section holds at its end.
    pub context_len: usize,
}

/// The buckets: a section belongs to the smallest size and context that are not below its own.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Grid {
    /// Upper bounds of the slice lengths, ascending.
    pub prefill_sizes: Vec<usize>,
    /// Upper bounds of the lanes of a decode step, ascending.
    pub decode_sizes: Vec<usize>,
    /// Upper bounds of the nodes of a verify round, ascending.
    pub verify_sizes: Vec<usize>,
    /// Upper bounds of the rows of one level of a draft head, ascending; empty without a head.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub draft_sizes: Vec<usize>,
    /// Upper bounds of the context, ascending; the last is a lane's capacity.
    pub context_lens: Vec<usize>,
}

/// Nodes of the largest draft tree worth a bucket.
const MAX_NODES: usize = 64;
/// Shortest context worth a bucket of its own.
const MIN_CONTEXT: usize = 256;

impl Grid {
    /// Buckets for a worker: slices up to `max_slice_len`, `num_lanes` lanes of `lane_capacity` tokens.
    #[must_use]
    pub fn of(max_slice_len: usize, num_lanes: usize, lane_capacity: usize) -> Self {
        let context_lens = steps(MIN_CONTEXT, lane_capacity, 4);
        Self {
            prefill_sizes: steps(8, max_slice_len.min(lane_capacity), 2),
            decode_sizes: steps(1, num_lanes, 2),
            verify_sizes: node_steps(MAX_NODES.min(lane_capacity)),
            draft_sizes: Vec::new(),
            context_lens,
        }
    }

    /// With buckets for a draft head that drafts up to `max_rows` rows a level; 0 for none.
    #[must_use]
    pub fn with_draft(mut self, max_rows: usize) -> Self {
        self.draft_sizes = if max_rows == 0 { Vec::new() } else { steps(1, max_rows.min(MAX_NODES), 2) };
        self
    }

    /// Upper bounds of the sizes of `kind`.
    #[must_use]
    pub fn sizes(&self, kind: SectionKind) -> &[usize] {
        match kind {
            SectionKind::Prefill => &self.prefill_sizes,
            SectionKind::Decode => &self.decode_sizes,
            SectionKind::Verify => &self.verify_sizes,
            SectionKind::Draft => &self.draft_sizes,
        }
    }

    /// Buckets in all.
    #[must_use]
    pub fn num_cells(&self) -> usize {
        SectionKind::ALL.iter().map(|&kind| self.sizes(kind).len() * self.context_lens.len()).sum()
    }

    /// The bucket of `shape`, and by how much its size exceeds the largest measured one (1 when it does not).
    #[must_use]
    pub fn cell(&self, shape: SectionShape) -> (usize, u32) {
        let sizes = self.sizes(shape.kind);
        let last = sizes.last().copied().unwrap_or(1);
        let factor = u32::try_from(shape.size.div_ceil(last.max(1))).unwrap_or(u32::MAX).max(1);
        let size_idx = sizes.partition_point(|&size| size < shape.size).min(sizes.len().saturating_sub(1));
        let contexts = &self.context_lens;
        let context_idx = contexts.partition_point(|&len| len < shape.context_len).min(contexts.len() - 1);
        let before: usize = SectionKind::ALL
            .iter()
            .take_while(|&&kind| kind != shape.kind)
            .map(|&kind| self.sizes(kind).len() * contexts.len())
            .sum();
        (before + size_idx * contexts.len() + context_idx, factor)
    }

    /// The largest section of every bucket, in the order of [`Self::cell`].
    pub fn shapes(&self) -> impl Iterator<Item = SectionShape> + '_ {
        SectionKind::ALL.into_iter().flat_map(move |kind| {
            self.sizes(kind).iter().flat_map(move |&size| {
                self.context_lens.iter().map(move |&context_len| SectionShape { kind, size, context_len })
            })
        })
    }

    /// Whether the numbers make sense: ascending, nothing empty or zero.
    #[must_use]
    pub fn is_valid(&self) -> bool {
        let ascends = |values: &[usize]| {
            values.first().is_some_and(|&first| first > 0) && values.windows(2).all(|pair| pair[0] < pair[1])
        };
        let has_kind =
            |kind| kind == SectionKind::Draft && self.draft_sizes.is_empty() || ascends(self.sizes(kind));
        ascends(&self.context_lens) && SectionKind::ALL.into_iter().all(has_kind)
    }
}

/// Sizes of trees up to `most`. Fine at the small end: where a step computes rather than waits for memory, a node more or less decides whether a
/// chain is worth it.
fn node_steps(most: usize) -> Vec<usize> {
    let steps = [2, 3, 4, 5, 6, 8, 12, 16, 24, 32, 48];
    steps.into_iter().filter(|&step| step < most).chain([most.max(1)]).collect()
}

/// `first`, `first · factor`, … and at last `most`.
fn steps(first: usize, most: usize, factor: usize) -> Vec<usize> {
    let most = most.max(1);
    let mut steps: Vec<usize> = std::iter::successors(Some(first), |step| step.checked_mul(factor))
        .take_while(|&step| step < most)
        .collect();
    steps.push(most);
    steps
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn a_section_is_in_the_smallest_bucket_that_is_not_below_it(
            max_slice in 1_usize..300, num_lanes in 1_usize..20, capacity in 1_usize..5000,
            size in 1_usize..400, context_len in 1_usize..6000, max_rows in 0_usize..70,
        ) {
            let grid = Grid::of(max_slice, num_lanes, capacity).with_draft(max_rows);
            prop_assert!(grid.is_valid());
            let shapes: Vec<_> = grid.shapes().collect();
            prop_assert_eq!(shapes.len(), grid.num_cells());
            for kind in SectionKind::ALL.into_iter().filter(|&kind| !grid.sizes(kind).is_empty()) {
                let (cell, factor) = grid.cell(SectionShape { kind, size, context_len });
                let found = shapes[cell];
                prop_assert_eq!(found.kind, kind);
                prop_assert!(found.size * factor as usize >= size);
                prop_assert!(found.context_len >= context_len.min(capacity));
                let tighter = shapes.iter().any(|shape| {
                    shape.kind == kind && shape.size >= size && shape.context_len >= context_len
                        && (shape.size < found.size || shape.context_len < found.context_len)
                });
                prop_assert!(!tighter, "{found:?} for {size} and {context_len}");
            }
        }
    }
}
