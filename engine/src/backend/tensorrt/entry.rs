//! Which of an engine's plans is for this machine: one of its TensorRT and GPU, of these weights, for as many lanes.

use std::path::Path;

use crate::{
    EngineError, Result,
    dir::{PlanActivations, PlanCompute, PlanEntry, PlanForm, PlanList, PlanRole, PlanVersion},
    kv::KvKind,
};

/// What a plan has to be.
#[derive(Debug, Clone, Copy)]
pub(super) struct Wanted<'a> {
    /// The engine directory.
    pub dir: &'a Path,
    pub role: PlanRole,
    pub tensorrt: PlanVersion,
    /// As in `sm_110a`.
    pub sm: &'a str,
    /// Of the engine's weights.
    pub weights_blake3: &'a str,
    pub num_lanes: usize,
    /// `None` for the plan's own.
    pub lane_capacity: Option<usize>,
    /// `None` for the plan's own.
    pub kv: Option<KvKind>,
}

impl Wanted<'_> {
    /// The one of `plans` that is.
    ///
    /// # Errors
    /// [`EngineError::Unsupported`] with what there is, why it is not used, and what builds another.
    pub(super) fn choose<'p>(&self, plans: &'p PlanList) -> Result<&'p PlanEntry> {
        let of_role: Vec<&PlanEntry> = plans.iter().filter(|plan| plan.role == self.role).collect();
        let Self { tensorrt, sm, .. } = self;
        let for_this = of_role.iter().find(|plan| plan.tensorrt == *tensorrt && plan.sm == *sm);
        let Some(plan) = for_this else {
            let there: Vec<String> = of_role.iter().map(|plan| machine(plan)).collect();
            let mut there = match there.is_empty() {
                true => "there is none at all".to_owned(),
                false => format!("there are plans for {}", there.join(", ")),
            };
            if let [first, ..] = plans.foreign() {
                let num_foreign = plans.foreign().len();
                there +=
                    &format!(", and {num_foreign} that this takt does not understand ({})", first.reason);
            }
            return Err(EngineError::Unsupported(format!(
                "no plan for TensorRT {tensorrt} on {sm} in the engine, {there}; `{}` builds one on this machine",
                self.command()
            )));
        };
        self.check(plan).map(|()| *plan)
    }

    /// All that is wrong with the plan at once, and the command that builds one without any of it.
    fn check(&self, plan: &PlanEntry) -> Result<()> {
        let mut faults = Vec::new();
        let mut smaller = Vec::new();
        let mut shorter = String::new();
        if plan.weights_blake3 != self.weights_blake3 {
            faults.push("was built from other weights than the engine's".to_owned());
        }
        let (has, asked) = (plan.num_lanes, self.num_lanes);
        if has < asked {
            faults.push(format!("has {has} lanes, {asked} are asked for"));
            smaller.push(format!("lanes = {has}"));
        }
        let has = plan.lane_capacity;
        if let Some(asked) = self.lane_capacity.filter(|&asked| asked > has) {
            faults.push(format!("has lanes of {has} tokens, {asked} are asked for"));
            smaller.push(format!("max_context = {has}"));
            shorter = format!(", or give --max-context {has}");
        }
        let has = plan.kv.kind();
        if let Some(asked) = self.kv.filter(|&asked| asked != has) {
            faults.push(format!("has a {has} KV cache, {asked} is asked for"));
        }
        if faults.is_empty() {
            return Ok(());
        }
        let instead = match smaller.is_empty() {
            true => String::new(),
            false => format!("; or set {} in [engine]{shorter}", smaller.join(" and ")),
        };
        Err(EngineError::Unsupported(format!(
            "plan {:?} {}; `{}` builds another{instead}",
            plan.file,
            faults.join(" and "),
            self.command_like(plan)
        )))
    }

    /// What builds plans.
    fn command(&self) -> String {
        format!("takt build {} --tensorrt --plans-only", self.dir.display())
    }

    /// What builds one as `plan` is, and as large as is asked for.
    fn command_like(&self, plan: &PlanEntry) -> String {
        let mut command = self.command();
        let lanes = plan.num_lanes.max(self.num_lanes);
        let context = plan.lane_capacity.max(self.lane_capacity.unwrap_or(0));
        command += &format!(" --plan-lanes {lanes} --plan-context {context}");
        if plan.compute == PlanCompute::F16 {
            command += " --plan-dtype f16";
        }
        if plan.activations == PlanActivations::Quantized {
            command += " --plan-activations quantized";
        }
        if plan.streams_weights {
            command += " --plan-streaming";
        }
        // No plan is built to do both.
        if plan.refittable.is_some() && !plan.streams_weights {
            command += " --plan-refit";
        }
        if plan.form == PlanForm::Primitives {
            command += " --plan-form primitives";
        }
        match self.kv.unwrap_or(plan.kv.kind()) {
            KvKind::Fp8 => command += " --plan-kv fp8",
            // In this form an engine whose own cache is fp8 would get one like it.
            _ if plan.form == PlanForm::Primitives => command += " --plan-kv plain",
            _ => {}
        }
        if let (Some(timed), Some(all)) = (plan.timed_in_green_context, plan.device_num_sms()) {
            command += &format!(" --plan-sm-share {}", (u64::from(timed) * 100).div_ceil(u64::from(all)));
        }
        command
    }
}

