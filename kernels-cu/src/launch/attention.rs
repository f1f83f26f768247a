//! Attention: slices of a prompt, decode steps and tree verification.
//!
//! One family of kernels serves all of them with the same bits (see `cu/attention.cu`); what differs is who merges the splits of a long
//! context: [`Merging::InOrder`] or [`Merging::Beside`]. [`Merging::for_gpu`] chooses what is faster.

use super::{
    DeviceAddress, Geometry, KvCache, KvFormat, Launch, LaunchError, aligned, at_most, equal, multiple_of,
    non_zero, to_i32, to_u32,
};

/// Positions of a split: the unit of merging. Part of the order of arithmetic.
pub const SPLIT_LEN: usize = 128;
/// Elements of a head there are kernels for.
pub const HEAD_DIMS: [usize; 5] = [64, 80, 96, 128, 256];

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
    /// Most tokens of a segment.
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
        let (partial_out, partial_state, num_blocks) = match merging {
            Merging::InOrder => (DeviceAddress::NULL, DeviceAddress::NULL, 1),
            Merging::Beside { partial_out, partial_state, num_blocks } => (
                aligned("partial results", partial_out, 16)?,
                aligned("maxima and sums of splits", partial_state, 8)?,
                non_zero("blocks along the splits", num_blocks)?,
            ),
        };
        let mut launches = vec![self.walk(partial_out, partial_state, num_blocks)?];
        if merging != Merging::InOrder {
            launches.push(self.combine(partial_out, partial_state)?);
        }
        Ok(launches)
    }

    fn walk(
        &self,
        partial_out: DeviceAddress,
        partial_state: DeviceAddress,
        num_blocks: usize,
    ) -> Result<Launch, LaunchError> {
        let (cache, step) = (&self.cache, &self.step);
        let in_order = partial_out == DeviceAddress::NULL;
        let num_queries = step.max_segment_len.saturating_mul(self.num_heads / cache.num_kv_heads);
        let tiling = Tiling::of(num_queries, in_order);
        let geometry = Geometry {
            grid: [
                to_u32("blocks of queries", tiling.num_groups.saturating_mul(step.num_segments))?,
                to_u32("key/value heads", cache.num_kv_heads)?,
                to_u32("blocks along the splits", num_blocks)?,
            ],
            block: [128, 1, 1],
            shared_bytes: shared_bytes(cache.head_dim, in_order)?,
        };
        let (tree_rows, max_depth) = self.tree_rows.unwrap_or((DeviceAddress::NULL, 0));
        let arguments = vec![
            self.q.into(),
            cache.keys.into(),
            cache.values.into(),
            cache.key_scales.into(),
            cache.value_scales.into(),
            step.segments.into(),
            step.positions.into(),
            step.committed_lens.into(),
            tree_rows.into(),
            self.out.into(),
            partial_out.into(),
            partial_state.into(),
            to_i32("segments", step.num_segments)?.into(),
            to_i32("warps of queries", tiling.row_warps)?.into(),
            to_i32("splits", step.max_splits())?.into(),
            to_i32("heads", self.num_heads)?.into(),
            to_i32("key/value heads", cache.num_kv_heads)?.into(),
            to_i32("rows of a lane", cache.capacity)?.into(),
            to_i32("depth of a tree", max_depth)?.into(),
            to_i32("window", self.window.unwrap_or(0))?.into(),
            self.scale.into(),
        ];
        Launch::new(kernel(cache.format, cache.head_dim)?, geometry, arguments)
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

/// What a block keeps of its warps: queries too large for registers, and what is merged in order.
fn shared_bytes(head_dim: usize, in_order: bool) -> Result<u32, LaunchError> {
    let queries = if head_dim > 128 { QUERIES_PER_WARP * head_dim * 2 } else { 0 };
    let merged = if in_order { (head_dim / 2 + 4) * 32 * 4 } else { 0 };
    to_u32("shared bytes", NUM_WARPS * (queries + merged))
}

fn kernel(format: KvFormat, head_dim: usize) -> Result<&'static str, LaunchError> {
    use KvFormat::{Bf16, Fp8, Int8};
    Ok(match (format, head_dim) {
        (Bf16, 64) => "attention_bf16_64",
        (Bf16, 80) => "attention_bf16_80",
        (Bf16, 96) => "attention_bf16_96",
        (Bf16, 128) => "attention_bf16_128",
        (Bf16, 256) => "attention_bf16_256",
        (Fp8, 64) => "attention_fp8_64",
        (Fp8, 80) => "attention_fp8_80",
        (Fp8, 96) => "attention_fp8_96",
        (Fp8, 128) => "attention_fp8_128",
        (Fp8, 256) => "attention_fp8_256",
        (Int8, 64) => "attention_int8_64",
        (Int8, 80) => "attention_int8_80",
        (Int8, 96) => "attention_int8_96",
        (Int8, 128) => "attention_int8_128",
        (Int8, 256) => "attention_int8_256",
        _ => {
            return Err(LaunchError::Unsupported {
                what: "head dimension",
                found: head_dim.to_string(),
                expected: "64, 80, 96, 128, 256",
            });
        }
    })
}
