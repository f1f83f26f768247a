// What computes the models that the stand-in for libnvinfer "runs": a function that whoever tests gives it.
#pragma once

#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

// One input or output of an execution. `dims` are lengths, of an output too. `data` is host-addressable: the emulated device's memory.
struct standin_tensor {
    const char* name;
    int32_t dtype;  // nvinfer1::DataType
    int32_t is_input;
    int32_t num_dims;
    int64_t dims[8];
    void* data;
};

struct standin_file {
    const char* name;  // as the ONNX model calls it; of the model itself its file name
    const uint8_t* bytes;
    uint64_t num_bytes;
};

// What a plan was built from, refitted weights in their places. Lives as long as the engine; `id` is another one in each engine of a
// process, so that what was prepared for it can be kept by it.
struct standin_model {
    uint64_t id;
    const struct standin_file* files;  // [0] is the ONNX model, then its external data by name
    int32_t num_files;
};

// Computes the outputs from the inputs. The tensors are all inputs and outputs, in the engine's order. Called from the stream's thread, at
// the time the work is run, with the addresses and shapes of the time it was enqueued. 0: done. Otherwise `error` says why, ended by a zero.
typedef int32_t (*standin_execute)(void* user, const struct standin_model* model, const struct standin_tensor* tensors, int32_t num_tensors,
                                   char* error, int32_t error_len);

// Without one (null) outputs are set to zero. Inputs and outputs that share memory are then left as they are.
void standin_set_executor(standin_execute execute, void* user);

#ifdef __cplusplus
}
#endif
