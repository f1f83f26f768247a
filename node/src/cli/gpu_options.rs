//! How commands use a GPU: what the environment says of kernels and toolkits.

use std::{path::PathBuf, time::Duration};

use takt_engine::backend::cuda::{GpuOptions, GpuShare};

/// A toolkit's usual place.
const USUAL_CUDA_ROOT: &str = "/usr/local/cuda";
/// Longer than any step of a model that fits a robot, shorter than a person's patience.
const STEP_LIMIT: Duration = Duration::from_secs(5);

/// Kernels that are compiled here are kept in `$XDG_CACHE_HOME/takt/kernels`.
pub(super) fn gpu_options(share: GpuShare, lookup: impl Fn(&str) -> Option<String>) -> GpuOptions {
    let folder = |name: &str| folder(&lookup, name);
    let cache = folder("XDG_CACHE_HOME").or_else(|| Some(folder("HOME")?.join(".cache")));
    GpuOptions {
        share,
        kernel_cache: cache.map(|cache| cache.join("takt").join("kernels")),
        cuda_root: cuda_root(lookup),
        step_limit: STEP_LIMIT,
    }
}

/// The toolkit: `TAKT_CUDA_ROOT`, `CUDA_HOME`, `CUDA_PATH`, or in its usual place.
pub(super) fn cuda_root(lookup: impl Fn(&str) -> Option<String>) -> Option<PathBuf> {
    let named =
        ["TAKT_CUDA_ROOT", "CUDA_HOME", "CUDA_PATH"].into_iter().find_map(|name| folder(&lookup, name));
    named.or_else(|| Some(PathBuf::from(USUAL_CUDA_ROOT)).filter(|usual| usual.is_dir()))
}

fn folder(lookup: impl Fn(&str) -> Option<String>, name: &str) -> Option<PathBuf> {
    lookup(name).filter(|value| !value.is_empty()).map(PathBuf::from)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_environment_names_cache_and_toolkit() {
        let options = |variables: &[(&str, &str)]| {
            gpu_options(GpuShare::None, |name| {
                variables.iter().find(|(known, _)| *known == name).map(|(_, value)| (*value).to_owned())
            })
        };
        let named = options(&[("HOME", "/home/a"), ("CUDA_HOME", "/opt/cuda"), ("TAKT_CUDA_ROOT", "")]);
        assert_eq!(named.kernel_cache, Some(PathBuf::from("/home/a/.cache/takt/kernels")));
        assert_eq!(named.cuda_root, Some(PathBuf::from("/opt/cuda")));
        let both =
            options(&[("HOME", "/home/a"), ("XDG_CACHE_HOME", "/var/cache"), ("TAKT_CUDA_ROOT", "/t")]);
        assert_eq!(both.kernel_cache, Some(PathBuf::from("/var/cache/takt/kernels")));
        assert_eq!(both.cuda_root, Some(PathBuf::from("/t")));
        assert_eq!(options(&[]).kernel_cache, None);
    }
}
