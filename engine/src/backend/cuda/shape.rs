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
        let several = num_segments > 1;
        let num_logits = match num_logits {
            0 if !has_tree => 0,
            // Of a tree all rows are wanted, of a decode step nearly all: one shape for whatever else is in the step.
            _ if has_tree || several && longest == 1 => num_tokens.min(limits.max_logits),
            // Prompts beside decoding lanes, and prompts that end.
            few if several && few <= limits.num_lanes => limits.num_lanes.min(limits.max_logits),
            many => rounded(many).min(limits.max_logits),
        };
        Self {
            num_tokens,
            num_logits,
            num_segments: if several { limits.num_lanes } else { 1 },
            max_segment_len: if !several || longest > 1 || has_tree { num_tokens } else { 1 },
            has_tree,
        }
    }

    /// The shapes of all steps but those that score texts, which want the logits of whole runs of tokens.
    pub(super) fn usual(limits: ShapeLimits) -> Vec<Self> {
        let mut shapes = Vec::new();
        for num_tokens in sizes(limits.max_tokens) {
            let all = num_tokens.min(limits.max_logits);
            let single = |num_logits: usize, has_tree: bool| Self {
                num_tokens,
                num_logits,
                num_segments: 1,
                max_segment_len: num_tokens,
                has_tree,
            };
            shapes.extend([single(0, false), single(1, false)]);
            // No tree has more nodes than there are rows of logits.
            if num_tokens <= rounded(limits.max_logits) {
                shapes.push(single(all, true));
            }
            if limits.num_lanes == 1 || num_tokens == 1 {
                continue;
            }
            let several = |num_logits: usize, has_tree: bool| Self {
                num_segments: limits.num_lanes,
                ..single(num_logits, has_tree)
            };
            if num_tokens <= rounded(limits.num_lanes) {
                let decode = |num_logits: usize| Self { max_segment_len: 1, ..several(num_logits, false) };
                shapes.extend([decode(0), decode(all)]);
            }
            let last_rows = limits.num_lanes.min(limits.max_logits);
            shapes.extend([several(0, false), several(last_rows, false), several(all, true)]);
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
    use std::collections::HashSet;

    use proptest::prelude::*;

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

    #[test]
    fn no_shape_is_usual_twice_and_there_are_not_many() {
        for (num_lanes, expected) in [(1, 39), (4, 82), (16, 88)] {
            let limits = ShapeLimits { max_tokens: 256, max_logits: 64 + num_lanes, num_lanes };
            let usual = StepShape::usual(limits);
            assert_eq!(usual.iter().collect::<HashSet<_>>().len(), usual.len());
            assert_eq!(usual.len(), expected, "{num_lanes} lanes");
        }
    }

    /// Tokens of a segment as serving has them, and what it wants: a slice of a prompt, its end, one token, or a tree.
    fn segment() -> impl Strategy<Value = (usize, LogitsWanted)> {
        prop_oneof![
            (1..90_usize).prop_map(|len| (len, LogitsWanted::None)),
            (1..90_usize).prop_map(|len| (len, LogitsWanted::Last)),
            Just((1, LogitsWanted::Last)),
            (1..40_usize).prop_map(|len| (len, LogitsWanted::All)),
        ]
    }

    proptest! {
        #[test]
        fn whatever_serving_asks_has_a_usual_shape_that_holds_it(
            (num_lanes, segments) in (1..9_usize).prop_flat_map(|lanes| (Just(lanes), prop::collection::vec(segment(), 1..=lanes))),
            (max_tokens, max_logits) in (1..300_usize, 1..100_usize),
        ) {
            let limits = ShapeLimits { max_tokens, max_logits: max_logits.min(max_tokens), num_lanes };
            let (mut plan, mut num_logits) = (StepPlan::default(), 0);
            for (lane, &(len, wanted)) in segments.iter().enumerate() {
                let tokens = vec![1; len];
                match wanted {
                    LogitsWanted::All => plan.push_tree(LaneId(lane), &tokens, &vec![0; len]),
                    _ => plan.push(LaneId(lane), &tokens, wanted),
                }
                num_logits += match wanted {
                    LogitsWanted::All => len,
                    LogitsWanted::Last => 1,
                    LogitsWanted::None => 0,
                };
            }
            prop_assume!(plan.tokens.len() <= limits.max_tokens && num_logits <= limits.max_logits);
            let shape = StepShape::of(&plan, num_logits, limits);
            prop_assert!(shape.num_tokens >= plan.tokens.len() && shape.num_logits >= num_logits);
            prop_assert!(shape.num_segments >= plan.segments.len());
            prop_assert!(shape.max_segment_len >= longest_segment(&plan));
            prop_assert!(StepShape::usual(limits).contains(&shape), "{shape:?} of {segments:?}");
        }
    }
}
