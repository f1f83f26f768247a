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
mod tests {
    use serde_json::{Value, json};

    use super::*;

    fn rope(head_dim: usize, config: Value) -> Result<RopeSpec> {
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), config.to_string()).unwrap();
        let shape = RopeShape { head_dim, max_position_embeddings: 131_072 };
        rope_spec(&Config::read(file.path())?, shape)
    }

    /// Against `LlamaRotaryEmbedding(LlamaConfig(head_dim=…, max_position_embeddings=131072, rope_parameters=…))` of
    /// transformers 5.23.0 with torch 2.15.0: `inv_freq` printed with nine digits, and `attention_scaling`.
    fn assert_like_transformers(head_dim: usize, parameters: Value, inv_freq: &[f32], attention_factor: f32) {
        let found = rope(head_dim, json!({"rope_parameters": parameters})).unwrap();
        assert_eq!(found.inv_freq.len(), inv_freq.len());
        for (idx, (found, wanted)) in found.inv_freq.iter().zip(inv_freq).enumerate() {
            assert!(
                (found / wanted - 1.0).abs() < 2.5e-7,
                "{parameters}: pair {idx} is {found:e}, not {wanted:e}"
            );
        }
        assert!((found.attention_factor / attention_factor - 1.0).abs() < 1e-7, "{}", found.attention_factor);
    }

    #[test]
    fn linear_scaling_equals_transformers() {
        assert_like_transformers(
            16,
            json!({"rope_type": "linear", "rope_theta": 10000.0, "factor": 2.5}),
            &[
                0.400000006,
                0.1264911,
                0.0399999991,
                0.0126491114,
                0.00399999972,
                0.00126491114,
                0.000400000019,
                0.000126491112,
            ],
            1.0,
        );
    }

    #[test]
    fn llama3_scaling_equals_transformers() {
        let parameters = json!({"rope_type": "llama3", "rope_theta": 500000.0, "factor": 32.0, "low_freq_factor": 1.0,
            "high_freq_factor": 4.0, "original_max_position_embeddings": 8192});
        assert_like_transformers(
            64,
            parameters,
            &[
                1.0,
                0.663601279,
                0.440366626,
                0.292227834,
                0.193922758,
                0.128687382,
                0.0853971019,
                0.0566696189,
                0.0376060307,
                0.0249554086,
                0.0165604409,
                0.0109895291,
                0.00729266508,
                0.00483942125,
                0.00321144611,
                0.00129054801,
                0.000429556705,
                9.70828623e-05,
                1.94616387e-05,
                1.29147675e-05,
                8.57025589e-06,
                5.68723226e-06,
                3.77405445e-06,
                2.50446715e-06,
                1.66196742e-06,
                1.10288363e-06,
                7.31874934e-07,
                4.85673127e-07,
                3.22293289e-07,
                2.1387423e-07,
                1.41927202e-07,
                9.41830649e-08,
            ],
            1.0,
        );
    }

    #[test]
    fn yarn_scaling_equals_transformers() {
        let parameters = json!({"rope_type": "yarn", "rope_theta": 1000000.0, "factor": 4.0,
            "original_max_position_embeddings": 32768});
        assert_like_transformers(
            64,
            parameters,
            &[
                1.0,
                0.649381638,
                0.421696514,
                0.273841977,
                0.177827939,
                0.115478203,
                0.0749894157,
                0.0486967526,
                0.0316227786,
                0.0205352511,
                0.0133352149,
                0.00865964312,
                0.00515479548,
                0.0030431177,
                0.00177853031,
                0.00102661771,
                0.000583333371,
                0.000324690831,
                0.000175706868,
                9.12806499e-05,
                4.44569851e-05,
                2.88695483e-05,
                1.87473561e-05,
                1.21741887e-05,
                7.90569356e-06,
                5.13381246e-06,
                3.33380353e-06,
                2.16491094e-06,
                1.40585337e-06,
                9.1293532e-07,
                5.92843435e-07,
                3.84981632e-07,
            ],
            1.138_629_4,
        );
    }

    #[test]
    fn yarn_with_mscale_and_betas_equals_transformers() {
        let parameters = json!({"rope_type": "yarn", "rope_theta": 10000.0, "factor": 40.0,
            "original_max_position_embeddings": 4096, "mscale": 0.707, "mscale_all_dim": 1.1, "beta_fast": 16,
            "beta_slow": 2});
        assert_like_transformers(
            32,
            parameters,
            &[
                1.0,
                0.562341332,
                0.316227764,
                0.177827939,
                0.100000001,
                0.0562341288,
                0.0316227786,
                0.0143151497,
                0.00609999988,
                0.00233371649,
                0.000695701048,
                4.44569851e-05,
                2.49999994e-05,
                1.40585325e-05,
                7.90569447e-06,
                4.44569832e-06,
            ],
            0.896_873_4,
        );
    }

    #[test]
    fn yarn_without_truncation_equals_transformers() {
        let parameters = json!({"rope_type": "yarn", "rope_theta": 150000.0, "factor": 32.0,
            "original_max_position_embeddings": 4096, "truncate": false});
        assert_like_transformers(
            32,
            parameters,
            &[
                1.0,
                0.47478205,
                0.225418001,
                0.107024416,
                0.0508132726,
                0.0193350017,
                0.00679495931,
                0.00209379266,
                0.000456483918,
                3.83088118e-05,
                1.8188337e-05,
                8.63549576e-06,
                4.09997847e-06,
                1.94659629e-06,
                9.24208962e-07,
                4.38797855e-07,
            ],
            1.346_573_6,
        );
    }

    #[test]
    fn yarn_with_its_own_attention_factor_equals_transformers() {
        let parameters = json!({"rope_type": "yarn", "rope_theta": 10000.0, "factor": 8.0,
            "original_max_position_embeddings": 2048, "attention_factor": 0.8});
        assert_like_transformers(
            32,
            parameters,
            &[
                1.0,
                0.562341332,
                0.316227764,
                0.177827939,
                0.100000001,
                0.0492048636,
                0.0237170849,
                0.0111142462,
                0.00499999989,
                0.00210877997,
                0.000790569466,
                0.000222284929,
                0.000125000006,
                7.02926627e-05,
                3.95284733e-05,
                2.22284925e-05,
            ],
            0.8,
        );
    }

    #[test]
    fn the_old_form_means_the_same_as_the_new_one() {
        let new = json!({"rope_parameters": {"rope_type": "linear", "rope_theta": 5000.0, "factor": 3.0}});
        for old in [
            json!({"rope_theta": 5000.0, "rope_scaling": {"type": "linear", "factor": 3.0}}),
            json!({"rope_theta": 5000, "rope_scaling": {"rope_type": "linear", "factor": 3}, "rope_parameters": null}),
        ] {
            assert_eq!(rope(16, new.clone()).unwrap(), rope(16, old).unwrap());
        }
        assert_eq!(
            rope(8, json!({})).unwrap(),
            rope(8, json!({"rope_theta": 10000.0, "rope_scaling": null})).unwrap()
        );
    }

    #[test]
    fn a_base_or_factor_that_makes_no_sense_is_refused() {
        for parameters in [
            json!({"rope_type": "default", "rope_theta": 0.5}),
            json!({"rope_type": "yarn", "factor": -4.0}),
            json!({"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 4.0, "high_freq_factor": 1.0}),
            json!({"rope_type": "default", "factor": 8.0}),
        ] {
            assert!(rope(16, json!({"rope_parameters": parameters.clone()})).is_err(), "{parameters}");
        }
    }
}
