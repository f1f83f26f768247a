//! The few shapes that reading along and drafting are rounded up to, each captured once.

use crate::{
    backend::cuda::shape::{rounded, sizes},
    draft::{DraftPlan, MAX_PLAN_ROWS, MAX_TOP_K},
};

/// Most proposals after a row that usual levels ask for: what the node's policy does.
const USUAL_TOP_K: usize = 4;

/// Rows read along, padding included.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) struct ReadShape {
    pub num_rows: usize,
}

impl ReadShape {
    /// The shape of `num_rows`, at least one and at most `max_rows`.
    pub fn of(num_rows: usize, max_rows: usize) -> Self {
        Self { num_rows: rounded(num_rows).min(max_rows) }
    }

    /// Every shape.
    pub fn usual(max_rows: usize) -> impl Iterator<Item = Self> {
        sizes(max_rows).into_iter().map(|num_rows| Self { num_rows })
    }
}

/// One level of trees.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) struct LevelShape {
    /// Rows, padding included.
    pub num_rows: usize,
    /// Runs of rows of one lane, padding included.
    pub num_segments: usize,
    /// Most rows of a run.
    pub max_segment_len: usize,
    /// Likeliest tokens of a row, a power of two.
    pub k: usize,
    /// Whether logits travel, too.
    pub has_logits: bool,
}

impl LevelShape {
    /// The shape of a checked `plan`, of which `num_proposals` a row can be had.
    pub fn of(plan: &DraftPlan, num_proposals: usize, num_lanes: usize) -> Self {
        let num_rows = rounded(plan.rows.len()).min(MAX_PLAN_ROWS);
        let (mut num_runs, mut run_len, mut longest) = (0, 0, 0);
        for (idx, row) in plan.rows.iter().enumerate() {
            let goes_on = idx > 0 && plan.rows[idx - 1].lane == row.lane;
            run_len = if goes_on { run_len + 1 } else { 1 };
            num_runs += usize::from(!goes_on);
            longest = longest.max(run_len);
        }
        Self {
            num_rows,
            num_segments: match num_runs {
                1 => 1,
                // Rows of one lane need not be beside each other.
                more => num_rows.min(more.max(num_lanes).next_power_of_two()),
            },
            max_segment_len: if num_runs == 1 || longest > 1 { num_rows } else { 1 },
            k: num_proposals.next_power_of_two().min(MAX_TOP_K),
            has_logits: plan.wants_logits,
        }
    }

    /// The shapes that rounds of speculation meet: levels of one lane or all, up to [`USUAL_TOP_K`] rows each.
    pub fn usual(num_lanes: usize, draft_vocab_size: usize) -> Vec<Self> {
        let mut shapes = Vec::new();
        let tops = [1, 2, USUAL_TOP_K].into_iter().filter(|&k| k == 1 || k < 2 * draft_vocab_size);
        for k in tops {
            for num_rows in sizes(MAX_PLAN_ROWS).into_iter().take_while(|&rows| rows < 2 * k * num_lanes) {
                let of_one =
                    Self { num_rows, num_segments: 1, max_segment_len: num_rows, k, has_logits: false };
                if num_rows < 2 * k {
                    shapes.push(of_one);
                }
                if num_lanes > 1 && num_rows > 1 {
                    let num_segments = num_rows.min(num_lanes.next_power_of_two());
                    let of_all = Self { num_segments, ..of_one };
                    // Roots of several lanes, and what lies below them.
                    shapes.extend([of_all, Self { max_segment_len: 1, ..of_all }]);
                }
            }
        }
        shapes
    }

    /// The largest of all, by which memory is set aside.
    pub fn largest(num_segments: usize, max_segment_len: usize) -> Self {
        let num_rows = MAX_PLAN_ROWS;
        Self { num_rows, num_segments, max_segment_len, k: MAX_TOP_K, has_logits: true }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{draft::DraftRow, kv::LaneId};

    fn plan(lanes: &[usize], top_k: usize) -> DraftPlan {
        let row = |&lane: &usize| DraftRow { lane: LaneId(lane), parent: None, token: 0 };
        DraftPlan { rows: lanes.iter().map(row).collect(), top_k, wants_logits: false }
    }

    #[test]
    fn a_level_gets_the_shape_that_holds_it() {
        let shape = |lanes: &[usize], top_k| {
            let shape = LevelShape::of(&plan(lanes, top_k), top_k, 4);
            (shape.num_rows, shape.num_segments, shape.max_segment_len, shape.k)
        };
        assert_eq!(shape(&[2], 1), (1, 1, 1, 1));
        assert_eq!(shape(&[2, 2, 2], 3), (4, 1, 4, 4));
        assert_eq!(shape(&[0, 2, 3], 4), (4, 4, 1, 4));
        assert_eq!(shape(&[0, 0, 3, 3, 3], 5), (8, 4, 8, 8));
        assert_eq!(shape(&[0, 1], 5), (2, 2, 1, 8));
        assert_eq!(shape(&[0, 1, 0, 1, 0, 1], 64), (8, 8, 1, 64));
        assert_eq!(shape(&[1; 64], 2), (64, 1, 64, 2));
    }

    #[test]
    fn levels_of_a_round_have_usual_shapes() {
        for num_lanes in 1..9 {
            let usual = LevelShape::usual(num_lanes, 100);
            for (num_slots, k) in [(1, 4), (num_lanes, 4), (num_lanes, 1), (1, 2), (num_lanes.div_ceil(2), 4)]
            {
                for rows_each in [1, k] {
                    let lanes: Vec<usize> = (0..num_slots * rows_each).map(|row| row / rows_each).collect();
                    let shape = LevelShape::of(&plan(&lanes, k), k, num_lanes);
                    assert!(usual.contains(&shape), "{num_lanes} lanes, {num_slots} drafting: {shape:?}");
                }
            }
        }
        assert!(LevelShape::usual(4, 100).len() < 50);
    }
}
