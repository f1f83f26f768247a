//! Tokens chosen on the device: those the host chooses by whole rows, for a few words a tree.

use takt_eagle_spec::tree::TreeShape;
use takt_engine::{
    backend::{Backend, cuda::CudaOptions},
    kv::{KvKind, LaneId},
    quant::WeightKind,
    sampler::{Sampler, SamplerState, SamplingParams},
    sequence::SequenceOptions,
    step::{Detail, LogitsWanted, StepPlan},
};
use takt_kernels_cu::launch::accept::RESULT_HEADER;
use takt_tests::{
    backends::run_slices,
    memory_weights::MemoryWeights,
    speculated::{Method, answer_with},
};

use crate::{
    lists::{GREEDY, cost, hot, overflowing, tree},
    models::{emulated, on_device, open, options, spec, tokens},
};

/// Words of the longest path.
const MAX_PATH: u64 = 64;
const WORD_BYTES: u64 = 4;
/// What comes of a tree of more than one node, and of a token.
const TREE_BYTES: u64 = (RESULT_HEADER as u64 + MAX_PATH) * WORD_BYTES;
const TOKEN_BYTES: u64 = (RESULT_HEADER as u64 + 1) * WORD_BYTES;

fn state(params: &SamplingParams) -> SamplerState {
    Sampler::new(params).unwrap().state()
}

/// Samplers of every kind: by lists, and by whole rows.
fn kinds() -> [SamplingParams; 6] {
    let plain = SamplingParams { temperature: 0.7, seed: 11, ..GREEDY };
    [
        GREEDY,
        SamplingParams { top_k: Some(20), top_p: 0.9, ..plain },
        SamplingParams { top_p: 0.9, ..plain },
        plain,
        SamplingParams { min_p: 0.05, ..plain },
        SamplingParams { top_k: Some(80), ..plain },
    ]
}

#[test]
fn answers_are_those_of_whole_rows_with_and_without_speculation() {
    on_device("choices::answers_are_those_of_whole_rows_with_and_without_speculation").run(|_| {
        let spec = spec();
        let model = MemoryWeights::random(&spec, WeightKind::Nvfp4, WeightKind::Bf16, 3);
        let mut backend = open(&spec, &model, &options(KvKind::Fp8)).unwrap();
        // What a lookup finds again.
        let prompt = tokens(&spec, 12).repeat(2);
        let shape = TreeShape { num_levels: 3, top_k: 2, num_nodes: 8 };
        let mut num_accepted = 0;
        for sampling in kinds() {
            let asked = SequenceOptions { max_tokens: Some(24), sampling, ..SequenceOptions::default() };
            let mut answer =
                |method, detail| answer_with(&mut backend, &prompt, &asked, method, detail).unwrap();
            let by_rows = answer(Method::Plain, Some(Detail::Whole));
            assert_eq!(by_rows.tokens.len(), 24);
            assert_eq!(answer(Method::Plain, None), by_rows, "{sampling:?}");
            let looked_up = answer(Method::Lookup(shape), None);
            assert_eq!(looked_up.tokens, by_rows.tokens, "{sampling:?}");
            num_accepted += looked_up.num_accepted;
        }
        assert!(num_accepted > 5, "{num_accepted} proposals accepted");
    });
}

#[test]
fn a_round_waits_once_and_brings_back_a_path_whoever_samples() {
    emulated("choices::a_round_waits_once_and_brings_back_a_path_whoever_samples").run(|device| {
        let spec = spec();
        let model = MemoryWeights::random(&spec, WeightKind::Nvfp4, WeightKind::Nvfp4, 1);
        let mut backend = open(&spec, &model, &options(KvKind::Fp8)).unwrap();
        run_slices(&mut backend, LaneId(0), &tokens(&spec, 20), 20);
        let (nodes, parents) = tree(spec.vocab_size, 60);
        for sampling in kinds() {
            let mut plan = StepPlan::default();
            plan.push_tree(LaneId(0), &nodes, &parents);
            plan.last_needs(Detail::Chosen(state(&sampling)));
            let (fetched, calls) = cost(device, || {
                let mut output = backend.run_step(&plan).unwrap();
                assert!(output.row(0, 0).unwrap().choice().is_some(), "{sampling:?}");
            });
            assert_eq!(fetched, TREE_BYTES, "{sampling:?}");
            let count = |name: &str| calls.get(name).copied().unwrap_or(0);
            assert_eq!((count("cuGraphLaunch"), count("cuEventRecord")), (2, 1), "{sampling:?}: {calls:?}");
            let known = ["cuGraphLaunch", "cuEventRecord", "cuEventQuery", "cuCtxSetCurrent"];
            assert!(calls.keys().all(|name| known.contains(&name.as_str())), "{calls:?}");

            let mut plan = StepPlan::default();
            plan.push(LaneId(0), &[5], LogitsWanted::Last);
            plan.last_needs(Detail::Chosen(state(&sampling)));
            let (fetched, calls) = cost(device, || {
                backend.run_step(&plan).unwrap();
            });
            assert_eq!(fetched, TOKEN_BYTES, "{sampling:?}");
            assert!(calls.keys().all(|name| known.contains(&name.as_str())), "{calls:?}");
            backend.truncate(LaneId(0), 20).unwrap();
        }
    });
}

