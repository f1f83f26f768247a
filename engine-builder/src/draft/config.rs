//! `config.json` of a draft head, in the forms it is published in.

use std::path::Path;

use serde::Deserialize;
use takt_engine::{EngineError, Result, draft::NUM_CAPTURED};

/// What a published layer id means; both readings are in use, and nothing in a file tells them apart for sure.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LayerNumbering {
    /// The input of that layer (vLLM, SGLang's default).
    Inputs,
    /// The output of that layer, which is the input of the next (ModelOpt's `eagle_config`).
    Outputs,
}

/// A head's shape and habits.
#[derive(Debug, Clone, PartialEq)]
pub struct HeadConfig {
    /// Width h of the head.
    pub hidden_size: usize,
    /// Width H of the target's residual stream.
    pub target_hidden_size: usize,
    /// Width of the feed-forward layer.
    pub intermediate_size: usize,
    /// Query heads.
    pub num_q_heads: usize,
    /// Key/value heads.
    pub num_kv_heads: usize,
    /// Width of one head; not derived from the others where it is given.
    pub head_dim: usize,
    /// The target's vocabulary V.
    pub vocab_size: usize,
    /// Tokens the head can propose, Vd.
    pub draft_vocab_size: usize,
    /// Epsilon of every RMSNorm.
    pub norm_eps: f32,
    /// RoPE base.
    pub rope_theta: f64,
    /// Positions the head was trained for.
    pub max_positions: usize,
    /// The residual is the normed hidden (speculators' `norm_before_residual`).
    pub norm_before_residual: bool,
    /// The output after the last norm is fed back (EAGLE-3.1).
    pub norm_output: bool,
    /// Each captured feature has a norm of its own (EAGLE-3.1).
    pub fc_norm: bool,
    /// Layer ids as published, with the likelier reading; `None` for EAGLE-3's default.
    pub layer_ids: Option<([usize; NUM_CAPTURED], LayerNumbering)>,
}

#[derive(Debug, Deserialize)]
struct File {
    hidden_size: Option<usize>,
    target_hidden_size: Option<usize>,
    intermediate_size: Option<usize>,
    num_hidden_layers: Option<usize>,
    num_attention_heads: Option<usize>,
    num_key_value_heads: Option<usize>,
    head_dim: Option<usize>,
    vocab_size: Option<usize>,
    draft_vocab_size: Option<usize>,
    rms_norm_eps: Option<f32>,
    rope_theta: Option<f64>,
    rope_scaling: Option<serde_json::Value>,
    max_position_embeddings: Option<usize>,
    #[serde(default)]
    norm_before_residual: bool,
    #[serde(default)]
    norm_before_fc: bool,
    #[serde(default)]
    norm_output: bool,
    #[serde(default)]
    fc_norm: bool,
    eagle_aux_hidden_state_layer_ids: Option<Vec<usize>>,
    eagle_config: Option<EagleConfig>,
    transformer_layer_config: Option<Box<Self>>,
}

/// ModelOpt's.
#[derive(Debug, Deserialize)]
struct EagleConfig {
    eagle_aux_hidden_state_layer_ids: Option<Vec<usize>>,
}

impl HeadConfig {
    /// Reads `config.json`.
    ///
    /// # Errors
    /// [`EngineError::Io`], [`EngineError::Corrupt`] for what is no such file, [`EngineError::Unsupported`] for a head of another make.
    pub fn read(path: &Path) -> Result<Self> {
        let text = std::fs::read_to_string(path)
            .map_err(|source| EngineError::Io { path: path.to_owned(), source })?;
        let file: File = serde_json::from_str(&text).map_err(|error| corrupt(path, error.to_string()))?;
        Self::from_file(&file).map_err(|error| match error {
            EngineError::Input(fact) => corrupt(path, fact),
            other => other,
        })
    }

