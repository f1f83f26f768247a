// Modules: an image holds the kernels of the emulator that it names.
#include <string.h>

#include <algorithm>

#include "calls.h"
#include "kernels.h"

namespace takt_emulated_driver {
namespace {

constexpr uint16_t MACHINE_CUDA = 190;
constexpr unsigned MAX_ARGUMENTS = 64;

// The 64-bit ELF header's fields that are read.
struct Header {
    unsigned char abi_version;
    uint16_t machine;
    uint32_t flags;
    uint64_t sections_at;
    uint16_t section_bytes, num_sections;
};

template <typename T>
T field(const unsigned char* image, size_t offset) {
    T value;
    memcpy(&value, image + offset, sizeof value);
    return value;
}

bool read_header(const unsigned char* image, Header* header) {
    const unsigned char magic[] = {0x7f, 'E', 'L', 'F', 2, 1};
    for (size_t idx = 0; idx < sizeof magic; idx++) {
        if (image[idx] != magic[idx]) return false;
    }
    header->abi_version = image[8];
    header->machine = field<uint16_t>(image, 18);
    header->flags = field<uint32_t>(image, 48);
    header->sections_at = field<uint64_t>(image, 40);
    header->section_bytes = field<uint16_t>(image, 58);
    header->num_sections = field<uint16_t>(image, 60);
    return true;
}

// A cubin runs on devices of its major version, and of its minor version or a later one.
bool fits_device(const Header& header) {
    if (header.machine != MACHINE_CUDA) return true;
    unsigned sm = header.abi_version < 8 ? header.flags & 0xff : header.flags >> 8 & 0xff;
    const Model& model = device().model;
    return int(sm / 10) == model.major && int(sm % 10) <= model.minor;
}

// Cubins of CUDA 13 have another binary interface, which older drivers do not read.
bool is_read(const Header& header) { return header.machine != MACHINE_CUDA || header.abi_version < 8 || device().version >= 13000; }

// The names in a cubin; nothing of an image that is none, which then has every kernel.
std::string names_in(const unsigned char* image, const Header& header) {
    if (header.machine != MACHINE_CUDA) return std::string();
    size_t bytes = size_t(header.sections_at) + size_t(header.section_bytes) * header.num_sections;
    return std::string(reinterpret_cast<const char*>(image), bytes);
}

CUresult load(CUmodule* made, const void* image, Context& context) {
    Header header;
    if (made == nullptr || image == nullptr) return CUDA_ERROR_INVALID_VALUE;
    if (!read_header(static_cast<const unsigned char*>(image), &header)) return CUDA_ERROR_INVALID_IMAGE;
    if (!is_read(header)) return CUDA_ERROR_INVALID_IMAGE;
    if (!fits_device(header)) return CUDA_ERROR_NO_BINARY_FOR_GPU;
    std::shared_ptr<Module> module = std::make_shared<Module>();
    module->root = context.root;
    module->image = names_in(static_cast<const unsigned char*>(image), header);
    uintptr_t handle = device().new_handle();
    device().modules[handle] = module;
    *made = as_handle<CUmodule>(handle);
    return CUDA_SUCCESS;
}

bool is_in_image(const Module& module, const std::string& kernel) {
    return module.image.empty() || module.image.find(".text." + kernel + '\0') != std::string::npos;
}

CUresult find_function(uintptr_t* handle, const std::shared_ptr<Module>& module, const char* name) {
    auto known = module->functions.find(name);
    if (known != module->functions.end()) return *handle = known->second, CUDA_SUCCESS;
    size_t sizes[MAX_ARGUMENTS];
    int count = takt_emulated_argument_sizes(name, sizes, MAX_ARGUMENTS);
    if (count < 0 || !is_in_image(*module, name)) return CUDA_ERROR_NOT_FOUND;
    std::shared_ptr<Function> function = std::make_shared<Function>();
    function->kernel = name;
    function->module = module;
    function->argument_bytes.assign(sizes, sizes + count);
    *handle = device().new_handle();
    module->functions[name] = *handle;
    device().functions[*handle] = function;
    return CUDA_SUCCESS;
}

int attribute(const Function& function, int which) {
    const Model& model = device().model;
    switch (which) {
        case CU_FUNC_ATTRIBUTE_MAX_THREADS_PER_BLOCK: return 1024;
        case CU_FUNC_ATTRIBUTE_NUM_REGS: return 64;
        case CU_FUNC_ATTRIBUTE_PTX_VERSION:
        case CU_FUNC_ATTRIBUTE_BINARY_VERSION: return model.major * 10 + model.minor;
        case CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES: return int(function.max_dynamic_shared_bytes);
        case CU_FUNC_ATTRIBUTE_PREFERRED_SHARED_MEMORY_CARVEOUT: return -1;
        default: return 0;
    }
}

CUresult set_attribute(Function& function, int which, int value) {
    if (which == CU_FUNC_ATTRIBUTE_PREFERRED_SHARED_MEMORY_CARVEOUT) {
        return value < -1 || value > 100 ? CUDA_ERROR_INVALID_VALUE : CUDA_SUCCESS;
    }
    bool fits = value >= 0 && unsigned(value) <= device().model.shared_bytes_per_block;
    if (which != CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES || !fits) return CUDA_ERROR_INVALID_VALUE;
    function.max_dynamic_shared_bytes = unsigned(value);
    return CUDA_SUCCESS;
}

CUresult occupancy(int* blocks, CUfunction handle, int threads, size_t shared_bytes) {
    const Model& model = device().model;
    std::shared_ptr<Function> function = find(device().functions, handle);
    if (function == nullptr) return CUDA_ERROR_INVALID_HANDLE;
    if (blocks == nullptr || threads <= 0 || threads > 1024) return CUDA_ERROR_INVALID_VALUE;
    size_t warps = (size_t(threads) + 31) / 32, by_threads = model.threads_per_sm / (warps * 32);
    size_t by_shared = model.shared_bytes_per_sm / (shared_bytes + 1024);
    bool fits = shared_bytes <= function->max_dynamic_shared_bytes;
    *blocks = fits ? int(std::min({by_threads, by_shared, size_t(24)})) : 0;
    return CUDA_SUCCESS;
}

}  // namespace
}  // namespace takt_emulated_driver

