//! The functions of NVRTC's library, opened by path.
//!
//! By path, so that one program can hold compilers of several CUDA versions and none has to be on the loader's search path; and
//! through `libloading`, because cudarc's bindings panic where a library or a symbol is missing.
#![expect(unsafe_code, reason = "calling a C library opened at run time")]

use std::{
    ffi::{CStr, CString, c_char, c_int},
    mem::ManuallyDrop,
    path::Path,
    ptr,
};

use libloading::Library;

use super::CompilerVersion;

/// `nvrtcProgram`: opaque.
type RawProgram = *mut std::ffi::c_void;
/// `nvrtcResult`: 0 is success.
type Status = c_int;

/// Declares the table of functions and how it is filled, so that a name stands once.
macro_rules! functions {
    ($($field:ident: $symbol:literal = fn($($argument:ty),*) -> $result:ty;)*) => {
        struct Functions {
            $($field: unsafe extern "C" fn($($argument),*) -> $result,)*
        }

        impl Functions {
            /// # Safety
            /// `library` is NVRTC, and outlives what is returned.
            unsafe fn load(library: &Library) -> Result<Self, libloading::Error> {
                // SAFETY: the signatures below are those of nvrtc.h, unchanged from CUDA 12.0 to 13.0.
                unsafe { Ok(Self { $($field: *library.get(concat!($symbol, "\0").as_bytes())?,)* }) }
            }
        }
    };
}

functions! {
    version: "nvrtcVersion" = fn(*mut c_int, *mut c_int) -> Status;
    num_archs: "nvrtcGetNumSupportedArchs" = fn(*mut c_int) -> Status;
    archs: "nvrtcGetSupportedArchs" = fn(*mut c_int) -> Status;
    error_string: "nvrtcGetErrorString" = fn(Status) -> *const c_char;
    create: "nvrtcCreateProgram" = fn(
        *mut RawProgram, *const c_char, *const c_char, c_int, *const *const c_char, *const *const c_char
    ) -> Status;
    destroy: "nvrtcDestroyProgram" = fn(*mut RawProgram) -> Status;
    compile: "nvrtcCompileProgram" = fn(RawProgram, c_int, *const *const c_char) -> Status;
    log_size: "nvrtcGetProgramLogSize" = fn(RawProgram, *mut usize) -> Status;
    log: "nvrtcGetProgramLog" = fn(RawProgram, *mut c_char) -> Status;
    cubin_size: "nvrtcGetCUBINSize" = fn(RawProgram, *mut usize) -> Status;
    cubin: "nvrtcGetCUBIN" = fn(RawProgram, *mut c_char) -> Status;
}

/// NVRTC, opened.
pub(super) struct Nvrtc {
    functions: Functions,
    /// Never closed: the compiler has registered what runs at the end of the process.
    _library: ManuallyDrop<Library>,
    _builtins: ManuallyDrop<Library>,
}

/// What one compilation reads. Text with a NUL byte is cut there.
pub(super) struct Program<'a> {
    pub name: &'a str,
    pub text: &'a str,
    pub options: &'a [String],
}

/// What one compilation gave.
pub(super) struct Compilation {
    /// The cubin, or the library's name for what went wrong.
    pub cubin: Result<Vec<u8>, String>,
    /// Warnings and errors.
    pub log: String,
}

impl Nvrtc {
    /// Opens `library`, which lies in `folder`, and the library of built-in functions beside it.
    pub(super) fn open(folder: &Path, library: &Path) -> Result<(Self, CompilerVersion), String> {
        // SAFETY: opening a library runs its initializers; this one is the compiler the caller chose.
        let library = unsafe { Library::new(library) }.map_err(|error| error.to_string())?;
        // SAFETY: kept open as long as the table: it is never closed.
        let functions = unsafe { Functions::load(&library) }.map_err(|error| error.to_string())?;
        let version = functions.compiler_version()?;
        // The compiler opens its built-ins by name alone. Once they are open, that name finds them.
        let name = format!("libnvrtc-builtins.so.{}.{}", version.major, version.minor);
        let beside = folder.join(&name);
        let builtins = if beside.is_file() { beside } else { name.into() };
        // SAFETY: as above.
        let builtins = unsafe { Library::new(builtins) }.map_err(|error| error.to_string())?;
        let (library, builtins) = (ManuallyDrop::new(library), ManuallyDrop::new(builtins));
        Ok((Self { functions, _library: library, _builtins: builtins }, version))
    }

