//! The likeliest of a row of logits.

use crate::backend::cpu::{
    simd::Simd,
    vectors::{Kernel, exp},
};

/// Writes the `ids.len()` likeliest of `logits` with their log-probabilities, likeliest first; of equals the lower one. There must be at least
/// as many logits, none of them NaN.
#[derive(Debug)]
pub(super) struct TopK<'a> {
    pub logits: &'a [f32],
    pub ids: &'a mut [u32],
    pub log_probs: &'a mut [f32],
}

/// Sums side by side, for the compiler to keep in one register.
const NUM_SUMS: usize = 16;

impl Kernel for TopK<'_> {
    #[inline(always)]
    fn run<S: Simd>(self) {
        let mut sums = [0.0f32; NUM_SUMS];
        let max =
            self.logits.iter().fold(f32::NEG_INFINITY, |max, &logit| if logit > max { logit } else { max });
        for chunk in self.logits.chunks(NUM_SUMS) {
            for (sum, &logit) in sums.iter_mut().zip(chunk) {
                *sum += exp::<S>(logit - max);
            }
        }
        let log_sum = max + sums.iter().sum::<f32>().ln();
        select(self.logits, self.ids, self.log_probs);
        self.log_probs.iter_mut().for_each(|log_prob| *log_prob -= log_sum);
    }
}

/// Insertion into a short sorted list: most logits are below its last.
#[inline(always)]
fn select(logits: &[f32], ids: &mut [u32], values: &mut [f32]) {
    values.fill(f32::NEG_INFINITY);
    ids.fill(u32::MAX);
    let Some(last) = values.len().checked_sub(1) else { return };
    for (id, &logit) in (0u32..).zip(logits) {
        let is_free = ids[last] == u32::MAX;
        if logit <= values[last] && !is_free {
            continue;
        }
        let mut place = last;
        while place > 0 && (logit > values[place - 1] || ids[place - 1] == u32::MAX) {
            (values[place], ids[place]) = (values[place - 1], ids[place - 1]);
            place -= 1;
        }
        (values[place], ids[place]) = (logit, id);
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::backend::cpu::vectors::Vectors;

    proptest! {
        #[test]
        fn the_likeliest_are_those_of_a_stable_sort_with_the_log_softmax(
            logits in prop::collection::vec((-20i32..20).prop_map(|v| v as f32 * 0.5), 1..80), wanted in 1usize..12,
        ) {
            let mut order: Vec<usize> = (0..logits.len()).collect();
            order.sort_by(|&a, &b| logits[b].total_cmp(&logits[a]));
            order.truncate(wanted);
            let sum: f64 = logits.iter().map(|&v| f64::from(v).exp()).sum();
            for vectors in Vectors::available() {
                let (mut ids, mut log_probs) = (vec![0; order.len()], vec![0.0; order.len()]);
                vectors.run(TopK { logits: &logits, ids: &mut ids, log_probs: &mut log_probs });
                for (place, &idx) in order.iter().enumerate() {
                    prop_assert_eq!(ids[place] as usize, idx);
                    prop_assert!((f64::from(log_probs[place]) - (f64::from(logits[idx]) - sum.ln())).abs() < 1e-4);
                }
            }
        }
    }
}
