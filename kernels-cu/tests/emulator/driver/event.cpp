// Events: the place in a stream where they were last recorded.
#include "calls.h"

namespace takt_emulated_driver {
namespace {

CUresult record(CUevent event_handle, CUstream stream_handle, Context& context) {
    std::shared_ptr<Event> event = find(device().events, event_handle);
    std::shared_ptr<Stream> stream;
    CUresult result = find_stream(stream_handle, context, &stream);
    if (result != CUDA_SUCCESS) return result;
    if (event == nullptr || event->context->root != stream->context->root) return CUDA_ERROR_INVALID_HANDLE;
    result = refuse_implicit_capture(*stream);
    if (result != CUDA_SUCCESS) return result;
    event->capture = stream->capture;
    event->frontier = stream->frontier;
    event->completion = stream->capture != nullptr ? nullptr : enqueue(stream, {}, nullptr);
    return CUDA_SUCCESS;
}

// An event whose end the host asks for.
CUresult find_event(CUevent handle, std::shared_ptr<Event>* found) {
    *found = find(device().events, handle);
    if (*found == nullptr) return CUDA_ERROR_INVALID_HANDLE;
    if ((*found)->capture == nullptr) return refuse_during_capture();
    invalidate(*(*found)->capture);
    return CUDA_ERROR_CAPTURED_EVENT;
}

}  // namespace
}  // namespace takt_emulated_driver

using namespace takt_emulated_driver;

EXPORTED CUresult cuEventCreate(CUevent* made, unsigned flags) {
    return in_context(__func__, [&](Lock&, Context&) {
        if (made == nullptr || flags > 7) return CUDA_ERROR_INVALID_VALUE;
        std::shared_ptr<Event> event = std::make_shared<Event>();
        event->context = current_context();
        event->timed = (flags & CU_EVENT_DISABLE_TIMING) == 0;
        uintptr_t handle = device().new_handle();
        device().events[handle] = event;
        *made = as_handle<CUevent>(handle);
        return CUDA_SUCCESS;
    });
}

EXPORTED CUresult cuEventDestroy_v2(CUevent handle) {
    return in_context(__func__, [&](Lock&, Context&) {
        return device().events.erase(reinterpret_cast<uintptr_t>(handle)) == 1 ? CUDA_SUCCESS : CUDA_ERROR_INVALID_HANDLE;
    });
}

EXPORTED CUresult cuEventRecord(CUevent handle, CUstream stream) {
    return in_context(__func__, [&](Lock&, Context& context) { return record(handle, stream, context); });
}

EXPORTED CUresult cuEventRecordWithFlags(CUevent handle, CUstream stream, unsigned flags) {
    return in_context(__func__, [&](Lock&, Context& context) {
        if (flags == CU_EVENT_RECORD_EXTERNAL) return CUDA_ERROR_NOT_SUPPORTED;
        return flags != 0 ? CUDA_ERROR_INVALID_VALUE : record(handle, stream, context);
    });
}

EXPORTED CUresult cuEventQuery(CUevent handle) {
    return in_context(__func__, [&](Lock&, Context&) {
        std::shared_ptr<Event> event;
        CUresult result = find_event(handle, &event);
        if (result != CUDA_SUCCESS) return result;
        return event->completion == nullptr || event->completion->done ? CUDA_SUCCESS : CUDA_ERROR_NOT_READY;
    });
}

EXPORTED CUresult cuEventSynchronize(CUevent handle) {
    return in_context(__func__, [&](Lock& lock, Context&) {
        std::shared_ptr<Event> event;
        CUresult result = find_event(handle, &event);
        if (result != CUDA_SUCCESS || event->completion == nullptr) return result;
        result = wait_for(lock, *event->context, {event->completion});
        return result != CUDA_SUCCESS ? result : check_guards(*event->context->root);
    });
}

EXPORTED CUresult cuEventElapsedTime_v2(float* milliseconds, CUevent start_handle, CUevent end_handle) {
    return in_context(__func__, [&](Lock&, Context&) {
        std::shared_ptr<Event> start = find(device().events, start_handle), end = find(device().events, end_handle);
        if (milliseconds == nullptr) return CUDA_ERROR_INVALID_VALUE;
        if (start == nullptr || end == nullptr || !start->timed || !end->timed) return CUDA_ERROR_INVALID_HANDLE;
        if (start->completion == nullptr || end->completion == nullptr) return CUDA_ERROR_INVALID_HANDLE;
        if (!start->completion->done || !end->completion->done) return CUDA_ERROR_NOT_READY;
        *milliseconds = std::chrono::duration<float, std::milli>(end->completion->at - start->completion->at).count();
        return CUDA_SUCCESS;
    });
}
