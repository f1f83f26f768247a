//! The CUDA compiler and NVIDIA's tools that look into cubins: a toolkit that is there, or packages of PyPI.

use std::{
    fs,
    path::{Path, PathBuf},
};

use anyhow::Context;
use clap::{Args, ValueEnum};

use crate::{
    python::{Package, installed},
    target_folder,
};

/// Where the compiler comes from.
#[derive(Args)]
pub struct Compiler {
    /// A CUDA folder: a toolkit, or anything with lib/libnvrtc.so and include/cuda_bf16.h; without it, packages from PyPI
    #[arg(long, env = "TAKT_CUDA_ROOT")]
    cuda_root: Option<PathBuf>,
    /// Which compiler to fetch from PyPI
    #[arg(long, value_enum, default_value_t = Release::Cuda13)]
    compiler: Release,
}

/// A release of the compiler that boards need.
#[derive(Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Release {
    /// For JetPack 7 and servers: cubins of CUDA 13
    #[value(name = "13.0")]
    Cuda13,
    /// For Orin with JetPack 6, whose driver takes no cubin of CUDA 13
    #[value(name = "12.6")]
    Cuda12,
}

impl Compiler {
    /// The CUDA folder, fetched if need be.
    pub fn folder(&self) -> anyhow::Result<PathBuf> {
        match &self.cuda_root {
            Some(root) => Ok(root.clone()),
            None => self.compiler.fetched(),
        }
    }
}

impl Release {
    fn fetched(self) -> anyhow::Result<PathBuf> {
        let packages = self.packages();
        let name = format!("nvrtc-{}", packages[0].version);
        let parent = target_folder().join("cuda");
        match self {
            Self::Cuda13 => Ok(installed(&parent, &name, &packages, |_| Ok(()))?.join("nvidia").join("cu13")),
            Self::Cuda12 => installed(&parent, &name, &packages, arrange_cuda_12),
        }
    }

    fn packages(self) -> [Package; 2] {
        match self {
            Self::Cuda13 => [
                Package { name: "nvidia-cuda-nvrtc", version: "13.0.88", megabytes: 90 },
                Package { name: "nvidia-cuda-runtime", version: "13.0.96", megabytes: 2 },
            ],
            Self::Cuda12 => [
                Package { name: "nvidia-cuda-nvrtc-cu12", version: "12.6.85", megabytes: 24 },
                Package { name: "nvidia-cuda-runtime-cu12", version: "12.6.77", megabytes: 1 },
            ],
        }
    }
}

/// The packages of CUDA 12 have a folder each; a CUDA folder has libraries and headers side by side.
fn arrange_cuda_12(folder: &Path) -> anyhow::Result<()> {
    let parts = folder.join("nvidia");
    for (from, to) in [("cuda_nvrtc/lib", "lib"), ("cuda_runtime/include", "include")] {
        fs::rename(parts.join(from), folder.join(to)).with_context(|| format!("package without {from}"))?;
    }
    Ok(())
}

/// The folder of `cuobjdump` and `nvdisasm`, fetched if need be. One release reads the cubins of all.
pub fn tools() -> anyhow::Result<PathBuf> {
    let packages = [
        Package { name: "nvidia-cuda-cuobjdump", version: "13.5.37", megabytes: 1 },
        Package { name: "nvidia-cuda-nvdisasm", version: "13.5.37", megabytes: 5 },
    ];
    let name = format!("tools-{}", packages[0].version);
    Ok(installed(&target_folder().join("cuda"), &name, &packages, |_| Ok(()))?.join("nvidia/cu13/bin"))
}

/// `compute-sanitizer`, fetched if need be.
pub fn sanitizer() -> anyhow::Result<PathBuf> {
    let packages = [Package { name: "nvidia-cuda-sanitizer-api", version: "13.0.85", megabytes: 14 }];
    let name = format!("sanitizer-{}", packages[0].version);
    let folder = installed(&target_folder().join("cuda"), &name, &packages, |_| Ok(()))?;
    Ok(folder.join("nvidia/cu13/bin/compute-sanitizer"))
}
