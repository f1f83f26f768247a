//! Work in order: launches, copies, captured graphs, events.

use std::{
    ptr, thread,
    time::{Duration, Instant},
};

use cudarc::driver::sys::{
    self, CUevent, CUevent_flags, CUgraphExec, CUresult, CUstream, CUstream_flags, CUstreamCaptureMode,
};

use super::{
    context::{Context, Share},
    error::{DriverError, Result, check},
    memory::{DeviceBuffer, MappedBuffer},
    module::Kernels,
};
use crate::launch::{DeviceAddress, Launch};

/// The first sleep between two looks at work that takes longer than usual; each is a quarter longer than the one before, up to [`MAX_PAUSE`].
const FIRST_PAUSE: Duration = Duration::from_micros(50);
/// The longest sleep between two looks.
const MAX_PAUSE: Duration = Duration::from_millis(1);

/// A stream of our context, of the priority its [`Share`] asks for.
#[derive(Debug)]
pub struct Stream {
    context: Context,
    handle: CUstream,
    done: CUevent,
}

// SAFETY: handles of the driver's, usable from any thread that has the context current.
unsafe impl Send for Stream {}

/// When [`Stream::wait`] found the work done.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Found {
    /// At the first look after the usual time, or before: it may have been done long since.
    AtOnce,
    /// At a later look: the time tells how long it takes.
    Later,
}

impl Stream {
    /// A new stream.
    ///
    /// # Errors
    /// [`DriverError::Call`], [`DriverError::NoMemory`] or [`DriverError::Lost`].
    pub fn new(context: &Context) -> Result<Self> {
        context.make_current()?;
        let (lowest, _) = context.priorities()?;
        Self::of_priority(context, if context.share() == Share::None { 0 } else { lowest })
    }

    /// A new stream that goes ahead of all others, for what stands in for perception.
    ///
    /// # Errors
    /// [`DriverError::Call`], [`DriverError::NoMemory`] or [`DriverError::Lost`].
    pub fn ahead_of_others(context: &Context) -> Result<Self> {
        context.make_current()?;
        let (_, highest) = context.priorities()?;
        Self::of_priority(context, highest)
    }

    fn of_priority(context: &Context, priority: i32) -> Result<Self> {
        let flags = CUstream_flags::CU_STREAM_NON_BLOCKING as u32;
        let mut handle = ptr::null_mut();
        // SAFETY: writes one handle.
        let created = unsafe {
            match context.green() {
                Some(green) => sys::cuGreenCtxStreamCreate(&raw mut handle, green, flags, priority),
                None => sys::cuStreamCreateWithPriority(&raw mut handle, flags, priority),
            }
        };
        context.note(check("cuStreamCreate", created))?;
        let mut stream = Self { context: context.clone(), handle, done: ptr::null_mut() };
        // Who waits sleeps, and nobody asks for the time of it.
        let flags =
            CUevent_flags::CU_EVENT_BLOCKING_SYNC as u32 | CUevent_flags::CU_EVENT_DISABLE_TIMING as u32;
        // SAFETY: writes one handle.
        context.note(check("cuEventCreate", unsafe { sys::cuEventCreate(&raw mut stream.done, flags) }))?;
        Ok(stream)
    }

    /// The context it works in.
    #[must_use]
    pub fn context(&self) -> &Context {
        &self.context
    }

    /// Its handle, for libraries that put work into it; good for as long as the stream is.
    #[must_use]
    pub fn handle(&self) -> *mut std::ffi::c_void {
        self.handle.cast()
    }

    /// Its priority as CUDA counts: the smaller goes first, and 0 is both the ordinary and the lowest.
    ///
    /// # Errors
    /// [`DriverError::Call`] or [`DriverError::Lost`].
    pub fn priority(&self) -> Result<i32> {
        self.context.make_current()?;
        let mut priority = 0;
        // SAFETY: our own stream; writes one number.
        let result = unsafe { sys::cuStreamGetPriority(self.handle, &raw mut priority) };
        self.context.note(check("cuStreamGetPriority", result))?;
        Ok(priority)
    }

