// The likeliest tokens of rows of logits, and their log-sum-exp.
//
//   logits  [num_rows, vocab_size] F32
//   keys    [num_rows, num_slices, k]: per slice of SLICE_LEN logits, its likeliest
//   out     tokens [num_rows, k] I32, largest first, -1 beyond the last finite logit; values [num_rows, k] F32; log_sum_exp [num_rows] F32;
//           status [num_rows]
//
// Two stages, so that a vocabulary of 150,000 fills a GPU: every slice's k likeliest and Σ exp, then the same over the slices' results.
// k times the largest of what each thread holds: k is at most 64, and 1 for greedy decoding. Order is total: larger logits first, of equal
// ones the lower id. For k = 1, −0 equals 0, as the greedy sampler has it; for lists it comes after 0, as the sampler's shortlist has it.
//
// A masked token counts as −∞. Tokens with logits that are not finite are never chosen; NaN or +∞ is noted in `status`, since it means that
// the model's output is broken. Sums are F32 in a fixed order: a thread's logits, its block's threads, the slices.
//
// Bound by memory for k = 1: 4 bytes a token of the vocabulary. For larger k by latency: each stage takes its keys one after another, k
// reductions of the block with 5 shuffles and 2 barriers each.
//
// Σ exp of parts about their own maxima, with the top-k in the same pass: Milakov and Gimelshein 2018 (arXiv 1805.02867).

#include "common/types.cuh"
#include "common/warp.cuh"

namespace {

constexpr int NUM_THREADS = 256;
constexpr int NUM_WARPS = NUM_THREADS / WARP_SIZE;
constexpr int PER_THREAD = 16;
constexpr int SLICE_LEN = NUM_THREADS * PER_THREAD;

// Bits of `status`.
constexpr uint32_t BROKEN = 1;
constexpr uint32_t NOTHING_FINITE = 2;

typedef unsigned long long Key;
// Below every token's.
constexpr Key NO_TOKEN = 0;

// Orders by logit, then by lower id; larger is likelier. Finite logits only.
__device__ __forceinline__ Key key_of(float logit, int token) {
    uint32_t bits = __float_as_uint(logit);
    bits ^= bits >> 31 != 0 ? 0xffffffffu : 0x80000000u;
    return Key(bits) << 32 | uint32_t(~token);
}

__device__ __forceinline__ int token_of(Key key) { return ~int(uint32_t(key)); }

__device__ __forceinline__ float logit_of(Key key) {
    uint32_t bits = uint32_t(key >> 32);
    return __uint_as_float(bits ^ (bits >> 31 != 0 ? 0x80000000u : 0xffffffffu));
}

__device__ __forceinline__ Key largest(Key a, Key b) { return a > b ? a : b; }

// The largest key of the block, in every thread.
__device__ __forceinline__ Key block_largest(Key key, Key* partial) {
#pragma unroll
    for (int distance = WARP_SIZE / 2; distance > 0; distance /= 2) {
        key = largest(key, __shfl_xor_sync(FULL_MASK, key, distance));
    }
    __syncthreads();
    if (lane_idx() == 0) partial[warp_idx()] = key;
    __syncthreads();
    key = partial[0];
#pragma unroll
    for (int warp = 1; warp < NUM_WARPS; warp++) key = largest(key, partial[warp]);
    return key;
}

// Passes the block's k largest keys to `put(rank, key)`, in one thread each; keys differ, but for NO_TOKEN.
template <class Put>
__device__ __forceinline__ void take_largest(Key (&keys)[PER_THREAD], int k, Key* partial, Put put) {
    Key own = NO_TOKEN;
#pragma unroll
    for (int i = 0; i < PER_THREAD; i++) own = largest(own, keys[i]);
    for (int rank = 0; rank < k; rank++) {
        Key found = block_largest(own, partial);
        if (threadIdx.x == 0) put(rank, found);
        if (own == found) {
            own = NO_TOKEN;
#pragma unroll
            for (int i = 0; i < PER_THREAD; i++) {
                if (keys[i] == found) keys[i] = NO_TOKEN;
                own = largest(own, keys[i]);
            }
        }
    }
}

}  // namespace

