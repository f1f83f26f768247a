//! Rotary position embedding (Su et al. 2021): a table of cosines and sines for every position a lane can hold.

use super::{
    simd::Simd,
    vectors::{Kernel, mul_add},
};
use crate::spec::{RopePairing, RopeSpec};

/// Cosines and sines `[lane_capacity, num_pairs]`, times the attention factor.
///
/// Angles are F32 products `position · inv_freq`, as transformers computes them: far from the origin an exact product
/// would give other values than the ones the model was trained with.
#[derive(Debug)]
pub(super) struct RopeTable {
    cos: Vec<f32>,
    sin: Vec<f32>,
    num_pairs: usize,
    pairing: RopePairing,
}

impl RopeTable {
    /// The table of `rope` for positions `0..lane_capacity`.
    pub(super) fn new(rope: &RopeSpec, lane_capacity: usize) -> Self {
        let num_pairs = rope.inv_freq.len();
        let angles =
            || (0..lane_capacity).flat_map(|at| rope.inv_freq.iter().map(move |freq| at as f32 * freq));
        Self {
            cos: angles().map(|angle| angle.cos() * rope.attention_factor).collect(),
            sin: angles().map(|angle| angle.sin() * rope.attention_factor).collect(),
            num_pairs,
            pairing: rope.pairing,
        }
    }

    /// Bytes that [`Self::new`] allocates.
    pub(super) fn bytes_for(rope: &RopeSpec, lane_capacity: usize) -> u64 {
        (2 * lane_capacity * rope.inv_freq.len() * size_of::<f32>()) as u64
    }

    /// The rotation of `position`.
    pub(super) fn rotation(&self, position: usize) -> Rotation<'_> {
        let range = position * self.num_pairs..(position + 1) * self.num_pairs;
        Rotation { cos: &self.cos[range.clone()], sin: &self.sin[range], pairing: self.pairing }
    }
}

/// One position's rotation.
#[derive(Debug, Clone, Copy)]
pub(super) struct Rotation<'a> {
    cos: &'a [f32],
    sin: &'a [f32],
    pairing: RopePairing,
}

impl Rotation<'_> {
    /// Rotates the first `2 · num_pairs` elements of every head of `heads` `[num_heads, head_dim]` in place.
    #[inline(always)]
    pub(super) fn apply<S: Simd>(&self, heads: &mut [f32], head_dim: usize) {
        let num_pairs = self.cos.len();
        for head in heads.chunks_exact_mut(head_dim) {
            let rotary = &mut head[..2 * num_pairs];
            match self.pairing {
                RopePairing::Half => {
                    let (first, second) = rotary.split_at_mut(num_pairs);
                    for (pair, (a, b)) in first.iter_mut().zip(second).enumerate() {
                        (*a, *b) = rotate::<S>((*a, *b), self.cos[pair], self.sin[pair]);
                    }
                }
                RopePairing::Interleaved => {
                    for (pair, ab) in rotary.chunks_exact_mut(2).enumerate() {
                        (ab[0], ab[1]) = rotate::<S>((ab[0], ab[1]), self.cos[pair], self.sin[pair]);
                    }
                }
            }
        }
    }
}

#[inline(always)]
fn rotate<S: Simd>((a, b): (f32, f32), cos: f32, sin: f32) -> (f32, f32) {
    (mul_add::<S>(-b, sin, a * cos), mul_add::<S>(a, sin, b * cos))
}

/// Makes queries and keys of one token ready for attention: bias, per-head norm, rotation, in place.
#[derive(Debug)]
pub(super) struct PrepareHeads<'a> {
    /// Q, K, V of one token `[(H + 2·G) · d]`.
    pub qkv: &'a mut [f32],
    /// Of the three projections, `[(H + 2·G) · d]`; empty for none.
    pub bias: &'a [f32],
    /// Norm weights of Q and K, `[d]` each; `None` without QK-norm.
    pub qk_norm: Option<(&'a [f32], &'a [f32])>,
    /// Epsilon of the norms.
    pub eps: f32,
    /// H · d and G · d.
    pub dims: (usize, usize),
    /// d.
    pub head_dim: usize,
    /// The token's.
    pub rotation: Rotation<'a>,
}

impl Kernel for PrepareHeads<'_> {
    #[inline(always)]
    fn run<S: Simd>(self) {
        super::norm::add(self.qkv, self.bias);
        let (q, kv) = self.qkv.split_at_mut(self.dims.0);
        let k = &mut kv[..self.dims.1];
        if let Some((q_weight, k_weight)) = self.qk_norm {
            super::norm::norm_heads::<S>(q, q_weight, self.eps);
            super::norm::norm_heads::<S>(k, k_weight, self.eps);
        }
        self.rotation.apply::<S>(q, self.head_dim);
        self.rotation.apply::<S>(k, self.head_dim);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{backend::cpu::vectors::Baseline, shapes::unscaled_rope};

    /// `x·cos + rotate_half(x)·sin`, as in transformers' `apply_rotary_pos_emb`, in F64.
    fn rotate_half_reference(x: &[f32], position: usize, rope: &RopeSpec) -> Vec<f64> {
        let pairs = rope.inv_freq.len();
        (0..x.len())
            .map(|i| {
                if i >= 2 * pairs {
                    return f64::from(x[i]);
                }
                let angle = f64::from(position as f32 * rope.inv_freq[i % pairs]);
                let other = if i < pairs { -x[i + pairs] } else { x[i - pairs] };
                f64::from(x[i]) * angle.cos() + f64::from(other) * angle.sin()
            })
            .collect()
    }

    #[test]
    fn half_pairing_is_rotate_half_and_leaves_the_rest_of_the_head() {
        let rope = RopeSpec { inv_freq: unscaled_rope(1e4, 8).inv_freq, ..unscaled_rope(1e4, 12) };
        let table = RopeTable::new(&rope, 40);
        for position in [0, 1, 39] {
            let mut head: Vec<f32> = (0..12).map(|i| i as f32 - 4.5).collect();
            let expected = rotate_half_reference(&head, position, &rope);
            table.rotation(position).apply::<Baseline>(&mut head, 12);
            for (found, expected) in head.iter().zip(expected) {
                assert!((f64::from(*found) - expected).abs() < 1e-5, "{position}: {found} {expected}");
            }
        }
    }

    #[test]
    fn interleaved_pairing_is_half_pairing_of_reordered_elements() {
        let half = unscaled_rope(1e4, 8);
        let interleaved =
            RopeSpec { pairing: RopePairing::Interleaved, attention_factor: 1.5, ..half.clone() };
        let head: Vec<f32> = (0..8).map(|i| (i as f32).exp().sin()).collect();
        let mut reordered: Vec<f32> = (0..8).map(|i| head[2 * (i % 4) + i / 4]).collect();
        let mut head = head;
        RopeTable::new(&half, 20).rotation(17).apply::<Baseline>(&mut reordered, 8);
        RopeTable::new(&interleaved, 20).rotation(17).apply::<Baseline>(&mut head, 8);
        for i in 0..8 {
            assert!((head[2 * (i % 4) + i / 4] - 1.5 * reordered[i]).abs() < 1e-6);
        }
    }
}
