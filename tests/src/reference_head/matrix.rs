//! Linear algebra of a head, in F32: small, and the reference for faster ones.

/// `[num_rows, num_cols]`, row-major.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Matrix {
    pub num_cols: usize,
    pub values: Vec<f32>,
}

impl Matrix {
    /// `out = self · x`.
    pub fn mul(&self, x: &[f32], out: &mut Vec<f32>) {
        out.clear();
        out.extend(self.values.chunks_exact(self.num_cols).map(|row| dot(row, x)));
    }
}

/// Eight sums side by side, so that the compiler can keep them in one register.
pub(super) fn dot(a: &[f32], b: &[f32]) -> f32 {
    let (mut sums, mut rest) = ([0.0_f32; 8], 0.0);
    let (a_chunks, b_chunks) = (a.chunks_exact(8), b.chunks_exact(8));
    for (a, b) in a_chunks.remainder().iter().zip(b_chunks.remainder()) {
        rest += a * b;
    }
    for (a, b) in a_chunks.zip(b_chunks) {
        for ((sum, a), b) in sums.iter_mut().zip(a).zip(b) {
            *sum += a * b;
        }
    }
    sums.iter().sum::<f32>() + rest
}

/// `out += x · weight / rms(x)`, appended.
pub(super) fn push_normed(x: &[f32], weight: &[f32], eps: f32, out: &mut Vec<f32>) {
    let mean_square = x.iter().map(|value| value * value).sum::<f32>() / x.len().max(1) as f32;
    let scale = 1.0 / (mean_square + eps).sqrt();
    out.extend(x.iter().zip(weight).map(|(x, weight)| x * scale * weight));
}

/// `x += y`.
pub(super) fn add(x: &mut [f32], y: &[f32]) {
    x.iter_mut().zip(y).for_each(|(x, y)| *x += y);
}

/// Turns the halves of every head in `heads` by `position` (Hugging Face's `rotate_half`).
pub(super) fn rotate(heads: &mut [f32], head_dim: usize, position: usize, inv_freq: &[f32]) {
    for head in heads.chunks_exact_mut(head_dim) {
        let (low, high) = head.split_at_mut(head_dim / 2);
        for ((low, high), freq) in low.iter_mut().zip(high).zip(inv_freq) {
            let (sin, cos) = (position as f32 * freq).sin_cos();
            (*low, *high) = (*low * cos - *high * sin, *high * cos + *low * sin);
        }
    }
}

/// Logits → log-probabilities, in place.
pub(super) fn log_softmax(logits: &mut [f32]) {
    let max = logits.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    let sum: f64 = logits.iter().map(|&logit| f64::from(logit - max).exp()).sum();
    let log_sum = max + sum.ln() as f32;
    logits.iter_mut().for_each(|logit| *logit -= log_sum);
}
