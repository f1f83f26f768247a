//! RMS norm against the formula in F64.

#![allow(clippy::unwrap_used, reason = "tests")]

mod emulator;

use std::sync::OnceLock;

use emulator::{Buffer, Emulator};
use half::bf16;
use takt_kernels_cu::launch::{
    DeviceAddress,
    rms_norm::{NormOutput, NormRows, RmsNorm},
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

/// Rows of `x` from `in_stride` to `out_stride` apart, the chosen ones; with the same unrounded. What lies between rows is 7.
fn norm_rows(
    x: &[f32],
    (in_stride, width, out_stride): (usize, usize, usize),
    chosen: Option<&[i32]>,
    weight: Option<&[f32]>,
) -> (Vec<bf16>, Vec<f32>) {
    let num_rows = chosen.map_or(x.len() / in_stride, <[i32]>::len);
    let (from, rows) = (Buffer::from_slice(x), chosen.map(Buffer::from_slice));
    let weight = weight.map(Buffer::from_slice);
    let out = Buffer::filled(num_rows * out_stride, bf16::from_f32(7.0));
    let exact = Buffer::filled(num_rows * width, f32::NAN);
    let norm = NormRows {
        from: from.address(),
        rows: rows.as_ref().map_or(DeviceAddress::NULL, Buffer::address),
        weight: weight.as_ref().map_or(DeviceAddress::NULL, Buffer::address),
        exact: exact.address(),
        out: out.address(),
        in_stride,
        out_stride,
        num_rows,
        width,
        eps: EPS,
    };
    emulator().unwrap().launch(&norm.launch().unwrap()).unwrap();
    (out.to_vec(), exact.to_vec())
}

#[test]
fn rows_from_anywhere_have_the_bits_of_the_plain_norm_and_leave_what_is_beside_them() {
    if emulator().is_none() {
        return;
    }
    for (in_stride, width, out_stride) in
        [(1, 1, 1), (9, 7, 8), (64, 64, 128), (300, 100, 104), (4100, 4100, 8200)]
    {
        let (x, weight) = (values(4 * in_stride, 0.7, 3.0), values(width, 0.1, 2.0));
        let row = |idx: usize| &x[idx * in_stride..][..width];
        let chosen = [3, -1, 0, 0, 2];
        let (rounded, exact) = norm_rows(&x, (in_stride, width, out_stride), Some(&chosen), Some(&weight));
        let (converted, same) = norm_rows(&x, (in_stride, width, out_stride), Some(&chosen), None);
        for (place, idx) in chosen.into_iter().enumerate() {
            let (normed, plain) = match usize::try_from(idx) {
                Ok(idx) => (Device::new(row(idx), None, &weight).f32(), row(idx).to_vec()),
                Err(_) => (vec![0.0; width], vec![0.0; width]),
            };
            assert!(exact[place * width..][..width] == normed, "{width}, row {idx}");
            assert!(same[place * width..][..width] == plain, "{width}, row {idx} converted");
            let (out, out_plain) = (&rounded[place * out_stride..], &converted[place * out_stride..]);
            for col in 0..width {
                assert_eq!(out[col], bf16::from_f32(normed[col]));
                assert_eq!(out_plain[col], bf16::from_f32(plain[col]));
            }
            assert!(out[width..out_stride].iter().all(|value| value.to_f32() == 7.0), "{width}");
        }
        let (in_order, _) = norm_rows(&x, (in_stride, width, out_stride), None, Some(&weight));
        let first = Device::new(row(1), None, &weight).bf16();
        assert!(in_order[out_stride..][..width] == first, "in order, {width}");
    }
}

#[test]
fn rows_are_normalized_in_their_place() {
    if emulator().is_none() {
        return;
    }
    for width in [7, 96, 3072] {
        let (x, weight) = (values(3 * width, 0.7, 3.0), values(width, 0.1, 2.0));
        let expected = Device::new(&x, None, &weight).f32();
        let (rows, weights) = (Buffer::from_slice(&x), Buffer::from_slice(&weight));
        let out = Buffer::filled(3 * width, bf16::NAN);
        let norm = NormRows {
            from: rows.address(),
            rows: DeviceAddress::NULL,
            weight: weights.address(),
            exact: rows.address(),
            out: out.address(),
            in_stride: width,
            out_stride: width,
            num_rows: 3,
            width,
            eps: EPS,
        };
        emulator().unwrap().launch(&norm.launch().unwrap()).unwrap();
        assert!(rows.to_vec() == expected, "{width}");
    }
}
