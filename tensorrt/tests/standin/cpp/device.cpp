// The CUDA driver, where there is one.
#include "device.h"

#include <dlfcn.h>

namespace standin {
namespace {

template <typename Function>
Function* driver(const char* name) {
    // Opened and begun as the real library does, which is a program's first use of it when it builds a plan.
    static void* library = [] {
        void* opened = dlopen("libcuda.so.1", RTLD_NOW | RTLD_LOCAL);
        auto begin = opened == nullptr ? nullptr : reinterpret_cast<int (*)(unsigned)>(dlsym(opened, "cuInit"));
        return begin != nullptr && begin(0) == 0 ? opened : nullptr;
    }();
    return library == nullptr ? nullptr : reinterpret_cast<Function*>(dlsym(library, name));
}

}  // namespace

int device_sm() {
    auto current = driver<int(int*)>("cuCtxGetDevice");
    auto attribute = driver<int(int*, int, int)>("cuDeviceGetAttribute");
    if (current == nullptr || attribute == nullptr) return 0;
    int device = 0, major = 0, minor = 0;
    if (current(&device) != 0) device = 0;
    constexpr int major_number = 75, minor_number = 76;
    if (attribute(&major, major_number, device) != 0 || attribute(&minor, minor_number, device) != 0) return 0;
    return major * 10 + minor;
}

void* current_context() {
    auto ask = driver<int(void**)>("cuCtxGetCurrent");
    void* context = nullptr;
    return ask != nullptr && ask(&context) == 0 ? context : nullptr;
}

bool is_capturing(void* stream) {
    auto ask = driver<int(void*, int*)>("cuStreamIsCapturing");
    int status = 0;
    return ask != nullptr && ask(stream, &status) == 0 && status != 0;
}

int call_in_stream(void* stream, void (*function)(void*), void* user) {
    auto launch = driver<int(void*, void (*)(void*), void*)>("cuLaunchHostFunc");
    if (launch != nullptr) return launch(stream, function, user);
    function(user);
    return 0;
}

int64_t bytes_behind(const void* address) {
    auto ask = driver<int(unsigned long long*, size_t*, unsigned long long)>("cuMemGetAddressRange_v2");
    unsigned long long first = 0, at = reinterpret_cast<uintptr_t>(address);
    size_t bytes = 0;
    if (ask == nullptr || ask(&first, &bytes, at) != 0) return -1;
    return static_cast<int64_t>(first + bytes - at);
}

}  // namespace standin
