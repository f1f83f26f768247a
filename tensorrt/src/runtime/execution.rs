//! A plan in one profile with its memory and shapes.
#![expect(unsafe_code, reason = "TensorRT is called through the shim")]

use std::{ffi::CStr, fmt, mem::ManuallyDrop, sync::Arc, sync::atomic::Ordering};

use takt_kernels_cu::{
    driver::{DriverError, stream::Stream},
    launch::DeviceAddress,
};

use super::plan::{Inner, Plan};
use crate::{
    Result, TensorRtError,
    api::{ContextObject, RawShape},
    library::Address,
    object::Owned,
    tensor::{from_raw, to_raw},
};

/// What TensorRT asks of tensors' addresses.
const ALIGNMENT: u64 = 256;
/// What it asks of scratch memory's: CUDA's alignment of memory, `textureAlignment`, which is so much on every device that Takt knows.
const SCRATCH_ALIGNMENT: u64 = 512;

/// A plan in one profile with its memory and shapes.
///
/// **Captured in a graph**: TensorRT prepares itself in the first [`enqueue`](Self::enqueue) after shapes or the profile changed, with calls that
/// cannot be captured. So: shapes and addresses, one `enqueue` outside of a capture, [`Stream::synchronize`], then the capture. The graph holds the
/// addresses, the scratch memory's too; the execution has to live as long as it. A plan that [streams weights](Plan::is_streaming) cannot be
/// captured.
///
/// Dropped when nothing of it runs any more.
pub struct Execution {
    object: ManuallyDrop<Owned<ContextObject>>,
    plan: Arc<Inner>,
    profile_idx: usize,
    /// By tensor; 0 for none yet.
    addresses: Vec<u64>,
    /// By tensor: whether an input's shape is known.
    has_shape: Vec<bool>,
    scratch_bytes: usize,
    has_scratch: bool,
    /// Nothing has changed since it was checked.
    is_checked: bool,
}

impl Execution {
    /// In profile `profile_idx`, without memory yet; inputs that can only have one shape have it. Waits for `stream`: TensorRT may copy with it.
    ///
    /// # Errors
    /// [`TensorRtError::Refused`] for a profile that there is not, [`TensorRtError::Failed`], [`TensorRtError::OutOfMemory`].
    pub fn new(plan: &Plan, profile_idx: usize, stream: &Stream) -> Result<Self> {
        let plan = Arc::clone(&plan.inner);
        let scratch_bytes = plan.scratch_bytes(profile_idx)?;
        plan.context.make_current()?;
        let watch = plan.recorder.watch();
        let object = {
            let engine = plan.engine();
            // SAFETY: alive, and locked; destroyed once, before the engine, as `plan` holds it.
            let object =
                unsafe { Owned::new((plan.api.engine_context)(engine.get()), plan.api.context_destroy) };
            let object = object.ok_or_else(|| watch.error("creating an execution", ""))?;
            // SYNC POINT: under the engine's lock, for whoever asks there whether there are executions.
            plan.num_executions.fetch_add(1, Ordering::SeqCst);
            object
        };
        let num_tensors = plan.tensors.len();
        let is_fixed = |idx: usize| {
            let tensor = &plan.tensors[idx];
            tensor.ranges.get(profile_idx).is_some_and(|range| range.min == range.max)
        };
        let mut execution = Self {
            object: ManuallyDrop::new(object),
            profile_idx,
            addresses: vec![0; num_tensors],
            has_shape: vec![false; num_tensors],
            scratch_bytes,
            has_scratch: false,
            is_checked: false,
            plan: Arc::clone(&plan),
        };
        // SAFETY: alive; there is such a profile; the stream is of our context, and waited for below.
        let is_chosen = unsafe {
            (plan.api.context_set_profile)(execution.object.get(), profile_idx as i32, stream.handle())
        };
        if is_chosen == 0 {
            return Err(watch.error("choosing a profile", &format!("profile {profile_idx}")));
        }
        stream.synchronize()?;
        for idx in (0..num_tensors).filter(|idx| is_fixed(*idx)) {
            let shape = plan.tensors[idx].ranges[profile_idx].min.clone();
            execution.set_shape_of(idx, &shape)?;
        }
        Ok(execution)
    }

    /// Where it may write while it runs: at least [`Plan::scratch_bytes`], aligned to 512 bytes, until the stream was waited for.
    ///
    /// # Errors
    /// [`TensorRtError::Refused`] when that is too little or not aligned, [`TensorRtError::Failed`].
    pub fn set_scratch(&mut self, address: DeviceAddress, num_bytes: usize) -> Result<()> {
        let expected = self.scratch_bytes;
        if num_bytes < expected {
            return Err(TensorRtError::Refused(format!(
                "scratch memory of {num_bytes} bytes, profile {} takes {expected}",
                self.profile_idx
            )));
        }
        if expected > 0 {
            check_address("scratch memory", address, SCRATCH_ALIGNMENT)?;
        }
        self.is_checked = false;
        self.plan.context.make_current()?;
        let watch = self.plan.recorder.watch();
        let length = i64::try_from(num_bytes).unwrap_or(i64::MAX);
        // SAFETY: alive; the caller's memory, for as long as it runs.
        unsafe { (self.plan.api.context_set_scratch)(self.object.get(), address.0 as Address, length) };
        // It has no result.
        if watch.has_failed() {
            return Err(watch.error("setting scratch memory", &format!("{num_bytes} bytes")));
        }
        self.has_scratch = true;
        Ok(())
    }

