// Rows of the embedding as the residual stream begins: out[token] = embedding[token_ids[token]].
//
//   embedding  BF16 [vocab_size, width]
//   token_ids  I32  [num_tokens]; an id outside the vocabulary (padding is −1) gives a row of zeros
//   out        F32  [num_tokens, width]
//
// One block a token. Bound by memory: 2 bytes read and 4 written an element; in a decode step by the launch itself.
#include "common/warp.cuh"

namespace {

constexpr int THREADS = 256;
constexpr uint32_t VECTOR = 8;

}  // namespace

extern "C" __global__ void __launch_bounds__(THREADS, 4)
embed_bf16(const bf16* embedding, const int32_t* token_ids, float* out, uint32_t vocab_size, uint32_t width) {
    release_next_kernel();
    await_previous_kernel();
    uint32_t token = blockIdx.x, id = uint32_t(token_ids[token]);
    bool is_known = id < vocab_size;
    const bf16* from = embedding + size_t(is_known ? id : 0) * width;
    float* to = out + size_t(token) * width;
    // Rows begin at multiples of 16 bytes only if they are whole vectors.
    uint32_t num_vectors = width % VECTOR == 0 ? width / VECTOR : 0;
    for (uint32_t vector = threadIdx.x; vector < num_vectors; vector += THREADS) {
        uint4 codes = is_known ? load_16(from + vector * VECTOR) : make_uint4(0, 0, 0, 0);
        const uint32_t pairs[4] = {codes.x, codes.y, codes.z, codes.w};
#pragma unroll
        for (uint32_t half = 0; half < 2; half++) {
            uint32_t first = pairs[half * 2], second = pairs[half * 2 + 1];
            uint4 values = make_uint4(first << 16, first & 0xffff0000u, second << 16, second & 0xffff0000u);
            store_16(to + vector * VECTOR + half * 4, values);
        }
    }
    for (uint32_t col = num_vectors * VECTOR + threadIdx.x; col < width; col += THREADS) {
        to[col] = is_known ? bf16_to_float(from[col]) : 0.0f;
    }
}
