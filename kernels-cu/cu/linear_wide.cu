// Products of a quantized matrix and BF16 rows, for many tokens: verification of a draft tree, prefill. The same bits as linear.cu, whose
// comment describes the operands.
//
// Names: linear_<format>_wide_<token tiles>. Columns come in whole 16-byte pieces of a row.
//
// Bound by memory up to some 64 tokens where the tensor cores keep up, else by them. What counts is how often a decoded weight and an
// activation are used: a warp computes 16 or 32 rows of every token of the block, so an activation read from shared memory feeds one or
// two MMAs; a block computes 64 or 128 rows, so activations come num_rows / 128 times from L2. They are copied to shared memory two stages
// ahead (`cp.async`), weights go straight to registers, one unit ahead.
//
// A warp computes one slice after another and adds up their sums in order, as linear.cu's warps do together.
#include "common/weights.cuh"

namespace {

constexpr int NUM_STAGES = 3;
// 16-byte pieces of a token's activations in a stage, whatever the format: one unit of 4-bit weights, two of FP8, four of BF16.
constexpr int STAGE_PIECES = 16;

template <Format FORMAT, int TOKEN_TILES_, int ROW_TILES_, int NUM_WARPS_>
struct Shape {
    static constexpr int TOKEN_TILES = TOKEN_TILES_, ROW_TILES = ROW_TILES_, NUM_WARPS = NUM_WARPS_;
    static constexpr int THREADS = NUM_WARPS * WARP_SIZE, TOKENS = TOKEN_TILES * TILE_TOKENS, ROWS = NUM_WARPS * ROW_TILES * 16;
    static constexpr int CHUNKS = Layout<FORMAT>::LANE_COLS / 8, STAGE_UNITS = STAGE_PIECES / (4 * CHUNKS);
};

// Where lane t = `lane` of a quad finds chunk `chunk` of a token's stage, in pieces: the 8 lanes that read at once meet different banks.
__device__ __forceinline__ int piece_of(int token, int chunk, int lane) {
    return token * STAGE_PIECES + ((chunk * 4 + lane) ^ (token % 2 * 4));
}

// A stage of a block's way through the columns: slice by slice, in each unit by unit.
template <Format FORMAT, typename S>
struct Stage {
    static constexpr uint32_t UNIT_STEP = NUM_SLICES * Layout<FORMAT>::UNIT_COLS, STEP = UNIT_STEP * S::STAGE_UNITS;
    uint32_t slice, first_col, num_cols;

