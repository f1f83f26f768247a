//! Which of an engine's plans is for this machine: one of its TensorRT and GPU, of these weights, for as many lanes.

use crate::{
    EngineError, Result,
    dir::{PlanEntry, PlanRole, PlanVersion},
};

/// What builds plans.
const COMMAND: &str = "`takt build DIR --tensorrt --plans-only`";

/// What a plan has to be.
#[derive(Debug, Clone, Copy)]
pub(super) struct Wanted<'a> {
    pub role: PlanRole,
    pub tensorrt: PlanVersion,
    /// As in `sm_110a`.
    pub sm: &'a str,
    /// Of the engine's weights.
    pub weights_blake3: &'a str,
    pub num_lanes: usize,
    /// `None` for the plan's own.
    pub lane_capacity: Option<usize>,
}

impl Wanted<'_> {
    /// The one of `plans` that is.
    ///
    /// # Errors
    /// [`EngineError::Unsupported`] with what there is, why it is not used, and what builds another.
    pub(super) fn choose<'p>(&self, plans: &'p [PlanEntry]) -> Result<&'p PlanEntry> {
        let of_role: Vec<&PlanEntry> = plans.iter().filter(|plan| plan.role == self.role).collect();
        let Self { tensorrt, sm, .. } = self;
        let for_this = of_role.iter().find(|plan| plan.tensorrt == *tensorrt && plan.sm == *sm);
        let Some(plan) = for_this else {
            let there: Vec<String> = of_role.iter().map(|plan| machine(plan)).collect();
            let there = match there.is_empty() {
                true => "there is none at all".to_owned(),
                false => format!("there are plans for {}", there.join(", ")),
            };
            return Err(EngineError::Unsupported(format!(
                "no plan for TensorRT {tensorrt} on {sm} in the engine, {there}; {COMMAND} builds one on this machine"
            )));
        };
        self.check(plan).map(|()| *plan)
    }

    fn check(&self, plan: &PlanEntry) -> Result<()> {
        let refuse = |fact: &str, options: &str| {
            Err(EngineError::Unsupported(format!(
                "plan {:?} {fact}; {} builds another",
                plan.file,
                COMMAND.replace(" --plans-only", &format!(" --plans-only{options}"))
            )))
        };
        if plan.weights_blake3 != self.weights_blake3 {
            return refuse("was built from other weights than the engine's", "");
        }
        if plan.num_lanes < self.num_lanes {
            let (has, asked) = (plan.num_lanes, self.num_lanes);
            return refuse(
                &format!("has {has} lanes, {asked} are asked for"),
                &format!(" --plan-lanes {asked}"),
            );
        }
        match self.lane_capacity.filter(|&asked| asked > plan.lane_capacity) {
            None => Ok(()),
            Some(asked) => {
                let has = plan.lane_capacity;
                let fact = format!("has lanes of {has} tokens, {asked} are asked for");
                refuse(&fact, &format!(" --plan-context {asked}"))
            }
        }
    }
}

fn machine(plan: &PlanEntry) -> String {
    format!("TensorRT {} on {} ({})", plan.tensorrt, plan.sm, plan.device)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::dir::{PlanCompute, PlanForm};

    fn plan(minor: u32, sm: &str, role: PlanRole) -> PlanEntry {
        PlanEntry {
            file: format!("plans/trt-10.{minor}-{sm}.plan"),
            size_bytes: 1,
            blake3: "0".repeat(64),
            role,
            tensorrt: PlanVersion { major: 10, minor },
            sm: sm.into(),
            device: format!("a board with {sm}"),
            weights_blake3: "a".repeat(64),
            form: PlanForm::Operators,
            compute: PlanCompute::Bf16,
            num_lanes: 2,
            lane_capacity: 512,
            lane_rows: 577,
            max_prefill: 256,
            max_tree: 65,
            captured: Vec::new(),
            stripped: false,
            streams_weights: false,
            timed_in_green_context: None,
        }
    }

    #[test]
    fn the_plan_of_this_machine_is_taken_and_others_are_told_of_with_what_builds_one() {
        let weights = "a".repeat(64);
        let wanted = Wanted {
            role: PlanRole::Decoder,
            tensorrt: PlanVersion { major: 10, minor: 16 },
            sm: "sm_110a",
            weights_blake3: &weights,
            num_lanes: 2,
            lane_capacity: None,
        };
        let plans = [
            plan(15, "sm_110a", PlanRole::Decoder),
            plan(13, "sm_110a", PlanRole::Decoder),
            plan(16, "sm_87", PlanRole::Decoder),
            plan(16, "sm_110a", PlanRole::Decoder),
        ];
        assert_eq!(wanted.choose(&plans).unwrap(), &plans[3]);
        let capacity = Wanted { lane_capacity: Some(512), ..wanted };
        assert!(capacity.choose(&plans).is_ok());
        let other = "b".repeat(64);
        for (wanted, plans, said) in [
            (
                wanted,
                &plans[..0],
                "there is none at all; `takt build DIR --tensorrt --plans-only` builds one",
            ),
            (
                wanted,
                &plans[..3],
                "there are plans for TensorRT 10.15 on sm_110a (a board with sm_110a), TensorRT 10.13 on sm_110a (a board with sm_110a), TensorRT 10.16 on sm_87",
            ),
            (Wanted { weights_blake3: &other, ..wanted }, &plans[..], "was built from other weights"),
            (
                Wanted { num_lanes: 3, ..wanted },
                &plans[..],
                "has 2 lanes, 3 are asked for; `takt build DIR --tensorrt --plans-only --plan-lanes 3`",
            ),
            (
                Wanted { lane_capacity: Some(513), ..wanted },
                &plans[..],
                "has lanes of 512 tokens, 513 are asked for; `takt build DIR --tensorrt --plans-only --plan-context 513`",
            ),
        ] {
            let error = wanted.choose(plans).unwrap_err().to_string();
            assert!(error.contains(said), "{error}");
        }
    }
}
