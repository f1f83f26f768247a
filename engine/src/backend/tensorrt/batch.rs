//! A step as sections, each one execution of the plan: a pure function of what is asked and of what lanes hold.
//!
//! ```text
//! single tokens   one decode section over the lanes that take part
//! trees           one verify section over the lanes that take part
//! longer runs     prefill sections of their lane, one after another; in pieces through verify where every token's logits are wanted
//! ```
//!
//! A plan's batch is lanes that lie side by side. Each set of lanes is a shape with an execution and a graph of its own, so there are few: one lane,
//! whichever it is, or the first 2, 4, 8 … lanes, or all. Lanes among them take part whether they have anything to do or not, and shorter lanes are as
//! long as the longest. What pads them is a token like any other: it writes a row. That row lies behind everything its lane
//! holds ([`Batch::start`]): behind what is committed, behind a tree that waits for [`keep`](crate::backend::Backend::keep), and behind what this step
//! writes in another section. A lane has `max_tree` rows more than it holds tokens, so there is always room.

mod limits;

use std::ops::Range;

pub(super) use limits::BatchLimits;

use crate::{
    EngineError, Result,
    kv::{LaneBook, LaneId},
    step::{LogitsWanted, Segment, StepPlan},
};

/// Profiles of a plan.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) enum Profile {
    Prefill = 0,
    Decode = 1,
    Verify = 2,
}

impl Profile {
    /// Its place in a plan of so many: one that takes other weights has a single profile, for everything.
    pub(super) fn idx(self, num_profiles: usize) -> usize {
        if num_profiles == 1 { 0 } else { self as usize }
    }
}

/// What decides an execution: its profile, its lanes, the shapes of its tensors.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) struct SectionShape {
    pub profile: Profile,
    pub first_lane: usize,
    /// Lanes, those with nothing to do among them.
    pub num_lanes: usize,
    /// Tokens of each, padding included.
    pub sequence: usize,
    /// Keys that may be seen.
    pub kv: usize,
    /// Rows of logits of each, padding included.
    pub num_logits: usize,
}

/// Which tokens of a step a section computes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Work {
    /// All segments of one token.
    Singles,
    /// All trees of more.
    Trees,
    /// Tokens of one segment, counted from its first.
    Slice { segment: usize, first: usize, len: usize },
}

/// One execution.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Section {
    pub shape: SectionShape,
    pub work: Work,
    /// Row of logits on the device that is its first.
    pub logits_place: usize,
    /// Row of features on the device that is its first.
    pub feature_place: usize,
}

/// Tokens of one lane in a section.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Part {
    pub segment: usize,
    /// Its first token, counted from the segment's.
    pub first: usize,
    pub len: usize,
}

/// The sections of a step, and where their outputs lie.
#[derive(Debug)]
pub(super) struct Batch {
    limits: BatchLimits,
    sections: Vec<Section>,
}

impl Batch {
    pub(super) fn new(limits: BatchLimits) -> Self {
        Self { limits, sections: Vec::with_capacity(2 + limits.max_slices()) }
    }

    pub(super) fn sections(&self) -> &[Section] {
        &self.sections
    }

    /// Lays a checked `plan` out.
    ///
    /// # Errors
    /// [`EngineError::Capacity`] for a tree with more nodes than the plan takes.
    pub(super) fn lay_out(&mut self, plan: &StepPlan, book: &LaneBook) -> Result<()> {
        self.sections.clear();
        let max_tree = self.limits.max_tree;
        let too_large = |segment: &&Segment| segment.is_tree && segment.tokens.len() > max_tree;
        if let Some(segment) = plan.segments.iter().find(too_large) {
            let num_nodes = segment.tokens.len();
            let fact = format!("a tree of {num_nodes} nodes: the TensorRT plan takes {max_tree}");
            return Err(EngineError::Capacity(fact));
        }
        let limits = self.limits;
        self.add_lanes(plan, book, Work::Singles, (limits.decode_logits(), 0));
        self.add_lanes(plan, book, Work::Trees, (limits.verify_logits(), limits.verify_features()));
        self.add_slices(plan, book);
        Ok(())
    }

