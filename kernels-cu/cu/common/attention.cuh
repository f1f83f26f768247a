// What the kernels of attention agree on: where a context is split, and how the splits' results merge.
#pragma once

#include "types.cuh"

// Positions of a split: one warp's share of a long context. Part of the arithmetic's order, as launch/attention.rs knows.
constexpr int SPLIT_LEN = 128;
// Positions of a step: the depth of mma.m16n8k16.
constexpr int STEP_LEN = 16;

// 2^x; exactly 1 for 0, 0 for -infinity.
__device__ __forceinline__ float power_of_two(float x) {
#ifdef TAKT_EMULATED
    return exp2f(x);
#else
    float result;
    asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(result) : "f"(x));
    return result;
#endif
}

__device__ __forceinline__ float minus_infinity() { return __int_as_float(int(0xff800000u)); }

// Largest score and sum of weights of the splits merged so far. Every operation is rounded by itself, so that all kernels that merge get the
// same bits; a split in which nothing is seen (-infinity, 0, zeros) changes none.
struct Merge {
    float max_score;
    float sum;

    // What the two sides' values are multiplied by.
    struct Factors {
        float merged;
        float added;
        __device__ __forceinline__ float apply(float value, float addend) const {
            return __fmaf_rn(value, merged, __fmul_rn(addend, added));
        }
    };

    static __device__ __forceinline__ Merge empty() { return {minus_infinity(), 0.0f}; }

    __device__ __forceinline__ Factors add(float split_max, float split_sum) {
        float largest = fmaxf(max_score, split_max);
        float base = largest == minus_infinity() ? 0.0f : largest;
        Factors factors = {power_of_two(__fsub_rn(max_score, base)), power_of_two(__fsub_rn(split_max, base))};
        max_score = largest;
        sum = __fmaf_rn(sum, factors.merged, __fmul_rn(split_sum, factors.added));
        return factors;
    }

    // What makes merged values an average.
    __device__ __forceinline__ float factor() const { return __fdiv_rn(1.0f, sum); }
};
