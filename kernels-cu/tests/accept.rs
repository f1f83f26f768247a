//! Acceptance of trees against the host's sampler and a plain walk, token for token.

#![allow(clippy::unwrap_used, reason = "tests")]

mod emulator;

use std::sync::OnceLock;

use emulator::{Buffer, Emulator};
use takt_engine::sampler::{Sampler, SamplingParams};
use takt_kernels_cu::launch::{
    DeviceAddress,
    accept::{Accept, Acceptance, Outcome, RESULT_HEADER, SamplerState, Tree},
    logits::{Logits, LogitsOutput, LogitsScratch},
};

const VOCAB: usize = 100;
const MAX_PATH: usize = 9;
/// Logits that `logits_slices` looks at together.
const SLICE_LEN: usize = 4096;

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

/// A tree of one sampler with the target's logits of its nodes.
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
}

impl Round {
    fn of(&self, tree: usize) -> Acceptance<'_> {
        let width = RESULT_HEADER + MAX_PATH;
        Acceptance::read(&self.results[tree * width..(tree + 1) * width]).unwrap()
    }
}

/// One verify round of all trees, by lists of `k`, each tree by the sampler that it names; the first is padding's.
fn run(trees: &[LaneTree], k: usize, samplers: &[SamplerState], is_wide: bool) -> Round {
    let vocab_size = trees[0].logits[0].len();
    let mut table = vec![Tree { sampler: -1, first_token: 0, num_nodes: 1, first_row: 0 }];
    let (mut tokens, mut parents) = (vec![-1; 2], vec![-1; 2]);
    let mut logits = Vec::new();
    for tree in trees {
        let as_i32 = |value: usize| i32::try_from(value).unwrap();
        table.push(Tree {
            sampler: as_i32(tree.lane),
            first_token: as_i32(tokens.len()),
            num_nodes: as_i32(tree.tokens.len()),
            first_row: as_i32(logits.len() / vocab_size),
        });
        tokens.extend(&tree.tokens);
        parents.extend(&tree.parents);
        logits.extend(tree.logits.concat());
    }
    let num_rows = logits.len() / vocab_size;
    let (logits, table) = (Buffer::from_slice(&logits), Buffer::from_slice(&table));
    let (tokens, parents) = (Buffer::from_slice(&tokens), Buffer::from_slice(&parents));
    let samplers = Buffer::from_slice(samplers);
    let (top, values) = (Buffer::filled(num_rows * k, -7), Buffer::filled(num_rows * k, f32::NAN));
    let (sums, status) = (Buffer::filled(num_rows, 0.0_f32), Buffer::filled(num_rows, 9_u32));
    let num_slices = num_rows * vocab_size.div_ceil(SLICE_LEN);
    let (keys, slice_sums) = (Buffer::filled(num_slices * k, 0_u64), Buffer::filled(num_slices * 2, 0.0_f32));
    let lists = LogitsOutput {
        tokens: top.address(),
        values: values.address(),
        log_sum_exp: sums.address(),
        status: status.address(),
    };
    let of_rows = Logits {
        logits: logits.address(),
        masks: None,
        scratch: LogitsScratch { keys: keys.address(), sums: slice_sums.address() },
        output: lists,
        num_rows,
        vocab_size,
        k,
    };
    let num_trees = trees.len() + 1;
    let results = Buffer::filled(num_trees * (RESULT_HEADER + MAX_PATH), -9);
    let accept = Accept {
        trees: table.address(),
        samplers: samplers.address(),
        tokens: tokens.address(),
        parents: parents.address(),
        logits: logits.address(),
        vocab_size,
        lists,
        k,
        is_wide,
        results: results.address(),
        num_trees,
        max_path: MAX_PATH,
    };
    for launch in of_rows.launches().unwrap().iter().chain([&accept.launch().unwrap()]) {
        emulator().unwrap().launch(launch).unwrap();
    }
    let results = results.to_vec();
    assert_eq!(results[..RESULT_HEADER + MAX_PATH], [-9; RESULT_HEADER + MAX_PATH], "padding has no result");
    Round { results }
}