    /// Where tensor `name` is, aligned to 256 bytes. Its memory must live for as long as this runs, or a graph that was captured of it.
    ///
    /// # Errors
    /// [`TensorRtError::Refused`] for a tensor that there is not, or an address that is not aligned; [`TensorRtError::Failed`].
    pub fn bind(&mut self, name: &str, address: DeviceAddress) -> Result<()> {
        let idx = self.plan.tensor(name)?;
        check_address(name, address, ALIGNMENT)?;
        self.is_checked = false;
        self.plan.context.make_current()?;
        let watch = self.plan.recorder.watch();
        // SAFETY: alive; a name that ends with 0; the caller's memory, for as long as it runs.
        let is_bound = unsafe {
            let name = self.plan.tensors[idx].name.as_ptr();
            (self.plan.api.context_bind)(self.object.get(), name, address.0 as Address)
        };
        if is_bound == 0 {
            return Err(watch.error("binding a tensor", &format!("{name:?}")));
        }
        self.addresses[idx] = address.0;
        Ok(())
    }

    /// What shape input `name` has.
    ///
    /// # Errors
    /// [`TensorRtError::Refused`] for one outside the profile, or of an input that there is not; [`TensorRtError::Failed`].
    pub fn set_shape(&mut self, name: &str, shape: &[usize]) -> Result<()> {
        let idx = self.plan.input(name)?;
        let range = &self.plan.tensors[idx].ranges[self.profile_idx];
        if !range.contains(shape) {
            let profile_idx = self.profile_idx;
            return Err(TensorRtError::Refused(format!(
                "input {name:?} of shape {shape:?}: profile {profile_idx} takes {:?} to {:?}",
                range.min, range.max
            )));
        }
        self.set_shape_of(idx, shape)
    }

    fn set_shape_of(&mut self, idx: usize, shape: &[usize]) -> Result<()> {
        let raw = to_raw(shape).map_err(TensorRtError::Refused)?;
        self.is_checked = false;
        self.plan.context.make_current()?;
        let tensor = &self.plan.tensors[idx];
        let watch = self.plan.recorder.watch();
        // SAFETY: alive; a name that ends with 0 and a shape, both read in the call.
        let is_set = unsafe {
            (self.plan.api.context_set_shape)(self.object.get(), tensor.name.as_ptr(), &raw const raw)
        };
        if is_set == 0 {
            return Err(watch.error("setting a shape", &format!("input {:?}: {shape:?}", tensor.info.name)));
        }
        self.has_shape[idx] = true;
        Ok(())
    }

    /// The shape of tensor `name`, as it follows from the inputs' shapes.
    ///
    /// # Errors
    /// [`TensorRtError::Refused`] for a tensor that there is not, or one whose shape does not follow yet.
    pub fn shape(&self, name: &str) -> Result<Vec<usize>> {
        let idx = self.plan.tensor(name)?;
        self.plan.context.make_current()?;
        let mut raw = RawShape::default();
        // SAFETY: alive; a name that ends with 0; writes one shape.
        let is_known = unsafe {
            let name = self.plan.tensors[idx].name.as_ptr();
            (self.plan.api.context_shape)(self.object.get(), name, &raw mut raw)
        };
        let shape: Option<Vec<usize>> = from_raw(&raw).into_iter().collect();
        let shape = shape.filter(|_| is_known != 0);
        shape.ok_or_else(|| TensorRtError::Refused(format!("the shape of {name:?} does not follow yet")))
    }

    /// Checks that all shapes and addresses are there, and has TensorRT infer the outputs' shapes. Nothing else is left to do before
    /// [`enqueue`](Self::enqueue), which does it itself where it was not done since the last change.
    ///
    /// # Errors
    /// [`TensorRtError::Refused`] with the names of those that are not; [`TensorRtError::Failed`] for shapes that do not go together.
    pub fn check_ready(&mut self) -> Result<()> {
        let tensors = &self.plan.tensors;
        let lacking = |is_lacking: &dyn Fn(usize) -> bool| -> Vec<&str> {
            (0..tensors.len())
                .filter(|idx| is_lacking(*idx))
                .map(|idx| tensors[idx].info.name.as_str())
                .collect()
        };
        let refused =
            |what: String| Err(TensorRtError::Refused(format!("the execution is not ready: {what}")));
        let shapes = lacking(&|idx| tensors[idx].info.is_input && !self.has_shape[idx]);
        if !shapes.is_empty() {
            return refused(format!("no shape for {}", shapes.join(", ")));
        }
        let addresses = lacking(&|idx| self.addresses[idx] == 0);
        if !addresses.is_empty() {
            return refused(format!("no memory for {}", addresses.join(", ")));
        }
        if self.scratch_bytes > 0 && !self.has_scratch {
            return refused(format!("no scratch memory, of which it takes {} bytes", self.scratch_bytes));
        }
        let apart = lacking(&|idx| {
            tensors[idx].aliased_input.is_some_and(|input| self.addresses[input] != self.addresses[idx])
        });
        if !apart.is_empty() {
            return refused(format!("{} must have the memory of the inputs they update", apart.join(", ")));
        }
        self.infer_shapes()?;
        self.is_checked = true;
        Ok(())
    }

