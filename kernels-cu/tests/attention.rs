//! Attention against plain softmax in F64; and that a token's bits depend on nothing but what it sees.

#![allow(clippy::unwrap_used, reason = "tests")]

mod cache;
mod emulator;

use std::sync::OnceLock;

use cache::{DeviceCache, HostCache, noise};
use emulator::{Buffer, Emulator};
use half::bf16;
use takt_kernels_cu::launch::{
    DeviceAddress, KvFormat,
    attention::{Attention, AttentionStep, HEAD_DIMS, Merging, Segment},
};

const SCALE: f32 = 0.11;

fn emulator() -> Option<&'static Emulator> {
    static EMULATOR: OnceLock<Option<Emulator>> = OnceLock::new();
    EMULATOR.get_or_init(|| Emulator::of(&["attention_decode.cu", "attention_prefill.cu"])).as_ref()
}

/// A step's tokens, and what they see.
#[derive(Debug, Clone, Default)]
struct Step {
    segments: Vec<Segment>,
    positions: Vec<i32>,
    lanes: Vec<i32>,
    committed_lens: Vec<i32>,
    max_depth: usize,
    /// By token; the list of a tree's tokens.
    tree_rows: Vec<Vec<i32>>,
}

impl Step {
    fn of_lanes(num_lanes: usize) -> Self {
        Self { committed_lens: vec![-1; num_lanes], max_depth: 1, ..Self::default() }
    }

    /// Tokens at positions `[start, start + count)`.
    fn push(&mut self, lane: i32, start: i32, count: i32) {
        self.segment(lane, count, 0);
        self.positions.extend(start..start + count);
        self.lanes.extend((0..count).map(|_| lane));
        self.tree_rows.extend((0..count).map(|_| Vec::new()));
    }

    /// Nodes of a tree in rows `committed_len`, ….
    fn push_tree(&mut self, lane: i32, committed_len: i32, parents: &[usize]) {
        self.segment(lane, i32::try_from(parents.len()).unwrap(), 1);
        self.committed_lens[usize::try_from(lane).unwrap()] = committed_len;
        for node in 0..parents.len() {
            let mut path: Vec<i32> = path_to(parents, node)
                .into_iter()
                .map(|node| committed_len + i32::try_from(node).unwrap())
                .collect();
            self.max_depth = self.max_depth.max(path.len());
            self.positions.push(committed_len + i32::try_from(path.len()).unwrap() - 1);
            self.lanes.push(lane);
            self.tree_rows.push(std::mem::take(&mut path));
        }
    }

    fn push_padding(&mut self) {
        self.segment(-1, 1, 0);
        self.positions.push(0);
        self.lanes.push(-1);
        self.tree_rows.push(Vec::new());
    }

    fn segment(&mut self, lane: i32, num_tokens: i32, is_tree: i32) {
        let first_token = i32::try_from(self.positions.len()).unwrap();
        self.segments.push(Segment { lane, first_token, num_tokens, is_tree });
    }

    /// Rows a token sees, in the order of their positions.
    fn rows_seen(&self, token: usize, window: Option<usize>) -> Vec<usize> {
        let position = usize::try_from(self.positions[token]).unwrap();
        let path = &self.tree_rows[token];
        let committed = position + 1 - path.len();
        let rows = (0..committed).chain(path.iter().map(|&row| usize::try_from(row).unwrap()));
        rows.skip((position + 1).saturating_sub(window.unwrap_or(usize::MAX))).collect()
    }
}

fn path_to(parents: &[usize], node: usize) -> Vec<usize> {
    let mut path = vec![node];
    while let Some(&last) = path.last().filter(|&&last| last > 0) {
        path.push(parents[last]);
    }
    path.reverse();
    path
}

/// Heads and what they see.
#[derive(Debug, Clone, Copy)]
struct Model {
    num_heads: usize,
    window: Option<usize>,
}

