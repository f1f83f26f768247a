//! Acceptance of trees against the host's sampler and a plain walk, token for token.

#![allow(clippy::unwrap_used, reason = "tests")]

mod emulator;

use std::sync::OnceLock;

use emulator::{Buffer, Emulator};
use takt_engine::sampler::{Sampler, SamplingParams};
use takt_kernels_cu::launch::{
    DeviceAddress,
    accept::{Accept, Acceptance, Outcome, RESULT_HEADER, SamplerState, Tree},
    kv_compact::MOVE_HEADER,
    logits::{Logits, LogitsOutput, LogitsScratch},
};

const VOCAB: usize = 100;
const MAX_PATH: usize = 9;

fn emulator() -> Option<&'static Emulator> {
    static EMULATOR: OnceLock<Option<Emulator>> = OnceLock::new();
    EMULATOR.get_or_init(|| Emulator::of(&["accept.cu", "logits.cu"])).as_ref()
}

/// Numbers that look random, the same in every run.
#[derive(Debug)]
struct Numbers(u64);

impl Numbers {
    fn below(&mut self, limit: usize) -> usize {
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        usize::try_from(self.0 >> 33).unwrap() % limit
    }
}

/// A tree of one lane with the target's logits of its nodes.
#[derive(Debug, Clone)]
struct LaneTree {
    lane: usize,
    tokens: Vec<i32>,
    parents: Vec<i32>,
    logits: Vec<Vec<f32>>,
}

impl LaneTree {
    /// Nodes propose tokens that are likely after their parents; siblings differ.
    fn random(lane: usize, max_nodes: usize, numbers: &mut Numbers) -> Self {
        let mut tree = Self { lane, tokens: vec![1], parents: vec![0], logits: vec![row(numbers)] };
        for _ in 0..numbers.below(max_nodes) {
            let parent = numbers.below(tree.tokens.len());
            let mut likely: Vec<usize> = (0..VOCAB).collect();
            likely.sort_by(|&a, &b| tree.logits[parent][b].total_cmp(&tree.logits[parent][a]));
            let token = i32::try_from(likely[numbers.below(3)]).unwrap();
            let parent = i32::try_from(parent).unwrap();
            let is_there = |node: usize| tree.parents[node] == parent && tree.tokens[node] == token;
            if !(1..tree.tokens.len()).any(is_there) {
                tree.tokens.push(token);
                tree.parents.push(parent);
                tree.logits.push(row(numbers));
            }
        }
        tree
    }

    /// The path and the token after it, as eagle-spec walks.
    fn walk(&self, mut choose: impl FnMut(&[f32]) -> i32) -> (Vec<i32>, i32) {
        let (mut node, mut path) = (0, vec![0]);
        loop {
            let token = choose(&self.logits[node]);
            let matches = |child: &usize| {
                usize::try_from(self.parents[*child]).unwrap() == node && self.tokens[*child] == token
            };
            match (1..self.tokens.len()).find(matches).filter(|_| path.len() < MAX_PATH) {
                Some(child) => node = child,
                None => return (path, token),
            }
            path.push(i32::try_from(node).unwrap());
        }
    }
}

/// Few values, so that there are ties; one token stands out.
fn row(numbers: &mut Numbers) -> Vec<f32> {
    let mut row: Vec<f32> = (0..VOCAB).map(|_| numbers.below(24) as f32 * 0.25 - 3.0).collect();
    row[numbers.below(VOCAB)] += 2.5;
    row
}

/// What a round left behind.
#[derive(Debug)]
struct Round {
    results: Vec<i32>,
    moves: Vec<i32>,
}

impl Round {
    fn of(&self, tree: usize) -> Acceptance<'_> {
        let width = RESULT_HEADER + MAX_PATH;
        Acceptance::read(&self.results[tree * width..(tree + 1) * width]).unwrap()
    }

    fn moved(&self, tree: usize) -> &[i32] {
        &self.moves[tree * (MOVE_HEADER + MAX_PATH)..][..MOVE_HEADER + MAX_PATH]
    }
}

