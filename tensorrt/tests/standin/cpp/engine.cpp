// Runtimes, engines and refitters.
#include "engine.h"

#include "device.h"

#include <algorithm>
#include <cstring>

namespace standin {
namespace {

using nvinfer1::Dims;
using nvinfer1::ErrorCode;

constexpr int64_t SCRATCH_STEP = 256, MAX_SCRATCH = 1 << 20;

Dims dims_of(const Port& port) {
    Dims dims{};
    dims.nbDims = int32_t(port.dims.size());
    for (size_t i = 0; i < port.dims.size(); ++i) dims.d[i] = port.dims[i].len;
    return dims;
}

Dims no_dims() {
    Dims dims{};
    dims.nbDims = -1;
    return dims;
}

class Runtime final : public nvinfer1::IRuntime, public of_nvinfer1::RecordedRuntime, public Object {
public:
    explicit Runtime(nvinfer1::ILogger* logger) : Object("IRuntime", static_cast<nvinfer1::IRuntime*>(this), nullptr, Voice(logger)) {
        mImpl = this;
        self = this;
    }
    nvinfer1::ICudaEngine* on_deserializeCudaEngine(void const* blob, std::size_t size) noexcept override;
    void on_setErrorRecorder(nvinfer1::IErrorRecorder* recorder) noexcept override { voice.set_recorder(recorder); }
    nvinfer1::IErrorRecorder* on_getErrorRecorder() const noexcept override { return voice.recorder(); }
    nvinfer1::ILogger* on_getLogger() const noexcept override { return voice.logger(); }
};

nvinfer1::ICudaEngine* Runtime::on_deserializeCudaEngine(void const* blob, std::size_t size) noexcept {
    constexpr char where[] = "IRuntime::deserializeCudaEngine";
    Plan plan;
    Model model;
    std::string wrong = blob == nullptr ? "Parameter check failed, condition: blob != nullptr" : read_plan(static_cast<const uint8_t*>(blob), size, &plan);
    if (wrong.empty()) wrong = read_model(plan.files[0].bytes, &model);
    if (wrong.empty()) return new Engine(std::move(plan), std::move(model), this, voice);
    voice.error(ErrorCode::kINVALID_ARGUMENT, where, wrong);
    return nullptr;
}

}  // namespace

// ---- engine ---------------------------------------------------------------------------------------------------------------------------

const Tensor* Loaded::find(const std::string& name) const {
    auto found = std::find_if(tensors.begin(), tensors.end(), [&](const Tensor& tensor) { return tensor.port.name == name; });
    return found == tensors.end() ? nullptr : &*found;
}

void Loaded::check_current(const std::string& call) const {
    if (current_context() != context) fault(call + " with another CUDA context current than the plan's");
}

// A cache that is updated in place: a graph's input that TensorScatter writes to, and the graph's output it gives.
static std::string aliased_input(const Model& model, const std::string& output) {
    for (const Node& node : model.nodes) {
        bool is_it = node.op_type == "TensorScatter" && !node.inputs.empty() && !node.outputs.empty() && node.outputs[0] == output;
        auto has_name = [&](const Port& input) { return input.name == node.inputs[0]; };
        if (is_it && std::any_of(model.inputs.begin(), model.inputs.end(), has_name)) return node.inputs[0];
    }
    return "";
}

Engine::Engine(Plan plan, Model model, const Object* runtime, const Voice& voice)
    : Object("ICudaEngine", static_cast<nvinfer1::ICudaEngine*>(this), runtime, voice), loaded(std::make_shared<Loaded>()) {
    static std::atomic<uint64_t> last_id{0};
    loaded->id = ++last_id;
    loaded->has_weights = !plan.stripped;
    loaded->context = current_context();
    loaded->plan = std::move(plan);
    loaded->model = std::move(model);
    for (const Port& port : loaded->model.inputs) loaded->tensors.push_back({port, true, ""});
    for (const Port& port : loaded->model.outputs) loaded->tensors.push_back({port, false, aliased_input(loaded->model, port.name)});
    mImpl = this;
    self = this;
    budget = on_getStreamableWeightsSize();
}

// With the weights it has now. A stripped plan's are written, too, once it has them, as TensorRT does unless it is told to leave them out.
nvinfer1::IHostMemory* Engine::on_serialize() const noexcept {
    loaded->check_current("ICudaEngine::serialize");
    std::lock_guard<std::mutex> lock(loaded->mutex);
    if (!loaded->has_weights) {
        voice.error(ErrorCode::kINVALID_STATE, "ICudaEngine::serialize", "the plan is stripped: its weights have to be refitted before it is serialized");
        return nullptr;
    }
    Plan plan = loaded->plan;
    // Then the headers say that it is not refittable any more, without SerializationFlag::kINCLUDE_REFIT.
    if (plan.stripped) plan.refittable = false;
    plan.stripped = false;
    return new Memory(write_plan(plan, loaded->model), voice);
}

char const* Engine::on_getIOTensorName(int32_t index) const noexcept {
    bool is_one = index >= 0 && index < int32_t(loaded->tensors.size());
    return is_one ? loaded->tensors[size_t(index)].port.name.c_str() : nullptr;
}

nvinfer1::TensorIOMode Engine::on_getTensorIOMode(char const* name) const noexcept {
    const Tensor* tensor = loaded->find(name);
    if (tensor == nullptr) return nvinfer1::TensorIOMode::kNONE;
    return tensor->is_input ? nvinfer1::TensorIOMode::kINPUT : nvinfer1::TensorIOMode::kOUTPUT;
}

nvinfer1::DataType Engine::on_getTensorDataType(char const* name) const noexcept {
    const Tensor* tensor = loaded->find(name);
    return nvinfer1::DataType(tensor == nullptr ? 0 : tensor->port.type);
}

Dims Engine::on_getTensorShape(char const* name) const noexcept {
    const Tensor* tensor = loaded->find(name);
    return tensor == nullptr ? no_dims() : dims_of(tensor->port);
}

#ifdef STANDIN_HAS_VCudaEngine_getAliasedInputTensor
char const* Engine::on_getAliasedInputTensor(char const* name) const noexcept {
    const Tensor* tensor = loaded->find(name);
    return tensor == nullptr || tensor->aliased_input.empty() ? nullptr : tensor->aliased_input.c_str();
}
#endif

Dims Engine::shape_in(const Tensor& tensor, int32_t profile, int which) const {
    const std::vector<Ranges>& profiles = loaded->plan.profiles;
    if (size_t(profile) < profiles.size()) {
        auto found = profiles[size_t(profile)].find(tensor.port.name);
        if (found != profiles[size_t(profile)].end()) return found->second.shapes[which];
    }
    return dims_of(tensor.port);
}

Dims Engine::on_getProfileShape(char const* name, int32_t profile, nvinfer1::OptProfileSelector select) const noexcept {
    const Tensor* tensor = loaded->find(name);
    if (tensor == nullptr || !tensor->is_input || profile < 0 || profile >= num_profiles()) {
        voice.error(ErrorCode::kINVALID_ARGUMENT, "ICudaEngine::getProfileShape",
                    std::string("Parameter check failed, there is no input ") + name + " in profile " + std::to_string(profile));
        return no_dims();
    }
    return shape_in(*tensor, profile, int(select));
}

// As if layers kept a sixteenth of what comes in.
int64_t Engine::on_getDeviceMemorySizeForProfileV2(int32_t profile) const noexcept {
    if (profile < 0 || profile >= num_profiles()) {
        voice.error(ErrorCode::kINVALID_ARGUMENT, "ICudaEngine::getDeviceMemorySizeForProfileV2", "Parameter check failed, condition: profileIndex < nbProfiles");
        return 0;
    }
    int64_t bytes = SCRATCH_STEP;
    for (const Tensor& tensor : loaded->tensors) {
        if (tensor.is_input) bytes += bytes_of(tensor.port.type, shape_in(tensor, profile, 2)) / 16;
    }
    int64_t own = std::min(bytes / SCRATCH_STEP * SCRATCH_STEP, MAX_SCRATCH);
    return own + (is_streaming() ? on_getWeightStreamingScratchMemorySize() : 0);
}

int64_t Engine::on_getDeviceMemorySizeV2() const noexcept {
    int64_t most = 0;
    for (int32_t profile = 0; profile < num_profiles(); ++profile) most = std::max(most, on_getDeviceMemorySizeForProfileV2(profile));
    return most;
}

int64_t Engine::on_getStreamableWeightsSize() const noexcept {
    if (!loaded->plan.streaming) return 0;
    int64_t bytes = 0;
    for (const Constant& constant : loaded->model.constants) bytes += is_weight(constant) ? int64_t(constant.num_bytes) : 0;
    return bytes;
}

bool Engine::on_setWeightStreamingBudgetV2(int64_t bytes) noexcept {
    loaded->check_current("ICudaEngine::setWeightStreamingBudgetV2");
    std::string wrong;
    if (!loaded->plan.streaming) wrong = "the engine was not built with BuilderFlag::kWEIGHT_STREAMING";
    if (bytes < 0) wrong = "Parameter check failed, condition: gpuMemoryBudget >= 0";
    if (loaded->num_contexts != 0) wrong = "the budget cannot be modified while there are active IExecutionContexts";
    if (!wrong.empty()) {
        voice.error(ErrorCode::kINVALID_STATE, "ICudaEngine::setWeightStreamingBudgetV2", wrong);
        return false;
    }
    budget = std::min(bytes, on_getStreamableWeightsSize());
    return true;
}

nvinfer1::IExecutionContext* Engine::on_createExecutionContext(nvinfer1::ExecutionContextAllocationStrategy strategy) noexcept {
    loaded->check_current("ICudaEngine::createExecutionContext");
    {
        std::lock_guard<std::mutex> lock(loaded->mutex);
        if (!loaded->has_weights) {
            voice.error(ErrorCode::kINVALID_STATE, "ICudaEngine::createExecutionContext", "the plan is stripped: its weights have to be refitted before it is run");
            return nullptr;
        }
    }
    return new_context(*this, strategy != nvinfer1::ExecutionContextAllocationStrategy::kUSER_MANAGED);
}

// ---- refitter -------------------------------------------------------------------------------------------------------------------------

namespace {

class Refitter final : public nvinfer1::IRefitter, public of_nvinfer1::RecordedRefitter, public Object {
public:
    Refitter(Engine& engine, nvinfer1::ILogger* logger)
        : Object("IRefitter", static_cast<nvinfer1::IRefitter*>(this), &engine, Voice(logger)), engine_(engine) {
        mImpl = this;
        self = this;
    }
    ~Refitter() override { engine_.loaded->check_current("IRefitter::~IRefitter"); }
    void on_setErrorRecorder(nvinfer1::IErrorRecorder* recorder) noexcept override { voice.set_recorder(recorder); }
    nvinfer1::IErrorRecorder* on_getErrorRecorder() const noexcept override { return voice.recorder(); }
    nvinfer1::Weights on_getWeightsPrototype(char const* name) const noexcept override {
        const Constant* constant = find(name);
        if (constant == nullptr) return {nvinfer1::DataType::kFLOAT, nullptr, -1};
        return {nvinfer1::DataType(constant->type), nullptr, constant->num_elements()};
    }
    bool on_setNamedWeights(char const* name, nvinfer1::Weights weights) noexcept override;
    int32_t on_getMissingWeights(int32_t size, char const** names) noexcept override;
    int32_t on_getAllWeights(int32_t size, char const** names) noexcept override;
    bool on_refitCudaEngine() noexcept override;

private:
    const Constant* find(const std::string& name) const {
        for (const Constant& constant : engine_.loaded->model.constants) {
            if (is_weight(constant) && constant.name == name) return &constant;
        }
        return nullptr;
    }
    std::vector<const char*> missing() const;

