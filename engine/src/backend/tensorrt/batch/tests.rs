use std::collections::BTreeSet;

use proptest::prelude::*;

use super::*;
use crate::TokenId;

/// A lane of a random step: what it holds, and what is asked of it.
#[derive(Debug, Clone)]
pub(in crate::backend::tensorrt) struct LaneCase {
    pub committed_len: usize,
    /// Nodes of a tree that waits to be kept.
    pub tree_len: usize,
    pub asked: Asked,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in crate::backend::tensorrt) enum Asked {
    Nothing,
    Run(usize, LogitsWanted),
    Tree(usize),
}

pub(in crate::backend::tensorrt) const CAPACITY: usize = 700;

pub(in crate::backend::tensorrt) fn limits(num_lanes: usize, appends: bool, step: usize) -> BatchLimits {
    BatchLimits {
        num_lanes,
        lane_rows: CAPACITY + 65,
        max_prefill: 48,
        max_tree: 65,
        appends,
        max_step_tokens: 600,
        max_logits_rows: 600,
        logits_step: step,
        features_step: step,
    }
}

fn asked() -> impl Strategy<Value = Asked> {
    let logits = prop_oneof![Just(LogitsWanted::None), Just(LogitsWanted::Last), Just(LogitsWanted::All)];
    prop_oneof![
        2 => Just(Asked::Nothing),
        3 => logits.clone().prop_map(|logits| Asked::Run(1, logits)),
        2 => (2..120_usize, logits).prop_map(|(len, logits)| Asked::Run(len, logits)),
        2 => (1..=65_usize).prop_map(Asked::Tree),
    ]
}

pub(in crate::backend::tensorrt) fn lane_cases() -> impl Strategy<Value = Vec<LaneCase>> {
    let lane = (0..CAPACITY - 120, prop_oneof![Just(0), 1..65_usize], asked());
    let lane = lane.prop_map(|(committed_len, tree_len, asked)| LaneCase { committed_len, tree_len, asked });
    prop::collection::vec(lane, 1..5)
}

/// The lanes as they are before the step, and the step; random trees.
pub(in crate::backend::tensorrt) fn case(lanes: &[LaneCase], seed: u64) -> (LaneBook, StepPlan) {
    let mut book = LaneBook::new(lanes.len(), CAPACITY);
    let mut plan = StepPlan::default();
    let mut state = seed;
    let mut below = |most: usize| {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (state >> 33) as usize % most
    };
    let tokens: Vec<TokenId> = (1..=200).collect();
    for (idx, lane) in lanes.iter().enumerate() {
        book.set(LaneId(idx), lane.committed_len);
        let mut parents = |len| (0..len).map(|node: usize| below(node.max(1))).collect::<Vec<_>>();
        book.note_tree(LaneId(idx), &parents(lane.tree_len));
        match lane.asked {
            Asked::Nothing => {}
            Asked::Run(len, logits) => plan.push(LaneId(idx), &tokens[..len], logits),
            Asked::Tree(len) => plan.push_tree(LaneId(idx), &tokens[..len], &parents(len)),
        }
    }
    (book, plan)
}

/// The rows of `lane` that `section` writes, and how many of them are its own tokens'.
fn written(section: &Section, plan: &StepPlan, book: &LaneBook, lane: LaneId) -> (Range<usize>, usize) {
    let first = start(plan, book, section.work, lane);
    let len = part(plan, section.work, lane).map_or(0, |part| part.len);
    (first..first + section.shape.sequence, len)
}

fn lanes_of(section: &Section) -> impl Iterator<Item = LaneId> + use<> {
    let first = section.shape.first_lane;
    (first..first + section.shape.num_lanes).map(LaneId)
}