    // First column of a unit; past the last where the slice is shorter than others, and after the last stage.
    __device__ __forceinline__ uint32_t unit_col(uint32_t unit) const { return first_col + unit * UNIT_STEP; }
    __device__ __forceinline__ bool ends_slice() const { return first_col - slice * Layout<FORMAT>::UNIT_COLS + STEP >= num_cols; }
    __device__ __forceinline__ bool is_past_end() const { return slice == NUM_SLICES; }
    __device__ __forceinline__ Stage next() const {
        if (!ends_slice()) return {slice, first_col + STEP, num_cols};
        if (slice + 1 >= NUM_SLICES) return {NUM_SLICES, num_cols, num_cols};
        return {slice + 1, (slice + 1) * Layout<FORMAT>::UNIT_COLS, num_cols};
    }
};

struct Tokens {
    const bf16* x;
    uint32_t first_token, num_tokens;
};

// Begins to copy a stage's activations to `stage_x`. Past the last column the weights are 0, past the last token nobody stores: there any
// numbers do, the row's first ones and the last token's.
template <Format FORMAT, typename S>
__device__ __forceinline__ void copy_stage(const Stage<FORMAT, S>& stage, const Tokens& tokens, uint4* stage_x) {
    constexpr int UNIT_PIECES = STAGE_PIECES / S::STAGE_UNITS, TOKENS_AT_ONCE = S::THREADS / STAGE_PIECES;
    if (!stage.is_past_end()) {
        int piece = int(threadIdx.x) % STAGE_PIECES, unit = piece / UNIT_PIECES, in_unit = piece % UNIT_PIECES;
        int chunk = unit * S::CHUNKS + in_unit % S::CHUNKS, lane = in_unit / S::CHUNKS;
        uint32_t col = stage.unit_col(unit) + in_unit * 8;
        const bf16* column = tokens.x + (col < stage.num_cols ? col : 0);
#pragma unroll
        for (int first = 0; first < S::TOKENS; first += TOKENS_AT_ONCE) {
            int token_idx = first + int(threadIdx.x) / STAGE_PIECES;
            uint32_t token = min(tokens.first_token + token_idx, tokens.num_tokens - 1);
            copy_16_async(stage_x + piece_of(token_idx, chunk, lane), column + size_t(token) * stage.num_cols);
        }
    }
    copy_commit();
}

// What a lane holds of a unit's rows: g and g + 8 of each row tile.
template <typename S>
struct Parts {
    RowPart low[S::ROW_TILES], high[S::ROW_TILES];
};

template <Format FORMAT, typename S>
__device__ __forceinline__ Parts<S> load_parts(const Row (&low)[S::ROW_TILES], const Row (&high)[S::ROW_TILES], uint32_t unit_col,
                                               uint32_t num_cols) {
    Parts<S> parts;
    uint32_t col = unit_col + lane_idx() % 4 * Layout<FORMAT>::LANE_COLS;
#pragma unroll
    for (int tile = 0; tile < S::ROW_TILES; tile++) {
        parts.low[tile] = load_part<FORMAT, true>(low[tile].template at<FORMAT>(col), col, num_cols);
        parts.high[tile] = load_part<FORMAT, true>(high[tile].template at<FORMAT>(col), col, num_cols);
    }
    return parts;
}

template <typename S>
using Sums = float[S::ROW_TILES][S::TOKEN_TILES][4];

// sums += the product of chunk CHUNK of a unit; `stage_chunk` is its number in the stage.
template <Format FORMAT, typename S, int CHUNK>
__device__ __forceinline__ void multiply_chunk(const Parts<S>& parts, const uint4* stage_x, int stage_chunk, Sums<S>& sums) {
    uint32_t low[S::ROW_TILES][4], high[S::ROW_TILES][4];
#pragma unroll
    for (int tile = 0; tile < S::ROW_TILES; tile++) {
        expand<FORMAT, CHUNK>(parts.low[tile], low[tile]);
        expand<FORMAT, CHUNK>(parts.high[tile], high[tile]);
    }
#pragma unroll
    for (int tokens = 0; tokens < S::TOKEN_TILES; tokens++) {
        int token = tokens * TILE_TOKENS + lane_idx() / 4;
        uint32_t x_pairs[4];
        arrange<FORMAT>(load_16(stage_x + piece_of(token, stage_chunk, lane_idx() % 4)), x_pairs);
#pragma unroll
        for (int tile = 0; tile < S::ROW_TILES; tile++) multiply_pairs(low[tile], high[tile], x_pairs, sums[tile][tokens]);
    }
}

template <Format FORMAT, typename S>
__device__ __forceinline__ void multiply_chunks(const Parts<S>& parts, const uint4* stage_x, int first_chunk, Sums<S>& sums) {
    multiply_chunk<FORMAT, S, 0>(parts, stage_x, first_chunk, sums);
    if constexpr (S::CHUNKS >= 2) multiply_chunk<FORMAT, S, 1>(parts, stage_x, first_chunk + 1, sums);
    if constexpr (S::CHUNKS >= 4) {
        multiply_chunk<FORMAT, S, 2>(parts, stage_x, first_chunk + 2, sums);
        multiply_chunk<FORMAT, S, 3>(parts, stage_x, first_chunk + 3, sums);
    }
}

// sums += the product of one unit.
template <Format FORMAT, typename S>
__device__ __forceinline__ void multiply_unit(const Parts<S>& parts, const uint4* stage_x, int unit, Sums<S>& sums) {
    if constexpr (FORMAT != INT4) {
        multiply_chunks<FORMAT, S>(parts, stage_x, unit * S::CHUNKS, sums);
    } else {
        Sums<S> group_sums = {};
        multiply_chunks<FORMAT, S>(parts, stage_x, unit * S::CHUNKS, group_sums);
#pragma unroll
        for (int tile = 0; tile < S::ROW_TILES; tile++) {
#pragma unroll
            for (int tokens = 0; tokens < S::TOKEN_TILES; tokens++) {
                add_group(parts.low[tile], parts.high[tile], group_sums[tile][tokens], sums[tile][tokens]);
            }
        }
    }
}

// A lane's sum over the slices so far, of its output `tile`, `tokens`, `idx`; in shared memory, since it is needed at the end of a slice only.
template <typename S>
__device__ __forceinline__ float& total_of(float* totals, int tile, int tokens, int idx) {
    return totals[((tile * S::TOKEN_TILES + tokens) * 4 + idx) * S::THREADS + int(threadIdx.x)];
}

// totals += sums, sums = 0: the end of a slice.
template <typename S>
__device__ __forceinline__ void end_slice(Sums<S>& sums, float* totals, bool is_first) {
#pragma unroll
    for (int tile = 0; tile < S::ROW_TILES; tile++) {
#pragma unroll
        for (int tokens = 0; tokens < S::TOKEN_TILES; tokens++) {
#pragma unroll
            for (int idx = 0; idx < 4; idx++) {
                float& total = total_of<S>(totals, tile, tokens, idx);
                total = (is_first ? 0.0f : total) + sums[tile][tokens][idx];
                sums[tile][tokens][idx] = 0.0f;
            }
        }
    }
}

template <Format FORMAT, typename S>
__device__ __forceinline__ void multiply_rows(const Place& place, uint32_t first_row, const Tokens& tokens, uint32_t num_cols,
                                              uint4* shared_x, float* totals) {
    constexpr int STAGE_SIZE = S::TOKENS * STAGE_PIECES;
    Row low[S::ROW_TILES], high[S::ROW_TILES];
#pragma unroll
    for (int tile = 0; tile < S::ROW_TILES; tile++) {
        low[tile] = place.low_row<FORMAT>(first_row + tile * place.rows_of_tile(), num_cols);
        high[tile] = place.high_row<FORMAT>(first_row + tile * place.rows_of_tile(), num_cols);
    }
    Parts<S> ahead = load_parts<FORMAT, S>(low, high, 0, num_cols);
    await_previous_kernel();
    Stage<FORMAT, S> stage = {0, 0, num_cols}, copied = stage;
#pragma unroll
    for (int buffer = 0; buffer < NUM_STAGES - 1; buffer++) {
        copy_stage<FORMAT, S>(copied, tokens, shared_x + buffer * STAGE_SIZE);
        copied = copied.next();
    }
    Sums<S> sums = {};
    uint32_t buffer = 0;
    while (!stage.is_past_end()) {
        copy_wait<NUM_STAGES - 2>();
        // Everyone's copies of this stage are there, and everyone is done with the stage before, whose place is filled next.
        __syncthreads();
        copy_stage<FORMAT, S>(copied, tokens, shared_x + (buffer == 0 ? NUM_STAGES - 1 : buffer - 1) * STAGE_SIZE);
        copied = copied.is_past_end() ? copied : copied.next();
        Stage<FORMAT, S> following = stage.next();
#pragma unroll
        for (int unit = 0; unit < S::STAGE_UNITS; unit++) {
            uint32_t ahead_col = unit + 1 < S::STAGE_UNITS ? stage.unit_col(unit + 1) : following.first_col;
            Parts<S> parts = ahead;
            ahead = load_parts<FORMAT, S>(low, high, ahead_col, num_cols);
            if (stage.unit_col(unit) < num_cols) multiply_unit<FORMAT, S>(parts, shared_x + buffer * STAGE_SIZE, unit, sums);
        }
        if (following.slice != stage.slice) end_slice<S>(sums, totals, stage.slice == 0);
        stage = following;
        buffer = buffer == NUM_STAGES - 1 ? 0 : buffer + 1;
    }
    copy_wait<0>();
}

template <Format FORMAT, typename S>
__device__ __forceinline__ void write_outputs(const Place& place, uint32_t first_row, const Tokens& tokens, float* totals) {
#pragma unroll
    for (int tile = 0; tile < S::ROW_TILES; tile++) {
        uint32_t row = first_row + tile * place.rows_of_tile();
#pragma unroll
        for (int token_tile = 0; token_tile < S::TOKEN_TILES; token_tile++) {
#pragma unroll
            for (int idx = 0; idx < 2; idx++) {
                uint32_t token = tokens.first_token + token_tile * TILE_TOKENS + lane_idx() % 4 * 2 + idx;
                if (token >= tokens.num_tokens) continue;
                float low = total_of<S>(totals, tile, token_tile, idx), high = total_of<S>(totals, tile, token_tile, idx + 2);
                if (place.output == SWIGLU) {
                    place.write_swiglu<FORMAT>(row, token, low, high);
                } else {
                    place.write<FORMAT>(row, token, low);
                    place.write<FORMAT>(row + 8, token, high);
                }
            }
        }
    }
}

template <Format FORMAT, typename S>
__device__ __forceinline__ void linear(const Place& place, const bf16* x, uint32_t num_tokens, uint32_t num_cols) {
    TAKT_DYNAMIC_SHARED(uint4, shared_x);
    release_next_kernel();
    Tokens tokens = {x, blockIdx.y * S::TOKENS, num_tokens};
    uint32_t first_row = place.first_row + warp_idx() * S::ROW_TILES * place.rows_of_tile() + lane_idx() / 4;
    float* totals = reinterpret_cast<float*>(shared_x + NUM_STAGES * S::TOKENS * STAGE_PIECES);
    multiply_rows<FORMAT, S>(place, first_row, tokens, num_cols, shared_x, totals);
    write_outputs<FORMAT, S>(place, first_row, tokens, totals);
}

}  // namespace