    /// One section of all lanes that have `work`.
    fn add_lanes(
        &mut self,
        plan: &StepPlan,
        book: &LaneBook,
        work: Work,
        (logits, features): (usize, usize),
    ) {
        let mut lanes: Option<Range<usize>> = None;
        let mut longest = 0;
        for segment in plan.segments.iter().filter(|segment| work_of(segment) == Some(work)) {
            let lane = segment.lane.0;
            let known = lanes.unwrap_or(lane..lane + 1);
            lanes = Some(known.start.min(lane)..known.end.max(lane + 1));
            longest = longest.max(segment.tokens.len());
        }
        let Some(lanes) = lanes.map(|busy| self.limits.lanes(busy)) else { return };
        let (profile, sequence) = match work {
            Work::Trees => (Profile::Verify, self.limits.tree_len(longest)),
            _ => (Profile::Decode, 1),
        };
        let rows = lanes.clone().map(|lane| start(plan, book, work, LaneId(lane)) + sequence).max();
        let shape = SectionShape {
            profile,
            first_lane: lanes.start,
            num_lanes: lanes.len(),
            sequence,
            kv: self.limits.kv(rows.unwrap_or(0), sequence),
            num_logits: sequence,
        };
        self.sections.push(Section { shape, work, logits_place: logits, feature_place: features });
    }

    fn add_slices(&mut self, plan: &StepPlan, book: &LaneBook) {
        let limits = self.limits;
        let trees = self.sections.iter().find(|section| section.work == Work::Trees);
        let trees_rows = trees.map_or(0, |section| section.shape.num_lanes * section.shape.sequence);
        let mut logits = limits.verify_logits() + trees_rows.next_multiple_of(limits.logits_step);
        let mut features = limits.verify_features() + trees_rows.next_multiple_of(limits.features_step);
        let mut num_tails = 0;
        for (idx, segment) in plan.segments.iter().enumerate() {
            if work_of(segment).is_some() {
                continue;
            }
            let wants_all = segment.logits == LogitsWanted::All;
            let (profile, longest) = match wants_all {
                true => (Profile::Verify, limits.piece_len()),
                false => (Profile::Prefill, limits.max_prefill),
            };
            for first in (0..segment.tokens.len()).step_by(longest) {
                let len = longest.min(segment.tokens.len() - first);
                let rows = book.committed_len(segment.lane) + first + len;
                let shape = SectionShape {
                    profile,
                    first_lane: segment.lane.0,
                    num_lanes: 1,
                    sequence: len,
                    kv: limits.kv(rows, len),
                    num_logits: if wants_all { len } else { 1 },
                };
                let logits_place = if wants_all { logits } else { num_tails * limits.logits_step };
                let work = Work::Slice { segment: idx, first, len };
                self.sections.push(Section { shape, work, logits_place, feature_place: features });
                features += len.next_multiple_of(limits.features_step);
                if wants_all {
                    logits += len.next_multiple_of(limits.logits_step);
                }
            }
            num_tails += usize::from(!wants_all);
        }
    }

    /// Calls `put` with each wanted row of logits of segment `segment_idx`, counted from the segment's first, and its place on the device.
    pub(super) fn logits_places(
        &self,
        plan: &StepPlan,
        segment_idx: usize,
        mut put: impl FnMut(usize, usize),
    ) {
        let segment = &plan.segments[segment_idx];
        for (section, part) in self.parts_of(plan, segment_idx) {
            let shape = section.shape;
            let place = section.logits_place + (segment.lane.0 - shape.first_lane) * shape.num_logits;
            match segment.logits {
                LogitsWanted::None => {}
                LogitsWanted::Last if part.first + part.len < segment.tokens.len() => {}
                LogitsWanted::Last => put(0, place),
                LogitsWanted::All => (0..part.len).for_each(|row| put(part.first + row, place + row)),
            }
        }
    }

