//! A weight matrix as it lies in the mapped file.

use std::ops::Range;

use half::{bf16, f16};

use super::{WeightKind, e2m1, e4m3};

/// Block of NVFP4, in columns.
pub const NVFP4_BLOCK: usize = 16;
/// Group of INT4, in columns; the last group of a row may be shorter.
pub const INT4_GROUP: usize = 128;

/// A `[num_rows, num_cols]` weight matrix in one of the formats; bytes are little-endian and need no alignment.
#[derive(Debug, Clone, Copy)]
pub struct MatrixView<'a> {
    /// Output features N.
    pub num_rows: usize,
    /// Input features K.
    pub num_cols: usize,
    /// The stored bytes.
    pub data: MatrixData<'a>,
}

/// Stored bytes of a matrix; layouts in [`crate::quant`].
#[derive(Debug, Clone, Copy)]
pub enum MatrixData<'a> {
    /// BF16 `[N, K]`.
    Bf16(&'a [u8]),
    /// Codes `[N, K]` and F32 row scales `[N]`.
    Fp8 {
        /// E4M3 codes.
        codes: &'a [u8],
        /// F32 little-endian.
        scales: &'a [u8],
    },
    /// Packed codes `[N, K/2]`, E4M3 block scales `[N, K/16]`, one F32 scale.
    Nvfp4 {
        /// Two E2M1 codes a byte, even column low.
        packed: &'a [u8],
        /// E4M3 codes.
        scales: &'a [u8],
        /// Global scale.
        scale_2: f32,
    },
    /// Packed codes `[N, K/2]` and F16 group scales `[N, ⌈K/128⌉]`.
    Int4 {
        /// Two two's-complement nibbles a byte, even column low.
        packed: &'a [u8],
        /// F16 little-endian.
        scales: &'a [u8],
    },
}

impl<'a> MatrixView<'a> {
    /// The stored bytes of `rows`: codes, then scales (none for bf16). Rows lie within the matrix and byte lengths hold: callers have checked them.
    pub(crate) fn bytes_of(&self, rows: Range<usize>) -> [&'a [u8]; 2] {
        let k = self.num_cols;
        let of = |bytes: &'a [u8], row_bytes: usize| &bytes[rows.start * row_bytes..rows.end * row_bytes];
        match self.data {
            MatrixData::Bf16(values) => [of(values, 2 * k), &[]],
            MatrixData::Fp8 { codes, scales } => [of(codes, k), of(scales, 4)],
            MatrixData::Nvfp4 { packed, scales, .. } => [of(packed, k / 2), of(scales, k / NVFP4_BLOCK)],
            MatrixData::Int4 { packed, scales } => {
                [of(packed, k / 2), of(scales, 2 * k.div_ceil(INT4_GROUP))]
            }
        }
    }

    /// The format.
    #[must_use]
    pub fn kind(&self) -> WeightKind {
        match self.data {
            MatrixData::Bf16(_) => WeightKind::Bf16,
            MatrixData::Fp8 { .. } => WeightKind::Fp8,
            MatrixData::Nvfp4 { .. } => WeightKind::Nvfp4,
            MatrixData::Int4 { .. } => WeightKind::Int4,
        }
    }

    /// Writes the values of row `row_idx` to `out` `[num_cols]`: the scalar oracle of every kernel.
    ///
    /// # Panics
    /// When `row_idx` or `out` do not match the shape; callers pass validated views.
    pub fn dequantize_row(&self, row_idx: usize, out: &mut [f32]) {
        let k = self.num_cols;
        assert!(
            row_idx < self.num_rows && out.len() == k,
            "row {row_idx} of {} into {} values",
            self.num_rows,
            out.len()
        );
        match self.data {
            MatrixData::Bf16(bytes) => {
                let row = &bytes[row_idx * k * 2..(row_idx + 1) * k * 2];
                for (value, raw) in out.iter_mut().zip(row.chunks_exact(2)) {
                    *value = bf16::from_le_bytes([raw[0], raw[1]]).to_f32();
                }
            }
            MatrixData::Fp8 { codes, scales } => {
                let scale = f32_at(scales, row_idx);
                for (value, &code) in out.iter_mut().zip(&codes[row_idx * k..(row_idx + 1) * k]) {
                    *value = e4m3::decode(code) * scale;
                }
            }
            MatrixData::Nvfp4 { packed, scales, scale_2 } => {
                let row_scales = &scales[row_idx * (k / NVFP4_BLOCK)..];
                for (block_idx, block) in out.chunks_mut(NVFP4_BLOCK).enumerate() {
                    let scale = e4m3::decode(row_scales[block_idx]) * scale_2;
                    let first = row_idx * k + block_idx * NVFP4_BLOCK;
                    for (idx, value) in block.iter_mut().enumerate() {
                        *value = e2m1::VALUES[usize::from(nibble(packed, first + idx))] * scale;
                    }
                }
            }
            MatrixData::Int4 { packed, scales } => {
                let groups_per_row = k.div_ceil(INT4_GROUP);
                for (col_idx, value) in out.iter_mut().enumerate() {
                    let at = 2 * (row_idx * groups_per_row + col_idx / INT4_GROUP);
                    let scale = f16::from_le_bytes([scales[at], scales[at + 1]]).to_f32();
                    let code = nibble(packed, row_idx * k + col_idx);
                    *value = f32::from(((code << 4) as i8) >> 4) * scale;
                }
            }
        }
    }
}

/// Nibble `idx` of a packed row-major matrix with an even number of columns.
fn nibble(packed: &[u8], idx: usize) -> u8 {
    (packed[idx / 2] >> (4 * (idx % 2))) & 0xf
}

fn f32_at(bytes: &[u8], idx: usize) -> f32 {
    let at = idx * 4;
    f32::from_le_bytes([bytes[at], bytes[at + 1], bytes[at + 2], bytes[at + 3]])
}
