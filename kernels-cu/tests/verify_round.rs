//! Verify rounds through all kernels between the projections: rows stored, a tree attended to, its path moved together. Speculation must
//! leave what plain decoding leaves: the same results, and the same cache, bit for bit.

#![allow(clippy::unwrap_used, reason = "tests")]

mod cache;
mod emulator;

use cache::{DeviceCache, HostCache, noise};
use emulator::{Buffer, Emulator};
use half::bf16;
use takt_kernels_cu::launch::{
    KvFormat,
    attention::{Attention, AttentionStep, Merging, Segment},
    kv_compact::{Compaction, KvPlanes, MOVE_HEADER},
    rope_kv::{Pairing, RopeKv, RopeTable},
};

const NUM_HEADS: usize = 4;
const NUM_KV_HEADS: usize = 2;
const HEAD_DIM: usize = 64;
const WIDTH: usize = (NUM_HEADS + 2 * NUM_KV_HEADS) * HEAD_DIM;
const CAPACITY: usize = 160;
/// A prompt that ends inside a step of a split's last rows.
const PROMPT: usize = 121;
const PARENTS: [usize; 12] = [0, 0, 0, 1, 1, 2, 4, 5, 6, 6, 8, 9];
/// The accepted path: past the end of a split.
const PATH: [usize; 6] = [0, 1, 4, 6, 9, 11];

/// One layer of a model, with one lane.
struct Layer<'a> {
    emulator: &'a Emulator,
    cache: DeviceCache,
    cos: Buffer<f32>,
    sin: Buffer<f32>,
}

/// A token: where it stands, where its row is stored, and what its projections are made of.
#[derive(Debug, Clone, Copy)]
struct Token {
    position: usize,
    row: usize,
    seed: u64,
}

impl<'a> Layer<'a> {
    fn new(emulator: &'a Emulator, format: KvFormat) -> Self {
        let pairs = HEAD_DIM / 2;
        let angles = || {
            (0..CAPACITY * pairs)
                .map(move |i| (i / pairs) as f32 * 10_000_f32.powf(-((i % pairs) as f32) / pairs as f32))
        };
        Self {
            emulator,
            cache: DeviceCache::of(&HostCache::new(format, 1, NUM_KV_HEADS, CAPACITY, HEAD_DIM)),
            cos: Buffer::from_slice(&angles().map(f32::cos).collect::<Vec<_>>()),
            sin: Buffer::from_slice(&angles().map(f32::sin).collect::<Vec<_>>()),
        }
    }

    /// Stores the tokens' rows and attends; `lists` of a tree's tokens.
    fn run(&self, tokens: &[Token], lists: Option<&[Vec<i32>]>, num_blocks: Option<usize>) -> Vec<bf16> {
        let as_i32 = |value: usize| i32::try_from(value).unwrap();
        let qkv: Vec<f32> = tokens.iter().flat_map(|token| noise(token.seed, WIDTH)).collect();
        let qkv = Buffer::from_slice(&qkv);
        let column = |heads: usize| qkv.address().offset(heads * HEAD_DIM * size_of::<f32>()).unwrap();
        let positions: Vec<i32> = tokens.iter().map(|token| as_i32(token.position)).collect();
        let positions = Buffer::from_slice(&positions);
        let rows = Buffer::from_slice(&tokens.iter().map(|token| as_i32(token.row)).collect::<Vec<_>>());
        let lanes = Buffer::filled(tokens.len(), 0);
        let q = Buffer::filled(tokens.len() * NUM_HEADS * HEAD_DIM, bf16::NAN);
        let out = Buffer::filled(tokens.len() * NUM_HEADS * HEAD_DIM, bf16::NAN);
        let rope_kv = RopeKv {
            q: column(0),
            k: column(NUM_HEADS),
            v: column(NUM_HEADS + NUM_KV_HEADS),
            q_stride: WIDTH,
            kv_stride: WIDTH,
            bias: None,
            norm: None,
            rope: RopeTable {
                cos: self.cos.address(),
                sin: self.sin.address(),
                num_pairs: HEAD_DIM / 2,
                pairing: Pairing::Half,
            },
            positions: positions.address(),
            lanes: lanes.address(),
            rows: rows.address(),
            q_out: q.address(),
            cache: self.cache.launched(),
            num_tokens: tokens.len(),
            num_heads: NUM_HEADS,
        };
        self.emulator.launch(&rope_kv.launch().unwrap()).unwrap();

        let max_depth = lists.map_or(1, |lists| lists.iter().map(Vec::len).max().unwrap());
        let mut flat = vec![-1; tokens.len() * max_depth];
        for (flat, list) in flat.chunks_mut(max_depth).zip(lists.unwrap_or_default()) {
            flat[..list.len()].copy_from_slice(list);
        }
        let (flat, committed) =
            (Buffer::from_slice(&flat), Buffer::from_slice(&[as_i32(tokens[0].position)]));
        let segment = Segment {
            lane: 0,
            first_token: 0,
            num_tokens: as_i32(tokens.len()),
            is_tree: i32::from(lists.is_some()),
        };
        let segments = Buffer::from_slice(&[segment]);
        let attention = Attention {
            q: q.address(),
            out: out.address(),
            cache: self.cache.launched(),
            step: AttentionStep {
                segments: segments.address(),
                positions: positions.address(),
                lanes: lanes.address(),
                committed_lens: committed.address(),
                num_tokens: tokens.len(),
                num_segments: 1,
                max_segment_len: tokens.len(),
                max_positions: CAPACITY,
            },
            tree_rows: Some((flat.address(), max_depth)),
            num_heads: NUM_HEADS,
            window: None,
            scale: 0.125,
        };
        let (out_len, state_len) = attention.step.partial_lens(NUM_HEADS, HEAD_DIM).unwrap();
        let (partial_out, partial_state) =
            (Buffer::filled(out_len, f32::NAN), Buffer::filled(state_len, f32::NAN));
        let merging = num_blocks.map_or(Merging::InOrder, |num_blocks| Merging::Beside {
            partial_out: partial_out.address(),
            partial_state: partial_state.address(),
            num_blocks,
        });
        for launch in attention.launches(merging).unwrap() {
            self.emulator.launch(&launch).unwrap();
        }
        out.to_vec()
    }

