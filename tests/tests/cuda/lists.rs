//! The likeliest tokens found on the device: the same answers as by whole rows, and little that travels.

use std::{collections::BTreeMap, ops::ControlFlow, sync::Arc};

use serde_json::json;
use takt_engine::{
    EngineError, Result, TokenId,
    backend::{
        Backend,
        cuda::{CudaBackend, CudaOptions},
    },
    dir::EngineDir,
    generate,
    grammar::{ClosingPolicy, GrammarCompiler, GrammarSpec},
    kv::{KvKind, LaneId},
    quant::WeightKind,
    sampler::{Sampler, SamplingParams},
    sequence::{Sequence, SequenceLimits, SequenceOptions},
    spec::DecoderSpec,
    step::{Detail, LogitsWanted, StepPlan},
    text::{SpecialTokens, Text},
};
use takt_kernels_cu::launch::accept::RESULT_HEADER;
use takt_tests::{
    backends::run_slices,
    memory_weights::{MemoryWeights, uniform},
};

use crate::{
    emulator::driver::{Device, Report},
    models::{emulated, on_device, open, options, spec, tokens},
    shipped::build_demo,
};

pub const GREEDY: SamplingParams =
    SamplingParams { temperature: 0.0, top_k: None, top_p: 1.0, min_p: 0.0, seed: 0 };

pub fn hot(top_k: Option<usize>, seed: u64) -> SamplingParams {
    SamplingParams { temperature: 0.8, top_k, top_p: 0.95, min_p: 0.01, seed }
}

/// A tree of `num_nodes` with branches, and the tokens of its nodes.
pub fn tree(vocab_size: usize, num_nodes: usize) -> (Vec<TokenId>, Vec<usize>) {
    let tokens = (0..num_nodes).map(|node| (7 * node % vocab_size) as TokenId).collect();
    (tokens, (0..num_nodes).map(|node| node.saturating_sub(1) / 3).collect())
}

fn needs(plan: &mut StepPlan, detail: Option<Detail>) {
    if let Some(detail) = detail {
        plan.segments.iter_mut().for_each(|segment| segment.detail = detail);
    }
}

/// Chooses at every node of a tree, and after it in two lanes beside it.
fn choices(
    backend: &mut dyn Backend,
    samplers: &mut [Sampler; 3],
    detail: Option<Detail>,
) -> Result<Vec<TokenId>> {
    let vocab_size = backend.spec().vocab_size;
    let (nodes, parents) = tree(vocab_size, 20);
    let mut plan = StepPlan::default();
    plan.push(LaneId(1), &[3], LogitsWanted::Last);
    plan.last_needs(samplers[0].detail(vocab_size));
    plan.push_tree(LaneId(0), &nodes, &parents);
    plan.last_needs(samplers[1].detail(vocab_size));
    plan.push(LaneId(2), &[9, 4], LogitsWanted::Last);
    plan.last_needs(samplers[2].detail(vocab_size));
    needs(&mut plan, detail);
    let mut output = backend.run_step(&plan)?;
    let mut chosen = Vec::new();
    for node in 0..nodes.len() {
        chosen.push(samplers[1].sample_row(&mut output.row(1, node)?)?);
    }
    for (segment, sampler) in [(0, 0), (2, 2)] {
        chosen.push(samplers[sampler].sample_row(&mut output.last_row(segment)?)?);
    }
    for lane in 0..3 {
        backend.truncate(LaneId(lane), 10)?;
    }
    Ok(chosen)
}

#[test]
fn samplers_of_every_kind_in_one_step_choose_as_by_whole_rows() {
    on_device("lists::samplers_of_every_kind_in_one_step_choose_as_by_whole_rows").run(|_| {
        let spec = spec();
        let model = MemoryWeights::random(&spec, WeightKind::Nvfp4, WeightKind::Bf16, 3);
        let mut backend = open(&spec, &model, &options(KvKind::Bf16)).unwrap();
        for lane in 0..3 {
            run_slices(&mut backend, LaneId(lane), &tokens(&spec, 10 + lane)[lane..], 10);
        }
        let kinds =
            [GREEDY, hot(Some(5), 1), hot(None, 2), hot(Some(40), 3), hot(Some(1), 4), hot(Some(70), 5)];
        for first in 0..kinds.len() {
            let samplers: [Sampler; 3] =
                [0, 1, 2].map(|at| Sampler::new(&kinds[(first + at) % kinds.len()]).unwrap());
            let by_lists = choices(&mut backend, &mut samplers.clone(), None).unwrap();
            let by_rows = choices(&mut backend, &mut samplers.clone(), Some(Detail::Whole)).unwrap();
            let fetched = choices(&mut backend, &mut samplers.clone(), Some(Detail::OnDemand)).unwrap();
            assert_eq!(by_lists, by_rows, "{first}");
            assert_eq!(fetched, by_rows, "{first}, fetched row by row");
        }
    });
}

