//! The few shapes that steps are rounded up to. A padded token or row costs next to nothing, a captured graph costs milliseconds once.

use crate::step::StepPlan;

/// What decides which launches a step is made of. Everything else about it is read from device memory.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) struct StepShape {
    /// Tokens, padding included.
    pub num_tokens: usize,
    /// Logits rows, padding included; 0 for none.
    pub num_logits: usize,
    /// Segments, padding included.
    pub num_segments: usize,
    /// Most tokens of a segment.
    pub max_segment_len: usize,
    /// Whether a segment is a tree.
    pub has_tree: bool,
}

/// Most of everything.
#[derive(Debug, Clone, Copy)]
pub(super) struct ShapeLimits {
    pub max_tokens: usize,
    pub max_logits: usize,
    pub num_lanes: usize,
}

impl StepShape {
    /// The shape of `plan`, which keeps the limits.
    pub(super) fn of(plan: &StepPlan, num_logits: usize, limits: ShapeLimits) -> Self {
        let num_tokens = rounded(plan.tokens.len()).min(limits.max_tokens);
        let (num_segments, longest) = (plan.segments.len(), longest_segment(plan));
        let has_tree = plan.segments.iter().any(|segment| segment.is_tree);
        let num_logits = match num_logits {
            0 => 0,
            // Of a tree all rows are wanted: one shape for whatever else is in the step.
            _ if has_tree => num_tokens.min(limits.max_logits),
            _ => rounded(num_logits).min(limits.max_logits),
        };
        Self {
            num_tokens,
            num_logits,
            num_segments: if num_segments == 1 { 1 } else { limits.num_lanes },
            max_segment_len: if num_segments == 1 || longest > 1 { num_tokens } else { 1 },
            has_tree,
        }
    }

    /// The shapes that every use meets: steps of one lane, with no logits, the last token's or all, and decode steps of several lanes.
    pub(super) fn usual(limits: ShapeLimits) -> Vec<Self> {
        let single = |num_tokens: usize, num_logits: usize| Self {
            num_tokens,
            num_logits,
            num_segments: 1,
            max_segment_len: num_tokens,
            has_tree: false,
        };
        let mut shapes = Vec::new();
        for num_tokens in sizes(limits.max_tokens) {
            shapes.extend([single(num_tokens, 0), single(num_tokens, 1)]);
            if num_tokens > 1 && num_tokens <= limits.num_lanes.next_power_of_two() {
                shapes.push(Self {
                    num_tokens,
                    num_logits: num_tokens.min(limits.max_logits),
                    num_segments: limits.num_lanes,
                    max_segment_len: 1,
                    has_tree: false,
                });
            }
        }
        shapes
    }
}

fn longest_segment(plan: &StepPlan) -> usize {
    plan.segments.iter().map(|segment| segment.tokens.len()).max().unwrap_or(0)
}

/// `count` (at least 1) rounded up to a power of two, or to one and a half times one from 12 on: at most a third is padding.
pub(super) fn rounded(count: usize) -> usize {
    let power = count.next_power_of_two();
    let between = power / 4 * 3;
    if between >= 12 && count <= between { between } else { power }
}

/// Every rounded size up to the one of `most`, which is last and not rounded.
pub(super) fn sizes(most: usize) -> Vec<usize> {
    let mut sizes: Vec<usize> = Vec::new();
    let mut size = 1;
    while size < most {
        sizes.push(size);
        size = rounded(size + 1);
    }
    sizes.push(most);
    sizes
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{kv::LaneId, step::LogitsWanted};

    const LIMITS: ShapeLimits = ShapeLimits { max_tokens: 68, max_logits: 16, num_lanes: 4 };

    #[test]
    fn sizes_are_rounded_up_by_at_most_half_and_never_beyond_the_limit() {
        assert_eq!(sizes(68), [1, 2, 4, 8, 12, 16, 24, 32, 48, 64, 68]);
        assert_eq!(sizes(1), [1]);
        for count in 1..2000 {
            let size = rounded(count);
            assert!(size >= count && size < 2 * count, "{count} -> {size}");
            assert_eq!(rounded(size), size);
        }
    }

    #[test]
    fn a_plan_gets_the_shape_that_holds_it() {
        let mut plan = StepPlan::default();
        plan.push(LaneId(2), &[1; 5], LogitsWanted::Last);
        let one = StepShape::of(&plan, 1, LIMITS);
        assert_eq!((one.num_tokens, one.num_logits, one.num_segments, one.max_segment_len), (8, 1, 1, 8));
        plan.push_tree(LaneId(0), &[1; 60], &[0; 60]);
        let both = StepShape::of(&plan, 61, ShapeLimits { max_logits: 61, ..LIMITS });
        assert_eq!((both.num_tokens, both.num_logits, both.num_segments), (68, 61, 4));
        assert!(both.has_tree && both.max_segment_len == 68);
        let mut decode = StepPlan::default();
        (0..3).for_each(|lane| decode.push(LaneId(lane), &[1], LogitsWanted::Last));
        let shape = StepShape::of(&decode, 3, LIMITS);
        assert_eq!(
            shape,
            StepShape { num_tokens: 4, num_logits: 4, num_segments: 4, max_segment_len: 1, has_tree: false }
        );
        assert!(StepShape::usual(LIMITS).contains(&shape));
    }
}