    fn prefill(&self) {
        let prompt: Vec<_> =
            (0..PROMPT).map(|position| Token { position, row: position, seed: position as u64 }).collect();
        self.run(&prompt, None, None);
    }

    /// Moves the path's rows to where plain decoding has them.
    fn keep(&self, path: &[usize]) {
        let launched = self.cache.launched();
        let addresses = [launched.keys, launched.values, launched.key_scales, launched.value_scales];
        let addresses = Buffer::from_slice(&addresses.map(|address| address.0));
        let rows = path.iter().map(|node| PROMPT + node);
        let moves: Vec<i32> = [0, path.len(), PROMPT]
            .into_iter()
            .chain(rows)
            .map(|word| i32::try_from(word).unwrap())
            .collect();
        assert_eq!(moves.len(), MOVE_HEADER + path.len());
        let moves = Buffer::from_slice(&moves);
        let compaction = Compaction {
            planes: KvPlanes {
                addresses: addresses.address(),
                num_layers: 1,
                num_kv_heads: NUM_KV_HEADS,
                capacity: CAPACITY,
                row_bytes: launched.row_bytes(),
            },
            moves: moves.address(),
            num_moves: 1,
            max_path: path.len(),
        };
        self.emulator.launch(&compaction.launch().unwrap()).unwrap();
    }
}

/// Nodes from the root to `node`.
fn path_to(node: usize) -> Vec<usize> {
    let mut path = if node == 0 { Vec::new() } else { path_to(PARENTS[node]) };
    path.push(node);
    path
}

fn bits(values: &[bf16]) -> Vec<u16> {
    values.iter().map(|value| value.to_bits()).collect()
}

#[test]
fn speculation_leaves_the_results_and_the_cache_of_plain_decoding() {
    let sources = ["attention_decode.cu", "attention_prefill.cu", "kv_compact.cu", "rope_kv.cu"];
    let Some(emulator) = Emulator::of(&sources) else { return };
    for (format, num_blocks) in [(KvFormat::Bf16, None), (KvFormat::Fp8, Some(1)), (KvFormat::Int8, None)] {
        let (fast, plain) = (Layer::new(&emulator, format), Layer::new(&emulator, format));
        fast.prefill();
        plain.prefill();

        let lists: Vec<Vec<i32>> = (0..PARENTS.len())
            .map(|node| path_to(node).iter().map(|node| i32::try_from(PROMPT + node).unwrap()).collect())
            .collect();
        let token = |node: usize| Token {
            position: PROMPT + lists[node].len() - 1,
            row: PROMPT + node,
            seed: 1000 + node as u64,
        };
        let nodes: Vec<_> = (0..PARENTS.len()).map(token).collect();
        let verified = fast.run(&nodes, Some(&lists), num_blocks);
        fast.keep(&PATH);

        let width = NUM_HEADS * HEAD_DIM;
        for (depth, &node) in PATH.iter().enumerate() {
            let decoded = plain.run(&[Token { row: PROMPT + depth, ..token(node) }], None, Some(1));
            let of_node = &verified[node * width..(node + 1) * width];
            assert_eq!(bits(&decoded), bits(of_node), "{format:?}: node {node}");
        }
        let (fast_cache, plain_cache) = (fast.cache.read(), plain.cache.read());
        for (row, kv_head) in (0..PROMPT + PATH.len()).flat_map(|row| [(row, 0), (row, 1)]) {
            let (found, wanted) = (fast_cache.key(0, kv_head, row), plain_cache.key(0, kv_head, row));
            assert_eq!(found.bytes, wanted.bytes, "{format:?}: key {row}");
            assert_eq!(found.scale.to_bits(), wanted.scale.to_bits(), "{format:?}: key {row}");
            let (found, wanted) = (fast_cache.value(0, kv_head, row), plain_cache.value(0, kv_head, row));
            assert_eq!(found.bytes, wanted.bytes, "{format:?}: value {row}");
            assert_eq!(found.scale.to_bits(), wanted.scale.to_bits(), "{format:?}: value {row}");
        }
        // The round after.
        let next = Token { position: PROMPT + PATH.len(), row: PROMPT + PATH.len(), seed: 5000 };
        let (after, wanted) = (fast.run(&[next], None, Some(1)), plain.run(&[next], None, None));
        assert_eq!(bits(&after), bits(&wanted), "{format:?}");
    }
}
