// Matrices of weights as the engine directory stores them, and how a warp reads them for `mma.m16n8k16`.
//
// A unit is 4 × 16 bytes of a row: a lane loads 16 contiguous bytes (t = lane % 4 which) of two rows (g = lane / 4, and g + 8) and
// expands them to BF16 exactly: E2M1 times its block's E4M3 scale has at most 6 significant bits, E4M3 and INT4 have fewer.
// `mma.m16n8k16` does not care which column of the matrix is its k-th as long as both operands agree, so a lane's 16 bytes feed consecutive
// MMAs without any exchange (the idea of Marlin, Frantar et al. 2024, arXiv 2408.11743, without repacking the weights). The hardware's
// E2M1 and E4M3 conversions end in F16, from where BF16 is farther than by the expansion used here.
#pragma once

#include "common/swiglu.cuh"
#include "common/warp.cuh"

constexpr int TILE_TOKENS = 8;
// Every output is the sum of NUM_SLICES sums in order; slice s has units s, s + NUM_SLICES, … of a row. So an output's bits depend on the
// number of columns only, not on which kernel computes it, nor on which tokens are beside it.
constexpr int NUM_SLICES = 8;
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

// One row of a matrix, from some column on.
struct Row {
    const uint8_t* codes;
    const uint8_t* scales;

    // `cols` columns further on: whole blocks and groups.
    template <Format FORMAT>
    __device__ __forceinline__ Row at(uint32_t cols) const {
        size_t scale_bytes = FORMAT == NVFP4 ? cols / NVFP4_BLOCK : FORMAT == INT4 ? cols / INT4_GROUP * 2 : 0;
        return {codes + size_t(cols) * Layout<FORMAT>::BITS / 8, scales + scale_bytes};
    }
    __device__ __forceinline__ Row kept_in_registers() const { return {kept(codes), kept(scales)}; }
};

template <Format FORMAT>
__device__ __forceinline__ Row row_of(const LinearMatrix& matrix, uint32_t row_idx, uint32_t num_cols) {
    size_t row = row_idx < matrix.num_rows ? row_idx : matrix.num_rows - 1;
    size_t scale_bytes = FORMAT == NVFP4  ? num_cols / NVFP4_BLOCK
                         : FORMAT == INT4 ? (num_cols + INT4_GROUP - 1) / INT4_GROUP * 2
                                          : 0;
    return {matrix.codes + row * (size_t(num_cols) * Layout<FORMAT>::BITS / 8), matrix.scales + row * scale_bytes};
}

// The first `count` bytes at `bytes`, at most 16; the rest 0.
__device__ __noinline__ uint4 load_bytes(const uint8_t* bytes, uint32_t count) {
    uint32_t words[4] = {0, 0, 0, 0};
#pragma unroll
    for (uint32_t idx = 0; idx < 16; idx++) {
        if (idx < count) words[idx / 4] |= uint32_t(bytes[idx]) << (8 * (idx % 4));
    }
    return make_uint4(words[0], words[1], words[2], words[3]);
}

// How a row's columns come: in whole units, where every lane of a unit has all its columns; in whole 16-byte pieces; or neither.
enum Columns { UNITS, PIECES, BYTES };

// part = the lane's 16 bytes of codes at `row`, which is at column `col`, and their scales; zeros past the row's end.
template <Format FORMAT, Columns COLUMNS>
__device__ __forceinline__ void load_part(RowPart& part, const Row& row, uint32_t col, uint32_t num_cols) {
    if (COLUMNS == UNITS) {
        part.codes = load_16_streaming(row.codes);
        if (FORMAT == NVFP4 || FORMAT == INT4) part.scales = load_2_ahead(row.scales);
        return;
    }
    part = {make_uint4(0, 0, 0, 0), 0};
    // A lane past the row's end still holds sums of the group.
    if (FORMAT == INT4 && col / INT4_GROUP * INT4_GROUP < num_cols) {
        part.scales = load_2_ahead(row.scales);
    }
    if (col >= num_cols) return;
    if (COLUMNS == PIECES) {
        part.codes = load_16_streaming(row.codes);
    } else {
        part.codes = load_bytes(row.codes, (num_cols - col) * Layout<FORMAT>::BITS / 8);
    }
    if (FORMAT == NVFP4) {
        if (COLUMNS == PIECES) {
            part.scales = load_2_ahead(row.scales);
        } else {
            part.scales = row.scales[0] | (col + NVFP4_BLOCK < num_cols ? uint32_t(row.scales[1]) << 8 : 0);
        }
    }
}

template <int idx>
__device__ __forceinline__ uint32_t word_of(const uint4& words) {
    return idx == 0 ? words.x : idx == 1 ? words.y : idx == 2 ? words.z : words.w;
}

