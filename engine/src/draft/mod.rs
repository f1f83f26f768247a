//! EAGLE-3 draft heads as the runtime knows them: one decoder layer over features of the target (Li et al., "EAGLE-3", arXiv 2503.01840).
//!
//! Row `i` of a draft takes the target's features of token `i` and the embedding of token `i + 1`, at RoPE position `i`, and says what
//! token `i + 2` may be. Proposed rows take the head's own output of the row before instead of features.
//!
//! The builder converts published heads into [`DraftSpec`] and the tensors of [`DraftSpec::parts`]; a backend runs them
//! ([`crate::backend::Backend::attach_draft`]); trees and policies are `takt-eagle-spec`'s.

mod book;
mod check;
mod lane;
mod manifest;
mod plan;
mod random;
mod spec;

pub(crate) use book::{DraftBook, Following, MAX_WAITING, SavedLane};
pub use manifest::{
    AcceptanceCheck, AcceptanceRecord, DRAFT_MANIFEST_FILE, DRAFT_SCHEMA_VERSION, DRAFT_WEIGHTS_FILE,
    DraftManifest, Trial,
};
pub use plan::{DraftOutput, DraftPlan, DraftRow};
pub use random::RandomHead;
pub use spec::{DraftSpec, NUM_CAPTURED, TARGET_TOKENS};

use std::sync::Arc;

use memmap2::Mmap;

use crate::{
    EngineError, Result, TokenId,
    quant::MatrixView,
    weights::{ReadWatch, Unwatched},
};

/// Rows a lane may have proposed since its root, the root included: places its keys and values have beyond the text's.
pub const MAX_DRAFT_ROWS: usize = 128;
/// Most rows of one plan, all lanes together.
pub const MAX_PLAN_ROWS: usize = 64;
/// Most proposals after one row.
pub(crate) const MAX_TOP_K: usize = 64;

/// Where a backend takes a head's weights from, under the names of [`DraftSpec::parts`].
pub trait DraftSource: Sync {
    /// A linear layer, without suffix: `layer.mlp.up_proj`.
    ///
    /// # Errors
    /// When there is no such tensor or it does not hold.
    fn matrix(&self, name: &str) -> Result<MatrixView<'_>>;

    /// A norm's weights under their full name: `norm.weight`.
    ///
    /// # Errors
    /// When there is no such tensor or it does not hold.
    fn vector(&self, name: &str) -> Result<Vec<f32>>;

    /// The target's token of every draft token, `[draft_vocab_size]`.
    ///
    /// # Errors
    /// When there is none or it does not hold.
    fn target_tokens(&self) -> Result<Vec<TokenId>>;

    /// As [`crate::weights::WeightSource::watch`].
    fn watch(&self) -> &dyn ReadWatch {
        &Unwatched
    }

    /// As [`crate::weights::WeightSource::mapping`].
    fn mapping(&self) -> Option<Arc<Mmap>> {
        None
    }
}

/// Fixed facts about an attached head.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct DraftFacts {
    /// Positions it was trained for: beyond them nothing is drafted.
    pub max_positions: usize,
    /// Most rows of one [`DraftPlan`], all lanes together.
    pub max_plan_rows: usize,
}

/// The target's token of every draft token, as many as there are and none outside its vocabulary.
///
/// # Errors
/// [`EngineError::Tensor`] otherwise.
pub(crate) fn target_tokens(spec: &DraftSpec, source: &dyn DraftSource) -> Result<Vec<TokenId>> {
    let tokens = source.target_tokens()?;
    let fail = |fact: String| Err(EngineError::Tensor { name: TARGET_TOKENS.into(), fact });
    if tokens.len() != spec.draft_vocab_size {
        return fail(format!("{} tokens, expected {}", tokens.len(), spec.draft_vocab_size));
    }
    match tokens.iter().find(|&&token| token as usize >= spec.vocab_size) {
        Some(token) => fail(format!("token {token}, the target has {}", spec.vocab_size)),
        None => Ok(tokens),
    }
}
