//! Work on the rows of a buffer, spread over the pool when it is worth a hand-over.
#![expect(unsafe_code, reason = "the tasks of one job each write their own row")]

use super::{disjoint::Disjoint, pool::ThreadPool};

/// Below this much work (about one multiply-add each) waking other threads costs more than it saves: a hand-over takes
/// 1–2 µs, in which one core does some 20 thousand vectorized multiply-adds.
const MIN_SHARED_WORK: usize = 1 << 15;

/// Calls `task(row_idx, row)` for each `row_len` values of `buffer`; `row_work` is the work of one row in multiply-adds.
pub(super) fn for_each_row(
    pool: &ThreadPool,
    row_work: usize,
    buffer: &mut [f32],
    row_len: usize,
    task: impl Fn(usize, &mut [f32]) + Sync,
) {
    let num_rows = buffer.len() / row_len;
    if num_rows.saturating_mul(row_work) < MIN_SHARED_WORK {
        buffer.chunks_exact_mut(row_len).enumerate().for_each(|(row_idx, row)| task(row_idx, row));
        return;
    }
    let rows = Disjoint::new(buffer);
    pool.run(num_rows, &|row_idx| {
        // SAFETY: the pool calls each `row_idx` once, and rows of equal length do not overlap.
        task(row_idx, unsafe { rows.part(row_idx * row_len, row_len) });
    });
}
