// Memory of the device, and host memory it reaches.
//
// Every allocation ends at a page that nobody may touch and begins behind one; what is left of its own pages is filled with a pattern
// and looked at later. New memory is all ones: not a number in every floating-point format.
#include <stdio.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#include <algorithm>

#include "calls.h"

namespace takt_emulated_driver {
namespace {

// Of CUDA's textures, which is what devices give.
constexpr size_t ALIGNMENT = 512, PAGE = 4096;
constexpr unsigned char PATTERN = 0xa7, FRESH = 0xff;

size_t round_up(size_t bytes, size_t step) { return (bytes + step - 1) / step * step; }

// Bytes of pattern before an allocation, in its first page.
size_t slack(const Allocation& allocation) {
    if (allocation.mapping == nullptr) return 0;
    return allocation.host_address - (reinterpret_cast<uintptr_t>(allocation.mapping) + PAGE);
}

// Memory between two pages without access; of a file, so that it can be mapped twice, or of none.
void* map_between_guards(size_t bytes, int file) {
    int flags = file < 0 ? MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE : MAP_SHARED;
    void* mapping = mmap(nullptr, bytes, PROT_READ | PROT_WRITE, flags, file, 0);
    if (mapping == MAP_FAILED) return nullptr;
    unsigned char* first = static_cast<unsigned char*>(mapping);
    mprotect(first, PAGE, PROT_NONE);
    mprotect(first + bytes - PAGE, PAGE, PROT_NONE);
    return mapping;
}

void fill(const Allocation& allocation) {
    unsigned char* first = reinterpret_cast<unsigned char*>(allocation.host_address);
    memset(first - slack(allocation), PATTERN, slack(allocation));
    memset(first, FRESH, allocation.bytes);
    memset(first + allocation.bytes, PATTERN, allocation.guard_bytes);
}

// Write-combined memory has another address on the device than on the host.
bool map_memory(Allocation* made, size_t bytes, bool write_combined) {
    if (bytes > size_t(1) << 46) return false;
    size_t occupied = round_up(bytes, ALIGNMENT), mapped = round_up(occupied, PAGE) + 2 * PAGE;
    int file = write_combined ? memfd_create("takt-emulated", 0) : -1;
    if (write_combined && (file < 0 || ftruncate(file, off_t(mapped)) != 0)) return false;
    made->bytes = bytes;
    made->mapped_bytes = mapped;
    made->guard_bytes = occupied - bytes;
    made->mapping = map_between_guards(mapped, file);
    made->alias = write_combined ? map_between_guards(mapped, file) : nullptr;
    if (write_combined) close(file);
    if (made->mapping == nullptr || (write_combined && made->alias == nullptr)) return false;
    size_t offset = mapped - PAGE - occupied;
    made->host_address = reinterpret_cast<uintptr_t>(made->mapping) + offset;
    made->device_address = write_combined ? reinterpret_cast<uintptr_t>(made->alias) + offset : made->host_address;
    fill(*made);
    return true;
}

void unmap(const Allocation& allocation) {
    if (allocation.mapping != nullptr) munmap(allocation.mapping, allocation.mapped_bytes);
    if (allocation.alias != nullptr) munmap(allocation.alias, allocation.mapped_bytes);
}

// An integrated device's memory is also the host's.
uint64_t free_bytes() {
    const Device& d = device();
    uint64_t used = d.device_bytes + (d.model.integrated ? d.pinned_bytes : 0);
    return used < d.memory_bytes ? d.memory_bytes - used : 0;
}

// The count that an allocation is part of.
uint64_t& bytes_of(Allocation::Kind kind) {
    Device& d = device();
    if (kind == Allocation::Kind::device) return d.device_bytes;
    return kind == Allocation::Kind::pinned ? d.pinned_bytes : d.registered_bytes;
}

void forget(std::map<uintptr_t, Allocation>::iterator entry) {
    const Allocation& allocation = entry->second;
    bytes_of(allocation.kind) -= allocation.bytes;
    unmap(allocation);
    device().allocations.erase(entry);
}

bool is_pattern(const unsigned char* first, size_t bytes) {
    return std::all_of(first, first + bytes, [](unsigned char byte) { return byte == PATTERN; });
}

bool is_intact(const Allocation& allocation) {
    if (allocation.mapping == nullptr) return true;
    const unsigned char* first = reinterpret_cast<const unsigned char*>(allocation.host_address);
    return is_pattern(first - slack(allocation), slack(allocation)) && is_pattern(first + allocation.bytes, allocation.guard_bytes);
}

CUresult allocate(Context& context, Allocation::Kind kind, size_t bytes, bool write_combined, uintptr_t* address) {
    Device& d = device();
    bool on_device = kind == Allocation::Kind::device;
    if (bytes == 0) return CUDA_ERROR_INVALID_VALUE;
    if (allocation_fails()) return CUDA_ERROR_OUT_OF_MEMORY;
    if ((on_device || d.model.integrated) && bytes > free_bytes()) return CUDA_ERROR_OUT_OF_MEMORY;
    Allocation made;
    made.kind = kind;
    made.root = context.root;
    if (!map_memory(&made, bytes, write_combined)) return unmap(made), CUDA_ERROR_OUT_OF_MEMORY;
    bytes_of(kind) += bytes;
    d.peak_device_bytes = std::max(d.peak_device_bytes, d.device_bytes);
    d.allocations[made.device_address] = made;
    *address = made.host_address;
    return CUDA_SUCCESS;
}

// Frees memory once the context's work is done, as the driver does for memory that is not of a pool.
CUresult release(Lock& lock, Context& context, Allocation::Kind kind, uintptr_t host_address) {
    auto is_it = [&](const auto& entry) { return entry.second.kind == kind && entry.second.host_address == host_address; };
    auto& all = device().allocations;
    if (std::none_of(all.begin(), all.end(), is_it)) return CUDA_ERROR_INVALID_VALUE;
    CUresult result = wait_for(lock, *context.root, pending(*context.root));
    if (result == CUDA_SUCCESS) result = check_guards(*context.root);
    auto entry = std::find_if(all.begin(), all.end(), is_it);
    if (result != CUDA_SUCCESS || entry == all.end()) return result;
    forget(entry);
    return CUDA_SUCCESS;
}

// Whether the process may write to all pages of a range, as the system tells.
bool is_writable(uintptr_t address, size_t bytes) {
    FILE* maps = fopen("/proc/self/maps", "r");
    char line[512];
    uintptr_t reached = address;
    while (maps != nullptr && reached < address + bytes && fgets(line, sizeof line, maps) != nullptr) {
        unsigned long first = 0, last = 0;
        char write = '-';
        if (sscanf(line, "%lx-%lx %*c%c", &first, &last, &write) == 3 && first <= reached && reached < last && write == 'w') reached = last;
    }
    if (maps != nullptr) fclose(maps);
    return reached >= address + bytes;
}

bool holds(uintptr_t first, size_t size, uintptr_t address, size_t bytes) {
    return address >= first && address - first <= size && bytes <= size - (address - first);
}

}  // namespace

const Allocation* find_device_range(const Context& root, uintptr_t address, size_t bytes) {
    auto& all = device().allocations;
    auto after = all.upper_bound(address);
    if (after == all.begin()) return nullptr;
    const Allocation& found = std::prev(after)->second;
    // Host memory is reached from every context, under unified addressing.
    if (found.kind == Allocation::Kind::device && found.root != &root) return nullptr;
    return holds(found.device_address, found.bytes, address, bytes) ? &found : nullptr;
}

const Allocation* find_pinned_range(uintptr_t address, size_t bytes) {
    for (const auto& entry : device().allocations) {
        const Allocation& each = entry.second;
        if (each.kind != Allocation::Kind::device && holds(each.host_address, each.bytes, address, bytes)) return &each;
    }
    return nullptr;
}

CUresult check_guards(Context& root) {
    for (auto& entry : device().allocations) {
        Allocation& each = entry.second;
        if (each.root != &root || is_intact(each)) continue;
        char message[160];
        snprintf(message, sizeof message, "bytes beside the %zu bytes at %p were written", each.bytes,
                 reinterpret_cast<void*>(each.device_address));
        device().num_overruns++;
        // Reported once.
        unsigned char* first = reinterpret_cast<unsigned char*>(each.host_address);
        memset(first - slack(each), PATTERN, slack(each));
        memset(first + each.bytes, PATTERN, each.guard_bytes);
        fail_context(root, CUDA_ERROR_ILLEGAL_ADDRESS, message);
    }
    return root.sticky;
}

void free_all(const Context& root) {
    auto& all = device().allocations;
    for (auto entry = all.begin(); entry != all.end();) {
        auto next = std::next(entry);
        if (entry->second.root == &root) forget(entry);
        entry = next;
    }
}

bool allocation_fails() {
    uint64_t& left = device().faults.allocation;
    return left != 0 && --left == 0;
}

}  // namespace takt_emulated_driver

