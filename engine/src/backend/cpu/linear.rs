//! Matrix times activations, over all threads.
#![expect(unsafe_code, reason = "the tasks of one product each write their own columns of the output")]

use std::ops::Range;

use super::{
    activations::Activations,
    disjoint::Disjoint,
    kernels::{self, Isa, MAX_TOKENS, PAIR_ROWS, PairOut, PairPart, PairPlan},
    largest::{Found, LargestLogits},
    packed::{BLOCK_COLS, PackedMatrix, TILE_ROWS},
    pool::ThreadPool,
};

/// Tasks per thread: enough that a thread which the system took away delays the others little.
const TASKS_PER_THREAD: usize = 8;

/// Most tasks of a product on `num_threads` threads.
pub(super) fn max_tasks(num_threads: usize) -> usize {
    num_threads * TASKS_PER_THREAD
}

/// `out[m, n] = Σ_k w[n, k] · x[m, k]`: `w` `[N, K]`, `x` `[M, K]`, `out` `[M, N]` F32 row-major.
///
/// Invariant: a row of the output depends on its row of `x` alone: bit for bit the same for any M, any number of threads
/// and any instruction set.
///
/// # Panics
/// When the shapes do not match or `x` is not filled; shapes are the model's, validated at load.
pub fn linear(pool: &ThreadPool, w: &PackedMatrix, x: &Activations, out: &mut [f32]) {
    linear_on(Isa::detect(), pool, w, x, out);
}

/// [`linear`] with the kernels of `isa`.
///
/// # Panics
/// As [`linear`].
pub fn linear_on(isa: Isa, pool: &ThreadPool, w: &PackedMatrix, x: &Activations, out: &mut [f32]) {
    let product = Product::of(isa, pool, w, x, out.len());
    let out = Disjoint::new(out);
    pool.run(product.num_tasks, &|task_idx| {
        product.multiply(task_idx, &out);
    });
}

/// [`linear`] that also finds the largest of each row of `out`: every task looks at the columns that it has just written.
///
/// # Panics
/// As [`linear`].
pub(super) fn linear_with_largest(
    pool: &ThreadPool,
    w: &PackedMatrix,
    x: &Activations,
    out: &mut [f32],
    largest: &mut LargestLogits,
) {
    let product = Product::of(Isa::detect(), pool, w, x, out.len());
    let (num_tokens, num_rows) = (x.num_rows(), w.num_rows());
    let (out, found) = (Disjoint::new(out), Disjoint::new(largest.begin(product.num_tasks, num_tokens)));
    pool.run(product.num_tasks, &|task_idx| {
        let cols = product.multiply(task_idx, &out);
        // SAFETY: only this task writes its results.
        let found = unsafe { found.part(task_idx * num_tokens, num_tokens) };
        for (token_idx, found) in found.iter_mut().enumerate() {
            // SAFETY: these columns are this task's, which has done writing them.
            let logits = unsafe { out.part(token_idx * num_rows + cols.start, cols.len()) };
            *found = Found::of(logits, cols.start);
        }
    });
    largest.combine(num_tokens);
}

/// A product in tasks.
struct Product<'a> {
    isa: Isa,
    w: &'a PackedMatrix,
    x: &'a Activations,
    plan: Option<PairPlan>,
    num_pairs: usize,
    /// Pairs of tiles, then single tiles.
    num_units: usize,
    num_tasks: usize,
}

impl<'a> Product<'a> {
    fn of(isa: Isa, pool: &ThreadPool, w: &'a PackedMatrix, x: &'a Activations, out_len: usize) -> Self {
        let (num_tokens, num_rows) = (x.num_rows(), w.num_rows());
        assert_eq!(x.num_cols(), w.num_cols(), "activations and weights differ in columns");
        assert_eq!(out_len, num_tokens * num_rows, "output of [{num_tokens}, {num_rows}]");
        // Whole pairs of tiles; a matrix's last rows may be fewer.
        let plan = PairPlan::of(isa, x.arithmetic(), w.kind()).filter(|plan| num_tokens >= plan.min_tokens);
        let num_pairs = if plan.is_some() { num_rows / PAIR_ROWS } else { 0 };
        let num_units = num_pairs + (w.num_tiles() - 2 * num_pairs);
        let num_tasks = num_units.min(max_tasks(pool.num_threads()));
        Self { isa, w, x, plan, num_pairs, num_units, num_tasks }
    }

