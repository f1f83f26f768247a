//! The other tests' way onto a GPU, on an emulated driver: cubins of the check, loaded and launched through the driver layer.
#![allow(clippy::panic, reason = "tests")]
#![expect(unsafe_code, reason = "setting a variable of a process that is this test's alone")]

mod emulator;

use std::{env, sync::Arc};

use emulator::{Buffer, Emulator, driver::EmulatedDevice};
use takt_kernels_cu::launch::rows::CopyRows;

#[test]
fn buffers_and_launches_go_to_the_device_that_is_required() {
    let test = "buffers_and_launches_go_to_the_device_that_is_required";
    if env::var_os("TAKT_REQUIRE_CUBINS").is_none() {
        return eprintln!(
            "skipped: the cubins of `cargo run -p xtask -- kernels` are needed, and TAKT_REQUIRE_CUBINS=1"
        );
    }
    EmulatedDevice::new(test).sm(110).kernels(&["rows.cu"]).run(|device| {
        // SAFETY: a process for this test, which has no other thread that reads the environment.
        unsafe { env::set_var("TAKT_REQUIRE_DEVICE", "1") };
        let emulator = Emulator::of(&["rows.cu"]).unwrap();
        let Emulator::Gpu(gpu) = &emulator else { panic!("on the processor") };
        let mapped = gpu.map(Arc::new(vec![5_u8; 64])).unwrap();
        assert_eq!(device.report().value("registered_bytes"), 64);
        drop(mapped);
        assert_eq!(device.report().value("registered_bytes"), 0);
        let (from, rows) = (Buffer::from_slice(&[1.0_f32, 2.0, 3.0, 4.0]), Buffer::from_slice(&[1, -1]));
        let to = Buffer::filled(4, 7.0_f32);
        let copy = CopyRows {
            from: from.address(),
            rows: rows.address(),
            to: to.address(),
            in_stride: 2,
            out_stride: 2,
            num_rows: 2,
            width: 2,
        };
        emulator.launch(&copy.launch().unwrap()).unwrap();
        assert_eq!(to.to_vec(), [3.0, 4.0, 0.0, 0.0]);
        assert_eq!(device.report().value("launches"), 1);
        assert_eq!(device.report().value("device_allocations"), 3);
    });
}
