// Streams: each has a thread that does its operations in order, each operation once all it waits for is done.
#include <algorithm>

#include "calls.h"

namespace takt_emulated_driver {
namespace {

bool all_done(const Completions& completions) {
    return std::all_of(completions.begin(), completions.end(), [](const auto& each) { return each->done; });
}

// Whether the stream's thread has something to do.
bool has_turn(const Stream& stream) {
    const Context& root = *stream.context->root;
    if (root.destroyed || (stream.closing && stream.queue.empty())) return true;
    return !stream.queue.empty() && (root.sticky != CUDA_SUCCESS || all_done(stream.queue.front().after));
}

void run_stream(std::shared_ptr<Stream> stream) {
    Device& d = device();
    Context& root = *stream->context->root;
    Lock lock(d.mutex);
    for (;;) {
        d.changed.wait(lock, [&] { return has_turn(*stream); });
        if (root.destroyed || stream->queue.empty()) break;
        Operation operation = std::move(stream->queue.front());
        stream->queue.pop_front();
        if (operation.run && root.sticky == CUDA_SUCCESS) {
            lock.unlock();
            std::this_thread::sleep_for(d.latency);
            CUresult result = operation.run();
            operation.run = nullptr;
            lock.lock();
            if (result != CUDA_SUCCESS && root.sticky == CUDA_SUCCESS) fail_context(root, result, "an operation of a stream failed");
        }
        operation.completion->done = true;
        operation.completion->at = Clock::now();
        d.changed.notify_all();
    }
    for (Operation& dropped : stream->queue) dropped.completion->done = true;
    stream->queue.clear();
    d.changed.notify_all();
}

// What an operation of a stream waits for besides those before it: the legacy stream and the blocking streams wait for each other.
Completions implicitly_before(const Stream& stream) {
    Completions found;
    const Context& context = *stream.context;
    if (!stream.legacy) {
        if (stream.blocking && context.legacy->last != nullptr) found.push_back(context.legacy->last);
        return found;
    }
    for (const auto& other : context.root->streams) {
        if (other->context.get() == &context && other->blocking && other->last != nullptr) found.push_back(other->last);
    }
    return found;
}

CUresult create(CUstream* made, unsigned flags, int priority) {
    if (made == nullptr || (flags & ~CU_STREAM_NON_BLOCKING) != 0) return CUDA_ERROR_INVALID_VALUE;
    std::shared_ptr<Stream> stream = new_stream(current_context(), flags, priority);
    device().streams[stream->handle] = stream;
    *made = as_handle<CUstream>(stream->handle);
    return CUDA_SUCCESS;
}

// Calls `body` with the stream of a handle.
template <typename Body>
CUresult with_stream(const char* name, CUstream handle, Body body) {
    return in_context(name, [&](Lock& lock, Context& context) {
        std::shared_ptr<Stream> stream;
        CUresult result = find_stream(handle, context, &stream);
        return result != CUDA_SUCCESS ? result : body(lock, stream);
    });
}

}  // namespace

std::shared_ptr<Stream> new_stream(const std::shared_ptr<Context>& context, unsigned flags, int priority) {
    std::shared_ptr<Stream> stream = std::make_shared<Stream>();
    stream->handle = device().new_handle();
    stream->context = context;
    stream->blocking = (flags & CU_STREAM_NON_BLOCKING) == 0;
    stream->priority = std::max(-5, std::min(priority, 0));
    Context& root = *context->root;
    auto is_over = [](const auto& other) { return other->closing && (other->last == nullptr || other->last->done); };
    root.streams.erase(std::remove_if(root.streams.begin(), root.streams.end(), is_over), root.streams.end());
    root.streams.push_back(stream);
    root.workers.emplace_back(run_stream, stream);
    return stream;
}

CUresult find_stream(CUstream handle, Context& context, std::shared_ptr<Stream>* found) {
    if (handle == nullptr || handle == CU_STREAM_LEGACY) {
        *found = context.legacy;
        return CUDA_SUCCESS;
    }
    *found = find(device().streams, handle);
    if (*found == nullptr || (*found)->context->root != context.root) return CUDA_ERROR_INVALID_HANDLE;
    return (*found)->context->destroyed ? CUDA_ERROR_CONTEXT_IS_DESTROYED : CUDA_SUCCESS;
}

std::shared_ptr<Completion> enqueue(const std::shared_ptr<Stream>& stream, Completions after, std::function<CUresult()> run) {
    Completions before = implicitly_before(*stream);
    after.insert(after.end(), before.begin(), before.end());
    stream->last = std::make_shared<Completion>();
    stream->queue.push_back({std::move(after), std::move(run), stream->last});
    device().changed.notify_all();
    return stream->last;
}

CUresult submit(Lock&, const std::shared_ptr<Stream>& stream, Work work) {
    if (stream->capture != nullptr) return record_in_capture(stream, std::move(work));
    CUresult result = refuse_implicit_capture(*stream);
    if (result != CUDA_SUCCESS) return result;
    Fault fault = work.type == CU_GRAPH_NODE_TYPE_KERNEL ? next_launch_fault() : Fault::none;
    enqueue(stream, {}, [run = std::move(work.run), fault] { return run(fault); });
    return CUDA_SUCCESS;
}

CUresult wait_for(Lock& lock, Context& context, const Completions& completions) {
    Context& root = *context.root;
    device().changed.wait(lock, [&] { return root.destroyed || root.sticky != CUDA_SUCCESS || all_done(completions); });
    return root.destroyed ? CUDA_ERROR_CONTEXT_IS_DESTROYED : root.sticky;
}

Completions pending(const Context& context) {
    Completions found;
    for (const auto& stream : context.root->streams) {
        bool belongs = context.root == &context || stream->context.get() == &context;
        if (belongs && stream->last != nullptr) found.push_back(stream->last);
    }
    return found;
}

}  // namespace takt_emulated_driver

