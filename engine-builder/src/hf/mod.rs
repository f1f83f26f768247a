//! Front end for Hugging Face folders: Llama (2, 3.x), Mistral, Qwen2 (and 2.5), Qwen3.
//!
//! Whatever changes a model's meaning and is not known here is refused by name.

mod config;
mod family;
mod rope;
mod shards;
mod spec;
mod text;

use std::path::Path;

use takt_engine::{
    dir::{Part, Quantization, parts},
    kv::KvKind,
    quant::WeightKind,
    spec::DecoderSpec,
};

use crate::{
    BuildError, Result,
    checkpoint::{Checkpoint, Tensor, TensorSource},
};
use config::Config;
use shards::Shards;
pub(crate) use text::text_around_onnx;

/// What the weights of a folder are called: one file, or the index of several.
pub const WEIGHT_FILES: [&str; 2] = [shards::SINGLE_FILE, shards::INDEX_FILE];
const EMBEDDING: &str = "model.embed_tokens.weight";
const LM_HEAD: &str = "lm_head.weight";

/// Opens the checkpoint in `folder`: `config.json`, `tokenizer.json` and safetensors weights, one file or several.
///
/// # Errors
/// [`BuildError::Unsupported`] naming the setting or tensor that is not known; [`BuildError::Source`] for files that are
/// absent, damaged or contradict each other.
pub fn open(folder: &Path) -> Result<Checkpoint> {
    let config_path = folder.join("config.json");
    if !config_path.is_file() {
        let fact = "has no config.json, so it is not a Hugging Face checkpoint".into();
        return Err(BuildError::Source { path: folder.into(), fact });
    }
    let config = Config::read(&config_path)?;
    let mut spec = spec::decoder_spec(&config)?;
    let shards = Shards::open(folder)?;
    let tied = Tied::resolve(&spec, &shards);
    spec.tied_embeddings = matches!(tied, Tied::Under(_));
    refuse_unknown_tensors(&spec, &shards)?;
    let text = text::text_files(folder, &config)?;
    Ok(Checkpoint { spec, tensors: Box::new(HfTensors { shards, tied }), text })
}

/// Whether embedding and head are one tensor, as transformers 5 decides it.
#[derive(Debug)]
enum Tied {
    /// Two tensors.
    No,
    /// One, stored under this name.
    Under(&'static str),
}

impl Tied {
    fn resolve(spec: &DecoderSpec, shards: &Shards) -> Self {
        match (spec.tied_embeddings, shards.contains(EMBEDDING), shards.contains(LM_HEAD)) {
            (false, ..) => Self::No,
            // The configuration says tied, but the checkpoint has two different tensors: they are not.
            (true, true, true) if !shards.equal(EMBEDDING, LM_HEAD) => Self::No,
            (true, false, true) => Self::Under(LM_HEAD),
            (true, ..) => Self::Under(EMBEDDING),
        }
    }
}

struct HfTensors {
    shards: Shards,
    tied: Tied,
}

impl TensorSource for HfTensors {
    fn load(&self, name: &str, shape: &[usize]) -> Result<Tensor> {
        match self.tied {
            Tied::Under(stored) if name == EMBEDDING || name == LM_HEAD => self.shards.load(stored, shape),
            _ => self.shards.load(name, shape),
        }
    }

    fn contains(&self, name: &str) -> bool {
        match self.tied {
            Tied::Under(stored) if name == EMBEDDING || name == LM_HEAD => self.shards.contains(stored),
            _ => self.shards.contains(name),
        }
    }
}

/// A tensor that the architecture does not use means that the architecture is another one.
fn refuse_unknown_tensors(spec: &DecoderSpec, shards: &Shards) -> Result<()> {
    // With a head of another format than the embedding, so that the head is listed also when tied.
    let kinds = Quantization { weights: WeightKind::Bf16, lm_head: WeightKind::Fp8, kv: KvKind::Bf16 };
    let known: std::collections::HashSet<String> = parts(spec, &kinds)
        .into_iter()
        .map(|part| match part {
            Part::Matrix(part) => format!("{}.weight", part.name),
            Part::Vector(part) => part.name,
            Part::Tokens(part) => part.name,
        })
        .collect();
    match shards.names().find(|&name| !known.contains(name) && !is_derived(name)) {
        Some(name) => {
            let (name, family) = (name.into(), &spec.family);
            Err(BuildError::Tensor {
                name,
                fact: format!("is not part of the {family} architecture in config.json"),
            })
        }
        None => Ok(()),
    }
}

/// Tables that old versions of transformers saved although they follow from the configuration.
fn is_derived(name: &str) -> bool {
    ["rotary_emb.inv_freq", "rotary_emb.cos_cached", "rotary_emb.sin_cached"]
        .iter()
        .any(|end| name.ends_with(end))
}
