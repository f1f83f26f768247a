//! Queries, keys and values of a step against the formulas in F64; stored rows against the formats' rules, bit for bit.

#![allow(clippy::unwrap_used, reason = "tests")]

mod cache;
mod emulator;

use cache::{DeviceCache, HostCache, Row, noise};
use emulator::{Buffer, Emulator};
use half::bf16;
use takt_kernels_cu::launch::{
    DeviceAddress, KvFormat,
    rope_kv::{Pairing, QkNorm, RopeKv, RopeTable},
};

const MAX_POSITIONS: usize = 20;
const EPS: f32 = 1e-5;

/// A model's heads.
#[derive(Debug, Clone, Copy)]
struct Shape {
    format: KvFormat,
    num_heads: usize,
    num_kv_heads: usize,
    head_dim: usize,
    num_pairs: usize,
    pairing: Pairing,
    has_bias: bool,
    has_norm: bool,
}

impl Shape {
    fn width(&self) -> usize {
        (self.num_heads + 2 * self.num_kv_heads) * self.head_dim
    }
}

/// A step's tokens: position, lane, row.
const TOKENS: [(i32, i32, i32); 6] = [(0, 0, 0), (19, 1, 19), (7, 0, 9), (3, -1, 0), (7, 0, 10), (1, 1, 1)];

#[derive(Debug)]
struct Inputs {
    /// `[num_tokens, width + 4]`: the last four columns are others'.
    qkv: Vec<f32>,
    bias: Vec<f32>,
    q_norm: Vec<f32>,
    k_norm: Vec<f32>,
    cos: Vec<f32>,
    sin: Vec<f32>,
}

impl Inputs {
    fn of(shape: &Shape) -> Self {
        let angle = |i: usize| {
            let (position, pair) = (i / shape.num_pairs, i % shape.num_pairs);
            position as f32 * 10_000_f32.powf(-(pair as f32) / shape.num_pairs as f32)
        };
        let angles = || (0..MAX_POSITIONS * shape.num_pairs).map(angle);
        Self {
            qkv: noise(1, TOKENS.len() * (shape.width() + 4)),
            bias: noise(2, shape.width()),
            q_norm: noise(3, shape.head_dim),
            k_norm: noise(4, shape.head_dim),
            cos: angles().map(f32::cos).collect(),
            sin: angles().map(f32::sin).collect(),
        }
    }

    /// A head of a token as F32 with its bias: what is stored of a value.
    fn head(&self, shape: &Shape, token: usize, head: usize) -> Vec<f32> {
        let from = &self.qkv[token * (shape.width() + 4) + head * shape.head_dim..][..shape.head_dim];
        let bias = &self.bias[head * shape.head_dim..][..shape.head_dim];
        let add = |(x, bias): (&f32, &f32)| if shape.has_bias { x + bias } else { *x };
        from.iter().zip(bias).map(add).collect()
    }

    /// A head of a token normalized and rotated, in F64.
    fn rotated(&self, shape: &Shape, token: usize, head: usize) -> Vec<f64> {
        let mut x: Vec<f64> = self.head(shape, token, head).into_iter().map(f64::from).collect();
        if shape.has_norm {
            let weight = if head < shape.num_heads { &self.q_norm } else { &self.k_norm };
            let mean = x.iter().map(|x| x * x).sum::<f64>() / x.len() as f64;
            let factor = (mean + f64::from(EPS)).sqrt().recip();
            x = x.iter().zip(weight).map(|(x, &weight)| x * factor * f64::from(weight)).collect();
        }
        let position = usize::try_from(TOKENS[token].0).unwrap();
        let mut out = x.clone();
        for pair in 0..shape.num_pairs {
            let (a, b) = match shape.pairing {
                Pairing::Half => (pair, pair + shape.num_pairs),
                Pairing::Interleaved => (2 * pair, 2 * pair + 1),
            };
            let at = position * shape.num_pairs + pair;
            let (cos, sin) = (f64::from(self.cos[at]), f64::from(self.sin[at]));
            out[a] = x[a] * cos - x[b] * sin;
            out[b] = x[b] * cos + x[a] * sin;
        }
        out
    }
}

