// What a network is made of, and what a builder's configuration says.
#pragma once

#include <map>
#include <set>

#include "plan.h"
#include "recorded.h"

namespace standin {

// Bytes that the caller destroys.
class Memory final : public nvinfer1::IHostMemory, public of_nvinfer1::RecordedHostMemory, public Object {
public:
    Memory(Bytes bytes, const Voice& voice)
        : Object("IHostMemory", static_cast<nvinfer1::IHostMemory*>(this), nullptr, voice), bytes_(std::move(bytes)) {
        mImpl = this;
        self = this;
    }
    void* on_data() const noexcept override { return const_cast<uint8_t*>(bytes_.data()); }
    std::size_t on_size() const noexcept override { return bytes_.size(); }
    nvinfer1::DataType on_type() const noexcept override { return nvinfer1::DataType::kINT8; }

private:
    Bytes bytes_;
};

#ifdef STANDIN_HAS_VAttention_setDecomposable
class Attention final : public nvinfer1::IAttention, public of_nvinfer1::RecordedAttention, public Object {
public:
    Attention(const Node& node, const Object* network, const Voice& voice)
        : Object("IAttention", static_cast<nvinfer1::IAttention*>(this), network, voice, Owner::parent), node_name(node.name) {
        mImpl = this;
        self = this;
    }
    bool on_setDecomposable(bool value) noexcept override {
        is_decomposable = value;
        return true;
    }
    bool on_getDecomposable() const noexcept override { return is_decomposable; }

    std::string node_name;
    bool is_decomposable = false;
};

// The layer before an attention, or the one behind it.
template <typename Base, typename Recorded>
class AttentionLayer final : public Base, public of_nvinfer1::RecordedLayer, public of_nvinfer1::RecordedAttentionBoundaryLayer,
                             public Recorded, public Object {
public:
    AttentionLayer(nvinfer1::LayerType type, Attention& attention, const Object* network, const Voice& voice)
        : Object("ILayer", static_cast<nvinfer1::ILayer*>(this), network, voice, Owner::parent), type_(type), attention_(attention) {
        this->mLayer = this;
        this->mBoundary = this;
        this->mImpl = this;
        of_nvinfer1::RecordedLayer::self = this;
        of_nvinfer1::RecordedAttentionBoundaryLayer::self = this;
    }
    nvinfer1::LayerType on_getType() const noexcept override { return type_; }
    nvinfer1::IAttention* on_getAttention() const noexcept override { return &attention_; }

private:
    nvinfer1::LayerType type_;
    Attention& attention_;
};
using AttentionInput = AttentionLayer<nvinfer1::IAttentionInputLayer, of_nvinfer1::RecordedAttentionInputLayer>;
using AttentionOutput = AttentionLayer<nvinfer1::IAttentionOutputLayer, of_nvinfer1::RecordedAttentionOutputLayer>;
#endif

// Any other layer.
class Layer final : public nvinfer1::ILayer, public of_nvinfer1::RecordedLayer, public Object {
public:
    Layer(const Object* network, const Voice& voice)
        : Object("ILayer", static_cast<nvinfer1::ILayer*>(this), network, voice, Owner::parent) {
        mLayer = this;
        self = this;
    }
    nvinfer1::LayerType on_getType() const noexcept override { return nvinfer1::LayerType::kIDENTITY; }
};

class Network final : public nvinfer1::INetworkDefinition, public of_nvinfer1::RecordedNetworkDefinition, public Object {
public:
    Network(uint32_t flags, const Object* builder, const Voice& voice)
        : Object("INetworkDefinition", static_cast<nvinfer1::INetworkDefinition*>(this), builder, voice), flags(flags) {
        mImpl = this;
        self = this;
    }
    void on_setErrorRecorder(nvinfer1::IErrorRecorder* recorder) noexcept override { voice.set_recorder(recorder); }
    nvinfer1::IErrorRecorder* on_getErrorRecorder() const noexcept override { return voice.recorder(); }
    int32_t on_getNbLayers() const noexcept override { return int32_t(layers.size()); }
    nvinfer1::ILayer* on_getLayer(int32_t index) const noexcept override {
        return index < 0 || index >= int32_t(layers.size()) ? nullptr : layers[size_t(index)];
    }
    int32_t on_getNbInputs() const noexcept override { return int32_t(model.inputs.size()); }
    int32_t on_getNbOutputs() const noexcept override { return int32_t(model.outputs.size()); }
    char const* on_getName() const noexcept override { return model.graph.c_str(); }
    nvinfer1::NetworkDefinitionCreationFlags on_getFlags() const noexcept override { return flags; }

    bool is_strongly_typed() const;
    // Takes what a parser read.
    void set_model(Model read, std::vector<File> read_files);

