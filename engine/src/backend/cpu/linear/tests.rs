//! Every format × arithmetic × instruction set against oracles in F64 and in integers.

use half::{bf16, f16};

use super::*;
use crate::{
    backend::cpu::Arithmetic,
    quant::{INT4_GROUP, MatrixData, MatrixView, WeightKind},
};

const ROW_COUNTS: [usize; 7] = [1, 15, 16, 17, 32, 40, 64];
const COL_COUNTS: [usize; 7] = [16, 32, 48, 128, 144, 352, 1024];
const TOKEN_COUNTS: [usize; 12] = [1, 2, 3, 4, 5, 6, 7, 8, 9, 13, 17, 64];
/// Rounding of a sum of a thousand F32 products, relative to `Σ |w · x|`.
const F32_BOUND: f64 = 1e-6;

/// xorshift64*: test data that is the same everywhere.
struct Noise(u64);

impl Noise {
    fn next(&mut self) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        self.0.wrapping_mul(0x2545_f491_4f6c_dd1d)
    }

    /// Roughly normal with standard deviation 1.
    fn normal(&mut self) -> f32 {
        (0..4).map(|_| (self.next() >> 40) as f32 / (1u64 << 24) as f32 - 0.5).sum::<f32>() * 1.732
    }

    fn byte(&mut self) -> u8 {
        (self.next() >> 32) as u8
    }

    fn values(&mut self, len: usize) -> Vec<f32> {
        (0..len).map(|_| self.normal()).collect()
    }
}

/// Owned bytes of a matrix in one format.
struct Stored {
    kind: WeightKind,
    num_rows: usize,
    num_cols: usize,
    codes: Vec<u8>,
    scales: Vec<u8>,
    scale_2: f32,
}

impl Stored {
    /// Random finite codes and scales; `scale_2` for NVFP4.
    fn random(kind: WeightKind, num_rows: usize, num_cols: usize, noise: &mut Noise) -> Self {
        let num_codes = num_rows * num_cols;
        let (codes, scales) = match kind {
            WeightKind::Bf16 => {
                ((0..num_codes).flat_map(|_| bf16::from_f32(noise.normal()).to_le_bytes()).collect(), vec![])
            }
            WeightKind::Fp8 => {
                let code = |byte: u8| if byte & 0x7f == 0x7f { 0 } else { byte };
                let codes = (0..num_codes).map(|_| code(noise.byte())).collect();
                (codes, (0..num_rows).flat_map(|_| (noise.normal() * 0.01).to_le_bytes()).collect())
            }
            WeightKind::Nvfp4 => {
                let codes = (0..num_codes / 2).map(|_| noise.byte()).collect();
                // Subnormals (below 0x08) and the largest scales included, NaN (0x7f) not.
                (codes, (0..num_codes / 16).map(|_| noise.byte() % 0x7f).collect())
            }
            WeightKind::Int4 => {
                let codes = (0..num_codes / 2).map(|_| noise.byte()).collect();
                let num_groups = num_rows * num_cols.div_ceil(INT4_GROUP);
                (codes, (0..num_groups).flat_map(|_| f16::from_f32(noise.normal()).to_le_bytes()).collect())
            }
        };
        Self { kind, num_rows, num_cols, codes, scales, scale_2: 0.003 }
    }

    fn view(&self) -> MatrixView<'_> {
        let (codes, scales) = (&self.codes[..], &self.scales[..]);
        let data = match self.kind {
            WeightKind::Bf16 => MatrixData::Bf16(codes),
            WeightKind::Fp8 => MatrixData::Fp8 { codes, scales },
            WeightKind::Nvfp4 => MatrixData::Nvfp4 { packed: codes, scales, scale_2: self.scale_2 },
            WeightKind::Int4 => MatrixData::Int4 { packed: codes, scales },
        };
        MatrixView { num_rows: self.num_rows, num_cols: self.num_cols, data }
    }

    fn row(&self, row_idx: usize) -> Vec<f32> {
        let mut row = vec![0.0; self.num_cols];
        self.view().dequantize_row(row_idx, &mut row);
        row
    }
}

fn pool() -> ThreadPool {
    ThreadPool::new(2).unwrap()
}

fn product(isa: Isa, pool: &ThreadPool, w: &PackedMatrix, x: &Activations) -> Vec<f32> {
    let mut out = vec![f32::NAN; x.num_rows() * w.num_rows()];
    linear_on(isa, pool, w, x, &mut out);
    out
}

