// Products of a quantized matrix and BF16 rows, for few tokens: out[token, row] = Σ_k weight[row, k] · x[token, k] + bias[row], accumulated in F32.
//
//   weights   as the engine directory stores them, see `LinearMatrix`
//   x         BF16 [num_tokens, num_cols]
//   bias      F32  [num_rows] or null
//   out       F32  [num_tokens, num_rows], written or added to; or BF16, of two matrices: silu(gate) · up, see `Output`
//
// Up to three matrices with the same x in one launch (query, key and value; gate and up): `num_rows` of an unused one is 0.
// Names: linear_<format>_<token tiles>; a block serves 8 tokens a tile, more tokens take grid.y. linear_wide.cu is for more tokens.
//
// Bound by memory: every weight is read once and costs about two instructions. A block computes 16 rows, each of its 8 warps one slice of
// them, so that a small matrix fills the GPU too; a lane loads several units ahead (see common/weights.cuh), the first ones while the
// kernel before may still run. The warps' sums are added in order.
#include "common/weights.cuh"

namespace {

constexpr int THREADS = NUM_SLICES * WARP_SIZE;
constexpr int TILE_ROWS = 16;
// Floats from one token's partial sums to the next in shared memory: a warp's stores meet no bank twice.
constexpr int PARTIAL_STRIDE = TILE_ROWS + 4;

// The activations of a block's tokens. A lane whose token is past the last reads the last one's: a column of an MMA that nobody stores.
struct Activations {
    const bf16* x;
    uint32_t first_token, num_tokens, num_cols;

