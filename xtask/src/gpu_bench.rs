//! The numbers that are taken on a GPU: `takt bench` for every shape, format and kind of step, and beside perception.

use std::{
    path::{Path, PathBuf},
    process::{Command, Stdio},
};

use anyhow::{Context, bail};
use clap::Args;
use serde_json::{Value, json};

use crate::{gpu_outcome::Outcome, repository, target_folder};

/// What is measured.
#[derive(Args)]
pub struct Measurements {
    /// Leaves out the measurements
    #[arg(long)]
    no_bench: bool,
    /// A first look: the smallest shape in two formats, perception for seconds, no sanitizer
    #[arg(long)]
    pub quick: bool,
    /// Shapes
    #[arg(long, value_delimiter = ',', default_value = "llama-3.2-1b,qwen3-0.6b,qwen3-4b,qwen3-8b")]
    shapes: Vec<String>,
    /// Formats of weights
    #[arg(long, value_delimiter = ',', default_value = "nvfp4,fp8,int4,bf16")]
    formats: Vec<String>,
    /// Measures this engine directory in the place of shapes and formats
    #[arg(long, value_name = "DIR")]
    engine: Option<PathBuf>,
    /// The smallest sizes of everything, and a debug build: for a device on which time means nothing
    #[arg(long, hide = true)]
    tiny: bool,
    /// Where the outcome is written
    #[arg(long, value_name = "FILE.json")]
    json: Option<PathBuf>,
}

/// What runs in one call of `takt bench`.
struct Case {
    shape: String,
    format: String,
    args: Vec<String>,
}

/// Measures everything, prints a table and writes what becomes of `outcome`. `root` is the compiler's folder.
///
/// # Errors
/// A program that cannot be built, or a measurement that failed for another reason than memory. A goal that is missed is none.
pub fn run(options: &Measurements, root: &Path, mut outcome: Outcome) -> anyhow::Result<()> {
    if options.no_bench {
        return Ok(());
    }
    let takt = built(options.tiny)?;
    for case in options.cases() {
        println!("measuring {} {}", case.shape, case.format);
        let found = bench(&takt, root, &case.args);
        outcome.add(&case.shape, &case.format, found.map_err(|error| format!("{error:#}")));
    }
    println!("measuring perception");
    let found = bench(&takt, root, &options.perception());
    outcome.add_perception(found.map_err(|error| format!("{error:#}")));

    println!("\n{}", outcome.as_text());
    let path = options.json.clone().unwrap_or_else(|| target_folder().join("gpu-check.json"));
    let text = serde_json::to_string_pretty(&outcome.as_json())?;
    std::fs::write(&path, text + "\n").with_context(|| path.display().to_string())?;
    println!("written to {}", path.display());
    match outcome.num_failed() {
        0 => Ok(()),
        failed => bail!("{failed} measurements failed"),
    }
}

impl Measurements {
    fn cases(&self) -> Vec<Case> {
        let sizes: &[&str] = if self.tiny {
            &["--prompt-len", "8", "--tokens", "3", "--prefill-lens", "20", "--verify-sizes", "8,16"]
        } else {
            &[]
        };
        let case = |shape: &str, format: &str, which: &[&str]| Case {
            shape: shape.to_owned(),
            format: format.to_owned(),
            args: [&["bench"], which, &["--backend", "cuda", "--json"], sizes]
                .concat()
                .iter()
                .map(|&arg| arg.to_owned())
                .collect(),
        };
        if let Some(dir) = &self.engine {
            let dir = dir.display().to_string();
            return vec![case(&dir, "as built", &[&dir])];
        }
        let (shapes, formats) = if self.quick {
            (vec!["qwen3-0.6b"], vec!["nvfp4", "int4"])
        } else {
            (names(&self.shapes), names(&self.formats))
        };
        let of_shape = |shape: &&str| {
            let shape = (*shape).to_owned();
            formats.iter().map(move |format| (shape.clone(), (*format).to_owned())).collect::<Vec<_>>()
        };
        let pairs = shapes.iter().flat_map(of_shape);
        pairs
            .map(|(shape, format)| case(&shape, &format, &["--shape", &shape, "--weights", &format]))
            .collect()
    }

    fn perception(&self) -> Vec<String> {
        let engine = self.engine.as_ref().map(|dir| dir.display().to_string());
        let mut args = vec!["bench".to_owned(), "--perception".to_owned(), "--json".to_owned()];
        args.extend(engine);
        let more: &[&str] = if self.tiny {
            &["--hz", "50", "--seconds", "0.1", "--perception-rounds", "1", "--frame", "1ms"]
        } else if self.quick {
            &["--seconds", "3", "--perception-rounds", "1"]
        } else {
            // A thousand frames and more a row, so that p99.9 is one of them.
            &["--seconds", "20", "--perception-rounds", "2"]
        };
        args.extend(more.iter().map(|&arg| arg.to_owned()));
        args
    }
}

fn names(owned: &[String]) -> Vec<&str> {
    owned.iter().map(String::as_str).collect()
}

/// The binary, built now.
fn built(is_debug: bool) -> anyhow::Result<PathBuf> {
    let cargo = std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
    let mut command = Command::new(cargo);
    command.current_dir(repository()).args(["build", "--package", "takt-node"]);
    if !is_debug {
        command.arg("--release");
    }
    let status = command.stdin(Stdio::null()).status().context("cargo")?;
    if !status.success() {
        bail!("building takt: {status}");
    }
    Ok(target_folder().join(if is_debug { "debug" } else { "release" }).join("takt"))
}

/// What `takt` prints with `args`, which ask for JSON.
fn bench(takt: &Path, root: &Path, args: &[String]) -> anyhow::Result<Value> {
    let mut command = Command::new(takt);
    command.args(args).env("TAKT_CUDA_ROOT", root).stdin(Stdio::null());
    let output = command.output().with_context(|| takt.display().to_string())?;
    if !output.status.success() {
        let said = String::from_utf8_lossy(&output.stderr);
        bail!("{}: {}", args.join(" "), said.lines().last().unwrap_or("it said nothing"));
    }
    let found: Value = serde_json::from_slice(&output.stdout).context("takt bench --json")?;
    if found == json!(null) { bail!("takt bench printed nothing") } else { Ok(found) }
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;

    #[derive(Parser)]
    struct Line {
        #[command(flatten)]
        options: Measurements,
    }

    fn options(args: &[&str]) -> Measurements {
        Line::parse_from([&["x"], args].concat()).options
    }

    #[test]
    fn every_shape_is_measured_in_every_format_unless_something_else_is_asked() {
        let all = options(&[]).cases();
        assert_eq!(all.len(), 16);
        assert_eq!(all[1].args.join(" "), "bench --shape llama-3.2-1b --weights fp8 --backend cuda --json");
        assert_eq!(options(&["--quick"]).cases().len(), 2);
        assert_eq!(options(&["--shapes", "qwen3-4b", "--formats", "int4,bf16"]).cases().len(), 2);
        let tiny = options(&["--engine", "e", "--tiny"]);
        assert!(tiny.cases()[0].args.join(" ").starts_with("bench e --backend cuda --json --prompt-len 8"));
        assert_eq!(tiny.perception()[..4], ["bench", "--perception", "--json", "e"]);
    }
}
