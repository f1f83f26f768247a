//! A context of our own, so that what we do is apart from whatever else the process or the robot does with the device.

use std::{
    fmt, ptr,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
};

use cudarc::driver::sys::{
    self, CUcontext, CUctx_flags, CUdevResource, CUdevResourceType, CUgreenCtx, CUgreenCtxCreate_flags,
};

use super::{
    device::Device,
    entry,
    error::{DriverError, Result, check},
    host_memory::SharedBytes,
};

/// How the device is shared with others.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Share {
    /// A green context: at most this many multiprocessors, rounded down to what the device can split off; its smallest part where that is
    /// larger. Lowest stream priority.
    GreenContext {
        /// Multiprocessors asked for.
        num_sms: u32,
    },
    /// A context on all multiprocessors, streams of the lowest priority.
    Priority,
    /// A context on all multiprocessors, streams of the ordinary priority.
    None,
}

/// Whether and why [`Context::open`] gave less than was asked.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Fallback {
    /// In words, for a warning.
    pub reason: String,
}

/// A context, shared by everything that lives in it and destroyed with the last of it.
#[derive(Debug, Clone)]
pub struct Context {
    inner: Arc<Inner>,
}

#[derive(Debug)]
struct Inner {
    context: CUcontext,
    green: Option<CUgreenCtx>,
    /// The device's own, which is given back and not destroyed.
    is_primary: bool,
    device: Device,
    share: Share,
    num_sms: u32,
    /// A kernel faulted or hung: nothing in the context can be given back one by one.
    is_lost: AtomicBool,
    held: Mutex<Held>,
}

/// Host memory that a lost context may still read: let go of after it.
#[derive(Default)]
struct Held(Vec<SharedBytes>);

impl fmt::Debug for Held {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.debug_tuple("Held").field(&self.0.len()).finish()
    }
}

// SAFETY: the driver's handles may be used from any thread; what is per thread is which context is current, and every user makes it so.
unsafe impl Send for Inner {}
// SAFETY: as above; the driver locks for itself.
unsafe impl Sync for Inner {}

impl Context {
    /// Opens a context on `device`. A green context that the driver cannot give becomes a plain one with the lowest priority; the second value
    /// then says why. One that there is only no memory for does not: there may be some later.
    ///
    /// # Errors
    /// [`DriverError::Call`] or [`DriverError::NoMemory`] when there can be no context at all.
    pub fn open(device: &Device, share: Share) -> Result<(Self, Option<Fallback>)> {
        if let Share::GreenContext { num_sms } = share {
            match green(device, num_sms) {
                Ok((green, context, num_sms)) => {
                    let inner = Inner::new(context, Some(green), device, share, num_sms);
                    return Ok((Self { inner: Arc::new(inner) }, None));
                }
                Err(error @ DriverError::NoMemory { .. }) => return Err(error),
                Err(error) => {
                    let context = Self::plain(device, Share::Priority)?;
                    return Ok((context, Some(Fallback { reason: error.to_string() })));
                }
            }
        }
        Ok((Self::plain(device, share)?, None))
    }

    /// The context that the CUDA runtime gives every library of a process: where a robot's perception lives. Nothing of ours does but what
    /// stands in for perception.
    ///
    /// # Errors
    /// [`DriverError::Call`] or [`DriverError::NoMemory`].
    pub fn primary(device: &Device) -> Result<Self> {
        let mut context = ptr::null_mut();
        // SAFETY: writes one handle; the device is one the driver named.
        check("cuDevicePrimaryCtxRetain", unsafe {
            sys::cuDevicePrimaryCtxRetain(&raw mut context, device.handle)
        })?;
        let mut inner = Inner::new(context, None, device, Share::None, device.num_sms);
        inner.is_primary = true;
        Ok(Self { inner: Arc::new(inner) })
    }

    fn plain(device: &Device, share: Share) -> Result<Self> {
        let context = create(device)?;
        Ok(Self { inner: Arc::new(Inner::new(context, None, device, share, device.num_sms)) })
    }

    /// The device.
    #[must_use]
    pub fn device(&self) -> &Device {
        &self.inner.device
    }

    /// How it is shared; what was got, not what was asked.
    #[must_use]
    pub fn share(&self) -> Share {
        self.inner.share
    }

    /// Multiprocessors that our kernels can run on.
    #[must_use]
    pub fn num_sms(&self) -> u32 {
        self.inner.num_sms
    }

