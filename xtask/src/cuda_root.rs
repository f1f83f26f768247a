//! The CUDA compiler and NVIDIA's tools that look into cubins: a toolkit that is there, or packages of PyPI.

use std::{
    fs,
    path::{Path, PathBuf},
};

use anyhow::{Context, bail};
use clap::{Args, ValueEnum};
use takt_kernels_cu::CudaVersion;

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
    /// Which compiler to fetch from PyPI; without it 13.0, for a device that is there the newest whose cubins its driver takes
    #[arg(long, value_enum)]
    compiler: Option<Release>,
}

/// A release of the compiler that boards need.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
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
            None => self.compiler.unwrap_or(Release::Cuda13).fetched(),
        }
    }

    /// The CUDA folder for a device whose driver is of CUDA `driver`.
    pub fn folder_for(&self, driver: CudaVersion) -> anyhow::Result<PathBuf> {
        match &self.cuda_root {
            Some(root) => Ok(root.clone()),
            None => self.release_for(driver)?.fetched(),
        }
    }

    fn release_for(&self, driver: CudaVersion) -> anyhow::Result<Release> {
        match self.compiler {
            Some(asked) if !driver.takes_cubins_of(asked.cuda()) => {
                let (asked, fits) = (asked.cuda(), Release::newest_for(driver)?.cuda());
                bail!(
                    "--compiler {asked}: the driver supports CUDA {driver} and takes none of its cubins; use {fits}, or leave it out"
                )
            }
            Some(asked) => Ok(asked),
            None => Release::newest_for(driver),
        }
    }
}

impl Release {
    /// The newest whose cubins a driver of CUDA `driver` takes.
    pub fn newest_for(driver: CudaVersion) -> anyhow::Result<Self> {
        let fits =
            [Self::Cuda13, Self::Cuda12].into_iter().find(|release| driver.takes_cubins_of(release.cuda()));
        fits.with_context(|| format!("the driver supports CUDA {driver}, expected 12.0 or later: update it"))
    }

    fn cuda(self) -> CudaVersion {
        match self {
            Self::Cuda13 => CudaVersion::new(13, 0),
            Self::Cuda12 => CudaVersion::new(12, 6),
        }
    }

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

/// `compute-sanitizer` for a driver of CUDA `driver`, fetched if need be; `None` where it can neither be fetched nor is there. It wants a driver
/// of its own release's major version or later, and PyPI's packages of CUDA 12 are without the program.
pub fn sanitizer(driver: CudaVersion) -> anyhow::Result<Option<PathBuf>> {
    if Release::newest_for(driver)? == Release::Cuda12 {
        let path = std::env::var_os("PATH").unwrap_or_default();
        let folders = std::env::split_paths(&path).chain([PathBuf::from("/usr/local/cuda/bin")]);
        return Ok(sanitizer_in(folders));
    }
    let packages = [Package { name: "nvidia-cuda-sanitizer-api", version: "13.0.85", megabytes: 14 }];
    let name = format!("sanitizer-{}", packages[0].version);
    let folder = installed(&target_folder().join("cuda"), &name, &packages, |_| Ok(()))?;
    Ok(Some(folder.join("nvidia/cu13/bin/compute-sanitizer")))
}

/// Of a toolkit that is installed: JetPack's has it in `/usr/local/cuda/bin`.
fn sanitizer_in(mut folders: impl Iterator<Item = PathBuf>) -> Option<PathBuf> {
    folders.find_map(|folder| Some(folder.join("compute-sanitizer")).filter(|program| program.is_file()))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn chosen(compiler: Option<Release>, major: u32, minor: u32) -> anyhow::Result<Release> {
        Compiler { cuda_root: None, compiler }.release_for(CudaVersion::new(major, minor))
    }

    #[test]
    fn a_driver_gets_the_newest_compiler_whose_cubins_it_takes() {
        for (major, minor, release) in [
            // Orin with JetPack 6, and with drivers before and after it.
            (12, 6, Release::Cuda12),
            (12, 0, Release::Cuda12),
            (12, 9, Release::Cuda12),
            // Thor with JetPack 7, and servers.
            (13, 0, Release::Cuda13),
            (14, 1, Release::Cuda13),
        ] {
            assert_eq!(chosen(None, major, minor).unwrap(), release, "{major}.{minor}");
        }
        assert!(chosen(None, 11, 8).unwrap_err().to_string().contains("CUDA 11.8, expected 12.0"));
    }

    #[test]
    fn an_installed_sanitizer_is_found_in_the_first_folder_that_has_it() {
        let parent = tempfile::tempdir().unwrap();
        let folders = ["empty", "first", "second"].map(|name| parent.path().join(name));
        folders.iter().for_each(|folder| fs::create_dir(folder).unwrap());
        assert_eq!(sanitizer_in(folders.iter().cloned()), None);
        let programs = [1, 2].map(|idx: usize| folders[idx].join("compute-sanitizer"));
        programs.iter().for_each(|program| fs::write(program, "").unwrap());
        assert_eq!(sanitizer_in(folders.into_iter()).as_ref(), Some(&programs[0]));
    }

    #[test]
    fn a_compiler_that_is_asked_for_is_taken_unless_the_driver_takes_none_of_its_cubins() {
        assert_eq!(chosen(Some(Release::Cuda12), 13, 0).unwrap(), Release::Cuda12);
        let error = chosen(Some(Release::Cuda13), 12, 6).unwrap_err().to_string();
        for part in ["--compiler 13.0", "CUDA 12.6 ", "use 12.6"] {
            assert!(error.contains(part), "{part} in {error}");
        }
    }
}
