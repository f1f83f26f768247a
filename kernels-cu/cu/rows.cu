// Rows of F32 matrices moved: the rows whose logits are wanted, a layer's features beside others'.
//
//   copy_rows_f32  out[i, 0..width] = in[rows[i], 0..width]; rows null: i. Rows begin in_stride and out_stride elements apart. A row index
//                  below 0 is padding: zeros are written.
//   scatter_rows_f32  out[rows[i], 0..width] = in[i, 0..width]; a row index below 0 is padding: nothing is written. No index comes twice.
//
//   rows  I32 [num_rows], read on the device
//
// One block a row. Bound by memory: 8 bytes an element.
#include "common/warp.cuh"

namespace {

constexpr int THREADS = 256;

}  // namespace

extern "C" __global__ void __launch_bounds__(THREADS, 4)
copy_rows_f32(const float* in, const int* rows, float* out, uint64_t in_stride, uint64_t out_stride, uint32_t width) {
    int row = rows != nullptr ? rows[blockIdx.x] : int(blockIdx.x);
    float* to = out + blockIdx.x * out_stride;
    for (uint32_t col = threadIdx.x; col < width; col += THREADS) to[col] = row < 0 ? 0.0f : in[uint64_t(row) * in_stride + col];
}

extern "C" __global__ void __launch_bounds__(THREADS, 4)
scatter_rows_f32(const float* in, const int* rows, float* out, uint64_t in_stride, uint64_t out_stride, uint32_t width) {
    int row = rows[blockIdx.x];
    if (row < 0) return;
    const float* from = in + blockIdx.x * in_stride;
    float* to = out + uint64_t(row) * out_stride;
    for (uint32_t col = threadIdx.x; col < width; col += THREADS) to[col] = from[col];
}
