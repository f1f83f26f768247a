//! Lanes that are told things, and what they must hold and answer.

use takt_engine::{
    TokenId,
    backend::Backend,
    kv::{LaneId, SnapshotId},
    spec::DecoderSpec,
    step::{LogitsWanted, StepPlan},
};

use super::{Subject, Tier};
use crate::{
    backends::relative_errors,
    memory_weights::uniform,
    reference::{self, Stored},
};

/// What a lane is told in a step.
#[derive(Debug, Clone, Copy)]
pub enum Said<'a> {
    /// Tokens that follow each other, and of which the logits are wanted.
    Tokens(&'a [TokenId], LogitsWanted),
    /// A tree of proposals and its parents.
    Tree(&'a [TokenId], &'a [usize]),
}

/// A tree that waits for a path to be kept.
#[derive(Debug, Clone)]
struct Waiting {
    tokens: Vec<TokenId>,
    parents: Vec<usize>,
}

/// A backend's lanes beside what they were told.
pub struct Conversation<'a> {
    /// The backend, for what is asked of it alone.
    pub backend: &'a mut dyn Backend,
    subject: (&'a crate::memory_weights::MemoryWeights, &'a DecoderSpec),
    tier: Tier,
    stored: Stored<'a>,
    /// Most nodes of a tree.
    pub max_tree: usize,
    /// Whether a list, or a choice, comes wherever one is asked for.
    pub makes_lists: bool,
    name: &'static str,
    lanes: Vec<Vec<TokenId>>,
    waiting: Vec<Option<Waiting>>,
    snapshots: Vec<(SnapshotId, Vec<TokenId>)>,
}

impl std::fmt::Debug for Conversation<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Conversation")
            .field("name", &self.name)
            .field("lanes", &self.lanes)
            .finish_non_exhaustive()
    }
}

impl<'a> Conversation<'a> {
    /// With lanes that are empty.
    pub(super) fn new(subject: &'a mut Subject<'_>, spec: &'a DecoderSpec, name: &'static str) -> Self {
        let num_lanes = subject.backend.capabilities().num_lanes;
        Self {
            subject: (subject.weights, spec),
            stored: match subject.cache_scales {
                [] => Stored::ByRow(subject.backend.capabilities().kv),
                scales => Stored::ByLayer(scales),
            },
            tier: subject.tier,
            max_tree: subject.max_tree,
            makes_lists: subject.makes_lists,
            name,
            lanes: vec![Vec::new(); num_lanes],
            waiting: vec![None; num_lanes],
            snapshots: Vec::new(),
            backend: &mut *subject.backend,
        }
    }

    /// Of its arithmetic.
    #[must_use]
    pub fn tier(&self) -> Tier {
        self.tier
    }

    /// `len` tokens, others for every `seed`.
    #[must_use]
    pub fn tokens(&self, seed: u64, len: usize) -> Vec<TokenId> {
        let (mut state, vocab_size) = (seed, self.subject.1.vocab_size);
        (0..len).map(|_| (uniform(&mut state).abs() * (vocab_size - 1) as f32) as TokenId).collect()
    }