    __device__ __forceinline__ const bf16* row_of_tile(int tile) const {
        uint32_t token = first_token + tile * TILE_TOKENS + lane_idx() / 4;
        return x + size_t(token < num_tokens ? token : num_tokens - 1) * num_cols;
    }
};

// Where a lane's columns of a unit begin in each of its tokens, and how many there are.
template <int TOKEN_TILES>
struct UnitColumns {
    const bf16* x[TOKEN_TILES];
    uint32_t count;
};

// Past the row's end the weights are 0: there the activations need only be numbers, and are where the row begins.
template <int TOKEN_TILES>
__device__ __forceinline__ UnitColumns<TOKEN_TILES> unit_columns(const bf16* const (&rows)[TOKEN_TILES], uint32_t col, uint32_t num_cols) {
    UnitColumns<TOKEN_TILES> unit;
    bool is_there = col < num_cols;
    unit.count = is_there ? num_cols - col : 0;
#pragma unroll
    for (int tile = 0; tile < TOKEN_TILES; tile++) unit.x[tile] = rows[tile] + (is_there ? col : 0);
    return unit;
}

template <bool IS_WHOLE>
__device__ __forceinline__ uint4 load_activations(const bf16* x, uint32_t count, uint32_t first) {
    if (IS_WHOLE) return load_16(x + first);
    return load_bytes(reinterpret_cast<const uint8_t*>(x + first), count > first ? (count - first) * 2 : 0);
}

// sums += the product of eight columns of 16 rows and of every token.
template <Format FORMAT, int TOKEN_TILES, bool IS_WHOLE, int CHUNK>
__device__ __forceinline__ void multiply_chunk(const RowPart& low, const RowPart& high, const UnitColumns<TOKEN_TILES>& unit,
                                               float (&sums)[TOKEN_TILES][4]) {
    uint32_t low_pairs[4], high_pairs[4], x_pairs[4];
    expand<FORMAT, CHUNK>(low, low_pairs);
    expand<FORMAT, CHUNK>(high, high_pairs);
#pragma unroll
    for (int tile = 0; tile < TOKEN_TILES; tile++) {
        arrange<FORMAT>(load_activations<IS_WHOLE>(unit.x[tile], unit.count, CHUNK * 8), x_pairs);
        multiply_pairs(low_pairs, high_pairs, x_pairs, sums[tile]);
    }
}

template <Format FORMAT, int TOKEN_TILES, bool IS_WHOLE>
__device__ __forceinline__ void multiply_chunks(const RowPart& low, const RowPart& high, const UnitColumns<TOKEN_TILES>& unit,
                                                float (&sums)[TOKEN_TILES][4]) {
    multiply_chunk<FORMAT, TOKEN_TILES, IS_WHOLE, 0>(low, high, unit, sums);
    if constexpr (FORMAT != BF16) multiply_chunk<FORMAT, TOKEN_TILES, IS_WHOLE, 1>(low, high, unit, sums);
    if constexpr (FORMAT == NVFP4 || FORMAT == INT4) {
        multiply_chunk<FORMAT, TOKEN_TILES, IS_WHOLE, 2>(low, high, unit, sums);
        multiply_chunk<FORMAT, TOKEN_TILES, IS_WHOLE, 3>(low, high, unit, sums);
    }
}

// sums += the product of one unit. INT4: a unit is a group, whose scale multiplies the group's sum.
template <Format FORMAT, int TOKEN_TILES, bool IS_WHOLE>
__device__ __forceinline__ void multiply_unit(const RowPart& low, const RowPart& high, const UnitColumns<TOKEN_TILES>& unit,
                                              float (&sums)[TOKEN_TILES][4]) {
    if constexpr (FORMAT != INT4) {
        multiply_chunks<FORMAT, TOKEN_TILES, IS_WHOLE>(low, high, unit, sums);
    } else {
        static_assert(Layout<INT4>::UNIT_COLS == INT4_GROUP, "a unit is a group");
        float group_sums[TOKEN_TILES][4] = {};
        multiply_chunks<FORMAT, TOKEN_TILES, IS_WHOLE>(low, high, unit, group_sums);
#pragma unroll
        for (int tile = 0; tile < TOKEN_TILES; tile++) add_group(low, high, group_sums[tile], sums[tile]);
    }
}

// One warp's share of 16 rows: one slice of both of the lane's rows.
template <Format FORMAT, int TOKEN_TILES, bool IS_WHOLE>
__device__ __forceinline__ void multiply_rows(const Row& low, const Row& high, const Activations& x, float (&sums)[TOKEN_TILES][4]) {
    // Units loaded ahead: what hides the memory's latency, as far as the registers go.
    constexpr int AHEAD = !IS_WHOLE ? 1 : TOKEN_TILES == 1 ? 4 : 3;
    constexpr uint32_t UNIT = Layout<FORMAT>::UNIT_COLS, STEP = UNIT * NUM_SLICES;
    uint32_t num_cols = x.num_cols, lane_col = lane_idx() % 4 * Layout<FORMAT>::LANE_COLS, col = warp_idx() * UNIT + lane_col;
    // Pointers move once a round: the loads of a round are at constant distances from them.
    Row low_at = low.at<FORMAT>(col), high_at = high.at<FORMAT>(col);
    const bf16* rows[TOKEN_TILES];
#pragma unroll
    for (int tile = 0; tile < TOKEN_TILES; tile++) rows[tile] = x.row_of_tile(tile);
    RowPart low_parts[AHEAD], high_parts[AHEAD];
#pragma unroll
    for (int idx = 0; idx < AHEAD; idx++) {
        low_parts[idx] = load_part<FORMAT, IS_WHOLE>(low_at.at<FORMAT>(idx * STEP), col + idx * STEP, num_cols);
        high_parts[idx] = load_part<FORMAT, IS_WHOLE>(high_at.at<FORMAT>(idx * STEP), col + idx * STEP, num_cols);
    }
    await_previous_kernel();
    while (col - lane_col < num_cols) {
        low_at = low_at.at<FORMAT>(AHEAD * STEP), high_at = high_at.at<FORMAT>(AHEAD * STEP);
#pragma unroll
        for (int idx = 0; idx < AHEAD; idx++) {
            uint32_t here = col + idx * STEP, there = here + AHEAD * STEP;
            if (here - lane_col >= num_cols) break;
            RowPart low_part = low_parts[idx], high_part = high_parts[idx];
            low_parts[idx] = load_part<FORMAT, IS_WHOLE>(low_at.at<FORMAT>(idx * STEP), there, num_cols);
            high_parts[idx] = load_part<FORMAT, IS_WHOLE>(high_at.at<FORMAT>(idx * STEP), there, num_cols);
            UnitColumns<TOKEN_TILES> unit = unit_columns<TOKEN_TILES>(rows, here, num_cols);
            multiply_unit<FORMAT, TOKEN_TILES, IS_WHOLE>(low_part, high_part, unit, sums);
        }
        col += AHEAD * STEP;
    }
}

// Adds the warps' sums in order, and stores the block's outputs.
template <Format FORMAT, int TOKEN_TILES>
__device__ __forceinline__ void finish(const Place& place, const Activations& x, const float (&sums)[TOKEN_TILES][4]) {
    constexpr int TOKENS = TOKEN_TILES * TILE_TOKENS;
    __shared__ float partial[NUM_SLICES][TOKENS * PARTIAL_STRIDE];
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
    auto total = [&](int token, int row) {
        float sum = 0.0f;
#pragma unroll
        for (int slice = 0; slice < NUM_SLICES; slice++) sum += partial[slice][token * PARTIAL_STRIDE + row];
        return sum;
    };
    int rows = int(place.rows_of_tile());
    for (int output = int(threadIdx.x); output < TOKENS * rows; output += THREADS) {
        int token_idx = output / rows, row_idx = output % rows;
        uint32_t token = x.first_token + token_idx, row = place.first_row + row_idx;
        if (token >= x.num_tokens) continue;
        if (place.output == SWIGLU) {
            place.write_swiglu<FORMAT>(row, token, total(token_idx, row_idx), total(token_idx, row_idx + 8));
        } else {
            place.write<FORMAT>(row, token, total(token_idx, row_idx));
        }
    }
}

template <Format FORMAT, int TOKEN_TILES>
__device__ __forceinline__ void linear(const Place& place, const bf16* x, uint32_t num_tokens, uint32_t num_cols) {
    release_next_kernel();
    Activations activations = {x, blockIdx.y * TOKEN_TILES * TILE_TOKENS, num_tokens, num_cols};
    uint32_t low_row = place.first_row + lane_idx() / 4;
    Row low = place.low_row<FORMAT>(low_row, num_cols), high = place.high_row<FORMAT>(low_row, num_cols);
    float sums[TOKEN_TILES][4] = {};
    if (num_cols % Layout<FORMAT>::LANE_COLS == 0) {
        multiply_rows<FORMAT, TOKEN_TILES, true>(low, high, activations, sums);
    } else {
        multiply_rows<FORMAT, TOKEN_TILES, false>(low, high, activations, sums);
    }
    finish<FORMAT, TOKEN_TILES>(place, activations, sums);
}

}  // namespace

