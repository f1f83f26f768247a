//! A plan in device memory.
#![expect(unsafe_code, reason = "TensorRT is called through the shim")]

use std::{
    ffi::{CStr, CString},
    fmt,
    mem::ManuallyDrop,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicUsize, Ordering},
    },
};

use takt_kernels_cu::driver::context::Context;

use crate::{
    Result, TensorRt, TensorRtError,
    api::{Api, EngineObject, RawShape, RawTensor, RuntimeObject, Selector},
    object::{Owned, Recorder},
    tensor::{DataType, ShapeRange, TensorInfo, from_raw, to_name},
};

/// A plan in device memory. Cheap to clone; given back with the last of it and its executions.
#[derive(Clone)]
pub struct Plan {
    pub(super) inner: Arc<Inner>,
}

/// What a plan and its executions share.
pub(super) struct Inner {
    pub trt: TensorRt,
    pub api: &'static Api,
    pub context: Context,
    pub recorder: Recorder,
    /// Destroyed before the runtime.
    engine: ManuallyDrop<Mutex<Owned<EngineObject>>>,
    runtime: ManuallyDrop<Unused<RuntimeObject>>,
    pub tensors: Vec<Tensor>,
    infos: Vec<TensorInfo>,
    num_profiles: usize,
    streamable_bytes: usize,
    is_refittable: bool,
    pub num_executions: AtomicUsize,
}

/// What is asked for at every turn.
pub(super) struct Tensor {
    pub info: TensorInfo,
    pub name: CString,
    /// Of an output that has to have an input's memory: the input's place.
    pub aliased_input: Option<usize>,
    /// Of an input, by profile.
    pub ranges: Vec<ShapeRange>,
}

/// What is only kept, and destroyed by whoever has it for himself.
struct Unused<T> {
    _object: Owned<T>,
}

// SAFETY: nothing can be done through a shared reference.
unsafe impl<T> Sync for Unused<T> {}

impl Plan {
    /// Reads a serialized plan and copies its weights to the device of `context`.
    ///
    /// # Errors
    /// [`TensorRtError::Failed`] with what TensorRT said, as for a plan of another version or device; [`TensorRtError::OutOfMemory`];
    /// [`TensorRtError::Refused`] for a plan whose tensors are not plain row-major ones in device memory.
    pub fn load(trt: &TensorRt, context: &Context, plan: &[u8]) -> Result<Self> {
        context.make_current()?;
        let api = trt.api();
        let recorder = Recorder::new(api)?;
        let watch = recorder.watch();
        // SAFETY: the factory is the library's; the logger and the recorder outlive what is given them; each object is destroyed once, the engine
        // before the runtime, as the later local goes first; so many bytes of plan, which TensorRT copies.
        let (runtime, engine) = unsafe {
            let runtime =
                Owned::new((api.runtime_create)(trt.create_runtime(), trt.logger()?), api.runtime_destroy);
            let runtime = runtime.ok_or_else(|| watch.error("beginning to run plans", ""))?;
            (api.runtime_set_recorder)(runtime.get(), recorder.get());
            let engine = (api.runtime_engine)(runtime.get(), plan.as_ptr().cast(), plan.len() as u64);
            let engine = Owned::new(engine, api.engine_destroy);
            (runtime, engine.ok_or_else(|| watch.error("loading the plan", ""))?)
        };
        // SAFETY: alive; all of them only ask.
        let (num_profiles, streamable_bytes, is_refittable) = unsafe {
            let engine = engine.get();
            (
                usize::try_from((api.engine_num_profiles)(engine)).unwrap_or_default(),
                usize::try_from((api.engine_streamable_bytes)(engine)).unwrap_or_default(),
                (api.engine_is_refittable)(engine) != 0,
            )
        };
        let tensors = tensors(api, &engine, num_profiles)?;
        let inner = Inner {
            trt: trt.clone(),
            api,
            context: context.clone(),
            recorder,
            engine: ManuallyDrop::new(Mutex::new(engine)),
            runtime: ManuallyDrop::new(Unused { _object: runtime }),
            infos: tensors.iter().map(|tensor| tensor.info.clone()).collect(),
            tensors,
            num_profiles,
            streamable_bytes,
            is_refittable,
            num_executions: AtomicUsize::new(0),
        };
        Ok(Self { inner: Arc::new(inner) })
    }

    /// All inputs and outputs, in TensorRT's order.
    #[must_use]
    pub fn tensors(&self) -> &[TensorInfo] {
        &self.inner.infos
    }

    /// The input whose memory output `name` has to have, as a cache that is updated in its place. TensorRT tells of it from 10.15 on.
    #[must_use]
    pub fn aliased_input(&self, name: &str) -> Option<&str> {
        let tensor = self.inner.tensors.iter().find(|tensor| tensor.info.name == name)?;
        Some(&self.inner.tensors[tensor.aliased_input?].info.name)
    }

    /// Profiles that [`Execution::new`](super::Execution::new) chooses from.
    #[must_use]
    pub fn num_profiles(&self) -> usize {
        self.inner.num_profiles
    }

