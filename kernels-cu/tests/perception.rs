//! The perception stand-in and the reading of memory, against the plain loops.

#![allow(clippy::unwrap_used, reason = "tests")]

mod emulator;

use emulator::{Buffer, Emulator};
use half::bf16;
use takt_kernels_cu::launch::{
    bandwidth::ReadMemory,
    perception::{CHANNELS, INNER, OUTPUTS, Perception},
};

fn values(len: usize, seed: usize) -> Vec<f32> {
    (0..len).map(|idx| ((idx * 2_654_435_761 + seed) % 1009) as f32 / 504.5 - 1.0).collect()
}

/// `[height, width, 32]`, rounded to BF16.
fn convolution(image: &[f32], weights: &[f32], height: usize, width: usize) -> Vec<bf16> {
    let mut features = Vec::new();
    for (row, col, out) in (0..height)
        .flat_map(|row| (0..width).flat_map(move |col| (0..CHANNELS).map(move |out| (row, col, out))))
    {
        let mut sum = 0.0_f64;
        for (y, x) in (0..3).flat_map(|y| (0..3).map(move |x| (y, x))) {
            let (Some(from_row), Some(from_col)) = ((row + y).checked_sub(1), (col + x).checked_sub(1))
            else {
                continue;
            };
            if from_row >= height || from_col >= width {
                continue;
            }
            for channel in 0..CHANNELS {
                let pixel = image[(from_row * width + from_col) * CHANNELS + channel];
                let weight = weights[((y * 3 + x) * CHANNELS + channel) * CHANNELS + out];
                sum += f64::from(pixel) * f64::from(weight);
            }
        }
        features.push(bf16::from_f64(sum.max(0.0)));
    }
    features
}

#[test]
fn a_link_of_the_chain_is_a_convolution_and_a_product() {
    let Some(emulator) = Emulator::of(&["perception.cu"]) else { return };
    for (height, width) in [(8, 128), (64, 16), (32, 64)] {
        let image = values(height * width * CHANNELS, 1);
        let weights: Vec<f32> = values(9 * CHANNELS * CHANNELS, 2).iter().map(|value| value * 0.1).collect();
        let matrix: Vec<bf16> = values(OUTPUTS * INNER, 3).into_iter().map(bf16::from_f32).collect();
        let num_rows = height * width * CHANNELS / INNER;
        let (images, kernels) = (Buffer::from_slice(&image), Buffer::from_slice(&weights));
        let (matrices, features) =
            (Buffer::from_slice(&matrix), Buffer::filled(height * width * CHANNELS, bf16::NAN));
        let out = Buffer::filled(num_rows * OUTPUTS, bf16::NAN);
        let link = Perception {
            image: images.address(),
            weights: kernels.address(),
            features: features.address(),
            matrix: matrices.address(),
            out: out.address(),
            height,
            width,
        };
        for launch in &link.launches().unwrap() {
            emulator.launch(launch).unwrap();
        }
        let (found, wanted) = (features.to_vec(), convolution(&image, &weights, height, width));
        for (idx, (found, wanted)) in found.iter().zip(&wanted).enumerate() {
            // A sum near the middle of two BF16 may fall to the other.
            let away = (found.to_f32() - wanted.to_f32()).abs();
            assert!(
                away <= wanted.to_f32() / 127.0 + 1e-4,
                "{height} x {width}, feature {idx}: {found} {wanted}"
            );
        }
        for (idx, result) in out.to_vec().into_iter().enumerate() {
            let (row, output) = (idx / OUTPUTS, idx % OUTPUTS);
            let pairs = found[row * INNER..][..INNER].iter().zip(&matrix[output * INNER..][..INNER]);
            let sum: f64 = pairs.map(|(a, b)| a.to_f64() * b.to_f64()).sum();
            let away = (result.to_f64() - sum).abs();
            assert!(away <= sum.abs() / 255.0 + 1e-3, "{height} x {width}, output {idx}: {result}, {sum}");
        }
    }
}

#[test]
fn every_word_is_read_once() {
    let Some(emulator) = Emulator::of(&["bandwidth.cu"]) else { return };
    for num_words in [4, 1028, 32_768, 100_004] {
        let words: Vec<u32> = (0..num_words).map(|idx: u32| idx.wrapping_mul(2_654_435_761)).collect();
        let (from, out) = (Buffer::from_slice(&words), Buffer::filled(8, 0_u32));
        let (from_address, num_bytes) = (from.address(), words.len() * 4);
        let read = ReadMemory { from: from_address, out: out.address(), num_bytes, num_multiprocessors: 2 };
        assert_eq!(read.num_blocks(), 8);
        emulator.launch(&read.launch().unwrap()).unwrap();
        let found = out.to_vec().into_iter().fold(0, |all, block| all ^ block);
        assert_eq!(found, words.iter().fold(0, |all, word| all ^ word), "{num_words} words");
    }
}
