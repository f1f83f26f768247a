// RMSNorm (Zhang and Sennrich 2019, arXiv 1910.07467): out = x · 1/√(mean(x²) + eps) · weight, with x = residual (+ delta).
//
//   residual  F32  [num_tokens, width]; with `delta` it is replaced by the sum
//   delta     F32  [num_tokens, width], or null
//   weight    F32  [width]
//   out       BF16 [num_tokens, width], ready for a product; or F32 (rms_norm_f32), for what follows in full precision
//
// rms_norm_rows takes rows from anywhere and lays them beside others, as the input of a draft head is made: token i's row is in_rows[i] of `in`
// (a row of zeros for an index below 0), and begins out_stride elements after that of token i − 1:
//
//   in        F32  [_, width], rows in_stride elements apart
//   in_rows   I32  [num_tokens], or null for the rows in order
//   weight    F32  [width], or null: the row is only converted
//   exact     F32  [num_tokens, width], or null: the same unrounded; may be `in` where rows are taken in order
//   out       BF16 [num_tokens, width], rows out_stride elements apart
//
// One block a token. Bound by memory: 4 bytes read and 2 written an element (the second reading comes from L1); in a decode step, one
// token, by latency. The order of summation depends on the width only.
#include "common/warp.cuh"

namespace {

constexpr int NUM_WARPS = 16;
constexpr int THREADS = NUM_WARPS * WARP_SIZE;

struct Row {
    float* residual;
    const float* delta;
    const float* weight;
    uint32_t width;
};

// COLS columns side by side: four where rows are whole 16-byte vectors, else one.
template <int COLS>
struct Vector {
    float values[COLS];
};

template <int COLS>
__device__ __forceinline__ Vector<COLS> load(const float* from) {
    Vector<COLS> vector;
    if constexpr (COLS == 4) {
        uint4 bits = load_16(from);
        vector.values[0] = __uint_as_float(bits.x), vector.values[1] = __uint_as_float(bits.y);
        vector.values[2] = __uint_as_float(bits.z), vector.values[3] = __uint_as_float(bits.w);
    } else {
        vector.values[0] = from[0];
    }
    return vector;
}

template <int COLS>
__device__ __forceinline__ void store(float* to, const Vector<COLS>& vector) {
    if constexpr (COLS == 4) {
        store_16(to, make_uint4(__float_as_uint(vector.values[0]), __float_as_uint(vector.values[1]),
                                __float_as_uint(vector.values[2]), __float_as_uint(vector.values[3])));
    } else {
        to[0] = vector.values[0];
    }
}

template <int COLS>
__device__ __forceinline__ void store(bf16* to, const Vector<COLS>& vector) {
    if constexpr (COLS == 4) {
        *reinterpret_cast<uint2*>(to) = make_uint2(floats_to_bf16x2(vector.values[0], vector.values[1]),
                                                   floats_to_bf16x2(vector.values[2], vector.values[3]));
    } else {
        to[0] = float_to_bf16(vector.values[0]);
    }
}

// Sum of squares of this thread's columns; adds `delta` on the way.
template <int COLS>
__device__ __forceinline__ float add_and_square(const Row& row) {
    float sum = 0.0f;
    for (uint32_t col = threadIdx.x * COLS; col < row.width; col += THREADS * COLS) {
        Vector<COLS> x = load<COLS>(row.residual + col);
        if (row.delta != nullptr) {
            Vector<COLS> delta = load<COLS>(row.delta + col);
#pragma unroll
            for (int idx = 0; idx < COLS; idx++) x.values[idx] += delta.values[idx];
            store(row.residual + col, x);
        }
#pragma unroll
        for (int idx = 0; idx < COLS; idx++) sum = fmaf(x.values[idx], x.values[idx], sum);
    }
    return sum;
}

// A thread reads again only columns that it wrote itself.
template <int COLS, typename Out>
__device__ __forceinline__ void scale(const Row& row, float factor, Out* out) {
    for (uint32_t col = threadIdx.x * COLS; col < row.width; col += THREADS * COLS) {
        Vector<COLS> x = load<COLS>(row.residual + col), weight = load<COLS>(row.weight + col);
#pragma unroll
        for (int idx = 0; idx < COLS; idx++) x.values[idx] = x.values[idx] * factor * weight.values[idx];
        store(out + col, x);
    }
}

template <int COLS, typename Out>
__device__ __forceinline__ void normalize(const Row& row, float eps, Out* out) {
    __shared__ float partial[NUM_WARPS];
    float sum = block_sum<NUM_WARPS>(add_and_square<COLS>(row), partial);
    scale<COLS>(row, 1.0f / sqrtf(sum / float(row.width) + eps), out);
}

// A row of zeros stays one: it is neither read nor normalized.
template <int COLS>
__device__ __forceinline__ void norm_or_convert(const Row& row, bool is_zeros, float eps, float* exact, bf16* out) {
    __shared__ float partial[NUM_WARPS];
    float factor = 1.0f;
    if (!is_zeros && row.weight != nullptr) {
        float sum = block_sum<NUM_WARPS>(add_and_square<COLS>(row), partial);
        factor = 1.0f / sqrtf(sum / float(row.width) + eps);
    }
    for (uint32_t col = threadIdx.x * COLS; col < row.width; col += THREADS * COLS) {
        Vector<COLS> x = {};
        if (!is_zeros) {
            x = load<COLS>(row.residual + col);
            if (row.weight != nullptr) {
                Vector<COLS> weight = load<COLS>(row.weight + col);
#pragma unroll
                for (int idx = 0; idx < COLS; idx++) x.values[idx] = x.values[idx] * factor * weight.values[idx];
            }
        }
        if (exact != nullptr) store(exact + col, x);
        store(out + col, x);
    }
}

template <typename Out>
__device__ __forceinline__ void rms_norm(float* residual, const float* delta, const float* weight, Out* out, uint32_t width, float eps) {
    release_next_kernel();
    await_previous_kernel();
    size_t first = size_t(blockIdx.x) * width;
    Row row = {residual + first, delta == nullptr ? nullptr : delta + first, weight, width};
    if (width % 4 == 0) {
        normalize<4>(row, eps, out + first);
    } else {
        normalize<1>(row, eps, out + first);
    }
}

}  // namespace

