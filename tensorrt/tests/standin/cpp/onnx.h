// ONNX models, as far as a builder's caller sees them: inputs, outputs, constants, nodes.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

namespace standin {

using Bytes = std::vector<uint8_t>;

struct Dim {
    int64_t len;       // -1: named, or anything
    std::string name;  // of one without a fixed length
};

struct Port {
    std::string name;
    int type;  // nvinfer1::DataType; -1: one it has not
    std::vector<Dim> dims;
};

// An initializer whose values lie in the model or in a file beside it.
struct Constant {
    std::string name;
    int type;  // nvinfer1::DataType
    std::vector<int64_t> dims;
    std::string file;  // empty: the model itself
    uint64_t offset, num_bytes;
    int64_t num_elements() const;
};

struct Node {
    std::string name, op_type, domain;
    std::vector<std::string> inputs, outputs;
};

struct Model {
    int64_t opset = 0;
    std::string graph;
    std::vector<Port> inputs, outputs;
    std::vector<Constant> constants;
    std::vector<Node> nodes;
};

// Reads a serialized ModelProto; what is wrong with it otherwise.
std::string read_model(const Bytes& bytes, Model* model);
// Bits of an element of a type.
int bits_of(int type);

}  // namespace standin
