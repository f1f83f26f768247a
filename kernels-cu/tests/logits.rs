//! The likeliest tokens against a plain sort, and the log-sum-exp against F64.

#![allow(clippy::unwrap_used, reason = "tests")]

mod emulator;

use std::{cmp::Ordering, sync::OnceLock};

use emulator::{Buffer, Emulator};
use takt_kernels_cu::launch::{
    DeviceAddress,
    logits::{BROKEN, Logits, LogitsOutput, LogitsScratch, NOTHING_FINITE, TokenMasks},
};

fn emulator() -> Option<&'static Emulator> {
    static EMULATOR: OnceLock<Option<Emulator>> = OnceLock::new();
    EMULATOR.get_or_init(|| Emulator::of(&["logits.cu"])).as_ref()
}

/// What came out of a row.
#[derive(Debug, Clone, PartialEq)]
struct Found {
    tokens: Vec<i32>,
    values: Vec<f32>,
    log_sum_exp: f32,
    status: u32,
}

/// The rows' masks: one of `masks` each, or none.
fn run(rows: &[Vec<f32>], k: usize, masks: &[Vec<bool>], mask_of: &[i32]) -> Vec<Found> {
    let vocab_size = rows[0].len();
    let logits = Buffer::from_slice(&rows.concat());
    let words = vocab_size.div_ceil(32) + 1;
    let bits: Vec<u32> = masks
        .iter()
        .flat_map(|mask| {
            let word = |word: usize| {
                (0..32)
                    .filter(|bit| mask.get(word * 32 + bit) == Some(&true))
                    .fold(0_u32, |bits, bit| bits | 1 << bit)
            };
            (0..words).map(word).collect::<Vec<_>>()
        })
        .collect();
    let (bits, mask_of) = (Buffer::from_slice(&bits), Buffer::from_slice(mask_of));
    let (tokens, values) = (Buffer::filled(rows.len() * k, -7), Buffer::filled(rows.len() * k, f32::NAN));
    let (log_sum_exp, status) = (Buffer::filled(rows.len(), 0.0_f32), Buffer::filled(rows.len(), 77_u32));
    let mut of_rows = Logits {
        logits: logits.address(),
        masks: (!masks.is_empty()).then_some(TokenMasks {
            masks: bits.address(),
            words,
            mask_of: mask_of.address(),
        }),
        scratch: LogitsScratch { keys: DeviceAddress::NULL, sums: DeviceAddress::NULL },
        output: LogitsOutput {
            tokens: tokens.address(),
            values: values.address(),
            log_sum_exp: log_sum_exp.address(),
            status: status.address(),
        },
        num_rows: rows.len(),
        vocab_size,
        k,
    };
    let (keys_len, sums_len) = of_rows.scratch_lens().unwrap();
    let (keys, sums) = (Buffer::filled(keys_len, u64::MAX), Buffer::filled(sums_len, f32::NAN));
    of_rows.scratch = LogitsScratch { keys: keys.address(), sums: sums.address() };
    for launch in of_rows.launches().unwrap() {
        emulator().unwrap().launch(&launch).unwrap();
    }
    let (tokens, values) = (tokens.to_vec(), values.to_vec());
    let (log_sum_exp, status) = (log_sum_exp.to_vec(), status.to_vec());
    (0..rows.len())
        .map(|row| Found {
            tokens: tokens[row * k..(row + 1) * k].to_vec(),
            values: values[row * k..(row + 1) * k].to_vec(),
            log_sum_exp: log_sum_exp[row],
            status: status[row],
        })
        .collect()
}

/// The sampler's order: larger first, of equal ones the lower id.
fn order(a: &(usize, f32), b: &(usize, f32)) -> Ordering {
    b.1.total_cmp(&a.1).then(a.0.cmp(&b.0))
}

fn check(row: &[f32], allowed: impl Fn(usize) -> bool, found: &Found) {
    let k = found.tokens.len();
    let mut wanted: Vec<(usize, f32)> = row
        .iter()
        .copied()
        .enumerate()
        .filter(|&(token, logit)| allowed(token) && logit.is_finite())
        .collect();
    let is_broken = row
        .iter()
        .enumerate()
        .any(|(token, logit)| allowed(token) && (logit.is_nan() || *logit == f32::INFINITY));
    let status = if is_broken { BROKEN } else { 0 } | if wanted.is_empty() { NOTHING_FINITE } else { 0 };
    assert_eq!(found.status, status);
    wanted.sort_by(order);
    if !is_broken && !wanted.is_empty() {
        let largest = f64::from(wanted[0].1);
        let sum: f64 = wanted.iter().map(|&(_, logit)| (f64::from(logit) - largest).exp()).sum();
        let exact = largest + sum.ln();
        let away = (f64::from(found.log_sum_exp) - exact).abs();
        assert!(away <= 1e-5 + exact.abs() * 1e-6, "{}, {exact}", found.log_sum_exp);
    }
    wanted.truncate(k);
    for (rank, (&token, &value)) in found.tokens.iter().zip(&found.values).enumerate() {
        match wanted.get(rank) {
            Some(&(wanted_token, wanted_value)) => {
                assert_eq!((token, value), (i32::try_from(wanted_token).unwrap(), wanted_value), "{rank}");
            }
            None => assert_eq!((token, value), (-1, f32::NEG_INFINITY), "{rank}"),
        }
    }
}

