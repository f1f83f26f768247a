//! Greedy verification: the longest path that the target would have chosen itself.

use takt_engine::TokenId;

use super::Accepted;
use crate::tree::DraftTree;

/// Walks down `tree` along the target's choice after each node, `choice`, for as long as it was proposed.
///
/// # Errors
/// Whatever `choice` reports.
pub fn verify_greedy<E>(
    tree: &DraftTree,
    mut choice: impl FnMut(usize) -> Result<TokenId, E>,
) -> Result<Accepted, E> {
    let mut path = vec![0];
    let mut node = 0;
    loop {
        let next = choice(node)?;
        match tree.children(node).find(|&child| tree.tokens[child] == next) {
            Some(child) => {
                path.push(child);
                node = child;
            }
            None => return Ok(Accepted { path, next }),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::convert::Infallible;

    use proptest::prelude::*;

    use super::*;

    /// A random tree over few tokens.
    fn trees() -> impl Strategy<Value = DraftTree> {
        prop::collection::vec((any::<prop::sample::Index>(), 0_u32..4), 0..16).prop_map(|nodes| {
            let mut tree = DraftTree::root(0);
            for (parent, token) in nodes {
                let parent = parent.index(tree.len());
                // Siblings differ, as every drafter's do.
                if tree.children(parent).all(|child| tree.tokens[child] != token) {
                    tree.tokens.push(token);
                    tree.parents.push(parent);
                    tree.depths.push(tree.depths[parent] + 1);
                    tree.cumulative_log_probs.push(0.0);
                }
            }
            tree
        })
    }

    proptest! {
        /// The oracle: of all paths, the longest whose every token is the target's choice after the one before.
        #[test]
        fn the_longest_path_of_the_targets_choices_is_accepted(tree in trees(), choices in prop::collection::vec(0_u32..4, 17)) {
            let found = verify_greedy(&tree, |node| Ok::<_, Infallible>(choices[node])).unwrap();
            let is_chosen = |path: &[usize]| path.windows(2).all(|pair| tree.tokens[pair[1]] == choices[pair[0]]);
            let longest = (0..tree.len()).map(|node| tree.path(node)).filter(|path| is_chosen(path)).max_by_key(Vec::len).unwrap();
            prop_assert_eq!(&found.path, &longest);
            prop_assert_eq!(found.next, choices[*longest.last().unwrap()]);
            prop_assert_eq!(found.num_new(), longest.len());
        }
    }
}
