//! A CUDA device that is emulated: `libcuda.so.1` made of this folder and of the kernels' emulator.
//!
//! ```ignore
//! mod emulator; // in another crate: #[path = "../../kernels-cu/tests/emulator/mod.rs"]
//! use emulator::driver::EmulatedDevice;
//!
//! #[test]
//! fn a_stream_can_be_made() {
//!     EmulatedDevice::new("a_stream_can_be_made").sm(87).kernels(&["embed.cu"]).run(|device| {
//!         // Here `cudarc`, and all that is built on it, finds a driver and an Orin.
//!         assert_eq!(device.report().value("streams"), 0);
//!     });
//! }
//! ```
//!
//! - `run` starts this test alone in a child process whose `LD_LIBRARY_PATH` finds the emulated driver first, and waits for it, but not
//!   for ever; the body runs in the child. Without a C++ compiler the test is skipped with a word on stderr (see the parent module).
//! - Memory is bounded, begins as not a number, and lies between pages that nobody may touch: a kernel that leaves an allocation ends with
//!   `CUDA_ERROR_ILLEGAL_ADDRESS`. Streams have threads of their own, so that what is read too early is wrong. Handles are never given
//!   twice. Calls that a capture forbids fail as documented.
//! - `Device::report` counts what is alive, what destroyed contexts still held, and the calls of each function. `Device::fail_allocation`
//!   and its neighbours make the device fail.
//! - Not emulated, and refused: clusters, cooperative launches, memory pools, managed memory, linking, PTX, textures, IPC. Time means
//!   nothing. Stricter than CUDA: pageable memory cannot be copied in a capture, and ranges of a copy within the device must not overlap.

mod versions;

use std::{
    collections::BTreeMap,
    ffi::{CString, OsString, c_char, c_int},
    fs, io,
    os::unix::fs::symlink,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    thread,
    time::{Duration, Instant},
};

use libloading::Library;
use sha2::{Digest, Sha256};
use takt_kernels_cu::{CudaVersion, driver::host_memory::HostReach, source};

use super::{Compiler, device::is_required as is_device_required, hex, own_folder, run};

/// Names the test that a child process is started for.
pub const CHILD: &str = "TAKT_EMULATED_CHILD";
const LIBRARY: &str = "libcuda.so.1";

/// A test that runs on an emulated device.
#[derive(Debug)]
pub struct EmulatedDevice {
    test: &'static str,
    sources: Vec<PathBuf>,
    settings: Vec<(&'static str, String)>,
    limit: Duration,
    version: CudaVersion,
    hidden: Vec<&'static str>,
    on_any_device: bool,
}

impl EmulatedDevice {
    /// For the test of this name, with its modules but without the crate's: `copies::are_in_order`. An H200 with 1 GiB of memory and no
    /// kernels.
    pub fn new(test: &'static str) -> Self {
        Self {
            test,
            sources: Vec::new(),
            settings: Vec::new(),
            limit: Duration::from_secs(60),
            version: versions::OWN,
            hidden: Vec::new(),
            on_any_device: false,
        }
    }

    /// The driver's version, if not 13.0: what came later is not among its functions, and cubins of later compilers are refused.
    #[must_use]
    pub fn cuda(mut self, major: u32, minor: u32) -> Self {
        self.version = CudaVersion::new(major, minor);
        self.set("TAKT_EMULATED_DRIVER_VERSION", major * 1000 + minor * 10)
    }

    /// A driver that lacks the function `name`, of whatever version it is.
    #[must_use]
    pub fn without(mut self, name: &'static str) -> Self {
        self.hidden.push(name);
        self
    }

    /// The device's compute capability: 87 Orin, 90 H200, 110 Thor, 120 RTX.
    #[must_use]
    pub fn sm(self, sm: u32) -> Self {
        self.set("TAKT_EMULATED_SM", sm)
    }

    /// Streaming multiprocessors, if not the model's.
    #[must_use]
    pub fn num_sms(self, num_sms: u32) -> Self {
        self.set("TAKT_EMULATED_SM_COUNT", num_sms)
    }

    /// Bytes of device memory.
    #[must_use]
    pub fn memory_bytes(self, bytes: u64) -> Self {
        self.set("TAKT_EMULATED_MEMORY_BYTES", bytes)
    }

    /// How the device reads memory that the processor may only read, if not by registering it.
    #[must_use]
    pub fn host_reach(self, reach: HostReach) -> Self {
        let number = match reach {
            HostReach::Nothing => 0,
            HostReach::Registered => 1,
            HostReach::PageTables => 2,
        };
        self.set("TAKT_EMULATED_HOST_REACH", number)
    }