fn run(model: Model, cache: &HostCache, step: &Step, q: &[bf16], num_blocks: Option<usize>) -> Vec<bf16> {
    let device = DeviceCache::of(cache);
    let (q, out) = (Buffer::from_slice(q), Buffer::filled(q.len(), bf16::NAN));
    let (segments, positions) = (Buffer::from_slice(&step.segments), Buffer::from_slice(&step.positions));
    let (lanes, lens) = (Buffer::from_slice(&step.lanes), Buffer::from_slice(&step.committed_lens));
    let mut lists = vec![-1; step.positions.len() * step.max_depth];
    for (list, rows) in lists.chunks_mut(step.max_depth).zip(&step.tree_rows) {
        list[..rows.len()].copy_from_slice(rows);
    }
    let lists = Buffer::from_slice(&lists);
    let longest = step.segments.iter().map(|segment| segment.num_tokens).max().unwrap();
    let of_step = AttentionStep {
        segments: segments.address(),
        positions: positions.address(),
        lanes: lanes.address(),
        committed_lens: lens.address(),
        num_tokens: step.positions.len(),
        num_segments: step.segments.len(),
        max_segment_len: usize::try_from(longest).unwrap(),
        max_positions: usize::try_from(*step.positions.iter().max().unwrap()).unwrap() + 1,
    };
    let (out_len, state_len) = of_step.partial_lens(model.num_heads, cache.head_dim).unwrap();
    let (partial_out, partial_state) =
        (Buffer::filled(out_len, f32::NAN), Buffer::filled(state_len, f32::NAN));
    let attention = Attention {
        q: q.address(),
        out: out.address(),
        cache: device.launched(),
        step: of_step,
        tree_rows: Some((lists.address(), step.max_depth)),
        num_heads: model.num_heads,
        window: model.window,
        scale: SCALE,
    };
    let merging = num_blocks.map_or(Merging::InOrder, |num_blocks| Merging::Beside {
        partial_out: partial_out.address(),
        partial_state: partial_state.address(),
        num_blocks,
    });
    for launch in attention.launches(merging).unwrap() {
        emulator().unwrap().launch(&launch).unwrap();
    }
    out.to_vec()
}

/// Plain softmax over what the token sees, and how far a BF16 result may be from it.
fn expected(
    model: Model,
    cache: &HostCache,
    step: &Step,
    q: &[bf16],
    token: usize,
    head: usize,
) -> Vec<(f64, f64)> {
    let lane = usize::try_from(step.lanes[token]).unwrap();
    let kv_head = head / (model.num_heads / cache.num_kv_heads);
    let rows = step.rows_seen(token, model.window);
    let q = &q[(token * model.num_heads + head) * cache.head_dim..][..cache.head_dim];
    let score = |&row: &usize| {
        let key = cache.key(lane, kv_head, row).read(cache.format);
        key.iter().zip(q).map(|(key, q)| key * q.to_f64()).sum::<f64>() * f64::from(SCALE)
    };
    let scores: Vec<f64> = rows.iter().map(score).collect();
    let largest = scores.iter().copied().fold(f64::NEG_INFINITY, f64::max);
    let weights: Vec<f64> = scores.iter().map(|score| (score - largest).exp()).collect();
    let sum: f64 = weights.iter().sum();
    let mut out = vec![(0.0, 0.0); cache.head_dim];
    for (row, weight) in rows.iter().zip(weights) {
        let value = cache.value(lane, kv_head, *row).read(cache.format);
        for ((out, size), value) in out.iter_mut().zip(value) {
            *out += weight / sum * value;
            // Weights are rounded to BF16 before they are multiplied: by half of 2^-7.
            *size += weight / sum * value.abs() / 256.0;
        }
    }
    out.into_iter().map(|(out, size)| (out, size + out.abs() / 256.0 + 1e-5)).collect()
}

fn check(model: Model, cache: &HostCache, step: &Step, q: &[bf16], out: &[bf16]) {
    let head_dim = cache.head_dim;
    for token in 0..step.positions.len() {
        for head in 0..model.num_heads {
            let found = &out[(token * model.num_heads + head) * head_dim..][..head_dim];
            if step.lanes[token] < 0 {
                assert!(found.iter().all(|value| value.is_nan()), "padding is left alone");
                continue;
            }
            let wanted = expected(model, cache, step, q, token, head);
            for (column, (found, (wanted, bound))) in found.iter().zip(wanted).enumerate() {
                let away = (found.to_f64() - wanted).abs();
                assert!(
                    away <= bound,
                    "{:?} {head_dim} {model:?} token {token} head {head} column {column}: {found}, {wanted}",
                    cache.format
                );
            }
        }
    }
}

fn queries(seed: u64, count: usize) -> Vec<bf16> {
    noise(seed, count).into_iter().map(bf16::from_f32).collect()
}

fn same_bits(a: &[bf16], b: &[bf16]) -> bool {
    a.len() == b.len() && a.iter().zip(b).all(|(a, b)| a.to_bits() == b.to_bits())
}

/// Lanes with rows `[0, len)` each.
fn filled(format: KvFormat, num_kv_heads: usize, head_dim: usize, lens: &[usize]) -> HostCache {
    let capacity = lens.iter().max().unwrap() + 3;
    let mut cache = HostCache::new(format, lens.len(), num_kv_heads, capacity, head_dim);
    for (lane, &len) in lens.iter().enumerate() {
        for row in 0..len {
            cache.store_noise(lane, row, (lane * 1000 + row) as u64);
        }
    }
    cache
}