#[test]
fn whatever_chooses_is_captured_when_the_backend_is_opened() {
    emulated("choices::whatever_chooses_is_captured_when_the_backend_is_opened").run(|device| {
        let spec = spec();
        let model = MemoryWeights::random(&spec, WeightKind::Nvfp4, WeightKind::Bf16, 3);
        let mut backend = open(&spec, &model, &options(KvKind::Bf16)).unwrap();
        let mut captured = |kinds: &[SamplingParams]| {
            let before = device.report().calls("cuGraphInstantiateWithFlags");
            for lanes in [&[0][..], &[0, 1, 2], &[1, 2]] {
                let mut plan = StepPlan::default();
                for (&lane, sampling) in lanes.iter().zip(kinds.iter().cycle()) {
                    plan.push(LaneId(lane), &[3], LogitsWanted::Last);
                    plan.last_needs(Detail::Chosen(state(sampling)));
                }
                backend.run_step(&plan).unwrap();
            }
            // One lane beside a prompt that goes on, a tree beside it, and trees of several lanes.
            let (nodes, parents) = tree(spec.vocab_size, 9);
            for trees in [&[][..], &[0], &[0, 2]] {
                let mut plan = StepPlan::default();
                plan.push(LaneId(1), &[3, 4, 5], LogitsWanted::None);
                for (&lane, sampling) in trees.iter().zip(kinds.iter().cycle()) {
                    plan.push_tree(LaneId(lane), &nodes, &parents);
                    plan.last_needs(Detail::Chosen(state(sampling)));
                }
                if trees.is_empty() {
                    plan.push(LaneId(0), &[6], LogitsWanted::Last);
                    plan.last_needs(Detail::Chosen(state(&kinds[0])));
                }
                backend.run_step(&plan).unwrap();
            }
            (0..3).for_each(|lane| backend.truncate(LaneId(lane), 0).unwrap());
            device.report().calls("cuGraphInstantiateWithFlags") - before
        };
        let [greedy, top_20, top_p, plain, min_p, top_80] = kinds();
        for kinds in [&[greedy][..], &[top_p, greedy, plain], &[plain], &[min_p, top_80], &[top_20, greedy]] {
            assert_eq!(captured(kinds), 0, "{kinds:?}");
        }
        // Whole rows beside lists that are longer than one: when they first come.
        assert!(captured(&[top_20, plain]) > 0);
        assert_eq!(captured(&[hot(Some(30), 1), top_p]), 0, "both of 32");
    });
}