    Engine& engine_;
    std::map<std::string, const void*> given_;  // the caller's, until the engine is refitted
};

bool Refitter::on_setNamedWeights(char const* name, nvinfer1::Weights weights) noexcept {
    engine_.loaded->check_current("IRefitter::setNamedWeights");
    const Constant* constant = find(name);
    std::string wrong;
    if (constant == nullptr) {
        wrong = std::string("no weights are called ") + name;
    } else if (int(weights.type) != constant->type || weights.count != constant->num_elements() || weights.values == nullptr) {
        wrong = std::string("the weights of ") + name + " have another type or count: " + std::to_string(weights.count) + " given, " +
                std::to_string(constant->num_elements()) + " expected";
    }
    if (!wrong.empty()) {
        voice.error(ErrorCode::kINVALID_ARGUMENT, "IRefitter::setNamedWeights", wrong);
        return false;
    }
    given_[name] = weights.values;
    return true;
}

std::vector<const char*> Refitter::missing() const {
    std::vector<const char*> names;
    std::lock_guard<std::mutex> lock(engine_.loaded->mutex);
    if (engine_.loaded->has_weights) return names;
    for (const Constant& constant : engine_.loaded->model.constants) {
        if (is_weight(constant) && given_.count(constant.name) == 0) names.push_back(constant.name.c_str());
    }
    return names;
}

int32_t put(const std::vector<const char*>& all, int32_t size, char const** names) {
    if (names != nullptr) std::copy_n(all.begin(), std::min<size_t>(size_t(std::max(size, 0)), all.size()), names);
    return int32_t(all.size());
}

int32_t Refitter::on_getMissingWeights(int32_t size, char const** names) noexcept { return put(missing(), size, names); }

int32_t Refitter::on_getAllWeights(int32_t size, char const** names) noexcept {
    std::vector<const char*> all;
    for (const Constant& constant : engine_.loaded->model.constants) {
        if (is_weight(constant)) all.push_back(constant.name.c_str());
    }
    return put(all, size, names);
}

bool Refitter::on_refitCudaEngine() noexcept {
    engine_.loaded->check_current("IRefitter::refitCudaEngine");
    std::vector<const char*> left = missing();
    if (!left.empty()) {
        voice.error(ErrorCode::kINVALID_STATE, "IRefitter::refitCudaEngine", std::to_string(left.size()) + " weights are missing, the first of them " + left[0]);
        return false;
    }
    std::lock_guard<std::mutex> lock(engine_.loaded->mutex);
    for (const auto& [name, values] : given_) {
        const Constant& constant = *find(name);
        std::memcpy(place_of(engine_.loaded->plan.files, constant), values, constant.num_bytes);
    }
    given_.clear();
    engine_.loaded->has_weights = true;
    return true;
}

}  // namespace

int64_t bytes_of(int type, const Dims& dims) {
    int64_t bits = bits_of(type);
    for (int i = 0; i < dims.nbDims; ++i) bits *= std::max<int64_t>(dims.d[i], 0);
    return (bits + 7) / 8;
}

nvinfer1::IRuntime* new_runtime(nvinfer1::ILogger* logger) { return new Runtime(logger); }

nvinfer1::IRefitter* new_refitter(nvinfer1::ICudaEngine* of, nvinfer1::ILogger* logger) {
    auto* engine = dynamic_cast<Engine*>(of);
    if (engine != nullptr && engine->loaded->plan.refittable) return new Refitter(*engine, logger);
    Voice(logger).error(ErrorCode::kINVALID_ARGUMENT, "createInferRefitter_INTERNAL", "the engine was not built with BuilderFlag::kREFIT");
    return nullptr;
}

}  // namespace standin
