// Kernels that show what the emulator does, and what it refuses.
#include "common/warp.cuh"

// out[block] = sum of the block's values, through shared memory.
extern "C" __global__ void __launch_bounds__(96, 1) sum_blocks(const float* values, float* out, int count) {
    __shared__ float partial[3];
    int idx = int(blockIdx.x * blockDim.x + threadIdx.x);
    float sum = block_sum<3>(idx < count ? values[idx] : 0.0f, partial);
    if (threadIdx.x == 0) out[blockIdx.x] = sum;
}

// d = a · b: a [16, 16] and b [8, 16] of BF16 (both rows along k), d [16, 8]; through shared memory and `ldmatrix`.
extern "C" __global__ void __launch_bounds__(32, 1) multiply_tiles(const bf16* a, const bf16* b, float* d) {
    TAKT_DYNAMIC_SHARED(bf16, tiles);
    int lane = lane_idx(), group = lane / 4, pair = lane % 4 * 2;
    copy_16_async(tiles + lane * 8, a + lane * 8);
    copy_16_async(tiles + 256 + lane * 8, b + lane * 8, lane < 16);  // zeros behind b
    copy_commit();
    copy_wait<0>();
    __syncthreads();
    uint32_t left[4], right[4];
    load_matrix_x4(left, tiles + lane % 16 * 16 + lane / 16 * 8);
    load_matrix_x4(right, tiles + 256 + lane / 16 * 128 + lane % 8 * 16 + lane / 8 % 2 * 8);
    uint32_t right_pair[2] = {right[0], right[1]}, zeros[2] = {right[2], right[3]};
    float sums[4] = {0.0f, 0.0f, 0.0f, 0.0f};
    mma_m16n8k16(sums, left, right_pair);
    mma_m16n8k16(sums, left, zeros);
    for (int idx = 0; idx < 4; idx++) d[(group + idx / 2 * 8) * 8 + pair + idx % 2] = sums[idx];
}

// One value of every conversion for each of `count` codes or values.
extern "C" __global__ void __launch_bounds__(32, 1)
convert(const float* values, int count, uint32_t* to_e4m3, uint32_t* to_bf16, float* from_e4m3, float* from_f16) {
    for (int idx = lane_idx(); idx < count; idx += WARP_SIZE) {
        to_e4m3[idx] = float_to_e4m3(values[idx]);
        to_bf16[idx] = float_to_bf16(values[idx]).bits;
        from_e4m3[idx] = e4m3_to_float(uint32_t(idx) & 0xff);
        from_f16[idx] = f16_to_float(uint16_t(idx));
    }
}

// What each code becomes in a pair of BF16: nibbles E2M1 times 1.5, nibbles INT4, bytes E4M3.
extern "C" __global__ void __launch_bounds__(32, 1)
expand(const uint32_t* words, int count, uint32_t scale_code, float* e2m1, float* int4s, float* e4m3) {
    for (int word = lane_idx(); word < count; word += WARP_SIZE) {
        uint32_t pairs[4], bytes[2], scales[2];
        e2m1_scales(word % 2 == 0 ? scale_code | 0x7700 : scale_code << 8 | 0x77, scales);
        e2m1x8_to_bf16x2(words[word], scales[word % 2], pairs);
        for (int idx = 0; idx < 4; idx++) {
            e2m1[word * 8 + idx] = bf16x2_first(pairs[idx]) * E2M1_REST;
            e2m1[word * 8 + idx + 4] = bf16x2_second(pairs[idx]) * E2M1_REST;
        }
        int4x8_to_bf16x2(words[word], pairs);
        for (int idx = 0; idx < 4; idx++) {
            int4s[word * 8 + idx] = bf16x2_first(pairs[idx]);
            int4s[word * 8 + idx + 4] = bf16x2_second(pairs[idx]);
        }
        e4m3x4_to_bf16x2(words[word], bytes);
        for (int idx = 0; idx < 2; idx++) {
            e4m3[word * 4 + idx * 2] = bf16x2_first(bytes[idx]);
            e4m3[word * 4 + idx * 2 + 1] = bf16x2_second(bytes[idx]);
        }
    }
}

// Mistakes, chosen by `which`.
extern "C" __global__ void __launch_bounds__(64, 1) mistake(int which, float* out) {
    TAKT_DYNAMIC_SHARED(float, shared);
    int thread = int(threadIdx.x);
    if (which == 0 && thread == 40) return;             // ends before a barrier
    if (which == 1 && thread < 32) __syncthreads();     // another barrier than the other warp's
    if (which == 2) shared[64 + thread / 63] = 0.0f;    // past the launch's shared memory
    if (which == 3) out[0] = float(load_16(reinterpret_cast<char*>(out) + 4).x);  // misaligned
    if (which == 4 && thread % 2 == 0) __syncwarp();    // only half of the mask comes
    if (which == 5) copy_16_async(shared, out);         // never waited for
    if (which == 6) out[0] = __shfl_down_sync(thread < 32 ? 0xffffu : 0xffff0000u, 1.0f, 1u);  // from outside the mask
    __syncthreads();
    out[thread] = float(thread);
}

// Every exchange of a warp, as 16 words a thread; the last warp is not whole.
extern "C" __global__ void __launch_bounds__(48, 1) exchange(uint32_t* out, uint32_t* counter) {
    uint32_t thread = threadIdx.x, lane = thread % 32, mask = thread < 32 ? FULL_MASK : 0xffffu;
    uint32_t* mine = out + thread * 16;
    mine[0] = __shfl_sync(mask, thread, 5);
    mine[1] = __shfl_sync(mask, thread, 3, 8);
    mine[2] = __shfl_xor_sync(mask, thread, 4);
    mine[3] = thread < 32 ? __shfl_down_sync(mask, thread, 2u) : 0;
    mine[4] = __shfl_up_sync(mask, thread, 2u);
    mine[5] = __shfl_down_sync(mask, thread, 2u, 8);
    mine[6] = __ballot_sync(mask, lane % 3 == 0);
    mine[7] = __any_sync(mask, lane == 7) + 2 * __all_sync(mask, lane < 40) + 4 * __all_sync(mask, lane != 7);
    // Two halves of a warp that exchange apart, and differently often.
    uint32_t half = lane < 16 ? 0xffffu : 0xffff0000u;
    mine[8] = 0;
    for (uint32_t round = 0; round <= lane / 16; round++) mine[8] += __shfl_xor_sync(half & mask, lane, 1);
    mine[9] = uint32_t(__syncthreads_count(thread % 5 == 0));
    mine[10] = uint32_t(__syncthreads_or(thread == 47)) + 2 * uint32_t(__syncthreads_and(thread < 47));
    atomicAdd(counter, 1u);
    atomicMax(counter + 1, thread);
    mine[11] = atomicCAS(counter + 2, 0u, thread + 1) == 0 ? 1 : 0;
    mine[12] = uint32_t(__popc(thread)) + 100 * uint32_t(__clz(int(thread))) + 10000 * uint32_t(__ffs(int(thread)));
    mine[13] = __byte_perm(0x33221100u, 0x87665544u, 0x0f52);
    mine[14] = blockDim.x + 1000 * gridDim.x + 1000000 * threadIdx.y;
    mine[15] = lane_idx() + 100 * warp_idx();
}
