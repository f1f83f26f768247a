//! Rows of a stored matrix to tiles: layouts in [`super::packed`].

use half::f16;

use super::{
    aligned::LINE_BYTES,
    packed::{TILE_ROWS, block_bytes},
};
use crate::{
    EngineError, Result,
    quant::{WeightKind, e4m3},
};

/// Source bytes of a row that go to one line.
const WORD_BYTES: usize = 4;
/// Lines written before the next row's turn: a line of its source each row, a kilobyte of the tile, so both stay in the first-level cache.
const WORDS_A_TURN: usize = LINE_BYTES / WORD_BYTES;

type Line = [u8; LINE_BYTES];

/// Puts the codes of up to 16 `rows`, in order, to the lines of a tile that is all zeros.
///
/// # Errors
/// [`EngineError::Unsupported`] for an FP8 weight that is not a number.
pub(super) fn put_codes(kind: WeightKind, rows: &[&[u8]], codes: &mut [u8]) -> Result<()> {
    match kind {
        WeightKind::Bf16 => put_words(rows, codes, |word| word, put_lane),
        WeightKind::Fp8 => {
            rows.iter().try_for_each(|row| all_finite(row))?;
            put_words(rows, codes, odd_columns_last, put_halves);
        }
        WeightKind::Nvfp4 => put_words(rows, codes, columns_4_apart, put_lane),
        // Two's complement and an offset of 8 differ in the sign bit.
        WeightKind::Int4 => put_words(rows, codes, |word| columns_4_apart(word) ^ 0x8888_8888, put_lane),
    }
    Ok(())
}

/// Word `i` of every row, turned by `turn`, to line `i`. A last word that is not whole is filled with zeros before it is turned.
fn put_words(
    rows: &[&[u8]],
    codes: &mut [u8],
    turn: impl Fn(u32) -> u32,
    put: impl Fn(&mut Line, usize, u32),
) {
    let (lines, _) = codes.as_chunks_mut::<LINE_BYTES>();
    for (turn_idx, lines) in lines.chunks_mut(WORDS_A_TURN).enumerate() {
        for (row, bytes) in rows.iter().enumerate() {
            let from = bytes.get(turn_idx * LINE_BYTES..).unwrap_or_default();
            let turned = |line: &Line| {
                let (words, _) = line.as_chunks::<WORD_BYTES>();
                std::array::from_fn::<u32, WORDS_A_TURN, _>(|idx| turn(u32::from_le_bytes(words[idx])))
            };
            if let Some(line) = from.first_chunk() {
                let words = turned(line);
                lines.iter_mut().zip(words).for_each(|(line, word)| put(line, row, word));
            } else {
                let mut line = [0; LINE_BYTES];
                line[..from.len()].copy_from_slice(from);
                let words = turned(&line).into_iter().take(from.len().div_ceil(WORD_BYTES));
                lines.iter_mut().zip(words).for_each(|(line, word)| put(line, row, word));
            }
        }
    }
}

/// A row's 4 bytes of a line.
fn put_lane(line: &mut Line, row: usize, word: u32) {
    line[row * 4..row * 4 + 4].copy_from_slice(&word.to_le_bytes());
}

/// A row's 2 bytes of either half of a line.
fn put_halves(line: &mut Line, row: usize, word: u32) {
    let [a, b, c, d] = word.to_le_bytes();
    line[row * 2..row * 2 + 2].copy_from_slice(&[a, b]);
    let odd = 2 * TILE_ROWS + row * 2;
    line[odd..odd + 2].copy_from_slice(&[c, d]);
}

/// Bytes 0, 1, 2, 3 to 0, 2, 1, 3.
fn odd_columns_last(word: u32) -> u32 {
    word & 0xff00_00ff | (word >> 8) & 0xff00 | (word & 0xff00) << 8
}

/// Nibbles 0 to 7 to 0, 4, 1, 5, 2, 6, 3, 7: 8 columns of a row (even column low) to the row's 4 bytes of a line.
fn columns_4_apart(word: u32) -> u32 {
    let spread = |half: u32| {
        let bytes = (half | half << 8) & 0x00ff_00ff;
        (bytes | bytes << 4) & 0x0f0f_0f0f
    };
    spread(word & 0xffff) | spread(word >> 16) << 4
}

fn all_finite(codes: &[u8]) -> Result<()> {
    let is_nan = |code: u8| code & 0x7f == 0x7f;
    // Without a branch, so that it runs at the speed of memory.
    if !codes.iter().fold(false, |any, &code| any | is_nan(code)) {
        return Ok(());
    }
    let column = codes.iter().position(|&code| is_nan(code)).unwrap_or_default();
    Err(unsupported(&format!("the fp8 weight of column {column} is NaN, expected a finite value")))
}

/// Scales are kept without their sign; a negative one (no builder writes it) turns the signs of its block's codes.
pub(super) fn put_nvfp4_scales(from: &[u8], row: usize, codes: &mut [u8], scales: &mut [u8]) -> Result<()> {
    for (block, &scale) in from.iter().enumerate() {
        if scale & 0x7f == 0x7f {
            finite(e4m3::decode(scale))?;
        }
        scales[block * TILE_ROWS + row] = scale & 0x7f;
        if scale & 0x80 != 0 {
            let block_bytes = block_bytes(WeightKind::Nvfp4);
            for line in codes[block * block_bytes..(block + 1) * block_bytes].chunks_exact_mut(LINE_BYTES) {
                line[row * 4..row * 4 + 4].iter_mut().for_each(|byte| *byte ^= 0x88);
            }
        }
    }
    Ok(())
}

