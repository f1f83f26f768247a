// New rows of the cache put behind the rows of their lanes, where whoever computed them could not: a TensorRT plan that takes the cache as an
// input and hands the new rows out.
//
//   rows    [num_layers, 2 (keys, values), tensor_bytes]: of each the first [batch, G, num_tokens, row_bytes], a multiple of 16 bytes a row
//   planes  [num_layers, 4] addresses of each layer's keys, values and two more, as kv_compact.cu has them; no scales
//   places  I32 [batch, 2], read on the device: the lane's row that the first new row goes to, and how many of its new rows count; those behind
//           are padding and written nowhere
//
// Lane `first_lane + b` gets the rows of batch entry b. Bound by memory: two bytes moved for each byte of a row, a few rows a lane and step.

#include "common/kv.cuh"
#include "common/types.cuh"
#include "common/warp.cuh"

namespace {

constexpr int NUM_THREADS = 128;

}  // namespace

// Grid: batch, num_layers · num_kv_heads, 2 (keys, values). Block: 128 threads.
extern "C" __global__ void __launch_bounds__(128, 8)
    kv_append(const unsigned long long* planes, const char* rows, const int* places, unsigned long long tensor_bytes, int first_lane,
              int num_tokens, int num_kv_heads, int capacity, int row_bytes) {
    release_next_kernel();
    await_previous_kernel();
    int first_row = places[2 * blockIdx.x], count = min(places[2 * blockIdx.x + 1], num_tokens);
    // Never beyond the lane, whatever is said.
    if (first_row < 0) return;
    count = min(count, capacity - first_row);
    int layer = int(blockIdx.y) / num_kv_heads, kv_head = int(blockIdx.y) % num_kv_heads;
    int row_words = row_bytes / 16;
    const uint4* from = reinterpret_cast<const uint4*>(rows + (2ull * layer + blockIdx.z) * tensor_bytes) +
                        head_row(int(blockIdx.x), kv_head, num_kv_heads, num_tokens) * row_words;
    uint4* to = reinterpret_cast<uint4*>(planes[layer * 4 + blockIdx.z]) +
                (head_row(first_lane + int(blockIdx.x), kv_head, num_kv_heads, capacity) + first_row) * row_words;
    for (int word = int(threadIdx.x); word < count * row_words; word += NUM_THREADS) store_16(to + word, load_16(from + word));
}
