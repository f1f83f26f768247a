// TensorRT's C++ interface as a table of C functions. One function is one call of TensorRT's, so that what happens is decided, and tested, in Rust.
//
// `src/api.rs` mirrors this file: what is changed here is changed there, and `TAKT_TRT_ABI` with it.
// The library is not linked: whoever calls opens it, and hands its factories in.
#pragma once

#include <stddef.h>
#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

#define TAKT_TRT_ABI 3

// Objects. A null pointer is what TensorRT gave for a failure; what failed was told to the recorder or the logger.
typedef struct takt_trt_logger takt_trt_logger;       // nvinfer1::ILogger, ours
typedef struct takt_trt_recorder takt_trt_recorder;   // nvinfer1::IErrorRecorder, ours
typedef struct takt_trt_monitor takt_trt_monitor;     // nvinfer1::IProgressMonitor, ours
typedef struct takt_trt_builder takt_trt_builder;     // nvinfer1::IBuilder
typedef struct takt_trt_network takt_trt_network;     // nvinfer1::INetworkDefinition
typedef struct takt_trt_config takt_trt_config;       // nvinfer1::IBuilderConfig
typedef struct takt_trt_profile takt_trt_profile;     // nvinfer1::IOptimizationProfile, the builder's own
typedef struct takt_trt_cache takt_trt_cache;         // nvinfer1::ITimingCache
typedef struct takt_trt_memory takt_trt_memory;       // nvinfer1::IHostMemory
typedef struct takt_trt_parser takt_trt_parser;       // nvonnxparser::IParser
typedef struct takt_trt_runtime takt_trt_runtime;     // nvinfer1::IRuntime
typedef struct takt_trt_engine takt_trt_engine;       // nvinfer1::ICudaEngine
typedef struct takt_trt_context takt_trt_context;     // nvinfer1::IExecutionContext
typedef struct takt_trt_refitter takt_trt_refitter;   // nvinfer1::IRefitter

// A shape; num_dims is -1 where TensorRT knows none, a dimension is -1 where it has no fixed length.
typedef struct takt_trt_shape {
    int32_t num_dims;
    int64_t dims[8];
} takt_trt_shape;

// An input or output of a plan. Strings are the engine's.
typedef struct takt_trt_tensor {
    char const* name;
    char const* aliased_input;  // of an output that has to have its memory; null otherwise, or before TensorRT 10.15
    int32_t is_input;           // 0: an output
    int32_t is_on_host;         // TensorLocation::kHOST: read and written by the CPU
    int32_t data_type;          // nvinfer1::DataType
    int32_t is_linear;          // row-major, no vectors: TensorFormat::kLINEAR in every profile
    takt_trt_shape shape;
} takt_trt_tensor;

// What the parser could not do. Strings are the parser's, null where it says nothing.
typedef struct takt_trt_parser_error {
    int32_t code;  // nvonnxparser::ErrorCode
    int32_t node;  // its index, -1 for none
    char const* what;
    char const* node_name;
    char const* operator_name;
} takt_trt_parser_error;

// What may be asked of a plan; not nvinfer1::BuilderFlag's numbers, which differ by major version.
enum takt_trt_flag {
    TAKT_TRT_REFIT = 0,
    TAKT_TRT_REFIT_IDENTICAL = 1,
    TAKT_TRT_STRIP_PLAN = 2,
    TAKT_TRT_WEIGHT_STREAMING = 3,
};

// nvinfer1::OptProfileSelector.
enum takt_trt_selector { TAKT_TRT_MIN = 0, TAKT_TRT_OPT = 1, TAKT_TRT_MAX = 2 };

// Called from any thread, at any time between creation and release; must return.
typedef void (*takt_trt_log)(void* user, int32_t severity, char const* message);            // nvinfer1::ILogger::Severity
typedef void (*takt_trt_report)(uint64_t owner, int32_t code, char const* description);     // nvinfer1::ErrorCode
// `parent` is null for a phase of its own.
typedef void (*takt_trt_phase_start)(void* user, char const* phase, char const* parent, int32_t num_steps);
typedef int32_t (*takt_trt_step)(void* user, char const* phase, int32_t step);              // 0: end the build
typedef void (*takt_trt_phase_finish)(void* user, char const* phase);

