//! Which TensorRT plans an engine has, whether they are whole, and whether this machine runs them.

use std::path::Path;

use serde_json::{Value, json};
use takt_engine::{
    backend::cuda::usable_device,
    dir::{ForeignPlan, Manifest, PlanCheck, PlanEntry, PlanKv, PlanVersion},
};
use takt_kernels_cu::Target;
use takt_tensorrt::{TensorRt, Version};

use super::{CliError, paint};

/// What this machine has for plans, or why it runs none.
struct Machine {
    tensorrt: Result<Version, String>,
    gpu: Result<Target, String>,
}

/// What an engine has of plans.
#[derive(Default)]
pub(super) struct InspectedPlans {
    understood: Vec<InspectedPlan>,
    foreign: Vec<ForeignPlan>,
}

/// One plan.
struct InspectedPlan {
    check: PlanCheck,
    /// Why this machine does not run it.
    obstacle: Option<String>,
}

/// Every plan of the engine, each read and hashed.
pub(super) fn inspect_plans(engine: &Path, manifest: &Manifest) -> InspectedPlans {
    let foreign = manifest.plans.foreign().to_vec();
    if manifest.plans.is_empty() {
        return InspectedPlans { foreign, ..InspectedPlans::default() };
    }
    let machine = Machine::look();
    let inspect = |check: PlanCheck| InspectedPlan { obstacle: machine.obstacle(&check), check };
    let understood = manifest.check_plans(engine).into_iter().map(inspect).collect();
    InspectedPlans { understood, foreign }
}

impl InspectedPlans {
    /// # Errors
    /// The first plan that is damaged. One of other weights is whole, and one that this takt does not understand cannot be judged.
    pub fn check(&self) -> Result<(), CliError> {
        let fault = self.understood.iter().find_map(|plan| plan.check.outcome.as_ref().err());
        fault.map_or(Ok(()), |fault| Err(CliError::Failed(fault.to_string())))
    }
}

impl Machine {
    fn look() -> Self {
        Self {
            tensorrt: TensorRt::open().map(|trt| trt.version()).map_err(|e| e.to_string()),
            gpu: usable_device().map(|(_, target)| target).map_err(|e| e.to_string()),
        }
    }

    /// Why the plan does not run here: it is no good, or what it was built on is another.
    fn obstacle(&self, check: &PlanCheck) -> Option<String> {
        if check.outcome.is_err() {
            return Some("it is damaged".into());
        }
        if check.is_stale {
            return Some("it was made from other weights than the engine has; build it again".into());
        }
        let plan = &check.entry;
        match (&self.gpu, &self.tensorrt) {
            (Err(reason), _) | (_, Err(reason)) => Some(reason.clone()),
            (Ok(gpu), _) if gpu.name() != plan.sm => Some(format!("this machine's GPU is {gpu}")),
            (_, Ok(version)) => {
                let here = PlanVersion { major: version.major, minor: version.minor };
                (here != plan.tensorrt).then(|| format!("this machine has TensorRT {here}"))
            }
        }
    }
}

pub(super) fn plans_json(plans: &InspectedPlans) -> Value {
    let one = |plan: &InspectedPlan| {
        let mut facts = json!(plan.check.entry);
        // Told of plans as well whose entries leave them out.
        facts["activations"] = json!(plan.check.entry.activations);
        facts["refittable"] = json!(plan.check.entry.refittable.is_some());
        facts["timed_in_green_context"] = json!(plan.check.entry.timed_in_green_context);
        facts["kv"] = json!(plan.check.entry.kv);
        let fault = plan.check.outcome.as_ref().err().map(ToString::to_string);
        facts["intact"] = json!(fault.is_none());
        facts["fault"] = json!(fault);
        facts["stale"] = json!(plan.check.is_stale);
        facts["runs_here"] = json!(plan.obstacle.is_none());
        facts["obstacle"] = json!(plan.obstacle);
        facts
    };
    let foreign = |plan: &ForeignPlan| json!({ "not_understood": plan.reason, "entry": plan.value, "runs_here": false });
    plans.understood.iter().map(one).chain(plans.foreign.iter().map(foreign)).collect()
}

