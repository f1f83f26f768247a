//! A build, call by call.

use std::ffi::CString;

use takt_kernels_cu::driver::context::Context;

use super::{BuiltPlan, PlanBytes, PlanFlags, PlanRequest, Profile, progress::Monitor};
use crate::{
    Result, TensorRt, TensorRtError,
    api::{
        Api, BuilderObject, CacheObject, ConfigObject, Flag, NetworkObject, ParserObject, RawParserError,
        Selector,
    },
    journal::{self, Warnings},
    library::{Address, Parser},
    object::{Owned, Recorder},
    tensor::{to_name, to_raw},
};

/// What the caller is told while the model is read.
const READING: &str = "reading the model";
/// Errors of the parser's that are told.
const MAX_PARSER_ERRORS: i32 = 4;
/// `nvonnxparser::ErrorCode::kMEM_ALLOC_FAILED`.
const MEM_ALLOC_FAILED: i32 = 2;

/// All that a build takes, for the thread it is done on.
pub(super) struct Steps<'a> {
    trt: &'a TensorRt,
    api: &'static Api,
    parser: Parser,
    onnx: CString,
    profiles: &'a [Profile],
    flags: PlanFlags,
    workspace_bytes: Option<u64>,
    optimization_level: Option<i32>,
    timing_cache: &'a [u8],
    /// Of the stream; alive as long as the request's.
    stream: Option<(Context, StreamHandle)>,
}

struct StreamHandle(Address);

// SAFETY: a handle of the driver's, usable from any thread that has the context current; whoever asked lends the stream for the build.
unsafe impl Send for StreamHandle {}

/// What TensorRT wants destroyed in this order: fields are dropped as they are written.
struct Objects {
    parser: Owned<ParserObject>,
    network: Owned<NetworkObject>,
    config: Owned<ConfigObject>,
    builder: Owned<BuilderObject>,
    /// Those that were refused too.
    caches: Vec<Owned<CacheObject>>,
    recorder: Recorder,
}

impl<'a> Steps<'a> {
    pub fn new(trt: &'a TensorRt, parser: Parser, request: &PlanRequest<'a>) -> Result<Self> {
        let onnx = request.onnx.as_os_str().as_encoded_bytes();
        let onnx = CString::new(onnx).map_err(|_| {
            TensorRtError::Refused(format!("{} cannot be a path: it has a 0 in it", request.onnx.display()))
        })?;
        Ok(Self {
            trt,
            api: trt.api(),
            parser,
            onnx,
            profiles: request.profiles,
            flags: request.flags,
            workspace_bytes: request.workspace_bytes.map(|bytes| bytes as u64),
            optimization_level: request.optimization_level.map(|level| level.min(5) as i32),
            timing_cache: request.timing_cache,
            stream: request.stream.map(|stream| (stream.context().clone(), StreamHandle(stream.handle()))),
        })
    }

    /// All of it, on this thread.
    pub fn run(&self, monitor: &Monitor<'_>) -> Result<BuiltPlan> {
        if let Some((context, _)) = &self.stream {
            context.make_current()?;
        }
        let warnings = Warnings::begin();
        let mut objects = self.create()?;
        monitor.during(READING, || self.read(&objects))?;
        let num_decomposable = self.decompose(&objects)?;
        self.configure(&objects)?;
        let used_timing_cache = self.attach_timing_cache(&mut objects)?;
        for profile in self.profiles {
            self.add_profile(&objects, profile)?;
        }
        let plan = self.build(&objects, monitor)?;
        let (timing_cache, note) = self.timing_cache(&objects);
        drop(objects);
        let mut warnings = warnings.take();
        warnings.extend(note);
        Ok(BuiltPlan { plan, timing_cache, used_timing_cache, num_decomposable, warnings })
    }

    fn create(&self) -> Result<Objects> {
        let Self { api, trt, .. } = self;
        let logger = trt.logger()?;
        let recorder = Recorder::new(api)?;
        let watch = recorder.watch();
        let failed = |call| move || watch.error(call, "");
        // SAFETY: the factories are the library's, the logger and the recorder outlive what is given them, and each object is destroyed once, by
        // the function for its type.
        unsafe {
            let builder = Owned::new((api.builder_create)(trt.create_builder(), logger), api.builder_destroy);
            let builder = builder.ok_or_else(failed("beginning a build"))?;
            (api.builder_set_recorder)(builder.get(), recorder.get());
            let network = Owned::new((api.builder_network)(builder.get()), api.network_destroy);
            let network = network.ok_or_else(failed("beginning a network"))?;
            let config = Owned::new((api.builder_config)(builder.get()), api.config_destroy);
            let config = config.ok_or_else(failed("beginning a configuration"))?;
            let parser = (api.parser_create)(self.parser.create, network.get(), logger);
            let parser = Owned::new(parser, api.parser_destroy).ok_or_else(failed("beginning to parse"))?;
            Ok(Objects { parser, network, config, builder, caches: Vec::new(), recorder })
        }
    }

