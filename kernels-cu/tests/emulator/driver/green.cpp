// Green contexts: a part of the multiprocessors, as a context of its own in the primary one.
#include <string.h>

#include <algorithm>

#include "calls.h"

namespace takt_emulated_driver {
namespace {

// What a resource hides in its padding: who made it, and in which split.
struct Mark {
    uint64_t maker;
    uint64_t split;
};
constexpr uint64_t MAKER = 0x74616b7465737321;

CUdevResource sm_resource(unsigned num_sm, uint64_t split) {
    CUdevResource made;
    memset(&made, 0, sizeof made);
    Mark mark = {MAKER, split};
    memcpy(made._internal_padding, &mark, sizeof mark);
    if (num_sm == 0) return made;
    made.type = CU_DEV_RESOURCE_TYPE_SM;
    made.sm.smCount = num_sm;
    made.sm.minSmPartitionSize = device().model.min_partition_sm;
    made.sm.smCoscheduledAlignment = device().model.partition_step_sm;
    return made;
}

CUresult mark_of(const CUdevResource& resource, Mark* mark) {
    if (resource.type != CU_DEV_RESOURCE_TYPE_SM) return CUDA_ERROR_INVALID_RESOURCE_TYPE;
    memcpy(mark, resource._internal_padding, sizeof *mark);
    return mark->maker == MAKER ? CUDA_SUCCESS : CUDA_ERROR_INVALID_VALUE;
}

unsigned group_size(unsigned flags, unsigned min_count) {
    bool fine = (flags & CU_DEV_SM_RESOURCE_SPLIT_IGNORE_SM_COSCHEDULING) != 0;
    unsigned least = fine ? 2 : device().model.min_partition_sm, step = fine ? 2 : device().model.partition_step_sm;
    return (std::max(min_count, least) + step - 1) / step * step;
}

std::shared_ptr<Context> green(CUgreenCtx handle) {
    std::shared_ptr<Context> found = find(device().contexts, handle);
    return found != nullptr && found->kind == Context::Kind::green ? found : nullptr;
}

}  // namespace
}  // namespace takt_emulated_driver

using namespace takt_emulated_driver;

EXPORTED CUresult cuDeviceGetDevResource(CUdevice of, CUdevResource* resource, CUdevResourceType type) {
    return on_device(__func__, [&](Lock&) {
        if (of != 0) return CUDA_ERROR_INVALID_DEVICE;
        if (resource == nullptr) return CUDA_ERROR_INVALID_VALUE;
        if (type != CU_DEV_RESOURCE_TYPE_SM) return CUDA_ERROR_INVALID_RESOURCE_TYPE;
        *resource = sm_resource(device().model.num_sm, 0);
        return CUDA_SUCCESS;
    });
}

EXPORTED CUresult cuGreenCtxGetDevResource(CUgreenCtx handle, CUdevResource* resource, CUdevResourceType type) {
    return on_device(__func__, [&](Lock&) {
        std::shared_ptr<Context> context = green(handle);
        if (context == nullptr) return CUDA_ERROR_INVALID_CONTEXT;
        if (resource == nullptr) return CUDA_ERROR_INVALID_VALUE;
        if (type != CU_DEV_RESOURCE_TYPE_SM) return CUDA_ERROR_INVALID_RESOURCE_TYPE;
        *resource = sm_resource(context->num_sm, 0);
        return CUDA_SUCCESS;
    });
}

EXPORTED CUresult cuDevSmResourceSplitByCount(CUdevResource* result, unsigned* num_groups, const CUdevResource* input,
                                              CUdevResource* remaining, unsigned flags, unsigned min_count) {
    return on_device(__func__, [&](Lock&) {
        if (num_groups == nullptr || input == nullptr) return CUDA_ERROR_INVALID_VALUE;
        Mark mark = {};
        CUresult valid = mark_of(*input, &mark);
        if (valid != CUDA_SUCCESS) return valid;
        if (mark.split != 0 || min_count > input->sm.smCount) return CUDA_ERROR_INVALID_VALUE;
        unsigned size = group_size(flags, min_count), possible = input->sm.smCount / size;
        if (possible == 0) return CUDA_ERROR_INVALID_RESOURCE_CONFIGURATION;
        unsigned groups = result == nullptr ? possible : std::min(*num_groups, possible);
        uint64_t split = ++device().num_resource_splits;
        for (unsigned group = 0; result != nullptr && group < groups; group++) result[group] = sm_resource(size, split);
        if (remaining != nullptr) *remaining = sm_resource(input->sm.smCount - groups * size, split);
        *num_groups = groups;
        return CUDA_SUCCESS;
    });
}

