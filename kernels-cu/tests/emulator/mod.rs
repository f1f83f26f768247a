//! Runs the kernels on the CPU: `runtime.cpp` and `shim.h` stand in for the GPU, this file compiles and loads them.
//!
//! ```ignore
//! mod emulator;
//! use emulator::{Buffer, Emulator};
//!
//! #[test]
//! fn rows_are_doubled() {
//!     let Some(emulator) = Emulator::of(&["double.cu"]) else { return };
//!     let (input, output) = (Buffer::from_slice(&[1.0_f32, 2.0]), Buffer::filled(2, f32::NAN));
//!     let launch = takt_kernels_cu::launch::double::launch(input.address(), output.address(), 2).unwrap();
//!     emulator.launch(&launch).unwrap();
//!     assert_eq!(output.to_vec(), [2.0, 4.0]);
//! }
//! ```
//!
//! - `Emulator::of` compiles the named files of `cu/` (and the headers) with the host's C++ compiler, once for all tests: objects are
//!   kept under `CARGO_TARGET_TMPDIR` by a hash of what they are made of. Without a compiler it says so and returns `None`; with
//!   `TAKT_REQUIRE_CXX=1` it fails instead, and warnings are errors. `CXX` names the compiler, `TAKT_EMULATOR_FLAGS` adds flags (sanitizers).
//! - Every `extern "C" __global__ void name(…)` is a kernel, also from a macro. Each source lies in a namespace of its own.
//! - In kernels, dynamic shared memory is `TAKT_DYNAMIC_SHARED(type, name);`. `__shared__ float x[32];` works as it is. Code the emulator
//!   cannot read (inline PTX) lies behind `#if defined(TAKT_EMULATED)`: see `cu/common/warp.cuh`.
//! - With `TAKT_REQUIRE_DEVICE=1` nothing is emulated: the same launches run on a GPU (see [`device`]).
//! - `launch` returns what a GPU would leave undefined as an error: threads that wait for each other at different places, that end
//!   while others wait, misaligned access through `load_16`/`store_16`, writes past the launch's shared memory. An address outside a
//!   buffer is found by `TAKT_EMULATOR_FLAGS=-fsanitize=address` only.
//! - Dynamic shared memory begins as NaN; asynchronous copies arrive when they are waited for; odd blocks run their threads backwards.
//! - Launches of one library run one after another, blocks too: a kernel in which blocks wait for each other hangs.

#![expect(unsafe_code, reason = "loads a shared library and gives it addresses, as a driver is given them")]
#![allow(dead_code, reason = "no test uses all of it")]
#![allow(clippy::unwrap_used, clippy::panic, reason = "tests")]

mod cubins;
pub mod device;
pub mod driver;

use std::{
    alloc::Layout,
    ffi::{CStr, CString, OsString, c_char, c_int, c_uint, c_void},
    fmt::Write as _,
    fs, io,
    marker::PhantomData,
    path::{Path, PathBuf},
    process::Command,
    ptr::NonNull,
};

use libloading::Library;
use sha2::{Digest, Sha256};
use takt_kernels_cu::{
    driver::memory::DeviceBuffer,
    launch::{DeviceAddress, Launch},
};

/// This crate's folder, from any crate of the workspace whose tests include this file by its path.
fn own_folder() -> PathBuf {
    fs::canonicalize(concat!(env!("CARGO_MANIFEST_DIR"), "/../kernels-cu")).unwrap()
}

type LaunchFn =
    unsafe extern "C" fn(*const c_char, *const c_uint, *const c_uint, c_uint, *mut *mut c_void) -> c_int;
type ErrorFn = unsafe extern "C" fn() -> *const c_char;

/// Kernels compiled for the CPU, or on the device the tests have to run on.
#[derive(Debug)]
pub enum Emulator {
    /// The emulator's library.
    Cpu(Library),
    /// All kernels.
    Gpu(&'static device::Device),
}

impl Emulator {
    /// The kernels of `sources`, names of files in `cu/`; `None` where there is no C++ compiler.
    pub fn of(sources: &[&str]) -> Option<Self> {
        if let Some(device) = device::required() {
            return Some(Self::Gpu(device));
        }
        let folder = own_folder().join("cu");
        Self::of_files(&sources.iter().map(|name| folder.join(name)).collect::<Vec<_>>())
    }

