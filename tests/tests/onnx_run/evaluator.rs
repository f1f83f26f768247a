//! The same inputs in onnx's reference evaluator, which rounds as the standard says: not only logits are compared, but every row of the cache.

use std::{path::Path, process::Command};

use safetensors::{Dtype, serialize_to_file, tensor::TensorView};
use serde_json::Value;
use takt_engine::quant::WeightKind;
use takt_engine_builder::export::{Activations, Compute, Form, KvType, Variant};
use takt_tests::onnx_run::Element;

use crate::{case::Case, python::python, section::Buffer};

/// 32-bit arithmetic in another order.
const EXACT: f64 = 1e-5;
/// Of 16-bit floats: where a sum falls on the other side of a rounding boundary.
const HALF: f64 = 3e-3;
/// The same of brain floats.
const BRAIN: f64 = 2e-2;
/// Of quantized activations: where a value falls on the other side of a code's boundary.
const CODES: f64 = 5e-2;
/// Of codes that come out: where a key falls on the other side of its code's boundary, the largest one's neighbour is up to an eighth away.
const NEXT_CODE: f64 = 0.125;

/// Writes what went through a model and came out.
fn write(path: &Path, recorded: &[(String, Buffer)]) {
    let dtype = |element| match element {
        Element::F32 => Dtype::F32,
        Element::F16 => Dtype::F16,
        Element::Bf16 => Dtype::BF16,
        Element::I64 => Dtype::I64,
        Element::Bool => Dtype::BOOL,
        Element::E4M3 => Dtype::F8_E4M3,
        other => panic!("{other:?}"),
    };
    let views = recorded.iter().map(|(name, buffer)| {
        (name, TensorView::new(dtype(buffer.element), buffer.dims.clone(), &buffer.bytes).unwrap())
    });
    serialize_to_file(views, None, path).unwrap();
}

fn check(case: &Case<'_>, bound: f64) {
    let Some(python) = python() else { return };
    let folder = tempfile::tempdir().unwrap();
    let (out, recorded) = case.record(folder.path());
    let record = folder.path().join("record.safetensors");
    write(&record, &recorded);
    let own = Path::new(env!("CARGO_MANIFEST_DIR"));
    let mut program = Command::new(python);
    program.arg(own.join("tests/onnx_run/evaluate.py")).args([&out, &record]);
    let output = program.arg(own.join("../engine-builder/tests/onnx_export")).output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let text = String::from_utf8_lossy(&output.stdout);
    let found: Value = serde_json::from_str(text.lines().last().unwrap()).unwrap();
    let found = found.as_object().unwrap();
    assert!(found.contains_key("logits") && found.contains_key("present.0.key"), "{text}");
    let (name, worst) = found
        .iter()
        .map(|(name, error)| (name, error.as_f64().unwrap()))
        .max_by(|a, b| a.1.total_cmp(&b.1))
        .unwrap();
    println!("{}: {name} off by {worst:.1e}", case.name());
    assert!(worst <= bound, "{}: {name} off by {worst:.1e}, at most {bound:.0e}", case.name());
}

#[test]
fn every_run_is_what_onnx_says() {
    for (compute, bound) in [(Compute::F32, EXACT), (Compute::F16, HALF), (Compute::Bf16, BRAIN)] {
        for form in [Form::Operators, Form::Primitives] {
            for (source, kind, variant) in [
                ("hf/tiny-qwen3", WeightKind::Bf16, Variant::Plain),
                ("families/mistral-window", WeightKind::Fp8, Variant::Eagle3),
                ("../../models/takt-demo", WeightKind::Nvfp4, Variant::Eagle3),
                ("../../models/takt-demo", WeightKind::Int4, Variant::Plain),
            ] {
                let mut case = Case::new(source, kind, form, variant);
                case.export.compute = compute;
                check(&case, bound);
            }
        }
    }
    for (source, compute, variant) in [
        ("hf/tiny-qwen2", Compute::F32, Variant::Plain),
        ("families/mistral-window", Compute::F16, Variant::Eagle3),
        ("../../models/takt-demo", Compute::Bf16, Variant::Eagle3),
    ] {
        let mut case = Case::new(source, WeightKind::Bf16, Form::Primitives, variant);
        (case.export.compute, case.export.kv) = (compute, Some(KvType::Fp8));
        check(&case, NEXT_CODE);
    }
    for kind in [WeightKind::Fp8, WeightKind::Nvfp4] {
        let mut case = Case::new("../../models/takt-demo", kind, Form::Operators, Variant::Plain);
        case.export.activations = Activations::Quantized;
        check(&case, CODES);
    }
}
