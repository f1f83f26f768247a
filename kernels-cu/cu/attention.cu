// Causal grouped-query attention over stored keys and values: slices of a prompt, decode steps and the verification of draft trees, in one
// family of kernels, so that a token's result has the same bits whichever way it came.
//
//   q       [num_tokens, num_heads, HEAD_DIM] BF16
//   out     [num_tokens, num_heads, HEAD_DIM] BF16
//   keys, values, scales: see common/kv.cuh
//
// Online softmax (Milakov and Gimelshein 2018) in tiles on tensor cores, as FlashAttention-2 (Dao 2023) arranges it, with the positions
// split among warps for few queries (Flash-Decoding, Dao et al. 2023). The unit is a warp with 16 queries: consecutive tokens of a lane
// times the heads that share a key/value head. Keys and values go from memory straight into the fragments of mma.m16n8k16 — the order of a
// head's elements in a fragment is free, so each lane's part is consecutive in memory (16-byte loads, no shared memory, no barrier); the
// warps of a block that share rows meet in the first-level cache.
//
// Order of arithmetic. Positions are split in runs of SPLIT_LEN, each in steps of STEP_LEN, both counted from position 0. Within a split
// the softmax goes from step to step; splits merge one after another (common/attention.cuh). What a row does not see adds exact zeros. So
// a query's bits depend on its position and the rows before it, not on its neighbours in the step nor on who merges: attention_combine
// from partial results (`partial_out` given; the splits run beside each other), or the warp itself (`partial_out` null; in order).
//
// Trees. A token of a draft tree sees the lane's committed rows and then `tree_rows`, one row a depth, its own last. Each stands at the
// step's place of its position, where plain decoding would find it. Steps that are committed throughout are shared by all queries of a
// warp: a tree reads its context once for every 16 queries, and a block of four warps once from memory. The steps from the committed end
// on are walked for each token alone.
//
// Bound by memory for up to about 16 queries a key/value head, by tensor cores beyond. Accumulates in F32.

#include "common/attention.cuh"
#include "common/kv.cuh"
#include "common/types.cuh"
#include "common/warp.cuh"