    /// Runs one step, and holds all rows that were wanted and all lanes against what they must be. Gives the rows of each segment.
    ///
    /// # Panics
    /// When they are not.
    #[track_caller]
    pub fn say(&mut self, said: &[(usize, Said<'_>)]) -> Vec<Vec<Vec<f32>>> {
        let mut plan = StepPlan::default();
        for &(lane, said) in said {
            match said {
                Said::Tokens(tokens, wanted) => plan.push(LaneId(lane), tokens, wanted),
                Said::Tree(tokens, parents) => plan.push_tree(LaneId(lane), tokens, parents),
            }
        }
        let output = self.backend.run_step(&plan).expect("a step");
        let vocab_size = output.vocab_size();
        let rows_of = |idx| {
            let rows = output.segment_logits(idx).expect("whole rows");
            rows.chunks(vocab_size).map(<[f32]>::to_vec).collect::<Vec<_>>()
        };
        let found: Vec<_> = (0..said.len()).map(rows_of).collect();
        for (&(lane, said), rows) in said.iter().zip(&found) {
            self.hold(lane, said, rows);
        }
        self.assert_lens();
        found
    }

    /// The rows of `said`, and what the lane holds from now on.
    #[track_caller]
    fn hold(&mut self, lane: usize, said: Said<'_>, rows: &[Vec<f32>]) {
        self.waiting[lane] = None;
        match said {
            Said::Tokens(tokens, wanted) => {
                self.lanes[lane].extend_from_slice(tokens);
                let first = self.lanes[lane].len()
                    - match wanted {
                        LogitsWanted::None => 0,
                        LogitsWanted::Last => 1,
                        LogitsWanted::All => tokens.len(),
                    };
                let expected =
                    if wanted == LogitsWanted::None { Vec::new() } else { self.expected(&self.lanes[lane]) };
                let expected = expected.get(first..).unwrap_or_default();
                assert_eq!(rows.len(), expected.len(), "{}: rows of lane {lane}", self.name);
                for (row, expected) in rows.iter().zip(expected) {
                    self.assert_near(lane, row, expected);
                }
            }
            Said::Tree(tokens, parents) => {
                assert_eq!(rows.len(), tokens.len(), "{}: rows of lane {lane}'s tree", self.name);
                for (node, row) in rows.iter().enumerate() {
                    let branch = ancestors(parents, node).into_iter().map(|node| tokens[node]);
                    let seen: Vec<TokenId> = self.lanes[lane].iter().copied().chain(branch).collect();
                    self.assert_near(lane, row, self.expected(&seen).last().expect("a row"));
                }
                self.waiting[lane] = Some(Waiting { tokens: tokens.to_vec(), parents: parents.to_vec() });
            }
        }
    }

    fn expected(&self, tokens: &[TokenId]) -> Vec<Vec<f64>> {
        reference::logits(self.subject.1, self.subject.0, self.stored, tokens)
    }

    #[track_caller]
    fn assert_near(&self, lane: usize, found: &[f32], expected: &[f64]) {
        let (_, error) = relative_errors(found, expected);
        let (name, tier, len) = (self.name, self.tier, self.lanes[lane].len());
        let facts = self.backend.capabilities();
        assert!(
            error < tier.bound,
            "{name} on {}: lane {lane}, {len} tokens long: {error:.2e} from the naive decoder, {tier:?}",
            facts.backend
        );
    }

    /// That every lane holds as many tokens as it was told.
    ///
    /// # Panics
    /// When one does not.
    #[track_caller]
    pub fn assert_lens(&self) {
        for (lane, told) in self.lanes.iter().enumerate() {
            assert_eq!(self.backend.committed_len(LaneId(lane)), told.len(), "{}: lane {lane}", self.name);
        }
    }

    /// Keeps `path` of the tree that waits in `lane`.
    ///
    /// # Panics
    /// When there is none, or it cannot be kept.
    #[track_caller]
    pub fn keep(&mut self, lane: usize, path: &[usize]) {
        let tree = self.waiting[lane].take().expect("a tree");
        let is_path =
            path.first() == Some(&0) && path.windows(2).all(|pair| tree.parents[pair[1]] == pair[0]);
        assert!(is_path, "{path:?} in {:?}", tree.parents);
        self.backend.keep(LaneId(lane), path).expect("a path");
        self.lanes[lane].extend(path.iter().map(|&node| tree.tokens[node]));
        self.assert_lens();
    }

    /// Shortens `lane`.
    ///
    /// # Panics
    /// When it cannot be.
    #[track_caller]
    pub fn truncate(&mut self, lane: usize, len: usize) {
        self.backend.truncate(LaneId(lane), len).expect("a shorter lane");
        self.lanes[lane].truncate(len);
        self.waiting[lane] = None;
        self.assert_lens();
    }

    /// Saves the first `len` tokens of `lane`; gives the snapshot's number.
    ///
    /// # Panics
    /// When they cannot be.
    #[track_caller]
    pub fn save(&mut self, lane: usize, len: usize) -> usize {
        let snapshot = self.backend.save_snapshot(LaneId(lane), len).expect("a snapshot");
        self.snapshots.push((snapshot, self.lanes[lane][..len].to_vec()));
        self.snapshots.len() - 1
    }

    /// Puts a snapshot in the place of what `lane` holds.
    ///
    /// # Panics
    /// When it cannot be.
    #[track_caller]
    pub fn restore(&mut self, lane: usize, number: usize) {
        let (snapshot, tokens) = self.snapshots[number].clone();
        self.backend.restore_snapshot(LaneId(lane), snapshot).expect("a lane of before");
        (self.lanes[lane], self.waiting[lane]) = (tokens, None);
        self.assert_lens();
    }

    /// Frees all snapshots; gives one of them, which is not there any more.
    ///
    /// # Panics
    /// When there were none.
    pub fn drop_snapshots(&mut self) -> SnapshotId {
        let dropped: Vec<SnapshotId> = self.snapshots.drain(..).map(|(snapshot, _)| snapshot).collect();
        dropped.iter().for_each(|snapshot| self.backend.drop_snapshot(*snapshot));
        dropped[0]
    }

    /// That `plan` is refused, as a matter of room or of what was asked, and that no lane has changed.
    ///
    /// # Panics
    /// When it is not.
    #[track_caller]
    pub fn assert_refused(&mut self, plan: &StepPlan, is_capacity: bool) {
        let error = self.backend.run_step(plan).expect_err("a plan that cannot run");
        assert_eq!(error.is_capacity(), is_capacity, "{}: {error}", self.name);
        self.assert_lens();
    }
}

/// `node` behind all that lead to it from the root.
fn ancestors(parents: &[usize], node: usize) -> Vec<usize> {
    let mut path = vec![node];
    while let Some(&last) = path.last().filter(|last| **last != 0) {
        path.push(parents[last]);
    }
    path.reverse();
    path
}
