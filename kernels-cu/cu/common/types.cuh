// Number formats: how BF16, FP8 (E4M3), FP4 (E2M1), INT4 and F16 bits become values, and back.
//
// Every conversion here is exact, or rounds to nearest even as the PTX instruction it stands for. The functions named `software_…` are
// plain integer and F32 arithmetic: what a target without the instruction runs, and what the CPU runs in tests.
#pragma once

#if defined(__CUDACC_RTC__)
typedef unsigned char uint8_t;
typedef signed char int8_t;
typedef unsigned short uint16_t;
typedef short int16_t;
typedef unsigned int uint32_t;
typedef int int32_t;
typedef unsigned long uint64_t;
typedef long int64_t;
#else
#include <stdint.h>
#endif

#if !defined(TAKT_EMULATED)
// Dynamic shared memory of a block, 16-byte aligned; at most once in a kernel.
#define TAKT_DYNAMIC_SHARED(type, name)                                 \
    extern __shared__ __align__(16) unsigned char takt_dynamic_shared[]; \
    type* name = reinterpret_cast<type*>(takt_dynamic_shared)
#endif

#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 890
#define TAKT_HAS_E4M3_CONVERSION 1
#endif

// ---- BF16: the upper half of an F32 ---------------------------------------------------------------------------------------------------

struct bf16 {
    uint16_t bits;
};

__device__ __forceinline__ float bf16_to_float(bf16 value) { return __uint_as_float(uint32_t(value.bits) << 16); }

// The two BF16 of a 32-bit word; the first lies in the lower half, at the lower address.
__device__ __forceinline__ float bf16x2_first(uint32_t pair) { return __uint_as_float(pair << 16); }
__device__ __forceinline__ float bf16x2_second(uint32_t pair) { return __uint_as_float(pair & 0xffff0000u); }

__device__ __forceinline__ uint32_t software_float_to_bf16(float value) {
    uint32_t bits = __float_as_uint(value);
    if ((bits & 0x7fffffffu) > 0x7f800000u) return 0x7fff;
    return (bits + 0x7fff + (bits >> 16 & 1)) >> 16;
}

// Two F32 rounded to BF16, ties to even; `first` to the lower half.
__device__ __forceinline__ uint32_t floats_to_bf16x2(float first, float second) {
#if defined(__CUDA_ARCH__)
    uint32_t pair;
    asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(pair) : "f"(second), "f"(first));
    return pair;
#else
    return software_float_to_bf16(first) | software_float_to_bf16(second) << 16;
#endif
}

__device__ __forceinline__ bf16 float_to_bf16(float value) { return bf16{uint16_t(floats_to_bf16x2(value, 0.0f))}; }

// a · b + c of two pairs of BF16, rounded once; subnormals are kept.
__device__ __forceinline__ uint32_t bf16x2_fma(uint32_t a, uint32_t b, uint32_t c) {
#if defined(__CUDA_ARCH__)
    uint32_t result;
    asm("fma.rn.bf16x2 %0, %1, %2, %3;" : "=r"(result) : "r"(a), "r"(b), "r"(c));
    return result;
#else
    return floats_to_bf16x2(fmaf(bf16x2_first(a), bf16x2_first(b), bf16x2_first(c)),
                            fmaf(bf16x2_second(a), bf16x2_second(b), bf16x2_second(c)));
#endif
}

// a · b; the added −0 leaves every product as it is, also −0.
__device__ __forceinline__ uint32_t bf16x2_multiply(uint32_t a, uint32_t b) { return bf16x2_fma(a, b, 0x80008000u); }

// ---- bits -----------------------------------------------------------------------------------------------------------------------------

// (a & b) ^ c, one instruction: left to itself the compiler takes two where b and c are constants, rather than a register for one of them.
__device__ __forceinline__ uint32_t and_xor(uint32_t a, uint32_t b, uint32_t c) {
#if defined(__CUDA_ARCH__)
    uint32_t result;
    // The table of a function is what it makes of these three.
    constexpr int TABLE = (0xf0 & 0xcc) ^ 0xaa;
    asm("lop3.b32 %0, %1, %2, %3, %4;" : "=r"(result) : "r"(a), "r"(b), "r"(c), "n"(TABLE));
    return result;
#else
    return (a & b) ^ c;
#endif
}

// The lower or the upper half of a pair, twice. Written so that the compiler can make it part of the multiplication that follows.
__device__ __forceinline__ uint32_t twice_first(uint32_t pair) {
#if defined(__CUDA_ARCH__)
    uint32_t result;
    asm("{ .reg .b16 first, second; mov.b32 {first, second}, %1; mov.b32 %0, {first, first}; }" : "=r"(result) : "r"(pair));
    return result;
#else
    return __byte_perm(pair, 0, 0x1010);
#endif
}

__device__ __forceinline__ uint32_t twice_second(uint32_t pair) {
#if defined(__CUDA_ARCH__)
    uint32_t result;
    asm("{ .reg .b16 first, second; mov.b32 {first, second}, %1; mov.b32 %0, {second, second}; }" : "=r"(result) : "r"(pair));
    return result;
#else
    return __byte_perm(pair, 0, 0x3232);
#endif
}

// ---- F16 ------------------------------------------------------------------------------------------------------------------------------

// The value of F16 bits that are neither infinite nor NaN.
__device__ __forceinline__ float f16_to_float(uint16_t bits) {
#if defined(__CUDA_ARCH__)
    float value;
    asm("cvt.f32.f16 %0, %1;" : "=f"(value) : "h"(bits));
    return value;
#else
    // Exponent and mantissa at F32's places, then the difference of the biases; right for subnormals too.
    float magnitude = __uint_as_float(uint32_t(bits & 0x7fff) << 13) * 0x1p112f;
    return bits & 0x8000 ? -magnitude : magnitude;
#endif
}

