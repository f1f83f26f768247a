//! The shipped demo model with its head on the device: speculation changes no answer, and saves the steps it saves on the processor.

use std::path::{Path, PathBuf};

use takt_eagle_spec::tree::TreeShape;
use takt_engine::{
    EngineOptions,
    backend::{
        Backend,
        cpu::{ActivationArithmetic, CpuOptions},
        cuda::CudaOptions,
    },
    dir::EngineDir,
    engine::Engine,
    kv::KvKind,
    quant::WeightKind,
    sequence::SequenceOptions,
    text::Text,
};
use takt_engine_builder::{BuildOptions, build, draft::DraftOptions};
use takt_node::{
    clock::VirtualClock,
    request::{Prompt, Reply},
    worker::{Drafting, WorkerOptions},
};
use takt_tests::{
    backends, heldout,
    speculated::{Method, Speculated, answer},
    worker_bench::{Bench, Demand, finish, virtual_costs},
};

use super::attach;
use crate::models::{self, on_device, options};

/// Every 800th line: 3 of 2,400.
const STRIDE: usize = 800;

fn model() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../models/takt-demo")
}

/// The demo model with its head, in NVFP4.
pub fn build_demo(dir: &Path) {
    let draft = Some(DraftOptions { folder: &model().join("eagle3"), prompts: None, measures: false });
    build(&model(), dir, &BuildOptions { draft, ..BuildOptions::new(WeightKind::Nvfp4) }, &mut |_| {})
        .unwrap();
}

fn answers(backend: &mut dyn Backend, dir: &Path, method: Method) -> Vec<Speculated> {
    let text = Text::open(dir).unwrap().unwrap();
    let eos_token_ids = EngineDir::open(dir).unwrap().manifest().eos_token_ids.clone();
    let options = SequenceOptions { max_tokens: Some(48), eos_token_ids, ..SequenceOptions::default() };
    let lines = heldout::read(&model().join("eval/heldout.jsonl"), STRIDE).unwrap();
    let prompts = lines.iter().map(|line| heldout::prompt(&text, line).unwrap());
    prompts.map(|prompt| answer(backend, &prompt, &options, method).unwrap()).collect()
}

#[test]
fn the_demo_models_head_saves_most_steps_and_changes_no_answer() {
    let test = "draft::speculation::the_demo_models_head_saves_most_steps_and_changes_no_answer";
    on_device(test).run(|_| {
        let scratch = tempfile::tempdir().unwrap();
        let path = scratch.path().join("engine");
        build_demo(&path);
        let dir = EngineDir::open(&path).unwrap();
        let cuda_options = CudaOptions {
            num_lanes: 1,
            lane_capacity: 256,
            max_step_tokens: 64,
            max_logits_rows: 64,
            ..options(KvKind::Bf16)
        };
        let mut on_device = models::open(&dir.manifest().spec, &dir, &cuda_options).unwrap();
        attach(&mut on_device, &dir).unwrap();
        let cpu_options =
            EngineOptions { lane_capacity: Some(256), kv: Some(KvKind::Bf16), ..EngineOptions::default() };
        let mut on_cpu = Engine::open(&path, &cpu_options).unwrap();
        let plain = answers(&mut on_device, &path, Method::Plain);
        let expected = answers(on_cpu.backend.as_mut(), &path, Method::Plain);
        let tokens =
            |answers: &[Speculated]| answers.iter().map(|one| one.tokens.clone()).collect::<Vec<_>>();
        assert_eq!(tokens(&plain), tokens(&expected), "plain, on the processor");
        for shape in [TreeShape::chain(5), TreeShape { top_k: 4, num_levels: 5, num_nodes: 16 }] {
            let found = answers(&mut on_device, &path, Method::Head(shape));
            assert_eq!(tokens(&found), tokens(&plain), "{shape:?}");
            let on_cpu = answers(on_cpu.backend.as_mut(), &path, Method::Head(shape));
            let rounds = |answers: &[Speculated]| answers.iter().map(|one| one.num_rounds).sum::<usize>();
            println!(
                "{shape:?}: {} rounds, {} on the processor, {} plain",
                rounds(&found),
                rounds(&on_cpu),
                rounds(&plain)
            );
            assert!(
                rounds(&found) * 3 < rounds(&plain),
                "{shape:?}: {} of {}",
                rounds(&found),
                rounds(&plain)
            );
            assert!(rounds(&found) <= rounds(&on_cpu) + 3, "{shape:?}: {} on the processor", rounds(&on_cpu));
        }
    });
}