/// As the kernel reads it.
fn state(sampler: &Sampler) -> SamplerState {
    let state = sampler.state();
    SamplerState {
        scale: state.scale(),
        top_k: state.params().top_k.map_or(0, |top_k| i32::try_from(top_k).unwrap()),
        top_p: state.top_p(),
        min_weight: state.min_weight(),
        random: state.random(),
    }
}

fn token_of(sampler: &mut Sampler, row: &[f32]) -> i32 {
    i32::try_from(sampler.sample(row).unwrap()).unwrap()
}

/// A tree of nothing but a root.
fn root(lane: usize, logits: Vec<f32>) -> LaneTree {
    LaneTree { lane, tokens: vec![1], parents: vec![0], logits: vec![logits] }
}

/// The tokens that the device chooses by `logits`, for each of `params` one, are the host's.
fn agree(logits: &[f32], params: &[SamplingParams], k: usize, is_wide: bool) {
    let mut host: Vec<_> = params.iter().map(|params| Sampler::new(params).unwrap()).collect();
    let samplers: Vec<_> = host.iter().map(state).collect();
    let trees: Vec<_> = (0..params.len()).map(|lane| root(lane, logits.to_vec())).collect();
    let round = run(&trees, k, &samplers, is_wide);
    for (lane, sampler) in host.iter_mut().enumerate() {
        let found = round.of(lane + 1).token;
        assert_eq!(found, Some(token_of(sampler, logits)), "{:?}, {} logits", params[lane], logits.len());
    }
}

#[test]
fn rounds_of_several_samplers_say_what_the_hosts_say() {
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
        SamplingParams { temperature: 0.4, seed: 7, ..base },
        SamplingParams { temperature: 0.8, top_p: 0.6, seed: 8, ..base },
        SamplingParams { temperature: 0.5, top_k: Some(30), top_p: 0.9, min_p: 0.05, seed: 9 },
    ];
    let mut host: Vec<_> = params.iter().map(|params| Sampler::new(params).unwrap()).collect();
    let (mut numbers, mut accepted) = (Numbers(1), 0);
    for round in 0..12 {
        let trees: Vec<_> = (0..params.len())
            .map(|lane| LaneTree::random(lane, if round % 4 == 0 { 70 } else { 20 }, &mut numbers))
            .collect();
        let samplers: Vec<_> = host.iter().map(state).collect();
        let found = run(&trees, 8, &samplers, round % 2 == 0);
        for (idx, tree) in trees.iter().enumerate() {
            let sampler = &mut host[tree.lane];
            let before = sampler.state();
            let (path, token) = tree.walk(|row| token_of(sampler, row));
            let wanted = Acceptance { outcome: Outcome::Accepted, path: &path, token: Some(token) };
            assert_eq!(found.of(idx + 1), wanted, "round {round}, {:?}", params[idx]);
            assert_eq!(sampler.state(), before.after(path.len()), "a number a node");
            accepted += path.len() - 1;
        }
    }
    assert!(accepted > 60, "the walk goes down: {accepted} nodes");
}

#[test]
fn the_longest_list_gives_the_hosts_draws() {
    if emulator().is_none() {
        return;
    }
    let params = SamplingParams { temperature: 1.5, top_k: Some(64), top_p: 0.97, min_p: 0.01, seed: 77 };
    let mut host = Sampler::new(&params).unwrap();
    let mut numbers = Numbers(5);
    for _ in 0..10 {
        let tree = LaneTree::random(0, 20, &mut numbers);
        let round = run(std::slice::from_ref(&tree), 64, &[state(&host)], false);
        let (path, token) = tree.walk(|row| token_of(&mut host, row));
        assert_eq!((round.of(1).path, round.of(1).token), (&path[..], Some(token)));
    }
}

/// Sums that reach a threshold exactly, where every comparison counts: by lists, and by whole rows.
#[test]
fn ties_of_weights_and_thresholds_fall_as_on_the_host() {
    if emulator().is_none() {
        return;
    }
    let base = SamplingParams { temperature: 1.0, ..SamplingParams::default() };
    let mut logits = vec![-1.0; VOCAB];
    logits[20..40].fill(2.0);
    for filters in [
        SamplingParams { top_k: Some(4), top_p: 0.5, ..base },
        SamplingParams { top_k: Some(8), top_p: 0.25, ..base },
        SamplingParams { top_k: Some(8), min_p: 1.0, ..base },
        SamplingParams { top_k: Some(13), ..base },
        SamplingParams { top_k: Some(25), top_p: 0.5, ..base },
        SamplingParams { top_k: Some(16), top_p: 0.999, ..base },
        SamplingParams { top_p: 0.25, ..base },
        SamplingParams { min_p: 1.0, ..base },
    ] {
        let params: Vec<_> = (0..12).map(|seed| SamplingParams { seed, ..filters }).collect();
        agree(&logits, &params, 8, true);
        agree(&logits, &params, 8, false);
    }
}

