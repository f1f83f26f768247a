//! `takt bench --speculation` on a fixture with a fixture's head, and on random weights: what it says, never how fast it was.

use takt_engine::{
    backend::{Backend, cpu::CpuBackend},
    draft::RandomHead,
    engine::{Engine, EngineOptions, MAX_TREE_NODES},
    kv::KvKind,
    quant::WeightKind,
    shapes::{RandomWeights, decoder_spec},
    spec::DecoderSpec,
};
use takt_engine_builder::{BuildOptions, build, draft::DraftOptions};
use takt_node::bench::speculation::{
    SpeculationError,
    measured::{self, Course},
    plot,
    prompts::{PromptText, built_in, encode},
    report::Report,
    simulated::{self, ShapeCourse},
};
use takt_tests::checkpoint::fixtures;

/// Fixture prompts of two tasks, answered by an engine with or without its head.
fn measure(has_head: bool) -> Report {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("engine");
    let head = fixtures().join("eagle3/tiny-qwen3-layers");
    let draft = has_head.then_some(DraftOptions { folder: &head, prompts: None, measures: false });
    let options = BuildOptions { draft, ..BuildOptions::new(WeightKind::Nvfp4) };
    build(&fixtures().join("hf/tiny-qwen3"), &path, &options, &mut |_| {}).unwrap();
    let options = EngineOptions { lane_capacity: Some(256), ..EngineOptions::default() };
    let mut engine = Engine::open(&path, &options).unwrap();
    let text = engine.text.as_ref().expect("the fixture has a tokenizer");
    let prompt = |task: &str, user: &str| PromptText { task: task.into(), system: None, user: user.into() };
    let prompts =
        [prompt("greet", "Hello"), prompt("ask", "Where are you?"), prompt("greet", "Good morning")];
    let course = Course {
        prompts: encode(&prompts, text).unwrap(),
        eos: text.defaults().eos_token_ids.clone(),
        max_tokens: 24,
        num_passes: 2,
    };
    let mut last = 0.0;
    let progress = |share: f64| {
        assert!((last..=1.0).contains(&share));
        last = share;
        true
    };
    measured::run(engine.backend.as_mut(), engine.draft.as_ref(), &course, "fixture".into(), progress)
        .unwrap()
}

#[test]
fn every_method_gives_plain_answers_and_the_report_says_what_it_took() {
    let report = measure(true);
    assert_eq!(
        (report.identical, report.has_head, report.num_prompts, report.num_passes),
        (Some(true), true, 3, 2)
    );
    assert_eq!(report.methods.len(), 18);
    let plain = &report.methods[0];
    assert_eq!((plain.kind, plain.speedup, plain.accept_len), ("plain", 1.0, None));
    for row in &report.methods {
        assert!(row.tok_s > 0.0 && row.speedup > 0.0 && row.speedup_with_prompt.unwrap() > 0.0, "{row:?}");
        let Some(accept_len) = row.accept_len else { continue };
        let mean: f64 = (1..).zip(&row.accept_len_shares).map(|(len, share)| f64::from(len) * share).sum();
        assert!((accept_len - mean).abs() < 1e-9 && accept_len >= 1.0, "{row:?}");
        assert!(row.round_cost.unwrap() > 0.0 && row.nodes_per_round.unwrap() > 1.0, "{row:?}");
        let deepest = row.levels.unwrap_or(8) + 1;
        assert!(row.accept_len_shares.len() <= deepest, "{row:?}");
    }
    let fixed = report.methods.iter().filter(|row| row.drafter == Some("eagle3") && row.nodes.is_some());
    assert!(fixed.clone().count() == 12 && fixed.clone().all(|row| row.draft_us.unwrap() > 0.0));
    let tasks: Vec<(&str, usize, &str)> =
        report.tasks.iter().map(|row| (row.task.as_str(), row.num_prompts, row.drafter)).collect();
    assert_eq!(
        tasks,
        [("greet", 2, "eagle3"), ("ask", 1, "eagle3"), ("greet", 2, "lookup"), ("ask", 1, "lookup")]
    );
    let json = serde_json::to_value(&report).unwrap();
    for field in [
        "model",
        "acceptance",
        "device",
        "identical",
        "methods",
        "tasks",
        "adaptive_vs_plain",
        "costs",
        "notes",
    ] {
        assert!(!json[field].is_null(), "{field}");
    }
    assert_eq!((&json["acceptance"], &json["profile"]), (&"measured".into(), &serde_json::Value::Null));
    assert!(json["adaptive_vs_plain"]["ratio"].as_f64().unwrap() > 0.0);
    assert_eq!(json["adaptive_vs_plain"]["drafter"], "eagle3");
    assert!(plot::svg(&report).contains("EAGLE-3 trees, 4 wide"));
    // A level of the head that costs nothing was not measured, for a head cannot draft at the end of its lane.
    assert!(report.costs.iter().any(|row| row.kind == "draft"));
    assert!(report.costs.iter().all(|row| row.calibrated_us > 0.01), "{:?}", report.costs);
}

