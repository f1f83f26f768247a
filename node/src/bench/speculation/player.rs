//! One answer by one method, timed part by part.

use std::time::{Duration, Instant};

use takt_eagle_spec::{
    drafter::{HeadDrafter, Rows},
    lookup::PromptLookup,
    policy::{Limits, Policy, Record},
    tree::{DraftTree, Drafter as _, Frontier, Growth, Proposals, TreeShape, grow},
    verify::walk,
};
use takt_engine::{
    EngineError, TokenId,
    backend::Backend,
    kv::{LaneId, SnapshotId},
    sampler::{Sampler, SamplingParams},
    step::{Detail, LogitsWanted, StepPlan},
};

use super::{
    method::{Method, Proposer},
    tally::Sums,
};
use crate::scheduler::{
    cost_table::{CostTable, SectionKind, SectionShape},
    round::{MAX_LEVELS, MAX_PROPOSALS, MAX_TOP_K, MIN_MATCH_LEN},
    round_costs::TypicalRound,
};

/// The lane everything is played in.
pub const LANE: LaneId = LaneId(0);
/// What the worker allows a round, so that the adaptive rows are what a node does: levels, width, proposals, tokens of a match.
pub const LIMITS: Limits = Limits { max_nodes: 1 + MAX_PROPOSALS, max_levels: MAX_LEVELS, top_k: MAX_TOP_K };

/// A prompt that was read: once with the head reading along, once without.
#[derive(Debug)]
pub struct ReadPrompt {
    tokens: Vec<TokenId>,
    /// The first token of the answer.
    first: TokenId,
    warm: Option<(SnapshotId, Duration)>,
    cold: (SnapshotId, Duration),
}

/// Plays answers in one lane.
pub struct Player<'a> {
    backend: &'a mut dyn Backend,
    table: CostTable,
    record: Option<Record>,
    has_head: bool,
    eos: Vec<TokenId>,
    max_tokens: usize,
    policies: [Policy; 2],
    sampler: Sampler,
    lookup: PromptLookup,
    rows: Rows,
    plan: StepPlan,
    growths: [Growth; 1],
    trees: [DraftTree; 1],
    level: Vec<Frontier>,
    proposals: Proposals,
    path: Vec<usize>,
    /// Prompt and answer.
    history: Vec<TokenId>,
    prompt_len: usize,
}

impl std::fmt::Debug for Player<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Player").field("has_head", &self.has_head).finish_non_exhaustive()
    }
}

impl<'a> Player<'a> {
    /// For answers up to one of `eos` or `max_tokens`; `table` holds what sections cost here, `record` what the head did when it was built.
    ///
    /// # Errors
    /// Never for greedy decoding.
    pub fn new(
        backend: &'a mut dyn Backend,
        table: CostTable,
        record: Option<Record>,
        (eos, max_tokens): (Vec<TokenId>, usize),
    ) -> Result<Self, EngineError> {
        let has_head = backend.draft_facts().is_some();
        let max_nodes = 1 + LIMITS.max_levels * LIMITS.top_k * LIMITS.top_k;
        Ok(Self {
            backend,
            table,
            has_head,
            eos,
            max_tokens,
            policies: [Policy::new(record.as_ref()), Policy::new(None)],
            record,
            sampler: Sampler::new(&SamplingParams::default())?,
            lookup: PromptLookup::new(MIN_MATCH_LEN),
            rows: Rows::default(),
            plan: StepPlan::default(),
            growths: [Growth::with_capacity(max_nodes)],
            trees: [DraftTree::with_capacity(max_nodes)],
            level: Vec::new(),
            proposals: Proposals::default(),
            path: Vec::new(),
            history: Vec::new(),
            prompt_len: 0,
        })
    }

    /// Forgets what the policies have learnt: every pass over the prompts begins as a node does.
    pub fn begin_pass(&mut self) {
        self.policies = [Policy::new(self.record.as_ref()), Policy::new(None)];
    }

    /// What the policy has to say against the head, if anything.
    #[must_use]
    pub fn collapse(&self) -> Option<String> {
        self.policies[0].collapse().map(|collapse| collapse.to_string())
    }

    /// What sections cost here, as far as it is known.
    #[must_use]
    pub fn costs(&self) -> &CostTable {
        &self.table
    }

