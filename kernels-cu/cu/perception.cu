// A stand-in for a robot's perception, to measure what the language model does to it: one convolution and one matrix product, again and again.
//
//   perception_conv  features = max(0, image ∗ weights), 3 × 3, zeros around the image
//   perception_gemm  out = features · matrixᵀ; each run of 16 pixels is a row of 512 features
//
//   image     F32  [height, width, 32]
//   weights   F32  [3, 3, 32 in, 32 out]
//   features  BF16 [height, width, 32], that is [height · width / 16, 512]
//   matrix    BF16 [256, 512]
//   out       BF16 [height · width / 16, 256]
//
// height is a multiple of 8, width of 16, height · width of 1024. Both are bound by computing, the convolution on the cores, the product on the
// tensor cores; the image passes through the second-level cache, or through memory when it is larger. Plain tiles, as a network's kernels are.
#include "common/warp.cuh"

namespace {

constexpr int CHANNELS = 32;
constexpr int TILE_HEIGHT = 8, TILE_WIDTH = 16, CONV_THREADS = TILE_HEIGHT * TILE_WIDTH;
constexpr int HALO_HEIGHT = TILE_HEIGHT + 2, HALO_WIDTH = TILE_WIDTH + 2;
// A pixel more than its channels: neighbouring pixels meet different banks.
constexpr int PIXEL_STRIDE = CHANNELS + 1;

constexpr int INNER = 512, OUTPUTS = 256;
constexpr int GEMM_THREADS = 128, BLOCK_SIDE = 64, WARP_SIDE = 32, STEP = 32;
// 16 bytes more than a step: rows of eight that are loaded together meet different banks.
constexpr int ROW_STRIDE = STEP + 8;

// Copies rows [first_row, first_row + 64), columns [col, col + 32) of a matrix of 512 columns to shared memory.
__device__ __forceinline__ void copy_tile(const bf16* matrix, uint32_t first_row, uint32_t col, bf16 (&tile)[BLOCK_SIDE][ROW_STRIDE]) {
    constexpr int PIECES = STEP / 8, ROWS_AT_ONCE = GEMM_THREADS / PIECES;
    int piece = int(threadIdx.x) % PIECES, row = int(threadIdx.x) / PIECES;
#pragma unroll
    for (int first = 0; first < BLOCK_SIDE; first += ROWS_AT_ONCE) {
        uint4 values = load_16(matrix + uint64_t(first_row + first + row) * INNER + col + piece * 8);
        store_16(&tile[first + row][piece * 8], values);
    }
}

}  // namespace

// A block computes 8 × 16 pixels, a thread all channels of one.
extern "C" __global__ void __launch_bounds__(CONV_THREADS, 4)
perception_conv(const float* image, const float* weights, bf16* features, uint32_t height, uint32_t width) {
    __shared__ float pixels[HALO_HEIGHT * HALO_WIDTH * PIXEL_STRIDE];
    __shared__ __align__(16) float kernel[CHANNELS * CHANNELS];
    int top = int(blockIdx.y) * TILE_HEIGHT - 1, left = int(blockIdx.x) * TILE_WIDTH - 1;
    for (int idx = int(threadIdx.x); idx < HALO_HEIGHT * HALO_WIDTH * CHANNELS; idx += CONV_THREADS) {
        int pixel = idx / CHANNELS, channel = idx % CHANNELS;
        int row = top + pixel / HALO_WIDTH, col = left + pixel % HALO_WIDTH;
        bool is_inside = row >= 0 && row < int(height) && col >= 0 && col < int(width);
        pixels[pixel * PIXEL_STRIDE + channel] = is_inside ? image[(uint64_t(row) * width + col) * CHANNELS + channel] : 0.0f;
    }
    float sums[CHANNELS] = {};
    int own = int(threadIdx.x) / TILE_WIDTH * HALO_WIDTH + int(threadIdx.x) % TILE_WIDTH;
#pragma unroll 1
    for (int place = 0; place < 9; place++) {
        __syncthreads();  // the pixels are there, or the weights before were used
        for (int idx = int(threadIdx.x) * 4; idx < CHANNELS * CHANNELS; idx += CONV_THREADS * 4) {
            store_16(&kernel[idx], load_16(weights + place * CHANNELS * CHANNELS + idx));
        }
        __syncthreads();
        const float* pixel = &pixels[(own + place / 3 * HALO_WIDTH + place % 3) * PIXEL_STRIDE];
#pragma unroll 4
        for (int in = 0; in < CHANNELS; in++) {
            float value = pixel[in];
#pragma unroll
            for (int out = 0; out < CHANNELS; out += 4) {
                uint4 four = load_16(&kernel[in * CHANNELS + out]);
                sums[out] = fmaf(value, __uint_as_float(four.x), sums[out]);
                sums[out + 1] = fmaf(value, __uint_as_float(four.y), sums[out + 1]);
                sums[out + 2] = fmaf(value, __uint_as_float(four.z), sums[out + 2]);
                sums[out + 3] = fmaf(value, __uint_as_float(four.w), sums[out + 3]);
            }
        }
    }
    uint64_t row = uint64_t(blockIdx.y) * TILE_HEIGHT + threadIdx.x / TILE_WIDTH;
    uint64_t col = uint64_t(blockIdx.x) * TILE_WIDTH + threadIdx.x % TILE_WIDTH;
    bf16* to = features + (row * width + col) * CHANNELS;
#pragma unroll
    for (int out = 0; out < CHANNELS; out += 8) {
        uint32_t pairs[4];
#pragma unroll
        for (int pair = 0; pair < 4; pair++) {
            pairs[pair] = floats_to_bf16x2(fmaxf(sums[out + 2 * pair], 0.0f), fmaxf(sums[out + 2 * pair + 1], 0.0f));
        }
        store_16(to + out, make_uint4(pairs[0], pairs[1], pairs[2], pairs[3]));
    }
}

