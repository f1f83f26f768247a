//! Shapes that a plan is optimized for, from the inputs of an exported model: one profile for each way a backend runs it.
//!
//! | profile | batch | sequence | logits |
//! |---|---|---|---|
//! | `prefill` | 1 | 1 to a slice | 1 |
//! | `decode` | 1 to all lanes | 1 | 1 |
//! | `verify` | 1 to all lanes | 1 to a tree | as the sequence |
//!
//! With S rows of a lane's cache: in the form `operators` the cache is `[batch, G, S, d]`, of which `kv` rows, 1 to S, are looked at. In the form
//! `primitives` all of it is `past`, S in every profile, since the mask decides what is seen and a length that is known is faster; `kv` is
//! S + sequence.
//!
//! A plan that takes other weights has one profile, `any`, since TensorRT gives it no more: from the smallest to the largest of the three, chosen for a
//! decode step of one lane, which a loop waits for most.

use takt_tensorrt::{build::Profile, tensor::ShapeRange};

use crate::{
    BuildError, Result,
    export::{Dim, Form, Port},
};

/// Nodes of a tree that verification is optimized for: what pays off on devices that read memory for each.
const USUAL_TREE: usize = 16;
/// Tokens of a slice that prefill is optimized for: a node's slices, unless its `max_prefill_slice_tokens` says otherwise. A longer prompt comes in many of
/// them, so that other lanes' steps come between; only a prompt that is computed alone, as by `takt generate`, has slices of the largest length.
const USUAL_SLICE: usize = 64;

/// What profiles follow from.
#[derive(Debug, Clone, Copy)]
pub(super) struct Extents {
    pub form: Form,
    pub num_lanes: usize,
    /// S: rows of a lane's cache.
    pub lane_rows: usize,
    /// Most tokens of a slice.
    pub max_prefill: usize,
    /// Most rows of a lane in a verification.
    pub max_tree: usize,
    /// One profile for everything.
    pub is_single: bool,
}

/// Smallest, usual and largest.
type Sizes = [usize; 3];

/// Of each named dimension that depends on the profile.
struct Steps {
    batch: Sizes,
    sequence: Sizes,
    logits: Sizes,
}

impl Extents {
    /// All profiles of a model with these inputs, in the order of their indices.
    pub(super) fn profiles(&self, inputs: &[Port]) -> Result<Vec<Profile>> {
        // One lane is what a robot's loop waits for, however many there may be.
        let lanes = [1, 1, self.num_lanes];
        let tree = [1, USUAL_TREE.min(self.max_tree), self.max_tree];
        if self.is_single {
            let longest = self.max_prefill.max(self.max_tree);
            let any = Steps { batch: lanes, sequence: [1, 1, longest], logits: [1, 1, self.max_tree] };
            return Ok(vec![self.profile("any", &any, inputs)?]);
        }
        let prefill = Steps {
            batch: [1; 3],
            sequence: [1, USUAL_SLICE.min(self.max_prefill), self.max_prefill],
            logits: [1; 3],
        };
        let step = Steps { batch: lanes, sequence: [1; 3], logits: [1; 3] };
        let trees = Steps { batch: lanes, sequence: tree, logits: tree };
        let all = [("prefill", prefill), ("decode", step), ("verify", trees)];
        all.into_iter().map(|(name, steps)| self.profile(name, &steps, inputs)).collect()
    }

    fn profile(&self, name: &str, steps: &Steps, inputs: &[Port]) -> Result<Profile> {
        let is_dynamic = |port: &&Port| port.shape.iter().any(|dim| matches!(dim, Dim::Named(_)));
        let range = |port: &Port| {
            let sizes =
                port.shape.iter().map(|dim| self.sizes(dim, steps, port)).collect::<Result<Vec<Sizes>>>()?;
            let at = |which: usize| sizes.iter().map(|sizes| sizes[which]).collect();
            Ok((port.name.clone(), ShapeRange { min: at(0), opt: at(1), max: at(2) }))
        };
        let inputs = inputs.iter().filter(is_dynamic).map(range).collect::<Result<Vec<_>>>()?;
        Ok(Profile { name: name.into(), inputs })
    }

    fn sizes(&self, dim: &Dim, steps: &Steps, port: &Port) -> Result<Sizes> {
        let name = match dim {
            Dim::Fixed(len) => return Ok([*len; 3]),
            Dim::Named(name) => name.as_str(),
        };
        Ok(match (name, self.form) {
            ("batch", _) => steps.batch,
            ("sequence", _) => steps.sequence,
            ("logits", _) => steps.logits,
            ("past", _) => [self.lane_rows; 3],
            ("kv", Form::Operators) => [1, self.usual_kv(), self.lane_rows],
            ("kv", Form::Primitives) => steps.sequence.map(|sequence| self.lane_rows + sequence),
            _ => {
                let fact = format!("input {:?} has a dimension {name:?}, which no profile knows", port.name);
                return Err(BuildError::Unsupported(fact));
            }
        })
    }

