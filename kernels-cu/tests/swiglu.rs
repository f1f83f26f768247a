//! SwiGLU against the formula in F64.

#![allow(clippy::unwrap_used, reason = "tests")]

mod emulator;

use emulator::{Buffer, Emulator};
use half::bf16;
use takt_kernels_cu::launch::swiglu::SwiGlu;

#[test]
fn every_size_matches_the_formula_up_to_the_far_ends() {
    let Some(emulator) = Emulator::of(&["swiglu.cu"]) else { return };
    for (num_tokens, width) in [(1, 1), (1, 3), (1, 4), (3, 5), (7, 100), (2, 1024), (3, 1367)] {
        let count = num_tokens * width;
        let mut gate: Vec<f32> = (0..count).map(|i| (i % 600) as f32 * 0.4 - 120.0).collect();
        gate[count - 1] = -1e30;
        gate[count / 2] = 1e30;
        let up: Vec<f32> = (0..count).map(|i| 1.0 + (i as f32).sin()).collect();
        let (gates, ups) = (Buffer::from_slice(&gate), Buffer::from_slice(&up));
        let out = Buffer::filled(count, bf16::NAN);
        let swiglu =
            SwiGlu { gate: gates.address(), up: ups.address(), out: out.address(), num_tokens, width };
        emulator.launch(&swiglu.launch().unwrap()).unwrap();
        for (idx, found) in out.to_vec().into_iter().enumerate() {
            let (gate, up) = (f64::from(gate[idx]), f64::from(up[idx]));
            let wanted = gate / (1.0 + (-gate).exp()) * up;
            let away = (found.to_f64() - wanted).abs();
            // Half of BF16's last place, and the exponential's error.
            assert!(away <= wanted.abs() * (1.0 / 256.0 + 1e-6) + 1e-30, "{width} {idx}: {found}, {wanted}");
        }
    }
}