// A block computes 64 rows of 64 outputs, each of its four warps a quarter.
extern "C" __global__ void __launch_bounds__(GEMM_THREADS, 4)
perception_gemm(const bf16* features, const bf16* matrix, bf16* out) {
    __shared__ __align__(16) bf16 rows[BLOCK_SIDE][ROW_STRIDE];
    __shared__ __align__(16) bf16 columns[BLOCK_SIDE][ROW_STRIDE];
    uint32_t first_row = blockIdx.y * BLOCK_SIDE, first_output = blockIdx.x * BLOCK_SIDE;
    int warp_row = warp_idx() / 2 * WARP_SIDE, warp_output = warp_idx() % 2 * WARP_SIDE;
    int matrix_row = lane_idx() % 8, which = lane_idx() / 8;
    float sums[2][4][4] = {};
#pragma unroll 1
    for (uint32_t col = 0; col < INNER; col += STEP) {
        __syncthreads();  // the step before was used
        copy_tile(features, first_row, col, rows);
        copy_tile(matrix, first_output, col, columns);
        __syncthreads();
#pragma unroll
        for (int part = 0; part < STEP; part += 16) {
            uint32_t a[2][4], b[2][4];
#pragma unroll
            for (int tile = 0; tile < 2; tile++) {
                load_matrix_x4(a[tile], &rows[warp_row + tile * 16 + which % 2 * 8 + matrix_row][part + which / 2 * 8]);
                load_matrix_x4(b[tile], &columns[warp_output + tile * 16 + which / 2 * 8 + matrix_row][part + which % 2 * 8]);
            }
#pragma unroll
            for (int tile = 0; tile < 2; tile++) {
#pragma unroll
                for (int output = 0; output < 4; output++) {
                    uint32_t pair[2] = {b[output / 2][output % 2 * 2], b[output / 2][output % 2 * 2 + 1]};
                    mma_m16n8k16(sums[tile][output], a[tile], pair);
                }
            }
        }
    }
    int group = lane_idx() / 4, pair = lane_idx() % 4 * 2;
#pragma unroll
    for (int tile = 0; tile < 2; tile++) {
#pragma unroll
        for (int output = 0; output < 4; output++) {
            uint64_t row = first_row + warp_row + tile * 16 + group;
            bf16* to = out + row * OUTPUTS + first_output + warp_output + output * 8 + pair;
            const float(&four)[4] = sums[tile][output];
            *reinterpret_cast<uint32_t*>(to) = floats_to_bf16x2(four[0], four[1]);
            *reinterpret_cast<uint32_t*>(to + 8 * OUTPUTS) = floats_to_bf16x2(four[2], four[3]);
        }
    }
}
