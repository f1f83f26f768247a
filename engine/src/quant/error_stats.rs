//! How far a quantized matrix is from its original.

use super::QuantizedMatrix;

/// Sums over one or several tensors, from which the usual figures follow.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct ErrorStats {
    /// Values compared.
    pub num_values: u64,
    /// Σ original².
    pub sum_squares: f64,
    /// Σ (quantized − original)².
    pub sum_squared_error: f64,
    /// Largest |quantized − original|.
    pub max_abs_error: f32,
}

impl ErrorStats {
    /// Compares `matrix` with the `[num_rows, num_cols]` values it was made from.
    #[must_use]
    pub fn of(matrix: &QuantizedMatrix, original: &[f32], num_threads: usize) -> Self {
        let (view, num_cols) = (matrix.view(), matrix.num_cols);
        let mut per_row = vec![Self::default(); matrix.num_rows];
        let rows_per_share = matrix.num_rows.div_ceil(num_threads.max(1)).max(1);
        std::thread::scope(|scope| {
            for (share_idx, share) in per_row.chunks_mut(rows_per_share).enumerate() {
                scope.spawn(move || {
                    let mut row = vec![0.0; num_cols];
                    for (row_idx, stats) in (share_idx * rows_per_share..).zip(share) {
                        view.dequantize_row(row_idx, &mut row);
                        *stats = Self::of_row(&row, &original[row_idx * num_cols..][..num_cols]);
                    }
                });
            }
        });
        // Summed in row order, so that the figures do not depend on the number of threads.
        let mut total = Self::default();
        per_row.iter().for_each(|row| total.add(row));
        total
    }

    /// Adds the sums of `other`.
    pub fn add(&mut self, other: &Self) {
        self.num_values += other.num_values;
        self.sum_squares += other.sum_squares;
        self.sum_squared_error += other.sum_squared_error;
        self.max_abs_error = self.max_abs_error.max(other.max_abs_error);
    }

    /// Root of the squared error over root of the squares; 0 for an exact or all-zero tensor.
    #[must_use]
    pub fn relative_rms(&self) -> f64 {
        if self.sum_squares == 0.0 { 0.0 } else { (self.sum_squared_error / self.sum_squares).sqrt() }
    }

    /// Signal-to-noise ratio in decibels; infinite where nothing was lost.
    #[must_use]
    pub fn snr_db(&self) -> f64 {
        if self.sum_squared_error == 0.0 {
            return f64::INFINITY;
        }
        10.0 * (self.sum_squares / self.sum_squared_error).log10()
    }

    fn of_row(quantized: &[f32], original: &[f32]) -> Self {
        let mut stats = Self { num_values: original.len() as u64, ..Self::default() };
        for (&found, &wanted) in quantized.iter().zip(original) {
            let error = f64::from(found) - f64::from(wanted);
            stats.sum_squares += f64::from(wanted).powi(2);
            stats.sum_squared_error += error * error;
            stats.max_abs_error = stats.max_abs_error.max(error.abs() as f32);
        }
        stats
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::quant::{WeightKind, quantize};

    #[test]
    fn figures_follow_from_the_sums() {
        let stats =
            ErrorStats { num_values: 4, sum_squares: 100.0, sum_squared_error: 1.0, max_abs_error: 0.5 };
        assert_eq!(stats.relative_rms(), 0.1);
        assert_eq!(stats.snr_db(), 20.0);
    }

    #[test]
    fn an_exact_format_has_no_error_and_a_coarse_one_has_the_error_one_computes_by_hand() {
        let values: Vec<f32> = (0..32).map(|i| i as f32).collect();
        let exact = quantize(WeightKind::Bf16, (2, 16), &values, 1).unwrap();
        assert_eq!(ErrorStats::of(&exact, &values, 3).sum_squared_error, 0.0);
        // One block: scale_2 = 6/2688, block scale 448, step 1; 2.25 becomes 2.
        let mut block = [0.0f32; 16];
        (block[0], block[1]) = (6.0, 2.25);
        let stats = ErrorStats::of(&quantize(WeightKind::Nvfp4, (1, 16), &block, 1).unwrap(), &block, 1);
        assert_eq!((stats.max_abs_error, stats.sum_squared_error), (0.25, 0.0625));
        assert_eq!(stats.sum_squares, 36.0 + 2.25 * 2.25);
    }
}
