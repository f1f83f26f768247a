// Stream capture: what is submitted to a stream becomes nodes of a graph.
#include <algorithm>

#include "calls.h"

namespace takt_emulated_driver {
namespace {

thread_local CUstreamCaptureMode thread_mode = CU_STREAM_CAPTURE_MODE_GLOBAL;

void merge(NodeList& into, const NodeList& other) {
    for (size_t node : other) {
        if (std::find(into.begin(), into.end(), node) == into.end()) into.push_back(node);
    }
}

// Whether a capture forbids the calling thread calls that it would not see: cuThreadExchangeStreamCaptureMode's rules.
bool forbids(const Capture& capture) {
    if (capture.ended || capture.mode == CU_STREAM_CAPTURE_MODE_RELAXED || thread_mode == CU_STREAM_CAPTURE_MODE_RELAXED) return false;
    if (capture.thread == std::this_thread::get_id()) return true;
    return thread_mode == CU_STREAM_CAPTURE_MODE_GLOBAL && capture.mode == CU_STREAM_CAPTURE_MODE_GLOBAL;
}

// Whether the origin's last nodes come after all that its other streams captured.
bool is_joined(const Capture& capture) {
    const Nodes& nodes = capture.graph->nodes;
    std::vector<bool> before(nodes.size());
    NodeList open = capture.origin->frontier;
    while (!open.empty()) {
        size_t node = open.back();
        open.pop_back();
        if (before[node]) continue;
        before[node] = true;
        open.insert(open.end(), nodes[node]->after.begin(), nodes[node]->after.end());
    }
    return std::all_of(capture.streams.begin(), capture.streams.end(), [&](const auto& stream) {
        return std::all_of(stream->frontier.begin(), stream->frontier.end(), [&](size_t node) { return before[node]; });
    });
}

void end(Capture& capture) {
    capture.ended = true;
    for (const auto& stream : capture.streams) {
        stream->capture.reset();
        stream->frontier.clear();
    }
    capture.streams.clear();
}

CUresult finish(const std::shared_ptr<Stream>& stream, CUgraph* made) {
    std::shared_ptr<Capture> capture = stream->capture;
    if (capture == nullptr) return CUDA_ERROR_ILLEGAL_STATE;
    if (capture->origin != stream.get()) return invalidate(*capture), CUDA_ERROR_STREAM_CAPTURE_UNMATCHED;
    bool other_thread = capture->thread != std::this_thread::get_id();
    if (other_thread && capture->mode != CU_STREAM_CAPTURE_MODE_RELAXED) return CUDA_ERROR_STREAM_CAPTURE_WRONG_THREAD;
    bool joined = is_joined(*capture);
    end(*capture);
    if (capture->invalidated) return CUDA_ERROR_STREAM_CAPTURE_INVALIDATED;
    if (!joined) return CUDA_ERROR_STREAM_CAPTURE_UNJOINED;
    uintptr_t handle = device().new_handle();
    device().graphs[handle] = capture->graph;
    *made = as_handle<CUgraph>(handle);
    return CUDA_SUCCESS;
}

CUresult begin(const std::shared_ptr<Stream>& stream, CUstreamCaptureMode mode) {
    if (int(mode) < 0 || int(mode) > 2) return CUDA_ERROR_INVALID_VALUE;
    if (stream->legacy) return CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED;
    if (stream->capture != nullptr) return CUDA_ERROR_ILLEGAL_STATE;
    std::shared_ptr<Capture> capture = std::make_shared<Capture>();
    capture->origin = stream.get();
    capture->mode = mode;
    capture->thread = std::this_thread::get_id();
    capture->streams.push_back(stream);
    stream->capture = capture;
    auto& all = device().captures;
    all.erase(std::remove_if(all.begin(), all.end(), [](const auto& each) { return each.expired(); }), all.end());
    all.push_back(capture);
    return CUDA_SUCCESS;
}

}  // namespace

void invalidate(Capture& capture) { capture.invalidated = true; }

CUresult refuse_captured(const Stream& stream) {
    if (stream.capture == nullptr) return CUDA_SUCCESS;
    invalidate(*stream.capture);
    return CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED;
}

CUresult refuse_implicit_capture(const Stream& legacy) {
    if (!legacy.legacy) return CUDA_SUCCESS;
    CUresult result = CUDA_SUCCESS;
    for (const auto& stream : legacy.context->root->streams) {
        if (stream->capture == nullptr || !stream->blocking || stream->context != legacy.context) continue;
        invalidate(*stream->capture);
        result = CUDA_ERROR_STREAM_CAPTURE_IMPLICIT;
    }
    return result;
}

CUresult refuse_during_capture() {
    CUresult result = CUDA_SUCCESS;
    for (const auto& each : device().captures) {
        std::shared_ptr<Capture> capture = each.lock();
        if (capture == nullptr || !forbids(*capture)) continue;
        invalidate(*capture);
        result = CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED;
    }
    return result;
}

CUresult record_in_capture(const std::shared_ptr<Stream>& stream, Work work) {
    Capture& capture = *stream->capture;
    if (capture.invalidated) return CUDA_ERROR_STREAM_CAPTURE_INVALIDATED;
    std::shared_ptr<Node> node = std::make_shared<Node>();
    node->handle = device().new_handle();
    node->work = std::move(work);
    node->after = stream->frontier;
    capture.graph->nodes.push_back(node);
    stream->frontier = {capture.graph->nodes.size() - 1};
    return CUDA_SUCCESS;
}

CUresult wait_in_capture(const std::shared_ptr<Stream>& stream, const Event& event) {
    if (event.capture == nullptr) {
        if (event.completion == nullptr) return CUDA_SUCCESS;
        return invalidate(*stream->capture), CUDA_ERROR_STREAM_CAPTURE_ISOLATION;
    }
    if (event.capture->ended) return CUDA_ERROR_CAPTURED_EVENT;
    if (stream->capture == nullptr) {
        if (stream->legacy) return invalidate(*event.capture), CUDA_ERROR_STREAM_CAPTURE_IMPLICIT;
        stream->capture = event.capture;
        event.capture->streams.push_back(stream);
    }
    if (stream->capture != event.capture) {
        invalidate(*stream->capture);
        return invalidate(*event.capture), CUDA_ERROR_STREAM_CAPTURE_MERGE;
    }
    merge(stream->frontier, event.frontier);
    return CUDA_SUCCESS;
}

}  // namespace takt_emulated_driver

