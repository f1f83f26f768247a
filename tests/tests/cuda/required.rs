//! The suites on a device that is required.

use std::process::Command;

use crate::emulator::{
    device::is_required,
    driver::{EmulatedDevice, Report},
};

/// As `cargo run -p xtask -- gpu-check` runs them on a machine with a GPU, which here is emulated, too.
#[test]
fn suites_run_on_a_device_that_is_required_and_those_of_the_emulated_one_are_skipped() {
    if is_required() {
        return;
    }
    if std::env::var_os("TAKT_REQUIRE_CUBINS").is_none() {
        return eprintln!(
            "skipped: the cubins of `cargo run -p xtask -- kernels` are needed, and TAKT_REQUIRE_CUBINS=1"
        );
    }
    let Some(environment) = EmulatedDevice::new("").all_kernels().environment() else { return };
    let report = tempfile::NamedTempFile::new().unwrap();
    let run = |test: &str| {
        // A test that is skipped opens no driver, which then reports nothing.
        std::fs::write(report.path(), "").unwrap();
        let mut program = Command::new(std::env::current_exe().unwrap());
        program.args([test, "--exact", "--nocapture"]).envs(environment.iter().cloned());
        program.env("TAKT_REQUIRE_DEVICE", "1").env("TAKT_EMULATED_REPORT", report.path());
        let output = program.output().unwrap();
        let said =
            format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
        assert!(output.status.success() && said.contains("1 passed"), "{test}: {said}");
        let report = Report::read(&std::fs::read_to_string(report.path()).unwrap());
        (said, report.calls("cuGraphLaunch"))
    };
    for test in [
        "steps::plans_that_do_not_hold_are_refused_and_change_nothing",
        "draft::levels::drafts_that_cannot_be_are_refused_and_change_nothing",
        "lists::a_row_that_is_broken_says_so_in_the_words_of_a_whole_row",
    ] {
        let (said, num_steps) = run(test);
        assert!(num_steps > 0, "{said}");
    }
    let (said, num_steps) = run("faults::a_kernel_that_hangs_is_given_up_after_the_limit");
    assert!(said.contains("skipped: a test of the emulated device") && num_steps == 0, "{said}");
}
