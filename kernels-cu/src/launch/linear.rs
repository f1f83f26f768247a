//! Products of quantized matrices and BF16 rows.

use std::fmt;

use super::{
    Argument, DeviceAddress, Geometry, Launch, LaunchError, aligned, at_most, equal, multiple_of, non_zero,
    to_u32,
};

/// Most matrices of one launch.
pub const MAX_MATRICES: usize = 3;
/// Most columns: what a kernel counts past them stays within 32 bits.
const MAX_COLUMNS: usize = 1 << 30;
/// Rows of the blocks that use weights most.
const WIDE_ROWS: usize = 128;

/// How a matrix of weights is stored, as in the engine directory.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum WeightFormat {
    /// BF16 `[N, K]`; no scales.
    Bf16,
    /// E4M3 `[N, K]`; scales F32 `[N]`.
    Fp8,
    /// E2M1 `[N, K/2]`, even column in the low nibble; scales E4M3 `[N, K/16]` and one F32.
    Nvfp4,
    /// Two's complement `[N, K/2]`, even column in the low nibble; scales F16 `[N, ⌈K/128⌉]`.
    Int4,
}

impl WeightFormat {
    /// All formats.
    pub const ALL: [Self; 4] = [Self::Bf16, Self::Fp8, Self::Nvfp4, Self::Int4];

    /// What the number of columns must be a multiple of.
    #[must_use]
    pub fn column_multiple(self) -> usize {
        match self {
            Self::Bf16 | Self::Fp8 => 1,
            Self::Nvfp4 => 16,
            Self::Int4 => 2,
        }
    }

    /// Checks where a matrix of this format lies.
    pub(super) fn check(self, weights: &Weights) -> Result<(), LaunchError> {
        aligned("weights", weights.codes, 16)?;
        match self {
            Self::Bf16 => {}
            Self::Fp8 => drop(aligned("weight scales", weights.scales, 4)?),
            Self::Int4 => drop(aligned("weight scales", weights.scales, 2)?),
            Self::Nvfp4 => {
                aligned("weight scales", weights.scales, 2)?;
                aligned("global weight scale", weights.global_scale, 4)?;
            }
        }
        Ok(())
    }

    /// Columns of 16 bytes.
    fn piece_columns(self) -> usize {
        match self {
            Self::Bf16 => 8,
            Self::Fp8 => 16,
            Self::Nvfp4 | Self::Int4 => 32,
        }
    }

    fn kernel(self, tiling: Tiling) -> &'static str {
        match (self, tiling) {
            (Self::Bf16, Tiling::Narrow8) => "linear_bf16_1",
            (Self::Bf16, Tiling::Narrow16) => "linear_bf16_2",
            (Self::Bf16, Tiling::Wide16) => "linear_bf16_wide_2",
            (Self::Bf16, Tiling::Wide32) => "linear_bf16_wide_4",
            (Self::Bf16, Tiling::Wide64) => "linear_bf16_wide_8",
            (Self::Fp8, Tiling::Narrow8) => "linear_fp8_1",
            (Self::Fp8, Tiling::Narrow16) => "linear_fp8_2",
            (Self::Fp8, Tiling::Wide16) => "linear_fp8_wide_2",
            (Self::Fp8, Tiling::Wide32) => "linear_fp8_wide_4",
            (Self::Fp8, Tiling::Wide64) => "linear_fp8_wide_8",
            (Self::Nvfp4, Tiling::Narrow8) => "linear_nvfp4_1",
            (Self::Nvfp4, Tiling::Narrow16) => "linear_nvfp4_2",
            (Self::Nvfp4, Tiling::Wide16) => "linear_nvfp4_wide_2",
            (Self::Nvfp4, Tiling::Wide32) => "linear_nvfp4_wide_4",
            (Self::Nvfp4, Tiling::Wide64) => "linear_nvfp4_wide_8",
            (Self::Int4, Tiling::Narrow8) => "linear_int4_1",
            (Self::Int4, Tiling::Narrow16) => "linear_int4_2",
            (Self::Int4, Tiling::Wide16) => "linear_int4_wide_2",
            (Self::Int4, Tiling::Wide32) => "linear_int4_wide_4",
            (Self::Int4, Tiling::Wide64) => "linear_int4_wide_8",
        }
    }
}