    /// Shapes that input `name` may have in a profile.
    ///
    /// # Errors
    /// [`TensorRtError::Refused`] for an input or profile that there is not.
    pub fn profile_shape(&self, name: &str, profile_idx: usize) -> Result<ShapeRange> {
        self.inner.check_profile(profile_idx)?;
        let tensor = &self.inner.tensors[self.inner.input(name)?];
        Ok(tensor.ranges[profile_idx].clone())
    }

    /// Device memory that an execution in a profile takes while it runs, for the largest shapes; executions that do not run at the same time may
    /// share it. Asked after [`set_weight_budget`](Self::set_weight_budget), which changes it.
    ///
    /// # Errors
    /// [`TensorRtError::Refused`] for a profile that there is not; [`TensorRtError::Failed`].
    pub fn scratch_bytes(&self, profile_idx: usize) -> Result<usize> {
        self.inner.scratch_bytes(profile_idx)
    }

    /// Bytes of weights that may stay in the host's memory; 0 for a plan that was not built for it.
    #[must_use]
    pub fn streamable_bytes(&self) -> usize {
        self.inner.streamable_bytes
    }

    /// Whether weights are sent while it runs, or may be, where TensorRT does not tell. Such a plan's executions are done when they are enqueued, and cannot be captured.
    #[must_use]
    pub fn is_streaming(&self) -> bool {
        if self.inner.streamable_bytes == 0 {
            return false;
        }
        if self.inner.context.make_current().is_err() {
            return true;
        }
        let engine = self.inner.engine();
        // SAFETY: alive; it only asks.
        let budget = unsafe { (self.inner.api.engine_weight_budget)(engine.get()) };
        !usize::try_from(budget).is_ok_and(|budget| budget >= self.inner.streamable_bytes)
    }

    /// Keeps at most `num_bytes` of the streamable weights on the device; before the first execution.
    ///
    /// # Errors
    /// [`TensorRtError::Refused`] for a plan that was not built for it, or one with executions; [`TensorRtError::Failed`],
    /// [`TensorRtError::OutOfMemory`].
    pub fn set_weight_budget(&mut self, num_bytes: usize) -> Result<()> {
        let inner = &self.inner;
        if inner.streamable_bytes == 0 {
            let reason = "the plan was not built to stream weights: build it with weight streaming";
            return Err(TensorRtError::Refused(reason.into()));
        }
        let engine = inner.without_executions("the weights' budget")?;
        // More than all is all.
        let budget = i64::try_from(num_bytes.min(inner.streamable_bytes)).unwrap_or(i64::MAX);
        inner.context.make_current()?;
        let watch = inner.recorder.watch();
        // SAFETY: alive, and without executions while the lock is held.
        if unsafe { (inner.api.engine_set_weight_budget)(engine.get(), budget) } == 0 {
            return Err(watch.error("setting the weights' budget", &format!("{budget} bytes")));
        }
        Ok(())
    }

    /// Whether [`refit`](Self::refit) can give it weights.
    #[must_use]
    pub fn is_refittable(&self) -> bool {
        self.inner.is_refittable
    }
}

impl fmt::Debug for Plan {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Inner { infos, num_profiles, trt, .. } = &*self.inner;
        f.debug_struct("Plan")
            .field("trt", trt)
            .field("tensors", infos)
            .field("num_profiles", num_profiles)
            .finish()
    }
}

impl Inner {
    /// The engine, for one call at a time.
    pub fn engine(&self) -> MutexGuard<'_, Owned<EngineObject>> {
        // Nothing of ours is half done between two calls.
        self.engine.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The engine, when no execution would see the change.
    pub fn without_executions(&self, what: &str) -> Result<MutexGuard<'_, Owned<EngineObject>>> {
        let engine = self.engine();
        // SYNC POINT: executions are counted under the lock, before they are made.
        match self.num_executions.load(Ordering::SeqCst) {
            0 => Ok(engine),
            num => Err(TensorRtError::Refused(format!(
                "{what} cannot change any more: the plan has {num} executions"
            ))),
        }
    }

    pub fn check_profile(&self, profile_idx: usize) -> Result<()> {
        if profile_idx < self.num_profiles {
            return Ok(());
        }
        let num = self.num_profiles;
        Err(TensorRtError::Refused(format!("profile {profile_idx} of a plan with {num}")))
    }

    /// The place of tensor `name`.
    pub fn tensor(&self, name: &str) -> Result<usize> {
        let found = self.infos.iter().position(|info| info.name == name);
        found.ok_or_else(|| {
            let known: Vec<_> = self.infos.iter().map(|info| info.name.as_str()).collect();
            TensorRtError::Refused(format!("the plan has no tensor {name:?}: it has {}", known.join(", ")))
        })
    }

    /// The place of input `name`.
    pub fn input(&self, name: &str) -> Result<usize> {
        let idx = self.tensor(name)?;
        if self.infos[idx].is_input {
            return Ok(idx);
        }
        Err(TensorRtError::Refused(format!(
            "{name:?} is an output of the plan: its shape follows from the inputs'"
        )))
    }

    pub fn scratch_bytes(&self, profile_idx: usize) -> Result<usize> {
        self.check_profile(profile_idx)?;
        self.context.make_current()?;
        let watch = self.recorder.watch();
        // SAFETY: alive; there is such a profile, of which there are less than 2^31.
        let num_bytes = unsafe { (self.api.engine_scratch_bytes)(self.engine().get(), profile_idx as i32) };
        usize::try_from(num_bytes).map_err(|_| watch.error("asking how much scratch memory it takes", ""))
    }

    pub fn is_refittable(&self) -> bool {
        self.is_refittable
    }
}

