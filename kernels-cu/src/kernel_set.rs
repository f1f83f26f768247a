//! Every kernel for one target, from wherever its cubins are: an engine directory, a cache, or the compiler.

use crate::{
    BuildError, CudaVersion, Result, Target,
    cache::{Cache, Origin},
    compiler::Compiler,
    image::{Image, Kernel},
    launch::{Launch, LaunchError},
    source::{SOURCES, Source},
};

/// The cubins of all sources for one target.
#[derive(Debug)]
pub struct KernelSet {
    target: Target,
    images: Vec<Image>,
}

/// Where cubins are looked for, and what makes those that are missing.
#[derive(Debug, Clone, Copy)]
pub struct Places<'a> {
    /// Folders in the order they are looked through; what is compiled goes into the last.
    pub folders: &'a [Cache],
    /// Without one, all cubins have to be there.
    pub compiler: Option<&'a Compiler>,
    /// CUDA version of the driver that is to load them, which may take older cubins only; `None` where they are not for a driver that is here.
    pub driver: Option<CudaVersion>,
}

impl KernelSet {
    /// The kernels for `target`. `compiling` hears of each source before it is compiled, which takes seconds. The second value says what
    /// could not be stored, so that it will be compiled again the next time.
    ///
    /// # Errors
    /// Cubins that are missing where there is no compiler; those of [`Compiler::compile`].
    pub fn open(
        target: Target,
        places: Places<'_>,
        compiling: impl FnMut(&Source),
    ) -> Result<(Self, Vec<BuildError>)> {
        Self::open_of(SOURCES, target, places, compiling)
    }

    /// The kernels of `sources` alone.
    ///
    /// # Errors
    /// As [`Self::open`].
    pub fn open_of(
        sources: &[Source],
        target: Target,
        places: Places<'_>,
        mut compiling: impl FnMut(&Source),
    ) -> Result<(Self, Vec<BuildError>)> {
        let (mut images, mut not_stored, mut missing) = (Vec::new(), Vec::new(), Vec::new());
        let takes = |compiler: &&Compiler| {
            places.driver.is_none_or(|driver| driver.takes_cubins_of(compiler.version().cuda()))
        };
        let compiler = places.compiler.filter(takes);
        for source in sources {
            let find = |folder: &Cache| folder.find(source, target, places.driver);
            if let Some(image) = places.folders.iter().find_map(find) {
                images.push(image);
                continue;
            }
            let Some(compiler) = compiler else {
                missing.push(source);
                continue;
            };
            compiling(source);
            let (image, error) = places.compile(compiler, source, target)?;
            images.push(image);
            not_stored.extend(error);
        }
        if !missing.is_empty() {
            return Err(places.missing(target, &missing));
        }
        Ok((Self { target, images }, not_stored))
    }

    /// What they run on.
    #[must_use]
    pub fn target(&self) -> Target {
        self.target
    }

    /// One cubin a source, to be loaded by the driver.
    #[must_use]
    pub fn images(&self) -> &[Image] {
        &self.images
    }

    /// The kernel of that name.
    #[must_use]
    pub fn kernel(&self, name: &str) -> Option<&Kernel> {
        self.images.iter().find_map(|image| image.kernel(name))
    }

    /// Whether `launch` fits its kernel: [`Kernel::check`].
    ///
    /// # Errors
    /// What differs; a kernel that is in no cubin.
    pub fn check(&self, launch: &Launch) -> std::result::Result<(), LaunchError> {
        let kernel = self.kernel(launch.kernel()).ok_or_else(|| LaunchError::Unsupported {
            what: "kernel",
            found: launch.kernel().to_owned(),
            expected: "what the cubins have",
        })?;
        kernel.check(launch, self.target)
    }
}

impl Places<'_> {
    /// Why there are no cubins of `sources`, with what to do.
    fn missing(&self, target: Target, sources: &[&Source]) -> BuildError {
        let versions = |source: &&Source| {
            let of_folder = |folder: &Cache| folder.versions(source, target);
            self.folders.iter().flat_map(of_folder).map(|version| version.cuda()).collect::<Vec<_>>()
        };
        let compilers = sources.iter().flat_map(versions).chain(self.compiler.map(|it| it.version().cuda()));
        let too_new = |found: &CudaVersion| self.driver.is_some_and(|driver| !driver.takes_cubins_of(*found));
        BuildError::Missing {
            target,
            driver: self.driver,
            newest: compilers.filter(too_new).max(),
            sources: sources.iter().map(|source| source.name).collect(),
            folders: self.folders.iter().map(|cache| cache.folder().to_owned()).collect(),
        }
    }

    fn compile(
        &self,
        compiler: &Compiler,
        source: &Source,
        target: Target,
    ) -> Result<(Image, Option<BuildError>)> {
        let Some(folder) = self.folders.last() else {
            return Ok((compiler.compile(source, target)?.image, None));
        };
        let cached = folder.build(compiler, source, target)?;
        let error = match cached.origin {
            Origin::Found | Origin::Compiled => None,
            Origin::NotStored(error) => Some(error),
        };
        Ok((cached.image, error))
    }
}