EXPORTED CUresult cuDevResourceGenerateDesc(CUdevResourceDesc* description, CUdevResource* resources, unsigned num_resources) {
    return on_device(__func__, [&](Lock&) {
        if (description == nullptr || resources == nullptr || num_resources == 0) return CUDA_ERROR_INVALID_VALUE;
        unsigned num_sm = 0;
        Mark first = {};
        for (unsigned idx = 0; idx < num_resources; idx++) {
            Mark mark = {};
            CUresult valid = mark_of(resources[idx], &mark);
            if (valid != CUDA_SUCCESS) return valid;
            if (idx == 0) first = mark;
            if (mark.split != first.split) return CUDA_ERROR_INVALID_RESOURCE_CONFIGURATION;
            num_sm += resources[idx].sm.smCount;
        }
        uintptr_t handle = device().new_handle();
        device().resource_descriptions[handle] = std::make_shared<unsigned>(num_sm);
        *description = as_handle<CUdevResourceDesc>(handle);
        return CUDA_SUCCESS;
    });
}

EXPORTED CUresult cuGreenCtxCreate(CUgreenCtx* made, CUdevResourceDesc description, CUdevice on, unsigned flags) {
    return on_device(__func__, [&](Lock&) {
        std::shared_ptr<unsigned> num_sm = find(device().resource_descriptions, description);
        if (on != 0) return CUDA_ERROR_INVALID_DEVICE;
        if (made == nullptr || num_sm == nullptr || flags != CU_GREEN_CTX_DEFAULT_STREAM) return CUDA_ERROR_INVALID_VALUE;
        std::shared_ptr<Context> context = new_context(Context::Kind::green, 0);
        context->num_sm = *num_sm;
        context->legacy = new_stream(context, 0, 0);
        context->legacy->legacy = true;
        *made = as_handle<CUgreenCtx>(context->handle);
        return CUDA_SUCCESS;
    });
}

EXPORTED CUresult cuGreenCtxDestroy(CUgreenCtx handle) {
    return on_device(__func__, [&](Lock& lock) {
        std::shared_ptr<Context> context = green(handle);
        if (context == nullptr) return CUDA_ERROR_INVALID_CONTEXT;
        if (context->destroyed) return CUDA_ERROR_CONTEXT_IS_DESTROYED;
        // Its streams stay, useless, as leaks: see cuGreenCtxDestroy's documentation.
        context->destroyed = true;
        context->legacy->closing = true;
        device().changed.notify_all();
        release_primary(lock);
        return CUDA_SUCCESS;
    });
}

EXPORTED CUresult cuCtxFromGreenCtx(CUcontext* found, CUgreenCtx handle) {
    return on_device(__func__, [&](Lock&) {
        std::shared_ptr<Context> context = green(handle);
        if (found == nullptr) return CUDA_ERROR_INVALID_VALUE;
        if (context == nullptr || context->destroyed) return CUDA_ERROR_INVALID_CONTEXT;
        *found = as_handle<CUcontext>(context->handle);
        return CUDA_SUCCESS;
    });
}

EXPORTED CUresult cuGreenCtxStreamCreate(CUstream* made, CUgreenCtx handle, unsigned flags, int priority) {
    return on_device(__func__, [&](Lock&) {
        std::shared_ptr<Context> context = green(handle);
        if (context == nullptr) return CUDA_ERROR_INVALID_CONTEXT;
        CUresult result = usable(context.get());
        if (result != CUDA_SUCCESS) return result;
        if (made == nullptr || flags != CU_STREAM_NON_BLOCKING) return CUDA_ERROR_INVALID_VALUE;
        std::shared_ptr<Stream> stream = new_stream(context, flags, priority);
        device().streams[stream->handle] = stream;
        *made = as_handle<CUstream>(stream->handle);
        return CUDA_SUCCESS;
    });
}