    /// The architectures the compiler knows, as 87 for `sm_87`.
    pub(super) fn supported_archs(&self) -> Result<Vec<u32>, String> {
        let mut count = 0;
        // SAFETY: writes one int.
        self.functions.check(unsafe { (self.functions.num_archs)(&raw mut count) })?;
        let mut archs = vec![0; usize::try_from(count).unwrap_or(0)];
        // SAFETY: writes as many ints as it said.
        self.functions.check(unsafe { (self.functions.archs)(archs.as_mut_ptr()) })?;
        Ok(archs.into_iter().filter_map(|arch| u32::try_from(arch).ok()).collect())
    }

    pub(super) fn compile(&self, program: &Program<'_>) -> Result<Compilation, String> {
        let handle = Handle::create(&self.functions, program)?;
        let options: Vec<CString> = program.options.iter().map(|option| until_nul(option)).collect();
        let options: Vec<*const c_char> = options.iter().map(|option| option.as_ptr()).collect();
        // SAFETY: a program of this library and an array of strings with its length; both outlive the call.
        let status = unsafe { (self.functions.compile)(handle.raw, count_of(&options), options.as_ptr()) };
        let log = handle.log();
        let cubin = self.functions.check(status).and_then(|()| handle.cubin());
        Ok(Compilation { cubin, log })
    }
}

impl Functions {
    fn check(&self, status: Status) -> Result<(), String> {
        if status == 0 {
            return Ok(());
        }
        // SAFETY: returns a constant string for every number.
        let text = unsafe { (self.error_string)(status) };
        if text.is_null() {
            return Err(format!("error {status}"));
        }
        // SAFETY: a string of the library, which is never closed.
        Err(unsafe { CStr::from_ptr(text) }.to_string_lossy().into_owned())
    }

    fn compiler_version(&self) -> Result<CompilerVersion, String> {
        let (mut major, mut minor) = (0, 0);
        // SAFETY: writes two ints.
        self.check(unsafe { (self.version)(&raw mut major, &raw mut minor) })?;
        let number = |value| u32::try_from(value).map_err(|_| format!("version {major}.{minor}"));
        Ok(CompilerVersion { major: number(major)?, minor: number(minor)?, library_bytes: 0 })
    }
}

/// A program of the library, destroyed when dropped. The texts it was made from are kept beside it, as the library asks.
struct Handle<'a> {
    functions: &'a Functions,
    raw: RawProgram,
    _texts: [CString; 2],
}

impl<'a> Handle<'a> {
    fn create(functions: &'a Functions, program: &Program<'_>) -> Result<Self, String> {
        let (name, text) = (until_nul(program.name), until_nul(program.text));
        let mut raw = ptr::null_mut();
        // SAFETY: strings that live as long as the handle; no headers.
        let status = unsafe {
            (functions.create)(&raw mut raw, text.as_ptr(), name.as_ptr(), 0, ptr::null(), ptr::null())
        };
        functions.check(status)?;
        Ok(Self { functions, raw, _texts: [name, text] })
    }

    fn log(&self) -> String {
        // SAFETY: the two functions belong together.
        let bytes = unsafe { self.bytes(self.functions.log_size, self.functions.log) };
        let text = bytes.unwrap_or_else(|error| error.into_bytes());
        String::from_utf8_lossy(&text).trim_matches(['\0', '\n', ' ']).to_owned()
    }

    fn cubin(&self) -> Result<Vec<u8>, String> {
        // SAFETY: the two functions belong together.
        unsafe { self.bytes(self.functions.cubin_size, self.functions.cubin) }
    }

    /// # Safety
    /// `fill` writes as many bytes as `size` says.
    unsafe fn bytes(
        &self,
        size: unsafe extern "C" fn(RawProgram, *mut usize) -> Status,
        fill: unsafe extern "C" fn(RawProgram, *mut c_char) -> Status,
    ) -> Result<Vec<u8>, String> {
        let mut len = 0;
        // SAFETY: a program of this library; writes one size.
        self.functions.check(unsafe { size(self.raw, &raw mut len) })?;
        let mut bytes = vec![0_u8; len];
        // SAFETY: writes `len` bytes, the caller says.
        self.functions.check(unsafe { fill(self.raw, bytes.as_mut_ptr().cast()) })?;
        Ok(bytes)
    }
}

impl Drop for Handle<'_> {
    fn drop(&mut self) {
        // SAFETY: created by this library and not destroyed before. Its only error is a program that is none.
        unsafe { (self.functions.destroy)(&raw mut self.raw) };
    }
}

/// `text` up to its first NUL byte; ours have none.
fn until_nul(text: &str) -> CString {
    let end = text.find('\0').unwrap_or(text.len());
    CString::new(&text[..end]).unwrap_or_default()
}

fn count_of<T>(items: &[T]) -> c_int {
    c_int::try_from(items.len()).unwrap_or(c_int::MAX)
}
