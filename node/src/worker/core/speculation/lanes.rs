//! Which lanes draft, and what they have said.

use takt_eagle_spec::lookup;
use takt_engine::{EngineError, TokenId, kv::LaneId};

use super::{Drafting, WorkerCore};
use crate::{
    scheduler::{lanes::Lanes, round::Round},
    worker::active::Active,
};

/// Prompt and answer of each slot, up to and with its root.
#[derive(Debug)]
pub(super) struct Histories<'a> {
    pub lanes: &'a Lanes<Active>,
    pub slots: &'a [LaneId],
}

impl lookup::Histories for Histories<'_> {
    fn history(&self, slot: usize) -> &[TokenId] {
        let active = self.slots.get(slot).and_then(|&lane| self.lanes.holder(lane));
        active.map_or(&[], |active| active.sequence.history())
    }
}

impl WorkerCore {
    /// Starts a tree for every lane of the section that can draft. Returns how many tokens the other lanes compute, and the longest context.
    pub(super) fn choose_drafting_lanes(&mut self, round: Round) -> Result<(usize, usize), EngineError> {
        let mut num_forced = self.section.num_forced;
        let (mut num_others, mut context_len) = (0, 0);
        // The policy may give all proposals of the round to one lane.
        let num_wanted = (self.section.decodes.len() * round.num_proposals).min(round.max_nodes);
        for &lane in &self.section.decodes {
            let Some(active) = self.lanes.holder_mut(lane) else { continue };
            let sequence = &active.sequence;
            let num_certain = sequence.pending().len().min(1 + num_forced);
            num_forced -= num_certain.saturating_sub(1);
            context_len = context_len.max(sequence.committed_len() + num_certain + round.num_levels);
            let is_ready = match self.speculation.drafting {
                Drafting::Head => self.backend.can_draft(lane),
                Drafting::Lookup => true,
                Drafting::Off => false,
            };
            // Behind forced tokens that are not computed yet nothing can be proposed.
            let is_whole = num_certain == sequence.pending().len();
            let slot = self.speculation.lanes.len();
            if !is_ready || !is_whole || sequence.room() < num_wanted {
                num_others += num_certain;
                continue;
            }
            let growth = &mut self.speculation.growths[slot];
            growth.set_terminals(sequence.eos_token_ids());
            growth.start(sequence.pending())?;
            self.speculation.lanes.push(lane);
        }
        Ok((num_others, context_len))
    }
}