/// Rows of odd lengths, with ties, both zeros, excluded tokens and tokens that weigh nothing.
#[test]
fn whole_rows_give_the_hosts_draws() {
    if emulator().is_none() {
        return;
    }
    let base = SamplingParams { temperature: 0.8, ..SamplingParams::default() };
    let mut numbers = Numbers(11);
    for (idx, vocab_size) in [1, 2, 31, 33, 64, 100, 1023, 1025, 2500, 4095].into_iter().enumerate() {
        let kinds: [fn(&mut Numbers, usize) -> f32; 4] = [
            |numbers, _| numbers.below(1 << 20) as f32 / 65_536.0 - 8.0,
            |numbers, _| [0.0, -0.0, 0.25, -0.25][numbers.below(4)],
            |numbers, token| if token % 7 == 3 { f32::NEG_INFINITY } else { numbers.below(64) as f32 - 50.0 },
            |numbers, _| (numbers.below(40_000) as f32 - 20_000.0) * 1e-9,
        ];
        for (kind, logit) in kinds.into_iter().enumerate() {
            let mut logits: Vec<f32> = (0..vocab_size).map(|token| logit(&mut numbers, token)).collect();
            logits[vocab_size / 2] = 0.0;
            let seed = u64::try_from(idx * 4 + kind).unwrap();
            let params = [
                SamplingParams { seed, ..base },
                SamplingParams { seed, top_p: 0.9, ..base },
                SamplingParams { seed, top_p: 1e-6, ..base },
                SamplingParams { seed, top_p: 0.3, temperature: 5.0, ..base },
                SamplingParams { seed, min_p: 0.4, temperature: 2.0, ..base },
                SamplingParams { seed, top_k: Some(1), ..base },
                SamplingParams { seed, top_k: Some(vocab_size), ..base },
                SamplingParams { seed, top_k: Some(vocab_size.div_ceil(2)), temperature: 9.0, ..base },
                SamplingParams {
                    seed,
                    top_k: Some(vocab_size.div_ceil(3)),
                    top_p: 0.7,
                    min_p: 0.1,
                    temperature: 3.0,
                },
                SamplingParams { seed, temperature: 1e-30, ..base },
                SamplingParams { seed, top_p: 0.5, temperature: f32::MAX, ..base },
                SamplingParams::default(),
            ];
            // A block of one warp is quicker to emulate.
            agree(&logits, &params, if kind == 0 { 1 } else { 8.min(vocab_size) }, (idx + kind) % 4 == 0);
        }
    }
}

/// As many tokens as real models have, most of them far below the likeliest ones, many as likely as each other.
#[test]
fn rows_of_a_real_vocabulary_give_the_hosts_draws() {
    if emulator().is_none() {
        return;
    }
    let base = SamplingParams { temperature: 0.7, ..SamplingParams::default() };
    let mut numbers = Numbers(12);
    for vocab_size in [128_256, 151_936] {
        // A sum of twelve: a bell curve, in steps as BF16 leaves them.
        let mut bell = || (0..12).map(|_| numbers.below(1000)).sum::<usize>() as f32 / 500.0 - 12.0;
        let logits: Vec<f32> = (0..vocab_size).map(|_| (bell() * 16.0).round() / 16.0).collect();
        let params = [
            SamplingParams { seed: 3, ..base },
            SamplingParams { seed: 4, temperature: 4.0, ..base },
            SamplingParams { seed: 5, top_p: 0.9, ..base },
            SamplingParams { seed: 6, top_p: 0.999, temperature: 2.0, ..base },
            SamplingParams { seed: 7, min_p: 0.05, ..base },
            SamplingParams { seed: 8, top_k: Some(1000), top_p: 0.95, ..base },
        ];
        agree(&logits, &params, 1, true);
    }
}

