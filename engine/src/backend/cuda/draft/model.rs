//! A draft head's tensors, in device memory or in their mapped file, as a model's are.

use std::sync::Arc;

use memmap2::Mmap;
use takt_kernels_cu::{
    driver::{context::Context, memory::DeviceBuffer, stream::Stream},
    launch::{DeviceAddress, linear::WeightFormat},
};

use crate::{
    EngineError, Result, TokenId,
    backend::cuda::{
        GpuWeights,
        mapped::{WeightsFile, Whose},
        weights::{DeviceMatrix, Placement, WeightBytes},
    },
    draft::{DraftSource, DraftSpec, NUM_CAPTURED, target_tokens},
    quant::MatrixView,
    weights::{ReadWatch, WeightSource},
};

/// All weights of a head.
#[derive(Debug)]
pub(super) struct DraftModel {
    /// Its target's map of draft tokens, on the host: what is proposed is a handful.
    pub targets: Vec<TokenId>,
    pub tensors: Tensors,
    /// Holds what was copied.
    _buffer: DeviceBuffer,
    /// Holds what is read in place.
    _file: Option<WeightsFile>,
}

/// Where they are.
#[derive(Debug)]
pub(super) struct Tensors {
    /// Its own embedding, BF16 `[V, h]`.
    pub embedding: Option<DeviceAddress>,
    /// A norm for each captured feature `[H]`.
    pub fc_norms: Option<[DeviceAddress; NUM_CAPTURED]>,
    /// `[h, 3 · H]`.
    pub fc: DeviceMatrix,
    /// Of the embedding `[h]`.
    pub input_norm: DeviceAddress,
    /// Of what stands beside it `[h]`.
    pub hidden_norm: DeviceAddress,
    /// Q, K and V, of `2 · h` columns.
    pub qkv: [DeviceMatrix; 3],
    pub o: DeviceMatrix,
    pub post_attention_norm: DeviceAddress,
    /// Gate and up.
    pub gate_up: [DeviceMatrix; 2],
    pub down: DeviceMatrix,
    /// `[h]`.
    pub norm: DeviceAddress,
    /// `[Vd, h]`.
    pub lm_head: DeviceMatrix,
    /// Cosines and sines of every position.
    pub rope: (DeviceAddress, DeviceAddress),
}

impl DraftModel {
    /// The file of `source`, if the device is to read the head's weights there and can, and any of them begin where it can.
    ///
    /// # Errors
    /// [`EngineError::Backend`] when the device is lost; as [`Self::num_bytes`].
    pub fn file(
        context: &Context,
        spec: &DraftSpec,
        source: &dyn DraftSource,
        wanted: GpuWeights,
    ) -> Result<Option<WeightsFile>> {
        let Some(file) = WeightsFile::open_of(Whose::DraftHead, context, &HeadWeights(source), wanted)?
        else {
            return Ok(None);
        };
        let mapped = Self::num_bytes(spec, source, 1, Some(&file))?.mapped;
        // Nothing of it would be read, and all of it kept in memory.
        Ok(Some(file).filter(|file| file.is_of_use(mapped)))
    }

    /// Bytes of memory that the weights take, those in `file` by their own, with a position table of `num_positions`.
    ///
    /// # Errors
    /// [`EngineError::Tensor`] or [`EngineError::Unsupported`] for what does not hold.
    pub fn num_bytes(
        spec: &DraftSpec,
        source: &dyn DraftSource,
        num_positions: usize,
        file: Option<&WeightsFile>,
    ) -> Result<WeightBytes> {
        let source = HeadWeights(source);
        let mut placement = Placement::counting(&source, file);
        place(&mut placement, spec, num_positions)?;
        Ok(placement.num_bytes())
    }

    /// Copies every tensor of `spec` (validated) to the device, but those that it reads in `file`.
    ///
    /// # Errors
    /// As [`Self::num_bytes`]; [`EngineError::Capacity`] without memory.
    pub fn load(
        stream: &Stream,
        spec: &DraftSpec,
        source: &dyn DraftSource,
        num_positions: usize,
        file: Option<WeightsFile>,
    ) -> Result<Self> {
        let targets = target_tokens(spec, source)?;
        let WeightBytes { copied, .. } = Self::num_bytes(spec, source, num_positions, file.as_ref())?;
        let buffer = DeviceBuffer::new(stream.context(), copied, "the draft head's weights")?;
        let source = HeadWeights(source);
        let mut placement = Placement::copying((stream, &buffer), &source, file.as_ref());
        let tensors = place(&mut placement, spec, num_positions)?;
        if let Some(file) = &file {
            file.keep_in_memory();
        }
        Ok(Self { targets, tensors, _buffer: buffer, _file: file })
    }
}

