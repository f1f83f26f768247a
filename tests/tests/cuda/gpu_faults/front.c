// A libcuda in front of the machine's own, which does what it is asked, and goes wrong when it is told to.
//
// It is linked to the real one by its path (TAKT_REAL_LIBCUDA, also its name among what this library needs), so that a function that is not below
// is found there: who asks this library for it gets the real one's. The few below go through here.
//
//   takt_front_fail_memory   the n-th call from now that takes memory finds none: nothing is asked of the device
//   takt_front_fault         the n-th launch of a graph from now is preceded, in its stream, by a kernel that goes wrong
//   takt_front_hold          launches of graphs wait until they are let go
//   takt_front_count         calls that took memory, and graphs launched, since the library was opened
#define _GNU_SOURCE
#include <dlfcn.h>
#include <pthread.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define EXPORTED __attribute__((visibility("default")))

// Of cuda.h, whose interface is stable.
typedef int CUresult;
typedef void *Handle;
typedef uint64_t CUdeviceptr;
enum { CUDA_SUCCESS = 0, CUDA_ERROR_OUT_OF_MEMORY = 2, CUDA_ERROR_SHARED_OBJECT_SYMBOL_NOT_FOUND = 302 };

static pthread_mutex_t mutex = PTHREAD_MUTEX_INITIALIZER;
static pthread_cond_t let_go = PTHREAD_COND_INITIALIZER;
static int holds;
// What is to happen; countdowns: 0 is never, 1 the next.
static struct {
    uint64_t memory, launch;
    void *image;
    char kernel[64];
    unsigned num_threads;
    uint64_t argument;
} plan;
static struct {
    uint64_t memory, launches;
} counts;

// The real library's function; it is loaded already, and stays.
static void *real(const char *name) {
    void *library = dlopen(TAKT_REAL_LIBCUDA, RTLD_NOW | RTLD_LOCAL);
    return library == NULL ? NULL : dlsym(library, name);
}

