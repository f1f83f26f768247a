// What attention needs of a token: its queries and keys normalized and rotated, its key and value stored in the cache.
//
//   q             [num_tokens, num_heads · head_dim] F32, rows `q_stride` elements apart
//   k, v          [num_tokens, num_kv_heads · head_dim] F32, rows `kv_stride` elements apart
//   q_out         [num_tokens, num_heads, head_dim] BF16
//   keys, values  the layer's cache, see common/kv.cuh; the token's row is `rows[token]` of lane `lanes[token]`
//
// Rotary position embedding (Su et al. 2021) with cosines and sines from a table [max_positions, num_pairs] made once on the host, since
// 131071 · inv_freq is beyond what fast sines reduce well; RMS norm of each head (Qwen3) and bias (Qwen2) are optional. FP8 and INT8 rows
// map their largest magnitude to 448 and 127, with one F32 scale each.
//
// One warp a head and token. Bound by memory: 4 bytes read and at most 2 written an element.

#include "common/kv.cuh"
#include "common/types.cuh"
#include "common/warp.cuh"

namespace {

constexpr int NUM_WARPS = 4;
constexpr int MAX_HEAD_DIM = 256;
constexpr int MAX_PER_LANE = MAX_HEAD_DIM / 32;

// Which elements of a head make a pair.
constexpr int INTERLEAVED = 1;

// Nearest integer, ties to even, in two's complement; |value| < 2^22.
__device__ __forceinline__ uint32_t nearest(float value) { return __float_as_uint(__fadd_rn(value, 12582912.0f)); }

struct Fp8Store {
    static constexpr float LARGEST = 448.0f;
    static __device__ __forceinline__ uint32_t encode(float value) { return float_to_e4m3(value); }
};

struct Int8Store {
    static constexpr float LARGEST = 127.0f;
    static __device__ __forceinline__ uint32_t encode(float value) { return nearest(value); }
};

// A head's elements lie in a warp's registers: element i of lane l is column l + 32 · i.
struct HeadElements {
    float values[MAX_PER_LANE];
    int head_dim;

    __device__ __forceinline__ bool has(int i) const { return lane_idx() + 32 * i < head_dim; }

    __device__ __forceinline__ void load(const float* from, const float* bias) {
#pragma unroll
        for (int i = 0; i < MAX_PER_LANE; i++) {
            int column = lane_idx() + 32 * i;
            values[i] = has(i) ? from[column] : 0.0f;
            if (bias != nullptr && has(i)) values[i] += bias[column];
        }
    }

    __device__ __forceinline__ void normalize(const float* weight, float eps) {
        float sum = 0.0f;
#pragma unroll
        for (int i = 0; i < MAX_PER_LANE; i++) sum = __fmaf_rn(values[i], values[i], sum);
        float factor = __fdiv_rn(1.0f, __fsqrt_rn(warp_sum(sum) / float(head_dim) + eps));
#pragma unroll
        for (int i = 0; i < MAX_PER_LANE; i++) {
            if (has(i)) values[i] = values[i] * factor * weight[lane_idx() + 32 * i];
        }
    }

    // `room` is the warp's shared memory for a head.
    __device__ __forceinline__ void rotate(const float* cos, const float* sin, int num_pairs, int pairing, float* room) {
#pragma unroll
        for (int i = 0; i < MAX_PER_LANE; i++) {
            if (has(i)) room[lane_idx() + 32 * i] = values[i];
        }
        __syncwarp();
#pragma unroll
        for (int i = 0; i < MAX_PER_LANE; i++) {
            int column = lane_idx() + 32 * i;
            if (column >= 2 * num_pairs) continue;
            bool is_first = pairing == INTERLEAVED ? column % 2 == 0 : column < num_pairs;
            int pair = pairing == INTERLEAVED ? column / 2 : column % num_pairs;
            int distance = pairing == INTERLEAVED ? 1 : num_pairs;
            float other = room[is_first ? column + distance : column - distance];
            // (a, b) becomes (a·cos − b·sin, b·cos + a·sin).
            values[i] = __fmaf_rn(is_first ? -other : other, sin[pair], __fmul_rn(values[i], cos[pair]));
        }
    }

    __device__ __forceinline__ void store_bf16(bf16* row) const {
#pragma unroll
        for (int i = 0; i < MAX_PER_LANE; i++) {
            if (has(i)) row[lane_idx() + 32 * i] = float_to_bf16(values[i]);
        }
    }

