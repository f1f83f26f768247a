//! Attention: slices of a prompt, decode steps and tree verification.
//!
//! One family of kernels serves all of them with the same bits (see `cu/attention_decode.cu`); what differs is who merges the splits of a long
//! context: [`Merging::InOrder`] or [`Merging::Beside`]. [`Merging::for_gpu`] chooses what is faster.

use super::{
    Argument, DeviceAddress, Geometry, KvCache, KvFormat, Launch, LaunchError, aligned, at_most, equal,
    multiple_of, non_zero, to_i32, to_u32,
};

/// Positions of a split: the unit of merging. Part of the order of arithmetic.
pub const SPLIT_LEN: usize = 128;
/// Elements of a head there are kernels for; the first two are those of test models.
pub const HEAD_DIMS: [usize; 7] = [16, 32, 64, 80, 96, 128, 256];

/// Queries of a warp: tokens times heads that share a key/value head.
const QUERIES_PER_WARP: usize = 16;
const NUM_WARPS: usize = 4;

/// Tokens of one lane in a step, as the kernel reads them from device memory.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(C, align(16))]
pub struct Segment {
    /// The lane; -1 is padding.
    pub lane: i32,
    /// Index of the first token in the step.
    pub first_token: i32,
    /// Consecutive tokens.
    pub num_tokens: i32,
    /// 1: a tree; each token sees the lane's committed rows and those of its list. 0: each sees all rows up to its position.
    pub is_tree: i32,
}

/// How the splits of a query's context become one result.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Merging {
    /// A warp walks the whole context of its queries and merges as it goes: prompts, and trees on small GPUs.
    InOrder,
    /// Splits run beside each other, a second kernel merges: few queries on a long context.
    Beside {
        /// Results of splits `[num_tokens, num_heads, max_splits, head_dim]` F32.
        partial_out: DeviceAddress,
        /// `[num_tokens, num_heads, max_splits, 2]` F32.
        partial_state: DeviceAddress,
        /// Blocks that share the splits of a query. More than there are splits is a waste, not a fault.
        num_blocks: usize,
    },
}

/// One layer's attention of a step.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Attention {
    /// `[num_tokens, num_heads, head_dim]` BF16.
    pub q: DeviceAddress,
    /// `[num_tokens, num_heads, head_dim]` BF16.
    pub out: DeviceAddress,
    /// The layer's, with the step's rows stored.
    pub cache: KvCache,
    /// What the step's tokens see.
    pub step: AttentionStep,
    /// `[num_tokens, max_depth]` I32 and its width, where trees may come: the rows of positions `committed_len`, … up to a token's own.
    pub tree_rows: Option<(DeviceAddress, usize)>,
    /// Heads of the queries.
    pub num_heads: usize,
    /// Last positions a token sees, its own included; `None` for all.
    pub window: Option<usize>,
    /// Factor of the scores.
    pub scale: f32,
}

/// Where the tokens of a step stand: the same for all layers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct AttentionStep {
    /// `[num_segments]` of [`Segment`].
    pub segments: DeviceAddress,
    /// `[num_tokens]` I32.
    pub positions: DeviceAddress,
    /// `[num_tokens]` I32; -1 is padding.
    pub lanes: DeviceAddress,
    /// By lane, I32, before the step; read for trees.
    pub committed_lens: DeviceAddress,
    /// Tokens of the step, padding included.
    pub num_tokens: usize,
    /// Segments of the step, padding included.
    pub num_segments: usize,
    /// Most tokens of a segment: a longer one in device memory is not attended to its end.
    pub max_segment_len: usize,
    /// Positions of the step are below this.
    pub max_positions: usize,
}

impl AttentionStep {
    /// Splits of the longest context.
    #[must_use]
    pub fn max_splits(&self) -> usize {
        self.max_positions.div_ceil(SPLIT_LEN)
    }