impl Drop for Inner {
    fn drop(&mut self) {
        if self.context.is_lost() || self.context.make_current().is_err() {
            // It goes with the context.
            return;
        }
        // SAFETY: not used afterwards; the engine before the runtime.
        unsafe {
            ManuallyDrop::drop(&mut self.engine);
            ManuallyDrop::drop(&mut self.runtime);
        }
    }
}

/// All inputs and outputs with their shapes in every profile.
fn tensors(api: &Api, engine: &Owned<EngineObject>, num_profiles: usize) -> Result<Vec<Tensor>> {
    // SAFETY: alive.
    let num_tensors = unsafe { (api.engine_num_tensors)(engine.get()) };
    let mut tensors = Vec::new();
    let mut aliases = Vec::new();
    for tensor_idx in 0..num_tensors {
        let (info, alias) = tensor(api, engine, tensor_idx)?;
        let name = to_name(&info.name)?;
        let profiles = if info.is_input { 0..num_profiles } else { 0..0 };
        let ranges = profiles
            .map(|profile_idx| range(api, engine, &name, &info, profile_idx))
            .collect::<Result<_>>()?;
        tensors.push(Tensor { info, name, aliased_input: None, ranges });
        aliases.push(alias);
    }
    for (idx, alias) in aliases.into_iter().enumerate() {
        tensors[idx].aliased_input =
            alias.and_then(|alias| tensors.iter().position(|tensor| tensor.info.name == alias));
    }
    Ok(tensors)
}

/// A tensor, and the input it shares memory with.
fn tensor(api: &Api, engine: &Owned<EngineObject>, tensor_idx: i32) -> Result<(TensorInfo, Option<String>)> {
    let refused = |name: &str, why: &str| {
        Err(TensorRtError::Refused(format!(
            "the plan's tensor {name:?} {why}: it is no plan that takt built"
        )))
    };
    let mut raw = RawTensor {
        name: std::ptr::null(),
        aliased_input: std::ptr::null(),
        is_input: 0,
        is_on_host: 0,
        data_type: 0,
        is_linear: 0,
        shape: RawShape::default(),
    };
    // SAFETY: alive; writes one tensor, whose strings live as long as the engine.
    if unsafe { (api.engine_tensor)(engine.get(), tensor_idx, &raw mut raw) } == 0 || raw.name.is_null() {
        return refused(&format!("#{tensor_idx}"), "cannot be described");
    }
    // SAFETY: not null, so a string of the engine's.
    let name = unsafe { CStr::from_ptr(raw.name) }.to_string_lossy().into_owned();
    let Some(data_type) = DataType::from_number(raw.data_type) else {
        return refused(
            &name,
            &format!("has a data type of number {}, which takt does not know", raw.data_type),
        );
    };
    if raw.is_on_host != 0 {
        return refused(&name, "has to be in the host's memory");
    }
    if raw.is_linear == 0 {
        return refused(&name, "is not row-major");
    }
    // SAFETY: null, or a string of the engine's.
    let alias = (!raw.aliased_input.is_null())
        .then(|| unsafe { CStr::from_ptr(raw.aliased_input) }.to_string_lossy().into_owned());
    let info = TensorInfo { name, is_input: raw.is_input != 0, data_type, shape: from_raw(&raw.shape) };
    Ok((info, alias))
}

/// Shapes of an input in a profile; its own where a profile says nothing.
fn range(
    api: &Api,
    engine: &Owned<EngineObject>,
    name: &CStr,
    info: &TensorInfo,
    profile_idx: usize,
) -> Result<ShapeRange> {
    let shape = |selector: Selector| -> Option<Vec<usize>> {
        let mut raw = RawShape::default();
        // SAFETY: alive; a name that ends with 0; writes one shape.
        let is_known = unsafe {
            let profile_idx = profile_idx as i32;
            (api.engine_profile_shape)(
                engine.get(),
                name.as_ptr(),
                profile_idx,
                selector as i32,
                &raw mut raw,
            )
        };
        let told = if is_known != 0 { from_raw(&raw) } else { info.shape.clone() };
        told.into_iter().collect()
    };
    let found = shape(Selector::Min).zip(shape(Selector::Opt)).zip(shape(Selector::Max));
    let range = found.map(|((min, opt), max)| ShapeRange { min, opt, max });
    range.filter(|range| range.check().is_ok() && range.min.len() == info.shape.len()).ok_or_else(|| {
        TensorRtError::Refused(format!(
            "the plan does not say which shapes {:?} has in profile {profile_idx}",
            info.name
        ))
    })
}