fn activations(arithmetic: Arithmetic, num_rows: usize, values: &[f32]) -> Activations {
    let num_cols = values.len() / num_rows;
    let mut x = Activations::new(arithmetic, num_rows, num_cols);
    x.copy_from(&pool(), num_rows, num_cols, values);
    x
}

/// Largest `|found - Σ w·x| / Σ |w·x|` over the output, in F64, with `x` as the arithmetic sees it.
fn worst_error(stored: &Stored, values: &[f32], found: &[f32]) -> f64 {
    let mut worst = 0.0f64;
    for row_idx in 0..stored.num_rows {
        let row = stored.row(row_idx);
        for (x, found) in values.chunks_exact(stored.num_cols).zip(found.chunks_exact(stored.num_rows)) {
            let terms = row.iter().zip(x).map(|(&w, &x)| f64::from(w) * f64::from(x));
            let (sum, size) = terms.fold((0.0, 0.0), |(sum, size), term| (sum + term, size + term.abs()));
            worst = worst.max((f64::from(found[row_idx]) - sum).abs() / size.max(1e-30));
        }
    }
    worst
}

/// Activations rounded to 8 bits for each 16 columns, by the definition.
fn quantized(values: &[f32], num_cols: usize) -> Vec<f32> {
    let mut out = Vec::new();
    for row in values.chunks_exact(num_cols) {
        for block in row.chunks(16) {
            let scale = block.iter().fold(0.0f64, |max, x| max.max(f64::from(x.abs()))) / 127.0;
            out.extend(block.iter().map(
                |&x| if scale > 0.0 { (f64::from(x) / scale).round_ties_even() * scale } else { 0.0 } as f32,
            ));
        }
    }
    out
}

#[test]
fn float_products_equal_the_f64_oracle_for_every_format_shape_and_instruction_set() {
    let (pool, mut noise) = (pool(), Noise(1));
    for kind in WeightKind::ALL {
        for num_cols in COL_COUNTS {
            for num_rows in ROW_COUNTS {
                let stored = Stored::random(kind, num_rows, num_cols, &mut noise);
                let packed = PackedMatrix::pack(&[stored.view()]).unwrap();
                let values = noise.values(3 * num_cols);
                let x = activations(Arithmetic::F32, 3, &values);
                for isa in Isa::available() {
                    let error = worst_error(&stored, &values, &product(isa, &pool, &packed, &x));
                    assert!(error < F32_BOUND, "{kind} [{num_rows}, {num_cols}] on {isa}: {error:e}");
                }
            }
        }
    }
}

#[test]
fn integer_products_equal_the_f64_oracle_of_the_same_quantized_activations() {
    let (pool, mut noise) = (pool(), Noise(2));
    for kind in [WeightKind::Nvfp4, WeightKind::Int4] {
        for num_cols in COL_COUNTS {
            for num_rows in ROW_COUNTS {
                let stored = Stored::random(kind, num_rows, num_cols, &mut noise);
                let packed = PackedMatrix::pack(&[stored.view()]).unwrap();
                let values = noise.values(3 * num_cols);
                let x = activations(Arithmetic::Int8, 3, &values);
                for isa in Isa::available() {
                    let error = worst_error(
                        &stored,
                        &quantized(&values, num_cols),
                        &product(isa, &pool, &packed, &x),
                    );
                    assert!(error < F32_BOUND, "{kind} [{num_rows}, {num_cols}] on {isa}: {error:e}");
                }
            }
        }
    }
}

#[test]
fn bytes_without_an_integer_form_are_computed_in_float_under_int8_arithmetic() {
    let (pool, mut noise) = (pool(), Noise(3));
    for kind in [WeightKind::Bf16, WeightKind::Fp8] {
        let packed = PackedMatrix::pack(&[Stored::random(kind, 17, 48, &mut noise).view()]).unwrap();
        let values = noise.values(2 * 48);
        let float = product(Isa::detect(), &pool, &packed, &activations(Arithmetic::F32, 2, &values));
        assert_eq!(float, product(Isa::detect(), &pool, &packed, &activations(Arithmetic::Int8, 2, &values)));
    }
}

