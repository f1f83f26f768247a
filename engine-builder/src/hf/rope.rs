//! Rotary embedding parameters → frequencies, as transformers 5 computes them (`modeling_rope_utils.py`).
//!
//! Arithmetic is F32 where transformers' tensors are and F64 where it uses Python floats, in the same order of operations,
//! so that frequencies agree to the last bit or two.

use takt_engine::spec::{RopePairing, RopeSpec};

use super::config::Config;
use crate::{BuildError, Result};

/// Base where a checkpoint gives none (`RotaryEmbeddingConfigMixin.default_theta`).
const DEFAULT_THETA: f64 = 10_000.0;

/// What the frequencies depend on beside the RoPE parameters.
#[derive(Debug, Clone, Copy)]
pub(super) struct RopeShape {
    pub(super) head_dim: usize,
    pub(super) max_position_embeddings: usize,
}

/// Reads `rope_parameters` (transformers 5) or `rope_theta` and `rope_scaling` (transformers 4).
pub(super) fn rope_spec(config: &Config, shape: RopeShape) -> Result<RopeSpec> {
    let parameters = match (config.object("rope_scaling")?, config.object("rope_parameters")?) {
        (Some(_), Some(_)) => {
            return Err(config.unsupported("rope_scaling", "rope_parameters is given too; keep one of them"));
        }
        (scaling, parameters) => scaling.or(parameters),
    };
    let kind = match &parameters {
        Some(parameters) => rope_type(parameters)?,
        None => "default".into(),
    };
    check_partial(config)?;
    let outer_theta = theta(config)?.unwrap_or(DEFAULT_THETA);
    let Some(parameters) = parameters else {
        return Ok(spec(outer_theta, "default", plain_frequencies(outer_theta, shape.head_dim), 1.0));
    };
    check_partial(&parameters)?;
    check_keys(&parameters, &kind)?;
    let theta = theta(&parameters)?.unwrap_or(outer_theta);
    let plain = plain_frequencies(theta, shape.head_dim);
    // A top-level value wins, as in transformers' `standardize_rope_params`.
    let original = match config.count("original_max_position_embeddings")? {
        Some(original) => original,
        None => {
            parameters.count("original_max_position_embeddings")?.unwrap_or(shape.max_position_embeddings)
        }
    };
    match kind.as_str() {
        "default" => Ok(spec(theta, "default", plain, 1.0)),
        "linear" => {
            let factor = positive(&parameters, "factor")? as f32;
            Ok(spec(theta, "linear", plain.iter().map(|freq| freq / factor).collect(), 1.0))
        }
        "llama3" => Ok(spec(theta, "llama3", llama3(&parameters, &plain, original as f64)?, 1.0)),
        "yarn" => {
            let yarn = Yarn::read(&parameters, original as f64, shape)?;
            Ok(spec(theta, "yarn", yarn.frequencies(theta, shape.head_dim), yarn.attention_factor as f32))
        }
        other => {
            let fact = format!("RoPE scaling {other:?}; known are default, linear, llama3 and yarn");
            Err(BuildError::Unsupported(fact))
        }
    }
}

fn spec(theta: f64, scaling: &str, inv_freq: Vec<f32>, attention_factor: f32) -> RopeSpec {
    RopeSpec { theta, scaling: scaling.into(), inv_freq, attention_factor, pairing: RopePairing::Half }
}

fn theta(config: &Config) -> Result<Option<f64>> {
    match config.number("rope_theta")? {
        Some(theta) if !(theta.is_finite() && theta > 1.0) => {
            Err(config.unsupported("rope_theta", "expected a base above 1"))
        }
        theta => Ok(theta),
    }
}

/// `rope_type`, or `type` as older checkpoints call it.
fn rope_type(parameters: &Config) -> Result<String> {
    let (new, old) = (parameters.string("rope_type")?, parameters.string("type")?);
    if let (Some(new), Some(old)) = (new, old)
        && new != old
    {
        return Err(parameters.unsupported("type", &format!("rope_type says {new:?}; keep one of them")));
    }
    Ok(new.or(old).unwrap_or("default").into())
}

/// Only whole-head rotation is known for these families.
fn check_partial(config: &Config) -> Result<()> {
    match config.number("partial_rotary_factor")? {
        None | Some(1.0) => Ok(()),
        Some(_) => {
            Err(config.unsupported("partial_rotary_factor", "only rotation of the whole head is known"))
        }
    }
}

fn check_keys(parameters: &Config, kind: &str) -> Result<()> {
    const ALWAYS: &[&str] =
        &["rope_type", "type", "rope_theta", "original_max_position_embeddings", "partial_rotary_factor"];
    let more: &[&str] = match kind {
        "linear" => &["factor"],
        "llama3" => &["factor", "low_freq_factor", "high_freq_factor"],
        "yarn" => {
            &["factor", "attention_factor", "beta_fast", "beta_slow", "mscale", "mscale_all_dim", "truncate"]
        }
        _ => &[],
    };
    let known_kind = ["default", "linear", "llama3", "yarn"].contains(&kind);
    let unknown =
        |key: &&str| parameters.value(key).is_some() && !ALWAYS.contains(key) && !more.contains(key);
    match parameters.keys().find(unknown) {
        Some(key) if known_kind => {
            Err(parameters.unsupported(key, &format!("{kind} RoPE has no such parameter")))
        }
        _ => Ok(()),
    }
}

