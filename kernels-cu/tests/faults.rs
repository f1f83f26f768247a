//! The kernels that go wrong on purpose, on an emulated device: each does what it is there for.

#![allow(clippy::unwrap_used, clippy::panic, reason = "tests")]

mod emulator;

use std::time::{Duration, Instant};

use emulator::driver::EmulatedDevice;
use takt_kernels_cu::{
    driver::{
        DriverError,
        context::{Context, Share},
        device,
        module::Kernels,
        stream::Stream,
    },
    launch::faults::Fault,
};

/// What comes of `fault` in a context of its own.
fn outcome(fault: Fault) -> Result<(), DriverError> {
    let device = device::probe().unwrap().remove(0);
    let (context, _) = Context::open(&device, Share::None)?;
    let stream = Stream::new(&context)?;
    let mut image = [0; 64];
    image[..6].copy_from_slice(&[0x7f, b'E', b'L', b'F', 2, 1]);
    let mut kernels = Kernels::load(&context, [&image[..]])?;
    stream.launch(&mut kernels, &fault.launch().unwrap())?;
    stream.synchronize()
}

fn emulated(test: &'static str) -> EmulatedDevice {
    EmulatedDevice::new(test).kernels(&["faults.cu"])
}

#[test]
fn a_trap_and_a_wild_write_lose_their_context() {
    emulated("a_trap_and_a_wild_write_lose_their_context").run(|_| {
        for (fault, words) in [(Fault::Trap, "LAUNCH_FAILED"), (Fault::WildWrite, "ILLEGAL_ADDRESS")] {
            let error = outcome(fault).unwrap_err();
            assert!(error.is_lost() && error.to_string().contains(words), "{fault:?}: {error}");
        }
        assert_eq!(outcome(Fault::Spin { ns: 0 }), Ok(()), "another context is none the worse");
    });
}

#[test]
fn a_spin_takes_its_time_and_ends_by_itself() {
    emulated("a_spin_takes_its_time_and_ends_by_itself").run(|_| {
        let (start, time) = (Instant::now(), Duration::from_millis(80));
        assert_eq!(outcome(Fault::Spin { ns: 80_000_000 }), Ok(()));
        assert!(start.elapsed() >= time, "{:?}", start.elapsed());
    });
}
