//! Acceptance of draft trees: from the logits of their nodes to a path and the token after it.

use super::{
    DeviceAddress, Geometry, Launch, LaunchError, aligned, at_most, logits, non_zero, to_i32, to_u32,
};

/// Words of a result before the path's nodes: status, nodes, token, committed length.
pub const RESULT_HEADER: usize = 4;

/// A tree to accept from, as the kernel reads it from device memory.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(C, align(16))]
pub struct Tree {
    /// The lane; -1 is padding.
    pub lane: i32,
    /// Index of the root in the step.
    pub first_token: i32,
    /// Nodes, the root included; one for a decode step.
    pub num_nodes: i32,
    /// The root's row of logits; its nodes' follow.
    pub first_row: i32,
}

/// How a lane chooses its tokens, as the kernel keeps it in device memory.
#[derive(Debug, Clone, Copy, PartialEq)]
#[repr(C)]
pub struct SamplerState {
    /// 0 is greedy.
    pub temperature: f32,
    /// From 1 to the lists' length, and below the vocabulary's size; of no meaning for greedy.
    pub top_k: i32,
    /// 1 keeps all.
    pub top_p: f32,
    /// 0 keeps all.
    pub min_p: f32,
    /// Of the SplitMix64 stream; the seed at first.
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
    /// The lane's sampler has no top-k, or a longer one than the lists: its tokens are for the host to choose.
    NoShortlist,
}

/// What became of a tree.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Acceptance<'a> {
    /// How it ended; nothing is committed unless it was accepted.
    pub outcome: Outcome,
    /// Nodes from the root on.
    pub path: &'a [i32],
    /// The token chosen after the path.
    pub token: Option<i32>,
    /// Of the lane.
    pub committed_len: i32,
}

impl<'a> Acceptance<'a> {
    /// Reads a result of `[RESULT_HEADER + max_path]` words; `None` if it is none.
    #[must_use]
    pub fn read(words: &'a [i32]) -> Option<Self> {
        let (&[outcome, path_len, token, committed_len], nodes) =
            words.split_first_chunk::<RESULT_HEADER>()?;
        let outcome = match outcome {
            0 => Outcome::Accepted,
            1 => Outcome::BrokenLogits,
            2 => Outcome::NothingFinite,
            3 => Outcome::NoShortlist,
            _ => return None,
        };
        let path = nodes.get(..usize::try_from(path_len).ok()?)?;
        Some(Self { outcome, path, token: (token >= 0).then_some(token), committed_len })
    }
}

/// Trees of a step walked.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Accept {
    /// `[num_trees]` of [`Tree`].
    pub trees: DeviceAddress,
    /// `[num_tokens]` I32.
    pub tokens: DeviceAddress,
    /// `[num_tokens]` I32, within the tree; the root's is 0.
    pub parents: DeviceAddress,
    /// `[num_tokens]` I32: where the step stored the tokens' keys and values.
    pub rows: DeviceAddress,
    /// The nodes' likeliest tokens; their `log_sum_exp` is not read.
    pub logits: logits::LogitsOutput,
    /// Length of the lists.
    pub k: usize,
    /// By lane, [`SamplerState`]; streams advance.
    pub samplers: DeviceAddress,
    /// By lane, I32; advance by what is accepted.
    pub committed_lens: DeviceAddress,
    /// `[num_trees, RESULT_HEADER + max_path]` I32, for [`Acceptance::read`].
    pub results: DeviceAddress,
    /// `[num_trees, MOVE_HEADER + max_path]` I32, for [`super::kv_compact::Compaction`].
    pub moves: DeviceAddress,
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
        let arguments = vec![
            aligned("trees", self.trees, 16)?.into(),
            aligned("tokens", self.tokens, 4)?.into(),
            aligned("parents", self.parents, 4)?.into(),
            aligned("rows", self.rows, 4)?.into(),
            aligned("likeliest tokens", self.logits.tokens, 4)?.into(),
            aligned("their logits", self.logits.values, 4)?.into(),
            aligned("status of rows", self.logits.status, 4)?.into(),
            aligned("samplers", self.samplers, 8)?.into(),
            aligned("committed lengths", self.committed_lens, 4)?.into(),
            aligned("results", self.results, 4)?.into(),
            aligned("moves", self.moves, 4)?.into(),
            to_i32("tokens of a list", self.k)?.into(),
            to_i32("nodes of a path", non_zero("nodes of a path", self.max_path)?)?.into(),
        ];
        let num_trees = to_u32("trees", non_zero("trees", self.num_trees)?)?;
        Launch::new("accept_trees", Geometry::linear(num_trees, 32), arguments)
    }
}
