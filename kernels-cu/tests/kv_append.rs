//! New rows put into lanes, against the same done row by row on the host.

#![allow(clippy::unwrap_used, reason = "tests")]

mod emulator;

use emulator::{Buffer, Emulator};
use takt_kernels_cu::launch::{
    DeviceAddress,
    kv_append::{Append, PLACE_WORDS},
    kv_compact::KvPlanes,
};

const NUM_LAYERS: usize = 3;
const NUM_LANES: usize = 4;
const HEADS: usize = 2;
const CAPACITY: usize = 19;

/// Bytes that differ from each other.
fn noise(len: usize, seed: u8) -> Vec<u8> {
    (0..len).map(|i| (i as u8).wrapping_mul(37).wrapping_add((i >> 8) as u8) ^ seed).collect()
}

/// Keys and values of all layers, `[NUM_LANES, HEADS, CAPACITY, row_bytes]` each.
fn lanes(row_bytes: usize) -> Vec<Vec<u8>> {
    (0..2 * NUM_LAYERS as u8).map(|idx| noise(NUM_LANES * HEADS * CAPACITY * row_bytes, idx)).collect()
}

struct Case {
    row_bytes: usize,
    num_tokens: usize,
    first_lane: usize,
    /// First row and number of rows of each lane.
    places: &'static [[i32; PLACE_WORDS]],
}

#[test]
fn new_rows_go_behind_their_lanes_and_padding_goes_nowhere() {
    let Some(emulator) = Emulator::of(&["kv_append.cu"]) else { return };
    let cases = [
        // The least there is: 16 values of a byte.
        Case { row_bytes: 16, num_tokens: 3, first_lane: 1, places: &[[2, 3], [6, 1]] },
        Case { row_bytes: 32, num_tokens: 1, first_lane: 0, places: &[[7, 1]] },
        Case { row_bytes: 256, num_tokens: 5, first_lane: 1, places: &[[0, 5], [14, 5], [3, 0]] },
        Case { row_bytes: 144, num_tokens: 7, first_lane: 0, places: &[[4, 2], [9, 0], [0, 7], [12, 6]] },
        // More than the lane has room for, and no lane.
        Case { row_bytes: 64, num_tokens: 4, first_lane: 2, places: &[[17, 4], [-1, 4]] },
    ];
    for Case { row_bytes, num_tokens, first_lane, places } in cases {
        let mut wanted = lanes(row_bytes);
        let device: Vec<_> = wanted.iter().map(|plane| Buffer::from_slice(plane)).collect();
        let addresses: Vec<u64> =
            device.chunks(2).flat_map(|layer| [layer[0].address().0, layer[1].address().0, 0, 0]).collect();
        let addresses = Buffer::from_slice(&addresses);
        let batch = places.len();
        let used_bytes = batch * HEADS * num_tokens * row_bytes;
        let tensor_bytes = used_bytes.next_multiple_of(256);
        let new = noise(2 * NUM_LAYERS * tensor_bytes, 0xa5);
        let (rows, words) = (Buffer::from_slice(&new), places.concat());
        let words = Buffer::from_slice(&words);
        let append = Append {
            planes: KvPlanes {
                addresses: addresses.address(),
                num_layers: NUM_LAYERS,
                num_kv_heads: HEADS,
                capacity: CAPACITY,
                row_bytes,
            },
            rows: rows.address(),
            places: words.address(),
            tensor_bytes,
            first_lane,
            batch,
            num_tokens,
        };
        emulator.launch(&append.launch().unwrap()).unwrap();
        for (tensor, plane) in wanted.iter_mut().enumerate() {
            for (b, &[first, count]) in places.iter().enumerate().filter(|(_, place)| place[0] >= 0) {
                let (first, count) = (first as usize, count as usize);
                for (head, row) in (0..HEADS).flat_map(|head| (0..count).map(move |row| (head, row))) {
                    if first + row >= CAPACITY {
                        continue;
                    }
                    let from = tensor * tensor_bytes + ((b * HEADS + head) * num_tokens + row) * row_bytes;
                    let to = (((first_lane + b) * HEADS + head) * CAPACITY + first + row) * row_bytes;
                    plane[to..to + row_bytes].copy_from_slice(&new[from..from + row_bytes]);
                }
            }
        }
        for (tensor, (found, wanted)) in device.iter().zip(&wanted).enumerate() {
            assert!(found.to_vec() == *wanted, "tensor {tensor} of rows of {row_bytes} bytes");
        }
    }
}

#[test]
fn what_the_kernel_cannot_do_is_refused_with_the_reason() {
    let at = DeviceAddress(256);
    let planes = KvPlanes { addresses: at, num_layers: 1, num_kv_heads: 2, capacity: 8, row_bytes: 64 };
    let append =
        Append { planes, rows: at, places: at, tensor_bytes: 512, first_lane: 0, batch: 2, num_tokens: 2 };
    assert!(append.launch().is_ok());
    let refused = |append: Append| append.launch().unwrap_err().to_string();
    let odd = Append { planes: KvPlanes { row_bytes: 72, ..planes }, ..append };
    assert_eq!(refused(odd), "bytes of a row: 72, expected a multiple of 16");
    assert_eq!(refused(Append { num_tokens: 3, ..append }), "bytes of new rows: 768, expected at most 512");
    assert_eq!(refused(Append { num_tokens: 9, ..append }), "new rows: 9, expected at most 8");
    assert_eq!(refused(Append { batch: 0, ..append }), "lanes: 0, expected at least 1");
    let unaligned = Append { rows: DeviceAddress(264), ..append };
    assert_eq!(refused(unaligned), "new rows: address 0x108, expected a multiple of 16 bytes");
    assert!(Append { places: DeviceAddress::NULL, ..append }.launch().is_err());
}
