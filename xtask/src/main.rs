//! Chores of this repository that need more than a shell.
//!
//! `cargo run -p xtask -- kernels` compiles every CUDA kernel for every target and looks at what came out; no GPU is needed.

mod cuda_root;
mod kernels;
mod python;

use std::{path::PathBuf, process::ExitCode};

use clap::{Parser, Subcommand};

#[derive(Parser)]
#[command(about = "Chores of this repository")]
struct Arguments {
    #[command(subcommand)]
    chore: Chore,
}

#[derive(Subcommand)]
enum Chore {
    /// Compiles every CUDA kernel for every target; fails on a warning, a spill, local memory, or an instruction that is missing
    Kernels(kernels::Options),
    /// Prints the folder of the CUDA compiler, fetched from PyPI if need be: for TAKT_CUDA_ROOT
    CudaRoot(cuda_root::Compiler),
}

fn main() -> ExitCode {
    match run(Arguments::parse().chore) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run(chore: Chore) -> anyhow::Result<()> {
    match chore {
        Chore::Kernels(options) => kernels::run(&options),
        Chore::CudaRoot(compiler) => {
            println!("{}", compiler.folder()?.display());
            Ok(())
        }
    }
}

/// Where this repository's build keeps its files.
fn target_folder() -> PathBuf {
    let named = std::env::var_os("CARGO_TARGET_DIR").map(PathBuf::from);
    named.unwrap_or_else(|| PathBuf::from(concat!(env!("CARGO_MANIFEST_DIR"), "/../target")))
}