    fn from_file(file: &File) -> Result<Self> {
        // speculators nests the layer's shape.
        let layer = file.transformer_layer_config.as_deref().unwrap_or(file);
        let need = |value: Option<usize>, name: &str| {
            value.filter(|value| (1..1 << 24).contains(value)).ok_or_else(|| {
                EngineError::Input(format!(
                    "`{name}` is missing or out of range: is this a draft head's config?"
                ))
            })
        };
        let hidden_size = need(layer.hidden_size, "hidden_size")?;
        let num_q_heads = need(layer.num_attention_heads, "num_attention_heads")?;
        let num_kv_heads = need(layer.num_key_value_heads.or(Some(num_q_heads)), "num_key_value_heads")?;
        if !num_q_heads.is_multiple_of(num_kv_heads) {
            let fact = format!("{num_kv_heads} key/value heads do not divide {num_q_heads} query heads");
            return Err(EngineError::Input(fact));
        }
        let head_dim = need(layer.head_dim.or(Some(hidden_size / num_q_heads)), "head_dim")?;
        if !head_dim.is_multiple_of(2) {
            return Err(EngineError::Input(format!("head_dim is {head_dim}, RoPE needs an even one")));
        }
        match layer.num_hidden_layers {
            Some(num) if num > 1 => {
                return Err(EngineError::Unsupported(format!("a draft head of {num} layers: expected one")));
            }
            _ => {}
        }
        if file.norm_before_fc {
            return Err(EngineError::Unsupported(
                "a head with `norm_before_fc`: expected none, or `fc_norm`".into(),
            ));
        }
        if layer.rope_scaling.as_ref().is_some_and(|scaling| !is_plain_rope(scaling)) {
            return Err(EngineError::Unsupported("a draft head with RoPE scaling: expected none".into()));
        }
        let vocab_size = need(file.vocab_size.or(layer.vocab_size), "vocab_size")?;
        let norm_eps = layer.rms_norm_eps.unwrap_or(1e-6);
        let rope_theta = layer.rope_theta.unwrap_or(10_000.0);
        if !(norm_eps > 0.0 && norm_eps < 1.0 && rope_theta > 1.0 && rope_theta.is_finite()) {
            let fact = format!("rms_norm_eps {norm_eps} or rope_theta {rope_theta} is out of range");
            return Err(EngineError::Input(fact));
        }
        Ok(Self {
            hidden_size,
            target_hidden_size: need(file.target_hidden_size.or(Some(hidden_size)), "target_hidden_size")?,
            intermediate_size: need(layer.intermediate_size, "intermediate_size")?,
            num_q_heads,
            num_kv_heads,
            head_dim,
            vocab_size,
            draft_vocab_size: need(file.draft_vocab_size.or(Some(vocab_size)), "draft_vocab_size")?,
            norm_eps,
            rope_theta,
            max_positions: need(layer.max_position_embeddings.or(Some(2048)), "max_position_embeddings")?,
            norm_before_residual: file.norm_before_residual,
            norm_output: file.norm_output,
            fc_norm: file.fc_norm,
            layer_ids: layer_ids(file)?,
        })
    }

    /// The numbering the file suggests.
    #[must_use]
    pub fn numbering(&self) -> LayerNumbering {
        self.layer_ids.map_or(LayerNumbering::Inputs, |(_, numbering)| numbering)
    }

    /// The inputs of the target's layers that the head takes, for a target of `num_layers`, with published ids read as `numbering`.
    ///
    /// # Errors
    /// [`EngineError::Input`] for ids the target does not have.
    pub fn captured_as(&self, num_layers: usize, numbering: LayerNumbering) -> Result<[usize; NUM_CAPTURED]> {
        let inputs = match self.layer_ids {
            Some((ids, _)) if numbering == LayerNumbering::Outputs => ids.map(|id| id.saturating_add(1)),
            Some((ids, _)) => ids,
            // The reference's own choice.
            None => [2, num_layers / 2, num_layers.saturating_sub(3)],
        };
        match inputs.iter().find(|&&input| input > num_layers) {
            Some(input) => Err(EngineError::Input(format!(
                "the head takes features at the input of layer {input}, the target has {num_layers} layers: this head belongs to another \
                 target"
            ))),
            None => Ok(inputs),
        }
    }
}