// The library's factories, by dlsym: createInferBuilder_INTERNAL, createInferRuntime_INTERNAL; createNvOnnxParser_INTERNAL and
// createInferRefitter_INTERNAL.
typedef void* (*takt_trt_factory)(void* logger, int32_t version);
typedef void* (*takt_trt_factory_of)(void* object, void* logger, int32_t version);

typedef struct takt_trt_api {
    uint32_t abi;        // TAKT_TRT_ABI
    uint32_t num_bytes;  // sizeof(takt_trt_api)
    // The headers that this was compiled with.
    int32_t header_major;
    int32_t header_minor;
    int32_t header_patch;
    // What nvonnxparser's header calls itself: major * 10000 + minor * 100 + patch.
    int32_t parser_version;

    // Ours. The logger lives as long as the process: TensorRT keeps the first it is given.
    takt_trt_logger* (*logger_create)(takt_trt_log log, void* user);
    // Counted: released here, it goes with the last of TensorRT's objects that holds it.
    takt_trt_recorder* (*recorder_create)(takt_trt_report report, uint64_t owner);
    void (*recorder_release)(takt_trt_recorder*);
    takt_trt_monitor* (*monitor_create)(takt_trt_phase_start, takt_trt_step, takt_trt_phase_finish, void* user);
    void (*monitor_destroy)(takt_trt_monitor*);

    // Building. Destroyed in this order: parser, network, config, builder, timing cache.
    takt_trt_builder* (*builder_create)(takt_trt_factory, takt_trt_logger*);
    void (*builder_set_recorder)(takt_trt_builder*, takt_trt_recorder*);
    takt_trt_network* (*builder_network)(takt_trt_builder*);  // strongly typed
    takt_trt_config* (*builder_config)(takt_trt_builder*);
    takt_trt_profile* (*builder_profile)(takt_trt_builder*);
    takt_trt_memory* (*builder_build)(takt_trt_builder*, takt_trt_network*, takt_trt_config*);
    void (*builder_destroy)(takt_trt_builder*);

    takt_trt_parser* (*parser_create)(takt_trt_factory_of, takt_trt_network*, takt_trt_logger*);
    int32_t (*parser_parse_file)(takt_trt_parser*, char const* path);
    int32_t (*parser_num_errors)(takt_trt_parser*);
    int32_t (*parser_error)(takt_trt_parser*, int32_t error_idx, takt_trt_parser_error*);
    void (*parser_destroy)(takt_trt_parser*);

    // Lets every attention layer be taken apart where no fused kernel is found. How many there are; -1 with headers before TensorRT 10.14, -2
    // when one refuses.
    int32_t (*network_decompose_attention)(takt_trt_network*);
    void (*network_destroy)(takt_trt_network*);

    int32_t (*profile_set)(takt_trt_profile*, char const* input, int32_t selector, takt_trt_shape const*);
    int32_t (*profile_is_valid)(takt_trt_profile*);

    int32_t (*config_set_flag)(takt_trt_config*, int32_t flag);
    // 0 where the configuration says otherwise afterwards: it has no recorder to tell.
    int32_t (*config_set_workspace)(takt_trt_config*, uint64_t num_bytes);
    int32_t (*config_set_optimization_level)(takt_trt_config*, int32_t level);
    int32_t (*config_set_max_aux_streams)(takt_trt_config*, int32_t num_streams);
    void (*config_set_profile_stream)(takt_trt_config*, void* stream);
    void (*config_set_monitor)(takt_trt_config*, takt_trt_monitor*);
    int32_t (*config_add_profile)(takt_trt_config*, takt_trt_profile*);  // its index, or -1
    takt_trt_cache* (*config_timing_cache)(takt_trt_config*, void const* bytes, uint64_t num_bytes);
    int32_t (*config_set_timing_cache)(takt_trt_config*, takt_trt_cache*);  // 0 for one of another device
    void (*config_destroy)(takt_trt_config*);

    takt_trt_memory* (*cache_serialize)(takt_trt_cache*);
    void (*cache_destroy)(takt_trt_cache*);

    void const* (*memory_bytes)(takt_trt_memory*);
    uint64_t (*memory_num_bytes)(takt_trt_memory*);
    void (*memory_destroy)(takt_trt_memory*);

    // Running. Destroyed in this order: contexts and refitter, engine, runtime.
    takt_trt_runtime* (*runtime_create)(takt_trt_factory, takt_trt_logger*);
    void (*runtime_set_recorder)(takt_trt_runtime*, takt_trt_recorder*);  // its engines and their contexts inherit it
    takt_trt_engine* (*runtime_engine)(takt_trt_runtime*, void const* plan, uint64_t num_bytes);
    void (*runtime_destroy)(takt_trt_runtime*);

    int32_t (*engine_num_tensors)(takt_trt_engine*);
    int32_t (*engine_tensor)(takt_trt_engine*, int32_t tensor_idx, takt_trt_tensor*);
    int32_t (*engine_num_profiles)(takt_trt_engine*);
    int32_t (*engine_profile_shape)(takt_trt_engine*, char const* input, int32_t profile_idx, int32_t selector, takt_trt_shape*);
    int64_t (*engine_scratch_bytes)(takt_trt_engine*, int32_t profile_idx);
    int64_t (*engine_streamable_bytes)(takt_trt_engine*);
    int64_t (*engine_weight_budget)(takt_trt_engine*);
    int32_t (*engine_set_weight_budget)(takt_trt_engine*, int64_t num_bytes);
    int32_t (*engine_is_refittable)(takt_trt_engine*);
    takt_trt_memory* (*engine_serialize)(takt_trt_engine*);
    takt_trt_context* (*engine_context)(takt_trt_engine*);  // its scratch memory is the caller's
    void (*engine_destroy)(takt_trt_engine*);

    int32_t (*context_set_profile)(takt_trt_context*, int32_t profile_idx, void* stream);
    void (*context_set_scratch)(takt_trt_context*, void* memory, int64_t num_bytes);
    int32_t (*context_bind)(takt_trt_context*, char const* tensor, void* memory);
    int32_t (*context_set_shape)(takt_trt_context*, char const* input, takt_trt_shape const*);
    int32_t (*context_shape)(takt_trt_context*, char const* tensor, takt_trt_shape*);
    // 0, or how many inputs lack a shape or, for shape tensors, an address: the first `capacity` names of them; -1 for another failure.
    int32_t (*context_infer_shapes)(takt_trt_context*, char const** names, int32_t capacity);
    int32_t (*context_enqueue)(takt_trt_context*, void* stream);
    void (*context_destroy)(takt_trt_context*);

    takt_trt_refitter* (*refitter_create)(takt_trt_factory_of, takt_trt_engine*, takt_trt_logger*);
    void (*refitter_set_recorder)(takt_trt_refitter*, takt_trt_recorder*);
    // 0 for a name that the plan has no weights of.
    int32_t (*refitter_prototype)(takt_trt_refitter*, char const* name, int32_t* data_type, int64_t* num_elements);
    int32_t (*refitter_set)(takt_trt_refitter*, char const* name, int32_t data_type, void const* values, int64_t num_elements);
    // How many there are; the first `capacity` names, which are the engine's and null for weights without one.
    int32_t (*refitter_all)(takt_trt_refitter*, char const** names, int32_t capacity);
    int32_t (*refitter_missing)(takt_trt_refitter*, char const** names, int32_t capacity);
    int32_t (*refitter_refit)(takt_trt_refitter*);
    void (*refitter_destroy)(takt_trt_refitter*);
} takt_trt_api;

takt_trt_api const* takt_trt_api_table(void);

#ifdef __cplusplus
}
#endif