// Eight columns of a part, chunk CHUNK of it, as four BF16 pairs: columns (i, i + 4) of 4-bit formats, (2i, 2i + 1) of the others.
template <Format FORMAT, int CHUNK>
__device__ __forceinline__ void expand(const RowPart& part, uint32_t (&pairs)[4]) {
    if constexpr (FORMAT == NVFP4) {
        uint32_t scales[2];
        e2m1_scales(part.scales, scales);
        e2m1x8_to_bf16x2(word_of<CHUNK>(part.codes), scales[CHUNK / 2], pairs);
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

// sums += the product of eight columns of 16 rows (pairs as `expand` gives them, rows g and g + 8) and eight tokens.
__device__ __forceinline__ void multiply_pairs(const uint32_t (&low)[4], const uint32_t (&high)[4], const uint32_t (&x)[4],
                                               float (&sums)[4]) {
    const uint32_t first[4] = {low[0], high[0], low[1], high[1]}, first_x[2] = {x[0], x[1]};
    const uint32_t second[4] = {low[2], high[2], low[3], high[3]}, second_x[2] = {x[2], x[3]};
    mma_m16n8k16(sums, first, first_x);
    mma_m16n8k16(sums, second, second_x);
}

// sums += group_sums · the scales of an INT4 group, rows g and g + 8.
__device__ __forceinline__ void add_group(const RowPart& low, const RowPart& high, const float (&group_sums)[4], float (&sums)[4]) {
    float low_scale = f16_to_float(uint16_t(low.scales)), high_scale = f16_to_float(uint16_t(high.scales));
    sums[0] = fmaf(group_sums[0], low_scale, sums[0]);
    sums[1] = fmaf(group_sums[1], low_scale, sums[1]);
    sums[2] = fmaf(group_sums[2], high_scale, sums[2]);
    sums[3] = fmaf(group_sums[3], high_scale, sums[3]);
}

// What remains to be multiplied to a row's sums.
template <Format FORMAT>
__device__ __forceinline__ float row_scale(const LinearMatrix& matrix, uint32_t row) {
    if (FORMAT == FP8) return __ldg(reinterpret_cast<const float*>(matrix.scales) + row);
    if (FORMAT == NVFP4) return __ldg(matrix.global_scale) * E2M1_REST;
    return 1.0f;
}

// The product of one row: its sum, scaled, with the bias. Each operation here rounds on its own: no compiler contracts them, in one kernel
// and not in another, to a fused one.
template <Format FORMAT>
__device__ __forceinline__ float product_of(const LinearMatrix& matrix, uint32_t row, float sum) {
    float product = __fmul_rn(sum, row_scale<FORMAT>(matrix, row));
    return matrix.bias == nullptr ? product : __fadd_rn(product, __ldg(matrix.bias + row));
}

// What becomes of products; a kernel's last argument.
enum Output : uint32_t {
    // F32, written.
    STORE,
    // F32, added to what is there.
    ADD,
    // The first matrix is the gate, the second `up`, of equally many rows: silu(gate) · up is written to the first one's output, as BF16.
    SWIGLU,
};

// What a block works on: rows of one matrix from `first_row` on; with SWIGLU rows of the gate and the same of `up`, half as many each.
struct Place {
    LinearMatrix matrix, up;
    uint32_t first_row;
    Output output;

    // How far the rows of one row tile, 16 rows of A, reach.
    __device__ __forceinline__ uint32_t rows_of_tile() const { return output == SWIGLU ? 8 : 16; }
    // The two rows of a lane in a row tile: g and g + 8 of one matrix, or g of the gate and g of `up`.
    template <Format FORMAT>
    __device__ __forceinline__ Row low_row(uint32_t row, uint32_t num_cols) const {
        return row_of<FORMAT>(matrix, row, num_cols);
    }
    template <Format FORMAT>
    __device__ __forceinline__ Row high_row(uint32_t row, uint32_t num_cols) const {
        return output == SWIGLU ? row_of<FORMAT>(up, row, num_cols) : row_of<FORMAT>(matrix, row + 8, num_cols);
    }

    template <Format FORMAT>
    __device__ __forceinline__ void write(uint32_t row, uint32_t token, float sum) const {
        if (row >= matrix.num_rows) return;
        float product = product_of<FORMAT>(matrix, row, sum);
        float* out = matrix.out + size_t(token) * matrix.num_rows + row;
        *out = output == ADD ? __fadd_rn(*out, product) : product;
    }
    template <Format FORMAT>
    __device__ __forceinline__ void write_swiglu(uint32_t row, uint32_t token, float gate_sum, float up_sum) const {
        if (row >= matrix.num_rows) return;
        float gate = product_of<FORMAT>(matrix, row, gate_sum), linear = product_of<FORMAT>(up, row, up_sum);
        bf16* out = reinterpret_cast<bf16*>(matrix.out) + size_t(token) * matrix.num_rows + row;
        *out = float_to_bf16(swiglu_of(gate, linear));
    }
};

// Blocks of ROWS rows, matrix after matrix.
template <int ROWS>
__device__ __forceinline__ Place place_of(uint32_t block, const LinearMatrix& first, const LinearMatrix& second, const LinearMatrix& third,
                                          Output output) {
    if (output == SWIGLU) return {first, second, block * (ROWS / 2), output};
    uint32_t first_blocks = (first.num_rows + ROWS - 1) / ROWS, second_blocks = (second.num_rows + ROWS - 1) / ROWS;
    if (block < first_blocks) return {first, first, block * ROWS, output};
    block -= first_blocks;
    if (block < second_blocks) return {second, second, block * ROWS, output};
    return {third, third, (block - second_blocks) * ROWS, output};
}

// Parameters of a kernel that name one matrix; `TAKT_MATRIX_OF` puts them together again.
#define TAKT_MATRIX(n)                                                                                                             \
    const uint8_t *codes_##n, const uint8_t *scales_##n, const float *global_scale_##n, const float *bias_##n, float *out_##n,    \
        uint32_t num_rows_##n
#define TAKT_MATRIX_OF(n) {codes_##n, scales_##n, global_scale_##n, bias_##n, out_##n, num_rows_##n}