#[test]
fn what_only_a_few_tokens_of_a_row_decide_is_chosen() {
    if emulator().is_none() {
        return;
    }
    let base = SamplingParams { temperature: 1.0, ..SamplingParams::default() };
    let params = [
        base,
        SamplingParams { top_p: 0.5, ..base },
        SamplingParams { top_k: Some(70), ..base },
        SamplingParams::default(),
    ];
    let mut logits = vec![f32::NEG_INFINITY; 333];
    logits[331] = -3e38;
    agree(&logits, &params, 1, true);
    logits[7] = 3e38;
    agree(&logits, &params, 4, true);
    // 70 times 0 after a −0: the greedy list does not show that one.
    let mut logits = vec![0.0; 90];
    logits[..20].fill(-1.0);
    logits[5] = -0.0;
    agree(&logits, &params, 64, true);
    agree(&logits, &params, 64, false);
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
    let greedy = Sampler::new(&SamplingParams::default()).unwrap();
    let round = run(std::slice::from_ref(&tree), 1, &[state(&greedy)], false);
    let acceptance = round.of(1);
    assert_eq!(acceptance.path, (0..9).collect::<Vec<i32>>());
    assert_eq!(acceptance.token, Some(tree.tokens[MAX_PATH]));
}

#[test]
fn what_cannot_be_chosen_by_is_told() {
    if emulator().is_none() {
        return;
    }
    let base = SamplingParams::default();
    for params in [
        base,
        SamplingParams { temperature: 1e-3, ..base },
        SamplingParams { temperature: 1e-3, top_k: Some(8), ..base },
    ] {
        let samplers = [state(&Sampler::new(&params).unwrap())];
        let mut trees: Vec<_> = (0..3)
            .map(|_| LaneTree {
                lane: 0,
                tokens: vec![1, 2],
                parents: vec![0, 0],
                logits: vec![vec![0.0; VOCAB], vec![1.0; VOCAB]],
            })
            .collect();
        // The child of the first is accepted, and broken.
        trees[0].logits[0][2] = 1.0;
        trees[0].logits[1][50] = f32::NAN;
        trees[1].logits[0].fill(f32::NEG_INFINITY);
        trees[2].logits[0][99] = f32::INFINITY;
        let round = run(&trees, 8, &samplers, true);
        let wanted: [(Outcome, &[i32]); 3] =
            [(Outcome::BrokenLogits, &[0, 1]), (Outcome::NothingFinite, &[0]), (Outcome::BrokenLogits, &[0])];
        for (idx, (outcome, path)) in wanted.into_iter().enumerate() {
            assert_eq!(round.of(idx + 1), Acceptance { outcome, path, token: None }, "{params:?}");
        }
    }
}

#[test]
fn what_is_no_result_is_not_read_and_odd_launches_are_refused() {
    assert_eq!(Acceptance::read(&[0, 1]), None);
    assert_eq!(Acceptance::read(&[9, 0, 0]), None);
    assert_eq!(Acceptance::read(&[0, 2, 7, 0]), None);
    assert_eq!(Acceptance::read(&[0, -1, 7, 0]), None);
    let at = DeviceAddress(256);
    let good = Accept {
        trees: at,
        samplers: at,
        tokens: at,
        parents: at,
        logits: at,
        vocab_size: 100,
        lists: LogitsOutput { tokens: at, values: at, log_sum_exp: at, status: at },
        k: 1,
        is_wide: false,
        results: at,
        num_trees: 1,
        max_path: 8,
    };
    assert!(good.launch().is_ok());
    let error = |accept: Accept| accept.launch().unwrap_err().to_string();
    assert_eq!(error(Accept { num_trees: 0, ..good }), "trees: 0, expected at least 1");
    assert_eq!(error(Accept { k: 65, ..good }), "tokens of a list: 65, expected at most 64");
    let error_text = "logits of a row: 1048576, expected at most 1048575";
    assert_eq!(error(Accept { vocab_size: 1 << 20, ..good }), error_text);
    assert_eq!(size_of::<SamplerState>(), 32);
    assert_eq!(size_of::<Tree>(), 16);
}
