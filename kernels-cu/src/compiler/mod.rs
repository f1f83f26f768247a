//! CUDA C++ to cubin, with NVRTC: no nvcc, no C++ compiler, no GPU.
//!
//! A [`Compiler`] is opened from a **CUDA folder**: a toolkit (`/usr/local/cuda`) or the folder `nvidia/cu13` of the Python packages
//! `nvidia-cuda-nvrtc` and `nvidia-cuda-runtime`. Cubins of CUDA 13 need a driver of CUDA 13 (JetPack 7); Orin with JetPack 6, and servers
//! whose driver is of CUDA 12, need NVRTC 12.6, which knows neither Thor nor Blackwell.

mod nvrtc;

use std::{
    fmt, fs,
    path::{Path, PathBuf},
    str::FromStr,
};

use crate::{
    BuildError, CudaVersion, Result, Target,
    image::Image,
    source::{OPTIONS, Source},
};
use nvrtc::{Nvrtc, Program};

/// Where toolkits and packages keep libraries, below the CUDA folder.
const LIBRARY_FOLDERS: [&str; 7] = [
    "lib",
    "lib64",
    "targets/x86_64-linux/lib",
    "targets/sbsa-linux/lib",
    "targets/aarch64-linux/lib",
    "lib/x86_64-linux-gnu",
    "lib/aarch64-linux-gnu",
];

/// Where they keep headers.
const HEADER_FOLDERS: [&str; 4] = [
    "include",
    "targets/x86_64-linux/include",
    "targets/sbsa-linux/include",
    "targets/aarch64-linux/include",
];

/// Names of the library, newest first.
const LIBRARY_NAMES: [&str; 2] = ["libnvrtc.so.13", "libnvrtc.so.12"];

/// Which compiler made a cubin: the same source gives the same bytes with the same compiler.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct CompilerVersion {
    /// CUDA's.
    pub major: u32,
    /// CUDA's.
    pub minor: u32,
    /// Size of the library: tells the builds of one CUDA version apart, which NVRTC does not say.
    pub library_bytes: u64,
}

impl CompilerVersion {
    /// How file names say it: `13.0-6a3f08`; [`FromStr`] reads it back.
    #[must_use]
    pub fn key(&self) -> String {
        format!("{}.{}-{:x}", self.major, self.minor, self.library_bytes)
    }
}

impl CompilerVersion {
    /// The release of CUDA it is of.
    #[must_use]
    pub fn cuda(&self) -> CudaVersion {
        CudaVersion::new(self.major, self.minor)
    }
}

impl FromStr for CompilerVersion {
    type Err = ();

    fn from_str(key: &str) -> std::result::Result<Self, ()> {
        let (version, bytes) = key.split_once('-').ok_or(())?;
        let (major, minor) = version.split_once('.').ok_or(())?;
        let number = |text: &str| text.parse().map_err(|_| ());
        let library_bytes = u64::from_str_radix(bytes, 16).map_err(|_| ())?;
        Ok(Self { major: number(major)?, minor: number(minor)?, library_bytes })
    }
}

impl fmt::Display for CompilerVersion {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.cuda().fmt(formatter)
    }
}

/// A cubin with what the compiler had to say about it.
#[derive(Debug)]
pub struct Compiled {
    /// The cubin.
    pub image: Image,
    /// The compiler's warnings; empty where there are none.
    pub warnings: String,
}

/// NVRTC and the CUDA headers.
pub struct Compiler {
    nvrtc: Nvrtc,
    version: CompilerVersion,
    archs: Vec<u32>,
    library: PathBuf,
    include: PathBuf,
}

impl fmt::Debug for Compiler {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter
            .debug_struct("Compiler")
            .field("version", &self.version)
            .field("library", &self.library)
            .field("include", &self.include)
            .finish_non_exhaustive()
    }
}

impl Compiler {
    /// Opens the compiler of the CUDA folder `root`.
    ///
    /// # Errors
    /// No library or no headers there, or a library that is not NVRTC.
    pub fn open(root: &Path) -> Result<Self> {
        let library = find_library(root)?;
        let include = find_headers(root)?;
        let broken = |reason| BuildError::Library { library: library.clone(), reason };
        // A name alone would be searched for by the loader.
        let library = fs::canonicalize(&library).map_err(|error| broken(error.to_string()))?;
        let folder = library.parent().unwrap_or(root);
        let (nvrtc, mut version) = Nvrtc::open(folder, &library).map_err(broken)?;
        let archs = nvrtc.supported_archs().map_err(broken)?;
        version.library_bytes = fs::metadata(&library).map_err(|error| broken(error.to_string()))?.len();
        Ok(Self { nvrtc, version, archs, library, include })
    }