using namespace takt_emulated_driver;

EXPORTED CUresult cuModuleLoadData(CUmodule* made, const void* image) {
    return in_context(__func__, [&](Lock&, Context& context) { return load(made, image, context); });
}

EXPORTED CUresult cuModuleLoadDataEx(CUmodule* made, const void* image, unsigned, CUjit_option*, void**) {
    return in_context(__func__, [&](Lock&, Context& context) { return load(made, image, context); });
}

EXPORTED CUresult cuModuleUnload(CUmodule handle) {
    return in_context(__func__, [&](Lock&, Context&) {
        std::shared_ptr<Module> module = find(device().modules, handle);
        if (module == nullptr) return CUDA_ERROR_INVALID_HANDLE;
        module->unloaded = true;
        for (const auto& function : module->functions) device().functions.erase(function.second);
        module->functions.clear();
        device().modules.erase(reinterpret_cast<uintptr_t>(handle));
        return CUDA_SUCCESS;
    });
}

EXPORTED CUresult cuModuleGetFunction(CUfunction* found, CUmodule handle, const char* name) {
    return in_context(__func__, [&](Lock&, Context&) {
        std::shared_ptr<Module> module = find(device().modules, handle);
        if (found == nullptr || name == nullptr) return CUDA_ERROR_INVALID_VALUE;
        if (module == nullptr) return CUDA_ERROR_INVALID_HANDLE;
        uintptr_t function = 0;
        CUresult result = find_function(&function, module, name);
        if (result == CUDA_SUCCESS) *found = as_handle<CUfunction>(function);
        return result;
    });
}

EXPORTED CUresult cuFuncGetAttribute(int* value, CUfunction_attribute which, CUfunction handle) {
    return in_context(__func__, [&](Lock&, Context&) {
        std::shared_ptr<Function> function = find(device().functions, handle);
        if (function == nullptr) return CUDA_ERROR_INVALID_HANDLE;
        if (value == nullptr || int(which) < 0 || which >= CU_FUNC_ATTRIBUTE_MAX) return CUDA_ERROR_INVALID_VALUE;
        *value = attribute(*function, int(which));
        return CUDA_SUCCESS;
    });
}

EXPORTED CUresult cuFuncSetAttribute(CUfunction handle, CUfunction_attribute which, int value) {
    return in_context(__func__, [&](Lock&, Context&) {
        std::shared_ptr<Function> function = find(device().functions, handle);
        return function == nullptr ? CUDA_ERROR_INVALID_HANDLE : set_attribute(*function, int(which), value);
    });
}

EXPORTED CUresult cuOccupancyMaxActiveBlocksPerMultiprocessor(int* blocks, CUfunction handle, int threads, size_t shared_bytes) {
    return in_context(__func__, [&](Lock&, Context&) { return occupancy(blocks, handle, threads, shared_bytes); });
}

EXPORTED CUresult cuOccupancyMaxActiveBlocksPerMultiprocessorWithFlags(int* blocks, CUfunction handle, int threads, size_t shared_bytes,
                                                                       unsigned) {
    return in_context(__func__, [&](Lock&, Context&) { return occupancy(blocks, handle, threads, shared_bytes); });
}
