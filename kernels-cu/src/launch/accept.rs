//! Acceptance of draft trees: from the logits of their nodes to a path and the token after it.

use super::{
    DeviceAddress, Geometry, Launch, LaunchError, aligned, at_most, logits, non_zero, to_i32, to_u32,
};

/// Words of a result before the path's nodes: status, nodes, token.
pub const RESULT_HEADER: usize = 3;

/// Most logits of a row: the sum of as many weights is below 2⁶⁴.
pub const MAX_VOCAB_SIZE: usize = (1 << 20) - 1;

/// Threads of a block that chooses by whole rows.
const WIDE_BLOCK: u32 = 1024;

/// A tree to accept from, as the kernel reads it from device memory.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(C, align(16))]
pub struct Tree {
    /// Index of its sampler; -1 is padding.
    pub sampler: i32,
    /// Index of the root in the step.
    pub first_token: i32,
    /// Nodes, the root included; one for a decode step.
    pub num_nodes: i32,
    /// The root's row of logits; its nodes' follow.
    pub first_row: i32,
}

/// How tokens are chosen, as the kernel reads it from device memory. A token weighs ⌊2⁴⁴ · 2^((logit − largest) · scale)⌋.
#[derive(Debug, Clone, Copy, PartialEq)]
#[repr(C)]
pub struct SamplerState {
    /// log2(e) / temperature; 0 is greedy, for which the other fields have no meaning.
    pub scale: f32,
    /// 0 keeps all.
    pub top_k: i32,
    /// In units of 2⁻⁵³, at most 2⁵³, which keeps all.
    pub top_p: u64,
    /// What weighs less is not kept; 0 keeps all.
    pub min_weight: u64,
    /// Of the SplitMix64 stream, before the root's token; the seed at first. Each node of the path draws one number.
    pub random: u64,
}

/// How the walk of a tree ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Outcome {
    /// With a token after the path.
    Accepted,
    /// The last node has a logit that is NaN or +∞.
    BrokenLogits,
    /// The last node has no finite logit.
    NothingFinite,
}

/// What became of a tree.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Acceptance<'a> {
    /// How it ended.
    pub outcome: Outcome,
    /// Nodes from the root on.
    pub path: &'a [i32],
    /// The token chosen after the path.
    pub token: Option<i32>,
}

impl<'a> Acceptance<'a> {
    /// Reads a result of `[RESULT_HEADER + max_path]` words; `None` if it is none.
    #[must_use]
    pub fn read(words: &'a [i32]) -> Option<Self> {
        let (&[outcome, path_len, token], nodes) = words.split_first_chunk::<RESULT_HEADER>()?;
        let outcome = match outcome {
            0 => Outcome::Accepted,
            1 => Outcome::BrokenLogits,
            2 => Outcome::NothingFinite,
            _ => return None,
        };
        let path = nodes.get(..usize::try_from(path_len).ok()?)?;
        Some(Self { outcome, path, token: (token >= 0).then_some(token) })
    }
}

/// Trees of a step walked.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Accept {
    /// `[num_trees]` of [`Tree`].
    pub trees: DeviceAddress,
    /// Of [`SamplerState`].
    pub samplers: DeviceAddress,
    /// `[num_tokens]` I32.
    pub tokens: DeviceAddress,
    /// `[num_tokens]` I32, within the tree; the root's is 0.
    pub parents: DeviceAddress,
    /// `[num_rows, vocab_size]` F32.
    pub logits: DeviceAddress,
    /// Of each row.
    pub vocab_size: usize,
    /// The rows' likeliest tokens, found without masks; their `log_sum_exp` is not read.
    pub lists: logits::LogitsOutput,
    /// Length of the lists.
    pub k: usize,
    /// Whether a sampler may choose by whole rows: one that is not greedy, and has no top-k, or one that is 1 or longer than the lists. It would
    /// without that, too, much later.
    pub is_wide: bool,
    /// `[num_trees, RESULT_HEADER + max_path]` I32, for [`Acceptance::read`]; of padding nothing is written.
    pub results: DeviceAddress,
    /// Trees of the step, padding included.
    pub num_trees: usize,
    /// Most nodes of a path.
    pub max_path: usize,
}

impl Accept {
    /// The launch.
    ///
    /// # Errors
    /// A size of 0 or too large, an address that is missing or not aligned.
    pub fn launch(&self) -> Result<Launch, LaunchError> {
        at_most("tokens of a list", non_zero("tokens of a list", self.k)?, logits::MAX_TOP_K)?;
        at_most("logits of a row", non_zero("logits of a row", self.vocab_size)?, MAX_VOCAB_SIZE)?;
        let arguments = vec![
            aligned("trees", self.trees, 16)?.into(),
            aligned("samplers", self.samplers, 8)?.into(),
            aligned("tokens", self.tokens, 4)?.into(),
            aligned("parents", self.parents, 4)?.into(),
            aligned("logits", self.logits, 4)?.into(),
            aligned("likeliest tokens", self.lists.tokens, 4)?.into(),
            aligned("their logits", self.lists.values, 4)?.into(),
            aligned("status of rows", self.lists.status, 4)?.into(),
            aligned("results", self.results, 4)?.into(),
            to_i32("logits of a row", self.vocab_size)?.into(),
            to_i32("tokens of a list", self.k)?.into(),
            to_i32("nodes of a path", non_zero("nodes of a path", self.max_path)?)?.into(),
        ];
        let num_trees = to_u32("trees", non_zero("trees", self.num_trees)?)?;
        let num_threads = if self.is_wide { WIDE_BLOCK } else { 32 };
        Launch::new("accept_trees", Geometry::linear(num_trees, num_threads), arguments)
    }
}
