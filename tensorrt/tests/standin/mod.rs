//! A stand-in for TensorRT: `libnvinfer` and `libnvonnxparser` that record every call, check what the real ones check, and compute nothing
//! themselves.
//!
//! ```ignore
//! mod standin; // in another crate: #[path = "../../tensorrt/tests/standin/mod.rs"]
//! use standin::Standin;
//!
//! #[test]
//! fn a_builder_is_destroyed() {
//!     let Some(standin) = Standin::load() else { return };
//!     // Here `takt_tensorrt::TensorRt::open` finds a TensorRT.
//!     assert_eq!(standin.alive(), [""; 0]);
//! }
//! ```
//!
//! - It is made with the C++ compiler of this machine from TensorRT's headers in `TENSORRT_INCLUDE_DIR` (or where `build.rs` looks): a generator
//!   reads the headers and writes a class that records for each class that the library has (see [`generator`]); `cpp/` says what the ones do
//!   that Takt uses. Whatever version the headers are of, the stand-in is of. Libraries are kept under `CARGO_TARGET_TMPDIR` by a hash of
//!   what they are made of.
//! - Without headers or a compiler tests are skipped with a word on stderr; with `TAKT_REQUIRE_TENSORRT_HEADERS=1` they fail.
//!   `TAKT_STANDIN_FLAGS` adds compiler flags (sanitizers, further `-I`).
//! - Its parser reads real ONNX files, its builder writes plans that hold the model, and its contexts hand what is bound to an executor, in the
//!   stream's order where the process has a CUDA driver (the emulated one has host functions in graphs), at once where not.
//! - `standin.h` says what can be asked and what environment variables set, `executor.h` what computes the models.
//! - It was written from NVIDIA's headers and documentation and has not been compared with the real library: the order of calls that is allowed,
//!   what is checked when, and the words of errors are what these say, or a guess on the strict side.
//! - What the real library leaves undefined is found and listed by [`Standin::faults`]: memory shorter than its tensor, tensors that overlap,
//!   scratch memory shared by executions that run together, objects that outlive what they are of.

#![expect(unsafe_code, reason = "loads shared libraries of ours")]
#![allow(dead_code, reason = "no test uses all of it")]
#![allow(clippy::unwrap_used, clippy::panic, reason = "tests")]

pub mod executor;
pub mod generator;
mod library;

use std::{
    ffi::{CString, c_char, c_int, c_void},
    path::PathBuf,
    sync::{Mutex, MutexGuard, OnceLock, PoisonError},
};

use libloading::os::unix::{Library, RTLD_GLOBAL, RTLD_NOW};

pub use library::Built;

/// How a call fails.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Failure {
    /// An error is logged and reported.
    Error = 0,
    /// Memory runs out.
    OutOfMemory = 1,
    /// Without a word.
    Silent = 2,
}

/// The stand-in in this process. Tests take turns; each finds it as new.
#[derive(Debug)]
pub struct Standin {
    loaded: &'static Loaded,
    _turn: MutexGuard<'static, ()>,
}

#[derive(Debug)]
struct Loaded {
    library: Library,
    _parser: Library,
    built: Built,
}

impl Standin {
    /// Loads both libraries, so that whoever opens `libnvinfer.so.10` afterwards gets them; `None` without headers or a compiler.
    pub fn load() -> Option<Self> {
        static LOADED: OnceLock<Option<Loaded>> = OnceLock::new();
        static TURN: Mutex<()> = Mutex::new(());
        // A test that failed in its turn says so itself.
        let turn = TURN.lock().unwrap_or_else(PoisonError::into_inner);
        let loaded = LOADED.get_or_init(|| Built::get().map(Loaded::new)).as_ref()?;
        let standin = Self { loaded, _turn: turn };
        standin.reset();
        Some(standin)
    }

    /// What was built.
    pub fn built(&self) -> &Built {
        &self.loaded.built
    }

    /// The calls since the last [`Self::clear`], as `standin.h` has them.
    pub fn record(&self) -> Vec<String> {
        self.lines(b"standin_record\0")
    }

    /// The same without calls that only ask.
    pub fn steps(&self) -> Vec<String> {
        let asks = ["::get", "::is", "IHostMemory::data", "IHostMemory::size", "getInferLibVersion"];
        let is_step = |line: &String| !asks.iter().any(|ask| plain(line).contains(ask));
        self.record().into_iter().filter(is_step).collect()
    }

    /// Objects that callers have yet to destroy.
    pub fn alive(&self) -> Vec<String> {
        self.lines(b"standin_alive\0")
    }

    /// What the real library would have left undefined.
    pub fn faults(&self) -> Vec<String> {
        self.lines(b"standin_faults\0")
    }

    /// Forgets calls and faults.
    pub fn clear(&self) {
        // SAFETY: the symbol has this signature in `standin.h`.
        unsafe { self.symbol::<unsafe extern "C" fn()>(b"standin_clear_record\0")() }
    }

    fn reset(&self) {
        // SAFETY: the symbol has this signature in `standin.h`.
        unsafe { self.symbol::<unsafe extern "C" fn()>(b"standin_reset\0")() }
    }

    /// The `n`-th call from now of `method`, as `IBuilder::createNetworkV2`, fails; 0: none.
    pub fn fail(&self, method: &str, n: u64, how: Failure) {
        self.fail_one(Some(method), n, how);
    }

