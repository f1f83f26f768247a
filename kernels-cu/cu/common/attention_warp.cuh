// One warp of the attention kernels: 16 queries on tensor cores, step by step. See attention_decode.cu for the whole.
#pragma once

#include "attention.cuh"
#include "attention_queries.cuh"
#include "kv.cuh"
#include "types.cuh"
#include "warp.cuh"

// Queries as fragments of mma's A, one for every 16 elements; zeros for rows beyond the segment.
template <class Rows, int HEAD_DIM>
__device__ __forceinline__ void load_queries(const uint32_t* q, const Queries& queries, int kv_head, const Shape& shape,
                                             uint32_t (&fragments)[HEAD_DIM / 16][4]) {
#pragma unroll
    for (int k = 0; k < HEAD_DIM / 16; k++) {
#pragma unroll
        for (int half = 0; half < 2; half++) {
            fragments[k][half] = fragments[k][half + 2] = 0;
            if (queries.token[half] >= 0) {
                int row = queries.first_row + lane_idx() / 4 + 8 * half;
                int head = kv_head * queries.group + row % queries.group;
                long long token = queries.segment.first_token + queries.token[half];
                int column = share_column<HEAD_DIM, 4, Rows::ELEMENT_BYTES>(lane_idx() % 4, 4 * k);
                const uint32_t* from = q + ((token * shape.num_heads + head) * HEAD_DIM + column) / 2;
                uint2 loaded = load_vector<uint2>(from);
                fragments[k][half] = loaded.x;
                fragments[k][half + 2] = loaded.y;
            }
        }
    }
}

// One key/value head of the segment's lane.
struct Head {
    const unsigned char* keys;
    const unsigned char* values;
    const float* key_scales;
    const float* value_scales;
    const int* tree_rows;
};

// Bytes from a head's first row to another; a head's rows take less than 4 GiB.
template <class Rows, int HEAD_DIM>
__device__ __forceinline__ uint32_t row_offset(int row) {
    return uint32_t(row) * (HEAD_DIM * Rows::ELEMENT_BYTES);
}

// Columns [FROM, TO) of a step's keys, as much as a lane holds of them: positions g and g + 8.
template <class Rows, int HEAD_DIM, int FROM, int TO>
struct KeyShare {
    uint32_t words[2][SHARE_WORDS<TO - FROM, 4, Rows::ELEMENT_BYTES>];

    __device__ __forceinline__ void load(const Head& head, const Step& step, const Queries& queries, const Shape& shape) {
#pragma unroll
        for (int n = 0; n < 2; n++) {
            int row = row_at(step.base + 8 * n + lane_idx() / 4, step, queries, shape, head.tree_rows);
            const unsigned char* from = head.keys + row_offset<Rows, HEAD_DIM>(row);
            load_share<TO, 4, Rows::ELEMENT_BYTES, FROM>(from, lane_idx() % 4, words[n]);
        }
    }
};

// What a lane holds of a step's scores and values: positions 2t, 2t + 1, 2t + 8, 2t + 9.
struct StepRows {
    int row[4];
    float key_factors[4];
    float value_factors[4];

    template <class Rows>
    __device__ __forceinline__ void find(const Head& head, const Step& step, const Queries& queries, const Shape& shape,
                                         float scale) {
#pragma unroll
        for (int i = 0; i < 4; i++) {
            row[i] = row_at(step_position(step, i), step, queries, shape, head.tree_rows);
            key_factors[i] = Rows::HAS_SCALES ? __fmul_rn(scale, head.key_scales[row[i]]) : scale;
            value_factors[i] = Rows::HAS_SCALES ? head.value_scales[row[i]] : 1.0f;
        }
    }
};

// Columns [FROM, TO) of a step's values, as much as a lane holds of them.
template <class Rows, int HEAD_DIM, int FROM, int TO>
struct ValueShare {
    uint32_t words[4][SHARE_WORDS<TO - FROM, 8, Rows::ELEMENT_BYTES>];

    __device__ __forceinline__ void load(const Head& head, const StepRows& rows) {
#pragma unroll
        for (int i = 0; i < 4; i++) {
            const unsigned char* from = head.values + row_offset<Rows, HEAD_DIM>(rows.row[i]);
            load_share<TO, 8, Rows::ELEMENT_BYTES, FROM>(from, lane_idx() / 4, words[i]);
        }
    }