pub(super) fn put_int4_scales(from: &[u8], row: usize, scales: &mut [u8]) -> Result<()> {
    for (group, scale) in from.chunks_exact(2).enumerate() {
        finite(f16::from_le_bytes([scale[0], scale[1]]).to_f32())?;
        let at = (group * TILE_ROWS + row) * 2;
        scales[at..at + 2].copy_from_slice(scale);
    }
    Ok(())
}

pub(super) fn finite(scale: f32) -> Result<f32> {
    if scale.is_finite() {
        Ok(scale)
    } else {
        Err(unsupported(&format!("a weight scale is {scale}, expected a finite value")))
    }
}

pub(super) fn unsupported(fact: &str) -> EngineError {
    EngineError::Unsupported(fact.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        backend::cpu::packed::{BLOCK_COLS, PackedMatrix, fp8_offset},
        quant::{MatrixData, MatrixView},
    };

    /// Column by column after the table in [`super::super::packed`].
    fn by_the_table(kind: WeightKind, rows: &[&[u8]], codes: &mut [u8]) {
        let nibble = |bytes: &[u8], k: usize| (bytes[k / 2] >> (4 * (k % 2))) & 0xf;
        for (row, bytes) in rows.iter().enumerate() {
            match kind {
                WeightKind::Bf16 => {
                    for (k, value) in bytes.chunks_exact(2).enumerate() {
                        let at = ((k / 2 * TILE_ROWS + row) * 2 + k % 2) * 2;
                        codes[at..at + 2].copy_from_slice(value);
                    }
                }
                WeightKind::Fp8 => {
                    bytes.iter().enumerate().for_each(|(k, &code)| codes[fp8_offset(row, k)] = code);
                }
                WeightKind::Nvfp4 | WeightKind::Int4 => {
                    let flip = if kind == WeightKind::Int4 { 8 } else { 0 };
                    // A word that has begun is turned whole.
                    for k in 0..bytes.len().next_multiple_of(4) * 2 {
                        let code = if k / 2 < bytes.len() { nibble(bytes, k) } else { 0 };
                        codes[(k / 8) * 64 + 4 * row + k % 4] |= (code ^ flip) << (4 * (k / 4 % 2));
                    }
                }
            }
        }
    }

    #[test]
    fn tiles_are_what_the_table_says_for_any_width_and_number_of_rows() {
        let mut state = 1u64;
        let mut byte = || {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            (state >> 56) as u8 & 0xbf // no E4M3 that is not a number
        };
        for kind in WeightKind::ALL {
            for num_cols in [2usize, 16, 18, 30, 48, 128, 130, 254, 256, 304, 1024] {
                for num_rows in [1, 3, 15, 16] {
                    let row_bytes = match kind {
                        WeightKind::Bf16 => 2 * num_cols,
                        WeightKind::Fp8 => num_cols,
                        WeightKind::Nvfp4 | WeightKind::Int4 => num_cols / 2,
                    };
                    let rows: Vec<Vec<u8>> =
                        (0..num_rows).map(|_| (0..row_bytes).map(|_| byte()).collect()).collect();
                    let rows: Vec<&[u8]> = rows.iter().map(Vec::as_slice).collect();
                    let mut expected = vec![0; num_cols.div_ceil(BLOCK_COLS) * block_bytes(kind)];
                    let mut found = expected.clone();
                    by_the_table(kind, &rows, &mut expected);
                    put_codes(kind, &rows, &mut found).unwrap();
                    assert!(found == expected, "{kind} [{num_rows}, {num_cols}]");
                }
            }
        }
    }

    #[test]
    fn a_tile_takes_rows_of_several_views_and_their_scales() {
        // 3 + 18 rows: the second view begins within a tile and ends in the next; a negative scale turns its block's signs.
        let (a, b) = ([0x21u8; 3 * 16], [0x43u8; 18 * 16]);
        let (scales_a, mut scales_b) = ([0x38u8; 3 * 2], [0x40u8; 18 * 2]);
        scales_b[2 * 13 + 1] |= 0x80;
        let view = |num_rows, packed, scales, scale_2| MatrixView {
            num_rows,
            num_cols: 32,
            data: MatrixData::Nvfp4 { packed, scales, scale_2 },
        };
        let packed =
            PackedMatrix::pack(&[view(3, &a, &scales_a, 1.0), view(18, &b, &scales_b, 2.0)]).unwrap();
        let (first, second) = (packed.tile(0), packed.tile(1));
        assert_eq!(first.row_scales[2..4], [256.0, 512.0]);
        assert_eq!(second.row_scales[4..6], [512.0, 0.0]);
        assert_eq!(first.scales[..5], [0x38, 0x38, 0x38, 0x40, 0x40]);
        assert_eq!(first.codes[8..16], [0x11, 0x22, 0x11, 0x22, 0x33, 0x44, 0x33, 0x44]);
        // Row 13 of the second view is row 0 of the second tile: block 1 is lines 2 and 3.
        assert_eq!(second.scales[..17], [&[0x40; 5][..], &[0; 11], &[0x40]].concat());
        assert_eq!(second.codes[..4], [0x33, 0x44, 0x33, 0x44]);
        assert_eq!(second.codes[2 * 64..2 * 64 + 8], [0xbb, 0xcc, 0xbb, 0xcc, 0x33, 0x44, 0x33, 0x44]);
        assert!(second.codes[20..64].iter().all(|&byte| byte == 0));
    }
}
