//! Refits of plans with quantized activations and caches of 8 bits, whose scales are constants that follow from the weights.

use takt_engine::{dir::PlanActivations, quant::WeightKind};
use takt_kernels_cu::Target as Gpu;

use super::{
    Compiler, add,
    refit::{engine_with, options, refit},
    tree,
};
use crate::{export::KvType, plans::PlanOptions};

const SOURCE: &str = "hf/tiny-llama";

/// Signs of every other number, each of two bytes, behind attention and the feed-forward layer, where nothing is multiplied with what has a scale of its
/// own: all scales stay.
fn same_scales(name: &str, bytes: &mut [u8]) {
    if name.ends_with("o_proj.weight") || name.ends_with("down_proj.weight") {
        bytes.iter_mut().skip(1).step_by(4).for_each(|byte| *byte ^= 0x80);
    }
}

/// Norms before attention and the feed-forward layer eight times as large: scales of activations and of the cache follow from them.
fn other_scales(name: &str, bytes: &mut [u8]) {
    if name.ends_with("layernorm.weight") {
        for value in bytes.chunks_exact_mut(2) {
            let scaled = half::bf16::from_le_bytes([value[0], value[1]]).to_f32() * 8.0;
            value.copy_from_slice(&half::bf16::from_f32(scaled).to_le_bytes());
        }
    }
}

/// What plans are asked for, and how many scales they have of their own.
fn cases() -> [(WeightKind, PlanOptions); 3] {
    let quantized = PlanOptions { activations: PlanActivations::Quantized, ..options() };
    [
        (WeightKind::Fp8, quantized),
        (WeightKind::Nvfp4, quantized),
        (WeightKind::Bf16, PlanOptions { kv: Some(KvType::Fp8), ..options() }),
    ]
}

/// Scales of activations and of the cache, among the constants of the last model.
fn scales(compiler: &Compiler) -> Vec<String> {
    let constants = compiler.refits.constants.borrow();
    let names = constants.iter().map(|it| it.name.as_str());
    names.filter(|name| name.ends_with(".scale")).map(str::to_owned).collect()
}

#[test]
fn scales_that_tensorrt_takes_are_given_anew_and_others_may_not_differ() {
    for (kind, options) in cases() {
        let (_folder, pattern) = engine_with(SOURCE, kind, &|_, _| {});
        let (_same, same) = engine_with(SOURCE, kind, &same_scales);
        let (_other, other) = engine_with(SOURCE, kind, &other_scales);
        let compiler = Compiler::new(10, 16);
        add(&pattern, &compiler.plans(Gpu::Thor, options).unwrap()).unwrap();
        let scales = scales(&compiler);
        assert!(scales.len() >= 4, "{kind}: {scales:?}");

        let given = |engine: &std::path::Path| {
            refit(&compiler, &pattern, engine).unwrap();
            let given = compiler.refits.given.borrow();
            let of_scales = given.iter().filter(|(name, ..)| scales.contains(name)).cloned();
            of_scales.collect::<Vec<_>>()
        };
        let [own, of_same, of_other] = [&pattern, &same, &other].map(|engine| given(engine));
        assert_eq!(own.len(), scales.len(), "{kind}");
        assert_eq!(own, of_same, "{kind}: nothing that scales follow from has changed");
        assert!(own.iter().zip(&of_other).any(|(own, other)| own != other), "{kind}: they follow from norms");

        // Folded away, as TensorRT may: what a plan does not take stays in its hash.
        *compiler.refits.folded.borrow_mut() = scales.clone();
        add(&pattern, &compiler.plans(Gpu::Thor, options).unwrap()).unwrap();
        assert_eq!(given(&same), [], "{kind}");
        let before = tree(&other);
        let message = refit(&compiler, &pattern, &other).unwrap_err().to_string();
        for words in [
            "differs in more than the weights it takes",
            "scales of quantized activations or of an fp8 cache",
        ] {
            assert!(message.contains(words), "{kind}: {message}");
        }
        assert!(tree(&other) == before, "{kind}");
    }
}
