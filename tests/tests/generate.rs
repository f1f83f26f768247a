//! A sequence driven to its end on a real backend.

use std::ops::ControlFlow;

use takt_engine::{
    backend::{Backend, cpu::ActivationArithmetic},
    generate,
    kv::{KvKind, LaneId},
    quant::WeightKind,
    sampler::SamplingParams,
    sequence::{Advance, Finish, Sequence, SequenceLimits, SequenceOptions},
};
use takt_tests::{
    backends::{argmax, open, options, run_slices},
    memory_weights::{MemoryWeights, small_spec},
};

const PROMPT: [u32; 9] = [3, 1, 4, 1, 5, 9, 2, 6, 5];

fn backend(max_step_tokens: usize) -> impl Backend {
    let model = MemoryWeights::random(&small_spec(), WeightKind::Bf16, WeightKind::Bf16, 4);
    let options = takt_engine::backend::cpu::CpuOptions {
        max_step_tokens,
        ..options(KvKind::Bf16, ActivationArithmetic::F32)
    };
    open(&small_spec(), &model, &options)
}

fn answer(backend: &mut dyn Backend, options: &SequenceOptions) -> Sequence {
    backend.truncate(LaneId(1), 0).unwrap();
    let mut sequence = Sequence::new(&PROMPT, options, SequenceLimits::of(backend), None).unwrap();
    generate(backend, LaneId(1), &mut sequence, &mut |_| ControlFlow::Continue(())).unwrap();
    sequence
}

#[test]
fn greedy_answers_follow_the_largest_logits_however_the_prompt_is_sliced() {
    let limit = SequenceOptions { max_tokens: Some(20), ..SequenceOptions::default() };
    for max_step_tokens in [2, 4, 64] {
        let mut backend = backend(max_step_tokens);
        let sequence = answer(&mut backend, &limit);
        assert_eq!((sequence.finish(), sequence.token_ids().len()), (Some(Finish::Length), 20));
        assert_eq!(backend.committed_len(LaneId(1)), sequence.committed_len());
        let all = [&PROMPT, sequence.token_ids()].concat();
        let logits = run_slices(&mut backend, LaneId(0), &all, max_step_tokens.min(2));
        let expected: Vec<_> =
            logits[PROMPT.len() - 1..all.len() - 1].iter().map(|row| argmax(row)).collect();
        assert_eq!(sequence.token_ids(), expected);
    }
}

#[test]
fn an_answer_fills_the_lane_and_no_more() {
    let mut backend = backend(64);
    let capacity = backend.capabilities().lane_capacity;
    let sequence = answer(&mut backend, &SequenceOptions::default());
    assert_eq!(sequence.finish(), Some(Finish::ContextFull));
    assert_eq!((sequence.committed_len(), backend.committed_len(LaneId(1))), (capacity, capacity));
}

#[test]
fn a_seed_fixes_a_sampled_answer() {
    let mut backend = backend(64);
    let mut sampled = |seed| {
        let sampling = SamplingParams { temperature: 1.0, top_p: 0.9, seed, ..SamplingParams::default() };
        let options = SequenceOptions { max_tokens: Some(30), sampling, ..SequenceOptions::default() };
        answer(&mut backend, &options).token_ids().to_vec()
    };
    assert_eq!(sampled(1), sampled(1));
    assert_ne!(sampled(1), sampled(2));
}

#[test]
fn whoever_watches_can_stop_the_answer() {
    let mut backend = backend(64);
    let mut sequence =
        Sequence::new(&PROMPT, &SequenceOptions::default(), SequenceLimits::of(&backend), None).unwrap();
    let mut num_left = 5;
    let mut watch = |_: &Advance<'_>| {
        num_left -= 1;
        if num_left == 0 { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
    };
    generate(&mut backend, LaneId(0), &mut sequence, &mut watch).unwrap();
    assert_eq!((sequence.token_ids().len(), sequence.finish()), (5, None));
}