    /// F32 values of [`Merging::Beside`]'s two buffers.
    ///
    /// # Errors
    /// [`LaunchError::TooLarge`] past the address space.
    pub fn partial_lens(&self, num_heads: usize, head_dim: usize) -> Result<(usize, usize), LaunchError> {
        let rows =
            self.num_tokens.checked_mul(num_heads).and_then(|rows| rows.checked_mul(self.max_splits()));
        let lens = rows.and_then(|rows| Some((rows.checked_mul(head_dim)?, rows.checked_mul(2)?)));
        lens.ok_or(LaunchError::TooLarge {
            what: "partial results",
            found: self.num_tokens,
            max: usize::MAX / 8,
        })
    }
}

/// How a segment's queries are shared out.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Tiling {
    /// Warps of a block with queries of their own; the block's others take other splits.
    row_warps: usize,
    /// Blocks along the queries of a segment.
    num_groups: usize,
}

impl Tiling {
    fn of(num_queries: usize, in_order: bool) -> Self {
        let num_tiles = num_queries.div_ceil(QUERIES_PER_WARP);
        let row_warps = match num_tiles {
            _ if in_order => NUM_WARPS,
            0 | 1 => 1,
            2 => 2,
            _ => NUM_WARPS,
        };
        Self { row_warps, num_groups: num_tiles.div_ceil(row_warps) }
    }
}

impl Merging {
    /// Blocks along the splits with which [`Merging::Beside`] fills a GPU of `num_multiprocessors`, or `None` where [`Merging::InOrder`] fills
    /// it as well and saves the partial results. The choice changes no bit of the result.
    #[must_use]
    pub fn for_gpu(
        step: &AttentionStep,
        num_heads: usize,
        num_kv_heads: usize,
        num_multiprocessors: usize,
    ) -> Option<usize> {
        /// Blocks of 128 threads that run on a multiprocessor at a time, by their registers.
        const RESIDENT_BLOCKS: usize = 2;
        let num_queries = step.max_segment_len.saturating_mul(num_heads / num_kv_heads.max(1));
        let rows = |in_order| Tiling::of(num_queries, in_order).num_groups * num_kv_heads * step.num_segments;
        if rows(true) >= num_multiprocessors || step.max_splits() <= 1 {
            return None;
        }
        let splits_at_once = NUM_WARPS / Tiling::of(num_queries, false).row_warps;
        let wanted = (num_multiprocessors * RESIDENT_BLOCKS).div_ceil(rows(false).max(1));
        Some(wanted.clamp(1, step.max_splits().div_ceil(splits_at_once)))
    }
}

impl Attention {
    /// One launch, or two to run one after the other.
    ///
    /// # Errors
    /// A head size without a kernel, heads that do not share evenly, a size of 0 or too large, an address that is missing or not aligned.
    pub fn launches(&self, merging: Merging) -> Result<Vec<Launch>, LaunchError> {
        self.check()?;
        match merging {
            Merging::InOrder => Ok(vec![self.in_order()?]),
            Merging::Beside { partial_out, partial_state, num_blocks } => {
                aligned("partial results", partial_out, 16)?;
                aligned("maxima and sums of splits", partial_state, 8)?;
                non_zero("blocks along the splits", num_blocks)?;
                let splits = self.splits(partial_out, partial_state, num_blocks)?;
                Ok(vec![splits, self.combine(partial_out, partial_state)?])
            }
        }
    }

    fn in_order(&self) -> Result<Launch, LaunchError> {
        let mut arguments = self.inputs();
        arguments.extend([Argument::from(self.out), to_i32("segments", self.step.num_segments)?.into()]);
        arguments.extend(self.shape()?);
        let tiling = Tiling::of(self.max_queries(), true);
        let geometry = self.geometry(tiling, 1, in_order_shared_bytes(self.cache.head_dim)?)?;
        Launch::new(kernel(self.cache.format, self.cache.head_dim)?.1, geometry, arguments)
    }

