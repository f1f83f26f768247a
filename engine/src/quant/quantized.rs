//! A freshly quantized matrix in memory, and the one function that makes it.

use half::bf16;

use super::{INT4_GROUP, MatrixData, MatrixView, NVFP4_BLOCK, WeightKind, fp8, int4, nvfp4};
use crate::{EngineError, Result};

/// A `[num_rows, num_cols]` matrix in the layout of [`crate::quant`], owned.
#[derive(Debug, Clone, PartialEq)]
pub struct QuantizedMatrix {
    /// Output features N.
    pub num_rows: usize,
    /// Input features K.
    pub num_cols: usize,
    /// The format.
    pub kind: WeightKind,
    /// Bytes of `X.weight`.
    pub weight: Vec<u8>,
    /// Bytes of `X.weight_scale`; empty for bf16.
    pub scales: Vec<u8>,
    /// `X.weight_scale_2` of NVFP4.
    pub scale_2: Option<f32>,
}

impl QuantizedMatrix {
    /// The matrix as backends see it.
    #[must_use]
    pub fn view(&self) -> MatrixView<'_> {
        let data = match self.kind {
            WeightKind::Bf16 => MatrixData::Bf16(&self.weight),
            WeightKind::Fp8 => MatrixData::Fp8 { codes: &self.weight, scales: &self.scales },
            WeightKind::Int4 => MatrixData::Int4 { packed: &self.weight, scales: &self.scales },
            WeightKind::Nvfp4 => MatrixData::Nvfp4 {
                packed: &self.weight,
                scales: &self.scales,
                scale_2: self.scale_2.unwrap_or(1.0),
            },
        };
        MatrixView { num_rows: self.num_rows, num_cols: self.num_cols, data }
    }
}

/// Quantizes `values` `[num_rows, num_cols]` to `kind` on up to `num_threads` threads; the result does not depend on their
/// number.
///
/// # Errors
/// [`EngineError::Unsupported`] when the columns do not fit the format; [`EngineError::Input`] when a value is not finite
/// (with the count and the first place), or too large for the format.
pub fn quantize(
    kind: WeightKind,
    (num_rows, num_cols): (usize, usize),
    values: &[f32],
    num_threads: usize,
) -> Result<QuantizedMatrix> {
    check_values((num_rows, num_cols), values)?;
    check_columns(kind, num_cols)?;
    let amax = values.iter().fold(0.0f32, |max, value| max.max(value.abs()));
    check_range(kind, amax)?;
    let scale_2 = (kind == WeightKind::Nvfp4).then(|| nvfp4::global_scale(amax));
    let (weight_stride, scale_stride) = row_bytes(kind, num_cols);
    let mut matrix = QuantizedMatrix {
        num_rows,
        num_cols,
        kind,
        weight: vec![0; num_rows * weight_stride],
        scales: vec![0; num_rows * scale_stride],
        scale_2,
    };
    fill_rows(&mut matrix, values, num_threads, &|row, weight, scales| match kind {
        WeightKind::Bf16 => bf16_row(row, weight),
        WeightKind::Fp8 => fp8::quantize_row(row, weight, scales),
        WeightKind::Nvfp4 => nvfp4::quantize_row(row, scale_2.unwrap_or(1.0), weight, scales),
        WeightKind::Int4 => int4::quantize_row(row, weight, scales),
    });
    Ok(matrix)
}

/// Bytes of one row of `X.weight` and of `X.weight_scale`.
fn row_bytes(kind: WeightKind, num_cols: usize) -> (usize, usize) {
    match kind {
        WeightKind::Bf16 => (2 * num_cols, 0),
        WeightKind::Fp8 => (num_cols, 4),
        WeightKind::Nvfp4 => (num_cols / 2, num_cols / NVFP4_BLOCK),
        WeightKind::Int4 => (num_cols / 2, 2 * num_cols.div_ceil(INT4_GROUP)),
    }
}

fn check_values((num_rows, num_cols): (usize, usize), values: &[f32]) -> Result<()> {
    if num_rows.checked_mul(num_cols) != Some(values.len()) || values.is_empty() {
        return Err(EngineError::Input(format!("{} values for [{num_rows}, {num_cols}]", values.len())));
    }
    match non_finite(values) {
        Some(fact) => Err(EngineError::Input(fact)),
        None => Ok(()),
    }
}

/// What is wrong with `values`, if any is NaN or infinite: how many, where the first is and what it is.
#[must_use]
pub fn non_finite(values: &[f32]) -> Option<String> {
    let first = values.iter().position(|value| !value.is_finite())?;
    let count = values.iter().filter(|value| !value.is_finite()).count();
    let (value, total) = (values[first], values.len());
    Some(format!("{count} of {total} values are not finite; the first, at index {first}, is {value}"))
}

fn check_columns(kind: WeightKind, num_cols: usize) -> Result<()> {
    let multiple = kind.column_multiple();
    if num_cols.is_multiple_of(multiple) {
        return Ok(());
    }
    Err(EngineError::Unsupported(format!(
        "{kind} needs a multiple of {multiple} input features, found {num_cols}: use fp8 or bf16"
    )))
}

