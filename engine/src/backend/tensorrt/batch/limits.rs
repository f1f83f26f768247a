//! What sections a plan takes, of which there are few shapes, and where their outputs may lie.

use std::ops::Range;

use super::{Profile, SectionShape};

/// Sizes of trees that are usual at a time: drafters ask for the same ones again and again.
const USUAL_TREES: usize = 2;

/// Shortest cache that is looked at: shorter ones are looked at as if they were so long.
const MIN_KV: usize = 256;

/// What a plan takes, and how its outputs may lie.
#[derive(Debug, Clone, Copy)]
pub(in crate::backend::tensorrt) struct BatchLimits {
    pub num_lanes: usize,
    /// Rows of a lane: what it holds, and `max_tree` more.
    pub lane_rows: usize,
    /// Most tokens of a prefill section.
    pub max_prefill: usize,
    /// Most tokens of a verify section's lane.
    pub max_tree: usize,
    /// The new rows come behind the whole lane, rather than in their places.
    pub appends: bool,
    pub max_step_tokens: usize,
    pub max_logits_rows: usize,
    /// A section's logits begin at a multiple of so many rows: at an address that TensorRT takes.
    pub logits_step: usize,
    /// The same of features.
    pub features_step: usize,
}

impl BatchLimits {
    /// Longest piece of a run whose logits are all wanted; whole steps of rows, so that pieces lie side by side.
    pub(super) fn piece_len(&self) -> usize {
        let step = self.logits_step.max(self.features_step);
        let whole = self.max_tree / step * step;
        if whole == 0 { self.max_tree } else { whole }
    }

    /// Sections of longer runs in a step, at most.
    pub(super) fn max_slices(&self) -> usize {
        self.num_lanes + self.max_step_tokens / self.piece_len().min(self.max_prefill).max(1)
    }

    pub(in crate::backend::tensorrt) fn decode_logits(&self) -> usize {
        self.num_lanes * self.logits_step
    }

    pub(super) fn verify_logits(&self) -> usize {
        self.decode_logits() + self.num_lanes.next_multiple_of(self.logits_step)
    }

    /// Rows of logits on the device.
    pub(in crate::backend::tensorrt) fn num_logits_places(&self) -> usize {
        let trees = (self.num_lanes * self.max_tree).next_multiple_of(self.logits_step);
        let pieces = self.max_logits_rows + self.max_slices() * self.logits_step;
        // One lane has either.
        let both = if self.num_lanes == 1 { trees.max(pieces) } else { trees + pieces };
        self.verify_logits() + both
    }

    pub(super) fn verify_features(&self) -> usize {
        self.num_lanes.next_multiple_of(self.features_step)
    }

    /// Rows of features on the device.
    pub(in crate::backend::tensorrt) fn num_feature_places(&self) -> usize {
        let trees = (self.num_lanes * self.max_tree).next_multiple_of(self.features_step);
        self.verify_features() + trees + self.max_step_tokens + self.max_slices() * self.features_step
    }

    /// Keys that may be seen where the last row looked at is `rows - 1`.
    pub(in crate::backend::tensorrt) fn kv(&self, rows: usize, sequence: usize) -> usize {
        if self.appends {
            return self.lane_rows + sequence;
        }
        rows.next_power_of_two().max(MIN_KV).min(self.lane_rows)
    }

    /// Every length of the cache that is looked at for single tokens.
    pub(in crate::backend::tensorrt) fn decode_kvs(&self) -> Vec<usize> {
        let mut kvs: Vec<usize> = Vec::new();
        let mut rows = 1;
        while kvs.last() != Some(&self.kv(self.lane_rows, 1)) {
            kvs.push(self.kv(rows, 1));
            rows = self.kv(rows, 1) + 1;
        }
        kvs
    }

    /// The lanes of a section that has something to do in the lanes `busy`, the first to the last: few different ones.
    pub(super) fn lanes(&self, busy: Range<usize>) -> Range<usize> {
        if busy.len() <= 1 {
            return busy;
        }
        0..busy.end.next_power_of_two().min(self.num_lanes)
    }

    /// Every set of lanes that [`Self::lanes`] gives.
    pub(in crate::backend::tensorrt) fn lane_sets(&self) -> impl Iterator<Item = Range<usize>> + use<> {
        let num_lanes = self.num_lanes;
        let several = (1..).map(|power| 1_usize << power).take_while(move |&len| len < 2 * num_lanes);
        let several = several.map(move |len| 0..len.min(num_lanes)).filter(|lanes| lanes.len() > 1);
        (0..num_lanes).map(|lane| lane..lane + 1).chain(several)
    }

    /// The shapes of all decode sections.
    pub(in crate::backend::tensorrt) fn decode_shapes(&self) -> Vec<SectionShape> {
        let kvs = self.decode_kvs();
        let shape = |lanes: &Range<usize>, kv| SectionShape {
            profile: Profile::Decode,
            first_lane: lanes.start,
            num_lanes: lanes.len(),
            sequence: 1,
            kv,
            num_logits: 1,
        };
        self.lane_sets()
            .flat_map(|lanes| kvs.iter().map(move |&kv| shape(&lanes, kv)).collect::<Vec<_>>())
            .collect()
    }

    /// Most shapes of decode sections and of trees of two sizes: as many as are captured at a time, so that none of these gives way to another.
    pub(in crate::backend::tensorrt) fn num_usual_shapes(&self) -> usize {
        (1 + USUAL_TREES) * self.lane_sets().count() * self.decode_kvs().len()
    }

    /// A tree's nodes rounded up, so that there are few shapes.
    pub(super) fn tree_len(&self, num_nodes: usize) -> usize {
        let power = num_nodes.next_power_of_two();
        if 2 * power > self.max_tree { self.max_tree } else { power }
    }
}