/// One verify round of all trees; the first is padding's. Rows of the cache are 100 · lane and what follows.
fn run(trees: &[LaneTree], k: usize, samplers: &Buffer<SamplerState>, committed_lens: &Buffer<i32>) -> Round {
    let mut table = vec![Tree { lane: -1, first_token: 0, num_nodes: 1, first_row: 0 }];
    let (mut tokens, mut parents, mut rows) = (vec![-1; 2], vec![-1; 2], vec![-1; 2]);
    let mut logits = Vec::new();
    for tree in trees {
        let as_i32 = |value: usize| i32::try_from(value).unwrap();
        table.push(Tree {
            lane: as_i32(tree.lane),
            first_token: as_i32(tokens.len()),
            num_nodes: as_i32(tree.tokens.len()),
            first_row: as_i32(logits.len() / VOCAB),
        });
        tokens.extend(&tree.tokens);
        parents.extend(&tree.parents);
        rows.extend((0..tree.tokens.len()).map(|node| as_i32(100 * tree.lane + node)));
        logits.extend(tree.logits.concat());
    }
    let num_rows = logits.len() / VOCAB;
    let (logits, table) = (Buffer::from_slice(&logits), Buffer::from_slice(&table));
    let (tokens, parents, rows) =
        (Buffer::from_slice(&tokens), Buffer::from_slice(&parents), Buffer::from_slice(&rows));
    let (top, values) = (Buffer::filled(num_rows * k, -7), Buffer::filled(num_rows * k, f32::NAN));
    let (sums, status) = (Buffer::filled(num_rows, 0.0_f32), Buffer::filled(num_rows, 9_u32));
    let (keys, slice_sums) = (Buffer::filled(num_rows * k, 0_u64), Buffer::filled(num_rows * 2, 0.0_f32));
    let output = LogitsOutput {
        tokens: top.address(),
        values: values.address(),
        log_sum_exp: sums.address(),
        status: status.address(),
    };
    let of_rows = Logits {
        logits: logits.address(),
        masks: None,
        scratch: LogitsScratch { keys: keys.address(), sums: slice_sums.address() },
        output,
        num_rows,
        vocab_size: VOCAB,
        k,
    };
    let num_trees = trees.len() + 1;
    let results = Buffer::filled(num_trees * (RESULT_HEADER + MAX_PATH), -9);
    let moves = Buffer::filled(num_trees * (MOVE_HEADER + MAX_PATH), -9);
    let accept = Accept {
        trees: table.address(),
        tokens: tokens.address(),
        parents: parents.address(),
        rows: rows.address(),
        logits: output,
        k,
        samplers: samplers.address(),
        committed_lens: committed_lens.address(),
        results: results.address(),
        moves: moves.address(),
        num_trees,
        max_path: MAX_PATH,
    };
    for launch in of_rows.launches().unwrap().iter().chain([&accept.launch().unwrap()]) {
        emulator().unwrap().launch(launch).unwrap();
    }
    Round { results: results.to_vec(), moves: moves.to_vec() }
}

fn state(params: &SamplingParams) -> SamplerState {
    SamplerState {
        temperature: params.temperature,
        top_k: params.top_k.map_or(0, |top_k| i32::try_from(top_k).unwrap()),
        top_p: params.top_p,
        min_p: params.min_p,
        random: params.seed,
    }
}

