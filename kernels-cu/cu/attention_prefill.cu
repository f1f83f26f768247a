// Causal grouped-query attention over stored keys and values, for many queries: slices of a prompt, and trees on small GPUs. Each warp walks
// the whole context of its 16 queries and merges the splits as it goes, with the arithmetic of attention_decode.cu, and so with its bits; see
// there for shapes and order.
//
// The four warps of a block have queries of the same key/value head. What they share of the context they read once: each warp brings one
// step of a stage of four to shared memory, as the fragments of tensor cores that all of them use, FP8 and INT8 already decoded.
//
// Bound by tensor cores. Accumulates in F32.

#include "common/attention.cuh"
#include "common/attention_queries.cuh"
#include "common/attention_warp.cuh"
#include "common/kv.cuh"
#include "common/types.cuh"
#include "common/warp.cuh"

namespace {

// Positions of a stage; a split has whole stages.
constexpr int STAGE_LEN = NUM_WARPS * STEP_LEN;
static_assert(SPLIT_LEN % STAGE_LEN == 0, "stages do not cross splits");

// What splits merge into: a lane's accumulators, and largest score and sum of its two rows, in shared memory, [NUM_VALUES][32 lanes] F32.
template <class Rows, int HEAD_DIM>
struct Merged {
    static constexpr int NUM_TILES = HEAD_DIM / 8;
    static constexpr int NUM_VALUES = 4 * NUM_TILES + 4;
    // This lane's first.
    float* values;

    __device__ __forceinline__ float& value(int n, int i) const { return values[(4 * n + i) * WARP_SIZE]; }

    __device__ __forceinline__ Merge state(int half) const {
        return {value(NUM_TILES, 2 * half), value(NUM_TILES, 2 * half + 1)};
    }

    __device__ __forceinline__ void keep(int half, const Merge& merge) const {
        value(NUM_TILES, 2 * half) = merge.max_score;
        value(NUM_TILES, 2 * half + 1) = merge.sum;
    }

    __device__ __forceinline__ void clear() const {
#pragma unroll
        for (int i = 0; i < 4 * NUM_TILES; i++) values[i * WARP_SIZE] = 0.0f;
        keep(0, Merge::empty());
        keep(1, Merge::empty());
    }

    __device__ __forceinline__ void add(const Softmax<HEAD_DIM>& softmax) const {
#pragma unroll
        for (int half = 0; half < 2; half++) {
            Merge merge = state(half);
            Merge::Factors factors = merge.add(softmax.max_score[half], softmax.sum[half]);
            keep(half, merge);
#pragma unroll
            for (int n = 0; n < NUM_TILES; n++) {
#pragma unroll
                for (int i = 2 * half; i < 2 * half + 2; i++) value(n, i) = factors.apply(value(n, i), softmax.out[n][i]);
            }
        }
    }

    __device__ __forceinline__ void store(const Warp<Rows, HEAD_DIM>& warp, uint32_t* out) const {
#pragma unroll
        for (int half = 0; half < 2; half++) {
            if (warp.queries.token[half] < 0) continue;
            long long place = warp.output_row(half) * HEAD_DIM;
            float factor = state(half).factor();
            auto average = [&](int n, int i) { return __fmul_rn(value(n, i), factor); };
            for_each_pair<Rows, HEAD_DIM>(half, average, [&](int column, float first, float second) {
                out[(place + column) / 2] = floats_to_bf16x2(first, second);
            });
        }
    }
};

// Four steps' keys and values as fragments of B, each [NUM_WARPS][HEAD_DIM / 16][32 lanes] of 16 bytes: for 16 elements of the keys both
// tiles of eight positions; for the values two tiles of eight columns.
template <class Rows, int HEAD_DIM>
struct Stage {
    static constexpr int NUM_K = HEAD_DIM / 16;
    static constexpr int NUM_FRAGMENTS = 2 * NUM_WARPS * NUM_K * WARP_SIZE;
    // This lane's first.
    uint4* fragments;

    __device__ __forceinline__ uint4& keys(int step, int k) const { return fragments[(step * NUM_K + k) * WARP_SIZE]; }
    __device__ __forceinline__ uint4& values(int step, int k) const { return fragments[((NUM_WARPS + step) * NUM_K + k) * WARP_SIZE]; }