fn machine(plan: &PlanEntry) -> String {
    format!("TensorRT {} on {} ({})", plan.tensorrt, plan.sm, plan.device)
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;
    use crate::dir::PlanKv;

    pub(in super::super) fn plan(minor: u32, sm: &str, role: PlanRole) -> PlanEntry {
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
            activations: PlanActivations::Plain,
            kv: PlanKv::Plain,
            num_lanes: 2,
            lane_capacity: 512,
            lane_rows: 577,
            max_prefill: 256,
            max_tree: 65,
            captured: Vec::new(),
            stripped: false,
            streams_weights: false,
            refittable: None,
            timed_in_green_context: None,
        }
    }

    #[test]
    fn the_plan_of_this_machine_is_taken_and_others_are_told_of_with_what_builds_one() {
        let weights = "a".repeat(64);
        let wanted = Wanted {
            dir: Path::new("engines/a"),
            role: PlanRole::Decoder,
            tensorrt: PlanVersion { major: 10, minor: 16 },
            sm: "sm_110a",
            weights_blake3: &weights,
            num_lanes: 2,
            lane_capacity: None,
            kv: None,
        };
        let plans = [
            plan(15, "sm_110a", PlanRole::Decoder),
            plan(13, "sm_110a", PlanRole::Decoder),
            plan(16, "sm_87", PlanRole::Decoder),
            plan(16, "sm_110a", PlanRole::Decoder),
        ];
        let list = |plans: &[PlanEntry]| {
            let mut list = PlanList::default();
            list.replace(plans);
            list
        };
        let all = list(&plans);
        assert_eq!(wanted.choose(&all).unwrap(), &plans[3]);
        let capacity = Wanted { lane_capacity: Some(512), ..wanted };
        assert!(capacity.choose(&all).is_ok());
        let other = "b".repeat(64);
        let like = "`takt build engines/a --tensorrt --plans-only --plan-lanes";
        let finer = PlanEntry {
            compute: PlanCompute::F16,
            activations: PlanActivations::Quantized,
            streams_weights: true,
            form: PlanForm::Primitives,
            device: "NVIDIA Thor sm_110 20 SMs".into(),
            refittable: Some("c".repeat(64)),
            timed_in_green_context: Some(7),
            ..plans[3].clone()
        };
        let small = PlanEntry { kv: PlanKv::Fp8, form: PlanForm::Primitives, ..plans[3].clone() };
        let asking = |kv| Wanted { kv: Some(kv), ..wanted };
        assert!(asking(KvKind::Bf16).choose(&all).is_ok());
        assert!(asking(KvKind::Fp8).choose(&list(std::slice::from_ref(&small))).is_ok());
        for (wanted, plans, said) in [
            (
                asking(KvKind::Fp8),
                all.clone(),
                format!("has a bf16 KV cache, fp8 is asked for; {like} 2 --plan-context 512 --plan-kv fp8` builds another"),
            ),
            (
                asking(KvKind::Bf16),
                list(std::slice::from_ref(&small)),
                format!("has a fp8 KV cache, bf16 is asked for; {like} 2 --plan-context 512 --plan-form primitives --plan-kv plain` builds another"),
            ),
            (
                Wanted { num_lanes: 3, ..wanted },
                list(&[small]),
                format!("{like} 3 --plan-context 512 --plan-form primitives --plan-kv fp8` builds another; or set lanes = 2"),
            ),
            (
                Wanted { num_lanes: 3, ..wanted },
                list(&[PlanEntry { refittable: Some("c".repeat(64)), ..plans[3].clone() }]),
                format!("{like} 3 --plan-context 512 --plan-refit` builds another"),
            ),
            (
                wanted,
                list(&[]),
                "there is none at all; `takt build engines/a --tensorrt --plans-only` builds one".to_owned(),
            ),
            (wanted, list(&plans[1..3]), "there are plans for TensorRT 10.13 on sm_110a (a board with sm_110a), TensorRT 10.16 on sm_87".into()),
            (Wanted { weights_blake3: &other, ..wanted }, all.clone(), "was built from other weights".into()),
            (
                Wanted { num_lanes: 3, ..wanted },
                all.clone(),
                format!("has 2 lanes, 3 are asked for; {like} 3 --plan-context 512` builds another; or set lanes = 2 in [engine]"),
            ),
            (
                Wanted { num_lanes: 1, lane_capacity: Some(513), ..wanted },
                all.clone(),
                format!("has lanes of 512 tokens, 513 are asked for; {like} 2 --plan-context 513` builds another; or set max_context = 512 in [engine], or give --max-context 512"),
            ),
            (
                Wanted { num_lanes: 8, lane_capacity: Some(8192), weights_blake3: &other, ..wanted },
                list(&[finer]),
                format!(
                    "other weights than the engine's and has 2 lanes, 8 are asked for and has lanes of 512 tokens, 8192 are asked for; {like} 8 \
                     --plan-context 8192 --plan-dtype f16 --plan-activations quantized --plan-streaming --plan-form primitives --plan-kv plain --plan-sm-share 35` builds another; or set lanes = 2 and max_context = 512 in [engine]"
                ),
            ),
            (
                wanted,
                serde_json::from_str(r#"[{"form": "spirals"}]"#).unwrap(),
                "none at all, and 1 that this takt does not understand (".into(),
            ),
        ] {
            let error = wanted.choose(&plans).unwrap_err().to_string();
            assert!(error.contains(&said), "{error}");
        }
    }
}
