//! Causal grouped-query attention of a few query rows over one key/value head of a lane.
//!
//! Online softmax (Milakov and Gimelshein 2018) over tiles of stored rows: a tile is decoded to F32 once and used by every
//! query of the task. Tiles start at multiples of [`tile_rows`], so the order of a query's arithmetic depends on its own
//! position only: it does not matter with which other tokens it runs. Accumulation is F32 for every cache format.

mod groups;
mod softmax;
mod stored_head;
mod tile;

use std::{cell::RefCell, ops::Range};

use self::{
    groups::{accumulate_all, scores_of_all},
    softmax::{Softmax, TileScales},
    tile::{accumulate, decode, scores},
};
use super::{simd::Simd, vectors::Kernel};
use crate::kv::HeadRows;

pub use stored_head::StoredHead;

/// Most queries of one task: tokens × heads that share a key/value head.
pub(super) const MAX_QUERIES: usize = 32;
/// F32 values of a decoded tile: 16 KB, half of a first-level cache.
const TILE_VALUES: usize = 4096;
/// Most rows of a tile.
const MAX_TILE_ROWS: usize = 64;

/// Rows of a tile for heads of `head_dim` (at most 1024, by [`crate::spec::DecoderSpec::validate`]).
#[inline(always)]
fn tile_rows(head_dim: usize) -> usize {
    (TILE_VALUES / head_dim).min(MAX_TILE_ROWS)
}

/// Queries of consecutive tokens of one lane, all of one key/value head.
#[derive(Debug)]
pub(super) struct Attention<'a, 'q> {
    /// Stored keys and values.
    pub rows: HeadRows<'q>,
    /// The queries; at most [`MAX_QUERIES`].
    pub queries: &'a mut [Query<'q>],
    /// Factor of the scores.
    pub scale: f32,
    /// Whatever it holds.
    pub room: &'a mut Room,
}

/// One head of one token.
#[derive(Debug, Default)]
pub(super) struct Query<'a> {
    /// `[head_dim]`.
    pub q: &'a [f32],
    /// The result `[head_dim]`; accumulates unnormalized values meanwhile.
    pub out: &'a mut [f32],
    /// Rows it sees: `[first, end)`, not empty.
    pub first: usize,
    /// One past its own position.
    pub end: usize,
    /// In a tree: the rows of the last positions before `end`, which lie where their nodes were laid out; empty elsewhere, where row and position
    /// are the same.
    pub path: &'a [usize],
}

/// What a tile's rows weigh for each query: scores first.
type Weights = [[f32; MAX_TILE_ROWS]; MAX_QUERIES];

/// A decoded tile and its weights.
#[derive(Debug)]
pub(super) struct Room {
    tile: [f32; TILE_VALUES],
    weights: Weights,
}

thread_local! {
    /// Kept, since filling 24 KiB with zeros for every head is a hundredth of a decode step.
    static ROOM: RefCell<Room> =
        const { RefCell::new(Room { tile: [0.0; TILE_VALUES], weights: [[0.0; MAX_TILE_ROWS]; MAX_QUERIES] }) };
}

/// Lends the thread's room to `attend`.
///
/// # Panics
/// When `attend` asks for it again.
pub(super) fn with_room(attend: impl FnOnce(&mut Room)) {
    ROOM.with_borrow_mut(attend);
}