using namespace takt_emulated_driver;

EXPORTED CUresult cuMemAlloc_v2(CUdeviceptr* address, size_t bytes) {
    return outside_capture(__func__, [&](Lock&, Context& context) {
        uintptr_t found = 0;
        if (address == nullptr) return CUDA_ERROR_INVALID_VALUE;
        CUresult result = allocate(context, Allocation::Kind::device, bytes, false, &found);
        if (result == CUDA_SUCCESS) *address = found;
        return result;
    });
}

EXPORTED CUresult cuMemFree_v2(CUdeviceptr address) {
    return outside_capture(__func__, [&](Lock& lock, Context& context) {
        return address == 0 ? CUDA_SUCCESS : release(lock, context, Allocation::Kind::device, uintptr_t(address));
    });
}

EXPORTED CUresult cuMemGetInfo_v2(size_t* free, size_t* total) {
    return in_context(__func__, [&](Lock&, Context&) {
        if (free == nullptr || total == nullptr) return CUDA_ERROR_INVALID_VALUE;
        *free = size_t(free_bytes());
        *total = size_t(device().memory_bytes);
        return CUDA_SUCCESS;
    });
}

EXPORTED CUresult cuMemGetAddressRange_v2(CUdeviceptr* first, size_t* bytes, CUdeviceptr address) {
    return in_context(__func__, [&](Lock&, Context& context) {
        const Allocation* found = find_device_range(*context.root, uintptr_t(address), 1);
        if (found == nullptr) return CUDA_ERROR_NOT_FOUND;
        if (first != nullptr) *first = found->device_address;
        if (bytes != nullptr) *bytes = found->bytes;
        return CUDA_SUCCESS;
    });
}

