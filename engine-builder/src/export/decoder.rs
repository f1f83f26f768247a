//! The target: embedding, layers, last norm, output head.

use takt_engine::{dir::Quantization, draft::NUM_CAPTURED, quant::MatrixData};

use super::{
    activation::{Bounds, element_bound},
    graph::{Attribute, Value},
    layer::LayerInputs,
    options::{Activations, Variant},
    port::{Dim, ElementType, Port},
    tensors::{EMBEDDING, LM_HEAD},
    writer::Writer,
};
use crate::{BuildError, Result};

/// Name of the tokens' input.
pub(super) const INPUT_IDS: &str = "input_ids";
/// Name of the input with each token's position.
pub(super) const POSITION_IDS: &str = "position_ids";
/// Name of the input that says of which tokens logits are wanted.
pub(super) const LOGITS_ROWS: &str = "logits_rows";
/// Name of the logits.
pub(super) const LOGITS: &str = "logits";
/// Name of the residual streams a draft head takes.
pub(super) const FEATURES: &str = "features";

/// What a decoder is written with.
#[derive(Debug, Clone, Copy)]
pub(super) struct DecoderInputs {
    pub quantization: Quantization,
    pub variant: Variant,
    /// Layers whose inputs come out as features.
    pub captured: Option<[usize; NUM_CAPTURED]>,
    /// Every layer's input comes out.
    pub hidden_states: bool,
}

