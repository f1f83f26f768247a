// Networks and what goes with them to a builder.
#include "network.h"

#include <cstring>

namespace standin {

using nvinfer1::ErrorCode;

// ---- network --------------------------------------------------------------------------------------------------------------------------

bool Network::is_strongly_typed() const {
#if NV_TENSORRT_MAJOR == 10
    return (flags >> int(nvinfer1::NetworkDefinitionCreationFlag::kSTRONGLY_TYPED)) & 1;
#else
    return true;
#endif
}

void Network::set_model(Model read, std::vector<File> read_files) {
    model = std::move(read);
    files = std::move(read_files);
    for ([[maybe_unused]] const Node& node : model.nodes) {
#ifdef STANDIN_HAS_VAttention_setDecomposable
        if (node.op_type == "Attention") {
            using nvinfer1::LayerType;
            attentions.push_back(own<Attention>(node));
            layers.push_back(own<AttentionInput>(LayerType::kATTENTION_INPUT, *attentions.back()));
            layers.push_back(own<AttentionOutput>(LayerType::kATTENTION_OUTPUT, *attentions.back()));
            continue;
        }
#endif
        layers.push_back(own<Layer>());
    }
}

// ---- profile --------------------------------------------------------------------------------------------------------------------------

bool Profile::on_setDimensions(char const* input, nvinfer1::OptProfileSelector select, nvinfer1::Dims const& dims) noexcept {
    int which = int(select);
    if (input == nullptr || which < 0 || which > 2 || dims.nbDims < 0 || dims.nbDims > nvinfer1::Dims::MAX_DIMS) {
        voice.error(ErrorCode::kINVALID_ARGUMENT, "IOptimizationProfile::setDimensions", "Parameter check failed, condition: dims.nbDims >= 0");
        return false;
    }
    for (int i = 0; i < dims.nbDims; ++i) {
        if (dims.d[i] >= 0) continue;
        voice.error(ErrorCode::kINVALID_ARGUMENT, "IOptimizationProfile::setDimensions",
                    "Parameter check failed, condition: all dimensions of " + std::string(input) + " are at least 0, not " + dims_text(dims));
        return false;
    }
    Range& range = ranges[input];
    range.shapes[which] = dims;
    range.is_set[which] = true;
    return true;
}

nvinfer1::Dims Profile::on_getDimensions(char const* input, nvinfer1::OptProfileSelector select) const noexcept {
    auto found = ranges.find(input);
    nvinfer1::Dims none{};
    none.nbDims = -1;
    return found == ranges.end() || !found->second.is_set[int(select)] ? none : found->second.shapes[int(select)];
}

bool Profile::on_isValid() const noexcept {
    for (const auto& [name, range] : ranges) {
        const auto& [min, opt, max] = range.shapes;
        if (!range.is_set[0] || !range.is_set[1] || !range.is_set[2]) return false;
        if (min.nbDims != opt.nbDims || opt.nbDims != max.nbDims) return false;
        for (int i = 0; i < min.nbDims; ++i) {
            if (min.d[i] > opt.d[i] || opt.d[i] > max.d[i]) return false;
        }
    }
    return true;
}

// ---- timing cache ---------------------------------------------------------------------------------------------------------------------

namespace {
constexpr char CACHE_MAGIC[] = "STANDIN-TIMING ";
}

TimingCache* TimingCache::read(const void* bytes, size_t num_bytes, const Voice& voice) {
    if (num_bytes == 0) return new TimingCache(standin::version(), standin::sm(), {}, voice);
    std::string text(static_cast<const char*>(bytes), num_bytes);
    Version version{};
    int sm = 0, end = 0;
    bool is_one = text.rfind(CACHE_MAGIC, 0) == 0 &&
                  std::sscanf(text.c_str() + std::strlen(CACHE_MAGIC), "%d.%d.%d %d\n%n", &version.major, &version.minor, &version.patch, &sm, &end) == 4;
    if (!is_one) {
        voice.error(ErrorCode::kINVALID_ARGUMENT, "IBuilderConfig::createTimingCache",
                    "Serialization assertion failed.The timing cache is corrupt or of another version");
        return nullptr;
    }
    std::set<std::string> entries;
    std::string entry;
    for (char sign : text.substr(std::strlen(CACHE_MAGIC) + size_t(end))) {
        if (sign != '\n') {
            entry += sign;
        } else if (!entry.empty()) {
            entries.insert(entry);
            entry.clear();
        }
    }
    return new TimingCache(version, sm, std::move(entries), voice);
}

nvinfer1::IHostMemory* TimingCache::on_serialize() const noexcept {
    std::string text = CACHE_MAGIC + version.text() + " " + std::to_string(sm) + "\n";
    for (const std::string& entry : entries) text += entry + "\n";
    return new Memory(Bytes(text.begin(), text.end()), voice);
}

bool TimingCache::on_combine(nvinfer1::ITimingCache const& input, bool ignore_mismatch) noexcept {
    const auto* other = dynamic_cast<const TimingCache*>(&input);
    if (other == nullptr || !other->fits(ignore_mismatch, "ITimingCache::combine")) return false;
    entries.insert(other->entries.begin(), other->entries.end());
    return true;
}

bool TimingCache::on_reset() noexcept {
    entries.clear();
    return true;
}

bool TimingCache::fits(bool ignore_mismatch, const std::string& where) const {
    bool is_of_version = version == standin::version();
    if (is_of_version && (sm == standin::sm() || ignore_mismatch)) return true;
    voice.log(Severity::kWARNING, where + ": the timing cache was made by TensorRT " + version.text() + " for compute capability " +
                                      std::to_string(sm) + ", not by " + standin::version().text() + " for " + std::to_string(standin::sm()));
    return false;
}

// ---- configuration --------------------------------------------------------------------------------------------------------------------

std::size_t Config::on_getMemoryPoolLimit(nvinfer1::MemoryPoolType pool) const noexcept {
    auto found = pools.find(int(pool));
    return found == pools.end() ? size_t(1) << 30 : found->second;
}

void Config::on_setBuilderOptimizationLevel(int32_t value) noexcept {
    if (value < 0 || value > 5) {
        voice.error(ErrorCode::kINVALID_ARGUMENT, "IBuilderConfig::setBuilderOptimizationLevel",
                    "Parameter check failed, condition: 0 <= level && level <= 5");
        return;
    }
    level = value;
}

int32_t Config::on_addOptimizationProfile(nvinfer1::IOptimizationProfile const* profile) noexcept {
    const auto* added = dynamic_cast<const Profile*>(profile);
    if (added == nullptr || !added->on_isValid()) {
        voice.error(ErrorCode::kINVALID_ARGUMENT, "IBuilderConfig::addOptimizationProfile",
                    "Parameter check failed, condition: profile->isValid(): min <= opt <= max in all dimensions");
        return -1;
    }
    bool is_refittable = has(nvinfer1::BuilderFlag::kREFIT) || has(nvinfer1::BuilderFlag::kREFIT_IDENTICAL);
    if (is_refittable && !profiles.empty()) {
        voice.error(ErrorCode::kINVALID_ARGUMENT, "IBuilderConfig::addOptimizationProfile",
                    "networks with more than a single optimization profile are not supported for refittable engines");
        return -1;
    }
    profiles.push_back(added->ranges);
    return int32_t(profiles.size()) - 1;
}

nvinfer1::ITimingCache* Config::on_createTimingCache(void const* blob, std::size_t size) const noexcept {
    return TimingCache::read(blob, size, voice);
}

bool Config::on_setTimingCache(nvinfer1::ITimingCache const& cache, bool ignore_mismatch) noexcept {
    auto* set = const_cast<TimingCache*>(dynamic_cast<const TimingCache*>(&cache));
    if (set == nullptr || !set->fits(ignore_mismatch, "IBuilderConfig::setTimingCache")) return false;
    timing_cache = set;
    return true;
}

}  // namespace standin
