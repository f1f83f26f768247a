//! Weights interleaved at load so that a thread reads them once, front to back.
//!
//! A **tile** is 16 rows; a **block** is 16 columns of a tile. Tiles lie one after another, each 64-byte aligned:
//! first the codes of all its blocks, then its scales. Rows and columns beyond the matrix are zeros.
//!
//! | kind | codes of a block | scales of a tile | row scale |
//! |---|---|---|---|
//! | `bf16` | `[k/2][16 rows][2]` bf16, 512 B | none | 1 |
//! | `fp8` | `[k/4]` chunks of 64 B: byte `2·(16·(k%2) + row) + (k%4)/2`, 256 B | none | `scale[n] · 2^8` |
//! | `nvfp4` | `[k/8]` lines of 64 B: byte `4·row + k%4`, nibble `(k/4)%2`, 128 B | E4M3 without sign `[blocks][16 rows]` | `scale_2 · 2^8` |
//! | `int4` | as `nvfp4`, code = value + 8 | F16 `[groups of 128][16 rows]` | 1 |
//!
//! In the nibble layout a 32-bit lane is one row: a shift brings any of its 8 columns to the low nibble (F32 path), and
//! masking brings 4 consecutive columns to the 4 bytes that `vpdpbusd` and `sdot` sum (integer path).
//! E4M3 is read as F16 (`code << 7`), which is exact and `2^-8` too small; hence the `2^8` in the row scale.

use std::ops::Range;

use half::bf16;

use super::{
    aligned::{AlignedVec, LINE_BYTES},
    interleave::{self, finite, unsupported},
};
use crate::{
    Result,
    quant::{INT4_GROUP, MatrixData, MatrixView, WeightKind},
    weights::{ReadWatch, Unwatched},
};

/// Rows of a tile.
pub(crate) const TILE_ROWS: usize = 16;
/// Columns of a block.
pub(crate) const BLOCK_COLS: usize = 16;
/// Blocks that share an INT4 group scale.
pub(crate) const BLOCKS_PER_GROUP: usize = INT4_GROUP / BLOCK_COLS;
/// Source bytes that are released together: few enough that what all threads hold is little beside a model, enough that telling the system
/// costs nothing.
pub(super) const RELEASED_BYTES: usize = 4 << 20;
/// What reading E4M3 as F16 leaves out.
const E4M3_AS_F16: f32 = 256.0;

/// A `[num_rows, num_cols]` weight matrix in the interleaved layout.
#[derive(Debug, Clone)]
pub struct PackedMatrix {
    kind: WeightKind,
    num_rows: usize,
    num_cols: usize,
    layout: TileLayout,
    tiles: AlignedVec<u8>,
    /// `[num_tiles][16]`.
    row_scales: Vec<[f32; TILE_ROWS]>,
    /// Whether it is one of so many that no cache holds it from one use to the next.
    pub(super) is_streamed: bool,
}

/// One tile, borrowed.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Tile<'a> {
    pub(crate) kind: WeightKind,
    /// `[num_blocks][block_bytes]`.
    pub(crate) codes: &'a [u8],
    /// Per kind, see the module.
    pub(crate) scales: &'a [u8],
    pub(crate) row_scales: &'a [f32; TILE_ROWS],
    pub(crate) num_blocks: usize,
    /// As [`PackedMatrix::is_streamed`].
    #[cfg_attr(
        not(target_arch = "x86_64"),
        expect(dead_code, reason = "there is no prefetching on aarch64")
    )]
    pub(crate) is_streamed: bool,
}

/// Sizes in bytes of one tile's parts.
#[derive(Debug, Clone, Copy)]
struct TileLayout {
    num_blocks: usize,
    code_bytes: usize,
    scale_bytes: usize,
    stride: usize,
}

impl TileLayout {
    fn of(kind: WeightKind, num_cols: usize) -> Option<Self> {
        let num_blocks = num_cols.div_ceil(BLOCK_COLS);
        let code_bytes = num_blocks.checked_mul(block_bytes(kind))?;
        let scale_bytes = match kind {
            WeightKind::Bf16 | WeightKind::Fp8 => 0,
            WeightKind::Nvfp4 => num_blocks * TILE_ROWS,
            WeightKind::Int4 => num_blocks.div_ceil(BLOCKS_PER_GROUP) * TILE_ROWS * 2,
        };
        let stride = code_bytes.checked_add(scale_bytes)?.checked_next_multiple_of(LINE_BYTES)?;
        Some(Self { num_blocks, code_bytes, scale_bytes, stride })
    }
}

/// Bytes of the codes of one block.
pub(crate) const fn block_bytes(kind: WeightKind) -> usize {
    match kind {
        WeightKind::Bf16 => 512,
        WeightKind::Fp8 => 256,
        WeightKind::Nvfp4 | WeightKind::Int4 => 128,
    }
}

