//! The shim's table of functions: `shim/shim.h`, mirrored. What is changed here is changed there.
//!
//! Without the feature `tensorrt` there is no table, and nothing of this is ever called; it is compiled all the same.

use std::ffi::{c_char, c_void};

/// `TAKT_TRT_ABI`.
const ABI: u32 = 3;

/// Types whose objects are only known by address.
macro_rules! opaque {
    ($($name:ident)*) => { $(
        #[derive(Debug)]
        #[repr(C)]
        pub(crate) struct $name {
            _opaque: [u8; 0],
        }
    )* };
}
opaque! {
    LoggerObject RecorderObject MonitorObject
    BuilderObject NetworkObject ConfigObject ProfileObject CacheObject MemoryObject ParserObject
    RuntimeObject EngineObject ContextObject RefitterObject
}

/// `takt_trt_shape`.
#[derive(Debug, Clone, Copy, Default)]
#[repr(C)]
pub(crate) struct RawShape {
    pub num_dims: i32,
    pub dims: [i64; MAX_DIMS],
}

/// Dimensions of a tensor, at most.
pub(crate) const MAX_DIMS: usize = 8;

/// `takt_trt_tensor`.
#[derive(Debug)]
#[repr(C)]
pub(crate) struct RawTensor {
    pub name: *const c_char,
    pub aliased_input: *const c_char,
    pub is_input: i32,
    pub is_on_host: i32,
    pub data_type: i32,
    pub is_linear: i32,
    pub shape: RawShape,
}

/// `takt_trt_parser_error`.
#[derive(Debug)]
#[repr(C)]
pub(crate) struct RawParserError {
    pub code: i32,
    pub node: i32,
    pub what: *const c_char,
    pub node_name: *const c_char,
    pub operator_name: *const c_char,
}

/// `takt_trt_flag`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Flag {
    Refit = 0,
    RefitIdentical = 1,
    StripPlan = 2,
    WeightStreaming = 3,
}

/// `takt_trt_selector`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Selector {
    Min = 0,
    Opt = 1,
    Max = 2,
}

pub(crate) type Log = extern "C" fn(user: *mut c_void, severity: i32, message: *const c_char);
pub(crate) type Report = extern "C" fn(owner: u64, code: i32, description: *const c_char);
pub(crate) type PhaseStart =
    extern "C" fn(user: *mut c_void, phase: *const c_char, parent: *const c_char, num_steps: i32);
pub(crate) type Step = extern "C" fn(user: *mut c_void, phase: *const c_char, step: i32) -> i32;
pub(crate) type PhaseFinish = extern "C" fn(user: *mut c_void, phase: *const c_char);

/// `createInferBuilder_INTERNAL`, `createInferRuntime_INTERNAL`.
pub(crate) type Factory = unsafe extern "C" fn(logger: *mut c_void, version: i32) -> *mut c_void;
/// `createNvOnnxParser_INTERNAL`, `createInferRefitter_INTERNAL`.
pub(crate) type FactoryOf =
    unsafe extern "C" fn(object: *mut c_void, logger: *mut c_void, version: i32) -> *mut c_void;