#[test]
fn every_format_and_head_size_matches_plain_softmax_in_both_ways_of_merging() {
    if emulator().is_none() {
        return;
    }
    for (idx, (format, head_dim)) in
        KvFormat::ALL.into_iter().flat_map(|format| HEAD_DIMS.map(|dim| (format, dim))).enumerate()
    {
        let (num_kv_heads, group) = [(2, 1), (1, 2), (1, 4), (1, 7), (1, 8)][idx % 5];
        let model = Model { num_heads: num_kv_heads * group, window: None };
        // One token, a split's ends, and a slice of a prompt.
        let cache = filled(format, num_kv_heads, head_dim, &[140, 1, 129]);
        let mut step = Step::of_lanes(3);
        step.push(1, 0, 1);
        step.push_padding();
        step.push(0, 126, 5);
        step.push(2, 128, 1);
        let q = queries(idx as u64, step.positions.len() * model.num_heads * head_dim);
        let in_order = run(model, &cache, &step, &q, None);
        check(model, &cache, &step, &q, &in_order);
        let beside = run(model, &cache, &step, &q, Some(1));
        assert!(same_bits(&in_order, &beside), "{format:?} {head_dim}");
    }
}

#[test]
fn contexts_of_every_odd_length_match() {
    if emulator().is_none() {
        return;
    }
    let lens = [1, 2, 15, 16, 17, 127, 128, 129, 255, 257, 300];
    let cache = filled(KvFormat::Int8, 1, 64, &lens);
    let mut step = Step::of_lanes(lens.len());
    for (lane, len) in lens.iter().enumerate() {
        step.push(i32::try_from(lane).unwrap(), i32::try_from(len - 1).unwrap(), 1);
    }
    let model = Model { num_heads: 4, window: None };
    let q = queries(1, lens.len() * 4 * 64);
    let out = run(model, &cache, &step, &q, Some(2));
    check(model, &cache, &step, &q, &out);
    // Whatever the number of blocks, and beside whatever others.
    for num_blocks in [None, Some(1), Some(7)] {
        assert!(same_bits(&out, &run(model, &cache, &step, &q, num_blocks)), "{num_blocks:?}");
    }
    for (lane, len) in lens.iter().enumerate() {
        let mut alone = Step::of_lanes(lens.len());
        alone.push(i32::try_from(lane).unwrap(), i32::try_from(len - 1).unwrap(), 1);
        let at = lane * 4 * 64..(lane + 1) * 4 * 64;
        assert!(
            same_bits(&out[at.clone()], &run(model, &cache, &alone, &q[at], Some(1))),
            "a context of {len}"
        );
    }
}

#[test]
fn a_prompt_has_the_same_bits_in_whatever_slices() {
    if emulator().is_none() {
        return;
    }
    let (head_dim, len) = (64, 150);
    let model = Model { num_heads: 3, window: None };
    let cache = filled(KvFormat::Fp8, 1, head_dim, &[len]);
    let q = queries(5, len * model.num_heads * head_dim);
    let mut whole = Step::of_lanes(1);
    whole.push(0, 0, i32::try_from(len).unwrap());
    let out = run(model, &cache, &whole, &q, None);
    check(model, &cache, &whole, &q, &out);
    let row = model.num_heads * head_dim;
    for (start, count) in [(0, 1), (1, 6), (7, 100), (107, 33), (140, 10)] {
        let mut slice = Step::of_lanes(1);
        slice.push(0, start, count);
        let at = usize::try_from(start).unwrap() * row..usize::try_from(start + count).unwrap() * row;
        for num_blocks in [None, Some(1)] {
            let found = run(model, &cache, &slice, &q[at.clone()], num_blocks);
            assert!(same_bits(&out[at.clone()], &found), "{start}, {count} tokens, {num_blocks:?}");
        }
    }
}

#[test]
fn a_window_hides_what_is_farther_back() {
    if emulator().is_none() {
        return;
    }
    for window in [1, 16, 40, 130] {
        let model = Model { num_heads: 4, window: Some(window) };
        let cache = filled(KvFormat::Bf16, 2, 64, &[290]);
        let mut step = Step::of_lanes(1);
        step.push(0, 270, 20);
        let q = queries(9, 20 * 4 * 64);
        let out = run(model, &cache, &step, &q, None);
        check(model, &cache, &step, &q, &out);
        assert!(same_bits(&out, &run(model, &cache, &step, &q, Some(1))), "{window}");
    }
}

/// Parents of a tree in which every node is below one of those before; chains now and then.
fn tree(num_nodes: usize, seed: usize) -> Vec<usize> {
    let parent = |node: usize| if node % 3 == 1 { node - 1 } else { (node * 7 + seed) % node };
    (0..num_nodes).map(|node| if node == 0 { 0 } else { parent(node) }).collect()
}

