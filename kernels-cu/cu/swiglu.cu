// SwiGLU (Shazeer 2020, arXiv 2002.05202): out = gate / (1 + e^−gate) · up.
//
//   gate, up  F32  [num_tokens, width]
//   out       BF16 [num_tokens, width]
//
// Any run of elements, four a thread. Bound by memory: 8 bytes read and 2 written an element. The products that end in this do it
// themselves (linear.cu), and tests hold their bits against this one's: it is in no engine.
#include "common/swiglu.cuh"
#include "common/warp.cuh"

namespace {

constexpr int THREADS = 256;
constexpr uint32_t VECTOR = 4;

}  // namespace

extern "C" __global__ void __launch_bounds__(THREADS, 4)
swiglu_bf16(const float* gate, const float* up, bf16* out, uint64_t num_elements) {
    release_next_kernel();
    await_previous_kernel();
    uint64_t first = (uint64_t(blockIdx.x) * THREADS + threadIdx.x) * VECTOR;
    if (first + VECTOR <= num_elements) {
        uint4 gates = load_16(gate + first), ups = load_16(up + first);
        uint32_t low = floats_to_bf16x2(swiglu_of(__uint_as_float(gates.x), __uint_as_float(ups.x)),
                                        swiglu_of(__uint_as_float(gates.y), __uint_as_float(ups.y)));
        uint32_t high = floats_to_bf16x2(swiglu_of(__uint_as_float(gates.z), __uint_as_float(ups.z)),
                                         swiglu_of(__uint_as_float(gates.w), __uint_as_float(ups.w)));
        *reinterpret_cast<uint2*>(out + first) = make_uint2(low, high);
        return;
    }
    for (uint64_t idx = first; idx < num_elements; idx++) out[idx] = float_to_bf16(swiglu_of(gate[idx], up[idx]));
}
