// Which queries a warp of the attention kernels serves, and the steps it walks for them. See attention_decode.cu for the whole.
#pragma once

#include "attention.cuh"
#include "types.cuh"
#include "warp.cuh"

// Of a block.
constexpr int NUM_WARPS = 4;
// Of a warp: the rows of mma.m16n8k16.
constexpr int NUM_QUERIES = 16;

// What does not change within a launch.
struct Shape {
    int num_heads;
    int num_kv_heads;
    // Rows of a lane.
    int capacity;
    // Columns of `tree_rows`.
    int max_depth;
    // Last positions seen, the own one included; 0 for all.
    int window;
    float scale;
};

// The first position that a query at `end` - 1 sees.
__device__ __forceinline__ int first_seen(int end, const Shape& shape) {
    return shape.window > 0 ? max(0, end - shape.window) : 0;
}

// Consecutive tokens of one lane.
struct Segment {
    int lane;
    int first_token;
    int num_tokens;
    int is_tree;
};

// The 16 queries of a warp: row r is head r % group of token r / group of the segment.
struct Queries {
    Segment segment;
    int first_row;
    int group;
    // Of the warp's tokens.
    int last_token;
    // Of the warp's queries: positions [first, end) are seen by some.
    int first, end;
    // Rows from here on lie apart, in `tree_rows`; INT_MAX for a segment that is no tree.
    int committed_len;
    // Of this lane's two rows, g and g + 8: token within the segment, negative for none, and end of the positions seen.
    int token[2];
    int row_end[2];
};

// STEP_LEN positions from `base`: of all queries, or of one token's when they lie apart.
struct Step {
    int base;
    int end;
    int token;
};

// The steps of one split, in order: those all queries share, then each token's own.
struct Walk {
    int split_start;
    int shared_end;

    __device__ __forceinline__ int split_end() const { return split_start + SPLIT_LEN; }
};

__device__ __forceinline__ int step_start(int position) { return position / STEP_LEN * STEP_LEN; }

// Positions of a lane's scores and values: 2t, 2t + 1, 2t + 8, 2t + 9.
__device__ __forceinline__ int step_position(const Step& step, int idx) {
    return step.base + idx / 2 * 8 + lane_idx() % 4 * 2 + idx % 2;
}

__device__ __forceinline__ Queries find_queries(Segment segment, int tile, const Shape& shape,
                                                const int* positions, const int* committed_lens) {
    Queries queries;
    queries.segment = segment;
    queries.group = shape.num_heads / shape.num_kv_heads;
    queries.first_row = tile * NUM_QUERIES;
    queries.last_token = min((queries.first_row + NUM_QUERIES - 1) / queries.group, segment.num_tokens - 1);
    queries.committed_len = segment.is_tree != 0 ? committed_lens[segment.lane] : 0x7fffffff;
    int first = 0x7fffffff, end = 0;
#pragma unroll
    for (int half = 0; half < 2; half++) {
        int row = queries.first_row + lane_idx() / 4 + 8 * half;
        int token = row / queries.group;
        bool exists = token < segment.num_tokens;
        int position = exists ? positions[segment.first_token + token] : -1;
        queries.token[half] = exists ? token : -2;
        queries.row_end[half] = position + 1;
        if (exists) {
            first = min(first, first_seen(position + 1, shape));
            end = max(end, position + 1);
        }
    }
#pragma unroll
    for (int distance = 16; distance >= 4; distance /= 2) {
        first = min(first, __shfl_xor_sync(FULL_MASK, first, distance));
        end = max(end, __shfl_xor_sync(FULL_MASK, end, distance));
    }
    queries.first = first;
    queries.end = end;
    return queries;
}

// The next step of `walk` after `step`, which may be one before all (token -1, base below the split); false at the end.
__device__ __forceinline__ bool next_step(const Queries& queries, const Shape& shape, const Walk& walk, const int* positions,
                                          Step& step) {
    step.base += STEP_LEN;
    if (step.token < 0) {
        if (step.base < walk.shared_end) return true;
        if (queries.committed_len == 0x7fffffff) return false;
    } else if (step.base < min(step.end, walk.split_end())) {
        return true;
    }
    // The next token with steps of its own in this split.
    int token = step.token < 0 ? queries.first_row / queries.group : step.token + 1;
    for (; token <= queries.last_token; token++) {
        int end = positions[queries.segment.first_token + token] + 1;
        int base = max(step_start(max(first_seen(end, shape), queries.committed_len)), walk.split_start);
        if (base < min(end, walk.split_end())) {
            step.token = token;
            step.base = base;
            step.end = end;
            return true;
        }
    }
    return false;
}

// Row of `position`, or of the step's last where the step ends before it: whatever is read must have been written.
__device__ __forceinline__ int row_at(int position, const Step& step, const Queries& queries, const Shape& shape,
                                      const int* tree_rows) {
    position = min(position, step.end - 1);
    if (step.token < 0 || position < queries.committed_len) return position;
    long long list = (long long)(queries.segment.first_token + step.token) * shape.max_depth;
    return tree_rows[list + position - queries.committed_len];
}
