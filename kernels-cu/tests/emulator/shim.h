// What CUDA C++ gives a kernel, for a host compiler: keywords, vector types, built-in variables, and the operations threads of a block do
// together. Included before a kernel's source; `runtime.cpp` runs the blocks.
#pragma once

#define TAKT_EMULATED 1

#include <math.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>
#include <time.h>

#include <utility>

// ---- keywords -------------------------------------------------------------------------------------------------------------------------

#if defined(TAKT_EMULATED_SCAN)
#define __global__ TAKT_EMULATED_KERNEL  // found by the loader in the preprocessed text
#else
#define __global__
#endif
#define __device__
#define __host__
#define __constant__ static
// One block runs at a time in a library, so a block's memory is the library's.
#define __shared__ static
#define __forceinline__ inline __attribute__((always_inline))
#define __noinline__ __attribute__((noinline))
#define __launch_bounds__(...)
#define __align__(bytes) __attribute__((aligned(bytes)))
#define __grid_constant__

// ---- vector types ---------------------------------------------------------------------------------------------------------------------

struct dim3 {
    unsigned x, y, z;
};
typedef dim3 uint3;
struct alignas(8) uint2 {
    unsigned x, y;
};
struct alignas(16) uint4 {
    unsigned x, y, z, w;
};
struct alignas(8) int2 {
    int x, y;
};
struct alignas(16) int4 {
    int x, y, z, w;
};
struct alignas(8) float2 {
    float x, y;
};
struct alignas(16) float4 {
    float x, y, z, w;
};
inline uint2 make_uint2(unsigned x, unsigned y) { return {x, y}; }
inline uint4 make_uint4(unsigned x, unsigned y, unsigned z, unsigned w) { return {x, y, z, w}; }
inline int2 make_int2(int x, int y) { return {x, y}; }
inline int4 make_int4(int x, int y, int z, int w) { return {x, y, z, w}; }
inline float2 make_float2(float x, float y) { return {x, y}; }
inline float4 make_float4(float x, float y, float z, float w) { return {x, y, z, w}; }

// ---- the runtime ----------------------------------------------------------------------------------------------------------------------

namespace takt_emulated {

// Where in a kernel's source a thread waits.
struct Site {
    const char* what;
    const char* file;
    int line;
};

// What one lane brings to an operation of its warp, and takes from it.
struct alignas(16) Slot {
    unsigned char bytes[64];
};

struct ThreadPlace {
    dim3 thread;
    unsigned lane;
};
extern ThreadPlace* current;
extern dim3 block_place, block_shape, grid_shape;

void* dynamic_shared();
// Ends the launch with a message; the kernel does not continue.
[[noreturn]] void fail(const char* message, const void* address = nullptr);
void block_barrier(Site site);
int block_barrier_count(Site site, bool predicate);
// Brings `input` to the lanes of `mask`, waits for all of them, and returns the slots of the 32 lanes, valid until this lane's next
// operation. The last lane to come calls `complete` on them.
Slot* warp_collective(Site site, unsigned mask, const void* input, size_t bytes, void (*complete)(Slot*) = nullptr);
// Whether the last warp of the block, if it is this one, has that lane.
bool lane_is_there(unsigned lane);
void copy_async(void* destination, const void* source, unsigned bytes, unsigned source_bytes);
void copy_async_commit();
void copy_async_wait(unsigned groups_left);

typedef void (*KernelCall)(void** arguments);
// `argument_bytes` lives as long as the library.
struct Registration {
    Registration(const char* name, KernelCall call, const size_t* argument_bytes, size_t num_arguments);
};

template <auto kernel>
struct Caller;
template <typename... Arguments, void (*kernel)(Arguments...)>
struct Caller<kernel> {
    template <size_t... idx>
    static void call_with(void** arguments, std::index_sequence<idx...>) {
        (void)arguments;
        kernel(*static_cast<Arguments*>(arguments[idx])...);
    }
    static void call(void** arguments) { call_with(arguments, std::index_sequence_for<Arguments...>()); }
    static constexpr size_t num_arguments = sizeof...(Arguments);
    static constexpr size_t argument_bytes[] = {sizeof(Arguments)..., 0};
};

// A pointer a vector access may go through.
template <typename T>
inline T* checked(T* address, size_t alignment) {
    if (reinterpret_cast<uintptr_t>(address) % alignment != 0) {
        fail("misaligned vector access", const_cast<const void*>(static_cast<const volatile void*>(address)));
    }
    return address;
}

template <typename T>
inline T shuffle(Site site, unsigned mask, T value, unsigned source, bool in_range) {
    static_assert(sizeof(T) <= sizeof(Slot), "one slot a lane");
    Slot* slots = warp_collective(site, mask, &value, sizeof(T));
    if (!in_range) return value;
    if ((mask >> source & 1) == 0 || !lane_is_there(source)) fail("shuffle from a lane that is not there, or outside the mask");
    T result;
    memcpy(&result, slots[source].bytes, sizeof(T));
    return result;
}

template <typename T>
inline unsigned ballot(Site site, unsigned mask, T predicate) {
    unsigned bit = predicate ? 1 : 0, result = 0;
    Slot* slots = warp_collective(site, mask, &bit, sizeof bit);
    for (unsigned lane = 0; lane < 32; lane++) {
        unsigned other = 0;
        memcpy(&other, slots[lane].bytes, sizeof other);
        if (mask >> lane & 1) result |= other << lane;
    }
    return result;
}

inline float bf16_value(unsigned bits) {
    unsigned wide = bits << 16;
    float value;
    memcpy(&value, &wide, sizeof value);
    return value;
}

// D += A · B of `mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32`, fragments as the PTX manual lays them out.
void mma_m16n8k16_bf16(float (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2]);
// `ldmatrix.sync.aligned.m8n8.x4[.trans].shared.b16`: lane i gives the address of row i % 8 of matrix i / 8.
void load_matrix_x4(uint32_t (&d)[4], const void* row, bool transposed);

}  // namespace takt_emulated