/// Nothing where there are no plans.
pub(super) fn plans_text(plans: &InspectedPlans) -> String {
    if plans.understood.is_empty() && plans.foreign.is_empty() {
        return String::new();
    }
    let mut text = format!("\n{}\n", paint::bold("TensorRT plans"));
    text.extend(plans.understood.iter().map(plan_text));
    for ForeignPlan { value, reason } in &plans.foreign {
        let file = value["file"].as_str().unwrap_or("an entry without a file");
        text +=
            &format!("  {} {file:?}  {}\n", paint::yellow("?"), paint::yellow("not understood by this takt"));
        text += &format!("      {}\n", paint::dim(reason));
    }
    text
}

fn plan_text(plan: &InspectedPlan) -> String {
    let entry = &plan.check.entry;
    let (mark, note) = match &plan.check.outcome {
        Ok(()) if plan.check.is_stale => (paint::yellow("!"), paint::yellow("stale")),
        Ok(()) => (paint::green("✓"), paint::dim(&entry.blake3[..12.min(entry.blake3.len())])),
        Err(fault) => (paint::red("✗"), paint::red(&fault.to_string())),
    };
    let lanes = if entry.num_lanes == 1 { "lane" } else { "lanes" };
    let mut traits = vec![format!("{} {lanes} of {} tokens", entry.num_lanes, entry.lane_capacity)];
    traits.push(json!(entry.compute).as_str().unwrap_or_default().to_owned());
    traits.push(format!("form {}", json!(entry.form).as_str().unwrap_or_default()));
    traits.push(format!("activations {}", json!(entry.activations).as_str().unwrap_or_default()));
    traits.extend((entry.kv == PlanKv::Fp8).then(|| "fp8 cache".into()));
    traits.push(timed_on(entry));
    traits.extend(entry.stripped.then(|| "without weights".into()));
    traits.extend(entry.refittable.is_some().then(|| "takes other weights".into()));
    traits.extend(entry.streams_weights.then(|| "weights may stay in the host's memory".into()));
    let here = plan
        .obstacle
        .as_ref()
        .map_or_else(|| "runs here".to_owned(), |obstacle| format!("does not run here: {obstacle}"));
    format!(
        "  {mark} {}  {:>10}  {note}\n      {} for TensorRT {} on {}: {}\n      {}\n",
        entry.file,
        paint::bytes(entry.size_bytes),
        entry.role,
        entry.tensorrt,
        entry.device,
        traits.join(", "),
        paint::dim(&here)
    )
}

/// The part of the GPU that a plan's kernels were timed on, in words.
pub(super) fn timed_on(plan: &PlanEntry) -> String {
    let Some(timed) = plan.timed_in_green_context else { return "timed on the whole GPU".into() };
    match plan.device_num_sms() {
        Some(all) => {
            let percent = u64::from(timed) * 100 / u64::from(all);
            format!("timed on {percent} % of the GPU's multiprocessors ({timed} of {all})")
        }
        None => format!("timed on {timed} of the GPU's multiprocessors"),
    }
}

#[cfg(test)]
mod tests {
    use takt_engine::dir::{PlanActivations, PlanCompute, PlanForm, PlanRole};

    use super::*;

    fn entry() -> PlanEntry {
        let (tensorrt, sm) = (PlanVersion { major: 10, minor: 16 }, "sm_110a".to_owned());
        PlanEntry {
            file: PlanEntry::file_name(tensorrt, &sm, PlanRole::Decoder),
            size_bytes: 5 << 20,
            blake3: "ab".repeat(32),
            role: PlanRole::Decoder,
            tensorrt,
            sm,
            device: "NVIDIA Thor sm_110 20 SMs".into(),
            weights_blake3: "0".repeat(64),
            form: PlanForm::Operators,
            compute: PlanCompute::F16,
            activations: PlanActivations::Quantized,
            kv: PlanKv::Plain,
            num_lanes: 4,
            lane_capacity: 2048,
            lane_rows: 2113,
            max_prefill: 256,
            max_tree: 65,
            captured: Vec::new(),
            stripped: false,
            streams_weights: true,
            refittable: Some("c".repeat(64)),
            timed_in_green_context: None,
        }
    }