#[test]
fn without_a_head_only_lookup_is_measured_and_it_says_so() {
    let report = measure(false);
    assert!(!report.has_head && report.methods.iter().all(|row| row.drafter != Some("eagle3")));
    assert_eq!(report.methods.len(), 5);
    assert!(report.notes.iter().any(|note| note.contains("no draft head") && note.contains("--draft")));
    assert_eq!(report.adaptive_vs_plain.unwrap().drafter, "lookup");
}

#[test]
fn the_built_in_prompts_are_of_several_kinds_and_no_two_alike() {
    let mut prompts = built_in();
    assert_eq!(prompts.len(), 12);
    prompts.sort_by(|a, b| a.user.cmp(&b.user));
    assert!(prompts.windows(2).all(|pair| pair[0].user != pair[1].user));
}

fn random_backend() -> impl Backend {
    let spec = DecoderSpec {
        num_layers: 4,
        hidden_size: 64,
        intermediate_size: 160,
        vocab_size: 200,
        ..decoder_spec("qwen3-0.6b").unwrap()
    };
    let source = RandomWeights::new(&spec, WeightKind::Nvfp4, WeightKind::Fp8, 1).unwrap();
    let options =
        EngineOptions { lane_capacity: Some(simulated::lane_capacity(20)), ..EngineOptions::default() };
    let mut options = options.cpu_options(&spec, KvKind::Bf16);
    options.max_logits_rows = MAX_TREE_NODES + 1;
    let mut backend = CpuBackend::new(&spec, &source, &options).unwrap();
    let head = RandomHead::new(&spec, WeightKind::Nvfp4, WeightKind::Fp8, 2).unwrap();
    backend.attach_draft(head.spec(), &head).unwrap();
    backend
}

#[test]
fn on_random_weights_costs_are_measured_and_acceptance_is_the_profiles() {
    let mut backend = random_backend();
    let course = ShapeCourse { profile: "0.8,0.5".parse().unwrap(), context_len: 20, num_passes: 2 };
    let report = simulated::run(&mut backend, &course, "shape".into(), |_| true).unwrap();
    assert_eq!((report.acceptance, report.identical), ("simulated", None));
    assert!(report.notes.iter().any(|note| note.starts_with("simulated acceptance")));
    let json = serde_json::to_value(&report).unwrap();
    assert_eq!(
        (&json["acceptance"], &json["profile"]["first"]),
        (&"simulated".into(), &serde_json::json!([0.8, 0.5]))
    );
    assert_eq!(json["profile"]["further_share"], 0.35);
    let row = |name: &str| report.methods.iter().find(|row| row.name == name).unwrap();
    // 1 + 0.8 + 0.8 · 0.5 + …
    for (name, expected) in
        [("EAGLE-3 chain of 1", 1.8), ("EAGLE-3 chain of 2", 2.2), ("EAGLE-3 chain of 3", 2.4)]
    {
        assert!((row(name).accept_len.unwrap() - expected).abs() < 1e-5, "{name}");
    }
    let wide = row("EAGLE-3 tree, 4 wide, 32 nodes");
    assert!(wide.accept_len.unwrap() > row("EAGLE-3 chain of 5").accept_len.unwrap());
    for row in report.methods.iter().filter(|row| row.nodes.is_some()) {
        let (len, cost) = (row.accept_len.unwrap(), row.round_cost.unwrap());
        assert!((row.speedup - len / cost).abs() < 1e-9, "{row:?}");
        assert!((row.accept_len_shares.iter().sum::<f64>() - 1.0).abs() < 1e-5, "{row:?}");
    }
    assert_eq!(report.methods.last().unwrap().kind, "adaptive");
    assert!(plot::svg(&report).contains("simulated acceptance, profile 0.8,0.5"));
}

#[test]
fn a_run_that_is_to_end_ends() {
    let mut backend = random_backend();
    let course = ShapeCourse { profile: "fair".parse().unwrap(), context_len: 20, num_passes: 1 };
    let error = simulated::run(&mut backend, &course, "shape".into(), |_| false).unwrap_err();
    assert!(matches!(error, SpeculationError::Interrupted));
}
