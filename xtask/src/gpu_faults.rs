//! The GPU made to fail on purpose: what a worker does about it, and how soon it answers again.

use std::{
    env, fs,
    path::Path,
    process::{Command, Stdio},
};

use anyhow::Context;
use serde_json::Value;

use crate::{repository, target_folder};

/// The program is a test, which elsewhere runs on the emulated device.
pub const TEST: &str = "gpu_faults::";
/// Names the file that it writes what it found to.
const RECORD: &str = "TAKT_GPU_FAULTS_JSON";

/// What came of every fault; kernels are compiled with the CUDA folder `root`.
///
/// # Errors
/// A program that found nothing: it did not get to its end. What it found wrong is no error, but said in the record.
pub fn run(root: &Path) -> anyhow::Result<Value> {
    println!(
        "a GPU that is made to fail: memory that runs out, launches that are refused, kernels that trap and hang"
    );
    let record = target_folder().join("gpu-faults.json");
    let _ = fs::remove_file(&record);
    let cargo = env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
    let mut command = Command::new(cargo);
    command.current_dir(repository()).args(["test", "--package", "takt-tests", "--test", "cuda", TEST]);
    command.args(["--", "--nocapture", "--test-threads=1"]).stdin(Stdio::null());
    command.env("TAKT_REQUIRE_DEVICE", "1").env("TAKT_CUDA_ROOT", root).env(RECORD, &record);
    let status = command.status().context("cargo")?;
    let text = fs::read_to_string(&record).with_context(|| format!("no record of faults, {status}"))?;
    serde_json::from_str(&text).with_context(|| record.display().to_string())
}
