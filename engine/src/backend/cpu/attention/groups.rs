//! Queries in groups of four and two that share each loaded key and value, where the registers hold their sums.

use std::ops::Range;

use super::{
    super::simd::Simd,
    MAX_TILE_ROWS, Query, Weights,
    tile::{accumulate, scores},
};

/// A row's score of every query, seen or not: `weights[i][t] = q[i] · tile[t]`. Queries share each loaded key.
#[inline(always)]
pub(super) fn scores_of_all<S: Simd>(queries: &[Query<'_>], tile: &[f32], weights: &mut Weights) {
    let Some(head_dim) = queries.first().map(|query| query.q.len()) else { return };
    let num_rows = tile.len() / head_dim;
    let mut first = 0;
    while first < queries.len() {
        let room = &mut weights[first..];
        first += match &queries[first..] {
            [a, b, c, d, ..] if S::MANY_REGISTERS => {
                let q = [a, b, c, d].map(|query| query.q);
                scores::<S, 4>(q, tile, first_rows(room, num_rows));
                4
            }
            [a, b, ..] if S::MANY_REGISTERS => {
                scores::<S, 2>([a.q, b.q], tile, first_rows(room, num_rows));
                2
            }
            rest => {
                scores::<S, 1>([rest[0].q], tile, first_rows(room, num_rows));
                1
            }
        };
    }
}

/// The first `num_rows` weights of the first `Q` queries.
#[inline(always)]
fn first_rows<const Q: usize>(weights: &mut [[f32; MAX_TILE_ROWS]], num_rows: usize) -> [&mut [f32]; Q] {
    let mut weights = weights.iter_mut();
    std::array::from_fn(|_| weights.next().map_or(&mut [][..], |weights| &mut weights[..num_rows]))
}

/// `out[i] += Σ weights[i][t] · tile[t]` over the rows that each query sees of those of positions `rows`, in order. Queries share
/// each loaded value as far as they see the same rows.
#[inline(always)]
pub(super) fn accumulate_all<S: Simd>(
    queries: &mut [Query<'_>],
    weights: &Weights,
    tile: &[f32],
    rows: Range<usize>,
) {
    let mut first = 0;
    while first < queries.len() {
        let weights = &weights[first..];
        first += match &mut queries[first..] {
            [a, b, c, d, ..] if S::MANY_REGISTERS => {
                accumulate_group::<S, 4>([a, b, c, d], weights, tile, rows.clone());
                4
            }
            [a, b, ..] if S::MANY_REGISTERS => {
                accumulate_group::<S, 2>([a, b], weights, tile, rows.clone());
                2
            }
            rest => {
                accumulate_group::<S, 1>([&mut rest[0]], weights, tile, rows.clone());
                1
            }
        };
    }
}

/// [`accumulate_all`] of `Q` queries: what only some see before, what all see, what only some see after.
#[inline(always)]
fn accumulate_group<S: Simd, const Q: usize>(
    mut queries: [&mut Query<'_>; Q],
    weights: &[[f32; MAX_TILE_ROWS]],
    tile: &[f32],
    rows: Range<usize>,
) {
    let head_dim = queries[0].q.len();
    let seen: [Range<usize>; Q] = std::array::from_fn(|i| {
        let seen = queries[i].seen(rows.start, rows.end);
        seen.start - rows.start..seen.end - rows.start
    });
    let start = seen.iter().map(|seen| seen.start).max().unwrap_or(0);
    let end = seen.iter().map(|seen| seen.end).min().unwrap_or(0);
    let all = start..end.max(start);
    let before = seen.clone().map(|seen| seen.start..seen.end.min(all.start));
    let after = seen.map(|seen| seen.start.max(all.end)..seen.end);
    accumulate_each::<S, Q>(&mut queries, weights, tile, before);
    if !all.is_empty() {
        let weights = std::array::from_fn(|i| &weights[i][all.clone()]);
        let values = &tile[all.start * head_dim..all.end * head_dim];
        accumulate::<S, Q>(weights, values, queries.each_mut().map(|query| &mut *query.out));
    }
    accumulate_each::<S, Q>(&mut queries, weights, tile, after);
}

/// Every query over rows of its own.
#[inline(always)]
fn accumulate_each<S: Simd, const Q: usize>(
    queries: &mut [&mut Query<'_>; Q],
    weights: &[[f32; MAX_TILE_ROWS]],
    tile: &[f32],
    rows: [Range<usize>; Q],
) {
    for ((query, weights), rows) in queries.iter_mut().zip(weights).zip(rows) {
        if !rows.is_empty() {
            let head_dim = query.q.len();
            let values = &tile[rows.start * head_dim..rows.end * head_dim];
            accumulate::<S, 1>([&weights[rows]], values, [&mut *query.out]);
        }
    }
}
