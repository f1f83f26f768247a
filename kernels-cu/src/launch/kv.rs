//! One layer's key/value cache, as the kernels that read and write it know it.

use super::{DeviceAddress, LaunchError, aligned, at_most, multiple_of, non_zero, to_i32};

/// Most elements of a head.
pub const MAX_HEAD_DIM: usize = 256;

/// How a row of `head_dim` elements is stored.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum KvFormat {
    /// Brain floats, without a scale.
    Bf16,
    /// E4M3 with one F32 scale a row: the largest magnitude is 448.
    Fp8,
    /// 8-bit integers with one F32 scale a row: the largest magnitude is 127.
    Int8,
}

impl KvFormat {
    /// All of them.
    pub const ALL: [Self; 3] = [Self::Bf16, Self::Fp8, Self::Int8];

    /// Bytes of an element, without the row's scale.
    #[must_use]
    pub fn element_bytes(self) -> usize {
        match self {
            Self::Bf16 => 2,
            Self::Fp8 | Self::Int8 => 1,
        }
    }

    /// Whether rows have a scale.
    #[must_use]
    pub fn has_scales(self) -> bool {
        self != Self::Bf16
    }
}

/// Keys and values of one layer: rows `[num_lanes, num_kv_heads, capacity]` of `head_dim` elements.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct KvCache {
    /// How rows are stored.
    pub format: KvFormat,
    /// `[num_lanes, num_kv_heads, capacity, head_dim]`, 16-byte aligned.
    pub keys: DeviceAddress,
    /// As `keys`.
    pub values: DeviceAddress,
    /// `[num_lanes, num_kv_heads, capacity]` F32; null for [`KvFormat::Bf16`].
    pub key_scales: DeviceAddress,
    /// As `key_scales`.
    pub value_scales: DeviceAddress,
    /// Heads that keys and values have.
    pub num_kv_heads: usize,
    /// Rows of a lane.
    pub capacity: usize,
    /// Elements of a row: a multiple of 16, at most 256.
    pub head_dim: usize,
}

impl KvCache {
    /// Bytes of a row, without its scale.
    #[must_use]
    pub fn row_bytes(&self) -> usize {
        self.head_dim * self.format.element_bytes()
    }

    /// # Errors
    /// A size of 0 or too large, an address that is missing or not aligned.
    pub fn check(&self) -> Result<(), LaunchError> {
        to_i32("key/value heads", non_zero("key/value heads", self.num_kv_heads)?)?;
        to_i32("rows of a lane", non_zero("rows of a lane", self.capacity)?)?;
        multiple_of("head dimension", non_zero("head dimension", self.head_dim)?, 16)?;
        at_most("head dimension", self.head_dim, MAX_HEAD_DIM)?;
        aligned("keys", self.keys, 16)?;
        aligned("values", self.values, 16)?;
        if self.format.has_scales() {
            aligned("key scales", self.key_scales, 4)?;
            aligned("value scales", self.value_scales, 4)?;
        }
        Ok(())
    }
}
