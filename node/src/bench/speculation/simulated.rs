//! A known shape with random weights: what steps, levels and rounds cost is measured; what is accepted is assumed, and said to be.

use std::time::{Duration, Instant};

use takt_eagle_spec::{
    drafter::{HeadDrafter, Rows},
    tree::{DraftTree, Proposals, TreeShape, grow},
    verify::walk,
};
use takt_engine::{
    EngineError, TokenId,
    backend::Backend,
    kv::SnapshotId,
    sampler::{Sampler, SamplingParams},
    step::{Detail, LogitsWanted, StepPlan},
};

use super::{
    SpeculationError,
    method::{Method, Proposer},
    player::LANE,
    profile::{Assumed, Profile, expected_shares, expected_tokens},
    report::{AgainstPlain, MethodRow, Report, method_rows},
    tally::{Sums, Tally},
    virtual_policy::{PartCosts, play},
};
use crate::random::SplitMix64;

/// Rounds, or plain steps, of each method before the next has its turn.
pub const NUM_ROUNDS: usize = 3;
/// No token: what the target says instead of any proposal.
const OTHER: TokenId = TokenId::MAX;

/// What is measured.
#[derive(Debug, Clone)]
pub struct ShapeCourse {
    /// Assumed chances.
    pub profile: Profile,
    /// Tokens held before the first round.
    pub context_len: usize,
    /// Turns of each method.
    pub num_passes: usize,
}

/// Measures rounds on `backend`, which has a draft head whose proposals mean nothing. Each round is a real one: the head drafts, the target
/// verifies, and a path is kept that is drawn by the profile, so that the head reads along what it would. `progress` is told how much is done;
/// when it says false, all ends.
///
/// # Errors
/// Whatever the backend reports.
pub fn run(
    backend: &mut dyn Backend,
    course: &ShapeCourse,
    model: String,
    mut progress: impl FnMut(f64) -> bool,
) -> Result<Report, SpeculationError> {
    let facts = backend.capabilities().clone();
    let mut methods = Method::all(true, false, facts.max_logits_rows.min(facts.max_step_tokens));
    methods.retain(|method| method.kind() != "adaptive");
    let mut bench = Bench::new(backend, &course.profile, course.context_len)?;
    let mut tally = Tally::new(methods.len(), course.num_passes, 1);
    let mut trees = vec![DraftTree::root(0); methods.len()];
    let num_all = (course.num_passes * methods.len()).max(1) as f64;
    for pass in 0..course.num_passes {
        for turn in 0..methods.len() {
            let idx = (turn + pass) % methods.len();
            trees[idx] = bench.take_turn(methods[idx], tally.cell(idx, pass, 0))?;
            if !progress((pass * methods.len() + turn + 1) as f64 / num_all) {
                return Err(SpeculationError::Interrupted);
            }
        }
    }
    let mut rows = method_rows(&methods, &tally);
    let plain_tok_s = rows.first().map_or(0.0, |plain| plain.tok_s);
    rows.iter_mut().zip(&trees).for_each(|(row, tree)| assume(row, tree, plain_tok_s));
    let costs = PartCosts::of(&rows);
    rows.push(play(&course.profile, &costs));
    Ok(Report {
        model,
        acceptance: "simulated",
        profile: Some((&course.profile).into()),
        backend: facts.backend,
        device: facts.device,
        threads: facts.num_threads,
        has_head: true,
        num_prompts: 0,
        num_passes: course.num_passes,
        num_tokens: 0,
        context_len: course.context_len,
        identical: None,
        tasks: Vec::new(),
        adaptive_vs_plain: AgainstPlain::of(&rows),
        methods: rows,
        costs: Vec::new(),
        notes: vec![
            "simulated acceptance: weights are random, costs are measured, and how much is accepted is the profile's".into(),
            "the adaptive row is played in virtual time, at the measured costs".into(),
        ],
    })
}

/// Puts what the profile expects of `tree` into a measured row.
fn assume(row: &mut MethodRow, tree: &DraftTree, plain_tok_s: f64) {
    row.speedup_with_prompt = None;
    let Some(cost) = row.round_cost else { return };
    let expected = expected_tokens(tree);
    row.accept_len = Some(expected);
    row.accept_len_shares = expected_shares(tree);
    row.speedup = expected / cost.max(1e-9);
    row.tok_s = row.speedup * plain_tok_s;
}

struct Bench<'a> {
    backend: &'a mut dyn Backend,
    profile: &'a Profile,
    cold: SnapshotId,
    warm: SnapshotId,
    sampler: Sampler,
    random: SplitMix64,
    rows: Rows,
    scratch: Proposals,
    plan: StepPlan,
    path: Vec<usize>,
}