    /// Reads a prompt, with and without the head reading along.
    ///
    /// # Errors
    /// Whatever the backend reports.
    pub fn read(&mut self, tokens: &[TokenId]) -> Result<ReadPrompt, EngineError> {
        let (first, cold) = self.read_once(tokens, false)?;
        let warm = if self.has_head { Some(self.read_once(tokens, true)?.1) } else { None };
        Ok(ReadPrompt { tokens: tokens.to_vec(), first, warm, cold })
    }

    fn read_once(
        &mut self,
        tokens: &[TokenId],
        follows: bool,
    ) -> Result<(TokenId, (SnapshotId, Duration)), EngineError> {
        self.backend.truncate(LANE, 0)?;
        self.backend.follow(LANE, follows);
        let slice_len = self.backend.capabilities().max_step_tokens;
        let (began, mut first) = (Instant::now(), 0);
        let num_slices = tokens.len().div_ceil(slice_len.max(1));
        for (idx, slice) in tokens.chunks(slice_len.max(1)).enumerate() {
            let wanted = if idx + 1 == num_slices { LogitsWanted::Last } else { LogitsWanted::None };
            self.plan.clear();
            self.plan.push(LANE, slice, wanted);
            self.plan.last_needs(Detail::Chosen(self.sampler.state()));
            let mut output = self.backend.run_step(&self.plan)?;
            if wanted == LogitsWanted::Last {
                first = self.sampler.sample_row(&mut output.last_row(0)?)?;
            }
        }
        let took = began.elapsed();
        Ok((first, (self.backend.save_snapshot(LANE, tokens.len())?, took)))
    }

    /// Frees what was kept of a prompt.
    pub fn forget(&mut self, prompt: ReadPrompt) {
        self.backend.drop_snapshot(prompt.cold.0);
        if let Some((snapshot, _)) = prompt.warm {
            self.backend.drop_snapshot(snapshot);
        }
    }

    /// Answers `prompt` by `method`; [`Self::answer`] has the tokens then, and `sums` what it took.
    ///
    /// # Errors
    /// Whatever the backend reports.
    pub fn play(&mut self, prompt: &ReadPrompt, method: Method, sums: &mut Sums) -> Result<(), EngineError> {
        let warm = prompt.warm.filter(|_| method.proposer() == Some(Proposer::Head));
        let (snapshot, reading) = warm.unwrap_or(prompt.cold);
        self.backend.follow(LANE, warm.is_some());
        self.backend.restore_snapshot(LANE, snapshot)?;
        self.history.clear();
        self.history.extend_from_slice(&prompt.tokens);
        self.history.push(prompt.first);
        self.prompt_len = prompt.tokens.len();
        let began = Instant::now();
        while !has_ended(&self.history[self.prompt_len..], &self.eos, self.max_tokens) {
            match method {
                Method::Plain => self.plain_step(sums)?,
                Method::Fixed(proposer, shape) => self.fixed_round(proposer, shape, sums)?,
                Method::Adaptive(proposer) => self.adaptive_round(proposer, sums)?,
            }
        }
        sums.took += began.elapsed();
        sums.reading += reading;
        sums.num_tokens += self.answer().len() as u64 - 1; // the first came with the prompt
        Ok(())
    }

    /// Tokens of the last answer, its end included.
    #[must_use]
    pub fn answer(&self) -> &[TokenId] {
        &self.history[self.prompt_len..]
    }

    fn root(&self) -> TokenId {
        self.history.last().copied().unwrap_or(0)
    }

    fn plain_step(&mut self, sums: &mut Sums) -> Result<(), EngineError> {
        let root = self.root();
        self.trees[0].refill(root);
        self.step(sums, Duration::ZERO).map(|_| ())
    }

    fn is_ready(&self, proposer: Proposer) -> bool {
        proposer == Proposer::Lookup || self.backend.can_draft(LANE)
    }

    fn fixed_round(
        &mut self,
        proposer: Proposer,
        shape: TreeShape,
        sums: &mut Sums,
    ) -> Result<(), EngineError> {
        if !self.is_ready(proposer) {
            return self.plain_step(sums);
        }
        let (began, root) = (Instant::now(), self.root());
        self.trees[0] = match proposer {
            Proposer::Head => {
                let rows = std::mem::take(&mut self.rows);
                let mut drafter = HeadDrafter::with_rows(self.backend, &[LANE], rows);
                let tree = grow(&mut drafter, root, shape);
                self.rows = drafter.into_rows();
                tree?
            }
            Proposer::Lookup => grow(&mut self.lookup.over(&[&self.history[..]]), root, shape)?,
        };
        self.step(sums, began.elapsed()).map(|_| ())
    }

