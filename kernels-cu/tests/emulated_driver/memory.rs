//! Device memory and pinned memory.

use std::ptr;

use cudarc::driver::sys;
use takt_kernels_cu::driver::host_memory::HostReach;

use super::{CUresult, context, destroy, device, device_memory, ok, pinned, store_at};

#[test]
fn what_is_allocated_is_counted_and_gone_when_it_is_freed() {
    device("memory::what_is_allocated_is_counted_and_gone_when_it_is_freed").memory_bytes(1 << 20).run(
        |device| {
            let context = context();
            let (mut free, mut total) = (0, 0);
            let address = device_memory(1000);
            assert_eq!(address % 512, 0);
            ok(call!(cuMemGetInfo_v2(&raw mut free, &raw mut total)));
            assert_eq!((free, total), ((1 << 20) - 1000, 1 << 20));
            let host = pinned(10);
            let report = device.report();
            assert_eq!((report.value("device_allocations"), report.value("device_bytes")), (1, 1000));
            assert_eq!((report.value("host_allocations"), report.value("host_bytes")), (1, 40));
            ok(call!(cuMemFree_v2(address)));
            ok(call!(cuMemFreeHost(host.cast())));
            assert_eq!(call!(cuMemFree_v2(address)), CUresult::CUDA_ERROR_INVALID_VALUE);
            assert_eq!(call!(cuMemFreeHost(host.cast())), CUresult::CUDA_ERROR_INVALID_VALUE);
            ok(call!(cuMemFree_v2(0)));
            destroy(context);
            assert_eq!(device.report().leaks(), Vec::<String>::new());
            assert_eq!(device.report().value("peak_device_bytes"), 1000);
        },
    );
}

#[test]
fn memory_is_bounded() {
    device("memory::memory_is_bounded").memory_bytes(4096).run(|_| {
        let context = context();
        let mut address = 0;
        assert_eq!(call!(cuMemAlloc_v2(&raw mut address, 0)), CUresult::CUDA_ERROR_INVALID_VALUE);
        assert_eq!(call!(cuMemAlloc_v2(&raw mut address, 4097)), CUresult::CUDA_ERROR_OUT_OF_MEMORY);
        let first = device_memory(4000);
        assert_eq!(call!(cuMemAlloc_v2(&raw mut address, 97)), CUresult::CUDA_ERROR_OUT_OF_MEMORY);
        ok(call!(cuMemFree_v2(first)));
        device_memory(4096);
        destroy(context);
    });
}

#[test]
fn pinned_memory_is_part_of_an_integrated_devices_memory() {
    let test = "memory::pinned_memory_is_part_of_an_integrated_devices_memory";
    device(test).sm(87).memory_bytes(4096).run(|_| {
        let context = context();
        let (mut free, mut total, mut address) = (0, 0, 0);
        let host = pinned(1000);
        ok(call!(cuMemGetInfo_v2(&raw mut free, &raw mut total)));
        assert_eq!((free, total), (96, 4096));
        assert_eq!(call!(cuMemAlloc_v2(&raw mut address, 97)), CUresult::CUDA_ERROR_OUT_OF_MEMORY);
        ok(call!(cuMemFreeHost(host.cast())));
        device_memory(4096);
        destroy(context);
    });
}

#[test]
fn fresh_memory_is_not_a_number() {
    device("memory::fresh_memory_is_not_a_number").run(|_| {
        let context = context();
        let address = device_memory(8);
        let mut values = [0.0_f32; 2];
        ok(call!(cuMemcpyDtoH_v2(values.as_mut_ptr().cast(), address, 8)));
        assert!(values.iter().all(|value| value.is_nan()));
        destroy(context);
    });
}

#[test]
fn pinned_memory_has_an_address_on_the_device_and_write_combined_memory_another() {
    device("memory::pinned_memory_has_an_address_on_the_device_and_write_combined_memory_another").run(
        |_| {
            let context = context();
            let (host, mut address) = (pinned(4), 0);
            ok(call!(cuMemHostGetDevicePointer_v2(&raw mut address, host.cast(), 0)));
            assert_eq!(address, host.addr() as u64);
            let (mut combined, write_combined) = (ptr::null_mut(), 4);
            ok(call!(cuMemHostAlloc(&raw mut combined, 16, write_combined)));
            ok(call!(cuMemHostGetDevicePointer_v2(&raw mut address, combined, 0)));
            assert_ne!(address, combined.addr() as u64);
            ok(call!(cuMemsetD8_v2(address, 7, 16)));
            ok(call!(cuCtxSynchronize()));
            // SAFETY: as many bytes were allocated, and the device is idle.
            assert_eq!(unsafe { std::slice::from_raw_parts(combined.cast::<u8>(), 16) }, [7; 16]);
            let mut pageable = 0;
            let not_pinned =
                call!(cuMemHostGetDevicePointer_v2(&raw mut address, (&raw mut pageable).cast(), 0));
            assert_eq!((not_pinned, pageable), (CUresult::CUDA_ERROR_INVALID_VALUE, 0));
            destroy(context);
        },
    );
}

