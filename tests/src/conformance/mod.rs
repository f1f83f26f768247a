//! What every backend must do: one suite for all of them, whatever they compute with.
//!
//! A backend is held to two judges: its logits to the decoder written naively in F64 ([`crate::reference`]), within the [`Tier`] of its arithmetic, and its lanes
//! to what they were told ([`Conversation`]). What one backend promises beyond that is in its own suite.

mod cases;
mod choices;
mod conversation;

use takt_engine::{backend::Backend, spec::DecoderSpec};

pub use self::conversation::{Conversation, Said};
use crate::memory_weights::MemoryWeights;

/// How near the naive decoder's logits are to be: the largest relative L2 error of a row.
#[derive(Debug, Clone, Copy)]
pub struct Tier {
    /// For people.
    pub name: &'static str,
    /// `‖Δ‖ / ‖expected‖` of each row is below.
    pub bound: f64,
    /// Whether a token's logits have the same bits whatever its step is made of.
    pub same_bits: bool,
}

/// Products in F32. Larger than F32 noise because a key that lies on a rounding boundary of the cache may fall on either side.
pub const F32: Tier = Tier { name: "F32", bound: 1e-3, same_bits: true };
/// The same with the coarser steps of an 8-bit cache.
pub const F32_OVER_8_BIT_CACHE: Tier = Tier { name: "F32 over an 8-bit cache", bound: 1e-2, same_bits: true };
/// 8-bit activations: random models amplify their noise.
pub const INT8_ACTIVATIONS: Tier = Tier { name: "INT8 activations", bound: 0.1, same_bits: true };
/// BF16 activations: 8 significant bits at the input of every product.
pub const BF16: Tier = Tier { name: "BF16", bound: 0.05, same_bits: true };
/// The same over a cache with steps of an eighth: keys near a rounding boundary fall on the other side of it.
pub const BF16_OVER_E4M3_CACHE: Tier = Tier { name: "BF16 over an E4M3 cache", bound: 0.1, same_bits: true };
/// A plan with products in F16; TensorRT chooses its kernels by shape.
pub const F16_PLAN: Tier = Tier { name: "F16 plan", bound: 0.01, same_bits: false };
/// A plan with products in BF16.
pub const BF16_PLAN: Tier = Tier { name: "BF16 plan", bound: 0.05, same_bits: false };

/// A plan with FP8 activations. Each value that goes into a product is rounded by up to 1/16, in every layer anew: 0.09 in the median of the suite's
/// 400 rows, behind three layers of random weights, and 0.19 at most (2026-11-23).
pub const FP8_ACTIVATIONS_PLAN: Tier =
    Tier { name: "FP8 activations in a plan", bound: 0.25, same_bits: false };
/// A plan with NVFP4 activations, of one layer: each value is rounded by up to a quarter, and more near zero: 0.26 in the median, 0.52 at most
/// (2026-11-23).
pub const NVFP4_ACTIVATIONS_PLAN: Tier =
    Tier { name: "NVFP4 activations in a plan", bound: 0.65, same_bits: false };
/// A plan with products in F16 over a cache in E4M3: keys and values near a rounding boundary fall on the other side of it, an eighth apart. Measured
/// on 2026-11-23 over our interpreter: 0.052 at most; 0.157 where the naive decoder rounds otherwise, with a scale for each row.
pub const F16_PLAN_OVER_E4M3_CACHE: Tier =
    Tier { name: "F16 plan over an E4M3 cache", bound: 0.1, same_bits: false };

/// The same with products in BF16, which put more keys and values on the other side: 0.036 in the median of 405 rows, 0.094 at most; 0.158 where the naive
/// decoder has a scale for each row.
pub const BF16_PLAN_OVER_E4M3_CACHE: Tier =
    Tier { name: "BF16 plan over an E4M3 cache", bound: 0.14, same_bits: false };

/// A backend of at least three lanes of 100 tokens, the model it runs, and how exact it is.
pub struct Subject<'a> {
    /// All lanes are empty.
    pub backend: &'a mut dyn Backend,
    /// Of the backend's model.
    pub weights: &'a MemoryWeights,
    /// Of its arithmetic.
    pub tier: Tier,
    /// Most nodes of a tree, its root included; at least 10.
    pub max_tree: usize,
    /// Of an E4M3 cache with a scale for each layer's keys and one for its values; empty for any other.
    pub cache_scales: &'a [[f32; 2]],
    /// Whether a list of the likeliest, or a choice, comes wherever one is asked for; the others hand out whole rows.
    pub makes_lists: bool,
}

impl std::fmt::Debug for Subject<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let facts = self.backend.capabilities();
        write!(f, "{} over {} with {} cache", facts.backend, self.tier.name, facts.kv)
    }
}

/// Runs every case on `subject`; its lanes are empty afterwards.
///
/// # Panics
/// When it does not do what every backend must.
pub fn check(subject: &mut Subject<'_>) {
    for (name, case) in cases::ALL {
        println!("{subject:?}: {name}");
        let spec: DecoderSpec = subject.backend.spec().clone();
        case(&mut Conversation::new(subject, &spec, name));
        for lane in 0..subject.backend.capabilities().num_lanes {
            subject.backend.truncate(takt_engine::kv::LaneId(lane), 0).expect("an empty lane");
        }
    }
}
