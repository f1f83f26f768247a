// Causal grouped-query attention over stored keys and values, for few queries on a long context: decode steps, small trees. The splits of a
// context run beside each other and are merged after; attention_prefill.cu merges as it goes.
//
//   q       [num_tokens, num_heads, HEAD_DIM] BF16
//   out     [num_tokens, num_heads, HEAD_DIM] BF16
//   keys, values, scales: see common/kv.cuh
//
// Online softmax (Milakov and Gimelshein 2018) in tiles on tensor cores, as FlashAttention-2 (Dao 2023) arranges it, with the positions
// split among warps (Flash-Decoding, Dao et al. 2023). The unit, here and there, is a warp with 16 queries: consecutive tokens of a lane
// times the heads that share a key/value head. Keys and values go from memory straight into the fragments of mma.m16n8k16: the order of a
// head's elements in a fragment is free, so each lane's part is consecutive in memory (16-byte loads, no shared memory, no barrier).
//
// Order of arithmetic. Positions are split in runs of SPLIT_LEN, each in steps of STEP_LEN, both counted from position 0. Within a split
// the softmax goes from step to step; splits merge one after another (common/attention.cuh). What a query does not see adds products with
// weights of exactly 0, which leave a sum as it is (in the emulator; that tensor cores do so has yet to be seen on a device). So a query's
// bits depend on its position and the rows before it, not on its neighbours in the step, nor on which of the two kernels computes it: one
// family, since speculation must not change what greedy decoding says, nor a prompt's slices what follows.
//
// Trees. A token of a draft tree sees the lane's committed rows and then `tree_rows`, one row a depth, its own last. Each stands at the
// step's place of its position, where plain decoding would find it. Steps that are committed throughout are shared by all queries of a
// warp; the steps from the committed end on are walked for each token alone.
//
// Bound by memory up to about 16 queries a key/value head, by tensor cores beyond. Accumulates in F32.

#include "common/attention.cuh"
#include "common/attention_queries.cuh"
#include "common/attention_warp.cuh"
#include "common/kv.cuh"
#include "common/types.cuh"
#include "common/warp.cuh"

namespace {

// Results of splits: [num_tokens, num_heads, max_splits, HEAD_DIM] F32, and {maximum, sum} [num_tokens, num_heads, max_splits].
struct Partial {
    float* out;
    float2* state;
    int max_splits;
};

template <class Rows, int HEAD_DIM>
__device__ __forceinline__ void store_partial(const Warp<Rows, HEAD_DIM>& warp, const Softmax<HEAD_DIM>& softmax, int split,
                                              const Partial& partial) {
#pragma unroll
    for (int half = 0; half < 2; half++) {
        // The second row's addresses are not computed before the first's are done with: registers are scarce.
        __syncwarp();
        if (warp.queries.token[half] < 0) continue;
        long long place = warp.output_row(half) * partial.max_splits + split;
        auto value = [&](int n, int i) { return softmax.out[n][i]; };
        for_each_pair<Rows, HEAD_DIM>(half, value, [&](int column, float first, float second) {
            *reinterpret_cast<float2*>(partial.out + place * HEAD_DIM + column) = make_float2(first, second);
        });
        if (lane_idx() % 4 == 0) partial.state[place] = make_float2(softmax.max_score[half], softmax.sum[half]);
    }
}

template <class Rows, int HEAD_DIM>
__device__ __forceinline__ void attend(const Buffers& buffers, int num_segments, int row_warps, const Partial& partial,
                                       const Shape& shape) {
    using ThisWarp = Warp<Rows, HEAD_DIM>;
    TAKT_DYNAMIC_SHARED(uint4, shared);
    release_next_kernel();
    await_previous_kernel();
    BlockPlace place = find_place(buffers, num_segments, row_warps, shape);
    int tile = place.first_tile + warp_idx() % row_warps;
    // No barrier follows.
    if (tile >= place.num_tiles) return;
    Queries queries = find_queries(place.segment, tile, shape, buffers.positions, buffers.committed_lens);
    int splits_at_once = NUM_WARPS / row_warps;
    int split = queries.first / SPLIT_LEN + int(blockIdx.z) * splits_at_once + warp_idx() / row_warps;
    if (split * SPLIT_LEN >= queries.end) return;

    Head head = find_head<Rows, HEAD_DIM>(buffers, place.segment, shape);
    uint4* fragments = shared + warp_idx() * ThisWarp::SHARED_FRAGMENTS + lane_idx();
    ThisWarp warp = {shape, queries, head, buffers.positions, score_factor(shape), {}, fragments};
    warp.keep_queries(buffers.q, blockIdx.y);
    for (; split * SPLIT_LEN < queries.end; split += int(gridDim.z) * splits_at_once) {
        Softmax<HEAD_DIM> softmax;
        softmax.clear();
        Step before;
        Walk walk = warp.walk_of(split, before);
        warp.take_steps(walk, before, softmax);
        softmax.finish();
        store_partial(warp, softmax, split, partial);
    }
}

}  // namespace

// Grid: x = num_segments · groups of `row_warps` (1, 2, 4) tiles of 16 queries; y = num_kv_heads; z = blocks that share the splits of a
// query, 4 / row_warps splits a block at a time. Block: 128 threads. Shared bytes: see launch/attention.rs.
// segments[num_segments]: {lane, first token, tokens, is tree}; lane -1 is padding. positions[num_tokens]; committed_lens[num_lanes], read
// for trees; tree_rows[num_tokens, max_depth]: the rows of positions committed_len, … up to the token's own. window: last positions seen,
// the own one included; 0 for all.
#define TAKT_ATTENTION(name, Rows, HEAD_DIM)                                                                                        \
    extern "C" __global__ void __launch_bounds__(128, HEAD_DIM <= 64 ? 3 : 2)                                                       \
        attention_##name##_##HEAD_DIM(const uint32_t* q, const unsigned char* keys, const unsigned char* values,                    \
                                      const float* key_scales, const float* value_scales, const int4* segments,                     \
                                      const int* positions, const int* committed_lens, const int* tree_rows, float* partial_out,    \
                                      float2* partial_state, int num_segments, int row_warps, int max_splits, int num_heads,        \
                                      int num_kv_heads, int capacity, int max_depth, int window, float scale) {                     \
        Shape shape = {num_heads, num_kv_heads, capacity, max_depth, window, scale};                                                \
        Buffers buffers = {q, keys, values, key_scales, value_scales, segments, positions, committed_lens, tree_rows};              \
        attend<Rows, HEAD_DIM>(buffers, num_segments, row_warps, {partial_out, partial_state, max_splits}, shape);                  \
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

// Merges the splits of each token and head in order.
//
// Grid: num_tokens, num_heads. Block: head_dim rounded up to 32 threads. lanes[num_tokens]: -1 is padding.
extern "C" __global__ void __launch_bounds__(256, 4)
    attention_combine(const float* partial_out, const float2* partial_state, const int* positions, const int* lanes,
                      bf16* out, int max_splits, int head_dim, int window) {
    release_next_kernel();
    await_previous_kernel();
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
