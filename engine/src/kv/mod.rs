//! The KV cache: number formats, lanes and prefix snapshots.
//!
//! A **lane** owns a contiguous region of fixed capacity; `[0, committed_len)` counts, `[committed_len, …)` is tentative.
//! A **snapshot** is a stored prefix that can be copied into any lane.

mod book;
mod lanes;
mod memory;
mod row;

use std::{fmt, str::FromStr};

use serde::{Deserialize, Serialize};

pub(crate) use book::{LaneBook, no_snapshot};
pub use lanes::KvLanes;
pub(crate) use lanes::RowAddress;
pub use memory::{check_kv_budget, kv_bytes, kv_bytes_per_token};
#[cfg(test)]
pub(crate) use row::load;
pub(crate) use row::{HeadRows, store};

/// How keys and values are stored.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum KvKind {
    /// 16 bits an element. A device that computes with brain floats stores those; the CPU backend stores 16-bit integers with
    /// one F32 scale a head and token: 4 bytes more a row, but steps of 2^-16 of the row's largest value instead of 2^-9 of
    /// each. Rounding keys to brain floats alone moved the logits of our reference models by up to 1.7e-2 (measured
    /// 2026-11-21), and greedy choices with them.
    Bf16,
    /// E4M3 with one F32 scale a head and token.
    Fp8,
    /// 8-bit integers with one F32 scale a head and token.
    Int8,
}

impl KvKind {
    /// All kinds, in the order help texts list them.
    pub const ALL: [Self; 3] = [Self::Bf16, Self::Fp8, Self::Int8];

    /// Name on the command line and in the manifest.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Bf16 => "bf16",
            Self::Fp8 => "fp8",
            Self::Int8 => "int8",
        }
    }

    /// Bytes of one stored element, without its scale.
    #[must_use]
    pub fn element_bytes(self) -> usize {
        match self {
            Self::Bf16 => 2,
            Self::Fp8 | Self::Int8 => 1,
        }
    }
}

impl fmt::Display for KvKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

impl FromStr for KvKind {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        Self::ALL
            .into_iter()
            .find(|kind| kind.name() == text)
            .ok_or_else(|| format!("unknown KV cache format {text:?}: expected bf16, fp8 or int8"))
    }
}

/// A lane's index, `0..num_lanes`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct LaneId(pub usize);

/// A stored prefix.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct SnapshotId(pub u64);
