//! One section: run it, advance its sequences, learn what it cost.

use std::time::{Duration, Instant};

use takt_engine::{EngineError, kv::LaneId};

use super::{WorkerCore, speculation::Step};
use crate::{
    request::Status,
    scheduler::{
        class::Class,
        cost_table::{SectionKind, SectionShape},
    },
};

/// What a section computes, by size.
#[derive(Debug, Clone, Copy, Default)]
struct Sizes {
    /// Tokens of decoding lanes that are no proposals.
    num_decoded: usize,
    /// Nodes of trees, those that are no proposals included.
    num_nodes: usize,
    slice_len: usize,
    /// Longest context at its end.
    context_len: usize,
}

/// What a section brought besides its tokens.
#[derive(Debug, Clone, Copy, Default)]
struct Progress {
    /// Time spent on masks.
    choosing: Duration,
    /// Tokens computed for good in the lanes that drafted.
    num_tokens: usize,
}

impl WorkerCore {
    pub(super) fn run_section(&mut self, started: Instant) -> Result<(), EngineError> {
        // In this order: read in between, the slice counts twice rather than not at all.
        let occupied = self.section.bound + self.limits.idle_gap;
        self.desk.ledger().begin_section(started.checked_add(occupied).unwrap_or(started));
        self.draft_trees()?;
        let sizes = self.fill_plan();
        if let Some((lane, _)) = self.section.prefill
            && let Some(active) = self.lanes.holder_mut(lane)
        {
            active.owe_after(sizes.slice_len, &self.limits, self.table.bounds());
        }
        self.steer(sizes.num_decoded);
        let progress = self.run_plan()?;
        self.take_snapshot()?;
        self.send_text();
        let took = self.clock.now().saturating_duration_since(started).saturating_sub(progress.choosing);
        self.desk.ledger().end_section();
        // A round spares the gaps of the steps whose place it takes.
        self.speculation.learn(took + self.idle_gap, progress.num_tokens);
        self.learn(sizes, took.saturating_sub(self.speculation.spent()));
        self.charge_background(took + self.limits.idle_gap);
        self.watch_drafter();
        Ok(())
    }

    fn fill_plan(&mut self) -> Sizes {
        self.plan.clear();
        let mut sizes = Sizes::default();
        let mut num_forced = self.section.num_forced;
        for &lane in &self.section.decodes {
            let Some(active) = self.lanes.holder_mut(lane) else { continue };
            let num_tokens = if let Some(tree) = self.speculation.tree(lane) {
                self.plan.push_tree(lane, &tree.tokens, &tree.parents);
                self.plan.last_needs(active.sequence.tree_detail());
                sizes.num_nodes += tree.len();
                tree.num_certain
            } else {
                active.sequence.push_to(&mut self.plan, lane, 1 + num_forced)
            };
            num_forced -= num_tokens.saturating_sub(1);
            sizes.num_decoded += num_tokens;
            sizes.context_len = sizes.context_len.max(active.sequence.committed_len() + num_tokens);
        }
        if let Some((lane, len)) = self.section.prefill
            && let Some(active) = self.lanes.holder_mut(lane)
        {
            sizes.slice_len = active.sequence.push_to(&mut self.plan, lane, len);
            sizes.context_len = sizes.context_len.max(active.sequence.committed_len() + sizes.slice_len);
        }
        sizes
    }

    /// Runs the plan, advances every sequence in it, keeps what was accepted of trees.
    fn run_plan(&mut self) -> Result<Progress, EngineError> {
        let Self { backend, lanes, speculation, table, clock, plan, ended, .. } = self;
        let mut output = backend.run_step(plan)?;
        let now = clock.now();
        let mut progress = Progress::default();
        let mut chose = |took: Duration| {
            table.record_mask(took);
            progress.choosing += took;
        };
        ended.clear();
        speculation.forget_paths();
        for (segment_idx, segment) in plan.segments.iter().enumerate() {
            let Some(active) = lanes.holder_mut(segment.lane) else { continue };
            let step = Step { segment_idx, clock: clock.as_ref(), now };
            let has_ended = if segment.is_tree {
                let (has_ended, num_kept) =
                    speculation.walk(segment.lane, active, (step, &mut output), &mut chose)?;
                progress.num_tokens += num_kept;
                has_ended
            } else {
                if speculation.has_lane(segment.lane) {
                    progress.num_tokens += segment.tokens.len();
                }
                active.sequence.commit(segment.tokens.len())?;
                active.sequence.awaits_logits()
                    && step.choose(active, output.last_row(segment_idx)?, &mut chose)?
            };
            if has_ended {
                ended.push(segment.lane);
            }
        }
        speculation.kept().try_for_each(|(lane, path)| backend.keep(lane, path))?;
        Ok(progress)
    }

