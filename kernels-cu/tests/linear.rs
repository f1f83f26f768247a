//! Products of quantized matrices, against F64 sums over the engine's own dequantized rows.

#![allow(clippy::unwrap_used, reason = "tests")]

mod emulator;

use std::sync::OnceLock;

use emulator::{Buffer, Emulator};
use half::bf16;
use takt_engine::quant::{QuantizedMatrix, WeightKind, quantize};
use takt_kernels_cu::launch::{
    DeviceAddress, Launch,
    linear::{Linear, Matrix, Output, Tiling, WeightFormat, Weights},
    swiglu::SwiGlu,
};

/// Few, so that narrow blocks go through several tiles.
const NUM_MULTIPROCESSORS: usize = 1;

fn emulator() -> Option<&'static Emulator> {
    static EMULATOR: OnceLock<Option<Emulator>> = OnceLock::new();
    EMULATOR.get_or_init(|| Emulator::of(&["linear.cu", "linear_wide.cu", "swiglu.cu"])).as_ref()
}

fn kind_of(format: WeightFormat) -> WeightKind {
    match format {
        WeightFormat::Bf16 => WeightKind::Bf16,
        WeightFormat::Fp8 => WeightKind::Fp8,
        WeightFormat::Nvfp4 => WeightKind::Nvfp4,
        WeightFormat::Int4 => WeightKind::Int4,
    }
}

/// Values of many magnitudes, different for each seed.
fn values(count: usize, seed: u32) -> Vec<f32> {
    let mut state = seed.wrapping_mul(0x9e37_79b9) | 1;
    let mut next = move || {
        state ^= state << 13;
        state ^= state >> 17;
        state ^= state << 5;
        (state >> 8) as f32 / (1 << 23) as f32 - 1.0
    };
    (0..count).map(|_| next() * next() * 2.0).collect()
}

/// A matrix on the device.
struct Device {
    codes: Buffer<u8>,
    scales: Buffer<u8>,
    global_scale: Buffer<f32>,
    quantized: QuantizedMatrix,
}

impl Device {
    fn new(format: WeightFormat, num_rows: usize, num_cols: usize, seed: u32) -> Self {
        let quantized =
            quantize(kind_of(format), (num_rows, num_cols), &values(num_rows * num_cols, seed), 1).unwrap();
        Self {
            codes: Buffer::from_slice(&quantized.weight),
            scales: Buffer::from_slice(&quantized.scales),
            global_scale: Buffer::from_slice(&[quantized.scale_2.unwrap_or(f32::NAN)]),
            quantized,
        }
    }

    fn weights(&self) -> Weights {
        Weights {
            codes: self.codes.address(),
            scales: self.scales.address(),
            global_scale: self.global_scale.address(),
        }
    }

    /// Each output and what it may be away from it: rounding of the sum of its terms' magnitudes.
    fn expected(&self, x: &[bf16], num_tokens: usize) -> Vec<(f64, f64)> {
        let (num_rows, num_cols) = (self.quantized.num_rows, self.quantized.num_cols);
        let mut rows = vec![0.0_f32; num_rows * num_cols];
        for (idx, row) in rows.chunks_exact_mut(num_cols).enumerate() {
            self.quantized.view().dequantize_row(idx, row);
        }
        let mut expected = Vec::with_capacity(num_tokens * num_rows);
        for token in x.chunks_exact(num_cols) {
            for row in rows.chunks_exact(num_cols) {
                let terms = row.iter().zip(token).map(|(&w, x)| f64::from(w) * x.to_f64());
                let (sum, size) = terms.fold((0.0, 0.0), |(sum, size), term| (sum + term, size + term.abs()));
                expected.push((sum, size * 1e-6 + 1e-12));
            }
        }
        expected
    }
}

fn activations(num_tokens: usize, num_cols: usize) -> Vec<bf16> {
    values(num_tokens * num_cols, 77).into_iter().map(bf16::from_f32).collect()
}