/// What is captured when a step needs a list of a row in one lane, or of one in each of three.
fn captured_by(backend: &mut CudaBackend, device: &Device, detail: Detail) -> u64 {
    let before = device.report().calls("cuGraphInstantiateWithFlags");
    for lanes in [&[0][..], &[0, 1, 2]] {
        let mut plan = StepPlan::default();
        for &lane in lanes {
            plan.push(LaneId(lane), &[3], LogitsWanted::Last);
            plan.last_needs(detail);
        }
        let mut output = backend.run_step(&plan).unwrap();
        assert!(output.last_row(0).unwrap().list().is_some(), "{detail:?}");
    }
    device.report().calls("cuGraphInstantiateWithFlags") - before
}

#[test]
fn forms_capture_nothing_and_other_lists_once_for_their_length() {
    emulated("lists::forms_capture_nothing_and_other_lists_once_for_their_length").run(|device| {
        let spec = spec();
        let model = MemoryWeights::random(&spec, WeightKind::Nvfp4, WeightKind::Bf16, 3);
        let mut backend = open(&spec, &model, &options(KvKind::Bf16)).unwrap();
        let bound = Sampler::new(&hot(Some(64), 1)).unwrap().detail(spec.vocab_size);
        let mut captured = |detail| captured_by(&mut backend, device, detail);
        assert_eq!(captured(bound), 0);
        assert_eq!((captured(Detail::Likeliest(20)), captured(Detail::Likeliest(30))), (2, 0), "both of 32");
    });
}

/// The answers of three lanes that advance together: one bound to a form, one with a top-k, one without.
fn answers(
    backend: &mut CudaBackend,
    text: &Arc<Text>,
    detail: Option<Detail>,
) -> Vec<(String, Vec<TokenId>)> {
    let schema = json!({
        "type": "object",
        "properties": {"skill": {"enum": ["stop", "goto", "pick", "bring"], "x-takt-safe": true},
                       "object": {"type": "string", "maxLength": 12, "default": ""}},
        "required": ["skill", "object"], "additionalProperties": false
    });
    let limits = SequenceLimits::of(backend);
    let eos = [2];
    let compiler = GrammarCompiler::new(text, limits.vocab_size, &eos).unwrap();
    let grammar = compiler.compile(&GrammarSpec::JsonSchema(schema), ClosingPolicy::Declared).unwrap();
    let prompt = text.encode("bring the red wrench", SpecialTokens::Add).unwrap();
    let mut sequences: Vec<Sequence> = [GREEDY, hot(Some(20), 7), hot(None, 8)]
        .into_iter()
        .map(|sampling| {
            let options = SequenceOptions {
                sampling,
                max_tokens: Some(14),
                eos_token_ids: eos.to_vec(),
                ..SequenceOptions::default()
            };
            Sequence::new(&prompt, &options, limits, Some(text.stream_decoder())).unwrap()
        })
        .collect();
    let bound = sequences.remove(0).bound_to(&grammar).unwrap();
    sequences.insert(0, bound);
    for lane in 0..3 {
        backend.truncate(LaneId(lane), 0).unwrap();
    }
    let mut plan = StepPlan::default();
    while sequences.iter().any(|sequence| !sequence.pending().is_empty()) {
        plan.clear();
        let (mut lanes, mut lens) = (Vec::new(), Vec::new());
        for (lane, sequence) in sequences.iter().enumerate().filter(|(_, one)| !one.pending().is_empty()) {
            lens.push(sequence.push_to(&mut plan, LaneId(lane), 8));
            lanes.push(lane);
        }
        needs(&mut plan, detail);
        let mut output = backend.run_step(&plan).unwrap();
        for (segment, (lane, len)) in lanes.into_iter().zip(lens).enumerate() {
            sequences[lane].commit(len).unwrap();
            if sequences[lane].awaits_logits() {
                sequences[lane].advance_by(output.last_row(segment).unwrap()).unwrap();
            }
        }
    }
    sequences.iter().map(|one| (one.text().to_owned(), one.token_ids().to_vec())).collect()
}