#[cfg(test)]
mod tests {
    use std::{env, path::Path};

    use super::*;
    use crate::{
        compiler::CompilerVersion,
        launch::{Argument, DeviceAddress, Geometry},
    };

    const CUBIN: &[u8] = include_bytes!("../tests/fixtures/cubin/sm_87.cubin");
    const VERSION: CompilerVersion = CompilerVersion { major: 13, minor: 0, library_bytes: 1 };

    /// A folder with a cubin (the same one) under the name of every source in `names`.
    fn folder(names: &[&str]) -> (tempfile::TempDir, Cache) {
        let folder = tempfile::tempdir().unwrap();
        let cache = Cache::new(folder.path());
        let image = Image::parse(CUBIN.to_vec(), Target::Orin).unwrap();
        for source in SOURCES.iter().filter(|source| names.contains(&source.name)) {
            cache.store(source, VERSION, &image).unwrap();
        }
        (folder, cache)
    }

    fn names() -> Vec<&'static str> {
        SOURCES.iter().map(|source| source.name).collect()
    }

    fn open(folders: &[Cache]) -> Result<KernelSet> {
        let places = Places { folders, compiler: None, driver: None };
        KernelSet::open(Target::Orin, places, |_| panic!("nothing can be compiled"))
            .map(|(kernels, _)| kernels)
    }

    #[test]
    fn cubins_come_from_any_of_the_folders() {
        let names = names();
        let (first, rest) = names.split_at(3);
        let ((_first, engine), (_rest, cache)) = (folder(first), folder(rest));
        let kernels = open(&[engine, cache]).unwrap();
        assert_eq!(kernels.images().len(), SOURCES.len());
        assert!(kernels.kernel("plain").is_some());
    }

    #[test]
    fn without_a_compiler_what_is_missing_is_named() {
        let names = names();
        let (_temporary, cache) = folder(&names[1..]);
        let error = open(&[cache]).unwrap_err().to_string();
        assert!(error.contains(names[0]) && error.contains("sm_87") && !error.contains(names[1]), "{error}");
    }

    #[test]
    fn cubins_that_the_driver_is_too_old_for_are_none_and_the_compiler_to_use_is_named() {
        let (_temporary, cache) = folder(&names());
        let folders = [cache];
        let opened = |major, minor| {
            let driver = Some(CudaVersion::new(major, minor));
            let places = Places { folders: &folders, compiler: None, driver };
            KernelSet::open(Target::Orin, places, |_| panic!("nothing can be compiled"))
        };
        assert!(opened(13, 0).is_ok());
        let error = opened(12, 6).unwrap_err().to_string();
        for part in ["sm_87", "CUDA 12.6", "CUDA 13.0", "--for sm_87 --cuda 12.6", names()[0]] {
            assert!(error.contains(part), "{part} in {error}");
        }
    }

    #[test]
    fn a_launch_is_held_against_the_cubin() {
        let (_temporary, cache) = folder(&names());
        let kernels = open(&[cache]).unwrap();
        let launch = |kernel, arguments| Launch::new(kernel, Geometry::linear(1, 128), arguments).unwrap();
        let address = Argument::from(DeviceAddress(256));
        assert_eq!(kernels.check(&launch("plain", vec![address, address, 1_i32.into()])), Ok(()));
        assert!(kernels.check(&launch("plain", vec![address])).is_err());
        assert!(kernels.check(&launch("nothing", vec![])).unwrap_err().to_string().contains("nothing"));
    }

    #[test]
    fn what_is_compiled_once_needs_no_compiler_again() {
        let Some(root) = env::var_os("TAKT_CUDA_ROOT") else {
            assert!(env::var_os("TAKT_REQUIRE_NVRTC").is_none(), "TAKT_REQUIRE_NVRTC without TAKT_CUDA_ROOT");
            return eprintln!("skipped: no TAKT_CUDA_ROOT, so no CUDA compiler");
        };
        let compiler = Compiler::open(Path::new(&root)).unwrap();
        // All but two are there, as the compiler takes its time.
        let names = names();
        let (_temporary, cache) = folder(&names[2..]);
        let folders = [cache];
        let mut compiled = Vec::new();
        let places = Places { folders: &folders, compiler: Some(&compiler), driver: None };
        let opened = KernelSet::open(Target::Orin, places, |source| compiled.push(source.name));
        assert!(opened.unwrap().1.is_empty());
        assert_eq!(compiled, names[..2]);
        assert_eq!(open(&folders).unwrap().images().len(), SOURCES.len());
    }
}
