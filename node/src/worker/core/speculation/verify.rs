//! What comes of a verified tree: the answer's next tokens, and the nodes whose keys and values stay.

use std::time::{Duration, Instant};

use takt_eagle_spec::verify::walk;
use takt_engine::{EngineError, kv::LaneId, rows::LogitsRow, step::StepOutput};

use super::Speculation;
use crate::{clock::Clock, worker::active::Active};

/// A step that has run, for one of its segments.
#[derive(Clone, Copy)]
pub(in super::super) struct Step<'a> {
    pub segment_idx: usize,
    pub clock: &'a dyn Clock,
    /// When it ended.
    pub now: Instant,
}

impl Step<'_> {
    /// Lets `active` choose its next token by `row`; true when its answer is complete. `chose` is told what a token within a form took.
    pub fn choose(
        &self,
        active: &mut Active,
        row: LogitsRow<'_>,
        chose: &mut dyn FnMut(Duration),
    ) -> Result<bool, EngineError> {
        if !active.sequence.is_bound() {
            return Ok(active.advance(row, self.now)?.is_some());
        }
        let from = self.clock.now();
        let finish = active.advance(row, self.now)?;
        chose(self.clock.now().saturating_duration_since(from));
        Ok(finish.is_some())
    }
}

impl Speculation {
    pub fn forget_paths(&mut self) {
        self.paths.clear();
        self.kept.clear();
    }

    /// Walks down the tree of `lane` with the choices of `active`, and learns from it. Returns whether the answer is complete, and how many nodes
    /// stay.
    pub fn walk(
        &mut self,
        lane: LaneId,
        active: &mut Active,
        (step, output): (Step<'_>, &mut StepOutput<'_>),
        chose: &mut dyn FnMut(Duration),
    ) -> Result<(bool, usize), EngineError> {
        let Some(slot) = self.lanes.iter().position(|&drafting| drafting == lane) else {
            return Err(EngineError::Backend(format!("lane {} has a tree, but did not draft", lane.0)));
        };
        let tree = &self.trees[slot];
        let mut has_ended = false;
        let choose = |node: usize| {
            active.sequence.commit(1)?;
            if active.sequence.awaits_logits() {
                has_ended = step.choose(active, output.row(step.segment_idx, node)?, chose)?;
            }
            Ok::<_, EngineError>(if has_ended { None } else { active.sequence.pending().first().copied() })
        };
        let next = walk(tree, choose, &mut self.path)?;
        active.speculation.add(tree, self.path.len());
        if active.sequence.is_plainly_greedy() {
            self.policy.observe(tree, &self.path, next);
        } else {
            self.policy.observe_apart(tree, &self.path, next);
        }
        self.paths.extend_from_slice(&self.path);
        self.kept.push((lane, self.path.len()));
        Ok((has_ended, self.path.len()))
    }

    /// The nodes that stay of every tree.
    pub fn kept(&self) -> impl Iterator<Item = (LaneId, &[usize])> {
        let mut start = 0;
        self.kept.iter().map(move |&(lane, len)| {
            start += len;
            (lane, &self.paths[start - len..start])
        })
    }

    /// Tells the policy what the section took, masks left out, and how many tokens came of it in the lanes that drafted.
    pub fn learn(&mut self, took: Duration, num_tokens: usize) {
        if self.lanes.is_empty() {
            return;
        }
        if self.has_drafted {
            let plain = self.policy.plain_equivalent(num_tokens);
            self.policy.record_round(took, plain);
        } else {
            self.policy.record_plain(took);
        }
    }
}
