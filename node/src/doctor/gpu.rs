//! The NVIDIA driver and its devices, asked without making a context.

use std::path::{Path, PathBuf};

use takt_engine::backend::cuda::GpuWeights;
use takt_kernels_cu::{
    Target,
    driver::{
        DriverError,
        device::{self, Device},
        host_memory::HostReach,
    },
};

use super::{Finding, read};

pub(super) fn examine(lookup: &impl Fn(&str) -> Option<String>) -> Vec<Finding> {
    driver(&library_folders(lookup))
}

fn driver(folders: &[PathBuf]) -> Vec<Finding> {
    let library = find(folders, "libcuda.so.1").map(|path| path.display().to_string());
    match device::probe() {
        Ok(devices) => devices.iter().flat_map(|device| [usable(device), memory(device)]).collect(),
        Err(DriverError::NoDriver) => {
            let kernel = read("/proc/driver/nvidia/version");
            vec![no_library(kernel.as_deref().and_then(|text| text.lines().next()))]
        }
        Err(error) => {
            let library = library.unwrap_or_else(|| "libcuda.so.1".into());
            vec![Finding::note(
                "gpu",
                format!("NVIDIA driver at {library}: {error}"),
                "answers come from the CPU",
            )]
        }
    }
}

/// Without the driver's library; `kernel` is what the kernel's part says of itself, where it is there.
fn no_library(kernel: Option<&str>) -> Finding {
    match kernel {
        Some(kernel) => Finding::note(
            "gpu",
            kernel,
            "the kernel driver is there but libcuda.so.1 is not: a container started without the NVIDIA runtime?",
        ),
        None => Finding::note("gpu", "no NVIDIA driver", "answers come from the CPU"),
    }
}

fn usable(device: &Device) -> Finding {
    let found = format!("{}, driver of CUDA {}", device.key(), device.driver_version);
    match device.target() {
        Some(target) => {
            let unused = "used by `--backend cuda` and `--backend tensorrt` only: the kernels have not been tried on a GPU yet";
            // The compiler that knows every board is newer.
            let effect = if device.driver_version.major < Target::Thor.first_compiler().major {
                let compiler = target.first_compiler();
                format!(
                    "{unused}; its driver takes kernels by compilers of CUDA {} or older alone: `takt build ENGINE --kernels-only --for {target} \
                     --cuda {compiler}`",
                    device.driver_version.major
                )
            } else {
                unused.to_owned()
            };
            Finding::note("gpu", found, effect)
        }
        None => Finding::note("gpu", found, "there are no kernels for it: answers come from the CPU"),
    }
}

/// Whose memory it is, and where weights would be read.
fn memory(device: &Device) -> Finding {
    let mib = device.memory_bytes >> 20;
    let whose = if device.is_integrated { "shared with the processor" } else { "of its own" };
    let reach = match device.host_reach {
        HostReach::PageTables => "reads mapped files through the processor's page tables",
        HostReach::Registered => "reads mapped files that are registered with it",
        HostReach::Nothing => "reads no mapped files",
    };
    let auto = if GpuWeights::Auto.are_mapped_on(device) {
        "read in their mapped file"
    } else {
        "copied to the GPU"
    };
    Finding::note(
        "gpu memory",
        format!("{mib} MiB {whose}; {reach}"),
        format!(
            "with `weights = \"auto\"` of [gpu] weights are {auto}; which is faster has not been measured"
        ),
    )
}

/// Where the system looks for libraries, and NVIDIA's packages put them.
pub(super) fn library_folders(lookup: &impl Fn(&str) -> Option<String>) -> Vec<PathBuf> {
    let multiarch = format!("/usr/lib/{}-linux-gnu", std::env::consts::ARCH);
    let standard = ["/usr/lib", "/usr/lib64", "/usr/local/cuda/lib64", "/usr/local/lib", "/usr/lib/wsl/lib"];
    let configured = lookup("LD_LIBRARY_PATH").unwrap_or_default();
    let configured = configured.split(':').filter(|folder| !folder.is_empty()).map(PathBuf::from);
    configured
        .chain(standard.into_iter().map(PathBuf::from))
        .chain([
            Path::new(&multiarch).to_owned(),
            Path::new(&multiarch).join("nvidia"),
            Path::new(&multiarch).join("tegra"),
        ])
        .collect()
}

/// The first file whose name is `name` or starts with `name.`.
pub(super) fn find(folders: &[PathBuf], name: &str) -> Option<PathBuf> {
    let matches =
        |file: &str| file == name || file.strip_prefix(name).is_some_and(|rest| rest.starts_with('.'));
    folders.iter().find_map(|folder| {
        let mut files: Vec<PathBuf> =
            std::fs::read_dir(folder).ok()?.filter_map(|entry| Some(entry.ok()?.path())).collect();
        files.sort();
        files.into_iter().find(|path| path.file_name().and_then(|file| file.to_str()).is_some_and(matches))
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::doctor::Level;

    #[test]
    fn a_versioned_library_is_found_and_a_similar_name_is_not() {
        let folder = tempfile::tempdir().unwrap();
        std::fs::write(folder.path().join("libnvinfer_plugin.so.10"), "").unwrap();
        let folders = [folder.path().to_owned()];
        assert_eq!(find(&folders, "libnvinfer.so"), None);
        std::fs::write(folder.path().join("libnvinfer.so.10"), "").unwrap();
        assert_eq!(find(&folders, "libnvinfer.so"), Some(folder.path().join("libnvinfer.so.10")));
    }

    #[test]
    fn a_machine_without_a_driver_is_told_so_and_a_container_without_its_library_otherwise() {
        let words = |kernel| {
            let Finding { level, topic, found, effect } = no_library(kernel);
            assert_eq!((level, topic), (Level::Note, "gpu"), "nothing is wrong with the machine");
            format!("{found}; {effect}")
        };
        assert_eq!(words(None), "no NVIDIA driver; answers come from the CPU");
        let of_container = words(Some("NVRM version: 580.65"));
        for part in ["NVRM version: 580.65", "libcuda.so.1 is not", "container"] {
            assert!(of_container.contains(part), "{of_container}");
        }
    }

    /// Whatever this machine has: the driver is opened at run time, and its absence is no panic.
    #[test]
    fn what_there_is_of_a_driver_here_is_told() {
        let found = driver(&[]);
        assert!(found.iter().any(|finding| finding.topic == "gpu" && !finding.found.is_empty()), "{found:?}");
    }
}