#define TAKT_EMULATED_REGISTER(name, kernel) \
    static ::takt_emulated::Registration takt_registration_##name(#name, ::takt_emulated::Caller<kernel>::call, \
                                                                  ::takt_emulated::Caller<kernel>::argument_bytes, \
                                                                  ::takt_emulated::Caller<kernel>::num_arguments);

#define threadIdx (::takt_emulated::current->thread)
#define blockIdx (::takt_emulated::block_place)
#define blockDim (::takt_emulated::block_shape)
#define gridDim (::takt_emulated::grid_shape)
static const int warpSize = 32;

// Dynamic shared memory; kernels say TAKT_DYNAMIC_SHARED(type, name) instead of `extern __shared__ type name[]`.
#define TAKT_DYNAMIC_SHARED(type, name) type* name = static_cast<type*>(::takt_emulated::dynamic_shared())

#define TAKT_SITE(what) (::takt_emulated::Site{what, __FILE__, __LINE__})
#define __syncthreads() ::takt_emulated::block_barrier(TAKT_SITE("__syncthreads"))
#define __syncthreads_count(p) ::takt_emulated::block_barrier_count(TAKT_SITE("__syncthreads_count"), (p) != 0)
#define __syncthreads_or(p) (::takt_emulated::block_barrier_count(TAKT_SITE("__syncthreads_or"), (p) != 0) != 0)
#define __syncthreads_and(p) (::takt_emulated::block_barrier_count(TAKT_SITE("__syncthreads_and"), (p) == 0) == 0)

struct TaktSyncWarp {
    takt_emulated::Site site;
    void operator()(unsigned mask = 0xffffffffu) const { takt_emulated::warp_collective(site, mask, nullptr, 0); }
};
#define __syncwarp (TaktSyncWarp{TAKT_SITE("__syncwarp")})
#define __ballot_sync(mask, p) ::takt_emulated::ballot(TAKT_SITE("__ballot_sync"), mask, p)
#define __any_sync(mask, p) (::takt_emulated::ballot(TAKT_SITE("__any_sync"), mask, p) != 0)
#define __all_sync(mask, p) (::takt_emulated::ballot(TAKT_SITE("__all_sync"), mask, !(p)) == 0)
#define __activemask() 0xffffffffu

template <typename T>
inline T takt_shfl(takt_emulated::Site site, unsigned mask, T value, int source, int width = 32) {
    unsigned lane = takt_emulated::current->lane, base = lane & ~(width - 1u);
    return takt_emulated::shuffle(site, mask, value, base + (unsigned(source) & (width - 1u)), true);
}
template <typename T>
inline T takt_shfl_xor(takt_emulated::Site site, unsigned mask, T value, int bits, int width = 32) {
    unsigned lane = takt_emulated::current->lane, source = lane ^ unsigned(bits);
    return takt_emulated::shuffle(site, mask, value, source % 32, source < (lane & ~(width - 1u)) + width);
}
template <typename T>
inline T takt_shfl_down(takt_emulated::Site site, unsigned mask, T value, unsigned delta, int width = 32) {
    unsigned lane = takt_emulated::current->lane, source = lane + delta;
    return takt_emulated::shuffle(site, mask, value, source % 32, source < (lane & ~(width - 1u)) + width);
}
template <typename T>
inline T takt_shfl_up(takt_emulated::Site site, unsigned mask, T value, unsigned delta, int width = 32) {
    unsigned lane = takt_emulated::current->lane;
    bool in_range = lane >= (lane & ~(width - 1u)) + delta;
    return takt_emulated::shuffle(site, mask, value, in_range ? lane - delta : lane, in_range);
}
#define __shfl_sync(...) takt_shfl(TAKT_SITE("__shfl_sync"), __VA_ARGS__)
#define __shfl_xor_sync(...) takt_shfl_xor(TAKT_SITE("__shfl_xor_sync"), __VA_ARGS__)
#define __shfl_down_sync(...) takt_shfl_down(TAKT_SITE("__shfl_down_sync"), __VA_ARGS__)
#define __shfl_up_sync(...) takt_shfl_up(TAKT_SITE("__shfl_up_sync"), __VA_ARGS__)