impl fmt::Display for WeightFormat {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Bf16 => "bf16",
            Self::Fp8 => "fp8",
            Self::Nvfp4 => "nvfp4",
            Self::Int4 => "int4",
        })
    }
}

/// Where a matrix lies: its codes (16-byte aligned) and what its format has besides; [`DeviceAddress::NULL`] for what it has not.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Weights {
    /// Bytes of `X.weight`.
    pub codes: DeviceAddress,
    /// Bytes of `X.weight_scale`.
    pub scales: DeviceAddress,
    /// The F32 `X.weight_scale_2`.
    pub global_scale: DeviceAddress,
}

/// One matrix of a launch, and where its product goes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Matrix {
    /// `[num_rows, num_cols]`.
    pub weights: Weights,
    /// Output features.
    pub num_rows: usize,
    /// F32 `[num_rows]`; [`DeviceAddress::NULL`] where there is none.
    pub bias: DeviceAddress,
    /// F32 `[num_tokens, num_rows]`.
    pub out: DeviceAddress,
}

/// What happens to a product.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Output {
    /// It is written.
    Store,
    /// It is added to what is there: the residual stream.
    Add,
    /// There are two matrices of equally many rows, the gate and `up`: `silu(gate) · up`, as BF16 `[num_tokens, num_rows]`, is written to
    /// the first one's `out`; the second one's is not used. The bits are those of [`super::swiglu`] after two products.
    SwiGlu,
}

impl Output {
    /// The kernels' number for it.
    fn code(self) -> u32 {
        match self {
            Self::Store => 0,
            Self::Add => 1,
            Self::SwiGlu => 2,
        }
    }
}

/// `out[token, row] = Σ weight[row, col] · x[token, col] + bias[row]` for one to three matrices with the same input.
///
/// The result for a token has the same bits whatever `num_tokens` is.
#[derive(Debug, Clone, Copy)]
pub struct Linear<'a> {
    /// How all the matrices are stored.
    pub format: WeightFormat,
    /// One to [`MAX_MATRICES`].
    pub matrices: &'a [Matrix],
    /// BF16 `[num_tokens, num_cols]`, 16-byte aligned.
    pub x: DeviceAddress,
    /// Rows of `x`.
    pub num_tokens: usize,
    /// Input features.
    pub num_cols: usize,
    /// Write or add.
    pub output: Output,
}

