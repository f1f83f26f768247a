//! What `takt score --draft` shows: the head's logits, a chain and a tree.

use std::{fmt::Write as _, str::FromStr};

use serde_json::{Value, json};
use takt_eagle_spec::{
    drafter::HeadDrafter,
    tree::{DraftTree, TreeShape, grow},
};
use takt_engine::{
    TokenId,
    draft::{DraftPlan, DraftRow, MAX_DRAFT_ROWS},
    engine::Engine,
    kv::LaneId,
    step::{LogitsWanted, StepPlan},
    text::Text,
};

use super::{CliError, paint};

const LANE: LaneId = LaneId(0);
/// Tokens of the chain.
const CHAIN_LEN: usize = 5;

/// `--tree`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct TreeArg {
    top_k: usize,
    levels: usize,
    nodes: usize,
}

impl Default for TreeArg {
    fn default() -> Self {
        Self { top_k: 4, levels: 4, nodes: 16 }
    }
}

impl FromStr for TreeArg {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let mut tree = Self::default();
        for part in text.split(',') {
            let value = |limit: usize, value: &str| {
                let parsed = value.parse().ok().filter(|value| (1..=limit).contains(value));
                parsed.ok_or_else(|| format!("{part:?}: expected a number from 1 to {limit}"))
            };
            match part.split_once('=') {
                Some(("top_k", number)) => tree.top_k = value(16, number)?,
                Some(("levels", number)) => tree.levels = value(16, number)?,
                Some(("nodes", number)) => tree.nodes = value(64, number)?,
                _ => return Err(format!("{part:?}: expected top_k=K, levels=L or nodes=N")),
            }
        }
        // Every expanded token is a row of the head, which holds so many.
        let num_rows = 1 + tree.top_k * tree.levels;
        if num_rows > MAX_DRAFT_ROWS {
            return Err(format!(
                "top_k · levels is {}, expected at most {}",
                num_rows - 1,
                MAX_DRAFT_ROWS - 1
            ));
        }
        Ok(tree)
    }
}

impl TreeArg {
    fn shape(self) -> TreeShape {
        TreeShape { top_k: self.top_k, num_levels: 1 + self.levels, num_nodes: self.nodes }
    }
}

/// What the head proposes.
#[derive(Debug)]
pub(super) struct Drafted {
    logits: Vec<f32>,
    chain: Vec<TokenId>,
    tree: DraftTree,
}

/// Reads `tokens` again, so that the head reads along, and drafts after `next`.
pub(super) fn draft(
    engine: &mut Engine,
    tokens: &[TokenId],
    next: TokenId,
    tree: TreeArg,
) -> Result<Drafted, CliError> {
    if engine.draft.is_none() {
        return Err(CliError::Failed(
            "the engine has no draft head: add one with `takt build SOURCE -o DIR --draft HEAD`".into(),
        ));
    }
    let backend = engine.backend.as_mut();
    let slice_len = backend.capabilities().max_step_tokens;
    let mut plan = StepPlan::default();
    for slice in tokens.chunks(slice_len) {
        plan.clear();
        plan.push(LANE, slice, LogitsWanted::None);
        backend.run_step(&plan)?;
    }
    if let Some(facts) = backend.draft_facts().filter(|_| !backend.can_draft(LANE)) {
        return Err(CliError::Failed(format!(
            "{} tokens: the draft head was trained for {} positions",
            tokens.len(),
            facts.max_positions
        )));
    }
    let root = DraftRow { lane: LANE, parent: None, token: next };
    let root = DraftPlan { rows: vec![root], top_k: 1, wants_logits: true };
    let logits = backend.draft(&root)?.logits.to_vec();
    let mut grown = |shape| grow(&mut HeadDrafter::new(backend, &[LANE]), next, shape);
    let chain = grown(TreeShape::chain(CHAIN_LEN))?.tokens.split_off(1);
    Ok(Drafted { logits, chain, tree: grown(tree.shape())? })
}

impl Drafted {
    pub(super) fn as_json(&self) -> Value {
        json!({
            "logits_last": self.logits, "chain": self.chain,
            "tree": {
                "tokens": self.tree.tokens, "parents": self.tree.parents, "depths": self.tree.depths,
                "cumulative_log_prob": self.tree.cumulative_log_probs,
            },
        })
    }

    /// The tree as an indented list.
    pub(super) fn as_text(&self, text: Option<&Text>) -> String {
        let mut out = format!("  {}\n", paint::dim("drafted after it, with the probability of the path"));
        let mut open = vec![0];
        while let Some(node) = open.pop() {
            let token = self.tree.tokens[node];
            let word = text.and_then(|text| text.decode(&[token], false).ok()).unwrap_or_default();
            let share = self.tree.cumulative_log_probs[node].exp() * 100.0;
            let indent = "  ".repeat(self.tree.depths[node]);
            // Writing to a String cannot fail.
            let _ = writeln!(out, "    {indent}{token} {word:?}  {}", paint::dim(&format!("{share:.1} %")));
            let mut children: Vec<usize> = self.tree.children(node).collect();
            children.reverse();
            open.extend(children);
        }
        out
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn shapes_of_trees_are_read_or_refused_with_what_is_expected() {
        assert_eq!("top_k=2,levels=3,nodes=9".parse(), Ok(TreeArg { top_k: 2, levels: 3, nodes: 9 }));
        assert_eq!("nodes=9".parse(), Ok(TreeArg { nodes: 9, ..TreeArg::default() }));
        for (text, word) in [
            ("", "expected top_k"),
            ("nodes=0", "1 to 64"),
            ("top_k=x", "1 to 16"),
            ("top_k=16,levels=16", "127"),
        ] {
            let error = text.parse::<TreeArg>().unwrap_err();
            assert!(error.contains(word), "{text}: {error}");
        }
    }
}
