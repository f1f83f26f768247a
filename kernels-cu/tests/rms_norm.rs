//! RMS norm against the formula in F64.

#![allow(clippy::unwrap_used, reason = "tests")]

mod emulator;

use std::sync::OnceLock;

use emulator::{Buffer, Emulator};
use half::bf16;
use takt_kernels_cu::launch::{
    DeviceAddress,
    rms_norm::{NormOutput, RmsNorm},
};

const EPS: f32 = 1e-5;

fn emulator() -> Option<&'static Emulator> {
    static EMULATOR: OnceLock<Option<Emulator>> = OnceLock::new();
    EMULATOR.get_or_init(|| Emulator::of(&["rms_norm.cu"])).as_ref()
}

fn values(count: usize, step: f32, size: f32) -> Vec<f32> {
    (0..count).map(|i| (i as f32 * step).sin() * size).collect()
}

fn expected(x: &[f32], weight: &[f32]) -> Vec<f64> {
    let mean = |row: &[f32]| row.iter().map(|&v| f64::from(v).powi(2)).sum::<f64>() / row.len() as f64;
    x.chunks_exact(weight.len())
        .flat_map(|row| {
            let factor = 1.0 / (mean(row) + f64::from(EPS)).sqrt();
            row.iter().zip(weight).map(move |(&x, &weight)| f64::from(x) * factor * f64::from(weight))
        })
        .collect()
}

struct Device {
    residual: Buffer<f32>,
    delta: Option<Buffer<f32>>,
    weight: Buffer<f32>,
    num_tokens: usize,
    width: usize,
}

impl Device {
    fn new(x: &[f32], delta: Option<&[f32]>, weight: &[f32]) -> Self {
        let (num_tokens, width) = (x.len() / weight.len(), weight.len());
        let (residual, weight) = (Buffer::from_slice(x), Buffer::from_slice(weight));
        Self { residual, delta: delta.map(Buffer::from_slice), weight, num_tokens, width }
    }

    fn run(&self, output: NormOutput, out: DeviceAddress) {
        let norm = RmsNorm {
            residual: self.residual.address(),
            delta: self.delta.as_ref().map_or(DeviceAddress::NULL, Buffer::address),
            weight: self.weight.address(),
            out,
            output,
            num_tokens: self.num_tokens,
            width: self.width,
            eps: EPS,
        };
        emulator().unwrap().launch(&norm.launch().unwrap()).unwrap();
    }

    fn bf16(&self) -> Vec<bf16> {
        let out = Buffer::filled(self.num_tokens * self.width, bf16::NAN);
        self.run(NormOutput::Bf16, out.address());
        out.to_vec()
    }

    fn f32(&self) -> Vec<f32> {
        let out = Buffer::filled(self.num_tokens * self.width, f32::NAN);
        self.run(NormOutput::F32, out.address());
        out.to_vec()
    }
}

#[test]
fn every_width_matches_the_formula() {
    if emulator().is_none() {
        return;
    }
    for width in [1, 2, 4, 7, 64, 100, 1024, 2047, 2048, 4100] {
        for num_tokens in [1, 3] {
            let (x, weight) = (values(num_tokens * width, 0.7, 3.0), values(width, 0.1, 2.0));
            let device = Device::new(&x, None, &weight);
            let (rounded, full) = (device.bf16(), device.f32());
            for (idx, &wanted) in expected(&x, &weight).iter().enumerate() {
                let found = f64::from(full[idx]);
                assert!(
                    (found - wanted).abs() <= 2e-6 * wanted.abs() + 1e-12,
                    "{width} {idx}: {found}, {wanted}"
                );
                assert_eq!(rounded[idx], bf16::from_f32(full[idx]), "width {width}, element {idx}");
            }
            assert_eq!(device.residual.to_vec(), x, "nothing was added");
        }
    }
}

#[test]
fn a_delta_is_added_to_the_residual_stream_first() {
    if emulator().is_none() {
        return;
    }
    for width in [5, 96, 3072] {
        let (x, delta, weight) =
            (values(2 * width, 0.7, 3.0), values(2 * width, 0.3, 1.0), values(width, 0.1, 2.0));
        let device = Device::new(&x, Some(&delta), &weight);
        let found = device.f32();
        let sum: Vec<f32> = x.iter().zip(&delta).map(|(x, delta)| x + delta).collect();
        assert_eq!(device.residual.to_vec(), sum);
        for (found, wanted) in found.iter().zip(expected(&sum, &weight)) {
            assert!((f64::from(*found) - wanted).abs() <= 2e-6 * wanted.abs() + 1e-12, "{found}, {wanted}");
        }
    }
}

#[test]
fn zeros_and_large_values_stay_finite() {
    if emulator().is_none() {
        return;
    }
    let device = Device::new(&[vec![0.0; 64], vec![1e18; 64]].concat(), None, &[1.0; 64]);
    let found = device.f32();
    assert!(found[..64].iter().all(|&value| value == 0.0));
    assert!(found[64..].iter().all(|&value| (value - 1.0).abs() < 1e-6));
}

#[test]
fn a_tokens_bits_do_not_depend_on_the_tokens_beside_it() {
    if emulator().is_none() {
        return;
    }
    let (x, weight) = (values(9 * 2049, 0.7, 3.0), values(2049, 0.1, 2.0));
    let together = Device::new(&x, None, &weight).f32();
    for (token, row) in x.chunks_exact(2049).enumerate() {
        assert_eq!(Device::new(row, None, &weight).f32(), together[token * 2049..][..2049]);
    }
}