    /// By path, so that the model's data is found beside it.
    fn read(&self, objects: &Objects) -> Result<()> {
        let watch = objects.recorder.watch();
        // SAFETY: alive; the path ends with 0.
        if unsafe { (self.api.parser_parse_file)(objects.parser.get(), self.onnx.as_ptr()) } != 0 {
            return Ok(());
        }
        let (facts, is_allocation) = parser_errors(self.api, &objects.parser);
        Err(match watch.error("reading the ONNX model", &facts) {
            TensorRtError::Failed { call, reason } if is_allocation => {
                TensorRtError::OutOfMemory { call, reason }
            }
            other => other,
        })
    }

    fn decompose(&self, objects: &Objects) -> Result<usize> {
        let watch = objects.recorder.watch();
        // SAFETY: alive.
        match unsafe { (self.api.network_decompose_attention)(objects.network.get()) } {
            // These headers have no attention.
            -1 => Ok(0),
            num => usize::try_from(num)
                .map_err(|_| watch.error("letting attention be taken apart", "a layer refuses")),
        }
    }

    fn configure(&self, objects: &Objects) -> Result<()> {
        let (api, config) = (self.api, objects.config.get());
        for flag in flags(self.flags) {
            let watch = objects.recorder.watch();
            // SAFETY: alive.
            if unsafe { (api.config_set_flag)(config, flag as i32) } == 0 {
                return Err(watch.error("asking for a plan's properties", &format!("{flag:?} was not taken")));
            }
        }
        // A configuration has no error recorder, and most of its functions no result: the shim asks afterwards.
        if let Some(num_bytes) = self.workspace_bytes {
            let watch = objects.recorder.watch();
            // SAFETY: alive.
            if unsafe { (api.config_set_workspace)(config, num_bytes) } == 0 {
                let facts = format!("a workspace of {num_bytes} bytes was not taken");
                return Err(watch.error("setting limits of the build", &facts));
            }
        }
        if let Some(level) = self.optimization_level {
            let watch = objects.recorder.watch();
            // SAFETY: alive.
            if unsafe { (api.config_set_optimization_level)(config, level) } == 0 {
                let facts = format!("optimization level {level} was not taken");
                return Err(watch.error("setting limits of the build", &facts));
            }
        }
        let watch = objects.recorder.watch();
        // One stream, ours: others would not have its priority, and a step has nothing to run beside itself.
        // SAFETY: alive.
        if unsafe { (api.config_set_max_aux_streams)(config, 0) } == 0 {
            return Err(watch.error("setting limits of the build", "that it has one stream was not taken"));
        }
        if let Some((_, stream)) = &self.stream {
            // SAFETY: alive; the stream is lent for the build, its context is current.
            unsafe { (api.config_set_profile_stream)(config, stream.0) };
        }
        Ok(())
    }

    /// Whether what was measured before is of use: of this device and version.
    fn attach_timing_cache(&self, objects: &mut Objects) -> Result<bool> {
        if !self.timing_cache.is_empty() && self.attach(objects, self.timing_cache) {
            return Ok(true);
        }
        let watch = objects.recorder.watch();
        if self.attach(objects, &[]) { Ok(false) } else { Err(watch.error("beginning a timing cache", "")) }
    }

    fn attach(&self, objects: &mut Objects, bytes: &[u8]) -> bool {
        let api = self.api;
        let start = if bytes.is_empty() { std::ptr::null() } else { bytes.as_ptr() };
        // SAFETY: alive; so many bytes, which TensorRT copies. A cache lives until the builder is gone, attached or not.
        unsafe {
            let cache = (api.config_timing_cache)(objects.config.get(), start.cast(), bytes.len() as u64);
            let Some(cache) = Owned::new(cache, api.cache_destroy) else { return false };
            let is_attached = (api.config_set_timing_cache)(objects.config.get(), cache.get()) != 0;
            objects.caches.push(cache);
            is_attached
        }
    }

    fn add_profile(&self, objects: &Objects, profile: &Profile) -> Result<()> {
        let api = self.api;
        let watch = objects.recorder.watch();
        let failed =
            |facts: &str| watch.error("describing a profile", &format!("profile {}: {facts}", profile.name));
        // SAFETY: alive; the profile is the builder's own, and lives as long.
        let object = unsafe { (api.builder_profile)(objects.builder.get()) };
        if object.is_null() {
            return Err(failed("there is no room"));
        }
        for (input, range) in &profile.inputs {
            let name = to_name(input)?;
            for (selector, shape) in
                [(Selector::Min, &range.min), (Selector::Opt, &range.opt), (Selector::Max, &range.max)]
            {
                let raw = to_raw(shape).map_err(TensorRtError::Refused)?;
                // SAFETY: alive; a name that ends with 0 and a shape, both read in the call.
                if unsafe { (api.profile_set)(object, name.as_ptr(), selector as i32, &raw const raw) } == 0 {
                    return Err(failed(&format!("input {input} cannot be {shape:?}")));
                }
            }
        }
        // SAFETY: alive.
        if unsafe { (api.profile_is_valid)(object) } == 0 {
            return Err(failed("its shapes do not go together"));
        }
        // SAFETY: alive.
        if unsafe { (api.config_add_profile)(objects.config.get(), object) } < 0 {
            let is_refittable = self.flags.refittable || self.flags.stripped;
            let hint =
                if is_refittable { " (a plan whose weights can be given anew has one profile)" } else { "" };
            return Err(failed(&format!("it was not taken{hint}")));
        }
        Ok(())
    }

