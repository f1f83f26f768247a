//! A plan's tensors, every one looked at when the plan is loaded: what a step relies on is there as expected, and there is nothing that nobody fills.

use takt_tensorrt::tensor::{DataType, TensorInfo};

use super::input::InputFacts;
use crate::{
    EngineError, Result,
    dir::{PlanCompute, PlanEntry, PlanForm, PlanKv},
    spec::DecoderSpec,
};

pub(super) const INPUT_IDS: &str = "input_ids";
pub(super) const POSITION_IDS: &str = "position_ids";
pub(super) const WRITE_INDICES: &str = "write_indices";
pub(super) const LOGITS_ROWS: &str = "logits_rows";
pub(super) const KV_POSITIONS: &str = "kv_positions";
pub(super) const MASK: &str = "attention_mask";
pub(super) const LOGITS: &str = "logits";
pub(super) const FEATURES: &str = "features";

/// What a plan takes and puts out.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Ports {
    pub input: InputFacts,
    /// Of each layer keys, then values: the names of what goes in and what comes out.
    pub cache: Vec<[String; 2]>,
    /// F32 values of a token's features; 0 for a plan without.
    pub features_len: usize,
}

/// One dimension, as expected.
#[derive(Debug, Clone, Copy)]
enum Dim {
    /// A profile says how long.
    Free,
    Is(usize),
}
use Dim::{Free, Is};

struct Expected {
    name: String,
    is_input: bool,
    types: &'static [DataType],
    shape: Vec<Dim>,
}

impl Ports {
    /// The tensors of a plan of `spec` that `entry` describes.
    ///
    /// # Errors
    /// [`EngineError::Unsupported`] naming the first that is missing, unexpected, or not of the expected type or shape.
    pub(super) fn new(tensors: &[TensorInfo], spec: &DecoderSpec, entry: &PlanEntry) -> Result<Self> {
        let mut cache = Vec::new();
        for layer_idx in 0..spec.num_layers {
            for what in ["key", "value"] {
                cache.push([
                    format!("past_key_values.{layer_idx}.{what}"),
                    format!("present.{layer_idx}.{what}"),
                ]);
            }
        }
        let features_len = entry.captured.len() * spec.hidden_size;
        let expected = expected(spec, entry, &cache, features_len);
        for port in &expected {
            port.check(tensors)?;
        }
        let is_known = |tensor: &&TensorInfo| {
            expected.iter().any(|port| port.name == tensor.name && port.is_input == tensor.is_input)
        };
        if let Some(unknown) = tensors.iter().find(|tensor| !is_known(tensor)) {
            let way = if unknown.is_input { "input" } else { "output" };
            return Err(unsupported(&format!(
                "has the {way} {:?} {}, which this version does not know",
                unknown.name,
                type_and_shape(unknown)
            )));
        }
        Ok(Self { input: facts(tensors, spec, entry)?, cache, features_len })
    }
}

const INTEGERS: &[DataType] = &[DataType::I64, DataType::I32];

