// Rows of the key/value cache: how one head's `HEAD_DIM` elements are stored, and how a warp takes them apart.
//
// Row (lane, kv_head, row) begins at element ((lane · num_kv_heads + kv_head) · capacity + row) · HEAD_DIM. FP8 (E4M3) and INT8 rows have
// one F32 scale each, at the same row index; BF16 rows have none. Stored values are exact in BF16: E4M3 has 4 significant bits, an 8-bit
// integer 8.
#pragma once

#include "types.cuh"
#include "warp.cuh"

// Index of the first row of a lane's head.
__device__ __forceinline__ long long head_row(int lane, int kv_head, int num_kv_heads, int capacity) {
    return ((long long)lane * num_kv_heads + kv_head) * capacity;
}

// A format: bytes of an element, and two elements from `bytes`, each of whose halves holds an element's byte twice, as a pair of BF16.
struct Bf16Rows {
    static constexpr int ELEMENT_BYTES = 2;
    static constexpr bool HAS_SCALES = false;
};

struct Fp8Rows {
    static constexpr int ELEMENT_BYTES = 1;
    static constexpr bool HAS_SCALES = true;
    // Exponent and mantissa moved to BF16's places make the value times 2^-120, subnormals included. The NaN code, which only a broken
    // model's row holds, reads as 480.
    static __device__ __forceinline__ uint32_t to_pair(uint32_t bytes) {
        uint32_t bits = ((bytes >> 4) & 0x07f007f0u) | (bytes & 0x80008000u);
        return bf16x2_multiply(bits, 0x7b807b80u);
    }
};

struct Int8Rows {
    static constexpr int ELEMENT_BYTES = 1;
    static constexpr bool HAS_SCALES = true;
    // Two's complement: low seven bits minus 128 for the sign. 0x4300 is 128, with seven mantissa bits of weight 1 down; with the sign bit
    // in the exponent's lowest place it is 256.
    static __device__ __forceinline__ uint32_t to_pair(uint32_t bytes) {
        uint32_t low = (bytes & 0x007f007fu) | 0x43004300u;
        uint32_t high = (bytes & 0x00800080u) | 0x43004300u;
        return bf16x2_fma(high, 0xbf80bf80u, low);
    }
};

// A row is shared out among LANES lanes in chunks, widest first: each lane takes as many consecutive elements as make 16 bytes and leave
// some for all; together they read a consecutive run. Everything that counts elements of a row (queries, keys, values, outputs) uses the
// same order.
__device__ constexpr int chunk_width(int rest, int lanes, int element_bytes) {
    int width = 16 / element_bytes;
    while (width * lanes > rest) width /= 2;
    return width;
}

// Column of element `idx` of `lane`'s share.
template <int HEAD_DIM, int LANES, int ELEMENT_BYTES, int DONE = 0>
__device__ __forceinline__ int share_column(int lane, int idx) {
    constexpr int WIDTH = chunk_width(HEAD_DIM - DONE, LANES, ELEMENT_BYTES);
    if constexpr (DONE + WIDTH * LANES < HEAD_DIM) {
        if (idx >= WIDTH) {
            return share_column<HEAD_DIM, LANES, ELEMENT_BYTES, DONE + WIDTH * LANES>(lane, idx - WIDTH);
        }
    }
    return DONE + lane * WIDTH + idx;
}

// One value of vector type T, from an address that is a multiple of its size.
template <class T>
__device__ __forceinline__ T load_vector(const void* from) {
#if defined(TAKT_EMULATED)
    return *takt_emulated::checked(static_cast<const T*>(from), sizeof(T));
#else
    return *static_cast<const T*>(from);
#endif
}

// BYTES consecutive bytes, a power of two up to 16, into registers.
template <int BYTES>
__device__ __forceinline__ void load_words(const unsigned char* from, uint32_t* words) {
    if constexpr (BYTES == 16) {
        uint4 loaded = load_16(from);
        words[0] = loaded.x, words[1] = loaded.y, words[2] = loaded.z, words[3] = loaded.w;
    } else if constexpr (BYTES == 8) {
        uint2 loaded = load_vector<uint2>(from);
        words[0] = loaded.x, words[1] = loaded.y;
    } else if constexpr (BYTES == 4) {
        words[0] = load_vector<uint32_t>(from);
    } else {
        words[0] = load_vector<uint16_t>(from);
    }
}

// Words of a lane's share of a row; the last may be half full.
template <int HEAD_DIM, int LANES, int ELEMENT_BYTES>
constexpr int SHARE_WORDS = (HEAD_DIM / LANES * ELEMENT_BYTES + 3) / 4;

// Loads `lane`'s share of the row at `row`.
template <int HEAD_DIM, int LANES, int ELEMENT_BYTES, int DONE = 0>
__device__ __forceinline__ void load_share(const unsigned char* row, int lane, uint32_t* words) {
    if constexpr (DONE < HEAD_DIM) {
        constexpr int WIDTH = chunk_width(HEAD_DIM - DONE, LANES, ELEMENT_BYTES);
        load_words<WIDTH * ELEMENT_BYTES>(row + (DONE + lane * WIDTH) * ELEMENT_BYTES, words);
        load_share<HEAD_DIM, LANES, ELEMENT_BYTES, DONE + WIDTH * LANES>(row, lane, words + WIDTH * ELEMENT_BYTES / 4);
    }
}

// Elements 2·idx and 2·idx + 1 of a share.
template <class Rows>
__device__ __forceinline__ uint32_t pair_along_row(const uint32_t* share, int idx) {
    if constexpr (Rows::ELEMENT_BYTES == 2) {
        return share[idx];
    } else {
        return Rows::to_pair(__byte_perm(share[idx / 2], 0, idx % 2 == 0 ? 0x1100 : 0x3322));
    }
}

// Element `idx` of the shares of two rows.
template <class Rows>
__device__ __forceinline__ uint32_t pair_across_rows(const uint32_t* first, const uint32_t* second, int idx) {
    if constexpr (Rows::ELEMENT_BYTES == 2) {
        return __byte_perm(first[idx / 2], second[idx / 2], idx % 2 == 0 ? 0x5410 : 0x7632);
    } else {
        return Rows::to_pair(__byte_perm(first[idx / 4], second[idx / 4], idx % 4 * 0x1111 + 0x4400));
    }
}