    fn splits(
        &self,
        partial_out: DeviceAddress,
        partial_state: DeviceAddress,
        num_blocks: usize,
    ) -> Result<Launch, LaunchError> {
        let tiling = Tiling::of(self.max_queries(), false);
        let mut arguments = self.inputs();
        arguments.extend([
            Argument::from(partial_out),
            partial_state.into(),
            to_i32("segments", self.step.num_segments)?.into(),
            to_i32("warps of queries", tiling.row_warps)?.into(),
            to_i32("splits", self.step.max_splits())?.into(),
        ]);
        arguments.extend(self.shape()?);
        let shared_bytes = to_u32("shared bytes", shared_query_bytes(self.cache.head_dim))?;
        let geometry = self.geometry(tiling, num_blocks, shared_bytes)?;
        Launch::new(kernel(self.cache.format, self.cache.head_dim)?.0, geometry, arguments)
    }

    /// Most queries of a segment that share a key/value head.
    fn max_queries(&self) -> usize {
        self.step.max_segment_len.saturating_mul(self.num_heads / self.cache.num_kv_heads)
    }

    fn geometry(
        &self,
        tiling: Tiling,
        num_blocks: usize,
        shared_bytes: u32,
    ) -> Result<Geometry, LaunchError> {
        let grid = [
            to_u32("blocks of queries", tiling.num_groups.saturating_mul(self.step.num_segments))?,
            to_u32("key/value heads", self.cache.num_kv_heads)?,
            to_u32("blocks along the splits", num_blocks)?,
        ];
        Ok(Geometry { grid, block: [128, 1, 1], shared_bytes })
    }

    /// Arguments that both kernels begin with.
    fn inputs(&self) -> Vec<Argument> {
        let tree_rows = self.tree_rows.map_or(DeviceAddress::NULL, |(rows, _)| rows);
        vec![
            self.q.into(),
            self.cache.keys.into(),
            self.cache.values.into(),
            self.cache.key_scales.into(),
            self.cache.value_scales.into(),
            self.step.segments.into(),
            self.step.positions.into(),
            self.step.committed_lens.into(),
            tree_rows.into(),
        ]
    }

    /// Arguments that both kernels end with.
    fn shape(&self) -> Result<[Argument; 6], LaunchError> {
        Ok([
            to_i32("heads", self.num_heads)?.into(),
            to_i32("key/value heads", self.cache.num_kv_heads)?.into(),
            to_i32("rows of a lane", self.cache.capacity)?.into(),
            to_i32("depth of a tree", self.tree_rows.map_or(0, |(_, max_depth)| max_depth))?.into(),
            to_i32("window", self.window.unwrap_or(0))?.into(),
            self.scale.into(),
        ])
    }

    fn combine(
        &self,
        partial_out: DeviceAddress,
        partial_state: DeviceAddress,
    ) -> Result<Launch, LaunchError> {
        let (cache, step) = (&self.cache, &self.step);
        let geometry = Geometry {
            grid: [to_u32("tokens", step.num_tokens)?, to_u32("heads", self.num_heads)?, 1],
            block: [to_u32("head dimension", cache.head_dim.next_multiple_of(32))?, 1, 1],
            shared_bytes: 0,
        };
        let arguments = vec![
            partial_out.into(),
            partial_state.into(),
            step.positions.into(),
            step.lanes.into(),
            self.out.into(),
            to_i32("splits", step.max_splits())?.into(),
            to_i32("head dimension", cache.head_dim)?.into(),
            to_i32("window", self.window.unwrap_or(0))?.into(),
        ];
        Launch::new("attention_combine", geometry, arguments)
    }