#[test]
fn rounds_of_several_lanes_say_what_the_hosts_samplers_say() {
    if emulator().is_none() {
        return;
    }
    let base = SamplingParams::default();
    let params = [
        base,
        SamplingParams { temperature: 0.7, top_k: Some(8), seed: 1, ..base },
        SamplingParams { temperature: 1.3, top_k: Some(5), top_p: 0.8, seed: u64::MAX, ..base },
        SamplingParams { temperature: 0.3, top_k: Some(8), min_p: 0.2, seed: 3, ..base },
        SamplingParams { temperature: 2.0, top_k: Some(7), top_p: 0.9, min_p: 0.3, seed: 4 },
        SamplingParams { temperature: 1e-3, top_k: Some(1), seed: 5, ..base },
        SamplingParams { temperature: 60.0, top_k: Some(8), top_p: 1e-6, seed: 6, ..base },
    ];
    let mut host: Vec<_> = params.iter().map(|params| Sampler::new(params).unwrap()).collect();
    let samplers = Buffer::from_slice(&params.each_ref().map(state));
    let committed_lens = Buffer::from_slice(&[10; 7]);
    let mut lens = [10; 7];
    let (mut numbers, mut accepted) = (Numbers(1), 0);
    for round in 0..12 {
        let trees: Vec<_> = (0..params.len())
            .map(|lane| LaneTree::random(lane, if round % 4 == 0 { 70 } else { 20 }, &mut numbers))
            .collect();
        let found = run(&trees, 8, &samplers, &committed_lens);
        assert_eq!(found.moved(0)[0], -1, "padding moves nothing");
        for (idx, tree) in trees.iter().enumerate() {
            let sampler = &mut host[tree.lane];
            let (path, token) = tree.walk(|row| i32::try_from(sampler.sample(row).unwrap()).unwrap());
            let kept = i32::try_from(path.len()).unwrap();
            let acceptance = found.of(idx + 1);
            let committed_len = lens[tree.lane] + kept;
            let wanted =
                Acceptance { outcome: Outcome::Accepted, path: &path, token: Some(token), committed_len };
            assert_eq!(acceptance, wanted, "round {round}, {:?}", params[idx]);
            let moved = found.moved(idx + 1);
            let lane = i32::try_from(tree.lane).unwrap();
            assert_eq!(moved[..MOVE_HEADER], [lane, kept, lens[tree.lane]]);
            let rows: Vec<i32> = path.iter().map(|node| 100 * lane + node).collect();
            assert_eq!(moved[MOVE_HEADER..MOVE_HEADER + path.len()], rows);
            lens[tree.lane] = committed_len;
            accepted += path.len() - 1;
        }
    }
    assert_eq!(committed_lens.to_vec(), lens);
    assert!(accepted > 40, "the walk goes down: {accepted} nodes");
}

#[test]
fn the_longest_list_gives_the_hosts_draws() {
    if emulator().is_none() {
        return;
    }
    let params = SamplingParams { temperature: 1.5, top_k: Some(64), top_p: 0.97, min_p: 0.01, seed: 77 };
    let mut host = Sampler::new(&params).unwrap();
    let (samplers, lens) = (Buffer::from_slice(&[state(&params)]), Buffer::from_slice(&[0]));
    let mut numbers = Numbers(5);
    for _ in 0..10 {
        let tree = LaneTree::random(0, 20, &mut numbers);
        let round = run(std::slice::from_ref(&tree), 64, &samplers, &lens);
        let (path, token) = tree.walk(|row| i32::try_from(host.sample(row).unwrap()).unwrap());
        assert_eq!((round.of(1).path, round.of(1).token), (&path[..], Some(token)));
    }
}

/// Sums that reach a threshold exactly, where every comparison counts.
#[test]
fn ties_of_weights_and_thresholds_fall_as_on_the_host() {
    if emulator().is_none() {
        return;
    }
    let base = SamplingParams { temperature: 1.0, ..SamplingParams::default() };
    for params in [
        SamplingParams { top_k: Some(4), top_p: 0.5, seed: 1, ..base },
        SamplingParams { top_k: Some(8), top_p: 0.25, seed: 2, ..base },
        SamplingParams { top_k: Some(8), min_p: 1.0, seed: 3, ..base },
    ] {
        let mut host = Sampler::new(&params).unwrap();
        let (samplers, lens) = (Buffer::from_slice(&[state(&params)]), Buffer::from_slice(&[0]));
        let mut logits = vec![-1.0; VOCAB];
        logits[20..40].fill(2.0);
        let tree = LaneTree { lane: 0, tokens: vec![1], parents: vec![0], logits: vec![logits] };
        for _ in 0..12 {
            let round = run(std::slice::from_ref(&tree), 8, &samplers, &lens);
            let token = i32::try_from(host.sample(&tree.logits[0]).unwrap()).unwrap();
            assert_eq!(round.of(1).token, Some(token), "{params:?}");
        }
    }
}

