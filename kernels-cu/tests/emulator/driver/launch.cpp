// Launches of kernels.
#include <signal.h>
#include <string.h>

#include "calls.h"
#include "kernels.h"

namespace takt_emulated_driver {
namespace {

// Arguments as they were at the launch.
struct Arguments {
    std::vector<uint64_t> words;
    std::vector<size_t> places;  // of each argument, in words

    Arguments(const std::vector<size_t>& bytes, void** given) {
        for (size_t each : bytes) {
            // 16 bytes at a time, so that no argument is less aligned than it may ask for.
            places.push_back(words.size());
            words.resize(words.size() + (each + 15) / 16 * 2);
            memcpy(&words[places.back()], given[places.size() - 1], each);
        }
    }

    std::vector<void*> pointers() {
        std::vector<void*> made;
        for (size_t place : places) made.push_back(&words[place]);
        return made;
    }
};

struct Call {
    Context* root;
    std::shared_ptr<Module> module;
    std::string kernel;
    unsigned grid[3], block[3], shared_bytes;
    std::shared_ptr<Arguments> arguments;
};

thread_local bool runs_kernel = false;

CUresult fail_kernel(Context& root, CUresult result, const std::string& message) {
    Lock lock(device().mutex);
    fail_context(root, result, message);
    return result;
}

// What a GPU would have said of what the emulator found.
CUresult result_of(int status, const std::string& message) {
    if (status == 1) return CUDA_ERROR_NOT_FOUND;
    if (status == 2) return CUDA_ERROR_LAUNCH_OUT_OF_RESOURCES;
    if (message.find("misaligned") != std::string::npos) return CUDA_ERROR_MISALIGNED_ADDRESS;
    return message.find("illegal address") != std::string::npos ? CUDA_ERROR_ILLEGAL_ADDRESS : CUDA_ERROR_LAUNCH_FAILED;
}

CUresult run(const Call& call) {
    if (call.module->unloaded) return fail_kernel(*call.root, CUDA_ERROR_LAUNCH_FAILED, call.kernel + ": its module was unloaded");
    std::vector<void*> pointers = call.arguments->pointers();
    runs_kernel = true;
    int status = takt_emulated_launch(call.kernel.c_str(), call.grid, call.block, call.shared_bytes, pointers.data());
    runs_kernel = false;
    if (status == 0) return CUDA_SUCCESS;
    std::string message = takt_emulated_error();
    return fail_kernel(*call.root, result_of(status, message), message);
}

bool is_possible(const unsigned grid[3], const unsigned block[3]) {
    uint64_t threads = uint64_t(block[0]) * block[1] * block[2];
    bool blocks = grid[0] - 1 < 0x7fffffff && grid[1] - 1 < 65535 && grid[2] - 1 < 65535;
    return blocks && threads != 0 && threads <= 1024 && block[0] <= 1024 && block[1] <= 1024 && block[2] <= 64;
}

CUresult launch(Lock& lock, Context& context, CUfunction handle, CUstream stream_handle, const Call& shape, void** parameters) {
    std::shared_ptr<Function> function = find(device().functions, handle);
    std::shared_ptr<Stream> stream;
    if (function == nullptr || function->module->root != context.root) return CUDA_ERROR_INVALID_HANDLE;
    CUresult result = find_stream(stream_handle, context, &stream);
    if (result != CUDA_SUCCESS) return result;
    if (!is_possible(shape.grid, shape.block) || shape.shared_bytes > function->max_dynamic_shared_bytes) return CUDA_ERROR_INVALID_VALUE;
    size_t count = function->argument_bytes.size();
    if (count != 0 && parameters == nullptr) return CUDA_ERROR_INVALID_VALUE;
    for (size_t idx = 0; idx < count; idx++) {
        if (parameters[idx] == nullptr) return CUDA_ERROR_INVALID_VALUE;
    }
    Call call = shape;
    call.root = context.root;
    call.module = function->module;
    call.kernel = function->kernel;
    call.arguments = std::make_shared<Arguments>(function->argument_bytes, parameters);
    Context* root = context.root;
    return submit(lock, stream, {CU_GRAPH_NODE_TYPE_KERNEL, [call, root](Fault fault) {
                      return fault != Fault::none ? run_fault(*root, fault) : run(call);
                  }});
}

// Launches that need blocks to run at the same time cannot be emulated.
bool is_emulated(const CUlaunchAttribute& attribute) {
    const auto& cluster = attribute.value.clusterDim;
    if (attribute.id == CU_LAUNCH_ATTRIBUTE_COOPERATIVE) return attribute.value.cooperative == 0;
    if (attribute.id == CU_LAUNCH_ATTRIBUTE_CLUSTER_DIMENSION) return cluster.x * cluster.y * cluster.z == 1;
    return true;
}

struct sigaction previous_action;

void on_memory_fault(int signal, siginfo_t* info, void*) {
    if (runs_kernel) takt_emulated_fail("illegal address", info->si_addr);
    // Not a kernel's: the access is repeated under the handler that was there before.
    sigaction(signal, &previous_action, nullptr);
}

}  // namespace

Fault next_launch_fault() {
    Device& d = device();
    d.num_launches++;
    bool fails = d.faults.launch != 0 && --d.faults.launch == 0;
    bool hangs = d.faults.hang != 0 && --d.faults.hang == 0;
    return hangs ? Fault::hang : fails ? Fault::fail : Fault::none;
}

CUresult run_fault(Context& root, Fault fault) {
    Lock lock(device().mutex);
    if (fault == Fault::fail) {
        fail_context(root, CUDA_ERROR_LAUNCH_FAILED, "a launch that was to fail failed");
        return CUDA_ERROR_LAUNCH_FAILED;
    }
    device().changed.wait(lock, [&] { return root.destroyed; });
    return CUDA_SUCCESS;
}

void catch_memory_faults() {
    struct sigaction action;
    memset(&action, 0, sizeof action);
    action.sa_sigaction = on_memory_fault;
    // A kernel is left from within the handler, which then never returns: the signal must not stay blocked.
    action.sa_flags = SA_SIGINFO | SA_NODEFER;
    sigaction(SIGSEGV, &action, &previous_action);
}

}  // namespace takt_emulated_driver