// Grid: num_slices, num_rows. Block: 256 threads. masks [_, mask_words]: bit t % 32 of word t / 32 allows token t; mask_of[num_rows]: the
// row's mask, -1 for none; `masks` null for none at all. sums[num_rows, num_slices]: {largest logit, Σ exp(logit − largest)}, the sum NaN
// where a logit is NaN or +∞.
extern "C" __global__ void __launch_bounds__(256, 4)
    logits_slices(const float* logits, const uint32_t* masks, const int* mask_of, unsigned long long* keys_out, float2* sums,
                  int vocab_size, int mask_words, int k) {
    __shared__ Key partial_keys[NUM_WARPS];
    __shared__ float partial_sums[NUM_WARPS];
    release_next_kernel();
    await_previous_kernel();
    int slice = blockIdx.x, row = blockIdx.y;
    long long place = (long long)row * gridDim.x + slice;
    const float* row_logits = logits + (long long)row * vocab_size;
    int mask = masks == nullptr ? -1 : mask_of[row];
    const uint32_t* row_mask = mask < 0 ? nullptr : masks + (long long)mask * mask_words;

    Key keys[PER_THREAD];
    bool is_broken = false;
#pragma unroll
    for (int i = 0; i < PER_THREAD; i++) {
        int token = slice * SLICE_LEN + i * NUM_THREADS + int(threadIdx.x);
        keys[i] = NO_TOKEN;
        if (token >= vocab_size) continue;
        if (row_mask != nullptr && (row_mask[token / 32] >> token % 32 & 1) == 0) continue;
        float logit = row_logits[token];
        // NaN fails the comparison.
        if (!(logit < __uint_as_float(0x7f800000u))) {
            is_broken = true;
        } else if (logit > __uint_as_float(0xff800000u)) {
            keys[i] = key_of(k == 1 ? logit + 0.0f : logit, token);
        }
    }
    bool slice_is_broken = __syncthreads_or(is_broken);

    Key own = NO_TOKEN;
#pragma unroll
    for (int i = 0; i < PER_THREAD; i++) own = largest(own, keys[i]);
    Key first = block_largest(own, partial_keys);
    float largest_logit = first == NO_TOKEN ? 0.0f : logit_of(first), sum = 0.0f;
#pragma unroll
    for (int i = 0; i < PER_THREAD; i++) {
        if (keys[i] != NO_TOKEN) sum += expf(logit_of(keys[i]) - largest_logit);
    }
    sum = block_sum<NUM_WARPS>(sum, partial_sums);
    if (threadIdx.x == 0) sums[place] = make_float2(largest_logit, slice_is_broken ? __uint_as_float(0x7fc00000u) : sum);
    take_largest(keys, k, partial_keys, [&](int rank, Key key) { keys_out[place * k + rank] = key; });
}

// Grid: num_rows. Block: 256 threads. num_slices · k at most 4096.
extern "C" __global__ void __launch_bounds__(256, 4)
    logits_combine(const unsigned long long* slice_keys, const float2* sums, int* tokens, float* values, float* log_sum_exp,
                   uint32_t* status, int num_slices, int k) {
    __shared__ Key partial_keys[NUM_WARPS];
    release_next_kernel();
    await_previous_kernel();
    int row = blockIdx.x;
    slice_keys += (long long)row * num_slices * k;
    sums += (long long)row * num_slices;

    Key keys[PER_THREAD], own = NO_TOKEN;
#pragma unroll
    for (int i = 0; i < PER_THREAD; i++) {
        int idx = i * NUM_THREADS + int(threadIdx.x);
        keys[i] = idx < num_slices * k ? slice_keys[idx] : NO_TOKEN;
        own = largest(own, keys[i]);
    }
    Key first = block_largest(own, partial_keys);
    if (threadIdx.x == 0) {
        float largest_logit = first == NO_TOKEN ? 0.0f : logit_of(first), sum = 0.0f;
        bool is_broken = false;
        for (int slice = 0; slice < num_slices; slice++) {
            // A slice without a token has no largest logit either.
            if (sums[slice].y != 0.0f) sum += sums[slice].y * expf(sums[slice].x - largest_logit);
            is_broken |= isnan(sums[slice].y);
        }
        log_sum_exp[row] = largest_logit + logf(sum);
        status[row] = (is_broken ? BROKEN : 0) | (first == NO_TOKEN ? NOTHING_FINITE : 0);
    }
    take_largest(keys, k, partial_keys, [&](int rank, Key key) {
        tokens[(long long)row * k + rank] = key == NO_TOKEN ? -1 : token_of(key);
        values[(long long)row * k + rank] = key == NO_TOKEN ? __uint_as_float(0xff800000u) : logit_of(key);
    });
}