    /// Computes the columns of a task, and returns which.
    fn multiply(&self, task_idx: usize, out: &Disjoint<'_, f32>) -> Range<usize> {
        let Self { isa, w, x, plan, num_pairs, num_units, num_tasks } = *self;
        let units = task_idx * num_units / num_tasks..(task_idx + 1) * num_units / num_tasks;
        if let Some(plan) = plan {
            multiply_pairs(isa, plan, w, units.start..units.end.min(num_pairs), x, out);
        }
        let mut sums = [[0.0; TILE_ROWS]; MAX_TOKENS];
        for tile_idx in units.start.max(num_pairs)..units.end {
            multiply_tile(isa, w, num_pairs + tile_idx, x, &mut sums, out);
        }
        let col = |unit: usize| ((unit + unit.min(num_pairs)) * TILE_ROWS).min(w.num_rows());
        col(units.start)..col(units.end)
    }
}

/// Columns `[32 · pairs.start, 32 · pairs.end)` of the output, for all tokens. Pair after pair meets the same few columns of the
/// activations, so that these stay in the second-level cache.
fn multiply_pairs(
    isa: Isa,
    plan: PairPlan,
    w: &PackedMatrix,
    pairs: Range<usize>,
    x: &Activations,
    out: &Disjoint<'_, f32>,
) {
    let num_blocks = w.num_cols().div_ceil(BLOCK_COLS);
    // Parts of about equal length.
    let part_len = num_blocks.div_ceil(num_blocks.div_ceil(plan.max_blocks).max(1)).max(1);
    let pair = |pair_idx| [w.tile(2 * pair_idx), w.tile(2 * pair_idx + 1)];
    for first in (0..num_blocks).step_by(part_len) {
        for pair_idx in pairs.clone() {
            // After the last pair of the range its first pair's next blocks.
            let (next_pair, next_block) = if pair_idx + 1 < pairs.end {
                (pair_idx + 1, first)
            } else {
                (pairs.start, first + part_len)
            };
            let part = PairPart {
                pair: &pair(pair_idx),
                next: (&pair(next_pair), next_block),
                tokens: x.tokens(0..x.num_rows()),
                blocks: first..num_blocks.min(first + part_len),
                // SAFETY: only the task that owns this pair writes these columns.
                out: &unsafe { PairOut::new(out, w.num_rows(), pair_idx * PAIR_ROWS) },
            };
            kernels::multiply_pair(isa, x.arithmetic(), &part);
        }
    }
}

/// Columns `[16 · tile_idx, …)` of the output, for all tokens; `sums` is room.
fn multiply_tile(
    isa: Isa,
    w: &PackedMatrix,
    tile_idx: usize,
    x: &Activations,
    sums: &mut [[f32; TILE_ROWS]; MAX_TOKENS],
    out: &Disjoint<'_, f32>,
) {
    let tile = w.tile(tile_idx);
    let first_col = tile_idx * TILE_ROWS;
    let num_cols = TILE_ROWS.min(w.num_rows() - first_col);
    let step = isa.max_tokens();
    for first in (0..x.num_rows()).step_by(step) {
        let tokens = x.tokens(first..x.num_rows().min(first + step));
        let sums = &mut sums[..tokens.num_tokens];
        kernels::multiply_tile(isa, x.arithmetic(), &tile, &tokens, sums);
        for (token_idx, token_sums) in sums.iter().enumerate() {
            let at = (first + token_idx) * w.num_rows() + first_col;
            // SAFETY: only the task that owns this tile writes these columns, one token at a time.
            unsafe { out.part(at, num_cols) }.copy_from_slice(&token_sums[..num_cols]);
        }
    }
}

#[cfg(test)]
mod tests;
