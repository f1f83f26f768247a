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
// Bound by memory: every weight is read once, and one of 4 bits costs two (INT4) to three (NVFP4) of a thread's instructions. A block
// computes 16 rows at a time, each of its 8 warps one slice of them, so that a small matrix fills the GPU too; a lane loads several units
// ahead (see common/weights.cuh) and goes on into the block's next 16 rows: there are as many blocks as run at once, and their loads never
// pause. The first loads may begin while the kernel before still runs, in a launch that lets it (none does yet) and where the compiler leaves
// them ahead of the wait. The warps' sums are added in order.
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

// Column `col` of a lane, `x_cols` columns on from where `x` points to. Past the row's end the weights are 0: there the activations need only
// be finite, and are where the row begins.
template <Columns COLUMNS, int TOKEN_TILES>
__device__ __forceinline__ UnitColumns<TOKEN_TILES> unit_columns(const bf16* const (&x)[TOKEN_TILES], uint32_t x_cols, uint32_t col,
                                                                 uint32_t num_cols) {
    UnitColumns<TOKEN_TILES> unit;
    bool is_there = COLUMNS == UNITS || col < num_cols;
    unit.count = is_there ? num_cols - col : 0;
#pragma unroll
    for (int tile = 0; tile < TOKEN_TILES; tile++) unit.x[tile] = is_there ? x[tile] + x_cols : x[tile] - (col - x_cols);
    return unit;
}

template <Columns COLUMNS>
__device__ __forceinline__ uint4 load_activations(const bf16* x, uint32_t count, uint32_t first) {
    if (COLUMNS != BYTES) return load_16(x + first);
    return load_bytes(reinterpret_cast<const uint8_t*>(x + first), count > first ? (count - first) * 2 : 0);
}

// sums += the product of eight columns of 16 rows and of every token.
template <Format FORMAT, int TOKEN_TILES, Columns COLUMNS, int CHUNK>
__device__ __forceinline__ void multiply_chunk(const RowPart& low, const RowPart& high, const UnitColumns<TOKEN_TILES>& unit,
                                               float (&sums)[TOKEN_TILES][4]) {
    uint32_t low_pairs[4], high_pairs[4], x_pairs[4];
    expand<FORMAT, CHUNK>(low, low_pairs);
    expand<FORMAT, CHUNK>(high, high_pairs);
#pragma unroll
    for (int tile = 0; tile < TOKEN_TILES; tile++) {
        arrange<FORMAT>(load_activations<COLUMNS>(unit.x[tile], unit.count, CHUNK * 8), x_pairs);
        multiply_pairs(low_pairs, high_pairs, x_pairs, sums[tile]);
    }
}

template <Format FORMAT, int TOKEN_TILES, Columns COLUMNS>
__device__ __forceinline__ void multiply_chunks(const RowPart& low, const RowPart& high, const UnitColumns<TOKEN_TILES>& unit,
                                                float (&sums)[TOKEN_TILES][4]) {
    multiply_chunk<FORMAT, TOKEN_TILES, COLUMNS, 0>(low, high, unit, sums);
    if constexpr (FORMAT != BF16) multiply_chunk<FORMAT, TOKEN_TILES, COLUMNS, 1>(low, high, unit, sums);
    if constexpr (FORMAT == NVFP4 || FORMAT == INT4) {
        multiply_chunk<FORMAT, TOKEN_TILES, COLUMNS, 2>(low, high, unit, sums);
        multiply_chunk<FORMAT, TOKEN_TILES, COLUMNS, 3>(low, high, unit, sums);
    }
}

// sums += the product of one unit. INT4: a unit is a group, whose scale multiplies the group's sum.
template <Format FORMAT, int TOKEN_TILES, Columns COLUMNS>
__device__ __forceinline__ void multiply_unit(const RowPart& low, const RowPart& high, const UnitColumns<TOKEN_TILES>& unit,
                                              float (&sums)[TOKEN_TILES][4]) {
    if constexpr (FORMAT != INT4) {
        multiply_chunks<FORMAT, TOKEN_TILES, COLUMNS>(low, high, unit, sums);
    } else {
        static_assert(Layout<INT4>::UNIT_COLS == INT4_GROUP, "a unit is a group");
        float group_sums[TOKEN_TILES][4] = {};
        multiply_chunks<FORMAT, TOKEN_TILES, COLUMNS>(low, high, unit, group_sums);
#pragma unroll
        for (int tile = 0; tile < TOKEN_TILES; tile++) add_group(low, high, group_sums[tile], sums[tile]);
    }
}