    /// Least time between an operation's submission and its begin.
    #[must_use]
    pub fn latency_us(self, latency_us: u64) -> Self {
        self.set("TAKT_EMULATED_LATENCY_US", latency_us)
    }

    /// Files of `cu/` whose kernels the device has.
    #[must_use]
    pub fn kernels(mut self, sources: &[&str]) -> Self {
        self.sources.extend(sources.iter().map(|name| own_folder().join("cu").join(name)));
        self
    }

    /// All kernels.
    #[must_use]
    pub fn all_kernels(self) -> Self {
        let files: Vec<_> =
            source::all().map(|source| own_folder().join(format!("cu/{}.cu", source.name))).collect();
        self.kernel_files(&files)
    }

    /// Other files whose kernels the device has.
    #[must_use]
    pub fn kernel_files(mut self, sources: &[PathBuf]) -> Self {
        self.sources.extend_from_slice(sources);
        self
    }

    /// How long the test may take.
    #[must_use]
    pub fn limit(mut self, limit: Duration) -> Self {
        self.limit = limit;
        self
    }

    /// For a test that asks nothing of the [`Device`]: with `TAKT_REQUIRE_DEVICE=1` it runs on the machine's own, whichever that is. Without
    /// this it is then skipped.
    #[must_use]
    pub fn or_any_device(self) -> Self {
        Self { on_any_device: true, ..self }
    }

    fn set(mut self, name: &'static str, value: impl ToString) -> Self {
        self.settings.push((name, value.to_string()));
        self
    }

    /// Functions that the driver does not have.
    fn hidden(&self) -> Vec<&'static str> {
        versions::later_than(self.version).chain(self.hidden.iter().copied()).collect()
    }

    /// What a program is started with so that it finds the device; `None` without a C++ compiler. `TAKT_EMULATED_FAIL_ALLOCATION`,
    /// `TAKT_EMULATED_FAIL_LAUNCH` and `TAKT_EMULATED_HANG_LAUNCH` beside it say which of them fails, from 1; `TAKT_EMULATED_REPORT` names
    /// a file for the [`Report`] at the program's end.
    pub fn environment(&self) -> Option<Vec<(&'static str, OsString)>> {
        let compiler = Compiler::found_or_skip()?;
        let mut path = OsString::from(
            library(&compiler, &self.sources, &self.hidden()).unwrap_or_else(|error| panic!("{error}")),
        );
        if let Some(before) = std::env::var_os("LD_LIBRARY_PATH") {
            path.push(":");
            path.push(before);
        }
        let settings = self.settings.iter().map(|(name, value)| (*name, OsString::from(value)));
        Some(settings.chain([("LD_LIBRARY_PATH", path)]).collect())
    }

    /// Runs `body` in a child process in which the emulated driver is CUDA's, and fails as it fails.
    pub fn run(self, body: impl FnOnce(&Device)) {
        if std::env::var_os(CHILD).is_some_and(|name| name == self.test) {
            return body(&Device::open());
        }
        if is_device_required() {
            if self.on_any_device {
                return body(&Device::open());
            }
            return eprintln!("skipped: a test of the emulated device");
        }
        let Some(environment) = self.environment() else { return };
        let mut command = Command::new(std::env::current_exe().unwrap());
        command.args([self.test, "--exact", "--nocapture", "--test-threads=1"]);
        command.env(CHILD, self.test).envs(environment);
        let (is_well, output) = finished(command, self.limit);
        assert!(is_well, "in the child process of {}:\n{output}", self.test);
        assert!(output.contains("1 passed"), "no test is called {}:\n{output}", self.test);
    }
}

/// Whether `command` ended well within `limit`, and what it wrote.
pub fn finished(mut command: Command, limit: Duration) -> (bool, String) {
    let mut child =
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    let (stdout, stderr) = (child.stdout.take().unwrap(), child.stderr.take().unwrap());
    let (stdout, stderr) = (thread::spawn(|| read(stdout)), thread::spawn(|| read(stderr)));
    let status = wait(&mut child, limit);
    let (stdout, stderr) = (stdout.join().unwrap(), stderr.join().unwrap());
    let ended = status.map_or_else(|| format!("killed after {limit:?}"), |status| status.to_string());
    (status.is_some_and(|status| status.success()), format!("{stdout}{stderr}{ended}"))
}

fn read(mut from: impl io::Read) -> String {
    let mut bytes = Vec::new();
    let _ = from.read_to_end(&mut bytes);
    String::from_utf8_lossy(&bytes).into_owned()
}

