// Builds: what TensorRT checks of a network and its configuration, phases that a monitor is told of, and a plan.
#include <algorithm>
#include <thread>

#include "network.h"
#include "state.h"

namespace standin {
namespace {

using nvinfer1::BuilderFlag;
using nvinfer1::ErrorCode;

constexpr char BUILD[] = "IBuilder::buildSerializedNetwork";

// Tells a monitor, if there is one, and remembers that it ended the build. As TensorRT may, it speaks from more than one thread.
class Phases {
public:
    explicit Phases(nvinfer1::IProgressMonitor* monitor) : monitor_(monitor) {}

    template <typename Step>
    void phase(const char* name, const char* parent, int32_t num_steps, Step step) {
        if (is_cancelled_) return;
        if (monitor_ != nullptr) monitor_->phaseStart(name, parent, num_steps);
        for (int32_t i = 0; i < num_steps && !is_cancelled_; ++i) {
            step(i);
            std::this_thread::yield();
            if (monitor_ != nullptr && !is_cancelled_ && !monitor_->stepComplete(name, i)) is_cancelled_ = true;
        }
        if (monitor_ != nullptr) monitor_->phaseFinish(name);
    }
    bool is_cancelled() const { return is_cancelled_; }

private:
    nvinfer1::IProgressMonitor* monitor_;
    bool is_cancelled_ = false;
};

class Builder final : public nvinfer1::IBuilder, public of_nvinfer1::RecordedBuilder, public Object {
public:
    explicit Builder(nvinfer1::ILogger* logger) : Object("IBuilder", static_cast<nvinfer1::IBuilder*>(this), nullptr, Voice(logger)) {
        mImpl = this;
        self = this;
    }
    void on_setErrorRecorder(nvinfer1::IErrorRecorder* recorder) noexcept override { voice.set_recorder(recorder); }
    nvinfer1::IErrorRecorder* on_getErrorRecorder() const noexcept override { return voice.recorder(); }
    nvinfer1::ILogger* on_getLogger() const noexcept override { return voice.logger(); }
    nvinfer1::INetworkDefinition* on_createNetworkV2(nvinfer1::NetworkDefinitionCreationFlags flags) noexcept override {
        return new Network(flags, this, voice);
    }
    nvinfer1::IBuilderConfig* on_createBuilderConfig() noexcept override { return new Config(this, voice); }
    nvinfer1::IOptimizationProfile* on_createOptimizationProfile() noexcept override {
        profiles_.push_back(std::make_unique<Profile>(this, voice));
        return profiles_.back().get();
    }
    nvinfer1::IHostMemory* on_buildSerializedNetwork(nvinfer1::INetworkDefinition& network, nvinfer1::IBuilderConfig& config) noexcept override;

private:
    bool fail(ErrorCode code, const std::string& text) const {
        voice.error(code, BUILD, text);
        return false;
    }
    bool check_network(const Network& network) const;
    bool check_flags(const Config& config) const;
    bool check_profiles(const Network& network, const Config& config) const;
    bool check_profile(const Network& network, const Ranges& ranges, size_t number) const;
    bool check_range(const Port& input, const Range& range, size_t number) const;
    void measure(const Network& network, Config& config, Phases& phases) const;