/// `[num_tokens, rows]` of every matrix.
fn run(
    format: WeightFormat,
    matrices: &[&Device],
    x: &[bf16],
    num_tokens: usize,
    output: Output,
) -> Vec<Vec<f32>> {
    run_with(matrices, x, |linear| {
        let linear = Linear { format, num_tokens, output, ..linear };
        linear.launch(linear.tiling(16), NUM_MULTIPROCESSORS).unwrap()
    })
}

/// The same with any change to the launch.
fn run_with(matrices: &[&Device], x: &[bf16], launch: impl Fn(Linear<'_>) -> Launch) -> Vec<Vec<f32>> {
    let num_tokens = x.len() / matrices[0].quantized.num_cols;
    let num_cols = matrices[0].quantized.num_cols;
    let input = Buffer::from_slice(x);
    let out: Vec<Buffer<f32>> =
        matrices.iter().map(|matrix| Buffer::filled(num_tokens * matrix.quantized.num_rows, 0.25)).collect();
    let placed: Vec<Matrix> = matrices
        .iter()
        .zip(&out)
        .map(|(matrix, out)| Matrix {
            weights: matrix.weights(),
            num_rows: matrix.quantized.num_rows,
            bias: DeviceAddress::NULL,
            out: out.address(),
        })
        .collect();
    let linear = Linear {
        format: WeightFormat::Bf16,
        matrices: &placed,
        x: input.address(),
        num_tokens,
        num_cols,
        output: Output::Store,
    };
    emulator().unwrap().launch(&launch(linear)).unwrap();
    out.iter().map(Buffer::to_vec).collect()
}

fn assert_close(found: &[f32], expected: &[(f64, f64)], added: f64, what: &str) {
    assert_eq!(found.len(), expected.len());
    for (idx, (&found, &(wanted, tolerance))) in found.iter().zip(expected).enumerate() {
        let away = (f64::from(found) - wanted - added).abs();
        assert!(away <= tolerance + added * 1e-7, "{what}: output {idx}: {found}, expected {wanted}");
    }
}

#[test]
fn every_format_serves_every_odd_shape() {
    if emulator().is_none() {
        return;
    }
    for format in WeightFormat::ALL {
        // Shorter than one unit, ragged for every format, whole for some, a short last unit, several units a warp.
        for num_cols in [16, 48, 144, 256, 1040, 2080, 4224] {
            let num_rows = if num_cols > 2000 { 17 } else { 37 };
            for num_tokens in [1, 9, 33] {
                let device = Device::new(format, num_rows, num_cols, 1);
                let x = activations(num_tokens, num_cols);
                let found = &run(format, &[&device], &x, num_tokens, Output::Store)[0];
                let what = format!("{format} [{num_rows}, {num_cols}] {num_tokens} tokens");
                assert_close(found, &device.expected(&x, num_tokens), 0.0, &what);
            }
        }
    }
}

#[test]
fn columns_that_are_no_whole_words_are_served_where_the_format_has_them() {
    if emulator().is_none() {
        return;
    }
    for (format, num_cols) in [
        (WeightFormat::Bf16, 1),
        (WeightFormat::Bf16, 129),
        (WeightFormat::Fp8, 7),
        (WeightFormat::Fp8, 555),
        (WeightFormat::Int4, 2),
        (WeightFormat::Int4, 130),
        (WeightFormat::Int4, 1278),
    ] {
        let device = Device::new(format, 19, num_cols, 5);
        let x = activations(3, num_cols);
        let found = &run(format, &[&device], &x, 3, Output::Store)[0];
        assert_close(found, &device.expected(&x, 3), 0.0, &format!("{format} {num_cols} columns"));
    }
}

#[test]
fn a_tokens_bits_do_not_depend_on_the_tokens_beside_it() {
    if emulator().is_none() {
        return;
    }
    let (num_rows, num_cols) = (35, 2304);
    for format in WeightFormat::ALL {
        let device = Device::new(format, num_rows, num_cols, 9);
        let x = activations(100, num_cols);
        let alone: Vec<u32> = (0..100)
            .flat_map(|token| {
                let row = &x[token * num_cols..][..num_cols];
                run(format, &[&device], row, 1, Output::Store).remove(0)
            })
            .map(f32::to_bits)
            .collect();
        for num_tokens in [7, 8, 9, 31, 63, 64, 65, 100] {
            let together =
                run(format, &[&device], &x[..num_tokens * num_cols], num_tokens, Output::Store).remove(0);
            let bits: Vec<u32> = together.into_iter().map(f32::to_bits).collect();
            assert!(bits == alone[..num_tokens * num_rows], "{format}, {num_tokens} tokens");
        }
    }
}

#[test]
fn three_matrices_share_a_launch() {
    if emulator().is_none() {
        return;
    }
    for format in WeightFormat::ALL {
        let devices = [64, 16, 17].map(|num_rows| Device::new(format, num_rows, 320, 20 + num_rows as u32));
        let x = activations(5, 320);
        for used in 1..=3 {
            let matrices: Vec<&Device> = devices.iter().take(used).collect();
            let found = run(format, &matrices, &x, 5, Output::Store);
            for (device, found) in matrices.iter().zip(&found) {
                assert_close(found, &device.expected(&x, 5), 0.0, &format!("{format}, {used} matrices"));
            }
        }
    }
}

#[test]
fn a_product_is_added_to_the_residual_stream() {
    if emulator().is_none() {
        return;
    }
    for format in WeightFormat::ALL {
        let device = Device::new(format, 33, 512, 3);
        let x = activations(10, 512);
        let found = &run(format, &[&device], &x, 10, Output::Add)[0];
        assert_close(found, &device.expected(&x, 10), 0.25, &format!("{format}"));
    }
}

#[test]
fn the_largest_and_the_smallest_codes_are_exact() {
    if emulator().is_none() {
        return;
    }
    // One weight 6 · 448 = 2688 in a row, and in another block the smallest: half of the smallest subnormal scale. Global scale 1.
    let mut weights = vec![0.0_f32; 2 * 64];
    (weights[0], weights[64 + 33]) = (2688.0, 0.5 / 512.0);
    let quantized = quantize(WeightKind::Nvfp4, (2, 64), &weights, 1).unwrap();
    let device = Device {
        codes: Buffer::from_slice(&quantized.weight),
        scales: Buffer::from_slice(&quantized.scales),
        global_scale: Buffer::from_slice(&[quantized.scale_2.unwrap()]),
        quantized,
    };
    let x = vec![bf16::ONE; 64];
    let found = run(WeightFormat::Nvfp4, &[&device], &x, 1, Output::Store).remove(0);
    let mut row = vec![0.0; 64];
    let mut wanted = Vec::new();
    for idx in 0..2 {
        device.quantized.view().dequantize_row(idx, &mut row);
        wanted.push(row.iter().sum::<f32>());
    }
    assert_eq!(found, wanted);
    assert_eq!(found[0], 2688.0);
    assert!(found[1] > 0.0);
}

#[test]
fn rows_past_the_end_are_not_written() {
    if emulator().is_none() {
        return;
    }
    let device = Device::new(WeightFormat::Fp8, 3, 64, 4);
    let (input, out) = (Buffer::from_slice(&activations(2, 64)), Buffer::filled(16, 7.0_f32));
    let matrix =
        Matrix { weights: device.weights(), num_rows: 3, bias: DeviceAddress::NULL, out: out.address() };
    let linear = Linear {
        format: WeightFormat::Fp8,
        matrices: &[matrix],
        x: input.address(),
        num_tokens: 2,
        num_cols: 64,
        output: Output::Store,
    };
    emulator().unwrap().launch(&linear.launch(linear.tiling(16), NUM_MULTIPROCESSORS).unwrap()).unwrap();
    assert!(out.to_vec()[6..].iter().all(|&value| value == 7.0));
}

#[test]
fn a_bias_is_added_once() {
    if emulator().is_none() {
        return;
    }
    let (num_rows, num_cols, num_tokens) = (20, 2048, 2);
    let device = Device::new(WeightFormat::Int4, num_rows, num_cols, 4);
    let x = activations(num_tokens, num_cols);
    let bias = values(num_rows, 8);
    let (input, biases) = (Buffer::from_slice(&x), Buffer::from_slice(&bias));
    let out = Buffer::filled(num_tokens * num_rows, 0.5_f32);
    let matrix = Matrix { weights: device.weights(), num_rows, bias: biases.address(), out: out.address() };
    let (format, x_address) = (WeightFormat::Int4, input.address());
    let linear =
        Linear { format, matrices: &[matrix], x: x_address, num_tokens, num_cols, output: Output::Add };
    emulator().unwrap().launch(&linear.launch(linear.tiling(16), NUM_MULTIPROCESSORS).unwrap()).unwrap();
    let mut expected = device.expected(&x, num_tokens);
    for (idx, (sum, tolerance)) in expected.iter_mut().enumerate() {
        *sum += f64::from(bias[idx % num_rows]);
        *tolerance += 1e-6;
    }
    assert_close(&out.to_vec(), &expected, 0.5, "with a bias");
}

#[test]
fn every_tiling_gives_the_same_bits() {
    if emulator().is_none() {
        return;
    }
    // More rows than one block of any tiling has, tokens and columns with remains; one column count with slices that have no unit at all;
    // columns in whole units, of which some slices have one more than a round.
    for (num_rows, num_cols, num_tokens) in [(133, 1440, 67), (17, 96, 20), (70, 4192, 5), (35, 4224, 18)] {
        for format in WeightFormat::ALL {
            let device = Device::new(format, num_rows, num_cols, 31);
            let x = activations(num_tokens, num_cols);
            let outputs = Tiling::ALL.map(|tiling| {
                let found = run_with(&[&device], &x, |linear| {
                    Linear { format, output: Output::Add, ..linear }
                        .launch(tiling, NUM_MULTIPROCESSORS)
                        .unwrap()
                });
                found[0].iter().map(|value| value.to_bits()).collect::<Vec<_>>()
            });
            for (tiling, bits) in Tiling::ALL.iter().zip(&outputs) {
                assert!(
                    bits == &outputs[0],
                    "{format} [{num_rows}, {num_cols}] {num_tokens} tokens: {tiling:?}"
                );
            }
            let found: Vec<f32> = outputs[0].iter().map(|&bits| f32::from_bits(bits)).collect();
            assert_close(&found, &device.expected(&x, num_tokens), 0.25, &format!("{format}"));
        }
    }
}

#[test]
fn gate_and_up_end_in_swiglu_with_the_bits_of_three_launches() {
    if emulator().is_none() {
        return;
    }
    let (num_rows, num_tokens) = (75, 35);
    for (format, num_cols) in WeightFormat::ALL.into_iter().flat_map(|format| [(format, 48), (format, 1120)])
    {
        let devices = [1, 2].map(|seed| Device::new(format, num_rows, num_cols, seed));
        let matrices: Vec<&Device> = devices.iter().collect();
        let x = activations(num_tokens, num_cols);
        let products = run(format, &matrices, &x, num_tokens, Output::Store);
        let [gate, up] = [0, 1].map(|idx: usize| Buffer::from_slice(&products[idx]));
        let wanted = Buffer::filled(num_tokens * num_rows, bf16::NAN);
        let out = wanted.address();
        let swiglu = SwiGlu { gate: gate.address(), up: up.address(), out, num_tokens, width: num_rows };
        emulator().unwrap().launch(&swiglu.launch().unwrap()).unwrap();
        for tiling in Tiling::ALL.into_iter().filter(|tiling| num_cols != 48 || !tiling.is_wide()) {
            let found = run_with(&matrices, &x, |linear| {
                Linear { format, output: Output::SwiGlu, ..linear }
                    .launch(tiling, NUM_MULTIPROCESSORS)
                    .unwrap()
            });
            let bytes: Vec<u8> = found[0].iter().flat_map(|value| value.to_le_bytes()).collect();
            let found: Vec<bf16> =
                bytes.chunks_exact(2).map(|raw| bf16::from_le_bytes([raw[0], raw[1]])).collect();
            assert!(found[..num_tokens * num_rows] == wanted.to_vec(), "{format} {num_cols} {tiling:?}");
        }
    }
}
