// A walk through onnx.proto's messages; numbers are those of its fields.
#include "onnx.h"

#include <algorithm>
#include <stdexcept>

namespace standin {
namespace {

// A message's bytes, or one of its fields.
struct Slice {
    const uint8_t* begin;
    const uint8_t* end;
    std::string text() const { return std::string(begin, end); }
};

struct Field {
    int number;
    uint64_t value;  // of a varint
    Slice bytes;     // of anything with a length
};

class Fields {
public:
    explicit Fields(Slice message) : at_(message.begin), end_(message.end) {}

    bool next(Field* field) {
        if (at_ == end_) return false;
        uint64_t key = varint();
        field->number = static_cast<int>(key >> 3);
        field->value = 0;
        field->bytes = {at_, at_};
        switch (key & 7) {
            case 0: field->value = varint(); break;
            case 1: field->bytes = take(8); break;
            case 2: field->bytes = take(varint()); break;
            case 5: field->bytes = take(4); break;
            default: throw std::runtime_error("wire type " + std::to_string(key & 7));
        }
        if (field->number == 0) throw std::runtime_error("a field of number 0");
        return true;
    }

    uint64_t varint() {
        uint64_t value = 0;
        for (int shift = 0; shift < 64; shift += 7) {
            uint8_t byte = *take(1).begin;
            value |= uint64_t(byte & 0x7f) << shift;
            if (byte < 0x80) return value;
        }
        throw std::runtime_error("a number of more than 64 bits");
    }
    bool is_over() const { return at_ == end_; }

private:
    Slice take(uint64_t len) {
        if (len > uint64_t(end_ - at_)) throw std::runtime_error("it ends early");
        Slice taken{at_, at_ + len};
        at_ += len;
        return taken;
    }

    const uint8_t* at_;
    const uint8_t* end_;
};

template <typename Each>
void each_field(Slice message, Each each) {
    Fields fields(message);
    for (Field field; fields.next(&field);) each(field);
}

int type_of(uint64_t onnx_type) {
    switch (onnx_type) {
        case 1: return 0;    // FLOAT, kFLOAT
        case 2: return 5;    // UINT8
        case 3: return 2;    // INT8
        case 6: return 3;    // INT32
        case 7: return 8;    // INT64
        case 9: return 4;    // BOOL
        case 10: return 1;   // FLOAT16, kHALF
        case 16: return 7;   // BFLOAT16
        case 17: return 6;   // FLOAT8E4M3FN
        case 22: return 9;   // INT4
        case 23: return 10;  // FLOAT4E2M1
        default: return -1;
    }
}

Port read_port(Slice message) {
    Port port{"", -1, {}};
    auto dimension = [&](Slice bytes) {
        Dim dim{-1, ""};
        each_field(bytes, [&](const Field& field) {
            if (field.number == 1) dim.len = static_cast<int64_t>(field.value);
            if (field.number == 2) dim.name = field.bytes.text();
        });
        port.dims.push_back(dim);
    };
    auto tensor_type = [&](Slice bytes) {
        each_field(bytes, [&](const Field& field) {
            if (field.number == 1) port.type = type_of(field.value);
            if (field.number == 2) each_field(field.bytes, [&](const Field& dim) { if (dim.number == 1) dimension(dim.bytes); });
        });
    };
    each_field(message, [&](const Field& field) {
        if (field.number == 1) port.name = field.bytes.text();
        if (field.number == 2) each_field(field.bytes, [&](const Field& type) { if (type.number == 1) tensor_type(type.bytes); });
    });
    return port;
}

void read_external(Slice message, Constant* constant) {
    std::string key, value;
    each_field(message, [&](const Field& field) { (field.number == 1 ? key : value) = field.bytes.text(); });
    if (key == "location") constant->file = value;
    if (key == "offset") constant->offset = std::stoull(value);
    if (key == "length") constant->num_bytes = std::stoull(value);
}

Constant read_constant(Slice message, const uint8_t* model) {
    Constant constant{"", -1, {}, "", 0, 0};
    each_field(message, [&](const Field& field) {
        if (field.number == 1 && field.bytes.begin != field.bytes.end) {
            for (Fields packed(field.bytes); !packed.is_over();) constant.dims.push_back(static_cast<int64_t>(packed.varint()));
        } else if (field.number == 1) {
            constant.dims.push_back(static_cast<int64_t>(field.value));
        }
        if (field.number == 2) constant.type = type_of(field.value);
        if (field.number == 8) constant.name = field.bytes.text();
        if (field.number == 9) {
            constant.offset = uint64_t(field.bytes.begin - model);
            constant.num_bytes = uint64_t(field.bytes.end - field.bytes.begin);
        }
        if (field.number == 13) read_external(field.bytes, &constant);
    });
    if (!constant.file.empty() && constant.num_bytes == 0) {
        constant.num_bytes = uint64_t(constant.num_elements() * bits_of(constant.type) + 7) / 8;
    }
    return constant;
}

Node read_node(Slice message) {
    Node node;
    each_field(message, [&](const Field& field) {
        if (field.number == 1) node.inputs.push_back(field.bytes.text());
        if (field.number == 2) node.outputs.push_back(field.bytes.text());
        if (field.number == 3) node.name = field.bytes.text();
        if (field.number == 4) node.op_type = field.bytes.text();
        if (field.number == 7) node.domain = field.bytes.text();
    });
    return node;
}

void read_opset(Slice message, Model* model) {
    std::string domain;
    int64_t version = 0;
    each_field(message, [&](const Field& field) {
        if (field.number == 1) domain = field.bytes.text();
        if (field.number == 2) version = static_cast<int64_t>(field.value);
    });
    if (domain.empty() || domain == "ai.onnx") model->opset = version;
}

void read_graph(Slice message, const uint8_t* begin, Model* model) {
    each_field(message, [&](const Field& field) {
        if (field.number == 1) model->nodes.push_back(read_node(field.bytes));
        if (field.number == 2) model->graph = field.bytes.text();
        if (field.number == 5) model->constants.push_back(read_constant(field.bytes, begin));
        if (field.number == 11) model->inputs.push_back(read_port(field.bytes));
        if (field.number == 12) model->outputs.push_back(read_port(field.bytes));
    });
    // Older models list constants among the inputs too.
    auto is_constant = [&](const Port& port) {
        return std::any_of(model->constants.begin(), model->constants.end(), [&](const Constant& c) { return c.name == port.name; });
    };
    model->inputs.erase(std::remove_if(model->inputs.begin(), model->inputs.end(), is_constant), model->inputs.end());
}

}  // namespace

int64_t Constant::num_elements() const {
    int64_t product = 1;
    for (int64_t len : dims) product *= len;
    return product;
}

int bits_of(int type) {
    switch (type) {
        case 0: case 3: return 32;
        case 1: case 7: return 16;
        case 8: return 64;
        case 9: case 10: return 4;
        default: return 8;
    }
}

std::string read_model(const Bytes& bytes, Model* model) {
    bool has_graph = false;
    try {
        each_field({bytes.data(), bytes.data() + bytes.size()}, [&](const Field& field) {
            if (field.number == 7) {
                has_graph = true;
                read_graph(field.bytes, bytes.data(), model);
            }
            if (field.number == 8) read_opset(field.bytes, model);
        });
    } catch (const std::exception& error) {
        return error.what();
    }
    if (!has_graph || model->opset == 0) return "it has no graph or no opset";
    return "";
}

}  // namespace standin