    /// The kernels of the files `sources`; `None` also where the tests have to run on a device, which has no such kernels.
    pub fn of_files(sources: &[PathBuf]) -> Option<Self> {
        if device::required().is_some() {
            eprintln!("skipped: a test of the emulator");
            return None;
        }
        let library = Compiler::found_or_skip()?.library(sources).unwrap_or_else(|error| panic!("{error}"));
        // SAFETY: the library is ours; loading it registers its kernels and does nothing else.
        let library = unsafe { Library::new(library) }.unwrap();
        Some(Self::Cpu(library))
    }

    /// Runs `launch` to its end.
    ///
    /// # Errors
    /// What the kernel did that a GPU leaves undefined, or what does not fit a target's cubin.
    pub fn launch(&self, launch: &Launch) -> Result<(), String> {
        cubins::check(launch)?;
        match self {
            Self::Cpu(library) => emulate(library, launch),
            Self::Gpu(device) => device.launch(launch),
        }
    }
}

fn emulate(library: &Library, launch: &Launch) -> Result<(), String> {
    let kernel = CString::new(launch.kernel()).unwrap();
    let geometry = launch.geometry();
    let mut arguments = launch.argument_pointers();
    // SAFETY: the symbol has this signature in `runtime.cpp`.
    let run = unsafe { library.get::<LaunchFn>(b"takt_emulated_launch\0") }.unwrap();
    // SAFETY: the arguments are the kernel's, checked by `Launch`'s maker, and live until the call returns.
    let status = unsafe {
        run(
            kernel.as_ptr(),
            geometry.grid.as_ptr(),
            geometry.block.as_ptr(),
            geometry.shared_bytes,
            arguments.as_mut_ptr(),
        )
    };
    if status == 0 { Ok(()) } else { Err(emulated_error(library)) }
}

fn emulated_error(library: &Library) -> String {
    // SAFETY: the symbol has this signature; the text lives until this thread's next launch.
    unsafe {
        let error = library.get::<ErrorFn>(b"takt_emulated_error\0").unwrap();
        CStr::from_ptr(error()).to_string_lossy().into_owned()
    }
}

/// Memory a kernel reads and writes: `len` values, at a multiple of 256 bytes, as a device's allocator gives it.
#[derive(Debug)]
pub struct Buffer<T> {
    memory: Memory,
    len: usize,
    values: PhantomData<T>,
}

/// Where a buffer lies.
#[derive(Debug)]
enum Memory {
    Host { bytes: NonNull<u8>, layout: Layout },
    Device { device: &'static device::Device, buffer: DeviceBuffer },
}

impl<T: Copy> Buffer<T> {
    const ALIGNMENT: usize = 256;

    /// A copy of `values`.
    pub fn from_slice(values: &[T]) -> Self {
        let memory = match device::required() {
            Some(device) => {
                // SAFETY: as many bytes as `values` has; types of tests have no padding.
                let bytes =
                    unsafe { std::slice::from_raw_parts(values.as_ptr().cast(), size_of_val(values)) };
                Memory::Device { device, buffer: device.hold(bytes) }
            }
            None => Self::on_host(values),
        };
        Self { memory, len: values.len(), values: PhantomData }
    }

    fn on_host(values: &[T]) -> Memory {
        let layout = Layout::from_size_align(size_of_val(values).max(1), Self::ALIGNMENT).unwrap();
        // SAFETY: the size is not 0.
        let bytes = NonNull::new(unsafe { std::alloc::alloc(layout) }).unwrap();
        // SAFETY: as many bytes as `values` has were allocated, aligned for every T.
        unsafe { bytes.cast::<T>().copy_from(NonNull::from(values).cast(), values.len()) };
        Memory::Host { bytes, layout }
    }

    /// `len` times `value`.
    pub fn filled(len: usize, value: T) -> Self {
        Self::from_slice(&vec![value; len])
    }

