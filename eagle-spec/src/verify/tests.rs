//! The walk against brute force, against the target's distribution, and against plain sampling.

use std::collections::BTreeMap;
use std::convert::Infallible;

use proptest::prelude::*;
use takt_engine::{
    TokenId,
    sampler::{Sampler, SamplingParams},
};

use super::walk;
use crate::tree::DraftTree;

/// A random tree over few tokens.
fn trees() -> impl Strategy<Value = DraftTree> {
    prop::collection::vec((any::<prop::sample::Index>(), 0_u32..4), 0..16).prop_map(|nodes| {
        let mut tree = DraftTree::root(0);
        for (parent, token) in nodes {
            let parent = parent.index(tree.len());
            // Siblings differ, as every drafter's do.
            if tree.children(parent).all(|child| tree.tokens[child] != token) {
                tree.push(parent, token, 0.0);
            }
        }
        tree
    })
}

proptest! {
    /// The oracle: of all paths, the longest whose every token is the target's choice after the one before.
    #[test]
    fn the_longest_path_of_the_targets_choices_is_accepted(tree in trees(), choices in prop::collection::vec(0_u32..4, 17)) {
        let (mut path, mut asked) = (vec![99], Vec::new());
        let choose = |node: usize| {
            asked.push(node);
            Ok::<_, Infallible>(Some(choices[node]))
        };
        let next = walk(&tree, choose, &mut path).unwrap();
        let is_chosen = |path: &[usize]| path.windows(2).all(|pair| tree.tokens[pair[1]] == choices[pair[0]]);
        let longest = (0..tree.len()).map(|node| tree.path(node)).filter(|path| is_chosen(path)).max_by_key(Vec::len).unwrap();
        prop_assert_eq!(&path, &longest);
        prop_assert_eq!(next, Some(choices[*longest.last().unwrap()]));
        prop_assert_eq!(asked, path, "once for each node of the path");
    }

    #[test]
    fn the_walk_ends_where_the_answer_ends(tree in trees(), end in 0_usize..16) {
        let mut path = Vec::new();
        let end = end.min(tree.len() - 1);
        let way = tree.path(end);
        let choose = |node: usize| {
            let place = way.iter().position(|&other| other == node).unwrap();
            Ok::<_, Infallible>(way.get(place + 1).map(|&child| tree.tokens[child]))
        };
        prop_assert_eq!(walk(&tree, choose, &mut path).unwrap(), None);
        prop_assert_eq!(path, tree.path(end));
    }

    /// Token for token, not only in distribution: whatever is proposed, and in whatever rounds.
    #[test]
    fn a_seeds_output_is_the_plain_one(
        shapes in prop::collection::vec(trees(), 1..6), seed in any::<u64>(), temperature in 0.0_f32..2.0,
        top_k in prop::option::of(1_usize..4), top_p in 0.3_f32..1.0,
    ) {
        const LEN: usize = 24;
        let params = SamplingParams { temperature, top_k, top_p, min_p: 0.0, seed };
        let mut sampler = Sampler::new(&params).unwrap();
        let mut plain: Vec<TokenId> = Vec::new();
        while plain.len() < LEN {
            plain.push(sampler.sample(&logits(&plain)).unwrap());
        }
        let mut sampler = Sampler::new(&params).unwrap();
        let (mut text, mut path): (Vec<TokenId>, _) = (Vec::new(), Vec::new());
        for tree in shapes.iter().cycle() {
            if text.len() >= LEN {
                break;
            }
            let choose = |node: usize| sampler.sample(&logits(&said(&text, tree, node))).map(Some);
            let next = walk(tree, choose, &mut path).unwrap();
            text.extend(path[1..].iter().map(|&node| tree.tokens[node]));
            text.extend(next);
        }
        prop_assert_eq!(&text[..LEN], plain);
    }
}

#[test]
fn an_error_of_the_target_comes_through() {
    let mut path = Vec::new();
    assert_eq!(walk(&DraftTree::root(1), |_| Err("broken"), &mut path), Err("broken"));
    assert_eq!(path, [0]);
}

/// `text` and the path of `tree` below it down to `node`.
fn said(text: &[TokenId], tree: &DraftTree, node: usize) -> Vec<TokenId> {
    let below = tree.path(node);
    text.iter().copied().chain(below[1..].iter().map(|&node| tree.tokens[node])).collect()
}

