// Products of a quantized matrix and BF16 rows, for many tokens: verification of a draft tree, prefill. The same bits as linear.cu, whose
// comment describes the operands.
//
// Names: linear_<format>_wide_<token tiles>. Columns come in whole 16-byte pieces of a row.
//
// Bound, as predicted, by memory up to some 64 tokens on Jetsons, by instructions from some 32 on an H200, and by tensor cores beyond. What
// counts is how often a decoded weight and an activation are used: a warp computes 16 or 32 rows of every token of the block, so an
// activation read from shared memory feeds one or two MMAs; a block computes 64 or 128 rows, so activations come as often from L2 as a
// matrix has such blocks. They are copied to shared memory two stages ahead (`cp.async`), and put into the order of 4-bit weights there,
// by the thread that copied them, rather than by every warp that reads them; weights go straight to registers, one unit ahead.
// Instructions, loop by loop and target by target: docs/performance-gpu.md.
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

// The activations of a stage as a lane reads them: every chunk and every eighth token is at a constant distance from one of two places.
struct LaneStage {
    const uint4 *even, *odd;

    __device__ __forceinline__ explicit LaneStage(const uint4* shared_x)
        : even(shared_x + piece_of(lane_idx() / 4, 0, lane_idx() % 4)), odd(shared_x + piece_of(lane_idx() / 4, 1, lane_idx() % 4)) {}
    __device__ __forceinline__ LaneStage at(uint32_t pieces) const {
        LaneStage there = *this;
        there.even += pieces, there.odd += pieces;
        return there;
    }
    // Chunk `chunk` of token g of token tile `tile`.
    __device__ __forceinline__ uint4 load(int chunk, int tile) const {
        return load_16((chunk % 2 == 0 ? even : odd) + tile * TILE_TOKENS * STAGE_PIECES + chunk / 2 * 8);
    }
};

// A stage of a block's way through the columns: slice by slice, in each unit by unit. Slices without a column are left out.
template <Format FORMAT, typename S>
struct Stage {
    static constexpr uint32_t UNIT = Layout<FORMAT>::UNIT_COLS, UNIT_STEP = NUM_SLICES * UNIT, STEP = UNIT_STEP * S::STAGE_UNITS;
    uint32_t slice_col, first_col, num_cols;

    // First column of a unit; past the last where the slice is shorter than others.
    __device__ __forceinline__ uint32_t unit_col(uint32_t unit) const { return first_col + unit * UNIT_STEP; }
    __device__ __forceinline__ bool ends_slice() const { return first_col + STEP >= num_cols; }
    __device__ __forceinline__ bool is_past_end() const { return slice_col >= min(num_cols, UNIT_STEP); }
    __device__ __forceinline__ Stage next() const {
        bool ends = ends_slice();
        uint32_t next_slice = ends ? slice_col + UNIT : slice_col;
        return {next_slice, ends ? next_slice : first_col + STEP, num_cols};
    }
};

struct Tokens {
    const bf16* x;
    uint32_t first_token, num_tokens;
};

// A thread's share of the copies: one place of a stage, of every TOKENS_AT_ONCE-th token.
template <Format FORMAT, typename S>
struct Copier {
    static constexpr int TOKENS_AT_ONCE = S::THREADS / STAGE_PIECES, COPIES = S::TOKENS / TOKENS_AT_ONCE;
    // The row of the first token, in bytes from the lane's columns of a unit on.
    const uint8_t* x;
    // Tokens from the first one on, and the bytes of one.
    uint32_t num_tokens, row_bytes;
    // Of the lane's columns in a unit, the unit in a stage.
    uint32_t lane_col, unit;
    uint4* place;

    __device__ __forceinline__ Copier(const Tokens& tokens, uint32_t num_cols, uint4* shared_x) {
        // Pieces in the order of their places, so that threads side by side write to different banks.
        int piece = int(threadIdx.x) % STAGE_PIECES, token = int(threadIdx.x) / STAGE_PIECES, chunk = piece / 4, lane = piece % 4;
        lane_col = lane * Layout<FORMAT>::LANE_COLS + chunk % S::CHUNKS * 8, unit = chunk / S::CHUNKS;
        uint32_t first = tokens.first_token + token;
        x = kept(reinterpret_cast<const uint8_t*>(tokens.x + size_t(first) * num_cols + lane_col));
        num_tokens = first < tokens.num_tokens ? tokens.num_tokens - first : 0, row_bytes = num_cols * 2;
        place = shared_x + piece_of(token, chunk, lane);
    }

    // Begins to copy a stage's activations, `pieces` on from the first stage; zeros past the last column and the last token.
    __device__ __forceinline__ void copy(const Stage<FORMAT, S>& stage, uint32_t pieces) const {
        if (!stage.is_past_end()) {
            uint32_t col = stage.unit_col(unit);
            uint32_t tokens_there = col + lane_col < stage.num_cols ? num_tokens : 0;
            const uint8_t* from = kept(x + size_t(col) * 2);
#pragma unroll
            for (int idx = 0; idx < COPIES; idx++) {
                uint32_t token = idx * TOKENS_AT_ONCE;
                copy_16_async(place + pieces + token * STAGE_PIECES, from + size_t(row_bytes) * token, token < tokens_there);
            }
        }
        copy_commit();
    }

