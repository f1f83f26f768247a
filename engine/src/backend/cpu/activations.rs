//! The right-hand side of every matrix product: a few rows of F32, and their 8-bit form when the arithmetic is integer.
#![expect(unsafe_code, reason = "the tasks that fill rows each write their own")]

use std::ops::Range;

use super::{
    aligned::AlignedVec,
    disjoint::Disjoint,
    kernels::{self, Isa},
    packed::BLOCK_COLS,
    pool::ThreadPool,
};

/// How weights meet activations.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Arithmetic {
    /// Dequantized weights times F32 activations, F32 accumulation.
    F32,
    /// `nvfp4` and `int4` weights times 8-bit activations (one F32 scale for 16 columns), exact integer sums within
    /// 16 columns, F32 accumulation across. `bf16` and `fp8` weights are computed as with [`Arithmetic::F32`]:
    /// neither has an exact small-integer form.
    Int8,
}

impl Arithmetic {
    /// Name on the command line.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::F32 => "f32",
            Self::Int8 => "int8",
        }
    }
}

/// Activations `[num_rows, num_cols]` with fixed room, quantized once and shared by all matrices that read them.
#[derive(Debug, Clone)]
pub struct Activations {
    arithmetic: Arithmetic,
    max_rows: usize,
    /// Room of one row, a multiple of the block.
    max_row_len: usize,
    num_rows: usize,
    num_cols: usize,
    is_sealed: bool,
    /// `[max_rows, row_len]`: rows padded with zeros to whole blocks.
    rows: AlignedVec<f32>,
    codes: AlignedVec<i8>,
    /// `[max_rows, row_len / 16]`.
    scales: AlignedVec<f32>,
    /// `[max_rows, row_len / 16]`: what the kernels' weight offset of 12 adds to an integer sum, negated: `-12 · Σ codes`.
    biases: AlignedVec<i32>,
}

impl Default for Activations {
    fn default() -> Self {
        Self::nothing()
    }
}

/// A few rows of activations, borrowed by a kernel; every slice starts at the first of them.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Tokens<'a> {
    pub(crate) num_tokens: usize,
    /// Values of one row, a multiple of 16.
    pub(crate) row_len: usize,
    pub(crate) rows: &'a [f32],
    pub(crate) codes: &'a [i8],
    pub(crate) scales: &'a [f32],
    pub(crate) biases: &'a [i32],
}

/// Where one row's quantized form goes.
pub(crate) struct QuantizedRow<'a> {
    pub(crate) codes: &'a mut [i8],
    pub(crate) scales: &'a mut [f32],
    pub(crate) biases: &'a mut [i32],
}

impl Activations {
    /// Room for `max_rows` rows of `max_cols` values; holds no row yet.
    #[must_use]
    pub fn new(arithmetic: Arithmetic, max_rows: usize, max_cols: usize) -> Self {
        let max_row_len = max_cols.next_multiple_of(BLOCK_COLS);
        let num_values = max_rows * max_row_len;
        let num_quantized = if arithmetic == Arithmetic::Int8 { num_values } else { 0 };
        Self {
            arithmetic,
            max_rows,
            max_row_len,
            num_rows: 0,
            num_cols: 0,
            is_sealed: false,
            rows: AlignedVec::zeroed(num_values),
            codes: AlignedVec::zeroed(num_quantized),
            scales: AlignedVec::zeroed(num_quantized / BLOCK_COLS),
            biases: AlignedVec::zeroed(num_quantized / BLOCK_COLS),
        }
    }

    /// Bytes that [`Self::new`] allocates.
    pub(super) fn bytes_for(arithmetic: Arithmetic, max_rows: usize, max_cols: usize) -> u64 {
        let num_values = max_rows * max_cols.next_multiple_of(BLOCK_COLS);
        // A code each; a scale and a bias a block.
        let codes = num_values + num_values / BLOCK_COLS * (size_of::<f32>() + size_of::<i32>());
        (num_values * size_of::<f32>() + if arithmetic == Arithmetic::Int8 { codes } else { 0 }) as u64
    }

    /// Bytes it holds.
    #[cfg(test)]
    pub(super) fn num_bytes(&self) -> u64 {
        let [rows, codes] = [self.rows.as_slice().len() * 4, self.codes.as_slice().len()];
        (rows + codes + self.scales.as_slice().len() * 4 + self.biases.as_slice().len() * 4) as u64
    }

