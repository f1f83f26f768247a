// See shim.h. Compiled with the headers of one major version of TensorRT, for libraries of that version and later ones of the same major.
//
// The object needs no symbol of TensorRT's: everything is a virtual call on what the factories gave.
#include "shim.h"

#include <NvInfer.h>
#include <NvOnnxParser.h>

#include <array>
#include <atomic>
#include <cstdio>
#include <mutex>
#include <new>

// Defined to compile against headers that count their versions differently, as those of TensorRT for RTX do.
#ifndef TAKT_TRT_MAJOR
#define TAKT_TRT_MAJOR NV_TENSORRT_MAJOR
#define TAKT_TRT_MINOR NV_TENSORRT_MINOR
#define TAKT_TRT_PATCH NV_TENSORRT_PATCH
#endif

#if TAKT_TRT_MAJOR < 10 || (TAKT_TRT_MAJOR == 10 && TAKT_TRT_MINOR < 3)
#error "Takt takes TensorRT 10.3 or later"
#endif

#define TAKT_TRT_FROM(major, minor) (TAKT_TRT_MAJOR > (major) || (TAKT_TRT_MAJOR == (major) && TAKT_TRT_MINOR >= (minor)))

namespace {

using namespace nvinfer1;

static_assert(Dims::MAX_DIMS == 8, "takt_trt_shape has room for 8 dimensions");
static_assert(static_cast<int32_t>(OptProfileSelector::kMIN) == TAKT_TRT_MIN, "OptProfileSelector");
static_assert(static_cast<int32_t>(OptProfileSelector::kOPT) == TAKT_TRT_OPT, "OptProfileSelector");
static_assert(static_cast<int32_t>(OptProfileSelector::kMAX) == TAKT_TRT_MAX, "OptProfileSelector");
static_assert(static_cast<int32_t>(ErrorCode::kFAILED_ALLOCATION) == 5, "src/journal.rs knows its number");
static_assert(static_cast<int32_t>(DataType::kINT4) == 9, "src/tensor.rs knows the data types");

// TensorRT's interface throws nothing; the parser's errors are not declared so, and what is ours may run out of memory.
template <typename F, typename T>
T guarded(T otherwise, F&& call) noexcept {
    try {
        return call();
    } catch (...) {
        return otherwise;
    }
}

class Logger final : public ILogger {
public:
    Logger(takt_trt_log log, void* user) : log_(log), user_(user) {}
    void log(Severity severity, AsciiChar const* message) noexcept override {
        log_(user_, static_cast<int32_t>(severity), message);
    }

private:
    takt_trt_log log_;
    void* user_;
};

// Passes errors on, and keeps the first few as the interface demands.
class Recorder final : public IErrorRecorder {
public:
    Recorder(takt_trt_report report, uint64_t owner) : report_(report), owner_(owner) {}

    int32_t getNbErrors() const noexcept override {
        std::lock_guard<std::mutex> lock(mutex_);
        return num_errors_;
    }
    ErrorCode getErrorCode(int32_t error_idx) const noexcept override {
        std::lock_guard<std::mutex> lock(mutex_);
        return has(error_idx) ? errors_[error_idx].code : ErrorCode::kUNSPECIFIED_ERROR;
    }
    ErrorDesc getErrorDesc(int32_t error_idx) const noexcept override {
        std::lock_guard<std::mutex> lock(mutex_);
        return has(error_idx) ? errors_[error_idx].text.data() : "";
    }
    bool hasOverflowed() const noexcept override {
        std::lock_guard<std::mutex> lock(mutex_);
        return has_overflowed_;
    }
    void clear() noexcept override {
        std::lock_guard<std::mutex> lock(mutex_);
        num_errors_ = 0;
        has_overflowed_ = false;
    }
    bool reportError(ErrorCode code, ErrorDesc description) noexcept override {
        report_(owner_, static_cast<int32_t>(code), description);
        std::lock_guard<std::mutex> lock(mutex_);
        if (has(num_errors_, errors_.size())) {
            Error& error = errors_[num_errors_++];
            error.code = code;
            std::snprintf(error.text.data(), error.text.size(), "%s", description == nullptr ? "" : description);
        } else {
            has_overflowed_ = true;
        }
        return true;  // fatal for the call that met it
    }
    RefCount incRefCount() noexcept override { return ++num_holders_; }
    RefCount decRefCount() noexcept override {
        RefCount const left = --num_holders_;
        if (left == 0) {
            delete this;
        }
        return left;
    }

private:
    struct Error {
        ErrorCode code;
        std::array<char, kMAX_DESC_LENGTH + 1> text;
    };
    bool has(int32_t error_idx) const noexcept { return has(error_idx, num_errors_); }
    static bool has(int32_t error_idx, size_t num) noexcept { return error_idx >= 0 && static_cast<size_t>(error_idx) < num; }

