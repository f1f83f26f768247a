//! What a step asks of the driver and of TensorRT.

use takt_engine::{
    EngineError,
    backend::{Backend, tensorrt::TensorRtOptions},
    dir::{PlanEntry, PlanForm},
    kv::LaneId,
    step::{Detail, LogitsWanted, StepPlan},
};
use takt_tests::backends::{argmax, run_slices};

use crate::models::{CAPACITY, KINDS, MAX_TREE, Planned, emulated, options, tokens, usual};

#[test]
fn a_decode_step_and_a_verify_round_are_one_graph_and_one_wait_each() {
    let test = "steps::a_decode_step_and_a_verify_round_are_one_graph_and_one_wait_each";
    emulated(test, |device, standin, _| {
        for kind in [KINDS[0], KINDS[1]] {
            let planned = Planned::new(kind);
            let mut backend = planned.open(&options()).unwrap();
            run_slices(&mut backend, LaneId(0), &tokens(&planned.spec, 20), 20);
            let mut plan = StepPlan::default();
            for num_tokens in [1, 5] {
                plan.clear();
                if num_tokens == 1 {
                    plan.push(LaneId(0), &[3], LogitsWanted::Last);
                } else {
                    plan.push_tree(LaneId(0), &[3, 4, 5, 6, 7], &[0, 0, 0, 1, 1]);
                }
                // The first time its shape is captured.
                backend.run_step(&plan).unwrap();
                standin.clear();
                let before = device.report();
                backend.run_step(&plan).unwrap();
                let calls = device.report().calls_since(&before);
                let count = |name: &str| calls.get(name).copied().unwrap_or(0);
                assert_eq!((count("cuGraphLaunch"), count("cuEventRecord")), (1, 1), "{calls:?}");
                let usual = [
                    "cuGraphLaunch",
                    "cuMemcpyDtoHAsync_v2",
                    "cuEventRecord",
                    "cuEventQuery",
                    "cuCtxSetCurrent",
                ];
                assert!(calls.keys().all(|name| usual.contains(&name.as_str())), "{calls:?}");
                assert_eq!(standin.record(), [""; 0], "TensorRT itself is not asked");
            }
        }
    });
}

#[test]
fn lists_of_the_likeliest_travel_instead_of_rows_and_rows_can_be_fetched() {
    let test = "steps::lists_of_the_likeliest_travel_instead_of_rows_and_rows_can_be_fetched";
    emulated(test, |_, _, _| {
        let planned = usual();
        let mut backend = planned.open(&options()).unwrap();
        let all = tokens(&planned.spec, 30);
        let whole = |backend: &mut dyn Backend, plan: &StepPlan| {
            let output = backend.run_step(plan).unwrap();
            (0..plan.segments.len())
                .map(|idx| output.segment_logits(idx).unwrap().to_vec())
                .collect::<Vec<_>>()
        };
        let mut plan = StepPlan::default();
        let fill = |plan: &mut StepPlan, detail: Detail| {
            plan.clear();
            plan.push(LaneId(2), &all[..1], LogitsWanted::Last);
            plan.last_needs(detail);
            plan.push_tree(LaneId(0), &all[1..6], &[0, 0, 0, 1, 1]);
            plan.last_needs(detail);
            plan.push(LaneId(1), &all[6..20], LogitsWanted::Last);
            plan.last_needs(detail);
        };
        fill(&mut plan, Detail::Whole);
        let expected = whole(&mut backend, &plan);
        (0..3).for_each(|lane| backend.truncate(LaneId(lane), 0).unwrap());
        fill(&mut plan, Detail::Likeliest(3));
        let mut output = backend.run_step(&plan).unwrap();
        let vocab = output.vocab_size();
        for (idx, rows) in expected.iter().enumerate() {
            assert!(output.segment_logits(idx).is_none());
            for (row, logits) in rows.chunks(vocab).enumerate() {
                let mut found = output.row(idx, row).unwrap();
                let (likeliest, _) = found.list().expect("a list").entries().next().unwrap();
                assert_eq!(likeliest, argmax(logits), "segment {idx}, row {row}");
                assert_eq!(found.whole().unwrap(), logits, "segment {idx}, row {row}");
            }
        }
    });
}

#[test]
fn plans_that_do_not_hold_are_refused_and_change_nothing() {
    emulated("steps::plans_that_do_not_hold_are_refused_and_change_nothing", |_, _, _| {
        let planned = usual();
        let mut backend = planned.open(&options()).unwrap();
        run_slices(&mut backend, LaneId(0), &tokens(&planned.spec, 10), 10);
        let refused =
            |backend: &mut dyn Backend, plan: &StepPlan| backend.run_step(plan).unwrap_err().to_string();
        let mut plan = StepPlan::default();
        assert!(refused(&mut backend, &plan).contains("empty plan"));
        plan.push(LaneId(3), &[1], LogitsWanted::Last);
        assert!(refused(&mut backend, &plan).contains("lane 3 does not exist"));
        plan.clear();
        plan.push(LaneId(0), &[96], LogitsWanted::Last);
        assert!(refused(&mut backend, &plan).contains("outside the vocabulary"));
        plan.clear();
        plan.push_tree(LaneId(0), &[1; MAX_TREE + 1], &[0; MAX_TREE + 1]);
        assert!(refused(&mut backend, &plan).contains("the TensorRT plan takes 20"));
        assert_eq!(backend.committed_len(LaneId(0)), 10);
        assert!(backend.truncate(LaneId(0), 11).is_err());
        assert!(backend.save_snapshot(LaneId(0), 11).is_err());
        let error = backend.capture(&[0, 1, 2]).unwrap_err().to_string();
        assert!(error.contains("the TensorRT plan puts out none"), "{error}");
        assert!(backend.capture(&[4]).unwrap_err().to_string().contains("the model has 3 layers"));
        backend.capture(&[]).unwrap();
    });
}

