//! RMS normalization.

use super::{
    DeviceAddress, Geometry, Launch, LaunchError, aligned, at_most, linear::optional, non_zero, to_u32,
};

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

/// `out[i] = in[rows[i]] · rsqrt(mean(in[rows[i]]²) + eps) · weight` as BF16, rows taken from anywhere and laid beside others; zeros where
/// `rows[i]` is negative. The bits are those of [`RmsNorm`], where strides are multiples of 4 if the width is.
#[derive(Debug, Clone, Copy)]
pub struct NormRows {
    /// F32, rows `in_stride` elements apart.
    pub from: DeviceAddress,
    /// I32 `[num_rows]`; null for the rows in order.
    pub rows: DeviceAddress,
    /// F32 `[width]`; null to convert rows only.
    pub weight: DeviceAddress,
    /// F32 `[num_rows, width]`, the same unrounded; null where it is not wanted. May be `from` where rows are taken in order.
    pub exact: DeviceAddress,
    /// BF16, rows `out_stride` elements apart.
    pub out: DeviceAddress,
    /// Elements from row to row of `from`.
    pub in_stride: usize,
    /// Elements from row to row of `out`.
    pub out_stride: usize,
    /// Rows of the captured shape.
    pub num_rows: usize,
    /// Elements of a row, at most either stride.
    pub width: usize,
    /// Added to the mean of the squares.
    pub eps: f32,
}

impl NormRows {
    /// The launch.
    ///
    /// # Errors
    /// A size of 0 or too large, rows wider than their stride; a buffer that is missing or misaligned: to 16 bytes (`out` to 8) where width and
    /// strides are multiples of 4.
    pub fn launch(&self) -> Result<Launch, LaunchError> {
        at_most("width", non_zero("width", self.width)?, self.in_stride.min(self.out_stride))?;
        let is_whole = [self.width, self.in_stride, self.out_stride].iter().all(|len| len.is_multiple_of(4));
        let (wide, narrow) = if is_whole { (16, 8) } else { (4, 2) };
        let arguments = vec![
            aligned("source rows", self.from, wide)?.into(),
            optional("row indices", self.rows, 4)?.into(),
            optional("norm weight", self.weight, wide)?.into(),
            optional("unrounded rows", self.exact, wide)?.into(),
            aligned("output", self.out, narrow)?.into(),
            u64::try_from(self.in_stride).unwrap_or(u64::MAX).into(),
            u64::try_from(self.out_stride).unwrap_or(u64::MAX).into(),
            to_u32("width", self.width)?.into(),
            self.eps.into(),
        ];
        let blocks = to_u32("rows", non_zero("rows", self.num_rows)?)?;
        Launch::new("rms_norm_rows", Geometry::linear(blocks, THREADS), arguments)
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
    #[test]
    fn rows_begin_where_vectors_can_be_read() {
        let norm = NormRows {
            from: DeviceAddress(16),
            rows: DeviceAddress::NULL,
            weight: DeviceAddress::NULL,
            exact: DeviceAddress::NULL,
            out: DeviceAddress(8),
            in_stride: 64,
            out_stride: 128,
            num_rows: 3,
            width: 64,
            eps: 1e-5,
        };
        assert_eq!(norm.launch().unwrap().geometry().grid, [3, 1, 1]);
        assert!(NormRows { from: DeviceAddress(4), ..norm }.launch().is_err());
        assert!(NormRows { from: DeviceAddress(4), width: 63, ..norm }.launch().is_ok());
        assert!(NormRows { width: 65, ..norm }.launch().is_err());
        assert!(NormRows { num_rows: 0, ..norm }.launch().is_err());
        assert!(NormRows { out: DeviceAddress::NULL, ..norm }.launch().is_err());
    }
}
