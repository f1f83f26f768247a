// Copies and fills, with the synchronization that "API synchronization behavior" of the driver's manual gives each.
#include <string.h>

#include "calls.h"

namespace takt_emulated_driver {
namespace {

// Where bytes go or come from. Pageable memory is the host's, and staged: `staged` holds its bytes.
struct End {
    enum class Kind { device, pinned, staged } kind;
    uintptr_t address;
    size_t bytes;
    std::shared_ptr<std::vector<unsigned char>> staged;

    void* find(const Context& root) const {
        if (kind == Kind::staged) return staged != nullptr ? staged->data() : reinterpret_cast<void*>(address);
        bool live = kind == Kind::device ? find_device_range(root, address, bytes) : find_pinned_range(address, bytes);
        return live ? reinterpret_cast<void*>(address) : nullptr;
    }
};

CUresult copy_now(Context& root, const End& to, const End& from) {
    Lock lock(device().mutex);
    void* destination = to.find(root);
    const void* source = from.find(root);
    if (destination == nullptr || source == nullptr) {
        fail_context(root, CUDA_ERROR_ILLEGAL_ADDRESS, "a copy to or from memory that was freed since it was submitted");
        return CUDA_ERROR_ILLEGAL_ADDRESS;
    }
    bool from_device = from.kind == End::Kind::device, to_device = to.kind == End::Kind::device;
    if (from_device && !to_device) device().bytes_to_host += to.bytes;
    if (to_device && !from_device) device().bytes_to_device += to.bytes;
    lock.unlock();
    memmove(destination, source, to.bytes);
    return CUDA_SUCCESS;
}

Work copy_work(Context& context, End to, End from) {
    Context* root = context.root;
    return {CU_GRAPH_NODE_TYPE_MEMCPY, [root, to, from](Fault) { return copy_now(*root, to, from); }};
}

End device_end(CUdeviceptr address, size_t bytes) { return {End::Kind::device, uintptr_t(address), bytes, nullptr}; }

End host_end(const void* address, size_t bytes) {
    uintptr_t first = reinterpret_cast<uintptr_t>(address);
    return {find_pinned_range(first, bytes) ? End::Kind::pinned : End::Kind::staged, first, bytes, nullptr};
}

// Whether a copy between the device and the host is one.
CUresult check(const Context& context, CUdeviceptr device_address, const void* host, size_t bytes) {
    if (find_device_range(*context.root, uintptr_t(device_address), bytes) == nullptr || host == nullptr) return CUDA_ERROR_INVALID_VALUE;
    const Allocation* on_device = find_device_range(*context.root, reinterpret_cast<uintptr_t>(host), 1);
    return on_device != nullptr && on_device->kind == Allocation::Kind::device ? CUDA_ERROR_INVALID_VALUE : CUDA_SUCCESS;
}

CUresult finish(Lock& lock, const std::shared_ptr<Stream>& stream) { return wait_for(lock, *stream->context, {stream->last}); }

// A graph would read or write pageable memory at each launch, through staging nobody sees: refused here, more strictly than by CUDA.
CUresult refuse_pageable_in_capture(const Stream& stream, const End& host) {
    return host.kind == End::Kind::staged ? refuse_captured(stream) : CUDA_SUCCESS;
}

CUresult to_device(Lock& lock, Context& context, const std::shared_ptr<Stream>& stream, CUdeviceptr to, const void* from, size_t bytes) {
    CUresult result = bytes == 0 ? CUDA_SUCCESS : check(context, to, from, bytes);
    if (bytes == 0 || result != CUDA_SUCCESS) return result;
    End source = host_end(from, bytes);
    result = refuse_pageable_in_capture(*stream, source);
    if (result != CUDA_SUCCESS) return result;
    if (source.kind == End::Kind::staged) {
        const unsigned char* first = static_cast<const unsigned char*>(from);
        source.staged = std::make_shared<std::vector<unsigned char>>(first, first + bytes);
    }
    return submit(lock, stream, copy_work(context, device_end(to, bytes), source));
}

CUresult to_host(Lock& lock, Context& context, const std::shared_ptr<Stream>& stream, void* to, CUdeviceptr from, size_t bytes, bool wait) {
    CUresult result = bytes == 0 ? CUDA_SUCCESS : check(context, from, to, bytes);
    if (bytes == 0 || result != CUDA_SUCCESS) return result;
    End destination = host_end(to, bytes);
    result = refuse_pageable_in_capture(*stream, destination);
    if (result != CUDA_SUCCESS) return result;
    result = submit(lock, stream, copy_work(context, destination, device_end(from, bytes)));
    bool waits = wait || destination.kind == End::Kind::staged;
    return result == CUDA_SUCCESS && waits ? finish(lock, stream) : result;
}

CUresult within_device(Lock& lock, Context& context, const std::shared_ptr<Stream>& stream, CUdeviceptr to, CUdeviceptr from,
                       size_t bytes) {
    if (bytes == 0) return CUDA_SUCCESS;
    bool live = find_device_range(*context.root, uintptr_t(to), bytes) && find_device_range(*context.root, uintptr_t(from), bytes);
    // What a GPU makes of ranges that overlap is undefined: refused here, more strictly than by CUDA.
    bool overlap = to < from + bytes && from < to + bytes;
    if (!live || overlap) return CUDA_ERROR_INVALID_VALUE;
    return submit(lock, stream, copy_work(context, device_end(to, bytes), device_end(from, bytes)));
}

template <typename T>
CUresult fill(Lock& lock, Context& context, const std::shared_ptr<Stream>& stream, CUdeviceptr to, T value, size_t count) {
    if (count == 0) return CUDA_SUCCESS;
    if (count > SIZE_MAX / sizeof(T) || to % sizeof(T) != 0) return CUDA_ERROR_INVALID_VALUE;
    if (find_device_range(*context.root, uintptr_t(to), count * sizeof(T)) == nullptr) return CUDA_ERROR_INVALID_VALUE;
    End pattern = {End::Kind::staged, 0, count * sizeof(T), std::make_shared<std::vector<unsigned char>>(count * sizeof(T))};
    T* values = reinterpret_cast<T*>(pattern.staged->data());
    for (size_t idx = 0; idx < count; idx++) values[idx] = value;
    Work work = copy_work(context, device_end(to, pattern.bytes), pattern);
    work.type = CU_GRAPH_NODE_TYPE_MEMSET;
    return submit(lock, stream, std::move(work));
}

// Calls `body` with the stream of a handle.
template <typename Body>
CUresult with_stream(const char* name, CUstream handle, Body body) {
    return in_context(name, [&](Lock& lock, Context& context) {
        std::shared_ptr<Stream> stream;
        CUresult result = find_stream(handle, context, &stream);
        return result != CUDA_SUCCESS ? result : body(lock, context, stream);
    });
}

}  // namespace
}  // namespace takt_emulated_driver