    /// Bytes of device memory `(free, total)`. On integrated devices other processes and the page cache share them.
    ///
    /// # Errors
    /// As [`DriverError::Call`].
    pub fn memory_bytes(&self) -> Result<(usize, usize)> {
        self.make_current()?;
        let (mut free, mut total) = (0, 0);
        // SAFETY: writes two numbers.
        check("cuMemGetInfo", unsafe { sys::cuMemGetInfo_v2(&raw mut free, &raw mut total) })?;
        Ok((free, total))
    }

    /// Whether it was given up after a fault.
    #[must_use]
    pub fn is_lost(&self) -> bool {
        self.inner.is_lost.load(Ordering::Relaxed)
    }

    /// Gives it up: what lives in it is not given back one by one any more, but goes with it.
    pub fn give_up(&self) {
        self.inner.is_lost.store(true, Ordering::Relaxed);
    }

    /// Makes it this thread's current context.
    ///
    /// # Errors
    /// As [`DriverError::Call`].
    pub fn make_current(&self) -> Result<()> {
        // SAFETY: the context lives as long as `self`.
        check("cuCtxSetCurrent", unsafe { sys::cuCtxSetCurrent(self.inner.context) })
    }

    /// Holds `bytes` until the context is destroyed.
    pub(super) fn hold(&self, bytes: SharedBytes) {
        self.inner.held.lock().unwrap_or_else(PoisonError::into_inner).0.push(bytes);
    }

    /// For destructors: current, unless it has been given up.
    pub(super) fn is_current_for_drop(&self) -> bool {
        !self.is_lost() && self.make_current().is_ok()
    }

    /// Notes the loss that an error tells of, and passes it on.
    pub(super) fn note<T>(&self, result: Result<T>) -> Result<T> {
        result.inspect_err(|error| {
            if error.is_lost() {
                self.give_up();
            }
        })
    }

    pub(super) fn green(&self) -> Option<CUgreenCtx> {
        self.inner.green
    }

    /// `(lowest, highest)`: numerically the highest priority is the smallest.
    pub(super) fn priorities(&self) -> Result<(i32, i32)> {
        let (mut least, mut greatest) = (0, 0);
        // SAFETY: writes two numbers.
        check("cuCtxGetStreamPriorityRange", unsafe {
            sys::cuCtxGetStreamPriorityRange(&raw mut least, &raw mut greatest)
        })?;
        Ok((least, greatest))
    }
}

impl Inner {
    fn new(
        context: CUcontext,
        green: Option<CUgreenCtx>,
        device: &Device,
        share: Share,
        num_sms: u32,
    ) -> Self {
        if green.is_some() {
            NUM_GREEN.fetch_add(1, Ordering::SeqCst);
        }
        let (device, is_lost) = (device.clone(), AtomicBool::new(false));
        Self { context, green, is_primary: false, device, share, num_sms, is_lost, held: Mutex::default() }
    }
}

/// Green contexts of this process that are open.
static NUM_GREEN: AtomicUsize = AtomicUsize::new(0);

impl Drop for Inner {
    fn drop(&mut self) {
        // Errors have no one to go to: the context is gone either way.
        // SAFETY: nothing that lives in the context is left, as everything holds it; handles are destroyed once.
        unsafe {
            let mut current = ptr::null_mut();
            sys::cuCtxGetCurrent(&raw mut current);
            if current == self.context {
                sys::cuCtxSetCurrent(ptr::null_mut());
            }
            match self.green {
                Some(green) => {
                    sys::cuGreenCtxDestroy(green);
                    let is_last = NUM_GREEN.fetch_sub(1, Ordering::SeqCst) == 1;
                    // A green context shares the device's primary context, and a fault in one is a fault in the other: only a reset ends it. It
                    // would take others of ours with it, which will find out for themselves.
                    if *self.is_lost.get_mut() && is_last {
                        sys::cuDevicePrimaryCtxReset_v2(self.device.handle);
                    }
                }
                None if self.is_primary => {
                    sys::cuDevicePrimaryCtxRelease_v2(self.device.handle);
                }
                None => {
                    sys::cuCtxDestroy_v2(self.context);
                }
            }
        }
    }
}

