//! Rounds of speculation: several tokens proposed, verified in one step.
//!
//! The planner says what a round may use ([`Round`]); the policy says what is worth it; what comes out is what plain decoding would say.

mod lanes;
mod verify;

use std::time::Duration;

use takt_eagle_spec::{
    drafter::{HeadDrafter, Rows},
    lookup::PromptLookup,
    policy::{Limits, Policy, Record},
    tree::{DraftTree, Drafter as _, Frontier, Growth, Proposals},
};
use takt_engine::{EngineError, TokenId, draft::DraftManifest, kv::LaneId};

use super::WorkerCore;
use crate::scheduler::{
    cost_table::{SectionKind, SectionShape},
    round::{MAX_LEVELS, MAX_PROPOSALS, MAX_TOP_K, MIN_MATCH_LEN, Round},
    round_costs::TypicalRound,
};
pub(super) use verify::Step;

/// Who proposes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Drafting {
    /// The engine's draft head; nobody without one.
    #[default]
    Head,
    /// What followed the last tokens before, in prompt and answer.
    Lookup,
    /// Nobody: plain decoding.
    Off,
}

impl std::str::FromStr for Drafting {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text {
            "auto" | "eagle3" => Ok(Self::Head),
            "lookup" => Ok(Self::Lookup),
            "off" => Ok(Self::Off),
            _ => Err(format!("unknown drafter {text:?}: expected auto, eagle3, lookup or off")),
        }
    }
}

/// The drafter in use, what was learnt about it, and memory kept from round to round.
pub(super) struct Speculation {
    drafting: Drafting,
    policy: Policy,
    lookup: PromptLookup,
    rows: Rows,
    growths: Vec<Growth>,
    trees: Vec<DraftTree>,
    /// Lanes that draft in this round, by slot.
    lanes: Vec<LaneId>,
    level: Vec<Frontier>,
    proposals: Proposals,
    /// What is left of them after a grammar had its say.
    allowed: Proposals,
    branch: Vec<TokenId>,
    /// Nodes kept of the tree at hand.
    path: Vec<usize>,
    /// Nodes kept of every tree, one path after another, with their lanes.
    paths: Vec<usize>,
    kept: Vec<(LaneId, usize)>,
    /// What drafting took in this section.
    spent: Duration,
    /// Whether anything was drafted in it.
    has_drafted: bool,
}

impl Speculation {
    /// For a backend whose head, where it has one, is described by `draft`.
    pub fn new(drafting: Drafting, draft: Option<&DraftManifest>, has_head: bool, num_lanes: usize) -> Self {
        let drafting = if drafting == Drafting::Head && !has_head { Drafting::Off } else { drafting };
        let record = draft.filter(|_| drafting == Drafting::Head).and_then(|draft| draft.record.as_ref());
        let record = record.map(|record| Record { acceptance: record.acceptance.clone() });
        let max_nodes = 1 + MAX_LEVELS * MAX_TOP_K * MAX_TOP_K;
        let num_slots = if drafting == Drafting::Off { 0 } else { num_lanes };
        Self {
            drafting,
            policy: Policy::new(record.as_ref()),
            lookup: PromptLookup::new(MIN_MATCH_LEN),
            rows: Rows::default(),
            growths: (0..num_slots).map(|_| Growth::with_capacity(max_nodes)).collect(),
            trees: (0..num_slots).map(|_| DraftTree::with_capacity(max_nodes)).collect(),
            lanes: Vec::with_capacity(num_slots),
            level: Vec::with_capacity(num_slots * MAX_TOP_K),
            proposals: Proposals::with_capacity(num_slots * MAX_TOP_K, MAX_TOP_K),
            allowed: Proposals::with_capacity(num_slots * MAX_TOP_K, MAX_TOP_K),
            branch: Vec::with_capacity(MAX_LEVELS + 1),
            path: Vec::with_capacity(max_nodes),
            paths: Vec::with_capacity(num_slots * max_nodes),
            kept: Vec::with_capacity(num_slots),
            spent: Duration::ZERO,
            has_drafted: false,
        }
    }

    /// What a round would like to use, on a backend that computes `max_nodes` nodes with logits in a step.
    pub fn wish(&self, max_nodes: usize) -> Option<Round> {
        let wish = Round {
            num_levels: MAX_LEVELS,
            top_k: MAX_TOP_K,
            num_proposals: MAX_PROPOSALS,
            max_nodes,
            has_head: self.drafting == Drafting::Head,
        };
        (self.drafting != Drafting::Off).then_some(wish)
    }

    /// Whether the head is to read along.
    pub fn follows(&self) -> bool {
        self.drafting == Drafting::Head
    }

    pub fn policy(&self) -> &Policy {
        &self.policy
    }

    /// The tree to verify in `lane`, if there is more in it than certain tokens.
    pub fn tree(&self, lane: LaneId) -> Option<&DraftTree> {
        let slot = self.lanes.iter().position(|&drafting| drafting == lane)?;
        self.trees.get(slot).filter(|tree| tree.num_drafted() > 0)
    }
}

