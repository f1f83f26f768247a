// Products of a quantized matrix and BF16 rows: out[token, row] = Σ_k weight[row, k] · x[token, k], accumulated in F32.
//
//   weights   as the engine directory stores them, see `LinearMatrix`
//   x         BF16 [num_tokens, num_cols]
//   bias      F32  [num_rows] or null, added once
//   out       F32  [num_tokens, num_rows], written or added to
//
// Up to three matrices with the same x in one launch (query, key and value; gate and up): `num_rows` of an unused one is 0.
// Names: linear_<format>_<token tiles>; a block serves 8 tokens a tile, more tokens take grid.y.
//
// Bound by memory up to about 16 tokens, where every weight is read once and each costs about two instructions; more tokens reuse a
// weight's decoded form, and the tensor cores and the activations' traffic from L2 take over.
//
// A block computes 16 rows. Its 8 warps take every 8th unit of 4 × 16 bytes of a row each; a lane loads 16 contiguous bytes of two
// rows, several units ahead, and expands them to BF16 exactly: E2M1 times its block's E4M3 scale has at most 6 significant bits, E4M3
// and INT4 have fewer. `mma.m16n8k16` does not care which column of the matrix is its k-th as long as both operands agree, so a lane's 16
// bytes feed consecutive MMAs without any exchange (the idea of Marlin, Frantar et al. 2024, arXiv 2408.11743, without repacking the
// weights). The hardware's E2M1 and E4M3 conversions end in F16, from where BF16 is farther than by the expansion used here.
//
// An output's order of summation depends on the number of columns only: units in order within a warp, warps in order. So a token's result
// does not depend on which tokens are beside it.
#include "common/warp.cuh"