fn positive(parameters: &Config, key: &str) -> Result<f64> {
    let value = parameters.required_number(key)?;
    if value.is_finite() && value > 0.0 {
        return Ok(value);
    }
    Err(parameters.unsupported(key, "expected a positive number"))
}

/// `theta^(2i / dim)` for each pair i.
fn powers(theta: f64, dim: usize) -> impl Iterator<Item = f32> {
    // The power is taken in F64 of the F32 base and exponent: at most one bit in the last place from torch's F32 power.
    let base = f64::from(theta as f32);
    (0..dim).step_by(2).map(move |position| base.powf(f64::from(position as f32 / dim as f32)) as f32)
}

fn plain_frequencies(theta: f64, dim: usize) -> Vec<f32> {
    powers(theta, dim).map(|power| 1.0 / power).collect()
}

/// Llama 3.1: long wavelengths are stretched by `factor`, short ones kept, those between interpolated.
fn llama3(parameters: &Config, plain: &[f32], original: f64) -> Result<Vec<f32>> {
    let factor = positive(parameters, "factor")? as f32;
    let (low, high) = (positive(parameters, "low_freq_factor")?, positive(parameters, "high_freq_factor")?);
    if low >= high {
        return Err(parameters.unsupported("low_freq_factor", "expected less than high_freq_factor"));
    }
    let (longest, shortest) = ((original / low) as f32, (original / high) as f32);
    let scaled = |&freq: &f32| {
        let wavelength = (1.0 / freq) * std::f64::consts::TAU as f32;
        if wavelength > longest {
            return freq / factor;
        }
        if wavelength < shortest {
            return freq;
        }
        let smooth = ((1.0 / wavelength) * original as f32 - low as f32) / (high - low) as f32;
        (1.0 - smooth) * freq / factor + smooth * freq
    };
    Ok(plain.iter().map(scaled).collect())
}

/// YaRN (arXiv 2309.00071): interpolation of slow pairs, extrapolation of fast ones, a ramp between.
struct Yarn {
    factor: f64,
    attention_factor: f64,
    beta_fast: f64,
    beta_slow: f64,
    original: f64,
    truncate: bool,
}

impl Yarn {
    fn read(parameters: &Config, original: f64, shape: RopeShape) -> Result<Self> {
        let factor = match parameters.number("factor")? {
            Some(_) => positive(parameters, "factor")?,
            None => shape.max_position_embeddings as f64 / original,
        };
        let given = |key| parameters.number(key).map(|value| value.filter(|&value| value != 0.0));
        let attention_factor =
            match (parameters.number("attention_factor")?, given("mscale")?, given("mscale_all_dim")?) {
                (Some(attention_factor), ..) => attention_factor,
                (None, Some(mscale), Some(all_dim)) => {
                    temperature(factor, mscale) / temperature(factor, all_dim)
                }
                _ => temperature(factor, 1.0),
            };
        Ok(Self {
            factor,
            attention_factor,
            beta_fast: given("beta_fast")?.unwrap_or(32.0),
            beta_slow: given("beta_slow")?.unwrap_or(1.0),
            original,
            truncate: parameters.flag("truncate")?.unwrap_or(true),
        })
    }

    fn frequencies(&self, theta: f64, dim: usize) -> Vec<f32> {
        let (low, high) = self.ramp_bounds(theta, dim);
        let factor = self.factor as f32;
        let frequency = |(pair_idx, power): (usize, f32)| {
            let ramp = ((pair_idx as f32 - low as f32) / (high - low) as f32).clamp(0.0, 1.0);
            let keep = 1.0 - ramp;
            (1.0 / (factor * power)) * (1.0 - keep) + (1.0 / power) * keep
        };
        powers(theta, dim).enumerate().map(frequency).collect()
    }

    /// The pairs between which the ramp lies.
    fn ramp_bounds(&self, theta: f64, dim: usize) -> (f64, f64) {
        let dim_of_rotations = |num_rotations: f64| {
            (dim as f64 * (self.original / (num_rotations * std::f64::consts::TAU)).ln()) / (2.0 * theta.ln())
        };
        let (mut low, mut high) = (dim_of_rotations(self.beta_fast), dim_of_rotations(self.beta_slow));
        if self.truncate {
            (low, high) = (low.floor(), high.ceil());
        }
        let (low, high) = (low.max(0.0), high.min(dim as f64 - 1.0));
        // As in the original code, against a division by zero.
        if low == high { (low, high + 0.001) } else { (low, high) }
    }
}

/// YaRN's `0.1 · mscale · ln(factor) + 1`.
fn temperature(factor: f64, mscale: f64) -> f64 {
    if factor <= 1.0 { 1.0 } else { 0.1 * mscale * factor.ln() + 1.0 }
}

#[cfg(test)]
#[path = "rope_tests.rs"]
mod tests;
