//! Products of the model's and the head's matrices.

use takt_kernels_cu::launch::{
    DeviceAddress, Launch,
    linear::{Linear, Matrix, Output},
};

use super::weights::DeviceMatrix;
use crate::{EngineError, Result};

/// Matrices of one format with the same input `x` of `num_tokens` rows, each with its output, on `num_sms` multiprocessors.
///
/// # Errors
/// [`EngineError::Backend`] for none, or sizes that do not hold.
pub(super) fn product(
    matrices: &[(&DeviceMatrix, DeviceAddress)],
    x: DeviceAddress,
    num_tokens: usize,
    output: Output,
    num_sms: usize,
) -> Result<Launch> {
    let Some((DeviceMatrix { format, num_cols, .. }, _)) = matrices.first().copied() else {
        return Err(EngineError::Backend("a product of no matrix".into()));
    };
    let matrices: Vec<_> = matrices
        .iter()
        .map(|(matrix, out)| Matrix {
            weights: matrix.weights,
            num_rows: matrix.num_rows,
            bias: matrix.bias,
            out: *out,
        })
        .collect();
    let linear = Linear { format: *format, matrices: &matrices, x, num_tokens, num_cols: *num_cols, output };
    Ok(linear.launch(linear.tiling(num_sms), num_sms)?)
}
