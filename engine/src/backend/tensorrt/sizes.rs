//! How large everything is that a backend of some plan takes, known before the plan is loaded, and that the plan's profiles are for it.

use takt_kernels_cu::launch::KvFormat;
use takt_tensorrt::{runtime::Plan, tensor::ShapeRange};

use super::{
    batch::{BatchLimits, Profile, SectionShape},
    input::{ALIGNMENT, InputFacts, InputLayout},
    memory::Memory,
    options::TensorRtOptions,
    ports::{INPUT_IDS, LOGITS_ROWS, MASK},
};
use crate::{
    EngineError, Result,
    backend::device::{
        lanes::{LaneLayout, LaneSizes},
        lists::ListRoom,
        rows::{RowLimits, StepRows},
    },
    dir::{PlanEntry, PlanForm, PlanKv},
    spec::DecoderSpec,
};

/// Runs of tokens of which what they are about is in pinned memory at a time.
const RUNS_AT_ONCE: usize = 2;

/// Sizes of one backend.
#[derive(Debug, Clone, Copy)]
pub(super) struct Sizes {
    pub limits: BatchLimits,
    pub rows: RowLimits,
    pub lanes: LaneLayout,
    /// Of a value of the cache.
    pub value_bytes: usize,
    /// From a lane's keys to the next one's.
    pub lane_bytes: usize,
    /// Rows of logits and of features, new rows that are appended: bytes on the device.
    pub logits_bytes: usize,
    pub features_bytes: usize,
    /// Of one tensor of new rows; 0 where they are not appended.
    pub present_bytes: usize,
    /// Of the lists' four buffers.
    pub list_bytes: [usize; 4],
    /// Where decode sections, verify sections and runs of tokens have what they are about in pinned memory, and where that ends.
    pub pinned: [usize; 4],
    /// What the largest section is about.
    pub input_bytes: usize,
}

impl Sizes {
    /// Of `options` with a plan that `entry` describes; what `facts` tells of integers is a guess until the plan is loaded, and may be too large.
    ///
    /// # Errors
    /// [`EngineError::Unsupported`] for lanes that TensorRT cannot be pointed at; [`EngineError::Backend`] for sizes past the address space.
    pub(super) fn new(
        spec: &DecoderSpec,
        entry: &PlanEntry,
        options: &TensorRtOptions,
        facts: InputFacts,
    ) -> Result<Self> {
        let features_len = entry.captured.len() * spec.hidden_size;
        let limits = BatchLimits {
            num_lanes: options.num_lanes,
            lane_rows: entry.lane_rows,
            max_prefill: entry.max_prefill,
            max_tree: entry.max_tree,
            appends: entry.form == PlanForm::Primitives,
            max_step_tokens: options.max_step_tokens,
            max_logits_rows: options.max_logits_rows,
            logits_step: rows_of_step(spec.vocab_size),
            features_step: rows_of_step(features_len),
        };
        let rows = RowLimits {
            max_segments: options.num_lanes,
            max_rows: options.max_logits_rows,
            max_places: limits.num_logits_places(),
        };
        let lane_capacity = options.lane_capacity.unwrap_or(entry.lane_capacity);
        let value_bytes = entry.kv.element_bytes();
        let lanes = LaneSizes {
            // Which 16 bits, and what codes of 8 are multiplied by, nobody asks who moves rows.
            format: match entry.kv {
                PlanKv::Plain => KvFormat::Bf16,
                PlanKv::Fp8 => KvFormat::Fp8,
            },
            has_scales: false,
            num_lanes: options.num_lanes,
            capacity: lane_capacity,
            rows: entry.lane_rows,
        };
        let lane_bytes = spec.kv_dim() * entry.lane_rows * value_bytes;
        if options.num_lanes > 1 && !lane_bytes.is_multiple_of(ALIGNMENT) {
            return Err(EngineError::Unsupported(format!(
                "lanes of {} rows take {lane_bytes} bytes a layer, of which TensorRT takes multiples of {ALIGNMENT}: use one lane, or build the plan \
                 with another --plan-context",
                entry.lane_rows
            )));
        }
        let shapes = largest(&limits);
        let input = shapes.map(|shape| InputLayout::new(shape, facts).num_bytes);
        let [decode, verify, run, piece] = input;
        let mut pinned = [0, decode, decode + verify, 0];
        pinned[3] = pinned[2] + RUNS_AT_ONCE * run.max(piece);
        let most_tokens = shapes.map(|shape| shape.num_lanes * shape.sequence).into_iter().max().unwrap_or(0);
        Ok(Self {
            limits,
            rows,
            lanes: LaneLayout::new(spec, lanes),
            value_bytes,
            lane_bytes,
            logits_bytes: limits.num_logits_places() * spec.vocab_size * size_of::<f32>(),
            features_bytes: limits.num_feature_places() * features_len * size_of::<f32>(),
            present_bytes: if limits.appends {
                Memory::present_bytes(spec, most_tokens, value_bytes)
            } else {
                0
            },
            list_bytes: ListRoom::num_bytes(limits.num_logits_places(), spec.vocab_size)?,
            pinned,
            input_bytes: input.into_iter().max().unwrap_or(0),
        })
    }