EXPORTED CUresult cuMemHostAlloc(void** address, size_t bytes, unsigned flags) {
    return outside_capture(__func__, [&](Lock&, Context& context) {
        uintptr_t found = 0;
        if (address == nullptr || flags > 7) return CUDA_ERROR_INVALID_VALUE;
        bool write_combined = (flags & CU_MEMHOSTALLOC_WRITECOMBINED) != 0;
        CUresult result = allocate(context, Allocation::Kind::pinned, bytes, write_combined, &found);
        if (result == CUDA_SUCCESS) *address = reinterpret_cast<void*>(found);
        return result;
    });
}

EXPORTED CUresult cuMemAllocHost_v2(void** address, size_t bytes) {
    return outside_capture(__func__, [&](Lock&, Context& context) {
        uintptr_t found = 0;
        if (address == nullptr) return CUDA_ERROR_INVALID_VALUE;
        CUresult result = allocate(context, Allocation::Kind::pinned, bytes, false, &found);
        if (result == CUDA_SUCCESS) *address = reinterpret_cast<void*>(found);
        return result;
    });
}

EXPORTED CUresult cuMemFreeHost(void* address) {
    return outside_capture(__func__, [&](Lock& lock, Context& context) {
        return release(lock, context, Allocation::Kind::pinned, reinterpret_cast<uintptr_t>(address));
    });
}

EXPORTED CUresult cuMemHostGetDevicePointer_v2(CUdeviceptr* device_address, void* host_address, unsigned flags) {
    return in_context(__func__, [&](Lock&, Context&) {
        const Allocation* found = find_pinned_range(reinterpret_cast<uintptr_t>(host_address), 1);
        if (device_address == nullptr || flags != 0 || found == nullptr) return CUDA_ERROR_INVALID_VALUE;
        *device_address = found->device_address + (reinterpret_cast<uintptr_t>(host_address) - found->host_address);
        return CUDA_SUCCESS;
    });
}

EXPORTED CUresult cuMemHostRegister_v2(void* host_address, size_t bytes, unsigned flags) {
    return outside_capture(__func__, [&](Lock&, Context& context) {
        uintptr_t address = reinterpret_cast<uintptr_t>(host_address);
        if (host_address == nullptr || bytes == 0 || flags > 15) return CUDA_ERROR_INVALID_VALUE;
        for (const auto& entry : device().allocations) {
            const Allocation& each = entry.second;
            bool overlaps = address < each.host_address + each.bytes && each.host_address < address + bytes;
            if (overlaps) return CUDA_ERROR_HOST_MEMORY_ALREADY_REGISTERED;
        }
        bool read_only = (flags & CU_MEMHOSTREGISTER_READ_ONLY) != 0;
        if (read_only && device().host_reach != HostReach::registered) return CUDA_ERROR_NOT_SUPPORTED;
        if (!read_only && !is_writable(address, bytes)) return CUDA_ERROR_INVALID_VALUE;
        if (allocation_fails()) return CUDA_ERROR_OUT_OF_MEMORY;
        Allocation made;
        made.kind = Allocation::Kind::registered;
        made.root = context.root;
        made.device_address = made.host_address = address;
        made.bytes = bytes;
        device().allocations[address] = made;
        bytes_of(made.kind) += bytes;
        return CUDA_SUCCESS;
    });
}

EXPORTED CUresult cuMemHostUnregister(void* host_address) {
    return outside_capture(__func__, [&](Lock& lock, Context& context) {
        CUresult result = release(lock, context, Allocation::Kind::registered, reinterpret_cast<uintptr_t>(host_address));
        return result == CUDA_ERROR_INVALID_VALUE ? CUDA_ERROR_HOST_MEMORY_NOT_REGISTERED : result;
    });
}
