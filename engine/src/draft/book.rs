//! Reading along, as bookkeeping: which of the target's tokens a head has read, which wait, and what may be drafted. What is read, and where
//! its features lie, is the backend's.

use super::{DraftFacts, MAX_PLAN_ROWS, lane::DraftLane};
use crate::{
    TokenId,
    kv::LaneId,
    step::{Segment, StepPlan},
};

/// Features that wait at most from step to step: few, so that no step takes much longer than the others.
pub(crate) const MAX_WAITING: usize = 8;

/// What a head knows of all lanes.
#[derive(Debug)]
pub(crate) struct DraftBook {
    pub(super) lanes: Vec<DraftLane>,
    pub(super) facts: DraftFacts,
    pub(super) vocab_size: usize,
}

/// What a step means for the head's share of a lane.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Following {
    /// Nothing: the lane is not followed, or not any more.
    Nothing,
    /// A tree, whose path is not known yet.
    Tree,
    /// The segment's rows join those that wait; whether they are to be read at once, and how many.
    Rows { num_due: usize },
}

/// Where a row to draft stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct DraftPlace {
    /// Among the lane's rows since its root.
    pub number: usize,
    /// Its position in the text.
    pub position: usize,
    /// The row of the head's lane that its keys and values take: the root is the last row read, what is proposed lies behind, in the order of
    /// its numbers.
    pub row: usize,
}

/// A lane as a snapshot keeps it.
#[derive(Debug, Clone)]
pub(crate) struct SavedLane {
    /// Whether all of it is known: otherwise there is nothing to restore.
    pub is_warm: bool,
    /// Rows read.
    pub num_read: usize,
    /// Rows that wait.
    pub num_waiting: usize,
    next_tokens: Vec<TokenId>,
}

impl DraftBook {
    /// Empty lanes, of a target of `vocab_size` tokens; up to `max_waiting` rows wait while a step is read.
    pub(crate) fn new(num_lanes: usize, max_positions: usize, vocab_size: usize, max_waiting: usize) -> Self {
        Self {
            lanes: (0..num_lanes).map(|_| DraftLane::new(max_waiting)).collect(),
            facts: DraftFacts { max_positions, max_plan_rows: MAX_PLAN_ROWS },
            vocab_size,
        }
    }

    pub(crate) fn facts(&self) -> &DraftFacts {
        &self.facts
    }

    /// Rows of `lane` that are read; 0 for one that does not exist.
    pub(crate) fn num_read(&self, lane: LaneId) -> usize {
        self.lanes.get(lane.0).map_or(0, |lane| lane.num_read)
    }

    /// Rows of `lane` that wait; 0 for one that does not exist.
    pub(crate) fn num_waiting(&self, lane: LaneId) -> usize {
        self.lanes.get(lane.0).map_or(0, |lane| lane.waiting.num_rows)
    }

    /// The tokens after the rows that wait, as far as they are known: so many can be read.
    pub(crate) fn next_tokens(&self, lane: LaneId) -> &[TokenId] {
        self.lanes.get(lane.0).map_or(&[], |lane| &lane.waiting.next_tokens)
    }

    /// As [`crate::backend::Backend::follow`].
    pub(crate) fn follow(&mut self, lane: LaneId, follows: bool, committed_len: usize) {
        let Some(state) = self.lanes.get_mut(lane.0) else { return };
        state.follows = follows;
        if !follows {
            state.go_cold();
        } else if committed_len == 0 {
            state.is_warm = true;
        }
    }

    /// What was noted as read in `lane` was perhaps not read: a step or a draft failed.
    pub(crate) fn go_cold(&mut self, lane: LaneId) {
        if let Some(state) = self.lanes.get_mut(lane.0) {
            state.go_cold();
        }
    }

    /// Whether all of `lane` has been read, so that it can be drafted after.
    pub(crate) fn is_warm(&self, lane: LaneId, committed_len: usize) -> bool {
        self.lanes.get(lane.0).is_some_and(|state| {
            let has_tip = state.waiting.num_rows > 0 || state.has_tip;
            let held = state.held();
            state.is_warm && has_tip && held == committed_len && held < self.facts.max_positions
        })
    }

    /// What `segment` will mean to a lane that held `before` tokens; changes nothing.
    pub(crate) fn following(&self, segment: &Segment, before: usize) -> Following {
        let Some(state) = self.lanes.get(segment.lane.0).filter(|state| state.is_warm) else {
            return Following::Nothing;
        };
        let num_new = if segment.is_tree { 1 } else { segment.tokens.len() };
        if state.held() != before || before + num_new >= self.facts.max_positions {
            return Following::Nothing;
        }
        if segment.is_tree {
            return Following::Tree;
        }
        let num_waiting = state.waiting.num_rows + num_new;
        // With the prompt's slice, whose cost is known, rather than with the first draft. The last row's next token is not known.
        let is_due = num_new > 1 || num_waiting >= MAX_WAITING;
        Following::Rows { num_due: if is_due { num_waiting - 1 } else { 0 } }
    }

