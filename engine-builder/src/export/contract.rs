//! `export.json`: everything that whoever builds a plan of an export, or runs it, has to know. The one place where it is written down.
//!
//! Names of dimensions: `batch` lanes, `sequence` new tokens of each, `kv` keys that may be seen, `past` rows of the cache that are fed,
//! `logits` rows whose logits are wanted.
//!
//! | input | shape | what |
//! |---|---|---|
//! | `input_ids` | `[batch, sequence]` | tokens; those beyond a shorter lane's are any token |
//! | `position_ids` | `[batch, sequence]` | RoPE positions; a tree's node is one after its parent |
//! | `write_indices` | `[batch]` | form `operators`: the cache's row of the first new token; `write_indices + sequence ≤ capacity` |
//! | `kv_positions` | `[kv]` | plain variant, form `operators`: `0 1 2 …`; how many says how much of the cache is looked at |
//! | `attention_mask` | `[batch, sequence, kv]` | eagle3 variant and draft head: true where a token sees a row. Every token sees itself |
//! | `kv_positions` | `[batch, kv]` | eagle3 variant of a model with attention windows: the position in each row |
//! | `past_key_values.L.key`, `.value` | `[batch, G, capacity, d]` or `[batch, G, past, d]` | the cache |
//! | `logits_rows` | `[batch, logits]` | for TensorRT: the tokens of each lane whose logits are wanted |
//! | `features`, `hidden` | `[batch, sequence, 3·H]`, `[…, h]` | draft head: one of them, the other zero |
//!
//! | output | shape | what |
//! |---|---|---|
//! | `logits` | `[batch, logits, V]` | 32 bits |
//! | `present.L.key`, `.value` | `[batch, G, capacity, d]` or `[batch, G, sequence, d]` | the cache with the new rows, in the memory of the input; or the new rows alone, which the caller puts behind the past |
//! | `features` | `[batch, sequence, 3·H]` | eagle3 variant: the residual streams the head takes |
//! | `next_hidden` | `[batch, sequence, h]` | draft head: what is fed back |
//!
//! A cache in E4M3 (`kv` is `fp8`, form `primitives`) has the codes of `value / scale`, with a scale for each layer's keys and one for its values
//! (`cache_scales`); new rows come out as codes. A code of zero is zero.
//!
//! For TensorRT: networks are strongly typed, models are parsed by path, and attention layers want `setDecomposable(true)`, for which the
//! standard's operator has no attribute. Weights of a draft head may lie in its target's data.
//!
//! In the plain variant a lane's rows are its positions. With `primitives` a lane's past is the first `position_ids[b, 0]` rows fed.
//!
//! What is fed beside a lane's own rows has no weight, but it is multiplied: zero times NaN is NaN. So rows that were never written must be finite,
//! and a cache is set to zero once. Positions of a shorter lane's padding go on counting behind its last token and stay below the capacity:
//! `primitives` takes the positions of new keys from `position_ids`, and a smaller one would be seen. [`Contract::notes`] says both.

use serde::Serialize;
use takt_engine::{
    dir::Quantization,
    engine::{DEFAULT_STEP_TOKENS, MAX_TREE_NODES},
    quant::WeightKind,
};

use super::{
    attention::cache_names,
    graph::Finished,
    kv::KvType,
    options::{Activations, Compute, Variant},
    port::{Dim, Port},
    target::{Form, Target},
};

/// The contract's file name.
pub const CONTRACT_FILE: &str = "export.json";
/// The version of [`Contract`].
pub const CONTRACT_VERSION: u32 = 1;
/// What inputs must keep to that no shape says.
pub(super) const NOTES: [&str; 2] = [
    "Every value of the caches that are fed must be finite, those of rows that no token has written too: set a cache to zero once. Such rows have weight 0, and 0 times NaN is NaN.",
    "Tokens that pad a shorter lane stand behind its own, and their position_ids go on counting from its last and stay below the capacity. In the form primitives, tokens at or behind a smaller position would see them.",
];

