//! The oracle: every kernel written plainly, with the layout read element by element.

use std::ops::Range;

use half::f16;

use super::{
    super::{
        activations::Tokens,
        packed::{BLOCK_COLS, BLOCKS_PER_GROUP, TILE_ROWS, Tile, block_bytes, fp8_offset},
    },
    PairPart,
};
use crate::quant::{WeightKind, e2m1};

/// One tile times `tokens`, dequantized weights times F32 activations; `sums` `[num_tokens][16]`.
pub(super) fn multiply_f32(tile: &Tile<'_>, tokens: &Tokens<'_>, sums: &mut [[f32; TILE_ROWS]]) {
    multiply(tile, tokens, sums, sum_f32, 1.0);
}

/// One tile times `tokens`, 4-bit weights times 8-bit activations.
pub(super) fn multiply_int8(tile: &Tile<'_>, tokens: &Tokens<'_>, sums: &mut [[f32; TILE_ROWS]]) {
    multiply(tile, tokens, sums, sum_int8, integer_unit(tile.kind));
}

fn multiply(
    tile: &Tile<'_>,
    tokens: &Tokens<'_>,
    sums: &mut [[f32; TILE_ROWS]],
    sum_blocks: SumBlocks,
    unit: f32,
) {
    for (token_idx, token_sums) in sums.iter_mut().enumerate() {
        for (row, out) in token_sums.iter_mut().enumerate() {
            let sum = sum_blocks(tile, row, tokens, token_idx, 0..tile.num_blocks, 0.0);
            *out = sum * (tile.row_scales[row] * unit);
        }
    }
}

/// Some blocks of two tiles times all tokens; see [`super::multiply_pair`].
pub(super) fn multiply_pair(is_integer: bool, part: &PairPart<'_>) {
    let unit = if is_integer { integer_unit(part.pair[0].kind) } else { 1.0 };
    let sum_blocks: SumBlocks = if is_integer { sum_int8 } else { sum_f32 };
    for token_idx in 0..part.tokens.num_tokens {
        for (tile_idx, tile) in part.pair.iter().enumerate() {
            for row in 0..TILE_ROWS {
                let out = part.out.value(token_idx, tile_idx * TILE_ROWS + row);
                let before = if part.blocks.start > 0 { *out } else { 0.0 };
                let sum = sum_blocks(tile, row, &part.tokens, token_idx, part.blocks.clone(), before);
                let is_last = part.blocks.end == tile.num_blocks;
                *out = if is_last { sum * (tile.row_scales[row] * unit) } else { sum };
            }
        }
    }
}

/// `sum` and what the blocks of one row add to it for one token, without the row's scale.
type SumBlocks = fn(&Tile<'_>, usize, &Tokens<'_>, usize, Range<usize>, f32) -> f32;

fn sum_f32(
    tile: &Tile<'_>,
    row: usize,
    tokens: &Tokens<'_>,
    token_idx: usize,
    blocks: Range<usize>,
    mut sum: f32,
) -> f32 {
    let x = &tokens.rows[token_idx * tokens.row_len..][..tokens.row_len];
    for block in blocks {
        let mut part = 0.0;
        for (k, &x) in x[block * BLOCK_COLS..][..BLOCK_COLS].iter().enumerate() {
            part = x.mul_add(weight(tile, row, block, k), part);
        }
        sum = block_scale(tile, row, block).mul_add(part, sum);
    }
    sum
}

fn sum_int8(
    tile: &Tile<'_>,
    row: usize,
    tokens: &Tokens<'_>,
    token_idx: usize,
    blocks: Range<usize>,
    mut sum: f32,
) -> f32 {
    let unit = integer_unit(tile.kind);
    for block in blocks {
        let x = &tokens.blocks[token_idx * tile.num_blocks + block];
        let products = x.codes.iter().enumerate().map(|(k, &x)| {
            let doubled_or_plain = weight(tile, row, block, k) / unit;
            doubled_or_plain as i32 * i32::from(x)
        });
        let part: i32 = products.sum();
        let scale = block_scale(tile, row, block) * x.scale;
        sum = scale.mul_add(part as f32, sum);
    }
    sum
}

/// What one step of the integer form of a code is worth.
pub(super) fn integer_unit(kind: WeightKind) -> f32 {
    if kind == WeightKind::Nvfp4 { 0.5 } else { 1.0 }
}

/// The code's value, without block and row scales.
fn weight(tile: &Tile<'_>, row: usize, block: usize, k: usize) -> f32 {
    let codes = &tile.codes[block * block_bytes(tile.kind)..];
    match tile.kind {
        WeightKind::Bf16 => {
            let at = (k / 2) * 64 + row * 4 + (k % 2) * 2;
            f32::from_bits(u32::from(u16::from_le_bytes([codes[at], codes[at + 1]])) << 16)
        }
        WeightKind::Fp8 => e4m3_as_f16(codes[fp8_offset(row, k)]),
        WeightKind::Nvfp4 => e2m1::VALUES[usize::from(nibble(codes, row, k))],
        WeightKind::Int4 => f32::from(nibble(codes, row, k)) - 8.0,
    }
}

fn block_scale(tile: &Tile<'_>, row: usize, block: usize) -> f32 {
    match tile.kind {
        WeightKind::Bf16 | WeightKind::Fp8 => 1.0,
        WeightKind::Nvfp4 => e4m3_as_f16(tile.scales[block * TILE_ROWS + row]),
        WeightKind::Int4 => {
            let at = ((block / BLOCKS_PER_GROUP) * TILE_ROWS + row) * 2;
            f16::from_le_bytes([tile.scales[at], tile.scales[at + 1]]).to_f32()
        }
    }
}

fn nibble(codes: &[u8], row: usize, k: usize) -> u8 {
    (codes[(k / 8) * 64 + row * 4 + k % 4] >> (4 * ((k / 4) % 2))) & 0xf
}

/// E4M3 read as F16, `2^-8` of its value.
fn e4m3_as_f16(code: u8) -> f32 {
    f16::from_bits((u16::from(code & 0x80) << 8) | (u16::from(code & 0x7f) << 7)).to_f32()
}