    __device__ __forceinline__ void add(float (&out)[HEAD_DIM / 8][4], const uint32_t (&weights)[4]) const {
#pragma unroll
        for (int n = 0; n < (TO - FROM) / 8; n++) {
            uint32_t b[2] = {pair_across_rows<Rows>(words[0], words[1], n), pair_across_rows<Rows>(words[2], words[3], n)};
            mma_m16n8k16(out[FROM / 8 + n], weights, b);
        }
    }
};

// Steps of a split, one after another.
template <int HEAD_DIM>
struct Softmax {
    static constexpr int NUM_TILES = HEAD_DIM / 8;
    float out[NUM_TILES][4];
    float max_score[2];
    float sum[2];

    __device__ __forceinline__ void clear() {
#pragma unroll
        for (int tile = 0; tile < NUM_TILES; tile++) {
#pragma unroll
            for (int i = 0; i < 4; i++) out[tile][i] = 0.0f;
        }
        max_score[0] = max_score[1] = minus_infinity();
        sum[0] = sum[1] = 0.0f;
    }

    // Scores become weights relative to the new maximum; what was gathered so far shrinks to it.
    __device__ __forceinline__ void weigh(float (&scores)[2][4], const Step& step, const Queries& queries,
                                          const Shape& shape, const float (&factors)[4]) {
        bool grew = false;
        float shrink[2];
#pragma unroll
        for (int half = 0; half < 2; half++) {
            bool takes_part = step.token < 0 || step.token == queries.token[half];
            int first = first_seen(queries.row_end[half], shape);
            float largest = max_score[half];
#pragma unroll
            for (int i = 0; i < 4; i++) {
                int position = step_position(step, i);
                bool is_seen = takes_part && position >= first && position < queries.row_end[half];
                float& score = scores[i / 2][2 * half + i % 2];
                score = is_seen ? __fmul_rn(score, factors[i]) : minus_infinity();
                largest = fmaxf(largest, score);
            }
            largest = fmaxf(largest, __shfl_xor_sync(FULL_MASK, largest, 1));
            largest = fmaxf(largest, __shfl_xor_sync(FULL_MASK, largest, 2));
            float base = largest == minus_infinity() ? 0.0f : largest;
            shrink[half] = power_of_two(__fsub_rn(max_score[half], base));
            grew |= largest != max_score[half];
            max_score[half] = largest;
#pragma unroll
            for (int i = 0; i < 4; i++) {
                float& score = scores[i / 2][2 * half + i % 2];
                score = power_of_two(__fsub_rn(score, base));
            }
            float near = __fadd_rn(scores[0][2 * half], scores[0][2 * half + 1]);
            float far = __fadd_rn(scores[1][2 * half], scores[1][2 * half + 1]);
            sum[half] = __fmaf_rn(sum[half], shrink[half], __fadd_rn(near, far));
        }
        // Most steps hold no new maximum; times 1 would change nothing.
        if (__any_sync(FULL_MASK, grew)) {
#pragma unroll
            for (int tile = 0; tile < NUM_TILES; tile++) {
#pragma unroll
                for (int i = 0; i < 4; i++) out[tile][i] = __fmul_rn(out[tile][i], shrink[i / 2]);
            }
        }
    }

    // Completes the sums: each lane of four has added up its own positions.
    __device__ __forceinline__ void finish() {
#pragma unroll
        for (int half = 0; half < 2; half++) {
            sum[half] = __fadd_rn(sum[half], __shfl_xor_sync(FULL_MASK, sum[half], 1));
            sum[half] = __fadd_rn(sum[half], __shfl_xor_sync(FULL_MASK, sum[half], 2));
        }
    }
};

// Calls `store(column, first, second)` for pairs of neighbouring elements of row g + 8 · half, `value(tile, i)` being the accumulators.
template <class Rows, int HEAD_DIM, class Value, class Store>
__device__ __forceinline__ void for_each_pair(int half, Value value, Store store) {
#pragma unroll
    for (int tile = 0; tile < HEAD_DIM / 8; tile += 2) {
#pragma unroll
        for (int i = 0; i < 2; i++) {
            int column = share_column<HEAD_DIM, 8, Rows::ELEMENT_BYTES>(lane_idx() % 4 * 2 + i, tile);
            store(column, value(tile, 2 * half + i), value(tile + 1, 2 * half + i));
        }
    }
}

// Columns of a part of a row: whole chunks of what eight lanes read.
template <class Rows>
constexpr int PART_LEN = 128 / Rows::ELEMENT_BYTES;

