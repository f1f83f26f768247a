//! The type of the cache: that of products, or E4M3 with a scale for each layer's keys and one for its values.
//!
//! Scales are powers of two that follow from a bound on what can occur, as those of quantized activations do (`activation`): behind an RMSNorm every
//! key and value has one. So nothing saturates, whatever the prompt, and a value is rounded by at most 1/16 of itself. New rows are quantized first
//! and read back: a token sees itself as later ones will, and how a prompt is cut into slices changes nothing.

use std::str::FromStr;

use serde::Serialize;
use takt_engine::{
    dir::PlanKv,
    kv::KvKind,
    quant::{WeightKind, e4m3},
    spec::DecoderSpec,
};

use super::{
    activation::{element_bound, fp8_scale, margin, rows_bound},
    graph::Value,
    options::Compute,
    port::ElementType,
    target::{Form, Target},
    writer::Writer,
};
use crate::{BuildError, Result};

/// The smallest scale beside products in F16: its least code is twice that type's least number.
const SMALLEST_F16_SCALE: f32 = 1.0 / 16_384.0;
/// The largest: 448 times a larger one is past what the type holds.
const LARGEST_F16_SCALE: f32 = 128.0;

/// What keys and values of the cache are stored as.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum KvType {
    /// The type of products, usually 16 bits.
    #[default]
    Plain,
    /// E4M3, a scale for each layer's keys and one for its values.
    Fp8,
}

impl KvType {
    /// Name on the command line and in the contract.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Plain => "plain",
            Self::Fp8 => "fp8",
        }
    }

    /// The elements of a cache beside products in `compute`.
    pub(super) fn element(self, compute: Compute) -> ElementType {
        match self {
            Self::Plain => compute.element(),
            Self::Fp8 => ElementType::F8E4M3,
        }
    }
}

impl From<PlanKv> for KvType {
    fn from(kv: PlanKv) -> Self {
        match kv {
            PlanKv::Plain => Self::Plain,
            PlanKv::Fp8 => Self::Fp8,
        }
    }
}

impl FromStr for KvType {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        [Self::Plain, Self::Fp8]
            .into_iter()
            .find(|kv| kv.name() == text)
            .ok_or_else(|| format!("unknown cache {text:?}: expected plain or fp8"))
    }
}

/// What is asked for, and what an engine has.
#[derive(Debug, Clone, Copy)]
pub(crate) struct WantedCache {
    /// `None` for what the engine has, as far as target and form take it.
    pub kv: Option<KvType>,
    /// `None` for the newest that the target takes, or primitives for a cache of 8 bits that is asked for.
    pub form: Option<Form>,
    /// The engine's own.
    pub of_engine: KvKind,
}

/// How the cache is written, and in which form.
///
/// # Errors
/// [`BuildError::Unsupported`] for a cache that the form or the target does not take, saying what does.
pub(crate) fn choose_cache(target: &Target, newest: Form, wanted: WantedCache) -> Result<(Form, KvType)> {
    let fault = fault_of_fp8(target);
    let form = match (wanted.form, wanted.kv) {
        (Some(form), _) => form,
        (None, Some(KvType::Fp8)) => Form::Primitives,
        (None, _) => newest,
    };
    match (wanted.kv, form) {
        (Some(KvType::Fp8), Form::Operators) => Err(BuildError::Unsupported(
            "an fp8 cache in form operators: what updates a cache in its place takes 16 bits; use form primitives, or a plain cache (--kv plain, of plans --plan-kv plain)".into(),
        )),
        (Some(KvType::Fp8), Form::Primitives) => match fault {
            Some(fault) => Err(BuildError::Unsupported(format!("an fp8 cache for {target}: {fault}; use a plain one (--kv plain, of plans --plan-kv plain)"))),
            None => Ok((form, KvType::Fp8)),
        },
        (None, Form::Primitives) if wanted.of_engine == KvKind::Fp8 && fault.is_none() => {
            Ok((form, KvType::Fp8))
        }
        _ => Ok((form, KvType::Plain)),
    }
}

/// Why the target has no cache in E4M3: for the reason it has no such weights.
fn fault_of_fp8(target: &Target) -> Option<String> {
    target.fault_of(WeightKind::Fp8)
}

/// What the user should know of a cache that is not as the engine's is.
pub(crate) fn cache_note(target: &Target, (form, kv): (Form, KvType), wanted: WantedCache) -> Option<String> {
    let own = wanted.of_engine;
    // What was asked for needs no explanation.
    if wanted.kv.is_some() || own == KvKind::Bf16 || kv == KvType::Fp8 {
        return None;
    }
    let why = match (own, fault_of_fp8(target), form) {
        (KvKind::Fp8, None, Form::Operators) => {
            "what updates a cache in its place takes no other; form primitives has an fp8 cache".to_owned()
        }
        (KvKind::Fp8, Some(fault), _) => fault,
        _ => "caches of 8-bit integers are not written".into(),
    };
    Some(format!(
        "the engine's cache is {own}, the models' has the type of products, which takes more memory: {why}"
    ))
}