    /// The `n`-th call from now of any method that can fail does; 0: none.
    pub fn fail_any(&self, n: u64, how: Failure) {
        self.fail_one(None, n, how);
    }

    fn fail_one(&self, method: Option<&str>, n: u64, how: Failure) {
        let method = method.map(|name| CString::new(name).unwrap());
        let name = method.as_ref().map_or(std::ptr::null(), |name| name.as_ptr());
        // SAFETY: the symbol has this signature in `standin.h`; the name is copied.
        unsafe {
            self.symbol::<unsafe extern "C" fn(*const c_char, u64, c_int)>(b"standin_fail\0")(
                name,
                n,
                how as c_int,
            );
        }
    }

    /// Whether all failures that were asked for have come.
    pub fn has_failed(&self) -> bool {
        // SAFETY: the symbol has this signature in `standin.h`.
        unsafe { self.symbol::<unsafe extern "C" fn() -> u64>(b"standin_num_pending\0")() == 0 }
    }

    /// The version the library says it is.
    pub fn set_version(&self, major: i32, minor: i32, patch: i32) {
        // SAFETY: the symbol has this signature in `standin.h`.
        unsafe {
            self.symbol::<unsafe extern "C" fn(i32, i32, i32)>(b"standin_set_version\0")(major, minor, patch)
        }
    }

    /// The compute capability that plans are of, as 87 or 110; 0: the device's.
    pub fn set_sm(&self, sm: i32) {
        // SAFETY: the symbol has this signature in `standin.h`.
        unsafe { self.symbol::<unsafe extern "C" fn(i32)>(b"standin_set_sm\0")(sm) }
    }

    /// Whether builds go on timing until they are cancelled.
    pub fn set_endless(&self, is_endless: bool) {
        // SAFETY: the symbol has this signature in `standin.h`.
        unsafe { self.symbol::<unsafe extern "C" fn(i32)>(b"standin_set_endless\0")(is_endless.into()) }
    }

    /// The parser does not know this operator.
    pub fn refuse_operator(&self, op_type: &str) {
        let op_type = CString::new(op_type).unwrap();
        // SAFETY: the symbol has this signature in `standin.h`; the name is copied.
        unsafe {
            self.symbol::<unsafe extern "C" fn(*const c_char)>(b"standin_refuse_operator\0")(
                op_type.as_ptr(),
            );
        }
    }

    /// What computes models from now on, until the next test's turn.
    ///
    /// # Safety
    /// `execute` may be called with `user` from any thread, for as long as work that was enqueued is run.
    pub unsafe fn set_raw_executor(&self, execute: Option<executor::Execute>, user: *mut c_void) {
        // SAFETY: the symbol has this signature in `executor.h`; the rest is the caller's.
        unsafe {
            self.symbol::<unsafe extern "C" fn(Option<executor::Execute>, *mut c_void)>(
                b"standin_set_executor\0",
            )(execute, user);
        }
    }

    /// The same with a function of Rust's. It is never given back.
    pub fn set_executor<E>(&self, execute: E)
    where
        E: Fn(&executor::Model<'_>, &[executor::Tensor<'_>]) -> Result<(), String> + Send + Sync + 'static,
    {
        let boxed: Box<executor::Boxed> = Box::new(Box::new(execute));
        // SAFETY: the closure may be called from any thread and lives for ever.
        unsafe { self.set_raw_executor(Some(executor::call_boxed), Box::into_raw(boxed).cast()) }
    }

    fn lines(&self, symbol: &[u8]) -> Vec<String> {
        type Give = unsafe extern "C" fn(*mut c_char, usize) -> usize;
        // SAFETY: the symbols given here have this signature in `standin.h`.
        let give = unsafe { self.symbol::<Give>(symbol) };
        let mut bytes: Vec<u8> = Vec::new();
        loop {
            // SAFETY: no more than the capacity is written.
            let len = unsafe { give(bytes.as_mut_ptr().cast(), bytes.len()) };
            if len <= bytes.len() {
                bytes.truncate(len);
                break;
            }
            bytes.resize(len, 0);
        }
        String::from_utf8(bytes).unwrap().lines().map(Into::into).collect()
    }

    /// # Safety
    /// The symbol is of type `T`.
    unsafe fn symbol<T: Copy>(&self, name: &[u8]) -> T {
        // SAFETY: as the caller says.
        *unsafe { self.loaded.library.get::<T>(name) }.unwrap()
    }
}

impl Loaded {
    fn new(built: Built) -> Self {
        // A library that is opened by its name is looked for among those loaded first, by their sonames.
        let open = |path: PathBuf| {
            // SAFETY: the libraries are ours; their initializers only read the environment.
            unsafe { Library::open(Some(&path), RTLD_NOW | RTLD_GLOBAL) }
                .unwrap_or_else(|error| panic!("{}: {error}", path.display()))
        };
        let library = open(built.folder.join(built.infer_name()));
        let parser = open(built.folder.join(built.parser_name()));
        Self { library, _parser: parser, built }
    }
}

/// A call without its object's number.
fn plain(line: &str) -> String {
    match line.split_once('#') {
        Some((class, rest)) if !class.contains('(') => {
            format!("{class}{}", rest.trim_start_matches(|c: char| c.is_ascii_digit()))
        }
        _ => line.to_owned(),
    }
}
