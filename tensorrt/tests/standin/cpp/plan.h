// Plans: what a builder writes and a runtime reads.
#pragma once

#include <map>

#include "object.h"
#include "onnx.h"

namespace standin {

// Smallest, usual and largest shape; in the order of nvinfer1::OptProfileSelector.
struct Range {
    nvinfer1::Dims shapes[3];
    bool is_set[3];
};
using Ranges = std::map<std::string, Range>;

struct File {
    std::string name;
    Bytes bytes;
};

struct Plan {
    Version version;
    int sm;
    bool refittable, stripped, streaming;
    std::vector<File> files;  // the model, then its data by name
    std::vector<Ranges> profiles;
    std::string name;
};

// Of constants that hold real numbers: those that can be given anew.
bool is_weight(const Constant& constant);
// Where a weight lies in a plan's files.
uint8_t* place_of(std::vector<File>& files, const Constant& constant);

// The weights' bytes are left out where the plan is stripped.
Bytes write_plan(const Plan& plan, const Model& model);
// Empty, or why it cannot be used here, as TensorRT words it. Stripped weights are zero.
std::string read_plan(const uint8_t* bytes, size_t num_bytes, Plan* plan);

}  // namespace standin