impl Kernel for Attention<'_, '_> {
    #[inline(always)]
    fn run<S: Simd>(self) {
        let Some(head_dim) = self.queries.first().map(|query| query.q.len()) else { return };
        let rows_per_tile = tile_rows(head_dim);
        let Room { tile: tile_room, weights } = self.room;
        let mut softmax = [Softmax::EMPTY; MAX_QUERIES];
        let first = self.queries.iter().map(|query| query.first).min().unwrap_or(0);
        // Up to here rows lie in their positions' order for all queries: tiles are decoded once.
        let is_tree = self.queries.iter().any(|query| !query.path.is_empty());
        let end = if is_tree {
            let shared = self.queries.iter().map(|query| query.end - query.path.len()).min().unwrap_or(0);
            shared - shared % rows_per_tile
        } else {
            self.queries.iter().map(|query| query.end).max().unwrap_or(0)
        };
        self.queries.iter_mut().for_each(|query| query.out.fill(0.0));

        let mut tile_start = first - first % rows_per_tile;
        while tile_start < end {
            let tile_end = (tile_start + rows_per_tile).min(end);
            let tile = &mut tile_room[..(tile_end - tile_start) * head_dim];
            let range = tile_start * head_dim..tile_end * head_dim;
            decode(self.rows.kind, self.rows.keys, range.clone(), tile);
            scores_of_all::<S>(self.queries, tile, weights);
            let rows = tile_start..tile_end;
            let scales = TileScales::new(
                self.scale,
                &self.rows.key_scales[rows.clone()],
                &self.rows.value_scales[rows],
            );
            for ((query, weights), softmax) in self.queries.iter_mut().zip(&mut *weights).zip(&mut softmax) {
                let seen = query.seen(tile_start, tile_end);
                let shrink =
                    softmax.add::<S>(weights, seen.start - tile_start..seen.end - tile_start, &scales);
                query.shrink(shrink);
            }
            decode(self.rows.kind, self.rows.values, range, tile);
            accumulate_all::<S>(self.queries, weights, tile, tile_start..tile_end);
            tile_start = tile_end;
        }
        if is_tree {
            for (query, softmax) in self.queries.iter_mut().zip(&mut softmax) {
                query.walk_tail::<S>(
                    &self.rows,
                    self.scale,
                    end.max(first - first % rows_per_tile),
                    softmax,
                    tile_room,
                );
            }
        }
        for (query, softmax) in self.queries.iter_mut().zip(&softmax) {
            let factor = softmax.factor();
            query.out.iter_mut().for_each(|value| *value *= factor);
        }
    }
}

impl Query<'_> {
    /// Tiles from `start` on, whose rows lie apart: gathered for this query alone, in the order and with the tiles of a plain step, so that the
    /// result is the same bit for bit.
    #[inline(always)]
    fn walk_tail<S: Simd>(
        &mut self,
        rows: &HeadRows<'_>,
        scale: f32,
        start: usize,
        softmax: &mut Softmax,
        tile: &mut [f32; TILE_VALUES],
    ) {
        let head_dim = self.q.len();
        let path_start = self.end - self.path.len();
        let row_of = |position: usize| {
            if position < path_start { position } else { self.path[position - path_start] }
        };
        let mut tile_start = start;
        while tile_start < self.end {
            let tile_end = (tile_start + tile_rows(head_dim)).min(self.end);
            let seen = self.seen(tile_start, tile_end);
            // As in a plain step, a row's place in the tile is that of its position.
            let slots = seen.start - tile_start..seen.end - tile_start;
            let mut weights = [0.0f32; MAX_TILE_ROWS];
            let mut scales = [[0.0f32; MAX_TILE_ROWS]; 2];
            for (position, slot) in seen.clone().zip(slots.clone()) {
                let row = row_of(position);
                let out = &mut tile[slot * head_dim..][..head_dim];
                decode(rows.kind, rows.keys, row * head_dim..(row + 1) * head_dim, out);
                (scales[0][slot], scales[1][slot]) = (rows.key_scales[row], rows.value_scales[row]);
            }
            let values = slots.start * head_dim..slots.end * head_dim;
            scores::<S, 1>([self.q], &tile[values.clone()], [&mut weights[slots.clone()]]);
            let scales = TileScales::new(scale, &scales[0], &scales[1]);
            self.shrink(softmax.add::<S>(&mut weights, slots.clone(), &scales));
            for (position, slot) in seen.zip(slots.clone()) {
                let row = row_of(position);
                let out = &mut tile[slot * head_dim..][..head_dim];
                decode(rows.kind, rows.values, row * head_dim..(row + 1) * head_dim, out);
            }
            accumulate::<S, 1>([&weights[slots]], &tile[values], [&mut *self.out]);
            tile_start = tile_end;
        }
    }

    /// Multiplies what was accumulated so far.
    #[inline(always)]
    fn shrink(&mut self, factor: f32) {
        // Most tiles hold no new maximum.
        if factor != 1.0 {
            self.out.iter_mut().for_each(|value| *value *= factor);
        }
    }

    /// The rows of tile `[start, end)` this query sees; may be empty.
    #[inline(always)]
    fn seen(&self, start: usize, end: usize) -> Range<usize> {
        let first = self.first.clamp(start, end);
        first..self.end.clamp(first, end)
    }
}

#[cfg(test)]
mod tests {
    use std::slice;

    use super::*;
    use crate::{
        backend::cpu::vectors::Vectors,
        kv::{KvKind, load},
    };

    /// `[num_rows, head_dim]` values that differ in every element.
    fn waves(num_rows: usize, head_dim: usize, phase: f32) -> Vec<f32> {
        (0..num_rows * head_dim).map(|i| (i as f32 * 0.37 + phase).sin() * 2.0).collect()
    }

