//! The same tests on a GPU: with `TAKT_REQUIRE_DEVICE=1` buffers lie in the memory of the first device, and launches run there, through
//! the crate's own driver layer, from the cubins that `cargo run -p xtask -- kernels` keeps or the compiler in `TAKT_CUDA_ROOT` makes.

use std::{
    env,
    path::Path,
    sync::{Mutex, OnceLock, PoisonError},
};

use takt_kernels_cu::{
    cache::Cache,
    compiler::Compiler,
    driver::{
        context::{Context, Share},
        device::probe,
        host_memory::{HostMemory, SharedBytes},
        memory::DeviceBuffer,
        module::Kernels,
        stream::Stream,
    },
    kernel_set::{KernelSet, Places},
    launch::Launch,
    source,
};

/// A device with all kernels. Tests take turns.
#[derive(Debug)]
pub struct Device(Mutex<Inner>);

#[derive(Debug)]
struct Inner {
    kernels: Kernels,
    stream: Stream,
}

/// The device the tests have to run on, if they have to.
pub fn required() -> Option<&'static Device> {
    static DEVICE: OnceLock<Option<Device>> = OnceLock::new();
    DEVICE.get_or_init(|| is_required().then(Device::open)).as_ref()
}

/// Whether tests have to run on the machine's own device.
pub fn is_required() -> bool {
    env::var_os("TAKT_REQUIRE_DEVICE").is_some_and(|value| value == "1")
}

impl Device {
    fn open() -> Self {
        let devices = probe().unwrap_or_else(|error| panic!("TAKT_REQUIRE_DEVICE=1: {error}"));
        let device = &devices[0];
        let target = device.target().unwrap_or_else(|| panic!("there are no kernels for {}", device.key()));
        eprintln!("on {}", device.key());
        let compiler = env::var_os("TAKT_CUDA_ROOT").map(|root| Compiler::open(Path::new(&root)).unwrap());
        let folders = [Cache::new(Path::new(env!("CARGO_TARGET_TMPDIR")).join("../cuda/cubins"))];
        let places =
            Places { folders: &folders, compiler: compiler.as_ref(), driver: Some(device.driver_version) };
        let sources: Vec<_> = source::all().copied().collect();
        let (set, _) =
            KernelSet::open_of(&sources, target, places, |source| eprintln!("compiling {}.cu", source.name))
                .unwrap_or_else(|error| panic!("{error}; run `cargo run -p xtask -- kernels`"));
        let (context, _) = Context::open(device, Share::None).unwrap();
        let kernels = Kernels::load(&context, set.images().iter().map(|image| image.bytes())).unwrap();
        let stream = Stream::new(&context).unwrap();
        Self(Mutex::new(Inner { kernels, stream }))
    }

    /// Runs `launch` to its end.
    pub fn launch(&self, launch: &Launch) -> Result<(), String> {
        self.turn(|inner| {
            inner.stream.context().make_current().map_err(|error| error.to_string())?;
            let launched = inner.stream.launch(&mut inner.kernels, launch);
            launched.and_then(|()| inner.stream.synchronize()).map_err(|error| error.to_string())
        })
    }

    /// Device memory that holds `bytes`.
    pub fn hold(&self, bytes: &[u8]) -> DeviceBuffer {
        self.turn(|inner| {
            // A device's allocator gives no address for nothing, as checked launches want one.
            let buffer = DeviceBuffer::new(inner.stream.context(), bytes.len().max(1), "a test").unwrap();
            inner.stream.upload(bytes, &buffer, 0).unwrap();
            buffer
        })
    }

    /// Has the device read `bytes` in place; the error says why it does not.
    pub fn map(&self, bytes: SharedBytes) -> Result<HostMemory, String> {
        self.turn(|inner| HostMemory::new(inner.stream.context(), bytes).map_err(|error| error.to_string()))
    }

    /// Copies what `buffer` begins with into `bytes`.
    pub fn read(&self, buffer: &DeviceBuffer, bytes: &mut [u8]) {
        self.turn(|inner| inner.stream.download(buffer, 0, bytes).unwrap());
    }

    fn turn<R>(&self, work: impl FnOnce(&mut Inner) -> R) -> R {
        // A test that failed in its turn says so itself; what it left is no worse for the next.
        work(&mut self.0.lock().unwrap_or_else(PoisonError::into_inner))
    }
}