    /// Launches a kernel. Who does vouches for its addresses: see [what the compiler does not check](super).
    ///
    /// # Errors
    /// [`DriverError::NoKernel`], [`DriverError::Call`], [`DriverError::Lost`].
    pub fn launch(&self, kernels: &mut Kernels, launch: &Launch) -> Result<()> {
        let geometry = launch.geometry();
        let kernel = kernels.get(launch.kernel(), geometry.shared_bytes)?;
        let mut arguments = launch.argument_pointers();
        let ([grid_x, grid_y, grid_z], [block_x, block_y, block_z]) = (geometry.grid, geometry.block);
        // SAFETY: the launch was checked against the kernel's shapes; arguments are copied before the call returns. That the addresses are of
        // memory that lives until the stream was waited for is for who made the launch.
        let result = unsafe {
            sys::cuLaunchKernel(
                kernel.function,
                grid_x,
                grid_y,
                grid_z,
                block_x,
                block_y,
                block_z,
                geometry.shared_bytes,
                self.handle,
                arguments.as_mut_ptr(),
                ptr::null_mut(),
            )
        };
        self.context.note(check("cuLaunchKernel", result))
    }

    /// Copies `bytes` to `to`, which has room for them, and waits for it.
    ///
    /// # Errors
    /// [`DriverError::Call`], [`DriverError::Lost`].
    pub fn upload(&self, bytes: &[u8], to: &DeviceBuffer, at: usize) -> Result<()> {
        let end = at.checked_add(bytes.len()).filter(|&end| end <= to.num_bytes());
        if end.is_none() {
            let reason = format!("{} bytes at {at} of a buffer of {}", bytes.len(), to.num_bytes());
            return Err(DriverError::Call { call: "upload", reason });
        }
        if bytes.is_empty() {
            return Ok(());
        }
        self.context.make_current()?;
        // SAFETY: both runs are as long, the target was checked above; the source outlives the wait below.
        let result = unsafe {
            sys::cuMemcpyHtoDAsync_v2(
                to.address().0 + at as u64,
                bytes.as_ptr().cast(),
                bytes.len(),
                self.handle,
            )
        };
        self.context.note(check("cuMemcpyHtoD", result))?;
        self.synchronize()
    }

    /// Copies `from` to `bytes`, and waits for it.
    ///
    /// # Errors
    /// [`DriverError::Call`], [`DriverError::Lost`].
    pub fn download(&self, from: &DeviceBuffer, at: usize, bytes: &mut [u8]) -> Result<()> {
        let end = at.checked_add(bytes.len()).filter(|&end| end <= from.num_bytes());
        if end.is_none() {
            let reason = format!("{} bytes at {at} of a buffer of {}", bytes.len(), from.num_bytes());
            return Err(DriverError::Call { call: "download", reason });
        }
        if bytes.is_empty() {
            return Ok(());
        }
        self.context.make_current()?;
        // SAFETY: both runs are as long, the source was checked above; the target is borrowed until the wait below.
        let result = unsafe {
            sys::cuMemcpyDtoHAsync_v2(
                bytes.as_mut_ptr().cast(),
                from.address().0 + at as u64,
                bytes.len(),
                self.handle,
            )
        };
        self.context.note(check("cuMemcpyDtoH", result))?;
        self.synchronize()
    }

    /// Copies `num_bytes` within device memory, in the stream's order.
    ///
    /// # Errors
    /// [`DriverError::Call`], [`DriverError::Lost`].
    pub fn copy(&self, from: DeviceAddress, to: DeviceAddress, num_bytes: usize) -> Result<()> {
        if num_bytes == 0 {
            return Ok(());
        }
        // SAFETY: the driver checks both runs against its allocations.
        let result = unsafe { sys::cuMemcpyDtoDAsync_v2(to.0, from.0, num_bytes, self.handle) };
        self.context.note(check("cuMemcpyDtoD", result))
    }

    /// Copies the first `num_bytes` of `from` to `to`, in the stream's order: what a step is about. Captured, it reads whatever is in `from` when
    /// the graph runs.
    ///
    /// # Errors
    /// [`DriverError::Call`], [`DriverError::Lost`].
    pub fn send(&self, from: &MappedBuffer, num_bytes: usize, to: DeviceAddress) -> Result<()> {
        self.send_from(from, 0, num_bytes, to)
    }

