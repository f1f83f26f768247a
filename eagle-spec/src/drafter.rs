//! The attached draft head of a backend as a drafter.

use takt_engine::{
    EngineError, Result,
    backend::Backend,
    draft::{DraftPlan, DraftRow},
    kv::LaneId,
};

use crate::tree::{Drafter, Frontier, Proposal, Proposals};

/// Proposes with the backend's head, for several lanes at once: the sequence in slot `i` is in `lanes[i]`.
pub struct HeadDrafter<'a> {
    backend: &'a mut dyn Backend,
    lanes: &'a [LaneId],
    rows: Rows,
}

/// Memory of a [`HeadDrafter`], kept from round to round.
#[derive(Debug, Clone, Default)]
pub struct Rows {
    plan: DraftPlan,
    /// By slot and node: the number of its row in the lane.
    numbers: Vec<Vec<Option<usize>>>,
    /// By slot: rows drafted since the root.
    counts: Vec<usize>,
}

impl std::fmt::Debug for HeadDrafter<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("HeadDrafter").field("lanes", &self.lanes).finish_non_exhaustive()
    }
}

impl<'a> HeadDrafter<'a> {
    /// A drafter for sequences in `lanes`.
    pub fn new(backend: &'a mut dyn Backend, lanes: &'a [LaneId]) -> Self {
        Self::with_rows(backend, lanes, Rows::default())
    }

    /// [`Self::new`] with the memory of an earlier one ([`Self::into_rows`]): it goes on with that one's trees, and allocates nothing.
    pub fn with_rows(backend: &'a mut dyn Backend, lanes: &'a [LaneId], mut rows: Rows) -> Self {
        rows.numbers.resize(lanes.len().max(rows.numbers.len()), Vec::new());
        rows.counts.resize(rows.numbers.len(), 0);
        Self { backend, lanes, rows }
    }

    /// Gives the memory back.
    #[must_use]
    pub fn into_rows(self) -> Rows {
        self.rows
    }

    fn row(&mut self, node: &Frontier) -> Result<DraftRow> {
        let is_root = node.node == 0;
        let (Some(&lane), Some(numbers), Some(count)) = (
            self.lanes.get(node.slot),
            self.rows.numbers.get_mut(node.slot),
            self.rows.counts.get_mut(node.slot),
        ) else {
            return Err(EngineError::Input(format!(
                "a draft for slot {} of {}",
                node.slot,
                self.lanes.len()
            )));
        };
        if is_root {
            numbers.clear();
            *count = 0;
        }
        let parent = if is_root { None } else { numbers.get(node.parent).copied().flatten() };
        if parent.is_none() && !is_root {
            return Err(EngineError::Input(format!(
                "node {} has children but was not expanded",
                node.parent
            )));
        }
        if numbers.len() <= node.node {
            numbers.resize(node.node + 1, None);
        }
        numbers[node.node] = Some(*count);
        *count += 1;
        Ok(DraftRow { lane, parent, token: node.token })
    }
}

impl Drafter for HeadDrafter<'_> {
    fn propose(&mut self, level: &[Frontier], top_k: usize, out: &mut Proposals) -> Result<()> {
        self.rows.plan.rows.clear();
        self.rows.plan.top_k = top_k;
        for node in level {
            let row = self.row(node)?;
            self.rows.plan.rows.push(row);
        }
        let output = self.backend.draft(&self.rows.plan)?;
        for row_idx in 0..level.len() {
            output.row(row_idx).for_each(|(token, log_prob)| out.push(Proposal { token, log_prob }));
            out.end_list();
        }
        Ok(())
    }
}