    /// Where it begins.
    pub fn address(&self) -> DeviceAddress {
        match &self.memory {
            Memory::Host { bytes, .. } => DeviceAddress(bytes.as_ptr().addr() as u64),
            Memory::Device { buffer, .. } => buffer.address(),
        }
    }

    /// What it holds now.
    pub fn to_vec(&self) -> Vec<T> {
        match &self.memory {
            Memory::Host { bytes, .. } => {
                // SAFETY: `len` values were written at the start; no kernel runs while no `launch` does.
                unsafe { std::slice::from_raw_parts(bytes.cast::<T>().as_ptr(), self.len) }.to_vec()
            }
            Memory::Device { device, buffer } => {
                let mut bytes = vec![0_u8; self.len * size_of::<T>()];
                device.read(buffer, &mut bytes);
                // SAFETY: the bytes of `len` values; every pattern is a value of the types that tests use.
                (0..self.len)
                    .map(|idx| unsafe { bytes.as_ptr().cast::<T>().add(idx).read_unaligned() })
                    .collect()
            }
        }
    }
}

impl Drop for Memory {
    fn drop(&mut self) {
        if let Self::Host { bytes, layout } = self {
            // SAFETY: allocated with this layout, freed once.
            unsafe { std::alloc::dealloc(bytes.as_ptr(), *layout) };
        }
    }
}

fn is_required() -> bool {
    std::env::var_os("TAKT_REQUIRE_CXX").is_some_and(|value| value == "1")
}

/// A C++ compiler, and how it is called.
struct Compiler {
    program: OsString,
    version: String,
    flags: Vec<String>,
}

/// A file that can be compiled, and a name of its content.
struct Unit {
    name: String,
    hash: String,
}

impl Compiler {
    /// `None`, with a word on stderr, where there is none and none is required.
    fn found_or_skip() -> Option<Self> {
        let found = Self::found();
        if found.is_none() {
            assert!(!is_required(), "no C++ compiler, and TAKT_REQUIRE_CXX=1");
            eprintln!("skipped: no C++ compiler (CXX, c++, g++ or clang++) to run the kernels on the CPU");
        }
        found
    }

    fn found() -> Option<Self> {
        let candidates = std::env::var_os("CXX").into_iter().chain(["c++", "g++", "clang++"].map(Into::into));
        let (program, output) = candidates.into_iter().find_map(|program| {
            let output = Command::new(&program).arg("--version").output().ok()?;
            output.status.success().then_some((program, output))
        })?;
        let mut flags: Vec<String> = "-std=c++17 -O2 -fPIC -fvisibility=hidden -fno-exceptions \
             -fno-strict-aliasing -ffp-contract=off -Wall -Wextra -Wno-unknown-pragmas"
            .split_whitespace()
            .map(Into::into)
            .collect();
        if is_required() {
            flags.push("-Werror".into());
        }
        let more = std::env::var("TAKT_EMULATOR_FLAGS").unwrap_or_default();
        flags.extend(more.split_whitespace().map(Into::into));
        Some(Self { program, version: String::from_utf8_lossy(&output.stdout).into_owned(), flags })
    }

    /// The shared library of `sources` and the runtime, made if it is not there yet.
    fn library(&self, sources: &[PathBuf]) -> io::Result<PathBuf> {
        let folder = Path::new(env!("CARGO_TARGET_TMPDIR")).join("emulator");
        fs::create_dir_all(&folder)?;
        // Tests run as several processes: the first builds, the others find what it built.
        let lock = fs::File::create(folder.join("lock"))?;
        lock.lock()?;
        let own = own_folder().join("tests/emulator");
        let mut headers = Sha256::new();
        headers.update(format!("{} {:?}", self.version, self.flags));
        for header in header_files(&own)? {
            headers.update(fs::read(header)?);
        }
        let runtime = own.join("runtime.cpp");
        let mut objects = vec![self.object(&folder, &unit(&headers, &runtime)?, &runtime)?];
        for source in sources {
            let unit = unit(&headers, source)?;
            let wrapper = folder.join(format!("{}-{}.cpp", unit.name, unit.hash));
            if !wrapper.exists() {
                write_whole(&wrapper, self.wrapper(&unit, source)?.as_bytes())?;
            }
            objects.push(self.object(&folder, &unit, &wrapper)?);
        }
        self.linked(&folder, &objects)
    }