using namespace takt_emulated_driver;

EXPORTED CUresult cuLaunchKernel(CUfunction function, unsigned grid_x, unsigned grid_y, unsigned grid_z, unsigned block_x, unsigned block_y,
                                 unsigned block_z, unsigned shared_bytes, CUstream stream, void** parameters, void** extra) {
    return in_context(__func__, [&](Lock& lock, Context& context) {
        if (extra != nullptr) return parameters != nullptr ? CUDA_ERROR_INVALID_VALUE : CUDA_ERROR_NOT_SUPPORTED;
        Call shape = {nullptr, nullptr, "", {grid_x, grid_y, grid_z}, {block_x, block_y, block_z}, shared_bytes, nullptr};
        return launch(lock, context, function, stream, shape, parameters);
    });
}

EXPORTED CUresult cuLaunchKernelEx(const CUlaunchConfig* config, CUfunction function, void** parameters, void** extra) {
    return in_context(__func__, [&](Lock& lock, Context& context) {
        if (config == nullptr || (config->numAttrs != 0 && config->attrs == nullptr)) return CUDA_ERROR_INVALID_VALUE;
        if (extra != nullptr) return parameters != nullptr ? CUDA_ERROR_INVALID_VALUE : CUDA_ERROR_NOT_SUPPORTED;
        for (unsigned idx = 0; idx < config->numAttrs; idx++) {
            if (!is_emulated(config->attrs[idx])) return CUDA_ERROR_NOT_SUPPORTED;
        }
        Call shape = {nullptr,
                      nullptr,
                      "",
                      {config->gridDimX, config->gridDimY, config->gridDimZ},
                      {config->blockDimX, config->blockDimY, config->blockDimZ},
                      config->sharedMemBytes,
                      nullptr};
        return launch(lock, context, function, config->hStream, shape, parameters);
    });
}
