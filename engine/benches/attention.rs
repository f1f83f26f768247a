//! Attention of the CPU backend over stored keys and values: every cache format, for a decode step and for blocks of a prompt.
//!
//! `cargo bench -p takt-engine --bench attention` prints two things. First a table of shares: attention over all heads and a plain
//! read of as many bytes alternate, and the ratio of their medians is reported, so that what else runs on the machine hits both.
//! Then criterion's own figures, kept between runs for comparison.
#![expect(clippy::unwrap_used, reason = "a benchmark has nobody to report an error to")]

mod alternate;

use std::{hint::black_box, thread, time::Duration};

use alternate::alternate;
use criterion::{BenchmarkId, Criterion, Throughput, criterion_group};
use takt_engine::{
    backend::cpu::{StoredHead, ThreadPool, kernels::ReadProbe},
    kv::KvKind,
};

/// Of Qwen3-0.6B: eight key/value heads a layer, two queries each.
const HEAD_DIM: usize = 128;
const HEADS_PER_TOKEN: usize = 2;
/// Heads of eight layers: more than a last-level cache holds of a long context.
const NUM_HEADS: usize = 64;
const CONTEXT_LENS: [usize; 3] = [128, 1024, 4096];
/// A decode step; a verify round; a full block of a prompt.
const TOKEN_COUNTS: [usize; 3] = [1, 8, 16];

fn waves(num_rows: usize, phase: f32) -> Vec<f32> {
    (0..num_rows * HEAD_DIM).map(|i| (i as f32 * 0.37 + phase).sin()).collect()
}

fn stored_heads(kind: KvKind, context_len: usize) -> Vec<StoredHead> {
    let rows = |phase: f32| waves(context_len, phase);
    (0..NUM_HEADS).map(|head| StoredHead::new(kind, HEAD_DIM, &rows(head as f32), &rows(0.5))).collect()
}

/// Every head's attention, a task each.
fn attend(pool: &ThreadPool, heads: &[StoredHead], queries: &[f32]) {
    pool.run(heads.len(), &|head_idx| {
        let mut out = [0.0; 16 * HEADS_PER_TOKEN * HEAD_DIM];
        heads[head_idx].attend(HEADS_PER_TOKEN, queries, &mut out[..queries.len()]);
        black_box(out);
    });
}

fn print_shares(pool: &ThreadPool) {
    println!("{} threads; {NUM_HEADS} heads of {HEAD_DIM}; medians of alternating runs", pool.num_threads());
    println!(
        "{:>7} {:>5} {:>6} {:>9} {:>11} {:>7} {:>7}",
        "context", "kv", "tokens", "us", "Gproducts/s", "GB/s", "share"
    );
    for context_len in CONTEXT_LENS {
        for kind in KvKind::ALL {
            let heads = stored_heads(kind, context_len);
            let num_bytes: usize = heads.iter().map(StoredHead::num_bytes).sum();
            let probe = ReadProbe::new(num_bytes);
            for num_tokens in TOKEN_COUNTS {
                let queries = waves(num_tokens * HEADS_PER_TOKEN, 2.0);
                let (seconds, read_seconds) = alternate(
                    || attend(pool, &heads, &queries),
                    || {
                        black_box(probe.read(pool));
                    },
                );
                let products = 2 * queries.len() * context_len * NUM_HEADS;
                println!(
                    "{context_len:>7} {:>5} {num_tokens:>6} {:>9.1} {:>11.1} {:>7.1} {:>6.0}%",
                    kind.name(),
                    seconds * 1e6,
                    products as f64 / seconds * 1e-9,
                    num_bytes as f64 / seconds * 1e-9,
                    100.0 * read_seconds / seconds,
                );
            }
        }
    }
}

fn contexts(criterion: &mut Criterion) {
    let pool = ThreadPool::new(thread::available_parallelism().map_or(1, usize::from)).unwrap();
    print_shares(&pool);
    for context_len in CONTEXT_LENS {
        let mut group = criterion.benchmark_group(format!("attention/{context_len}"));
        for kind in KvKind::ALL {
            let heads = stored_heads(kind, context_len);
            group.throughput(Throughput::Bytes(heads.iter().map(|head| head.num_bytes() as u64).sum()));
            for num_tokens in TOKEN_COUNTS {
                let queries = waves(num_tokens * HEADS_PER_TOKEN, 2.0);
                group.bench_function(BenchmarkId::new(kind.name(), num_tokens), |bencher| {
                    bencher.iter(|| attend(&pool, &heads, &queries));
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
    targets = contexts
}

fn main() {
    benches();
    Criterion::default().configure_from_args().final_summary();
}