using namespace takt_emulated_driver;

EXPORTED CUresult cuStreamCreate(CUstream* made, unsigned flags) {
    return in_context(__func__, [&](Lock&, Context&) { return create(made, flags, 0); });
}

EXPORTED CUresult cuStreamCreateWithPriority(CUstream* made, unsigned flags, int priority) {
    return in_context(__func__, [&](Lock&, Context&) { return create(made, flags, priority); });
}

EXPORTED CUresult cuStreamDestroy_v2(CUstream handle) {
    return with_stream(__func__, handle, [&](Lock&, const std::shared_ptr<Stream>& stream) {
        if (stream->legacy) return CUDA_ERROR_INVALID_HANDLE;
        if (stream->capture != nullptr) invalidate(*stream->capture);
        stream->closing = true;
        device().streams.erase(stream->handle);
        device().changed.notify_all();
        return CUDA_SUCCESS;
    });
}

EXPORTED CUresult cuStreamSynchronize(CUstream handle) {
    return with_stream(__func__, handle, [&](Lock& lock, const std::shared_ptr<Stream>& stream) {
        CUresult result = refuse_captured(*stream);
        if (result == CUDA_SUCCESS) result = refuse_during_capture();
        if (result != CUDA_SUCCESS) return result;
        if (stream->legacy) enqueue(stream, {}, nullptr);
        Completions last;
        if (stream->last != nullptr) last.push_back(stream->last);
        result = wait_for(lock, *stream->context, last);
        return result != CUDA_SUCCESS ? result : check_guards(*stream->context->root);
    });
}

EXPORTED CUresult cuStreamQuery(CUstream handle) {
    return with_stream(__func__, handle, [&](Lock&, const std::shared_ptr<Stream>& stream) {
        CUresult result = refuse_captured(*stream);
        if (result == CUDA_SUCCESS) result = refuse_during_capture();
        if (result != CUDA_SUCCESS) return result;
        Completions last = implicitly_before(*stream);
        if (!stream->legacy) last.clear();
        if (stream->last != nullptr) last.push_back(stream->last);
        return all_done(last) ? CUDA_SUCCESS : CUDA_ERROR_NOT_READY;
    });
}

EXPORTED CUresult cuStreamWaitEvent(CUstream handle, CUevent event_handle, unsigned flags) {
    return with_stream(__func__, handle, [&](Lock&, const std::shared_ptr<Stream>& stream) {
        std::shared_ptr<Event> event = find(device().events, event_handle);
        if (flags != 0) return flags == 1 ? CUDA_ERROR_NOT_SUPPORTED : CUDA_ERROR_INVALID_VALUE;
        if (event == nullptr) return CUDA_ERROR_INVALID_HANDLE;
        if (stream->capture != nullptr || event->capture != nullptr) return wait_in_capture(stream, *event);
        if (event->completion != nullptr) enqueue(stream, {event->completion}, nullptr);
        return CUDA_SUCCESS;
    });
}

EXPORTED CUresult cuStreamGetPriority(CUstream handle, int* priority) {
    return with_stream(__func__, handle, [&](Lock&, const std::shared_ptr<Stream>& stream) {
        if (priority == nullptr) return CUDA_ERROR_INVALID_VALUE;
        *priority = stream->priority;
        return CUDA_SUCCESS;
    });
}

EXPORTED CUresult cuStreamGetFlags(CUstream handle, unsigned* flags) {
    return with_stream(__func__, handle, [&](Lock&, const std::shared_ptr<Stream>& stream) {
        if (flags == nullptr) return CUDA_ERROR_INVALID_VALUE;
        *flags = stream->blocking ? 0 : CU_STREAM_NON_BLOCKING;
        return CUDA_SUCCESS;
    });
}

EXPORTED CUresult cuStreamGetCtx(CUstream handle, CUcontext* found) {
    return with_stream(__func__, handle, [&](Lock&, const std::shared_ptr<Stream>& stream) {
        if (found == nullptr) return CUDA_ERROR_INVALID_VALUE;
        *found = as_handle<CUcontext>(stream->context->handle);
        return CUDA_SUCCESS;
    });
}

EXPORTED CUresult cuStreamGetGreenCtx(CUstream handle, CUgreenCtx* found) {
    return with_stream(__func__, handle, [&](Lock&, const std::shared_ptr<Stream>& stream) {
        if (found == nullptr) return CUDA_ERROR_INVALID_VALUE;
        bool green = stream->context->kind == Context::Kind::green;
        *found = green ? as_handle<CUgreenCtx>(stream->context->handle) : nullptr;
        return CUDA_SUCCESS;
    });
}

EXPORTED CUresult cuLaunchHostFunc(CUstream handle, CUhostFn function, void* user_data) {
    return with_stream(__func__, handle, [&](Lock& lock, const std::shared_ptr<Stream>& stream) {
        if (function == nullptr) return CUDA_ERROR_INVALID_VALUE;
        return submit(lock, stream, {CU_GRAPH_NODE_TYPE_HOST, [=](Fault) {
                          function(user_data);
                          return CUDA_SUCCESS;
                      }});
    });
}
