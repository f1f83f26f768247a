//! Drivers older than the binding: what they lack is not called, what they refuse is not loaded, and one that is too old is told apart.

#![allow(clippy::unwrap_used, clippy::panic, reason = "tests")]

mod emulator;

use std::path::Path;

use emulator::driver::EmulatedDevice;
use takt_kernels_cu::{
    CudaVersion,
    driver::{
        DriverError,
        context::{Context, Share},
        device::{self, Device},
        memory::DeviceBuffer,
        module::Kernels,
        stream::Stream,
    },
    launch::{Geometry, Launch},
};

const GREEN: Share = Share::GreenContext { num_sms: 8 };

fn emulated(test: &'static str) -> EmulatedDevice {
    let kernels = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/emulator/driver/test_kernels.cu");
    EmulatedDevice::new(test).kernel_files(&[kernels])
}

fn device() -> Device {
    device::probe().unwrap().remove(0)
}

/// An ELF header of no machine, in which the emulated device finds every kernel.
fn image() -> [u8; 64] {
    let mut image = [0; 64];
    image[..6].copy_from_slice(&[0x7f, b'E', b'L', b'F', 2, 1]);
    image
}

/// Loads, captures and runs a kernel that adds 2 to ten values of 0, and says why there is no green context, if there is none.
fn session(device: &Device, share: Share) -> Option<String> {
    let (context, fallback) = Context::open(device, share).unwrap();
    let stream = Stream::new(&context).unwrap();
    let mut kernels = Kernels::load(&context, [&image()[..]]).unwrap();
    let values = DeviceBuffer::new(&context, 40, "values").unwrap();
    let addend = DeviceBuffer::new(&context, 4, "addend").unwrap();
    stream.zero(&values).unwrap();
    stream.upload(&2_i32.to_le_bytes(), &addend, 0).unwrap();
    let arguments = vec![values.address().into(), 10_i32.into(), addend.address().into()];
    let launch = Launch::new("add_to_all", Geometry::linear(1, 64), arguments).unwrap();
    kernels.prepare(&launch).unwrap();
    let graph = stream.capture(|stream| stream.launch(&mut kernels, &launch)).unwrap();
    stream.run(&graph).unwrap();
    let mut bytes = [0; 40];
    stream.download(&values, 0, &mut bytes).unwrap();
    assert_eq!(bytes.as_chunks::<4>().0, [2_i32.to_le_bytes(); 10]);
    fallback.map(|fallback| fallback.reason)
}

#[test]
fn jetpack_6_has_all_that_is_called_green_contexts_too() {
    emulated("jetpack_6_has_all_that_is_called_green_contexts_too").sm(87).cuda(12, 6).run(|emulated| {
        let device = device();
        assert_eq!(device.driver_version, CudaVersion::new(12, 6));
        for share in [GREEN, Share::Priority, Share::None] {
            assert_eq!(session(&device, share), None);
        }
        assert_eq!(emulated.report().leaks(), Vec::<String>::new());
    });
}

#[test]
fn cuda_12_4_makes_contexts_the_older_way_and_says_why_they_are_not_green() {
    let test = "cuda_12_4_makes_contexts_the_older_way_and_says_why_they_are_not_green";
    emulated(test).cuda(12, 4).run(|emulated| {
        let device = device();
        let reason = session(&device, GREEN).unwrap();
        assert!(reason.contains("12.5") && reason.contains("12.4"), "{reason}");
        assert_eq!(session(&device, Share::None), None);
        let report = emulated.report();
        assert_eq!((report.calls("cuCtxCreate_v2"), report.calls("cuCtxCreate_v4")), (2, 0));
        assert_eq!(report.calls("cuGreenCtxCreate"), 0, "nothing is begun that cannot be ended");
        assert_eq!(report.leaks(), Vec::<String>::new());
    });
}

#[test]
fn cuda_12_0_has_no_green_contexts_and_does_all_else() {
    emulated("cuda_12_0_has_no_green_contexts_and_does_all_else").cuda(12, 0).run(|emulated| {
        let device = device();
        assert!(session(&device, GREEN).unwrap().contains("12.0"));
        assert_eq!(session(&device, Share::Priority), None);
        assert_eq!(emulated.report().leaks(), Vec::<String>::new());
    });
}

#[test]
fn cuda_13_makes_contexts_the_newer_way() {
    emulated("cuda_13_makes_contexts_the_newer_way").run(|emulated| {
        assert_eq!(session(&device(), Share::None), None);
        let report = emulated.report();
        assert_eq!((report.calls("cuCtxCreate_v2"), report.calls("cuCtxCreate_v4")), (0, 1));
    });
}

#[test]
fn a_driver_of_cuda_11_is_too_old_and_is_not_started() {
    emulated("a_driver_of_cuda_11_is_too_old_and_is_not_started").cuda(11, 8).run(|emulated| {
        let error = device::probe().unwrap_err();
        let (found, expected) = (CudaVersion::new(11, 8), CudaVersion::new(12, 0));
        assert_eq!(error, DriverError::TooOld { found, expected });
        let said = error.to_string();
        assert!(
            said.contains("CUDA 11.8") && said.contains("12.0 or later") && said.contains("update"),
            "{said}"
        );
        assert_eq!(emulated.report().calls("cuInit"), 0);
    });
}

#[test]
fn a_library_that_lacks_what_is_needed_is_told_with_what_it_lacks() {
    let test = "a_library_that_lacks_what_is_needed_is_told_with_what_it_lacks";
    emulated(test).without("cuGraphUpload").without("cuMemHostUnregister").run(|_| {
        let error = device::probe().unwrap_err();
        let missing = vec!["cuGraphUpload", "cuMemHostUnregister"];
        assert_eq!(error, DriverError::Incomplete { missing });
        assert!(error.to_string().contains("cuGraphUpload, cuMemHostUnregister"), "{error}");
    });
}

#[test]
fn even_a_library_that_does_not_tell_its_version_or_name_its_errors_is_no_panic() {
    let test = "even_a_library_that_does_not_tell_its_version_or_name_its_errors_is_no_panic";
    emulated(test).cuda(11, 0).without("cuDriverGetVersion").without("cuGetErrorName").run(|_| {
        let DriverError::Incomplete { missing } = device::probe().unwrap_err() else {
            panic!("another error")
        };
        assert_eq!(missing, ["cuDriverGetVersion", "cuGetErrorName"]);
    });
}

/// What loading the fixtures' cubins of CUDA 13.0 and of 12.6 comes to.
fn load_both() -> [Result<(), DriverError>; 2] {
    let (context, _) = Context::open(&device(), Share::None).unwrap();
    let cubins: [&[u8]; 2] =
        [include_bytes!("fixtures/cubin/sm_87.cubin"), include_bytes!("fixtures/cubin/sm_87-12.6.cubin")];
    cubins.map(|cubin| Kernels::load(&context, [cubin]).map(drop))
}

#[test]
fn an_older_driver_takes_cubins_of_its_own_major_version_alone() {
    let test = "an_older_driver_takes_cubins_of_its_own_major_version_alone";
    emulated(test).sm(87).cuda(12, 6).run(|_| {
        let [newer, own] = load_both();
        assert!(newer.unwrap_err().to_string().contains("INVALID_IMAGE"));
        own.unwrap();
    });
}

#[test]
fn a_driver_of_cuda_13_takes_both() {
    emulated("a_driver_of_cuda_13_takes_both").sm(87).run(|_| assert_eq!(load_both(), [Ok(()), Ok(())]));
}