fn layer_ids(file: &File) -> Result<Option<([usize; NUM_CAPTURED], LayerNumbering)>> {
    let in_eagle_config =
        file.eagle_config.as_ref().and_then(|config| config.eagle_aux_hidden_state_layer_ids.as_ref());
    let (ids, numbering) = match (in_eagle_config, &file.eagle_aux_hidden_state_layer_ids) {
        (Some(ids), _) => (ids, LayerNumbering::Outputs),
        (None, Some(ids)) => (ids, LayerNumbering::Inputs),
        (None, None) => return Ok(None),
    };
    let found = ids.len();
    let ids: [usize; NUM_CAPTURED] = ids.as_slice().try_into().map_err(|_| {
        EngineError::Unsupported(format!("features of {found} target layers: expected {NUM_CAPTURED}"))
    })?;
    Ok(Some((ids, numbering)))
}

fn is_plain_rope(scaling: &serde_json::Value) -> bool {
    let kind = scaling.get("rope_type").or_else(|| scaling.get("type")).and_then(|kind| kind.as_str());
    scaling.is_null() || kind == Some("default")
}

pub(super) fn corrupt(path: &Path, fact: String) -> EngineError {
    EngineError::Corrupt { path: path.to_owned(), fact }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(text: &str) -> Result<HeadConfig> {
        HeadConfig::from_file(&serde_json::from_str(text).unwrap())
    }

    const SHAPE: &str =
        r#""hidden_size": 64, "intermediate_size": 128, "num_attention_heads": 4, "vocab_size": 100"#;

    #[test]
    fn capture_layers_follow_the_numbering_they_are_published_in() {
        let plain = read(&format!("{{{SHAPE}}}")).unwrap();
        assert_eq!((plain.captured_as(36, plain.numbering()).unwrap(), plain.head_dim), ([2, 18, 33], 16));
        let ids = r#""eagle_aux_hidden_state_layer_ids": [1, 17, 33]"#;
        let top = read(&format!("{{{SHAPE}, {ids}}}")).unwrap();
        assert_eq!(top.captured_as(36, top.numbering()).unwrap(), [1, 17, 33]);
        assert_eq!(top.captured_as(36, LayerNumbering::Outputs).unwrap(), [2, 18, 34]);
        let modelopt = read(&format!("{{{SHAPE}, {ids}, \"eagle_config\": {{{ids}}}}}")).unwrap();
        assert_eq!(modelopt.captured_as(36, modelopt.numbering()).unwrap(), [2, 18, 34]);
        assert!(
            modelopt
                .captured_as(33, modelopt.numbering())
                .unwrap_err()
                .to_string()
                .contains("layer 34, the target has 33")
        );
    }

    #[test]
    fn heads_of_another_make_are_refused_by_name() {
        for (more, word) in [
            (r#""num_hidden_layers": 2"#, "2 layers"),
            (r#""norm_before_fc": true"#, "norm_before_fc"),
            (r#""rope_scaling": {"rope_type": "yarn"}"#, "RoPE scaling"),
            (r#""eagle_aux_hidden_state_layer_ids": [1, 2]"#, "features of 2"),
            (r#""num_key_value_heads": 3"#, "3 key/value heads"),
            (r#""head_dim": 15"#, "even"),
            (r#""rope_theta": 0"#, "rope_theta"),
        ] {
            let error = read(&format!("{{{SHAPE}, {more}}}")).unwrap_err().to_string();
            assert!(error.contains(word), "{error}");
        }
        assert!(read("{}").unwrap_err().to_string().contains("hidden_size"));
        let nested = format!("{{\"draft_vocab_size\": 50, \"transformer_layer_config\": {{{SHAPE}}}}}");
        assert_eq!(read(&nested).unwrap().draft_vocab_size, 50);
    }
}
