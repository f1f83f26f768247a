//! Rows of the embedding, bit for bit.

#![allow(clippy::unwrap_used, reason = "tests")]

mod emulator;

use emulator::{Buffer, Emulator};
use half::bf16;
use takt_kernels_cu::launch::embed::Embed;

#[test]
fn rows_are_copied_exactly_and_unknown_ids_give_zeros() {
    let Some(emulator) = Emulator::of(&["embed.cu"]) else { return };
    let vocab_size = 11;
    for width in [1, 7, 8, 100, 136, 2056] {
        let table: Vec<bf16> =
            (0..vocab_size * width).map(|i| bf16::from_f32((i as f32 * 0.37).sin() * 9.0)).collect();
        for ids in [vec![3], vec![10, 0, -1, 11, i32::MAX, i32::MIN, 5]] {
            let (embedding, token_ids) = (Buffer::from_slice(&table), Buffer::from_slice(&ids));
            let out = Buffer::filled(ids.len() * width, f32::NAN);
            let embed = Embed {
                embedding: embedding.address(),
                token_ids: token_ids.address(),
                out: out.address(),
                num_tokens: ids.len(),
                vocab_size,
                width,
            };
            emulator.launch(&embed.launch().unwrap()).unwrap();
            let wanted = ids.iter().flat_map(|&id| match usize::try_from(id) {
                Ok(id) if id < vocab_size => table[id * width..][..width].to_vec(),
                _ => vec![bf16::ZERO; width],
            });
            let wanted: Vec<f32> = wanted.map(bf16::to_f32).collect();
            assert_eq!(out.to_vec(), wanted, "width {width}");
        }
    }
}
