//! Logits do not depend on how a prompt is cut, on which lanes run together or on how many threads compute.

use takt_engine::{
    TokenId,
    backend::{Backend, cpu::ActivationArithmetic},
    kv::{KvKind, LaneId},
    quant::WeightKind,
    spec::DecoderSpec,
    step::{LogitsWanted, StepPlan},
};
use takt_tests::{
    backends::{open, options, run_slices},
    memory_weights::{MemoryWeights, small_spec},
};

const LEN: usize = 90;

fn tokens(seed: TokenId) -> Vec<TokenId> {
    (0..LEN as TokenId).map(|i| (i * i * 7 + i * 3 + seed) % 96).collect()
}

/// All-options model, one with a window shorter than the prompt.
fn spec() -> DecoderSpec {
    DecoderSpec { windows: vec![None, Some(20), None], qk_norm: true, qkv_bias: true, ..small_spec() }
}

fn formats() -> Vec<(WeightKind, KvKind, ActivationArithmetic)> {
    use ActivationArithmetic::{F32, Int8};
    vec![
        (WeightKind::Bf16, KvKind::Bf16, F32),
        (WeightKind::Nvfp4, KvKind::Int8, Int8),
        (WeightKind::Int4, KvKind::Fp8, F32),
    ]
}

#[test]
fn prefill_in_slices_of_any_size_gives_the_same_bits_as_one_slice() {
    for (weights, kv, arithmetic) in formats() {
        let model = MemoryWeights::random(&spec(), weights, WeightKind::Bf16, 1);
        let mut backend = open(&spec(), &model, &options(kv, arithmetic));
        let whole = run_slices(&mut backend, LaneId(0), &tokens(0), LEN);
        for slice_len in [1, 2, 7, 16, 33, 64, 89] {
            backend.truncate(LaneId(0), 0).unwrap();
            let sliced = run_slices(&mut backend, LaneId(0), &tokens(0), slice_len);
            assert_eq!(sliced, whole, "{weights}, {kv}, slices of {slice_len}");
        }
    }
}

#[test]
fn the_number_of_threads_changes_no_bit() {
    for (weights, kv, arithmetic) in formats() {
        let model = MemoryWeights::random(&spec(), weights, WeightKind::Bf16, 1);
        let run = |num_threads| {
            let options = takt_engine::backend::cpu::CpuOptions { num_threads, ..options(kv, arithmetic) };
            run_slices(&mut open(&spec(), &model, &options), LaneId(0), &tokens(0), 40)
        };
        let alone = run(1);
        for num_threads in [2, 3, 8] {
            assert_eq!(run(num_threads), alone, "{weights}, {kv}, {num_threads} threads");
        }
    }
}

#[test]
fn lanes_that_run_together_give_the_same_bits_as_alone() {
    for (weights, kv, arithmetic) in formats() {
        let model = MemoryWeights::random(&spec(), weights, WeightKind::Bf16, 1);
        let mut backend = open(&spec(), &model, &options(kv, arithmetic));
        let alone: Vec<_> = [0, 5, 11]
            .map(|seed| {
                backend.truncate(LaneId(0), 0).unwrap();
                run_slices(&mut backend, LaneId(0), &tokens(seed), LEN)
            })
            .into();
        backend.truncate(LaneId(0), 0).unwrap();
        // Lane 2 decodes while lanes 0 and 1 prefill slices of different sizes, in changing order.
        let (all, mut done) = ([0, 5, 11].map(tokens), [0; 3]);
        let mut found = vec![Vec::new(); 3];
        for step in 0.. {
            let mut plan = StepPlan::default();
            let mut order = vec![(0, 13), (1, 1 + step % 9), (2, 1)];
            order.rotate_left(step % 3);
            order.retain(|&(lane, _)| done[lane] < LEN);
            for &(lane, slice_len) in &order {
                let end = LEN.min(done[lane] + slice_len);
                plan.push(LaneId(lane), &all[lane][done[lane]..end], LogitsWanted::All);
                done[lane] = end;
            }
            if order.is_empty() {
                break;
            }
            let output = backend.run_step(&plan).unwrap();
            for (segment, &(lane, _)) in order.iter().enumerate() {
                let rows = output.segment_logits(segment).unwrap().chunks(output.vocab_size());
                found[lane].extend(rows.map(<[f32]>::to_vec));
            }
        }
        assert_eq!(found, alone, "{weights}, {kv}");
    }
}

#[test]
fn a_restored_prefix_continues_with_the_same_bits() {
    for (weights, kv, arithmetic) in formats() {
        let model = MemoryWeights::random(&spec(), weights, WeightKind::Bf16, 1);
        let mut backend = open(&spec(), &model, &options(kv, arithmetic));
        let whole = run_slices(&mut backend, LaneId(0), &tokens(0), LEN);
        let snapshot = backend.save_snapshot(LaneId(0), 40).unwrap();
        run_slices(&mut backend, LaneId(1), &tokens(3), LEN);
        backend.restore_snapshot(LaneId(1), snapshot).unwrap();
        assert_eq!(backend.committed_len(LaneId(1)), 40);
        assert_eq!(run_slices(&mut backend, LaneId(1), &tokens(0)[40..], 50), whole[40..], "{weights}, {kv}");
        // Truncating and going another way leaves nothing behind either.
        backend.truncate(LaneId(1), 60).unwrap();
        run_slices(&mut backend, LaneId(1), &tokens(8)[..20], 20);
        backend.truncate(LaneId(1), 60).unwrap();
        assert_eq!(run_slices(&mut backend, LaneId(1), &tokens(0)[60..], 30), whole[60..], "{weights}, {kv}");
    }
}

#[test]
fn only_the_wanted_logits_are_returned_and_they_are_the_same() {
    let model = MemoryWeights::random(&spec(), WeightKind::Bf16, WeightKind::Bf16, 1);
    let mut backend = open(&spec(), &model, &options(KvKind::Bf16, ActivationArithmetic::F32));
    let whole = run_slices(&mut backend, LaneId(0), &tokens(0), LEN);
    backend.truncate(LaneId(0), 0).unwrap();
    let mut plan = StepPlan::default();
    plan.push(LaneId(1), &tokens(4)[..10], LogitsWanted::None);
    plan.push(LaneId(0), &tokens(0), LogitsWanted::Last);
    plan.push(LaneId(2), &tokens(0)[..3], LogitsWanted::All);
    let output = backend.run_step(&plan).unwrap();
    assert_eq!([0, 1, 2].map(|segment| output.num_rows(segment)), [0, 1, 3]);
    assert_eq!(output.last_logits(0), None);
    assert_eq!(output.last_logits(1), Some(whole[LEN - 1].as_slice()));
    assert_eq!(output.segment_logits(2).unwrap(), whole[..3].concat());
}