    std::vector<std::unique_ptr<Profile>> profiles_;
};

bool Builder::check_network(const Network& network) const {
    if (network.model.outputs.empty()) {
        return fail(ErrorCode::kINVALID_ARGUMENT, "Network must have at least one output");
    }
    if (!network.is_strongly_typed()) {
        return fail(ErrorCode::kINVALID_ARGUMENT, "the network is not strongly typed: types of layers would be TensorRT's choice");
    }
#ifdef STANDIN_HAS_VAttention_setDecomposable
    for (const Attention* attention : network.attentions) {
        if (attention->is_decomposable) continue;
        return fail(ErrorCode::kINTERNAL_ERROR, "Could not find any implementation for node " + attention->node_name + ".");
    }
#endif
    return true;
}

bool Builder::check_flags(const Config& config) const {
    bool is_refittable = config.has(BuilderFlag::kREFIT) || config.has(BuilderFlag::kREFIT_IDENTICAL);
    if (config.has(BuilderFlag::kREFIT) && config.has(BuilderFlag::kREFIT_IDENTICAL)) {
        return fail(ErrorCode::kINVALID_CONFIG, "kREFIT and kREFIT_IDENTICAL cannot be set together");
    }
    if (config.has(BuilderFlag::kSTRIP_PLAN) && !is_refittable) {
        return fail(ErrorCode::kINVALID_CONFIG, "kSTRIP_PLAN needs kREFIT or kREFIT_IDENTICAL");
    }
    return true;
}

bool Builder::check_profiles(const Network& network, const Config& config) const {
    auto is_dynamic = [](const Port& input) {
        return std::any_of(input.dims.begin(), input.dims.end(), [](const Dim& dim) { return dim.len < 0; });
    };
    const std::vector<Port>& inputs = network.model.inputs;
    if (config.profiles.empty() && std::any_of(inputs.begin(), inputs.end(), is_dynamic)) {
        return fail(ErrorCode::kINVALID_CONFIG, "Network has dynamic or shape inputs, but no optimization profile has been defined.");
    }
    for (size_t number = 0; number < config.profiles.size(); ++number) {
        if (!check_profile(network, config.profiles[number], number)) return false;
    }
    return true;
}

bool Builder::check_profile(const Network& network, const Ranges& ranges, size_t number) const {
    const std::vector<Port>& inputs = network.model.inputs;
    for (const auto& [name, _] : ranges) {
        auto has_name = [&name = name](const Port& input) { return input.name == name; };
        if (std::none_of(inputs.begin(), inputs.end(), has_name)) {
            return fail(ErrorCode::kINVALID_CONFIG, "Optimization profile " + std::to_string(number) + " has dimensions for " + name + ", which is no input of the network.");
        }
    }
    for (const Port& input : inputs) {
        auto found = ranges.find(input.name);
        bool is_dynamic = std::any_of(input.dims.begin(), input.dims.end(), [](const Dim& dim) { return dim.len < 0; });
        if (found == ranges.end() && !is_dynamic) continue;
        if (found == ranges.end()) {
            return fail(ErrorCode::kINVALID_CONFIG, "Dynamic dimensions of input " + input.name + " are not specified by optimization profile " + std::to_string(number) + ".");
        }
        if (!check_range(input, found->second, number)) return false;
    }
    return true;
}

bool Builder::check_range(const Port& input, const Range& range, size_t number) const {
    for (const nvinfer1::Dims& dims : range.shapes) {
        bool fits = size_t(dims.nbDims) == input.dims.size();
        for (size_t i = 0; fits && i < input.dims.size(); ++i) fits = input.dims[i].len < 0 || input.dims[i].len == dims.d[i];
        if (fits) continue;
        return fail(ErrorCode::kINVALID_CONFIG, "Optimization profile " + std::to_string(number) + " gives input " + input.name + " the dimensions " + dims_text(dims) + ", which the network's do not allow.");
    }
    return true;
}

// Each kind of layer is timed once in each profile, unless the cache has it.
void Builder::measure(const Network& network, Config& config, Phases& phases) const {
    std::set<std::string> kinds;
    for (const Node& node : network.model.nodes) kinds.insert(node.op_type);
    std::vector<std::string> all(kinds.begin(), kinds.end());
    size_t num_known = 0;
    for (size_t profile = 0; profile < std::max<size_t>(1, config.profiles.size()); ++profile) {
        std::string name = "Timing graph nodes for profile " + std::to_string(profile);
        auto time = [&](int32_t step) {
            std::string key = all[size_t(step) % all.size()] + " " + std::to_string(profile);
            if (config.timing_cache != nullptr && !config.timing_cache->entries.insert(key).second) ++num_known;
        };
        int32_t num_steps = is_endless() && config.monitor != nullptr ? INT32_MAX : int32_t(all.size());
        auto run = [&] { phases.phase(name.c_str(), "Building engine", num_steps, time); };
        if (!all.empty()) std::thread(run).join();
    }
    voice.log(Severity::kVERBOSE, std::to_string(num_known) + " tactics were in the timing cache");
}

nvinfer1::IHostMemory* Builder::on_buildSerializedNetwork(nvinfer1::INetworkDefinition& of, nvinfer1::IBuilderConfig& with) noexcept {
    auto* network = dynamic_cast<Network*>(&of);
    auto* config = dynamic_cast<Config*>(&with);
    if (network == nullptr || config == nullptr) return nullptr;
    if (!check_network(*network) || !check_flags(*config) || !check_profiles(*network, *config)) return nullptr;
    if (config->on_getMemoryPoolLimit(nvinfer1::MemoryPoolType::kWORKSPACE) < (1U << 20)) {
        voice.log(Severity::kWARNING, "Some tactics do not have sufficient workspace memory to run. Increasing workspace size will enable more tactics");
    }
    Phases phases(config->monitor);
    Bytes bytes;
    phases.phase("Building engine", nullptr, 3, [&](int32_t step) {
        if (step == 1) measure(*network, *config, phases);
        if (step != 2) return;
        bool is_refittable = config->has(BuilderFlag::kREFIT) || config->has(BuilderFlag::kREFIT_IDENTICAL);
        Plan plan{version(), sm(), is_refittable, config->has(BuilderFlag::kSTRIP_PLAN), config->has(BuilderFlag::kWEIGHT_STREAMING),
                  network->files, config->profiles, network->model.graph};
        bytes = write_plan(plan, network->model);
    });
    if (phases.is_cancelled()) {
        voice.error(ErrorCode::kUNSPECIFIED_ERROR, BUILD, "the build was cancelled by the progress monitor");
        return nullptr;
    }
    return new Memory(std::move(bytes), voice);
}

}  // namespace
}  // namespace standin