proptest! {
    #[test]
    fn every_token_is_computed_once_and_padding_writes_no_row_that_is_held(
        lanes in lane_cases(), seed: u64, appends: bool, step in prop_oneof![Just(1), Just(2), Just(64)],
    ) {
        let limits = limits(lanes.len(), appends, step);
        let (book, plan) = case(&lanes, seed);
        let mut batch = Batch::new(limits);
        batch.lay_out(&plan, &book).unwrap();
        let mut computed = vec![0; plan.tokens.len()];
        // Rows of each lane that some token of its own is written to, in any section.
        let mut own: Vec<BTreeSet<usize>> = vec![BTreeSet::new(); lanes.len()];
        for section in batch.sections() {
            for lane in lanes_of(section) {
                if let Some(part) = part(&plan, section.work, lane) {
                    let first = plan.segments[part.segment].tokens.start + part.first;
                    computed[first..first + part.len].iter_mut().for_each(|times| *times += 1);
                    let (rows, len) = written(section, &plan, &book, lane);
                    own[lane.0].extend(rows.start..rows.start + len);
                    prop_assert_eq!(rows.start, lanes[lane.0].committed_len + part.first);
                }
            }
        }
        prop_assert!(computed.iter().all(|&times| times == 1), "{:?}", computed);
        for section in batch.sections() {
            for lane in lanes_of(section) {
                let (rows, len) = written(section, &plan, &book, lane);
                prop_assert!(rows.end <= limits.lane_rows);
                prop_assert!(appends || rows.end <= section.shape.kv);
                let held = &lanes[lane.0];
                let is_asked = held.asked != Asked::Nothing;
                let tentative = if is_asked { 0 } else { held.tree_len };
                for row in rows.start + len..rows.end {
                    prop_assert!(row >= held.committed_len + tentative, "lane {} row {}", lane.0, row);
                    prop_assert!(!own[lane.0].contains(&row), "lane {} row {} is another section's", lane.0, row);
                }
            }
        }
    }

    #[test]
    fn sections_keep_to_the_profiles(lanes in lane_cases(), seed: u64, appends: bool) {
        let limits = limits(lanes.len(), appends, 1);
        let (book, plan) = case(&lanes, seed);
        let mut batch = Batch::new(limits);
        batch.lay_out(&plan, &book).unwrap();
        for section in batch.sections() {
            let SectionShape { profile, first_lane, num_lanes, sequence, kv, num_logits } = section.shape;
            prop_assert!(num_lanes >= 1 && first_lane + num_lanes <= lanes.len());
            match profile {
                Profile::Prefill => {
                    prop_assert!(num_lanes == 1 && (1..=limits.max_prefill).contains(&sequence) && num_logits == 1);
                }
                Profile::Decode => {
                    prop_assert!(sequence == 1 && num_logits == 1);
                    prop_assert!(limits.decode_shapes().contains(&section.shape), "{:?}", section.shape);
                }
                Profile::Verify => prop_assert!((2..=65).contains(&sequence) || num_lanes == 1, "{:?}", section),
            }
            prop_assert!(num_logits <= sequence && sequence <= 65.max(limits.max_prefill));
            let longest = if appends { limits.lane_rows + sequence } else { limits.lane_rows };
            prop_assert!((1..=longest).contains(&kv));
            prop_assert!(!appends || kv == longest);
        }
        let capacity = batch.sections.capacity();
        prop_assert_eq!(capacity, Batch::new(limits).sections.capacity(), "allocated in a step");
    }

    #[test]
    fn no_two_wanted_rows_lie_in_one_place(
        lanes in lane_cases(), seed: u64, step in prop_oneof![Just(1), Just(2), Just(64)],
    ) {
        let limits = limits(lanes.len(), false, step);
        let (book, plan) = case(&lanes, seed);
        let mut batch = Batch::new(limits);
        batch.lay_out(&plan, &book).unwrap();
        let (mut logits, mut features) = (BTreeSet::new(), BTreeSet::new());
        for (idx, segment) in plan.segments.iter().enumerate() {
            let mut rows = Vec::new();
            batch.logits_places(&plan, idx, |row, place| rows.push((row, place)));
            let wanted = crate::backend::plan_check::num_logits_rows(segment);
            prop_assert_eq!(rows.iter().map(|(row, _)| *row).collect::<Vec<_>>(), (0..wanted).collect::<Vec<_>>());
            prop_assert!(rows.iter().all(|(_, place)| logits.insert(*place)), "a place twice");
            let mut num_tokens = 0;
            batch.feature_places(&plan, idx, |first, place, len| {
                assert_eq!(first, num_tokens);
                num_tokens += len;
                assert!((place..place + len).all(|place| features.insert(place)), "a place twice");
                Ok(())
            }).unwrap();
            prop_assert_eq!(num_tokens, segment.tokens.len());
        }
        let (mut listed, mut num_segments) = (BTreeSet::new(), 0);
        batch.listed(&plan, |segments, rows| {
            assert!(rows.end <= limits.num_logits_places());
            assert!(rows.into_iter().all(|row| listed.insert(row)), "lists that meet");
            num_segments += segments.count();
        });
        prop_assert!(logits.is_subset(&listed), "a row without a list");
        prop_assert_eq!(num_segments, plan.segments.len());
        prop_assert!(logits.last().is_none_or(|&last| last < limits.num_logits_places()));
        prop_assert!(features.last().is_none_or(|&last| last < limits.num_feature_places()));
        for section in batch.sections() {
            prop_assert!(section.logits_place.is_multiple_of(step) && section.feature_place.is_multiple_of(step));
            let rows = section.shape.num_lanes * section.shape.num_logits;
            prop_assert!(section.logits_place + rows <= limits.num_logits_places());
            let tokens = section.shape.num_lanes * section.shape.sequence;
            prop_assert!(section.feature_place + tokens <= limits.num_feature_places());
            // Whatever of it nobody wants hits none that are.
            let others = batch.sections().iter().filter(|other| *other != section);
            for other in others.filter(|other| other.shape.num_logits > 0) {
                let other_rows = other.logits_place..other.logits_place + other.shape.num_lanes * other.shape.num_logits;
                let is_same_tail = other.logits_place == section.logits_place;
                let overlap = section.logits_place < other_rows.end && other_rows.start < section.logits_place + rows;
                prop_assert!(!overlap || is_same_tail);
            }
        }
    }
}

