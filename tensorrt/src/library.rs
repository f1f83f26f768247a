//! `libnvinfer`, opened at run time.
#![expect(unsafe_code, reason = "functions of a library that is opened at run time")]

use std::{
    ffi::c_void,
    fmt,
    mem::ManuallyDrop,
    path::{Path, PathBuf},
    ptr,
    sync::{Arc, OnceLock},
};

use libloading::Library;

use crate::{
    Result, TensorRtError,
    api::{self, Api, Factory, FactoryOf, LoggerObject},
    journal,
};

/// What a build without the shim says.
const NO_SHIM: &str = "this takt was built without TensorRT: build it on the device with `cargo build --release --features tensorrt` (headers: \
     apt install libnvinfer-headers-dev libnvonnxparsers-dev, or TENSORRT_INCLUDE_DIR)";
/// What a library usually lacks that is there and cannot be loaded: the driver's, which NVIDIA's container runtime brings.
const IN_A_CONTAINER: &str = "in a container start it with `--runtime nvidia`";
/// Major versions that are looked for, to say that there is another than the one of the headers.
const KNOWN_MAJORS: std::ops::RangeInclusive<u32> = 8..=12;

/// A TensorRT release.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Version {
    /// The interface is another one in each.
    pub major: u32,
    /// Plans are of one.
    pub minor: u32,
    /// Of that.
    pub patch: u32,
}

impl Version {
    /// From TensorRT's number: major · 10,000 + minor · 100 + patch.
    fn from_number(number: i32) -> Self {
        let number = u32::try_from(number).unwrap_or_default();
        Self { major: number / 10_000, minor: number / 100 % 100, patch: number % 100 }
    }

    fn of_headers(api: &Api) -> Self {
        let [major, minor, patch] = [api.header_major, api.header_minor, api.header_patch]
            .map(|part| u32::try_from(part).unwrap_or_default());
        Self { major, minor, patch }
    }
}

impl fmt::Display for Version {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{}.{}", self.major, self.minor, self.patch)
    }
}

/// An opened TensorRT. Cheap to clone.
#[derive(Clone)]
pub struct TensorRt {
    inner: Arc<Inner>,
}

struct Inner {
    api: &'static Api,
    headers: Version,
    version: Version,
    /// Where the libraries are, when it is not for the system to find them.
    folder: Option<PathBuf>,
    create_builder: Factory,
    create_runtime: Factory,
    create_refitter: FactoryOf,
    /// Building alone takes it.
    parser: OnceLock<Result<Parser, String>>,
}

/// The ONNX parser's library.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Parser {
    pub create: FactoryOf,
    pub version: Version,
}

impl fmt::Debug for TensorRt {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "TensorRt({})", self.inner.version)
    }
}

impl TensorRt {
    /// Opens the library of the major version whose headers this build was compiled with, and checks that it is of that version before anything else
    /// is called. It stays open for as long as the process lives.
    ///
    /// # Errors
    /// [`TensorRtError::Missing`] without the shim or the library, or with a library of another major version or an older one than the headers,
    /// with what to do.
    pub fn open() -> Result<Self> {
        Self::open_from(None)
    }

    /// As [`open`](Self::open), with the libraries in `folder` and nowhere else.
    ///
    /// # Errors
    /// As [`open`](Self::open).
    pub fn open_in(folder: &Path) -> Result<Self> {
        Self::open_from(Some(folder.to_owned()))
    }

    fn open_from(folder: Option<PathBuf>) -> Result<Self> {
        let api = api::api().ok_or_else(|| TensorRtError::Missing(NO_SHIM.into()))?;
        let inner = Inner::open(api, folder).map_err(TensorRtError::Missing)?;
        Ok(Self { inner: Arc::new(inner) })
    }

    /// The library's.
    #[must_use]
    pub fn version(&self) -> Version {
        self.inner.version
    }

    /// Of the headers that this build was compiled with: of the same major version, and not later than the library.
    #[must_use]
    pub fn header_version(&self) -> Version {
        self.inner.headers
    }

    pub(crate) fn api(&self) -> &'static Api {
        self.inner.api
    }

    pub(crate) fn create_builder(&self) -> Factory {
        self.inner.create_builder
    }

    pub(crate) fn create_runtime(&self) -> Factory {
        self.inner.create_runtime
    }

    pub(crate) fn create_refitter(&self) -> FactoryOf {
        self.inner.create_refitter
    }

    /// The ONNX parser, opened when it is first asked for.
    pub(crate) fn parser(&self) -> Result<Parser> {
        let opened = self.inner.parser.get_or_init(|| self.inner.open_parser());
        opened.clone().map_err(TensorRtError::Missing)
    }

    /// The logger of the process.
    pub(crate) fn logger(&self) -> Result<*mut LoggerObject> {
        static LOGGER: OnceLock<usize> = OnceLock::new();
        // SAFETY: the callback takes any user's pointer, and lives as long as the program. The logger is never destroyed: TensorRT keeps it.
        let create = || unsafe { (self.inner.api.logger_create)(journal::log, ptr::null_mut()) } as usize;
        match *LOGGER.get_or_init(create) {
            0 => Err(TensorRtError::OutOfMemory { call: "beginning", reason: "for a logger".into() }),
            logger => Ok(logger as *mut LoggerObject),
        }
    }
}