impl Writer<'_> {
    /// Finds the scales of all layers, where the cache has some; before [`Self::attend`].
    pub(super) fn find_cache_scales(&mut self) -> Result<()> {
        if self.kv == KvType::Fp8 {
            let layers = 0..self.spec.num_layers;
            self.cache_scales =
                layers.map(|idx| self.layer_scales(&format!("model.layers.{idx}"))).collect::<Result<_>>()?;
        }
        Ok(())
    }

    /// The scales of a layer's keys and values: the smallest powers of two that take whatever can occur.
    fn layer_scales(&self, prefix: &str) -> Result<[f32; 2]> {
        let norm = self.tensors.vector(&format!("{prefix}.input_layernorm.weight"))?;
        let values = self.projection_bound(&format!("{prefix}.self_attn.v_proj"), &norm)?;
        let keys = self.key_bound(prefix, &norm)?;
        let scales = [keys, values].map(fp8_scale);
        if self.compute != Compute::F16 {
            return Ok(scales);
        }
        match scales.iter().find(|scale| **scale > LARGEST_F16_SCALE) {
            None => Ok(scales.map(|scale| scale.max(SMALLEST_F16_SCALE))),
            Some(scale) => Err(BuildError::Unsupported(format!(
                "an fp8 cache with products in f16: {prefix} takes a scale of {scale}, and {} times that is past 65,504; use bf16, or a plain cache (--kv plain, of plans --plan-kv plain)",
                e4m3::MAX
            ))),
        }
    }

    /// The largest magnitude of a rotated key: a rotation takes no element past the length of its pair.
    fn key_bound(&self, prefix: &str, norm: &[f32]) -> Result<f32> {
        let spec: &DecoderSpec = self.spec;
        let factor = spec.rope.attention_factor.abs();
        if spec.qk_norm {
            // No pair is longer than the whole head.
            let head = element_bound(&self.tensors.vector(&format!("{prefix}.self_attn.k_norm.weight"))?);
            return Ok(head * factor.max(1.0));
        }
        let bound = self.projection_bound(&format!("{prefix}.self_attn.k_proj"), norm)?;
        Ok(bound * (std::f32::consts::SQRT_2 * factor).max(1.0))
    }

    /// The largest magnitude of what a projection makes of the output of an RMSNorm with weights `norm`.
    fn projection_bound(&self, name: &str, norm: &[f32]) -> Result<f32> {
        let matrix = self.tensors.matrix(name)?;
        let bias = match self.spec.qkv_bias {
            true => self.tensors.vector(&format!("{name}.bias"))?,
            false => vec![0.0; matrix.num_rows],
        };
        Ok(rows_bound(&matrix, &bias, norm) * margin(matrix.kind()))
    }

    /// New rows as they are stored, which come out as `present`, and the past, both as products take them.
    pub(super) fn through_fp8_cache(
        &mut self,
        [past, present]: &[String; 2],
        new: &str,
        scale: f32,
    ) -> Result<[Value; 2]> {
        let factor = self.cache_factor(past, scale)?;
        let zero = self.fp8_zero()?;
        let new = self.graph.op("QuantizeLinear", present, &[new, &factor, &zero], &[]);
        Ok([self.read_fp8(past, &factor), self.read_fp8(&new, &factor)])
    }

    /// The first layer's past keys as products take them, before any layer is written: a shape is asked of those, since runtimes lack that of 8 bits.
    pub(super) fn first_past(&mut self, past: Value) -> Result<Value> {
        match self.cache_scales.first() {
            Some(&[scale, _]) => {
                let factor = self.cache_factor(&past, scale)?;
                Ok(self.read_fp8(&past, &factor))
            }
            None => Ok(past),
        }
    }

    /// The scale of `past` as a constant, made once.
    fn cache_factor(&mut self, past: &str, scale: f32) -> Result<Value> {
        let name = format!("{past}.scale");
        match self.graph.knows(&name) {
            true => Ok(name),
            false => self.scale_of_compute(&name, scale),
        }
    }

    /// `codes` times `factor`, made once.
    fn read_fp8(&mut self, codes: &str, factor: &str) -> Value {
        let name = format!("{codes}.from_fp8");
        match self.graph.knows(&name) {
            true => name,
            false => self.graph.op("DequantizeLinear", &name, &[codes, factor], &[]),
        }
    }
}
