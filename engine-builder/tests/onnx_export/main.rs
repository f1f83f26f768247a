//! Exported models against the CPU backend: computed by onnx's reference evaluator and by onnxruntime, layer by layer, over an explicit cache.
#![expect(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "helpers of tests fail by panicking"
)]

mod case;
mod python;
mod structure;

use std::{collections::BTreeMap, path::Path};

use safetensors::{Dtype, SafeTensors, serialize_to_file, tensor::TensorView};
use takt_engine::{
    dir::Quantization,
    kv::KvKind,
    quant::WeightKind,
    shapes::{RandomWeights, decoder_spec},
};
use takt_engine_builder::{
    BuildOptions,
    draft::DraftOptions,
    export::{Activations, Compute, ExportOptions, Form, KvType, Source, Variant, export, export_source},
};

use case::{Head, engine, fixtures, scratch};
use serde_json::{Value, json};

/// Of 32-bit arithmetic, and of a cache in 16 bits with a scale on the CPU's side.
const EXACT: f64 = 1e-3;
/// Of products and a cache in 16-bit floats.
const HALF: f64 = 1e-2;
/// Of those in brain floats.
const BRAIN: f64 = 8e-2;

/// Of a cache in E4M3, random models: nothing evens out what each value is rounded by.
const RANDOM_E4M3: f64 = 0.3;
/// Of a cache in E4M3, a trained model.
const TRAINED_E4M3: f64 = 0.1;

/// What an export is and must come to.
struct Case<'a> {
    source: &'a str,
    build: BuildOptions<'a>,
    export: ExportOptions<'a>,
    bound: f64,
    /// Changes `engine.json` after the build: descriptions that no fixture has.
    alter: fn(&mut Value),
}

impl<'a> Case<'a> {
    fn new(source: &'a str, kind: WeightKind, form: Form) -> Self {
        let export = ExportOptions {
            target: "onnx".parse().unwrap(),
            form: Some(form),
            compute: Compute::F32,
            max_context: Some(64),
            hidden_states: true,
            ..ExportOptions::default()
        };
        Self { source, build: BuildOptions::new(kind), export, bound: EXACT, alter: |_| {} }
    }

    /// Runs it in both; onnxruntime has neither 4-bit floats nor products of brain floats, and says so.
    fn check_as_known(&self) {
        let known = self.build.weights != WeightKind::Nvfp4 && self.export.compute != Compute::Bf16;
        let held = self.check(&BOTH);
        assert!(held.get("reference").is_none_or(|held| *held), "{held:?}");
        assert!(held.get("onnxruntime").is_none_or(|held| *held == known), "{held:?}");
    }

    /// Runs it in `runtimes`; every quantity must be within the bound in each that has the operators.
    fn check(&self, runtimes: &[&str]) -> BTreeMap<String, bool> {
        let Some(python) = python::python() else { return BTreeMap::new() };
        let folder = scratch();
        let engine = engine(folder.path(), &fixtures().join(self.source), &self.build);
        let manifest = engine.join("engine.json");
        let mut described: Value = serde_json::from_slice(&std::fs::read(&manifest).unwrap()).unwrap();
        (self.alter)(&mut described);
        std::fs::write(&manifest, described.to_string()).unwrap();
        let (out, case_folder) = (folder.path().join("export"), folder.path().join("case"));
        export(&engine, &out, &self.export, &mut |_| {}).unwrap();
        std::fs::create_dir(&case_folder).unwrap();
        let trees = self.export.variant == Some(Variant::Eagle3) || self.build.draft.is_some();
        case::write(&case_folder, &engine, trees, &self.head());
        runtimes
            .iter()
            .map(|runtime| ((*runtime).to_owned(), self.compare(python, &out, &case_folder, runtime)))
            .collect()
    }

    fn head(&self) -> Head {
        let golden = self.build.draft.map(|draft| draft.folder.join("golden.json"));
        match golden {
            None => Head::None,
            Some(path) if path.exists() => Head::Golden(path),
            Some(_) => Head::Cpu,
        }
    }

    fn compare(&self, python: &Path, out: &Path, case: &Path, runtime: &str) -> bool {
        let found = python::check(python, out, case, runtime);
        let found = found.as_object().unwrap();
        if let Some(why) = found.get("unsupported") {
            println!("{} in {runtime}: unsupported: {why}", self.source);
            return false;
        }
        assert!(found.contains_key("logits") && found.contains_key("hidden_states.0"), "{found:?}");
        assert_eq!(found.contains_key("draft_logits"), self.build.draft.is_some(), "{found:?}");
        for (what, error) in found {
            let error = error.as_f64().unwrap();
            println!("{} {} in {runtime}: {what} off by {error:.1e}", self.source, self.build.weights);
            assert!(
                error <= self.bound,
                "{} in {runtime}: {what} off by {error:e}, at most {}",
                self.source,
                self.bound
            );
        }
        true
    }
}