#[test]
fn a_form_a_top_k_and_neither_beside_each_other_answer_as_by_whole_rows() {
    emulated("lists::a_form_a_top_k_and_neither_beside_each_other_answer_as_by_whole_rows").run(|device| {
        let scratch = tempfile::tempdir().unwrap();
        let dir = scratch.path().join("engine");
        build_demo(&dir);
        let engine = EngineDir::open(&dir).unwrap();
        let text = Arc::new(Text::open(&dir).unwrap().unwrap());
        let spec = &engine.manifest().spec;
        let options = CudaOptions {
            lane_capacity: 64,
            max_step_tokens: 24,
            max_logits_rows: 24,
            ..options(KvKind::Bf16)
        };
        let mut backend = open(spec, &engine, &options).unwrap();
        let before = device.report().value("bytes_to_host");
        let by_lists = answers(&mut backend, &text, None);
        let with_lists = device.report().value("bytes_to_host") - before;
        let by_rows = answers(&mut backend, &text, Some(Detail::Whole));
        let with_rows = device.report().value("bytes_to_host") - before - with_lists;
        assert_eq!(by_lists, by_rows);
        assert!(by_lists[0].0.starts_with('{') && by_lists.iter().all(|(_, tokens)| tokens.len() > 2));
        println!("{with_lists} bytes by lists, {with_rows} by rows");
        // A form's lists, and rows where it is steered; of the others what was chosen.
        assert!(with_lists < with_rows * 2 / 3, "{with_lists} of {with_rows}");
        assert_eq!(answers(&mut backend, &text, Some(Detail::OnDemand)), by_rows);
    });
}

/// What a step fetched, and what it called.
pub fn cost(device: &Device, work: impl FnOnce()) -> (u64, BTreeMap<String, u64>) {
    let before: Report = device.report();
    work();
    let after = device.report();
    (after.value("bytes_to_host") - before.value("bytes_to_host"), after.calls_since(&before))
}

#[test]
fn a_round_waits_once_and_brings_back_the_lists_alone() {
    emulated("lists::a_round_waits_once_and_brings_back_the_lists_alone").run(|device| {
        let spec = spec();
        let model = MemoryWeights::random(&spec, WeightKind::Nvfp4, WeightKind::Nvfp4, 1);
        let mut backend = open(&spec, &model, &options(KvKind::Fp8)).unwrap();
        run_slices(&mut backend, LaneId(0), &tokens(&spec, 20), 20);
        let (nodes, parents) = tree(spec.vocab_size, 60);
        // Per row a status, a token and a logit each; 60 nodes are 64 rows.
        for (detail, bytes) in [
            (Detail::Likeliest(1), 64 * (4 + 8)),
            (Detail::Likeliest(20), 64 * (4 + 32 * 8)),
            (Detail::Likeliest(64), 64 * (4 + 64 * 8)),
            (Detail::OnDemand, 0),
            (Detail::Whole, 60 * 4 * spec.vocab_size as u64),
        ] {
            let mut plan = StepPlan::default();
            plan.push_tree(LaneId(0), &nodes, &parents);
            plan.last_needs(detail);
            // The first time, graphs are captured.
            backend.run_step(&plan).unwrap();
            let (fetched, calls) = cost(device, || {
                backend.run_step(&plan).unwrap();
                backend.keep(LaneId(0), &[0, 2, 7]).unwrap();
            });
            assert_eq!(fetched, bytes, "{detail:?}");
            let count = |name: &str| calls.get(name).copied().unwrap_or(0);
            let num_graphs = if matches!(detail, Detail::Likeliest(_)) { 2 } else { 1 };
            assert_eq!(count("cuGraphLaunch"), num_graphs, "{detail:?}: {calls:?}");
            assert_eq!((count("cuEventRecord"), count("cuLaunchKernel")), (1, 1), "{detail:?}: {calls:?}");
            backend.truncate(LaneId(0), 20).unwrap();
        }
        // A decode step brings three words; the first time it is captured.
        let mut plan = StepPlan::default();
        plan.push(LaneId(0), &[5], LogitsWanted::Last);
        plan.last_needs(Detail::Likeliest(1));
        backend.run_step(&plan).unwrap();
        let (fetched, calls) = cost(device, || {
            backend.run_step(&plan).unwrap();
        });
        assert_eq!(fetched, 12);
        let known = ["cuGraphLaunch", "cuEventRecord", "cuEventQuery", "cuCtxSetCurrent"];
        assert!(calls.keys().all(|name| known.contains(&name.as_str())), "{calls:?}");
        // A row that is fetched after all is one copy and one wait more.
        let mut output = backend.run_step(&plan).unwrap();
        assert_eq!(output.last_logits(0), None, "nobody asked for it");
        let mut row = output.last_row(0).unwrap();
        let (fetched, calls) = cost(device, || assert_eq!(row.whole().unwrap().len(), spec.vocab_size));
        assert_eq!(fetched, 4 * spec.vocab_size as u64);
        assert_eq!(calls.get("cuEventRecord"), Some(&1), "{calls:?}");
        assert!(output.row(0, 1).is_err() && output.row(1, 0).is_err());
    });
}