fn place(placement: &mut Placement<'_>, spec: &DraftSpec, num_positions: usize) -> Result<Tensors> {
    let (h, f, q_dim, kv_dim) = (spec.hidden_size, spec.intermediate_size, spec.q_dim(), spec.kv_dim());
    let embedding = spec.own_embedding.then(|| own_embedding(placement, (spec.vocab_size, h))).transpose()?;
    let fc_norms = if spec.fc_norm {
        let mut norms = [DeviceAddress::NULL; NUM_CAPTURED];
        for (idx, norm) in norms.iter_mut().enumerate() {
            *norm = placement.vector(&format!("fc_norm.{idx}.weight"), spec.target_hidden_size)?;
        }
        Some(norms)
    } else {
        None
    };
    let mut linear = |name: &str, shape| placement.linear(name, shape, false);
    let tensors = Tensors {
        embedding,
        fc_norms,
        fc: linear("fc", (h, spec.features_len()))?,
        qkv: same_format([
            ("layer.self_attn.q_proj", linear("layer.self_attn.q_proj", (q_dim, 2 * h))?),
            ("layer.self_attn.k_proj", linear("layer.self_attn.k_proj", (kv_dim, 2 * h))?),
            ("layer.self_attn.v_proj", linear("layer.self_attn.v_proj", (kv_dim, 2 * h))?),
        ])?,
        o: linear("layer.self_attn.o_proj", (h, q_dim))?,
        gate_up: same_format([
            ("layer.mlp.gate_proj", linear("layer.mlp.gate_proj", (f, h))?),
            ("layer.mlp.up_proj", linear("layer.mlp.up_proj", (f, h))?),
        ])?,
        down: linear("layer.mlp.down_proj", (h, f))?,
        lm_head: linear("lm_head", (spec.draft_vocab_size, h))?,
        input_norm: placement.vector("layer.input_layernorm.weight", h)?,
        hidden_norm: placement.vector("layer.hidden_norm.weight", h)?,
        post_attention_norm: placement.vector("layer.post_attention_layernorm.weight", h)?,
        norm: placement.vector("norm.weight", h)?,
        rope: placement.rope(&spec.layer(), num_positions)?,
    };
    Ok(tensors)
}

/// One launch multiplies them, so one format has to do.
fn same_format<const N: usize>(matrices: [(&str, DeviceMatrix); N]) -> Result<[DeviceMatrix; N]> {
    let expected = matrices.first().map(|(_, matrix)| matrix.format);
    if let Some((name, odd)) = matrices.iter().find(|(_, matrix)| Some(matrix.format) != expected) {
        let fact = match expected {
            Some(expected) => format!("{} weights, those beside it are {expected}", odd.format),
            None => format!("{} weights", odd.format),
        };
        return Err(EngineError::Tensor { name: (*name).into(), fact });
    }
    Ok(matrices.map(|(_, matrix)| matrix))
}

fn own_embedding(placement: &mut Placement<'_>, shape: (usize, usize)) -> Result<DeviceAddress> {
    let matrix = placement.linear("embed_tokens", shape, false)?;
    match matrix.format {
        WeightFormat::Bf16 => Ok(matrix.weights.codes),
        other => Err(EngineError::Unsupported(format!("a draft head's {other} embedding, expected bf16"))),
    }
}

/// A head's tensors under their own names, for what places a model's.
struct HeadWeights<'a>(&'a dyn DraftSource);

impl WeightSource for HeadWeights<'_> {
    fn matrix(&self, name: &str) -> Result<MatrixView<'_>> {
        self.0.matrix(name)
    }

    fn vector(&self, name: &str) -> Result<Vec<f32>> {
        self.0.vector(name)
    }

    fn embedding(&self) -> Result<MatrixView<'_>> {
        self.0.matrix("embed_tokens")
    }

    fn lm_head(&self) -> Result<MatrixView<'_>> {
        self.0.matrix("lm_head")
    }

    fn watch(&self) -> &dyn ReadWatch {
        self.0.watch()
    }

    fn mapping(&self) -> Option<Arc<Mmap>> {
        self.0.mapping()
    }
}