    template <class Store>
    __device__ __forceinline__ void store_scaled(uint8_t* row, float* scale) const {
        float largest = 0.0f;
#pragma unroll
        for (int i = 0; i < MAX_PER_LANE; i++) largest = fmaxf(largest, fabsf(values[i]));
        largest = warp_max(largest);
        // A row of subnormals would overflow its own inverse; it is zero for every purpose of attention.
        bool is_zero = largest < 1.17549435e-38f * Store::LARGEST;
        float inverse = is_zero ? 0.0f : __fdiv_rn(Store::LARGEST, largest);
        if (lane_idx() == 0) *scale = is_zero ? 0.0f : __fdiv_rn(largest, Store::LARGEST);
#pragma unroll
        for (int i = 0; i < MAX_PER_LANE; i++) {
            if (has(i)) row[lane_idx() + 32 * i] = uint8_t(Store::encode(__fmul_rn(values[i], inverse)));
        }
    }
};

// Stores `head` as row `row` of a cache plane, in its format.
template <class Rows>
__device__ __forceinline__ void store_row(const HeadElements& head, unsigned char* plane, float* scales, long long row);

template <>
__device__ __forceinline__ void store_row<Bf16Rows>(const HeadElements& head, unsigned char* plane, float*, long long row) {
    head.store_bf16(reinterpret_cast<bf16*>(plane) + row * head.head_dim);
}

template <>
__device__ __forceinline__ void store_row<Fp8Rows>(const HeadElements& head, unsigned char* plane, float* scales, long long row) {
    head.store_scaled<Fp8Store>(plane + row * head.head_dim, scales + row);
}

template <>
__device__ __forceinline__ void store_row<Int8Rows>(const HeadElements& head, unsigned char* plane, float* scales, long long row) {
    head.store_scaled<Int8Store>(plane + row * head.head_dim, scales + row);
}

struct Projections {
    const float* q;
    const float* k;
    const float* v;
    const float* bias;
    int q_stride;
    int kv_stride;
};

struct Rotation {
    const float* q_norm;
    const float* k_norm;
    const float* cos;
    const float* sin;
    float eps;
    int num_pairs;
    int pairing;
};

struct Cache {
    unsigned char* keys;
    unsigned char* values;
    float* key_scales;
    float* value_scales;
    int num_kv_heads;
    int capacity;
};

template <class Rows>
__device__ __forceinline__ void rope_kv(const Projections& from, const Rotation& rotation, const Cache& cache, bf16* q_out,
                                        const int* positions, const int* lanes, const int* rows, int num_heads, int head_dim) {
    __shared__ float room[NUM_WARPS][MAX_HEAD_DIM];
    release_next_kernel();
    await_previous_kernel();
    int token = blockIdx.x, head = int(blockIdx.y) * NUM_WARPS + warp_idx();
    int lane = lanes[token];
    // No barrier of the block follows.
    if (lane < 0 || head >= num_heads + 2 * cache.num_kv_heads) return;

    bool is_query = head < num_heads, is_value = head >= num_heads + cache.num_kv_heads;
    int kv_head = is_query ? 0 : (head - num_heads) % cache.num_kv_heads;
    const float* source = is_query   ? from.q + (long long)token * from.q_stride + head * head_dim
                          : is_value ? from.v + (long long)token * from.kv_stride + kv_head * head_dim
                                     : from.k + (long long)token * from.kv_stride + kv_head * head_dim;
    HeadElements elements;
    elements.head_dim = head_dim;
    elements.load(source, from.bias == nullptr ? nullptr : from.bias + head * head_dim);
    long long row = head_row(lane, kv_head, cache.num_kv_heads, cache.capacity) + rows[token];
    if (is_value) {
        store_row<Rows>(elements, cache.values, cache.value_scales, row);
        return;
    }
    const float* weight = is_query ? rotation.q_norm : rotation.k_norm;
    if (weight != nullptr) elements.normalize(weight, rotation.eps);
    long long angle = (long long)positions[token] * rotation.num_pairs;
    elements.rotate(rotation.cos + angle, rotation.sin + angle, rotation.num_pairs, rotation.pairing, room[warp_idx()]);
    if (is_query) {
        elements.store_bf16(q_out + ((long long)token * num_heads + head) * head_dim);
    } else {
        store_row<Rows>(elements, cache.keys, cache.key_scales, row);
    }
}

}  // namespace

// Grid: num_tokens, (num_heads + 2 · num_kv_heads) / 4 rounded up. Block: 128 threads. head_dim up to 256.
// bias [(num_heads + 2 · num_kv_heads) · head_dim], q_norm and k_norm [head_dim]: null for none. pairing: 0 (i, i + num_pairs), 1
// (2i, 2i + 1), of the first 2 · num_pairs elements; the rest of a head stays as it is. A token of lane -1 is padding.
#define TAKT_ROPE_KV(name, Rows)                                                                                                     \
    extern "C" __global__ void __launch_bounds__(128, 8)                                                                             \
        rope_kv_##name(const float* q, const float* k, const float* v, const float* bias, const float* q_norm, const float* k_norm,  \
                       const float* cos, const float* sin, const int* positions, const int* lanes, const int* rows, bf16* q_out,     \
                       unsigned char* keys, unsigned char* values, float* key_scales, float* value_scales, float eps, int q_stride,  \
                       int kv_stride, int num_heads, int num_kv_heads, int head_dim, int num_pairs, int pairing, int capacity) {     \
        Projections from = {q, k, v, bias, q_stride, kv_stride};                                                                     \
        Rotation rotation = {q_norm, k_norm, cos, sin, eps, num_pairs, pairing};                                                     \
        Cache cache = {keys, values, key_scales, value_scales, num_kv_heads, capacity};                                              \
        rope_kv<Rows>(from, rotation, cache, q_out, positions, lanes, rows, num_heads, head_dim);                                    \
    }

TAKT_ROPE_KV(bf16, Bf16Rows)
TAKT_ROPE_KV(fp8, Fp8Rows)
TAKT_ROPE_KV(int8, Int8Rows)