    // Puts what this thread has copied into the order that `expand` gives the columns, once for all warps.
    __device__ __forceinline__ void arrange_copied(uint32_t pieces) const {
        if constexpr (FORMAT == NVFP4 || FORMAT == INT4) {
#pragma unroll
            for (int idx = 0; idx < COPIES; idx++) {
                uint4* there = place + pieces + idx * TOKENS_AT_ONCE * STAGE_PIECES;
                uint32_t pairs[4];
                arrange<FORMAT>(load_16(there), pairs);
                store_16(there, make_uint4(pairs[0], pairs[1], pairs[2], pairs[3]));
            }
        }
    }
};

// What a lane holds of a unit's rows: g and g + 8 of each row tile.
template <typename S>
struct Parts {
    RowPart low[S::ROW_TILES], high[S::ROW_TILES];
};

// Of the unit at `unit_col`. Past the last unit, and past the row's end, of some columns that are there: the activations are 0 there.
template <Format FORMAT, typename S>
__device__ __forceinline__ Parts<S> load_parts(const Row (&low)[S::ROW_TILES], const Row (&high)[S::ROW_TILES], uint32_t unit_col,
                                               uint32_t num_cols) {
    Parts<S> parts;
    uint32_t unit = unit_col < num_cols ? unit_col : 0, in_unit = lane_idx() % 4 * Layout<FORMAT>::LANE_COLS;
    uint32_t col = unit + in_unit < num_cols ? unit + in_unit : unit;
#pragma unroll
    for (int tile = 0; tile < S::ROW_TILES; tile++) {
        load_part<FORMAT, UNITS>(parts.low[tile], low[tile].template at<FORMAT>(col), col, num_cols);
        load_part<FORMAT, UNITS>(parts.high[tile], high[tile].template at<FORMAT>(col), col, num_cols);
    }
    return parts;
}

template <typename S>
using Sums = float[S::ROW_TILES][S::TOKEN_TILES][4];

// sums += the product of chunk CHUNK of a unit; `stage_chunk` is its number in the stage.
template <Format FORMAT, typename S, int CHUNK>
__device__ __forceinline__ void multiply_chunk(const Parts<S>& parts, const LaneStage& x, int stage_chunk, Sums<S>& sums) {
    uint32_t low[S::ROW_TILES][4], high[S::ROW_TILES][4];
#pragma unroll
    for (int tile = 0; tile < S::ROW_TILES; tile++) {
        expand<FORMAT, CHUNK>(parts.low[tile], low[tile]);
        expand<FORMAT, CHUNK>(parts.high[tile], high[tile]);
    }
#pragma unroll
    for (int tokens = 0; tokens < S::TOKEN_TILES; tokens++) {
        uint4 words = x.load(stage_chunk, tokens);
        const uint32_t x_pairs[4] = {words.x, words.y, words.z, words.w};
#pragma unroll
        for (int tile = 0; tile < S::ROW_TILES; tile++) multiply_pairs(low[tile], high[tile], x_pairs, sums[tile][tokens]);
    }
}

template <Format FORMAT, typename S>
__device__ __forceinline__ void multiply_chunks(const Parts<S>& parts, const LaneStage& x, int first_chunk, Sums<S>& sums) {
    multiply_chunk<FORMAT, S, 0>(parts, x, first_chunk, sums);
    if constexpr (S::CHUNKS >= 2) multiply_chunk<FORMAT, S, 1>(parts, x, first_chunk + 1, sums);
    if constexpr (S::CHUNKS >= 4) {
        multiply_chunk<FORMAT, S, 2>(parts, x, first_chunk + 2, sums);
        multiply_chunk<FORMAT, S, 3>(parts, x, first_chunk + 3, sums);
    }
}

