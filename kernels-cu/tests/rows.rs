//! Rows moved, against plain loops.

#![allow(clippy::unwrap_used, reason = "tests")]

mod emulator;

use emulator::{Buffer, Emulator};
use takt_kernels_cu::launch::{
    DeviceAddress,
    rows::{CopyRows, ScatterRows},
};

fn values(count: usize) -> Vec<f32> {
    (0..count).map(|i| (i as f32 * 0.37).sin()).collect()
}

#[test]
fn wanted_rows_are_gathered_and_padding_is_zeros() {
    let Some(emulator) = Emulator::of(&["rows.cu"]) else { return };
    for (width, in_stride, out_stride) in [(1, 1, 1), (7, 9, 7), (256, 256, 300), (1000, 1000, 1000)] {
        let source = values(5 * in_stride);
        let (from, rows) = (Buffer::from_slice(&source), Buffer::from_slice(&[4, 0, -1, 2, 2]));
        let to = Buffer::filled(5 * out_stride, 7.0_f32);
        let copy = CopyRows {
            from: from.address(),
            rows: rows.address(),
            to: to.address(),
            in_stride,
            out_stride,
            num_rows: 5,
            width,
        };
        emulator.launch(&copy.launch().unwrap()).unwrap();
        let mut expected = vec![7.0; 5 * out_stride];
        for (row, from) in [Some(4), Some(0), None, Some(2), Some(2)].into_iter().enumerate() {
            let to = &mut expected[row * out_stride..][..width];
            match from {
                Some(from) => to.copy_from_slice(&source[from * in_stride..][..width]),
                None => to.fill(0.0),
            }
        }
        assert_eq!(to.to_vec(), expected, "width {width}");
        let in_order = CopyRows { rows: DeviceAddress::NULL, num_rows: 2, ..copy };
        emulator.launch(&in_order.launch().unwrap()).unwrap();
        assert_eq!(to.to_vec()[out_stride..][..width], source[in_stride..][..width]);
    }
}

#[test]
fn rows_are_scattered_to_their_places_and_padding_writes_nothing() {
    let Some(emulator) = Emulator::of(&["rows.cu"]) else { return };
    for (width, in_stride, out_stride) in [(1, 1, 1), (7, 9, 7), (256, 256, 300), (1000, 1000, 1000)] {
        let source = values(5 * in_stride);
        let places = [4, 0, -1, 2, 5];
        let (from, rows) = (Buffer::from_slice(&source), Buffer::from_slice(&places));
        let to = Buffer::filled(6 * out_stride, 7.0_f32);
        let scatter = ScatterRows {
            from: from.address(),
            rows: rows.address(),
            to: to.address(),
            in_stride,
            out_stride,
            num_rows: 5,
            width,
        };
        emulator.launch(&scatter.launch().unwrap()).unwrap();
        let mut expected = vec![7.0; 6 * out_stride];
        for (row, place) in [(0, 4), (1, 0), (3, 2), (4, 5)] {
            expected[place * out_stride..][..width].copy_from_slice(&source[row * in_stride..][..width]);
        }
        assert_eq!(to.to_vec(), expected, "width {width}");
    }
}