using namespace standin;

// Whether the caller's headers are of our major version; what is wrong goes to the logger.
static bool is_of_this_major(void* logger, int32_t version, const char* where) {
    Voice voice(static_cast<nvinfer1::ILogger*>(logger));
    int number = standin::version().number();
    bool is_new_enough = version / 10000 == number / 10000 && version / 100 <= number / 100;
    if (logger != nullptr && is_new_enough) return true;
    voice.error(nvinfer1::ErrorCode::kINVALID_ARGUMENT, where,
                "CreateInferBuilder/Runtime/Refitter called with version " + std::to_string(version) + ", the library is " + std::to_string(number));
    return false;
}

static bool begins(const char* name, void* logger, int32_t version, std::initializer_list<std::string> arguments) {
    Call call(nullptr, "", name, arguments, true);
    if (call.fails(Voice(static_cast<nvinfer1::ILogger*>(logger)))) return false;
    return is_of_this_major(logger, version, name);
}

EXPORTED void* createInferBuilder_INTERNAL(void* logger, int32_t version) noexcept {
    if (!begins(__func__, logger, version, {pointer_name(logger), std::to_string(version)})) return nullptr;
    return static_cast<nvinfer1::IBuilder*>(new Builder(static_cast<nvinfer1::ILogger*>(logger)));
}

namespace standin {
nvinfer1::IRuntime* new_runtime(nvinfer1::ILogger* logger);
nvinfer1::IRefitter* new_refitter(nvinfer1::ICudaEngine* engine, nvinfer1::ILogger* logger);
}  // namespace standin

EXPORTED void* createInferRuntime_INTERNAL(void* logger, int32_t version) noexcept {
    if (!begins(__func__, logger, version, {pointer_name(logger), std::to_string(version)})) return nullptr;
    return new_runtime(static_cast<nvinfer1::ILogger*>(logger));
}

EXPORTED void* createInferRefitter_INTERNAL(void* engine, void* logger, int32_t version) noexcept {
    if (!begins(__func__, logger, version, {pointer_name(engine), pointer_name(logger), std::to_string(version)})) return nullptr;
    return new_refitter(static_cast<nvinfer1::ICudaEngine*>(engine), static_cast<nvinfer1::ILogger*>(logger));
}

EXPORTED int32_t getInferLibVersion() noexcept {
    Call(nullptr, "", __func__, {}, false);
    return version().number();
}

EXPORTED int32_t getInferLibMajorVersion() noexcept { return version().major; }
EXPORTED int32_t getInferLibMinorVersion() noexcept { return version().minor; }
EXPORTED int32_t getInferLibPatchVersion() noexcept { return version().patch; }
EXPORTED int32_t getInferLibBuildVersion() noexcept { return 1; }
