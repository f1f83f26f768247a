// How fast the device reads its memory: what decoding is held against.
//
//   read_memory  out[block] = exclusive or of all 32-bit words the block read. Blocks together read every 16-byte piece of `in` once.
//
//   in   any bits, num_pieces · 16 bytes, 16-byte aligned
//   out  U32 [number of blocks]
//
// Bound by memory, as nothing else is done: four independent 16-byte loads a thread are under way, past the first-level cache, as weights are
// loaded in linear.cu.
#include "common/warp.cuh"

namespace {

constexpr int THREADS = 256, NUM_WARPS = THREADS / WARP_SIZE;
constexpr int AT_ONCE = 4;

__device__ __forceinline__ uint32_t folded(uint4 piece) { return piece.x ^ piece.y ^ piece.z ^ piece.w; }

}  // namespace

extern "C" __global__ void __launch_bounds__(THREADS, 4) read_memory(const uint4* in, uint32_t* out, uint64_t num_pieces) {
    __shared__ uint32_t partial[NUM_WARPS];
    uint64_t step = uint64_t(gridDim.x) * THREADS, piece = uint64_t(blockIdx.x) * THREADS + threadIdx.x;
    uint32_t sum = 0;
    for (; piece + (AT_ONCE - 1) * step < num_pieces; piece += AT_ONCE * step) {
        uint4 pieces[AT_ONCE];
#pragma unroll
        for (int idx = 0; idx < AT_ONCE; idx++) pieces[idx] = load_16_streaming(in + piece + idx * step);
#pragma unroll
        for (int idx = 0; idx < AT_ONCE; idx++) sum ^= folded(pieces[idx]);
    }
    for (; piece < num_pieces; piece += step) sum ^= folded(load_16_streaming(in + piece));
#pragma unroll
    for (int distance = WARP_SIZE / 2; distance > 0; distance /= 2) sum ^= __shfl_xor_sync(FULL_MASK, sum, distance);
    if (lane_idx() == 0) partial[warp_idx()] = sum;
    __syncthreads();
    if (threadIdx.x == 0) {
        uint32_t all = 0;
#pragma unroll
        for (int warp = 0; warp < NUM_WARPS; warp++) all ^= partial[warp];
        out[blockIdx.x] = all;
    }
}