#[test]
fn a_token_gets_the_same_bits_in_any_batch_on_any_number_of_threads_and_instruction_set() {
    let mut noise = Noise(4);
    let pools = [1, 2, 5].map(|num_threads| ThreadPool::new(num_threads).unwrap());
    // Pairs of tiles and a single one; columns of one chunk and of two.
    for (kind, num_cols) in WeightKind::ALL.into_iter().flat_map(|kind| [(kind, 304), (kind, 1072)]) {
        let packed = PackedMatrix::pack(&[Stored::random(kind, 72, num_cols, &mut noise).view()]).unwrap();
        let values = noise.values(64 * num_cols);
        for arithmetic in [Arithmetic::F32, Arithmetic::Int8] {
            let one_by_one = values.chunks_exact(num_cols);
            let expected: Vec<f32> = one_by_one
                .flat_map(|x| product(Isa::SCALAR, &pools[0], &packed, &activations(arithmetic, 1, x)))
                .collect();
            for num_tokens in TOKEN_COUNTS {
                let x = activations(arithmetic, num_tokens, &values[..num_tokens * num_cols]);
                for isa in Isa::available() {
                    for pool in &pools {
                        let found = product(isa, pool, &packed, &x);
                        let same = found.iter().zip(&expected).all(|(a, b)| a.to_bits() == b.to_bits());
                        assert!(same, "{kind} {arithmetic:?} with {num_tokens} tokens on {isa}");
                    }
                }
            }
        }
    }
}

/// A matrix of two tiles times `x`, blocks up to each of `ends` at a time.
fn pair_product(isa: Isa, w: &PackedMatrix, x: &Activations, ends: &[usize]) -> Vec<f32> {
    let mut out = vec![f32::NAN; x.num_rows() * PAIR_ROWS];
    let columns = Disjoint::new(&mut out);
    let pair = [w.tile(0), w.tile(1)];
    let mut start = 0;
    for &end in ends {
        let part = PairPart {
            pair: &pair,
            next: (&pair, end),
            tokens: x.tokens(0..x.num_rows()),
            blocks: start..end,
            // SAFETY: nobody else knows `out`.
            out: &unsafe { PairOut::new(&columns, PAIR_ROWS, 0) },
        };
        kernels::multiply_pair(isa, x.arithmetic(), &part);
        start = end;
    }
    out
}

#[test]
fn a_pair_of_tiles_gets_the_same_bits_for_any_number_of_tokens_and_any_runs_of_blocks() {
    let mut noise = Noise(12);
    for kind in WeightKind::ALL {
        let packed = PackedMatrix::pack(&[Stored::random(kind, PAIR_ROWS, 304, &mut noise).view()]).unwrap();
        let values = noise.values(17 * 304);
        for arithmetic in [Arithmetic::F32, Arithmetic::Int8] {
            for num_tokens in 1..=17 {
                let x = activations(arithmetic, num_tokens, &values[..num_tokens * 304]);
                let expected = pair_product(Isa::SCALAR, &packed, &x, &[19]);
                let has_plan = |isa: &Isa| PairPlan::of(*isa, arithmetic, kind).is_some();
                for isa in Isa::available().filter(has_plan) {
                    let found = pair_product(isa, &packed, &x, &[1, 6, 8, 16, 19]);
                    let same = found.iter().zip(&expected).all(|(a, b)| a.to_bits() == b.to_bits());
                    assert!(same, "{kind} {arithmetic:?} with {num_tokens} tokens on {isa}");
                }
            }
        }
    }
}

#[test]
fn fused_matrices_keep_their_own_scales_and_order() {
    let (pool, mut noise) = (pool(), Noise(5));
    for kind in WeightKind::ALL {
        let mut parts = [20, 3, 33].map(|num_rows| Stored::random(kind, num_rows, 64, &mut noise));
        for (part, scale_2) in parts.iter_mut().zip([1.0, 1e-4, 7.0]) {
            part.scale_2 = scale_2;
        }
        let values = noise.values(2 * 64);
        let x = activations(Arithmetic::F32, 2, &values);
        let fused = PackedMatrix::pack(&parts.each_ref().map(Stored::view)).unwrap();
        let found = product(Isa::detect(), &pool, &fused, &x);
        for token_idx in 0..2 {
            let x = activations(Arithmetic::F32, 1, &values[token_idx * 64..][..64]);
            let expected: Vec<f32> = parts
                .iter()
                .flat_map(|part| {
                    product(Isa::detect(), &pool, &PackedMatrix::pack(&[part.view()]).unwrap(), &x)
                })
                .collect();
            assert_eq!(found[token_idx * 56..][..56], expected);
        }
    }
}