namespace {

constexpr int NUM_WARPS = 8;
constexpr int THREADS = NUM_WARPS * WARP_SIZE;
constexpr int TILE_ROWS = 16;
constexpr int TILE_TOKENS = 8;
// Floats from one token's partial sums to the next in shared memory: a warp's stores meet no bank twice.
constexpr int PARTIAL_STRIDE = TILE_ROWS + 4;
constexpr int INT4_GROUP = 128;
constexpr int NVFP4_BLOCK = 16;

enum Format { BF16, FP8, NVFP4, INT4 };

// [num_rows, num_cols], rows one after another.
struct LinearMatrix {
    // BF16; E4M3; two nibbles a byte, even column low (E2M1, or two's complement).
    const uint8_t* codes;
    // FP8: F32 [num_rows]. NVFP4: E4M3 [num_rows, num_cols / 16]. INT4: F16 [num_rows, ceil(num_cols / 128)]. BF16: none.
    const uint8_t* scales;
    // NVFP4: F32 [].
    const float* global_scale;
    const float* bias;
    float* out;
    uint32_t num_rows;
};

template <Format FORMAT>
struct Layout {
    static constexpr int BITS = FORMAT == BF16 ? 16 : FORMAT == FP8 ? 8 : 4;
    // Columns of a lane's 16 bytes, and of a unit: 4 lanes, side by side.
    static constexpr int LANE_COLS = 128 / BITS;
    static constexpr int UNIT_COLS = 4 * LANE_COLS;
};

// A lane's share of one row of a unit.
struct RowPart {
    uint4 codes;
    // NVFP4: two E4M3 codes. INT4: one F16.
    uint32_t scales;
};

// One row of a matrix.
struct Row {
    const uint8_t* codes;
    const uint8_t* scales;
};

template <Format FORMAT>
__device__ __forceinline__ Row row_of(const LinearMatrix& matrix, uint32_t row_idx, uint32_t num_cols) {
    size_t row = row_idx < matrix.num_rows ? row_idx : matrix.num_rows - 1;
    size_t scale_bytes = FORMAT == NVFP4  ? num_cols / NVFP4_BLOCK
                         : FORMAT == INT4 ? (num_cols + INT4_GROUP - 1) / INT4_GROUP * 2
                                          : 0;
    return {matrix.codes + row * (num_cols / 8 * Layout<FORMAT>::BITS + num_cols % 8 * Layout<FORMAT>::BITS / 8),
            matrix.scales + row * scale_bytes};
}

// The bytes [first, end) of `bytes`, at most 16, as the first of 16; the rest 0.
__device__ __noinline__ uint4 load_bytes(const uint8_t* bytes, uint32_t first, uint32_t end) {
    uint32_t words[4] = {0, 0, 0, 0};
#pragma unroll
    for (uint32_t idx = 0; idx < 16; idx++) {
        if (first + idx < end) words[idx / 4] |= uint32_t(bytes[first + idx]) << (8 * (idx % 4));
    }
    return make_uint4(words[0], words[1], words[2], words[3]);
}

// The lane's 16 bytes of codes from column `col` on, and their scales; zeros past the row's end. IS_WHOLE: rows are whole 16-byte pieces.
template <Format FORMAT, bool IS_WHOLE>
__device__ __forceinline__ RowPart load_part(const Row& row, uint32_t col, uint32_t num_cols) {
    RowPart part = {make_uint4(0, 0, 0, 0), 0};
    // A lane past the row's end still holds sums of the group.
    uint32_t group = col / INT4_GROUP;
    if (FORMAT == INT4 && group * INT4_GROUP < num_cols) part.scales = reinterpret_cast<const uint16_t*>(row.scales)[group];
    if (col >= num_cols) return part;
    if (IS_WHOLE) {
        part.codes = load_16_streaming(row.codes + size_t(col) * Layout<FORMAT>::BITS / 8);
    } else {
        part.codes = load_bytes(row.codes, col * Layout<FORMAT>::BITS / 8, num_cols * Layout<FORMAT>::BITS / 8);
    }
    if (FORMAT == NVFP4) {
        const uint8_t* scales = row.scales + col / NVFP4_BLOCK;
        if (IS_WHOLE) {
            part.scales = *reinterpret_cast<const uint16_t*>(scales);
        } else {
            part.scales = scales[0] | (col + NVFP4_BLOCK < num_cols ? uint32_t(scales[1]) << 8 : 0);
        }
    }
    return part;
}

template <int idx>
__device__ __forceinline__ uint32_t word_of(const uint4& words) {
    return idx == 0 ? words.x : idx == 1 ? words.y : idx == 2 ? words.z : words.w;
}

// Eight columns of a part, chunk CHUNK of it, as four BF16 pairs: columns (i, i + 4) of 4-bit formats, (2i, 2i + 1) of the others.
template <Format FORMAT, int CHUNK>
__device__ __forceinline__ void expand(const RowPart& part, uint32_t (&pairs)[4]) {
    if constexpr (FORMAT == NVFP4) {
        uint32_t scale = e2m1_scale(part.scales >> (CHUNK / 2 * 8) & 0xff);
        e2m1x8_to_bf16x2(word_of<CHUNK>(part.codes), scale, pairs);
    } else if constexpr (FORMAT == INT4) {
        int4x8_to_bf16x2(word_of<CHUNK>(part.codes), pairs);
    } else if constexpr (FORMAT == FP8) {
        uint32_t low[2], high[2];
        e4m3x4_to_bf16x2(word_of<CHUNK * 2>(part.codes), low);
        e4m3x4_to_bf16x2(word_of<CHUNK * 2 + 1>(part.codes), high);
        pairs[0] = low[0], pairs[1] = low[1], pairs[2] = high[0], pairs[3] = high[1];
    } else {
        pairs[0] = part.codes.x, pairs[1] = part.codes.y, pairs[2] = part.codes.z, pairs[3] = part.codes.w;
    }
}

// Eight activations in the order `expand` gives the columns.
template <Format FORMAT>
__device__ __forceinline__ void arrange(const uint4& x, uint32_t (&pairs)[4]) {
    if constexpr (FORMAT == NVFP4 || FORMAT == INT4) {
        pairs[0] = __byte_perm(x.x, x.z, 0x5410), pairs[1] = __byte_perm(x.x, x.z, 0x7632);
        pairs[2] = __byte_perm(x.y, x.w, 0x5410), pairs[3] = __byte_perm(x.y, x.w, 0x7632);
    } else {
        pairs[0] = x.x, pairs[1] = x.y, pairs[2] = x.z, pairs[3] = x.w;
    }
}

// The activations of a block's tokens; past the last token and the last column they are 0.
struct Activations {
    const bf16* x;
    uint32_t first_token, num_tokens, num_cols;
};

template <bool IS_WHOLE>
__device__ __forceinline__ uint4 load_activations(const Activations& x, uint32_t token, uint32_t col) {
    if (token >= x.num_tokens || col >= x.num_cols) return make_uint4(0, 0, 0, 0);
    const bf16* row = x.x + size_t(token) * x.num_cols;
    if (IS_WHOLE) return load_16(row + col);
    return load_bytes(reinterpret_cast<const uint8_t*>(row), col * 2, x.num_cols * 2);
}

// sums += the product of eight columns of 16 rows and of every token.
template <Format FORMAT, int TOKEN_TILES, bool IS_WHOLE, int CHUNK>
__device__ __forceinline__ void multiply_chunk(const RowPart& low, const RowPart& high, const Activations& x, uint32_t col,
                                               float (&sums)[TOKEN_TILES][4]) {
    uint32_t low_pairs[4], high_pairs[4];
    expand<FORMAT, CHUNK>(low, low_pairs);
    expand<FORMAT, CHUNK>(high, high_pairs);
    const uint32_t first[4] = {low_pairs[0], high_pairs[0], low_pairs[1], high_pairs[1]};
    const uint32_t second[4] = {low_pairs[2], high_pairs[2], low_pairs[3], high_pairs[3]};
#pragma unroll
    for (int tile = 0; tile < TOKEN_TILES; tile++) {
        uint32_t token = x.first_token + tile * TILE_TOKENS + lane_idx() / 4, pairs[4];
        arrange<FORMAT>(load_activations<IS_WHOLE>(x, token, col + CHUNK * 8), pairs);
        const uint32_t first_x[2] = {pairs[0], pairs[1]}, second_x[2] = {pairs[2], pairs[3]};
        mma_m16n8k16(sums[tile], first, first_x);
        mma_m16n8k16(sums[tile], second, second_x);
    }
}

template <Format FORMAT, int TOKEN_TILES, bool IS_WHOLE>
__device__ __forceinline__ void multiply_chunks(const RowPart& low, const RowPart& high, const Activations& x, uint32_t col,
                                                float (&sums)[TOKEN_TILES][4]) {
    multiply_chunk<FORMAT, TOKEN_TILES, IS_WHOLE, 0>(low, high, x, col, sums);
    if constexpr (FORMAT != BF16) multiply_chunk<FORMAT, TOKEN_TILES, IS_WHOLE, 1>(low, high, x, col, sums);
    if constexpr (FORMAT == NVFP4 || FORMAT == INT4) {
        multiply_chunk<FORMAT, TOKEN_TILES, IS_WHOLE, 2>(low, high, x, col, sums);
        multiply_chunk<FORMAT, TOKEN_TILES, IS_WHOLE, 3>(low, high, x, col, sums);
    }
}

// sums += the product of one unit. INT4: a unit is a group, whose scale multiplies the group's sum.
template <Format FORMAT, int TOKEN_TILES, bool IS_WHOLE>
__device__ __forceinline__ void multiply_unit(const RowPart& low, const RowPart& high, const Activations& x, uint32_t col,
                                              float (&sums)[TOKEN_TILES][4]) {
    if constexpr (FORMAT != INT4) {
        multiply_chunks<FORMAT, TOKEN_TILES, IS_WHOLE>(low, high, x, col, sums);
    } else {
        static_assert(Layout<INT4>::UNIT_COLS == INT4_GROUP, "a unit is a group");
        float group_sums[TOKEN_TILES][4] = {};
        multiply_chunks<FORMAT, TOKEN_TILES, IS_WHOLE>(low, high, x, col, group_sums);
        float low_scale = f16_to_float(uint16_t(low.scales)), high_scale = f16_to_float(uint16_t(high.scales));
#pragma unroll
        for (int tile = 0; tile < TOKEN_TILES; tile++) {
            sums[tile][0] = fmaf(group_sums[tile][0], low_scale, sums[tile][0]);
            sums[tile][1] = fmaf(group_sums[tile][1], low_scale, sums[tile][1]);
            sums[tile][2] = fmaf(group_sums[tile][2], high_scale, sums[tile][2]);
            sums[tile][3] = fmaf(group_sums[tile][3], high_scale, sums[tile][3]);
        }
    }
}

// One warp's share of 16 rows: units warp, warp + 8, … of both of the lane's rows.
template <Format FORMAT, int TOKEN_TILES, bool IS_WHOLE>
__device__ __forceinline__ void multiply_rows(const Row& low, const Row& high, const Activations& x, float (&sums)[TOKEN_TILES][4]) {
    // Units loaded ahead: what hides the memory's latency, as far as the registers go.
    constexpr int AHEAD = !IS_WHOLE ? 1 : TOKEN_TILES == 1 ? 4 : TOKEN_TILES == 2 ? 3 : 2;
    constexpr uint32_t UNIT = Layout<FORMAT>::UNIT_COLS, STEP = UNIT * NUM_WARPS;
    uint32_t lane_col = lane_idx() % 4 * Layout<FORMAT>::LANE_COLS, first = warp_idx() * UNIT;
    RowPart low_parts[AHEAD], high_parts[AHEAD];
#pragma unroll
    for (int idx = 0; idx < AHEAD; idx++) {
        low_parts[idx] = load_part<FORMAT, IS_WHOLE>(low, first + idx * STEP + lane_col, x.num_cols);
        high_parts[idx] = load_part<FORMAT, IS_WHOLE>(high, first + idx * STEP + lane_col, x.num_cols);
    }
    for (uint32_t col = first; col < x.num_cols; col += AHEAD * STEP) {
#pragma unroll
        for (int idx = 0; idx < AHEAD; idx++) {
            uint32_t unit_col = col + idx * STEP;
            if (unit_col >= x.num_cols) break;
            RowPart low_part = low_parts[idx], high_part = high_parts[idx];
            low_parts[idx] = load_part<FORMAT, IS_WHOLE>(low, unit_col + AHEAD * STEP + lane_col, x.num_cols);
            high_parts[idx] = load_part<FORMAT, IS_WHOLE>(high, unit_col + AHEAD * STEP + lane_col, x.num_cols);
            multiply_unit<FORMAT, TOKEN_TILES, IS_WHOLE>(low_part, high_part, x, unit_col + lane_col, sums);
        }
    }
}

// What remains to be multiplied to a row's sums.
template <Format FORMAT>
__device__ __forceinline__ float row_scale(const LinearMatrix& matrix, uint32_t row) {
    if (FORMAT == FP8) return reinterpret_cast<const float*>(matrix.scales)[row];
    if (FORMAT == NVFP4) return *matrix.global_scale * E2M1_REST;
    return 1.0f;
}

// Adds the warps' sums in order, and stores the block's outputs.
template <Format FORMAT, int TOKEN_TILES>
__device__ __forceinline__ void finish(const LinearMatrix& matrix, uint32_t first_row, const Activations& x, bool adds,
                                       const float (&sums)[TOKEN_TILES][4]) {
    constexpr int TOKENS = TOKEN_TILES * TILE_TOKENS;
    __shared__ float partial[NUM_WARPS][TOKENS * PARTIAL_STRIDE];
    int group = lane_idx() / 4, pair = lane_idx() % 4 * 2;
#pragma unroll
    for (int tile = 0; tile < TOKEN_TILES; tile++) {
#pragma unroll
        for (int idx = 0; idx < 4; idx++) {
            int token = tile * TILE_TOKENS + pair + idx % 2, row = group + idx / 2 * 8;
            partial[warp_idx()][token * PARTIAL_STRIDE + row] = sums[tile][idx];
        }
    }
    __syncthreads();
    for (int place = int(threadIdx.x); place < TOKENS * TILE_ROWS; place += THREADS) {
        uint32_t token = x.first_token + place / TILE_ROWS, row = first_row + place % TILE_ROWS;
        if (token >= x.num_tokens || row >= matrix.num_rows) continue;
        float sum = 0.0f;
#pragma unroll
        for (int warp = 0; warp < NUM_WARPS; warp++) {
            sum += partial[warp][place / TILE_ROWS * PARTIAL_STRIDE + place % TILE_ROWS];
        }
        float* out = matrix.out + size_t(token) * matrix.num_rows + row;
        float result = sum * row_scale<FORMAT>(matrix, row);
        if (matrix.bias != nullptr) result += matrix.bias[row];
        *out = adds ? *out + result : result;
    }
}

__device__ __forceinline__ uint32_t num_row_tiles(const LinearMatrix& matrix) {
    return (matrix.num_rows + TILE_ROWS - 1) / TILE_ROWS;
}

template <Format FORMAT, int TOKEN_TILES>
__device__ __forceinline__ void linear(const LinearMatrix& first, const LinearMatrix& second, const LinearMatrix& third, const bf16* x,
                                       uint32_t num_tokens, uint32_t num_cols, bool adds) {
    uint32_t row_tile = blockIdx.x;
    LinearMatrix matrix = first;
    if (row_tile >= num_row_tiles(first)) {
        row_tile -= num_row_tiles(first);
        matrix = second;
        if (row_tile >= num_row_tiles(second)) {
            row_tile -= num_row_tiles(second);
            matrix = third;
        }
    }
    Activations activations = {x, blockIdx.y * TOKEN_TILES * TILE_TOKENS, num_tokens, num_cols};
    uint32_t first_row = row_tile * TILE_ROWS, low_row = first_row + lane_idx() / 4;
    Row low = row_of<FORMAT>(matrix, low_row, num_cols), high = row_of<FORMAT>(matrix, low_row + 8, num_cols);
    float sums[TOKEN_TILES][4] = {};
    if (num_cols % Layout<FORMAT>::LANE_COLS == 0) {
        multiply_rows<FORMAT, TOKEN_TILES, true>(low, high, activations, sums);
    } else {
        multiply_rows<FORMAT, TOKEN_TILES, false>(low, high, activations, sums);
    }
    finish<FORMAT, TOKEN_TILES>(matrix, first_row, activations, adds, sums);
}

}  // namespace