    /// Calls `put` with each run of rows on the device that have lists of their own, and the segments of which they are: those of all single tokens, of all
    /// trees, the last row of each prompt, and all rows of texts that are scored, of which there are a power of two, so that there are few graphs of them.
    /// They do not meet.
    pub(super) fn listed<'p>(
        &self,
        plan: &'p StepPlan,
        mut put: impl FnMut(&mut dyn Iterator<Item = &'p Segment>, Range<usize>),
    ) {
        let mut scored: Option<Range<usize>> = None;
        for section in &self.sections {
            let SectionShape { num_lanes, num_logits, .. } = section.shape;
            let rows = section.logits_place..section.logits_place + num_lanes * num_logits;
            match section.work {
                Work::Singles | Work::Trees => {
                    let mut segments =
                        plan.segments.iter().filter(|segment| work_of(segment) == Some(section.work));
                    put(&mut segments, rows);
                }
                Work::Slice { segment, first, len } => {
                    let segment = &plan.segments[segment];
                    if segment.logits == LogitsWanted::All {
                        scored = Some(scored.map_or(rows.clone(), |known| known.start..rows.end));
                    } else if first + len == segment.tokens.len() {
                        put(&mut std::iter::once(segment), rows);
                    }
                }
            }
        }
        if let Some(rows) = scored {
            let is_scored =
                |segment: &&Segment| work_of(segment).is_none() && segment.logits == LogitsWanted::All;
            let end = rows.start + rows.len().next_power_of_two();
            let rows = rows.start..end.min(self.limits.num_logits_places());
            put(&mut plan.segments.iter().filter(is_scored), rows);
        }
    }

    /// Calls `put` with runs of tokens of segment `segment_idx`: the first, counted from the segment's, its place among features on the device,
    /// and how many lie side by side.
    pub(super) fn feature_places(
        &self,
        plan: &StepPlan,
        segment_idx: usize,
        mut put: impl FnMut(usize, usize, usize) -> Result<()>,
    ) -> Result<()> {
        let lane = plan.segments[segment_idx].lane.0;
        self.parts_of(plan, segment_idx).try_for_each(|(section, part)| {
            let before = (lane - section.shape.first_lane) * section.shape.sequence;
            put(part.first, section.feature_place + before, part.len)
        })
    }

    fn parts_of<'a>(
        &'a self,
        plan: &'a StepPlan,
        segment_idx: usize,
    ) -> impl Iterator<Item = (&'a Section, Part)> + 'a {
        let lane = plan.segments[segment_idx].lane;
        let parts =
            self.sections.iter().filter_map(move |section| Some((section, part(plan, section.work, lane)?)));
        parts.filter(move |(_, part)| part.segment == segment_idx)
    }
}

/// The work that `segment` is part of together with others; `None` for what has sections of its own.
fn work_of(segment: &Segment) -> Option<Work> {
    match segment.tokens.len() {
        1 => Some(Work::Singles),
        _ => segment.is_tree.then_some(Work::Trees),
    }
}

/// What of `plan` a section of `work` computes in `lane`; `None` where the lane has nothing to do.
pub(super) fn part(plan: &StepPlan, work: Work, lane: LaneId) -> Option<Part> {
    if let Work::Slice { segment, first, len } = work {
        let is_its_lane = plan.segments.get(segment).is_some_and(|segment| segment.lane == lane);
        return is_its_lane.then_some(Part { segment, first, len });
    }
    let mut segments = plan.segments.iter().enumerate();
    let (idx, segment) = segments.find(|(_, segment)| segment.lane == lane)?;
    (work_of(segment) == Some(work)).then_some(Part { segment: idx, first: 0, len: segment.tokens.len() })
}

/// The row of `lane` that the first token of a section of `work` is written to. Of a lane with nothing to do it is behind all that it holds, and all
/// that the step writes there in other sections.
pub(super) fn start(plan: &StepPlan, book: &LaneBook, work: Work, lane: LaneId) -> usize {
    let committed_len = book.committed_len(lane);
    if let Some(part) = part(plan, work, lane) {
        return committed_len + part.first;
    }
    let written = plan.segments.iter().find(|segment| segment.lane == lane);
    committed_len + book.tree_len(lane).max(written.map_or(0, |segment| segment.tokens.len()))
}

#[cfg(test)]
pub(in crate::backend::tensorrt) mod tests;
