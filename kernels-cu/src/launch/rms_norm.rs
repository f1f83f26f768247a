//! RMS normalization.

use super::{DeviceAddress, Geometry, Launch, LaunchError, aligned, linear::optional, non_zero, to_u32};

const THREADS: u32 = 512;

/// What is written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum NormOutput {
    /// BF16: the input of a product.
    Bf16,
    /// F32.
    F32,
}

/// `out = x · rsqrt(mean(x²) + eps) · weight` for each token, with `x = residual (+ delta)`.
#[derive(Debug, Clone, Copy)]
pub struct RmsNorm {
    /// F32 `[num_tokens, width]`, 16-byte aligned; replaced by the sum where there is a `delta`.
    pub residual: DeviceAddress,
    /// F32 `[num_tokens, width]`, 16-byte aligned, or [`DeviceAddress::NULL`].
    pub delta: DeviceAddress,
    /// F32 `[width]`, 16-byte aligned.
    pub weight: DeviceAddress,
    /// `[num_tokens, width]` of `output`, 16-byte aligned.
    pub out: DeviceAddress,
    /// Type of `out`.
    pub output: NormOutput,
    /// Tokens of the captured shape.
    pub num_tokens: usize,
    /// Columns.
    pub width: usize,
    /// Added to the mean of the squares.
    pub eps: f32,
}

impl RmsNorm {
    /// The launch.
    ///
    /// # Errors
    /// A size of 0 or too large; a buffer that is missing or misaligned.
    pub fn launch(&self) -> Result<Launch, LaunchError> {
        let num_tokens = to_u32("tokens", non_zero("tokens", self.num_tokens)?)?;
        let arguments = vec![
            aligned("residual stream", self.residual, 16)?.into(),
            optional("delta", self.delta, 16)?.into(),
            aligned("norm weight", self.weight, 16)?.into(),
            aligned("output", self.out, 16)?.into(),
            to_u32("width", non_zero("width", self.width)?)?.into(),
            self.eps.into(),
        ];
        let kernel = match self.output {
            NormOutput::Bf16 => "rms_norm_bf16",
            NormOutput::F32 => "rms_norm_f32",
        };
        Launch::new(kernel, Geometry::linear(num_tokens, THREADS), arguments)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_block_a_token_and_nothing_without_tokens() {
        let norm = RmsNorm {
            residual: DeviceAddress(16),
            delta: DeviceAddress::NULL,
            weight: DeviceAddress(32),
            out: DeviceAddress(64),
            output: NormOutput::Bf16,
            num_tokens: 3,
            width: 64,
            eps: 1e-5,
        };
        assert_eq!(norm.launch().unwrap().geometry().grid, [3, 1, 1]);
        let f32_norm = RmsNorm { output: NormOutput::F32, ..norm };
        assert_eq!(f32_norm.launch().unwrap().kernel(), "rms_norm_f32");
        assert_eq!(RmsNorm { num_tokens: 0, ..norm }.launch(), Err(LaunchError::Zero { what: "tokens" }));
        assert!(RmsNorm { width: 0, ..norm }.launch().is_err());
        assert!(RmsNorm { delta: DeviceAddress(4), ..norm }.launch().is_err());
        assert!(RmsNorm { residual: DeviceAddress::NULL, ..norm }.launch().is_err());
    }
}