#define TAKT_MATRIX(n)                                                                                                             \
    const uint8_t *codes_##n, const uint8_t *scales_##n, const float *global_scale_##n, const float *bias_##n, float *out_##n,    \
        uint32_t num_rows_##n

#define TAKT_LINEAR(name, format, token_tiles, min_blocks)                                                                        \
    extern "C" __global__ void __launch_bounds__(THREADS, min_blocks) name##_##token_tiles(                                       \
        TAKT_MATRIX(0), TAKT_MATRIX(1), TAKT_MATRIX(2), const bf16* x, uint32_t num_tokens, uint32_t num_cols, uint32_t adds) {   \
        LinearMatrix first = {codes_0, scales_0, global_scale_0, bias_0, out_0, num_rows_0};                                              \
        LinearMatrix second = {codes_1, scales_1, global_scale_1, bias_1, out_1, num_rows_1};                                             \
        LinearMatrix third = {codes_2, scales_2, global_scale_2, bias_2, out_2, num_rows_2};                                              \
        linear<format, token_tiles>(first, second, third, x, num_tokens, num_cols, adds != 0);                                    \
    }

#define TAKT_LINEAR_FORMAT(name, format) \
    TAKT_LINEAR(name, format, 1, 2)      \
    TAKT_LINEAR(name, format, 2, 2)      \
    TAKT_LINEAR(name, format, 4, 1)      \
    TAKT_LINEAR(name, format, 8, 1)

TAKT_LINEAR_FORMAT(linear_bf16, BF16)
TAKT_LINEAR_FORMAT(linear_fp8, FP8)
TAKT_LINEAR_FORMAT(linear_nvfp4, NVFP4)
TAKT_LINEAR_FORMAT(linear_int4, INT4)
