// The CUDA driver, where there is one.
#pragma once

#include <cstddef>
#include <cstdint>

namespace standin {

// The compute capability of the current context's device, or of the first; 0 without a driver.
int device_sm();
// The calling thread's current context; null without a driver.
void* current_context();
// Whether the stream is being captured.
bool is_capturing(void* stream);
// Has `function` called in the stream's order, or at once without a driver. What CUDA's driver gave; 0 is success.
int call_in_stream(void* stream, void (*function)(void*), void* user);
// Bytes from `address` to the end of the device allocation that holds it; -1 if none does, or there is no driver.
int64_t bytes_behind(const void* address);
}  // namespace standin