/// Offset of column `k` of row `row` in the codes of an FP8 tile.
pub(crate) const fn fp8_offset(row: usize, k: usize) -> usize {
    (k / 4) * 64 + 2 * (TILE_ROWS * (k % 2) + row) + (k % 4) / 2
}

impl PackedMatrix {
    /// Interleaves the rows of all `views`, one after another: Q, K and V, or gate and up, become one matrix.
    /// Each view keeps its own scales.
    ///
    /// # Errors
    /// [`crate::EngineError::Unsupported`] when there is no view, when views differ in format or columns, when a byte length does
    /// not match its shape, when NVFP4 columns are no multiple of 16, or when a scale is not finite.
    pub fn pack(views: &[MatrixView<'_>]) -> Result<Self> {
        Self::pack_watched(views, &Unwatched)
    }

    /// [`Self::pack`]; `watch` hears of source bytes just before and soon after they are read.
    pub(crate) fn pack_watched(views: &[MatrixView<'_>], watch: &dyn ReadWatch) -> Result<Self> {
        let first = views.first().ok_or_else(|| unsupported("no matrix to pack"))?;
        let (kind, num_cols) = (first.kind(), first.num_cols);
        let mut num_rows = 0usize;
        for view in views {
            check(view, kind, num_cols)?;
            num_rows =
                num_rows.checked_add(view.num_rows).ok_or_else(|| unsupported("too many rows to pack"))?;
        }
        let num_tiles = num_rows.div_ceil(TILE_ROWS);
        let layout = TileLayout::of(kind, num_cols).ok_or_else(|| unsupported("too many columns to pack"))?;
        let num_bytes =
            num_tiles.checked_mul(layout.stride).ok_or_else(|| unsupported("matrix too large to pack"))?;
        let mut packed = Self {
            kind,
            num_rows,
            num_cols,
            layout,
            tiles: AlignedVec::zeroed(num_bytes),
            row_scales: vec![[0.0; TILE_ROWS]; num_tiles],
            is_streamed: false,
        };
        let mut sources = views.iter().flat_map(|view| (0..view.num_rows).map(move |row| (*view, row)));
        let mut rows = Vec::with_capacity(TILE_ROWS);
        let mut behind = Behind { views, first_row: 0, released: 0, watch };
        for tile_idx in 0..num_tiles {
            rows.clear();
            rows.extend(sources.by_ref().take(TILE_ROWS));
            let (start, end) = (tile_idx * TILE_ROWS, num_rows.min((tile_idx + 1) * TILE_ROWS));
            before_read(watch, views, start..end);
            packed.put_tile(tile_idx, &rows)?;
            behind.read_until(end);
        }
        Ok(packed)
    }

    /// The format.
    #[must_use]
    pub fn kind(&self) -> WeightKind {
        self.kind
    }

    /// Output features N.
    #[must_use]
    pub fn num_rows(&self) -> usize {
        self.num_rows
    }

    /// Input features K.
    #[must_use]
    pub fn num_cols(&self) -> usize {
        self.num_cols
    }

    /// Bytes that one use of the matrix reads, padding included.
    #[must_use]
    pub fn num_bytes(&self) -> usize {
        self.tiles.as_slice().len()
    }

    pub(crate) fn num_tiles(&self) -> usize {
        self.row_scales.len()
    }

    pub(crate) fn tile(&self, tile_idx: usize) -> Tile<'_> {
        let at = tile_idx * self.layout.stride;
        let (codes, rest) =
            self.tiles.as_slice()[at..at + self.layout.stride].split_at(self.layout.code_bytes);
        Tile {
            kind: self.kind,
            codes,
            scales: &rest[..self.layout.scale_bytes],
            row_scales: &self.row_scales[tile_idx],
            num_blocks: self.layout.num_blocks,
            is_streamed: self.is_streamed,
        }
    }

    /// Writes row `row_idx` of a bf16 matrix, as it was packed, to `out` `[num_cols]`.
    pub(crate) fn read_bf16_row(&self, row_idx: usize, out: &mut [f32]) {
        debug_assert_eq!(self.kind, WeightKind::Bf16);
        let (tile, row) = (self.tile(row_idx / TILE_ROWS), row_idx % TILE_ROWS);
        for (pair, line) in out.chunks_mut(2).zip(tile.codes.chunks_exact(LINE_BYTES)) {
            for (value, raw) in pair.iter_mut().zip(line[4 * row..].chunks_exact(2)) {
                *value = bf16::from_le_bytes([raw[0], raw[1]]).to_f32();
            }
        }
    }

    /// Puts up to 16 `rows`, each of its view, into a tile that is all zeros.
    fn put_tile(&mut self, tile_idx: usize, rows: &[(MatrixView<'_>, usize)]) -> Result<()> {
        let at = tile_idx * self.layout.stride;
        let tile = &mut self.tiles.as_mut_slice()[at..at + self.layout.stride];
        let (codes, rest) = tile.split_at_mut(self.layout.code_bytes);
        let mut row_codes: [&[u8]; TILE_ROWS] = [&[]; TILE_ROWS];
        for (slot, (view, row)) in row_codes.iter_mut().zip(rows) {
            [*slot, _] = view.bytes_of(*row..row + 1);
        }
        interleave::put_codes(self.kind, &row_codes[..rows.len()], codes)?;
        for (row, (view, from)) in rows.iter().enumerate() {
            let [_, row_scales] = view.bytes_of(*from..from + 1);
            self.row_scales[tile_idx][row] = match view.data {
                MatrixData::Bf16(_) => 1.0,
                MatrixData::Fp8 { .. } => {
                    finite(f32::from_le_bytes([0, 1, 2, 3].map(|i| row_scales[i])) * E4M3_AS_F16)?
                }
                MatrixData::Nvfp4 { scale_2, .. } => {
                    interleave::put_nvfp4_scales(row_scales, row, codes, rest)?;
                    finite(scale_2 * E4M3_AS_F16)?
                }
                MatrixData::Int4 { .. } => {
                    interleave::put_int4_scales(row_scales, row, rest)?;
                    1.0
                }
            };
        }
        Ok(())
    }
}

/// Rows `rows` of the packed matrix are about to be read.
fn before_read(watch: &dyn ReadWatch, views: &[MatrixView<'_>], rows: Range<usize>) {
    let mut first = 0;
    for view in views {
        let of_view = |row: usize| row.clamp(first, first + view.num_rows) - first;
        let here = of_view(rows.start)..of_view(rows.end);
        if !here.is_empty() {
            view.bytes_of(here).into_iter().for_each(|bytes| watch.before_read(bytes));
        }
        first += view.num_rows;
    }
}

/// What has been read of matrices and not been released yet.
struct Behind<'a> {
    /// From the one that is being read.
    views: &'a [MatrixView<'a>],
    /// Of the first view, in the packed matrix.
    first_row: usize,
    /// Rows of the first view.
    released: usize,
    watch: &'a dyn ReadWatch,
}

impl Behind<'_> {
    /// The packed matrix has its rows `[0, num_rows)`.
    fn read_until(&mut self, num_rows: usize) {
        while let Some((view, later)) = self.views.split_first() {
            let read = view.num_rows.min(num_rows - self.first_row);
            let [codes, scales] = view.bytes_of(self.released..read);
            if read < view.num_rows && codes.len() < RELEASED_BYTES {
                return;
            }
            self.watch.after_read(codes);
            self.watch.after_read(scales);
            self.released = read;
            if read < view.num_rows {
                return;
            }
            (self.views, self.first_row, self.released) = (later, self.first_row + read, 0);
        }
    }
}

fn check(view: &MatrixView<'_>, kind: WeightKind, num_cols: usize) -> Result<()> {
    if view.kind() != kind || view.num_cols != num_cols {
        return Err(unsupported(&format!(
            "cannot pack {} with {} columns together with {kind} with {num_cols} columns",
            view.kind(),
            view.num_cols
        )));
    }
    if view.num_rows == 0 || num_cols == 0 {
        return Err(unsupported(&format!(
            "cannot pack an empty matrix of shape [{}, {num_cols}]",
            view.num_rows
        )));
    }
    let (divisor, lens) = match view.data {
        MatrixData::Bf16(values) => (1, [(values.len(), num_cols.checked_mul(2)), (0, Some(0))]),
        MatrixData::Fp8 { codes, scales } => (1, [(codes.len(), Some(num_cols)), (scales.len(), Some(4))]),
        MatrixData::Nvfp4 { packed, scales, .. } => {
            (BLOCK_COLS, [(packed.len(), Some(num_cols / 2)), (scales.len(), Some(num_cols / BLOCK_COLS))])
        }
        MatrixData::Int4 { packed, scales } => {
            (2, [(packed.len(), Some(num_cols / 2)), (scales.len(), Some(2 * num_cols.div_ceil(INT4_GROUP)))])
        }
    };
    if !num_cols.is_multiple_of(divisor) {
        return Err(unsupported(&format!(
            "{kind} with {num_cols} columns: expected a multiple of {divisor}"
        )));
    }
    for (found, row_bytes) in lens {
        let expected = row_bytes.and_then(|bytes| bytes.checked_mul(view.num_rows));
        if expected != Some(found) {
            return Err(unsupported(&format!(
                "{kind} matrix [{}, {num_cols}] has {found} bytes in one part, expected {expected:?}",
                view.num_rows
            )));
        }
    }
    Ok(())
}