impl<'a> Bench<'a> {
    fn new(
        backend: &'a mut dyn Backend,
        profile: &'a Profile,
        context_len: usize,
    ) -> Result<Self, EngineError> {
        let cold = read(backend, context_len, false)?;
        let warm = read(backend, context_len, true)?;
        Ok(Self {
            backend,
            profile,
            cold,
            warm,
            sampler: Sampler::new(&SamplingParams::default())?,
            random: SplitMix64(7),
            rows: Rows::default(),
            scratch: Proposals::default(),
            plan: StepPlan::default(),
            path: Vec::new(),
        })
    }

    /// Some rounds of one method; returns the tree of the last, whose shape and chances are those of all.
    fn take_turn(&mut self, method: Method, sums: &mut Sums) -> Result<DraftTree, EngineError> {
        let follows = method.proposer() == Some(Proposer::Head);
        self.backend.follow(LANE, follows);
        self.backend.restore_snapshot(LANE, if follows { self.warm } else { self.cold })?;
        let (mut root, mut tree) = (1, DraftTree::root(1));
        for _ in 0..NUM_ROUNDS {
            let began = Instant::now();
            tree = match method.shape() {
                Some(shape) => self.draft(root, shape)?,
                None => DraftTree::root(root),
            };
            let drafting = began.elapsed();
            let began = Instant::now();
            root = self.step(&tree)?;
            let took = began.elapsed();
            sums.add_step(&tree, &self.path, drafting, took);
            sums.took += drafting + took;
            sums.num_tokens += self.path.len() as u64;
        }
        Ok(tree)
    }

    fn draft(&mut self, root: TokenId, shape: TreeShape) -> Result<DraftTree, EngineError> {
        let inner = HeadDrafter::with_rows(self.backend, &[LANE], std::mem::take(&mut self.rows));
        let mut drafter = Assumed { inner, profile: self.profile, scratch: &mut self.scratch };
        let tree = grow(&mut drafter, root, shape);
        self.rows = drafter.inner.into_rows();
        tree
    }

    /// Verifies, keeps a path drawn by the tree's chances, and returns the target's token at its end.
    fn step(&mut self, tree: &DraftTree) -> Result<TokenId, EngineError> {
        self.plan.clear();
        let is_round = tree.num_drafted() > 0;
        if is_round {
            self.plan.push_tree(LANE, &tree.tokens, &tree.parents);
        } else {
            self.plan.push(LANE, &tree.tokens, LogitsWanted::Last);
        }
        self.plan.last_needs(Detail::Chosen(self.sampler.state()));
        let mut output = self.backend.run_step(&self.plan)?;
        let (sampler, random, mut chosen) = (&mut self.sampler, &mut self.random, 0);
        // The path here is drawn, and not the one that the backend may have walked while it chose.
        let has_walked = output.row(0, 0)?.choice().is_some();
        let choose = |node: usize| {
            // As in a real round, where each accepted node's logits are searched, unless that was done.
            if node == 0 || !has_walked {
                chosen = sampler.sample_row(&mut output.row(0, node)?)?;
            }
            Ok::<_, EngineError>(Some(draw(tree, node, random).unwrap_or(OTHER)))
        };
        walk(tree, choose, &mut self.path)?;
        if is_round {
            self.backend.keep(LANE, &self.path)?;
        }
        Ok(chosen)
    }
}

/// The proposal below `node` that the target says, by the tree's chances; `None` for none of them.
pub(super) fn draw(tree: &DraftTree, node: usize, random: &mut SplitMix64) -> Option<TokenId> {
    let mut left = random.unit();
    for child in tree.children(node) {
        let log_prob = tree.cumulative_log_probs[child] - tree.cumulative_log_probs[node];
        left -= f64::from(log_prob).exp();
        if left < 0.0 {
            return Some(tree.tokens[child]);
        }
    }
    None
}

/// Fills the lane with `len` tokens spread over the vocabulary, and keeps it.
fn read(backend: &mut dyn Backend, len: usize, follows: bool) -> Result<SnapshotId, EngineError> {
    backend.truncate(LANE, 0)?;
    backend.follow(LANE, follows);
    let vocab_size = backend.spec().vocab_size as u64;
    let tokens: Vec<TokenId> =
        (0..len as u64).map(|idx| (idx.wrapping_mul(0x9e37_79b9) % vocab_size) as TokenId).collect(); // below 2^22
    let mut plan = StepPlan::default();
    for slice in tokens.chunks(backend.capabilities().max_step_tokens.max(1)) {
        plan.clear();
        plan.push(LANE, slice, LogitsWanted::None);
        backend.run_step(&plan)?;
    }
    backend.save_snapshot(LANE, len)
}

/// Tokens a lane must hold.
#[must_use]
pub fn lane_capacity(context_len: usize) -> usize {
    // Every round adds a path, and holds a tree besides.
    context_len.saturating_add(NUM_ROUNDS * 8).saturating_add(takt_engine::engine::MAX_TREE_NODES + 1)
}

/// Time as microseconds.
pub(super) fn us(time_us: f64) -> Duration {
    Duration::try_from_secs_f64(time_us / 1e6).unwrap_or_default()
}
