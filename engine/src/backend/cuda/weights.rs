//! A model's tensors as the engine directory stores them, in device memory or in its mapped file: nothing is repacked.

use takt_kernels_cu::{
    driver::{context::Context, host_memory::offset_in, memory::DeviceBuffer, stream::Stream},
    launch::{
        DeviceAddress,
        linear::{WeightFormat, Weights},
    },
};

use super::mapped::WeightsFile;
use crate::{
    EngineError, Result,
    dir::TENSOR_ALIGNMENT,
    quant::{MatrixData, MatrixView, WeightKind},
    spec::DecoderSpec,
    weights::WeightSource,
};

/// What every tensor begins at a multiple of.
const ALIGNMENT: usize = 256;
/// Bytes that are hashed, copied and given back together.
const PIECE_BYTES: usize = 4 << 20;

/// All weights of a decoder.
#[derive(Debug)]
pub(super) struct DeviceModel {
    /// BF16 `[V, D]`.
    pub embedding: DeviceAddress,
    pub layers: Vec<DeviceLayer>,
    /// `[D]`.
    pub final_norm: DeviceAddress,
    /// `[V, D]`.
    pub lm_head: DeviceMatrix,
    /// Cosines and sines `[lane_capacity, num_pairs]` of every position.
    pub rope: (DeviceAddress, DeviceAddress),
    /// Bytes of weights that one decode step reads.
    pub bytes_per_step: u64,
    /// Bytes of the mapped file that are read in place.
    pub mapped_bytes: usize,
    /// Holds what was copied.
    _buffer: DeviceBuffer,
    /// Holds what is read in place.
    _file: Option<WeightsFile>,
}

/// Bytes of weights by where they are.
#[derive(Debug, Clone, Copy)]
pub(super) struct WeightBytes {
    pub copied: usize,
    /// Read in the mapped file.
    pub mapped: usize,
}

/// A linear layer's matrix `[num_rows, num_cols]`.
#[derive(Debug, Clone, Copy)]
pub(super) struct DeviceMatrix {
    pub format: WeightFormat,
    pub weights: Weights,
    /// F32 `[num_rows]`; null without.
    pub bias: DeviceAddress,
    pub num_rows: usize,
    pub num_cols: usize,
}

/// One decoder layer.
#[derive(Debug)]
pub(super) struct DeviceLayer {
    pub input_norm: DeviceAddress,
    /// Q, K and V.
    pub qkv: [DeviceMatrix; 3],
    /// Of Q and K, `[d]` each; `None` without.
    pub qk_norm: Option<(DeviceAddress, DeviceAddress)>,
    pub o: DeviceMatrix,
    pub post_attention_norm: DeviceAddress,
    /// Gate and up.
    pub gate_up: [DeviceMatrix; 2],
    pub down: DeviceMatrix,
}

/// Gives tensors their places: counted first, then copied, unless they are read where they are.
pub(super) struct Placement<'a> {
    target: Option<(&'a Stream, &'a DeviceBuffer)>,
    source: &'a dyn WeightSource,
    file: Option<&'a WeightsFile>,
    end: usize,
    mapped: usize,
    bytes_per_step: u64,
}

impl DeviceModel {
    /// Bytes of memory that the weights take, those in `file` by their own.
    pub(super) fn num_bytes(
        spec: &DecoderSpec,
        source: &dyn WeightSource,
        lane_capacity: usize,
        file: Option<&WeightsFile>,
    ) -> Result<WeightBytes> {
        let mut placement = Placement::counting(source, file);
        placement.model(spec, lane_capacity)?;
        Ok(placement.num_bytes())
    }

    /// Copies every tensor that `spec` (validated) needs to the device, but those that it reads in `file`.
    pub(super) fn load(
        context: &Context,
        stream: &Stream,
        spec: &DecoderSpec,
        source: &dyn WeightSource,
        lane_capacity: usize,
        file: Option<WeightsFile>,
    ) -> Result<Self> {
        let WeightBytes { copied, .. } = Self::num_bytes(spec, source, lane_capacity, file.as_ref())?;
        let buffer = DeviceBuffer::new(context, copied, "weights")?;
        let mut placement = Placement::copying((stream, &buffer), source, file.as_ref());
        let tensors = placement.model(spec, lane_capacity)?;
        let Placement { mapped: mapped_bytes, bytes_per_step, .. } = placement;
        if let Some(file) = &file {
            file.keep_in_memory();
        }
        let Tensors { embedding, layers, final_norm, lm_head, rope } = tensors;
        Ok(Self {
            embedding,
            layers,
            final_norm,
            lm_head,
            rope,
            bytes_per_step,
            mapped_bytes,
            _buffer: buffer,
            _file: file,
        })
    }
}

struct Tensors {
    embedding: DeviceAddress,
    layers: Vec<DeviceLayer>,
    final_norm: DeviceAddress,
    lm_head: DeviceMatrix,
    rope: (DeviceAddress, DeviceAddress),
}

