//! `config.json` → decoder description.

use takt_engine::spec::DecoderSpec;

use super::{
    config::Config,
    family::{Family, not_in_family},
    rope::{RopeShape, rope_spec},
};
use crate::Result;

/// Reads the architecture. `tied_embeddings` is what the configuration says; the tensors may show otherwise.
pub(super) fn decoder_spec(config: &Config) -> Result<DecoderSpec> {
    let family = Family::of(config)?;
    check_activation(config)?;
    let max_context = config.required_count("max_position_embeddings")?;
    let head_dim = head_dim(config, family)?;
    let biases = Biases::read(config, family)?;
    let spec = DecoderSpec {
        family: family.into(),
        num_layers: config.required_count("num_hidden_layers")?,
        hidden_size: config.required_count("hidden_size")?,
        intermediate_size: config.required_count("intermediate_size")?,
        num_q_heads: config.required_count("num_attention_heads")?,
        num_kv_heads: num_kv_heads(config, family)?,
        head_dim,
        vocab_size: config.required_count("vocab_size")?,
        max_context,
        norm_eps: config.number("rms_norm_eps")?.unwrap_or(1e-6) as f32,
        attention_scale: (head_dim as f64).powf(-0.5) as f32,
        rope: rope_spec(config, RopeShape { head_dim, max_position_embeddings: max_context })?,
        qk_norm: family == Family::Qwen3,
        qkv_bias: biases.qkv,
        o_bias: biases.o,
        mlp_bias: biases.mlp,
        tied_embeddings: config.flag("tie_word_embeddings")?.unwrap_or(false),
        windows: windows(config, family, max_context)?,
    };
    spec.validate()?;
    Ok(spec)
}

fn check_activation(config: &Config) -> Result<()> {
    match config.string("hidden_act")? {
        // transformers' default for all four families.
        None | Some("silu" | "swish") => Ok(()),
        Some(_) => Err(config.unsupported("hidden_act", "only silu is known")),
    }
}

fn head_dim(config: &Config, family: Family) -> Result<usize> {
    let (hidden_size, num_heads) =
        (config.required_count("hidden_size")?, config.required_count("num_attention_heads")?);
    let head_dim = match (config.count("head_dim")?, family) {
        (Some(head_dim), _) => head_dim,
        // Qwen3Config's default, whatever the hidden size.
        (None, Family::Qwen3) => 128,
        (None, _) if num_heads > 0 && hidden_size.is_multiple_of(num_heads) => hidden_size / num_heads,
        (None, _) => {
            let fact = format!(
                "hidden_size {hidden_size} does not divide among {num_heads} heads and head_dim is absent"
            );
            return Err(config.error(fact));
        }
    };
    // Checked before frequencies are computed from it; the upper limit is the decoder description's.
    if head_dim == 0 || head_dim > 1024 || !head_dim.is_multiple_of(2) {
        return Err(config.error(format!("head_dim is {head_dim}, expected an even number up to 1024")));
    }
    Ok(head_dim)
}

/// Absent and null mean different things in transformers: the family's default, and as many as query heads.
fn num_kv_heads(config: &Config, family: Family) -> Result<usize> {
    if let Some(found) = config.count("num_key_value_heads")? {
        return Ok(found);
    }
    let is_null = config.keys().any(|key| key == "num_key_value_heads");
    match family {
        Family::Mistral if !is_null => Ok(8),
        Family::Qwen2 | Family::Qwen3 if !is_null => Ok(32),
        _ => config.required_count("num_attention_heads"),
    }
}

struct Biases {
    qkv: bool,
    o: bool,
    mlp: bool,
}

impl Biases {
    fn read(config: &Config, family: Family) -> Result<Self> {
        let attention = config.flag("attention_bias")?.unwrap_or(false);
        let mlp = config.flag("mlp_bias")?.unwrap_or(false);
        if attention && !matches!(family, Family::Llama | Family::Qwen3) {
            return Err(not_in_family(config, family, "attention_bias"));
        }
        if mlp && family != Family::Llama {
            return Err(not_in_family(config, family, "mlp_bias"));
        }
        Ok(Self { qkv: attention || family == Family::Qwen2, o: attention, mlp })
    }
}

/// The attention window of each layer; empty when every layer sees the whole context.
fn windows(config: &Config, family: Family, max_context: usize) -> Result<Vec<Option<usize>>> {
    let num_layers = config.required_count("num_hidden_layers")?;
    let window = window_size(config, family)?;
    let first_window_layer = match family {
        Family::Qwen2 | Family::Qwen3 => config.count("max_window_layers")?.unwrap_or(28),
        Family::Llama | Family::Mistral => 0,
    };
    let slides = match config.strings("layer_types")? {
        Some(layer_types) => parse_layer_types(config, &layer_types, num_layers)?,
        None => {
            (0..num_layers.min(1 << 10)).map(|idx| window.is_some() && idx >= first_window_layer).collect()
        }
    };
    // Mistral applies its window to all layers whatever the list says; a list that says otherwise is another model.
    let is_uniform = slides.iter().all(|&slides| slides == window.is_some());
    if (window.is_none() && slides.contains(&true)) || (family == Family::Mistral && !is_uniform) {
        return Err(config.unsupported("layer_types", "it contradicts sliding_window"));
    }
    // A window as long as the context hides nothing.
    let window = window.filter(|&window| window < max_context);
    if window.is_none() || !slides.contains(&true) {
        return Ok(Vec::new());
    }
    Ok(slides.into_iter().map(|slides| window.filter(|_| slides)).collect())
}

fn window_size(config: &Config, family: Family) -> Result<Option<usize>> {
    let given = config.count("sliding_window")?;
    let is_null = given.is_none() && config.keys().any(|key| key == "sliding_window");
    // The default of the three configurations that have a window.
    let window = given.or((!is_null).then_some(4096));
    let switch = config.flag("use_sliding_window")?;
    match family {
        Family::Llama if given.is_some() => Err(not_in_family(config, family, "sliding_window")),
        Family::Llama | Family::Mistral if switch == Some(true) => {
            Err(not_in_family(config, family, "use_sliding_window"))
        }
        Family::Mistral if switch.is_some() && window.is_some() => {
            Err(config.unsupported("use_sliding_window", "it contradicts sliding_window"))
        }
        Family::Llama => Ok(None),
        Family::Mistral => Ok(window),
        Family::Qwen2 | Family::Qwen3 => Ok(window.filter(|_| switch == Some(true))),
    }
}

/// Which layers slide, from `layer_types`.
fn parse_layer_types(config: &Config, layer_types: &[&str], num_layers: usize) -> Result<Vec<bool>> {
    if layer_types.len() != num_layers {
        let found = layer_types.len();
        return Err(
            config.error(format!("layer_types names {found} layers, num_hidden_layers is {num_layers}"))
        );
    }
    let parse = |layer_type: &&str| match *layer_type {
        "full_attention" => Ok(false),
        "sliding_attention" => Ok(true),
        _ => Err(config.unsupported("layer_types", "known are full_attention and sliding_attention")),
    };
    layer_types.iter().map(parse).collect()
}
