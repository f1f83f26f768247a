//! What needs no Python: the same bytes twice, where the data lies, what is refused, and that nothing is half written.

use std::{
    fs,
    path::{Path, PathBuf},
    sync::atomic::{AtomicBool, Ordering},
};

use serde_json::Value;
use takt_engine::{dir::EngineDir, kv::KvKind, quant::WeightKind, spec::DecoderSpec};
use takt_engine_builder::{
    BuildError, BuildOptions, build,
    draft::DraftOptions,
    export::{Activations, Compute, ExportOptions, Form, KvType, Variant, export},
};

use crate::case::{engine, fixtures, scratch};

struct Made {
    folder: tempfile::TempDir,
    engine: PathBuf,
}

fn made(source: &str, options: &BuildOptions<'_>) -> Made {
    let folder = scratch();
    let engine = engine(folder.path(), &fixtures().join(source), options);
    Made { folder, engine }
}

impl Made {
    fn out(&self) -> PathBuf {
        self.folder.path().join("export")
    }

    fn export(&self, options: &ExportOptions<'_>) -> Result<PathBuf, BuildError> {
        export(&self.engine, &self.out(), options, &mut |_| {}).map(|_| self.out())
    }

    fn refused(&self, options: &ExportOptions<'_>, facts: &[&str]) {
        let message = self.export(options).unwrap_err().to_string();
        for fact in facts {
            assert!(message.contains(fact), "{fact:?} not in {message:?}");
        }
        assert_eq!(entries(self.folder.path()), ["engine"], "something was left behind");
    }
}

fn entries(folder: &Path) -> Vec<String> {
    let names = fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap());
    let mut names: Vec<String> = names.collect();
    names.sort();
    names
}

fn contract(out: &Path) -> Value {
    serde_json::from_slice(&fs::read(out.join("export.json")).unwrap()).unwrap()
}

fn names(ports: &Value) -> Vec<&str> {
    let ports = ports.as_array().unwrap();
    ports.iter().map(|port| port["name"].as_str().unwrap()).filter(|name| !name.contains('.')).collect()
}

fn for_target(target: &str) -> ExportOptions<'static> {
    ExportOptions { target: target.parse().unwrap(), ..ExportOptions::default() }
}

#[test]
fn the_same_engine_gives_the_same_bytes_and_replaces_only_an_export() {
    let made = made("hf/tiny-qwen3", &BuildOptions::new(WeightKind::Fp8));
    let read =
        |out: &Path| entries(out).iter().map(|name| fs::read(out.join(name)).unwrap()).collect::<Vec<_>>();
    let out = made.export(&ExportOptions::default()).unwrap();
    assert_eq!(entries(&out), ["export.json", "model.onnx", "model.onnx.data"]);
    let first = read(&out);
    let message = made.export(&ExportOptions::default()).unwrap_err().to_string();
    assert!(message.contains("--force replaces it"), "{message}");
    made.export(&ExportOptions { force: true, ..ExportOptions::default() }).unwrap();
    assert!(first == read(&out), "another export of the same engine");
    fs::write(out.join("mine.txt"), "notes").unwrap();
    let message =
        made.export(&ExportOptions { force: true, ..ExportOptions::default() }).unwrap_err().to_string();
    assert!(message.contains("never replaced"), "{message}");
    assert_eq!(fs::read(out.join("mine.txt")).unwrap(), b"notes");
    // Nor is an engine taken for an export.
    let onto_engine = export(
        &made.engine,
        &made.engine,
        &ExportOptions { force: true, ..ExportOptions::default() },
        &mut |_| {},
    );
    assert!(onto_engine.unwrap_err().to_string().contains("never replaced"));
    assert!(made.engine.join("engine.json").exists());
}

#[test]
fn a_cancelled_export_leaves_nothing_and_keeps_what_was_there() {
    let made = made("hf/tiny-llama", &BuildOptions::new(WeightKind::Nvfp4));
    let out = made.export(&ExportOptions::default()).unwrap();
    let before = fs::read(out.join("model.onnx.data")).unwrap();
    let cancelled = AtomicBool::new(false);
    let options = ExportOptions {
        force: true,
        cancelled: Some(&cancelled),
        compute: Compute::F16,
        ..ExportOptions::default()
    };
    let mut seen = 0;
    let error = export(&made.engine, &out, &options, &mut |progress| {
        assert!(progress.done <= progress.total && progress.file == "model.onnx");
        seen += 1;
        cancelled.store(seen == 5, Ordering::Relaxed);
    });
    assert!(matches!(error, Err(BuildError::Cancelled)), "{error:?}");
    assert_eq!(seen, 5);
    assert_eq!(entries(made.folder.path()), ["engine", "export"]);
    assert!(before == fs::read(out.join("model.onnx.data")).unwrap());
}

