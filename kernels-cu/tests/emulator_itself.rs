//! What the emulator computes, and the mistakes it finds.

#![allow(clippy::unwrap_used, reason = "tests")]

mod emulator;

use std::{path::Path, sync::OnceLock};

use emulator::{Buffer, Emulator};
use half::{bf16, f16};
use takt_engine::quant::{e2m1, e4m3};
use takt_kernels_cu::launch::{Argument, Geometry, Launch};

fn emulator() -> Option<&'static Emulator> {
    static EMULATOR: OnceLock<Option<Emulator>> = OnceLock::new();
    let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/emulator/self_test.cu");
    EMULATOR.get_or_init(|| Emulator::of_files(&[source])).as_ref()
}

fn run(kernel: &'static str, geometry: Geometry, arguments: Vec<Argument>) -> Result<(), String> {
    emulator().unwrap().launch(&Launch::new(kernel, geometry, arguments).unwrap())
}

#[test]
fn blocks_sum_their_values() {
    if emulator().is_none() {
        return;
    }
    let values: Vec<f32> = (0..1000).map(|i| (i % 17) as f32).collect();
    let (input, output) = (Buffer::from_slice(&values), Buffer::filled(11, f32::NAN));
    let arguments = vec![input.address().into(), output.address().into(), 1000_i32.into()];
    run("sum_blocks", Geometry::linear(11, 96), arguments).unwrap();
    let wanted: Vec<f32> = values.chunks(96).map(|block| block.iter().sum()).collect();
    assert_eq!(output.to_vec(), wanted);
}

#[test]
fn a_tensor_core_multiplies_two_tiles() {
    if emulator().is_none() {
        return;
    }
    let a: Vec<bf16> = (0..256).map(|i| bf16::from_f32((i * 37 % 101) as f32 - 50.0)).collect();
    let b: Vec<bf16> = (0..128).map(|i| bf16::from_f32((i * 53 % 97) as f32 - 48.0)).collect();
    let (left, right) = (Buffer::from_slice(&a), Buffer::from_slice(&b));
    let product = Buffer::filled(128, f32::NAN);
    let arguments = vec![left.address().into(), right.address().into(), product.address().into()];
    run("multiply_tiles", Geometry { grid: [1, 1, 1], block: [32, 1, 1], shared_bytes: 1024 }, arguments)
        .unwrap();
    for (idx, found) in product.to_vec().into_iter().enumerate() {
        let (row, column) = (idx / 8, idx % 8);
        let wanted: f32 = (0..16).map(|k| a[row * 16 + k].to_f32() * b[column * 16 + k].to_f32()).sum();
        assert_eq!(found, wanted, "row {row}, column {column}");
    }
}

#[test]
fn values_are_rounded_and_codes_are_read_as_the_formats_say() {
    if emulator().is_none() {
        return;
    }
    // Every 2^11th F32: all exponents, both signs, ties of the eight and the four bit formats.
    let mut values: Vec<f32> = (0..1_u32 << 16).map(|i| f32::from_bits(i << 16)).collect();
    values.extend((0..1_u32 << 14).map(|i| f32::from_bits(0x3800_0000 + (i << 13) + (i & 1))));
    values.extend([448.0, 464.0, 465.0, 1e30, f32::INFINITY, 0.007_812_5, 0.000_976_562_5, 0.000_976_563]);
    let count = values.len();
    let input = Buffer::from_slice(&values);
    let (to_e4m3, to_bf16) = (Buffer::filled(count, 0_u32), Buffer::filled(count, 0_u32));
    let (from_e4m3, from_f16) = (Buffer::filled(count, 0.0_f32), Buffer::filled(count, 0.0_f32));
    let arguments = vec![
        input.address().into(),
        i32::try_from(count).unwrap().into(),
        to_e4m3.address().into(),
        to_bf16.address().into(),
        from_e4m3.address().into(),
        from_f16.address().into(),
    ];
    run("convert", Geometry::linear(1, 32), arguments).unwrap();
    let (to_e4m3, to_bf16) = (to_e4m3.to_vec(), to_bf16.to_vec());
    let (from_e4m3, from_f16) = (from_e4m3.to_vec(), from_f16.to_vec());
    for (idx, &value) in values.iter().enumerate() {
        assert_eq!(to_e4m3[idx], u32::from(e4m3::encode(value)), "{value:e}");
        if !value.is_nan() {
            assert_eq!(to_bf16[idx], u32::from(bf16::from_f32(value).to_bits()), "{value:e}");
        }
    }
    for code in (0..=255_u8).filter(|code| code & 0x7f != 0x7f) {
        assert_eq!(from_e4m3[usize::from(code)].to_bits(), e4m3::decode(code).to_bits(), "{code:#x}");
    }
    for bits in (0..=u16::MAX).filter(|&bits| f16::from_bits(bits).is_finite()) {
        let wanted = f16::from_bits(bits).to_f32();
        assert_eq!(from_f16[usize::from(bits)].to_bits(), wanted.to_bits(), "{bits:#x}");
    }
}

