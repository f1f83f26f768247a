//! `--plan-sm-share`: plans for a part of the GPU, as the binary builds, shows, runs and refuses them.

use std::fs;

use serde_json::{Value, json};

use super::machine::Machine;
use crate::{
    emulator::driver::{EmulatedDevice, Report},
    harness::*,
};

/// The first TensorRT whose plans can be timed on a part of the GPU.
const FIRST: (u32, u32) = (10, 16);

impl Machine {
    fn has_green_contexts(&self) -> bool {
        (self.version.0, self.version.1) >= FIRST
    }

    fn path_of_report(&self) -> String {
        self.path("report")
    }

    /// What the device was asked since its last report.
    fn report(&self) -> Report {
        Report::read(&fs::read_to_string(self.path_of_report()).unwrap())
    }
}

#[test]
fn a_plan_for_a_share_of_the_gpu_is_timed_on_it_shown_as_such_and_run_on_it() {
    let Some(mut machine) = Machine::running() else { return };
    if !machine.has_green_contexts() {
        return eprintln!("skipped: TensorRT before 10.16 is refused a share, which has a test of its own");
    }
    let report = machine.path_of_report();
    machine.set("TAKT_EMULATED_REPORT", &report);
    let engine = machine.engine();
    let config = machine.path("robot.toml");
    fs::write(
        &config,
        "[engine]\nbackend = \"tensorrt\"\nlanes = 1\ndrafter = \"off\"\n[scheduler]\nmax_prefill_slice_tokens = 8\n[gpu]\nsm_share_percent = 40\n",
    )
    .unwrap();
    let build = ["build", &engine, "--tensorrt", "--plans-only", "--plan-lanes", "1", "--plan-context", "32"];
    let share = ["--plan-sm-share", "40"];
    let calibrate = ["calibrate", &engine, "--config", &config, "--samples", "10", "--json"];
    for (more, timed, words) in [
        (&share[..], json!(8), "timed on 40 % of the GPU's multiprocessors (8 of 20)"),
        (&[], Value::Null, "timed on the whole GPU"),
    ] {
        let built = machine.succeed(&[&build[..], more, &["--json"]].concat());
        assert_eq!(built["plans"]["plans"][0]["timed_in_green_context"], timed);
        assert_eq!(machine.report().calls("cuGreenCtxCreate"), u64::from(!timed.is_null()));
        let inspected = machine.succeed(&["inspect", &engine, "--json"]);
        assert_eq!(inspected["plans"][0]["timed_in_green_context"], timed, "{inspected}");
        for args in [&[&build[..], more].concat()[..], &["inspect", &engine]] {
            let output = machine.takt(args, &[]);
            let text = String::from_utf8_lossy(&output.stdout);
            assert!(output.status.success() && text.contains(words), "{text}{}", stderr(&output));
        }
        // A node asks for a green context; it is one only with a plan that was timed in one.
        let output = machine.takt(&calibrate, &[]);
        let message = stderr(&output);
        assert!(output.status.success(), "{message}");
        assert_eq!(machine.report().value("calls.cuGreenCtxCreate") == 1, !timed.is_null(), "{message}");
        let warning = ["was not timed in one", "--plan-sm-share PERCENT", "sm_share_percent"];
        assert_eq!(warning.iter().all(|part| message.contains(part)), timed.is_null(), "{message}");
    }
    assert_eq!(machine.faults(), "");
}

/// That a share is refused, before the source is read, with the reason and what to do; and that nothing is without one.
fn refused(machine: &Machine, words: &[&str]) {
    let dir = machine.path("made");
    let args = ["build", "no/such/source", "-o", &dir, "--tensorrt"];
    let todo = ["leave out --plan-sm-share", "share = \"priority\""];
    machine.fail(&[&args[..], &["--plan-sm-share", "50"]].concat(), &[], &[words, &todo].concat());
    machine.fail(&args, &[], &["no/such/source"]);
    assert!(!fs::exists(dir).unwrap());
}

#[test]
fn a_share_that_tensorrt_or_the_driver_cannot_give_is_refused_with_what_to_do() {
    let Some(machine) = Machine::new() else { return };
    if !machine.has_green_contexts() {
        return refused(&machine, &["green contexts take TensorRT 10.16 or later", "this is 10."]);
    }
    let with = |change: fn(EmulatedDevice) -> EmulatedDevice| Machine::with(change).unwrap();
    refused(&with(|device| device.cuda(12, 6)), &["a driver of CUDA 13.0", "this one is of 12.6"]);
    refused(&with(|device| device.without("cuGreenCtxCreate")), &["there is no green context: "]);
}
