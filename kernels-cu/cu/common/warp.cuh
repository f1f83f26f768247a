// What the 32 threads of a warp do together, and vector access to memory: thin names for PTX, or for the CPU emulator of the tests.
#pragma once

#include "common/types.cuh"

constexpr uint32_t FULL_MASK = 0xffffffffu;
constexpr int WARP_SIZE = 32;

__device__ __forceinline__ int lane_idx() { return int(threadIdx.x) % WARP_SIZE; }
__device__ __forceinline__ int warp_idx() { return int(threadIdx.x) / WARP_SIZE; }

// ---- reductions: one fixed order, the same result in every lane -----------------------------------------------------------------------

__device__ __forceinline__ float warp_sum(float value) {
#pragma unroll
    for (int distance = WARP_SIZE / 2; distance > 0; distance /= 2) value += __shfl_xor_sync(FULL_MASK, value, distance);
    return value;
}

__device__ __forceinline__ float warp_max(float value) {
#pragma unroll
    for (int distance = WARP_SIZE / 2; distance > 0; distance /= 2) {
        value = fmaxf(value, __shfl_xor_sync(FULL_MASK, value, distance));
    }
    return value;
}

// Sum over a block of NUM_WARPS warps; `partial` is shared memory for NUM_WARPS values. Every thread calls it and gets the sum.
template <int NUM_WARPS>
__device__ __forceinline__ float block_sum(float value, float* partial) {
    value = warp_sum(value);
    __syncthreads();  // `partial` may still be read from the sum before
    if (lane_idx() == 0) partial[warp_idx()] = value;
    __syncthreads();
    float sum = 0.0f;
#pragma unroll
    for (int warp = 0; warp < NUM_WARPS; warp++) sum += partial[warp];
    return sum;
}

// The same address, computed once and kept: the compiler takes none of its parts out of a loop to put it together again in there.
template <typename T>
__device__ __forceinline__ T* kept(T* address) {
#if defined(__CUDA_ARCH__)
    asm volatile("" : "+l"(address));
#endif
    return address;
}

// The same number, which the compiler takes for another: what follows from it is computed again, and not kept in registers meanwhile.
__device__ __forceinline__ uint32_t anew(uint32_t value) {
#if defined(__CUDA_ARCH__)
    asm volatile("" : "+r"(value));
#endif
    return value;
}

// ---- 16 bytes at a time; addresses are multiples of 16 --------------------------------------------------------------------------------

__device__ __forceinline__ uint4 load_16(const void* address) {
#if defined(TAKT_EMULATED)
    return *takt_emulated::checked(static_cast<const uint4*>(address), 16);
#else
    return *static_cast<const uint4*>(address);
#endif
}

// Read once and by no other block: not kept in L1. Loaded where it stands in the program, far ahead of its use, whatever the compiler
// thinks of registers.
__device__ __forceinline__ uint4 load_16_streaming(const void* address) {
#if defined(TAKT_EMULATED)
    return *takt_emulated::checked(static_cast<const uint4*>(address), 16);
#else
    uint4 value;
    asm volatile("ld.global.nc.L1::no_allocate.L2::128B.v4.u32 {%0, %1, %2, %3}, [%4];"
                 : "=r"(value.x), "=r"(value.y), "=r"(value.z), "=r"(value.w)
                 : "l"(address));
    return value;
#endif
}

// The same of two bytes, which are kept.
__device__ __forceinline__ uint32_t load_2_ahead(const void* address) {
#if defined(TAKT_EMULATED)
    return *takt_emulated::checked(static_cast<const uint16_t*>(address), 2);
#else
    uint16_t value;
    asm volatile("ld.global.nc.u16 %0, [%1];" : "=h"(value) : "l"(address));
    return value;
#endif
}

__device__ __forceinline__ void store_16(void* address, uint4 value) {
#if defined(TAKT_EMULATED)
    *takt_emulated::checked(static_cast<uint4*>(address), 16) = value;
#else
    *static_cast<uint4*>(address) = value;
#endif
}

// ---- tensor cores ---------------------------------------------------------------------------------------------------------------------