    /// Plain softmax over F64 of what [`load`] reads.
    fn expected(rows: &HeadRows<'_>, q: &[f32], scale: f32, seen: Range<usize>) -> Vec<f64> {
        let width = q.len() * rows.kind.element_bytes();
        let value = |bytes: &[u8], scales: &[f32], t: usize, i: usize| {
            f64::from(load(rows.kind, &bytes[t * width..(t + 1) * width], i)) * f64::from(scales[t])
        };
        let score = |t: usize| {
            let dot: f64 =
                (0..q.len()).map(|i| f64::from(q[i]) * value(rows.keys, rows.key_scales, t, i)).sum();
            dot * f64::from(scale)
        };
        let max = seen.clone().map(score).fold(f64::NEG_INFINITY, f64::max);
        let weights: Vec<f64> = seen.clone().map(|t| (score(t) - max).exp()).collect();
        let sum: f64 = weights.iter().sum();
        let weighted = |i: usize| {
            seen.clone()
                .zip(&weights)
                .map(|(t, w)| w / sum * value(rows.values, rows.value_scales, t, i))
                .sum()
        };
        (0..q.len()).map(weighted).collect()
    }

    #[test]
    fn attention_matches_plain_softmax_for_every_format_width_window_and_instruction_set() {
        for (kind, head_dim) in
            KvKind::ALL.into_iter().flat_map(|kind| [16, 36, 64, 80, 96, 128, 256].map(|d| (kind, d)))
        {
            let head =
                StoredHead::new(kind, head_dim, &waves(150, head_dim, 0.0), &waves(150, head_dim, 1.0));
            let rows = head.rows();
            // As groups of four and two: the second of queries that see the same.
            let seen = [0..1, 0..150, 37..101, 63..64, 64..130, 64..130, 60..130, 64..132, 0..150, 0..150];
            let q: Vec<f32> = (0..seen.len() * head_dim).map(|i| (i as f32 * 0.91).cos()).collect();
            for vectors in Vectors::available() {
                let attend = |q: &[f32], seen: &[Range<usize>]| {
                    let mut out = vec![f32::NAN; q.len()];
                    let parts = q.chunks(head_dim).zip(out.chunks_mut(head_dim)).zip(seen);
                    let mut queries: Vec<_> = parts
                        .map(|((q, out), seen)| Query { q, out, first: seen.start, end: seen.end, path: &[] })
                        .collect();
                    with_room(|room| {
                        vectors.run(Attention { rows, queries: &mut queries, scale: 0.3, room })
                    });
                    out
                };
                let out = attend(&q, &seen);
                let alone: Vec<f32> = q
                    .chunks(head_dim)
                    .zip(&seen)
                    .flat_map(|(q, seen)| attend(q, slice::from_ref(seen)))
                    .collect();
                assert!(
                    out.iter().zip(&alone).all(|(a, b)| a.to_bits() == b.to_bits()),
                    "{vectors:?} {kind} {head_dim}"
                );
                for ((q, out), seen) in q.chunks(head_dim).zip(out.chunks(head_dim)).zip(&seen) {
                    for (found, expected) in out.iter().zip(expected(&rows, q, 0.3, seen.clone())) {
                        let error = (f64::from(*found) - expected).abs();
                        assert!(
                            error < 1e-5,
                            "{vectors:?} {kind} {head_dim} {seen:?}: {found}, expected {expected}"
                        );
                    }
                }
            }
        }
    }

    #[test]
    fn a_stored_head_is_seen_causally() {
        let (head_dim, num_rows, heads_per_token) = (32, 70, 2);
        let head = StoredHead::new(
            KvKind::Bf16,
            head_dim,
            &waves(num_rows, head_dim, 0.0),
            &waves(num_rows, head_dim, 1.0),
        );
        let q = waves(3 * heads_per_token, head_dim, 2.0);
        let mut out = vec![f32::NAN; q.len()];
        head.attend(heads_per_token, &q, &mut out);
        for (idx, (q, out)) in q.chunks(head_dim).zip(out.chunks(head_dim)).enumerate() {
            let seen = 0..num_rows - 2 + idx / heads_per_token;
            let exact = expected(&head.rows(), q, (head_dim as f32).sqrt().recip(), seen);
            assert!(out.iter().zip(exact).all(|(out, exact)| (f64::from(*out) - exact).abs() < 1e-5));
        }
    }
}
