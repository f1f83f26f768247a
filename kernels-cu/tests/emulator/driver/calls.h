// How every entry of the driver begins, and what its files ask of each other. Functions that take a `Lock` are called with it held.
#pragma once

#include "state.h"

#define EXPORTED extern "C" __attribute__((visibility("default")))

namespace takt_emulated_driver {

// ---- entering -------------------------------------------------------------------------------------------------------------------------

// Counts the call; fails if it is to fail, or if the driver was not initialized.
CUresult enter(const char* name);
// The calling thread's context; null if there is none.
std::shared_ptr<Context> current_context();
// Whether a context can be worked with: it lives, and no kernel has failed in it.
CUresult usable(const Context* context);

template <typename Body>
CUresult on_device(const char* name, Body body) {
    Lock lock(device().mutex);
    CUresult result = enter(name);
    return result != CUDA_SUCCESS ? result : body(lock);
}

template <typename Body>
CUresult in_context(const char* name, Body body) {
    return on_device(name, [&](Lock& lock) {
        std::shared_ptr<Context> context = current_context();
        CUresult result = usable(context.get());
        return result != CUDA_SUCCESS ? result : body(lock, *context);
    });
}

// Fails, and invalidates captures, if the thread may not make calls now that a capture would not see.
CUresult refuse_during_capture();

// A call that waits for the device or changes its memory at once.
template <typename Body>
CUresult outside_capture(const char* name, Body body) {
    return in_context(name, [&](Lock& lock, Context& context) {
        CUresult result = refuse_during_capture();
        return result != CUDA_SUCCESS ? result : body(lock, context);
    });
}

// ---- contexts -------------------------------------------------------------------------------------------------------------------------

std::shared_ptr<Context> new_context(Context::Kind kind, unsigned flags);
std::shared_ptr<Context> retain_primary();
void release_primary(Lock& lock);
// Ends a root context with all that it holds. Work that has not begun is dropped; a hung kernel ends.
void destroy_root(Lock& lock, const std::shared_ptr<Context>& context);

// ---- streams --------------------------------------------------------------------------------------------------------------------------

std::shared_ptr<Stream> new_stream(const std::shared_ptr<Context>& context, unsigned flags, int priority);
// The stream of a handle, for a call in `context`.
CUresult find_stream(CUstream handle, Context& context, std::shared_ptr<Stream>* found);
// Puts work behind all the stream has, or into the graph that it captures.
CUresult submit(Lock& lock, const std::shared_ptr<Stream>& stream, Work work);
// Puts an operation behind all the stream has.
std::shared_ptr<Completion> enqueue(const std::shared_ptr<Stream>& stream, Completions after, std::function<CUresult()> run);
// Waits for completions; the context's error if it has one by then.
CUresult wait_for(Lock& lock, Context& context, const Completions& completions);
// The last operations of a context's streams.
Completions pending(const Context& context);
// Makes a context unusable.
void fail_context(Context& root, CUresult result, const std::string& message);

// ---- captures -------------------------------------------------------------------------------------------------------------------------

CUresult record_in_capture(const std::shared_ptr<Stream>& stream, Work work);
CUresult wait_in_capture(const std::shared_ptr<Stream>& stream, const Event& event);
void invalidate(Capture& capture);
// Whether a stream that a call may not wait for is being captured: the capture ends invalid.
CUresult refuse_captured(const Stream& stream);
// The legacy stream cannot be used while a stream that waits for it is being captured.
CUresult refuse_implicit_capture(const Stream& legacy);

// ---- memory ---------------------------------------------------------------------------------------------------------------------------

// The allocation that holds a range of device addresses; null if none does.
const Allocation* find_device_range(const Context& root, uintptr_t address, size_t bytes);
// The pinned allocation that holds a range of host addresses; null if none does.
const Allocation* find_pinned_range(uintptr_t address, size_t bytes);
// Looks for writes behind the allocations of a context that are not its own.
CUresult check_guards(Context& root);
// Frees all that a context holds.
void free_all(const Context& root);
bool allocation_fails();

// ---- kernels --------------------------------------------------------------------------------------------------------------------------

Fault next_launch_fault();
// Runs a kernel that hangs or fails on purpose.
CUresult run_fault(Context& root, Fault fault);
// Turns memory faults of kernels into their errors.
void catch_memory_faults();

}  // namespace takt_emulated_driver
