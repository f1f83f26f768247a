//! A driver's library in front of the driver's: made with the C compiler, told what is to go wrong.

#![expect(unsafe_code, reason = "calls the library by its C interface")]

use std::{
    env,
    ffi::{CString, OsString, c_char, c_int, c_uint, c_void},
    fs, io,
    os::unix::fs::symlink,
    path::{Path, PathBuf},
    process::Command,
};

use libloading::Library;
use takt_kernels_cu::launch::Launch;

/// What cudarc opens, among other names.
pub const LIBRARY: &str = "libcuda.so.1";

/// What not every driver has, of what `front.c` has.
const MAY_BE_MISSING: [&str; 2] = ["cuGreenCtxCreate", "cuGreenCtxStreamCreate"];

/// Makes the library in front of the one at `real`, in `folder`, which is to be searched first; an error where there is no C compiler.
pub fn make(real: &Path, folder: &Path) -> io::Result<()> {
    let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/cuda/gpu_faults/front.c");
    // Without anything in it, by the real one's name: what is linked to it needs the real one, from exactly there.
    let named = folder.join("named.so");
    let nothing = folder.join("nothing.c");
    fs::write(&nothing, "")?;
    compile(&[&nothing], &named, &[format!("-Wl,-soname,{}", real.display())])?;
    let mut flags = vec![
        format!("-DTAKT_REAL_LIBCUDA=\"{}\"", real.display()),
        format!("-Wl,-soname,{LIBRARY}"),
        "-Wl,--no-as-needed".into(),
    ];
    for name in MAY_BE_MISSING {
        if !has(real, name, folder)? {
            flags.push(format!("-DTAKT_NO_{name}"));
        }
    }
    compile(&[&source, &named], &folder.join(LIBRARY), &flags)?;
    symlink(LIBRARY, folder.join("libcuda.so"))
}

/// Whether what calls `name` can be linked to the library at `real`.
fn has(real: &Path, name: &str, folder: &Path) -> io::Result<bool> {
    let caller = folder.join("caller.c");
    fs::write(&caller, format!("void {name}(void);\nvoid call(void);\nvoid call(void) {{ {name}(); }}\n"))?;
    let flags = ["-Wl,--no-undefined".to_owned(), "-Wl,--allow-shlib-undefined".to_owned()];
    Ok(compile(&[&caller, real], &folder.join("caller.so"), &flags).is_ok())
}

fn compile(inputs: &[&Path], output: &Path, flags: &[String]) -> io::Result<()> {
    let compiler = env::var_os("CC").unwrap_or_else(|| OsString::from("cc"));
    let mut command = Command::new(&compiler);
    command.args([
        "-std=gnu11",
        "-O1",
        "-Wall",
        "-Wextra",
        "-Werror",
        "-fPIC",
        "-fvisibility=hidden",
        "-shared",
    ]);
    // Libraries behind what needs them, and the flag that keeps them before all.
    command.args(flags).args(inputs).arg("-o").arg(output).args(["-pthread", "-ldl"]);
    let made = command.output()?;
    if made.status.success() {
        return Ok(());
    }
    let said = String::from_utf8_lossy(&made.stderr).into_owned();
    Err(io::Error::other(format!("{}: {said}", compiler.display())))
}

/// The library of the driver that this process has opened.
pub fn real_library() -> Option<PathBuf> {
    let maps = fs::read_to_string("/proc/self/maps").ok()?;
    let paths = maps.lines().filter_map(|line| Some(Path::new(line.get(line.find('/')?..)?)));
    let is_it = |path: &&Path| {
        path.file_name().and_then(|name| name.to_str()).is_some_and(|name| name.starts_with("libcuda.so"))
    };
    paths.filter(is_it).map(Path::to_owned).next()
}

/// The library in front, which this process has opened as the driver's.
#[derive(Debug)]
pub struct Front(Library);

/// Calls since the library was opened.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Counts {
    /// That took memory, or tried.
    pub memory: u64,
    /// Of graphs launched.
    pub launches: u64,
}

impl Front {
    pub fn open() -> Self {
        // SAFETY: the library is ours; its initializers are the driver's.
        Self(unsafe { Library::new(LIBRARY) }.unwrap())
    }

    /// Whether the driver behind it is the emulated one.
    pub fn is_of_emulated_device(&self) -> bool {
        // SAFETY: only whether the symbol is there is asked.
        unsafe { self.0.get::<*const c_void>(b"takt_emulated_report\0") }.is_ok()
    }

    /// The `n`-th call from now that takes memory finds none; 0: none.
    pub fn fail_memory(&self, n: u64) {
        // SAFETY: the symbol has this signature in `front.c`.
        unsafe { self.0.get::<unsafe extern "C" fn(u64)>(b"takt_front_fail_memory\0").unwrap()(n) };
    }

    /// The `n`-th graph from now is launched behind `launch`, a kernel of `image` with one argument of 8 bytes or none, in `num_threads` threads.
    pub fn fault(&self, n: u64, image: &[u8], launch: &Launch, num_threads: u32) {
        type Set = unsafe extern "C" fn(u64, *const c_void, usize, *const c_char, c_uint, u64) -> c_int;
        let kernel = CString::new(launch.kernel()).unwrap();
        // SAFETY: an argument of 8 bytes, which `launch` holds.
        let argument =
            launch.argument_pointers().first().map_or(0, |&at| unsafe { at.cast::<u64>().read_unaligned() });
        // SAFETY: the symbol has this signature in `front.c`, which copies image and name.
        let is_set = unsafe {
            self.0.get::<Set>(b"takt_front_fault\0").unwrap()(
                n,
                image.as_ptr().cast(),
                image.len(),
                kernel.as_ptr(),
                num_threads,
                argument,
            )
        };
        assert_eq!(is_set, 1, "no room for a kernel of {} bytes", image.len());
    }

    /// Does `work` while no graph is launched: whoever would launch one waits.
    pub fn while_held<R>(&self, work: impl FnOnce() -> R) -> R {
        self.hold(true);
        let done = work();
        self.hold(false);
        done
    }

    fn hold(&self, is_held: bool) {
        // SAFETY: the symbol has this signature in `front.c`.
        unsafe { self.0.get::<unsafe extern "C" fn(c_int)>(b"takt_front_hold\0").unwrap()(is_held.into()) };
    }

    /// What was called.
    pub fn counts(&self) -> Counts {
        let mut counts = Counts { memory: 0, launches: 0 };
        // SAFETY: the symbol has this signature in `front.c`.
        unsafe {
            self.0.get::<unsafe extern "C" fn(*mut u64, *mut u64)>(b"takt_front_count\0").unwrap()(
                &raw mut counts.memory,
                &raw mut counts.launches,
            );
        }
        counts
    }
}