/// All tensors in the order that errors name them.
fn expected(
    spec: &DecoderSpec,
    entry: &PlanEntry,
    cache: &[[String; 2]],
    features_len: usize,
) -> Vec<Expected> {
    let port = |name: &str, is_input, types, shape: &[Dim]| Expected {
        name: name.into(),
        is_input,
        types,
        shape: shape.to_vec(),
    };
    let element: &[DataType] = match (entry.kv, entry.compute) {
        (PlanKv::Fp8, _) => &[DataType::F8E4M3],
        (PlanKv::Plain, PlanCompute::Bf16) => &[DataType::Bf16],
        (PlanKv::Plain, PlanCompute::F16) => &[DataType::F16],
    };
    let mut all = vec![
        port(INPUT_IDS, true, INTEGERS, &[Free; 2]),
        port(POSITION_IDS, true, INTEGERS, &[Free; 2]),
        port(LOGITS_ROWS, true, INTEGERS, &[Free; 2]),
        port(MASK, true, &[DataType::Bool], &[Free; 3]),
    ];
    // Rows that go in, and that come out.
    let rows = match entry.form {
        PlanForm::Operators => {
            all.push(port(WRITE_INDICES, true, INTEGERS, &[Free]));
            [Is(entry.lane_rows); 2]
        }
        PlanForm::Primitives => [Free; 2],
    };
    if has_windows(spec) {
        all.push(port(KV_POSITIONS, true, INTEGERS, &[Free; 2]));
    }
    for names in cache {
        for (idx, (name, rows)) in names.iter().zip(rows).enumerate() {
            let shape = [Free, Is(spec.num_kv_heads), rows, Is(spec.head_dim)];
            all.push(port(name, idx == 0, element, &shape));
        }
    }
    all.push(port(LOGITS, false, &[DataType::F32], &[Free, Free, Is(spec.vocab_size)]));
    if features_len > 0 {
        all.push(port(FEATURES, false, &[DataType::F32], &[Free, Free, Is(features_len)]));
    }
    all
}

fn has_windows(spec: &DecoderSpec) -> bool {
    spec.windows.iter().any(Option::is_some)
}

fn facts(tensors: &[TensorInfo], spec: &DecoderSpec, entry: &PlanEntry) -> Result<InputFacts> {
    let integers = tensors.iter().filter(|tensor| tensor.is_input && INTEGERS.contains(&tensor.data_type));
    let mut types: Vec<DataType> = integers.map(|tensor| tensor.data_type).collect();
    types.dedup();
    let integer_bytes = match types[..] {
        [DataType::I64] => size_of::<i64>(),
        [DataType::I32] => size_of::<i32>(),
        _ => return Err(unsupported("has integers of different widths, expected one")),
    };
    let appends = entry.form == PlanForm::Primitives;
    Ok(InputFacts { integer_bytes, has_kv_positions: has_windows(spec), appends })
}

impl Expected {
    fn check(&self, tensors: &[TensorInfo]) -> Result<()> {
        let way = if self.is_input { "input" } else { "output" };
        let Some(found) = tensors.iter().find(|tensor| tensor.name == self.name) else {
            return Err(unsupported(&format!("has no {way} {:?}", self.name)));
        };
        let fits = |(found, expected): (&Option<usize>, &Dim)| match expected {
            Free => true,
            Is(len) => *found == Some(*len),
        };
        let has_shape =
            found.shape.len() == self.shape.len() && found.shape.iter().zip(&self.shape).all(fits);
        if found.is_input == self.is_input && self.types.contains(&found.data_type) && has_shape {
            return Ok(());
        }
        let shape: Vec<String> = self.shape.iter().map(|dim| dim.in_words()).collect();
        let types: Vec<String> = self.types.iter().map(|data_type| format!("{data_type:?}")).collect();
        let found_way = if found.is_input { "input" } else { "output" };
        Err(unsupported(&format!(
            "has the {found_way} {:?} {}, expected an {way} {} [{}]",
            self.name,
            type_and_shape(found),
            types.join(" or "),
            shape.join(", ")
        )))
    }
}

impl Dim {
    fn in_words(self) -> String {
        match self {
            Free => "any".into(),
            Is(len) => len.to_string(),
        }
    }
}

fn type_and_shape(tensor: &TensorInfo) -> String {
    let dims: Vec<String> =
        tensor.shape.iter().map(|dim| dim.map_or_else(|| "any".into(), |len| len.to_string())).collect();
    format!("{:?} [{}]", tensor.data_type, dims.join(", "))
}

fn unsupported(fact: &str) -> EngineError {
    EngineError::Unsupported(format!(
        "the TensorRT plan {fact}: build it again with this version, `takt build DIR --tensorrt --plans-only`"
    ))
}

#[cfg(test)]
mod tests;