/// Distribution after a path of tokens, over four of them; the last is impossible after the first.
fn target(path: &[TokenId]) -> [f32; 4] {
    let weights: [f32; 4] = match path.last() {
        None | Some(0) => [1.0, 5.0, 3.0, 0.0],
        Some(1) => [2.0, 2.0, 2.0, 4.0],
        Some(2) => [0.0, 0.0, 1.0, 9.0],
        _ => [10.0, 1.0, 1.0, 1.0],
    };
    let sum: f32 = weights.iter().sum();
    weights.map(|weight| weight / sum)
}

fn logits(path: &[TokenId]) -> [f32; 4] {
    target(path).map(f32::ln)
}

fn tree(nodes: &[(usize, TokenId)]) -> DraftTree {
    let mut tree = DraftTree::root(0);
    for &(parent, token) in nodes {
        tree.push(parent, token, 0.0);
    }
    tree
}

const NUM_SAMPLES: u32 = 40_000;

/// Pearson's chi-square of samples of the first three tokens, by rounds of `sample(text)`, against the target's distribution, and its 99.99th
/// percentile.
fn chi_square(mut sample: impl FnMut(&mut Vec<TokenId>)) -> (f64, f64) {
    let mut counts: BTreeMap<[TokenId; 3], u32> = BTreeMap::new();
    for _ in 0..NUM_SAMPLES {
        let mut text = Vec::new();
        while text.len() < 3 {
            sample(&mut text);
        }
        *counts.entry([text[0], text[1], text[2]]).or_default() += 1;
    }
    let (mut chi_square, mut freedom) = (0.0, -1);
    for number in 0..64_u32 {
        let path = [number / 16, number / 4 % 4, number % 4];
        let prob: f64 = (0..3).map(|i| f64::from(target(&path[..i])[path[i] as usize])).product();
        let count = f64::from(counts.get(&path).copied().unwrap_or(0));
        if prob == 0.0 {
            assert_eq!(count, 0.0, "{path:?} is impossible");
            continue;
        }
        let expected = prob * f64::from(NUM_SAMPLES);
        chi_square += (count - expected).powi(2) / expected;
        freedom += 1;
    }
    let freedom = f64::from(freedom);
    // Wilson and Hilferty: the cube root is close to normal; 3.72 of its deviations leave 1 in 10,000.
    let limit = freedom * (1.0 - 2.0 / (9.0 * freedom) + 3.72 * (2.0 / (9.0 * freedom)).sqrt()).powi(3);
    (chi_square, limit)
}

fn sampler(seed: u64) -> Sampler {
    Sampler::new(&SamplingParams { temperature: 1.0, seed, ..SamplingParams::default() }).unwrap()
}

#[test]
fn whatever_is_proposed_the_output_has_the_targets_distribution() {
    let trees = [
        vec![],
        vec![(0, 1)],
        vec![(0, 1), (0, 2), (0, 0), (0, 3)],
        vec![(0, 3), (0, 1), (1, 2), (2, 0), (2, 3), (4, 3)],
        vec![(0, 2), (0, 1), (1, 3), (1, 2), (2, 3), (2, 1), (3, 0), (5, 0)],
    ];
    for (number, nodes) in trees.iter().enumerate() {
        let tree = tree(nodes);
        let (mut sampler, mut path) = (sampler(number as u64), Vec::new());
        let (found, limit) = chi_square(|text| {
            let choose = |node: usize| sampler.sample(&logits(&said(text, &tree, node))).map(Some);
            let next = walk(&tree, choose, &mut path).unwrap();
            text.extend(path[1..].iter().map(|&node| tree.tokens[node]));
            text.extend(next);
        });
        assert!(found < limit, "tree {number}: {found:.1}, limit {limit:.1}");
    }
}

/// The control: the same with a choice that is the first child's token one time in ten, without asking the target.
#[test]
fn the_test_above_notices_a_verification_that_is_a_little_too_kind() {
    let tree = tree(&[(0, 1), (1, 2)]);
    let (mut sampler, mut path, mut number) = (sampler(1), Vec::new(), 0);
    let (found, limit) = chi_square(|text| {
        let choose = |node: usize| {
            let chosen = sampler.sample(&logits(&said(text, &tree, node)));
            number += 1;
            // Only where the first child is possible at all: that impossible tokens never come is asserted anyway.
            let kind = tree.children(node).next().filter(|_| text.is_empty() && number % 10 == 0);
            chosen.map(|chosen| Some(kind.map_or(chosen, |child| tree.tokens[child])))
        };
        let next = walk(&tree, choose, &mut path).unwrap();
        text.extend(path[1..].iter().map(|&node| tree.tokens[node]));
        text.extend(next);
    });
    assert!(found > 2.0 * limit, "{found:.1}, limit {limit:.1}");
}