namespace {

constexpr int NUM_WARPS = 4;
constexpr int NUM_QUERIES = 16;

// What does not change within a launch.
struct Shape {
    int num_heads;
    int num_kv_heads;
    int capacity;
    int max_depth;
    int window;
    float scale;
};

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
    // Of the warp's queries: positions [first, end) are seen by some.
    int first, end;
    // Rows from here on lie apart, in `tree_rows`; INT_MAX for a segment that is no tree.
    int committed_len;
    // Of this lane's two rows, g and g + 8: token within the segment, and positions [row_first, row_end) seen; empty for none.
    int token[2];
    int row_first[2];
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
    int split_start, split_end;
    int shared_end;
    int last_token;
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
        queries.row_first[half] = shape.window > 0 ? max(0, position + 1 - shape.window) : 0;
        if (exists) {
            first = min(first, queries.row_first[half]);
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
    } else if (step.base < min(step.end, walk.split_end)) {
        return true;
    }
    // The next token with steps of its own in this split.
    int token = step.token < 0 ? queries.first_row / queries.group : step.token + 1;
    for (; token <= walk.last_token; token++) {
        int end = positions[queries.segment.first_token + token] + 1;
        int first = shape.window > 0 ? max(0, end - shape.window) : 0;
        int base = max(step_start(max(first, queries.committed_len / STEP_LEN * STEP_LEN)), walk.split_start);
        if (base < min(end, walk.split_end)) {
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

// Columns [FROM, TO) of a step's keys, as much as a lane holds of them: positions g and g + 8.
template <class Rows, int HEAD_DIM, int FROM, int TO>
struct KeyShare {
    uint32_t words[2][SHARE_WORDS<TO - FROM, 4, Rows::ELEMENT_BYTES>];

    __device__ __forceinline__ void load(const Head& head, const Step& step, const Queries& queries, const Shape& shape) {
#pragma unroll
        for (int n = 0; n < 2; n++) {
            long long row = row_at(step.base + 8 * n + lane_idx() / 4, step, queries, shape, head.tree_rows);
            const unsigned char* from = head.keys + row * (HEAD_DIM * Rows::ELEMENT_BYTES);
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
            const unsigned char* from = head.values + (long long)rows.row[i] * (HEAD_DIM * Rows::ELEMENT_BYTES);
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
                                          const float (&factors)[4]) {
        bool grew = false;
        float shrink[2];
#pragma unroll
        for (int half = 0; half < 2; half++) {
            bool takes_part = step.token < 0 || step.token == queries.token[half];
            float largest = max_score[half];
#pragma unroll
            for (int i = 0; i < 4; i++) {
                int position = step_position(step, i);
                bool is_seen = takes_part && position >= queries.row_first[half] && position < queries.row_end[half];
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
            float first = __fadd_rn(scores[0][2 * half], scores[0][2 * half + 1]);
            float second = __fadd_rn(scores[1][2 * half], scores[1][2 * half + 1]);
            sum[half] = __fmaf_rn(sum[half], shrink[half], __fadd_rn(first, second));
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
        const unsigned char* rows[2];
#pragma unroll
        for (int n = 0; n < 2; n++) {
            long long row = row_at(step.base + 8 * n + lane_idx() / 4, step, queries, shape, head.tree_rows);
            rows[n] = head.keys + row * (HEAD_DIM * Rows::ELEMENT_BYTES);
        }
#pragma unroll 1
        for (int part = 0; part < HEAD_DIM / LEN; part++) {
            KeyShare<Rows, HEAD_DIM, 0, LEN> keys;
#pragma unroll
            for (int n = 0; n < 2; n++) {
                load_share<LEN, 4, Rows::ELEMENT_BYTES>(rows[n] + part * LEN * Rows::ELEMENT_BYTES, lane_idx() % 4, keys.words[n]);
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

    __device__ __forceinline__ Walk walk_of(int split, Step& before) const {
        Walk walk;
        walk.split_start = split * SPLIT_LEN;
        walk.split_end = walk.split_start + SPLIT_LEN;
        walk.shared_end = min(min(walk.split_end, queries.end), step_start(queries.committed_len));
        walk.last_token = min((queries.first_row + NUM_QUERIES - 1) / queries.group, queries.segment.num_tokens - 1);
        before = {max(walk.split_start, step_start(queries.first)) - STEP_LEN, queries.end, -1};
        return walk;
    }

    __device__ __forceinline__ void attend_split(int split, Softmax<HEAD_DIM>& softmax) const {
        softmax.clear();
        Step step;
        Walk walk = walk_of(split, step);
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
                softmax.weigh(scores, current, queries, rows.key_factors);
                pack_weights(scores, rows, weights);
                values.add(softmax.out, weights);
            } else {
                add_scores_by_parts(step, scores);
                rows.find<Rows>(head, step, queries, shape, scale);
                softmax.weigh(scores, step, queries, rows.key_factors);
                pack_weights(scores, rows, weights);
                add_values_by_parts<0>(rows, weights, softmax.out);
                more = next_step(queries, shape, walk, positions, step);
            }
        }
        softmax.finish();
    }

    // Index of row g + 8 · half among [num_tokens, num_heads].
    __device__ __forceinline__ long long output_row(int half) const {
        int row = queries.first_row + lane_idx() / 4 + 8 * half;
        long long token = queries.segment.first_token + queries.token[half];
        return token * shape.num_heads + blockIdx.y * queries.group + row % queries.group;
    }

    __device__ __forceinline__ void store_partial(const Softmax<HEAD_DIM>& softmax, int split, int max_splits, float* partial_out,
                                                  float2* partial_state) const {
#pragma unroll
        for (int half = 0; half < 2; half++) {
            if (queries.token[half] < 0) continue;
            long long place = output_row(half) * max_splits + split;
            auto value = [&](int n, int i) { return softmax.out[n][i]; };
            for_each_pair<Rows, HEAD_DIM>(half, value, [&](int column, float first, float second) {
                *reinterpret_cast<float2*>(partial_out + place * HEAD_DIM + column) = make_float2(first, second);
            });
            if (lane_idx() % 4 == 0) partial_state[place] = make_float2(softmax.max_score[half], softmax.sum[half]);
        }
    }

    // What splits merge into in order, one lane's, [MERGED_VALUES][32 lanes] F32 in shared memory: the accumulators' values, then largest
    // score and sum of both rows.
    static constexpr int MERGED_VALUES = 4 * NUM_TILES + 4;

    static __device__ __forceinline__ Merge merge_of(const float* merged, int half) {
        return {merged[(4 * NUM_TILES + 2 * half) * 32], merged[(4 * NUM_TILES + 2 * half + 1) * 32]};
    }

    static __device__ __forceinline__ void keep_merge(float* merged, int half, const Merge& merge) {
        merged[(4 * NUM_TILES + 2 * half) * 32] = merge.max_score;
        merged[(4 * NUM_TILES + 2 * half + 1) * 32] = merge.sum;
    }

    static __device__ __forceinline__ void clear_merged(float* merged) {
#pragma unroll
        for (int i = 0; i < 4 * NUM_TILES; i++) merged[i * 32] = 0.0f;
        keep_merge(merged, 0, Merge::empty());
        keep_merge(merged, 1, Merge::empty());
    }

    static __device__ __forceinline__ void merge(const Softmax<HEAD_DIM>& softmax, float* merged) {
#pragma unroll
        for (int half = 0; half < 2; half++) {
            Merge merge = merge_of(merged, half);
            Merge::Factors factors = merge.add(softmax.max_score[half], softmax.sum[half]);
            keep_merge(merged, half, merge);
#pragma unroll
            for (int n = 0; n < NUM_TILES; n++) {
#pragma unroll
                for (int i = 2 * half; i < 2 * half + 2; i++) {
                    float& value = merged[(4 * n + i) * 32];
                    value = factors.apply(value, softmax.out[n][i]);
                }
            }
        }
    }

    __device__ __forceinline__ void store_merged(const float* merged, uint32_t* out) const {
#pragma unroll
        for (int half = 0; half < 2; half++) {
            if (queries.token[half] < 0) continue;
            long long place = output_row(half) * HEAD_DIM;
            float factor = merge_of(merged, half).factor();
            auto value = [&](int n, int i) { return __fmul_rn(merged[(4 * n + i) * 32], factor); };
            for_each_pair<Rows, HEAD_DIM>(half, value, [&](int column, float first, float second) {
                out[(place + column) / 2] = floats_to_bf16x2(first, second);
            });
        }
    }
};

// What a launch reads and writes; see the kernels below.
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
    uint32_t* out;
    float* partial_out;
    float2* partial_state;
};

template <class Rows, int HEAD_DIM>
__device__ __forceinline__ Head find_head(const Buffers& buffers, const Segment& segment, const Shape& shape) {
    long long first = head_row(segment.lane, blockIdx.y, shape.num_kv_heads, shape.capacity);
    return {buffers.keys + first * (HEAD_DIM * Rows::ELEMENT_BYTES), buffers.values + first * (HEAD_DIM * Rows::ELEMENT_BYTES),
            buffers.key_scales + (Rows::HAS_SCALES ? first : 0), buffers.value_scales + (Rows::HAS_SCALES ? first : 0),
            buffers.tree_rows};
}

template <class Rows, int HEAD_DIM>
__device__ __forceinline__ void attend(const Buffers& buffers, int num_segments, int row_warps, int max_splits, const Shape& shape) {
    using ThisWarp = Warp<Rows, HEAD_DIM>;
    TAKT_DYNAMIC_SHARED(float, shared);
    int tiles_per_segment = gridDim.x / num_segments;
    int4 found = buffers.segments[blockIdx.x / tiles_per_segment];
    Segment segment = {found.x, found.y, found.z, found.w};
    int tile = blockIdx.x % tiles_per_segment * row_warps + warp_idx() % row_warps;
    // Padding, and warps beyond the segment: no barrier follows.
    if (segment.lane < 0 || tile * NUM_QUERIES >= segment.num_tokens * (shape.num_heads / shape.num_kv_heads)) return;
    Queries queries = find_queries(segment, tile, shape, buffers.positions, buffers.committed_lens);

    bool in_order = buffers.partial_out == nullptr;
    int splits_at_once = NUM_WARPS / row_warps;
    int split = queries.first / SPLIT_LEN + (in_order ? 0 : int(blockIdx.z) * splits_at_once + warp_idx() / row_warps);
    int stride = in_order ? 1 : int(gridDim.z) * splits_at_once;
    if (split * SPLIT_LEN >= queries.end) return;

    Head head = find_head<Rows, HEAD_DIM>(buffers, segment, shape);
    constexpr int SHARED_FRAGMENTS = ThisWarp::QUERIES_IN_SHARED ? ThisWarp::NUM_K * 32 : 0;
    uint4* fragments = reinterpret_cast<uint4*>(shared) + warp_idx() * SHARED_FRAGMENTS + lane_idx();
    float* merged = shared + NUM_WARPS * SHARED_FRAGMENTS * 4 + warp_idx() * (ThisWarp::MERGED_VALUES * 32) + lane_idx();
    // Powers of two are cheaper than those of e.
    ThisWarp warp = {shape, queries, head, buffers.positions, shape.scale * 1.44269504088896340736f, {}, fragments};
    warp.keep_queries(buffers.q, blockIdx.y);

    if (in_order) ThisWarp::clear_merged(merged);
    for (; split * SPLIT_LEN < queries.end; split += stride) {
        Softmax<HEAD_DIM> softmax;
        warp.attend_split(split, softmax);
        if (in_order) {
            ThisWarp::merge(softmax, merged);
        } else {
            warp.store_partial(softmax, split, max_splits, buffers.partial_out, buffers.partial_state);
        }
    }
    if (in_order) warp.store_merged(merged, buffers.out);
}

}  // namespace

// Grid: x = num_segments · tile groups of `row_warps` tiles of 16 queries; y = num_kv_heads; z = 1 in order, else as many blocks as are to
// share the splits of a query: 4 / row_warps splits a block at a time. Block: 128 threads.
// Shared bytes: see launch/attention.rs. segments[num_segments]: {lane, first token, tokens, is tree}; lane -1 is padding.
// positions[num_tokens]; committed_lens[num_lanes], read for trees; tree_rows[num_tokens, max_depth]: the rows of positions
// committed_len, … up to the token's own. partial_out[num_tokens, num_heads, max_splits, HEAD_DIM] and partial_state[.., max_splits]
// {maximum, sum}; null in order. window: last positions seen, the own one included; 0 for all.
#define TAKT_ATTENTION(name, Rows, HEAD_DIM)                                                                                        \
    extern "C" __global__ void __launch_bounds__(128, HEAD_DIM <= 64 ? 3 : 2)                                                       \
        attention_##name##_##HEAD_DIM(const uint32_t* q, const unsigned char* keys, const unsigned char* values,                    \
                                      const float* key_scales, const float* value_scales, const int4* segments,                     \
                                      const int* positions, const int* committed_lens, const int* tree_rows, uint32_t* out,         \
                                      float* partial_out, float2* partial_state, int num_segments, int row_warps, int max_splits,   \
                                      int num_heads, int num_kv_heads, int capacity, int max_depth, int window, float scale) {      \
        Shape shape = {num_heads, num_kv_heads, capacity, max_depth, window, scale};                                                \
        Buffers buffers = {q,         keys,           values,    key_scales, value_scales, segments,                                \
                           positions, committed_lens, tree_rows, out,        partial_out,  partial_state};                          \
        attend<Rows, HEAD_DIM>(buffers, num_segments, row_warps, max_splits, shape);                                                \
    }

#define TAKT_ATTENTION_FORMATS(HEAD_DIM)        \
    TAKT_ATTENTION(bf16, Bf16Rows, HEAD_DIM)    \
    TAKT_ATTENTION(fp8, Fp8Rows, HEAD_DIM)      \
    TAKT_ATTENTION(int8, Int8Rows, HEAD_DIM)

TAKT_ATTENTION_FORMATS(64)
TAKT_ATTENTION_FORMATS(80)
TAKT_ATTENTION_FORMATS(96)
TAKT_ATTENTION_FORMATS(128)
TAKT_ATTENTION_FORMATS(256)

// Merges the splits of each token and head in order.
//
// Grid: num_tokens, num_heads. Block: head_dim rounded up to 32 threads. lanes[num_tokens]: -1 is padding.
extern "C" __global__ void __launch_bounds__(256, 4)
    attention_combine(const float* partial_out, const float2* partial_state, const int* positions, const int* lanes,
                      bf16* out, int max_splits, int head_dim, int window) {
    int token = blockIdx.x, column = threadIdx.x;
    if (lanes[token] < 0 || column >= head_dim) return;
    int end = positions[token] + 1;
    int first = window > 0 ? max(0, end - window) : 0;
    long long row = (long long)token * gridDim.y + blockIdx.y;
    partial_state += row * max_splits;
    partial_out += row * max_splits * head_dim + column;
    Merge merge = Merge::empty();
    float value = 0.0f;
#pragma unroll 4
    for (int split = first / SPLIT_LEN; split * SPLIT_LEN < end; split++) {
        float2 state = partial_state[split];
        value = merge.add(state.x, state.y).apply(value, partial_out[(long long)split * head_dim]);
    }
    out[row * head_dim + column] = float_to_bf16(__fmul_rn(value, merge.factor()));
}