const BOTH: [&str; 2] = ["reference", "onnxruntime"];
const FORMS: [Form; 2] = [Form::Operators, Form::Primitives];

fn all_hold(held: &BTreeMap<String, bool>) {
    assert!(held.values().all(|held| *held), "{held:?}");
}

#[test]
fn every_family_is_computed_as_the_cpu_does() {
    for source in [
        "hf/tiny-llama",
        "hf/tiny-qwen2",
        "hf/tiny-qwen3",
        "families/llama-biases",
        "families/llama-linear",
        "families/llama-yarn",
        "families/llama2",
        "families/llama3-tied",
        "families/mistral-wide-heads",
        "families/mistral-window",
        "families/qwen2-window",
        "families/qwen3-tied",
        "families/qwen3-yarn",
    ] {
        for form in FORMS {
            Case::new(source, WeightKind::Bf16, form).check_as_known();
        }
    }
}

#[test]
fn every_format_of_weights_is_computed_as_the_cpu_does() {
    for kind in [WeightKind::Fp8, WeightKind::Int4, WeightKind::Nvfp4] {
        for form in FORMS {
            for head in [WeightKind::Fp8, kind] {
                let mut case = Case::new("hf/tiny-qwen3", kind, form);
                case.build.lm_head = Some(head);
                case.check_as_known();
            }
        }
    }
}

#[test]
fn products_in_16_bits_stay_near() {
    for (compute, bound) in [(Compute::F16, HALF), (Compute::Bf16, BRAIN)] {
        for kind in [WeightKind::Bf16, WeightKind::Int4, WeightKind::Nvfp4] {
            for form in FORMS {
                let mut case = Case::new("hf/tiny-llama", kind, form);
                (case.export.compute, case.bound) = (compute, bound);
                case.check_as_known();
            }
        }
    }
}

#[test]
fn quantized_activations_stay_near() {
    // E4M3 rounds by up to 1/16 of each value, E2M1 by up to 1/4 and more near zero; random weights do not even that out.
    for (source, kind, bound) in [
        ("hf/tiny-qwen2", WeightKind::Fp8, 0.3),
        ("hf/tiny-qwen2", WeightKind::Nvfp4, 0.8),
        ("../../models/takt-demo", WeightKind::Fp8, 0.15),
        ("../../models/takt-demo", WeightKind::Nvfp4, 0.4),
    ] {
        for form in FORMS {
            let mut case = Case::new(source, kind, form);
            case.export.target = "tensorrt-10.16".parse().unwrap();
            (case.export.activations, case.bound) = (Activations::Quantized, bound);
            // The other quantizes with an operator of TensorRT's.
            let runtimes = if kind == WeightKind::Fp8 { &BOTH[..] } else { &BOTH[..1] };
            all_hold(&case.check(runtimes));
        }
    }
}

