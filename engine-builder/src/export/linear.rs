//! Linear layers: weights in the engine's own bytes, dequantized in the graph as TensorRT recognises it, then transposed and multiplied.
//!
//! | kind | in the graph |
//! |---|---|
//! | `bf16` | `W` |
//! | `fp8` | `DequantizeLinear(W, scale[N], axis 0)` |
//! | `nvfp4` | `DequantizeLinear(W, DequantizeLinear(scale, scale_2), axis 1, block 16)` |
//! | `int4` | `DequantizeLinear(W, scale, axis 1, block 128 or what divides the columns)` |
//!
//! Each is followed by a cast to the type that is computed in, and a transposition, both of which TensorRT takes into the product.

use half::f16;
use takt_engine::quant::{INT4_GROUP, MatrixData, MatrixView, NVFP4_BLOCK, WeightKind};

use super::{
    graph::{Attribute, Value},
    port::ElementType,
    target::Target,
    writer::Writer,
};
use crate::{BuildError, Result};

/// Rows that are written at a time where they have to be made.
const ROWS_AT_ONCE: usize = 256;
/// Blocks of 4-bit integers that TensorRT multiplies with.
const TENSORRT_INT4_BLOCKS: [usize; 2] = [128, 64];

impl Writer<'_> {
    /// `x · Wᵀ` for the matrix `name`, in the type that is computed in: `[…, K]` → `[…, N]`.
    pub(super) fn linear(&mut self, name: &str, x: &str) -> Result<Value> {
        let weight = self.weight(name)?;
        Ok(self.graph.op("MatMul", name, &[x, &weight], &[]))
    }

    /// [`Self::linear`] in 32 bits, with its bias where `has_bias`.
    pub(super) fn linear_f32(&mut self, name: &str, x: &str, has_bias: bool) -> Result<Value> {
        let product = self.linear(name, x)?;
        let product = self.widened(&product);
        if !has_bias {
            return Ok(product);
        }
        let bias_name = format!("{name}.bias");
        let values = self.tensors.vector(&bias_name)?;
        let bias = self.graph.floats(&bias_name, &[values.len()], &values)?;
        Ok(self.graph.op("Add", &format!("{name}.biased"), &[&product, &bias], &[]))
    }

    /// The transposed weights of `name`, `[K, N]`, in the type that is computed in.
    fn weight(&mut self, name: &str) -> Result<Value> {
        let transposed = format!("{name}.transposed");
        if self.graph.knows(&transposed) {
            return Ok(transposed);
        }
        let values = self.dequantized(name)?;
        Ok(self.graph.op("Transpose", &transposed, &[&values], &[("perm", Attribute::Ints(vec![1, 0]))]))
    }

    /// `[N, K]` in the type that is computed in.
    fn dequantized(&mut self, name: &str) -> Result<Value> {
        let tensors = self.tensors;
        let matrix = tensors.matrix(name)?;
        let shape = [matrix.num_rows, matrix.num_cols];
        let (weight, scale) = (format!("{name}.weight"), format!("{name}.weight_scale"));
        let values = match matrix.data {
            MatrixData::Bf16(bytes) => return self.bf16_matrix(name, shape, bytes),
            MatrixData::Fp8 { codes, scales } => {
                let w = self.stored(&weight, ElementType::F8E4M3, &shape, codes)?;
                let s = self.stored(&scale, ElementType::F32, &shape[..1], scales)?;
                self.dequantize(name, [&w, &s], 0, None)
            }
            MatrixData::Nvfp4 { packed, scales, scale_2 } => {
                let blocks = [shape[0], shape[1] / NVFP4_BLOCK];
                let w = self.stored(&weight, ElementType::F4E2M1, &shape, packed)?;
                let s8 = self.stored(&scale, ElementType::F8E4M3, &blocks, scales)?;
                let s2 = self.graph.floats(&format!("{name}.weight_scale_2"), &[], &[scale_2])?;
                let s = self.graph.op("DequantizeLinear", &format!("{name}.block_scales"), &[&s8, &s2], &[]);
                self.dequantize(name, [&w, &s], 1, Some(NVFP4_BLOCK))
            }
            MatrixData::Int4 { packed, .. } => {
                let w = self.stored(&weight, ElementType::I4, &shape, packed)?;
                let (s, block) = self.int4_scales(name, &matrix)?;
                self.dequantize(name, [&w, &s], 1, Some(block))
            }
        };
        let exact = matrix.kind() == WeightKind::Int4 && self.int4_scale_type() == self.compute.element();
        Ok(if exact { values } else { self.narrowed(&values) })
    }

    fn dequantize(
        &mut self,
        name: &str,
        [weight, scale]: [&str; 2],
        axis: i64,
        block: Option<usize>,
    ) -> Value {
        let mut attributes = vec![("axis", Attribute::Int(axis))];
        attributes.extend(block.map(|block| ("block_size", Attribute::Int(block as i64))));
        self.graph.op("DequantizeLinear", &format!("{name}.dequantized"), &[weight, scale], &attributes)
    }

    /// A matrix of brain floats, which a tied head shares with the embedding.
    pub(super) fn bf16_matrix(&mut self, name: &str, shape: [usize; 2], bytes: &[u8]) -> Result<Value> {
        let is_embedding = name == super::tensors::LM_HEAD && self.head_is_embedding;
        let stored = format!("{}.weight", if is_embedding { super::tensors::EMBEDDING } else { name });
        let weight = match self.graph.knows(&stored) {
            true => stored,
            false => self.stored(&stored, ElementType::Bf16, &shape, bytes)?,
        };
        if self.compute.element() == ElementType::Bf16 {
            return Ok(weight);
        }
        let to = self.compute.element() as i64;
        Ok(self.graph.op("Cast", &format!("{name}.weight.cast"), &[&weight], &[("to", Attribute::Int(to))]))
    }

    /// A tensor of the engine, byte for byte.
    fn stored(&mut self, name: &str, element: ElementType, shape: &[usize], bytes: &[u8]) -> Result<Value> {
        let value = self.graph.constant(name, element, shape, bytes)?;
        self.tensors.watch().after_read(bytes);
        self.advanced(name)?;
        Ok(value)
    }

    /// The type of INT4's scales: as they are stored where that is what is computed in, otherwise in 32 bits, so that the product is rounded once.
    fn int4_scale_type(&self) -> ElementType {
        match self.compute.element() {
            ElementType::F16 => ElementType::F16,
            _ => ElementType::F32,
        }
    }

    /// The scales of `[N, K / block]` and their block: the engine's groups of 128, halved as often as the columns take to be divided.
    fn int4_scales(&mut self, name: &str, matrix: &MatrixView<'_>) -> Result<(Value, usize)> {
        let MatrixData::Int4 { scales, .. } = matrix.data else {
            return Err(BuildError::Tensor { name: name.into(), fact: "is not int4".into() });
        };
        let (num_rows, num_cols) = (matrix.num_rows, matrix.num_cols);
        let block = int4_block(num_cols);
        let (element, num_groups) = (self.int4_scale_type(), num_cols.div_ceil(INT4_GROUP));
        let row = |row: usize| {
            let groups = &scales[2 * row * num_groups..2 * (row + 1) * num_groups];
            let group_of = move |block_idx: usize| 2 * (block_idx * block / INT4_GROUP);
            (0..num_cols / block).flat_map(move |block_idx| {
                let raw = [groups[group_of(block_idx)], groups[group_of(block_idx) + 1]];
                match element {
                    ElementType::F16 => raw.to_vec(),
                    _ => f16::from_le_bytes(raw).to_f32().to_le_bytes().to_vec(),
                }
            })
        };
        let chunks = (0..num_rows)
            .step_by(ROWS_AT_ONCE)
            .map(|first| (first..num_rows.min(first + ROWS_AT_ONCE)).flat_map(row).collect::<Vec<u8>>());
        let name = format!("{name}.weight_scale");
        let value = self.graph.rows(&name, element, &[num_rows, num_cols / block], chunks)?;
        self.tensors.watch().after_read(scales);
        self.advanced(&name)?;
        Ok((value, block))
    }
}

