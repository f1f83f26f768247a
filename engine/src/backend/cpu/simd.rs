//! Sixteen F32 lanes in the registers of each instruction set.
//!
//! Loops without a reduction vectorize well on their own; scalar products do not (LLVM keeps the partial sums as 16 scalars
//! once it sees the final additions, five times slower, measured 2026-11-21), so their registers are named here.
#![expect(unsafe_code, reason = "intrinsics of instruction sets found at run time")]

#[cfg(target_arch = "aarch64")]
use std::arch::aarch64 as arm;
#[cfg(target_arch = "x86_64")]
use std::arch::x86_64 as x86;

/// Partial sums of a reduction: one AVX-512 register, two AVX2, four NEON.
pub(super) const LANES: usize = 16;

/// An instruction set's 16 lanes. All compute the same: lane by lane, reduced in the tree of [`reduce`].
///
/// Invariant: a type is only used inside code that runs after its instruction set was found; see
/// [`super::vectors::Vectors::run`].
pub(super) trait Simd {
    /// Whether multiply-add is one instruction; elsewhere `f32::mul_add` would be a library call.
    const FMA: bool;
    /// Whether 24 of the lanes' sets fit the registers: several rows times several queries at once.
    const MANY_REGISTERS: bool = false;
    /// The lanes.
    type Lanes: Copy;

    /// All zero.
    fn zero() -> Self::Lanes;
    /// All `value`.
    fn splat(value: f32) -> Self::Lanes;
    /// The lanes of `values`.
    fn load(values: &[f32; LANES]) -> Self::Lanes;
    /// `a · b + sum`, lane by lane.
    fn mul_add(a: Self::Lanes, b: Self::Lanes, sum: Self::Lanes) -> Self::Lanes;
    /// `a ⊕ b` of all bits.
    fn xor(a: Self::Lanes, b: Self::Lanes) -> Self::Lanes;
    /// The lanes as an array.
    fn to_array(lanes: Self::Lanes) -> [f32; LANES];

    /// The sum of all lanes.
    #[inline(always)]
    fn sum(lanes: Self::Lanes) -> f32 {
        reduce(Self::to_array(lanes))
    }

    /// The sums of four times all lanes.
    #[inline(always)]
    fn sum_quad(lanes: [Self::Lanes; 4]) -> [f32; 4] {
        let [a, b, c, d] = lanes;
        [Self::sum(a), Self::sum(b), Self::sum(c), Self::sum(d)]
    }
}

/// Adds the lanes in a fixed tree: halves first.
#[inline(always)]
pub(super) fn reduce(mut sums: [f32; LANES]) -> f32 {
    let mut width = LANES / 2;
    while width > 0 {
        for lane in 0..width {
            sums[lane] += sums[lane + width];
        }
        width /= 2;
    }
    sums[0]
}

/// Whatever the compiler makes of plain arrays.
#[cfg(not(target_arch = "aarch64"))]
#[derive(Debug)]
pub(super) struct Plain;

#[cfg(not(target_arch = "aarch64"))]
impl Simd for Plain {
    const FMA: bool = false;
    type Lanes = [f32; LANES];

    #[inline(always)]
    fn zero() -> Self::Lanes {
        [0.0; LANES]
    }

    #[inline(always)]
    fn splat(value: f32) -> Self::Lanes {
        [value; LANES]
    }

    #[inline(always)]
    fn load(values: &[f32; LANES]) -> Self::Lanes {
        *values
    }

    #[inline(always)]
    fn mul_add(a: Self::Lanes, b: Self::Lanes, mut sum: Self::Lanes) -> Self::Lanes {
        for lane in 0..LANES {
            sum[lane] += a[lane] * b[lane];
        }
        sum
    }

    #[inline(always)]
    fn xor(a: Self::Lanes, b: Self::Lanes) -> Self::Lanes {
        std::array::from_fn(|lane| f32::from_bits(a[lane].to_bits() ^ b[lane].to_bits()))
    }

    #[inline(always)]
    fn to_array(lanes: Self::Lanes) -> [f32; LANES] {
        lanes
    }
}

/// AVX2 and FMA.
#[cfg(target_arch = "x86_64")]
#[derive(Debug)]
pub(super) struct Avx2;

#[cfg(target_arch = "x86_64")]
impl Simd for Avx2 {
    const FMA: bool = true;
    type Lanes = [x86::__m256; 2];

    #[inline(always)]
    fn zero() -> Self::Lanes {
        // SAFETY: by the trait's invariant this machine has AVX2.
        unsafe { [x86::_mm256_setzero_ps(); 2] }
    }

