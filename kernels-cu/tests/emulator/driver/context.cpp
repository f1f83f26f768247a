// Contexts: created ones, the primary one, and the calling thread's stack of them.
#include <stdio.h>

#include <algorithm>

#include "calls.h"

namespace takt_emulated_driver {
namespace {

thread_local std::vector<std::shared_ptr<Context>> stack;

uint64_t count(const Context& root, Allocation::Kind kind) {
    uint64_t found = 0;
    for (const auto& entry : device().allocations) found += entry.second.root == &root && entry.second.kind == kind;
    return found;
}

template <typename T, typename Belongs>
uint64_t remove(Table<T>& table, Belongs belongs) {
    uint64_t removed = 0;
    for (auto entry = table.begin(); entry != table.end();) {
        bool gone = belongs(*entry->second);
        entry = gone ? table.erase(entry) : std::next(entry);
        removed += gone;
    }
    return removed;
}

void count_what_is_left(const Context& root) {
    Left& left = device().left;
    left.device_allocations += count(root, Allocation::Kind::device);
    left.host_allocations += count(root, Allocation::Kind::pinned) + count(root, Allocation::Kind::registered);
    left.streams += remove(device().streams, [&](const Stream& stream) { return stream.context->root == &root; });
    left.events += remove(device().events, [&](const Event& event) { return event.context->root == &root; });
    remove(device().functions, [&](const Function& function) { return function.module->root == &root; });
    left.modules += remove(device().modules, [&](const Module& module) { return module.root == &root; });
}

CUresult create(CUcontext* made, unsigned flags, CUdevice on) {
    if (made == nullptr || (flags & ~CU_CTX_FLAGS_MASK) != 0) return CUDA_ERROR_INVALID_VALUE;
    if (on != 0) return CUDA_ERROR_INVALID_DEVICE;
    std::shared_ptr<Context> context = new_context(Context::Kind::created, flags);
    stack.push_back(context);
    *made = as_handle<CUcontext>(context->handle);
    return CUDA_SUCCESS;
}

// Null for the handle 0.
CUresult find_context(CUcontext handle, std::shared_ptr<Context>* found) {
    *found = find(device().contexts, handle);
    if (handle == nullptr) return CUDA_SUCCESS;
    if (*found == nullptr) return CUDA_ERROR_INVALID_CONTEXT;
    return (*found)->destroyed ? CUDA_ERROR_CONTEXT_IS_DESTROYED : CUDA_SUCCESS;
}

// What was retained stays so: the next to retain finds a new primary context.
void end_primary(Lock& lock) {
    std::shared_ptr<Context> primary;
    primary.swap(device().primary);
    if (primary != nullptr) destroy_root(lock, primary);
}

void pop_if_current(const Context* context) {
    if (!stack.empty() && stack.back().get() == context) stack.pop_back();
}

}  // namespace

std::shared_ptr<Context> current_context() { return stack.empty() ? nullptr : stack.back(); }

CUresult usable(const Context* context) {
    if (context == nullptr) return CUDA_ERROR_INVALID_CONTEXT;
    if (context->destroyed || context->root->destroyed) return CUDA_ERROR_CONTEXT_IS_DESTROYED;
    return context->root->sticky;
}

std::shared_ptr<Context> new_context(Context::Kind kind, unsigned flags) {
    Device& d = device();
    std::shared_ptr<Context> context = std::make_shared<Context>();
    context->kind = kind;
    context->flags = flags;
    context->num_sm = d.model.num_sm;
    context->handle = d.new_handle();
    d.contexts[context->handle] = context;
    if (kind == Context::Kind::green) {
        context->primary = retain_primary();
        context->root = context->primary.get();
        return context;
    }
    context->root = context.get();
    context->legacy = new_stream(context, 0, 0);
    context->legacy->legacy = true;
    return context;
}

std::shared_ptr<Context> retain_primary() {
    Device& d = device();
    d.primary_retained++;
    if (d.primary == nullptr) d.primary = new_context(Context::Kind::primary, 0);
    return d.primary;
}

void release_primary(Lock& lock) {
    if (--device().primary_retained == 0) end_primary(lock);
}

void destroy_root(Lock& lock, const std::shared_ptr<Context>& context) {
    context->destroyed = true;
    std::vector<std::thread> workers;
    workers.swap(context->workers);
    device().changed.notify_all();
    lock.unlock();
    for (std::thread& worker : workers) worker.join();
    lock.lock();
    check_guards(*context);
    count_what_is_left(*context);
    free_all(*context);
    context->streams.clear();
    context->legacy.reset();
}

void fail_context(Context& root, CUresult result, const std::string& message) {
    fprintf(stderr, "emulated CUDA device: %s\n", message.c_str());
    device().last_message = message;
    if (root.sticky == CUDA_SUCCESS) root.sticky = result;
    device().changed.notify_all();
}

}  // namespace takt_emulated_driver

using namespace takt_emulated_driver;

EXPORTED CUresult cuCtxCreate_v2(CUcontext* made, unsigned flags, CUdevice on) {
    return on_device(__func__, [&](Lock&) { return create(made, flags, on); });
}

EXPORTED CUresult cuCtxCreate_v4(CUcontext* made, CUctxCreateParams* parameters, unsigned flags, CUdevice on) {
    // Execution affinity and CUDA in Graphics are not emulated.
    return on_device(__func__, [&](Lock&) { return parameters != nullptr ? CUDA_ERROR_NOT_SUPPORTED : create(made, flags, on); });
}