fn wait(child: &mut Child, limit: Duration) -> Option<std::process::ExitStatus> {
    let start = Instant::now();
    while start.elapsed() < limit {
        if let Some(status) = child.try_wait().unwrap() {
            return Some(status);
        }
        thread::sleep(Duration::from_millis(5));
    }
    let _ = child.kill();
    let _ = child.wait();
    None
}

/// The emulated device of this process, apart from what CUDA's interface has.
#[derive(Debug)]
pub struct Device {
    library: Library,
}

impl Device {
    fn open() -> Self {
        // SAFETY: the library is ours, or the tests below fail at its missing symbols; its initializers register kernels.
        Self { library: unsafe { Library::new(LIBRARY) }.unwrap() }
    }

    /// What is alive, what destroyed contexts still held, and how often each function was called.
    pub fn report(&self) -> Report {
        Report::read(&self.text(b"takt_emulated_report\0"))
    }

    /// What the last failure of a kernel or a copy was.
    pub fn last_message(&self) -> String {
        self.text(b"takt_emulated_last_message\0")
    }

    /// The `n`-th allocation from now, of device memory or pinned memory, finds none left; 0: none.
    pub fn fail_allocation(&self, n: u64) {
        self.countdown(b"takt_emulated_fail_allocation\0", n);
    }

    /// The `n`-th kernel from now, in a stream or in a graph, fails and makes its context unusable; 0: none.
    pub fn fail_launch(&self, n: u64) {
        self.countdown(b"takt_emulated_fail_launch\0", n);
    }

    /// The `n`-th kernel from now does not end before its context is destroyed; 0: none.
    pub fn hang_launch(&self, n: u64) {
        self.countdown(b"takt_emulated_hang_launch\0", n);
    }

    /// The `n`-th call from now of the driver's function `name`, as exported (`cuMemAlloc_v2`), only returns `result`; 0: none.
    pub fn fail_call(&self, name: &str, n: u64, result: i32) {
        let name = CString::new(name).unwrap();
        // SAFETY: the symbol has this signature in `report.cpp`; the name is copied.
        unsafe {
            let set = self
                .library
                .get::<unsafe extern "C" fn(*const c_char, u64, c_int)>(b"takt_emulated_fail_call\0");
            set.unwrap()(name.as_ptr(), n, result);
        }
    }

    fn countdown(&self, symbol: &[u8], n: u64) {
        // SAFETY: the symbols given here have this signature in `report.cpp`.
        unsafe { self.library.get::<unsafe extern "C" fn(u64)>(symbol).unwrap()(n) };
    }

    fn text(&self, symbol: &[u8]) -> String {
        let mut bytes = vec![0_u8; 64 << 10];
        // SAFETY: the symbols given here have this signature in `report.cpp`, and write no more than the capacity.
        let len = unsafe {
            let write = self.library.get::<unsafe extern "C" fn(*mut c_char, usize) -> usize>(symbol);
            write.unwrap()(bytes.as_mut_ptr().cast(), bytes.len())
        };
        bytes.truncate(len);
        String::from_utf8(bytes).unwrap()
    }
}

/// Counts by name: `contexts`, `green_contexts`, `streams`, `events`, `modules`, `graphs`, `graph_execs`, `device_allocations`,
/// `device_bytes`, `peak_device_bytes`, `host_allocations`, `host_bytes`, `registered_bytes`, `launches`, `overruns`, `bytes_to_host` and `bytes_to_device` (copied, not read in place), `left.…` of destroyed contexts, and
/// `calls.…`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Report(BTreeMap<String, u64>);

impl Report {
    /// A report in words, as `TAKT_EMULATED_REPORT` has it.
    pub fn read(text: &str) -> Self {
        let values = text.lines().filter_map(|line| {
            let (name, value) = line.split_once(' ')?;
            Some((name.to_owned(), value.parse().ok()?))
        });
        Self(values.collect())
    }

    /// The count of this name; 0 if there is none.
    pub fn value(&self, name: &str) -> u64 {
        self.0.get(name).copied().unwrap_or(0)
    }

    /// How often the driver's function `name`, as exported, was called.
    pub fn calls(&self, name: &str) -> u64 {
        self.value(&format!("calls.{name}"))
    }

    /// The functions called since `before`, with how often.
    pub fn calls_since(&self, before: &Self) -> BTreeMap<String, u64> {
        let calls = self.0.iter().filter_map(|(name, value)| Some((name.strip_prefix("calls.")?, *value)));
        let since = calls.map(|(name, value)| (name.to_owned(), value - before.calls(name)));
        since.filter(|(_, count)| *count != 0).collect()
    }