// D += A · B, A 16 × 16 and B 16 × 8 of BF16, D 16 × 8 of F32 (`mma.sync.m16n8k16`). With g = lane / 4 and t = lane % 4, a lane holds
//   a[0]: A[g][2t, 2t+1]   a[1]: A[g+8][2t, 2t+1]   a[2]: A[g][2t+8, 2t+9]   a[3]: A[g+8][2t+8, 2t+9]
//   b[0]: B[2t, 2t+1][g]   b[1]: B[2t+8, 2t+9][g]
//   d[0], d[1]: D[g][2t, 2t+1]   d[2], d[3]: D[g+8][2t, 2t+1]
__device__ __forceinline__ void mma_m16n8k16(float (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2]) {
#if defined(TAKT_EMULATED)
    takt_emulated::mma_m16n8k16_bf16(d, a, b);
#else
    asm("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};"
        : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
#endif
}

// Four 8 × 8 matrices of 16-bit values from shared memory; lane i gives the address of row i % 8 of matrix i / 8 (16-byte aligned).
// A lane gets of matrix j: d[j] = M[g][2t, 2t+1].
__device__ __forceinline__ void load_matrix_x4(uint32_t (&d)[4], const void* row) {
#if defined(TAKT_EMULATED)
    takt_emulated::load_matrix_x4(d, row, false);
#else
    uint32_t address = uint32_t(__cvta_generic_to_shared(row));
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];"
                 : "=r"(d[0]), "=r"(d[1]), "=r"(d[2]), "=r"(d[3])
                 : "r"(address)
                 : "memory");
#endif
}

// The same with each matrix transposed: d[j] = M[2t, 2t+1][g].
__device__ __forceinline__ void load_matrix_x4_transposed(uint32_t (&d)[4], const void* row) {
#if defined(TAKT_EMULATED)
    takt_emulated::load_matrix_x4(d, row, true);
#else
    uint32_t address = uint32_t(__cvta_generic_to_shared(row));
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0, %1, %2, %3}, [%4];"
                 : "=r"(d[0]), "=r"(d[1]), "=r"(d[2]), "=r"(d[3])
                 : "r"(address)
                 : "memory");
#endif
}

// ---- asynchronous copies from global to shared memory ---------------------------------------------------------------------------------

// Copies 16 bytes, or with `valid` false writes 16 zero bytes and reads nothing. Done after `copy_wait`; other threads see it after a
// barrier that follows.
__device__ __forceinline__ void copy_16_async(void* shared, const void* global, bool valid = true) {
#if defined(TAKT_EMULATED)
    takt_emulated::copy_async(shared, global, 16, valid ? 16 : 0);
#else
    uint32_t address = uint32_t(__cvta_generic_to_shared(shared));
    int bytes = valid ? 16 : 0;
    asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(address), "l"(global), "r"(bytes) : "memory");
#endif
}

// Ends a group of copies.
__device__ __forceinline__ void copy_commit() {
#if defined(TAKT_EMULATED)
    takt_emulated::copy_async_commit();
#else
    asm volatile("cp.async.commit_group;" ::: "memory");
#endif
}

// Waits until at most GROUPS_LEFT of this thread's latest groups are under way.
template <int GROUPS_LEFT>
__device__ __forceinline__ void copy_wait() {
#if defined(TAKT_EMULATED)
    takt_emulated::copy_async_wait(GROUPS_LEFT);
#else
    asm volatile("cp.async.wait_group %0;" ::"n"(GROUPS_LEFT) : "memory");
#endif
}

// ---- programmatic dependent launch (sm_90a on; nothing elsewhere, nor in a launch without that attribute) -----------------------------

// Waits until the kernel before has ended and what it wrote can be seen. Before it a kernel touches nothing but weights.
__device__ __forceinline__ void await_previous_kernel() {
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 900
    asm volatile("griddepcontrol.wait;" ::: "memory");
#endif
}

// Lets the kernel behind begin, up to its `await_previous_kernel`, wherever blocks of this one have ended.
__device__ __forceinline__ void release_next_kernel() {
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 900
    asm volatile("griddepcontrol.launch_dependents;" ::: "memory");
#endif
}