    /// Lengths that are looked at are powers of two, up to S: the largest that half of S has room for.
    fn usual_kv(&self) -> usize {
        1 << (self.lane_rows / 2).max(1).ilog2()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::export::ElementType;

    fn port(name: &str, shape: &[Dim]) -> Port {
        Port { name: name.into(), element: ElementType::I64, shape: shape.to_vec() }
    }

    fn extents(form: Form) -> Extents {
        Extents { form, num_lanes: 4, lane_rows: 1089, max_prefill: 256, max_tree: 65, is_single: false }
    }

    fn range(profile: &Profile, name: &str) -> [Vec<usize>; 3] {
        let (_, range) = profile.inputs.iter().find(|(input, _)| input == name).unwrap();
        [range.min.clone(), range.opt.clone(), range.max.clone()]
    }

    #[test]
    fn a_decoder_has_a_profile_for_slices_steps_and_trees() {
        let inputs = [
            port("input_ids", &["batch".into(), "sequence".into()]),
            port("attention_mask", &["batch".into(), "sequence".into(), "kv".into()]),
            port("logits_rows", &["batch".into(), "logits".into()]),
            port("past", &["batch".into(), 2.into(), 1089.into(), 64.into()]),
            port("fixed", &[3.into()]),
        ];
        let profiles = extents(Form::Operators).profiles(&inputs).unwrap();
        let names: Vec<&str> = profiles.iter().map(|profile| profile.name.as_str()).collect();
        assert_eq!(names, ["prefill", "decode", "verify"]);
        let [prefill, decode, verify] = &profiles[..] else { panic!("{profiles:?}") };
        assert_eq!(range(prefill, "input_ids"), [vec![1, 1], vec![1, 64], vec![1, 256]]);
        assert_eq!(range(prefill, "logits_rows"), [vec![1, 1], vec![1, 1], vec![1, 1]]);
        assert_eq!(range(decode, "input_ids"), [vec![1, 1], vec![1, 1], vec![4, 1]]);
        assert_eq!(range(verify, "input_ids"), [vec![1, 1], vec![1, 16], vec![4, 65]]);
        assert_eq!(range(verify, "logits_rows"), [vec![1, 1], vec![1, 16], vec![4, 65]]);
        assert_eq!(range(verify, "attention_mask"), [vec![1, 1, 1], vec![1, 16, 512], vec![4, 65, 1089]]);
        assert_eq!(range(decode, "past"), [vec![1, 2, 1089, 64], vec![1, 2, 1089, 64], vec![4, 2, 1089, 64]]);
        assert!(profiles.iter().all(|profile| profile.inputs.iter().all(|(name, _)| name != "fixed")));
    }

    #[test]
    fn primitives_are_fed_the_whole_cache_and_keys_are_as_many_more_as_there_are_tokens() {
        let inputs = [
            port("kv_positions", &["batch".into(), "kv".into()]),
            port("past", &["batch".into(), 2.into(), "past".into(), 64.into()]),
        ];
        let profiles = extents(Form::Primitives).profiles(&inputs).unwrap();
        let [prefill, decode, verify] = &profiles[..] else { panic!("{profiles:?}") };
        assert_eq!(
            range(prefill, "past"),
            [vec![1, 2, 1089, 64], vec![1, 2, 1089, 64], vec![1, 2, 1089, 64]]
        );
        assert_eq!(range(prefill, "kv_positions"), [vec![1, 1090], vec![1, 1153], vec![1, 1345]]);
        assert_eq!(range(decode, "kv_positions"), [vec![1, 1090], vec![1, 1090], vec![4, 1090]]);
        assert_eq!(range(verify, "kv_positions"), [vec![1, 1090], vec![1, 1105], vec![4, 1154]]);
    }

    #[test]
    fn every_profile_is_in_order_however_small_the_lane() {
        let inputs = [port("attention_mask", &["batch".into(), "sequence".into(), "kv".into()])];
        for (lane_rows, max_tree) in [(2, 1), (66, 65), (4161, 65)] {
            for form in [Form::Operators, Form::Primitives] {
                let extents = Extents { lane_rows, max_tree, max_prefill: 1, ..extents(form) };
                for profile in extents.profiles(&inputs).unwrap() {
                    let [min, opt, max] = range(&profile, "attention_mask");
                    let in_order = |dim: usize| 1 <= min[dim] && min[dim] <= opt[dim] && opt[dim] <= max[dim];
                    assert!((0..3).all(in_order), "{lane_rows}: {profile:?}");
                }
            }
        }
    }

    #[test]
    fn a_plan_that_takes_other_weights_has_one_profile_for_everything() {
        let inputs = [
            port("input_ids", &["batch".into(), "sequence".into()]),
            port("attention_mask", &["batch".into(), "sequence".into(), "kv".into()]),
            port("logits_rows", &["batch".into(), "logits".into()]),
            port("past", &["batch".into(), 2.into(), "past".into(), 64.into()]),
        ];
        let single = |form, max_prefill| {
            let extents = Extents { is_single: true, max_prefill, ..extents(form) };
            let profiles = extents.profiles(&inputs).unwrap();
            let [any] = &profiles[..] else { panic!("{profiles:?}") };
            any.clone()
        };
        let any = single(Form::Operators, 256);
        assert_eq!(range(&any, "input_ids"), [vec![1, 1], vec![1, 1], vec![4, 256]]);
        assert_eq!(range(&any, "logits_rows"), [vec![1, 1], vec![1, 1], vec![4, 65]]);
        assert_eq!(range(&any, "attention_mask"), [vec![1, 1, 1], vec![1, 1, 512], vec![4, 256, 1089]]);
        // Slices may be shorter than trees.
        let any = single(Form::Primitives, 32);
        assert_eq!(range(&any, "attention_mask"), [vec![1, 1, 1090], vec![1, 1, 1090], vec![4, 65, 1154]]);
        assert_eq!(range(&any, "past"), [vec![1, 2, 1089, 64], vec![1, 2, 1089, 64], vec![4, 2, 1089, 64]]);
    }

    #[test]
    fn a_dimension_that_nobody_knows_is_refused_by_name() {
        let inputs = [port("input_ids", &["batch".into(), "heads".into()])];
        let error = extents(Form::Operators).profiles(&inputs).unwrap_err().to_string();
        assert!(error.contains("\"input_ids\"") && error.contains("\"heads\""), "{error}");
    }
}