    /// As a node's worker does it, for one lane.
    fn adaptive_round(&mut self, proposer: Proposer, sums: &mut Sums) -> Result<(), EngineError> {
        let which = usize::from(proposer == Proposer::Lookup);
        if !self.is_ready(proposer) || self.policies[which].collapse().is_some() {
            return self.plain_step(sums);
        }
        let began = Instant::now();
        let context_len = self.history.len() + LIMITS.max_levels;
        self.growths[0].set_terminals(&self.eos);
        self.growths[0].start(&self.history[self.history.len() - 1..])?;
        let costs = TypicalRound {
            table: &self.table,
            context_len,
            num_others: 0,
            has_head: proposer == Proposer::Head,
            idle_gap: Duration::ZERO,
        };
        let facts = self.backend.capabilities();
        let max_nodes = LIMITS.max_nodes.min(facts.max_logits_rows).min(facts.max_step_tokens);
        self.policies[which].begin_round(&self.growths, Limits { max_nodes, ..LIMITS }, &costs);
        let mut has_drafted = false;
        while self.policies[which].next_level(&self.growths, &mut self.level) {
            has_drafted = true;
            self.propose(proposer, context_len)?;
            self.growths[0].add_level(0, &self.level, &self.proposals)?;
        }
        self.policies[which].choose(&mut self.growths, &mut self.trees);
        let drafting = began.elapsed();
        let (num_tokens, next) = self.step(sums, drafting)?;
        let policy = &mut self.policies[which];
        if self.trees[0].num_drafted() > 0 {
            policy.observe(&self.trees[0], &self.path, next);
        }
        let took = began.elapsed();
        if has_drafted {
            let plain = policy.plain_equivalent(num_tokens);
            policy.record_round(took, plain);
        } else {
            policy.record_plain(took);
        }
        Ok(())
    }

    fn propose(&mut self, proposer: Proposer, context_len: usize) -> Result<(), EngineError> {
        self.proposals.clear();
        if proposer == Proposer::Lookup {
            let histories = [&self.history[..]];
            return self.lookup.over(&histories).propose(&self.level, LIMITS.top_k, &mut self.proposals);
        }
        let began = Instant::now();
        let rows = std::mem::take(&mut self.rows);
        let mut drafter = HeadDrafter::with_rows(self.backend, &[LANE], rows);
        let proposed = drafter.propose(&self.level, LIMITS.top_k, &mut self.proposals);
        self.rows = drafter.into_rows();
        proposed?;
        let shape = SectionShape { kind: SectionKind::Draft, size: self.level.len(), context_len };
        self.table.record(shape, began.elapsed());
        Ok(())
    }

    /// Verifies the tree, or decodes its root alone; the tokens that came of it are in the history then. Returns their number and what was
    /// chosen last, `None` at the answer's end.
    fn step(&mut self, sums: &mut Sums, drafting: Duration) -> Result<(usize, Option<TokenId>), EngineError> {
        let (began, len_before, tree) = (Instant::now(), self.history.len(), &self.trees[0]);
        let is_round = tree.num_drafted() > 0;
        self.plan.clear();
        if is_round {
            self.plan.push_tree(LANE, &tree.tokens, &tree.parents);
        } else {
            self.plan.push(LANE, &tree.tokens, LogitsWanted::Last);
        }
        self.plan.last_needs(Detail::Chosen(self.sampler.state()));
        let mut output = self.backend.run_step(&self.plan)?;
        let (history, sampler) = (&mut self.history, &mut self.sampler);
        let choose = |node: usize| {
            let mut row = output.row(0, node)?;
            let token = sampler.sample_row(&mut row)?;
            history.push(token);
            let has_ended = has_ended(&history[self.prompt_len..], &self.eos, self.max_tokens);
            Ok::<_, EngineError>((!has_ended).then_some(token))
        };
        let next = walk(tree, choose, &mut self.path)?;
        if is_round {
            self.backend.keep(LANE, &self.path)?;
        }
        let took = began.elapsed();
        let (kind, size) =
            if is_round { (SectionKind::Verify, tree.len()) } else { (SectionKind::Decode, 1) };
        self.table.record(SectionShape { kind, size, context_len: len_before }, took);
        sums.add_step(tree, &self.path, drafting, took);
        Ok((self.history.len() - len_before, next))
    }
}

fn has_ended(answer: &[TokenId], eos: &[TokenId], max_tokens: usize) -> bool {
    answer.len() >= max_tokens || answer.last().is_some_and(|last| eos.contains(last))
}