/// `export.json`. Deterministic: the same engine and options give the same bytes.
#[derive(Debug, Clone, Serialize)]
pub struct Contract {
    /// [`CONTRACT_VERSION`].
    pub schema_version: u32,
    /// Version of the exporter, for people.
    pub exporter_version: String,
    /// BLAKE3 of the engine's `weights.safetensors`.
    pub engine_weights: Option<String>,
    /// Who reads the models.
    pub target: Target,
    /// How operators are written.
    pub form: Form,
    /// The type of products, and of a plain cache.
    pub compute: Compute,
    /// What the decoder's keys and values are stored as; a draft head's are plain.
    pub kv: KvType,
    /// What quantized weights are multiplied with.
    pub activations: Activations,
    /// Formats of the engine. The models' cache is as [`Self::kv`] says.
    pub quantization: Quantization,
    /// Which queries see which keys.
    pub variant: Variant,
    /// Rows of a lane of the target's cache.
    pub capacity: usize,
    /// What inputs must keep to that no shape says.
    pub notes: [&'static str; 2],
    /// The target, then its draft head.
    pub models: Vec<Model>,
}

/// One model.
#[derive(Debug, Clone, Serialize)]
pub struct Model {
    /// `decoder` or `draft`.
    pub role: &'static str,
    /// The file.
    pub file: &'static str,
    /// Its data, beside it.
    pub data_file: &'static str,
    /// Length of that.
    pub data_bytes: u64,
    /// The standard's version.
    pub opset: i64,
    /// Format of its output head.
    pub lm_head: WeightKind,
    /// What goes in.
    pub inputs: Vec<Port>,
    /// What comes out.
    pub outputs: Vec<Port>,
    /// Of each layer's keys and values in an E4M3 cache: what a code is multiplied by. Empty for a plain one.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub cache_scales: Vec<[f32; 2]>,
    /// Inputs and outputs that must be in the same memory.
    pub aliases: Vec<[String; 2]>,
    /// Shapes a plan is to be optimized for.
    pub profiles: Vec<Profile>,
    /// Nodes, for people.
    pub num_nodes: usize,
    /// Constants, for people.
    pub num_constants: usize,
}

/// Shapes a plan is to be optimized for.
#[derive(Debug, Clone, Serialize)]
pub struct Profile {
    /// `prefill`, `decode`, `verify`, `draft`.
    pub name: &'static str,
    /// Shapes of the inputs with a named dimension.
    pub inputs: Vec<ProfileInput>,
}

/// Smallest, usual and largest shape of an input.
#[derive(Debug, Clone, Serialize)]
pub struct ProfileInput {
    /// The input.
    pub name: String,
    /// Smallest.
    pub min: Vec<usize>,
    /// Usual.
    pub opt: Vec<usize>,
    /// Largest.
    pub max: Vec<usize>,
}

/// What profiles follow from.
#[derive(Debug, Clone, Copy)]
pub(super) struct Extents {
    pub num_lanes: usize,
    /// Rows of the model's own cache.
    pub capacity: usize,
    pub form: Form,
    /// Trees are verified.
    pub has_trees: bool,
}

/// Smallest, usual and largest size of each named dimension.
#[derive(Clone, Copy)]
struct Sizes {
    batch: [usize; 3],
    sequence: [usize; 3],
    logits: [usize; 3],
}

impl Extents {
    /// Prefill of one lane in slices, a step of all lanes, a round of all lanes.
    pub(super) fn profiles(&self, inputs: &[Port], step: &'static str) -> Vec<Profile> {
        let lanes = [1, self.num_lanes, self.num_lanes];
        let slice = DEFAULT_STEP_TOKENS.min(self.capacity);
        let tree = (1 + MAX_TREE_NODES).min(self.capacity);
        let prefill = Sizes { batch: [1; 3], sequence: [1, slice, slice], logits: [1; 3] };
        let decode = Sizes { batch: lanes, sequence: [1; 3], logits: [1; 3] };
        let verify =
            Sizes { batch: lanes, sequence: [1, 16.min(tree), tree], logits: [1, 16.min(tree), tree] };
        let mut all = vec![("prefill", prefill), (step, decode)];
        all.extend(self.has_trees.then_some(("verify", verify)));
        all.into_iter().map(|(name, sizes)| Profile { name, inputs: self.shapes(inputs, sizes) }).collect()
    }

    fn shapes(&self, inputs: &[Port], sizes: Sizes) -> Vec<ProfileInput> {
        let dynamic = inputs.iter().filter(|port| port.shape.iter().any(|dim| matches!(dim, Dim::Named(_))));
        dynamic
            .map(|port| {
                let at = |which: usize| port.shape.iter().map(|dim| self.size(dim, sizes, which)).collect();
                ProfileInput { name: port.name.clone(), min: at(0), opt: at(1), max: at(2) }
            })
            .collect()
    }

    /// Smallest, usual or largest of one dimension. The cache looked at is as long as the new tokens at least.
    fn size(&self, dim: &Dim, sizes: Sizes, which: usize) -> usize {
        let longest = self.capacity.saturating_sub(sizes.sequence[2]);
        let past = [0, longest.min(self.capacity / 2), longest][which];
        match dim {
            Dim::Fixed(len) => *len,
            Dim::Named(name) => match name.as_str() {
                "batch" => sizes.batch[which],
                "sequence" => sizes.sequence[which],
                "logits" => sizes.logits[which],
                "past" => past,
                _ if self.form == Form::Operators && which == 2 => self.capacity,
                _ => past + sizes.sequence[which],
            },
        }
    }
}

/// Inputs and outputs of the cache that must be in the same memory.
pub(super) fn aliases(form: Form, num_layers: usize) -> Vec<[String; 2]> {
    match form {
        Form::Operators => (0..num_layers).flat_map(cache_names).collect(),
        Form::Primitives => Vec::new(),
    }
}

/// A finished model's entry.
pub(super) struct ModelFacts {
    pub role: &'static str,
    pub file: &'static str,
    pub data_file: &'static str,
    pub opset: i64,
    pub lm_head: WeightKind,
    pub num_layers: usize,
}

impl Model {
    pub(super) fn new(
        facts: &ModelFacts,
        finished: Finished,
        cache_scales: Vec<[f32; 2]>,
        extents: Extents,
    ) -> Self {
        let step = if facts.role == "draft" { "draft" } else { "decode" };
        Self {
            role: facts.role,
            file: facts.file,
            data_file: facts.data_file,
            data_bytes: finished.data_bytes,
            opset: facts.opset,
            lm_head: facts.lm_head,
            cache_scales,
            aliases: aliases(extents.form, facts.num_layers),
            profiles: extents.profiles(&finished.inputs, step),
            inputs: finished.inputs,
            outputs: finished.outputs,
            num_nodes: finished.num_nodes,
            num_constants: finished.num_constants,
        }
    }
}