#[test]
fn columns_that_fill_no_block_are_padded() {
    let (pool, mut noise) = (pool(), Noise(6));
    for (kind, num_cols) in
        [(WeightKind::Bf16, 1), (WeightKind::Bf16, 37), (WeightKind::Fp8, 51), (WeightKind::Int4, 134)]
    {
        let stored = Stored::random(kind, 18, num_cols, &mut noise);
        let packed = PackedMatrix::pack(&[stored.view()]).unwrap();
        // Room that held another shape before: padding must not keep old values.
        let mut x = Activations::new(Arithmetic::F32, 4, 160);
        x.copy_from(&pool, 4, 160, &[1e9; 4 * 160]);
        let values = noise.values(3 * num_cols);
        x.copy_from(&pool, 3, num_cols, &values);
        for isa in Isa::available() {
            let error = worst_error(&stored, &values, &product(isa, &pool, &packed, &x));
            assert!(error < F32_BOUND, "{kind} with {num_cols} columns on {isa}: {error:e}");
        }
    }
}

#[test]
fn weights_that_pass_the_caches_give_the_same_bits() {
    let (pool, mut noise) = (pool(), Noise(9));
    for kind in WeightKind::ALL {
        let mut packed = PackedMatrix::pack(&[Stored::random(kind, 72, 1024, &mut noise).view()]).unwrap();
        for arithmetic in [Arithmetic::F32, Arithmetic::Int8] {
            let x = activations(arithmetic, 3, &noise.values(3 * 1024));
            for isa in Isa::available() {
                packed.is_streamed = false;
                let kept = product(isa, &pool, &packed, &x);
                packed.is_streamed = true;
                assert_eq!(product(isa, &pool, &packed, &x), kept, "{kind} on {isa}");
            }
        }
    }
}

#[test]
fn zero_matrices_and_zero_activations_give_zero() {
    let (pool, mut noise) = (pool(), Noise(7));
    for kind in WeightKind::ALL {
        let mut stored = Stored::random(kind, 17, 48, &mut noise);
        let random = PackedMatrix::pack(&[stored.view()]).unwrap();
        stored.codes.fill(0);
        let zero = PackedMatrix::pack(&[stored.view()]).unwrap();
        for arithmetic in [Arithmetic::F32, Arithmetic::Int8] {
            let (nothing, something) = (vec![0.0; 96], noise.values(96));
            for isa in Isa::available() {
                let zeros = product(isa, &pool, &zero, &activations(arithmetic, 2, &something));
                assert!(zeros.iter().all(|&v| v == 0.0), "{kind} zero weights on {isa}");
                let zeros = product(isa, &pool, &random, &activations(arithmetic, 2, &nothing));
                assert!(zeros.iter().all(|&v| v == 0.0), "{kind} zero activations on {isa}");
            }
        }
    }
}

#[test]
fn huge_and_tiny_scales_keep_their_precision() {
    let (pool, mut noise) = (pool(), Noise(8));
    for (scale_2, factor) in [(1e30, 1e-3), (1e-30, 1e3), (1e-36, 1.0), (1.0, 1e30), (1.0, 1e-25)] {
        let mut stored = Stored::random(WeightKind::Nvfp4, 17, 64, &mut noise);
        stored.scale_2 = scale_2;
        let packed = PackedMatrix::pack(&[stored.view()]).unwrap();
        let values: Vec<f32> = noise.values(64).iter().map(|v| v * factor).collect();
        for isa in Isa::available() {
            let found = product(isa, &pool, &packed, &activations(Arithmetic::F32, 1, &values));
            let error = worst_error(&stored, &values, &found);
            assert!(error < F32_BOUND, "scale_2 {scale_2:e} on {isa}: {error:e}");
            let found = product(isa, &pool, &packed, &activations(Arithmetic::Int8, 1, &values));
            let error = worst_error(&stored, &quantized(&values, 64), &found);
            assert!(error < F32_BOUND, "scale_2 {scale_2:e} int8 on {isa}: {error:e}");
        }
    }
}

