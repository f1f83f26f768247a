// Rows of the cache moved: an accepted path's to the end of its lane, and prefixes to snapshots and back.
//
// A plane is the keys, or the values, of one layer and key/value head of a lane: `capacity` rows of `row_bytes`, a multiple of 16, and
// `capacity` scales where the format has them. `planes[num_layers, 4]` are the addresses of each layer's keys, values, key scales and value
// scales (0 for none), as common/kv.cuh lays them out.
//
// Bound by latency (a path is a few rows of a plane), or by memory for snapshots.

#include "common/kv.cuh"
#include "common/types.cuh"
#include "common/warp.cuh"

namespace {

constexpr int NUM_THREADS = 128;
// Rows under way at a time.
constexpr int ROWS_AT_ONCE = 8;

// A plane's elements of type T, `columns` a row.
template <class T>
struct Plane {
    T* rows;
    int columns;
};

// Moves `column` of the rows `sources[0..count)` to rows first_row, first_row + 1, …
//
// In place, though both may overlap: sources ascend, and each is at or behind its destination's place (sources[i] >= first_row + i, as
// `first_row` is the tree's first row and a path's nodes ascend from its root). What is written before source i is read are
// destinations of j < i, which are at most sources[j] < sources[i]: never a source still to be read. Threads share no column.
template <class T>
__device__ __forceinline__ void move_column(const Plane<T>& plane, int column, const int* sources, int count, int first_row) {
    for (int start = 0; start < count; start += ROWS_AT_ONCE) {
        T held[ROWS_AT_ONCE];
#pragma unroll
        for (int i = 0; i < ROWS_AT_ONCE; i++) {
            if (start + i < count) held[i] = plane.rows[(long long)sources[start + i] * plane.columns + column];
        }
#pragma unroll
        for (int i = 0; i < ROWS_AT_ONCE; i++) {
            if (start + i < count) plane.rows[(long long)(first_row + start + i) * plane.columns + column] = held[i];
        }
    }
}

}  // namespace

// Grid: num_moves, num_layers · num_kv_heads, 2 (keys, values). Block: 128 threads.
// moves[num_moves, 3 + max_path]: lane (-1 for none), number of rows, first destination, then the source rows, as `accept` writes them.
extern "C" __global__ void __launch_bounds__(128, 8)
    kv_compact(const unsigned long long* planes, const int* moves, int max_path, int num_kv_heads, int capacity, int row_bytes) {
    release_next_kernel();
    await_previous_kernel();
    const int* move = moves + (long long)blockIdx.x * (3 + max_path);
    int lane = move[0], count = min(move[1], max_path), first_row = move[2];
    const int* sources = move + 3;
    if (lane < 0) return;
    // Rows that are where they belong: a path along the first branch.
    while (count > 0 && sources[0] == first_row) sources++, count--, first_row++;
    int layer = int(blockIdx.y) / num_kv_heads, kv_head = int(blockIdx.y) % num_kv_heads;
    const unsigned long long* addresses = planes + layer * 4 + blockIdx.z;
    long long first = head_row(lane, kv_head, num_kv_heads, capacity);
    Plane<uint4> rows = {reinterpret_cast<uint4*>(addresses[0]) + first * (row_bytes / 16), row_bytes / 16};
    for (int column = int(threadIdx.x); column < rows.columns; column += NUM_THREADS) {
        move_column(rows, column, sources, count, first_row);
    }
    if (addresses[2] != 0 && threadIdx.x == NUM_THREADS - 1) {
        Plane<float> scales = {reinterpret_cast<float*>(addresses[2]) + first, 1};
        move_column(scales, 0, sources, count, first_row);
    }
}

// Copies rows [0, len) of a lane's planes to a snapshot, or with `restores` not 0 back. A snapshot holds `len` rows of each plane:
// rows [2 (keys, values), num_layers · num_kv_heads, len, row_bytes] and scales [2, num_layers · num_kv_heads, len]. Not part of a captured
// step: lengths are arguments.
//
// Grid: blocks that share a plane's rows, num_layers · num_kv_heads, 2. Block: 128 threads.
extern "C" __global__ void __launch_bounds__(128, 8)
    kv_snapshot(const unsigned long long* planes, uint4* snapshot_rows, float* snapshot_scales, int lane, int len, int restores,
                int num_kv_heads, int capacity, int row_bytes) {
    release_next_kernel();
    await_previous_kernel();
    int layer = int(blockIdx.y) / num_kv_heads, kv_head = int(blockIdx.y) % num_kv_heads;
    const unsigned long long* addresses = planes + layer * 4 + blockIdx.z;
    long long first = head_row(lane, kv_head, num_kv_heads, capacity);
    long long snapshot_first = ((long long)blockIdx.z * gridDim.y + blockIdx.y) * len;
    long long words = (long long)len * (row_bytes / 16), stride = (long long)gridDim.x * NUM_THREADS;
    long long start = (long long)blockIdx.x * NUM_THREADS + threadIdx.x;

    uint4* rows = reinterpret_cast<uint4*>(addresses[0]) + first * (row_bytes / 16);
    uint4* stored = snapshot_rows + snapshot_first * (row_bytes / 16);
    for (long long word = start; word < words; word += stride) {
        if (restores != 0) {
            store_16(rows + word, load_16(stored + word));
        } else {
            store_16(stored + word, load_16(rows + word));
        }
    }
    if (addresses[2] == 0) return;
    float* scales = reinterpret_cast<float*>(addresses[2]) + first;
    float* stored_scales = snapshot_scales + snapshot_first;
    for (long long row = start; row < len; row += stride) {
        if (restores != 0) {
            scales[row] = stored_scales[row];
        } else {
            stored_scales[row] = scales[row];
        }
    }
}