// Dynamic shared memory: 3 stages of 8 · token_tiles tokens of 256 bytes, and the block's outputs in F32.
#define TAKT_LINEAR(name, format, token_tiles, row_tiles, num_warps, min_blocks)                                                  \
    extern "C" __global__ void __launch_bounds__(num_warps * WARP_SIZE, min_blocks) name##_wide_##token_tiles(                    \
        TAKT_MATRIX(0), TAKT_MATRIX(1), TAKT_MATRIX(2), const bf16* x, uint32_t num_tokens, uint32_t num_cols, uint32_t output) { \
        typedef Shape<format, token_tiles, row_tiles, num_warps> S;                                                               \
        LinearMatrix first = TAKT_MATRIX_OF(0), second = TAKT_MATRIX_OF(1), third = TAKT_MATRIX_OF(2);                            \
        Place place = place_of<S::ROWS>(blockIdx.x, first, second, third, Output(output));                                        \
        linear<format, S>(place, x, num_tokens, num_cols);                                                                        \
    }

// 16 tokens, 128 rows; 32 tokens, 64 rows; 64 tokens, 128 rows. INT4's sums of groups take registers: half the rows a warp there.
#define TAKT_LINEAR_FORMAT(name, format)    \
    TAKT_LINEAR(name, format, 2, 2, 4, 3)   \
    TAKT_LINEAR(name, format, 4, 1, 4, 4)

TAKT_LINEAR_FORMAT(linear_bf16, BF16)
TAKT_LINEAR_FORMAT(linear_fp8, FP8)
TAKT_LINEAR_FORMAT(linear_nvfp4, NVFP4)
TAKT_LINEAR_FORMAT(linear_int4, INT4)
TAKT_LINEAR(linear_bf16, BF16, 8, 2, 4, 2)
TAKT_LINEAR(linear_fp8, FP8, 8, 2, 4, 2)
TAKT_LINEAR(linear_nvfp4, NVFP4, 8, 2, 4, 2)
TAKT_LINEAR(linear_int4, INT4, 8, 1, 8, 1)