/// Declares the table: a name, and arguments and result as C has them.
macro_rules! api {
    ($($name:ident: fn($($argument:ty),*) $(-> $result:ty)?;)*) => {
        /// `takt_trt_api`: what each function does is said in `shim/shim.h`.
        ///
        /// Calling one is sound where the objects are alive and of this library, strings end with 0, and other pointers are good for what they
        /// are said to be.
        #[repr(C)]
        pub(crate) struct Api {
            abi: u32,
            num_bytes: u32,
            pub header_major: i32,
            pub header_minor: i32,
            pub header_patch: i32,
            pub parser_version: i32,
            $(pub $name: unsafe extern "C" fn($($argument),*) $(-> $result)?,)*
        }
    };
}
api! {
    logger_create: fn(Log, *mut c_void) -> *mut LoggerObject;
    recorder_create: fn(Report, u64) -> *mut RecorderObject;
    recorder_release: fn(*mut RecorderObject);
    monitor_create: fn(PhaseStart, Step, PhaseFinish, *mut c_void) -> *mut MonitorObject;
    monitor_destroy: fn(*mut MonitorObject);

    builder_create: fn(Factory, *mut LoggerObject) -> *mut BuilderObject;
    builder_set_recorder: fn(*mut BuilderObject, *mut RecorderObject);
    builder_network: fn(*mut BuilderObject) -> *mut NetworkObject;
    builder_config: fn(*mut BuilderObject) -> *mut ConfigObject;
    builder_profile: fn(*mut BuilderObject) -> *mut ProfileObject;
    builder_build: fn(*mut BuilderObject, *mut NetworkObject, *mut ConfigObject) -> *mut MemoryObject;
    builder_destroy: fn(*mut BuilderObject);

    parser_create: fn(FactoryOf, *mut NetworkObject, *mut LoggerObject) -> *mut ParserObject;
    parser_parse_file: fn(*mut ParserObject, *const c_char) -> i32;
    parser_num_errors: fn(*mut ParserObject) -> i32;
    parser_error: fn(*mut ParserObject, i32, *mut RawParserError) -> i32;
    parser_destroy: fn(*mut ParserObject);

    network_decompose_attention: fn(*mut NetworkObject) -> i32;
    network_destroy: fn(*mut NetworkObject);

    profile_set: fn(*mut ProfileObject, *const c_char, i32, *const RawShape) -> i32;
    profile_is_valid: fn(*mut ProfileObject) -> i32;

    config_set_flag: fn(*mut ConfigObject, i32) -> i32;
    config_set_workspace: fn(*mut ConfigObject, u64) -> i32;
    config_set_optimization_level: fn(*mut ConfigObject, i32) -> i32;
    config_set_max_aux_streams: fn(*mut ConfigObject, i32) -> i32;
    config_set_profile_stream: fn(*mut ConfigObject, *mut c_void);
    config_set_monitor: fn(*mut ConfigObject, *mut MonitorObject);
    config_add_profile: fn(*mut ConfigObject, *mut ProfileObject) -> i32;
    config_timing_cache: fn(*mut ConfigObject, *const c_void, u64) -> *mut CacheObject;
    config_set_timing_cache: fn(*mut ConfigObject, *mut CacheObject) -> i32;
    config_destroy: fn(*mut ConfigObject);

    cache_serialize: fn(*mut CacheObject) -> *mut MemoryObject;
    cache_destroy: fn(*mut CacheObject);

    memory_bytes: fn(*mut MemoryObject) -> *const c_void;
    memory_num_bytes: fn(*mut MemoryObject) -> u64;
    memory_destroy: fn(*mut MemoryObject);

    runtime_create: fn(Factory, *mut LoggerObject) -> *mut RuntimeObject;
    runtime_set_recorder: fn(*mut RuntimeObject, *mut RecorderObject);
    runtime_engine: fn(*mut RuntimeObject, *const c_void, u64) -> *mut EngineObject;
    runtime_destroy: fn(*mut RuntimeObject);

    engine_num_tensors: fn(*mut EngineObject) -> i32;
    engine_tensor: fn(*mut EngineObject, i32, *mut RawTensor) -> i32;
    engine_num_profiles: fn(*mut EngineObject) -> i32;
    engine_profile_shape: fn(*mut EngineObject, *const c_char, i32, i32, *mut RawShape) -> i32;
    engine_scratch_bytes: fn(*mut EngineObject, i32) -> i64;
    engine_streamable_bytes: fn(*mut EngineObject) -> i64;
    engine_weight_budget: fn(*mut EngineObject) -> i64;
    engine_set_weight_budget: fn(*mut EngineObject, i64) -> i32;
    engine_is_refittable: fn(*mut EngineObject) -> i32;
    engine_serialize: fn(*mut EngineObject) -> *mut MemoryObject;
    engine_context: fn(*mut EngineObject) -> *mut ContextObject;
    engine_destroy: fn(*mut EngineObject);

    context_set_profile: fn(*mut ContextObject, i32, *mut c_void) -> i32;
    context_set_scratch: fn(*mut ContextObject, *mut c_void, i64);
    context_bind: fn(*mut ContextObject, *const c_char, *mut c_void) -> i32;
    context_set_shape: fn(*mut ContextObject, *const c_char, *const RawShape) -> i32;
    context_shape: fn(*mut ContextObject, *const c_char, *mut RawShape) -> i32;
    context_infer_shapes: fn(*mut ContextObject, *mut *const c_char, i32) -> i32;
    context_enqueue: fn(*mut ContextObject, *mut c_void) -> i32;
    context_destroy: fn(*mut ContextObject);

    refitter_create: fn(FactoryOf, *mut EngineObject, *mut LoggerObject) -> *mut RefitterObject;
    refitter_set_recorder: fn(*mut RefitterObject, *mut RecorderObject);
    refitter_prototype: fn(*mut RefitterObject, *const c_char, *mut i32, *mut i64) -> i32;
    refitter_set: fn(*mut RefitterObject, *const c_char, i32, *const c_void, i64) -> i32;
    refitter_all: fn(*mut RefitterObject, *mut *const c_char, i32) -> i32;
    refitter_missing: fn(*mut RefitterObject, *mut *const c_char, i32) -> i32;
    refitter_refit: fn(*mut RefitterObject) -> i32;
    refitter_destroy: fn(*mut RefitterObject);
}

impl std::fmt::Debug for Api {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Self { header_major, header_minor, header_patch, .. } = self;
        write!(f, "Api({header_major}.{header_minor}.{header_patch})")
    }
}

/// The shim's table; `None` in a build without the feature `tensorrt`.
#[cfg(feature = "tensorrt")]
#[expect(unsafe_code, reason = "the shim's one function")]
pub(crate) fn api() -> Option<&'static Api> {
    unsafe extern "C" {
        fn takt_trt_api_table() -> *const Api;
    }
    // SAFETY: a function of the shim that was linked in; it gives the address of a constant, which begins with two numbers in every version.
    let api = unsafe { &*takt_trt_api_table() };
    // Both are compiled by one build, so that this only fails where the two files say different things.
    (api.abi == ABI && api.num_bytes as usize == size_of::<Api>()).then_some(api)
}

/// The shim's table; `None` in a build without the feature `tensorrt`.
#[cfg(not(feature = "tensorrt"))]
pub(crate) fn api() -> Option<&'static Api> {
    let _ = ABI;
    None
}