impl Linear<'_> {
    /// The launch on a GPU of `num_multiprocessors`; [`Linear::tiling`] suggests how. Every tiling, and every number, gives the same bits.
    ///
    /// # Errors
    /// No token, row, column or matrix; too many of them; columns that do not fit the format; a wide tiling of columns that are no whole
    /// 16-byte pieces; a buffer that is missing or misaligned.
    pub fn launch(&self, tiling: Tiling, num_multiprocessors: usize) -> Result<Launch, LaunchError> {
        at_most("columns", non_zero("columns", self.num_cols)?, MAX_COLUMNS)?;
        multiple_of("columns", self.num_cols, self.format.column_multiple())?;
        if tiling.is_wide() {
            multiple_of("columns", self.num_cols, self.format.piece_columns())?;
        }
        non_zero("matrices", self.matrices.len())?;
        at_most("matrices", self.matrices.len(), MAX_MATRICES)?;
        let mut arguments = Vec::with_capacity(6 * MAX_MATRICES + 4);
        for matrix in self.products()? {
            self.push(matrix, &mut arguments)?;
        }
        for _ in self.matrices.len()..MAX_MATRICES {
            arguments.extend([Argument::from(DeviceAddress::NULL); 5]);
            arguments.push(0_u32.into());
        }
        arguments.push(aligned("input", self.x, 16)?.into());
        arguments.push(to_u32("tokens", non_zero("tokens", self.num_tokens)?)?.into());
        arguments.push(to_u32("columns", self.num_cols)?.into());
        arguments.push(self.output.code().into());
        let blocks_y = self.num_tokens.div_ceil(tiling.num_tokens());
        let blocks_x = self.num_row_blocks(tiling.num_rows()).min(tiling.max_blocks(num_multiprocessors));
        let grid = [to_u32("grid x", blocks_x)?, to_u32("grid y", blocks_y)?, 1];
        let block = [tiling.num_threads(self.format), 1, 1];
        let geometry = Geometry { grid, block, shared_bytes: to_u32("shared bytes", tiling.shared_bytes())? };
        Launch::new(self.format.kernel(tiling), geometry, arguments)
    }

    /// Blocks of `num_rows` rows; gate and `up` share them.
    fn num_row_blocks(&self, num_rows: usize) -> usize {
        match self.output {
            Output::Store | Output::Add => {
                self.matrices.iter().map(|matrix| matrix.num_rows.div_ceil(num_rows)).sum()
            }
            Output::SwiGlu => self.matrices.first().map_or(0, |gate| gate.num_rows.div_ceil(num_rows / 2)),
        }
    }

    /// The matrices, checked to be what the output needs.
    fn products(&self) -> Result<&[Matrix], LaunchError> {
        if self.output == Output::SwiGlu {
            equal("matrices", self.matrices.len(), 2)?;
            equal("rows of gate and up", self.matrices[1].num_rows, self.matrices[0].num_rows)?;
        }
        Ok(self.matrices)
    }

    /// A tiling for a GPU of `num_multiprocessors`: narrow for few tokens or ragged columns, else as wide as leaves a block for every
    /// other multiprocessor. An estimate, to be measured on each board.
    #[must_use]
    pub fn tiling(&self, num_multiprocessors: usize) -> Tiling {
        let is_ragged = !self.num_cols.is_multiple_of(self.format.piece_columns());
        let wide_blocks = self.num_row_blocks(WIDE_ROWS);
        let is_full = |blocks: usize| blocks >= num_multiprocessors.div_ceil(2);
        match self.num_tokens {
            0..=8 => Tiling::Narrow8,
            _ if is_ragged => Tiling::Narrow16,
            9..=16 if is_full(wide_blocks) => Tiling::Wide16,
            9..=16 => Tiling::Narrow16,
            17..=32 => Tiling::Wide32,
            more if is_full(wide_blocks.saturating_mul(more.div_ceil(64))) => Tiling::Wide64,
            _ => Tiling::Wide32,
        }
    }

    /// Adds a matrix's arguments.
    fn push(&self, matrix: &Matrix, arguments: &mut Vec<Argument>) -> Result<(), LaunchError> {
        self.format.check(&matrix.weights)?;
        let num_rows = to_u32("rows", non_zero("rows", matrix.num_rows)?)?;
        let is_used = self.output != Output::SwiGlu || arguments.is_empty();
        let check = if is_used { aligned } else { optional };
        let bias = optional("bias", matrix.bias, 4)?;
        arguments.push(matrix.weights.codes.into());
        arguments.push(matrix.weights.scales.into());
        arguments.push(matrix.weights.global_scale.into());
        arguments.push(bias.into());
        arguments.push(check("output", matrix.out, 4)?.into());
        arguments.push(num_rows.into());
        Ok(())
    }
}

/// `address`, if it is null or a multiple of `alignment` bytes.
pub(super) fn optional(
    what: &'static str,
    address: DeviceAddress,
    alignment: u64,
) -> Result<DeviceAddress, LaunchError> {
    if address == DeviceAddress::NULL { Ok(address) } else { aligned(what, address, alignment) }
}

