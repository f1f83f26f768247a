// Choosing by a whole row of logits, of any number of tokens: all warps of a block together, every thread with the same result.
//
// Everything is a sum of integers, so however the row is divided among threads the result is the host's. A pass over the row reads 4 bytes
// a token, from L2 after the first: one for the pick, and for each of top-k and top-p two to six, 1 for the likelihoods' histogram, 0 to 4
// for the logits within one bin of it, 1 for tokens with the same logit.
#pragma once

#include "common/token_weight.cuh"
#include "common/warp.cuh"

constexpr int NUM_PARTS = WARP_SIZE;
constexpr int NUM_BINS = NUM_PARTS * WARP_SIZE;
constexpr int NO_LAST_TOKEN = 0x7fffffff;

// Shared memory of a block.
struct RowScratch {
    u64 bins[NUM_BINS];
    u64 parts[NUM_PARTS];
    int first;
};

__device__ __forceinline__ u64 warp_sum_u64(u64 value) {
#pragma unroll
    for (int distance = WARP_SIZE / 2; distance > 0; distance /= 2) value += __shfl_xor_sync(FULL_MASK, value, distance);
    return value;
}

// Sum of the values of this lane and those below it.
__device__ __forceinline__ u64 warp_sum_upto(u64 value) {
#pragma unroll
    for (int distance = 1; distance < WARP_SIZE; distance *= 2) {
        u64 other = __shfl_up_sync(FULL_MASK, value, distance);
        if (lane_idx() >= distance) value += other;
    }
    return value;
}

// The first lane at which the running sum of `value` passes `point`, which is reduced by what is before; the last one if none does.
__device__ __forceinline__ int lane_at(u64 value, u64& point) {
    u64 upto = warp_sum_upto(value);
    unsigned past = __ballot_sync(FULL_MASK, upto > point);
    int lane = past != 0 ? __ffs(int(past)) - 1 : WARP_SIZE - 1;
    point -= __shfl_sync(FULL_MASK, upto - value, lane);
    return lane;
}

// A row, and what each of its tokens counts for.
struct Row {
    const float* logits;
    int vocab_size;
    Weigher weigher;
    // Keys of the logits that count; of `low` only the tokens up to `last_token`.
    uint32_t low, high;
    int last_token;
    // At least 1; whatever weighs less does not count.
    u64 min_weight;
    // Tokens count for 1 each, not for their weight.
    bool by_number;

    __device__ __forceinline__ u64 count(int token) const {
        float logit = logits[token];
        uint32_t key = key_of_logit(logit);
        if (key < low || key > high || (key == low && token > last_token)) return 0;
        u64 weight = weigher.weight(logit);
        if (weight < min_weight) return 0;
        return by_number ? 1 : weight;
    }

    // Only keys in [new_low, new_high] count from here on, as far as they did.
    __device__ __forceinline__ void restrict_to(uint32_t new_low, uint32_t new_high) {
        if (new_low > low) {
            low = new_low;
            last_token = NO_LAST_TOKEN;
        }
        high = min(high, new_high);
    }
};

// Of a division of tokens into NUM_PARTS; a multiple of what a warp reads at once.
__device__ __forceinline__ int part_len_of(int num_tokens) { return (num_tokens + NUM_BINS - 1) / NUM_BINS * WARP_SIZE; }

// What the parts of [begin, end) count for, and their sum.
__device__ u64 sum_parts(const Row& row, int begin, int end, RowScratch& scratch) {
    int part_len = part_len_of(end - begin), num_warps = int(blockDim.x) / WARP_SIZE;
    __syncthreads();  // the parts before may still be read
    for (int part = warp_idx(); part < NUM_PARTS; part += num_warps) {
        int stop = min(begin + (part + 1) * part_len, end);
        u64 sum = 0;
        for (int token = begin + part * part_len + lane_idx(); token < stop; token += WARP_SIZE) sum += row.count(token);
        sum = warp_sum_u64(sum);
        if (lane_idx() == 0) scratch.parts[part] = sum;
    }
    __syncthreads();
    return warp_sum_u64(scratch.parts[lane_idx()]);
}