// ---- E4M3: 1 sign, 4 exponent (bias 7), 3 mantissa bits -------------------------------------------------------------------------------

// The value of a code that is not NaN.
__device__ __forceinline__ float e4m3_to_float(uint32_t code) {
    // As above: the code's bits at F32's places are value · 2^−120.
    return __uint_as_float((code & 0x80) << 24 | (code & 0x7f) << 20) * 0x1p120f;
}

// Nearest code, ties to even, saturating at ±448.
__device__ __forceinline__ uint32_t software_float_to_e4m3(float value) {
    uint32_t bits = __float_as_uint(value), sign = bits >> 24 & 0x80, magnitude_bits = bits & 0x7fffffffu;
    if (magnitude_bits > 0x7f800000u) return sign | 0x7f;
    if (magnitude_bits > 0x43e00000u) return sign | 0x7e;
    if (magnitude_bits < 0x3c800000u) {
        // Below 2^−6 the grid is uniform with step 2^−9: adding 2^14 leaves an F32 that step as its last bit.
        return sign | (__float_as_uint(__uint_as_float(magnitude_bits) + 0x1p14f) & 0xf);
    }
    uint32_t rounded = magnitude_bits + 0x7ffff + (magnitude_bits >> 20 & 1);
    return sign | ((rounded >> 20) - (120 << 3));
}

__device__ __forceinline__ uint32_t float_to_e4m3(float value) {
#if defined(TAKT_HAS_E4M3_CONVERSION)
    uint16_t pair;
    asm("cvt.rn.satfinite.e4m3x2.f32 %0, %1, %2;" : "=h"(pair) : "f"(0.0f), "f"(value));
    return pair & 0xff;
#else
    return software_float_to_e4m3(value);
#endif
}

// Four E4M3 codes as two pairs of BF16, in order. A code's bits at BF16's places are value · 2^−120.
//
// Not by `cvt.rn.f16x2.e4m3x2`, where there is one: from F16 to BF16 it is farther than from here.
__device__ __forceinline__ void e4m3x4_to_bf16x2(uint32_t codes, uint32_t (&pairs)[2]) {
    constexpr uint32_t SIGN = 0x80008000u, MAGNITUDE = 0x07f007f0u, TWO_TO_120 = 0x7b807b80u;
    uint32_t low = __byte_perm(codes, 0, 0x1404), high = __byte_perm(codes, 0, 0x3424);
    pairs[0] = bf16x2_multiply((low & SIGN) | (low >> 4 & MAGNITUDE), TWO_TO_120);
    pairs[1] = bf16x2_multiply((high & SIGN) | (high >> 4 & MAGNITUDE), TWO_TO_120);
}

// ---- E2M1 and INT4: eight nibbles a word ----------------------------------------------------------------------------------------------

// Eight E2M1 codes times `scale` as four pairs of BF16; pair i holds nibbles i and i + 4.
//
// A code's exponent and mantissa at BF16's places are value · 2^−126: `scale` (twice the same BF16) carries what is missing. One
// multiplication puts the sign and the rest where they belong: by 2^12 + 2^6, or 2^8 + 2^2 for a nibble four bits on.
__device__ __forceinline__ void e2m1x8_to_bf16x2(uint32_t codes, uint32_t scale, uint32_t (&pairs)[4]) {
    constexpr uint32_t PLACES = 0x81c081c0u;
    uint32_t upper = codes >> 8;
    pairs[0] = bf16x2_multiply((codes & 0x000f000fu) * 0x1040u & PLACES, scale);
    pairs[1] = bf16x2_multiply((codes & 0x00f000f0u) * 0x0104u & PLACES, scale);
    pairs[2] = bf16x2_multiply((upper & 0x000f000fu) * 0x1040u & PLACES, scale);
    pairs[3] = bf16x2_multiply((upper & 0x00f000f0u) * 0x0104u & PLACES, scale);
}

// The BF16 pairs `scale` of `e2m1x8_to_bf16x2` for the E4M3 scales of two blocks, the first in the low byte: value · 2^119, the most BF16
// holds. Products are short of `E2M1_REST`, exact, and normal: at most 6 significant bits, from 2^−17 to 21.
__device__ __forceinline__ void e2m1_scales(uint32_t e4m3_codes, uint32_t (&scales)[2]) {
    constexpr uint32_t SIGN = 0x80008000u, MAGNITUDE = 0x07f007f0u, TWO_TO_120 = 0x7b807b80u, TWO_TO_119 = 0x7b007b00u;
    uint32_t codes = __byte_perm(e4m3_codes, 0, 0x1404);
    uint32_t values = bf16x2_multiply((codes & SIGN) | (codes >> 4 & MAGNITUDE), TWO_TO_120);
    uint32_t scaled = bf16x2_multiply(values, TWO_TO_119);
    scales[0] = twice_first(scaled);
    scales[1] = twice_second(scaled);
}
constexpr float E2M1_REST = 128.0f;

// Eight two's-complement nibbles as four pairs of BF16; pair i holds nibbles i and i + 4.
//
// 128 + n has n as the last bits of its mantissa (ulp 1); n with its sign bit turned over is value + 8.
__device__ __forceinline__ void int4x8_to_bf16x2(uint32_t codes, uint32_t (&pairs)[4]) {
    constexpr uint32_t NIBBLES = 0x000f000fu, BIASED = 0x43084308u, ONE = 0x3f803f80u, MINUS_136 = 0xc308c308u;
#pragma unroll
    for (int idx = 0; idx < 4; idx++) {
        pairs[idx] = bf16x2_fma(and_xor(codes >> (4 * idx), NIBBLES, BIASED), ONE, MINUS_136);
    }
}