    /// [`Self::send`] of `num_bytes` from byte `at` on; what is not there is left out.
    ///
    /// # Errors
    /// [`DriverError::Call`], [`DriverError::Lost`].
    pub fn send_from(
        &self,
        from: &MappedBuffer,
        at: usize,
        num_bytes: usize,
        to: DeviceAddress,
    ) -> Result<()> {
        let rest = &from.bytes()[at.min(from.num_bytes())..];
        let bytes = &rest[..num_bytes.min(rest.len())];
        // SAFETY: pinned memory of as many bytes, which its owner keeps until the stream was waited for; the driver checks the target.
        let result =
            unsafe { sys::cuMemcpyHtoDAsync_v2(to.0, bytes.as_ptr().cast(), bytes.len(), self.handle) };
        self.context.note(check("cuMemcpyHtoD", result))
    }

    /// Copies `num_bytes` at `from` to the beginning of `to`, in the stream's order: what a step is asked for.
    ///
    /// # Errors
    /// [`DriverError::Call`], [`DriverError::Lost`].
    pub fn fetch(&self, from: DeviceAddress, to: &MappedBuffer, num_bytes: usize) -> Result<()> {
        self.fetch_to(from, to, 0, num_bytes)
    }

    /// [`Self::fetch`] to byte `at` of `to`; what does not fit is left out.
    ///
    /// # Errors
    /// [`DriverError::Call`], [`DriverError::Lost`].
    pub fn fetch_to(
        &self,
        from: DeviceAddress,
        to: &MappedBuffer,
        at: usize,
        num_bytes: usize,
    ) -> Result<()> {
        let at = at.min(to.num_bytes());
        let len = num_bytes.min(to.num_bytes() - at);
        // SAFETY: within the buffer.
        let host = unsafe { to.host().add(at) }.cast();
        // SAFETY: pinned memory of as many bytes, allocated as memory the device writes; its owner looks after the stream was waited for.
        let result = unsafe { sys::cuMemcpyDtoHAsync_v2(host, from.0, len, self.handle) };
        self.context.note(check("cuMemcpyDtoH", result))
    }

    /// Fills `buffer` with zeros, in the stream's order.
    ///
    /// # Errors
    /// [`DriverError::Call`], [`DriverError::Lost`].
    pub fn zero(&self, buffer: &DeviceBuffer) -> Result<()> {
        if buffer.num_bytes() == 0 {
            return Ok(());
        }
        self.context.make_current()?;
        // SAFETY: within the buffer.
        let result = unsafe { sys::cuMemsetD8Async(buffer.address().0, 0, buffer.num_bytes(), self.handle) };
        self.context.note(check("cuMemsetD8", result))
    }

    /// Waits for everything so far, however long. For loading; a step waits with [`Self::wait`].
    ///
    /// # Errors
    /// [`DriverError::Lost`] when something in the stream faulted.
    pub fn synchronize(&self) -> Result<()> {
        // SAFETY: our own stream.
        self.context.note(check("cuStreamSynchronize", unsafe { sys::cuStreamSynchronize(self.handle) }))
    }

    /// Waits for everything so far: asleep for `usual`, what such work takes, before the first look, and not beyond `limit`.
    ///
    /// # Errors
    /// [`DriverError::TimedOut`] when it is not done within `limit`; [`DriverError::Lost`].
    pub fn wait(&self, usual: Duration, limit: Duration) -> Result<Found> {
        // SAFETY: our own event and stream.
        self.context.note(check("cuEventRecord", unsafe { sys::cuEventRecord(self.done, self.handle) }))?;
        let start = Instant::now();
        // A blocking wait cannot be ended, so a hung kernel would hang the node; looking now and then can. Until the usual time is over nobody
        // looks, and then there is sleep between looks: a core is never spun on.
        let (mut pause, mut next_pause) = (usual, FIRST_PAUSE);
        let mut num_sleeps = 0;
        loop {
            // SAFETY: our own event.
            match unsafe { sys::cuEventQuery(self.done) } {
                CUresult::CUDA_ERROR_NOT_READY if start.elapsed() < limit => {
                    thread::sleep(pause.min(limit.saturating_sub(start.elapsed())));
                    (pause, next_pause) = (next_pause, (next_pause * 5 / 4).min(MAX_PAUSE));
                    num_sleeps += 1;
                }
                CUresult::CUDA_ERROR_NOT_READY => {
                    let waited_ms = start.elapsed().as_millis();
                    return self.context.note(Err(DriverError::TimedOut { waited_ms }));
                }
                result => {
                    self.context.note(check("cuEventQuery", result))?;
                    return Ok(if num_sleeps <= 1 { Found::AtOnce } else { Found::Later });
                }
            }
        }
    }

