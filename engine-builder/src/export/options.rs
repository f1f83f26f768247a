//! What to write of an engine.

use std::{str::FromStr, sync::atomic::AtomicBool};

use serde::Serialize;

use super::{
    kv::KvType,
    port::ElementType,
    target::{Form, Target},
};

/// The type of matrix products, and of a plain cache; everything between products is in 32 bits.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Compute {
    /// Brain floats: what models are trained in; never overflows.
    #[default]
    Bf16,
    /// 16-bit floats: three bits finer, but values above 65,504 become infinite.
    F16,
    /// 32-bit floats, for comparing.
    F32,
}

impl Compute {
    /// Name on the command line and in the contract.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Bf16 => "bf16",
            Self::F16 => "f16",
            Self::F32 => "f32",
        }
    }

    pub(super) fn element(self) -> ElementType {
        match self {
            Self::Bf16 => ElementType::Bf16,
            Self::F16 => ElementType::F16,
            Self::F32 => ElementType::F32,
        }
    }
}

impl FromStr for Compute {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        [Self::Bf16, Self::F16, Self::F32]
            .into_iter()
            .find(|compute| compute.name() == text)
            .ok_or_else(|| format!("unknown type {text:?}: expected bf16, f16 or f32"))
    }
}

/// What linear layers with quantized weights multiply them with.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Activations {
    /// What is computed in, usually 16 bits: W8A16, W4A16.
    #[default]
    Plain,
    /// As the weights are, where TensorRT has such products: FP8 with FP8, NVFP4 with NVFP4.
    Quantized,
}

impl Activations {
    /// Name on the command line and in the contract.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Plain => "plain",
            Self::Quantized => "quantized",
        }
    }
}

impl FromStr for Activations {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        [Self::Plain, Self::Quantized]
            .into_iter()
            .find(|activations| activations.name() == text)
            .ok_or_else(|| format!("unknown activations {text:?}: expected plain or quantized"))
    }
}

/// Which queries see which keys, and what comes out beside logits.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Variant {
    /// Text: the mask follows from the positions.
    Plain,
    /// Trees of proposals: the mask is an input, and the features a draft head takes come out.
    Eagle3,
}

impl Variant {
    /// Name on the command line and in the contract.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Plain => "plain",
            Self::Eagle3 => "eagle3",
        }
    }
}

impl FromStr for Variant {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        [Self::Plain, Self::Eagle3]
            .into_iter()
            .find(|variant| variant.name() == text)
            .ok_or_else(|| format!("unknown variant {text:?}: expected plain or eagle3"))
    }
}

/// What to write.
#[derive(Debug, Clone, Copy, Default)]
pub struct ExportOptions<'a> {
    /// Who reads it.
    pub target: Target,
    /// How operators are written; by default the newest form that the target takes, and primitives for a cache of 8 bits that is asked for.
    pub form: Option<Form>,
    /// The type that is computed in.
    pub compute: Compute,
    /// What quantized weights are multiplied with.
    pub activations: Activations,
    /// What the decoder's keys and values are stored as; the engine's own by default, as far as target and form take it. A head's are plain.
    pub kv: Option<KvType>,
    /// Trees and features; by default where the engine has a draft head.
    pub variant: Option<Variant>,
    /// Tokens a lane holds; the model's context by default, at most [`takt_engine::engine::DEFAULT_LANE_CAPACITY`].
    pub max_context: Option<usize>,
    /// Rows of a lane's cache beyond those tokens, for tokens that pad shorter lanes; the model need not be made for their positions.
    pub padding_rows: usize,
    /// Lanes that advance together, for the profiles; 1 by default.
    pub num_lanes: Option<usize>,
    /// Write no draft head, though the engine has one; what it takes comes out of the model all the same.
    pub decoder_only: bool,
    /// Also put out the residual stream at every layer's input, for comparing.
    pub hidden_states: bool,
    /// Replace an export that is already there.
    pub force: bool,
    /// Set by another thread to stop at the next tensor.
    pub cancelled: Option<&'a AtomicBool>,
}