EXPORTED CUresult cuCtxDestroy_v2(CUcontext handle) {
    return on_device(__func__, [&](Lock& lock) {
        std::shared_ptr<Context> context;
        CUresult result = find_context(handle, &context);
        if (result != CUDA_SUCCESS) return result;
        if (context == nullptr || context->kind != Context::Kind::created) return CUDA_ERROR_INVALID_CONTEXT;
        pop_if_current(context.get());
        destroy_root(lock, context);
        return CUDA_SUCCESS;
    });
}

EXPORTED CUresult cuDevicePrimaryCtxRetain(CUcontext* found, CUdevice on) {
    return on_device(__func__, [&](Lock&) {
        if (found == nullptr) return CUDA_ERROR_INVALID_VALUE;
        if (on != 0) return CUDA_ERROR_INVALID_DEVICE;
        *found = as_handle<CUcontext>(retain_primary()->handle);
        return CUDA_SUCCESS;
    });
}

EXPORTED CUresult cuDevicePrimaryCtxRelease_v2(CUdevice on) {
    return on_device(__func__, [&](Lock& lock) {
        if (on != 0) return CUDA_ERROR_INVALID_DEVICE;
        if (device().primary_retained == 0) return CUDA_ERROR_INVALID_CONTEXT;
        release_primary(lock);
        return CUDA_SUCCESS;
    });
}

EXPORTED CUresult cuDevicePrimaryCtxReset_v2(CUdevice on) {
    return on_device(__func__, [&](Lock& lock) {
        if (on != 0) return CUDA_ERROR_INVALID_DEVICE;
        end_primary(lock);
        return CUDA_SUCCESS;
    });
}

EXPORTED CUresult cuDevicePrimaryCtxGetState(CUdevice on, unsigned* flags, int* active) {
    return on_device(__func__, [&](Lock&) {
        if (on != 0) return CUDA_ERROR_INVALID_DEVICE;
        if (flags == nullptr || active == nullptr) return CUDA_ERROR_INVALID_VALUE;
        *active = device().primary != nullptr;
        *flags = device().primary != nullptr ? device().primary->flags : 0;
        return CUDA_SUCCESS;
    });
}

EXPORTED CUresult cuCtxSetCurrent(CUcontext handle) {
    return on_device(__func__, [&](Lock&) {
        std::shared_ptr<Context> context;
        CUresult result = find_context(handle, &context);
        if (result != CUDA_SUCCESS) return result;
        if (!stack.empty()) stack.pop_back();
        if (context != nullptr) stack.push_back(context);
        return CUDA_SUCCESS;
    });
}

EXPORTED CUresult cuCtxGetCurrent(CUcontext* found) {
    return on_device(__func__, [&](Lock&) {
        if (found == nullptr) return CUDA_ERROR_INVALID_VALUE;
        *found = stack.empty() ? nullptr : as_handle<CUcontext>(stack.back()->handle);
        return CUDA_SUCCESS;
    });
}

EXPORTED CUresult cuCtxPushCurrent_v2(CUcontext handle) {
    return on_device(__func__, [&](Lock&) {
        std::shared_ptr<Context> context;
        CUresult result = find_context(handle, &context);
        if (result != CUDA_SUCCESS) return result;
        if (context == nullptr) return CUDA_ERROR_INVALID_CONTEXT;
        stack.push_back(context);
        return CUDA_SUCCESS;
    });
}

EXPORTED CUresult cuCtxPopCurrent_v2(CUcontext* popped) {
    return on_device(__func__, [&](Lock&) {
        if (stack.empty()) return CUDA_ERROR_INVALID_CONTEXT;
        if (popped != nullptr) *popped = as_handle<CUcontext>(stack.back()->handle);
        stack.pop_back();
        return CUDA_SUCCESS;
    });
}

EXPORTED CUresult cuCtxGetDevice(CUdevice* found) {
    return in_context(__func__, [&](Lock&, Context&) {
        if (found == nullptr) return CUDA_ERROR_INVALID_VALUE;
        *found = 0;
        return CUDA_SUCCESS;
    });
}

EXPORTED CUresult cuCtxGetFlags(unsigned* flags) {
    return in_context(__func__, [&](Lock&, Context& context) {
        if (flags == nullptr) return CUDA_ERROR_INVALID_VALUE;
        *flags = context.root->flags;
        return CUDA_SUCCESS;
    });
}

EXPORTED CUresult cuCtxSetFlags(unsigned flags) {
    return in_context(__func__, [&](Lock&, Context& context) {
        if ((flags & ~CU_CTX_FLAGS_MASK) != 0) return CUDA_ERROR_INVALID_VALUE;
        context.root->flags = flags;
        return CUDA_SUCCESS;
    });
}

EXPORTED CUresult cuCtxGetStreamPriorityRange(int* least, int* greatest) {
    return in_context(__func__, [&](Lock&, Context&) {
        if (least != nullptr) *least = 0;
        if (greatest != nullptr) *greatest = -5;
        return CUDA_SUCCESS;
    });
}

EXPORTED CUresult cuCtxSynchronize() {
    return outside_capture(__func__, [&](Lock& lock, Context& context) {
        CUresult result = wait_for(lock, context, pending(context));
        return result != CUDA_SUCCESS ? result : check_guards(*context.root);
    });
}