impl Inner {
    fn open(api: &'static Api, folder: Option<PathBuf>) -> Result<Self, String> {
        let headers = Version::of_headers(api);
        let name = format!("libnvinfer.so.{}", headers.major);
        let library = match open(folder.as_deref(), &name) {
            Ok(library) => library,
            Err(error) => return Err(not_found(headers, folder.as_deref(), &error)),
        };
        // SAFETY: a function of no arguments since TensorRT 4, whatever its version.
        let version = unsafe { symbol::<extern "C" fn() -> i32>(&library, &name, "getInferLibVersion") }?();
        let version = Version::from_number(version);
        check_versions(headers, version, &name)?;
        // SAFETY: the signatures are the headers', of the same major version.
        unsafe {
            Ok(Self {
                api,
                headers,
                version,
                folder,
                create_builder: symbol(&library, &name, "createInferBuilder_INTERNAL")?,
                create_runtime: symbol(&library, &name, "createInferRuntime_INTERNAL")?,
                create_refitter: symbol(&library, &name, "createInferRefitter_INTERNAL")?,
                parser: OnceLock::new(),
            })
        }
    }

    fn open_parser(&self) -> Result<Parser, String> {
        let major = self.headers.major;
        let name = format!("libnvonnxparser.so.{major}");
        let library = open(self.folder.as_deref(), &name).map_err(|error| {
            let todo = match is_there(self.folder.as_deref(), &name, &error) {
                true => IN_A_CONTAINER.to_owned(),
                false => format!("apt install libnvonnxparsers{major}"),
            };
            format!("building plans takes TensorRT's ONNX parser, {name}: {error}; {todo}")
        })?;
        // SAFETY: a function of no arguments in every version.
        let version =
            unsafe { symbol::<extern "C" fn() -> i32>(&library, &name, "getNvOnnxParserVersion") }?();
        // A weak check: the header of every release up to now says 0.1.0. What tells releases apart is TensorRT's own version.
        if version < self.api.parser_version {
            let expected = Version::from_number(self.api.parser_version);
            let found = Version::from_number(version);
            return Err(format!(
                "{name} is of version {found}, and this takt was built with the headers of {expected}: build takt on this machine"
            ));
        }
        // SAFETY: the signature is the header's, of the same major version of TensorRT.
        let create = unsafe { symbol(&library, &name, "createNvOnnxParser_INTERNAL") }?;
        Ok(Parser { create, version: Version::from_number(version) })
    }
}

/// Opens a library for good: what TensorRT registers with the process outlives any use of it.
fn open(folder: Option<&Path>, name: &str) -> Result<ManuallyDrop<Library>, String> {
    let path = folder.map_or_else(|| PathBuf::from(name), |folder| folder.join(name));
    // SAFETY: its initializers are TensorRT's, which programs link.
    unsafe { Library::new(&path) }.map(ManuallyDrop::new).map_err(|error| match error {
        libloading::Error::DlOpen { desc } => format!("{desc:?}").trim_matches('"').to_owned(),
        other => other.to_string(),
    })
}

/// Whether a library that did not open is there all the same: the loader then names another that it needs, or says what is wrong with it.
fn is_there(folder: Option<&Path>, name: &str, error: &str) -> bool {
    let path = folder.map_or_else(|| PathBuf::from(name), |folder| folder.join(name));
    let missing = format!("{}: cannot open shared object file: No such file", path.display());
    !error.starts_with(&missing)
}

/// A function of `library`.
///
/// # Safety
/// `F` is a pointer to a function of its signature.
unsafe fn symbol<F: Copy>(library: &Library, name: &str, function: &str) -> Result<F, String> {
    // SAFETY: the caller's.
    let found = unsafe { library.get::<F>(function.as_bytes()) };
    found.map(|function| *function).map_err(|_| {
        format!(
            "{name} has no function {function}: it is no TensorRT, or a damaged one; install TensorRT anew"
        )
    })
}