// One warp's work on one key/value head.
template <class Rows, int HEAD_DIM>
struct Warp {
    static constexpr int NUM_K = HEAD_DIM / 16;
    static constexpr int NUM_TILES = HEAD_DIM / 8;
    // Where registers allow: values are on their way while keys are multiplied, the next step's keys while values are weighed.
    static constexpr bool LOADS_AHEAD = HEAD_DIM <= 128;
    static constexpr bool QUERIES_IN_SHARED = HEAD_DIM > 128;
    // 16-byte fragments of a warp's queries in shared memory.
    static constexpr int SHARED_FRAGMENTS = QUERIES_IN_SHARED ? NUM_K * WARP_SIZE : 0;

    const Shape& shape;
    const Queries& queries;
    const Head& head;
    const int* positions;
    float scale;
    uint32_t fragments[NUM_K][4];
    // This lane's, [NUM_K][32 lanes].
    uint4* shared_fragments;

    __device__ __forceinline__ void keep_queries(const uint32_t* q, int kv_head) {
        load_queries<Rows, HEAD_DIM>(q, queries, kv_head, shape, fragments);
        if constexpr (QUERIES_IN_SHARED) {
#pragma unroll
            for (int k = 0; k < NUM_K; k++) {
                shared_fragments[k * 32] = make_uint4(fragments[k][0], fragments[k][1], fragments[k][2], fragments[k][3]);
            }
        }
    }

    template <int FROM, int TO>
    __device__ __forceinline__ void add_scores(const KeyShare<Rows, HEAD_DIM, FROM, TO>& keys, float (&scores)[2][4],
                                               const uint4* shared_fragments) const {
#pragma unroll
        for (int k = FROM / 16; k < TO / 16; k++) {
            uint32_t a[4] = {fragments[k][0], fragments[k][1], fragments[k][2], fragments[k][3]};
            if constexpr (QUERIES_IN_SHARED) {
                uint4 loaded = shared_fragments[k * 32];
                a[0] = loaded.x, a[1] = loaded.y, a[2] = loaded.z, a[3] = loaded.w;
            }
#pragma unroll
            for (int n = 0; n < 2; n++) {
                uint32_t b[2] = {pair_along_row<Rows>(keys.words[n], 2 * k - FROM / 8),
                                 pair_along_row<Rows>(keys.words[n], 2 * k - FROM / 8 + 1)};
                mma_m16n8k16(scores[n], a, b);
            }
        }
    }

    // The same part by part, for heads that registers would not hold.
    __device__ __forceinline__ void add_scores_by_parts(const Step& step, float (&scores)[2][4]) const {
        constexpr int LEN = PART_LEN<Rows>;
        uint32_t offsets[2];
#pragma unroll
        for (int n = 0; n < 2; n++) {
            int row = row_at(step.base + 8 * n + lane_idx() / 4, step, queries, shape, head.tree_rows);
            offsets[n] = row_offset<Rows, HEAD_DIM>(row);
        }
#pragma unroll 1
        for (int part = 0; part < HEAD_DIM / LEN; part++) {
            KeyShare<Rows, HEAD_DIM, 0, LEN> keys;
#pragma unroll
            for (int n = 0; n < 2; n++) {
                load_share<LEN, 4, Rows::ELEMENT_BYTES>(head.keys + offsets[n], lane_idx() % 4, keys.words[n]);
                offsets[n] += LEN * Rows::ELEMENT_BYTES;
            }
            add_scores(keys, scores, shared_fragments + part * (LEN / 16) * 32);
        }
    }

    template <int FROM>
    __device__ __forceinline__ void add_values_by_parts(const StepRows& rows, const uint32_t (&weights)[4],
                                                        float (&out)[NUM_TILES][4]) const {
        if constexpr (FROM < HEAD_DIM) {
            ValueShare<Rows, HEAD_DIM, FROM, FROM + PART_LEN<Rows>> values;
            values.load(head, rows);
            values.add(out, weights);
            // The compiler moves no load of the next part before this: parts are for using few registers.
            __syncwarp();
            add_values_by_parts<FROM + PART_LEN<Rows>>(rows, weights, out);
        }
    }

    // Weights with the rows' value scales, as a fragment of A.
    static __device__ __forceinline__ void pack_weights(const float (&scores)[2][4], const StepRows& rows,
                                                        uint32_t (&weights)[4]) {
#pragma unroll
        for (int i = 0; i < 4; i++) {
            const float* pair = &scores[i / 2][i % 2 * 2];
            weights[i] = floats_to_bf16x2(__fmul_rn(pair[0], rows.value_factors[i / 2 * 2]),
                                          __fmul_rn(pair[1], rows.value_factors[i / 2 * 2 + 1]));
        }
    }

