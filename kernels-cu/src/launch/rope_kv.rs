//! Rotary positions, and rows into the KV cache.

use super::{
    DeviceAddress, Geometry, KvCache, KvFormat, Launch, LaunchError, aligned, at_most, non_zero, to_i32,
    to_u32,
};

/// Heads of a block, one a warp.
const HEADS_PER_BLOCK: usize = 4;

/// Which two elements of a head rotate together.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Pairing {
    /// `(i, i + num_pairs)`.
    Half,
    /// `(2i, 2i + 1)`.
    Interleaved,
}

/// A table of rotations, made once for all positions.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct RopeTable {
    /// `[max_positions, num_pairs]` F32.
    pub cos: DeviceAddress,
    /// As `cos`.
    pub sin: DeviceAddress,
    /// Pairs of a head that rotate, from its beginning on; the rest stays as it is.
    pub num_pairs: usize,
    /// Which elements are a pair.
    pub pairing: Pairing,
}

/// RMS norm of each head of queries and keys.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct QkNorm {
    /// `[head_dim]` F32.
    pub q: DeviceAddress,
    /// `[head_dim]` F32.
    pub k: DeviceAddress,
    /// Added to the mean square.
    pub eps: f32,
}

/// Queries made ready for attention, keys and values stored in the cache.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct RopeKv {
    /// `[num_tokens, num_heads · head_dim]` F32, rows `q_stride` elements apart.
    pub q: DeviceAddress,
    /// `[num_tokens, num_kv_heads · head_dim]` F32, rows `kv_stride` elements apart.
    pub k: DeviceAddress,
    /// As `k`.
    pub v: DeviceAddress,
    /// Elements from row to row of `q`.
    pub q_stride: usize,
    /// Elements from row to row of `k` and of `v`.
    pub kv_stride: usize,
    /// Of the three, `[(num_heads + 2 · num_kv_heads) · head_dim]` F32.
    pub bias: Option<DeviceAddress>,
    /// Before the rotation.
    pub norm: Option<QkNorm>,
    /// The rotations.
    pub rope: RopeTable,
    /// `[num_tokens]` I32, each below the table's length.
    pub positions: DeviceAddress,
    /// `[num_tokens]` I32; -1 is padding.
    pub lanes: DeviceAddress,
    /// `[num_tokens]` I32: the row of the lane that is written.
    pub rows: DeviceAddress,
    /// `[num_tokens, num_heads, head_dim]` BF16.
    pub q_out: DeviceAddress,
    /// Where rows go.
    pub cache: KvCache,
    /// Tokens of the step, padding included.
    pub num_tokens: usize,
    /// Heads of the queries; 0 to store keys and values only, `q` and `q_out` being null.
    pub num_heads: usize,
}

impl RopeKv {
    /// The launch.
    ///
    /// # Errors
    /// A size of 0 or too large, strides shorter than their rows, an address that is missing or not aligned.
    pub fn launch(&self) -> Result<Launch, LaunchError> {
        self.check()?;
        let cache = &self.cache;
        let num_heads = self.num_heads + 2 * cache.num_kv_heads;
        let grid = [
            to_u32("tokens", non_zero("tokens", self.num_tokens)?)?,
            to_u32("heads", num_heads.div_ceil(HEADS_PER_BLOCK))?,
            1,
        ];
        let norm = self.norm.unwrap_or(QkNorm { q: DeviceAddress::NULL, k: DeviceAddress::NULL, eps: 0.0 });
        let pairing = match self.rope.pairing {
            Pairing::Half => 0_i32,
            Pairing::Interleaved => 1,
        };
        let arguments = vec![
            self.q.into(),
            self.k.into(),
            self.v.into(),
            self.bias.unwrap_or(DeviceAddress::NULL).into(),
            norm.q.into(),
            norm.k.into(),
            self.rope.cos.into(),
            self.rope.sin.into(),
            self.positions.into(),
            self.lanes.into(),
            self.rows.into(),
            self.q_out.into(),
            cache.keys.into(),
            cache.values.into(),
            cache.key_scales.into(),
            cache.value_scales.into(),
            norm.eps.into(),
            to_i32("stride of queries", self.q_stride)?.into(),
            to_i32("stride of keys and values", self.kv_stride)?.into(),
            to_i32("heads", self.num_heads)?.into(),
            to_i32("key/value heads", cache.num_kv_heads)?.into(),
            to_i32("head dimension", cache.head_dim)?.into(),
            to_i32("rotated pairs", self.rope.num_pairs)?.into(),
            pairing.into(),
            to_i32("rows of a lane", cache.capacity)?.into(),
        ];
        Launch::new(kernel(cache.format), Geometry { grid, block: [128, 1, 1], shared_bytes: 0 }, arguments)
    }

    fn check(&self) -> Result<(), LaunchError> {
        self.cache.check()?;
        let head_dim = self.cache.head_dim;
        at_most("columns of queries", self.num_heads.saturating_mul(head_dim), self.q_stride)?;
        at_most(
            "columns of keys and values",
            self.cache.num_kv_heads.saturating_mul(head_dim),
            self.kv_stride,
        )?;
        at_most("rotated pairs", non_zero("rotated pairs", self.rope.num_pairs)?, head_dim / 2)?;
        for (what, address) in [
            ("keys of the step", self.k),
            ("values of the step", self.v),
            ("cosines", self.rope.cos),
            ("sines", self.rope.sin),
            ("positions", self.positions),
            ("lanes", self.lanes),
            ("rows", self.rows),
        ] {
            aligned(what, address, 4)?;
        }
        for address in self.bias.into_iter().chain(self.norm.iter().flat_map(|norm| [norm.q, norm.k])) {
            aligned("bias or norm weights", address, 4)?;
        }
        if self.num_heads > 0 {
            aligned("queries", self.q, 4)?;
            aligned("rotated queries", self.q_out, 16)?;
        }
        Ok(())
    }
}

fn kernel(format: KvFormat) -> &'static str {
    match format {
        KvFormat::Bf16 => "rope_kv_bf16",
        KvFormat::Fp8 => "rope_kv_fp8",
        KvFormat::Int8 => "rope_kv_int8",
    }
}