#[test]
fn weights_are_the_engines_own_bytes_at_whole_pages() {
    let made = made("hf/tiny-qwen3", &BuildOptions::new(WeightKind::Nvfp4));
    let out = made.export(&ExportOptions::default()).unwrap();
    let data = fs::read(out.join("model.onnx.data")).unwrap();
    assert_eq!(data.len() as u64, contract(&out)["models"][0]["data_bytes"].as_u64().unwrap());
    let stored = fs::read(made.engine.join("weights.safetensors")).unwrap();
    let file = safetensors::SafeTensors::deserialize(&stored).unwrap();
    let mut num_found = 0;
    for (name, tensor) in file.tensors().into_iter().filter(|(_, tensor)| tensor.data().len() >= 4096) {
        let at = (0..data.len()).step_by(4096).filter(|&at| data[at..].starts_with(tensor.data())).count();
        assert_eq!(at, 1, "{name}");
        num_found += 1;
    }
    assert!(num_found >= 15, "{num_found}");
}

#[test]
fn what_a_target_lacks_is_refused_with_what_works() {
    let nvfp4 = made("hf/tiny-qwen3", &BuildOptions::new(WeightKind::Nvfp4));
    nvfp4.refused(
        &for_target("tensorrt-10.3"),
        &["decoder layers in nvfp4", "from 10.8 on", "int4 or fp8 or bf16"],
    );
    nvfp4.refused(&for_target("tensorrt-10.16,sm_87"), &["from sm_100 on", "int4 or bf16"]);
    let operators = ExportOptions { form: Some(Form::Operators), ..for_target("tensorrt-10.13") };
    nvfp4.refused(&operators, &["opset 24", "10.15", "--form primitives"]);
    let quantized = ExportOptions { activations: Activations::Quantized, ..for_target("onnx") };
    nvfp4.refused(&quantized, &["NVFP4 activations", "plain"]);
    nvfp4.refused(
        &ExportOptions { max_context: Some(1 << 30), ..for_target("onnx") },
        &["the model was made for"],
    );
    nvfp4.refused(&ExportOptions { num_lanes: Some(0), ..for_target("onnx") }, &["0 lanes"]);
    let int4 = made("hf/tiny-qwen3", &BuildOptions::new(WeightKind::Int4));
    // Its output head is fp8 unless something else is asked for.
    int4.refused(&for_target("tensorrt-10.3,sm_87"), &["the output head in fp8", "--lm-head int4 or bf16"]);
}

#[test]
fn a_cache_of_8_bits_is_in_the_contract_and_refused_where_it_cannot_be() {
    let plain = made("hf/tiny-qwen3", &BuildOptions::new(WeightKind::Bf16));
    let fp8 = |target| ExportOptions { kv: Some(KvType::Fp8), force: true, ..for_target(target) };
    let operators = ExportOptions { form: Some(Form::Operators), ..fp8("tensorrt-11.4") };
    plain.refused(&operators, &["an fp8 cache in form operators", "form primitives, or a plain cache"]);
    plain.refused(&fp8("tensorrt-10.16,sm_87"), &["an fp8 cache for", "from sm_89 on", "use a plain one"]);
    let found = contract(&plain.export(&fp8("tensorrt-10.16,sm_110a")).unwrap());
    assert_eq!((&found["form"], &found["kv"]), (&"primitives".into(), &"fp8".into()));
    let model = &found["models"][0];
    let num_layers = EngineDir::open(&plain.engine).unwrap().manifest().spec.num_layers;
    let scales = model["cache_scales"].as_array().unwrap();
    assert_eq!(scales.len(), num_layers);
    for scale in scales.iter().flat_map(|pair| pair.as_array().unwrap()) {
        let scale = scale.as_f64().unwrap();
        assert!(scale > 0.0 && scale.log2().fract() == 0.0, "{scale}");
    }
    for ports in ["inputs", "outputs"] {
        let is_cache = |port: &&Value| port["name"].as_str().unwrap().contains('.');
        let ports: Vec<_> = model[ports].as_array().unwrap().iter().filter(is_cache).collect();
        assert_eq!(ports.len(), 2 * num_layers);
        assert!(ports.iter().all(|port| port["type"] == "f8e4m3"), "{ports:?}");
    }
    let again = |out: &Path| fs::read(out.join("model.onnx")).unwrap();
    let first = again(&plain.out());
    assert!(first == again(&plain.export(&fp8("tensorrt-10.16,sm_110a")).unwrap()), "another export");
    // An engine's cache has other scales: such a model is none to read back.
    let out = plain.export(&fp8("onnx")).unwrap();
    let how = BuildOptions::new(WeightKind::Bf16);
    let error = build(&out, &plain.folder.path().join("again"), &how, &mut |_| {}).unwrap_err().to_string();
    assert!(error.contains("Linear"), "{error}");
}