#[test]
fn a_negative_block_scale_turns_the_signs_of_its_block() {
    let (pool, mut noise) = (pool(), Noise(9));
    let mut stored = Stored::random(WeightKind::Nvfp4, 17, 64, &mut noise);
    stored.scales.iter_mut().step_by(3).for_each(|scale| *scale |= 0x80);
    let packed = PackedMatrix::pack(&[stored.view()]).unwrap();
    let values = noise.values(64);
    for isa in Isa::available() {
        let found = product(isa, &pool, &packed, &activations(Arithmetic::F32, 1, &values));
        assert!(worst_error(&stored, &values, &found) < F32_BOUND, "{isa}");
    }
}

#[test]
fn a_value_that_is_not_finite_reaches_its_own_token_only() {
    let (pool, mut noise) = (pool(), Noise(10));
    let packed = PackedMatrix::pack(&[Stored::random(WeightKind::Nvfp4, 16, 64, &mut noise).view()]).unwrap();
    for bad in [f32::NAN, f32::INFINITY] {
        let mut values = noise.values(3 * 64);
        values[64 + 5] = bad;
        for arithmetic in [Arithmetic::F32, Arithmetic::Int8] {
            for isa in Isa::available() {
                let found = product(isa, &pool, &packed, &activations(arithmetic, 3, &values));
                let is_finite =
                    |token_idx: usize| found[token_idx * 16..][..16].iter().all(|v| v.is_finite());
                assert_eq!([0, 1, 2].map(is_finite), [true, false, true], "{bad} {arithmetic:?} on {isa}");
            }
        }
    }
}

#[test]
fn matrices_that_cannot_be_packed_are_refused_with_the_reason() {
    let mut noise = Noise(11);
    let reason = |views: &[MatrixView<'_>]| PackedMatrix::pack(views).unwrap_err().to_string();
    assert!(reason(&[]).contains("no matrix"));
    let (a, b) = (
        Stored::random(WeightKind::Fp8, 4, 32, &mut noise),
        Stored::random(WeightKind::Bf16, 4, 32, &mut noise),
    );
    assert!(reason(&[a.view(), b.view()]).contains("bf16 with 32 columns together with fp8"));
    let mut short = Stored::random(WeightKind::Nvfp4, 4, 32, &mut noise);
    short.codes.pop();
    assert!(reason(&[short.view()]).contains("63 bytes"));
    let mut nan = Stored::random(WeightKind::Nvfp4, 4, 32, &mut noise);
    nan.scales[3] = 0x7f;
    assert!(reason(&[nan.view()]).contains("NaN"));
    nan.scales[3] = 0;
    nan.scale_2 = f32::INFINITY;
    assert!(reason(&[nan.view()]).contains("inf"));
    let mut ragged = Stored::random(WeightKind::Nvfp4, 4, 32, &mut noise);
    ragged.num_cols = 24;
    assert!(reason(&[ragged.view()]).contains("multiple of 16"));
}

#[test]
fn the_largest_of_every_row_is_found_beside_the_same_product() {
    let mut noise = Noise(12);
    for (num_rows, num_tokens) in [(1, 1), (17, 3), (40, 9), (600, 1), (1000, 17), (333, 64)] {
        for (kind, arithmetic) in [(WeightKind::Bf16, Arithmetic::F32), (WeightKind::Nvfp4, Arithmetic::Int8)]
        {
            let packed =
                PackedMatrix::pack(&[Stored::random(kind, num_rows, 64, &mut noise).view()]).unwrap();
            let x = activations(arithmetic, num_tokens, &noise.values(num_tokens * 64));
            for threads in [1, 3] {
                let pool = ThreadPool::new(threads).unwrap();
                let (mut out, mut largest) =
                    (vec![f32::NAN; num_tokens * num_rows], LargestLogits::default());
                linear_with_largest(&pool, &packed, &x, &mut out, &mut largest);
                assert_eq!(
                    out,
                    product(Isa::detect(), &pool, &packed, &x),
                    "{kind} {num_rows} x {num_tokens}"
                );
                for (row_idx, row) in out.chunks(num_rows).enumerate() {
                    let most = row.iter().copied().fold(f32::NEG_INFINITY, f32::max);
                    let token = row.iter().position(|&logit| logit == most).unwrap() as u32;
                    let found = largest.row(row_idx).unwrap().entries().next();
                    assert_eq!(found, Some((token, most)), "row {row_idx} of {num_rows} x {num_tokens}");
                }
            }
        }
    }
}
