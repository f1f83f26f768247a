//! Norms of the model's and the head's rows.

use takt_kernels_cu::launch::{
    DeviceAddress, Launch,
    rms_norm::{NormOutput, RmsNorm},
};

use crate::Result;

/// `out = RMSNorm(from) · weight`: F32 `[num_rows, width]`, which stays as it is, to BF16; `weight` F32 `[width]`.
///
/// # Errors
/// [`crate::EngineError::Backend`] for sizes that do not hold.
pub(super) fn norm(
    (from, out): (DeviceAddress, DeviceAddress),
    weight: DeviceAddress,
    (num_rows, width): (usize, usize),
    eps: f32,
) -> Result<Launch> {
    let (delta, output, num_tokens) = (DeviceAddress::NULL, NormOutput::Bf16, num_rows);
    Ok(RmsNorm { residual: from, delta, weight, out, output, num_tokens, width, eps }.launch()?)
}