/// A context on all of `device`.
fn create(device: &Device) -> Result<CUcontext> {
    // Threads that wait for the device sleep: they may have a core's other work beside them.
    let flags = CUctx_flags::CU_CTX_SCHED_BLOCKING_SYNC as u32 | CUctx_flags::CU_CTX_MAP_HOST as u32;
    let mut context = ptr::null_mut();
    let result = if entry::has(entry::CTX_CREATE) {
        // SAFETY: writes one handle; the device is one the driver named; no parameters beyond the flags.
        unsafe { sys::cuCtxCreate_v4(&raw mut context, ptr::null_mut(), flags, device.handle) }
    } else {
        let missing = || DriverError::Incomplete { missing: vec![entry::CTX_CREATE, "cuCtxCreate_v2"] };
        let create = entry::ctx_create_v2().ok_or_else(missing)?;
        // SAFETY: as above.
        unsafe { create(&raw mut context, flags, device.handle) }
    };
    check("cuCtxCreate", result)?;
    Ok(context)
}

/// A green context of at most `num_sms` multiprocessors, or of the device's smallest part.
fn green(device: &Device, num_sms: u32) -> Result<(CUgreenCtx, CUcontext, u32)> {
    if let Some(missing) = entry::missing(entry::GREEN).first() {
        let version = device.driver_version;
        let reason =
            format!("green contexts take a driver of CUDA 12.5, this one of {version} has no such function");
        return Err(DriverError::Call { call: missing, reason });
    }
    // SAFETY: plain data of the driver's, all zeros is a value.
    let mut whole: CUdevResource = unsafe { std::mem::zeroed() };
    // SAFETY: writes one resource.
    check("cuDeviceGetDevResource", unsafe {
        sys::cuDeviceGetDevResource(device.handle, &raw mut whole, CUdevResourceType::CU_DEV_RESOURCE_TYPE_SM)
    })?;
    let asked = num_sms.clamp(1, device.num_sms);
    let mut part = if asked == device.num_sms { whole } else { part_of(&whole, asked)? };
    let mut description = ptr::null_mut();
    // SAFETY: one resource that the driver gave.
    check("cuDevResourceGenerateDesc", unsafe {
        sys::cuDevResourceGenerateDesc(&raw mut description, &raw mut part, 1)
    })?;
    let mut green = ptr::null_mut();
    let flags = CUgreenCtxCreate_flags::CU_GREEN_CTX_DEFAULT_STREAM as u32;
    // SAFETY: writes one handle; the description is the driver's.
    check("cuGreenCtxCreate", unsafe {
        sys::cuGreenCtxCreate(&raw mut green, description, device.handle, flags)
    })?;
    let mut context = ptr::null_mut();
    // SAFETY: writes one handle.
    let made = check("cuCtxFromGreenCtx", unsafe { sys::cuCtxFromGreenCtx(&raw mut context, green) });
    if let Err(error) = made {
        // SAFETY: created above, and not used by anyone.
        unsafe { sys::cuGreenCtxDestroy(green) };
        return Err(error);
    }
    Ok((green, context, num_sms_of(&part)))
}

fn num_sms_of(part: &CUdevResource) -> u32 {
    // SAFETY: the resource is of multiprocessors: it is of a device's, or was split off them.
    unsafe { part.__bindgen_anon_1.sm.smCount }
}

/// The largest part of `whole` with at most `asked` multiprocessors; the smallest there is where all have more. The driver rounds up, in steps
/// that only later ones tell, and refuses what is then more than there is: so fewer and fewer are asked for.
fn part_of(whole: &CUdevResource, asked: u32) -> Result<CUdevResource> {
    let smallest = split(whole, 1)?;
    let mut larger = (num_sms_of(&smallest) + 1..=asked).rev().filter_map(|least| split(whole, least).ok());
    Ok(larger.find(|part| num_sms_of(part) <= asked).unwrap_or(smallest))
}

/// Splits at least `least` multiprocessors off `whole`.
fn split(whole: &CUdevResource, least: u32) -> Result<CUdevResource> {
    // SAFETY: plain data of the driver's, all zeros is a value.
    let (mut part, mut rest): (CUdevResource, CUdevResource) = unsafe { std::mem::zeroed() };
    let mut num_groups = 1;
    // SAFETY: room for one group, and one group is asked for.
    check("cuDevSmResourceSplitByCount", unsafe {
        sys::cuDevSmResourceSplitByCount(&raw mut part, &raw mut num_groups, whole, &raw mut rest, 0, least)
    })?;
    if num_groups == 0 {
        let reason = format!("{least} multiprocessors cannot be split off");
        return Err(DriverError::Call { call: "cuDevSmResourceSplitByCount", reason });
    }
    Ok(part)
}
