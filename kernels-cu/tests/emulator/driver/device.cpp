// The device: its model, its attributes, the driver's start, and names of errors.
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "calls.h"

namespace takt_emulated_driver {
namespace {

constexpr unsigned KIB = 1024;

// Figures of the CUDA programming guide's table of compute capabilities; numbers of multiprocessors of AGX Orin, H200, Thor, RTX 5090.
constexpr Model MODELS[] = {
    {8, 7, "Emulated Orin", 16, true, 163 * KIB, 164 * KIB, 4, 2, 1536, 4u << 20},
    {9, 0, "Emulated H200", 132, false, 227 * KIB, 228 * KIB, 8, 8, 2048, 50u << 20},
    {11, 0, "Emulated Thor", 20, true, 227 * KIB, 228 * KIB, 8, 8, 1536, 32u << 20},
    {12, 0, "Emulated RTX", 170, false, 99 * KIB, 100 * KIB, 8, 8, 1536, 96u << 20},
};

uint64_t setting(const char* name, uint64_t otherwise) {
    const char* text = getenv(name);
    if (text == nullptr || *text == 0) return otherwise;
    char* end = nullptr;
    uint64_t value = strtoull(text, &end, 10);
    if (*end == 0) return value;
    fprintf(stderr, "emulated CUDA driver: %s is no number: %s\n", name, text);
    abort();
}

Model model() {
    uint64_t sm = setting("TAKT_EMULATED_SM", 90);
    for (Model each : MODELS) {
        if (uint64_t(each.major * 10 + each.minor) != sm) continue;
        each.num_sm = unsigned(setting("TAKT_EMULATED_SM_COUNT", each.num_sm));
        return each;
    }
    fprintf(stderr, "emulated CUDA driver: TAKT_EMULATED_SM is none of 87, 90, 110, 120: %llu\n", static_cast<unsigned long long>(sm));
    abort();
}

Device* new_device() {
    Device* made = new Device;
    made->model = model();
    made->version = int(setting("TAKT_EMULATED_DRIVER_VERSION", 13000));
    made->memory_bytes = setting("TAKT_EMULATED_MEMORY_BYTES", uint64_t(1) << 30);
    made->host_reach = HostReach(setting("TAKT_EMULATED_HOST_REACH", uint64_t(HostReach::registered)));
    made->latency = std::chrono::microseconds(setting("TAKT_EMULATED_LATENCY_US", 20));
    made->faults.allocation = setting("TAKT_EMULATED_FAIL_ALLOCATION", 0);
    made->faults.launch = setting("TAKT_EMULATED_FAIL_LAUNCH", 0);
    made->faults.hang = setting("TAKT_EMULATED_HANG_LAUNCH", 0);
    return made;
}

int attribute(const Model& model, int which) {
    switch (which) {
        case CU_DEVICE_ATTRIBUTE_MAX_THREADS_PER_BLOCK: return 1024;
        case CU_DEVICE_ATTRIBUTE_MAX_BLOCK_DIM_X: return 1024;
        case CU_DEVICE_ATTRIBUTE_MAX_BLOCK_DIM_Y: return 1024;
        case CU_DEVICE_ATTRIBUTE_MAX_BLOCK_DIM_Z: return 64;
        case CU_DEVICE_ATTRIBUTE_MAX_GRID_DIM_X: return 0x7fffffff;
        case CU_DEVICE_ATTRIBUTE_MAX_GRID_DIM_Y: return 65535;
        case CU_DEVICE_ATTRIBUTE_MAX_GRID_DIM_Z: return 65535;
        case CU_DEVICE_ATTRIBUTE_MAX_SHARED_MEMORY_PER_BLOCK: return 48 * KIB;
        case CU_DEVICE_ATTRIBUTE_WARP_SIZE: return 32;
        case CU_DEVICE_ATTRIBUTE_MAX_REGISTERS_PER_BLOCK: return 65536;
        case CU_DEVICE_ATTRIBUTE_CLOCK_RATE: return 1000000;
        case CU_DEVICE_ATTRIBUTE_MULTIPROCESSOR_COUNT: return int(model.num_sm);
        case CU_DEVICE_ATTRIBUTE_INTEGRATED: return model.integrated;
        case CU_DEVICE_ATTRIBUTE_CAN_MAP_HOST_MEMORY: return 1;
        case CU_DEVICE_ATTRIBUTE_CONCURRENT_KERNELS: return 1;
        case CU_DEVICE_ATTRIBUTE_PCI_BUS_ID: return 1;
        case CU_DEVICE_ATTRIBUTE_MEMORY_CLOCK_RATE: return 1000000;
        case CU_DEVICE_ATTRIBUTE_GLOBAL_MEMORY_BUS_WIDTH: return 256;
        case CU_DEVICE_ATTRIBUTE_L2_CACHE_SIZE: return int(model.l2_bytes);
        case CU_DEVICE_ATTRIBUTE_MAX_THREADS_PER_MULTIPROCESSOR: return int(model.threads_per_sm);
        case CU_DEVICE_ATTRIBUTE_ASYNC_ENGINE_COUNT: return 2;
        case CU_DEVICE_ATTRIBUTE_UNIFIED_ADDRESSING: return 1;
        case CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR: return model.major;
        case CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MINOR: return model.minor;
        case CU_DEVICE_ATTRIBUTE_STREAM_PRIORITIES_SUPPORTED: return 1;
        case CU_DEVICE_ATTRIBUTE_MAX_SHARED_MEMORY_PER_MULTIPROCESSOR: return int(model.shared_bytes_per_sm);
        case CU_DEVICE_ATTRIBUTE_MAX_REGISTERS_PER_MULTIPROCESSOR: return 65536;
        case CU_DEVICE_ATTRIBUTE_CAN_USE_HOST_POINTER_FOR_REGISTERED_MEM: return 1;
        case CU_DEVICE_ATTRIBUTE_MAX_SHARED_MEMORY_PER_BLOCK_OPTIN: return int(model.shared_bytes_per_block);
        case CU_DEVICE_ATTRIBUTE_HOST_REGISTER_SUPPORTED: return 1;
        case CU_DEVICE_ATTRIBUTE_READ_ONLY_HOST_REGISTER_SUPPORTED: return device().host_reach == HostReach::registered;
        case CU_DEVICE_ATTRIBUTE_PAGEABLE_MEMORY_ACCESS:
        case CU_DEVICE_ATTRIBUTE_PAGEABLE_MEMORY_ACCESS_USES_HOST_PAGE_TABLES: return device().host_reach == HostReach::page_tables;
        case CU_DEVICE_ATTRIBUTE_MAX_BLOCKS_PER_MULTIPROCESSOR: return 24;
        case CU_DEVICE_ATTRIBUTE_RESERVED_SHARED_MEMORY_PER_BLOCK: return KIB;
        default: return 0;  // memory pools, managed memory, cooperative launches, clusters: the emulated device has none
    }
}

}  // namespace

Device& device() {
    static Device* const one = new_device();
    return *one;
}

CUresult enter(const char* name) {
    Device& d = device();
    d.calls[name]++;
    auto fault = d.faults.calls.find(name);
    if (fault != d.faults.calls.end() && fault->second.left != 0 && --fault->second.left == 0) return fault->second.result;
    return d.initialized ? CUDA_SUCCESS : CUDA_ERROR_NOT_INITIALIZED;
}

}  // namespace takt_emulated_driver