/// Checks that `target` multiplies with `name` in int4, of `num_cols` input features.
///
/// # Errors
/// [`BuildError::Unsupported`] when no block of its divides them.
pub(super) fn check_int4(target: &Target, name: &str, num_cols: usize) -> Result<()> {
    if !target.is_tensorrt() || TENSORRT_INT4_BLOCKS.contains(&int4_block(num_cols)) {
        return Ok(());
    }
    let works: Vec<&str> = target.working_kinds().into_iter().filter(|kind| *kind != "int4").collect();
    Err(BuildError::Unsupported(format!(
        "{name} in int4 for {target}: {num_cols} input features, TensorRT takes blocks of 64 or 128 that divide them; build the engine with \
         --weights {}",
        works.join(" or ")
    )))
}

/// The largest power of two that divides `num_cols`, at most the group the engine has.
fn int4_block(num_cols: usize) -> usize {
    1 << num_cols.trailing_zeros().min(INT4_GROUP.trailing_zeros())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn blocks_of_int4_divide_the_columns_and_stay_within_a_group() {
        for (num_cols, block) in
            [(4096, 128), (64, 64), (192, 64), (96, 32), (160, 32), (128 * 3, 128), (66, 2)]
        {
            assert_eq!(int4_block(num_cols), block, "{num_cols}");
        }
    }
}