    fn infer_shapes(&self) -> Result<()> {
        self.plan.context.make_current()?;
        let watch = self.plan.recorder.watch();
        // Without room for names first: a step that changes shapes allocates nothing either.
        // SAFETY: alive; nothing is written.
        let num = unsafe { (self.plan.api.context_infer_shapes)(self.object.get(), std::ptr::null_mut(), 0) };
        match num {
            0 => Ok(()),
            1.. => {
                let what = self.underspecified();
                Err(TensorRtError::Refused(format!(
                    "the execution is not ready: TensorRT wants more of {what}"
                )))
            }
            _ => Err(watch.error("inferring shapes", "")),
        }
    }

    /// Names of inputs that TensorRT cannot infer shapes without.
    fn underspecified(&self) -> String {
        let mut names = vec![std::ptr::null(); self.plan.tensors.len()];
        // SAFETY: alive; room for so many names, which are the engine's.
        let num = unsafe {
            (self.plan.api.context_infer_shapes)(self.object.get(), names.as_mut_ptr(), names.len() as i32)
        };
        names.truncate(usize::try_from(num).unwrap_or_default());
        // SAFETY: not null, so a string of the engine's.
        let name = |name: *const _| unsafe { CStr::from_ptr(name) }.to_string_lossy().into_owned();
        let names: Vec<String> = names.into_iter().filter(|name| !name.is_null()).map(name).collect();
        names.join(", ")
    }

    /// Puts it into `stream`, of the context that the plan was loaded in; captured when the stream is. Nothing here allocates, in this or in other
    /// functions of a ready execution; what TensorRT does is its own.
    ///
    /// # Errors
    /// [`TensorRtError::Failed`] with what TensorRT said; [`TensorRtError::Driver`] with [`DriverError::Lost`] when the context is of no use any
    /// more; [`TensorRtError::Refused`] as [`check_ready`](Self::check_ready).
    pub fn enqueue(&mut self, stream: &Stream) -> Result<()> {
        if !self.is_checked {
            self.check_ready()?;
        }
        self.plan.context.make_current()?;
        let watch = self.plan.recorder.watch();
        // SAFETY: alive, used by this thread alone; all tensors and scratch memory have addresses, whose memory the caller keeps.
        if unsafe { (self.plan.api.context_enqueue)(self.object.get(), stream.handle()) } == 0 {
            return Err(self.loss().unwrap_or_else(|| watch.error("running the plan", "")));
        }
        Ok(())
    }

    /// What TensorRT cannot tell: whether the context is of no use any more. Asked of the driver without waiting for anything.
    fn loss(&self) -> Option<TensorRtError> {
        let error = self.plan.context.memory_bytes().err().filter(DriverError::is_lost)?;
        self.plan.context.give_up();
        Some(error.into())
    }

    /// The profile it was made for.
    #[must_use]
    pub fn profile_idx(&self) -> usize {
        self.profile_idx
    }
}

impl fmt::Debug for Execution {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Execution").field("profile_idx", &self.profile_idx).finish_non_exhaustive()
    }
}

impl Drop for Execution {
    fn drop(&mut self) {
        if !self.plan.context.is_lost() && self.plan.context.make_current().is_ok() {
            // SAFETY: not used afterwards, and before the engine, which `plan` holds.
            unsafe { ManuallyDrop::drop(&mut self.object) }
        }
        self.plan.num_executions.fetch_sub(1, Ordering::SeqCst);
    }
}

/// Whether TensorRT takes `address` for `what`.
fn check_address(what: &str, address: DeviceAddress, alignment: u64) -> Result<()> {
    if address.0 != 0 && address.0.is_multiple_of(alignment) {
        return Ok(());
    }
    let address = address.0;
    Err(TensorRtError::Refused(format!(
        "{what} at {address:#x}: expected an address that {alignment} divides"
    )))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_are_aligned_and_not_null() {
        check_address("logits", DeviceAddress(256), ALIGNMENT).unwrap();
        check_address("scratch memory", DeviceAddress(512), SCRATCH_ALIGNMENT).unwrap();
        check_address("scratch memory", DeviceAddress(256), SCRATCH_ALIGNMENT).unwrap_err();
        for address in [0, 128, 511] {
            let error = check_address("logits", DeviceAddress(address), ALIGNMENT).unwrap_err().to_string();
            assert_eq!(error, format!("logits at {address:#x}: expected an address that 256 divides"));
        }
    }
}
