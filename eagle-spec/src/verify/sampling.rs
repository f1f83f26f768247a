//! Sampling without loss: what comes out has the target's distribution, whatever was proposed.

use takt_engine::TokenId;

use super::Accepted;
use crate::tree::DraftTree;

/// Walks down `tree`. After each node, `distribution` writes the target's probabilities there, after temperature, top-k and top-p, and must sum
/// to 1; `uniform` draws from `[0, 1)`.
///
/// Proposals are the drafter's likeliest tokens, not samples, so each is accepted with the target's probability of it; a refused one is taken
/// out and the rest scaled up. If none is accepted, the rest is what the next token is drawn from. (Leviathan et al., arXiv 2211.17192,
/// with a drafter that is sure of its proposal; Miao et al., SpecInfer, arXiv 2305.09781, for several children.)
///
/// # Errors
/// Whatever `distribution` reports.
pub fn verify_sampled<E>(
    tree: &DraftTree,
    mut distribution: impl FnMut(usize, &mut Vec<f32>) -> Result<(), E>,
    mut uniform: impl FnMut() -> f64,
) -> Result<Accepted, E> {
    let (mut path, mut node, mut probs) = (vec![0], 0, Vec::new());
    loop {
        probs.clear();
        distribution(node, &mut probs)?;
        // The mass that is left when refused proposals are taken out.
        let mut left: f64 = probs.iter().map(|&prob| f64::from(prob)).sum();
        let accepted = tree.children(node).find(|&child| {
            let Some(prob) = probs.get_mut(tree.tokens[child] as usize) else { return false };
            let mass = f64::from(*prob);
            if uniform() * left < mass {
                return true;
            }
            left -= mass;
            *prob = 0.0;
            false
        });
        match accepted {
            Some(child) => {
                path.push(child);
                node = child;
            }
            None => return Ok(Accepted { path, next: draw(&probs, uniform()) }),
        }
    }
}