// The matrices of a launch.
struct Matrices {
    LinearMatrix first, second, third;
    Output output;

    // Of one matrix.
    __device__ __forceinline__ uint32_t rows_of_tile() const { return output == SWIGLU ? TILE_ROWS / 2 : TILE_ROWS; }
    __device__ __forceinline__ uint32_t num_tiles() const {
        uint32_t num_rows = rows_of_tile();
        if (output == SWIGLU) return (first.num_rows + num_rows - 1) / num_rows;
        uint32_t tiles = (first.num_rows + num_rows - 1) / num_rows + (second.num_rows + num_rows - 1) / num_rows;
        return tiles + (third.num_rows + num_rows - 1) / num_rows;
    }
    __device__ __forceinline__ Place place(uint32_t tile) const { return place_of<TILE_ROWS>(tile, first, second, third, output); }
};

// Adds the warps' sums in order, and stores the outputs of 16 rows.
template <Format FORMAT, int TOKEN_TILES>
__device__ __forceinline__ void finish(const Matrices& matrices, uint32_t tile_idx, const Activations& x,
                                       const float (&sums)[TOKEN_TILES][4], uint32_t tile_count) {
    constexpr int TOKENS = TOKEN_TILES * TILE_TOKENS;
    // Two in turn: when a warp writes one again, a barrier lies between it and those who read.
    __shared__ float partials[2][NUM_SLICES][TOKENS * PARTIAL_STRIDE];
    auto& partial = partials[tile_count % 2];
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
    // 8 or 16: nothing is divided.
    uint32_t rows = matrices.rows_of_tile(), rows_log2 = rows == 8 ? 3 : 4;
    for (uint32_t output = threadIdx.x; output < TOKENS * rows; output += THREADS) {
        int token_idx = int(output >> rows_log2), row_idx = int(output & (rows - 1));
        uint32_t token = x.first_token + token_idx;
        if (token >= x.num_tokens) continue;
        Place place = matrices.place(tile_idx);
        uint32_t row = place.first_row + row_idx;
        if (place.output == SWIGLU) {
            place.write_swiglu<FORMAT>(row, token, total(token_idx, row_idx), total(token_idx, row_idx + 8));
        } else {
            place.write<FORMAT>(row, token, total(token_idx, row_idx));
        }
    }
}

// A lane's two rows of a tile.
struct RowPair {
    Row low, high;

    template <Format FORMAT>
    __device__ __forceinline__ RowPair at(uint32_t cols) const {
        return {low.at<FORMAT>(cols), high.at<FORMAT>(cols)};
    }
};

// From column `col` on.
template <Format FORMAT>
__device__ __forceinline__ RowPair rows_of(const Place& place, uint32_t col, uint32_t num_cols) {
    uint32_t row = place.first_row + lane_idx() / 4;
    RowPair pair = {place.low_row<FORMAT>(row, num_cols), place.high_row<FORMAT>(row, num_cols)};
    return pair.at<FORMAT>(col);
}

