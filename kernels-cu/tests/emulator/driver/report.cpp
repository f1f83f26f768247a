// What is not the driver's: faults on demand, and what the device counts.
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <sstream>
#include <utility>

#include "calls.h"

namespace takt_emulated_driver {
namespace {

uint64_t live_contexts(bool green) {
    uint64_t count = 0;
    for (const auto& entry : device().contexts) {
        const Context& context = *entry.second;
        count += !context.destroyed && (context.kind == Context::Kind::green) == green;
    }
    return count;
}

uint64_t allocations(bool on_device) {
    uint64_t count = 0;
    for (const auto& entry : device().allocations) count += (entry.second.kind == Allocation::Kind::device) == on_device;
    return count;
}

// One `name value` a line.
std::string report() {
    const Device& d = device();
    const std::pair<const char*, uint64_t> counts[] = {
        {"contexts", live_contexts(false)},
        {"green_contexts", live_contexts(true)},
        {"streams", d.streams.size()},
        {"events", d.events.size()},
        {"modules", d.modules.size()},
        {"graphs", d.graphs.size()},
        {"graph_execs", d.graph_execs.size()},
        {"device_allocations", allocations(true)},
        {"device_bytes", d.device_bytes},
        {"peak_device_bytes", d.peak_device_bytes},
        {"host_allocations", allocations(false)},
        {"host_bytes", d.pinned_bytes + d.registered_bytes},
        {"registered_bytes", d.registered_bytes},
        {"launches", d.num_launches},
        {"overruns", d.num_overruns},
        {"bytes_to_host", d.bytes_to_host},
        {"bytes_to_device", d.bytes_to_device},
        {"left.streams", d.left.streams},
        {"left.events", d.left.events},
        {"left.modules", d.left.modules},
        {"left.device_allocations", d.left.device_allocations},
        {"left.host_allocations", d.left.host_allocations},
    };
    std::ostringstream text;
    for (const auto& count : counts) text << count.first << " " << count.second << "\n";
    for (const auto& call : d.calls) text << "calls." << call.first << " " << call.second << "\n";
    return text.str();
}

size_t copy_text(const std::string& text, char* buffer, size_t capacity) {
    if (text.size() < capacity) memcpy(buffer, text.c_str(), text.size() + 1);
    return text.size();
}

// For programs that are watched from outside.
__attribute__((destructor)) void write_report_at_end() {
    const char* path = getenv("TAKT_EMULATED_REPORT");
    FILE* file = path != nullptr ? fopen(path, "w") : nullptr;
    if (file == nullptr) return;
    Lock lock(device().mutex);
    fputs(report().c_str(), file);
    fclose(file);
}

}  // namespace
}  // namespace takt_emulated_driver

using namespace takt_emulated_driver;

// What is alive, what destroyed contexts still held, and how often each function was called. Returns the text's length; the text, with a
// final 0, is written if it fits.
EXPORTED size_t takt_emulated_report(char* buffer, size_t capacity) {
    Lock lock(device().mutex);
    return copy_text(report(), buffer, capacity);
}

// What the last operation that made a context unusable died of; as `takt_emulated_report`.
EXPORTED size_t takt_emulated_last_message(char* buffer, size_t capacity) {
    Lock lock(device().mutex);
    return copy_text(device().last_message, buffer, capacity);
}

// The n-th allocation from now, of device or host memory, has no memory left; 0: none.
EXPORTED void takt_emulated_fail_allocation(uint64_t n) {
    Lock lock(device().mutex);
    device().faults.allocation = n;
}

// The n-th kernel from now, in a stream or in a graph's launch, fails; 0: none.
EXPORTED void takt_emulated_fail_launch(uint64_t n) {
    Lock lock(device().mutex);
    device().faults.launch = n;
}

// The n-th kernel from now ends when its context is destroyed; 0: none.
EXPORTED void takt_emulated_hang_launch(uint64_t n) {
    Lock lock(device().mutex);
    device().faults.hang = n;
}

// The n-th call from now of the driver's function `name` does nothing but return `result`; 0: none.
EXPORTED void takt_emulated_fail_call(const char* name, uint64_t n, CUresult result) {
    Lock lock(device().mutex);
    device().faults.calls[name] = {n, result};
}