/// The token at `share` of the mass of `probs`.
fn draw(probs: &[f32], share: f64) -> TokenId {
    let sum: f64 = probs.iter().map(|&prob| f64::from(prob)).sum();
    let (mut rest, mut last) = (share * sum, 0);
    for (token, &prob) in probs.iter().enumerate().filter(|(_, prob)| **prob > 0.0) {
        last = token;
        rest -= f64::from(prob);
        if rest < 0.0 {
            break;
        }
    }
    TokenId::try_from(last).unwrap_or_default() // vocabularies have fewer than 2^32 tokens
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;
    use std::convert::Infallible;

    use super::*;

    /// Distribution after a path of tokens, over four of them; the last is impossible after the first.
    fn target(path: &[TokenId]) -> Vec<f32> {
        let weights: [f32; 4] = match path.last() {
            None | Some(0) => [1.0, 5.0, 3.0, 0.0],
            Some(1) => [2.0, 2.0, 2.0, 4.0],
            Some(2) => [0.0, 0.0, 1.0, 9.0],
            _ => [10.0, 1.0, 1.0, 1.0],
        };
        let sum: f32 = weights.iter().sum();
        weights.iter().map(|weight| weight / sum).collect()
    }

    fn tree(nodes: &[(usize, TokenId)]) -> DraftTree {
        let mut tree = DraftTree::root(0);
        for &(parent, token) in nodes {
            tree.tokens.push(token);
            tree.parents.push(parent);
            tree.depths.push(tree.depths[parent] + 1);
            tree.cumulative_log_probs.push(0.0);
        }
        tree
    }

    /// SplitMix64.
    fn uniform(state: &mut u64) -> f64 {
        *state = state.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = *state;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        ((z ^ (z >> 31)) >> 11) as f64 / (1_u64 << 53) as f64
    }

    /// The first three tokens after the root, by rounds with `tree` below every root.
    fn sampled(tree: &DraftTree, state: &mut u64) -> [TokenId; 3] {
        let mut text: Vec<TokenId> = Vec::new();
        while text.len() < 3 {
            let mut below = tree.clone();
            below.tokens[0] = text.last().copied().unwrap_or(0);
            let distribution = |node: usize, probs: &mut Vec<f32>| {
                let nodes = below.path(node);
                let new = nodes[1..].iter().map(|&node| below.tokens[node]);
                let path: Vec<TokenId> = text.iter().copied().chain(new).collect();
                probs.extend(target(&path));
                Ok::<_, Infallible>(())
            };
            let accepted = verify_sampled(&below, distribution, || uniform(state)).unwrap();
            text.extend(accepted.path[1..].iter().map(|&node| below.tokens[node]));
            text.push(accepted.next);
        }
        [text[0], text[1], text[2]]
    }

    /// Pearson's chi-square of 40,000 samples against the target, below the 99.99th percentile of its 59 degrees of freedom at most.
    #[test]
    fn whatever_is_proposed_the_output_has_the_targets_distribution() {
        let trees = [
            vec![],
            vec![(0, 1)],
            vec![(0, 1), (0, 2), (0, 0), (0, 3)],
            vec![(0, 3), (0, 1), (1, 2), (2, 0), (2, 3), (4, 3)],
            vec![(0, 2), (0, 1), (1, 3), (1, 2), (2, 3), (2, 1), (3, 0), (5, 0)],
        ];
        const NUM_SAMPLES: u32 = 40_000;
        for (number, nodes) in trees.iter().enumerate() {
            let tree = tree(nodes);
            let mut state = number as u64;
            let mut counts: BTreeMap<[TokenId; 3], u32> = BTreeMap::new();
            (0..NUM_SAMPLES).for_each(|_| *counts.entry(sampled(&tree, &mut state)).or_default() += 1);
            let (mut chi_square, mut freedom) = (0.0, -1);
            for a in 0..4 {
                for b in 0..4 {
                    for c in 0..4 {
                        let path = [a, b, c];
                        let prob: f64 =
                            (0..3).map(|i| f64::from(target(&path[..i])[path[i] as usize])).product();
                        let count = f64::from(counts.get(&path).copied().unwrap_or(0));
                        if prob == 0.0 {
                            assert_eq!(count, 0.0, "{path:?} is impossible");
                            continue;
                        }
                        let expected = prob * f64::from(NUM_SAMPLES);
                        chi_square += (count - expected).powi(2) / expected;
                        freedom += 1;
                    }
                }
            }
            let freedom = f64::from(freedom);
            // Wilson and Hilferty: the cube root is close to normal; 3.72 of its deviations leave 1 in 10,000.
            let limit =
                freedom * (1.0 - 2.0 / (9.0 * freedom) + 3.72 * (2.0 / (9.0 * freedom)).sqrt()).powi(3);
            assert!(chi_square < limit, "tree {number}: {chi_square:.1}, limit {limit:.1}");
        }
    }

    #[test]
    fn the_test_above_notices_a_verification_that_always_takes_the_first_child() {
        let tree = tree(&[(0, 1)]);
        let distribution = |_: usize, probs: &mut Vec<f32>| {
            probs.extend(target(&[]));
            Ok::<_, Infallible>(())
        };
        // Accepted with the target's probability, 5 in 9, not always.
        let mut state = 1;
        let num = (0..9000)
            .filter(|_| verify_sampled(&tree, distribution, || uniform(&mut state)).unwrap().path.len() == 2)
            .count();
        assert!((4800..5200).contains(&num), "{num}");
    }

    #[test]
    fn the_edges_of_the_unit_interval_stay_within_the_distribution() {
        assert_eq!(draw(&[0.0, 0.5, 0.5, 0.0], 0.0), 1);
        assert_eq!(draw(&[0.0, 0.5, 0.5, 0.0], 1.0 - f64::EPSILON), 2);
        assert_eq!(draw(&[0.0, 0.0], 0.5), 0);
    }
}
