// Execution contexts: what has to be set before work can be enqueued, and the work.
#include <algorithm>
#include <cstring>
#include <list>

#include "device.h"
#include "engine.h"

namespace standin {
namespace {

using nvinfer1::Dims;
using nvinfer1::ErrorCode;

constexpr uintptr_t ALIGNMENT = 256;
constexpr uintptr_t SCRATCH_ALIGNMENT = 512;  // textureAlignment
constexpr uint8_t SCRATCH_BYTE = 0xa5;  // what a run leaves in its scratch memory

struct Span {
    uintptr_t begin, end;
    bool overlaps(const Span& other) const { return begin < other.end && other.begin < end; }
};

// What was bound when it was enqueued. A graph that was captured runs it again and again, so it is kept for as long as the library.
struct Work {
    std::shared_ptr<Loaded> loaded;
    std::shared_ptr<std::atomic<bool>> is_alive;  // the context
    std::vector<standin_tensor> tensors;
    Span scratch;
    bool is_captured;
    std::string context;
};

// Scratch memory of what runs now.
class Running {
public:
    explicit Running(Span scratch) : scratch_(scratch) {
        std::lock_guard<std::mutex> lock(mutex());
        for (const Span& other : all()) {
            if (scratch_.overlaps(other)) is_shared_ = true;
        }
        place_ = all().insert(all().end(), scratch_);
    }
    ~Running() {
        std::lock_guard<std::mutex> lock(mutex());
        all().erase(place_);
    }
    bool is_shared() const { return is_shared_; }

private:
    static std::mutex& mutex() {
        static std::mutex mutex;
        return mutex;
    }
    static std::list<Span>& all() {
        static std::list<Span> all;
        return all;
    }
    Span scratch_;
    std::list<Span>::iterator place_;
    bool is_shared_ = false;
};

void zero_outputs(const Work& work) {
    for (size_t i = 0; i < work.tensors.size(); ++i) {
        const standin_tensor& tensor = work.tensors[i];
        if (tensor.is_input || !work.loaded->tensors[i].aliased_input.empty()) continue;
        Dims dims{};
        dims.nbDims = tensor.num_dims;
        std::copy_n(tensor.dims, tensor.num_dims, dims.d);
        std::memset(tensor.data, 0, size_t(bytes_of(tensor.dtype, dims)));
    }
}

void execute(Work& work) {
    Loaded& loaded = *work.loaded;
    if (!*work.is_alive) fault(work.context + " was destroyed before what it had enqueued ran");
    Running running(work.scratch);
    if (running.is_shared()) fault(work.context + " ran while another execution had the same scratch memory");
    if (work.scratch.begin != work.scratch.end) {
        std::memset(reinterpret_cast<void*>(work.scratch.begin), SCRATCH_BYTE, work.scratch.end - work.scratch.begin);
    }
    Executor to = executor();
    if (to.execute == nullptr) return zero_outputs(work);
    std::vector<standin_file> files;
    for (const File& file : loaded.plan.files) files.push_back({file.name.c_str(), file.bytes.data(), file.bytes.size()});
    standin_model model{loaded.id, files.data(), int32_t(files.size())};
    char error[1024] = "";
    int32_t result = to.execute(to.user, &model, work.tensors.data(), int32_t(work.tensors.size()), error, int32_t(sizeof error));
    if (result == 0) return;
    fault("the executor failed with " + std::to_string(result) + ": " + error);
    std::lock_guard<std::mutex> lock(loaded.mutex);
    loaded.last_error = error;
}

void run(void* user) {
    Work* work = static_cast<Work*>(user);
    execute(*work);
    if (!work->is_captured) delete work;
}

class Context final : public nvinfer1::IExecutionContext, public of_nvinfer1::RecordedExecutionContext, public Object {
public:
    Context(Engine& engine, bool has_own_memory)
        : Object("IExecutionContext", static_cast<nvinfer1::IExecutionContext*>(this), &engine, engine.voice),
          engine_(engine), loaded_(engine.loaded), has_own_memory_(has_own_memory) {
        mImpl = this;
        self = this;
        ++loaded_->num_contexts;
    }
    ~Context() override {
        loaded_->check_current("IExecutionContext::~IExecutionContext");
        *is_alive_ = false;
        --loaded_->num_contexts;
    }
    void on_setErrorRecorder(nvinfer1::IErrorRecorder* recorder) noexcept override { voice.set_recorder(recorder); }
    nvinfer1::IErrorRecorder* on_getErrorRecorder() const noexcept override { return voice.recorder(); }
    nvinfer1::ICudaEngine const& on_getEngine() const noexcept override { return engine_; }
    int32_t on_getOptimizationProfile() const noexcept override { return profile_; }
    bool on_setOptimizationProfileAsync(int32_t profile, cudaStream_t stream) noexcept override;
    void on_setDeviceMemoryV2(void* memory, int64_t bytes) noexcept override;
    bool on_setInputShape(char const* name, Dims const& dims) noexcept override;
    Dims on_getTensorShape(char const* name) const noexcept override;
    bool on_setTensorAddress(char const* name, void* data) noexcept override;
    void const* on_getTensorAddress(char const* name) const noexcept override;
    bool on_allInputDimensionsSpecified() const noexcept override { return unspecified().empty(); }
    int32_t on_inferShapes(int32_t capacity, char const** names) noexcept override;
    bool on_enqueueV3(cudaStream_t stream) noexcept override;

private:
    bool fail(ErrorCode code, const char* method, const std::string& text) const {
        voice.error(code, std::string("IExecutionContext::") + method, text);
        return false;
    }
    bool refuse(const std::string& text) const { return fail(ErrorCode::kINVALID_STATE, "enqueueV3", text); }
    std::vector<const char*> unspecified() const;
    // Lengths of named dimensions as the inputs' shapes say; two that differ are an error.
    std::string named_lengths(std::map<std::string, int64_t>* lengths) const;
    bool resolve(const Tensor& tensor, Dims* dims) const;
    bool check_scratch() const;
    bool gather(std::vector<standin_tensor>* tensors) const;
    bool check_memory(const std::vector<standin_tensor>& tensors) const;