#[test]
fn packed_codes_are_expanded_exactly() {
    if emulator().is_none() {
        return;
    }
    // All pairs of bytes, so every nibble at every place; NaN codes of E4M3 are not in weights.
    let words: Vec<u32> =
        (0..256_u32).map(|i| i | (i * 7 % 256) << 8 | (255 - i) << 16 | (i * 31 % 256) << 24).collect();
    let input = Buffer::from_slice(&words);
    for scale_code in (0..0x7f_u8).chain([0x80, 0xb8]) {
        let (nibbles, integers) = (Buffer::filled(2048, 0.0_f32), Buffer::filled(2048, 0.0_f32));
        let bytes = Buffer::filled(1024, 0.0_f32);
        let arguments = vec![
            input.address().into(),
            256_i32.into(),
            u32::from(scale_code).into(),
            nibbles.address().into(),
            integers.address().into(),
            bytes.address().into(),
        ];
        run("expand", Geometry::linear(1, 32), arguments).unwrap();
        let (nibbles, integers, bytes) = (nibbles.to_vec(), integers.to_vec(), bytes.to_vec());
        for (idx, &found) in nibbles.iter().enumerate() {
            let code = words[idx / 8] >> (4 * (idx % 8)) & 15;
            let wanted = e2m1::VALUES[usize::try_from(code).unwrap()] * e4m3::decode(scale_code);
            assert_eq!(found.to_bits(), wanted.to_bits(), "code {code}, scale {scale_code:#x}");
            assert_eq!(integers[idx], (code as i32 - if code > 7 { 16 } else { 0 }) as f32);
        }
        for (idx, &found) in bytes.iter().enumerate() {
            let code = words[idx / 4].to_le_bytes()[idx % 4];
            assert!(code & 0x7f == 0x7f || found.to_bits() == e4m3::decode(code).to_bits(), "{code:#x}");
        }
    }
}

#[test]
fn what_a_gpu_leaves_undefined_is_said() {
    if emulator().is_none() {
        return;
    }
    let geometry = Geometry { grid: [2, 1, 1], block: [64, 1, 1], shared_bytes: 256 };
    let out = Buffer::filled(64, 0.0_f32);
    let mistake = |which: i32| run("mistake", geometry, vec![which.into(), out.address().into()]);
    for (which, wanted) in [
        (0, "for threads that do not come: 1 have ended"),
        (1, "different places"),
        (2, "write 0 bytes past the launch's 256 bytes of shared memory"),
        (3, "misaligned vector access"),
        (4, "waits at __syncwarp"),
        (5, "did not wait for"),
        (6, "shuffle from a lane that is not there, or outside the mask"),
    ] {
        let message = mistake(which).unwrap_err();
        assert!(message.starts_with("mistake: ") && message.contains(wanted), "{which}: {message}");
        assert_eq!(mistake(-1), Ok(()), "the next launch is not disturbed");
    }
    assert_eq!(out.to_vec()[63], 63.0);
    assert_eq!(run("nothing", geometry, Vec::new()).unwrap_err(), "no kernel of the name nothing");
}

#[test]
fn lanes_exchange_as_the_programming_guide_says() {
    if emulator().is_none() {
        return;
    }
    let (out, counter) = (Buffer::filled(48 * 16, u32::MAX), Buffer::filled(3, 0_u32));
    run("exchange", Geometry::linear(1, 48), vec![out.address().into(), counter.address().into()]).unwrap();
    let (found, counter) = (out.to_vec(), counter.to_vec());
    for (thread, found) in (0_u32..).zip(found.chunks_exact(16)) {
        let (lane, warp) = (thread % 32, thread / 32);
        let num_lanes = if warp == 0 { 32 } else { 16 };
        let first = warp * 32;
        let if_there =
            |there: bool, other: u32| if there && other < first + num_lanes { other } else { thread };
        if warp == 0 {
            assert_eq!(found[3], if_there(lane < 30, thread + 2), "thread {thread}");
        }
        let ballot = (0..num_lanes).filter(|lane| lane % 3 == 0).map(|lane| 1 << lane).sum::<u32>();
        assert_eq!(found[..3], [first + 5, first + lane / 8 * 8 + 3, thread ^ 4], "thread {thread}");
        assert_eq!(found[4], if_there(lane >= 2, thread.wrapping_sub(2)), "thread {thread}");
        assert_eq!(found[5], if_there(lane % 8 < 6, thread + 2), "thread {thread}");
        assert_eq!(found[6..8], [ballot, 1 + 2], "thread {thread}");
        assert_eq!(found[8], (lane ^ 1) * (1 + lane / 16), "thread {thread}");
        assert_eq!(found[9..11], [10, 1], "thread {thread}");
        let bits = thread.count_ones() + 100 * thread.leading_zeros();
        let lowest = if thread == 0 { 0 } else { thread.trailing_zeros() + 1 };
        assert_eq!(found[12..], [bits + 10_000 * lowest, 0x00ff_5522, 1048, lane + 100 * warp]);
    }
    assert_eq!(counter[..2], [48, 47]);
    assert_eq!(found.iter().skip(11).step_by(16).sum::<u32>(), 1, "one exchange found a zero");
}
