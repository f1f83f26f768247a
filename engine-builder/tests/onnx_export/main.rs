//! Exported models against the CPU backend: computed by onnx's reference evaluator and by onnxruntime, layer by layer, over an explicit cache.

mod case;
mod python;

use std::{collections::BTreeMap, path::Path};

use takt_engine::quant::WeightKind;
use takt_engine_builder::{
    BuildOptions,
    draft::DraftOptions,
    export::{Activations, Compute, ExportOptions, Form, Variant, export},
};

use case::{engine, fixtures};

/// Of 32-bit arithmetic, and of a cache in 16 bits with a scale on the CPU's side.
const EXACT: f64 = 1e-3;
/// Of products and a cache in 16-bit floats.
const HALF: f64 = 2e-2;
/// Of those in brain floats.
const BRAIN: f64 = 1.5e-1;

/// What an export is and must come to.
struct Case<'a> {
    source: &'a str,
    build: BuildOptions<'a>,
    export: ExportOptions<'a>,
    bound: f64,
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
        Self { source, build: BuildOptions::new(kind), export, bound: EXACT }
    }

    /// Runs it in `runtimes`; every quantity must be within the bound in each that has the operators.
    fn check(&self, runtimes: &[&str]) -> BTreeMap<String, bool> {
        let Some(python) = python::python() else { return BTreeMap::new() };
        let folder = tempfile::tempdir().unwrap();
        let engine = engine(folder.path(), &fixtures().join(self.source), &self.build);
        let (out, case_folder) = (folder.path().join("export"), folder.path().join("case"));
        export(&engine, &out, &self.export, &mut |_| {}).unwrap();
        std::fs::create_dir(&case_folder).unwrap();
        let golden = self.build.draft.map(|draft| draft.folder.join("golden.json"));
        let trees = self.export.variant == Some(Variant::Eagle3) || golden.is_some();
        case::write(&case_folder, &engine, trees, golden.as_deref());
        runtimes
            .iter()
            .map(|runtime| ((*runtime).to_owned(), self.compare(python, &out, &case_folder, runtime)))
            .collect()
    }

    fn compare(&self, python: &Path, out: &Path, case: &Path, runtime: &str) -> bool {
        let found = python::check(python, out, case, runtime);
        let found = found.as_object().unwrap();
        if let Some(why) = found.get("unsupported") {
            println!("{} in {runtime}: unsupported: {why}", self.source);
            return false;
        }
        assert!(found.contains_key("logits") && found.contains_key("hidden_states.0"), "{found:?}");
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
        "families/llama-yarn",
        "families/mistral-wide-heads",
        "families/mistral-window",
        "families/qwen2-window",
        "families/qwen3-tied",
    ] {
        for form in FORMS {
            all_hold(&Case::new(source, WeightKind::Bf16, form).check(&BOTH));
        }
    }
}