#[test]
fn lanes_with_lists_rows_and_choices_in_one_step_have_each_what_it_asks() {
    on_device("choices::lanes_with_lists_rows_and_choices_in_one_step_have_each_what_it_asks").run(|_| {
        let spec = spec();
        let model = MemoryWeights::random(&spec, WeightKind::Nvfp4, WeightKind::Bf16, 3);
        let mut backend = open(&spec, &model, &options(KvKind::Bf16)).unwrap();
        let (nodes, parents) = tree(spec.vocab_size, 9);
        let [greedy, top_20, top_p, ..] = kinds();
        let details = [Detail::Likeliest(64), Detail::Whole, Detail::OnDemand]
            .into_iter()
            .chain([greedy, top_20, top_p].map(|params| Detail::Chosen(state(&params))));
        for beside in details {
            let mut plan = StepPlan::default();
            plan.push(LaneId(2), &[7], LogitsWanted::Last);
            plan.last_needs(beside);
            plan.push_tree(LaneId(0), &nodes, &parents);
            plan.last_needs(Detail::Chosen(state(&top_20)));
            plan.push(LaneId(1), &[3, 4, 5], LogitsWanted::Last);
            plan.last_needs(Detail::Chosen(state(&top_p)));
            let mut whole = plan.clone();
            whole.segments.iter_mut().for_each(|segment| segment.detail = Detail::Whole);
            let mut output = backend.run_step(&whole).unwrap();
            let by_rows = [(1, top_20), (2, top_p)].map(|(segment, params)| {
                let mut row = output.row(segment, 0).unwrap();
                assert_eq!((row.choice(), row.list()), (None, None));
                Sampler::new(&params).unwrap().sample(row.whole().unwrap()).unwrap()
            });
            (1..3).for_each(|lane| backend.truncate(LaneId(lane), 0).unwrap());
            let mut output = backend.run_step(&plan).unwrap();
            let chosen = [1, 2].map(|segment| {
                let row = output.row(segment, 0).unwrap();
                row.choice().unwrap().token
            });
            assert_eq!(chosen, by_rows, "beside {beside:?}");
            let first = output.row(0, 0).unwrap();
            assert_eq!(first.choice().is_some(), matches!(beside, Detail::Chosen(_)), "{beside:?}");
            assert_eq!(first.list().is_some(), matches!(beside, Detail::Likeliest(_)), "{beside:?}");
            assert_eq!(output.last_logits(0).is_some(), beside == Detail::Whole);
            (1..3).for_each(|lane| backend.truncate(LaneId(lane), 0).unwrap());
        }
    });
}

#[test]
fn a_row_that_is_broken_has_no_choice_and_says_so_in_the_words_of_a_whole_row() {
    on_device("choices::a_row_that_is_broken_has_no_choice_and_says_so_in_the_words_of_a_whole_row").run(
        |_| {
            let spec = spec();
            let model = overflowing(&spec);
            let mut backend = open(&spec, &model, &options(KvKind::Bf16)).unwrap();
            for sampling in kinds() {
                let mut failing = |detail: Detail| {
                    backend.truncate(LaneId(0), 0).unwrap();
                    let mut plan = StepPlan::default();
                    plan.push(LaneId(0), &[1, 2, 3], LogitsWanted::Last);
                    plan.last_needs(detail);
                    let mut output = backend.run_step(&plan).unwrap();
                    let mut row = output.last_row(0).unwrap();
                    assert_eq!(row.choice(), None);
                    Sampler::new(&sampling).unwrap().sample_row(&mut row).unwrap_err().to_string()
                };
                let by_row = failing(Detail::Whole);
                assert_eq!(failing(Detail::Chosen(state(&sampling))), by_row);
                assert!(by_row.contains("is inf: the model's output is broken"), "{by_row}");
            }
        },
    );
}

#[test]
fn a_device_that_fails_while_it_chooses_is_given_up_and_nothing_is_committed() {
    let test = "choices::a_device_that_fails_while_it_chooses_is_given_up_and_nothing_is_committed";
    emulated(test).run(|device| {
        let spec = spec();
        let model = MemoryWeights::random(&spec, WeightKind::Bf16, WeightKind::Bf16, 1);
        let small =
            CudaOptions { num_lanes: 2, max_step_tokens: 8, max_logits_rows: 8, ..options(KvKind::Bf16) };
        let mut plan = StepPlan::default();
        plan.push(LaneId(0), &[3], LogitsWanted::Last);
        plan.last_needs(Detail::Chosen(SamplerState::default()));
        let mut backend = open(&spec, &model, &small).unwrap();
        let before = device.report().value("launches");
        backend.run_step(&plan).unwrap();
        // What chooses is the last kernel of a step.
        device.fail_launch(device.report().value("launches") - before);
        assert!(backend.run_step(&plan).unwrap_err().to_string().contains("opened anew"));
        assert_eq!(backend.committed_len(LaneId(0)), 1);
        drop(backend);
        assert!(open(&spec, &model, &small).unwrap().run_step(&plan).is_ok());
    });
}
