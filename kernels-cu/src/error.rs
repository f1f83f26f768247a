use std::{io, path::PathBuf};

use crate::{compiler::CompilerVersion, image::ImageError, target::Target};

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
    /// This compiler does not know the target.
    #[error("NVRTC {version} does not know {target}; {}", advice(*.target))]
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
        "no kernels for {target} and no CUDA compiler to make them: {} not found, or made from other sources, in {}",
        .sources.join(", "), list(folders)
    )]
    Missing {
        /// For what.
        target: Target,
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

fn advice(target: Target) -> &'static str {
    match target {
        Target::Orin | Target::Hopper => "use 12.6 or newer",
        Target::Thor => "use 13.0 or newer",
        Target::Blackwell => "use 12.8 or newer",
    }
}
