// What the kernels' emulator (`../runtime.cpp`) offers the driver.
#pragma once

#include <stddef.h>

// Runs a kernel to its end. 0: done; 1: no such kernel; 2: a shape no GPU runs; 3: what is undefined on a GPU, see the message.
extern "C" int takt_emulated_launch(const char* kernel, const unsigned grid[3], const unsigned block[3], unsigned shared_bytes,
                                    void** arguments);
extern "C" const char* takt_emulated_error();
// How many arguments a kernel has, with the bytes of each; -1: no such kernel, or more than `capacity`.
extern "C" int takt_emulated_argument_sizes(const char* kernel, size_t* sizes, unsigned capacity);
// Ends the running launch from within: callable by a signal handler while a kernel's thread runs.
extern "C" void takt_emulated_fail(const char* message, const void* address);