impl<'a> Placement<'a> {
    /// Only counts bytes, those in `file` by their own; addresses are null.
    pub(super) fn counting(source: &'a dyn WeightSource, file: Option<&'a WeightsFile>) -> Self {
        Self { target: None, source, file, end: 0, mapped: 0, bytes_per_step: 0 }
    }

    /// Copies what is not read in `file` into `buffer`, which is as large as was counted.
    pub(super) fn copying(
        (stream, buffer): (&'a Stream, &'a DeviceBuffer),
        source: &'a dyn WeightSource,
        file: Option<&'a WeightsFile>,
    ) -> Self {
        Self { target: Some((stream, buffer)), source, file, end: 0, mapped: 0, bytes_per_step: 0 }
    }

    /// Bytes placed so far.
    pub(super) fn num_bytes(&self) -> WeightBytes {
        WeightBytes { copied: self.end, mapped: self.mapped }
    }
}

impl Placement<'_> {
    fn model(&mut self, spec: &DecoderSpec, lane_capacity: usize) -> Result<Tensors> {
        let (embedding_view, head_view) = (self.source.embedding()?, self.source.lm_head()?);
        let (vocab_size, hidden) = (spec.vocab_size, spec.hidden_size);
        let embedding = self.matrix("model.embed_tokens", embedding_view, (vocab_size, hidden))?;
        if embedding.format != WeightFormat::Bf16 {
            let fact = format!("{} embedding, expected bf16", embedding.format);
            return Err(EngineError::Tensor { name: "model.embed_tokens".into(), fact });
        }
        // Only rows of it are read.
        self.bytes_per_step = 0;
        let lm_head = if is_same(&embedding_view, &head_view) {
            self.bytes_per_step += num_bytes(&head_view);
            embedding
        } else {
            self.matrix("lm_head", head_view, (vocab_size, hidden))?
        };
        let layers = (0..spec.num_layers).map(|idx| self.layer(spec, idx)).collect::<Result<_>>()?;
        let final_norm = self.vector("model.norm.weight", hidden)?;
        let rope = self.rope(spec, lane_capacity)?;
        Ok(Tensors { embedding: embedding.weights.codes, layers, final_norm, lm_head, rope })
    }

    fn layer(&mut self, spec: &DecoderSpec, layer_idx: usize) -> Result<DeviceLayer> {
        let (hidden, inner, q_dim, kv_dim) =
            (spec.hidden_size, spec.intermediate_size, spec.q_dim(), spec.kv_dim());
        let name = |part: &str| format!("model.layers.{layer_idx}.{part}");
        let attention = |part: &str| name(&format!("self_attn.{part}"));
        let mlp = |part: &str| name(&format!("mlp.{part}"));
        Ok(DeviceLayer {
            input_norm: self.vector(&name("input_layernorm.weight"), hidden)?,
            qkv: [
                self.linear(&attention("q_proj"), (q_dim, hidden), spec.qkv_bias)?,
                self.linear(&attention("k_proj"), (kv_dim, hidden), spec.qkv_bias)?,
                self.linear(&attention("v_proj"), (kv_dim, hidden), spec.qkv_bias)?,
            ],
            qk_norm: if spec.qk_norm {
                let q_norm = self.vector(&attention("q_norm.weight"), spec.head_dim)?;
                Some((q_norm, self.vector(&attention("k_norm.weight"), spec.head_dim)?))
            } else {
                None
            },
            o: self.linear(&attention("o_proj"), (hidden, q_dim), spec.o_bias)?,
            post_attention_norm: self.vector(&name("post_attention_layernorm.weight"), hidden)?,
            gate_up: [
                self.linear(&mlp("gate_proj"), (inner, hidden), spec.mlp_bias)?,
                self.linear(&mlp("up_proj"), (inner, hidden), spec.mlp_bias)?,
            ],
            down: self.linear(&mlp("down_proj"), (hidden, inner), spec.mlp_bias)?,
        })
    }

    pub(super) fn linear(
        &mut self,
        name: &str,
        shape: (usize, usize),
        has_bias: bool,
    ) -> Result<DeviceMatrix> {
        let matrix = self.matrix(name, self.source.matrix(name)?, shape)?;
        let bias =
            if has_bias { self.vector(&format!("{name}.bias"), shape.0)? } else { DeviceAddress::NULL };
        Ok(DeviceMatrix { bias, ..matrix })
    }

    pub(super) fn matrix(
        &mut self,
        name: &str,
        view: MatrixView<'_>,
        shape: (usize, usize),
    ) -> Result<DeviceMatrix> {
        if (view.num_rows, view.num_cols) != shape {
            let fact = format!("shape [{}, {}], expected {shape:?}", view.num_rows, view.num_cols);
            return Err(EngineError::Tensor { name: name.into(), fact });
        }
        self.bytes_per_step += num_bytes(&view);
        let [codes, scales] = view.bytes_of(0..view.num_rows);
        let weights = Weights {
            codes: self.place(codes)?,
            scales: if scales.is_empty() { DeviceAddress::NULL } else { self.place(scales)? },
            global_scale: match view.data {
                MatrixData::Nvfp4 { scale_2, .. } => self.place(&scale_2.to_le_bytes())?,
                _ => DeviceAddress::NULL,
            },
        };
        let format = match view.kind() {
            WeightKind::Bf16 => WeightFormat::Bf16,
            WeightKind::Fp8 => WeightFormat::Fp8,
            WeightKind::Nvfp4 => WeightFormat::Nvfp4,
            WeightKind::Int4 => WeightFormat::Int4,
        };
        Ok(DeviceMatrix {
            format,
            weights,
            bias: DeviceAddress::NULL,
            num_rows: view.num_rows,
            num_cols: view.num_cols,
        })
    }

    pub(super) fn vector(&mut self, name: &str, len: usize) -> Result<DeviceAddress> {
        let values = self.source.vector(name)?;
        if values.len() != len {
            let fact = format!("{} values, expected {len}", values.len());
            return Err(EngineError::Tensor { name: name.into(), fact });
        }
        self.place_f32(&values)
    }

    /// As the CPU backend computes them: F32 products `position · inv_freq`.
    pub(super) fn rope(
        &mut self,
        spec: &DecoderSpec,
        lane_capacity: usize,
    ) -> Result<(DeviceAddress, DeviceAddress)> {
        let rope = &spec.rope;
        let table = |turn: fn(f32) -> f32| -> Vec<f32> {
            let angles =
                (0..lane_capacity).flat_map(|at| rope.inv_freq.iter().map(move |freq| at as f32 * freq));
            angles.map(|angle| turn(angle) * rope.attention_factor).collect()
        };
        Ok((self.place_f32(&table(f32::cos))?, self.place_f32(&table(f32::sin))?))
    }

    fn place_f32(&mut self, values: &[f32]) -> Result<DeviceAddress> {
        let bytes: Vec<u8> = values.iter().flat_map(|value| value.to_le_bytes()).collect();
        self.place(&bytes)
    }

    fn place(&mut self, bytes: &[u8]) -> Result<DeviceAddress> {
        if let Some(address) = self.in_file(bytes) {
            return Ok(address);
        }
        let start = self.end.next_multiple_of(ALIGNMENT);
        self.end = start
            .checked_add(bytes.len())
            .ok_or_else(|| EngineError::Capacity("weights exceed the address space".into()))?;
        let Some((stream, buffer)) = self.target else { return Ok(DeviceAddress::NULL) };
        let watch = self.source.watch();
        for (idx, piece) in bytes.chunks(PIECE_BYTES).enumerate() {
            watch.before_read(piece);
            stream.upload(piece, buffer, start + idx * PIECE_BYTES)?;
            watch.after_read(piece);
        }
        Ok(buffer.address().offset(start)?)
    }
}

