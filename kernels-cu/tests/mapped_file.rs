//! An embedding that a kernel reads where its file is mapped, bit for bit; on a GPU, where the device can.

#![allow(clippy::unwrap_used, reason = "tests")]

mod emulator;

use std::{io::Write as _, sync::Arc};

use emulator::{Buffer, Emulator};
use half::bf16;
use memmap2::Mmap;
use takt_kernels_cu::{
    driver::host_memory::SharedBytes,
    launch::{DeviceAddress, embed::Embed},
};

const VOCAB_SIZE: usize = 300;
const WIDTH: usize = 136;

#[expect(unsafe_code, reason = "memory-mapping a file")]
fn mapped(table: &[bf16]) -> Mmap {
    let mut file = tempfile::tempfile().unwrap();
    let bytes: Vec<u8> = table.iter().flat_map(|value| value.to_le_bytes()).collect();
    file.write_all(&bytes).unwrap();
    // SAFETY: nobody else has the file.
    unsafe { Mmap::map(&file) }.unwrap()
}

#[test]
fn rows_of_a_mapped_file_are_read_in_place() {
    let Some(emulator) = Emulator::of(&["embed.cu"]) else { return };
    let table: Vec<bf16> = (0..VOCAB_SIZE * WIDTH).map(|i| bf16::from_f32((i as f32 * 0.37).sin())).collect();
    let file: SharedBytes = Arc::new(mapped(&table));
    // Held until the device is done with it.
    let held = match &emulator {
        Emulator::Gpu(device) => match device.map(Arc::clone(&file)) {
            Ok(memory) => Some(memory),
            Err(error) => return eprintln!("this device copies weights: {error}"),
        },
        _ => None,
    };
    let bytes: &[u8] = (*file).as_ref();
    let embedding = match &held {
        Some(memory) => memory.address_of(bytes).unwrap(),
        None => DeviceAddress(bytes.as_ptr().addr() as u64),
    };
    let ids = [0, 299, 7, 150];
    let (token_ids, out) = (Buffer::from_slice(&ids), Buffer::filled(ids.len() * WIDTH, f32::NAN));
    let embed = Embed {
        embedding,
        token_ids: token_ids.address(),
        out: out.address(),
        num_tokens: ids.len(),
        vocab_size: VOCAB_SIZE,
        width: WIDTH,
    };
    emulator.launch(&embed.launch().unwrap()).unwrap();
    let row = |id: &i32| table[usize::try_from(*id).unwrap() * WIDTH..][..WIDTH].iter();
    let wanted: Vec<f32> = ids.iter().flat_map(row).map(|value| value.to_f32()).collect();
    assert_eq!(out.to_vec(), wanted);
}
