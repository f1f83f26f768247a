// What the emulated driver keeps: one device, and what was made on it. All of it is guarded by `Device::mutex`, except where a field says
// otherwise; work runs without the lock.
#pragma once

#include <atomic>
#include <chrono>
#include <condition_variable>
#include <deque>
#include <functional>
#include <map>
#include <memory>
#include <mutex>
#include <string>
#include <thread>
#include <vector>

#include "abi.h"

namespace takt_emulated_driver {

using Lock = std::unique_lock<std::mutex>;
using Clock = std::chrono::steady_clock;

// ---- work -----------------------------------------------------------------------------------------------------------------------------

// What becomes of a kernel on purpose.
enum class Fault { none, fail, hang };

// One thing a stream does, or a node of a graph. `run` is called by a stream's thread, without the lock.
struct Work {
    CUgraphNodeType type;
    std::function<CUresult(Fault)> run;
};

// The end of an operation; an event is one it recorded.
struct Completion {
    bool done = false;
    Clock::time_point at;
};
using Completions = std::vector<std::shared_ptr<Completion>>;

struct Operation {
    Completions after;
    std::function<CUresult()> run;  // empty: only marks the place
    std::shared_ptr<Completion> completion;
};

// ---- contexts -------------------------------------------------------------------------------------------------------------------------

struct Stream;

struct Context {
    enum class Kind { created, primary, green } kind = Kind::created;
    uintptr_t handle = 0;
    unsigned flags = 0;
    unsigned num_sm = 0;
    bool destroyed = false;
    // The context whose memory, modules and errors these are: a green context's is the primary one, any other's itself.
    Context* root = nullptr;
    std::shared_ptr<Context> primary;  // of a green context, kept alive by it
    std::shared_ptr<Stream> legacy;    // the stream called 0

    // Of a root:
    CUresult sticky = CUDA_SUCCESS;  // what every call returns once a kernel has failed
    std::vector<std::shared_ptr<Stream>> streams;  // also those destroyed with work left
    std::vector<std::thread> workers;
};

struct Capture;
typedef std::vector<size_t> NodeList;  // places in a graph's list

struct Stream {
    uintptr_t handle = 0;
    std::shared_ptr<Context> context;
    bool legacy = false;
    bool blocking = true;  // waits for the legacy stream, and is waited for by it
    int priority = 0;
    std::deque<Operation> queue;
    std::shared_ptr<Completion> last;
    bool closing = false;
    std::shared_ptr<Capture> capture;
    NodeList frontier;  // the nodes that the next captured one follows
};

struct Event {
    std::shared_ptr<Context> context;
    bool timed = true;
    std::shared_ptr<Completion> completion;  // none: never recorded
    std::shared_ptr<Capture> capture;        // it was last recorded in
    NodeList frontier;
};

// ---- memory ---------------------------------------------------------------------------------------------------------------------------

// Bytes the device can reach. The host reaches those of device memory too, which no program may use.
struct Allocation {
    enum class Kind { device, pinned, registered } kind = Kind::device;
    Context* root = nullptr;
    uintptr_t device_address = 0, host_address = 0;  // differ for write-combined memory
    size_t bytes = 0;
    void* mapping = nullptr;
    void* alias = nullptr;  // a second view of the same memory, for the device
    size_t mapped_bytes = 0;
    size_t guard_bytes = 0;  // of a known pattern behind the last byte
};

// ---- modules --------------------------------------------------------------------------------------------------------------------------

struct Module {
    Context* root = nullptr;
    std::atomic<bool> unloaded{false};  // read by streams without the lock
    std::map<std::string, uintptr_t> functions;
    std::string image;  // a cubin, whole; empty: every kernel is in it
};

struct Function {
    std::string kernel;
    std::shared_ptr<Module> module;
    std::vector<size_t> argument_bytes;
    unsigned max_dynamic_shared_bytes = 48 << 10;
};

// ---- graphs ---------------------------------------------------------------------------------------------------------------------------

struct Node {
    uintptr_t handle = 0;
    Work work;
    NodeList after;
};
typedef std::vector<std::shared_ptr<Node>> Nodes;

struct Graph {
    Nodes nodes;
};

struct GraphExec {
    Nodes nodes;
    std::shared_ptr<Completion> last;
    bool newest_first = false;  // the order of nodes that do not wait for each other changes from launch to launch
};

struct Capture {
    Stream* origin = nullptr;
    CUstreamCaptureMode mode = CU_STREAM_CAPTURE_MODE_GLOBAL;
    std::thread::id thread;
    bool invalidated = false, ended = false;
    std::shared_ptr<Graph> graph = std::make_shared<Graph>();
    std::vector<std::shared_ptr<Stream>> streams;
};

// ---- the device -----------------------------------------------------------------------------------------------------------------------

// Handles are numbers that are never given twice, so that a stale one is found out.
template <typename T>
using Table = std::map<uintptr_t, std::shared_ptr<T>>;

// A GPU as its programs see it.
struct Model {
    int major, minor;
    const char* name;
    unsigned num_sm;
    bool integrated;
    unsigned shared_bytes_per_block, shared_bytes_per_sm;
    unsigned min_partition_sm, partition_step_sm;
    unsigned threads_per_sm, l2_bytes;
};

// How the device reads memory that the processor may only read.
enum class HostReach : uint64_t { nothing = 0, registered = 1, page_tables = 2 };

// Countdowns: 0 is never, 1 the next.
struct Faults {
    uint64_t allocation = 0, launch = 0, hang = 0;
    struct Call {
        uint64_t left;
        CUresult result;
    };
    std::map<std::string, Call> calls;
};

// What contexts still held when they were destroyed.
struct Left {
    uint64_t streams = 0, events = 0, modules = 0, device_allocations = 0, host_allocations = 0;
};

struct Device {
    std::mutex mutex;
    std::condition_variable changed;
    bool initialized = false;
    Model model;
    int version;  // of CUDA: 13000
    HostReach host_reach;
    uint64_t memory_bytes;
    std::chrono::microseconds latency;  // from an operation's submission to its begin, at least

    uintptr_t next_handle = uintptr_t(0x7a17) << 40;
    Table<Context> contexts;  // green ones too, also destroyed ones: a thread may hold them
    std::shared_ptr<Context> primary;
    unsigned primary_retained = 0;
    Table<Stream> streams;
    Table<Event> events;
    Table<Module> modules;
    Table<Function> functions;
    Table<Graph> graphs;
    Table<GraphExec> graph_execs;
    Table<unsigned> resource_descriptions;  // number of SM
    std::map<uintptr_t, Allocation> allocations;  // by device address
    std::vector<std::weak_ptr<Capture>> captures;

    Faults faults;
    Left left;
    uint64_t device_bytes = 0, peak_device_bytes = 0, pinned_bytes = 0, registered_bytes = 0;
    uint64_t num_launches = 0, num_overruns = 0, num_resource_splits = 0;
    // Copied between device and host memory, in streams and in graphs.
    uint64_t bytes_to_host = 0, bytes_to_device = 0;
    std::map<std::string, uint64_t> calls;
    std::string last_message;

    uintptr_t new_handle() { return next_handle += 64; }
};

// Never destroyed: streams' threads may outlive `main`.
Device& device();

template <typename T, typename Handle>
std::shared_ptr<T> find(const Table<T>& table, Handle handle) {
    auto found = table.find(reinterpret_cast<uintptr_t>(handle));
    return found == table.end() ? nullptr : found->second;
}

template <typename Handle>
Handle as_handle(uintptr_t handle) {
    return reinterpret_cast<Handle>(handle);
}

}  // namespace takt_emulated_driver
