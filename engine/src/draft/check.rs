//! Is a plan something the head can draft? Everything is checked before anything is written.

use super::{MAX_DRAFT_ROWS, MAX_PLAN_ROWS, MAX_TOP_K, book::DraftBook};
use crate::{EngineError, Result, draft::DraftPlan, kv::LaneId};

impl DraftBook {
    pub(crate) fn check(&self, plan: &DraftPlan, committed_len: impl Fn(LaneId) -> usize) -> Result<()> {
        let (num_rows, top_k) = (plan.rows.len(), plan.top_k);
        if num_rows == 0 || num_rows > MAX_PLAN_ROWS || top_k == 0 || top_k > MAX_TOP_K {
            return Err(EngineError::Input(format!(
                "{num_rows} rows with {top_k} proposals each to draft, expected 1 to {MAX_PLAN_ROWS} with 1 to {MAX_TOP_K}"
            )));
        }
        for (idx, row) in plan.rows.iter().enumerate() {
            let fail = |fact: String| Err(EngineError::Input(format!("lane {}: {fact}", row.lane.0)));
            let Some(state) = self.lanes.get(row.lane.0) else {
                return fail("it does not exist".into());
            };
            if row.token as usize >= self.vocab_size {
                return fail(format!("token {} is outside the vocabulary of {}", row.token, self.vocab_size));
            }
            let is_begun = plan.rows[..idx].iter().any(|other| other.lane == row.lane);
            let num_before = plan.rows[..idx].iter().filter(|other| other.lane == row.lane).count();
            match row.parent {
                None if is_begun => return fail("its root comes after other rows of it".into()),
                None if !self.is_warm(row.lane, committed_len(row.lane)) => {
                    return fail("a draft after tokens that the head has not read".into());
                }
                None => {}
                Some(_)
                    if plan.rows[..idx]
                        .iter()
                        .any(|other| other.lane == row.lane && other.parent.is_none()) =>
                {
                    return fail("its root was not drafted before".into());
                }
                // Rows of this very plan have no output yet.
                Some(parent) if parent >= state.drafted.len() => {
                    return fail(format!("row {parent} has children, but was not drafted"));
                }
                Some(_) if state.drafted.len() + num_before >= MAX_DRAFT_ROWS => {
                    return fail(format!("more than {MAX_DRAFT_ROWS} rows since its root"));
                }
                Some(_) => {}
            }
        }
        Ok(())
    }
}
