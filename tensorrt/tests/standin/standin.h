// What tests ask of the stand-ins for libnvinfer and libnvonnxparser, beside TensorRT's own interface. All of it is exported by the stand-in
// for libnvinfer.
//
// In a program that is not asked through these functions, environment variables say the same, read when the library is loaded:
//   STANDIN_VERSION=10.16.1        what getInferLibVersion gives
//   STANDIN_SM=110                 the compute capability plans are built for; without it that of the CUDA device in use
//   STANDIN_FAIL=IBuilder::buildSerializedNetwork:1:oom;IRuntime::deserializeCudaEngine:2
//                                  the n-th call of a method fails (`error`, `oom` or `silent`; `error` where nothing is said)
//   STANDIN_REFUSE=Attention,Gelu  operators the parser does not know
//   STANDIN_ENDLESS=1              builds do not end until they are cancelled
//   STANDIN_RECORD=/path           a file that calls are appended to as they are made
//   STANDIN_FAULTS=/path           a file that faults are appended to as they are found
//   STANDIN_EXECUTOR=/path.so      a library whose function `standin_executor` computes models (a standin_execute; `user` is null)
#pragma once

#include <stddef.h>
#include <stdint.h>

#include "executor.h"

#ifdef __cplusplus
extern "C" {
#endif

// How a call fails. All return null, false or -1.
enum standin_failure {
    STANDIN_ERROR = 0,   // an error is logged
    STANDIN_OOM = 1,     // memory runs out: logged, and reported to the error recorder as kFAILED_ALLOCATION
    STANDIN_SILENT = 2,  // without a word
};

// The n-th call from now of a method ("IBuilder::createNetworkV2"), or of any method that can fail if `method` is null, fails; 0: none.
// A method that can fail gives a pointer, a bool or an index, and does not only ask ("get…", "is…", "all…").
void standin_fail(const char* method, uint64_t n, int32_t how);
// Failures asked for that have not come yet.
uint64_t standin_num_pending(void);
// The version the library says it is; plans and timing caches are of it.
void standin_set_version(int32_t major, int32_t minor, int32_t patch);
// The compute capability, as 87 or 110, that plans and timing caches are of; 0: the CUDA device's in use, 90 without one.
void standin_set_sm(int32_t sm);
// An operator that the parser does not know from now on; null: it knows all again.
void standin_refuse_operator(const char* op_type);
// Whether builds go on timing until they are cancelled.
void standin_set_endless(int32_t is_endless);
// All as it was when the library was loaded, but what is alive stays so.
void standin_reset(void);

// The calls since the last clearing, a line each:
//   IBuilder::createNetworkV2(1)
// Enumerators are named, strings quoted, shapes are [1,2,3], objects of ours named by class (`IBuilder`, the second one `IBuilder#2`), other
// pointers numbered by first appearance (@1). Writes up to `capacity` bytes, gives the length of all.
size_t standin_record(char* text, size_t capacity);
// Forgets calls and faults, and where nothing is alive counts objects and pointers anew.
void standin_clear_record(void);
// Objects alive, a line each.
size_t standin_alive(char* text, size_t capacity);
// What the library was done that the real one leaves undefined or only computes wrongly, and what failed while it ran, a line each: a parent
// destroyed before its child, an execution after its context's end, memory shorter than its tensor.
size_t standin_faults(char* text, size_t capacity);

#ifdef __cplusplus
}
#endif