using namespace takt_emulated_driver;

EXPORTED CUresult cuStreamBeginCapture_v2(CUstream handle, CUstreamCaptureMode mode) {
    return in_context(__func__, [&](Lock&, Context& context) {
        std::shared_ptr<Stream> stream;
        CUresult result = find_stream(handle, context, &stream);
        return result != CUDA_SUCCESS ? result : begin(stream, mode);
    });
}

EXPORTED CUresult cuStreamEndCapture(CUstream handle, CUgraph* made) {
    return in_context(__func__, [&](Lock&, Context& context) {
        std::shared_ptr<Stream> stream;
        if (made == nullptr) return CUDA_ERROR_INVALID_VALUE;
        *made = nullptr;
        CUresult result = find_stream(handle, context, &stream);
        return result != CUDA_SUCCESS ? result : finish(stream, made);
    });
}

EXPORTED CUresult cuStreamIsCapturing(CUstream handle, CUstreamCaptureStatus* status) {
    return in_context(__func__, [&](Lock&, Context& context) {
        std::shared_ptr<Stream> stream;
        if (status == nullptr) return CUDA_ERROR_INVALID_VALUE;
        CUresult result = find_stream(handle, context, &stream);
        if (result != CUDA_SUCCESS) return result;
        *status = CU_STREAM_CAPTURE_STATUS_NONE;
        if (stream->capture == nullptr) return CUDA_SUCCESS;
        *status = stream->capture->invalidated ? CU_STREAM_CAPTURE_STATUS_INVALIDATED : CU_STREAM_CAPTURE_STATUS_ACTIVE;
        return CUDA_SUCCESS;
    });
}

EXPORTED CUresult cuThreadExchangeStreamCaptureMode(CUstreamCaptureMode* mode) {
    return on_device(__func__, [&](Lock&) {
        if (mode == nullptr || int(*mode) < 0 || int(*mode) > 2) return CUDA_ERROR_INVALID_VALUE;
        std::swap(*mode, thread_mode);
        return CUDA_SUCCESS;
    });
}
