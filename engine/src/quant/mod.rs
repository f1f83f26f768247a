//! Number formats: how weights and the KV cache are stored, quantized and read back.
//!
//! | kind | tensors in the file | value |
//! |---|---|---|
//! | `bf16` | `X.weight` BF16 `[N, K]` | itself |
//! | `fp8` | `X.weight` F8_E4M3 `[N, K]`, `X.weight_scale` F32 `[N]` | `e4m3 · scale[n]` |
//! | `nvfp4` | `X.weight` U8 `[N, K/2]` (low nibble = even column), `X.weight_scale` F8_E4M3 `[N, K/16]`, `X.weight_scale_2` F32 `[]` | `e2m1 · (scale · scale_2)` |
//! | `int4` | `X.weight` U8 `[N, K/2]` (low nibble = even column, two's complement), `X.weight_scale` F16 `[N, ⌈K/128⌉]` | `int4 · scale` |

pub mod e2m1;
pub mod e4m3;
mod error_stats;
mod fp8;
mod int4;
mod matrix;
pub mod nvfp4;
mod quantized;

use std::{fmt, str::FromStr};

use serde::{Deserialize, Serialize};

pub use error_stats::ErrorStats;
pub use matrix::{INT4_GROUP, MatrixData, MatrixView, NVFP4_BLOCK};
pub use quantized::{QuantizedMatrix, non_finite, quantize};

/// How a matrix of weights is stored.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum WeightKind {
    /// 16-bit brain float.
    Bf16,
    /// E4M3 with one F32 scale a row.
    Fp8,
    /// E2M1 in blocks of 16 with E4M3 scales and one F32 scale a tensor.
    Nvfp4,
    /// Symmetric 4-bit integers in groups of 128 with F16 scales.
    Int4,
}

impl WeightKind {
    /// All kinds, in the order help texts list them.
    pub const ALL: [Self; 4] = [Self::Bf16, Self::Fp8, Self::Nvfp4, Self::Int4];

    /// Name on the command line and in the manifest.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Bf16 => "bf16",
            Self::Fp8 => "fp8",
            Self::Nvfp4 => "nvfp4",
            Self::Int4 => "int4",
        }
    }

    /// What the number of columns must be a multiple of: NVFP4 has whole blocks only, and two 4-bit codes share a byte.
    #[must_use]
    pub fn column_multiple(self) -> usize {
        match self {
            Self::Bf16 | Self::Fp8 => 1,
            Self::Nvfp4 => NVFP4_BLOCK,
            Self::Int4 => 2,
        }
    }
}

impl fmt::Display for WeightKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

impl FromStr for WeightKind {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        Self::ALL
            .into_iter()
            .find(|kind| kind.name() == text)
            .ok_or_else(|| format!("unknown weight format {text:?}: expected bf16, fp8, nvfp4 or int4"))
    }
}

#[cfg(test)]
mod fixture_tests;