// Declares `real_name`, or has the function return that there is none.
#define REAL(name, ...)                                                  \
    CUresult (*real_##name)(__VA_ARGS__) = (CUresult(*)(__VA_ARGS__))real(#name); \
    if (real_##name == NULL) return CUDA_ERROR_SHARED_OBJECT_SYMBOL_NOT_FOUND

// Counts a call; whether it is the one.
static int is_due(uint64_t *countdown, uint64_t *count) {
    pthread_mutex_lock(&mutex);
    ++*count;
    int due = *countdown != 0 && --*countdown == 0;
    pthread_mutex_unlock(&mutex);
    return due;
}

#define TAKES_MEMORY() \
    if (is_due(&plan.memory, &counts.memory)) return CUDA_ERROR_OUT_OF_MEMORY

// ---- what takes memory ----------------------------------------------------------------------------------------------------------------

EXPORTED CUresult cuMemAlloc_v2(CUdeviceptr *address, size_t bytes) {
    REAL(cuMemAlloc_v2, CUdeviceptr *, size_t);
    TAKES_MEMORY();
    return real_cuMemAlloc_v2(address, bytes);
}

EXPORTED CUresult cuMemHostAlloc(void **address, size_t bytes, unsigned flags) {
    REAL(cuMemHostAlloc, void **, size_t, unsigned);
    TAKES_MEMORY();
    return real_cuMemHostAlloc(address, bytes, flags);
}

EXPORTED CUresult cuModuleLoadData(Handle *module, const void *image) {
    REAL(cuModuleLoadData, Handle *, const void *);
    TAKES_MEMORY();
    return real_cuModuleLoadData(module, image);
}

// Who opens the driver asks it for these two, and goes on without green contexts where it has not both: those that the real one lacks are left out.
#ifndef TAKT_NO_cuGreenCtxCreate
EXPORTED CUresult cuGreenCtxCreate(Handle *context, Handle description, int device, unsigned flags) {
    REAL(cuGreenCtxCreate, Handle *, Handle, int, unsigned);
    TAKES_MEMORY();
    return real_cuGreenCtxCreate(context, description, device, flags);
}
#endif

#ifndef TAKT_NO_cuGreenCtxStreamCreate
EXPORTED CUresult cuGreenCtxStreamCreate(Handle *stream, Handle context, unsigned flags, int priority) {
    REAL(cuGreenCtxStreamCreate, Handle *, Handle, unsigned, int);
    TAKES_MEMORY();
    return real_cuGreenCtxStreamCreate(stream, context, flags, priority);
}
#endif

EXPORTED CUresult cuGraphInstantiateWithFlags(Handle *exec, Handle graph, unsigned long long flags) {
    REAL(cuGraphInstantiateWithFlags, Handle *, Handle, unsigned long long);
    TAKES_MEMORY();
    return real_cuGraphInstantiateWithFlags(exec, graph, flags);
}

// ---- launches -------------------------------------------------------------------------------------------------------------------------

// Puts the kernel of the plan into `stream`. What it is of is left in the context, which a fault ends; where the launch itself is refused, nothing
// is left.
static CUresult launch_fault(Handle stream) {
    REAL(cuModuleLoadData, Handle *, const void *);
    REAL(cuModuleGetFunction, Handle *, Handle, const char *);
    REAL(cuModuleUnload, Handle);
    REAL(cuLaunchKernel, Handle, unsigned, unsigned, unsigned, unsigned, unsigned, unsigned, unsigned, Handle, void **, void **);
    Handle module = NULL, function = NULL;
    CUresult result = real_cuModuleLoadData(&module, plan.image);
    if (result != CUDA_SUCCESS) return result;
    result = real_cuModuleGetFunction(&function, module, plan.kernel);
    void *arguments[] = {&plan.argument};
    if (result == CUDA_SUCCESS) result = real_cuLaunchKernel(function, 1, 1, 1, plan.num_threads, 1, 1, 0, stream, arguments, NULL);
    if (result != CUDA_SUCCESS) real_cuModuleUnload(module);
    return result;
}

EXPORTED CUresult cuGraphLaunch(Handle exec, Handle stream) {
    REAL(cuGraphLaunch, Handle, Handle);
    pthread_mutex_lock(&mutex);
    while (holds) pthread_cond_wait(&let_go, &mutex);
    pthread_mutex_unlock(&mutex);
    if (is_due(&plan.launch, &counts.launches)) {
        CUresult result = launch_fault(stream);
        if (result != CUDA_SUCCESS) return result;
    }
    return real_cuGraphLaunch(exec, stream);
}

// ---- what it is told ------------------------------------------------------------------------------------------------------------------

EXPORTED void takt_front_fail_memory(uint64_t n) {
    pthread_mutex_lock(&mutex);
    plan.memory = n;
    pthread_mutex_unlock(&mutex);
}

// The kernel of `image`, of one block of `num_threads` threads, with one argument of 8 bytes, which it need not have. False without memory for the
// image, which is copied, or room for the name.
EXPORTED int takt_front_fault(uint64_t n, const void *image, size_t image_bytes, const char *kernel, unsigned num_threads, uint64_t argument) {
    void *copy = malloc(image_bytes);
    if (copy == NULL || strlen(kernel) >= sizeof plan.kernel) {
        free(copy);
        return 0;
    }
    memcpy(copy, image, image_bytes);
    pthread_mutex_lock(&mutex);
    free(plan.image);
    plan.image = copy;
    snprintf(plan.kernel, sizeof plan.kernel, "%s", kernel);
    plan.num_threads = num_threads;
    plan.argument = argument;
    plan.launch = n;
    pthread_mutex_unlock(&mutex);
    return 1;
}

EXPORTED void takt_front_hold(int is_held) {
    pthread_mutex_lock(&mutex);
    holds = is_held;
    pthread_cond_broadcast(&let_go);
    pthread_mutex_unlock(&mutex);
}

EXPORTED void takt_front_count(uint64_t *memory, uint64_t *launches) {
    pthread_mutex_lock(&mutex);
    *memory = counts.memory;
    *launches = counts.launches;
    pthread_mutex_unlock(&mutex);
}
