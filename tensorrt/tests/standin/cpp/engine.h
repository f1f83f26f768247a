// Plans that can be run.
#pragma once

#include <atomic>

#include "network.h"

namespace standin {

// An input or output.
struct Tensor {
    Port port;
    bool is_input;
    std::string aliased_input;  // of an output that has to have its memory
};

// What work that is enqueued needs of an engine; lives until the last of it is done.
struct Loaded {
    uint64_t id;
    Plan plan;
    Model model;
    std::vector<Tensor> tensors;
    std::atomic<int> num_contexts{0};
    std::mutex mutex;        // of what follows
    std::string last_error;  // of an execution; the next enqueue says it
    bool has_weights;
    void* context;  // of CUDA's, that was current when it was read: its memory is there

    const Tensor* find(const std::string& name) const;
    // The real library uses whatever is current: launches and frees then fail, or hit another context's memory.
    void check_current(const std::string& call) const;
};

class Engine final : public nvinfer1::ICudaEngine, public of_nvinfer1::RecordedCudaEngine, public Object {
public:
    Engine(Plan plan, Model model, const Object* runtime, const Voice& voice);
    ~Engine() override { loaded->check_current(name() + "::~ICudaEngine"); }

    nvinfer1::IExecutionContext* on_createExecutionContext(nvinfer1::ExecutionContextAllocationStrategy strategy) noexcept override;
    bool on_isRefittable() const noexcept override { return loaded->plan.refittable; }
    nvinfer1::IHostMemory* on_serialize() const noexcept override;
    char const* on_getName() const noexcept override { return loaded->plan.name.c_str(); }
    int32_t on_getNbLayers() const noexcept override { return int32_t(loaded->model.nodes.size()); }
    int32_t on_getNbIOTensors() const noexcept override { return int32_t(loaded->tensors.size()); }
    char const* on_getIOTensorName(int32_t index) const noexcept override;
    nvinfer1::TensorIOMode on_getTensorIOMode(char const* name) const noexcept override;
    nvinfer1::DataType on_getTensorDataType(char const* name) const noexcept override;
    nvinfer1::Dims on_getTensorShape(char const* name) const noexcept override;
    nvinfer1::TensorLocation on_getTensorLocation(char const*) const noexcept override { return nvinfer1::TensorLocation::kDEVICE; }
    nvinfer1::TensorFormat on_getTensorFormatV2(char const*, int32_t) const noexcept override { return nvinfer1::TensorFormat::kLINEAR; }
    nvinfer1::TensorFormat on_getTensorFormat(char const*) const noexcept override { return nvinfer1::TensorFormat::kLINEAR; }
#ifdef STANDIN_HAS_VCudaEngine_getAliasedInputTensor
    char const* on_getAliasedInputTensor(char const* name) const noexcept override;
#endif
    int32_t on_getNbOptimizationProfiles() const noexcept override { return num_profiles(); }
    nvinfer1::Dims on_getProfileShape(char const* name, int32_t profile, nvinfer1::OptProfileSelector select) const noexcept override;
    int64_t on_getDeviceMemorySizeForProfileV2(int32_t profile) const noexcept override;
    int64_t on_getDeviceMemorySizeV2() const noexcept override;
    int64_t on_getStreamableWeightsSize() const noexcept override;
    int64_t on_getWeightStreamingBudgetV2() const noexcept override { return budget; }
    int64_t on_getWeightStreamingScratchMemorySize() const noexcept override { return is_streaming() ? 4096 : 0; }
    bool on_setWeightStreamingBudgetV2(int64_t bytes) noexcept override;
    void on_setErrorRecorder(nvinfer1::IErrorRecorder* recorder) noexcept override { voice.set_recorder(recorder); }
    nvinfer1::IErrorRecorder* on_getErrorRecorder() const noexcept override { return voice.recorder(); }

    int32_t num_profiles() const { return int32_t(std::max<size_t>(1, loaded->plan.profiles.size())); }
    bool is_streaming() const { return loaded->plan.streaming && budget < on_getStreamableWeightsSize(); }
    // A shape in a profile; of an input without dynamic dimensions its own.
    nvinfer1::Dims shape_in(const Tensor& tensor, int32_t profile, int which) const;

    std::shared_ptr<Loaded> loaded;
    int64_t budget = 0;
};

nvinfer1::IExecutionContext* new_context(Engine& engine, bool has_own_memory);

// Bytes of a tensor of a type.
int64_t bytes_of(int type, const nvinfer1::Dims& dims);

}  // namespace standin
