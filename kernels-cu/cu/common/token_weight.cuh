// How likely tokens are, as integers: the host sampler's, bit for bit (engine/src/sampler/weight.rs). Sums of them are the same in whatever
// order they are taken.
//
// A token weighs ⌊2^44 · 2^y⌋ with y = (logit − largest) · scale in F32: the likeliest exactly 2^44, one with y < −44 nothing. Every
// operation is an addition or multiplication of F32 rounded by itself, or one of integers.
#pragma once

#include "common/types.cuh"

typedef unsigned long long u64;

// Bins of a row's tokens by likelihood: 16 for each halving, as far as there is a weight.
constexpr int NUM_LIKELIHOODS = 721;

// Finite logits, and −∞, in their order as integers: 0 above −0.
__device__ __forceinline__ uint32_t key_of_logit(float logit) {
    uint32_t bits = __float_as_uint(logit);
    return bits ^ (bits >> 31 != 0 ? 0xffffffffu : 0x80000000u);
}

__device__ __forceinline__ float logit_of_key(uint32_t key) {
    return __uint_as_float(key ^ (key >> 31 != 0 ? 0x80000000u : 0xffffffffu));
}

// Of the tokens of one row, whose largest logit is finite.
struct Weigher {
    // 1.5 · 2^23: what is added to it is rounded to an integer, in the low bits of the sum.
    static constexpr float ROUNDING = 12582912.0f;
    static constexpr uint32_t ROUNDING_BITS = 0x4b400000u;

    float largest;
    // log2(e) / temperature.
    float scale;

    // Log2 of the likelihood relative to the largest's, from 0 down to −45.
    __device__ __forceinline__ float halvings(float logit) const {
        float below = __fmul_rn(__fadd_rn(logit, -largest), scale);
        return below > -45.0f ? below : -45.0f;
    }

    __device__ __forceinline__ u64 weight(float logit) const {
        float below = halvings(logit), rounded = __fadd_rn(below, ROUNDING);
        float rest = __fadd_rn(below, -__fadd_rn(rounded, -ROUNDING));
        // Taylor's series of 2^rest by Horner.
        float power = __fmul_rn(1.525273400e-5f, rest);
        power = __fmul_rn(__fadd_rn(power, 1.540353100e-4f), rest);
        power = __fmul_rn(__fadd_rn(power, 1.333355800e-3f), rest);
        power = __fmul_rn(__fadd_rn(power, 9.618129000e-3f), rest);
        power = __fmul_rn(__fadd_rn(power, 5.550411000e-2f), rest);
        power = __fmul_rn(__fadd_rn(power, 0.240226500f), rest);
        power = __fmul_rn(__fadd_rn(power, 0.693147200f), rest);
        power = __fadd_rn(power, 1.0f);
        // A power is in [2^−½, 2^½], so it has at most 24 bits behind the point.
        u64 fixed = u64(int(__fmul_rn(power, 16777216.0f)));
        return fixed << 20 >> (ROUNDING_BITS - __float_as_uint(rounded));
    }

    // From 0 for the largest; a smaller logit has the same or one behind it.
    __device__ __forceinline__ int bin(float logit) const {
        float rounded = __fadd_rn(__fmul_rn(halvings(logit), 16.0f), ROUNDING);
        return min(int(ROUNDING_BITS - __float_as_uint(rounded)), NUM_LIKELIHOODS - 1);
    }
};

// The least weight that is at least `fraction` · 2^−53 of `total`; never nothing. A fraction is at most 2^53.
__device__ __forceinline__ u64 goal_of(u64 fraction, u64 total) {
    u64 low = fraction * total, high = __umul64hi(fraction, total);
    u64 rounded = low + ((1ull << 53) - 1);
    high += rounded < low ? 1 : 0;
    u64 goal = high << 11 | rounded >> 53;
    return goal > 0 ? goal : 1;
}

// Where in [0, total) a number of 53 bits points.
__device__ __forceinline__ u64 point_of(u64 number, u64 total) { return __umul64hi(number, total) << 11 | number * total >> 53; }

// SplitMix64 (Steele, Lea, Flood, OOPSLA 2014): uniform in [0, 2^53).
__device__ __forceinline__ u64 next_number(u64& state) {
    state += 0x9e3779b97f4a7c15ull;
    u64 z = state;
    z = (z ^ z >> 30) * 0xbf58476d1ce4e5b9ull;
    z = (z ^ z >> 27) * 0x94d049bb133111ebull;
    return (z ^ z >> 31) >> 11;
}
