//! Everything a step writes, allocated once for the largest plan.

use std::ops::Range;

use super::{
    activations::{Activations, Arithmetic},
    attention::MAX_QUERIES,
    largest::LargestLogits,
    linear::max_tasks,
};
use crate::{
    backend::plan_check::num_logits_rows,
    kv::{KvLanes, LaneId},
    spec::DecoderSpec,
    step::{Detail, StepPlan},
};

/// Buffers `[max_tokens, …]` of one step and where its tokens belong.
#[derive(Debug)]
pub(super) struct Arena {
    /// Where each token of the plan goes.
    pub places: Vec<Place>,
    /// Rows of every tree node's path from the root, the node included, one path after another.
    paths: Vec<usize>,
    /// Runs of tokens that attend together.
    pub blocks: Vec<Block>,
    /// Tokens whose logits are wanted.
    pub logits_tokens: Vec<usize>,
    /// First logits row of each segment, and one past the last.
    pub first_row: Vec<usize>,
    /// Residual stream `[M, D]`.
    pub residual: Vec<f32>,
    /// What a block adds to it `[M, D]`.
    pub delta: Vec<f32>,
    /// Q, K, V `[M, (H + 2·G) · d]`.
    pub qkv: Vec<f32>,
    /// Attention results, one contiguous part a task; see [`AttentionTasks`].
    pub attended: Vec<f32>,
    /// Gate and up `[M, 2·F]`.
    pub gate_up: Vec<f32>,
    /// Logits `[R, V]`.
    pub logits: Vec<f32>,
    /// The largest of each row, for a step of which somebody wants no more.
    pub largest: LargestLogits,
    pub wants_largest: bool,
    /// Rows of the residual stream: one a token, until [`Self::keep_wanted`].
    pub num_rows: usize,
    /// Layers at whose input the residual stream is kept.
    pub captured: Vec<usize>,
    /// What is kept `[M, captured, D]`.
    pub features: Vec<f32>,
    /// Input of QKV and of gate/up `[M, D]`.
    pub normed: Activations,
    /// Input of the output projection `[M, H · d]`.
    pub heads: Activations,
    /// Input of down `[M, F]`.
    pub gated: Activations,
    /// Input of the output head `[R, D]`.
    pub last: Activations,
}

/// Where one token goes.
#[derive(Debug, Clone, Copy)]
pub(super) struct Place {
    pub lane: LaneId,
    /// In the text: what RoPE and the causal mask go by.
    pub position: usize,
    /// In the lane: where its key and value lie. Differs from the position within a tree.
    pub row: usize,
    /// Where its ancestors' rows and its own begin in [`Arena::paths`], and how many they are; none outside of trees.
    path: (usize, usize),
}

/// Tokens of one segment that attend together.
#[derive(Debug, Clone)]
pub(super) struct Block {
    /// Tokens of the plan.
    pub tokens: Range<usize>,
    pub lane: LaneId,
}

/// Depth of trees for which memory is set aside; deeper ones make it grow once.
const USUAL_PATH_LEN: usize = 12;

/// Most tokens and logits rows of one plan, and most segments.
#[derive(Debug, Clone, Copy)]
pub(super) struct StepLimits {
    pub max_tokens: usize,
    pub max_logits_rows: usize,
    pub num_lanes: usize,
}

/// Numbers each F32 buffer of an [`Arena`] holds.
struct Lens {
    residual: usize,
    qkv: usize,
    attended: usize,
    gate_up: usize,
    logits: usize,
}

impl Lens {
    fn of(spec: &DecoderSpec, limits: StepLimits) -> Self {
        let StepLimits { max_tokens, max_logits_rows, .. } = limits;
        Self {
            residual: max_tokens * spec.hidden_size,
            qkv: max_tokens * (spec.q_dim() + 2 * spec.kv_dim()),
            attended: limits.max_blocks(spec) * AttentionTasks::block_len(spec) * spec.q_dim(),
            gate_up: max_tokens * 2 * spec.intermediate_size,
            logits: max_logits_rows * spec.vocab_size,
        }
    }
}

impl StepLimits {
    /// A block is never shorter than its lane's tokens demand, so at most one block a lane is not full.
    fn max_blocks(self, spec: &DecoderSpec) -> usize {
        (self.max_tokens / AttentionTasks::block_len(spec) + self.num_lanes).min(self.max_tokens)
    }
}

impl Arena {
    /// Bytes of the large buffers that [`Self::new`] allocates.
    pub(super) fn num_bytes(spec: &DecoderSpec, limits: StepLimits, arithmetic: Arithmetic) -> u64 {
        let lens = Lens::of(spec, limits);
        let numbers = 2 * lens.residual + lens.qkv + lens.attended + lens.gate_up + lens.logits;
        let inputs = [
            (limits.max_tokens, spec.hidden_size),
            (limits.max_tokens, spec.q_dim()),
            (limits.max_tokens, spec.intermediate_size),
            (limits.max_logits_rows, spec.hidden_size),
        ];
        let inputs = inputs.map(|(rows, cols)| Activations::bytes_for(arithmetic, rows, cols));
        (numbers * size_of::<f32>()) as u64 + inputs.iter().sum::<u64>()
    }