using namespace takt_emulated_driver;

EXPORTED CUresult cuInit(unsigned flags) {
    Lock lock(device().mutex);
    CUresult result = enter(__func__);
    if (result != CUDA_SUCCESS && result != CUDA_ERROR_NOT_INITIALIZED) return result;
    if (flags != 0) return CUDA_ERROR_INVALID_VALUE;
    if (!device().initialized) catch_memory_faults();
    device().initialized = true;
    return CUDA_SUCCESS;
}

EXPORTED CUresult cuDriverGetVersion(int* version) {
    if (version == nullptr) return CUDA_ERROR_INVALID_VALUE;
    *version = device().version;
    return CUDA_SUCCESS;
}

EXPORTED CUresult cuGetErrorName(CUresult error, const char** name) {
    if (name == nullptr) return CUDA_ERROR_INVALID_VALUE;
    *name = nullptr;
    switch (int(error)) {
#define TAKT_RESULT(result, value, text) \
    case value: *name = #result; return CUDA_SUCCESS;
#include "results.inc"
#undef TAKT_RESULT
    }
    return CUDA_ERROR_INVALID_VALUE;
}

EXPORTED CUresult cuGetErrorString(CUresult error, const char** text) {
    if (text == nullptr) return CUDA_ERROR_INVALID_VALUE;
    *text = nullptr;
    switch (int(error)) {
#define TAKT_RESULT(result, value, says) \
    case value: *text = says; return CUDA_SUCCESS;
#include "results.inc"
#undef TAKT_RESULT
    }
    return CUDA_ERROR_INVALID_VALUE;
}

