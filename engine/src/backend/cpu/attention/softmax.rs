//! Online softmax: what a tile's rows weigh for a query.
//!
//! Loops run over whole registers, whatever part of a tile a query sees: rows that it does not see score -∞ and weigh nothing.

use std::ops::Range;

use super::{
    super::{
        simd::{LANES, Simd, reduce},
        vectors::{exp, mul_add},
    },
    MAX_TILE_ROWS,
};

/// Largest score so far and the sum of `exp(score - max)`.
#[derive(Debug, Clone, Copy)]
pub(super) struct Softmax {
    max: f32,
    sum: f32,
}

/// What is the same for all queries of a tile; 0 for rows it does not have.
#[derive(Debug)]
pub(super) struct TileScales {
    /// Of a row's scores.
    pub keys: [f32; MAX_TILE_ROWS],
    /// Of a row's values.
    pub values: [f32; MAX_TILE_ROWS],
}

impl TileScales {
    /// Of rows with these scales, whose scores are multiplied by `scale` besides.
    #[inline(always)]
    pub(super) fn new(scale: f32, key_scales: &[f32], value_scales: &[f32]) -> Self {
        let mut scales = Self { keys: [0.0; MAX_TILE_ROWS], values: [0.0; MAX_TILE_ROWS] };
        for (to, key_scale) in scales.keys.iter_mut().zip(key_scales) {
            *to = scale * key_scale;
        }
        scales.values[..value_scales.len()].copy_from_slice(value_scales);
        scales
    }
}

impl Softmax {
    /// Of nothing.
    pub(super) const EMPTY: Self = Self { max: f32::NEG_INFINITY, sum: 0.0 };

    /// What makes accumulated values an average.
    #[inline(always)]
    pub(super) fn factor(&self) -> f32 {
        1.0 / self.sum
    }

    /// Turns a tile's products into the weights of its values, relative to the new maximum; gives the factor for everything
    /// accumulated so far. Rows outside `seen` weigh 0.
    #[inline(always)]
    pub(super) fn add<S: Simd>(
        &mut self,
        weights: &mut [f32; MAX_TILE_ROWS],
        seen: Range<usize>,
        scales: &TileScales,
    ) -> f32 {
        if seen.is_empty() {
            return 1.0;
        }
        // Registers that have a row which is seen; those before it are passed over with it.
        let num_chunks = seen.end.div_ceil(LANES);
        let chunks = &mut weights.as_chunks_mut::<LANES>().0[..num_chunks];
        let (key_scales, value_scales) =
            (&scales.keys.as_chunks::<LANES>().0[..num_chunks], scales.values.as_chunks::<LANES>().0);
        let mut maxima = [f32::NEG_INFINITY; LANES];
        for (chunk_idx, (chunk, scales)) in chunks.iter_mut().zip(key_scales).enumerate() {
            let (start, end) = (
                seen.start as i32 - (chunk_idx * LANES) as i32,
                seen.end as i32 - (chunk_idx * LANES) as i32,
            );
            for lane in 0..LANES {
                let is_seen = start <= lane as i32 && (lane as i32) < end;
                let score = if is_seen { chunk[lane] * scales[lane] } else { f32::NEG_INFINITY };
                chunk[lane] = score;
                // A score that is no number is never the largest.
                maxima[lane] = if score > maxima[lane] { score } else { maxima[lane] };
            }
        }
        let max = largest(maxima).max(self.max);
        if max == f32::NEG_INFINITY {
            // Scores that are all -∞ or NaN, which then show as a sum of 0.
            return 1.0;
        }
        let shrink = exp::<S>(self.max - max);
        let mut sums = [0.0f32; LANES];
        for (chunk, scales) in chunks.iter_mut().zip(value_scales) {
            for lane in 0..LANES {
                let weight = exp::<S>(chunk[lane] - max);
                sums[lane] += weight;
                chunk[lane] = weight * scales[lane];
            }
        }
        self.sum = mul_add::<S>(self.sum, shrink, reduce(sums));
        self.max = max;
        shrink
    }
}

/// The largest of the lanes, none of which is NaN: halves first.
#[inline(always)]
fn largest(mut maxima: [f32; LANES]) -> f32 {
    let mut width = LANES / 2;
    while width > 0 {
        for lane in 0..width {
            maxima[lane] =
                if maxima[lane] > maxima[lane + width] { maxima[lane] } else { maxima[lane + width] };
        }
        width /= 2;
    }
    maxima[0]
}