    /// Buffers for plans within `limits`.
    pub(super) fn new(spec: &DecoderSpec, limits: StepLimits, arithmetic: Arithmetic) -> Self {
        let (max_tokens, max_rows) = (limits.max_tokens, limits.max_logits_rows);
        let (hidden, inner) = (spec.hidden_size, spec.intermediate_size);
        let lens = Lens::of(spec, limits);
        Self {
            places: Vec::with_capacity(max_tokens),
            paths: Vec::with_capacity(max_tokens * USUAL_PATH_LEN),
            blocks: Vec::with_capacity(limits.max_blocks(spec)),
            logits_tokens: Vec::with_capacity(max_rows),
            first_row: Vec::with_capacity(limits.num_lanes + 1),
            residual: vec![0.0; lens.residual],
            delta: vec![0.0; lens.residual],
            qkv: vec![0.0; lens.qkv],
            attended: vec![0.0; lens.attended],
            gate_up: vec![0.0; lens.gate_up],
            logits: vec![0.0; lens.logits],
            largest: LargestLogits::default(),
            wants_largest: false,
            num_rows: 0,
            captured: Vec::new(),
            features: Vec::new(),
            normed: Activations::new(arithmetic, max_tokens, hidden),
            heads: Activations::new(arithmetic, max_tokens, spec.q_dim()),
            gated: Activations::new(arithmetic, max_tokens, inner),
            last: Activations::new(arithmetic, max_rows, hidden),
        }
    }

    /// Room to look for the largest logits on `num_threads` threads.
    pub(super) fn with_largest(self, num_threads: usize) -> Self {
        let largest = LargestLogits::new(max_tasks(num_threads), self.logits_tokens.capacity());
        Self { largest, ..self }
    }

    /// Rows of the path of token `token_idx` from its tree's root, itself included; empty outside of trees.
    pub(super) fn path(&self, token_idx: usize) -> &[usize] {
        let (start, len) = self.places[token_idx].path;
        &self.paths[start..start + len]
    }

    fn lay_out_tree(&mut self, lane: LaneId, parents: &[usize], first_row: usize) {
        let first_place = self.places.len();
        for (node, &parent) in parents.iter().enumerate() {
            let (above_start, above_len) =
                if node == 0 { (0, 0) } else { self.places[first_place + parent].path };
            let start = self.paths.len();
            self.paths.extend_from_within(above_start..above_start + above_len);
            self.paths.push(first_row + node);
            let place = Place {
                lane,
                position: first_row + above_len,
                row: first_row + node,
                path: (start, above_len + 1),
            };
            self.places.push(place);
        }
    }

    /// Begins to lay rows out one by one: [`Self::push_row`], then [`Self::end_rows`].
    pub(super) fn begin_rows(&mut self) {
        self.places.clear();
        self.paths.clear();
        self.blocks.clear();
    }

    /// A row of `lane` at `position` of the text, stored as `row`; `path` are the stored rows of its last positions, itself included, where those
    /// are not where their positions say.
    pub(super) fn push_row(
        &mut self,
        lane: LaneId,
        position: usize,
        row: usize,
        path: impl IntoIterator<Item = usize>,
    ) {
        let start = self.paths.len();
        self.paths.extend(path);
        let path = (start, self.paths.len() - start);
        self.places.push(Place { lane, position, row, path });
    }

    /// Groups the rows into blocks of one lane each.
    pub(super) fn end_rows(&mut self, block_len: usize) {
        for (idx, place) in self.places.iter().enumerate() {
            match self.blocks.last_mut() {
                Some(block) if block.lane == place.lane && block.tokens.len() < block_len => {
                    block.tokens.end = idx + 1;
                }
                _ => self.blocks.push(Block { tokens: idx..idx + 1, lane: place.lane }),
            }
        }
        self.num_rows = self.places.len();
    }

    /// Notes where the tokens of a checked plan go.
    pub(super) fn lay_out(&mut self, plan: &StepPlan, lanes: &KvLanes, block_len: usize) {
        self.places.clear();
        self.paths.clear();
        self.blocks.clear();
        self.logits_tokens.clear();
        self.first_row.clear();
        self.largest.clear();
        self.wants_largest = false;
        for segment in &plan.segments {
            let (lane, tokens) = (segment.lane, segment.tokens.clone());
            let position = lanes.committed_len(lane);
            if segment.is_tree {
                self.lay_out_tree(lane, &plan.parents[tokens.clone()], position);
            } else {
                let place = |row: usize| Place { lane, position: row, row, path: (0, 0) };
                self.places.extend((position..position + tokens.len()).map(place));
            }
            let blocks = tokens.clone().step_by(block_len);
            self.blocks
                .extend(blocks.map(|start| Block { tokens: start..tokens.end.min(start + block_len), lane }));
            self.first_row.push(self.logits_tokens.len());
            self.logits_tokens.extend(tokens.end - num_logits_rows(segment)..tokens.end);
            self.wants_largest |= match segment.detail {
                // Within a form, too, the likeliest of all is mostly the choice.
                Detail::Likeliest(_) => true,
                Detail::Chosen(sampler) => sampler.params().is_greedy(),
                Detail::Whole | Detail::OnDemand => false,
            };
        }
        self.first_row.push(self.logits_tokens.len());
        self.num_rows = self.places.len();
    }

