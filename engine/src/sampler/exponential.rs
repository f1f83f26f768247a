//! `exp` from basic arithmetic only: the system's differs between platforms in the last bits, and seeded samples must not.

const LOG2_E: f64 = std::f64::consts::LOG2_E;
/// ln 2 in two parts; the high one has 21 trailing zero bits, so `k · LN2_HI` is exact for every exponent k.
const LN2_HI: f64 = f64::from_bits(0x3fe6_2e42_fee0_0000);
const LN2_LO: f64 = f64::from_bits(0x3dea_39ef_3579_3c76);

/// `e^x` for `x ≤ 0`, within 2 units in the last place; 0 below −708, where the result would be subnormal.
pub(super) fn exp_nonpositive(x: f64) -> f64 {
    if x < -708.0 {
        return 0.0;
    }
    // x = k·ln 2 + r with |r| ≤ ln 2 / 2
    let k = (x * LOG2_E + 0.5).floor();
    let r = x - k * LN2_HI - k * LN2_LO;
    // Taylor's series by Horner; the first term left out, r¹⁴/14!, is below 5e-18.
    let e_to_r = (1..=13).rev().fold(1.0, |sum, n| 1.0 + sum * r / f64::from(n));
    let biased_exponent = (k as i64 + 1023) as u64;
    e_to_r * f64::from_bits(biased_exponent << 52)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_agrees_with_the_systems_exp() {
        for step in 0..=708_000 {
            let x = -f64::from(step) / 1000.0;
            let (ours, theirs) = (exp_nonpositive(x), x.exp());
            assert!((ours / theirs - 1.0).abs() < 1e-15, "exp({x}) = {ours}, system {theirs}");
        }
        assert_eq!(
            (exp_nonpositive(0.0), exp_nonpositive(-709.0), exp_nonpositive(f64::NEG_INFINITY)),
            (1.0, 0.0, 0.0)
        );
    }
}