/// Logits with many ties, as quantized models have.
fn logits(seed: usize, vocab_size: usize) -> Vec<f32> {
    (0..vocab_size).map(|token| ((token * 7919 + seed * 104_729) % 1009) as f32 * 0.0625 - 40.0).collect()
}

#[test]
fn lists_of_every_length_and_vocabulary_are_the_sorted_ones() {
    if emulator().is_none() {
        return;
    }
    for (vocab_size, k) in
        [(1, 1), (3, 5), (31, 64), (4096, 1), (4096, 64), (4097, 7), (9000, 64), (32_000, 10), (151_936, 1)]
    {
        let rows: Vec<_> = (0..2).map(|seed| logits(seed, vocab_size)).collect();
        for (row, found) in rows.iter().zip(run(&rows, k, &[], &[])) {
            check(row, |_| true, &found);
        }
    }
}

#[test]
fn masked_tokens_do_not_exist() {
    if emulator().is_none() {
        return;
    }
    let vocab_size = 5000;
    let mut rows: Vec<_> = (0..4).map(|seed| logits(seed, vocab_size)).collect();
    rows[1][17] = f32::NAN;
    rows[2][4999] = 90.0;
    let masks = [
        (0..vocab_size).map(|token| token % 3 == 1 && token != 17).collect::<Vec<_>>(),
        (0..vocab_size).map(|token| token == 4999).collect(),
        vec![false; vocab_size],
    ];
    let mask_of = [-1, 0, 1, 2];
    for k in [1, 4] {
        for ((row, found), &mask) in rows.iter().zip(run(&rows, k, &masks, &mask_of)).zip(&mask_of) {
            check(row, |token| usize::try_from(mask).map_or(true, |mask| masks[mask][token]), &found);
        }
    }
}

#[test]
fn logits_that_are_not_finite_are_told_apart() {
    if emulator().is_none() {
        return;
    }
    let mut rows = vec![logits(3, 4200); 5];
    rows[0][4100] = f32::NAN;
    rows[1][0] = f32::INFINITY;
    rows[2].fill(f32::NEG_INFINITY);
    rows[3].fill(f32::NEG_INFINITY);
    rows[3][4199] = -3e38;
    rows[4][..4096].fill(-3e38);
    for k in [1, 3] {
        for (row, found) in rows.iter().zip(run(&rows, k, &[], &[])) {
            check(row, |_| true, &found);
        }
    }
}

#[test]
fn greedy_takes_the_lower_of_two_zeros_of_either_sign() {
    if emulator().is_none() {
        return;
    }
    let row = vec![-1.0, -0.0, 0.0, -0.0];
    assert_eq!(run(std::slice::from_ref(&row), 1, &[], &[])[0].tokens, [1]);
    // A list keeps the sampler's total order.
    assert_eq!(run(&[row], 3, &[], &[])[0].tokens, [2, 1, 3]);
}

#[test]
fn what_the_kernels_cannot_do_is_refused_with_the_reason() {
    let at = DeviceAddress(256);
    let good = Logits {
        logits: at,
        masks: Some(TokenMasks { masks: at, words: 4, mask_of: at }),
        scratch: LogitsScratch { keys: at, sums: at },
        output: LogitsOutput { tokens: at, values: at, log_sum_exp: at, status: at },
        num_rows: 1,
        vocab_size: 128,
        k: 64,
    };
    let error = |logits: Logits| logits.launches().unwrap_err().to_string();
    assert!(good.launches().is_ok());
    assert_eq!(error(Logits { num_rows: 0, ..good }), "rows of logits: 0, expected at least 1");
    assert_eq!(error(Logits { k: 65, ..good }), "tokens of a list: 65, expected at most 64");
    assert_eq!(error(Logits { vocab_size: 129, ..good }), "words of a mask: 5, expected 4");
    let large = Logits { vocab_size: 270_000, masks: None, ..good };
    assert_eq!(error(large), "results of a row's slices: 4224, expected at most 4096");
}
