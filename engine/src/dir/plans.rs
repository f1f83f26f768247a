//! TensorRT plans of an engine: what each is, and for which machine.

use std::fmt;

use serde::{Deserialize, Serialize};

/// One of `engine.json`'s plans. Its file is not among [`Manifest::files`](super::Manifest::files): it is read, and its size and hash are checked,
/// only where it is used.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PlanEntry {
    /// Path inside the engine directory, with `/`: `plans/trt-10.16-sm_110a.plan`.
    pub file: String,
    /// Size.
    pub size_bytes: u64,
    /// BLAKE3, 64 lower-case hexadecimal digits.
    pub blake3: String,
    /// The model it runs.
    pub role: PlanRole,
    /// TensorRT that built it, and the only one that runs it.
    pub tensorrt: PlanVersion,
    /// The GPU it was built on, `sm_110a`, and the only one that runs it.
    pub sm: String,
    /// The device in words, as `takt doctor` names it.
    pub device: String,
    /// BLAKE3 of the weights it was made from: of `weights.safetensors`, or of the head's.
    pub weights_blake3: String,
    /// How the cache goes in and out.
    pub form: PlanForm,
    /// The type of products and of the cache.
    pub compute: PlanCompute,
    /// Most lanes of a batch.
    pub num_lanes: usize,
    /// Tokens one lane holds.
    pub lane_capacity: usize,
    /// Rows of a lane's cache, S: the capacity and as many as a tree has at most, for padding.
    pub lane_rows: usize,
    /// Most tokens of a prefill slice.
    pub max_prefill: usize,
    /// Most nodes of a tree, its root included.
    pub max_tree: usize,
    /// The layers whose inputs it puts out as `features`; none without.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub captured: Vec<usize>,
    /// Its weights are not in it, but given when it is loaded.
    #[serde(default, skip_serializing_if = "is_false")]
    pub stripped: bool,
    /// Its weights may stay in the host's memory.
    #[serde(default, skip_serializing_if = "is_false")]
    pub streams_weights: bool,
}

/// The model that a plan runs.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum PlanRole {
    /// The engine's decoder; profiles 0 prefill, 1 decode, 2 verify.
    Decoder,
    /// Its draft head; profiles 0 prefill, 1 draft.
    Draft,
}

/// How a plan takes the cache, see `takt export`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum PlanForm {
    /// Updated in its place; `write_indices` say where.
    Operators,
    /// All rows go in, new rows come out.
    Primitives,
}

/// The type of a plan's products and of its cache.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum PlanCompute {
    /// 16-bit brain floats.
    Bf16,
    /// 16-bit floats.
    F16,
}

/// A TensorRT release: plans are of one, whatever its patch.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(into = "String", try_from = "String")]
pub struct PlanVersion {
    /// As in 10.16.
    pub major: u32,
    /// As in 10.16.
    pub minor: u32,
}

impl fmt::Display for PlanVersion {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{}", self.major, self.minor)
    }
}

impl From<PlanVersion> for String {
    fn from(version: PlanVersion) -> Self {
        version.to_string()
    }
}

impl TryFrom<String> for PlanVersion {
    type Error = String;

    fn try_from(text: String) -> Result<Self, String> {
        let numbers =
            text.split_once('.').and_then(|(major, minor)| Some((major.parse().ok()?, minor.parse().ok()?)));
        let (major, minor) = numbers
            .ok_or_else(|| format!("{text:?} is no TensorRT version: expected two numbers, as in 10.16"))?;
        Ok(Self { major, minor })
    }
}

fn is_false(value: &bool) -> bool {
    !value
}
