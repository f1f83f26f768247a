//! How commands use a GPU: what the environment says of kernels and toolkits.

use std::{
    env, fs,
    path::{Path, PathBuf},
    time::Duration,
};

use takt_engine::backend::cuda::{GpuOptions, GpuShare, GpuWeights};

/// Where toolkits are installed: `cuda`, a link to the one in use, beside `cuda-12.6`, `cuda-13.0`.
const USUAL_FOLDER: &str = "/usr/local";
/// Longer than any step of a model that fits a robot, shorter than a person's patience.
const STEP_LIMIT: Duration = Duration::from_secs(5);

/// Kernels that are compiled here are kept in `$XDG_CACHE_HOME/takt/kernels`.
pub(super) fn gpu_options(share: GpuShare, lookup: impl Fn(&str) -> Option<String>) -> GpuOptions {
    GpuOptions {
        share,
        weights: GpuWeights::Auto,
        kernel_cache: cache_folder("kernels", &lookup),
        cuda_roots: cuda_roots(&lookup),
        step_limit: STEP_LIMIT,
    }
}

/// `$XDG_CACHE_HOME/takt/NAME`; `None` for a user without a home.
pub(super) fn cache_folder(name: &str, lookup: impl Fn(&str) -> Option<String>) -> Option<PathBuf> {
    let cache = folder(&lookup, "XDG_CACHE_HOME").or_else(|| Some(folder(&lookup, "HOME")?.join(".cache")));
    cache.map(|cache| cache.join("takt").join(name))
}

/// The toolkits: those that `TAKT_CUDA_ROOT` names, with colons between them; without it, what `CUDA_HOME` and `CUDA_PATH` name, and those in
/// their usual place.
pub(super) fn cuda_roots(lookup: impl Fn(&str) -> Option<String>) -> Vec<PathBuf> {
    cuda_roots_in(Path::new(USUAL_FOLDER), lookup)
}

fn cuda_roots_in(usual: &Path, lookup: impl Fn(&str) -> Option<String>) -> Vec<PathBuf> {
    let named = |name: &str| env::split_paths(&lookup(name).unwrap_or_default()).collect::<Vec<_>>();
    let is_some = |path: &PathBuf| !path.as_os_str().is_empty();
    let ours: Vec<PathBuf> = named("TAKT_CUDA_ROOT").into_iter().filter(is_some).collect();
    if !ours.is_empty() {
        return ours;
    }
    let is_toolkit = |path: &PathBuf| {
        let name = path.file_name().and_then(|name| name.to_str());
        name.is_some_and(|name| name == "cuda" || name.starts_with("cuda-")) && path.is_dir()
    };
    let entries = fs::read_dir(usual).into_iter().flatten().filter_map(|entry| Some(entry.ok()?.path()));
    let mut installed: Vec<PathBuf> = entries.filter(is_toolkit).collect();
    installed.sort_unstable();
    ["CUDA_HOME", "CUDA_PATH"].into_iter().filter_map(|name| folder(&lookup, name)).chain(installed).collect()
}

fn folder(lookup: impl Fn(&str) -> Option<String>, name: &str) -> Option<PathBuf> {
    lookup(name).filter(|value| !value.is_empty()).map(PathBuf::from)
}

#[cfg(test)]
mod tests {
    use super::super::served_engine::{engine_options, worker_options};
    use super::*;
    use crate::{config::Layers, worker::GpuManners};

    /// What a configuration with `lines` in [gpu] asks of the backend and of the worker.
    fn configured(lines: &str) -> (GpuShare, GpuManners) {
        let config =
            Layers::default().text(&format!("[gpu]\n{lines}"), Path::new("takt.toml")).resolve().unwrap();
        (engine_options(&config).unwrap().gpu.share, worker_options(&config).gpu)
    }

    #[test]
    fn every_key_of_sharing_is_what_backend_and_worker_are_asked_for() {
        let green = |percent| GpuShare::GreenContext { percent };
        assert_eq!(configured(""), (green(50), GpuManners::default()));
        for (lines, share) in [
            ("share = \"green_context\"", green(50)),
            ("sm_share_percent = 40", green(40)),
            ("share = \"green_context\"\nsm_share_percent = 100", green(100)),
            ("share = \"priority\"\nsm_share_percent = 40", GpuShare::Priority),
            ("share = \"none\"", GpuShare::None),
        ] {
            assert_eq!(configured(lines), (share, GpuManners::default()), "{lines}");
        }
        let (share, manners) = configured("max_section_ms = 7\nidle_gap_us = 300");
        let expected =
            GpuManners { max_section: Some(Duration::from_millis(7)), idle_gap: Duration::from_micros(300) };
        assert_eq!((share, manners), (green(50), expected));
    }

    #[test]
    fn the_environment_names_cache_and_toolkit() {
        let options = |variables: &[(&str, &str)]| {
            gpu_options(GpuShare::None, |name| {
                variables.iter().find(|(known, _)| *known == name).map(|(_, value)| (*value).to_owned())
            })
        };
        let named = options(&[("HOME", "/home/a"), ("CUDA_HOME", "/opt/cuda"), ("TAKT_CUDA_ROOT", "")]);
        assert_eq!(named.kernel_cache, Some(PathBuf::from("/home/a/.cache/takt/kernels")));
        assert_eq!(named.cuda_roots.first(), Some(&PathBuf::from("/opt/cuda")));
        let both =
            options(&[("HOME", "/home/a"), ("XDG_CACHE_HOME", "/var/cache"), ("TAKT_CUDA_ROOT", "/t")]);
        assert_eq!(both.kernel_cache, Some(PathBuf::from("/var/cache/takt/kernels")));
        assert_eq!(both.cuda_roots, [PathBuf::from("/t")]);
        assert_eq!(options(&[]).kernel_cache, None);
    }

    #[test]
    fn several_toolkits_are_found_beside_each_other_or_named() {
        let usual = tempfile::tempdir().unwrap();
        for name in ["cuda-13.0", "cuda-12.6", "cuda", "cudas", "bin"] {
            fs::create_dir(usual.path().join(name)).unwrap();
        }
        fs::write(usual.path().join("cuda-notes"), "no folder").unwrap();
        let roots = |variables: &[(&str, &str)]| {
            cuda_roots_in(usual.path(), |name| {
                variables.iter().find(|(known, _)| *known == name).map(|(_, value)| (*value).to_owned())
            })
        };
        let installed = ["cuda", "cuda-12.6", "cuda-13.0"].map(|name| usual.path().join(name));
        assert_eq!(roots(&[]), installed);
        let with_home = roots(&[("CUDA_HOME", "/opt/cuda"), ("TAKT_CUDA_ROOT", "")]);
        assert_eq!(with_home.split_first(), Some((&PathBuf::from("/opt/cuda"), &installed[..])));
        let named = roots(&[("TAKT_CUDA_ROOT", "/a:/b"), ("CUDA_HOME", "/opt/cuda")]);
        assert_eq!(named, [PathBuf::from("/a"), PathBuf::from("/b")]);
    }
}