fn demands() -> Vec<Demand> {
    let lines = heldout::read(&model().join("eval/heldout.jsonl"), STRIDE).unwrap();
    let demands = lines.into_iter().map(|line| {
        let system = line.system.map(|text| ("system".to_owned(), text));
        let messages = system.into_iter().chain([("user".to_owned(), line.user)]).collect();
        Demand { prompt: Prompt::Chat(messages), max_tokens: 40, ..Demand::raw("") }
    });
    demands.collect()
}

/// In virtual time, so that what a round is worth does not depend on the machine that emulates.
#[test]
fn a_worker_speculates_in_several_lanes_at_once_and_answers_as_without() {
    let test = "draft::speculation::a_worker_speculates_in_several_lanes_at_once_and_answers_as_without";
    on_device(test).run(|_| {
        let scratch = tempfile::tempdir().unwrap();
        let path = scratch.path().join("engine");
        build_demo(&path);
        let dir = EngineDir::open(&path).unwrap();
        let cuda_options = CudaOptions {
            num_lanes: 2,
            lane_capacity: 192,
            max_step_tokens: 48,
            max_logits_rows: 48,
            ..options(KvKind::Bf16)
        };
        let answers = |drafting: Drafting| -> Vec<Reply> {
            let draft = dir.draft().filter(|_| drafting == Drafting::Head);
            let worker = WorkerOptions { drafting, ..WorkerOptions::default() };
            // Virtual costs are those of any backend of the same sizes: the processor's are known sooner than an emulated device's.
            let cpu_options = CpuOptions {
                num_lanes: 2,
                lane_capacity: 192,
                max_step_tokens: 48,
                max_logits_rows: 48,
                ..backends::options(KvKind::Bf16, ActivationArithmetic::F32)
            };
            let mut on_cpu: Box<dyn Backend> =
                Box::new(backends::open(&dir.manifest().spec, &dir, &cpu_options));
            let mut backend: Box<dyn Backend> =
                Box::new(models::open(&dir.manifest().spec, &dir, &cuda_options).unwrap());
            if draft.is_some() {
                attach(on_cpu.as_mut(), &dir).unwrap();
                attach(backend.as_mut(), &dir).unwrap();
            }
            let clock = VirtualClock::default();
            let (_, table) = virtual_costs(on_cpu, &worker, &clock);
            let text = Text::open(&path).unwrap().unwrap();
            let engine = (draft.map(|draft| draft.manifest().clone()), text);
            let mut bench = Bench::over(backend, engine, &worker, table, clock);
            let asked: Vec<_> = demands().into_iter().map(|demand| bench.ask(demand).1).collect();
            bench.run_until_idle();
            asked.iter().map(|events| finish(events).0).collect()
        };
        let (plain, found) = (answers(Drafting::Off), answers(Drafting::Head));
        let said = |replies: &[Reply]| -> Vec<_> {
            replies.iter().map(|one| (one.status, one.token_ids.clone())).collect()
        };
        assert_eq!(said(&found), said(&plain));
        let rounds: Vec<_> = found.iter().map(|one| one.speculation).collect();
        println!("{rounds:?}");
        let accepted: usize = rounds.iter().flatten().map(|one| one.accepted).sum();
        let num_tokens: usize = plain.iter().map(|one| one.token_ids.len()).sum();
        assert!(accepted * 2 > num_tokens, "{accepted} of {num_tokens} tokens were drafted: {rounds:?}");
    });
}
