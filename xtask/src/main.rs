//! Chores of this repository that need more than a shell.
//!
//! `cargo run -p xtask -- kernels` compiles every CUDA kernel for every target and looks at what came out; no GPU is needed.
//! `cargo run -p xtask -- gpu-check` runs them, where there is one, and measures.
//! `cargo run -p xtask -- tensorrt` compiles the way to TensorRT with its headers; `--test` runs its tests on a stand-in.

mod cuda_root;
mod gpu_bench;
mod gpu_check;
mod gpu_faults;
mod gpu_outcome;
mod gpu_tensorrt;
mod kernels;
mod python;
mod tensorrt;
mod tensorrt_headers;

use std::{
    path::{Path, PathBuf},
    process::ExitCode,
};

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
    /// On a machine with a GPU: the kernels' numbers on the device and under compute-sanitizer, whole models, the test with NVIDIA's TensorRT where there
    /// is one, then how fast all of it is, and at last what becomes of a worker when the device is made to fail
    GpuCheck(gpu_check::Options),
    /// Prints the folder of the CUDA compiler, fetched from PyPI if need be: for TAKT_CUDA_ROOT
    CudaRoot(cuda_root::Compiler),
    /// Compiles the shim with TensorRT's headers, which are fetched, for this processor and for aarch64
    Tensorrt(tensorrt::Options),
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
        Chore::GpuCheck(options) => gpu_check::run(&options),
        Chore::Tensorrt(options) => tensorrt::run(&options),
        Chore::CudaRoot(compiler) => {
            println!("{}", compiler.folder()?.display());
            Ok(())
        }
    }
}

/// Where this repository's build keeps its files.
fn target_folder() -> PathBuf {
    let named = std::env::var_os("CARGO_TARGET_DIR").map(PathBuf::from);
    named.unwrap_or_else(|| repository().join("target"))
}

/// This repository.
fn repository() -> &'static Path {
    Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/.."))
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    #[test]
    fn the_command_line_holds_together() {
        super::Arguments::command().debug_assert();
    }
}
