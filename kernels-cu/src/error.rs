use std::{io, path::PathBuf};

use crate::{CudaVersion, compiler::CompilerVersion, image::ImageError, target::Target};

/// Result of building kernels.
pub type Result<T> = std::result::Result<T, BuildError>;

/// Why there is no cubin.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum BuildError {
    /// No compiler in the CUDA folder.
    #[error(
        "no CUDA compiler under {}: searched {} for libnvrtc.so.13 or .12; install the CUDA toolkit, or the Python packages nvidia-cuda-nvrtc and nvidia-cuda-runtime",
        .root.display(), .searched.join(", ")
    )]
    NoCompiler {
        /// The CUDA folder.
        root: PathBuf,
        /// Its folders that were searched.
        searched: Vec<&'static str>,
    },
    /// The compiler is there without the runtime's headers.
    #[error(
        "no cuda_bf16.h under {}/include: install the CUDA toolkit's headers (Debian: cuda-cudart-dev), or the Python package nvidia-cuda-runtime",
        .root.display()
    )]
    NoHeaders {
        /// The CUDA folder.
        root: PathBuf,
    },
    /// The compiler's library cannot be opened, or is not one.
    #[error("{}: {reason}", .library.display())]
    Library {
        /// The library's file.
        library: PathBuf,
        /// What the loader said.
        reason: String,
    },
    /// There are compilers, and none of the version that was asked for.
    #[error(
        "no compiler of CUDA {asked}: there is {}; install it, or set TAKT_CUDA_ROOT to its folder (several with colons between them)",
        versions(found)
    )]
    OtherCompilers {
        /// The version.
        asked: CudaVersion,
        /// Those that are there.
        found: Vec<CudaVersion>,
    },
    /// This compiler does not know the target.
    #[error("NVRTC {version} does not know {target}; use {} or newer", .target.first_compiler())]
    UnknownTarget {
        /// Of the compiler.
        version: CompilerVersion,
        /// What was asked for.
        target: Target,
    },
    /// The source does not compile.
    #[error("{source_name}.cu for {target}, NVRTC {version}: {message}\n{log}")]
    Compilation {
        /// Which source.
        source_name: String,
        /// For what.
        target: Target,
        /// Of the compiler.
        version: CompilerVersion,
        /// The compiler's name for it.
        message: String,
        /// What the compiler wrote.
        log: String,
    },
    /// There is no compiler to make what no folder has.
    #[error(
        "no kernels for {target}{} and no CUDA compiler to make them: {} not found, or made from other sources, in {}{}",
        loadable(*driver), .sources.join(", "), list(folders), remedy(*target, *driver, *newest)
    )]
    Missing {
        /// For what.
        target: Target,
        /// CUDA version of the driver that is to load them, if there is one.
        driver: Option<CudaVersion>,
        /// The newest of the cubins' compilers, or of the compiler itself, that the driver is too old for.
        newest: Option<CudaVersion>,
        /// Names of the sources.
        sources: Vec<&'static str>,
        /// Where cubins were looked for.
        folders: Vec<PathBuf>,
    },
    /// What the compiler, or a file, gave is not a cubin for the target.
    #[error(transparent)]
    Image(#[from] ImageError),
    /// A file of the cache cannot be read or written.
    #[error("{}: {error}", .path.display())]
    Io {
        /// Which file or folder.
        path: PathBuf,
        /// What the system said.
        error: io::Error,
    },
}

fn list(folders: &[PathBuf]) -> String {
    folders.iter().map(|folder| folder.display().to_string()).collect::<Vec<_>>().join(", ")
}

fn versions(found: &[CudaVersion]) -> String {
    found.iter().map(|version| format!("CUDA {version}")).collect::<Vec<_>>().join(", ")
}

fn loadable(driver: Option<CudaVersion>) -> String {
    driver.map_or_else(String::new, |driver| format!(" that a driver of CUDA {driver} takes"))
}

/// What to do about cubins that are there and too new.
fn remedy(target: Target, driver: Option<CudaVersion>, newest: Option<CudaVersion>) -> String {
    let Some((driver, newest)) = driver.zip(newest) else { return String::new() };
    let compiler = target.first_compiler();
    let way_out = if driver.takes_cubins_of(compiler) {
        format!(
            "put kernels by CUDA {} into the engine with `takt build ENGINE --kernels-only --for {target} --cuda {compiler}`, or update the driver",
            compiler.major
        )
    } else {
        "update the driver".to_owned()
    };
    format!("; there is CUDA {newest}, whose cubins take a driver of CUDA {}: {way_out}", newest.major)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_compiler_named_is_one_that_knows_the_board_and_that_the_driver_goes_with() {
        let remedy =
            |target, minor| remedy(target, Some(CudaVersion::new(12, minor)), Some(CudaVersion::new(13, 0)));
        assert!(remedy(Target::Orin, 2).contains("--for sm_87 --cuda 12.6"));
        assert!(remedy(Target::Blackwell, 8).contains("--for sm_120a --cuda 12.8"));
        let thor = remedy(Target::Thor, 6);
        assert!(thor.contains("update the driver") && !thor.contains("--cuda"), "{thor}");
    }
}