    fn build(&self, objects: &Objects, monitor: &Monitor<'_>) -> Result<PlanBytes> {
        let (api, config) = (self.api, objects.config.get());
        let object = monitor.object(api)?;
        let watch = objects.recorder.watch();
        // SAFETY: alive; the monitor is taken back before it is destroyed.
        let memory = unsafe {
            (api.config_set_monitor)(config, object.get());
            let (builder, network) = (objects.builder.get(), objects.network.get());
            let memory = Owned::new((api.builder_build)(builder, network, config), api.memory_destroy);
            (api.config_set_monitor)(config, std::ptr::null_mut());
            memory
        };
        if monitor.is_cancelled() {
            return Err(TensorRtError::Cancelled);
        }
        let plan = memory.and_then(|memory| PlanBytes::new(self.trt, memory));
        plan.ok_or_else(|| watch.error("building the plan", ""))
    }

    /// What was measured, or nothing and a warning: the plan is there, and took minutes.
    fn timing_cache(&self, objects: &Objects) -> (Vec<u8>, Option<String>) {
        let watch = objects.recorder.watch();
        // The last is the one that is attached.
        let Some(cache) = objects.caches.last() else { return (Vec::new(), None) };
        // SAFETY: alive.
        let memory = unsafe { Owned::new((self.api.cache_serialize)(cache.get()), self.api.memory_destroy) };
        match memory.and_then(|memory| PlanBytes::new(self.trt, memory)) {
            Some(bytes) => (bytes.to_vec(), None),
            None => {
                let error = watch.error("writing the timing cache", "");
                (Vec::new(), Some(format!("{error}; the next build measures all anew")))
            }
        }
    }
}

/// What a builder is asked for.
fn flags(flags: PlanFlags) -> Vec<Flag> {
    let PlanFlags { refittable, stripped, weight_streaming } = flags;
    // Stripped alone: whoever strips gives the same weights back, and the plan may be what it is without.
    let identical = stripped && !refittable;
    let asked = [
        (refittable, Flag::Refit),
        (identical, Flag::RefitIdentical),
        (stripped, Flag::StripPlan),
        (weight_streaming, Flag::WeightStreaming),
    ];
    asked.into_iter().filter_map(|(is_asked, flag)| is_asked.then_some(flag)).collect()
}

/// What the parser could not do, node by node, and whether it was for want of memory.
fn parser_errors(api: &Api, parser: &Owned<ParserObject>) -> (String, bool) {
    // SAFETY: alive.
    let num_errors = unsafe { (api.parser_num_errors)(parser.get()) };
    let null = std::ptr::null();
    let mut told = Vec::new();
    let mut is_allocation = false;
    for error_idx in 0..num_errors.min(MAX_PARSER_ERRORS) {
        let mut error =
            RawParserError { code: 0, node: -1, what: null, node_name: null, operator_name: null };
        // SAFETY: alive; writes one error, whose strings live as long as the parser has errors.
        if unsafe { (api.parser_error)(parser.get(), error_idx, &raw mut error) } == 0 {
            continue;
        }
        is_allocation |= error.code == MEM_ALLOC_FAILED;
        let [what, name, operator] = [error.what, error.node_name, error.operator_name].map(journal::plain);
        let place = match (error.node, operator.is_empty()) {
            (0.., false) => format!("node {} ({operator} {name:?}): ", error.node),
            (0.., true) => format!("node {}: ", error.node),
            _ => String::new(),
        };
        let what = if what.is_empty() { format!("error {} of the parser", error.code) } else { what };
        told.push(format!("{place}{what}"));
    }
    if num_errors > MAX_PARSER_ERRORS {
        told.push(format!("and {} more", num_errors - MAX_PARSER_ERRORS));
    }
    (told.join("; "), is_allocation)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_stripped_plan_takes_its_own_weights_back_and_a_refittable_one_any() {
        let asked = |refittable, stripped, weight_streaming| {
            flags(PlanFlags { refittable, stripped, weight_streaming })
        };
        assert_eq!(asked(false, false, false), []);
        assert_eq!(asked(false, true, false), [Flag::RefitIdentical, Flag::StripPlan]);
        assert_eq!(asked(true, true, false), [Flag::Refit, Flag::StripPlan]);
        assert_eq!(asked(true, false, true), [Flag::Refit, Flag::WeightStreaming]);
    }
}