/// Keys and values rounded by up to 1/16 of themselves, where the CPU's are not: with norms of heads, biases, a factor of the rotation, windows, trees and
/// a draft head, whose own cache stays plain. That none of them saturates is checked as well.
#[test]
fn a_cache_of_8_bits_stays_near() {
    for (source, bound) in [
        ("hf/tiny-llama", RANDOM_E4M3),
        ("hf/tiny-qwen2", RANDOM_E4M3),
        ("hf/tiny-qwen3", RANDOM_E4M3),
        ("families/llama-biases", RANDOM_E4M3),
        ("families/qwen3-yarn", RANDOM_E4M3),
        ("../../models/takt-demo", TRAINED_E4M3),
    ] {
        let mut case = Case::new(source, WeightKind::Bf16, Form::Primitives);
        (case.export.kv, case.bound) = (Some(KvType::Fp8), bound);
        all_hold(&case.check(&BOTH));
    }
    let mut windows = Case::new("families/mistral-window", WeightKind::Fp8, Form::Primitives);
    (windows.export.kv, windows.export.variant) = (Some(KvType::Fp8), Some(Variant::Eagle3));
    windows.bound = RANDOM_E4M3;
    all_hold(&windows.check(&BOTH));
    for compute in [Compute::F16, Compute::Bf16] {
        let mut case = Case::new("hf/tiny-llama", WeightKind::Bf16, Form::Primitives);
        (case.export.compute, case.export.kv, case.bound) = (compute, Some(KvType::Fp8), RANDOM_E4M3);
        case.check_as_known();
    }
    // Beside quantized activations, whose rounding makes values larger than their bound says.
    for (kind, bound, runtimes) in [(WeightKind::Fp8, 0.2, &BOTH[..]), (WeightKind::Nvfp4, 0.4, &BOTH[..1])] {
        let mut case = Case::new("../../models/takt-demo", kind, Form::Primitives);
        case.export.target = "tensorrt-10.13".parse().unwrap();
        (case.export.activations, case.export.kv) = (Activations::Quantized, Some(KvType::Fp8));
        case.bound = bound;
        all_hold(&case.check(runtimes));
    }
    let demo = Path::new(env!("CARGO_MANIFEST_DIR")).join("../models/takt-demo");
    let head = demo.join("eagle3");
    let mut drafting = Case::new("../../models/takt-demo", WeightKind::Int4, Form::Primitives);
    drafting.build.draft = Some(DraftOptions { folder: &head, prompts: None, measures: false });
    (drafting.export.kv, drafting.bound) = (Some(KvType::Fp8), TRAINED_E4M3);
    all_hold(&drafting.check(&BOTH));
}

/// Code by code: each key and value is rounded to the nearest number, and to 448 beyond it.
#[test]
fn a_cache_of_8_bits_holds_the_nearest_codes_and_saturates() {
    let Some(python) = python::python() else { return };
    for source in ["hf/tiny-qwen2", "hf/tiny-qwen3"] {
        let folder = scratch();
        let engine = engine(folder.path(), &fixtures().join(source), &BuildOptions::new(WeightKind::Bf16));
        let written = |name: &str, kv| {
            let out = folder.path().join(name);
            let options = ExportOptions {
                kv: Some(kv),
                ..Case::new(source, WeightKind::Bf16, Form::Primitives).export
            };
            export(&engine, &out, &options, &mut |_| {}).unwrap();
            out
        };
        python::check(python, &written("fp8", KvType::Fp8), &written("plain", KvType::Plain), "codes");
    }
}

#[test]
fn trees_and_draft_heads_are_computed_as_published() {
    for (head, source) in [("tiny-llama-midlayer", "hf/tiny-llama"), ("tiny-qwen3-layers", "hf/tiny-qwen3")] {
        let folder = fixtures().join("eagle3").join(head);
        for form in FORMS {
            let mut case = Case::new(source, WeightKind::Bf16, form);
            case.build.draft = Some(DraftOptions { folder: &folder, prompts: None, measures: false });
            case.export.target = "tensorrt-11.4".parse().unwrap();
            all_hold(&case.check(&BOTH));
        }
    }
}

#[test]
fn trees_are_verified_under_attention_windows() {
    for form in FORMS {
        let mut case = Case::new("families/mistral-window", WeightKind::Bf16, form);
        case.export.variant = Some(Variant::Eagle3);
        all_hold(&case.check(&BOTH));
    }
}

/// The shipped model with its head, as it is built and exported by default but for the type of products.
#[test]
fn the_demo_model_is_computed_as_the_cpu_does() {
    let demo = Path::new(env!("CARGO_MANIFEST_DIR")).join("../models/takt-demo");
    let head = demo.join("eagle3");
    for (kind, target, runtimes) in [
        (WeightKind::Nvfp4, "tensorrt-10.16,sm_110a", &BOTH[..1]),
        (WeightKind::Int4, "tensorrt-10.13", &BOTH[..]),
        (WeightKind::Fp8, "tensorrt-10.3", &BOTH[..]),
        (WeightKind::Bf16, "onnx", &BOTH[..]),
    ] {
        let mut case = Case::new("../../models/takt-demo", kind, Form::Operators);
        case.build.draft = Some(DraftOptions { folder: &head, prompts: None, measures: false });
        (case.export.target, case.export.form) = (target.parse().unwrap(), None);
        all_hold(&case.check(runtimes));
    }
}

