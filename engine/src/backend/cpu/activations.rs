//! The right-hand side of every matrix product: a few rows of F32, and their 8-bit form when the arithmetic is integer.
#![expect(unsafe_code, reason = "the tasks that fill rows each write their own; blocks are plain numbers")]

use std::ops::Range;

use super::{
    aligned::{AlignedVec, Plain},
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
    /// `[max_rows, row_len / 16]`; empty unless the arithmetic is integer.
    blocks: AlignedVec<QuantizedBlock>,
}

impl Default for Activations {
    fn default() -> Self {
        Self::nothing()
    }
}

/// 16 columns of a row in 8 bits. All of it in one place, so that a kernel needs one pointer a row.
#[derive(Debug, Clone, Copy, PartialEq)]
#[repr(C)]
pub(crate) struct QuantizedBlock {
    pub(crate) codes: [i8; BLOCK_COLS],
    /// What one step of a code is worth.
    pub(crate) scale: f32,
    /// What the kernels' weight offset of 12 adds to an integer sum, negated: `-12 · Σ codes`.
    pub(crate) bias: i32,
}

// SAFETY: numbers of 1 and 4 bytes without padding between them.
unsafe impl Plain for QuantizedBlock {}

/// A few rows of activations, borrowed by a kernel; every slice starts at the first of them.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Tokens<'a> {
    pub(crate) num_tokens: usize,
    /// Values of one row, a multiple of 16.
    pub(crate) row_len: usize,
    pub(crate) rows: &'a [f32],
    /// `[num_tokens, row_len / 16]`, or empty.
    pub(crate) blocks: &'a [QuantizedBlock],
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
            blocks: AlignedVec::zeroed(num_quantized / BLOCK_COLS),
        }
    }

    /// Bytes that [`Self::new`] allocates.
    pub(super) fn bytes_for(arithmetic: Arithmetic, max_rows: usize, max_cols: usize) -> u64 {
        let num_values = max_rows * max_cols.next_multiple_of(BLOCK_COLS);
        let blocks = num_values / BLOCK_COLS * size_of::<QuantizedBlock>();
        (num_values * size_of::<f32>() + if arithmetic == Arithmetic::Int8 { blocks } else { 0 }) as u64
    }

    /// Bytes it holds.
    #[cfg(test)]
    pub(super) fn num_bytes(&self) -> u64 {
        (size_of_val(self.rows.as_slice()) + size_of_val(self.blocks.as_slice())) as u64
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
        let blocks = Disjoint::new(self.blocks.as_mut_slice());
        pool.run(num_rows, &|row_idx| {
            // SAFETY: the pool calls each `row_idx` once, and rows of equal length do not overlap.
            let row = unsafe { rows.part(row_idx * row_len, row_len) };
            write(row_idx, &mut row[..num_cols]);
            row[num_cols..].fill(0.0);
            if is_int8 {
                // SAFETY: as above.
                let to = unsafe { blocks.part(row_idx * num_blocks, num_blocks) };
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
            blocks: &self.blocks.as_slice()[part(quantized / BLOCK_COLS)],
        }
    }
}
