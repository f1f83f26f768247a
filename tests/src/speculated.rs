//! Whole answers with speculation of a fixed shape, driven by hand: sequence, drafter, tree, walk.

use takt_eagle_spec::{
    drafter::HeadDrafter,
    lookup::PromptLookup,
    tree::{TreeShape, grow},
    verify::walk,
};
use takt_engine::{
    EngineError, Result, TokenId,
    backend::Backend,
    kv::LaneId,
    sequence::{Sequence, SequenceLimits, SequenceOptions},
    step::{Detail, StepPlan},
};

const LANE: LaneId = LaneId(0);

/// Who proposes, and how much.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Method {
    /// Nobody.
    Plain,
    /// The engine's head.
    Head(TreeShape),
    /// What was said before.
    Lookup(TreeShape),
}

/// An answer and what it took.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Speculated {
    /// Its tokens, the one that ended it included.
    pub tokens: Vec<TokenId>,
    /// Steps after the prompt.
    pub num_rounds: usize,
    /// Proposals accepted.
    pub num_accepted: usize,
}

/// Answers `prompt` in lane 0, which is emptied first.
///
/// # Errors
/// Those of the backend and the sequence.
pub fn answer(
    backend: &mut dyn Backend,
    prompt: &[TokenId],
    options: &SequenceOptions,
    method: Method,
) -> Result<Speculated> {
    answer_with(backend, prompt, options, method, None)
}

/// [`answer`], of which every step asks for `detail`; for what the sequence asks for without.
///
/// # Errors
/// Those of the backend and the sequence.
pub fn answer_with(
    backend: &mut dyn Backend,
    prompt: &[TokenId],
    options: &SequenceOptions,
    method: Method,
    detail: Option<Detail>,
) -> Result<Speculated> {
    backend.truncate(LANE, 0)?;
    let mut sequence = Sequence::new(prompt, options, SequenceLimits::of(backend), None)?;
    let max_tokens = backend.capabilities().max_step_tokens;
    let (mut num_rounds, mut num_accepted) = (0, 0);
    let (mut plan, mut path) = (StepPlan::default(), Vec::new());
    while !sequence.pending().is_empty() {
        plan.clear();
        if sequence.is_prefilling() || method == Method::Plain {
            num_rounds += usize::from(!sequence.is_prefilling());
            let num_tokens = sequence.push_to(&mut plan, LANE, max_tokens);
            detail.into_iter().for_each(|detail| plan.last_needs(detail));
            let mut output = backend.run_step(&plan)?;
            sequence.commit(num_tokens)?;
            if sequence.awaits_logits() {
                sequence.advance_by(output.last_row(0)?)?;
            }
            continue;
        }
        let root = sequence.pending()[0];
        let tree = match method {
            Method::Head(shape) => grow(&mut HeadDrafter::new(backend, &[LANE]), root, shape)?,
            Method::Lookup(shape) => {
                grow(&mut PromptLookup::new(1).over(&[sequence.history()]), root, shape)?
            }
            Method::Plain => continue,
        };
        plan.push_tree(LANE, &tree.tokens, &tree.parents);
        plan.last_needs(detail.unwrap_or_else(|| sequence.tree_detail()));
        let mut output = backend.run_step(&plan)?;
        let choose = |node: usize| {
            sequence.commit(1)?;
            let has_ended = sequence.advance_by(output.row(0, node)?)?.finish.is_some();
            Ok::<_, EngineError>(if has_ended { None } else { sequence.pending().first().copied() })
        };
        walk(&tree, choose, &mut path)?;
        backend.keep(LANE, &path)?;
        num_rounds += 1;
        num_accepted += path.len() - 1;
    }
    Ok(Speculated { tokens: sequence.token_ids().to_vec(), num_rounds, num_accepted })
}