    // This warp's step.
    __device__ __forceinline__ void bring(const Warp<Rows, HEAD_DIM>& warp, const Step& step) const {
        KeyShare<Rows, HEAD_DIM, 0, HEAD_DIM> key_share;
        key_share.load(warp.head, step, warp.queries, warp.shape);
        StepRows rows;
        rows.find<Rows>(warp.head, step, warp.queries, warp.shape, warp.scale);
        ValueShare<Rows, HEAD_DIM, 0, HEAD_DIM> value_share;
        value_share.load(warp.head, rows);
#pragma unroll
        for (int k = 0; k < NUM_K; k++) {
            keys(warp_idx(), k) = make_uint4(
                pair_along_row<Rows>(key_share.words[0], 2 * k), pair_along_row<Rows>(key_share.words[0], 2 * k + 1),
                pair_along_row<Rows>(key_share.words[1], 2 * k), pair_along_row<Rows>(key_share.words[1], 2 * k + 1));
        }
#pragma unroll
        for (int k = 0; k < NUM_K; k++) {
            const auto& words = value_share.words;
            values(warp_idx(), k) = make_uint4(
                pair_across_rows<Rows>(words[0], words[1], 2 * k), pair_across_rows<Rows>(words[2], words[3], 2 * k),
                pair_across_rows<Rows>(words[0], words[1], 2 * k + 1), pair_across_rows<Rows>(words[2], words[3], 2 * k + 1));
        }
    }

    // Step `idx` of the stage for the queries of this warp.
    __device__ __forceinline__ void take(const Warp<Rows, HEAD_DIM>& warp, int idx, const Step& step,
                                         Softmax<HEAD_DIM>& softmax) const {
        StepRows rows;
        rows.find<Rows>(warp.head, step, warp.queries, warp.shape, warp.scale);
        float scores[2][4] = {};
#pragma unroll
        for (int k = 0; k < NUM_K; k++) {
            uint4 loaded = keys(idx, k);
            uint32_t first[2] = {loaded.x, loaded.y}, second[2] = {loaded.z, loaded.w};
            mma_m16n8k16(scores[0], warp.fragments[k], first);
            mma_m16n8k16(scores[1], warp.fragments[k], second);
        }
        uint32_t weights[4];
        softmax.weigh(scores, step, warp.queries, warp.shape, rows.key_factors);
        Warp<Rows, HEAD_DIM>::pack_weights(scores, rows, weights);
#pragma unroll
        for (int k = 0; k < NUM_K; k++) {
            uint4 loaded = values(idx, k);
            uint32_t first[2] = {loaded.x, loaded.y}, second[2] = {loaded.z, loaded.w};
            mma_m16n8k16(softmax.out[2 * k], weights, first);
            mma_m16n8k16(softmax.out[2 * k + 1], weights, second);
        }
    }
};

// Positions that some query of the block sees, [first, end), and the end of the steps that are shared.
struct BlockRange {
    int first, end;
    int shared_end;
};

__device__ __forceinline__ BlockRange find_range(const Queries& queries) {
    __shared__ int2 ranges[NUM_WARPS];
    if (lane_idx() == 0) ranges[warp_idx()] = make_int2(queries.first, queries.end);
    __syncthreads();
    BlockRange range = {ranges[0].x, ranges[0].y, 0};
#pragma unroll
    for (int warp = 1; warp < NUM_WARPS; warp++) {
        range.first = min(range.first, ranges[warp].x);
        range.end = max(range.end, ranges[warp].y);
    }
    range.shared_end = min(range.end, step_start(queries.committed_len));
    return range;
}

// The shared steps of a stage. All warps of the block come here.
template <class Rows, int HEAD_DIM>
__device__ __forceinline__ void take_stage(const Warp<Rows, HEAD_DIM>& warp, const Stage<Rows, HEAD_DIM>& stage, int start,
                                           const BlockRange& range, Softmax<HEAD_DIM>& softmax) {
    if (start >= range.shared_end || start + STAGE_LEN <= range.first) return;
    Step own = {start + warp_idx() * STEP_LEN, range.end, -1};
    // The stage before is done with.
    __syncthreads();
    if (own.base < range.shared_end && own.base + STEP_LEN > range.first) stage.bring(warp, own);
    __syncthreads();
    int end = min(warp.queries.end, range.shared_end);
#pragma unroll 1
    for (int idx = 0; idx < NUM_WARPS; idx++) {
        Step step = {start + idx * STEP_LEN, warp.queries.end, -1};
        if (step.base < end && step.base + STEP_LEN > warp.queries.first) stage.take(warp, idx, step, softmax);
    }
}

template <class Rows, int HEAD_DIM>
__device__ __forceinline__ void attend(const Buffers& buffers, uint32_t* out, int num_segments, const Shape& shape) {
    using ThisWarp = Warp<Rows, HEAD_DIM>;
    using ThisStage = Stage<Rows, HEAD_DIM>;
    // Larger heads leave no room for a stage.
    constexpr bool IS_STAGED = !ThisWarp::QUERIES_IN_SHARED;
    constexpr int NUM_SHARED = IS_STAGED ? ThisStage::NUM_FRAGMENTS : NUM_WARPS * ThisWarp::SHARED_FRAGMENTS;
    TAKT_DYNAMIC_SHARED(uint4, shared);
    release_next_kernel();
    await_previous_kernel();
    BlockPlace place = find_place(buffers, num_segments, NUM_WARPS, shape);
    if (place.first_tile >= place.num_tiles) return;
    // Warps beyond the segment have no queries, but come to the barriers.
    Queries queries = find_queries(place.segment, place.first_tile + warp_idx(), shape, buffers.positions, buffers.committed_lens);
    BlockRange range = find_range(queries);

    Head head = find_head<Rows, HEAD_DIM>(buffers, place.segment, shape);
    uint4* fragments = shared + warp_idx() * ThisWarp::SHARED_FRAGMENTS + lane_idx();
    ThisStage stage = {shared + lane_idx()};
    Merged<Rows, HEAD_DIM> merged = {reinterpret_cast<float*>(shared + NUM_SHARED) +
                                     warp_idx() * (Merged<Rows, HEAD_DIM>::NUM_VALUES * WARP_SIZE) + lane_idx()};
    ThisWarp warp = {shape, queries, head, buffers.positions, score_factor(shape), {}, fragments};
    warp.keep_queries(buffers.q, blockIdx.y);
    merged.clear();
    for (int split = range.first / SPLIT_LEN; split * SPLIT_LEN < range.end; split++) {
        Softmax<HEAD_DIM> softmax;
        softmax.clear();
        Step before;
        Walk walk = warp.walk_of(split, before);
        if constexpr (IS_STAGED) {
#pragma unroll 1
            for (int start = walk.split_start; start < walk.split_end(); start += STAGE_LEN) {
                take_stage(warp, stage, start, range, softmax);
            }
            // What is left are the tokens' own steps.
            walk.shared_end = 0;
        }
        if (walk.split_start >= queries.end || walk.split_end() <= queries.first) continue;
        warp.take_steps(walk, before, softmax);
        softmax.finish();
        merged.add(softmax);
    }
    merged.store(warp, out);
}

}  // namespace