    fn machine(major: u32, minor: u32, gpu: Target) -> Machine {
        Machine { tensorrt: Ok(Version { major, minor, patch: 3 }), gpu: Ok(gpu) }
    }

    #[test]
    fn a_plan_runs_on_the_gpu_and_the_release_it_was_built_with_and_no_other() {
        let plan = PlanCheck { entry: entry(), outcome: Ok(()), is_stale: false };
        assert_eq!(machine(10, 16, Target::Thor).obstacle(&plan), None);
        let stale = PlanCheck { entry: entry(), outcome: Ok(()), is_stale: true };
        let reason = machine(10, 16, Target::Thor).obstacle(&stale).unwrap();
        assert!(reason.contains("other weights"), "{reason}");
        for (machine, reason) in [
            (machine(10, 16, Target::Orin), "GPU is sm_87"),
            (machine(10, 15, Target::Thor), "TensorRT 10.15"),
            (machine(11, 16, Target::Thor), "TensorRT 11.16"),
            (Machine { tensorrt: Err("no library".into()), gpu: Ok(Target::Thor) }, "no library"),
            (Machine { gpu: Err("no driver".into()), ..machine(10, 16, Target::Thor) }, "no driver"),
        ] {
            let found = machine.obstacle(&plan).unwrap();
            assert!(found.contains(reason), "{found}");
        }
    }

    #[test]
    fn what_a_plan_is_and_what_is_wrong_with_it_is_shown() {
        let damaged =
            takt_engine::EngineError::Corrupt { path: "p".into(), fact: "BLAKE3 is another".into() };
        let understood = vec![
            InspectedPlan {
                check: PlanCheck { entry: entry(), outcome: Ok(()), is_stale: false },
                obstacle: None,
            },
            InspectedPlan {
                check: PlanCheck { entry: entry(), outcome: Err(damaged), is_stale: false },
                obstacle: Some("no driver".into()),
            },
        ];
        let foreign = vec![ForeignPlan {
            value: json!({ "file": "plans/of-tomorrow" }),
            reason: "unknown variant `spirals`".into(),
        }];
        let plans = InspectedPlans { understood, foreign };
        assert!(plans.check().is_err_and(|error| error.to_string().contains("BLAKE3 is another")));
        let text = plans_text(&plans);
        for words in [
            "decoder for TensorRT 10.16 on NVIDIA Thor",
            "4 lanes of 2048 tokens, f16, form operators, activations quantized, timed on the whole GPU, takes other weights, weights",
            "runs here",
            "host's memory",
            "BLAKE3 is another",
            "does not run here: no driver",
            "plans/of-tomorrow",
            "not understood by this takt",
            "spirals",
        ] {
            assert!(text.contains(words), "{words:?} not in {text}");
        }
        let json = plans_json(&plans);
        assert_eq!(
            (&json[0]["intact"], &json[0]["runs_here"], &json[1]["runs_here"]),
            (&json!(true), &json!(true), &json!(false))
        );
        assert!(json[1]["fault"].as_str().unwrap().contains("BLAKE3") && json[0]["lane_capacity"] == 2048);
        assert!(json[0].as_object().unwrap()["timed_in_green_context"].is_null());
        assert_eq!(plans_text(&InspectedPlans::default()), "");
    }

    #[test]
    fn the_part_of_the_gpu_that_a_plan_was_timed_on_is_told_in_percent_where_the_whole_is_known() {
        let share = |timed: u32, device: &str| {
            timed_on(&PlanEntry { timed_in_green_context: Some(timed), device: device.into(), ..entry() })
        };
        let thor = share(8, "NVIDIA Thor sm_110 20 SMs");
        assert_eq!(thor, "timed on 40 % of the GPU's multiprocessors (8 of 20)");
        for device in ["", "Thor", "Thor SMs", "Thor many SMs", "Thor 0 SMs", "Thor -3 SMs"] {
            assert_eq!(share(8, device), "timed on 8 of the GPU's multiprocessors", "{device:?}");
        }
    }
}