#define TAKT_LINEAR(name, format, token_tiles)                                                                                    \
    extern "C" __global__ void __launch_bounds__(THREADS, 2) name##_##token_tiles(                                                \
        TAKT_MATRIX(0), TAKT_MATRIX(1), TAKT_MATRIX(2), const bf16* x, uint32_t num_tokens, uint32_t num_cols, uint32_t output) { \
        LinearMatrix first = TAKT_MATRIX_OF(0), second = TAKT_MATRIX_OF(1), third = TAKT_MATRIX_OF(2);                            \
        Place place = place_of<TILE_ROWS>(blockIdx.x, first, second, third, Output(output));                                      \
        linear<format, token_tiles>(place, x, num_tokens, num_cols);                                                              \
    }

TAKT_LINEAR(linear_bf16, BF16, 1)
TAKT_LINEAR(linear_bf16, BF16, 2)
TAKT_LINEAR(linear_fp8, FP8, 1)
TAKT_LINEAR(linear_fp8, FP8, 2)
TAKT_LINEAR(linear_nvfp4, NVFP4, 1)
TAKT_LINEAR(linear_nvfp4, NVFP4, 2)
TAKT_LINEAR(linear_int4, INT4, 1)
TAKT_LINEAR(linear_int4, INT4, 2)