// Grid: x = num_segments · groups of 4 tiles of 16 queries; y = num_kv_heads. Block: 128 threads. Shared bytes: see launch/attention.rs.
// Arguments as in attention_decode.cu.
#define TAKT_ATTENTION(name, Rows, HEAD_DIM)                                                                                        \
    extern "C" __global__ void __launch_bounds__(128, 2)                                                                            \
        attention_##name##_##HEAD_DIM##_in_order(                                                                                   \
            const uint32_t* q, const unsigned char* keys, const unsigned char* values, const float* key_scales,                     \
            const float* value_scales, const int4* segments, const int* positions, const int* committed_lens, const int* tree_rows, \
            uint32_t* out, int num_segments, int num_heads, int num_kv_heads, int capacity, int max_depth, int window,              \
            float scale) {                                                                                                          \
        Shape shape = {num_heads, num_kv_heads, capacity, max_depth, window, scale};                                                \
        Buffers buffers = {q, keys, values, key_scales, value_scales, segments, positions, committed_lens, tree_rows};              \
        attend<Rows, HEAD_DIM>(buffers, out, num_segments, shape);                                                                  \
    }

#define TAKT_ATTENTION_FORMATS(HEAD_DIM)        \
    TAKT_ATTENTION(bf16, Bf16Rows, HEAD_DIM)    \
    TAKT_ATTENTION(fp8, Fp8Rows, HEAD_DIM)      \
    TAKT_ATTENTION(int8, Int8Rows, HEAD_DIM)

TAKT_ATTENTION_FORMATS(16)
TAKT_ATTENTION_FORMATS(32)
TAKT_ATTENTION_FORMATS(64)
TAKT_ATTENTION_FORMATS(80)
TAKT_ATTENTION_FORMATS(96)
TAKT_ATTENTION_FORMATS(128)
TAKT_ATTENTION_FORMATS(256)