fn check_range(kind: WeightKind, amax: f32) -> Result<()> {
    let holds = match kind {
        WeightKind::Bf16 => bf16::from_f32(amax).is_finite(),
        WeightKind::Int4 => int4::group_scale(amax).is_finite(),
        WeightKind::Fp8 | WeightKind::Nvfp4 => true,
    };
    if holds {
        return Ok(());
    }
    Err(EngineError::Input(format!(
        "a value of magnitude {amax:e} is too large for {kind}: use fp8 or nvfp4"
    )))
}

fn bf16_row(row: &[f32], weight: &mut [u8]) {
    for (value, raw) in row.iter().zip(weight.chunks_exact_mut(2)) {
        raw.copy_from_slice(&bf16::from_f32(*value).to_le_bytes());
    }
}

/// What quantizes one row: its values → its bytes of `X.weight` and `X.weight_scale`.
type RowQuantizer<'a> = &'a (dyn Fn(&[f32], &mut [u8], &mut [u8]) + Sync);

/// Runs `quantize_row` on every row; each thread gets a contiguous share.
fn fill_rows(
    matrix: &mut QuantizedMatrix,
    values: &[f32],
    num_threads: usize,
    quantize_row: RowQuantizer<'_>,
) {
    let (num_rows, num_cols) = (matrix.num_rows, matrix.num_cols);
    let (weight_stride, scale_stride) = row_bytes(matrix.kind, num_cols);
    // A thread is worth starting for about a hundred thousand values.
    let num_shares = num_threads.min(values.len() / (1 << 17)).clamp(1, num_rows);
    let rows_per_share = num_rows.div_ceil(num_shares);
    std::thread::scope(|scope| {
        let (mut weight, mut scales) = (matrix.weight.as_mut_slice(), matrix.scales.as_mut_slice());
        for share in values.chunks(rows_per_share * num_cols) {
            let share_rows = share.len() / num_cols;
            let (share_weight, rest) = weight.split_at_mut(share_rows * weight_stride);
            weight = rest;
            let (share_scales, rest) = scales.split_at_mut(share_rows * scale_stride);
            scales = rest;
            let mut fill = move || {
                for (row_idx, row) in share.chunks_exact(num_cols).enumerate() {
                    let row_weight = &mut share_weight[row_idx * weight_stride..][..weight_stride];
                    quantize_row(
                        row,
                        row_weight,
                        &mut share_scales[row_idx * scale_stride..][..scale_stride],
                    );
                }
            };
            if num_shares == 1 {
                fill();
            } else {
                scope.spawn(fill);
            }
        }
    });
}

#[cfg(test)]
mod tests {
    use super::*;

    fn values(count: usize) -> Vec<f32> {
        (0..count).map(|i| ((i * 7919 % 10_007) as f32 / 5000.0 - 1.0).powi(3) * 0.1).collect()
    }

    #[test]
    fn the_number_of_threads_does_not_change_a_byte() {
        let values = values(600 * 1024);
        for kind in WeightKind::ALL {
            let one = quantize(kind, (600, 1024), &values, 1).unwrap();
            for num_threads in [2, 3, 7] {
                assert_eq!(one, quantize(kind, (600, 1024), &values, num_threads).unwrap(), "{kind}");
            }
        }
    }

    #[test]
    fn non_finite_values_are_refused_with_count_and_place() {
        let mut values = values(64);
        values[17] = f32::NAN;
        values[40] = f32::NEG_INFINITY;
        for kind in WeightKind::ALL {
            let message = quantize(kind, (2, 32), &values, 1).unwrap_err().to_string();
            assert!(message.contains("2 of 64") && message.contains("index 17, is NaN"), "{message}");
        }
    }

    #[test]
    fn columns_that_do_not_fit_a_format_are_refused() {
        let message = quantize(WeightKind::Nvfp4, (1, 24), &[1.0; 24], 1).unwrap_err().to_string();
        assert!(message.contains("multiple of 16") && message.contains("24"), "{message}");
        assert!(quantize(WeightKind::Int4, (1, 5), &[1.0; 5], 1).is_err());
        assert!(quantize(WeightKind::Fp8, (1, 5), &[1.0; 5], 1).is_ok());
    }

    #[test]
    fn values_too_large_for_a_format_are_refused_instead_of_becoming_infinite() {
        for (kind, value) in [(WeightKind::Bf16, f32::MAX), (WeightKind::Int4, 1e6)] {
            let message = quantize(kind, (1, 16), &[value; 16], 1).unwrap_err().to_string();
            assert!(message.contains("too large"), "{message}");
        }
    }

    #[test]
    fn a_zero_tensor_stays_zero_in_every_format() {
        for kind in WeightKind::ALL {
            let matrix = quantize(kind, (3, 160), &[0.0; 480], 1).unwrap();
            let mut row = [1.0f32; 160];
            matrix.view().dequantize_row(2, &mut row);
            assert!(row.iter().all(|&value| value == 0.0), "{kind}");
        }
    }
}
