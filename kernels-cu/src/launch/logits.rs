//! Choice of tokens from logits: the likeliest of each row, and the log-sum-exp.

use super::{
    DeviceAddress, Geometry, Launch, LaunchError, aligned, at_most, equal, non_zero, to_i32, to_u32,
};

/// Longest list of likeliest tokens.
pub const MAX_TOP_K: usize = 64;
/// Logits of a block; and most results of slices that one block combines.
const SLICE_LEN: usize = 4096;
const THREADS: u32 = 256;

/// Longest list of likeliest tokens of `vocab_size` logits: one block combines what their slices found.
#[must_use]
pub fn max_top_k(vocab_size: usize) -> usize {
    (SLICE_LEN / vocab_size.div_ceil(SLICE_LEN).max(1)).min(MAX_TOP_K)
}

/// Bit of a row's status: a logit is NaN or +∞.
pub const BROKEN: u32 = 1;
/// Bit of a row's status: no token that is allowed has a finite logit.
pub const NOTHING_FINITE: u32 = 2;

/// Sets of allowed tokens, bit `t % 32` of word `t / 32` for token `t`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct TokenMasks {
    /// `[num_masks, words]` U32.
    pub masks: DeviceAddress,
    /// At least as many as hold the vocabulary.
    pub words: usize,
    /// `[num_rows]` I32: each row's mask, -1 to allow all.
    pub mask_of: DeviceAddress,
}

/// Room for the slices' results, by [`Logits::scratch_lens`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct LogitsScratch {
    /// `[num_rows, num_slices, k]` U64.
    pub keys: DeviceAddress,
    /// `[num_rows, num_slices, 2]` F32.
    pub sums: DeviceAddress,
}

/// What comes out, by row.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct LogitsOutput {
    /// `[num_rows, k]` I32, likeliest first; -1 beyond the last finite logit.
    pub tokens: DeviceAddress,
    /// `[num_rows, k]` F32.
    pub values: DeviceAddress,
    /// `[num_rows]` F32, over the allowed tokens.
    pub log_sum_exp: DeviceAddress,
    /// `[num_rows]` U32: [`BROKEN`], [`NOTHING_FINITE`].
    pub status: DeviceAddress,
}

/// The `k` likeliest tokens of each row: larger logits first, of equal ones the lower id.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Logits {
    /// `[num_rows, vocab_size]` F32.
    pub logits: DeviceAddress,
    /// Which tokens may come; `None` for all.
    pub masks: Option<TokenMasks>,
    /// Overwritten.
    pub scratch: LogitsScratch,
    /// The result.
    pub output: LogitsOutput,
    /// Rows.
    pub num_rows: usize,
    /// Columns.
    pub vocab_size: usize,
    /// At most [`MAX_TOP_K`]; 1 for greedy decoding, where −0 equals 0.
    pub k: usize,
}

impl Logits {
    /// Slices of a row.
    #[must_use]
    pub fn num_slices(&self) -> usize {
        self.vocab_size.div_ceil(SLICE_LEN)
    }

    /// Values of [`LogitsScratch`]'s two buffers.
    ///
    /// # Errors
    /// [`LaunchError::TooLarge`] past the address space.
    pub fn scratch_lens(&self) -> Result<(usize, usize), LaunchError> {
        let slices = self.num_rows.checked_mul(self.num_slices());
        let lens = slices.and_then(|slices| Some((slices.checked_mul(self.k)?, slices.checked_mul(2)?)));
        lens.ok_or(LaunchError::TooLarge {
            what: "rows of logits",
            found: self.num_rows,
            max: usize::MAX / 8,
        })
    }

    /// Two launches, to run one after the other.
    ///
    /// # Errors
    /// A size of 0 or too large, a mask shorter than the vocabulary, an address that is missing or not aligned.
    pub fn launches(&self) -> Result<[Launch; 2], LaunchError> {
        self.check()?;
        let (rows, slices) = (to_u32("rows of logits", self.num_rows)?, to_u32("slices", self.num_slices())?);
        let masks = self.masks.unwrap_or(TokenMasks {
            masks: DeviceAddress::NULL,
            words: 0,
            mask_of: DeviceAddress::NULL,
        });
        let k = to_i32("tokens of a list", self.k)?;
        let of_slices = vec![
            self.logits.into(),
            masks.masks.into(),
            masks.mask_of.into(),
            self.scratch.keys.into(),
            self.scratch.sums.into(),
            to_i32("vocabulary", self.vocab_size)?.into(),
            to_i32("words of a mask", masks.words)?.into(),
            k.into(),
        ];
        let combining = vec![
            self.scratch.keys.into(),
            self.scratch.sums.into(),
            self.output.tokens.into(),
            self.output.values.into(),
            self.output.log_sum_exp.into(),
            self.output.status.into(),
            to_i32("slices", self.num_slices())?.into(),
            k.into(),
        ];
        let grid = Geometry { grid: [slices, rows, 1], block: [THREADS, 1, 1], shared_bytes: 0 };
        Ok([
            Launch::new("logits_slices", grid, of_slices)?,
            Launch::new("logits_combine", Geometry::linear(rows, THREADS), combining)?,
        ])
    }

    fn check(&self) -> Result<(), LaunchError> {
        non_zero("rows of logits", self.num_rows)?;
        non_zero("vocabulary", self.vocab_size)?;
        at_most("tokens of a list", non_zero("tokens of a list", self.k)?, MAX_TOP_K)?;
        at_most("results of a row's slices", self.num_slices().saturating_mul(self.k), SLICE_LEN)?;
        aligned("logits", self.logits, 4)?;
        if let Some(masks) = &self.masks {
            aligned("masks", masks.masks, 4)?;
            aligned("masks of rows", masks.mask_of, 4)?;
            equal("words of a mask", masks.words.max(self.vocab_size.div_ceil(32)), masks.words)?;
        }
        aligned("results of slices", self.scratch.keys, 8)?;
        aligned("sums of slices", self.scratch.sums, 8)?;
        aligned("likeliest tokens", self.output.tokens, 4)?;
        aligned("their logits", self.output.values, 4)?;
        aligned("log-sum-exp", self.output.log_sum_exp, 4)?;
        aligned("status of rows", self.output.status, 4)?;
        Ok(())
    }
}