#[test]
fn a_tree_verified_at_once_has_the_bits_of_its_paths_decoded_token_by_token() {
    if emulator().is_none() {
        return;
    }
    for (format, head_dim, committed_len, window) in [
        (KvFormat::Bf16, 64, 0, None),
        (KvFormat::Fp8, 80, 5, None),
        (KvFormat::Int8, 128, 127, None),
        (KvFormat::Fp8, 64, 121, Some(20)),
        (KvFormat::Bf16, 256, 128, None),
        (KvFormat::Int8, 64, 250, None),
        (KvFormat::Fp8, 16, 30, None),
        (KvFormat::Bf16, 32, 17, None),
    ] {
        let model = Model { num_heads: 6, window };
        let parents = tree(13, committed_len);
        let cache = filled(format, 2, head_dim, &[committed_len + parents.len(), 3]);
        let mut step = Step::of_lanes(2);
        // Another lane's token in the same step.
        step.push(1, 2, 1);
        step.push_tree(0, i32::try_from(committed_len).unwrap(), &parents);
        let row = model.num_heads * head_dim;
        let q = queries(committed_len as u64, step.positions.len() * row);
        let out = run(model, &cache, &step, &q, None);
        check(model, &cache, &step, &q, &out);
        assert!(same_bits(&out, &run(model, &cache, &step, &q, Some(2))), "{format:?} {committed_len}");
        for leaf in (0..parents.len()).filter(|node| !parents[1..].contains(node)) {
            let path = path_to(&parents, leaf);
            let mut compacted = cache.clone();
            for (depth, node) in path.iter().enumerate() {
                compacted.copy_row(0, committed_len + node, committed_len + depth);
            }
            for (depth, node) in path.into_iter().enumerate() {
                let mut plain = Step::of_lanes(2);
                plain.push(0, i32::try_from(committed_len + depth).unwrap(), 1);
                let at = (node + 1) * row..(node + 2) * row;
                let found = run(model, &compacted, &plain, &q[at.clone()], Some(1));
                assert!(same_bits(&out[at], &found), "{format:?} {committed_len}: node {node}");
            }
        }
    }
}

#[test]
fn what_no_kernel_serves_is_refused_with_the_reason() {
    let at = DeviceAddress(256);
    let cache = HostCache::new(KvFormat::Int8, 1, 2, 8, 64);
    let step = AttentionStep {
        segments: at,
        positions: at,
        lanes: at,
        committed_lens: at,
        num_tokens: 2,
        num_segments: 1,
        max_segment_len: 2,
        max_positions: 8,
    };
    let good = Attention {
        q: at,
        out: at,
        cache: DeviceCache::of(&cache).launched(),
        step,
        tree_rows: None,
        num_heads: 4,
        window: None,
        scale: 1.0,
    };
    let error = |attention: Attention| attention.launches(Merging::InOrder).unwrap_err().to_string();
    assert!(good.launches(Merging::InOrder).is_ok());
    assert_eq!(error(Attention { num_heads: 3, ..good }), "heads: 3, expected a multiple of 2");
    assert_eq!(
        error(Attention { q: DeviceAddress(8), ..good }),
        "queries: address 0x8, expected a multiple of 16 bytes"
    );
    let mut odd = good;
    odd.cache.head_dim = 48;
    assert_eq!(error(odd), "head dimension: no kernel for 48; there is one for 16, 32, 64, 80, 96, 128, 256");
    let mut empty = good;
    empty.step.num_tokens = 0;
    assert_eq!(error(empty), "tokens: 0, expected at least 1");
    let mut long = good;
    long.step.max_positions = 9;
    assert_eq!(error(long), "positions: 9, expected at most 8");
}

#[test]
fn splits_run_beside_each_other_only_where_a_gpu_would_be_idle() {
    let at = DeviceAddress(256);
    let step = |max_segment_len, max_positions| AttentionStep {
        segments: at,
        positions: at,
        lanes: at,
        committed_lens: at,
        num_tokens: max_segment_len,
        num_segments: 1,
        max_segment_len,
        max_positions,
    };
    // A decode step of a long context on 20 multiprocessors: as many blocks as run at a time.
    assert_eq!(Merging::for_gpu(&step(1, 4096), 32, 8, 20), Some(5));
    assert_eq!(Merging::for_gpu(&step(1, 128), 32, 8, 20), None);
    // A verify round fills them without.
    assert_eq!(Merging::for_gpu(&step(60, 4096), 32, 8, 20), None);
    assert_eq!(Merging::for_gpu(&step(60, 4096), 32, 8, 132), Some(9));
    assert_eq!(Merging::for_gpu(&step(512, 4096), 32, 8, 132), None);
}
