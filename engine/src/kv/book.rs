//! What every lane holds, wherever its rows lie: how many tokens count, and the tree behind them.

use super::LaneId;
use crate::{EngineError, Result};

/// Committed lengths and trees of a backend's lanes.
#[derive(Debug)]
pub(crate) struct LaneBook {
    lanes: Vec<Entry>,
    lane_capacity: usize,
}

#[derive(Debug, Default)]
struct Entry {
    committed_len: usize,
    /// Parents of the tree whose rows lie behind the committed ones; empty for none.
    tree: Vec<usize>,
}

impl LaneBook {
    /// `num_lanes` empty lanes of `lane_capacity` tokens.
    pub(crate) fn new(num_lanes: usize, lane_capacity: usize) -> Self {
        Self { lanes: (0..num_lanes).map(|_| Entry::default()).collect(), lane_capacity }
    }

    /// Tokens one lane holds.
    pub(crate) fn lane_capacity(&self) -> usize {
        self.lane_capacity
    }

    /// Number of lanes.
    pub(crate) fn num_lanes(&self) -> usize {
        self.lanes.len()
    }

    /// Tokens of `lane` that count; 0 for a lane that does not exist.
    pub(crate) fn committed_len(&self, lane: LaneId) -> usize {
        self.lanes.get(lane.0).map_or(0, |lane| lane.committed_len)
    }

    /// Makes the `num_tokens` tentative rows after the committed length count. Infallible: the plan was checked before.
    pub(crate) fn commit(&mut self, lane: LaneId, num_tokens: usize) {
        let entry = &mut self.lanes[lane.0];
        entry.tree.clear();
        entry.committed_len += num_tokens;
        debug_assert!(entry.committed_len <= self.lane_capacity);
    }

    /// Notes that the rows behind the committed ones are a tree.
    pub(crate) fn note_tree(&mut self, lane: LaneId, parents: &[usize]) {
        let tree = &mut self.lanes[lane.0].tree;
        tree.clear();
        tree.extend_from_slice(parents);
    }

    /// Rows behind the committed ones of `lane` that a tree holds; 0 without one.
    pub(crate) fn tree_len(&self, lane: LaneId) -> usize {
        self.lanes.get(lane.0).map_or(0, |lane| lane.tree.len())
    }

    /// Forgets the tree behind the committed rows of `lane`, which are about to be overwritten. The lane exists.
    pub(crate) fn forget_tree(&mut self, lane: LaneId) {
        self.lanes[lane.0].tree.clear();
    }

    /// Forgets the tokens of `lane` in `[len, committed_len)`.
    ///
    /// # Errors
    /// [`EngineError::Input`] when the lane does not exist or has fewer tokens.
    pub(crate) fn truncate(&mut self, lane: LaneId, len: usize) -> Result<()> {
        self.check_committed(lane, len)?;
        self.set(lane, len);
        Ok(())
    }

    /// The lane now holds `len` tokens, of whatever. It exists.
    pub(crate) fn set(&mut self, lane: LaneId, len: usize) {
        let entry = &mut self.lanes[lane.0];
        entry.committed_len = len;
        entry.tree.clear();
    }

    /// That `path` is one from the root of the tree noted last.
    ///
    /// # Errors
    /// [`EngineError::Input`] when the lane has no tree, or `path` is no path from its root.
    pub(crate) fn check_path(&self, lane: LaneId, path: &[usize]) -> Result<()> {
        self.check_committed(lane, 0)?;
        let tree = &self.lanes[lane.0].tree;
        let is_path = path.first() == Some(&0)
            && path.windows(2).all(|pair| pair[1] > 0 && tree.get(pair[1]) == Some(&pair[0]));
        if tree.is_empty() || !is_path {
            let num_nodes = tree.len();
            return Err(EngineError::Input(format!(
                "{path:?} is no path from the root of the lane's tree of {num_nodes} nodes"
            )));
        }
        Ok(())
    }

    /// That `lane` exists and holds at least `len` tokens.
    ///
    /// # Errors
    /// [`EngineError::Input`] otherwise.
    pub(crate) fn check_committed(&self, lane: LaneId, len: usize) -> Result<()> {
        let Some(found) = self.lanes.get(lane.0) else {
            return Err(EngineError::Input(format!(
                "lane {} does not exist: there are {}",
                lane.0,
                self.lanes.len()
            )));
        };
        if len > found.committed_len {
            let fact = format!("lane {} holds {} tokens, {len} were asked for", lane.0, found.committed_len);
            return Err(EngineError::Input(fact));
        }
        Ok(())
    }
}

/// "snapshot N does not exist (any more)".
pub(crate) fn no_snapshot(id: super::SnapshotId) -> EngineError {
    EngineError::Input(format!("snapshot {} does not exist (any more)", id.0))
}