#[test]
fn a_step_of_everything_is_laid_out_as_documented() {
    let limits = limits(4, false, 1);
    let mut book = LaneBook::new(4, CAPACITY);
    [10, 300, 20, 0].into_iter().enumerate().for_each(|(lane, len)| book.set(LaneId(lane), len));
    let mut plan = StepPlan::default();
    plan.push(LaneId(2), &[7], LogitsWanted::Last);
    plan.push(LaneId(0), &[8], LogitsWanted::Last);
    plan.push_tree(LaneId(1), &[1; 9], &[0; 9]);
    plan.push(LaneId(3), &[3; 100], LogitsWanted::Last);
    let mut batch = Batch::new(limits);
    batch.lay_out(&plan, &book).unwrap();
    let shapes: Vec<_> = batch
        .sections()
        .iter()
        .map(|section| {
            let SectionShape { profile, first_lane, num_lanes, sequence, kv, .. } = section.shape;
            (profile, first_lane, num_lanes, sequence, kv)
        })
        .collect();
    // Lane 1 pads the decode section behind its tree: row 309.
    assert_eq!(
        shapes,
        [
            (Profile::Decode, 0, 4, 1, 512),
            (Profile::Verify, 1, 1, 16, 512),
            (Profile::Prefill, 3, 1, 48, 256),
            (Profile::Prefill, 3, 1, 48, 256),
            (Profile::Prefill, 3, 1, 4, 256),
        ]
    );
    assert_eq!(start(&plan, &book, Work::Singles, LaneId(1)), 309);
    let places = |segment| {
        let mut all = Vec::new();
        batch.logits_places(&plan, segment, |_, place| all.push(place));
        all
    };
    assert_eq!((places(0), places(1), places(3)), (vec![6], vec![4], vec![0]));
    assert_eq!(places(2), (8..17).collect::<Vec<_>>());
}