#[test]
fn descriptions_that_no_fixture_has_are_computed_as_the_cpu_does() {
    let alterations: [fn(&mut Value); 3] = [
        |engine| engine["spec"]["rope"]["pairing"] = json!("interleaved"),
        |engine| {
            let rope = &mut engine["spec"]["rope"];
            rope["inv_freq"].as_array_mut().unwrap().truncate(5);
            rope["attention_factor"] = json!(1.25);
            engine["spec"]["attention_scale"] = json!(0.11);
        },
        |engine| {
            engine["spec"]["rope"]["pairing"] = json!("interleaved");
            engine["spec"]["rope"]["inv_freq"].as_array_mut().unwrap().truncate(6);
            let num_layers = engine["spec"]["num_layers"].as_u64().unwrap();
            let windows = (0..num_layers).map(|idx| if idx == 0 { json!(3) } else { json!(5 + idx) });
            engine["spec"]["windows"] = windows.collect();
            engine["spec"]["norm_eps"] = json!(0.125);
        },
    ];
    for alter in alterations {
        for form in FORMS {
            let mut case = Case::new("hf/tiny-qwen3", WeightKind::Bf16, form);
            (case.alter, case.export.variant) = (alter, Some(Variant::Eagle3));
            case.check_as_known();
            case.export.variant = None;
            case.check_as_known();
        }
    }
}

/// A fixture's head with other habits: norms of its own, an embedding of its own.
fn habits(folder: &Path, own_embedding: bool) {
    let original = fixtures().join("eagle3/tiny-llama-midlayer");
    let mut config: Value =
        serde_json::from_slice(&std::fs::read(original.join("config.json")).unwrap()).unwrap();
    ["norm_before_residual", "norm_output", "fc_norm"]
        .into_iter()
        .for_each(|name| config[name] = json!(true));
    config["rope_theta"] = json!(777.0);
    std::fs::write(folder.join("config.json"), config.to_string()).unwrap();
    let bytes = std::fs::read(original.join("model.safetensors")).unwrap();
    let file = SafeTensors::deserialize(&bytes).unwrap();
    let made = |len: usize| -> Vec<u8> {
        let value = |i: usize| half::bf16::from_f32(0.5 + (i as f32 * 0.37).sin() * 0.3).to_le_bytes();
        (0..len).flat_map(value).collect()
    };
    let (norm, embedding) = (made(128), made(640 * 128));
    let mut tensors = file.tensors();
    let view = |shape: Vec<usize>, data| TensorView::new(Dtype::BF16, shape, data).unwrap();
    for idx in 0..3 {
        tensors.push((format!("fc_norm.{idx}.weight"), view(vec![128], &norm)));
    }
    if own_embedding {
        tensors.push(("embed_tokens.weight".into(), view(vec![640, 128], &embedding)));
    }
    serialize_to_file(tensors, None, &folder.join("model.safetensors")).unwrap();
}

#[test]
fn every_habit_of_a_draft_head_is_computed_as_the_cpu_does() {
    for own_embedding in [false, true] {
        let folder = scratch();
        habits(folder.path(), own_embedding);
        for form in FORMS {
            let mut case = Case::new("hf/tiny-llama", WeightKind::Fp8, form);
            case.build.draft = Some(DraftOptions { folder: folder.path(), prompts: None, measures: false });
            all_hold(&case.check(&BOTH));
        }
    }
}

/// Offsets beyond 2 GiB, and a model whose weights are many times what may be in memory.
#[test]
fn a_model_of_several_gigabytes_is_streamed() {
    let Some(python) = python::python() else { return };
    // Always the same folder, so that what a killed run left does not stay.
    let name = "onnx-gigabytes";
    let left = Path::new(env!("CARGO_TARGET_TMPDIR")).join(name);
    assert!(!left.exists() || std::fs::remove_dir_all(&left).is_ok(), "{left:?} cannot be removed");
    let folder =
        tempfile::Builder::new().prefix(name).rand_bytes(0).tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
    let spec = decoder_spec("qwen3-1.7b").unwrap();
    let weights = RandomWeights::new(&spec, WeightKind::Bf16, WeightKind::Bf16, 1).unwrap();
    let quantization =
        Quantization { weights: WeightKind::Bf16, lm_head: WeightKind::Bf16, kv: KvKind::Bf16 };
    let source = Source { spec: &spec, quantization, weights: &weights, draft: None, weights_hash: None };
    let out = folder.path().join("export");
    let report = export_source(&source, &out, &ExportOptions::default(), &mut |_| {}).unwrap();
    assert!(report.total_bytes > 3 << 30, "{}", report.total_bytes);
    assert!(std::fs::metadata(out.join("model.onnx")).unwrap().len() < 1 << 20);
    python::check(python, &out, Path::new("-"), "file");
    folder.close().unwrap();
    assert!(!left.exists());
}
