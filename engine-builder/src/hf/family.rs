//! The families of decoders, and which settings of `config.json` each knows.

use serde_json::Value;

use super::config::Config;
use crate::{BuildError, Result};

/// A supported `model_type`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Family {
    /// Llama 2 and 3.x, and the many models that use their architecture.
    Llama,
    /// Sliding window in every layer.
    Mistral,
    /// Q, K and V biases, optional sliding window in the upper layers (Qwen2 and Qwen2.5).
    Qwen2,
    /// RMSNorm on the heads of Q and K.
    Qwen3,
}

/// Settings that [`super::spec`] and [`super::text`] read.
const READ: &[&str] = &[
    "architectures",
    "attention_bias",
    "bos_token_id",
    "eos_token_id",
    "head_dim",
    "hidden_act",
    "hidden_size",
    "intermediate_size",
    "is_decoder",
    "is_encoder_decoder",
    "layer_types",
    "max_position_embeddings",
    "max_window_layers",
    "mlp_bias",
    "model_type",
    "num_attention_heads",
    "num_hidden_layers",
    "num_key_value_heads",
    "original_max_position_embeddings",
    "partial_rotary_factor",
    "quantization_config",
    "rms_norm_eps",
    "rope_parameters",
    "rope_scaling",
    "rope_theta",
    "sliding_window",
    "tie_word_embeddings",
    "use_sliding_window",
    "vocab_size",
];

/// Settings that do not change what the model computes at inference: bookkeeping, training, and the defaults of
/// transformers' `generate`, which old checkpoints carry here.
const HARMLESS: &[&str] = &[
    "_attn_implementation",
    "_attn_implementation_autoset",
    "_commit_hash",
    "_flash_attn_2_enabled",
    "_name_or_path",
    "attention_dropout",
    "attn_implementation",
    "bad_words_ids",
    "begin_suppress_tokens",
    "chunk_size_feed_forward",
    "decoder_start_token_id",
    "diversity_penalty",
    "do_sample",
    "dtype",
    "early_stopping",
    "embd_pdrop",
    "encoder_no_repeat_ngram_size",
    "exponential_decay_length_penalty",
    "finetuning_task",
    "forced_bos_token_id",
    "forced_eos_token_id",
    "gradient_checkpointing",
    "hidden_dropout",
    "id2label",
    "initializer_range",
    "is_llama_config",
    "label2id",
    "length_penalty",
    "max_length",
    "min_length",
    "model_max_length",
    "no_repeat_ngram_size",
    "num_beam_groups",
    "num_beams",
    "num_return_sequences",
    "output_attentions",
    "output_hidden_states",
    "output_scores",
    "pad_token_id",
    "prefix",
    "pretraining_tp",
    "problem_type",
    "remove_invalid_values",
    "repetition_penalty",
    "resid_pdrop",
    "return_dict",
    "return_dict_in_generate",
    "sep_token_id",
    "suppress_tokens",
    "task_specific_params",
    "temperature",
    "tokenizer_class",
    "top_k",
    "top_p",
    "torch_dtype",
    "torchscript",
    "transformers.js_config",
    "transformers_version",
    "typical_p",
    "unsloth_fixed",
    "unsloth_version",
    "use_bfloat16",
    "use_cache",
];

impl Family {
    const ALL: [Self; 4] = [Self::Llama, Self::Mistral, Self::Qwen2, Self::Qwen3];

    /// `model_type`.
    pub(super) fn name(self) -> &'static str {
        match self {
            Self::Llama => "llama",
            Self::Mistral => "mistral",
            Self::Qwen2 => "qwen2",
            Self::Qwen3 => "qwen3",
        }
    }

    fn architecture(self) -> &'static str {
        match self {
            Self::Llama => "LlamaForCausalLM",
            Self::Mistral => "MistralForCausalLM",
            Self::Qwen2 => "Qwen2ForCausalLM",
            Self::Qwen3 => "Qwen3ForCausalLM",
        }
    }

    /// Recognises the family and refuses every setting whose meaning is not known.
    pub(super) fn of(config: &Config) -> Result<Self> {
        let Some(model_type) = config.string("model_type")? else {
            return Err(config.error("has no model_type, expected llama, mistral, qwen2 or qwen3"));
        };
        let Some(family) = Self::ALL.into_iter().find(|family| family.name() == model_type) else {
            return Err(config.unsupported("model_type", "known are llama, mistral, qwen2 and qwen3"));
        };
        if config.strings("architectures")?.is_some_and(|found| found != [family.architecture()]) {
            return Err(
                config.unsupported("architectures", &format!("expected [\"{}\"]", family.architecture()))
            );
        }
        if config.value("quantization_config").is_some() {
            return Err(config.unsupported("quantization_config", "give the unquantized checkpoint"));
        }
        refuse_unknown(config)?;
        Ok(family)
    }
}

/// An unknown setting may change the model's meaning, so it is refused unless it is plainly off.
fn refuse_unknown(config: &Config) -> Result<()> {
    let is_off = |value: &Value| match value {
        Value::Bool(flag) => !flag,
        Value::Array(items) => items.is_empty(),
        Value::Object(items) => items.is_empty(),
        _ => false,
    };
    for key in config.keys() {
        let is_known = READ.contains(&key) || HARMLESS.contains(&key);
        if !is_known && config.value(key).is_some_and(|value| !is_off(value)) {
            let hint = "this setting is unknown; remove it if it does not change what the model computes";
            return Err(config.unsupported(key, hint));
        }
    }
    for key in ["is_encoder_decoder", "is_decoder"] {
        if config.flag(key)? == Some(true) {
            return Err(config.unsupported(key, "only decoder-only language models are known"));
        }
    }
    Ok(())
}

impl From<Family> for String {
    fn from(family: Family) -> Self {
        family.name().into()
    }
}

/// Error for a setting that the family does not have.
pub(super) fn not_in_family(config: &Config, family: Family, key: &str) -> BuildError {
    config.unsupported(key, &format!("{} models have no such setting", family.name()))
}
