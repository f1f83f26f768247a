//! The walk down a verified tree.

use takt_engine::TokenId;

use crate::tree::DraftTree;

/// Walks down `tree`: at each node `choose` says which token comes next, from the target's distribution there, exactly as plain decoding
/// would; if a child holds that token, the walk goes on there, else it ends. Returns the token chosen after the last node, the next root;
/// `None` when the answer ended with that node. `path` becomes the nodes from the root on, the root included: their rows stay in the lane.
///
/// `choose(node)` is asked once for each node of the path, in its order, and for no other: a sampler with a random stream of its own, a grammar
/// that advances, or a list of stop tokens see what they would see without speculation. `None` says that nothing follows `node`.
///
/// Nothing is lost: a drafter's proposals are its likeliest tokens, a function of the past and no samples, so the sequential rejection of
/// Leviathan et al. (arXiv 2211.17192), and of Miao et al. for several children (SpecInfer, arXiv 2305.09781), would accept each with the target's
/// probability of it (q = 1) and otherwise draw from what is left. Here a child is accepted when the target's own draw falls on it:
/// with the same probabilities, and beyond equal distribution token for token the plain output of the same seed.
///
/// # Errors
/// Whatever `choose` reports; `path` then ends with the node it was asked for.
pub fn walk<E>(
    tree: &DraftTree,
    mut choose: impl FnMut(usize) -> Result<Option<TokenId>, E>,
    path: &mut Vec<usize>,
) -> Result<Option<TokenId>, E> {
    path.clear();
    let mut node = 0;
    loop {
        path.push(node);
        let Some(next) = choose(node)? else { return Ok(None) };
        match tree.children(node).find(|&child| tree.tokens[child] == next) {
            Some(child) => node = child,
            None => return Ok(Some(next)),
        }
    }
}
