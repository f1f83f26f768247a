// The gate of the feed-forward network.
#pragma once

// gate / (1 + e^−gate) · up. Each operation rounds on its own: every kernel gives the same bits.
__device__ __forceinline__ float swiglu_of(float gate, float up) {
    return __fmul_rn(__fdiv_rn(gate, __fadd_rn(1.0f, expf(-gate))), up);
}