    takt_trt_report report_;
    uint64_t owner_;
    std::atomic<RefCount> num_holders_{1};
    mutable std::mutex mutex_;
    std::array<Error, 16> errors_{};
    int32_t num_errors_{0};
    bool has_overflowed_{false};
};

class Monitor final : public IProgressMonitor {
public:
    Monitor(takt_trt_phase_start start, takt_trt_step step, takt_trt_phase_finish finish, void* user)
        : start_(start), step_(step), finish_(finish), user_(user) {}
    void phaseStart(char const* phase, char const* parent, int32_t num_steps) noexcept override {
        start_(user_, phase, parent, num_steps);
    }
    bool stepComplete(char const* phase, int32_t step) noexcept override { return step_(user_, phase, step) != 0; }
    void phaseFinish(char const* phase) noexcept override { finish_(user_, phase); }

private:
    takt_trt_phase_start start_;
    takt_trt_step step_;
    takt_trt_phase_finish finish_;
    void* user_;
};

// What a handle is: the object at the same address. One pair of functions for each type, so that none is taken for another.
#define HANDLE(handle, object)                                                        \
    object* real(handle* from) { return reinterpret_cast<object*>(from); }            \
    [[maybe_unused]] handle* opaque(object* from) { return reinterpret_cast<handle*>(from); }
HANDLE(takt_trt_logger, ILogger)
HANDLE(takt_trt_recorder, IErrorRecorder)
HANDLE(takt_trt_monitor, IProgressMonitor)
HANDLE(takt_trt_builder, IBuilder)
HANDLE(takt_trt_network, INetworkDefinition)
HANDLE(takt_trt_config, IBuilderConfig)
HANDLE(takt_trt_profile, IOptimizationProfile)
HANDLE(takt_trt_cache, ITimingCache)
HANDLE(takt_trt_memory, IHostMemory)
HANDLE(takt_trt_parser, nvonnxparser::IParser)
HANDLE(takt_trt_runtime, IRuntime)
HANDLE(takt_trt_engine, ICudaEngine)
HANDLE(takt_trt_context, IExecutionContext)
HANDLE(takt_trt_refitter, IRefitter)
#undef HANDLE

template <typename H>
void destroy(H* handle) noexcept {
    delete real(handle);
}

Dims dims(takt_trt_shape const& shape) noexcept {
    Dims dims{};
    dims.nbDims = shape.num_dims;
    for (int32_t idx = 0; idx < shape.num_dims && idx < Dims::MAX_DIMS; ++idx) {
        dims.d[idx] = shape.dims[idx];
    }
    return dims;
}

int32_t put(Dims const& dims, takt_trt_shape* shape) noexcept {
    *shape = takt_trt_shape{dims.nbDims, {}};
    for (int32_t idx = 0; idx < dims.nbDims && idx < Dims::MAX_DIMS; ++idx) {
        shape->dims[idx] = dims.d[idx];
    }
    return dims.nbDims >= 0 && dims.nbDims <= Dims::MAX_DIMS;
}

// ---- ours

takt_trt_logger* logger_create(takt_trt_log log, void* user) noexcept { return opaque(new (std::nothrow) Logger(log, user)); }

takt_trt_recorder* recorder_create(takt_trt_report report, uint64_t owner) noexcept {
    return opaque(new (std::nothrow) Recorder(report, owner));
}

void recorder_release(takt_trt_recorder* recorder) noexcept { real(recorder)->decRefCount(); }

takt_trt_monitor* monitor_create(
    takt_trt_phase_start start, takt_trt_step step, takt_trt_phase_finish finish, void* user) noexcept {
    return opaque(new (std::nothrow) Monitor(start, step, finish, user));
}

// ---- building

takt_trt_builder* builder_create(takt_trt_factory create, takt_trt_logger* logger) noexcept {
    return opaque(static_cast<IBuilder*>(create(real(logger), NV_TENSORRT_VERSION)));
}

void builder_set_recorder(takt_trt_builder* builder, takt_trt_recorder* recorder) noexcept {
    real(builder)->setErrorRecorder(real(recorder));
}

takt_trt_network* builder_network(takt_trt_builder* builder) noexcept {
#if TAKT_TRT_MAJOR == 10
    NetworkDefinitionCreationFlags const flags = 1U << static_cast<uint32_t>(NetworkDefinitionCreationFlag::kSTRONGLY_TYPED);
#else
    NetworkDefinitionCreationFlags const flags = 0;  // there is no other mode
#endif
    return opaque(real(builder)->createNetworkV2(flags));
}

takt_trt_config* builder_config(takt_trt_builder* builder) noexcept { return opaque(real(builder)->createBuilderConfig()); }

takt_trt_profile* builder_profile(takt_trt_builder* builder) noexcept {
    return opaque(real(builder)->createOptimizationProfile());
}

takt_trt_memory* builder_build(takt_trt_builder* builder, takt_trt_network* network, takt_trt_config* config) noexcept {
    return opaque(real(builder)->buildSerializedNetwork(*real(network), *real(config)));
}

takt_trt_parser* parser_create(takt_trt_factory_of create, takt_trt_network* network, takt_trt_logger* logger) noexcept {
    return opaque(
        static_cast<nvonnxparser::IParser*>(create(real(network), real(logger), NV_ONNX_PARSER_VERSION)));
}

int32_t parser_parse_file(takt_trt_parser* parser, char const* path) noexcept {
    return real(parser)->parseFromFile(path, static_cast<int32_t>(ILogger::Severity::kWARNING));
}

int32_t parser_num_errors(takt_trt_parser* parser) noexcept { return real(parser)->getNbErrors(); }

int32_t parser_error(takt_trt_parser* parser, int32_t error_idx, takt_trt_parser_error* out) noexcept {
    *out = takt_trt_parser_error{0, -1, nullptr, nullptr, nullptr};
    return guarded(0, [&]() -> int32_t {
        nvonnxparser::IParserError const* error = real(parser)->getError(error_idx);
        if (error == nullptr) {
            return 0;
        }
        *out = takt_trt_parser_error{
            static_cast<int32_t>(error->code()), error->node(), error->desc(), error->nodeName(), error->nodeOperator()};
        return 1;
    });
}

int32_t network_decompose_attention(takt_trt_network* network) noexcept {
#if TAKT_TRT_FROM(10, 14)
    int32_t num_attentions = 0;
    for (int32_t idx = 0; idx < real(network)->getNbLayers(); ++idx) {
        ILayer* const layer = real(network)->getLayer(idx);
        if (layer == nullptr || layer->getType() != LayerType::kATTENTION_INPUT) {
            continue;
        }
        // The type says what it is; the boundary's two layers share one attention.
        IAttention* const attention = static_cast<IAttentionInputLayer*>(layer)->getAttention();
        if (attention == nullptr || !attention->setDecomposable(true)) {
            return -2;
        }
        ++num_attentions;
    }
    return num_attentions;
#else
    static_cast<void>(network);
    return -1;
#endif
}

int32_t profile_set(
    takt_trt_profile* profile, char const* input, int32_t selector, takt_trt_shape const* shape) noexcept {
    return real(profile)->setDimensions(input, static_cast<OptProfileSelector>(selector), dims(*shape));
}

int32_t profile_is_valid(takt_trt_profile* profile) noexcept { return real(profile)->isValid(); }

int32_t config_set_flag(takt_trt_config* config, int32_t flag) noexcept {
    BuilderFlag which{};
    switch (flag) {
    case TAKT_TRT_REFIT: which = BuilderFlag::kREFIT; break;
    case TAKT_TRT_REFIT_IDENTICAL: which = BuilderFlag::kREFIT_IDENTICAL; break;
    case TAKT_TRT_STRIP_PLAN: which = BuilderFlag::kSTRIP_PLAN; break;
    case TAKT_TRT_WEIGHT_STREAMING: which = BuilderFlag::kWEIGHT_STREAMING; break;
    default: return 0;
    }
    real(config)->setFlag(which);
    return real(config)->getFlag(which);
}

int32_t config_set_workspace(takt_trt_config* config, uint64_t num_bytes) noexcept {
    real(config)->setMemoryPoolLimit(MemoryPoolType::kWORKSPACE, static_cast<std::size_t>(num_bytes));
    // Less is a limit too, where a device has no more or sizes are rounded.
    return real(config)->getMemoryPoolLimit(MemoryPoolType::kWORKSPACE) <= num_bytes;
}

int32_t config_set_optimization_level(takt_trt_config* config, int32_t level) noexcept {
    real(config)->setBuilderOptimizationLevel(level);
    return real(config)->getBuilderOptimizationLevel() == level;
}

int32_t config_set_max_aux_streams(takt_trt_config* config, int32_t num_streams) noexcept {
    // From 11 on it has a result; before, only what it is afterwards.
    real(config)->setMaxAuxStreams(num_streams);
    return real(config)->getMaxAuxStreams() == num_streams;
}

void config_set_profile_stream(takt_trt_config* config, void* stream) noexcept {
    real(config)->setProfileStream(static_cast<cudaStream_t>(stream));
}

void config_set_monitor(takt_trt_config* config, takt_trt_monitor* monitor) noexcept {
    real(config)->setProgressMonitor(real(monitor));
}

int32_t config_add_profile(takt_trt_config* config, takt_trt_profile* profile) noexcept {
    return real(config)->addOptimizationProfile(real(profile));
}

takt_trt_cache* config_timing_cache(takt_trt_config* config, void const* bytes, uint64_t num_bytes) noexcept {
    return opaque(real(config)->createTimingCache(bytes, static_cast<std::size_t>(num_bytes)));
}

int32_t config_set_timing_cache(takt_trt_config* config, takt_trt_cache* cache) noexcept {
    return real(config)->setTimingCache(*real(cache), false);
}

takt_trt_memory* cache_serialize(takt_trt_cache* cache) noexcept { return opaque(real(cache)->serialize()); }

void const* memory_bytes(takt_trt_memory* memory) noexcept { return real(memory)->data(); }

uint64_t memory_num_bytes(takt_trt_memory* memory) noexcept { return real(memory)->size(); }

// ---- running

takt_trt_runtime* runtime_create(takt_trt_factory create, takt_trt_logger* logger) noexcept {
    return opaque(static_cast<IRuntime*>(create(real(logger), NV_TENSORRT_VERSION)));
}

void runtime_set_recorder(takt_trt_runtime* runtime, takt_trt_recorder* recorder) noexcept {
    real(runtime)->setErrorRecorder(real(recorder));
}

takt_trt_engine* runtime_engine(takt_trt_runtime* runtime, void const* plan, uint64_t num_bytes) noexcept {
    return opaque(real(runtime)->deserializeCudaEngine(plan, static_cast<std::size_t>(num_bytes)));
}

int32_t engine_num_tensors(takt_trt_engine* engine) noexcept { return real(engine)->getNbIOTensors(); }

int32_t engine_tensor(takt_trt_engine* engine, int32_t tensor_idx, takt_trt_tensor* out) noexcept {
    *out = takt_trt_tensor{};
    ICudaEngine& it = *real(engine);
    char const* const name = it.getIOTensorName(tensor_idx);
    if (name == nullptr || it.getTensorIOMode(name) == TensorIOMode::kNONE) {
        return 0;
    }
    out->name = name;
    out->is_input = it.getTensorIOMode(name) == TensorIOMode::kINPUT;
#if TAKT_TRT_FROM(10, 15)
    out->aliased_input = out->is_input ? nullptr : it.getAliasedInputTensor(name);
#endif
    out->is_on_host = it.getTensorLocation(name) == TensorLocation::kHOST;
    out->data_type = static_cast<int32_t>(it.getTensorDataType(name));
    out->is_linear = 1;
    for (int32_t profile_idx = 0; profile_idx < it.getNbOptimizationProfiles(); ++profile_idx) {
        out->is_linear = out->is_linear && it.getTensorFormat(name, profile_idx) == TensorFormat::kLINEAR;
    }
    return put(it.getTensorShape(name), &out->shape);
}

int32_t engine_num_profiles(takt_trt_engine* engine) noexcept { return real(engine)->getNbOptimizationProfiles(); }

int32_t engine_profile_shape(
    takt_trt_engine* engine, char const* input, int32_t profile_idx, int32_t selector, takt_trt_shape* out) noexcept {
    return put(real(engine)->getProfileShape(input, profile_idx, static_cast<OptProfileSelector>(selector)), out);
}

int64_t engine_scratch_bytes(takt_trt_engine* engine, int32_t profile_idx) noexcept {
    return real(engine)->getDeviceMemorySizeForProfileV2(profile_idx);
}

int64_t engine_streamable_bytes(takt_trt_engine* engine) noexcept { return real(engine)->getStreamableWeightsSize(); }

int64_t engine_weight_budget(takt_trt_engine* engine) noexcept { return real(engine)->getWeightStreamingBudgetV2(); }

int32_t engine_set_weight_budget(takt_trt_engine* engine, int64_t num_bytes) noexcept {
    return real(engine)->setWeightStreamingBudgetV2(num_bytes);
}

int32_t engine_is_refittable(takt_trt_engine* engine) noexcept { return real(engine)->isRefittable(); }

takt_trt_memory* engine_serialize(takt_trt_engine* engine) noexcept { return opaque(real(engine)->serialize()); }

takt_trt_context* engine_context(takt_trt_engine* engine) noexcept {
    return opaque(real(engine)->createExecutionContext(ExecutionContextAllocationStrategy::kUSER_MANAGED));
}

int32_t context_set_profile(takt_trt_context* context, int32_t profile_idx, void* stream) noexcept {
    return real(context)->setOptimizationProfileAsync(profile_idx, static_cast<cudaStream_t>(stream));
}

void context_set_scratch(takt_trt_context* context, void* memory, int64_t num_bytes) noexcept {
    real(context)->setDeviceMemoryV2(memory, num_bytes);
}

int32_t context_bind(takt_trt_context* context, char const* tensor, void* memory) noexcept {
    return real(context)->setTensorAddress(tensor, memory);
}

int32_t context_set_shape(takt_trt_context* context, char const* input, takt_trt_shape const* shape) noexcept {
    return real(context)->setInputShape(input, dims(*shape));
}

int32_t context_shape(takt_trt_context* context, char const* tensor, takt_trt_shape* out) noexcept {
    return put(real(context)->getTensorShape(tensor), out);
}

int32_t context_infer_shapes(takt_trt_context* context, char const** names, int32_t capacity) noexcept {
    return real(context)->inferShapes(capacity, names);
}

int32_t context_enqueue(takt_trt_context* context, void* stream) noexcept {
    return real(context)->enqueueV3(static_cast<cudaStream_t>(stream));
}

takt_trt_refitter* refitter_create(takt_trt_factory_of create, takt_trt_engine* engine, takt_trt_logger* logger) noexcept {
    return opaque(static_cast<IRefitter*>(create(real(engine), real(logger), NV_TENSORRT_VERSION)));
}

void refitter_set_recorder(takt_trt_refitter* refitter, takt_trt_recorder* recorder) noexcept {
    real(refitter)->setErrorRecorder(real(recorder));
}

int32_t refitter_prototype(
    takt_trt_refitter* refitter, char const* name, int32_t* data_type, int64_t* num_elements) noexcept {
    Weights const weights = real(refitter)->getWeightsPrototype(name);
    *data_type = static_cast<int32_t>(weights.type);
    *num_elements = weights.count;
    return weights.count >= 0;
}

int32_t refitter_set(
    takt_trt_refitter* refitter, char const* name, int32_t data_type, void const* values, int64_t num_elements) noexcept {
    return real(refitter)->setNamedWeights(name, Weights{static_cast<DataType>(data_type), values, num_elements});
}

int32_t refitter_all(takt_trt_refitter* refitter, char const** names, int32_t capacity) noexcept {
    return real(refitter)->getAllWeights(capacity, names);
}

int32_t refitter_missing(takt_trt_refitter* refitter, char const** names, int32_t capacity) noexcept {
    return real(refitter)->getMissingWeights(capacity, names);
}

int32_t refitter_refit(takt_trt_refitter* refitter) noexcept { return real(refitter)->refitCudaEngine(); }

// In the order of takt_trt_api.
constexpr takt_trt_api TABLE = {
    TAKT_TRT_ABI,
    sizeof(takt_trt_api),
    TAKT_TRT_MAJOR,
    TAKT_TRT_MINOR,
    TAKT_TRT_PATCH,
    NV_ONNX_PARSER_VERSION,

    logger_create,
    recorder_create,
    recorder_release,
    monitor_create,
    destroy<takt_trt_monitor>,

    builder_create,
    builder_set_recorder,
    builder_network,
    builder_config,
    builder_profile,
    builder_build,
    destroy<takt_trt_builder>,

    parser_create,
    parser_parse_file,
    parser_num_errors,
    parser_error,
    destroy<takt_trt_parser>,

    network_decompose_attention,
    destroy<takt_trt_network>,

    profile_set,
    profile_is_valid,

    config_set_flag,
    config_set_workspace,
    config_set_optimization_level,
    config_set_max_aux_streams,
    config_set_profile_stream,
    config_set_monitor,
    config_add_profile,
    config_timing_cache,
    config_set_timing_cache,
    destroy<takt_trt_config>,

    cache_serialize,
    destroy<takt_trt_cache>,

    memory_bytes,
    memory_num_bytes,
    destroy<takt_trt_memory>,

    runtime_create,
    runtime_set_recorder,
    runtime_engine,
    destroy<takt_trt_runtime>,

    engine_num_tensors,
    engine_tensor,
    engine_num_profiles,
    engine_profile_shape,
    engine_scratch_bytes,
    engine_streamable_bytes,
    engine_weight_budget,
    engine_set_weight_budget,
    engine_is_refittable,
    engine_serialize,
    engine_context,
    destroy<takt_trt_engine>,

    context_set_profile,
    context_set_scratch,
    context_bind,
    context_set_shape,
    context_shape,
    context_infer_shapes,
    context_enqueue,
    destroy<takt_trt_context>,

    refitter_create,
    refitter_set_recorder,
    refitter_prototype,
    refitter_set,
    refitter_all,
    refitter_missing,
    refitter_refit,
    destroy<takt_trt_refitter>,
};

}  // namespace

extern "C" takt_trt_api const* takt_trt_api_table(void) { return &TABLE; }