    /// A translation unit of `source` that also registers its kernels.
    fn wrapper(&self, unit: &Unit, source: &Path) -> io::Result<String> {
        let mut scan = self.command();
        let scanned = run(scan.args(["-E", "-DTAKT_EMULATED_SCAN", "-x", "c++"]).arg(source))?;
        let mut text = format!("namespace takt_{} {{\n#include {source:?}\n}}\n", unit.name);
        for kernel in kernel_names(&scanned) {
            let _ = writeln!(text, "TAKT_EMULATED_REGISTER({kernel}, takt_{}::{kernel})", unit.name);
        }
        Ok(text)
    }

    fn object(&self, folder: &Path, unit: &Unit, source: &Path) -> io::Result<PathBuf> {
        let object = folder.join(format!("{}-{}.o", unit.name, unit.hash));
        if !object.exists() {
            let partial = object.with_extension("partial.o");
            run(self.command().args(["-c", "-x", "c++"]).arg(source).arg("-o").arg(&partial))?;
            fs::rename(partial, &object)?;
        }
        Ok(object)
    }

    fn linked(&self, folder: &Path, objects: &[PathBuf]) -> io::Result<PathBuf> {
        let hash = hex(Sha256::new().chain_update(format!("{objects:?}")));
        let library = folder.join(format!("libtakt-emulated-{hash}.so"));
        if !library.exists() {
            let partial = library.with_extension("partial.so");
            run(Command::new(&self.program)
                .args(&self.flags)
                .arg("-shared")
                .args(objects)
                .arg("-o")
                .arg(&partial))?;
            fs::rename(partial, &library)?;
        }
        Ok(library)
    }

    fn command(&self) -> Command {
        let root = own_folder();
        let mut command = Command::new(&self.program);
        command.args(&self.flags).arg("-I").arg(root.join("cu"));
        command.arg("-include").arg(root.join("tests/emulator/shim.h"));
        command
    }
}

fn header_files(own: &Path) -> io::Result<Vec<PathBuf>> {
    let common = own_folder().join("cu/common");
    let mut files = vec![own.join("shim.h")];
    for entry in fs::read_dir(common)? {
        files.push(entry?.path());
    }
    files.sort_unstable();
    Ok(files)
}

fn unit(headers: &Sha256, source: &Path) -> io::Result<Unit> {
    let name = source.file_stem().unwrap_or_default().to_string_lossy().into_owned();
    let hash = hex(headers
        .clone()
        .chain_update(source.as_os_str().as_encoded_bytes())
        .chain_update(fs::read(source)?));
    Ok(Unit { name, hash })
}

/// The first 16 digits.
fn hex(hash: Sha256) -> String {
    hash.finalize().iter().take(8).fold(String::new(), |text, byte| text + &format!("{byte:02x}"))
}

/// Standard output of a command that succeeds.
fn run(command: &mut Command) -> io::Result<String> {
    let output = command.output()?;
    let errors = String::from_utf8_lossy(&output.stderr);
    if !output.status.success() {
        return Err(io::Error::other(format!("{command:?}:\n{errors}")));
    }
    if !errors.is_empty() {
        eprintln!("{errors}");
    }
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}

fn write_whole(path: &Path, content: &[u8]) -> io::Result<()> {
    let partial = path.with_extension("partial");
    fs::write(&partial, content)?;
    fs::rename(partial, path)
}

/// The functions marked as kernels in a preprocessed source.
fn kernel_names(scanned: &str) -> Vec<String> {
    let mut names: Vec<String> = Vec::new();
    for after in scanned.split("TAKT_EMULATED_KERNEL").skip(1) {
        let Some((_, after)) = after.split_once("void") else { continue };
        let is_name = |c: char| c.is_alphanumeric() || c == '_';
        let name: String = after.trim_start().chars().take_while(|&c| is_name(c)).collect();
        if !name.is_empty() && !names.contains(&name) {
            names.push(name);
        }
    }
    names
}