/// Unless something is asked for: the cache of the engine, where target and form take it, and a note where they do not.
#[test]
fn a_cache_of_8_bits_is_the_engines_own_where_it_can_be() {
    let options = BuildOptions { kv: Some(KvKind::Fp8), ..BuildOptions::new(WeightKind::Bf16) };
    let made = made("hf/tiny-llama", &options);
    let noted = |options: ExportOptions<'_>| {
        let report =
            export(&made.engine, &made.out(), &ExportOptions { force: true, ..options }, &mut |_| {});
        let report = report.unwrap();
        (report.contract.form, report.contract.kv, report.warnings.join("; "))
    };
    let (form, kv, notes) = noted(for_target("tensorrt-10.13,sm_110"));
    assert_eq!((form, kv, notes.as_str()), (Form::Primitives, KvType::Fp8, ""));
    let (form, kv, notes) = noted(for_target("tensorrt-10.16,sm_110"));
    assert_eq!((form, kv), (Form::Operators, KvType::Plain));
    assert!(notes.contains("the engine's cache is fp8") && notes.contains("primitives has"), "{notes}");
    let (form, kv, notes) = noted(for_target("tensorrt-10.3,sm_87"));
    assert_eq!((form, kv), (Form::Primitives, KvType::Plain));
    assert!(notes.contains("from sm_89 on"), "{notes}");
    let plain = ExportOptions { kv: Some(KvType::Plain), ..for_target("tensorrt-10.13") };
    assert_eq!(noted(plain), (Form::Primitives, KvType::Plain, String::new()));
}

#[test]
fn int4_whose_columns_no_block_of_tensorrts_divides_is_refused_by_name() {
    let options = BuildOptions { lm_head: Some(WeightKind::Bf16), ..BuildOptions::new(WeightKind::Int4) };
    let odd = made("families/mistral-wide-heads", &options);
    let spec = &EngineDir::open(&odd.engine).unwrap().manifest().spec.clone();
    let widths = [spec.hidden_size, spec.q_dim(), spec.intermediate_size];
    let fits = widths.iter().all(|width| width % 64 == 0);
    assert!(!fits, "{widths:?}: another fixture is needed");
    odd.refused(&for_target("tensorrt-10.16"), &["proj in int4", "blocks of 64 or 128", "fp8 or bf16"]);
    odd.export(&for_target("onnx")).unwrap();
}