impl Writer<'_> {
    /// Writes the whole decoder.
    pub(super) fn decoder(&mut self, decoder: &DecoderInputs) -> Result<()> {
        let (ids, positions) = self.token_inputs();
        self.find_cache_scales()?;
        let first_past = self.cache_inputs()?;
        let visibility = self.visibility(decoder.variant, &positions, &first_past)?;
        let rotation = self.rotation(&positions, self.capacity)?;
        let mut stream = self.embed(&ids)?;
        let mut streams = vec![stream.clone()];
        for layer_idx in 0..self.spec.num_layers {
            let prefix = format!("model.layers.{layer_idx}");
            let norm = format!("{prefix}.input_layernorm.weight");
            let normed = self.rms_norm(&format!("{prefix}.self_attn.normed"), &stream, &norm)?;
            let layer = LayerInputs {
                prefix: &prefix,
                layer_idx,
                kind: decoder.quantization.weights,
                rotation: &rotation,
                visibility: &visibility,
                bounds: self.bounds(&prefix, &[&norm])?,
            };
            stream = self.layer(&layer, &normed, &stream)?;
            streams.push(stream.clone());
        }
        let kept = self.chosen_rows(&stream)?;
        let norm = "model.norm.weight";
        let normed = self.rms_norm("model.normed", &kept, norm)?;
        self.head(&normed, norm, self.spec.vocab_size)?;
        self.streams_out(decoder, &streams)
    }

    /// Declares tokens and positions, `[batch, sequence]`.
    pub(super) fn token_inputs(&mut self) -> (Value, Value) {
        let shape: [Dim; 2] = ["batch".into(), "sequence".into()];
        let mut input = |name| self.graph.input(Port::new(name, ElementType::I64, &shape));
        (input(INPUT_IDS), input(POSITION_IDS))
    }

    /// Rows of the embedding in 32 bits, `[batch, sequence, D]`.
    pub(super) fn embed(&mut self, ids: &str) -> Result<Value> {
        let table = self.embedding()?;
        let rows = self.graph.op("Gather", "embedded", &[&table, ids], &[]);
        Ok(self.graph.op("Cast", "embedded.f32", &[&rows], &[("to", Attribute::Int(1))]))
    }

    /// The embedding, `[V, D]` brain floats: a head's is its target's where it has none of its own.
    fn embedding(&mut self) -> Result<Value> {
        if let Some(placed) = self.embedding_beside.take() {
            return Ok(self.graph.borrow(&placed));
        }
        let matrix = self.tensors.matrix(EMBEDDING)?;
        let MatrixData::Bf16(bytes) = matrix.data else {
            let fact = "is not bf16".into();
            return Err(BuildError::Tensor { name: EMBEDDING.into(), fact });
        };
        let table = format!("{EMBEDDING}.weight");
        self.graph.constant(&table, ElementType::Bf16, &[matrix.num_rows, matrix.num_cols], bytes)?;
        self.tensors.watch().after_read(bytes);
        self.advanced(&table)?;
        Ok(table)
    }

    /// The rows of `x` `[batch, sequence, …]` whose logits are wanted: TensorRT's callers name them, others get all.
    pub(super) fn chosen_rows(&mut self, x: &str) -> Result<Value> {
        if !self.target.is_tensorrt() {
            return Ok(x.to_owned());
        }
        let shape: [Dim; 2] = ["batch".into(), "logits".into()];
        let rows = self.graph.input(Port::new(LOGITS_ROWS, ElementType::I64, &shape));
        let rows = self.unsqueeze("logits_rows.column", &rows, 2)?;
        Ok(self.graph.op("GatherND", "chosen", &[x, &rows], &[("batch_dims", Attribute::Int(1))]))
    }

    /// The output head over `normed`, which an RMSNorm with weights `norm` made; logits come out in 32 bits.
    pub(super) fn head(&mut self, normed: &str, norm: &str, vocab_size: usize) -> Result<()> {
        let kind = self.tensors.matrix(LM_HEAD)?.kind();
        let bound = element_bound(&self.tensors.vector(norm)?);
        let x = self.operand(normed, kind, Some(bound))?;
        let logits = self.linear_f32(LM_HEAD, &x, false)?;
        self.graph.op("Identity", LOGITS, &[&logits], &[]);
        let rows: Dim = if self.target.is_tensorrt() { "logits".into() } else { "sequence".into() };
        self.graph.output(Port::new(LOGITS, ElementType::F32, &["batch".into(), rows, vocab_size.into()]));
        Ok(())
    }

    /// Bounds of the layer `prefix`, where activations are quantized; `norms` make what Q, K and V read.
    pub(super) fn bounds(&self, prefix: &str, norms: &[&str]) -> Result<Option<Bounds>> {
        if self.activations == Activations::Plain {
            return Ok(None);
        }
        let norms =
            norms.iter().map(|norm| self.tensors.vector(norm)).collect::<takt_engine::Result<Vec<_>>>()?;
        let biased = [self.spec.qkv_bias, self.spec.mlp_bias];
        Bounds::of(self.tensors, prefix, &norms, biased).map(Some)
    }

    /// Features for a head, and every stream for comparing.
    fn streams_out(&mut self, decoder: &DecoderInputs, streams: &[Value]) -> Result<()> {
        let width = self.spec.hidden_size;
        let mut out = |name: String, value: &str, width: usize| {
            self.graph.op("Identity", &name, &[value], &[]);
            let shape: [Dim; 3] = ["batch".into(), "sequence".into(), width.into()];
            self.graph.output(Port::new(name, ElementType::F32, &shape));
        };
        if decoder.hidden_states {
            for (layer_idx, stream) in streams.iter().enumerate() {
                out(format!("hidden_states.{layer_idx}"), stream, width);
            }
        }
        if let Some(captured) = decoder.captured {
            let missing = || {
                BuildError::Unsupported(format!(
                    "features of layers {captured:?}, the decoder has {}",
                    streams.len() - 1
                ))
            };
            let parts: Vec<&str> =
                captured.iter().filter_map(|&idx| streams.get(idx)).map(String::as_str).collect();
            if parts.len() != captured.len() {
                return Err(missing());
            }
            let shape: [Dim; 3] = ["batch".into(), "sequence".into(), (parts.len() * width).into()];
            self.graph.op("Concat", FEATURES, &parts, &[("axis", Attribute::Int(2))]);
            self.graph.output(Port::new(FEATURES, ElementType::F32, &shape));
        }
        Ok(())
    }
}
