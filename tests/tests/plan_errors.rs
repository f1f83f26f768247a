//! A plan that cannot run is refused with the facts, and nothing has changed.

use takt_engine::{
    backend::{
        Backend,
        cpu::{ActivationArithmetic, CpuBackend, CpuOptions},
    },
    kv::{KvKind, LaneId, SnapshotId},
    quant::WeightKind,
    step::{Detail, LogitsWanted, Segment, StepPlan},
};
use takt_tests::{
    backends::{open, options, run_slices},
    memory_weights::{MemoryWeights, small_spec},
};

fn backend() -> CpuBackend {
    let model = MemoryWeights::random(&small_spec(), WeightKind::Bf16, WeightKind::Bf16, 1);
    let options = CpuOptions {
        max_step_tokens: 32,
        max_logits_rows: 8,
        ..options(KvKind::Bf16, ActivationArithmetic::F32)
    };
    open(&small_spec(), &model, &options)
}

fn plan(segments: &[(usize, usize, LogitsWanted)]) -> StepPlan {
    let mut plan = StepPlan::default();
    for &(lane, len, logits) in segments {
        plan.push(LaneId(lane), &vec![1; len], logits);
    }
    plan
}

/// Runs `plan` after 190 tokens in lane 0; gives the message and whether it was about room.
fn refusal(plan: &StepPlan) -> (String, bool) {
    let mut backend = backend();
    for _ in 0..19 {
        let mut filler = StepPlan::default();
        filler.push(LaneId(0), &[3; 10], LogitsWanted::None);
        backend.run_step(&filler).unwrap();
    }
    let error = backend.run_step(plan).unwrap_err();
    let lens = [0, 1, 2].map(|lane| backend.committed_len(LaneId(lane)));
    assert_eq!(lens, [190, 0, 0], "an error changed a committed length");
    run_slices(&mut backend, LaneId(0), &[5; 8], 8);
    (error.to_string(), error.is_capacity())
}

#[test]
fn each_bad_plan_is_refused_with_its_fact() {
    use LogitsWanted::{All, Last, None};
    let input = |text: &str| (text.to_string(), false);
    let capacity = |text: &str| (text.to_string(), true);
    assert_eq!(refusal(&plan(&[])), input("empty plan: at least one segment is needed"));
    assert_eq!(refusal(&plan(&[(1, 2, Last), (2, 0, Last)])), input("segment 1 (lane 2) has no token"));
    assert_eq!(
        refusal(&plan(&[(0, 1, Last), (1, 1, Last), (0, 1, Last)])),
        input("lane 0 is named twice in one plan")
    );
    assert_eq!(refusal(&plan(&[(3, 1, Last)])), input("lane 3 does not exist: there are 3"));
    assert_eq!(
        refusal(&plan(&[(1, 1, None), (0, 11, None)])),
        capacity("lane full: 11 tokens asked, 10 free")
    );
    assert_eq!(
        refusal(&plan(&[(1, 30, None), (2, 3, None)])),
        capacity("plan too large: 33 tokens asked, 32 a step")
    );
    assert_eq!(
        refusal(&plan(&[(1, 7, All), (2, 2, All)])),
        capacity("too many logits: 9 rows asked, 8 a step")
    );
    let mut outside = plan(&[(1, 2, Last)]);
    outside.tokens[1] = 96;
    assert_eq!(refusal(&outside), input("token 96 is outside the vocabulary of 96"));
}

#[test]
fn segments_that_do_not_cover_the_tokens_in_order_are_refused() {
    let segment = |lane, tokens| Segment {
        lane: LaneId(lane),
        tokens,
        logits: LogitsWanted::Last,
        detail: Detail::Whole,
        is_tree: false,
    };
    let bad = [
        vec![segment(0, 0..1)],
        vec![segment(1, 1..3)],
        vec![segment(1, 0..4)],
        vec![segment(1, 0..2), segment(2, 1..3)],
    ];
    for segments in bad {
        let (message, _) = refusal(&StepPlan { tokens: vec![1, 2, 3], parents: vec![0, 0, 1], segments });
        assert!(message.contains("cover"), "{message}");
    }
    let reversed = segment(1, std::ops::Range { start: 2, end: 1 });
    assert!(
        refusal(&StepPlan { tokens: vec![1, 2, 3], parents: vec![0, 0, 1], segments: vec![reversed] })
            .0
            .contains("no token")
    );
}

#[test]
fn lanes_and_snapshots_that_do_not_exist_are_refused() {
    let mut backend = backend();
    assert!(backend.truncate(LaneId(9), 0).is_err());
    assert!(backend.truncate(LaneId(0), 1).is_err());
    assert!(backend.save_snapshot(LaneId(0), 1).is_err());
    assert!(backend.restore_snapshot(LaneId(0), SnapshotId(77)).is_err());
    assert_eq!(backend.committed_len(LaneId(9)), 0);
    backend.drop_snapshot(SnapshotId(77));
}

#[test]
fn options_out_of_range_and_caches_over_budget_are_refused_with_numbers() {
    let model = MemoryWeights::random(&small_spec(), WeightKind::Bf16, WeightKind::Bf16, 1);
    let refuse = |change: &dyn Fn(&mut CpuOptions)| {
        let mut options = options(KvKind::Bf16, ActivationArithmetic::F32);
        change(&mut options);
        CpuBackend::new(&small_spec(), &model, &options).unwrap_err().to_string()
    };
    assert_eq!(refuse(&|o| o.num_lanes = 0), "0 lanes asked, expected 1..=1024");
    assert_eq!(refuse(&|o| o.lane_capacity = 257), "257 tokens a lane asked, expected 1..=256");
    assert!(refuse(&|o| o.num_threads = 0).contains("0 threads"));
    assert!(refuse(&|o| o.max_kv_bytes = Some(489_599)).contains("takes 489600 bytes, 489599 are allowed"));
}

#[test]
fn a_model_with_a_tensor_of_another_shape_is_refused_by_name() {
    let model = MemoryWeights::random(&small_spec(), WeightKind::Bf16, WeightKind::Bf16, 1);
    let mut wider = small_spec();
    wider.intermediate_size += 16;
    let options = options(KvKind::Bf16, ActivationArithmetic::F32);
    let error = CpuBackend::new(&wider, &model, &options).unwrap_err().to_string();
    assert_eq!(error, "tensor \"model.layers.0.mlp.gate_proj\": shape [160, 64], expected [176, 64]");
}