    Engine& engine_;
    std::shared_ptr<Loaded> loaded_;
    std::shared_ptr<std::atomic<bool>> is_alive_ = std::make_shared<std::atomic<bool>>(true);
    bool has_own_memory_;
    int32_t profile_ = 0;
    std::map<std::string, Dims> shapes_;
    std::map<std::string, void*> addresses_;
    // Since the shapes are what they are.
    bool has_run_ = false;
    void* scratch_ = nullptr;
    int64_t scratch_bytes_ = 0;
};

bool Context::on_setOptimizationProfileAsync(int32_t profile, cudaStream_t) noexcept {
    loaded_->check_current("IExecutionContext::setOptimizationProfileAsync");
    if (profile < 0 || profile >= engine_.num_profiles()) {
        return fail(ErrorCode::kINVALID_ARGUMENT, "setOptimizationProfileAsync",
                    "Parameter check failed, condition: profileIndex >= 0 && profileIndex < " + std::to_string(engine_.num_profiles()));
    }
    profile_ = profile;
    shapes_.clear();
    has_run_ = false;
    return true;
}

void Context::on_setDeviceMemoryV2(void* memory, int64_t bytes) noexcept {
    loaded_->check_current("IExecutionContext::setDeviceMemoryV2");
    if (reinterpret_cast<uintptr_t>(memory) % SCRATCH_ALIGNMENT != 0) {
        fail(ErrorCode::kINVALID_ARGUMENT, "setDeviceMemoryV2", "Parameter check failed, condition: memory is aligned to 512 bytes");
        return;
    }
    if (has_own_memory_) {
        fail(ErrorCode::kINVALID_STATE, "setDeviceMemoryV2", "the context was not created with ExecutionContextAllocationStrategy::kUSER_MANAGED");
        return;
    }
    scratch_ = memory;
    scratch_bytes_ = bytes;
}

bool Context::on_setInputShape(char const* name, Dims const& dims) noexcept {
    loaded_->check_current("IExecutionContext::setInputShape");
    const Tensor* tensor = loaded_->find(name);
    if (tensor == nullptr || !tensor->is_input) {
        return fail(ErrorCode::kINVALID_ARGUMENT, "setInputShape", std::string("Given invalid tensor name: ") + name + ". Get valid tensor names with getIOTensorName()");
    }
    Dims least = engine_.shape_in(*tensor, profile_, 0), most = engine_.shape_in(*tensor, profile_, 2);
    bool fits = dims.nbDims == most.nbDims;
    for (int i = 0; fits && i < dims.nbDims; ++i) fits = dims.d[i] >= least.d[i] && dims.d[i] <= most.d[i];
    if (!fits) {
        return fail(ErrorCode::kINVALID_ARGUMENT, "setInputShape",
                    std::string("Set dimensions ") + dims_text(dims) + " for tensor " + name + " are not within profile " + std::to_string(profile_) +
                        ": " + dims_text(least) + " to " + dims_text(most));
    }
    has_run_ = has_run_ && shapes_.count(name) != 0 && dims_text(shapes_[name]) == dims_text(dims);
    shapes_[name] = dims;
    return true;
}

bool Context::on_setTensorAddress(char const* name, void* data) noexcept {
    loaded_->check_current("IExecutionContext::setTensorAddress");
    if (loaded_->find(name) == nullptr) {
        return fail(ErrorCode::kINVALID_ARGUMENT, "setTensorAddress", std::string("Given invalid tensor name: ") + name + ". Get valid tensor names with getIOTensorName()");
    }
    if (reinterpret_cast<uintptr_t>(data) % ALIGNMENT != 0) {
        return fail(ErrorCode::kINVALID_ARGUMENT, "setTensorAddress", std::string("the address of ") + name + " is not aligned to 256 bytes");
    }
    addresses_[name] = data;
    return true;
}

void const* Context::on_getTensorAddress(char const* name) const noexcept {
    auto found = addresses_.find(name);
    return found == addresses_.end() ? nullptr : found->second;
}

std::vector<const char*> Context::unspecified() const {
    std::vector<const char*> names;
    for (const Tensor& tensor : loaded_->tensors) {
        auto is_dynamic = [](const Dim& dim) { return dim.len < 0; };
        const std::vector<Dim>& dims = tensor.port.dims;
        bool has_to_be = tensor.is_input && std::any_of(dims.begin(), dims.end(), is_dynamic);
        if (has_to_be && shapes_.count(tensor.port.name) == 0) names.push_back(tensor.port.name.c_str());
    }
    return names;
}

int32_t Context::on_inferShapes(int32_t capacity, char const** names) noexcept {
    loaded_->check_current("IExecutionContext::inferShapes");
    std::vector<const char*> missing = unspecified();
    if (capacity < 0 || (names == nullptr && capacity != 0)) return -1;
    std::copy_n(missing.begin(), std::min<size_t>(size_t(capacity), missing.size()), names);
    if (!missing.empty()) return int32_t(missing.size());
    std::map<std::string, int64_t> lengths;
    std::string wrong = named_lengths(&lengths);
    if (wrong.empty()) return 0;
    fail(ErrorCode::kINVALID_STATE, "inferShapes", wrong);
    return -1;
}

std::string Context::named_lengths(std::map<std::string, int64_t>* lengths) const {
    for (const Tensor& tensor : loaded_->tensors) {
        auto found = shapes_.find(tensor.port.name);
        if (!tensor.is_input || found == shapes_.end()) continue;
        for (size_t i = 0; i < tensor.port.dims.size(); ++i) {
            const Dim& dim = tensor.port.dims[i];
            if (dim.len >= 0 || dim.name.empty()) continue;
            auto [before, is_new] = lengths->emplace(dim.name, found->second.d[i]);
            if (is_new || before->second == found->second.d[i]) continue;
            return "Dimensions with name " + dim.name + " must be equal: " + std::to_string(found->second.d[i]) + " of " + tensor.port.name +
                   ", " + std::to_string(before->second) + " of another input";
        }
    }
    return "";
}

bool Context::resolve(const Tensor& tensor, Dims* dims) const {
    auto set = shapes_.find(tensor.port.name);
    if (set != shapes_.end()) {
        *dims = set->second;
        return true;
    }
    std::map<std::string, int64_t> lengths;
    named_lengths(&lengths);
    dims->nbDims = int32_t(tensor.port.dims.size());
    bool is_known = true;
    for (size_t i = 0; i < tensor.port.dims.size(); ++i) {
        const Dim& dim = tensor.port.dims[i];
        auto found = lengths.find(dim.name);
        dims->d[i] = dim.len >= 0 || found == lengths.end() || tensor.is_input ? dim.len : found->second;
        is_known = is_known && dims->d[i] >= 0;
    }
    return is_known;
}

Dims Context::on_getTensorShape(char const* name) const noexcept {
    const Tensor* tensor = loaded_->find(name);
    Dims dims{};
    dims.nbDims = -1;
    if (tensor != nullptr) resolve(*tensor, &dims);
    return dims;
}

bool Context::check_scratch() const {
    int64_t needed = engine_.on_getDeviceMemorySizeForProfileV2(profile_);
    if (has_own_memory_ || (scratch_ != nullptr && scratch_bytes_ >= needed)) return true;
    return refuse("the device memory set is " + std::to_string(scratch_ == nullptr ? 0 : scratch_bytes_) + " bytes, " + std::to_string(needed) + " are needed");
}

bool Context::gather(std::vector<standin_tensor>* tensors) const {
    for (const Tensor& tensor : loaded_->tensors) {
        const std::string& name = tensor.port.name;
        Dims dims{};
        if (!resolve(tensor, &dims)) return refuse("the shape of " + name + " is not known: " + dims_text(dims));
        auto address = addresses_.find(name);
        if (address == addresses_.end() || address->second == nullptr) return refuse("Address is not set for " + std::string(tensor.is_input ? "input" : "output") + " tensor " + name + ". Call setTensorAddress first.");
        if (!tensor.aliased_input.empty()) {
            auto input = addresses_.find(tensor.aliased_input);
            bool is_same = input != addresses_.end() && input->second == address->second;
            if (!is_same) return refuse("output " + name + " has to have the memory of input " + tensor.aliased_input);
        }
        standin_tensor bound{name.c_str(), tensor.port.type, tensor.is_input, dims.nbDims, {}, address->second};
        std::copy_n(dims.d, dims.nbDims, bound.dims);
        tensors->push_back(bound);
    }
    return true;
}

// What the real library does not check, and computes wrongly without.
bool Context::check_memory(const std::vector<standin_tensor>& tensors) const {
    struct Place {
        std::string name;
        Span span;
        bool is_input;
        std::string alias;
    };
    std::vector<Place> places;
    for (size_t i = 0; i < tensors.size(); ++i) {
        Dims dims{};
        dims.nbDims = tensors[i].num_dims;
        std::copy_n(tensors[i].dims, dims.nbDims, dims.d);
        int64_t bytes = bytes_of(tensors[i].dtype, dims), there = bytes_behind(tensors[i].data);
        std::string name = tensors[i].name;
        if (there >= 0 && there < bytes) {
            std::string text = name + " has " + std::to_string(bytes) + " bytes, its memory " + std::to_string(there);
            fault(text);
            return refuse(text);
        }
        uintptr_t begin = reinterpret_cast<uintptr_t>(tensors[i].data);
        places.push_back({name, {begin, begin + uintptr_t(bytes)}, tensors[i].is_input != 0, loaded_->tensors[i].aliased_input});
    }
    uintptr_t scratch = reinterpret_cast<uintptr_t>(scratch_);
    if (!has_own_memory_) places.push_back({"the scratch memory", {scratch, scratch + uintptr_t(scratch_bytes_)}, false, ""});
    for (const Place& written : places) {
        for (const Place& other : places) {
            bool may = written.is_input || &written == &other || written.alias == other.name || other.alias == written.name;
            if (may || !written.span.overlaps(other.span)) continue;
            std::string text = written.name + " and " + other.name + " lie in the same memory";
            fault(text);
            return refuse(text);
        }
    }
    return true;
}

bool Context::on_enqueueV3(cudaStream_t stream) noexcept {
    loaded_->check_current("IExecutionContext::enqueueV3");
    std::vector<const char*> missing = unspecified();
    if (!missing.empty()) return refuse(std::string("Input shape of ") + missing[0] + " is not set. Call setInputShape first.");
    std::map<std::string, int64_t> lengths;
    std::string wrong = named_lengths(&lengths);
    if (!wrong.empty()) return refuse(wrong);
    std::vector<standin_tensor> tensors;
    if (!check_scratch() || !gather(&tensors) || !check_memory(tensors)) return false;
    bool is_captured = is_capturing(stream);
    if (is_captured && engine_.is_streaming()) return refuse("an engine that streams its weights cannot be captured");
    // NVIDIA's guide: a run after a change of shapes updates what no capture permits.
    if (is_captured && !has_run_) return refuse("the first run with new shapes cannot be captured");
    has_run_ = true;
    {
        std::lock_guard<std::mutex> lock(loaded_->mutex);
        if (!loaded_->last_error.empty()) {
            std::string error = loaded_->last_error;
            loaded_->last_error.clear();
            return fail(ErrorCode::kFAILED_EXECUTION, "enqueueV3", error);
        }
    }
    uintptr_t begin = reinterpret_cast<uintptr_t>(scratch_);
    int64_t needed = has_own_memory_ ? 0 : engine_.on_getDeviceMemorySizeForProfileV2(profile_);
    Span scratch{begin, begin + uintptr_t(needed)};
    auto* work = new Work{loaded_, is_alive_, std::move(tensors), scratch, is_captured, name()};
    int result = call_in_stream(stream, run, work);
    if (result == 0) return true;
    delete work;
    return fail(ErrorCode::kFAILED_EXECUTION, "enqueueV3", "Cuda Runtime: error " + std::to_string(result));
}

}  // namespace

nvinfer1::IExecutionContext* new_context(Engine& engine, bool has_own_memory) { return new Context(engine, has_own_memory); }

}  // namespace standin