#[test]
fn host_memory_can_be_registered_once() {
    device("memory::host_memory_can_be_registered_once").run(|_| {
        let context = context();
        let mut values = vec![1_i32; 1024];
        let (first, mut address) = (values.as_mut_ptr().cast::<std::ffi::c_void>(), 0);
        ok(call!(cuMemHostRegister_v2(first, 4096, 0)));
        let again = call!(cuMemHostRegister_v2(first, 4096, 0));
        assert_eq!(again, CUresult::CUDA_ERROR_HOST_MEMORY_ALREADY_REGISTERED);
        ok(call!(cuMemHostGetDevicePointer_v2(&raw mut address, first, 0)));
        ok(call!(cuMemHostUnregister(first)));
        assert_eq!(call!(cuMemHostUnregister(first)), CUresult::CUDA_ERROR_HOST_MEMORY_NOT_REGISTERED);
        destroy(context);
    });
}

/// A page that the process may read alone, as a mapped file's are.
fn read_only_page() -> *mut std::ffi::c_void {
    let map = memmap2::MmapMut::map_anon(4096).unwrap().make_read_only().unwrap();
    // It stays for the rest of the process.
    Box::leak(Box::new(map)).as_ptr().cast_mut().cast()
}

#[test]
fn memory_that_may_only_be_read_is_registered_as_such_or_not_at_all() {
    const READ_ONLY: u32 = sys::CU_MEMHOSTREGISTER_READ_ONLY;
    device("memory::memory_that_may_only_be_read_is_registered_as_such_or_not_at_all").run(|device| {
        let (context, page) = (context(), read_only_page());
        assert_eq!(call!(cuMemHostRegister_v2(page, 4096, 0)), CUresult::CUDA_ERROR_INVALID_VALUE);
        ok(call!(cuMemHostRegister_v2(page, 4096, READ_ONLY)));
        assert_eq!(device.report().value("registered_bytes"), 4096);
        ok(call!(cuMemHostUnregister(page)));
        destroy(context);
    });
}

#[test]
fn a_device_without_the_attribute_refuses_to_register_as_read_only() {
    let test = "memory::a_device_without_the_attribute_refuses_to_register_as_read_only";
    device(test).host_reach(HostReach::Nothing).run(|_| {
        let (context, page) = (context(), read_only_page());
        let refused = call!(cuMemHostRegister_v2(page, 4096, sys::CU_MEMHOSTREGISTER_READ_ONLY));
        assert_eq!(refused, CUresult::CUDA_ERROR_NOT_SUPPORTED);
        destroy(context);
    });
}

#[test]
fn a_write_close_behind_an_allocation_is_seen_at_the_next_wait() {
    device("memory::a_write_close_behind_an_allocation_is_seen_at_the_next_wait").run(|device| {
        let context = context();
        let (values, stream, module) = (device_memory(10 * 4), super::stream(), super::module());
        let store = super::function(module, "store_at");
        ok(store_at(store, stream, values, 9, 1));
        ok(call!(cuStreamSynchronize(stream)));
        ok(store_at(store, stream, values, 10, 1));
        assert_eq!(call!(cuStreamSynchronize(stream)), CUresult::CUDA_ERROR_ILLEGAL_ADDRESS);
        assert_eq!(device.report().value("overruns"), 1);
        assert!(device.last_message().contains("40 bytes"), "{}", device.last_message());
        destroy(context);
    });
}

#[test]
fn an_access_far_outside_is_an_illegal_address_and_the_next_context_works() {
    device("memory::an_access_far_outside_is_an_illegal_address_and_the_next_context_works").run(|device| {
        for outside in [128, -1024, 1 << 40] {
            let context = context();
            let (values, stream, module) = (device_memory(64 * 4), super::stream(), super::module());
            let store = super::function(module, "store_at");
            ok(store_at(store, stream, values, outside, 1));
            assert_eq!(call!(cuStreamSynchronize(stream)), CUresult::CUDA_ERROR_ILLEGAL_ADDRESS);
            assert!(device.last_message().contains("store_at"), "{}", device.last_message());
            destroy(context);
        }
        let context = context();
        let (values, stream, module) = (device_memory(64 * 4), super::stream(), super::module());
        ok(store_at(super::function(module, "store_at"), stream, values, 63, 5));
        assert_eq!(super::values_of(values, 64)[63], 5);
        destroy(context);
    });
}