/// The rotated queries and the cache after the step.
fn run(emulator: &Emulator, shape: &Shape, inputs: &Inputs) -> (Vec<bf16>, HostCache) {
    let cache = HostCache::new(shape.format, 2, shape.num_kv_heads, MAX_POSITIONS, shape.head_dim);
    let cache = DeviceCache::of(&cache);
    let buffers = [&inputs.qkv, &inputs.bias, &inputs.q_norm, &inputs.k_norm, &inputs.cos, &inputs.sin];
    let buffers = buffers.map(|values| Buffer::from_slice(values));
    let [qkv, bias, q_norm, k_norm, cos, sin] = buffers.each_ref().map(Buffer::address);
    let positions = Buffer::from_slice(&TOKENS.map(|token| token.0));
    let lanes = Buffer::from_slice(&TOKENS.map(|token| token.1));
    let rows = Buffer::from_slice(&TOKENS.map(|token| token.2));
    let q_out = Buffer::filled(TOKENS.len() * shape.num_heads * shape.head_dim, bf16::NAN);
    let bytes = |heads: usize| heads * shape.head_dim * size_of::<f32>();
    let if_queried = |address| if shape.num_heads == 0 { DeviceAddress::NULL } else { address };
    let rope_kv = RopeKv {
        q: if_queried(qkv),
        k: qkv.offset(bytes(shape.num_heads)).unwrap(),
        v: qkv.offset(bytes(shape.num_heads + shape.num_kv_heads)).unwrap(),
        q_stride: shape.width() + 4,
        kv_stride: shape.width() + 4,
        bias: shape.has_bias.then_some(bias),
        norm: shape.has_norm.then_some(QkNorm { q: q_norm, k: k_norm, eps: EPS }),
        rope: RopeTable { cos, sin, num_pairs: shape.num_pairs, pairing: shape.pairing },
        positions: positions.address(),
        lanes: lanes.address(),
        rows: rows.address(),
        q_out: if_queried(q_out.address()),
        cache: cache.launched(),
        num_tokens: TOKENS.len(),
        num_heads: shape.num_heads,
    };
    emulator.launch(&rope_kv.launch().unwrap()).unwrap();
    (q_out.to_vec(), cache.read())
}

fn check_queries(shape: &Shape, inputs: &Inputs, q: &[bf16]) {
    for (token, (_, lane, _)) in TOKENS.into_iter().enumerate() {
        for head in 0..shape.num_heads {
            let found = &q[(token * shape.num_heads + head) * shape.head_dim..][..shape.head_dim];
            if lane < 0 {
                assert!(found.iter().all(|value| value.is_nan()), "padding is left alone");
                continue;
            }
            for (found, wanted) in found.iter().zip(inputs.rotated(shape, token, head)) {
                let away = (found.to_f64() - wanted).abs();
                assert!(away <= wanted.abs() / 256.0 + 2e-6, "{shape:?} {token} {head}: {found}, {wanted}");
            }
        }
    }
}

/// Keys within half a step of the format; at position 0 without norm, and values always, bit for bit.
fn check_rows(shape: &Shape, inputs: &Inputs, cache: &HostCache) {
    for (token, (position, lane, row)) in TOKENS.into_iter().enumerate() {
        let Ok(lane) = usize::try_from(lane) else { continue };
        let row = usize::try_from(row).unwrap();
        for kv_head in 0..shape.num_kv_heads {
            let value = inputs.head(shape, token, shape.num_heads + shape.num_kv_heads + kv_head);
            let stored = cache.value(lane, kv_head, row);
            assert!(same(&stored, &Row::store(shape.format, &value)), "{shape:?}: value of {token}");
            let key = cache.key(lane, kv_head, row);
            if position == 0 && !shape.has_norm {
                let plain = inputs.head(shape, token, shape.num_heads + kv_head);
                assert!(same(&key, &Row::store(shape.format, &plain)), "{shape:?}: key of {token}");
            }
            let wanted = inputs.rotated(shape, token, shape.num_heads + kv_head);
            let largest = wanted.iter().fold(0.0_f64, |largest, wanted| largest.max(wanted.abs()));
            for (found, wanted) in key.read(shape.format).into_iter().zip(wanted) {
                let half_step = match shape.format {
                    KvFormat::Bf16 => wanted.abs() / 256.0,
                    KvFormat::Fp8 => wanted.abs() / 16.0 + largest / 448.0 / 1024.0,
                    KvFormat::Int8 => largest / 254.0,
                };
                let away = (found - wanted).abs();
                assert!(away <= half_step + 1e-5, "{shape:?} {token} {kv_head}: {found}, {wanted}");
            }
        }
    }
}

fn same(a: &Row, b: &Row) -> bool {
    a.bytes == b.bytes && (a.scale.to_bits() == b.scale.to_bits() || a.scale.is_nan() && b.scale.is_nan())
}

