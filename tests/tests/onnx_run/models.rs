//! Every form, format and type against the CPU backend.

use takt_engine::quant::WeightKind;
use takt_engine_builder::export::{Activations, Compute, Form, KvType, Variant};

use crate::case::Case;

/// 32-bit arithmetic in another order, over a cache that has 32 bits here and 16 on the CPU.
const EXACT: f64 = 1e-3;
/// Products and a cache in 16-bit floats.
const HALF: f64 = 1e-2;
/// Products and a cache in brain floats; random models amplify their noise.
const BRAIN: f64 = 8e-2;
/// Quantized activations besides, of a trained model: E4M3 rounds each by up to 1/16, E2M1 by up to 1/4 and more near zero.
const FP8: f64 = 0.15;
const FP4: f64 = 0.4;

/// Keys and values rounded by up to 1/16, which the CPU's are not: random models, which do not even that out, and a trained one.
const RANDOM_E4M3: f64 = 0.3;
const TRAINED_E4M3: f64 = 0.1;

const FORMS: [Form; 2] = [Form::Operators, Form::Primitives];
const VARIANTS: [Variant; 2] = [Variant::Plain, Variant::Eagle3];
const DEMO: &str = "../../models/takt-demo";

#[test]
fn every_form_and_variant_is_computed_as_the_cpu_does() {
    for source in [
        "hf/tiny-llama",
        "hf/tiny-qwen3",
        "families/qwen3-tied",
        "families/llama-biases",
        "families/mistral-window",
    ] {
        for form in FORMS {
            for variant in VARIANTS {
                Case::new(source, WeightKind::Bf16, form, variant).check(EXACT);
            }
        }
    }
}

#[test]
fn every_format_of_weights_is_computed_as_the_cpu_does() {
    for kind in [WeightKind::Fp8, WeightKind::Int4, WeightKind::Nvfp4] {
        for form in FORMS {
            let mut case = Case::new("hf/tiny-qwen2", kind, form, Variant::Eagle3);
            if kind == WeightKind::Int4 {
                // TensorRT takes no blocks of 32, which this model's columns ask for.
                case.export.target = "onnx".parse().unwrap();
            }
            case.build.lm_head = Some(kind);
            case.check(EXACT);
        }
    }
}

#[test]
fn products_in_16_bits_stay_near() {
    for (compute, bound) in [(Compute::F16, HALF), (Compute::Bf16, BRAIN)] {
        for form in FORMS {
            let mut case = Case::new("hf/tiny-llama", WeightKind::Fp8, form, Variant::Eagle3);
            case.export.compute = compute;
            case.check(bound);
        }
    }
}

#[test]
fn quantized_activations_stay_near() {
    for (kind, bound) in [(WeightKind::Fp8, FP8), (WeightKind::Nvfp4, FP4)] {
        let mut case = Case::new(DEMO, kind, Form::Operators, Variant::Plain);
        case.export.activations = Activations::Quantized;
        case.check(bound);
    }
}

#[test]
fn a_cache_of_8_bits_stays_near() {
    for (source, variant, bound) in [
        ("hf/tiny-qwen3", Variant::Plain, RANDOM_E4M3),
        ("families/mistral-window", Variant::Eagle3, RANDOM_E4M3),
        (DEMO, Variant::Eagle3, TRAINED_E4M3),
    ] {
        let mut case = Case::new(source, WeightKind::Bf16, Form::Primitives, variant);
        case.export.kv = Some(KvType::Fp8);
        case.check(bound);
    }
}

#[test]
fn the_demo_model_is_computed_as_the_cpu_does() {
    for (kind, form, compute, bound) in [
        (WeightKind::Nvfp4, Form::Operators, Compute::F32, EXACT),
        (WeightKind::Int4, Form::Primitives, Compute::F32, EXACT),
        (WeightKind::Nvfp4, Form::Operators, Compute::Bf16, BRAIN),
    ] {
        let mut case = Case::new(DEMO, kind, form, Variant::Eagle3);
        case.export.compute = compute;
        case.check(bound);
    }
}