#[test]
fn a_lane_is_filled_to_its_last_row_beside_one_that_waits() {
    emulated("steps::a_lane_is_filled_to_its_last_row_beside_one_that_waits", |_, _, _| {
        let planned = usual();
        let mut backend = planned.open(&options()).unwrap();
        let all = tokens(&planned.spec, CAPACITY);
        for lane in [0, 1, 2] {
            run_slices(&mut backend, LaneId(lane), &all[..CAPACITY - 1], 90);
        }
        let mut plan = StepPlan::default();
        plan.push(LaneId(0), &all[CAPACITY - 1..], LogitsWanted::Last);
        plan.push(LaneId(2), &all[CAPACITY - 1..], LogitsWanted::Last);
        let output = backend.run_step(&plan).unwrap();
        assert_eq!(output.last_logits(0), output.last_logits(1));
        let error = backend.run_step(&plan).unwrap_err();
        assert!(error.to_string().contains("lane full: 1 tokens asked, 0 free"), "{error}");
        assert_eq!([0, 1, 2].map(|lane| backend.committed_len(LaneId(lane))), [140, 139, 140]);
    });
}

#[test]
fn an_entry_with_sizes_that_no_plan_has_is_refused_before_anything_is_loaded() {
    let test = "steps::an_entry_with_sizes_that_no_plan_has_is_refused_before_anything_is_loaded";
    emulated(test, |device, standin, _| {
        let planned = Planned::new(KINDS[0]);
        standin.clear();
        let allocations = || device.report().calls("cuMemAlloc_v2");
        let before = allocations();
        type Damage = fn(&mut PlanEntry);
        let damages: [(Damage, &str); 10] = [
            (|it| it.max_tree = 0, "has a size of 0"),
            (|it| it.max_prefill = 0, "has a size of 0"),
            (|it| it.lane_rows = 0, "has a size of 0"),
            (|it| it.max_tree = usize::MAX, "nodes of a tree: expected at most 4096"),
            (|it| it.max_prefill = 4097, "4097 tokens of a slice: expected at most 4096"),
            (|it| it.lane_rows = usize::MAX, "rows of a lane: expected at most 4194304"),
            (|it| it.captured = vec![0; 4], "4 layers with features: expected at most 3"),
            (|it| it.num_lanes = 65, "65 lanes: expected at most 64"),
            (|it| it.lane_rows = CAPACITY + MAX_TREE - 1, "expected rows for tokens and trees"),
            (|it| it.max_prefill = CAPACITY + 1, "and slices that fit"),
        ];
        for (damage, said) in damages {
            let mut entry = planned.entry.clone();
            damage(&mut entry);
            let error = planned.open_as(&entry, &options()).unwrap_err();
            assert!(
                matches!(error, EngineError::Unsupported(_)) && error.to_string().contains(said),
                "{error}"
            );
        }
        assert_eq!(allocations(), before);
        let loaded = standin.record().into_iter().filter(|call| call.contains("deserializeCudaEngine"));
        assert_eq!(loaded.count(), 0);
        planned.open(&options()).unwrap();
    });
}

#[test]
fn what_does_not_fit_or_hold_is_refused_with_all_sizes() {
    emulated("steps::what_does_not_fit_or_hold_is_refused_with_all_sizes", |device, standin, _| {
        let planned = usual();
        let refused = |options: TensorRtOptions, part: &str| {
            let error = planned.open(&options).unwrap_err();
            assert!(error.to_string().contains(part), "{error}");
            error
        };
        let budget =
            refused(TensorRtOptions { max_bytes: Some(100_000), ..options() }, "the memory budget is 100000");
        assert!(budget.is_capacity() && budget.to_string().contains("KV cache "));
        let kv = refused(TensorRtOptions { max_kv_bytes: Some(1000), ..options() }, "1000 are allowed");
        assert!(kv.is_capacity());
        refused(TensorRtOptions { num_lanes: 4, ..options() }, "plan \"plans/of-a-test.plan\" has 3");
        refused(TensorRtOptions { lane_capacity: Some(141), ..options() }, "141 tokens asked");
        let mut other = Planned::new(KINDS[0]);
        other.entry.lane_rows += 1;
        let error = other.open(&options()).unwrap_err().to_string();
        assert!(
            error.contains(
                "lanes of 161 rows take 20608 bytes a layer, of which TensorRT takes multiples of 256"
            ),
            "{error}"
        );
        other.entry.lane_rows += 7;
        let error = other.open(&options()).unwrap_err();
        // The first input that is as long as the cache; without newer operators the mask is, too.
        let input = match other.entry.form {
            PlanForm::Operators => "past_key_values.0.key",
            PlanForm::Primitives => "attention_mask",
        };
        assert!(matches!(error, EngineError::Unsupported(_)) && error.to_string().contains(input), "{error}");
        other.entry.lane_rows -= 8;
        other.entry.max_prefill += 1;
        let error = other.open(&options()).unwrap_err().to_string();
        assert!(error.contains("takes input_ids of [1, 1] to [1, 32], [1, 33] is expected"), "{error}");
        assert_eq!(device.report().leaks(), Vec::<String>::new());
        assert_eq!(standin.alive(), [""; 0]);
    });
}
