//! The dynamic tree of EAGLE-2 (Li et al., arXiv 2406.16858), as EAGLE-3 uses it; a chain is its narrowest case.

use takt_engine::{Result, TokenId};

use super::{DraftTree, Drafter, Growth, Proposals};

/// How large a tree may get.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct TreeShape {
    /// Candidates expanded on each level, and children proposed for each.
    pub top_k: usize,
    /// Levels below the root.
    pub num_levels: usize,
    /// Nodes that are kept for verification, the root included.
    pub num_nodes: usize,
}

impl TreeShape {
    /// A chain of `num_tokens` proposed tokens.
    #[must_use]
    pub fn chain(num_tokens: usize) -> Self {
        Self { top_k: 1, num_levels: num_tokens, num_nodes: num_tokens + 1 }
    }
}

/// Lets `drafter` propose a tree below `root`: on each level the likeliest paths are expanded, and of all candidates the likeliest
/// are kept. A path's likelihood falls with its length, so with every node its parent is kept.
///
/// For one sequence and a shape fixed beforehand; what grows several together, for as long as it pays, is [`crate::policy::Policy`].
///
/// # Errors
/// Whatever `drafter` reports; [`takt_engine::EngineError::Input`] when its lists do not match the level.
pub fn grow(drafter: &mut dyn Drafter, root: TokenId, shape: TreeShape) -> Result<DraftTree> {
    let mut tree = DraftTree::root(root);
    if shape.top_k == 0 || shape.num_levels == 0 || shape.num_nodes <= 1 {
        return Ok(tree);
    }
    let mut growth = Growth::with_capacity(shape.num_nodes);
    growth.start(&[root])?;
    let (mut level, mut proposals) = (Vec::new(), Proposals::default());
    for _ in 0..shape.num_levels {
        level.clear();
        growth.push_likeliest(0, shape.top_k, &mut level);
        if level.is_empty() {
            break;
        }
        proposals.clear();
        drafter.propose(&level, shape.top_k, &mut proposals)?;
        growth.add_level(0, &level, &proposals)?;
    }
    growth.prune(shape.num_nodes - 1, &mut tree);
    Ok(tree)
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use proptest::prelude::*;

    use super::*;
    use crate::tree::{Frontier, Proposal};

    /// A drafter whose proposals depend on the path alone.
    struct PathDrafter {
        seed: u64,
        num_tokens: u32,
        /// By node: the tokens from below the root down to it.
        paths: BTreeMap<usize, Vec<TokenId>>,
    }

    impl PathDrafter {
        fn new(seed: u64, num_tokens: u32) -> Self {
            Self { seed, num_tokens, paths: BTreeMap::new() }
        }

        /// All tokens after `path`, likeliest first.
        fn after(&self, path: &[TokenId]) -> Vec<Proposal> {
            let mut state = path.iter().fold(self.seed, |state, &token| {
                (state ^ u64::from(token + 1)).wrapping_mul(0x9e37_79b9_7f4a_7c15).rotate_left(23)
            });
            let weights: Vec<f64> = (0..self.num_tokens)
                .map(|_| {
                    state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
                    1.0 + ((state >> 40) % 50) as f64
                })
                .collect();
            let sum: f64 = weights.iter().sum();
            let mut all: Vec<Proposal> = (0..)
                .zip(&weights)
                .map(|(token, weight)| Proposal { token, log_prob: (weight / sum).ln() as f32 })
                .collect();
            all.sort_by(|a, b| b.log_prob.total_cmp(&a.log_prob).then(a.token.cmp(&b.token)));
            all
        }
    }

    impl Drafter for PathDrafter {
        fn propose(&mut self, level: &[Frontier], top_k: usize, out: &mut Proposals) -> Result<()> {
            for node in level {
                let mut path = Vec::new();
                if node.node > 0 {
                    path = self.paths[&node.parent].clone();
                    path.push(node.token);
                }
                assert_eq!((path.len(), node.slot), (node.depth, 0));
                self.after(&path).into_iter().take(top_k).for_each(|proposal| out.push(proposal));
                out.end_list();
                self.paths.insert(node.node, path);
            }
            Ok(())
        }
    }

    proptest! {
        /// Wide enough to leave nothing out, the tree holds the likeliest paths there are.
        #[test]
        fn a_tree_without_a_narrow_frontier_keeps_the_likeliest_paths(seed in any::<u64>(), num_nodes in 2_usize..20) {
            let (num_tokens, num_levels) = (3, 3);
            // Every candidate of every level is expanded.
            let shape = TreeShape { top_k: 27, num_levels, num_nodes };
            let mut drafter = PathDrafter::new(seed, num_tokens);
            let tree = grow(&mut drafter, 7, shape).unwrap();
            let mut all: Vec<(f32, Vec<TokenId>)> = Vec::new();
            let mut open: Vec<(f32, Vec<TokenId>)> = vec![(0.0, Vec::new())];
            for _ in 0..num_levels {
                let next: Vec<(f32, Vec<TokenId>)> = open.iter().flat_map(|(above, path)| {
                    drafter.after(path).into_iter().map(|proposal| {
                        (above + proposal.log_prob, [&path[..], &[proposal.token]].concat())
                    }).collect::<Vec<_>>()
                }).collect();
                all.extend(next.iter().cloned());
                open = next;
            }
            all.sort_by(|a, b| b.0.total_cmp(&a.0));
            let worst = tree.cumulative_log_probs.iter().copied().fold(0.0, f32::min);
            prop_assert_eq!(tree.len(), num_nodes.min(all.len() + 1));
            // By likelihood rather than by name: equally likely paths may stand for each other.
            prop_assert!((worst - all[tree.len() - 2].0).abs() < 1e-5);
            for node in 1..tree.len() {
                let tokens: Vec<TokenId> = tree.path(node)[1..].iter().map(|&node| tree.tokens[node]).collect();
                let found = all.iter().find(|(_, path)| *path == tokens).unwrap();
                prop_assert!((found.0 - tree.cumulative_log_probs[node]).abs() < 1e-5);
            }
        }

        #[test]
        fn every_tree_is_one(seed in any::<u64>(), top_k in 0_usize..5, num_levels in 0_usize..6, num_nodes in 0_usize..30) {
            let mut drafter = PathDrafter::new(seed, 4);
            let tree = grow(&mut drafter, 7, TreeShape { top_k, num_levels, num_nodes }).unwrap();
            prop_assert!(!tree.is_empty() && tree.len() <= num_nodes.max(1));
            prop_assert_eq!((tree.tokens[0], tree.parents[0], tree.depths[0]), (7, 0, 0));
            for node in 1..tree.len() {
                prop_assert!(tree.parents[node] < node);
                prop_assert_eq!(tree.depths[node], tree.depths[tree.parents[node]] + 1);
                prop_assert!(tree.depths[node] <= num_levels);
                let siblings: Vec<TokenId> = tree.children(tree.parents[node]).map(|child| tree.tokens[child]).collect();
                prop_assert!(siblings.len() <= top_k);
                prop_assert_eq!(siblings.iter().filter(|&&token| token == tree.tokens[node]).count(), 1);
            }
        }
    }

    #[test]
    fn a_chain_follows_the_likeliest_token_each_time() {
        let mut drafter = PathDrafter::new(3, 9);
        let tree = grow(&mut drafter, 1, TreeShape::chain(5)).unwrap();
        assert_eq!((tree.len(), tree.parents.as_slice()), (6, &[0, 0, 1, 2, 3, 4][..]));
        let mut path = Vec::new();
        for node in 1..6 {
            assert_eq!(tree.tokens[node], drafter.after(&path)[0].token);
            path.push(tree.tokens[node]);
        }
    }

    #[test]
    fn log_probabilities_above_zero_cannot_tear_a_tree_apart() {
        struct Liar;
        impl Drafter for Liar {
            fn propose(&mut self, level: &[Frontier], top_k: usize, out: &mut Proposals) -> Result<()> {
                for node in level {
                    let log_prob = if node.node == 0 { -3.0 } else { 2.0 };
                    (0..top_k as u32).for_each(|token| out.push(Proposal { token, log_prob }));
                    out.end_list();
                }
                Ok(())
            }
        }
        let tree = grow(&mut Liar, 0, TreeShape { top_k: 3, num_levels: 4, num_nodes: 9 }).unwrap();
        assert!((1..tree.len()).all(|node| tree.parents[node] < node));
    }
}