    #[inline(always)]
    fn splat(value: f32) -> Self::Lanes {
        // SAFETY: by the trait's invariant this machine has AVX2.
        unsafe { [x86::_mm256_set1_ps(value); 2] }
    }

    #[inline(always)]
    fn load(values: &[f32; LANES]) -> Self::Lanes {
        // SAFETY: by the trait's invariant this machine has AVX2; 8 values are readable at both places.
        unsafe { [x86::_mm256_loadu_ps(values.as_ptr()), x86::_mm256_loadu_ps(values.as_ptr().add(8))] }
    }

    #[inline(always)]
    fn mul_add(a: Self::Lanes, b: Self::Lanes, sum: Self::Lanes) -> Self::Lanes {
        // SAFETY: by the trait's invariant this machine has FMA.
        unsafe { [x86::_mm256_fmadd_ps(a[0], b[0], sum[0]), x86::_mm256_fmadd_ps(a[1], b[1], sum[1])] }
    }

    #[inline(always)]
    fn xor(a: Self::Lanes, b: Self::Lanes) -> Self::Lanes {
        // SAFETY: by the trait's invariant this machine has AVX2.
        unsafe { [x86::_mm256_xor_ps(a[0], b[0]), x86::_mm256_xor_ps(a[1], b[1])] }
    }

    #[inline(always)]
    fn to_array(lanes: Self::Lanes) -> [f32; LANES] {
        let mut values = [0.0; LANES];
        // SAFETY: by the trait's invariant this machine has AVX2; 8 values are writable at both places.
        unsafe {
            x86::_mm256_storeu_ps(values.as_mut_ptr(), lanes[0]);
            x86::_mm256_storeu_ps(values.as_mut_ptr().add(8), lanes[1]);
        }
        values
    }

    #[inline(always)]
    fn sum(lanes: Self::Lanes) -> f32 {
        // SAFETY: by the trait's invariant this machine has AVX2.
        unsafe { sum_8(x86::_mm256_add_ps(lanes[0], lanes[1])) }
    }
}

/// AVX-512 F and DQ.
#[cfg(target_arch = "x86_64")]
#[derive(Debug)]
pub(super) struct Avx512;

#[cfg(target_arch = "x86_64")]
impl Simd for Avx512 {
    const FMA: bool = true;
    const MANY_REGISTERS: bool = true;
    type Lanes = x86::__m512;

    #[inline(always)]
    fn zero() -> Self::Lanes {
        // SAFETY: by the trait's invariant this machine has AVX-512.
        unsafe { x86::_mm512_setzero_ps() }
    }

    #[inline(always)]
    fn splat(value: f32) -> Self::Lanes {
        // SAFETY: by the trait's invariant this machine has AVX-512.
        unsafe { x86::_mm512_set1_ps(value) }
    }

    #[inline(always)]
    fn load(values: &[f32; LANES]) -> Self::Lanes {
        // SAFETY: by the trait's invariant this machine has AVX-512; 16 values are readable.
        unsafe { x86::_mm512_loadu_ps(values.as_ptr()) }
    }

    #[inline(always)]
    fn mul_add(a: Self::Lanes, b: Self::Lanes, sum: Self::Lanes) -> Self::Lanes {
        // SAFETY: by the trait's invariant this machine has AVX-512.
        unsafe { x86::_mm512_fmadd_ps(a, b, sum) }
    }

    #[inline(always)]
    fn xor(a: Self::Lanes, b: Self::Lanes) -> Self::Lanes {
        // SAFETY: by the trait's invariant this machine has AVX-512 F and DQ.
        unsafe { x86::_mm512_xor_ps(a, b) }
    }

    #[inline(always)]
    fn to_array(lanes: Self::Lanes) -> [f32; LANES] {
        let mut values = [0.0; LANES];
        // SAFETY: by the trait's invariant this machine has AVX-512; 16 values are writable.
        unsafe { x86::_mm512_storeu_ps(values.as_mut_ptr(), lanes) };
        values
    }

    #[inline(always)]
    fn sum(lanes: Self::Lanes) -> f32 {
        // SAFETY: by the trait's invariant this machine has AVX-512 F and DQ, hence AVX2.
        unsafe {
            let high = x86::_mm512_extractf32x8_ps::<1>(lanes);
            sum_8(x86::_mm256_add_ps(x86::_mm512_castps512_ps256(lanes), high))
        }
    }

    #[inline(always)]
    fn sum_quad(lanes: [Self::Lanes; 4]) -> [f32; 4] {
        // SAFETY: by the trait's invariant this machine has AVX-512.
        unsafe { sum_quad(lanes) }
    }
}