EXPORTED CUresult cuDeviceGetCount(int* count) {
    return on_device(__func__, [&](Lock&) {
        if (count == nullptr) return CUDA_ERROR_INVALID_VALUE;
        *count = 1;
        return CUDA_SUCCESS;
    });
}

EXPORTED CUresult cuDeviceGet(CUdevice* found, int ordinal) {
    return on_device(__func__, [&](Lock&) {
        if (found == nullptr) return CUDA_ERROR_INVALID_VALUE;
        if (ordinal != 0) return CUDA_ERROR_INVALID_DEVICE;
        *found = 0;
        return CUDA_SUCCESS;
    });
}

EXPORTED CUresult cuDeviceGetName(char* name, int capacity, CUdevice which) {
    return on_device(__func__, [&](Lock&) {
        if (name == nullptr || capacity <= 0) return CUDA_ERROR_INVALID_VALUE;
        if (which != 0) return CUDA_ERROR_INVALID_DEVICE;
        snprintf(name, size_t(capacity), "%s", device().model.name);
        return CUDA_SUCCESS;
    });
}

EXPORTED CUresult cuDeviceGetUuid_v2(CUuuid* uuid, CUdevice which) {
    return on_device(__func__, [&](Lock&) {
        if (uuid == nullptr) return CUDA_ERROR_INVALID_VALUE;
        if (which != 0) return CUDA_ERROR_INVALID_DEVICE;
        memcpy(uuid->bytes, "emulated-device", sizeof uuid->bytes);
        return CUDA_SUCCESS;
    });
}

EXPORTED CUresult cuDeviceGetPCIBusId(char* text, int capacity, CUdevice which) {
    return on_device(__func__, [&](Lock&) {
        if (text == nullptr || capacity < 13) return CUDA_ERROR_INVALID_VALUE;
        if (which != 0) return CUDA_ERROR_INVALID_DEVICE;
        snprintf(text, size_t(capacity), "0000:01:00.0");
        return CUDA_SUCCESS;
    });
}

EXPORTED CUresult cuDeviceGetAttribute(int* value, CUdevice_attribute which, CUdevice of) {
    return on_device(__func__, [&](Lock&) {
        if (value == nullptr || int(which) <= 0) return CUDA_ERROR_INVALID_VALUE;
        if (of != 0) return CUDA_ERROR_INVALID_DEVICE;
        *value = attribute(device().model, int(which));
        return CUDA_SUCCESS;
    });
}

EXPORTED CUresult cuDeviceTotalMem_v2(size_t* bytes, CUdevice of) {
    return on_device(__func__, [&](Lock&) {
        if (bytes == nullptr) return CUDA_ERROR_INVALID_VALUE;
        if (of != 0) return CUDA_ERROR_INVALID_DEVICE;
        *bytes = size_t(device().memory_bytes);
        return CUDA_SUCCESS;
    });
}

// The compiler's library asks every driver it finds for a table of functions that are nobody else's, and calls this even where it is missing.
EXPORTED CUresult cuGetExportTable(const void** table, const CUuuid*) {
    return on_device(__func__, [&](Lock&) {
        if (table == nullptr) return CUDA_ERROR_INVALID_VALUE;
        *table = nullptr;
        return CUDA_ERROR_NOT_SUPPORTED;
    });
}