    uint32_t flags;
    Model model;
    std::vector<File> files;
    std::vector<nvinfer1::ILayer*> layers;
#ifdef STANDIN_HAS_VAttention_setDecomposable
    std::vector<Attention*> attentions;
#endif

private:
    template <typename Made, typename... Arguments>
    Made* own(Arguments&&... arguments) {
        auto made = std::make_unique<Made>(std::forward<Arguments>(arguments)..., this, voice);
        Made* seen = made.get();
        owned_.push_back(std::move(made));
        return seen;
    }

    std::vector<std::unique_ptr<Object>> owned_;
};

class Profile final : public nvinfer1::IOptimizationProfile, public of_nvinfer1::RecordedOptimizationProfile, public Object {
public:
    Profile(const Object* builder, const Voice& voice)
        : Object("IOptimizationProfile", static_cast<nvinfer1::IOptimizationProfile*>(this), builder, voice, Owner::parent) {
        mImpl = this;
        self = this;
    }
    bool on_setDimensions(char const* input, nvinfer1::OptProfileSelector select, nvinfer1::Dims const& dims) noexcept override;
    nvinfer1::Dims on_getDimensions(char const* input, nvinfer1::OptProfileSelector select) const noexcept override;
    bool on_isValid() const noexcept override;

    Ranges ranges;
};

class TimingCache final : public nvinfer1::ITimingCache, public of_nvinfer1::RecordedTimingCache, public Object {
public:
    TimingCache(Version version, int sm, std::set<std::string> entries, const Voice& voice)
        : Object("ITimingCache", static_cast<nvinfer1::ITimingCache*>(this), nullptr, voice),
          version(version), sm(sm), entries(std::move(entries)) {
        mImpl = this;
        self = this;
    }
    // Null with the reason logged if the bytes are no cache.
    static TimingCache* read(const void* bytes, size_t num_bytes, const Voice& voice);
    nvinfer1::IHostMemory* on_serialize() const noexcept override;
    bool on_combine(nvinfer1::ITimingCache const& other, bool ignore_mismatch) noexcept override;
    bool on_reset() noexcept override;
    // Whether it is of use here; why not is logged.
    bool fits(bool ignore_mismatch, const std::string& where) const;

    Version version;
    int sm;
    std::set<std::string> entries;
};

class Config final : public nvinfer1::IBuilderConfig, public of_nvinfer1::RecordedBuilderConfig, public Object {
public:
    // It has no recorder: what it refuses it logs.
    Config(const Object* builder, const Voice& voice)
        : Object("IBuilderConfig", static_cast<nvinfer1::IBuilderConfig*>(this), builder, Voice(voice.logger())) {
        mImpl = this;
        self = this;
    }
    void on_setFlags(nvinfer1::BuilderFlags value) noexcept override { flags = value; }
    nvinfer1::BuilderFlags on_getFlags() const noexcept override { return flags; }
    void on_setFlag(nvinfer1::BuilderFlag flag) noexcept override { flags |= 1U << int(flag); }
    void on_clearFlag(nvinfer1::BuilderFlag flag) noexcept override { flags &= ~(1U << int(flag)); }
    bool on_getFlag(nvinfer1::BuilderFlag flag) const noexcept override { return has(flag); }
    void on_setMemoryPoolLimit(nvinfer1::MemoryPoolType pool, std::size_t bytes) noexcept override { pools[int(pool)] = bytes; }
    std::size_t on_getMemoryPoolLimit(nvinfer1::MemoryPoolType pool) const noexcept override;
    void on_setBuilderOptimizationLevel(int32_t value) noexcept override;
    int32_t on_getBuilderOptimizationLevel() const noexcept override { return level; }
    void on_setProgressMonitor(nvinfer1::IProgressMonitor* value) noexcept override { monitor = value; }
    nvinfer1::IProgressMonitor* on_getProgressMonitor() const noexcept override { return monitor; }
    int32_t on_addOptimizationProfile(nvinfer1::IOptimizationProfile const* profile) noexcept override;
    int32_t on_getNbOptimizationProfiles() const noexcept override { return int32_t(profiles.size()); }
    nvinfer1::ITimingCache* on_createTimingCache(void const* blob, std::size_t size) const noexcept override;
    bool on_setTimingCache(nvinfer1::ITimingCache const& cache, bool ignore_mismatch) noexcept override;
    nvinfer1::ITimingCache const* on_getTimingCache() const noexcept override { return timing_cache; }
#if NV_TENSORRT_MAJOR >= 11
    bool on_setMaxAuxStreams(int32_t value) noexcept override { return max_aux_streams = value, value >= 0; }
#else
    void on_setMaxAuxStreams(int32_t value) noexcept override { max_aux_streams = value; }
#endif
    int32_t on_getMaxAuxStreams() const noexcept override { return max_aux_streams; }

    bool has(nvinfer1::BuilderFlag flag) const { return (flags >> int(flag)) & 1; }

    nvinfer1::BuilderFlags flags = 0;
    std::map<int, size_t> pools;
    int32_t level = 3, max_aux_streams = -1;
    nvinfer1::IProgressMonitor* monitor = nullptr;
    std::vector<Ranges> profiles;
    TimingCache* timing_cache = nullptr;
};

}  // namespace standin
