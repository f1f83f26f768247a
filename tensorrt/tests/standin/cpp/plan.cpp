// A plan: "STANDIN1", a checksum of the rest, then version, compute capability, flags, profiles, and files as runs of bytes.
#include "plan.h"

#include <algorithm>
#include <cstring>
#include <stdexcept>

namespace standin {
namespace {

constexpr char MAGIC[] = "STANDIN1";
constexpr size_t MAGIC_BYTES = 8, HEAD_BYTES = 16;

uint64_t checksum(const uint8_t* bytes, size_t len) {
    uint64_t hash = 0xcbf29ce484222325;
    for (size_t i = 0; i < len; ++i) hash = (hash ^ bytes[i]) * 0x100000001b3;
    return hash;
}

struct Run {
    uint64_t begin, end;
};

class Writer {
public:
    Bytes bytes;
    void number(uint64_t value) {
        for (int i = 0; i < 8; ++i) bytes.push_back(uint8_t(value >> (8 * i)));
    }
    void append(const uint8_t* from, uint64_t len) { bytes.insert(bytes.end(), from, from + len); }
    void text(const std::string& value) {
        number(value.size());
        append(reinterpret_cast<const uint8_t*>(value.data()), value.size());
    }
    void dims(const nvinfer1::Dims& value) {
        number(uint64_t(value.nbDims));
        for (int i = 0; i < value.nbDims; ++i) number(uint64_t(value.d[i]));
    }
};

class Reader {
public:
    Reader(const uint8_t* begin, const uint8_t* end) : at_(begin), end_(end) {}
    const uint8_t* take(uint64_t len) {
        if (len > uint64_t(end_ - at_)) throw std::runtime_error("truncated");
        const uint8_t* taken = at_;
        at_ += len;
        return taken;
    }
    uint64_t number() {
        uint64_t value = 0;
        const uint8_t* from = take(8);
        for (int i = 0; i < 8; ++i) value |= uint64_t(from[i]) << (8 * i);
        return value;
    }
    std::string text() {
        uint64_t len = number();
        return std::string(reinterpret_cast<const char*>(take(len)), len);
    }
    nvinfer1::Dims dims() {
        nvinfer1::Dims value{};
        value.nbDims = int32_t(number());
        if (value.nbDims < 0 || value.nbDims > nvinfer1::Dims::MAX_DIMS) throw std::runtime_error("dimensions");
        for (int i = 0; i < value.nbDims; ++i) value.d[i] = int64_t(number());
        return value;
    }

private:
    const uint8_t* at_;
    const uint8_t* end_;
};

// The weights' runs of a file.
std::vector<Run> runs_of(const Model& model, const File& file, bool is_model) {
    std::vector<Run> runs;
    for (const Constant& constant : model.constants) {
        bool is_here = is_model ? constant.file.empty() : constant.file == file.name;
        if (is_here && is_weight(constant)) runs.push_back({constant.offset, constant.offset + constant.num_bytes});
    }
    std::sort(runs.begin(), runs.end(), [](const Run& a, const Run& b) { return a.begin < b.begin; });
    std::vector<Run> merged;
    for (const Run& run : runs) {
        if (!merged.empty() && run.begin <= merged.back().end) {
            merged.back().end = std::max(merged.back().end, run.end);
        } else {
            merged.push_back(run);
        }
    }
    return merged;
}

void write_file(Writer& out, const File& file, const std::vector<Run>& left_out) {
    out.text(file.name);
    out.number(file.bytes.size());
    out.number(left_out.size());
    for (const Run& run : left_out) {
        out.number(run.begin);
        out.number(run.end);
    }
    uint64_t at = 0;
    for (const Run& run : left_out) {
        out.append(file.bytes.data() + at, run.begin - at);
        at = run.end;
    }
    out.append(file.bytes.data() + at, file.bytes.size() - at);
}

File read_file(Reader& in) {
    File file{in.text(), {}};
    uint64_t len = in.number();
    if (len > (uint64_t(1) << 40)) throw std::runtime_error("a file's length");
    file.bytes.resize(len);
    std::vector<Run> left_out(in.number());
    for (Run& run : left_out) {
        run.begin = in.number();
        run.end = in.number();
    }
    uint64_t at = 0;
    auto copy = [&](uint64_t end) {
        if (end < at || end > len) throw std::runtime_error("a file's runs");
        if (end != at) std::memcpy(file.bytes.data() + at, in.take(end - at), end - at);
    };
    for (const Run& run : left_out) {
        copy(run.begin);
        at = run.end;
    }
    copy(len);
    return file;
}

void read_body(Reader in, Plan* plan) {
    plan->refittable = in.number() != 0;
    plan->stripped = in.number() != 0;
    plan->streaming = in.number() != 0;
    plan->name = in.text();
    plan->profiles.resize(in.number());
    for (Ranges& ranges : plan->profiles) {
        for (uint64_t left = in.number(); left != 0; --left) {
            Range& range = ranges[in.text()];
            for (int i = 0; i < 3; ++i) {
                range.shapes[i] = in.dims();
                range.is_set[i] = true;
            }
        }
    }
    for (uint64_t left = in.number(); left != 0; --left) plan->files.push_back(read_file(in));
}

}  // namespace

bool is_weight(const Constant& constant) {
    constexpr int int32 = 3, boolean = 4, int64 = 8;
    bool is_real = constant.type >= 0 && constant.type != int32 && constant.type != boolean && constant.type != int64;
    return is_real && !constant.name.empty() && constant.num_bytes != 0;
}

uint8_t* place_of(std::vector<File>& files, const Constant& constant) {
    for (File& file : files) {
        bool is_it = constant.file.empty() ? &file == &files[0] : &file != &files[0] && file.name == constant.file;
        if (is_it && constant.offset + constant.num_bytes <= file.bytes.size()) return file.bytes.data() + constant.offset;
    }
    return nullptr;
}

Bytes write_plan(const Plan& plan, const Model& model) {
    Writer body;
    body.number(uint64_t(plan.version.number()));
    body.number(uint64_t(plan.sm));
    body.number(plan.refittable);
    body.number(plan.stripped);
    body.number(plan.streaming);
    body.text(plan.name);
    body.number(plan.profiles.size());
    for (const Ranges& ranges : plan.profiles) {
        body.number(ranges.size());
        for (const auto& [name, range] : ranges) {
            body.text(name);
            for (const nvinfer1::Dims& dims : range.shapes) body.dims(dims);
        }
    }
    body.number(plan.files.size());
    for (const File& file : plan.files) {
        write_file(body, file, plan.stripped ? runs_of(model, file, &file == &plan.files[0]) : std::vector<Run>());
    }
    Writer out;
    out.append(reinterpret_cast<const uint8_t*>(MAGIC), MAGIC_BYTES);
    out.number(checksum(body.bytes.data(), body.bytes.size()));
    out.append(body.bytes.data(), body.bytes.size());
    return out.bytes;
}

std::string read_plan(const uint8_t* bytes, size_t num_bytes, Plan* plan) {
    if (num_bytes < HEAD_BYTES + 16 || std::memcmp(bytes, MAGIC, MAGIC_BYTES) != 0) {
        return "Serialization assertion magicTag == kMAGIC_TAG failed.Magic tag does not match";
    }
    Reader in(bytes + MAGIC_BYTES, bytes + num_bytes);
    try {
        uint64_t sum = in.number();
        int number = int(in.number());
        plan->version = {number / 10000, number / 100 % 100, number % 100};
        if (!(plan->version == version())) {
            return "Serialization assertion stdVersionRead == kSERIALIZATION_VERSION failed.Version tag does not match. Note: Current Version: " +
                   version().text() + ", Serialized Engine Version: " + plan->version.text();
        }
        plan->sm = int(in.number());
        if (plan->sm != sm()) {
            auto words = [](int sm) { return std::to_string(sm / 10) + "." + std::to_string(sm % 10); };
            return "The engine plan file is generated on an incompatible device, expecting compute " + words(sm()) + " got compute " +
                   words(plan->sm) + ", please rebuild.";
        }
        if (checksum(bytes + HEAD_BYTES, num_bytes - HEAD_BYTES) != sum) return "Serialization assertion checksum failed.The plan is corrupt";
        read_body(in, plan);
    } catch (const std::exception& error) {
        return std::string("Serialization assertion failed.The plan is corrupt: ") + error.what();
    }
    return "";
}

}  // namespace standin