/// What one block computes. Every tiling gives the same bits.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Tiling {
    /// 8 tokens, 16 rows: decoding.
    Narrow8,
    /// 16 tokens, 16 rows.
    Narrow16,
    /// 16 tokens, 128 rows.
    Wide16,
    /// 32 tokens, 64 rows.
    Wide32,
    /// 64 tokens, 128 rows: prefill.
    Wide64,
}

impl Tiling {
    /// All of them.
    pub const ALL: [Self; 5] = [Self::Narrow8, Self::Narrow16, Self::Wide16, Self::Wide32, Self::Wide64];

    /// Whether columns must come in whole 16-byte pieces.
    #[must_use]
    pub fn is_wide(self) -> bool {
        !matches!(self, Self::Narrow8 | Self::Narrow16)
    }

    fn num_tokens(self) -> usize {
        match self {
            Self::Narrow8 => 8,
            Self::Narrow16 | Self::Wide16 => 16,
            Self::Wide32 => 32,
            Self::Wide64 => 64,
        }
    }

    fn num_rows(self) -> usize {
        match self {
            Self::Narrow8 | Self::Narrow16 => 16,
            Self::Wide32 => 64,
            Self::Wide16 | Self::Wide64 => WIDE_ROWS,
        }
    }

    fn num_threads(self, format: WeightFormat) -> u32 {
        match (self, format) {
            (Self::Narrow8 | Self::Narrow16, _) | (Self::Wide64, WeightFormat::Int4) => 256,
            _ => 128,
        }
    }

    /// Narrow blocks go through several tiles of rows: as many blocks as run at once, two a multiprocessor.
    fn max_blocks(self, num_multiprocessors: usize) -> usize {
        if self.is_wide() { usize::MAX } else { num_multiprocessors.saturating_mul(2).max(1) }
    }

    /// Three stages of 256 bytes a token, and the block's outputs in F32.
    fn shared_bytes(self) -> usize {
        if self.is_wide() { self.num_tokens() * (3 * 256 + 4 * self.num_rows()) } else { 0 }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const WEIGHTS: Weights =
        Weights { codes: DeviceAddress(256), scales: DeviceAddress(512), global_scale: DeviceAddress(1024) };
    const MATRIX: Matrix =
        Matrix { weights: WEIGHTS, num_rows: 40, bias: DeviceAddress::NULL, out: DeviceAddress(2048) };

    fn linear(matrices: &[Matrix]) -> Linear<'_> {
        Linear {
            format: WeightFormat::Nvfp4,
            matrices,
            x: DeviceAddress(4096),
            num_tokens: 1,
            num_cols: 64,
            output: Output::Store,
        }
    }

    #[test]
    fn the_grid_covers_the_rows_of_all_matrices_and_all_tokens() {
        for (num_tokens, num_rows, kernel, grid) in [
            (1, 40, "linear_nvfp4_1", [9, 1, 1]),
            (8, 40, "linear_nvfp4_1", [9, 1, 1]),
            (9, 40, "linear_nvfp4_2", [9, 1, 1]),
            (16, 4096, "linear_nvfp4_wide_2", [96, 1, 1]),
            (17, 40, "linear_nvfp4_wide_4", [3, 1, 1]),
            (64, 40, "linear_nvfp4_wide_4", [3, 2, 1]),
            (64, 4096, "linear_nvfp4_wide_8", [96, 1, 1]),
            (65, 4100, "linear_nvfp4_wide_8", [99, 2, 1]),
        ] {
            let matrices = [Matrix { num_rows, ..MATRIX }; 3];
            let linear = Linear { num_tokens, ..linear(&matrices) };
            let launch = linear.launch(linear.tiling(132), 132).unwrap();
            assert_eq!((launch.kernel(), launch.geometry().grid), (kernel, grid));
            assert_eq!(launch.arguments().len(), 22);
        }
    }