#[test]
fn a_tree_larger_than_the_plan_takes_is_refused() {
    let book = LaneBook::new(1, CAPACITY);
    let mut plan = StepPlan::default();
    plan.push_tree(LaneId(0), &[1; 66], &[0; 66]);
    let error = Batch::new(limits(1, false, 1)).lay_out(&plan, &book).unwrap_err();
    assert!(
        error.is_capacity() && error.to_string().contains("66 nodes: the TensorRT plan takes 65"),
        "{error}"
    );
}

#[test]
fn sets_of_lanes_are_few_and_all_decode_shapes_are_known() {
    let sets = |num_lanes| limits(num_lanes, false, 1).lane_sets().collect::<Vec<_>>();
    assert_eq!(sets(1), std::iter::once(0..1).collect::<Vec<_>>());
    assert_eq!(sets(2), [0..1, 1..2, 0..2]);
    assert_eq!(sets(6), [0..1, 1..2, 2..3, 3..4, 4..5, 5..6, 0..2, 0..4, 0..6]);
    for num_lanes in 1..=17 {
        let limits = limits(num_lanes, false, 1);
        let shapes: std::collections::HashSet<_> = limits.decode_shapes().into_iter().collect();
        let num_sets = num_lanes + num_lanes.next_power_of_two().trailing_zeros() as usize;
        assert_eq!(shapes.len(), num_sets * 3, "{num_lanes} lanes");
        assert!(limits.num_usual_shapes() >= 3 * shapes.len());
        for first in 0..num_lanes {
            for end in first + 1..=num_lanes {
                let lanes = limits.lanes(first..end);
                assert!(lanes.start <= first && end <= lanes.end && lanes.end <= num_lanes);
                assert!(limits.lane_sets().any(|set| set == lanes), "{lanes:?}");
            }
        }
    }
}

#[test]
fn every_section_has_lists_of_its_own() {
    let limits = limits(4, false, 2);
    let book = LaneBook::new(4, CAPACITY);
    let listed = |plan: &StepPlan| {
        let mut batch = Batch::new(limits);
        batch.lay_out(plan, &book).unwrap();
        let mut all = Vec::new();
        batch.listed(plan, |segments, rows| {
            all.push((segments.map(|segment| segment.lane.0).collect::<Vec<_>>(), rows));
        });
        all
    };
    let mut plan = StepPlan::default();
    plan.push(LaneId(3), &[7; 60], LogitsWanted::Last);
    plan.push(LaneId(1), &[7], LogitsWanted::Last);
    plan.push_tree(LaneId(2), &[1; 9], &[0; 9]);
    plan.push(LaneId(0), &[8], LogitsWanted::Last);
    // Behind two rows for each lane's prompt: two single tokens, then a tree of one lane.
    assert_eq!(listed(&plan), [(vec![1, 0], 8..10), (vec![2], 12..28), (vec![3], 0..1)]);
    plan.clear();
    plan.push(LaneId(1), &[7; 70], LogitsWanted::All);
    plan.push(LaneId(0), &[7; 60], LogitsWanted::Last);
    plan.push(LaneId(2), &[7; 3], LogitsWanted::All);
    plan.push(LaneId(3), &[7; 3], LogitsWanted::None);
    // Pieces of 64, 6 and 3 tokens, and two prompts.
    assert_eq!(listed(&plan), [(vec![0], 0..1), (vec![3], 2..3), (vec![1, 2], 12..140)]);
}

#[test]
fn lengths_that_are_looked_at_are_few() {
    assert_eq!(limits(1, false, 1).decode_kvs(), [256, 512, 765]);
    assert_eq!(limits(1, true, 1).decode_kvs(), [766]);
    let lens: BTreeSet<usize> = (2..=65).map(|nodes| limits(1, false, 1).tree_len(nodes)).collect();
    assert_eq!(lens.into_iter().collect::<Vec<_>>(), [2, 4, 8, 16, 32, 65]);
}