    /// No room at all: what is left while the rows are lent.
    fn nothing() -> Self {
        Self::new(Arithmetic::F32, 0, 0)
    }

    /// How the matrices that read these rows compute.
    #[must_use]
    pub fn arithmetic(&self) -> Arithmetic {
        self.arithmetic
    }

    /// Rows M.
    #[must_use]
    pub fn num_rows(&self) -> usize {
        self.num_rows
    }

    /// Columns K.
    #[must_use]
    pub fn num_cols(&self) -> usize {
        self.num_cols
    }

    /// Row `row_idx`, `[num_cols]`.
    #[must_use]
    pub fn row(&self, row_idx: usize) -> &[f32] {
        &self.rows.as_slice()[row_idx * self.row_len()..][..self.num_cols]
    }

    /// Sets the shape, lets `write` fill each row `[num_cols]` (row by row over the pool) and quantizes it right after.
    /// `write` sees whatever the row held before.
    ///
    /// # Panics
    /// When the shape exceeds the room; callers check their plan against it first.
    pub fn fill(
        &mut self,
        pool: &ThreadPool,
        num_rows: usize,
        num_cols: usize,
        write: impl Fn(usize, &mut [f32]) + Sync,
    ) {
        self.reshape(num_rows, num_cols);
        let (row_len, is_int8, isa) = (self.row_len(), self.arithmetic == Arithmetic::Int8, Isa::detect());
        let num_blocks = row_len / BLOCK_COLS;
        let rows = Disjoint::new(self.rows.as_mut_slice());
        let codes = Disjoint::new(self.codes.as_mut_slice());
        let scales = Disjoint::new(self.scales.as_mut_slice());
        let biases = Disjoint::new(self.biases.as_mut_slice());
        pool.run(num_rows, &|row_idx| {
            // SAFETY: the pool calls each `row_idx` once, and rows of equal length do not overlap.
            let row = unsafe { rows.part(row_idx * row_len, row_len) };
            write(row_idx, &mut row[..num_cols]);
            row[num_cols..].fill(0.0);
            if is_int8 {
                // SAFETY: as above; the three buffers have their own rows.
                let to = unsafe {
                    QuantizedRow {
                        codes: codes.part(row_idx * row_len, row_len),
                        scales: scales.part(row_idx * num_blocks, num_blocks),
                        biases: biases.part(row_idx * num_blocks, num_blocks),
                    }
                };
                kernels::quantize_row(isa, row, to);
            }
        });
        self.is_sealed = true;
    }

    /// Copies `values` `[num_rows, num_cols]` in.
    ///
    /// # Panics
    /// As [`Activations::fill`], and when `values` is shorter than the shape.
    pub fn copy_from(&mut self, pool: &ThreadPool, num_rows: usize, num_cols: usize, values: &[f32]) {
        self.fill(pool, num_rows, num_cols, |row_idx, row| {
            row.copy_from_slice(&values[row_idx * num_cols..(row_idx + 1) * num_cols]);
        });
    }

    fn reshape(&mut self, num_rows: usize, num_cols: usize) {
        let has_room = num_rows <= self.max_rows && num_cols <= self.max_row_len;
        assert!(has_room, "[{num_rows}, {num_cols}] in room for [{}, {}]", self.max_rows, self.max_row_len);
        (self.num_rows, self.num_cols, self.is_sealed) = (num_rows, num_cols, false);
    }

    fn row_len(&self) -> usize {
        self.num_cols.next_multiple_of(BLOCK_COLS)
    }

    /// Rows `range`, for a kernel.
    pub(crate) fn tokens(&self, range: Range<usize>) -> Tokens<'_> {
        debug_assert!(self.is_sealed && range.end <= self.num_rows);
        let row_len = self.row_len();
        let part = |len: usize| range.start * len..range.end * len;
        let quantized = if self.arithmetic == Arithmetic::Int8 { row_len } else { 0 };
        Tokens {
            num_tokens: range.len(),
            row_len,
            rows: &self.rows.as_slice()[part(row_len)],
            codes: &self.codes.as_slice()[part(quantized)],
            scales: &self.scales.as_slice()[part(quantized / BLOCK_COLS)],
            biases: &self.biases.as_slice()[part(quantized / BLOCK_COLS)],
        }
    }
}
