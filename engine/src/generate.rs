//! The simplest way to an answer: one sequence in one lane, until it ends.

use std::ops::ControlFlow;

use crate::{
    Result,
    backend::Backend,
    kv::LaneId,
    sequence::{Advance, Sequence},
    step::StepPlan,
};

/// Runs `sequence` in `lane` until it ends or `on_token` breaks, which a caller with a deadline does
/// (then [`Sequence::finish_now`] gives the text held back). The lane must hold exactly the tokens the sequence has committed.
///
/// # Errors
/// Those of the backend and of [`Sequence::advance_by`].
pub fn generate(
    backend: &mut dyn Backend,
    lane: LaneId,
    sequence: &mut Sequence,
    on_token: &mut dyn FnMut(&Advance<'_>) -> ControlFlow<()>,
) -> Result<()> {
    let max_step_tokens = backend.capabilities().max_step_tokens;
    let mut plan = StepPlan::with_capacity(max_step_tokens, 1);
    while !sequence.pending().is_empty() {
        plan.clear();
        let num_tokens = sequence.push_to(&mut plan, lane, max_step_tokens);
        let mut output = backend.run_step(&plan)?;
        sequence.commit(num_tokens)?;
        if !sequence.awaits_logits() {
            continue;
        }
        if on_token(&sequence.advance_by(output.last_row(0)?)?).is_break() {
            break;
        }
    }
    Ok(())
}
