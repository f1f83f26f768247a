//! Quick scans for values that are not numbers. Branch-free over whole slices, so that they run at memory speed.

use safetensors::Dtype;

/// Whether every value of `bytes` is a number; true of types without any that is not. For `bytes` that begin at an element.
pub(super) fn all(dtype: Dtype, bytes: &[u8]) -> bool {
    match dtype {
        Dtype::F32 => f32(bytes),
        Dtype::F16 => f16(bytes),
        Dtype::BF16 => bf16(bytes),
        Dtype::F8_E4M3 => e4m3(bytes),
        _ => true,
    }
}

/// Whether every E4M3 code is a number (`S.1111.111` is NaN; there is no infinity).
fn e4m3(codes: &[u8]) -> bool {
    !chunked_any(codes, 1, |code| (code[0] & 0x7f) == 0x7f)
}

/// Whether every little-endian BF16 value is finite.
fn bf16(bytes: &[u8]) -> bool {
    !chunked_any(bytes, 2, |raw| (u16::from_le_bytes([raw[0], raw[1]]) & 0x7f80) == 0x7f80)
}

/// Whether every little-endian F16 value is finite.
fn f16(bytes: &[u8]) -> bool {
    !chunked_any(bytes, 2, |raw| (u16::from_le_bytes([raw[0], raw[1]]) & 0x7c00) == 0x7c00)
}

/// Whether every little-endian F32 value is finite.
fn f32(bytes: &[u8]) -> bool {
    !chunked_any(bytes, 4, |raw| {
        (u32::from_le_bytes([raw[0], raw[1], raw[2], raw[3]]) & 0x7f80_0000) == 0x7f80_0000
    })
}

/// Whether `is_bad` holds for any element; whole blocks are folded without branches so that the compiler vectorises.
fn chunked_any(bytes: &[u8], element_bytes: usize, is_bad: impl Fn(&[u8]) -> bool) -> bool {
    bytes
        .chunks(4096)
        .any(|block| block.chunks_exact(element_bytes).fold(false, |bad, raw| bad | is_bad(raw)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_single_bad_value_anywhere_is_found() {
        for position in [0usize, 1, 4095, 4096, 9999] {
            let mut codes = vec![0x38u8; 10_000];
            codes[position] = 0xff;
            assert!(!e4m3(&codes));
            let mut values = vec![1.0f32; 10_000];
            values[position] = f32::INFINITY;
            let raw: Vec<u8> = values.iter().flat_map(|v| v.to_le_bytes()).collect();
            assert!(!f32(&raw));
            let raw: Vec<u8> = values.iter().flat_map(|&v| half::bf16::from_f32(v).to_le_bytes()).collect();
            assert!(!bf16(&raw));
            let raw: Vec<u8> = values.iter().flat_map(|&v| half::f16::from_f32(v).to_le_bytes()).collect();
            assert!(!f16(&raw));
        }
    }

    #[test]
    fn the_largest_finite_values_pass() {
        assert!(e4m3(&[0x7e, 0xfe, 0]));
        assert!(f32(&f32::MAX.to_le_bytes()));
        assert!(bf16(&half::bf16::MAX.to_le_bytes()));
        assert!(f16(&half::f16::MAX.to_le_bytes()));
    }
}