    /// Device memory beside weights, lanes and what TensorRT takes while it runs.
    pub(super) fn workspace_bytes(&self, spec: &DecoderSpec) -> usize {
        let present = 2 * spec.num_layers * self.present_bytes;
        let lists: usize = self.list_bytes.iter().sum();
        self.logits_bytes + self.features_bytes + present + lists + self.input_bytes
    }

    /// Pinned memory of the host.
    pub(super) fn pinned_bytes(&self, spec: &DecoderSpec) -> usize {
        self.pinned[3] + StepRows::pinned_bytes(self.rows, spec.vocab_size) + self.lanes.pinned_bytes()
    }

    /// That `plan`'s profiles are for everything that sections can be.
    ///
    /// # Errors
    /// [`EngineError::Unsupported`] with what a profile has and what is expected.
    pub(super) fn check_profiles(&self, plan: &Plan, entry: &PlanEntry) -> Result<()> {
        let num_profiles = plan.num_profiles();
        let (expected, what) = match entry.refittable {
            // TensorRT gives no plan of several other weights.
            Some(_) => (1, "one for everything, as it takes other weights"),
            None => (3, "prefill, decode, verify"),
        };
        if num_profiles != expected {
            return Err(EngineError::Unsupported(format!(
                "the TensorRT plan has {num_profiles} profiles, expected {expected}: {what}; build it again with this version"
            )));
        }
        for largest in largest(&self.limits) {
            let profile = largest.profile.idx(num_profiles);
            let smallest = SectionShape {
                num_lanes: 1,
                sequence: 1,
                kv: self.limits.kv(1, 1).min(largest.kv),
                num_logits: 1,
                ..largest
            };
            for shape in [smallest, largest] {
                let SectionShape { num_lanes, sequence, kv, num_logits, .. } = shape;
                check_range(&plan.profile_shape(INPUT_IDS, profile)?, INPUT_IDS, &[num_lanes, sequence])?;
                check_range(&plan.profile_shape(MASK, profile)?, MASK, &[num_lanes, sequence, kv])?;
                check_range(
                    &plan.profile_shape(LOGITS_ROWS, profile)?,
                    LOGITS_ROWS,
                    &[num_lanes, num_logits],
                )?;
            }
        }
        Ok(())
    }
}

fn check_range(range: &ShapeRange, name: &str, shape: &[usize]) -> Result<()> {
    let holds = range.min.len() == shape.len()
        && shape
            .iter()
            .zip(range.min.iter().zip(&range.max))
            .all(|(len, (min, max))| (min..=max).contains(&len));
    if holds {
        return Ok(());
    }
    Err(EngineError::Unsupported(format!(
        "the TensorRT plan takes {name} of {:?} to {:?}, {shape:?} is expected: build it again with this version, `takt build DIR --tensorrt \
         --plans-only`",
        range.min, range.max
    )))
}

/// Rows of so many F32 values that lie between addresses that TensorRT takes.
fn rows_of_step(len: usize) -> usize {
    let values = ALIGNMENT / size_of::<f32>();
    if len == 0 { 1 } else { values / gcd(len, values) }
}

fn gcd(a: usize, b: usize) -> usize {
    if b == 0 { a } else { gcd(b, a % b) }
}

/// The largest decode section, verify section, run of tokens, and piece of a run whose logits are all wanted.
fn largest(limits: &BatchLimits) -> [SectionShape; 4] {
    let shape = |profile, num_lanes, sequence: usize, num_logits| SectionShape {
        profile,
        first_lane: 0,
        num_lanes,
        sequence,
        kv: limits.kv(limits.lane_rows, sequence),
        num_logits,
    };
    let tree = limits.max_tree;
    [
        shape(Profile::Decode, limits.num_lanes, 1, 1),
        shape(Profile::Verify, limits.num_lanes, tree, tree),
        shape(Profile::Prefill, 1, limits.max_prefill, 1),
        shape(Profile::Verify, 1, tree, tree),
    ]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rows_begin_where_tensorrt_takes_addresses() {
        for (len, step) in [(151_936, 1), (128_256, 1), (96, 2), (320, 1), (32_001, 64), (50, 32), (0, 1)] {
            assert_eq!(rows_of_step(len), step, "{len}");
            assert!((step * len * size_of::<f32>()).is_multiple_of(ALIGNMENT));
        }
    }
}
