//! `draft/draft.json`: what the head is and how well it proposed when the engine was built.

use serde::{Deserialize, Serialize};

use super::{DraftSpec, NUM_CAPTURED};
use crate::{TokenId, quant::WeightKind};

/// The head's manifest, inside the engine directory.
pub const DRAFT_MANIFEST_FILE: &str = "draft/draft.json";
/// The head's tensors, inside the engine directory.
pub const DRAFT_WEIGHTS_FILE: &str = "draft/weights.safetensors";
/// The schema this version writes, and the newest it reads.
pub const DRAFT_SCHEMA_VERSION: u32 = 1;

/// `draft/draft.json`. Deterministic, as the engine's own manifest is.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct DraftManifest {
    /// [`DRAFT_SCHEMA_VERSION`] of the builder.
    pub schema_version: u32,
    /// The head.
    pub spec: DraftSpec,
    /// Format of its linear layers.
    pub weights: WeightKind,
    /// Format of its output head.
    pub lm_head: WeightKind,
    /// What its proposals were worth when the engine was built; `None` when that was not measured.
    pub record: Option<AcceptanceRecord>,
}

/// How many proposals of chains the target accepted, over the builder's prompts.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct AcceptanceRecord {
    /// Share of proposals accepted at each position of a chain, of those whose predecessors were.
    pub acceptance: Vec<f32>,
    /// Tokens a round emits on average, the target's own included.
    pub accept_len: f32,
    /// Chains drafted.
    pub num_chains: usize,
    /// Prompts they were drafted after.
    pub num_prompts: usize,
    /// One prompt, by which a load can tell that the head still does what it did: short, and the same for everybody.
    pub check: AcceptanceCheck,
    /// The readings of the published files that were tried, the chosen one included; the first of equals was chosen.
    pub trials: Vec<Trial>,
}

/// What a head's proposals were worth after one prompt.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct AcceptanceCheck {
    /// The prompt.
    pub prompt: Vec<TokenId>,
    /// Tokens a round emits on average after it.
    pub accept_len: f32,
}

/// One reading of a published head, and what it was worth.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Trial {
    /// RoPE base.
    pub rope_theta: f64,
    /// Inputs of the target's layers taken as features.
    pub captured: [usize; NUM_CAPTURED],
    /// Tokens a round emits on average.
    pub accept_len: f32,
}