impl WorkerCore {
    /// Drafts for the section's round: the trees are those of [`Speculation::tree`] then.
    pub(super) fn draft_trees(&mut self) -> Result<(), EngineError> {
        let speculation = &mut self.speculation;
        speculation.lanes.clear();
        (speculation.spent, speculation.has_drafted) = (Duration::ZERO, false);
        let Some(round) = self.section.round else { return Ok(()) };
        let began = self.clock.now();
        let (num_others, context_len) = self.choose_drafting_lanes(round)?;
        let num_slots = self.speculation.lanes.len();
        if num_slots == 0 {
            return Ok(());
        }
        let max_rows = self.backend.draft_facts().map_or(usize::MAX, |facts| facts.max_plan_rows);
        let limits = Limits {
            max_nodes: (self.num_certain() + num_slots * round.num_proposals)
                .min(round.max_nodes.saturating_sub(num_others)),
            max_levels: round.num_levels,
            top_k: round.top_k.min(max_rows / num_slots).max(1),
        };
        let costs = TypicalRound {
            table: &self.table,
            context_len,
            num_others,
            has_head: round.has_head,
            idle_gap: self.idle_gap,
        };
        let Speculation { policy, growths, .. } = &mut self.speculation;
        policy.begin_round(&growths[..num_slots], limits, &costs);
        while self.speculation.next_level(num_slots) {
            self.propose(limits.top_k, context_len)?;
            self.check_forms();
            self.speculation.add_level(num_slots)?;
        }
        let Speculation { policy, growths, trees, .. } = &mut self.speculation;
        policy.choose(&mut growths[..num_slots], &mut trees[..num_slots]);
        self.speculation.spent = self.clock.now().saturating_duration_since(began);
        Ok(())
    }

    fn num_certain(&self) -> usize {
        let slots = self.speculation.growths.iter().take(self.speculation.lanes.len());
        slots.map(Growth::num_certain).sum()
    }

    /// One call of the drafter for the level at hand.
    fn propose(&mut self, top_k: usize, context_len: usize) -> Result<(), EngineError> {
        let began = self.clock.now();
        let Speculation { drafting, lookup, rows, lanes, level, proposals, has_drafted, .. } =
            &mut self.speculation;
        proposals.clear();
        *has_drafted = true;
        if *drafting == Drafting::Lookup {
            let histories = lanes::Histories { lanes: &self.lanes, slots: lanes };
            return lookup.over(&histories).propose(level, top_k, proposals);
        }
        let mut drafter = HeadDrafter::with_rows(self.backend.as_mut(), lanes, std::mem::take(rows));
        let proposed = drafter.propose(level, top_k, proposals);
        *rows = drafter.into_rows();
        proposed?;
        let shape = SectionShape { kind: SectionKind::Draft, size: level.len(), context_len };
        self.table.record(shape, self.clock.now().saturating_duration_since(began));
        Ok(())
    }

    /// Takes out what an answer's form does not allow, branch by branch.
    fn check_forms(&mut self) {
        let Speculation { lanes, level, proposals, allowed, branch, growths, .. } = &mut self.speculation;
        let has_form =
            |lane: LaneId| self.lanes.holder(lane).is_some_and(|active| active.sequence.is_bound());
        if !lanes.iter().any(|&lane| has_form(lane)) {
            return;
        }
        allowed.clear();
        for (idx, node) in level.iter().enumerate() {
            let growth = &growths[node.slot];
            let holder = self.lanes.holder_mut(lanes[node.slot]);
            let Some(active) = holder.filter(|active| active.sequence.is_bound()) else {
                proposals.list(idx).iter().for_each(|&proposal| allowed.push(proposal));
                allowed.end_list();
                continue;
            };
            branch.clear();
            let is_certain = |node: usize| node < growth.num_certain();
            let mut above = node.node;
            while !is_certain(above) {
                branch.extend(growth.frontier(node.slot, above).map(|frontier| frontier.token));
                above = growth.parent(above);
            }
            branch.reverse();
            // Behind a forced token that is not the last, proposals are not looked at.
            let counts = !is_certain(node.node) || node.node + 1 == growth.num_certain();
            for &proposal in proposals.list(idx).iter().filter(|_| counts) {
                branch.push(proposal.token);
                if active.sequence.num_allowed(branch) == branch.len() {
                    allowed.push(proposal);
                }
                branch.pop();
            }
            allowed.end_list();
        }
        std::mem::swap(proposals, allowed);
    }
}

impl Speculation {
    fn next_level(&mut self, num_slots: usize) -> bool {
        let Self { policy, growths, level, .. } = self;
        policy.next_level(&growths[..num_slots], level)
    }

    fn add_level(&mut self, num_slots: usize) -> Result<(), EngineError> {
        let Self { growths, level, proposals, .. } = self;
        growths[..num_slots]
            .iter_mut()
            .enumerate()
            .try_for_each(|(slot, growth)| growth.add_level(slot, level, proposals))
    }

    /// What drafting took in this section.
    pub fn spent(&self) -> Duration {
        self.spent
    }

    /// Whether `lane` drafted in this section.
    pub fn has_lane(&self, lane: LaneId) -> bool {
        self.lanes.contains(&lane)
    }
}

impl WorkerCore {
    /// Stops drafting with a head that does far worse than when the engine was built: then it is read wrongly, or does not belong here.
    pub(super) fn watch_drafter(&mut self) {
        if self.speculation.drafting == Drafting::Off {
            return;
        }
        if let Some(collapse) = self.speculation.policy.collapse() {
            self.stop_drafting(&collapse.to_string());
        }
    }

    /// Plain decoding from now on, and says why.
    pub(in crate::worker) fn stop_drafting(&mut self, reason: &str) {
        tracing::warn!("speculation is off: {reason}");
        self.speculation.drafting = Drafting::Off;
        (0..self.backend.capabilities().num_lanes).for_each(|lane| self.backend.follow(LaneId(lane), false));
        self.desk.note_no_speculation(reason.to_owned());
    }
}