#[test]
fn a_path_ends_at_its_longest() {
    if emulator().is_none() {
        return;
    }
    let mut numbers = Numbers(9);
    let mut tree = LaneTree { lane: 0, tokens: vec![1], parents: vec![0], logits: vec![row(&mut numbers)] };
    for node in 0..MAX_PATH + 2 {
        let likeliest =
            (0..VOCAB).rev().max_by(|&a, &b| tree.logits[node][a].total_cmp(&tree.logits[node][b]));
        tree.tokens.push(i32::try_from(likeliest.unwrap()).unwrap());
        tree.parents.push(i32::try_from(node).unwrap());
        tree.logits.push(row(&mut numbers));
    }
    let samplers = Buffer::from_slice(&[state(&SamplingParams::default())]);
    let round = run(std::slice::from_ref(&tree), 1, &samplers, &Buffer::from_slice(&[3]));
    let acceptance = round.of(1);
    assert_eq!(acceptance.path, (0..9).collect::<Vec<i32>>());
    assert_eq!((acceptance.token, acceptance.committed_len), (Some(tree.tokens[MAX_PATH]), 12));
}

#[test]
fn what_cannot_be_chosen_is_told_and_commits_nothing() {
    if emulator().is_none() {
        return;
    }
    let base = SamplingParams::default();
    let samplers = [
        base,
        base,
        SamplingParams { temperature: 1.0, ..base },
        SamplingParams { temperature: 1.0, top_k: Some(9), ..base },
    ];
    let samplers = Buffer::from_slice(&samplers.each_ref().map(state));
    let lens = Buffer::from_slice(&[5; 4]);
    let mut trees: Vec<_> = (0..4)
        .map(|lane| LaneTree {
            lane,
            tokens: vec![1, 2],
            parents: vec![0, 0],
            logits: vec![vec![0.0; VOCAB], vec![1.0; VOCAB]],
        })
        .collect();
    // The child of lane 0 is accepted, and broken.
    trees[0].logits[0][2] = 1.0;
    trees[0].logits[1][50] = f32::NAN;
    trees[1].logits[0].fill(f32::NEG_INFINITY);
    let round = run(&trees, 8, &samplers, &lens);
    let wanted: [(Outcome, &[i32]); 4] = [
        (Outcome::BrokenLogits, &[0, 1]),
        (Outcome::NothingFinite, &[0]),
        (Outcome::NoShortlist, &[]),
        (Outcome::NoShortlist, &[]),
    ];
    for (idx, (outcome, path)) in wanted.into_iter().enumerate() {
        let wanted = Acceptance { outcome, path, token: None, committed_len: 5 };
        assert_eq!(round.of(idx + 1), wanted);
        assert_eq!(round.moved(idx + 1)[1], 0, "nothing is moved");
    }
    assert_eq!(lens.to_vec(), [5; 4]);
}

#[test]
fn what_is_no_result_is_not_read_and_odd_launches_are_refused() {
    assert_eq!(Acceptance::read(&[0, 1, 2]), None);
    assert_eq!(Acceptance::read(&[9, 0, 0, 0]), None);
    assert_eq!(Acceptance::read(&[0, 2, 7, 8, 0]), None);
    assert_eq!(Acceptance::read(&[0, -1, 7, 8, 0]), None);
    let at = DeviceAddress(256);
    let good = Accept {
        trees: at,
        tokens: at,
        parents: at,
        rows: at,
        logits: LogitsOutput { tokens: at, values: at, log_sum_exp: at, status: at },
        k: 1,
        samplers: at,
        committed_lens: at,
        results: at,
        moves: at,
        num_trees: 1,
        max_path: 8,
    };
    assert!(good.launch().is_ok());
    let error = |accept: Accept| accept.launch().unwrap_err().to_string();
    assert_eq!(error(Accept { num_trees: 0, ..good }), "trees: 0, expected at least 1");
    assert_eq!(error(Accept { k: 65, ..good }), "tokens of a list: 65, expected at most 64");
    assert_eq!(size_of::<SamplerState>(), 24);
    assert_eq!(size_of::<Tree>(), 16);
}