using namespace takt_emulated_driver;
typedef std::shared_ptr<Stream> StreamRef;

// Returns once pageable memory is staged: the copy itself may still be under way, and streams that do not wait for the legacy stream do
// not wait for it.
EXPORTED CUresult cuMemcpyHtoD_v2(CUdeviceptr to, const void* from, size_t bytes) {
    return outside_capture(__func__, [&](Lock& lock, Context& context) {
        StreamRef stream = context.legacy;
        enqueue(stream, {}, nullptr);
        CUresult result = finish(lock, stream);
        if (result == CUDA_SUCCESS) result = to_device(lock, context, stream, to, from, bytes);
        bool pinned = find_pinned_range(reinterpret_cast<uintptr_t>(from), bytes) != nullptr;
        return result == CUDA_SUCCESS && pinned ? finish(lock, stream) : result;
    });
}

EXPORTED CUresult cuMemcpyDtoH_v2(void* to, CUdeviceptr from, size_t bytes) {
    return outside_capture(__func__, [&](Lock& lock, Context& context) {
        StreamRef stream = context.legacy;
        return to_host(lock, context, stream, to, from, bytes, true);
    });
}

EXPORTED CUresult cuMemcpyDtoD_v2(CUdeviceptr to, CUdeviceptr from, size_t bytes) {
    return outside_capture(__func__, [&](Lock& lock, Context& context) {
        return within_device(lock, context, context.legacy, to, from, bytes);
    });
}

EXPORTED CUresult cuMemcpyHtoDAsync_v2(CUdeviceptr to, const void* from, size_t bytes, CUstream handle) {
    return with_stream(__func__, handle, [&](Lock& lock, Context& context, const StreamRef& stream) {
        return to_device(lock, context, stream, to, from, bytes);
    });
}

EXPORTED CUresult cuMemcpyDtoHAsync_v2(void* to, CUdeviceptr from, size_t bytes, CUstream handle) {
    return with_stream(__func__, handle, [&](Lock& lock, Context& context, const StreamRef& stream) {
        return to_host(lock, context, stream, to, from, bytes, false);
    });
}

EXPORTED CUresult cuMemcpyDtoDAsync_v2(CUdeviceptr to, CUdeviceptr from, size_t bytes, CUstream handle) {
    return with_stream(__func__, handle, [&](Lock& lock, Context& context, const StreamRef& stream) {
        return within_device(lock, context, stream, to, from, bytes);
    });
}

EXPORTED CUresult cuMemsetD8_v2(CUdeviceptr to, unsigned char value, size_t count) {
    return outside_capture(__func__, [&](Lock& lock, Context& context) { return fill(lock, context, context.legacy, to, value, count); });
}

EXPORTED CUresult cuMemsetD32_v2(CUdeviceptr to, unsigned value, size_t count) {
    return outside_capture(__func__, [&](Lock& lock, Context& context) { return fill(lock, context, context.legacy, to, value, count); });
}

EXPORTED CUresult cuMemsetD8Async(CUdeviceptr to, unsigned char value, size_t count, CUstream handle) {
    return with_stream(__func__, handle, [&](Lock& lock, Context& context, const StreamRef& stream) {
        return fill(lock, context, stream, to, value, count);
    });
}

EXPORTED CUresult cuMemsetD32Async(CUdeviceptr to, unsigned value, size_t count, CUstream handle) {
    return with_stream(__func__, handle, [&](Lock& lock, Context& context, const StreamRef& stream) {
        return fill(lock, context, stream, to, value, count);
    });
}