#[test]
fn the_contract_names_every_input_for_its_form_and_variant() {
    let head = fixtures().join("eagle3/tiny-llama-midlayer");
    let draft = Some(DraftOptions { folder: &head, prompts: None, measures: false });
    let made = made("hf/tiny-llama", &BuildOptions { draft, ..BuildOptions::new(WeightKind::Bf16) });
    for (target, variant, inputs, outputs) in [
        (
            "tensorrt-10.16",
            Variant::Plain,
            "input_ids position_ids write_indices kv_positions logits_rows",
            "logits",
        ),
        ("tensorrt-10.13", Variant::Plain, "input_ids position_ids logits_rows", "logits"),
        ("onnx", Variant::Plain, "input_ids position_ids write_indices kv_positions", "logits"),
        (
            "tensorrt-11.4",
            Variant::Eagle3,
            "input_ids position_ids write_indices attention_mask logits_rows",
            "logits features",
        ),
    ] {
        let options =
            ExportOptions { variant: Some(variant), force: true, num_lanes: Some(3), ..for_target(target) };
        let found = contract(&made.export(&options).unwrap());
        let model = &found["models"][0];
        assert_eq!(names(&model["inputs"]).join(" "), inputs, "{target}");
        assert_eq!(names(&model["outputs"]).join(" "), outputs, "{target}");
        let in_place = found["form"] == "operators";
        assert_eq!(model["aliases"].as_array().unwrap().is_empty(), !in_place);
        assert_eq!(found["models"].as_array().unwrap().len(), if variant == Variant::Eagle3 { 2 } else { 1 });
        check_profiles(model, found["capacity"].as_u64().unwrap());
        // Softmax in 32 bits also where the runtime's operator has it.
        let written = fs::read(made.out().join("model.onnx")).unwrap();
        let attribute = b"softmax_precision";
        assert_eq!(written.windows(attribute.len()).any(|bytes| bytes == attribute), in_place);
        let notes = found["notes"].to_string();
        assert!(["zero once", "go on counting"].iter().all(|fact| notes.contains(fact)), "{notes}");
    }
    for (target, max_context) in
        [("tensorrt-10.16", 1), ("tensorrt-10.16", 40), ("tensorrt-10.13", 40), ("tensorrt-10.13", 300)]
    {
        let options = ExportOptions { max_context: Some(max_context), force: true, ..for_target(target) };
        for model in contract(&made.export(&options).unwrap())["models"].as_array().unwrap() {
            check_profiles(model, 4096);
        }
    }
    let found =
        contract(&made.export(&ExportOptions { force: true, ..for_target("tensorrt-11.4") }).unwrap());
    let expected = "input_ids position_ids features hidden write_indices attention_mask logits_rows";
    assert_eq!(names(&found["models"][1]["inputs"]).join(" "), expected);
    assert_eq!(names(&found["models"][1]["outputs"]).join(" "), "next_hidden logits");
}

/// Shapes grow from smallest to largest, and every dynamic input has some.
fn check_profiles(model: &Value, capacity: u64) {
    for profile in model["profiles"].as_array().unwrap() {
        let inputs = profile["inputs"].as_array().unwrap();
        assert_eq!(inputs.len(), model["inputs"].as_array().unwrap().len(), "{profile}");
        for input in inputs {
            let shape = |which: &str| -> Vec<u64> {
                input[which].as_array().unwrap().iter().map(|dim| dim.as_u64().unwrap()).collect()
            };
            let (min, opt, max) = (shape("min"), shape("opt"), shape("max"));
            let grow = min.iter().zip(&opt).zip(&max).all(|((min, opt), max)| min <= opt && opt <= max);
            assert!(grow && max.iter().all(|&dim| dim <= capacity.max(4096)), "{} {input}", profile["name"]);
        }
    }
}

/// Everything that a backend goes by; names for people aside.
fn essence(engine: &Path) -> DecoderSpec {
    let mut spec = EngineDir::open(engine).unwrap().manifest().spec.clone();
    spec.family.clear();
    (spec.rope.theta, spec.rope.scaling) = (0.0, String::new());
    // A rotary table tells its frequencies to within its own rounding.
    spec.rope.inv_freq.iter_mut().for_each(|freq| *freq = (*freq * 1e4).round());
    spec.rope.attention_factor = (spec.rope.attention_factor * 1e4).round();
    spec
}

#[test]
fn an_export_in_primitives_is_read_back_as_the_same_engine() {
    for (source, compute) in [
        ("hf/tiny-llama", Compute::F32),
        ("hf/tiny-llama", Compute::Bf16),
        ("hf/tiny-qwen2", Compute::F32),
        ("hf/tiny-qwen3", Compute::Bf16),
        ("families/llama-biases", Compute::F32),
        ("families/mistral-window", Compute::Bf16),
        ("families/qwen2-window", Compute::F32),
        ("families/qwen3-yarn", Compute::F32),
    ] {
        let made = made(source, &BuildOptions::new(WeightKind::Bf16));
        let max_context = EngineDir::open(&made.engine).unwrap().manifest().spec.max_context.min(256);
        let options = ExportOptions {
            form: Some(Form::Primitives),
            compute,
            max_context: Some(max_context),
            ..for_target("onnx")
        };
        let out = made.export(&options).unwrap();
        let again = made.folder.path().join("again");
        build(&out, &again, &BuildOptions::new(WeightKind::Bf16), &mut |_| {})
            .unwrap_or_else(|error| panic!("{source} {compute:?}: {error}"));
        let weights = |engine: &Path| fs::read(engine.join("weights.safetensors")).unwrap();
        assert!(weights(&made.engine) == weights(&again), "{source}: other weights");
        let expected = DecoderSpec { max_context, ..essence(&made.engine) };
        assert_eq!(essence(&again), expected, "{source}");
    }
}