// The token at which the running sum, in the order of ids, passes `point`; the row's parts are summed up.
__device__ int token_at(const Row& row, u64 point, RowScratch& scratch) {
    int begin = 0, end = row.vocab_size;
    for (;;) {
        int part_len = part_len_of(end - begin);
        begin += lane_at(scratch.parts[lane_idx()], point) * part_len;
        end = min(begin + part_len, end);
        if (part_len == WARP_SIZE) break;
        sum_parts(row, begin, end, scratch);
    }
    int token = begin + lane_idx();
    return begin + lane_at(token < end ? row.count(token) : 0, point);
}

// What each bin of the row counts for, `bin_of` a token's logit; returns the sum.
template <class BinOf>
__device__ __forceinline__ u64 fill_bins(const Row& row, RowScratch& scratch, BinOf bin_of) {
    int num_threads = int(blockDim.x);
    __syncthreads();  // the bins before may still be read
    for (int bin = int(threadIdx.x); bin < NUM_BINS; bin += num_threads) scratch.bins[bin] = 0;
    __syncthreads();
    for (int token = int(threadIdx.x); token < row.vocab_size; token += num_threads) {
        u64 count = row.count(token);
        if (count != 0) atomicAdd(&scratch.bins[bin_of(row.logits[token])], count);
    }
    __syncthreads();
    for (int part = warp_idx(); part < NUM_PARTS; part += num_threads / WARP_SIZE) {
        u64 sum = warp_sum_u64(scratch.bins[part * WARP_SIZE + lane_idx()]);
        if (lane_idx() == 0) scratch.parts[part] = sum;
    }
    __syncthreads();
    return warp_sum_u64(scratch.parts[lane_idx()]);
}

// The bin at which the running sum passes `point`, which is reduced by what is before.
__device__ __forceinline__ int bin_at(const RowScratch& scratch, u64& point) {
    int part = lane_at(scratch.parts[lane_idx()], point);
    return part * WARP_SIZE + lane_at(scratch.bins[part * WARP_SIZE + lane_idx()], point);
}

// The smallest key, up to that of the largest logit, with a likelihood in `bin` or before it.
__device__ __forceinline__ uint32_t first_key_of(const Weigher& weigher, int bin) {
    uint32_t low = key_of_logit(__uint_as_float(0xff800000u)), high = key_of_logit(weigher.largest);
    while (low < high) {
        uint32_t middle = low + (high - low) / 2;
        if (weigher.bin(logit_of_key(middle)) <= bin) {
            high = middle;
        } else {
            low = middle + 1;
        }
    }
    return low;
}

// Keeps the likeliest tokens that together reach the goal: `amount` tokens, or that fraction, in 2^−53, of what the row's tokens weigh.
__device__ void keep_likeliest(Row& row, bool by_number, u64 amount, RowScratch& scratch) {
    Row within = row;
    within.by_number = by_number;
    Weigher weigher = row.weigher;
    u64 total = fill_bins(within, scratch, [&](float logit) { return weigher.bin(logit); });
    u64 goal = by_number ? amount : goal_of(amount, total);
    if (goal >= total) return;
    // The last token that is kept is at this point of the tokens from the likeliest on: narrowed to a bin, to one logit, to one id.
    u64 point = goal - 1;
    int bin = bin_at(scratch, point);
    uint32_t first = first_key_of(weigher, bin), last = bin == 0 ? key_of_logit(weigher.largest) : first_key_of(weigher, bin - 1) - 1;
    within.restrict_to(first, last);
    while (within.low < within.high) {
        uint32_t low = within.low, high = within.high;
        int shift = max(0, 22 - __clz(int(high - low)));
        fill_bins(within, scratch, [&](float logit) { return int((high - key_of_logit(logit)) >> shift); });
        uint32_t new_high = high - (uint32_t(bin_at(scratch, point)) << shift), width = (1u << shift) - 1;
        within.restrict_to(new_high - low > width ? new_high - width : low, new_high);
    }
    sum_parts(within, 0, row.vocab_size, scratch);
    row.low = within.low;
    row.last_token = token_at(within, point, scratch);
}

// The lowest id with a logit that equals `logit`, where there is one.
__device__ __forceinline__ int first_equal(const float* logits, int vocab_size, float logit, RowScratch& scratch) {
    __syncthreads();
    if (threadIdx.x == 0) scratch.first = NO_LAST_TOKEN;
    __syncthreads();
    for (int token = int(threadIdx.x); token < vocab_size; token += int(blockDim.x)) {
        if (logits[token] == logit) {
            atomicMin(&scratch.first, token);
            break;
        }
    }
    __syncthreads();
    return scratch.first;
}
