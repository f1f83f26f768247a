use proptest::prelude::*;

use super::*;
use crate::backend::tensorrt::batch::{
    Batch,
    tests::{CAPACITY, LaneCase, case, lane_cases, limits},
};

/// None of the tokens that steps have.
const PADDING: TokenId = 77_777;

/// A section's fields as read back.
struct Read<'a> {
    bytes: &'a [u8],
    layout: InputLayout,
}

impl Read<'_> {
    fn integer(&self, field: usize, idx: usize) -> usize {
        let width = self.layout.facts.integer_bytes;
        let mut raw = [0; 8];
        raw[..width].copy_from_slice(&self.bytes[field + idx * width..][..width]);
        u64::from_le_bytes(raw) as usize
    }

    fn place(&self, idx: usize) -> i32 {
        i32::from_le_bytes(*self.bytes[self.layout.places + 4 * idx..].first_chunk().unwrap())
    }

    fn sees(&self, token: usize) -> &[u8] {
        let kv = self.layout.shape.kv;
        &self.bytes[self.layout.mask + token * kv..][..kv]
    }
}

/// What token `j` of a lane is: its id, its position, and which columns of the mask it sees, by the definition.
fn expected(
    plan: &StepPlan,
    lane: &LaneCase,
    (part, start): (Option<Part>, usize),
    j: usize,
    column: impl Fn(usize) -> usize,
) -> (usize, usize, Vec<usize>) {
    let Some(part) = part.filter(|part| j < part.len) else {
        return (PADDING as usize, start + j, vec![column(j)]);
    };
    let segment = &plan.segments[part.segment];
    let id = plan.tokens[segment.tokens.start + part.first + j] as usize;
    let mut seen: Vec<usize> = (0..lane.committed_len + part.first).collect();
    if !segment.is_tree {
        seen.extend((0..=j).map(&column));
        return (id, start + j, seen);
    }
    let parents = &plan.parents[segment.tokens.clone()];
    let (mut node, mut depth) = (j, 0);
    seen.push(column(node));
    while node > 0 {
        (node, depth) = (parents[node], depth + 1);
        seen.push(column(node));
    }
    seen.sort_unstable();
    (id, start + depth, seen)
}

proptest! {
    #[test]
    fn tokens_positions_and_masks_are_those_of_the_definition(
        lanes in lane_cases(), seed: u64, appends: bool, has_kv_positions: bool, is_wide: bool,
    ) {
        let limits = limits(lanes.len(), appends, 1);
        let facts = InputFacts { integer_bytes: if is_wide { 8 } else { 4 }, has_kv_positions, appends };
        let (book, plan) = case(&lanes, seed);
        let mut batch = Batch::new(limits);
        batch.lay_out(&plan, &book).unwrap();
        for section in batch.sections() {
            let layout = InputLayout::new(section.shape, facts);
            // Whatever was there before is overwritten.
            let mut bytes = vec![0xa5; layout.num_bytes];
            let with = Constants { lane_rows: limits.lane_rows, padding: PADDING };
            layout.write(section, (&plan, &book), with, &mut bytes);
            let read = Read { bytes: &bytes, layout };
            let SectionShape { first_lane, num_lanes, sequence, kv, num_logits, .. } = section.shape;
            for b in 0..num_lanes {
                let lane = LaneId(first_lane + b);
                let (part, start) = (part(&plan, section.work, lane), start(&plan, &book, section.work, lane));
                let column = |j: usize| if appends { limits.lane_rows + j } else { start + j };
                for j in 0..sequence {
                    let (id, position, seen) = expected(&plan, &lanes[lane.0], (part, start), j, column);
                    let at = b * sequence + j;
                    prop_assert_eq!(read.integer(layout.input_ids, at), id);
                    prop_assert_eq!(read.integer(layout.position_ids, at), position);
                    prop_assert!(position < limits.lane_rows, "the rotation has no such row");
                    let mask = read.sees(at);
                    prop_assert!(mask.iter().all(|&byte| byte < 2));
                    let found: Vec<usize> = (0..kv).filter(|&key| mask[key] == 1).collect();
                    prop_assert_eq!(found, seen);
                    if has_kv_positions {
                        prop_assert_eq!(read.integer(layout.kv_positions, b * kv + column(j)), position);
                    }
                }
                if has_kv_positions {
                    for row in 0..start.min(kv) {
                        prop_assert_eq!(read.integer(layout.kv_positions, b * kv + row), row);
                    }
                }
                if appends {
                    let len = part.map_or(0, |part| part.len);
                    prop_assert_eq!([read.place(2 * b), read.place(2 * b + 1)], [start as i32, len as i32]);
                } else {
                    prop_assert_eq!(read.integer(layout.write_indices, b), start);
                }
                for row in 0..num_logits {
                    let token = read.integer(layout.logits_rows, b * num_logits + row);
                    let is_slice = matches!(section.work, Work::Slice { .. });
                    let wanted = if num_logits == 1 && is_slice { sequence - 1 } else { row };
                    prop_assert_eq!(token, wanted);
                }
            }
        }
    }

    #[test]
    fn fields_are_aligned_and_apart(
        num_lanes in 1..5_usize, sequence in 1..66_usize, kv in 1..CAPACITY, has_kv_positions: bool, appends: bool, is_wide: bool,
    ) {
        let shape = SectionShape {
            profile: super::super::batch::Profile::Verify, first_lane: 0, num_lanes, sequence, kv, num_logits: sequence,
        };
        let facts = InputFacts { integer_bytes: if is_wide { 8 } else { 4 }, has_kv_positions, appends };
        let layout = InputLayout::new(shape, facts);
        let integers = |count: usize| count * facts.integer_bytes;
        let mut fields = vec![
            (layout.input_ids, integers(num_lanes * sequence)),
            (layout.position_ids, integers(num_lanes * sequence)),
            (layout.logits_rows, integers(num_lanes * sequence)),
            (layout.mask, num_lanes * sequence * kv),
        ];
        fields.push(if appends { (layout.places, num_lanes * 8) } else { (layout.write_indices, integers(num_lanes)) });
        if has_kv_positions {
            fields.push((layout.kv_positions, integers(num_lanes * kv)));
        }
        fields.sort_unstable();
        prop_assert!(fields.iter().all(|(at, _)| at.is_multiple_of(ALIGNMENT)));
        prop_assert!(fields.windows(2).all(|pair| pair[0].0 + pair[0].1 <= pair[1].0));
        prop_assert!(fields.last().is_some_and(|(at, len)| at + len <= layout.num_bytes));
    }
}