// ---- memory: one block runs at a time, one thread between two waits -------------------------------------------------------------------

inline void __threadfence() {}
inline void __threadfence_block() {}
template <typename T>
inline T __ldg(const T* address) {
    return *takt_emulated::checked(address, alignof(T));
}
template <typename T, typename U>
inline T atomicAdd(T* address, U value) {
    T old = *address;
    *address = old + T(value);
    return old;
}
template <typename T, typename U>
inline T atomicMax(T* address, U value) {
    T old = *address;
    if (T(value) > old) *address = T(value);
    return old;
}
template <typename T, typename U>
inline T atomicMin(T* address, U value) {
    T old = *address;
    if (T(value) < old) *address = T(value);
    return old;
}
template <typename T, typename U>
inline T atomicOr(T* address, U value) {
    T old = *address;
    *address = old | T(value);
    return old;
}
template <typename T, typename U>
inline T atomicExch(T* address, U value) {
    T old = *address;
    *address = T(value);
    return old;
}
template <typename T, typename U, typename V>
inline T atomicCAS(T* address, U expected, V value) {
    T old = *address;
    if (old == T(expected)) *address = T(value);
    return old;
}
inline unsigned atomicInc(unsigned* address, unsigned limit) {
    unsigned old = *address;
    *address = old >= limit ? 0 : old + 1;
    return old;
}

// ---- time, and faults -----------------------------------------------------------------------------------------------------------------

namespace takt_emulated {

// Nanoseconds of the device's timer.
inline uint64_t timer_ns() {
    timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return uint64_t(now.tv_sec) * 1000000000 + uint64_t(now.tv_nsec);
}

}  // namespace takt_emulated

inline long long clock64() { return (long long)(takt_emulated::timer_ns()); }
inline void __nanosleep(unsigned ns) {
    timespec nap = {0, long(ns)};
    nanosleep(&nap, nullptr);
}
#define __trap() ::takt_emulated::fail("a trap")

// ---- arithmetic -----------------------------------------------------------------------------------------------------------------------

template <typename T>
inline T min(T a, T b) {
    return b < a ? b : a;
}
template <typename T>
inline T max(T a, T b) {
    return a < b ? b : a;
}
inline unsigned __float_as_uint(float value) {
    unsigned bits;
    memcpy(&bits, &value, sizeof bits);
    return bits;
}
inline float __uint_as_float(unsigned bits) {
    float value;
    memcpy(&value, &bits, sizeof value);
    return value;
}
inline int __float_as_int(float value) { return int(__float_as_uint(value)); }
inline float __int_as_float(int bits) { return __uint_as_float(unsigned(bits)); }
inline float rsqrtf(float value) { return 1.0f / sqrtf(value); }
inline float __frsqrt_rn(float value) { return 1.0f / sqrtf(value); }
inline float __frcp_rn(float value) { return 1.0f / value; }
inline float __expf(float value) { return expf(value); }
inline float __logf(float value) { return logf(value); }
inline float __fdividef(float a, float b) { return a / b; }
inline float __fdiv_rn(float a, float b) { return a / b; }
inline float __fsqrt_rn(float value) { return sqrtf(value); }
inline float __fmul_rn(float a, float b) { return a * b; }
inline float __fadd_rn(float a, float b) { return a + b; }
inline float __fsub_rn(float a, float b) { return a - b; }
inline float __fmaf_rn(float a, float b, float c) { return fmaf(a, b, c); }
inline int __float2int_rn(float value) { return int(rintf(value)); }
inline unsigned long long __umul64hi(unsigned long long a, unsigned long long b) {
    return (unsigned long long)((unsigned __int128)a * b >> 64);
}
inline int __popc(unsigned value) { return __builtin_popcount(value); }
inline int __ffs(int value) { return __builtin_ffs(value); }
inline int __clz(int value) { return value == 0 ? 32 : __builtin_clz(unsigned(value)); }
inline unsigned __byte_perm(unsigned low, unsigned high, unsigned selector) {
    uint64_t bytes = uint64_t(high) << 32 | low;
    unsigned result = 0;
    for (int idx = 0; idx < 4; idx++) {
        unsigned code = selector >> (4 * idx) & 15, byte = unsigned(bytes >> (8 * (code & 7))) & 255;
        if (code & 8) byte = byte & 128 ? 255 : 0;
        result |= byte << (8 * idx);
    }
    return result;
}