#[test]
fn a_row_that_is_broken_says_so_in_the_words_of_a_whole_row() {
    on_device("lists::a_row_that_is_broken_says_so_in_the_words_of_a_whole_row").run(|_| {
        let spec = spec();
        let model = overflowing(&spec);
        let mut backend = open(&spec, &model, &options(KvKind::Bf16)).unwrap();
        for sampling in [GREEDY, hot(Some(5), 1)] {
            let failing = |backend: &mut dyn Backend, detail: Option<Detail>| {
                backend.truncate(LaneId(0), 0).unwrap();
                let mut sampler = Sampler::new(&sampling).unwrap();
                let mut plan = StepPlan::default();
                plan.push(LaneId(0), &[1, 2, 3], LogitsWanted::Last);
                plan.last_needs(detail.unwrap_or_else(|| sampler.detail(96)));
                let mut output = backend.run_step(&plan).unwrap();
                sampler.sample_row(&mut output.last_row(0).unwrap()).unwrap_err().to_string()
            };
            let by_list = failing(&mut backend, None);
            assert_eq!(by_list, failing(&mut backend, Some(Detail::Whole)));
            let expected = ["the logit of token 17 is inf", "the logit of token 18 is inf"];
            assert!(expected.iter().any(|text| by_list.contains(text)), "{by_list}");
        }
    });
}

/// Weights of a model whose logits of tokens 17 and 18 are beyond F32: one +∞, the other −∞.
pub fn overflowing(spec: &DecoderSpec) -> MemoryWeights {
    let mut state = 5;
    MemoryWeights::new(spec, WeightKind::Bf16, WeightKind::Bf16, |name, len| {
        let mut values: Vec<f32> = (0..len).map(|_| 0.2 * uniform(&mut state)).collect();
        match name {
            "model.norm.weight" => values[0] = 1000.0,
            "lm_head.weight" => {
                values[17 * spec.hidden_size] = 3e38;
                values[18 * spec.hidden_size] = -3e38;
            }
            _ => {}
        }
        values
    })
}

#[test]
fn a_device_that_fails_among_the_lists_or_at_a_fetch_is_told_and_given_up() {
    emulated("lists::a_device_that_fails_among_the_lists_or_at_a_fetch_is_told_and_given_up").run(|device| {
        let spec = spec();
        let model = MemoryWeights::random(&spec, WeightKind::Bf16, WeightKind::Bf16, 1);
        let small =
            || CudaOptions { num_lanes: 2, max_step_tokens: 8, max_logits_rows: 8, ..options(KvKind::Bf16) };
        let mut plan = StepPlan::default();
        plan.push(LaneId(0), &[3], LogitsWanted::Last);
        plan.last_needs(Detail::Likeliest(1));

        let mut backend = open(&spec, &model, &small()).unwrap();
        let before = device.report().value("launches");
        backend.run_step(&plan).unwrap();
        let num_launches = device.report().value("launches") - before;
        // The last two kernels of a step are the lists'.
        device.fail_launch(num_launches - 1);
        assert!(backend.run_step(&plan).unwrap_err().to_string().contains("opened anew"));
        assert_eq!(backend.committed_len(LaneId(0)), 1);
        assert!(backend.run_step(&plan).is_err(), "a lost context does not come back");
        drop(backend);

        let mut backend = open(&spec, &model, &small()).unwrap();
        plan.last_needs(Detail::OnDemand);
        let mut output = backend.run_step(&plan).unwrap();
        let mut row = output.last_row(0).unwrap();
        const ILLEGAL_ADDRESS: i32 = 700;
        device.fail_call("cuMemcpyDtoHAsync_v2", 1, ILLEGAL_ADDRESS);
        let error: EngineError = row.whole().unwrap_err();
        assert!(error.to_string().contains("opened anew"), "{error}");
        assert!(row.whole().is_err(), "and stays so");
        drop(backend);
        assert!(open(&spec, &model, &small()).unwrap().run_step(&plan).is_ok());
    });
}

/// A plain way to an answer goes by choices as well: each a status, a node's number and count, and a token.
#[test]
fn generate_fetches_no_row_for_a_greedy_answer() {
    emulated("lists::generate_fetches_no_row_for_a_greedy_answer").run(|device| {
        let spec = spec();
        let model = MemoryWeights::random(&spec, WeightKind::Bf16, WeightKind::Bf16, 1);
        let mut backend = open(&spec, &model, &options(KvKind::Bf16)).unwrap();
        let options = SequenceOptions { max_tokens: Some(20), ..SequenceOptions::default() };
        let mut sequence = Sequence::new(&[1, 2, 3], &options, SequenceLimits::of(&backend), None).unwrap();
        let (fetched, _) = cost(device, || {
            generate(&mut backend, LaneId(0), &mut sequence, &mut |_| ControlFlow::Continue(())).unwrap();
        });
        assert_eq!((sequence.token_ids().len(), fetched), (20, 20 * (RESULT_HEADER as u64 + 1) * 4));
    });
}