// sums += the product of one unit. INT4: a unit is a group, whose scale multiplies the group's sum.
template <Format FORMAT, typename S>
__device__ __forceinline__ void multiply_unit(const Parts<S>& parts, const LaneStage& x, int unit, Sums<S>& sums) {
    if constexpr (FORMAT != INT4) {
        multiply_chunks<FORMAT, S>(parts, x, unit * S::CHUNKS, sums);
    } else {
        Sums<S> group_sums = {};
        multiply_chunks<FORMAT, S>(parts, x, unit * S::CHUNKS, group_sums);
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
__device__ __forceinline__ void end_slice(Sums<S>& sums, float* totals) {
#pragma unroll
    for (int tile = 0; tile < S::ROW_TILES; tile++) {
#pragma unroll
        for (int tokens = 0; tokens < S::TOKEN_TILES; tokens++) {
#pragma unroll
            for (int idx = 0; idx < 4; idx++) {
                total_of<S>(totals, tile, tokens, idx) += sums[tile][tokens][idx];
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
        low[tile] = place.low_row<FORMAT>(first_row + tile * place.rows_of_tile(), num_cols).kept_in_registers();
        high[tile] = place.high_row<FORMAT>(first_row + tile * place.rows_of_tile(), num_cols).kept_in_registers();
    }
    Parts<S> ahead = load_parts<FORMAT, S>(low, high, 0, num_cols);
#pragma unroll
    for (int idx = 0; idx < S::ROW_TILES * S::TOKEN_TILES * 4; idx++) totals[idx * S::THREADS + int(threadIdx.x)] = 0.0f;
    await_previous_kernel();
    Stage<FORMAT, S> stage = {0, 0, num_cols}, copied = stage;
    Copier<FORMAT, S> copier(tokens, num_cols, shared_x);
    LaneStage lane_x(shared_x);
#pragma unroll
    for (uint32_t buffer = 0; buffer < NUM_STAGES - 1; buffer++) {
        copier.copy(copied, buffer * STAGE_SIZE);
        copied = copied.next();
    }
    // Where the current stage lies.
    uint32_t pieces = 0;
    while (!stage.is_past_end()) {
        // The stages of one slice.
        Sums<S> sums = {};
        for (bool is_end = false; !is_end;) {
            copy_wait<NUM_STAGES - 2>();
            copier.arrange_copied(pieces);
            // Everyone's copies of this stage are there, and everyone is done with the stage before, whose place is filled next.
            __syncthreads();
            copier.copy(copied, pieces == 0 ? (NUM_STAGES - 1) * STAGE_SIZE : pieces - STAGE_SIZE);
            copied = copied.next();
            Stage<FORMAT, S> following = stage.next();
            LaneStage x = lane_x.at(pieces);
#pragma unroll
            for (int unit = 0; unit < S::STAGE_UNITS; unit++) {
                uint32_t ahead_col = unit + 1 < S::STAGE_UNITS ? stage.unit_col(unit + 1) : following.first_col;
                Parts<S> parts = ahead;
                ahead = load_parts<FORMAT, S>(low, high, ahead_col, num_cols);
                if (unit == 0 || stage.unit_col(unit) < num_cols) multiply_unit<FORMAT, S>(parts, x, unit, sums);
            }
            is_end = stage.ends_slice();
            stage = following;
            pieces = pieces == (NUM_STAGES - 1) * STAGE_SIZE ? 0 : pieces + STAGE_SIZE;
        }
        end_slice<S>(sums, totals);
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

// The matrices of a launch.
struct Matrices {
    LinearMatrix first, second, third;
    Output output;

    template <typename S>
    __device__ __forceinline__ Place place(uint32_t block) const {
        return place_of<S::ROWS>(block, first, second, third, output);
    }
};

template <typename S>
__device__ __forceinline__ uint32_t first_row_of(const Place& place) {
    return place.first_row + warp_idx() * S::ROW_TILES * place.rows_of_tile() + lane_idx() / 4;
}

template <Format FORMAT, typename S>
__device__ __forceinline__ void linear(const Matrices& matrices, const bf16* x, uint32_t num_tokens, uint32_t num_cols) {
    TAKT_DYNAMIC_SHARED(uint4, shared_x);
    release_next_kernel();
    Tokens tokens = {x, blockIdx.y * S::TOKENS, num_tokens};
    float* totals = reinterpret_cast<float*>(shared_x + NUM_STAGES * S::TOKENS * STAGE_PIECES);
    Place place = matrices.place<S>(blockIdx.x);
    multiply_rows<FORMAT, S>(place, first_row_of<S>(place), tokens, num_cols, shared_x, totals);
    place = matrices.place<S>(anew(blockIdx.x));
    write_outputs<FORMAT, S>(place, first_row_of<S>(place), tokens, totals);
}

}  // namespace

// Dynamic shared memory: 3 stages of 8 · token_tiles tokens of 256 bytes, and the block's outputs in F32.
#define TAKT_LINEAR(name, format, token_tiles, row_tiles, num_warps, min_blocks)                                                  \
    extern "C" __global__ void __launch_bounds__(num_warps * WARP_SIZE, min_blocks) name##_wide_##token_tiles(                    \
        TAKT_MATRIX(0), TAKT_MATRIX(1), TAKT_MATRIX(2), const bf16* x, uint32_t num_tokens, uint32_t num_cols, uint32_t output) { \
        typedef Shape<format, token_tiles, row_tiles, num_warps> S;                                                               \
        Matrices matrices = {TAKT_MATRIX_OF(0), TAKT_MATRIX_OF(1), TAKT_MATRIX_OF(2), Output(output)};                            \
        linear<format, S>(matrices, x, num_tokens, num_cols);                                                                     \
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