    /// Begins what [`Self::following`] says; the caller pushes the rows and reads those that are due. Segments begin in the plan's order, and a
    /// tree that was not kept before is not read any more.
    pub(crate) fn begin_segment(&mut self, plan: &StepPlan, segment: &Segment, before: usize) -> Following {
        let following = self.following(segment, before);
        if plan.segments.first().is_some_and(|first| first.lane == segment.lane) {
            // The step's features take the place of those of earlier trees, of lanes that are not in it, too.
            self.lanes.iter_mut().for_each(|state| state.tree_tokens.clear());
        }
        let Some(state) = self.lanes.get_mut(segment.lane.0) else { return following };
        state.forget_drafted();
        let tokens = plan.tokens.get(segment.tokens.clone()).unwrap_or_default();
        match following {
            Following::Nothing if !state.is_warm => {}
            // Somebody else wrote to the lane.
            Following::Nothing if state.held() != before => state.go_cold(),
            Following::Nothing => state.pause(),
            Following::Tree => {
                state.tree_start = segment.tokens.start;
                state.tree_tokens.extend_from_slice(tokens);
            }
            Following::Rows { .. } => {}
        }
        if let Some(&first) = tokens.first() {
            state.waiting.resolve(first);
        }
        following
    }

    /// One row more waits in `lane`, `next` being the token after it where it is known.
    pub(crate) fn push(&mut self, lane: LaneId, next: Option<TokenId>) {
        if let Some(state) = self.lanes.get_mut(lane.0) {
            state.waiting.push(next);
        }
    }

    /// The first `num_rows` that waited in `lane` are read.
    pub(crate) fn note_read(&mut self, lane: LaneId, num_rows: usize) {
        if let Some(state) = self.lanes.get_mut(lane.0).filter(|_| num_rows > 0) {
            state.waiting.drop_front(num_rows);
            state.num_read += num_rows;
            state.has_tip = true;
        }
    }

    /// Rows that are to be read once `path` is kept of the last step's tree; changes nothing.
    pub(crate) fn num_due_to_keep(&self, lane: LaneId, path: &[usize]) -> usize {
        let state = self.lanes.get(lane.0).filter(|state| state.is_warm && !state.tree_tokens.is_empty());
        let held = state.map(|state| state.held() + path.len());
        match state.zip(held) {
            Some((state, held)) if held < self.facts.max_positions => {
                (state.waiting.num_rows + path.len()).saturating_sub(1)
            }
            _ => 0,
        }
    }

    /// `path` of the last step's tree is kept. Returns where the tree begins among the step's tokens, for the caller to push the path's rows,
    /// with [`Self::token_after`] each, and to read them; `None` when the head does not.
    pub(crate) fn begin_keep(&mut self, lane: LaneId, path: &[usize]) -> Option<usize> {
        let state = self.lanes.get_mut(lane.0)?;
        if !state.is_warm || state.tree_tokens.is_empty() {
            return None;
        }
        if state.held() + path.len() >= self.facts.max_positions {
            state.pause();
            return None;
        }
        Some(state.tree_start)
    }

    /// The token that follows node `path[place]` of the tree that is kept.
    pub(crate) fn token_after(&self, lane: LaneId, path: &[usize], place: usize) -> Option<TokenId> {
        let node = *path.get(place + 1)?;
        self.lanes.get(lane.0)?.tree_tokens.get(node).copied()
    }

    /// The path was pushed and read: the tree is done with.
    pub(crate) fn end_keep(&mut self, lane: LaneId) {
        if let Some(state) = self.lanes.get_mut(lane.0) {
            state.forget_drafted();
        }
    }

    /// The target's lane is cut to `len` tokens.
    pub(crate) fn truncate(&mut self, lane: LaneId, len: usize) {
        if let Some(state) = self.lanes.get_mut(lane.0)
            && (len == 0 || len < state.held())
        {
            state.truncate(len);
        }
    }

    /// The first `len` tokens of `lane`, to be kept; `None` for a lane that does not exist.
    pub(crate) fn saved(&self, lane: LaneId, len: usize) -> Option<SavedLane> {
        let mut kept = self.lanes.get(lane.0)?.clone();
        let num_read = kept.num_read.min(len);
        kept.truncate(len);
        let num_waiting = kept.waiting.num_rows;
        let is_warm = num_read + num_waiting == len;
        Some(SavedLane { is_warm, num_read, num_waiting, next_tokens: kept.waiting.next_tokens })
    }

    /// `lane` holds what a snapshot holds; `None` for one from before there was a head. Whether the head's rows are to be restored with it.
    pub(crate) fn restore(&mut self, lane: LaneId, saved: Option<&SavedLane>) -> bool {
        let Some(state) = self.lanes.get_mut(lane.0) else { return false };
        state.go_cold();
        let Some(saved) = saved.filter(|saved| saved.is_warm && state.follows) else { return false };
        (state.is_warm, state.num_read) = (true, saved.num_read);
        state.waiting.num_rows = saved.num_waiting;
        state.waiting.next_tokens.extend_from_slice(&saved.next_tokens);
        true
    }

    /// A root after `token` begins in `lane`: what waits can all be read.
    pub(crate) fn begin_root(&mut self, lane: LaneId, token: TokenId) {
        if let Some(state) = self.lanes.get_mut(lane.0) {
            state.forget_drafted();
            state.waiting.resolve(token);
        }
    }

    /// Adds a row behind `parent`, or the root, whose lane has been read; the plan was checked.
    pub(crate) fn place(&mut self, lane: LaneId, parent: Option<usize>) -> DraftPlace {
        let state = &mut self.lanes[lane.0];
        let (number, depth) = state.drafted.push(parent);
        let root = state.num_read - 1;
        DraftPlace { number, position: root + depth, row: root + number }
    }

    /// Rows of the head's lane between the root and row `number`, this one included and the root not.
    pub(crate) fn rows_below_root(&self, lane: LaneId, number: usize) -> impl Iterator<Item = usize> + '_ {
        let state = &self.lanes[lane.0];
        state.drafted.ancestors(number).map(|node| state.num_read - 1 + node)
    }
}
