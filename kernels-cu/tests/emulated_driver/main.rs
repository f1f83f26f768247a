//! The emulated driver does what CUDA's documentation says of the driver's interface.

#![expect(unsafe_code, reason = "calls a C interface")]
#![allow(clippy::unwrap_used, clippy::panic, clippy::expect_used, reason = "tests")]

#[path = "../emulator/mod.rs"]
mod emulator;

/// A call of the driver.
macro_rules! call {
    ($name:ident($($argument:expr),* $(,)?)) => {{
        #[allow(unused_unsafe, reason = "arguments may be calls")]
        // SAFETY: outputs are places of this test's, sizes are those of what they are of, handles are checked by the emulated driver.
        unsafe { cudarc::driver::sys::$name($($argument),*) }
    }};
}

mod contexts;
mod copies;
mod faults;
mod graphs;
mod kernels;
mod memory;
mod streams;

use std::{
    ffi::{CString, c_void},
    path::Path,
    ptr,
    sync::atomic::{AtomicBool, Ordering},
    thread,
};

use cudarc::driver::sys::{
    CUcontext, CUdevice, CUdeviceptr, CUevent, CUfunction, CUmodule, CUresult, CUstream,
};

use CUresult::CUDA_SUCCESS;

const NON_BLOCKING: u32 = 1;

/// Panics where the caller is.
#[track_caller]
fn ok(result: CUresult) {
    assert_eq!(result, CUDA_SUCCESS);
}

/// A fresh context, current to this thread.
fn context() -> CUcontext {
    let (mut device, mut context): (CUdevice, CUcontext) = (0, ptr::null_mut());
    ok(call!(cuInit(0)));
    ok(call!(cuDeviceGet(&raw mut device, 0)));
    ok(call!(cuCtxCreate_v4(&raw mut context, ptr::null_mut(), 0, device)));
    context
}

#[track_caller]
fn destroy(context: CUcontext) {
    ok(call!(cuCtxDestroy_v2(context)));
}

#[track_caller]
fn stream() -> CUstream {
    let mut made = ptr::null_mut();
    ok(call!(cuStreamCreate(&raw mut made, NON_BLOCKING)));
    made
}

#[track_caller]
fn event() -> CUevent {
    let mut made = ptr::null_mut();
    ok(call!(cuEventCreate(&raw mut made, 0)));
    made
}

#[track_caller]
fn device_memory(bytes: usize) -> CUdeviceptr {
    let mut address = 0;
    ok(call!(cuMemAlloc_v2(&raw mut address, bytes)));
    address
}

/// Device memory with these values in it, written before the call returns.
#[track_caller]
fn device_values(values: &[i32]) -> CUdeviceptr {
    let address = device_memory(size_of_val(values));
    ok(call!(cuMemcpyHtoD_v2(address, values.as_ptr().cast(), size_of_val(values))));
    ok(call!(cuCtxSynchronize()));
    address
}

/// What device memory holds once all that was submitted is done.
#[track_caller]
fn values_of(address: CUdeviceptr, count: usize) -> Vec<i32> {
    let mut values = vec![0; count];
    ok(call!(cuCtxSynchronize()));
    ok(call!(cuMemcpyDtoH_v2(values.as_mut_ptr().cast(), address, count * 4)));
    values
}

/// Pinned memory of `count` values, all 0.
#[track_caller]
fn pinned(count: usize) -> *mut i32 {
    let mut address = ptr::null_mut();
    ok(call!(cuMemHostAlloc(&raw mut address, count * 4, 0)));
    let values = address.cast::<i32>();
    // SAFETY: as many bytes were allocated.
    unsafe { values.write_bytes(0, count) };
    values
}

/// The least image that is one: an ELF header of no machine.
fn image() -> [u8; 64] {
    let mut image = [0; 64];
    image[..6].copy_from_slice(&[0x7f, b'E', b'L', b'F', 2, 1]);
    image
}

#[track_caller]
fn module() -> CUmodule {
    let mut made = ptr::null_mut();
    ok(call!(cuModuleLoadData(&raw mut made, image().as_ptr().cast())));
    made
}

#[track_caller]
fn function(module: CUmodule, name: &str) -> CUfunction {
    let (mut found, name) = (ptr::null_mut(), CString::new(name).unwrap());
    ok(call!(cuModuleGetFunction(&raw mut found, module, name.as_ptr())));
    found
}

/// Launches a kernel of one block with arguments that are read before the call returns.
fn launch(function: CUfunction, stream: CUstream, threads: u32, arguments: &mut [*mut c_void]) -> CUresult {
    call!(cuLaunchKernel(
        function,
        1,
        1,
        1,
        threads,
        1,
        1,
        0,
        stream,
        arguments.as_mut_ptr(),
        ptr::null_mut()
    ))
}

/// Adds `*addend` to `count` values.
fn add_to_all(
    function: CUfunction,
    stream: CUstream,
    values: CUdeviceptr,
    count: i32,
    addend: CUdeviceptr,
) -> CUresult {
    let (mut values, mut count, mut addend) = (values, count, addend);
    let mut arguments = [(&raw mut values).cast(), (&raw mut count).cast(), (&raw mut addend).cast()];
    launch(function, stream, 64, &mut arguments)
}

fn store_at(function: CUfunction, stream: CUstream, values: CUdeviceptr, idx: i64, value: i32) -> CUresult {
    let (mut values, mut idx, mut value) = (values, idx, value);
    let mut arguments = [(&raw mut values).cast(), (&raw mut idx).cast(), (&raw mut value).cast()];
    launch(function, stream, 1, &mut arguments)
}

/// What is submitted to a stream from now on waits until the gate is opened.
struct Gate(&'static AtomicBool);

impl Gate {
    #[track_caller]
    fn before(stream: CUstream) -> Self {
        unsafe extern "C" fn wait(is_open: *mut c_void) {
            // SAFETY: the flag below lives for ever.
            let is_open = unsafe { &*is_open.cast::<AtomicBool>() };
            while !is_open.load(Ordering::Acquire) {
                thread::yield_now();
            }
        }
        let is_open: &'static AtomicBool = Box::leak(Box::new(AtomicBool::new(false)));
        ok(call!(cuLaunchHostFunc(stream, Some(wait), ptr::from_ref(is_open).cast_mut().cast())));
        Self(is_open)
    }

    fn open(self) {
        self.0.store(true, Ordering::Release);
    }
}

/// A device with the tests' kernels.
fn device(test: &'static str) -> emulator::driver::EmulatedDevice {
    let kernels = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/emulator/driver/test_kernels.cu");
    emulator::driver::EmulatedDevice::new(test).kernel_files(&[kernels])
}
