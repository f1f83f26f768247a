//! What comes out of it: against the CPU backend, and the same whatever a step is made of.

use takt_engine::{
    TokenId,
    backend::{Backend, cpu::ActivationArithmetic, tensorrt::TensorRtBackend},
    kv::{KvKind, LaneId},
    step::{LogitsWanted, StepPlan},
};
use takt_engine_builder::export::Compute;
use takt_tests::backends::{self, relative_errors, run_slices};

use crate::models::{FP8_CACHE, KINDS, MAX_TREE, Planned, QUANTIZED, emulated, options, tokens};

/// How far products in 16 bits may be from the CPU's in 32: random models amplify their noise.
pub fn bound(compute: Compute) -> f64 {
    if compute == Compute::F16 { 0.01 } else { 0.08 }
}

#[track_caller]
pub fn assert_near(found: &[f32], expected: &[f32], bound: f64, what: &str) {
    let expected: Vec<f64> = expected.iter().map(|&value| value.into()).collect();
    let (largest, _) = relative_errors(found, &expected);
    assert!(largest < bound, "{what}: {largest}");
}

/// A binary tree of `len` nodes.
fn parents(len: usize) -> Vec<usize> {
    (0..len).map(|node| node.saturating_sub(1) / 2).collect()
}

/// Logits of every row that the last segment wants.
fn run(backend: &mut dyn Backend, plan: &StepPlan) -> Vec<Vec<Vec<f32>>> {
    let output = backend.run_step(plan).unwrap();
    let vocab = output.vocab_size();
    let rows = |idx| output.segment_logits(idx).unwrap().chunks(vocab).map(<[f32]>::to_vec).collect();
    (0..plan.segments.len()).map(rows).collect()
}

/// Prompts, decode steps beside prompts and trees, paths kept, a snapshot, lanes that wait between others.
pub fn talk(backend: &mut dyn Backend, tokens: &[TokenId]) -> Vec<Vec<Vec<f32>>> {
    let [a, b, c] = [0, 1, 2].map(LaneId);
    let mut said = Vec::new();
    let mut plan = StepPlan::default();
    plan.push(a, &tokens[..40], LogitsWanted::Last);
    plan.push(c, &tokens[5..12], LogitsWanted::All);
    said.extend(run(backend, &plan));
    // Lane b waits, empty, between them.
    for token in &tokens[40..44] {
        plan.clear();
        plan.push(c, &[*token], LogitsWanted::Last);
        plan.push(a, &[*token], LogitsWanted::Last);
        said.extend(run(backend, &plan));
    }
    plan.clear();
    plan.push_tree(a, &tokens[50..57], &parents(7));
    plan.push(b, &tokens[..3], LogitsWanted::Last);
    said.extend(run(backend, &plan));
    // Lane a's tree waits meanwhile: what pads its lane must not touch it.
    plan.clear();
    plan.push(b, &tokens[3..4], LogitsWanted::Last);
    plan.push_tree(c, &tokens[60..65], &parents(5));
    said.extend(run(backend, &plan));
    plan.clear();
    plan.push(b, &tokens[4..5], LogitsWanted::Last);
    said.extend(run(backend, &plan));
    backend.keep(a, &[0, 2, 5]).unwrap();
    backend.keep(c, &[0, 1, 4]).unwrap();
    plan.clear();
    for lane in [a, b, c] {
        plan.push(lane, &tokens[70..71], LogitsWanted::Last);
    }
    said.extend(run(backend, &plan));
    let snapshot = backend.save_snapshot(a, 42).unwrap();
    backend.truncate(b, 2).unwrap();
    backend.restore_snapshot(c, snapshot).unwrap();
    assert_eq!([a, b, c].map(|lane| backend.committed_len(lane)), [48, 2, 42]);
    plan.clear();
    for lane in [c, b, a] {
        plan.push(lane, &tokens[80..84], LogitsWanted::All);
    }
    said.extend(run(backend, &plan));
    said
}

#[test]
fn logits_are_the_cpus_in_both_forms_with_windows_and_in_every_format() {
    let test = "forward::logits_are_the_cpus_in_both_forms_with_windows_and_in_every_format";
    emulated(test, |_, _, _| {
        for kind in KINDS {
            let planned = Planned::new(kind);
            let tokens = tokens(&planned.spec, 100);
            let mut backend = planned.open(&options()).unwrap();
            let exact = backends::options(KvKind::Bf16, ActivationArithmetic::F32);
            let mut cpu = backends::open(&planned.spec, &planned.weights, &exact);
            let (found, expected) = (talk(&mut backend, &tokens), talk(&mut cpu, &tokens));
            assert_eq!(found.len(), expected.len());
            for (idx, (found, expected)) in found.iter().zip(&expected).enumerate() {
                assert_eq!(found.len(), expected.len());
                for (row, (found, expected)) in found.iter().zip(expected).enumerate() {
                    assert_near(
                        found,
                        expected,
                        bound(kind.compute),
                        &format!("{kind:?}: answer {idx}, row {row}"),
                    );
                }
            }
        }
    });
}

/// The last logits of `prompt` in a lane of its own.
fn alone(backend: &mut TensorRtBackend, prompt: &[TokenId], slice_len: usize) -> Vec<f32> {
    backend.truncate(LaneId(1), 0).unwrap();
    run_slices(backend, LaneId(1), prompt, slice_len).pop().unwrap()
}

#[test]
fn slices_of_any_length_and_decode_steps_say_the_same() {
    emulated("forward::slices_of_any_length_and_decode_steps_say_the_same", |_, _, _| {
        // In a cache of 8 bits a token sees itself as those after it do.
        for kind in [KINDS[0], QUANTIZED[0], QUANTIZED[1], FP8_CACHE] {
            let planned = Planned::new(kind);
            let prompt = tokens(&planned.spec, 60);
            let mut backend = planned.open(&options()).unwrap();
            let expected = alone(&mut backend, &prompt, 60);
            for slice_len in [1, 7, MAX_TREE, MAX_TREE + 1, 45] {
                let found = alone(&mut backend, &prompt, slice_len);
                assert_eq!(found, expected, "{kind:?}: slices of {slice_len}");
            }
        }
    });
}

#[test]
fn a_chain_of_proposals_says_what_the_same_tokens_say_one_by_one() {
    let test = "forward::a_chain_of_proposals_says_what_the_same_tokens_say_one_by_one";
    emulated(test, |_, _, _| {
        for kind in [KINDS[0], QUANTIZED[0], QUANTIZED[1]] {
            let planned = Planned::new(kind);
            let all = tokens(&planned.spec, 50);
            let (prompt, chain) = all.split_at(50 - MAX_TREE);
            let mut backend = planned.open(&options()).unwrap();
            alone(&mut backend, prompt, 50);
            let one_by_one = run_slices(&mut backend, LaneId(1), chain, 1);
            backend.truncate(LaneId(1), prompt.len()).unwrap();
            let mut plan = StepPlan::default();
            let line: Vec<usize> = (0..chain.len()).map(|node: usize| node.saturating_sub(1)).collect();
            plan.push_tree(LaneId(1), chain, &line);
            assert_eq!(run(&mut backend, &plan), [one_by_one], "{kind:?}");
            assert_eq!(backend.committed_len(LaneId(1)), prompt.len());
            backend.keep(LaneId(1), &[0, 1, 2]).unwrap();
            assert_eq!(backend.committed_len(LaneId(1)), prompt.len() + 3);
        }
    });
}