    // The steps of a split; `before` is one before the first.
    __device__ __forceinline__ Walk walk_of(int split, Step& before) const {
        Walk walk;
        walk.split_start = split * SPLIT_LEN;
        walk.shared_end = min(min(walk.split_end(), queries.end), step_start(queries.committed_len));
        before = {max(walk.split_start, step_start(queries.first)) - STEP_LEN, queries.end, -1};
        return walk;
    }

    // The steps of `walk` after `step`.
    __device__ __forceinline__ void take_steps(const Walk& walk, Step step, Softmax<HEAD_DIM>& softmax) const {
        // Stores before this may have been some lanes' only; tensor cores want all at once.
        __syncwarp();
        bool more = next_step(queries, shape, walk, positions, step);
        KeyShare<Rows, HEAD_DIM, 0, HEAD_DIM> keys;
        if (LOADS_AHEAD && more) keys.load(head, step, queries, shape);
        while (more) {
            StepRows rows;
            float scores[2][4] = {};
            uint32_t weights[4];
            if constexpr (LOADS_AHEAD) {
                Step current = step;
                rows.find<Rows>(head, step, queries, shape, scale);
                ValueShare<Rows, HEAD_DIM, 0, HEAD_DIM> values;
                values.load(head, rows);
                add_scores(keys, scores, shared_fragments);
                more = next_step(queries, shape, walk, positions, step);
                if (more) keys.load(head, step, queries, shape);
                softmax.weigh(scores, current, queries, shape, rows.key_factors);
                pack_weights(scores, rows, weights);
                values.add(softmax.out, weights);
            } else {
                add_scores_by_parts(step, scores);
                rows.find<Rows>(head, step, queries, shape, scale);
                softmax.weigh(scores, step, queries, shape, rows.key_factors);
                pack_weights(scores, rows, weights);
                add_values_by_parts<0>(rows, weights, softmax.out);
                more = next_step(queries, shape, walk, positions, step);
            }
        }
    }

    // Index of row g + 8 · half among [num_tokens, num_heads].
    __device__ __forceinline__ long long output_row(int half) const {
        int row = queries.first_row + lane_idx() / 4 + 8 * half;
        long long token = queries.segment.first_token + queries.token[half];
        return token * shape.num_heads + blockIdx.y * queries.group + row % queries.group;
    }
};

// What a launch reads.
struct Buffers {
    const uint32_t* q;
    const unsigned char* keys;
    const unsigned char* values;
    const float* key_scales;
    const float* value_scales;
    const int4* segments;
    const int* positions;
    const int* committed_lens;
    const int* tree_rows;
};

// The block's segment, its tiles of queries, and the first of those in this block.
struct BlockPlace {
    Segment segment;
    int num_tiles;
    int first_tile;
};

// Blocks along x: of each segment as many as its tiles take, `row_warps` at a time.
__device__ __forceinline__ BlockPlace find_place(const Buffers& buffers, int num_segments, int row_warps, const Shape& shape) {
    int blocks_per_segment = int(gridDim.x) / num_segments;
    int4 found = buffers.segments[int(blockIdx.x) / blocks_per_segment];
    BlockPlace place;
    place.segment = {found.x, found.y, found.z, found.w};
    // Padding has no queries.
    int num_queries = found.x < 0 ? 0 : found.z * (shape.num_heads / shape.num_kv_heads);
    place.num_tiles = (num_queries + NUM_QUERIES - 1) / NUM_QUERIES;
    place.first_tile = int(blockIdx.x) % blocks_per_segment * row_warps;
    return place;
}

// Scores are powers of two, which are cheaper than those of e.
__device__ __forceinline__ float score_factor(const Shape& shape) { return shape.scale * 1.44269504088896340736f; }

template <class Rows, int HEAD_DIM>
__device__ __forceinline__ Head find_head(const Buffers& buffers, const Segment& segment, const Shape& shape) {
    long long first = head_row(segment.lane, blockIdx.y, shape.num_kv_heads, shape.capacity);
    return {buffers.keys + first * (HEAD_DIM * Rows::ELEMENT_BYTES), buffers.values + first * (HEAD_DIM * Rows::ELEMENT_BYTES),
            buffers.key_scales + (Rows::HAS_SCALES ? first : 0), buffers.value_scales + (Rows::HAS_SCALES ? first : 0),
            buffers.tree_rows};
}