    fn check(&self) -> Result<(), LaunchError> {
        let (cache, step) = (&self.cache, &self.step);
        cache.check()?;
        multiple_of("heads", non_zero("heads", self.num_heads)?, cache.num_kv_heads)?;
        non_zero("tokens", step.num_tokens)?;
        non_zero("segments", step.num_segments)?;
        at_most(
            "tokens of a segment",
            non_zero("tokens of a segment", step.max_segment_len)?,
            step.num_tokens,
        )?;
        at_most("positions", non_zero("positions", step.max_positions)?, cache.capacity)?;
        // Rows are found by 32-bit offsets from a head's first.
        at_most("bytes of a head's rows", cache.capacity.saturating_mul(cache.row_bytes()), 0x7fff_ffff)?;
        if let Some(window) = self.window {
            non_zero("window", window)?;
        }
        aligned("queries", self.q, 16)?;
        aligned("attention's result", self.out, 16)?;
        aligned("segments", step.segments, 16)?;
        aligned("positions", step.positions, 4)?;
        aligned("lanes", step.lanes, 4)?;
        if let Some((rows, max_depth)) = self.tree_rows {
            aligned("rows of trees", rows, 4)?;
            aligned("committed lengths", step.committed_lens, 4)?;
            non_zero("depth of a tree", max_depth)?;
        }
        equal("bytes of a segment", size_of::<Segment>(), 16)?;
        Ok(())
    }
}

/// Queries of a block's warps, where they are too large for registers.
fn shared_query_bytes(head_dim: usize) -> usize {
    if head_dim > 128 { NUM_WARPS * QUERIES_PER_WARP * head_dim * 2 } else { 0 }
}

/// What a block merges, F32: for each warp its accumulators, and largest score and sum; and its queries, or a stage of keys and values: four
/// steps of 16 positions, BF16.
fn in_order_shared_bytes(head_dim: usize) -> Result<u32, LaunchError> {
    let merged = NUM_WARPS * (head_dim / 2 + 4) * 32 * size_of::<f32>();
    let stage = if head_dim > 128 { 0 } else { 2 * NUM_WARPS * 16 * head_dim * 2 };
    to_u32("shared bytes", merged + stage + shared_query_bytes(head_dim))
}

/// For splits beside each other, and in order.
fn kernel(format: KvFormat, head_dim: usize) -> Result<(&'static str, &'static str), LaunchError> {
    use KvFormat::{Bf16, Fp8, Int8};
    Ok(match (format, head_dim) {
        (Bf16, 16) => ("attention_bf16_16", "attention_bf16_16_in_order"),
        (Bf16, 32) => ("attention_bf16_32", "attention_bf16_32_in_order"),
        (Bf16, 64) => ("attention_bf16_64", "attention_bf16_64_in_order"),
        (Bf16, 80) => ("attention_bf16_80", "attention_bf16_80_in_order"),
        (Bf16, 96) => ("attention_bf16_96", "attention_bf16_96_in_order"),
        (Bf16, 128) => ("attention_bf16_128", "attention_bf16_128_in_order"),
        (Bf16, 256) => ("attention_bf16_256", "attention_bf16_256_in_order"),
        (Fp8, 16) => ("attention_fp8_16", "attention_fp8_16_in_order"),
        (Fp8, 32) => ("attention_fp8_32", "attention_fp8_32_in_order"),
        (Fp8, 64) => ("attention_fp8_64", "attention_fp8_64_in_order"),
        (Fp8, 80) => ("attention_fp8_80", "attention_fp8_80_in_order"),
        (Fp8, 96) => ("attention_fp8_96", "attention_fp8_96_in_order"),
        (Fp8, 128) => ("attention_fp8_128", "attention_fp8_128_in_order"),
        (Fp8, 256) => ("attention_fp8_256", "attention_fp8_256_in_order"),
        (Int8, 16) => ("attention_int8_16", "attention_int8_16_in_order"),
        (Int8, 32) => ("attention_int8_32", "attention_int8_32_in_order"),
        (Int8, 64) => ("attention_int8_64", "attention_int8_64_in_order"),
        (Int8, 80) => ("attention_int8_80", "attention_int8_80_in_order"),
        (Int8, 96) => ("attention_int8_96", "attention_int8_96_in_order"),
        (Int8, 128) => ("attention_int8_128", "attention_int8_128_in_order"),
        (Int8, 256) => ("attention_int8_256", "attention_int8_256_in_order"),
        _ => {
            return Err(LaunchError::Unsupported {
                what: "head dimension",
                found: head_dim.to_string(),
                expected: "16, 32, 64, 80, 96, 128, 256",
            });
        }
    })
}