    /// Names of what is alive, or was when its context was destroyed.
    pub fn leaks(&self) -> Vec<String> {
        let is_alive = |name: &str| {
            let kinds =
                ["contexts", "green_contexts", "streams", "events", "modules", "graphs", "graph_execs"];
            kinds.contains(&name) || name.ends_with("_allocations") || name.starts_with("left.")
        };
        let leaks = self.0.iter().filter(|(name, value)| is_alive(name) && **value != 0);
        leaks.map(|(name, value)| format!("{name}: {value}")).collect()
    }
}

/// The folder of the driver's library with the kernels of `sources`, made if it is not there yet, without the functions `hidden`.
fn library(compiler: &Compiler, sources: &[PathBuf], hidden: &[&str]) -> io::Result<PathBuf> {
    let kernels = compiler.library(sources)?;
    let own = own_folder().join("tests/emulator/driver");
    let folder = Path::new(env!("CARGO_TARGET_TMPDIR")).join("emulator");
    let lock = fs::File::create(folder.join("lock"))?;
    lock.lock()?;
    let mut files: Vec<_> = fs::read_dir(own)?.map(|entry| Ok(entry?.path())).collect::<io::Result<_>>()?;
    files.sort_unstable();
    let is_a = |path: &PathBuf, extension: &str| path.extension().is_some_and(|found| found == extension);
    let mut headers = Sha256::new();
    headers.update(format!("{} {:?}", compiler.version, compiler.flags));
    for header in files.iter().filter(|path| is_a(path, "h") || is_a(path, "inc")) {
        headers.update(fs::read(header)?);
    }
    let sources: Vec<_> = files.into_iter().filter(|path| is_a(path, "cpp")).collect();
    let objects = objects(compiler, &headers, &folder, &sources)?;
    linked(compiler, &folder, Parts { objects: &objects, kernels: &kernels, hidden })
}

/// An object of each source; two at a time are compiled.
fn objects(
    compiler: &Compiler,
    headers: &Sha256,
    folder: &Path,
    sources: &[PathBuf],
) -> io::Result<Vec<PathBuf>> {
    let each = |source: &PathBuf| -> io::Result<PathBuf> {
        let hash = hex(headers.clone().chain_update(fs::read(source)?));
        let name = source.file_stem().unwrap_or_default().to_string_lossy();
        let object = folder.join(format!("driver-{name}-{hash}.o"));
        if !object.exists() {
            let partial = object.with_extension("partial.o");
            run(Command::new(&compiler.program)
                .args(&compiler.flags)
                .arg("-c")
                .arg(source)
                .arg("-o")
                .arg(&partial))?;
            fs::rename(partial, &object)?;
        }
        Ok(object)
    };
    let (first, second) = sources.split_at(sources.len() / 2);
    thread::scope(|scope| {
        let second = scope.spawn(|| second.iter().map(each).collect::<io::Result<Vec<_>>>());
        let mut made: Vec<_> = first.iter().map(each).collect::<io::Result<_>>()?;
        made.extend(second.join().unwrap()?);
        Ok(made)
    })
}

/// What a library is made of.
#[derive(Debug, Clone, Copy)]
struct Parts<'a> {
    objects: &'a [PathBuf],
    kernels: &'a Path,
    hidden: &'a [&'a str],
}

/// A folder for the library under all names that a loader may look for first.
fn linked(compiler: &Compiler, folder: &Path, parts: Parts<'_>) -> io::Result<PathBuf> {
    let Parts { objects, kernels, hidden } = parts;
    let hash = hex(Sha256::new().chain_update(format!("{objects:?} {} {hidden:?}", kernels.display())));
    let made = folder.join(format!("driver-{hash}"));
    if made.exists() {
        return Ok(made);
    }
    let partial = folder.join(format!("driver-{hash}.partial"));
    let _ = fs::remove_dir_all(&partial);
    fs::create_dir_all(&partial)?;
    let mut command = Command::new(&compiler.program);
    command.args(&compiler.flags).args(["-shared", "-pthread", "-Wl,-soname,libcuda.so.1"]);
    if !hidden.is_empty() {
        let script = partial.join("hidden");
        fs::write(&script, format!("{{ local: {}; }};\n", hidden.join("; ")))?;
        command.arg(format!("-Wl,--version-script={}", script.display()));
    }
    run(command.args(objects).arg(kernels).arg("-o").arg(partial.join(LIBRARY)))?;
    symlink(LIBRARY, partial.join("libcuda.so"))?;
    fs::rename(partial, &made)?;
    Ok(made)
}
