//! A head as a drafter of trees.

use takt_engine::{EngineError, Result, TokenId};

use super::forward::{DraftHead, DraftLane, Sight};
use crate::tree::{Drafter, Frontier, Proposal, Proposals};

/// The target's embedding, for heads without one of their own.
pub trait Embeddings {
    /// Writes the row of `token` to `out`, `[h]`.
    ///
    /// # Errors
    /// [`EngineError::Input`] for a token outside the vocabulary.
    fn embed(&self, token: TokenId, out: &mut [f32]) -> Result<()>;
}

/// Proposes with a head over one lane of it. Dropping it forgets what was proposed.
pub struct HeadDrafter<'a> {
    head: &'a DraftHead,
    lane: &'a mut DraftLane,
    embeddings: &'a dyn Embeddings,
    /// By node, the root aside: its row in the lane, what it left, and the rows it descends from.
    expanded: Vec<Option<Expanded>>,
}

#[derive(Debug, Clone)]
struct Expanded {
    output: Vec<f32>,
    /// Its own row included.
    rows: Vec<usize>,
}

impl std::fmt::Debug for HeadDrafter<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("HeadDrafter").field("num_expanded", &self.expanded.len()).finish_non_exhaustive()
    }
}

impl<'a> HeadDrafter<'a> {
    /// A drafter after the committed rows of `lane`.
    pub fn new(head: &'a DraftHead, lane: &'a mut DraftLane, embeddings: &'a dyn Embeddings) -> Self {
        head.forget_proposed(lane);
        Self { head, lane, embeddings, expanded: Vec::new() }
    }

    fn embedding(&self, token: TokenId) -> Result<Vec<f32>> {
        embedding(self.head, self.embeddings, token)
    }

    fn best(&self, output: &[f32], top_k: usize) -> Vec<Proposal> {
        let log_probs = self.head.log_probs(output);
        let mut ranked: Vec<usize> = (0..log_probs.len()).collect();
        // The likelier first; among equals the lower id, everywhere.
        ranked.sort_by(|&a, &b| log_probs[b].total_cmp(&log_probs[a]).then(a.cmp(&b)));
        ranked.truncate(top_k);
        let proposal = |idx: usize| Proposal { token: self.head.targets()[idx], log_prob: log_probs[idx] };
        ranked.into_iter().map(proposal).collect()
    }
}

impl Drop for HeadDrafter<'_> {
    fn drop(&mut self) {
        self.head.forget_proposed(self.lane);
    }
}

impl Drafter for HeadDrafter<'_> {
    fn propose(&mut self, level: &[Frontier], top_k: usize, out: &mut Proposals) -> Result<()> {
        for node in level {
            let proposals = if node.node == 0 { self.begin(top_k)? } else { self.expand(node, top_k)? };
            proposals.into_iter().for_each(|proposal| out.push(proposal));
            out.end_list();
        }
        Ok(())
    }
}

impl HeadDrafter<'_> {
    fn begin(&self, top_k: usize) -> Result<Vec<Proposal>> {
        if DraftHead::tip(self.lane).is_empty() {
            return Err(EngineError::Input(
                "a draft before the head has read the last accepted token".into(),
            ));
        }
        Ok(self.best(DraftHead::tip(self.lane), top_k))
    }

    fn expand(&mut self, node: &Frontier, top_k: usize) -> Result<Vec<Proposal>> {
        let parent = self.expanded.get(node.parent).cloned().flatten();
        let (hidden, ancestors) = match (node.parent, parent) {
            (0, _) => (DraftHead::tip(self.lane).to_vec(), Vec::new()),
            (_, Some(parent)) => (parent.output, parent.rows),
            (parent, None) => {
                return Err(EngineError::Input(format!("node {parent} has children but was not expanded")));
            }
        };
        let row = self.head.num_rows(self.lane);
        let position = self.lane.committed_len() + node.depth - 1;
        let sight = Sight { position, ancestors: &ancestors };
        let output = self.head.run_row(self.lane, &hidden, &self.embedding(node.token)?, sight);
        let proposals = self.best(&output, top_k);
        if self.expanded.len() <= node.node {
            self.expanded.resize(node.node + 1, None);
        }
        let rows = ancestors.into_iter().chain([row]).collect();
        self.expanded[node.node] = Some(Expanded { output, rows });
        Ok(proposals)
    }
}

fn embedding(head: &DraftHead, embeddings: &dyn Embeddings, token: TokenId) -> Result<Vec<f32>> {
    if let Some(own) = head.own_embedding(token) {
        return Ok(own.to_vec());
    }
    let mut row = vec![0.0; head.config().hidden_size];
    embeddings.embed(token, &mut row)?;
    Ok(row)
}

impl DraftHead {
    /// Reads tokens that the target has accepted: `features` `[n, 3 · H]` of those and, for each, the token that follows it.
    ///
    /// # Errors
    /// [`EngineError::Input`] when the two do not match or have another width, [`EngineError::Capacity`] beyond the positions the head
    /// was trained for; the lane is then as it was.
    pub fn extend(
        &self,
        lane: &mut DraftLane,
        features: &[f32],
        next_tokens: &[TokenId],
        embeddings: &dyn Embeddings,
    ) -> Result<()> {
        let width = super::config::NUM_CAPTURED * self.config().target_hidden_size;
        if features.len() != width * next_tokens.len() {
            return Err(EngineError::Input(format!(
                "{} features for {} tokens, expected {width} for each",
                features.len(),
                next_tokens.len()
            )));
        }
        let (len, most) = (lane.committed_len() + next_tokens.len(), self.config().max_positions);
        if len > most {
            return Err(EngineError::Capacity(format!(
                "{len} positions, the draft head was trained for {most}"
            )));
        }
        let rows: Vec<(Vec<f32>, Vec<f32>)> = features
            .chunks_exact(width)
            .zip(next_tokens)
            .map(|(features, &next)| Ok((self.fuse(features)?, embedding(self, embeddings, next)?)))
            .collect::<Result<_>>()?;
        for (fused, embedding) in rows {
            self.commit_row(lane, &fused, &embedding);
        }
        Ok(())
    }

    /// Keeps the first `len` committed rows: after a prefix snapshot was restored, or tokens were taken back. What the last row said is
    /// forgotten, so that reading goes on with the row before the end.
    ///
    /// # Errors
    /// [`EngineError::Input`] when fewer are committed.
    pub fn truncate(&self, lane: &mut DraftLane, len: usize) -> Result<()> {
        if len > lane.committed_len() {
            return Err(EngineError::Input(format!(
                "{len} rows to keep, {} are committed",
                lane.committed_len()
            )));
        }
        lane.cut(len);
        self.forget_proposed(lane);
        Ok(())
    }
}
