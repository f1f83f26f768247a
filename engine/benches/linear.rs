//! Matrix products of the CPU backend: every format and arithmetic, for 1 to 64 tokens.
//!
//! `cargo bench -p takt-engine --bench linear` prints two things. First a table of shares: a product and a plain read of as
//! many bytes alternate, and the ratio of their medians is reported, so that what else runs on the machine hits both. Then
//! criterion's own figures, kept between runs for comparison.
#![expect(clippy::unwrap_used, reason = "a benchmark has nobody to report an error to")]

mod alternate;

use std::{hint::black_box, thread, time::Duration};

use alternate::alternate;
use criterion::{BenchmarkId, Criterion, Throughput, criterion_group};
use takt_engine::{
    backend::cpu::{
        Activations, Arithmetic, PackedMatrix, ThreadPool,
        kernels::{Isa, ReadProbe},
        linear,
    },
    quant::{INT4_GROUP, MatrixData, MatrixView, WeightKind},
};

/// One matrix of a small model, which stays in the cache, and one that does not fit a second-level cache.
const SHAPES: [(usize, usize); 2] = [(3072, 1024), (16_384, 4096)];
const TOKEN_COUNTS: [usize; 4] = [1, 4, 16, 64];
const CASES: [(WeightKind, Arithmetic); 6] = [
    (WeightKind::Nvfp4, Arithmetic::Int8),
    (WeightKind::Nvfp4, Arithmetic::F32),
    (WeightKind::Int4, Arithmetic::Int8),
    (WeightKind::Int4, Arithmetic::F32),
    (WeightKind::Fp8, Arithmetic::F32),
    (WeightKind::Bf16, Arithmetic::F32),
];

fn random_matrix(kind: WeightKind, (num_rows, num_cols): (usize, usize)) -> PackedMatrix {
    let mut state = 0x9e37_79b9_7f4a_7c15_u64;
    let mut bytes = |len: usize, mask: u8| -> Vec<u8> {
        let mut next = || {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            (state >> 56) as u8 & mask
        };
        (0..len).map(|_| next()).collect()
    };
    let num_codes = num_rows * num_cols;
    // Masks keep exponents away from NaN and infinity; BF16 weights are of ordinary size, since subnormals are slow.
    let (codes, scales) = match kind {
        WeightKind::Bf16 => {
            let value = |byte: u8| half::bf16::from_f32((f32::from(byte) - 127.5) * 0.001);
            (bytes(num_codes, 0xff).into_iter().flat_map(|byte| value(byte).to_le_bytes()).collect(), vec![])
        }
        WeightKind::Fp8 => (bytes(num_codes, 0xbf), bytes(num_rows * 4, 0x3f)),
        WeightKind::Nvfp4 => (bytes(num_codes / 2, 0xff), bytes(num_codes / 16, 0x3f)),
        WeightKind::Int4 => {
            (bytes(num_codes / 2, 0xff), bytes(num_rows * num_cols.div_ceil(INT4_GROUP) * 2, 0x3f))
        }
    };
    let (codes, scales) = (&codes[..], &scales[..]);
    let data = match kind {
        WeightKind::Bf16 => MatrixData::Bf16(codes),
        WeightKind::Fp8 => MatrixData::Fp8 { codes, scales },
        WeightKind::Nvfp4 => MatrixData::Nvfp4 { packed: codes, scales, scale_2: 0.01 },
        WeightKind::Int4 => MatrixData::Int4 { packed: codes, scales },
    };
    PackedMatrix::pack(&[MatrixView { num_rows, num_cols, data }]).unwrap()
}

fn random_activations(
    pool: &ThreadPool,
    arithmetic: Arithmetic,
    num_rows: usize,
    num_cols: usize,
) -> Activations {
    let mut x = Activations::new(arithmetic, num_rows, num_cols);
    x.fill(pool, num_rows, num_cols, |row_idx, row| {
        for (col_idx, value) in row.iter_mut().enumerate() {
            *value = ((row_idx * 31 + col_idx) as f32 * 0.7).sin();
        }
    });
    x
}

fn print_shares(pool: &ThreadPool) {
    println!("{} threads, {}; medians of alternating runs", pool.num_threads(), Isa::detect());
    println!(
        "{:>12} {:>5} {:>5} {:>3} {:>9} {:>9} {:>7} {:>7}",
        "N x K", "kind", "x", "M", "us", "us/token", "GB/s", "share"
    );
    for shape in SHAPES {
        for (kind, arithmetic) in CASES {
            let w = random_matrix(kind, shape);
            let probe = ReadProbe::new(w.num_bytes());
            for num_tokens in TOKEN_COUNTS {
                let x = random_activations(pool, arithmetic, num_tokens, shape.1);
                let mut out = vec![0.0; num_tokens * shape.0];
                let product = || linear(pool, &w, &x, black_box(&mut out));
                let (seconds, read_seconds) = alternate(product, || {
                    black_box(probe.read(pool));
                });
                println!(
                    "{:>12} {:>5} {:>5} {num_tokens:>3} {:>9.1} {:>9.1} {:>7.1} {:>6.0}%",
                    format!("{}x{}", shape.0, shape.1),
                    kind.name(),
                    arithmetic.name(),
                    seconds * 1e6,
                    seconds * 1e6 / num_tokens as f64,
                    w.num_bytes() as f64 / seconds * 1e-9,
                    100.0 * read_seconds / seconds,
                );
            }
        }
    }
}

fn products(criterion: &mut Criterion) {
    let pool = ThreadPool::new(thread::available_parallelism().map_or(1, usize::from)).unwrap();
    print_shares(&pool);
    for shape in SHAPES {
        let mut group = criterion.benchmark_group(format!("linear/{}x{}", shape.0, shape.1));
        for (kind, arithmetic) in CASES {
            let w = random_matrix(kind, shape);
            group.throughput(Throughput::Bytes(w.num_bytes() as u64));
            for num_tokens in TOKEN_COUNTS {
                let x = random_activations(&pool, arithmetic, num_tokens, shape.1);
                let mut out = vec![0.0; num_tokens * shape.0];
                let name = BenchmarkId::new(format!("{kind}-{}", arithmetic.name()), num_tokens);
                group.bench_function(name, |bencher| {
                    bencher.iter(|| linear(&pool, &w, &x, black_box(&mut out)))
                });
            }
        }
        group.finish();
    }
}

criterion_group! {
    name = benches;
    config = Criterion::default()
        .sample_size(20)
        .warm_up_time(Duration::from_millis(200))
        .measurement_time(Duration::from_secs(1));
    targets = products
}

fn main() {
    benches();
    Criterion::default().configure_from_args().final_summary();
}
