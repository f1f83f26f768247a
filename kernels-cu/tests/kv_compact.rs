//! Rows moved and copied, against the same done row by row on the host.

#![allow(clippy::unwrap_used, reason = "tests")]

mod cache;
mod emulator;

use cache::{DeviceCache, HostCache};
use emulator::{Buffer, Emulator};
use takt_kernels_cu::launch::{
    DeviceAddress, KvFormat,
    kv_compact::{Compaction, Direction, KvPlanes, MOVE_HEADER, SnapshotCopy},
};

const NUM_LAYERS: usize = 3;
const CAPACITY: usize = 70;
const MAX_PATH: usize = 21;

/// Layers that hold different noise in every row.
fn layers(format: KvFormat, head_dim: usize, seed: u64) -> Vec<HostCache> {
    (0..NUM_LAYERS as u64)
        .map(|layer| {
            let mut cache = HostCache::new(format, 2, 2, CAPACITY, head_dim);
            for (lane, row) in (0..2).flat_map(|lane| (0..CAPACITY).map(move |row| (lane, row))) {
                cache.store_noise(lane, row, seed + layer * 1000 + (lane * CAPACITY + row) as u64);
            }
            cache
        })
        .collect()
}

/// The layers where kernels find them, and the table of their addresses.
fn on_device(layers: &[HostCache]) -> (Vec<DeviceCache>, Buffer<u64>) {
    let device: Vec<_> = layers.iter().map(DeviceCache::of).collect();
    let addresses: Vec<u64> = device
        .iter()
        .map(DeviceCache::launched)
        .flat_map(|cache| {
            [cache.keys, cache.values, cache.key_scales, cache.value_scales].map(|address| address.0)
        })
        .collect();
    (device, Buffer::from_slice(&addresses))
}

fn planes(layers: &[HostCache], addresses: &Buffer<u64>) -> KvPlanes {
    KvPlanes {
        addresses: addresses.address(),
        num_layers: NUM_LAYERS,
        num_kv_heads: 2,
        capacity: CAPACITY,
        row_bytes: layers[0].head_dim * layers[0].format.element_bytes(),
    }
}

fn same(a: &HostCache, b: &HostCache) -> bool {
    let bits = |scales: &[f32]| scales.iter().map(|scale| scale.to_bits()).collect::<Vec<_>>();
    a.keys == b.keys
        && a.values == b.values
        && bits(&a.key_scales) == bits(&b.key_scales)
        && bits(&a.value_scales) == bits(&b.value_scales)
}

#[test]
fn a_paths_rows_end_up_in_order_whatever_they_overlap() {
    let Some(emulator) = Emulator::of(&["kv_compact.cu"]) else { return };
    let paths: [&[usize]; 8] = [
        &[],
        &[0],
        &[0, 1, 2, 3],
        &[0, 2, 3, 5, 9],
        &[0, 1, 4, 5, 6, 7, 8, 9, 10, 11, 12],
        &[0, 7],
        &[0, 3, 5, 6, 9, 10, 12, 13, 14, 17, 18, 19, 21, 22, 23, 25, 27, 28, 30, 31, 40],
        &[0, 1, 2, 3, 4, 5, 6, 7, 8, 10],
    ];
    for (idx, path) in paths.into_iter().enumerate() {
        let (format, head_dim) = (KvFormat::ALL[idx % 3], [64, 80, 96, 128, 256][idx % 5]);
        let committed_len = 5 + idx;
        let mut wanted = layers(format, head_dim, 7);
        let (device, addresses) = on_device(&wanted);
        let mut moves = vec![-1; 3 * (MOVE_HEADER + MAX_PATH)];
        let entry = &mut moves[MOVE_HEADER + MAX_PATH..2 * (MOVE_HEADER + MAX_PATH)];
        let header = [1, path.len(), committed_len].map(|word| i32::try_from(word).unwrap());
        entry[..MOVE_HEADER].copy_from_slice(&header);
        for (word, node) in entry[MOVE_HEADER..].iter_mut().zip(path) {
            *word = i32::try_from(committed_len + node).unwrap();
        }
        let moves = Buffer::from_slice(&moves);
        let compaction = Compaction {
            planes: planes(&wanted, &addresses),
            moves: moves.address(),
            num_moves: 3,
            max_path: MAX_PATH,
        };
        emulator.launch(&compaction.launch().unwrap()).unwrap();
        for layer in &mut wanted {
            let before = layer.clone();
            for (depth, node) in path.iter().enumerate() {
                let mut moved = before.clone();
                moved.copy_row(1, committed_len + node, committed_len + depth);
                layer.copy_row_of(&moved, 1, committed_len + depth);
            }
        }
        for (found, wanted) in device.iter().zip(&wanted) {
            assert!(same(&found.read(), wanted), "{format:?} {head_dim} {path:?}");
        }
    }
}

#[test]
fn a_snapshot_goes_to_another_lane_byte_for_byte() {
    let Some(emulator) = Emulator::of(&["kv_compact.cu"]) else { return };
    for (format, head_dim, len) in [
        (KvFormat::Bf16, 256, 70),
        (KvFormat::Fp8, 80, 1),
        (KvFormat::Int8, 64, 33),
        (KvFormat::Fp8, 128, 64),
    ] {
        let mut wanted = layers(format, head_dim, 11);
        let (device, addresses) = on_device(&wanted);
        let planes = planes(&wanted, &addresses);
        let num_rows = 2 * NUM_LAYERS * 2 * len;
        let (rows, scales) =
            (Buffer::filled(num_rows * planes.row_bytes, 0_u8), Buffer::filled(num_rows, 0.0_f32));
        let copy = SnapshotCopy {
            planes,
            rows: rows.address(),
            scales: if format.has_scales() { scales.address() } else { DeviceAddress::NULL },
            lane: 0,
            len,
            direction: Direction::Save,
        };
        emulator.launch(&copy.launch().unwrap()).unwrap();
        let restored = SnapshotCopy { lane: 1, direction: Direction::Restore, ..copy };
        emulator.launch(&restored.launch().unwrap()).unwrap();
        for layer in &mut wanted {
            layer.copy_lane(0, 1, len);
        }
        for (found, wanted) in device.iter().zip(&wanted) {
            assert!(same(&found.read(), wanted), "{format:?} {head_dim} {len}");
        }
    }
}

#[test]
fn what_the_kernels_cannot_do_is_refused_with_the_reason() {
    let at = DeviceAddress(256);
    let planes = KvPlanes { addresses: at, num_layers: 1, num_kv_heads: 1, capacity: 8, row_bytes: 64 };
    let moves = Compaction { planes, moves: at, num_moves: 1, max_path: 4 };
    assert!(moves.launch().is_ok());
    let odd = Compaction { planes: KvPlanes { row_bytes: 72, ..planes }, ..moves };
    assert_eq!(odd.launch().unwrap_err().to_string(), "bytes of a row: 72, expected a multiple of 16");
    let none = Compaction { num_moves: 0, ..moves };
    assert_eq!(none.launch().unwrap_err().to_string(), "moves: 0, expected at least 1");
    let copy = SnapshotCopy { planes, rows: at, scales: at, lane: 0, len: 9, direction: Direction::Save };
    assert_eq!(copy.launch().unwrap_err().to_string(), "rows of a snapshot: 9, expected at most 8");
}