    /// Keeps of the residual stream the rows whose logits are wanted, in their order.
    pub(super) fn keep_wanted(&mut self, hidden: usize) {
        // Ascending, so that no row is overwritten before it has moved.
        for (row_idx, &token_idx) in self.logits_tokens.iter().enumerate() {
            self.residual.copy_within(token_idx * hidden..(token_idx + 1) * hidden, row_idx * hidden);
        }
        self.num_rows = self.logits_tokens.len();
    }

    /// The token of a row of the residual stream.
    pub(super) fn token_of_row(&self, row_idx: usize) -> usize {
        if self.num_rows == self.places.len() { row_idx } else { self.logits_tokens[row_idx] }
    }

    /// The row of the residual stream that the logits of row `logits_row` come from.
    fn row_of_logits(&self, logits_row: usize) -> usize {
        if self.num_rows == self.places.len() { self.logits_tokens[logits_row] } else { logits_row }
    }

    /// What the logits of row `logits_row` come from.
    pub(super) fn residual_of_logits(&self, logits_row: usize, hidden: usize) -> &[f32] {
        &self.residual[self.row_of_logits(logits_row) * hidden..][..hidden]
    }
}

/// How attention of one step is cut into tasks: a block of tokens × a run of query heads that share a key/value head.
///
/// Task `(block, g, split)` owns part `(block · G + g) · num_splits + split` of [`Arena::attended`],
/// `[block_len, heads_per_task, d]`.
#[derive(Debug, Clone, Copy)]
pub(super) struct AttentionTasks {
    pub block_len: usize,
    pub heads_per_task: usize,
    pub num_splits: usize,
    num_kv_heads: usize,
}

impl AttentionTasks {
    /// Tokens of a full block: what fits beside the query heads that share a key/value head.
    pub(super) fn block_len(spec: &DecoderSpec) -> usize {
        MAX_QUERIES / largest_divisor(spec.num_q_heads / spec.num_kv_heads, MAX_QUERIES)
    }

    /// Enough tasks for `num_threads`, while as many heads as possible share each decoded key and value.
    pub(super) fn new(spec: &DecoderSpec, num_blocks: usize, num_threads: usize) -> Self {
        let group = spec.num_q_heads / spec.num_kv_heads;
        let wanted_splits = num_threads.div_ceil(num_blocks.max(1) * spec.num_kv_heads);
        let heads_per_task = largest_divisor(group, MAX_QUERIES.min(group.div_ceil(wanted_splits)));
        Self {
            block_len: Self::block_len(spec),
            heads_per_task,
            num_splits: group / heads_per_task,
            num_kv_heads: spec.num_kv_heads,
        }
    }

    /// Index of a task's part.
    pub(super) fn part(&self, block_idx: usize, kv_head: usize, split: usize) -> usize {
        (block_idx * self.num_kv_heads + kv_head) * self.num_splits + split
    }

    /// `(block_idx, kv_head, split)` of a part.
    pub(super) fn task(&self, part: usize) -> (usize, usize, usize) {
        let run = part / self.num_splits;
        (run / self.num_kv_heads, run % self.num_kv_heads, part % self.num_splits)
    }
}

/// Largest divisor of `value` up to `limit`.
fn largest_divisor(value: usize, limit: usize) -> usize {
    (1..=limit.min(value)).rev().find(|divisor| value.is_multiple_of(*divisor)).unwrap_or(1)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn attention_tasks_split_heads_only_when_threads_would_idle() {
        let spec = crate::shapes::decoder_spec("qwen3-4b").unwrap();
        let tasks = |num_blocks, threads| AttentionTasks::new(&spec, num_blocks, threads);
        assert_eq!((tasks(1, 8).heads_per_task, tasks(1, 8).num_splits), (4, 1));
        assert_eq!((tasks(1, 12).heads_per_task, tasks(1, 12).num_splits), (2, 2));
        assert_eq!((tasks(1, 64).heads_per_task, tasks(1, 64).num_splits), (1, 4));
        assert_eq!(tasks(8, 64).num_splits, 1);
        assert_eq!(tasks(1, 12).task(tasks(1, 12).part(5, 3, 1)), (5, 3, 1));
    }

    #[test]
    fn largest_divisors_stay_within_the_limit() {
        assert_eq!(
            [(12, 16), (32, 16), (71, 16), (1, 16), (6, 4)].map(|(v, l)| largest_divisor(v, l)),
            [12, 16, 1, 1, 3]
        );
    }
}