#[test]
fn every_format_head_size_and_option_matches_the_formulas() {
    let Some(emulator) = Emulator::of(&["rope_kv.cu"]) else { return };
    for (idx, format) in KvFormat::ALL.into_iter().cycle().take(21).enumerate() {
        let head_dim = [16, 32, 64, 80, 96, 128, 256][idx % 7];
        let (num_heads, num_kv_heads) = [(4, 1), (3, 3), (7, 1), (8, 2), (0, 3)][idx % 5];
        let num_pairs = if idx % 3 == 1 { head_dim / 2 - 5 } else { head_dim / 2 };
        let pairing = if idx % 2 == 0 { Pairing::Half } else { Pairing::Interleaved };
        let (has_bias, has_norm) = (idx % 4 == 1, idx % 7 > 3);
        let shape =
            Shape { format, num_heads, num_kv_heads, head_dim, num_pairs, pairing, has_bias, has_norm };
        let inputs = Inputs::of(&shape);
        let (q, cache) = run(&emulator, &shape, &inputs);
        check_queries(&shape, &inputs, &q);
        check_rows(&shape, &inputs, &cache);
        // Nothing else is written: six tokens, one of them padding.
        let written = (0..2 * num_kv_heads * MAX_POSITIONS).filter(|&row| {
            let width = head_dim * format.element_bytes();
            cache.values[row * width..(row + 1) * width].iter().any(|&byte| byte != 0xff)
        });
        assert_eq!(written.count(), 5 * num_kv_heads, "{shape:?}");
    }
}

#[test]
fn zeros_subnormals_ties_and_extremes_are_stored_by_the_formats_rules() {
    let Some(emulator) = Emulator::of(&["rope_kv.cu"]) else { return };
    for format in KvFormat::ALL {
        let shape = Shape {
            format,
            num_heads: 1,
            num_kv_heads: 1,
            head_dim: 64,
            num_pairs: 32,
            pairing: Pairing::Half,
            has_bias: false,
            has_norm: false,
        };
        let mut inputs = Inputs::of(&shape);
        let tokens: [&dyn Fn(usize) -> f32; 6] = [
            &|_| 0.0,
            &|i| if i % 2 == 0 { f32::from_bits(3) } else { -0.0 },
            // Every code of FP8 and INT8, and halves between.
            &|i| if i == 0 { 448.0 } else { i as f32 * 0.5 },
            &|_| 1.0,
            &|i| if i == 0 { 127.0 } else { i as f32 + 0.5 - 32.0 },
            &|i| if i == 7 { -3e38 } else { i as f32 * 1e36 },
        ];
        for (token, value) in tokens.iter().enumerate() {
            for column in 0..64 {
                inputs.qkv[token * (shape.width() + 4) + 128 + column] = value(column);
            }
        }
        let (_, cache) = run(&emulator, &shape, &inputs);
        for (token, (_, lane, row)) in TOKENS.into_iter().enumerate().filter(|(_, token)| token.1 >= 0) {
            let stored = cache.value(usize::try_from(lane).unwrap(), 0, usize::try_from(row).unwrap());
            let wanted = Row::store(format, &inputs.head(&shape, token, 2));
            assert!(same(&stored, &wanted), "{format:?} {token}: {stored:?}, {wanted:?}");
        }
    }
}

#[test]
fn what_the_kernel_cannot_do_is_refused_with_the_reason() {
    let at = DeviceAddress(256);
    let cache = HostCache::new(KvFormat::Bf16, 1, 1, 8, 64);
    let good = RopeKv {
        q: at,
        k: at,
        v: at,
        q_stride: 128,
        kv_stride: 64,
        bias: None,
        norm: None,
        rope: RopeTable { cos: at, sin: at, num_pairs: 32, pairing: Pairing::Half },
        positions: at,
        lanes: at,
        rows: at,
        q_out: at,
        cache: DeviceCache::of(&cache).launched(),
        num_tokens: 1,
        num_heads: 2,
    };
    let error = |rope_kv: RopeKv| rope_kv.launch().unwrap_err().to_string();
    assert!(good.launch().is_ok());
    assert_eq!(error(RopeKv { num_tokens: 0, ..good }), "tokens: 0, expected at least 1");
    assert_eq!(error(RopeKv { q_stride: 127, ..good }), "columns of queries: 128, expected at most 127");
    let mut wide = good;
    wide.rope.num_pairs = 33;
    assert_eq!(error(wide), "rotated pairs: 33, expected at most 32");
    let mut scaled = good;
    scaled.cache.format = KvFormat::Int8;
    assert!(error(scaled).starts_with("key scales"));
    let mut odd = good;
    odd.cache.head_dim = 272;
    assert_eq!(error(odd), "head dimension: 272, expected at most 256");
}
