//! All that can be checked on a machine with a GPU: the kernels' numbers on the device and then under NVIDIA's sanitizer, whole models through
//! the backend and through a plan of TensorRT's where there is one, how fast it all is, and what becomes of a worker when the device is made to fail.

use std::{
    fs,
    path::Path,
    process::{Command, Stdio},
};

use anyhow::{Context, bail};
use clap::Args;
use takt_kernels_cu::driver::device::{Device, probe};

use crate::{cuda_root, gpu_bench, gpu_faults, gpu_outcome::Outcome, gpu_tensorrt, kernels, repository};

/// How to check.
#[derive(Args)]
pub struct Options {
    #[command(flatten)]
    cuda: cuda_root::Compiler,
    /// Leaves out compute-sanitizer, under which tests take many times longer
    #[arg(long)]
    no_sanitizer: bool,
    /// Leaves out the tests
    #[arg(long)]
    no_tests: bool,
    /// Leaves out making the device fail, where others use it
    #[arg(long)]
    no_faults: bool,
    #[command(flatten)]
    bench: gpu_bench::Measurements,
}

/// What of compute-sanitizer is run: accesses outside allocations, then races in shared memory, then barriers that not all threads reach.
const SANITIZERS: [&str; 3] = ["memcheck", "racecheck", "synccheck"];

/// Checks the first device.
pub fn run(options: &Options) -> anyhow::Result<()> {
    let devices = probe()?;
    for device in &devices {
        println!("{}", described(device));
    }
    let device = &devices[0];
    let target = device.target().with_context(|| format!("there are no kernels for {}", device.key()))?;
    let root = options.cuda.folder_for(device.driver_version)?;
    kernels::compile_for(&root, target)?;

    let with_tensorrt = match options.no_tests {
        true => Vec::new(),
        false => run_tests(options, &root, device)?,
    };
    let mut outcome = Outcome::new(&described(device), with_tensorrt);
    gpu_bench::run(&options.bench, &root, &mut outcome)?;
    if !options.no_faults {
        // At last: a device that does not come back takes no measurement with it.
        outcome.add_faults(gpu_faults::run(&root).map_err(|error| format!("{error:#}")));
    }
    report(&outcome, &options.bench.outcome_path())
}

/// Prints what was found and writes it; fails where anything but a goal was missed.
fn report(outcome: &Outcome, path: &Path) -> anyhow::Result<()> {
    if outcome.is_empty() {
        return Ok(());
    }
    println!("\n{}", outcome.as_text());
    let text = serde_json::to_string_pretty(&outcome.as_json())?;
    fs::write(path, text + "\n").with_context(|| path.display().to_string())?;
    println!("written to {}", path.display());
    match outcome.num_failed() {
        0 => Ok(()),
        failed => bail!("{failed} of measurements and faults failed"),
    }
}

/// A number that is wrong ends everything: how fast it came does not matter then. Gives what was found with TensorRT.
fn run_tests(options: &Options, root: &Path, device: &Device) -> anyhow::Result<Vec<String>> {
    println!("kernels' numbers, on {}", device.name);
    tests(root, None)?;
    println!("whole models, on {}", device.name);
    suites(root)?;
    let with_tensorrt = gpu_tensorrt::run(root)?;
    if options.no_sanitizer || options.bench.quick {
        return Ok(with_tensorrt);
    }
    let Some(sanitizer) = cuda_root::sanitizer(device.driver_version)? else {
        println!(
            "compute-sanitizer is left out: PyPI has none for a driver of CUDA {}; with the program of a toolkit in PATH or /usr/local/cuda/bin it runs",
            device.driver_version
        );
        return Ok(with_tensorrt);
    };
    for tool in SANITIZERS {
        println!("kernels under compute-sanitizer's {tool}");
        tests(root, Some(&format!("{} --tool {tool} --error-exitcode 1", sanitizer.display())))?;
    }
    Ok(with_tensorrt)
}

fn described(device: &Device) -> String {
    format!(
        "{}, {} multiprocessors, {} MiB{}, CUDA {} in the driver",
        device.name,
        device.num_sms,
        device.memory_bytes >> 20,
        if device.is_integrated { " shared with the processor" } else { "" },
        device.driver_version,
    )
}

/// Runs the tests that launch kernels, on the device, each through `runner` if there is one.
fn tests(root: &Path, runner: Option<&str>) -> anyhow::Result<()> {
    let cargo = std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
    let mut command = Command::new(cargo);
    command.current_dir(repository()).args(["test", "--package", "takt-kernels-cu"]);
    for name in test_names()? {
        command.args(["--test", &name]);
    }
    command.env("TAKT_REQUIRE_DEVICE", "1").env("TAKT_CUDA_ROOT", root);
    if let Some(runner) = runner {
        let host = host()?.to_uppercase().replace('-', "_");
        command.env(format!("CARGO_TARGET_{host}_RUNNER"), runner);
    }
    let status = command.stdin(Stdio::null()).status().context("cargo")?;
    if !status.success() {
        bail!("the kernels' tests: {status}");
    }
    Ok(())
}

/// Runs the engine's suites on the device: those that ask nothing of an emulated one, and do not break it. One after another, as each wants the device
/// to itself.
fn suites(root: &Path) -> anyhow::Result<()> {
    let cargo = std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
    let mut command = Command::new(cargo);
    command.current_dir(repository()).args([
        "test",
        "--package",
        "takt-tests",
        "--test",
        "cuda",
        "--",
        "--test-threads=1",
        "--skip",
        gpu_faults::TEST,
    ]);
    command.env("TAKT_REQUIRE_DEVICE", "1").env("TAKT_CUDA_ROOT", root);
    let status = command.stdin(Stdio::null()).status().context("cargo")?;
    if !status.success() {
        bail!("the engine's suites: {status}");
    }
    Ok(())
}

/// Tests that go to the device when one is required: those that use the emulator's buffers, and no emulated driver.
fn test_names() -> anyhow::Result<Vec<String>> {
    let folder = repository().join("kernels-cu/tests");
    let mut names = Vec::new();
    for entry in fs::read_dir(&folder).with_context(|| folder.display().to_string())? {
        let path = entry?.path();
        if path.extension().is_none_or(|extension| extension != "rs") {
            continue;
        }
        let text = fs::read_to_string(&path)?;
        if text.contains("Emulator::of(") && !text.contains("EmulatedDevice") {
            names.extend(path.file_stem().and_then(|name| name.to_str()).map(str::to_owned));
        }
    }
    names.sort();
    Ok(names)
}

/// This machine's target triple, as cargo's variables name it.
fn host() -> anyhow::Result<String> {
    let output = Command::new("rustc").arg("-vV").output().context("rustc")?;
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    let host = text.lines().find_map(|line| line.strip_prefix("host: "));
    host.map(str::to_owned).context("rustc does not say its host")
}

#[cfg(test)]
mod tests {
    #[test]
    fn tests_that_launch_kernels_are_found() {
        let names = super::test_names().unwrap();
        assert!(names.iter().any(|name| name == "linear") && names.iter().any(|name| name == "attention"));
        assert!(!names.iter().any(|name| name == "on_device" || name == "emulator_itself"), "{names:?}");
    }
}