/// The trees of [`reduce`] of four times 16 lanes, side by side.
///
/// # Safety
/// The machine must have AVX-512.
#[cfg(target_arch = "x86_64")]
#[inline(always)]
unsafe fn sum_quad([a, b, c, d]: [x86::__m512; 4]) -> [f32; 4] {
    // SAFETY: the caller's promise.
    unsafe {
        // Quarters of 128 bits: the first two of each operand, the last two of each.
        let ab = x86::_mm512_add_ps(
            x86::_mm512_shuffle_f32x4::<0b01_00_01_00>(a, b),
            x86::_mm512_shuffle_f32x4::<0b11_10_11_10>(a, b),
        );
        let cd = x86::_mm512_add_ps(
            x86::_mm512_shuffle_f32x4::<0b01_00_01_00>(c, d),
            x86::_mm512_shuffle_f32x4::<0b11_10_11_10>(c, d),
        );
        let even = x86::_mm512_shuffle_f32x4::<0b10_00_10_00>(ab, cd);
        let four = x86::_mm512_add_ps(even, x86::_mm512_shuffle_f32x4::<0b11_01_11_01>(ab, cd));
        let two = x86::_mm512_add_ps(four, x86::_mm512_permute_ps::<0b01_00_11_10>(four));
        let one = x86::_mm512_add_ps(two, x86::_mm512_permute_ps::<0b10_11_00_01>(two));
        let firsts = x86::_mm512_maskz_compress_ps(0x1111, one);
        let mut sums = [0.0; 4];
        x86::_mm_storeu_ps(sums.as_mut_ptr(), x86::_mm512_castps512_ps128(firsts));
        sums
    }
}

/// The tree of [`reduce`] from 8 lanes on.
///
/// # Safety
/// The machine must have AVX2.
#[cfg(target_arch = "x86_64")]
#[inline(always)]
unsafe fn sum_8(lanes: x86::__m256) -> f32 {
    // SAFETY: the caller's promise.
    unsafe {
        let four =
            x86::_mm_add_ps(x86::_mm256_castps256_ps128(lanes), x86::_mm256_extractf128_ps::<1>(lanes));
        let two = x86::_mm_add_ps(four, x86::_mm_movehl_ps(four, four));
        x86::_mm_cvtss_f32(x86::_mm_add_ss(two, x86::_mm_shuffle_ps::<1>(two, two)))
    }
}

/// NEON, which every aarch64 machine has.
#[cfg(target_arch = "aarch64")]
#[derive(Debug)]
pub(super) struct Neon;

#[cfg(target_arch = "aarch64")]
impl Simd for Neon {
    const FMA: bool = true;
    type Lanes = [arm::float32x4_t; 4];

    #[inline(always)]
    fn zero() -> Self::Lanes {
        Self::load(&[0.0; LANES])
    }

    #[inline(always)]
    fn splat(value: f32) -> Self::Lanes {
        // SAFETY: NEON is part of the architecture.
        unsafe { [arm::vdupq_n_f32(value); 4] }
    }

    #[inline(always)]
    fn load(values: &[f32; LANES]) -> Self::Lanes {
        // SAFETY: NEON is part of the architecture; 4 values are readable at each place.
        [0, 4, 8, 12].map(|at| unsafe { arm::vld1q_f32(values.as_ptr().add(at)) })
    }

    #[inline(always)]
    fn mul_add(a: Self::Lanes, b: Self::Lanes, sum: Self::Lanes) -> Self::Lanes {
        // SAFETY: NEON is part of the architecture.
        [0, 1, 2, 3].map(|quarter| unsafe { arm::vfmaq_f32(sum[quarter], a[quarter], b[quarter]) })
    }

    #[inline(always)]
    fn xor(a: Self::Lanes, b: Self::Lanes) -> Self::Lanes {
        let bits = |lanes| {
            // SAFETY: NEON is part of the architecture.
            unsafe { arm::vreinterpretq_u32_f32(lanes) }
        };
        [0, 1, 2, 3].map(|quarter| {
            // SAFETY: NEON is part of the architecture.
            unsafe { arm::vreinterpretq_f32_u32(arm::veorq_u32(bits(a[quarter]), bits(b[quarter]))) }
        })
    }

    #[inline(always)]
    fn to_array(lanes: Self::Lanes) -> [f32; LANES] {
        let mut values = [0.0; LANES];
        for (quarter, lanes) in values.as_chunks_mut::<4>().0.iter_mut().zip(lanes) {
            // SAFETY: NEON is part of the architecture; 4 values are writable.
            unsafe { arm::vst1q_f32(quarter.as_mut_ptr(), lanes) };
        }
        values
    }
}