extern "C" __global__ void __launch_bounds__(THREADS, 2)
rms_norm_bf16(float* residual, const float* delta, const float* weight, bf16* out, uint32_t width, float eps) {
    rms_norm(residual, delta, weight, out, width, eps);
}

extern "C" __global__ void __launch_bounds__(THREADS, 2)
rms_norm_f32(float* residual, const float* delta, const float* weight, float* out, uint32_t width, float eps) {
    rms_norm(residual, delta, weight, out, width, eps);
}

extern "C" __global__ void __launch_bounds__(THREADS, 2)
rms_norm_rows(float* in, const int* in_rows, const float* weight, float* exact, bf16* out, uint64_t in_stride, uint64_t out_stride,
              uint32_t width, float eps) {
    release_next_kernel();
    await_previous_kernel();
    int source = in_rows != nullptr ? in_rows[blockIdx.x] : int(blockIdx.x);
    Row row = {in + (source < 0 ? 0 : uint64_t(source)) * in_stride, nullptr, weight, width};
    float* exact_row = exact == nullptr ? nullptr : exact + size_t(blockIdx.x) * width;
    bf16* out_row = out + blockIdx.x * out_stride;
    if (width % 4 == 0 && in_stride % 4 == 0 && out_stride % 4 == 0) {
        norm_or_convert<4>(row, source < 0, eps, exact_row, out_row);
    } else {
        norm_or_convert<1>(row, source < 0, eps, exact_row, out_row);
    }
}