impl Placement<'_> {
    /// Where the device reads `bytes` in the mapped file; `None` for what is none of it, or does not begin where kernels can load it. All of
    /// it is looked at first, as what is copied is.
    fn in_file(&mut self, bytes: &[u8]) -> Option<DeviceAddress> {
        let memory = self.file?.memory();
        // The file is mapped at a page's beginning, on both sides.
        let is_aligned = |offset: usize| offset.is_multiple_of(TENSOR_ALIGNMENT);
        if !offset_in(memory.bytes(), bytes).is_some_and(is_aligned) {
            return None;
        }
        let address = memory.address_of(bytes)?;
        self.mapped += bytes.len();
        if self.target.is_some() {
            bytes.chunks(PIECE_BYTES).for_each(|piece| self.source.watch().before_read(piece));
        }
        Some(address)
    }
}

/// Bytes of both position tables of `num_positions`, as they are placed.
pub(super) fn rope_bytes(spec: &DecoderSpec, num_positions: usize) -> usize {
    2 * placed_bytes(num_positions * spec.rope.inv_freq.len() * size_of::<f32>())
}

/// Bytes that a tensor of so many takes among others.
pub(crate) fn placed_bytes(num_bytes: usize) -> usize {
    num_bytes.next_multiple_of(ALIGNMENT)
}

fn num_bytes(view: &MatrixView<'_>) -> u64 {
    view.bytes_of(0..view.num_rows).iter().map(|bytes| bytes.len() as u64).sum()
}

/// Whether two bf16 matrices are one and the same memory.
fn is_same(a: &MatrixView<'_>, b: &MatrixView<'_>) -> bool {
    matches!((a.data, b.data), (MatrixData::Bf16(a), MatrixData::Bf16(b)) if std::ptr::eq(a, b))
}