// Tile after tile of the block. Each warp computes its slice of both of the lane's rows, a round of AHEAD units at a time; as soon as a unit's
// weights are used, those of the next round take their registers, past the end of a tile the first ones of the next tile.
template <Format FORMAT, int TOKEN_TILES, Columns COLUMNS>
__device__ __forceinline__ void multiply_tiles(const Matrices& matrices, const Activations& x) {
    // As far as the registers go: what hides the memory's latency.
    constexpr uint32_t AHEAD = COLUMNS == BYTES ? 1 : TOKEN_TILES == 1 ? 4 : 2;
    constexpr uint32_t UNIT = Layout<FORMAT>::UNIT_COLS, STEP = UNIT * NUM_SLICES, ROUND = AHEAD * STEP;
    uint32_t num_cols = x.num_cols, first_col = warp_idx() * UNIT + lane_idx() % 4 * Layout<FORMAT>::LANE_COLS;
    uint32_t num_units = (num_cols + (NUM_SLICES - 1 - warp_idx()) * UNIT + UNIT - 1) / STEP;
    const bf16* x_rows[TOKEN_TILES];
#pragma unroll
    for (int tile = 0; tile < TOKEN_TILES; tile++) x_rows[tile] = x.row_of_tile(tile) + first_col;
    // The loads of a round are at constant distances from `at`.
    RowPair at = rows_of<FORMAT>(matrices.place(blockIdx.x), first_col, num_cols);
    RowPart low[AHEAD], high[AHEAD];
    auto load = [&](uint32_t idx, uint32_t round_col) {
        RowPair there = at.at<FORMAT>(idx * STEP);
        load_part<FORMAT, COLUMNS>(low[idx], there.low, round_col + idx * STEP, num_cols);
        load_part<FORMAT, COLUMNS>(high[idx], there.high, round_col + idx * STEP, num_cols);
    };
#pragma unroll
    for (uint32_t idx = 0; idx < AHEAD; idx++) {
        low[idx] = high[idx] = {};
        if (idx < num_units) load(idx, first_col);
    }
    await_previous_kernel();
    uint32_t num_tiles = matrices.num_tiles(), tile_count = 0;
    for (uint32_t tile = blockIdx.x; tile < num_tiles; tile += gridDim.x, tile_count++) {
        float sums[TOKEN_TILES][4] = {};
        const bf16* x_at[TOKEN_TILES];
#pragma unroll
        for (int token_tile = 0; token_tile < TOKEN_TILES; token_tile++) x_at[token_tile] = x_rows[token_tile];
        uint32_t col = first_col;
        for (uint32_t units_left = num_units; units_left > 0;) {
            uint32_t next_left = 0, next_col = first_col;
            if (units_left > AHEAD) {
                next_left = units_left - AHEAD, next_col = col + ROUND;
                at = at.at<FORMAT>(ROUND);
            } else if (tile + gridDim.x < num_tiles) {
                next_left = num_units;
                at = rows_of<FORMAT>(matrices.place(tile + gridDim.x), first_col, num_cols);
            }
#pragma unroll
            for (uint32_t idx = 0; idx < AHEAD; idx++) {
                if (idx < units_left) {
                    UnitColumns<TOKEN_TILES> unit = unit_columns<COLUMNS>(x_at, idx * STEP, col + idx * STEP, num_cols);
                    multiply_unit<FORMAT, TOKEN_TILES, COLUMNS>(low[idx], high[idx], unit, sums);
                }
                if (idx < next_left) load(idx, next_col);
            }
#pragma unroll
            for (int token_tile = 0; token_tile < TOKEN_TILES; token_tile++) x_at[token_tile] += ROUND;
            col += ROUND;
            units_left = units_left > AHEAD ? units_left - AHEAD : 0;
        }
        finish<FORMAT, TOKEN_TILES>(matrices, tile, x, sums, tile_count);
    }
}

template <Format FORMAT, int TOKEN_TILES>
__device__ __forceinline__ void linear(const Matrices& matrices, const bf16* x, uint32_t num_tokens, uint32_t num_cols) {
    release_next_kernel();
    Activations activations = {x, blockIdx.y * TOKEN_TILES * TILE_TOKENS, num_tokens, num_cols};
    if (num_cols % Layout<FORMAT>::UNIT_COLS == 0) {
        multiply_tiles<FORMAT, TOKEN_TILES, UNITS>(matrices, activations);
    } else if (num_cols % Layout<FORMAT>::LANE_COLS == 0) {
        multiply_tiles<FORMAT, TOKEN_TILES, PIECES>(matrices, activations);
    } else {
        multiply_tiles<FORMAT, TOKEN_TILES, BYTES>(matrices, activations);
    }
}

}  // namespace

#define TAKT_LINEAR(name, format, token_tiles)                                                                                    \
    extern "C" __global__ void __launch_bounds__(THREADS, 2) name##_##token_tiles(                                                \
        TAKT_MATRIX(0), TAKT_MATRIX(1), TAKT_MATRIX(2), const bf16* x, uint32_t num_tokens, uint32_t num_cols, uint32_t output) { \
        Matrices matrices = {TAKT_MATRIX_OF(0), TAKT_MATRIX_OF(1), TAKT_MATRIX_OF(2), Output(output)};                            \
        linear<format, token_tiles>(matrices, x, num_tokens, num_cols);                                                           \
    }

TAKT_LINEAR(linear_bf16, BF16, 1)
TAKT_LINEAR(linear_bf16, BF16, 2)
TAKT_LINEAR(linear_fp8, FP8, 1)
TAKT_LINEAR(linear_fp8, FP8, 2)
TAKT_LINEAR(linear_nvfp4, NVFP4, 1)
TAKT_LINEAR(linear_nvfp4, NVFP4, 2)
TAKT_LINEAR(linear_int4, INT4, 1)
TAKT_LINEAR(linear_int4, INT4, 2)