    #[test]
    fn a_small_gpu_is_filled_by_fewer_and_wider_blocks() {
        let matrices = [Matrix { num_rows: 4096, ..MATRIX }];
        let tiling = |num_tokens, num_multiprocessors| {
            Linear { num_tokens, ..linear(&matrices) }.tiling(num_multiprocessors)
        };
        assert_eq!((tiling(16, 16), tiling(16, 132)), (Tiling::Wide16, Tiling::Narrow16));
        assert_eq!((tiling(60, 16), tiling(60, 132)), (Tiling::Wide64, Tiling::Wide32));
    }

    #[test]
    fn narrow_blocks_are_as_many_as_run_at_once() {
        let matrices = [Matrix { num_rows: 4096, ..MATRIX }];
        let blocks = |num_multiprocessors| {
            linear(&matrices).launch(Tiling::Narrow8, num_multiprocessors).unwrap().geometry().grid[0]
        };
        assert_eq!([0, 16, 132, 1000].map(blocks), [1, 32, 256, 256]);
    }

    #[test]
    fn a_gate_and_up_of_equal_rows_share_blocks() {
        let up = Matrix { out: DeviceAddress::NULL, ..MATRIX };
        let matrices = [MATRIX, up];
        let gated = Linear { output: Output::SwiGlu, ..linear(&matrices) };
        assert_eq!(gated.launch(Tiling::Narrow8, 16).unwrap().geometry().grid, [5, 1, 1]);
        assert_eq!(gated.launch(Tiling::Wide32, 16).unwrap().geometry().grid, [2, 1, 1]);
        let refused = |matrices: &[Matrix]| {
            Linear { matrices, ..gated }.launch(Tiling::Narrow8, 16).unwrap_err().to_string()
        };
        assert_eq!(refused(&[MATRIX]), "matrices: 1, expected 2");
        assert_eq!(refused(&[MATRIX, Matrix { num_rows: 41, ..up }]), "rows of gate and up: 41, expected 40");
        assert!(refused(&[up, MATRIX]).starts_with("output: address 0x0"));
    }

    #[test]
    fn ragged_columns_are_served_by_narrow_blocks() {
        let ragged = Linear { num_cols: 48, num_tokens: 100, ..linear(&[MATRIX]) };
        assert_eq!(ragged.launch(ragged.tiling(16), 16).unwrap().geometry().grid, [3, 7, 1]);
        assert_eq!(
            ragged.launch(Tiling::Wide32, 16),
            Err(LaunchError::NotMultiple { what: "columns", found: 48, multiple: 32 })
        );
    }

    #[test]
    fn every_tiling_fits_every_targets_shared_memory() {
        for tiling in Tiling::ALL {
            linear(&[MATRIX]).launch(tiling, 16).unwrap();
        }
        assert_eq!(Tiling::Wide64.shared_bytes(), 80 * 1024);
    }

    #[test]
    fn what_no_kernel_serves_is_refused() {
        let refused = |linear: Linear<'_>| linear.launch(Tiling::Narrow8, 16).unwrap_err().to_string();
        assert_eq!(refused(Linear { num_tokens: 0, ..linear(&[MATRIX]) }), "tokens: 0, expected at least 1");
        assert_eq!(
            refused(Linear { num_cols: 24, ..linear(&[MATRIX]) }),
            "columns: 24, expected a multiple of 16"
        );
        assert_eq!(refused(linear(&[])), "matrices: 0, expected at least 1");
        assert_eq!(refused(linear(&[MATRIX; 4])), "matrices: 4, expected at most 3");
        assert_eq!(refused(linear(&[Matrix { num_rows: 0, ..MATRIX }])), "rows: 0, expected at least 1");
        let codes = DeviceAddress(8);
        assert!(
            refused(linear(&[Matrix { weights: Weights { codes, ..WEIGHTS }, ..MATRIX }]))
                .starts_with("weights: address 0x8")
        );
        let scales = DeviceAddress::NULL;
        assert!(
            refused(linear(&[Matrix { weights: Weights { scales, ..WEIGHTS }, ..MATRIX }]))
                .starts_with("weight scales")
        );
    }
}
