// Graphs: captured work that is launched as one operation of a stream.
#include <algorithm>

#include "calls.h"

namespace takt_emulated_driver {
namespace {

// Runs nodes one after another in an order that their edges allow: of those that are ready the first or the last one, by turns of
// launches, so that an edge that is missing shows.
CUresult run_nodes(const Nodes& nodes, const std::vector<Fault>& faults, bool newest_first) {
    std::vector<bool> done(nodes.size());
    for (size_t count = 0; count < nodes.size(); count++) {
        size_t next = nodes.size();
        for (size_t idx = 0; idx < nodes.size(); idx++) {
            const NodeList& after = nodes[idx]->after;
            bool ready = !done[idx] && std::all_of(after.begin(), after.end(), [&](size_t each) { return done[each]; });
            if (ready && (next == nodes.size() || newest_first)) next = idx;
        }
        CUresult result = nodes[next]->work.run(faults[next]);
        if (result != CUDA_SUCCESS) return result;
        done[next] = true;
    }
    return CUDA_SUCCESS;
}

CUresult instantiate(CUgraphExec* made, CUgraph handle) {
    std::shared_ptr<Graph> graph = find(device().graphs, handle);
    if (made == nullptr || graph == nullptr) return CUDA_ERROR_INVALID_VALUE;
    std::shared_ptr<GraphExec> exec = std::make_shared<GraphExec>();
    exec->nodes = graph->nodes;
    uintptr_t exec_handle = device().new_handle();
    device().graph_execs[exec_handle] = exec;
    *made = as_handle<CUgraphExec>(exec_handle);
    return CUDA_SUCCESS;
}

CUresult launch(const std::shared_ptr<GraphExec>& exec, const std::shared_ptr<Stream>& stream) {
    if (stream->capture != nullptr) return refuse_captured(*stream), CUDA_ERROR_NOT_SUPPORTED;
    CUresult result = refuse_implicit_capture(*stream);
    if (result != CUDA_SUCCESS) return result;
    std::vector<Fault> faults;
    for (const auto& node : exec->nodes) {
        bool is_kernel = node->work.type == CU_GRAPH_NODE_TYPE_KERNEL;
        faults.push_back(is_kernel ? next_launch_fault() : Fault::none);
    }
    Completions after;
    if (exec->last != nullptr) after.push_back(exec->last);
    bool newest_first = exec->newest_first;
    exec->newest_first = !newest_first;
    Nodes nodes = exec->nodes;
    exec->last = enqueue(stream, after, [nodes, faults, newest_first] { return run_nodes(nodes, faults, newest_first); });
    return CUDA_SUCCESS;
}

}  // namespace
}  // namespace takt_emulated_driver

using namespace takt_emulated_driver;

EXPORTED CUresult cuGraphInstantiateWithFlags(CUgraphExec* made, CUgraph graph, unsigned long long flags) {
    return in_context(__func__, [&](Lock&, Context&) { return flags > 15 ? CUDA_ERROR_INVALID_VALUE : instantiate(made, graph); });
}

EXPORTED CUresult cuGraphUpload(CUgraphExec handle, CUstream stream_handle) {
    return in_context(__func__, [&](Lock&, Context& context) {
        std::shared_ptr<Stream> stream;
        if (find(device().graph_execs, handle) == nullptr) return CUDA_ERROR_INVALID_VALUE;
        CUresult result = find_stream(stream_handle, context, &stream);
        if (result != CUDA_SUCCESS) return result;
        enqueue(stream, {}, nullptr);
        return CUDA_SUCCESS;
    });
}

EXPORTED CUresult cuGraphLaunch(CUgraphExec handle, CUstream stream_handle) {
    return in_context(__func__, [&](Lock&, Context& context) {
        std::shared_ptr<GraphExec> exec = find(device().graph_execs, handle);
        std::shared_ptr<Stream> stream;
        if (exec == nullptr) return CUDA_ERROR_INVALID_VALUE;
        CUresult result = find_stream(stream_handle, context, &stream);
        return result != CUDA_SUCCESS ? result : launch(exec, stream);
    });
}

EXPORTED CUresult cuGraphGetNodes(CUgraph handle, CUgraphNode* nodes, size_t* num_nodes) {
    return on_device(__func__, [&](Lock&) {
        std::shared_ptr<Graph> graph = find(device().graphs, handle);
        if (graph == nullptr || num_nodes == nullptr) return CUDA_ERROR_INVALID_VALUE;
        size_t count = graph->nodes.size();
        for (size_t idx = 0; nodes != nullptr && idx < *num_nodes; idx++) {
            nodes[idx] = idx < count ? as_handle<CUgraphNode>(graph->nodes[idx]->handle) : nullptr;
        }
        *num_nodes = nodes == nullptr ? count : std::min(*num_nodes, count);
        return CUDA_SUCCESS;
    });
}

EXPORTED CUresult cuGraphNodeGetType(CUgraphNode handle, CUgraphNodeType* type) {
    return on_device(__func__, [&](Lock&) {
        if (type == nullptr) return CUDA_ERROR_INVALID_VALUE;
        for (const auto& graph : device().graphs) {
            for (const auto& node : graph.second->nodes) {
                if (as_handle<CUgraphNode>(node->handle) == handle) return *type = node->work.type, CUDA_SUCCESS;
            }
        }
        return CUDA_ERROR_INVALID_VALUE;
    });
}

EXPORTED CUresult cuGraphDestroy(CUgraph handle) {
    return on_device(__func__, [&](Lock&) {
        return device().graphs.erase(reinterpret_cast<uintptr_t>(handle)) == 1 ? CUDA_SUCCESS : CUDA_ERROR_INVALID_VALUE;
    });
}

EXPORTED CUresult cuGraphExecDestroy(CUgraphExec handle) {
    return on_device(__func__, [&](Lock&) {
        return device().graph_execs.erase(reinterpret_cast<uintptr_t>(handle)) == 1 ? CUDA_SUCCESS : CUDA_ERROR_INVALID_VALUE;
    });
}