/// Says why there is no library of the headers' major version to be used: it cannot be loaded, there is another, or none.
fn not_found(headers: Version, folder: Option<&Path>, error: &str) -> String {
    let major = headers.major;
    let own = format!("libnvinfer.so.{major}");
    if is_there(folder, &own, error) {
        return format!("{own} is there but cannot be loaded: {error}; {IN_A_CONTAINER}");
    }
    let others = KNOWN_MAJORS.filter(|other| *other != major);
    let other = others.into_iter().find(|other| open(folder, &format!("libnvinfer.so.{other}")).is_ok());
    match other {
        Some(other) => {
            format!(
                "this takt was built for TensorRT {major}, the machine has {other}: build takt on this machine ({error})"
            )
        }
        None => format!(
            "TensorRT {major} cannot be opened ({error}): apt install libnvinfer{major} libnvonnxparsers{major}, or name its folder in \
             LD_LIBRARY_PATH"
        ),
    }
}

/// Whether a library of `found` can be called by what was compiled with `headers`: of one major version later ones only add to the interface.
fn check_versions(headers: Version, found: Version, name: &str) -> Result<(), String> {
    if found.major != headers.major {
        return Err(format!(
            "{name} says that it is TensorRT {found}, and this takt was built for TensorRT {}: build takt on this machine",
            headers.major
        ));
    }
    if (found.major, found.minor) < (headers.major, headers.minor) {
        return Err(format!(
            "the machine has TensorRT {found}, and this takt was built with the headers of {headers}, whose interface is larger: build takt on \
             this machine"
        ));
    }
    Ok(())
}

/// What a machine and this build have of TensorRT, for people.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Probe {
    /// The headers this build was compiled with; `None` without the feature `tensorrt`.
    pub headers: Option<Version>,
    /// The library, or why it cannot be used.
    pub library: std::result::Result<Version, String>,
    /// The ONNX parser, which building takes, or why it cannot be used. Its version is its own, and the same in every release of TensorRT.
    pub parser: std::result::Result<Version, String>,
}

/// Looks what there is. Nothing is asked of a library but its version.
#[must_use]
pub fn probe() -> Probe {
    let headers = api::api().map(Version::of_headers);
    match TensorRt::open() {
        Ok(trt) => {
            let parser = trt.parser().map(|parser| parser.version).map_err(|error| error.to_string());
            Probe { headers, library: Ok(trt.version()), parser }
        }
        Err(error) => Probe { headers, library: Err(error.to_string()), parser: Err(error.to_string()) },
    }
}

/// What TensorRT's functions take for a stream, a tensor's memory or scratch memory.
pub(crate) type Address = *mut c_void;

#[cfg(test)]
mod tests {
    use super::*;

    const fn version(major: u32, minor: u32, patch: u32) -> Version {
        Version { major, minor, patch }
    }

    #[test]
    fn versions_are_read_as_tensorrt_writes_them() {
        assert_eq!(Version::from_number(101_602), version(10, 16, 2));
        assert_eq!(Version::from_number(110_400), version(11, 4, 0));
        assert_eq!(Version::from_number(-1), version(0, 0, 0));
    }

    #[test]
    fn a_library_of_the_same_major_and_not_older_than_the_headers_can_be_called() {
        let headers = version(10, 13, 3);
        for found in [version(10, 13, 3), version(10, 13, 0), version(10, 16, 2)] {
            check_versions(headers, found, "libnvinfer.so.10").unwrap();
        }
        let error = check_versions(headers, version(11, 4, 0), "libnvinfer.so.10").unwrap_err();
        assert_eq!(
            error,
            "libnvinfer.so.10 says that it is TensorRT 11.4.0, and this takt was built for TensorRT 10: build takt on this machine"
        );
        let error = check_versions(headers, version(10, 3, 0), "libnvinfer.so.10").unwrap_err();
        assert!(
            error.starts_with(
                "the machine has TensorRT 10.3.0, and this takt was built with the headers of 10.13.3"
            ),
            "{error}"
        );
    }

    #[cfg(not(feature = "tensorrt"))]
    #[test]
    fn a_build_without_the_shim_says_how_to_build_with_it() {
        let error = TensorRt::open().unwrap_err().to_string();
        assert!(error.contains("built without TensorRT") && error.contains("--features tensorrt"), "{error}");
        let probe = probe();
        assert_eq!((probe.headers, probe.library), (None, Err(error)));
    }

    #[cfg(feature = "tensorrt")]
    #[test]
    fn a_folder_without_the_library_is_said_to_be_without() {
        let error = TensorRt::open_in(Path::new("/nowhere")).unwrap_err().to_string();
        let major = Version::of_headers(api::api().unwrap()).major;
        assert!(error.starts_with(&format!("TensorRT {major} cannot be opened (")), "{error}");
        assert!(error.contains(&format!("apt install libnvinfer{major}")), "{error}");
    }

    #[cfg(feature = "tensorrt")]
    #[test]
    fn the_table_of_the_shim_is_the_one_that_is_mirrored() {
        assert!(api::api().is_some(), "shim.h and api.rs differ");
    }
}
