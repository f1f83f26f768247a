//! Products of quantized matrices and BF16 rows.

use std::fmt;

use super::{
    Argument, DeviceAddress, Geometry, Launch, LaunchError, aligned, at_most, multiple_of, non_zero, to_u32,
};

/// Most matrices of one launch.
pub const MAX_MATRICES: usize = 3;
/// Tokens of one tile of the tensor cores.
const TILE_TOKENS: usize = 8;
/// Rows of one block.
const TILE_ROWS: usize = 16;
const THREADS: u32 = 256;

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

    fn kernel(self, tiles: TokenTiles) -> &'static str {
        use TokenTiles::{Eight, Four, One, Two};
        match (self, tiles) {
            (Self::Bf16, One) => "linear_bf16_1",
            (Self::Bf16, Two) => "linear_bf16_2",
            (Self::Bf16, Four) => "linear_bf16_4",
            (Self::Bf16, Eight) => "linear_bf16_8",
            (Self::Fp8, One) => "linear_fp8_1",
            (Self::Fp8, Two) => "linear_fp8_2",
            (Self::Fp8, Four) => "linear_fp8_4",
            (Self::Fp8, Eight) => "linear_fp8_8",
            (Self::Nvfp4, One) => "linear_nvfp4_1",
            (Self::Nvfp4, Two) => "linear_nvfp4_2",
            (Self::Nvfp4, Four) => "linear_nvfp4_4",
            (Self::Nvfp4, Eight) => "linear_nvfp4_8",
            (Self::Int4, One) => "linear_int4_1",
            (Self::Int4, Two) => "linear_int4_2",
            (Self::Int4, Four) => "linear_int4_4",
            (Self::Int4, Eight) => "linear_int4_8",
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
    /// The launch.
    ///
    /// # Errors
    /// No token, row, column or matrix; too many of them; columns that do not fit the format; a buffer that is missing or misaligned.
    pub fn launch(&self) -> Result<Launch, LaunchError> {
        non_zero("columns", self.num_cols)?;
        multiple_of("columns", self.num_cols, self.format.column_multiple())?;
        non_zero("matrices", self.matrices.len())?;
        at_most("matrices", self.matrices.len(), MAX_MATRICES)?;
        let tiles = TokenTiles::of(non_zero("tokens", self.num_tokens)?);
        let blocks_y = self.num_tokens.div_ceil(tiles.num_tokens());
        let mut arguments = Vec::with_capacity(6 * MAX_MATRICES + 4);
        let mut blocks_x = 0_usize;
        for matrix in self.matrices {
            blocks_x += self.push(matrix, &mut arguments)?;
        }
        for _ in self.matrices.len()..MAX_MATRICES {
            arguments.extend([Argument::from(DeviceAddress::NULL); 5]);
            arguments.push(0_u32.into());
        }
        arguments.push(aligned("input", self.x, 16)?.into());
        arguments.push(to_u32("tokens", self.num_tokens)?.into());
        arguments.push(to_u32("columns", self.num_cols)?.into());
        arguments.push(u32::from(self.output == Output::Add).into());
        let grid = [to_u32("grid x", blocks_x)?, to_u32("grid y", blocks_y)?, 1];
        let geometry = Geometry { grid, block: [THREADS, 1, 1], shared_bytes: 0 };
        Launch::new(self.format.kernel(tiles), geometry, arguments)
    }

    /// Adds a matrix's arguments; returns its number of row tiles.
    fn push(&self, matrix: &Matrix, arguments: &mut Vec<Argument>) -> Result<usize, LaunchError> {
        self.format.check(&matrix.weights)?;
        let num_rows = to_u32("rows", non_zero("rows", matrix.num_rows)?)?;
        arguments.push(matrix.weights.codes.into());
        arguments.push(matrix.weights.scales.into());
        arguments.push(matrix.weights.global_scale.into());
        arguments.push(optional("bias", matrix.bias, 4)?.into());
        arguments.push(aligned("output", matrix.out, 4)?.into());
        arguments.push(num_rows.into());
        Ok(matrix.num_rows.div_ceil(TILE_ROWS))
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

/// Token tiles of one block.
#[derive(Debug, Clone, Copy)]
enum TokenTiles {
    One,
    Two,
    Four,
    Eight,
}

impl TokenTiles {
    fn of(num_tokens: usize) -> Self {
        match num_tokens.div_ceil(TILE_TOKENS) {
            0 | 1 => Self::One,
            2 => Self::Two,
            3 | 4 => Self::Four,
            _ => Self::Eight,
        }
    }

    fn num_tokens(self) -> usize {
        TILE_TOKENS
            * match self {
                Self::One => 1,
                Self::Two => 2,
                Self::Four => 4,
                Self::Eight => 8,
            }
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
        for (num_tokens, kernel, blocks_y) in [
            (1, "linear_nvfp4_1", 1),
            (8, "linear_nvfp4_1", 1),
            (9, "linear_nvfp4_2", 1),
            (17, "linear_nvfp4_4", 1),
            (64, "linear_nvfp4_8", 1),
            (65, "linear_nvfp4_8", 2),
        ] {
            let launch = Linear { num_tokens, ..linear(&[MATRIX; 3]) }.launch().unwrap();
            assert_eq!((launch.kernel(), launch.geometry().grid), (kernel, [9, blocks_y, 1]));
            assert_eq!(launch.arguments().len(), 22);
        }
    }

    #[test]
    fn what_no_kernel_serves_is_refused() {
        let refused = |linear: Linear<'_>| linear.launch().unwrap_err().to_string();
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