    /// Records what `work` puts into the stream, without running it.
    ///
    /// # Errors
    /// What `work` returns; [`DriverError::Call`] when something in it cannot be captured.
    pub fn capture(&self, work: impl FnOnce(&Self) -> Result<()>) -> Result<Graph> {
        self.context.make_current()?;
        let mode = CUstreamCaptureMode::CU_STREAM_CAPTURE_MODE_THREAD_LOCAL;
        // SAFETY: our own stream.
        self.context.note(check("cuStreamBeginCapture", unsafe {
            sys::cuStreamBeginCapture_v2(self.handle, mode)
        }))?;
        let worked = work(self);
        let mut graph = ptr::null_mut();
        // SAFETY: a capture has begun on this thread; it is ended whatever came of it.
        let ended =
            check("cuStreamEndCapture", unsafe { sys::cuStreamEndCapture(self.handle, &raw mut graph) });
        let instantiated = worked.and_then(|()| self.context.note(ended)).and_then(|()| {
            let mut exec = ptr::null_mut();
            // SAFETY: the graph that was just captured.
            let result = unsafe { sys::cuGraphInstantiateWithFlags(&raw mut exec, graph, 0) };
            match result {
                CUresult::CUDA_ERROR_OUT_OF_MEMORY => {
                    let (free_bytes, total_bytes) = self.context.memory_bytes().unwrap_or_default();
                    Err(DriverError::OutOfMemory {
                        what: "a captured graph",
                        asked_bytes: 0,
                        free_bytes,
                        total_bytes,
                    })
                }
                _ => self.context.note(check("cuGraphInstantiate", result)),
            }?;
            let graph = Graph { context: self.context.clone(), exec };
            // Now rather than with the first step.
            // SAFETY: a graph and a stream of this context.
            let uploaded = unsafe { sys::cuGraphUpload(exec, self.handle) };
            self.context.note(check("cuGraphUpload", uploaded))?;
            Ok(graph)
        });
        if !graph.is_null() {
            // SAFETY: not needed after instantiation, destroyed once.
            unsafe { sys::cuGraphDestroy(graph) };
        }
        instantiated
    }

    /// Runs a captured graph. Who does vouches for every address in it, as with [`Self::launch`].
    ///
    /// # Errors
    /// [`DriverError::Call`], [`DriverError::Lost`].
    pub fn run(&self, graph: &Graph) -> Result<()> {
        // SAFETY: a graph of this context; its memory lives until the stream was waited for.
        self.context.note(check("cuGraphLaunch", unsafe { sys::cuGraphLaunch(graph.exec, self.handle) }))
    }
}

impl Stream {
    /// Waits for everything so far, before what it names is given back; nothing where the context is lost.
    pub fn drain(&self) {
        if self.context.is_current_for_drop() {
            // SAFETY: our own stream. What it says does not matter: nothing of it is looked at any more.
            unsafe { sys::cuStreamSynchronize(self.handle) };
        }
    }
}

impl Drop for Stream {
    fn drop(&mut self) {
        self.drain();
        if self.context.is_current_for_drop() {
            // SAFETY: created here, destroyed once, after all work in it.
            unsafe {
                if !self.done.is_null() {
                    sys::cuEventDestroy_v2(self.done);
                }
                sys::cuStreamDestroy_v2(self.handle);
            }
        }
    }
}

/// Launches captured once, run as one.
#[derive(Debug)]
pub struct Graph {
    context: Context,
    exec: CUgraphExec,
}

// SAFETY: a handle of the driver's, usable from any thread that has the context current.
unsafe impl Send for Graph {}

impl Drop for Graph {
    fn drop(&mut self) {
        if self.context.is_current_for_drop() {
            // SAFETY: instantiated here, destroyed once.
            unsafe { sys::cuGraphExecDestroy(self.exec) };
        }
    }
}