    /// Leads answers that have a form towards their end as their time runs out: from twice the time on that their closing's bytes would take
    /// as tokens nothing new begins, and from once on only what shortens the closing is allowed.
    fn steer(&mut self, num_decoded: usize) {
        let now = self.clock.now();
        for &lane in &self.section.decodes {
            let Some(active) = self.lanes.holder_mut(lane) else { continue };
            let Some(reply_by) = active.job(None).reply_by(&self.limits) else { continue };
            let shape = SectionShape {
                kind: SectionKind::Decode,
                size: num_decoded,
                context_len: active.sequence.committed_len() + 1,
            };
            let step = self.table.typical(shape);
            active.steer(reply_by.saturating_duration_since(now + step), step + self.limits.idle_gap);
        }
    }

    /// Learns what the section's step cost, and says so when nothing can be promised any more.
    fn learn(&mut self, sizes: Sizes, took: Duration) {
        let Sizes { num_decoded, num_nodes, slice_len, context_len } = sizes;
        let shape = |kind, size| SectionShape { kind, size, context_len };
        match (num_decoded, slice_len) {
            (0, 0) => {}
            // Trees, and lanes beside them that compute what they would anyway.
            _ if num_nodes > 0 => self.table.record(shape(SectionKind::Verify, self.plan.tokens.len()), took),
            // Forced tokens of one lane cost less than as many lanes: they teach nothing about those.
            (num, 0) if num > self.plan.segments.len() => {}
            (num, 0) => self.table.record(shape(SectionKind::Decode, num), took),
            (0, len) => self.table.record(shape(SectionKind::Prefill, len), took),
            (num, len) => {
                // Together they cost at most what they cost apart; the decode step's part is known well.
                let decode = self.table.typical(shape(SectionKind::Decode, num));
                self.table.record(shape(SectionKind::Prefill, len), took.saturating_sub(decode));
            }
        }
        if let Some(reason) = self.table.no_promise()
            && self.desk.is_trusted()
        {
            tracing::warn!("no deadline is promised: {reason}");
            self.desk.withdraw(reason.to_string());
        }
    }

    /// Charges background work for its part of a section that took `took`, drafting included.
    fn charge_background(&mut self, took: Duration) {
        let is_background = |lane: LaneId| {
            self.jobs.iter().any(|job| job.lane == Some(lane) && job.class == Class::Background)
        };
        let segments = self.plan.segments.iter();
        let num_background: usize =
            segments.filter(|segment| is_background(segment.lane)).map(|segment| segment.tokens.len()).sum();
        if num_background > 0 {
            self.server.charge(took.mul_f64(num_background as f64 / self.plan.tokens.len() as f64));
        }
    }

    /// Keeps the system prompt's KV when this section's slice ended exactly there.
    fn take_snapshot(&mut self) -> Result<(), EngineError> {
        let Some((lane, _)) = self.section.prefill else { return Ok(()) };
        let Some(active) = self.lanes.holder_mut(lane) else { return Ok(()) };
        let len = active.sequence.committed_len();
        if active.snapshot_at != Some(len) {
            return Ok(());
        }
        active.snapshot_at = None;
        let snapshot = match self.backend.save_snapshot(lane, len) {
            Ok(snapshot) => snapshot,
            // It would have spared a later request some work; this one has all it needs.
            Err(error) if error.is_capacity() => {
                self.tell_of_short_memory(&error);
                return Ok(());
            }
            Err(error) => return Err(error),
        };
        let evicted = self.prefixes.insert(&active.sequence.prompt_token_ids()[..len], snapshot);
        if let Some(evicted) = evicted {
            self.backend.drop_snapshot(evicted);
        }
        Ok(())
    }

    /// Once, as it goes on being so.
    fn tell_of_short_memory(&mut self, error: &EngineError) {
        if !std::mem::replace(&mut self.has_told_of_short_memory, true) {
            tracing::warn!(
                "no memory to keep a prompt's beginning for later requests, which then compute it again: {error}; lower [scheduler] \
                 prefix_snapshots or the lanes' size"
            );
        }
    }

    /// Sends every lane's new text, ends complete answers and those nobody waits for any more.
    fn send_text(&mut self) {
        for i in 0..self.plan.segments.len() {
            let lane = self.plan.segments[i].lane;
            let is_gone = self.lanes.holder_mut(lane).is_some_and(|active| !active.stream());
            if self.ended.contains(&lane) {
                self.end(lane, Status::Complete, None);
            } else if is_gone {
                self.end(lane, Status::Cancelled, Some("the asker is gone"));
            }
        }
    }
}
