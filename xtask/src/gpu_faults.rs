//! The GPU made to fail on purpose: what a worker does about it, and how soon it answers again.

use std::{
    env, fs,
    path::Path,
    process::{Command, ExitStatus, Stdio},
};

use anyhow::{Context, bail};
use serde_json::Value;

use crate::{repository, target_folder};

/// The program is a test, which elsewhere runs on the emulated device.
pub const TEST: &str = "gpu_faults::";
/// Names the file that it writes what it found to.
const RECORD: &str = "TAKT_GPU_FAULTS_JSON";

/// What came of every fault; kernels are compiled with the CUDA folder `root`.
///
/// # Errors
/// A program that did not get to its end, or not well, and found nothing wrong. What it found wrong is no error, but said in the record.
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
    let found = serde_json::from_str(&text).with_context(|| record.display().to_string())?;
    confirmed(found, status)
}

/// `found`, unless it has no failure and the program that wrote it ended with one: it broke, or was ended, behind what it wrote.
fn confirmed(found: Value, status: ExitStatus) -> anyhow::Result<Value> {
    let is_clean = found["failures"].as_array().is_none_or(Vec::is_empty);
    if is_clean && !status.success() {
        bail!(
            "the record of faults has no failure, but the program that wrote it ended with {status}: see what it printed"
        );
    }
    Ok(found)
}

#[cfg(all(test, unix))]
mod tests {
    use std::os::unix::process::ExitStatusExt;

    use serde_json::json;

    use super::*;

    /// As `wait` has them: a code of 101, as of a panic, and an end by a segmentation fault.
    const BROKEN: [i32; 2] = [101 << 8, 11];

    #[test]
    fn a_clean_record_counts_only_of_a_program_that_ended_well() {
        let clean = json!({"device": "a GPU", "failures": []});
        assert_eq!(confirmed(clean.clone(), ExitStatus::from_raw(0)).unwrap(), clean);
        for raw in BROKEN {
            let status = ExitStatus::from_raw(raw);
            for record in [&clean, &json!({"device": "a GPU"})] {
                let error = confirmed(record.clone(), status).unwrap_err().to_string();
                assert!(error.contains(&status.to_string()) && error.contains("no failure"), "{error}");
            }
        }
    }

    #[test]
    fn a_record_with_failures_is_kept_however_its_program_ended() {
        let record = json!({"failures": ["a trap: other tokens"]});
        for raw in BROKEN {
            assert_eq!(confirmed(record.clone(), ExitStatus::from_raw(raw)).unwrap(), record);
        }
    }
}