    /// Which compiler it is.
    #[must_use]
    pub fn version(&self) -> CompilerVersion {
        self.version
    }

    /// The library's file.
    #[must_use]
    pub fn library(&self) -> &Path {
        &self.library
    }

    /// Whether the compiler knows `target`.
    #[must_use]
    pub fn knows(&self, target: Target) -> bool {
        self.archs.contains(&target.sm())
    }

    /// Compiles `source` for `target`; a second or so.
    ///
    /// # Errors
    /// A target the compiler does not know; source that does not compile, with the compiler's log.
    pub fn compile(&self, source: &Source, target: Target) -> Result<Compiled> {
        if !self.knows(target) {
            return Err(BuildError::UnknownTarget { version: self.version, target });
        }
        let failed = |message, log| BuildError::Compilation {
            source_name: source.name.to_owned(),
            target,
            version: self.version,
            message,
            log,
        };
        let options = self.options(target);
        let file_name = format!("{}.cu", source.name);
        let program = Program { name: &file_name, text: &source.expanded(), options: &options };
        let done = self.nvrtc.compile(&program).map_err(|message| failed(message, String::new()))?;
        match done.cubin {
            Ok(cubin) => Ok(Compiled { image: Image::parse(cubin, target)?, warnings: done.log }),
            Err(message) => Err(failed(message, done.log)),
        }
    }

    fn options(&self, target: Target) -> Vec<String> {
        let ours = OPTIONS.iter().map(|&option| option.to_owned());
        let theirs =
            [format!("--gpu-architecture={target}"), format!("--include-path={}", self.include.display())];
        ours.chain(theirs).collect()
    }
}

fn find_library(root: &Path) -> Result<PathBuf> {
    let candidates = LIBRARY_NAMES
        .iter()
        .flat_map(|name| LIBRARY_FOLDERS.iter().map(move |folder| root.join(folder).join(name)));
    let found = candidates.into_iter().find(|path| path.is_file());
    found.ok_or_else(|| BuildError::NoCompiler { root: root.to_owned(), searched: LIBRARY_FOLDERS.to_vec() })
}

fn find_headers(root: &Path) -> Result<PathBuf> {
    let mut candidates = HEADER_FOLDERS.iter().map(|folder| root.join(folder));
    let found = candidates.find(|folder| folder.join("cuda_bf16.h").is_file());
    found.ok_or_else(|| BuildError::NoHeaders { root: root.to_owned() })
}

/// The compilers of the CUDA folders `roots`, each once: one may be a link to another. Folders without one are left out.
///
/// # Errors
/// What is wrong with the first folder, if there is a compiler in none.
pub fn open_all(roots: &[PathBuf]) -> Result<Vec<Compiler>> {
    let (mut compilers, mut first_error) = (Vec::<Compiler>::new(), None);
    for root in roots {
        match Compiler::open(root) {
            Ok(compiler) if compilers.iter().any(|known| known.library == compiler.library) => {}
            Ok(compiler) => compilers.push(compiler),
            Err(error) => first_error = first_error.or(Some(error)),
        }
    }
    match first_error {
        Some(error) if compilers.is_empty() => Err(error),
        _ => Ok(compilers),
    }
}

/// The compiler to make cubins of `target` with for a driver of CUDA `driver`: of those that know the target, and whose cubins the driver takes,
/// the newest. For any driver, `driver` is `None`.
#[must_use]
pub fn choose(compilers: &[Compiler], target: Target, driver: Option<CudaVersion>) -> Option<&Compiler> {
    let is_fit = |compiler: &&Compiler| {
        compiler.knows(target)
            && driver.is_none_or(|driver| driver.takes_cubins_of(compiler.version().cuda()))
    };
    compilers.iter().filter(is_fit).max_by_key(|compiler| compiler.version())
}

#[cfg(test)]
mod tests;
